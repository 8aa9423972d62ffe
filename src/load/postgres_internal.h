/*
 * postgres_internal.h -- the parts of the PostgreSQL destination among themselves.
 *
 *   dest_postgres.c     the driver's operations; the queue; who walks which loads on which connection
 *   postgres_options.c  its options and names; postgres_conninfo.c what they mean to libpq
 *   postgres_line.c     a connection as the walker's thread sees it
 *   postgres_home.c     the schema and tables that chute keeps its own facts in; identity
 *   postgres_receipt.c  what `_chute_loads` knows
 *   postgres_types.c    types of columns, and which values they would take with a loss
 *   postgres_catalog.c  a table as it stands in the database
 *   postgres_plan.c     the columns a table has, the ones a file wants, and which of them win
 *   postgres_sql.c      the statements that make, empty, fill and swap tables
 *   postgres_merge.c    rows that meet rows with the same key
 *   postgres_feed.c     rows as text of COPY
 *   postgres_careful.c  rows to COPY so that the one the server refuses is found
 *   postgres_raw.c      a file's bytes to COPY as they are
 *   postgres_load.c     one file from its first look to its receipt
 *   postgres_group.c    many small files, or one with several tables, in one transaction
 *   postgres_change.c   what is no file: drop, empty, carry, forget
 *
 * All but dest_postgres.c and half of postgres_line.c runs on the walker's thread.
 */
#ifndef CHUTE_POSTGRES_INTERNAL_H
#define CHUTE_POSTGRES_INTERNAL_H

#include "load_internal.h"
#include "postgres_line.h"

#include "buf.h"

/* PostgreSQL cuts names silently at 63 bytes: we never send a longer one. */
#define PGD_NAME_BYTES 63
#define PGD_PREFIX "_chute"

enum pgd_strategy { PGD_DELETE_AND_COPY, PGD_TRUNCATE_AND_INSERT, PGD_STAGING_OPTIMIZED };

struct pgd_options {
    const char *url;
    const char *password;
    const char *schema;
    int replace; /* enum pgd_strategy */
    uint64_t lock_timeout, connect_timeout, stall_timeout;
    bool tls_verify;
    const char *ca_file;
    int64_t connections;
};

/* One walker with its connection: what the steps below share. Lives as long as the destination. */
struct pgd_walker {
    struct pgd_line *line;
    const struct pgd_options *options;
    const char *home; /* schema of chute's own tables */
    char identity[40];
    char version[64];
    bool is_prepared;         /* this connection has seen home */
    struct buf stages[8];     /* definitions of the temporary tables that this session has, by number; "" none */
    unsigned open_stages;     /* made in the transaction that is open: gone with a rollback (bits) */
    struct arena arena;       /* of the step at hand */
    struct err *err;          /* where functions of the walk put what went wrong */
    const _Atomic bool *stop; /* of the load that is walked, NULL: of none */
};

/* ---- postgres_options.c: members of dest_postgres ---- */

extern const struct option pgd_option_table[];
extern const char *const pgd_flow_defaults[];
enum err_code pgd_from_url(const char *url, void *options, struct err *err);
enum err_code pgd_check(const void *options, struct err *err);
/* CONNINFO is what pgd_add_conninfo() made of O; both are borrowed by RET. */
void pgd_fill_pg_options(const struct pgd_options *o, const struct buf *conninfo, struct pg_options *ret);
enum err_code pgd_table_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                             struct err *err);
enum err_code pgd_space_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                             struct err *err);

/* ---- postgres_conninfo.c ---- */

/* postgres:// or postgresql:// */
bool pgd_is_uri(const char *conninfo);
/* Is every server that the text names this machine? */
bool pgd_is_local(const char *conninfo);
/* The text that libpq gets: url with what tls_verify and ca_file mean. */
void pgd_add_conninfo(struct buf *b, const struct pgd_options *o);

/* ---- postgres_home.c ---- */

/* Connect if need be, make home if it is not there, learn the identity. */
enum err_code pgd_prepare(struct pgd_walker *w);
/* CREATE SCHEMA, if there is none of that name. */
enum err_code pgd_make_schema(struct pgd_walker *w, const char *schema);
/* Ask SQL, which may be several statements; a failed buffer is "out of memory". WHAT is said before an error. */
enum err_code pgd_ask(struct pgd_walker *w, struct buf *sql, struct pgd_results *ret, const char *what);
/* The same for what may take its time: a merge, an index. */
enum err_code pgd_ask_long(struct pgd_walker *w, struct buf *sql, struct pgd_results *ret, const char *what);
/* Put the fault of the last request into words. Returns the code. */
enum err_code pgd_fail(struct pgd_walker *w, const char *what);
/* Does the last fault speak of the rows and not of us, the server or the table? */
bool pgd_is_data_fault(const struct pgd_walker *w);
/* Would the same walk, begun anew at once, probably work? (a deadlock, a serialization failure) */
bool pgd_is_collision(const struct pgd_walker *w);
void pgd_rollback(struct pgd_walker *w);
bool pgd_is_stopped(const struct pgd_walker *w);
/* space.table of home into B, quoted: pgd_add_home(b, w, "_chute_loads"). */
void pgd_add_home(struct buf *b, const struct pgd_walker *w, const char *table);
/* "space"."table" */
void pgd_add_table(struct buf *b, const char *space, const char *table);
/* SELECT pg_advisory_xact_lock(…): one chute at a time works on the table. */
void pgd_add_lock(struct buf *b, const char *space, const char *table);

/* ---- postgres_types.c ---- */

/* What can be lost when the server reads a value for a column, silently. */
enum pgd_loss {
    LOSS_NONE,     /* it takes it as it is, or refuses it */
    LOSS_SCALE,    /* numeric(p,s): digits behind the point are rounded */
    LOSS_TIME,     /* date: a time of day is cut off */
    LOSS_ZONE,     /* timestamp: a zone is ignored, the fraction rounded */
    LOSS_FRACTION, /* timestamptz: the fraction is rounded */
    LOSS_RANGE     /* numeric without bounds: takes all but very long ones, which are refused */
};

struct pgd_column {
    const char *name;
    const char *decl; /* as format_type() says it: "character varying(20)" */
    const char *base; /* name of the type, of a domain what is below it: "varchar" */
    bool is_text;     /* '' is a value of it */
    bool is_exact;    /* its = means the same text */
    bool has_default; /* or an identity: an insert without it gives a value */
    enum pgd_loss loss;
    int digits;            /* that LOSS allows behind the point */
    int from;              /* column of the file, or PGD_FROM_ */
    bool is_declared;      /* the flow's `types` names it: what does not satisfy TYPE is a bad row */
    enum column_type type; /* as declared there */
    bool is_inferred;      /* decl comes from the file's kinds, and moves when they narrow */
    bool is_untyped;       /* text only because nothing was in it */
    bool is_key;
};
#define PGD_FROM_NOWHERE (-1)
#define PGD_FROM_ROW_NUMBER (-2)

/* Fill decl, base and what follows from them for a type that we choose ourselves. */
void pgd_column_of_type(struct pgd_column *c, enum column_type type);
/* The same from what the catalog says; TYPMOD as pg_attribute has it. */
void pgd_column_of_catalog(struct pgd_column *c, const char *decl, const char *base, int typmod);
/* The type for what stood in a column of a file. IS_PLAIN: a value was found that the typed column would take with a
 * loss. */
enum column_type pgd_infer(const struct column *column, bool is_plain);
bool pgd_is_untyped(const struct column *column);
/* Could all that KINDS stand for go into C? Only what we know for sure is refused; the server looks at each value. */
bool pgd_kinds_fit(const struct pgd_column *c, const struct column *file);
/* Would the server take the value with a loss that it does not tell? Cheap; not NULL. */
bool pgd_would_lose(const struct pgd_column *c, const char *value, size_t n);

/* ---- postgres_catalog.c ---- */

struct pgd_columns {
    struct pgd_column *items;
    size_t count;
};

struct pgd_table {
    bool exists;
    bool is_ours; /* chute made it */
    char kind;    /* pg_class.relkind */
    uint32_t oid;
    bool is_related;            /* partitioned, a partition, or one of a family by inheritance */
    struct pgd_columns columns; /* without generated ones */
    const char **generated;     /* names of those that only the server fills */
    size_t generated_count;
    const char *untyped; /* names of columns that never had a value, each between \x1f */
};

/* What follows DELETE FROM: the rows of a partitioned table are those of its partitions, but tables that inherit from
 * an ordinary one have rows of their own, which are not the file's. */
static inline const char *pgd_own_rows(const struct pgd_table *t)
{
    return t->kind == 'p' ? "" : "ONLY ";
}

/* A SELECT whose result pgd_read_table() reads. */
void pgd_add_table_query(struct buf *b, const struct pgd_walker *w, const char *space, const char *table);
enum err_code pgd_read_table(struct pgd_walker *w, const struct pgd_result *r, const char *space, const char *table,
                             struct pgd_table *ret);

/* ---- postgres_plan.c ---- */

enum pgd_action {
    PGD_CREATE,  /* there is no such table */
    PGD_REBUILD, /* another table takes its place */
    PGD_REFILL,  /* delete all, fill: the definition stays */
    PGD_ADD,     /* append */
    PGD_MERGE    /* upsert, keep_first, newest */
};

/* One table that is filled in the transaction at hand. */
struct pgd_target {
    const struct load_plan *plan;
    struct shape *shape;
    const char *space, *table;
    bool is_part;    /* values were checked before they came here */
    unsigned number; /* of its stage */
    struct pgd_table have;
    struct pgd_columns want; /* as the file has them, row number first */
    struct pgd_columns dest; /* as the table has or will have them */
    size_t old_count;        /* columns of DEST from here on are to be added to the table */
    enum pgd_action action;
    bool is_merge;     /* by mode: rows go into a stage first */
    bool keeps_types;  /* types of the table bind: a value that does not fit is an error, not a new type */
    bool like_old;     /* REBUILD: the new table has the definition of the old one */
    const char **keys; /* legal names */
    size_t key_count;
    const char **orders;
    size_t order_count;
    char shadow[64]; /* REBUILD */
};

/* What the passes before this one have learned about the columns of a file; by column, NULL until one did. */
struct pgd_learned {
    bool *is_plain;    /* see pgd_infer() */
    bool was_narrowed; /* the file was read to its end: its kinds are final */
};

/* Decide want, dest, action of T from its shape and what T->have says. ERR_INPUT: they don't go together. */
enum err_code pgd_plan(struct pgd_walker *w, struct pgd_target *t, const struct pgd_learned *learned);
/* Did the kinds move since pgd_plan() so that an inferred type is not theirs any more? */
bool pgd_is_narrowed(const struct pgd_target *t, const struct pgd_learned *learned, bool at_end);
struct pgd_column *pgd_find_column(const struct pgd_columns *columns, const char *name);

/* ---- postgres_sql.c ---- */

/* All that happens to the table before the rows come: made, emptied, given columns; the stage or shadow. */
enum err_code pgd_make_ready(struct pgd_walker *w, struct pgd_target *t, const char *instance, bool with_load);
/* Where COPY goes: the table, its shadow or its stage. */
void pgd_add_copy_target(struct buf *b, const struct pgd_target *t);
/* "COPY … (columns) FROM STDIN" for our text form. WITH_LOAD: a first column that says which load. */
void pgd_add_copy(struct buf *b, const struct pgd_target *t, bool with_load);
/* The shadow takes the table's place. */
enum err_code pgd_swap(struct pgd_walker *w, struct pgd_target *t, const char *instance);
/* Note in _chute_tables that chute made the table. */
void pgd_add_own(struct buf *b, const struct pgd_walker *w, const struct pgd_target *t, const char *instance);
void pgd_add_names(struct buf *b, const char *prefix, const char *const *names, size_t count);

/* ---- postgres_merge.c ---- */

struct pgd_counts {
    uint64_t inserted, updated;
};
/*
 * Rows of the stage of T into its table. ROWS: how many there are. RET: per number of a load (0 without WITH_LOAD),
 * LOADS of them.
 */
enum err_code pgd_merge(struct pgd_walker *w, struct pgd_target *t, uint64_t rows, bool with_load, size_t loads,
                        struct pgd_counts *ret);

/* ---- postgres_feed.c ---- */

/* One row on its way into text. */
enum pgd_verdict {
    FEED_TAKEN,
    FEED_REJECTED, /* left out, and told to rows */
    FEED_NARROWED, /* a type of ours is too narrow: the pass goes on to learn all of them */
    FEED_FAILED    /* w->err */
};
struct pgd_feed {
    struct pgd_walker *w;
    struct pgd_target *t;
    struct rows *rows; /* whose rows they are, for rejects */
    struct pgd_learned *learned;
    size_t columns;       /* how many of dest get a value */
    const size_t *column; /* which */
    int load;             /* number for the first column, -1: there is none */
    struct buf text;
};
enum err_code pgd_feed_init(struct pgd_feed *f, struct pgd_walker *w, struct pgd_target *t, struct rows *rows,
                            struct pgd_learned *learned);
void pgd_feed_done(struct pgd_feed *f);
/* Append row ROW of B to f->text. */
enum pgd_verdict pgd_feed_row(struct pgd_feed *f, const struct row_batch *b, size_t row);
/* Take away what is behind SIZE. */
void pgd_cut(struct buf *text, size_t size);
/* Only look at the row: what would its values need? */
void pgd_feed_learn(struct pgd_feed *f, const struct row_batch *b, size_t row);

/* ---- postgres_careful.c ---- */

/* All rows from record SKIP on. *RET_NARROWED: a type of ours was too narrow, and the pass is not at its end. */
enum err_code pgd_careful_send(struct pgd_feed *feed, uint64_t skip, uint64_t *ret_taken, uint64_t *ret_skipped,
                               bool *ret_narrowed);
/* The rows of one batch, which are added to *TAKEN and *SKIPPED. */
enum err_code pgd_careful_batch(struct pgd_feed *feed, const struct row_batch *b, uint64_t skip, uint64_t *taken,
                                uint64_t *skipped, bool *ret_narrowed);
/* "COPY t, line 5, column c: …" -> 5; 0: it names none. */
unsigned long pgd_fault_line(const char *context);
/* The same -> "c"; false: it names none. */
bool pgd_fault_column(const char *context, char *ret, size_t size);

/* ---- postgres_raw.c ---- */

/* May the bytes of the file go to COPY as they are, as far as dialect, options and table tell? */
bool pgd_raw_is_possible(const struct load *load, const struct pgd_target *t);
/*
 * Send them while they are checked; *RET_ROWS by the server's count. *RET_OTHERWISE: the file has something that the
 * server would read in another way, or it refused a row: not an error, but the rows must be sent one by one.
 */
enum err_code pgd_raw_send(struct pgd_walker *w, struct pgd_target *t, struct load *load, uint64_t *ret_rows,
                           bool *ret_otherwise);

/* ---- postgres_receipt.c ---- */

/* Queries for this attempt and for this version; their results are read by pgd_read_receipt(). ONLY_LAST: a version
 * counts only while nothing else has happened to the table since (replace). */
void pgd_add_attempt_query(struct buf *b, const struct pgd_walker *w, const struct load *load);
void pgd_add_version_query(struct buf *b, const struct pgd_walker *w, const struct load *load, const char *path,
                           const uint8_t hash[16], bool only_last);
/* The same for many loads of one table at once: one query for the attempts, one for the versions. */
void pgd_add_attempts_query(struct buf *b, const struct pgd_walker *w, struct load *const *loads, size_t count);
void pgd_add_versions_query(struct buf *b, const struct pgd_walker *w, struct load *const *loads, size_t count);
/* Fill the receipt of LOAD from row ROW of R, if there is one, from column AT on. Returns whether. */
bool pgd_read_receipt(const struct pgd_result *r, size_t row, size_t at, struct load *load, bool is_attempt);
/* INSERT INTO _chute_loads … RETURNING id, in the order of LOADS. */
void pgd_add_receipts(struct buf *b, const struct pgd_walker *w, struct load *const *loads, size_t count,
                      const char *kind);
void pgd_clear_receipt(struct load *load);
/* From the result of the pass: hash, bytes, parsed, rejected. ERR_SYSTEM: the numbers don't add up. */
enum err_code pgd_complete_receipt(struct pgd_walker *w, struct load *load);

/* ---- postgres_load.c, postgres_group.c, postgres_change.c ---- */

/* LOAD_FILE without parts. w->err and the code; LOAD's receipt is filled. */
enum err_code pgd_load_file(struct pgd_walker *w, struct load *load);
/* May A share a transaction and the tables' statements with others? */
bool pgd_is_groupable(const struct load *load);
bool pgd_go_together(const struct load *a, const struct load *b);
/* COUNT (> 0) loads; each one's err and receipt are filled. */
void pgd_load_group(struct pgd_walker *w, struct load **loads, size_t count);
/* LOAD_DROP, LOAD_EMPTY, LOAD_CARRY, LOAD_FORGET. */
enum err_code pgd_change(struct pgd_walker *w, struct load *load);
/* What a version that is there already leaves to do. */
void pgd_set_failed(struct load *load, const struct err *err);

#endif
