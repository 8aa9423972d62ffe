/*
 * record.c -- what a job leaves in the ledger: receipt, end state, versions, header, and who acts on the file next.
 *
 * Runs in a ledger transaction on the pool. The job waits for it, so its members may be read and written; of the world
 * only what is read-only (the configuration) may be.
 */
#include "job_internal.h"

#include <json-c/json.h>
#include <stdio.h>

enum err_code header_json(const struct shape *shape, struct arena *arena, const char **ret, struct err *err)
{
    struct buf b;
    buf_init(&b);
    buf_addc(&b, '[');
    for (size_t i = 0; i < shape->column_count; i++) {
        if (i > 0)
            buf_addc(&b, ',');
        buf_add_json(&b, shape->columns[i].name);
    }
    buf_addc(&b, ']');
    *ret = b.failed ? NULL : arena_strdup(arena, b.data);
    buf_done(&b);
    return *ret != NULL ? ERR_NONE : err_nomem(err);
}

enum err_code header_parse(const char *json, struct arena *arena, const char ***ret, size_t *ret_count, struct err *err)
{
    *ret = NULL;
    *ret_count = 0;
    struct json_object *array = json_tokener_parse(json);
    if (array == NULL || !json_object_is_type(array, json_type_array)) {
        json_object_put(array);
        return ERR_NONE; /* a damaged hint is no hint */
    }
    size_t n = json_object_array_length(array);
    const char **names = arena_alloc(arena, (n + 1) * sizeof *names);
    bool failed = names == NULL;
    for (size_t i = 0; !failed && i < n; i++) {
        names[i] = arena_strdup(arena, json_object_get_string(json_object_array_get_idx(array, i)));
        failed = names[i] == NULL;
    }
    json_object_put(array);
    if (failed)
        return err_nomem(err);
    *ret = names;
    *ret_count = n;
    return ERR_NONE;
}

struct release {
    struct ledger_tx *tx;
    struct err *err;
};

static bool release_row(void *arg, const struct ledger_row *row)
{
    struct release *r = arg;
    if (strncmp(row->reason, OWNED_PREFIX, strlen(OWNED_PREFIX)) != 0 &&
        strncmp(row->reason, OWNED_BLOB_PREFIX, strlen(OWNED_BLOB_PREFIX)) != 0)
        return true;
    struct ledger_row next = *row;
    char key[33], reason[256];
    engine_new_key(key);
    snprintf(reason, sizeof reason, AGAIN_PREFIX "%.200s", row->reason);
    row_queue_again(&next, key, reason);
    return ledger_put(r->tx, &next, r->err) == ERR_NONE;
}

enum err_code release_owner(struct ledger_tx *tx, const struct ledger_row *owner, struct err *err)
{
    if (owner->table_key[0] == '\0')
        return ERR_NONE;
    struct ledger_query q = {
        .dest = owner->dest, .table_key = owner->table_key, .states = STATE_BIT(STATE_QUARANTINED)};
    struct release r = {.tx = tx, .err = err};
    enum err_code code = ledger_each(tx, &q, release_row, &r, err);
    return code != ERR_NONE ? code : err->code;
}

static int64_t tries_of(const struct job *job)
{
    if (job->end == STATE_LOADED)
        return job->row.tries + 1;
    /* a try is counted where another one may follow; what is hopeless at once was tried all the same */
    return job->row.tries == 0 && job->end == STATE_QUARANTINED ? 1 : job->row.tries;
}

static enum err_code put_receipt(struct ledger_tx *tx, const struct job *job, const struct ledger_row *row,
                                 struct err *err)
{
    const struct ledger_receipt r = {
        .at_ms = clock_wall_ms(),
        .source = row->source,
        .path = row->path,
        .flow = row->flow,
        .dest = row->dest,
        .table = row->table,
        .state = job->end,
        .reason = job->reason,
        .receipt = job->receipt,
        .tries = tries_of(job),
        .duration_ms = clock_wall_ms() - job->started_ms,
    };
    return ledger_receipt_put(tx, &r, err);
}

/* What was loaded becomes part of the row's identity: its hash, its versions, the header of its table. */
static enum err_code keep_loaded(struct ledger_tx *tx, struct job *job, struct ledger_row *row, struct err *err)
{
    bool known_records = !job->receipt.is_duplicate || job->receipt.is_resumed;
    row->has_hash = true;
    row->was_loaded = true;
    memcpy(row->hash, job->receipt.hash, sizeof row->hash);
    row->loaded_file = job->row.file;
    if (job->receipt.bytes > 0)
        row->loaded_file.size = job->receipt.bytes;
    if (known_records)
        row->loaded_records = job->receipt.parsed;
    if (ledger_version_put(tx, row->id, row->hash, row->loaded_file.size, row->loaded_records, err) != ERR_NONE)
        return err->code;
    char made[MADE_KEY_MAX];
    if (job->receipt.created_table && job->outlet->config->ops->ledger_knows_tables &&
        ledger_meta_put(tx, made_key(row->dest, row->table_key, made), "1", err) != ERR_NONE)
        return err->code;
    if (job->shape != NULL && job->end == STATE_LOADED && job->flow->format == FORMAT_CSV) {
        const char *json;
        if (header_json(job->shape, &job->arena, &json, err) != ERR_NONE ||
            ledger_header_put(tx, row->dest, row->table_key, json, err) != ERR_NONE)
            return err->code;
    }
    if (row->id != 0 && row->table_key[0] != '\0' && job->flow->plan.mode == MODE_REPLACE &&
        flow_is_constant(job->flow)) {
        return newest_put(tx, row, job->row.file.mtime_ns, err);
    }
    return ERR_NONE;
}

const char *made_key(const char *dest, const char *table_key, char ret[MADE_KEY_MAX])
{
    snprintf(ret, MADE_KEY_MAX, "made:%s:%s", dest, table_key);
    return ret;
}

static bool is_loaded(const struct ledger_row *row)
{
    return row->state == STATE_LOADED ||
           (row->state == STATE_SKIPPED && strncmp(row->reason, DUPLICATE_PREFIX, strlen(DUPLICATE_PREFIX)) == 0);
}

/*
 * Every flow that takes the file must have ended before anything is done to it: one that still waits would find it
 * gone. Then one quarantine makes it a failure. Marks the rows, so that its absence is no delete.
 */
enum err_code decide_finish(struct ledger_tx *tx, struct job *job, struct ledger_row *row, struct err *err)
{
    const struct config_flow *failed = row->state == STATE_QUARANTINED ? job->flow : NULL;
    const struct config_flow *acts = is_loaded(row) && job->flow->after_success != AFTER_KEEP ? job->flow : NULL;
    bool all_loaded = is_loaded(row);
    struct intake *in = job->intake;
    struct ledger_row *others[64];
    size_t other_count = 0;
    for (size_t i = 0; i < in->flow_count; i++) {
        const struct config_flow *f = in->flows[i];
        if (f == job->flow || !config_flow_takes(f, row->path))
            continue;
        struct ledger_row *other;
        if (ledger_get(tx, row->source, row->path, f->name, &job->arena, &other, err) != ERR_NONE)
            return err->code;
        bool ended = other != NULL && (other->state == STATE_LOADED || other->state == STATE_SKIPPED ||
                                       other->state == STATE_QUARANTINED);
        if (!ended || other_count == sizeof others / sizeof others[0])
            return ERR_NONE;
        others[other_count++] = other;
        all_loaded = all_loaded && is_loaded(other);
        if (other->state == STATE_QUARANTINED && (failed == NULL || failed->after_failure == AFTER_KEEP))
            failed = f;
        if (acts == NULL && is_loaded(other) && f->after_success != AFTER_KEEP)
            acts = f;
    }
    job->action = FINISH_NONE;
    if (member_name(row->path) != NULL)
        return ERR_NONE; /* it has no file of its own */
    if (failed != NULL && failed->after_failure == AFTER_MOVE) {
        job->action = FINISH_MOVE;
        job->action_dir = failed->after_failure_dir;
    } else if (failed == NULL && all_loaded && acts != NULL) {
        job->action = acts->after_success == AFTER_DELETE ? FINISH_DELETE : FINISH_MOVE;
        job->action_dir = acts->after_success_dir;
    }
    if (job->action == FINISH_NONE)
        return ERR_NONE;
    row->taken_by_us = true;
    row->finish_pending = true;
    for (size_t i = 0; i < other_count; i++) {
        others[i]->taken_by_us = true;
        if (ledger_put(tx, others[i], err) != ERR_NONE)
            return err->code;
    }
    return ERR_NONE;
}

static enum err_code forget_checkpoint(struct ledger_tx *tx, const struct job *job, struct err *err)
{
    char key[CHECKPOINT_KEY_MAX];
    bool had_one = job->has_checkpoint || (job->load.checkpoint != NULL && job->load.checkpoint[0] != '\0');
    return had_one ? ledger_meta_put(tx, checkpoint_key(job->row.id, key), NULL, err) : ERR_NONE;
}

static enum err_code record_drop(struct ledger_tx *tx, struct job *job, struct ledger_row *row, struct err *err)
{
    if (job->is_carry && row->drop_pending && row->state != STATE_GONE && !job->requeue && job->end != STATE_RETRYING) {
        row->drop_pending = false;
        row->reason = "";
        return ledger_put(tx, row, err);
    }
    if (row->state != STATE_GONE || !row->drop_pending || strcmp(row->load_key, job->row.load_key) != 0)
        return ERR_NONE; /* the file came back meanwhile: its table is loaded anew, or another drop is owed by now */
    if (job->requeue)
        return ERR_NONE;
    if (job->end == STATE_RETRYING) {
        row->tries = job->row.tries;
        row->failed_ms = job->row.failed_ms;
        row->next_try_ms = job->next_try_ms;
        return ledger_put(tx, row, err);
    }
    if (forget_checkpoint(tx, job, err) != ERR_NONE)
        return err->code;
    row->drop_pending = false;
    row->reason = job->reason;
    row->since_ms = clock_wall_ms();
    bool held_nothing = !row->was_loaded && strcmp(job->load.receipt.dest_id, "kept") == 0;
    if (!held_nothing && put_receipt(tx, job, row, err) != ERR_NONE)
        return err->code;
    if (job->reason[0] == '\0') {
        row->was_loaded = false;
        row->has_hash = false;
        char newest[TABLE_NAME_MAX + 128], made[MADE_KEY_MAX];
        newest_key(row->dest, row->table_key, newest, sizeof newest);
        if (job->is_ours && job->flow->on_delete == ON_DELETE_DROP &&
            ledger_meta_put(tx, made_key(row->dest, row->table_key, made), NULL, err) != ERR_NONE)
            return err->code;
        if (ledger_header_put(tx, row->dest, row->table_key, NULL, err) != ERR_NONE ||
            ledger_meta_put(tx, newest, NULL, err) != ERR_NONE) /* it holds nothing: nothing in it is newer */
            return err->code;
    }
    if (ledger_put(tx, row, err) != ERR_NONE)
        return err->code;
    return release_owner(tx, row, err);
}

/* A version that came while this one was loading takes its place in the row: queue it, or let the delete happen. */
static void take_newer(struct job *job, struct ledger_row *row, char key[33], int64_t now)
{
    job->write_note = false;
    row->tries = 0;
    row->failed_ms = 0;
    row->next_try_ms = 0;
    if (row->state ==
        STATE_GONE) { /* its reason and time stay: they may name the file that must be loaded before the drop */
        /* A drop that is owed stays owed however this job ended: an earlier try may have been committed unrecorded. */
        row->drop_pending = (row->drop_pending || row->was_loaded) && job->flow->on_delete != ON_DELETE_IGNORE;
        engine_new_key(key);
        row->load_key = key;
        return;
    }
    row->since_ms = now;
    row->reason = "";
    row->state = STATE_QUEUED;
    if (job->end == STATE_LOADED || job->end == STATE_SKIPPED || job->end == STATE_QUARANTINED) {
        engine_new_key(key);
        row->load_key = key;
    }
}

static void take_end(struct job *job, struct ledger_row *row, int64_t now)
{
    row->state = job->end;
    row->reason = job->reason;
    row->tries = job->row.tries;
    row->failed_ms = job->row.failed_ms;
    row->next_try_ms = job->next_try_ms;
    row->since_ms = now;
    row->definition = job->flow->definition;
    if (job->requeue)
        row->reason = job->row.reason;
    if (job->end == STATE_QUARANTINED) {
        job->write_note = true;
        row->finish_pending = true;
        if (job->has_hash) {
            row->has_hash = row->was_loaded ? row->has_hash : true;
            if (!row->was_loaded)
                memcpy(row->hash, job->hash, sizeof row->hash);
        }
    }
    job->clear_note = is_loaded(row) && strncmp(job->row.reason, AGAIN_PREFIX, strlen(AGAIN_PREFIX)) == 0;
}

/* After a kill: what was still to be done to a file whose end is recorded. */
static enum err_code record_finish_only(struct ledger_tx *tx, struct job *job, struct ledger_row *row, struct err *err)
{
    if (!row->finish_pending)
        return ERR_NONE;
    job->write_note = row->state == STATE_QUARANTINED;
    job->clear_note = row->state == STATE_GONE || row->state == STATE_LOADED || row->state == STATE_SKIPPED;
    job->row.reason = row->reason;
    job->row.file = row->file;
    if (row->has_hash && row->state != STATE_GONE) {
        memcpy(job->hash, row->hash, sizeof job->hash);
        job->has_hash = true;
    }
    bool is_end = row->state == STATE_LOADED || row->state == STATE_SKIPPED || row->state == STATE_QUARANTINED;
    if (is_end && decide_finish(tx, job, row, err) != ERR_NONE)
        return err->code;
    return ledger_put(tx, row, err);
}

static bool see_path(void *arg, const struct ledger_row *row)
{
    struct job *job = arg;
    if (row->id == job->row.id) {
        const char *path = arena_strdup(&job->arena, row->path);
        if (path != NULL)
            job->row.path = path;
    }
    return false;
}

/* The row of JOB, which may have been carried to another path since it was claimed; NULL: it is no more. */
static enum err_code find_row(struct ledger_tx *tx, struct job *job, struct ledger_row **ret, struct err *err)
{
    if (ledger_get(tx, job->row.source, job->row.path, job->row.flow, &job->arena, ret, err) != ERR_NONE)
        return err->code;
    if (*ret != NULL && (*ret)->id == job->row.id)
        return ERR_NONE;
    const struct ledger_query q = {
        .source = job->row.source, .flow = job->row.flow, .after_id = job->row.id - 1, .limit = 1};
    if (ledger_each(tx, &q, see_path, job, err) != ERR_NONE ||
        ledger_get(tx, job->row.source, job->row.path, job->row.flow, &job->arena, ret, err) != ERR_NONE)
        return err->code;
    if (*ret != NULL && (*ret)->id != job->row.id)
        *ret = NULL;
    return ERR_NONE;
}

enum err_code record_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct job *job = arg;
    struct ledger_row *row;
    if (find_row(tx, job, &row, err) != ERR_NONE)
        return err->code;
    if (row == NULL)
        return ERR_NONE; /* forgotten by reset, or replaced by a rename */
    if (job->is_finish_only)
        return record_finish_only(tx, job, row, err);
    if (job->is_drop)
        return record_drop(tx, job, row, err);
    int64_t now = clock_wall_ms();
    char key[33];
    bool is_end = job->end == STATE_LOADED || job->end == STATE_SKIPPED || job->end == STATE_QUARANTINED;
    if (job->keeps_loaded && keep_loaded(tx, job, row, err) != ERR_NONE)
        return err->code;
    if (is_end && put_receipt(tx, job, row, err) != ERR_NONE)
        return err->code;
    bool went_nowhere = job->is_unpacked && job->flow->archives == ARCHIVES_EXTRACT; /* its members go */
    job->asked_then = job->keeps_loaded && job->end == STATE_LOADED && !went_nowhere;
    if (job->asked_then && pipes_want(tx, job->flow, err) != ERR_NONE)
        return err->code;
    /* In quarantine it stays: something may have been ordered, and chute retry must know. A driver that has nothing to
     * know any more has said so. */
    if (is_end && job->end != STATE_QUARANTINED && forget_checkpoint(tx, job, err) != ERR_NONE)
        return err->code;
    bool is_newer = row->state == STATE_GONE || !file_id_same(&row->file, &job->row.file);
    if (is_newer || job->load_again)
        take_newer(job, row, key, now);
    else
        take_end(job, row, now);
    if (!is_newer && is_end && !job->load_again && decide_finish(tx, job, row, err) != ERR_NONE)
        return err->code;
    row->finish_pending = row->finish_pending || job->clear_note;
    if (ledger_put(tx, row, err) != ERR_NONE)
        return err->code;
    bool came_to_nothing = is_end && !job->keeps_loaded && !is_newer && !job->load_again;
    if (came_to_nothing && overtaken_revive(tx, job->flow, row, err) != ERR_NONE)
        return err->code;
    bool lets_go = row->state == STATE_GONE ? !row->drop_pending : job->end == STATE_QUARANTINED && !row->was_loaded;
    return lets_go ? release_owner(tx, row, err) : ERR_NONE;
}

/* FINISHING is over: nothing is pending; where the file stayed after all, its absence later is a delete again. */
enum err_code close_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct job *job = arg;
    struct intake *in = job->intake;
    if (job->finish_failed)
        return ERR_NONE; /* finish_pending stays: done again at the next start */
    if (!job->finish_changed)
        return ledger_put_finished(tx, job->row.id, err);
    for (size_t i = 0; i < in->flow_count; i++) {
        struct ledger_row *row;
        if (ledger_get(tx, job->row.source, job->row.path, in->flows[i]->name, &job->arena, &row, err) != ERR_NONE)
            return err->code;
        if (row == NULL)
            continue;
        if (in->flows[i] == job->flow)
            row->finish_pending = false;
        row->taken_by_us = false;
        if (ledger_put(tx, row, err) != ERR_NONE)
            return err->code;
    }
    return ERR_NONE;
}
