#include "text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

static void durations_and_sizes_have_units_or_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool is_good;
        uint64_t value;
    } durations[] = {{"500ms", true, 500},
                     {"5s", true, 5000},
                     {"10m", true, 600000},
                     {"2h", true, 7200000},
                     {"7d", true, 604800000},
                     {"0", true, 0},
                     {"5", false, 0},
                     {"", false, 0},
                     {"-5s", false, 0},
                     {"1.5h", false, 0},
                     {"5 s", false, 0},
                     {"5S", false, 0},
                     {"s", false, 0},
                     {"99999999999999999999s", false, 0},
                     {"18446744073709551615d", false, 0},
                     {"9223372036854775808ms", false, 0}},
      sizes[] = {{"123", true, 123},         {"64KiB", true, 65536},        {"10MiB", true, 10485760},
                 {"1GiB", true, 1073741824}, {"2TiB", true, 2199023255552}, {"7B", true, 7},
                 {"10MB", false, 0},         {"10mib", false, 0},           {"", false, 0},
                 {"99999999TiB", false, 0}};
    for (size_t i = 0; i < sizeof durations / sizeof *durations; i++) {
        uint64_t ms = 42;
        assert_int_equal(text_parse_duration(durations[i].text, &ms), durations[i].is_good);
        assert_int_equal(ms, durations[i].is_good ? durations[i].value : 42);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t bytes = 42;
        assert_int_equal(text_parse_size(sizes[i].text, &bytes), sizes[i].is_good);
        assert_int_equal(bytes, sizes[i].is_good ? sizes[i].value : 42);
    }
}

static const char *duration(uint64_t ms)
{
    static char text[32];
    text_format_duration(ms, text, sizeof text);
    return text;
}

static const char *size(uint64_t bytes)
{
    static char text[32];
    text_format_size(bytes, text, sizeof text);
    return text;
}

static void numbers_are_shown_as_people_say_them(void **state)
{
    (void)state;
    assert_string_equal(duration(0), "0 ms");
    assert_string_equal(duration(1234), "1.2 s");
    assert_string_equal(duration(45678), "45 s");
    assert_string_equal(duration(200000), "3 min");
    assert_string_equal(duration(10800000), "3 h");
    assert_string_equal(duration(604800000), "7 d");
    assert_string_equal(size(1023), "1023 B");
    assert_string_equal(size(1536), "1.5 KiB");
    assert_string_equal(size(1572864), "1.5 MiB");
    assert_string_equal(size(UINT64_MAX), "15.9 EiB");
}

static void a_slip_of_the_fingers_finds_the_word_that_was_meant(void **state)
{
    (void)state;
    static const char *const choices[] = {"debounce", "settle", "from", "to", "poll_interval", NULL};
    assert_string_equal(text_nearest("debuonce", choices), "debounce");
    assert_string_equal(text_nearest("SETTLE", choices), "settle");
    assert_string_equal(text_nearest("form", choices), "from");
    assert_string_equal(text_nearest("pol_interval", choices), "poll_interval");
    assert_null(text_nearest("color", choices));
    assert_null(text_nearest("", choices));
    assert_null(text_nearest("x", choices));
    char longest[200];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_null(text_nearest(longest, choices));
}

static void hex_goes_there_and_back(void **state)
{
    (void)state;
    const uint8_t bytes[4] = {0, 0x7f, 0xa0, 0xff};
    uint8_t back[4];
    char hex[9];
    text_hex(bytes, 4, hex);
    assert_string_equal(hex, "007fa0ff");
    assert_true(text_unhex("007FA0ff", back, 4));
    assert_memory_equal(bytes, back, 4);
    assert_false(text_unhex("007fa0f", back, 4));
    assert_false(text_unhex("007fa0ff0", back, 4));
    assert_false(text_unhex("007fa0fg", back, 4));
}

/* The definition, one byte after the other. */
static size_t valid_by_definition(const unsigned char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        static const uint32_t least[5] = {0, 1, 0x80, 0x800, 0x10000};
        size_t length = s[i] < 0x80 ? 1 : s[i] >= 0xF8 ? 0 : s[i] >= 0xF0 ? 4 : s[i] >= 0xE0 ? 3 : s[i] >= 0xC0 ? 2 : 0;
        if (length == 0 || length > n - i)
            return i;
        uint32_t c = length == 1 ? s[i] : s[i] & (0x7Fu >> length);
        for (size_t k = 1; k < length; k++) {
            if ((s[i + k] & 0xC0) != 0x80)
                return i;
            c = c << 6 | (s[i + k] & 0x3F);
        }
        if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
            return i;
        i += length;
    }
    return n;
}

static void every_short_sequence_is_judged_as_the_definition_says(void **state)
{
    (void)state;
    for (uint32_t word = 0; word < 0x1000000; word++) {
        unsigned char s[3] = {(unsigned char)(word >> 16), (unsigned char)(word >> 8), (unsigned char)word};
        if (text_utf8_valid((char *)s, 3) != valid_by_definition(s, 3))
            fail_msg("%06x", word);
    }
    for (uint32_t word = 0; word < 0x1000000; word += 3) {
        unsigned char s[4] = {(unsigned char)(0xEF + word % 8), (unsigned char)(word >> 16), (unsigned char)(word >> 8),
                              (unsigned char)word};
        if (text_utf8_valid((char *)s, 4) != valid_by_definition(s, 4))
            fail_msg("%02x %06x", s[0], word);
    }
}

static void a_bad_byte_is_found_wherever_it_is_in_a_long_text(void **state)
{
    (void)state;
    static const char *const inserts[] = {"\xC3\xB1",     "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xFF",    "\x80",
                                          "\xED\xA0\x80", "\xC0\x80",     "\xF4\x90\x80\x80", "\xE2\x82"};
    unsigned char text[300];
    for (size_t start = 0; start < 8; start++) {
        for (size_t at = start; at < 280; at++) {
            for (size_t k = 0; k <= sizeof inserts / sizeof *inserts; k++) {
                memset(text, 'a', sizeof text);
                if (k < sizeof inserts / sizeof *inserts)
                    memcpy(text + at, inserts[k], strlen(inserts[k]));
                else
                    text[at] = '\0';
                size_t want =
                    k < sizeof inserts / sizeof *inserts ? valid_by_definition(text + start, 290 - start) : at - start;
                if (text_utf8_valid((char *)text + start, 290 - start) != want)
                    fail_msg("start %zu at %zu insert %zu", start, at, k);
            }
        }
    }
    assert_int_equal(text_utf8_valid("", 0), 0);
}

static void names_are_printed_without_what_a_terminal_would_obey(void **state)
{
    (void)state;
    char text[64], tiny[6];
    assert_string_equal(text_printable("a\nb\x1b[31m\xff", text, sizeof text), "a\\x0Ab\\x1B[31m\\xFF");
    assert_string_equal(text_printable("\xc3\xb1\xe2\x80\xae", text, sizeof text), "\xc3\xb1\\xE2\\x80\\xAE");
    assert_string_equal(text_printable("abcd\xc3\xb1", tiny, sizeof tiny), "abcd"); /* no half a character */
    assert_string_equal(text_printable("abc\n", tiny, sizeof tiny), "abc");
    assert_string_equal(text_printable("abc", tiny, 0), "");
}

static void globs_match_what_they_say(void **state)
{
    (void)state;
    static const struct {
        const char *glob, *path;
        bool matches;
    } cases[] = {
        {"**/*.csv{,.gz,.zst}", "a.csv", true},
        {"**/*.csv{,.gz,.zst}", "x/y/a.csv.gz", true},
        {"**/*.csv{,.gz,.zst}", "x/a.csv.bz2", false},
        {"**/*.csv{,.gz,.zst}", "a.csv.zst", true},
        {"*.csv", "a.csv", true},
        {"*.csv", "a/b.csv", false},
        {"*/*.csv", "a/b.csv", true},
        {"*/*.csv", "b.csv", false},
        {"**", "a/b/c", true},
        {"**", "", true},
        {"*", "", true},
        {"?", "", false},
        {"a/**", "a/b/c", true},
        {"a/**", "a", false},
        {"a/**/b", "a/b", true},
        {"a/**/b", "a/x/y/b", true},
        {"a/**/b", "ab", false},
        {"**/b", "ab", false},
        {"**/b", "a/b", true},
        {"a**b", "a/x/b", true},
        {"***", "a/b", true},
        {"{a,b{c,d}}x", "ax", true},
        {"{a,b{c,d}}x", "bdx", true},
        {"{a,b{c,d}}x", "bx", false},
        {"{}", "", true},
        {"{,a}{,b}", "b", true},
        {"{**/,}x", "p/q/x", true},
        {"{**/,}x", "x", true},
        {"x{/**/,}y", "x/y", true},
        {"[a-c]?", "b1", true},
        {"[!a-c]?", "b1", false},
        {"[^a-c]?", "d1", true},
        {"[]a]", "]", true},
        {"[a-]", "-", true},
        {"[a/b]", "/", false},
        {"[!x]", "/", false},
        {"a?b", "a/b", false},
        {"?.csv", "\xc3\xb1.csv", true},
        {"[\xc3\xa0-\xc3\xbc]", "\xc3\xb1", true},
        {"?", "\xff", true},
        {"\\*", "*", true},
        {"\\*", "a", false},
        {"\\{a,b}", "{a,b}", true},
        {"a,b", "a,b", true},
        {"[{]}", "{}", true},
        {"{a,[,]}", ",", true},
        {"{[}],b}", "}", true},
        {"{a", "{a", true},
        {"{a,b", "{a,b", true},
        {"x}{", "x}{", true},
        {"[a", "[a", true},
        {"{{a,b}", "{a", true},
        {"\xff*", "\xff.csv", true},
        {"", "", true},
        {"", "a", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (glob_match(cases[i].glob, cases[i].path) != cases[i].matches)
            fail_msg("%s %s", cases[i].glob, cases[i].path);
    }
}

static void no_glob_takes_long(void **state)
{
    (void)state;
    char glob[1024] = "", path[4096];
    for (int i = 0; i < 200; i++)
        strcat(glob, "{a,*}");
    memset(path, 'a', sizeof path - 2);
    strcpy(path + sizeof path - 2, "b");
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    assert_true(glob_match(glob, path));
    strcat(glob, "c");
    assert_false(glob_match(glob, path));
    clock_gettime(CLOCK_MONOTONIC, &end);
    assert_true(end.tv_sec - start.tv_sec < 60); /* or for ever */
    char longest[1100];
    memset(longest, '*', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_false(glob_match(longest, "a"));
    longest[1023] = '\0';
    assert_true(glob_match(longest, "a/b"));
}

static void a_bad_glob_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *glob, *words;
    } bad[] = {{"{a,b", "byte 1"},   {"x{a}}", "byte 5"}, {"a[b", "byte 2"},      {"[a/]", "']'"},
               {"a\\", "backslash"}, {"", "empty"},       {"[z-a]", "backwards"}, {"\\\\[", "byte 3"}};
    struct err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err_clear(&err);
        assert_false(glob_check(bad[i].glob, &err));
        assert_int_equal(err.code, ERR_CONFIG);
        if (strstr(err.text, bad[i].words) == NULL)
            fail_msg("%s: %s", bad[i].glob, err.text);
    }
    assert_true(glob_check("**/*.csv{,.gz,.zst}", &err));
    assert_true(glob_check("\\[a\\}", &err));
    char deep[80] = "";
    for (int i = 0; i < 33; i++)
        strcat(deep, "{");
    for (int i = 0; i < 33; i++)
        strcat(deep, "}");
    assert_false(glob_check(deep, &err));
    assert_true(glob_depth(deep) <= 0);
}

static void the_depth_of_a_glob_bounds_its_paths(void **state)
{
    (void)state;
    assert_int_equal(glob_depth("*.csv"), 0);
    assert_int_equal(glob_depth("*/*.csv"), 1);
    assert_int_equal(glob_depth("a/{b/c/,d}x"), 3);
    assert_int_equal(glob_depth("{a,b/c}/{d,e/f/g}"), 4);
    assert_int_equal(glob_depth("a/**"), -1);
    assert_int_equal(glob_depth("[*][*]/\\**"), 1);
}

static void names_of_files_on_their_way_are_never_taken(void **state)
{
    (void)state;
    static const char *const bad[] = {".a.csv",  "a/.hidden/b.csv", "a.csv.part", "a.TMP", "a.csv~",     "x.crdownload",
                                      "~$a.csv", "#a.csv#",         "a/b/.x",     ".",     "a.filepart", "a.swp"};
    static const char *const good[] = {"a.csv", "a/b.csv", "part", "a.part/b.csv", "tmp.csv", "a~b.csv", "#a.csv"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_true(path_is_temporary(bad[i]));
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_false(path_is_temporary(good[i]));
}

static void assert_expands(const char *tmpl, const char *path, const char *want)
{
    const struct template_facts facts = {.path = path, .flow = "sales", .host = "h", .port = "21"};
    struct buf b;
    buf_init(&b);
    template_expand(tmpl, &facts, &b);
    assert_false(b.failed);
    assert_string_equal(b.data, want);
    buf_done(&b);
}

static void templates_take_a_path_apart(void **state)
{
    (void)state;
    assert_expands("{folder}|{name}|{stem}|{first}|{ext}", "a/b/x.y.csv.gz", "a_b|x.y.csv.gz|x.y|x|csv");
    assert_expands("{path}|{path_stem}", "a/b/x.csv", "a/b/x.csv|a_b_x");
    assert_expands("{folder}|{path_stem}|{ext}", "x", "|x|");
    assert_expands("{stem}|{ext}|{first}", ".hidden", ".hidden||.hidden");
    assert_expands("{stem}|{ext}", "x.gz", "x|");
    assert_expands("{stem}|{ext}", "x.CSV.ZST", "x|CSV");
    assert_expands("{stem}|{ext}", "x.", "x|");
    assert_expands("{host}_{port}/{flow}", "x", "h_21/sales");
    assert_expands("plain {nothing} {", "x", "plain {nothing} {");
}

static void a_bad_template_is_refused_with_a_suggestion(void **state)
{
    (void)state;
    struct err err;
    assert_true(template_check("{folder}_{stem}", &err));
    assert_false(template_check("{foldr}", &err));
    assert_non_null(strstr(err.text, "{folder}"));
    assert_false(template_check("{zzzzzzzz}", &err));
    assert_non_null(strstr(err.text, "{path_stem}"));
    assert_false(template_check("a{stem", &err));
    assert_non_null(strstr(err.text, "byte 2"));
    assert_false(template_check("stem}", &err));
    assert_false(template_check("{{stem}}", &err));
    assert_false(template_check("", &err));
    assert_true(template_is_constant("events"));
    assert_true(template_is_constant("{flow}_{host}"));
    assert_false(template_is_constant("{flow}_{first}"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(durations_and_sizes_have_units_or_are_refused),
        cmocka_unit_test(numbers_are_shown_as_people_say_them),
        cmocka_unit_test(a_slip_of_the_fingers_finds_the_word_that_was_meant),
        cmocka_unit_test(hex_goes_there_and_back),
        cmocka_unit_test(every_short_sequence_is_judged_as_the_definition_says),
        cmocka_unit_test(a_bad_byte_is_found_wherever_it_is_in_a_long_text),
        cmocka_unit_test(names_are_printed_without_what_a_terminal_would_obey),
        cmocka_unit_test(globs_match_what_they_say),
        cmocka_unit_test(no_glob_takes_long),
        cmocka_unit_test(a_bad_glob_is_refused_with_its_place),
        cmocka_unit_test(the_depth_of_a_glob_bounds_its_paths),
        cmocka_unit_test(names_of_files_on_their_way_are_never_taken),
        cmocka_unit_test(templates_take_a_path_apart),
        cmocka_unit_test(a_bad_template_is_refused_with_a_suggestion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
