/* test_postgres.c -- the parts of the PostgreSQL destination that need no server. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "postgres_internal.h"

/* ---- where the server is ---- */

static void is_told_what_is_local(void **state)
{
    (void)state;
    static const struct {
        const char *url;
        bool is_local;
    } cases[] = {
        {"postgres://u@localhost/db", true},
        {"postgres://u:p%40w@localhost:5433/db", true},
        {"postgresql://u:p@127.0.0.1,[::1]:1/db", true},
        {"postgresql://localhost,far.example/db", false},
        {"postgres://localhost.example/db", false},
        {"postgres://u:secret@db:5432/dwh", false},
        {"postgres://db@far/db?x=localhost", false},
        {"postgresql:///db?host=/run/postgresql", true},
        {"postgresql:///db?host=%2Frun%2Fpostgresql", true},
        {"postgresql:///db?host=far", false},
        {"postgresql:///db", true},
        {"", true},
        {"dbname=x", true},
        {"host=/tmp dbname=x", true},
        {"host='db' dbname=x", false},
        {"dbname=x hostaddr = 10.0.0.1", false},
        {"dbname=localhost host=db", false},
    };
    unsetenv("PGHOST");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (pgd_is_local(cases[i].url) != cases[i].is_local)
            fail_msg("%s: expected %s", cases[i].url, cases[i].is_local ? "local" : "far");
    setenv("PGHOST", "far.example", 1);
    assert_false(pgd_is_local("dbname=x"));
    assert_true(pgd_is_local("host=localhost"));
    unsetenv("PGHOST");
}

static void assert_conninfo(const char *url, bool verify, const char *ca_file, const char *expected)
{
    const struct pgd_options o = {.url = url, .tls_verify = verify, .ca_file = ca_file};
    struct buf b;
    buf_init(&b);
    pgd_add_conninfo(&b, &o);
    if (strncmp(b.data, expected, strlen(expected)) != 0)
        fail_msg("%s: expected %s…, found %s", url, expected, b.data);
    buf_done(&b);
}

static void a_server_far_away_has_to_prove_itself(void **state)
{
    (void)state;
    unsetenv("PGSSLMODE");
    unsetenv("PGSERVICE");
    setenv("SSL_CERT_FILE", "/ca bundle.pem", 1);
    setenv("HOME", "/nonexistent", 1);
    assert_conninfo("postgres://u@db/x", true, NULL,
                    "postgres://u@db/x?sslmode=verify-full&sslrootcert=%2Fca%20bundle.pem&");
    assert_conninfo("postgres://u@db/x?a=b", true, "/own ca's.pem",
                    "postgres://u@db/x?a=b&sslmode=verify-full&sslrootcert=%2Fown%20ca%27s.pem&");
    assert_conninfo("host=db", true, "/own ca's.pem", "host=db sslmode='verify-full' sslrootcert='/own ca\\'s.pem' ");
    assert_conninfo("postgres://u@db/x?sslmode=require", true, NULL, "postgres://u@db/x?sslmode=require&keepalives");
    assert_conninfo("postgres://u@db/x", false, NULL, "postgres://u@db/x?keepalives");
    assert_conninfo("postgres://u@localhost/x", true, NULL, "postgres://u@localhost/x?keepalives");
    assert_conninfo("postgres://u@localhost/x", true, "/ca",
                    "postgres://u@localhost/x?sslmode=verify-full&sslrootcert=");
    assert_conninfo("service=mine", true, NULL, "service=mine keepalives");
    assert_conninfo("", true, NULL, "keepalives_idle='60'");
    assert_conninfo("host=localhost keepalives=0", true, NULL, "host=localhost keepalives=0");
    setenv("PGSSLMODE", "disable", 1);
    assert_conninfo("postgres://u@db/x", true, NULL, "postgres://u@db/x?keepalives");
    unsetenv("PGSSLMODE");
    unsetenv("SSL_CERT_FILE");
}

/* ---- types ---- */

static struct pgd_column column_of(const char *base, int typmod)
{
    struct pgd_column c = {.name = "c"};
    pgd_column_of_catalog(&c, base, base, typmod);
    return c;
}

static int numeric_typmod(int precision, int scale)
{
    return ((precision << 16) | (scale & 0x7ff)) + 4;
}

static void a_silent_loss_is_seen(void **state)
{
    (void)state;
    const struct {
        const char *base;
        int typmod;
        const char *value;
        bool is_lost;
    } cases[] = {
        {"numeric", numeric_typmod(10, 2), "1.50", false},
        {"numeric", numeric_typmod(10, 2), "1.5000", false},
        {"numeric", numeric_typmod(10, 2), "1.505", true},
        {"numeric", numeric_typmod(10, 2), "-1", false},
        {"numeric", numeric_typmod(10, 0), "1.5", true},
        {"numeric", numeric_typmod(10, -2), "150", true},
        {"numeric", numeric_typmod(10, 2), "1.5e3", false},
        {"numeric", -1, "1.123456789012345678901234567890", false},
        {"date", -1, "2024-01-02", false},
        {"date", -1, "2024-01-02 10:00", true},
        {"date", -1, "January 2, 2024", false},
        {"timestamp", -1, "2024-01-02 10:00:00.123456", false},
        {"timestamp", -1, "2024-01-02 10:00:00.1234567", true},
        {"timestamp", -1, "2024-01-02 10:00:00.1234560", false},
        {"timestamp", 3, "2024-01-02 10:00:00.1234", true},
        {"timestamp", -1, "2024-01-02 10:00Z", true},
        {"timestamp", -1, "2024-01-02 10:00+02", true},
        {"timestamp", -1, "2024-01-02 10:00-02:30", true},
        {"timestamp", -1, "2024-01-02", false},
        {"timestamptz", -1, "2024-01-02 10:00+02", false},
        {"timestamptz", -1, "2024-01-02 10:00:00.1234567+02", true},
        {"text", -1, "anything at all: 1.234+02", false},
        {"int8", -1, "x", false}, /* the server's to say */
        {"numeric", numeric_typmod(10, 2), "", false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pgd_column c = column_of(cases[i].base, cases[i].typmod);
        if (pgd_would_lose(&c, cases[i].value, strlen(cases[i].value)) != cases[i].is_lost)
            fail_msg("%s of %s: expected %s", cases[i].value, cases[i].base, cases[i].is_lost ? "a loss" : "none");
    }
}

static void numbers_beyond_all_bounds_are_text(void **state)
{
    (void)state;
    static char digits[140000];
    struct pgd_column c = column_of("numeric", -1);
    memset(digits, '1', sizeof(digits));
    assert_false(pgd_would_lose(&c, digits, 131072));
    assert_true(pgd_would_lose(&c, digits, 131073));
    digits[1] = '.';
    assert_false(pgd_would_lose(&c, digits, 2 + 16383));
    assert_true(pgd_would_lose(&c, digits, 2 + 16384));
}

static void kinds_become_types(void **state)
{
    (void)state;
    static const struct {
        unsigned kinds;
        bool has_value;
        enum column_type type;
    } cases[] = {
        {KIND_INT | KIND_DECIMAL | KIND_DOUBLE, true, TYPE_BIGINT},
        {KIND_DECIMAL | KIND_DOUBLE, true, TYPE_DECIMAL},
        {KIND_DECIMAL, true, TYPE_DECIMAL},
        {KIND_BOOL, true, TYPE_BOOLEAN},
        {KIND_DATE, true, TYPE_DATE},
        {KIND_TIMESTAMP, true, TYPE_TIMESTAMP},
        {KIND_TIMESTAMPTZ, true, TYPE_TIMESTAMPTZ},
        {0, true, TYPE_TEXT},
        {KIND_ANY, true, TYPE_TEXT}, /* nothing but '' */
        {KIND_INT, false, TYPE_TEXT},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct column c = {.name = "c", .kinds = cases[i].kinds, .has_value = cases[i].has_value};
        assert_int_equal(pgd_infer(&c, false), cases[i].type);
        assert_int_equal(pgd_infer(&c, true), TYPE_TEXT);
    }
}

static void kinds_fit_into_types_or_not(void **state)
{
    (void)state;
    static const struct {
        const char *base;
        unsigned kinds;
        bool fits;
    } cases[] = {
        {"int8", KIND_INT | KIND_DECIMAL, true},
        {"int4", KIND_DECIMAL, false},
        {"numeric", KIND_DECIMAL, true},
        {"numeric", KIND_DATE, false},
        {"bool", KIND_INT, true},
        {"bool", 0, false},
        {"date", KIND_DATE, true},
        {"date", KIND_TIMESTAMP, false},
        {"timestamp", KIND_DATE, true},
        {"timestamp", KIND_TIMESTAMPTZ, false},
        {"timestamptz", KIND_DATE, true},
        {"timestamptz", 0, false},
        {"text", 0, true},
        {"uuid", 0, true}, /* the server knows */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pgd_column c = column_of(cases[i].base, -1);
        const struct column file = {.name = "c", .kinds = cases[i].kinds, .has_value = true};
        if (pgd_kinds_fit(&c, &file) != cases[i].fits)
            fail_msg("%s, kinds %x", cases[i].base, cases[i].kinds);
    }
}

/* ---- what the server says about a place ---- */

static void a_context_names_line_and_column(void **state)
{
    (void)state;
    char name[16];
    assert_int_equal(pgd_fault_line("COPY t, line 5, column c: \"x\""), 5);
    assert_int_equal(pgd_fault_line("COPY a, line 7, line 812: \"x\""), 812);
    assert_int_equal(pgd_fault_line("COPY t, line 12: \"1\t2\""), 12);
    assert_int_equal(pgd_fault_line("SQL statement \"SELECT 1\", line 5"), 0);
    assert_int_equal(pgd_fault_line(""), 0);
    assert_true(pgd_fault_column("COPY t, line 5, column price: \"x, column y\"", name, sizeof(name)));
    assert_string_equal(name, "price");
    assert_true(pgd_fault_column("COPY t, line 5, column a b: null input", name, sizeof(name)));
    assert_string_equal(name, "a b");
    assert_true(pgd_fault_column("COPY t, line 5, column a_very_long_name_of_it: \"\"", name, sizeof(name)));
    assert_string_equal(name, "a_very_long_nam");
    assert_false(pgd_fault_column("COPY t, line 5: \"1, line 6, column 2: \"", name, sizeof(name)));
    assert_int_equal(pgd_fault_line("COPY t, line 5: \"1, line 6: \""), 5);
    assert_false(pgd_fault_column("", name, sizeof(name)));
}

/* ---- rows as text ---- */

struct fake_rows {
    struct rows base;
    struct shape shape;
    struct column columns[3];
    int allowed; /* rejects */
    char reason[300];
    int column;
};

static enum err_code fake_reject(struct rows *rows, size_t row, int column, const char *reason, struct err *err)
{
    struct fake_rows *f = (struct fake_rows *)rows;
    (void)row;
    snprintf(f->reason, sizeof(f->reason), "%s", reason);
    f->column = column;
    return f->allowed-- > 0 ? ERR_NONE : err_set(err, ERR_INPUT, false, "%s", reason);
}

static const struct rows_ops fake_ops = {.reject = fake_reject};

struct feeding {
    struct fake_rows rows;
    struct pgd_walker w;
    struct pgd_target t;
    struct pgd_column dest[4];
    struct load_plan plan;
    struct pgd_learned learned;
    bool is_plain[3];
    struct pgd_feed feed;
    struct err err;
};

static void begin(struct feeding *f)
{
    memset(f, 0, sizeof(*f));
    f->rows.base.ops = &fake_ops;
    f->rows.base.shape = f->t.shape = &f->rows.shape;
    f->rows.shape.columns = f->rows.columns;
    f->rows.shape.column_count = 3;
    f->w.err = &f->err;
    arena_init(&f->w.arena);
    f->plan.flow = "flow";
    f->t.plan = &f->plan;
    f->t.space = "public";
    f->t.table = "t";
    f->t.keeps_types = true;
    f->t.dest.items = f->dest;
    f->t.dest.count = 4;
    f->learned.is_plain = f->is_plain;
    static const enum column_type types[] = {TYPE_BIGINT, TYPE_TEXT, TYPE_DATE, TYPE_BIGINT};
    static const int from[] = {0, 1, 2, PGD_FROM_NOWHERE};
    static const char *const names[] = {"id", "text", "day", "absent"};
    for (int i = 0; i < 4; i++) {
        f->dest[i].name = names[i];
        f->dest[i].from = from[i];
        pgd_column_of_type(&f->dest[i], types[i]);
    }
    assert_int_equal(pgd_feed_init(&f->feed, &f->w, &f->t, &f->rows.base, &f->learned), ERR_NONE);
}

static void end(struct feeding *f)
{
    pgd_feed_done(&f->feed);
    arena_done(&f->w.arena);
}

static enum pgd_verdict feed_one(struct feeding *f, const char *a, const char *b, const char *c)
{
    const char *value[] = {a, b, c};
    uint32_t length[3];
    static const uint64_t record[] = {41}, line[] = {43}, offset[] = {777};
    for (int i = 0; i < 3; i++)
        length[i] = value[i] != NULL ? (uint32_t)strlen(value[i]) : 0;
    const struct row_batch batch = {
        .rows = 1, .columns = 3, .value = value, .length = length, .record = record, .line = line, .offset = offset};
    return pgd_feed_row(&f->feed, &batch, 0);
}

static void rows_become_text_of_copy(void **state)
{
    (void)state;
    struct feeding f;
    begin(&f);
    assert_int_equal(feed_one(&f, "1", "a\tb\\c\nd\re", "2024-01-02"), FEED_TAKEN);
    assert_int_equal(feed_one(&f, NULL, "", ""), FEED_TAKEN);
    assert_int_equal(feed_one(&f, "2", "\\N", NULL), FEED_TAKEN);
    assert_int_equal(feed_one(&f, "3", "\\.", NULL), FEED_TAKEN);
    assert_string_equal(f.feed.text.data,
                        "1\ta\\tb\\\\c\\nd\\re\t2024-01-02\n\\N\t\t\\N\n2\t\\\\N\t\\N\n3\t\\\\.\t\\N\n");
    end(&f);
}

static void a_number_of_the_load_and_of_the_record_go_before(void **state)
{
    (void)state;
    struct feeding f;
    begin(&f);
    f.dest[0].from = PGD_FROM_ROW_NUMBER;
    f.feed.load = 7;
    assert_int_equal(feed_one(&f, "x", "a", NULL), FEED_TAKEN);
    assert_string_equal(f.feed.text.data, "7\t41\ta\t\\N\n");
    end(&f);
}

static void a_row_that_is_left_out_leaves_no_text(void **state)
{
    (void)state;
    struct feeding f;
    begin(&f);
    f.rows.allowed = 2;
    f.dest[0].is_key = true;
    assert_int_equal(feed_one(&f, "1", "a", NULL), FEED_TAKEN);
    assert_int_equal(feed_one(&f, NULL, "b", NULL), FEED_REJECTED);
    assert_non_null(strstr(f.rows.reason, "key column \"id\""));
    assert_int_equal(f.rows.column, 0);
    f.dest[2].is_declared = true;
    f.dest[2].type = TYPE_DATE;
    assert_int_equal(feed_one(&f, "2", "b", "2024-02-30"), FEED_REJECTED);
    assert_string_equal(f.rows.reason, "column \"day\": expected date, found \"2024-02-30\"");
    assert_int_equal(feed_one(&f, "3", "b", "no day"), FEED_FAILED);
    assert_int_equal(f.err.code, ERR_INPUT);
    assert_string_equal(f.feed.text.data, "1\ta\t\\N\n");
    end(&f);
}

static void a_value_that_would_be_changed_has_its_place(void **state)
{
    (void)state;
    struct feeding f;
    begin(&f);
    assert_int_equal(feed_one(&f, "1", "a", "2024-01-02 10:00"), FEED_FAILED);
    assert_int_equal(f.err.code, ERR_INPUT);
    assert_non_null(strstr(f.err.text, "line 43, byte 777, column 3 (day): the column is date in table public.t"));
    assert_non_null(strstr(f.err.text, "\"2024-01-02 10:00\""));
    end(&f);
    begin(&f); /* where the types are ours, it is the sign that the column is text */
    f.t.keeps_types = false;
    f.dest[2].is_inferred = true;
    assert_int_equal(feed_one(&f, "1", "a", "2024-01-02 10:00"), FEED_NARROWED);
    assert_true(f.is_plain[2]);
    assert_false(f.is_plain[0]);
    end(&f);
}

/* ---- bytes as they are ---- */

static void bytes_go_as_they_are_only_where_both_read_the_same(void **state)
{
    (void)state;
    struct feeding f;
    static const char *const empty[] = {""}, *const two[] = {"", "NA"}, *const odd[] = {"N,A"};
    begin(&f);
    struct load load = {.fd = 0};
    f.rows.shape.dialect = (struct dialect){.delimiter = ',', .quote = '"'};
    f.plan.null_values = (struct option_strings){empty, 1};
    assert_true(pgd_raw_is_possible(&load, &f.t));
    f.dest[0].is_inferred = true;
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.dest[0].is_inferred = false;
    f.dest[0].is_declared = true;
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.dest[0].is_declared = false;
    load.skip_records = 1;
    assert_false(pgd_raw_is_possible(&load, &f.t));
    load.skip_records = 0;
    f.plan.row_number = "no";
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.plan.row_number = "";
    f.plan.null_values = (struct option_strings){two, 2};
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.plan.null_values = (struct option_strings){odd, 1};
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.plan.null_values = (struct option_strings){empty, 1};
    f.rows.shape.dialect.encoding = ENC_WINDOWS_1250;
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.rows.shape.dialect.encoding = ENC_UTF8;
    f.rows.shape.dialect.compression = COMPRESSION_GZIP;
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.rows.shape.dialect.compression = COMPRESSION_NONE;
    f.rows.shape.dialect.ends_cr = true;
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.rows.shape.dialect.ends_cr = false;
    f.rows.shape.column_count = 1; /* a blank line would be a row */
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.rows.shape.column_count = 3;
    f.t.is_part = true;
    assert_false(pgd_raw_is_possible(&load, &f.t));
    f.t.is_part = false;
    assert_true(pgd_raw_is_possible(&load, &f.t));
    end(&f);
}

/* ---- names ---- */

static void names_are_kept_apart(void **state)
{
    (void)state;
    char name[TABLE_NAME_MAX], key[TABLE_NAME_MAX], longest[70];
    struct err err;
    const struct dest_ops *d = &dest_postgres;
    assert_int_equal(d->table_name("Order Items", NAMES_SNAKE, name, key, sizeof(name), &err), ERR_NONE);
    assert_string_equal(name, "order_items");
    assert_int_equal(d->table_name("Order \"Items\"", NAMES_KEEP, name, key, sizeof(name), &err), ERR_NONE);
    assert_string_equal(key, "Order \"Items\"");
    memset(longest, 'x', sizeof(longest));
    longest[63] = '\0';
    assert_int_equal(d->table_name(longest, NAMES_KEEP, name, key, sizeof(name), &err), ERR_NONE);
    longest[63] = 'x';
    longest[64] = '\0';
    assert_int_equal(d->table_name(longest, NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(d->table_name("_chute_loads", NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(d->space_name("pg_catalog", NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(d->space_name("information_schema", NAMES_SNAKE, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(d->space_name("a.b", NAMES_KEEP, name, key, sizeof(name), &err), ERR_INPUT);
    assert_int_equal(d->space_name("Web Shop", NAMES_SNAKE, name, key, sizeof(name), &err), ERR_NONE);
    assert_string_equal(name, "web_shop");
}

static void a_url_is_one(void **state)
{
    (void)state;
    struct pgd_options o = {0};
    struct err err;
    assert_int_equal(dest_postgres.from_url("postgres://h/d", &o, &err), ERR_NONE);
    assert_string_equal(o.url, "postgres://h/d");
    assert_int_equal(dest_postgres.from_url("postgresql:///d?host=/x", &o, &err), ERR_NONE);
    assert_int_equal(dest_postgres.from_url("postgres:secret@h", &o, &err), ERR_CONFIG);
    assert_null(strstr(err.text, "secret"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_told_what_is_local),
        cmocka_unit_test(a_server_far_away_has_to_prove_itself),
        cmocka_unit_test(a_silent_loss_is_seen),
        cmocka_unit_test(numbers_beyond_all_bounds_are_text),
        cmocka_unit_test(kinds_become_types),
        cmocka_unit_test(kinds_fit_into_types_or_not),
        cmocka_unit_test(a_context_names_line_and_column),
        cmocka_unit_test(rows_become_text_of_copy),
        cmocka_unit_test(a_number_of_the_load_and_of_the_record_go_before),
        cmocka_unit_test(a_row_that_is_left_out_leaves_no_text),
        cmocka_unit_test(a_value_that_would_be_changed_has_its_place),
        cmocka_unit_test(bytes_go_as_they_are_only_where_both_read_the_same),
        cmocka_unit_test(names_are_kept_apart),
        cmocka_unit_test(a_url_is_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
