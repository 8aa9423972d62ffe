/*
 * test_pipeline.c -- when pipelines run: a destination that does what the test says, a real ledger, and a clock that
 * the test turns.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "alloc_fault.h"
#include "clock.h"
#include "ledger.h"
#include "log.h"
#include "pipeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

/* ---- the clocks ---- */

static int64_t wall_ms;
static uint64_t mono_ms;

int64_t __wrap_clock_wall_ms(void);
uint64_t __wrap_clock_mono_ms(void);
int64_t __wrap_clock_wall_ms(void)
{
    return wall_ms;
}
uint64_t __wrap_clock_mono_ms(void)
{
    return mono_ms;
}

static void sleep_both(int64_t ms)
{
    wall_ms += ms;
    mono_ms += (uint64_t)ms;
}

/* ---- the fixture ---- */

#define PLANS 3
struct run {
    char name[32];
    struct scripts *scripts; /* NULL: ended */
};

struct fixture {
    uv_loop_t loop;
    char folder[64], path[96];
    struct ledger *ledger;
    struct pipelines *set;
    struct pipeline_plan plans[PLANS];
    struct cron cron;
    size_t count;
    enum pipeline_readiness readiness;
    bool is_busy;
    struct err run_err;  /* what the next run() is refused with */
    struct err end_with; /* what runs end with */
    bool ends_at_once;
    struct run runs[64];
    size_t run_count;
    unsigned aborts, holds, ledger_failures, changes;
    bool is_closed, is_ledger_closed;
    /* who asked by hand */
    unsigned answers;
    struct err answer;
    struct pipeline_facts facts;
};

static enum pipeline_readiness on_readiness(void *arg, const char *dest, char *ret, size_t size)
{
    struct fixture *f = arg;
    (void)dest;
    snprintf(ret, size, "destination db is down: no route");
    return f->readiness;
}

static bool on_is_busy(void *arg, const char *dest)
{
    struct fixture *f = arg;
    (void)dest;
    return f->is_busy;
}

static enum err_code on_run(void *arg, const char *dest, struct scripts *scripts, struct err *err)
{
    struct fixture *f = arg;
    (void)dest;
    if (f->run_err.code != ERR_NONE) {
        *err = f->run_err;
        return err->code;
    }
    assert_true(f->run_count < sizeof f->runs / sizeof f->runs[0]);
    struct run *r = &f->runs[f->run_count++];
    snprintf(r->name, sizeof r->name, "%s", scripts->name);
    r->scripts = scripts;
    return ERR_NONE;
}

static void end_run(struct fixture *f, size_t i)
{
    struct scripts *s = f->runs[i].scripts;
    assert_non_null(s);
    f->runs[i].scripts = NULL;
    s->err = f->end_with;
    if (atomic_load(&s->stop))
        err_set(&s->err, ERR_STOPPED, true, "stopped");
    s->statements = s->err.code == ERR_NONE ? 3 : 0;
    s->finished(s);
}

static void on_abort(void *arg, const char *dest, struct scripts *scripts)
{
    struct fixture *f = arg;
    (void)dest;
    f->aborts++;
    atomic_store(&scripts->stop, true);
    for (size_t i = 0; i < f->run_count; i++)
        if (f->runs[i].scripts == scripts)
            end_run(f, i);
}

static uint64_t on_backoff(void *arg, const char *dest, int64_t tries)
{
    (void)arg;
    (void)dest;
    return 1000u << tries;
}

static void on_ledger_failed(void *arg)
{
    ((struct fixture *)arg)->ledger_failures++;
}
static void on_hold(void *arg)
{
    ((struct fixture *)arg)->holds++;
}
static void on_release(void *arg)
{
    ((struct fixture *)arg)->holds--;
}
static void on_changed(void *arg)
{
    ((struct fixture *)arg)->changes++;
}

static void turn(struct fixture *f)
{
    /* Until the ledger has done all that was asked of it: one more turn brings what the last answer began. */
    for (int quiet = 0; quiet < 3; quiet++) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        while (ledger_pending(f->ledger) > 0) {
            uv_run(&f->loop, UV_RUN_ONCE);
            quiet = 0;
        }
        for (size_t i = 0; i < f->run_count && f->ends_at_once; i++)
            if (f->runs[i].scripts != NULL) {
                end_run(f, i);
                quiet = 0;
            }
    }
}

static const char *const files[] = {"/x.sql"};

static struct pipeline_plan plan(const char *name)
{
    return (struct pipeline_plan){.name = name, .dest = "db", .sql = {files, 1}};
}

static enum err_code open_set(struct fixture *f, struct err *err)
{
    const struct pipeline_hooks hooks = {.arg = f,
                                         .readiness = on_readiness,
                                         .is_busy = on_is_busy,
                                         .run = on_run,
                                         .abort = on_abort,
                                         .backoff_ms = on_backoff,
                                         .ledger_failed = on_ledger_failed,
                                         .hold = on_hold,
                                         .release = on_release,
                                         .changed = on_changed};
    return pipelines_open(&f->loop, f->ledger, f->plans, f->count, &hooks, true, &f->set, err);
}

static void on_closed(void *arg)
{
    *(bool *)arg = true;
}

static void open_all(struct fixture *f)
{
    struct err err = {0};
    struct ledger_opened opened;
    f->is_closed = f->is_ledger_closed = false;
    assert_int_equal(ledger_open(&f->loop, &(struct ledger_options){.path = f->path}, &f->ledger, &opened, &err),
                     ERR_NONE);
    assert_int_equal(open_set(f, &err), ERR_NONE);
    pipelines_pump(f->set);
    turn(f);
}

static void close_set(struct fixture *f)
{
    pipelines_stop(f->set);
    pipelines_abort(f->set);
    turn(f);
    assert_int_equal(f->holds, 0);
    pipelines_close(f->set, on_closed, &f->is_closed);
    while (!f->is_closed)
        uv_run(&f->loop, UV_RUN_ONCE);
    f->set = NULL;
}

static void close_ledger(struct fixture *f)
{
    ledger_close(f->ledger, on_closed, &f->is_ledger_closed);
    while (!f->is_ledger_closed)
        uv_run(&f->loop, UV_RUN_ONCE);
    f->ledger = NULL;
}

/* What a kill leaves: nothing of what is in memory was told to the ledger. The scripts under way never end. */
static void kill_all(struct fixture *f)
{
    for (size_t i = 0; i < f->run_count; i++)
        f->runs[i].scripts = NULL;
    close_ledger(f);
    pipelines_close(f->set, on_closed, &f->is_closed);
    while (!f->is_closed)
        uv_run(&f->loop, UV_RUN_ONCE);
    f->set = NULL;
    f->holds = 0;
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    snprintf(f->folder, sizeof f->folder, "/tmp/chute-pipeline-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof f->path, "%s/ledger.db", f->folder);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    setenv("TZ", "UTC", 1);
    wall_ms = INT64_C(1767225600000); /* 2026-01-01 00:00 */
    mono_ms = 1000000;
    f->plans[0] = plan("etl");
    f->plans[1] = plan("analysis");
    f->count = 2;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[128];
    if (f->set != NULL)
        close_set(f);
    if (f->ledger != NULL)
        close_ledger(f);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    snprintf(command, sizeof command, "rm -rf '%s'", f->folder);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

/* ---- what loads do ---- */

static enum err_code want_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    return pipeline_want(tx, arg, err);
}

/* A load whose flow says `then: [NAME]` is recorded; TOLD: the loop hears of it. */
static void load_recorded(struct fixture *f, const char *name, bool told)
{
    struct err err = {0};
    assert_int_equal(ledger_run(f->ledger, want_fn, NULL, (void *)(uintptr_t)name, &err), ERR_NONE);
    while (ledger_pending(f->ledger) > 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    if (told)
        pipelines_wanted(f->set, name);
}

static struct pipeline_status status_of(struct fixture *f, size_t i)
{
    struct pipeline_status all[PLANS];
    pipelines_status(f->set, all);
    return all[i];
}

static void loads_are_followed_by_one_run(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    assert_int_equal(f->run_count, 0);
    assert_true(pipelines_are_quiet(f->set));
    f->is_busy = true;
    for (int i = 0; i < 5; i++)
        load_recorded(f, "etl", true);
    turn(f);
    assert_int_equal(f->run_count, 0); /* others are on their way into the destination */
    assert_false(pipelines_are_quiet(f->set));
    assert_int_equal(status_of(f, 0).state, PIPELINE_WAITING);
    f->is_busy = false;
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1);
    assert_int_equal(status_of(f, 0).state, PIPELINE_RUNNING);
    assert_int_equal(pipelines_running(f->set), 1);
    end_run(f, 0);
    turn(f);
    assert_int_equal(f->run_count, 1);
    assert_true(pipelines_are_quiet(f->set));
    struct pipeline_status s = status_of(f, 0);
    assert_int_equal(s.state, PIPELINE_IDLE);
    assert_int_equal(s.facts.statements, 3);
    assert_int_equal(s.facts.trigger, TRIGGER_LOAD);
    assert_int_equal(s.good, 1);
    assert_int_equal(s.facts.good_ms, wall_ms);
}

static void loads_without_end_do_not_put_it_off_for_ever(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    f->is_busy = true;
    load_recorded(f, "etl", true);
    turn(f);
    assert_int_equal(f->run_count, 0);
    sleep_both(10001);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1);
}

static void a_load_during_a_run_is_followed_by_one_more(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    load_recorded(f, "etl", true);
    turn(f);
    assert_int_equal(f->run_count, 1);
    load_recorded(f, "etl", true);
    load_recorded(f, "etl", true);
    turn(f);
    assert_int_equal(f->run_count, 1); /* never beside itself */
    end_run(f, 0);
    turn(f);
    assert_int_equal(f->run_count, 2);
    end_run(f, 1);
    turn(f);
    assert_int_equal(f->run_count, 2);
    assert_true(pipelines_are_quiet(f->set));
}

/* The ledger's word counts, not what the loop happened to hear. */
static void a_load_the_loop_has_not_heard_of_counts(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    load_recorded(f, "etl", true);
    turn(f);
    load_recorded(f, "etl", false);
    end_run(f, 0);
    turn(f);
    assert_int_equal(f->run_count, 2);
}

static void one_destination_runs_one_at_a_time_in_order(void **state)
{
    struct fixture *f = *state;
    f->plans[2] = (struct pipeline_plan){.name = "other", .dest = "elsewhere", .sql = {files, 1}};
    f->count = 3;
    open_all(f);
    load_recorded(f, "analysis", false);
    load_recorded(f, "etl", false);
    load_recorded(f, "other", false);
    f->readiness = DEST_WAITS;
    pipelines_wanted(f->set, "analysis");
    pipelines_wanted(f->set, "etl");
    pipelines_wanted(f->set, "other");
    f->readiness = DEST_READY;
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 2);
    assert_string_equal(f->runs[0].name, "etl");
    assert_string_equal(f->runs[1].name, "other");
    end_run(f, 0);
    turn(f);
    assert_string_equal(f->runs[2].name, "analysis");
}

static void what_a_load_asked_for_survives_a_kill(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    load_recorded(f, "etl", false); /* killed before the loop heard of it */
    kill_all(f);
    open_all(f);
    assert_int_equal(f->run_count, 1);
    assert_string_equal(f->runs[0].name, "etl");
    kill_all(f); /* during the run: nobody knows whether it was committed */
    open_all(f);
    assert_int_equal(f->run_count, 2);
    end_run(f, 1);
    turn(f);
    kill_all(f);
    open_all(f);
    assert_int_equal(f->run_count, 2);
}

static void a_failure_that_may_pass_is_tried_again(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    err_set(&f->end_with, ERR_REMOTE, true, "database is locked");
    load_recorded(f, "etl", true);
    turn(f);
    end_run(f, 0);
    turn(f);
    struct pipeline_status s = status_of(f, 0);
    assert_int_equal(s.state, PIPELINE_RETRYING);
    assert_string_equal(s.facts.error, "database is locked");
    assert_false(s.facts.is_permanent);
    assert_int_equal(s.next_ms, wall_ms + 2000);
    assert_false(pipelines_are_quiet(f->set));
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1); /* not before its time */
    sleep_both(2000);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 2);
    end_run(f, 1);
    turn(f);
    assert_int_equal(status_of(f, 0).next_ms, wall_ms + 4000);
    /* over a kill as well */
    kill_all(f);
    open_all(f);
    assert_int_equal(f->run_count, 3);
    err_clear(&f->end_with);
    end_run(f, 2);
    turn(f);
    assert_string_equal(status_of(f, 0).facts.error, "");
    assert_true(pipelines_are_quiet(f->set));
    assert_int_equal(pipelines_failed(f->set), 0);
}

static void a_failure_for_good_waits_for_the_next_reason(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    err_set(&f->end_with, ERR_INPUT, false, "etl.sql:4: statement 2: no such table\ttab  and spaces");
    load_recorded(f, "etl", true);
    turn(f);
    end_run(f, 0);
    turn(f);
    assert_true(pipelines_are_quiet(f->set));
    assert_int_equal(pipelines_failed(f->set), 1);
    sleep_both(3600 * 1000);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1);
    kill_all(f);
    open_all(f);
    assert_int_equal(f->run_count, 1);
    struct pipeline_status s = status_of(f, 0); /* and it is not forgotten */
    assert_string_equal(s.facts.error, "etl.sql:4: statement 2: no such table\ttab  and spaces");
    assert_true(s.facts.is_permanent);
    err_clear(&f->end_with);
    load_recorded(f, "etl", true);
    turn(f);
    end_run(f, 1);
    turn(f);
    assert_string_equal(status_of(f, 0).facts.error, "");
}

static void a_refused_login_stays_owed(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    err_set(&f->end_with, ERR_DENIED, false, "password authentication failed");
    load_recorded(f, "etl", true);
    turn(f);
    end_run(f, 0);
    turn(f);
    assert_int_equal(status_of(f, 0).state, PIPELINE_RETRYING);
    assert_false(pipelines_are_quiet(f->set));
}

/* ---- schedules ---- */

static void every_counts_from_the_last_run(void **state)
{
    struct fixture *f = *state;
    f->plans[0].every_ms = 60000;
    f->ends_at_once = true;
    open_all(f);
    assert_int_equal(f->run_count, 0); /* new: it counts from now */
    assert_int_equal(status_of(f, 0).next_ms, wall_ms + 60000);
    sleep_both(30000);
    kill_all(f); /* a restart does not put it off */
    open_all(f);
    assert_int_equal(status_of(f, 0).next_ms, wall_ms + 30000);
    sleep_both(30000);
    assert_false(pipelines_are_quiet(f->set));
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1);
    assert_int_equal(status_of(f, 0).facts.trigger, TRIGGER_SCHEDULE);
    sleep_both(20000);
    load_recorded(f, "etl", true); /* whatever its reason */
    turn(f);
    assert_int_equal(f->run_count, 2);
    assert_int_equal(status_of(f, 0).next_ms, wall_ms + 60000);
    kill_all(f);
    sleep_both(10 * 60000); /* missed ten: caught up once */
    open_all(f);
    assert_int_equal(f->run_count, 3);
    assert_int_equal(status_of(f, 0).next_ms, wall_ms + 60000);
}

static void cron_catches_up_once(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    assert_int_equal(cron_parse("0 3 * * *", &f->cron, &err), ERR_NONE);
    f->plans[0].cron = &f->cron;
    f->plans[0].schedule = 11;
    f->ends_at_once = true;
    const int64_t hour = 3600 * 1000, day = 24 * hour;
    int64_t midnight = wall_ms;
    open_all(f);
    assert_int_equal(f->run_count, 0);
    assert_int_equal(status_of(f, 0).next_ms, midnight + 3 * hour);
    sleep_both(2 * hour);
    load_recorded(f, "etl", true); /* does not stand for the one at three */
    turn(f);
    assert_int_equal(f->run_count, 1);
    assert_int_equal(status_of(f, 0).next_ms, midnight + 3 * hour);
    sleep_both(hour);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 2);
    assert_int_equal(status_of(f, 0).facts.trigger, TRIGGER_SCHEDULE);
    assert_int_equal(status_of(f, 0).next_ms, midnight + day + 3 * hour);
    kill_all(f);
    sleep_both(5 * day);
    open_all(f);
    assert_int_equal(f->run_count, 3);
    assert_int_equal(status_of(f, 0).next_ms, midnight + 6 * day + 3 * hour);
    kill_all(f);
    /* another time of day: what it would have been before is nothing missed */
    assert_int_equal(cron_parse("0 1 * * *", &f->cron, &err), ERR_NONE);
    f->plans[0].schedule = 12;
    sleep_both(3 * day);
    open_all(f);
    assert_int_equal(f->run_count, 3);
    assert_int_equal(status_of(f, 0).next_ms, midnight + 9 * day + hour);
}

static void a_clock_set_back_makes_no_wait_longer(void **state)
{
    struct fixture *f = *state;
    f->plans[0].every_ms = 60000;
    f->ends_at_once = true;
    open_all(f);
    sleep_both(60000);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1);
    wall_ms -= 30LL * 24 * 3600 * 1000;
    assert_true(status_of(f, 0).next_ms <= wall_ms + 60000);
}

static void a_failed_schedule_waits_for_the_next_time(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    assert_int_equal(cron_parse("0 * * * *", &f->cron, &err), ERR_NONE);
    f->plans[0].cron = &f->cron;
    f->ends_at_once = true;
    open_all(f);
    err_set(&f->end_with, ERR_INPUT, false, "no such table");
    sleep_both(3600 * 1000);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1);
    assert_true(pipelines_are_quiet(f->set));
    /* one that may pass is not given up */
    err_set(&f->end_with, ERR_REMOTE, true, "locked");
    sleep_both(3600 * 1000);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 2);
    assert_false(pipelines_are_quiet(f->set));
    sleep_both(2000);
    err_clear(&f->end_with);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 3);
    assert_true(pipelines_are_quiet(f->set));
}

/* ---- by hand ---- */

static void on_answer(void *arg, const struct pipeline_facts *facts, const struct err *err)
{
    struct fixture *f = arg;
    f->answers++;
    f->facts = *facts;
    err_clear(&f->answer);
    if (err != NULL)
        f->answer = *err;
}

static void ask(struct fixture *f, const char *name)
{
    struct err err = {0};
    unsigned before = f->answers;
    if (pipelines_ask(f->set, name, on_answer, f, &err) != ERR_NONE)
        fail_msg("%s", err.text);
    assert_int_equal(f->answers, before); /* never from inside the call */
    turn(f);
}

static void who_asks_is_told_how_it_ended(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    ask(f, "etl");
    assert_int_equal(f->run_count, 1);
    ask(f, "etl"); /* during it: the next one is theirs */
    end_run(f, 0);
    turn(f);
    assert_int_equal(f->answers, 1);
    assert_int_equal(f->answer.code, ERR_NONE);
    assert_int_equal(f->facts.statements, 3);
    assert_int_equal(f->run_count, 2);
    err_set(&f->end_with, ERR_INPUT, false, "x.sql:1: no");
    end_run(f, 1);
    turn(f);
    assert_int_equal(f->answers, 2);
    assert_string_equal(f->answer.text, "x.sql:1: no");
    /* a failure that may pass is told, not tried again behind their back */
    err_set(&f->end_with, ERR_REMOTE, true, "locked");
    ask(f, "etl");
    end_run(f, 2);
    turn(f);
    assert_string_equal(f->answer.text, "locked");
    sleep_both(3600 * 1000);
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 3);
}

static void who_asks_in_vain_is_told_why(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    open_all(f);
    assert_int_equal(pipelines_ask(f->set, "elt", on_answer, f, &err), ERR_CONFIG);
    assert_string_equal(err.text, "there is no pipeline elt; did you mean etl?");
    f->readiness = DEST_REFUSES;
    ask(f, "etl");
    assert_int_equal(f->answers, 1);
    assert_string_equal(f->answer.text, "destination db is down: no route");
    f->readiness = DEST_WAITS; /* it is being opened: wait */
    ask(f, "etl");
    assert_int_equal(f->answers, 1);
    f->readiness = DEST_READY;
    pipelines_pump(f->set);
    turn(f);
    assert_int_equal(f->run_count, 1);
    end_run(f, 0);
    turn(f);
    assert_int_equal(f->answers, 2);
    f->readiness = DEST_WAITS;
    ask(f, "etl");
    pipelines_stop(f->set);
    assert_int_equal(f->answers, 3);
    assert_int_equal(f->answer.code, ERR_STOPPED);
    assert_int_equal(pipelines_ask(f->set, "etl", on_answer, f, &err), ERR_STOPPED);
    f->run_err = (struct err){0};
}

static void a_driver_that_refuses_is_a_failure_like_others(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    err_set(&f->run_err, ERR_SYSTEM, true, "out of memory");
    ask(f, "etl");
    assert_int_equal(f->answers, 1);
    assert_string_equal(f->answer.text, "out of memory");
    assert_int_equal(f->holds, 0);
}

/* ---- the end ---- */

static void what_is_stopped_is_owed(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    load_recorded(f, "etl", true);
    turn(f);
    close_set(f);
    assert_int_equal(f->aborts, 1);
    close_ledger(f);
    open_all(f);
    assert_int_equal(f->run_count, 2);
    assert_int_equal(pipelines_failed(f->set), 0);
}

static void stopping_while_a_run_begins_runs_nothing(void **state)
{
    struct fixture *f = *state;
    open_all(f);
    load_recorded(f, "etl", true);
    assert_int_equal(pipelines_running(f->set), 1); /* the ledger is asked */
    close_set(f);
    assert_int_equal(f->run_count, 0);
    close_ledger(f);
    open_all(f);
    assert_int_equal(f->run_count, 1);
}

static void without_memory_nothing_is_lost(void **state)
{
    struct fixture *f = *state;
    f->ends_at_once = true;
    ALLOC_FAULT_SWEEP
    {
        struct err err = {0};
        size_t before = f->run_count;
        f->is_closed = f->is_ledger_closed = false;
        long nth = alloc_fault_left;
        alloc_fault_set(0);
        struct ledger_opened opened;
        assert_int_equal(ledger_open(&f->loop, &(struct ledger_options){.path = f->path}, &f->ledger, &opened, &err),
                         ERR_NONE);
        if (open_set(f, &err) != ERR_NONE)
            fail_msg("%s", err.text);
        load_recorded(f, "etl", false);
        alloc_fault_set(nth);
        pipelines_pump(f->set);
        turn(f);
        bool was_hit = alloc_fault_hit();
        alloc_fault_left = 0;
        pipelines_pump(f->set); /* as the engine does when the ledger works again */
        turn(f);
        alloc_fault_was_hit = was_hit;
        assert_true(f->run_count > before);
        assert_true(pipelines_are_quiet(f->set));
        f->run_count = 0;
        close_set(f);
        close_ledger(f);
    }
}

static void opening_without_memory_fails_cleanly(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    struct ledger_opened opened;
    assert_int_equal(ledger_open(&f->loop, &(struct ledger_options){.path = f->path}, &f->ledger, &opened, &err),
                     ERR_NONE);
    ALLOC_FAULT_SWEEP
    {
        enum err_code code = open_set(f, &err);
        if (alloc_fault_hit())
            assert_int_equal(code, ERR_SYSTEM);
        long left = alloc_fault_left;
        alloc_fault_left = 0;
        if (code == ERR_NONE) {
            f->is_closed = false;
            close_set(f);
        }
        alloc_fault_left = left;
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
        T(loads_are_followed_by_one_run),
        T(loads_without_end_do_not_put_it_off_for_ever),
        T(a_load_during_a_run_is_followed_by_one_more),
        T(a_load_the_loop_has_not_heard_of_counts),
        T(one_destination_runs_one_at_a_time_in_order),
        T(what_a_load_asked_for_survives_a_kill),
        T(a_failure_that_may_pass_is_tried_again),
        T(a_failure_for_good_waits_for_the_next_reason),
        T(a_refused_login_stays_owed),
        T(every_counts_from_the_last_run),
        T(cron_catches_up_once),
        T(a_clock_set_back_makes_no_wait_longer),
        T(a_failed_schedule_waits_for_the_next_time),
        T(who_asks_is_told_how_it_ended),
        T(who_asks_in_vain_is_told_why),
        T(a_driver_that_refuses_is_a_failure_like_others),
        T(what_is_stopped_is_owed),
        T(stopping_while_a_run_begins_runs_nothing),
        T(without_memory_nothing_is_lost),
        T(opening_without_memory_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
