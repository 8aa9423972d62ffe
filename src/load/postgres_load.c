/*
 * postgres_load.c -- one file, from its first look to its receipt, in one transaction.
 *
 *   begin, lock, look ──▶ plan ──▶ make ready ──▶ fill ──▶ merge or swap ──▶ receipt, commit
 *        │ there already             ▲              │
 *        ▼                           └─ again ──────┘  nothing is left of the try before: the transaction was undone
 *      done
 *
 * Filling has three ways. RAW sends the bytes as they are. STREAM sends the rows in one COPY. CAREFUL sends them batch
 * by batch and finds the row that the server refuses. The first that is possible is tried; what it meets decides which
 * comes next. Types that are inferred come from the head of the file; if a later value contradicts them, the file is
 * read to its end, the types are known, and it is begun anew.
 */
#include "postgres_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES                                                                                                    \
    (48 * 1024) /* of a buffer that doubles; below what malloc() maps: see PIECE_BYTES of postgres_raw.c */
#define MOST_PASSES 8
#define MOST_COLLISIONS 3

enum way { WAY_RAW, WAY_STREAM, WAY_CAREFUL };

struct file_walk {
    struct pgd_walker *w;
    struct load *load;
    struct pgd_target t;
    struct pgd_learned learned;
    enum way way; /* the best that may be tried */
    bool again;   /* the try failed in a way that another one knows how to take */
    bool is_duplicate;
    bool has_begun; /* the server answered to BEGIN */
    uint64_t filled, skipped;
};

/* ---- look ---- */

static enum err_code look(struct file_walk *f)
{
    struct pgd_walker *w = f->w;
    struct load *load = f->load;
    const struct shape *shape = load->rows->shape;
    bool by_hash = shape->has_hash && load->plan->on_duplicate != DUPLICATE_RELOAD;
    struct pgd_results r;
    struct buf sql;
    buf_init(&sql);
    buf_adds(&sql, "BEGIN;");
    pgd_add_lock(&sql, load->space, load->table);
    pgd_add_attempt_query(&sql, w, load);
    if (by_hash)
        pgd_add_version_query(&sql, w, load, load->path, shape->hash, load->plan->mode == MODE_REPLACE);
    pgd_add_table_query(&sql, w, load->space, load->table);
    enum err_code code = pgd_ask(w, &sql, &r, "begin the load");
    buf_done(&sql);
    if (code != ERR_NONE)
        return code;
    f->has_begun = true;
    if (r.count < 4u + by_hash)
        return err_set(w->err, ERR_REMOTE, true, "the server gave %zu answers to %u questions", r.count, 4u + by_hash);
    f->is_duplicate = pgd_read_receipt(&r.items[2], 0, 0, load, true);
    if (f->is_duplicate)
        return ERR_NONE;
    code = pgd_read_table(w, &r.items[r.count - 1], load->space, load->table, &f->t.have);
    /* Somebody dropped the table: it holds no version at all. */
    if (code == ERR_NONE && by_hash && f->t.have.exists)
        f->is_duplicate = pgd_read_receipt(&r.items[3], 0, 0, load, false);
    return code;
}

/* ---- fill ---- */

/* Read to the end without sending: what types does all of the file need? */
static enum err_code learn_the_rest(struct file_walk *f, struct pgd_feed *feed)
{
    const struct row_batch *batch;
    do {
        if (pgd_is_stopped(f->w))
            return err_set(f->w->err, ERR_STOPPED, true, "stopped");
        if (rows_next(f->load->rows, &batch, f->w->err) != ERR_NONE)
            return f->w->err->code;
        for (size_t row = 0; row < batch->rows; row++)
            pgd_feed_learn(feed, batch, row);
    } while (batch->rows > 0);
    return ERR_NONE;
}

static enum err_code narrow(struct file_walk *f, struct pgd_feed *feed)
{
    pgd_rollback(f->w); /* nobody is kept waiting while the file is read */
    if (learn_the_rest(f, feed) != ERR_NONE)
        return f->w->err->code;
    f->learned.was_narrowed = true;
    f->again = true;
    return err_set(f->w->err, ERR_CHANGED, true, "the types of the file go on changing");
}

static enum err_code put_text(struct file_walk *f, struct pgd_feed *feed)
{
    size_t size = feed->text.size;
    if (size == 0)
        return ERR_NONE;
    char *data = buf_take(&feed->text);
    if (data == NULL)
        return err_nomem(f->w->err);
    if (pgd_line_put(f->w->line, data, size, f->w->err) == ERR_NONE)
        return ERR_NONE;
    f->again = pgd_is_data_fault(f->w);
    return pgd_fail(f->w, "");
}

/* The rows of one batch. *RET_NARROWED: a type is too narrow. */
static enum err_code stream_batch(struct file_walk *f, struct pgd_feed *feed, const struct row_batch *b,
                                  bool *ret_narrowed)
{
    for (size_t row = 0; row < b->rows; row++) {
        if (b->record[row] < f->load->skip_records) {
            f->skipped++;
            continue;
        }
        switch (pgd_feed_row(feed, b, row)) {
        case FEED_TAKEN:
            f->filled++;
            break;
        case FEED_REJECTED:
            break;
        case FEED_NARROWED:
            *ret_narrowed = true;
            return ERR_NONE;
        case FEED_FAILED:
            return f->w->err->code;
        }
        if (feed->text.size >= CHUNK_BYTES && put_text(f, feed) != ERR_NONE)
            return f->w->err->code;
    }
    return ERR_NONE;
}

static enum err_code stream_rows(struct file_walk *f, struct pgd_feed *feed, bool *ret_narrowed)
{
    const struct row_batch *batch;
    do {
        if (rows_next(f->load->rows, &batch, f->w->err) != ERR_NONE)
            return f->w->err->code;
        if (pgd_is_stopped(f->w))
            return err_set(f->w->err, ERR_STOPPED, true, "stopped");
        *ret_narrowed = pgd_is_narrowed(&f->t, &f->learned, batch->rows == 0);
        if (!*ret_narrowed && stream_batch(f, feed, batch, ret_narrowed) != ERR_NONE)
            return f->w->err->code;
    } while (batch->rows > 0 && !*ret_narrowed);
    return *ret_narrowed ? ERR_NONE : put_text(f, feed);
}

static enum err_code check_count(struct file_walk *f, uint64_t rows)
{
    if (rows == f->filled)
        return ERR_NONE;
    return err_set(f->w->err, ERR_INPUT, false,
                   "table %s.%s took %" PRIu64 " of %" PRIu64
                   " rows without saying why: is there a trigger that leaves some out?",
                   f->t.space, f->t.table, rows, f->filled);
}

static enum err_code fill_stream(struct file_walk *f, struct pgd_feed *feed)
{
    struct pgd_walker *w = f->w;
    struct buf sql;
    uint64_t rows = 0;
    bool is_narrowed = false;
    buf_init(&sql);
    pgd_add_copy(&sql, &f->t, false);
    enum err_code code = sql.failed ? err_nomem(w->err) : pgd_line_copy(w->line, sql.data, w->err);
    if (code == ERR_NONE) {
        code = stream_rows(f, feed, &is_narrowed);
        if (code != ERR_NONE || is_narrowed) {
            pgd_line_copy_abort(w->line);
        } else if (pgd_line_copy_end(w->line, &rows, w->err) != ERR_NONE) {
            f->again = pgd_is_data_fault(w);
            code = pgd_fail(w, "");
        }
    }
    buf_done(&sql);
    if (f->again)
        f->way = WAY_CAREFUL;
    if (code == ERR_NONE && is_narrowed)
        return narrow(f, feed);
    return code == ERR_NONE ? check_count(f, rows) : code;
}

static enum err_code fill_careful(struct file_walk *f, struct pgd_feed *feed)
{
    bool is_narrowed;
    enum err_code code = pgd_careful_send(feed, f->load->skip_records, &f->filled, &f->skipped, &is_narrowed);
    return code == ERR_NONE && is_narrowed ? narrow(f, feed) : code;
}

static enum err_code fill_raw(struct file_walk *f)
{
    bool is_otherwise;
    enum err_code code = pgd_raw_send(f->w, &f->t, f->load, &f->filled, &is_otherwise);
    if (code != ERR_NONE && is_otherwise) {
        /* 22P04: the server sees other rows in the bytes. Any other word of it is about a row, which is to be found. */
        const char *sqlstate = pgd_line_fault(f->w->line)->sqlstate;
        bool is_refused = sqlstate[0] != '\0' && strcmp(sqlstate, "22P04") != 0 && strcmp(sqlstate, "57014") != 0;
        f->again = true;
        f->way = is_refused ? WAY_CAREFUL : WAY_STREAM;
    }
    return code;
}

static enum err_code fill(struct file_walk *f)
{
    struct pgd_feed feed;
    f->filled = f->skipped = 0;
    if (f->way == WAY_RAW && pgd_raw_is_possible(f->load, &f->t))
        return fill_raw(f);
    enum err_code code = pgd_feed_init(&feed, f->w, &f->t, f->load->rows, &f->learned);
    if (code == ERR_NONE)
        code = f->way == WAY_CAREFUL ? fill_careful(f, &feed) : fill_stream(f, &feed);
    pgd_feed_done(&feed);
    return code;
}

/* ---- the end ---- */

/* The hash is known by now: is the version there already? */
static enum err_code judge(struct file_walk *f)
{
    struct pgd_walker *w = f->w;
    struct load *load = f->load;
    const struct shape *shape = load->rows->shape;
    enum err_code code = ERR_NONE;
    /* Receipts of a table that was not there speak of rows that are gone. */
    if (!shape->has_hash && f->t.have.exists && load->plan->on_duplicate != DUPLICATE_RELOAD) {
        struct pgd_results r;
        struct buf sql;
        buf_init(&sql);
        pgd_add_version_query(&sql, w, load, load->path, load->rows->result.hash, load->plan->mode == MODE_REPLACE);
        code = pgd_ask(w, &sql, &r, "look for a receipt");
        buf_done(&sql);
        f->is_duplicate = code == ERR_NONE && r.count > 0 && pgd_read_receipt(&r.items[0], 0, 0, load, false);
    }
    if (code == ERR_NONE && !f->is_duplicate && load->still_current != NULL)
        code = load->still_current(load, w->err);
    return code;
}

static enum err_code count_rows(struct file_walk *f)
{
    struct receipt *r = &f->load->receipt;
    struct pgd_counts counts = {f->filled, 0};
    enum err_code code = ERR_NONE;
    if (f->t.is_merge) {
        counts.inserted = 0;
        code = pgd_merge(f->w, &f->t, f->filled, false, 1, &counts);
    }
    r->inserted = counts.inserted;
    r->updated = counts.updated;
    r->unchanged = f->filled - counts.inserted - counts.updated + f->skipped;
    r->created_table = !f->t.have.exists;
    return code;
}

static enum err_code commit(struct file_walk *f)
{
    struct pgd_walker *w = f->w;
    struct pgd_results r;
    struct buf sql;
    if (pgd_complete_receipt(w, f->load) != ERR_NONE)
        return w->err->code;
    buf_init(&sql);
    if (f->t.have.is_ours && f->t.action == PGD_REFILL && f->t.have.untyped != NULL && f->t.have.untyped[0] != '\0')
        pgd_add_own(&sql, w, &f->t, f->load->instance); /* what was without a value may have one now */
    buf_adds(&sql, "SET CONSTRAINTS ALL IMMEDIATE;");   /* deferred ones are errors of rows, not of COMMIT */
    pgd_add_receipts(&sql, w, &f->load, 1, "load");
    buf_adds(&sql, "COMMIT");
    enum err_code code = pgd_ask_long(w, &sql, &r, "commit");
    buf_done(&sql);
    if (code == ERR_NONE && r.count >= 2) {
        const char *id = pgd_cell(&r.items[r.count - 2], 0, 0);
        snprintf(f->load->receipt.dest_id, sizeof(f->load->receipt.dest_id), "%s", id != NULL ? id : "");
    }
    if (code == ERR_NONE) {
        w->open_stages = 0;
        pgd_line_warning(w->line, f->load->receipt.warnings, sizeof(f->load->receipt.warnings));
    }
    return code;
}

/* ---- one try, and the next ---- */

static enum err_code attempt(struct file_walk *f)
{
    struct pgd_walker *w = f->w;
    struct load *load = f->load;
    arena_done(&w->arena);
    arena_init(&w->arena);
    pgd_clear_receipt(load);
    err_clear(w->err);
    memset(&f->t, 0, sizeof(f->t));
    f->t.plan = load->plan;
    f->t.shape = load->rows->shape;
    f->t.space = load->space;
    f->t.table = load->table;
    f->again = f->is_duplicate = f->has_begun = false;
    pgd_line_warning(w->line, load->receipt.warnings, sizeof(load->receipt.warnings)); /* those of before are others' */
    load->receipt.warnings[0] = '\0';
    enum err_code code = look(f);
    if (code == ERR_NONE && f->is_duplicate)
        return ERR_NONE;
    if (code == ERR_NONE)
        code = pgd_plan(w, &f->t, &f->learned);
    if (code == ERR_NONE)
        code = pgd_make_ready(w, &f->t, load->instance, false);
    if (code == ERR_NONE)
        code = fill(f);
    if (code == ERR_NONE)
        code = judge(f);
    if (code != ERR_NONE || f->is_duplicate)
        return code;
    code = count_rows(f);
    if (code == ERR_NONE && f->t.action == PGD_REBUILD)
        code = pgd_swap(w, &f->t, load->instance);
    return code == ERR_NONE ? commit(f) : code;
}

/* The schema is gone since it was made: a flow of its own, somebody's DROP. */
static bool lacks_schema(const struct pgd_walker *w)
{
    return strcmp(pgd_line_fault(w->line)->sqlstate, "3F000") == 0;
}

/* Did the connection turn out to be dead before anything was done on it? Servers are restarted while we are idle. */
static bool was_dead(const struct file_walk *f)
{
    return !f->has_begun && f->w->err->code == ERR_REMOTE && pgd_line_is_lost(f->w->line);
}

static enum err_code walk(struct file_walk *f)
{
    struct pgd_walker *w = f->w;
    unsigned collisions = 0, revivals = 0, schemas = 0;
    for (unsigned pass = 1;; pass++) {
        enum err_code code = pgd_prepare(w);
        if (code != ERR_NONE)
            return code;
        code = attempt(f);
        bool is_collision = code != ERR_NONE && !f->again && pgd_is_collision(w);
        bool was_lacking = code != ERR_NONE && lacks_schema(w);
        pgd_rollback(w);
        if (code == ERR_NONE || w->err->code == ERR_STOPPED || pass == MOST_PASSES)
            return code;
        if (was_lacking && schemas++ == 0) {
            struct err said = *w->err;
            if (pgd_prepare(w) != ERR_NONE || pgd_make_schema(w, f->load->space) != ERR_NONE)
                return w->err->code;
            *w->err = said;
        } else if (!f->again && !(is_collision && collisions++ < MOST_COLLISIONS) &&
                   !(was_dead(f) && revivals++ == 0)) {
            return code;
        }
        if (rows_rewind(f->load->rows, w->err) != ERR_NONE)
            return w->err->code;
    }
}

enum err_code pgd_load_file(struct pgd_walker *w, struct load *load)
{
    struct file_walk f = {.w = w, .load = load};
    size_t columns = load->rows->shape->column_count;
    f.learned.is_plain = calloc(columns + 1, sizeof(*f.learned.is_plain));
    if (f.learned.is_plain == NULL)
        return err_nomem(w->err);
    w->stop = &load->stop;
    enum err_code code = walk(&f);
    w->stop = NULL;
    free(f.learned.is_plain);
    return code;
}
