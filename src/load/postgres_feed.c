/*
 * postgres_feed.c -- rows as text of COPY, and which of them are not for the table.
 *
 * The text: fields divided by tabs, records ended by LF, NULL is \N; backslash, tab, LF and CR are escaped.
 */
#include "postgres_internal.h"

#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum err_code pgd_feed_init(struct pgd_feed *f, struct pgd_walker *w, struct pgd_target *t, struct rows *rows,
                            struct pgd_learned *learned)
{
    memset(f, 0, sizeof(*f));
    buf_init(&f->text);
    f->w = w;
    f->t = t;
    f->rows = rows;
    f->learned = learned;
    f->load = -1;
    size_t *column = arena_alloc(&w->arena, (t->dest.count + 1) * sizeof(*column));
    if (column == NULL)
        return err_nomem(w->err);
    for (size_t i = 0; i < t->dest.count; i++)
        if (t->dest.items[i].from != PGD_FROM_NOWHERE)
            column[f->columns++] = i;
    f->column = column;
    return ERR_NONE;
}

void pgd_feed_done(struct pgd_feed *f)
{
    buf_done(&f->text);
}

void pgd_cut(struct buf *text, size_t size)
{
    if (text->size <= size)
        return;
    text->size = size;
    text->data[size] = '\0';
}

static const char *shown(const char *value, size_t n, char *ret, size_t size)
{
    char cut[41];
    snprintf(cut, sizeof(cut), "%.*s", (int)(n < 40 ? n : 40), value);
    return text_printable(cut, ret, size);
}

/* A row that the flow's own words forbid: bad_rows decides. */
static enum pgd_verdict reject(struct pgd_feed *f, size_t row, int column, const char *reason)
{
    return rows_reject(f->rows, row, column, reason, f->w->err) == ERR_NONE ? FEED_REJECTED : FEED_FAILED;
}

static enum pgd_verdict reject_key(struct pgd_feed *f, size_t row, const struct pgd_column *c)
{
    char reason[256];
    snprintf(reason, sizeof(reason), "key column \"%.128s\": expected a value, found none", c->name);
    return reject(f, row, c->from, reason);
}

static enum pgd_verdict reject_type(struct pgd_feed *f, size_t row, const struct pgd_column *c, const char *value,
                                    size_t n)
{
    char reason[256], text[168];
    snprintf(reason, sizeof(reason), "column \"%.64s\": expected %s, found \"%s\"", c->name, column_type_names[c->type],
             shown(value, n, text, sizeof(text)));
    return reject(f, row, c->from, reason);
}

/* Remember that the column of the file needs text. */
static bool learn_plain(struct pgd_feed *f, const struct pgd_column *c)
{
    if (f->learned->is_plain == NULL)
        return false;
    f->learned->is_plain[c->from] = true;
    return true;
}

/* A value that the column would take with a loss. */
static enum pgd_verdict misfit(struct pgd_feed *f, const struct row_batch *b, size_t row, const struct pgd_column *c,
                               const char *value, size_t n)
{
    char text[168];
    if (!f->t->keeps_types && !c->is_declared && learn_plain(f, c))
        return FEED_NARROWED;
    if (c->is_declared)
        return reject_type(f, row, c, value, n);
    err_set(f->w->err, ERR_INPUT, false,
            "line %llu, byte %llu, column %d (%s): the column is %s in table %s.%s, expected a value that fits it "
            "without loss, found \"%s\"; correct the value, or the type of the column",
            (unsigned long long)b->line[row], (unsigned long long)b->offset[row], c->from + 1, c->name, c->decl,
            f->t->space, f->t->table, shown(value, n, text, sizeof(text)));
    return FEED_FAILED;
}

static void add_escaped(struct buf *b, const char *s, size_t n)
{
    size_t done = 0;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (__builtin_expect(c != '\\' && c != '\n' && c != '\r' && c != '\t', 1))
            continue;
        buf_add(b, s + done, i - done);
        done = i + 1;
        buf_addc(b, '\\');
        buf_addc(b, c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : '\\');
    }
    buf_add(b, s + done, n - done);
}

static enum pgd_verdict feed_cell(struct pgd_feed *f, const struct row_batch *b, size_t row, const struct pgd_column *c)
{
    char number[24];
    if (c->from == PGD_FROM_ROW_NUMBER) {
        int n = snprintf(number, sizeof(number), "%" PRIu64, b->record[row]);
        buf_add(&f->text, number, (size_t)n);
        return FEED_TAKEN;
    }
    size_t cell = row * b->columns + (size_t)c->from;
    const char *value = b->value[cell];
    size_t n = b->length[cell];
    if (value == NULL || (n == 0 && (!c->is_text || (c->is_declared && c->type != TYPE_TEXT)))) {
        buf_add(&f->text, "\\N", 2);
        return c->is_key ? reject_key(f, row, c) : FEED_TAKEN;
    }
    if (c->is_declared && !f->t->is_part && !value_is(c->type, value, n))
        return reject_type(f, row, c, value, n);
    if (c->loss != LOSS_NONE && pgd_would_lose(c, value, n))
        return misfit(f, b, row, c, value, n);
    add_escaped(&f->text, value, n);
    return FEED_TAKEN;
}

enum pgd_verdict pgd_feed_row(struct pgd_feed *f, const struct row_batch *b, size_t row)
{
    size_t before = f->text.size;
    if (f->load >= 0)
        buf_printf(&f->text, "%d\t", f->load);
    for (size_t i = 0; i < f->columns; i++) {
        enum pgd_verdict verdict = feed_cell(f, b, row, &f->t->dest.items[f->column[i]]);
        if (verdict != FEED_TAKEN) {
            pgd_cut(&f->text, before);
            return verdict;
        }
        buf_addc(&f->text, i + 1 < f->columns ? '\t' : '\n');
    }
    if (!f->text.failed)
        return FEED_TAKEN;
    err_nomem(f->w->err);
    return FEED_FAILED;
}

void pgd_feed_learn(struct pgd_feed *f, const struct row_batch *b, size_t row)
{
    for (size_t i = 0; i < f->columns; i++) {
        const struct pgd_column *c = &f->t->dest.items[f->column[i]];
        if (c->from < 0 || c->loss == LOSS_NONE || !c->is_inferred)
            continue;
        size_t cell = row * b->columns + (size_t)c->from;
        if (b->value[cell] != NULL && pgd_would_lose(c, b->value[cell], b->length[cell]))
            learn_plain(f, c);
    }
}
