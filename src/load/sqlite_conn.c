/*
 * sqlite_conn.c -- the connection: opening, waiting for locks, statements, and errors in a person's words.
 *
 * A database that exists keeps its journal mode, whatever it is; what chute creates is in WAL mode. user_version and
 * application_id belong to whoever made the database: we keep what we need in tables whose names begin with _chute_.
 */
#include "sqlite_internal.h"

#include "clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CACHE_KIB_SMALL 2048
#define CACHE_KIB_LARGE 8192
#define WAL_KEEP_BYTES (16 * 1024 * 1024) /* a WAL that grew larger is cut back to this */
#define SCHEMA_VERSION 1

bool conn_is_stopped(const struct conn *c)
{
    return (c->current != NULL && atomic_load_explicit(&c->current->stop, memory_order_relaxed)) ||
           (c->script_stop != NULL && atomic_load_explicit(c->script_stop, memory_order_relaxed));
}

/* Ends a long statement when its load is aborted. */
static int on_progress(void *arg)
{
    return conn_is_stopped(arg);
}

/* Wait for a lock in short naps, so that abort() is heard; SQLite's own handler can't be interrupted. */
static int on_busy(void *arg, int times)
{
    static const long naps_ms[] = {1, 1, 2, 2, 3, 5, 5, 10};
    struct conn *c = arg;
    uint64_t now = clock_mono_ms();
    if (times == 0)
        c->wait_began_ms = now;
    if (conn_is_stopped(c) || now - c->wait_began_ms >= c->lock_timeout_ms)
        return 0;
    size_t i = (size_t)times < sizeof(naps_ms) / sizeof(naps_ms[0]) ? (size_t)times : 7;
    struct timespec nap = {0, naps_ms[i] * 1000000L};
    nanosleep(&nap, NULL);
    return 1;
}

static enum err_code classify(struct conn *c, int rc, int extended, bool *ret_retryable, const char **ret_advice)
{
    int why = c->db != NULL ? sqlite3_system_errno(c->db) : 0;
    *ret_retryable = true;
    *ret_advice = "";
    switch (rc) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        *ret_advice = ": another program holds its lock; it is tried again";
        return ERR_REMOTE;
    case SQLITE_FULL:
        *ret_advice = ": make room on its disk; it is tried again";
        return ERR_SYSTEM;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
        *ret_retryable = false;
        *ret_advice = ": make the file and its folder writable for this user";
        return ERR_DENIED;
    case SQLITE_CANTOPEN:
        if (why == EACCES || why == EPERM || why == EROFS || why == EISDIR) {
            *ret_retryable = false;
            *ret_advice = why == EISDIR ? ": name a file in that folder"
                                        : ": make the file and its folder readable and writable for this user";
            return ERR_DENIED;
        }
        c->is_homeless = why == ENOENT;
        *ret_advice = why == ENOENT ? ": its folder does not exist; create or mount it" : "";
        return ERR_SYSTEM;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        *ret_retryable = false;
        *ret_advice = rc == SQLITE_NOTADB
                          ? ": the file is no SQLite database; move it away or choose another path"
                          : ": check it (sqlite3 FILE 'pragma integrity_check'), restore or move it away";
        return ERR_DENIED;
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_TOOBIG:
    case SQLITE_ERROR:
        /* A plain SQL error about a table or column that was there a moment ago: somebody changed the schema beside us.
         */
        *ret_retryable =
            rc == SQLITE_ERROR && extended == SQLITE_ERROR && strstr(sqlite3_errmsg(c->db), LITE_PREFIX) != NULL;
        return *ret_retryable ? ERR_REMOTE : ERR_INPUT;
    case SQLITE_SCHEMA:
    case SQLITE_PROTOCOL:
        return ERR_REMOTE;
    default:
        return ERR_SYSTEM;
    }
}

enum err_code conn_err(struct conn *c, int rc, struct err *err, const char *fmt, ...)
{
    char what[256];
    const char *advice;
    bool is_retryable;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    int now = c->db != NULL ? sqlite3_extended_errcode(c->db) : rc;
    int extended = now != SQLITE_OK && now != SQLITE_ROW && now != SQLITE_DONE ? now : rc;
    if (conn_is_stopped(c) || (extended & 0xff) == SQLITE_INTERRUPT)
        return err_set(err, ERR_STOPPED, true, "%s: stopped", what);
    if ((extended & 0xff) == SQLITE_NOMEM)
        return err_nomem(err);
    enum err_code code = classify(c, extended & 0xff, extended, &is_retryable, &advice);
    const char *text = c->db != NULL && now == extended ? sqlite3_errmsg(c->db) : sqlite3_errstr(extended);
    int why = c->db != NULL ? sqlite3_system_errno(c->db) : 0;
    bool tells_why = why != 0 && ((extended & 0xff) == SQLITE_IOERR || (extended & 0xff) == SQLITE_CANTOPEN);
    bool names_file = code == ERR_DENIED || code == ERR_SYSTEM || (extended & 0xff) == SQLITE_BUSY;
    return err_set(err, code, is_retryable, "%s: %s%s%s%s%s%s", what, names_file ? c->path : "", names_file ? ": " : "",
                   text, tells_why ? ": " : "", tells_why ? strerror(why) : "", advice);
}

enum err_code conn_exec(struct conn *c, struct err *err, const char *sql)
{
    int rc = sqlite3_exec(c->db, sql, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        return ERR_NONE;
    char head[48];
    snprintf(head, sizeof(head), "%.40s", sql);
    return conn_err(c, rc, err, "%s", head);
}

enum err_code conn_execf(struct conn *c, struct err *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *sql = sqlite3_vmprintf(fmt, ap);
    va_end(ap);
    if (sql == NULL)
        return err_nomem(err);
    enum err_code code = conn_exec(c, err, sql);
    sqlite3_free(sql);
    return code;
}

static uint64_t hash_text(const char *s)
{
    uint64_t h = 14695981039346656037u;
    for (; *s != '\0'; s++)
        h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

static void forget_statement(struct conn_statement *s)
{
    sqlite3_finalize(s->stmt);
    free(s->sql);
    memset(s, 0, sizeof(*s));
}

void conn_forget_statements(struct conn *c)
{
    for (size_t i = 0; i < CONN_STATEMENTS; i++)
        forget_statement(&c->statements[i]);
}

enum err_code conn_prepare(struct conn *c, const char *sql, sqlite3_stmt **ret, struct err *err)
{
    uint64_t hash = hash_text(sql);
    struct conn_statement *oldest = &c->statements[0];
    for (size_t i = 0; i < CONN_STATEMENTS; i++) {
        struct conn_statement *s = &c->statements[i];
        if (s->stmt != NULL && s->hash == hash && strcmp(s->sql, sql) == 0) {
            s->used = ++c->uses;
            sqlite3_reset(s->stmt);
            *ret = s->stmt;
            return ERR_NONE;
        }
        if (s->used < oldest->used)
            oldest = s;
    }
    forget_statement(oldest);
    int rc = sqlite3_prepare_v3(c->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &oldest->stmt, NULL);
    if (rc != SQLITE_OK)
        return conn_err(c, rc, err, "prepare");
    oldest->sql = strdup(sql);
    if (oldest->sql == NULL) {
        forget_statement(oldest);
        return err_nomem(err);
    }
    oldest->hash = hash;
    oldest->used = ++c->uses;
    *ret = oldest->stmt;
    return ERR_NONE;
}

enum err_code conn_run(struct conn *c, sqlite3_stmt *stmt, struct err *err, const char *what)
{
    int rc = sqlite3_step(stmt);
    if (rc == SQLITE_DONE || rc == SQLITE_ROW) {
        sqlite3_reset(stmt);
        return ERR_NONE;
    }
    conn_err(c, rc, err, "%s", what);
    sqlite3_reset(stmt);
    return err != NULL ? err->code : ERR_SYSTEM;
}

enum err_code conn_word(struct conn *c, struct err *err, const char *sql)
{
    sqlite3_stmt *stmt;
    enum err_code code = conn_prepare(c, sql, &stmt, err);
    return code != ERR_NONE ? code : conn_run(c, stmt, err, sql);
}

enum err_code conn_number(struct conn *c, const char *sql, int64_t default_value, int64_t *ret, struct err *err)
{
    sqlite3_stmt *stmt;
    int rc = sqlite3_prepare_v2(c->db, sql, -1, &stmt, NULL);
    if (rc != SQLITE_OK)
        return conn_err(c, rc, err, "ask for a number");
    rc = sqlite3_step(stmt);
    *ret =
        rc == SQLITE_ROW && sqlite3_column_type(stmt, 0) != SQLITE_NULL ? sqlite3_column_int64(stmt, 0) : default_value;
    enum err_code code = rc == SQLITE_ROW || rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "ask for a number");
    sqlite3_finalize(stmt);
    return code;
}

bool conn_in_transaction(const struct conn *c)
{
    return c->db != NULL && sqlite3_get_autocommit(c->db) == 0;
}

enum err_code conn_begin(struct conn *c, struct err *err)
{
    sqlite3_stmt *stmt;
    parts_forget(c);
    known_forget(c);
    enum err_code code = conn_prepare(c, "BEGIN IMMEDIATE", &stmt, err);
    return code != ERR_NONE ? code : conn_run(c, stmt, err, "begin");
}

enum err_code conn_commit(struct conn *c, struct err *err)
{
    sqlite3_stmt *stmt;
    parts_forget(c);
    enum err_code code = conn_prepare(c, "COMMIT", &stmt, err);
    return code != ERR_NONE ? code : conn_run(c, stmt, err, "commit");
}

void conn_rollback(struct conn *c)
{
    parts_forget(c);
    known_forget(c);
    if (!conn_in_transaction(c))
        return;
    /* An aborted load must not keep its own rollback from running. */
    struct load *current = c->current;
    const _Atomic bool *script_stop = c->script_stop;
    c->current = NULL;
    c->script_stop = NULL;
    sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    c->current = current;
    c->script_stop = script_stop;
    buf_clear(&c->stage); /* the temporary stage may have gone with it */
}

enum err_code conn_greedy(struct conn *c, bool is_on, struct err *err)
{
    if (c->is_greedy == is_on)
        return ERR_NONE;
    enum err_code code = conn_execf(c, err, "PRAGMA cache_size=-%d", is_on ? CACHE_KIB_LARGE : CACHE_KIB_SMALL);
    /*
     * In WAL mode a commit that is not synced can be lost, but never harms the database, and the next synced one makes
     * it durable as well. A rollback journal gives no such promise: there every commit is synced.
     */
    if (code == ERR_NONE && c->is_wal)
        code = conn_exec(c, err, is_on ? "PRAGMA synchronous=NORMAL" : "PRAGMA synchronous=FULL");
    if (!is_on)
        sqlite3_db_release_memory(c->db);
    if (code == ERR_NONE)
        c->is_greedy = is_on;
    return code;
}

/* ---- opening ---- */

/* Who we are, so that a later process can tell whether we still live: a pid alone comes back, and each container has
 * a 1. */
static void tell_owner(char *ret, size_t size)
{
    char boot[64] = "", space[64] = "", line[1024] = "", start[32] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f != NULL) {
        if (fgets(boot, sizeof(boot), f) != NULL)
            boot[strcspn(boot, "\n")] = '\0';
        fclose(f);
    }
    ssize_t n = readlink("/proc/self/ns/pid", space, sizeof(space) - 1);
    space[n > 0 ? n : 0] = '\0';
    f = fopen("/proc/self/stat", "re");
    if (f != NULL) {
        /* Field 22 is the start time; the second one, the name, may hold anything up to the last ')'. */
        char *at = fgets(line, sizeof(line), f) != NULL ? strrchr(line, ')') : NULL;
        for (int field = 2; at != NULL && field < 22; field++)
            at = strchr(at + 1, ' ');
        if (at != NULL)
            snprintf(start, sizeof(start), "%.*s", (int)strcspn(at + 1, " "), at + 1);
        fclose(f);
    }
    /* The last word tells two destinations of one process apart. */
    static _Atomic unsigned connections;
    snprintf(ret, size, "%.40s %.24s %ld %.20s %u", boot, space, (long)getpid(), start, ++connections);
}

void conn_init(struct conn *c, const char *path, uint64_t lock_timeout_ms)
{
    memset(c, 0, sizeof(*c));
    c->path = path;
    c->lock_timeout_ms = lock_timeout_ms;
    buf_init(&c->stage);
    arena_init(&c->known.arena);
    tell_owner(c->owner, sizeof(c->owner));
}

void conn_close(struct conn *c)
{
    conn_rollback(c);
    conn_forget_statements(c);
    buf_clear(&c->stage);
    sqlite3_close(c->db);
    c->db = NULL;
    c->is_greedy = false;
}

void conn_done(struct conn *c)
{
    conn_close(c);
    known_done(c);
    buf_done(&c->stage);
}

static enum err_code make_system_tables(struct conn *c, struct err *err)
{
    static const char sql[] =
        "CREATE TABLE IF NOT EXISTS _chute_meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);"
        "CREATE TABLE IF NOT EXISTS _chute_loads(id INTEGER PRIMARY KEY, load_key TEXT NOT NULL, instance TEXT NOT "
        "NULL,"
        " source TEXT NOT NULL, flow TEXT NOT NULL, path TEXT NOT NULL, hash TEXT NOT NULL, \"table\" TEXT NOT NULL "
        "COLLATE NOCASE,"
        " at TEXT NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL, parsed INTEGER NOT NULL, inserted INTEGER NOT "
        "NULL,"
        " updated INTEGER NOT NULL, unchanged INTEGER NOT NULL, rejected INTEGER NOT NULL);"
        "CREATE UNIQUE INDEX IF NOT EXISTS _chute_loads_attempt ON _chute_loads(load_key, instance, \"table\");"
        "CREATE INDEX IF NOT EXISTS _chute_loads_version ON _chute_loads(\"table\", path, hash);"
        "CREATE INDEX IF NOT EXISTS _chute_loads_gone ON _chute_loads(\"table\") WHERE kind IN ('drop', 'empty');"
        "CREATE INDEX IF NOT EXISTS _chute_loads_last ON _chute_loads(\"table\");"
        "CREATE TABLE IF NOT EXISTS _chute_tables(name TEXT PRIMARY KEY COLLATE NOCASE, sql TEXT NOT NULL,"
        " instance TEXT NOT NULL, flow TEXT NOT NULL, at TEXT NOT NULL, untyped TEXT NOT NULL);"
        "CREATE TABLE IF NOT EXISTS _chute_work(name TEXT PRIMARY KEY, instance TEXT NOT NULL, owner TEXT NOT NULL,"
        " beat INTEGER NOT NULL);";
    uint8_t random[16];
    char hex[33];
    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return err_set(err, ERR_SYSTEM, true, "no random bytes for the database's identity: %s", strerror(errno));
    for (size_t i = 0; i < sizeof(random); i++)
        snprintf(hex + 2 * i, 3, "%02x", random[i]);
    enum err_code code = conn_begin(c, err);
    if (code == ERR_NONE)
        code = conn_exec(c, err, sql);
    /* Another chute may have been quicker: what is there stays. */
    if (code == ERR_NONE)
        code = conn_execf(c, err, "INSERT OR IGNORE INTO _chute_meta VALUES('identity', %Q), ('version', '%d')", hex,
                          SCHEMA_VERSION);
    if (code == ERR_NONE)
        code = conn_commit(c, err);
    if (code != ERR_NONE) {
        conn_rollback(c);
        return err_wrap(err, "prepare the database for chute");
    }
    return ERR_NONE;
}

/* RET_FOUND false: the system tables are not there. */
static enum err_code read_meta(struct conn *c, bool *ret_found, struct err *err)
{
    sqlite3_stmt *stmt;
    int64_t tables;
    *ret_found = false;
    enum err_code code = conn_number(c,
                                     "SELECT count(*) FROM sqlite_schema WHERE type='table' AND name IN"
                                     " ('_chute_meta', '_chute_loads', '_chute_tables', '_chute_work')",
                                     0, &tables, err);
    if (code != ERR_NONE || tables < 4)
        return code;
    int rc = sqlite3_prepare_v2(c->db, "SELECT key, value FROM _chute_meta", -1, &stmt, NULL);
    if (rc != SQLITE_OK)
        return conn_err(c, rc, err, "read _chute_meta");
    long version = 0;
    c->identity[0] = '\0';
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        const char *key = (const char *)sqlite3_column_text(stmt, 0);
        const char *value = (const char *)sqlite3_column_text(stmt, 1);
        if (key != NULL && value != NULL && strcmp(key, "identity") == 0)
            snprintf(c->identity, sizeof(c->identity), "%s", value);
        else if (key != NULL && value != NULL && strcmp(key, "version") == 0)
            version = strtol(value, NULL, 10);
    }
    code = rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "read _chute_meta");
    sqlite3_finalize(stmt);
    if (code == ERR_NONE && version > SCHEMA_VERSION)
        return err_set(err, ERR_DENIED, false,
                       "%s: a newer chute keeps its receipts here (version %ld, this one knows %d):"
                       " use that one",
                       c->path, version, SCHEMA_VERSION);
    *ret_found = c->identity[0] != '\0' && version != 0;
    return code;
}

static enum err_code read_journal_mode(struct conn *c, struct err *err)
{
    sqlite3_stmt *stmt;
    int rc = sqlite3_prepare_v2(c->db, "PRAGMA journal_mode", -1, &stmt, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(stmt);
    if (rc != SQLITE_ROW) {
        enum err_code code = conn_err(c, rc, err, "open");
        sqlite3_finalize(stmt);
        return code;
    }
    c->is_wal = strcmp(text_at(stmt, 0), "wal") == 0;
    sqlite3_finalize(stmt);
    return ERR_NONE;
}

static enum err_code set_up(struct conn *c, bool is_new, struct err *err)
{
    sqlite3_extended_result_codes(c->db, 1);
    sqlite3_busy_handler(c->db, on_busy, c);
    sqlite3_progress_handler(c->db, 20000, on_progress, c);
    enum err_code code = ERR_NONE;
    if (is_new)
        /* Rows arrive in bulk: larger pages than SQLite's default take a tenth less time. */
        code = conn_exec(c, err, "PRAGMA page_size=8192; PRAGMA auto_vacuum=NONE; PRAGMA journal_mode=WAL");
    if (code == ERR_NONE)
        code = read_journal_mode(c, err);
    /*
     * legacy_alter_table: a view that names the table must not keep a rename from happening, nor be rewritten by it.
     * foreign_keys off: references to the table stay as they are while another one takes its place.
     */
    if (code == ERR_NONE)
        code = conn_execf(c, err,
                          "PRAGMA synchronous=FULL; PRAGMA foreign_keys=OFF; PRAGMA legacy_alter_table=ON;"
                          "PRAGMA secure_delete=FAST; PRAGMA cache_size=-%d; PRAGMA journal_size_limit=%d;"
                          "PRAGMA cache_spill=ON; PRAGMA wal_autocheckpoint=1000",
                          CACHE_KIB_SMALL, WAL_KEEP_BYTES);
    return code != ERR_NONE ? code : merge_register(c, err);
}

static enum err_code open_new(struct conn *c, struct err *err)
{
    struct stat st;
    bool is_found;
    bool is_new = stat(c->path, &st) != 0 ? errno == ENOENT : st.st_size == 0;
    int rc =
        sqlite3_open_v2(c->path, &c->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    if (rc != SQLITE_OK)
        return conn_err(c, rc, err, "open");
    enum err_code code = set_up(c, is_new, err);
    if (code == ERR_NONE)
        code = read_meta(c, &is_found, err);
    if (code == ERR_NONE && !is_found) {
        code = make_system_tables(c, err);
        if (code == ERR_NONE)
            code = read_meta(c, &is_found, err);
        if (code == ERR_NONE && !is_found)
            return err_set(err, ERR_DENIED, false,
                           "%s: table _chute_meta has no identity: drop it, or restore the database", c->path);
    }
    if (code != ERR_NONE)
        return code;
    if (stat(c->path, &st) != 0)
        return err_set(err, ERR_SYSTEM, true, "open: %s: %s", c->path, strerror(errno));
    c->dev = st.st_dev;
    c->ino = st.st_ino;
    if (sqlite3_db_readonly(c->db, "main") == 1)
        return err_set(err, ERR_DENIED, false, "%s: is read-only: make the file and its folder writable for this user",
                       c->path);
    return ERR_NONE;
}

enum err_code conn_open(struct conn *c, struct err *err)
{
    struct stat st;
    if (c->db != NULL) {
        /* Deleted or replaced under our feet: writing on would fill a file that nobody can see. */
        if (stat(c->path, &st) == 0 && st.st_dev == c->dev && st.st_ino == c->ino)
            return ERR_NONE;
        conn_close(c);
    }
    c->is_homeless = false;
    enum err_code code = open_new(c, err);
    if (code != ERR_NONE)
        conn_close(c);
    return code;
}
