/*
 * sqlite_schema.c -- the columns a table has, the ones a file wants, and which of them win.
 *
 * The types of a table that exists bind. Only `replace` under `recreate` may make new ones, and only for a table that
 * chute made (or any, where the flow may drop). A column that is TEXT merely because nothing was in it yet binds
 * nobody: it is noted as untyped.
 */
#include "sqlite_internal.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define UNTYPED_SEPARATOR '\x1f'

void sql_name(struct buf *b, const char *name)
{
    buf_addc(b, '"');
    for (const char *p = name; *p != '\0'; p++) {
        if (*p == '"')
            buf_addc(b, '"');
        buf_addc(b, *p);
    }
    buf_addc(b, '"');
}

/* ---- types ---- */

static bool contains(const char *text, const char *word)
{
    size_t n = strlen(word);
    for (; *text != '\0'; text++)
        if (strncasecmp(text, word, n) == 0)
            return true;
    return false;
}

/* SQLite's rules of affinity, in its order; BOOLEAN, which it takes for NUMERIC, we know better. */
static enum bind bind_of(const char *decl)
{
    if (contains(decl, "INT"))
        return BIND_INT;
    if (contains(decl, "CHAR") || contains(decl, "CLOB") || contains(decl, "TEXT"))
        return BIND_TEXT;
    if (decl[0] == '\0' || contains(decl, "BLOB"))
        return BIND_BLOB;
    if (contains(decl, "REAL") || contains(decl, "FLOA") || contains(decl, "DOUB"))
        return BIND_REAL;
    return contains(decl, "BOOL") ? BIND_BOOL : BIND_NUMERIC;
}

static const char *decl_of_type(enum column_type type)
{
    switch (type) {
    case TYPE_BIGINT:
        return "BIGINT";
    case TYPE_DOUBLE:
        return "DOUBLE";
    case TYPE_BOOLEAN:
        return "BOOLEAN";
    case TYPE_TEXT:
    case TYPE_DECIMAL: /* DECIMAL would be NUMERIC affinity: digits beyond the 15th lost */
    case TYPE_DATE:
    case TYPE_TIMESTAMP:
    case TYPE_TIMESTAMPTZ:
    case TYPE_JSON:
        break;
    }
    return "TEXT";
}

/* A column in which nothing or only '' stood still has every bit: no value can be a number and a date at once. */
static bool is_untyped(const struct column *column)
{
    return !column->has_value || (column->kinds & KIND_ANY) == KIND_ANY;
}

static const char *infer(const struct column *column)
{
    if (is_untyped(column))
        return "TEXT";
    if (column->kinds & KIND_INT)
        return "BIGINT";
    if (column->kinds & KIND_DOUBLE)
        return "DOUBLE";
    return column->kinds & KIND_BOOL ? "BOOLEAN" : "TEXT";
}

static void set_decl(struct lite_column *c, const char *decl)
{
    c->decl = decl;
    c->bind = bind_of(decl);
}

/* Could everything seen so far go into a column of that kind? Single values are looked at when they come. */
static bool fits(const struct lite_column *c, const struct column *file)
{
    if (is_untyped(file))
        return true;
    if (c->bind == BIND_INT)
        return (file->kinds & KIND_INT) != 0;
    if (c->bind == BIND_REAL)
        return c->is_declared || (file->kinds & KIND_DOUBLE) != 0;
    if (c->bind == BIND_BOOL)
        return (file->kinds & (KIND_BOOL | KIND_INT)) != 0;
    return true;
}

bool schema_is_narrowed(const struct lite_run *run, bool at_end)
{
    const struct shape *shape = run->shape;
    for (size_t i = 0; i < run->dest.count; i++) {
        const struct lite_column *c = &run->dest.items[i];
        if (!c->is_inferred || c->from < 0)
            continue;
        const char *now = infer(&shape->columns[c->from]);
        /* What is text because the values say so stays text; what is text for want of values may become anything. */
        if (strcmp(now, c->decl) != 0 && (at_end || c->is_untyped || strcmp(c->decl, "TEXT") != 0))
            return true;
    }
    return false;
}

/* ---- the table as it is ---- */

const char *schema_text(struct arena *arena, sqlite3_stmt *stmt, int column)
{
    const char *text = (const char *)sqlite3_column_text(stmt, column);
    return text != NULL ? arena_strdup(arena, text) : NULL;
}

static enum err_code read_table_columns(struct conn *c, struct arena *arena, struct lite_table *t, struct err *err)
{
    sqlite3_stmt *stmt;
    size_t capacity = 0;
    int rc;
    enum err_code code = conn_prepare(c,
                                      "SELECT name, type, pk, hidden, count(*) OVER () FROM pragma_table_xinfo(?1)"
                                      " ORDER BY cid",
                                      &stmt, err);
    if (code != ERR_NONE)
        return code;
    const char **keys = NULL;
    sqlite3_bind_text(stmt, 1, t->name, -1, SQLITE_STATIC);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (capacity == 0) {
            capacity = (size_t)sqlite3_column_int64(stmt, 4);
            t->columns.items = arena_alloc(arena, capacity * sizeof(*t->columns.items));
            keys = arena_alloc(arena, capacity * sizeof(*keys));
            if (t->columns.items == NULL || keys == NULL)
                goto nomem;
            t->primary_key = keys;
        }
        if (sqlite3_column_int(stmt, 3) != 0) {
            t->has_generated = true;
            continue;
        }
        struct lite_column *column = &t->columns.items[t->columns.count++];
        column->name = schema_text(arena, stmt, 0);
        const char *decl = schema_text(arena, stmt, 1);
        if (column->name == NULL || decl == NULL)
            goto nomem;
        set_decl(column, decl);
        column->from = FROM_NOWHERE;
        if (sqlite3_column_int(stmt, 2) > 0)
            keys[t->primary_key_count++] = column->name;
    }
    code = rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "read the columns of %s", t->name);
    sqlite3_reset(stmt);
    return code;
nomem:
    sqlite3_reset(stmt);
    return err_nomem(err);
}

/* Whose is it, and which of its columns have never had a value? */
static enum err_code read_ownership(struct conn *c, struct lite_table *t, struct err *err)
{
    sqlite3_stmt *stmt;
    enum err_code code = conn_prepare(c, "SELECT untyped FROM _chute_tables WHERE name=?1 AND sql=?2", &stmt, err);
    if (code != ERR_NONE)
        return code;
    sqlite3_bind_text(stmt, 1, t->name, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 2, t->sql, -1, SQLITE_STATIC);
    int rc = sqlite3_step(stmt);
    t->is_ours = rc == SQLITE_ROW;
    if (t->is_ours) {
        struct buf name;
        buf_init(&name);
        for (size_t i = 0; i < t->columns.count; i++) {
            buf_clear(&name);
            buf_printf(&name, "%c%s%c", UNTYPED_SEPARATOR, t->columns.items[i].name, UNTYPED_SEPARATOR);
            t->columns.items[i].is_untyped = strstr(text_at(stmt, 0), name.data) != NULL;
        }
        buf_done(&name);
    }
    code = rc == SQLITE_ROW || rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "read _chute_tables");
    sqlite3_reset(stmt);
    return code;
}

static enum err_code read_collations(struct conn *c, struct arena *arena, struct lite_table *t)
{
    for (size_t i = 0; i < t->columns.count; i++) {
        const char *collation = NULL;
        struct lite_column *column = &t->columns.items[i];
        if (sqlite3_table_column_metadata(c->db, "main", t->name, column->name, NULL, &collation, NULL, NULL, NULL) ==
                SQLITE_OK &&
            collation != NULL && strcmp(collation, "BINARY") != 0)
            column->collation = arena_strdup(arena, collation);
    }
    return ERR_NONE;
}

enum err_code schema_read(struct conn *c, const char *name, struct arena *arena, struct lite_table *ret,
                          struct err *err)
{
    sqlite3_stmt *stmt;
    memset(ret, 0, sizeof(*ret));
    ret->name = name;
    enum err_code code =
        conn_prepare(c,
                     "SELECT type, name, sql, EXISTS(SELECT 1 FROM sqlite_schema t WHERE t.type='trigger' AND"
                     " t.tbl_name=s.name COLLATE NOCASE) FROM sqlite_schema s WHERE name=?1 COLLATE NOCASE AND"
                     " type<>'trigger'",
                     &stmt, err);
    if (code != ERR_NONE)
        return code;
    sqlite3_bind_text(stmt, 1, name, -1, SQLITE_STATIC);
    int rc = sqlite3_step(stmt);
    if (rc == SQLITE_ROW && strcmp(text_at(stmt, 0), "table") != 0) {
        err_set(err, ERR_INPUT, false,
                "expected a table called %s, found %s %s of that name in the database: rename it, or"
                " give the flow another table",
                name, strcmp(text_at(stmt, 0), "view") == 0 ? "a" : "an", text_at(stmt, 0));
        sqlite3_reset(stmt);
        return ERR_INPUT;
    }
    if (rc == SQLITE_ROW) {
        ret->exists = true;
        ret->name = schema_text(arena, stmt, 1);
        ret->sql = schema_text(arena, stmt, 2);
        ret->has_triggers = sqlite3_column_int(stmt, 3) != 0;
    }
    code = rc == SQLITE_ROW || rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "look for table %s", name);
    sqlite3_reset(stmt);
    if (code != ERR_NONE || !ret->exists)
        return code;
    if (ret->name == NULL || ret->sql == NULL)
        return err_nomem(err);
    code = read_table_columns(c, arena, ret, err);
    if (code == ERR_NONE)
        code = read_ownership(c, ret, err);
    if (code == ERR_NONE && !ret->is_ours)
        code = read_collations(c, arena, ret);
    return code;
}

/* ---- the columns of the file ---- */

static struct lite_column *find_column(const struct lite_columns *columns, const char *name)
{
    for (size_t i = 0; i < columns->count; i++)
        if (name_same_nocase(columns->items[i].name, name))
            return &columns->items[i];
    return NULL;
}

/* A column as the configuration calls it: by its name in the file, or by its legal name. */
static struct lite_column *find_in_file(struct lite_run *run, const char *name)
{
    const struct shape *shape = run->shape;
    for (size_t i = 0; i < run->want.count; i++) {
        int from = run->want.items[i].from;
        if (from >= 0 && strcmp(shape->columns[from].name, name) == 0)
            return &run->want.items[i];
    }
    struct lite_column *c = find_column(&run->want, name);
    return c != NULL && c->from >= 0 ? c : NULL;
}

static enum err_code missing_column(struct lite_run *run, const char *option, const char *name)
{
    const struct shape *shape = run->shape;
    char have[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < shape->column_count && used < sizeof(have) - 1; i++)
        used += (size_t)snprintf(have + used, sizeof(have) - used, "%s%s", i > 0 ? ", " : "", shape->columns[i].name);
    return err_set(run->err, ERR_INPUT, false,
                   "expected column \"%s\", which the flow's %s names; found in the header: %s", name, option, have);
}

static enum err_code want_names(struct lite_run *run, const struct option_strings *names, const char *option,
                                const char ***ret, size_t *ret_count)
{
    const char **items = arena_alloc(&run->arena, (names->count + 1) * sizeof(*items));
    if (items == NULL)
        return err_nomem(run->err);
    for (size_t i = 0; i < names->count; i++) {
        struct lite_column *c = find_in_file(run, names->items[i]);
        if (c == NULL)
            return missing_column(run, option, names->items[i]);
        if (ret == &run->keys)
            c->is_key = true;
        items[i] = c->name;
    }
    *ret = items;
    *ret_count = names->count;
    return ERR_NONE;
}

static enum err_code want_types(struct lite_run *run)
{
    const struct option_types *types = &run->plan->types;
    for (size_t i = 0; types->policy == TYPES_MAP && i < types->count; i++) {
        struct lite_column *c = find_in_file(run, types->entries[i].column);
        if (c == NULL)
            return missing_column(run, "types", types->entries[i].column);
        if (!type_of_name(types->entries[i].type, &c->type))
            return err_set(run->err, ERR_CONFIG, false, "types: column \"%s\": no such type \"%s\"",
                           types->entries[i].column, types->entries[i].type);
        c->is_declared = true;
        c->is_inferred = false;
        c->is_untyped = false;
        set_decl(c, decl_of_type(c->type));
    }
    return ERR_NONE;
}

static enum err_code plan_want(struct lite_run *run)
{
    const struct load_plan *plan = run->plan;
    const struct shape *shape = run->shape;
    const char **names;
    bool has_number = plan->row_number != NULL && plan->row_number[0] != '\0';
    int limit = sqlite3_limit(run->c->db, SQLITE_LIMIT_COLUMN, -1);
    if (shape->column_count == 0)
        return err_set(run->err, ERR_INPUT, false, "expected a header, found an empty file");
    if (shape->column_count + has_number > (size_t)limit)
        return err_set(run->err, ERR_INPUT, false,
                       "expected at most %d columns, which is what SQLite can hold; found %zu%s", limit,
                       shape->column_count + has_number, has_number ? " with the one of row_number" : "");
    enum err_code code = names_columns(shape, plan->names, name_same_nocase, &run->arena, &names, run->err);
    if (code != ERR_NONE)
        return code;
    run->want.items = arena_alloc(&run->arena, (shape->column_count + 1) * sizeof(*run->want.items));
    if (run->want.items == NULL)
        return err_nomem(run->err);
    run->want.count = 0;
    if (has_number) {
        struct lite_column *c = &run->want.items[run->want.count++];
        c->name = names_free_one(plan->row_number, names, shape->column_count, name_same_nocase, &run->arena);
        if (c->name == NULL)
            return err_nomem(run->err);
        c->from = FROM_ROW_NUMBER;
        set_decl(c, "BIGINT");
    }
    for (size_t i = 0; i < shape->column_count; i++) {
        struct lite_column *c = &run->want.items[run->want.count++];
        c->name = names[i];
        c->from = (int)i;
        c->is_inferred = plan->types.policy != TYPES_TEXT;
        c->is_untyped = c->is_inferred && is_untyped(&shape->columns[i]);
        set_decl(c, c->is_inferred ? infer(&shape->columns[i]) : "TEXT");
    }
    code = want_types(run);
    if (code == ERR_NONE)
        code = want_names(run, &plan->key, "key", &run->keys, &run->key_count);
    if (code == ERR_NONE)
        code = want_names(run, &plan->order_by, "order_by", &run->orders, &run->order_count);
    return code;
}

/* ---- both together ---- */

/* Bits of header_compare(), the words into TEXT. */
static enum err_code compare(struct lite_run *run, char *text, size_t size, unsigned *ret_bits)
{
    const char **have = arena_alloc(&run->arena, (run->table.columns.count + run->want.count + 1) * sizeof(*have));
    if (have == NULL)
        return err_nomem(run->err);
    const char **want = have + run->table.columns.count;
    for (size_t i = 0; i < run->table.columns.count; i++)
        have[i] = run->table.columns.items[i].name;
    for (size_t i = 0; i < run->want.count; i++)
        want[i] = run->want.items[i].name;
    *ret_bits = header_compare(have, run->table.columns.count, want, run->want.count, name_same_nocase, text, size);
    return ERR_NONE;
}

/* DEST: the columns of the table with its types, then (WITH_NEW) those that only the file has. */
static enum err_code bind_to_table(struct lite_run *run, bool with_new)
{
    const struct lite_columns *have = &run->table.columns;
    run->dest.items = arena_alloc(&run->arena, (have->count + run->want.count + 1) * sizeof(*run->dest.items));
    if (run->dest.items == NULL)
        return err_nomem(run->err);
    run->dest.count = 0;
    for (size_t i = 0; i < have->count; i++) {
        struct lite_column *c = &run->dest.items[run->dest.count++];
        const struct lite_column *file = find_column(&run->want, have->items[i].name);
        *c = have->items[i];
        if (file == NULL)
            continue;
        c->from = file->from;
        c->is_declared = file->is_declared;
        c->type = file->type;
        c->is_key = file->is_key;
    }
    run->old_count = run->dest.count;
    for (size_t i = 0; with_new && i < run->want.count; i++)
        if (find_column(have, run->want.items[i].name) == NULL)
            run->dest.items[run->dest.count++] = run->want.items[i];
    return ERR_NONE;
}

static void take_the_files(struct lite_run *run, enum action action)
{
    run->dest = run->want;
    run->old_count = run->dest.count;
    run->action = action;
    run->keeps_types = false;
}

static bool has_key_already(const struct lite_run *run)
{
    if (run->table.primary_key_count != run->key_count)
        return false;
    for (size_t i = 0; i < run->key_count; i++) {
        size_t k = 0;
        while (k < run->key_count && !name_same_nocase(run->keys[i], run->table.primary_key[k]))
            k++;
        if (k == run->key_count)
            return false;
    }
    return true;
}

static enum err_code refuse_header(struct lite_run *run, const char *why, const char *text)
{
    return err_set(run->err, ERR_INPUT, false, "header differs from the columns of table %s: %s%s", run->table.name,
                   text, why);
}

/* The types of a table that chute made, unless one of them can't hold what the file has. Returns whether they can. */
static bool adopt_types(struct lite_run *run)
{
    const struct shape *shape = run->shape;
    for (size_t i = 0; i < run->dest.count; i++) {
        struct lite_column *c = &run->dest.items[i];
        const struct lite_column *file = find_column(&run->want, c->name);
        if (file == NULL || file->from < 0)
            continue;
        if (c->is_untyped || (file->is_declared && strcmp(file->decl, c->decl) != 0))
            *c = *file; /* nothing was in it so far, or the configuration says otherwise by now */
        else if (!fits(c, &shape->columns[file->from]))
            return false;
    }
    return true;
}

static bool same_decls(const struct lite_run *run)
{
    for (size_t i = 0; i < run->table.columns.count; i++)
        if (strcmp(run->dest.items[i].decl, run->table.columns.items[i].decl) != 0)
            return false;
    return true;
}

#define REFILL_ROWS                                                                                                    \
    20000 /* up to so many old rows are deleted in place: quicker than a new table, and the lock stays short */

static enum err_code plan_replace_own(struct lite_run *run, unsigned diff, const char *text)
{
    enum schema_policy policy = run->plan->on_schema_change;
    bool is_same = diff == 0;
    if (policy == SCHEMA_REJECT && !is_same)
        return refuse_header(run, " (on_schema_change: reject)", text);
    if (policy == SCHEMA_RECREATE && (!is_same || run->was_narrowed)) {
        take_the_files(run, ACT_REBUILD);
        return ERR_NONE;
    }
    enum err_code code = bind_to_table(run, policy == SCHEMA_ADD_COLUMNS);
    if (code != ERR_NONE)
        return code;
    run->action = ACT_REBUILD;
    run->keeps_types = policy != SCHEMA_RECREATE;
    if (policy == SCHEMA_RECREATE && !adopt_types(run)) {
        take_the_files(run, ACT_REBUILD);
        return ERR_NONE;
    }
    if (lite_is_small(run->load) && run->dest.count == run->old_count && same_decls(run) && has_key_already(run) &&
        !run->table.has_triggers && !run->table.has_generated) {
        int64_t rows = 0;
        struct buf sql;
        buf_init(&sql);
        buf_adds(&sql, "SELECT max(rowid) FROM main.");
        sql_name(&sql, run->table.name);
        code = sql.failed ? err_nomem(run->err) : conn_number(run->c, sql.data, 0, &rows, run->err);
        buf_done(&sql);
        if (rows <= REFILL_ROWS)
            run->action = ACT_REFILL;
    }
    return code;
}

/* A table that others made keeps its definition, whatever the policy: it is refilled where the file fits, else left
 * alone. */
static enum err_code plan_replace_foreign(struct lite_run *run, unsigned diff, const char *text)
{
    enum schema_policy policy = run->plan->on_schema_change;
    unsigned allowed = policy == SCHEMA_ADD_COLUMNS ? HEADER_MISSING | HEADER_EXTRA | HEADER_RENAMED | HEADER_REORDERED
                       : policy == SCHEMA_RECREATE  ? HEADER_REORDERED
                                                    : 0;
    if ((diff & ~allowed) != 0)
        return refuse_header(run,
                             policy == SCHEMA_REJECT ? " (on_schema_change: reject)"
                                                     : "; chute did not make this table and does not recreate it",
                             text);
    run->action = ACT_REFILL;
    run->keeps_types = true;
    return bind_to_table(run, true);
}

static enum err_code plan_add(struct lite_run *run, unsigned diff, const char *text)
{
    enum schema_policy policy = run->plan->on_schema_change;
    if (policy == SCHEMA_REJECT && diff != 0)
        return refuse_header(run, " (on_schema_change: reject)", text);
    /* There is nothing to recreate from: the rows of other files are in the table. Order alone does no harm. */
    if (policy == SCHEMA_RECREATE && (diff & ~(unsigned)HEADER_REORDERED) != 0)
        return refuse_header(run, " (only `load: replace` recreates; on_schema_change: add_columns would take it)",
                             text);
    run->action = run->plan->mode == MODE_APPEND ? ACT_ADD : ACT_MERGE;
    run->keeps_types = true;
    return bind_to_table(run, policy == SCHEMA_ADD_COLUMNS);
}

enum err_code schema_plan(struct lite_run *run)
{
    char text[300];
    unsigned diff = 0;
    enum err_code code = known_read(run->c, run->table_name, &run->arena, &run->table, run->err);
    if (code == ERR_NONE)
        code = plan_want(run);
    if (code != ERR_NONE)
        return code;
    if (!run->table.exists) {
        take_the_files(run, ACT_CREATE);
        return ERR_NONE;
    }
    code = compare(run, text, sizeof(text), &diff);
    if (code != ERR_NONE)
        return code;
    if (run->plan->mode != MODE_REPLACE)
        return plan_add(run, diff, text);
    return run->table.is_ours ? plan_replace_own(run, diff, text) : plan_replace_foreign(run, diff, text);
}

/* ---- making and noting ---- */

char *schema_create_sql(const struct lite_run *run, const char *name, bool with_key)
{
    struct buf b;
    buf_init(&b);
    buf_adds(&b, "CREATE TABLE main.");
    sql_name(&b, name);
    buf_addc(&b, '(');
    for (size_t i = 0; i < run->dest.count; i++) {
        buf_adds(&b, i > 0 ? ", " : "");
        sql_name(&b, run->dest.items[i].name);
        buf_addc(&b, ' ');
        buf_adds(&b, run->dest.items[i].decl);
        if (run->dest.items[i].collation != NULL)
            buf_printf(&b, " COLLATE %s", run->dest.items[i].collation);
    }
    for (size_t i = 0; with_key && i < run->key_count; i++) {
        buf_adds(&b, i > 0 ? ", " : ", PRIMARY KEY(");
        sql_name(&b, run->keys[i]);
    }
    buf_adds(&b, with_key && run->key_count > 0 ? "))" : ")");
    char *sql = b.failed ? NULL : sqlite3_mprintf("%s", b.data);
    buf_done(&b);
    return sql;
}

enum err_code schema_add_columns(struct lite_run *run)
{
    bool was_ours = run->table.is_ours;
    for (size_t i = run->old_count; i < run->dest.count; i++) {
        enum err_code code = conn_execf(run->c, run->err, "ALTER TABLE main.\"%w\" ADD COLUMN \"%w\" %s",
                                        run->table.name, run->dest.items[i].name, run->dest.items[i].decl);
        if (code != ERR_NONE)
            return err_wrap(run->err, "add column %s to table %s", run->dest.items[i].name, run->table.name);
    }
    return was_ours && run->old_count < run->dest.count ? schema_own(run, run->table.name) : ERR_NONE;
}

/* Does a unique index or primary key on exactly the key exist? Partial indexes and ones on expressions don't count. */
static const char need_key_sql[] = "SELECT count(*) FROM pragma_index_list(?1) l WHERE l.\"unique\" AND NOT l.partial"
                                   " AND (SELECT count(*) FROM pragma_index_info(l.name)) = ?2"
                                   " AND NOT EXISTS (SELECT 1 FROM pragma_index_info(l.name) i WHERE i.name IS NULL OR"
                                   " instr(?3, char(31) || lower(i.name) || char(31)) = 0)";

enum err_code schema_need_key(struct lite_run *run)
{
    sqlite3_stmt *stmt;
    struct buf b;
    if (run->key_count == 0 || has_key_already(run))
        return ERR_NONE;
    enum err_code code = conn_prepare(run->c, need_key_sql, &stmt, run->err);
    if (code != ERR_NONE)
        return code;
    buf_init(&b);
    for (size_t i = 0; i < run->key_count; i++) {
        buf_addc(&b, UNTYPED_SEPARATOR);
        for (const char *p = run->keys[i]; *p != '\0'; p++)
            buf_addc(&b, *p >= 'A' && *p <= 'Z' ? (char)(*p + ('a' - 'A')) : *p);
        buf_addc(&b, UNTYPED_SEPARATOR);
    }
    sqlite3_bind_text(stmt, 1, run->table.name, -1, SQLITE_STATIC);
    sqlite3_bind_int64(stmt, 2, (sqlite3_int64)run->key_count);
    sqlite3_bind_text(stmt, 3, b.data, -1, SQLITE_TRANSIENT);
    int rc = sqlite3_step(stmt);
    bool has_one = rc == SQLITE_ROW && sqlite3_column_int64(stmt, 0) > 0;
    code = rc == SQLITE_ROW ? ERR_NONE
                            : conn_err(run->c, rc, run->err, "look for a unique index on table %s", run->table.name);
    sqlite3_reset(stmt);
    if (code != ERR_NONE || has_one) {
        buf_done(&b);
        return code;
    }
    buf_clear(&b);
    for (size_t i = 0; i < run->key_count; i++) {
        buf_adds(&b, i > 0 ? ", " : "");
        sql_name(&b, run->keys[i]);
    }
    code = b.failed ? err_nomem(run->err)
                    : conn_execf(run->c, run->err,
                                 "DROP INDEX IF EXISTS main.\"" LITE_KEY_PREFIX "%w\";"
                                 "CREATE UNIQUE INDEX main.\"" LITE_KEY_PREFIX "%w\" ON \"%w\"(%s)",
                                 run->table.name, run->table.name, run->table.name, b.data);
    if (code != ERR_NONE)
        err_wrap(run->err, "make the key (%s) unique in table %s", b.data, run->table.name);
    buf_done(&b);
    return code;
}

enum err_code schema_own(struct lite_run *run, const char *name)
{
    const struct shape *shape = run->shape;
    sqlite3_stmt *stmt;
    struct buf untyped;
    known_forget(run->c);
    enum err_code code = conn_prepare(
        run->c,
        "INSERT OR REPLACE INTO _chute_tables(name, sql, instance, flow, at, untyped) SELECT name, sql, ?2, ?3,"
        " strftime('%Y-%m-%dT%H:%M:%fZ'), ?4 FROM sqlite_schema WHERE type='table' AND name=?1 COLLATE NOCASE",
        &stmt, run->err);
    if (code != ERR_NONE)
        return code;
    buf_init(&untyped);
    for (size_t i = 0; i < run->dest.count; i++) {
        const struct lite_column *c = &run->dest.items[i];
        bool is_still = c->from == FROM_NOWHERE
                            ? c->is_untyped
                            : c->is_inferred && c->from >= 0 && is_untyped(&shape->columns[c->from]);
        if (is_still)
            buf_printf(&untyped, "%c%s%c", UNTYPED_SEPARATOR, c->name, UNTYPED_SEPARATOR);
    }
    sqlite3_bind_text(stmt, 1, name, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 2, run->load->instance, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 3, run->plan->flow, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 4, untyped.data != NULL ? untyped.data : "", -1, SQLITE_STATIC); /* nothing to allocate */
    code = untyped.failed ? err_nomem(run->err) : conn_run(run->c, stmt, run->err, "note whose the table is");
    sqlite3_clear_bindings(stmt);
    buf_done(&untyped);
    return code;
}
