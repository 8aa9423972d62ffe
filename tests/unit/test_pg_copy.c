/* test_pg_copy.c -- COPY: bytes in time, errors in the middle, and how requests are stopped. */
#include "pg_test.h"

#include <sys/resource.h>

/* Each of these twice: over the socket, and over TCP with TLS, where a message can't be seen before libpq has it. */
static void connect_by(struct fixture *f, bool by_tls)
{
    struct pg_options o = options_of(f, server.url);
    if (by_tls) {
        o.conninfo = text_of("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=require", server.port);
        o.password = PG_SERVER_PASSWORD;
    }
    open_with(f, &o);
    assert_ok(connect_now(f));
    struct told t = query(f, "select ssl from pg_stat_ssl where pid = pg_backend_pid()");
    assert_string_equal(t.value, by_tls ? "t" : "f");
}

/* ---- producers --------------------------------------------------------------------------------------------------- */

struct producer {
    struct told told; /* first: on_told() gets the whole */
    struct fixture *f;
    const char *text; /* again and again, PIECES times */
    size_t text_size;
    unsigned long pieces, given;
    bool is_endless;
    unsigned long later_after; /* say PG_LATER when so many were given, till is_free; 0: never */
    bool is_free;
    bool fails;
    unsigned long asked_later;
    void (*at_ask)(struct producer *p); /* something to do inside of the first call */
};

static ssize_t on_read(void *arg, const char **ret_data, struct err *err)
{
    struct producer *p = arg;
    assert_int_equal(p->told.times, 0); /* never after done() */
    if (p->at_ask != NULL) {
        void (*at_ask)(struct producer * p) = p->at_ask;
        p->at_ask = NULL;
        at_ask(p);
    }
    if (p->later_after > 0 && p->given == p->later_after && !p->is_free) {
        p->asked_later++;
        return PG_LATER;
    }
    if (p->given == p->pieces && !p->is_endless) {
        if (!p->fails)
            return 0;
        err_set(err, ERR_CHANGED, false, "the file changed");
        return PG_FAIL;
    }
    p->given++;
    *ret_data = p->text;
    return (ssize_t)p->text_size;
}

static void copy(struct producer *p, struct fixture *f, const char *sql, const char *text, unsigned long pieces)
{
    const struct pg_request r = {.sql = sql, .read = on_read, .done = on_told, .arg = p};
    p->f = f;
    p->text = text;
    p->text_size = strlen(text);
    p->pieces = pieces;
    start_request(f, &r);
}

static struct told copy_now(struct producer *p, struct fixture *f, const char *sql, const char *text,
                            unsigned long pieces)
{
    copy(p, f, sql, text, pieces);
    run_until_count(f, &p->told.times, 1);
    return p->told;
}

static void make_table(struct fixture *f)
{
    assert_ok(query(f, "create temp table t (a int, b text)"));
}

static void assert_rows(struct fixture *f, const char *wanted)
{
    struct told t = query(f, "select count(*) from t");
    assert_ok(t);
    assert_string_equal(t.value, wanted);
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

static void rows_arrive(void **state)
{
    struct fixture *f = *state;
    for (int tls = 0; tls < 2; tls++) {
        connect_by(f, tls);
        make_table(f);
        struct told t = copy_now(&(struct producer){.is_free = true}, f, "copy t from stdin", "1\tone\n2\ttwo\n", 3);
        assert_ok(t);
        assert_string_equal(t.tag, "COPY 6");
        assert_int_equal(t.affected, 6);
        assert_int_equal(t.copied_bytes, 3 * 12);
        assert_false(t.maybe_done);
        assert_ok(copy_now(&(struct producer){.is_free = true}, f, "copy t from stdin", "", 0)); /* none at all */
        assert_ok(copy_now(&(struct producer){.is_free = true}, f, "copy t from stdin", "7\\t", 0));
        assert_ok(
            copy_now(&(struct producer){.is_free = true}, f, "begin; copy t from stdin; commit", "3\tthree\n", 2));
        assert_rows(f, "8");
        close_pg(f);
    }
}

static void rows_may_be_cut_anywhere(void **state)
{
    struct fixture *f = *state;
    connect_by(f, false);
    make_table(f);
    /* 7 bytes that begin in the middle of a row: ends and beginnings meet */
    struct told t = copy_now(&(struct producer){.is_free = true}, f, "copy t from stdin", "7\tseven\n", 5000);
    assert_ok(t);
    assert_rows(f, "5000");
    char *large = malloc(3000000); /* one piece that is larger than all buffers */
    for (size_t i = 0; i < 2999992; i += 8)
        memcpy(large + i, "8\teight\n", 8);
    large[2999992] = '\0';
    t = copy_now(&(struct producer){.is_free = true}, f, "copy t from stdin", large, 1);
    assert_ok(t);
    assert_int_equal(t.copied_bytes, 2999992);
    assert_rows(f, "379999");
    free(large);
}

static void free_the_producer(uv_timer_t *timer)
{
    struct producer *p = timer->data;
    p->is_free = true;
    pg_resume(p->f->pg);
    pg_resume(p->f->pg); /* too often does no harm */
}

static void a_producer_that_has_nothing_is_not_asked(void **state)
{
    struct fixture *f = *state;
    uv_timer_t timer;
    struct producer p = {.later_after = 2};
    connect_by(f, false);
    make_table(f);
    pg_resume(f->pg);
    copy(&p, f, "copy t from stdin", "1\tone\n", 4);
    while (p.asked_later == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    run_for(f, 50);
    assert_int_equal(p.asked_later, 1);
    uv_timer_init(&f->loop, &timer);
    timer.data = &p;
    uv_timer_start(&timer, free_the_producer, 0, 0);
    run_until_count(f, &p.told.times, 1);
    assert_ok(p.told);
    assert_rows(f, "4");
    uv_close((uv_handle_t *)&timer, NULL);
    run_for(f, 1);
}

static void waiting_for_the_producer_is_no_silence(void **state)
{
    struct fixture *f = *state;
    struct producer p = {.later_after = 1};
    const struct pg_request r = {
        .sql = "copy t from stdin", .read = on_read, .stall_timeout_ms = 30, .done = on_told, .arg = &p};
    connect_by(f, false);
    make_table(f);
    p.f = f;
    p.text = "1\tone\n";
    p.text_size = 6;
    p.pieces = 2;
    start_request(f, &r);
    run_for(f, 200);
    assert_int_equal(p.told.times, 0);
    p.is_free = true;
    pg_resume(f->pg);
    run_until_count(f, &p.told.times, 1);
    assert_ok(p.told);
    assert_rows(f, "2");
}

/* The memory that is in use at most, in KiB. */
static long peak_kib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

static void freeze(struct fixture *f)
{
    assert_true(pg_backend_pid(f->pg) > 0); /* 0 would be all of us */
    assert_int_equal(kill(pg_backend_pid(f->pg), SIGSTOP), 0);
}

static void thaw(int pid)
{
    assert_int_equal(kill(pid, SIGCONT), 0);
}

/* Turn the loop until no more is asked for, for as long as even a machine that is busy elsewhere leaves us without a
 * turn. */
static void run_until_full(struct fixture *f, const struct producer *p)
{
    for (int quiet = 0; quiet < 20; quiet++) {
        unsigned long before = p->given;
        run_for(f, 50);
        if (p->given != before)
            quiet = 0;
    }
}

static void a_server_that_does_not_read_is_not_fed(void **state)
{
    struct fixture *f = *state;
    static char text[50001];
    for (size_t i = 0; i < sizeof text - 1; i += 10)
        memcpy(text + i, "12345\tabc\n", 10);
    for (int tls = 0; tls < 2; tls++) {
        struct producer p = {.is_free = true};
        connect_by(f, tls);
        make_table(f);
        int pid = pg_backend_pid(f->pg);
        copy(&p, f, "copy t from stdin", text, 1050); /* 50 MiB */
        while (p.given == 0)
            uv_run(&f->loop, UV_RUN_ONCE);
        freeze(f);
        run_until_full(f, &p);
        long before_kib = peak_kib();
        unsigned long stuck_at = p.given;
        assert_true(stuck_at < 1050);
        assert_int_equal(p.told.times, 0);
        run_for(f, 50);
        assert_int_equal(p.given, stuck_at);
        thaw(pid);
        run_until_count(f, &p.told.times, 1);
        assert_ok(p.told);
        assert_int_equal(p.told.copied_bytes, 52500000);
#ifndef __SANITIZE_ADDRESS__
        assert_true(peak_kib() - before_kib < 2048); /* 52 MB went through */
#else
        (void)before_kib;
#endif
        assert_rows(f, "5250000");
        close_pg(f);
    }
}

/* ---- errors in the middle ---------------------------------------------------------------------------------------- */

static void an_error_of_the_server_ends_the_copy_at_once(void **state)
{
    struct fixture *f = *state;
    for (int tls = 0; tls < 2; tls++) {
        connect_by(f, tls);
        make_table(f);
        /* The producer never ends: so the error did. */
        struct producer p = {.is_endless = true};
        struct told t = copy_now(&p, f, "copy t from stdin", "1\tone\n2\ttwo\nx\tthree\n", 0);
        assert_int_equal(t.err.code, ERR_INPUT);
        assert_false(t.maybe_done);
        assert_string_equal(t.fault.sqlstate, "22P02");
        assert_says(t.context, "COPY t, line 3, column a: \"x\"");
        assert_rows(f, "0");
        /* And one that has nothing to give is not waited for. */
        struct producer q = {.later_after = 1};
        t = copy_now(&q, f, "copy t from stdin", "1\tone\n2\n", 2);
        assert_string_equal(t.fault.sqlstate, "22P04");
        assert_says(t.context, "COPY t, line 2: \"2\"");
        assert_rows(f, "0");
        close_pg(f);
    }
}

static void notices_do_not_end_a_copy(void **state)
{
    struct fixture *f = *state;
    for (int tls = 0; tls < 2; tls++) {
        struct producer p = {.later_after = 500};
        connect_by(f, tls);
        make_table(f);
        assert_ok(query(f, "create or replace function tell() returns trigger language plpgsql as "
                           "$$ begin raise notice 'row % %', new.a, repeat('E', 3000); return new; end $$; "
                           "create trigger tell before insert on t for each row execute function tell()"));
        f->notices = 0;
        copy(&p, f, "copy t from stdin", "1\tone\n", 1000);
        run_until_count(f, &f->notices, 400); /* the server reads on while we have nothing */
        p.is_free = true;
        pg_resume(f->pg);
        run_until_count(f, &p.told.times, 1);
        assert_ok(p.told);
        assert_int_equal(f->notices, 1000);
        assert_says(f->notice, "row 1 EEE");
        assert_rows(f, "1000");
        /* One that comes after notices is heard too: at once if it is not in one packet with them. */
        assert_ok(query(f, "alter table t add constraint small check (a < 2)"));
        struct producer q = {.later_after = 1}, r = {.is_free = true};
        copy(&q, f, "copy t from stdin", "1\tone\n", 2);
        run_until_count(f, &f->notices, 1001);
        q.text = "9\n"; /* no row, so no notice */
        q.text_size = 2;
        q.is_free = true;
        q.later_after = 2;
        q.pieces = 3;
        pg_resume(f->pg);
        run_until_count(f, &q.told.times, 1);
        assert_string_equal(q.told.fault.sqlstate, "22P04");
        struct told t = copy_now(&r, f, "copy t from stdin", "1\tone\n9\tnine\n", 2);
        assert_string_equal(t.fault.sqlstate, "23514");
        close_pg(f);
    }
}

static void a_producer_that_gives_up_takes_the_rows_with_it(void **state)
{
    struct fixture *f = *state;
    connect_by(f, false);
    make_table(f);
    struct told t = copy_now(&(struct producer){.fails = true}, f, "copy t from stdin", "1\tone\n", 5);
    assert_int_equal(t.err.code, ERR_CHANGED);
    assert_string_equal(t.err.text, "the file changed");
    assert_false(t.maybe_done);
    assert_rows(f, "0");
}

static void a_session_that_ends_in_a_copy_says_why(void **state)
{
    struct fixture *f = *state;
    for (int tls = 0; tls < 2; tls++) {
        struct producer p = {.later_after = 1};
        connect_by(f, tls);
        make_table(f);
        copy(&p, f, "copy t from stdin", "1\tone\n", 2);
        while (p.asked_later == 0)
            uv_run(&f->loop, UV_RUN_ONCE);
        assert_ok(elsewhere(text_of("select pg_terminate_backend(%d)", pg_backend_pid(f->pg))));
        run_until_count(f, &p.told.times, 1);
        assert_string_equal(p.told.fault.sqlstate, "57P01");
        assert_int_equal(p.told.err.code, ERR_REMOTE);
        assert_true(p.told.err.retryable);
        assert_false(p.told.maybe_done); /* its end was never sent */
        assert_int_equal(pg_state(f->pg), PG_DOWN);
        close_pg(f);
    }
}

/* ---- stopped ----------------------------------------------------------------------------------------------------- */

static void cancelled_requests_leave_a_connection_that_works(void **state)
{
    struct fixture *f = *state;
    struct told t[3], back;
    for (int tls = 0; tls < 2; tls++) {
        connect_by(f, tls);
        make_table(f);
        assert_ok(query(f, "begin"));
        start(f, "select pg_sleep(1000)", &t[0]);
        start(f, "insert into t values (1)", &t[1]);
        run_for(f, 20);
        pg_cancel(f->pg);
        start(f, "rollback", &back);
        assert_int_equal(t[0].times + t[1].times, 0);
        run_until_count(f, &back.times, 1);
        assert_int_equal(t[0].times, 1);
        assert_int_equal(t[0].err.code, ERR_STOPPED);
        assert_string_equal(t[0].fault.sqlstate, "57014");
        assert_false(t[0].maybe_done);
        assert_int_equal(t[1].times, 1);
        assert_int_equal(t[1].err.code, ERR_STOPPED);
        assert_false(t[1].maybe_done);
        assert_ok(back);
        for (int i = 0; i < 20; i++) /* a late cancel would hit one of these */
            assert_ok(query(f, "select 1"));
        /* One that was not even sent. */
        start(f, "select 1", &t[2]);
        pg_cancel(f->pg);
        pg_cancel(f->pg);
        run_until_count(f, &t[2].times, 1);
        assert_int_equal(t[2].err.code, ERR_STOPPED);
        assert_rows(f, "0");
        close_pg(f);
    }
}

static void cancel_inside(struct producer *p)
{
    pg_cancel(p->f->pg);
}

static void a_copy_can_be_cancelled_at_any_time(void **state)
{
    struct fixture *f = *state;
    for (int tls = 0; tls < 2; tls++) {
        connect_by(f, tls);
        make_table(f);
        struct producer waiting = {.later_after = 1};
        copy(&waiting, f, "copy t from stdin", "1\tone\n", 2);
        while (waiting.asked_later == 0)
            uv_run(&f->loop, UV_RUN_ONCE);
        pg_cancel(f->pg);
        run_until_count(f, &waiting.told.times, 1);
        assert_int_equal(waiting.told.err.code, ERR_STOPPED);
        struct producer inside = {.is_endless = true, .at_ask = cancel_inside};
        struct told t = copy_now(&inside, f, "copy t from stdin", "1\tone\n", 0);
        assert_int_equal(t.err.code, ERR_STOPPED);
        struct producer unsent = {.is_endless = true};
        copy(&unsent, f, "copy t from stdin", "1\tone\n", 0);
        pg_cancel(f->pg);
        run_until_count(f, &unsent.told.times, 1);
        assert_int_equal(unsent.told.err.code, ERR_STOPPED);
        assert_int_equal(unsent.given, 0);
        assert_rows(f, "0");
        close_pg(f);
    }
}

static void a_server_that_does_not_stop_is_cut_off(void **state)
{
    struct fixture *f = *state;
    static char text[50001];
    memset(text, 'x', sizeof text - 1);
    for (int is_copy = 0; is_copy < 2; is_copy++) {
        struct producer p = {.is_endless = true};
        struct told queued;
        struct pg_options o = options_of(f, server.url);
        o.cancel_timeout_ms = 50;
        open_with(f, &o);
        assert_ok(connect_now(f));
        make_table(f);
        int pid = pg_backend_pid(f->pg);
        /* the word to stop may not get out in 50 ms: then it sleeps on until it sees that we are gone */
        copy(&p, f, is_copy ? "copy t from stdin" : "select pg_sleep(20)", text, 0);
        run_for(f, 20);
        freeze(f);
        if (is_copy)
            run_until_full(f, &p);
        pg_cancel(f->pg);
        start(f, "rollback", &queued);
        run_until_count(f, &queued.times, 1);
        thaw(pid);
        assert_int_equal(p.told.times, 1);
        assert_int_equal(p.told.err.code, ERR_STOPPED);
        assert_int_equal(p.told.maybe_done, !is_copy);
        assert_int_equal(queued.err.code, ERR_REMOTE);
        assert_true(queued.err.retryable);
        assert_int_equal(pg_state(f->pg), PG_DOWN);
        assert_int_equal(f->lost, 0);
        close_pg(f);
    }
    wait_for_answer(
        "select count(*) from pg_stat_activity where application_name = 'chute' and pid <> pg_backend_pid()", "0");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(rows_arrive),
        TEST(rows_may_be_cut_anywhere),
        TEST(a_producer_that_has_nothing_is_not_asked),
        TEST(waiting_for_the_producer_is_no_silence),
        TEST(a_server_that_does_not_read_is_not_fed),
        TEST(an_error_of_the_server_ends_the_copy_at_once),
        TEST(notices_do_not_end_a_copy),
        TEST(a_producer_that_gives_up_takes_the_rows_with_it),
        TEST(a_session_that_ends_in_a_copy_says_why),
        TEST(cancelled_requests_leave_a_connection_that_works),
        TEST(a_copy_can_be_cancelled_at_any_time),
        TEST(a_server_that_does_not_stop_is_cut_off),
    };
    return cmocka_run_group_tests(tests, start_server_with_tls, stop_server);
}
