/*
 * sqlite_internal.h -- the parts of the SQLite destination among themselves.
 *
 *   dest_sqlite.c    the driver's operations; the queue; groups of small loads that share a commit
 *   sqlite_conn.c    the connection: open, identity, system tables, statements, waiting, errors
 *   sqlite_receipt.c what `_chute_loads` knows
 *   sqlite_schema.c  the columns a table has, the ones a file wants, and which of them win
 *   sqlite_known.c   the table of the load before, for loads that share a transaction
 *   sqlite_fill.c    rows into a table
 *   sqlite_swap.c    tables that take another's place; dropping; what depends on a table
 *   sqlite_merge.c   rows that meet rows with the same key
 *   sqlite_load.c    one load from its first look to its receipt
 *   sqlite_script.c  SQL files in one transaction
 *   sqlite_parts.c   the same of a load whose rows go to several tables
 *
 * All of it runs on the worker's thread, one load at a time; nothing here is shared with the loop but load->stop.
 */
#ifndef CHUTE_SQLITE_INTERNAL_H
#define CHUTE_SQLITE_INTERNAL_H

#include "load_internal.h"

#include "buf.h"

#include <sqlite3.h>
#include <sys/types.h>

/* Names that begin like this are chute's own. */
#define LITE_PREFIX "_chute_"
#define LITE_KEY_PREFIX "_chute_key_"

/* A text column, never NULL; valid until the next step. */
static inline const char *text_at(sqlite3_stmt *stmt, int column)
{
    const char *text = (const char *)sqlite3_column_text(stmt, column);
    return text != NULL ? text : "";
}

/* ---- what a table is ---- */

/* How a value goes into a column. */
enum bind {
    BIND_TEXT,    /* TEXT affinity: as it is */
    BIND_INT,     /* INTEGER affinity: int64 or nothing */
    BIND_REAL,    /* REAL affinity: up to 15 digits */
    BIND_BOOL,    /* true, false, 1, 0 */
    BIND_NUMERIC, /* NUMERIC affinity: int64, up to 15 digits, or text that SQLite would not turn into a number */
    BIND_BLOB     /* no affinity: as it is */
};

#define FROM_NOWHERE (-1) /* the file has no such column: NULL */
#define FROM_ROW_NUMBER (-2)

struct lite_column {
    const char *name;
    const char *decl;      /* declared type: "BIGINT" */
    const char *collation; /* NULL: BINARY */
    enum bind bind;
    int from;              /* column of the file, or FROM_ */
    bool is_declared;      /* the flow's `types` names it: what does not satisfy TYPE is a bad row */
    enum column_type type; /* as declared there */
    bool is_inferred;      /* decl comes from the file's kinds, and moves when they narrow */
    bool is_untyped;       /* text only because nothing was in it */
    bool is_key;
};

/* Columns in the order of a table. */
struct lite_columns {
    struct lite_column *items;
    size_t count;
};

/* A table as it stands in the database. */
struct lite_table {
    bool exists;
    bool is_ours;     /* chute made it and nobody altered it since */
    const char *name; /* as stored; the wanted name if it does not exist */
    const char *sql;
    struct lite_columns columns; /* without generated and hidden ones */
    const char *const *primary_key;
    size_t primary_key_count;
    bool has_generated; /* and some are left out */
    bool has_triggers;
};

/* The table that was read last in this transaction; see sqlite_known.c. */
struct lite_known {
    bool is_set;
    int64_t version; /* of the schema */
    char *wanted;    /* its name, as it was asked for */
    struct lite_table table;
    struct arena arena;
};

/* ---- sqlite_conn.c ---- */

#define CONN_STATEMENTS 32
struct conn_statement {
    char *sql;
    uint64_t hash;
    uint64_t used; /* when, in uses */
    sqlite3_stmt *stmt;
};

struct conn {
    const char *path; /* absolute; borrowed from the destination */
    uint64_t lock_timeout_ms;
    sqlite3 *db; /* NULL: closed */
    dev_t dev;   /* of the file we opened: another one under that name is another database */
    ino_t ino;
    bool is_wal;
    bool is_homeless; /* the last opening failed because its folder does not exist */
    bool is_greedy;   /* a large load runs: bigger cache, commits that are not synced */
    char identity[40];
    char owner[128];                 /* this process, as leftovers name it: boot, pid namespace, pid, start time */
    struct load *current;            /* whose stop ends waits and statements; NULL: none */
    const _Atomic bool *script_stop; /* the same of scripts that run */
    uint64_t wait_began_ms;
    struct conn_statement statements[CONN_STATEMENTS];
    uint64_t uses;
    struct lite_known known;
    struct buf stage;   /* definition of the temporary table that is there now, "" none */
    struct parts *kept; /* what the last load with parts found out about its tables; NULL none. See sqlite_parts.c */
    unsigned next_name; /* for shadow names */
};

void conn_init(struct conn *c, const char *path, uint64_t lock_timeout_ms);
/* Open if it is not open yet, or if another file is at the path by now. Makes the system tables and the identity. */
enum err_code conn_open(struct conn *c, struct err *err);
/* Closes; afterwards conn_open() may be called again. */
void conn_close(struct conn *c);
void conn_done(struct conn *c);

/* Fill ERR from the last failure of C (or of RC, if the connection has none), with words before it. Returns the code.
 */
enum err_code conn_err(struct conn *c, int rc, struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* One statement without parameters. */
enum err_code conn_exec(struct conn *c, struct err *err, const char *sql);
/* The same of a statement that comes again and again. */
enum err_code conn_word(struct conn *c, struct err *err, const char *sql);
/* The same from a printf format (SQLite's: %w for names inside "", %Q for texts). */
enum err_code conn_execf(struct conn *c, struct err *err, const char *fmt, ...);
/* A prepared statement from the cache, reset; it stays the cache's. Don't hold two of one text at a time. */
enum err_code conn_prepare(struct conn *c, const char *sql, sqlite3_stmt **ret, struct err *err);
/* Step a statement that gives no rows, and reset it. */
enum err_code conn_run(struct conn *c, sqlite3_stmt *stmt, struct err *err, const char *what);
/* The first column of the first row as a number; DEFAULT_VALUE without a row. */
enum err_code conn_number(struct conn *c, const char *sql, int64_t default_value, int64_t *ret, struct err *err);
/* Forget prepared statements (a cached one may keep a table from being dropped). */
void conn_forget_statements(struct conn *c);
/* A transaction that may write, waiting for the lock. */
enum err_code conn_begin(struct conn *c, struct err *err);
enum err_code conn_commit(struct conn *c, struct err *err);
void conn_rollback(struct conn *c); /* never fails; nothing to do if SQLite did it already */
bool conn_in_transaction(const struct conn *c);
/* For a large load: bigger cache, and commits that become durable with the next full one. Outside transactions. */
enum err_code conn_greedy(struct conn *c, bool is_on, struct err *err);
bool conn_is_stopped(const struct conn *c);

/* ---- sqlite_schema.c ---- */

enum action {
    ACT_CREATE,  /* there is no such table */
    ACT_REBUILD, /* another table takes its place */
    ACT_REFILL,  /* delete all, insert: the definition stays */
    ACT_ADD,     /* append */
    ACT_MERGE    /* upsert, keep_first, newest */
};

/* One LOAD_FILE on its way. */
struct lite_run {
    struct conn *c;
    struct load *load;
    /* of the load, or of one of its parts */
    const struct load_plan *plan;
    const struct shape *shape;
    const char *table_name;
    struct arena arena;
    struct err *err;
    struct lite_table table;
    struct lite_columns want; /* as the file has them, row number first */
    struct lite_columns dest; /* as the table has or will have them */
    size_t old_count;         /* columns of DEST from here on are to be added to the table (ACT_ADD, MERGE, REFILL) */
    enum action action;
    bool keeps_types;  /* types of the table bind: a value that does not fit is an error, not a new type */
    bool is_new;       /* no receipt has its load_key, as this very transaction has seen */
    bool was_narrowed; /* second pass: all types are the file's */
    const char **keys; /* legal names */
    size_t key_count;
    const char **orders;
    size_t order_count;
    /* counts of the pass */
    uint64_t filled;                       /* rows put into the table or its stage */
    uint64_t inserted, updated, unchanged; /* of those, what became of the ones that met the table */
    uint64_t skipped;                      /* rows before skip_records */
};

/* A copy of a text column; NULL: out of memory (or SQL NULL). */
const char *schema_text(struct arena *arena, sqlite3_stmt *stmt, int column);
/* Read what TABLE is now. NAME is compared without case. */
enum err_code schema_read(struct conn *c, const char *name, struct arena *arena, struct lite_table *ret,
                          struct err *err);
/* Decide want, dest, action and types of RUN from the file's shape and the table. ERR_INPUT: they don't go together. */
enum err_code schema_plan(struct lite_run *run);
/* Did the kinds move since schema_plan() so that an inferred type is not theirs any more? */
bool schema_is_narrowed(const struct lite_run *run, bool at_end);
/* CREATE TABLE "name"(columns of DEST, key). malloc'ed by SQLite (sqlite3_free); NULL: out of memory. */
char *schema_create_sql(const struct lite_run *run, const char *name, bool with_key);
/* ALTER TABLE ADD COLUMN for what DEST has beyond the table. */
enum err_code schema_add_columns(struct lite_run *run);
/* Make sure a unique index on exactly the key exists. */
enum err_code schema_need_key(struct lite_run *run);
/* Note in `_chute_tables` that chute made NAME (its definition as it stands now). */
enum err_code schema_own(struct lite_run *run, const char *name);
/* Quote NAME for SQL into B. */
void sql_name(struct buf *b, const char *name);

/* ---- sqlite_known.c ---- */

/* As schema_read(), from memory where the table is the same as for the load before in this transaction. */
enum err_code known_read(struct conn *c, const char *name, struct arena *arena, struct lite_table *ret,
                         struct err *err);
/* A transaction or a savepoint has begun or was undone, or `_chute_tables` was written. */
void known_forget(struct conn *c);
void known_done(struct conn *c);

/* ---- sqlite_fill.c ---- */

enum fill_end { FILL_DONE, FILL_NARROWED };

/* One pass into one table. */
struct fill {
    struct lite_run *run;
    char *sql; /* of INSERT */
    sqlite3_stmt *insert;
    const char *shadow; /* to be kept alive; NULL: none */
    size_t bound;       /* parameters: columns that get a value */
    size_t *columns;    /* which of dest each is */
    bool is_short;
    bool meets_rows; /* the statement says what becomes of a row whose key is there: count each */
    bool is_narrowed;
    bool is_reject; /* the row in hand is a bad one */
    uint64_t began_ms;
};
/* The same batch by batch, for a pass whose rows go to several tables. Within a transaction. CONFLICT: what follows
 * VALUES(...), "" nothing. */
enum err_code fill_begin(struct fill *f, struct lite_run *run, const char *schema, const char *table, bool by_position,
                         const char *conflict);
enum err_code fill_batch(struct fill *f, const struct row_batch *batch);
void fill_end(struct fill *f);
/*
 * Pull all rows into TABLE (of schema "main" or "temp"). SHORT: in many short transactions, beginning and ending
 * outside of one; else within the one that is open. BY_POSITION: the columns are called c0, c1 … (a stage).
 * FILL_NARROWED: the rest was only read; rewind and fill again.
 */
enum err_code fill_rows(struct lite_run *run, const char *schema, const char *table, bool by_position, bool is_short,
                        enum fill_end *ret_end);

/* ---- sqlite_swap.c ---- */

/* A new table for the rows of RUN under a name of our own, noted in `_chute_work` for the clean-up after a kill. */
enum err_code shadow_create(struct lite_run *run, bool is_stage, char *ret_name, size_t size);
/* Still ours, and alive: to be called in each short transaction. */
enum err_code shadow_beat(struct conn *c, const char *name, struct err *err);
/* Drop NAME, bit by bit if it is large. Outside transactions. Errors don't matter: connect cleans up later. */
void shadow_drop(struct conn *c, const char *name);
/* Remove shadows of processes that are gone, and of INSTANCE (may be NULL) if not of this process. Outside
 * transactions. */
enum err_code shadow_clean(struct conn *c, const char *instance, struct err *err);
/*
 * In one transaction that the caller began: NAME takes the place of the table of RUN, with the indexes and triggers
 * that others made; views stay. RET_OLD (size bytes) gets the name of the table to be dropped afterwards, "" if there
 * is none.
 */
enum err_code swap_tables(struct lite_run *run, const char *name, char *ret_old, size_t size);
/* Drop table NAME in the open transaction if chute made it; ERR_INPUT names views and triggers that need it. */
enum err_code swap_drop(struct conn *c, const char *name, struct arena *arena, bool *ret_dropped, struct err *err);

/* ---- sqlite_merge.c ---- */

/* SQL functions for the order of rows; called once per connection. */
enum err_code merge_register(struct conn *c, struct err *err);
/* What an INSERT into the table of RUN says about keys that are there, into B; nothing for `append`. */
void merge_conflict(struct buf *b, const struct lite_run *run);
/* An empty temporary stage for small loads. In a transaction. */
enum err_code merge_stage(struct lite_run *run);
/* Rows of the stage SCHEMA.TABLE into the table, by the flow's mode, in the open transaction. Fills the receipt's
 * counts. */
enum err_code merge_apply(struct lite_run *run, const char *schema, const char *stage);

/* ---- sqlite_receipt.c ---- */

/* Is this attempt, or (if hash is known and duplicates are skipped) this version, in the table already? Fills the
 * receipt. */
enum err_code receipt_find(struct lite_run *run, const uint8_t hash[16], bool *ret_found);
enum err_code receipt_put(struct conn *c, struct load *load, const char *kind, struct err *err);
enum err_code receipt_carry(struct conn *c, struct load *load, struct err *err);
enum err_code receipt_forget(struct conn *c, struct load *load, struct err *err);
/* Has this attempt at a drop or empty been done? */
enum err_code receipt_was_done(struct conn *c, const struct load *load, bool *ret_done, struct err *err);

/* ---- sqlite_load.c ---- */

void lite_init(struct lite_run *run, struct conn *c, struct load *load, struct err *err);
void lite_clear_receipt(struct load *load);
/* Is it upsert, keep_first or newest? */
bool lite_is_merge(const struct lite_run *run);
/* Make the table that RUN plans, or give the one that is there what it lacks (and, for a refill, empty it). */
enum err_code lite_make_table(struct lite_run *run);
/* Is the table still what it was when the plan was made? ERR_REMOTE, retryable. */
enum err_code lite_still_planned(struct lite_run *run);
/* The pass is over: is the version new, and is the file still the one we read? *RET_DUPLICATE: undo everything. */
enum err_code lite_judge(struct lite_run *run, bool *ret_duplicate);
/* The receipt, if the counts of RUN add up with those of the pass. */
enum err_code lite_write_receipt(struct lite_run *run);

/* Does the load go into the transaction that small ones share? */
bool lite_is_small(const struct load *load);
/* Within a transaction (and a savepoint) of the caller. ERR is filled and the code returned; LOAD's receipt is filled.
 */
enum err_code lite_small(struct conn *c, struct load *load, struct err *err);
/* With transactions of its own. */
enum err_code lite_large(struct conn *c, struct load *load, struct err *err);

/* ---- sqlite_script.c ---- */

/* Run SCRIPTS in a transaction of their own; fills scripts->statements. Closes the connection. */
enum err_code lite_script(struct conn *c, struct scripts *scripts, struct err *err);

/* ---- sqlite_parts.c ---- */

/* As lite_small() and lite_large(), for loads with parts. */
enum err_code parts_small(struct conn *c, struct load *load, struct err *err);
enum err_code parts_large(struct conn *c, struct load *load, struct err *err);
/* Forget what is known about the tables of parts: the transaction is another one, or something was undone. */
void parts_forget(struct conn *c);
/* LOAD_FORGET: drop the tables of the parts that chute made. In a transaction. */
enum err_code parts_drop(struct conn *c, struct load *load, struct err *err);

#endif
