/*
 * check.c -- what no table can say: how values of a configuration fit together.
 */
#include "config_internal.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The node to blame for KEY: the value's, else the mapping's; a static one for the command line. */
static const struct node *blame(const struct node *mapping, const char *key)
{
    static const struct node nowhere;
    const struct node *n = node_get(mapping, key);

    return n != NULL ? n : mapping != NULL ? mapping : &nowhere;
}

bool name_check(struct reader *r, const char *name, size_t line, size_t column, const char *where)
{
    size_t n = strlen(name);
    bool is_good = n > 0 && n <= 100 && name[0] != '.' && strchr(name, '/') == NULL && text_utf8_valid(name, n) == n;

    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            is_good = false;
    /* It becomes a folder name in the quarantine, and a label in metrics. */
    if (!is_good)
        reader_problem(r, line, column,
                       "%s: a name has 1 to 100 bytes, no '/', no control characters, and does not begin with '.'",
                       where);
    return is_good;
}

bool retry_check(struct reader *r, const struct retry_options *retry, const struct node *node, const char *where)
{
    if (retry->factor < 1 || retry->factor > 100) {
        const struct node *n = blame(node, "factor");
        reader_problem(r, n->line, n->column, "%s.factor: expected 1 to 100, found %g", where, retry->factor);
        return false;
    }
    if (retry->max < retry->first) {
        const struct node *n = blame(node, "max");
        reader_problem(r, n->line, n->column, "%s: max is shorter than first", where);
        return false;
    }
    return true;
}

void source_adopt(struct config_source *s)
{
    const uint64_t *debounce = options_member(s->ops->options, s->options, "debounce", OPT_DURATION);
    const uint64_t *settle = options_member(s->ops->options, s->options, "settle", OPT_DURATION);
    const char *const *marker = options_member(s->ops->options, s->options, "ready_marker", OPT_STRING);

    s->debounce_ms = debounce != NULL ? *debounce : 200;
    s->settle_ms = settle != NULL ? *settle : 1000;
    s->ready_marker = marker != NULL && *marker != NULL ? *marker : "";
    const uint64_t *every = options_member(s->ops->options, s->options, "every", OPT_DURATION);
    const char *const *cron = options_member(s->ops->options, s->options, "cron", OPT_STRING);
    s->every_ms = every != NULL ? *every : 0;
    s->cron_text = cron != NULL && *cron != NULL ? *cron : "";
    s->host = s->port = "";
}

/* What templates can say of the place that a source reads from. */
static bool place_adopt(struct reader *r, struct config_source *s)
{
    char host[256];
    unsigned port = 0;
    if (s->ops->place == NULL || !s->ops->place(s->options, host, sizeof host, &port))
        return true;
    s->host = arena_strdup(r->arena, host);
    s->port = arena_printf(r->arena, "%u", port);
    if (s->host == NULL || s->port == NULL)
        reader_nomem(r);
    return !r->failed;
}

/* When a source is asked for its files. */
static bool schedule_is_good(struct reader *r, struct config_source *s, const struct node *node, const char *where)
{
    struct err err = {0};
    if (s->cron_text[0] == '\0')
        return true;
    if (s->every_ms > 0) {
        const struct node *n = blame(node, "cron");
        reader_problem(r, n->line, n->column, "%s: expected `every` or `cron`, found both", where);
        return false;
    }
    if (cron_parse(s->cron_text, &s->cron, &err) == ERR_NONE)
        return true;
    const struct node *n = blame(node, "cron");
    reader_problem(r, n->line, n->column, "%s.cron: %s", where, err.text);
    return false;
}

bool source_check(struct reader *r, struct config_source *s, const struct node *node, const char *where)
{
    struct err err;

    source_adopt(s);
    if (s->ready_marker[0] != '\0') {
        const struct node *n = blame(node, "ready_marker");
        const char *hole = strstr(s->ready_marker, "{name}");
        if (hole == NULL || strchr(s->ready_marker, '/') != NULL || strcmp(s->ready_marker, "{name}") == 0 ||
            strpbrk(hole + 6, "{}") != NULL || (size_t)(hole - s->ready_marker) != strcspn(s->ready_marker, "{}")) {
            reader_problem(r, n->line, n->column,
                           "%s.ready_marker: expected a file name with {name} in it, such as \"{name}.done\"", where);
            return false;
        }
    }
    if (!schedule_is_good(r, s, node, where))
        return false;
    err_clear(&err);
    if (s->ops->check != NULL && s->ops->check(s->options, &err) != ERR_NONE) {
        const struct node *n = blame(node, "");
        reader_problem(r, n->line, n->column, "%s: %s", where, err.text);
        return false;
    }
    return place_adopt(r, s);
}

static bool globs_check(struct reader *r, const struct option_strings *globs, const struct node *node, const char *key,
                        const char *where)
{
    const struct node *list = node_get(node, key);
    const struct node *item = list != NULL ? list->first : NULL;
    struct err err;

    for (size_t i = 0; i < globs->count; i++, item = item != NULL ? item->next : NULL) {
        const struct node *n = item != NULL ? item : blame(node, key);
        err_clear(&err);
        if (!glob_check(globs->items[i], &err)) {
            reader_problem(r, n->line, n->column, "%s.%s: %s", where, key, err.text);
            return false;
        }
        if (globs->items[i][0] == '\0' || globs->items[i][0] == '/' || strncmp(globs->items[i], "./", 2) == 0) {
            reader_problem(r, n->line, n->column,
                           "%s.%s: a glob is compared with the path below the root, which begins without '/' or './'",
                           where, key);
            return false;
        }
    }
    return true;
}

static bool columns_check(struct reader *r, const struct option_strings *columns, const struct node *node,
                          const char *key, const char *where)
{
    const struct node *n = blame(node, key);
    char shown[64];

    for (size_t i = 0; i < columns->count; i++) {
        if (columns->items[i][0] == '\0') {
            reader_problem(r, n->line, n->column, "%s.%s: a column name is empty", where, key);
            return false;
        }
        for (size_t j = 0; j < i; j++)
            if (strcmp(columns->items[i], columns->items[j]) == 0) {
                reader_problem(r, n->line, n->column, "%s.%s: column '%s' is named twice", where, key,
                               text_printable(columns->items[i], shown, sizeof(shown)));
                return false;
            }
    }
    return true;
}

static bool csv_check(struct reader *r, const struct csv_options *csv, const struct node *node, const char *where)
{
    const struct node *n = blame(blame(node, "csv"), "quote");

    if (csv->quote == '\0' || csv->quote == ' ' || (csv->delimiter != '\0' && csv->quote == csv->delimiter)) {
        reader_problem(r, n->line, n->column, "%s.csv: quote and delimiter must differ", where);
        return false;
    }
    return true;
}

static bool on_changed_check(struct reader *r, const struct config_flow *flow, const struct node *node,
                             const char *mode, const char *where)
{
    const struct node *n = blame(node, "on_changed");

    if (flow->on_changed == CHANGED_VERSION || flow->on_changed == CHANGED_OVERWRITE) {
        reader_problem(r, n->line, n->column, "%s: on_changed: version and overwrite are for format: raw", where);
        return false;
    }
    if (flow->on_changed == CHANGED_REJECT || flow->plan.mode == MODE_APPEND)
        return true;
    reader_problem(r, n->line, n->column, "%s: on_changed is for load: append, not for %s", where, mode);
    return false;
}

/* Modes and what they need. */
static bool mode_check(struct reader *r, struct config_flow *flow, const struct node *node, const char *where)
{
    static const char *const words[] = {"replace", "append", "upsert", "keep_first", "newest"};
    struct load_plan *plan = &flow->plan;
    const char *mode = words[plan->mode];
    const struct node *n = blame(node, "load");

    if (plan->key.count == 0 && plan->mode >= MODE_UPSERT) {
        reader_problem(r, n->line, n->column, "%s: load: %s needs a key; add `key: [COLUMN]`", where, mode);
        return false;
    }
    if (plan->order_by.count == 0 && plan->mode == MODE_NEWEST) {
        reader_problem(r, n->line, n->column, "%s: load: newest needs order_by; add `order_by: [COLUMN]`", where);
        return false;
    }
    if (plan->order_by.count > 0 && plan->mode != MODE_NEWEST && plan->mode != MODE_KEEP_FIRST) {
        n = blame(node, "order_by");
        reader_problem(r, n->line, n->column, "%s: order_by is for load: newest and keep_first, not for %s", where,
                       mode);
        return false;
    }
    if (!on_changed_check(r, flow, node, mode, where))
        return false;
    if (plan->on_schema_change == SCHEMA_RECREATE && plan->mode != MODE_REPLACE) {
        if (node_get(node, "on_schema_change") == NULL) {
            /* The destination's default is for replace; rows that only this table has must not go with it. */
            plan->on_schema_change = SCHEMA_REJECT;
            return true;
        }
        n = blame(node, "on_schema_change");
        reader_problem(r, n->line, n->column,
                       "%s: on_schema_change: recreate would lose the rows of earlier files; it is for load: replace, "
                       "not for %s",
                       where, mode);
        return false;
    }
    return true;
}

static bool delete_check(struct reader *r, const struct config_flow *flow, const struct node *node, const char *where)
{
    const struct node *n = blame(node, "on_delete");
    const char *word = flow->on_delete == ON_DELETE_DROP ? "drop" : "empty";

    if (flow->on_delete == ON_DELETE_IGNORE)
        return true;
    if (flow->plan.mode != MODE_REPLACE) {
        reader_problem(
            r, n->line, n->column,
            "%s: on_delete: %s is for load: replace; a table with rows of several files can't follow one file", where,
            word);
        return false;
    }
    if (flow_is_constant(flow)) {
        reader_problem(
            r, n->line, n->column,
            "%s: on_delete: %s needs a table for each file; put {path_stem} or another placeholder in `table`", where,
            word);
        return false;
    }
    return true;
}

/* A file is a blob: there is one of the other for each, and what becomes of a changed one. */
static bool raw_check(struct reader *r, struct config_flow *flow, const struct node *node, const char *where)
{
    const struct node *n = blame(node, "on_changed");

    if (flow->on_changed == CHANGED_TAIL || flow->on_changed == CHANGED_AGAIN) {
        reader_problem(r, n->line, n->column, "%s: on_changed: expected version or overwrite for format: raw", where);
        return false;
    }
    if (flow->on_changed == CHANGED_REJECT && node_get(node, "on_changed") != NULL) {
        reader_problem(r, n->line, n->column, "%s: on_changed: expected version or overwrite for format: raw", where);
        return false;
    }
    flow->plan.overwrites = flow->on_changed == CHANGED_OVERWRITE;
    flow->on_changed = CHANGED_REJECT; /* that is about rows */
    if (flow->on_delete == ON_DELETE_EMPTY) {
        n = blame(node, "on_delete");
        reader_problem(r, n->line, n->column, "%s: on_delete: a blob can't be emptied: expected ignore or drop", where);
        return false;
    }
    if (flow_is_constant(flow)) {
        n = blame(node, "blob");
        reader_problem(r, n->line, n->column,
                       "%s.blob: all files would be one blob; put {path} or another placeholder in it", where);
        return false;
    }
    return true;
}

/* A destination may say where the tables lie whose flow does not: an option of it that is called as the flow's. */
static void space_adopt(struct config_flow *flow)
{
    const struct config_dest *dest = flow->dest;
    const char *const *given = options_member(dest->ops->options, dest->options, dest->ops->space_word, OPT_STRING);

    flow->space = given != NULL ? *given : NULL;
    flow->space_is_given = flow->space != NULL;
}

/* The bucket or schema, where the destination has them; and what else it can't do. */
static bool dest_flow_check(struct reader *r, struct config_flow *flow, const struct node *node, const char *where)
{
    const struct dest_ops *ops = flow->dest != NULL ? flow->dest->ops : NULL;
    static const char *const words[] = {"bucket", "schema"};
    const char *option = "to";
    const struct node *n;
    struct err err;

    err_clear(&err);
    if (ops == NULL) /* its type was refused already */
        return true;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        n = node_get(node, words[i]);
        if (n == NULL || (ops->space_word != NULL && strcmp(ops->space_word, words[i]) == 0))
            continue;
        reader_problem(r, n->line, n->column, "%s.%s: destinations of type %s have no %ss", where, words[i], ops->type,
                       words[i]);
        return false;
    }
    if (ops->takes_bytes != (flow->format == FORMAT_RAW)) {
        n = blame(node, "format");
        reader_problem(r, n->line, n->column,
                       ops->takes_bytes ? "%s.format: destinations of type %s take files as they are: expected raw"
                                        : "%s.format: destinations of type %s hold tables: raw has no rows for them",
                       where, ops->type);
        return false;
    }
    if (!ops->takes_bytes && flow->plan.names == NAMES_BLOB) {
        n = blame(node, "names");
        reader_problem(r, n->line, n->column, "%s.names: blob is for blobs; destinations of type %s hold tables", where,
                       ops->type);
        return false;
    }
    n = blame(node, ops->space_word != NULL ? ops->space_word : "to");
    if (ops->space_word != NULL && flow->space == NULL)
        space_adopt(flow);
    if (ops->space_word != NULL &&
        (flow->space == NULL || (!flow->space_is_given && !template_check(flow->space, &err)))) {
        reader_problem(r, n->line, n->column, "%s.%s: %s", where, ops->space_word,
                       flow->space == NULL ? "is missing" : err.text);
        return false;
    }
    flow->plan.null_values = flow->csv.null_values;
    if (flow->format == FORMAT_JSON) /* each rule was asked about already */
        return true;
    if (ops->check_flow != NULL && ops->check_flow(&flow->plan, &option, &err) != ERR_NONE) {
        n = blame(node, option);
        reader_problem(r, n->line, n->column, "%s.%s: %s", where, option, err.text);
        return false;
    }
    return true;
}

static bool archives_check(struct reader *r, const struct config_flow *flow, const struct node *node, const char *where)
{
    const struct node *n = blame(node, "archives");
    if (flow->archives == ARCHIVES_KEEP)
        return true;
    if (unpack_library()[0] == '\0') {
        reader_problem(r, n->line, n->column, "%s.archives: this chute was built without libarchive: expected keep",
                       where);
        return false;
    }
    if (flow->archives == ARCHIVES_BOTH && flow->format != FORMAT_RAW) {
        reader_problem(
            r, n->line, n->column,
            "%s.archives: both also loads the archive itself, which is no table: expected extract, or format: raw",
            where);
        return false;
    }
    return true;
}

bool flow_check(struct reader *r, struct config_flow *flow, const struct node *node, const char *where)
{
    const char *const table = flow->format == FORMAT_RAW ? "blob" : "table";
    const struct node *n = blame(node, table);
    struct err err;

    err_clear(&err);
    if (flow->table[0] == '\0' || !template_check(flow->table, &err)) {
        reader_problem(r, n->line, n->column, "%s.%s: %s", where, table,
                       flow->table[0] == '\0' ? "is empty" : err.text);
        return false;
    }
    if (node != NULL && flow->include.count == 0) {
        n = blame(node, "include");
        reader_problem(r, n->line, n->column, "%s.include: is empty, so no file would ever be taken", where);
        return false;
    }
    if (!globs_check(r, &flow->include, node, "include", where) ||
        !globs_check(r, &flow->exclude, node, "exclude", where) || !archives_check(r, flow, node, where))
        return false;
    if (flow->format == FORMAT_JSON) /* its rules have been checked when they were read */
        return on_changed_check(r, flow, node, "rules that can repeat nothing", where) &&
               delete_check(r, flow, node, where) && dest_flow_check(r, flow, node, where);
    if (flow->format == FORMAT_RAW)
        return raw_check(r, flow, node, where) && delete_check(r, flow, node, where) &&
               dest_flow_check(r, flow, node, where);
    return columns_check(r, &flow->require, node, "require", where) &&
           columns_check(r, &flow->plan.key, node, "key", where) &&
           columns_check(r, &flow->plan.order_by, node, "order_by", where) && csv_check(r, &flow->csv, node, where) &&
           mode_check(r, flow, node, where) && delete_check(r, flow, node, where) &&
           dest_flow_check(r, flow, node, where);
}

/* --- between flows, sources and folders --- */

static const char *source_root(const struct config_source *s)
{
    const char *const *root = options_member(s->ops->options, s->options, "path", OPT_PATH);

    return root != NULL ? *root : NULL;
}

static void folder_check(struct reader *r, const struct config *c, const struct config_flow *flow, const char *dir,
                         const struct node *node, const char *key)
{
    const struct node *n = blame(node, key);
    const char *root = source_root(flow->source);
    char shown[160];

    if (dir == NULL || flow->source->ops->fetch != NULL) /* there it is a folder on the server */
        return;
    text_printable(dir, shown, sizeof(shown));
    if (path_is_within(dir, c->state))
        reader_problem(r, n->line, n->column, "flows.%s.%s: %s lies in chute's own state folder; choose another",
                       flow->name, key, shown);
    else if (root != NULL && path_is_within(root, dir))
        reader_problem(r, n->line, n->column,
                       "flows.%s.%s: %s is or contains the folder that source '%s' watches; what is moved there would "
                       "never be taken again, and neither would new files; choose another",
                       flow->name, key, shown, flow->source->name);
}

/*
 * The INDEX-th of the tables that all files of FLOW go to, as its destination compares names, with how it is loaded;
 * false: there are no more, or one for each file.
 */
static bool constant_table(const struct config_flow *flow, size_t index, char *ret_key, size_t size,
                           enum load_mode *ret_mode)
{
    char legal[TABLE_NAME_MAX], key[TABLE_NAME_MAX] = "";
    const struct dest_ops *ops = flow->dest->ops;
    struct err err;

    if (!flow_is_constant(flow) || size < sizeof(legal))
        return false;
    err_clear(&err);
    if (flow->format == FORMAT_JSON) {
        if (index >= flow->part_count ||
            (flow->space != NULL && flow_space_name(flow, "", legal, key, sizeof(key), &err) != ERR_NONE))
            return false;
        size_t n = (size_t)snprintf(ret_key, size, "%s%s", key, flow->space != NULL ? "." : "");
        *ret_mode = flow->parts[index].plan->mode;
        return ops->table_name(flow->parts[index].table, NAMES_KEEP, legal, key, sizeof(key), &err) == ERR_NONE &&
               (size_t)snprintf(ret_key + n, size - n, "%s", key) < size - n;
    }
    *ret_mode = flow->plan.mode;
    if (index == 0 &&
        (ops->table_name == NULL || flow_table_name(flow, "", legal, ret_key, sizeof(legal), &err) != ERR_NONE))
        snprintf(ret_key, size, "%s", flow->table);
    return index == 0;
}

/* Does OTHER load into the table MINE, and does one of the two replace all rows of it? */
static bool fights_over(const struct config_flow *other, const char *mine, enum load_mode mode)
{
    char theirs[2 * TABLE_NAME_MAX];
    enum load_mode their_mode;

    for (size_t i = 0; constant_table(other, i, theirs, sizeof(theirs), &their_mode); i++)
        if (strcmp(mine, theirs) == 0 && (mode == MODE_REPLACE || their_mode == MODE_REPLACE))
            return true;
    return false;
}

static void owners_check(struct reader *r, const struct config *c, const struct node *list)
{
    char mine[2 * TABLE_NAME_MAX];
    const struct node *node = list != NULL ? list->first : NULL;
    enum load_mode mode;

    for (size_t i = 0; i < c->flow_count; i++, node = node != NULL ? node->next : NULL) {
        const struct config_flow *flow = &c->flows[i];
        bool is_told = false;
        for (size_t t = 0; !is_told && constant_table(flow, t, mine, sizeof(mine), &mode); t++) {
            for (size_t j = 0; j < i && !is_told; j++) {
                const struct config_flow *other = &c->flows[j];
                is_told = other->dest == flow->dest && fights_over(other, mine, mode);
                if (!is_told)
                    continue;
                const struct node *n = blame(node, flow->format == FORMAT_JSON ? "records" : "table");
                reader_problem(r, n->line, n->column,
                               "flows.%s.%s: flow '%s' loads into the same table '%s', and one of them replaces all "
                               "its rows; give each its own table",
                               flow->name, flow->format == FORMAT_JSON ? "records" : "table", other->name,
                               flow->format == FORMAT_JSON ? flow->parts[t].table : flow->table);
            }
        }
    }
}

static void listen_check(struct reader *r, const char *listen, const struct node *top)
{
    const struct node *n = blame(blame(top, "http"), "listen");
    const char *colon = strrchr(listen, ':');

    if (listen[0] == '\0')
        return;
    if (colon != NULL && colon != listen && colon[1] != '\0' && strspn(colon + 1, "0123456789") == strlen(colon + 1) &&
        strlen(colon + 1) <= 5 && atoi(colon + 1) <= 65535 && (listen[0] == '[' || strchr(listen, ':') == colon))
        return;
    reader_problem(r, n->line, n->column,
                   "http.listen: expected HOST:PORT such as 127.0.0.1:9180 or [::1]:9180, found another text");
}

static void logs_check(struct reader *r, const struct config *c, const struct node *list)
{
    const struct node *node = list != NULL ? list->first : NULL;

    for (size_t i = 0; i < c->log_count; i++, node = node != NULL ? node->next : NULL)
        for (size_t j = 0; j < i; j++)
            if (strcmp(c->logs[i].to, c->logs[j].to) == 0 && c->logs[i].to[0] == '/') {
                const struct node *n = blame(node, "to");
                reader_problem(r, n->line, n->column, "log: two outputs to one file would mix their lines");
            }
}

void config_check(struct reader *r, const struct config *c, const struct node *top)
{
    const struct node *node = node_get(top, "flows");
    const struct node *sources = node_get(top, "sources");
    char shown[160];

    listen_check(r, c->http_listen, top);
    logs_check(r, c, node_get(top, "log"));
    timezone_check(r, c, top);
    for (size_t i = 0; i < c->source_count; i++) {
        const char *root = source_root(&c->sources[i]);
        const struct node *n = blame(node_get(sources, c->sources[i].name), "path");
        if (root != NULL && path_is_within(root, c->state))
            reader_problem(r, n->line, n->column,
                           "sources.%s.path: %s lies in chute's own state folder, where nothing is taken",
                           c->sources[i].name, text_printable(root, shown, sizeof(shown)));
    }
    owners_check(r, c, node);
    node = node != NULL ? node->first : NULL;
    for (size_t i = 0; i < c->flow_count; i++, node = node != NULL ? node->next : NULL) {
        folder_check(r, c, &c->flows[i], c->flows[i].after_success_dir, node, "after_success");
        folder_check(r, c, &c->flows[i], c->flows[i].after_failure_dir, node, "after_failure");
    }
}

/* What only says where files are, or what becomes of them afterwards, does not change what a load means. */
void flow_define(struct config_flow *flow)
{
    static const char *const skip[] = {"name",          "from",          "to",        "include", "exclude",
                                       "after_success", "after_failure", "on_delete", "then",    NULL};
    uint64_t hash = UINT64_C(14695981039346656037);

    hash = options_hash(hash, config_flow_table, flow, skip);
    hash = records_hash(hash, flow);
    hash = options_hash(hash, flow->dest->ops->options, flow->dest->options, NULL);
    /* The ledger keeps it as a signed number and 0 as "none". */
    hash &= INT64_MAX;
    flow->definition = hash != 0 ? hash : 1;
}
