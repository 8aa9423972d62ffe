/*
 * inspect.h -- what a file is: compression, encoding, dialect, header, column types; and its rows.
 *
 * Why here: everything later trusts the shape and never looks at raw bytes again. It must never cut a record, guess
 * an encoding, or take memory by the size of the file or of a row beyond max_row.
 */
#ifndef CHUTE_INSPECT_H
#define CHUTE_INSPECT_H

#include "arena.h"
#include "err.h"
#include "option.h"
#include "rows.h"
#include "shape.h"

enum short_rows { SHORT_REJECT, SHORT_PAD };

/* The `csv:` mapping of a flow. */
struct csv_options {
    char delimiter; /* 0: auto */
    char quote;
    int header;   /* 0: first_row */
    int encoding; /* enum encoding */
    struct option_strings null_values;
    int short_rows;   /* enum short_rows */
    uint64_t max_row; /* bytes */
};
/* The table of `csv:`; defined in src/config/options.c with all other tables of a flow. */
extern const struct option csv_option_table[]; /* defined in src/config/options.c: inspect parses no options */

/* ---- events: flows with `format: json` */

/* What a column of a record is declared as; in the order of event_type_names. */
enum event_type {
    EVENT_BIGINT,
    EVENT_DOUBLE,
    EVENT_DECIMAL,
    EVENT_BOOLEAN,
    EVENT_DATE,
    EVENT_TIMESTAMP,
    EVENT_TIMESTAMPTZ,
    EVENT_TEXT,
    EVENT_JSON
};
extern const char *const event_type_names[]; /* NULL-terminated */

/* A column of a record. FROM is a JSON Pointer (RFC 6901), "" the whole event. */
struct event_column {
    const char *name;
    const char *from;
    int type;                 /* enum event_type */
    bool required;            /* missing or null: a bad event */
    const char *default_text; /* the value when there is nothing at FROM (null is something); NULL: NULL */
    size_t node;              /* set by event_compile() */
};

/* A rule applies when at FROM there is one of VALUES: a text, or a number or boolean written like that. */
struct event_when {
    const char *from;
    struct option_strings values;
    size_t node; /* set by event_compile() */
};

/* One of `records`. Its rows belong to part PART of the load; rules with the same part have the same columns. */
struct event_rule {
    struct event_when *whens; /* all of them; none: every event */
    size_t when_count;
    struct event_column *columns;
    size_t column_count;
    size_t part;
    bool goes_on; /* later rules see the event as well */
};

struct event_tree;
struct event_options {
    uint64_t max_event; /* bytes of one event */
    struct event_rule *rules;
    size_t rule_count, part_count;
    const struct event_tree *tree; /* set by event_compile() */
};
#define MAX_EVENT_MAX ((int64_t)256 * 1024 * 1024)
#define EVENT_COLUMNS_MAX 1600 /* of one rule */
#define EVENT_PART_RULES 16    /* rules with one part; more might not fit into a batch together */

/* Is POINTER a JSON Pointer? ERR_CONFIG says what is wrong with it. */
bool event_pointer_check(const char *pointer, struct err *err);
/* Can TEXT be the value of a column of TYPE? ERR_CONFIG: what was expected. */
bool event_default_check(enum event_type type, const char *text, struct err *err);
/* Prepare EVENTS for use, once; memory from ARENA. Pointers and defaults were checked. Read-only afterwards, any
 * thread. ERR_SYSTEM. */
enum err_code event_compile(struct event_options *events, struct arena *arena, struct err *err);

/*
 * Events that a destination refused a row of, though rows of theirs lie in other tables as well (`continue: true`). A
 * pass that finds a new one ends in ERR_INPUT, so that nothing of it is committed, with is_new set: the caller has the
 * file read again, and then these events are left out as wholes. At most skip_bad_rows. Zeroed by the owner, who
 * outlives the rows; one thread at a time.
 */
struct refused_event {
    uint64_t offset; /* of the event in the text */
    char *reason;
};
struct refused_events {
    struct refused_event *items;
    size_t count, room;
    bool is_new;
};
void refused_events_done(struct refused_events *refused);

struct inspect_options {
    const struct csv_options *csv;
    const struct event_options *events; /* for inspect_events() only */
    uint64_t skip_bad_rows;             /* bad_rows: {skip: N}; 0: reject_file */
    const char *const *expect_columns;  /* columns of the table, if it exists: only a dialect whose header has them
                                           (by name, any order) is accepted by `auto`; NULL: unknown */
    size_t expect_count;
    bool no_kinds;                  /* nobody asks which kinds of value the columns have: don't look */
    struct reject_sink sink;        /* used when skip_bad_rows > 0 */
    struct refused_events *refused; /* for inspect_events(); NULL: a refused row is left out alone */
    uint64_t buffer_bytes;          /* bound for read-ahead; 0: 4 MiB */
};

/*
 * Read the head of FD (up to 1 MiB of text) and say what it is. A file that ends within the head is read whole:
 * shape->is_whole and has_hash are set. Blocks; pool threads. Everything returned lives in ARENA.
 * FD: regular file at offset 0, borrowed; its offset is left anywhere.
 * ERR_INPUT, ERR_INCOMPLETE (line, column, offset in the text), ERR_SYSTEM.
 * An empty file (0 bytes of text) gives column_count 0.
 */
enum err_code inspect_head(int fd, const struct inspect_options *options, struct arena *arena, struct shape **ret_shape,
                           struct err *err);

/* The rows of FD, read from offset 0. Narrows SHAPE's kinds. OPTIONS, SHAPE and FD outlive it. Blocks; pool threads. */
enum err_code inspect_rows(int fd, const struct inspect_options *options, struct shape *shape, struct rows **ret_rows,
                           struct err *err);

/*
 * A file of JSON events: one, an array of them, or one after the other (one a line), in UTF-8. RET_ROWS is NULL when
 * there is nothing but white space in it. SHAPE has no columns; is_whole and has_hash are set for a file whose text is
 * at most EVENT_HEAD_BYTES long. The rows' batches name their part; a record is a row or a rejected event.
 * FD: regular file at offset 0, borrowed; it, OPTIONS and ARENA outlive the rows. Blocks; pool threads.
 * ERR_INPUT, ERR_INCOMPLETE (damaged or cut compressed data), ERR_SYSTEM. What is wrong with an event is told by
 * rows_next(): ERR_INCOMPLETE when the text ends inside an event or array; ERR_INPUT at the end of a pass that has to
 * be made again (struct refused_events).
 */
enum err_code inspect_events(int fd, const struct inspect_options *options, struct arena *arena,
                             struct shape **ret_shape, struct rows **ret_rows, struct err *err);
#define EVENT_HEAD_BYTES ((size_t)256 * 1024)

/* XXH3-128 of the bytes of FD from 0 to its end; SIZE bytes read. STOP (may be NULL) ends it early with ERR_STOPPED. */
enum err_code inspect_hash(int fd, const _Atomic bool *stop, uint8_t ret_hash[16], uint64_t *ret_size, struct err *err);

/* The same of the first LIMIT bytes, or of all if there are fewer; SIZE says how many were read. */
enum err_code inspect_hash_prefix(int fd, uint64_t limit, const _Atomic bool *stop, uint8_t ret_hash[16],
                                  uint64_t *ret_size, struct err *err);

/* "comma, utf-8", "semicolon, windows-1250, gzip" */
void inspect_dialect_text(const struct dialect *dialect, char *ret, size_t size);

#endif
