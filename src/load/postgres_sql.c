/*
 * postgres_sql.c -- the statements that make, empty, fill and swap tables.
 *
 * All of them run in the transaction of the load: a rollback undoes tables as well as rows.
 */
#include "postgres_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void pgd_add_names(struct buf *b, const char *prefix, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        buf_adds(b, i > 0 ? ", " : "");
        buf_adds(b, prefix);
        pg_add_name(b, names[i]);
    }
}

static void add_target(struct buf *b, const struct pgd_target *t)
{
    pgd_add_table(b, t->space, t->table);
}

static void add_columns(struct buf *b, const struct pgd_target *t, size_t from)
{
    for (size_t i = from; i < t->dest.count; i++) {
        buf_adds(b, i > from ? ", " : "");
        pg_add_name(b, t->dest.items[i].name);
        buf_printf(b, " %s", t->dest.items[i].decl);
    }
}

static void add_create(struct buf *b, const struct pgd_target *t, const char *name)
{
    buf_adds(b, "CREATE TABLE ");
    pgd_add_table(b, t->space, name);
    buf_addc(b, '(');
    add_columns(b, t, 0);
    if (t->key_count > 0) {
        buf_adds(b, ", PRIMARY KEY(");
        pgd_add_names(b, "", t->keys, t->key_count);
        buf_addc(b, ')');
    }
    buf_adds(b, ");");
}

static void add_new_columns(struct buf *b, const struct pgd_target *t, const char *name)
{
    for (size_t i = t->old_count; i < t->dest.count; i++) {
        buf_adds(b, i > t->old_count ? ", ADD COLUMN " : "ALTER TABLE ");
        if (i == t->old_count) {
            pgd_add_table(b, t->space, name);
            buf_adds(b, " ADD COLUMN ");
        }
        pg_add_name(b, t->dest.items[i].name);
        buf_printf(b, " %s", t->dest.items[i].decl);
    }
    if (t->old_count < t->dest.count)
        buf_addc(b, ';');
}

/* Columns of which the file said nothing about a type, for the next one that may. */
static void add_untyped(struct buf *b, const struct pgd_target *t)
{
    struct buf names;
    buf_init(&names);
    for (size_t i = 0; i < t->dest.count; i++) {
        const struct pgd_column *c = &t->dest.items[i];
        bool is_still = c->is_untyped;
        if (c->from >= 0)
            is_still = c->is_text && (c->is_inferred || c->is_untyped) && pgd_is_untyped(&t->shape->columns[c->from]);
        if (is_still)
            buf_printf(&names, "\x1f%s\x1f", c->name);
    }
    pg_add_text(b, names.data != NULL ? names.data : "");
    b->failed = b->failed || names.failed;
    buf_done(&names);
}

void pgd_add_own(struct buf *b, const struct pgd_walker *w, const struct pgd_target *t, const char *instance)
{
    buf_adds(b, "INSERT INTO ");
    pgd_add_home(b, w, "_chute_tables");
    buf_adds(b, "(oid, \"schema\", \"table\", instance, flow, untyped) SELECT c.oid, n.nspname, c.relname, ");
    pg_add_text(b, instance != NULL ? instance : "");
    buf_adds(b, ", ");
    pg_add_text(b, t->plan->flow);
    buf_adds(b, ", ");
    add_untyped(b, t);
    buf_adds(b,
             " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ");
    pg_add_text(b, t->space);
    buf_adds(b, " AND c.relname = ");
    pg_add_text(b, t->table);
    buf_adds(b, " ON CONFLICT (oid) DO UPDATE SET \"schema\" = excluded.\"schema\", \"table\" = excluded.\"table\","
                " untyped = excluded.untyped;");
}

/* ---- the key ---- */

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum err_code has_unique_key(struct pgd_walker *w, const struct pgd_target *t, bool *ret)
{
    struct pgd_results r;
    struct buf sql;
    const char **sorted = arena_alloc(&w->arena, t->key_count * sizeof(*sorted));
    if (sorted == NULL)
        return err_nomem(w->err);
    memcpy(sorted, t->keys, t->key_count * sizeof(*sorted));
    qsort(sorted, t->key_count, sizeof(*sorted), by_bytes);
    buf_init(&sql);
    buf_printf(&sql,
               "SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = %u AND i.indisunique AND i.indimmediate AND"
               " i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND (SELECT array_agg(a.attname::text"
               " ORDER BY a.attname::text COLLATE \"C\") FROM generate_series(0, i.indnkeyatts - 1) g JOIN"
               " pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[g]) = ARRAY[",
               t->have.oid);
    for (size_t i = 0; i < t->key_count; i++) {
        buf_adds(&sql, i > 0 ? ", " : "");
        pg_add_text(&sql, sorted[i]);
    }
    buf_adds(&sql, "]::text[]");
    enum err_code code = pgd_ask(w, &sql, &r, "look for a unique index on the key");
    *ret = code == ERR_NONE && r.count > 0 && r.items[0].rows > 0;
    buf_done(&sql);
    return code;
}

static enum err_code need_key(struct pgd_walker *w, const struct pgd_target *t)
{
    bool has_one;
    struct buf sql, names;
    enum err_code code = has_unique_key(w, t, &has_one);
    if (code != ERR_NONE || has_one)
        return code;
    buf_init(&names);
    pgd_add_names(&names, "", t->keys, t->key_count);
    buf_init(&sql);
    buf_adds(&sql, "CREATE UNIQUE INDEX ON ");
    add_target(&sql, t);
    buf_printf(&sql, "(%s)", names.data);
    if (names.failed || sql.failed)
        code = err_nomem(w->err);
    else if (!t->have.is_ours)
        code = err_set(w->err, ERR_INPUT, false,
                       "expected a unique index on the key (%s) of table %s.%s, which chute did not make, found none: "
                       "create it (%s), then retry",
                       names.data, t->space, t->table, sql.data);
    else if (pgd_ask_long(w, &sql, NULL, "make the key unique") != ERR_NONE)
        code = err_wrap(w->err, "key (%s) of table %s.%s", names.data, t->space, t->table);
    buf_done(&sql);
    buf_done(&names);
    return code;
}

/* ---- stage and shadow ---- */

static void add_stage_name(struct buf *b, const struct pgd_target *t)
{
    buf_printf(b, "pg_temp._chute_stage%u", t->number);
}

void pgd_add_copy_target(struct buf *b, const struct pgd_target *t)
{
    if (t->is_merge)
        add_stage_name(b, t);
    else
        pgd_add_table(b, t->space, t->action == PGD_REBUILD ? t->shadow : t->table);
}

static void add_stage(struct buf *b, const struct pgd_target *t, bool with_load)
{
    buf_printf(b, "CREATE TEMP TABLE _chute_stage%u ON COMMIT DELETE ROWS AS SELECT ", t->number);
    buf_adds(b, with_load ? "0::int AS _chute_load" : "");
    bool is_first = !with_load;
    for (size_t i = 0; i < t->dest.count; i++) {
        if (t->dest.items[i].from == PGD_FROM_NOWHERE)
            continue;
        buf_adds(b, is_first ? "" : ", ");
        is_first = false;
        pg_add_name(b, t->dest.items[i].name);
    }
    buf_adds(b, " FROM ");
    add_target(b, t);
    buf_adds(b, " WITH NO DATA;");
    for (size_t i = 0; i < t->key_count; i++) {
        buf_adds(b, i > 0 ? ", ALTER COLUMN " : "ALTER TABLE ");
        if (i == 0) {
            add_stage_name(b, t);
            buf_adds(b, " ALTER COLUMN ");
        }
        pg_add_name(b, t->keys[i]);
        buf_adds(b, " SET NOT NULL");
    }
    buf_adds(b, t->key_count > 0 ? ";" : "");
}

/* What tells whether the stage that this session has is the one that is wanted. */
static void add_stage_mark(struct buf *b, const struct pgd_target *t, bool with_load)
{
    buf_printf(b, "%u:", t->have.oid);
    for (size_t i = 0; i < t->dest.count; i++)
        buf_printf(b, "%s|", t->dest.items[i].decl);
    add_stage(b, t, with_load);
}

/* Many loads in a row look alike: the session keeps its temporary tables, which costs less than making them. */
static void ready_stage(struct pgd_walker *w, struct pgd_target *t, bool with_load, struct buf *sql)
{
    const size_t slots = sizeof(w->stages) / sizeof(w->stages[0]);
    struct buf *kept = t->number < slots ? &w->stages[t->number] : NULL;
    struct buf mark;
    buf_init(&mark);
    add_stage_mark(&mark, t, with_load);
    bool is_known = t->have.exists && t->old_count == t->dest.count;
    if (kept == NULL || !is_known || mark.failed || strcmp(kept->data != NULL ? kept->data : "", mark.data) != 0) {
        buf_adds(sql, "DROP TABLE IF EXISTS ");
        add_stage_name(sql, t);
        buf_addc(sql, ';');
        add_stage(sql, t, with_load);
        if (kept != NULL) {
            buf_clear(kept);
            if (is_known && !mark.failed)
                buf_adds(kept, mark.data);
            if (kept->failed)
                buf_clear(kept);
            w->open_stages |= 1u << t->number;
        }
    }
    buf_done(&mark);
}

static void ready_shadow(struct pgd_target *t, struct buf *sql)
{
    snprintf(t->shadow, sizeof(t->shadow), "_chute_new_%u", t->have.oid);
    if (!t->like_old) {
        add_create(sql, t, t->shadow);
        return;
    }
    buf_adds(sql, "CREATE TABLE ");
    pgd_add_table(sql, t->space, t->shadow);
    buf_adds(sql, " (LIKE ");
    add_target(sql, t);
    buf_adds(sql, " INCLUDING ALL);");
    add_new_columns(sql, t, t->shadow);
}

enum err_code pgd_make_ready(struct pgd_walker *w, struct pgd_target *t, const char *instance, bool with_load)
{
    struct buf sql;
    bool is_like_before = t->action != PGD_CREATE && (t->action != PGD_REBUILD || t->like_old);
    enum err_code code = is_like_before && t->key_count > 0 ? need_key(w, t) : ERR_NONE;
    if (code != ERR_NONE)
        return code;
    buf_init(&sql);
    if (t->action == PGD_CREATE) {
        add_create(&sql, t, t->table);
        pgd_add_own(&sql, w, t, instance);
    } else if (t->action == PGD_REBUILD) {
        ready_shadow(t, &sql);
    } else {
        add_new_columns(&sql, t, t->table);
    }
    if (t->action == PGD_REFILL) {
        buf_adds(&sql, w->options->replace == PGD_TRUNCATE_AND_INSERT ? "TRUNCATE " : "DELETE FROM ");
        buf_adds(&sql, pgd_own_rows(&t->have));
        add_target(&sql, t);
        buf_addc(&sql, ';');
    }
    if (t->is_merge)
        ready_stage(w, t, with_load, &sql);
    if (sql.size > 0 || sql.failed)
        code = pgd_ask_long(w, &sql, NULL, "");
    if (code != ERR_NONE)
        err_wrap(w->err, "table %s.%s", t->space, t->table);
    buf_done(&sql);
    return code;
}

void pgd_add_copy(struct buf *b, const struct pgd_target *t, bool with_load)
{
    bool is_first = !with_load;
    buf_adds(b, "COPY ");
    pgd_add_copy_target(b, t);
    buf_adds(b, with_load ? "(_chute_load" : "(");
    for (size_t i = 0; i < t->dest.count; i++) {
        if (t->dest.items[i].from == PGD_FROM_NOWHERE)
            continue;
        buf_adds(b, is_first ? "" : ", ");
        is_first = false;
        pg_add_name(b, t->dest.items[i].name);
    }
    buf_adds(b, ") FROM STDIN");
}

/* Its indexes are called after the shadow; they get names as if they had been made on the table. */
static void add_index_names(struct buf *b, const struct pgd_target *t)
{
    buf_adds(b, "DO LANGUAGE plpgsql $chute$DECLARE i record; BEGIN FOR i IN SELECT c.relname AS old, left(");
    pg_add_text(b, t->table);
    buf_printf(b, " || substr(c.relname, %zu), %d) AS new, c.relnamespace AS space FROM pg_catalog.pg_index x JOIN",
               strlen(t->shadow) + 1, PGD_NAME_BYTES);
    buf_adds(b, " pg_catalog.pg_class c ON c.oid = x.indexrelid JOIN pg_catalog.pg_class r ON r.oid = x.indrelid JOIN"
                " pg_catalog.pg_namespace n ON n.oid = r.relnamespace WHERE n.nspname = ");
    pg_add_text(b, t->space);
    buf_adds(b, " AND r.relname = ");
    pg_add_text(b, t->table);
    buf_adds(b, " AND pg_catalog.starts_with(c.relname, ");
    pg_add_text(b, t->shadow);
    buf_adds(b,
             ") LOOP IF NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class o WHERE o.relnamespace = i.space AND o.relname ="
             " i.new) THEN EXECUTE pg_catalog.format('ALTER INDEX %I.%I RENAME TO %I', ");
    pg_add_text(b, t->space);
    buf_adds(b, ", i.old, i.new); END IF; END LOOP; END$chute$;");
}

enum err_code pgd_swap(struct pgd_walker *w, struct pgd_target *t, const char *instance)
{
    struct buf sql;
    buf_init(&sql);
    buf_adds(&sql, "DROP TABLE ");
    add_target(&sql, t);
    buf_adds(&sql, ";ALTER TABLE ");
    pgd_add_table(&sql, t->space, t->shadow);
    buf_adds(&sql, " RENAME TO ");
    pg_add_name(&sql, t->table);
    buf_addc(&sql, ';');
    add_index_names(&sql, t);
    if (t->have.is_ours) {
        buf_adds(&sql, "DELETE FROM ");
        pgd_add_home(&sql, w, "_chute_tables");
        buf_printf(&sql, " WHERE oid = %u;", t->have.oid);
        pgd_add_own(&sql, w, t, instance);
    }
    enum err_code code = pgd_ask(w, &sql, NULL, "");
    if (code != ERR_NONE)
        err_wrap(w->err, "put the new table in the place of %s.%s", t->space, t->table);
    buf_done(&sql);
    return code;
}
