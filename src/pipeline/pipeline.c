/*
 * pipeline.c -- see pipeline.h, and DESIGN.md for the states.
 */
#include "pipeline_internal.h"

#include "clock.h"
#include "log.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

/* The wall clock may be set while we sleep: a schedule looks at it at least this often. */
#define LOOK_MS (3600 * 1000)
/* So long a run waits for loads that are under way, so that one run follows them all. */
#define THEN_WAIT_MS 10000

struct asker {
    struct asker *next;
    pipeline_cb *cb;
    void *arg;
};

enum step { STEP_IDLE, STEP_BEGINNING, STEP_RUNNING, STEP_RECORDING };

struct pipeline {
    struct pipelines *set;
    const struct pipeline_plan *plan;
    struct pipeline_facts facts; /* as in the ledger; is_wanted also as the loop has heard since */
    enum step step;
    bool wanted_again;     /* a load was recorded since the run began */
    uint64_t wanted_ms;    /* monotonic: since when facts.is_wanted; 0: from before our start */
    struct asker *askers;  /* of the next run */
    struct asker *serving; /* of the run that is on */
    int64_t tries;         /* failed for a while, in a row */
    uint64_t next_try_ms;  /* monotonic */
    struct scripts scripts;
    enum pipeline_trigger trigger;
    int64_t began_ms, due_ms; /* of the run that is on */
    uint64_t began_mono_ms;
    struct pipeline_facts result; /* on its way into the ledger */
    bool is_settled;              /* nothing more is owed for it: it ended well, or badly for good */
    uint64_t good, failed;
    double seconds;
};

struct pipelines {
    uv_loop_t *loop;
    struct ledger *ledger;
    struct pipeline_hooks hooks;
    struct pipeline *items;
    size_t count;
    bool is_automatic;
    bool is_known;   /* the ledger's facts have been read */
    bool is_reading; /* they are being read */
    bool is_stopping;
    uv_timer_t timer;
    void (*closed)(void *arg);
    void *closed_arg;
};

static void on_timer(uv_timer_t *timer)
{
    pipelines_pump(timer->data);
}

enum err_code pipelines_open(uv_loop_t *loop, struct ledger *ledger, const struct pipeline_plan *plans, size_t count,
                             const struct pipeline_hooks *hooks, bool is_automatic, struct pipelines **ret,
                             struct err *err)
{
    struct pipelines *s = calloc(1, sizeof *s);
    struct pipeline *items = calloc(count + 1, sizeof *items);
    if (s == NULL || items == NULL) {
        free(s);
        free(items);
        return err_nomem(err);
    }
    *s = (struct pipelines){
        .loop = loop, .ledger = ledger, .hooks = *hooks, .items = items, .count = count, .is_automatic = is_automatic};
    for (size_t i = 0; i < count; i++) {
        items[i].set = s;
        items[i].plan = &plans[i];
    }
    uv_timer_init(loop, &s->timer);
    s->timer.data = s;
    *ret = s;
    return ERR_NONE;
}

/* ---- what the ledger knows ---- */

/* A schedule that is new, or has changed, has nothing to catch up: it counts from now on. */
static enum err_code begin_schedule(struct ledger_tx *tx, struct pipeline *p, int64_t now_ms, struct err *err)
{
    struct pipeline_facts *f = &p->facts;
    bool is_known = f->served_ms > 0 && f->served_ms <= now_ms && f->schedule == p->plan->schedule;
    bool has_run = p->plan->every_ms > 0 && f->began_ms > 0;
    if ((p->plan->cron == NULL && p->plan->every_ms == 0) || is_known || has_run)
        return ERR_NONE;
    f->served_ms = now_ms;
    f->schedule = p->plan->schedule;
    return facts_put(tx, p->plan->name, f, err);
}

static enum err_code read_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct pipelines *s = arg;
    int64_t now = clock_wall_ms();
    for (size_t i = 0; i < s->count; i++) {
        struct pipeline *p = &s->items[i];
        if (pipeline_facts_get(tx, p->plan->name, &p->facts, err) != ERR_NONE ||
            (s->is_automatic && begin_schedule(tx, p, now, err) != ERR_NONE))
            return err->code;
    }
    return ERR_NONE;
}

static void on_read(void *arg, const struct err *err)
{
    struct pipelines *s = arg;
    s->is_reading = false;
    if (err != NULL) {
        s->hooks.ledger_failed(s->hooks.arg);
    } else {
        s->is_known = true;
        for (size_t i = 0; i < s->count; i++) {
            struct pipeline *p = &s->items[i];
            p->facts.is_wanted = p->facts.is_wanted || p->wanted_again;
            p->wanted_again = false;
        }
        pipelines_pump(s);
    }
    s->hooks.changed(s->hooks.arg);
    s->hooks.release(s->hooks.arg);
}

/* Not before somebody may use them: until then a configuration before this one may still write them. */
static void read_facts(struct pipelines *s)
{
    struct err err = {0};
    char why[8];
    bool may_read = false;
    for (size_t i = 0; i < s->count && !may_read; i++)
        may_read = s->hooks.readiness(s->hooks.arg, s->items[i].plan->dest, why, sizeof why) != DEST_WAITS;
    if (s->is_reading || s->is_stopping || !may_read)
        return;
    s->is_reading = true;
    s->hooks.hold(s->hooks.arg);
    if (ledger_run(s->ledger, read_fn, on_read, s, &err) == ERR_NONE)
        return;
    s->is_reading = false;
    s->hooks.ledger_failed(s->hooks.arg);
    s->hooks.release(s->hooks.arg);
}

/* ---- one run ---- */

static void tell_askers(struct asker **list, const struct pipeline_facts *facts, const struct err *err)
{
    while (*list != NULL) {
        struct asker *a = *list;
        *list = a->next;
        a->cb(a->arg, facts, err);
        free(a);
    }
}

static const char *trigger_words(enum pipeline_trigger trigger)
{
    return trigger == TRIGGER_LOAD ? "after a load" : trigger == TRIGGER_SCHEDULE ? "by schedule" : "asked for by hand";
}

static void say_end(const struct pipeline *p, const struct err *err)
{
    struct log_about about = {.dest = p->plan->dest};
    const struct pipeline_facts *r = &p->result;
    char took[32];
    text_format_duration((uint64_t)r->duration_ms, took, sizeof took);
    if (err->code == ERR_NONE)
        log_write(LOG_INFO, &about, "pipeline %s: %llu statement%s in %s, %s", p->plan->name,
                  (unsigned long long)r->statements, r->statements == 1 ? "" : "s", took, trigger_words(r->trigger));
    else if (err->code == ERR_STOPPED)
        log_write(LOG_WARN, &about, "pipeline %s: stopped; nothing of it was kept, it runs again", p->plan->name);
    else if (r->is_permanent)
        log_write(LOG_ERROR, &about,
                  "pipeline %s failed: %s; it waits for the next load, its schedule, or chute pipeline %s",
                  p->plan->name, err->text, p->plan->name);
    else if (p->tries == 1)
        log_write(LOG_WARN, &about, "pipeline %s: %s; it is tried again", p->plan->name, err->text);
    else
        log_write(LOG_DEBUG, &about, "pipeline %s: %s; try %lld", p->plan->name, err->text, (long long)p->tries);
}

static enum err_code end_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct pipeline *p = arg;
    return facts_end(tx, p->plan->name, &p->result, p->is_settled, err);
}

/* The run is over and recorded, or could not be. */
static void finish(struct pipeline *p, bool is_recorded)
{
    struct pipelines *s = p->set;
    struct err err = {0};
    if (is_recorded) {
        bool wanted_again = p->wanted_again;
        p->facts = p->result;
        p->facts.is_wanted = p->facts.is_wanted || wanted_again;
        p->wanted_ms = clock_mono_ms();
    }
    p->wanted_again = false;
    p->step = STEP_IDLE;
    if (p->result.error[0] != '\0')
        err_set(&err, p->result.is_permanent ? ERR_INPUT : ERR_REMOTE, !p->result.is_permanent, "%s", p->result.error);
    tell_askers(&p->serving, &p->result, err.code == ERR_NONE ? NULL : &err);
    pipelines_pump(s);
    s->hooks.changed(s->hooks.arg);
    s->hooks.release(s->hooks.arg);
}

static void record(struct pipeline *p);

static void on_recorded(void *arg, const struct err *err)
{
    struct pipeline *p = arg;
    if (err != NULL)
        p->set->hooks.ledger_failed(p->set->hooks.arg);
    /* What the ledger did not take is owed by it still, so that the scripts run again: they are written for that. */
    finish(p, err == NULL);
}

static void record(struct pipeline *p)
{
    struct err err = {0};
    p->step = STEP_RECORDING;
    if (ledger_run(p->set->ledger, end_fn, on_recorded, p, &err) != ERR_NONE)
        on_recorded(p, &err);
}

static void ended(struct pipeline *p, const struct err *err)
{
    struct pipeline_facts *r = &p->result;
    int64_t now = clock_wall_ms();
    *r = p->facts;
    r->trigger = p->trigger;
    r->began_ms = p->began_ms;
    r->ended_ms = now;
    r->duration_ms = (int64_t)(clock_mono_ms() - p->began_mono_ms);
    r->statements = p->scripts.statements;
    snprintf(r->error, sizeof r->error, "%s", err->text);
    log_redact(r->error);
    if (err->code == ERR_NONE)
        r->error[0] = '\0';
    r->is_permanent = err->code == ERR_INPUT || err->code == ERR_CONFIG;
    p->is_settled = err->code == ERR_NONE || r->is_permanent;
    p->seconds += (double)r->duration_ms / 1000;
    if (p->is_settled) {
        p->tries = 0;
        r->served_ms = p->due_ms != INT64_MAX && p->began_ms > r->served_ms ? p->began_ms : r->served_ms;
    } else if (err->code != ERR_STOPPED) {
        p->tries++;
        p->next_try_ms = clock_mono_ms() + p->set->hooks.backoff_ms(p->set->hooks.arg, p->plan->dest, p->tries);
    }
    if (!p->is_settled)
        r->began_ms = p->facts.began_ms; /* `every` counts from a run that came to its end */
    if (err->code == ERR_NONE)
        r->good_ms = now;
    p->good += err->code == ERR_NONE;
    p->failed += r->is_permanent;
    say_end(p, err);
    record(p);
}

static void on_scripts_finished(struct scripts *scripts)
{
    struct err err = scripts->err;
    ended(scripts->owner, &err);
}

static void start_scripts(struct pipeline *p)
{
    struct pipelines *s = p->set;
    struct err err = {0};
    p->step = STEP_RUNNING;
    p->began_ms = clock_wall_ms();
    p->began_mono_ms = clock_mono_ms();
    memset(&p->scripts, 0, sizeof p->scripts);
    p->scripts.name = p->plan->name;
    p->scripts.files = p->plan->sql.items;
    p->scripts.file_count = p->plan->sql.count;
    p->scripts.settings = p->plan->settings;
    p->scripts.setting_count = p->plan->setting_count;
    p->scripts.finished = on_scripts_finished;
    p->scripts.owner = p;
    if (s->is_stopping)
        err_set(&err, ERR_STOPPED, true, "stopped before it began");
    else if (s->hooks.run(s->hooks.arg, p->plan->dest, &p->scripts, &err) == ERR_NONE)
        return;
    ended(p, &err);
}

static enum err_code begin_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct pipeline *p = arg;
    return facts_begin(tx, p->plan->name, err);
}

static void on_begun(void *arg, const struct err *err)
{
    struct pipeline *p = arg;
    struct pipelines *s = p->set;
    if (err == NULL) {
        p->wanted_again = false; /* what was recorded until now is followed by this run */
        start_scripts(p);
        return;
    }
    s->hooks.ledger_failed(s->hooks.arg); /* pumps when it works again */
    p->step = STEP_IDLE;
    LL_CONCAT(p->serving, p->askers);
    p->askers = p->serving;
    p->serving = NULL;
    s->hooks.changed(s->hooks.arg);
    s->hooks.release(s->hooks.arg);
}

static void begin(struct pipeline *p, enum pipeline_trigger trigger, int64_t due_ms)
{
    struct pipelines *s = p->set;
    struct err err = {0};
    p->trigger = trigger;
    p->due_ms = due_ms;
    p->serving = p->askers;
    p->askers = NULL;
    p->step = STEP_BEGINNING;
    s->hooks.hold(s->hooks.arg);
    /* Also where nothing is owed: a load may have been recorded this moment, and its news not be here yet. */
    if (ledger_run(s->ledger, begin_fn, on_begun, p, &err) != ERR_NONE)
        on_begun(p, &err);
}

/* ---- which, and when ---- */

static bool dest_is_busy(const struct pipelines *s, const char *dest)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->items[i].step != STEP_IDLE && strcmp(s->items[i].plan->dest, dest) == 0)
            return true;
    return false;
}

/* When P is to run by itself: wall clock ms, 0 at once; INT64_MAX: nobody wants it. */
static int64_t wanted_at(const struct pipeline *p, int64_t now_ms)
{
    int64_t at = INT64_MAX;
    if (!p->set->is_automatic)
        return at;
    uint64_t mono = clock_mono_ms();
    at = plan_due(p->plan, &p->facts, now_ms);
    if (p->facts.is_wanted && at > now_ms) {
        uint64_t latest = p->wanted_ms + THEN_WAIT_MS;
        bool is_busy = latest > mono && p->set->hooks.is_busy(p->set->hooks.arg, p->plan->dest);
        int64_t then = is_busy ? now_ms + (int64_t)(latest - mono) : 0;
        at = then < at ? then : at;
    }
    if (at <= now_ms && p->tries > 0 && p->next_try_ms > mono)
        at = now_ms + (int64_t)(p->next_try_ms - mono);
    return at;
}

/* Start P if it may. *SLEEP_MS becomes shorter if it wants to later. */
static void pump_one(struct pipeline *p, int64_t *sleep_ms)
{
    struct pipelines *s = p->set;
    int64_t now = clock_wall_ms(), at = wanted_at(p, now);
    char why[400];
    if (p->step != STEP_IDLE || (p->askers == NULL && at == INT64_MAX) || dest_is_busy(s, p->plan->dest))
        return; /* the end of what is on pumps */
    enum pipeline_readiness readiness = s->hooks.readiness(s->hooks.arg, p->plan->dest, why, sizeof why);
    if (readiness == DEST_REFUSES && p->askers != NULL) {
        struct err err = {0};
        err_set(&err, ERR_REMOTE, true, "%s", why);
        tell_askers(&p->askers, &p->facts, &err);
    }
    if (readiness != DEST_READY)
        return; /* when it is ready we are told */
    int64_t due = plan_due(p->plan, &p->facts, now);
    int64_t served = due <= now ? due : INT64_MAX;
    if (p->askers != NULL)
        begin(p, TRIGGER_HAND, served);
    else if (at <= now)
        begin(p, p->facts.is_wanted ? TRIGGER_LOAD : TRIGGER_SCHEDULE, served);
    else if (at - now < *sleep_ms)
        *sleep_ms = at - now;
}

void pipelines_pump(struct pipelines *s)
{
    int64_t sleep_ms = INT64_MAX;
    if (s->is_stopping || s->count == 0)
        return;
    if (!s->is_known) {
        read_facts(s);
        return;
    }
    uv_timer_stop(&s->timer);
    for (size_t i = 0; i < s->count && !s->is_stopping; i++)
        pump_one(&s->items[i], &sleep_ms);
    if (sleep_ms != INT64_MAX && !s->is_stopping)
        uv_timer_start(&s->timer, on_timer, (uint64_t)(sleep_ms < LOOK_MS ? sleep_ms : LOOK_MS) + 1, 0);
}

void pipelines_wanted(struct pipelines *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++) {
        struct pipeline *p = &s->items[i];
        if (strcmp(p->plan->name, name) != 0)
            continue;
        if (p->step == STEP_IDLE && s->is_known) {
            if (p->facts.is_wanted)
                return; /* as most of many loads */
            p->facts.is_wanted = true;
            p->wanted_ms = clock_mono_ms();
            pipelines_pump(s);
        } else {
            p->wanted_again = true;
        }
        return;
    }
}

enum err_code pipelines_ask(struct pipelines *s, const char *name, pipeline_cb *cb, void *arg, struct err *err)
{
    struct pipeline *p = NULL;
    const char **names = calloc(s->count + 1, sizeof *names);
    struct asker *a = calloc(1, sizeof *a);
    if (names == NULL || a == NULL) {
        free(names);
        free(a);
        return err_nomem(err);
    }
    for (size_t i = 0; i < s->count; i++) {
        names[i] = s->items[i].plan->name;
        if (strcmp(names[i], name) == 0)
            p = &s->items[i];
    }
    const char *near = text_nearest(name, names);
    free(names);
    if (p == NULL || s->is_stopping) {
        free(a);
        if (p != NULL)
            return err_set(err, ERR_STOPPED, false, "chute is stopping");
        return err_set(err, ERR_CONFIG, false, "there is no pipeline %s%s%s%s", name,
                       near != NULL ? "; did you mean " : "", near != NULL ? near : "", near != NULL ? "?" : "");
    }
    *a = (struct asker){.cb = cb, .arg = arg};
    LL_APPEND(p->askers, a);
    uv_timer_start(&s->timer, on_timer, 0, 0); /* never an answer from inside this call */
    return ERR_NONE;
}

bool pipelines_are_quiet(const struct pipelines *s)
{
    int64_t now = clock_wall_ms();
    if (s->count == 0 || (!s->is_automatic && s->is_known))
        return pipelines_running(s) == 0;
    if (!s->is_known)
        return false;
    for (size_t i = 0; i < s->count; i++) {
        const struct pipeline *p = &s->items[i];
        bool is_due = p->facts.is_wanted || plan_due(p->plan, &p->facts, now) <= now;
        if (p->step != STEP_IDLE || p->askers != NULL || is_due)
            return false;
    }
    return true;
}

size_t pipelines_running(const struct pipelines *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++)
        n += s->items[i].step != STEP_IDLE;
    return n;
}

uint64_t pipelines_failed(const struct pipelines *s)
{
    uint64_t n = 0;
    for (size_t i = 0; i < s->count; i++)
        n += s->items[i].failed;
    return n;
}

size_t pipelines_count(const struct pipelines *s)
{
    return s->count;
}

void pipelines_status(const struct pipelines *s, struct pipeline_status *ret)
{
    int64_t now = clock_wall_ms();
    for (size_t i = 0; i < s->count; i++) {
        const struct pipeline *p = &s->items[i];
        int64_t at = s->is_known ? wanted_at(p, now) : INT64_MAX;
        ret[i] = (struct pipeline_status){.name = p->plan->name,
                                          .dest = p->plan->dest,
                                          .facts = p->facts,
                                          .good = p->good,
                                          .failed = p->failed,
                                          .seconds = p->seconds};
        if (p->step != STEP_IDLE)
            ret[i].state = PIPELINE_RUNNING;
        else if (p->tries > 0)
            ret[i].state = PIPELINE_RETRYING;
        else if (p->facts.is_wanted || p->askers != NULL || at <= now)
            ret[i].state = PIPELINE_WAITING;
        ret[i].next_ms = at == INT64_MAX ? 0 : at == 0 ? now : at;
    }
}

/* ---- the end ---- */

void pipelines_stop(struct pipelines *s)
{
    const struct err err = {.code = ERR_STOPPED, .retryable = true, .text = "it did not begin: chute stops or reloads"};
    if (s->is_stopping)
        return;
    s->is_stopping = true;
    uv_timer_stop(&s->timer);
    for (size_t i = 0; i < s->count; i++)
        tell_askers(&s->items[i].askers, &s->items[i].facts, &err);
}

void pipelines_abort(struct pipelines *s)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->items[i].step == STEP_RUNNING)
            s->hooks.abort(s->hooks.arg, s->items[i].plan->dest, &s->items[i].scripts);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct pipelines *s = handle->data;
    void (*closed)(void *) = s->closed;
    void *arg = s->closed_arg;
    free(s->items);
    free(s);
    closed(arg);
}

void pipelines_close(struct pipelines *s, void (*closed)(void *arg), void *arg)
{
    pipelines_stop(s);
    s->closed = closed;
    s->closed_arg = arg;
    uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}
