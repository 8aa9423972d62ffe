/* test_config_records.c -- `records` of a flow: what a rule becomes, and every mistake with its place. */
#include "config.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "alloc_fault.h"
#include "config_fakes.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[256];

static void put(const char *text)
{
    FILE *f = fopen("c.yaml", "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

#define HEAD                                                                                                           \
    "sources: {in: {type: directory, path: inbox}}\n"                                                                  \
    "destinations: {lite: {type: sqlite, path: w.db}, vault: {type: vault, token: hunter22}}\n"                        \
    "flows:\n  - name: f\n    from: in\n    to: lite\n    format: json\n"
/* Six lines before it; a rule begins in line 9, column 9. */
#define RECORDS HEAD "    records:\n      - "

static struct config *load(const char *text)
{
    struct config *c = NULL;
    char *errors = NULL;
    struct err err;
    put(text);
    if (config_load("c.yaml", &fake_drivers, &c, &errors, &err) != ERR_NONE)
        fail_msg("%s\n%s", errors, text);
    return c;
}

static void rules_become_parts_with_plans(void **state)
{
    (void)state;
    struct config *c =
        load(RECORDS "when: {/metadata/type: card, /n: [1, 2]}\n"
                     "        table: Cards\n"
                     "        columns:\n"
                     "          id: {from: /payload/id, type: bigint}\n"
                     "          active: {from: /payload/active, type: boolean, default: false}\n"
                     "          at: {from: /at, type: timestamp, required: true}\n"
                     "        key: [id]\n"
                     "        load: newest\n"
                     "        order_by: [at]\n"
                     "        continue: true\n"
                     "      - {when: {/metadata/type: user}, table: log, columns: {raw: {from: \"\", type: json}}}\n"
                     "      - {table: log, columns: {raw: {from: /payload, type: json}}}\n");
    const struct config_flow *f = &c->flows[0];
    assert_int_equal(f->format, FORMAT_JSON);
    assert_string_equal(f->table, "{flow}");
    assert_true(flow_is_constant(f));
    char table[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
    struct err err;
    assert_int_equal(flow_table_name(f, "a/b.json", table, key, sizeof(table), &err), ERR_NONE);
    assert_string_equal(table, "f");
    assert_string_equal(key, "records:f"); /* a file f.csv beside it has another table f */
    assert_string_equal(f->include.items[0], "**/*.{json,jsonl,ndjson}{,.gz,.zst}");
    assert_int_equal(f->events.max_event, 1 << 20);
    assert_int_equal(f->events.rule_count, 3);
    assert_int_equal(f->part_count, 2);
    assert_int_equal(f->plan.mode, MODE_APPEND); /* one of them appends */
    const struct event_rule *card = &f->events.rules[0];
    assert_int_equal(card->part, 0);
    assert_true(card->goes_on);
    assert_int_equal(card->when_count, 2);
    assert_string_equal(card->whens[0].from, "/metadata/type");
    assert_string_equal(card->whens[0].values.items[0], "card");
    assert_int_equal(card->whens[1].values.count, 2);
    assert_string_equal(card->whens[1].values.items[1], "2");
    assert_int_equal(card->column_count, 3);
    assert_true(card->columns[0].required); /* the key is */
    assert_int_equal(card->columns[1].type, EVENT_BOOLEAN);
    assert_string_equal(card->columns[1].default_text, "false");
    assert_false(card->columns[1].required);
    assert_true(card->columns[2].required);
    const struct load_part *cards = &f->parts[0];
    assert_string_equal(cards->table, "Cards");
    assert_int_equal(cards->shape->column_count, 3);
    assert_string_equal(cards->shape->columns[2].name, "at");
    assert_int_equal(cards->plan->mode, MODE_NEWEST);
    assert_string_equal(cards->plan->key.items[0], "id");
    assert_string_equal(cards->plan->order_by.items[0], "at");
    assert_int_equal(cards->plan->types.policy, TYPES_MAP);
    assert_int_equal(cards->plan->types.count, 3);
    assert_string_equal(cards->plan->types.entries[2].type, "timestamp");
    assert_int_equal(cards->plan->on_schema_change, SCHEMA_REJECT); /* not the destination's recreate */
    assert_string_equal(cards->plan->flow, "f");
    /* two rules, one table */
    assert_int_equal(f->events.rules[1].part, 1);
    assert_int_equal(f->events.rules[2].part, 1);
    assert_int_equal(f->parts[1].plan->mode, MODE_APPEND);
    assert_non_null(f->events.tree);
    config_unref(c);
}

static void what_the_flow_says_is_the_rules_default(void **state)
{
    (void)state;
    struct config *c = load(HEAD "    load: upsert\n    on_schema_change: add_columns\n    max_event: 2MiB\n"
                                 "    include: [\"*.ev\"]\n    table: lane\n    records:\n"
                                 "      - {table: a, key: [x], when: {/t: a}, columns: {x: {from: /x}}}\n"
                                 "      - {table: b, load: keep_first, key: [x], columns: {x: {from: /x}}}\n");
    const struct config_flow *f = &c->flows[0];
    assert_int_equal(f->parts[0].plan->mode, MODE_UPSERT);
    assert_int_equal(f->parts[0].plan->on_schema_change, SCHEMA_ADD_COLUMNS);
    assert_int_equal(f->parts[1].plan->mode, MODE_KEEP_FIRST);
    assert_int_equal(f->events.rules[0].columns[0].type, EVENT_TEXT);
    assert_int_not_equal(f->plan.mode, MODE_APPEND); /* nothing can be added twice */
    assert_int_not_equal(f->plan.mode, MODE_REPLACE);
    assert_string_equal(f->include.items[0], "*.ev");
    assert_string_equal(f->table, "lane");
    config_unref(c);
}

struct bad {
    const char *text, *errors;
};

static void every_mistake_is_told_with_its_place(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {HEAD, "c.yaml:7:13: flows.f: format: json needs `records`, which say what table an event goes to; `chute init "
               "events` writes an example"},
        {HEAD "    records: []\n", "c.yaml:8:14: flows.f.records: expected a list of 1 to 256 rules, found a list"},
        {HEAD "    records: {}\n", "c.yaml:8:14: flows.f.records: expected a list of 1 to 256 rules, found a mapping"},
        {RECORDS "x\n", "c.yaml:9:9: flows.f.records[0]: expected a rule: a mapping with table and columns, found 'x'"},
        {RECORDS "{tabel: t, columns: {a: {from: /a}}}\n",
         "c.yaml:9:10: flows.f.records[0]: unknown key 'tabel'; did you mean 'table'?\n"
         "c.yaml:9:9: flows.f.records[0]: 'table' is missing"},
        {RECORDS "{table: t}\n", "c.yaml:9:9: flows.f.records[0]: 'columns' is missing"},
        {RECORDS "{table: t, columns: {}}\n",
         "c.yaml:9:29: flows.f.records[0].columns: expected a mapping of column names, found a mapping"},
        {RECORDS "{table: t, columns: {a: /a}}\n", "c.yaml:9:33: flows.f.records[0].columns.a: expected a mapping such "
                                                   "as {from: /payload/id, type: bigint}, found "
                                                   "'/a'"},
        {RECORDS "{table: t, columns: {a: {type: text}}}\n",
         "c.yaml:9:33: flows.f.records[0].columns.a: 'from' is missing"},
        {RECORDS "{table: t, columns: {a: {from: payload/id}}}\n",
         "c.yaml:9:40: flows.f.records[0].columns.a: expected a JSON Pointer such as /payload/id, or \"\" for the "
         "whole "
         "event, found 'payload/id'; did you mean '/payload/id'?"},
        {RECORDS "{table: t, columns: {a: {from: /a~2}}}\n",
         "c.yaml:9:40: flows.f.records[0].columns.a: in a JSON Pointer '~' is written ~0 and '/' in a key ~1; found "
         "'/a~2'"},
        {RECORDS "{table: t, columns: {a: {from: /a/-}}}\n",
         "c.yaml:9:40: flows.f.records[0].columns.a: '-' names the place behind the last element of an array, where "
         "nothing is"},
        {RECORDS "{table: t, columns: {a: {from: /a, type: bigin}}}\n",
         "c.yaml:9:50: flows.f.records[0].columns.a.type: expected one of bigint, double, decimal, boolean, date, "
         "timestamp, timestamptz, text, json, found 'bigin'; did you mean 'bigint'?"},
        {RECORDS "{table: t, columns: {a: {from: /a, type: bigint, default: one}}}\n",
         "c.yaml:9:67: flows.f.records[0].columns.a.default: expected bigint (a whole number within 64 bits), found "
         "'one'"},
        {RECORDS "{table: t, columns: {a: {from: /a}, A: {from: /b}}}\n",
         "c.yaml:9:45: flows.f.records[0].columns.A: differs from column 'a' in capitals only, which not every "
         "database "
         "can tell apart; rename one"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, when: {type: x}}\n",
         "c.yaml:9:53: flows.f.records[0].when: expected a JSON Pointer such as /payload/id, or \"\" for the whole "
         "event, found 'type'; did you mean '/type'?"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, when: {/type: {a: b}}}\n",
         "c.yaml:9:60: flows.f.records[0].when./type: expected a text, a number, true or false, found a mapping"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, when: {/type: []}}\n",
         "c.yaml:9:60: flows.f.records[0].when./type: expected a value or a list of values, found a list"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, when: x}\n",
         "c.yaml:9:52: flows.f.records[0].when: expected a mapping such as {/metadata/type: card}, found 'x'"},
        {RECORDS "{table: t, columns: {name: {from: /a}}, load: upsert, key: [nme]}\n",
         "c.yaml:9:69: flows.f.records[0].key: the rule has no column 'nme'; did you mean 'name'?"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, load: newest, key: [a], order_by: [a, b]}\n",
         "c.yaml:9:84: flows.f.records[0].order_by: the rule has no column 'b'"},
        {RECORDS "{table: t, columns: {a: {from: /a, type: json}}, load: upsert, key: [a]}\n",
         "c.yaml:9:78: flows.f.records[0].key: column 'a' is json, which has no order and no equality"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, load: upsert, key: [a, a]}\n",
         "c.yaml:9:69: flows.f.records[0].key: column 'a' is named twice"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, load: upsert}\n",
         "c.yaml:9:52: flows.f.records[0]: load: upsert needs a key; add `key: [COLUMN]`"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, load: newest, key: [a]}\n",
         "c.yaml:9:52: flows.f.records[0]: load: newest needs order_by; add `order_by: [COLUMN]`"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, order_by: [a]}\n",
         "c.yaml:9:56: flows.f.records[0]: order_by is for load: newest and keep_first, not for append"},
        {RECORDS "{table: t, columns: {a: {from: /a}}, load: replace}\n",
         "c.yaml:9:52: flows.f.records[0]: load: replace is not for records: the events of all other files would be "
         "lost; use append, upsert, keep_first or newest"},
        {RECORDS "{table: \"{stem}\", columns: {a: {from: /a}}}\n",
         "c.yaml:9:17: flows.f.records[0].table: expected the name of a table without placeholders, found '{stem}'"},
        {RECORDS "{table: t, columns: {a: {from: /a}}}\n      - {table: T, columns: {b: {from: /a}}, when: {/x: y}}\n",
         "c.yaml:10:9: flows.f.records[1]: is never reached: flows.f.records[0] has no `when` and takes every event; "
         "put it "
         "last, or give it `continue: true`\n"
         "c.yaml:10:17: flows.f.records[1].table: flows.f.records[0] has the same table, so both need the same "
         "columns, "
         "types, key, order_by, load and on_schema_change"},
        {HEAD "    csv: {delimiter: \";\"}\n    records:\n      - {table: t, columns: {a: {from: /a}}}\n",
         "c.yaml:8:5: flows.f: 'csv' is not for format: json: it says how CSV is read"},
        {HEAD "    types: text\n    records:\n      - {table: t, columns: {a: {from: /a}}}\n",
         "c.yaml:8:5: flows.f: 'types' is not for format: json: each column of `records` has its type"},
        {HEAD "    key: [a]\n    records:\n      - {table: t, columns: {a: {from: /a}}}\n",
         "c.yaml:8:5: flows.f: 'key' is not for format: json: each rule of `records` has its own"},
        {HEAD "    row_number: n\n    records:\n      - {table: t, columns: {a: {from: /a}}}\n",
         "c.yaml:8:5: flows.f: 'row_number' is not for format: json: events have no rows to count"},
        {HEAD "    require: [a]\n    records:\n      - {table: t, columns: {a: {from: /a}}}\n",
         "c.yaml:8:5: flows.f: 'require' is not for format: json: a column of `records` is required with "
         "`required: true`"},
        {HEAD "    on_delete: drop\n    records:\n      - {table: t, columns: {a: {from: /a}}}\n",
         "c.yaml:8:16: flows.f: on_delete: drop is for load: replace; a table with rows of several files can't follow "
         "one file"},
        {HEAD
         "    on_changed: again\n    records:\n      - {table: t, load: upsert, key: [a], columns: {a: {from: /a}}}\n",
         "c.yaml:8:17: flows.f: on_changed is for load: append, not for rules that can repeat nothing"},
        {HEAD "    max_event: 1\n    records:\n      - {table: t, columns: {a: {from: /a}}}\n",
         "c.yaml:8:16: flows.f.max_event: expected 64 B to 256.0 MiB, found '1'"},
        {"sources: {in: {type: directory, path: inbox}}\ndestinations: {lite: {type: sqlite, path: w.db}}\n"
         "flows:\n  - {name: f, from: in, to: lite, records: []}\n",
         "c.yaml:4:35: flows.f: 'records' is not for format: csv: add `format: json`"},
        {"sources: {in: {type: directory, path: inbox}}\ndestinations: {v: {type: vault, token: hunter22}}\n"
         "flows:\n  - {name: f, from: in, to: v, format: json, records: [{table: t, columns: {a: {from: /a}}}]}\n",
         "c.yaml:4:55: flows.f.records: destinations of type vault take no events"},
        {RECORDS "{table: t, columns: {a: {from: /a}}}\n  - {name: g, from: in, to: lite, table: T}\n",
         "c.yaml:10:42: flows.g.table: flow 'f' loads into the same table 'T', and one of them replaces all its rows; "
         "give each its own table"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct config *c = NULL;
        char *errors = NULL;
        struct err err;
        put(cases[i].text);
        if (config_load("c.yaml", &fake_drivers, &c, &errors, &err) != ERR_CONFIG)
            fail_msg("taken:\n%s", cases[i].text);
        if (strcmp(errors, cases[i].errors) != 0)
            print_error("case %zu:\n%s\n", i, cases[i].text);
        assert_string_equal(errors, cases[i].errors);
        free(errors);
    }
}

static void flows_with_events_may_share_a_table_that_nobody_replaces(void **state)
{
    (void)state;
    struct config *c = load(RECORDS "{table: t, columns: {a: {from: /a}}}\n"
                                    "  - {name: g, from: in, to: lite, table: t, load: append}\n"
                                    "  - {name: t, from: in, to: lite, format: json, records: [{table: t, columns: {a: "
                                    "{from: /a}}}]}\n"
                                    "  - {name: h, from: in, to: lite, table: f}\n"); /* f is no table */
    assert_int_equal(c->flow_count, 4);
    config_unref(c);
}

static uint64_t definition(const char *rule)
{
    char text[2000];
    snprintf(text, sizeof(text), "%s%s\n", RECORDS, rule);
    struct config *c = load(text);
    uint64_t hash = c->flows[0].definition;
    config_unref(c);
    return hash;
}

static void a_changed_rule_changes_the_meaning_of_the_flow(void **state)
{
    (void)state;
    static const char *const rules[] = {
        "{table: t, columns: {a: {from: /a}}}",
        "{table: u, columns: {a: {from: /a}}}",
        "{table: t, columns: {b: {from: /a}}}",
        "{table: t, columns: {a: {from: /b}}}",
        "{table: t, columns: {a: {from: /a, type: json}}}",
        "{table: t, columns: {a: {from: /a, required: true}}}",
        "{table: t, columns: {a: {from: /a, default: \"\"}}}",
        "{table: t, columns: {a: {from: /a}, b: {from: /b}}}",
        "{table: t, columns: {a: {from: /a}}, continue: true}",
        "{table: t, columns: {a: {from: /a}}, load: upsert, key: [a]}",
        "{table: t, columns: {a: {from: /a}}, when: {/x: y}}",
        "{table: t, columns: {a: {from: /a}}, when: {/x: [y, z]}}",
        "{table: t, columns: {a: {from: /a}}, when: {/y: y}}",
    };
    enum { COUNT = sizeof(rules) / sizeof(rules[0]) };
    uint64_t hashes[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        hashes[i] = definition(rules[i]);
        assert_true(hashes[i] == definition(rules[i]));
        for (size_t k = 0; k < i; k++)
            assert_true(hashes[i] != hashes[k]);
    }
}

static void the_profile_works_on_the_command_line(void **state)
{
    (void)state;
    struct config_quick quick = {.profile = "events", .watch = "inbox", .to = "sqlite:w.db"};
    struct config *c;
    struct err err;
    assert_int_equal(config_quick(&quick, &fake_drivers, &c, &err), ERR_NONE);
    const struct config_flow *f = &c->flows[0];
    char path[512];
    assert_string_equal(f->name, "events");
    assert_int_equal(f->format, FORMAT_JSON);
    assert_int_equal(f->part_count, 2);
    assert_string_equal(f->parts[0].table, "users");
    assert_int_equal(f->parts[0].plan->mode, MODE_KEEP_FIRST);
    assert_string_equal(f->parts[1].table, "cards");
    assert_int_equal(f->parts[1].plan->mode, MODE_NEWEST);
    snprintf(path, sizeof(path), "%s/completed", folder);
    assert_int_equal(f->after_success, AFTER_MOVE);
    assert_string_equal(f->after_success_dir, path);
    snprintf(path, sizeof(path), "%s/invalid", folder);
    assert_string_equal(f->after_failure_dir, path);
    assert_true(config_flow_takes(f, "users/a.json"));
    assert_false(config_flow_takes(f, "cards/__id_counter"));
    config_unref(c);
}

static void every_failed_allocation_is_told(void **state)
{
    (void)state;
    put(RECORDS "{when: {/t: [a, b]}, table: t, load: newest, key: [a], order_by: [b], columns: {a: {from: /a}, b: "
                "{from: /b/c, type: date, default: 2024-01-01}}}\n      - {table: u, columns: {a: {from: \"\"}}}\n");
    ALLOC_FAULT_SWEEP
    {
        struct config *c = NULL;
        char *errors = NULL;
        struct err err;
        enum err_code code = config_load("c.yaml", &fake_drivers, &c, &errors, &err);
        bool was_hit = alloc_fault_hit();
        assert_int_equal(code, was_hit ? ERR_SYSTEM : ERR_NONE);
        assert_null(errors);
        config_unref(c);
    }
}

static int enter_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/chute-test-records-XXXXXX");
    return mkdtemp(folder) != NULL && chdir(folder) == 0 && mkdir("inbox", 0700) == 0 ? 0 : -1;
}

static int leave_folder(void **state)
{
    (void)state;
    char path[300];
    snprintf(path, sizeof(path), "%s/c.yaml", folder);
    unlink(path);
    return rmdir("inbox") == 0 && chdir("/") == 0 ? rmdir(folder) : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_become_parts_with_plans),
        cmocka_unit_test(what_the_flow_says_is_the_rules_default),
        cmocka_unit_test(every_mistake_is_told_with_its_place),
        cmocka_unit_test(flows_with_events_may_share_a_table_that_nobody_replaces),
        cmocka_unit_test(a_changed_rule_changes_the_meaning_of_the_flow),
        cmocka_unit_test(the_profile_works_on_the_command_line),
        cmocka_unit_test(every_failed_allocation_is_told),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
