/*
 * http_transfer.c -- one request: how curl is told, what its callbacks do, and what remains of the answer.
 *
 * curl's callbacks only take notes, pass bytes, and pause. Every body goes through on_read(), also one that is in
 * memory: so there is one place for the rate limit, and one that knows whether the server can have got all of it.
 */
#include "http_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/sockios.h>

#define MAX_HEADERS ((size_t)256 * 1024)
#define KEEPALIVE_IDLE_S 60L
#define KEEPALIVE_INTERVAL_S 30L

static struct http_transfer *of_send_turn(struct rate_turn *turn)
{
    return (struct http_transfer *)((char *)turn - offsetof(struct http_transfer, send_turn));
}

static struct http_transfer *of_recv_turn(struct rate_turn *turn)
{
    return (struct http_transfer *)((char *)turn - offsetof(struct http_transfer, recv_turn));
}

static void on_send_turn(struct rate_turn *turn)
{
    http_todo(of_send_turn(turn));
}

static void on_recv_turn(struct rate_turn *turn)
{
    http_todo(of_recv_turn(turn));
}

void http_transfer_note_activity(struct http_transfer *t)
{
    t->active_ms = uv_now(t->http->loop);
}

/* Nothing of T is wanted any more: its end has been decided, or noted for the next turn. */
static bool is_over(const struct http_transfer *t)
{
    return t->is_cancelled || t->err.code != ERR_NONE;
}

/* ---- the request goes out -------------------------------------------------------------------------------------- */

static void no_pauses(struct http_transfer *t)
{
    t->send_wait = t->recv_wait = WAIT_NONE;
    if (t->http->upload_rate != NULL)
        rate_leave(t->http->upload_rate, &t->send_turn);
    if (t->http->download_rate != NULL)
        rate_leave(t->http->download_rate, &t->recv_turn);
}

/* The body from its first byte, once more. */
static bool restart_body(struct http_transfer *t)
{
    if (t->taken > 0 || t->is_taken) {
        if (t->r.read != NULL && (t->r.rewind == NULL || !t->r.rewind(t->r.arg))) {
            http_fail_later(t, ERR_REMOTE, true, "the connection broke, and the body can't be sent again from here");
            return false;
        }
        t->taken = 0;
        t->is_taken = false;
    }
    return true;
}

/* Has the server certainly not got all of what has been sent so far? */
static void note_received(struct http_transfer *t)
{
    long sent_bytes = 0; /* of request lines and headers */
    if (t->sent_times == 0)
        return;
    if (t->r.stream_size != 0)
        t->maybe_received |= t->is_taken;
    else if (t->http->curl->easy_getinfo(t->easy, CURLINFO_REQUEST_SIZE, &sent_bytes) == CURLE_OK)
        t->maybe_received |= sent_bytes > 0;
}

/*
 * CURLOPT_PREREQFUNCTION: there is a connection, and now the request is sent on it. For the second time if the first
 * connection, which had been used before, turned out to be closed; curl does that for every method.
 */
static int on_send(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
    struct http_transfer *t = arg;
    (void)remote_ip, (void)local_ip, (void)remote_port, (void)local_port;
    note_received(t);
    if (is_over(t))
        return CURL_PREREQFUNC_ABORT;
    if (t->maybe_received && !t->is_repeatable) {
        http_fail_later(t, ERR_REMOTE, true, "the connection was closed before the answer came");
        return CURL_PREREQFUNC_ABORT;
    }
    no_pauses(t);
    if (!restart_body(t)) /* curl has done that already if it knows that it sent something */
        return CURL_PREREQFUNC_ABORT;
    t->sent_times++;
    http_transfer_note_activity(t);
    return CURL_PREREQFUNC_OK;
}

/* CURLOPT_SEEKFUNCTION: only ever to the start. */
static int on_seek(void *arg, curl_off_t offset, int origin)
{
    struct http_transfer *t = arg;
    if (is_over(t) || offset != 0 || origin != SEEK_SET)
        return CURL_SEEKFUNC_FAIL;
    note_received(t);
    no_pauses(t);
    return restart_body(t) ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

/* As read() of a body that is in memory. */
static ssize_t read_memory(struct http_transfer *t, char *buf, size_t room)
{
    size_t left = t->r.body_size - (size_t)t->taken;
    size_t size = left < room ? left : room;
    memcpy(buf, (const char *)t->r.body + t->taken, size);
    return (ssize_t)size;
}

/* At most LIMIT bytes of the body into BUF, or what curl wants to hear instead. */
static size_t read_body(struct http_transfer *t, char *buf, size_t limit)
{
    struct err err = {.code = ERR_NONE};
    bool in_memory = t->r.read == NULL;
    ssize_t size = in_memory ? read_memory(t, buf, limit) : t->r.read(t->r.arg, buf, limit, &err);
    if (is_over(t))
        return CURL_READFUNC_ABORT;
    if (size == HTTP_LATER) {
        t->send_wait = WAIT_CALLER;
        return CURL_READFUNC_PAUSE;
    }
    if (size < 0 || (size_t)size > limit) {
        t->err = err;
        if (err.code == ERR_NONE) /* a caller that forgot it must not look like success */
            err_set(&t->err, ERR_SYSTEM, false, "%s: the body could not be read", t->host);
        return CURL_READFUNC_ABORT;
    }
    if (size == 0 && t->r.stream_size >= 0) {
        http_fail_later(t, ERR_INPUT, false, "the body ended after %llu of %lld bytes", (unsigned long long)t->taken,
                        (long long)t->r.stream_size);
        return CURL_READFUNC_ABORT;
    }
    t->taken += (uint64_t)size;
    t->is_taken = size == 0 || (t->r.stream_size >= 0 && t->taken == (uint64_t)t->r.stream_size);
    return (size_t)size;
}

/* CURLOPT_READFUNCTION */
static size_t on_read(char *buf, size_t size, size_t count, void *arg)
{
    struct http_transfer *t = arg;
    struct rate *rate = t->http->upload_rate;
    size_t room = size * count;
    if (is_over(t))
        return CURL_READFUNC_ABORT;
    http_transfer_note_activity(t);
    if (t->is_taken)
        return 0;
    if (t->r.stream_size >= 0 && (uint64_t)t->r.stream_size - t->taken < room)
        room = (size_t)((uint64_t)t->r.stream_size - t->taken);
    if (room == 0) /* an empty body */
        return 0;
    size_t allowed = rate != NULL ? rate_take(rate, &t->send_turn, room, uv_hrtime()) : room;
    if (allowed == 0) {
        t->send_wait = WAIT_RATE;
        http_pace_soon(t->http);
        return CURL_READFUNC_PAUSE;
    }
    size_t got = read_body(t, buf, allowed);
    if (rate != NULL && (got > allowed || got < allowed)) /* curl's special values are larger than any buffer */
        rate_return(rate, got > allowed ? allowed : allowed - got);
    return got;
}

/* ---- the answer comes in --------------------------------------------------------------------------------------- */

/* "HTTP/1.1 200 OK", "HTTP/2 200": what came before belonged to a 1xx, or to a refused first attempt. */
static void begin_answer(struct http_transfer *t, const char *line, size_t size)
{
    char copy[32]; /* curl's lines have no NUL at their end */
    unsigned major = 0, minor = 0, status = 0;
    size_t n = size < sizeof copy - 1 ? size : sizeof copy - 1;
    memcpy(copy, line, n);
    copy[n] = '\0';
    if (sscanf(copy, "HTTP/%1u.%1u %3u", &major, &minor, &status) != 3) {
        minor = 0;
        if (sscanf(copy, "HTTP/%1u %3u", &major, &status) != 2)
            return;
    }
    t->version = (int)(major * 10 + minor);
    t->status = (int)status;
    t->has_headers = false;
    buf_clear(&t->answer_headers);
    buf_clear(&t->body);
    t->received = 0;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* "Name: value" becomes NAME NUL VALUE NUL. */
static void keep_header(struct http_transfer *t, const char *line, size_t size)
{
    const char *colon = memchr(line, ':', size);
    if (colon == NULL || colon == line || is_blank(line[0]) || memchr(line, '\0', size) != NULL)
        return; /* a line of an old, folded header, or none at all */
    const char *value = colon + 1, *end = line + size;
    while (value < end && is_blank(*value))
        value++;
    while (end > value && is_blank(end[-1]))
        end--;
    buf_add(&t->answer_headers, line, (size_t)(colon - line));
    buf_addc(&t->answer_headers, '\0');
    buf_add(&t->answer_headers, value, (size_t)(end - value));
    buf_addc(&t->answer_headers, '\0');
}

/* CURLOPT_HEADERFUNCTION: one line at a time, also trailers, which we don't want. */
static size_t on_header(char *line, size_t size, size_t count, void *arg)
{
    struct http_transfer *t = arg;
    size *= count;
    if (is_over(t))
        return 0;
    http_transfer_note_activity(t);
    if (size >= 5 && memcmp(line, "HTTP/", 5) == 0)
        begin_answer(t, line, size);
    else if (size > 0 && (line[0] == '\r' || line[0] == '\n'))
        t->has_headers = true;
    else if (!t->has_headers)
        keep_header(t, line, size);
    if (t->answer_headers.failed)
        http_fail_later(t, ERR_SYSTEM, true, "out of memory");
    else if (t->answer_headers.size > MAX_HEADERS)
        http_fail_later(t, ERR_REMOTE, false, "the answer has more than %zu bytes of headers", MAX_HEADERS);
    return is_over(t) ? 0 : size;
}

static void describe(const struct http_transfer *t, struct http_answer *ret)
{
    *ret = (struct http_answer){.err = t->err,
                                .status = t->status >= 200 ? t->status : 0, /* a 100 Continue is no answer */
                                .version = t->status >= 200 ? t->version : 0,
                                .body = t->body.data,
                                .body_size = t->body.size,
                                .received_bytes = t->received,
                                .headers = t->answer_headers.data};
}

static bool is_streamed(const struct http_transfer *t)
{
    return t->r.data != NULL && t->status >= 200 && t->status < 300;
}

/* Give it to the caller: 0, or HTTP_LATER, or HTTP_FAIL with err filled. */
static int pass_on(struct http_transfer *t, const char *data, size_t size)
{
    struct http_answer so_far;
    struct err err = {.code = ERR_NONE};
    describe(t, &so_far);
    int said = t->r.data(t->r.arg, &so_far, data, size, &err);
    if (said == 0 || said == HTTP_LATER || is_over(t))
        return said;
    t->err = err;
    if (err.code == ERR_NONE)
        err_set(&t->err, ERR_SYSTEM, false, "%s: the answer could not be taken", t->host);
    return HTTP_FAIL;
}

static void keep(struct http_transfer *t, const char *data, size_t size)
{
    if (size > t->r.max_answer - t->body.size) {
        http_fail_later(t, ERR_REMOTE, false, "the answer is larger than %zu bytes", t->r.max_answer);
        return;
    }
    buf_add(&t->body, data, size);
    if (t->body.failed)
        http_fail_later(t, ERR_SYSTEM, true, "out of memory");
}

/* CURLOPT_WRITEFUNCTION. What is not taken comes again after the pause. */
static size_t on_data(char *data, size_t size, size_t count, void *arg)
{
    struct http_transfer *t = arg;
    struct rate *rate = t->http->download_rate;
    size *= count;
    if (is_over(t))
        return 0;
    http_transfer_note_activity(t);
    if (size == 0)
        return 0;
    if (rate != NULL && !rate_pass(rate, &t->recv_turn, size, uv_hrtime())) {
        t->recv_wait = WAIT_RATE;
        http_pace_soon(t->http);
        return CURL_WRITEFUNC_PAUSE;
    }
    if (!is_streamed(t))
        keep(t, data, size);
    else if (pass_on(t, data, size) == HTTP_LATER) {
        if (rate != NULL)
            rate_return(rate, size);
        t->recv_wait = WAIT_CALLER;
        return is_over(t) ? 0 : CURL_WRITEFUNC_PAUSE;
    }
    if (is_over(t))
        return 0;
    t->received += size;
    return size;
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

/* CURLOPT_XFERINFOFUNCTION: the only one that sees how a large piece trickles out. */
static int on_progress(void *arg, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
    struct http_transfer *t = arg;
    (void)down_total, (void)up_total;
    if ((uint64_t)up != t->seen_up || (uint64_t)down != t->seen_down)
        http_transfer_note_activity(t);
    t->seen_up = (uint64_t)up;
    t->seen_down = (uint64_t)down;
    return 0;
}

bool http_transfer_is_stalled(struct http_transfer *t, uint64_t now_ms, uint64_t *ret_again_ms)
{
    uint64_t limit_ms = t->r.stall_timeout_ms, quiet_ms = now_ms - t->active_ms;
    int unsent = 0;
    *ret_again_ms = limit_ms / 4 + 1;
    if (is_over(t))
        return false;
    if (t->sent_times == 0 || t->send_wait != WAIT_NONE || t->recv_wait != WAIT_NONE) {
        http_transfer_note_activity(t); /* nothing is owed to us yet: the connection has a timeout of its own */
        return false;
    }
    /* The kernel may hold megabytes that a slow line takes minutes to carry away while curl has nothing to do. */
    curl_socket_t fd = t->is_added ? curl_loop_socket(t->http->multi, t->easy) : CURL_SOCKET_BAD;
    if (fd != CURL_SOCKET_BAD && ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent != t->unsent) {
        t->unsent = unsent;
        http_transfer_note_activity(t);
        return false;
    }
    if (quiet_ms >= limit_ms)
        return true;
    if (limit_ms - quiet_ms < *ret_again_ms)
        *ret_again_ms = limit_ms - quiet_ms;
    return false;
}

CURLcode http_transfer_resume(struct http_transfer *t)
{
    bool goes_on = false;
    if ((t->send_wait == WAIT_CALLER && t->is_resumed) || (t->send_wait == WAIT_RATE && !t->send_turn.is_waiting)) {
        t->send_wait = WAIT_NONE;
        goes_on = true;
    }
    if ((t->recv_wait == WAIT_CALLER && t->is_resumed) || (t->recv_wait == WAIT_RATE && !t->recv_turn.is_waiting)) {
        t->recv_wait = WAIT_NONE;
        goes_on = true;
    }
    t->is_resumed = false;
    if (!goes_on)
        return CURLE_OK;
    http_transfer_note_activity(t);
    int still = (t->send_wait != WAIT_NONE ? CURLPAUSE_SEND : 0) | (t->recv_wait != WAIT_NONE ? CURLPAUSE_RECV : 0);
    CURLcode result = t->http->curl->easy_pause(t->easy, still); /* may call on_data() */
    /* No connection just now, because curl is about to send it all again: nothing was paused. */
    return result == CURLE_BAD_FUNCTION_ARGUMENT ? CURLE_OK : result;
}

/* ---- begin and end --------------------------------------------------------------------------------------------- */

/* CURLOPT_OPENSOCKETFUNCTION: curl would let programs that we start inherit it. */
static curl_socket_t on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
    (void)arg, (void)purpose;
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static bool is_one_of(const char *method, const char *const *names)
{
    while (*names != NULL && strcmp(method, *names) != 0)
        names++;
    return *names != NULL;
}

static enum err_code check_request(const struct http_request *r, struct err *err)
{
    const char *letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    if (r->method[0] == '\0' || r->method[strspn(r->method, letters)] != '\0')
        return err_set(err, ERR_CONFIG, false, "no HTTP method: a word in capital letters is wanted");
    for (const char *const *header = r->headers; header != NULL && *header != NULL; header++)
        if (strpbrk(*header, "\r\n") != NULL)
            return err_set(err, ERR_CONFIG, false, "a header has a line break in its name or value");
    return ERR_NONE;
}

static bool add_header(struct http_transfer *t, const char *header)
{
    struct curl_slist *longer = t->http->curl->slist_append(t->headers, header);
    if (longer == NULL)
        return false;
    t->headers = longer;
    return true;
}

static bool add_headers(struct http_transfer *t)
{
    const struct http_request *r = &t->r;
    for (const char *const *header = r->headers; header != NULL && *header != NULL; header++)
        if (!add_header(t, *header))
            return false;
    /* Otherwise curl asks for large bodies, and waits a second for servers that don't know the question. */
    return !t->has_body || add_header(t, r->expect_continue ? "Expect: 100-continue" : "Expect:");
}

struct setting_number {
    CURLoption option;
    long value;
};
struct setting_pointer {
    CURLoption option;
    const void *value;
};

static CURLcode set_numbers(struct http_transfer *t)
{
    const struct http *h = t->http;
    long verify = h->tls_insecure ? 0 : 1;
    const struct setting_number settings[] = {
        {CURLOPT_NOSIGNAL, 1},
        {CURLOPT_QUICK_EXIT, 1}, /* otherwise a cancelled request waits, with the loop, for its thread to resolve */
        {CURLOPT_NOPROGRESS, 0},
        {CURLOPT_FOLLOWLOCATION, 0},
        {CURLOPT_PATH_AS_IS, 1}, /* a signature covers the path as it was written */
        {CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_2TLS},
        {CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2},
        {CURLOPT_PROXY_SSLVERSION, CURL_SSLVERSION_TLSv1_2},
        {CURLOPT_SSL_VERIFYPEER, verify},
        {CURLOPT_SSL_VERIFYHOST, verify * 2}, /* 2: the name must match; 1 is an error */
        {CURLOPT_PROXY_SSL_VERIFYPEER, verify},
        {CURLOPT_PROXY_SSL_VERIFYHOST, verify * 2},
        {CURLOPT_SUPPRESS_CONNECT_HEADERS, 1}, /* a proxy's headers are not the server's */
        {CURLOPT_CONNECTTIMEOUT_MS, (long)h->connect_timeout_ms},
        {CURLOPT_TCP_NODELAY, 1},
        {CURLOPT_TCP_KEEPALIVE, 1}, /* notices a dead peer while we wait for it, or for our caller */
        {CURLOPT_TCP_KEEPIDLE, KEEPALIVE_IDLE_S},
        {CURLOPT_TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S},
        {t->has_body ? CURLOPT_UPLOAD : CURLOPT_HTTPGET, 1},
        {CURLOPT_NOBODY, !t->has_body && strcmp(t->r.method, "HEAD") == 0},
    };
    CURLcode failed = CURLE_OK;
    for (size_t i = 0; failed == CURLE_OK && i < sizeof settings / sizeof settings[0]; i++)
        failed = h->curl->easy_setopt(t->easy, settings[i].option, settings[i].value);
    if (failed == CURLE_OK && t->has_body)
        failed = h->curl->easy_setopt(t->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)t->r.stream_size);
    return failed;
}

static CURLcode set_pointers(struct http_transfer *t)
{
    const struct http *h = t->http;
    const struct setting_pointer settings[] = {
        {CURLOPT_PRIVATE, t},
        {CURLOPT_URL, t->r.url},
        {CURLOPT_CUSTOMREQUEST, t->r.method},
        {CURLOPT_HTTPHEADER, t->headers},
        {CURLOPT_USERAGENT, h->user_agent},
        {CURLOPT_PROTOCOLS_STR, h->protocols},
        {CURLOPT_ERRORBUFFER, t->words},
        {CURLOPT_READDATA, t},
        {CURLOPT_SEEKDATA, t},
        {CURLOPT_PREREQDATA, t},
        {CURLOPT_HEADERDATA, t},
        {CURLOPT_WRITEDATA, t},
        {CURLOPT_XFERINFODATA, t},
    };
    CURLcode failed = CURLE_OK;
    for (size_t i = 0; failed == CURLE_OK && i < sizeof settings / sizeof settings[0]; i++)
        failed = h->curl->easy_setopt(t->easy, settings[i].option, settings[i].value);
    if (failed == CURLE_OK && h->proxy != NULL) /* "" is curl's word for none, whatever the environment says */
        failed = h->curl->easy_setopt(t->easy, CURLOPT_PROXY, strcmp(h->proxy, "none") == 0 ? "" : h->proxy);
    return failed;
}

/* curl keeps the certificates that it has read from a file, as long as no folder is named beside it. */
static CURLcode set_certificates(struct http_transfer *t)
{
    const struct http *h = t->http;
    static const CURLoption file_options[] = {CURLOPT_CAINFO, CURLOPT_PROXY_CAINFO};
    static const CURLoption path_options[] = {CURLOPT_CAPATH, CURLOPT_PROXY_CAPATH};
    CURLcode failed = CURLE_OK;
    for (int i = 0; i < 2 && failed == CURLE_OK; i++) {
        const char *path = h->ca_file == NULL ? h->ca_path : NULL;
        if (h->ca_file != NULL || h->ca_path != NULL) /* else curl's own file */
            failed = h->curl->easy_setopt(t->easy, file_options[i], h->ca_file);
        if (failed == CURLE_OK)
            failed = h->curl->easy_setopt(t->easy, path_options[i], path);
    }
    return failed;
}

static CURLcode set_callbacks(struct http_transfer *t)
{
    const struct curl_lib *curl = t->http->curl;
    CURLcode failed = curl->easy_setopt(t->easy, CURLOPT_READFUNCTION, on_read);
    if (failed == CURLE_OK)
        failed = curl->easy_setopt(t->easy, CURLOPT_SEEKFUNCTION, on_seek);
    if (failed == CURLE_OK)
        failed = curl->easy_setopt(t->easy, CURLOPT_PREREQFUNCTION, on_send);
    if (failed == CURLE_OK)
        failed = curl->easy_setopt(t->easy, CURLOPT_HEADERFUNCTION, on_header);
    if (failed == CURLE_OK)
        failed = curl->easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, on_data);
    if (failed == CURLE_OK)
        failed = curl->easy_setopt(t->easy, CURLOPT_XFERINFOFUNCTION, on_progress);
    if (failed == CURLE_OK)
        failed = curl->easy_setopt(t->easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
    return failed;
}

static enum err_code set_up(struct http_transfer *t, struct err *err)
{
    const struct curl_lib *curl = t->http->curl;
    t->easy = curl_spare_take(&t->http->spare, curl);
    if (t->easy == NULL || !add_headers(t))
        return err_nomem(err);
    CURLcode failed = set_numbers(t);
    if (failed == CURLE_OK)
        failed = set_pointers(t);
    if (failed == CURLE_OK)
        failed = set_certificates(t);
    if (failed == CURLE_OK)
        failed = set_callbacks(t);
    if (failed == CURLE_OUT_OF_MEMORY)
        return err_nomem(err);
    if (failed != CURLE_OK)
        return err_set(err, ERR_CONFIG, false, "libcurl does not take its options: %s", curl->easy_strerror(failed));
    return ERR_NONE;
}

enum err_code http_transfer_new(struct http *h, const struct http_request *r, struct http_transfer **ret,
                                struct err *err)
{
    static const char *const with_body[] = {"POST", "PUT", "PATCH", NULL};
    static const char *const repeatable[] = {"GET", "HEAD", "PUT", "DELETE", "OPTIONS", NULL};
    if (check_request(r, err) != ERR_NONE)
        return err->code;
    struct http_transfer *t = calloc(1, sizeof *t);
    if (t == NULL)
        return err_nomem(err);
    t->http = h;
    t->r = *r;
    t->send_turn.on_turn = on_send_turn;
    t->recv_turn.on_turn = on_recv_turn;
    buf_init(&t->answer_headers);
    buf_init(&t->body);
    if (t->r.stall_timeout_ms == 0)
        t->r.stall_timeout_ms = h->stall_timeout_ms;
    if (r->read == NULL)
        t->r.stream_size = (int64_t)r->body_size; /* one kind of body from here on */
    t->has_body = r->read != NULL || r->body_size > 0 || is_one_of(r->method, with_body);
    t->is_repeatable = !r->only_once && is_one_of(r->method, repeatable);
    if (http_check_url(h, r->url, &t->host, err) != ERR_NONE || set_up(t, err) != ERR_NONE) {
        http_transfer_free(t);
        return err->code;
    }
    t->r.url = t->r.method = NULL; /* curl has copies */
    t->r.headers = NULL;
    *ret = t;
    return ERR_NONE;
}

void http_transfer_free(struct http_transfer *t)
{
    struct http *h = t->http;
    no_pauses(t);
    curl_spare_give(&h->spare, h->curl, t->easy, t->is_sound && !h->is_closing);
    for (struct curl_slist *header = t->headers; header != NULL; header = header->next)
        explicit_bzero(header->data, strlen(header->data)); /* tokens */
    h->curl->slist_free_all(t->headers);
    buf_done(&t->answer_headers);
    buf_done(&t->body);
    free(t->host);
    free(t);
}

void http_transfer_end(struct http_transfer *t, CURLcode result)
{
    struct http_answer answer;
    curl_off_t sent = 0;
    note_received(t);
    if (t->is_cancelled)
        err_set(&t->err, ERR_STOPPED, false, "%s: cancelled", t->host);
    t->is_sound = result == CURLE_OK && t->err.code == ERR_NONE;
    http_error_of(t, result);
    describe(t, &answer);
    t->http->curl->easy_getinfo(t->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
    answer.sent_bytes = (uint64_t)sent < t->taken ? (uint64_t)sent : t->taken; /* curl counts the sizes of chunks */
    answer.maybe_received = t->maybe_received || t->err.code == ERR_NONE;
    t->r.done(t->r.arg, &answer);
    http_transfer_free(t);
}

const char *http_header(const struct http_answer *answer, const char *name)
{
    for (const char *at = answer->headers; *at != '\0';) {
        const char *value = at + strlen(at) + 1;
        if (strcasecmp(at, name) == 0)
            return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}
