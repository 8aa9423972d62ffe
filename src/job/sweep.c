/*
 * sweep.c -- what is no longer there: deletes, by event and by looking.
 *
 * A delete is believed only after a look (source_ops.probe): the parent could be listed, and the root is the one in the
 * ledger. A sweep goes through the ledger's paths of a source in pages, twice: first it counts, then it marks, so that
 * a mass delete can be held before anything is touched.
 */
#include "job_internal.h"

#include <limits.h>
#include <stdio.h>

/* ---- marking rows ---- */

enum err_code note_gone(struct ledger_tx *tx, const struct config *config, struct ledger_row *row, const char *reason,
                        int64_t now_ms, struct err *err)
{
    const struct config_flow *flow = config_flow_named(config, row->flow);
    if (row->taken_by_us || row->state == STATE_GONE)
        return ERR_NONE;
    /*
     * While it loads, its destination may hold it any moment: a drop is owed, and waits for the job (claim.c). One that
     * waits may have been committed before a kill cut off our record. Dropping what is not there is no error.
     */
    bool may_hold = row->was_loaded || is_unended(row->state);
    bool was_to_come = is_unended(row->state);
    bool drops = flow != NULL && flow->on_delete != ON_DELETE_IGNORE && may_hold && row->table[0] != '\0';
    row->finish_pending = row->state == STATE_QUARANTINED; /* its reason file goes too */
    row->state = STATE_GONE;
    const char *old_key = row->load_key;
    char key[33];
    engine_new_key(key);
    row->load_key = key; /* a drop is an attempt of its own: the destination knows the old key as a load */
    row->drop_pending = drops;
    row->reason = reason;
    row->tries = 0;
    row->failed_ms = 0;
    row->next_try_ms = 0;
    row->since_ms = now_ms;
    enum err_code code = ledger_put(tx, row, err);
    row->load_key = old_key; /* the new one lives no longer than this call */
    if (code != ERR_NONE)
        return code;
    /* Renamed, it is still the newest. */
    bool is_renamed = strncmp(reason, RENAMED_PREFIX, strlen(RENAMED_PREFIX)) == 0;
    if (was_to_come && !is_renamed && overtaken_revive(tx, flow, row, err) != ERR_NONE)
        return err->code;
    return row->drop_pending ? ERR_NONE : release_owner(tx, row, err);
}

struct gone_work {
    struct intake *in;
    struct arena arena;
    struct probe *probes;
    size_t count;
};

static void gone_work_free(struct gone_work *work)
{
    arena_done(&work->arena);
    free(work);
}

struct waiter_search {
    struct ledger_tx *tx;
    struct err *err;
    const char *path;
};

static bool stop_waiting(void *arg, const struct ledger_row *row)
{
    struct waiter_search *s = arg;
    const size_t n = strlen(RENAMED_PREFIX);
    if (row->state != STATE_GONE || strncmp(row->reason, RENAMED_PREFIX, n) != 0 ||
        strcmp(row->reason + n, s->path) != 0)
        return true;
    struct ledger_row next = *row;
    next.reason = "";
    return ledger_put(s->tx, &next, s->err) == ERR_NONE;
}

static enum err_code mark_path(struct ledger_tx *tx, struct intake *in, const char *path, struct err *err)
{
    struct arena arena;
    bool is_known = false;
    arena_init(&arena);
    enum err_code code = ERR_NONE;
    for (size_t i = 0; i < in->flow_count && code == ERR_NONE; i++) {
        struct ledger_row *row;
        code = ledger_get(tx, in->config->name, path, in->flows[i]->name, &arena, &row, err);
        is_known = is_known || (code == ERR_NONE && row != NULL);
        if (code == ERR_NONE && row != NULL)
            code = note_gone(tx, in->world->config, row, "", clock_wall_ms(), err);
    }
    if (code == ERR_NONE && is_known)
        code = members_gone(tx, in, path, err);
    arena_done(&arena);
    if (code != ERR_NONE || is_known)
        return code;
    /* mv a b; rm b: b never had a row, and a's table waits for it in vain */
    struct waiter_search s = {.tx = tx, .err = err, .path = path};
    const struct ledger_query q = {.source = in->config->name, .drop_pending = true};
    code = ledger_each(tx, &q, stop_waiting, &s, err);
    return code != ERR_NONE ? code : err->code;
}

static enum err_code gone_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct gone_work *work = arg;
    for (size_t i = 0; i < work->count; i++)
        if (work->probes[i].answer == PROBE_GONE && mark_path(tx, work->in, work->probes[i].path, err) != ERR_NONE)
            return err->code;
    return ERR_NONE;
}

/* ---- deletes told by events: wait a moment, look, mark ---- */

static void arm_gone_timer(struct intake *in);

static void on_gone_marked(void *arg, const struct err *err)
{
    struct gone_work *work = arg;
    struct intake *in = work->in;
    struct world *w = in->world;
    in->is_probing_gone = false;
    if (err != NULL) {
        intake_lost(in);
    }
    gone_work_free(work);
    finish_pending_start(w);
    engine_pump_all(w->engine);
    arm_gone_timer(in);
    engine_check_idle(w->engine);
    world_release(w);
}

static void on_gone_probed(void *arg, struct probe *probes, size_t count)
{
    struct gone_work *work = arg;
    struct err err = {0};
    (void)probes;
    (void)count;
    if (ledger_run_repeatable(work->in->world->engine->ledger, gone_fn, on_gone_marked, work, &err) != ERR_NONE)
        on_gone_marked(work, &err);
}

void on_gone_timer(uv_timer_t *timer)
{
    struct intake *in = timer->data;
    uint64_t now = clock_mono_ms();
    if (in->is_probing_gone || in->world->is_stopping)
        return;
    struct gone_work *work = calloc(1, sizeof *work);
    if (work == NULL)
        return;
    arena_init(&work->arena);
    work->in = in;
    work->probes = arena_alloc(&work->arena, (in->gone_count + 1) * sizeof *work->probes);
    struct gone_path *g, *tmp;
    LL_FOREACH_SAFE(in->gone, g, tmp) {
        char *path = g->due_ms <= now && work->probes != NULL ? arena_strdup(&work->arena, g->path) : NULL;
        if (path == NULL)
            continue;
        work->probes[work->count++].path = path;
        LL_DELETE(in->gone, g);
        in->gone_count--;
        free(g);
    }
    struct err err = {0};
    if (work->count == 0 ||
        in->config->ops->probe(in->state, work->probes, work->count, on_gone_probed, work, &err) != ERR_NONE) {
        if (work->count > 0)
            intake_lost(in);
        gone_work_free(work);
        arm_gone_timer(in);
        return;
    }
    in->is_probing_gone = true;
    world_hold(in->world);
}

static void arm_gone_timer(struct intake *in)
{
    if (in->gone == NULL || in->is_probing_gone || in->world->is_stopping)
        return;
    uint64_t now = clock_mono_ms(), due = UINT64_MAX;
    struct gone_path *g;
    LL_FOREACH(in->gone, g)
        due = g->due_ms < due ? g->due_ms : due;
    uv_timer_start(&in->gone_timer, on_gone_timer, due > now ? due - now : 1, 0);
}

/* An editor unlinks and writes anew: a delete waits twice the debounce before anybody looks. */
void intake_gone(struct intake *in, const char *path)
{
    if (in->config->ops->probe == NULL || in->world->is_stopping)
        return;
    size_t size = strlen(path) + 1;
    struct gone_path *g = in->gone_count < SETTLED_MAX ? calloc(1, sizeof *g + size) : NULL;
    if (g == NULL) {
        intake_lost(in);
        return;
    }
    memcpy(g->path, path, size);
    g->due_ms = clock_mono_ms() + 2 * in->config->debounce_ms;
    LL_PREPEND(in->gone, g);
    in->gone_count++;
    if (!uv_is_active((uv_handle_t *)&in->gone_timer))
        arm_gone_timer(in);
}

/* ---- sweeps ---- */

struct sweep {
    struct intake *in;
    char *below;          /* NULL: the whole source */
    bool is_event;        /* a folder went away before our eyes: nothing is held */
    bool is_marking;      /* second time */
    bool trusts_new_root; /* counting under a root that is not the one in the ledger */
    char expected_root[64];
    int64_t after_id;
    size_t page_rows;
    struct arena arena; /* of one page */
    struct probe *probes;
    bool *has_table; /* per path of the page: dropping it would drop or empty a table */
    size_t count;
    bool is_last;
    struct err err;
    uint64_t present, gone, tables, tables_gone;
};

static void sweep_page(struct sweep *s);
static void next_page(struct sweep *s);

static void sweep_end(struct sweep *s)
{
    struct intake *in = s->in;
    struct world *w = in->world;
    if (s->trusts_new_root && in->config->ops->expect_root != NULL)
        in->config->ops->expect_root(in->state, s->expected_root);
    arena_done(&s->arena);
    free(s->below);
    free(s);
    in->sweep = NULL;
    if (in->sweep_again) {
        in->sweep_again = false;
        sweep_start(in, NULL, false);
    }
    finish_pending_start(w);
    engine_pump_all(w->engine);
    engine_check_idle(w->engine);
    world_release(w);
}

static bool page_row(void *arg, const struct ledger_row *row)
{
    struct sweep *s = arg;
    s->after_id = row->id;
    if (row->taken_by_us || member_name(row->path) != NULL) /* a member goes with its archive */
        return true;
    char *path = arena_strdup(&s->arena, row->path);
    if (path == NULL) {
        err_nomem(&s->err);
        return false;
    }
    const struct config_flow *flow = config_flow_named(s->in->world->config, row->flow);
    s->has_table[s->count] = flow != NULL && flow->on_delete != ON_DELETE_IGNORE && row->was_loaded;
    s->probes[s->count++].path = path;
    return s->count < s->page_rows;
}

static enum err_code page_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct sweep *s = arg;
    arena_done(&s->arena);
    arena_init(&s->arena);
    s->count = 0;
    s->probes = arena_alloc(&s->arena, s->page_rows * sizeof *s->probes);
    s->has_table = arena_alloc(&s->arena, s->page_rows * sizeof *s->has_table);
    if (s->probes == NULL || s->has_table == NULL)
        return err_nomem(err);
    int64_t before;
    do { /* rows that chute took away itself don't fill a page */
        before = s->after_id;
        const struct ledger_query q = {.source = s->in->config->name,
                                       .below = s->below,
                                       .after_id = s->after_id,
                                       .states = (1u << FILE_STATES) - 1 - STATE_BIT(STATE_GONE),
                                       .limit = s->page_rows};
        if (ledger_each(tx, &q, page_row, s, err) != ERR_NONE)
            return err->code;
    } while (s->count == 0 && s->after_id != before);
    s->is_last = s->count == 0;
    if (s->err.code != ERR_NONE)
        return err_set(err, s->err.code, s->err.retryable, "%s", s->err.text);
    return ERR_NONE;
}

static enum err_code adopt_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct intake *in = arg;
    char key[256];
    snprintf(key, sizeof key, "root:%s", in->config->name);
    return ledger_meta_put(tx, key, in->root_identity, err);
}

static void on_adopted(void *arg, const struct err *err)
{
    struct intake *in = arg;
    if (err != NULL) /* then the root counts as a new one at the next start as well */
        engine_ledger_failed(in->world->engine);
    world_release(in->world);
}

/* The root that is there is the one to believe from now on. */
static void adopt_root(struct intake *in)
{
    struct err err = {0};
    snprintf(in->root_identity, sizeof in->root_identity, "%s", in->config->ops->root_identity(in->state));
    in->config->ops->expect_root(in->state, in->root_identity);
    world_hold(in->world);
    if (ledger_run(in->world->engine->ledger, adopt_fn, on_adopted, in, &err) != ERR_NONE)
        on_adopted(in, &err);
}

static void hold(struct intake *in, uint64_t count, const char *why)
{
    if (in->held_deletes != count || strcmp(in->held_reason, why) != 0)
        log_warn("source %s: %llu deletes are held: %s; if they are meant, run: chute retry --deletes",
                 in->config->name, (unsigned long long)count, why);
    in->held_deletes = count;
    snprintf(in->held_reason, sizeof in->held_reason, "%s", why);
}

/* The first pass is over: may what is gone be marked? */
static bool may_mark(struct sweep *s)
{
    struct intake *in = s->in;
    if (s->trusts_new_root) {
        if (s->present < s->gone && !in->force_deletes) {
            hold(in, s->gone, "the root is another folder or disk than before, and most files are not in it");
            return false;
        }
        log_info("source %s: the root has a new identity and holds the known files: accepted", in->config->name);
        adopt_root(in);
        s->trusts_new_root = false; /* sweep_end() does not go back */
    }
    if (!s->is_event && !in->force_deletes && s->tables > 10 && s->tables_gone * 2 > s->tables) {
        hold(in, s->gone, "more than half of the tables would be dropped at once");
        return false;
    }
    in->held_deletes = 0;
    in->held_reason[0] = '\0';
    return s->gone > 0;
}

static void on_page(void *arg, const struct err *err)
{
    struct sweep *s = arg;
    struct intake *in = s->in;
    if (err != NULL) {
        intake_lost(in);
        sweep_end(s);
    } else if (in->world->is_stopping) {
        sweep_end(s);
    } else if (!s->is_last) {
        sweep_page(s);
    } else if (!s->is_marking && may_mark(s)) {
        s->is_marking = true;
        s->after_id = 0;
        next_page(s);
    } else {
        if (s->is_marking)
            in->force_deletes = false;
        sweep_end(s);
    }
}

static void next_page(struct sweep *s)
{
    struct err err = {0};
    err_clear(&s->err);
    if (ledger_run(s->in->world->engine->ledger, page_fn, on_page, s, &err) != ERR_NONE)
        on_page(s, &err);
}

static enum err_code sweep_mark_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct sweep *s = arg;
    for (size_t i = 0; i < s->count; i++)
        if (s->probes[i].answer == PROBE_GONE && mark_path(tx, s->in, s->probes[i].path, err) != ERR_NONE)
            return err->code;
    return ERR_NONE;
}

static void on_swept(void *arg, const struct err *err)
{
    struct sweep *s = arg;
    if (err != NULL) {
        intake_lost(s->in);
        sweep_end(s);
        return;
    }
    next_page(s);
}

static void on_probed(void *arg, struct probe *probes, size_t count)
{
    struct sweep *s = arg;
    struct err err = {0};
    if (s->is_marking) {
        if (ledger_run(s->in->world->engine->ledger, sweep_mark_fn, on_swept, s, &err) != ERR_NONE)
            on_swept(s, &err);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        s->present += probes[i].answer == PROBE_PRESENT;
        s->gone += probes[i].answer == PROBE_GONE;
        s->tables += s->has_table[i] && probes[i].answer != PROBE_UNKNOWN;
        s->tables_gone += s->has_table[i] && probes[i].answer == PROBE_GONE;
    }
    next_page(s);
}

/* A page is there: look at its paths. */
static void sweep_page(struct sweep *s)
{
    struct err err = {0};
    if (s->in->config->ops->probe(s->in->state, s->probes, s->count, on_probed, s, &err) != ERR_NONE) {
        intake_lost(s->in);
        sweep_end(s);
    }
}

void sweep_start(struct intake *in, const char *below, bool is_event)
{
    if (in->config->ops->probe == NULL || in->world->is_stopping)
        return;
    if (in->sweep != NULL) {
        in->sweep_again = true;
        return;
    }
    struct sweep *s = calloc(1, sizeof *s);
    if (s == NULL || (below != NULL && (s->below = strdup(below)) == NULL)) {
        free(s);
        intake_lost(in);
        return;
    }
    arena_init(&s->arena);
    s->in = in;
    s->is_event = is_event;
    /* on another machine a page costs a listing of all the folders that are in it */
    s->page_rows = in->config->ops->open_now == NULL ? PAGE_ROWS_REMOTE : PAGE_ROWS;
    in->sweep = s;
    world_hold(in->world);
    /* Another root than the ledger's: count under the new one before deciding whether to believe it. */
    const char *now = in->config->ops->root_identity != NULL ? in->config->ops->root_identity(in->state) : "";
    if (in->root_identity[0] == '\0' && now[0] != '\0') {
        adopt_root(in);
    } else if (now[0] != '\0' && strcmp(now, in->root_identity) != 0 && !is_event) {
        s->trusts_new_root = true;
        snprintf(s->expected_root, sizeof s->expected_root, "%s", in->root_identity);
        in->config->ops->expect_root(in->state, now);
    }
    next_page(s);
}
