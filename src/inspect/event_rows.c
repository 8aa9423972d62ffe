/*
 * event_rows.c -- the rows of a file of events: which rules take an event, and one batch per part.
 *
 * An event is taken as a whole: all its rows go into batches, or none and it is rejected.
 */
#include "event_internal.h"

#include "text.h"

#include <stdarg.h>
#include <stdio.h>

#define BATCH_BYTES ((size_t)64 * 1024)
#define PARK_BYTES ((size_t)16 * 1024) /* of text that a file may hold while it waits for its turn: hundreds do */
#define SHOWN_POINTERS 3

static struct event_rows *of(struct rows *rows)
{
    return (struct event_rows *)rows;
}

/* ---- rules */

static bool applies(const struct event_rows *r, const struct event_rule *rule)
{
    for (size_t i = 0; i < rule->when_count; i++) {
        const struct event_when *when = &rule->whens[i];
        const struct event_hit *hit = event_hit(&r->scan, when->node);
        bool is_equal = false;
        for (size_t k = 0; hit != NULL && k < when->values.count && !is_equal; k++)
            is_equal = event_equals(hit, r->text.text, when->values.items[k]);
        if (!is_equal)
            return false;
    }
    return true;
}

static void append(char *text, size_t size, size_t *used, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void append(char *text, size_t size, size_t *used, const char *fmt, ...)
{
    va_list args;
    if (*used >= size)
        return;
    va_start(args, fmt);
    int n = vsnprintf(text + *used, size - *used, fmt, args);
    va_end(args);
    *used += n > 0 ? (size_t)n : 0;
}

/* No rule took the event: what stands where they look, and what they expect in the place they look at first. */
static void explain_no_rule(const struct event_rows *r, char *reason, size_t size)
{
    const struct event_options *e = r->events;
    size_t used = 0, seen[SHOWN_POINTERS] = {NO_NODE}, seen_count = 0, expected_count = 0;
    char shown[256];
    append(reason, size, &used, "no rule of records takes this event: found");
    for (size_t i = 0; i < e->rule_count; i++) {
        for (size_t k = 0; k < e->rules[i].when_count && seen_count < SHOWN_POINTERS; k++) {
            size_t node = e->rules[i].whens[k].node, known = 0;
            while (known < seen_count && seen[known] != node)
                known++;
            if (known < seen_count)
                continue;
            const struct event_hit *hit = event_hit(&r->scan, node);
            append(reason, size, &used, "%s %s at %s", seen_count > 0 ? "," : "",
                   hit != NULL ? event_shown(hit, r->text.text, shown, sizeof shown) : "nothing",
                   e->rules[i].whens[k].from[0] != '\0' ? e->rules[i].whens[k].from : "the event itself");
            seen[seen_count++] = node;
        }
    }
    for (size_t i = 0; i < e->rule_count; i++)
        for (size_t k = 0; k < e->rules[i].when_count; k++)
            for (size_t v = 0; e->rules[i].whens[k].node == seen[0] && v < e->rules[i].whens[k].values.count; v++)
                append(reason, size, &used, "%s '%s'", expected_count++ == 0 ? "; expected there" : ",",
                       e->rules[i].whens[k].values.items[v]);
}

/* ---- batches */

static enum err_code new_batch(struct event_rows *r, size_t part, struct err *err)
{
    struct part_rows *p = &r->parts[part];
    size_t bytes = r->text.is_last && r->text.size < BATCH_BYTES ? r->text.size + 64 : BATCH_BYTES;
    if (inspect_knobs.batch_bytes > 0)
        bytes = inspect_knobs.batch_bytes;
    bytes = bytes < 4 * EVENT_PART_RULES ? 4 * EVENT_PART_RULES : bytes; /* that gives it twice as many rows */
    if (batch_new(r->columns[part], bytes, &p->batch, err) != ERR_NONE)
        return err->code;
    p->batch->rows.part = part;
    if (r->options->skip_bad_rows == 0)
        return ERR_NONE;
    p->event = malloc(p->batch->rows_max * sizeof *p->event);
    p->event_length = malloc(p->batch->rows_max * sizeof *p->event_length);
    return p->event != NULL && p->event_length != NULL ? ERR_NONE : err_nomem(err);
}

/* Room for one more row of the event at hand, of BYTES, in the batch of PART. *RET_FULL: it has to be given away first.
 */
static enum err_code make_room(struct event_rows *r, size_t part, size_t bytes, bool *ret_full, struct err *err)
{
    struct part_rows *p = &r->parts[part];
    if (p->batch == NULL && new_batch(r, part, err) != ERR_NONE)
        return err->code;
    struct batch *b = p->batch;
    p->new_rows++;
    p->new_bytes += bytes;
    bool fits = p->new_bytes <= b->data_size - b->data_used && p->new_rows <= b->rows_max - b->rows.rows;
    *ret_full = !fits && b->rows.rows > 0;
    if (fits || *ret_full)
        return ERR_NONE;
    char *data = realloc(b->data, p->new_bytes + PAD_BYTES); /* it is empty: nothing points into it */
    if (data == NULL)
        return err_nomem(err);
    b->data = data;
    b->data_size = p->new_bytes;
    return ERR_NONE;
}

static void put_row(struct event_rows *r, const struct event_rule *rule, const struct event_cell *cells)
{
    struct part_rows *p = &r->parts[rule->part];
    struct batch *b = p->batch;
    size_t row = b->rows.rows++, first = row * b->rows.columns;
    for (size_t i = 0; i < rule->column_count; i++) {
        b->value[first + i] = NULL;
        b->length[first + i] = 0;
        if (cells[i].how == CELL_NULL)
            continue;
        char *to = b->data + b->data_used;
        size_t length = event_cell_write(&cells[i], to);
        b->value[first + i] = to;
        b->length[first + i] = (uint32_t)length;
        b->data_used += length;
    }
    b->record[row] = r->records++;
    b->line[row] = r->event_line;
    b->offset[row] = r->text.offset + r->text.pos;
    if (p->event == NULL)
        return;
    p->event[row] = b->data + b->data_used;
    p->event_length[row] = (uint32_t)(r->scan.end - r->text.pos);
    memcpy(b->data + b->data_used, r->text.text + r->text.pos, p->event_length[row]);
    b->data_used += p->event_length[row];
}

/* The cells of RULE; false: REASON, AT. */
static bool make_cells(const struct event_rows *r, const struct event_rule *rule, struct event_cell *cells,
                       size_t *ret_bytes, char *reason, size_t size, size_t *ret_at)
{
    *ret_bytes = 0;
    for (size_t i = 0; i < rule->column_count; i++) {
        const struct event_hit *hit = event_hit(&r->scan, rule->columns[i].node);
        if (!event_cell(&rule->columns[i], hit, r->text.text, &cells[i], reason, size)) {
            *ret_at = hit != NULL ? hit->start : r->text.pos;
            return false;
        }
        *ret_bytes += cells[i].how != CELL_NULL ? cells[i].room : 0;
    }
    return true;
}

/* The event at hand is good JSON: into the batches. False: it is bad, REASON, AT; or IS_FULL, or ERR. */
static bool put_event(struct event_rows *r, char *reason, size_t size, size_t *ret_at, struct err *err)
{
    const struct event_options *e = r->events;
    struct event_cell *cells = r->cells;
    size_t taken[2] = {0, 0}, event_bytes = r->scan.end - r->text.pos;
    *ret_at = r->text.pos;
    r->siblings = 0;
    for (size_t i = 0; i < e->part_count; i++)
        r->parts[i].new_rows = r->parts[i].new_bytes = 0;
    if (r->scan.kind != VALUE_OBJECT) {
        snprintf(reason, size, "not an object: expected an event ({...}), found %s", event_kind_names[r->scan.kind]);
        return false;
    }
    if (r->scan.twice != NO_NODE) {
        snprintf(reason, size, "%s is there twice, and nobody can know which one is meant",
                 e->tree->nodes[r->scan.twice].pointer);
        return false;
    }
    /* All rules first, and only then the rows: an event goes in as a whole or not at all. */
    for (size_t i = 0; i < e->rule_count; i++) {
        const struct event_rule *rule = &e->rules[i];
        size_t bytes;
        if (!applies(r, rule))
            continue;
        if (!make_cells(r, rule, cells, &bytes, reason, size, ret_at))
            return false;
        if (make_room(r, rule->part, bytes + (r->options->skip_bad_rows > 0 ? event_bytes : 0), &r->is_full, err) !=
            ERR_NONE)
            return false;
        if (r->is_full)
            return false;
        cells += rule->column_count;
        taken[0]++;
        if (!rule->goes_on)
            break;
    }
    if (taken[0] == 0) {
        explain_no_rule(r, reason, size);
        return false;
    }
    const char *why = event_refused_why(r->options->refused, r->text.offset + r->text.pos);
    if (why != NULL) {
        snprintf(reason, size, "%s", why);
        r->siblings = taken[0] - 1; /* records are numbered as if it had been taken: a tail may follow */
        return false;
    }
    cells = r->cells;
    for (size_t i = 0; i < e->rule_count && taken[1] < taken[0]; i++) {
        if (!applies(r, &e->rules[i]))
            continue;
        put_row(r, &e->rules[i], cells);
        cells += e->rules[i].column_count;
        taken[1]++;
    }
    return true;
}

/* ---- the pass */

/* Take events until a batch is full or the text is over. */
static enum err_code fill(struct event_rows *r, bool *ret_over, struct err *err)
{
    char reason[640];
    while (!r->is_full) {
        bool is_found, is_bad = false;
        size_t at;
        if (event_find(r, &is_found, err) != ERR_NONE)
            return err->code;
        *ret_over = !is_found;
        if (!is_found)
            return ERR_NONE;
        r->event_line = r->text.line;
        if (event_read(r, &is_bad, err) != ERR_NONE)
            return err->code;
        if (is_bad) {
            if (event_take_bad_text(r, err) != ERR_NONE)
                return err->code;
            continue;
        }
        if (!put_event(r, reason, sizeof reason, &at, err)) {
            if (err->code != ERR_NONE)
                return err->code;
            if (r->is_full) /* the event is looked at again when its batch is empty */
                return ERR_NONE;
            if (event_reject(r, r->scan.end - r->text.pos, at, reason, err) != ERR_NONE)
                return err->code;
            r->records += r->siblings;
            r->left_out += r->siblings;
        }
        event_taken(r, r->scan.end);
        atomic_store_explicit(&r->base.rows_done, r->records, memory_order_relaxed);
        atomic_store_explicit(&r->base.bytes_done, r->text.stream.disk_offset, memory_order_relaxed);
    }
    return ERR_NONE;
}

static void give_back(struct event_rows *r)
{
    if (r->current != NULL)
        batch_clear(r->current->batch);
    r->current = NULL;
}

/* The next of the batches that have rows; false: none is left. */
static bool next_full(struct event_rows *r)
{
    for (; r->next_part < r->events->part_count; r->next_part++) {
        struct part_rows *p = &r->parts[r->next_part];
        if (p->batch != NULL && p->batch->rows.rows > 0) {
            r->current = p;
            r->next_part++;
            return true;
        }
    }
    r->is_full = false;
    r->next_part = 0;
    return false;
}

static void free_batches(struct event_rows *r)
{
    for (size_t i = 0; r->parts != NULL && i < r->events->part_count; i++) {
        struct part_rows *p = &r->parts[i];
        batch_free(p->batch);
        free(p->event);
        free(p->event_length);
        *p = (struct part_rows){0};
    }
    r->current = NULL;
}

static enum err_code next_batch(struct event_rows *r, const struct row_batch **ret_batch, struct err *err)
{
    static const struct row_batch none;
    bool is_over = false;
    give_back(r);
    if (!r->text.is_open && event_text_open(&r->text, r->fd, r->events->max_event, err) != ERR_NONE)
        return err->code;
    while (!(r->is_full && next_full(r))) {
        if (is_over) {
            if (r->options->refused != NULL && r->options->refused->is_new)
                return err_set(err, ERR_INPUT, false,
                               "the destination refused rows of %zu events: they are read again without them",
                               r->options->refused->count);
            free_batches(r); /* hundreds of files may have been read that share a commit */
            r->base.result.records = r->records;
            r->base.result.rejected += r->left_out; /* only now: bad_rows allows so many events */
            r->left_out = 0;
            r->base.result.bytes = r->text.stream.disk_offset;
            text_hash(&r->text.stream, r->base.result.hash);
            *ret_batch = &none;
            return ERR_NONE;
        }
        if (fill(r, &is_over, err) != ERR_NONE)
            return err->code;
        r->is_full = true;
    }
    *ret_batch = &r->current->batch->rows;
    return ERR_NONE;
}

static enum err_code events_next(struct rows *rows, const struct row_batch **ret_batch, struct err *err)
{
    struct event_rows *r = of(rows);
    struct err own;
    err_clear(&own); /* what ERR holds is the caller's: only what is set here counts */
    if (r->failed.code == ERR_NONE && next_batch(r, ret_batch, &own) != ERR_NONE)
        r->failed = own;
    if (r->failed.code != ERR_NONE && err != NULL)
        *err = r->failed;
    return r->failed.code;
}

static enum err_code events_reject(struct rows *rows, size_t row, int column, const char *reason, struct err *err)
{
    struct event_rows *r = of(rows);
    const struct part_rows *p = r->current;
    const struct row_batch *b = &p->batch->rows;
    char text[500];
    struct err own;
    (void)column; /* the driver's reasons name it */
    if (err == NULL)
        err = &own;
    if (event_has_siblings(r)) {
        if (event_refuse(r, b->offset[row], b->line[row], reason, err) != ERR_NONE)
            r->failed = *err;
        return r->failed.code;
    }
    snprintf(text, sizeof text, "line %llu: %s (byte offset %llu)", (unsigned long long)b->line[row], reason,
             (unsigned long long)b->offset[row]);
    const struct bad_row bad = {.record = b->record[row],
                                .line = b->line[row],
                                .offset = b->offset[row],
                                .reason = text,
                                .value = p->event != NULL ? &p->event[row] : NULL,
                                .length = p->event != NULL ? &p->event_length[row] : NULL,
                                .fields = p->event != NULL ? 1 : 0};
    if (reject_row(rows, r->options, &bad, err) != ERR_NONE)
        r->failed = *err;
    return r->failed.code;
}

/* ---- life */

static void restart(struct event_rows *r)
{
    r->where = AT_START;
    r->is_lines = true;
    r->line_end = 0;
    r->next_part = 0;
    r->is_full = false;
    r->current = NULL;
    r->records = r->left_out = 0;
    for (size_t i = 0; i < r->events->part_count; i++)
        if (r->parts[i].batch != NULL)
            batch_clear(r->parts[i].batch);
    if (r->options->refused != NULL)
        r->options->refused->is_new = false;
    memset(&r->base.result, 0, sizeof r->base.result);
    r->base.bytes_done = r->base.rows_done = 0;
    err_clear(&r->failed);
}

static enum err_code events_rewind(struct rows *rows, struct err *err)
{
    struct event_rows *r = of(rows);
    struct err own;
    if (err == NULL)
        err = &own;
    restart(r);
    if (r->options->skip_bad_rows > 0 && r->options->sink.restart != NULL)
        r->options->sink.restart(r->options->sink.arg);
    if (event_text_rewind(&r->text, err) != ERR_NONE)
        r->failed = *err;
    return r->failed.code;
}

static void events_free(struct rows *rows)
{
    struct event_rows *r = of(rows);
    free_batches(r);
    event_text_close(&r->text);
    free(r->parts);
    free(r);
}

static const struct rows_ops event_rows_ops = {
    .next = events_next, .reject = events_reject, .rewind = events_rewind, .free = events_free};

/* One allocation for all that the rules give the size of. */
static enum err_code allocate(struct event_rows *r, struct err *err)
{
    const struct event_options *e = r->events;
    size_t cells = 0;
    for (size_t i = 0; i < e->rule_count; i++)
        cells += e->rules[i].column_count;
    size_t hits = e->tree->count * sizeof(struct event_hit), parts = e->part_count * sizeof *r->parts;
    size_t columns = e->part_count * sizeof *r->columns;
    char *memory = calloc(1, parts + hits + columns + cells * sizeof *r->cells);
    if (memory == NULL)
        return err_nomem(err);
    r->parts = (struct part_rows *)(void *)memory;
    r->scan.hits = (struct event_hit *)(void *)(memory + parts);
    r->columns = (size_t *)(void *)(memory + parts + hits);
    r->cells = (struct event_cell *)(void *)(memory + parts + hits + columns);
    for (size_t i = 0; i < e->rule_count; i++)
        r->columns[e->rules[i].part] = e->rules[i].column_count;
    r->scan.tree = e->tree;
    return ERR_NONE;
}

static bool is_blank(const struct event_text *t)
{
    size_t at = 0;
    while (at < t->size && event_is_space(t->text[at]))
        at++;
    return t->is_last && at == t->size;
}

static void fill_shape(struct shape *shape, const struct event_text *t)
{
    shape->dialect = (struct dialect){.encoding = ENC_UTF8, .compression = t->stream.compression};
    shape->dialect.has_bom = t->stream.has_bom;
    shape->is_whole = shape->has_hash = t->is_last;
    if (t->is_last)
        text_hash(&t->stream, shape->hash);
}

enum err_code inspect_events(int fd, const struct inspect_options *options, struct arena *arena,
                             struct shape **ret_shape, struct rows **ret_rows, struct err *err)
{
    struct err own;
    if (err == NULL)
        err = &own;
    err_clear(err);
    *ret_rows = NULL;
    struct shape *shape = arena_alloc(arena, sizeof *shape);
    struct event_rows *r = calloc(1, sizeof *r);
    if (shape == NULL || r == NULL) {
        free(r);
        return err_nomem(err);
    }
    r->base.ops = &event_rows_ops;
    r->base.shape = shape;
    r->options = options;
    r->events = options->events;
    r->fd = fd;
    if (event_text_open(&r->text, fd, r->events->max_event, err) != ERR_NONE || allocate(r, err) != ERR_NONE) {
        events_free(&r->base);
        return err->code;
    }
    restart(r);
    fill_shape(shape, &r->text);
    *ret_shape = shape;
    if (is_blank(&r->text)) {
        events_free(&r->base);
        return ERR_NONE;
    }
    if (r->text.size > PARK_BYTES)
        event_text_park(&r->text);
    *ret_rows = &r->base;
    return ERR_NONE;
}
