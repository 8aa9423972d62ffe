/*
 * fuzz_inspect.c -- any bytes as a file: rows or an error with its place, and the same ones again after a rewind.
 *
 * The first four bytes choose the options, the rest is the file. What must hold, whatever the bytes: every value of
 * every row is UTF-8 without NUL and within max_row, rows have as many cells as the shape has columns, good and
 * rejected rows add up to the records, and head and rows agree on the hash.
 */
#include "inspect.h"

#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHOICES 4

struct pass {
    uint64_t good, rejected;
    uint64_t sum; /* of everything that was said about the rows, to compare two passes */
};

static void must(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "fuzz_inspect: not true: %s\n", what);
        abort();
    }
}
#define MUST(condition) must(condition, #condition)

static void add(struct pass *p, uint64_t n)
{
    p->sum = (p->sum ^ n) * 0x100000001B3ULL;
}

static void add_value(struct pass *p, const char *value, uint32_t length)
{
    add(p, value == NULL ? UINT64_MAX : length);
    for (uint32_t i = 0; value != NULL && i < length; i++)
        add(p, (unsigned char)value[i]);
}

static bool on_reject(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                      const uint32_t *length, size_t fields)
{
    struct pass *p = arg;
    MUST(*reason != '\0' && line > 0);
    p->rejected++;
    for (size_t i = 0; i < fields; i++) /* as it was found: a NUL or bytes that are not UTF-8 may be the reason */
        add_value(p, value[i], length[i]);
    (void)offset;
    return true;
}

static void on_restart(void *arg)
{
    *(struct pass *)arg = (struct pass){0};
}

static void check_batch(struct pass *p, const struct row_batch *b, const struct shape *shape, uint64_t max_row)
{
    MUST(b->columns == shape->column_count);
    for (size_t r = 0; r < b->rows; r++) {
        uint64_t bytes = 0;
        MUST(b->line[r] > 0);
        add(p, b->record[r]);
        add(p, b->line[r]);
        add(p, b->offset[r]);
        for (size_t c = 0; c < b->columns; c++) {
            const char *value = b->value[r * b->columns + c];
            uint32_t length = b->length[r * b->columns + c];
            add_value(p, value, length);
            if (value == NULL)
                continue;
            bytes += length;
            MUST(text_utf8_valid(value, length) == length && memchr(value, 0, length) == NULL);
        }
        MUST(bytes <= 4 * max_row); /* max_row counts the file's bytes; one of them may be several in UTF-8 */
        p->good++;
    }
}

/* All rows once; the last error code, and what was met in P. */
static enum err_code run_pass(struct rows *rows, struct pass *p, uint64_t max_row)
{
    const struct row_batch *b;
    struct err err = {.code = ERR_NONE};
    enum err_code code;
    while ((code = rows_next(rows, &b, &err)) == ERR_NONE && b->rows > 0)
        check_batch(p, b, rows->shape, max_row);
    MUST(code == ERR_NONE || (code == err.code && err.text[0] != '\0' && strchr(err.text, '\n') == NULL));
    MUST(text_utf8_valid(err.text, strlen(err.text)) == strlen(err.text) || code == ERR_NONE);
    if (code == ERR_NONE) {
        MUST(rows->result.rejected == p->rejected);
        MUST(rows->result.records == p->good + p->rejected);
    }
    return code;
}

static struct csv_options choose(const uint8_t *choice)
{
    static const char *const nulls[] = {"", "NA"};
    static const char delimiters[] = {0, 0, ',', ';', '\t', '|'};
    return (struct csv_options){.delimiter = delimiters[choice[0] % sizeof(delimiters)],
                                .quote = choice[0] & 0x80 ? '\'' : '"',
                                .encoding = choice[1] % (ENC_ISO_8859_2 + 1),
                                .short_rows = choice[1] & 0x80 ? SHORT_PAD : SHORT_REJECT,
                                .null_values = {nulls, choice[1] & 0x40 ? 2 : 1},
                                .max_row = choice[2] & 1 ? 64 : 1 << 20};
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const expected[] = {"id", "name"};
    static int fd = -1;
    if (size < CHOICES)
        return 0;
    if (fd < 0 && (fd = memfd_create("file", MFD_CLOEXEC)) < 0)
        abort();
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data + CHOICES, size - CHOICES, 0) != (ssize_t)(size - CHOICES))
        abort();

    struct pass first = {0};
    const struct csv_options csv = choose(data);
    const struct inspect_options options = {.csv = &csv,
                                            .skip_bad_rows = data[2] & 2 ? data[3] : 0,
                                            .expect_columns = data[2] & 4 ? expected : NULL,
                                            .expect_count = data[2] & 4 ? 2 : 0,
                                            .buffer_bytes = data[2] & 8 ? 64 << 10 : 0,
                                            .sink = {&first, on_reject, on_restart}};
    struct arena arena;
    struct shape *shape;
    struct rows *rows;
    struct err err;
    arena_init(&arena);
    lseek(fd, 0, SEEK_SET);
    if (inspect_head(fd, &options, &arena, &shape, &err) == ERR_NONE && shape->column_count > 0 &&
        inspect_rows(fd, &options, shape, &rows, &err) == ERR_NONE) {
        const uint64_t records = shape->records;
        enum err_code code = run_pass(rows, &first, csv.max_row);
        const struct pass before = first;
        MUST(code != ERR_NONE || !shape->has_hash || memcmp(shape->hash, rows->result.hash, 16) == 0);
        MUST(code != ERR_NONE || !shape->is_whole || rows->result.records == records);
        if (rows_rewind(rows, &err) == ERR_NONE) {
            first = (struct pass){0};
            MUST(run_pass(rows, &first, csv.max_row) == code);
            MUST(code != ERR_NONE || (first.sum == before.sum && first.good == before.good));
        }
        rows_free(rows);
    }
    arena_done(&arena);
    return 0;
}
