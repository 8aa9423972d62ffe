/* postgres_catalog.c -- a table as it stands in the database. */
#include "postgres_internal.h"

#include <stdlib.h>
#include <string.h>

enum { AT_OID, AT_KIND, AT_OURS, AT_UNTYPED, AT_NAME, AT_DECL, AT_BASE, AT_TYPMOD, AT_SKIP, AT_DEFAULT, AT_RELATED };

void pgd_add_table_query(struct buf *b, const struct pgd_walker *w, const char *space, const char *table)
{
    buf_adds(
        b, "SELECT c.oid, c.relkind, o.oid IS NOT NULL, o.untyped, a.attname,"
           " pg_catalog.format_type(a.atttypid, a.atttypmod), coalesce(bt.typname, ty.typname),"
           " CASE WHEN ty.typtype = 'd' THEN ty.typtypmod ELSE a.atttypmod END,"
           " a.attgenerated <> '' OR a.attidentity = 'a', a.atthasdef OR a.attidentity <> '',"
           " c.relispartition OR EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))"
           " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN ");
    pgd_add_home(b, w, "_chute_tables");
    buf_adds(b, " o ON o.oid = c.oid"
                " LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
                " LEFT JOIN pg_catalog.pg_type ty ON ty.oid = a.atttypid"
                " LEFT JOIN pg_catalog.pg_type bt ON bt.oid = ty.typbasetype AND ty.typtype = 'd'"
                " WHERE n.nspname = ");
    pg_add_text(b, space);
    buf_adds(b, " AND c.relname = ");
    pg_add_text(b, table);
    buf_adds(b, " ORDER BY a.attnum;");
}

static bool is_true(const char *cell)
{
    return cell != NULL && cell[0] == 't';
}

static const char *kind_words(char kind)
{
    switch (kind) {
    case 'v':
        return "a view";
    case 'm':
        return "a materialized view";
    case 'i':
    case 'I':
        return "an index";
    case 'S':
        return "a sequence";
    case 'f':
        return "a foreign table";
    case 'c':
        return "a type";
    default:
        return "something else";
    }
}

enum err_code pgd_read_table(struct pgd_walker *w, const struct pgd_result *r, const char *space, const char *table,
                             struct pgd_table *ret)
{
    memset(ret, 0, sizeof(*ret));
    if (r->rows == 0)
        return ERR_NONE;
    ret->exists = true;
    ret->kind = pgd_cell(r, 0, AT_KIND)[0];
    ret->oid = (uint32_t)strtoul(pgd_cell(r, 0, AT_OID), NULL, 10);
    ret->is_ours = is_true(pgd_cell(r, 0, AT_OURS));
    ret->untyped = pgd_cell(r, 0, AT_UNTYPED);
    ret->is_related = is_true(pgd_cell(r, 0, AT_RELATED)) || ret->kind == 'p';
    if (ret->kind != 'r' && ret->kind != 'p')
        return err_set(
            w->err, ERR_INPUT, false,
            "expected a table called %s.%s, found %s of that name: rename it, or give the flow another table", space,
            table, kind_words(ret->kind));
    ret->columns.items = arena_alloc(&w->arena, r->rows * sizeof(*ret->columns.items));
    ret->generated = arena_alloc(&w->arena, r->rows * sizeof(*ret->generated));
    if (ret->columns.items == NULL || ret->generated == NULL)
        return err_nomem(w->err);
    for (size_t i = 0; i < r->rows; i++) {
        const char *name = pgd_cell(r, i, AT_NAME), *typmod = pgd_cell(r, i, AT_TYPMOD);
        if (name == NULL)
            continue;
        if (is_true(pgd_cell(r, i, AT_SKIP))) {
            ret->generated[ret->generated_count++] = name;
            continue;
        }
        struct pgd_column *c = &ret->columns.items[ret->columns.count++];
        c->name = name;
        c->from = PGD_FROM_NOWHERE;
        c->has_default = is_true(pgd_cell(r, i, AT_DEFAULT));
        pgd_column_of_catalog(c, pgd_cell(r, i, AT_DECL), pgd_cell(r, i, AT_BASE),
                              typmod != NULL ? (int)strtol(typmod, NULL, 10) : -1);
        if (ret->untyped != NULL) {
            const char *mark = arena_printf(&w->arena, "\x1f%s\x1f", name);
            c->is_untyped = mark != NULL && strstr(ret->untyped, mark) != NULL;
        }
    }
    return ERR_NONE;
}
