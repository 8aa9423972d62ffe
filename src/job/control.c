/*
 * control.c -- what people ask of the engine: status, explain, retry, reset, load; and work left over from a kill.
 */
#include "job_internal.h"

#include <limits.h>
#include <stdio.h>

/* ---- status ---- */

static const char *const outlet_words[] = {"opening", "ok", "down", "blocked"};

static void status_sources(const struct world *w, struct engine_status *s)
{
    for (size_t i = 0; i < w->intake_count; i++) {
        const struct intake *in = &w->intakes[i];
        struct engine_source_status *out = &s->sources[s->source_count++];
        out->name = in->config->name;
        out->type = in->config->ops->type;
        out->evidence = "close";
        out->pending_deletes = in->held_deletes;
        out->last_run_ms = in->schedule.last_ms;
        out->next_run_ms = in->schedule.next_ms;
        out->is_running = in->schedule.is_running;
        if (in->state == NULL)
            continue;
        struct settle_health settle;
        in->config->ops->health(in->state, &out->health);
        settle_health(in->settle, &settle);
        out->evidence = settle.evidence;
        out->settling = settle.waiting;
    }
}

static void status_dests(const struct world *w, struct engine_status *s)
{
    for (size_t i = 0; i < w->outlet_count; i++) {
        const struct outlet *o = &w->outlets[i];
        struct engine_dest_status *out = &s->dests[s->dest_count++];
        out->name = o->config->name;
        out->type = o->config->ops->type;
        o->config->ops->health(o->state, &out->health);
        out->state = outlet_words[o->health];
        out->reason = o->reason;
        out->next_probe_ms = o->probe_at_ms;
        out->in_flight = o->in_flight;
    }
}

static void status_jobs(struct engine *e, struct engine_status *s, size_t room)
{
    struct job *job;
    DL_FOREACH(e->jobs, job) {
        if (s->job_count == room)
            return;
        s->jobs[s->job_count++] = (struct engine_job_status){
            .flow = job->row.flow,
            .path = job->row.path,
            .state = "loading",
            .bytes = job->row.file.size,
            .bytes_done = job->rows != NULL && job->state == JOB_LOADING ? atomic_load(&job->rows->bytes_done) : 0,
            .rows_done = job->rows != NULL && job->state == JOB_LOADING ? atomic_load(&job->rows->rows_done) : 0,
            .since_ms = job->started_ms,
        };
    }
}

/* ---- what waits in memory ---- */

struct gather {
    const struct intake *in;
    struct arena *arena;
    struct engine_waiting *list; /* NULL: only count */
    size_t count, room;
    enum file_state state;
    bool failed;
};

static bool gather_path(void *arg, const char *path, int64_t since_ms)
{
    struct gather *g = arg;
    const char *copy = NULL;
    if (settle_is_marker(g->in->settle, path))
        return true;
    for (size_t f = 0; f < g->in->flow_count; f++) {
        if (!config_flow_takes(g->in->flows[f], path))
            continue;
        if (g->list != NULL && g->count < g->room) {
            if (copy == NULL && (copy = arena_strdup(g->arena, path)) == NULL) {
                g->failed = true;
                return false;
            }
            g->list[g->count] =
                (struct engine_waiting){g->in->config->name, copy, g->in->flows[f]->name, g->state, since_ms};
        }
        g->count++;
    }
    return true;
}

static void gather_all(const struct world *w, struct gather *g)
{
    g->count = 0;
    for (size_t i = 0; i < w->intake_count && !g->failed; i++) {
        g->in = &w->intakes[i];
        if (g->in->settle == NULL)
            continue;
        g->state = STATE_SETTLING;
        settle_each(g->in->settle, gather_path, g);
        g->state = STATE_SEEN;
        const struct observed *o;
        LL_FOREACH(g->in->settled, o) {
            if (!gather_path(g, o->path, clock_wall_ms()))
                break;
        }
    }
}

enum err_code engine_waiting(struct engine *e, struct arena *arena, struct engine_waiting **ret, size_t *ret_count,
                             struct err *err)
{
    struct gather g = {.arena = arena};
    *ret = NULL;
    *ret_count = 0;
    if (e->world == NULL)
        return ERR_NONE;
    gather_all(e->world, &g);
    g.room = g.count;
    g.list = arena_alloc(arena, (g.room + 1) * sizeof *g.list);
    if (g.list == NULL)
        return err_nomem(err);
    gather_all(e->world, &g);
    if (g.failed)
        return err_nomem(err);
    *ret = g.list;
    *ret_count = g.count;
    return ERR_NONE;
}

static void find_unready(struct engine *e, struct engine_status *s)
{
    struct buf b;
    buf_init(&b);
    const char *problem = ledger_problem(e->ledger);
    if (problem[0] != '\0')
        buf_printf(&b, "ledger: %s; ", problem);
    if (e->is_draining)
        buf_adds(&b, "stopping; ");
    for (size_t i = 0; i < s->source_count; i++)
        if (s->sources[i].health.mode != NULL && !s->sources[i].health.is_reachable)
            buf_printf(&b, "source %s: %s; ", s->sources[i].name, s->sources[i].health.problem);
    for (size_t i = 0; i < s->dest_count; i++)
        if (strcmp(s->dests[i].state, "ok") != 0)
            buf_printf(&b, "destination %s is %s%s%s; ", s->dests[i].name, s->dests[i].state,
                       s->dests[i].reason[0] != '\0' ? ": " : "", s->dests[i].reason);
    if (b.failed)
        snprintf(s->not_ready, sizeof s->not_ready, "out of memory");
    s->is_ready = b.size == 0 && !b.failed;
    if (b.size > 2)
        snprintf(s->not_ready, sizeof s->not_ready, "%.*s", (int)(b.size - 2), b.data);
    buf_done(&b);
}

enum err_code engine_status(struct engine *e, struct arena *arena, struct engine_status *ret, struct err *err)
{
    memset(ret, 0, sizeof *ret);
    struct world *w = e->world;
    ret->started_ms = e->started_ms;
    ret->overflows = e->overflows;
    ret->ledger_problem = ledger_problem(e->ledger);
    memcpy(ret->retries, e->retries, sizeof ret->retries);
    lag_read(e->lag, &ret->lag);
    if (w == NULL) {
        snprintf(ret->not_ready, sizeof ret->not_ready, "stopping");
        return ERR_NONE;
    }
    enum { JOBS_SHOWN = 64 };
    ret->sources = arena_alloc(arena, (w->intake_count + 1) * sizeof *ret->sources);
    ret->dests = arena_alloc(arena, (w->outlet_count + 1) * sizeof *ret->dests);
    ret->jobs = arena_alloc(arena, JOBS_SHOWN * sizeof *ret->jobs);
    ret->flows = arena_alloc(arena, (e->counter_count + 1) * sizeof *ret->flows);
    ret->paused = arena_alloc(arena, (e->paused_count + 1) * sizeof *ret->paused);
    if (ret->sources == NULL || ret->dests == NULL || ret->jobs == NULL || ret->flows == NULL || ret->paused == NULL)
        return err_nomem(err);
    status_sources(w, ret);
    status_dests(w, ret);
    status_jobs(e, ret, JOBS_SHOWN);
    ret->pipeline_count = w->pipelines != NULL ? pipelines_count(w->pipelines) : 0;
    ret->pipelines = arena_alloc(arena, (ret->pipeline_count + 1) * sizeof *ret->pipelines);
    if (ret->pipelines == NULL)
        return err_nomem(err);
    if (ret->pipeline_count > 0)
        pipelines_status(w->pipelines, ret->pipelines);
    if (e->counter_count > 0)
        memcpy(ret->flows, e->counters, e->counter_count * sizeof *ret->flows);
    ret->flow_count = e->counter_count;
    for (size_t i = 0; i < e->paused_count; i++)
        ret->paused[ret->paused_count++] = e->paused[i];
    find_unready(e, ret);
    return ERR_NONE;
}

/* ---- paths that people name ---- */

static const char *below(const char *root, const char *path)
{
    size_t n = strlen(root);
    while (n > 0 && root[n - 1] == '/')
        n--;
    return strncmp(path, root, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

/* PATH below the root of IN, or NULL. Absolute paths are compared with the root as configured and as it resolves. */
static const char *below_root(const struct intake *in, const char *path)
{
    if (path[0] != '/')
        return strncmp(path, "./", 2) == 0 ? path + 2 : path;
    const char *root =
        in->state != NULL && in->config->ops->root_path != NULL ? in->config->ops->root_path(in->state) : "";
    const char *rel = below(root, path);
    char *resolved = rel == NULL ? realpath(root, NULL) : NULL;
    if (resolved != NULL)
        rel = below(resolved, path);
    free(resolved);
    return rel;
}

/* What holds up the flows of IN that take the file REL. */
static enum engine_note explain_flows(struct engine *e, const struct intake *in, const char *rel, char *ret,
                                      size_t size)
{
    for (size_t f = 0; f < in->flow_count; f++) {
        if (!config_flow_takes(in->flows[f], rel))
            continue;
        for (size_t d = 0; d < e->world->outlet_count; d++) {
            const struct outlet *o = &e->world->outlets[d];
            if (o->config != in->flows[f]->dest || (o->health != OUTLET_DOWN && o->health != OUTLET_BLOCKED))
                continue;
            snprintf(ret, size, "destination %s is %s: %s", o->config->name, outlet_words[o->health], o->reason);
            return NOTE_DEST;
        }
        if (engine_flow_paused(e, in->flows[f]->name)) {
            snprintf(ret, size, "flow %s is paused since it was reset; chute retry --all starts it again",
                     in->flows[f]->name);
            return NOTE_PAUSED;
        }
    }
    return NOTE_NONE;
}

enum engine_note engine_explain(struct engine *e, const char *path, char *ret, size_t size)
{
    enum engine_note note = NOTE_NONE;
    ret[0] = '\0';
    if (e->world == NULL)
        return note;
    for (size_t i = 0; i < e->world->intake_count && note == NOTE_NONE; i++) {
        struct intake *in = &e->world->intakes[i];
        const char *rel = below_root(in, path);
        if (rel == NULL)
            continue;
        struct job *job;
        DL_FOREACH(e->jobs, job) {
            if (job->intake != in || strcmp(job->row.path, rel) != 0)
                continue;
            snprintf(ret, size, "is being loaded into %s right now (%llu of %llu bytes)", job->outlet->config->name,
                     (unsigned long long)(job->rows != NULL ? atomic_load(&job->rows->bytes_done) : 0),
                     (unsigned long long)job->row.file.size);
            note = NOTE_LOADING;
        }
        if (note == NOTE_NONE && in->settle != NULL && settle_explain(in->settle, rel, ret, size) != NULL)
            note = NOTE_SETTLING;
        if (note == NOTE_NONE)
            note = explain_flows(e, in, rel, ret, size);
    }
    return note;
}

/* ---- retry ---- */

struct retry_work {
    struct engine *e;
    struct arena arena;
    const char **sources; /* per path and source that may have it */
    const char **paths;
    size_t count;
    bool all;
    struct ledger_tx *tx;
    struct err *err;
    uint64_t queued, away;
    engine_count_cb *cb;
    void *arg;
};

static bool retry_row(void *arg, const struct ledger_row *row)
{
    struct retry_work *work = arg;
    struct ledger_row next = *row;
    char key[33], reason[300];
    if (config_flow_named(work->e->world->config, row->flow) == NULL)
        return true; /* of a flow that is no more, or of `chute load`: nobody here would take it */
    if (row->taken_by_us) {
        work->away++;
        return true;
    }
    engine_new_key(key);
    snprintf(reason, sizeof reason, AGAIN_PREFIX "%.250s", row->reason);
    row_queue_again(&next, row->load_key[0] != '\0' ? row->load_key : key, reason);
    next.seen_ms = next.since_ms;
    work->queued++;
    return ledger_put(work->tx, &next, work->err) == ERR_NONE;
}

static enum err_code retry_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct retry_work *work = arg;
    work->tx = tx;
    work->err = err;
    work->queued = work->away = 0;
    unsigned states = STATE_BIT(STATE_QUARANTINED) | STATE_BIT(STATE_RETRYING);
    if (work->all) {
        const struct ledger_query q = {.states = states};
        enum err_code code = ledger_each(tx, &q, retry_row, work, err);
        return code != ERR_NONE ? code : err->code;
    }
    for (size_t i = 0; i < work->count; i++) {
        const struct ledger_query q = {.source = work->sources[i], .path = work->paths[i], .states = states};
        if (ledger_each(tx, &q, retry_row, work, err) != ERR_NONE || err->code != ERR_NONE)
            return err->code;
    }
    return ERR_NONE;
}

static void on_retried(void *arg, const struct err *err)
{
    struct retry_work *work = arg;
    struct engine *e = work->e;
    engine_pump_all(e);
    work->cb(work->arg, work->queued, work->away, err);
    arena_done(&work->arena);
    free(work);
    engine_answered(e);
}

static bool collect_paths(struct retry_work *work, const char *const *paths, size_t count)
{
    struct world *w = work->e->world;
    size_t room = count * w->intake_count + 1;
    work->sources = arena_alloc(&work->arena, room * sizeof *work->sources);
    work->paths = arena_alloc(&work->arena, room * sizeof *work->paths);
    if (work->sources == NULL || work->paths == NULL)
        return false;
    for (size_t p = 0; p < count; p++)
        for (size_t i = 0; i < w->intake_count; i++) {
            const char *rel = below_root(&w->intakes[i], paths[p]);
            if (rel == NULL)
                continue;
            work->sources[work->count] = w->intakes[i].config->name;
            work->paths[work->count] = arena_strdup(&work->arena, rel);
            if (work->paths[work->count++] == NULL)
                return false;
        }
    return true;
}

enum err_code engine_retry(struct engine *e, const char *const *paths, size_t count, bool all, engine_count_cb *cb,
                           void *arg, struct err *err)
{
    if (e->world == NULL || e->is_draining)
        return err_set(err, ERR_STOPPED, false, "chute is stopping");
    struct retry_work *work = calloc(1, sizeof *work);
    if (work == NULL)
        return err_nomem(err);
    arena_init(&work->arena);
    *work = (struct retry_work){.e = e, .arena = work->arena, .all = all, .cb = cb, .arg = arg};
    bool had_paused = e->paused_count > 0;
    for (size_t i = 0; i < e->paused_count; i++)
        free(e->paused[i]);
    e->paused_count = 0;
    if (!collect_paths(work, paths, count) || engine_ask(e, retry_fn, on_retried, work, err) != ERR_NONE) {
        arena_done(&work->arena);
        free(work);
        return err->code != ERR_NONE ? err->code : err_nomem(err);
    }
    for (size_t i = 0; i < e->world->outlet_count; i++)
        if (e->world->outlets[i].health == OUTLET_BLOCKED || e->world->outlets[i].health == OUTLET_DOWN)
            outlet_connect(&e->world->outlets[i]);
    for (size_t i = 0; i < e->world->intake_count; i++)
        if (had_paused || e->world->intakes[i].is_lost)
            intake_rescan(&e->world->intakes[i]);
    return ERR_NONE;
}

static enum err_code count_held_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    (void)tx;
    (void)arg;
    (void)err;
    return ERR_NONE;
}

enum err_code engine_retry_deletes(struct engine *e, engine_count_cb *cb, void *arg, struct err *err)
{
    if (e->world == NULL || e->is_draining)
        return err_set(err, ERR_STOPPED, false, "chute is stopping");
    struct retry_work *work = calloc(1, sizeof *work);
    if (work == NULL)
        return err_nomem(err);
    arena_init(&work->arena);
    work->e = e;
    work->cb = cb;
    work->arg = arg;
    for (size_t i = 0; i < e->world->intake_count; i++) {
        struct intake *in = &e->world->intakes[i];
        if (in->held_deletes == 0 || in->state == NULL)
            continue;
        work->queued += in->held_deletes;
        in->force_deletes = true;
        sweep_start(in, NULL, false);
    }
    if (engine_ask(e, count_held_fn, on_retried, work, err) != ERR_NONE) {
        arena_done(&work->arena);
        free(work);
        return err->code;
    }
    return ERR_NONE;
}

/* ---- chute load ---- */

enum err_code engine_offer(struct engine *e, const char *const *paths, size_t count, struct err *err)
{
    struct intake *in = &e->world->intakes[0];
    for (size_t i = 0; i < count; i++) {
        struct file_id id;
        if (file_id_at(paths[i], &id, err) != ERR_NONE)
            return err_wrap(err, "%s", paths[i]);
        const char *rel = paths[i];
        while (*rel == '/')
            rel++;
        intake_observe(in, rel, &id);
        if (in->settled_count >= SETTLED_MAX - 1 || i + 1 == count)
            intake_flush(in);
    }
    return ERR_NONE;
}

/* ---- work left over: rows with finish_pending ---- */

struct pending_work {
    struct world *world;
    struct arena arena;
    struct ledger_row *rows[PAGE_ROWS];
    size_t count;
    struct ledger_tx *tx;
    struct err *err;
};

static bool see_pending(void *arg, const struct ledger_row *row)
{
    struct pending_work *work = arg;
    struct ledger_row *copy;
    if (ledger_get(work->tx, row->source, row->path, row->flow, &work->arena, &copy, work->err) != ERR_NONE)
        return false;
    if (copy != NULL)
        work->rows[work->count++] = copy;
    return work->count < PAGE_ROWS;
}

static enum err_code pending_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct pending_work *work = arg;
    work->tx = tx;
    work->err = err;
    work->count = 0;
    const struct ledger_query q = {.finish_pending = true};
    enum err_code code = ledger_each(tx, &q, see_pending, work, err);
    return code != ERR_NONE ? code : err->code;
}

static bool is_finishing(const struct engine *e, int64_t row_id)
{
    const struct job *job;
    DL_FOREACH(e->jobs, job) {
        if (job->row.id == row_id && !job->is_drop)
            return true;
    }
    return false;
}

static void on_pending(void *arg, const struct err *err)
{
    struct pending_work *work = arg;
    struct world *w = work->world;
    for (size_t i = 0; err == NULL && !w->is_stopping && i < work->count; i++) {
        const struct ledger_row *row = work->rows[i];
        const struct config_flow *flow = config_flow_named(w->config, row->flow);
        struct outlet *o = NULL;
        for (size_t d = 0; d < w->outlet_count; d++)
            if (strcmp(w->outlets[d].config->name, row->dest) == 0)
                o = &w->outlets[d];
        if (flow == NULL || o == NULL || intake_of(w, row->source) == NULL || is_finishing(w->engine, row->id))
            continue;
        struct job *job = job_new(o, row, flow);
        if (job == NULL)
            break;
        job->is_finish_only = true;
        job_start(job);
    }
    arena_done(&work->arena);
    free(work);
    world_release(w);
}

void finish_pending_start(struct world *w)
{
    struct pending_work *work = w->is_stopping ? NULL : calloc(1, sizeof *work);
    struct err err = {0};
    if (work == NULL)
        return; /* done at the next start */
    arena_init(&work->arena);
    work->world = w;
    if (ledger_run(w->engine->ledger, pending_fn, on_pending, work, &err) != ERR_NONE) {
        free(work);
        return;
    }
    world_hold(w);
}
