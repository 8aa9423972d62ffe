/*
 * quick.c -- a configuration from a command line.
 */
#include "config_internal.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUICK_SOURCE "inbox"
#define LOAD_SOURCE "files" /* of another root than a watched folder: rows of one must never pass for the other's */

static bool profile_check(struct reader *r, const char *profile)
{
    if (profile == NULL || profile_find(profile) != NULL)
        return true;
    char shown[80], known[128] = "";
    for (size_t i = 0; config_profiles[i] != NULL; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", used > 0 ? ", " : "", config_profiles[i]);
    }
    reader_problem(r, 0, 0, "--profile: there is no profile '%s' (there are: %s)%s",
                   text_printable(profile, shown, sizeof(shown)), known, hint_nearest(r, profile, config_profiles));
    return false;
}

static const struct dest_ops *find_scheme(struct reader *r, const struct config_drivers *drivers, const char *url)
{
    char shown[80], known[256] = "";

    for (size_t i = 0; drivers->dests[i] != NULL; i++) {
        const char *scheme = drivers->dests[i]->url_scheme;
        if (scheme == NULL)
            continue;
        if (strncmp(url, scheme, strlen(scheme)) == 0)
            return drivers->dests[i];
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", used > 0 ? ", " : "", scheme);
    }
    /* Only the scheme: what follows may hold a password. */
    int n = (int)strcspn(url, ":/@");
    const char *scheme = reader_printf(r, "%.*s", n < 40 ? n : 40, url);
    if (scheme != NULL)
        reader_problem(r, 0, 0, "--to: expected a URL that begins with %s; found '%s'%s", known,
                       text_printable(scheme, shown, sizeof(shown)),
                       strncmp(url, "azblob:", 7) == 0 ? ", which this version of chute does not have"
                                                       : "; a SQLite file is written sqlite:PATH");
    return NULL;
}

/* What a URL says about files is relative to the current folder. */
static void absolute_paths(struct reader *r, const struct option *table, void *base)
{
    for (const struct option *o = table; o != NULL && o->name != NULL; o++) {
        const char **path = (const char **)((char *)base + o->offset);
        if (o->type != OPT_PATH || *path == NULL || (*path)[0] == '\0' || (*path)[0] == '/')
            continue;
        if ((*path = path_absolute(r->arena, r->folder, *path)) == NULL)
            reader_nomem(r);
    }
}

static void quick_dest(struct reader *r, struct config *c, const struct config_drivers *drivers, const char *to)
{
    struct config_dest *d = c->dests = arena_alloc(r->arena, sizeof(*d));
    const char *url = arena_strdup(r->arena, to);
    struct err err;

    if (d == NULL || url == NULL) {
        reader_nomem(r);
        return;
    }
    d->retry = c->retry;
    d->ops = find_scheme(r, drivers, url);
    if (d->ops == NULL)
        return;
    d->name = d->ops->quick_name;
    if ((d->options = arena_alloc(r->arena, d->ops->options_size + 1)) == NULL) {
        reader_nomem(r);
        return;
    }
    options_defaults(r, d->ops->options, d->options);
    err_clear(&err);
    if (d->ops->from_url == NULL || d->ops->from_url(url, d->options, &err) != ERR_NONE) {
        reader_problem(r, 0, 0, "--to: %s", d->ops->from_url == NULL ? "this destination has no URL" : err.text);
        return;
    }
    absolute_paths(r, d->ops->options, d->options);
    if (d->ops->check != NULL && d->ops->check(d->options, &err) != ERR_NONE)
        reader_problem(r, 0, 0, "--to: %s", err.text);
    c->dest_count = 1;
}

static void quick_source(struct reader *r, struct config *c, const struct config_drivers *drivers, const char *name,
                         const char *watch)
{
    struct config_source *s = c->sources = arena_alloc(r->arena, sizeof(*s));
    const struct option *path = NULL;

    if (s == NULL) {
        reader_nomem(r);
        return;
    }
    s->name = name;
    for (size_t i = 0; drivers->sources[i] != NULL && path == NULL; i++) {
        path = options_find(drivers->sources[i]->options, "path");
        if (path != NULL && path->type == OPT_PATH)
            s->ops = drivers->sources[i];
    }
    if (s->ops == NULL) {
        reader_problem(r, 0, 0, "--watch: this build of chute can't watch folders");
        return;
    }
    if (watch[0] == '\0') {
        reader_problem(r, 0, 0, "--watch: expected a folder, found an empty text");
        return;
    }
    if ((s->options = arena_alloc(r->arena, s->ops->options_size + 1)) == NULL) {
        reader_nomem(r);
        return;
    }
    options_defaults(r, s->ops->options, s->options);
    char *root = path_absolute(r->arena, r->folder, watch);
    if (root == NULL) {
        reader_nomem(r);
        return;
    }
    memcpy((char *)s->options + path->offset, &root, sizeof(root));
    if (source_check(r, s, NULL, "--watch"))
        c->source_count = 1;
}

/* --table SPACE.NAME */
static void quick_space(struct reader *r, struct config_flow *flow, const char *table)
{
    const char *dot = table != NULL ? strchr(table, '.') : NULL;

    if (dot == NULL &&
        options_member(flow->dest->ops->options, flow->dest->options, flow->dest->ops->space_word, OPT_STRING) != NULL)
        return; /* the destination has a place for tables that nobody says more about */
    if (dot == NULL || dot == table || dot[1] == '\0') {
        reader_problem(r, 0, 0,
                       "--table: a %s destination needs %s and table, such as --table sales.orders or "
                       "--table \"sales.{stem}\"",
                       flow->dest->ops->type, flow->dest->ops->space_word);
        return;
    }
    flow->space = arena_printf(r->arena, "%.*s", (int)(dot - table), table);
    flow->table = arena_strdup(r->arena, dot + 1);
    if (flow->space == NULL || flow->table == NULL)
        reader_nomem(r);
}

/* The rules of a profile stand in its text. */
static void quick_records(struct reader *r, struct flow_draft *draft, const struct profile *profile, const char *where)
{
    const struct node *top = node_parse(r, profile->text, strlen(profile->text), true);
    const struct node *flows = node_get(top, "flows");
    const struct node *records = flows != NULL && flows->first != NULL ? node_get(flows->first, "records") : NULL;

    json_defaults(r, draft, NULL);
    if (records != NULL)
        records_read(r, &draft->flow, records, where);
}

static void quick_flow(struct reader *r, struct config *c, const struct config_quick *quick)
{
    const char *where = quick->table != NULL ? "--table" : "the command line";
    struct flow_draft draft = {0};

    c->flows = arena_alloc(r->arena, sizeof(*c->flows));
    if (c->flows == NULL) {
        reader_nomem(r);
        return;
    }
    flow_defaults(r, &draft, NULL, &c->dests[0]);
    const struct profile *profile = quick->profile != NULL ? profile_find(quick->profile) : NULL;
    draft.flow.source = &c->sources[0];
    draft.flow.dest = &c->dests[0];
    if (profile != NULL && profile->dest_type != NULL && strcmp(profile->dest_type, draft.flow.dest->ops->type) != 0) {
        reader_problem(r, 0, 0, "--profile: %s is for destinations of type %s, and --to is one of type %s",
                       profile->name, profile->dest_type, draft.flow.dest->ops->type);
        return;
    }
    for (const char *const *pair = profile != NULL ? profile->options : NULL; pair != NULL && pair[0] != NULL;
         pair += 2)
        options_set(r, config_flow_table, &draft, pair[0], pair[1], quick->profile);
    /* A profile's own name, as in the file that `chute init` writes. */
    draft.flow.name = quick->is_load ? "load" : profile != NULL ? profile->name : draft.flow.dest->ops->quick_flow;
    draft.flow.plan.flow = draft.flow.name;
    if (quick->is_load) {
        draft.flow.include = (struct option_strings){NULL, 0};
        /* The root is "/": the whole path would be a table's name nobody asked for. */
        draft.flow.table = draft.flow.format == FORMAT_RAW ? "{name}" : "{stem}";
    }
    /* Without a configuration that says so nothing is ever dropped; and load has nothing to watch for removal. */
    if (quick->profile == NULL || quick->is_load)
        draft.flow.on_delete = ON_DELETE_IGNORE;
    if (quick->table != NULL && (draft.flow.table = arena_strdup(r->arena, quick->table)) == NULL)
        reader_nomem(r);
    /* Files named one by one lie in no folder that means anything: the bucket has to be said. */
    if (quick->is_load && draft.flow.dest->ops->space_word != NULL)
        quick_space(r, &draft.flow, quick->table);
    /* `replace` would leave the rows of one file alone in a table that several were meant for */
    if (quick->is_load && draft.flow.table != NULL && draft.flow.format != FORMAT_RAW && flow_is_constant(&draft.flow))
        options_set(r, config_flow_table, &draft, "load", "append", "load");
    if (draft.flow.format == FORMAT_JSON)
        quick_records(r, &draft, profile, where);
    if (r->failed || r->problem_count > 0 || !flow_check(r, &draft.flow, NULL, where))
        return;
    c->flows[0] = draft.flow;
    c->flow_count = 1;
    config_check(r, c, NULL);
    flow_define(&c->flows[0]);
}

enum err_code config_quick(const struct config_quick *quick, const struct config_drivers *drivers, struct config **ret,
                           struct err *err)
{
    struct reader r = {0};

    *ret = NULL;
    err_clear(err);
    arena_init(&r.scratch);
    buf_init(&r.problems);
    struct config *c = config_new(&r);
    if (c == NULL || (r.folder = current_folder(&r)) == NULL || !profile_check(&r, quick->profile))
        return reader_finish(&r, c, ret, NULL, err);
    options_defaults(&r, config_top_table, c);
    if (quick->state != NULL && (c->state = path_absolute(r.arena, r.folder, quick->state)) == NULL)
        reader_nomem(&r);
    if ((c->logs = arena_alloc(r.arena, sizeof(*c->logs))) == NULL) {
        reader_nomem(&r);
    } else {
        options_defaults(&r, config_log_table, c->logs);
        c->logs[0].to = "stderr";
        c->log_count = 1;
    }
    if (quick->to == NULL)
        reader_problem(&r, 0, 0, "--to is missing: say where rows go, such as --to sqlite:warehouse.db");
    if (quick->watch == NULL && !quick->is_load)
        reader_problem(&r, 0, 0, "--watch is missing: say which folder files arrive in");
    if (r.problem_count == 0 && !r.failed)
        quick_dest(&r, c, drivers, quick->to);
    if (r.problem_count == 0 && !r.failed)
        quick_source(&r, c, drivers, quick->is_load ? LOAD_SOURCE : QUICK_SOURCE, quick->is_load ? "/" : quick->watch);
    if (r.problem_count == 0 && !r.failed)
        quick_flow(&r, c, quick);
    return reader_finish(&r, c, ret, NULL, err);
}
