#include "http_test.h"

#include <dlfcn.h>
#include <netdb.h>

/* ---- names: libcurl finds this getaddrinfo() before libc's ------------------------------------------------------ */

static atomic_uint asked_names, answered_names;
static atomic_bool names_may_go;

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res);
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res)
{
    typedef int real_fn(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    real_fn *real;
    void *found = dlsym(RTLD_NEXT, "getaddrinfo");
    memcpy(&real, &found, sizeof real);
    asked_names++;
    if (node != NULL && strcmp(node, "slow.test") == 0)
        while (!names_may_go)
            usleep(1000);
    int code = node != NULL && strcmp(node, "temporary.test") == 0 ? EAI_AGAIN
               : node != NULL && strcmp(node, "none.test") == 0
                   ? EAI_NONAME
                   : real(node != NULL && strstr(node, ".test") != NULL ? "127.0.0.1" : node, service, hints, res);
    answered_names++;
    return code;
}

static void call_name(struct call *call, struct fixture *f, const char *name)
{
    call_init(call, f, "GET", "/");
    snprintf(call->url, sizeof call->url, "http://%s:%d/", name, f->server->port);
}

/* Threads that still resolve end by themselves; wait for them, so that nobody calls them leaks. */
static void names_settle(unsigned wanted)
{
    for (unsigned waited = 0; answered_names < wanted && waited < PATIENCE_MS; waited++)
        usleep(1000);
    usleep(20000); /* the thread itself */
}

static void a_name_is_resolved_beside_the_loop(void **state)
{
    struct fixture f;
    struct call slow, other;
    (void)state;
    asked_names = answered_names = 0;
    names_may_go = false;
    fixture_open(&f, script_ok, NULL);
    call_name(&slow, &f, "slow.test");
    call_start(&slow);
    turn_until_server(&f, &asked_names, 1);
    call_name(&other, &f, "127.0.0.1");
    call_run(&other); /* meanwhile others go on */
    assert_answer(&other, 200);
    assert_int_equal(slow.done, 0);
    names_may_go = true;
    turn_until(&f, &slow.done, 1);
    assert_answer(&slow, 200);
    call_free(&slow);
    call_free(&other);
    fixture_close(&f);
}

/* The loop would hang here if anyone waited for the thread: it ends only after all is closed. */
static void what_waits_for_a_name_ends_without_it(void **state)
{
    (void)state;
    for (int way = 0; way < 3; way++) {
        const struct http_options options = {.connect_timeout_ms = way == 1 ? 50 : 0};
        struct fixture f;
        struct call call;
        asked_names = answered_names = 0;
        names_may_go = false;
        fixture_open(&f, script_ok, &options);
        call_name(&call, &f, "slow.test");
        call_start(&call);
        turn_until_server(&f, &asked_names, 1);
        if (way == 0)
            http_cancel(call.t);
        if (way < 2)
            turn_until(&f, &call.done, 1);
        fixture_close(&f);
        if (way == 1)
            assert_failed(&call, ERR_REMOTE, true, false);
        else
            assert_failed(&call, ERR_STOPPED, false, false);
        call_free(&call);
        assert_int_equal(answered_names, 0);
        names_may_go = true;
        names_settle(1);
    }
}

static void a_name_that_is_none_is_a_remote_error(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_ok, NULL);
    for (int temporary = 0; temporary < 2; temporary++) {
        call_name(&call, &f, temporary ? "temporary.test" : "none.test");
        call_run(&call);
        assert_failed(&call, ERR_REMOTE, true, false);
        assert_non_null(strstr(call.answer.err.text, temporary ? "temporary.test" : "none.test"));
        call_free(&call);
    }
    fixture_close(&f);
}

/* ---- silence --------------------------------------------------------------------------------------------------- */

static void script_silent(struct connection *c)
{
    struct asked a;
    if (!server_read_head(c, &a))
        return;
    if (strcmp(a.path, "/sending") == 0) {
        server_wait_go(c);
        return;
    }
    server_read_body(c, &a);
    if (strcmp(a.path, "/receiving") == 0)
        server_say(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.");
    server_wait_go(c);
}

static void a_connection_without_a_byte_is_given_up(void **state)
{
    static const char *const paths[] = {"/sending", "/waiting", "/receiving"};
    const struct http_options options = {.stall_timeout_ms = 300};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct fixture f;
        struct call call;
        fixture_open(&f, script_silent, &options);
        call_init(&call, &f, "PUT", paths[i]);
        call_stream(&call, i == 0 ? 100000000 : 1000, i == 0 ? 100000000 : 1000);
        uint64_t began_ns = uv_hrtime();
        call_run(&call);
        assert_true(uv_hrtime() - began_ns >= 299000000);
        assert_failed(&call, ERR_REMOTE, true, i > 0);
        assert_non_null(strstr(call.answer.err.text, "300 ms"));
        call_free(&call);
        fixture_close(&f);
    }
}

static void a_request_may_have_its_own_patience(void **state)
{
    struct fixture f;
    struct call calls[2];
    const struct http_options options = {.stall_timeout_ms = 3600000};
    (void)state;
    fixture_open(&f, script_silent, &options);
    call_init(&calls[0], &f, "PUT", "/waiting");
    call_init(&calls[1], &f, "PUT", "/waiting");
    calls[1].r.stall_timeout_ms = 300;
    call_start(&calls[0]);
    call_start(&calls[1]);
    turn_until(&f, &calls[1].done, 1);
    assert_failed(&calls[1], ERR_REMOTE, true, true);
    assert_int_equal(calls[0].done, 0);
    fixture_close(&f);
    call_free(&calls[0]);
    call_free(&calls[1]);
}

#define STALL_MS 2000

/* One byte now and then, for longer than the timeout in all. */
static void script_slow(struct connection *c)
{
    struct asked a;
    /* the second line alone takes longer than the timeout */
    const char *answer = "HTTP/1.1 200 OK\r\nX-Padding: ........................\r\nX-Test: slow\r\n"
                         "Content-Length: 3\r\n\r\n...";
    if (!server_read(c, &a))
        return;
    for (; *answer != '\0'; answer++) {
        server_sleep(c, STALL_MS / 20);
        if (!server_send(c, answer, 1))
            return;
    }
}

static void slow_is_not_silent(void **state)
{
    struct fixture f;
    struct call call;
    const struct http_options options = {.stall_timeout_ms = STALL_MS};
    (void)state;
    fixture_open(&f, script_slow, &options);
    call_init(&call, &f, "GET", "/");
    uint64_t began_ns = uv_hrtime();
    call_run(&call);
    assert_true(uv_hrtime() - began_ns > STALL_MS * 1000000ull);
    assert_answer(&call, 200);
    assert_string_equal(call.header, "slow");
    call_free(&call);
    fixture_close(&f);
}

/* Takes its time to read what curl has long handed to the kernel, so that curl sees nothing move. */
static void script_sips(struct connection *c)
{
    struct asked a;
    const char *length;
    if (!server_read_head(c, &a) || (length = asked_header(&a, "\r\nContent-Length")) == NULL)
        return;
    for (uint64_t left = strtoull(length, NULL, 10); left > 0;) {
        uint64_t sip = left < 16384 ? left : 16384;
        if (!server_read_bytes(c, &a, sip))
            return;
        left -= sip;
        server_sleep(c, STALL_MS / 40);
    }
    server_say(c, ANSWER_OK);
}

static void what_the_kernel_still_sends_is_not_silence(void **state)
{
    struct fixture f;
    struct call call;
    const int small = 32768;
    const struct http_options options = {.stall_timeout_ms = STALL_MS};
    (void)state;
    fixture_open(&f, script_sips, &options);
    /* What waits is on our side, and moves with every sip. */
    assert_int_equal(setsockopt(f.server->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    call_init(&call, &f, "PUT", "/");
    call_stream(&call, 1200000, 1200000);
    uint64_t began_ns = uv_hrtime();
    call_run(&call);
    assert_answer(&call, 200);
    assert_true(uv_hrtime() - began_ns > STALL_MS * 1000000ull);
    call_free(&call);
    fixture_close(&f);
}

static void nobody_is_silent_who_waits_for_us(void **state)
{
    struct fixture f;
    struct call up, down;
    const struct http_options options = {.stall_timeout_ms = 1000};
    (void)state;
    fixture_open(&f, script_ok, &options);
    call_init(&up, &f, "PUT", "/");
    call_stream(&up, 1000, 1000);
    up.piece = 500;
    up.later_at = 500;
    call_init(&down, &f, "GET", "/");
    down.r.data = call_data;
    down.got = 1;
    down.later_at = 1;
    call_start(&up);
    call_start(&down);
    turn_for(&f, 2500);
    assert_int_equal(up.laters, 1);
    assert_int_equal(down.laters, 1);
    assert_int_equal(f.done, 0);
    up.later_at = down.later_at = 0;
    http_resume(up.t);
    http_resume(down.t);
    turn_until(&f, &f.done, 2);
    assert_answer(&up, 200);
    assert_answer(&down, 200);
    call_free(&up);
    call_free(&down);
    fixture_close(&f);
}

static void a_server_that_does_not_answer_the_connection_is_given_up(void **state)
{
    struct fixture f;
    struct call call;
    const struct http_options options = {.connect_timeout_ms = 100};
    (void)state;
    fixture_open(&f, script_silent, &options);
    call_init(&call, &f, "PUT", "/waiting"); /* a TLS client says hello, and the server waits for an end of line */
    memmove(call.url + 5, call.url + 4, strlen(call.url + 4) + 1);
    memcpy(call.url, "https", 5);
    call_run(&call);
    assert_failed(&call, ERR_REMOTE, true, false);
    call_free(&call);
    fixture_close(&f);
}

/* ---- nothing happens ------------------------------------------------------------------------------------------- */

static void count_active(uv_handle_t *handle, void *arg)
{
    unsigned *counts = arg;
    counts[0]++;
    counts[1] += uv_is_active(handle) != 0;
}

/* Answers once, and closes when the test says so. */
static void script_closes_later(struct connection *c)
{
    struct asked a;
    if (server_read(c, &a) && server_say(c, ANSWER_OK))
        server_wait_go(c);
}

static void on_async(uv_async_t *async)
{
    (void)async;
}

static void an_idle_http_wakes_nobody(void **state)
{
    struct fixture f;
    struct call call;
    uv_async_t alive; /* a daemon has something to wait for; without it uv_backend_timeout() says nothing */
    unsigned counts[2];
    struct rate rate;
    const struct http_options options = {.upload_rate = &rate, .download_rate = &rate};
    (void)state;
    rate_init(&rate, 100000000);
    fixture_open(&f, script_closes_later, &options);
    uv_async_init(&f.loop, &alive, on_async);
    uv_unref((uv_handle_t *)&f.tick);
    for (int i = 0; i < 3; i++) { /* new; after a request; after the server has closed the idle connection */
        uv_unref((uv_handle_t *)&alive);
        assert_false(uv_loop_alive(&f.loop));
        uv_ref((uv_handle_t *)&alive);
        uv_run(&f.loop, UV_RUN_NOWAIT);
        if (i == 1) /* what was kept for the next request is let go, once */
            uv_run(&f.loop, UV_RUN_ONCE);
        assert_int_equal(uv_backend_timeout(&f.loop), -1);
        counts[0] = counts[1] = 0;
        uv_walk(&f.loop, count_active, counts);
        assert_int_equal(counts[1], 1); /* the async */
        assert_int_equal(counts[0], 7); /* nor does a socket remain */
        if (i == 0) {
            call_init(&call, &f, "PUT", "/");
            call_stream(&call, 100000, 100000);
            call_run(&call);
            assert_answer(&call, 200);
            call_free(&call);
            uv_run(&f.loop, UV_RUN_NOWAIT); /* close callbacks */
        } else if (i == 1) {
            f.server->go = true;
            for (unsigned waited = 0; f.server->open > 0 && waited < PATIENCE_MS; waited++)
                usleep(1000);
            usleep(20000);
            uv_run(&f.loop, UV_RUN_NOWAIT);
        }
    }
    /* and the next request finds out, and takes a new connection */
    call_init(&call, &f, "POST", "/");
    call_run(&call);
    assert_answer(&call, 200);
    assert_int_equal(f.server->accepted, 2);
    call_free(&call);
    uv_close((uv_handle_t *)&alive, NULL);
    fixture_close(&f);
}

/* ---- rates ----------------------------------------------------------------------------------------------------- */

#define RATE 1000000

static void an_upload_is_never_faster_than_its_limit(void **state)
{
    struct fixture f;
    struct call call;
    struct rate rate;
    char *body = calloc(1, RATE / 2);
    const struct http_options options = {.upload_rate = &rate, .stall_timeout_ms = 1000};
    (void)state;
    assert_non_null(body);
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        rate_init(&rate, RATE);
        fixture_open(&f, script_ok, &options);
        call_init(&call, &f, "PUT", "/");
        if (in_memory) {
            call.r.body = body;
            call.r.body_size = RATE / 2;
        } else {
            call_stream(&call, RATE, RATE);
        }
        uint64_t began_ns = uv_hrtime();
        call_run(&call);
        uint64_t took_ms = (uv_hrtime() - began_ns) / 1000000;
        assert_answer(&call, 200);
        /* 100 ms are free at the start */
        assert_true(took_ms >= (in_memory ? 500 : 1000) - 100);
        assert_int_equal(f.server->body_bytes, in_memory ? RATE / 2 : RATE);
        call_free(&call);
        fixture_close(&f);
    }
    free(body);
}

static void script_much(struct connection *c)
{
    struct asked a;
    char *piece = calloc(1, RATE);
    if (piece != NULL && server_read(c, &a) && server_say(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"))
        server_send(c, piece, RATE);
    free(piece);
}

static void a_download_is_never_faster_than_its_limit(void **state)
{
    struct fixture f;
    struct call call;
    struct rate rate;
    const struct http_options options = {.download_rate = &rate, .stall_timeout_ms = 1000};
    (void)state;
    for (int streamed = 0; streamed < 2; streamed++) {
        rate_init(&rate, RATE);
        fixture_open(&f, script_much, &options);
        call_init(&call, &f, "GET", "/");
        if (streamed)
            call.r.data = call_data;
        uint64_t began_ns = uv_hrtime();
        call_run(&call);
        uint64_t took_ms = (uv_hrtime() - began_ns) / 1000000;
        assert_answer(&call, 200);
        assert_int_equal(call.answer.received_bytes, RATE);
        assert_true(took_ms >= 1000 - 100 - 70); /* the last piece may go into debt */
        call_free(&call);
        fixture_close(&f);
    }
}

/* Two destinations share one limit, one with three uploads and one with one: every upload gets the same. */
static void a_limit_is_shared_in_equal_parts(void **state)
{
    struct fixture f, g;
    struct call calls[4];
    struct rate rate;
    const struct http_options options = {.upload_rate = &rate, .proxy = "none"};
    struct err err;
    (void)state;
    rate_init(&rate, 4 * RATE);
    fixture_open(&f, script_ok, &options);
    struct http *second;
    assert_int_equal(http_open(&f.loop, &options, &second, &err), ERR_NONE);
    g = f;
    g.http = second;
    for (int i = 0; i < 4; i++) {
        call_init(&calls[i], i == 0 ? &g : &f, "PUT", "/");
        calls[i].f = i == 0 ? &g : &f;
        call_stream(&calls[i], 3000000, 3000000);
        struct fixture *of = calls[i].f;
        assert_int_equal(http_start(of->http, &calls[i].r, &calls[i].t, &err), ERR_NONE);
    }
    while (calls[0].done + calls[1].done + calls[2].done + calls[3].done == 0)
        uv_run(&f.loop, UV_RUN_ONCE);
    for (int i = 0; i < 4; i++)
        assert_true(calls[i].at > 3000000 * 7 / 10); /* when the first one ends, nobody is far behind */
    while (calls[0].done + calls[1].done + calls[2].done + calls[3].done < 4)
        uv_run(&f.loop, UV_RUN_ONCE);
    for (int i = 0; i < 4; i++) {
        assert_answer(&calls[i], 200);
        call_free(&calls[i]);
    }
    g.is_closed = false;
    http_close(second, on_fixture_closed, &g);
    fixture_close(&f);
    assert_true(g.is_closed);
}

/* One that leaves the line, or all of it, takes nobody with it. */
static void the_line_survives_those_who_leave_it(void **state)
{
    struct fixture f;
    struct call calls[3];
    struct rate rate;
    const struct http_options options = {.upload_rate = &rate};
    (void)state;
    rate_init(&rate, 10);
    fixture_open(&f, script_ok, &options);
    for (int i = 0; i < 3; i++) {
        call_init(&calls[i], &f, "PUT", "/");
        call_stream(&calls[i], 1000, 1000);
        call_start(&calls[i]);
    }
    turn_until_server(&f, &f.server->requests, 3);
    turn_for(&f, 50);
    assert_int_equal(f.done, 0);
    http_cancel(calls[1].t);
    turn_until(&f, &calls[1].done, 1);
    assert_failed(&calls[1], ERR_STOPPED, false, false);
    rate_set(&rate, 0); /* a reload takes the limit away */
    turn_until(&f, &f.done, 3);
    assert_answer(&calls[0], 200);
    assert_answer(&calls[2], 200);
    rate_set(&rate, 10);
    struct call last;
    call_init(&last, &f, "PUT", "/");
    call_stream(&last, 1000, 1000);
    call_start(&last);
    turn_until_server(&f, &f.server->requests, 4);
    turn_for(&f, 20);
    fixture_close(&f);
    assert_failed(&last, ERR_STOPPED, false, false);
    assert_null(rate.line);
    for (int i = 0; i < 3; i++)
        call_free(&calls[i]);
    call_free(&last);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_name_is_resolved_beside_the_loop),
        cmocka_unit_test(what_waits_for_a_name_ends_without_it),
        cmocka_unit_test(a_name_that_is_none_is_a_remote_error),
        cmocka_unit_test(a_connection_without_a_byte_is_given_up),
        cmocka_unit_test(a_request_may_have_its_own_patience),
        cmocka_unit_test(slow_is_not_silent),
        cmocka_unit_test(what_the_kernel_still_sends_is_not_silence),
        cmocka_unit_test(nobody_is_silent_who_waits_for_us),
        cmocka_unit_test(a_server_that_does_not_answer_the_connection_is_given_up),
        cmocka_unit_test(an_idle_http_wakes_nobody),
        cmocka_unit_test(an_upload_is_never_faster_than_its_limit),
        cmocka_unit_test(a_download_is_never_faster_than_its_limit),
        cmocka_unit_test(a_limit_is_shared_in_equal_parts),
        cmocka_unit_test(the_line_survives_those_who_leave_it),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
