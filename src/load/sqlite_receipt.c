/*
 * sqlite_receipt.c -- what `_chute_loads` knows: which versions the database holds. Never pruned: it decides when the
 * ledger is lost.
 *
 * Receipts older than the last drop or emptying of their table speak of rows that are gone, and don't count.
 */
#include "sqlite_internal.h"

#include "text.h"

#include <stdio.h>
#include <string.h>

static void take(sqlite3_stmt *stmt, struct receipt *r)
{
    const char *hash = (const char *)sqlite3_column_text(stmt, 1);
    if (hash == NULL || !text_unhex(hash, r->hash, sizeof(r->hash)))
        memset(r->hash, 0, sizeof(r->hash));
    r->bytes = (uint64_t)sqlite3_column_int64(stmt, 2);
    r->parsed = (uint64_t)sqlite3_column_int64(stmt, 3);
    r->inserted = (uint64_t)sqlite3_column_int64(stmt, 4);
    r->updated = (uint64_t)sqlite3_column_int64(stmt, 5);
    r->unchanged = (uint64_t)sqlite3_column_int64(stmt, 6);
    r->rejected = (uint64_t)sqlite3_column_int64(stmt, 7);
    r->dest_rows = -1;
    snprintf(r->dest_id, sizeof(r->dest_id), "%lld", (long long)sqlite3_column_int64(stmt, 0));
    r->is_duplicate = true;
}

#define COLUMNS "id, hash, bytes, parsed, inserted, updated, unchanged, rejected"

static const char by_attempt[] =
    "SELECT " COLUMNS " FROM _chute_loads WHERE load_key=?1 AND instance=?2 AND \"table\"=?3";
/* replace: only what the table holds now, which the last thing that happened to it tells. */
static const char by_last[] =
    "SELECT " COLUMNS " FROM (SELECT * FROM _chute_loads WHERE \"table\"=?3 ORDER BY id DESC LIMIT 1)"
    " WHERE instance=?2 AND source=?4 AND path=?5 AND hash=?6 AND kind IN ('load', 'carry')";
static const char by_path[] =
    "SELECT " COLUMNS " FROM _chute_loads WHERE \"table\"=?3 AND path=?5 AND hash=?6 AND instance=?2 AND source=?4"
    /* The planner prefers the index of all receipts of a table, and would walk them once for each file. */
    " AND kind IN ('load', 'carry') AND id > (SELECT coalesce(max(id), 0) FROM _chute_loads"
    " INDEXED BY _chute_loads_gone WHERE \"table\"=?3 AND kind IN ('drop', 'empty')) ORDER BY id DESC LIMIT 1";

static enum err_code look(struct lite_run *run, const char *sql, const char *hex, bool *ret_found)
{
    sqlite3_stmt *stmt;
    const struct load *load = run->load;
    enum err_code code = conn_prepare(run->c, sql, &stmt, run->err);
    if (code != ERR_NONE)
        return code;
    sqlite3_clear_bindings(stmt);
    sqlite3_bind_text(stmt, 1, load->load_key, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 2, load->instance, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 3, load->table, -1, SQLITE_STATIC);
    if (hex != NULL) {
        sqlite3_bind_text(stmt, 4, load->source, -1, SQLITE_STATIC);
        sqlite3_bind_text(stmt, 5, load->path, -1, SQLITE_STATIC);
        sqlite3_bind_text(stmt, 6, hex, -1, SQLITE_STATIC);
    }
    int rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW) {
        *ret_found = true;
        take(stmt, &run->load->receipt);
    } else if (rc != SQLITE_DONE) {
        code = conn_err(run->c, rc, run->err, "look for a receipt");
    }
    sqlite3_reset(stmt);
    return code;
}

enum err_code receipt_find(struct lite_run *run, const uint8_t hash[16], bool *ret_found)
{
    char hex[33];
    *ret_found = false;
    enum err_code code = run->is_new ? ERR_NONE : look(run, by_attempt, NULL, ret_found);
    run->load->receipt.is_resumed = *ret_found; /* the file may be another version by now: the job looks */
    if (code != ERR_NONE || *ret_found || hash == NULL || run->load->plan->on_duplicate == DUPLICATE_RELOAD)
        return code;
    text_hex(hash, 16, hex);
    code = look(run, run->load->plan->mode == MODE_REPLACE ? by_last : by_path, hex, ret_found);
    if (code != ERR_NONE || !*ret_found)
        return code;
    if (run->load->part_count > 0) /* its table is only a name */
        return code;
    /* Somebody dropped the table: it holds no version at all. */
    struct lite_table t;
    code = schema_read(run->c, run->load->table, &run->arena, &t, run->err);
    if (code == ERR_NONE && !t.exists) {
        *ret_found = false;
        memset(&run->load->receipt, 0, sizeof(run->load->receipt));
        run->load->receipt.dest_rows = -1;
    }
    return code;
}

enum err_code receipt_was_done(struct conn *c, const struct load *load, bool *ret_done, struct err *err)
{
    sqlite3_stmt *stmt;
    enum err_code code = conn_prepare(c, by_attempt, &stmt, err);
    if (code != ERR_NONE)
        return code;
    sqlite3_bind_text(stmt, 1, load->load_key, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 2, load->instance, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 3, load->table, -1, SQLITE_STATIC);
    int rc = sqlite3_step(stmt);
    *ret_done = rc == SQLITE_ROW;
    code = rc == SQLITE_ROW || rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "look for a receipt");
    sqlite3_reset(stmt);
    return code;
}

enum err_code receipt_put(struct conn *c, struct load *load, const char *kind, struct err *err)
{
    char hex[33];
    sqlite3_stmt *stmt;
    const struct receipt *r = &load->receipt;
    /* Out of memory in the wrong place ends a transaction without a word: a receipt must never go in without its rows.
     */
    if (!conn_in_transaction(c))
        return err_set(err, ERR_SYSTEM, true, "%s: SQLite gave up the transaction of this load", c->path);
    enum err_code code = conn_prepare(c,
                                      "INSERT INTO _chute_loads(load_key, instance, source, flow, path, hash, "
                                      "\"table\", at, kind, bytes, parsed, inserted,"
                                      " updated, unchanged, rejected) VALUES(coalesce(nullif(?1, ''), 'none-' || "
                                      "hex(randomblob(16))), ?2, ?3, ?4, ?5, ?6, ?7,"
                                      " strftime('%Y-%m-%dT%H:%M:%fZ'), ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                                      &stmt, err);
    if (code != ERR_NONE)
        return code;
    text_hex(r->hash, sizeof(r->hash), hex);
    const char *const texts[] = {
        load->load_key, load->instance, load->source, load->plan->flow, load->path, hex, load->table, kind};
    const uint64_t numbers[] = {r->bytes, r->parsed, r->inserted, r->updated, r->unchanged, r->rejected};
    for (int i = 0; i < 8; i++)
        sqlite3_bind_text(stmt, i + 1, texts[i] != NULL ? texts[i] : "", -1, SQLITE_STATIC);
    for (int i = 0; i < 6; i++)
        sqlite3_bind_int64(stmt, i + 9, (sqlite3_int64)numbers[i]);
    code = conn_run(c, stmt, err, "write the receipt");
    sqlite3_clear_bindings(stmt);
    snprintf(load->receipt.dest_id, sizeof(load->receipt.dest_id), "%lld", (long long)sqlite3_last_insert_rowid(c->db));
    return code;
}

enum err_code receipt_carry(struct conn *c, struct load *load, struct err *err)
{
    struct lite_run run = {.c = c, .load = load, .err = err};
    char hex[33];
    bool is_there = false;
    arena_init(&run.arena);
    text_hex(load->hash, sizeof(load->hash), hex);
    enum err_code code = look(&run, by_attempt, NULL, &is_there);
    if (code == ERR_NONE && !is_there)
        code = look(&run, by_path, hex, &is_there);
    if (code == ERR_NONE && !is_there) {
        /* The counts go along: they say what this version brought, under whatever name. */
        const char *path = load->path;
        bool is_known = false;
        load->path = load->from_path;
        code = look(&run, by_path, hex, &is_known);
        load->path = path;
        load->receipt.is_duplicate = false;
        memcpy(load->receipt.hash, load->hash, sizeof(load->hash));
        if (code == ERR_NONE)
            code = receipt_put(c, load, "carry", err);
    }
    arena_done(&run.arena);
    return code;
}

enum err_code receipt_forget(struct conn *c, struct load *load, struct err *err)
{
    sqlite3_stmt *stmt;
    enum err_code code =
        conn_prepare(c, "DELETE FROM _chute_loads WHERE flow=?1 AND \"table\"=?2 AND instance=?3", &stmt, err);
    if (code != ERR_NONE)
        return code;
    sqlite3_bind_text(stmt, 1, load->plan->flow, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 2, load->table, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 3, load->instance, -1, SQLITE_STATIC);
    return conn_run(c, stmt, err, "forget receipts");
}
