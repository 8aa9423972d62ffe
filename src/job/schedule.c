/*
 * schedule.c -- sources that are asked for their files: when, and never while the last run is still on.
 *
 * A run is one listing and all that follows from it. When it begins is in the ledger (`schedule:SOURCE`), so that a
 * restart neither repeats it nor loses it: what came due while chute was down, or while a run was still on, is made up
 * for once. `every` counts from the beginning of a run; `cron` is read in the zone of this process (cron.h says what
 * happens when clocks are put forward or back). One timer, set for the next run and for nothing else.
 */
#include "job_internal.h"

#include <inttypes.h>
#include <stdio.h>

#define LONGEST_SLEEP_MS (24 * 3600 * 1000) /* a clock that is set meanwhile is noticed within a day */

static bool is_asked(const struct intake *in)
{
    return in->state != NULL && in->config->ops->fetch != NULL;
}

/* The first time after AFTER_MS; 0: no other run is planned. */
static int64_t next_after(const struct config_source *s, int64_t after_ms)
{
    if (s->every_ms > 0)
        return after_ms + (int64_t)s->every_ms;
    if (s->cron_text[0] == '\0')
        return 0;
    int64_t at = cron_next(&s->cron, after_ms);
    return at > 0 ? at : 0;
}

static void fact_key(const struct intake *in, char ret[256])
{
    snprintf(ret, 256, "schedule:%s", in->config->name);
}

static enum err_code begun_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    const struct intake *in = arg;
    char key[256], value[32];
    fact_key(in, key);
    snprintf(value, sizeof value, "%" PRId64, in->schedule.last_ms);
    return ledger_meta_put(tx, key, value, err);
}

static void on_begun(void *arg, const struct err *err)
{
    struct intake *in = arg;
    if (err != NULL)
        engine_ledger_failed(in->world->engine);
    world_release(in->world);
}

static void begin(struct intake *in)
{
    struct schedule *s = &in->schedule;
    struct err err = {0};
    s->last_ms = clock_wall_ms();
    s->next_ms = next_after(in->config, s->last_ms);
    s->is_running = true;
    s->is_due = false;
    in->clock = (struct clock_change){0};
    char key[256], value[32];
    fact_key(in, key);
    snprintf(value, sizeof value, "%" PRId64, s->last_ms);
    engine_remember(in->world->engine, key, value);
    world_hold(in->world);
    if (ledger_run_repeatable(in->world->engine->ledger, begun_fn, on_begun, in, &err) != ERR_NONE)
        on_begun(in, &err);
    intake_rescan(in);
}

static void arm(struct intake *in);

static void on_due(uv_timer_t *timer)
{
    struct intake *in = timer->data;
    struct schedule *s = &in->schedule;
    struct log_about about = {.source = in->config->name};
    if (in->world->is_stopping)
        return;
    if (s->next_ms != 0 && clock_wall_ms() >= s->next_ms) {
        if (!s->is_running) {
            begin(in);
        } else {
            if (!s->is_due)
                log_write(LOG_INFO, &about, "its next run is due and the last one is not over: it follows that one");
            s->is_due = true;
            s->next_ms = next_after(in->config, clock_wall_ms());
        }
    }
    arm(in);
}

static void arm(struct intake *in)
{
    struct schedule *s = &in->schedule;
    if (s->next_ms == 0 || in->world->is_stopping)
        return;
    int64_t wait = s->next_ms - clock_wall_ms();
    if (in->config->every_ms > 0 && wait > (int64_t)in->config->every_ms)
        s->next_ms = clock_wall_ms() + (wait = (int64_t)in->config->every_ms); /* the clock was set back */
    uv_timer_start(&s->timer, on_due, wait <= 0 ? 1 : wait > LONGEST_SLEEP_MS ? LONGEST_SLEEP_MS : (uint64_t)wait, 0);
}

/* What could not be listed is asked for again, with growing pauses: an hour is long for a connection that broke. */
void schedule_listed(struct intake *in, bool is_complete)
{
    struct schedule *s = &in->schedule;
    struct engine *e = in->world->engine;
    if (is_complete || e->once) {
        s->failed = 0;
        return;
    }
    const struct retry_options *r = &in->world->config->retry;
    int64_t again = clock_wall_ms() + (int64_t)(backoff_ms(e, r, ++s->failed) / 2 + r->first);
    if (s->next_ms == 0 || again < s->next_ms)
        s->next_ms = again;
    arm(in);
}

enum err_code schedule_open(struct intake *in, struct err *err)
{
    struct schedule *s = &in->schedule;
    struct engine *e = in->world->engine;
    char key[256];
    uv_timer_init(e->loop, &s->timer);
    uv_timer_init(e->loop, &in->up_timer);
    s->timer.data = in->up_timer.data = in;
    (void)err;
    if (!is_asked(in))
        return ERR_NONE;
    fact_key(in, key);
    const char *last = engine_fact(e, key);
    s->last_ms = last != NULL ? strtoll(last, NULL, 10) : 0;
    int64_t now = clock_wall_ms();
    if (s->last_ms > now) /* the clock was set back meanwhile */
        s->last_ms = 0;
    s->next_ms = s->last_ms != 0 ? next_after(in->config, s->last_ms) : now;
    if (e->once || s->next_ms == 0)
        s->next_ms = now;
    /* Nothing new is known before that run: what is in the ledger needs not wait for it. */
    if (s->next_ms > now)
        in->is_scanned = in->scan_over = true;
    return ERR_NONE;
}

void schedule_start(struct intake *in)
{
    if (is_asked(in))
        arm(in);
}

static bool has_jobs(const struct intake *in)
{
    const struct job *job;
    DL_FOREACH(in->world->engine->jobs, job)
        if (job->intake == in)
            return true;
    return false;
}

/* Files that are noted and not claimed yet belong to the run as well; those that failed and wait do not. */
static enum err_code count_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct intake *in = arg;
    const struct ledger_query q = {.source = in->config->name,
                                   .states = STATE_BIT(STATE_QUEUED) | STATE_BIT(STATE_LOADING),
                                   .due_by_ms = clock_wall_ms()};
    in->schedule.waiting = 0;
    return ledger_count(tx, &q, &in->schedule.waiting, err);
}

static void on_counted(void *arg, const struct err *err)
{
    struct intake *in = arg;
    struct schedule *s = &in->schedule;
    struct world *w = in->world;
    s->is_asking = false;
    if (err == NULL && s->waiting == 0 && s->is_running && !w->is_stopping && intake_is_quiet(in) && !has_jobs(in)) {
        s->is_running = false;
        if (s->is_due)
            begin(in);
        arm(in);
        spool_tidy(w->engine);
    }
    world_release(w);
}

void schedule_check(struct intake *in)
{
    struct schedule *s = &in->schedule;
    struct err err = {0};
    if (!s->is_running || s->is_asking || in->world->is_stopping || !intake_is_quiet(in) || has_jobs(in))
        return;
    world_hold(in->world);
    s->is_asking = true;
    if (ledger_run_repeatable(in->world->engine->ledger, count_fn, on_counted, in, &err) != ERR_NONE) {
        s->is_asking = false;
        world_release(in->world);
    }
}

void schedule_stop(struct intake *in)
{
    if (in->schedule.timer.data == NULL)
        return;
    uv_timer_stop(&in->schedule.timer);
    uv_timer_stop(&in->up_timer);
}
