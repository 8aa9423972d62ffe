/*
 * intake.c -- one source: what it sees goes through settle into the ledger.
 *
 * Events are hints: whatever is dropped here for want of room or of a ledger is found again by a scan, and is_lost
 * remembers that one is owed.
 */
#include "job_internal.h"

#include <stdio.h>

static void note_chunk_on(struct intake *in);

struct intake *intake_of(struct world *w, const char *source)
{
    for (size_t i = 0; i < w->intake_count; i++)
        if (strcmp(w->intakes[i].config->name, source) == 0)
            return &w->intakes[i];
    return NULL;
}

void intake_lost(struct intake *in)
{
    in->is_lost = true;
    engine_ledger_failed(in->world->engine); /* scans once the ledger has been seen to work */
}

/* ---- a whole version goes into the ledger ---- */

bool is_unended(enum file_state s)
{
    return s == STATE_QUEUED || s == STATE_LOADING || s == STATE_RETRYING || s == STATE_SETTLING || s == STATE_SEEN;
}

/* A version that waited and is overtaken leaves a line in the history. */
static enum err_code tell_overtaken(struct ledger_tx *tx, const struct ledger_row *row, int64_t now_ms, struct err *err)
{
    const struct ledger_receipt r = {
        .at_ms = now_ms,
        .source = row->source,
        .path = row->path,
        .flow = row->flow,
        .dest = row->dest,
        .table = row->table,
        .state = STATE_SKIPPED,
        .reason = "overtaken by a newer version of the file",
        .receipt = {.dest_rows = -1, .bytes = row->file.size},
        .tries = row->tries,
    };
    return ledger_receipt_put(tx, &r, err);
}

/* The next ledger_put() makes the row anew; what it has loaded went with the old one. */
static enum err_code forget_versions(struct ledger_tx *tx, struct ledger_row *row, struct err *err)
{
    if (ledger_delete(tx, row->id, err) != ERR_NONE)
        return err->code;
    row->has_hash = false;
    return ERR_NONE;
}

enum err_code note_version(struct ledger_tx *tx, struct intake *in, const struct config_flow *flow, const char *path,
                           const struct file_id *id, const char *new_key, int64_t now_ms, struct err *err)
{
    struct arena arena;
    arena_init(&arena);
    struct ledger_row *row = NULL;
    enum err_code code = ledger_get(tx, in->config->name, path, flow->name, &arena, &row, err);
    if (code != ERR_NONE)
        goto free_arena;
    char table[TABLE_NAME_MAX] = "", key[TABLE_NAME_MAX] = "", again[256];
    struct err name_err = {0};
    /* what is only unpacked goes to no table: its members do */
    bool has_table = !flow_unpacks(flow, path) || flow->archives == ARCHIVES_BOTH;
    if (!has_table || flow_table_name(flow, path, table, key, sizeof table, &name_err) != ERR_NONE)
        table[0] = key[0] = '\0'; /* the job says so when it is opened */
    struct ledger_row fresh = {.source = in->config->name,
                               .path = path,
                               .flow = flow->name,
                               .dest = flow->dest->name,
                               .reason = "",
                               .state = STATE_SEEN};
    bool is_new = row == NULL;
    if (is_new)
        row = &fresh;
    else if (file_id_same(&row->file, id) && row->state != STATE_GONE && row->state != STATE_SETTLING &&
             !(row->state == STATE_QUARANTINED && row->definition != flow->definition) &&
             strcmp(row->dest, flow->dest->name) == 0)
        goto free_arena; /* known */
    bool same_version = !is_new && file_id_same(&row->file, id) && row->state == STATE_SETTLING;
    if (!is_new && (row->state == STATE_QUEUED || row->state == STATE_RETRYING) &&
        row->file.size + (uint64_t)row->file.mtime_ns > 0 && (code = tell_overtaken(tx, row, now_ms, err)) != ERR_NONE)
        goto free_arena;
    /* A file that chute or the user took away and that comes back is a new one, not a changed one; what it loaded stays
     * known. */
    if (row->state == STATE_GONE || row->taken_by_us) {
        bool table_stays = flow->plan.mode == MODE_REPLACE && row->state != STATE_GONE;
        bool drop_owed = row->state == STATE_GONE && row->drop_pending;
        row->was_loaded = row->was_loaded && (table_stays || (drop_owed && flow->plan.mode != MODE_APPEND));
        row->drop_pending = false;
        /* Whether that drop has happened only the destination knows: nothing here may say "already loaded". */
        if (drop_owed && (code = forget_versions(tx, row, err)) != ERR_NONE)
            goto free_arena;
    }
    /* The key of a version that has not ended stays: the destination may have committed under it (DESIGN.md). */
    if (is_new || !is_unended(row->state))
        row->load_key = new_key;
    bool owes_carry = !is_new && row->drop_pending && strncmp(row->reason, CARRIED_PREFIX, strlen(CARRIED_PREFIX)) == 0;
    if (!owes_carry)
        row->reason = "";
    if (!is_new && row->state == STATE_QUARANTINED) {
        snprintf(again, sizeof again, AGAIN_PREFIX "a new version");
        row->reason = again;
    }
    if (row->state != STATE_LOADING) {
        row->state = STATE_QUEUED;
        row->since_ms = now_ms;
    }
    if (!same_version)
        row->seen_ms = now_ms;
    row->file = *id;
    row->dest = flow->dest->name;
    row->table = table;
    row->table_key = key;
    row->tries = 0;
    row->failed_ms = 0;
    row->next_try_ms = 0;
    row->taken_by_us = false;
    row->finish_pending = false;
    row->definition = flow->definition;
    code = ledger_put(tx, row, err);
free_arena:
    arena_done(&arena);
    return code;
}

struct note_work {
    struct intake *in;
    struct observed *list;
    struct observed
        *deferred; /* other files at names whose old files may have been renamed: those are looked for first */
    struct observed *maybe_renamed; /* same inode as a known file of another path: look whether that one is gone */
};

struct inode_search {
    const char *path;
    const struct file_id *id;
    bool found;
};

static bool see_inode(void *arg, const struct ledger_row *row)
{
    struct inode_search *s = arg;
    s->found = strcmp(row->path, s->path) != 0 && !row->taken_by_us && row->file.size == s->id->size &&
               row->file.mtime_ns == s->id->mtime_ns;
    return !s->found;
}

/* Is there a file of this inode under another name in the ledger, while this name is new? Then it may have been renamed
 * while we did not look. */
static enum err_code may_be_renamed(struct ledger_tx *tx, struct intake *in, const struct observed *o, bool *ret,
                                    struct err *err)
{
    *ret = false;
    bool is_known_inode = false;
    if (o->skip_inode || o->id.inode == 0 ||
        ledger_knows_inode(tx, o->id.inode, o->id.dev, &is_known_inode, err) != ERR_NONE || !is_known_inode)
        return err->code;
    uint64_t known = 0;
    struct ledger_query by_path = {.source = in->config->name, .path = o->path, .limit = 1};
    if (ledger_count(tx, &by_path, &known, err) != ERR_NONE || known > 0)
        return err->code;
    struct inode_search s = {.path = o->path, .id = &o->id};
    struct ledger_query q = {.source = in->config->name, .inode = o->id.inode, .dev = o->id.dev};
    enum err_code code = ledger_each(tx, &q, see_inode, &s, err);
    *ret = s.found;
    return code;
}

/* mv log log.1 and a new log while we did not look: what the ledger has as log must become log.1 before. */
static enum err_code took_a_name(struct ledger_tx *tx, struct note_work *work, const struct observed *o, bool *ret,
                                 struct err *err)
{
    const struct observed *m;
    *ret = false;
    LL_FOREACH(work->maybe_renamed, m) {
        uint64_t count = 0;
        const struct ledger_query q = {
            .source = work->in->config->name, .path = o->path, .inode = m->id.inode, .dev = m->id.dev};
        if (m->id.inode == o->id.inode)
            continue;
        if (ledger_count(tx, &q, &count, err) != ERR_NONE)
            return err->code;
        *ret = *ret || count > 0;
    }
    return ERR_NONE;
}

static enum err_code note_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct note_work *work = arg;
    struct intake *in = work->in;
    int64_t now_ms = clock_wall_ms();
    struct observed *o, *tmp;
    LL_FOREACH_SAFE(work->list, o, tmp) {
        bool maybe;
        if (may_be_renamed(tx, in, o, &maybe, err) != ERR_NONE)
            return err->code;
        if (maybe) {
            LL_DELETE(work->list, o);
            LL_PREPEND(work->maybe_renamed, o);
        }
    }
    LL_FOREACH_SAFE(work->list, o, tmp) {
        bool waits;
        if (took_a_name(tx, work, o, &waits, err) != ERR_NONE)
            return err->code;
        if (waits) {
            LL_DELETE(work->list, o);
            LL_PREPEND(work->deferred, o);
            continue;
        }
        for (size_t i = 0; i < in->flow_count; i++) {
            char key[33];
            engine_new_key(key);
            if (config_flow_takes(in->flows[i], o->path) &&
                note_version(tx, in, in->flows[i], o->path, &o->id, key, now_ms, err) != ERR_NONE)
                return err->code;
        }
    }
    return ERR_NONE;
}

static void free_observed(struct observed *list)
{
    struct observed *o, *tmp;
    LL_FOREACH_SAFE(list, o, tmp)
        free(o);
}

static void on_noted(void *arg, const struct err *err)
{
    struct note_work *work = arg;
    struct intake *in = work->in;
    struct world *w = in->world;
    in->is_flushing = false;
    if (err != NULL) {
        intake_lost(in);
    } else if (work->maybe_renamed != NULL) {
        LL_CONCAT(in->deferred, work->deferred);
        work->deferred = NULL;
        renames_look(in, work->maybe_renamed);
        work->maybe_renamed = NULL;
    }
    free_observed(work->list);
    free_observed(work->maybe_renamed);
    free_observed(work->deferred);
    free(work);
    intake_flush(in);
    note_chunk_on(in);
    intake_scan_settled(in);
    engine_pump_all(w->engine);
    schedule_check(in);
    engine_check_idle(w->engine);
    world_release(w);
}

/*
 * Oldest first, as they are claimed: neighbours in the claim are then neighbours in the ledger, and a commit writes a
 * page of it for several files instead of one for each. A folder lists its files in no order.
 */
static int by_age(const struct observed *a, const struct observed *b)
{
    if (a->id.mtime_ns != b->id.mtime_ns)
        return a->id.mtime_ns < b->id.mtime_ns ? -1 : 1;
    return strcmp(a->path, b->path);
}

void intake_flush(struct intake *in)
{
    struct engine *e = in->world->engine;
    if (in->is_flushing || in->settled == NULL || in->world->is_closing)
        return;
    struct note_work *work = calloc(1, sizeof *work);
    struct err err = {0};
    if (work == NULL) {
        intake_lost(in);
        free_observed(in->settled);
    } else {
        LL_SORT(in->settled, by_age);
        work->in = in;
        work->list = in->settled;
    }
    in->settled = NULL;
    in->settled_count = 0;
    if (work == NULL || ledger_run_repeatable(e->ledger, note_fn, on_noted, work, &err) != ERR_NONE) {
        intake_lost(in);
        if (work != NULL)
            free_observed(work->list);
        free(work);
        engine_ledger_failed(e);
        return;
    }
    in->is_flushing = true;
    world_hold(in->world);
}

void intake_observe(struct intake *in, const char *path, const struct file_id *id)
{
    size_t size = strlen(path) + 1;
    struct observed *o = in->settled_count < SETTLED_MAX ? calloc(1, sizeof *o + size) : NULL;
    if (o == NULL) {
        intake_lost(in);
        return;
    }
    memcpy(o->path, path, size);
    o->id = *id;
    LL_PREPEND(in->settled, o);
    in->settled_count++;
}

static void on_settled(void *arg, const struct found *found, const struct err *err)
{
    struct intake *in = arg;
    if (err == NULL || err->code == ERR_NONE) {
        if (!settle_is_marker(in->settle, found->path))
            intake_observe(in, found->path, &found->id);
        intake_flush(in);
    } else if (err->code == ERR_INPUT) {
        intake_gone(in, found->path);
    }
    note_chunk_on(in);
    intake_scan_settled(in);
    schedule_check(in);
    engine_check_idle(in->world->engine);
}

/* What is still written has been looked at as well, and is no reason to wait any longer. */
static void on_looked(void *arg)
{
    intake_scan_settled(arg);
}

static void note_to_settle(struct intake *in, const struct found *found)
{
    struct err err = {0};
    if (settle_note(in->settle, found, &err) != ERR_NONE)
        intake_lost(in);
}

void intake_settle_again(struct intake *in, const char *path, const struct file_id *id)
{
    if (in == NULL || in->settle == NULL || in->world->is_stopping)
        return;
    struct found found = {.path = path, .how = FOUND_SCANNED, .id = *id};
    found.id.mtime_ns = INT64_MAX / 2; /* it moved a moment ago: never "old enough at once" */
    note_to_settle(in, &found);
}

/* ---- what a source says ---- */

static bool is_wanted(void *arg, const char *path)
{
    const struct intake *in = arg;
    for (size_t i = 0; i < in->flow_count; i++)
        if (config_flow_takes(in->flows[i], path))
            return true;
    return false;
}

static void on_found(void *arg, const struct found *found)
{
    struct intake *in = arg;
    if (in->world->is_stopping)
        return;
    switch (found->how) {
    case FOUND_FOLDER:
        spaces_folder(in, found->path);
        break;
    case FOUND_FOLDER_RENAMED:
        spaces_folder_gone(in, found->from);
        spaces_folder(in, found->path);
        note_to_settle(in, found); /* what waits there waits on under its new name */
        intake_renamed(in, found->from, found->path, true);
        break;
    case FOUND_FOLDER_GONE:
        spaces_folder_gone(in, found->path);
        note_to_settle(in, found);
        sweep_start(in, found->path, true);
        break;
    case FOUND_GONE:
        note_to_settle(in, found);
        /* The ledger has that it is ours to take away; if another version took its place, the job looks at that. */
        if (!job_takes_away(in->world->engine, in, found->path))
            intake_gone(in, found->path);
        break;
    case FOUND_RENAMED:
        if (found->from != NULL)
            intake_renamed(in, found->from, found->path, false);
        note_to_settle(in, found);
        break;
    case FOUND_WRITING:
    case FOUND_CLOSED:
        job_change_seen(in->world->engine, in, found->path);
        note_to_settle(in, found);
        break;
    case FOUND_SCANNED:
        note_to_settle(in, found);
        break;
    }
}

static void on_overflow(void *arg)
{
    struct intake *in = arg;
    in->world->engine->overflows++;
    if (in->settle != NULL)
        settle_lost_events(in->settle);
    log_warn("source %s: the kernel dropped events; scanning", in->config->name);
}

/* A folder that is missing is no error of any file: without this line nothing would ever speak of it. */
static void say_health(struct intake *in, const struct source_health *health)
{
    struct log_about about = {.source = in->config->name};
    if (in->is_missing && health->is_reachable) {
        in->is_missing = false;
        in->problem[0] = '\0';
        log_write(LOG_INFO, &about, "is there again");
    }
    /* the scan of one folder may clear what that of another has found: each text is said once, not each change */
    if (health->problem[0] == '\0' || strcmp(in->problem, health->problem) == 0)
        return;
    snprintf(in->problem, sizeof in->problem, "%s", health->problem);
    in->is_missing = !health->is_reachable;
    log_write(LOG_ERROR, &about, "%s%s", in->problem, in->is_missing ? "; looked for again by itself" : "");
}

static void on_health(void *arg)
{
    struct intake *in = arg;
    struct source_health health;
    if (in->state != NULL && in->settle != NULL) {
        in->config->ops->health(in->state, &health);
        settle_set_polled(in->settle, strcmp(health.mode, "poll") == 0);
        say_health(in, &health);
    }
    engine_check_idle(in->world->engine);
}

/* ---- scans ---- */

/* Which of the scanned paths are not known as they are? Those in an end state with equal stat need no look. */
static enum err_code compare_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct intake *in = arg;
    struct arena arena;
    arena_init(&arena);
    enum err_code code = ERR_NONE;
    for (size_t c = 0; c < in->chunk_count && code == ERR_NONE; c++) {
        const struct found *f = &in->chunk[c];
        in->chunk_needed[c] = f->how != FOUND_FOLDER && settle_is_marker(in->settle, f->path);
        for (size_t i = 0; i < in->flow_count && f->how != FOUND_FOLDER && code == ERR_NONE; i++) {
            if (!config_flow_takes(in->flows[i], f->path))
                continue;
            struct ledger_row *row;
            code = ledger_get(tx, in->config->name, f->path, in->flows[i]->name, &arena, &row, err);
            if (code != ERR_NONE)
                break;
            bool same = row != NULL && file_id_same(&row->file, &f->id), waits = false;
            if (row != NULL && in->config->ops->fetch != NULL) {
                bool is_moved_clock;
                code = clock_compare(tx, &in->clock, row, f, &is_moved_clock, &waits, err);
                same = same || is_moved_clock;
            }
            bool known = same && row->state != STATE_GONE && row->state != STATE_SETTLING &&
                         strcmp(row->dest, in->flows[i]->dest->name) == 0 &&
                         !(row->state == STATE_QUARANTINED && row->definition != in->flows[i]->definition);
            in->chunk_needed[c] = in->chunk_needed[c] || (!known && !waits);
        }
        if (c % 64 == 63) {
            arena_done(&arena);
            arena_init(&arena);
        }
    }
    arena_done(&arena);
    return code;
}

static void on_compared(void *arg, const struct err *err)
{
    struct intake *in = arg;
    struct world *w = in->world;
    in->is_checking = false;
    in->chunk_next = 0;
    if (err != NULL) {
        intake_lost(in);
        in->chunk_next = in->chunk_count; /* the scan that follows recovery comes by again */
        engine_ledger_failed(w->engine);
    }
    note_chunk_on(in);
    world_release(w);
}

/* Hand the rest of the chunk to settle as far as there is room; then let the scan go on. */
static void note_chunk_on(struct intake *in)
{
    if (in->chunk == NULL || in->is_checking || in->world->is_stopping)
        return;
    struct settle_health health;
    while (in->chunk_next < in->chunk_count) {
        if (in->chunk_needed[in->chunk_next]) {
            settle_health(in->settle, &health);
            struct err err = {0};
            if (health.waiting + in->settled_count >= SETTLED_MAX / 2 ||
                settle_note(in->settle, &in->chunk[in->chunk_next], &err) != ERR_NONE)
                return; /* on_settled() comes back here */
        }
        in->chunk_next++;
    }
    in->chunk = NULL;
    in->config->ops->scan_resume(in->state);
}

static void on_scanned(void *arg, const struct found *found, size_t count)
{
    struct intake *in = arg;
    in->chunk = found;
    in->chunk_count = count;
    in->chunk_next = 0;
    if (in->world->is_stopping)
        return; /* the source is being closed */
    for (size_t i = 0; i < count; i++)
        if (found[i].how == FOUND_FOLDER)
            spaces_folder(in, found[i].path);
    in->is_checking = true;
    world_hold(in->world);
    struct err err = {0};
    if (ledger_run_repeatable(in->world->engine->ledger, compare_fn, on_compared, in, &err) != ERR_NONE) {
        in->is_checking = false;
        intake_lost(in);
        in->chunk = NULL;
        world_release(in->world);
        engine_ledger_failed(in->world->engine);
        in->config->ops->scan_resume(in->state);
    }
}

/*
 * Looking for what is gone costs a source on another machine a listing for each page of rows: only where somebody asked
 * for it, or where a name that comes again must be told from a file that has changed.
 */
static bool must_sweep(const struct intake *in)
{
    if (in->config->ops->fetch == NULL)
        return true;
    for (size_t i = 0; i < in->flow_count; i++)
        if (in->flows[i]->on_delete != ON_DELETE_IGNORE ||
            (in->flows[i]->plan.mode == MODE_APPEND && in->flows[i]->format != FORMAT_RAW))
            return true;
    return false;
}

static void on_scan_done(void *arg, const struct scan_result *result)
{
    struct intake *in = arg;
    if (in->world->is_stopping)
        return;
    log_debug("source %s: scanned %llu files in %llu folders%s", in->config->name, (unsigned long long)result->files,
              (unsigned long long)result->folders, result->is_complete ? "" : " (not all could be listed)");
    if (result->is_complete && in->config->ops->fetch != NULL)
        intake_answered(in);
    if (in->config->ops->fetch != NULL && clock_listed(in, result->is_complete)) {
        in->config->ops->scan(in->state);
        return;
    }
    if (in->config->ops->fetch != NULL)
        schedule_listed(in, result->is_complete);
    in->scan_over = true;
    in->scan_over_ms = clock_mono_ms();
    in->sweep_owed = in->sweep_owed || (result->is_complete && must_sweep(in)) || in->force_deletes;
    intake_scan_settled(in);
    schedule_check(in);
    engine_check_idle(in->world->engine);
}

/*
 * After a scan, once all it found (but for what is still being written) is in the ledger: what it did not find may be
 * looked at, and after the first one flows with a shared table may start.
 */
void intake_scan_settled(struct intake *in)
{
    if (!in->scan_over || in->chunk != NULL || in->is_flushing || in->settled != NULL || in->looking > 0 ||
        in->world->is_stopping || (in->settle != NULL && !settle_has_looked(in->settle, in->scan_over_ms)))
        return;
    if (in->sweep_owed) {
        in->sweep_owed = false;
        sweep_start(in, NULL, false);
    }
    if (in->is_scanned)
        return;
    in->is_scanned = true;
    engine_pump_all(in->world->engine);
}

void intake_rescan(struct intake *in)
{
    if (in->state == NULL || in->world->is_stopping)
        return;
    in->is_lost = false;
    in->scan_over = false;
    in->config->ops->scan(in->state);
}

bool intake_is_quiet(const struct intake *in)
{
    if (in->state == NULL)
        return in->settled == NULL && !in->is_flushing;
    struct source_health source;
    struct settle_health settle;
    in->config->ops->health(in->state, &source);
    settle_health(in->settle, &settle);
    return in->is_scanned && in->scan_over && in->chunk == NULL && in->settled == NULL && !in->is_flushing &&
           !in->is_lost && settle.waiting == 0 && in->gone == NULL && !in->is_probing_gone && in->sweep == NULL &&
           in->looking == 0;
}

/* ---- open and stop ---- */

static int max_depth(const struct intake *in)
{
    int depth = 0;
    for (size_t i = 0; i < in->flow_count; i++)
        for (size_t g = 0; g < in->flows[i]->include.count; g++) {
            int d = glob_depth(in->flows[i]->include.items[g]);
            if (d < 0)
                return -1;
            depth = d > depth ? d : depth;
        }
    return depth;
}

/* The state folder and the folders files are moved to are never input. */
static const char **folders_to_avoid(const struct intake *in)
{
    const struct config *config = in->world->config;
    const char **avoid = calloc(config->flow_count * 2 + 2, sizeof *avoid);
    if (avoid == NULL)
        return NULL;
    size_t n = 0;
    avoid[n++] = config->state;
    for (size_t i = 0; i < config->flow_count; i++) {
        if (config->flows[i].after_success == AFTER_MOVE)
            avoid[n++] = config->flows[i].after_success_dir;
        if (config->flows[i].after_failure == AFTER_MOVE)
            avoid[n++] = config->flows[i].after_failure_dir;
    }
    return avoid;
}

static enum err_code collect_flows(struct intake *in, struct err *err)
{
    const struct config *config = in->world->config;
    in->flows = calloc(config->flow_count + 1, sizeof *in->flows);
    if (in->flows == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < config->flow_count; i++)
        if (config->flows[i].source == in->config)
            in->flows[in->flow_count++] = &config->flows[i];
    return ERR_NONE;
}

enum err_code intake_open(struct intake *in, const struct config_source *config, const char *root_identity,
                          struct err *err)
{
    struct engine *e = in->world->engine;
    in->config = config;
    uv_timer_init(e->loop, &in->gone_timer);
    in->gone_timer.data = in;
    if (collect_flows(in, err) != ERR_NONE)
        return err->code;
    if (e->no_sources) {
        in->is_scanned = in->scan_over = true;
        return ERR_NONE;
    }
    in->avoid = folders_to_avoid(in);
    if (in->avoid == NULL)
        return err_nomem(err);
    const struct source_sink sink = {.arg = in,
                                     .on_found = on_found,
                                     .on_overflow = on_overflow,
                                     .on_scanned = on_scanned,
                                     .on_scan_done = on_scan_done,
                                     .on_health = on_health};
    if (config->ops->open(config->options, &in->world->source_env, e->loop, &sink, max_depth(in), in->avoid, is_wanted,
                          in, &in->state, err) != ERR_NONE)
        return err_wrap(err, "source %s", config->name);
    snprintf(in->root_identity, sizeof in->root_identity, "%s", root_identity != NULL ? root_identity : "");
    if (config->ops->expect_root != NULL)
        config->ops->expect_root(in->state, root_identity != NULL ? root_identity : "");
    const struct settle_options options = {.debounce_ms = config->debounce_ms,
                                           .settle_ms = config->settle_ms,
                                           .ready_marker = config->ready_marker,
                                           .max_tickets = SETTLED_MAX,
                                           .probe = config->ops->open_now == NULL ? config->ops->probe : NULL};
    if (settle_open(e->loop, &options, config->ops->open_now, in->state, on_settled, in, &in->settle, err) != ERR_NONE)
        return err_wrap(err, "source %s", config->name);
    settle_on_looked(in->settle, on_looked);
    return schedule_open(in, err);
}

void intake_forget(struct intake *in)
{
    free_observed(in->settled);
    free_observed(in->deferred);
    in->settled = in->deferred = NULL;
    struct gone_path *g, *tmp;
    LL_FOREACH_SAFE(in->gone, g, tmp)
        free(g);
    in->gone = NULL;
    free(in->flows);
    free(in->avoid);
}
