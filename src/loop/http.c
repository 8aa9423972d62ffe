/*
 * http.c -- curl's sockets and timers on libuv.
 *
 * Three rules keep the two libraries apart. curl is never entered from inside one of its callbacks: what our users ask
 * for there (start, cancel, resume, close) is noted and done by on_kick() on the next turn. done() is called only from
 * the loop's callbacks. And the memory of a libuv handle is freed in its close callback, nowhere else.
 */
#include "http_internal.h"

#include "utlist.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONNECT_TIMEOUT_MS 30000
#define STALL_TIMEOUT_MS 120000
#define MAX_CONNECTIONS 8

/* ---- later ----------------------------------------------------------------------------------------------------- */

static void on_kick(uv_idle_t *idle);

static void kick(struct http *h)
{
    if (!h->is_torn_down)
        uv_idle_start(&h->kick, on_kick);
}

void http_todo(struct http_transfer *t)
{
    struct http *h = t->http;
    if (t->is_ended) /* its own done() is running */
        return;
    if (!t->is_todo) {
        t->is_todo = true;
        t->todo_turn = h->turn;
        DL_APPEND2(h->todo, t, todo_prev, todo_next);
    }
    kick(h);
}

enum err_code http_fail_later(struct http_transfer *t, enum err_code code, bool retryable, const char *fmt, ...)
{
    if (t->err.code != ERR_NONE)
        return t->err.code;
    char text[sizeof t->err.text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err_set(&t->err, code, retryable, "%s: %s", t->host, text);
    http_todo(t);
    return code;
}

/* From now on T is the one that W works for (NULL: none). */
static void use_socket(struct http_transfer *t, struct watched *w)
{
    if (t->socket == w)
        return;
    if (t->socket != NULL)
        t->socket->user = NULL;
    t->socket = w;
    if (w == NULL)
        return;
    if (w->user != NULL)
        w->user->socket = NULL;
    w->user = t;
}

static void end(struct http_transfer *t, CURLcode result)
{
    struct http *h = t->http;
    t->is_ended = true;
    DL_DELETE(h->transfers, t);
    if (t->is_todo)
        DL_DELETE2(h->todo, t, todo_prev, todo_next);
    use_socket(t, NULL);
    if (t->is_added) {
        h->curl->multi_remove_handle(h->multi, t->easy);
        t->is_added = false;
    }
    if (h->transfers == NULL) { /* nothing of ours wakes the loop any more */
        uv_timer_stop(&h->watch);
        uv_timer_stop(&h->pace);
        if (h->is_closing)
            kick(h);
    }
    http_transfer_end(t, result);
}

/* All that curl has finished. Read dry after every call into curl: nothing reminds us of what is left. */
static void read_results(struct http *h)
{
    int left;
    for (CURLMsg *message; (message = h->curl->multi_info_read(h->multi, &left)) != NULL;) {
        struct http_transfer *t = NULL;
        if (message->msg != CURLMSG_DONE)
            continue;
        CURLcode result = message->data.result; /* removing the handle frees the message */
        h->curl->easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&t);
        end(t, result);
    }
}

static void drive(struct http *h, curl_socket_t fd, int events)
{
    int running; /* curl writes there without asking */
    CURLMcode failed = h->curl->multi_socket_action(h->multi, fd, events, &running);
    struct http_transfer *t;
    if (failed != CURLM_OK) /* out of memory, or a bug: nothing would move any more */
        DL_FOREACH(h->transfers, t)
            http_fail_later(t, ERR_SYSTEM, true, "%s", h->curl->multi_strerror(failed));
    read_results(h);
}

/* ---- sockets --------------------------------------------------------------------------------------------------- */

static void on_socket(uv_poll_t *poll, int status, int events)
{
    struct watched *w = poll->data;
    struct http *h = w->http;
    int bits = 0;
    if ((events & UV_READABLE) != 0)
        bits |= CURL_CSELECT_IN;
    if (w->user != NULL && events != 0) /* curl tells us of headers by the line, which may take long */
        http_transfer_note_activity(w->user);
    if ((events & UV_WRITABLE) != 0)
        bits |= CURL_CSELECT_OUT;
    if (status < 0) {
        /* An error is pending on the socket (UV_EBADF), and libuv has stopped watching it. "Readable" as well, so that
         * curl takes an answer that came before the connection broke; it would give up on an error alone. Watched
         * again before curl hears of it: should it want to go on, it would not tell us. */
        bits = CURL_CSELECT_ERR | CURL_CSELECT_IN;
        uv_poll_start(poll, w->events, on_socket);
    }
    drive(h, w->fd, bits);
}

static void count_closed(struct http *h);

static void on_socket_closed(uv_handle_t *handle)
{
    struct watched *w = handle->data;
    struct http *h = w->http;
    free(w);
    count_closed(h);
}

static struct watched *watch_socket(struct http *h, curl_socket_t fd)
{
    struct watched *w = calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    if (uv_poll_init_socket(h->loop, &w->poll, fd) != 0) {
        free(w);
        return NULL;
    }
    w->poll.data = w;
    w->http = h;
    w->fd = fd;
    h->handles++;
    h->curl->multi_assign(h->multi, fd, w);
    return w;
}

/* CURLMOPT_SOCKETFUNCTION. Never fails: curl would take that for the end of all its transfers. */
static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
    struct http *h = arg;
    struct watched *w = socket_arg;
    struct http_transfer *t = NULL;
    h->curl->easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&t); /* NULL: one of curl's own */
    if (what == CURL_POLL_REMOVE) {
        if (w != NULL) {
            if (w->user != NULL)
                use_socket(w->user, NULL);
            h->curl->multi_assign(h->multi, fd, NULL);
            uv_close((uv_handle_t *)&w->poll, on_socket_closed);
        }
        return 0;
    }
    if (w == NULL)
        w = watch_socket(h, fd);
    if (w != NULL) {
        if (t != NULL)
            use_socket(t, w);
        w->events = ((what & CURL_POLL_IN) != 0 ? UV_READABLE : 0) | ((what & CURL_POLL_OUT) != 0 ? UV_WRITABLE : 0);
        if (uv_poll_start(&w->poll, w->events, on_socket) == 0)
            return 0;
    }
    if (t != NULL)
        http_fail_later(t, ERR_SYSTEM, true, "the connection can't be watched: out of memory or descriptors");
    return 0;
}

/* ---- timers ---------------------------------------------------------------------------------------------------- */

static void on_timer(uv_timer_t *timer)
{
    drive(timer->data, CURL_SOCKET_TIMEOUT, 0);
}

/* CURLMOPT_TIMERFUNCTION. May come from inside on_timer(): with 0 ms libuv would run it again before it looks at any
 * socket. */
static int on_curl_timer(CURLM *multi, long timeout_ms, void *arg)
{
    struct http *h = arg;
    (void)multi;
    if (timeout_ms < 0)
        uv_timer_stop(&h->timer);
    else
        uv_timer_start(&h->timer, on_timer, timeout_ms == 0 ? 1 : (uint64_t)timeout_ms, 0);
    return 0;
}

static void on_pace(uv_timer_t *timer);

static bool is_in_line(const struct http *h)
{
    const struct http_transfer *t;
    DL_FOREACH(h->transfers, t)
        if (t->send_turn.is_waiting || t->recv_turn.is_waiting)
            return true;
    return false;
}

/* Serve the lines of both limits, for whoever stands there, and come back while one of ours does. */
static void pace(struct http *h)
{
    uint64_t now_ns = uv_hrtime(), up_ns = 0, down_ns = 0;
    if (h->upload_rate != NULL)
        up_ns = rate_serve(h->upload_rate, now_ns);
    if (h->download_rate != NULL)
        down_ns = rate_serve(h->download_rate, now_ns);
    if (!is_in_line(h)) {
        uv_timer_stop(&h->pace);
        return;
    }
    uint64_t next_ns = up_ns == 0 || (down_ns != 0 && down_ns < up_ns) ? down_ns : up_ns;
    uv_timer_start(&h->pace, on_pace, next_ns / 1000000 + 1, 0);
}

static void on_pace(uv_timer_t *timer)
{
    pace(timer->data);
}

void http_pace_soon(struct http *h)
{
    h->is_pace_due = true;
    kick(h);
}

static void on_watch(uv_timer_t *timer);

/* Have a look at all transfers in AGAIN_MS, or earlier. */
static void watch_in(struct http *h, uint64_t again_ms)
{
    if (!uv_is_active((uv_handle_t *)&h->watch) || uv_timer_get_due_in(&h->watch) > again_ms)
        uv_timer_start(&h->watch, on_watch, again_ms, 0);
}

static void on_watch(uv_timer_t *timer)
{
    struct http *h = timer->data;
    struct http_transfer *t;
    DL_FOREACH(h->transfers, t) {
        uint64_t again_ms;
        if (http_transfer_is_stalled(t, uv_now(h->loop), &again_ms))
            http_fail_later(t, ERR_REMOTE, true, "no byte came or went for %llu ms",
                            (unsigned long long)t->r.stall_timeout_ms);
        else
            watch_in(h, again_ms);
    }
}

/* ---- the next turn --------------------------------------------------------------------------------------------- */

static bool add(struct http_transfer *t)
{
    struct http *h = t->http;
    uint64_t again_ms;
    CURLMcode failed = h->curl->multi_add_handle(h->multi, t->easy);
    if (failed != CURLM_OK) {
        err_set(&t->err, ERR_SYSTEM, true, "%s: %s", t->host, h->curl->multi_strerror(failed));
        return false;
    }
    t->is_added = true;
    http_transfer_is_stalled(t, uv_now(h->loop), &again_ms);
    watch_in(h, again_ms);
    return true;
}

static void look_at(struct http_transfer *t)
{
    CURLcode result = CURLE_OK;
    if (t->is_cancelled || t->err.code != ERR_NONE || (!t->is_added && !add(t)) ||
        (result = http_transfer_resume(t)) != CURLE_OK)
        end(t, result);
}

static void tear_down(struct http *h);

static void on_kick(uv_idle_t *idle)
{
    struct http *h = idle->data;
    uv_idle_stop(idle);
    uint64_t now = h->turn++; /* what is asked for from here on is for the next turn */
    if (h->is_pace_due) {
        h->is_pace_due = false;
        pace(h); /* those whose turn it is are at the end of the list now */
    }
    while (h->todo != NULL && h->todo->todo_turn <= now) {
        struct http_transfer *t = h->todo;
        DL_DELETE2(h->todo, t, todo_prev, todo_next);
        t->is_todo = false;
        look_at(t);
    }
    drive(h, CURL_SOCKET_TIMEOUT, 0); /* what is new begins now, not after curl's timer */
    if (h->is_closing && h->transfers == NULL)
        tear_down(h);
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

static void free_http(struct http *h)
{
    free(h->user_agent);
    if (h->proxy != NULL)
        explicit_bzero(h->proxy, strlen(h->proxy));
    free(h->proxy);
    free(h->ca_file);
    free(h->protocols);
    free(h);
}

static void count_closed(struct http *h)
{
    if (--h->handles > 0)
        return;
    void (*closed)(void *arg) = h->closed;
    void *arg = h->closed_arg;
    free_http(h);
    if (closed != NULL)
        closed(arg);
}

static void on_handle_closed(uv_handle_t *handle)
{
    count_closed(handle->data);
}

/* curl_multi_cleanup() still calls the socket callback for connections that it closes, and the timer callback. */
static void tear_down(struct http *h)
{
    uv_handle_t *ours[] = {(uv_handle_t *)&h->kick, (uv_handle_t *)&h->timer, (uv_handle_t *)&h->pace,
                           (uv_handle_t *)&h->watch};
    if (h->is_torn_down)
        return;
    h->is_torn_down = true;
    h->curl->multi_cleanup(h->multi);
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        uv_close(ours[i], on_handle_closed);
}

/* Is there a file in PATH that OpenSSL would find by its hash? Not so where somebody copied only the bundle. */
static bool has_hashes(const char *path)
{
    DIR *dir = opendir(path);
    bool found = false;
    if (dir == NULL)
        return false;
    for (const struct dirent *entry; !found && (entry = readdir(dir)) != NULL;)
        found = strspn(entry->d_name, "0123456789abcdef") == 8 && strcmp(entry->d_name + 8, ".0") == 0;
    closedir(dir);
    return found;
}

static enum err_code check_ca_file(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, ERR_CONFIG, false, "CA file %s: %s", path, strerror(errno));
    close(fd);
    return ERR_NONE;
}

/* A copy of S, or of OTHERWISE when S is not given; NULL also when neither is. */
static char *copy(const char *s, const char *otherwise, bool *failed)
{
    s = s != NULL && s[0] != '\0' ? s : otherwise;
    char *made = s != NULL ? strdup(s) : NULL;
    *failed |= s != NULL && made == NULL;
    return made;
}

static enum err_code copy_options(struct http *h, const struct http_options *o, struct err *err)
{
    bool failed = false;
    h->user_agent = copy(o->user_agent, "chute/" CHUTE_VERSION, &failed);
    h->proxy = copy(o->proxy, NULL, &failed);
    h->ca_file = copy(o->ca_file, NULL, &failed);
    h->protocols = copy(o->protocols, "http,https", &failed);
    if (failed)
        return err_nomem(err);
    h->tls_insecure = o->tls_insecure;
    h->connect_timeout_ms = o->connect_timeout_ms > 0 ? o->connect_timeout_ms : CONNECT_TIMEOUT_MS;
    h->stall_timeout_ms = o->stall_timeout_ms > 0 ? o->stall_timeout_ms : STALL_TIMEOUT_MS;
    h->upload_rate = o->upload_rate;
    h->download_rate = o->download_rate;
    if (h->proxy != NULL && http_check_proxy(h->curl, h->proxy, err) != ERR_NONE)
        return err->code;
    if (h->ca_file != NULL)
        return check_ca_file(h->ca_file, err);
    /* One certificate by its hash instead of all: the bundle takes OpenSSL 30 ms, during which the loop stands. */
    const char *path = h->curl->version_info(CURLVERSION_NOW)->capath;
    h->ca_path = path != NULL && has_hashes(path) ? path : NULL;
    return ERR_NONE;
}

static enum err_code open_multi(struct http *h, unsigned max_connections, struct err *err)
{
    long to_one_host = max_connections > 0 ? (long)max_connections : MAX_CONNECTIONS;
    h->multi = h->curl->multi_init();
    if (h->multi == NULL)
        return err_nomem(err);
    const struct {
        CURLMoption option;
        long value;
    } numbers[] = {
        {CURLMOPT_MAX_HOST_CONNECTIONS, to_one_host},
        /* One request at a time also on a connection that speaks HTTP/2: of several, libcurl 7.88 now and then forgets
         * one for good when another is cancelled or paused. Large bodies are faster on connections of their own. */
        {CURLMOPT_PIPELINING, CURLPIPE_NOTHING},
        {CURLMOPT_MAXCONNECTS, to_one_host * 2}, /* idle ones: a service often has a second host, for its files */
    };
    bool failed = h->curl->multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket) != CURLM_OK ||
                  h->curl->multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h) != CURLM_OK ||
                  h->curl->multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer) != CURLM_OK ||
                  h->curl->multi_setopt(h->multi, CURLMOPT_TIMERDATA, h) != CURLM_OK;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        failed |= h->curl->multi_setopt(h->multi, numbers[i].option, numbers[i].value) != CURLM_OK;
    if (!failed)
        return ERR_NONE;
    h->curl->multi_cleanup(h->multi);
    return err_set(err, ERR_SYSTEM, false, "libcurl does not take its options");
}

enum err_code http_open(uv_loop_t *loop, const struct http_options *options, struct http **ret_http, struct err *err)
{
    const struct curl_lib *curl;
    if (curl_lib_load(&curl, err) != ERR_NONE)
        return err->code;
    struct http *h = calloc(1, sizeof *h);
    if (h == NULL)
        return err_nomem(err);
    h->curl = curl;
    h->loop = loop;
    h->turn = 1;
    if (copy_options(h, options, err) != ERR_NONE || open_multi(h, options->max_connections, err) != ERR_NONE) {
        free_http(h);
        return err->code;
    }
    uv_idle_init(loop, &h->kick); /* these four can't fail */
    uv_timer_init(loop, &h->timer);
    uv_timer_init(loop, &h->pace);
    uv_timer_init(loop, &h->watch);
    h->kick.data = h->timer.data = h->pace.data = h->watch.data = h;
    h->handles = 4;
    *ret_http = h;
    return ERR_NONE;
}

void http_close(struct http *h, void (*closed)(void *arg), void *arg)
{
    struct http_transfer *t;
    h->is_closing = true;
    h->closed = closed;
    h->closed_arg = arg;
    DL_FOREACH(h->transfers, t)
        http_cancel(t);
    kick(h);
}

/* ---- transfers ------------------------------------------------------------------------------------------------- */

enum err_code http_start(struct http *h, const struct http_request *r, struct http_transfer **ret_transfer,
                         struct err *err)
{
    struct http_transfer *t;
    if (h->is_closing)
        return err_set(err, ERR_STOPPED, false, "no more requests: closing");
    if (http_transfer_new(h, r, &t, err) != ERR_NONE)
        return err->code;
    DL_APPEND(h->transfers, t);
    http_todo(t);
    if (ret_transfer != NULL)
        *ret_transfer = t;
    return ERR_NONE;
}

void http_resume(struct http_transfer *t)
{
    t->is_resumed = true;
    http_todo(t);
}

void http_cancel(struct http_transfer *t)
{
    t->is_cancelled = true;
    http_todo(t);
}

void http_libraries(char *ret, size_t size)
{
    const struct curl_lib *lib;
    struct err err = {0};
    if (curl_lib_load(&lib, &err) != ERR_NONE) {
        snprintf(ret, size, "libcurl can't be used: %s", err.text);
        return;
    }
    const curl_version_info_data *info = lib->version_info(CURLVERSION_NOW);
    bool has_h2 = (info->features & CURL_VERSION_HTTP2) != 0 && info->age >= CURLVERSION_SEVENTH;
    snprintf(ret, size, "libcurl %s (%s%s%s)", info->version, info->ssl_version, has_h2 ? ", nghttp2/" : "",
             has_h2 ? info->nghttp2_version : "");
}
