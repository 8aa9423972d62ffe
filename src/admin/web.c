/*
 * web.c -- the http endpoints, on our loop.
 *
 * libmicrohttpd keeps its sockets in an epoll descriptor of its own; we watch that one descriptor. Its timeouts are
 * asked for after every turn, so that no timer runs while no connection is open. A request that needs the ledger is
 * suspended until the answer is there. Nothing of this exists while `http` is not configured.
 */
#include "admin_internal.h"

#include "log.h"
#include "utlist.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 32
#define REQUEST_BYTES (16 * 1024) /* line, headers and the head of the answer */
#define SILENCE_S 15u

struct web {
    struct admin *admin;
    struct MHD_Daemon *mhd;
    uv_poll_t poll;
    uv_timer_t timer;
    int handles;
    bool is_closing;
    struct request *requests; /* suspended */
    void (*closed)(void *arg);
    void *closed_arg;
};

struct request {
    struct web *http;
    struct MHD_Connection *connection;
    struct question *question; /* asked; the connection is suspended */
    struct request *prev, *next;
    bool is_metrics;
    bool is_answered; /* the answer is in TEXT */
    unsigned code;
    const char *type;
    struct buf text;
};

#define JSON_TYPE "application/json; charset=utf-8"
#define METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define TEXT_TYPE "text/plain; charset=utf-8"

static void turn(struct web *h);

/* ---- answers ---- */

static enum MHD_Result send_text(struct MHD_Connection *connection, unsigned code, const char *type, const char *text,
                                 size_t size)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(size, (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (response == NULL)
        return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (code == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    enum MHD_Result result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result send_error(struct MHD_Connection *connection, unsigned code, const char *error)
{
    struct buf text;
    buf_init(&text);
    buf_adds(&text, "{\"error\":");
    buf_add_json(&text, error);
    buf_adds(&text, "}\n");
    enum MHD_Result result = text.failed ? MHD_NO : send_text(connection, code, JSON_TYPE, text.data, text.size);
    buf_done(&text);
    return result;
}

static enum MHD_Result send_readiness(struct web *h, struct MHD_Connection *connection)
{
    struct arena arena;
    arena_init(&arena);
    struct engine_status status;
    struct err err = {0};
    enum MHD_Result result;
    if (engine_status(h->admin->engine, &arena, &status, &err) != ERR_NONE) {
        result = send_error(connection, MHD_HTTP_SERVICE_UNAVAILABLE, err.text);
    } else {
        struct json_object *o = json_object_new_object();
        json_object_object_add(o, "ready", json_object_new_boolean(status.is_ready));
        json_object_object_add(o, "reasons", json_object_new_string(status.is_ready ? "" : status.not_ready));
        const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        result = text == NULL ? MHD_NO
                              : send_text(connection, status.is_ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE,
                                          JSON_TYPE, text, strlen(text));
        json_object_put(o);
    }
    arena_done(&arena);
    return result;
}

/* ---- what needs the ledger ---- */

static void compose(struct request *r, const struct report *report)
{
    r->code = MHD_HTTP_OK;
    if (r->is_metrics) {
        r->type = METRICS_TYPE;
        metrics_text(report, &r->text);
        return;
    }
    struct json_object *o = report_status(report);
    const char *text =
        o == NULL ? NULL : json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
    r->type = JSON_TYPE;
    buf_adds(&r->text, text == NULL ? "" : text);
    buf_addc(&r->text, '\n');
    r->text.failed |= text == NULL;
    json_object_put(o);
}

static void resume(struct request *r)
{
    struct web *h = r->http;
    DL_DELETE(h->requests, r);
    r->question = NULL;
    MHD_resume_connection(r->connection);
}

static void on_counters(struct question *q)
{
    struct counters *c = (struct counters *)q;
    struct request *r = q->asker;
    struct web *h = r->http;
    struct arena arena;
    arena_init(&arena);
    struct engine_status status;
    struct err err = {0};
    if (engine_status(h->admin->engine, &arena, &status, &err) == ERR_NONE) {
        struct report report = {.config = h->admin->config,
                                .state = h->admin->config->state,
                                .engine = &status,
                                .counters = c->counters,
                                .counter_count = c->count,
                                .counters_problem = c->problem};
        compose(r, &report);
    } else {
        r->code = MHD_HTTP_SERVICE_UNAVAILABLE;
        r->type = TEXT_TYPE;
        buf_printf(&r->text, "%s\n", err.text);
    }
    arena_done(&arena);
    counters_free(c);
    r->is_answered = true;
    resume(r);
    turn(h);
}

static enum MHD_Result ask(struct request *r, struct MHD_Connection *connection, bool is_metrics)
{
    struct err err = {0};
    r->is_metrics = is_metrics;
    struct counters *c = counters_ask(r->http->admin, r, on_counters, &err);
    if (c == NULL)
        return send_error(connection, MHD_HTTP_SERVICE_UNAVAILABLE, err.text);
    r->question = &c->question;
    r->connection = connection;
    DL_APPEND(r->http->requests, r);
    MHD_suspend_connection(connection);
    return MHD_YES;
}

/* ---- libmicrohttpd calls ---- */

static enum MHD_Result route(struct request *r, struct MHD_Connection *connection, const char *url, const char *method)
{
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return send_error(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD");
    if (strcmp(url, "/healthz") == 0)
        return send_text(connection, MHD_HTTP_OK, TEXT_TYPE, "ok\n", 3);
    if (strcmp(url, "/readyz") == 0)
        return send_readiness(r->http, connection);
    if (strcmp(url, "/metrics") == 0)
        return ask(r, connection, true);
    if (strcmp(url, "/api/v1/status") == 0)
        return ask(r, connection, false);
    return send_error(connection, MHD_HTTP_NOT_FOUND,
                      "not found; there are /healthz, /readyz, /metrics and /api/v1/status");
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *body, size_t *body_size, void **state)
{
    struct web *h = arg;
    struct request *r = *state;
    (void)version;
    (void)body;
    if (h->is_closing)
        return MHD_NO;
    if (r == NULL) { /* the headers have come; answer when the body is over */
        r = calloc(1, sizeof *r);
        if (r == NULL)
            return MHD_NO;
        r->http = h;
        buf_init(&r->text);
        *state = r;
        return MHD_YES;
    }
    if (*body_size > 0) {
        if (*body_size > REQUEST_BYTES)
            return MHD_NO;
        *body_size = 0; /* nobody asked for one */
        return MHD_YES;
    }
    if (!r->is_answered)
        return route(r, connection, url, method);
    if (r->text.failed)
        return send_error(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory");
    return send_text(connection, r->code, r->type, r->text.data, r->text.size);
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode how)
{
    struct request *r = *state;
    (void)arg;
    (void)connection;
    (void)how;
    if (r == NULL)
        return;
    if (r->question != NULL) {
        DL_DELETE(r->http->requests, r);
        question_forget(r->question);
    }
    buf_done(&r->text);
    free(r);
    *state = NULL;
}

static void quiet_log(void *arg, const char *fmt, va_list args)
{
    /* a broken request is the client's affair: at debug level only */
    char text[256];
    (void)arg;
    if (!log_wants(LOG_DEBUG))
        return;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    vsnprintf(text, sizeof text, fmt, args);
#pragma GCC diagnostic pop
    text[strcspn(text, "\n")] = '\0';
    log_debug("http: %s", text);
}

/* ---- the loop ---- */

static void on_timer(uv_timer_t *timer)
{
    turn(timer->data);
}

static unsigned connections(struct web *h)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);
    return info == NULL ? 0 : info->num_connections;
}

static void turn(struct web *h)
{
    unsigned before;
    if (h->is_closing)
        return;
    /* A turn that begins at the limit takes the listening socket out of the epoll set, and only a later turn puts it
     * back: without one, nothing would ever wake us for the clients that wait. */
    do {
        before = connections(h);
        MHD_run(h->mhd);
    } while (before >= CONNECTIONS_MAX && connections(h) < CONNECTIONS_MAX);
    MHD_UNSIGNED_LONG_LONG wait;
    if (MHD_get_timeout(h->mhd, &wait) == MHD_YES)
        uv_timer_start(&h->timer, on_timer, wait, 0);
    else
        uv_timer_stop(&h->timer);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    turn(poll->data);
}

/* ---- listening ---- */

/* "host:port", "port", "[::1]:port" */
static enum err_code split_address(const char *listen_at, char *host, size_t size, const char **ret_port,
                                   struct err *err)
{
    const char *colon = strrchr(listen_at, ':'), *port = colon == NULL ? listen_at : colon + 1;
    size_t length = colon == NULL ? 0 : (size_t)(colon - listen_at);
    const char *start = listen_at;
    if (length >= 2 && start[0] == '[' && start[length - 1] == ']') {
        start++;
        length -= 2;
    }
    char *end;
    errno = 0;
    long number = strtol(port, &end, 10);
    if (length >= size || port[0] < '0' || port[0] > '9' || *end != '\0' || errno != 0 || number > 65535)
        return err_set(err, ERR_CONFIG, false,
                       "http.listen: expected \"host:port\", \"port\" or \"[::1]:port\", found \"%s\"", listen_at);
    memcpy(host, start, length);
    host[length] = '\0';
    *ret_port = port;
    return ERR_NONE;
}

static int listen_to(const struct addrinfo *at)
{
    int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol), on = 1, off = 0;
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (at->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, CONNECTIONS_MAX) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static enum err_code open_port(const char *listen_at, int *ret_fd, struct err *err)
{
    char host[256];
    const char *port = NULL;
    if (split_address(listen_at, host, sizeof host, &port, err) != ERR_NONE)
        return err->code;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *found;
    int status = getaddrinfo(host[0] == '\0' ? NULL : host, port, &hints, &found);
    if (status != 0)
        return err_set(err, ERR_CONFIG, false, "http.listen: %s: %s", listen_at, gai_strerror(status));
    int fd = -1, error = 0;
    for (int turn_no = 0; turn_no < 2 && fd < 0; turn_no++) { /* every address: IPv6 first, it takes both */
        for (struct addrinfo *a = found; a != NULL && fd < 0; a = a->ai_next) {
            if ((a->ai_family == AF_INET6) != (turn_no == 0))
                continue;
            fd = listen_to(a);
            error = fd < 0 ? errno : 0;
        }
    }
    freeaddrinfo(found);
    if (fd < 0)
        return err_set(err, ERR_SYSTEM, true, "http.listen: %s: %s%s", listen_at, strerror(error),
                       error == EADDRINUSE ? " (another program listens there: choose another port)" : "");
    *ret_fd = fd;
    return ERR_NONE;
}

static int port_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

enum err_code web_open(struct admin *a, const char *listen_at, struct web **ret, struct err *err)
{
    int fd;
    struct web *h = calloc(1, sizeof *h);
    if (h == NULL)
        return err_nomem(err);
    h->admin = a;
    if (open_port(listen_at, &fd, err) != ERR_NONE)
        goto free_http;
    h->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request,
                              h, MHD_OPTION_EXTERNAL_LOGGER, quiet_log, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
                              MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
                              SILENCE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)REQUEST_BYTES,
                              MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_END);
    if (h->mhd == NULL) {
        err_set(err, ERR_SYSTEM, true, "http: the server does not start: %s", strerror(errno));
        close(fd);
        goto free_http;
    }
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    int status = info == NULL ? UV_ENOSYS : uv_poll_init(a->loop, &h->poll, info->epoll_fd);
    if (status != 0) {
        err_set(err, ERR_SYSTEM, true, "http: %s", uv_strerror(status));
        MHD_stop_daemon(h->mhd);
        goto free_http;
    }
    uv_timer_init(a->loop, &h->timer);
    h->poll.data = h->timer.data = h;
    h->handles = 2;
    uv_poll_start(&h->poll, UV_READABLE, on_readable);
    log_info("http: listening on %s, port %d", listen_at, port_of(fd));
    *ret = h;
    return ERR_NONE;
free_http:
    free(h);
    return err->code;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct web *h = handle->data;
    if (--h->handles > 0)
        return;
    /* only now: the epoll descriptor must outlive its poll handle */
    MHD_stop_daemon(h->mhd);
    if (h->closed != NULL)
        h->closed(h->closed_arg);
    free(h);
}

void web_close(struct web *h, void (*closed)(void *arg), void *arg)
{
    h->is_closing = true;
    h->closed = closed;
    h->closed_arg = arg;
    /* libmicrohttpd can't stop with suspended connections */
    while (h->requests != NULL) {
        struct request *r = h->requests;
        question_forget(r->question);
        resume(r);
    }
    uv_close((uv_handle_t *)&h->poll, on_handle_closed);
    uv_close((uv_handle_t *)&h->timer, on_handle_closed);
}
