/*
 * dest.h -- the contract of a destination: where rows or bytes go.
 *
 * One file per kind and one line in the table of destinations (src/app/drivers.c).
 * The engine knows no driver; a driver knows no engine, no ledger, no source.
 *
 *   open -> begin* (load->finished comes once each) -> close
 *
 * begin(), abort() and close() are called on the loop thread and answer on a later turn of it, never from inside
 * the call. What blocks runs on the thread pool.
 *
 * Exactly once: a driver whose destination has transactions writes the receipt in the same transaction as the
 * rows, keyed by (instance, source, path, hash, table) and by LOAD_KEY, and looks there before it commits: a version
 * that is there already is not written again (receipt.is_duplicate). So a load that was killed after its commit can be
 * begun again with the same load_key, and a lost ledger repeats nothing.
 */
#ifndef CHUTE_DEST_H
#define CHUTE_DEST_H

#include "err.h"
#include "found.h"
#include "option.h"
#include "receipt.h"
#include "rows.h"
#include "shape.h"

#include <stdatomic.h>
#include <uv.h>

enum load_what {
    LOAD_FILE, /* put this file version into its table; a table that chute did not make is never dropped or made anew */
    LOAD_DROP, /* drop TABLE, if chute made it; dependents are named in the error, nothing cascades. Its receipt.dest_id
                  says "dropped", or "kept" when there was none of ours. LOAD_KEY is one of its own, as for every kind
                  of work */
    LOAD_EMPTY, /* delete all rows of TABLE */
    LOAD_CARRY, /* FROM_PATH was renamed to PATH: write the receipt of (HASH, TABLE) for PATH as well, no rows */
    LOAD_FORGET /* reset: drop TABLE if chute made it, and every receipt of FLOW for it. With parts: their tables
                   instead; receipt.dest_id is "dropped" if any was, receipt.updated how many, and receipt.warnings
                   names them ("users, cards") */
};
enum load_mode { MODE_REPLACE, MODE_APPEND, MODE_UPSERT, MODE_KEEP_FIRST, MODE_NEWEST };
enum schema_policy { SCHEMA_REJECT, SCHEMA_ADD_COLUMNS, SCHEMA_RECREATE };
enum names_policy { NAMES_KEEP, NAMES_SNAKE, NAMES_KEBOOLA, NAMES_BLOB };
enum duplicate_policy { DUPLICATE_SKIP, DUPLICATE_RELOAD };
enum changed_policy { CHANGED_REJECT, CHANGED_TAIL, CHANGED_AGAIN, CHANGED_VERSION, CHANGED_OVERWRITE };

/* How a flow loads: the same for all its files; read-only, outlives its loads. */
struct load_plan {
    const char *flow;
    enum load_mode mode;
    struct option_strings key;
    struct option_strings order_by;
    const char *row_number; /* name of the column that numbers records from 0; "" none */
    struct option_types types;
    enum schema_policy on_schema_change;
    enum names_policy names;
    enum duplicate_policy on_duplicate;
    struct option_strings null_values; /* unquoted texts that mean NULL */
    bool overwrites;                   /* format raw: a changed file's old bytes need not stay retrievable */
};

/*
 * One of several tables that the rows of a file go to (`records` of a flow with format json). All of a file's parts
 * are committed together, with one receipt that adds up over all of them; its table is load->table, which is then the
 * name of no table of the destination. Columns, types, required values and defaults are declared in the configuration
 * and checked before a row reaches the driver: kinds never narrow.
 */
struct load_part {
    const struct load_plan *plan; /* mode, key, order_by and types (TYPES_MAP, every column) of this table */
    const char *space;            /* as load->space */
    const char *table;            /* as table_name() made it */
    struct shape *shape;          /* the columns, in the order of the configuration */
};

/* One piece of work for a destination. Made and freed by the job; the driver owns it between begin() and finished(). */
struct load {
    enum load_what what;
    const struct load_plan *plan;
    const char *instance;  /* who we are among several chutes */
    const char *source;    /* name of the source */
    const char *path;      /* below its root */
    const char *from_path; /* LOAD_CARRY */
    const char *load_key;  /* this attempt at this version: the same after a crash, new for a deliberate reload */
    const char *space;     /* schema or bucket, as space_name() made it; NULL where the destination has none */
    const char *table;     /* legal name, as table_name() made it */
    bool is_ours;          /* LOAD_DROP, LOAD_FORGET, ledger_knows_tables: the ledger has that a load of ours made it */
    uint64_t skip_records; /* MODE_APPEND, on_changed tail: the records before these are in the table already */
    /* Header of the file this table was last loaded from, as the ledger has it; NULL: unknown, or it does not bind. */
    const char *const *header;
    size_t header_count;
    /*
     * Rows (LOAD_FILE); the driver pulls, rewinds, and never frees. Where !accepts_rows the file has been read once
     * to its end (rows_skim), so that shape and result speak for the whole file: rewind before the first pull.
     */
    struct rows *rows;
    /*
     * LOAD_FILE, LOAD_FORGET: the tables of a flow with `records`; part_count 0: there is the one table TABLE and the
     * shape is rows->shape. With parts, rows->shape has no columns, and row_batch.part says where rows belong. A part
     * without a row in the file may be left alone.
     */
    const struct load_part *parts;
    size_t part_count;
    /* Bytes (LOAD_FILE), for drivers that send them as they are. */
    int fd;
    /*
     * With slice_bytes() > 0, of a file of plain UTF-8 that is larger: where to cut it. The first is the offset of the
     * first data record, each further one that of the first record at least so many bytes behind; NULL: one piece.
     */
    const uint64_t *cuts;
    size_t cut_count;
    struct file_id id;
    uint8_t hash[16]; /* LOAD_CARRY, and files */
    /*
     * Is the file still what we opened? To be called after the last byte was read and before the commit; on the
     * driver's thread. ERR_CHANGED: roll back and finish with that.
     */
    enum err_code (*still_current)(struct load *load, struct err *err);
    /*
     * For loads that are a walk of several remote steps (keeps_checkpoints): what the last try for this path saved
     * before it was cut off, "" or NULL for none; perhaps for another version, and of a drop, what a load saved.
     * Borrowed until finished().
     */
    const char *checkpoint;
    /*
     * Keep TEXT (remote ids, at most CHECKPOINT_MAX bytes, never a secret) with this version before the next step is
     * taken. Loop thread, one at a time; TEXT is copied. SAVED comes once, on a later turn: ERR NULL, TEXT is on disk;
     * else don't take that step. ERR_NONE or ERR_SYSTEM (SAVED never comes).
     */
    enum err_code (*save)(struct load *load, const char *text, void (*saved)(struct load *load, const struct err *err),
                          struct err *err);
    _Atomic bool stop; /* set by abort(): roll back soon and finish with ERR_STOPPED */

    /* Answers, filled by the driver before finished(). */
    struct receipt receipt;
    struct err err;
    uint64_t retry_after_ms; /* with a retryable ERR: the destination asked for at least that long a pause; 0 */
    void (*finished)(struct load *load); /* on the loop thread, once; the driver forgets LOAD before it calls */

    void *owner;       /* the job's */
    struct load *next; /* the driver's while it owns LOAD */
    void *driver;      /* the driver's */
};

/* A setting that a script can read; see scripts_run. */
struct script_setting {
    const char *name; /* "title_rule" */
    const char *value;
};

/* SQL files that run in a destination, in one transaction: a pipeline, or `init`. Made and freed by the caller; the
 * driver owns it between run_scripts() and finished(). */
struct scripts {
    const char *name;         /* of the pipeline, or "init": for errors and application names */
    const char *const *files; /* absolute paths, in order; read by the driver when they run, off the loop */
    size_t file_count;
    const struct script_setting *settings; /* PostgreSQL: current_setting('chute.NAME', true), for the transaction;
                                              SQLite: the function chute_setting('NAME'), NULL if it is not set */
    size_t setting_count;
    _Atomic bool stop; /* set by abort_scripts() */

    /* Answers, filled by the driver before finished(). */
    struct err err; /* ERR_INPUT: a script is wrong: "FILE:LINE: statement N ("first words"): what the server said" */
    uint64_t statements;                       /* that ran */
    void (*finished)(struct scripts *scripts); /* on the loop thread, once, on a later turn */

    void *owner;          /* the caller's */
    struct scripts *next; /* the driver's while it owns it */
    void *driver;         /* the driver's */
};

/* How a destination is doing, for `status`. */
struct dest_health {
    char where[256];   /* what it is, without secrets: "/data/warehouse.db" */
    char version[64];  /* of the server or library */
    char identity[40]; /* random id kept in the destination; another one than before: restored or recreated. "" unknown
                        */
    bool is_open;
    bool is_homeless;  /* not open: the folder it belongs into does not exist, so that only a hand can help */
    uint64_t pause_ms; /* it asked to be left alone for that long, as a whole (maintenance); 0: it did not */
    char advice[512];  /* what a person should know that is no failure ("replace locks readers out"); for `check
                          --connect`; "" nothing */
};

/* What a destination gets from the house; outlives it. */
struct rate;
struct dest_env {
    unsigned jobs;            /* limits.jobs: transfers at once */
    uint64_t buffer_bytes;    /* limits.buffer */
    struct rate *upload_rate; /* limits.upload_rate, shared by all destinations; NULL: none */
};

typedef void dest_cb(void *arg, const struct err *err);

struct dest_ops {
    const char *type;             /* "sqlite" */
    const char *summary;          /* one line for help */
    const struct option *options; /* parsed into the options struct by offset */
    size_t options_size;
    const char *url_scheme;              /* for --to: "sqlite:" */
    const char *quick_name, *quick_flow; /* what it and its flow are called where a command line names nothing */
    /* Fill OPTIONS (zeroed, then defaults applied) from what follows --to. Strings borrowed from URL. ERR_CONFIG. */
    enum err_code (*from_url)(const char *url, void *options, struct err *err);
    enum err_code (*check)(const void *options, struct err *err);
    /* Defaults of a flow that ends here, as option texts: pairs name, value; NULL-terminated. */
    const char *const *flow_defaults;
    /* The same, on top, of a flow whose files come from a server; NULL: no others. */
    const char *const *remote_defaults;

    /* What a flow asks for and this destination can't do: ERR_CONFIG with the option's name. NULL: it can all. */
    enum err_code (*check_flow)(const struct load_plan *plan, const char **ret_option, struct err *err);

    /* How large a piece of a file may be that goes up as it is; 0: any size. NULL: any. */
    uint64_t (*slice_bytes)(const void *options);

    bool takes_bytes;         /* takes files as they are (format raw) and nothing else: load->rows is NULL, the hash is
                                 there, TABLE is a blob */
    bool takes_parts;         /* can fill load->parts: the flows with `records` */
    bool accepts_rows;        /* pulls load->rows; else the file is inspected to its end before begin() */
    bool runs_in_order;       /* loads run in the order of begin(), so several for one table may be in flight */
    bool keeps_checkpoints;   /* uses load->checkpoint and load->save */
    bool ledger_knows_tables; /* has no place of its own for what it made: load->is_ours tells */
    int max_small; /* how many small loads (<= SMALL_LOAD bytes) it likes to have at once to share a commit */

    /* OPTIONS outlives the destination. Does not connect: a dead destination is no error here. */
    enum err_code (*open)(const void *options, const struct dest_env *env, uv_loop_t *loop, void **ret_state,
                          struct err *err);
    /*
     * Connect, clean up what a killed process left, learn the identity; also the probe while blocked. CB once, later.
     * ERR_DENIED: blocked. ERR_REMOTE/ERR_SYSTEM retryable: down for now.
     */
    void (*connect)(void *state, dest_cb *cb, void *arg);
    void (*health)(void *state, struct dest_health *ret_health);
    /*
     * The legal name of a table under POLICY, into RET (size bytes), and its comparison key into RET_KEY (two names
     * with equal keys are one table: SQLite ignores case). Pure. ERR_INPUT: can't be made legal.
     */
    enum err_code (*table_name)(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                                struct err *err);
    /*
     * Tables lie in spaces (buckets, schemas): SPACE_WORD is the flow option that names them; NULL: they don't.
     * space_name() as table_name(); its result never has a '.', so that "space.table" names a table.
     * make_space(): find or make SPACE (borrowed for the call); CB once, on a later turn. NULL: the first load does.
     * ERR_INPUT: this one can't be made; others may.
     */
    const char *space_word;
    enum err_code (*space_name)(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                                struct err *err);
    void (*make_space)(void *state, const char *space, dest_cb *cb, void *arg);
    /* ERR_NONE: load->finished() comes once, on a later turn of the loop. Else: never. */
    enum err_code (*begin)(void *state, struct load *load, struct err *err);
    void (*abort)(void *state, struct load *load); /* finished() still comes */
    /*
     * Scripts run one at a time and beside loads (a database's own locks keep them apart); they do not wait for the
     * loads before them. ERR_NONE: scripts->finished() comes once, on a later turn. NULL: this destination has no
     * scripts, `init`, `then` and pipelines are refused for it.
     */
    enum err_code (*run_scripts)(void *state, struct scripts *scripts, struct err *err);
    void (*abort_scripts)(void *state, struct scripts *scripts); /* finished() still comes: ERR_STOPPED */
    /*
     * We are being stopped and the grace is over: what waits for a server that does not answer shall end now, also
     * connect() and make_space(). NULL: nothing of this driver waits for long.
     */
    void (*hurry)(void *state);
    /* All loads have finished. */
    void (*close)(void *state, void (*closed)(void *arg), void *arg);
};
#define SMALL_LOAD (256 * 1024)
#define TABLE_NAME_MAX 1100
#define CHECKPOINT_MAX 4096

#endif
