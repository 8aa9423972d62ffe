/*
 * outlet.c -- one destination: is it there, how many loads does it get, and when is the next one due.
 *
 * Health: opening → ok ⇄ down (three failures in a row; a probe by connect() after the backoff) and ok ⇄ blocked (it
 * refuses us; a probe every 5 minutes, on reload and on retry). One timer, armed only while something is due.
 */
#include "job_internal.h"

#include <limits.h>

static void on_timer(uv_timer_t *timer)
{
    struct outlet *o = timer->data;
    if (o->health == OUTLET_OK)
        outlet_pump(o);
    else
        outlet_connect(o);
}

static void wake_in(struct outlet *o, uint64_t ms)
{
    if (!o->world->is_stopping)
        uv_timer_start(&o->timer, on_timer, ms > 0 ? ms : 1, 0);
}

enum err_code outlet_open(struct outlet *o, const struct config_dest *config, struct err *err)
{
    o->config = config;
    o->health = OUTLET_OPENING;
    o->timer.data = o;
    o->space_timer.data = o;
    uv_timer_init(o->world->engine->loop, &o->timer);
    uv_timer_init(o->world->engine->loop, &o->space_timer);
    return config->ops->open(config->options, &o->world->env, o->world->engine->loop, &o->state, err);
}

/* Full jitter: a uniform choice up to the exponential bound, so that many files don't come back as one. */
uint64_t backoff_ms(struct engine *e, const struct retry_options *r, int64_t tries)
{
    double bound = (double)r->first;
    for (int64_t i = 1; i < tries && bound < (double)r->max; i++)
        bound *= r->factor;
    if (bound > (double)r->max)
        bound = (double)r->max;
    double share = (double)(engine_random(e) >> 11) / 9007199254740992.0;
    uint64_t wait = (uint64_t)(bound * share);
    return wait < 10 ? 10 : wait;
}

static const char *health_words(const struct outlet *o, enum outlet_state s, const struct err *err)
{
    if (strncmp(err->text, "init: ", 6) == 0 && init_is_due(o))
        return "can't be prepared; its files stay queued";
    return s == OUTLET_BLOCKED ? "refuses us; its files stay queued" : "is down; its files wait";
}

static void set_health(struct outlet *o, enum outlet_state to, const struct err *err)
{
    struct log_about about = {.dest = o->config->name};
    bool was_bad = o->health == OUTLET_DOWN || o->health == OUTLET_BLOCKED;
    if (to == OUTLET_OK) {
        if (was_bad)
            log_write(LOG_INFO, &about, "is back");
        o->reason[0] = '\0';
        o->probe_at_ms = 0;
    } else if (o->health != to) {
        log_write(LOG_ERROR, &about, "%s: %s", health_words(o, to, err), err->text);
    }
    if (err != NULL) {
        snprintf(o->reason, sizeof o->reason, "%s", err->text);
        log_redact(o->reason);
    }
    o->health = to;
}

/* How long the destination as a whole asked to be left alone. */
static uint64_t pause_of(const struct outlet *o)
{
    struct dest_health health;
    memset(&health, 0, sizeof health);
    o->config->ops->health(o->state, &health);
    return health.pause_ms;
}

bool outlet_is_paused(const struct outlet *o)
{
    return pause_of(o) > 0;
}

static void probe_later(struct outlet *o)
{
    uint64_t wait = o->health == OUTLET_BLOCKED ? PROBE_BLOCKED_MS
                                                : backoff_ms(o->world->engine, &o->config->retry, (int64_t)o->failures);
    if (wait < pause_of(o))
        wait = pause_of(o);
    o->probe_at_ms = clock_wall_ms() + (int64_t)wait;
    wake_in(o, wait);
}

static void learn_identity(struct outlet *o);

void outlet_answered(struct outlet *o)
{
    struct dest_health health;
    memset(&health, 0, sizeof health);
    o->config->ops->health(o->state, &health);
    if (o->identity_known && health.identity[0] != '\0' && strcmp(health.identity, o->identity) != 0 &&
        !o->world->is_stopping) {
        o->identity_known =
            false; /* replaced under our feet: nothing is claimed before the ledger has drawn its conclusions */
        o->init_done = false;
        if (init_is_due(o)) {
            o->health = OUTLET_OPENING;
            outlet_connect(o);
        } else {
            learn_identity(o);
        }
    }
    o->answered_ms = clock_wall_ms();
    o->failures = 0;
    o->on_probation = false;
    if (o->health == OUTLET_DOWN)
        set_health(o, OUTLET_OK, NULL);
}

void outlet_failed(struct outlet *o, const struct err *err)
{
    o->failures++;
    if (err->code == ERR_DENIED) {
        set_health(o, OUTLET_BLOCKED, err);
        probe_later(o);
    } else if (o->health == OUTLET_OK && (o->failures >= BREAKER_FAILURES || o->on_probation || pause_of(o) > 0)) {
        set_health(o, OUTLET_DOWN, err);
        probe_later(o);
    }
}

/* ---- connect: at the start, and as the probe ---- */

/* A destination with another identity than before was restored or made anew: what it should hold has to go there again.
 */
static enum err_code identity_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct outlet *o = arg;
    if (o->identity[0] == '\0')
        return ERR_NONE;
    char key[256];
    snprintf(key, sizeof key, "identity:%s", o->config->name);
    struct arena arena;
    arena_init(&arena);
    const char *known = NULL;
    enum err_code code = ledger_meta_get(tx, key, &arena, &known, err);
    bool is_other = code == ERR_NONE && known != NULL && strcmp(known, o->identity) != 0;
    if (is_other)
        code = requeue_destination(tx, o->world->config, o->config->name, err);
    if (code == ERR_NONE && (known == NULL || is_other))
        code = ledger_meta_put(tx, key, o->identity, err);
    if (code == ERR_NONE && is_other)
        log_warn("destination %s is another database than before (restored or made anew): the files that are still "
                 "there are loaded again",
                 o->config->name);
    arena_done(&arena);
    return code;
}

static void on_identity(void *arg, const struct err *err)
{
    struct outlet *o = arg;
    struct world *w = o->world;
    o->is_learning = false;
    if (err != NULL) {
        engine_ledger_failed(w->engine); /* pumps when it works again */
    } else {
        o->identity_known = true;
        spaces_pump(o);
        outlet_pump(o);
        pipes_pump(w);
    }
    world_release(w);
}

static void learn_identity(struct outlet *o)
{
    struct err err = {0};
    struct dest_health health;
    if (o->is_learning)
        return;
    memset(&health, 0, sizeof health);
    o->config->ops->health(o->state, &health);
    memcpy(o->identity, health.identity, sizeof o->identity);
    world_hold(o->world);
    o->is_learning = true;
    if (ledger_run(o->world->engine->ledger, identity_fn, on_identity, o, &err) != ERR_NONE) {
        o->is_learning = false;
        world_release(o->world);
        engine_ledger_failed(o->world->engine);
    }
}

static void on_connected(void *arg, const struct err *err)
{
    struct outlet *o = arg;
    struct dest_health health;
    if (err != NULL && err->code != ERR_NONE) {
        outlet_opened(o, err);
        return;
    }
    memset(&health, 0, sizeof health);
    o->config->ops->health(o->state, &health);
    if (o->identity[0] != '\0' && strcmp(health.identity, o->identity) != 0)
        o->init_done = false; /* another database than the one that was prepared */
    if (!init_is_due(o) || o->world->is_stopping) {
        outlet_opened(o, NULL);
    } else if (o->world->engine->old == NULL) {
        init_start(o);
    } else { /* it would meet the loads and pipelines of the configuration before this one: their end pumps */
        o->is_connecting = false;
        o->waits_for_old = true;
        world_release(o->world);
    }
}

void outlet_opened(struct outlet *o, const struct err *err)
{
    struct world *w = o->world;
    o->is_connecting = false;
    if (err == NULL || err->code == ERR_NONE) {
        o->answered_ms = clock_wall_ms();
        o->on_probation = o->failures > 0;
        set_health(o, OUTLET_OK, NULL);
        /* Not while loads of the configuration before this one run: what they end with is about what was before, and
         * would be taken for loaded into this one. Their end pumps, which learns. */
        if (!w->is_stopping && w->engine->old == NULL)
            learn_identity(o);
    } else {
        o->failures++;
        set_health(o, err->code == ERR_DENIED ? OUTLET_BLOCKED : OUTLET_DOWN, err);
        probe_later(o);
        pipes_pump(w); /* who asked for a run is told */
    }
    engine_check_idle(w->engine);
    world_release(w);
}

void outlet_connect(struct outlet *o)
{
    if (o->is_connecting || o->world->is_stopping)
        return;
    o->is_connecting = true;
    uv_timer_stop(&o->timer);
    world_hold(o->world);
    o->config->ops->connect(o->state, on_connected, o);
}

void outlet_stop(struct outlet *o)
{
    uv_timer_stop(&o->timer);
    uv_timer_stop(&o->space_timer);
    init_stop(o);
}

/* ---- claiming ---- */

/* How many rows this outlet may take now, and how many bytes of them. */
static size_t room(const struct outlet *o, uint64_t *ret_bytes)
{
    const struct dest_ops *ops = o->config->ops;
    unsigned jobs = (unsigned)o->world->config->limits.jobs;
    unsigned small = ops->max_small > 0 ? (unsigned)ops->max_small : 0;
    *ret_bytes = 0;
    if (o->on_probation)
        return o->in_flight == 0 ? 1 : 0;
    if (o->in_flight < jobs && small == 0)
        return jobs - o->in_flight;
    if (small == 0 || o->in_flight_bytes >= CLAIM_BYTES)
        return o->in_flight < jobs ? jobs - o->in_flight : 0;
    /* Small files share a commit: take many at once, but go back for more only when half of them have ended. */
    if (o->in_flight > small / 2)
        return 0;
    *ret_bytes = CLAIM_BYTES - o->in_flight_bytes;
    return small - o->in_flight;
}

static void on_claimed(void *arg, const struct err *err)
{
    struct claim *c = arg;
    struct outlet *o = c->outlet;
    struct world *w = o->world;
    o->is_claiming = false;
    if (err != NULL)
        engine_ledger_failed(w->engine);
    else if (c->count == 0 && c->next_due_ms != INT64_MAX) {
        int64_t wait = c->next_due_ms - clock_wall_ms();
        /* Due, and yet not claimed: its table is busy. The end of that load pumps again. */
        if (wait > 0 || o->in_flight == 0)
            wake_in(o, wait > 0 ? (uint64_t)wait : LEDGER_RETRY_MS);
    }
    size_t started = err == NULL ? claim_start_jobs(c) : 0;
    claim_free(c);
    if (o->claim_again || started > 0) {
        o->claim_again = false;
        outlet_pump(o);
    }
    if (o->in_flight == 0 && !o->is_claiming)
        pipes_pump(w);
    engine_check_idle(w->engine);
    world_release(w);
}

void outlet_pump(struct outlet *o)
{
    struct world *w = o->world;
    struct engine *e = w->engine;
    if (o->waits_for_old && e->old == NULL) {
        o->waits_for_old = false;
        outlet_connect(o);
    }
    if (w->is_stopping || e->is_draining || e->old != NULL || o->health != OUTLET_OK ||
        ledger_problem(e->ledger)[0] != '\0')
        return;
    if (!o->identity_known) { /* the ledger could not be asked before */
        learn_identity(o);
        return;
    }
    if (o->is_claiming) {
        o->claim_again = true;
        return;
    }
    uint64_t bytes;
    size_t limit = room(o, &bytes);
    if (limit == 0)
        return;
    uv_timer_stop(&o->timer);
    struct claim *c = claim_new(o, limit, bytes);
    struct err err = {0};
    if (c != NULL)
        claim_check_clock(c, o);
    if (c == NULL || ledger_run_repeatable(e->ledger, claim_fn, on_claimed, c, &err) != ERR_NONE) {
        claim_free(c);
        wake_in(o, LEDGER_RETRY_MS);
        return;
    }
    o->is_claiming = true;
    world_hold(w);
}
