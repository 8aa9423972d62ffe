/*
 * test_dest_sqlite_parts.c -- one load, several tables: rows of real event files, small ones in a shared transaction
 * and large ones by stages.
 */
#include "lite_test.h"

#include "alloc_fault.h"
#include "inspect.h"

#include <sys/mman.h>

/* ---- a flow with two tables ---- */

static const char *const user_value[] = {"user"}, *const card_value[] = {"card"};
static struct event_when user_when = {.from = "/type", .values = {user_value, 1}};
static struct event_when card_when = {.from = "/type", .values = {card_value, 1}};
static struct event_column user_columns[] = {{.name = "id", .from = "/id", .type = EVENT_BIGINT, .required = true},
                                             {.name = "name", .from = "/name", .type = EVENT_TEXT},
                                             {.name = "at", .from = "/at", .type = EVENT_TIMESTAMP}};
static struct event_column card_columns[] = {{.name = "id", .from = "/id", .type = EVENT_BIGINT},
                                             {.name = "price", .from = "/price", .type = EVENT_DECIMAL},
                                             {.name = "raw", .from = "", .type = EVENT_JSON}};
static const struct option_type_entry user_types[] = {{"id", "bigint"}, {"name", "text"}, {"at", "timestamp"}};
static const struct option_type_entry card_types[] = {{"id", "bigint"}, {"price", "decimal"}, {"raw", "json"}};
static const char *const id_key[] = {"id"}, *const at_order[] = {"at"};
static struct column user_shape_columns[] = {{.name = "id"}, {.name = "name"}, {.name = "at"}};
static struct column card_shape_columns[] = {{.name = "id"}, {.name = "price"}, {.name = "raw"}};
static struct shape user_shape = {.columns = user_shape_columns, .column_count = 3};
static struct shape card_shape = {.columns = card_shape_columns, .column_count = 3};

struct flow {
    struct event_rule rules[2];
    struct event_options events;
    struct load_plan plan, plans[2];
    struct load_part parts[2];
    struct arena arena;
};

/* Users by MODE of their key, cards appended. */
static void flow_init(struct flow *flow, enum load_mode mode)
{
    struct err err;
    memset(flow, 0, sizeof(*flow));
    flow->rules[0] = (struct event_rule){
        .whens = &user_when, .when_count = 1, .columns = user_columns, .column_count = 3, .part = 0};
    flow->rules[1] = (struct event_rule){
        .whens = &card_when, .when_count = 1, .columns = card_columns, .column_count = 3, .part = 1};
    flow->events = (struct event_options){.max_event = 1 << 20, .rules = flow->rules, .rule_count = 2, .part_count = 2};
    flow->plan = (struct load_plan){.flow = "events", .mode = MODE_APPEND, .row_number = ""};
    flow->plans[0] = (struct load_plan){.flow = "events",
                                        .mode = mode,
                                        .key = {id_key, mode != MODE_APPEND},
                                        .row_number = "",
                                        .types = {TYPES_MAP, user_types, 3}};
    if (mode == MODE_NEWEST || mode == MODE_KEEP_FIRST)
        flow->plans[0].order_by = (struct option_strings){at_order, 1};
    flow->plans[1] = (struct load_plan){
        .flow = "events", .mode = MODE_APPEND, .row_number = "", .types = {TYPES_MAP, card_types, 3}};
    flow->parts[0] = (struct load_part){.plan = &flow->plans[0], .table = "users", .shape = &user_shape};
    flow->parts[1] = (struct load_part){.plan = &flow->plans[1], .table = "cards", .shape = &card_shape};
    arena_init(&flow->arena);
    assert_int_equal(event_compile(&flow->events, &flow->arena, &err), ERR_NONE);
}

/* A load of TEXT with its file. */
struct event_load {
    struct test_load *load;
    struct inspect_options options;
    struct arena arena;
    int fd;
};

static void event_load_new(struct fixture *f, struct flow *flow, const char *path, const char *text, uint64_t skip,
                           struct event_load *ret)
{
    struct shape *shape;
    struct err err;
    ret->fd = memfd_create("events", MFD_CLOEXEC);
    assert_int_equal(write(ret->fd, text, strlen(text)), strlen(text));
    ret->options = (struct inspect_options){.events = &flow->events, .skip_bad_rows = skip};
    arena_init(&ret->arena);
    ret->load = make_load(f, "events", path, NULL, 0);
    ret->load->base.plan = &flow->plan;
    ret->load->base.parts = flow->parts;
    ret->load->base.part_count = 2;
    assert_int_equal(inspect_events(ret->fd, &ret->options, &ret->arena, &shape, &ret->load->base.rows, &err),
                     ERR_NONE);
}

static void event_load_free(struct event_load *l)
{
    free_load(l->load);
    arena_done(&l->arena);
    close(l->fd);
}

/* Load TEXT; "inserted updated unchanged rejected", or the error. */
static const char *load_events(struct fixture *f, struct flow *flow, const char *path, const char *text, uint64_t skip)
{
    static char said[600];
    struct event_load l;
    event_load_new(f, flow, path, text, skip, &l);
    run_load(f, l.load);
    const struct receipt *r = &l.load->base.receipt;
    if (l.load->base.err.code != ERR_NONE)
        snprintf(said, sizeof(said), "%s", l.load->base.err.text);
    else
        snprintf(said, sizeof(said), "%llu %llu %llu %llu%s", (unsigned long long)r->inserted,
                 (unsigned long long)r->updated, (unsigned long long)r->unchanged, (unsigned long long)r->rejected,
                 r->is_duplicate ? " again" : "");
    event_load_free(&l);
    return said;
}

/* TEXT behind so many blanks that the file is a large one. */
static const char *large(const char *text)
{
    static char buffer[EVENT_HEAD_BYTES + 4096];
    memset(buffer, ' ', EVENT_HEAD_BYTES);
    snprintf(buffer + EVENT_HEAD_BYTES, 4096, "%s", text);
    return buffer;
}

static const char *as_is(const char *text)
{
    return text;
}

static const char *(*const sizes[])(const char *) = {as_is, large};

#define USER(id, name, at) "{\"type\":\"user\",\"id\":" id ",\"name\":\"" name "\",\"at\":\"2024-01-01 " at "\"}\n"
#define CARD(id, price) "{\"type\":\"card\",\"id\":" id ",\"price\":" price "}\n"

/* ---- tests ---- */

static void rows_reach_their_tables_with_the_types_of_the_rules(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    flow_init(&flow, MODE_UPSERT);
    for (int size = 0; size < 2; size++) {
        char path[20];
        snprintf(path, sizeof(path), "%d.json", size);
        assert_string_equal(load_events(f, &flow, path,
                                        sizes[size](USER("1", "a", "10:00:00") CARD("7", "12345678901234567890.10")
                                                        USER("2", "b", "10:00:00") CARD("7", "2")),
                                        0),
                            size == 0 ? "4 0 0 0" : "2 0 2 0");
    }
    assert_string_equal(ask(f, "SELECT id, name, at, typeof(id), typeof(at) FROM users ORDER BY id"),
                        "1|a|2024-01-01 10:00:00|integer|text\n2|b|2024-01-01 10:00:00|integer|text");
    assert_string_equal(ask(f, "SELECT price, count(*), min(raw) FROM cards GROUP BY price"),
                        "12345678901234567890.10|2|{\"type\":\"card\",\"id\":7,\"price\":12345678901234567890.10}\n"
                        "2|2|{\"type\":\"card\",\"id\":7,\"price\":2}");
    assert_string_equal(ask(f, "SELECT \"table\", path, parsed, inserted, unchanged FROM _chute_loads ORDER BY id"),
                        "events|0.json|4|4|0\nevents|1.json|4|2|2");
    assert_string_equal(ask(f, "SELECT name, flow FROM _chute_tables ORDER BY name"), "cards|events\nusers|events");
    assert_string_equal(ask(f, "SELECT count(*) FROM _chute_work"), "0");
    arena_done(&flow.arena);
}

static void one_row_of_a_key_wins_whatever_the_order(void **state)
{
    static const struct {
        enum load_mode mode;
        const char *name, *counts;
    } cases[] = {{MODE_UPSERT, "b", "1 2 0 0"}, {MODE_NEWEST, "c", "1 1 1 0"}, {MODE_KEEP_FIRST, "a", "1 0 2 0"}};
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct flow flow;
        flow_init(&flow, cases[i].mode);
        assert_string_equal(
            load_events(f, &flow, "a.json",
                        USER("1", "a", "10:00:00") USER("1", "c", "10:00:09.5") USER("1", "b", "10:00:09"), 0),
            cases[i].counts);
        assert_string_equal(ask(f, "SELECT name FROM users"), cases[i].name);
        /* by a stage, against what is there: only the winner of the file counts, so the numbers differ, the row not */
        assert_string_equal(
            load_events(f, &flow, "b.json",
                        large(USER("1", "a", "10:00:00") USER("1", "c", "10:00:09.5") USER("1", "b", "10:00:09")), 0),
            "0 0 3 0");
        assert_string_equal(ask(f, "SELECT name FROM users"), cases[i].name);
        assert_string_equal(load_events(f, &flow, "c.json", USER("1", "c2", "10:00:20") USER("1", "a0", "09:00:00"), 0),
                            cases[i].mode == MODE_UPSERT ? "0 2 0 0" : "0 1 1 0");
        assert_string_equal(ask(f, "SELECT name FROM users"), cases[i].mode == MODE_NEWEST ? "c2" : "a0");
        struct test_load *l = make_load(f, "events", "", NULL, 0);
        l->base.what = LOAD_FORGET;
        l->base.plan = &flow.plan;
        l->base.parts = flow.parts;
        l->base.part_count = 2;
        run_load(f, l);
        assert_int_equal(l->base.err.code, ERR_NONE);
        assert_string_equal(l->base.receipt.dest_id, "dropped");
        assert_string_equal(l->base.receipt.warnings, "users"); /* no card ever came */
        assert_int_equal(l->base.receipt.updated, 1);
        free_load(l);
        assert_string_equal(ask(f, "SELECT count(*) FROM _chute_loads"), "0");
        assert_string_equal(ask(f, "SELECT count(*) FROM sqlite_schema WHERE name = 'users'"), "0");
        arena_done(&flow.arena);
    }
}

static void the_same_version_is_not_loaded_again(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    flow_init(&flow, MODE_APPEND);
    for (int size = 0; size < 2; size++) {
        const char *text = sizes[size](USER("1", "a", "10:00:00"));
        const char *path = size == 0 ? "s.json" : "l.json";
        assert_string_equal(load_events(f, &flow, path, text, 0), "1 0 0 0");
        assert_string_equal(load_events(f, &flow, path, text, 0), "1 0 0 0 again");
    }
    assert_string_equal(ask(f, "SELECT count(*) FROM users"), "2");
    arena_done(&flow.arena);
}

static void a_bad_file_leaves_nothing_and_its_neighbours_stay(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    struct event_load loads[5];
    static const char *const texts[] = {
        USER("1", "a", "10:00:00") CARD("1", "1"), USER("2", "b", "10:00:00") USER("\"x\"", "c", "10:00:00"),
        USER("3", "c", "10:00:00"), CARD("4", "1") "{\"type\":\"card\"", CARD("5", "1") USER("5", "e", "10:00:00")};
    static const enum err_code codes[] = {ERR_NONE, ERR_INPUT, ERR_NONE, ERR_INCOMPLETE, ERR_NONE};
    flow_init(&flow, MODE_NEWEST);
    for (size_t i = 0; i < 5; i++) { /* in one transaction: begun in one turn of the loop */
        static char paths[5][8];
        snprintf(paths[i], sizeof(paths[i]), "%zu", i);
        event_load_new(f, &flow, paths[i], texts[i], 0, &loads[i]);
    }
    for (size_t i = 0; i < 5; i++)
        begin_load(f, loads[i].load);
    for (size_t i = 0; i < 5; i++) {
        run_until(f, &loads[i].load->is_done);
        assert_int_equal(loads[i].load->base.err.code, codes[i]);
        event_load_free(&loads[i]);
    }
    assert_string_equal(ask(f, "SELECT id FROM users ORDER BY id"), "1\n3\n5");
    assert_string_equal(ask(f, "SELECT id FROM cards ORDER BY id"), "1\n5");
    assert_string_equal(ask(f, "SELECT path FROM _chute_loads ORDER BY id"), "0\n2\n4");
    arena_done(&flow.arena);
}

/* The first file makes the table and is undone: the second must not believe that it is there. */
static void what_a_bad_file_made_is_not_taken_for_granted(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    struct event_load bad, good;
    flow_init(&flow, MODE_NEWEST);
    event_load_new(f, &flow, "bad", USER("1", "a", "10:00:00") "[]", 0, &bad);
    event_load_new(f, &flow, "good", USER("2", "b", "10:00:00"), 0, &good);
    begin_load(f, bad.load);
    begin_load(f, good.load);
    run_until(f, &good.load->is_done);
    assert_int_equal(bad.load->base.err.code, ERR_INPUT);
    assert_int_equal(good.load->base.err.code, ERR_NONE);
    assert_true(good.load->base.receipt.created_table);
    event_load_free(&bad);
    event_load_free(&good);
    assert_string_equal(ask(f, "SELECT id FROM users"), "2");
    arena_done(&flow.arena);
}

/* A drop between two files of one transaction. */
static void a_table_dropped_between_two_files_is_made_again(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    struct event_load before, after;
    flow_init(&flow, MODE_NEWEST);
    event_load_new(f, &flow, "before", USER("1", "a", "10:00:00"), 0, &before);
    event_load_new(f, &flow, "after", USER("2", "b", "10:00:00"), 0, &after);
    struct test_load *drop = make_load(f, "events", "", NULL, 0);
    drop->base.what = LOAD_FORGET;
    drop->base.plan = &flow.plan;
    drop->base.parts = flow.parts;
    drop->base.part_count = 2;
    begin_load(f, before.load);
    begin_load(f, drop);
    begin_load(f, after.load);
    run_until(f, &after.load->is_done);
    assert_int_equal(after.load->base.err.code, ERR_NONE);
    event_load_free(&before);
    event_load_free(&after);
    free_load(drop);
    assert_string_equal(ask(f, "SELECT id FROM users"), "2");
    arena_done(&flow.arena);
}

static void tables_of_others_bind(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    flow_init(&flow, MODE_NEWEST);
    assert_int_equal(connect_dest(f), ERR_NONE);
    ask(f, "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT, at TEXT)");
    ask(f, "CREATE TABLE cards(id INT, price REAL, raw TEXT)");
    for (int size = 0; size < 2; size++) {
        assert_string_equal(load_events(f, &flow, "u", sizes[size](USER("1", "a", "10:00:00")), 0),
                            size == 0 ? "1 0 0 0" : "0 0 1 0");
        assert_says(load_events(f, &flow, "p", sizes[size](CARD("1", "12345678901234567890.10")), 0),
                    "column 2 (price): the column is REAL in table cards, expected a value that fits it without loss, "
                    "found \"12345678901234567890.10\"");
        assert_string_equal(load_events(f, &flow, "q", sizes[size](CARD("1", "1.5")), 0), "1 0 0 0");
    }
    assert_string_equal(ask(f, "SELECT count(*) FROM cards"), "2");
    ask(f, "DROP TABLE users");
    ask(f, "CREATE TABLE users(id INTEGER PRIMARY KEY, nick TEXT)");
    for (int size = 0; size < 2; size++)
        assert_says(load_events(f, &flow, "v", sizes[size](CARD("2", "1") USER("1", "a", "10:00:00")), 0),
                    "header differs from the columns of table users");
    assert_string_equal(ask(f, "SELECT count(*) FROM cards"), "2"); /* all parts or none */
    assert_string_equal(ask(f, "SELECT count(*) FROM _chute_work"), "0");
    arena_done(&flow.arena);
}

static void a_row_that_a_table_refuses_counts_as_bad(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    flow_init(&flow, MODE_APPEND);
    assert_int_equal(connect_dest(f), ERR_NONE);
    ask(f, "CREATE TABLE users(id BIGINT, name TEXT CHECK(name <> 'no'), at TEXT)");
    assert_says(load_events(f, &flow, "a", USER("1", "yes", "10:00:00") USER("2", "no", "10:00:00"), 0),
                "line 2: CHECK constraint failed");
    assert_string_equal(load_events(f, &flow, "a", USER("1", "yes", "10:00:00") USER("2", "no", "10:00:00"), 1),
                        "1 0 0 1");
    assert_string_equal(ask(f, "SELECT name FROM users"), "yes");
    arena_done(&flow.arena);
}

static void every_failed_allocation_is_told_and_undone(void **state)
{
    struct fixture *f = *state;
    struct flow flow;
    flow_init(&flow, MODE_NEWEST);
    assert_int_equal(connect_dest(f), ERR_NONE);
    for (int size = 0; size < 2; size++) {
        unsigned run = 0;
        ALLOC_FAULT_SWEEP
        {
            char path[32];
            struct event_load l;
            long armed = alloc_fault_left;
            alloc_fault_set(0);
            snprintf(path, sizeof(path), "%d-%u", size, run++);
            event_load_new(f, &flow, path, sizes[size](USER("1", "a", "10:00:00") CARD("1", "1")), 0, &l);
            alloc_fault_set(armed);
            begin_load(f, l.load);
            run_until(f, &l.load->is_done);
            bool was_hit = alloc_fault_hit();
            long left = alloc_fault_left;
            alloc_fault_left = 0;
            if (was_hit && l.load->base.err.code != ERR_NONE)
                assert_true(l.load->base.err.retryable);
            else
                assert_int_equal(l.load->base.err.code, ERR_NONE);
            event_load_free(&l);
            alloc_fault_left = left;
        }
    }
    /* cards are appended: one for each load that says it worked */
    assert_string_equal(ask(f, "SELECT (SELECT count(*) FROM cards) = (SELECT count(*) FROM _chute_loads)"), "1");
    assert_string_equal(ask(f, "SELECT count(*) FROM users"), "1");
    arena_done(&flow.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_reach_their_tables_with_the_types_of_the_rules, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_row_of_a_key_wins_whatever_the_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_same_version_is_not_loaded_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_bad_file_leaves_nothing_and_its_neighbours_stay, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_a_bad_file_made_is_not_taken_for_granted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_table_dropped_between_two_files_is_made_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(tables_of_others_bind, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_row_that_a_table_refuses_counts_as_bad, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_failed_allocation_is_told_and_undone, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
