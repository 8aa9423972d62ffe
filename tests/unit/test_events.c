/* test_events.c -- files of JSON events: which rows they are, what is wrong with them and where. */
#include "events_test.h"

#include "alloc_fault.h"

#include <zlib.h>

static void the_first_rule_that_matches_takes_an_event(void **state)
{
    (void)state;
    expect_events("{\"type\": \"user\", \"p\": {\"id\": 1, \"name\": \"Eva\"}}\n"
                  "{\"p\": {\"id\": 2, \"active\": true}, \"type\": \"karta\"}\n"
                  "{\"type\": \"card\", \"p\": {\"id\": 3, \"name\": 7}}\n",
                  &two_tables, 0,
                  "0 #0 @1+0: [1] [Eva]\n"
                  "1 #1 @2+48: [2] [true] [{\"p\": {\"id\": 2, \"active\": true}, \"type\": \"karta\"}]\n"
                  "1 #2 @3+98: [3] [false] [{\"type\": \"card\", \"p\": {\"id\": 3, \"name\": 7}}]\n"
                  "= 3 0 142\n");
}

static void one_event_an_array_and_a_sequence_are_read(void **state)
{
    (void)state;
    static const char event[] = "{\"type\":\"user\",\"p\":{\"id\":1}}";
    static const char *const around[][2] = {{"", ""},       {"  ", "\n"},         {"[", "]"},
                                            {" [ ", " ] "}, {"\xEF\xBB\xBF", ""}, {"\xEF\xBB\xBF[", "]\r\n"}};
    char text[200], want[80];
    for (size_t i = 0; i < sizeof around / sizeof around[0]; i++) {
        int n = snprintf(text, sizeof text, "%s%s%s", around[i][0], event, around[i][1]);
        snprintf(want, sizeof want, "0 #0 @1+%d: [1] NULL\n= 1 0 %d\n", (int)(strchr(text, '{') - text), n);
        expect_events(text, &two_tables, 0, want);
    }
    expect_events("[{\"type\":\"user\",\"p\":{\"id\":1}},\n\n{\"type\":\"user\",\"p\":{\"id\":2}}]", &two_tables, 0,
                  "0 #0 @1+1: [1] NULL\n0 #1 @3+32: [2] NULL\n= 2 0 61\n");
    expect_events("{\"type\":\"user\",\"p\":{\"id\":1}}{\"type\":\"user\",\"p\":{\"id\":2}}", &two_tables, 0,
                  "0 #0 @1+0: [1] NULL\n0 #1 @1+28: [2] NULL\n= 2 0 56\n");
    expect_events("", &two_tables, 0, "empty\n");
    expect_events(" \r\n\t", &two_tables, 0, "empty\n");
}

struct value {
    enum event_type type;
    const char *json;
    const char *want; /* the cell, or what is said instead of it (begins with '!') */
};

static void every_digit_reaches_the_column_or_the_event_is_bad(void **state)
{
    (void)state;
    static const struct value values[] = {
        {EVENT_DOUBLE, "0.7496072140369432", "[0.7496072140369432]"},
        {EVENT_DOUBLE, "0.0", "[0.0]"},
        {EVENT_DOUBLE, "-0", "[-0]"},
        {EVENT_DOUBLE, "1e5", "[1e5]"},
        {EVENT_DOUBLE, "1E-7", "[1E-7]"},
        {EVENT_DOUBLE, "1.7976931348623157e308", "[1.7976931348623157e308]"},
        {EVENT_DOUBLE, "1e309", "!double (a number), found the number 1e309"},
        {EVENT_DOUBLE, "1e-400", "!double (a number), found the number 1e-400"},
        {EVENT_DOUBLE, "0e-400", "[0e-400]"},
        {EVENT_DOUBLE, "\"1\"", "!double (a number), found the text \"1\""},
        {EVENT_BIGINT, "0", "[0]"},
        {EVENT_BIGINT, "9223372036854775807", "[9223372036854775807]"},
        {EVENT_BIGINT, "-9223372036854775808", "[-9223372036854775808]"},
        {EVENT_BIGINT, "9223372036854775808",
         "!bigint (a whole number within 64 bits), found the number 9223372036854775808"},
        {EVENT_BIGINT, "1.0", "!bigint (a whole number within 64 bits), found the number 1.0"},
        {EVENT_BIGINT, "1e2", "!bigint (a whole number within 64 bits), found the number 1e2"},
        {EVENT_BIGINT, "\"12\"", "!bigint (a whole number within 64 bits), found the text \"12\""},
        {EVENT_BIGINT, "true", "!bigint (a whole number within 64 bits), found true"},
        {EVENT_BIGINT, "[1]", "!bigint (a whole number within 64 bits), found an array"},
        {EVENT_BIGINT, "{}", "!bigint (a whole number within 64 bits), found an object"},
        {EVENT_DECIMAL, "12345678901234567890123", "[12345678901234567890123]"},
        {EVENT_DECIMAL, "-0.10", "[-0.10]"},
        {EVENT_DECIMAL, "\"1234567890.123456789012345\"", "[1234567890.123456789012345]"},
        {EVENT_DECIMAL, "1.5e3", "[1500]"},
        {EVENT_DECIMAL, "1.25e1", "[12.5]"},
        {EVENT_DECIMAL, "1.50e+1", "[15.0]"},
        {EVENT_DECIMAL, "-25E-3", "[-0.025]"},
        {EVENT_DECIMAL, "12e-1", "[1.2]"},
        {EVENT_DECIMAL, "0.00e2", "[0]"},
        {EVENT_DECIMAL, "0.01e3", "[10]"},
        {EVENT_DECIMAL, "1e-7", "[0.0000001]"},
        {EVENT_DECIMAL, "1e9999999999",
         "!decimal (a number, or one in quotes, of at most 400 digits when it is written out), found the number "
         "1e9999999999"},
        {EVENT_DECIMAL, "\"1,5\"",
         "!decimal (a number, or one in quotes, of at most 400 digits when it is written out), found the text \"1,5\""},
        {EVENT_BOOLEAN, "true", "[true]"},
        {EVENT_BOOLEAN, "false", "[false]"},
        {EVENT_BOOLEAN, "1", "!boolean (true or false), found the number 1"},
        {EVENT_BOOLEAN, "\"true\"", "!boolean (true or false), found the text \"true\""},
        {EVENT_DATE, "\"2024-02-29\"", "[2024-02-29]"},
        {EVENT_DATE, "\"2023-02-29\"", "!date (\"YYYY-MM-DD\"), found the text \"2023-02-29\""},
        {EVENT_DATE, "\"\"", "!date (\"YYYY-MM-DD\"), found the text \"\""},
        {EVENT_TIMESTAMP, "\"2022-06-24 10:00:00\"", "[2022-06-24 10:00:00]"},
        {EVENT_TIMESTAMP, "\"2022-06-24T10:00:00.5\"", "[2022-06-24T10:00:00.5]"},
        {EVENT_TIMESTAMP, "\"2022\\u002d06-24 10:00:00\"", "[2022-06-24 10:00:00]"},
        {EVENT_TIMESTAMP, "\"2022-06-24T10:00:00Z\"",
         "!timestamp (\"YYYY-MM-DD hh:mm:ss\" without zone, at most six digits of fraction), found the text "
         "\"2022-06-24T10:00:00Z\""},
        {EVENT_TIMESTAMPTZ, "\"2022-06-24T10:00:00Z\"", "[2022-06-24T10:00:00Z]"},
        {EVENT_TIMESTAMPTZ, "\"2022-06-24T10:00:00.123456+02:00\"", "[2022-06-24T10:00:00.123456+02:00]"},
        {EVENT_TIMESTAMPTZ, "\"2022-06-24 10:00:00\"",
         "!timestamptz (\"YYYY-MM-DDThh:mm:ssZ\" or with +hh:mm, at most six digits of fraction), found the text "
         "\"2022-06-24 10:00:00\""},
        {EVENT_TEXT, "\"\"", "[]"},
        {EVENT_TEXT, "\"a\\\"b\\\\c\\/d\\b\\f\\n\\r\\t\"", "[a\"b\\c/d\\x08\\x0C\\x0A\\x0D\\x09]"},
        {EVENT_TEXT, "\"\\u00e9\\u010D\\u20ac\\uD83D\\uDE00\"", "[éč€😀]"},
        {EVENT_TEXT, "\"é😀\"", "[é😀]"},
        {EVENT_TEXT, "12.50", "[12.50]"},
        {EVENT_TEXT, "12345678901234567890123", "[12345678901234567890123]"},
        {EVENT_TEXT, "true", "[true]"},
        {EVENT_TEXT, "{\"a\":1}", "!text, found an object"},
        {EVENT_TEXT, "\"a\\u0000b\"", "!text, found a text with \\u0000, which no column can hold"},
        {EVENT_TEXT, "\"\\uD83Dx\"", "!text, found a text with half of a surrogate pair, which no column can hold"},
        {EVENT_TEXT, "\"\\uDE00\"", "!text, found a text with half of a surrogate pair, which no column can hold"},
        {EVENT_TEXT, "\"\\uD83D\\u0041\"",
         "!text, found a text with half of a surrogate pair, which no column can hold"},
        {EVENT_TEXT, "null", "NULL"},
        {EVENT_JSON, "{ \"a\" : [1,2.50] }", "[{ \"a\" : [1,2.50] }]"},
        {EVENT_JSON, "\"\\u0000\"", "[\"\\u0000\"]"},
        {EVENT_JSON, "1.0", "[1.0]"},
        {EVENT_JSON, "null", "NULL"},
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        char text[400], want[600];
        const struct event_options events = one_column(values[i].type, false, NULL);
        int n = snprintf(text, sizeof text, "{\"v\":%s}", values[i].json);
        if (values[i].want[0] == '!')
            snprintf(want, sizeof want, "INPUT: line 1, column 6: v (/v): expected %s (byte offset 5)\n",
                     values[i].want + 1);
        else
            snprintf(want, sizeof want, "0 #0 @1+0: %s\n= 1 0 %d\n", values[i].want, n);
        expect_events(text, &events, 0, want);
    }
}

static void what_is_missing_gets_the_default_and_null_does_not(void **state)
{
    (void)state;
    struct event_options events = one_column(EVENT_BIGINT, false, "7");
    expect_events("{}\n{\"v\":null}\n{\"v\":1}", &events, 0,
                  "0 #0 @1+0: [7]\n0 #1 @2+3: NULL\n0 #2 @3+14: [1]\n= 3 0 21\n");
    events = one_column(EVENT_BIGINT, true, NULL);
    expect_events("{\"w\":1}", &events, 0,
                  "INPUT: line 1, column 1: v is missing: expected bigint at /v (byte offset 0)\n");
    expect_events("{\"w\":1,\n  \"v\": null}", &events, 0,
                  "INPUT: line 2, column 8: v is null: expected bigint at /v (byte offset 15)\n");
    events = one_column(EVENT_BIGINT, true, "7");
    expect_events("{}", &events, 0, "0 #0 @1+0: [7]\n= 1 0 2\n");
}

static void pointers_reach_into_objects_and_arrays(void **state)
{
    (void)state;
    static const struct {
        const char *from, *json, *want;
    } cases[] = {
        {"/a/0", "{\"a\":[5,6]}", "[5]"},
        {"/a/1", "{\"a\":[5,6]}", "[6]"},
        {"/a/2", "{\"a\":[5,6]}", "NULL"},
        {"/a/01", "{\"a\":[5,6]}", "NULL"},
        {"/a/0", "{\"a\":{\"0\":7}}", "[7]"},
        {"/a~1b/m~0n", "{\"a/b\":{\"m~n\":8}}", "[8]"},
        {"/~01", "{\"~1\":9}", "[9]"},
        {"/", "{\"\":10}", "[10]"},
        {"/ k\"\\", "{\" k\\\"\\\\\":11}", "[11]"},
        {"/é", "{\"\\u00e9\":12}", "[12]"},
        {"/😀", "{\"\\ud83d\\ude00\":13}", "[13]"},
        {"/a/b", "{\"a\":1}", "NULL"},
        {"/a/b", "{\"ab\":1,\"a\":{\"c\":{\"b\":2}}}", "NULL"},
        {"/a/0/b", "{\"a\":[{\"x\":[1,{\"b\":3}],\"b\":4},{\"b\":5}]}", "[4]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char want[100];
        struct event_column column = {.name = "v", .from = cases[i].from, .type = EVENT_BIGINT};
        struct event_rule rule = {.columns = &column, .column_count = 1};
        const struct event_options events = {.max_event = 1000, .rules = &rule, .rule_count = 1, .part_count = 1};
        snprintf(want, sizeof want, "0 #0 @1+0: %s\n= 1 0 %zu\n", cases[i].want, strlen(cases[i].json));
        expect_events(cases[i].json, &events, 0, want);
    }
}

static void when_compares_texts_numbers_and_booleans(void **state)
{
    (void)state;
    static const char *const one[] = {"1"}, *const yes[] = {"true"}, *const none[] = {"null"}, *const e[] = {"é"};
    static const struct {
        const char *const *values;
        const char *json;
        bool is_taken;
    } cases[] = {{one, "{\"v\":1}", true},         {one, "{\"v\":\"1\"}", true}, {one, "{\"v\":1.0}", false},
                 {one, "{\"v\":[1]}", false},      {one, "{}", false},           {yes, "{\"v\":true}", true},
                 {yes, "{\"v\":false}", false},    {none, "{\"v\":null}", true}, {e, "{\"v\":\"\\u00e9\"}", true},
                 {e, "{\"v\":\"\\u00ea\"}", false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct event_when when = {.from = "/v", .values = {cases[i].values, 1}};
        struct event_column column = {.name = "raw", .from = "/none", .type = EVENT_JSON};
        struct event_rule rule = {.whens = &when, .when_count = 1, .columns = &column, .column_count = 1};
        const struct event_options events = {.max_event = 1000, .rules = &rule, .rule_count = 1, .part_count = 1};
        char *out = events_of(cases[i].json, &events, 0);
        assert_int_equal(strncmp(out, "0 #0", 4) == 0, cases[i].is_taken);
        assert_int_equal(strncmp(out, "INPUT: line 1, column 1: no rule of records takes this event: found ", 68) == 0,
                         !cases[i].is_taken);
        free(out);
    }
}

static void an_event_that_no_rule_takes_says_what_was_found(void **state)
{
    (void)state;
    expect_events("{\"type\": \"invoice\"}", &two_tables, 0,
                  "INPUT: line 1, column 1: no rule of records takes this event: found the text \"invoice\" at /type; "
                  "expected there 'user', 'card', 'karta' (byte offset 0)\n");
    expect_events("{\"kind\": 1}", &two_tables, 0,
                  "INPUT: line 1, column 1: no rule of records takes this event: found nothing at /type; expected "
                  "there 'user', 'card', 'karta' (byte offset 0)\n");
}

static void a_rule_that_continues_lets_later_ones_see_the_event(void **state)
{
    (void)state;
    struct event_column history[] = {{.name = "id", .from = "/p/id", .type = EVENT_BIGINT},
                                     {.name = "raw", .from = "", .type = EVENT_JSON}};
    struct event_rule rules[] = {{.columns = history, .column_count = 2, .part = 1, .goes_on = true},
                                 user_and_card[0],
                                 {.columns = history, .column_count = 2, .part = 1}};
    const struct event_options events = {.max_event = 1000, .rules = rules, .rule_count = 3, .part_count = 2};
    expect_events("{\"type\":\"user\",\"p\":{\"id\":1}} {\"p\":{\"id\":2}}", &events, 0,
                  "1 #0 @1+0: [1] [{\"type\":\"user\",\"p\":{\"id\":1}}]\n"
                  "0 #1 @1+0: [1] NULL\n"
                  "1 #2 @1+29: [2] [{\"p\":{\"id\":2}}]\n"
                  "1 #3 @1+29: [2] [{\"p\":{\"id\":2}}]\n"
                  "= 4 0 43\n");
    /* all rows of an event or none: the second rule finds its id to be no number */
    expect_events("{\"type\":\"user\",\"p\":{\"id\":1}} {\"type\":\"user\",\"p\":{}}", &events, 0,
                  "INPUT: line 1, column 30: id is missing: expected bigint at /p/id (byte offset 29)\n");
}

static void what_is_no_json_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"{\"a\":1,}", "line 1, column 8: expected a key in quotes behind ',', found '}' (byte offset 7)"},
        {"{,}", "line 1, column 2: expected a key in quotes or '}', found ',' (byte offset 1)"},
        {"{\"a\" 1}", "line 1, column 6: expected ':' behind a key, found '1' (byte offset 5)"},
        {"{\"a\":}", "line 1, column 6: expected a value, found '}' (byte offset 5)"},
        {"{\"a\":1 \"b\":2}", "line 1, column 8: expected ',' or '}', found '\"' (byte offset 7)"},
        {"{\"a\":[1,]}", "line 1, column 9: expected a value, found ']' (byte offset 8)"},
        {"{\"a\":[1 2]}", "line 1, column 9: expected ',' or ']', found '2' (byte offset 8)"},
        {"{\"a\":01}", "line 1, column 6: expected a number, found one with a zero in front (byte offset 5)"},
        {"{\"a\":1.}", "line 1, column 8: expected a digit, found '}' (byte offset 7)"},
        {"{\"a\":-}", "line 1, column 7: expected a digit, found '}' (byte offset 6)"},
        {"{\"a\":+1}", "line 1, column 6: expected a value, found '+' (byte offset 5)"},
        {"{\"a\":.5}", "line 1, column 6: expected a value, found '.' (byte offset 5)"},
        {"{\"a\":1e}", "line 1, column 8: expected a digit, found '}' (byte offset 7)"},
        {"{\"a\":tru}", "line 1, column 6: expected a value, found 't' (byte offset 5)"},
        {"{\"a\":NaN}", "line 1, column 6: expected a value, found 'N' (byte offset 5)"},
        {"{'a':1}", "line 1, column 2: expected a key in quotes or '}', found ''' (byte offset 1)"},
        {"{\"type\":\"user\",\"p\":{\"id\":1}} // no",
         "line 1, column 30: expected a value, found '/' (byte offset 29)"},
        {"{\"a\":\"\\x\"}",
         "line 1, column 8: expected one of \" \\ / b f n r t u behind a backslash, found 'x' (byte offset 7)"},
        {"{\"a\":\"\\u12g4\"}",
         "line 1, column 11: expected four hexadecimal digits behind \\u, found 'g' (byte offset 10)"},
        {"{\"a\":\"x\ny\"}",
         "line 1, column 8: expected a quote, found the end of the line inside a text (written \\n) "
         "(byte offset 7)"},
        {"{\"a\":\"x\ty\"}",
         "line 1, column 8: control character 0x09 in a text, expected it as \\u0009 (byte offset 7)"},
        {"{\n \"\xC3\xA9\":\"\xC3(\"}", "line 2, column 7: byte 0xC3 is not UTF-8 (byte offset 9)"},
        {"{\"a\":\"\xED\xA0\x80\"}", "line 1, column 7: byte 0xED is not UTF-8 (byte offset 6)"},
        {"{\"a\":\"\xC0\x80\"}", "line 1, column 7: byte 0xC0 is not UTF-8 (byte offset 6)"},
        {"{\"a\":\"\xF4\x90\x80\x80\"}", "line 1, column 7: byte 0xF4 is not UTF-8 (byte offset 6)"},
        {"[{\"type\":\"user\",\"p\":{\"id\":1}} {}]",
         "line 1, column 31: expected ',' or ']' behind an event of an array (byte offset 30)"},
        {"[{\"type\":\"user\",\"p\":{\"id\":1}},]",
         "line 1, column 31: expected an event behind ',', found ']' (byte offset 30)"},
        {"[{\"type\":\"user\",\"p\":{\"id\":1}}]\nx",
         "line 2, column 1: expected nothing behind the array of events, found more text (byte offset 31)"},
        {"[]", "line 1, column 2: not an object: expected an event ({...}), found an empty array (byte offset 1)"},
        {"[[]]", "line 1, column 2: not an object: expected an event ({...}), found an array (byte offset 1)"},
        {"12", "line 1, column 1: not an object: expected an event ({...}), found a number (byte offset 0)"},
        {"\"x\"", "line 1, column 1: not an object: expected an event ({...}), found a text (byte offset 0)"},
        {"null", "line 1, column 1: not an object: expected an event ({...}), found null (byte offset 0)"},
        {"{\"type\":\"user\",\"p\":{\"id\":1},\"p\":{\"id\":2}}",
         "line 1, column 1: /p is there twice, and nobody can know which one is meant (byte offset 0)"},
        {"{\"type\":\"user\",\"p\":{\"id\":1,\"i\\u0064\":1}}",
         "line 1, column 1: /p/id is there twice, and nobody can know which one is meant (byte offset 0)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char want[400];
        char *out = events_of(cases[i].text, &two_tables, 0);
        snprintf(want, sizeof want, "INPUT: %s\n", cases[i].want);
        const char *said = strstr(out, "INPUT: "); /* behind the rows of good events before it */
        if (said == NULL || strcmp(said, want) != 0)
            print_error("text: %s\n%s", cases[i].text, out);
        assert_non_null(said);
        assert_string_equal(said, want);
        free(out);
    }
}

static void keys_that_no_rule_asks_for_may_repeat(void **state)
{
    (void)state;
    expect_events("{\"x\":1,\"x\":2,\"type\":\"user\",\"p\":{\"id\":1,\"y\":{},\"y\":[]}}", &two_tables, 0,
                  "0 #0 @1+0: [1] NULL\n= 1 0 54\n");
}

static void nesting_is_bounded(void **state)
{
    (void)state;
    char text[3 * EVENT_DEPTH];
    const struct event_options events = one_column(EVENT_BIGINT, false, NULL);
    for (int depth = EVENT_DEPTH - 1; depth <= EVENT_DEPTH; depth++) {
        struct buf b;
        buf_init(&b);
        buf_adds(&b, "{\"a\":");
        for (int i = 0; i < depth; i++)
            buf_addc(&b, '[');
        for (int i = 0; i < depth; i++)
            buf_addc(&b, ']');
        buf_addc(&b, '}');
        if (depth < EVENT_DEPTH)
            snprintf(text, sizeof text, "0 #0 @1+0: NULL\n= 1 0 %zu\n", b.size);
        else
            snprintf(text, sizeof text,
                     "INPUT: line 1, column 261: objects and arrays inside each other more than 256 deep (byte offset "
                     "260)\n");
        expect_events(b.data, &events, 0, text);
        buf_done(&b);
    }
}

static void a_long_event_is_an_error_and_no_allocation(void **state)
{
    (void)state;
    struct event_options events = one_column(EVENT_TEXT, false, NULL);
    events.max_event = 100;
    struct buf b;
    for (size_t length = 99; length <= 102; length++) {
        char want[120];
        buf_init(&b);
        buf_adds(&b, "{\"v\":1}\n{\"v\":\"");
        while (b.size < 8 + length - 2)
            buf_addc(&b, 'x');
        buf_adds(&b, "\"}");
        if (length <= 100) {
            char *out = events_of(b.data, &events, 0);
            assert_non_null(strstr(out, "\n= 2 0 "));
            free(out);
        } else {
            snprintf(want, sizeof want,
                     "INPUT: line 2, column 1: an event of more than 100 B; max_event allows no longer one (byte "
                     "offset 8)\n");
            expect_events(b.data, &events, 1, want); /* nor may it be skipped: nobody knows where it ends */
        }
        buf_done(&b);
    }
    /* nor is a longer line left out, whether its end is in memory or not */
    buf_init(&b);
    buf_adds(&b, "{\"v\" ");
    while (b.size < 101)
        buf_addc(&b, 'x');
    expect_events(b.data, &events, 1,
                  "INPUT: line 1, column 1: an event of more than 100 B; max_event allows no longer one (byte offset "
                  "0)\n");
    buf_done(&b);
    /* one that never ends is not read to the end of the file */
    char *endless = malloc(4 << 20);
    assert_non_null(endless);
    memset(endless, ' ', 4 << 20);
    endless[0] = '{';
    char *out = events_n(endless, 4 << 20, &events, 0, NULL);
    assert_non_null(strstr(out, "an event of more than 100 B"));
    free(out);
    free(endless);
}

static void a_bad_event_may_be_left_out_with_its_text(void **state)
{
    (void)state;
    static const char text[] = "{\"type\":\"user\",\"p\":{\"id\":1}}\n"
                               "{\"type\":\"user\",\"p\":{\"id\":\"x\"}}\n"
                               "{\"type\":\"user\",\"p\":{\"id\":2}}\n"
                               " [1,\n2]\n"
                               "{\"type\":\"user\",\"p\":{\"id\":3}}\n";
    expect_events(text, &two_tables, 2,
                  "0 #0 @1+0: [1] NULL\n"
                  "0 #2 @3+60: [2] NULL\n"
                  "0 #4 @6+97: [3] NULL\n"
                  "= 5 2 126\n"
                  "! 2+29 line 2, column 26: id (/p/id): expected bigint (a whole number within 64 bits), found the "
                  "text \"x\" (byte offset 54): [{\"type\":\"user\",\"p\":{\"id\":\"x\"}}]\n"
                  "! 4+90 line 4, column 2: not an object: expected an event ({...}), found an array (byte offset 90): "
                  "[[1,\\x0A2]]\n");
    char *out = events_of(text, &two_tables, 1);
    assert_non_null(strstr(out, "INPUT: 2 bad rows, and bad_rows allows 1; the last one: line 4, column 2: not an "));
    free(out);
}

#define GOOD "{\"type\":\"user\",\"p\":{\"id\":1}}\n"
static void only_where_lines_are_events_broken_json_costs_one_line(void **state)
{
    (void)state;
    expect_events(GOOD "{\"type\":\"user\" \"p\":{}}\n" GOOD, &two_tables, 1,
                  "0 #0 @1+0: [1] NULL\n0 #2 @3+52: [1] NULL\n= 3 1 81\n"
                  "! 2+29 line 2, column 16: expected ',' or '}', found '\"' (byte offset 44): [{\"type\":\"user\" "
                  "\"p\":{}}]\n");
    /* a line that was torn off, with a whole one behind it */
    expect_events("{\"type\":\"us\n" GOOD, &two_tables, 1,
                  "0 #1 @2+12: [1] NULL\n= 2 1 41\n"
                  "! 1+0 line 1, column 12: expected a quote, found the end of the line inside a text (written \\n) "
                  "(byte offset 11): [{\"type\":\"us]\n");
    /* several lines an event, two events a line, an array: nobody knows where the next one begins */
    expect_events("{\"type\":\"user\",\n\"p\":{\"id\":1}}\n{]}\n", &two_tables, 9,
                  "INPUT: line 3, column 2: expected a key in quotes or '}', found ']' (byte offset 31)\n");
    expect_events("{\"type\" {\n \"a\":1}\n}\n", &two_tables, 9,
                  "INPUT: line 1, column 9: expected ':' behind a key, found '{' (byte offset 8)\n");
    expect_events("{} {]}\n" GOOD, &two_tables, 9,
                  "! 1+0 line 1, column 1: no rule of records takes this event: found nothing at /type; expected there "
                  "'user', 'card', 'karta' (byte offset 0): [{}]\n"
                  "INPUT: line 1, column 5: expected a key in quotes or '}', found ']' (byte offset 4)\n");
    expect_events("[{]}]\n", &two_tables, 9,
                  "INPUT: line 1, column 3: expected a key in quotes or '}', found ']' (byte offset 2)\n");
}

static void a_row_that_the_driver_refuses_is_kept_as_its_event(void **state)
{
    (void)state;
    struct buf rejects;
    struct arena arena;
    struct event_options events = two_tables;
    struct shape *shape;
    struct rows *rows;
    const struct row_batch *b;
    struct err err;
    static const char text[] = GOOD "{\"type\":\"user\",\"p\":{\"id\":2}}\n";
    int fd = test_file(text, sizeof text - 1);
    buf_init(&rejects);
    arena_init(&arena);
    struct inspect_options options = {
        .events = &events, .skip_bad_rows = 1, .sink = {&rejects, test_put, test_restart}};
    assert_int_equal(event_compile(&events, &arena, &err), ERR_NONE);
    assert_int_equal(inspect_events(fd, &options, &arena, &shape, &rows, &err), ERR_NONE);
    for (int pass = 0; pass < 2; pass++) {
        assert_int_equal(rows_next(rows, &b, &err), ERR_NONE);
        assert_int_equal(b->rows, 2);
        assert_int_equal(rows_reject(rows, 1, 0, "no such id", &err), ERR_NONE);
        assert_int_equal(rows_reject(rows, 0, 0, "nor this", &err), ERR_INPUT);
        assert_string_equal(err.text,
                            "2 bad rows, and bad_rows allows 1; the last one: line 1: nor this (byte offset 0)");
        assert_int_equal(rows_rewind(rows, &err), ERR_NONE);
    }
    assert_int_equal(rows_next(rows, &b, &err), ERR_NONE);
    assert_int_equal(rows_next(rows, &b, &err), ERR_NONE);
    assert_int_equal(b->rows, 0);
    assert_int_equal(rows->result.rejected, 0);
    assert_int_equal(rows->result.records, 2);
    rows_free(rows);
    assert_string_equal(
        rejects.data, "! 2+29 line 2: no such id (byte offset 29): [{\"type\":\"user\",\"p\":{\"id\":2}}]\nrestart\n"
                      "! 2+29 line 2: no such id (byte offset 29): [{\"type\":\"user\",\"p\":{\"id\":2}}]\nrestart\n");
    buf_done(&rejects);
    arena_done(&arena);
    close(fd);
}

/* ---- sweeps */

static const char sample[] =
    "\xEF\xBB\xBF{\"type\": \"user\", \"p\": {\"id\": 10, \"name\": \"J\\u00f3ž\\n\\ud83d\\ude00\"}}\n"
    "{\"p\":\n {\"active\": true, \"id\": -3}, \"x\": [null, false, -1.5e-3, \"\xF0\x9F\x98\x80\"],"
    "\n\"type\": \"card\"}\n\n{\"type\":\"user\",\"p\":{\"id\":3}}";

static void every_cut_is_waited_for_and_never_accepted(void **state)
{
    (void)state;
    char array[sizeof sample + 8];
    const char *end = strchr(sample, '\n');
    snprintf(array, sizeof array, "[%.*s]", (int)(end - sample - 3), sample + 3);
    const size_t size = strlen(array);
    for (size_t n = 0; n < size; n++) {
        enum err_code code;
        char *out = events_n(array, n, &two_tables, 9, &code);
        if (n == 0)
            assert_string_equal(out, "empty\n");
        else
            assert_int_equal(code, ERR_INCOMPLETE);
        free(out);
    }
    /* A sequence is whole behind each of its events, and nowhere else. */
    size_t whole = 0;
    for (size_t n = 3; n <= sizeof sample - 1; n++) {
        enum err_code code;
        char *out = events_n(sample, n, &two_tables, 9, &code);
        if (code == ERR_NONE)
            whole++;
        else
            assert_int_equal(code, ERR_INCOMPLETE);
        bool is_between = n == 3 || sample[n - 1] == '\n' || sample[n - 1] == '}';
        assert_true(code != ERR_NONE || is_between);
        free(out);
    }
    assert_int_equal(whole, 1 + 2 + 3 + 1); /* nothing; behind '}' and line ends; the end */
}

static void no_edge_of_a_block_changes_anything(void **state)
{
    (void)state;
    char *want = events_n(sample, sizeof sample - 1, &two_tables, 0, NULL);
    assert_non_null(strstr(want, "\n= 3 0 "));
    for (size_t block = 1; block < sizeof sample; block++)
        for (size_t batch = 0; batch < 3; batch++) {
            inspect_knobs.block = block;
            inspect_knobs.batch_bytes = batch * 80;
            char *out = events_n(sample, sizeof sample - 1, &two_tables, batch, NULL);
            inspect_knobs.block = inspect_knobs.batch_bytes = 0;
            assert_string_equal(out, want);
            free(out);
        }
    free(want);
}

static void broken_lines_are_the_same_at_every_edge_of_a_block(void **state)
{
    (void)state;
    static const char text[] = GOOD "{\"type\": \"us\n" GOOD "{\"a\":1 2}\r\n" GOOD "{\"b\"}";
    char *want = events_n(text, sizeof text - 1, &two_tables, 3, NULL);
    assert_non_null(strstr(want, "\n= 6 3 "));
    for (size_t block = 1; block < sizeof text; block++) {
        inspect_knobs.block = block;
        char *out = events_n(text, sizeof text - 1, &two_tables, 3, NULL);
        inspect_knobs.block = 0;
        assert_string_equal(out, want);
        free(out);
    }
    free(want);
}

static void every_failed_allocation_is_told(void **state)
{
    (void)state;
    char *want = events_n(sample, sizeof sample - 1, &two_tables, 2, NULL);
    int fd = test_file(sample, sizeof sample - 1);
    ALLOC_FAULT_SWEEP
    {
        struct event_options events = two_tables;
        struct arena arena;
        struct shape *shape;
        struct rows *rows = NULL;
        struct err err;
        const struct row_batch *b = NULL;
        const struct inspect_options options = {.events = &events, .skip_bad_rows = 2};
        inspect_knobs.block = 16;
        arena_init(&arena);
        enum err_code code = event_compile(&events, &arena, &err);
        if (code == ERR_NONE)
            code = inspect_events(fd, &options, &arena, &shape, &rows, &err);
        while (code == ERR_NONE && (code = rows_next(rows, &b, &err)) == ERR_NONE && b->rows > 0)
            continue;
        if (alloc_fault_hit()) {
            assert_int_equal(code, ERR_SYSTEM);
            assert_true(err.retryable);
        } else {
            assert_int_equal(code, ERR_NONE);
            assert_int_equal(rows->result.records, 3);
        }
        rows_free(rows);
        arena_done(&arena);
        inspect_knobs.block = 0;
    }
    close(fd);
    free(want);
}

/* ---- compressed, large */

static size_t gzip_of(const char *text, size_t n, void *to, size_t size)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)(uintptr_t)text;
    z.avail_in = (unsigned)n;
    z.next_out = to;
    z.avail_out = (unsigned)size;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return size - z.avail_out;
}

static void gzip_is_told_by_content_and_its_cuts_are_waited_for(void **state)
{
    (void)state;
    char packed[1024];
    size_t n = gzip_of(sample, sizeof sample - 1, packed, sizeof packed);
    char *plain = events_n(sample, sizeof sample - 1, &two_tables, 0, NULL);
    char *out = events_n(packed, n, &two_tables, 0, NULL);
    *strstr(plain, "\n= ") = *strstr(out, "\n= ") = '\0'; /* the bytes on disk differ */
    assert_string_equal(out, plain);
    free(out);
    free(plain);
    for (size_t cut = 1; cut < n; cut++) {
        enum err_code code;
        out = events_n(packed, cut, &two_tables, 0, &code);
        assert_int_equal(code, ERR_INCOMPLETE);
        free(out);
    }
}

static void a_large_array_is_read_element_by_element(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    const int count = 20000;
    for (int i = 0; i < count; i++)
        buf_printf(&b, "%s{\"type\":\"%s\",\"p\":{\"id\":%d}}", i == 0 ? "[" : ",\n", i % 3 == 0 ? "card" : "user", i);
    buf_addc(&b, ']');
    assert_true(b.size > 2 * EVENT_HEAD_BYTES);
    int fd = test_file(b.data, b.size);
    struct event_options events = two_tables;
    events.max_event = 64; /* far less than the array */
    struct arena arena;
    struct shape *shape;
    struct rows *rows;
    const struct row_batch *batch;
    struct err err;
    arena_init(&arena);
    const struct inspect_options options = {.events = &events};
    assert_int_equal(event_compile(&events, &arena, &err), ERR_NONE);
    assert_int_equal(inspect_events(fd, &options, &arena, &shape, &rows, &err), ERR_NONE);
    assert_false(shape->is_whole);
    for (int pass = 0; pass < 2; pass++) {
        int seen[2] = {0, 0}, next[2] = {1, 0};
        while (rows_next(rows, &batch, &err) == ERR_NONE && batch->rows > 0)
            for (size_t r = 0; r < batch->rows; r++) {
                char want[16];
                int n = snprintf(want, sizeof want, "%d", next[batch->part]);
                assert_int_equal(batch->record[r], next[batch->part]);
                assert_int_equal(batch->line[r], next[batch->part] + 1);
                assert_int_equal(batch->length[r * batch->columns], n);
                assert_memory_equal(batch->value[r * batch->columns], want, n);
                seen[batch->part]++;
                next[batch->part] += batch->part == 1 ? 3 : next[0] % 3 == 1 ? 1 : 2;
            }
        assert_int_equal(seen[0] + seen[1], count);
        assert_int_equal(rows->result.records, count);
        assert_int_equal(rows->result.bytes, b.size);
        assert_int_equal(rows_rewind(rows, &err), ERR_NONE);
    }
    rows_free(rows);
    arena_done(&arena);
    close(fd);
    buf_done(&b);
}

/* Its text is given back while it waits for its turn, and read again. */
static void a_file_that_is_not_quite_small_is_read_twice(void **state)
{
    (void)state;
    struct buf b, want;
    buf_init(&b);
    buf_init(&want);
    for (int i = 0; i < 40; i++) {
        buf_printf(&want, "0 #%d @%d+%zu: [%d] [%01000d]\n", i, i + 1, b.size, i, i);
        buf_printf(&b, "{\"type\":\"user\",\"p\":{\"id\":%d,\"name\":\"%01000d\"}}\n", i, i);
    }
    buf_printf(&want, "= 40 0 %zu\n", b.size);
    assert_true(b.size > 32 * 1024 && b.size < EVENT_HEAD_BYTES);
    expect_events(b.data, &two_tables, 0, want.data);
    buf_done(&b);
    buf_done(&want);
}

static void pointers_and_defaults_are_checked(void **state)
{
    (void)state;
    static const char *const good[] = {"", "/", "/a", "/a~0b~1/0", "//"};
    static const char *const wrong[] = {"a", "a/b", "/~", "/~2", "/a~", "/a/-"};
    struct err err;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(event_pointer_check(good[i], &err));
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_false(event_pointer_check(wrong[i], &err));
        assert_int_equal(err.code, ERR_CONFIG);
    }
    static const struct {
        enum event_type type;
        const char *text;
        bool fits;
    } cases[] = {
        {EVENT_BIGINT, "0", true},
        {EVENT_BIGINT, "-12", true},
        {EVENT_BIGINT, "1.0", false},
        {EVENT_BIGINT, "", false},
        {EVENT_BIGINT, "x", false},
        {EVENT_DOUBLE, "1e5", true},
        {EVENT_DOUBLE, "1e999", false},
        {EVENT_DOUBLE, "true", false},
        {EVENT_DOUBLE, "1 2", false},
        {EVENT_DECIMAL, "0.10", true},
        {EVENT_DECIMAL, "1e5", false},
        {EVENT_BOOLEAN, "false", true},
        {EVENT_BOOLEAN, "no", false},
        {EVENT_DATE, "2024-01-01", true},
        {EVENT_DATE, "2024-1-1", false},
        {EVENT_TIMESTAMP, "2024-01-01 00:00:00", true},
        {EVENT_TIMESTAMP, "2024-01-01 00:00:00Z", false},
        {EVENT_TIMESTAMPTZ, "2024-01-01 00:00:00Z", true},
        {EVENT_TEXT, "", true},
        {EVENT_TEXT, "\xFF", false},
        {EVENT_JSON, " {\"a\": [1]} ", true},
        {EVENT_JSON, "{\"a\": [1]} x", false},
        {EVENT_JSON, "", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (event_default_check(cases[i].type, cases[i].text, &err) != cases[i].fits)
            fail_msg("%s as %s", cases[i].text, event_type_names[cases[i].type]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_rule_that_matches_takes_an_event),
        cmocka_unit_test(one_event_an_array_and_a_sequence_are_read),
        cmocka_unit_test(every_digit_reaches_the_column_or_the_event_is_bad),
        cmocka_unit_test(what_is_missing_gets_the_default_and_null_does_not),
        cmocka_unit_test(pointers_reach_into_objects_and_arrays),
        cmocka_unit_test(when_compares_texts_numbers_and_booleans),
        cmocka_unit_test(an_event_that_no_rule_takes_says_what_was_found),
        cmocka_unit_test(a_rule_that_continues_lets_later_ones_see_the_event),
        cmocka_unit_test(what_is_no_json_is_refused_with_its_place),
        cmocka_unit_test(keys_that_no_rule_asks_for_may_repeat),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(a_long_event_is_an_error_and_no_allocation),
        cmocka_unit_test(a_bad_event_may_be_left_out_with_its_text),
        cmocka_unit_test(only_where_lines_are_events_broken_json_costs_one_line),
        cmocka_unit_test(a_row_that_the_driver_refuses_is_kept_as_its_event),
        cmocka_unit_test(every_cut_is_waited_for_and_never_accepted),
        cmocka_unit_test(no_edge_of_a_block_changes_anything),
        cmocka_unit_test(broken_lines_are_the_same_at_every_edge_of_a_block),
        cmocka_unit_test(every_failed_allocation_is_told),
        cmocka_unit_test(gzip_is_told_by_content_and_its_cuts_are_waited_for),
        cmocka_unit_test(a_large_array_is_read_element_by_element),
        cmocka_unit_test(a_file_that_is_not_quite_small_is_read_twice),
        cmocka_unit_test(pointers_and_defaults_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
