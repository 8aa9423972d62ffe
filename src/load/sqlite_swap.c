/*
 * sqlite_swap.c -- tables that take another's place, and what depends on a table.
 *
 * A shadow is filled under a name of our own; the swap is one short transaction, so a reader sees the old table or the
 * new one. Indexes and triggers that others made are made again on the new table, views name it as before. What can't
 * be made again keeps the old table in place and is named. Shadows are noted in `_chute_work` with whoever fills them:
 * several chutes may share the database, and only leftovers of dead ones may go. Removing a live one by mistake costs a
 * retry, nothing else: the filler finds its note gone.
 */
#include "sqlite_internal.h"

#include "clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STALE_MS                                                                                                       \
    (10 * 60 * 1000)   /* a filler that we can't look at (another container) is dead after so long without a beat */
#define DROP_ROWS 5000 /* rows deleted in one transaction when a large table goes */

static enum err_code note_work(struct conn *c, const char *name, const char *instance, struct err *err)
{
    return conn_execf(c, err, "INSERT INTO _chute_work(name, instance, owner, beat) VALUES(%Q, %Q, %Q, %lld)", name,
                      instance, c->owner, (long long)clock_wall_ms());
}

/* A name that nothing has: random enough, and looked up anyway. */
static enum err_code free_name(struct conn *c, const char *what, char *ret, size_t size, struct err *err)
{
    for (;;) {
        uint32_t random;
        int64_t taken;
        sqlite3_randomness(sizeof(random), &random);
        snprintf(ret, size, LITE_PREFIX "%s_%08x_%u", what, random, ++c->next_name);
        char *sql = sqlite3_mprintf("SELECT count(*) FROM sqlite_schema WHERE name=%Q COLLATE NOCASE", ret);
        if (sql == NULL)
            return err_nomem(err);
        enum err_code code = conn_number(c, sql, 0, &taken, err);
        sqlite3_free(sql);
        if (code != ERR_NONE || taken == 0)
            return code;
    }
}

static char *stage_sql(const struct lite_run *run, const char *name)
{
    struct buf b;
    buf_init(&b);
    buf_adds(&b, "CREATE TABLE main.");
    sql_name(&b, name);
    for (size_t i = 0; i < run->dest.count; i++) {
        const struct lite_column *c = &run->dest.items[i];
        buf_printf(&b, "%sc%zu %s%s%s", i > 0 ? ", " : "(", i, c->decl, c->collation != NULL ? " COLLATE " : "",
                   c->collation != NULL ? c->collation : "");
    }
    buf_addc(&b, ')');
    char *sql = b.failed ? NULL : sqlite3_mprintf("%s", b.data);
    buf_done(&b);
    return sql;
}

enum err_code shadow_create(struct lite_run *run, bool is_stage, char *ret_name, size_t size)
{
    struct conn *c = run->c;
    bool is_own_transaction = !conn_in_transaction(c);
    enum err_code code = is_own_transaction ? conn_begin(c, run->err) : ERR_NONE;
    if (code == ERR_NONE)
        code = free_name(c, is_stage ? "stage" : "new", ret_name, size, run->err);
    if (code == ERR_NONE) {
        char *sql = is_stage ? stage_sql(run, ret_name) : schema_create_sql(run, ret_name, true);
        code = sql == NULL ? err_nomem(run->err) : conn_exec(c, run->err, sql);
        sqlite3_free(sql);
    }
    if (code == ERR_NONE)
        code = note_work(c, ret_name, run->load->instance, run->err);
    if (code == ERR_NONE && is_own_transaction)
        code = conn_commit(c, run->err);
    if (code != ERR_NONE && is_own_transaction)
        conn_rollback(c);
    return code;
}

enum err_code shadow_beat(struct conn *c, const char *name, struct err *err)
{
    sqlite3_stmt *stmt;
    enum err_code code = conn_prepare(c, "UPDATE _chute_work SET beat=?1 WHERE name=?2 AND owner=?3", &stmt, err);
    if (code != ERR_NONE)
        return code;
    sqlite3_bind_int64(stmt, 1, clock_wall_ms());
    sqlite3_bind_text(stmt, 2, name, -1, SQLITE_STATIC);
    sqlite3_bind_text(stmt, 3, c->owner, -1, SQLITE_STATIC);
    code = conn_run(c, stmt, err, "note progress");
    if (code == ERR_NONE && sqlite3_changes(c->db) == 0)
        return err_set(err, ERR_REMOTE, true,
                       "another chute took our half-filled table %s for a leftover; it is tried again", name);
    return code;
}

void shadow_drop(struct conn *c, const char *name)
{
    struct err ignored;
    char *sql = sqlite3_mprintf("DELETE FROM main.\"%w\" WHERE rowid IN (SELECT rowid FROM main.\"%w\" LIMIT %d)", name,
                                name, DROP_ROWS);
    /* Bit by bit: dropping a large table at once would keep others from writing for seconds. */
    while (sql != NULL && sqlite3_exec(c->db, sql, NULL, NULL, NULL) == SQLITE_OK &&
           sqlite3_changes(c->db) == DROP_ROWS)
        continue;
    sqlite3_free(sql);
    if (conn_begin(c, &ignored) == ERR_NONE &&
        conn_execf(c, &ignored, "DROP TABLE IF EXISTS main.\"%w\"; DELETE FROM _chute_work WHERE name=%Q", name,
                   name) == ERR_NONE &&
        conn_commit(c, &ignored) == ERR_NONE)
        return;
    conn_rollback(c);
}

/* ---- leftovers ---- */

struct owner {
    char boot[48], space[32], start[24];
    long pid;
    unsigned connection;
};

static bool parse_owner(const char *text, struct owner *o)
{
    memset(o, 0, sizeof(*o));
    return sscanf(text, "%47s %31s %ld %23s %u", o->boot, o->space, &o->pid, o->start, &o->connection) == 5;
}

/* When the process PID started, as /proc says; false: there is none. */
static bool start_of(long pid, char *ret, size_t size)
{
    char path[64], line[1024];
    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return false;
    char *at = fgets(line, sizeof(line), f) != NULL ? strrchr(line, ')') : NULL;
    fclose(f);
    if (at == NULL || at[1] != ' ' || at[2] == 'Z') /* a zombie writes no more */
        return false;
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (at == NULL)
        return false;
    snprintf(ret, size, "%.*s", (int)strcspn(at + 1, " "), at + 1);
    return true;
}

static bool is_dead(const struct conn *c, const char *instance, const char *work_instance, const char *owner,
                    int64_t beat_ms)
{
    struct owner mine, theirs;
    char start[24];
    if (strcmp(owner, c->owner) == 0)
        return true; /* ours, from an earlier load that could not clean up: we have none in work now */
    if (!parse_owner(c->owner, &mine) || !parse_owner(owner, &theirs))
        return clock_wall_ms() - beat_ms > STALE_MS;
    bool is_near = strcmp(mine.boot, theirs.boot) == 0 && strcmp(mine.space, theirs.space) == 0;
    if (is_near)
        return !start_of(theirs.pid, start, sizeof(start)) || strcmp(start, theirs.start) != 0;
    /* One daemon per state folder, and the instance is kept there: another process of our instance is a former one. */
    if (instance != NULL && strcmp(instance, work_instance) == 0)
        return true;
    return clock_wall_ms() - beat_ms > STALE_MS;
}

enum err_code shadow_clean(struct conn *c, const char *instance, struct err *err)
{
    sqlite3_stmt *stmt;
    char name[128] = "";
    do {
        enum err_code code = conn_prepare(
            c, "SELECT name, instance, owner, beat FROM _chute_work WHERE name > ?1 ORDER BY name", &stmt, err);
        if (code != ERR_NONE)
            return code;
        sqlite3_bind_text(stmt, 1, name, -1, SQLITE_TRANSIENT);
        name[0] = '\0';
        int rc;
        while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
            const char *found = text_at(stmt, 0);
            if (!is_dead(c, instance, text_at(stmt, 1), text_at(stmt, 2), sqlite3_column_int64(stmt, 3)))
                continue;
            snprintf(name, sizeof(name), "%s", found);
            break;
        }
        code = rc == SQLITE_ROW || rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "look for leftovers");
        sqlite3_reset(stmt);
        if (code != ERR_NONE)
            return code;
        if (name[0] != '\0')
            shadow_drop(c, name);
    } while (name[0] != '\0');
    return ERR_NONE;
}

/* ---- the swap ---- */

struct made {
    struct made *next;
    const char *type, *name, *sql;
};

/* Indexes and triggers on the table that have words of their own (a primary key's has none), without ours. */
static enum err_code read_made(struct lite_run *run, struct made **ret)
{
    sqlite3_stmt *stmt;
    int rc;
    enum err_code code =
        conn_prepare(run->c,
                     "SELECT type, name, sql FROM sqlite_schema WHERE tbl_name=?1 COLLATE NOCASE AND type IN"
                     " ('index', 'trigger') AND sql IS NOT NULL ORDER BY rowid DESC",
                     &stmt, run->err);
    if (code != ERR_NONE)
        return code;
    *ret = NULL;
    sqlite3_bind_text(stmt, 1, run->table.name, -1, SQLITE_STATIC);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        struct made *m = arena_alloc(&run->arena, sizeof(*m));
        if (m == NULL)
            break;
        m->type = schema_text(&run->arena, stmt, 0);
        m->name = schema_text(&run->arena, stmt, 1);
        m->sql = schema_text(&run->arena, stmt, 2);
        m->next = *ret;
        *ret = m;
        if (m->type == NULL || m->name == NULL || m->sql == NULL)
            break;
    }
    code = rc == SQLITE_DONE  ? ERR_NONE
           : rc == SQLITE_ROW ? err_nomem(run->err)
                              : conn_err(run->c, rc, run->err, "read indexes");
    sqlite3_reset(stmt);
    return code;
}

static enum err_code make_again(struct lite_run *run, const struct made *made)
{
    for (const struct made *m = made; m != NULL; m = m->next) {
        if (strncmp(m->name, LITE_KEY_PREFIX, strlen(LITE_KEY_PREFIX)) == 0)
            continue;
        if (conn_exec(run->c, run->err, m->sql) != ERR_NONE) {
            /* An index that the new rows violate or whose column is gone: the file's problem, whatever SQLite calls it.
             */
            if (run->err->code == ERR_REMOTE || run->err->code == ERR_INPUT) {
                run->err->code = ERR_INPUT;
                run->err->retryable = false;
            }
            return err_wrap(
                run->err,
                "%s %s, which others made on table %s, can't be made on the new one (drop it, or correct the file)",
                m->type, m->name, run->table.name);
        }
    }
    return ERR_NONE;
}

/* Large tables step aside under a name of ours and are dropped bit by bit later; small ones go at once. */
static enum err_code put_aside(struct lite_run *run, const struct made *made, char *ret_old, size_t size)
{
    int64_t rows = INT64_MAX;
    ret_old[0] = '\0';
    char *sql = sqlite3_mprintf("SELECT max(rowid) FROM main.\"%w\"", run->table.name);
    if (sql == NULL)
        return err_nomem(run->err);
    enum err_code code = conn_number(run->c, sql, 0, &rows, run->err);
    sqlite3_free(sql);
    /* WITHOUT ROWID: can't tell, and can't be deleted bit by bit either. */
    if (code == ERR_INPUT)
        rows = 0;
    else if (code != ERR_NONE)
        return code;
    if (rows <= DROP_ROWS * 10)
        return conn_execf(run->c, run->err, "DROP TABLE main.\"%w\"", run->table.name);
    code = free_name(run->c, "old", ret_old, size, run->err);
    for (const struct made *m = made; m != NULL && code == ERR_NONE; m = m->next)
        code = conn_execf(run->c, run->err, "DROP %s main.\"%w\"", m->type, m->name);
    if (code == ERR_NONE)
        code = conn_execf(run->c, run->err, "ALTER TABLE main.\"%w\" RENAME TO \"%w\"", run->table.name, ret_old);
    return code != ERR_NONE ? code : note_work(run->c, ret_old, run->load->instance, run->err);
}

/* ---- what depends on a table ---- */

struct watch {
    const char *table;
    struct buf *names;
    const char *inside; /* the view being looked at; NULL: triggers tell their own names */
    bool is_hit;
};

static void add_name(struct buf *names, const char *what, const char *name)
{
    char item[300];
    snprintf(item, sizeof(item), "%s %.256s", what, name);
    if (names->size > 0 && strstr(names->data, item) != NULL)
        return;
    buf_printf(names, "%s%s", names->size > 0 ? ", " : "", item);
}

/* SQLite has no catalog of dependencies; its compiler knows them: it asks for permission table by table. */
static int on_access(void *arg, int action, const char *one, const char *two, const char *database, const char *inner)
{
    struct watch *w = arg;
    (void)two;
    (void)database;
    if ((action == SQLITE_READ || action == SQLITE_INSERT || action == SQLITE_UPDATE || action == SQLITE_DELETE) &&
        one != NULL && name_same_nocase(one, w->table)) {
        if (w->inside != NULL)
            w->is_hit = true;
        else if (inner != NULL)
            add_name(w->names, "trigger", inner);
    }
    return SQLITE_OK;
}

static bool compiles(struct conn *c, const char *sql)
{
    sqlite3_stmt *stmt = NULL;
    bool is_good = sqlite3_prepare_v2(c->db, sql, -1, &stmt, NULL) == SQLITE_OK;
    sqlite3_finalize(stmt);
    return is_good;
}

typedef void view_fn(struct conn *c, const char *view, bool is_good, void *arg);

/* Compile every view and say which can. */
static enum err_code each_view(struct conn *c, view_fn *fn, void *arg, struct err *err)
{
    sqlite3_stmt *stmt;
    int rc = sqlite3_prepare_v2(c->db, "SELECT name FROM sqlite_schema WHERE type='view'", -1, &stmt, NULL);
    if (rc != SQLITE_OK)
        return conn_err(c, rc, err, "list views");
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        const char *name = text_at(stmt, 0);
        char *sql = sqlite3_mprintf("SELECT * FROM main.\"%w\"", name);
        struct watch *w = arg;
        if (w != NULL)
            w->inside = name;
        bool is_good = sql != NULL && compiles(c, sql);
        sqlite3_free(sql);
        fn(c, name, is_good, arg);
    }
    enum err_code code = rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "list views");
    sqlite3_finalize(stmt);
    return code;
}

static void on_view_of_table(struct conn *c, const char *view, bool is_good, void *arg)
{
    struct watch *w = arg;
    (void)c;
    (void)is_good;
    if (w->is_hit)
        add_name(w->names, "view", view);
    w->is_hit = false;
}

/* Compile what would fire the triggers of another table; the callback hears what they touch. */
static void look_into_triggers(struct conn *c, const char *table)
{
    struct buf set;
    sqlite3_stmt *stmt;
    buf_init(&set);
    char *list = sqlite3_mprintf("SELECT name FROM pragma_table_xinfo(%Q) WHERE hidden=0", table);
    if (list != NULL && sqlite3_prepare_v2(c->db, list, -1, &stmt, NULL) == SQLITE_OK) {
        while (sqlite3_step(stmt) == SQLITE_ROW) {
            const char *column = text_at(stmt, 0);
            buf_adds(&set, set.size > 0 ? ", " : "");
            sql_name(&set, column);
            buf_addc(&set, '=');
            sql_name(&set, column);
        }
        sqlite3_finalize(stmt);
    }
    sqlite3_free(list);
    char *const sqls[] = {sqlite3_mprintf("INSERT INTO main.\"%w\" DEFAULT VALUES", table),
                          sqlite3_mprintf("DELETE FROM main.\"%w\"", table),
                          sqlite3_mprintf("UPDATE main.\"%w\" SET %s", table, set.data)};
    for (size_t i = 0; i < 3; i++) {
        if (sqls[i] != NULL)
            compiles(c, sqls[i]);
        sqlite3_free(sqls[i]);
    }
    buf_done(&set);
}

static enum err_code find_dependents(struct conn *c, const char *table, struct buf *names, struct err *err)
{
    struct watch w = {.table = table, .names = names};
    sqlite3_stmt *stmt;
    sqlite3_set_authorizer(c->db, on_access, &w);
    enum err_code code = each_view(c, on_view_of_table, &w, err);
    w.inside = NULL;
    int rc = SQLITE_DONE;
    if (code == ERR_NONE) {
        rc = sqlite3_prepare_v2(
            c->db, "SELECT DISTINCT tbl_name FROM sqlite_schema WHERE type='trigger' AND tbl_name<>?1 COLLATE NOCASE",
            -1, &stmt, NULL);
        if (rc == SQLITE_OK) {
            sqlite3_bind_text(stmt, 1, table, -1, SQLITE_STATIC);
            while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
                look_into_triggers(c, text_at(stmt, 0));
            sqlite3_finalize(stmt);
        }
    }
    sqlite3_set_authorizer(c->db, NULL, NULL);
    if (code == ERR_NONE && rc != SQLITE_DONE)
        code = conn_err(c, rc, err, "list triggers");
    if (code != ERR_NONE)
        return code;
    rc = sqlite3_prepare_v2(
        c->db,
        "SELECT DISTINCT m.name FROM sqlite_schema m, pragma_foreign_key_list(m.name) f WHERE m.type='table'"
        " AND f.\"table\"=?1 COLLATE NOCASE AND m.name<>?1 COLLATE NOCASE",
        -1, &stmt, NULL);
    if (rc != SQLITE_OK)
        return conn_err(c, rc, err, "list foreign keys");
    sqlite3_bind_text(stmt, 1, table, -1, SQLITE_STATIC);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
        add_name(names, "table", text_at(stmt, 0));
    code = rc == SQLITE_DONE ? ERR_NONE : conn_err(c, rc, err, "list foreign keys");
    sqlite3_finalize(stmt);
    return code;
}

enum err_code swap_drop(struct conn *c, const char *name, struct arena *arena, bool *ret_dropped, struct err *err)
{
    struct lite_table t;
    struct buf names;
    *ret_dropped = false;
    enum err_code code = schema_read(c, name, arena, &t, err);
    if (code != ERR_NONE || !t.exists || !t.is_ours)
        return code;
    buf_init(&names);
    code = find_dependents(c, t.name, &names, err);
    if (code == ERR_NONE && names.failed)
        code = err_nomem(err);
    else if (code == ERR_NONE && names.size > 0)
        code = err_set(err, ERR_INPUT, false,
                       "table %s is not dropped, because others depend on it: %s; drop them first", t.name, names.data);
    buf_done(&names);
    if (code == ERR_NONE)
        code = conn_execf(c, err, "DROP TABLE main.\"%w\"; DELETE FROM _chute_tables WHERE name=%Q COLLATE NOCASE",
                          t.name, t.name);
    *ret_dropped = code == ERR_NONE;
    return code;
}

/* Views that could be read before, and whether they still can. */
struct view_list {
    struct watch unused; /* each_view() writes into it */
    struct buf *good;
    struct buf *broken;
};

static void note_good(struct conn *c, const char *view, bool is_good, void *arg)
{
    struct view_list *l = arg;
    (void)c;
    if (is_good)
        buf_printf(l->good, "\x1f%s\x1f", view);
}

static void note_broken(struct conn *c, const char *view, bool is_good, void *arg)
{
    struct view_list *l = arg;
    char item[300];
    (void)c;
    snprintf(item, sizeof(item), "\x1f%.256s\x1f", view);
    if (!is_good && strstr(l->good->data, item) != NULL)
        add_name(l->broken, "view", view);
}

static bool loses_columns(const struct lite_run *run)
{
    for (size_t i = 0; i < run->table.columns.count; i++) {
        size_t k = 0;
        while (k < run->dest.count && !name_same_nocase(run->table.columns.items[i].name, run->dest.items[k].name))
            k++;
        if (k == run->dest.count)
            return true;
    }
    return run->table.exists && run->table.has_generated;
}

static enum err_code exchange(struct lite_run *run, const char *name, char *ret_old, size_t size)
{
    struct made *made = NULL;
    enum err_code code = ERR_NONE;
    ret_old[0] = '\0';
    if (run->table.exists) {
        code = read_made(run, &made);
        if (code == ERR_NONE)
            code = put_aside(run, made, ret_old, size);
    }
    if (code == ERR_NONE)
        code = conn_execf(run->c, run->err,
                          "ALTER TABLE main.\"%w\" RENAME TO \"%w\"; DELETE FROM _chute_work WHERE name=%Q", name,
                          run->table.name, name);
    if (code == ERR_NONE)
        code = make_again(run, made);
    return code != ERR_NONE ? code : schema_own(run, run->table.name);
}

enum err_code swap_tables(struct lite_run *run, const char *name, char *ret_old, size_t size)
{
    struct buf good, broken;
    if (!run->table.exists || !loses_columns(run))
        return exchange(run, name, ret_old, size);
    buf_init(&good);
    buf_init(&broken);
    struct view_list list = {.good = &good, .broken = &broken};
    enum err_code code = each_view(run->c, note_good, &list, run->err);
    if (code == ERR_NONE)
        code = exchange(run, name, ret_old, size);
    if (code == ERR_NONE)
        code = each_view(run->c, note_broken, &list, run->err);
    if (code == ERR_NONE && (good.failed || broken.failed))
        code = err_nomem(run->err);
    if (code == ERR_NONE && broken.size > 0)
        code = err_set(
            run->err, ERR_INPUT, false,
            "table %s is not recreated with the columns of this file, because others depend on the ones it has: %s;"
            " drop them first, or correct the file",
            run->table.name, broken.data);
    buf_done(&good);
    buf_done(&broken);
    return code;
}
