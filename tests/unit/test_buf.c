/* What everything is built from: errors, arenas, growing strings, clocks. */
#include "arena.h"
#include "buf.h"
#include "clock.h"
#include "err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "alloc_fault.h"

static void an_error_is_one_line_and_keeps_its_code_when_wrapped(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(err_set(&err, ERR_INPUT, true, "row %d:\nbad", 3), ERR_INPUT);
    assert_string_equal(err.text, "row 3: bad");
    assert_int_equal(err_wrap(&err, "load %s", "orders.csv"), ERR_INPUT);
    assert_string_equal(err.text, "load orders.csv: row 3: bad");
    assert_true(err.retryable);
    err_set(&err, ERR_REMOTE, false, "again: %s", err.text);
    assert_string_equal(err.text, "again: load orders.csv: row 3: bad");
    assert_int_equal(err_set(NULL, ERR_DENIED, false, "x"), ERR_DENIED);
    assert_int_equal(err_nomem(&err), ERR_SYSTEM);
    err_clear(&err);
    assert_int_equal(err.code, ERR_NONE);
    err_clear(NULL);
}

static void an_error_is_never_cut_inside_a_character(void **state)
{
    (void)state;
    struct err err;
    char words[600];
    for (size_t before = 500; before < 512; before++) {
        memset(words, 'a', before);
        strcpy(words + before, "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac");
        err_set(&err, ERR_INPUT, false, "%s", words);
        size_t n = strlen(err.text);
        assert_true(n <= 511 && n >= 509);
        assert_int_equal((n - (before < n ? before : n)) % 3, 0);
        err_set(&err, ERR_INPUT, false, "%s", words + 20);
        err_wrap(&err, "%020d", 7);
        assert_true(strlen(err.text) <= 511);
    }
}

static void an_arena_gives_zeroed_aligned_memory_and_counts_it(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a);
    for (size_t size = 0; size < 9000; size += 37) {
        unsigned char *p = arena_alloc(&a, size);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % _Alignof(max_align_t), 0);
        for (size_t i = 0; i < size; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xAA, size);
    }
    assert_string_equal(arena_strdup(&a, "hello"), "hello");
    assert_string_equal(arena_strndup(&a, "hello", 2), "he");
    assert_string_equal(arena_strndup(&a, "he", 20), "he");
    assert_string_equal(arena_printf(&a, "%s-%d", "a", 5), "a-5");
    assert_true(a.used > 9000);
    assert_null(arena_alloc(&a, SIZE_MAX));
    arena_done(&a);
    assert_int_equal(a.used, 0);
}

static void a_buffer_without_memory_says_so_and_stays_whole(void **state)
{
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        struct buf b;
        struct arena a;
        buf_init(&b);
        arena_init(&a);
        for (int i = 0; i < 50; i++)
            buf_printf(&b, "%d and some more words, ", i);
        buf_add_json(&b, "x\"y");
        char *word = arena_printf(&a, "%d", 5);
        bool has_failed = b.failed;
        assert_int_equal(strlen(b.data), b.size);
        char *text = buf_take(&b);
        assert_int_equal(has_failed, text == NULL);
        assert_int_equal(alloc_fault_hit(), text == NULL || word == NULL);
        assert_string_equal(b.data, "");
        free(text);
        arena_done(&a);
    }
}

static void a_buffer_is_a_string_at_any_time(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    assert_string_equal(b.data, "");
    buf_clear(&b);
    buf_add(&b, "", 0);
    buf_addc(&b, 'a');
    buf_adds(&b, "bc");
    buf_printf(&b, "%03d", 7);
    assert_string_equal(b.data, "abc007");
    buf_clear(&b);
    assert_string_equal(b.data, "");
    buf_add_json(&b, "a\"\\\n\t\r\x01\x7f\xc3\xb1\xff/");
    assert_string_equal(b.data, "\"a\\\"\\\\\\n\\t\\r\\u0001\\u007f\xc3\xb1\xef\xbf\xbd/\"");
    buf_done(&b);
    char *empty = buf_take(&b);
    assert_string_equal(empty, "");
    free(empty);
}

static void times_are_read_as_they_are_written(void **state)
{
    (void)state;
    char text[32];
    clock_format(1763636971123, text, sizeof text);
    assert_string_equal(text, "2025-11-20T11:09:31.123Z");
    assert_int_equal(clock_parse(text), 1763636971123);
    assert_int_equal(clock_parse("2025-11-20T13:09:31+02:00"), 1763636971000);
    assert_int_equal(clock_parse("2025-11-20 11:09:31.5Z"), 1763636971500);
    assert_int_equal(clock_parse("1970-01-02"), 86400000);
    assert_int_equal(clock_parse("2024-02-29"), 1709164800000);
    static const char *const bad[] = {"2025-02-29",
                                      "2025-13-01",
                                      "2025-00-10",
                                      "2025-11-20T25:00:00Z",
                                      "2025-11-20T11:09:31",
                                      "2025-11-20T11:09:31Zx",
                                      "1969-12-31",
                                      "yesterday",
                                      "",
                                      "2025"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(clock_parse(bad[i]), -1);
    int64_t ago = clock_wall_ms() - clock_parse("2h");
    assert_true(ago >= 7200000 && ago < 7201000);
    clock_format(-1, text, sizeof text);
    assert_string_equal(text, "1969-12-31T23:59:59.999Z");
    assert_true(clock_mono_ms() > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_is_one_line_and_keeps_its_code_when_wrapped),
        cmocka_unit_test(an_error_is_never_cut_inside_a_character),
        cmocka_unit_test(an_arena_gives_zeroed_aligned_memory_and_counts_it),
        cmocka_unit_test(a_buffer_without_memory_says_so_and_stays_whole),
        cmocka_unit_test(a_buffer_is_a_string_at_any_time),
        cmocka_unit_test(times_are_read_as_they_are_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
