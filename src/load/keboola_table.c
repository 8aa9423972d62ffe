/*
 * keboola_table.c -- a file's header against what the table has, before a byte is sent. See keboola_internal.h.
 *
 * The service itself refuses missing columns only: extra ones it would add in silence.
 */
#include "keboola_internal.h"

#include "text.h"

#include <string.h>

enum err_code table_read(struct json_object *json, struct arena *arena, struct keboola_table *ret, struct err *err)
{
    const char *id = api_text(json, "id");
    ret->exists = true;
    if (id == NULL || strlen(id) >= sizeof ret->id || strpbrk(id, "/?#") != NULL)
        return err_set(err, ERR_REMOTE, true, "the table's answer has no usable id");
    snprintf(ret->id, sizeof ret->id, "%s", id);
    ret->is_typed = api_flag(json, "isTyped");
    ret->rows = api_number(json, "rowsCount", -1);
    if (api_texts(api_member(json, "columns"), arena, &ret->columns, &ret->column_count, err) != ERR_NONE ||
        api_texts(api_member(json, "primaryKey"), arena, &ret->key, &ret->key_count, err) != ERR_NONE)
        return err->code;
    if (ret->column_count == 0) /* every table has some: no reason to tell the file that its header is wrong */
        return err_set(err, ERR_REMOTE, true, "table %s: the answer lists no columns", ret->id);
    struct json_object *list = api_member(api_member(json, "definition"), "columns");
    if (!ret->is_typed || !json_object_is_type(list, json_type_array))
        return ERR_NONE;
    ret->types = arena_alloc(arena, (ret->column_count + 1) * sizeof *ret->types);
    if (ret->types == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *c = json_object_array_get_idx(list, i);
        const char *name = api_text(c, "name"), *type = api_text(c, "basetype");
        for (size_t k = 0; name != NULL && type != NULL && k < ret->column_count; k++)
            if (strcmp(ret->columns[k], name) == 0 && (ret->types[k] = arena_strdup(arena, type)) == NULL)
                return err_nomem(err);
    }
    return ERR_NONE;
}

static bool same_name(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

/* "id, name, value", cut where it gets long. */
static void list(struct buf *b, const char *const *names, size_t count)
{
    char shown[70];
    for (size_t i = 0; i < count; i++) {
        if (b->size > 420) {
            buf_printf(b, ", … (%zu in all)", count);
            return;
        }
        buf_printf(b, "%s%s", i > 0 ? ", " : "", text_printable(names[i], shown, sizeof shown));
    }
}

static enum err_code refuse(const struct load *load, const char *whose, const char *const *want, size_t want_count,
                            const char *const *have, size_t have_count, const char *diff, struct err *err)
{
    struct buf old, new;
    buf_init(&old);
    buf_init(&new);
    list(&old, want, want_count);
    list(&new, have, have_count);
    err_set(err, ERR_INPUT, false,
            "the header does not match %s: %s; expected %.120s, found %.120s; nothing was sent (on_schema_change: %s)",
            whose, diff, old.data, new.data,
            load->plan->on_schema_change == SCHEMA_ADD_COLUMNS ? "add_columns" : "reject");
    buf_done(&old);
    buf_done(&new);
    return err->code;
}

/* The very header the table was made from or last loaded with: the service has cleaned it once, whatever its rules. */
static bool is_known_header(const struct load *load)
{
    const struct shape *shape = load->rows->shape;
    if (load->header == NULL || load->header_count != shape->column_count)
        return false;
    for (size_t i = 0; i < load->header_count; i++)
        if (strcmp(load->header[i], shape->columns[i].name) != 0)
            return false;
    return true;
}

static enum err_code check_header(const struct load *load, const char *const *names, const struct keboola_table *table,
                                  struct err *err)
{
    const struct shape *shape = load->rows->shape;
    bool adds = load->plan->on_schema_change == SCHEMA_ADD_COLUMNS;
    char diff[300];
    unsigned bits = 0;
    if (table->exists)
        bits = header_compare(table->columns, table->column_count, names, shape->column_count, same_name, diff,
                              sizeof diff);
    if (table->exists && bits == 0)
        return ERR_NONE;
    if (is_known_header(load) && (!table->exists || table->column_count == shape->column_count))
        return ERR_NONE;
    unsigned allowed = !adds ? 0 : table->is_typed ? HEADER_REORDERED : HEADER_EXTRA | HEADER_REORDERED;
    if (table->exists && (bits & ~allowed) == 0)
        return ERR_NONE;
    if (table->exists)
        return refuse(load, table->id, table->columns, table->column_count, names, shape->column_count, diff, err);
    if (load->header == NULL)
        return ERR_NONE;
    /* The table is gone, the ledger knows what it was loaded from. */
    const char **found = calloc(shape->column_count + 1, sizeof *found);
    if (found == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < shape->column_count; i++)
        found[i] = shape->columns[i].name;
    bits = header_compare(load->header, load->header_count, found, shape->column_count, same_name, diff, sizeof diff);
    if ((bits & ~allowed) != 0)
        refuse(load, "the one that was loaded before", load->header, load->header_count, found, shape->column_count,
               diff, err);
    free(found);
    return err->code;
}

/* Position of a column that the plan names: as it is in the header, or as the service calls it. */
static size_t find_column(const struct load *load, const char *const *names, const char *wanted)
{
    const struct shape *shape = load->rows->shape;
    for (size_t i = 0; i < shape->column_count; i++)
        if (strcmp(shape->columns[i].name, wanted) == 0)
            return i;
    for (size_t i = 0; names != NULL && i < shape->column_count; i++)
        if (strcmp(names[i], wanted) == 0)
            return i;
    return shape->column_count;
}

enum err_code table_key(const struct load *load, const char *const *names, struct arena *arena, const char ***ret,
                        struct err *err)
{
    const struct option_strings *key = &load->plan->key;
    char shown[100];
    *ret = arena_alloc(arena, (key->count + 1) * sizeof **ret);
    if (*ret == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < key->count; i++) {
        size_t at = find_column(load, names, key->items[i]);
        if (at == load->rows->shape->column_count)
            return err_set(err, ERR_INPUT, false,
                           "the flow's key needs column \"%s\", and the file has none of that name",
                           text_printable(key->items[i], shown, sizeof shown));
        (*ret)[i] = names[at];
    }
    return ERR_NONE;
}

/* Same columns, in any order. */
static bool same_key(const struct keboola_table *table, const char *const *key, size_t count)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < table->key_count; k++)
            found += strcmp(table->key[k], key[i]) == 0;
    return found == count && count == table->key_count;
}

static enum err_code check_key(const struct load *load, const char *const *names, const struct keboola_table *table,
                               struct err *err)
{
    const struct load_plan *plan = load->plan;
    struct arena arena;
    const char **key;
    arena_init(&arena);
    if (table_key(load, names, &arena, &key, err) == ERR_NONE && table->exists) {
        struct buf has, wants;
        buf_init(&has);
        buf_init(&wants);
        list(&has, table->key, table->key_count);
        list(&wants, key, plan->key.count);
        if (plan->key.count > 0 && !same_key(table, key, plan->key.count))
            err_set(err, ERR_INPUT, false,
                    "table %s has primary key (%.100s), and the flow's key is (%.100s); make them the same", table->id,
                    has.data, wants.data);
        else if (plan->mode == MODE_APPEND && plan->key.count == 0 && table->key_count > 0)
            err_set(
                err, ERR_INPUT, false,
                "table %s has primary key (%.100s): rows that are appended would replace others; use load: upsert with "
                "that key, or take the primary key away",
                table->id, has.data);
        buf_done(&has);
        buf_done(&wants);
    }
    arena_done(&arena);
    return err->code;
}

static enum err_code check_types(const struct load *load, const char *const *names, struct err *err)
{
    const struct option_types *types = &load->plan->types;
    char shown[100];
    for (size_t i = 0; types->policy == TYPES_MAP && i < types->count; i++)
        if (find_column(load, names, types->entries[i].column) == load->rows->shape->column_count)
            return err_set(err, ERR_INPUT, false, "`types` names column \"%s\", and the file has none of that name",
                           text_printable(types->entries[i].column, shown, sizeof shown));
    return ERR_NONE;
}

/* ---- types ---- */

static const char *base_type_of(enum column_type type)
{
    switch (type) {
    case TYPE_BIGINT:
        return "INTEGER";
    case TYPE_DOUBLE:
        return "FLOAT";
    case TYPE_DECIMAL:
        return "NUMERIC";
    case TYPE_BOOLEAN:
        return "BOOLEAN";
    case TYPE_DATE:
        return "DATE";
    case TYPE_TIMESTAMP:
    case TYPE_TIMESTAMPTZ:
        return "TIMESTAMP";
    case TYPE_TEXT:
    case TYPE_JSON:
        break;
    }
    return "STRING";
}

/* What all values of the file are; the narrowest. */
static const char *inferred(const struct column *c)
{
    if (!c->has_value)
        return "STRING";
    if (c->kinds & KIND_INT)
        return "INTEGER";
    if (c->kinds & KIND_DECIMAL)
        return "NUMERIC";
    if (c->kinds & KIND_BOOL)
        return "BOOLEAN";
    if (c->kinds & KIND_DATE)
        return "DATE";
    if (c->kinds & (KIND_TIMESTAMP | KIND_TIMESTAMPTZ))
        return "TIMESTAMP";
    return "STRING";
}

const char *table_base_type(const struct load *load, size_t i)
{
    const struct option_types *types = &load->plan->types;
    const struct column *c = &load->rows->shape->columns[i];
    enum column_type type;
    if (types->policy == TYPES_TEXT)
        return "STRING";
    for (size_t k = 0; types->policy == TYPES_MAP && k < types->count; k++)
        if (strcmp(types->entries[k].column, c->name) == 0 && type_of_name(types->entries[k].type, &type))
            return base_type_of(type);
    return inferred(c);
}

/* Can every value of a column whose values are of KINDS be read as BASE? What the service would refuse is refused here.
 */
static bool fits(const struct column *c, const char *base)
{
    if (!c->has_value || strcmp(base, "STRING") == 0)
        return true;
    unsigned want = strcmp(base, "INTEGER") == 0                                 ? KIND_INT
                    : strcmp(base, "NUMERIC") == 0 || strcmp(base, "FLOAT") == 0 ? KIND_INT | KIND_DECIMAL | KIND_DOUBLE
                    : strcmp(base, "BOOLEAN") == 0                               ? KIND_BOOL | KIND_INT
                    : strcmp(base, "DATE") == 0                                  ? KIND_DATE
                    : strcmp(base, "TIMESTAMP") == 0 ? KIND_DATE | KIND_TIMESTAMP | KIND_TIMESTAMPTZ
                                                     : KIND_ANY;
    /* INT is narrower than it needs to be: 007 and 1e5 are numbers to a database. Only what is no number at all is
     * sure. */
    return want == KIND_ANY || (c->kinds & want) != 0;
}

/* The type that binds column I: the table's, or the one the plan gives a table that is to be made. */
static const char *binding_type(const struct load *load, const char *const *names, const struct keboola_table *table,
                                size_t i)
{
    if (!table->exists)
        return load->plan->types.policy == TYPES_MAP ? table_base_type(load, i) : "STRING";
    for (size_t k = 0; table->is_typed && table->types != NULL && k < table->column_count; k++)
        if (strcmp(table->columns[k], names[i]) == 0)
            return table->types[k] != NULL ? table->types[k] : "STRING";
    return "STRING";
}

static enum err_code check_values(const struct load *load, const char *const *names, const struct keboola_table *table,
                                  struct err *err)
{
    char shown[100];
    if (load->plan->types.policy == TYPES_TEXT) /* nobody looked at the values: the service does */
        return ERR_NONE;
    for (size_t i = 0; i < load->rows->shape->column_count; i++) {
        const struct column *c = &load->rows->shape->columns[i];
        const char *base = binding_type(load, names, table, i);
        if (!fits(c, base))
            return err_set(
                err, ERR_INPUT, false,
                "column \"%s\" is %s in %s, and the file has values there that are none (%s is what all of them "
                "are)",
                text_printable(c->name, shown, sizeof shown), base, table->exists ? table->id : "`types`", inferred(c));
    }
    return ERR_NONE;
}

enum err_code table_check(const struct load *load, const char *const *names, const struct keboola_table *table,
                          struct err *err)
{
    if (check_types(load, names, err) != ERR_NONE || check_header(load, names, table, err) != ERR_NONE ||
        check_key(load, names, table, err) != ERR_NONE)
        return err->code;
    return check_values(load, names, table, err);
}
