/*
 * rows.h -- the stream of rows from inspect to a destination.
 *
 * Inspect implements it, a driver pulls from it on one thread (not the loop's).
 * For large files the parser runs ahead on a thread of its own; the driver does
 * not see the difference. Everything that checks a file happens in this one
 * pass: encoding, NUL, quotes, field counts, types, counts, hash.
 *
 * A pass ends with rows_next() returning ERR_NONE and an empty batch. Only then
 * are `kinds`, `hash` and the counts those of the whole file.
 */
#ifndef CHUTE_ROWS_H
#define CHUTE_ROWS_H

#include "err.h"
#include "shape.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Some rows, row-major: cell (r, c) is at index r * columns + c. Valid until the
 * next rows_next() or rows_free(). A NULL value is SQL NULL. Values are not NUL-terminated.
 */
struct row_batch {
    size_t rows;
    size_t part;    /* which part of the load they belong to (load->parts); 0 where it has none */
    size_t columns; /* as the shape has (of the part, if there are any); padded rows are already padded */
    const char *const *value;
    const uint32_t *length; /* bytes */
    const uint64_t *record; /* per row: number of the record in the file, from 0, rejected ones counted */
    const uint64_t *line;   /* per row: line on which the record starts, from 1 */
    const uint64_t *offset; /* per row: byte offset of the record in the decompressed text */
};

/* What one whole pass found. */
struct rows_result {
    uint64_t records;  /* data records in the file: good ones + rejected ones (parsed) */
    uint64_t rejected; /* by us or by rows_reject() */
    uint64_t
        odd; /* short rows filled up and blank lines left out: where others would read other rows out of the bytes */
    uint64_t loose;   /* quotes inside fields that began without one: data to us, but not to everybody */
    uint64_t bytes;   /* of the file as it is on disk */
    uint8_t hash[16]; /* XXH3-128 of those bytes */
};

/* What a pass without rows tells on its way, and what ends it early. Callbacks on the caller's thread. */
struct rows_skim {
    uint64_t cut_bytes; /* 0: no cuts. Else ON_CUT gets the offset of the first good record (of row_batch.offset), and
                           of each further one that lies at least so many bytes behind the one told before */
    void (*on_cut)(void *arg, uint64_t offset);
    void *arg;
    const _Atomic bool *stop; /* ERR_STOPPED soon after it is set; NULL: nobody stops it */
    bool no_kinds;            /* the kinds of this pass are not wanted: it may leave those of the shape as they were */
};

struct rows;
struct rows_ops {
    enum err_code (*next)(struct rows *rows, const struct row_batch **ret_batch, struct err *err);
    enum err_code (*reject)(struct rows *rows, size_t row, int column, const char *reason, struct err *err);
    enum err_code (*rewind)(struct rows *rows, struct err *err);
    void (*free)(struct rows *rows);
    /* NULL: rows_pull_all() */
    enum err_code (*skim)(struct rows *rows, const struct rows_skim *skim, struct err *err);
};

/* The base of every implementation; members are read by drivers, written by the implementation. */
struct rows {
    const struct rows_ops *ops;
    struct shape *shape;         /* kinds are narrowed as the pass goes on: read them between batches only */
    struct rows_result result;   /* complete after the last, empty batch */
    _Atomic uint64_t bytes_done; /* progress, may be read by any thread */
    _Atomic uint64_t rows_done;
};

/*
 * The next batch, or an empty one (rows == 0) at the end. Blocks; never on the loop thread.
 * ERR_INPUT: a bad row that may not be skipped, or bad bytes: line, column and byte offset in the text.
 * ERR_INCOMPLETE: the file ends early (unclosed quote, gzip without trailer). ERR_SYSTEM: reading failed.
 */
static inline enum err_code rows_next(struct rows *rows, const struct row_batch **ret_batch, struct err *err)
{
    return rows->ops->next(rows, ret_batch, err);
}

/*
 * The driver's verdict that row ROW of the current batch is bad (a value that its table can't hold, a NULL in a
 * key). COLUMN: the offending one, from 0, or -1. Counts towards bad_rows: ERR_NONE if the row is to be left
 * out, ERR_INPUT (with the place) if the whole file is.
 */
static inline enum err_code rows_reject(struct rows *rows, size_t row, int column, const char *reason, struct err *err)
{
    return rows->ops->reject(rows, row, column, reason, err);
}

/*
 * Start again from the first row, for a second pass; counts and rejects of the first one are forgotten, KINDS of the
 * shape stay narrowed. May be called in the middle of a pass.
 */
static inline enum err_code rows_rewind(struct rows *rows, struct err *err)
{
    return rows->ops->rewind(rows, err);
}

/* rows_skim() by means of rows_next(). */
static inline enum err_code rows_pull_all(struct rows *rows, const struct rows_skim *skim, struct err *err)
{
    const struct row_batch *batch;
    uint64_t next_cut = 0;
    do {
        if (skim->stop != NULL && atomic_load_explicit(skim->stop, memory_order_relaxed))
            return err_set(err, ERR_STOPPED, false, "stopped");
        if (rows_next(rows, &batch, err) != ERR_NONE)
            return err->code;
        for (size_t r = 0; r < batch->rows && skim->cut_bytes > 0; r++) {
            if (batch->offset[r] < next_cut)
                continue;
            skim->on_cut(skim->arg, batch->offset[r]);
            next_cut = batch->offset[r] + skim->cut_bytes;
        }
    } while (batch->rows > 0);
    return ERR_NONE;
}

/*
 * The whole pass at once, for one who wants to know that the file is good and what `result` says of it, but no rows:
 * the same checks, errors, rejects and result as by rows_next(), for a fraction of the time. At the start of a pass;
 * only rows_rewind() and rows_free() may follow. Blocks; never on the loop thread. ERR_STOPPED, and as rows_next().
 */
static inline enum err_code rows_skim(struct rows *rows, const struct rows_skim *skim, struct err *err)
{
    return rows->ops->skim != NULL ? rows->ops->skim(rows, skim, err) : rows_pull_all(rows, skim, err);
}

static inline void rows_free(struct rows *rows)
{
    if (rows != NULL)
        rows->ops->free(rows);
}

/* Where rejected rows go; the job gives one to inspect when bad_rows allows any. Called on the puller's thread. */
struct reject_sink {
    void *arg;
    /* One rejected row, as parsed; REASON says column and cause. Returns false if it can't be kept (then the file
     * fails). */
    bool (*put)(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                const uint32_t *length, size_t fields);
    /* The pass starts again: forget all rows put so far. */
    void (*restart)(void *arg);
};

#endif
