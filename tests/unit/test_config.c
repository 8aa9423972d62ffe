/*
 * test_config.c -- every mistake is told literally, with its place; and what is right arrives in the struct.
 */
#include "config.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "alloc_fault.h"
#include "config_fakes.h"
#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[256];

static void put(const char *name, const char *text, size_t size)
{
    FILE *f = fopen(name, "we");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

/* All messages for TEXT, or "" if it is fine. The caller frees. */
static char *errors_of(const char *text, size_t size)
{
    struct config *c = NULL;
    char *errors = NULL;
    struct err err;

    put("c.yaml", text, size);
    enum err_code code = config_load("c.yaml", &fake_drivers, &c, &errors, &err);
    if (code == ERR_NONE) {
        assert_null(errors);
        assert_non_null(c);
        config_unref(c);
        return strdup("");
    }
    assert_int_equal(code, ERR_CONFIG);
    assert_int_equal(err.code, ERR_CONFIG);
    assert_false(err.retryable);
    assert_null(c);
    assert_non_null(errors);
    assert_int_equal(strncmp(errors, err.text, strlen(err.text)), 0);
    return errors;
}

struct bad {
    const char *text;
    const char *errors;
};

static void check_all(const struct bad *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char *errors = errors_of(cases[i].text, strlen(cases[i].text));
        if (strcmp(errors, cases[i].errors) != 0)
            print_error("case %zu:\n%s\n", i, cases[i].text);
        assert_string_equal(errors, cases[i].errors);
        free(errors);
    }
}
#define CHECK_ALL(cases) check_all(cases, sizeof(cases) / sizeof((cases)[0]))

/* Three lines; a flow's own options come in line 5 and after, at column 5. */
#define ENDS                                                                                                           \
    "sources: {in: {type: directory, path: inbox}}\n"                                                                  \
    "destinations: {lite: {type: sqlite, path: w.db}, vault: {type: vault, token: hunter22}}\n"
#define FLOW "flows:\n  - {name: f, from: in, to: lite}\n"
#define OPEN_FLOW "flows:\n  - name: f\n    from: in\n    to: lite\n"

static struct config *load(const char *text)
{
    struct config *c = NULL;
    char *errors = NULL;
    struct err err;

    put("c.yaml", text, strlen(text));
    if (config_load("c.yaml", &fake_drivers, &c, &errors, &err) != ERR_NONE)
        fail_msg("%s\n%s", errors, text);
    return c;
}

static const char *here(const char *name)
{
    static char path[4][512];
    static int turn;

    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", folder, name);
    return path[turn];
}

static void a_small_file_gets_every_default_of_the_specification(void **state)
{
    (void)state;
    struct config *c = load(ENDS FLOW);
    assert_string_equal(c->file, here("c.yaml"));
    assert_string_equal(c->state, here(".chute"));
    assert_string_equal(c->instance, "");
    assert_int_equal(c->shutdown_grace, 20000);
    assert_int_equal(c->log_count, 1);
    assert_string_equal(c->logs[0].to, "stderr");
    assert_int_equal(c->logs[0].level, LOG_INFO);
    assert_int_equal(c->logs[0].format, LOG_TEXT);
    assert_string_equal(c->http_listen, "");
    assert_int_equal(c->limits.jobs, 4);
    assert_int_equal(c->limits.buffer, 12 << 20);
    assert_int_equal(c->limits.max_file_size, 0);
    assert_int_equal(c->retry.first, 1000);
    assert_true(c->retry.factor == 2);
    assert_int_equal(c->retry.max, 300000);
    assert_int_equal(c->retry.give_up_after, 7 * 86400000);
    assert_int_equal(c->history_keep, UINT64_C(90) * 86400000);
    const struct config_flow *f = &c->flows[0];
    assert_int_equal(f->include.count, 1);
    assert_string_equal(f->include.items[0], "**/*.csv{,.gz,.zst}");
    assert_int_equal(f->exclude.count, 0);
    assert_string_equal(f->table, "{path_stem}");
    assert_int_equal(f->csv.delimiter, 0);
    assert_int_equal(f->csv.quote, '"');
    assert_int_equal(f->csv.encoding, ENC_UTF8);
    assert_int_equal(f->csv.null_values.count, 1);
    assert_string_equal(f->csv.null_values.items[0], "");
    assert_int_equal(f->csv.short_rows, SHORT_REJECT);
    assert_int_equal(f->csv.max_row, 16 << 20);
    assert_int_equal(f->plan.mode, MODE_REPLACE);
    assert_int_equal(f->plan.names, NAMES_KEEP);
    assert_int_equal(f->plan.types.policy, TYPES_INFER);
    assert_int_equal(f->plan.on_schema_change, SCHEMA_RECREATE);
    assert_int_equal(f->plan.on_duplicate, DUPLICATE_SKIP);
    assert_string_equal(f->plan.row_number, "");
    assert_string_equal(f->plan.flow, "f");
    assert_int_equal(f->bad_rows, 0);
    assert_int_equal(f->on_changed, CHANGED_REJECT);
    assert_int_equal(f->after_success, AFTER_KEEP);
    assert_int_equal(f->after_failure, AFTER_KEEP);
    assert_int_equal(f->on_delete, ON_DELETE_IGNORE);
    assert_int_equal(f->incomplete_after, 5000);
    assert_ptr_equal(f->source, &c->sources[0]);
    assert_ptr_equal(f->dest, &c->dests[0]);
    assert_int_equal(c->sources[0].debounce_ms, 200);
    assert_int_equal(c->sources[0].settle_ms, 1000);
    assert_string_equal(c->sources[0].ready_marker, "");
    const struct fake_source *s = c->sources[0].options;
    assert_string_equal(s->path, here("inbox"));
    config_unref(c);
}

static void every_option_arrives_in_its_place(void **state)
{
    (void)state;
    struct config *c =
        load("state: st/./x\ninstance: 7\nshutdown_grace: 500ms\n"
             "log:\n  - {to: stdout, level: debug}\n  - {to: l/e.log, level: error, format: json, rotate_size: 1MiB, "
             "rotate_keep: 0}\n"
             "http: {listen: \"127.0.0.1:9180\"}\nlimits: {jobs: 2, buffer: 1MiB, max_file_size: 1GiB}\n"
             "retry: {first: 2s, factor: 1.5, max: 1m}\nhistory: {keep: 2h}\n"
             "sources:\n  in: {type: directory, path: /abs//inbox/, debounce: 1s, settle: 2s, ready_marker: "
             "\"{name}.done\"}\n"
             "destinations:\n  lite: {type: sqlite, path: ../w.db, retry: {max: 2m}}\n"
             "flows:\n  - name: f\n    from: in\n    to: lite\n    include: [\"a/*.csv\", b]\n    exclude: [\"a/x*\"]\n"
             "    csv: {delimiter: \"\\t\", quote: \"'\", encoding: windows-1250, null_values: [NA, \"-\"], "
             "short_rows: pad, max_row: 1KiB}\n"
             "    table: all_{flow}\n    names: snake\n    load: newest\n    key: [id, 2]\n    order_by: [at]\n"
             "    types: {id: bigint, at: timestamptz}\n    row_number: n\n    on_schema_change: add_columns\n"
             "    bad_rows: {skip: 100}\n    on_duplicate: reload\n    after_success: {move: done}\n    after_failure: "
             "{move: bad}\n"
             "    incomplete_after: 1m\n");
    assert_string_equal(c->state, here("st/x"));
    assert_string_equal(c->instance, "7");
    assert_int_equal(c->log_count, 2);
    assert_int_equal(c->logs[0].level, LOG_DEBUG);
    assert_string_equal(c->logs[1].to, here("l/e.log"));
    assert_int_equal(c->logs[1].rotate_keep, 0);
    assert_int_equal(c->logs[1].rotate_size, 1 << 20);
    assert_string_equal(c->http_listen, "127.0.0.1:9180");
    assert_int_equal(c->limits.max_file_size, 1 << 30);
    assert_int_equal(c->dests[0].retry.first, 2000);
    assert_int_equal(c->dests[0].retry.max, 120000);
    assert_true(c->dests[0].retry.factor == 1.5);
    assert_int_equal(c->retry.max, 60000);
    assert_string_equal(((const struct fake_source *)c->sources[0].options)->path, "/abs/inbox");
    assert_string_equal(c->sources[0].ready_marker, "{name}.done");
    assert_int_equal(c->sources[0].debounce_ms, 1000);
    const struct config_flow *f = &c->flows[0];
    assert_int_equal(f->csv.delimiter, '\t');
    assert_int_equal(f->csv.quote, '\'');
    assert_int_equal(f->csv.encoding, ENC_WINDOWS_1250);
    assert_int_equal(f->csv.short_rows, SHORT_PAD);
    assert_string_equal(f->csv.null_values.items[1], "-");
    assert_int_equal(f->plan.mode, MODE_NEWEST);
    assert_string_equal(f->plan.key.items[1], "2");
    assert_int_equal(f->plan.types.policy, TYPES_MAP);
    assert_int_equal(f->plan.types.count, 2);
    assert_string_equal(f->plan.types.entries[1].type, "timestamptz");
    assert_int_equal(f->plan.on_schema_change, SCHEMA_ADD_COLUMNS);
    assert_int_equal(f->bad_rows, 1);
    assert_int_equal(f->skip_bad_rows, 100);
    assert_int_equal(f->after_success, AFTER_MOVE);
    assert_string_equal(f->after_success_dir, here("done"));
    assert_int_equal(f->after_failure, AFTER_MOVE);
    assert_string_equal(f->after_failure_dir, here("bad"));
    config_unref(c);
}

static void json_is_accepted_as_a_subset(void **state)
{
    (void)state;
    struct config *c = load("{\"sources\": {\"in\": {\"type\": \"directory\", \"path\": \"inbox\"}},\n"
                            " \"destinations\": {\"lite\": {\"type\": \"sqlite\", \"path\": \"w.db\"}},\n"
                            "\t\"limits\": {\"jobs\": 3},\n"
                            " \"flows\": [{\"name\": \"f\", \"from\": \"in\", \"to\": \"lite\"}]}");
    assert_int_equal(c->limits.jobs, 3);
    config_unref(c);
}

static void unknown_keys_are_errors_with_a_suggestion(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {ENDS FLOW "limts: {jobs: 1}\n", "c.yaml:5:1: unknown key 'limts'; did you mean 'limits'?"},
        {ENDS FLOW "limits: {job: 1}\n", "c.yaml:5:10: limits: unknown key 'job'; did you mean 'jobs'?"},
        {ENDS FLOW "archived: {}\n", "c.yaml:5:1: unknown key 'archived'"},
        {ENDS FLOW "zzzzzz: 1\n", "c.yaml:5:1: unknown key 'zzzzzz'"},
        {ENDS OPEN_FLOW "    inclde: [a]\n", "c.yaml:7:5: flows.f: unknown key 'inclde'; did you mean 'include'?"},
        {ENDS OPEN_FLOW "    bucket: x\n", "c.yaml:7:13: flows.f.bucket: destinations of type sqlite have no buckets"},
        {ENDS OPEN_FLOW "    csv: {delimeter: x}\n",
         "c.yaml:7:11: flows.f.csv: unknown key 'delimeter'; did you mean 'delimiter'?"},
        {ENDS FLOW "log: [{to: stderr, levle: info}]\n",
         "c.yaml:5:20: log[0]: unknown key 'levle'; did you mean 'level'?"},
        {"sources: {in: {type: directory, path: a, debonce: 1s}}\ndestinations: {l: {type: sqlite, path: b}}\n"
         "flows: [{name: f, from: in, to: l}]",
         "c.yaml:1:42: sources.in: unknown key 'debonce'; did you mean 'debounce'?"},
    };
    CHECK_ALL(cases);
}

static void wrong_types_are_errors_that_say_what_was_expected(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {ENDS FLOW "limits: {jobs: many}\n", "c.yaml:5:16: limits.jobs: expected a whole number, found 'many'"},
        {ENDS FLOW "limits: {jobs: \"4\"}\n", "c.yaml:5:16: limits.jobs: expected a whole number, found '4' in quotes"},
        {ENDS FLOW "limits: {jobs: 0}\n", "c.yaml:5:16: limits.jobs: expected 1 to 256, found '0'"},
        {ENDS FLOW "limits: {jobs: [1]}\n", "c.yaml:5:16: limits.jobs: expected a whole number, found a list"},
        {ENDS FLOW "limits: {jobs: 99999999999999999999}\n",
         "c.yaml:5:16: limits.jobs: expected a whole number, found '99999999999999999999'"},
        {ENDS FLOW "limits: {buffer: 3XB}\n",
         "c.yaml:5:18: limits.buffer: expected a size such as 64KiB, 10MiB or 1GiB, found '3XB'"},
        {ENDS FLOW "limits: 3\n", "c.yaml:5:9: limits: expected a mapping (key: value), found '3'"},
        {ENDS FLOW "shutdown_grace: soon\n", "c.yaml:5:17: shutdown_grace: expected a duration such as 500ms, 5s, "
                                             "10m, 2h or 7d, found 'soon'"},
        {ENDS FLOW "retry: {factor: x}\n", "c.yaml:5:17: retry.factor: expected a number, found 'x'"},
        {ENDS FLOW "retry: {factor: 0.5}\n", "c.yaml:5:17: retry.factor: expected 1 to 100, found 0.5"},
        {ENDS FLOW "retry: {first: 10m}\n", "c.yaml:5:8: retry: max is shorter than first"},
        {ENDS FLOW "state:\n", "c.yaml:5:7: state: expected a path, found nothing"},
        {ENDS FLOW "state: \"\"\n", "c.yaml:5:8: state: expected a path, found an empty text"},
        {ENDS FLOW "state: ~/x\n", "c.yaml:5:8: state: '~' is not replaced here; write ${HOME}/x"},
        {ENDS FLOW "instance: {a: b}\n", "c.yaml:5:11: instance: expected a text, found a mapping"},
        {ENDS FLOW "instance: ~\n",
         "c.yaml:5:11: instance: expected a text, found nothing (write \"\" for an empty text)"},
        {ENDS FLOW "log: stderr\n", "c.yaml:5:6: log: expected a list of outputs, found 'stderr'"},
        {ENDS FLOW "log: [stderr]\n", "c.yaml:5:7: log[0]: expected a mapping such as {to: stderr}, found 'stderr'"},
        {ENDS FLOW "log: [{level: info}]\n", "c.yaml:5:7: log[0]: 'to' is missing"},
        {ENDS FLOW "log: [{to: a}, {to: ./a}]\n", "c.yaml:5:21: log: two outputs to one file would mix their lines"},
        {ENDS FLOW "http: {listen: 9180}\n",
         "c.yaml:5:16: http.listen: expected HOST:PORT such as 127.0.0.1:9180 or [::1]:9180, found another text"},
        {ENDS OPEN_FLOW "    load: apend\n", "c.yaml:7:11: flows.f.load: expected one of replace, append, upsert, "
                                             "keep_first, newest, found 'apend'; did you mean 'append'?"},
        {ENDS OPEN_FLOW "    names: blob\n",
         "c.yaml:7:12: flows.f.names: blob is for blobs; destinations of type sqlite hold tables"},
        {ENDS OPEN_FLOW "    format: raw\n",
         "c.yaml:7:13: flows.f.format: destinations of type sqlite hold tables: raw has no rows for them"},
        {ENDS OPEN_FLOW "    format: raw\n    key: [a]\n",
         "c.yaml:8:5: flows.f: 'key' is not for format: raw: files are taken as they are"},
        {ENDS OPEN_FLOW "    blob: x\n",
         "c.yaml:7:5: flows.f: 'blob' is not for format: csv: it is for `format: raw`; tables are named by `table`"},
        {ENDS OPEN_FLOW "    on_changed: version\n",
         "c.yaml:7:17: flows.f: on_changed: version and overwrite are for format: raw"},
        {ENDS OPEN_FLOW "    include: a.csv\n",
         "c.yaml:7:14: flows.f.include: expected a list such as [a, b], found 'a.csv'"},
        {ENDS OPEN_FLOW "    include: [[a]]\n",
         "c.yaml:7:15: flows.f.include: expected a text in this list, found a list"},
        {ENDS OPEN_FLOW "    types: int\n",
         "c.yaml:7:12: flows.f.types: expected text, infer, or a mapping {column: type}, found 'int'"},
        {ENDS OPEN_FLOW "    types: {id: bigin}\n",
         "c.yaml:7:17: flows.f.types.id: expected one of bigint, double, decimal, boolean, date, timestamp, "
         "timestamptz, text, found 'bigin'; did you mean 'bigint'?"},
        {ENDS OPEN_FLOW "    after_success: burn\n",
         "c.yaml:7:20: flows.f.after_success: expected one of keep, delete, {move: ...}, found 'burn'"},
        {ENDS OPEN_FLOW "    after_success: {}\n", "c.yaml:7:20: flows.f.after_success: 'move' is missing"},
        {ENDS OPEN_FLOW "    bad_rows: {skip: 0}\n",
         "c.yaml:7:22: flows.f.bad_rows.skip: expected 1 to 1000000000000, found '0'"},
        {ENDS OPEN_FLOW "    csv: {delimiter: ab}\n",
         "c.yaml:7:22: flows.f.csv.delimiter: expected one character or auto, found 'ab'"},
        {ENDS OPEN_FLOW "    csv: {quote: \"\xc3\xa9\"}\n",
         "c.yaml:7:18: flows.f.csv.quote: expected one character, found '\xc3\xa9'"},
        {ENDS FLOW "sources: 3\n", "c.yaml:5:1: 'sources' is given twice (first in line 1); keep one"},
        {"sources: 3\ndestinations: []\nflows: {}\n",
         "c.yaml:1:10: sources: expected a mapping of names, found '3'\n"
         "c.yaml:2:15: destinations: expected a mapping of names, found a list\n"
         "c.yaml:3:8: flows: expected a list, found a mapping"},
        {"a", "c.yaml:1:1: expected a mapping with sources, destinations and flows, found 'a'"},
        {"{}", "c.yaml:1:1: 'sources' is missing: name at least one folder to take files from\n"
               "c.yaml:1:1: 'destinations' is missing: name at least one database to load into\n"
               "c.yaml:1:1: 'flows' is missing: without a flow nothing is ever loaded"},
    };
    CHECK_ALL(cases);
}

static void drivers_and_names_are_looked_up_with_a_suggestion(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"sources: {in: {type: directry, path: a}, b: {path: x}, c: 1}\n"
         "destinations: {l: {type: sftp}}\nflows: [{name: f, from: in, to: l}]",
         "c.yaml:1:22: sources.in.type: expected one of directory, found 'directry'; did you mean 'directory'?\n"
         "c.yaml:1:45: sources.b: 'type' is missing; one of directory\n"
         "c.yaml:1:59: sources.c: expected a mapping with a type, found '1'\n"
         "c.yaml:2:26: destinations.l.type: expected one of sqlite, vault, found 'sftp'"},
        {"sources: {in: {type: directory}}\ndestinations: {l: {type: sqlite, path: forbidden}}\n"
         "flows: [{name: f, from: in, to: l}]",
         "c.yaml:1:15: sources.in: 'path' is missing\n"
         "c.yaml:2:19: destinations.l: path is forbidden"},
        {"sources: {inbox: {type: directory, path: a}}\ndestinations: {lite: {type: sqlite, path: b}}\n"
         "flows: [{name: f, from: inbx, to: litee}, {name: g, from: inbox}]",
         "c.yaml:3:35: flows.f.to: there is no destination 'litee'; did you mean 'lite'?\n"
         "c.yaml:3:25: flows.f.from: there is no source 'inbx'; did you mean 'inbox'?\n"
         "c.yaml:3:43: flows.g: 'to' is missing"},
        {ENDS "flows: [{name: f, from: in, to: lite}, {name: f, from: in, to: lite}]",
         "c.yaml:3:47: flows: there are two flows named 'f'; rename one"},
        {ENDS "flows: [{name: a/b, from: in, to: lite}]", "c.yaml:3:16: flows.a/b: a name has 1 to 100 bytes, no '/', "
                                                          "no control characters, and does not begin with '.'"},
        {ENDS "flows: [{from: in, to: lite}, 5]", "c.yaml:3:9: flows[0]: 'name' is missing\n"
                                                  "c.yaml:3:31: flows[1]: expected a mapping, found '5'"},
        {"sources: {in: {type: directory, path: a, ready_marker: done}}\ndestinations: {l: {type: sqlite, path: b}}\n"
         "flows: [{name: f, from: in, to: l}]",
         "c.yaml:1:56: sources.in.ready_marker: expected a file name with {name} in it, such as \"{name}.done\""},
    };
    CHECK_ALL(cases);
}

static void modes_are_checked_for_what_they_need(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {ENDS OPEN_FLOW "    load: upsert\n", "c.yaml:7:11: flows.f: load: upsert needs a key; add `key: [COLUMN]`"},
        {ENDS OPEN_FLOW "    load: keep_first\n",
         "c.yaml:7:11: flows.f: load: keep_first needs a key; add `key: [COLUMN]`"},
        {ENDS OPEN_FLOW "    load: newest\n    key: [id]\n",
         "c.yaml:7:11: flows.f: load: newest needs order_by; add `order_by: [COLUMN]`"},
        {ENDS OPEN_FLOW "    order_by: [id]\n",
         "c.yaml:7:15: flows.f: order_by is for load: newest and keep_first, not for replace"},
        {ENDS OPEN_FLOW "    key: [id, id]\n", "c.yaml:7:10: flows.f.key: column 'id' is named twice"},
        {ENDS OPEN_FLOW "    key: [\"\"]\n", "c.yaml:7:10: flows.f.key: a column name is empty"},
        {ENDS OPEN_FLOW "    on_changed: tail\n",
         "c.yaml:7:17: flows.f: on_changed is for load: append, not for replace"},
        {ENDS OPEN_FLOW "    load: append\n    on_schema_change: recreate\n",
         "c.yaml:8:23: flows.f: on_schema_change: recreate would lose the rows of earlier files; it is for load: "
         "replace, not for append"},
        {ENDS OPEN_FLOW "    load: append\n    on_delete: drop\n",
         "c.yaml:8:16: flows.f: on_delete: drop is for load: replace; a table with rows of several files can't follow "
         "one file"},
        {ENDS OPEN_FLOW "    table: all\n    on_delete: empty\n",
         "c.yaml:8:16: flows.f: on_delete: empty needs a table for each file; put {path_stem} or another placeholder "
         "in "
         "`table`"},
        {ENDS OPEN_FLOW "    table: \"\"\n", "c.yaml:7:12: flows.f.table: is empty"},
        {ENDS OPEN_FLOW "    include: []\n", "c.yaml:7:14: flows.f.include: is empty, so no file would ever be taken"},
        {ENDS OPEN_FLOW "    include: [a, /b]\n", "c.yaml:7:18: flows.f.include: a glob is compared with the path "
                                                  "below the root, which begins without '/' or './'"},
        {ENDS OPEN_FLOW "    csv: {delimiter: \"'\", quote: \"'\"}\n",
         "c.yaml:7:34: flows.f.csv: quote and delimiter must differ"},
    };
    CHECK_ALL(cases);
}

static void folders_and_tables_with_two_owners_are_refused(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {ENDS "flows:\n  - {name: f, from: in, to: lite, table: all, load: append}\n"
              "  - {name: g, from: in, to: lite, table: ALL}\n",
         "c.yaml:5:42: flows.g.table: flow 'f' loads into the same table 'ALL', and one of them replaces all its rows; "
         "give each its own table"},
    };
    CHECK_ALL(cases);
    char *errors = errors_of(ENDS OPEN_FLOW "    after_success: {move: inbox}\n",
                             strlen(ENDS OPEN_FLOW "    after_success: {move: inbox}\n"));
    assert_non_null(strstr(errors, "c.yaml:7:20: flows.f.after_success: "));
    assert_non_null(strstr(errors, "watches; what is moved there"));
    free(errors);
    static const char in_state[] = ENDS OPEN_FLOW "    after_failure: {move: .chute/x}\n";
    errors = errors_of(in_state, strlen(in_state));
    assert_non_null(strstr(errors, "lies in chute's own state folder; choose another"));
    free(errors);
    static const char root_in_state[] = "state: .\n" ENDS FLOW;
    errors = errors_of(root_in_state, strlen(root_in_state));
    assert_non_null(strstr(errors, "c.yaml:2:39: sources.in.path: "));
    free(errors);
    /* Two appending flows may share a table, and a folder below the root may take what is done. */
    config_unref(load(ENDS
                      "flows:\n  - {name: f, from: in, to: lite, table: all, load: append}\n"
                      "  - {name: g, from: in, to: lite, table: all, load: append, after_success: {move: inbox/d}}\n"));
}

static void globs_and_templates_are_checked_in_their_place(void **state)
{
    (void)state;
    static const char glob[] = ENDS OPEN_FLOW "    exclude: [ok, \"{a\"]\n";
    char *errors = errors_of(glob, strlen(glob));
    assert_int_equal(strncmp(errors, "c.yaml:7:19: flows.f.exclude: ", 30), 0);
    free(errors);
    static const char template[] = ENDS OPEN_FLOW "    table: \"{stm}\"\n";
    errors = errors_of(template, strlen(template));
    assert_int_equal(strncmp(errors, "c.yaml:7:12: flows.f.table: ", 28), 0);
    assert_non_null(strstr(errors, "stem"));
    free(errors);
}

static void a_mode_that_keeps_rows_does_not_inherit_recreate(void **state)
{
    (void)state;
    struct config *c = load(ENDS OPEN_FLOW "    load: append\n    table: t\n");
    assert_int_equal(c->flows[0].plan.on_schema_change, SCHEMA_REJECT);
    config_unref(c);
}

static void yaml_that_is_broken_or_clever_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"", "c.yaml:1:1: the file is empty; `chute init file2sql` writes one to begin with"},
        {"# nothing\n", "c.yaml:1:1: the file is empty; `chute init file2sql` writes one to begin with"},
        {"a: 1\nb: [1, 2\n", "c.yaml:3:1: not valid YAML: did not find expected ',' or ']' (while parsing a flow "
                             "sequence that begins in line 2)"},
        {"a: 1\n a: 2\n", "c.yaml:2:3: not valid YAML: mapping values are not allowed in this context"},
        {"\xc3\xa9: 1\nb: \xff\n", "c.yaml:2:4: not valid YAML: invalid leading UTF-8 octet"},
        {"a: 1\n---\nb: 1\n", "c.yaml:2:1: a second document begins here; a configuration is one document"},
        {"a: &x 1\n", "c.yaml:1:4: anchors (&), aliases (*) and tags (!) are not supported; write the value out, and "
                      "put a text that begins with one of these characters in quotes"},
        {"a: *x\n", "c.yaml:1:4: anchors (&), aliases (*) and tags (!) are not supported; write the value out, and put "
                    "a text that begins with one of these characters in quotes"},
        {"a: !!int 1\n", "c.yaml:1:4: anchors (&), aliases (*) and tags (!) are not supported; write the value out, "
                         "and put a text that begins with one of these characters in quotes"},
        {"<<: {a: 1}\n", "c.yaml:1:1: merge keys (<<) are not supported; write the keys out"},
        {"[a]: 1\n", "c.yaml:1:1: a key must be a plain word"},
        {"a: {b: 1, b: 2}\n", "c.yaml:1:11: 'b' is given twice (first in line 1); keep one"},
        {"a: \"x\\0y\"\n", "c.yaml:1:4: a NUL character is not allowed in a value"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *errors = errors_of(cases[i].text, strlen(cases[i].text));
        char *end = strchr(errors, '\n');
        if (end != NULL)
            *end = '\0';
        assert_string_equal(errors, cases[i].errors);
        free(errors);
    }
}

static void a_hostile_file_is_refused_within_bounds(void **state)
{
    (void)state;
    size_t size = 2 * 1024 * 1024;
    char *text = malloc(size);
    assert_non_null(text);
    memset(text, '[', size);
    char *errors = errors_of(text, 100000);
    assert_string_equal(errors, "c.yaml:1:33: nested deeper than 32 levels");
    free(errors);
    errors = errors_of(text, size);
    assert_string_equal(errors, "c.yaml: larger than 1 MiB: too much for a configuration");
    free(errors);
    text[0] = '[';
    for (size_t i = 1; i + 1 < 200000; i += 2)
        memcpy(text + i, "1,", 2);
    errors = errors_of(text, 200000);
    assert_string_equal(errors, "c.yaml:1:100000: more than 50000 values: too much for a configuration");
    free(errors);
    size_t used = 0;
    for (int i = 0; i < 5000; i++)
        used += (size_t)sprintf(text + used, "k%d: 1\n", i);
    errors = errors_of(text, used);
    assert_string_equal(errors, "c.yaml:4097:1: more than 4096 keys in one mapping");
    free(errors);
    free(text);
}

static void at_most_twenty_mistakes_are_told(void **state)
{
    (void)state;
    char text[1024] = "";
    for (int i = 0; i < 30; i++)
        sprintf(text + strlen(text), "qqqq%d: 1\n", i);
    char *errors = errors_of(text, strlen(text));
    int lines = 1;
    for (char *c = errors; *c != '\0'; c++)
        lines += *c == '\n';
    assert_int_equal(lines, 21);
    assert_non_null(strstr(errors, "\n... and 13 more"));
    free(errors);
}

static void a_file_that_is_not_there_says_how_to_make_one(void **state)
{
    (void)state;
    struct config *c;
    struct err err;
    assert_int_equal(config_load("none.yaml", &fake_drivers, &c, NULL, &err), ERR_CONFIG);
    assert_string_equal(err.text, "none.yaml: can't read the configuration: No such file or directory; `chute init "
                                  "file2sql` writes one to begin with");
}

static void variables_work_in_every_value(void **state)
{
    (void)state;
    setenv("T_DIR", "/var/in", 1);
    setenv("T_JOBS", "7", 1);
    setenv("T_EMPTY", "", 1);
    setenv("T_TO", "lite", 1);
    unsetenv("T_NONE");
    struct config *c = load("sources: {in: {type: directory, path: \"${T_DIR}/x\"}}\n"
                            "destinations: {lite: {type: sqlite, path: \"${T_NONE:-${T_DIR}/d}.db\"}}\n"
                            "instance: \"a${T_EMPTY}b$${T_DIR}$c\"\nlimits: {jobs: \"${T_JOBS}\"}\n"
                            "shutdown_grace: ${T_EMPTY:-3s}\n"
                            "flows: [{name: \"${T_NONE:-}f\", from: in, to: \"${T_TO}\", key: [\"${T_JOBS}\"]}]\n");
    assert_string_equal(((const struct fake_source *)c->sources[0].options)->path, "/var/in/x");
    assert_string_equal(((const struct fake_dest *)c->dests[0].options)->path, "/var/in/d.db");
    assert_string_equal(c->instance, "ab${T_DIR}$c");
    assert_int_equal(c->limits.jobs, 7);
    assert_int_equal(c->shutdown_grace, 3000);
    assert_string_equal(c->flows[0].name, "f");
    assert_string_equal(c->flows[0].plan.key.items[0], "7");
    /* A destination's defaults count also when its name is a variable. */
    assert_int_equal(c->flows[0].plan.on_schema_change, SCHEMA_RECREATE);
    config_unref(c);
    static const struct bad cases[] = {
        {ENDS FLOW "instance: ${T_NONE}\n",
         "c.yaml:5:11: instance: the variable T_NONE is not set; set it, or write ${T_NONE:-default}"},
        {ENDS FLOW "instance: ${T_NONE\n",
         "c.yaml:5:11: instance: '${' without '}'; write $${ for the characters themselves"},
        {ENDS FLOW "instance: ${1}\n", "c.yaml:5:11: instance: '${' begins a variable: write ${NAME} or "
                                       "${NAME:-default}, or $${ for the characters"},
        {ENDS FLOW "instance: ${A-b}\n", "c.yaml:5:11: instance: '${' begins a variable: write ${NAME} or "
                                         "${NAME:-default}, or $${ for the characters"},
        /* What a variable holds may be secret: its name is told. */
        {ENDS FLOW "limits: {jobs: \"${T_DIR}\"}\n",
         "c.yaml:5:16: limits.jobs: expected a whole number, found '${T_DIR}'"},
    };
    CHECK_ALL(cases);
}

#define VAULT(options)                                                                                                 \
    "sources: {in: {type: directory, path: inbox}}\n"                                                                  \
    "destinations: {v: {type: vault, " options "}}\n"                                                                  \
    "flows: [{name: f, from: in, to: v}]\n"

static void secrets_have_a_file_twin_and_are_never_shown(void **state)
{
    (void)state;
    put("tok", "s3cr3t-from-file\r\n", 18);
    put("empty", "\n", 1);
    struct config *c = load(VAULT("token_file: tok, verify: false"));
    const struct fake_dest *d = c->dests[0].options;
    assert_string_equal(d->token, "s3cr3t-from-file");
    assert_false(d->verify);
    char line[] = "token is s3cr3t-from-file";
    log_redact(line);
    assert_string_equal(line, "token is ***");
    config_unref(c);
    setenv("T_SECRET", "s3cr3t-from-env", 1);
    c = load(VAULT("token: \"${T_SECRET}\""));
    char other[] = "s3cr3t-from-env!";
    log_redact(other);
    assert_string_equal(other, "***!");
    config_unref(c);
    static const struct bad cases[] = {
        {VAULT("token: a, token_file: tok"), "c.yaml:2:43: destinations.v: give either token or token_file, not both"},
        {VAULT("verify: true"), "c.yaml:2:19: destinations.v: 'token' is missing"},
        {VAULT("token: [hunter2]"), "c.yaml:2:40: destinations.v.token: expected a text"},
        {VAULT("token: abc, verify: yes"), "c.yaml:2:53: destinations.v.verify: expected true or false, found 'yes'"},
        {VAULT("tokn_file: tok, token: abc"),
         "c.yaml:2:33: destinations.v: unknown key 'tokn_file'; did you mean 'token_file'?"},
    };
    CHECK_ALL(cases);
    char *errors = errors_of(VAULT("token_file: nofile"), strlen(VAULT("token_file: nofile")));
    assert_non_null(strstr(errors, "c.yaml:2:45: destinations.v.token_file: can't read "));
    assert_non_null(strstr(errors, "No such file or directory"));
    free(errors);
    errors = errors_of(VAULT("token_file: empty"), strlen(VAULT("token_file: empty")));
    assert_non_null(strstr(errors, " is empty"));
    free(errors);
}

static void relative_paths_start_at_the_file_not_at_the_current_folder(void **state)
{
    (void)state;
    struct config *c;
    struct err err;
    mkdir("sub", 0700);
    put("sub/c.yaml", ENDS FLOW, strlen(ENDS FLOW));
    assert_int_equal(config_load("./sub/c.yaml", &fake_drivers, &c, NULL, &err), ERR_NONE);
    assert_string_equal(c->file, here("sub/c.yaml"));
    assert_string_equal(c->state, here("sub/.chute"));
    assert_string_equal(((const struct fake_dest *)c->dests[0].options)->path, here("sub/w.db"));
    config_unref(c);
}

static uint64_t definition_of(const char *text)
{
    struct config *c = load(text);
    uint64_t definition = c->flows[0].definition;
    config_unref(c);
    return definition;
}

static void the_definition_changes_with_what_a_load_means_and_with_nothing_else(void **state)
{
    (void)state;
    uint64_t first = definition_of(ENDS OPEN_FLOW);
    assert_int_not_equal(first, 0);
    assert_int_equal(first, definition_of("limits: {jobs: 1}\n" ENDS OPEN_FLOW
                                          "    after_success: delete\n    include: [x]\n    on_delete: drop\n"));
    assert_int_not_equal(first, definition_of(ENDS OPEN_FLOW "    csv: {short_rows: pad}\n"));
    assert_int_not_equal(first, definition_of(ENDS OPEN_FLOW "    types: text\n"));
    assert_int_not_equal(first, definition_of(ENDS OPEN_FLOW "    types: {a: text}\n"));
    assert_int_not_equal(first, definition_of(ENDS OPEN_FLOW "    key: [a]\n"));
    assert_int_not_equal(first, definition_of(ENDS OPEN_FLOW "    bad_rows: {skip: 1}\n"));
    assert_int_not_equal(definition_of(ENDS OPEN_FLOW "    bad_rows: {skip: 2}\n"),
                         definition_of(ENDS OPEN_FLOW "    bad_rows: {skip: 1}\n"));
}

static struct config *quick(struct config_quick q)
{
    struct config *c;
    struct err err;

    if (config_quick(&q, &fake_drivers, &c, &err) != ERR_NONE)
        fail_msg("%s", err.text);
    return c;
}

static void a_command_line_without_profile_never_drops(void **state)
{
    (void)state;
    struct config *c = quick((struct config_quick){.watch = "./inbox", .to = "sqlite:w.db"});
    assert_string_equal(c->file, "");
    assert_string_equal(c->state, here(".chute"));
    assert_string_equal(((const struct fake_source *)c->sources[0].options)->path, here("inbox"));
    assert_string_equal(((const struct fake_dest *)c->dests[0].options)->path, here("w.db"));
    assert_int_equal(c->flows[0].on_delete, ON_DELETE_IGNORE);
    assert_string_equal(c->flows[0].plan.row_number, "");
    assert_string_equal(c->flows[0].table, "{path_stem}");
    assert_int_equal(c->sources[0].debounce_ms, 200);
    assert_int_equal(c->dests[0].retry.max, 300000);
    assert_int_equal(c->log_count, 1);
    assert_true(config_flow_takes(&c->flows[0], "a/b.csv"));
    assert_true(config_flow_takes(&c->flows[0], "b.csv.gz"));
    assert_false(config_flow_takes(&c->flows[0], "b.txt"));
    assert_false(config_flow_takes(&c->flows[0], ".b.csv"));
    config_unref(c);
    c = quick((struct config_quick){.is_load = true, .to = "sqlite:/w.db", .table = "t", .state = "st"});
    assert_string_equal(c->flows[0].name, "load");
    assert_string_equal(c->flows[0].table, "t");
    assert_string_equal(c->state, here("st"));
    assert_string_equal(((const struct fake_source *)c->sources[0].options)->path, "/");
    assert_true(config_flow_takes(&c->flows[0], "home/x/.hidden/data.txt"));
    config_unref(c);
}

static void the_profile_on_the_command_line_is_the_profile_in_a_file(void **state)
{
    (void)state;
    struct config *q =
        quick((struct config_quick){.profile = "file2sql", .watch = "inbox", .to = "sqlite:warehouse.db"});
    struct config *c = load(config_profile_text("file2sql"));
    assert_int_equal(q->flows[0].on_delete, ON_DELETE_DROP);
    assert_string_equal(q->flows[0].plan.row_number, "index");
    assert_int_equal(q->flows[0].csv.short_rows, SHORT_PAD);
    assert_int_equal(q->flows[0].plan.on_schema_change, SCHEMA_RECREATE);
    assert_int_equal(q->flows[0].plan.types.policy, TYPES_INFER);
    assert_int_equal(q->flows[0].definition, c->flows[0].definition);
    assert_int_equal(q->flows[0].on_delete, c->flows[0].on_delete);
    assert_string_equal(q->flows[0].name, c->flows[0].name);
    assert_string_equal(q->sources[0].name, c->sources[0].name);
    assert_string_equal(q->dests[0].name, c->dests[0].name);
    assert_string_equal(q->state, c->state);
    assert_string_equal(((const struct fake_source *)q->sources[0].options)->path,
                        ((const struct fake_source *)c->sources[0].options)->path);
    config_unref(q);
    config_unref(c);
    assert_null(config_profile_text("nope"));
}

static void a_command_line_that_is_wrong_says_what_is_known(void **state)
{
    (void)state;
    static const struct {
        struct config_quick quick;
        const char *error;
    } cases[] = {
        {{.watch = "in"}, "--to is missing: say where rows go, such as --to sqlite:warehouse.db"},
        {{.to = "sqlite:x"}, "--watch is missing: say which folder files arrive in"},
        {{.watch = "in", .to = "azblob:secret@c"},
         "--to: expected a URL that begins with sqlite:; found 'azblob', which this version of chute does not have"},
        {{.watch = "in", .to = "w.db"},
         "--to: expected a URL that begins with sqlite:; found 'w.db'; a SQLite file is written sqlite:PATH"},
        {{.watch = "in", .to = "sqlite:"}, "--to: no path"},
        {{.watch = "in", .to = "sqlite:x", .profile = "file2sqll"},
         "--profile: there is no profile 'file2sqll' (there are: file2sql, keboola, titles, events, ftp-blob); did you "
         "mean "
         "'file2sql'?"},
        {{.watch = "in", .to = "sqlite:x", .profile = "file2sql", .table = "one"},
         "--table: on_delete: drop needs a table for each file; put {path_stem} or another placeholder in `table`"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct config *c;
        struct err err;
        assert_int_equal(config_quick(&cases[i].quick, &fake_drivers, &c, &err), ERR_CONFIG);
        assert_string_equal(err.text, cases[i].error);
        assert_null(c);
    }
}

static void the_reference_names_every_option_of_every_table(void **state)
{
    (void)state;
    struct config_section sections[64];
    size_t count = config_sections(&fake_drivers, sections, 64);
    char *markdown = config_reference_markdown(&fake_drivers), *man = config_reference_man(&fake_drivers);
    assert_non_null(markdown);
    assert_non_null(man);
    assert_int_equal(count, 17);
    for (size_t i = 0; i < count; i++)
        for (const struct option *o = sections[i].options; o->name != NULL; o++) {
            char text[128];
            assert_non_null(o->help);
            snprintf(text, sizeof(text), "| `%s` |", o->name);
            assert_non_null(strstr(markdown, text));
            snprintf(text, sizeof(text), "\n.B %s\n", o->name);
            assert_non_null(strstr(man, text));
            char *help = config_help(&fake_drivers, o->name);
            assert_non_null(help);
            free(help);
        }
    assert_non_null(strstr(markdown, "| `jobs` | whole number | `4` |"));
    assert_non_null(strstr(markdown, "| `token_file` | path |"));
    assert_non_null(strstr(markdown, "| `after_success` | keep, delete, {move: DIR} | `keep` |"));
    char *help = config_help(&fake_drivers, "limits.jobs");
    assert_non_null(help);
    assert_non_null(strstr(help, "limits: jobs"));
    free(help);
    help = config_help(&fake_drivers, "flows");
    assert_non_null(help);
    assert_non_null(strstr(help, "on_schema_change"));
    free(help);
    assert_null(config_help(&fake_drivers, "nonsense"));
    free(markdown);
    free(man);
}

static void any_failed_allocation_is_an_error_and_no_leak(void **state)
{
    (void)state;
    static const char good[] = VAULT("token: \"${T_UNSET:-abcdefgh}\"");
    static const char bad[] = ENDS FLOW "limts: 1\nstate: ~/x\n";
    struct config_quick q = {.profile = "file2sql", .watch = "inbox", .to = "sqlite:w.db"};

    config_unref(load(good)); /* registers the secret: the log ends the process rather than show one it can't note */
    put("good.yaml", good, strlen(good));
    put("bad.yaml", bad, strlen(bad));
    for (int which = 0; which < 3; which++) {
        ALLOC_FAULT_SWEEP
        {
            struct config *c;
            char *errors = NULL;
            struct err err;
            enum err_code code =
                which == 2 ? config_quick(&q, &fake_drivers, &c, &err)
                           : config_load(which == 0 ? "good.yaml" : "bad.yaml", &fake_drivers, &c, &errors, &err);
            if (!alloc_fault_hit())
                assert_int_equal(code, which == 1 ? ERR_CONFIG : ERR_NONE);
            else if (code != ERR_NONE)
                assert_true(code == ERR_SYSTEM || which == 1);
            if (code == ERR_NONE)
                config_unref(c);
            else
                assert_null(c);
            free(errors);
        }
    }
}

static void a_secret_that_the_log_cannot_keep_is_not_taken(void **state)
{
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        char line[] = "it is p%ss no. 7 or p%25ss%20no.%207";
        bool is_kept = log_secret("p%ss no. 7");
        assert_int_equal(is_kept, !alloc_fault_hit());
        if (is_kept) {
            log_redact(line);
            assert_null(strstr(line, "no."));
        }
    }
}

static void the_texts_fail_as_a_whole_without_memory(void **state)
{
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        char *markdown = config_reference_markdown(&fake_drivers);
        char *man = config_reference_man(&fake_drivers);
        char *help = config_help(&fake_drivers, "flows");
        if (alloc_fault_hit())
            assert_true(markdown == NULL || man == NULL || help == NULL);
        free(markdown);
        free(man);
        free(help);
    }
}

static void a_reference_keeps_the_configuration(void **state)
{
    (void)state;
    struct config *c = load(ENDS FLOW);
    assert_ptr_equal(config_ref(c), c);
    config_unref(c);
    assert_string_equal(c->flows[0].name, "f");
    config_unref(c);
    config_unref(NULL);
}

static int enter_folder(void **state)
{
    (void)state;
    char name[] = "/tmp/chute-config-XXXXXX";
    return mkdtemp(name) == NULL || chdir(name) != 0 || getcwd(folder, sizeof(folder)) == NULL ? -1 : 0;
}

static int leave_folder(void **state)
{
    (void)state;
    static const char *const files[] = {"c.yaml", "tok", "empty", "sub/c.yaml", "good.yaml", "bad.yaml"};
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        unlink(files[i]);
    rmdir("sub");
    return chdir("/") != 0 ? -1 : rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_file_gets_every_default_of_the_specification),
        cmocka_unit_test(every_option_arrives_in_its_place),
        cmocka_unit_test(json_is_accepted_as_a_subset),
        cmocka_unit_test(unknown_keys_are_errors_with_a_suggestion),
        cmocka_unit_test(wrong_types_are_errors_that_say_what_was_expected),
        cmocka_unit_test(drivers_and_names_are_looked_up_with_a_suggestion),
        cmocka_unit_test(modes_are_checked_for_what_they_need),
        cmocka_unit_test(folders_and_tables_with_two_owners_are_refused),
        cmocka_unit_test(globs_and_templates_are_checked_in_their_place),
        cmocka_unit_test(a_mode_that_keeps_rows_does_not_inherit_recreate),
        cmocka_unit_test(yaml_that_is_broken_or_clever_is_refused_with_its_place),
        cmocka_unit_test(a_hostile_file_is_refused_within_bounds),
        cmocka_unit_test(at_most_twenty_mistakes_are_told),
        cmocka_unit_test(a_file_that_is_not_there_says_how_to_make_one),
        cmocka_unit_test(variables_work_in_every_value),
        cmocka_unit_test(secrets_have_a_file_twin_and_are_never_shown),
        cmocka_unit_test(relative_paths_start_at_the_file_not_at_the_current_folder),
        cmocka_unit_test(the_definition_changes_with_what_a_load_means_and_with_nothing_else),
        cmocka_unit_test(a_command_line_without_profile_never_drops),
        cmocka_unit_test(the_profile_on_the_command_line_is_the_profile_in_a_file),
        cmocka_unit_test(a_command_line_that_is_wrong_says_what_is_known),
        cmocka_unit_test(the_reference_names_every_option_of_every_table),
        cmocka_unit_test(any_failed_allocation_is_an_error_and_no_leak),
        cmocka_unit_test(a_secret_that_the_log_cannot_keep_is_not_taken),
        cmocka_unit_test(the_texts_fail_as_a_whole_without_memory),
        cmocka_unit_test(a_reference_keeps_the_configuration),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
