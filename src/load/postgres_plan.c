/*
 * postgres_plan.c -- the columns a table has, the ones a file wants, and which of them win.
 *
 * The types of a table that exists bind. Only `replace` under `recreate` may make new ones, and only for a table that
 * chute made. A column that is text merely because nothing was in it yet binds nobody there: it is noted as untyped.
 */
#include "postgres_internal.h"

#include <stdio.h>
#include <string.h>

#define MOST_COLUMNS 1600

static bool is_same(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

struct pgd_column *pgd_find_column(const struct pgd_columns *columns, const char *name)
{
    for (size_t i = 0; i < columns->count; i++)
        if (strcmp(columns->items[i].name, name) == 0)
            return &columns->items[i];
    return NULL;
}

/* ---- the columns of the file ---- */

/* A column as the configuration calls it: by its name in the file, or by its legal name. */
static struct pgd_column *find_in_file(struct pgd_target *t, const char *name)
{
    for (size_t i = 0; i < t->want.count; i++) {
        int from = t->want.items[i].from;
        if (from >= 0 && strcmp(t->shape->columns[from].name, name) == 0)
            return &t->want.items[i];
    }
    struct pgd_column *c = pgd_find_column(&t->want, name);
    return c != NULL && c->from >= 0 ? c : NULL;
}

static enum err_code missing_column(struct pgd_walker *w, struct pgd_target *t, const char *option, const char *name)
{
    char have[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < t->shape->column_count && used < sizeof(have) - 1; i++)
        used +=
            (size_t)snprintf(have + used, sizeof(have) - used, "%s%s", i > 0 ? ", " : "", t->shape->columns[i].name);
    return err_set(w->err, ERR_INPUT, false,
                   "expected column \"%s\", which the flow's %s names; found in the header: %s", name, option, have);
}

static enum err_code want_names(struct pgd_walker *w, struct pgd_target *t, const struct option_strings *names,
                                const char *option, const char ***ret, size_t *ret_count)
{
    const char **items = arena_alloc(&w->arena, (names->count + 1) * sizeof(*items));
    if (items == NULL)
        return err_nomem(w->err);
    for (size_t i = 0; i < names->count; i++) {
        struct pgd_column *c = find_in_file(t, names->items[i]);
        if (c == NULL)
            return missing_column(w, t, option, names->items[i]);
        if (ret == &t->keys)
            c->is_key = true;
        items[i] = c->name;
    }
    *ret = items;
    *ret_count = names->count;
    return ERR_NONE;
}

static enum err_code want_types(struct pgd_walker *w, struct pgd_target *t)
{
    const struct option_types *types = &t->plan->types;
    for (size_t i = 0; types->policy == TYPES_MAP && i < types->count; i++) {
        struct pgd_column *c = find_in_file(t, types->entries[i].column);
        if (c == NULL)
            return missing_column(w, t, "types", types->entries[i].column);
        if (!type_of_name(types->entries[i].type, &c->type))
            return err_set(w->err, ERR_CONFIG, false, "types: column \"%s\": no such type \"%s\"",
                           types->entries[i].column, types->entries[i].type);
        c->is_declared = true;
        c->is_inferred = false;
        c->is_untyped = false;
        pgd_column_of_type(c, c->type);
    }
    return ERR_NONE;
}

static bool is_plain(const struct pgd_learned *learned, size_t column)
{
    return learned->is_plain != NULL && learned->is_plain[column];
}

static enum err_code check_lengths(struct pgd_walker *w, const struct pgd_target *t)
{
    for (size_t i = 0; i < t->want.count; i++)
        if (strlen(t->want.items[i].name) > PGD_NAME_BYTES)
            return err_set(w->err, ERR_INPUT, false,
                           "column name \"%s\" has %zu bytes, PostgreSQL can tell only %d apart: shorten it",
                           t->want.items[i].name, strlen(t->want.items[i].name), PGD_NAME_BYTES);
    return ERR_NONE;
}

static enum err_code plan_want(struct pgd_walker *w, struct pgd_target *t, const struct pgd_learned *learned)
{
    const struct load_plan *plan = t->plan;
    const struct shape *shape = t->shape;
    const char **names;
    bool has_number = plan->row_number != NULL && plan->row_number[0] != '\0';
    if (shape->column_count == 0)
        return err_set(w->err, ERR_INPUT, false, "expected a header, found an empty file");
    if (shape->column_count + has_number > MOST_COLUMNS)
        return err_set(w->err, ERR_INPUT, false,
                       "expected at most %d columns, which is what PostgreSQL can hold; found %zu%s", MOST_COLUMNS,
                       shape->column_count + has_number, has_number ? " with the one of row_number" : "");
    enum err_code code = names_columns(shape, plan->names, is_same, &w->arena, &names, w->err);
    if (code != ERR_NONE)
        return code;
    t->want.items = arena_alloc(&w->arena, (shape->column_count + 1) * sizeof(*t->want.items));
    if (t->want.items == NULL)
        return err_nomem(w->err);
    t->want.count = 0;
    if (has_number) {
        struct pgd_column *c = &t->want.items[t->want.count++];
        c->name = names_free_one(plan->row_number, names, shape->column_count, is_same, &w->arena);
        if (c->name == NULL)
            return err_nomem(w->err);
        c->from = PGD_FROM_ROW_NUMBER;
        pgd_column_of_type(c, TYPE_BIGINT);
    }
    for (size_t i = 0; i < shape->column_count; i++) {
        struct pgd_column *c = &t->want.items[t->want.count++];
        c->name = names[i];
        c->from = (int)i;
        c->is_inferred = plan->types.policy != TYPES_TEXT;
        c->is_untyped = c->is_inferred && pgd_is_untyped(&shape->columns[i]);
        pgd_column_of_type(c, c->is_inferred ? pgd_infer(&shape->columns[i], is_plain(learned, i)) : TYPE_TEXT);
    }
    code = want_types(w, t);
    if (code == ERR_NONE)
        code = check_lengths(w, t);
    if (code == ERR_NONE)
        code = want_names(w, t, &plan->key, "key", &t->keys, &t->key_count);
    if (code == ERR_NONE)
        code = want_names(w, t, &plan->order_by, "order_by", &t->orders, &t->order_count);
    return code;
}

/* ---- both together ---- */

static enum err_code compare(struct pgd_walker *w, struct pgd_target *t, char *text, size_t size, unsigned *ret_bits)
{
    const char **have = arena_alloc(&w->arena, (t->have.columns.count + t->want.count + 1) * sizeof(*have));
    if (have == NULL)
        return err_nomem(w->err);
    const char **want = have + t->have.columns.count;
    for (size_t i = 0; i < t->have.generated_count; i++)
        if (pgd_find_column(&t->want, t->have.generated[i]) != NULL)
            return err_set(w->err, ERR_INPUT, false,
                           "column \"%s\" of table %s.%s is filled by the server alone (GENERATED ALWAYS), expected a "
                           "file without it: leave it out, or drop the expression in the table",
                           t->have.generated[i], t->space, t->table);
    for (size_t i = 0; i < t->have.columns.count; i++)
        have[i] = t->have.columns.items[i].name;
    for (size_t i = 0; i < t->want.count; i++)
        want[i] = t->want.items[i].name;
    *ret_bits = header_compare(have, t->have.columns.count, want, t->want.count, is_same, text, size);
    return ERR_NONE;
}

/* DEST: the columns of the table with its types, then (WITH_NEW) those that only the file has. */
static enum err_code bind_to_table(struct pgd_walker *w, struct pgd_target *t, bool with_new)
{
    const struct pgd_columns *have = &t->have.columns;
    t->dest.items = arena_alloc(&w->arena, (have->count + t->want.count + 1) * sizeof(*t->dest.items));
    if (t->dest.items == NULL)
        return err_nomem(w->err);
    t->dest.count = 0;
    for (size_t i = 0; i < have->count; i++) {
        struct pgd_column *c = &t->dest.items[t->dest.count++];
        const struct pgd_column *file = pgd_find_column(&t->want, have->items[i].name);
        *c = have->items[i];
        if (file == NULL)
            continue;
        c->from = file->from;
        c->is_declared = file->is_declared;
        c->type = file->type;
        c->is_key = file->is_key;
    }
    t->old_count = t->dest.count;
    for (size_t i = 0; with_new && i < t->want.count; i++)
        if (pgd_find_column(have, t->want.items[i].name) == NULL)
            t->dest.items[t->dest.count++] = t->want.items[i];
    return ERR_NONE;
}

static void take_the_files(struct pgd_target *t, enum pgd_action action)
{
    t->dest = t->want;
    t->old_count = t->dest.count;
    t->action = action;
    t->keeps_types = false;
    t->like_old = false;
}

static enum err_code refuse_header(struct pgd_walker *w, const struct pgd_target *t, const char *why, const char *text)
{
    return err_set(w->err, ERR_INPUT, false, "header differs from the columns of table %s.%s: %s%s", t->space, t->table,
                   text, why);
}

/* Can the types of a table that chute made hold what the file has? A column that had no value yet takes the file's. */
static bool types_fit(const struct pgd_target *t)
{
    for (size_t i = 0; i < t->dest.count; i++) {
        const struct pgd_column *c = &t->dest.items[i];
        const struct pgd_column *file = pgd_find_column(&t->want, c->name);
        if (file == NULL || file->from < 0)
            continue;
        if (file->is_declared ? strcmp(file->decl, c->decl) != 0 : c->is_untyped && !file->is_untyped && !file->is_text)
            return false;
        if (!pgd_kinds_fit(c, &t->shape->columns[file->from]))
            return false;
    }
    return true;
}

static enum pgd_action refill_action(const struct pgd_walker *w, struct pgd_target *t)
{
    t->like_old = w->options->replace == PGD_STAGING_OPTIMIZED;
    return t->like_old ? PGD_REBUILD : PGD_REFILL;
}

static enum err_code plan_replace_own(struct pgd_walker *w, struct pgd_target *t, const struct pgd_learned *learned,
                                      unsigned diff, const char *text)
{
    enum schema_policy policy = t->plan->on_schema_change;
    if (policy == SCHEMA_REJECT && diff != 0)
        return refuse_header(w, t, " (on_schema_change: reject)", text);
    if (policy == SCHEMA_RECREATE && (diff != 0 || learned->was_narrowed)) {
        take_the_files(t, PGD_REBUILD);
        return ERR_NONE;
    }
    enum err_code code = bind_to_table(w, t, policy == SCHEMA_ADD_COLUMNS);
    if (code != ERR_NONE)
        return code;
    t->action = refill_action(w, t);
    t->keeps_types = policy != SCHEMA_RECREATE;
    if (policy == SCHEMA_RECREATE && !types_fit(t))
        take_the_files(t, PGD_REBUILD);
    return ERR_NONE;
}

/* A table that others made keeps its definition, whatever the policy: it is refilled where the file fits. */
static enum err_code plan_replace_foreign(struct pgd_walker *w, struct pgd_target *t, unsigned diff, const char *text)
{
    enum schema_policy policy = t->plan->on_schema_change;
    unsigned allowed = policy == SCHEMA_ADD_COLUMNS ? HEADER_MISSING | HEADER_EXTRA | HEADER_RENAMED | HEADER_REORDERED
                       : policy == SCHEMA_RECREATE  ? HEADER_REORDERED
                                                    : 0;
    if ((diff & ~allowed) != 0)
        return refuse_header(w, t,
                             policy == SCHEMA_REJECT ? " (on_schema_change: reject)"
                                                     : "; chute did not make this table and does not recreate it",
                             text);
    t->keeps_types = true;
    enum err_code code = bind_to_table(w, t, policy == SCHEMA_ADD_COLUMNS);
    t->action = refill_action(w, t);
    return code;
}

/* A new table in the place of one with relatives would leave them, or it, out of the family. */
static enum err_code check_rebuild(struct pgd_walker *w, const struct pgd_target *t)
{
    if (t->action != PGD_REBUILD || !t->have.is_related)
        return ERR_NONE;
    const char *what = t->have.kind == 'p' ? "is partitioned" : "is a partition, or inherits or is inherited from";
    if (t->like_old)
        return err_set(w->err, ERR_INPUT, false,
                       "table %s.%s %s, and replace: staging-optimized would put an ordinary table in its place: "
                       "expected replace: delete-and-copy or truncate-and-insert",
                       t->space, t->table, what);
    return err_set(w->err, ERR_INPUT, false,
                   "table %s.%s %s, so it can't be made anew for a file of another shape: change its columns by hand, "
                   "or drop it",
                   t->space, t->table, what);
}

static enum err_code plan_add(struct pgd_walker *w, struct pgd_target *t, unsigned diff, const char *text)
{
    enum schema_policy policy = t->plan->on_schema_change;
    if (policy == SCHEMA_REJECT && diff != 0)
        return refuse_header(w, t, " (on_schema_change: reject)", text);
    /* There is nothing to recreate from: the rows of other files are in the table. Order alone does no harm. */
    if (policy == SCHEMA_RECREATE && (diff & ~(unsigned)HEADER_REORDERED) != 0)
        return refuse_header(w, t, " (only `load: replace` recreates; on_schema_change: add_columns would take it)",
                             text);
    t->action = t->is_merge ? PGD_MERGE : PGD_ADD;
    t->keeps_types = true;
    return bind_to_table(w, t, policy == SCHEMA_ADD_COLUMNS);
}

static enum err_code check_mode(struct pgd_walker *w, const struct pgd_target *t)
{
    if (t->is_merge && t->plan->key.count == 0)
        return err_set(w->err, ERR_CONFIG, false, "flow %s: this way of loading needs a key", t->plan->flow);
    if (t->plan->mode == MODE_NEWEST && t->plan->order_by.count == 0)
        return err_set(w->err, ERR_CONFIG, false, "flow %s: load: newest needs order_by", t->plan->flow);
    return ERR_NONE;
}

enum err_code pgd_plan(struct pgd_walker *w, struct pgd_target *t, const struct pgd_learned *learned)
{
    char text[300];
    unsigned diff = 0;
    enum load_mode mode = t->plan->mode;
    t->is_merge = mode == MODE_UPSERT || mode == MODE_KEEP_FIRST || mode == MODE_NEWEST;
    enum err_code code = check_mode(w, t);
    if (code == ERR_NONE)
        code = plan_want(w, t, learned);
    if (code != ERR_NONE)
        return code;
    if (!t->have.exists) {
        take_the_files(t, PGD_CREATE);
        return ERR_NONE;
    }
    code = compare(w, t, text, sizeof(text), &diff);
    if (code != ERR_NONE)
        return code;
    if (mode != MODE_REPLACE)
        return plan_add(w, t, diff, text);
    code = t->have.is_ours ? plan_replace_own(w, t, learned, diff, text) : plan_replace_foreign(w, t, diff, text);
    return code == ERR_NONE ? check_rebuild(w, t) : code;
}

bool pgd_is_narrowed(const struct pgd_target *t, const struct pgd_learned *learned, bool at_end)
{
    if (t->is_part || t->keeps_types)
        return false;
    for (size_t i = 0; i < t->dest.count; i++) {
        const struct pgd_column *c = &t->dest.items[i];
        if (c->from < 0)
            continue;
        const struct column *file = &t->shape->columns[c->from];
        if (!c->is_inferred) {
            if (!c->is_declared && !pgd_kinds_fit(c, file))
                return true;
            continue;
        }
        struct pgd_column now = {0};
        pgd_column_of_type(&now, pgd_infer(file, is_plain(learned, (size_t)c->from)));
        /* What is text because the values say so stays text; what is text for want of values may become anything. */
        if (strcmp(now.decl, c->decl) != 0 && (at_end || c->is_untyped || !c->is_text))
            return true;
    }
    return false;
}
