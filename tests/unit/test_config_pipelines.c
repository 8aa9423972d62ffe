/* test_config_pipelines.c -- `pipelines`, `init`, `then`, `require` and `timezone`: what is refused, and what arrives.
 */
#include "config.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "alloc_fault.h"
#include "config_fakes.h"

#include <stdlib.h>
#include <unistd.h>

static char folder[256];
static struct dest_ops scripted;
static const struct dest_ops *dests[] = {&scripted, &fake_vault, NULL};
static const struct config_drivers drivers = {fake_sources, dests};

static enum err_code run_scripts(void *state, struct scripts *scripts, struct err *err)
{
    (void)state;
    (void)scripts;
    return err_set(err, ERR_STOPPED, false, "a fake");
}

#define TOP                                                                                                            \
    "sources: {in: {type: directory, path: inbox}}\n"                                                                  \
    "destinations: {lite: {type: sqlite, path: w.db}, vault: {type: vault, token: hunter22}}\n"
#define FLOW "flows:\n  - {name: f, from: in, to: lite}\n"

static enum err_code load_text(const char *text, struct config **ret, char **ret_errors, struct err *err)
{
    FILE *f = fopen("c.yaml", "we");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    return config_load("c.yaml", &drivers, ret, ret_errors, err);
}

static struct config *load(const char *text)
{
    struct config *c = NULL;
    char *errors = NULL;
    struct err err;
    if (load_text(text, &c, &errors, &err) != ERR_NONE)
        fail_msg("%s", errors);
    return c;
}

static void everything_arrives(void **state)
{
    (void)state;
    struct config *c = load("timezone: Europe/Prague\n"
                            "sources: {in: {type: directory, path: inbox}}\n"
                            "destinations: {lite: {type: sqlite, path: w.db, init: [sql/a.sql, /abs/b.sql]}}\n"
                            "pipelines:\n"
                            "  etl: {in: lite, sql: [sql/etl.sql], every: \"\", settings: {title_rule: ascii, n: 5}}\n"
                            "  nightly: {in: lite, sql: [x.sql, y.sql], cron: \"30 3 * * 1-5\"}\n"
                            "  often: {in: lite, sql: [x.sql], every: 90s}\n"
                            "flows:\n  - {name: f, from: in, to: lite, then: [nightly, etl], require: [a, b c]}\n");
    char path[600];
    assert_string_equal(c->timezone, "Europe/Prague");
    assert_int_equal(c->dests[0].init.count, 2);
    snprintf(path, sizeof path, "%s/sql/a.sql", folder);
    assert_string_equal(c->dests[0].init.items[0], path);
    assert_string_equal(c->dests[0].init.items[1], "/abs/b.sql");
    assert_int_equal(c->pipeline_count, 3);
    const struct config_pipeline *p = config_pipeline_named(c, "etl");
    assert_ptr_equal(p, &c->pipelines[0]);
    assert_ptr_equal(p->dest, &c->dests[0]);
    assert_int_equal(p->sql.count, 1);
    snprintf(path, sizeof path, "%s/sql/etl.sql", folder);
    assert_string_equal(p->sql.items[0], path);
    assert_int_equal(p->every_ms, 0);
    assert_string_equal(p->cron_text, "");
    assert_int_equal(p->setting_count, 2);
    assert_string_equal(p->settings[0].name, "title_rule");
    assert_string_equal(p->settings[0].value, "ascii");
    assert_string_equal(p->settings[1].value, "5");
    assert_string_equal(c->pipelines[1].cron_text, "30 3 * * 1-5");
    assert_int_equal(c->pipelines[1].cron.hours, 1u << 3);
    assert_int_equal(c->pipelines[2].every_ms, 90000);
    assert_int_equal(c->flows[0].then.count, 2);
    assert_string_equal(c->flows[0].then.items[0], "nightly");
    assert_int_equal(c->flows[0].require.count, 2);
    assert_string_equal(c->flows[0].require.items[1], "b c");
    assert_null(config_pipeline_named(c, "nope"));
    config_unref(c);
}

static void none_is_fine(void **state)
{
    (void)state;
    struct config *c = load(TOP FLOW "pipelines:\n");
    assert_int_equal(c->pipeline_count, 0);
    assert_string_equal(c->timezone, "");
    config_unref(c);
    c = load(TOP FLOW "pipelines: {}\n");
    assert_int_equal(c->pipeline_count, 0);
    config_unref(c);
}

/* `then` says what follows, not what a load means: files in quarantine are not queued again for it. */
static void then_does_not_change_what_a_load_means(void **state)
{
    (void)state;
    struct config *a = load(TOP "pipelines: {p: {in: lite, sql: [x]}}\n" FLOW);
    struct config *b =
        load(TOP "pipelines: {p: {in: lite, sql: [x]}}\nflows:\n  - {name: f, from: in, to: lite, then: [p]}\n");
    struct config *c = load(TOP "flows:\n  - {name: f, from: in, to: lite, require: [x]}\n");
    assert_int_equal(a->flows[0].definition, b->flows[0].definition);
    assert_int_not_equal(a->flows[0].definition, c->flows[0].definition);
    config_unref(a);
    config_unref(b);
    config_unref(c);
}

static void mistakes_are_told_with_their_place(void **state)
{
    static const struct {
        const char *text, *errors;
    } bad[] = {
        {TOP FLOW "pipelines: [a]\n", "c.yaml:5:12: pipelines: expected a mapping of names, found a list"},
        {TOP FLOW "pipelines: {p: x}\n",
         "c.yaml:5:16: pipelines.p: expected a mapping such as {in: DESTINATION, sql: [FILE]}, found 'x'"},
        {TOP FLOW "pipelines: {p: {sql: [x]}}\n", "c.yaml:5:16: pipelines.p: 'in' is missing"},
        {TOP FLOW "pipelines: {p: {in: lite}}\n", "c.yaml:5:16: pipelines.p: 'sql' is missing"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: []}}\n",
         "c.yaml:5:32: pipelines.p.sql: is empty, so there is nothing to run"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: x.sql}}\n",
         "c.yaml:5:32: pipelines.p.sql: expected a list such as [a, b], found 'x.sql'"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [\"\"]}}\n",
         "c.yaml:5:32: pipelines.p.sql: expected a path in this list, found a list"},
        {TOP FLOW "pipelines: {p: {in: lit, sql: [x]}}\n",
         "c.yaml:5:21: pipelines.p.in: there is no destination 'lit'; did you mean 'lite'?"},
        {TOP FLOW "pipelines: {p: {in: vault, sql: [x]}}\n",
         "c.yaml:5:21: pipelines.p.in: destinations of type vault run no SQL scripts"},
        {TOP FLOW "pipelines: {p: {in: lite, sqk: [x]}}\n",
         "c.yaml:5:27: pipelines.p: unknown key 'sqk'; did you mean 'sql'?\n"
         "c.yaml:5:16: pipelines.p: 'sql' is missing"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [x], every: soon}}\n",
         "c.yaml:5:44: pipelines.p.every: expected a duration of at least a second such as 90s, 10m or 1h, found "
         "'soon'"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [x], every: 999ms}}\n",
         "c.yaml:5:44: pipelines.p.every: expected a duration of at least a second such as 90s, 10m or 1h, found "
         "'999ms'"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [x], cron: \"61 * * * *\"}}\n",
         "c.yaml:5:43: pipelines.p.cron: minute: expected numbers from 0 to 59, ranges, lists, steps or *, found "
         "'61'"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [x], every: 1h, cron: \"0 * * * *\"}}\n",
         "c.yaml:5:54: pipelines.p: give either every or cron, not both"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [x], settings: [a]}}\n",
         "c.yaml:5:47: pipelines.p.settings: expected a mapping such as {name: text}, found a list"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [x], settings: {a-b: 1}}}\n",
         "c.yaml:5:47: pipelines.p.settings: a name has 1 to 50 ASCII letters, digits and '_' and begins with no "
         "digit, found 'a-b'"},
        {TOP FLOW "pipelines: {p: {in: lite, sql: [x], settings: {a: [1]}}}\n",
         "c.yaml:5:51: pipelines.p.settings.a: expected a text, found a list"},
        {TOP FLOW "pipelines: {a/b: {in: lite, sql: [x]}}\n",
         "c.yaml:5:13: pipelines: a name has 1 to 100 bytes, no '/', no control characters, and does not begin with "
         "'.'"},
        {TOP "pipelines: {etl: {in: lite, sql: [x]}}\nflows:\n  - {name: f, from: in, to: lite, then: [elt]}\n",
         "c.yaml:5:42: flows.f.then: there is no pipeline 'elt'; did you mean 'etl'?"},
        {TOP "flows:\n  - {name: f, from: in, to: lite, then: [etl]}\n",
         "c.yaml:4:42: flows.f.then: there is no pipeline 'etl'; describe it under `pipelines`"},
        {TOP "pipelines: {etl: {in: lite, sql: [x]}}\nflows:\n  - {name: f, from: in, to: lite, then: [etl, etl]}\n",
         "c.yaml:5:47: flows.f.then: pipeline 'etl' is named twice"},
        {TOP "flows:\n  - {name: f, from: in, to: lite, require: [a, a]}\n",
         "c.yaml:4:44: flows.f.require: column 'a' is named twice"},
        {"sources: {in: {type: directory, path: inbox}}\n"
         "destinations: {lite: {type: sqlite, path: w.db}, v: {type: vault, token: hunter22, init: [x]}}\n" FLOW,
         "c.yaml:2:90: destinations.v.init: destinations of type vault run no SQL scripts"},
        {"timezone: Europe/Praque\n" TOP FLOW,
         "c.yaml:1:11: timezone: expected the name of a zone that this machine knows, such as Europe/Prague or UTC, "
         "found 'Europe/Praque'; the zones are in the package tzdata"},
        {"timezone: ../../etc/passwd\n" TOP FLOW,
         "c.yaml:1:11: timezone: expected the name of a zone that this machine knows, such as Europe/Prague or UTC, "
         "found '../../etc/passwd'; the zones are in the package tzdata"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct config *c = NULL;
        char *errors = NULL;
        struct err err;
        if (load_text(bad[i].text, &c, &errors, &err) != ERR_CONFIG)
            fail_msg("case %zu was accepted:\n%s", i, bad[i].text);
        assert_string_equal(errors, bad[i].errors);
        free(errors);
    }
}

static void without_memory_it_fails_cleanly(void **state)
{
    (void)state;
    const char *text =
        "timezone: UTC\n" TOP "pipelines: {p: {in: lite, sql: [x, y], cron: \"0 * * * *\", settings: {a: b}}}\n"
        "flows:\n  - {name: f, from: in, to: lite, then: [p]}\n";
    FILE *f = fopen("c.yaml", "we");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    ALLOC_FAULT_SWEEP
    {
        struct config *c = NULL;
        char *errors = NULL;
        struct err err;
        enum err_code code = config_load("c.yaml", &drivers, &c, &errors, &err);
        if (alloc_fault_hit())
            assert_int_equal(code, ERR_SYSTEM);
        else
            assert_int_equal(code, ERR_NONE);
        free(errors);
        config_unref(c);
    }
}

static int set_up(void **state)
{
    (void)state;
    scripted = fake_sqlite;
    scripted.run_scripts = run_scripts;
    strcpy(folder, "/tmp/chute-config-XXXXXX");
    return mkdtemp(folder) == NULL || chdir(folder) != 0;
}

static int tear_down(void **state)
{
    (void)state;
    return unlink("c.yaml") != 0 || chdir("/") != 0 || rmdir(folder) != 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_arrives),
        cmocka_unit_test(none_is_fine),
        cmocka_unit_test(then_does_not_change_what_a_load_means),
        cmocka_unit_test(mistakes_are_told_with_their_place),
        cmocka_unit_test(without_memory_it_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
