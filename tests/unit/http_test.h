/*
 * http_test.h -- a server that does what a test tells it, and requests whose answers are kept.
 *
 * Each connection is a thread of the server that runs the test's script with blocking calls on loopback. The loop turns
 * on the test's thread only.
 */
#ifndef CHUTE_HTTP_TEST_H
#define CHUTE_HTTP_TEST_H

#include "http.h"

#include <setjmp.h>
#include <stdarg.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define PATIENCE_MS 60000u /* longer than anything takes on a machine that is busy and sanitized */
#define MAX_CONNECTIONS 1100

/* ---- the server ------------------------------------------------------------------------------------------------ */

struct server;
struct connection {
    struct server *server;
    pthread_t thread;
    int fd;
    unsigned nth; /* from 1 */
    char in[65536];
    size_t have; /* bytes in IN that were read and not used */
};
typedef void script_fn(struct connection *c);

struct server {
    int fd;
    int port;
    script_fn *script;
    pthread_t thread;
    struct connection connections[MAX_CONNECTIONS];
    atomic_uint accepted, open, most_open;
    atomic_uint requests;
    atomic_ullong body_bytes; /* of all requests */
    atomic_bool go;           /* what a script may wait for */
    atomic_bool stopping;
};

/* The request that a script has read. */
struct asked {
    char head[8192]; /* request line and headers */
    char method[16], path[512];
    uint64_t body_bytes;
    uint32_t body_sum; /* of body_sum_add() */
};

static inline uint32_t body_sum_add(uint32_t sum, const void *data, size_t size)
{
    for (const unsigned char *p = data, *end = p + size; p < end; p++)
        sum = (sum ^ *p) * 16777619u;
    return sum;
}
#define BODY_SUM 2166136261u

/* More bytes into C->in. false: end, error, or the test is over. */
static inline bool server_fill(struct connection *c)
{
    for (;;) {
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        if (c->server->stopping || c->have == sizeof c->in)
            return false;
        if (poll(&p, 1, 20) <= 0)
            continue;
        ssize_t n = recv(c->fd, c->in + c->have, sizeof c->in - c->have, 0);
        if (n <= 0)
            return false;
        c->have += (size_t)n;
        return true;
    }
}

static inline void server_use(struct connection *c, size_t n)
{
    memmove(c->in, c->in + n, c->have - n);
    c->have -= n;
}

/* Sleep or until the test ends. */
static inline void server_sleep(struct connection *c, unsigned ms)
{
    for (unsigned slept = 0; slept < ms && !c->server->stopping; slept += 5)
        usleep(5000);
}

static inline void server_wait_go(struct connection *c)
{
    while (!c->server->go && !c->server->stopping)
        usleep(1000);
}

static inline bool server_read_head(struct connection *c, struct asked *a)
{
    char *end;
    memset(a, 0, sizeof *a);
    a->body_sum = BODY_SUM;
    while ((end = memmem(c->in, c->have, "\r\n\r\n", 4)) == NULL)
        if (!server_fill(c))
            return false;
    size_t n = (size_t)(end - c->in) + 4;
    if (n >= sizeof a->head)
        return false;
    memcpy(a->head, c->in, n);
    server_use(c, n);
    c->server->requests++;
    return sscanf(a->head, "%15s %511s", a->method, a->path) == 2;
}

static inline const char *asked_header(const struct asked *a, const char *name)
{
    const char *at = strcasestr(a->head, name);
    return at != NULL ? at + strlen(name) + 2 : NULL;
}

static inline void server_count_body(struct connection *c, struct asked *a, size_t n)
{
    a->body_sum = body_sum_add(a->body_sum, c->in, n);
    a->body_bytes += n;
    c->server->body_bytes += n;
    server_use(c, n);
}

static inline bool server_read_bytes(struct connection *c, struct asked *a, uint64_t left)
{
    while (left > 0) {
        if (c->have == 0 && !server_fill(c))
            return false;
        size_t n = c->have < left ? c->have : (size_t)left;
        server_count_body(c, a, n);
        left -= n;
    }
    return true;
}

static inline bool server_read_chunks(struct connection *c, struct asked *a)
{
    for (;;) {
        char *end;
        while ((end = memmem(c->in, c->have, "\r\n", 2)) == NULL)
            if (!server_fill(c))
                return false;
        unsigned long size = strtoul(c->in, NULL, 16);
        server_use(c, (size_t)(end - c->in) + 2);
        if (!server_read_bytes(c, a, size))
            return false;
        while (c->have < 2)
            if (!server_fill(c))
                return false;
        server_use(c, 2); /* after the data, or after the last chunk */
        if (size == 0)
            return true;
    }
}

static inline bool server_read_body(struct connection *c, struct asked *a)
{
    const char *length = asked_header(a, "\r\nContent-Length");
    if (asked_header(a, "\r\nTransfer-Encoding") != NULL)
        return server_read_chunks(c, a);
    return length == NULL || server_read_bytes(c, a, strtoull(length, NULL, 10));
}

static inline bool server_read(struct connection *c, struct asked *a)
{
    return server_read_head(c, a) && server_read_body(c, a);
}

static inline bool server_send(struct connection *c, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        struct pollfd p = {.fd = c->fd, .events = POLLOUT};
        if (c->server->stopping)
            return false;
        if (poll(&p, 1, 20) <= 0)
            continue;
        ssize_t n = send(c->fd, at, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static inline bool server_say(struct connection *c, const char *text)
{
    return server_send(c, text, strlen(text));
}

/* RST instead of an orderly end. */
static inline void server_reset(struct connection *c)
{
    const struct linger none = {.l_onoff = 1, .l_linger = 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
}

#define ANSWER_OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

/* The usual: every request is read whole and answered. */
static inline void script_ok(struct connection *c)
{
    struct asked a;
    while (server_read(c, &a) && server_say(c, ANSWER_OK))
        ;
}

static inline void *server_connection(void *arg)
{
    struct connection *c = arg;
    unsigned open = ++c->server->open;
    for (unsigned most = c->server->most_open; open > most;)
        if (atomic_compare_exchange_weak(&c->server->most_open, &most, open))
            break;
    c->server->script(c);
    --c->server->open;
    close(c->fd);
    return NULL;
}

static inline void *server_listen(void *arg)
{
    struct server *s = arg;
    while (!s->stopping) {
        struct pollfd p = {.fd = s->fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept(s->fd, NULL, NULL);
        if (fd < 0)
            continue;
        unsigned nth = s->accepted + 1;
        if (nth > MAX_CONNECTIONS)
            abort();
        struct connection *c = &s->connections[nth - 1];
        c->server = s;
        c->fd = fd;
        c->nth = nth;
        if (pthread_create(&c->thread, NULL, server_connection, c) != 0)
            abort();
        s->accepted = nth;
    }
    return NULL;
}

static inline int loopback_listen(int *ret_port, int backlog)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, backlog), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    *ret_port = ntohs(at.sin_port);
    return fd;
}

static inline struct server *server_start(script_fn *script)
{
    /* not from malloc: its faults are for the code under test */
    struct server *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(s != MAP_FAILED);
    s->script = script;
    s->fd = loopback_listen(&s->port, 1024);
    assert_int_equal(pthread_create(&s->thread, NULL, server_listen, s), 0);
    return s;
}

static inline void server_stop(struct server *s)
{
    s->stopping = true;
    pthread_join(s->thread, NULL);
    for (unsigned i = 0; i < s->accepted; i++)
        pthread_join(s->connections[i].thread, NULL);
    close(s->fd);
    munmap(s, sizeof *s);
}

/* ---- the client ------------------------------------------------------------------------------------------------ */

struct fixture {
    uv_loop_t loop;
    uv_timer_t tick; /* lets the loop look at what other threads have done */
    struct http *http;
    struct server *server;
    unsigned done; /* calls that ended */
    bool is_closed;
};

/* One request and what came of it. */
struct call {
    struct fixture *f;
    struct http_transfer *t;
    struct http_request r;
    char url[1024];
    unsigned done;
    struct http_answer answer; /* the pointers are ours */
    char header[128];          /* the value of X-Test */
    /* a streamed body: a pattern of SIZE bytes, in pieces */
    uint64_t size, at;
    size_t piece;           /* at most; 0: any */
    uint64_t later_at;      /* say HTTP_LATER once there; 0: never */
    unsigned laters, reads; /* how often */
    unsigned rewinds;
    uint32_t sum; /* of what was streamed in an answer */
    uint64_t got;
    void (*on_event)(struct call *call); /* from read, data and done, when the test wants to do something there */
};

static inline void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static inline void fixture_open(struct fixture *f, script_fn *script, const struct http_options *options)
{
    struct http_options o = options != NULL ? *options : (struct http_options){0};
    struct err err;
    memset(f, 0, sizeof *f);
    if (o.proxy == NULL)
        o.proxy = "none"; /* the environment of whoever runs the tests is no part of them */
    assert_int_equal(uv_loop_init(&f->loop), 0);
    uv_timer_init(&f->loop, &f->tick);
    if (script != NULL)
        f->server = server_start(script);
    if (http_open(&f->loop, &o, &f->http, &err) != ERR_NONE)
        fail_msg("%s", err.text);
}

/* Turn the loop until *COUNT reaches WANTED; a hang fails. */
static inline void turn_until(struct fixture *f, const unsigned *count, unsigned wanted)
{
    uint64_t until_ns = uv_hrtime() + PATIENCE_MS * 1000000ull;
    uv_timer_start(&f->tick, on_tick, 2, 2);
    while (*count < wanted) {
        uv_run(&f->loop, UV_RUN_ONCE);
        if (uv_hrtime() > until_ns)
            fail_msg("waited too long: %u of %u", *count, wanted);
    }
    uv_timer_stop(&f->tick);
}

static inline void turn_for(struct fixture *f, uint64_t ms)
{
    uint64_t until_ns = uv_hrtime() + ms * 1000000;
    uv_timer_start(&f->tick, on_tick, 2, 2);
    while (uv_hrtime() < until_ns)
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_timer_stop(&f->tick);
}

/* The same for what the server counts. */
static inline void turn_until_server(struct fixture *f, const atomic_uint *count, unsigned wanted)
{
    uint64_t until_ns = uv_hrtime() + PATIENCE_MS * 1000000ull;
    uv_timer_start(&f->tick, on_tick, 2, 2);
    while (*count < wanted) {
        uv_run(&f->loop, UV_RUN_ONCE);
        if (uv_hrtime() > until_ns)
            fail_msg("waited too long for the server: %u of %u", *count, wanted);
    }
    uv_timer_stop(&f->tick);
}

static inline void on_fixture_closed(void *arg)
{
    struct fixture *f = arg;
    f->is_closed = true;
}

/* Close what is open; the loop must be empty then. */
static inline void fixture_close(struct fixture *f)
{
    uv_close((uv_handle_t *)&f->tick, NULL);
    if (f->http != NULL) {
        http_close(f->http, on_fixture_closed, f);
        assert_false(f->is_closed); /* never from inside */
        uv_run(&f->loop, UV_RUN_DEFAULT);
        assert_true(f->is_closed);
    }
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    if (f->server != NULL)
        server_stop(f->server);
}

static inline unsigned char pattern(uint64_t at)
{
    return (unsigned char)(at * 31 + (at >> 8) * 7 + (at >> 16));
}

static inline uint32_t pattern_sum(uint64_t size)
{
    uint32_t sum = BODY_SUM;
    for (uint64_t i = 0; i < size; i++) {
        unsigned char c = pattern(i);
        sum = body_sum_add(sum, &c, 1);
    }
    return sum;
}

static inline ssize_t call_read(void *arg, char *buf, size_t room, struct err *err)
{
    struct call *call = arg;
    (void)err;
    call->reads++;
    assert_int_equal(call->done, 0);
    if (call->on_event != NULL)
        call->on_event(call);
    if (call->later_at > 0 && call->at >= call->later_at) {
        call->laters++;
        return HTTP_LATER;
    }
    uint64_t left = call->size - call->at;
    size_t n = left < room ? (size_t)left : room;
    if (call->piece > 0 && n > call->piece)
        n = call->piece;
    for (size_t i = 0; i < n; i++)
        buf[i] = (char)pattern(call->at + i);
    call->at += n;
    return (ssize_t)n;
}

static inline bool call_rewind(void *arg)
{
    struct call *call = arg;
    call->rewinds++;
    call->at = 0;
    return true;
}

static inline int call_data(void *arg, const struct http_answer *so_far, const char *data, size_t size, struct err *err)
{
    struct call *call = arg;
    (void)err;
    assert_int_equal(call->done, 0);
    assert_in_range(so_far->status, 200, 299);
    if (call->on_event != NULL)
        call->on_event(call);
    if (call->later_at > 0 && call->got >= call->later_at) {
        call->laters++;
        return HTTP_LATER;
    }
    call->sum = body_sum_add(call->got == 0 ? BODY_SUM : call->sum, data, size);
    call->got += size;
    return 0;
}

static inline void call_done(void *arg, const struct http_answer *answer)
{
    struct call *call = arg;
    const char *header = http_header(answer, "x-tEST");
    assert_int_equal(strlen(answer->body), strnlen(answer->body, answer->body_size));
    call->done++;
    call->f->done++;
    call->answer = *answer;
    call->answer.headers = NULL;
    char *body = malloc(answer->body_size + 1);
    if (body != NULL)
        memcpy(body, answer->body, answer->body_size + 1);
    call->answer.body = body;
    snprintf(call->header, sizeof call->header, "%s", header != NULL ? header : "(none)");
    if (call->on_event != NULL)
        call->on_event(call);
}

static inline void call_init(struct call *call, struct fixture *f, const char *method, const char *path)
{
    memset(call, 0, sizeof *call);
    call->f = f;
    snprintf(call->url, sizeof call->url, "http://127.0.0.1:%d%s", f->server != NULL ? f->server->port : 1, path);
    call->r = (struct http_request){
        .method = method, .url = call->url, .max_answer = 1 << 20, .done = call_done, .arg = call};
}

static inline void call_stream(struct call *call, uint64_t size, int64_t stream_size)
{
    call->size = size;
    call->r.read = call_read;
    call->r.rewind = call_rewind;
    call->r.stream_size = stream_size;
}

static inline void call_start(struct call *call)
{
    struct err err;
    if (http_start(call->f->http, &call->r, &call->t, &err) != ERR_NONE)
        fail_msg("%s", err.text);
    assert_int_equal(call->done, 0); /* never from inside */
}

static inline void call_run(struct call *call)
{
    call_start(call);
    turn_until(call->f, &call->done, 1);
    assert_int_equal(call->done, 1);
}

static inline void call_free(struct call *call)
{
    free((char *)call->answer.body);
    call->answer.body = NULL;
}

static inline void assert_answer(const struct call *call, int status)
{
    if (call->answer.err.code != ERR_NONE)
        fail_msg("%s", call->answer.err.text);
    assert_int_equal(call->answer.status, status);
    assert_true(call->answer.maybe_received);
}

static inline void assert_failed(const struct call *call, enum err_code code, bool retryable, bool maybe_received)
{
    if (call->answer.err.code != code || call->answer.err.retryable != retryable ||
        call->answer.maybe_received != maybe_received)
        fail_msg("code %d retryable %d maybe_received %d: %s", call->answer.err.code, call->answer.err.retryable,
                 call->answer.maybe_received, call->answer.err.text);
}

#endif
