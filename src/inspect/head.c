/* head.c -- what a file is, from its first MiB of text; of a small file, from all of it. */
#include "inspect_internal.h"

#include <sys/stat.h>

struct head {
    struct text_stream stream;
    char *memory; /* TEXT_PAD, text, TEXT_PAD */
    char *text;
    size_t size, capacity;
    bool is_whole;
};

static bool reserve(struct head *h, size_t capacity)
{
    char *memory = realloc(h->memory, capacity + 2 * TEXT_PAD);
    if (memory == NULL)
        return false;
    h->memory = memory;
    h->text = memory + TEXT_PAD;
    h->capacity = capacity;
    return true;
}

/* Line and column behind the text read so far: where a damaged byte stands. */
static void add_place_after(const struct head *h, struct err *err)
{
    uint64_t line = 1, column = 1;
    for (size_t i = 0; i < h->size; i++) {
        char c = h->text[i];
        bool ends_line = c == '\n' || (c == '\r' && (i + 1 == h->size || h->text[i + 1] != '\n'));
        line += ends_line;
        column = ends_line ? 1 : column + (((unsigned char)c & 0xC0) != 0x80);
    }
    add_place(err, line, column);
}

static enum err_code read_head(struct head *h, int fd, struct err *err)
{
    struct stat st;
    size_t guess = 64 * 1024;
    if (fstat(fd, &st) == 0 && h->stream.compression == COMPRESSION_NONE && st.st_size < (off_t)guess)
        guess = (size_t)st.st_size + 64;
    if (!reserve(h, guess))
        return err_nomem(err);
    for (;;) {
        if (h->size + 8 > h->capacity && h->capacity < HEAD_BYTES + 8) {
            size_t capacity = 4 * h->capacity < HEAD_BYTES + 8 ? 4 * h->capacity : HEAD_BYTES + 8;
            if (!reserve(h, capacity))
                return err_nomem(err);
        }
        size_t n;
        if (text_read(&h->stream, h->text + h->size, h->capacity - h->size, &n, err) != ERR_NONE) {
            add_place_after(h, err);
            return err->code;
        }
        h->size += n;
        h->is_whole = n == 0;
        if (n == 0 || h->size > HEAD_BYTES)
            return ERR_NONE;
    }
}

/* A file is one-column "CR only" when it has line ends and none of them is LF. */
static void fill_dialect(struct dialect *d, const struct head *h, const struct inspect_options *options)
{
    d->delimiter = options->csv->delimiter;
    d->quote = options->csv->quote;
    d->encoding = h->stream.encoding;
    d->compression = h->stream.compression;
    d->has_bom = h->stream.has_bom;
    d->ends_cr = memchr(h->text, '\r', h->size) != NULL && memchr(h->text, '\n', h->size) == NULL;
}

static enum err_code fill_columns(struct shape *shape, const struct head *h, struct arena *arena, struct err *err)
{
    const char *const *names;
    const bool *made_up;
    if (sniff_header(h->text, h->size, h->is_whole, shape->dialect.delimiter, shape->dialect.quote, arena, &names,
                     &made_up, &shape->column_count, err) != ERR_NONE)
        return err->code;
    shape->columns = arena_alloc(arena, (shape->column_count + 1) * sizeof *shape->columns);
    if (shape->columns == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < shape->column_count; i++)
        shape->columns[i] = (struct column){.name = names[i], .kinds = KIND_ANY, .is_made_up = made_up[i]};
    return ERR_NONE;
}

/* All records of the head: their bytes and quotes checked, their kinds taken. */
static enum err_code read_records(struct shape *shape, struct head *h, const struct inspect_options *options,
                                  struct arena *arena, struct err *err)
{
    struct batch *batch = NULL;
    struct parser p = {.csv_options = options->csv,
                       .dialect = &shape->dialect,
                       .columns = shape->column_count,
                       .skips_header = true,
                       .bad_limit = options->skip_bad_rows,
                       .no_kinds = options->no_kinds,
                       .block_size = h->size,
                       .is_fragment = !h->is_whole};
    p.kinds = arena_alloc(arena, (p.columns + 1) * sizeof *p.kinds);
    p.has_value = arena_alloc(arena, (p.columns + 1) * sizeof *p.has_value);
    if (p.kinds == NULL || p.has_value == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < p.columns; i++)
        p.kinds[i] = KIND_ANY;
    size_t data = h->size < BLOCK_BYTES ? h->size : BLOCK_BYTES;
    if (parser_init(&p, err) != ERR_NONE)
        return err->code;
    enum err_code code = batch_new(p.columns, data < 64 ? 64 : data, &batch, err);
    if (code == ERR_NONE) {
        parser_restart(&p, h->stream.first_offset);
        parser_memory(&p, h->text, h->size);
    }
    while (code == ERR_NONE && !batch->is_last) {
        batch_clear(batch);
        parser_fill(&p, batch);
        code = batch->err.code;
        if (code != ERR_NONE && err != NULL)
            *err = batch->err;
    }
    for (size_t i = 0; i < p.columns && code == ERR_NONE; i++) {
        shape->columns[i].kinds = p.kinds[i];
        shape->columns[i].has_value = p.has_value[i];
    }
    shape->records = p.record;
    batch_free(batch);
    parser_done(&p);
    return code;
}

static enum err_code fill_shape(struct shape *shape, struct head *h, const struct inspect_options *options,
                                struct arena *arena, struct err *err)
{
    if (!h->is_whole)
        h->size -= cut_sequence(h->text, h->size);
    fill_dialect(&shape->dialect, h, options);
    shape->is_whole = shape->has_hash = h->is_whole;
    if (h->is_whole)
        text_hash(&h->stream, shape->hash);
    if (shape->dialect.delimiter == '\0' &&
        sniff_delimiter(h->text, h->size, h->is_whole, options, &shape->dialect.delimiter, err) != ERR_NONE)
        return err->code;
    if (fill_columns(shape, h, arena, err) != ERR_NONE)
        return err->code;
    return shape->column_count > 0 ? read_records(shape, h, options, arena, err) : ERR_NONE;
}

enum err_code inspect_head(int fd, const struct inspect_options *options, struct arena *arena, struct shape **ret_shape,
                           struct err *err)
{
    struct err own;
    if (err == NULL)
        err = &own;
    err_clear(err);
    struct head h = {0};
    struct shape *shape = arena_alloc(arena, sizeof *shape);
    if (shape == NULL)
        return err_nomem(err);
    if (text_open(&h.stream, fd, (enum encoding)options->csv->encoding, err) != ERR_NONE)
        return err->code;
    enum err_code code = read_head(&h, fd, err);
    if (code == ERR_NONE)
        code = fill_shape(shape, &h, options, arena, err);
    text_close(&h.stream);
    free(h.memory);
    if (code == ERR_NONE)
        *ret_shape = shape;
    return code;
}
