/* What is compressed inflates to what it was, in buffers of every size, and stays below its bound. */
#include "gzip_out.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <cmocka.h>

struct text {
    uint64_t seed, at;
    bool is_noise;
};

static void text_next(struct text *t, uint8_t *ret, size_t size)
{
    static const char words[] = "2026-03-01,Praha,12.50,\"quoted, text\",true\n";
    for (size_t i = 0; i < size; i++, t->at++) {
        t->seed = t->seed * 6364136223846793005u + 1442695040888963407u;
        ret[i] = t->is_noise ? (uint8_t)(t->seed >> 40) : (uint8_t)words[(t->seed >> 60) == 0 ? 7 : t->at % 43];
    }
}

/* Inflates what comes, and compares with the same text made again. */
struct checker {
    z_stream z;
    struct text text;
    uint64_t got;
    bool is_over;
};

static void check(struct checker *c, uint8_t *data, size_t size)
{
    static uint8_t out[65536], want[65536];
    c->z.next_in = data;
    c->z.avail_in = (uInt)size;
    while (c->z.avail_in > 0 || size == 0) {
        assert_false(c->is_over);
        c->z.next_out = out;
        c->z.avail_out = sizeof out;
        int status = inflate(&c->z, Z_NO_FLUSH);
        assert_true(status == Z_OK || status == Z_STREAM_END);
        size_t n = sizeof out - c->z.avail_out;
        text_next(&c->text, want, n);
        assert_memory_equal(out, want, n);
        c->got += n;
        c->is_over = status == Z_STREAM_END;
    }
}

/* SIZE bytes in portions of IN_STEP into buffers of OUT_STEP; the size of the file. */
static uint64_t round_trip(uint64_t size, size_t in_step, size_t out_step, bool is_noise)
{
    struct gzip_out *g;
    struct err err;
    struct text text = {size + 1, 0, is_noise};
    struct checker c = {.text = text};
    uint8_t *in = malloc(in_step), *out = malloc(out_step);
    uint64_t made = 0, used = 0;
    bool is_last = false, has_ended = false;
    struct gzip_io io = {NULL, 0, out, out_step};
    assert_int_equal(inflateInit2(&c.z, 15 + 16), Z_OK);
    assert_int_equal(gzip_out_new(&g, &err), ERR_NONE);
    while (!has_ended) {
        if (io.in_size == 0 && !is_last) {
            size_t n = size - used < in_step ? (size_t)(size - used) : in_step;
            text_next(&text, in, n);
            io.in = in;
            io.in_size = n;
            used += n;
            is_last = used == size;
        }
        has_ended = gzip_out_run(g, &io, is_last);
        size_t n = out_step - io.out_size;
        assert_true(has_ended || io.out_size == 0 || io.in_size == 0);
        if (n > 0 && (has_ended || io.out_size == 0)) {
            check(&c, out, n);
            made += n;
            io.out = out;
            io.out_size = out_step;
        }
    }
    assert_true(c.is_over);
    assert_int_equal(c.got, size);
    assert_true(made <= gzip_out_bound(size));
    gzip_out_free(g);
    inflateEnd(&c.z);
    free(in);
    free(out);
    return made;
}

static void every_size_comes_back(void **state)
{
    const uint64_t sizes[] = {0, 1, 2, 17, 1000, 32767, 32768, 32769, 65535, 65536, 65537, 131072, 300001};
    const size_t steps[] = {1, 7, 1000, 65536, 262144};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (size_t a = 0; a < 5; a++)
            for (size_t b = 0; b < 5; b++)
                for (int is_noise = 0; is_noise < 2; is_noise++)
                    if (sizes[i] / steps[a] < 40000 && sizes[i] / steps[b] < 40000)
                        round_trip(sizes[i], steps[a], steps[b], is_noise);
}

/* A buffer that ends exactly where the file does must be known as its end at once. */
static void the_end_is_known_with_the_last_byte(void **state)
{
    (void)state;
    for (uint64_t size = 0; size < 3000; size += 131)
        for (int is_noise = 0; is_noise < 2; is_noise++) {
            size_t whole = (size_t)round_trip(size, 100000, 100000, is_noise);
            for (size_t out = whole - 20; out <= whole + 1; out++) {
                struct gzip_out *g;
                struct err err;
                uint8_t *in = malloc(size + 1), *file = malloc(whole + 1);
                struct text text = {size + 1, 0, is_noise};
                text_next(&text, in, (size_t)size);
                struct gzip_io io = {in, (size_t)size, file, out};
                assert_int_equal(gzip_out_new(&g, &err), ERR_NONE);
                bool has_ended = gzip_out_run(g, &io, true);
                assert_int_equal(has_ended, out >= whole);
                assert_int_equal(io.out_size, has_ended ? out - whole : 0);
                gzip_out_free(g);
                free(in);
                free(file);
            }
        }
}

static void fifty_megabytes_come_back_and_are_smaller(void **state)
{
    (void)state;
    assert_true(round_trip(50000000, 131072, 5 * 1024 * 1024, false) < 50000000 / 4);
    round_trip(20000000, 131072, 262144, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size_comes_back),
        cmocka_unit_test(the_end_is_known_with_the_last_byte),
        cmocka_unit_test(fifty_megabytes_come_back_and_are_smaller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
