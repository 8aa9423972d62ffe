/*
 * ledger_recover.c -- a ledger that can't be trusted is moved aside, never deleted; what can be read goes along.
 *
 * The order survives a crash at any point:
 *   1. the new one is made as PATH.recovering (thrown away if we die), complete, on disk, one file;
 *   2. renamed to PATH.recovered: from here on the decision stands, see ledger_recover_resume();
 *   3. PATH-wal, PATH-shm and PATH are renamed to PATH.corrupt-<time>…; the WAL first, so that it can never be
 *      taken for that of the new file;
 *   4. PATH.recovered is renamed to PATH.
 */
#include "ledger_internal.h"

#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* After so many unreadable places in one table the rest of it is given up. */
#define HOLES_MAX 4096
#define ROWS_PER_COMMIT 1024

struct rescue {
    struct ledger_tx *from;
    struct ledger_tx *to;
    uint64_t rows;
    size_t uncommitted;
};

/* The row under STMT goes to the new ledger. An error is one of the new ledger. */
typedef enum err_code keep_fn(struct rescue *r, sqlite3_stmt *stmt, struct err *err);

static enum err_code kept(struct rescue *r, struct err *err)
{
    r->rows++;
    if (++r->uncommitted < ROWS_PER_COMMIT)
        return ERR_NONE;
    r->uncommitted = 0;
    return ledger_tally_flush(r->to, err) == ERR_NONE ? ledger_exec(r->to, "COMMIT; BEGIN", err) : err->code;
}

static enum err_code keep_file(struct rescue *r, sqlite3_stmt *stmt, struct err *err)
{
    struct arena arena;
    struct ledger_row *row;
    arena_init(&arena);
    if (ledger_row_read(stmt, &arena, &row, err) == ERR_NONE && row != NULL && ledger_put(r->to, row, err) == ERR_NONE)
        kept(r, err);
    arena_done(&arena);
    return err->code;
}

static enum err_code keep_receipt(struct rescue *r, sqlite3_stmt *stmt, struct err *err)
{
    struct arena arena;
    struct ledger_receipt *receipt;
    arena_init(&arena);
    if (ledger_receipt_read(stmt, &arena, &receipt, err) == ERR_NONE && receipt != NULL &&
        ledger_receipt_put(r->to, receipt, err) == ERR_NONE)
        kept(r, err);
    arena_done(&arena);
    return err->code;
}

static enum err_code keep_version(struct rescue *r, sqlite3_stmt *stmt, struct err *err)
{
    if (sqlite3_column_type(stmt, 1) != SQLITE_BLOB || sqlite3_column_bytes(stmt, 1) != 16)
        return ERR_NONE;
    if (ledger_version_put(r->to, column_int(stmt, 0), sqlite3_column_blob(stmt, 1), (uint64_t)column_int(stmt, 2),
                           (uint64_t)column_int(stmt, 3), err) != ERR_NONE)
        return err->code;
    return kept(r, err);
}

static enum err_code keep_header(struct rescue *r, sqlite3_stmt *stmt, struct err *err)
{
    if (sqlite3_column_type(stmt, 0) != SQLITE_TEXT || sqlite3_column_type(stmt, 2) != SQLITE_TEXT)
        return ERR_NONE;
    if (ledger_header_put(r->to, column_text(stmt, 0), column_text(stmt, 1), column_text(stmt, 2), err) != ERR_NONE)
        return err->code;
    return kept(r, err);
}

static enum err_code keep_meta(struct rescue *r, sqlite3_stmt *stmt, struct err *err)
{
    const char *key = column_text(stmt, 0);
    if (key[0] == '\0' || strcmp(key, "schema") == 0 || strcmp(key, "open_since_boot") == 0 ||
        sqlite3_column_type(stmt, 1) != SQLITE_TEXT)
        return ERR_NONE;
    if (ledger_meta_put(r->to, key, column_text(stmt, 1), err) != ERR_NONE)
        return err->code;
    return kept(r, err);
}

/*
 * Rows of a table with integer ids, in their order; SQL takes "id > ?1". Where a page is damaged SQLite says so and
 * stops: go on behind it, in steps that double until something is readable again.
 */
static enum err_code rescue_by_id(struct rescue *r, const char *sql, keep_fn *keep, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    int64_t after = 0;
    int64_t step = 1;
    int rc = sqlite3_prepare_v2(r->from->db, sql, -1, &stmt, NULL);
    for (int holes = 0; rc != SQLITE_DONE && stmt != NULL && holes < HOLES_MAX && err->code == ERR_NONE; holes++) {
        sqlite3_reset(stmt);
        sqlite3_bind_int64(stmt, 1, after);
        while ((rc = sqlite3_step(stmt)) == SQLITE_ROW && err->code == ERR_NONE) {
            int64_t id = sqlite3_column_int64(stmt, 0);
            if (id > after)
                after = id;
            step = 1;
            keep(r, stmt, err);
        }
        if (after > INT64_MAX - step)
            break;
        after += step;
        step = step < INT64_MAX / 4 ? step * 2 : step;
    }
    sqlite3_finalize(stmt);
    return err->code;
}

/* Rows of a small table whose key is no number: from the front to the first damage. */
static enum err_code rescue_all(struct rescue *r, const char *sql, keep_fn *keep, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    if (sqlite3_prepare_v2(r->from->db, sql, -1, &stmt, NULL) == SQLITE_OK)
        while (err->code == ERR_NONE && sqlite3_step(stmt) == SQLITE_ROW)
            keep(r, stmt, err);
    sqlite3_finalize(stmt);
    return err->code;
}

static enum err_code rescue_tables(struct rescue *r, struct err *err)
{
    if (ledger_exec(r->to, "BEGIN", err) != ERR_NONE)
        return err->code;
    rescue_all(r, "SELECT key, value FROM meta", keep_meta, err);
    if (err->code == ERR_NONE)
        rescue_all(r, "SELECT d.text, h.table_key, h.columns FROM header h JOIN name d ON d.id = h.dest", keep_header,
                   err);
    if (err->code == ERR_NONE)
        rescue_by_id(r, "SELECT " LEDGER_ROW_COLUMNS LEDGER_ROW_FROM("NOT INDEXED") "WHERE f.id > ?1 ORDER BY f.id",
                     keep_file, err);
    if (err->code == ERR_NONE)
        rescue_by_id(r, "SELECT file, hash, size, records FROM version WHERE file > ?1 ORDER BY file", keep_version,
                     err);
    if (err->code == ERR_NONE)
        rescue_by_id(
            r, "SELECT " LEDGER_RECEIPT_COLUMNS LEDGER_RECEIPT_FROM("NOT INDEXED") "WHERE r.id > ?1 ORDER BY r.id",
            keep_receipt, err);
    /* Versions of rows that were not readable belong to nobody. */
    if (err->code == ERR_NONE && ledger_tally_flush(r->to, err) == ERR_NONE)
        ledger_exec(r->to, "DELETE FROM version WHERE file NOT IN (SELECT id FROM file); COMMIT", err);
    return err->code;
}

static void remove_with_wal(const char *path)
{
    char name[4096];
    unlink(path);
    static const char *const tails[] = {"-wal", "-shm", "-journal"};
    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        snprintf(name, sizeof(name), "%s%s", path, tails[i]);
        unlink(name);
    }
}

/* Fill RECOVERING from PATH, whatever can be read; complete and on disk when it returns. */
static enum err_code make_new(const char *path, const char *recovering, uint64_t *ret_rows, struct err *err)
{
    struct rescue r = {0};
    struct err from_err;
    remove_with_wal(recovering);
    if (ledger_connect(recovering, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &r.to, err) != ERR_NONE)
        return err->code;
    /* The whole is renamed into place at the end, so this one needs no journal until then; the last commits are synced.
     */
    if (ledger_exec(r.to, "PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL", err) == ERR_NONE &&
        ledger_migrate(r.to, ledger_steps, ledger_step_count, err) == ERR_NONE) {
        /* An empty file has nothing to tell, and SQLite would delete its WAL. */
        if (access(path, R_OK) == 0 && ledger_connect(path, SQLITE_OPEN_READWRITE, &r.from, &from_err) == ERR_NONE) {
            sqlite3_db_config(r.from->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
            sqlite3_wal_autocheckpoint(r.from->db, 0);
            rescue_tables(&r, err);
        }
    }
    ledger_tx_free(r.from);
    ledger_tx_free(r.to);
    *ret_rows = r.rows;
    if (err->code != ERR_NONE)
        remove_with_wal(recovering);
    return err->code;
}

static enum err_code sync_folder(const char *path, struct err *err)
{
    char *copy = strdup(path);
    if (copy == NULL)
        return err_nomem(err);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        err_set(err, ERR_SYSTEM, true, "ledger %s: sync its folder: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(copy);
    return err->code;
}

/* A name for the old file that nothing has yet. */
static void corrupt_name(const char *path, char *ret, size_t size)
{
    char time[32];
    clock_format(clock_wall_ms(), time, sizeof(time));
    for (char *c = time; *c != '\0'; c++)
        if (*c == ':')
            *c = '-';
    snprintf(ret, size, "%s.corrupt-%s", path, time);
    for (int i = 1; access(ret, F_OK) == 0 && i < 1000; i++)
        snprintf(ret, size, "%s.corrupt-%s.%d", path, time, i);
}

static enum err_code move(const char *from, const char *to, struct err *err)
{
    if (rename(from, to) != 0 && errno != ENOENT)
        return err_set(err, ERR_SYSTEM, true, "ledger: move %s to %s: %s; make its folder writable", from, to,
                       strerror(errno));
    return ERR_NONE;
}

/* Steps 3 and 4. */
static enum err_code swap(const char *path, const char *recovered, const char *aside, struct err *err)
{
    static const char *const tails[] = {"-wal", "-shm", "-journal", ""};
    char from[4096];
    char to[4096];
    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        snprintf(from, sizeof(from), "%s%s", path, tails[i]);
        snprintf(to, sizeof(to), "%s%s", aside, tails[i]);
        if (move(from, to, err) != ERR_NONE)
            return err->code;
    }
    if (sync_folder(path, err) != ERR_NONE || move(recovered, path, err) != ERR_NONE)
        return err->code;
    return sync_folder(path, err);
}

static void tell(struct ledger_opened *opened, const char *path, const char *aside, const char *why)
{
    opened->was_recovered = true;
    snprintf(opened->message, sizeof(opened->message),
             "ledger %.120s was corrupt (%.100s): moved to %.150s; %llu rows carried over. "
             "Files it forgot are looked at again and compared with the destination",
             path, why, aside, (unsigned long long)opened->rows_recovered);
}

static bool name_both(const char *path, char *recovering, char *recovered, size_t size)
{
    snprintf(recovering, size, "%s.recovering", path);
    return (size_t)snprintf(recovered, size, "%s.recovered", path) + 64 < size;
}

enum err_code ledger_recover(const char *path, const char *why, struct ledger_opened *ret_opened, struct err *err)
{
    char recovering[4096];
    char recovered[4096];
    char aside[4096];
    err_clear(err);
    if (!name_both(path, recovering, recovered, sizeof(recovering)))
        return err_set(err, ERR_CONFIG, false, "ledger: the path of `state` is too long");
    if (make_new(path, recovering, &ret_opened->rows_recovered, err) != ERR_NONE ||
        move(recovering, recovered, err) != ERR_NONE || sync_folder(path, err) != ERR_NONE)
        return err_wrap(err, "recover the corrupt ledger %s", path);
    corrupt_name(path, aside, sizeof(aside));
    if (swap(path, recovered, aside, err) != ERR_NONE)
        return err->code;
    tell(ret_opened, path, aside, why);
    return ERR_NONE;
}

enum err_code ledger_recover_resume(const char *path, bool *ret_done, struct ledger_opened *ret_opened, struct err *err)
{
    char recovering[4096];
    char recovered[4096];
    char aside[4096];
    err_clear(err);
    *ret_done = false;
    if (!name_both(path, recovering, recovered, sizeof(recovering)))
        return err_set(err, ERR_CONFIG, false, "ledger: the path of `state` is too long");
    remove_with_wal(recovering);
    if (access(recovered, F_OK) != 0)
        return ERR_NONE;
    corrupt_name(path, aside, sizeof(aside));
    if (swap(path, recovered, aside, err) != ERR_NONE)
        return err->code;
    *ret_done = true;
    tell(ret_opened, path, aside, "found at the last start, which was cut off");
    return ERR_NONE;
}
