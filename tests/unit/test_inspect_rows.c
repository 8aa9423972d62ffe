/* test_inspect_rows.c -- the stream of rows: threads, second passes, early ends, bad rows, memory, failing allocations.
 */
#include <malloc.h>
#include <stddef.h>
#include <xxhash.h>

#include "inspect_test.h"

#include "alloc_fault.h"

#include <sys/resource.h>
#include <sys/wait.h>

static const struct test_case usual = TEST_USUAL;

/* A file large enough for several batches; row I is "I,name I,note". */
static int large_file(size_t rows, struct buf *text)
{
    buf_init(text);
    buf_adds(text, "id,name,note\n");
    for (size_t i = 0; i < rows; i++)
        buf_printf(text, "%zu,name %zu,%s\n", i, i, i % 7 == 0 ? "\"two\nlines, and \"\"quotes\"\"\"" : "plain čas");
    assert_false(text->failed);
    return test_file(text->data, text->size);
}

struct pass {
    struct arena arena;
    struct inspect_options options;
    struct shape *shape;
    struct rows *rows;
};

static void open_pass(struct pass *p, int fd, const struct test_case *t, struct buf *sink)
{
    struct err err;
    arena_init(&p->arena);
    p->options = test_options(t, sink);
    assert_int_equal(inspect_head(fd, &p->options, &p->arena, &p->shape, &err), ERR_NONE);
    assert_int_equal(inspect_rows(fd, &p->options, p->shape, &p->rows, &err), ERR_NONE);
}

static void close_pass(struct pass *p)
{
    rows_free(p->rows);
    arena_done(&p->arena);
}

/* Pull up to MAX batches, checking that each row is the one after the last. Returns the rows. */
static uint64_t pull(struct pass *p, size_t max)
{
    const struct row_batch *b;
    struct err err;
    uint64_t next = 0;
    for (size_t i = 0; i < max; i++) {
        assert_int_equal(rows_next(p->rows, &b, &err), ERR_NONE);
        if (b->rows == 0)
            break;
        for (size_t r = 0; r < b->rows; r++, next++) {
            char id[24];
            snprintf(id, sizeof id, "%llu", (unsigned long long)next);
            assert_int_equal(b->record[r], next);
            assert_int_equal(b->length[r * 3], strlen(id));
            assert_memory_equal(b->value[r * 3], id, strlen(id));
        }
        assert_true(p->rows->rows_done >= next);
        assert_true(p->rows->bytes_done > 0);
    }
    return next;
}

static void a_thread_ahead_gives_what_one_thread_gives(void **state)
{
    (void)state;
    struct buf text;
    int fd = large_file(60000, &text);
    inspect_knobs.threads = 0;
    char *inline_rows = test_inspect_fd(fd, &usual);
    inspect_knobs.threads = 1;
    char *threaded = test_inspect_fd(fd, &usual);
    inspect_knobs.threads = -1;
    char *by_size = test_inspect_fd(fd, &usual);
    assert_true(strcmp(inline_rows, threaded) == 0 && strcmp(inline_rows, by_size) == 0);
    free(inline_rows);
    free(threaded);
    free(by_size);
    close(fd);
    buf_done(&text);
}

static void the_hash_is_that_of_the_bytes(void **state)
{
    (void)state;
    struct buf text;
    int fd = large_file(60000, &text);
    struct pass p;
    uint8_t hash[16];
    uint64_t size;
    open_pass(&p, fd, &usual, NULL);
    assert_int_equal(pull(&p, SIZE_MAX), 60000);
    assert_int_equal(inspect_hash(fd, NULL, hash, &size, NULL), ERR_NONE);
    assert_int_equal(size, text.size);
    assert_int_equal(p.rows->result.bytes, text.size);
    assert_memory_equal(p.rows->result.hash, hash, 16);
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(text.data, text.size));
    assert_memory_equal(hash, canonical.digest, 16);
    const _Atomic bool stop = true;
    assert_int_equal(inspect_hash(fd, &stop, hash, &size, NULL), ERR_STOPPED);
    close_pass(&p);
    close(fd);
    buf_done(&text);
}

static void a_pass_may_be_left_or_begun_again_at_any_batch(void **state)
{
    (void)state;
    struct buf text;
    int fd = large_file(60000, &text);
    for (int threads = 0; threads <= 1; threads++) {
        inspect_knobs.threads = threads;
        for (size_t batches = 0; batches < 9; batches++) {
            struct pass p;
            open_pass(&p, fd, &usual, NULL);
            pull(&p, batches);
            if (batches % 3 != 0) {
                assert_int_equal(rows_rewind(p.rows, NULL), ERR_NONE);
                pull(&p, batches / 2);
                assert_int_equal(rows_rewind(p.rows, NULL), ERR_NONE);
                assert_int_equal(pull(&p, batches == 8 ? SIZE_MAX : 1) > 0, 1);
            }
            close_pass(&p);
        }
        struct pass p;
        open_pass(&p, fd, &usual, NULL);
        assert_int_equal(pull(&p, SIZE_MAX), 60000);
        assert_int_equal(pull(&p, SIZE_MAX), 0); /* the end stays the end */
        assert_int_equal(rows_rewind(p.rows, NULL), ERR_NONE);
        assert_int_equal(pull(&p, SIZE_MAX), 60000);
        assert_int_equal(p.rows->result.records, 60000);
        close_pass(&p);
    }
    inspect_knobs.threads = -1;
    close(fd);
    buf_done(&text);
}

/* Hundreds of small files wait for their turn in a commit. */
static void a_small_file_holds_no_buffers_before_its_first_pull_and_after_its_last(void **state)
{
    (void)state;
    enum { N = 200, KIB = 1024 };
    static struct pass p[N];
    struct buf text;
    int fd = large_file(20, &text);
    inspect_knobs.threads = 0;
    size_t before = mallinfo2().uordblks;
    for (int i = 0; i < N; i++)
        open_pass(&p[i], fd, &usual, NULL);
    size_t waiting = mallinfo2().uordblks - before;
    for (int i = 0; i < N; i++)
        assert_int_equal(pull(&p[i], SIZE_MAX), 20);
    size_t over = mallinfo2().uordblks - before;
    for (int i = 0; i < N; i++)
        close_pass(&p[i]);
    inspect_knobs.threads = -1;
    assert_in_range(waiting / N, 0, 12 * KIB); /* most of it the arena of its shape and the rows themselves */
    assert_in_range(over / N, 0, 12 * KIB);
    close(fd);
    buf_done(&text);
}

static void rows_of_any_length_up_to_the_limit_pass_through(void **state)
{
    (void)state;
    struct buf text;
    buf_init(&text);
    buf_adds(&text, "a,b\n");
    static const size_t lengths[] = {10, 700000, 3, 2000000, 2000000, 300000, 0, 262144, 262143, 1000000, 5};
    const size_t count = sizeof lengths / sizeof *lengths;
    for (size_t i = 0; i < count; i++) {
        buf_printf(&text, "%zu,\"", i);
        for (size_t k = 0; k < lengths[i]; k++)
            buf_addc(&text, k % 1000 == 999 ? '\n' : (char)('a' + k % 26));
        buf_adds(&text, "\"\n");
    }
    int fd = test_file(text.data, text.size);
    for (int threads = 0; threads <= 1; threads++) {
        inspect_knobs.threads = threads;
        struct pass p;
        const struct row_batch *b;
        size_t seen = 0;
        open_pass(&p, fd, &usual, NULL);
        while (rows_next(p.rows, &b, NULL) == ERR_NONE && b->rows > 0) {
            for (size_t r = 0; r < b->rows; r++, seen++) {
                assert_int_equal(b->length[r * 2 + 1], lengths[seen]);
                for (size_t k = 0; k < lengths[seen]; k++)
                    if (b->value[r * 2 + 1][k] != (k % 1000 == 999 ? '\n' : (char)('a' + k % 26)))
                        fail_msg("row %zu differs at byte %zu", seen, k);
            }
        }
        assert_int_equal(seen, count);
        close_pass(&p);
    }
    inspect_knobs.threads = -1;
    close(fd);
    buf_done(&text);
}

/* ---- bad rows */

static void so_many_bad_rows_are_skipped_and_one_more_is_too_many(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    static const char text[] = "a,b\n1\n2,2\n3,3,3\n4,\xFF\n5,5\n";
    t.skip = 3;
    expect_of(
        text, &t,
        "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n#1 @3+6: [2] [2]\n#4 @6+20: [5] [5]\n= 5 3 24\n"
        "! 2+4 line 2: 1 field, expected 2 (byte offset 4): [1]\n"
        "! 4+10 line 4: 3 fields, expected 2 (byte offset 10): [3] [3] [3]\n"
        "! 5+16 line 5, column 3: byte 0xFF is not UTF-8 (byte offset 18); set csv.encoding if the file has another "
        "encoding: [4] [\xFF]\n");
    t.skip = 2;
    expect_of(
        text, &t,
        "head INPUT: 3 bad rows, and bad_rows allows 2; the last one: line 5, column 3: byte 0xFF is not UTF-8 (byte "
        "offset 18); set csv.encoding if the file has another encoding\n");
    t.shape_of = "a,b\n";
    expect_of(
        text, &t,
        "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n#1 @3+6: [2] [2]\n"
        "rows INPUT: 3 bad rows, and bad_rows allows 2; the last one: line 5, column 3: byte 0xFF is not UTF-8 (byte "
        "offset 18); set csv.encoding if the file has another encoding\n"
        "! 2+4 line 2: 1 field, expected 2 (byte offset 4): [1]\n"
        "! 4+10 line 4: 3 fields, expected 2 (byte offset 10): [3] [3] [3]\n");
    expect_of("a,\xFF\n1,2\n", &t,
              "comma, utf-8 | a=none b=none\nrows INPUT: line 1, column 3: byte 0xFF is not UTF-8 (byte offset 2); set "
              "csv.encoding if the file has another encoding\n"); /* a bad header is no row that can be skipped */
}

static void a_driver_s_verdict_counts_with_the_others(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    struct buf sink;
    struct pass p;
    struct err err;
    const struct row_batch *b;
    static const char text[] = "a,b\n1\n2,x\n3,\n";
    int fd = test_file(text, strlen(text));
    t.skip = 2;
    buf_init(&sink);
    open_pass(&p, fd, &t, &sink);
    for (int again = 0; again < 2; again++) {
        assert_int_equal(rows_next(p.rows, &b, &err), ERR_NONE);
        assert_int_equal(b->rows, 2);
        assert_int_equal(rows_reject(p.rows, 0, 1, "not a number", &err), ERR_NONE);
        if (again == 0) {
            assert_int_equal(rows_next(p.rows, &b, &err), ERR_NONE);
            assert_int_equal(b->rows, 0);
            assert_int_equal(p.rows->result.records, 3);
            assert_int_equal(p.rows->result.rejected, 2);
            assert_int_equal(rows_rewind(p.rows, &err), ERR_NONE);
        } else {
            assert_int_equal(rows_reject(p.rows, 1, -1, "NULL in the key", &err), ERR_INPUT);
            assert_string_equal(err.text, "3 bad rows, and bad_rows allows 2; the last one: line 4: NULL in the key "
                                          "(byte offset 10)");
            assert_int_equal(rows_next(p.rows, &b, &err), ERR_INPUT); /* and stays so */
        }
    }
    assert_string_equal(sink.data, "! 2+4 line 2: 1 field, expected 2 (byte offset 4): [1]\n"
                                   "! 3+6 line 3, column b: not a number (byte offset 6): [2] [x]\n"
                                   "restart\n"
                                   "! 2+4 line 2: 1 field, expected 2 (byte offset 4): [1]\n"
                                   "! 3+6 line 3, column b: not a number (byte offset 6): [2] [x]\n");
    close_pass(&p);
    t.skip = 0;
    t.csv.short_rows = SHORT_PAD;
    open_pass(&p, fd, &t, &sink);
    assert_int_equal(rows_next(p.rows, &b, &err), ERR_NONE);
    assert_int_equal(rows_reject(p.rows, 1, 1, "not a number", &err), ERR_INPUT);
    assert_string_equal(err.text, "line 3, column b: not a number (byte offset 6)");
    close_pass(&p);
    close(fd);
    buf_done(&sink);
}

static bool refuse(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                   const uint32_t *length, size_t fields)
{
    (void)arg, (void)line, (void)offset, (void)reason, (void)value, (void)length, (void)fields;
    return false;
}

static void a_reject_that_cannot_be_kept_fails_the_file(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    struct pass p;
    struct err err;
    const struct row_batch *b;
    int fd = test_file("a,b\n1\n", 6);
    t.skip = 5;
    open_pass(&p, fd, &t, NULL);
    p.options.sink.put = refuse;
    assert_int_equal(rows_next(p.rows, &b, &err), ERR_SYSTEM);
    assert_true(err.retryable);
    close_pass(&p);
    close(fd);
}

/* ---- files that change under us */

static void a_file_that_shrinks_or_changes_its_header_ends_in_an_answer(void **state)
{
    (void)state;
    struct buf text;
    struct pass p;
    struct err err;
    const struct row_batch *b;
    int fd = large_file(60000, &text);
    open_pass(&p, fd, &usual, NULL);
    assert_int_equal(rows_next(p.rows, &b, &err), ERR_NONE);
    assert_int_equal(ftruncate(fd, 20), 0);
    while (rows_next(p.rows, &b, &err) == ERR_NONE && b->rows > 0)
        ;
    assert_int_equal(rows_rewind(p.rows, &err), ERR_NONE);
    assert_int_equal(rows_next(p.rows, &b, &err), ERR_INPUT); /* "0,name " */
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(pwrite(fd, "id\n1\n", 5, 0), 5);
    assert_int_equal(rows_rewind(p.rows, &err), ERR_NONE);
    assert_int_equal(rows_next(p.rows, &b, &err), ERR_CHANGED);
    close_pass(&p);
    close(fd);
    buf_done(&text);
}

static void a_descriptor_that_cannot_be_read_is_a_system_error(void **state)
{
    (void)state;
    struct arena arena;
    struct shape *shape;
    struct err err;
    struct inspect_options options = test_options(&usual, NULL);
    uint8_t hash[16];
    uint64_t size;
    arena_init(&arena);
    assert_int_equal(inspect_head(-1, &options, &arena, &shape, &err), ERR_SYSTEM);
    assert_int_equal(inspect_hash(-1, NULL, hash, &size, &err), ERR_SYSTEM);
    arena_done(&arena);
}

/* ---- memory */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const char text[] = "a,b,a,\n1,\"x\ny\",NA,\n1,2,3,4,5,6\nx\n7,8,9,\"abc\"\n";
    for (int variant = 0; variant < 4; variant++) {
        struct test_case t = TEST_USUAL;
        t.skip = 4;
        t.csv.null_values.count = 3;
        t.csv.encoding = variant == 2 ? ENC_ISO_8859_2 : ENC_UTF8;
        inspect_knobs = (struct inspect_knobs){
            .block = variant == 1 ? 5 : 0, .batch_bytes = variant % 2 != 0 ? 8 : 0, .threads = variant == 3};
        int fd = test_file(text, strlen(text));
        struct inspect_options options = test_options(&t, NULL);
        options.sink = (struct reject_sink){0};
        ALLOC_FAULT_SWEEP
        {
            struct arena arena;
            struct shape *shape;
            struct rows *rows = NULL;
            struct err err = {.code = ERR_NONE};
            const struct row_batch *b;
            arena_init(&arena);
            enum err_code code = inspect_head(fd, &options, &arena, &shape, &err);
            if (code == ERR_NONE)
                code = inspect_rows(fd, &options, shape, &rows, &err);
            while (code == ERR_NONE) {
                code = rows_next(rows, &b, &err);
                if (code == ERR_NONE && b->rows == 0)
                    break;
            }
            if (alloc_fault_hit() && code != ERR_NONE) {
                assert_int_equal(code, ERR_SYSTEM);
                assert_true(err.retryable);
            } else {
                assert_int_equal(code, ERR_NONE);
                assert_int_equal(rows->result.records, 4);
                assert_int_equal(rows->result.rejected, 2);
            }
            rows_free(rows);
            arena_done(&arena);
        }
        close(fd);
    }
    inspect_knobs = (struct inspect_knobs){.threads = -1};
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED 0
#endif

/* Run BODY in a child of its own, so that its peak memory is its own; KiB. */
static long peak_of(void (*body)(int fd), int fd)
{
    struct rusage used;
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        body(fd);
        _exit(0);
    }
    assert_int_equal(wait4(child, &status, 0, &used), child);
    assert_int_equal(status, 0);
    return used.ru_maxrss;
}

static void expect_too_long(int fd)
{
    struct test_case t = TEST_USUAL;
    t.shape_of = "a\n1\n"; /* the head would refuse it already */
    char *out = test_inspect_fd(fd, &t);
    if (strcmp(out,
               "comma, utf-8 | a=int,dec,dbl\nrows INPUT: line 2: the row that starts here (byte offset 2) is longer "
               "than csv.max_row (16.0 MiB); is a quote not closed?\n") != 0) {
        fprintf(stderr, "%s", out);
        _exit(1);
    }
    free(out);
}

static void a_row_of_1_gib_is_an_error_and_not_an_allocation(void **state)
{
    (void)state;
    FILE *file = tmpfile();
    assert_non_null(file);
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    assert_int_equal(fwrite("a\n\"", 1, 3, file), 3);
    for (int i = 0; i < 24; i++) /* as much as can be read, and holes up to 1 GiB that never are */
        assert_int_equal(fwrite(block, 1, sizeof block, file), sizeof block);
    fflush(file);
    assert_int_equal(ftruncate(fileno(file), (off_t)1 << 30), 0);
    long peak = peak_of(expect_too_long, fileno(file));
    if (!IS_SANITIZED)
        assert_in_range(peak, 1, 32 * 1024);
    fclose(file);
}

static void pull_long_rows(int fd)
{
    struct test_case t = TEST_USUAL;
    t.quiet = true;
    t.shape_of = "a\nx\n";
    char *out = test_inspect_fd(fd, &t);
    if (strstr(out, "= 5 0 ") == NULL)
        _exit(1);
    free(out);
}

static void rows_near_the_limit_take_little_more_than_one_of_them(void **state)
{
    (void)state;
    FILE *file = tmpfile();
    assert_non_null(file);
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    assert_int_equal(fwrite("a\n", 1, 2, file), 2);
    for (int i = 0; i < 5 * 15; i++) {
        assert_int_equal(fwrite(block, 1, sizeof block, file), sizeof block);
        if (i % 15 == 14)
            assert_int_equal(fwrite("\n", 1, 1, file), 1);
    }
    fflush(file);
    long peak = peak_of(pull_long_rows, fileno(file));
    if (!IS_SANITIZED)
        assert_in_range(peak, 1, 32 * 1024);
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thread_ahead_gives_what_one_thread_gives),
        cmocka_unit_test(the_hash_is_that_of_the_bytes),
        cmocka_unit_test(a_pass_may_be_left_or_begun_again_at_any_batch),
        cmocka_unit_test(a_small_file_holds_no_buffers_before_its_first_pull_and_after_its_last),
        cmocka_unit_test(rows_of_any_length_up_to_the_limit_pass_through),
        cmocka_unit_test(so_many_bad_rows_are_skipped_and_one_more_is_too_many),
        cmocka_unit_test(a_driver_s_verdict_counts_with_the_others),
        cmocka_unit_test(a_reject_that_cannot_be_kept_fails_the_file),
        cmocka_unit_test(a_file_that_shrinks_or_changes_its_header_ends_in_an_answer),
        cmocka_unit_test(a_descriptor_that_cannot_be_read_is_a_system_error),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_row_of_1_gib_is_an_error_and_not_an_allocation),
        cmocka_unit_test(rows_near_the_limit_take_little_more_than_one_of_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
