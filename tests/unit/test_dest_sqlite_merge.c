/* test_dest_sqlite_merge.c -- rows that meet rows with the same key: any order of arrival gives one table, and the
 * numbers add up. */
#include "lite_test.h"

static const char *const key_id[] = {"id"};
static const char *const order_at[] = {"at"};

static void use(struct fixture *f, enum load_mode mode, bool has_order)
{
    f->plan.mode = mode;
    f->plan.key = (struct option_strings){key_id, 1};
    f->plan.order_by = has_order ? (struct option_strings){order_at, 1} : (struct option_strings){NULL, 0};
}

/* Load and compare the counts: inserted, updated, unchanged, rejected. */
static void assert_counts(struct fixture *f, const char *table, const char *path, const char *text, size_t head,
                          const char *counts)
{
    char found[64];
    struct test_load *l = make_load(f, table, path, text, head);
    ((struct text_rows *)l->base.rows)->skip = 5;
    run_load(f, l);
    if (l->base.err.code != ERR_NONE)
        fail_msg("%s", l->base.err.text);
    const struct receipt *r = &l->base.receipt;
    snprintf(found, sizeof(found), "%d %d %d %d", (int)r->inserted, (int)r->updated, (int)r->unchanged,
             (int)r->rejected);
    assert_string_equal(found, counts);
    free_load(l);
}

static void upsert_inserts_updates_and_the_last_one_wins(void **state)
{
    struct fixture *f = *state;
    use(f, MODE_UPSERT, false);
    for (size_t head = 0; head < 2; head++) {
        const char *t = head == 0 ? "t" : "u";
        assert_counts(f, t, "a.csv", "id,v\n1,a\n2,b\n1,c\n,x\n", head, "2 0 1 1");
        assert_counts(f, t, "b.csv", "id,v\n1,c\n2,z\n3,y\n", head, "1 1 1 0");
        assert_string_equal(ask(f, head == 0 ? "SELECT * FROM t ORDER BY id" : "SELECT * FROM u ORDER BY id"),
                            "1|c\n2|z\n3|y");
    }
}

static void keep_first_keeps_what_came_first(void **state)
{
    struct fixture *f = *state;
    use(f, MODE_KEEP_FIRST, false);
    for (size_t head = 0; head < 2; head++) {
        const char *t = head == 0 ? "t" : "u";
        assert_counts(f, t, "a.csv", "id,v\n1,a\n1,c\n", head, "1 0 1 0");
        assert_counts(f, t, "b.csv", "id,v\n1,z\n2,y\n", head, "1 0 1 0");
        assert_string_equal(ask(f, head == 0 ? "SELECT * FROM t" : "SELECT * FROM u"), "1|a\n2|y");
    }
}

static void instants_are_compared_not_their_spelling(void **state)
{
    struct fixture *f = *state;
    use(f, MODE_NEWEST, true);
    assert_counts(f, "t", "a.csv", "id,at,v\n1,2024-01-01T12:00:00+02:00,a\n2,2024-01-01T10:00:00Z,a\n", 0, "2 0 0 0");
    assert_counts(f, "t", "b.csv", "id,at,v\n1,2024-01-01 11:00:00Z,b\n2,2024-01-01T10:00:00.5Z,b\n", 0, "0 2 0 0");
    assert_counts(f, "t", "c.csv", "id,at,v\n1,2024-01-01 23:00:00+14:00,c\n2,,c\n", 0, "0 0 2 0");
    assert_string_equal(ask(f, "SELECT group_concat(v) FROM t"), "b,b");
}

static void a_table_of_others_gets_a_unique_key(void **state)
{
    struct fixture *f = *state;
    use(f, MODE_UPSERT, false);
    f->plan.on_schema_change = SCHEMA_ADD_COLUMNS;
    ask(f, "CREATE TABLE t(nr INTEGER PRIMARY KEY, id TEXT COLLATE NOCASE, v TEXT, at TEXT DEFAULT 'now')");
    ask(f, "INSERT INTO t(id, v) VALUES('A', 'old')");
    assert_counts(f, "t", "a.csv", "id,v\na,new\nb,x\n", 0, "1 1 0 0");
    assert_string_equal(ask(f, "SELECT nr, id, v, at FROM t"), "1|A|new|now\n2|b|x|now");
    ask(f, "CREATE TABLE twice(id, v)");
    ask(f, "INSERT INTO twice VALUES(1, 2), (1, 3)");
    assert_int_equal(load_text(f, "twice", "a.csv", "id,v\n1,2\n", 0), ERR_INPUT);
    assert_says(f->answer, "unique in table twice");
}

static void replace_with_a_key_refuses_a_repeated_one(void **state)
{
    struct fixture *f = *state;
    use(f, MODE_REPLACE, false);
    for (size_t head = 0; head < 2; head++) {
        const char *t = head == 0 ? "t" : "u";
        assert_int_equal(load_text(f, t, "a.csv", "id,v\n1,a\n1,b\n", head), ERR_INPUT);
        assert_says(f->answer, "line 3");
        assert_counts(f, t, "a.csv", "id,v\n1,a\n1,b\n,c\n2,d\n", head, "2 0 0 2");
        assert_counts(f, t, "a.csv", "id,v\n7,a\n", head, "1 0 0 0");
    }
}

#define EVENTS 24
static void any_order_of_arrival_gives_one_table(void **state)
{
    struct fixture *f = *state;
    char text[EVENTS][64], path[16], table[16], sql[128], want[4096] = "";
    static const char *const times[] = {"", "3", "10", "10", "7"};
    srand(7);
    for (int i = 0; i < EVENTS; i++)
        snprintf(text[i], sizeof(text[i]), "%d,%s,%s\n", rand() % 5, times[rand() % 5],
                 rand() % 3 == 0 ? ""
                 : rand() % 2    ? "x"
                                 : "y");
    for (int mode = 0; mode < 2; mode++) {
        use(f, mode == 0 ? MODE_NEWEST : MODE_KEEP_FIRST, true);
        for (int round = 0; round < 25; round++) {
            int order[EVENTS], at = 0, file = 0;
            for (int i = 0; i < EVENTS; i++)
                order[i] = i;
            for (int i = EVENTS - 1; i > 0; i--) {
                int k = rand() % (i + 1), kept = order[i];
                order[i] = order[k];
                order[k] = kept;
            }
            snprintf(table, sizeof(table), "t%d_%d", mode, round);
            snprintf(sql, sizeof(sql), "CREATE TABLE %s(id BIGINT, at BIGINT, v TEXT)", table);
            ask(f, sql);
            while (at < EVENTS) {
                char body[2048] = "id,at,v\n";
                int count = 1 + rand() % 6;
                for (int i = 0; i < count && at < EVENTS; i++)
                    strcat(body, text[order[at++]]);
                snprintf(path, sizeof(path), "%d.csv", file++);
                assert_loads(f, table, path, body, rand() % 3 == 0);
            }
            snprintf(sql, sizeof(sql), "SELECT * FROM %s ORDER BY id", table);
            if (round == 0)
                snprintf(want, sizeof(want), "%s", ask(f, sql));
            assert_string_equal(ask(f, sql), want);
        }
    }
}

static void header_differences_are_told_in_words(void **state)
{
    char text[128];
    (void)state;
    const char *const abc[] = {"a", "b", "c"};
    const char *const xyz[] = {"A", "q", "c"};
    const char *const cab[] = {"c", "a", "b"};
    const char *const ab[] = {"a", "b"};
    assert_int_equal(header_compare(abc, 3, abc, 3, name_same_nocase, text, sizeof(text)), 0);
    assert_int_equal(header_compare(abc, 3, xyz, 3, name_same_nocase, text, sizeof(text)), HEADER_RENAMED);
    assert_string_equal(text, "renamed: b -> q");
    assert_int_equal(header_compare(abc, 3, cab, 3, name_same_nocase, text, sizeof(text)), HEADER_REORDERED);
    assert_string_equal(text, "reordered: a, b");
    assert_int_equal(header_compare(abc, 3, ab, 2, name_same_nocase, text, sizeof(text)), HEADER_MISSING);
    assert_string_equal(text, "missing: c");
    assert_int_equal(header_compare(ab, 2, cab, 3, name_same_nocase, text, sizeof(text)), HEADER_EXTRA);
    assert_string_equal(text, "extra: c");
    assert_int_equal(header_compare(abc, 3, xyz, 3, name_same_nocase, text, 10), HEADER_RENAMED);
    assert_string_equal(text, "rename...");
}

static void values_are_read_without_loss(void **state)
{
    int64_t i, s;
    double d;
    uint32_t ns;
    (void)state;
    assert_true(value_int64("-9223372036854775808", 20, &i) && i == INT64_MIN);
    assert_false(value_int64("9223372036854775808", 19, &i));
    assert_false(value_int64("+1", 2, &i) || value_int64("01", 2, &i) || value_int64("-0", 2, &i) ||
                 value_int64("", 0, &i));
    srand(3);
    for (int n = 0; n < 20000; n++) {
        char text[64];
        int scale = rand() % 30;
        unsigned long digits = (unsigned long)rand() * (unsigned long)(rand() % 400000 + 1) % 1000000000000000ul;
        char whole[32];
        snprintf(whole, sizeof(whole), "%0*lu", scale + 1, digits);
        size_t len = strlen(whole), point = len - (size_t)scale;
        snprintf(text, sizeof(text), "%.*s%s%s", (int)point, whole, scale > 0 ? "." : "", whole + point);
        if (text[0] == '0' && text[1] != '.' && text[1] != '\0')
            continue;
        assert_true(value_double(text, strlen(text), &d));
        if (d != strtod(text, NULL))
            fail_msg("%s is read as %.17g", text, d);
    }
    assert_false(value_double("1.", 2, &d) || value_double(".5", 2, &d) || value_double("1234567890123456", 16, &d));
    assert_true(value_date("2024-02-29", 10));
    assert_false(value_date("2023-02-29", 10) || value_date("2024-13-01", 10) || value_date("2024-1-01", 9));
    assert_true(value_instant("1970-01-02T00:00:00.25+01:00", 28, &s, &ns) && s == 82800 && ns == 250000000);
    assert_false(value_timestamp("2024-01-01 25:00", 16, false) || value_timestamp("2024-01-01", 10, false));
}

#define one(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        one(upsert_inserts_updates_and_the_last_one_wins),      one(keep_first_keeps_what_came_first),
        one(instants_are_compared_not_their_spelling),          one(a_table_of_others_gets_a_unique_key),
        one(replace_with_a_key_refuses_a_repeated_one),         one(any_order_of_arrival_gives_one_table),
        cmocka_unit_test(header_differences_are_told_in_words), cmocka_unit_test(values_are_read_without_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
