/*
 * ledger_open.c -- make the file, or find out that it is sound.
 *
 * What is checked at every start: that SQLite can read it, that it is ours (application_id), its version, and that
 * every table and index is exactly as we made it. `PRAGMA quick_check` reads the whole file (about 1 s per GB), so it
 * runs only when there is a reason: the file is small (16 MiB), it was not closed well before the machine itself was
 * started anew (a kill alone can't hurt a WAL file), or a run met corruption and left the mark PATH.suspect.
 */
#include "ledger_internal.h"

#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char schema_1[] =
    "CREATE TABLE meta(key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    /* source, flow, destination and dialect names, so that rows hold a small number; never deleted */
    "CREATE TABLE name(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;"
    /* AUTOINCREMENT: an id never comes back, so that who remembers an old one can't hit another file */
    "CREATE TABLE file("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL, path TEXT NOT NULL CHECK (path <> ''), "
    "flow INTEGER NOT NULL, dest INTEGER NOT NULL, tbl TEXT NOT NULL, table_key TEXT NOT NULL, "
    "state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 8), "
    "size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, "
    "dev INTEGER NOT NULL, l_size INTEGER NOT NULL, l_mtime_ns INTEGER NOT NULL, l_ctime_ns INTEGER NOT NULL, "
    "l_inode INTEGER NOT NULL, l_dev INTEGER NOT NULL, hash BLOB CHECK (length(hash) = 16), "
    "records INTEGER NOT NULL, flags INTEGER NOT NULL, reason TEXT NOT NULL, load_key TEXT NOT NULL, "
    "tries INTEGER NOT NULL, failed_ms INTEGER NOT NULL, next_try_ms INTEGER NOT NULL, since_ms INTEGER NOT NULL, "
    "seen_ms INTEGER NOT NULL, definition INTEGER NOT NULL) STRICT;"
    "CREATE UNIQUE INDEX file_name ON file(source, path, flow);"
    "CREATE INDEX file_table ON file(dest, table_key) WHERE table_key <> '';"
    "CREATE INDEX file_inode ON file(inode, dev) WHERE inode <> 0;"
    /* The numbers are enum file_state: 1 settling, 2 queued, 3 loading, 4 retrying; below 5 pending; from 6 on ended.
     */
    "CREATE INDEX file_due ON file(dest, flow, mtime_ns, path) WHERE state IN (2, 4) AND next_try_ms <= 0;"
    "CREATE INDEX file_later ON file(dest, flow, next_try_ms) WHERE state IN (1, 2, 4) AND next_try_ms > 0;"
    "CREATE INDEX file_loading ON file(dest, table_key) WHERE state = 3;"
    "CREATE INDEX file_pending ON file(flow, seen_ms) WHERE state < 5;"
    "CREATE INDEX file_ended ON file(state) WHERE state >= 6;"
    "CREATE INDEX file_flagged ON file(flow) WHERE (flags & 10) <> 0;"
    "CREATE TABLE tally(flow INTEGER NOT NULL, state INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(flow, state)) "
    "STRICT, WITHOUT ROWID;"
    "CREATE TABLE version(file INTEGER NOT NULL, hash BLOB NOT NULL, size INTEGER NOT NULL, records INTEGER NOT NULL, "
    "PRIMARY KEY(file, hash)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE header(dest INTEGER NOT NULL, table_key TEXT NOT NULL, columns TEXT NOT NULL, "
    "PRIMARY KEY(dest, table_key)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE receipt("
    "id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, source INTEGER NOT NULL, path TEXT NOT NULL, "
    "flow INTEGER NOT NULL, dest INTEGER NOT NULL, tbl TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL, "
    "hash BLOB NOT NULL, bytes INTEGER NOT NULL, parsed INTEGER NOT NULL, inserted INTEGER NOT NULL, "
    "updated INTEGER NOT NULL, unchanged INTEGER NOT NULL, rejected INTEGER NOT NULL, dest_rows INTEGER NOT NULL, "
    "dest_id TEXT NOT NULL, dialect INTEGER NOT NULL, flags INTEGER NOT NULL, tries INTEGER NOT NULL, "
    "duration_ms INTEGER NOT NULL) STRICT;"
    "CREATE INDEX receipt_at ON receipt(at_ms);"
    "CREATE INDEX receipt_path ON receipt(path);";

/* Only ever append: what is in a release has been run on files of users. */
const struct ledger_step ledger_steps[] = {
    {schema_1},
};
const int ledger_step_count = sizeof(ledger_steps) / sizeof(ledger_steps[0]);

/* The first column of the first row of SQL, copied; NULL: no row or a failure, which ERR tells. */
static char *ask(struct ledger_tx *tx, const char *sql, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    char *answer = NULL;
    int rc = sqlite3_prepare_v2(tx->db, sql, -1, &stmt, NULL);
    if (rc == SQLITE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(stmt, 0);
        answer = column_failed(stmt) ? NULL : strdup(text != NULL ? text : "");
        if (answer == NULL)
            err_nomem(err);
        rc = SQLITE_OK;
    }
    if (rc != SQLITE_OK && rc != SQLITE_DONE)
        ledger_sqlite_error(tx, rc, err);
    sqlite3_finalize(stmt);
    return answer;
}

static enum err_code ask_int(struct ledger_tx *tx, const char *sql, int64_t *ret, struct err *err)
{
    err_clear(err);
    char *answer = ask(tx, sql, err);
    *ret = answer != NULL ? strtoll(answer, NULL, 10) : 0;
    free(answer);
    return err->code;
}

static int on_wal(void *arg, sqlite3 *db, const char *name, int frames)
{
    (void)db;
    (void)name;
    ((struct ledger_tx *)arg)->wal_frames = frames;
    return SQLITE_OK;
}

const char *ledger_real_place(const char *path, char *ret, size_t size)
{
    char folder[PATH_MAX], real[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash == NULL) /* ":memory:", or a name in the working folder, which is always a real one */
        return path;
    int n = (int)(slash - path) + 1;
    if (snprintf(folder, sizeof(folder), "%.*s", n, path) != n || n >= (int)sizeof(folder) ||
        realpath(folder, real) == NULL)
        return path;
    int length = snprintf(ret, size, "%s%s", strcmp(real, "/") == 0 ? "" : real, slash);
    return length > 0 && (size_t)length < size ? ret : path;
}

enum err_code ledger_connect(const char *path, int flags, struct ledger_tx **ret, struct err *err)
{
    err_clear(err);
    *ret = NULL;
    struct ledger_tx *tx = calloc(1, sizeof(*tx));
    if (tx == NULL || (tx->path = strdup(path)) == NULL) {
        free(tx);
        return err_nomem(err);
    }
    /* One thread at a time is certain: no mutex. No following of a link that somebody put at our name. */
    char place[PATH_MAX];
    const char *name = (flags & SQLITE_OPEN_URI) != 0 ? path : ledger_real_place(path, place, sizeof(place));
    int rc = sqlite3_open_v2(name, &tx->db, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_NOFOLLOW, NULL);
    if (rc != SQLITE_OK) {
        ledger_sqlite_error(tx, tx->db != NULL ? sqlite3_extended_errcode(tx->db) : rc, err);
        ledger_tx_free(tx);
        return err->code;
    }
    sqlite3_extended_result_codes(tx->db, 1);
    sqlite3_db_config(tx->db, SQLITE_DBCONFIG_LOOKASIDE, NULL, 256, 100);
    sqlite3_db_config(tx->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(tx->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_busy_timeout(tx->db, LEDGER_BUSY_MS);
    sqlite3_limit(tx->db, SQLITE_LIMIT_LENGTH, 64 << 20); /* a forged length can't make us allocate more */
    /* SQLite reads the header for some of these; a damaged one, or one that is being written, is told by the caller's
     * first query, where it is looked for. */
    rc = sqlite3_exec(tx->db,
                      "PRAGMA cache_size = -6144; PRAGMA mmap_size = 0; PRAGMA cell_size_check = ON; "
                      "PRAGMA recursive_triggers = OFF;",
                      NULL, NULL, NULL);
    if (rc != SQLITE_OK && rc != SQLITE_ERROR && (rc & 0xff) != SQLITE_READONLY && !ledger_is_corrupt(rc)) {
        ledger_sqlite_error(tx, rc, err);
        ledger_tx_free(tx);
        return err->code;
    }
    *ret = tx;
    return ERR_NONE;
}

/* The settings of a connection that writes. */
static enum err_code set_up_writing(struct ledger_tx *tx, struct err *err)
{
    char *mode = ask(tx, "PRAGMA journal_mode = WAL", err);
    bool is_wal = mode != NULL && strcmp(mode, "wal") == 0;
    free(mode);
    if (err->code != ERR_NONE)
        return err->code;
    if (!is_wal)
        return err_set(
            err, ERR_SYSTEM, false,
            "ledger %s: its file system has no shared memory for SQLite's WAL mode; put `state` on a local disk",
            tx->path);
    sqlite3_wal_hook(tx->db, on_wal, tx); /* also ends SQLite's own checkpoints: we choose the moment */
    return ledger_exec(tx, "PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 4194304; PRAGMA secure_delete = OFF",
                       err);
}

enum err_code ledger_migrate(struct ledger_tx *tx, const struct ledger_step *steps, int count, struct err *err)
{
    int64_t version;
    char sql[256];
    if (ask_int(tx, "PRAGMA user_version", &version, err) != ERR_NONE || version >= count)
        return err->code;
    if (ledger_exec(tx, "BEGIN IMMEDIATE", err) != ERR_NONE)
        return err->code;
    /* Again, now that nobody else can write: another process may have been quicker. */
    if (ask_int(tx, "PRAGMA user_version", &version, err) != ERR_NONE)
        goto roll_back;
    for (int64_t i = version; i < count; i++)
        if (ledger_exec(tx, steps[i].sql, err) != ERR_NONE)
            goto roll_back;
    if (version < count) {
        snprintf(sql, sizeof(sql),
                 "INSERT INTO meta(key, value) VALUES ('schema', '%d') ON CONFLICT(key) DO UPDATE SET value = "
                 "excluded.value; PRAGMA user_version = %d; PRAGMA application_id = %d",
                 count, count, LEDGER_APPLICATION_ID);
        if (ledger_exec(tx, sql, err) != ERR_NONE)
            goto roll_back;
    }
    if (ledger_exec(tx, "COMMIT", err) == ERR_NONE)
        return ERR_NONE;
roll_back:
    sqlite3_exec(tx->db, "ROLLBACK", NULL, NULL, NULL);
    return err->code;
}

/* ---- is it sound? ---- */

/* Every object of schema version VERSION must be there word by word; more (an index of the operator's) is allowed. */
static enum err_code check_schema(struct ledger_tx *tx, int version, bool *ret_ok, struct err *err)
{
    struct ledger_tx *model;
    sqlite3_stmt *wanted = NULL;
    sqlite3_stmt *found = NULL;
    *ret_ok = false;
    if (ledger_connect(":memory:", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &model, err) != ERR_NONE)
        return err->code;
    int rc = SQLITE_OK;
    for (int i = 0; i < version && rc == SQLITE_OK; i++)
        rc = sqlite3_exec(model->db, ledger_steps[i].sql, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_prepare_v2(model->db, "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL", -1, &wanted,
                                NULL);
    if (rc != SQLITE_OK) {
        ledger_sqlite_error(model, rc, err);
        goto free_model;
    }
    rc = sqlite3_prepare_v2(tx->db, "SELECT 1 FROM sqlite_schema WHERE name = ?1 AND sql = ?2", -1, &found, NULL);
    bool ok = true;
    while (rc == SQLITE_OK && ok && sqlite3_step(wanted) == SQLITE_ROW) {
        sqlite3_bind_value(found, 1, sqlite3_column_value(wanted, 0));
        sqlite3_bind_value(found, 2, sqlite3_column_value(wanted, 1));
        int step = sqlite3_step(found);
        ok = step == SQLITE_ROW;
        if (step != SQLITE_ROW && step != SQLITE_DONE)
            rc = step;
        sqlite3_reset(found);
    }
    if (rc != SQLITE_OK)
        ledger_sqlite_error(tx, rc, err);
    else
        *ret_ok = ok;
free_model:
    sqlite3_finalize(found);
    sqlite3_finalize(wanted);
    ledger_tx_free(model);
    return err->code;
}

static void mark_name(const char *path, char *ret, size_t size)
{
    snprintf(ret, size, "%s.suspect", path);
}

void ledger_mark_suspect(const char *path)
{
    char name[4096];
    mark_name(path, name, sizeof(name));
    /* Best effort: without it the next start may take a while longer to meet the corruption again. */
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0)
        close(fd);
}

/* Differs after each start of the machine; "" where it can't be known. */
static void boot_id(char *ret, size_t size)
{
    ret[0] = '\0';
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, ret, size - 1);
    close(fd);
    ret[n > 0 ? n : 0] = '\0';
    ret[strcspn(ret, "\n")] = '\0';
}

static bool wants_full_check(struct ledger_tx *tx, const char *path, int64_t file_size, struct err *err)
{
    char name[4096];
    char now[64];
    mark_name(path, name, sizeof(name));
    if (file_size < LEDGER_SMALL_BYTES || access(name, F_OK) == 0)
        return true;
    boot_id(now, sizeof(now));
    char *then = ask(tx, "SELECT value FROM meta WHERE key = 'open_since_boot'", err);
    bool wants = then != NULL && (strcmp(then, now) != 0 || now[0] == '\0');
    free(then);
    return wants;
}

/* Why the file can't be used as it is, into RET; "" it can. ERR: neither; it can't be reached. */
static enum err_code diagnose(struct ledger_tx *tx, const char *path, int64_t file_size, char *ret, size_t size,
                              struct err *err)
{
    int64_t version;
    int64_t said;
    int64_t application;
    bool schema_ok;
    ret[0] = '\0';
    if (sqlite3_db_readonly(tx->db, "main") == 1 && access(path, W_OK) == 0) {
        snprintf(ret, size, "its header forbids writing");
        return ERR_NONE;
    }
    if (ask_int(tx, "PRAGMA user_version", &version, err) != ERR_NONE ||
        ask_int(tx, "PRAGMA application_id", &application, err) != ERR_NONE)
        return err->code;
    if (version == 0 && application == 0) {
        int64_t objects;
        if (ask_int(tx, "SELECT count(*) FROM sqlite_schema", &objects, err) == ERR_NONE && objects > 0)
            snprintf(ret, size, "it is a database, but no ledger");
        return err->code; /* a file whose maker was killed before the first table: like a new one */
    }
    if (ask_int(tx, "SELECT value FROM meta WHERE key = 'schema'", &said, err) != ERR_NONE)
        return err->code;
    /* Both places must agree on a newer version, so that a flipped bit isn't taken for the future. */
    if (version > ledger_step_count && said == version && application == LEDGER_APPLICATION_ID)
        return err_set(
            err, ERR_CONFIG, false,
            "ledger %s was made by a newer chute (schema %lld, this one knows %d): use that chute, or another `state`",
            path, (long long)version, ledger_step_count);
    if (application != LEDGER_APPLICATION_ID || version != said || version < 1) {
        snprintf(ret, size, "its header is damaged");
        return ERR_NONE;
    }
    if (check_schema(tx, (int)version, &schema_ok, err) != ERR_NONE)
        return err->code;
    if (!schema_ok) {
        snprintf(ret, size, "its tables are not as chute made them");
        return ERR_NONE;
    }
    if (!wants_full_check(tx, path, file_size, err))
        return err->code;
    char *verdict = ask(tx, "PRAGMA quick_check(1)", err);
    if (verdict != NULL && strcmp(verdict, "ok") != 0)
        snprintf(ret, size, "%.200s", verdict);
    free(verdict);
    return err->code;
}

/* Unsound by SQLite's own words? Also plain SQLITE_ERROR: a schema whose text is damaged does not parse. */
static bool says_corrupt(const struct ledger_tx *tx)
{
    int rc = tx->last;
    return ledger_is_corrupt(rc) || (rc & 0xff) == SQLITE_ERROR || (rc & 0xff) == SQLITE_CONSTRAINT ||
           (rc & 0xff) == SQLITE_TOOBIG || (rc & 0xff) == SQLITE_MISMATCH;
}

static enum err_code locked(const char *path, struct err *err)
{
    return err_set(err, ERR_CONFIG, false,
                   "ledger %s is locked by another program (waited %d s): end it, or use another `state`", path,
                   LEDGER_BUSY_MS / 1000);
}

/* Open PATH as it is. WHY is filled when it must be recovered (and then *RET is NULL). */
static enum err_code try_open(const char *path, int64_t file_size, struct ledger_tx **ret, char *why, size_t why_size,
                              struct err *err)
{
    struct ledger_tx *tx;
    char boot[64];
    why[0] = '\0';
    *ret = NULL;
    if (ledger_connect(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &tx, err) != ERR_NONE)
        return err->code;
    bool is_empty = file_size < 0;
    if ((is_empty || diagnose(tx, path, file_size, why, why_size, err) == ERR_NONE) && why[0] == '\0' &&
        set_up_writing(tx, err) == ERR_NONE && ledger_migrate(tx, ledger_steps, ledger_step_count, err) == ERR_NONE) {
        boot_id(boot, sizeof(boot));
        ledger_meta_put(tx, "open_since_boot", boot, err);
    }
    if (err->code == ERR_NONE && why[0] == '\0') {
        *ret = tx;
        return ERR_NONE;
    }
    if (err->code == ERR_SYSTEM && (tx->broken & 0xff) == SQLITE_BUSY) {
        locked(path, err);
    } else if (err->code == ERR_SYSTEM && says_corrupt(tx)) {
        snprintf(why, why_size, "%s", sqlite3_errstr(tx->last));
        err_clear(err);
    }
    ledger_tx_free(tx);
    return err->code;
}

/* Our own failed beginning: the next start must not take it for a ledger that lost its content. */
static void remove_empty(const char *path)
{
    struct stat st;
    if (stat(path, &st) == 0 && st.st_size == 0)
        unlink(path);
}

enum err_code ledger_open_file(const char *path, struct ledger_tx **ret, struct ledger_opened *ret_opened,
                               struct err *err)
{
    char why[256];
    bool was_cut_off;
    *ret_opened = (struct ledger_opened){0};
    *ret = NULL;
    err_clear(err);
    if (ledger_recover_resume(path, &was_cut_off, ret_opened, err) != ERR_NONE)
        return err->code;
    /* Twice: as it is, and after a recovery, which makes a sound one. */
    for (int turn = 0; turn < 2; turn++) {
        struct stat st;
        if (stat(path, &st) != 0 && errno != ENOENT)
            return err_set(err, ERR_SYSTEM, true, "ledger %s: %s", path, strerror(errno));
        bool exists = access(path, F_OK) == 0;
        if (!exists && turn == 0 && !was_cut_off)
            ret_opened->is_new = true;
        if (exists && !S_ISREG(st.st_mode))
            return err_set(err, ERR_CONFIG, false, "ledger %s: expected a file, found something else", path);
        if (exists && st.st_size < 512) /* SQLite would take it for a new one, without a word */
            snprintf(why, sizeof(why), "it was cut to %lld bytes", (long long)st.st_size);
        else if (try_open(path, exists ? st.st_size : -1, ret, why, sizeof(why), err) != ERR_NONE) {
            if (!exists)
                remove_empty(path);
            return err->code;
        }
        if (*ret != NULL) {
            char name[4096];
            mark_name(path, name, sizeof(name));
            unlink(name);
            return ERR_NONE;
        }
        if (ledger_recover(path, why, ret_opened, err) != ERR_NONE)
            return err->code;
    }
    return err_set(err, ERR_SYSTEM, false, "ledger %s: made anew, and corrupt again: %s; check the disk", path, why);
}

enum err_code ledger_mark_closed(struct ledger_tx *tx, struct err *err)
{
    return ledger_meta_put(tx, "open_since_boot", NULL, err);
}
