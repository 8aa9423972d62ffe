/* batch.c -- a batch of rows: cells, places and rejected rows, in memory that is kept from one batch to the next. */
#include "inspect_internal.h"

#define CELLS_MAX ((size_t)32 * 1024)
#define ROWS_MAX ((size_t)4096)

enum err_code batch_new(size_t columns, size_t data_bytes, struct batch **ret, struct err *err)
{
    struct batch *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_nomem(err);
    size_t rows = columns > 0 ? CELLS_MAX / columns : 1;
    if (rows > data_bytes / 2)
        rows = data_bytes / 2; /* no row is shorter than two bytes: a small file gets small arrays */
    b->rows_max = rows < 1 ? 1 : rows > ROWS_MAX ? ROWS_MAX : rows;
    b->usual_size = b->data_size = data_bytes;
    b->data = malloc(data_bytes + PAD_BYTES);
    b->value = malloc((b->rows_max * columns + 1) * sizeof *b->value);
    b->length = malloc((b->rows_max * columns + 1) * sizeof *b->length);
    b->record = malloc(b->rows_max * sizeof *b->record);
    b->line = malloc(b->rows_max * sizeof *b->line);
    b->offset = malloc(b->rows_max * sizeof *b->offset);
    b->kinds = calloc(columns + 1, sizeof *b->kinds);
    b->has_value = calloc(columns + 1, sizeof *b->has_value);
    if (b->data == NULL || b->value == NULL || b->length == NULL || b->record == NULL || b->line == NULL ||
        b->offset == NULL || b->kinds == NULL || b->has_value == NULL) {
        batch_free(b);
        return err_nomem(err);
    }
    b->rows = (struct row_batch){.columns = columns,
                                 .value = b->value,
                                 .length = b->length,
                                 .record = b->record,
                                 .line = b->line,
                                 .offset = b->offset};
    *ret = b;
    return ERR_NONE;
}

static void drop_bad(struct batch *b)
{
    for (size_t i = 0; i < b->bad_count; i++) {
        free(b->bad[i].reason);
        free(b->bad[i].value);
        free(b->bad[i].length);
    }
    b->bad_count = 0;
}

void batch_clear(struct batch *b)
{
    drop_bad(b);
    b->rows.rows = 0;
    b->data_used = 0;
    b->is_last = false;
    b->next = NULL;
    err_clear(&b->err);
    if (b->data_size > b->usual_size) {
        char *data = realloc(b->data, b->usual_size + PAD_BYTES);
        if (data != NULL)
            b->data = data;
        b->data_size = b->usual_size;
    }
}

void batch_free(struct batch *b)
{
    if (b == NULL)
        return;
    drop_bad(b);
    free(b->bad);
    free(b->data);
    free(b->value);
    free(b->length);
    free(b->record);
    free(b->line);
    free(b->offset);
    free(b->kinds);
    free(b->has_value);
    free(b);
}
