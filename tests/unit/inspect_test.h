/*
 * inspect_test.h -- a text in, one string out: everything that inspect says about a file, for literal comparison.
 *
 *   dialect | name=KINDS ...            KINDS: int dec dbl bool date ts tz, text, or none (no value)
 *   #record @line+offset: [cell] NULL   for each row
 *   = records rejected bytes            at the end of a whole pass
 *   ! line+offset reason: [cell] ...    for each rejected row, as the sink got it
 *   head CODE: text   or   rows CODE: text
 */
#ifndef CHUTE_INSPECT_TEST_H
#define CHUTE_INSPECT_TEST_H

#include "inspect_internal.h"

#include "buf.h"
#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static const char *const test_nulls[] = {"", "NA", "x"};

/* What a test may change; start with TEST_USUAL. */
struct test_case {
    struct csv_options csv;
    uint64_t skip;
    const char *const *expect;
    size_t expect_count;
    const char *shape_of; /* the head is taken of this text instead, so that the rows' own checks are met */
    bool quiet;           /* no line per row */
    bool no_rows;         /* the head only */
};
#define TEST_USUAL                                                                                                     \
    {                                                                                                                  \
        .csv = {.quote = '"', .null_values = {test_nulls, 1}, .max_row = 16 << 20 }                                    \
    }

static inline int test_file(const void *data, size_t n)
{
    int fd = memfd_create("inspect", MFD_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t done = 0; done < n;) {
        ssize_t w = write(fd, (const char *)data + done, n - done);
        assert_true(w > 0);
        done += (size_t)w;
    }
    return fd;
}

static inline void add_cells(struct buf *out, const char *const *value, const uint32_t *length, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (value[i] == NULL) {
            buf_adds(out, " NULL");
            continue;
        }
        buf_adds(out, " [");
        for (uint32_t k = 0; k < length[i]; k++) { /* control bytes as \x, so that an expectation can be read */
            unsigned char c = (unsigned char)value[i][k];
            if (c < 0x20 || c == 0x7F)
                buf_printf(out, "\\x%02X", c);
            else
                buf_addc(out, (char)c);
        }
        buf_addc(out, ']');
    }
    buf_addc(out, '\n');
}

static inline bool test_put(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                            const uint32_t *length, size_t fields)
{
    struct buf *out = arg;
    buf_printf(out, "! %llu+%llu %s:", (unsigned long long)line, (unsigned long long)offset, reason);
    add_cells(out, value, length, fields);
    return true;
}

static inline void test_restart(void *arg)
{
    buf_adds(arg, "restart\n");
}

static inline struct inspect_options test_options(const struct test_case *t, struct buf *out)
{
    return (struct inspect_options){.csv = &t->csv,
                                    .skip_bad_rows = t->skip,
                                    .expect_columns = t->expect,
                                    .expect_count = t->expect_count,
                                    .sink = {out, test_put, test_restart}};
}

static inline void add_shape(struct buf *out, const struct shape *shape)
{
    static const char *const names[] = {"int", "dec", "dbl", "bool", "date", "ts", "tz"};
    char text[80];
    inspect_dialect_text(&shape->dialect, text, sizeof text);
    buf_printf(out, "%s%s%s |", text, shape->dialect.has_bom ? ", bom" : "", shape->dialect.ends_cr ? ", cr" : "");
    for (size_t c = 0; c < shape->column_count; c++) {
        const struct column *column = &shape->columns[c];
        buf_printf(out, " %s=", column->name);
        const char *comma = "";
        for (unsigned k = 0; k < 7 && column->has_value; k++) {
            if ((column->kinds & (1u << k)) == 0)
                continue;
            buf_printf(out, "%s%s", comma, names[k]);
            comma = ",";
        }
        if (*comma == '\0')
            buf_adds(out, column->has_value ? "text" : "none");
    }
    buf_addc(out, '\n');
}

static inline const char *code_name(enum err_code code)
{
    static const char *const names[] = {"NONE",   "CONFIG", "INPUT",  "INCOMPLETE", "CHANGED",
                                        "REMOTE", "DENIED", "SYSTEM", "STOPPED"};
    return names[code];
}

static inline void add_rows(struct buf *out, struct rows *rows, const struct test_case *t)
{
    const struct row_batch *b;
    struct err err;
    for (;;) {
        enum err_code code = rows_next(rows, &b, &err);
        if (code != ERR_NONE) {
            assert_int_equal(code, err.code);
            buf_printf(out, "rows %s: %s\n", code_name(code), err.text);
            return;
        }
        if (b->rows == 0)
            break;
        for (size_t r = 0; r < b->rows && !t->quiet; r++) {
            buf_printf(out, "#%llu @%llu+%llu:", (unsigned long long)b->record[r], (unsigned long long)b->line[r],
                       (unsigned long long)b->offset[r]);
            add_cells(out, b->value + r * b->columns, b->length + r * b->columns, b->columns);
        }
    }
    buf_printf(out, "= %llu %llu %llu\n", (unsigned long long)rows->result.records,
               (unsigned long long)rows->result.rejected, (unsigned long long)rows->result.bytes);
}

/* Head and rows of FD as one string; the caller frees it. */
static inline char *test_inspect_fd(int fd, const struct test_case *t)
{
    struct buf out;
    buf_init(&out);
    struct inspect_options options = test_options(t, &out);
    struct arena arena;
    arena_init(&arena);
    struct shape *shape;
    struct rows *rows;
    struct err err;
    int head_fd = t->shape_of != NULL ? test_file(t->shape_of, strlen(t->shape_of)) : fd;
    enum err_code code = inspect_head(head_fd, &options, &arena, &shape, &err);
    if (head_fd != fd)
        close(head_fd);
    if (code != ERR_NONE) {
        assert_int_equal(code, err.code);
        buf_printf(&out, "head %s: %s\n", code_name(code), err.text);
    } else if (t->no_rows) {
        add_shape(&out, shape);
    } else if (inspect_rows(fd, &options, shape, &rows, &err) != ERR_NONE) {
        buf_printf(&out, "rows %s: %s\n", code_name(err.code), err.text);
    } else {
        struct buf body, rejects; /* apart: a batch's rejects come with the batch, wherever it ends */
        buf_init(&body);
        buf_init(&rejects);
        options.sink.arg = &rejects;
        add_rows(&body, rows, t);
        add_shape(&out, shape);
        buf_adds(&out, body.data);
        buf_adds(&out, rejects.data);
        buf_done(&body);
        buf_done(&rejects);
        if (shape->is_whole && t->shape_of == NULL && strstr(out.data, "\n= ") != NULL) {
            assert_true(shape->has_hash);
            assert_memory_equal(shape->hash, rows->result.hash, 16);
            assert_int_equal(shape->records, rows->result.records);
        }
        rows_free(rows);
    }
    arena_done(&arena);
    assert_false(out.failed);
    return buf_take(&out);
}

static inline char *test_inspect_n(const void *data, size_t n, const struct test_case *t)
{
    int fd = test_file(data, n);
    char *out = test_inspect_fd(fd, t);
    close(fd);
    return out;
}

#define expect_of_n(data, n, t, expected)                                                                              \
    do {                                                                                                               \
        char *out_ = test_inspect_n(data, n, t);                                                                       \
        assert_string_equal(out_, expected);                                                                           \
        free(out_);                                                                                                    \
    } while (0)
#define expect_of(text, t, expected) expect_of_n(text, strlen(text), t, expected)

#endif
