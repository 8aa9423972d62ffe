/*
 * csv_text.h -- rows as CSV text, for destinations that take files and a file that can't go up as it is.
 *
 * Why: a file in another encoding, compressed with something that the destination can't read, with short rows that were
 * padded, or of which only the tail is wanted, is written anew while it is read; nothing is kept on disk.
 *
 * The text: fields divided by the delimiter, records ended by LF. NULL is an empty field, the empty string is "". What
 * holds a delimiter, a quote, CR or LF is quoted, quotes inside are doubled. The one exception: a NULL in a table of
 * one column is "" too, because a blank line is no record for most readers.
 */
#ifndef CHUTE_CSV_TEXT_H
#define CHUTE_CSV_TEXT_H

#include "err.h"
#include "rows.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Borrowed until csv_text_free(). */
struct csv_text_options {
    char delimiter;           /* 0: a comma */
    bool has_header;          /* write one */
    const char *const *names; /* of the header, as many as the shape has columns; NULL: those of the shape */
    const char *row_number;   /* name of a first column with the number of the record; NULL or "": none */
    uint64_t skip_records;    /* leave out the records (of the file, from 0) before this one */
};

struct csv_text; /* one pass */

/* ROWS is borrowed and stands at its beginning; nobody else pulls from it meanwhile. Any thread. ERR_SYSTEM: memory. */
enum err_code csv_text_new(struct rows *rows, const struct csv_text_options *options, struct csv_text **ret,
                           struct err *err);
void csv_text_free(struct csv_text *t);

/*
 * The next ROOM (> 0) bytes into BUF: *RET_SIZE is less only at the end. *RET_END: these were the last, no byte
 * follows; said with them, not after them. Blocks, as rows_next() does: any thread but the loop's, one at a time.
 * Errors are those of rows_next(); after one, only csv_text_free().
 */
enum err_code csv_text_read(struct csv_text *t, char *buf, size_t room, size_t *ret_size, bool *ret_end,
                            struct err *err);

#endif
