/* ledger_facts.c -- what hangs on a row or a table: the versions that were loaded, and the header of the first load. */
#include "ledger_internal.h"

enum err_code ledger_version_put(struct ledger_tx *tx, int64_t row_id, const uint8_t hash[16], uint64_t size,
                                 uint64_t records, struct err *err)
{
    struct query q;
    err_clear(err);
    if (query_begin(&q, tx,
                    "INSERT INTO version(file, hash, size, records) VALUES (?1, ?2, ?3, ?4) "
                    "ON CONFLICT(file, hash) DO UPDATE SET size = excluded.size, records = excluded.records",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, row_id);
    query_blob(&q, hash, 16);
    query_int(&q, (int64_t)size);
    query_int(&q, (int64_t)records);
    return query_run(&q, err);
}

static enum err_code answer(struct query *q, bool *ret_found, struct err *err)
{
    if (query_step(q, ret_found, err) == ERR_NONE)
        query_end(q);
    return err->code;
}

enum err_code ledger_version_find(struct ledger_tx *tx, int64_t row_id, const uint8_t hash[16], bool *ret_found,
                                  struct err *err)
{
    struct query q;
    err_clear(err);
    *ret_found = false;
    if (query_begin(&q, tx, "SELECT 1 FROM version WHERE file = ?1 AND hash = ?2", err) != ERR_NONE)
        return err->code;
    query_int(&q, row_id);
    query_blob(&q, hash, 16);
    return answer(&q, ret_found, err);
}

enum err_code ledger_version_sized(struct ledger_tx *tx, int64_t row_id, uint64_t size, bool *ret_found,
                                   struct err *err)
{
    struct query q;
    err_clear(err);
    *ret_found = false;
    if (query_begin(&q, tx, "SELECT 1 FROM version WHERE file = ?1 AND size = ?2 LIMIT 1", err) != ERR_NONE)
        return err->code;
    query_int(&q, row_id);
    query_int(&q, (int64_t)size);
    return answer(&q, ret_found, err);
}

enum err_code ledger_header_get(struct ledger_tx *tx, const char *dest, const char *table_key, struct arena *arena,
                                const char **ret, struct err *err)
{
    struct query q;
    int64_t dest_id;
    bool has_row;
    err_clear(err);
    *ret = NULL;
    if (ledger_name_find(tx, dest, &dest_id, err) != ERR_NONE || dest_id == 0)
        return err->code;
    if (query_begin(&q, tx, "SELECT columns FROM header WHERE dest = ?1 AND table_key = ?2", err) != ERR_NONE)
        return err->code;
    query_int(&q, dest_id);
    query_text(&q, table_key);
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    *ret = arena_strdup(arena, column_text(q.stmt, 0));
    if (column_failed(q.stmt))
        *ret = NULL;
    query_end(&q);
    return *ret != NULL ? ERR_NONE : err_nomem(err);
}

enum err_code ledger_header_put(struct ledger_tx *tx, const char *dest, const char *table_key, const char *columns,
                                struct err *err)
{
    struct query q;
    int64_t dest_id;
    err_clear(err);
    if (ledger_name_put(tx, dest, &dest_id, err) != ERR_NONE)
        return err->code;
    const char *sql = columns != NULL ? "INSERT INTO header(dest, table_key, columns) VALUES (?1, ?2, ?3) "
                                        "ON CONFLICT(dest, table_key) DO UPDATE SET columns = excluded.columns"
                                      : "DELETE FROM header WHERE dest = ?1 AND table_key = ?2";
    if (query_begin(&q, tx, sql, err) != ERR_NONE)
        return err->code;
    query_int(&q, dest_id);
    query_text(&q, table_key);
    if (columns != NULL)
        query_text(&q, columns);
    return query_run(&q, err);
}
