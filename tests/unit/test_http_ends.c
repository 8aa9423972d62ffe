#include "http_test.h"
#include "alloc_fault.h"
#include "curl_lib.h"

/* ---- what goes wrong ------------------------------------------------------------------------------------------- */

static void script_reset_at_once(struct connection *c)
{
    server_reset(c);
}

static void script_reset_in_body(struct connection *c)
{
    struct asked a;
    if (server_read_head(c, &a) && server_read_bytes(c, &a, 1000))
        server_reset(c);
}

static void script_reset_after_body(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a))
        server_reset(c);
}

static void script_close_after_body(struct connection *c)
{
    struct asked a;
    server_read(c, &a);
}

static void script_half_a_head(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a))
        server_say(c, "HTTP/1.1 200 OK\r\nContent-Le");
}

static void script_half_an_answer(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a))
        server_say(c, "HTTP/1.1 201 Made\r\nContent-Length: 10\r\n\r\nhalf");
}

static void script_half_a_chunk(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a))
        server_say(c, "HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\n\r\nA\r\nhalf");
}

static void script_no_http(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a))
        server_say(c, "220 mail.example ESMTP\r\n");
}

static void script_bad_length(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a))
        server_say(c, "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n");
}

#define SECRET "s3cr3t"

/* URL, headers and body are full of secrets; the text of the error has none, and one line. */
static void assert_discreet(const struct call *call)
{
    assert_null(strstr(call->answer.err.text, SECRET));
    assert_null(strchr(call->answer.err.text, '\n'));
    assert_true(strlen(call->answer.err.text) > 10);
}

static void secret_call(struct call *call, struct fixture *f, const char *method)
{
    static const char *const headers[] = {"Authorization: Bearer " SECRET, "X-StorageApi-Token: " SECRET, NULL};
    call_init(call, f, method, "/");
    snprintf(call->url, sizeof call->url, "http://user:" SECRET "@127.0.0.1:%d/%s?sig=%s#%s",
             f->server != NULL ? f->server->port : 1, SECRET, SECRET, SECRET);
    call->r.headers = headers;
}

static void what_goes_wrong_is_told_with_its_consequences(void **state)
{
    static const struct {
        script_fn *script;
        bool maybe_received, maybe_received_large;
        int status;
    } cases[] = {
        {NULL, false, false, 0},
        {script_reset_in_body, true, false, 0}, /* the small one fits into it */
        {script_reset_after_body, true, true, 0},
        {script_close_after_body, true, true, 0},
        {script_half_a_head, true, true, 200},
        {script_half_an_answer, true, true, 201},
        {script_half_a_chunk, true, true, 201},
        {script_no_http, true, true, 0},
        {script_bad_length, true, true, 200},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int large = 0; large < 2; large++) {
            struct fixture f;
            struct call call;
            fixture_open(&f, cases[i].script, NULL);
            secret_call(&call, &f, "POST");
            call_stream(&call, large ? 20000000 : 1000, large ? 20000000 : 1000);
            call_run(&call);
            assert_failed(&call, ERR_REMOTE, true, large ? cases[i].maybe_received_large : cases[i].maybe_received);
            assert_int_equal(call.answer.status, cases[i].status);
            assert_discreet(&call);
            assert_non_null(strstr(call.answer.err.text, "127.0.0.1"));
            call_free(&call);
            fixture_close(&f);
        }
    }
}

/* When exactly the reset is noticed is not ours to say; that it is, and as what, is. */
static void a_connection_that_is_reset_at_once_is_an_error(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_reset_at_once, NULL);
    secret_call(&call, &f, "POST");
    call_stream(&call, 20000000, 20000000);
    call_run(&call);
    assert_failed(&call, ERR_REMOTE, true, false);
    assert_discreet(&call);
    call_free(&call);
    fixture_close(&f);
}

static void must_not_end(void *arg, const struct http_answer *answer)
{
    (void)arg, (void)answer;
    abort();
}

static void a_request_that_cannot_be_is_refused_at_once(void **state)
{
    static const struct {
        const char *method, *url, *header;
    } cases[] = {
        {"GET", "", NULL},
        {"GET", "/path", NULL},
        {"GET", "127.0.0.1/" SECRET, NULL},
        {"GET", "http://", NULL},
        {"GET", "http://u:" SECRET "@/", NULL},
        {"GET", "http://u:" SECRET "@127.0.0.1:port/", NULL},
        {"GET", "http://u:" SECRET "@127.0.0.1:99999/", NULL},
        {"GET", "http://u:" SECRET "@127.0.0.1 /", NULL},
        {"GET", "http://u:" SECRET "@[::1/", NULL},
        {"GET", "ftp://u:" SECRET "@127.0.0.1/", NULL},
        {"GET", "file:///etc/passwd", NULL},
        {"GET", "htt://u:" SECRET "@127.0.0.1/", NULL},
        {"GET", "httpss://u:" SECRET "@127.0.0.1/", NULL},
        {"GET", "http://127.0.0.1/", "X: " SECRET "\r\nX-Smuggled: yes"},
        {"GET", "http://127.0.0.1/", "X: " SECRET "\n"},
        {"", "http://127.0.0.1/", NULL},
        {"GET / " SECRET, "http://127.0.0.1/", NULL},
    };
    struct fixture f;
    (void)state;
    fixture_open(&f, NULL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *headers[] = {cases[i].header, NULL};
        const struct http_request r = {
            .method = cases[i].method, .url = cases[i].url, .headers = headers, .done = must_not_end};
        struct err err;
        assert_int_equal(http_start(f.http, &r, NULL, &err), ERR_CONFIG);
        assert_false(err.retryable);
        assert_null(strstr(err.text, SECRET));
    }
    turn_for(&f, 20);
    fixture_close(&f);
}

static void options_that_cannot_be_are_refused_at_once(void **state)
{
    static const char *const proxies[] = {"ftp://user:" SECRET "@127.0.0.1:1", "user:" SECRET "@127.0.0.1:1",
                                          "http://user:" SECRET "@", "http://user:" SECRET "@host:port", "nonsense"};
    uv_loop_t loop;
    struct http *h = NULL;
    struct err err;
    (void)state;
    assert_int_equal(uv_loop_init(&loop), 0);
    for (size_t i = 0; i < sizeof proxies / sizeof proxies[0]; i++) {
        const struct http_options options = {.proxy = proxies[i]};
        assert_int_equal(http_open(&loop, &options, &h, &err), ERR_CONFIG);
        assert_false(err.retryable);
        assert_null(strstr(err.text, SECRET));
    }
    const struct http_options options = {.ca_file = "/nonexistent/ca.pem"};
    assert_int_equal(http_open(&loop, &options, &h, &err), ERR_CONFIG);
    assert_non_null(strstr(err.text, "/nonexistent/ca.pem"));
    assert_null(h);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* ---- a connection that was used before, and is closed when the next request comes ------------------------------ */

/* The first connection answers one request and takes a second one without an answer; all others work. */
static void script_closes_after_one(struct connection *c)
{
    struct asked a;
    if (c->nth > 1) {
        script_ok(c);
        return;
    }
    if (server_read(c, &a) && server_say(c, ANSWER_OK) && server_read_head(c, &a)) {
        if (strcmp(a.path, "/part") == 0)
            server_read_bytes(c, &a, 1000);
        else
            server_read_body(c, &a);
        if (c->have > 0) /* an orderly end would be a reset with data unread */
            server_reset(c);
    }
}

struct second {
    const char *method, *path;
    uint64_t size; /* of a stream; 0: no body */
    bool no_rewind, only_once;
    bool is_sent_again, maybe_received;
};

static void run_second(const struct second *second)
{
    struct fixture f;
    struct call call;
    fixture_open(&f, script_closes_after_one, NULL);
    call_init(&call, &f, "GET", "/first");
    call_run(&call);
    assert_answer(&call, 200);
    call_free(&call);
    call_init(&call, &f, second->method, second->path);
    if (second->size > 0)
        call_stream(&call, second->size, (int64_t)second->size);
    if (second->no_rewind)
        call.r.rewind = NULL;
    call.r.only_once = second->only_once;
    call_run(&call);
    if (second->is_sent_again) {
        assert_answer(&call, 200);
        assert_int_equal(f.server->requests, 3);
        assert_int_equal(call.rewinds, second->size > 0);
        assert_int_equal(call.at, second->size);
    } else {
        assert_failed(&call, ERR_REMOTE, true, second->maybe_received);
        assert_int_equal(f.server->requests, 2);
    }
    call_free(&call);
    fixture_close(&f);
}

static void what_may_have_been_obeyed_is_sent_again_only_if_that_does_no_harm(void **state)
{
    static const struct second seconds[] = {
        {.method = "GET", .path = "/", .is_sent_again = true},
        {.method = "DELETE", .path = "/", .is_sent_again = true},
        {.method = "PUT", .path = "/", .size = 100000, .is_sent_again = true},
        {.method = "PUT", .path = "/", .size = 100000, .no_rewind = true, .maybe_received = true},
        {.method = "PUT", .path = "/", .size = 100000, .only_once = true, .maybe_received = true},
        {.method = "GET", .path = "/", .only_once = true, .maybe_received = true},
        {.method = "POST", .path = "/", .size = 100000, .maybe_received = true},
        {.method = "POST", .path = "/", .maybe_received = true}, /* without a body */
        {.method = "PATCH", .path = "/", .size = 10, .maybe_received = true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof seconds / sizeof seconds[0]; i++)
        run_second(&seconds[i]);
}

/* Closed in the middle of the body, so that it can't have been obeyed. Whether curl notices with a read, and sends it
 * again, or with a write, and gives up, depends on who is faster; both are right, and neither is "maybe received". */
static void a_post_that_was_not_sent_whole_was_not_received(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    for (int can_rewind = 0; can_rewind < 2; can_rewind++) {
        fixture_open(&f, script_closes_after_one, NULL);
        call_init(&call, &f, "GET", "/first");
        call_run(&call);
        call_free(&call);
        call_init(&call, &f, "POST", "/part");
        call_stream(&call, 30000000, 30000000);
        if (!can_rewind)
            call.r.rewind = NULL;
        call_run(&call);
        if (call.answer.err.code != ERR_NONE || !can_rewind) {
            assert_failed(&call, ERR_REMOTE, true, false);
        } else {
            assert_answer(&call, 200);
            assert_int_equal(call.rewinds, 1);
        }
        call_free(&call);
        fixture_close(&f);
    }
}

/* ---- proxies --------------------------------------------------------------------------------------------------- */

static void script_proxy(struct connection *c)
{
    struct asked a;
    while (server_read(c, &a)) {
        if (strcmp(a.method, "CONNECT") == 0) {
            server_say(c, "HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n"
                          "X-Test: of the proxy\r\nConnection: close\r\n\r\n");
            return;
        }
        bool knows = asked_header(&a, "\r\nProxy-Authorization") != NULL;
        server_say(c, knows ? "HTTP/1.1 200 OK\r\nX-Test: by proxy\r\nContent-Length: 0\r\n\r\n"
                            : "HTTP/1.1 200 OK\r\nX-Test: direct\r\nContent-Length: 0\r\n\r\n");
    }
}

static void a_proxy_is_used_and_its_refusal_is_the_operators_to_solve(void **state)
{
    struct server *proxy = server_start(script_proxy);
    char url[200];
    struct fixture f;
    struct call call;
    struct http_options options = {.proxy = url};
    (void)state;
    snprintf(url, sizeof url, "http://user:" SECRET "@127.0.0.1:%d", proxy->port);
    fixture_open(&f, script_proxy, &options);
    secret_call(&call, &f, "GET");
    call_run(&call);
    assert_answer(&call, 200);
    assert_string_equal(call.header, "by proxy");
    assert_int_equal(proxy->requests, 1);
    assert_int_equal(f.server->requests, 0);
    call_free(&call);
    secret_call(&call, &f, "PUT");
    memmove(call.url + 5, call.url + 4, strlen(call.url + 4) + 1);
    memcpy(call.url, "https", 5);
    call_run(&call);
    assert_failed(&call, ERR_CONFIG, false, false);
    assert_discreet(&call);
    assert_int_equal(call.answer.status, 0);
    assert_string_equal(call.header, "(none)");
    call_free(&call);
    fixture_close(&f);
    server_stop(proxy);

    fixture_open(&f, NULL, &options); /* nobody listens there now */
    secret_call(&call, &f, "PUT");
    call_run(&call);
    assert_failed(&call, ERR_REMOTE, true, false);
    assert_discreet(&call);
    call_free(&call);
    fixture_close(&f);
}

static void the_environment_names_a_proxy_unless_the_options_do(void **state)
{
    struct server *proxy = server_start(script_proxy);
    char url[200];
    struct fixture f;
    struct call call;
    struct http_options options = {.proxy = ""};
    (void)state;
    snprintf(url, sizeof url, "http://user:" SECRET "@127.0.0.1:%d", proxy->port);
    setenv("http_proxy", url, 1);
    unsetenv("no_proxy");
    for (int none = 0; none < 2; none++) {
        options.proxy = none ? "none" : "";
        fixture_open(&f, script_proxy, &options);
        call_init(&call, &f, "GET", "/");
        call_run(&call);
        assert_answer(&call, 200);
        assert_string_equal(call.header, none ? "direct" : "by proxy");
        call_free(&call);
        fixture_close(&f);
    }
    /* nonsense in there is not quoted */
    setenv("http_proxy", "gopher://user:" SECRET "@127.0.0.1:1", 1);
    options.proxy = "";
    fixture_open(&f, script_proxy, &options);
    call_init(&call, &f, "GET", "/");
    call_run(&call);
    assert_failed(&call, ERR_CONFIG, false, false);
    assert_discreet(&call);
    call_free(&call);
    fixture_close(&f);
    unsetenv("http_proxy");
    server_stop(proxy);
}

/* ---- cancel and close, in every phase -------------------------------------------------------------------------- */

static void script_reads_and_waits(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a))
        server_wait_go(c);
}

static void script_reads_nothing(struct connection *c)
{
    struct asked a;
    if (server_read_head(c, &a))
        server_wait_go(c);
}

static void script_half_and_waits(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a) && server_say(c, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf"))
        server_wait_go(c);
}

enum phase { NEW, CONNECTING, CONNECTED, SENDING, WAITING, RECEIVING, READ_PAUSED, DATA_PAUSED, QUEUED, DONE, PHASES };

/* A port where connections are neither accepted nor refused: the queue is full. */
struct deaf {
    int listens, port;
    int fill[64];
    int count;
};

static void deaf_open(struct deaf *d)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    d->listens = loopback_listen(&d->port, 0);
    at.sin_port = htons((uint16_t)d->port);
    for (d->count = 0; d->count < 64; d->count++) {
        struct pollfd p = {.events = POLLOUT};
        d->fill[d->count] = p.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        connect(p.fd, (struct sockaddr *)&at, sizeof at);
        if (poll(&p, 1, 200) == 0) { /* this one hangs: so will the next */
            d->count++;
            return;
        }
    }
    fail_msg("the queue never fills");
}

static void deaf_close(struct deaf *d)
{
    for (int i = 0; i < d->count; i++)
        close(d->fill[i]);
    close(d->listens);
}

static bool is_in_phase(enum phase phase, const struct call *call, unsigned turns)
{
    struct server *s = call->f->server;
    switch (phase) {
    case NEW:
        return true;
    case CONNECTING:
        return turns >= 3;
    case CONNECTED:
        return s->accepted >= 1;
    case SENDING:
        return s->requests >= 1 && call->reads > 1;
    case WAITING:
        return s->requests >= 1 && call->at == call->size;
    case RECEIVING:
        return call->got > 0;
    case READ_PAUSED:
    case DATA_PAUSED:
        return call->laters > 0;
    case QUEUED:
        return s->requests >= 1 && turns >= 10;
    default:
        return call->done > 0;
    }
}

static void begin_phase(enum phase phase, struct fixture *f, struct call *call, struct call *other, struct deaf *deaf)
{
    static script_fn *const scripts[PHASES] = {
        [NEW] = script_ok,         [CONNECTED] = script_reads_and_waits,  [SENDING] = script_reads_nothing,
        [QUEUED] = script_ok,      [WAITING] = script_reads_and_waits,    [RECEIVING] = script_half_and_waits,
        [READ_PAUSED] = script_ok, [DATA_PAUSED] = script_half_and_waits, [DONE] = script_ok,
        [CONNECTING] = script_ok,
    };
    const struct http_options options = {.max_connections = 1};
    fixture_open(f, phase == QUEUED ? script_reads_and_waits : scripts[phase], &options);
    call_init(other, f, "GET", "/other");
    if (phase == QUEUED)
        call_start(other);
    call_init(call, f, "PUT", "/");
    if (phase == CONNECTING) {
        deaf_open(deaf);
        snprintf(call->url, sizeof call->url, "http://127.0.0.1:%d/", deaf->port);
    }
    if (phase == SENDING || phase == READ_PAUSED)
        call_stream(call, 100000000, 100000000);
    if (phase == READ_PAUSED)
        call->later_at = 100;
    if (phase == DATA_PAUSED)
        call->later_at = 1;
    if (phase == RECEIVING || phase == DATA_PAUSED) {
        call->r.data = call_data;
        if (phase == DATA_PAUSED)
            call->got = 1; /* pauses at once */
    }
    call_start(call);
    uint64_t until_ns = uv_hrtime() + PATIENCE_MS * 1000000ull;
    uv_timer_start(&f->tick, on_tick, 2, 2);
    for (unsigned turns = 0; !is_in_phase(phase, call, turns); turns++) {
        uv_run(&f->loop, UV_RUN_ONCE);
        if (uv_hrtime() > until_ns)
            fail_msg("phase %d never comes", phase);
    }
    uv_timer_stop(&f->tick);
}

static void end_phase(enum phase phase, struct fixture *f, struct call *call, struct call *other, struct deaf *deaf)
{
    if (phase == CONNECTING)
        deaf_close(deaf);
    call_free(call);
    call_free(other);
    (void)f;
}

static void check_stopped(enum phase phase, const struct call *call)
{
    bool maybe = phase == WAITING || phase == RECEIVING || phase == DATA_PAUSED;
    assert_int_equal(call->done, 1);
    if (phase == DONE)
        assert_answer(call, 200);
    else if (phase == CONNECTED) /* how far it had come is not known here */
        assert_int_equal(call->answer.err.code, ERR_STOPPED);
    else
        assert_failed(call, ERR_STOPPED, false, maybe);
}

static void a_request_can_be_cancelled_in_every_phase(void **state)
{
    (void)state;
    for (enum phase phase = NEW; phase < DONE; phase++) {
        struct fixture f;
        struct call call, other;
        struct deaf deaf;
        begin_phase(phase, &f, &call, &other, &deaf);
        unsigned reads = call.reads, laters = call.laters;
        uint64_t got = call.got;
        http_cancel(call.t);
        http_cancel(call.t);
        http_resume(call.t);
        assert_int_equal(call.done, 0); /* never from inside */
        turn_until(&f, &call.done, 1);
        assert_int_equal(call.reads, reads); /* nor any other callback */
        assert_int_equal(call.laters, laters);
        assert_int_equal(call.got, got);
        check_stopped(phase, &call);
        if (phase == QUEUED)
            assert_int_equal(other.done, 0);
        fixture_close(&f);
        end_phase(phase, &f, &call, &other, &deaf);
    }
}

static void everything_can_be_closed_in_every_phase(void **state)
{
    (void)state;
    for (enum phase phase = NEW; phase <= DONE; phase++) {
        struct fixture f;
        struct call call, other;
        struct deaf deaf;
        struct err err;
        begin_phase(phase, &f, &call, &other, &deaf);
        struct http *h = f.http;
        f.http = NULL;
        http_close(h, on_fixture_closed, &f);
        assert_int_equal(http_start(h, &other.r, NULL, &err), ERR_STOPPED);
        assert_int_equal(call.done, phase == DONE);
        uv_run(&f.loop, UV_RUN_DEFAULT);
        assert_true(f.is_closed);
        check_stopped(phase, &call);
        assert_int_equal(other.done, phase == QUEUED);
        fixture_close(&f);
        end_phase(phase, &f, &call, &other, &deaf);
    }
}

/* From inside callbacks. */
static struct call *victim;
static unsigned at_event;
static bool closes_all;

static void stop_victim(struct call *call)
{
    if (at_event > 0 && --at_event > 0)
        return;
    if (closes_all && call->f->http != NULL) {
        struct http *h = call->f->http;
        call->f->http = NULL;
        http_close(h, on_fixture_closed, call->f);
    } else if (victim != NULL) {
        http_cancel(victim->t);
        victim = NULL;
    }
}

static void a_request_can_be_ended_from_inside_any_callback(void **state)
{
    enum { FROM_READ, FROM_DATA, FROM_DONE, FROM_DONE_OF_OTHER, WAYS };
    (void)state;
    for (int way = 0; way < WAYS * 2; way++) {
        struct fixture f;
        struct call call, other;
        bool by_other = way % WAYS == FROM_DONE_OF_OTHER;
        closes_all = way >= WAYS;
        fixture_open(&f, by_other ? script_ok : script_half_and_waits, NULL);
        call_init(&call, &f, "PUT", "/");
        call_init(&other, &f, "GET", "/");
        if (way % WAYS == FROM_READ)
            call_stream(&call, 1000000, 1000000);
        if (way % WAYS == FROM_DATA)
            call.r.data = call_data;
        if (way % WAYS == FROM_DONE) /* far too late for itself: no effect */
            call.r.max_answer = 1;
        if (by_other) {
            call_stream(&call, 10, 10);
            call.later_at = 5;
            call.piece = 5;
        }
        call_start(&call);
        if (by_other) {
            turn_until(&f, &call.laters, 1);
            other.on_event = stop_victim;
            call_start(&other);
        } else {
            call.on_event = stop_victim;
        }
        victim = &call;
        at_event = way % WAYS == FROM_READ ? 3 : 1;
        turn_until(&f, &call.done, 1);
        if (way % WAYS == FROM_DONE)
            assert_failed(&call, ERR_REMOTE, false, true);
        else
            assert_int_equal(call.answer.err.code, ERR_STOPPED);
        victim = NULL;
        if (closes_all) {
            uv_run(&f.loop, UV_RUN_DEFAULT);
            assert_true(f.is_closed);
        }
        fixture_close(&f);
        assert_int_equal(call.done, 1);
        call_free(&call);
        call_free(&other);
    }
}

/* A chain: done() starts the next one. */
static struct call chain[50];
static void start_next(struct call *call)
{
    if (call->done > 0 && call + 1 < chain + 50)
        call_start(call + 1);
}

static void done_may_start_the_next_request(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, script_ok, NULL);
    for (int i = 0; i < 50; i++) {
        call_init(&chain[i], &f, "POST", "/");
        chain[i].on_event = start_next;
    }
    call_start(&chain[0]);
    turn_until(&f, &f.done, 50);
    assert_int_equal(f.server->accepted, 1);
    for (int i = 0; i < 50; i++)
        call_free(&chain[i]);
    fixture_close(&f);
}

static void script_headers_and_body(struct connection *c)
{
    struct asked a;
    char body[20000];
    memset(body, 'b', sizeof body);
    while (server_read(c, &a)) {
        server_say(c, "HTTP/1.1 200 OK\r\nX-Test: yes\r\nContent-Length: 20000\r\n\r\n");
        server_send(c, body, sizeof body);
    }
}

/* ---- faults ---------------------------------------------------------------------------------------------------- */

static void sweep_done(void *arg, const struct http_answer *answer)
{
    struct call *call = arg;
    call->done++;
    call->answer.err = answer->err;
    call->answer.status = answer->status;
}

static void every_allocation_may_fail(void **state)
{
    struct server *server = server_start(script_headers_and_body);
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        uv_loop_t loop;
        struct http *h;
        struct err err = {.code = ERR_NONE};
        struct call call = {.size = 50000, .piece = 20000};
        const struct http_options options = {.proxy = "none", .user_agent = "sweep"};
        static const char *const headers[] = {"X-A: 1", NULL};
        long keep = alloc_fault_left; /* libuv's own are not ours to fail */
        snprintf(call.url, sizeof call.url, "http://127.0.0.1:%d/", server->port);
        call.r = (struct http_request){.method = "PUT",
                                       .url = call.url,
                                       .headers = headers,
                                       .read = call_read,
                                       .rewind = call_rewind,
                                       .stream_size = 50000,
                                       .max_answer = 100000,
                                       .done = sweep_done,
                                       .arg = &call};
        alloc_fault_left = 0;
        assert_int_equal(uv_loop_init(&loop), 0);
        alloc_fault_left = keep;
        bool is_open = http_open(&loop, &options, &h, &err) == ERR_NONE;
        bool is_started = is_open && http_start(h, &call.r, &call.t, &err) == ERR_NONE;
        uint64_t until_ns = uv_hrtime() + PATIENCE_MS * 1000000ull;
        while (is_started && call.done == 0 && uv_hrtime() < until_ns)
            uv_run(&loop, UV_RUN_ONCE);
        if (is_started) {
            assert_int_equal(call.done, 1);
            err = call.answer.err;
        }
        if (is_open)
            http_close(h, NULL, NULL);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&loop), 0);
        if (alloc_fault_hit()) {
            assert_int_equal(err.code, ERR_SYSTEM);
            assert_true(err.retryable);
        } else {
            assert_int_equal(err.code, ERR_NONE);
            assert_int_equal(call.answer.status, 200);
        }
    }
    server_stop(server);
}

/* The same for each function of libcurl, and of libuv, that can fail for want of memory or descriptors. */
static struct curl_lib *lib;
static struct curl_lib real;
static long curl_fault_left;
static bool curl_fault_now(void)
{
    return curl_fault_left > 0 && --curl_fault_left == 0;
}
int __real_uv_poll_init_socket(uv_loop_t *loop, uv_poll_t *poll, uv_os_sock_t fd);
int __wrap_uv_poll_init_socket(uv_loop_t *loop, uv_poll_t *poll, uv_os_sock_t fd)
{
    return curl_fault_now() ? UV_ENOMEM : __real_uv_poll_init_socket(loop, poll, fd);
}
int __real_uv_poll_start(uv_poll_t *poll, int events, uv_poll_cb cb);
int __wrap_uv_poll_start(uv_poll_t *poll, int events, uv_poll_cb cb)
{
    return curl_fault_now() ? UV_EINVAL : __real_uv_poll_start(poll, events, cb);
}
static CURL *faulty_easy_init(void)
{
    return curl_fault_now() ? NULL : real.easy_init();
}
static CURLM *faulty_multi_init(void)
{
    return curl_fault_now() ? NULL : real.multi_init();
}
static struct curl_slist *faulty_slist_append(struct curl_slist *list, const char *s)
{
    return curl_fault_now() ? NULL : real.slist_append(list, s);
}
static CURLMcode faulty_multi_add_handle(CURLM *multi, CURL *easy)
{
    return curl_fault_now() ? CURLM_OUT_OF_MEMORY : real.multi_add_handle(multi, easy);
}
static CURLMcode faulty_multi_socket_action(CURLM *multi, curl_socket_t fd, int events, int *running)
{
    return curl_fault_now() ? CURLM_OUT_OF_MEMORY : real.multi_socket_action(multi, fd, events, running);
}
static CURLU *faulty_url(void)
{
    return curl_fault_now() ? NULL : real.url();
}
static CURLUcode faulty_url_set(CURLU *url, CURLUPart what, const char *part, unsigned flags)
{
    return curl_fault_now() ? CURLUE_OUT_OF_MEMORY : real.url_set(url, what, part, flags);
}
static CURLUcode faulty_url_get(CURLU *url, CURLUPart what, char **part, unsigned flags)
{
    return curl_fault_now() && what != CURLUPART_PORT ? CURLUE_OUT_OF_MEMORY : real.url_get(url, what, part, flags);
}
static CURLcode faulty_easy_setopt(CURL *easy, CURLoption option, ...)
{
    va_list args;
    if (curl_fault_now())
        return CURLE_OUT_OF_MEMORY;
    va_start(args, option);
    CURLcode code = option >= CURLOPTTYPE_OFF_T && option < CURLOPTTYPE_BLOB
                        ? real.easy_setopt(easy, option, va_arg(args, curl_off_t))
                    : option >= CURLOPTTYPE_OBJECTPOINT ? real.easy_setopt(easy, option, va_arg(args, void *))
                                                        : real.easy_setopt(easy, option, va_arg(args, long));
    va_end(args);
    return code;
}

static void every_call_of_libcurl_and_libuv_may_fail(void **state)
{
    struct server *server = server_start(script_ok);
    const struct curl_lib *loaded;
    (void)state;
    assert_int_equal(curl_lib_load(&loaded, NULL), ERR_NONE);
    lib = (struct curl_lib *)loaded;
    real = *lib;
    lib->easy_init = faulty_easy_init;
    lib->multi_init = faulty_multi_init;
    lib->slist_append = faulty_slist_append;
    lib->multi_add_handle = faulty_multi_add_handle;
    lib->multi_socket_action = faulty_multi_socket_action;
    lib->url = faulty_url;
    lib->url_set = faulty_url_set;
    lib->url_get = (__typeof__(lib->url_get))(void (*)(void))faulty_url_get; /* newer ones take a const */
    lib->easy_setopt = faulty_easy_setopt;
    bool was_hit = true;
    for (long nth = 1; was_hit; nth++) {
        uv_loop_t loop;
        struct http *h;
        struct err err = {.code = ERR_NONE};
        struct call call = {.size = 500};
        const struct http_options options = {.proxy = "http://127.0.0.1:1"}; /* is looked at, and then not used */
        static const char *const headers[] = {"X-A: 1", NULL};
        snprintf(call.url, sizeof call.url, "http://127.0.0.1:%d/", server->port);
        call.r = (struct http_request){
            .method = "POST", .url = call.url, .headers = headers, .max_answer = 100, .done = sweep_done, .arg = &call};
        setenv("no_proxy", "127.0.0.1", 1);
        assert_int_equal(uv_loop_init(&loop), 0);
        curl_fault_left = nth;
        bool is_open = http_open(&loop, &options, &h, &err) == ERR_NONE;
        bool is_started = is_open && http_start(h, &call.r, &call.t, &err) == ERR_NONE;
        uint64_t until_ns = uv_hrtime() + PATIENCE_MS * 1000000ull;
        while (is_started && call.done == 0 && uv_hrtime() < until_ns)
            uv_run(&loop, UV_RUN_ONCE);
        was_hit = curl_fault_left == 0;
        curl_fault_left = 0;
        if (is_started) {
            assert_int_equal(call.done, 1);
            err = call.answer.err;
        }
        if (is_open)
            http_close(h, NULL, NULL);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&loop), 0);
        assert_true(was_hit ? err.code == ERR_SYSTEM || err.code == ERR_NONE : err.code == ERR_NONE);
    }
    unsetenv("no_proxy");
    *lib = real;
    server_stop(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_goes_wrong_is_told_with_its_consequences),
        cmocka_unit_test(a_connection_that_is_reset_at_once_is_an_error),
        cmocka_unit_test(a_request_that_cannot_be_is_refused_at_once),
        cmocka_unit_test(options_that_cannot_be_are_refused_at_once),
        cmocka_unit_test(what_may_have_been_obeyed_is_sent_again_only_if_that_does_no_harm),
        cmocka_unit_test(a_post_that_was_not_sent_whole_was_not_received),
        cmocka_unit_test(a_proxy_is_used_and_its_refusal_is_the_operators_to_solve),
        cmocka_unit_test(the_environment_names_a_proxy_unless_the_options_do),
        cmocka_unit_test(a_request_can_be_cancelled_in_every_phase),
        cmocka_unit_test(everything_can_be_closed_in_every_phase),
        cmocka_unit_test(a_request_can_be_ended_from_inside_any_callback),
        cmocka_unit_test(done_may_start_the_next_request),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_call_of_libcurl_and_libuv_may_fail),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
