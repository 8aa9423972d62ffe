/*
 * pipelines.c -- what runs in a destination besides loads: `pipelines`, `init`, and who asks for them.
 */
#include "config_internal.h"
#include "text.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const struct config_dest *config_dest_named(const struct config *c, const char *name)
{
    for (size_t i = 0; name != NULL && i < c->dest_count; i++)
        if (strcmp(c->dests[i].name, name) == 0)
            return &c->dests[i];
    return NULL;
}

const struct config_pipeline *config_pipeline_named(const struct config *config, const char *name)
{
    for (size_t i = 0; i < config->pipeline_count; i++)
        if (config->pipelines[i].name != NULL && strcmp(config->pipelines[i].name, name) == 0)
            return &config->pipelines[i];
    return NULL;
}

static const struct node *blame(const struct node *mapping, const char *key)
{
    const struct node *n = node_get(mapping, key);

    return n != NULL ? n : mapping;
}

/* Only where scripts can run; types that have none are told apart by name. */
static bool runs_scripts(struct reader *r, const struct config_dest *dest, const struct node *n, const char *where)
{
    if (dest->ops == NULL || dest->ops->run_scripts != NULL) /* without ops its type was refused already */
        return true;
    reader_problem(r, n->line, n->column, "%s: destinations of type %s run no SQL scripts", where, dest->ops->type);
    return false;
}

bool init_check(struct reader *r, const struct config_dest *dest, const struct node *node, const char *where)
{
    const struct node *n = blame(node, "init");
    const char *place = reader_printf(r, "%s.init", where);

    return dest->init.count == 0 || runs_scripts(r, dest, n, place != NULL ? place : where);
}

/* The name of a setting becomes one of PostgreSQL's ("chute.NAME"), which takes no others. */
static bool setting_name_is_legal(const char *name)
{
    bool is_good = isalpha((unsigned char)name[0]) || name[0] == '_';

    for (const char *p = name; *p != '\0' && is_good; p++)
        is_good = isalnum((unsigned char)*p) || *p == '_';
    return is_good && strlen(name) <= 50;
}

static void take_settings(struct reader *r, struct pipeline_draft *draft, const struct node *node, const char *where)
{
    const struct node *n = blame(node, "settings");
    struct script_setting *settings = arena_alloc(r->arena, (draft->settings.count + 1) * sizeof(*settings));
    char shown[64];

    if (settings == NULL) {
        reader_nomem(r);
        return;
    }
    for (size_t i = 0; i < draft->settings.count; i++) {
        const struct option_pair *pair = &draft->settings.items[i];
        if (!setting_name_is_legal(pair->name))
            reader_problem(r, n->line, n->column,
                           "%s.settings: a name has 1 to 50 ASCII letters, digits and '_' and begins with no digit, "
                           "found '%s'",
                           where, text_printable(pair->name, shown, sizeof(shown)));
        settings[i] = (struct script_setting){pair->name, pair->value};
    }
    draft->pipeline.settings = settings;
    draft->pipeline.setting_count = draft->settings.count;
}

static void take_schedule(struct reader *r, struct pipeline_draft *draft, const struct node *node, const char *where)
{
    const struct node *n = blame(node, "every");
    struct config_pipeline *p = &draft->pipeline;
    struct err err;
    char shown[80];

    if (draft->every[0] != '\0' && (!text_parse_duration(draft->every, &p->every_ms) || p->every_ms < 1000)) {
        reader_problem(r, n->line, n->column,
                       "%s.every: expected a duration of at least a second such as 90s, 10m or 1h, found '%s'", where,
                       text_printable(draft->every, shown, sizeof(shown)));
        p->every_ms = 0;
    }
    n = blame(node, "cron");
    err_clear(&err);
    if (p->cron_text[0] != '\0' && cron_parse(p->cron_text, &p->cron, &err) != ERR_NONE)
        reader_problem(r, n->line, n->column, "%s.cron: %s", where, err.text);
    if (draft->every[0] != '\0' && p->cron_text[0] != '\0')
        reader_problem(r, n->line, n->column, "%s: give either every or cron, not both", where);
}

static void take_dest(struct reader *r, const struct config *c, struct pipeline_draft *draft, const struct node *node,
                      const char *where)
{
    const struct node *n = blame(node, "in");
    const char **names = reader_alloc(r, (c->dest_count + 1) * sizeof(*names));
    const char *place = reader_printf(r, "%s.in", where);
    char shown[80];

    if (draft->in == NULL || c->dest_count == 0 || names == NULL || place == NULL)
        return;
    draft->pipeline.dest = config_dest_named(c, draft->in);
    if (draft->pipeline.dest != NULL) {
        runs_scripts(r, draft->pipeline.dest, n, place);
        return;
    }
    for (size_t i = 0; i < c->dest_count; i++)
        names[i] = c->dests[i].name;
    reader_problem(r, n->line, n->column, "%s: there is no destination '%s'%s", place,
                   text_printable(draft->in, shown, sizeof(shown)), hint_nearest(r, draft->in, names));
}

static void read_pipeline(struct reader *r, const struct config *c, struct config_pipeline *ret,
                          const struct node *node)
{
    struct pipeline_draft draft = {.pipeline = *ret};
    const struct target target = {config_pipeline_table, &draft};
    char shown[80];
    const char *where = reader_printf(r, "pipelines.%s", text_printable(ret->name, shown, sizeof(shown)));

    if (where == NULL || !name_check(r, ret->name, node->key_line, node->key_column, "pipelines"))
        return;
    if (node->kind != NODE_MAPPING) {
        reader_problem(r, node->line, node->column,
                       "%s: expected a mapping such as {in: DESTINATION, sql: [FILE]}, "
                       "found %s",
                       where, node_found(node, shown, sizeof(shown)));
        return;
    }
    options_defaults(r, config_pipeline_table, &draft);
    size_t before = r->problem_count;
    options_read(r, &target, 1, NULL, node, where);
    if (r->failed || r->problem_count > before)
        return;
    if (draft.pipeline.sql.count == 0) {
        const struct node *n = blame(node, "sql");
        reader_problem(r, n->line, n->column, "%s.sql: is empty, so there is nothing to run", where);
    }
    take_dest(r, c, &draft, node, where);
    take_settings(r, &draft, node, where);
    take_schedule(r, &draft, node, where);
    *ret = draft.pipeline;
}

void pipelines_read(struct reader *r, struct config *c, const struct node *top)
{
    const struct node *list = node_get(top, "pipelines");
    char found[80];

    if (list == NULL || list->kind == NODE_NULL)
        return;
    if (list->kind != NODE_MAPPING) {
        reader_problem(r, list->line, list->column, "pipelines: expected a mapping of names, found %s",
                       node_found(list, found, sizeof(found)));
        return;
    }
    c->pipelines = arena_alloc(r->arena, (list->count + 1) * sizeof(*c->pipelines));
    if (c->pipelines == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *n = list->first; n != NULL && !r->failed; n = n->next) {
        struct config_pipeline *p = &c->pipelines[c->pipeline_count];
        if ((p->name = arena_strdup(r->arena, n->key)) == NULL) {
            reader_nomem(r);
            return;
        }
        c->pipeline_count++;
        p->cron_text = "";
        read_pipeline(r, c, p, n);
    }
}

void then_check(struct reader *r, const struct config *c, const struct config_flow *flow, const struct node *node,
                const char *where)
{
    const struct node *list = node_get(node, "then");
    const struct node *item = list != NULL && list->kind == NODE_SEQUENCE ? list->first : NULL;
    const char **names = reader_alloc(r, (c->pipeline_count + 1) * sizeof(*names));
    char shown[80];

    if (list == NULL || names == NULL)
        return;
    for (size_t i = 0; i < c->pipeline_count; i++)
        names[i] = c->pipelines[i].name;
    for (size_t i = 0; i < flow->then.count; i++, item = item != NULL ? item->next : NULL) {
        const struct node *n = item != NULL ? item : list;
        const char *name = flow->then.items[i];
        text_printable(name, shown, sizeof(shown));
        if (config_pipeline_named(c, name) == NULL)
            reader_problem(r, n->line, n->column, "%s.then: there is no pipeline '%s'%s", where, shown,
                           c->pipeline_count > 0 ? hint_nearest(r, name, names) : "; describe it under `pipelines`");
        for (size_t j = 0; j < i; j++)
            if (strcmp(flow->then.items[j], name) == 0)
                reader_problem(r, n->line, n->column, "%s.then: pipeline '%s' is named twice", where, shown);
    }
}

/* ---- timezone ---- */

void timezone_check(struct reader *r, const struct config *c, const struct node *top)
{
    const struct node *n = node_get(top, "timezone");
    const char *folder = getenv("TZDIR"), *name = c->timezone;
    char shown[80];

    if (name == NULL || name[0] == '\0' || n == NULL || strcmp(name, "UTC") == 0)
        return;
    bool is_name = name[0] != '/' && name[0] != '.' && strstr(name, "..") == NULL &&
                   strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-/") == strlen(name);
    const char *path =
        reader_printf(r, "%s/%s", folder != NULL && folder[0] != '\0' ? folder : "/usr/share/zoneinfo", name);
    /* libc takes an unknown zone for UTC and says nothing */
    if (path != NULL && (!is_name || access(path, R_OK) != 0))
        reader_problem(r, n->line, n->column,
                       "timezone: expected the name of a zone that this machine knows, such as Europe/Prague or UTC, "
                       "found '%s'; the zones are in the package tzdata",
                       text_printable(name, shown, sizeof(shown)));
}

void config_use_timezone(const struct config *config)
{
    if (config->timezone != NULL && config->timezone[0] != '\0')
        setenv("TZ", config->timezone, 1);
    tzset();
}
