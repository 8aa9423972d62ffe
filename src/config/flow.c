/*
 * flow.c -- what a flow makes of a path: does it take it, and which table is it? Pure; any thread.
 */
#include "config_internal.h"
#include "text.h"

#include <stdio.h>
#include <string.h>

bool config_flow_takes(const struct config_flow *flow, const char *path)
{
    bool is_included = false;

    if (flow->include.count == 0) /* the flow of `chute load`: its files were named one by one */
        return true;
    if (path_is_temporary(path))
        return false;
    for (size_t i = 0; i < flow->include.count && !is_included; i++)
        is_included = glob_match(flow->include.items[i], path);
    for (size_t i = 0; i < flow->exclude.count && is_included; i++)
        is_included = !glob_match(flow->exclude.items[i], path);
    return is_included;
}

bool flow_unpacks(const struct config_flow *flow, const char *path)
{
    return flow->archives != ARCHIVES_KEEP && unpack_is_named(path) && (int64_t)member_depth(path) <= flow->nested;
}

bool flow_takes_member(const struct config_flow *flow, const char *path, const char *name)
{
    struct buf inside, beside;
    buf_init(&inside);
    buf_init(&beside);
    member_plain(path, &inside);
    if (!inside.failed) {
        const char *slash = strrchr(inside.data, '/');
        buf_add(&beside, inside.data, slash != NULL ? (size_t)(slash + 1 - inside.data) : 0);
    }
    buf_addc(&inside, '/');
    buf_adds(&inside, name);
    buf_adds(&beside, name);
    bool is_taken = !inside.failed && !beside.failed && !path_is_temporary(name) &&
                    (config_flow_takes(flow, inside.data) || config_flow_takes(flow, beside.data));
    for (size_t i = 0; i < flow->exclude.count && is_taken; i++)
        is_taken = !glob_match(flow->exclude.items[i], inside.data) && !glob_match(flow->exclude.items[i], beside.data);
    buf_done(&inside);
    buf_done(&beside);
    return is_taken;
}

bool flow_is_constant(const struct config_flow *flow)
{
    return template_is_constant(flow->table) &&
           (flow->space == NULL || flow->space_is_given || template_is_constant(flow->space));
}

/* One part of a table's name: TMPL for PATH, made legal by the destination. */
static enum err_code legal_part(const struct config_flow *flow, bool is_space, const char *path, char *ret,
                                char *ret_key, size_t size, struct err *err)
{
    const struct template_facts facts = {
        .path = path,
        .flow = flow->name,
        .host = flow->source != NULL && flow->source->host != NULL ? flow->source->host : "",
        .port = flow->source != NULL && flow->source->port != NULL ? flow->source->port : ""};
    const char *tmpl = is_space ? flow->space : flow->table;
    struct buf name;

    buf_init(&name);
    if (is_space && flow->space_is_given)
        buf_adds(&name, tmpl);
    else
        template_expand(tmpl, &facts, &name);
    enum names_policy names = is_space && flow->space_is_given ? NAMES_KEEP : flow->plan.names;
    enum err_code code = ERR_NONE;
    if (name.failed)
        code = err_nomem(err);
    else if (is_space)
        code = flow->dest->ops->space_name(name.data, names, ret, ret_key, size, err);
    else
        code = flow->dest->ops->table_name(name.data, names, ret, ret_key, size, err);
    if (code != ERR_NONE)
        err_wrap(err, "%s name from %s", is_space ? flow->dest->ops->space_word : "table", tmpl);
    buf_done(&name);
    return code;
}

enum err_code flow_space_name(const struct config_flow *flow, const char *path, char *ret, char *ret_key, size_t size,
                              struct err *err)
{
    return legal_part(flow, true, path, ret, ret_key, size, err);
}

/* The name under which the ledger has the files of a flow with `records` is no table, and must meet none. */
static enum err_code mark_key(const struct config_flow *flow, char *key, size_t size, struct err *err)
{
    static const char mark[] = "records:";
    size_t n = strlen(key);

    if (flow->format != FORMAT_JSON)
        return ERR_NONE;
    if (n + sizeof(mark) > size)
        return err_set(err, ERR_INPUT, false, "the name of the flow is too long");
    memmove(key + sizeof(mark) - 1, key, n + 1);
    memcpy(key, mark, sizeof(mark) - 1);
    return ERR_NONE;
}

enum err_code flow_table_name(const struct config_flow *flow, const char *path, char *ret, char *ret_key, size_t size,
                              struct err *err)
{
    char table[TABLE_NAME_MAX], key[TABLE_NAME_MAX];

    if (flow->space == NULL)
        return legal_part(flow, false, path, ret, ret_key, size, err) != ERR_NONE ? err->code
                                                                                  : mark_key(flow, ret_key, size, err);
    if (legal_part(flow, true, path, ret, ret_key, size, err) != ERR_NONE ||
        legal_part(flow, false, path, table, key, sizeof(table), err) != ERR_NONE)
        return err->code;
    size_t n = strlen(ret), k = strlen(ret_key);
    if ((size_t)snprintf(ret + n, size - n, ".%s", table) >= size - n ||
        (size_t)snprintf(ret_key + k, size - k, ".%s", key) >= size - k)
        return err_set(err, ERR_INPUT, false, "the names of %s and table are too long together",
                       flow->dest->ops->space_word);
    return mark_key(flow, ret_key, size, err);
}

bool flow_wants_folder(const struct config_flow *flow, const char *folder)
{
    char pattern[1024], inside[4200];

    if (flow->space == NULL || flow->space_is_given || template_is_constant(flow->space) || path_is_temporary(folder) ||
        (size_t)snprintf(inside, sizeof(inside), "%s/x.csv", folder) >= sizeof(inside))
        return false;
    bool is_included = false;
    for (size_t i = 0; i < flow->include.count && !is_included; i++) {
        /* a glob whose last segment is anything: only its folders are asked about */
        const char *slash = strrchr(flow->include.items[i], '/');
        if (slash == NULL) {
            is_included = strcmp(flow->include.items[i], "**") == 0;
            continue;
        }
        if ((size_t)snprintf(pattern, sizeof(pattern), "%.*s/*", (int)(slash - flow->include.items[i]),
                             flow->include.items[i]) < sizeof(pattern))
            is_included = glob_match(pattern, inside);
    }
    for (size_t i = 0; i < flow->exclude.count && is_included; i++)
        is_included = !glob_match(flow->exclude.items[i], inside);
    return is_included;
}
