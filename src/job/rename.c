/*
 * rename.c -- a file or a folder has another name now: told by an event, or seen by its inode.
 *
 * Where both names give one table, the row is carried along; else the new name is loaded first and the old table goes
 * when that has worked (DESIGN.md).
 */
#include "job_internal.h"

#include <limits.h>
#include <stdio.h>

struct rename_work {
    struct intake *in;
    bool is_folder;
    struct observed *then; /* note this afterwards; NULL */
    struct ledger_tx *tx;
    struct err *err;
    struct arena arena;
    size_t from_size;
    const char *to;
    char from[];
};

/*
 * Another file had the name TO. It may have left by a name that nobody watches and come back under a third one (two
 * names swapped): keep what it has loaded under a name that no file has, where its inode is found.
 */
static enum err_code put_aside(struct ledger_tx *tx, struct intake *in, const struct ledger_row *row, const char *to,
                               struct err *err)
{
    struct arena arena;
    struct ledger_row *there = NULL;
    arena_init(&arena);
    enum err_code code = ledger_get(tx, row->source, to, row->flow, &arena, &there, err);
    if (code == ERR_NONE && there != NULL && there->id != row->id &&
        (code = note_gone(tx, in->world->config, there, "", clock_wall_ms(), err)) == ERR_NONE) {
        there->path = arena_printf(&arena, "%s (replaced by %s)", to, row->path);
        code = there->path == NULL ? err_nomem(err) : ledger_put(tx, there, err);
    }
    arena_done(&arena);
    return code;
}

/* One row: carry it along where both names give one table; else its table waits for the new name to be loaded. */
static enum err_code rename_row(struct ledger_tx *tx, struct intake *in, struct ledger_row *row, const char *to,
                                struct err *err)
{
    const struct config_flow *flow = config_flow_named(in->world->config, row->flow);
    char table[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
    struct err name_err = {0};
    if (flow == NULL || row->taken_by_us)
        return ERR_NONE;
    if (!config_flow_takes(flow, to))
        return note_gone(tx, in->world->config, row, "", clock_wall_ms(), err);
    bool carry =
        flow_table_name(flow, to, table, key, sizeof table, &name_err) == ERR_NONE && strcmp(key, row->table_key) == 0;
    char reason[4200], new_key[33];
    if (row->state == STATE_GONE) { /* a sweep missed it before its new name was seen */
        if (!row->was_loaded || (row->drop_pending && carry))
            return ERR_NONE;
        if (row->drop_pending) { /* mv a b; mv b c, and b was never seen: it is c that must be loaded first */
            snprintf(reason, sizeof reason, RENAMED_PREFIX "%s", to);
            row->reason = reason;
            row->since_ms = clock_wall_ms();
            return ledger_put(tx, row, err);
        }
        row->state = STATE_LOADED;
    }
    if (carry) {
        if (put_aside(tx, in, row, to, err) != ERR_NONE)
            return err->code;
        snprintf(reason, sizeof reason, CARRIED_PREFIX "%s", row->path);
        row->path = to;
        row->table = table;
        if (row->state == STATE_LOADED || row->state == STATE_SKIPPED) {
            /* A ledger that is lost later must find the content under its new name in the destination. */
            engine_new_key(new_key);
            row->load_key = new_key;
            row->drop_pending = row->was_loaded;
            row->reason = reason;
        }
        return ledger_put(tx, row, err);
    }
    snprintf(reason, sizeof reason, RENAMED_PREFIX "%s", to);
    return note_gone(tx, in->world->config, row, reason, clock_wall_ms(), err);
}

static bool rename_below(void *arg, const struct ledger_row *row)
{
    struct rename_work *work = arg;
    struct ledger_row copy = *row;
    char to[PATH_MAX];
    if (snprintf(to, sizeof to, "%s%s", work->to, row->path + work->from_size - 1) >= (int)sizeof to)
        return true;
    return rename_row(work->tx, work->in, &copy, to, work->err) == ERR_NONE;
}

/* mv a b; mv b c, and b was never seen: a table that waits for b waits for c now. */
static bool wait_for_another(void *arg, const struct ledger_row *row)
{
    struct rename_work *work = arg;
    const size_t prefix = strlen(RENAMED_PREFIX), from = work->from_size - 1;
    char reason[PATH_MAX + 32];
    if (row->state != STATE_GONE || strncmp(row->reason, RENAMED_PREFIX, prefix) != 0)
        return true;
    const char *path = row->reason + prefix;
    bool is_it = strncmp(path, work->from, from) == 0 && path[from] == (work->is_folder ? '/' : '\0');
    if (!is_it || snprintf(reason, sizeof reason, RENAMED_PREFIX "%s%s", work->to, path + from) >= (int)sizeof reason)
        return true;
    struct ledger_row next = *row;
    next.reason = reason;
    return ledger_put(work->tx, &next, work->err) == ERR_NONE;
}

static enum err_code rename_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct rename_work *work = arg;
    struct intake *in = work->in;
    work->tx = tx;
    work->err = err;
    const struct ledger_query owed = {.source = in->config->name, .drop_pending = true};
    if (ledger_each(tx, &owed, wait_for_another, work, err) != ERR_NONE || err->code != ERR_NONE)
        return err->code;
    if (work->is_folder) {
        const struct ledger_query q = {
            .source = in->config->name, .below = work->from, .states = (1u << FILE_STATES) - 1 - STATE_BIT(STATE_GONE)};
        enum err_code code = ledger_each(tx, &q, rename_below, work, err);
        return code != ERR_NONE ? code : err->code;
    }
    for (size_t i = 0; i < in->flow_count; i++) {
        struct ledger_row *row;
        if (ledger_get(tx, in->config->name, work->from, in->flows[i]->name, &work->arena, &row, err) != ERR_NONE)
            return err->code;
        if (row != NULL && work->then != NULL && row->file.inode != work->then->id.inode)
            continue; /* another file has that name in the ledger by now */
        if (row != NULL && rename_row(tx, in, row, work->to, err) != ERR_NONE)
            return err->code;
    }
    return ERR_NONE;
}

static void rename_free(struct rename_work *work)
{
    arena_done(&work->arena);
    free(work->then);
    free(work);
}

static void on_rename_noted(void *arg, const struct err *err)
{
    struct rename_work *work = arg;
    struct intake *in = work->in;
    struct world *w = in->world;
    if (err != NULL) {
        intake_lost(in);
    } else if (work->is_folder) {
        intake_rescan(in); /* what is below has new names: those that were not carried are new files */
    }
    if (work->then != NULL) {
        intake_observe(in, work->then->path, &work->then->id);
        if (in->settled != NULL)
            in->settled->skip_inode = true;
        intake_flush(in);
    }
    rename_free(work);
    finish_pending_start(w);
    engine_pump_all(w->engine);
    engine_check_idle(w->engine);
    world_release(w);
}

static void rename_start(struct intake *in, const char *from, const char *to, bool is_folder, struct observed *then)
{
    size_t from_size = strlen(from) + 1, to_size = strlen(to) + 1;
    struct rename_work *work = calloc(1, sizeof *work + from_size + to_size);
    struct err err = {0};
    if (work == NULL) {
        intake_lost(in);
        free(then);
        return;
    }
    arena_init(&work->arena);
    work->in = in;
    work->is_folder = is_folder;
    work->then = then;
    work->from_size = from_size;
    memcpy(work->from, from, from_size);
    work->to = memcpy(work->from + from_size, to, to_size);
    world_hold(in->world);
    if (ledger_run(in->world->engine->ledger, rename_fn, on_rename_noted, work, &err) != ERR_NONE)
        on_rename_noted(work, &err);
}

/* A rename told by an event. The ledger's queue keeps order: the new name is noted after this. */
void intake_renamed(struct intake *in, const char *from, const char *to, bool is_folder)
{
    if (!is_folder) {
        char old_table[TABLE_NAME_MAX], old_key[TABLE_NAME_MAX], table[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
        for (size_t i = 0; i < in->flow_count; i++) {
            struct err err = {0};
            if (config_flow_takes(in->flows[i], from) && config_flow_takes(in->flows[i], to) &&
                flow_table_name(in->flows[i], from, old_table, old_key, sizeof old_table, &err) == ERR_NONE &&
                flow_table_name(in->flows[i], to, table, key, sizeof table, &err) == ERR_NONE &&
                strcmp(old_key, key) == 0)
                job_renamed(in->world->engine, in, in->flows[i], from, to);
        }
    }
    rename_start(in, from, to, is_folder, NULL);
}

/* ---- renames that nobody told us of ---- */

struct look_work {
    struct intake *in;
    struct observed *o; /* the new name */
    struct probe probe; /* the old one */
    char *old_path;
    int64_t old_id;
    struct err err;
};

static bool take_old_path(void *arg, const struct ledger_row *row)
{
    struct look_work *work = arg;
    if (strcmp(row->path, work->o->path) == 0 || row->taken_by_us || row->file.size != work->o->id.size ||
        row->file.mtime_ns != work->o->id.mtime_ns)
        return true;
    work->old_path = strdup(row->path);
    work->old_id = row->id;
    return false;
}

static enum err_code look_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct look_work *work = arg;
    const struct ledger_query q = {
        .source = work->in->config->name, .inode = work->o->id.inode, .dev = work->o->id.dev};
    return ledger_each(tx, &q, take_old_path, work, err);
}

/*
 * A file that was gone while it loads, and has another name now: only the end of its load tells what it has loaded, and
 * so what is carried along. Noted before that, it would be a new file and be appended once more.
 */
static bool is_appended_now(const struct look_work *work)
{
    const struct job *job;
    DL_FOREACH(work->in->world->engine->jobs, job)
        if (job->row.id == work->old_id && !job->is_drop && job->flow->plan.mode == MODE_APPEND)
            return true;
    return false;
}

static void look_end(struct look_work *work, bool is_renamed)
{
    struct intake *in = work->in;
    struct world *w = in->world;
    bool must_wait = is_renamed && is_appended_now(work);
    if (is_renamed && !must_wait) {
        rename_start(in, work->old_path, work->o->path, false, work->o);
        work->o = NULL;
    } else if (w->is_stopping) {
        in->is_lost = true; /* nobody could look: the next scan finds it, and must not find it noted as new */
    } else if (must_wait) {
        intake_settle_again(in, work->o->path, &work->o->id);
    } else {
        intake_observe(in, work->o->path, &work->o->id);
        if (in->settled != NULL)
            in->settled->skip_inode = true;
        intake_flush(in);
    }
    free(work->o);
    free(work->old_path);
    free(work);
    if (--in->looking == 0 && in->deferred != NULL &&
        !w->is_stopping) { /* the renames are in the ledger's queue: these come after them */
        LL_CONCAT(in->settled, in->deferred);
        in->deferred = NULL;
        intake_flush(in);
    }
    intake_scan_settled(in);
    engine_check_idle(w->engine);
    world_release(w);
}

static void on_old_probed(void *arg, struct probe *probes, size_t count)
{
    const struct look_work *work = arg;
    (void)count;
    bool is_another = probes[0].answer == PROBE_PRESENT &&
                      (probes[0].id.inode != work->o->id.inode || probes[0].id.dev != work->o->id.dev);
    look_end(arg, probes[0].answer == PROBE_GONE || is_another);
}

static void on_old_found(void *arg, const struct err *err)
{
    struct look_work *work = arg;
    struct err probe_err = {0};
    work->probe.path = work->old_path;
    /* `load` runs without sources: there is nobody to ask whether the old name still stands */
    if (err != NULL || work->old_path == NULL || work->in->world->is_stopping || work->in->state == NULL ||
        work->in->config->ops->probe == NULL ||
        work->in->config->ops->probe(work->in->state, &work->probe, 1, on_old_probed, work, &probe_err) != ERR_NONE)
        look_end(work, false);
}

void renames_look(struct intake *in, struct observed *list)
{
    struct observed *o, *tmp;
    LL_FOREACH_SAFE(list, o, tmp) {
        struct look_work *work = calloc(1, sizeof *work);
        struct err err = {0};
        if (work == NULL) {
            intake_lost(in);
            free(o);
            continue;
        }
        work->in = in;
        work->o = o;
        in->looking++;
        world_hold(in->world);
        if (ledger_run(in->world->engine->ledger, look_fn, on_old_found, work, &err) != ERR_NONE)
            on_old_found(work, &err);
    }
}
