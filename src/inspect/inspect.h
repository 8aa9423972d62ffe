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

struct inspect_options {
    const struct csv_options *csv;
    uint64_t skip_bad_rows;            /* bad_rows: {skip: N}; 0: reject_file */
    const char *const *expect_columns; /* columns of the table, if it exists: only a dialect whose header has them
                                          (by name, any order) is accepted by `auto`; NULL: unknown */
    size_t expect_count;
    bool no_kinds;           /* nobody asks which kinds of value the columns have: don't look */
    struct reject_sink sink; /* used when skip_bad_rows > 0 */
    uint64_t buffer_bytes;   /* bound for read-ahead; 0: 4 MiB */
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

/* XXH3-128 of the bytes of FD from 0 to its end; SIZE bytes read. STOP (may be NULL) ends it early with ERR_STOPPED. */
enum err_code inspect_hash(int fd, const _Atomic bool *stop, uint8_t ret_hash[16], uint64_t *ret_size, struct err *err);

/* The same of the first LIMIT bytes, or of all if there are fewer; SIZE says how many were read. */
enum err_code inspect_hash_prefix(int fd, uint64_t limit, const _Atomic bool *stop, uint8_t ret_hash[16],
                                  uint64_t *ret_size, struct err *err);

/* "comma, utf-8", "semicolon, windows-1250, gzip" */
void inspect_dialect_text(const struct dialect *dialect, char *ret, size_t size);

#endif
