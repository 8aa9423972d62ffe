/*
 * postgres_careful.c -- rows to COPY so that the one the server refuses is found, and only that one left out.
 *
 * One COPY for each batch of rows, in a savepoint. The server names the line it stumbled on: what is before it is sent
 * again, the row is told to `rows`, what is behind it follows. Where it names none (a foreign key looks at the end of
 * the statement), the batch is halved until the row stands alone.
 */
#include "postgres_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One batch as text, and where each row of it ends. */
struct careful {
    struct pgd_feed *feed;
    struct buf copy; /* the statement */
    size_t *row;     /* which of the batch */
    size_t *end;     /* in feed->text */
    size_t count;
    uint64_t taken;
    bool is_narrowed;
};

/* Behind the number of the line; NULL: there is none. The table's own name may have the same words in it. */
static const char *behind_line(const char *context, unsigned long *ret_line)
{
    static const char word[] = ", line ";
    const char *at = strncmp(context, "COPY ", 5) == 0 ? context : "";
    while ((at = strstr(at, word)) != NULL) {
        char *end;
        at += strlen(word);
        *ret_line = strtoul(at, &end, 10);
        if (end > at && (*end == ':' || *end == '\0' || strncmp(end, ", column ", 9) == 0))
            return end;
    }
    return NULL;
}

unsigned long pgd_fault_line(const char *context)
{
    unsigned long line = 0;
    return behind_line(context, &line) != NULL ? line : 0;
}

bool pgd_fault_column(const char *context, char *ret, size_t size)
{
    unsigned long line;
    const char *at = behind_line(context, &line);
    if (at == NULL || *at != ',')
        return false;
    at += strlen(", column ");
    const char *end = strstr(at, ": ");
    size_t n = end != NULL ? (size_t)(end - at) : strlen(at);
    snprintf(ret, size, "%.*s", (int)(n < size ? n : size - 1), at);
    return true;
}

static const struct pgd_column *faulty_column(const struct careful *c)
{
    const struct pgd_fault *f = pgd_line_fault(c->feed->w->line);
    char name[128];
    if (f->column[0] != '\0')
        return pgd_find_column(&c->feed->t->dest, f->column);
    if (pgd_fault_column(f->context, name, sizeof(name)))
        return pgd_find_column(&c->feed->t->dest, name);
    return NULL;
}

/* The server refuses this row. */
static enum err_code refuse(struct careful *c, size_t i)
{
    struct pgd_feed *feed = c->feed;
    const struct pgd_fault *f = pgd_line_fault(feed->w->line);
    const struct pgd_column *column = faulty_column(c);
    char reason[900];
    /* A type that is ours to choose was too narrow for the value: 22 are the errors of values. */
    if (strncmp(f->sqlstate, "22", 2) == 0 && column != NULL && column->from >= 0 && !column->is_declared &&
        !column->is_text && !feed->t->keeps_types && feed->learned->is_plain != NULL) {
        feed->learned->is_plain[column->from] = true;
        c->is_narrowed = true;
        return ERR_NONE;
    }
    snprintf(reason, sizeof(reason), "%s%s%s", f->message, f->detail[0] != '\0' ? ": " : "", f->detail);
    for (char *p = reason; *p != '\0'; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
    c->taken--;
    return rows_reject(feed->rows, c->row[i], column != NULL && column->from >= 0 ? column->from : -1, reason,
                       feed->w->err);
}

static enum err_code say(struct careful *c, const char *sql)
{
    struct buf b;
    buf_init(&b);
    buf_adds(&b, sql);
    enum err_code code = pgd_ask(c->feed->w, &b, NULL, "");
    buf_done(&b);
    return code;
}

/* Rows FROM to before TO in one COPY. *RET_BAD: the server refused one of them; else an error is an error. */
static enum err_code copy_range(struct careful *c, size_t from, size_t to, bool *ret_bad)
{
    struct pgd_walker *w = c->feed->w;
    uint64_t rows = 0;
    size_t begin = from > 0 ? c->end[from - 1] : 0, size = c->end[to - 1] - begin;
    *ret_bad = false;
    char *data = malloc(size);
    if (data == NULL)
        return err_nomem(w->err);
    memcpy(data, c->feed->text.data + begin, size);
    enum err_code code = pgd_line_copy(w->line, c->copy.data, w->err);
    if (code != ERR_NONE) {
        free(data);
        return code;
    }
    code = pgd_line_put(w->line, data, size, w->err);
    if (code == ERR_NONE)
        code = pgd_line_copy_end(w->line, &rows, w->err);
    if (code != ERR_NONE) {
        *ret_bad = pgd_is_data_fault(w) && !pgd_line_is_lost(w->line);
        return pgd_fail(w, "");
    }
    if (rows != to - from)
        return err_set(w->err, ERR_INPUT, false,
                       "table %s.%s took %llu of %zu rows without saying why: is there a trigger that leaves some out?",
                       c->feed->t->space, c->feed->t->table, (unsigned long long)rows, to - from);
    return ERR_NONE;
}

static enum err_code send_range(struct careful *c, size_t from, size_t to)
{
    while (from < to && !c->is_narrowed) {
        bool is_bad = false;
        enum err_code code = say(c, "SAVEPOINT chute_rows");
        if (code == ERR_NONE)
            code = copy_range(c, from, to, &is_bad);
        if (code == ERR_NONE)
            return say(c, "RELEASE chute_rows");
        if (!is_bad)
            return c->feed->w->err->code;
        unsigned long line = pgd_fault_line(pgd_line_fault(c->feed->w->line)->context);
        bool is_known = line >= 1 && line <= to - from;
        size_t bad = is_known ? from + line - 1 : to - from == 1 ? from : to;
        if (bad < to)
            code = refuse(c, bad); /* before anything else is asked: its words are those of the last answer */
        else
            code = ERR_NONE;
        if (code != ERR_NONE)
            return code;
        code = say(c, "ROLLBACK TO chute_rows; RELEASE chute_rows");
        size_t middle = bad < to ? bad : from + (to - from) / 2;
        if (code == ERR_NONE && middle > from)
            code = send_range(c, from, middle);
        if (code != ERR_NONE)
            return code;
        from = bad < to ? bad + 1 : middle;
    }
    return ERR_NONE;
}

static enum err_code take_row(struct careful *c, const struct row_batch *b, size_t row)
{
    switch (pgd_feed_row(c->feed, b, row)) {
    case FEED_TAKEN:
        c->row[c->count] = row;
        c->end[c->count++] = c->feed->text.size;
        c->taken++;
        break;
    case FEED_REJECTED:
        break;
    case FEED_NARROWED:
        c->is_narrowed = true;
        break;
    case FEED_FAILED:
        return c->feed->w->err->code;
    }
    return ERR_NONE;
}

enum err_code pgd_careful_batch(struct pgd_feed *feed, const struct row_batch *b, uint64_t skip, uint64_t *taken,
                                uint64_t *skipped, bool *ret_narrowed)
{
    struct pgd_walker *w = feed->w;
    struct careful c = {.feed = feed};
    enum err_code code = ERR_NONE;
    buf_init(&c.copy);
    pgd_add_copy(&c.copy, feed->t, feed->load >= 0);
    c.row = malloc(2 * (b->rows + 1) * sizeof(*c.row));
    if (c.row == NULL || c.copy.failed)
        code = err_nomem(w->err);
    c.end = c.row != NULL ? c.row + b->rows + 1 : NULL;
    buf_clear(&feed->text);
    for (size_t row = 0; code == ERR_NONE && row < b->rows && !c.is_narrowed; row++) {
        if (b->record[row] < skip)
            ++*skipped;
        else
            code = take_row(&c, b, row);
    }
    if (code == ERR_NONE && c.count > 0 && !c.is_narrowed)
        code = send_range(&c, 0, c.count);
    buf_clear(&feed->text);
    *taken += c.taken;
    *ret_narrowed = c.is_narrowed;
    free(c.row);
    buf_done(&c.copy);
    return code;
}

enum err_code pgd_careful_send(struct pgd_feed *feed, uint64_t skip, uint64_t *ret_taken, uint64_t *ret_skipped,
                               bool *ret_narrowed)
{
    struct pgd_walker *w = feed->w;
    const struct row_batch *batch;
    *ret_taken = *ret_skipped = 0;
    *ret_narrowed = false;
    do {
        enum err_code code = rows_next(feed->rows, &batch, w->err);
        if (code == ERR_NONE && pgd_is_stopped(w))
            code = err_set(w->err, ERR_STOPPED, true, "stopped");
        if (code != ERR_NONE)
            return code;
        *ret_narrowed = pgd_is_narrowed(feed->t, feed->learned, batch->rows == 0);
        if (batch->rows > 0 && !*ret_narrowed)
            code = pgd_careful_batch(feed, batch, skip, ret_taken, ret_skipped, ret_narrowed);
        if (code != ERR_NONE)
            return code;
    } while (batch->rows > 0 && !*ret_narrowed);
    return ERR_NONE;
}
