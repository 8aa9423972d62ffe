/* test_inspect.c -- dialect, header, records and types: every rule with what it must give, literally. */
#include <stddef.h>

#include "inspect_test.h"

#include <fcntl.h>

static const struct test_case usual = TEST_USUAL;

/* ---- dialect */

static void the_dialect_whose_records_agree_most_wins(void **state)
{
    (void)state;
    expect_of("a;b,c\n1;2\n3;4\n", &usual,
              "semicolon, utf-8 | a=int,dec,dbl b,c=int,dec,dbl\n#0 @2+6: [1] [2]\n#1 @3+10: [3] [4]\n= 2 0 14\n");
    expect_of("a\tb\n1\t2,5\n", &usual, "tab, utf-8 | a=int,dec,dbl b=text\n#0 @2+4: [1] [2,5]\n= 1 0 10\n");
    expect_of("a|b\n\"1|,;\"|2\n", &usual, "pipe, utf-8 | a=text b=int,dec,dbl\n#0 @2+4: [1|,;] [2]\n= 1 0 13\n");
}

static void a_tie_is_decided_by_comma_semicolon_tab_pipe(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    t.no_rows = true;
    expect_of("a|b\tc;d,e\n", &t, "comma, utf-8 | a|b\tc;d=none e=none\n");
    expect_of("a|b\tc;d\n", &t, "semicolon, utf-8 | a|b\tc=none d=none\n");
    expect_of("a|b\tc\n", &t, "tab, utf-8 | a|b=none c=none\n");
    expect_of("a,b;c\n1,2;3\n", &t, "comma, utf-8 | a=int,dec,dbl b;c=text\n");
}

static void a_header_that_nothing_splits_is_one_column_by_comma(void **state)
{
    (void)state;
    expect_of("a\n1\n", &usual, "comma, utf-8 | a=int,dec,dbl\n#0 @2+2: [1]\n= 1 0 4\n");
    expect_of("\"a;b\"\n1\n", &usual, "comma, utf-8 | a;b=int,dec,dbl\n#0 @2+6: [1]\n= 1 0 8\n");
}

static void records_that_split_do_not_make_up_for_a_header_that_does_not(void **state)
{
    (void)state;
    expect_of("a\n1;2\n3;4\n", &usual, "comma, utf-8 | a=text\n#0 @2+2: [1;2]\n#1 @3+6: [3;4]\n= 2 0 10\n");
}

static void the_columns_of_a_table_decide_the_dialect(void **state)
{
    (void)state;
    static const char *const columns[] = {"c", "A,B"};
    struct test_case t = TEST_USUAL;
    t.no_rows = true;
    expect_of("a,b;c\n1,2;3\n", &t, "comma, utf-8 | a=int,dec,dbl b;c=text\n");
    t.expect = columns;
    t.expect_count = 2;
    expect_of("a,b;c\n1,2;3\n", &t, "semicolon, utf-8 | a,b=text c=int,dec,dbl\n");
    expect_of("x,y\n1,2\n", &t, "comma, utf-8 | x=int,dec,dbl y=int,dec,dbl\n"); /* changed: others will say so */
}

static void a_given_delimiter_and_quote_are_not_questioned(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    t.csv.delimiter = ';';
    t.csv.quote = '\'';
    expect_of("a,b;c\n'x;''y'; \"z\n", &t, "semicolon, utf-8 | a,b=text c=text\n#0 @2+6: [x;'y] [ \"z]\n= 1 0 18\n");
}

/* ---- header */

static void blank_and_repeated_names_become_unique(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    t.no_rows = true;
    expect_of("a,,a, ,a\n", &t, "comma, utf-8 | a=none column_1=none a.1=none column_3=none a.2=none\n");
    expect_of("a,a,a.1\n", &t, "comma, utf-8 | a=none a.2=none a.1=none\n");
    expect_of("column_1,,column_1.1\n", &t, "comma, utf-8 | column_1=none column_1.2=none column_1.1=none\n");
    expect_of("a.1,a,a,a\n", &t, "comma, utf-8 | a.1=none a=none a.2=none a.3=none\n");
    expect_of("a,A\n", &t, "comma, utf-8 | a=none A=none\n");
}

static void a_byte_order_mark_is_not_part_of_the_first_name(void **state)
{
    (void)state;
    expect_of("\xEF\xBB\xBFid,b\n1,2\n", &usual,
              "comma, utf-8, bom | id=int,dec,dbl b=int,dec,dbl\n#0 @2+8: [1] [2]\n= 1 0 12\n");
    expect_of("\xEF\xBB\xBF\"id\"\n1\n", &usual, "comma, utf-8, bom | id=int,dec,dbl\n#0 @2+8: [1]\n= 1 0 10\n");
}

static void an_empty_file_has_no_columns(void **state)
{
    (void)state;
    expect_of("", &usual, "comma, utf-8 |\n= 0 0 0\n");
    expect_of("\xEF\xBB\xBF", &usual, "comma, utf-8, bom |\n= 0 0 3\n");
    expect_of("\n\r\n\n", &usual, "comma, utf-8 |\n= 0 0 4\n");
}

static void a_header_alone_is_a_table_without_rows(void **state)
{
    (void)state;
    expect_of("id,name", &usual, "comma, utf-8 | id=none name=none\n= 0 0 7\n");
    expect_of("\n\nid,name\n\n", &usual, "comma, utf-8 | id=none name=none\n= 0 0 11\n");
}

static void too_many_columns_are_refused(void **state)
{
    (void)state;
    size_t n = 40000;
    char *text = malloc(n);
    memset(text, ',', n);
    expect_of_n(text, n, &usual, "head INPUT: line 1: 40001 columns, expected at most 32767\n");
    free(text);
}

/* ---- records */

static void spaces_are_data(void **state)
{
    (void)state;
    expect_of("a,b\n  x ,\ty\t\n , \n", &usual,
              "comma, utf-8 | a=text b=text\n#0 @2+4: [  x ] [\\x09y\\x09]\n#1 @3+13: [ ] [ ]\n= 2 0 17\n");
    expect_of("a,b\n \"x\",\"y z\"\n", &usual, "comma, utf-8 | a=text b=text\n#0 @2+4: [ \"x\"] [y z]\n= 1 0 15\n");
    expect_of("a\n \n", &usual, "comma, utf-8 | a=text\n#0 @2+2: [ ]\n= 1 0 4\n");
}

static void blank_lines_are_never_rows(void **state)
{
    (void)state;
    expect_of("a,b\n\n1,2\n\r\n\n3,4\n\n", &usual,
              "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n#0 @3+5: [1] [2]\n#1 @6+12: [3] [4]\n= 2 0 17\n");
}

static void a_quoted_empty_field_is_a_row_of_a_one_column_file(void **state)
{
    (void)state;
    expect_of("a\n\"\"\n\n\"\"", &usual, "comma, utf-8 | a=none\n#0 @2+2: []\n#1 @4+6: []\n= 2 0 8\n");
}

static void a_quoted_field_may_hold_anything(void **state)
{
    (void)state;
    expect_of(
        "a,b\n1,\"x\ny\r\n\"\"z\"\", \"\n2,q\n", &usual,
        "comma, utf-8 | a=int,dec,dbl b=text\n#0 @2+4: [1] [x\\x0Ay\\x0D\\x0A\"z\", ]\n#1 @5+21: [2] [q]\n= 2 0 25\n");
}

static void a_quote_inside_an_unquoted_field_is_data(void **state)
{
    (void)state;
    expect_of("a,b\n5\" pipe,x\" y \"\n\"q\",z\n", &usual,
              "comma, utf-8 | a=text b=text\n#0 @2+4: [5\" pipe] [x\" y \"]\n#1 @3+19: [q] [z]\n= 2 0 25\n");
}

static void text_behind_a_closing_quote_is_a_bad_row(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    expect_of("a,b\n1,2\n\"x\"y,2\n", &t,
              "head INPUT: line 3, column 4: field 1 goes on behind its closing quote (byte offset 11)\n");
    expect_of("a,b\n1,\"x\" \n", &t,
              "head INPUT: line 2, column 6: field 2 goes on behind its closing quote (byte offset 9)\n");
    expect_of("a,b\n1,\"x\"  \"y\"\n", &t,
              "head INPUT: line 2, column 6: field 2 goes on behind its closing quote (byte offset 9)\n");
    t.skip = 2;
    expect_of("a,b\n1,2\n\"x\"y,2\n3,\"4\"5,\"6\"\n7,8\n", &t,
              "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n"
              "#0 @2+4: [1] [2]\n#3 @5+26: [7] [8]\n= 4 2 30\n"
              "! 3+8 line 3, column 4: field 1 goes on behind its closing quote (byte offset 11): [x\"y,2]\n"
              "! 4+15 line 4, column 6: field 2 goes on behind its closing quote (byte offset 20): [3] [4\"5,\"6\"]\n");
}

static void line_ends_may_be_lf_crlf_or_cr(void **state)
{
    (void)state;
    expect_of("a,b\r\n1,2\r\n3,4", &usual,
              "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n#0 @2+5: [1] [2]\n#1 @3+10: [3] [4]\n= 2 0 13\n");
    expect_of("a,b\r1,2\r\r\"x\ry\",4\r5,6\r", &usual,
              "comma, utf-8, cr | a=text b=int,dec,dbl\n#0 @2+4: [1] [2]\n#1 @4+9: [x\\x0Dy] [4]\n#2 @6+17: [5] [6]\n"
              "= 3 0 21\n");
    expect_of("a,b\n1,2\r3,4\n", &usual,
              "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n#0 @2+4: [1] [2]\n#1 @3+8: [3] [4]\n= 2 0 12\n");
}

static void too_many_fields_are_a_bad_row_and_too_few_unless_padded(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    expect_of("a,b\n1,2\n3,4,5\n", &t, "head INPUT: line 3: 3 fields, expected 2 (byte offset 8)\n");
    expect_of("a,b\n1\n", &t, "head INPUT: line 2: 1 field, expected 2 (byte offset 4)\n");
    t.shape_of = "a,b\n";
    expect_of("a,b\n1,2\n3,4,5\n", &t,
              "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n#0 @2+4: [1] [2]\nrows INPUT: line 3: 3 fields, expected 2 "
              "(byte offset 8)\n");
    t.shape_of = NULL;
    t.csv.short_rows = SHORT_PAD;
    expect_of("a,b,c\n1\n2,\"\"\n", &t,
              "comma, utf-8 | a=int,dec,dbl b=none c=none\n#0 @2+6: [1] NULL NULL\n#1 @3+8: [2] [] NULL\n= 2 0 13\n");
    expect_of("a,b\n3,4,5\n", &t, "head INPUT: line 2: 3 fields, expected 2 (byte offset 4)\n");
}

static void an_unclosed_quote_is_an_early_end_with_its_line(void **state)
{
    (void)state;
    expect_of("a,b\n1,\"x\ny\n2,3\n", &usual,
              "head INCOMPLETE: line 2: the quote that opens field 2 is never closed; the row starts on line 2 (byte "
              "offset 4)\n");
    expect_of("a,b\n\"1\n\",\"x\ny", &usual,
              "head INCOMPLETE: line 3: the quote that opens field 2 is never closed; the row starts on line 2 (byte "
              "offset 4)\n");
    expect_of("a,\"b\n", &usual,
              "head INCOMPLETE: line 1: the quote that opens field 2 is never closed; the row starts on line 1 (byte "
              "offset 0)\n");
}

static void a_nul_and_bytes_that_are_not_utf8_are_errors_with_their_place(void **state)
{
    (void)state;
    static const char nul[] = "a,b\nx,y\0z\n";
    expect_of_n(nul, sizeof nul - 1, &usual, "head INPUT: line 2, column 4: a NUL byte (byte offset 7)\n");
    expect_of("a,b\n\xC3\xA9,caf\xE9\n", &usual,
              "head INPUT: line 2, column 6: byte 0xE9 is not UTF-8 (byte offset 10); set csv.encoding if the file has "
              "another encoding\n");
    expect_of("\xEF\xBB\xBF\xFF\n", &usual,
              "head INPUT: line 1, column 1: byte 0xFF is not UTF-8 (byte offset 3); set csv.encoding if the file has "
              "another encoding\n");
    expect_of("a\n\"x\ny\xC3\n", &usual, /* the byte is met before the end of the record */
              "head INPUT: line 3, column 2: byte 0xC3 is not UTF-8 (byte offset 6); set csv.encoding if the file has "
              "another encoding\n");
    expect_of("a\nx\xE2\x82", &usual,
              "head INPUT: line 2, column 2: byte 0xE2 is not UTF-8 (byte offset 3); set csv.encoding if the file has "
              "another encoding\n");
}

static void a_row_longer_than_max_row_is_an_error_with_its_place(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    t.csv.max_row = 6;
    expect_of("a,b\n12,345\n", &t, "comma, utf-8 | a=int,dec,dbl b=int,dec,dbl\n#0 @2+4: [12] [345]\n= 1 0 11\n");
    expect_of("a,b\n12,3456\n", &t,
              "head INPUT: line 2: the row that starts here (byte offset 4) is longer than csv.max_row (6 B)\n");
    expect_of(
        "a,b\n1,\"\n2\n3\n4\n", &t,
        "head INPUT: line 2: the row that starts here (byte offset 4) is longer than csv.max_row (6 B); is a quote "
        "not closed?\n");
}

/* ---- NULL */

static void an_unquoted_empty_field_is_null_and_a_quoted_one_an_empty_string(void **state)
{
    (void)state;
    expect_of("a,b,c\n,\"\",x\n", &usual, "comma, utf-8 | a=none b=none c=text\n#0 @2+6: NULL [] [x]\n= 1 0 12\n");
    struct test_case t = TEST_USUAL;
    t.csv.null_values.count = 0;
    expect_of("a,b\n,\"\"\n", &t, "comma, utf-8 | a=none b=none\n#0 @2+4: [] []\n= 1 0 8\n");
}

static void null_words_count_only_unquoted(void **state)
{
    (void)state;
    struct test_case t = TEST_USUAL;
    t.csv.null_values.count = 3;
    expect_of("a,b,c\nNA,\"NA\",x\n\"x\"\"\nx\",\"x\",NAN\n,\"\",NA", &t,
              "comma, utf-8 | a=text b=text c=text\n#0 @2+6: NULL [NA] NULL\n#1 @3+16: [x\"\\x0Ax] [x] [NAN]\n"
              "#2 @5+32: NULL [] NULL\n= 3 0 38\n");
    expect_of("a\n1\nNA\n", &t, "comma, utf-8 | a=int,dec,dbl\n#0 @2+2: [1]\n#1 @3+4: NULL\n= 2 0 7\n");
}

/* ---- types */

static unsigned kinds(const char *s)
{
    char padded[128] = {0};
    memcpy(padded, s, strlen(s));
    unsigned by_rule = kind_of(padded, strlen(s));
    /* a column that starts from each possible state must end with what the rule leaves */
    for (unsigned from = 0; from <= KIND_ANY; from++) {
        unsigned left = from;
        bool seen = true;
        const char *value[] = {padded, padded};
        const uint32_t length[] = {(uint32_t)strlen(s), (uint32_t)strlen(s)};
        kind_narrow(&left, &seen, value, length, 2, 1);
        assert_int_equal(left, from & by_rule);
    }
    return by_rule;
}

static void integers_are_plain_int64(void **state)
{
    (void)state;
    const unsigned number = KIND_INT | KIND_DECIMAL | KIND_DOUBLE;
    static const char *const yes[] = {"0", "1", "-1", "12345678", "123456789", "999999999999999", "-10"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        assert_int_equal(kinds(yes[i]), number);
    assert_int_equal(kinds("1234567890123456"), KIND_INT | KIND_DECIMAL);
    assert_int_equal(kinds("9223372036854775807"), KIND_INT | KIND_DECIMAL);
    assert_int_equal(kinds("-9223372036854775808"), KIND_INT | KIND_DECIMAL);
    assert_int_equal(kinds("9223372036854775808"), KIND_DECIMAL);
    assert_int_equal(kinds("-9223372036854775809"), KIND_DECIMAL);
    assert_int_equal(kinds("-0"), KIND_DECIMAL | KIND_DOUBLE);
    static const char *const no[] = {"007",  "00",  "+420", "+1",  "1e5", "1 ",  " 1",       "-",        "--1", "1-",
                                     "0x10", "1,2", "١",    "-01", "1_0", "NaN", "Infinity", "12345a78", ":",   "/"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_int_equal(kinds(no[i]), 0);
}

static void decimals_are_digits_with_one_point(void **state)
{
    (void)state;
    static const char *const yes[] = {"1.5",   "0.5",     "-0.0", "10.00", "1234567.12345678", "0.000000000000000123",
                                      "123.4", "99999.99"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        assert_int_equal(kinds(yes[i]), KIND_DECIMAL | KIND_DOUBLE);
    assert_int_equal(kinds("1234567.123456789"), KIND_DECIMAL);
    assert_int_equal(kinds("0.1234567890123456"), KIND_DECIMAL);
    static const char *const no[] = {".5", "5.", "1.2.3", "00.5", "01.5", "1.5e3", "1,5", "-.5", "1. 5", "1.2.", "."};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_int_equal(kinds(no[i]), 0);
}

static void booleans_are_true_and_false_in_any_case(void **state)
{
    (void)state;
    static const char *const yes[] = {"true", "false", "True", "FALSE", "tRuE", "faLSe"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        assert_int_equal(kinds(yes[i]), KIND_BOOL);
    static const char *const no[] = {"t", "f", "yes", "no", "truE ", "tru", "falsey", "T\x12UE"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_int_equal(kinds(no[i]), 0);
}

static void dates_are_real_iso_dates(void **state)
{
    (void)state;
    static const char *const yes[] = {"2024-01-02", "2024-02-29", "2000-02-29",
                                      "1999-12-31", "0001-01-01", "9999-04-30"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        assert_int_equal(kinds(yes[i]), KIND_DATE);
    static const char *const no[] = {"2023-02-29", "1900-02-29", "2024-04-31",  "2024-13-01", "2024-00-01",
                                     "2024-01-00", "2024-1-2",   "0000-01-01",  "2024/01/02", "2024-01-32",
                                     "24-01-02",   "2024-01-0a", "2024-01-02Z", "2024-01_02", "2024-0:-02"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_int_equal(kinds(no[i]), 0);
}

static void timestamps_have_a_zone_or_not(void **state)
{
    (void)state;
    static const char *const plain[] = {"2024-01-02 03:04",    "2024-01-02T23:59:59",        "2024-02-29 00:00:00.1",
                                        "2024-01-02T03:04:05", "2024-01-02 03:04:05.123456", "2024-12-31 12:34:56"};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        assert_int_equal(kinds(plain[i]), KIND_TIMESTAMP);
    static const char *const zoned[] = {"2024-01-02T03:04:05Z", "2024-01-02 03:04+01", "2024-01-02 03:04:05-05:30",
                                        "2024-01-02T03:04:05.5+00:00", "2024-01-02T03:04Z"};
    for (size_t i = 0; i < sizeof zoned / sizeof *zoned; i++)
        assert_int_equal(kinds(zoned[i]), KIND_TIMESTAMPTZ);
    static const char *const no[] = {"2024-01-02T24:00:00",
                                     "2024-01-02 03:60",
                                     "2024-01-02 03:04:60",
                                     "2024-01-02 03:04:05.",
                                     "2024-01-02 03",
                                     "2024-01-02_03:04:05",
                                     "2023-02-29 03:04:05",
                                     "2024-01-02 03:04:05z",
                                     "2024-01-02 03:04:05+0100",
                                     "2024-01-02 03:04:05+16",
                                     "2024-01-02 03:04:05+01:60",
                                     "2024-01-02 03:04:05 Z",
                                     "2024-01-02 03:04:05.1234567",
                                     "2024-01-02T3:04:05",
                                     "2024-01-02 03:04:5",
                                     "2024-01-02 29:04:05",
                                     "2024-01-02 03-04-05"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_int_equal(kinds(no[i]), 0);
}

static void a_value_in_the_last_row_counts(void **state)
{
    (void)state;
    struct buf text;
    buf_init(&text);
    buf_adds(&text, "a,b,c\n");
    for (int i = 0; i < 300000; i++)
        buf_printf(&text, "%d,%d.5,2024-01-02\n", i, i);
    buf_adds(&text, "1.5,x,2024-01-03\n");
    struct test_case t = TEST_USUAL;
    t.quiet = true;
    char *out = test_inspect_n(text.data, text.size, &t);
    assert_non_null(strstr(out, "comma, utf-8 | a=dec,dbl b=text c=date\n= 300001 0 "));
    free(out);
    t.no_rows = true;
    expect_of_n(text.data, text.size, &t, "comma, utf-8 | a=int,dec,dbl b=dec,dbl c=date\n");
    buf_done(&text);
}

static void nulls_and_quoted_empty_fields_do_not_narrow(void **state)
{
    (void)state;
    expect_of("a,b,c\n1,,\n,2024-01-02,\n\"\",\"\",\n", &usual,
              "comma, utf-8 | a=int,dec,dbl b=date c=none\n#0 @2+6: [1] NULL NULL\n#1 @3+10: NULL [2024-01-02] NULL\n"
              "#2 @4+23: [] [] NULL\n= 3 0 30\n");
}

/* ---- sample files */

static void every_sample_file_is_what_it_should_be(void **state)
{
    (void)state;
    static const struct {
        const char *name, *starts;
        bool pads;
    } samples[] = {
        {"2024-01.csv", "comma, utf-8 | x=int,dec,dbl\n#0 @2+2: [1]\n= 1 0 4\n", false},
        {"all_rows_wider_than_header.csv", "head INPUT: line 2: 3 fields, expected 2 (byte offset 4)\n", false},
        {"all_text_with_header.csv", "comma, utf-8 | city=text country=text\n", false},
        {"basic.csv", "comma, utf-8 | id=int,dec,dbl name=text value=int,dec,dbl\n", false},
        {"basic_header_changed.csv", "comma, utf-8 | id=int,dec,dbl name=text value=int,dec,dbl extra=int,dec,dbl\n",
         false},
        {"column_named_index.csv", "comma, utf-8 | index=int,dec,dbl b=int,dec,dbl\n", false},
        {"crlf_multiline.csv",
         "comma, utf-8 | id=int,dec,dbl note=text\n#0 @2+9: [1] [multi\\x0D\\x0Aline, with \"quotes\"]\n#1 @4+43: [2] "
         "[plain]\n= 2 0 52\n",
         false},
        {"empty.csv", "comma, utf-8 |\n= 0 0 0\n", false},
        {"group.csv", "comma, utf-8 | order=int,dec,dbl select=int,dec,dbl\n", false},
        {"header_only.csv", "comma, utf-8 | id=none name=none value=none\n= 0 0 14\n", false},
        {"latin1_invalid.csv", "head INPUT: line ", false},
        {"leading_zeros.csv", "comma, utf-8 | id=text\n#0 @2+3: [007]\n#1 @3+7: [008]\n= 2 0 11\n", false},
        {"na_words.csv", "comma, utf-8 | id=text v=text\n#0 @2+5: [NA] [null]\n#1 @3+13: NULL [None]\n= 2 0 19\n",
         false},
        {"ragged.csv", "head INPUT: line ", false},
        {"ragged_long_row.csv", "head INPUT: line 3: 3 fields, expected 2 (byte offset 8)\n", false},
        {"semicolon.csv", "semicolon, utf-8 | id=int,dec,dbl name=text value=int,dec,dbl\n#0 @2+14: [0] [a,b] [17]\n",
         false},
        {"short_header.csv", "comma, utf-8 | a=int,dec,dbl\n", false},
        {"short_row.csv", "comma, utf-8 | a=int,dec,dbl b=none\n#0 @2+4: [1] NULL\n= 1 0 6\n", true},
        {"tab.csv", "tab, utf-8 | id=int,dec,dbl name=text value=int,dec,dbl\n#0 @2+14: [0] [a,b;c] [17]\n", false},
        {"test1_step1.csv",
         "comma, utf-8 | header1=text header2=text header2.1=text\n#0 @2+24: [l1] [l2] [l3]\n= 1 0 33\n", false},
        {"test1_step2.csv", "comma, utf-8 | header1=text header2=text header2.1=text\n", false},
        {"titles_small.csv",
         "comma, utf-8 | title=text pdl count=int,dec,dbl top related titles=text column_3=text column_4=text "
         "column_5=text column_6=text\n#0 @2+39: [Owner] [100] [ marketing] [ sales] [president] [ partner] [ "
         "manager]\n#1 @3+95: [ Co-Founder ] [80] [ strategy] NULL [founder] [ ceo] NULL\n",
         true},
        {"types.csv",
         "comma, utf-8 | id=int,dec,dbl price=dec,dbl when=date ok=bool name=text\n#0 @2+22: [1] [2.5] [2024-01-02] "
         "[True] [a,b]\n#1 @3+50: [2] NULL [2024-01-03] [False] NULL\n= 2 0 71\n",
         false},
        {"unclosed_quote.csv", "head INCOMPLETE: line ", false},
        {"utf8.csv", "comma, utf-8 | id=int,dec,dbl name=text description=text\n", false},
        {"utf8_bom.csv", "comma, utf-8, bom | id=int,dec,dbl name=text description=text\n", false},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", TEST_DATA, samples[i].name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        struct test_case t = TEST_USUAL;
        t.csv.short_rows = samples[i].pads ? SHORT_PAD : SHORT_REJECT;
        char *out = test_inspect_fd(fd, &t);
        close(fd);
        if (strncmp(out, samples[i].starts, strlen(samples[i].starts)) != 0)
            assert_string_equal(out, samples[i].starts);
        free(out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_dialect_whose_records_agree_most_wins),
        cmocka_unit_test(a_tie_is_decided_by_comma_semicolon_tab_pipe),
        cmocka_unit_test(a_header_that_nothing_splits_is_one_column_by_comma),
        cmocka_unit_test(records_that_split_do_not_make_up_for_a_header_that_does_not),
        cmocka_unit_test(the_columns_of_a_table_decide_the_dialect),
        cmocka_unit_test(a_given_delimiter_and_quote_are_not_questioned),
        cmocka_unit_test(blank_and_repeated_names_become_unique),
        cmocka_unit_test(a_byte_order_mark_is_not_part_of_the_first_name),
        cmocka_unit_test(an_empty_file_has_no_columns),
        cmocka_unit_test(a_header_alone_is_a_table_without_rows),
        cmocka_unit_test(too_many_columns_are_refused),
        cmocka_unit_test(spaces_are_data),
        cmocka_unit_test(blank_lines_are_never_rows),
        cmocka_unit_test(a_quoted_empty_field_is_a_row_of_a_one_column_file),
        cmocka_unit_test(a_quoted_field_may_hold_anything),
        cmocka_unit_test(a_quote_inside_an_unquoted_field_is_data),
        cmocka_unit_test(text_behind_a_closing_quote_is_a_bad_row),
        cmocka_unit_test(line_ends_may_be_lf_crlf_or_cr),
        cmocka_unit_test(too_many_fields_are_a_bad_row_and_too_few_unless_padded),
        cmocka_unit_test(an_unclosed_quote_is_an_early_end_with_its_line),
        cmocka_unit_test(a_nul_and_bytes_that_are_not_utf8_are_errors_with_their_place),
        cmocka_unit_test(a_row_longer_than_max_row_is_an_error_with_its_place),
        cmocka_unit_test(an_unquoted_empty_field_is_null_and_a_quoted_one_an_empty_string),
        cmocka_unit_test(null_words_count_only_unquoted),
        cmocka_unit_test(integers_are_plain_int64),
        cmocka_unit_test(decimals_are_digits_with_one_point),
        cmocka_unit_test(booleans_are_true_and_false_in_any_case),
        cmocka_unit_test(dates_are_real_iso_dates),
        cmocka_unit_test(timestamps_have_a_zone_or_not),
        cmocka_unit_test(a_value_in_the_last_row_counts),
        cmocka_unit_test(nulls_and_quoted_empty_fields_do_not_narrow),
        cmocka_unit_test(every_sample_file_is_what_it_should_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
