/*
 * fuzz_inspect_sizes.c -- any bytes as a file: the same answer whatever the size of blocks and batches, with and
 * without a thread ahead. The first 4 bytes choose options and sizes.
 */
#include "inspect_internal.h"

#include "buf.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool is_true, const char *what)
{
    if (is_true)
        return;
    fprintf(stderr, "fuzz_inspect_sizes: %s\n", what);
    abort();
}

static void must_equal(const struct buf *usual, const struct buf *other, const char *what)
{
    if (usual->size == other->size && memcmp(usual->data, other->data, usual->size) == 0)
        return;
    fprintf(stderr, "usual: %s\nother: %s\n", usual->data, other->data);
    must(false, what);
}

static void add_cells(struct buf *out, const char *const *value, const uint32_t *length, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        buf_printf(out, " %d:%u:", value[i] != NULL, length[i]);
        buf_add(out, value[i], length[i]);
    }
    buf_addc(out, '\n');
}

static bool put(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                const uint32_t *length, size_t fields)
{
    buf_printf(arg, "%llu+%llu %s", (unsigned long long)line, (unsigned long long)offset, reason);
    add_cells(arg, value, length, fields);
    return true;
}

static void add_rows(struct buf *out, struct rows *rows, struct err *err)
{
    const struct row_batch *b;
    while (rows_next(rows, &b, err) == ERR_NONE && b->rows > 0) {
        for (size_t r = 0; r < b->rows; r++) {
            buf_printf(out, "%llu %llu+%llu", (unsigned long long)b->record[r], (unsigned long long)b->line[r],
                       (unsigned long long)b->offset[r]);
            add_cells(out, b->value + r * b->columns, b->length + r * b->columns, b->columns);
        }
    }
    if (err->code != ERR_NONE)
        return;
    buf_printf(out, "= %llu %llu %llu ", (unsigned long long)rows->result.records,
               (unsigned long long)rows->result.rejected, (unsigned long long)rows->result.bytes);
    buf_add(out, rows->result.hash, sizeof rows->result.hash);
}

/* Everything that inspect says of FD. Of an error in compressed data nothing: more or less was decoded before it. */
static void inspect(int fd, bool is_plain, struct inspect_options *options, struct buf *out)
{
    struct arena arena;
    struct shape *shape;
    struct rows *rows;
    struct buf bad;
    struct err err;
    arena_init(&arena);
    buf_init(&bad);
    buf_clear(out);
    options->sink = (struct reject_sink){&bad, put, NULL};
    if (inspect_head(fd, options, &arena, &shape, &err) == ERR_NONE) {
        for (size_t c = 0; c < shape->column_count; c++)
            buf_printf(out, "%s %u %d\n", shape->columns[c].name, shape->columns[c].kinds, shape->columns[c].has_value);
        must(inspect_rows(fd, options, shape, &rows, &err) == ERR_NONE, "rows do not open");
        add_rows(out, rows, &err);
        must(err.code == ERR_NONE || !shape->is_whole, "a whole head was good, and its rows are not");
        buf_printf(out, "%s\n%s", err.text, bad.data);
        for (size_t c = 0; c < shape->column_count; c++)
            buf_printf(out, " %u", shape->columns[c].kinds);
        rows_free(rows);
    } else {
        buf_adds(out, err.text);
    }
    if (err.code != ERR_NONE && !is_plain)
        buf_clear(out);
    buf_printf(out, "\n%d", err.code != ERR_NONE);
    must(!out->failed, "out of memory");
    buf_done(&bad);
    arena_done(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const nulls[] = {"", "NA", "x"};
    static const char delimiters[] = {0, ',', ';', '\t'};
    if (size < 4)
        return 0;
    const struct csv_options csv = {.delimiter = delimiters[data[0] & 3],
                                    .quote = '"',
                                    .encoding = (data[0] >> 2) % 6,
                                    .null_values = {nulls, data[1] & 3},
                                    .short_rows = (data[1] & 4) != 0 ? SHORT_PAD : SHORT_REJECT,
                                    .max_row = (data[1] & 8) != 0 ? 20 : 1 << 20};
    struct inspect_options options = {.csv = &csv, .skip_bad_rows = data[1] >> 4};
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    must(fd >= 0 && write(fd, data + 4, size - 4) == (ssize_t)(size - 4), "no file");
    bool is_plain = size < 6 || (data[4] != 0x1F && data[4] != 0x28 && (data[4] & 0xF0) != 0x50);
    struct buf usual, other;
    buf_init(&usual);
    buf_init(&other);
    inspect_knobs = (struct inspect_knobs){.threads = 0};
    inspect(fd, is_plain, &options, &usual);
    inspect_knobs = (struct inspect_knobs){.block = 1 + data[2] % 80u, .batch_bytes = 1 + data[3] % 60u};
    inspect(fd, is_plain, &options, &other);
    must_equal(&usual, &other, "block sizes differ");
    if ((data[3] & 7) == 0) {
        inspect_knobs.threads = 1;
        inspect(fd, is_plain, &options, &other);
        must_equal(&usual, &other, "threads differ");
    }
    close(fd);
    buf_done(&usual);
    buf_done(&other);
    return 0;
}
