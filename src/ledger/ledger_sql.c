/*
 * ledger_sql.c -- a thin skin over SQLite: statements that are prepared once, binds that remember a failure, and what
 * an error means for a person.
 */
#include "ledger_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool ledger_is_corrupt(int rc)
{
    return (rc & 0xff) == SQLITE_CORRUPT || (rc & 0xff) == SQLITE_NOTADB || rc == SQLITE_IOERR_SHORT_READ ||
           rc == SQLITE_IOERR_CORRUPTFS;
}

/* What to do about it, by SQLite's primary code. */
static const char *advice(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_FULL:
        return "; make room on its file system";
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
        return "; the user that runs chute must be able to write the file and its folder";
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return "; another program holds a lock on it: end that program or its transaction";
    default:
        return ledger_is_corrupt(rc) ? "; it is moved aside and recovered at the next start of `chute run`" : "";
    }
}

enum err_code ledger_sqlite_error(struct ledger_tx *tx, int rc, struct err *err)
{
    tx->last = rc;
    if ((rc & 0xff) == SQLITE_NOMEM)
        return err_nomem(err);
    int primary = rc & 0xff;
    if (primary == SQLITE_FULL || primary == SQLITE_IOERR || primary == SQLITE_READONLY || primary == SQLITE_CANTOPEN ||
        primary == SQLITE_BUSY || primary == SQLITE_PROTOCOL || ledger_is_corrupt(rc))
        tx->broken = rc;
    if (tx->is_immutable && ledger_is_corrupt(rc) && !ledger_stood_still(tx))
        return err_set(err, ERR_SYSTEM, true, "ledger %s changed while it was read: run the command again", tx->path);
    int system_errno = tx->db != NULL ? sqlite3_system_errno(tx->db) : 0;
    bool tell_errno = system_errno != 0 && (primary == SQLITE_IOERR || primary == SQLITE_CANTOPEN);
    /* SQLite's text for the current state of the connection, when that is the failure at hand. */
    const char *text =
        tx->db != NULL && sqlite3_extended_errcode(tx->db) == rc ? sqlite3_errmsg(tx->db) : sqlite3_errstr(rc);
    return err_set(err, ERR_SYSTEM, !ledger_is_corrupt(rc), "ledger %s: %s%s%s%s", tx->path, text,
                   tell_errno ? ": " : "", tell_errno ? strerror(system_errno) : "", advice(rc));
}

static struct ledger_statement *oldest_statement(struct ledger_tx *tx)
{
    struct ledger_statement *oldest = NULL;
    for (size_t i = 0; i < LEDGER_STATEMENTS; i++) {
        struct ledger_statement *s = &tx->statements[i];
        if (s->stmt == NULL)
            return s;
        if (!sqlite3_stmt_busy(s->stmt) && (oldest == NULL || s->used < oldest->used))
            oldest = s;
    }
    return oldest; /* not NULL: at most two statements run at a time */
}

static void drop_statement(struct ledger_statement *s)
{
    sqlite3_finalize(s->stmt);
    if (s->is_owned)
        free((void *)(uintptr_t)s->sql);
    *s = (struct ledger_statement){0};
}

static enum err_code find_statement(struct query *q, struct ledger_tx *tx, const char *sql, bool is_text,
                                    struct err *err)
{
    *q = (struct query){.tx = tx};
    tx->uses++;
    for (size_t i = 0; i < LEDGER_STATEMENTS; i++) {
        struct ledger_statement *s = &tx->statements[i];
        if (s->stmt == NULL || s->is_owned != is_text || (is_text ? strcmp(s->sql, sql) != 0 : s->sql != sql))
            continue;
        s->used = tx->uses;
        q->stmt = s->stmt;
        return ERR_NONE;
    }
    struct ledger_statement *s = oldest_statement(tx);
    drop_statement(s);
    char *copy = NULL;
    if (is_text && (copy = strdup(sql)) == NULL)
        return err_nomem(err);
    int rc = sqlite3_prepare_v3(tx->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &s->stmt, NULL);
    if (rc != SQLITE_OK) {
        free(copy);
        s->stmt = NULL;
        return ledger_sqlite_error(tx, rc, err);
    }
    s->sql = is_text ? copy : sql;
    s->is_owned = is_text;
    s->used = tx->uses;
    q->stmt = s->stmt;
    return ERR_NONE;
}

enum err_code query_begin(struct query *q, struct ledger_tx *tx, const char *sql, struct err *err)
{
    return find_statement(q, tx, sql, false, err);
}

enum err_code query_begin_text(struct query *q, struct ledger_tx *tx, const char *sql, struct err *err)
{
    return find_statement(q, tx, sql, true, err);
}

static void keep(struct query *q, int rc)
{
    if (q->rc == SQLITE_OK)
        q->rc = rc;
}

void query_int(struct query *q, int64_t value)
{
    keep(q, sqlite3_bind_int64(q->stmt, ++q->at, value));
}

void query_text(struct query *q, const char *value)
{
    keep(q, sqlite3_bind_text(q->stmt, ++q->at, value, -1, SQLITE_STATIC));
}

void query_blob(struct query *q, const void *value, size_t size)
{
    keep(q, sqlite3_bind_blob64(q->stmt, ++q->at, value, size, SQLITE_STATIC));
}

void query_null(struct query *q)
{
    keep(q, sqlite3_bind_null(q->stmt, ++q->at));
}

void query_end(struct query *q)
{
    if (q->stmt == NULL)
        return;
    sqlite3_reset(q->stmt);
    sqlite3_clear_bindings(q->stmt);
    q->stmt = NULL;
}

enum err_code query_step(struct query *q, bool *ret_row, struct err *err)
{
    *ret_row = false;
    int rc = q->rc != SQLITE_OK ? q->rc : sqlite3_step(q->stmt);
    if (rc == SQLITE_ROW) {
        *ret_row = true;
        return ERR_NONE;
    }
    if (rc == SQLITE_DONE) {
        query_end(q);
        return ERR_NONE;
    }
    ledger_sqlite_error(q->tx, rc, err);
    query_end(q);
    return err != NULL ? err->code : ERR_SYSTEM;
}

enum err_code query_run(struct query *q, struct err *err)
{
    bool has_row;
    do {
        enum err_code code = query_step(q, &has_row, err);
        if (code != ERR_NONE)
            return code;
    } while (has_row);
    return ERR_NONE;
}

int64_t column_int(sqlite3_stmt *stmt, int column)
{
    return sqlite3_column_type(stmt, column) == SQLITE_INTEGER ? sqlite3_column_int64(stmt, column) : 0;
}

const char *column_text(sqlite3_stmt *stmt, int column)
{
    const char *text = NULL;
    if (sqlite3_column_type(stmt, column) == SQLITE_TEXT)
        text = (const char *)sqlite3_column_text(stmt, column);
    return text != NULL ? text : "";
}

bool column_failed(sqlite3_stmt *stmt)
{
    return sqlite3_errcode(sqlite3_db_handle(stmt)) == SQLITE_NOMEM;
}

enum err_code ledger_exec(struct ledger_tx *tx, const char *sql, struct err *err)
{
    int rc = sqlite3_exec(tx->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? ERR_NONE : ledger_sqlite_error(tx, rc, err);
}

void ledger_forget_undone(struct ledger_tx *tx)
{
    for (size_t i = 0; i < tx->name_count; i++)
        free(tx->names[i].text);
    tx->name_count = 0;
    tx->delta_count = 0;
}

void ledger_tx_free(struct ledger_tx *tx)
{
    if (tx == NULL)
        return;
    for (size_t i = 0; i < LEDGER_STATEMENTS; i++)
        drop_statement(&tx->statements[i]);
    ledger_forget_undone(tx);
    sqlite3_close(tx->db);
    free(tx->path);
    free(tx);
}
