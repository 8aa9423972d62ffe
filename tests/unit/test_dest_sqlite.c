/* test_dest_sqlite.c -- files become tables: modes, types, names, schema changes, receipts. */
#include "lite_test.h"

static const char types_csv[] = "id,price,when,ok,name\n1,2.5,2024-01-02,True,\"a,b\"\n2,,2024-01-03,False,\n";

static void a_new_file_becomes_a_table_with_inferred_types(void **state)
{
    struct fixture *f = *state;
    f->plan.row_number = "index";
    assert_loads(f, "types", "types.csv", types_csv, 0);
    assert_string_equal(ask(f, "SELECT name || ' ' || type FROM pragma_table_info('types')"),
                        "index BIGINT\nid BIGINT\nprice DOUBLE\nwhen TEXT\nok BOOLEAN\nname TEXT");
    assert_string_equal(ask(f, "SELECT * FROM types"), "0|1|2.5|2024-01-02|1|a,b\n1|2|NULL|2024-01-03|0|NULL");
    assert_string_equal(ask(f, "PRAGMA journal_mode"), "wal");
    assert_string_equal(
        ask(f, "SELECT kind, flow, path, \"table\", parsed, inserted, updated, unchanged, rejected FROM _chute_loads"),
        "load|flow|types.csv|types|2|2|0|0|0");
}

static void words_and_numbers_are_fine_table_names(void **state)
{
    struct fixture *f = *state;
    f->plan.row_number = "index";
    assert_loads(f, "group", "group.csv", "order,select\n1,2\n", 0);
    assert_loads(f, "2024-01", "2024-01.csv", "x\n1\n", 0);
    assert_loads(f, "column_named_index", "column_named_index.csv", "index,b\n1,2\n", 0);
    assert_loads(f, "odd \"name\"", "odd.csv", "a \"b\",c\n1,2\n", 0);
    assert_string_equal(ask(f, "SELECT \"order\", \"select\" FROM \"group\""), "1|2");
    assert_string_equal(ask(f, "SELECT x FROM \"2024-01\""), "1");
    assert_string_equal(ask(f, "SELECT group_concat(name) FROM pragma_table_info('column_named_index')"),
                        "index.1,index,b");
    assert_string_equal(ask(f, "SELECT * FROM \"odd \"\"name\"\"\""), "0|1|2");
}

static void leading_zeros_long_numbers_and_words_stay_text(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a,b,c,d\n007,1234567890.123456,9223372036854775808,-0\n008,1.5,1,5\n", 0);
    assert_string_equal(ask(f, "SELECT group_concat(type) FROM pragma_table_info('t')"), "TEXT,TEXT,TEXT,DOUBLE");
    assert_string_equal(ask(f, "SELECT a,b,c FROM t"), "007|1234567890.123456|9223372036854775808\n008|1.5|1");
}

static void replace_takes_the_place_of_what_was_there(void **state)
{
    struct fixture *f = *state;
    for (size_t head = 0; head < 2; head++) {
        assert_loads(f, "t", "t.csv", "a,b\n1,x\n2,y\n", head);
        assert_string_equal(ask(f, "SELECT * FROM t"), "1|x\n2|y");
        assert_loads(f, "t", "t.csv", "a,b\n3,z\n", head);
        assert_string_equal(ask(f, "SELECT * FROM t"), "3|z");
        assert_loads(f, "t", "t.csv", "a,c,d\n3,z,q\n", head);
        assert_string_equal(ask(f, "SELECT c, d FROM t"), "z|q");
        assert_loads(f, "t", "t.csv", "a\n", head);
        assert_string_equal(ask(f, "SELECT count(*) FROM t"), "0");
    }
    assert_string_equal(
        ask(f, "SELECT group_concat(name) FROM sqlite_schema WHERE name LIKE '\\_chute\\_new%' ESCAPE '\\' OR name LIKE"
               " '\\_chute\\_st%' ESCAPE '\\'"),
        "NULL");
}

/* Text of COUNT records "i,i*2" and a last line. */
static char *many(size_t count, const char *last)
{
    struct buf b;
    buf_init(&b);
    buf_adds(&b, "a,b\n");
    for (size_t i = 0; i < count; i++)
        buf_printf(&b, "%zu,%zu\n", i, i * 2);
    buf_adds(&b, last);
    return buf_take(&b);
}

static void a_value_in_the_last_row_still_gives_right_types(void **state)
{
    struct fixture *f = *state;
    char *text = many(3000, "x,2.5\n");
    struct test_load *l = run_load(f, make_load(f, "t", "t.csv", text, 10));
    assert_int_equal(l->base.err.code, ERR_NONE);
    assert_int_equal(((struct text_rows *)l->base.rows)->passes, 2);
    assert_int_equal(l->base.receipt.inserted, 3001);
    free_load(l);
    assert_string_equal(ask(f, "SELECT group_concat(type) FROM pragma_table_info('t')"), "TEXT,DOUBLE");
    assert_string_equal(ask(f, "SELECT count(*), sum(b), group_concat(DISTINCT typeof(a)) FROM t"),
                        "3001|8997002.5|text");
    free(text);
}

static void a_column_empty_in_the_head_gets_its_type_later(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a,b\n1,\n2,\n3,7\n", 2);
    assert_string_equal(ask(f, "SELECT group_concat(type) FROM pragma_table_info('t')"), "BIGINT,BIGINT");
    assert_loads(f, "u", "u.csv", "a,b\n1,\n2,\"\"\n3,\n", 2);
    assert_string_equal(ask(f, "SELECT group_concat(type) FROM pragma_table_info('u')"), "BIGINT,TEXT");
    assert_string_equal(ask(f, "SELECT quote(b) FROM u"), "NULL\n''\nNULL");
}

static void a_quoted_empty_field_is_null_where_the_column_has_a_type(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a,b\n1,\"\"\n\"\",x\n", 0);
    assert_string_equal(ask(f, "SELECT quote(a), quote(b) FROM t"), "1|''\nNULL|'x'");
}

static void the_types_of_a_table_bind_until_a_value_does_not_fit(void **state)
{
    struct fixture *f = *state;
    for (size_t head = 0; head < 2; head++) {
        const char *table = head == 0 ? "t" : "u";
        char sql[128];
        assert_loads(f, table, "t.csv", "a,b,e\n1.5,x,\n", head);
        assert_loads(f, table, "t.csv", "a,b,e\n2,7,5\n", head);
        snprintf(sql, sizeof(sql), "SELECT group_concat(type) FROM pragma_table_info('%s')", table);
        assert_string_equal(ask(f, sql), "DOUBLE,TEXT,BIGINT"); /* nothing had been in e: it binds nobody */
        assert_loads(f, table, "t.csv", "a,b,e\nq,7,5\n", head);
        assert_string_equal(ask(f, sql), "TEXT,BIGINT,BIGINT"); /* inferred anew */
    }
}

static void under_reject_a_misfit_names_line_and_column(void **state)
{
    struct fixture *f = *state;
    f->plan.on_schema_change = SCHEMA_REJECT;
    for (size_t head = 0; head < 2; head++) {
        const char *table = head == 0 ? "t" : "u";
        assert_loads(f, table, "t.csv", "a,b\n1,x\n", head);
        assert_int_equal(load_text(f, table, "t.csv", "a,b\n5,y\nsix,z\n", head), ERR_INPUT);
        assert_says(f->answer, "line 3");
        assert_says(f->answer, "column 1 (a)");
        assert_says(f->answer, "six");
        assert_int_equal(load_text(f, table, "t.csv", "b,a,c\nx,1,2\n", head), ERR_INPUT);
        assert_says(f->answer, "extra: c");
        assert_says(f->answer, "reordered: a");
        assert_string_equal(ask(f, head == 0 ? "SELECT * FROM t" : "SELECT * FROM u"), "1|x");
    }
}

static void add_columns_adds_and_fills_with_null(void **state)
{
    struct fixture *f = *state;
    f->plan.on_schema_change = SCHEMA_ADD_COLUMNS;
    f->plan.mode = MODE_APPEND;
    for (size_t head = 0; head < 2; head++) {
        const char *table = head == 0 ? "t" : "u";
        assert_loads(f, table, "a.csv", "a,b\n1,x\n", head);
        assert_loads(f, table, "b.csv", "c,a\n2.5,2\n", head);
        assert_string_equal(ask(f, head == 0 ? "SELECT * FROM t" : "SELECT * FROM u"), "1|x|NULL\n2|NULL|2.5");
    }
    assert_string_equal(
        ask(f, "SELECT count(*) FROM _chute_tables t JOIN sqlite_schema s ON s.name=t.name AND s.sql=t.sql"), "2");
}

static void append_adds_rows_and_each_version_once(void **state)
{
    struct fixture *f = *state;
    f->plan.mode = MODE_APPEND;
    for (size_t head = 0; head < 2; head++) {
        const char *table = head == 0 ? "t" : "u";
        const char *count = head == 0 ? "SELECT count(*) FROM t" : "SELECT count(*) FROM u";
        assert_loads(f, table, "a.csv", "a,b\n1,x\n", head);
        assert_loads(f, table, "b.csv", "a,b\n1,x\n", head);
        struct test_load *l = run_load(f, make_load(f, table, "a.csv", "a,b\n1,x\n", head));
        assert_int_equal(l->base.err.code, ERR_NONE);
        assert_true(l->base.receipt.is_duplicate);
        assert_int_equal(l->base.receipt.inserted, 1);
        free_load(l);
        assert_string_equal(ask(f, count), "2");
        f->plan.on_duplicate = DUPLICATE_RELOAD;
        assert_loads(f, table, "a.csv", "a,b\n1,x\n", head);
        f->plan.on_duplicate = DUPLICATE_SKIP;
        assert_string_equal(ask(f, count), "3");
        assert_int_equal(load_text(f, table, "c.csv", "a,b\nx,x\n", head), ERR_INPUT);
        assert_int_equal(load_text(f, table, "c.csv", "a,z\n1,x\n", head), ERR_INPUT);
        assert_says(f->answer, "renamed: b -> z");
        assert_string_equal(ask(f, count), "3");
    }
}

static void replace_compares_only_with_what_the_table_holds(void **state)
{
    struct fixture *f = *state;
    struct test_load *l;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    l = run_load(f, make_load(f, "t", "t.csv", "a\n1\n", 0));
    assert_true(l->base.receipt.is_duplicate);
    free_load(l);
    assert_loads(f, "t", "t.csv", "a\n2\n", 0);
    l = run_load(f, make_load(f, "t", "t.csv", "a\n1\n", 0));
    assert_false(l->base.receipt.is_duplicate);
    free_load(l);
    assert_string_equal(ask(f, "SELECT a FROM t"), "1");
    /* Dropped by hand: it holds nothing any more. */
    ask(f, "DROP TABLE t");
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    assert_string_equal(ask(f, "SELECT a FROM t"), "1");
}

static void the_same_attempt_is_never_written_twice(void **state)
{
    struct fixture *f = *state;
    f->plan.mode = MODE_APPEND;
    f->plan.on_duplicate = DUPLICATE_RELOAD;
    for (size_t head = 0; head < 2; head++)
        for (int i = 0; i < 2; i++) {
            struct test_load *l = make_load(f, "t", "a.csv", "a\n1\n", head);
            snprintf(l->key, sizeof(l->key), "one attempt %zu", head);
            run_load(f, l);
            assert_int_equal(l->base.err.code, ERR_NONE);
            assert_int_equal(l->base.receipt.is_duplicate, i == 1);
            assert_int_equal(l->base.receipt.is_resumed, i == 1);
            free_load(l);
        }
    assert_string_equal(ask(f, "SELECT count(*) FROM t"), "2");
    /* The file has changed since: what is told is what was written, and that it was this attempt. */
    struct test_load *l = make_load(f, "t", "a.csv", "a\n1\n2\n", 0);
    snprintf(l->key, sizeof(l->key), "one attempt 0");
    run_load(f, l);
    assert_true(l->base.receipt.is_resumed);
    assert_int_equal(l->base.receipt.parsed, 1);
    free_load(l);
    f->plan.on_duplicate = DUPLICATE_SKIP; /* known by its content: another attempt wrote that */
    l = run_load(f, make_load(f, "t", "a.csv", "a\n1\n", 0));
    assert_true(l->base.receipt.is_duplicate);
    assert_false(l->base.receipt.is_resumed);
    free_load(l);
}

static void the_tail_of_a_file_is_appended(void **state)
{
    struct fixture *f = *state;
    f->plan.mode = MODE_APPEND;
    f->plan.row_number = "n";
    assert_loads(f, "t", "a.csv", "a\n1\n2\n", 0);
    struct test_load *l = make_load(f, "t", "a.csv", "a\n1\n2\n3\n", 0);
    l->base.skip_records = 2;
    run_load(f, l);
    assert_int_equal(l->base.receipt.inserted, 1);
    assert_int_equal(l->base.receipt.unchanged, 2);
    free_load(l);
    assert_string_equal(ask(f, "SELECT * FROM t"), "0|1\n1|2\n2|3");
}

static enum err_code run_what(struct fixture *f, enum load_what what, const char *table)
{
    struct test_load *l = make_load(f, table, "t.csv", NULL, 0);
    l->base.what = what;
    run_load(f, l);
    enum err_code code = l->base.err.code;
    snprintf(f->answer, sizeof(f->answer), "%s%s", l->base.err.text, l->base.receipt.dest_id);
    free_load(l);
    return code;
}

static void drop_takes_only_what_chute_made(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    ask(f, "CREATE TABLE theirs(a)");
    assert_int_equal(run_what(f, LOAD_DROP, "t"), ERR_NONE);
    assert_string_equal(f->answer, "dropped");
    assert_int_equal(run_what(f, LOAD_DROP, "theirs"), ERR_NONE);
    assert_string_equal(f->answer, "kept");
    assert_int_equal(run_what(f, LOAD_DROP, "nothing"), ERR_NONE);
    assert_string_equal(
        ask(f, "SELECT group_concat(name) FROM sqlite_schema WHERE type='table' AND name NOT LIKE '\\_%' ESCAPE '\\'"),
        "theirs");
    assert_loads(f, "t", "t.csv", "a\n1\n", 0); /* what was dropped is no duplicate */
    assert_string_equal(ask(f, "SELECT a FROM t"), "1");
}

static void drop_names_what_depends_on_the_table(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    ask(f, "CREATE VIEW looks AS SELECT a FROM T");
    ask(f, "CREATE TABLE other(b)");
    ask(f, "CREATE TRIGGER acts AFTER UPDATE OF b ON other BEGIN DELETE FROM t; END");
    ask(f, "CREATE TABLE child(c REFERENCES t(a))");
    assert_int_equal(run_what(f, LOAD_DROP, "t"), ERR_INPUT);
    assert_says(f->answer, "view looks");
    assert_says(f->answer, "trigger acts");
    assert_says(f->answer, "table child");
    assert_string_equal(ask(f, "SELECT a FROM looks"), "1");
    ask(f, "DROP VIEW looks");
    ask(f, "DROP TABLE other");
    ask(f, "DROP TABLE child");
    assert_int_equal(run_what(f, LOAD_DROP, "t"), ERR_NONE);
}

static void empty_keeps_the_table_and_forgets_its_versions(void **state)
{
    struct fixture *f = *state;
    f->plan.mode = MODE_APPEND;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    assert_int_equal(run_what(f, LOAD_EMPTY, "t"), ERR_NONE);
    assert_string_equal(ask(f, "SELECT count(*) FROM t"), "0");
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    assert_string_equal(ask(f, "SELECT count(*) FROM t"), "1");
}

static void a_renamed_file_keeps_its_receipt(void **state)
{
    struct fixture *f = *state;
    f->plan.mode = MODE_APPEND;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    struct test_load *l = make_load(f, "t", "new.csv", NULL, 0);
    l->base.what = LOAD_CARRY;
    l->base.from_path = "t.csv";
    text_hash("a\n1\n", l->base.hash);
    run_load(f, l);
    assert_int_equal(l->base.err.code, ERR_NONE);
    free_load(l);
    l = run_load(f, make_load(f, "t", "new.csv", "a\n1\n", 0));
    assert_true(l->base.receipt.is_duplicate);
    free_load(l);
    assert_string_equal(ask(f, "SELECT count(*) FROM t"), "1");
}

static void reset_drops_the_table_and_its_receipts(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    assert_loads(f, "u", "u.csv", "a\n1\n", 0);
    assert_int_equal(run_what(f, LOAD_FORGET, "t"), ERR_NONE);
    assert_string_equal(ask(f, "SELECT \"table\" FROM _chute_loads"), "u");
    assert_says(ask(f, "SELECT * FROM t"), "no such table");
}

static void indexes_triggers_and_views_of_others_survive(void **state)
{
    struct fixture *f = *state;
    for (size_t head = 0; head < 2; head++) {
        assert_loads(f, "t", "t.csv", "a,b\n1,x\n", head);
        if (head == 0) {
            ask(f, "CREATE INDEX by_b ON t(b)");
            ask(f, "CREATE TABLE log(x)");
            ask(f, "CREATE TRIGGER tell AFTER DELETE ON t BEGIN INSERT INTO log VALUES(old.a); END");
            ask(f, "CREATE VIEW v AS SELECT a FROM t");
        }
        assert_loads(f, "t", "t.csv", "a,b\n2,y\n3,z\n", head);
        assert_loads(f, "t", "t.csv", "a,b,c\n2,y,1\n", head);
        assert_string_equal(ask(f, "SELECT a FROM v"), "2");
        assert_string_equal(
            ask(f, "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE tbl_name='t' AND name<>'t'"
                   " ORDER BY name)"),
            "by_b,tell");
        assert_string_equal(ask(f, "SELECT count(*) FROM log"), "0");
    }
    /* What can't be made again keeps the old table. */
    assert_int_equal(load_text(f, "t", "t.csv", "a,c\n2,y\n", 0), ERR_INPUT);
    assert_says(f->answer, "index by_b");
    ask(f, "DROP INDEX by_b");
    assert_int_equal(load_text(f, "t", "t.csv", "b,c\n2,y\n", 0), ERR_INPUT);
    assert_says(f->answer, "view v");
    assert_string_equal(ask(f, "SELECT * FROM t"), "2|y|1");
    ask(f, "CREATE UNIQUE INDEX one ON t(b)");
    assert_int_equal(load_text(f, "t", "t.csv", "a,b,c\n2,y,1\n3,y,1\n", 1), ERR_INPUT);
    assert_says(f->answer, "index one");
    assert_string_equal(ask(f, "SELECT * FROM t"), "2|y|1");
}

static void a_table_made_by_others_keeps_its_definition(void **state)
{
    struct fixture *f = *state;
    ask(f, "CREATE TABLE t(a INTEGER PRIMARY KEY, b VARCHAR(10) DEFAULT 'q', c DECIMAL(9,2))");
    ask(f, "INSERT INTO t VALUES(9, 'old', 1)");
    for (size_t head = 0; head < 2; head++) {
        assert_loads(f, "t", "t.csv", head == 0 ? "a,b,c\n1,x,2.5\n" : "a,b,c\n1,x,2.75\n", head);
        assert_string_equal(ask(f, "SELECT * FROM t"), head == 0 ? "1|x|2.5" : "1|x|2.75");
        assert_int_equal(load_text(f, "t", "t.csv", "a,b\n1,x\n", head), ERR_INPUT);
        assert_says(f->answer, "missing: c");
        assert_int_equal(load_text(f, "t", "t.csv", "a,b,c\nx,x,1\n", head), ERR_INPUT);
        assert_int_equal(load_text(f, "t", "t.csv", "a,b,c\n1,x,0.12345678901234567\n", head), ERR_INPUT);
    }
    assert_says(ask(f, "SELECT sql FROM sqlite_schema WHERE name='t'"), "VARCHAR(10)");
    struct test_load *l = make_load(f, "t", "t.csv", "a,z\n1,x\n", 0);
    run_load(f, l);
    assert_int_equal(l->base.err.code, ERR_INPUT);
    free_load(l);
    assert_string_equal(ask(f, "SELECT * FROM t"), "1|x|2.75");
}

static void columns_that_the_flow_names_are_required(void **state)
{
    struct fixture *f = *state;
    static const char *const keys[] = {"id", "nr"};
    f->plan.key = (struct option_strings){keys, 2};
    assert_int_equal(load_text(f, "t", "t.csv", "id,b\n1,2\n", 0), ERR_INPUT);
    assert_says(f->answer, "\"nr\"");
    assert_says(f->answer, "id, b");
    f->plan.key = (struct option_strings){NULL, 0};
    static const struct option_type_entry entries[] = {{"x", "bigint"}};
    f->plan.types = (struct option_types){TYPES_MAP, entries, 1};
    assert_int_equal(load_text(f, "t", "t.csv", "id,b\n1,2\n", 0), ERR_INPUT);
    assert_says(f->answer, "\"x\"");
}

static void declared_types_make_bad_rows_of_what_does_not_satisfy_them(void **state)
{
    struct fixture *f = *state;
    static const struct option_type_entry entries[] = {
        {"a", "bigint"}, {"d", "date"}, {"x", "double"}, {"m", "decimal"}};
    f->plan.types = (struct option_types){TYPES_MAP, entries, 4};
    const char *text =
        "a,d,x,m,i\n1,2024-02-29,0.7496072140369432,1.50,7\nq,2024-01-01,1,1,7\n2,2024-02-30,1,1,7\n3,,,,7\n";
    for (size_t head = 0; head < 2; head++) {
        assert_int_equal(load_text(f, "t", "t.csv", text, head), ERR_INPUT);
        assert_says(f->answer, "line 3");
        assert_says(f->answer, "expected bigint, found \"q\"");
        struct test_load *l = make_load(f, "t", "t.csv", text, head);
        ((struct text_rows *)l->base.rows)->skip = 2;
        f->plan.on_duplicate = DUPLICATE_RELOAD;
        run_load(f, l);
        assert_int_equal(l->base.err.code, ERR_NONE);
        assert_int_equal(l->base.receipt.rejected, 2);
        free_load(l);
        assert_string_equal(ask(f, "SELECT * FROM t"), "1|2024-02-29|0.749607214036943|1.50|7\n3|NULL|NULL|NULL|7");
        assert_string_equal(ask(f, "SELECT x = 0.7496072140369432 FROM t WHERE a = 1"), "1");
        assert_string_equal(ask(f, "SELECT group_concat(type) FROM pragma_table_info('t')"),
                            "BIGINT,TEXT,DOUBLE,TEXT,BIGINT");
    }
}

static void types_text_leaves_everything_as_it_is(void **state)
{
    struct fixture *f = *state;
    f->plan.types.policy = TYPES_TEXT;
    assert_loads(f, "t", "t.csv", "a,b\n1,\"\"\n2.50,\n", 0);
    assert_string_equal(ask(f, "SELECT quote(a), quote(b) FROM t"), "'1'|''\n'2.50'|NULL");
}

static void names_that_differ_in_case_only_are_told_apart(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a,A,b\n1,2,3\n", 0);
    assert_string_equal(ask(f, "SELECT group_concat(name) FROM pragma_table_info('t')"), "a,A.1,b");
    assert_loads(f, "T", "t.csv", "a,A,b\n4,5,6\n", 0);
    assert_string_equal(ask(f, "SELECT * FROM t"), "4|5|6");
}

static void a_view_of_that_name_is_an_error_with_a_way_out(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "u", "u.csv", "a\n1\n", 0);
    ask(f, "CREATE VIEW t AS SELECT 1");
    assert_int_equal(load_text(f, "t", "t.csv", "a\n1\n", 0), ERR_INPUT);
    assert_says(f->answer, "a view");
}

static void too_many_columns_are_told(void **state)
{
    struct fixture *f = *state;
    struct test_load *l = make_load(f, "t", "t.csv", "a\n1\n", 0);
    struct text_rows *t = (struct text_rows *)l->base.rows;
    t->shape.column_count = 2001; /* refused before anything looks at them */
    run_load(f, l);
    assert_int_equal(l->base.err.code, ERR_INPUT);
    assert_says(l->base.err.text, "at most 2000 columns");
    assert_null(strstr(l->base.err.text, "row_number"));
    t->shape.column_count = 1;
    free_load(l);
    f->plan.row_number = "n";
    l = make_load(f, "t", "t.csv", "a\n1\n", 0);
    t = (struct text_rows *)l->base.rows;
    t->shape.column_count = 2000;
    run_load(f, l);
    assert_int_equal(l->base.err.code, ERR_INPUT);
    assert_says(l->base.err.text, "found 2001 with the one of row_number");
    t->shape.column_count = 1;
    free_load(l);
}

static void small_loads_share_a_commit_and_a_bad_one_fails_alone(void **state)
{
    struct fixture *f = *state;
    struct test_load *loads[40];
    char paths[40][32];
    bool all_done = false;
    f->plan.mode = MODE_APPEND;
    assert_loads(f, "t", "first.csv", "a,b\n1,x\n", 0);
    for (int i = 0; i < 40; i++) {
        snprintf(paths[i], sizeof(paths[i]), "f%d.csv", i);
        loads[i] = make_load(f, "t", paths[i], i % 10 == 3 ? "a,b\n5,x\nbad,y\n" : "a,b\n7,x\n", 0);
        begin_load(f, loads[i]);
    }
    while (!all_done) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        all_done = true;
        for (int i = 0; i < 40; i++)
            all_done = all_done && loads[i]->is_done;
    }
    for (int i = 0; i < 40; i++) {
        assert_int_equal(loads[i]->base.err.code, i % 10 == 3 ? ERR_INPUT : ERR_NONE);
        free_load(loads[i]);
    }
    assert_string_equal(ask(f, "SELECT count(*), sum(a = 5) FROM t"), "37|0");
    assert_string_equal(ask(f, "SELECT count(*) FROM _chute_loads"), "37");
}

/* What a load in a group makes of the table is what the next one finds, and what a failed one made of it is not. */
static void in_a_group_each_load_finds_the_table_as_the_one_before_left_it(void **state)
{
    struct fixture *f = *state;
    static const char *const texts[] = {"a,b\n1,x\n",     "a,b,c\n2,y,z\nbad,y,z\n", "a,b,c\n3,y,2.5\n",
                                        "a,b,c\n4,y,3\n", "a,d\n5,true\n",           "a,b\n6,x\n"};
    char paths[6][32];
    struct test_load *loads[6];
    bool all_done = false;
    f->plan.mode = MODE_APPEND;
    f->plan.on_schema_change = SCHEMA_ADD_COLUMNS;
    for (int i = 0; i < 6; i++) {
        snprintf(paths[i], sizeof(paths[i]), "f%d.csv", i);
        loads[i] = make_load(f, "t", paths[i], texts[i], 0);
        begin_load(f, loads[i]);
    }
    while (!all_done) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        all_done = true;
        for (int i = 0; i < 6; i++)
            all_done = all_done && loads[i]->is_done;
    }
    for (int i = 0; i < 6; i++) {
        assert_int_equal(loads[i]->base.err.code, i == 1 ? ERR_INPUT : ERR_NONE);
        free_load(loads[i]);
    }
    assert_string_equal(ask(f, "SELECT * FROM t"),
                        "1|x|NULL|NULL\n3|y|2.5|NULL\n4|y|3.0|NULL\n5|NULL|NULL|1\n6|x|NULL|NULL");
    assert_string_equal(
        ask(f, "SELECT count(*) FROM _chute_tables t JOIN sqlite_schema s ON s.name=t.name AND s.sql=t.sql"), "1");
}

static enum err_code changed(struct load *load, struct err *err)
{
    (void)load;
    return err_set(err, ERR_CHANGED, true, "the file changed");
}

static void a_file_that_changed_meanwhile_is_not_committed(void **state)
{
    struct fixture *f = *state;
    for (size_t head = 0; head < 2; head++) {
        struct test_load *l = make_load(f, "t", "t.csv", "a\n1\n", head);
        l->base.still_current = changed;
        run_load(f, l);
        assert_int_equal(l->base.err.code, ERR_CHANGED);
        free_load(l);
        assert_says(ask(f, "SELECT * FROM t"), "no such table");
        assert_string_equal(ask(f, "SELECT count(*) FROM _chute_work"), "0");
    }
}

static void the_database_has_an_identity_that_stays(void **state)
{
    struct fixture *f = *state;
    struct dest_health one, two;
    assert_int_equal(connect_dest(f), ERR_NONE);
    dest_sqlite.health(f->dest, &one);
    assert_int_equal(strlen(one.identity), 32);
    assert_true(one.is_open);
    close_dest(f);
    open_dest(f);
    assert_int_equal(connect_dest(f), ERR_NONE);
    dest_sqlite.health(f->dest, &two);
    assert_string_equal(one.identity, two.identity);
    /* Deleted under our feet: a new file, another identity. */
    unlink(f->db);
    assert_int_equal(connect_dest(f), ERR_NONE);
    dest_sqlite.health(f->dest, &two);
    assert_string_not_equal(one.identity, two.identity);
}

static void table_names_are_made_legal(void **state)
{
    char name[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
    struct err err;
    (void)state;
    assert_int_equal(dest_sqlite.table_name("Ab C", NAMES_KEEP, name, key, sizeof(name), &err), ERR_NONE);
    assert_string_equal(name, "Ab C");
    assert_string_equal(key, "ab c");
    assert_int_equal(dest_sqlite.table_name("OrderItems 2024-é", NAMES_SNAKE, name, key, sizeof(name), &err), ERR_NONE);
    assert_string_equal(name, "order_items_2024_é");
    assert_int_equal(dest_sqlite.table_name("", NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(dest_sqlite.table_name("SQLite_x", NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(dest_sqlite.table_name("_chute_loads", NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(dest_sqlite.table_name("a\xff", NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    char longer[TABLE_NAME_MAX + 10];
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(dest_sqlite.table_name(longer, NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_says(err.text, "at most 511");
}

#define one(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        one(a_new_file_becomes_a_table_with_inferred_types),
        one(words_and_numbers_are_fine_table_names),
        one(leading_zeros_long_numbers_and_words_stay_text),
        one(replace_takes_the_place_of_what_was_there),
        one(a_value_in_the_last_row_still_gives_right_types),
        one(a_column_empty_in_the_head_gets_its_type_later),
        one(a_quoted_empty_field_is_null_where_the_column_has_a_type),
        one(the_types_of_a_table_bind_until_a_value_does_not_fit),
        one(under_reject_a_misfit_names_line_and_column),
        one(add_columns_adds_and_fills_with_null),
        one(append_adds_rows_and_each_version_once),
        one(replace_compares_only_with_what_the_table_holds),
        one(the_same_attempt_is_never_written_twice),
        one(the_tail_of_a_file_is_appended),
        one(drop_takes_only_what_chute_made),
        one(drop_names_what_depends_on_the_table),
        one(empty_keeps_the_table_and_forgets_its_versions),
        one(a_renamed_file_keeps_its_receipt),
        one(reset_drops_the_table_and_its_receipts),
        one(indexes_triggers_and_views_of_others_survive),
        one(a_table_made_by_others_keeps_its_definition),
        one(columns_that_the_flow_names_are_required),
        one(declared_types_make_bad_rows_of_what_does_not_satisfy_them),
        one(types_text_leaves_everything_as_it_is),
        one(names_that_differ_in_case_only_are_told_apart),
        one(a_view_of_that_name_is_an_error_with_a_way_out),
        one(too_many_columns_are_told),
        one(small_loads_share_a_commit_and_a_bad_one_fails_alone),
        one(in_a_group_each_load_finds_the_table_as_the_one_before_left_it),
        one(a_file_that_changed_meanwhile_is_not_committed),
        one(the_database_has_an_identity_that_stays),
        cmocka_unit_test(table_names_are_made_legal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
