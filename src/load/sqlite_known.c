/*
 * sqlite_known.c -- the table of the load before, for small loads that share a transaction.
 *
 * To read what a table is takes as long as to insert a row three times. Within a transaction that may write nobody else
 * can change it; what we change ourselves shows in the schema's version, or is told by known_forget(): a rollback takes
 * that version back, and what `_chute_tables` says has none.
 */
#include "sqlite_internal.h"

#include <string.h>

void known_forget(struct conn *c)
{
    c->known.is_set = false;
}

void known_done(struct conn *c)
{
    known_forget(c);
    arena_done(&c->known.arena);
}

static enum err_code read_version(struct conn *c, int64_t *ret, struct err *err)
{
    sqlite3_stmt *stmt;
    enum err_code code = conn_prepare(c, "PRAGMA main.schema_version", &stmt, err);
    if (code != ERR_NONE)
        return code;
    int rc = sqlite3_step(stmt);
    *ret = rc == SQLITE_ROW ? sqlite3_column_int64(stmt, 0) : -1;
    code = rc == SQLITE_ROW ? ERR_NONE : conn_err(c, rc, err, "read the version of the schema");
    sqlite3_reset(stmt);
    return code;
}

/* A text of the table into ARENA. NULL stays NULL. */
static const char *copy_text(struct arena *arena, const char *text, bool *failed)
{
    const char *copy = text != NULL ? arena_strdup(arena, text) : NULL;
    *failed = *failed || (text != NULL && copy == NULL);
    return copy;
}

/* FROM's texts belong to another arena, which goes when another table is read. */
static enum err_code copy_table(const struct lite_table *from, struct arena *arena, struct lite_table *ret,
                                struct err *err)
{
    bool failed = false;
    *ret = *from;
    ret->name = copy_text(arena, from->name, &failed);
    ret->sql = copy_text(arena, from->sql, &failed);
    ret->columns.items = arena_alloc(arena, (from->columns.count + 1) * sizeof(*ret->columns.items));
    const char **keys = arena_alloc(arena, (from->primary_key_count + 1) * sizeof(*keys));
    if (ret->columns.items == NULL || keys == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < from->columns.count; i++) {
        struct lite_column *column = &ret->columns.items[i];
        *column = from->columns.items[i];
        column->name = copy_text(arena, column->name, &failed);
        column->decl = copy_text(arena, column->decl, &failed);
        column->collation = copy_text(arena, column->collation, &failed);
    }
    for (size_t i = 0; i < from->primary_key_count; i++)
        keys[i] = copy_text(arena, from->primary_key[i], &failed);
    ret->primary_key = keys;
    return failed ? err_nomem(err) : ERR_NONE;
}

enum err_code known_read(struct conn *c, const char *name, struct arena *arena, struct lite_table *ret, struct err *err)
{
    struct lite_known *k = &c->known;
    int64_t version;
    if (!conn_in_transaction(c))
        return schema_read(c, name, arena, ret, err);
    enum err_code code = read_version(c, &version, err);
    if (code != ERR_NONE)
        return code;
    if (!k->is_set || k->version != version || strcmp(k->wanted, name) != 0) {
        known_done(c);
        arena_init(&k->arena);
        k->wanted = arena_strdup(&k->arena, name);
        if (k->wanted == NULL)
            return err_nomem(err);
        code = schema_read(c, k->wanted, &k->arena, &k->table, err);
        if (code != ERR_NONE)
            return code;
        k->version = version;
        k->is_set = true;
    }
    return copy_table(&k->table, arena, ret, err);
}
