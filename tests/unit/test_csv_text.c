/* Rows as text: every kind of value, buffers of every size, header, number column, skipped records, errors. */
#include "alloc_fault.h"
#include "csv_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define MAX_ROWS 6

struct table {
    struct rows rows;
    struct shape shape;
    struct column columns[3];
    const char *cells[MAX_ROWS * 3]; /* NULL: SQL NULL */
    size_t row_count, per_batch, at;
    size_t fails_at; /* 0: never */
    const char *value[MAX_ROWS * 3];
    uint32_t length[MAX_ROWS * 3];
    uint64_t record[MAX_ROWS];
    struct row_batch batch;
};

static enum err_code table_next(struct rows *rows, const struct row_batch **ret, struct err *err)
{
    struct table *t = (struct table *)rows;
    size_t columns = t->shape.column_count,
           n = t->row_count - t->at < t->per_batch ? t->row_count - t->at : t->per_batch;
    if (t->fails_at > 0 && t->at >= t->fails_at)
        return err_set(err, ERR_INPUT, false, "bad row");
    for (size_t r = 0; r < n; r++) {
        t->record[r] = (t->at + r) * 10; /* others were rejected */
        for (size_t c = 0; c < columns; c++) {
            const char *cell = t->cells[(t->at + r) * columns + c];
            t->value[r * columns + c] = cell;
            t->length[r * columns + c] = cell == NULL ? 0 : (uint32_t)strlen(cell);
        }
    }
    t->at += n;
    t->batch = (struct row_batch){.rows = n,
                                  .columns = columns,
                                  .value = t->value,
                                  .length = t->length,
                                  .record = t->record,
                                  .line = t->record,
                                  .offset = t->record};
    *ret = &t->batch;
    return ERR_NONE;
}

static void table_init(struct table *t, size_t columns, const char *const *cells, size_t rows, size_t per_batch)
{
    static const struct rows_ops ops = {.next = table_next};
    static const char *const names[] = {"id", "na,me", ""};
    memset(t, 0, sizeof *t);
    t->rows.ops = &ops;
    t->rows.shape = &t->shape;
    t->shape.columns = t->columns;
    t->shape.column_count = columns;
    for (size_t c = 0; c < columns; c++)
        t->columns[c].name = names[c];
    memcpy(t->cells, cells, rows * columns * sizeof *cells);
    t->row_count = rows;
    t->per_batch = per_batch;
}

static enum err_code read_all(struct table *t, const struct csv_text_options *options, size_t room, char *ret,
                              size_t size, struct err *err)
{
    struct csv_text *text;
    size_t used = 0;
    bool is_end = false;
    enum err_code code = csv_text_new(&t->rows, options, &text, err);
    if (code != ERR_NONE)
        return code;
    while (!is_end && code == ERR_NONE) {
        size_t n;
        assert_true(used + room < size);
        code = csv_text_read(text, ret + used, room, &n, &is_end, err);
        if (code == ERR_NONE) {
            assert_true(n <= room);
            assert_true(n == room || is_end);
            assert_true(n > 0 || used == 0); /* the end comes with the last byte, not after it */
            used += n;
        }
    }
    ret[used] = '\0';
    csv_text_free(text);
    return code;
}

static void expect(size_t columns, const char *const *cells, size_t rows, const struct csv_text_options *options,
                   const char *want)
{
    for (size_t per_batch = 1; per_batch <= MAX_ROWS; per_batch++)
        for (size_t room = 1; room < 200; room++) {
            struct table t;
            struct err err;
            char got[1024];
            table_init(&t, columns, cells, rows, per_batch);
            assert_int_equal(read_all(&t, options, room, got, sizeof got, &err), ERR_NONE);
            assert_string_equal(got, want);
        }
}

static const char *const cells[] = {
    "1", "plain", "x", NULL, "", " space ", "a,b", "say \"hi\"", "\"", "two\nlines", "cr\r", ";\t", "ž", "\"\"", NULL,
};

static void every_kind_of_value_is_written_so_that_it_comes_back(void **state)
{
    (void)state;
    const struct csv_text_options comma = {.has_header = true};
    expect(3, cells, 5, &comma,
           "id,\"na,me\",\"\"\n1,plain,x\n,\"\", space \n\"a,b\",\"say "
           "\"\"hi\"\"\",\"\"\"\"\n\"two\nlines\",\"cr\r\",;\t\n"
           "ž,\"\"\"\"\"\",\n");
    const struct csv_text_options semicolon = {.delimiter = ';'};
    expect(3, cells, 4, &semicolon,
           "1;plain;x\n;\"\"; space \na,b;\"say \"\"hi\"\"\";\"\"\"\"\n\"two\nlines\";\"cr\r\";\";\t\"\n");
}

static void the_header_may_have_other_names(void **state)
{
    static const char *const names[] = {"a", "b\"", "c"};
    (void)state;
    const struct csv_text_options options = {.has_header = true, .names = names};
    expect(3, cells, 1, &options, "a,\"b\"\"\",c\n1,plain,x\n");
    expect(3, cells, 0, &options, "a,\"b\"\"\",c\n");
}

static void records_are_numbered_and_skipped_as_in_the_file(void **state)
{
    (void)state;
    const struct csv_text_options options = {.has_header = true, .row_number = "n,o", .skip_records = 11};
    expect(3, cells, 3, &options, "\"n,o\",id,\"na,me\",\"\"\n20,\"a,b\",\"say \"\"hi\"\"\",\"\"\"\"\n");
    const struct csv_text_options all = {.row_number = "n", .skip_records = 1000};
    expect(3, cells, 5, &all, "");
}

static void nothing_gives_nothing(void **state)
{
    (void)state;
    const struct csv_text_options options = {.row_number = ""};
    expect(3, cells, 0, &options, "");
}

static void one_column_has_no_blank_lines(void **state)
{
    static const char *const one[] = {"a", NULL, "", "b"};
    (void)state;
    const struct csv_text_options options = {.has_header = false};
    expect(1, one, 4, &options, "a\n\"\"\n\"\"\nb\n");
    const struct csv_text_options numbered = {.row_number = "n"};
    expect(1, one, 3, &numbered, "0,a\n10,\n20,\"\"\n");
}

static void an_error_of_the_rows_is_passed_on(void **state)
{
    (void)state;
    for (size_t room = 1; room < 100; room += 9) {
        struct table t;
        struct err err;
        char got[1024];
        const struct csv_text_options options = {.has_header = true};
        table_init(&t, 3, cells, 5, 1);
        t.fails_at = 2;
        assert_int_equal(read_all(&t, &options, room, got, sizeof got, &err), ERR_INPUT);
        assert_string_equal(err.text, "bad row");
    }
}

static void out_of_memory_is_an_error(void **state)
{
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        struct table t;
        struct err err;
        char got[1024];
        const struct csv_text_options options = {.has_header = true};
        table_init(&t, 3, cells, 5, 2);
        enum err_code code = read_all(&t, &options, 10, got, sizeof got, &err);
        assert_int_equal(code, alloc_fault_hit() ? ERR_SYSTEM : ERR_NONE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_value_is_written_so_that_it_comes_back),
        cmocka_unit_test(the_header_may_have_other_names),
        cmocka_unit_test(records_are_numbered_and_skipped_as_in_the_file),
        cmocka_unit_test(nothing_gives_nothing),
        cmocka_unit_test(one_column_has_no_blank_lines),
        cmocka_unit_test(an_error_of_the_rows_is_passed_on),
        cmocka_unit_test(out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
