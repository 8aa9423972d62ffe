#include "http_test.h"

/* ---- what comes back ------------------------------------------------------------------------------------------- */

static bool is_mapped(const char *name)
{
    char line[4096];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "re");
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps) != NULL)
        found |= strstr(line, name) != NULL;
    fclose(maps);
    return found;
}

/* The first test: later ones have opened one. */
static void libcurl_is_loaded_when_http_is_opened_and_not_before(void **state)
{
    struct fixture f;
    (void)state;
    assert_false(is_mapped("libcurl"));
    assert_false(is_mapped("libssl"));
    fixture_open(&f, NULL, NULL);
    assert_true(is_mapped("libcurl.so.4"));
    fixture_close(&f);
}

static void script_headers(struct connection *c)
{
    struct asked a;
    while (server_read(c, &a))
        if (!server_say(c,
                        "HTTP/1.1 100 Continue\r\nX-Test: not this\r\n\r\n"
                        "HTTP/1.1 103 Early Hints\r\nX-Test: nor this\r\n\r\n"
                        "HTTP/1.1 503 Busy\r\nX-Testing: no\r\nX-Empty:\r\nRetry-After: 7 \r\nX-Test:\t one, two \r\n"
                        "X-Test: second\r\nTransfer-Encoding: chunked\r\nTrailer: X-Late\r\n\r\n"
                        "5\r\nhello\r\n1\r\n!\r\n0\r\nX-Late: too late\r\n\r\n"))
            return;
}

static void check_headers(void *arg, const struct http_answer *answer)
{
    assert_string_equal(http_header(answer, "retry-after"), "7");
    assert_string_equal(http_header(answer, "X-EMPTY"), "");
    assert_null(http_header(answer, "X-Late"));
    assert_null(http_header(answer, "X-Tes"));
    assert_null(http_header(answer, ""));
    call_done(arg, answer);
}

static void an_answer_is_kept_with_its_own_headers(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_headers, NULL);
    call_init(&call, &f, "GET", "/");
    call.r.done = check_headers;
    call_run(&call);
    assert_answer(&call, 503);
    assert_int_equal(call.answer.version, 11);
    assert_string_equal(call.answer.body, "hello!");
    assert_int_equal(call.answer.body_size, 6);
    assert_int_equal(call.answer.received_bytes, 6);
    assert_string_equal(call.header, "one, two");
    call_free(&call);
    fixture_close(&f);
}

/* Says what it was asked, as the body of the answer. */
static void script_echo_head(struct connection *c)
{
    struct asked a;
    char answer[10000];
    while (server_read(c, &a)) {
        snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(a.head),
                 strcmp(a.method, "HEAD") == 0 ? "" : a.head);
        if (!server_say(c, answer))
            return;
    }
}

static void a_request_says_what_the_caller_wants(void **state)
{
    struct fixture f;
    struct call call;
    static const char *const methods[] = {"GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PATCH"};
    static const char *const headers[] = {"X-Token: abc", "X-Empty;", NULL};
    const struct http_options options = {.user_agent = "tester/1"};
    (void)state;
    fixture_open(&f, script_echo_head, &options);
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        char url[1024], *header = strdup("X-Token: abc"), *method = strdup(methods[i]);
        const char *own[] = {header, headers[1], NULL};
        call_init(&call, &f, method, "/a/../b/./%20?q=1&r=%2F");
        call.r.headers = own;
        memcpy(url, call.url, sizeof url);
        call_start(&call);
        memset(header, 'x', strlen(header)); /* the caller's strings are copied */
        memset(method, 'x', strlen(method));
        memset(call.url, 'x', strlen(call.url));
        turn_until(&f, &call.done, 1);
        assert_answer(&call, 200);
        if (i != 1) {
            char line[600];
            snprintf(line, sizeof line, "%s /a/../b/./%%20?q=1&r=%%2F HTTP/1.1\r\n", methods[i]);
            assert_memory_equal(call.answer.body, line, strlen(line)); /* nothing is normalised: it may be signed */
            assert_non_null(strstr(call.answer.body, "\r\nX-Token: abc\r\n"));
            assert_non_null(strstr(call.answer.body, "\r\nX-Empty:"));
            assert_non_null(strstr(call.answer.body, "\r\nUser-Agent: tester/1\r\n"));
            assert_null(strstr(call.answer.body, "Expect"));
            assert_null(strstr(call.answer.body, "Accept-Encoding"));
            if (i >= 4)
                assert_non_null(strstr(call.answer.body, "\r\nContent-Length: 0\r\n"));
            else
                assert_null(strstr(call.answer.body, "Content-Length"));
        }
        call_free(&call);
        free(header);
        free(method);
    }
    assert_int_equal(f.server->accepted, 1);
    fixture_close(&f);
}

static void script_redirect(struct connection *c)
{
    struct asked a;
    while (server_read(c, &a) &&
           server_say(c, "HTTP/1.1 307 Elsewhere\r\nLocation: /other\r\nX-Test: here\r\nContent-Length: 0\r\n\r\n"))
        ;
}

static void a_redirect_is_an_answer_like_any_other(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_redirect, NULL);
    for (int i = 0; i < 2; i++) {
        call_init(&call, &f, i == 0 ? "GET" : "PUT", "/");
        call_run(&call);
        assert_answer(&call, 307);
        assert_string_equal(call.header, "here");
        call_free(&call);
    }
    assert_int_equal(f.server->requests, 2);
    fixture_close(&f);
}

static void a_thousand_requests_share_few_connections(void **state)
{
    struct fixture f;
    const struct http_options options = {.max_connections = 3};
    struct call *calls = calloc(1000, sizeof *calls);
    (void)state;
    assert_non_null(calls);
    fixture_open(&f, script_ok, &options);
    for (int i = 0; i < 1000; i++) {
        call_init(&calls[i], &f, i % 2 == 0 ? "GET" : "POST", "/");
        if (i % 4 == 1) {
            calls[i].r.body = "a body";
            calls[i].r.body_size = 6;
        }
        call_start(&calls[i]);
    }
    turn_until(&f, &f.done, 1000);
    for (int i = 0; i < 1000; i++) {
        assert_answer(&calls[i], 200);
        assert_string_equal(calls[i].answer.body, "ok");
        call_free(&calls[i]);
    }
    assert_int_equal(f.server->requests, 1000);
    assert_int_equal(f.server->body_bytes, 250 * 6);
    assert_in_range(f.server->accepted, 1, 3);
    assert_in_range(f.server->most_open, 1, 3);
    free(calls);
    fixture_close(&f);
}

static void script_slow_answer(struct connection *c)
{
    struct asked a;
    while (server_read(c, &a)) {
        server_sleep(c, 400);
        if (!server_say(c, ANSWER_OK))
            return;
    }
}

/* Neither timeout runs while others use all connections. */
static void a_request_may_wait_for_a_connection_as_long_as_it_takes(void **state)
{
    struct fixture f;
    const struct http_options options = {.max_connections = 1, .connect_timeout_ms = 1000, .stall_timeout_ms = 1500};
    struct call calls[6];
    (void)state;
    fixture_open(&f, script_slow_answer, &options);
    for (int i = 0; i < 6; i++) {
        call_init(&calls[i], &f, "GET", "/");
        call_start(&calls[i]);
    }
    turn_until(&f, &f.done, 6);
    for (int i = 0; i < 6; i++) {
        assert_answer(&calls[i], 200);
        call_free(&calls[i]);
    }
    assert_int_equal(f.server->accepted, 1);
    fixture_close(&f);
}

static void script_numbers(struct connection *c)
{
    struct asked a;
    char answer[1200];
    while (server_read(c, &a)) {
        int size = atoi(a.path + 1);
        int n = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size);
        memset(answer + n, 'x', (size_t)size);
        if (!server_send(c, answer, (size_t)(n + size)))
            return;
    }
}

static void an_answer_larger_than_allowed_is_an_error_and_not_a_cut(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_numbers, NULL);
    call_init(&call, &f, "GET", "/1000");
    call.r.max_answer = 1000;
    call_run(&call);
    assert_answer(&call, 200);
    assert_int_equal(call.answer.body_size, 1000);
    call_free(&call);
    call_init(&call, &f, "GET", "/1000");
    call.r.max_answer = 999;
    call_run(&call);
    assert_failed(&call, ERR_REMOTE, false, true);
    assert_int_equal(call.answer.status, 200);
    call_free(&call);
    call_init(&call, &f, "GET", "/0");
    call.r.max_answer = 0;
    call_run(&call);
    assert_answer(&call, 200);
    assert_string_equal(call.answer.body, "");
    call_free(&call);
    fixture_close(&f);
}

static void script_endless_headers(struct connection *c)
{
    struct asked a;
    char line[1100];
    memset(line, 'h', sizeof line);
    memcpy(line, "X-Long: ", 8);
    memcpy(line + sizeof line - 3, "\r\n", 3);
    if (server_read(c, &a) && server_say(c, "HTTP/1.1 200 OK\r\n"))
        while (server_say(c, line))
            ;
}

static void headers_without_end_are_refused(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_endless_headers, NULL);
    call_init(&call, &f, "GET", "/");
    call_run(&call);
    assert_int_equal(call.answer.err.code, ERR_REMOTE);
    assert_true(call.answer.maybe_received);
    call_free(&call);
    fixture_close(&f);
}

/* ---- bodies ---------------------------------------------------------------------------------------------------- */

static void script_sum(struct connection *c)
{
    struct asked a;
    char answer[200];
    while (server_read(c, &a)) {
        snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Test: %llu %08x %s\r\n\r\n",
                 (unsigned long long)a.body_bytes, a.body_sum,
                 asked_header(&a, "\r\nTransfer-Encoding") != NULL ? "chunked" : "sized");
        if (!server_say(c, answer))
            return;
    }
}

static void assert_arrived(const struct call *call, uint64_t size, const char *how)
{
    char wanted[128];
    snprintf(wanted, sizeof wanted, "%llu %08x %s", (unsigned long long)size, pattern_sum(size), how);
    assert_answer(call, 200);
    assert_string_equal(call->header, wanted);
    assert_int_equal(call->answer.sent_bytes, size);
}

static void bodies_arrive_whole(void **state)
{
    static const uint64_t sizes[] = {0, 1, 5, 16384, 65536, 65537, 3000000};
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_sum, NULL);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char *body = malloc(sizes[i] + 1);
        assert_non_null(body);
        for (uint64_t at = 0; at < sizes[i]; at++)
            body[at] = (char)pattern(at);
        call_init(&call, &f, "PUT", "/memory");
        call.r.body = body;
        call.r.body_size = sizes[i];
        call_run(&call);
        assert_arrived(&call, sizes[i], "sized");
        call_free(&call);
        free(body);
        call_init(&call, &f, "POST", "/stream");
        call_stream(&call, sizes[i], (int64_t)sizes[i]);
        call_run(&call);
        assert_arrived(&call, sizes[i], "sized");
        call_free(&call);
        call_init(&call, &f, "PUT", "/chunks");
        call_stream(&call, sizes[i], -1);
        call.piece = 5000;
        call_run(&call);
        assert_arrived(&call, sizes[i], "chunked");
        call_free(&call);
    }
    assert_int_equal(f.server->accepted, 1);
    fixture_close(&f);
}

static void a_stream_is_never_asked_for_more_than_its_size(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_sum, NULL);
    call_init(&call, &f, "PUT", "/");
    call_stream(&call, 1000000, 100000); /* it would have more */
    call_run(&call);
    assert_arrived(&call, 100000, "sized");
    assert_int_equal(call.at, 100000);
    call_free(&call);
    fixture_close(&f);
}

static void a_stream_that_ends_early_is_an_error(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_sum, NULL);
    call_init(&call, &f, "PUT", "/");
    call_stream(&call, 99999, 100000);
    call_run(&call);
    assert_failed(&call, ERR_INPUT, false, false);
    assert_non_null(strstr(call.answer.err.text, "99999 of 100000"));
    call_free(&call);
    fixture_close(&f);
}

static ssize_t refuse_to_read(void *arg, char *buf, size_t room, struct err *err)
{
    struct call *call = arg;
    (void)buf, (void)room;
    if (call->reads++ == 0)
        return 1;
    if (call->size != 0)
        err_set(err, ERR_CHANGED, true, "the file has changed");
    return HTTP_FAIL;
}

static void a_reader_that_gives_up_says_why(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_sum, NULL);
    for (int says = 0; says < 2; says++) {
        call_init(&call, &f, "PUT", "/");
        call_stream(&call, (uint64_t)says, 100000);
        call.r.read = refuse_to_read;
        call_run(&call);
        assert_failed(&call, says ? ERR_CHANGED : ERR_SYSTEM, says, false);
        if (says)
            assert_string_equal(call.answer.err.text, "the file has changed");
        call_free(&call);
    }
    fixture_close(&f);
}

static void a_stream_that_says_later_goes_on_when_it_is_resumed(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    for (int chunked = 0; chunked < 2; chunked++) {
        fixture_open(&f, script_sum, NULL);
        call_init(&call, &f, "PUT", "/");
        call_stream(&call, 500000, chunked ? -1 : 500000);
        for (uint64_t at = 1; at < 500000; at += 50000) {
            call.later_at = at == 1 ? 1 : at; /* once there, it waits */
            call.piece = at == 1 ? 1 : 7000;
            unsigned before = call.laters;
            if (call.t == NULL)
                call_start(&call);
            else
                http_resume(call.t);
            turn_until(&f, &call.laters, before + 1);
            uint64_t was_at = call.at;
            turn_for(&f, 5); /* nobody asks meanwhile */
            assert_int_equal(call.laters, before + 1);
            assert_int_equal(call.at, was_at);
            assert_int_equal(call.done, 0);
        }
        call.later_at = 0;
        http_resume(call.t);
        http_resume(call.t); /* too often does no harm */
        turn_until(&f, &call.done, 1);
        assert_arrived(&call, 500000, chunked ? "chunked" : "sized");
        call_free(&call);
        fixture_close(&f);
    }
}

/* The other way round: it resumes itself before it says that it has nothing. */
static void resume_from_inside(struct call *call)
{
    if (call->done == 0)
        http_resume(call->t);
    call->later_at = call->reads % 2 == 1 ? 1 : 0;
    if (call->at == 0)
        call->piece = 100;
}

static void a_resume_from_inside_the_reader_is_not_lost(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_sum, NULL);
    call_init(&call, &f, "PUT", "/");
    call_stream(&call, 3000, 3000);
    call.on_event = resume_from_inside;
    call_run(&call);
    assert_arrived(&call, 3000, "sized");
    assert_true(call.laters > 3);
    call_free(&call);
    fixture_close(&f);
}

static long resident_kib(void)
{
    long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    assert_non_null(statm);
    assert_int_equal(fscanf(statm, "%*d %ld", &pages), 1);
    fclose(statm);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void a_large_upload_needs_little_memory(void **state)
{
    struct fixture f;
    struct call call;
    const uint64_t size = 64 * 1024 * 1024;
    (void)state;
    fixture_open(&f, script_sum, NULL);
    call_init(&call, &f, "PUT", "/");
    call_run(&call); /* connection and buffers are there */
    call_free(&call);
    long before = resident_kib();
    call_init(&call, &f, "PUT", "/");
    call_stream(&call, size, (int64_t)size);
    call_run(&call);
    assert_arrived(&call, size, "sized");
    assert_true(resident_kib() - before < 16 * 1024);
    call_free(&call);
    fixture_close(&f);
}

static void script_expect(struct connection *c)
{
    struct asked a;
    while (server_read_head(c, &a)) {
        bool asks = asked_header(&a, "\r\nExpect: 100-continue") != NULL;
        if (strcmp(a.path, "/no") == 0) {
            server_say(c, "HTTP/1.1 401 No\r\nX-Test: early\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
        if (asks && !server_say(c, "HTTP/1.1 100 Continue\r\n\r\n"))
            return;
        if (!server_read_body(c, &a))
            return;
        server_say(c, asks ? "HTTP/1.1 200 OK\r\nX-Test: asked\r\nContent-Length: 0\r\n\r\n"
                           : "HTTP/1.1 200 OK\r\nX-Test: not asked\r\nContent-Length: 0\r\n\r\n");
    }
}

static void a_body_waits_for_the_servers_consent_if_it_should(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_expect, NULL);
    for (int asks = 0; asks < 2; asks++) {
        call_init(&call, &f, "PUT", "/yes");
        call_stream(&call, 2000000, 2000000);
        call.r.expect_continue = asks;
        call_run(&call);
        assert_answer(&call, 200);
        assert_string_equal(call.header, asks ? "asked" : "not asked");
        call_free(&call);
    }
    call_init(&call, &f, "PUT", "/no");
    call_stream(&call, 2000000, 2000000);
    call.r.expect_continue = true;
    call_run(&call);
    assert_answer(&call, 401);
    assert_int_equal(call.reads, 0);
    call_free(&call);
    fixture_close(&f);
}

static void script_refuse_early(struct connection *c)
{
    struct asked a;
    if (!server_read_head(c, &a) || !server_read_bytes(c, &a, 100000))
        return;
    server_say(c, "HTTP/1.1 413 Too Large\r\nX-Test: early\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
    while (server_fill(c)) /* until the client has understood */
        c->have = 0;
}

static void a_refusal_in_the_middle_of_a_body_is_an_answer(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_refuse_early, NULL);
    call_init(&call, &f, "PUT", "/");
    call_stream(&call, 1ull << 40, 1ll << 40);
    call_run(&call);
    assert_answer(&call, 413);
    assert_string_equal(call.answer.body, "big");
    call_free(&call);
    fixture_close(&f);
}

/* ---- answers that are streamed --------------------------------------------------------------------------------- */

static void script_pattern(struct connection *c)
{
    struct asked a;
    char piece[8192];
    while (server_read(c, &a)) {
        uint64_t size = strtoull(a.path + 1, NULL, 10);
        snprintf(piece, sizeof piece, "HTTP/1.1 %s\r\nContent-Length: %llu\r\n\r\n",
                 strstr(a.path, "bad") != NULL ? "404 Not Found" : "200 OK", (unsigned long long)size);
        if (!server_say(c, piece))
            return;
        for (uint64_t at = 0; at < size;) {
            size_t n = size - at < sizeof piece ? (size_t)(size - at) : sizeof piece;
            for (size_t i = 0; i < n; i++)
                piece[i] = (char)pattern(at + i);
            if (!server_send(c, piece, n))
                return;
            at += n;
        }
    }
}

static void an_answer_can_be_taken_in_pieces_and_with_pauses(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_pattern, NULL);
    call_init(&call, &f, "GET", "/5000000");
    call.r.data = call_data;
    call.r.max_answer = 0;
    for (uint64_t at = 1; at < 5000000; at += 1000000) {
        unsigned before = call.laters;
        call.later_at = at;
        if (call.t == NULL)
            call_start(&call);
        else
            http_resume(call.t);
        turn_until(&f, &call.laters, before + 1);
        uint64_t had = call.got;
        turn_for(&f, 5);
        assert_int_equal(call.laters, before + 1);
        assert_int_equal(call.got, had);
    }
    call.later_at = 0;
    http_resume(call.t);
    turn_until(&f, &call.done, 1);
    assert_answer(&call, 200);
    assert_int_equal(call.got, 5000000);
    assert_int_equal(call.answer.received_bytes, 5000000);
    assert_int_equal(call.answer.body_size, 0);
    assert_int_equal(call.sum, pattern_sum(5000000));
    call_free(&call);
    fixture_close(&f);
}

static void an_error_page_is_kept_also_when_answers_are_streamed(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_pattern, NULL);
    call_init(&call, &f, "GET", "/1000/bad");
    call.r.data = call_data;
    call_run(&call);
    assert_answer(&call, 404);
    assert_int_equal(call.got, 0);
    assert_int_equal(call.answer.body_size, 1000);
    call_free(&call);
    fixture_close(&f);
}

static int refuse_data(void *arg, const struct http_answer *so_far, const char *data, size_t size, struct err *err)
{
    (void)arg, (void)so_far, (void)data, (void)size;
    err_set(err, ERR_SYSTEM, true, "disk full");
    return HTTP_FAIL;
}

static void a_taker_that_gives_up_says_why(void **state)
{
    struct fixture f;
    struct call call;
    (void)state;
    fixture_open(&f, script_pattern, NULL);
    call_init(&call, &f, "GET", "/1000000");
    call.r.data = refuse_data;
    call_run(&call);
    assert_failed(&call, ERR_SYSTEM, true, true);
    assert_string_equal(call.answer.err.text, "disk full");
    call_free(&call);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(libcurl_is_loaded_when_http_is_opened_and_not_before),
        cmocka_unit_test(an_answer_is_kept_with_its_own_headers),
        cmocka_unit_test(a_request_says_what_the_caller_wants),
        cmocka_unit_test(a_redirect_is_an_answer_like_any_other),
        cmocka_unit_test(a_thousand_requests_share_few_connections),
        cmocka_unit_test(a_request_may_wait_for_a_connection_as_long_as_it_takes),
        cmocka_unit_test(an_answer_larger_than_allowed_is_an_error_and_not_a_cut),
        cmocka_unit_test(headers_without_end_are_refused),
        cmocka_unit_test(bodies_arrive_whole),
        cmocka_unit_test(a_stream_is_never_asked_for_more_than_its_size),
        cmocka_unit_test(a_stream_that_ends_early_is_an_error),
        cmocka_unit_test(a_reader_that_gives_up_says_why),
        cmocka_unit_test(a_stream_that_says_later_goes_on_when_it_is_resumed),
        cmocka_unit_test(a_resume_from_inside_the_reader_is_not_lost),
        cmocka_unit_test(a_large_upload_needs_little_memory),
        cmocka_unit_test(a_body_waits_for_the_servers_consent_if_it_should),
        cmocka_unit_test(a_refusal_in_the_middle_of_a_body_is_an_answer),
        cmocka_unit_test(an_answer_can_be_taken_in_pieces_and_with_pauses),
        cmocka_unit_test(an_error_page_is_kept_also_when_answers_are_streamed),
        cmocka_unit_test(a_taker_that_gives_up_says_why),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
