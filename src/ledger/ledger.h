/*
 * ledger.h -- what has been seen and how it ended, across restarts.
 *
 * The only files with the ledger's SQL in them are in this room. It stores and finds; it decides nothing.
 *
 * Two ways in:
 *  - the daemon: ledger_open() once; ledger_run() queues a piece of work that runs on the pool with a struct ledger_tx.
 *    One connection, one request on the pool at a time; all work queued while a commit runs, or in the same turn of the
 *    loop, shares the next transaction (group commit); one failing work undoes only itself. DONE is called on the loop
 *    after the commit is on disk (WAL, synchronous=FULL).
 *  - commands: ledger_tx_open() opens the file directly, read-only or not, beside a running daemon or without one.
 *
 * Memory: bounded (page cache 1 MiB), nothing is kept per file. ERR is never NULL in this room.
 */
#ifndef CHUTE_LEDGER_H
#define CHUTE_LEDGER_H

#include "arena.h"
#include "err.h"
#include "found.h"
#include "receipt.h"
#include "work.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

/* The nine words. */
enum file_state {
    STATE_SEEN,
    STATE_SETTLING,
    STATE_QUEUED,
    STATE_LOADING,
    STATE_RETRYING,
    STATE_LOADED,
    STATE_SKIPPED,
    STATE_QUARANTINED,
    STATE_GONE,
    FILE_STATES
};
extern const char *const file_state_names[FILE_STATES]; /* "seen", … */
#define STATE_BIT(s) (1u << (s))

/* The work for one file in one flow. Unique by (source, path, flow). Strings live in the arena given to the query. */
struct ledger_row {
    int64_t id; /* 0: not stored yet */
    const char *source, *path, *flow, *dest;
    const char *table;     /* legal name; "" not known yet */
    const char *table_key; /* comparison key */
    enum file_state state;
    struct file_id file;        /* the version this state speaks of, as last observed */
    struct file_id loaded_file; /* the version that HASH is of */
    bool has_hash;
    uint8_t hash[16];        /* of the version that was last loaded, skipped as duplicate, or quarantined */
    uint64_t loaded_records; /* records of that version, for on_changed: tail */
    bool was_loaded;         /* some version of this path has been loaded by this flow */
    const char *reason;      /* of skipped, quarantined, retrying, settling; "" */
    const char *load_key;    /* see struct load */
    int64_t tries;
    int64_t failed_ms;   /* failing time that counts for give_up_after, summed; see retry rules */
    int64_t next_try_ms; /* wall clock; 0: now. For queued, retrying and settling */
    int64_t since_ms;    /* when the state was entered */
    int64_t seen_ms;     /* when this version was first seen */
    bool finish_pending; /* loaded or quarantined, and after_success / after_failure still has to act */
    bool taken_by_us;    /* chute itself moved or deleted the file: its absence is no delete */
    bool drop_pending;   /* gone, and on_delete still has to act in the destination */
    uint64_t definition; /* config_flow.definition it was decided under */
};

struct ledger;
struct ledger_tx; /* use on the thread that got it, until the work returns */

struct ledger_options {
    const char *path;         /* <state>/ledger.db */
    uint64_t history_keep_ms; /* what the caller will prune to; the ledger never prunes by itself */
};

/* What ledger_open() found. */
struct ledger_opened {
    bool is_new;        /* no ledger was there */
    bool was_recovered; /* it was corrupt: moved aside to PATH.corrupt-<time>, what could be read was carried over */
    char message[512];  /* the loud message, if recovered */
    uint64_t rows_recovered;
};

/*
 * Open or make the ledger (blocks: called once before the loop runs). Migrates older schemas; a newer one is
 * ERR_CONFIG; a locked one (another daemon) is ERR_CONFIG. Corruption (also truncation, or a file that is no database)
 * → recovery, never a refusal. ERR_SYSTEM: can't be written.
 */
enum err_code ledger_open(uv_loop_t *loop, const struct ledger_options *options, struct ledger **ret,
                          struct ledger_opened *ret_opened, struct err *err);

/* On the pool; returns ERR_NONE or fills ERR, then only this work's changes are undone. */
typedef enum err_code ledger_fn(struct ledger_tx *tx, void *arg, struct err *err);
/* On the loop; ERR NULL when the work is committed. */
typedef void ledger_done(void *arg, const struct err *err);

/* Queue FN. DONE (may be NULL) comes once, later; works run in the order they were queued. Never fails but for memory
 * (then DONE is never called). */
enum err_code ledger_run(struct ledger *l, ledger_fn *fn, ledger_done *done, void *arg, struct err *err);
/*
 * The same for a FN that may be run again: what it leaves in ARG when its transaction is undone does it no harm, and
 * the second run fills anew whatever the first has filled. A group of nothing but such works needs no savepoints, which
 * is most of its cost.
 */
enum err_code ledger_run_repeatable(struct ledger *l, ledger_fn *fn, ledger_done *done, void *arg, struct err *err);
/* "" while the last commit worked, else why the ledger can't be written (intake must stop); tried again with each
 * ledger_run(). */
const char *ledger_problem(const struct ledger *l);
size_t ledger_pending(const struct ledger *l);
/* Runs all queued work, checkpoints, closes. */
void ledger_close(struct ledger *l, void (*closed)(void *arg), void *arg);

/* For commands. READ_ONLY: never creates, migrates or writes. ERR_SYSTEM with "no ledger at ..." if there is none. */
enum err_code ledger_tx_open(const char *path, bool read_only, struct ledger_tx **ret, struct err *err);
enum err_code ledger_tx_close(struct ledger_tx *tx, bool commit, struct err *err); /* also frees */

/* ---- within a transaction ---- */

/* Small facts: instance, root identity of a source, identity of a destination, held deletes. *RET NULL: not set. VALUE
 * NULL: unset. */
enum err_code ledger_meta_get(struct ledger_tx *tx, const char *key, struct arena *arena, const char **ret,
                              struct err *err);
enum err_code ledger_meta_put(struct ledger_tx *tx, const char *key, const char *value, struct err *err);

/* *RET NULL: no such row. */
enum err_code ledger_get(struct ledger_tx *tx, const char *source, const char *path, const char *flow,
                         struct arena *arena, struct ledger_row **ret, struct err *err);
/* Insert (id 0; sets it) or update all members of ROW (inserted again if it was deleted meanwhile). A row of the same
 * (source, path, flow) with another id is replaced. */
enum err_code ledger_put(struct ledger_tx *tx, struct ledger_row *row, struct err *err);
/* Nothing is pending for the file of row ID any more (finish_pending): ledger_put() for a single bit. No such row:
 * fine. */
enum err_code ledger_put_finished(struct ledger_tx *tx, int64_t id, struct err *err);
/* Is there any row of this inode, in whatever source? The quick half of looking for renames. */
enum err_code ledger_knows_inode(struct ledger_tx *tx, uint64_t inode, uint64_t dev, bool *ret, struct err *err);
/* Forget a row and the versions it loaded; its receipts stay as history. */
enum err_code ledger_delete(struct ledger_tx *tx, int64_t id, struct err *err);

/* Which rows; zero or NULL members don't restrict. */
struct ledger_query {
    const char *source, *flow, *dest, *path;
    const char *below; /* folder: rows whose path starts with "<below>/"; with source and no limit in order of path */
    const char *table_key; /* together with dest */
    uint64_t inode, dev;   /* rows with this inode (renames), together with source */
    unsigned states;       /* STATE_BIT()s */
    bool drop_pending, finish_pending;
    int64_t due_by_ms; /* next_try_ms <= this */
    int64_t after_id;  /* paging: id > this, in order of id */
    size_t limit;      /* 0: all */
    bool by_age;       /* order by (mtime, path) instead of id: oldest first; not with after_id */
};
/* CB returns false to stop. The row is valid during the call only; CB may write through TX (rows changed meanwhile may
 * or may not come). */
typedef bool ledger_row_cb(void *arg, const struct ledger_row *row);
enum err_code ledger_each(struct ledger_tx *tx, const struct ledger_query *q, ledger_row_cb *cb, void *arg,
                          struct err *err);
enum err_code ledger_count(struct ledger_tx *tx, const struct ledger_query *q, uint64_t *ret, struct err *err);

/*
 * Take up to LIMIT due rows (queued, retrying, settling with next_try_ms <= NOW and > 0 for settling) of DEST in order
 * of (mtime, path), mark them loading, and copy them to ARENA, linked in RET_ROWS (array). BUSY_TABLES (table keys,
 * NULL-terminated): none of these, no two of one table, none whose table has a row in loading; NULL: any. MAX_BYTES:
 * after the first row, stop before the sum of sizes exceeds it; 0: no bound. SKIP_FLOWS: flows that are held
 * (NULL-terminated, may be NULL). A row whose table is not known yet
 * ("") is bound to none. Behind 1024 rows of busy tables in one flow a claim does not look further; it does when those
 * tables are free. A row whose stored content makes no sense is forgotten: a scan finds its file again.
 */
enum err_code ledger_claim(struct ledger_tx *tx, const char *dest, int64_t now_ms, size_t limit, uint64_t max_bytes,
                           const char *const *busy_tables, const char *const *skip_flows, struct arena *arena,
                           struct ledger_row ***ret_rows, size_t *ret_count, struct err *err);
/* The wall clock was set back: rows of DEST that are due later than LATEST_MS are due then. Walks all rows that wait.
 */
enum err_code ledger_clamp_due(struct ledger_tx *tx, const char *dest, int64_t latest_ms, struct err *err);
/* When is the earliest due row of DEST (queued, retrying, settling) due? 0: now; INT64_MAX: none. Rows whose table is
 * busy count: a claim may still find none. */
enum err_code ledger_next_due(struct ledger_tx *tx, const char *dest, const char *const *skip_flows, int64_t *ret_ms,
                              struct err *err);
/* At start: rows in loading become queued (their load_key stays). Returns how many. */
enum err_code ledger_requeue_loading(struct ledger_tx *tx, uint64_t *ret, struct err *err);
/* A path (or, IS_FOLDER, all below a folder) has a new name: rows and their loaded versions go along; rows at the new
 * name are replaced. */
enum err_code ledger_rename(struct ledger_tx *tx, const char *source, const char *from, const char *to, bool is_folder,
                            struct err *err);

/* Every content that a row has loaded (identity: kept while the row exists, whatever the retention). */
enum err_code ledger_version_put(struct ledger_tx *tx, int64_t row_id, const uint8_t hash[16], uint64_t size,
                                 uint64_t records, struct err *err);
enum err_code ledger_version_find(struct ledger_tx *tx, int64_t row_id, const uint8_t hash[16], bool *ret_found,
                                  struct err *err);
/* Has this row loaded any content of SIZE bytes? Then hashing before the load is worth it. */
enum err_code ledger_version_sized(struct ledger_tx *tx, int64_t row_id, uint64_t size, bool *ret_found,
                                   struct err *err);

/* The header of a table as the first load made it: column names, as a JSON array. *RET NULL: none. COLUMNS NULL:
 * forget. */
enum err_code ledger_header_get(struct ledger_tx *tx, const char *dest, const char *table_key, struct arena *arena,
                                const char **ret, struct err *err);
enum err_code ledger_header_put(struct ledger_tx *tx, const char *dest, const char *table_key, const char *columns,
                                struct err *err);

/* History. */
struct ledger_receipt {
    int64_t id;
    int64_t at_ms;
    const char *source, *path, *flow, *dest, *table;
    enum file_state state; /* loaded, skipped, quarantined, gone (dropped) */
    const char *reason;
    struct receipt receipt;
    int64_t tries;
    int64_t duration_ms; /* of the last try */
};
enum err_code ledger_receipt_put(struct ledger_tx *tx, const struct ledger_receipt *r, struct err *err);
struct ledger_receipt_query {
    const char *flow, *path, *source;
    int64_t since_ms;
    unsigned states;
    size_t limit; /* 0: all */
    bool newest_first;
};
typedef bool ledger_receipt_cb(void *arg, const struct ledger_receipt *r);
enum err_code ledger_receipts_each(struct ledger_tx *tx, const struct ledger_receipt_query *q, ledger_receipt_cb *cb,
                                   void *arg, struct err *err);
/*
 * Drop history older than BEFORE_MS, and rows in `gone` (nothing pending) as old as that. Returns how many, at most
 * LEDGER_PRUNE_MAX so that no commit gets long: while it returns that many there is more, call again in another work.
 */
#define LEDGER_PRUNE_MAX 4096
enum err_code ledger_prune(struct ledger_tx *tx, int64_t before_ms, uint64_t *ret, struct err *err);

struct ledger_counter {
    const char *flow;
    uint64_t files[FILE_STATES];
    int64_t oldest_pending_ms; /* smallest seen_ms among seen, settling, queued, loading, retrying; 0 none */
};
/* Files by flow and state. COUNTERS in ARENA. */
enum err_code ledger_counters(struct ledger_tx *tx, struct arena *arena, struct ledger_counter **ret, size_t *ret_count,
                              struct err *err);

#endif
