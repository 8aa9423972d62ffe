/*
 * reference.c -- the tables as text: Markdown for docs/, troff for the man page, plain for `chute help`.
 */
#include "config_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTIONS_MAX 64

static size_t add(struct config_section *sections, size_t max, size_t count, const char *title, const char *help,
                  const struct option *options)
{
    if (count < max)
        sections[count] = (struct config_section){title, help, options};
    return count < max ? count + 1 : count;
}

/* Titles of drivers are made once per type and kept: sections are plain views. */
static const char *driver_title(const char *section, const char *type)
{
    static char titles[16][80];
    char text[80];

    snprintf(text, sizeof(text), "%s.NAME (type: %s)", section, type);
    for (size_t i = 0; i < sizeof(titles) / sizeof(titles[0]); i++) {
        if (titles[i][0] == '\0')
            snprintf(titles[i], sizeof(titles[i]), "%s", text);
        if (strcmp(titles[i], text) == 0)
            return titles[i];
    }
    return section;
}

size_t config_sections(const struct config_drivers *drivers, struct config_section *sections, size_t max)
{
    size_t n = add(sections, max, 0, "top level", "The sections of the file.", config_top_table);

    for (const struct option *o = config_top_table; o->name != NULL; o++) {
        if (o->sub != NULL)
            n = add(sections, max, n, o->name, o->help, o->sub);
        else if (strcmp(o->name, "log") == 0)
            n = add(sections, max, n, "log[]", o->help, config_log_table);
    }
    n = add(sections, max, n, "sources.NAME", "Every source has these; the others depend on its type.",
            config_source_table);
    for (size_t i = 0; drivers->sources[i] != NULL; i++)
        n = add(sections, max, n, driver_title("sources", drivers->sources[i]->type), drivers->sources[i]->summary,
                drivers->sources[i]->options);
    n = add(sections, max, n, "destinations.NAME", "Every destination has these; the others depend on its type.",
            config_dest_table);
    for (size_t i = 0; drivers->dests[i] != NULL; i++)
        n = add(sections, max, n, driver_title("destinations", drivers->dests[i]->type), drivers->dests[i]->summary,
                drivers->dests[i]->options);
    n = add(sections, max, n, "flows[]", "Which files go where, as what, and what becomes of them.", config_flow_table);
    for (const struct option *o = config_flow_table; o->name != NULL; o++)
        if (o->type == OPT_GROUP && o->sub != NULL)
            n = add(sections, max, n, "flows[].csv", o->help, o->sub);
    n = add(sections, max, n, "flows[].records[]", "One rule of `records`, for flows with `format: json`.",
            config_record_table);
    n = add(sections, max, n, "flows[].records[].columns.NAME", "A column of a rule of `records`.",
            config_record_column_table);
    return add(sections, max, n, "pipelines.NAME", "SQL scripts that run in a destination.", config_pipeline_table);
}

static void add_type(struct buf *b, const struct option *o)
{
    static const char *const words[] = {[OPT_STRING] = "text",           [OPT_PATH] = "path",
                                        [OPT_SECRET] = "secret",         [OPT_BOOL] = "true or false",
                                        [OPT_INT] = "whole number",      [OPT_SIZE] = "size",
                                        [OPT_DURATION] = "duration",     [OPT_CHAR] = "character",
                                        [OPT_STRINGS] = "list of texts", [OPT_FLOAT] = "number",
                                        [OPT_GROUP] = "mapping",         [OPT_TYPES] = "text, infer, {column: type}",
                                        [OPT_PATHS] = "list of paths",   [OPT_PAIRS] = "mapping of texts"};

    if (o->type != OPT_ENUM && o->type != OPT_ENUM_OR && !(o->type == OPT_GROUP && o->sub == NULL))
        buf_adds(b, words[o->type]);
    for (size_t i = 0; o->choices != NULL && o->choices[i] != NULL; i++)
        buf_printf(b, "%s%s", i > 0 || o->type == OPT_CHAR ? ", " : "", o->choices[i]);
    if (o->type == OPT_ENUM_OR)
        buf_printf(b, ", {%s: %s}", o->sub[0].name, o->sub[0].type == OPT_PATH ? "DIR" : "N");
}

static void add_default(struct buf *b, const struct option *o)
{
    if ((o->flags & OPT_REQUIRED) != 0)
        buf_adds(b, "required");
    else if (o->default_text == NULL)
        buf_adds(b, "none");
    else if (o->default_text[0] == '\0')
        buf_adds(b, "\"\"");
    else
        buf_adds(b, o->default_text);
}

/* A cell of a table: '|' would end it. */
static void add_cell(struct buf *b, const char *text, bool is_code)
{
    buf_adds(b, is_code ? " `" : " ");
    for (; *text != '\0'; text++)
        buf_printf(b, *text == '|' ? "\\%c" : "%c", *text);
    buf_adds(b, is_code ? "` |" : " |");
}

static void markdown_option(struct buf *b, const struct option *o)
{
    struct buf cell;

    buf_init(&cell);
    buf_adds(b, "|");
    add_cell(b, o->name, true);
    add_type(&cell, o);
    add_cell(b, cell.data, false);
    b->failed = b->failed || cell.failed;
    buf_clear(&cell);
    add_default(&cell, o);
    bool is_word = (o->flags & OPT_REQUIRED) != 0 || o->default_text == NULL;
    add_cell(b, cell.data, !is_word);
    add_cell(b, o->help != NULL ? o->help : "", false);
    buf_adds(b, "\n");
    b->failed = b->failed || cell.failed;
    buf_done(&cell);
    if (o->type == OPT_SECRET)
        buf_printf(b, "| `%s_file` | path | none | File that holds `%s`; give one of the two. |\n", o->name, o->name);
}

static void markdown_defaults(struct buf *b, const struct config_drivers *drivers)
{
    buf_adds(b, "\n### Defaults of a flow by its destination\n\n| destination | options |\n|---|---|\n");
    for (size_t i = 0; drivers->dests[i] != NULL; i++) {
        const char *const *pair = drivers->dests[i]->flow_defaults;
        buf_printf(b, "| `%s` |", drivers->dests[i]->type);
        for (bool is_first = true; pair != NULL && pair[0] != NULL; pair += 2, is_first = false)
            buf_printf(b, "%s `%s: %s`", is_first ? "" : ",", pair[0], pair[1]);
        buf_adds(b, " |\n");
    }
    buf_adds(b, "\n`on_schema_change` is `reject` by default for every `load` but `replace`.\n");
}

static const char intro[] =
    "# Configuration\n\n"
    "This page is made by `chute help --markdown` from the tables that the parser reads; don't edit it.\n\n"
    "One YAML file (JSON is accepted as its subset), given with `-c FILE`. `chute init file2sql` writes one to begin\n"
    "with, `chute check` tells every mistake with file, line and column, and `chute help NAME` explains an option.\n\n"
    "- Unknown keys, keys given twice and wrong types are errors. Anchors, aliases, merge keys and tags are refused.\n"
    "- `${VAR}` and `${VAR:-default}` work in every value; a variable that is not set and has no default is an error,\n"
    "  and `$${` stands for `${`. An empty variable counts as not set where there is a default.\n"
    "- Every secret has a twin `NAME_file`: the path of a file that holds it. Secrets are never shown.\n"
    "- Relative paths are relative to the folder of the configuration file.\n"
    "- Durations: `500ms` `5s` `10m` `2h` `7d`. Sizes: `64KiB` `10MiB` `1GiB`, or bytes.\n";

char *config_reference_markdown(const struct config_drivers *drivers)
{
    struct config_section sections[SECTIONS_MAX];
    size_t count = config_sections(drivers, sections, SECTIONS_MAX);
    struct buf b;

    buf_init(&b);
    buf_adds(&b, intro);
    for (size_t i = 0; i < count; i++) {
        buf_printf(&b, "\n## %s\n\n%s\n\n| key | type | default | meaning |\n|---|---|---|---|\n", sections[i].title,
                   sections[i].help);
        for (const struct option *o = sections[i].options; o->name != NULL; o++)
            markdown_option(&b, o);
        if (sections[i].options == config_flow_table)
            markdown_defaults(&b, drivers);
    }
    return buf_take(&b);
}

/* Text for troff: backslashes, and a dot or quote that begins a line, would be commands. */
static void add_troff(struct buf *b, const char *text)
{
    if (text[0] == '.' || text[0] == '\'')
        buf_adds(b, "\\&");
    for (; *text != '\0'; text++) {
        if (*text == '\\')
            buf_adds(b, "\\e");
        else if (*text == '-')
            buf_adds(b, "\\-");
        else if (*text == '\n')
            buf_addc(b, ' ');
        else if (*text != '`')
            buf_addc(b, *text);
    }
}

char *config_reference_man(const struct config_drivers *drivers)
{
    struct config_section sections[SECTIONS_MAX];
    size_t count = config_sections(drivers, sections, SECTIONS_MAX);
    struct buf b, cell;

    buf_init(&b);
    buf_init(&cell);
    buf_adds(&b, ".SH CONFIGURATION\n");
    for (size_t i = 0; i < count; i++) {
        buf_adds(&b, ".SS ");
        add_troff(&b, sections[i].title);
        buf_addc(&b, '\n');
        add_troff(&b, sections[i].help);
        buf_addc(&b, '\n');
        for (const struct option *o = sections[i].options; o->name != NULL; o++) {
            buf_printf(&b, ".TP\n.B %s\n", o->name);
            buf_clear(&cell);
            buf_addc(&cell, '(');
            add_type(&cell, o);
            buf_adds(&cell, (o->flags & OPT_REQUIRED) != 0 ? "; " : "; default ");
            add_default(&cell, o);
            buf_printf(&cell, ") %s", o->help != NULL ? o->help : "");
            add_troff(&b, cell.data);
            buf_addc(&b, '\n');
            b.failed = b.failed || cell.failed;
        }
    }
    buf_done(&cell);
    return buf_take(&b);
}

static void help_option(struct buf *b, const char *title, const struct option *o)
{
    bool is_top = strcmp(title, "top level") == 0;

    buf_printf(b, "%s%s%s\n  type:    ", is_top ? "" : title, is_top ? "" : ": ", o->name);
    add_type(b, o);
    buf_adds(b, "\n  default: ");
    add_default(b, o);
    buf_printf(b, "\n  %s\n", o->help != NULL ? o->help : "");
    if (o->type == OPT_SECRET)
        buf_printf(b, "  %s_file: the path of a file that holds it\n", o->name);
}

/* Does NAME mean this section: "limits", "flows", "flows.csv", "log"? */
static bool is_section(const char *title, const char *name)
{
    size_t n = strcspn(title, "[.");

    if (strcmp(title, name) == 0)
        return true;
    if (strcmp(title, "flows[].csv") == 0)
        return strcmp(name, "flows.csv") == 0 || strcmp(name, "csv") == 0;
    if (strcmp(title, "flows[].records[]") == 0)
        return strcmp(name, "flows.records") == 0 || strcmp(name, "records") == 0;
    if (strcmp(title, "flows[].records[].columns.NAME") == 0)
        return strcmp(name, "records.columns") == 0 || strcmp(name, "columns") == 0;
    return strlen(name) == n && strncmp(title, name, n) == 0;
}

/* Does NAME mean option O here: "jobs", "limits.jobs"? */
/* NAME alone or with its section; a secret also by the name of the file that may hold it. */
static bool is_option(const char *title, const struct option *o, const char *name)
{
    const char *dot = strrchr(name, '.');
    char section[80], option[80];

    size_t n = strlen(o->name), length = strlen(name);
    bool is_file = o->type == OPT_SECRET && length > n + 5 - 1 && strcmp(name + length - 5, "_file") == 0;
    snprintf(option, sizeof(option), "%s%s", o->name, is_file ? "_file" : "");

    if (dot == NULL)
        return strcmp(option, name) == 0;
    snprintf(section, sizeof(section), "%.*s", (int)(dot - name), name);
    return strcmp(option, dot + 1) == 0 && is_section(title, section);
}

char *config_help(const struct config_drivers *drivers, const char *name)
{
    struct config_section sections[SECTIONS_MAX];
    size_t count = config_sections(drivers, sections, SECTIONS_MAX);
    struct buf b;
    bool is_known = false;

    buf_init(&b);
    for (size_t i = 0; i < count; i++) {
        if (is_section(sections[i].title, name)) {
            buf_printf(&b, "%s%s\n%s\n\n", is_known ? "\n" : "", sections[i].title, sections[i].help);
            for (const struct option *o = sections[i].options; o->name != NULL; o++)
                help_option(&b, "top level", o);
            is_known = true;
        }
    }
    for (size_t i = 0; i < count && !is_known; i++)
        for (const struct option *o = sections[i].options; o->name != NULL; o++)
            if (is_option(sections[i].title, o, name))
                help_option(&b, sections[i].title, o);
    if (b.size > 0)
        return buf_take(&b);
    buf_done(&b);
    return NULL;
}
