#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "keboola_internal.h"

#include <stdlib.h>
#include <string.h>

#define TOKEN "4321-98765-aTokenOfTests"

struct fixture {
    struct arena arena;
    struct err err;
    struct keboola_options options;
    struct keboola k;
    struct shape shape;
    struct rows rows;
    struct column columns[8];
    struct load_plan plan;
    struct load load;
    const char **names;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    arena_init(&f->arena);
    f->options = (struct keboola_options){
        .url = "https://connection.example.org", .token = TOKEN, .s3_endpoint = "", .gcs_endpoint = ""};
    f->k.options = &f->options;
    f->shape.columns = f->columns;
    f->rows.shape = &f->shape;
    f->plan.types.policy = TYPES_TEXT;
    f->load.plan = &f->plan;
    f->load.rows = &f->rows;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    arena_done(&f->arena);
    free(f);
    return 0;
}

static struct json_object *json(const char *text)
{
    struct json_object *o = json_tokener_parse(text);
    assert_non_null(o);
    return o;
}

/* ---- names ---- */

static const char *name_of(struct fixture *f, const char *name, char key[TABLE_NAME_MAX])
{
    char ret[TABLE_NAME_MAX];
    err_clear(&f->err);
    if (keboola_name("table", name, NAMES_KEBOOLA, ret, key, sizeof ret, &f->err) != ERR_NONE)
        return NULL;
    return arena_strdup(&f->arena, ret);
}

static void names_become_what_the_service_makes_of_them(void **state)
{
    struct fixture *f = *state;
    static const char *const pairs[][2] = {
        {"test-vn-đá cuội", "test_vn_da_cuoi"},
        {"_~dlažební  %_kostky_~", "dlazebni__kostky"},
        {"user-id#123", "user_id_123"},
        {"jp日本語", "jp"},
        {"Prodej Čechy 2026", "Prodej_Cechy_2026"},
        {"daily.sales 2026", "daily_sales_2026"},
        {"Môj 1$ obľúbený bucket $", "Moj_1_oblubeny_bucket"},
        {"straße", "strasse"},
        {"2024-01", "2024_01"},
        {"group", "group"},
    };
    char key[TABLE_NAME_MAX];
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        assert_string_equal(name_of(f, pairs[i][0], key), pairs[i][1]);
}

static void of_some_names_nothing_is_left(void **state)
{
    struct fixture *f = *state;
    char key[TABLE_NAME_MAX];
    static const char *const names[] = {"_", "-----", "日本", "", "\xff\xfe"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_null(name_of(f, names[i], key));
        assert_int_equal(f->err.code, ERR_INPUT);
        assert_false(f->err.retryable);
    }
}

static void a_long_name_is_cut_and_stays_different_for_ever(void **state)
{
    struct fixture *f = *state;
    char long_name[151], other[151], key[TABLE_NAME_MAX];
    memset(long_name, 'n', 150);
    long_name[150] = '\0';
    memcpy(other, long_name, sizeof other);
    other[149] = 'm';
    const char *a = name_of(f, long_name, key), *b = name_of(f, other, key);
    assert_int_equal(strlen(a), KEBOOLA_NAME_MAX);
    assert_string_not_equal(a, b);
    /* the same in every version: else a table would get a second one beside it */
    assert_string_equal(a + KEBOOLA_NAME_MAX - 9, "_cfe2fa9d");
    long_name[KEBOOLA_NAME_MAX] = '\0';
    assert_string_equal(name_of(f, long_name, key), long_name);
}

static void names_that_differ_in_case_only_have_one_key(void **state)
{
    struct fixture *f = *state;
    char a[TABLE_NAME_MAX], b[TABLE_NAME_MAX];
    assert_string_equal(name_of(f, "Orders", a), "Orders");
    assert_string_equal(name_of(f, "ORDERS", b), "ORDERS");
    assert_string_equal(a, b);
    name_of(f, "a b", a);
    name_of(f, "a.b", b);
    assert_string_equal(a, b);
}

static void keep_takes_only_what_the_service_takes(void **state)
{
    struct fixture *f = *state;
    char ret[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
    assert_int_equal(keboola_name("table", "a-b_C", NAMES_KEEP, ret, key, sizeof ret, &f->err), ERR_NONE);
    assert_string_equal(ret, "a-b_C");
    static const char *const bad[] = {"a b", "_a", "a.b", "ř"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(keboola_name("table", bad[i], NAMES_KEEP, ret, key, sizeof ret, &f->err), ERR_INPUT);
    assert_int_equal(keboola_name("table", "OrderItems 2024", NAMES_SNAKE, ret, key, sizeof ret, &f->err), ERR_NONE);
    assert_string_equal(ret, "order_items_2024");
}

/* ---- columns ---- */

static void shape_of(struct fixture *f, const char *const *names, size_t count)
{
    memset(f->columns, 0, sizeof f->columns);
    for (size_t i = 0; i < count; i++)
        f->columns[i] = (struct column){.name = names[i], .kinds = KIND_ANY};
    f->shape.column_count = count;
}

static enum err_code columns(struct fixture *f, size_t count, const char *const *names)
{
    err_clear(&f->err);
    shape_of(f, names, count);
    return keboola_columns(&f->shape, &f->arena, &f->names, &f->err);
}
#define COLUMNS(f, ...)                                                                                                \
    columns(f, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *), (const char *const[]){__VA_ARGS__})

static void columns_are_called_as_the_service_calls_them(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(COLUMNS(f, "id", "jméno", "user-id#1", "OID", "_x_", "ctid"), ERR_NONE);
    static const char *const want[] = {"id", "jmeno", "user_id_1", "OID_", "x", "ctid_"};
    for (size_t i = 0; i < 6; i++)
        assert_string_equal(f->names[i], want[i]);
}

static void headers_that_it_can_not_take_are_refused_by_name(void **state)
{
    struct fixture *f = *state;
    char name[66];
    assert_int_equal(COLUMNS(f, "id", "Name", "NAME"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "\"Name\""));
    assert_non_null(strstr(f->err.text, "\"NAME\""));
    assert_int_equal(COLUMNS(f, "a b", "a-b"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "a_b"));
    assert_int_equal(COLUMNS(f, "oid", "oid_"), ERR_INPUT); /* both become oid_ */
    memset(name, 'c', 65);
    name[65] = '\0';
    assert_int_equal(COLUMNS(f, name), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "65"));
    assert_int_equal(COLUMNS(f, name + 1), ERR_NONE);
    assert_int_equal(COLUMNS(f, "id", "日本"), ERR_INPUT);
    shape_of(f, (const char *const[]){"id", "column_1"}, 2);
    f->columns[1].is_made_up = true;
    assert_int_equal(keboola_columns(&f->shape, &f->arena, &f->names, &f->err), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "column 2"));
}

/* ---- a header against a table ---- */

static struct keboola_table table_of(struct fixture *f, const char *text)
{
    struct keboola_table t = {0};
    struct json_object *o = json(text);
    err_clear(&f->err);
    table_read(o, &f->arena, &t, &f->err);
    json_object_put(o);
    return t;
}
#define TABLE "{\"id\":\"in.c-b.t\",\"columns\":[\"id\",\"name\",\"value\"],\"primaryKey\":[],\"rowsCount\":\"7\"}"

static void a_table_is_read_in_every_form_the_service_has(void **state)
{
    struct fixture *f = *state;
    struct keboola_table t = table_of(f, TABLE);
    assert_int_equal(f->err.code, ERR_NONE);
    assert_int_equal(t.column_count, 3);
    assert_int_equal(t.rows, 7);
    assert_int_equal(t.key_count, 0);
    t = table_of(f,
                 "{\"id\":\"in.c-b.t\",\"columns\":{\"0\":\"a\",\"1\":\"b\"},\"primaryKey\":[\"a\"],\"isTyped\":true,"
                 "\"definition\":{\"columns\":[{\"name\":\"b\",\"basetype\":\"INTEGER\"}]}}");
    assert_int_equal(f->err.code, ERR_NONE);
    assert_int_equal(t.column_count, 2);
    assert_int_equal(t.rows, -1);
    assert_null(t.types[0]);
    assert_string_equal(t.types[1], "INTEGER");
    static const char *const bad[] = {"{\"id\":\"x\"}", "{\"id\":\"x\",\"columns\":5}", "{\"columns\":[\"a\"]}",
                                      "{\"id\":\"a/b\",\"columns\":[\"a\"]}", "[]"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        table_of(f, bad[i]);
        assert_int_equal(f->err.code, ERR_REMOTE);
        assert_true(f->err.retryable);
    }
}

static enum err_code check(struct fixture *f, const struct keboola_table *t, size_t count, const char *const *names)
{
    assert_int_equal(columns(f, count, names), ERR_NONE);
    return table_check(&f->load, f->names, t, &f->err);
}
#define CHECK(f, t, ...)                                                                                               \
    check(f, t, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *), (const char *const[]){__VA_ARGS__})

static void a_header_that_differs_is_told_with_its_differences(void **state)
{
    struct fixture *f = *state;
    struct keboola_table t = table_of(f, TABLE);
    assert_int_equal(CHECK(f, &t, "id", "name", "value"), ERR_NONE);
    assert_int_equal(CHECK(f, &t, "id", "name"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "missing: value"));
    assert_int_equal(CHECK(f, &t, "id", "name", "value", "extra"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "extra: extra"));
    assert_non_null(strstr(f->err.text, "expected id, name, value, found id, name, value, extra"));
    assert_int_equal(CHECK(f, &t, "id", "value", "name"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "reordered"));
    assert_int_equal(CHECK(f, &t, "id", "name", "price"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "value -> price"));
    assert_int_equal(CHECK(f, &t, "id", "Name", "value"), ERR_INPUT); /* case counts: the service would add a column */
    f->plan.on_schema_change = SCHEMA_ADD_COLUMNS;
    assert_int_equal(CHECK(f, &t, "id", "name", "value", "extra"), ERR_NONE);
    assert_int_equal(CHECK(f, &t, "value", "id", "name"), ERR_NONE);
    assert_int_equal(CHECK(f, &t, "id", "name"), ERR_INPUT);
    t.is_typed = true; /* those get no column by an import */
    assert_int_equal(CHECK(f, &t, "id", "name", "value", "extra"), ERR_INPUT);
}

static void the_header_that_the_ledger_knows_binds_where_there_is_no_table(void **state)
{
    struct fixture *f = *state;
    struct keboola_table none = {0},
                         t = table_of(f, "{\"id\":\"in.c-b.t\",\"columns\":[\"id\",\"cleaned_otherwise\"]}");
    const char *const header[] = {"id", "jméno"};
    assert_int_equal(CHECK(f, &none, "anything"), ERR_NONE);
    f->load.header = header;
    f->load.header_count = 2;
    assert_int_equal(CHECK(f, &none, "id", "jméno"), ERR_NONE);
    assert_int_equal(CHECK(f, &none, "id", "name"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "loaded before"));
    /* the very header that it was made from: the service has cleaned it its own way */
    assert_int_equal(CHECK(f, &t, "id", "jméno"), ERR_NONE);
    assert_int_equal(CHECK(f, &t, "id", "jmeno"), ERR_INPUT);
}

static void keys_must_be_those_of_the_table(void **state)
{
    struct fixture *f = *state;
    const char *const key[] = {"jméno", "id"}, *const missing[] = {"nothing"};
    struct keboola_table t = table_of(
                             f,
                             "{\"id\":\"in.c-b.t\",\"columns\":[\"id\",\"jmeno\"],\"primaryKey\":[\"id\",\"jmeno\"]}"),
                         none = {0};
    f->plan.mode = MODE_UPSERT;
    f->plan.key = (struct option_strings){key, 2};
    assert_int_equal(CHECK(f, &t, "id", "jméno"), ERR_NONE);
    f->plan.key = (struct option_strings){key, 1};
    assert_int_equal(CHECK(f, &t, "id", "jméno"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "primary key (id, jmeno)"));
    f->plan.key = (struct option_strings){missing, 1};
    assert_int_equal(CHECK(f, &none, "id"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "\"nothing\""));
    f->plan.mode = MODE_APPEND;
    f->plan.key = (struct option_strings){NULL, 0};
    assert_int_equal(CHECK(f, &t, "id", "jméno"), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "would replace others"));
}

static void values_must_fit_the_types_of_the_table(void **state)
{
    struct fixture *f = *state;
    struct keboola_table t =
        table_of(f, "{\"id\":\"in.c-b.t\",\"columns\":[\"id\",\"day\"],\"isTyped\":true,\"definition\":{\"columns\":"
                    "[{\"name\":\"id\",\"basetype\":\"INTEGER\"},{\"name\":\"day\",\"basetype\":\"DATE\"}]}}");
    f->plan.types.policy = TYPES_INFER;
    assert_int_equal(COLUMNS(f, "id", "day"), ERR_NONE);
    f->columns[0].has_value = f->columns[1].has_value = true;
    f->columns[0].kinds = KIND_INT;
    f->columns[1].kinds = KIND_DATE;
    assert_int_equal(table_check(&f->load, f->names, &t, &f->err), ERR_NONE);
    f->columns[1].kinds = KIND_TIMESTAMP;
    assert_int_equal(table_check(&f->load, f->names, &t, &f->err), ERR_INPUT);
    assert_non_null(strstr(f->err.text, "\"day\""));
    err_clear(&f->err);
    f->columns[1].has_value = false; /* nothing there fits everything */
    assert_int_equal(table_check(&f->load, f->names, &t, &f->err), ERR_NONE);
    static const struct {
        unsigned kinds;
        const char *type;
    } bases[] = {{KIND_INT | KIND_DECIMAL, "INTEGER"},
                 {KIND_DECIMAL, "NUMERIC"},
                 {KIND_BOOL, "BOOLEAN"},
                 {KIND_DATE, "DATE"},
                 {KIND_TIMESTAMPTZ, "TIMESTAMP"},
                 {0, "STRING"}};
    for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
        f->columns[0].kinds = bases[i].kinds;
        assert_string_equal(table_base_type(&f->load, 0), bases[i].type);
    }
    assert_string_equal(table_base_type(&f->load, 1), "STRING");
}

/* ---- jobs ---- */

static enum err_code job_end(struct fixture *f, const char *text, bool *is_final, bool *again)
{
    struct json_object *o = json(text);
    enum err_code code = keboola_job_end(o, is_final, again, &f->err);
    json_object_put(o);
    return code;
}

static void a_job_ends_well_or_for_the_file_or_for_the_platform(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *json;
        enum err_code code;
        bool is_final, again;
    } cases[] = {
        {"{\"status\":\"waiting\"}", ERR_NONE, false, false},
        {"{\"status\":\"processing\",\"error\":{\"message\":\"x\"}}", ERR_NONE, false, false},
        {"{\"status\":\"success\"}", ERR_NONE, true, false},
        {"{}", ERR_NONE, false, false},
        {"[]", ERR_NONE, false, false},
        {"{\"status\":{}}", ERR_NONE, false, false},
        {"{\"id\":5,\"status\":\"error\",\"error\":{\"code\":\"csvImport.columnsNotMatch\",\"message\":\"Missing "
         "columns: x\"}}",
         ERR_INPUT, true, false},
        {"{\"status\":\"error\",\"error\":{\"code\":\"invalidData\",\"message\":\"Load error: x\"}}", ERR_INPUT, true,
         false},
        {"{\"status\":\"error\",\"error\":{\"message\":\"Load error: x\"}}", ERR_INPUT, true, false},
        {"{\"status\":\"error\",\"error\":{\"code\":null,\"message\":\"Internal Server Error\"}}", ERR_REMOTE, true,
         false},
        {"{\"status\":\"error\",\"error\":{\"code\":\"\",\"message\":\"Application error\"}}", ERR_REMOTE, true, false},
        {"{\"status\":\"error\"}", ERR_REMOTE, true, false},
        {"{\"status\":\"error\",\"error\":[]}", ERR_REMOTE, true, false},
        {"{\"status\":\"error\",\"error\":{\"code\":\"storage.fileNotUploaded\",\"message\":\"x\"}}", ERR_REMOTE, true,
         true},
        {"{\"status\":\"error\",\"error\":{\"code\":\"storage.manifestFileMissing\",\"message\":\"x\"}}", ERR_REMOTE,
         true, true},
        {"{\"status\":\"error\",\"error\":{\"code\":\"storage.unauthorizedAccess\",\"message\":\"x\"}}", ERR_REMOTE,
         true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool is_final, again;
        assert_int_equal(job_end(f, cases[i].json, &is_final, &again), cases[i].code);
        assert_int_equal(is_final, cases[i].is_final);
        assert_int_equal(again, cases[i].again);
        assert_int_equal(f->err.retryable, cases[i].code == ERR_REMOTE);
    }
}

static void a_failed_job_is_quoted_with_code_and_exception(void **state)
{
    struct fixture *f = *state;
    bool is_final, again;
    job_end(
        f,
        "{\"id\":\"22070846\",\"status\":\"error\",\"error\":{\"code\":\"invalidData\",\"message\":\"Load\\nerror\","
        "\"exceptionId\":\"keboola-connection-5f0e\"}}",
        &is_final, &again);
    assert_non_null(strstr(f->err.text, "job 22070846 failed: Load"));
    assert_non_null(strstr(f->err.text, "(invalidData, exception keboola-connection-5f0e)"));
    assert_null(strchr(f->err.text, '\n'));
}

static void the_looks_at_a_job_come_later_and_later(void **state)
{
    (void)state;
    assert_int_equal(keboola_poll_ms(0), 50);
    assert_int_equal(keboola_poll_ms(1), 100);
    assert_int_equal(keboola_poll_ms(6), 3200);
    assert_int_equal(keboola_poll_ms(7), 5000);
    assert_int_equal(keboola_poll_ms(UINT32_MAX), 5000);
}

static void the_job_of_a_file_is_found_among_others(void **state)
{
    (void)state;
    bool more;
    struct json_object *list = json("[{\"id\":9,\"createdTime\":\"2026-03-01T10:15:41+0100\",\"operationParams\":[]},"
                                    "{\"id\":\"8\",\"createdTime\":\"2026-03-01T10:15:40+0100\",\"operationParams\":{"
                                    "\"source\":{\"fileId\":\"77\"}}},"
                                    "{\"id\":[],\"createdTime\":\"2026-03-01T10:15:39+0100\",\"operationParams\":{"
                                    "\"source\":{\"fileId\":78}}}, 5, null]");
    const int64_t then = INT64_C(1772356541000); /* 2026-03-01T09:15:41Z */
    assert_int_equal(keboola_find_job(list, 77, then, &more), 8);
    assert_int_equal(keboola_find_job(list, 78, then, &more), -1);
    json_object_put(list);
    list = json("[{\"id\":9,\"createdTime\":\"2026-03-01T10:15:41+0100\"}]");
    assert_int_equal(keboola_find_job(list, 1, then, &more), 0);
    assert_true(more);
    assert_int_equal(keboola_find_job(list, 1, then + 9 * 60 * 1000, &more), 0); /* clocks differ */
    assert_true(more);
    assert_int_equal(keboola_find_job(list, 1, then + 11 * 60 * 1000, &more), 0);
    assert_false(more);
    json_object_put(list);
    list = json("[]");
    assert_int_equal(keboola_find_job(list, 1, then, &more), 0);
    assert_false(more);
    json_object_put(list);
    assert_int_equal(keboola_find_job(NULL, 1, then, &more), 0);
}

/* ---- the checkpoint ---- */

static void a_checkpoint_comes_back_as_it_was(void **state)
{
    (void)state;
    char text[CHECKPOINT_MAX];
    struct keboola_walk w = {.hash = "0123456789abcdef0123456789abcdef",
                             .table = "sales.orders",
                             .at = "0123456789abcdef",
                             .file = INT64_MAX,
                             .job = 22070846,
                             .ordered_ms = INT64_MAX,
                             .parsed = UINT64_MAX,
                             .rejected = 7,
                             .bytes = UINT64_MAX,
                             .rows_before = -1},
                        r;
    for (unsigned bits = 0; bits < 128; bits++) {
        w.is_uploaded = bits & 1;
        w.creates = bits & 2;
        w.made = bits & 4;
        w.is_sliced = bits & 8;
        w.is_keyed = bits & 16;
        w.is_raw = bits & 32;
        w.drops = bits & 64;
        keboola_walk_write(&w, text, sizeof text);
        memset(&r, 0, sizeof r);
        assert_true(keboola_walk_read(text, &r));
        assert_string_equal(r.hash, w.hash);
        assert_string_equal(r.table, w.table);
        assert_string_equal(r.at, w.at);
        assert_true(r.file == w.file && r.job == w.job && r.ordered_ms == w.ordered_ms && r.parsed == w.parsed &&
                    r.rejected == w.rejected && r.bytes == w.bytes && r.rows_before == w.rows_before);
        assert_true(r.is_uploaded == w.is_uploaded && r.creates == w.creates && r.made == w.made &&
                    r.is_sliced == w.is_sliced && r.is_keyed == w.is_keyed && r.is_raw == w.is_raw &&
                    r.drops == w.drops);
        assert_true(strlen(text) < CHECKPOINT_MAX / 4);
    }
    w = (struct keboola_walk){.hash = "0123456789abcdef0123456789abcdef", .table = "b.t", .at = "00"};
    keboola_walk_write(&w, text, sizeof text);
    assert_string_equal(text, "");
    w.drops = true; /* a delete that was asked for */
    keboola_walk_write(&w, text, sizeof text);
    assert_true(keboola_walk_read(text, &r) && r.drops && r.file == 0);
    w.drops = false;
    w.made = true; /* a table that we defined before a file was prepared */
    keboola_walk_write(&w, text, sizeof text);
    assert_true(keboola_walk_read(text, &r));
}

static void a_checkpoint_of_another_table_or_project_is_none_of_ours(void **state)
{
    struct fixture *f = *state;
    char text[CHECKPOINT_MAX];
    struct keboola_walk w = {.hash = "00", .table = "sales.orders", .at = "abc", .job = 7, .file = 8}, r = {0};
    snprintf(f->k.identity, sizeof f->k.identity, "abc");
    keboola_walk_write(&w, text, sizeof text);
    f->load.checkpoint = text;
    f->load.space = "sales";
    f->load.table = "orders";
    assert_true(keboola_walk_of(&f->k, &f->load, &r));
    assert_int_equal(r.job, 7);
    snprintf(f->k.identity, sizeof f->k.identity, "abd"); /* the configuration names another stage since */
    assert_false(keboola_walk_of(&f->k, &f->load, &r));
    snprintf(f->k.identity, sizeof f->k.identity, "abc");
    f->load.table = "orders2"; /* the flow has other names since */
    assert_false(keboola_walk_of(&f->k, &f->load, &r));
    f->load.checkpoint = NULL;
    assert_false(keboola_walk_of(&f->k, &f->load, &r));
}

static void what_is_no_checkpoint_changes_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = {NULL, "", "keboola1", "keboola2 hash=00 file=1", "keboola1 hash=0 file=x job=1"};
    struct keboola_walk r = {.file = 5};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_false(keboola_walk_read(bad[i], &r));
        assert_int_equal(r.file, 5);
    }
}

/* ---- answers ---- */

static struct api_reply judge(struct fixture *f, int status, const char *body)
{
    struct api_reply r = {.status = status, .json = api_parse(&f->k, body, strlen(body))};
    api_judge(&f->k, "GET x", body[0] != '\0', &r);
    return r;
}

static void answers_are_classed_by_status_and_by_who_speaks(void **state)
{
    struct fixture *f = *state;
    static const char api[] = "{\"error\":\"said\",\"code\":\"storage.x\",\"exceptionId\":\"keboola-1\"}";
    static const struct {
        int status;
        const char *body;
        enum err_code code;
        bool retryable;
    } cases[] = {
        {200, "{}", ERR_NONE, false},        {200, "[]", ERR_NONE, false},      {204, "", ERR_NONE, false},
        {200, "", ERR_REMOTE, true},         {200, "<html>", ERR_REMOTE, true}, {202, "\"text\"", ERR_REMOTE, true},
        {202, "{\"id\":", ERR_REMOTE, true}, {400, api, ERR_INPUT, false},      {400, "<html>", ERR_REMOTE, true},
        {404, api, ERR_INPUT, false},        {404, "", ERR_REMOTE, true},       {401, api, ERR_DENIED, false},
        {401, "", ERR_DENIED, false},        {403, api, ERR_DENIED, false},     {405, api, ERR_REMOTE, false},
        {408, "", ERR_REMOTE, true},         {423, api, ERR_REMOTE, true},      {429, api, ERR_REMOTE, true},
        {500, api, ERR_REMOTE, true},        {501, api, ERR_REMOTE, false},     {502, "<html>", ERR_REMOTE, true},
        {503, "", ERR_REMOTE, true},         {302, "", ERR_REMOTE, true},       {405, "<html>", ERR_REMOTE, true},
        {501, "", ERR_REMOTE, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct api_reply r = judge(f, cases[i].status, cases[i].body);
        assert_int_equal(r.err.code, cases[i].code);
        assert_int_equal(r.err.retryable, cases[i].retryable);
        json_object_put(r.json);
    }
    struct api_reply r = judge(f, 400, api);
    assert_non_null(strstr(r.err.text, "said (storage.x, exception keboola-1)"));
    assert_string_equal(r.code, "storage.x");
    assert_true(r.is_api);
    json_object_put(r.json);
    assert_int_equal(f->k.pause_until_ms, 0);
}

static void maintenance_pauses_the_destination_and_says_until_when(void **state)
{
    struct fixture *f = *state;
    struct api_reply r =
        judge(f, 503,
              "{\"status\":\"maintenance\",\"estimatedEndTime\":\"2026-03-01T12:00:00+01:00\",\"reason\":\"Upgrade\"}");
    assert_int_equal(r.err.code, ERR_REMOTE);
    assert_non_null(strstr(r.err.text, "2026-03-01T12:00:00+01:00"));
    assert_non_null(strstr(r.err.text, "Upgrade"));
    assert_true(f->k.pause_until_ms > 0);
    json_object_put(r.json);
}

static void our_token_is_made_stars_wherever_the_service_puts_it(void **state)
{
    struct fixture *f = *state;
    static const char body[] =
        "{\"error\":\"a " TOKEN " b\",\"code\":\"" TOKEN "\",\"exceptionId\":\"x" TOKEN TOKEN "\"}";
    struct api_reply r = judge(f, 400, body);
    assert_null(strstr(r.err.text, TOKEN));
    assert_null(strstr(r.code, TOKEN));
    assert_non_null(strstr(r.err.text, "a ****"));
    assert_null(strstr(json_object_to_json_string(r.json), TOKEN));
    json_object_put(r.json);
}

static void a_secret_is_taken_out_of_an_error_also_where_it_was_cut(void **state)
{
    struct fixture *f = *state;
    err_set(&f->err, ERR_REMOTE, true, "a sig=SECRETSECRET b SECRETSECRET c");
    api_hide(&f->err, "SECRETSECRET");
    assert_string_equal(f->err.text, "a sig=*** b *** c");
    err_set(&f->err, ERR_REMOTE, true, "ends in SECRETSE");
    api_hide(&f->err, "SECRETSECRET");
    assert_string_equal(f->err.text, "ends in ***");
    err_set(&f->err, ERR_REMOTE, true, "ends in SEC");
    api_hide(&f->err, "SECRETSECRET");
    assert_string_equal(f->err.text, "ends in SEC");
    api_hide(&f->err, NULL);
    api_hide(&f->err, "");
    api_hide(&f->err, "in"); /* too short to be one */
    assert_string_equal(f->err.text, "ends in SEC");
    memset(f->err.text, 'x', sizeof f->err.text - 1);
    memcpy(f->err.text + sizeof f->err.text - 1 - 7, "SECRETS", 8);
    api_hide(&f->err, "SECRETSECRET");
    assert_int_equal(strlen(f->err.text), sizeof f->err.text - 1 - 4);
}

/* ---- where to upload ---- */

static bool target(struct fixture *f, const char *text, struct store_target *t, const char **account)
{
    struct json_object *o = json(text);
    bool is_whole = keboola_target(o, &f->options, &f->arena, t, account);
    json_object_put(o);
    return is_whole;
}

static void what_prepare_hands_out_is_read_for_each_store(void **state)
{
    struct fixture *f = *state;
    struct store_target t;
    const char *account;
    assert_true(target(f,
                       "{\"provider\":\"aws\",\"name\":\"x.csv\",\"region\":\"eu\",\"uploadParams\":{\"bucket\":\"b\","
                       "\"key\":\"k/x\",\"acl\":\"private\","
                       "\"credentials\":{\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"S\",\"SessionToken\":\"T\"}}}",
                       &t, &account));
    assert_int_equal(t.kind, STORE_S3);
    assert_string_equal(t.secret_key, "S");
    assert_null(t.sse);
    assert_null(account);
    assert_true(target(f,
                       "{\"provider\":\"azure\",\"absUploadParams\":{\"container\":\"c\",\"blobName\":\"n\","
                       "\"accountName\":\"acc\",\"absCredentials\":"
                       "{\"SASConnectionString\":\"BlobEndpoint=https://h;SharedAccessSignature=sv=1&sig=a%3D\"}}}",
                       &t, &account));
    assert_string_equal(t.endpoint, "https://h");
    assert_string_equal(t.sas, "sv=1&sig=a%3D");
    assert_string_equal(account, "acc");
    assert_true(target(
        f, "{\"provider\":\"gcp\",\"gcsUploadParams\":{\"bucket\":\"b\",\"key\":\"k\",\"access_token\":\"ya29\"}}", &t,
        &account));
    assert_string_equal(t.access_token, "ya29");
    static const char *const bad[] = {
        "{}",
        "[]",
        "{\"provider\":7}",
        "{\"provider\":\"floppy\"}",
        "{\"provider\":\"aws\"}",
        "{\"provider\":\"aws\",\"uploadParams\":[]}",
        "{\"provider\":\"azure\",\"absUploadParams\":{\"container\":\"c\",\"absCredentials\":{}}}",
        "{\"provider\":\"gcp\",\"gcsUploadParams\":{\"bucket\":\"b\",\"key\":\"k\",\"access_token\":{}}}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(target(f, bad[i], &t, &account));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(names_become_what_the_service_makes_of_them),
        TEST(of_some_names_nothing_is_left),
        TEST(a_long_name_is_cut_and_stays_different_for_ever),
        TEST(names_that_differ_in_case_only_have_one_key),
        TEST(keep_takes_only_what_the_service_takes),
        TEST(columns_are_called_as_the_service_calls_them),
        TEST(headers_that_it_can_not_take_are_refused_by_name),
        TEST(a_table_is_read_in_every_form_the_service_has),
        TEST(a_header_that_differs_is_told_with_its_differences),
        TEST(the_header_that_the_ledger_knows_binds_where_there_is_no_table),
        TEST(keys_must_be_those_of_the_table),
        TEST(values_must_fit_the_types_of_the_table),
        TEST(a_job_ends_well_or_for_the_file_or_for_the_platform),
        TEST(a_failed_job_is_quoted_with_code_and_exception),
        TEST(the_looks_at_a_job_come_later_and_later),
        TEST(the_job_of_a_file_is_found_among_others),
        TEST(a_checkpoint_comes_back_as_it_was),
        TEST(a_checkpoint_of_another_table_or_project_is_none_of_ours),
        TEST(what_is_no_checkpoint_changes_nothing),
        TEST(answers_are_classed_by_status_and_by_who_speaks),
        TEST(maintenance_pauses_the_destination_and_says_until_when),
        TEST(our_token_is_made_stars_wherever_the_service_puts_it),
        TEST(a_secret_is_taken_out_of_an_error_also_where_it_was_cut),
        TEST(what_prepare_hands_out_is_read_for_each_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
