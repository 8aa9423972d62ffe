/* test_inspect_bytes.c -- compressed and re-encoded files, and block sizes that cut everything everywhere. */
#include <stddef.h>

#include "inspect_test.h"

#include <zlib.h>
#if HAVE_ZSTD
#include <zstd.h>
#endif

static const struct test_case usual = TEST_USUAL;

static void usual_sizes(void)
{
    inspect_knobs = (struct inspect_knobs){.threads = -1};
}

static size_t gzip(const char *text, size_t n, unsigned char *out, size_t size)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)(uintptr_t)text;
    z.avail_in = (uInt)n;
    z.next_out = out;
    z.avail_out = (uInt)size;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t made = size - z.avail_out;
    deflateEnd(&z);
    return made;
}

static const char simple[] = "a,b\n1,\"x\ny\"\n2,z\n";
#define SIMPLE_ROWS "#0 @2+4: [1] [x\\x0Ay]\n#1 @4+12: [2] [z]\n"

static void gzip_is_read_by_content(void **state)
{
    (void)state;
    unsigned char file[256];
    size_t n = gzip(simple, strlen(simple), file, sizeof file);
    char expected[256];
    snprintf(expected, sizeof expected, "comma, utf-8, gzip | a=int,dec,dbl b=text\n" SIMPLE_ROWS "= 2 0 %zu\n", n);
    expect_of_n(file, n, &usual, expected);
}

static void gzip_members_are_one_text(void **state)
{
    (void)state;
    unsigned char file[512];
    size_t n = gzip(simple, 6, file, sizeof file);
    n += gzip("", 0, file + n, sizeof file - n);
    n += gzip(simple + 6, strlen(simple) - 6, file + n, sizeof file - n);
    memset(file + n, 0, 64); /* padding, as tapes and block devices leave it */
    n += 64;
    char expected[256];
    snprintf(expected, sizeof expected, "comma, utf-8, gzip | a=int,dec,dbl b=text\n" SIMPLE_ROWS "= 2 0 %zu\n", n);
    for (size_t block = 0; block < 40; block++) {
        inspect_knobs.block = block;
        expect_of_n(file, n, &usual, expected);
    }
    usual_sizes();
}

static void a_gzip_cut_anywhere_is_incomplete(void **state)
{
    (void)state;
    unsigned char file[512];
    size_t first = gzip(simple, 6, file, sizeof file);
    size_t n = first + gzip(simple + 6, strlen(simple) - 6, file + first, sizeof file - first);
    for (size_t cut = 1; cut < n; cut++) {
        if (cut == first)
            continue; /* a whole member is a whole file */
        char *out = test_inspect_n(file, cut, &usual);
        if (strncmp(out, "head INCOMPLETE: ", 17) != 0)
            assert_string_equal(out, "head INCOMPLETE");
        free(out);
    }
}

static void damage_in_a_gzip_is_found(void **state)
{
    (void)state;
    unsigned char file[256], copy[260];
    size_t n = gzip(simple, strlen(simple), file, sizeof file);
    memcpy(copy, file, n);
    copy[n - 8] ^= 1; /* the checksum */
    char *out = test_inspect_n(copy, n, &usual);
    assert_non_null(strstr(out, "head INPUT: "));
    assert_non_null(strstr(out, "damaged gzip data"));
    free(out);
    memcpy(copy, file, n);
    copy[n] = 'x';
    out = test_inspect_n(copy, n + 1, &usual);
    assert_non_null(strstr(out, "damaged gzip data: other bytes follow its end"));
    free(out);
    for (size_t i = 3; i < n; i++) { /* whatever is wrong: an answer, and never rows that differ */
        memcpy(copy, file, n);
        copy[i] ^= 0x55;
        out = test_inspect_n(copy, n, &usual);
        assert_true(strncmp(out, "head I", 6) == 0 || strstr(out, SIMPLE_ROWS) != NULL);
        free(out);
    }
}

#if HAVE_ZSTD
static void zstd_frames_are_read_and_a_cut_one_is_incomplete(void **state)
{
    (void)state;
    char file[512];
    size_t first = ZSTD_compress(file, sizeof file, simple, 6, 3);
    size_t n = first + ZSTD_compress(file + first, sizeof file - first, simple + 6, strlen(simple) - 6, 3);
    char expected[256];
    snprintf(expected, sizeof expected, "comma, utf-8, zstd | a=int,dec,dbl b=text\n" SIMPLE_ROWS "= 2 0 %zu\n", n);
    for (size_t block = 0; block < 40; block++) {
        inspect_knobs.block = block;
        expect_of_n(file, n, &usual, expected);
    }
    usual_sizes();
    for (size_t cut = 2; cut < n; cut++) { /* one byte is the text "(" */
        if (cut == first)
            continue;
        char *out = test_inspect_n(file, cut, &usual);
        if (strncmp(out, "head INCOMPLETE: ", 17) != 0)
            assert_string_equal(out, "head INCOMPLETE");
        free(out);
    }
    file[n] = 'x';
    char *out = test_inspect_n(file, n + 1, &usual);
    assert_true(strncmp(out, "head I", 6) == 0);
    free(out);
}

static void a_zstd_window_that_takes_too_much_memory_is_refused(void **state)
{
    (void)state;
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, 27);
    size_t n = (size_t)10 << 20;
    char *text = malloc(n), *file = malloc(n);
    for (size_t i = 0; i < n; i++)
        text[i] = i % 80 == 79 ? '\n' : 'a';
    ZSTD_inBuffer in = {text, n, 0};
    ZSTD_outBuffer out = {file, n, 0};
    while (ZSTD_compressStream2(c, &out, &in, ZSTD_e_end) != 0)
        ;
    expect_of_n(
        file, out.pos, &usual,
        "head INPUT: line 1, column 1: the zstd data needs a window of more than 8 MiB; compress it without --long "
        "and --ultra\n");
    ZSTD_freeCCtx(c);
    free(text);
    free(file);
}
#endif

static void other_encodings_are_re_encoded_and_offsets_are_the_file_s(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    t.csv.encoding = ENC_WINDOWS_1250;
    for (size_t block = 0; block < 12; block++) {
        inspect_knobs.block = block;
        t.csv.encoding = ENC_WINDOWS_1250;
        expect_of("a,b\n\xF8\xED,\x80\nx,y\n", &t,
                  "comma, windows-1250 | a=text b=text\n#0 @2+4: [ří] [€]\n#1 @3+9: [x] [y]\n= 2 0 13\n");
        t.csv.encoding = ENC_WINDOWS_1252;
        expect_of("a\n\xE9\n", &t, "comma, windows-1252 | a=text\n#0 @2+2: [é]\n= 1 0 4\n");
        t.csv.encoding = ENC_ISO_8859_1;
        expect_of("a\n\xE9\n", &t, "comma, iso-8859-1 | a=text\n#0 @2+2: [é]\n= 1 0 4\n");
        t.csv.encoding = ENC_ISO_8859_2;
        expect_of("a\n\xB9\n", &t, "comma, iso-8859-2 | a=text\n#0 @2+2: [š]\n= 1 0 4\n");
    }
    usual_sizes();
    t.csv.encoding = ENC_WINDOWS_1252;
    expect_of("a\nxy\x81\n", &t,
              "head INPUT: line 2, column 3: byte offset 4: byte 0x81 is no character in WINDOWS-1252; correct "
              "csv.encoding\n");
}

static void utf16_is_told_by_its_byte_order_mark(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    t.csv.encoding = ENC_UTF16;
    static const char little[] = "\xFF\xFE"
                                 "a\0\n\0\x3D\xD8\x00\xDE\n\0"
                                 "b\0";
    static const char big[] = "\xFE\xFF\0a\0\n\0b";
    for (size_t block = 0; block < 12; block++) {
        inspect_knobs.block = block;
        expect_of_n(little, sizeof little - 1, &t,
                    "comma, utf-16, bom | a=text\n#0 @2+6: [😀]\n#1 @3+12: [b]\n= 2 0 14\n");
        expect_of_n(big, sizeof big - 1, &t, "comma, utf-16, bom | a=text\n#0 @2+6: [b]\n= 1 0 8\n");
    }
    usual_sizes();
    expect_of("a\nb\n", &t,
              "head INPUT: line 1, column 1: byte offset 0: no UTF-16 byte order mark, and csv.encoding is utf-16\n");
    expect_of_n(little, sizeof little - 2, &t,
                "head INCOMPLETE: line 3, column 1: byte offset 12: the text ends in the middle of a character\n");
    expect_of_n(
        little, sizeof little - 1, &usual,
        "head INPUT: line 1, column 1: byte offset 0: a UTF-16 byte order mark, expected UTF-8; write the file as "
        "UTF-8, or, if it is CSV, set csv.encoding: utf-16 for this flow\n");
}

/* ---- every boundary */

static const char *const tricky[] = {
    "a,b\n1,2\n3,4\n",
    ("\xEF\xBB\xBF" /* in two strings, or the escape would swallow the letter */
     "a,b\r\n\"x\r\ny\",  č\r\n\r\n3,\"\"\r\n"),
    "a,b\n\"say \"\"hi\"\", you\",5\" pipe\nx , y\n \" z\", \"\"\n\"\",\n",
    "a\r1\r2\r\r3",
    "naïve,日本\n😀,\"\xF0\x9F\x98\x80\n\"\nNA,\"NA\"\n\"x\",x\n",
    "a,b\n1,2\n\"x\" y,2\n",
    "a,b\n1,2,3\n4,5\n6\n\"q\"z\n7,\xFF\n8,9\n",
    "a,b\n1,\"open\nstill\n",
    "a,b\n1,bad \xC3\n",
    "a,b\n1,cut \xE2\x82",
    "a,b\n  \n,\n\n\t,\t\n",
    "a|b\n1|2\r\n\r3|4\r\r\n5|6",
    "a,b\nlong enough to pass the limit of this case,\"and\nover\nseveral lines\"\n1,2\n",
};

static void every_block_and_batch_size_gives_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof tricky / sizeof *tricky; i++) {
        for (unsigned variant = 0; variant < 8; variant++) {
            struct test_case t = TEST_USUAL;
            t.skip = (variant & 1) != 0 ? 3 : 0;
            t.csv.null_values.count = (variant & 2) != 0 ? 3 : 1;
            t.csv.max_row = (variant & 4) != 0 ? 40 : 16 << 20;
            t.shape_of = variant % 3 == 0 && strncmp(tricky[i], "a,b\n", 4) == 0 ? "a,b\n" : NULL;
            usual_sizes();
            inspect_knobs.batch_bytes = 8;
            char *expected = test_inspect_n(tricky[i], strlen(tricky[i]), &t);
            for (size_t block = 1; block <= 64; block++) {
                inspect_knobs = (struct inspect_knobs){.block = block, .batch_bytes = 8, .threads = block % 3 == 0};
                expect_of_n(tricky[i], strlen(tricky[i]), &t, expected);
            }
            free(expected);
        }
    }
    usual_sizes();
}

static void the_size_of_a_batch_changes_only_the_batches(void **state)
{
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        char *expected = test_inspect_n(tricky[i], strlen(tricky[i]), &usual);
        for (size_t batch = 1; batch <= 80; batch++) {
            inspect_knobs = (struct inspect_knobs){.block = batch % 7, .batch_bytes = batch, .threads = batch % 2};
            expect_of_n(tricky[i], strlen(tricky[i]), &usual, expected);
        }
        usual_sizes();
        free(expected);
    }
}

/* ---- UTF-8 */

static void what_is_utf8_is_decided_the_same_everywhere_in_a_block(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xC0\xAF",
                                      "\xC3",
                                      "\xE0\x80\x80",
                                      "\xED\xA0\x80",
                                      "\xE2\x82",
                                      "\xF0\x80\x80\x80",
                                      "\xF4\x90\x80\x80",
                                      "\xF5",
                                      "\xFE",
                                      "\xC3\xA9\xA9",
                                      "\xF0\x9F\x98",
                                      "\xE2\x28\xA1"};
    static const char *const good[] = {"\xC3\xA9",         "\xE2\x82\xAC",     "\xED\x9F\xBF", "\xEE\x80\x80",
                                       "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF", "\xC2\x80",     "\xE0\xA0\x80"};
    char text[400];
    for (size_t at = 0; at < 150; at++) {
        for (size_t i = 0; i < sizeof bad / sizeof *bad + sizeof good / sizeof *good; i++) {
            bool is_good = i >= sizeof bad / sizeof *bad;
            const char *what = is_good ? good[i - sizeof bad / sizeof *bad] : bad[i];
            snprintf(
                text, sizeof text, "a\n%.*s%s%s\n", (int)at,
                "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                what, at % 2 != 0 ? "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy" : "");
            char *out = test_inspect_n(text, strlen(text), &usual);
            assert_int_equal(strncmp(out, "head INPUT: line 2, column ", 27) != 0, is_good);
            size_t wrong = at + text_utf8_valid(what, strlen(what));
            char offset[40];
            snprintf(offset, sizeof offset, "(byte offset %zu)", 2 + wrong);
            if (!is_good)
                assert_non_null(strstr(out, offset));
            free(out);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gzip_is_read_by_content),
        cmocka_unit_test(gzip_members_are_one_text),
        cmocka_unit_test(a_gzip_cut_anywhere_is_incomplete),
        cmocka_unit_test(damage_in_a_gzip_is_found),
#if HAVE_ZSTD
        cmocka_unit_test(zstd_frames_are_read_and_a_cut_one_is_incomplete),
        cmocka_unit_test(a_zstd_window_that_takes_too_much_memory_is_refused),
#endif
        cmocka_unit_test(other_encodings_are_re_encoded_and_offsets_are_the_file_s),
        cmocka_unit_test(utf16_is_told_by_its_byte_order_mark),
        cmocka_unit_test(every_block_and_batch_size_gives_the_same),
        cmocka_unit_test(the_size_of_a_batch_changes_only_the_batches),
        cmocka_unit_test(what_is_utf8_is_decided_the_same_everywhere_in_a_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
