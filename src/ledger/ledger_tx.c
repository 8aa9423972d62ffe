/*
 * ledger_tx.c -- the commands' way in: the file directly, beside a daemon or without one.
 *
 * Reading must leave no trace. SQLite's WAL mode makes that a matter of care, because a plain read-only connection
 * creates PATH-shm and PATH-wal when they are missing:
 *  - PATH-shm is there (a daemon runs, or was killed): use it as it is (readonly_shm); if nobody who could repair it
 * has it open, SQLite reads the WAL into memory of its own.
 *  - it is not, and there is no WAL: the daemon closed well and PATH is all there is: read it as an immutable file,
 *    and look afterwards whether a daemon started meanwhile.
 *  - it is not, but a WAL is: somebody copied or deleted files; only a writer can put that right.
 */
#include "ledger_internal.h"

#include "buf.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TORN_TRIES 100
#define TORN_WAIT_US 10000

static bool stat_tail(const char *path, const char *tail, struct stat *ret)
{
    struct buf name;
    buf_init(&name);
    buf_adds(&name, path);
    buf_adds(&name, tail);
    bool ok = !name.failed && stat(name.data, ret) == 0;
    buf_done(&name);
    return ok;
}

static int64_t mtime_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

/* "file:PATH?OPTIONS"; what has a meaning in a URI is escaped. */
static void add_uri(struct buf *ret, const char *path, const char *options)
{
    buf_adds(ret, "file:");
    for (const char *c = path; *c != '\0'; c++) {
        if (*c == '?' || *c == '#' || *c == '%')
            buf_printf(ret, "%%%02x", (unsigned)(unsigned char)*c);
        else
            buf_addc(ret, *c);
    }
    buf_adds(ret, options);
}

static enum err_code connect_reading(const char *path, struct ledger_tx **ret, struct err *err)
{
    struct stat st;
    struct stat wal;
    struct stat shm;
    struct buf uri;
    char place[PATH_MAX];
    if (stat(path, &st) != 0)
        return err_set(err, ERR_SYSTEM, false,
                       errno == ENOENT ? "no ledger at %s: has `chute run` been started with this `state`?"
                                       : "ledger %s can't be read",
                       path);
    bool has_shm = stat_tail(path, "-shm", &shm);
    if (!has_shm && stat_tail(path, "-wal", &wal) && wal.st_size > 0)
        return err_set(
            err, ERR_SYSTEM, true,
            "ledger %s: its -wal file is there but its -shm file is not; start `chute run` once to put it right", path);
    buf_init(&uri);
    add_uri(&uri, ledger_real_place(path, place, sizeof(place)),
            has_shm ? "?mode=ro&readonly_shm=1" : "?mode=ro&immutable=1");
    if (uri.failed)
        err_nomem(err);
    else
        ledger_connect(uri.data, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, ret, err);
    buf_done(&uri);
    if (err->code != ERR_NONE)
        return err->code;
    char *copy = strdup(path); /* for messages: not the URI */
    if (copy != NULL) {
        free((*ret)->path);
        (*ret)->path = copy;
    }
    (*ret)->is_immutable = !has_shm;
    (*ret)->immutable_mtime_ns = mtime_ns(&st);
    return ERR_NONE;
}

static enum err_code pragma(struct ledger_tx *tx, const char *sql, int64_t *ret, struct err *err)
{
    struct query q;
    bool has_row;
    *ret = 0;
    if (query_begin(&q, tx, sql, err) != ERR_NONE || query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    *ret = column_int(q.stmt, 0);
    query_end(&q);
    return ERR_NONE;
}

static enum err_code check_version(struct ledger_tx *tx, struct err *err)
{
    int64_t version;
    int64_t application;
    if (pragma(tx, "PRAGMA user_version", &version, err) != ERR_NONE ||
        pragma(tx, "PRAGMA application_id", &application, err) != ERR_NONE)
        return err->code;
    if (application != LEDGER_APPLICATION_ID)
        return err_set(err, ERR_SYSTEM, false, "%s is no ledger of chute", tx->path);
    if (version > ledger_step_count)
        return err_set(err, ERR_CONFIG, false, "ledger %s was made by a newer chute (schema %lld, this one knows %d)",
                       tx->path, (long long)version, ledger_step_count);
    if (version < ledger_step_count)
        return err_set(err, ERR_CONFIG, false,
                       "ledger %s was made by an older chute (schema %lld, this one needs %d): start `chute run` once",
                       tx->path, (long long)version, ledger_step_count);
    return ERR_NONE;
}

static enum err_code connect_writing(const char *path, struct ledger_tx **ret, struct err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return err_set(err, ERR_SYSTEM, false,
                       errno == ENOENT ? "no ledger at %s: has `chute run` been started with this `state`?"
                                       : "ledger %s can't be read",
                       path);
    if (ledger_connect(path, SQLITE_OPEN_READWRITE, ret, err) != ERR_NONE)
        return err->code;
    return ledger_exec(*ret, "PRAGMA synchronous = FULL; PRAGMA secure_delete = OFF", err);
}

static enum err_code open_once(const char *path, bool read_only, struct ledger_tx **ret, bool *ret_is_torn,
                               struct err *err)
{
    struct ledger_tx *tx = NULL;
    err_clear(err);
    *ret = NULL;
    if ((read_only ? connect_reading(path, &tx, err) : connect_writing(path, &tx, err)) == ERR_NONE &&
        ledger_exec(tx, read_only ? "BEGIN" : "BEGIN IMMEDIATE", err) == ERR_NONE &&
        check_version(tx, err) == ERR_NONE) {
        *ret = tx;
        return ERR_NONE;
    }
    *ret_is_torn = read_only && tx != NULL && (tx->last & 0xff) == SQLITE_READONLY;
    ledger_tx_free(tx);
    return err->code;
}

/*
 * Who reads the index of the WAL while the daemon writes it sees half of it, and takes that for one that a killed
 * process left and only a writer may mend ("attempt to write a readonly database"): a moment later it is whole.
 */
enum err_code ledger_tx_open(const char *path, bool read_only, struct ledger_tx **ret, struct err *err)
{
    bool is_torn = false;
    for (unsigned tries = 0; open_once(path, read_only, ret, &is_torn, err) != ERR_NONE; tries++) {
        if (!is_torn || tries == TORN_TRIES)
            return err->code;
        is_torn = false;
        usleep(TORN_WAIT_US);
    }
    return ERR_NONE;
}

bool ledger_stood_still(const struct ledger_tx *tx)
{
    struct stat st;
    struct stat wal;
    return stat(tx->path, &st) == 0 && mtime_ns(&st) == tx->immutable_mtime_ns && !stat_tail(tx->path, "-shm", &wal);
}

static enum err_code check_immutable(const struct ledger_tx *tx, struct err *err)
{
    if (ledger_stood_still(tx))
        return ERR_NONE;
    return err_set(err, ERR_SYSTEM, true, "ledger %s changed while it was read: run the command again", tx->path);
}

enum err_code ledger_tx_close(struct ledger_tx *tx, bool commit, struct err *err)
{
    err_clear(err);
    if (tx == NULL)
        return ERR_NONE;
    if (tx->is_immutable)
        check_immutable(tx, err);
    else if (commit && tx->broken != 0)
        ledger_sqlite_error(tx, tx->broken, err);
    else if (commit && ledger_tally_flush(tx, err) == ERR_NONE)
        ledger_exec(tx, "COMMIT", err);
    ledger_tx_free(tx); /* closing rolls back what is open */
    return err->code;
}
