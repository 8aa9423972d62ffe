/*
 * fill.c -- blocks of text in, batches of rows out: the loop around the parser.
 *
 * Neither edge is a record's: a block may end anywhere in a line, and a record that does not fit into what is left of a
 * batch moves to the next one.
 */
#include "inspect_internal.h"

size_t cut_sequence(const char *s, size_t n)
{
    for (size_t i = 1; i <= 3 && i <= n; i++) {
        unsigned char c = (unsigned char)s[n - i];
        if (c < 0x80 || c == 0xC0 || c == 0xC1 || c > 0xF4)
            return 0; /* begins nothing: what is wrong is so wherever a block ends, or what a row may have */
        if (c >= 0xC2)
            return i < (c >= 0xF0 ? 4u : c >= 0xE0 ? 3u : 2u) ? i : 0;
    }
    return 0;
}

static void text_is_there(struct parser *p)
{
    p->text_pos = 0;
    p->text[-1] = '\n';
    memset(p->text + p->text_size, p->dialect->delimiter, TEXT_PAD);
    if (p->skims) {
        p->is_utf8 = scan_is_utf8(p->text, p->text_size);
        p->valid_to = 0;
        return;
    }
    unsigned flags = scan_block(p->text, p->text_size, p->dialect->delimiter, p->flags);
    p->is_utf8 = (flags & SCAN_HIGH) == 0 || scan_is_utf8(p->text, p->text_size);
}

void parser_memory(struct parser *p, char *text, size_t size)
{
    p->text = text;
    p->text_size = size;
    text_is_there(p);
}

void add_place(struct err *err, uint64_t line, uint64_t column)
{
    if (err->code == ERR_INPUT || err->code == ERR_INCOMPLETE)
        err_wrap(err, "line %llu, column %llu", (unsigned long long)line, (unsigned long long)column);
}

/* Read the next block of text. */
static enum err_code load(struct parser *p, struct err *err)
{
    if (p->stream == NULL) {
        p->text_ends = true;
        return ERR_NONE;
    }
    p->text = p->block + TEXT_PAD;
    do {
        memcpy(p->text, p->held_bytes, p->held);
        size_t n;
        if (text_read(p->stream, p->text + p->held, p->block_size - p->held, &n, err) != ERR_NONE) {
            add_place(err, p->line, p->line_chars + 1);
            return err->code;
        }
        n += p->held;
        p->text_ends = n == p->held;
        p->held = p->text_ends ? 0 : cut_sequence(p->text, n);
        p->text_size = n - p->held;
        memcpy(p->held_bytes, p->text + p->text_size, p->held);
    } while (p->text_size == 0 && !p->text_ends);
    text_is_there(p);
    return ERR_NONE;
}

/* ---- batches */

static void rebase(const char **value, size_t count, uintptr_t from, const char *to)
{
    for (size_t i = 0; i < count; i++)
        if (value[i] != NULL)
            value[i] = to + ((uintptr_t)value[i] - from);
}

/* The cells that point into the record at hand have moved. */
static void rebase_record(struct parser *p, const char **cell, uintptr_t from, const char *to)
{
    if (!p->in_record)
        return; /* the fields are those of the record before */
    size_t inside = p->fields < p->columns ? p->fields : p->columns;
    rebase(cell, inside, from, to);
    if (p->keeps_bad && p->fields > inside) {
        size_t behind = p->fields - inside;
        if (behind > p->extra_max)
            behind = p->extra_max;
        rebase(p->extra, behind < MAX_BAD_FIELDS ? behind : MAX_BAD_FIELDS, from, to);
    }
}

static size_t data_used(const struct parser *p)
{
    return (size_t)(p->csv.entry_buf - (unsigned char *)p->batch->data) + p->csv.entry_pos;
}

/* Room for N more bytes of the only record in the batch. */
static enum err_code grow(struct parser *p, size_t n, struct err *err)
{
    struct batch *b = p->batch;
    if (p->before_grow != NULL && b->data_size <= b->usual_size && p->before_grow(p->grow_arg, err) != ERR_NONE)
        return err->code;
    size_t needed = data_used(p) + n, most = p->csv_options->max_row + BLOCK_BYTES;
    size_t size = 2 * b->data_size < most ? 2 * b->data_size : most;
    size = size < needed ? needed : size;
    volatile uintptr_t from = (uintptr_t)b->data; /* volatile: only a number, no use of memory that realloc() freed */
    size_t field = (size_t)(p->csv.entry_buf - (unsigned char *)b->data);
    char *data = realloc(b->data, size + PAD_BYTES);
    if (data == NULL)
        return err_nomem(err);
    b->data = data;
    b->data_size = size;
    p->csv.entry_buf = (unsigned char *)data + field;
    p->csv.entry_size = size - field;
    rebase_record(p, p->cell, from, data);
    return ERR_NONE;
}

static enum err_code attach(struct parser *p, struct batch *b, struct err *err)
{
    p->batch = b;
    p->cell = b->value;
    p->cell_length = b->length;
    p->csv.entry_buf = (unsigned char *)b->data;
    p->csv.entry_size = b->data_size;
    p->record_start = 0;
    if (!p->has_carry)
        return ERR_NONE;
    size_t field = p->carry_used - p->csv.entry_pos, inside = p->fields < p->columns ? p->fields : p->columns;
    p->has_carry = false;
    if (p->carry_used > b->data_size) {
        size_t entry_pos = p->csv.entry_pos;
        p->csv.entry_pos = 0;
        size_t fields = p->fields;
        p->fields = 0;
        enum err_code code = grow(p, p->carry_used, err);
        p->csv.entry_pos = entry_pos;
        p->fields = fields;
        if (code != ERR_NONE)
            return code;
    }
    memcpy(b->data, p->carry, p->carry_used);
    if (inside > 0) {
        memcpy(p->cell, p->carry_cell, inside * sizeof *p->cell);
        memcpy(p->cell_length, p->carry_length, inside * sizeof *p->cell_length);
    }
    rebase_record(p, p->cell, (uintptr_t)p->carry, b->data);
    p->csv.entry_buf = (unsigned char *)b->data + field;
    p->csv.entry_size = b->data_size - field;
    return ERR_NONE;
}

/* Keep the record that the end of the batch cuts for the next one. */
static enum err_code cut_record(struct parser *p, struct err *err)
{
    size_t used = data_used(p) - p->record_start, inside = p->fields < p->columns ? p->fields : p->columns;
    if (used >= p->carry_size) {
        free(p->carry);
        p->carry_size = 0;
        p->carry = malloc(used + 64);
        if (p->carry == NULL)
            return err_nomem(err);
        p->carry_size = used + 64;
    }
    if (p->carry_cell == NULL) {
        p->carry_cell = malloc((p->columns + 1) * sizeof *p->carry_cell);
        p->carry_length = malloc((p->columns + 1) * sizeof *p->carry_length);
        if (p->carry_cell == NULL || p->carry_length == NULL)
            return err_nomem(err);
    }
    const char *from = p->batch->data + p->record_start;
    memcpy(p->carry, from, used);
    memcpy(p->carry_cell, p->cell, inside * sizeof *p->carry_cell);
    memcpy(p->carry_length, p->cell_length, inside * sizeof *p->carry_length);
    rebase_record(p, p->carry_cell, (uintptr_t)from, p->carry);
    p->carry_used = used;
    p->has_carry = true;
    return ERR_NONE;
}

/* The next piece, or IS_FULL when the batch has no room for it. */
static enum err_code step(struct parser *p, bool *is_full, struct err *err)
{
    const char *s = p->text + p->text_pos;
    size_t n = p->text_size - p->text_pos;
    const char *lf = memchr(s, '\n', n);
    if (lf != NULL)
        n = (size_t)(lf - s) + 1;
    unsigned flags = p->skims ? SCAN_ALL : 0; /* few pieces come here then: not worth a look at all of the text */
    for (size_t i = p->text_pos / SCAN_CHUNK; i <= (p->text_pos + n - 1) / SCAN_CHUNK && !p->skims; i++)
        flags |= p->flags[i];
    if (__builtin_expect((flags & SCAN_CR) != 0, 0)) {
        const char *cr = memchr(s, '\r', n);
        if (cr != NULL && !(lf != NULL && cr + 1 == lf))
            n = (size_t)(cr - s) + 1;
    }
    struct batch *b = p->batch;
    if (__builtin_expect(data_used(p) + n > b->data_size, 0)) {
        *is_full = b->rows.rows > 0 || b->bad_count > 0;
        if (*is_full)
            return p->in_record ? cut_record(p, err) : ERR_NONE;
        if (grow(p, n, err) != ERR_NONE)
            return err->code;
    }
    return parser_feed(p, s, n, flags, err);
}

static enum err_code fill(struct parser *p, struct batch *b, struct err *err)
{
    if (attach(p, b, err) != ERR_NONE)
        return err->code;
    bool is_full = false;
    while (!is_full && b->rows.rows < b->rows_max && b->bad_count < 256) {
        if (p->skims && p->text_pos < p->text_size && !p->in_record && (p->header_done || !p->skips_header))
            count_records(p);
        if (p->text_pos < p->text_size) {
            if (step(p, &is_full, err) != ERR_NONE)
                return err->code;
            continue;
        }
        if (p->skims && p->text_pos > 0 && !p->in_record) {
            p->text_pos = p->text_size = 0; /* once per block of text, for what the puller tells of the progress */
            return ERR_NONE;
        }
        if (p->stop != NULL && atomic_load_explicit(p->stop, memory_order_relaxed))
            return err_set(err, ERR_STOPPED, false, "stopped");
        if (p->text_ends) {
            b->is_last = true;
            return parser_finish(p, err);
        }
        if (load(p, err) != ERR_NONE)
            return err->code;
    }
    return ERR_NONE;
}

void parser_fill(struct parser *p, struct batch *b)
{
    if (fill(p, b, &b->err) != ERR_NONE)
        b->is_last = true;
    for (size_t c = 0; c < p->columns && !p->no_kinds; c++)
        kind_narrow(&p->kinds[c], &p->has_value[c], b->value + c, b->length + c, b->rows.rows, p->columns);
    memcpy(b->kinds, p->kinds, p->columns * sizeof *b->kinds);
    memcpy(b->has_value, p->has_value, p->columns * sizeof *b->has_value);
    b->rows.value = b->value;
    b->records = p->record;
    b->odd = p->odd;
    b->loose = p->loose;
    b->bytes = p->stream != NULL ? p->stream->disk_offset : 0;
}
