/*
 * postgres_raw.c -- a file's bytes to COPY as they are, while they are checked.
 *
 * Why: the server reads CSV faster than we could write it anew, on one slow core that counts. But it does not read all
 * CSV as we do: a line `\.` ends its input, a quote inside an unquoted field opens one, a blank line is a row. And some
 * types take a value with a loss. So nothing is sent before the checks have passed over it, in pieces that end where a
 * record ends; what the server would read in another way is seen before it counts, and the rows are sent one by one.
 */
#include "postgres_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Below what malloc() takes from the system and gives back each time, page by page, with a word to every core. */
#define PIECE_BYTES (96 * 1024)
#define MOST_BYTES (1024 * 1024) /* of one piece in memory; a record may be longer and is sent in parts then */

struct raw {
    struct pgd_walker *w;
    struct pgd_target *t;
    struct load *load;
    const struct pgd_column **checked; /* by column of the file: may it lose something? NULL: no column may */
    uint64_t at;                       /* what is before it has been sent */
    bool has_begun;                    /* AT is known */
    char before;                       /* the byte before AT */
    _Atomic bool stop;
    bool is_otherwise;
    enum err_code code; /* of sending */
};

bool pgd_raw_is_possible(const struct load *load, const struct pgd_target *t)
{
    const struct dialect *d = &t->shape->dialect;
    const struct load_plan *plan = t->plan;
    if (load->fd < 0 || t->is_part || d->encoding != ENC_UTF8 || d->compression != COMPRESSION_NONE || d->ends_cr)
        return false;
    if (t->shape->column_count < 2 || load->skip_records > 0 ||
        (plan->row_number != NULL && plan->row_number[0] != '\0'))
        return false;
    if (d->quote == '\0' || d->quote == d->delimiter || plan->null_values.count != 1)
        return false;
    const char *null = plan->null_values.items[0];
    if (strchr(null, d->delimiter) != NULL || strchr(null, d->quote) != NULL || strpbrk(null, "\r\n\\") != NULL)
        return false;
    for (size_t i = 0; i < t->dest.count; i++)
        if (t->dest.items[i].is_inferred || t->dest.items[i].is_declared)
            return false; /* every value has to be looked at */
    /* Where the types may move, a value that does not fit is no error but the sign to look again. */
    return t->keeps_types || plan->types.policy == TYPES_TEXT;
}

/* ---- what the server would take in another way ---- */

/* Is there a line that begins with \. in the N bytes at S? */
static bool has_end_mark(const struct raw *r, const char *s, size_t n)
{
    const char *end = s + n;
    for (const char *p = s; (p = memchr(p, '\\', (size_t)(end - p))) != NULL; p++) {
        char before = p > s ? p[-1] : r->before;
        if ((before == '\n' || before == '\r') && (p + 1 == end || p[1] == '.'))
            return true;
    }
    return false;
}

/* Whole records: does a value of a checked column lose something? */
static bool loses(const struct raw *r, const char *s, size_t n)
{
    const struct dialect *d = &r->t->shape->dialect;
    const size_t columns = r->t->shape->column_count;
    const char *end = s + n;
    size_t column = 0;
    while (s < end) {
        const char *from = s, *to;
        if (*s == d->quote) {
            from = ++s;
            for (;;) { /* a doubled quote is a quote and another one: both loops end at the right place */
                s = memchr(s, d->quote, (size_t)(end - s));
                if (s == NULL || s + 1 >= end || s[1] != d->quote)
                    break;
                s += 2;
            }
            if (s == NULL)
                return true;
            to = s++;
        } else {
            while (s < end && *s != d->delimiter && *s != '\n')
                s++;
            to = s > from && s[-1] == '\r' && (s == end || *s == '\n') ? s - 1 : s;
        }
        const struct pgd_column *c = column < columns ? r->checked[column] : NULL;
        if (c != NULL && to > from && pgd_would_lose(c, from, (size_t)(to - from)))
            return true;
        while (s < end && *s != d->delimiter && *s != '\n')
            s++; /* a CR behind a closing quote */
        column = s < end && *s == d->delimiter ? column + 1 : 0;
        s++;
    }
    return false;
}

static enum err_code find_checked(struct raw *r)
{
    const struct pgd_target *t = r->t;
    for (size_t i = 0; i < t->dest.count; i++) {
        const struct pgd_column *c = &t->dest.items[i];
        if (c->from < 0 || c->loss == LOSS_NONE)
            continue;
        if (r->checked == NULL)
            r->checked = arena_alloc(&r->w->arena, t->shape->column_count * sizeof(*r->checked));
        if (r->checked == NULL)
            return err_nomem(r->w->err);
        r->checked[c->from] = c;
    }
    return ERR_NONE;
}

/* ---- sending ---- */

static enum err_code read_at(struct raw *r, char *to, size_t n, uint64_t offset)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(r->load->fd, to + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(r->w->err, ERR_SYSTEM, true, "read: %s", strerror(errno));
        if (got == 0)
            return err_set(r->w->err, ERR_CHANGED, true, "changed while it was being read: it became shorter");
        done += (size_t)got;
    }
    return ERR_NONE;
}

static enum err_code send_piece(struct raw *r, size_t n, bool is_whole)
{
    char *piece = malloc(n);
    if (piece == NULL)
        return err_nomem(r->w->err);
    enum err_code code = read_at(r, piece, n, r->at);
    if (code == ERR_NONE && (has_end_mark(r, piece, n) || (r->checked != NULL && (!is_whole || loses(r, piece, n))))) {
        r->is_otherwise = true;
        code = ERR_INPUT;
    }
    if (code != ERR_NONE) {
        free(piece);
        return code;
    }
    r->before = piece[n - 1];
    r->at += n;
    if (pgd_line_put(r->w->line, piece, n, r->w->err) == ERR_NONE)
        return ERR_NONE;
    r->is_otherwise = pgd_is_data_fault(r->w);
    return pgd_fail(r->w, "");
}

static enum err_code send_to(struct raw *r, uint64_t end)
{
    bool is_whole = end - r->at <= MOST_BYTES;
    while (r->at < end) {
        uint64_t left = end - r->at;
        enum err_code code = send_piece(r, left <= MOST_BYTES ? (size_t)left : PIECE_BYTES, is_whole);
        if (code != ERR_NONE)
            return code;
    }
    return ERR_NONE;
}

static void on_cut(void *arg, uint64_t offset)
{
    struct raw *r = arg;
    if (r->code != ERR_NONE)
        return;
    if (!r->has_begun) {
        r->has_begun = true;
        r->at = offset;
        return;
    }
    r->code = pgd_is_stopped(r->w) ? err_set(r->w->err, ERR_STOPPED, true, "stopped") : send_to(r, offset);
    if (r->code != ERR_NONE)
        atomic_store(&r->stop, true);
}

static void add_copy(struct buf *b, const struct pgd_target *t)
{
    const char delimiter[2] = {t->shape->dialect.delimiter, '\0'}, quote[2] = {t->shape->dialect.quote, '\0'};
    const char *null = t->plan->null_values.items[0];
    buf_adds(b, "COPY ");
    pgd_add_copy_target(b, t);
    for (size_t c = 0; c < t->shape->column_count; c++)
        for (size_t i = 0; i < t->dest.count; i++)
            if (t->dest.items[i].from == (int)c) {
                buf_adds(b, c > 0 ? ", " : "(");
                pg_add_name(b, t->dest.items[i].name);
            }
    buf_adds(b, ") FROM STDIN (FORMAT csv, DELIMITER ");
    pg_add_text(b, delimiter);
    buf_adds(b, ", QUOTE ");
    pg_add_text(b, quote);
    buf_adds(b, ", NULL ");
    pg_add_text(b, null);
    bool is_first = true;
    /* A quoted empty field in a column that is no text is NULL to us. */
    for (size_t i = 0; null[0] == '\0' && i < t->dest.count; i++) {
        if (t->dest.items[i].from < 0 || t->dest.items[i].is_text)
            continue;
        buf_adds(b, is_first ? ", FORCE_NULL (" : ", ");
        is_first = false;
        pg_add_name(b, t->dest.items[i].name);
    }
    buf_adds(b, is_first ? ")" : "))");
}

/* The pass is over and nothing was wrong with it: the rest, and the server's count. */
static enum err_code end_raw(struct raw *r, uint64_t *ret_rows)
{
    const struct rows_result *result = &r->load->rows->result;
    if (result->odd > 0 || result->loose > 0 || result->rejected > 0) {
        r->is_otherwise = true;
        return ERR_INPUT;
    }
    enum err_code code = r->has_begun ? send_to(r, result->bytes) : ERR_NONE;
    if (code != ERR_NONE)
        return code;
    if (pgd_line_copy_end(r->w->line, ret_rows, r->w->err) != ERR_NONE) {
        r->is_otherwise = pgd_is_data_fault(r->w);
        return pgd_fail(r->w, "");
    }
    if (*ret_rows != result->records) {
        r->is_otherwise = true;
        return ERR_INPUT;
    }
    return ERR_NONE;
}

enum err_code pgd_raw_send(struct pgd_walker *w, struct pgd_target *t, struct load *load, uint64_t *ret_rows,
                           bool *ret_otherwise)
{
    struct raw r = {.w = w, .t = t, .load = load, .before = '\n'};
    const struct rows_skim skim = {
        .cut_bytes = PIECE_BYTES, .on_cut = on_cut, .arg = &r, .stop = &r.stop, .no_kinds = true};
    struct buf sql;
    *ret_otherwise = false;
    if (find_checked(&r) != ERR_NONE)
        return w->err->code;
    buf_init(&sql);
    add_copy(&sql, t);
    enum err_code code = sql.failed ? err_nomem(w->err) : pgd_line_copy(w->line, sql.data, w->err);
    if (code == ERR_NONE) {
        struct err err;
        err_clear(&err);
        code = rows_skim(load->rows, &skim, &err);
        if (r.code != ERR_NONE)
            code = r.code; /* its words are in w->err */
        else if (code != ERR_NONE)
            *w->err = err;
        else
            code = end_raw(&r, ret_rows);
        if (code != ERR_NONE)
            pgd_line_copy_abort(w->line);
    }
    buf_done(&sql);
    *ret_otherwise = code != ERR_NONE && r.is_otherwise;
    return code;
}
