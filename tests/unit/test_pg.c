/* test_pg.c -- connecting, asking, and what is said when it goes wrong. */
#include "pg_test.h"

#include "log.h"

#define IN_URL "s3cr3t%20pass'w%5Crd" /* PG_SERVER_PASSWORD as a URL has it */

static void a_connection_answers_what_it_is_asked(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    struct told t = query(f, "select 40 + 2 as answer, null");
    assert_ok(t);
    assert_string_equal(t.value, "42");
    assert_int_equal(t.rows, 1);
    assert_int_equal(t.columns, 2);
    assert_string_equal(t.tag, "SELECT 1");
    assert_int_equal(t.statements, 1);
    assert_false(t.maybe_done);
    assert_int_equal(pg_state(f->pg), PG_READY);
    assert_int_equal(pg_tx(f->pg), PG_TX_IDLE);
    assert_true(pg_backend_pid(f->pg) > 0);
    assert_true(pg_server_version(f->pg) >= 100000);
    assert_string_equal(pg_parameter(f->pg, "TimeZone"), "UTC");
    assert_string_equal(pg_parameter(f->pg, "client_encoding"), "UTF8");
    assert_string_equal(pg_parameter(f->pg, "application_name"), "chute");
    assert_null(pg_parameter(f->pg, "no_such_setting"));
}

/* ---- where to, and as whom --------------------------------------------------------------------------------------- */

static struct told try_with(struct fixture *f, const struct pg_options *o)
{
    open_with(f, o);
    struct told t = connect_now(f);
    assert_int_equal(pg_state(f->pg), t.err.code == ERR_NONE ? PG_READY : PG_DOWN);
    assert_int_equal(f->lost, 0); /* the callback has said it */
    close_pg(f);
    return t;
}

static struct told try_at(struct fixture *f, const char *conninfo, const char *password)
{
    struct pg_options o = options_of(f, conninfo);
    o.password = password;
    return try_with(f, &o);
}

static void assert_refused(struct told t, enum err_code code, bool retryable, const char *words)
{
    assert_says(t.err.text, words);
    assert_int_equal(t.err.code, code);
    assert_int_equal(t.err.retryable, retryable);
    assert_false(t.maybe_done);
    assert_null(strstr(t.err.text, "s3cr3t"));
    assert_null(strchr(t.err.text, '\n'));
}

static void passwords_open_the_door(void **state)
{
    struct fixture *f = *state;
    assert_ok(try_at(f, server.tcp, PG_SERVER_PASSWORD));
    assert_ok(try_at(f, text_of("postgresql://postgres:%s@127.0.0.1:%d/postgres", IN_URL, server.port), NULL));
    assert_ok(try_at(f, text_of("postgresql://postgres:wrong@127.0.0.1:%d/postgres", server.port), PG_SERVER_PASSWORD));
    struct told t = try_at(f, server.tcp, "s3cr3t but wrong");
    assert_refused(t, ERR_DENIED, false, "password authentication failed for user \"postgres\"");
    assert_string_equal(t.fault.sqlstate, "28P01");
    assert_refused(try_at(f, server.tcp, NULL), ERR_DENIED, false, "no password supplied");
    t = try_at(f, text_of("postgresql://nobody_here@127.0.0.1:%d/postgres", server.port), "s3cr3t");
    assert_refused(t, ERR_DENIED, false, "28P01"); /* the server does not tell that there is no such role */
}

static void what_the_server_has_not_is_said(void **state)
{
    struct fixture *f = *state;
    struct told t =
        try_at(f, text_of("postgresql:///nothing?host=%s&port=%d&user=postgres", server.folder, server.port), NULL);
    assert_refused(t, ERR_DENIED, false, "database \"nothing\" does not exist");
    assert_string_equal(t.fault.sqlstate, "3D000");
    t = try_at(f, text_of("%s&options=-cno_such%%3D1", server.url), NULL);
    assert_refused(t, ERR_CONFIG, false, "unrecognized configuration parameter \"no_such\"");
    assert_string_equal(t.fault.sqlstate, "42704");
}

static void a_server_that_is_not_there_may_come(void **state)
{
    struct fixture *f = *state;
    int port = pg_server_free_port();
    assert_refused(try_at(f, text_of("postgresql://u:s3cr3t@127.0.0.1:%d/db", port), NULL), ERR_REMOTE, true,
                   "Connection refused");
    assert_refused(try_at(f, text_of("postgresql://u:s3cr3t@localhost:%d/db", port), NULL), ERR_REMOTE, true,
                   text_of("localhost:%d (127.0.0.1)", port));
    assert_refused(try_at(f, "postgresql://u:s3cr3t@no-such-host.invalid/db", NULL), ERR_REMOTE, true,
                   "no-such-host.invalid: ");
    assert_refused(try_at(f, "host=/nonexistent user=u password=s3cr3t", NULL), ERR_REMOTE, true,
                   "No such file or directory");
    assert_refused(try_at(f, "host='a..b' user=u password=s3cr3t", NULL), ERR_REMOTE, true, "a..b: ");
}

static void a_server_that_is_silent_is_given_up(void **state)
{
    struct fixture *f = *state;
    struct wire w;
    wire_start(&w);
    w.paused = true;
    struct pg_options o = options_of(f, text_of("postgresql://u:s3cr3t@127.0.0.1:%d/db", w.port));
    o.connect_timeout_ms = 100;
    assert_refused(try_with(f, &o), ERR_REMOTE, true, "no answer within 100 ms");
    wire_stop(&w);
}

static void several_hosts_are_tried_in_order(void **state)
{
    struct fixture *f = *state;
    int dead = pg_server_free_port();
    const char *good =
        text_of("postgresql://postgres@no-such-host.invalid:1,127.0.0.1:%d,127.0.0.1:%d/postgres", dead, server.port);
    struct pg_options o = options_of(f, good);
    char where[200];
    o.password = PG_SERVER_PASSWORD;
    open_with(f, &o);
    pg_where(f->pg, where, sizeof where);
    assert_string_equal(where, "postgres on no-such-host.invalid:1 (one of 3)");
    struct told t = connect_now(f);
    assert_ok(t);
    pg_where(f->pg, where, sizeof where);
    assert_string_equal(where, text_of("postgres on 127.0.0.1:%d", server.port));
    close_pg(f);

    t = try_at(f, text_of("postgresql://u@no-such-host.invalid,127.0.0.1:%d/db", dead), NULL);
    assert_refused(t, ERR_REMOTE, true, "no-such-host.invalid: ");
    assert_says(t.err.text, "Connection refused"); /* all of them are told */

    /* One that refuses us is the answer: the next would do the same. */
    t = try_at(f, text_of("postgresql://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres", server.port, dead),
               "s3cr3t wrong");
    assert_refused(t, ERR_DENIED, false, "28P01");
    /* A silent one costs its own time only. */
    struct wire w;
    wire_start(&w);
    w.paused = true;
    o = options_of(f, text_of("postgresql://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres", w.port, server.port));
    o.password = PG_SERVER_PASSWORD;
    o.connect_timeout_ms = 2000;
    assert_ok(try_with(f, &o));
    wire_stop(&w);
}

static void addresses_need_no_resolver(void **state)
{
    struct fixture *f = *state;
    const char *conninfo = text_of("host=no-such-host.invalid hostaddr=127.0.0.1 port=%d user=postgres", server.port);
    assert_ok(try_at(f, conninfo, PG_SERVER_PASSWORD));
    assert_ok(try_at(f, text_of("hostaddr=127.0.0.1 port=%d user=postgres", server.port), PG_SERVER_PASSWORD));
}

static void the_kind_of_session_is_respected(void **state)
{
    struct fixture *f = *state;
    assert_ok(try_at(f, text_of("%s&target_session_attrs=read-write", server.url), NULL));
    assert_ok(try_at(f, text_of("%s&target_session_attrs=primary", server.url), NULL));
    assert_ok(try_at(f, text_of("%s&target_session_attrs=prefer-standby", server.url), NULL));
    assert_refused(try_at(f, text_of("%s&target_session_attrs=standby", server.url), NULL), ERR_REMOTE, true,
                   "server is not in hot standby mode");
    assert_refused(try_at(f, text_of("%s&target_session_attrs=best", server.url), NULL), ERR_CONFIG, false,
                   "invalid target_session_attrs value: \"best\"");
}

static void write_home(const char *name, const char *text)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", server.folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0600), 0);
    setenv(strcmp(name, "pgpass") == 0 ? "PGPASSFILE" : "PGSERVICEFILE", path, 1);
}

static void the_environment_fills_what_is_left_out(void **state)
{
    struct fixture *f = *state;
    setenv("PGHOST", "localhost", 1);
    setenv("PGPORT", text_of("%d", server.port), 1);
    setenv("PGUSER", "postgres", 1);
    setenv("PGDATABASE", "template1", 1);
    setenv("PGPASSWORD", PG_SERVER_PASSWORD, 1);
    setenv("PGAPPNAME", "by environment", 1);
    connect_at(f, "");
    assert_string_equal(query(f, "select current_database()").value, "template1");
    assert_string_equal(pg_parameter(f->pg, "application_name"), "by environment");
    close_pg(f);
    unsetenv("PGPASSWORD");
    write_home("pgpass", "localhost:*:*:postgres:s3cr3t pass'w\\\\rd\n"); /* by the name, not by the address */
    assert_ok(try_at(f, "", NULL));
    static const char *const names[] = {"PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGAPPNAME"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unsetenv(names[i]);
    write_home("services", text_of("[warehouse]\nhost=127.0.0.1\nport=%d\nuser=postgres\ndbname=template1\n"
                                   "password=" PG_SERVER_PASSWORD "\n",
                                   server.port));
    struct pg_options o = options_of(f, "service=warehouse application_name=both");
    o.application_name = "ours";
    open_with(f, &o);
    assert_ok(connect_now(f));
    assert_string_equal(query(f, "select current_database()").value, "template1");
    assert_string_equal(pg_parameter(f->pg, "application_name"), "ours");
    close_pg(f);
    setenv("PGPASSFILE", "/nonexistent", 1);
    setenv("PGSERVICEFILE", "/nonexistent", 1);
}

/* ---- configurations that can't be -------------------------------------------------------------------------------- */

static void texts_that_are_no_target_are_refused_at_once(void **state)
{
    static const struct {
        const char *conninfo, *words;
    } cases[] = {
        {"s3cr3t", "no connection string"},
        {"postgresql://u:s3cr3t@h/db?no_such=s3cr3t", "no connection parameter 'no_such'"},
        {"host=h no_such=s3cr3t", "no connection parameter 'no_such'"},
        {"host=h password='s3cr3t", "no connection string"},
        {"host=h password=mine s3cr3t", "no connection string"},
        {"postgresql://u:mine@s3cr3t@h/db", "%40"},
        {"postgresql://u:99/s3cr3t@h/db", NULL}, /* to libpq: host u, port 99, database s3cr3t@h */
        {"postgresql://u:a/s3cr3t@h/db", "%2F"},
        {"host=h sslmode=sometimes", "invalid sslmode value: \"sometimes\""},
        {"host=h gssencmode=sometimes", "invalid gssencmode value: \"sometimes\""},
        {"host=a,b hostaddr=1.2.3.4", "could not match"},
        {"host=a,,b", "number 2 of 3"},
        {"host=a port=1,2", "could not match"},
        {"host=h replication=database", "replication"},
        {"host=h client_encoding=LATIN1", "client_encoding"},
        {"host=h connect_timeout=soon", "'soon'"},
        {"service=no_such_service", "service file \"/nonexistent\" not found"},
    };
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pg_options o = options_of(f, cases[i].conninfo);
        struct err err, checked;
        struct pg *pg = NULL;
        enum err_code code = pg_open(&f->loop, &o, &pg, &err);
        assert_int_equal(pg_check(&o, &checked), code);
        if (cases[i].words == NULL) {
            assert_int_equal(code, ERR_NONE);
            f->pg = pg;
            close_pg(f);
            continue;
        }
        assert_int_equal(code, ERR_CONFIG);
        assert_null(pg);
        assert_false(err.retryable);
        assert_says(err.text, cases[i].words);
        assert_string_equal(err.text, checked.text);
        assert_null(strstr(err.text, "s3cr3t"));
    }
}

static void passwords_of_the_text_are_secrets(void **state)
{
    struct fixture *f = *state;
    char line[] = "it is xyzzy-in-url, or xyzzy-own, or xyzzy-key";
    struct pg_options o = options_of(f, "postgresql://u:xyzzy-in-url@h/db?sslpassword=xyzzy-key");
    struct err err;
    o.password = "xyzzy-own";
    assert_int_equal(pg_check(&o, &err), ERR_NONE);
    log_redact(line);
    assert_string_equal(line, "it is ***, or ***, or ***");
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

struct heard {
    unsigned results, rows;
    char text[400];
};

static void on_result(void *arg, const struct pg_result *result)
{
    struct heard *h = arg;
    size_t used = strlen(h->text);
    h->results++;
    h->rows += (unsigned)pg_rows(result);
    const char *value = pg_value(result, 0, 0);
    snprintf(h->text + used, sizeof h->text - used, "[%s %s]", pg_tag(result), value != NULL ? value : "-");
}

static struct heard said;
static struct told said_done;
static void on_said(void *arg, const struct pg_answer *answer)
{
    (void)arg;
    on_told(&said_done, answer);
}

static struct told ask(struct fixture *f, struct pg_request r)
{
    memset(&said, 0, sizeof said);
    memset(&said_done, 0, sizeof said_done);
    r.arg = &said;
    r.done = on_said;
    start_request(f, &r);
    run_until_count(f, &said_done.times, 1);
    return said_done;
}

static void every_statement_of_a_request_has_a_result(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    struct told t = ask(f, (struct pg_request){.sql = "create temp table t (a int); insert into t values (1), (2); "
                                                      "select a from t order by a; update t set a = 9",
                                               .on_result = on_result});
    assert_ok(t);
    assert_string_equal(said.text, "[CREATE TABLE -][INSERT 0 2 -][SELECT 2 1][UPDATE 2 -]");
    assert_int_equal(t.statements, 4);
    assert_false(t.has_result);
    t = query(f, "select 1; insert into t values (3)");
    assert_string_equal(t.tag, "INSERT 0 1");
    assert_int_equal(t.affected, 1);
    t = query(f, "");
    assert_ok(t);
    assert_int_equal(t.statements, 0);
    t = query(f, "/* nothing */;;");
    assert_ok(t);
}

static void rows_can_come_one_by_one(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    struct told t = ask(f, (struct pg_request){.sql = "select generate_series(1, 3); select 7 where false; select 'x'",
                                               .one_by_one = true,
                                               .on_result = on_result});
    assert_ok(t);
    assert_int_equal(said.results, 4);
    assert_string_equal(said.text, "[ 1][ 2][ 3][ x]");
    assert_int_equal(t.statements, 3);
    t = ask(f, (struct pg_request){.sql = "select 10 / (3 - g) from generate_series(1, 5) g",
                                   .one_by_one = true,
                                   .on_result = on_result});
    assert_string_equal(t.fault.sqlstate, "22012");
    assert_int_equal(said.results, 2); /* those before it had come */
    assert_int_equal(t.statements, 0);
}

static void parameters_are_values_only(void **state)
{
    struct fixture *f = *state;
    char first[] = "it's \"$2\"", *params[] = {first, NULL, "7"};
    connect_at(f, server.url);
    struct told t = {.times = 0};
    const struct pg_request r = {.sql = "select $1::int, $2::int, $3::int",
                                 .params = (const char *const *)params,
                                 .param_count = 3,
                                 .done = on_told,
                                 .arg = &t};
    const struct pg_request r2 = {.sql = "select concat($1::text, coalesce($2::text, '<null>'), $3::int + 1)",
                                  .params = (const char *const *)params,
                                  .param_count = 3,
                                  .done = on_told,
                                  .arg = &t};
    start_request(f, &r);
    memset(first, 'X', 3); /* copied: what becomes of ours is no matter */
    run_until_count(f, &t.times, 1);
    assert_string_equal(t.fault.sqlstate, "22P02"); /* no number */
    start_request(f, &r2);
    run_until_count(f, &t.times, 2);
    assert_ok(t);
    assert_string_equal(t.value, "XXXs \"$2\"<null>8");
}

static void values_that_are_not_there_are_null(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    struct told t = query(f, "select null, ''");
    assert_string_equal(t.value, "NULL");
    t = query(f, "select '' where false");
    assert_int_equal(t.rows, 0);
    assert_string_equal(t.value, "NULL");
}

static void on_cells(void *arg, const struct pg_answer *a)
{
    struct told *t = arg;
    const struct pg_result *r = a->result;
    assert_string_equal(pg_column_name(r, 0), "a");
    assert_string_equal(pg_column_name(r, 1), "ü");
    assert_null(pg_column_name(r, 2));
    assert_string_equal(pg_value(r, 1, 0), "y");
    assert_int_equal(pg_value_size(r, 0, 0), 3);
    assert_null(pg_value(r, 0, 1));
    assert_int_equal(pg_value_size(r, 0, 1), 0);
    assert_null(pg_value(r, 2, 0));
    assert_null(pg_value(r, 0, 2));
    assert_int_equal(pg_value_size(r, 9, 9), 0);
    assert_int_equal(pg_affected(r), 2);
    t->times++;
}

static void cells_are_found_by_row_and_column(void **state)
{
    struct fixture *f = *state;
    struct told t = {.times = 0};
    connect_at(f, server.url);
    const struct pg_request r = {
        .sql = "select * from (values ('abc', null), ('y', 'z')) as v (a, \"ü\")", .done = on_cells, .arg = &t};
    start_request(f, &r);
    run_until_count(f, &t.times, 1);
}

static void requests_run_in_order_and_fail_alone(void **state)
{
    struct fixture *f = *state;
    struct told t[4];
    connect_at(f, server.url);
    start(f, "create temp table t (a int primary key)", &t[0]);
    start(f, "insert into t values (1), (1)", &t[1]);
    start(f, "insert into t values (2)", &t[2]);
    start(f, "select count(*) from t", &t[3]);
    assert_int_equal(pg_state(f->pg), PG_BUSY);
    run_until_count(f, &t[3].times, 1);
    for (int i = 0; i < 4; i++)
        assert_int_equal(t[i].times, 1);
    assert_string_equal(t[1].fault.sqlstate, "23505");
    assert_ok(t[2]);
    assert_string_equal(t[3].value, "1");
}

static void an_error_has_all_that_the_server_said(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    struct told t = query(f, "create temp table t (a int constraint positive check (a > 0), b text not null); insert "
                             "into t values (1, 'x'); "
                             "insert into t values (-1, 'y'); insert into t values (2, 'z')");
    assert_int_equal(t.err.code, ERR_INPUT);
    assert_false(t.err.retryable);
    assert_string_equal(t.fault.sqlstate, "23514");
    assert_string_equal(t.constraint, "positive");
    assert_string_equal(t.table, "t");
    assert_says(t.message, "violates check constraint \"positive\"");
    assert_says(t.detail, "Failing row contains (-1, y)");
    assert_says(t.err.text, "(SQLSTATE 23514)");
    assert_says(t.err.text, "Failing row contains");
    assert_int_equal(t.statements, 2); /* so the third it was */
    assert_false(t.maybe_done);
    assert_int_equal(pg_tx(f->pg), PG_TX_IDLE); /* they were one transaction */
    assert_string_equal(query(f, "select count(*) from pg_class where relname = 't'").value, "0");
    t = query(f, "select 1 from nowhere");
    assert_int_equal(t.err.code, ERR_REMOTE);
    assert_false(t.err.retryable);
    assert_string_equal(t.fault.sqlstate, "42P01");
    assert_int_equal(t.fault.position, 15);
    t = query(f, "create temp table u (a text not null); insert into u values (null)");
    assert_string_equal(t.column, "a");
    t = query(f, "do $$ begin execute 'select 1 +'; end $$");
    assert_string_equal(t.fault.sqlstate, "42601");
    assert_int_equal(t.fault.internal_position, 11);
    assert_says(t.context, "PL/pgSQL");
}

static void the_state_of_the_transaction_is_known(void **state)
{
    struct fixture *f = *state;
    struct told t;
    assert_int_equal(pg_tx((connect_at(f, server.url), f->pg)), PG_TX_IDLE);
    assert_ok(query(f, "begin"));
    assert_int_equal(pg_tx(f->pg), PG_TX_OPEN);
    t = query(f, "select 1/0");
    assert_string_equal(t.fault.sqlstate, "22012");
    assert_int_equal(pg_tx(f->pg), PG_TX_ABORTED);
    t = query(f, "select 1");
    assert_string_equal(t.fault.sqlstate, "25P02");
    t = query(f, "commit");
    assert_ok(t);
    assert_string_equal(t.tag, "ROLLBACK");
    assert_int_equal(pg_tx(f->pg), PG_TX_IDLE);
}

static void notices_are_passed_on(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    assert_ok(query(f, "do $$ begin raise warning 'mind the %', 'gap'; end $$"));
    assert_int_equal(f->notices, 1);
    assert_string_equal(f->severity, "WARNING");
    assert_string_equal(f->notice, "mind the gap");
    assert_ok(query(f, "listen news; notify news, 'heard by nobody'"));
    assert_ok(query(f, "select 1"));
}

static void warnings_of_the_login_are_passed_on(void **state)
{
    struct fixture *f = *state;
    assert_ok(elsewhere("create role odd login superuser; alter role odd set work_mem = '1MB'; "
                        "update pg_db_role_setting set setconfig = '{work_mem=lots}'"));
    char text[300];
    snprintf(text, sizeof text, "host=%s port=%d user=odd dbname=postgres", server.folder, server.port);
    connect_at(f, text);
    assert_int_equal(f->notices, 1);
    assert_string_equal(f->severity, "WARNING");
    assert_says(f->notice, "invalid value for parameter \"work_mem\": \"lots\"");
    assert_ok(query(f, "select 1"));
    assert_int_equal(f->notices, 1);
}

static void close_in_notice(void *arg, const char *severity, const struct pg_fault *notice)
{
    struct fixture *f = arg;
    on_heard(arg, severity, notice);
    pg_close(f->pg, on_fixture_closed, f);
}

static void a_warning_of_the_login_may_be_enough(void **state)
{
    struct fixture *f = *state;
    struct told t = {.times = 0};
    char text[300];
    snprintf(text, sizeof text, "host=%s port=%d user=odd dbname=postgres", server.folder, server.port);
    struct pg_options o = options_of(f, text);
    o.on_notice = close_in_notice;
    open_with(f, &o);
    pg_connect(f->pg, on_told, &t);
    run_until(f, &f->is_closed);
    f->pg = NULL;
    assert_int_equal(f->notices, 1);
    assert_int_equal(t.times, 1);
    assert_true(t.err.code == ERR_STOPPED || t.err.code == ERR_NONE);
}

static void too_many_are_too_many_for_now(void **state)
{
    struct fixture *f = *state;
    assert_ok(elsewhere("create role few login connection limit 0"));
    struct told t = try_at(f, text_of("host=%s port=%d user=few dbname=postgres", server.folder, server.port), NULL);
    assert_refused(t, ERR_REMOTE, true, "too many connections for role \"few\" (SQLSTATE 53300)");
    assert_ok(elsewhere("create role outside login"));
    assert_ok(elsewhere("create database closed"));
    assert_ok(elsewhere("revoke connect on database closed from public"));
    t = try_at(f, text_of("host=%s port=%d user=outside dbname=closed", server.folder, server.port), NULL);
    assert_refused(t, ERR_DENIED, false, "permission denied for database \"closed\" (SQLSTATE 42501)");
}

static void quoted_names_and_texts_stay_what_they_are(void **state)
{
    static const char *const texts[] = {"",      "a",    "it's", "\\", "\\'; drop table t; --", "a\"b", "'", "''",
                                        "ü\n\t", "E'x'", "$1",   NULL};
    struct fixture *f = *state;
    struct buf sql;
    buf_init(&sql);
    connect_at(f, server.url);
    for (int conforming = 0; conforming < 2; conforming++) {
        assert_ok(
            query(f, conforming ? "set standard_conforming_strings = on" : "set standard_conforming_strings = off"));
        for (size_t i = 0; texts[i] != NULL; i++) {
            buf_clear(&sql);
            buf_adds(&sql, "select");
            buf_addc(&sql, ' ');
            pg_add_text(&sql, texts[i]);
            struct told t = query(f, sql.data);
            assert_ok(t);
            assert_string_equal(t.value, texts[i]);
            if (texts[i][0] == '\0')
                continue;
            buf_clear(&sql);
            buf_adds(&sql, "select attname from pg_attribute a, (select 1 as ");
            pg_add_name(&sql, texts[i]);
            buf_adds(&sql, ") x (");
            pg_add_name(&sql, texts[i]);
            buf_adds(&sql, ") where x.");
            pg_add_name(&sql, texts[i]);
            buf_adds(&sql, " = 1 limit 1");
            assert_ok(query(f, sql.data));
        }
    }
    buf_done(&sql);
}

static void copies_that_have_no_other_end_fail(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    assert_ok(query(f, "create temp table t (a int)"));
    struct told t = query(f, "copy t from stdin");
    assert_int_equal(t.err.code, ERR_INPUT);
    assert_says(t.err.text, "FROM STDIN");
    t = query(f, "copy (select generate_series(1, 100000)) to stdout");
    assert_int_equal(t.err.code, ERR_INPUT);
    assert_says(t.err.text, "TO STDOUT");
    t = query(f, "begin; copy t to stdout; copy t from stdin; select 1");
    assert_int_equal(t.err.code, ERR_INPUT);
    t = query(f, "rollback");
    assert_ok(t);
    t = query(f, "select count(*) from t");
    assert_string_equal(t.value, "0"); /* and the connection is whole */
}

/* ---- idle, lost, closed ------------------------------------------------------------------------------------------ */

static void an_idle_connection_keeps_no_loop_alive(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    assert_ok(query(f, "select 1"));
    run_for(f, 1);
    assert_false(uv_loop_alive(&f->loop));
    assert_int_equal(uv_run(&f->loop, UV_RUN_DEFAULT), 0);
}

static void a_session_that_the_server_ends_is_told(void **state)
{
    struct fixture *f = *state;
    connect_at(f, server.url);
    int pid = pg_backend_pid(f->pg);
    assert_ok(elsewhere(text_of("select pg_terminate_backend(%d)", pid)));
    run_until_count(f, &f->lost, 1);
    assert_int_equal(f->lost_err.code, ERR_REMOTE);
    assert_true(f->lost_err.retryable);
    assert_says(f->lost_err.text, "terminating connection due to administrator command (SQLSTATE 57P01)");
    assert_int_equal(pg_state(f->pg), PG_DOWN);
    assert_int_equal(pg_tx(f->pg), PG_TX_UNKNOWN);
    assert_int_equal(pg_backend_pid(f->pg), 0);
    assert_int_equal(pg_server_version(f->pg), 0);
    assert_null(pg_parameter(f->pg, "TimeZone"));
    struct told t = connect_now(f); /* and again */
    assert_ok(t);
    assert_string_equal(query(f, "select 1").value, "1");
    assert_int_equal(f->lost, 1);
}

static void a_session_that_ends_while_it_works_is_an_answer(void **state)
{
    struct fixture *f = *state;
    struct told running, queued;
    connect_at(f, server.url);
    start(f, "select pg_sleep(1000)", &running);
    start(f, "select 1", &queued);
    wait_for_answer(text_of("select count(*) from pg_stat_activity where pid = %d and wait_event = 'PgSleep'",
                            (run_for(f, 1), pg_backend_pid(f->pg))),
                    "1");
    assert_ok(elsewhere(text_of("select pg_terminate_backend(%d)", pg_backend_pid(f->pg))));
    run_until_count(f, &queued.times, 1);
    assert_int_equal(running.times, 1);
    assert_string_equal(running.fault.sqlstate, "57P01");
    assert_int_equal(running.err.code, ERR_REMOTE);
    assert_true(running.err.retryable);
    assert_true(running.maybe_done);
    assert_int_equal(queued.err.code, ERR_REMOTE);
    assert_true(queued.err.retryable);
    assert_false(queued.maybe_done);
    assert_int_equal(f->lost, 0); /* somebody has heard it already */
    assert_int_equal(pg_state(f->pg), PG_DOWN);
}

static void without_a_connection_nothing_begins(void **state)
{
    struct fixture *f = *state;
    const struct pg_request r = {.sql = "select 1"};
    struct err err;
    struct told t = {.times = 0};
    open_at(f, server.url);
    assert_int_equal(pg_state(f->pg), PG_DOWN);
    assert_int_equal(pg_start(f->pg, &r, &err), ERR_REMOTE);
    assert_true(err.retryable);
    pg_cancel(f->pg);
    pg_resume(f->pg);
    assert_ok(connect_now(f));
    pg_connect(f->pg, on_told, &t);
    run_until_count(f, &t.times, 1);
    assert_int_equal(t.err.code, ERR_CONFIG);
    assert_int_equal(pg_state(f->pg), PG_READY);
    pg_close(f->pg, on_fixture_closed, f);
    assert_int_equal(pg_state(f->pg), PG_CLOSING);
    assert_int_equal(pg_start(f->pg, &r, &err), ERR_STOPPED);
    pg_connect(f->pg, on_told, &t);
    run_until(f, &f->is_closed);
    assert_int_equal(t.times, 2);
    assert_int_equal(t.err.code, ERR_STOPPED);
    f->pg = NULL;
}

static void silence_ends_a_connection(void **state)
{
    struct fixture *f = *state;
    struct told t[2];
    struct pg_options o = options_of(f, server.url);
    o.stall_timeout_ms = 50;
    open_with(f, &o);
    assert_ok(connect_now(f));
    start(f, "select pg_sleep(1000)", &t[0]);
    start(f, "select 1", &t[1]);
    run_until_count(f, &t[1].times, 1);
    assert_int_equal(t[0].err.code, ERR_REMOTE);
    assert_true(t[0].err.retryable);
    assert_true(t[0].maybe_done);
    assert_says(t[0].err.text, "no byte came or went for 50 ms");
    assert_int_equal(pg_state(f->pg), PG_DOWN);
    assert_ok(connect_now(f));
    const struct pg_request patient = {
        .sql = "select pg_sleep(0.3)", .stall_timeout_ms = UINT64_MAX, .done = on_told, .arg = &t[0]};
    start_request(f, &patient);
    run_until_count(f, &t[0].times, 2);
    assert_ok(t[0]);
}

static void states_are_told_apart(void **state)
{
    static const struct {
        const char *sqlstate;
        enum err_code code;
        bool retryable;
    } cases[] = {
        {"", ERR_REMOTE, true},       {"08006", ERR_REMOTE, true},  {"40001", ERR_REMOTE, true},
        {"40P01", ERR_REMOTE, true},  {"53100", ERR_REMOTE, true},  {"53300", ERR_REMOTE, true},
        {"55P03", ERR_REMOTE, true},  {"55006", ERR_REMOTE, true},  {"57014", ERR_REMOTE, true},
        {"57P01", ERR_REMOTE, true},  {"57P03", ERR_REMOTE, true},  {"58030", ERR_REMOTE, true},
        {"25P03", ERR_REMOTE, true},  {"28P01", ERR_DENIED, false}, {"28000", ERR_DENIED, false},
        {"42501", ERR_DENIED, false}, {"3D000", ERR_DENIED, false}, {"25006", ERR_DENIED, false},
        {"22P02", ERR_INPUT, false},  {"23505", ERR_INPUT, false},  {"42P01", ERR_REMOTE, false},
        {"42601", ERR_REMOTE, false}, {"25P02", ERR_REMOTE, false}, {"XX000", ERR_REMOTE, false},
        {"55000", ERR_REMOTE, false}, {"P0001", ERR_REMOTE, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool retryable = !cases[i].retryable;
        assert_int_equal(pg_classify(cases[i].sqlstate, &retryable), cases[i].code);
        assert_int_equal(retryable, cases[i].retryable);
    }
}

static void versions_are_told(void **state)
{
    char text[200];
    (void)state;
    pg_libraries(text, sizeof text);
    assert_says(text, "libpq 1");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_connection_answers_what_it_is_asked),
        TEST(passwords_open_the_door),
        TEST(what_the_server_has_not_is_said),
        TEST(a_server_that_is_not_there_may_come),
        TEST(a_server_that_is_silent_is_given_up),
        TEST(several_hosts_are_tried_in_order),
        TEST(addresses_need_no_resolver),
        TEST(the_kind_of_session_is_respected),
        TEST(the_environment_fills_what_is_left_out),
        TEST(texts_that_are_no_target_are_refused_at_once),
        TEST(passwords_of_the_text_are_secrets),
        TEST(every_statement_of_a_request_has_a_result),
        TEST(rows_can_come_one_by_one),
        TEST(parameters_are_values_only),
        TEST(values_that_are_not_there_are_null),
        TEST(cells_are_found_by_row_and_column),
        TEST(requests_run_in_order_and_fail_alone),
        TEST(an_error_has_all_that_the_server_said),
        TEST(the_state_of_the_transaction_is_known),
        TEST(notices_are_passed_on),
        TEST(warnings_of_the_login_are_passed_on),
        TEST(a_warning_of_the_login_may_be_enough),
        TEST(too_many_are_too_many_for_now),
        TEST(quoted_names_and_texts_stay_what_they_are),
        TEST(copies_that_have_no_other_end_fail),
        TEST(an_idle_connection_keeps_no_loop_alive),
        TEST(a_session_that_the_server_ends_is_told),
        TEST(a_session_that_ends_while_it_works_is_an_answer),
        TEST(without_a_connection_nothing_begins),
        TEST(silence_ends_a_connection),
        TEST(states_are_told_apart),
        TEST(versions_are_told),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
