/*
 * pipes.c -- the engine's side of pipelines: what a destination is to them, who asks for them; and `init`, which runs
 * between connect() and the first load.
 */
#include "job_internal.h"

#include <stdio.h>

/* ---- what the room of pipelines asks of us ---- */

static struct outlet *outlet_named(struct world *w, const char *name)
{
    for (size_t i = 0; i < w->outlet_count; i++)
        if (strcmp(w->outlets[i].config->name, name) == 0)
            return &w->outlets[i];
    return NULL;
}

static enum pipeline_readiness readiness(void *arg, const char *dest, char *ret, size_t size)
{
    struct world *w = arg;
    struct engine *e = w->engine;
    const struct outlet *o = outlet_named(w, dest);
    /* Loads of the configuration before this one still run: what they end with belongs to the runs that follow. */
    if (o == NULL || w->is_stopping || e->is_draining || e->old != NULL || ledger_problem(e->ledger)[0] != '\0')
        return DEST_WAITS;
    if (o->health == OUTLET_DOWN || o->health == OUTLET_BLOCKED) {
        snprintf(ret, size, "destination %s is %s: %s", dest, o->health == OUTLET_DOWN ? "down" : "blocked", o->reason);
        return DEST_REFUSES;
    }
    return o->health == OUTLET_OK && o->identity_known ? DEST_READY : DEST_WAITS;
}

static bool is_busy(void *arg, const char *dest)
{
    const struct outlet *o = outlet_named(arg, dest);
    return o != NULL && (o->in_flight > 0 || o->is_claiming);
}

static enum err_code run_scripts(void *arg, const char *dest, struct scripts *scripts, struct err *err)
{
    struct outlet *o = outlet_named(arg, dest);
    return o->config->ops->run_scripts(o->state, scripts, err);
}

static void abort_scripts(void *arg, const char *dest, struct scripts *scripts)
{
    struct outlet *o = outlet_named(arg, dest);
    o->config->ops->abort_scripts(o->state, scripts);
}

static uint64_t wait_ms(void *arg, const char *dest, int64_t tries)
{
    struct world *w = arg;
    return backoff_ms(w->engine, &outlet_named(w, dest)->config->retry, tries);
}

static void ledger_failed(void *arg)
{
    struct world *w = arg;
    engine_ledger_failed(w->engine);
}

static void hold(void *arg)
{
    world_hold(arg);
}

static void release(void *arg)
{
    world_release(arg);
}

static void changed(void *arg)
{
    struct world *w = arg;
    engine_job_ended(w->engine);
}

/* ---- the set of a world ---- */

static uint64_t schedule_hash(const struct config *config, const struct config_pipeline *p)
{
    uint64_t h = path_hash(p->cron_text) ^ (path_hash(config->timezone != NULL ? config->timezone : "") << 1);
    return h & INT64_MAX;
}

struct pipeline_plan engine_plan(const struct config *config, const struct config_pipeline *p)
{
    return (struct pipeline_plan){.name = p->name,
                                  .dest = p->dest->name,
                                  .sql = p->sql,
                                  .settings = p->settings,
                                  .setting_count = p->setting_count,
                                  .every_ms = p->every_ms,
                                  .cron = p->cron_text[0] != '\0' ? &p->cron : NULL,
                                  .schedule = schedule_hash(config, p)};
}

enum err_code pipes_open(struct world *w, struct err *err)
{
    const struct config *config = w->config;
    struct engine *e = w->engine;
    w->plans = calloc(config->pipeline_count + 1, sizeof *w->plans);
    if (w->plans == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < config->pipeline_count; i++)
        w->plans[i] = engine_plan(config, &config->pipelines[i]);
    const struct pipeline_hooks hooks = {.arg = w,
                                         .readiness = readiness,
                                         .is_busy = is_busy,
                                         .run = run_scripts,
                                         .abort = abort_scripts,
                                         .backoff_ms = wait_ms,
                                         .ledger_failed = ledger_failed,
                                         .hold = hold,
                                         .release = release,
                                         .changed = changed};
    return pipelines_open(e->loop, e->ledger, w->plans, config->pipeline_count, &hooks, !e->by_hand, &w->pipelines,
                          err);
}

void pipes_pump(struct world *w)
{
    if (w->pipelines != NULL)
        pipelines_pump(w->pipelines);
}

void pipes_loaded(struct engine *e, const struct config_flow *flow)
{
    if (e->world == NULL || e->world->pipelines == NULL)
        return;
    for (size_t i = 0; i < flow->then.count; i++)
        pipelines_wanted(e->world->pipelines, flow->then.items[i]);
}

enum err_code pipes_want(struct ledger_tx *tx, const struct config_flow *flow, struct err *err)
{
    for (size_t i = 0; i < flow->then.count; i++)
        if (pipeline_want(tx, flow->then.items[i], err) != ERR_NONE)
            return err->code;
    return ERR_NONE;
}

bool pipes_are_running(const struct engine *e)
{
    return (e->world != NULL && e->world->pipelines != NULL && pipelines_running(e->world->pipelines) > 0) ||
           (e->old != NULL && e->old->pipelines != NULL && pipelines_running(e->old->pipelines) > 0);
}

void pipes_abort(struct engine *e)
{
    if (e->world != NULL && e->world->pipelines != NULL)
        pipelines_abort(e->world->pipelines);
    if (e->old != NULL && e->old->pipelines != NULL)
        pipelines_abort(e->old->pipelines);
}

enum err_code engine_pipeline(struct engine *e, const char *name, pipeline_cb *cb, void *arg, struct err *err)
{
    if (e->world == NULL || e->is_draining || e->world->pipelines == NULL)
        return err_set(err, ERR_STOPPED, false, "chute is stopping");
    return pipelines_ask(e->world->pipelines, name, cb, arg, err);
}

uint64_t engine_failed_pipelines(const struct engine *e)
{
    const struct world *w = e->world;
    if (w == NULL || w->pipelines == NULL)
        return 0;
    uint64_t n = pipelines_failed(w->pipelines);
    for (size_t i = 0; i < w->outlet_count; i++)
        n += init_is_due(&w->outlets[i]);
    return n;
}

/* ---- init ---- */

bool init_is_due(const struct outlet *o)
{
    return o->config->init.count > 0 && !o->init_done && o->config->ops->run_scripts != NULL;
}

static void on_init_finished(struct scripts *scripts)
{
    struct outlet *o = scripts->owner;
    struct log_about about = {.dest = o->config->name};
    struct err err = scripts->err;
    o->is_init_running = false;
    if (err.code == ERR_NONE) {
        o->init_done = true;
        log_write(LOG_INFO, &about, "init: %llu statement%s", (unsigned long long)scripts->statements,
                  scripts->statements == 1 ? "" : "s");
        outlet_opened(o, NULL);
        return;
    }
    if (err.code == ERR_INPUT || err.code == ERR_CONFIG)
        err.code = ERR_DENIED; /* a hand must help; the files wait, and it is tried again */
    err_wrap(&err, "init");
    outlet_opened(o, &err);
}

void init_start(struct outlet *o)
{
    struct err err = {0};
    memset(&o->init, 0, sizeof o->init);
    o->init.name = "init";
    o->init.files = o->config->init.items;
    o->init.file_count = o->config->init.count;
    o->init.finished = on_init_finished;
    o->init.owner = o;
    o->is_init_running = true;
    if (o->config->ops->run_scripts(o->state, &o->init, &err) == ERR_NONE)
        return;
    o->init.err = err;
    on_init_finished(&o->init);
}

void init_stop(struct outlet *o)
{
    if (o->is_init_running)
        o->config->ops->abort_scripts(o->state, &o->init);
}
