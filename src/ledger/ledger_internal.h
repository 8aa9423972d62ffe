/* ledger_internal.h -- what the files of the ledger room share: the connection, its statements, the schema. */
#ifndef CHUTE_LEDGER_INTERNAL_H
#define CHUTE_LEDGER_INTERNAL_H

#include "ledger.h"

#include <sqlite3.h>

/* "chut": PRAGMA application_id, so that `file` and we know whose database this is. */
#define LEDGER_APPLICATION_ID 0x63687574
#define LEDGER_CACHE_KIB 1024
/* So long a lock of another program is waited for. */
#define LEDGER_BUSY_MS 10000
/* Below this size every open runs a full check: it costs less than a person notices. */
#define LEDGER_SMALL_BYTES (16 << 20)

/* Bits of file.flags and receipt.flags. Stored: never renumber. The partial index file_flagged knows 10 = 2 | 8. */
#define FLAG_WAS_LOADED 1
#define FLAG_FINISH_PENDING 2
#define FLAG_TAKEN_BY_US 4
#define FLAG_DROP_PENDING 8
#define FLAG_LOADED_IS_FILE 16 /* loaded_file equals file: stored once */
#define FLAG_DUPLICATE 1
#define FLAG_CREATED_TABLE 2

#define LEDGER_STATEMENTS 40
#define LEDGER_NAMES 32
#define LEDGER_DELTAS 32

struct ledger_statement {
    const char *sql;
    bool is_owned; /* built at run time: SQL is our copy and compared as text; else compared as a pointer */
    uint64_t used; /* for the choice of which to drop */
    sqlite3_stmt *stmt;
};

struct ledger_name {
    char *text;
    int64_t id;
};

/* Files that a transaction brought into a state, less those it took out, not yet in the table `tally`. */
struct ledger_delta {
    int64_t flow;
    int state;
    int64_t n;
};

/* One connection. Memory: the page cache, LEDGER_STATEMENTS prepared statements and LEDGER_NAMES short names. */
struct ledger_tx {
    sqlite3 *db;
    char *path;
    struct ledger_statement statements[LEDGER_STATEMENTS];
    uint64_t uses;
    struct ledger_name names[LEDGER_NAMES]; /* of committed or own inserts; emptied by every rollback */
    size_t name_count;
    struct ledger_delta deltas[LEDGER_DELTAS]; /* of this transaction; emptied by every rollback */
    size_t delta_count;
    int broken;        /* SQLite's code of a failure that concerns the file, not one piece of work; 0 none */
    int last;          /* SQLite's code of the last failure of any kind */
    int wal_frames;    /* as the last commit left them */
    bool is_immutable; /* opened without locks, see ledger_tx_open() */
    int64_t immutable_mtime_ns;
};

/* ---- ledger_sql.c: a thin skin over SQLite ---- */

/* A running statement. Errors of binds are kept and come out of the first step. */
struct query {
    struct ledger_tx *tx;
    sqlite3_stmt *stmt;
    int at; /* the parameter bound last */
    int rc;
};
/* SQL must be a literal (compared by address). */
enum err_code query_begin(struct query *q, struct ledger_tx *tx, const char *sql, struct err *err);
/* SQL is text made at run time; copied. */
enum err_code query_begin_text(struct query *q, struct ledger_tx *tx, const char *sql, struct err *err);
void query_int(struct query *q, int64_t value);
void query_text(struct query *q, const char *value); /* NULL: NULL. Borrowed until query_end() */
void query_blob(struct query *q, const void *value, size_t size);
void query_null(struct query *q);
/* Next row? *RET_ROW false: no more. After an error or the last row the statement is reset. */
enum err_code query_step(struct query *q, bool *ret_row, struct err *err);
/* Run to the end, rows ignored. */
enum err_code query_run(struct query *q, struct err *err);
void query_end(struct query *q);

int64_t column_int(sqlite3_stmt *stmt, int column); /* 0 for anything but an integer */
/* Did a column_text() of this row find no memory (and give "")? Ask before believing that something is empty. */
bool column_failed(sqlite3_stmt *stmt);
const char *column_text(sqlite3_stmt *stmt, int column); /* never NULL */

/* Several statements without parameters. */
enum err_code ledger_exec(struct ledger_tx *tx, const char *sql, struct err *err);
/* Say what SQLite's last failure (RC) means; notes in tx->broken when the whole file is concerned. */
enum err_code ledger_sqlite_error(struct ledger_tx *tx, int rc, struct err *err);
bool ledger_is_corrupt(int rc);
/* Of a ledger that is read without locks: is the file still the one that was opened? */
bool ledger_stood_still(const struct ledger_tx *tx);
/* After any rollback: forget what may not be in the file. */
void ledger_forget_undone(struct ledger_tx *tx);
/*
 * PATH with the links of its folder followed, into RET (SIZE bytes). SQLite's NOFOLLOW refuses a link anywhere in a
 * path, and a state folder may well be reached through one: systemd's DynamicUser makes /var/lib/NAME a link. Returns
 * PATH itself if that can't be done; SQLite says why.
 */
const char *ledger_real_place(const char *path, char *ret, size_t size);
void ledger_tx_free(struct ledger_tx *tx); /* closes */

/* ---- ledger_open.c ---- */

struct ledger_step {
    const char *sql;
};
/* schema version N+1 is made from N by steps[N]. */
extern const struct ledger_step ledger_steps[];
extern const int ledger_step_count;
enum err_code ledger_migrate(struct ledger_tx *tx, const struct ledger_step *steps, int count, struct err *err);
/* A connection with our settings; neither migrates nor checks. FLAGS: of sqlite3_open_v2(). */
enum err_code ledger_connect(const char *path, int flags, struct ledger_tx **ret, struct err *err);
/* Open for writing: check, recover, migrate. Blocks. */
enum err_code ledger_open_file(const char *path, struct ledger_tx **ret, struct ledger_opened *ret_opened,
                               struct err *err);
/* Say in the file that it was closed well. */
enum err_code ledger_mark_closed(struct ledger_tx *tx, struct err *err);
/* Say beside the file that it must be checked at the next start. */
void ledger_mark_suspect(const char *path);

/* ---- ledger_recover.c ---- */

/* Move PATH aside and make a new one with what can be read. WHY: for the message. */
enum err_code ledger_recover(const char *path, const char *why, struct ledger_opened *ret_opened, struct err *err);
/* Finish a recovery that was cut off by a crash; *RET_DONE: there was one. */
enum err_code ledger_recover_resume(const char *path, bool *ret_done, struct ledger_opened *ret_opened,
                                    struct err *err);

/* ---- ledger_rows.c ---- */

enum err_code ledger_name_find(struct ledger_tx *tx, const char *text, int64_t *ret_id,
                               struct err *err); /* 0: unknown */
enum err_code ledger_name_put(struct ledger_tx *tx, const char *text, int64_t *ret_id, struct err *err);

/* In the order that ledger_row_read() expects. */
#define LEDGER_ROW_COLUMNS "f.id, s.text, f.path, w.text, d.text, " LEDGER_ROW_VALUES
#define LEDGER_ROW_VALUES                                                                                              \
    "f.tbl, f.table_key, f.state, f.size, f.mtime_ns, f.ctime_ns, f.inode, f.dev, f.l_size, f.l_mtime_ns, "            \
    "f.l_ctime_ns, f.l_inode, f.l_dev, f.hash, f.records, f.flags, f.reason, f.load_key, f.tries, f.failed_ms, "       \
    "f.next_try_ms, f.since_ms, f.seen_ms, f.definition "
/* HOW: "", "NOT INDEXED" or "INDEXED BY x". */
#define LEDGER_ROW_FROM(how)                                                                                           \
    "FROM file f " how " LEFT JOIN name s ON s.id = f.source LEFT JOIN name w ON w.id = f.flow "                       \
    "LEFT JOIN name d ON d.id = f.dest "
/* The row under STMT, copied to ARENA. *RET NULL: its content makes no sense (a hand edited it), take it as absent. */
enum err_code ledger_row_read(sqlite3_stmt *stmt, struct arena *arena, struct ledger_row **ret, struct err *err);
/*
 * N more (or fewer) files of a flow in a state. Kept in memory until ledger_tally_flush(), which must come before a
 * commit, before a savepoint, and before anybody reads the tally: a file goes through four states, and a group of
 * hundreds of files would write the same few rows a thousand times.
 */
enum err_code ledger_tally(struct ledger_tx *tx, int64_t flow, int state, int64_t n, struct err *err);
enum err_code ledger_tally_flush(struct ledger_tx *tx, struct err *err);

/* ---- ledger_history.c ---- */

#define LEDGER_RECEIPT_COLUMNS                                                                                         \
    "r.id, r.at_ms, s.text, r.path, w.text, d.text, r.tbl, r.state, r.reason, r.hash, r.bytes, r.parsed, r.inserted, " \
    "r.updated, r.unchanged, r.rejected, r.dest_rows, r.dest_id, c.text, r.flags, r.tries, r.duration_ms "
#define LEDGER_RECEIPT_FROM(how)                                                                                       \
    "FROM receipt r " how " LEFT JOIN name s ON s.id = r.source LEFT JOIN name w ON w.id = r.flow "                    \
    "LEFT JOIN name d ON d.id = r.dest LEFT JOIN name c ON c.id = r.dialect "
enum err_code ledger_receipt_read(sqlite3_stmt *stmt, struct arena *arena, struct ledger_receipt **ret,
                                  struct err *err);

#endif
