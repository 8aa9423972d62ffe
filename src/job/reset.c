/*
 * reset.c -- drop what a flow made and forget its files; and load again what a destination has lost.
 *
 * A reset pauses its flow first, stops its jobs, and then goes page by page through its rows: one LOAD_FORGET for each,
 * after which the row is deleted. A kill in between leaves a shorter list for the next reset.
 *
 * Where a load was cut off, its checkpoint goes to the destination with the LOAD_FORGET: what was ordered over there
 * goes on, and would make its table after we have forgotten it. The driver waits for its end, however long that takes.
 */
#include "job_internal.h"

#include <stdio.h>

struct reset {
    struct engine *e;
    struct world *world;
    struct outlet *outlet;
    const struct config_flow *flow;
    struct arena arena;
    struct ledger_row **rows;
    bool *is_ours;            /* per row: a load of ours made its table (ledger_knows_tables) */
    const char **checkpoints; /* per row; NULL: none */
    size_t count, next;
    struct load load;
    bool is_begun; /* the driver has LOAD */
    bool is_stopping;
    void (*saved)(struct load *load, const struct err *err); /* SAVING is on its way to the ledger */
    const char *saving;
    struct buf text;
    struct err err;
    uint64_t dropped, forgotten;
    bool is_table_gone; /* what the flow's files were loaded into was dropped: only rows of the ledger are left */
    engine_text_cb *cb;
    void *arg;
    uv_timer_t timer; /* waits for the flow's jobs to end */
    struct reset *prev, *next_reset;
};

enum { RESET_PAGE = 128, RESET_LOOK_MS = 20 };

static void reset_page(struct reset *r);
static void reset_next(struct reset *r);

static void on_reset_closed(uv_handle_t *handle)
{
    struct reset *r = handle->data;
    struct world *w = r->world;
    struct engine *e = r->e;
    buf_done(&r->text);
    arena_done(&r->arena);
    DL_DELETE2(e->resets, r, prev, next_reset);
    free(r);
    engine_check_idle(e);
    world_release(w);
}

static void reset_end(struct reset *r)
{
    if (r->err.code == ERR_NONE) {
        buf_printf(&r->text,
                   "flow %s: %llu tables dropped, %llu files forgotten; paused until the next start or chute retry\n",
                   r->flow->name, (unsigned long long)r->dropped, (unsigned long long)r->forgotten);
        log_warn("flow %s was reset: %llu tables dropped, %llu files forgotten", r->flow->name,
                 (unsigned long long)r->dropped, (unsigned long long)r->forgotten);
    }
    r->cb(r->arg, r->text.data, r->err.code == ERR_NONE ? NULL : &r->err);
    uv_close((uv_handle_t *)&r->timer, on_reset_closed);
}

static void reset_stopped(struct reset *r)
{
    err_set(
        &r->err, ERR_STOPPED, false,
        "chute is stopping: flow %s is not wholly reset (%llu tables dropped, %llu files forgotten so far); run chute "
        "reset again",
        r->flow->name, (unsigned long long)r->dropped, (unsigned long long)r->forgotten);
    reset_end(r);
}

static enum err_code forget_row(struct ledger_tx *tx, const struct ledger_row *row, struct err *err)
{
    char checkpoint[CHECKPOINT_KEY_MAX];
    if (ledger_meta_put(tx, checkpoint_key(row->id, checkpoint), NULL, err) != ERR_NONE)
        return err->code;
    if (row->table_key[0] != '\0') {
        char key[TABLE_NAME_MAX + 128], made[MADE_KEY_MAX];
        newest_key(row->dest, row->table_key, key, sizeof key);
        if (ledger_header_put(tx, row->dest, row->table_key, NULL, err) != ERR_NONE ||
            ledger_meta_put(tx, made_key(row->dest, row->table_key, made), NULL, err) != ERR_NONE ||
            ledger_meta_put(tx, key, NULL, err) != ERR_NONE)
            return err->code;
    }
    return ledger_delete(tx, row->id, err);
}

/* How many rows from the one in hand on are forgotten at once: all of the page when their table is gone. */
static size_t forgets(const struct reset *r)
{
    return r->is_table_gone ? r->count - r->next : 1;
}

static enum err_code forget_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct reset *r = arg;
    for (size_t i = 0; i < forgets(r); i++)
        if (forget_row(tx, r->rows[r->next + i], err) != ERR_NONE)
            return err->code;
    return ERR_NONE;
}

static void on_forgotten(void *arg, const struct err *err)
{
    struct reset *r = arg;
    if (err != NULL) {
        r->err = *err;
        reset_end(r);
        return;
    }
    size_t count = forgets(r);
    r->forgotten += count;
    r->next += count;
    reset_next(r);
}

static void reset_forget_row(struct reset *r)
{
    if (ledger_run(r->e->ledger, forget_fn, on_forgotten, r, &r->err) != ERR_NONE)
        reset_end(r);
}

static void on_table_forgotten(struct load *load)
{
    struct reset *r = load->owner;
    const struct ledger_row *row = r->rows[r->next];
    r->is_begun = false;
    r->err = load->err;
    if (r->err.code == ERR_STOPPED && r->is_stopping) {
        reset_stopped(r);
        return;
    }
    if (r->err.code != ERR_NONE) {
        err_wrap(&r->err, "drop %s in %s", row->table, r->outlet->config->name);
        reset_end(r);
        return;
    }
    if (strcmp(load->receipt.dest_id, "dropped") == 0) {
        bool has_parts = load->part_count > 0;
        r->dropped += has_parts ? load->receipt.updated : 1;
        buf_printf(&r->text, "dropped %s in %s\n", has_parts ? load->receipt.warnings : row->table,
                   r->outlet->config->name);
    }
    /* The one table of the flow, or all tables of its rules: other rows have nothing to drop, unless they began more.
     */
    r->is_table_gone = flow_is_constant(r->flow) && !r->outlet->config->ops->keeps_checkpoints;
    reset_forget_row(r);
}

static enum err_code save_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    const struct reset *r = arg;
    char key[CHECKPOINT_KEY_MAX];
    return ledger_meta_put(tx, checkpoint_key(r->rows[r->next]->id, key), r->saving[0] != '\0' ? r->saving : NULL, err);
}

static void on_saved(void *arg, const struct err *err)
{
    struct reset *r = arg;
    if (err == NULL)
        r->load.checkpoint = r->saving;
    r->saved(&r->load, err);
}

/* As checkpoint_save(), of a row that has no job. */
static enum err_code reset_save(struct load *load, const char *text,
                                void (*saved)(struct load *load, const struct err *err), struct err *err)
{
    struct reset *r = load->owner;
    r->saving = arena_strdup(&r->arena, text);
    r->saved = saved;
    if (r->saving == NULL)
        return err_nomem(err);
    return ledger_run(r->e->ledger, save_fn, on_saved, r, err);
}

static void reset_next(struct reset *r)
{
    if (r->next == r->count) {
        reset_page(r);
        return;
    }
    if (r->is_stopping) {
        reset_stopped(r);
        return;
    }
    const struct ledger_row *row = r->rows[r->next];
    bool may_hold = row->was_loaded || row->drop_pending || r->checkpoints[r->next] != NULL;
    if (r->is_table_gone || row->table[0] == '\0' || !may_hold) {
        reset_forget_row(r);
        return;
    }
    if (r->outlet->health != OUTLET_OK) {
        err_set(&r->err, ERR_REMOTE, true,
                "destination %s does not answer, so %s can't be dropped (%s); run chute reset again when it does",
                r->outlet->config->name, row->table, r->outlet->reason);
        reset_end(r);
        return;
    }
    memset(&r->load, 0, sizeof r->load);
    r->load = (struct load){.what = LOAD_FORGET,
                            .plan = &r->flow->plan,
                            .instance = r->e->instance,
                            .source = row->source,
                            .path = row->path,
                            .load_key = row->load_key,
                            .table = row->table,
                            .is_ours = r->is_ours[r->next],
                            .parts = r->flow->parts,
                            .part_count = r->flow->part_count,
                            .fd = -1,
                            .checkpoint = r->checkpoints[r->next] != NULL ? r->checkpoints[r->next] : "",
                            .save = reset_save,
                            .finished = on_table_forgotten,
                            .owner = r};
    const char *dot = r->outlet->config->ops->space_word != NULL ? strchr(row->table, '.') : NULL;
    if (dot != NULL) {
        r->load.space = arena_printf(&r->arena, "%.*s", (int)(dot - row->table), row->table);
        r->load.table = dot + 1;
        if (r->load.space == NULL) {
            err_nomem(&r->err);
            reset_end(r);
            return;
        }
        struct load_part *parts = arena_alloc(&r->arena, (r->flow->part_count + 1) * sizeof *parts);
        if (parts == NULL) {
            err_nomem(&r->err);
            reset_end(r);
            return;
        }
        for (size_t i = 0; i < r->flow->part_count; i++) {
            parts[i] = r->flow->parts[i];
            parts[i].space = r->load.space;
        }
        r->load.parts = parts;
    }
    r->is_begun = r->outlet->config->ops->begin(r->outlet->state, &r->load, &r->err) == ERR_NONE;
    if (!r->is_begun)
        reset_end(r);
}

static bool take_row(void *arg, const struct ledger_row *row)
{
    struct reset *r = arg;
    struct ledger_row *copy = arena_alloc(&r->arena, sizeof *copy);
    if (copy == NULL) {
        err_nomem(&r->err);
        return false;
    }
    if (row_copy(&r->arena, row, copy, &r->err) != ERR_NONE)
        return false;
    r->rows[r->count++] = copy;
    return true;
}

/* What else the ledger knows of row I. */
static void page_facts(struct ledger_tx *tx, struct reset *r, size_t i)
{
    const struct ledger_row *row = r->rows[i];
    const struct dest_ops *ops = r->outlet->config->ops;
    char made_name[MADE_KEY_MAX], checkpoint[CHECKPOINT_KEY_MAX];
    const char *made = NULL;
    if (ops->ledger_knows_tables &&
        ledger_meta_get(tx, made_key(row->dest, row->table_key, made_name), &r->arena, &made, &r->err) != ERR_NONE)
        return;
    r->is_ours[i] = made != NULL;
    if (ops->keeps_checkpoints)
        ledger_meta_get(tx, checkpoint_key(row->id, checkpoint), &r->arena, &r->checkpoints[i], &r->err);
}

static enum err_code page_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct reset *r = arg;
    arena_done(&r->arena);
    arena_init(&r->arena);
    r->count = r->next = 0;
    r->rows = arena_alloc(&r->arena, RESET_PAGE * sizeof *r->rows);
    r->is_ours = arena_alloc(&r->arena, RESET_PAGE * sizeof *r->is_ours);
    r->checkpoints = arena_alloc(&r->arena, RESET_PAGE * sizeof *r->checkpoints);
    if (r->rows == NULL || r->is_ours == NULL || r->checkpoints == NULL)
        return err_nomem(err);
    const struct ledger_query q = {.flow = r->flow->name, .limit = RESET_PAGE};
    err_clear(&r->err);
    if (ledger_each(tx, &q, take_row, r, err) != ERR_NONE)
        return err->code;
    for (size_t i = 0; i < r->count && r->err.code == ERR_NONE; i++)
        page_facts(tx, r, i);
    /* A row that could not be copied is not the end of the list. */
    return r->err.code != ERR_NONE ? err_set(err, r->err.code, r->err.retryable, "%s", r->err.text) : ERR_NONE;
}

static void on_page(void *arg, const struct err *err)
{
    struct reset *r = arg;
    if (err != NULL)
        r->err = *err;
    if (err != NULL || r->count == 0)
        reset_end(r);
    else
        reset_next(r);
}

static void reset_page(struct reset *r)
{
    if (r->is_stopping)
        reset_stopped(r);
    else if (ledger_run(r->e->ledger, page_fn, on_page, r, &r->err) != ERR_NONE)
        reset_end(r);
}

/*
 * The flow's jobs were told to stop; look again shortly until they have. And the destination has to be asked first
 * which one it is: in another one than before nothing is ours.
 */
static void on_look(uv_timer_t *timer)
{
    struct reset *r = timer->data;
    const struct outlet *o = r->outlet;
    bool is_opening = o->health == OUTLET_OPENING || (o->health == OUTLET_OK && !o->identity_known);
    bool running = o->is_claiming || (is_opening && !r->is_stopping);
    struct job *job;
    DL_FOREACH(r->e->jobs, job) {
        if (job->flow == r->flow) {
            job_abort(job);
            running = true;
        }
    }
    if (running)
        return;
    uv_timer_stop(timer);
    reset_page(r);
}

static bool pause_flow(struct engine *e, const char *flow)
{
    if (engine_flow_paused(e, flow))
        return true;
    char **grown = realloc(e->paused, (e->paused_count + 1) * sizeof *grown);
    char *name = strdup(flow);
    if (grown != NULL)
        e->paused = grown;
    if (grown == NULL || name == NULL) {
        free(name);
        return false;
    }
    e->paused[e->paused_count++] = name;
    return true;
}

enum err_code engine_reset(struct engine *e, const char *flow_name, engine_text_cb *cb, void *arg, struct err *err)
{
    if (e->world == NULL || e->is_draining)
        return err_set(err, ERR_STOPPED, false, "chute is stopping");
    const struct config_flow *flow = config_flow_named(e->world->config, flow_name);
    if (flow == NULL)
        return err_set(err, ERR_CONFIG, false, "no flow is called %s", flow_name);
    struct reset *r = calloc(1, sizeof *r);
    if (r == NULL || !pause_flow(e, flow_name)) {
        free(r);
        return err_nomem(err);
    }
    r->e = e;
    r->world = e->world;
    r->flow = flow;
    for (size_t i = 0; i < e->world->outlet_count; i++)
        if (e->world->outlets[i].config == flow->dest)
            r->outlet = &e->world->outlets[i];
    arena_init(&r->arena);
    buf_init(&r->text);
    r->cb = cb;
    r->arg = arg;
    DL_APPEND2(e->resets, r, prev, next_reset);
    world_hold(r->world);
    uv_timer_init(e->loop, &r->timer);
    r->timer.data = r;
    uv_timer_start(&r->timer, on_look, 1, RESET_LOOK_MS);
    return ERR_NONE;
}

void resets_stop(struct engine *e)
{
    struct reset *r;
    DL_FOREACH2(e->resets, r, next_reset)
    {
        r->is_stopping = true;
        if (r->is_begun)
            r->outlet->config->ops->abort(r->outlet->state, &r->load);
    }
}

/* ---- a destination that is another one than before ---- */

struct requeue {
    struct ledger_tx *tx;
    const struct config *config;
    struct err *err;
};

static bool requeue_row(void *arg, const struct ledger_row *row)
{
    struct requeue *q = arg;
    struct ledger_row next = *row;
    char key[33], newest[TABLE_NAME_MAX + 128], made[MADE_KEY_MAX], checkpoint[CHECKPOINT_KEY_MAX];
    bool is_loaded = row->state == STATE_LOADED || row->state == STATE_SKIPPED;
    bool was_judged = row->state == STATE_QUARANTINED && row->was_loaded; /* by what the other database held */
    if ((is_loaded || was_judged) && !row->taken_by_us && config_flow_named(q->config, row->flow) != NULL) {
        engine_new_key(key);
        row_queue_again(&next, key, was_judged ? AGAIN_PREFIX "another database" : "");
        next.finish_pending = false;
        next.drop_pending = false;
        next.seen_ms = next.since_ms;
    }
    next.was_loaded = false;
    next.has_hash = false;
    newest_key(row->dest, row->table_key, newest, sizeof newest);
    /* What it loaded into the other database is no repeat here, whatever it waits for: its versions go with the row. */
    /* Nor is a table there ours, though it has the name of one that we made; and numbers of remote jobs are others'. */
    return ledger_meta_put(q->tx, newest, NULL, q->err) == ERR_NONE &&
           ledger_meta_put(q->tx, made_key(row->dest, row->table_key, made), NULL, q->err) == ERR_NONE &&
           ledger_meta_put(q->tx, checkpoint_key(row->id, checkpoint), NULL, q->err) == ERR_NONE &&
           ledger_delete(q->tx, row->id, q->err) == ERR_NONE && ledger_put(q->tx, &next, q->err) == ERR_NONE;
}

enum err_code requeue_destination(struct ledger_tx *tx, const struct config *config, const char *dest, struct err *err)
{
    struct requeue r = {.tx = tx, .config = config, .err = err};
    const struct ledger_query q = {.dest = dest};
    enum err_code code = ledger_each(tx, &q, requeue_row, &r, err);
    return code != ERR_NONE ? code : err->code;
}
