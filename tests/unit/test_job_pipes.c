/*
 * test_job_pipes.c -- the engine and scripts: `init` before the first load, `then` after one, and what stops, reloads
 * and kills leave of them. Scripts end when the test says so, between two turns of the loop.
 */
#include "alloc_fault.h"
#include "job_fakes.h"
#include "job_internal.h"

#include "log.h"

/* ---- a destination that runs scripts ---- */

static struct scripts *running[8];
static size_t running_count;
static struct err scripts_err; /* what they end with */
static bool ends_at_once;
static struct err refusal; /* what run_scripts() itself says */

static enum err_code fake_run_scripts(void *state, struct scripts *scripts, struct err *err)
{
    (void)state;
    if (refusal.code != ERR_NONE) {
        *err = refusal;
        return err->code;
    }
    assert_true(running_count < 8);
    running[running_count++] = scripts;
    fake_say("scripts %s", scripts->name);
    return ERR_NONE;
}

static void fake_abort_scripts(void *state, struct scripts *scripts)
{
    (void)state;
    atomic_store(&scripts->stop, true);
}

static void end_scripts(void)
{
    struct scripts *s = running[0];
    assert_true(running_count > 0);
    memmove(running, running + 1, --running_count * sizeof *running);
    s->err = scripts_err;
    if (atomic_load(&s->stop))
        err_set(&s->err, ERR_STOPPED, true, "stopped");
    s->statements = 1;
    s->finished(s);
}

static struct dest_ops ops;
static const struct dest_ops *const dests[] = {&ops, NULL};
static const struct config_drivers drivers = {fake_sources, dests};

/* ---- the fixture ---- */

struct fixture {
    char dir[64];
    uv_loop_t loop;
    struct ledger *ledger;
    struct engine *engine;
    struct config *config;
    bool drained, closed, ledger_closed, idle, once;
};

int __real_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
int __wrap_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat)
{
    return __real_uv_timer_start(timer, cb, timeout == LEDGER_RETRY_MS ? 50 : timeout, repeat);
}

static void write_file(const struct fixture *f, const char *name, const char *text)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", f->dir, name);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static struct config *read_config(struct fixture *f, const char *dest_options, const char *flow_options)
{
    struct config *config = NULL;
    struct err err = {0};
    char path[128], text[2048], *errors = NULL;
    snprintf(text, sizeof text,
             "state: state\nretry: {first: 10ms, max: 20ms}\nsources: {inbox: {type: directory, path: in}}\n"
             "destinations: {lite: {type: sqlite, path: x.db%s}}\n"
             "pipelines: {p: {in: lite, sql: [p.sql]}, q: {in: lite, sql: [q.sql]}}\n"
             "flows:\n  - {name: f, from: inbox, to: lite%s}\n",
             dest_options, flow_options);
    write_file(f, "chute.yaml", text);
    snprintf(path, sizeof path, "%s/chute.yaml", f->dir);
    if (config_load(path, &drivers, &config, &errors, &err) != ERR_NONE)
        print_error("%s\n", errors != NULL ? errors : err.text);
    free(errors);
    assert_non_null(config);
    return config;
}

static void on_idle(void *arg)
{
    ((struct fixture *)arg)->idle = true;
}

static enum err_code try_start(struct fixture *f, struct err *err)
{
    char path[128];
    struct ledger_opened opened;
    snprintf(path, sizeof path, "%s/state/ledger.db", f->dir);
    const struct ledger_options options = {.path = path, .history_keep_ms = 1000000000};
    f->idle = f->drained = f->closed = f->ledger_closed = false;
    if (ledger_open(&f->loop, &options, &f->ledger, &opened, err) != ERR_NONE)
        return err->code;
    const struct engine_options engine = {
        .loop = &f->loop, .config = f->config, .ledger = f->ledger, .once = f->once, .on_idle = on_idle, .arg = f};
    return engine_open(&engine, &f->engine, err);
}

static void start(struct fixture *f)
{
    struct err err = {0};
    if (try_start(f, &err) != ERR_NONE)
        fail_msg("%s", err.text);
}

static void on_true(void *arg)
{
    *(bool *)arg = true;
}

static void on_guard(uv_timer_t *guard)
{
    (void)guard;
}

static void turn(struct fixture *f)
{
    uv_timer_t guard;
    uv_timer_init(&f->loop, &guard);
    uv_timer_start(&guard, on_guard, 5, 0);
    uv_run(&f->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&guard, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
    for (size_t i = 0; i < running_count; i++)
        if (ends_at_once || atomic_load(&running[i]->stop)) {
            struct scripts *s = running[i];
            running[i] = running[0];
            running[0] = s;
            end_scripts();
            i--;
        }
}

static void turn_until(struct fixture *f, const bool *flag)
{
    uint64_t end = clock_mono_ms() + 20000;
    while (!*flag && clock_mono_ms() < end)
        turn(f);
    assert_true(*flag);
}

/* Until the fake's log has COUNT lines. */
static void turn_until_said(struct fixture *f, size_t count)
{
    uint64_t end = clock_mono_ms() + 20000;
    while (fake.log_count < count && clock_mono_ms() < end)
        turn(f);
    if (fake.log_count < count)
        fail_msg("said %zu things, not %zu", fake.log_count, count);
}

static void turn_a_while(struct fixture *f)
{
    for (int i = 0; i < 30; i++)
        turn(f);
}

static void stop_within(struct fixture *f, uint64_t grace_ms)
{
    if (f->engine != NULL) {
        engine_drain(f->engine, grace_ms, on_true, &f->drained);
        turn_until(f, &f->drained);
        engine_close(f->engine, on_true, &f->closed);
        turn_until(f, &f->closed);
    }
    if (f->ledger != NULL) {
        ledger_close(f->ledger, on_true, &f->ledger_closed);
        turn_until(f, &f->ledger_closed);
    }
    f->engine = NULL;
    f->ledger = NULL;
    assert_int_equal(running_count, 0);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    char command[160];
    memset(&fake, 0, sizeof fake);
    ops = fake_table_ops;
    ops.run_scripts = fake_run_scripts;
    ops.abort_scripts = fake_abort_scripts;
    running_count = 0;
    ends_at_once = false;
    err_clear(&scripts_err);
    err_clear(&refusal);
    snprintf(fake.identity, sizeof fake.identity, "db-1");
    snprintf(fake_identity, sizeof fake_identity, "1:1");
    strcpy(f->dir, "/tmp/chute-pipes-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(command, sizeof command, "mkdir %s/in %s/state", f->dir, f->dir);
    assert_int_equal(system(command), 0);
    uv_loop_init(&f->loop);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[160];
    ends_at_once = true;
    stop_within(f, 5000);
    config_unref(f->config);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    snprintf(command, sizeof command, "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

#define INIT ", init: [i.sql]"
#define THEN ", then: [p]"

static const char *dest_state(struct fixture *f)
{
    static char text[600];
    struct arena arena;
    struct engine_status status;
    struct err err = {0};
    arena_init(&arena);
    assert_int_equal(engine_status(f->engine, &arena, &status, &err), ERR_NONE);
    snprintf(text, sizeof text, "%s %s", status.dests[0].state, status.dests[0].reason);
    arena_done(&arena);
    return text;
}

static void on_retried(void *arg, uint64_t count, uint64_t away, const struct err *err)
{
    (void)arg;
    (void)count;
    (void)away;
    assert_null(err);
}

/* ---- init ---- */

static void init_comes_before_the_first_load(void **state)
{
    struct fixture *f = *state;
    f->config = read_config(f, INIT, "");
    write_file(f, "in/a.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 1);
    turn_a_while(f);
    assert_int_equal(fake.log_count, 1);
    assert_string_equal(fake.log[0], "scripts init");
    assert_string_equal(dest_state(f), "opening ");
    end_scripts();
    turn_until_said(f, 2);
    assert_string_equal(fake.log[1], "load a.csv -> a (1 rows)");
}

static void a_wrong_init_blocks_until_somebody_helps(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    f->config = read_config(f, INIT, "");
    write_file(f, "in/a.csv", "x\n1\n");
    err_set(&scripts_err, ERR_INPUT, false, "i.sql:3: statement 2 (\"CREATE\"): syntax error");
    start(f);
    turn_until_said(f, 1);
    end_scripts();
    turn_a_while(f);
    assert_int_equal(fake.log_count, 1); /* not tried again at once, and nothing is loaded */
    assert_string_equal(dest_state(f), "blocked init: i.sql:3: statement 2 (\"CREATE\"): syntax error");
    assert_int_equal(engine_failed_pipelines(f->engine), 1);
    err_clear(&scripts_err);
    assert_int_equal(engine_retry(f->engine, NULL, 0, true, on_retried, NULL, &err), ERR_NONE);
    turn_until_said(f, 2);
    end_scripts();
    turn_until_said(f, 3);
    assert_string_equal(fake.log[2], "load a.csv -> a (1 rows)");
    assert_int_equal(engine_failed_pipelines(f->engine), 0);
}

static void an_init_that_fails_for_a_while_is_tried_again(void **state)
{
    struct fixture *f = *state;
    f->config = read_config(f, INIT, "");
    write_file(f, "in/a.csv", "x\n1\n");
    err_set(&scripts_err, ERR_REMOTE, true, "database is locked");
    start(f);
    turn_until_said(f, 1);
    end_scripts();
    turn_until_said(f, 2);
    assert_string_equal(fake.log[1], "scripts init");
    err_clear(&scripts_err);
    end_scripts();
    turn_until_said(f, 3);
    assert_string_equal(fake.log[2], "load a.csv -> a (1 rows)");
}

static void a_driver_that_refuses_init_is_a_destination_that_is_down(void **state)
{
    struct fixture *f = *state;
    f->config = read_config(f, INIT, "");
    write_file(f, "in/a.csv", "x\n1\n");
    err_set(&refusal, ERR_SYSTEM, true, "out of memory");
    start(f);
    turn_a_while(f);
    assert_int_equal(fake.log_count, 0);
    err_clear(&refusal);
    ends_at_once = true;
    turn_until_said(f, 2);
    assert_string_equal(fake.log[1], "load a.csv -> a (1 rows)");
}

static void another_database_is_prepared_first(void **state)
{
    struct fixture *f = *state;
    f->config = read_config(f, INIT, "");
    ends_at_once = true;
    write_file(f, "in/a.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 2);
    ends_at_once = false;
    /* found out by a load; what was loaded before goes there again, but not before init */
    snprintf(fake.identity, sizeof fake.identity, "db-2");
    memset(fake.keys, 0, sizeof fake.keys);
    fake.key_count = 0;
    write_file(f, "in/b.csv", "x\n1\n");
    intake_rescan(&f->engine->world->intakes[0]);
    turn_until_said(f, 4);
    assert_string_equal(fake.log[2], "load b.csv -> b (1 rows)");
    assert_string_equal(fake.log[3], "scripts init");
    turn_a_while(f);
    assert_int_equal(fake.log_count, 4);
    end_scripts();
    turn_until_said(f, 5);
    assert_non_null(strstr(fake.log[4], "load "));
}

static void stop_does_not_wait_for_init(void **state)
{
    struct fixture *f = *state;
    f->config = read_config(f, INIT, "");
    start(f);
    turn_until_said(f, 1);
    stop_within(f, 60000); /* it is stopped at once: nothing of it would be kept anyway */
}

/* ---- then ---- */

static void a_load_is_followed_by_its_pipeline_and_once_waits_for_it(void **state)
{
    struct fixture *f = *state;
    f->once = true;
    f->config = read_config(f, "", THEN);
    write_file(f, "in/a.csv", "x\n1\n");
    write_file(f, "in/b.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 3);
    assert_string_equal(fake.log[2], "scripts p"); /* one for both */
    turn_a_while(f);
    assert_false(f->idle);
    end_scripts();
    turn_until(f, &f->idle);
    assert_int_equal(fake.log_count, 3);
    stop_within(f, 5000);
    start(f); /* nothing new, nothing owed */
    turn_until(f, &f->idle);
    assert_int_equal(fake.log_count, 3);
}

static void what_was_skipped_asks_for_nothing(void **state)
{
    struct fixture *f = *state;
    f->once = true;
    f->config = read_config(f, "", THEN);
    write_file(f, "in/a.csv", "");
    start(f);
    turn_until(f, &f->idle);
    assert_int_equal(fake.log_count, 0);
}

static void a_killed_load_that_is_resumed_is_followed_as_well(void **state)
{
    struct fixture *f = *state;
    f->once = true;
    f->config = read_config(f, "", THEN);
    write_file(f, "in/a.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 1); /* committed over there … */
    /* … and the kill comes before the ledger heard of it: the row says loading at the next start */
    struct ledger_tx *tx;
    struct err err = {0};
    char path[128];
    turn_until_said(f, 2);
    assert_string_equal(fake.log[1], "scripts p");
    ends_at_once = true;
    turn_until(f, &f->idle);
    stop_within(f, 5000);
    snprintf(path, sizeof path, "%s/state/ledger.db", f->dir);
    assert_int_equal(ledger_tx_open(path, false, &tx, &err), ERR_NONE);
    struct arena arena;
    struct ledger_row *row;
    arena_init(&arena);
    assert_int_equal(ledger_get(tx, "inbox", "a.csv", "f", &arena, &row, &err), ERR_NONE);
    row->state = STATE_LOADING;
    row->was_loaded = row->has_hash = false;
    assert_int_equal(ledger_put(tx, row, &err), ERR_NONE);
    arena_done(&arena);
    assert_int_equal(ledger_tx_close(tx, true, &err), ERR_NONE);
    start(f);
    turn_until(f, &f->idle);
    assert_string_equal(fake.log[2], "resumed a.csv");
    assert_string_equal(fake.log[fake.log_count - 1], "scripts p");
}

static void a_run_has_the_grace_and_no_more(void **state)
{
    struct fixture *f = *state;
    f->config = read_config(f, "", THEN);
    write_file(f, "in/a.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 2);
    engine_drain(f->engine, 60000, on_true, &f->drained);
    turn_a_while(f);
    assert_false(f->drained);
    end_scripts();
    turn_until(f, &f->drained);
    engine_close(f->engine, on_true, &f->closed);
    turn_until(f, &f->closed);
    f->engine = NULL;
    stop_within(f, 0);
    /* and the next one has none */
    write_file(f, "in/b.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 4);
    stop_within(f, 1);
    start(f);
    turn_until_said(f, 5);
    assert_string_equal(fake.log[4], "scripts p"); /* it is owed */
}

static void the_last_load_to_end_is_not_the_end_of_a_run(void **state)
{
    struct fixture *f = *state;
    f->config = read_config(f, "", THEN);
    write_file(f, "in/a.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 2);
    fake.hold = true;
    write_file(f, "in/b.csv", "x\n1\n");
    intake_rescan(&f->engine->world->intakes[0]);
    uint64_t end = clock_mono_ms() + 20000;
    while (f->engine->job_count == 0 && clock_mono_ms() < end)
        turn(f);
    assert_int_equal(f->engine->job_count, 1);
    engine_drain(f->engine, 60000, on_true, &f->drained);
    fake.hold = false;
    while (f->engine->job_count > 0 && clock_mono_ms() < end)
        turn(f);
    assert_int_equal(f->engine->job_count, 0);
    turn_a_while(f);
    assert_false(f->drained);
    end_scripts();
    turn_until(f, &f->drained);
    engine_close(f->engine, on_true, &f->closed);
    turn_until(f, &f->closed);
    f->engine = NULL;
}

static void nothing_of_a_new_configuration_runs_beside_the_old_one(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    f->config = read_config(f, "", THEN);
    write_file(f, "in/a.csv", "x\n1\n");
    start(f);
    turn_until_said(f, 2);
    struct config *next = read_config(f, INIT, THEN);
    assert_int_equal(engine_reload(f->engine, next, &err), ERR_NONE);
    write_file(f, "in/b.csv", "x\n1\n");
    turn_a_while(f);
    assert_int_equal(fake.log_count, 2);
    end_scripts();
    turn_until_said(f, 3);
    assert_string_equal(fake.log[2], "scripts init");
    turn_a_while(f);
    assert_int_equal(fake.log_count, 3);
    end_scripts();
    turn_until_said(f, 4);
    assert_string_equal(fake.log[3], "load b.csv -> b (1 rows)");
    turn_until_said(f, 5);
    assert_string_equal(fake.log[4], "scripts p");
    config_unref(next);
}

/* ---- by hand ---- */

static char answer[600];
static void on_answer(void *arg, const struct pipeline_facts *facts, const struct err *err)
{
    (void)facts;
    snprintf(answer, sizeof answer, "%s", err != NULL ? err->text : "");
    *(bool *)arg = true;
}

static void a_person_runs_one_and_hears_how_it_ended(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    bool is_answered = false;
    f->config = read_config(f, "", "");
    start(f);
    assert_int_equal(engine_pipeline(f->engine, "nope", on_answer, &is_answered, &err), ERR_CONFIG);
    assert_int_equal(engine_pipeline(f->engine, "q", on_answer, &is_answered, &err), ERR_NONE);
    turn_until_said(f, 1);
    assert_string_equal(fake.log[0], "scripts q");
    err_set(&scripts_err, ERR_INPUT, false, "q.sql:1: no");
    end_scripts();
    turn_until(f, &is_answered);
    assert_string_equal(answer, "q.sql:1: no");
}

static void who_asks_of_a_dead_destination_is_told_so(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    bool is_answered = false;
    f->config = read_config(f, "", "");
    fake.connect_count = 8;
    for (size_t i = 0; i < 8; i++)
        err_set(&fake.connect_script[i], ERR_DENIED, false, "go away");
    start(f);
    assert_int_equal(engine_pipeline(f->engine, "p", on_answer, &is_answered, &err), ERR_NONE);
    turn_until(f, &is_answered);
    assert_string_equal(answer, "destination lite is blocked: go away");
}

/* ---- faults ---- */

static void without_memory_no_run_is_lost(void **state)
{
    struct fixture *f = *state;
    unsigned number = 0;
    f->once = true;
    ends_at_once = true;
    f->config = read_config(f, INIT, THEN);
    ALLOC_FAULT_SWEEP
    {
        struct err err = {0};
        char text[32];
        long nth = alloc_fault_left;
        alloc_fault_left = 0;
        snprintf(text, sizeof text, "x\n%u\n", ++number);
        write_file(f, "in/a.csv", text);
        fake.log_count = 0;
        fake.key_count = 0;
        alloc_fault_left = nth;
        enum err_code code = try_start(f, &err);
        for (int i = 0; i < 40 && code == ERR_NONE && !f->idle; i++)
            turn(f);
        bool was_hit = alloc_fault_hit();
        alloc_fault_left = 0;
        stop_within(f, 5000);
        start(f); /* with memory: whatever was begun comes to its end */
        turn_until(f, &f->idle);
        stop_within(f, 5000);
        /* the last thing said of the load is before the last thing said of the pipeline */
        size_t load = 0, run = 0;
        for (size_t i = 0; i < fake.log_count; i++) {
            load = strncmp(fake.log[i], "load a.csv", 10) == 0 ? i + 1 : load;
            run = strcmp(fake.log[i], "scripts p") == 0 ? i + 1 : run;
        }
        if (load == 0 || run < load)
            fail_msg("allocation %ld: load at %zu, run at %zu", nth, load, run);
        alloc_fault_was_hit = was_hit;
    }
}

int main(void)
{
    const struct log_output quiet = {.to = "/dev/null"};
    struct err err = {0};
    if (log_open(&quiet, 1, &err) != ERR_NONE)
        return 1;
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(init_comes_before_the_first_load),
        T(a_wrong_init_blocks_until_somebody_helps),
        T(an_init_that_fails_for_a_while_is_tried_again),
        T(a_driver_that_refuses_init_is_a_destination_that_is_down),
        T(another_database_is_prepared_first),
        T(stop_does_not_wait_for_init),
        T(a_load_is_followed_by_its_pipeline_and_once_waits_for_it),
        T(what_was_skipped_asks_for_nothing),
        T(a_killed_load_that_is_resumed_is_followed_as_well),
        T(a_run_has_the_grace_and_no_more),
        T(the_last_load_to_end_is_not_the_end_of_a_run),
        T(nothing_of_a_new_configuration_runs_beside_the_old_one),
        T(a_person_runs_one_and_hears_how_it_ended),
        T(who_asks_of_a_dead_destination_is_told_so),
        T(without_memory_no_run_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
