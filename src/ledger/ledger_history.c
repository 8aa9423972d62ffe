/* ledger_history.c -- receipts: what ended how and when; and what forgets them. */
#include "ledger_internal.h"

#include "buf.h"

#include <stdio.h>
#include <string.h>

enum err_code ledger_receipt_put(struct ledger_tx *tx, const struct ledger_receipt *r, struct err *err)
{
    struct query q;
    int64_t source;
    int64_t flow;
    int64_t dest;
    int64_t dialect;
    err_clear(err);
    if (ledger_name_put(tx, r->source, &source, err) != ERR_NONE ||
        ledger_name_put(tx, r->flow, &flow, err) != ERR_NONE || ledger_name_put(tx, r->dest, &dest, err) != ERR_NONE ||
        ledger_name_put(tx, r->receipt.dialect, &dialect, err) != ERR_NONE)
        return err->code;
    if (query_begin(&q, tx,
                    "INSERT INTO receipt(at_ms, source, path, flow, dest, tbl, state, reason, hash, bytes, parsed, "
                    "inserted, updated, unchanged, rejected, dest_rows, dest_id, dialect, flags, tries, duration_ms) "
                    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, "
                    "?20, ?21)",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, r->at_ms);
    query_int(&q, source);
    query_text(&q, r->path);
    query_int(&q, flow);
    query_int(&q, dest);
    query_text(&q, r->table != NULL ? r->table : "");
    query_int(&q, r->state);
    query_text(&q, r->reason != NULL ? r->reason : "");
    query_blob(&q, r->receipt.hash, sizeof(r->receipt.hash));
    query_int(&q, (int64_t)r->receipt.bytes);
    query_int(&q, (int64_t)r->receipt.parsed);
    query_int(&q, (int64_t)r->receipt.inserted);
    query_int(&q, (int64_t)r->receipt.updated);
    query_int(&q, (int64_t)r->receipt.unchanged);
    query_int(&q, (int64_t)r->receipt.rejected);
    query_int(&q, r->receipt.dest_rows);
    query_text(&q, r->receipt.dest_id);
    query_int(&q, dialect);
    query_int(&q, (r->receipt.is_duplicate ? FLAG_DUPLICATE : 0) | (r->receipt.created_table ? FLAG_CREATED_TABLE : 0));
    query_int(&q, r->tries);
    query_int(&q, r->duration_ms);
    return query_run(&q, err);
}

enum err_code ledger_receipt_read(sqlite3_stmt *stmt, struct arena *arena, struct ledger_receipt **ret, struct err *err)
{
    *ret = NULL;
    int64_t state = column_int(stmt, 7);
    if (sqlite3_column_type(stmt, 7) != SQLITE_INTEGER || state < 0 || state >= FILE_STATES ||
        sqlite3_column_type(stmt, 4) != SQLITE_TEXT)
        return ERR_NONE;
    struct ledger_receipt *r = arena_alloc(arena, sizeof(*r));
    if (r == NULL)
        return err_nomem(err);
    r->id = column_int(stmt, 0);
    r->at_ms = column_int(stmt, 1);
    r->source = arena_strdup(arena, column_text(stmt, 2));
    r->path = arena_strdup(arena, column_text(stmt, 3));
    r->flow = arena_strdup(arena, column_text(stmt, 4));
    r->dest = arena_strdup(arena, column_text(stmt, 5));
    r->table = arena_strdup(arena, column_text(stmt, 6));
    r->state = (enum file_state)state;
    r->reason = arena_strdup(arena, column_text(stmt, 8));
    if (sqlite3_column_type(stmt, 9) == SQLITE_BLOB && sqlite3_column_bytes(stmt, 9) == sizeof(r->receipt.hash))
        memcpy(r->receipt.hash, sqlite3_column_blob(stmt, 9), sizeof(r->receipt.hash));
    r->receipt.bytes = (uint64_t)column_int(stmt, 10);
    r->receipt.parsed = (uint64_t)column_int(stmt, 11);
    r->receipt.inserted = (uint64_t)column_int(stmt, 12);
    r->receipt.updated = (uint64_t)column_int(stmt, 13);
    r->receipt.unchanged = (uint64_t)column_int(stmt, 14);
    r->receipt.rejected = (uint64_t)column_int(stmt, 15);
    r->receipt.dest_rows = column_int(stmt, 16);
    snprintf(r->receipt.dest_id, sizeof(r->receipt.dest_id), "%s", column_text(stmt, 17));
    snprintf(r->receipt.dialect, sizeof(r->receipt.dialect), "%s", column_text(stmt, 18));
    r->receipt.is_duplicate = (column_int(stmt, 19) & FLAG_DUPLICATE) != 0;
    r->receipt.created_table = (column_int(stmt, 19) & FLAG_CREATED_TABLE) != 0;
    r->tries = column_int(stmt, 20);
    r->duration_ms = column_int(stmt, 21);
    if (column_failed(stmt) || r->source == NULL || r->path == NULL || r->flow == NULL || r->dest == NULL ||
        r->table == NULL || r->reason == NULL)
        return err_nomem(err);
    *ret = r;
    return ERR_NONE;
}

/* Where the last page ended. */
struct place {
    bool is_set;
    int64_t at_ms;
    int64_t id;
};

#define RECEIPT_PAGE 64

static void receipts_sql(const struct ledger_receipt_query *q, const struct place *after, struct buf *ret)
{
    const char *way = q->newest_first ? "DESC" : "ASC";
    buf_adds(ret, "SELECT " LEDGER_RECEIPT_COLUMNS);
    buf_adds(ret, q->path != NULL ? LEDGER_RECEIPT_FROM("INDEXED BY receipt_path")
                                  : LEDGER_RECEIPT_FROM("INDEXED BY receipt_at"));
    /* The states are numbers made by us; everything else is bound. */
    buf_printf(ret, "WHERE r.at_ms >= ?1 AND (?2 IS NULL OR r.flow = ?2) AND (?3 IS NULL OR r.source = ?3)");
    buf_adds(ret, q->path != NULL ? " AND r.path = ?4" : " AND ?4 IS NULL");
    buf_printf(ret, " AND (?5 = 0 OR (?5 >> r.state) & 1)");
    if (after->is_set)
        buf_adds(ret, q->newest_first ? " AND (r.at_ms, r.id) < (?7, ?8)" : " AND (r.at_ms, r.id) > (?7, ?8)");
    buf_printf(ret, " ORDER BY r.at_ms %s, r.id %s LIMIT ?6", way, way);
}

static void int_or_null(struct query *q, bool is_given, int64_t value)
{
    if (is_given)
        query_int(q, value);
    else
        query_null(q);
}

static enum err_code receipts_page(struct ledger_tx *tx, const struct ledger_receipt_query *q, int64_t flow,
                                   int64_t source, struct place *place, size_t limit, struct arena *arena,
                                   struct ledger_receipt **ret, size_t *ret_count, size_t *ret_seen, struct err *err)
{
    struct query query;
    struct buf sql;
    bool has_row;
    *ret_count = 0;
    *ret_seen = 0;
    buf_init(&sql);
    receipts_sql(q, place, &sql);
    if (sql.failed)
        err_nomem(err);
    else
        query_begin_text(&query, tx, sql.data, err);
    buf_done(&sql);
    if (err->code != ERR_NONE)
        return err->code;
    query_int(&query, q->since_ms != 0 ? q->since_ms : INT64_MIN);
    int_or_null(&query, q->flow != NULL, flow);
    int_or_null(&query, q->source != NULL, source);
    query_text(&query, q->path);
    query_int(&query, q->states);
    query_int(&query, (int64_t)limit);
    if (place->is_set) {
        query_int(&query, place->at_ms);
        query_int(&query, place->id);
    }
    for (;;) {
        if (query_step(&query, &has_row, err) != ERR_NONE || !has_row)
            return err->code;
        *place = (struct place){true, column_int(query.stmt, 1), column_int(query.stmt, 0)};
        (*ret_seen)++;
        struct ledger_receipt *r;
        if (ledger_receipt_read(query.stmt, arena, &r, err) != ERR_NONE) {
            query_end(&query);
            return err->code;
        }
        if (r != NULL)
            ret[(*ret_count)++] = r;
    }
}

enum err_code ledger_receipts_each(struct ledger_tx *tx, const struct ledger_receipt_query *q, ledger_receipt_cb *cb,
                                   void *arg, struct err *err)
{
    int64_t flow = 0;
    int64_t source = 0;
    size_t given = 0;
    size_t seen;
    size_t limit;
    struct place place = {0};
    err_clear(err);
    if (q->flow != NULL && (ledger_name_find(tx, q->flow, &flow, err) != ERR_NONE || flow == 0))
        return err->code;
    if (q->source != NULL && (ledger_name_find(tx, q->source, &source, err) != ERR_NONE || source == 0))
        return err->code;
    do {
        struct ledger_receipt *page[RECEIPT_PAGE];
        size_t count;
        struct arena arena;
        arena_init(&arena);
        limit = q->limit != 0 && q->limit - given < RECEIPT_PAGE ? q->limit - given : RECEIPT_PAGE;
        receipts_page(tx, q, flow, source, &place, limit, &arena, page, &count, &seen, err);
        for (size_t i = 0; i < count && err->code == ERR_NONE; i++) {
            given++;
            if (!cb(arg, page[i])) {
                arena_done(&arena);
                return ERR_NONE;
            }
        }
        arena_done(&arena);
    } while (err->code == ERR_NONE && seen == limit && (q->limit == 0 || given < q->limit));
    return err->code;
}

static enum err_code prune_gone(struct ledger_tx *tx, int64_t before_ms, size_t limit, uint64_t *ret, struct err *err)
{
    struct query q;
    bool has_row;
    while (limit > 0) {
        int64_t ids[64];
        size_t count = 0;
        if (query_begin(&q, tx,
                        "SELECT id FROM file INDEXED BY file_ended WHERE state = 8 AND state >= 6 "
                        "AND since_ms < ?1 AND (flags & 10) = 0 LIMIT 64",
                        err) != ERR_NONE)
            return err->code;
        query_int(&q, before_ms);
        while (query_step(&q, &has_row, err) == ERR_NONE && has_row)
            if (count < 64)
                ids[count++] = column_int(q.stmt, 0);
        for (size_t i = 0; i < count && err->code == ERR_NONE; i++)
            ledger_delete(tx, ids[i], err);
        if (err->code != ERR_NONE)
            return err->code;
        *ret += count;
        limit -= count < limit ? count : limit;
        if (count < 64)
            break;
    }
    return err->code;
}

enum err_code ledger_prune(struct ledger_tx *tx, int64_t before_ms, uint64_t *ret, struct err *err)
{
    struct query q;
    err_clear(err);
    *ret = 0;
    if (query_begin(&q, tx,
                    "DELETE FROM receipt WHERE id IN (SELECT id FROM receipt INDEXED BY receipt_at WHERE at_ms < ?1 "
                    "ORDER BY at_ms LIMIT ?2)",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, before_ms);
    query_int(&q, LEDGER_PRUNE_MAX);
    if (query_run(&q, err) != ERR_NONE)
        return err->code;
    *ret = (uint64_t)sqlite3_changes64(tx->db);
    return prune_gone(tx, before_ms, LEDGER_PRUNE_MAX - (size_t)*ret, ret, err);
}
