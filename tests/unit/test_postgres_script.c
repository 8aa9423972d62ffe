/*
 * test_postgres_script.c -- SQL files in a real PostgreSQL: all of it or nothing, whatever is stopped, cut or missing.
 * What they may say, and what errors look like, is in tests/system/test_scenarios_c.py.
 */
#include "alloc_fault.h"
#include "pg_test.h"

#include "log.h"
#include "postgres_script.h"

struct bench {
    uv_loop_t loop;
    struct pg_options pg;
    struct pgd_scripter *s;
    char url[200], folder[64];
    bool is_closed;
    uv_timer_t guard;
};

struct run {
    struct scripts base;
    unsigned ends;
};

#define FILES 2
static char paths[FILES][96];
static const char *names[FILES];
static const struct script_setting settings[] = {{"a", "it's \\ \"x\""}, {"b", ""}};

static void on_finished(struct scripts *scripts)
{
    ((struct run *)scripts)->ends++;
}

static void put(struct bench *b, size_t i, const char *text)
{
    snprintf(paths[i], sizeof paths[i], "%s/%zu.sql", b->folder, i);
    names[i] = paths[i];
    FILE *f = fopen(paths[i], "we");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static struct run *run_new(size_t files)
{
    struct run *r = test_calloc(1, sizeof *r);
    r->base.name = "etl";
    r->base.files = names;
    r->base.file_count = files;
    r->base.settings = settings;
    r->base.setting_count = 2;
    r->base.finished = on_finished;
    return r;
}

static void on_guard(uv_timer_t *timer)
{
    (void)timer;
}

/* One turn; it waits for something to happen, but not for long: a timer's work may have been all there was. */
static void turn(struct bench *b)
{
    uv_run(&b->loop, UV_RUN_ONCE);
}

static void turn_until(struct bench *b, const unsigned *count, unsigned want)
{
    uint64_t late = uv_hrtime() + PATIENCE_MS * UINT64_C(1000000);
    while (*count < want && uv_hrtime() < late)
        turn(b);
    assert_int_equal(*count, want);
}

static void on_scripter_closed(void *arg)
{
    ((struct bench *)arg)->is_closed = true;
}

static void open_it(struct bench *b, const char *url)
{
    struct err err = {0};
    snprintf(b->url, sizeof b->url, "%s", url);
    b->pg = (struct pg_options){.conninfo = b->url, .password = PG_SERVER_PASSWORD, .cancel_timeout_ms = 5000};
    assert_int_equal(pgd_scripter_new(&b->loop, &b->pg, 300, &b->s, &err), ERR_NONE);
}

static void close_it(struct bench *b)
{
    b->is_closed = false;
    pgd_scripter_close(b->s, on_scripter_closed, b);
    assert_false(b->is_closed);
    while (!b->is_closed)
        turn(b);
}

static enum err_code run_all(struct bench *b, size_t files, struct err *ret, uint64_t *ret_statements)
{
    struct run *r = run_new(files);
    pgd_scripter_run(b->s, &r->base);
    assert_int_equal(r->ends, 0);
    turn_until(b, &r->ends, 1);
    *ret = r->base.err;
    if (ret_statements != NULL)
        *ret_statements = r->base.statements;
    test_free(r);
    return ret->code;
}

/* What psql prints for SQL. */
static const char *ask(const char *sql)
{
    static char text[1000];
    char command[1200];
    snprintf(command, sizeof command, "psql -XAtq '%s' -c \"%s\" 2>&1", server.url, sql);
    FILE *f = popen(command, "re");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text - 1, f);
    pclose(f);
    text[n] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return text;
}

static int make_bench(void **state)
{
    struct bench *b = calloc(1, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    uv_timer_init(&b->loop, &b->guard);
    uv_timer_start(&b->guard, on_guard, 10, 10);
    strcpy(b->folder, "/tmp/chute-pgscript-XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    ask("drop table if exists t; create table t(x int)");
    open_it(b, server.url);
    *state = b;
    return 0;
}

static int drop_bench(void **state)
{
    struct bench *b = *state;
    close_it(b);
    uv_close((uv_handle_t *)&b->guard, NULL);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
    for (size_t i = 0; i < FILES; i++)
        unlink(paths[i]);
    assert_int_equal(rmdir(b->folder), 0);
    free(b);
    return 0;
}

static void files_are_one_transaction(void **state)
{
    struct bench *b = *state;
    struct err err;
    uint64_t statements;
    put(b, 0, "-- one\nINSERT INTO t VALUES (1); INSERT INTO t VALUES (2);");
    put(b, 1,
        "INSERT INTO t SELECT 3 WHERE current_setting('chute.a', true) = E'it''s \\\\ \"x\"'\n AND "
        "current_setting('chute.b', true) = '' AND current_setting('chute.c', true) IS NULL");
    if (run_all(b, 2, &err, &statements) != ERR_NONE)
        fail_msg("%s", err.text);
    assert_int_equal(statements, 3);
    assert_string_equal(ask("select string_agg(x::text, ',' order by x) from t"), "1,2,3");
    put(b, 1, "INSERT INTO t VALUES (4);\nINSERT INTO nowhere VALUES (5);");
    assert_int_equal(run_all(b, 2, &err, &statements), ERR_INPUT);
    assert_non_null(strstr(err.text, "/1.sql:2: statement 2 (\"INSERT INTO nowhere VALUES (5)\"): relation"));
    assert_int_equal(statements, 0);
    assert_string_equal(ask("select count(*) from t"), "3");
    put(b, 0, "-- nothing\n;");
    put(b, 1, "");
    assert_int_equal(run_all(b, 2, &err, &statements), ERR_NONE);
    assert_int_equal(statements, 0);
}

static void they_run_in_order_on_connections_that_end(void **state)
{
    struct bench *b = *state;
    struct run *a = run_new(1), *c = run_new(1);
    put(b, 0, "SET application_name = 'left over'; CREATE TEMPORARY TABLE mine(x int); INSERT INTO t VALUES (1);");
    pgd_scripter_run(b->s, &a->base);
    pgd_scripter_run(b->s, &c->base);
    turn_until(b, &a->ends, 1);
    assert_int_equal(c->ends, 0);
    turn_until(b, &c->ends, 1);
    assert_int_equal(a->base.err.code, ERR_NONE);
    assert_int_equal(c->base.err.code, ERR_NONE); /* the table of the first is no more */
    assert_string_equal(ask("select count(*) from t"), "2");
    test_free(a);
    test_free(c);
}

/* Two chutes, one database: without their taking turns one of the two CREATEs would fail. */
static void those_of_one_name_take_turns(void **state)
{
    struct bench *b = *state;
    struct pgd_scripter *mine = b->s, *other;
    struct run *a = run_new(1), *c = run_new(1);
    struct err err = {0};
    ask("drop schema if exists twice cascade");
    assert_int_equal(pgd_scripter_new(&b->loop, &b->pg, 60000, &other, &err), ERR_NONE);
    put(b, 0, "CREATE SCHEMA IF NOT EXISTS twice; SELECT pg_sleep(0.3); INSERT INTO t VALUES (1);");
    pgd_scripter_run(other, &a->base);
    pgd_scripter_run(mine, &c->base); /* waits 300 ms for a lock, and may be told to come again */
    turn_until(b, &a->ends, 1);
    turn_until(b, &c->ends, 1);
    if (a->base.err.code != ERR_NONE)
        fail_msg("%s", a->base.err.text);
    if (c->base.err.code != ERR_NONE && !(c->base.err.code == ERR_REMOTE && c->base.err.retryable))
        fail_msg("%s", c->base.err.text);
    b->s = other;
    close_it(b);
    b->s = mine;
    ask("drop schema if exists twice cascade");
    test_free(a);
    test_free(c);
}

static void a_database_that_is_not_there_is_told(void **state)
{
    struct bench *b = *state;
    struct err err;
    char url[200];
    put(b, 0, "SELECT 1");
    close_it(b);
    snprintf(url, sizeof url, "postgresql://postgres@127.0.0.1:%d/postgres", pg_server_free_port());
    open_it(b, url);
    assert_int_equal(run_all(b, 1, &err, NULL), ERR_REMOTE);
    assert_true(err.retryable);
    close_it(b);
    snprintf(url, sizeof url, "postgresql:///nope?host=%s&port=%d&user=postgres", server.folder, server.port);
    open_it(b, url);
    assert_int_equal(run_all(b, 1, &err, NULL), ERR_DENIED);
    close_it(b);
    open_it(b, server.url);
    names[0] = "/nowhere.sql";
    assert_int_equal(run_all(b, 1, &err, NULL), ERR_INPUT);
    assert_string_equal(err.text, "/nowhere.sql: can't be read: No such file or directory");
}

static void the_lock_timeout_is_ours_and_may_pass(void **state)
{
    struct bench *b = *state;
    struct err err;
    char command[400];
    snprintf(command, sizeof command, "psql -XAtq '%s' >/dev/null", server.url);
    FILE *other = popen(command, "we");
    assert_non_null(other);
    fputs("begin; lock table t; select pg_advisory_lock(7);\n", other);
    fflush(other);
    while (strcmp(ask("select count(*) from pg_locks where locktype = 'advisory'"), "1") != 0)
        usleep(10000);
    put(b, 0, "SELECT 1;\nINSERT INTO t VALUES (1);");
    assert_int_equal(run_all(b, 1, &err, NULL), ERR_REMOTE);
    assert_true(err.retryable);
    assert_non_null(strstr(err.text, "/0.sql:2: statement 2 (\"INSERT INTO t VALUES (1)\"): canceling statement due to "
                                     "lock timeout"));
    pclose(other);
    assert_int_equal(run_all(b, 1, &err, NULL), ERR_NONE);
}

/* After how many turns of the loop it is stopped: at every one of them. */
static void it_can_be_stopped_at_any_time(void **state)
{
    struct bench *b = *state;
    bool was_done = false;
    put(b, 0, "INSERT INTO t VALUES (1);");
    put(b, 1, "INSERT INTO t VALUES (2);");
    for (unsigned turns = 0; !was_done; turns++) {
        struct run *r = run_new(2);
        ask("truncate t");
        pgd_scripter_run(b->s, &r->base);
        for (unsigned i = 0; i < turns && r->ends == 0; i++)
            turn(b);
        was_done = r->ends > 0;
        if (!was_done)
            pgd_scripter_abort(b->s, &r->base);
        turn_until(b, &r->ends, 1);
        if (r->base.err.code == ERR_NONE) {
            assert_string_equal(ask("select count(*) from t"), "2"); /* it was over before the server heard */
        } else {
            assert_int_equal(r->base.err.code, ERR_STOPPED);
            assert_int_equal(r->base.statements, 0);
            assert_string_equal(ask("select count(*) from t"), "0");
        }
        test_free(r);
    }
}

/* Between its end and the news of it, too: that takes few turns where there is nothing to connect to. */
static void what_is_over_is_not_ended_again(void **state)
{
    struct bench *b = *state;
    names[0] = "/nowhere.sql";
    for (unsigned round = 0; round < 100; round++) {
        struct run *r = run_new(1);
        pgd_scripter_run(b->s, &r->base);
        for (unsigned i = 0; i < round % 5 && r->ends == 0; i++) {
            uv_run(&b->loop, UV_RUN_NOWAIT); /* unlike ONCE it leaves a timer that is due by now to the next turn */
            usleep(200);
        }
        if (r->ends == 0)
            pgd_scripter_abort(b->s, &r->base);
        turn_until(b, &r->ends, 1);
        turn(b);
        assert_int_equal(r->ends, 1);
        assert_true(r->base.err.code == ERR_STOPPED || r->base.err.code == ERR_INPUT);
        test_free(r);
    }
}

static void a_long_statement_is_cancelled(void **state)
{
    struct bench *b = *state;
    struct run *a = run_new(1), *waits = run_new(1);
    put(b, 0, "INSERT INTO t VALUES (1); SELECT pg_sleep(600);");
    pgd_scripter_run(b->s, &a->base);
    pgd_scripter_run(b->s, &waits->base);
    while (strcmp(ask("select count(*) from pg_stat_activity where wait_event = 'PgSleep'"), "1") != 0)
        for (int i = 0; i < 20; i++)
            uv_run(&b->loop, UV_RUN_NOWAIT);
    assert_string_equal(ask("select application_name from pg_stat_activity where wait_event = 'PgSleep'"), "chute etl");
    pgd_scripter_hurry(b->s);
    turn_until(b, &waits->ends, 1);
    turn_until(b, &a->ends, 1);
    assert_int_equal(a->base.err.code, ERR_STOPPED);
    assert_int_equal(waits->base.err.code, ERR_STOPPED);
    assert_string_equal(ask("select count(*) from t"), "0");
    while (strcmp(ask("select count(*) from pg_stat_activity where application_name like 'chute%'"), "0") != 0)
        usleep(10000);
    test_free(a);
    test_free(waits);
}

/* The wire is cut after so many bytes: both statements are there, or none; and none is only said when it is so. */
static void cut_after_any_byte(struct bench *b, int direction)
{
    struct wire w;
    char url[200];
    wire_start(&w);
    close_it(b);
    snprintf(url, sizeof url, "postgresql://postgres@127.0.0.1:%d/postgres?sslmode=disable", w.port);
    open_it(b, url);
    put(b, 0, "INSERT INTO t VALUES (1);");
    put(b, 1, "INSERT INTO t VALUES (2);");
    bool was_whole = false;
    for (long long bytes = 1; !was_whole; bytes += 23) {
        struct err err;
        ask("truncate t");
        w.allowed[direction] = bytes;
        enum err_code code = run_all(b, 2, &err, NULL);
        was_whole = w.allowed[direction] > 0;
        w.allowed[direction] = -1;
        while (strcmp(ask("select count(*) from pg_stat_activity where application_name like 'chute%'"), "0") != 0)
            usleep(5000);
        const char *rows = ask("select count(*) from t");
        if (code == ERR_NONE)
            assert_string_equal(rows, "2");
        else
            assert_true(err.retryable && (strcmp(rows, "0") == 0 || strcmp(rows, "2") == 0));
    }
    close_it(b);
    wire_stop(&w);
    open_it(b, server.url);
}

static void a_wire_cut_on_the_way_there(void **state)
{
    cut_after_any_byte(*state, TO_SERVER);
}

static void a_wire_cut_on_the_way_back(void **state)
{
    cut_after_any_byte(*state, TO_CLIENT);
}

static void without_memory_all_of_it_fails(void **state)
{
    struct bench *b = *state;
    put(b, 0, "INSERT INTO t VALUES (1);");
    put(b, 1, "INSERT INTO t VALUES (2);");
    ALLOC_FAULT_SWEEP
    {
        struct err err;
        long nth = alloc_fault_left;
        alloc_fault_left = 0;
        ask("truncate t");
        struct run *r = run_new(2);
        alloc_fault_left = nth;
        pgd_scripter_run(b->s, &r->base);
        while (r->ends == 0)
            turn(b);
        bool was_hit = alloc_fault_hit();
        alloc_fault_left = 0;
        err = r->base.err;
        if (!was_hit && err.code != ERR_NONE)
            fail_msg("%s", err.text);
        const char *rows = ask("select count(*) from t");
        if (err.code == ERR_NONE)
            assert_string_equal(rows, "2");
        else
            assert_true(strcmp(rows, "0") == 0 || strcmp(rows, "2") == 0);
        test_free(r);
        alloc_fault_was_hit = was_hit;
    }
}

static int start_quietly(void **state)
{
    const struct log_output quiet = {.to = "/dev/null"};
    struct err err = {0};
    return log_open(&quiet, 1, &err) != ERR_NONE ? -1 : start_server(state);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, make_bench, drop_bench)
    const struct CMUnitTest tests[] = {
        T(files_are_one_transaction),
        T(they_run_in_order_on_connections_that_end),
        T(those_of_one_name_take_turns),
        T(a_database_that_is_not_there_is_told),
        T(the_lock_timeout_is_ours_and_may_pass),
        T(it_can_be_stopped_at_any_time),
        T(what_is_over_is_not_ended_again),
        T(a_long_statement_is_cancelled),
        T(a_wire_cut_on_the_way_there),
        T(a_wire_cut_on_the_way_back),
        T(without_memory_all_of_it_fails),
    };
    return cmocka_run_group_tests(tests, start_quietly, stop_server);
}
