/*
 * ledger_rows.c -- the rows themselves: get, put, delete, rename; and the small facts, loaded versions and headers that
 * go with them.
 */
#include "ledger_internal.h"

#include "buf.h"

#include <stdlib.h>
#include <string.h>

/* The numbers are in files of users. */
_Static_assert(STATE_SEEN == 0 && STATE_SETTLING == 1 && STATE_QUEUED == 2 && STATE_LOADING == 3 &&
                   STATE_RETRYING == 4 && STATE_LOADED == 5 && STATE_SKIPPED == 6 && STATE_QUARANTINED == 7 &&
                   STATE_GONE == 8 && FILE_STATES == 9,
               "stored states and the partial indexes of the schema must keep their numbers");

const char *const file_state_names[FILE_STATES] = {
    [STATE_SEEN] = "seen",       [STATE_SETTLING] = "settling",       [STATE_QUEUED] = "queued",
    [STATE_LOADING] = "loading", [STATE_RETRYING] = "retrying",       [STATE_LOADED] = "loaded",
    [STATE_SKIPPED] = "skipped", [STATE_QUARANTINED] = "quarantined", [STATE_GONE] = "gone",
};

enum err_code ledger_name_find(struct ledger_tx *tx, const char *text, int64_t *ret_id, struct err *err)
{
    for (size_t i = 0; i < tx->name_count; i++)
        if (strcmp(tx->names[i].text, text) == 0) {
            *ret_id = tx->names[i].id;
            return ERR_NONE;
        }
    struct query q;
    bool has_row;
    *ret_id = 0;
    if (query_begin(&q, tx, "SELECT id FROM name WHERE text = ?1", err) != ERR_NONE)
        return err->code;
    query_text(&q, text);
    if (query_step(&q, &has_row, err) != ERR_NONE)
        return err->code;
    if (!has_row)
        return ERR_NONE;
    *ret_id = column_int(q.stmt, 0);
    query_end(&q);
    char *copy;
    /* Only a cache: without memory for it the next look goes to the file again. */
    if (tx->name_count < LEDGER_NAMES && (copy = strdup(text)) != NULL)
        tx->names[tx->name_count++] = (struct ledger_name){copy, *ret_id};
    return ERR_NONE;
}

enum err_code ledger_name_put(struct ledger_tx *tx, const char *text, int64_t *ret_id, struct err *err)
{
    if (text == NULL)
        text = "";
    if (ledger_name_find(tx, text, ret_id, err) != ERR_NONE || *ret_id != 0)
        return err->code;
    struct query q;
    if (query_begin(&q, tx, "INSERT INTO name(text) VALUES (?1)", err) != ERR_NONE)
        return err->code;
    query_text(&q, text);
    if (query_run(&q, err) != ERR_NONE)
        return err->code;
    *ret_id = sqlite3_last_insert_rowid(tx->db);
    return ERR_NONE;
}

enum err_code ledger_meta_get(struct ledger_tx *tx, const char *key, struct arena *arena, const char **ret,
                              struct err *err)
{
    struct query q;
    bool has_row;
    err_clear(err);
    *ret = NULL;
    if (query_begin(&q, tx, "SELECT value FROM meta WHERE key = ?1", err) != ERR_NONE)
        return err->code;
    query_text(&q, key);
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    *ret = arena_strdup(arena, column_text(q.stmt, 0));
    if (column_failed(q.stmt))
        *ret = NULL;
    query_end(&q);
    return *ret != NULL ? ERR_NONE : err_nomem(err);
}

enum err_code ledger_meta_put(struct ledger_tx *tx, const char *key, const char *value, struct err *err)
{
    struct query q;
    err_clear(err);
    const char *sql = value != NULL ? "INSERT INTO meta(key, value) VALUES (?1, ?2) "
                                      "ON CONFLICT(key) DO UPDATE SET value = excluded.value"
                                    : "DELETE FROM meta WHERE key = ?1";
    if (query_begin(&q, tx, sql, err) != ERR_NONE)
        return err->code;
    query_text(&q, key);
    if (value != NULL)
        query_text(&q, value);
    return query_run(&q, err);
}

/* ---- reading ---- */

static const char *text_of(sqlite3_stmt *stmt, int column, struct arena *arena, bool *failed)
{
    const char *text = column_text(stmt, column);
    const char *copy = text[0] == '\0' ? "" : arena_strdup(arena, text);
    if (copy == NULL)
        *failed = true;
    return copy;
}

static void read_file_id(sqlite3_stmt *stmt, int column, struct file_id *ret)
{
    ret->size = (uint64_t)column_int(stmt, column);
    ret->mtime_ns = column_int(stmt, column + 1);
    ret->ctime_ns = column_int(stmt, column + 2);
    ret->inode = (uint64_t)column_int(stmt, column + 3);
    ret->dev = (uint64_t)column_int(stmt, column + 4);
}

enum err_code ledger_row_read(sqlite3_stmt *stmt, struct arena *arena, struct ledger_row **ret, struct err *err)
{
    *ret = NULL;
    int64_t state = column_int(stmt, 7);
    if (sqlite3_column_type(stmt, 7) != SQLITE_INTEGER || state < 0 || state >= FILE_STATES ||
        sqlite3_column_type(stmt, 1) != SQLITE_TEXT || sqlite3_column_type(stmt, 3) != SQLITE_TEXT ||
        sqlite3_column_type(stmt, 4) != SQLITE_TEXT || column_text(stmt, 2)[0] == '\0')
        return column_failed(stmt) ? err_nomem(err) : ERR_NONE;
    struct ledger_row *row = arena_alloc(arena, sizeof(*row));
    if (row == NULL)
        return err_nomem(err);
    bool failed = false;
    row->id = column_int(stmt, 0);
    row->source = text_of(stmt, 1, arena, &failed);
    row->path = text_of(stmt, 2, arena, &failed);
    row->flow = text_of(stmt, 3, arena, &failed);
    row->dest = text_of(stmt, 4, arena, &failed);
    row->table = text_of(stmt, 5, arena, &failed);
    row->table_key = text_of(stmt, 6, arena, &failed);
    row->state = (enum file_state)state;
    read_file_id(stmt, 8, &row->file);
    int64_t flags = column_int(stmt, 20);
    if (flags & FLAG_LOADED_IS_FILE)
        row->loaded_file = row->file;
    else
        read_file_id(stmt, 13, &row->loaded_file);
    row->has_hash = sqlite3_column_type(stmt, 18) == SQLITE_BLOB && sqlite3_column_bytes(stmt, 18) == sizeof(row->hash);
    if (row->has_hash)
        memcpy(row->hash, sqlite3_column_blob(stmt, 18), sizeof(row->hash));
    row->loaded_records = (uint64_t)column_int(stmt, 19);
    row->was_loaded = (flags & FLAG_WAS_LOADED) != 0;
    row->finish_pending = (flags & FLAG_FINISH_PENDING) != 0;
    row->taken_by_us = (flags & FLAG_TAKEN_BY_US) != 0;
    row->drop_pending = (flags & FLAG_DROP_PENDING) != 0;
    row->reason = text_of(stmt, 21, arena, &failed);
    row->load_key = text_of(stmt, 22, arena, &failed);
    row->tries = column_int(stmt, 23);
    row->failed_ms = column_int(stmt, 24);
    row->next_try_ms = column_int(stmt, 25);
    row->since_ms = column_int(stmt, 26);
    row->seen_ms = column_int(stmt, 27);
    row->definition = (uint64_t)column_int(stmt, 28);
    if (failed || column_failed(stmt))
        return err_nomem(err);
    *ret = row;
    return ERR_NONE;
}

/* The ids of the two names; *RET_KNOWN false: the ledger has never heard one of them, so there is no row. */
static enum err_code find_two(struct ledger_tx *tx, const char *source, const char *flow, int64_t *ret_source,
                              int64_t *ret_flow, bool *ret_known, struct err *err)
{
    if (ledger_name_find(tx, source, ret_source, err) != ERR_NONE ||
        ledger_name_find(tx, flow, ret_flow, err) != ERR_NONE)
        return err->code;
    *ret_known = *ret_source != 0 && *ret_flow != 0;
    return ERR_NONE;
}

enum err_code ledger_get(struct ledger_tx *tx, const char *source, const char *path, const char *flow,
                         struct arena *arena, struct ledger_row **ret, struct err *err)
{
    struct query q;
    bool is_known = false;
    bool has_row;
    int64_t source_id;
    int64_t flow_id;
    err_clear(err);
    *ret = NULL;
    if (find_two(tx, source, flow, &source_id, &flow_id, &is_known, err) != ERR_NONE || !is_known)
        return err->code;
    /* The names of source and flow are at hand: no need to look them up. */
    if (query_begin(&q, tx,
                    "SELECT f.id, ?4, f.path, ?5, d.text, " LEDGER_ROW_VALUES
                    "FROM file f INDEXED BY file_name LEFT JOIN name d ON d.id = f.dest "
                    "WHERE f.source = ?1 AND f.path = ?2 AND f.flow = ?3",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, source_id);
    query_text(&q, path);
    query_int(&q, flow_id);
    query_text(&q, source);
    query_text(&q, flow);
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    ledger_row_read(q.stmt, arena, ret, err);
    query_end(&q);
    return err->code;
}

/* ---- writing ---- */

static enum err_code tally_one(struct ledger_tx *tx, const struct ledger_delta *d, struct err *err)
{
    struct query q;
    if (query_begin(&q, tx,
                    "INSERT INTO tally(flow, state, n) VALUES (?1, ?2, ?3) "
                    "ON CONFLICT(flow, state) DO UPDATE SET n = n + excluded.n",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, d->flow);
    query_int(&q, d->state);
    query_int(&q, d->n);
    return query_run(&q, err);
}

enum err_code ledger_tally_flush(struct ledger_tx *tx, struct err *err)
{
    for (size_t i = 0; i < tx->delta_count; i++)
        if (tx->deltas[i].n != 0 && tally_one(tx, &tx->deltas[i], err) != ERR_NONE)
            return err->code;
    tx->delta_count = 0;
    return ERR_NONE;
}

enum err_code ledger_tally(struct ledger_tx *tx, int64_t flow, int state, int64_t n, struct err *err)
{
    size_t i = 0;
    while (i < tx->delta_count && (tx->deltas[i].flow != flow || tx->deltas[i].state != state))
        i++;
    if (i == LEDGER_DELTAS) {
        if (ledger_tally_flush(tx, err) != ERR_NONE)
            return err->code;
        i = 0;
    }
    if (i == tx->delta_count)
        tx->deltas[tx->delta_count++] = (struct ledger_delta){.flow = flow, .state = state};
    tx->deltas[i].n += n;
    return ERR_NONE;
}

/* What a put must know about the stored row: for the tally, and which indexes it can leave alone. */
struct stored {
    bool exists;
    int64_t flow;
    int state;
    bool same_keys; /* all columns of file_name, file_table and file_inode are as before */
};

static enum err_code look_at_stored(struct ledger_tx *tx, int64_t id, const struct ledger_row *row, int64_t source,
                                    int64_t flow, int64_t dest, struct stored *ret, struct err *err)
{
    struct query q;
    bool has_row;
    *ret = (struct stored){0};
    if (query_begin(&q, tx, "SELECT flow, state, source, dest, path, table_key, inode, dev FROM file WHERE id = ?1",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, id);
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    ret->exists = true;
    ret->flow = column_int(q.stmt, 0);
    ret->state = (int)column_int(q.stmt, 1);
    ret->same_keys = row != NULL && ret->flow == flow && column_int(q.stmt, 2) == source &&
                     column_int(q.stmt, 3) == dest && strcmp(column_text(q.stmt, 4), row->path) == 0 &&
                     strcmp(column_text(q.stmt, 5), row->table_key != NULL ? row->table_key : "") == 0 &&
                     column_int(q.stmt, 6) == (int64_t)row->file.inode &&
                     column_int(q.stmt, 7) == (int64_t)row->file.dev;
    query_end(&q);
    return ERR_NONE;
}

enum err_code ledger_delete(struct ledger_tx *tx, int64_t id, struct err *err)
{
    struct stored stored;
    struct query q;
    err_clear(err);
    if (look_at_stored(tx, id, NULL, 0, 0, 0, &stored, err) != ERR_NONE || !stored.exists)
        return err->code;
    if (query_begin(&q, tx, "DELETE FROM file WHERE id = ?1", err) != ERR_NONE)
        return err->code;
    query_int(&q, id);
    if (query_run(&q, err) != ERR_NONE)
        return err->code;
    if (query_begin(&q, tx, "DELETE FROM version WHERE file = ?1", err) != ERR_NONE)
        return err->code;
    query_int(&q, id);
    if (query_run(&q, err) != ERR_NONE)
        return err->code;
    return ledger_tally(tx, stored.flow, stored.state, -1, err);
}

/* Make (source, path, flow) free for row KEEP. */
static enum err_code delete_namesake(struct ledger_tx *tx, int64_t source, const char *path, int64_t flow, int64_t keep,
                                     struct err *err)
{
    struct query q;
    bool has_row;
    if (query_begin(&q, tx, "SELECT id FROM file INDEXED BY file_name WHERE source = ?1 AND path = ?2 AND flow = ?3",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, source);
    query_text(&q, path);
    query_int(&q, flow);
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    int64_t id = column_int(q.stmt, 0);
    query_end(&q);
    return id == keep ? ERR_NONE : ledger_delete(tx, id, err);
}

static void bind_file_id(struct query *q, const struct file_id *id)
{
    query_int(q, (int64_t)id->size);
    query_int(q, id->mtime_ns);
    query_int(q, id->ctime_ns);
}

static const char *or_empty(const char *s)
{
    return s != NULL ? s : "";
}

/* Parameters 1..22: all columns that are in no index of their own, in the order of VALUE_COLUMNS. */
static void bind_values(struct query *q, const struct ledger_row *row)
{
    bool is_same = file_id_same(&row->loaded_file, &row->file);
    query_int(q, row->state);
    bind_file_id(q, &row->file);
    bind_file_id(q, is_same ? &(struct file_id){0} : &row->loaded_file);
    query_int(q, is_same ? 0 : (int64_t)row->loaded_file.inode);
    query_int(q, is_same ? 0 : (int64_t)row->loaded_file.dev);
    if (row->has_hash)
        query_blob(q, row->hash, sizeof(row->hash));
    else
        query_null(q);
    query_int(q, (int64_t)row->loaded_records);
    query_int(q, (row->was_loaded ? FLAG_WAS_LOADED : 0) | (row->finish_pending ? FLAG_FINISH_PENDING : 0) |
                     (row->taken_by_us ? FLAG_TAKEN_BY_US : 0) | (row->drop_pending ? FLAG_DROP_PENDING : 0) |
                     (is_same ? FLAG_LOADED_IS_FILE : 0));
    query_text(q, or_empty(row->reason));
    query_text(q, or_empty(row->load_key));
    query_int(q, row->tries);
    query_int(q, row->failed_ms);
    query_int(q, row->next_try_ms);
    query_int(q, row->since_ms);
    query_int(q, row->seen_ms);
    query_int(q, (int64_t)row->definition);
    query_text(q, or_empty(row->table));
}
#define VALUE_SET                                                                                                      \
    "state = ?1, size = ?2, mtime_ns = ?3, ctime_ns = ?4, l_size = ?5, l_mtime_ns = ?6, l_ctime_ns = ?7, "             \
    "l_inode = ?8, l_dev = ?9, hash = ?10, records = ?11, flags = ?12, reason = ?13, load_key = ?14, tries = ?15, "    \
    "failed_ms = ?16, next_try_ms = ?17, since_ms = ?18, seen_ms = ?19, definition = ?20, tbl = ?21"
#define KEY_SET ", table_key = ?23, source = ?24, path = ?25, flow = ?26, dest = ?27, inode = ?28, dev = ?29"
#define COLUMNS                                                                                                        \
    "state, size, mtime_ns, ctime_ns, l_size, l_mtime_ns, l_ctime_ns, l_inode, l_dev, hash, records, flags, reason, "  \
    "load_key, tries, failed_ms, next_try_ms, since_ms, seen_ms, definition, tbl, id, table_key, source, path, flow, " \
    "dest, inode, dev"

static void bind_keys(struct query *q, const struct ledger_row *row, int64_t source, int64_t flow, int64_t dest)
{
    query_text(q, or_empty(row->table_key));
    query_int(q, source);
    query_text(q, row->path);
    query_int(q, flow);
    query_int(q, dest);
    query_int(q, (int64_t)row->file.inode);
    query_int(q, (int64_t)row->file.dev);
}

static enum err_code insert(struct ledger_tx *tx, struct ledger_row *row, int64_t source, int64_t flow, int64_t dest,
                            bool *ret_taken, struct err *err)
{
    struct query q;
    *ret_taken = false;
    if (query_begin(&q, tx,
                    "INSERT INTO file(" COLUMNS ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, "
                    "?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29) "
                    "ON CONFLICT(source, path, flow) DO NOTHING",
                    err) != ERR_NONE)
        return err->code;
    bind_values(&q, row);
    if (row->id != 0)
        query_int(&q, row->id);
    else
        query_null(&q);
    bind_keys(&q, row, source, flow, dest);
    if (query_run(&q, err) != ERR_NONE)
        return err->code;
    if (sqlite3_changes(tx->db) == 0) {
        *ret_taken = true;
        return ERR_NONE;
    }
    row->id = sqlite3_last_insert_rowid(tx->db);
    return ledger_tally(tx, flow, row->state, 1, err);
}

static enum err_code update(struct ledger_tx *tx, const struct ledger_row *row, int64_t source, int64_t flow,
                            int64_t dest, const struct stored *stored, struct err *err)
{
    struct query q;
    /* Naming a column in SET makes SQLite write its index entries again, changed or not: leave the keys out if we can.
     */
    const char *sql = stored->same_keys ? "UPDATE file SET " VALUE_SET " WHERE id = ?22"
                                        : "UPDATE file SET " VALUE_SET KEY_SET " WHERE id = ?22";
    if (!stored->same_keys && delete_namesake(tx, source, row->path, flow, row->id, err) != ERR_NONE)
        return err->code;
    if (query_begin(&q, tx, sql, err) != ERR_NONE)
        return err->code;
    bind_values(&q, row);
    query_int(&q, row->id);
    if (!stored->same_keys)
        bind_keys(&q, row, source, flow, dest);
    if (query_run(&q, err) != ERR_NONE)
        return err->code;
    if (stored->flow == flow && stored->state == (int)row->state)
        return ERR_NONE;
    if (ledger_tally(tx, stored->flow, stored->state, -1, err) != ERR_NONE)
        return err->code;
    return ledger_tally(tx, flow, row->state, 1, err);
}

enum err_code ledger_put(struct ledger_tx *tx, struct ledger_row *row, struct err *err)
{
    int64_t source;
    int64_t flow;
    int64_t dest;
    bool is_taken;
    err_clear(err);
    if (ledger_name_put(tx, row->source, &source, err) != ERR_NONE ||
        ledger_name_put(tx, row->flow, &flow, err) != ERR_NONE ||
        ledger_name_put(tx, row->dest, &dest, err) != ERR_NONE)
        return err->code;
    if (row->id != 0) {
        struct stored stored;
        if (look_at_stored(tx, row->id, row, source, flow, dest, &stored, err) != ERR_NONE)
            return err->code;
        if (stored.exists)
            return update(tx, row, source, flow, dest, &stored, err);
    }
    if (insert(tx, row, source, flow, dest, &is_taken, err) != ERR_NONE || !is_taken)
        return err->code;
    if (delete_namesake(tx, source, row->path, flow, 0, err) != ERR_NONE)
        return err->code;
    return insert(tx, row, source, flow, dest, &is_taken, err);
}

enum err_code ledger_put_finished(struct ledger_tx *tx, int64_t id, struct err *err)
{
    struct query q;
    err_clear(err);
    _Static_assert(FLAG_FINISH_PENDING == 2, "the statement has it as a number");
    if (query_begin(&q, tx, "UPDATE file SET flags = flags & ~2 WHERE id = ?1 AND (flags & 2) <> 0", err) != ERR_NONE)
        return err->code;
    query_int(&q, id);
    return query_run(&q, err);
}

enum err_code ledger_knows_inode(struct ledger_tx *tx, uint64_t inode, uint64_t dev, bool *ret, struct err *err)
{
    struct query q;
    err_clear(err);
    *ret = false;
    if (query_begin(&q, tx,
                    "SELECT 1 FROM file INDEXED BY file_inode WHERE inode = ?1 AND dev = ?2 AND inode <> 0 LIMIT 1",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, (int64_t)inode);
    query_int(&q, (int64_t)dev);
    if (query_step(&q, ret, err) == ERR_NONE)
        query_end(&q);
    return err->code;
}

/* ---- rename ---- */

static enum err_code rename_row(struct ledger_tx *tx, int64_t source, int64_t id, int64_t flow, const char *to,
                                struct err *err)
{
    struct query q;
    if (delete_namesake(tx, source, to, flow, id, err) != ERR_NONE)
        return err->code;
    if (query_begin(&q, tx, "UPDATE file SET path = ?1 WHERE id = ?2", err) != ERR_NONE)
        return err->code;
    query_text(&q, to);
    query_int(&q, id);
    return query_run(&q, err);
}

#define RENAME_PAGE 64
struct renamed {
    int64_t id;
    int64_t flow;
    const char *path;
};

/* The next rows at FIRST <= path < LAST (path = FIRST when LAST is NULL). */
static enum err_code rename_page(struct ledger_tx *tx, int64_t source, const char *first, const char *last,
                                 struct arena *arena, struct renamed *ret, size_t *ret_count, struct err *err)
{
    struct query q;
    bool has_row;
    *ret_count = 0;
    const char *sql = last != NULL ? "SELECT id, flow, path FROM file INDEXED BY file_name "
                                     "WHERE source = ?1 AND path >= ?2 AND path < ?3 ORDER BY path LIMIT ?4"
                                   : "SELECT id, flow, path FROM file INDEXED BY file_name "
                                     "WHERE source = ?1 AND path = ?2 AND path = coalesce(?3, path) LIMIT ?4";
    if (query_begin(&q, tx, sql, err) != ERR_NONE)
        return err->code;
    query_int(&q, source);
    query_text(&q, first);
    query_text(&q, last);
    query_int(&q, RENAME_PAGE);
    for (;;) {
        if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
            return err->code;
        const char *path = arena_strdup(arena, column_text(q.stmt, 2));
        if (column_failed(q.stmt))
            path = NULL;
        if (path == NULL || *ret_count == RENAME_PAGE) {
            query_end(&q);
            return path == NULL ? err_nomem(err) : ERR_NONE;
        }
        ret[(*ret_count)++] = (struct renamed){column_int(q.stmt, 0), column_int(q.stmt, 1), path};
    }
}

static enum err_code rename_all(struct ledger_tx *tx, int64_t source, const char *first, const char *last,
                                const char *from, const char *to, struct err *err)
{
    struct renamed rows[RENAME_PAGE];
    size_t count;
    struct buf path;
    buf_init(&path);
    /* A renamed row leaves the range, so the next page starts where the range starts. */
    do {
        struct arena arena;
        arena_init(&arena);
        rename_page(tx, source, first, last, &arena, rows, &count, err);
        for (size_t i = 0; i < count && err->code == ERR_NONE; i++) {
            buf_clear(&path);
            buf_adds(&path, to);
            buf_adds(&path, rows[i].path + strlen(from));
            if (path.failed)
                err_nomem(err);
            else
                rename_row(tx, source, rows[i].id, rows[i].flow, path.data, err);
        }
        arena_done(&arena);
    } while (err->code == ERR_NONE && count == RENAME_PAGE);
    buf_done(&path);
    return err->code;
}

enum err_code ledger_rename(struct ledger_tx *tx, const char *source, const char *from, const char *to, bool is_folder,
                            struct err *err)
{
    int64_t source_id;
    size_t n = strlen(from);
    err_clear(err);
    if (strcmp(from, to) == 0)
        return ERR_NONE;
    if (is_folder && strncmp(to, from, n) == 0 && to[n] == '/')
        return err_set(err, ERR_SYSTEM, false, "folder %s can't be renamed to %s, which is inside it", from, to);
    if (ledger_name_find(tx, source, &source_id, err) != ERR_NONE || source_id == 0)
        return err->code;
    if (!is_folder)
        return rename_all(tx, source_id, from, NULL, from, to, err);
    struct arena arena;
    arena_init(&arena);
    const char *first = arena_printf(&arena, "%s/", from);
    const char *last = arena_printf(&arena, "%s0", from); /* '0' follows '/' */
    if (first == NULL || last == NULL)
        err_nomem(err);
    else
        rename_all(tx, source_id, first, last, from, to, err);
    arena_done(&arena);
    return err->code;
}
