/*
 * engine.c -- opens, reloads, drains and closes; and what all parts of the engine share.
 */
#include "job_internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>

const double load_bucket_bounds[LOAD_BUCKETS - 1] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120, 600};
const char *const retry_class_names[RETRY_CLASSES] = {"input", "remote", "system", "changed"};

/* ---- small things ---- */

/* Thread-safe: works on the pool make keys too. */
void engine_new_key(char ret[33])
{
    uint8_t bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) {
        int64_t now = clock_wall_ns();
        uint64_t mono = clock_mono_ms();
        memcpy(bytes, &now, sizeof now);
        memcpy(bytes + 8, &mono, sizeof mono);
    }
    text_hex(bytes, sizeof bytes, ret);
}

uint64_t engine_random(struct engine *e)
{
    e->random ^= e->random << 13; /* xorshift: jitter needs no more */
    e->random ^= e->random >> 7;
    e->random ^= e->random << 17;
    return e->random;
}

struct flow_counters *engine_counters(struct engine *e, const char *flow)
{
    for (size_t i = 0; i < e->counter_count; i++)
        if (strcmp(e->counters[i].flow, flow) == 0)
            return &e->counters[i];
    struct flow_counters *grown = realloc(e->counters, (e->counter_count + 1) * sizeof *grown);
    char *name = strdup(flow);
    if (grown != NULL)
        e->counters = grown;
    if (grown == NULL || name == NULL) {
        free(name);
        return NULL;
    }
    memset(&grown[e->counter_count], 0, sizeof *grown);
    grown[e->counter_count].flow = name;
    return &grown[e->counter_count++];
}

bool engine_flow_paused(const struct engine *e, const char *flow)
{
    for (size_t i = 0; i < e->paused_count; i++)
        if (strcmp(e->paused[i], flow) == 0)
            return true;
    return false;
}

void engine_pump_all(struct engine *e)
{
    if (e->world == NULL)
        return;
    for (size_t i = 0; i < e->world->outlet_count; i++)
        outlet_pump(&e->world->outlets[i]);
    pipes_pump(e->world);
}

static void rescan_lost(struct engine *e)
{
    for (size_t i = 0; i < e->world->intake_count; i++)
        if (e->world->intakes[i].is_lost)
            intake_rescan(&e->world->intakes[i]);
}

enum err_code engine_ask(struct engine *e, ledger_fn *fn, ledger_done *done, void *arg, struct err *err)
{
    if (ledger_run(e->ledger, fn, done, arg, err) != ERR_NONE)
        return err->code;
    e->asks++;
    return ERR_NONE;
}

void engine_answered(struct engine *e)
{
    if (--e->asks == 0 && e->is_closed)
        engine_finish_close(e);
}

/* ---- a ledger that can't be written ---- */

static enum err_code nothing_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    (void)arg;
    /* A real write, so that a full disk says so. */
    return ledger_meta_put(tx, "alive", "1", err);
}

static void on_ledger_timer(uv_timer_t *timer);

static void on_ledger_tried(void *arg, const struct err *err)
{
    struct engine *e = arg;
    e->ledger_trying = false;
    if (err == NULL && e->ledger_failing) {
        e->ledger_failing = false;
        log_info("the ledger is written again");
    }
    if (err != NULL) {
        engine_ledger_failed(e);
    } else if (!e->is_draining && e->world != NULL) {
        rescan_lost(e);
        engine_pump_all(e);
    }
    engine_answered(e);
}

static void on_ledger_timer(uv_timer_t *timer)
{
    struct engine *e = timer->data;
    struct err err = {0};
    e->ledger_timer_on = false;
    if (engine_ask(e, nothing_fn, on_ledger_tried, e, &err) == ERR_NONE)
        e->ledger_trying = true;
    else
        engine_ledger_failed(e);
}

/* Something could not be noted: look again when the ledger works, then let the scan find what was dropped. */
void engine_ledger_failed(struct engine *e)
{
    if (!e->ledger_failing && ledger_problem(e->ledger)[0] != '\0') {
        e->ledger_failing = true;
        log_error("%s: nothing new is taken until it can be written", ledger_problem(e->ledger));
    }
    if (e->ledger_timer_on || e->ledger_trying || e->is_draining || e->is_closed)
        return;
    e->ledger_timer_on = true;
    uv_timer_start(&e->ledger_timer, on_ledger_timer, LEDGER_RETRY_MS, 0);
}

/* ---- worlds ---- */

void world_hold(struct world *w)
{
    w->holds++;
}

static void world_close(struct world *w);

void world_release(struct world *w)
{
    if (--w->holds == 0 && w->is_stopping)
        world_close(w);
}

static void world_free(struct world *w)
{
    for (size_t i = 0; i < w->intake_count; i++)
        intake_forget(&w->intakes[i]);
    for (size_t i = 0; i < w->outlet_count; i++)
        spaces_forget(&w->outlets[i]);
    free(w->intakes);
    free(w->outlets);
    free(w->plans);
    config_unref(w->config);
    free(w);
}

static void engine_world_gone(struct engine *e, struct world *w)
{
    if (e->old == w)
        e->old = NULL;
    if (e->world == w)
        e->world = NULL;
    world_free(w);
    if (e->world != NULL)
        engine_pump_all(e);
    else if (e->is_closed)
        engine_finish_close(e);
}

static void one_closed(struct world *w)
{
    if (--w->closing == 0)
        engine_world_gone(w->engine, w);
}

static void on_driver_closed(void *arg)
{
    one_closed(arg);
}

static void on_pipelines_closed(void *arg)
{
    struct world *w = arg;
    w->pipelines = NULL;
    one_closed(w);
}

/* Settle looks at files through the source: it must be gone first. */
static void on_settle_closed(void *arg)
{
    struct intake *in = arg;
    struct world *w = in->world;
    in->settle = NULL;
    if (in->state != NULL) {
        w->closing++;
        in->config->ops->close(in->state, on_driver_closed, w);
    }
    one_closed(w);
}

static void on_world_handle_closed(uv_handle_t *handle)
{
    struct intake *in = handle->data;
    one_closed(in->world);
}

static void on_outlet_timer_closed(uv_handle_t *handle)
{
    struct outlet *o = handle->data;
    one_closed(o->world);
}

/* Nothing uses it any more: settle, drivers and handles close; the last one to answer frees it. */
static void world_close(struct world *w)
{
    if (w->is_closing)
        return;
    w->is_closing = true;
    w->closing = 1;
    if (w->pipelines != NULL) {
        w->closing++;
        pipelines_close(w->pipelines, on_pipelines_closed, w);
    }
    for (size_t i = 0; i < w->intake_count; i++) {
        struct intake *in = &w->intakes[i];
        if (in->settle != NULL) {
            w->closing++;
            settle_close(in->settle, on_settle_closed, in);
        } else if (in->state != NULL) {
            w->closing++;
            in->config->ops->close(in->state, on_driver_closed, w);
        }
        uv_timer_t *const timers[] = {&in->gone_timer, &in->schedule.timer, &in->up_timer};
        for (size_t t = 0; t < sizeof timers / sizeof timers[0]; t++) {
            if (timers[t]->data == NULL)
                continue;
            w->closing++;
            uv_close((uv_handle_t *)timers[t], on_world_handle_closed);
        }
    }
    for (size_t i = 0; i < w->outlet_count; i++) {
        struct outlet *o = &w->outlets[i];
        if (o->state != NULL) {
            w->closing++;
            o->config->ops->close(o->state, on_driver_closed, w);
        }
        if (o->timer.data != NULL) {
            w->closing += 2;
            uv_close((uv_handle_t *)&o->timer, on_outlet_timer_closed);
            uv_close((uv_handle_t *)&o->space_timer, on_outlet_timer_closed);
        }
    }
    one_closed(w);
}

/* Take nothing new. It closes when the last job, ledger work or probe has let go of it. */
static void world_stop(struct world *w)
{
    if (w->is_stopping)
        return;
    w->is_stopping = true;
    if (w->pipelines != NULL)
        pipelines_stop(w->pipelines);
    for (size_t i = 0; i < w->intake_count; i++) {
        if (w->intakes[i].gone_timer.data == NULL)
            continue;
        uv_timer_stop(&w->intakes[i].gone_timer);
        schedule_stop(&w->intakes[i]);
    }
    for (size_t i = 0; i < w->outlet_count; i++)
        outlet_stop(&w->outlets[i]);
    world_hold(w);
    world_release(w);
}

const char *engine_fact(const struct engine *e, const char *key)
{
    for (size_t i = 0; i < e->root_count; i++)
        if (strcmp(e->roots[i].key, key) == 0)
            return e->roots[i].value;
    return NULL;
}

static const char *stored_root(const struct engine *e, const char *source)
{
    char key[256];
    snprintf(key, sizeof key, "root:%s", source);
    const char *root = engine_fact(e, key);
    return root != NULL ? root : "";
}

static enum err_code world_new(struct engine *e, struct config *config, struct world **ret, struct err *err)
{
    struct world *w = calloc(1, sizeof *w);
    if (w == NULL)
        return err_nomem(err);
    w->engine = e;
    w->config = config_ref(config);
    rate_set(&e->upload_rate, config->limits.upload_rate);
    w->env = (struct dest_env){
        .jobs = (unsigned)config->limits.jobs, .buffer_bytes = config->limits.buffer, .upload_rate = &e->upload_rate};
    rate_set(&e->download_rate, config->limits.download_rate);
    w->source_env = (struct source_env){.jobs = (unsigned)config->limits.jobs, .download_rate = &e->download_rate};
    w->intakes = calloc(config->source_count + 1, sizeof *w->intakes);
    w->outlets = calloc(config->dest_count + 1, sizeof *w->outlets);
    *ret = w;
    if (w->intakes == NULL || w->outlets == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < config->dest_count; i++) {
        w->outlets[i].world = w;
        w->outlet_count = i + 1;
        if (outlet_open(&w->outlets[i], &config->dests[i], err) != ERR_NONE)
            return err_wrap(err, "destination %s", config->dests[i].name);
    }
    for (size_t i = 0; i < config->source_count; i++) {
        w->intakes[i].world = w;
        w->intake_count = i + 1;
        if (intake_open(&w->intakes[i], &config->sources[i], stored_root(e, config->sources[i].name), err) != ERR_NONE)
            return err->code;
    }
    return pipes_open(w, err);
}

static void world_start(struct world *w)
{
    for (size_t i = 0; i < w->outlet_count; i++)
        outlet_connect(&w->outlets[i]);
    finish_pending_start(w);
    for (size_t i = 0; i < w->intake_count; i++)
        schedule_start(&w->intakes[i]);
}

/* ---- open ---- */

static enum err_code load_start_facts(struct engine *e, const struct config *config, struct err *err)
{
    struct ledger_tx *tx;
    char path[sizeof e->state_dir + 16];
    snprintf(path, sizeof path, "%s/ledger.db", e->state_dir);
    if (ledger_tx_open(path, false, &tx, err) != ERR_NONE)
        return err->code;
    struct arena arena;
    arena_init(&arena);
    uint64_t requeued = 0;
    enum err_code code = ledger_requeue_loading(tx, &requeued, err);
    const char *instance = NULL;
    if (code == ERR_NONE)
        code = ledger_meta_get(tx, "instance", &arena, &instance, err);
    char fresh[33];
    if (code == ERR_NONE && (instance == NULL || config->instance[0] != '\0')) {
        engine_new_key(fresh);
        const char *want = config->instance[0] != '\0' ? config->instance : fresh;
        if (instance == NULL || strcmp(want, instance) != 0)
            code = ledger_meta_put(tx, "instance", want, err);
        instance = want;
    }
    if (code == ERR_NONE && (e->instance = strdup(instance)) == NULL)
        code = err_nomem(err);
    if (code == ERR_NONE)
        code = engine_read_roots(e, tx, config, err);
    if (code == ERR_NONE)
        code = spool_sweep(e, tx, err);
    arena_done(&arena);
    struct err close_err = {0};
    if (ledger_tx_close(tx, code == ERR_NONE, &close_err) != ERR_NONE && code == ERR_NONE)
        code = err_set(err, close_err.code, close_err.retryable, "%s", close_err.text);
    if (code == ERR_NONE && requeued > 0)
        log_info("%llu loads were cut off by the last stop; they are taken up again", (unsigned long long)requeued);
    return code;
}

/* Root identities of all sources and when they were asked last, read once: needed before their first scan. */
enum err_code engine_read_roots(struct engine *e, struct ledger_tx *tx, const struct config *config, struct err *err)
{
    static const char *const kinds[] = {"root", "schedule"};
    enum { KINDS = sizeof kinds / sizeof kinds[0] };
    struct arena arena;
    arena_init(&arena);
    e->roots = calloc(KINDS * config->source_count + 1, sizeof *e->roots);
    enum err_code code = e->roots == NULL ? err_nomem(err) : ERR_NONE;
    for (size_t i = 0; i < KINDS * config->source_count && code == ERR_NONE; i++) {
        struct engine_root *r = &e->roots[e->root_count];
        const char *value = NULL;
        snprintf(r->key, sizeof r->key, "%s:%s", kinds[i % KINDS], config->sources[i / KINDS].name);
        code = ledger_meta_get(tx, r->key, &arena, &value, err);
        if (code == ERR_NONE && value != NULL) {
            snprintf(r->value, sizeof r->value, "%s", value);
            e->root_count++;
        }
    }
    arena_done(&arena);
    return code;
}

enum err_code engine_open(const struct engine_options *options, struct engine **ret, struct err *err)
{
    struct engine *e = calloc(1, sizeof *e);
    if (e == NULL)
        return err_nomem(err);
    e->loop = options->loop;
    e->ledger = options->ledger;
    e->once = options->once;
    e->quiet = options->quiet;
    e->no_sources = options->no_sources;
    e->by_hand = options->by_hand;
    e->on_idle = options->on_idle;
    e->arg = options->arg;
    e->started_ms = clock_wall_ms();
    e->random = (uint64_t)clock_wall_ns() | 1;
    if (getrandom(&e->random, sizeof e->random, GRND_NONBLOCK) < 0)
        e->random |= 1;
    e->random |= 1;
    snprintf(e->state_dir, sizeof e->state_dir, "%s", options->config->state);
    snprintf(e->quarantine_dir, sizeof e->quarantine_dir, "%s/quarantine", e->state_dir);
    rate_init(&e->upload_rate, options->config->limits.upload_rate);
    rate_init(&e->download_rate, options->config->limits.download_rate);
    if (lag_open(e->loop, &e->lag, err) != ERR_NONE) {
        free(e);
        return err->code;
    }
    if (load_start_facts(e, options->config, err) != ERR_NONE) {
        lag_close(e->lag);
        free(e->instance);
        free(e->roots);
        free(e);
        return err->code;
    }
    uv_timer_init(e->loop, &e->grace_timer);
    uv_timer_init(e->loop, &e->ledger_timer);
    uv_idle_init(e->loop, &e->hop_idle);
    e->grace_timer.data = e->ledger_timer.data = e->hop_idle.data = e;
    *ret = e;
    struct world *w = NULL;
    enum err_code code = world_new(e, options->config, &w, err);
    e->world = w;
    if (code != ERR_NONE) {
        e->is_draining = true; /* the caller closes it */
        if (w != NULL)
            world_stop(w);
        return code;
    }
    for (size_t i = 0; i < options->config->flow_count; i++)
        engine_counters(e, options->config->flows[i].name);
    world_start(w);
    return ERR_NONE;
}

enum err_code engine_reload(struct engine *e, struct config *config, struct err *err)
{
    if (e->is_draining || e->world == NULL)
        return err_set(err, ERR_STOPPED, false, "chute is stopping");
    if (e->old != NULL)
        return err_set(
            err, ERR_SYSTEM, true,
            "the last reload has not finished: loads of the configuration before it are still running; try again");
    for (size_t i = 0; i < e->world->intake_count; i++) /* what was accepted since the start */
        engine_remember_root(e, &e->world->intakes[i]);
    struct world *w = NULL;
    if (world_new(e, config, &w, err) != ERR_NONE) {
        if (w != NULL)
            world_stop(w); /* frees itself; the present world goes on */
        return err->code;
    }
    for (size_t i = 0; i < config->flow_count; i++)
        engine_counters(e, config->flows[i].name);
    e->old = e->world;
    e->world = w;
    world_stop(e->old);
    world_start(w);
    return ERR_NONE;
}

void engine_remember(struct engine *e, const char *key, const char *value)
{
    for (size_t i = 0; i < e->root_count; i++)
        if (strcmp(e->roots[i].key, key) == 0) {
            snprintf(e->roots[i].value, sizeof e->roots[i].value, "%s", value);
            return;
        }
    struct engine_root *grown = realloc(e->roots, (e->root_count + 1) * sizeof *grown);
    if (grown == NULL)
        return; /* then the root counts as a new one */
    e->roots = grown;
    snprintf(grown[e->root_count].key, sizeof grown->key, "%s", key);
    snprintf(grown[e->root_count].value, sizeof grown->value, "%s", value);
    e->root_count++;
}

void engine_remember_root(struct engine *e, const struct intake *in)
{
    char key[sizeof e->roots[0].key];
    if (in->root_identity[0] == '\0')
        return;
    snprintf(key, sizeof key, "root:%s", in->config->name);
    engine_remember(e, key, in->root_identity);
}

/* ---- idle, drain, close ---- */

struct idle_work {
    struct engine *e;
    struct world *world;
    struct ledger_tx *tx;
    struct err *err;
    struct arena arena;
    uint64_t waiting;
};

/* A drop is still to do, unless its flow is no more, or it waits for a file that is in quarantine. */
static bool count_drop(void *arg, const struct ledger_row *row)
{
    struct idle_work *work = arg;
    const struct config_flow *flow = config_flow_named(work->world->config, row->flow);
    struct ledger_row *next = NULL;
    if (flow == NULL || strcmp(flow->dest->name, row->dest) != 0)
        return true;
    if (strncmp(row->reason, RENAMED_PREFIX, strlen(RENAMED_PREFIX)) == 0 &&
        ledger_get(work->tx, row->source, row->reason + strlen(RENAMED_PREFIX), row->flow, &work->arena, &next,
                   work->err) != ERR_NONE)
        return false;
    work->waiting += next == NULL || next->state != STATE_QUARANTINED;
    return true;
}

/* Rows of flows that were taken out of the configuration wait for nobody. */
static enum err_code idle_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct idle_work *work = arg;
    const struct config *config = work->world->config;
    work->tx = tx;
    work->err = err;
    work->waiting = 0;
    for (size_t i = 0; i < config->flow_count; i++) {
        uint64_t waiting = 0;
        const struct ledger_query q = {.flow = config->flows[i].name,
                                       .dest = config->flows[i].dest->name,
                                       .states = STATE_BIT(STATE_QUEUED) | STATE_BIT(STATE_LOADING) |
                                                 STATE_BIT(STATE_RETRYING) | STATE_BIT(STATE_SETTLING)};
        if (ledger_count(tx, &q, &waiting, err) != ERR_NONE)
            return err->code;
        work->waiting += waiting;
    }
    const struct ledger_query d = {.drop_pending = true};
    enum err_code code = ledger_each(tx, &d, count_drop, work, err);
    return code != ERR_NONE ? code : err->code;
}

static bool is_quiet(const struct engine *e)
{
    if (e->world == NULL || e->job_count > 0 || e->resets != NULL || e->old != NULL)
        return false;
    for (size_t i = 0; i < e->world->intake_count; i++)
        if (!intake_is_quiet(&e->world->intakes[i]))
            return false;
    for (size_t i = 0; i < e->world->outlet_count; i++)
        if (e->world->outlets[i].is_claiming || e->world->outlets[i].is_connecting ||
            !spaces_are_quiet(&e->world->outlets[i]))
            return false;
    return e->world->pipelines == NULL || pipelines_are_quiet(e->world->pipelines);
}

static void on_idle_checked(void *arg, const struct err *err)
{
    struct idle_work *work = arg;
    struct engine *e = work->e;
    struct world *w = work->world;
    uint64_t waiting = work->waiting;
    arena_done(&work->arena);
    free(work);
    e->is_idle_checking = false;
    bool again = e->idle_again;
    e->idle_again = false;
    if (err == NULL && waiting == 0 && !again && is_quiet(e) && !e->idle_told && !e->is_draining) {
        e->idle_told = true;
        if (e->on_idle != NULL)
            e->on_idle(e->arg);
    } else if (again) {
        engine_check_idle(e);
    }
    world_release(w);
    engine_answered(e);
}

/* run --once: is all there is to do now done? Nothing in memory, and no row that waits. */
void engine_check_idle(struct engine *e)
{
    if (!e->once || e->is_draining || e->idle_told)
        return;
    if (e->is_idle_checking) {
        e->idle_again = true;
        return;
    }
    struct idle_work *work = is_quiet(e) ? calloc(1, sizeof *work) : NULL;
    struct err err = {0};
    if (work == NULL)
        return;
    arena_init(&work->arena);
    work->e = e;
    work->world = e->world;
    if (engine_ask(e, idle_fn, on_idle_checked, work, &err) != ERR_NONE) {
        free(work);
        return;
    }
    e->is_idle_checking = true;
    world_hold(work->world);
}

static void check_drained(struct engine *e)
{
    if (!e->is_draining || e->job_count > 0 || pipes_are_running(e) || e->drained == NULL)
        return;
    void (*drained)(void *) = e->drained;
    e->drained = NULL;
    uv_timer_stop(&e->grace_timer);
    drained(e->drained_arg);
}

void engine_job_ended(struct engine *e)
{
    for (size_t i = 0; e->world != NULL && i < e->world->intake_count; i++)
        schedule_check(&e->world->intakes[i]);
    check_drained(e);
    engine_check_idle(e);
}

/* What waits for a server that does not answer ends now. */
static void world_hurry(const struct world *w)
{
    for (size_t i = 0; w != NULL && !w->is_closing && i < w->intake_count; i++)
        if (w->intakes[i].state != NULL && w->intakes[i].config->ops->hurry != NULL)
            w->intakes[i].config->ops->hurry(w->intakes[i].state);
    for (size_t i = 0; w != NULL && !w->is_closing && i < w->outlet_count; i++)
        if (w->outlets[i].state != NULL && w->outlets[i].config->ops->hurry != NULL)
            w->outlets[i].config->ops->hurry(w->outlets[i].state);
}

static void on_grace_over(uv_timer_t *timer)
{
    struct engine *e = timer->data;
    struct job *job, *tmp;
    if (e->job_count > 0)
        log_warn("%u loads have not finished in time and are stopped; they are taken up again at the next start",
                 e->job_count);
    DL_FOREACH_SAFE(e->jobs, job, tmp)
        job_abort(job);
    pipes_abort(e);
    world_hurry(e->world);
    world_hurry(e->old);
}

void engine_drain(struct engine *e, uint64_t grace_ms, void (*drained)(void *arg), void *arg)
{
    e->is_draining = true;
    e->drained = drained;
    e->drained_arg = arg;
    resets_stop(e);
    if (e->old != NULL)
        world_stop(e->old);
    uv_timer_start(&e->grace_timer, on_grace_over, grace_ms, 0);
    if (e->job_count == 0 && !pipes_are_running(e)) /* never from inside this call: the timer comes on the next turn */
        uv_timer_start(&e->grace_timer, on_nothing_to_drain, 0, 0);
    if (e->world != NULL)
        world_stop(e->world);
}

void on_nothing_to_drain(uv_timer_t *timer)
{
    check_drained(timer->data);
}

static void on_engine_handle_closed(uv_handle_t *handle)
{
    struct engine *e = handle->data;
    if (--e->handles > 0)
        return;
    void (*closed)(void *) = e->closed;
    void *arg = e->closed_arg;
    for (size_t i = 0; i < e->counter_count; i++)
        free((char *)(uintptr_t)e->counters[i].flow);
    for (size_t i = 0; i < e->paused_count; i++)
        free(e->paused[i]);
    free(e->counters);
    free(e->paused);
    free(e->roots);
    free(e->instance);
    lag_close(e->lag);
    free(e);
    closed(arg);
}

void engine_finish_close(struct engine *e)
{
    if (e->world != NULL || e->old != NULL || e->asks > 0 || e->handles > 0)
        return;
    e->handles = 3;
    uv_close((uv_handle_t *)&e->grace_timer, on_engine_handle_closed);
    uv_close((uv_handle_t *)&e->ledger_timer, on_engine_handle_closed);
    uv_close((uv_handle_t *)&e->hop_idle, on_engine_handle_closed);
}

void engine_close(struct engine *e, void (*closed)(void *arg), void *arg)
{
    e->is_closed = true;
    e->is_draining = true;
    e->closed = closed;
    e->closed_arg = arg;
    uv_timer_stop(&e->ledger_timer);
    resets_stop(e);
    world_hurry(e->world); /* no load is left: what still runs is a connect() or the like */
    world_hurry(e->old);
    if (e->old != NULL)
        world_stop(e->old);
    if (e->world != NULL)
        world_stop(e->world);
    engine_finish_close(e);
}

void engine_totals(const struct engine *e, uint64_t ret[FILE_STATES])
{
    memcpy(ret, e->totals, sizeof e->totals);
}
