/* test_dest_sqlite_script.c -- SQL files in a SQLite database: one transaction, places of errors, what is refused. */
#include "lite_test.h"

#include "alloc_fault.h"

struct test_scripts {
    struct scripts base;
    bool is_done;
};

static void on_scripts_finished(struct scripts *scripts)
{
    ((struct test_scripts *)scripts)->is_done = true;
}

#define FILES_MAX 3
static char paths[FILES_MAX][96];
static const char *names[FILES_MAX];

static void write_script(struct fixture *f, size_t i, const char *text)
{
    snprintf(paths[i], sizeof paths[i], "%s/%zu.sql", f->folder, i);
    names[i] = paths[i];
    FILE *out = fopen(paths[i], "we");
    assert_non_null(out);
    fputs(text, out);
    assert_int_equal(fclose(out), 0);
}

static const struct script_setting settings[] = {{"rule", "it's"}, {"empty", ""}};

static struct test_scripts *make_scripts(size_t files)
{
    static struct test_scripts s;
    memset(&s, 0, sizeof s);
    s.base = (struct scripts){.name = "etl",
                              .files = names,
                              .file_count = files,
                              .settings = settings,
                              .setting_count = 2,
                              .finished = on_scripts_finished};
    return &s;
}

static void begin_scripts(struct fixture *f, struct test_scripts *s)
{
    struct err err;
    assert_int_equal(dest_sqlite.run_scripts(f->dest, &s->base, &err), ERR_NONE);
    assert_false(s->is_done);
}

/* Run TEXT; the error, "" if it worked, is in f->answer too. */
static enum err_code run_text(struct fixture *f, const char *text, uint64_t *ret_statements)
{
    write_script(f, 0, text);
    struct test_scripts *s = make_scripts(1);
    begin_scripts(f, s);
    run_until(f, &s->is_done);
    snprintf(f->answer, sizeof f->answer, "%s", s->base.err.code != ERR_NONE ? s->base.err.text : "");
    if (ret_statements != NULL)
        *ret_statements = s->base.statements;
    return s->base.err.code;
}

#define assert_runs(f, text)                                                                                           \
    do {                                                                                                               \
        if (run_text(f, text, NULL) != ERR_NONE)                                                                       \
            fail_msg("%s", (f)->answer);                                                                               \
    } while (0)

static void a_script_runs_whole(void **state)
{
    struct fixture *f = *state;
    uint64_t statements;
    const char *text = "-- a script;\nCREATE TABLE t(a, b DEFAULT ';');\n"
                       "CREATE TABLE log(a);\n"
                       "CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES(new.a); SELECT 1; END;\n"
                       "INSERT INTO t(a) VALUES ('x;y'), ('z');;\n/* ; */ SELECT * FROM t; -- the end";
    if (run_text(f, text, &statements) != ERR_NONE)
        fail_msg("%s", f->answer);
    assert_int_equal(statements, 5);
    assert_string_equal(ask(f, "SELECT a, b FROM t ORDER BY a"), "x;y|;\nz|;");
    assert_string_equal(ask(f, "SELECT count(*) FROM log"), "2");
    assert_runs(f, "");
    assert_runs(f, "-- nothing\n;");
}

static void several_files_are_one_transaction(void **state)
{
    struct fixture *f = *state;
    write_script(f, 0, "CREATE TABLE a(x);");
    write_script(f, 1, "INSERT INTO a VALUES (1);\nINSERT INTO a VALUES (2);\nINSERT INTO nowhere VALUES (3);");
    struct test_scripts *s = make_scripts(2);
    begin_scripts(f, s);
    run_until(f, &s->is_done);
    assert_int_equal(s->base.err.code, ERR_INPUT);
    assert_false(s->base.err.retryable);
    assert_says(s->base.err.text, "/1.sql:3: statement 3 (\"INSERT INTO nowhere VALUES (3)\"): no such table: nowhere");
    assert_int_equal(s->base.statements, 0);
    assert_says(ask(f, "SELECT * FROM a"), "no such table");
    write_script(f, 1, "INSERT INTO a VALUES (1);");
    s = make_scripts(2);
    begin_scripts(f, s);
    run_until(f, &s->is_done);
    assert_int_equal(s->base.err.code, ERR_NONE);
    assert_int_equal(s->base.statements, 2);
    assert_string_equal(ask(f, "SELECT * FROM a"), "1");
}

static void errors_say_where(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"SELECT 1;\n\nSELECT\n  1 +;\n", "/0.sql:4: statement 2 (\"SELECT 1 +\"): near \";\": syntax error"},
        {"CREATE TABLE u(a UNIQUE);\nINSERT INTO u VALUES (1),\n (1);",
         "/0.sql:2: statement 2 (\"INSERT INTO u VALUES (1), (1)\"): UNIQUE constraint failed: u.a"},
        {"SELECT\n\n nope;", "/0.sql:3: statement 1 (\"SELECT nope\"): no such column: nope"},
        {"SELECT 'open", "/0.sql:1: statement 1"},
        {"CREATE TABLE r(a);\nCREATE TRIGGER tr BEFORE INSERT ON r BEGIN SELECT RAISE(ROLLBACK, 'not that'); END;\n"
         "INSERT INTO r VALUES (1)",
         "/0.sql:3: statement 3 (\"INSERT INTO r VALUES (1)\"): not that"},
        {"SELECT chute_setting()", "wrong number of arguments"},
        {"\n\n\xff", "/0.sql:3: expected UTF-8 text"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(run_text(f, bad[i].text, NULL), ERR_INPUT);
        assert_says(f->answer, bad[i].says);
    }
    names[0] = "/nowhere/x.sql";
    struct test_scripts *s = make_scripts(1);
    begin_scripts(f, s);
    run_until(f, &s->is_done);
    assert_int_equal(s->base.err.code, ERR_INPUT);
    assert_string_equal(s->base.err.text, "/nowhere/x.sql: can't be read: No such file or directory");
}

static void the_transaction_is_chutes(void **state)
{
    struct fixture *f = *state;
    static const char *const bad[] = {"BEGIN", "COMMIT", "END", "ROLLBACK", "BEGIN IMMEDIATE"};
    char text[128];
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        snprintf(text, sizeof text, "CREATE TABLE a(x);\n%s;\nINSERT INTO a VALUES (1);", bad[i]);
        assert_int_equal(run_text(f, text, NULL), ERR_INPUT);
        assert_says(f->answer, "/0.sql:2: statement 2 (\"");
        assert_says(f->answer, "BEGIN, COMMIT and ROLLBACK are chute's");
        assert_says(ask(f, "SELECT * FROM a"), "no such table");
    }
    assert_runs(f, "CREATE TABLE a(x); SAVEPOINT s; INSERT INTO a VALUES (1); ROLLBACK TO s; RELEASE s;");
    assert_string_equal(ask(f, "SELECT count(*) FROM a"), "0");
}

static void chutes_own_tables_are_not_for_scripts(void **state)
{
    struct fixture *f = *state;
    static const char *const bad[] = {"DELETE FROM _chute_loads", "UPDATE _CHUTE_meta SET value = 'x'",
                                      "INSERT INTO _chute_meta VALUES ('a', 'b')", "DROP TABLE _chute_loads",
                                      "ALTER TABLE _chute_loads RENAME TO mine"};
    assert_int_equal(connect_dest(f), ERR_NONE);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(run_text(f, bad[i], NULL), ERR_INPUT);
        assert_says(f->answer, "chute's own");
    }
    assert_runs(f, "CREATE TABLE seen AS SELECT * FROM _chute_meta");
    assert_string_equal(ask(f, "SELECT count(*) FROM _chute_meta"), "2");
}

static void settings_can_be_asked_for(void **state)
{
    struct fixture *f = *state;
    assert_runs(f, "CREATE TABLE s AS SELECT chute_setting('rule') AS a, chute_setting('empty') AS b, "
                   "chute_setting('none') AS c, chute_setting(NULL) AS d");
    assert_string_equal(ask(f, "SELECT * FROM s"), "it's||NULL|NULL");
}

static void what_a_script_changed_of_the_connection_ends_with_it(void **state)
{
    struct fixture *f = *state;
    assert_runs(f, "PRAGMA recursive_triggers=ON; CREATE TEMPORARY TABLE x(a); PRAGMA temp.user_version=7");
    assert_int_equal(run_text(f, "INSERT INTO x VALUES (1)", NULL), ERR_INPUT);
    assert_says(f->answer, "no such table: x");
    /* a table that a view names is renamed as people expect, which chute itself does otherwise */
    assert_runs(f, "CREATE TABLE a(x); CREATE VIEW v AS SELECT x FROM a; ALTER TABLE a RENAME TO b;");
    assert_string_equal(ask(f, "SELECT count(*) FROM v"), "0");
    /* and loads go on as before */
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    assert_loads(f, "t", "t.csv", "a\n1\n2\n", 0);
    assert_string_equal(ask(f, "SELECT count(*) FROM t"), "2");
}

static void scripts_see_what_was_loaded_and_loads_what_they_made(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a\n1\n2\n", 0);
    assert_runs(f, "CREATE TABLE n AS SELECT count(*) AS n FROM t");
    assert_string_equal(ask(f, "SELECT n FROM n"), "2");
    /* between loads that wait, not behind all of them */
    write_script(f, 0, "INSERT INTO n SELECT count(*) FROM t");
    struct test_scripts *s = make_scripts(1);
    struct test_load *a = make_load(f, "t", "t.csv", "a\n1\n2\n3\n", 0);
    begin_load(f, a);
    begin_scripts(f, s);
    run_until(f, &s->is_done);
    run_until(f, &a->is_done);
    assert_int_equal(a->base.err.code, ERR_NONE);
    assert_int_equal(s->base.err.code, ERR_NONE);
    free_load(a);
    assert_string_equal(ask(f, "SELECT count(*) FROM n"), "2");
}

static void a_lock_of_another_is_waited_for_and_then_tried_later(void **state)
{
    struct fixture *f = *state;
    assert_runs(f, "CREATE TABLE a(x)");
    ask(f, "SELECT 1");
    assert_int_equal(sqlite3_exec(f->reader, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(run_text(f, "INSERT INTO a VALUES (1)", NULL), ERR_REMOTE);
    assert_says(f->answer, "another program holds its lock");
    assert_int_equal(sqlite3_exec(f->reader, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    assert_runs(f, "INSERT INTO a VALUES (1)");
}

static void stop_ends_a_long_statement(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(connect_dest(f), ERR_NONE);
    write_script(f, 0,
                 "CREATE TABLE long(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
                 "SELECT count(*) FROM n;");
    struct test_scripts *s = make_scripts(1);
    begin_scripts(f, s);
    for (int i = 0; i < 50; i++) { /* it has begun, most likely; what must hold does so in any case */
        uv_run(&f->loop, UV_RUN_NOWAIT);
        usleep(1000);
    }
    assert_false(s->is_done);
    dest_sqlite.abort_scripts(f->dest, &s->base);
    run_until(f, &s->is_done);
    assert_int_equal(s->base.err.code, ERR_STOPPED);
    assert_says(ask(f, "SELECT * FROM long"), "no such table");
    /* one that has not begun */
    s = make_scripts(1);
    begin_scripts(f, s);
    dest_sqlite.abort_scripts(f->dest, &s->base);
    assert_false(s->is_done);
    run_until(f, &s->is_done);
    assert_int_equal(s->base.err.code, ERR_STOPPED);
}

static void a_database_that_can_not_be_opened_is_told(void **state)
{
    struct fixture *f = *state;
    close_dest(f);
    snprintf(f->db, sizeof f->db, "%s/no/w.db", f->folder);
    open_dest(f);
    assert_int_equal(run_text(f, "SELECT 1", NULL), ERR_SYSTEM);
    assert_says(f->answer, "folder does not exist");
}

static void without_memory_all_of_it_fails(void **state)
{
    struct fixture *f = *state;
    uint64_t rows = 0;
    assert_runs(f, "CREATE TABLE m(x)");
    write_script(f, 0, "INSERT INTO m VALUES (1);\nINSERT INTO m SELECT count(*) FROM m;");
    ALLOC_FAULT_SWEEP
    {
        struct test_scripts *s = make_scripts(1);
        struct err err;
        if (dest_sqlite.run_scripts(f->dest, &s->base, &err) == ERR_NONE)
            run_until(f, &s->is_done);
        long left = alloc_fault_left;
        alloc_fault_left = 0;
        if (s->base.err.code == ERR_NONE)
            rows += 2;
        else
            assert_true(alloc_fault_hit());
        char want[32];
        snprintf(want, sizeof want, "%llu", (unsigned long long)rows);
        assert_string_equal(ask(f, "SELECT count(*) FROM m"), want);
        alloc_fault_left = left;
    }
    assert_true(rows > 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_script_runs_whole),
        T(several_files_are_one_transaction),
        T(errors_say_where),
        T(the_transaction_is_chutes),
        T(chutes_own_tables_are_not_for_scripts),
        T(settings_can_be_asked_for),
        T(what_a_script_changed_of_the_connection_ends_with_it),
        T(scripts_see_what_was_loaded_and_loads_what_they_made),
        T(a_lock_of_another_is_waited_for_and_then_tried_later),
        T(stop_ends_a_long_statement),
        T(a_database_that_can_not_be_opened_is_told),
        T(without_memory_all_of_it_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
