/*
 * csv_text.c -- rows as CSV text, see csv_text.h.
 *
 * The state is a place in the table (row, column) and a place inside that field, so that a record of any length passes
 * through a buffer of any size.
 */
#include "csv_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum part { OPEN, TEXT, CLOSE, AFTER }; /* quote before, bytes, quote behind, delimiter or LF */

struct csv_text {
    struct rows *rows;
    struct csv_text_options options;
    size_t columns; /* of a record as it is written */
    bool has_number;
    bool is_header; /* the header is what is being written */
    bool is_over;
    const struct row_batch *batch;
    size_t row, column; /* the next field: column from 0, the number's is the first */
    bool has_field;     /* VALUE is it */
    enum part part;
    bool is_quoted;
    bool owes_quote; /* the first of a doubled pair is written */
    const char *value;
    size_t length, at;
    char number[24];
    bool special[256]; /* must a field with this byte be quoted? */
};

enum err_code csv_text_new(struct rows *rows, const struct csv_text_options *options, struct csv_text **ret,
                           struct err *err)
{
    struct csv_text *t = calloc(1, sizeof *t);
    if (t == NULL)
        return err_nomem(err);
    t->rows = rows;
    t->options = *options;
    if (t->options.delimiter == '\0')
        t->options.delimiter = ',';
    t->has_number = options->row_number != NULL && options->row_number[0] != '\0';
    t->columns = rows->shape->column_count + t->has_number;
    t->is_header = options->has_header;
    t->special[(unsigned char)t->options.delimiter] = true;
    t->special['"'] = t->special['\r'] = t->special['\n'] = true;
    *ret = t;
    return ERR_NONE;
}

void csv_text_free(struct csv_text *t)
{
    free(t);
}

/* Stand on a row that is wanted, in this batch or a later one; is_over if there is none. */
static enum err_code find_row(struct csv_text *t, struct err *err)
{
    for (;;) {
        for (; t->batch != NULL && t->row < t->batch->rows; t->row++)
            if (t->batch->record[t->row] >= t->options.skip_records)
                return ERR_NONE;
        if (rows_next(t->rows, &t->batch, err) != ERR_NONE)
            return err->code;
        t->row = 0;
        if (t->batch->rows == 0) {
            t->is_over = true;
            return ERR_NONE;
        }
    }
}

static void take_value(struct csv_text *t, const char *value, size_t length)
{
    t->value = value;
    t->length = value != NULL ? length : 0;
    t->at = 0;
    t->owes_quote = false;
    t->is_quoted = t->length == 0 && (value != NULL || t->columns == 1); /* see csv_text.h */
    for (size_t i = 0; i < t->length && !t->is_quoted; i++)
        t->is_quoted = t->special[(unsigned char)value[i]];
    t->part = OPEN;
    t->has_field = true;
}

static void take_field(struct csv_text *t)
{
    size_t c = t->column;
    if (t->has_number && c-- == 0) {
        if (t->is_header) {
            take_value(t, t->options.row_number, strlen(t->options.row_number));
            return;
        }
        int n = snprintf(t->number, sizeof t->number, "%" PRIu64, t->batch->record[t->row]);
        take_value(t, t->number, (size_t)n);
    } else if (t->is_header) {
        const char *name = t->options.names != NULL ? t->options.names[c] : t->rows->shape->columns[c].name;
        take_value(t, name, strlen(name));
    } else {
        size_t cell = t->row * t->batch->columns + c;
        take_value(t, t->batch->value[cell], t->batch->length[cell]);
    }
}

/* Bytes of the field from t->at, quotes doubled; returns how many of ROOM (> 0) were used. */
static size_t put_text(struct csv_text *t, char *buf, size_t room)
{
    if (!t->is_quoted) {
        size_t n = t->length - t->at < room ? t->length - t->at : room;
        memcpy(buf, t->value + t->at, n);
        t->at += n;
        return n;
    }
    size_t used = 0;
    while (used < room && t->at < t->length) {
        char c = t->value[t->at];
        buf[used++] = c;
        if (c == '"' && !t->owes_quote) {
            t->owes_quote = true;
            continue;
        }
        t->owes_quote = false;
        t->at++;
    }
    return used;
}

/* One part of the current field; returns how many bytes of ROOM (> 0) were used. */
static size_t put_part(struct csv_text *t, char *buf, size_t room)
{
    size_t used = 0;
    switch (t->part) {
    case OPEN:
        if (t->is_quoted)
            buf[used++] = '"';
        t->part = t->length > 0 ? TEXT : CLOSE;
        break;
    case TEXT:
        used = put_text(t, buf, room);
        if (t->at == t->length)
            t->part = CLOSE;
        break;
    case CLOSE:
        if (t->is_quoted)
            buf[used++] = '"';
        t->part = AFTER;
        break;
    case AFTER:
        t->has_field = false;
        t->column++;
        if (t->column < t->columns) {
            buf[used++] = t->options.delimiter;
            break;
        }
        buf[used++] = '\n';
        t->column = 0;
        if (t->is_header)
            t->is_header = false;
        else
            t->row++;
        break;
    }
    return used;
}

enum err_code csv_text_read(struct csv_text *t, char *buf, size_t room, size_t *ret_size, bool *ret_end,
                            struct err *err)
{
    *ret_size = 0;
    *ret_end = false;
    for (;;) {
        if (!t->has_field) { /* also when the room is used up: is there anything left at all? */
            if (t->column == 0 && !t->is_header && !t->is_over && find_row(t, err) != ERR_NONE)
                return err->code;
            if (t->is_over) {
                *ret_end = true;
                return ERR_NONE;
            }
            take_field(t);
        }
        if (*ret_size == room)
            return ERR_NONE;
        *ret_size += put_part(t, buf + *ret_size, room - *ret_size);
    }
}
