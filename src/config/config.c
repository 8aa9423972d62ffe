/*
 * config.c -- a file to a struct config: sections in the order they need each other, and the life of the result.
 */
#include "config_internal.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- life --- */

struct config *config_new(struct reader *r)
{
    struct config *c = calloc(1, sizeof(*c));

    if (c == NULL) {
        reader_nomem(r);
        return NULL;
    }
    arena_init(&c->arena);
    c->references = 1;
    c->file = "";
    r->arena = &c->arena;
    return c;
}

struct config *config_ref(struct config *c)
{
    c->references++;
    return c;
}

void config_unref(struct config *c)
{
    if (c == NULL || --c->references > 0)
        return;
    arena_done(&c->arena);
    free(c);
}

enum err_code reader_finish(struct reader *r, struct config *c, struct config **ret, char **ret_errors, struct err *err)
{
    enum err_code code = ERR_NONE;

    *ret = NULL;
    if (r->problem_count > CONFIG_PROBLEMS_MAX)
        buf_printf(&r->problems, "\n... and %zu more", r->problem_count - CONFIG_PROBLEMS_MAX);
    if (r->failed || r->problems.failed) {
        code = err_nomem(err);
    } else if (r->problem_count > 0) {
        code = err_set(err, ERR_CONFIG, false, "%s", r->first.text);
        if (ret_errors != NULL)
            *ret_errors = buf_take(&r->problems);
    }
    buf_done(&r->problems);
    arena_done(&r->scratch);
    if (code == ERR_NONE)
        *ret = c;
    else
        config_unref(c);
    return code;
}

/* --- sections --- */

static const char *driver_place(struct reader *r, const char *section, const char *name)
{
    char shown[80];
    const char *where = reader_printf(r, "%s.%s", section, text_printable(name, shown, sizeof(shown)));

    return where != NULL ? where : section;
}

/* The word under `type`, or NULL with the problem noted. NAMES are the types there are. */
static const char *read_type(struct reader *r, const struct node *node, const char *where, const char *const *names)
{
    const struct node *type = node_get(node, "type");
    char found[80];

    if (node->kind != NODE_MAPPING) {
        reader_problem(r, node->line, node->column, "%s: expected a mapping with a type, found %s", where,
                       node_found(node, found, sizeof(found)));
        return NULL;
    }
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; names[i] != NULL; i++)
        buf_printf(&b, "%s%s", i > 0 ? ", " : "", names[i]);
    const char *text = NULL;
    if (type == NULL) {
        reader_problem(r, node->line, node->column, "%s: 'type' is missing; one of %s", where, b.data);
    } else if (type->kind != NODE_SCALAR) {
        reader_problem(r, type->line, type->column, "%s.type: expected one of %s, found %s", where, b.data,
                       node_found(type, found, sizeof(found)));
    } else if ((text = value_text(r, type, where)) != NULL) {
        for (size_t i = 0; names[i] != NULL; i++)
            if (strcmp(names[i], text) == 0)
                goto done;
        reader_problem(r, type->line, type->column, "%s.type: expected one of %s, found %s%s", where, b.data,
                       node_found(type, found, sizeof(found)), hint_nearest(r, text, names));
        text = NULL;
    }
done:
    if (b.failed)
        reader_nomem(r);
    buf_done(&b);
    return text;
}

static const char *const handled_type[] = {"type", NULL};

static void read_source(struct reader *r, struct config_source *s, const struct node *node,
                        const struct config_drivers *drivers, const char *const *types)
{
    const char *where = driver_place(r, "sources", s->name);
    size_t before = r->problem_count;
    const char *type = read_type(r, node, where, types);

    for (size_t i = 0; type != NULL && drivers->sources[i] != NULL; i++)
        if (strcmp(drivers->sources[i]->type, type) == 0)
            s->ops = drivers->sources[i];
    if (s->ops == NULL)
        return;
    s->options = arena_alloc(r->arena, s->ops->options_size + 1);
    if (s->options == NULL) {
        reader_nomem(r);
        return;
    }
    const struct target target = {s->ops->options, s->options};
    options_defaults(r, s->ops->options, s->options);
    options_read(r, &target, 1, handled_type, node, where);
    if (r->problem_count == before && !r->failed)
        source_check(r, s, node, where);
}

static void read_dest(struct reader *r, struct config_dest *d, const struct node *node,
                      const struct config_drivers *drivers, const char *const *types)
{
    const char *where = driver_place(r, "destinations", d->name);
    size_t before = r->problem_count;
    const char *type = read_type(r, node, where, types);
    struct err err;

    for (size_t i = 0; type != NULL && drivers->dests[i] != NULL; i++)
        if (strcmp(drivers->dests[i]->type, type) == 0)
            d->ops = drivers->dests[i];
    if (d->ops == NULL)
        return;
    d->options = arena_alloc(r->arena, d->ops->options_size + 1);
    if (d->options == NULL) {
        reader_nomem(r);
        return;
    }
    const struct target targets[] = {{d->ops->options, d->options}, {config_dest_table, d}};
    options_defaults(r, d->ops->options, d->options);
    options_read(r, targets, 2, handled_type, node, where);
    if (r->problem_count != before || r->failed)
        return;
    const char *retry_where = reader_printf(r, "%s.retry", where);
    const struct node *retry = node_get(node, "retry");
    if (retry_where != NULL && retry != NULL)
        retry_check(r, &d->retry, retry, retry_where);
    err_clear(&err);
    if (d->ops->check != NULL && d->ops->check(d->options, &err) != ERR_NONE)
        reader_problem(r, node->line, node->column, "%s: %s", where, err.text);
    init_check(r, d, node, where);
}

/* The mapping under KEY of TOP, or NULL with the problem noted. */
static const struct node *need(struct reader *r, const struct node *top, const char *key, enum node_kind kind,
                               const char *why)
{
    const struct node *n = node_get(top, key);
    const char *what = kind == NODE_MAPPING ? "a mapping of names" : "a list";
    char found[80];

    if (n == NULL)
        reader_problem(r, top->line, top->column, "'%s' is missing: %s", key, why);
    else if (n->kind != kind)
        reader_problem(r, n->line, n->column, "%s: expected %s, found %s", key, what,
                       node_found(n, found, sizeof(found)));
    else if (n->count == 0)
        reader_problem(r, n->line, n->column, "'%s' is empty: %s", key, why);
    else
        return n;
    return NULL;
}

static void read_sources(struct reader *r, struct config *c, const struct node *top,
                         const struct config_drivers *drivers)
{
    const struct node *list = need(r, top, "sources", NODE_MAPPING, "name at least one folder to take files from");
    size_t count = 0;

    while (drivers->sources[count] != NULL)
        count++;
    const char **types = reader_alloc(r, (count + 1) * sizeof(*types));
    if (list == NULL || types == NULL)
        return;
    for (size_t i = 0; i < count; i++)
        types[i] = drivers->sources[i]->type;
    c->sources = arena_alloc(r->arena, list->count * sizeof(*c->sources));
    if (c->sources == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *n = list->first; n != NULL && !r->failed; n = n->next) {
        struct config_source *s = &c->sources[c->source_count];
        if ((s->name = arena_strdup(r->arena, n->key)) == NULL) {
            reader_nomem(r);
            return;
        }
        c->source_count++;
        s->ready_marker = "";
        if (name_check(r, n->key, n->key_line, n->key_column, "sources"))
            read_source(r, s, n, drivers, types);
    }
}

static void read_dests(struct reader *r, struct config *c, const struct node *top, const struct config_drivers *drivers)
{
    const struct node *list = need(r, top, "destinations", NODE_MAPPING, "name at least one database to load into");
    size_t count = 0;

    while (drivers->dests[count] != NULL)
        count++;
    const char **types = reader_alloc(r, (count + 1) * sizeof(*types));
    if (list == NULL || types == NULL)
        return;
    for (size_t i = 0; i < count; i++)
        types[i] = drivers->dests[i]->type;
    c->dests = arena_alloc(r->arena, list->count * sizeof(*c->dests));
    if (c->dests == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *n = list->first; n != NULL && !r->failed; n = n->next) {
        struct config_dest *d = &c->dests[c->dest_count];
        if ((d->name = arena_strdup(r->arena, n->key)) == NULL) {
            reader_nomem(r);
            return;
        }
        c->dest_count++;
        d->retry = c->retry;
        if (name_check(r, n->key, n->key_line, n->key_column, "destinations"))
            read_dest(r, d, n, drivers, types);
    }
}

/* --- flows --- */

static void apply(struct reader *r, struct flow_draft *draft, const char *const *pairs, const char *whose)
{
    for (const char *const *pair = pairs; pair != NULL && pair[0] != NULL && pair[1] != NULL; pair += 2)
        options_set(r, config_flow_table, draft, pair[0], pair[1], whose);
}

void flow_defaults(struct reader *r, struct flow_draft *draft, const struct config_source *source,
                   const struct config_dest *dest)
{
    options_defaults(r, config_flow_table, draft);
    if (dest == NULL || dest->ops == NULL)
        return;
    apply(r, draft, dest->ops->flow_defaults, dest->ops->type);
    if (source != NULL && source->ops != NULL && source->ops->fetch != NULL)
        apply(r, draft, dest->ops->remote_defaults, dest->ops->type);
}

static const struct config_source *find_source(const struct config *c, const char *name)
{
    for (size_t i = 0; name != NULL && i < c->source_count; i++)
        if (strcmp(c->sources[i].name, name) == 0)
            return &c->sources[i];
    return NULL;
}

/* `from` and `to` name something that is there; else say what is. */
static void check_reference(struct reader *r, const struct node *node, const char *key, const char *where,
                            const char *name, const struct config *c)
{
    bool is_source = strcmp(key, "from") == 0;
    size_t count = is_source ? c->source_count : c->dest_count;
    const struct node *n = node_get(node, key);
    const char **names = reader_alloc(r, (count + 1) * sizeof(*names));
    char shown[80];

    if (names == NULL || n == NULL)
        return;
    for (size_t i = 0; i < count; i++)
        names[i] = is_source ? c->sources[i].name : c->dests[i].name;
    const char *nearest = text_nearest(name, names);
    char *hint = nearest != NULL ? reader_printf(r, "; did you mean '%s'?", nearest) : "";
    reader_problem(r, n->line, n->column, "%s.%s: there is no %s '%s'%s", where, key,
                   is_source ? "source" : "destination", text_printable(name, shown, sizeof(shown)),
                   hint != NULL ? hint : "");
}

/* Source and destination decide defaults, so they are looked up before the flow is read; mistakes are told there. */
static const char *peek(struct reader *r, const struct node *node, const char *key)
{
    const struct node *value = node_get(node, key);

    if (value == NULL || value->kind != NODE_SCALAR)
        return NULL;
    struct reader quiet = *r;
    buf_init(&quiet.problems);
    const char *name = value_text(&quiet, value, key);
    buf_done(&quiet.problems);
    r->scratch = quiet.scratch;
    r->failed = quiet.failed;
    return name;
}

/* Where files are on a server, they are moved to a folder of that server: not one of this machine. */
static void read_remote_folder(struct reader *r, const struct node *node, const char *key, const char **dir)
{
    const struct node *choice = node_get(node, key);
    const struct node *move = choice != NULL && choice->kind == NODE_MAPPING ? node_get(choice, "move") : NULL;
    if (move == NULL || move->kind != NODE_SCALAR || *dir == NULL)
        return;
    const char *text = value_text(r, move, key);
    if (text == NULL)
        return;
    if (text[strspn(text, "/")] == '\0' || strstr(text, "..") != NULL) {
        reader_problem(r, move->line, move->column, "%s.move: expected a folder below the root of the source", key);
        return;
    }
    *dir = arena_strdup(r->arena, text);
    if (*dir == NULL)
        reader_nomem(r);
}

static void read_flow(struct reader *r, struct config *c, struct config_flow *ret, const struct node *node,
                      size_t index)
{
    const struct node *named = node_get(node, "name");
    bool has_name = named != NULL && named->kind == NODE_SCALAR;
    char shown[80], number[32];
    struct flow_draft draft = {0};
    size_t before = r->problem_count;

    snprintf(number, sizeof(number), "flows[%zu]", index);
    const char *where = has_name ? reader_printf(r, "flows.%s", text_printable(named->text, shown, sizeof(shown)))
                                 : reader_printf(r, "%s", number);
    if (where == NULL)
        return;
    if (node->kind != NODE_MAPPING) {
        reader_problem(r, node->line, node->column, "%s: expected a mapping, found %s", where,
                       node_found(node, shown, sizeof(shown)));
        return;
    }
    const struct config_dest *dest = config_dest_named(c, peek(r, node, "to"));
    flow_defaults(r, &draft, find_source(c, peek(r, node, "from")), dest);
    const struct target target = {config_flow_table, &draft};
    static const char *const handled[] = {"records", NULL};
    options_read(r, &target, 1, handled, node, where);
    draft.flow.dest = config_dest_named(c, draft.to);
    draft.flow.source = find_source(c, draft.from);
    if (draft.flow.source != NULL && draft.flow.source->ops != NULL && draft.flow.source->ops->fetch != NULL) {
        read_remote_folder(r, node, "after_success", &draft.flow.after_success_dir);
        read_remote_folder(r, node, "after_failure", &draft.flow.after_failure_dir);
    }
    if (draft.to != NULL && draft.flow.dest == NULL && c->dest_count > 0)
        check_reference(r, node, "to", where, draft.to, c);
    if (draft.from != NULL && draft.flow.source == NULL && c->source_count > 0)
        check_reference(r, node, "from", where, draft.from, c);
    if (draft.flow.name != NULL && named != NULL)
        name_check(r, draft.flow.name, named->line, named->column, where);
    draft.flow.plan.flow = draft.flow.name;
    then_check(r, c, &draft.flow, node, where);
    if (draft.flow.format == FORMAT_JSON)
        json_defaults(r, &draft, node);
    if (r->problem_count == before && !r->failed && format_check(r, &draft.flow, node, where) &&
        draft.flow.format == FORMAT_JSON)
        records_read(r, &draft.flow, node_get(node, "records"), where);
    if (r->problem_count == before && !r->failed)
        flow_check(r, &draft.flow, node, where);
    *ret = draft.flow;
}

static void read_flows(struct reader *r, struct config *c, const struct node *top)
{
    const struct node *list = need(r, top, "flows", NODE_SEQUENCE, "without a flow nothing is ever loaded");
    char shown[80];

    if (list == NULL)
        return;
    c->flows = arena_alloc(r->arena, list->count * sizeof(*c->flows));
    if (c->flows == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *n = list->first; n != NULL && !r->failed; n = n->next) {
        struct config_flow *flow = &c->flows[c->flow_count];
        read_flow(r, c, flow, n, c->flow_count);
        for (size_t i = 0; flow->name != NULL && i < c->flow_count; i++)
            if (c->flows[i].name != NULL && strcmp(c->flows[i].name, flow->name) == 0) {
                const struct node *name = node_get(n, "name");
                reader_problem(r, name->line, name->column, "flows: there are two flows named '%s'; rename one",
                               text_printable(flow->name, shown, sizeof(shown)));
                break;
            }
        c->flow_count++;
    }
}

/* --- log --- */

static void read_logs(struct reader *r, struct config *c, const struct node *top)
{
    const struct node *list = node_get(top, "log");
    char found[80];

    if (list != NULL && list->kind != NODE_SEQUENCE) {
        reader_problem(r, list->line, list->column, "log: expected a list of outputs, found %s",
                       node_found(list, found, sizeof(found)));
        return;
    }
    c->logs = arena_alloc(r->arena, (list != NULL && list->count > 0 ? list->count : 1) * sizeof(*c->logs));
    if (c->logs == NULL) {
        reader_nomem(r);
        return;
    }
    options_defaults(r, config_log_table, &c->logs[0]);
    c->logs[0].to = "stderr";
    if (list == NULL || list->count == 0) {
        c->log_count = 1;
        return;
    }
    for (const struct node *n = list->first; n != NULL && !r->failed; n = n->next) {
        struct log_output *log = &c->logs[c->log_count++];
        const struct target target = {config_log_table, log};
        const char *where = reader_printf(r, "log[%zu]", c->log_count - 1);
        const struct node *to = node_get(n, "to");
        if (where == NULL)
            return;
        options_defaults(r, config_log_table, log);
        log->to = "stderr";
        if (n->kind != NODE_MAPPING) {
            reader_problem(r, n->line, n->column, "%s: expected a mapping such as {to: stderr}, found %s", where,
                           node_found(n, found, sizeof(found)));
            continue;
        }
        options_read(r, &target, 1, NULL, n, where);
        if (strcmp(log->to, "stderr") == 0 || strcmp(log->to, "stdout") == 0)
            continue;
        if (log->to[0] == '\0' && to != NULL)
            reader_problem(r, to->line, to->column, "%s.to: expected stderr, stdout or a path, found an empty text",
                           where);
        else if ((log->to = path_absolute(r->arena, r->folder, log->to)) == NULL)
            reader_nomem(r);
    }
}

/* --- all of it --- */

static void read_top(struct reader *r, struct config *c, const struct node *top, const struct config_drivers *drivers)
{
    static const char *const handled[] = {"log", "sources", "destinations", "pipelines", "flows", NULL};
    const struct target target = {config_top_table, c};
    char found[80];

    if (top->kind != NODE_MAPPING) {
        reader_problem(r, top->line, top->column, "expected a mapping with sources, destinations and flows, found %s",
                       node_found(top, found, sizeof(found)));
        return;
    }
    options_defaults(r, config_top_table, c);
    options_read(r, &target, 1, handled, top, "");
    if (node_get(top, "retry") != NULL)
        retry_check(r, &c->retry, node_get(top, "retry"), "retry");
    read_logs(r, c, top);
    read_sources(r, c, top, drivers);
    read_dests(r, c, top, drivers);
    pipelines_read(r, c, top);
    read_flows(r, c, top);
    if (r->problem_count > 0 || r->failed)
        return;
    config_check(r, c, top);
    for (size_t i = 0; i < c->flow_count; i++)
        flow_define(&c->flows[i]);
}

/* All of FILE, at most one byte more than allowed; NULL with the problem noted. In scratch. */
static char *read_file(struct reader *r, const char *file, size_t *ret_size)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0) {
        reader_problem(r, 0, 0, "can't read the configuration: %s%s", strerror(errno),
                       errno == ENOENT ? "; `chute init file2sql` writes one to begin with" : "");
        return NULL;
    }
    size_t used = 0, room = 16 * 1024;
    char *text = reader_alloc(r, room);
    ssize_t n = 0;
    while (text != NULL && used <= CONFIG_BYTES_MAX && (n = read(fd, text + used, room - used)) > 0) {
        used += (size_t)n;
        if (used < room)
            continue;
        char *larger = reader_alloc(r, room * 4);
        if (larger != NULL)
            memcpy(larger, text, used);
        text = larger;
        room *= 4;
    }
    if (n < 0)
        reader_problem(r, 0, 0, "can't read the configuration: %s", strerror(errno));
    close(fd);
    if (used > CONFIG_BYTES_MAX)
        reader_problem(r, 0, 0, "larger than 1 MiB: too much for a configuration");
    *ret_size = used;
    return n < 0 || used > CONFIG_BYTES_MAX ? NULL : text;
}

/* The configuration's absolute path and folder. A link is not followed: paths are relative to where it stands. */
static bool find_folder(struct reader *r, struct config *c, const char *file)
{
    const char *cwd = file[0] == '/' ? "/" : current_folder(r);

    if (cwd == NULL)
        return false;
    char *absolute = path_absolute(r->arena, cwd, file);
    if (absolute == NULL) {
        reader_nomem(r);
        return false;
    }
    c->file = absolute;
    const char *slash = strrchr(absolute, '/');
    r->folder = slash == absolute ? "/" : reader_printf(r, "%.*s", (int)(slash - absolute), absolute);
    return r->folder != NULL;
}

enum err_code config_load(const char *file, const struct config_drivers *drivers, struct config **ret,
                          char **ret_errors, struct err *err)
{
    struct reader r = {.file = file};
    size_t size = 0;

    *ret = NULL;
    if (ret_errors != NULL)
        *ret_errors = NULL;
    err_clear(err);
    arena_init(&r.scratch);
    buf_init(&r.problems);
    struct config *c = config_new(&r);
    if (c != NULL && find_folder(&r, c, file)) {
        char *text = read_file(&r, file, &size);
        struct node *top = text != NULL ? node_parse(&r, text, size, false) : NULL;
        if (top != NULL)
            read_top(&r, c, top, drivers);
    }
    return reader_finish(&r, c, ret, ret_errors, err);
}
