/* test_pg_ends.c -- whatever ends in the middle: the wire, the server, the memory, our patience. Each callback comes
 * once. */
#include "pg_test.h"

#include "alloc_fault.h"

/* ---- a short life ------------------------------------------------------------------------------------------------ */

/* Connect, make a table, COPY into it, insert a row that stays, ask. */
struct life {
    struct told connected, told[5];
    unsigned begun, copied;
    bool is_open;
    int id;
};

static ssize_t read_three(void *arg, const char **ret_data, struct err *err)
{
    struct life *l = arg;
    (void)err;
    assert_int_equal(l->told[1].times, 0);
    *ret_data = "1\tone\n";
    return l->copied++ < 3 ? 6 : 0;
}

static void on_copied(void *arg, const struct pg_answer *a)
{
    struct life *l = arg;
    on_told(&l->told[1], a);
}

/* false: it was refused, and done() never comes. */
static bool begin_one(struct fixture *f, struct life *l, const struct pg_request *r)
{
    struct err err;
    if (pg_start(f->pg, r, &err) != ERR_NONE) {
        assert_true(err.code == ERR_SYSTEM || err.code == ERR_REMOTE || err.code == ERR_STOPPED);
        return false;
    }
    l->begun |= 1u << (r->arg == l ? 1 : (unsigned)((struct told *)r->arg - l->told));
    return true;
}

static void begin_requests(struct fixture *f, struct life *l)
{
    const char *insert = text_of("insert into kept values (%d)", l->id);
    const struct pg_request r[] = {
        {.sql = "begin; create temp table t (a int, b text)", .done = on_told, .arg = &l->told[0]},
        {.sql = "copy t from stdin", .read = read_three, .done = on_copied, .arg = l},
        {.sql = "commit", .done = on_told, .arg = &l->told[2]},
        {.sql = insert, .done = on_told, .arg = &l->told[3]},
        {.sql = "select count(*) from t", .done = on_told, .arg = &l->told[4]},
    };
    for (size_t i = 0; i < sizeof r / sizeof r[0]; i++)
        begin_one(f, l, &r[i]);
}

struct living {
    struct fixture *f;
    struct life *l;
};
static void on_connected(void *arg, const struct pg_answer *a)
{
    struct living *both = arg;
    on_told(&both->l->connected, a);
    if (a->err.code == ERR_NONE) {
        both->l->is_open = true;
        begin_requests(both->f, both->l);
    }
}

static bool is_over(const struct life *l)
{
    if (l->connected.times == 0)
        return false;
    for (unsigned i = 0; i < 5; i++)
        if ((l->begun & 1u << i) != 0 && l->told[i].times == 0)
            return false;
    return true;
}

static void assert_once(const struct life *l)
{
    assert_int_equal(l->connected.times, 1);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(l->told[i].times, (l->begun & 1u << i) != 0);
}

static void run_until_over(struct fixture *f, const struct life *l)
{
    uv_timer_start(&f->patience, on_impatient, PATIENCE_MS, 0);
    while (!is_over(l))
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_timer_stop(&f->patience);
}

/* The whole life at CONNINFO, in a fixture of its own. */
static void live(struct life *l, const char *conninfo)
{
    struct fixture f;
    struct living both = {&f, l};
    struct pg_options o = options_of(&f, conninfo);
    fixture_init(&f);
    o.password = PG_SERVER_PASSWORD;
    open_with(&f, &o);
    pg_connect(f.pg, on_connected, &both);
    run_until_over(&f, l);
    fixture_done(&f);
    assert_once(l);
    assert_true(f.lost <= 1);
}

static int next_id;
static bool expected[100000];   /* has been said to be in the table */
static bool is_unknown[100000]; /* nobody knows */

static struct life new_life(void)
{
    assert_true(next_id < 99999);
    return (struct life){.id = ++next_id};
}

static void note(const struct life *l)
{
    expected[l->id] = l->told[3].times == 1 && l->told[3].err.code == ERR_NONE;
    is_unknown[l->id] = l->told[3].maybe_done;
}

/* What was said about every row is true. */
static void assert_kept(void)
{
    struct fixture f;
    fixture_init(&f);
    connect_at(&f, server.url);
    unsigned known = 0;
    for (int id = 1; id <= next_id; id++) {
        if (is_unknown[id])
            continue;
        known++;
        struct told t = query(&f, text_of("select count(*) from kept where id = %d", id));
        if (strcmp(t.value, expected[id] ? "1" : "0") != 0)
            fail_msg("row %d: said %d, found %s", id, expected[id], t.value);
    }
    assert_true(known > 0);
    fixture_done(&f);
}

/* ---- the wire ---------------------------------------------------------------------------------------------------- */

static void assert_network(const struct told *t)
{
    if (t->times == 0 || t->err.code == ERR_NONE)
        return;
    if (t->err.code != ERR_REMOTE || !t->err.retryable)
        fail_msg("code %d, retryable %d: %s", (int)t->err.code, (int)t->err.retryable, t->err.text);
    assert_true(strlen(t->err.text) > 10);
}

static void sweep_cuts(const char *how, bool cuts_hard, long long step)
{
    struct wire w;
    struct life whole = new_life();
    wire_start(&w);
    char conninfo[200];
    snprintf(conninfo, sizeof conninfo, "host=127.0.0.1 port=%d user=postgres dbname=postgres %s", w.port, how);
    w.cuts_hard = cuts_hard;
    live(&whole, conninfo);
    note(&whole);
    assert_ok(whole.told[4]);
    assert_string_equal(whole.told[4].value, "3");
    long long all[2] = {w.passed[TO_SERVER], w.passed[TO_CLIENT]};
    assert_true(all[TO_SERVER] > 300 && all[TO_CLIENT] > 300);
    for (int direction = 0; direction < 2; direction++) {
        unsigned failed = 0;
        for (long long n = 0; n < all[direction]; n += step) {
            struct life l = new_life();
            w.allowed[direction] = n;
            live(&l, conninfo);
            note(&l);
            assert_network(&l.connected);
            for (int i = 0; i < 5; i++)
                assert_network(&l.told[i]);
            failed += l.told[4].times == 0 || l.told[4].err.code != ERR_NONE;
            w.allowed[direction] = -1;
        }
        assert_true(failed > 10);
    }
    wire_stop(&w);
}

static void a_wire_may_be_cut_after_any_byte(void **state)
{
    (void)state;
    sweep_cuts("sslmode=disable", false, 5);
}

static void a_connection_may_be_reset_after_any_byte(void **state)
{
    (void)state;
    sweep_cuts("sslmode=disable", true, 7);
}

static void tls_may_be_cut_after_any_byte(void **state)
{
    (void)state;
    sweep_cuts("sslmode=require", false, 37);
    sweep_cuts("sslmode=require", true, 41);
}

static ssize_t read_for_ever(void *arg, const char **ret_data, struct err *err)
{
    static char rows[6 * 1000 + 1];
    struct told *t = arg;
    (void)err;
    assert_int_equal(t->times, 0);
    for (size_t i = 0; i < 1000; i++)
        memcpy(rows + 6 * i, "1\tone\n", 6);
    *ret_data = rows;
    return sizeof rows - 1;
}

/* What came after the socket was asked: only libpq can see it. */
static atomic_bool hides_input;
int __real_poll(struct pollfd *fds, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    int n = __real_poll(fds, count, timeout);
    if (hides_input && count == 1 && fds->events == (POLLIN | POLLOUT)) /* pg_request.c's */
        fds->revents &= POLLOUT;
    return n;
}

/* While libpq sends, it may find out by itself, and close the socket under our handle. */
static void a_copy_in_full_flow_may_be_cut(void **state)
{
    struct wire w;
    (void)state;
    for (int round = 0; round < 24; round++) {
        struct fixture f;
        struct told t = {.times = 0}, queued;
        const struct pg_request r = {.sql = "create temp table t (a int, b text); copy t from stdin",
                                     .read = read_for_ever,
                                     .done = on_told,
                                     .arg = &t};
        wire_start(&w);
        w.cuts_hard = round % 2;
        hides_input = round % 8 < 4;
        struct pg_options o = options_of(&f, text_of("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=%s",
                                                     w.port, round % 4 < 2 ? "disable" : "require"));
        o.password = PG_SERVER_PASSWORD;
        fixture_init(&f);
        open_with(&f, &o);
        assert_ok(connect_now(&f));
        w.allowed[TO_SERVER] = 100000 + 333333 * round;
        start_request(&f, &r);
        start(&f, "select 1", &queued);
        run_until_count(&f, &queued.times, 1);
        assert_int_equal(t.times, 1);
        assert_network(&t);
        assert_int_not_equal(t.err.code, ERR_NONE);
        assert_network(&queued);
        assert_int_equal(f.lost, 0);
        fixture_done(&f);
        wire_stop(&w);
    }
    hides_input = false;
}

static void a_backend_that_crashes_in_full_flow_is_told(void **state)
{
    struct fixture *f = *state;
    for (int round = 0; round < 3; round++) {
        struct told t = {.times = 0};
        const struct pg_request r = {.sql = "create temp table t (a int, b text); copy t from stdin",
                                     .read = read_for_ever,
                                     .done = on_told,
                                     .arg = &t};
        do { /* the server starts anew after a crash */
            if (f->pg != NULL)
                close_pg(f);
            open_at(f, server.url);
        } while (connect_now(f).err.code != ERR_NONE);
        start_request(f, &r);
        run_for(f, 30);
        if (pg_backend_pid(f->pg) > 0) /* else the last crash has taken this one with it */
            kill(pg_backend_pid(f->pg), SIGKILL);
        run_until_count(f, &t.times, 1);
        assert_network(&t);
        assert_int_not_equal(t.err.code, ERR_NONE);
        assert_int_equal(pg_state(f->pg), PG_DOWN);
    }
    close_pg(f);
    for (;;) {
        open_at(f, server.url);
        if (connect_now(f).err.code == ERR_NONE)
            break;
        close_pg(f);
    }
}

/* ---- silence ----------------------------------------------------------------------------------------------------- */

static void silence_may_begin_after_any_byte(void **state)
{
    struct wire w;
    (void)state;
    for (int direction = 0; direction < 2; direction++) {
        for (long long n = 0; n < 1500; n += 53) {
            struct fixture f;
            struct life l = new_life();
            struct living both = {&f, &l};
            wire_start(&w);
            w.hangs = true;
            w.allowed[direction] = n;
            struct pg_options o =
                options_of(&f, text_of("host=127.0.0.1 port=%d user=postgres dbname=postgres", w.port));
            o.password = PG_SERVER_PASSWORD;
            o.connect_timeout_ms = 60;
            o.stall_timeout_ms = 40;
            o.cancel_timeout_ms = 40;
            fixture_init(&f);
            open_with(&f, &o);
            pg_connect(f.pg, on_connected, &both);
            run_until_over(&f, &l);
            fixture_done(&f);
            assert_once(&l);
            assert_network(&l.connected);
            for (int i = 0; i < 5; i++)
                assert_network(&l.told[i]);
            note(&l);
            wire_stop(&w);
        }
    }
}

/* ---- rows
 * ------------------------------------------------------------------------------------------------------------ */

static void what_was_said_about_rows_is_true(void **state)
{
    (void)state;
    assert_kept();
}

/* ---- at every turn of the loop
 * --------------------------------------------------------------------------------------- */

static void assert_ended_well_or_stopped(const struct life *l)
{
    const struct told *all[] = {&l->connected, &l->told[0], &l->told[1], &l->told[2], &l->told[3], &l->told[4]};
    for (size_t i = 0; i < 6; i++) {
        if (all[i]->times == 0 || all[i]->err.code == ERR_NONE || all[i]->err.code == ERR_STOPPED)
            continue;
        /* what comes behind a statement that was stopped */
        if (strcmp(all[i]->fault.sqlstate, "25P02") != 0 && strcmp(all[i]->fault.sqlstate, "42P01") != 0)
            fail_msg("request %zu: %s", i, all[i]->err.text);
    }
}

/* Turn N times, then do ACT. false: it was over by then. */
static bool live_until(struct fixture *f, struct life *l, unsigned n, void (*act)(struct fixture *f))
{
    struct living both = {f, l};
    struct pg_options o = options_of(f, text_of("host=localhost port=%d user=postgres dbname=postgres", server.port));
    o.password = PG_SERVER_PASSWORD;
    open_with(f, &o);
    pg_connect(f->pg, on_connected, &both);
    for (unsigned i = 0; i < n && !is_over(l); i++)
        uv_run(&f->loop, UV_RUN_ONCE);
    bool was_over = is_over(l);
    act(f);
    run_until_over(f, l);
    return !was_over;
}

static void act_close(struct fixture *f)
{
    close_pg(f);
}
static void act_cancel(struct fixture *f)
{
    pg_cancel(f->pg);
}

static void sweep_turns(void (*act)(struct fixture *f))
{
    unsigned n = 0;
    for (bool goes_on = true; goes_on; n++) {
        struct fixture f;
        struct life l = new_life();
        fixture_init(&f);
        goes_on = live_until(&f, &l, n, act);
        if (f.pg != NULL && l.is_open) { /* it is as good as new */
            assert_ok(query(&f, "rollback"));
            assert_ok(query(&f, "select 1"));
        }
        fixture_done(&f);
        assert_once(&l);
        assert_ended_well_or_stopped(&l);
        note(&l);
        assert_int_equal(f.lost, 0);
    }
    assert_true(n > 10);
    assert_kept();
}

static void it_can_be_closed_at_any_turn(void **state)
{
    (void)state;
    sweep_turns(act_close);
    /* Nobody is left there. */
    wait_for_answer(
        "select count(*) from pg_stat_activity where application_name = 'chute' and pid <> pg_backend_pid()", "0");
}

static void it_can_be_cancelled_at_any_turn(void **state)
{
    (void)state;
    sweep_turns(act_cancel);
}

/* ---- inside of callbacks
 * ---------------------------------------------------------------------------------------------- */

enum { IN_CONNECTED, IN_DONE, IN_READ, IN_RESULT, IN_ROW, IN_NOTICE, IN_LOST, IN_ALL };

struct inside {
    struct fixture *f;
    int where;
    void (*act)(struct fixture *f);
    struct told connected, told[3];
    unsigned lost;
};

static void act_inside(struct inside *in, int where)
{
    if (in->where != where || in->act == NULL)
        return;
    void (*act)(struct fixture * f) = in->act;
    in->act = NULL;
    act(in->f);
}

static void begin_to_close(struct fixture *f)
{
    pg_close(f->pg, on_fixture_closed, f);
}

static ssize_t inside_read(void *arg, const char **ret_data, struct err *err)
{
    struct inside *in = arg;
    (void)err;
    act_inside(in, IN_READ);
    *ret_data = "1\tone\n";
    return in->told[1].statements++ < 3 ? 6 : 0;
}
static void inside_result(void *arg, const struct pg_result *result)
{
    (void)result;
    act_inside(arg, IN_RESULT);
}
static void inside_row(void *arg, const struct pg_result *result)
{
    (void)result;
    act_inside(arg, IN_ROW);
}
static void inside_notice(void *arg, const char *severity, const struct pg_fault *notice)
{
    (void)severity;
    (void)notice;
    act_inside(arg, IN_NOTICE);
}
static void inside_lost(void *arg, const struct err *err)
{
    struct inside *in = arg;
    (void)err;
    in->lost++;
    act_inside(in, IN_LOST);
}
static void inside_told0(void *arg, const struct pg_answer *a)
{
    struct inside *in = arg;
    on_told(&in->told[0], a);
    act_inside(in, IN_DONE);
}
static void inside_told1(void *arg, const struct pg_answer *a)
{
    struct inside *in = arg;
    on_told(&in->told[1], a);
}
static void inside_told2(void *arg, const struct pg_answer *a)
{
    struct inside *in = arg;
    on_told(&in->told[2], a);
}
static void inside_connected(void *arg, const struct pg_answer *a)
{
    struct inside *in = arg;
    on_told(&in->connected, a);
    const struct pg_request r[] = {
        {.sql =
             "create temp table t (a int, b text); create function pg_temp.tell() returns trigger language plpgsql as "
             "$$ begin raise notice 'row'; return new; end $$; create trigger tell before insert on t for each row "
             "execute function pg_temp.tell()",
         .on_result = inside_result,
         .done = inside_told0,
         .arg = in},
        {.sql = "copy t from stdin", .read = inside_read, .done = inside_told1, .arg = in},
        {.sql = "select generate_series(1, 3)",
         .one_by_one = true,
         .on_result = inside_row,
         .done = inside_told2,
         .arg = in},
    };
    for (size_t i = 0; i < 3; i++)
        start_request(in->f, &r[i]);
    act_inside(in, IN_CONNECTED);
}

static void run_inside(struct inside *in, void (*act)(struct fixture *f))
{
    struct fixture f;
    struct pg_options o = {.conninfo = server.url, .on_notice = inside_notice, .on_lost = inside_lost, .arg = in};
    fixture_init(&f);
    in->f = &f;
    in->act = act;
    open_with(&f, &o);
    pg_connect(f.pg, inside_connected, in);
    while (in->told[2].times == 0)
        uv_run(&f.loop, UV_RUN_ONCE);
    if (in->where == IN_LOST) {
        assert_ok(elsewhere(text_of("select pg_terminate_backend(%d)", pg_backend_pid(f.pg))));
        run_until_count(&f, &in->lost, 1);
    }
    assert_null(in->act); /* it was there */
    if (act == begin_to_close) {
        run_until(&f, &f.is_closed);
        f.pg = NULL;
    }
    fixture_done(&f);
    assert_int_equal(in->connected.times, 1);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(in->told[i].times, 1);
        if (in->told[i].err.code != ERR_NONE && in->told[i].err.code != ERR_STOPPED)
            fail_msg("in %d, request %d: %s", in->where, i, in->told[i].err.text);
    }
    assert_int_equal(in->lost, in->where == IN_LOST);
}

static void any_callback_may_close_or_cancel(void **state)
{
    (void)state;
    for (int where = 0; where < IN_ALL; where++) {
        struct inside close = {.where = where}, cancel = {.where = where};
        run_inside(&close, begin_to_close);
        if (where != IN_LOST)
            run_inside(&cancel, act_cancel);
    }
}

static void connect_again(void *arg, const struct pg_answer *a)
{
    struct living *both = arg;
    on_told(&both->l->told[0], a);
    assert_int_equal(pg_state(both->f->pg), PG_DOWN);
    pg_connect(both->f->pg, on_told, &both->l->connected);
}

static void a_callback_may_connect_again(void **state)
{
    struct fixture *f = *state;
    struct life l = {.id = 0};
    struct living both = {f, &l};
    const struct pg_request r[] = {
        {.sql = "select pg_terminate_backend(pg_backend_pid())", .done = connect_again, .arg = &both},
        {.sql = "select 1", .done = on_told, .arg = &l.told[1]},
    };
    connect_at(f, server.url);
    start_request(f, &r[0]);
    start_request(f, &r[1]);
    run_until_count(f, &l.connected.times, 1);
    assert_ok(l.connected);
    assert_string_equal(l.told[0].fault.sqlstate, "57P01");
    assert_int_equal(l.told[1].times, 1);
    assert_int_equal(l.told[1].err.code, ERR_REMOTE); /* the old connection's, not begun on the new one */
    assert_int_equal(f->lost, 0);
    assert_string_equal(query(f, "select 2").value, "2");
}

static void closing_stops_what_the_server_does(void **state)
{
    struct fixture *f = *state;
    struct told t;
    connect_at(f, server.url);
    start(f, "select pg_sleep(1000)", &t);
    run_for(f, 20);
    close_pg(f);
    assert_int_equal(t.times, 1);
    assert_int_equal(t.err.code, ERR_STOPPED);
    wait_for_answer(
        "select count(*) from pg_stat_activity where query like '%pg_sleep(1000)' and pid <> pg_backend_pid()", "0");
}

static void closing_does_not_wait_for_a_server_that_hangs(void **state)
{
    struct fixture *f = *state;
    struct told t;
    struct pg_options o = options_of(f, server.url);
    o.cancel_timeout_ms = 50;
    open_with(f, &o);
    assert_ok(connect_now(f));
    int pid = pg_backend_pid(f->pg);
    assert_true(pid > 0);
    start(f, "select pg_sleep(1000)", &t);
    run_for(f, 20);
    kill(server.pid, SIGSTOP); /* nobody takes the cancel */
    kill(pid, SIGSTOP);
    close_pg(f);
    kill(pid, SIGCONT);
    kill(server.pid, SIGCONT);
    assert_int_equal(t.times, 1);
    assert_int_equal(t.err.code, ERR_STOPPED);
    assert_true(t.maybe_done);
}

static ssize_t read_later(void *arg, const char **ret_data, struct err *err)
{
    (void)arg;
    (void)ret_data;
    (void)err;
    return PG_LATER;
}

/* The COPY ends by our word for it, but a cancel that may come at any time would hit what is next. */
static void a_cancel_that_never_arrives_ends_the_connection(void **state)
{
    struct fixture *f = *state;
    struct told t = {.times = 0}, next;
    const struct pg_request r = {.sql = "copy kept from stdin", .read = read_later, .done = on_told, .arg = &t};
    struct pg_options o = options_of(f, server.url);
    o.cancel_timeout_ms = 100;
    open_with(f, &o);
    assert_ok(connect_now(f));
    start_request(f, &r);
    run_for(f, 20);
    kill(server.pid, SIGSTOP);
    pg_cancel(f->pg);
    start(f, "select 1", &next);
    run_until_count(f, &t.times, 1);
    assert_int_equal(t.err.code, ERR_STOPPED);
    run_until_count(f, &next.times, 1);
    kill(server.pid, SIGCONT);
    assert_int_equal(next.err.code, ERR_REMOTE);
    assert_true(next.err.retryable);
    assert_false(next.maybe_done);
    assert_int_equal(pg_state(f->pg), PG_DOWN);
    assert_int_equal(f->lost, 0);
}

static void a_name_that_is_looked_up_for_long_does_not_hold_up_the_end(void **state)
{
    struct fixture *f = *state;
    struct told t = {.times = 0};
    open_at(f, "host=no-such-host.invalid");
    pg_connect(f->pg, on_told, &t);
    close_pg(f);
    assert_int_equal(t.times, 1);
    assert_int_equal(t.err.code, ERR_STOPPED);
}

/* ---- the server
 * ------------------------------------------------------------------------------------------------------ */

static ssize_t read_one(void *arg, const char **ret_data, struct err *err)
{
    struct told *t = arg;
    (void)err;
    *ret_data = "1\tone\n";
    return t[1].times++ == 0 ? 6 : PG_LATER; /* t[1] counts */
}

static void begin_for_end(struct fixture *f, int doing, struct told *t)
{
    const struct pg_request copying = {
        .sql = "create temp table t (a int, b text); copy t from stdin", .read = read_one, .done = on_told, .arg = t};
    memset(t, 0, 2 * sizeof *t);
    f->lost = 0;
    if (doing == 1)
        start(f, "select pg_sleep(1000)", t);
    if (doing == 2) {
        start_request(f, &copying);
        run_until_count(f, &t[1].times, 2);
    }
    run_for(f, 20);
}

static void a_server_may_end_as_it_likes(void **state)
{
    static const int ends[] = {SIGINT, SIGQUIT, SIGKILL};
    struct fixture *f = *state;
    struct told t[2];
    for (size_t end = 0; end < 3; end++) {
        for (int doing = 0; doing < 3; doing++) {
            connect_at(f, server.url);
            begin_for_end(f, doing, t);
            pg_server_end(&server, ends[end]);
            if (doing == 0) {
                run_until_count(f, &f->lost, 1);
                assert_int_equal(f->lost_err.code, ERR_REMOTE);
                assert_true(f->lost_err.retryable);
            } else {
                run_until_count(f, &t[0].times, 1);
                assert_int_equal(t[0].err.code, ERR_REMOTE);
                assert_true(t[0].err.retryable);
                assert_int_equal(t[0].maybe_done, 1);
                assert_int_equal(f->lost, 0);
            }
            assert_int_equal(pg_state(f->pg), PG_DOWN);
            struct told again = connect_now(f);
            assert_int_equal(again.err.code, ERR_REMOTE);
            assert_true(again.err.retryable);
            pg_server_run(&server);
            again = connect_now(f);
            assert_ok(again);
            assert_int_equal(t[0].times, doing != 0);
            close_pg(f);
        }
    }
}

static void a_server_that_starts_will_be_there_soon(void **state)
{
    struct fixture *f = *state;
    struct told t = {.times = 0};
    connect_at(f, server.url);
    assert_ok(elsewhere(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(1000)%' and pid <> "
        "pg_backend_pid()")); /* of those that were cut off */
    /* What it says while it shuts down: a session that stays holds it up. */
    kill(server.pid, SIGTERM);
    struct fixture other;
    fixture_init(&other);
    open_at(&other, server.url);
    do {
        t = connect_now(&other);
        if (t.err.code == ERR_NONE) {
            close_pg(&other);
            open_at(&other, server.url);
        }
    } while (t.err.code == ERR_NONE);
    assert_string_equal(t.fault.sqlstate, "57P03");
    assert_int_equal(t.err.code, ERR_REMOTE);
    assert_true(t.err.retryable);
    assert_says(t.err.text, "the database system is shutting down (SQLSTATE 57P03)");
    fixture_done(&other);
    close_pg(f);
    pg_server_end(&server, SIGTERM);
    pg_server_run(&server);
}

/* ---- memory
 * ---------------------------------------------------------------------------------------------------------- */

static void assert_memory_or_none(const struct told *t)
{
    if (t->times == 0 || t->err.code == ERR_NONE)
        return;
    if (strcmp(t->fault.sqlstate, "42P01") == 0 || strcmp(t->fault.sqlstate, "25P01") == 0)
        return; /* a request before it had no memory */
    if (!t->err.retryable || strstr(t->err.text, "memory") == NULL)
        fail_msg("%s", t->err.text);
}

static void any_allocation_may_fail(void **state)
{
    unsigned hits = 0;
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        struct fixture f;
        struct life l = new_life();
        struct living both = {&f, &l};
        struct err err;
        fixture_init(&f);
        struct pg_options o =
            options_of(&f, text_of("host=localhost port=%d user=postgres dbname=postgres", server.port));
        o.password = PG_SERVER_PASSWORD;
        o.application_name = "short of memory";
        if (pg_open(&f.loop, &o, &f.pg, &err) != ERR_NONE) {
            assert_int_equal(err.code, ERR_SYSTEM);
            assert_true(err.retryable);
        } else {
            pg_connect(f.pg, on_connected, &both);
            run_until_over(&f, &l);
            assert_memory_or_none(&l.connected);
            for (int i = 0; i < 4; i++)
                assert_memory_or_none(&l.told[i]);
            assert_once(&l);
        }
        is_unknown[l.id] = true; /* its commit may be what had no memory */
        hits += alloc_fault_hit();
        fixture_done(&f);
    }
    assert_true(hits > 20);
}

/* The n-th call that watches a socket fails: no memory, no descriptor. */
static long polls_left;
static bool poll_was_hit;
static bool poll_fails_now(void)
{
    if (polls_left == 0 || --polls_left > 0)
        return false;
    poll_was_hit = true;
    return true;
}
int __real_uv_poll_init(uv_loop_t *loop, uv_poll_t *handle, int fd);
int __wrap_uv_poll_init(uv_loop_t *loop, uv_poll_t *handle, int fd)
{
    return poll_fails_now() ? UV_EMFILE : __real_uv_poll_init(loop, handle, fd);
}
int __real_uv_poll_start(uv_poll_t *handle, int events, uv_poll_cb cb);
int __wrap_uv_poll_start(uv_poll_t *handle, int events, uv_poll_cb cb)
{
    return poll_fails_now() ? UV_ENOMEM : __real_uv_poll_start(handle, events, cb);
}

static void a_socket_that_cannot_be_watched_is_told(void **state)
{
    unsigned hits = 0;
    (void)state;
    for (bool goes_on = true; goes_on; hits++) {
        struct fixture f;
        struct life l = new_life();
        struct living both = {&f, &l};
        fixture_init(&f);
        open_at(&f, server.url);
        poll_was_hit = false;
        polls_left = (long)hits + 1;
        pg_connect(f.pg, on_connected, &both);
        run_until_over(&f, &l);
        goes_on = poll_was_hit;
        polls_left = 0;
        run_for(&f, 1);
        if (poll_was_hit && f.lost == 0) { /* else it was after the last answer */
            const struct told *all[] = {&l.connected, &l.told[0], &l.told[1], &l.told[2], &l.told[3], &l.told[4]};
            unsigned failed = 0;
            for (size_t i = 0; i < 6; i++) {
                assert_memory_or_none(all[i]);
                failed += all[i]->times == 1 && all[i]->err.code == ERR_SYSTEM;
            }
            assert_true(failed > 0);
        }
        fixture_done(&f);
        assert_once(&l);
        note(&l);
    }
    assert_true(hits > 5);
    assert_kept();
}

static void a_cancel_needs_no_memory_to_work(void **state)
{
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        struct fixture f;
        struct told t;
        long nth = alloc_fault_left;
        alloc_fault_set(0);
        fixture_init(&f);
        struct pg_options o = options_of(&f, server.url);
        o.cancel_timeout_ms = 200;
        open_with(&f, &o);
        assert_ok(connect_now(&f));
        start(&f, "select pg_sleep(1000)", &t);
        run_for(&f, 20);
        alloc_fault_set(nth);
        pg_cancel(f.pg);
        run_until_count(&f, &t.times, 1);
        assert_int_equal(t.err.code, ERR_STOPPED);
        fixture_done(&f);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

static int start_with_table(void **state)
{
    start_server_with_tls(state);
    assert_ok(elsewhere("create table kept (id int)"));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wire_may_be_cut_after_any_byte),
        cmocka_unit_test(a_connection_may_be_reset_after_any_byte),
        cmocka_unit_test(tls_may_be_cut_after_any_byte),
        cmocka_unit_test(a_copy_in_full_flow_may_be_cut),
        cmocka_unit_test(silence_may_begin_after_any_byte),
        cmocka_unit_test(what_was_said_about_rows_is_true),
        cmocka_unit_test(it_can_be_closed_at_any_turn),
        cmocka_unit_test(it_can_be_cancelled_at_any_turn),
        cmocka_unit_test(any_callback_may_close_or_cancel),
        TEST(a_callback_may_connect_again),
        TEST(a_cancel_that_never_arrives_ends_the_connection),
        TEST(closing_stops_what_the_server_does),
        TEST(closing_does_not_wait_for_a_server_that_hangs),
        TEST(a_name_that_is_looked_up_for_long_does_not_hold_up_the_end),
        cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(a_socket_that_cannot_be_watched_is_told),
        cmocka_unit_test(a_cancel_needs_no_memory_to_work),
        TEST(a_server_that_starts_will_be_there_soon),
        TEST(a_server_may_end_as_it_likes),
        TEST(a_backend_that_crashes_in_full_flow_is_told),
    };
    return cmocka_run_group_tests(tests, start_with_table, stop_server);
}
