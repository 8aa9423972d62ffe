/*
 * claim.c -- take due rows out of the ledger and make jobs of them.
 *
 * claim_fn() runs in a ledger transaction on the pool: it marks the rows `loading`, settles at once what needs no file
 * (a table that belongs to another, a version overtaken in a shared table), and collects what the others need to know.
 */
#include "job_internal.h"

#include <stdio.h>
#include <unistd.h>

/* How long a table whose file was renamed waits for the new name to be seen at all. */
#define SUCCESSOR_WAIT_MS 60000

struct claimed {
    struct ledger_row *row;
    const struct config_flow *flow;
    const char *header;
    bool has_header_of_table; /* HEADER is what the ledger has, or that it has none */
    const char *checkpoint;
    bool want_hash;
    bool is_drop;
    bool is_carry;
    bool is_ours;
};

struct claim *claim_new(struct outlet *o, size_t limit, uint64_t max_bytes)
{
    struct claim *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    arena_init(&c->arena);
    c->outlet = o;
    c->limit = limit;
    c->max_bytes = max_bytes;
    c->next_due_ms = INT64_MAX;
    const struct world *w = o->world;
    c->held = arena_alloc(&c->arena, (w->config->flow_count + w->engine->paused_count + 1) * sizeof *c->held);
    c->items = arena_alloc(&c->arena, (limit + DROPS_AT_ONCE) * sizeof *c->items);
    c->busy_drops = arena_alloc(&c->arena, (w->engine->job_count + 1) * sizeof *c->busy_drops);
    c->busy_tables = arena_alloc(&c->arena, (w->engine->job_count + 1) * sizeof *c->busy_tables);
    if (c->held == NULL || c->items == NULL || c->busy_drops == NULL || c->busy_tables == NULL) {
        claim_free(c);
        return NULL;
    }
    c->started_ms = w->engine->started_ms;
    c->all_scanned = true;
    for (size_t i = 0; i < w->intake_count; i++)
        c->all_scanned = c->all_scanned && w->intakes[i].is_scanned && w->intakes[i].looking == 0;
    /* Held: paused by reset; or a shared table before the source's first scan, when it is not known yet who is newest.
     */
    size_t n = 0;
    for (size_t i = 0; i < w->config->flow_count; i++) {
        const struct config_flow *f = &w->config->flows[i];
        const struct intake *in = intake_of(o->world, f->source->name);
        bool is_shared = flow_is_constant(f) || f->plan.mode != MODE_REPLACE;
        if (engine_flow_paused(w->engine, f->name) || (in != NULL && intake_is_down(in)) ||
            (is_shared && in != NULL && in->state != NULL && !in->is_scanned))
            c->held[n++] = f->name;
    }
    const struct job *job;
    size_t tables = 0;
    DL_FOREACH(w->engine->jobs, job) {
        if (job->outlet != o)
            continue;
        c->busy_drops[c->busy_count++] = job->row.id;
        if (o->config->ops->runs_in_order || job->is_finish_only)
            continue;
        c->busy_tables[tables] = arena_strdup(&c->arena, job->row.table_key);
        if (c->busy_tables[tables++] == NULL) {
            claim_free(c);
            return NULL;
        }
    }
    c->busy_tables[tables] = NULL;
    return c;
}

/*
 * Waits are kept in wall time, so that they survive a restart. A clock that was set back (or that was ahead before the
 * last restart) must not make them longer than any wait can be.
 */
void claim_check_clock(struct claim *c, struct outlet *o)
{
    enum { SLACK_MS = 5000 };
    int64_t now = clock_wall_ms(), offset = now - (int64_t)clock_mono_ms();
    uint64_t longest = o->config->retry.max;
    for (size_t i = 0; i < o->world->config->flow_count; i++)
        if (o->world->config->flows[i].incomplete_after > longest)
            longest = o->world->config->flows[i].incomplete_after;
    if (o->clock_offset_ms == 0 || offset < o->clock_offset_ms - SLACK_MS)
        c->clamp_ms = now + (int64_t)longest;
    o->clock_offset_ms = offset;
}

void claim_free(struct claim *c)
{
    if (c == NULL)
        return;
    arena_done(&c->arena);
    free(c);
}

const struct config_flow *config_flow_named(const struct config *config, const char *name)
{
    for (size_t i = 0; i < config->flow_count; i++)
        if (strcmp(config->flows[i].name, name) == 0)
            return &config->flows[i];
    return NULL;
}

static enum err_code end_row(struct ledger_tx *tx, struct ledger_row *row, enum file_state state, const char *reason,
                             const struct config_flow *flow, struct err *err)
{
    row->state = state;
    row->reason = reason;
    row->since_ms = clock_wall_ms();
    row->definition = flow->definition;
    row->finish_pending = state == STATE_QUARANTINED; /* the reason file is written by a finish-only job */
    const struct ledger_receipt r = {
        .at_ms = row->since_ms,
        .source = row->source,
        .path = row->path,
        .flow = row->flow,
        .dest = row->dest,
        .table = row->table,
        .state = state,
        .reason = reason,
        .receipt = {.dest_rows = -1},
        .tries = row->tries,
    };
    if (ledger_receipt_put(tx, &r, err) != ERR_NONE)
        return err->code;
    return ledger_put(tx, row, err);
}

static bool is_in_claim(const struct claim *c, int64_t id)
{
    for (size_t i = 0; i < c->row_count; i++)
        if (c->rows[i]->id == id)
            return true;
    return false;
}

struct owner_search {
    const struct claim *claim;
    const struct ledger_row *me;
    struct arena *arena;
    const char *owner;
};

static bool see_owner(void *arg, const struct ledger_row *row)
{
    struct owner_search *s = arg;
    if (row->id == s->me->id)
        return true;
    /* The same file under a flow that was renamed: there is nobody else. */
    if (strcmp(row->path, s->me->path) == 0 && strcmp(row->source, s->me->source) == 0 &&
        config_flow_named(s->claim->outlet->world->config, row->flow) == NULL)
        return true;
    bool holds = row->was_loaded && (row->state != STATE_GONE || row->drop_pending);
    bool comes_first = (row->state == STATE_LOADING && !is_in_claim(s->claim, row->id)) ||
                       ((row->state == STATE_LOADING || row->state == STATE_RETRYING) && row->id < s->me->id);
    /* The old name of this very file: its table is ours when we are loaded. */
    char renamed[4200];
    snprintf(renamed, sizeof renamed, RENAMED_PREFIX "%s", s->me->path);
    if (row->state == STATE_GONE && strcmp(row->reason, renamed) == 0)
        return true;
    if (row->state == STATE_GONE && row->drop_pending && row->taken_by_us)
        return true;
    if (holds || comes_first) {
        s->owner = arena_strdup(s->arena, row->path);
        return false;
    }
    return true;
}

/* replace with a per-file table: is somebody else's file in it? */
static enum err_code find_owner(struct ledger_tx *tx, struct claim *c, const struct ledger_row *row, const char **ret,
                                struct err *err)
{
    struct owner_search s = {.claim = c, .me = row, .arena = &c->arena};
    struct ledger_query q = {.dest = row->dest, .table_key = row->table_key};
    enum err_code code = ledger_each(tx, &q, see_owner, &s, err);
    *ret = s.owner;
    return code;
}

/* replace with one table for the flow: does it hold a newer version already? */
static enum err_code is_overtaken(struct ledger_tx *tx, struct claim *c, const struct ledger_row *row, size_t index,
                                  const char **ret_by, struct err *err)
{
    *ret_by = NULL;
    /* Rows come oldest first: only the last of a table is worth loading. */
    for (size_t i = index + 1; i < c->row_count; i++)
        if (strcmp(c->rows[i]->table_key, row->table_key) == 0 && strcmp(c->rows[i]->flow, row->flow) == 0)
            *ret_by = c->rows[i]->path;
    if (*ret_by != NULL)
        return ERR_NONE;
    return newest_overtakes(tx, row, &c->arena, ret_by, err);
}

/* What a claimed row needs before its file is opened. Sets *RET_TAKE when a job is to be made of it. */
static enum err_code prepare(struct ledger_tx *tx, struct claim *c, struct ledger_row *row, size_t index,
                             struct err *err)
{
    const struct config_flow *flow = config_flow_named(c->outlet->world->config, row->flow);
    if (flow == NULL || strcmp(flow->dest->name, row->dest) != 0 || intake_of(c->outlet->world, row->source) == NULL) {
        /* Its flow was taken out of the configuration: forget the wait, keep what was loaded as history. */
        char key[CHECKPOINT_KEY_MAX];
        return ledger_meta_put(tx, checkpoint_key(row->id, key), NULL, err) != ERR_NONE
                   ? err->code
                   : ledger_delete(tx, row->id, err);
    }
    const char *folder = NULL;
    if (space_owner(tx, flow, row, &c->arena, &folder, err) != ERR_NONE)
        return err->code;
    if (folder != NULL) {
        const char *word = flow->dest->ops->space_word;
        const char *reason = arena_printf(&c->arena,
                                          "%s already belongs to folder %s: files of %s and %s would lie in one %s; "
                                          "rename one of the folders",
                                          word, folder, folder, row->path, word);
        if (reason == NULL)
            return err_nomem(err);
        return end_row(tx, row, STATE_QUARANTINED, reason, flow, err) != ERR_NONE
                   ? err->code
                   : overtaken_revive(tx, flow, row, err);
    }
    if (flow->plan.mode == MODE_REPLACE && !flow_is_constant(flow) && row->table_key[0] != '\0') {
        const char *owner = NULL;
        if (find_owner(tx, c, row, &owner, err) != ERR_NONE)
            return err->code;
        if (owner != NULL) {
            const char *reason =
                arena_printf(&c->arena, "%s%s: both %s and %s would replace %s; rename one of them%s",
                             flow->format == FORMAT_RAW ? OWNED_BLOB_PREFIX : OWNED_PREFIX, owner, owner, row->path,
                             row->table, flow->format == FORMAT_RAW ? ", or put {path} into `blob`" : "");
            return reason == NULL ? err_nomem(err) : end_row(tx, row, STATE_QUARANTINED, reason, flow, err);
        }
    } else if (flow->plan.mode == MODE_REPLACE && flow_is_constant(flow)) {
        const char *by = NULL;
        if (is_overtaken(tx, c, row, index, &by, err) != ERR_NONE)
            return err->code;
        if (by != NULL) {
            const char *reason =
                arena_printf(&c->arena, OVERTAKEN_PREFIX "%s is newer and replaces %s", by, row->table);
            return reason == NULL ? err_nomem(err) : end_row(tx, row, STATE_SKIPPED, reason, flow, err);
        }
    }
    struct claimed *item = &c->items[c->count];
    *item = (struct claimed){.row = row, .flow = flow};
    if (flow->format == FORMAT_CSV && flow->plan.on_schema_change != SCHEMA_RECREATE && row->table_key[0] != '\0') {
        const struct claimed *before = c->count > 0 ? item - 1 : NULL; /* often the same table */
        if (before != NULL && before->has_header_of_table && strcmp(before->row->table_key, row->table_key) == 0)
            item->header = before->header;
        else if (ledger_header_get(tx, row->dest, row->table_key, &c->arena, &item->header, err) != ERR_NONE)
            return err->code;
        item->has_header_of_table = true;
    }
    if (ledger_version_sized(tx, row->id, row->file.size, &item->want_hash, err) != ERR_NONE)
        return err->code;
    if (flow->dest->ops->keeps_checkpoints) {
        char key[CHECKPOINT_KEY_MAX];
        if (ledger_meta_get(tx, checkpoint_key(row->id, key), &c->arena, &item->checkpoint, err) != ERR_NONE)
            return err->code;
    }
    item->want_hash = item->want_hash || (row->was_loaded && flow->plan.mode == MODE_APPEND);
    c->count++;
    return ERR_NONE;
}

/* ---- tables whose file is gone ---- */

struct drop_search {
    struct ledger_tx *tx;
    struct claim *c;
    struct err *err;
    size_t found;
};

static bool copy_drop(struct drop_search *s, const struct ledger_row *row, const struct config_flow *flow,
                      bool is_carry)
{
    struct ledger_row *copy = arena_alloc(&s->c->arena, sizeof *copy);
    if (copy == NULL) {
        err_nomem(s->err);
        return false;
    }
    if (row_copy(&s->c->arena, row, copy, s->err) != ERR_NONE)
        return false;
    bool is_ours = false;
    if (flow->dest->ops->ledger_knows_tables) {
        char key[MADE_KEY_MAX];
        const char *made = NULL;
        if (ledger_meta_get(s->tx, made_key(row->dest, row->table_key, key), &s->c->arena, &made, s->err) != ERR_NONE)
            return false;
        is_ours = made != NULL;
    }
    const char *checkpoint = NULL;
    char checkpoint_name[CHECKPOINT_KEY_MAX];
    if (flow->dest->ops->keeps_checkpoints &&
        ledger_meta_get(s->tx, checkpoint_key(row->id, checkpoint_name), &s->c->arena, &checkpoint, s->err) != ERR_NONE)
        return false;
    s->c->items[s->c->count++] = (struct claimed){
        .row = copy, .flow = flow, .is_drop = true, .is_carry = is_carry, .is_ours = is_ours, .checkpoint = checkpoint};
    return ++s->found < DROPS_AT_ONCE;
}

/* Renamed over a file that was loaded before: that older end says nothing about the file that came. */
static bool is_successor(const struct ledger_row *next, const struct ledger_row *row)
{
    bool is_same_file = next->file.inode == row->file.inode && next->file.dev == row->file.dev &&
                        next->file.size == row->file.size && next->file.mtime_ns == row->file.mtime_ns;
    bool clock_went_back = row->since_ms > clock_wall_ms();
    return is_same_file || next->seen_ms >= row->since_ms || clock_went_back;
}

static bool is_there(struct drop_search *s, const char *source, const char *path)
{
    const struct intake *in = intake_of(s->c->outlet->world, source);
    struct err err = {0};
    if (in != NULL && in->state != NULL && in->config->ops->open_now == NULL)
        return true; /* on another machine: the next listing tells */
    int fd = in != NULL && in->state != NULL ? in->config->ops->open_now(in->state, path, &err) : -1;
    if (fd >= 0)
        close(fd);
    return fd >= 0 || (err.code != ERR_NONE && err.code != ERR_INPUT); /* can't be looked at: it may be there */
}

/* May the table of a renamed file go? Only when the file is in its new table, or its new name is gone as well. */
static bool successor_is_done(struct drop_search *s, const struct ledger_row *row)
{
    if (strncmp(row->reason, RENAMED_PREFIX, strlen(RENAMED_PREFIX)) != 0)
        return true;
    const char *path = row->reason + strlen(RENAMED_PREFIX);
    for (int hops = 0; hops < 16; hops++) { /* mv a b; mv b c: it is c that must be loaded */
        struct ledger_row *next;
        if (ledger_get(s->tx, row->source, path, row->flow, &s->c->arena, &next, s->err) != ERR_NONE)
            return false;
        if (next == NULL) /* not settled yet, which may take its writer hours; or it never came, as a scan after our
                             start shows */
            return (clock_wall_ms() - row->since_ms > SUCCESSOR_WAIT_MS ||
                    (s->c->all_scanned && row->since_ms < s->c->started_ms)) &&
                   !is_there(s, row->source, path);
        if (next->state == STATE_LOADED || next->state == STATE_SKIPPED)
            return is_successor(next, row);
        if (next->state != STATE_GONE)
            return false;
        if (strncmp(next->reason, RENAMED_PREFIX, strlen(RENAMED_PREFIX)) != 0)
            return true;
        path = next->reason + strlen(RENAMED_PREFIX);
    }
    return true;
}

static bool table_is_taken(void *arg, const struct ledger_row *row)
{
    struct {
        int64_t me;
        bool taken;
    } *t = arg;
    t->taken = t->taken || row->id != t->me;
    return !t->taken;
}

static bool see_drop(void *arg, const struct ledger_row *row)
{
    struct drop_search *s = arg;
    for (size_t i = 0; i < s->c->busy_count; i++)
        if (s->c->busy_drops[i] == row->id)
            return true;
    const struct config_flow *flow = config_flow_named(s->c->outlet->world->config, row->flow);
    for (size_t i = 0; s->c->held[i] != NULL; i++)
        if (strcmp(s->c->held[i], row->flow) == 0)
            return true;
    if (row->state != STATE_GONE) {
        if (flow != NULL && row->has_hash && strncmp(row->reason, CARRIED_PREFIX, strlen(CARRIED_PREFIX)) == 0)
            return copy_drop(s, row, flow, true);
        struct ledger_row done = *row; /* loaded anew since: its receipt is under the new name already */
        done.drop_pending = false;
        return ledger_put(s->tx, &done, s->err) == ERR_NONE;
    }
    if (row->next_try_ms > clock_wall_ms()) { /* failed a moment ago */
        if (s->c->next_due_ms > row->next_try_ms)
            s->c->next_due_ms = row->next_try_ms;
        return true;
    }
    if (flow == NULL || !successor_is_done(s, row)) {
        if (flow != NULL && s->c->next_due_ms > clock_wall_ms() + SUCCESSOR_WAIT_MS)
            s->c->next_due_ms = clock_wall_ms() + SUCCESSOR_WAIT_MS;
        return s->err->code == ERR_NONE;
    }
    struct {
        int64_t me;
        bool taken;
    } t = {.me = row->id};
    struct ledger_query q = {.dest = row->dest,
                             .table_key = row->table_key,
                             .states = STATE_BIT(STATE_QUEUED) | STATE_BIT(STATE_LOADING) | STATE_BIT(STATE_RETRYING) |
                                       STATE_BIT(STATE_LOADED) | STATE_BIT(STATE_SKIPPED)};
    if (ledger_each(s->tx, &q, table_is_taken, &t, s->err) != ERR_NONE)
        return false;
    if (t.taken) { /* another file is in that table now, or is about to be: nothing to drop */
        struct ledger_row done = *row;
        done.drop_pending = false;
        done.was_loaded = false;
        return ledger_put(s->tx, &done, s->err) == ERR_NONE;
    }
    return copy_drop(s, row, flow, false);
}

static enum err_code collect_drops(struct ledger_tx *tx, struct claim *c, struct err *err)
{
    struct drop_search s = {.tx = tx, .c = c, .err = err};
    struct ledger_query q = {.dest = c->outlet->config->name, .drop_pending = true};
    enum err_code code = ledger_each(tx, &q, see_drop, &s, err);
    return code != ERR_NONE ? code : err->code;
}

enum err_code claim_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct claim *c = arg;
    const struct outlet *o = c->outlet;
    const char *dest = o->config->name;
    c->count = 0;
    if (c->clamp_ms != 0 && ledger_clamp_due(tx, dest, c->clamp_ms, err) != ERR_NONE)
        return err->code;
    if (ledger_claim(tx, dest, clock_wall_ms(), c->limit, c->max_bytes,
                     o->config->ops->runs_in_order ? NULL : c->busy_tables, c->held, &c->arena, &c->rows, &c->row_count,
                     err) != ERR_NONE)
        return err->code;
    for (size_t i = 0; i < c->row_count; i++)
        if (prepare(tx, c, c->rows[i], i, err) != ERR_NONE)
            return err->code;
    if (ledger_next_due(tx, dest, c->held, &c->next_due_ms, err) != ERR_NONE)
        return err->code;
    return collect_drops(tx, c, err);
}

static void take_expected(struct job *job, const struct claimed *item)
{
    struct err err = {0};
    if (item->header == NULL)
        return;
    job->header = arena_strdup(&job->arena, item->header);
    if (job->header != NULL &&
        header_parse(job->header, &job->arena, &job->expect, &job->expect_count, &err) != ERR_NONE)
        job->expect = NULL;
}

/* Rows that ended in the claim itself have no job that would say so and count them. */
static void tell_ended(const struct claim *c)
{
    for (size_t i = 0; i < c->row_count; i++) {
        const struct ledger_row *row = c->rows[i];
        struct log_about about = {.flow = row->flow, .file = row->path, .dest = row->dest};
        if (row->state != STATE_QUARANTINED && row->state != STATE_SKIPPED)
            continue;
        c->outlet->world->engine->totals[row->state]++;
        if (c->outlet->world->engine->quiet)
            continue;
        if (row->state == STATE_QUARANTINED)
            log_write(LOG_ERROR, &about, "quarantined: %s", row->reason);
        else
            log_write(LOG_INFO, &about, "skipped: %s", row->reason);
    }
}

size_t claim_start_jobs(struct claim *c)
{
    struct outlet *o = c->outlet;
    size_t started = 0;
    tell_ended(c);
    for (size_t i = 0; i < c->count; i++) {
        const struct claimed *item = &c->items[i];
        struct job *job = job_new(o, item->row, item->flow);
        if (job == NULL) { /* the row stays in `loading` until the next start finds it; say so */
            log_error("%s: out of memory; taken up again at the next start", item->row->path);
            continue;
        }
        job->is_drop = item->is_drop;
        job->is_carry = item->is_carry;
        job->is_ours = item->is_ours;
        job->want_hash = item->want_hash;
        job->load.checkpoint = arena_strdup(&job->arena, item->checkpoint != NULL ? item->checkpoint : "");
        take_expected(job, item);
        started++;
        job_start(job);
    }
    if (c->row_count > c->count)
        finish_pending_start(o->world); /* rows that were quarantined without a job want their reason file */
    return started;
}
