/*
 * postgres_home.c -- the schema and tables that chute keeps its own facts in, and words for what the server says.
 *
 * `_chute` holds the database's random id, `_chute_loads` the receipts (never pruned), `_chute_tables` what chute made.
 */
#include "postgres_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define LOWEST_SERVER 130000

/* ---- words ---- */

bool pgd_is_stopped(const struct pgd_walker *w)
{
    return w->stop != NULL && atomic_load(w->stop);
}

bool pgd_is_data_fault(const struct pgd_walker *w)
{
    const struct pgd_fault *f = pgd_line_fault(w->line);
    /* 54000: a row or a key that is too large for a page; P0001: a trigger of somebody's that refuses the row. */
    return f->err.code == ERR_INPUT || strcmp(f->sqlstate, "54000") == 0 || strcmp(f->sqlstate, "P0001") == 0;
}

bool pgd_is_collision(const struct pgd_walker *w)
{
    const char *sqlstate = pgd_line_fault(w->line)->sqlstate;
    /* 42P07: somebody who is no chute made the table between our look and our CREATE. */
    return strncmp(sqlstate, "40", 2) == 0 || strcmp(sqlstate, "42P07") == 0;
}

/* What to do about it, where the server's own words don't say. */
static const char *advice(const char *sqlstate)
{
    static const struct {
        const char *sqlstate, *words;
    } table[] = {
        {"55P03", "others hold a lock on the table; it is tried again (lock_timeout says how long one try waits)"},
        {"57014", "the server cancelled it (statement_timeout of this role?); it is tried again"},
        {"53100", "the server's disk is full; it is tried again"},
        {"2BP01", "chute never drops what others need: drop them, or give the flow another table"},
        {"42501", "grant the right to this role"},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(table[i].sqlstate, sqlstate) == 0)
            return table[i].words;
    return NULL;
}

/*
 * Is it this load's trouble alone, although the server is well: a lock, a timeout of a statement, a column that is
 * missing? Then the destination has answered, and files for other tables go on. Connections, resources, shutdowns and
 * broken servers are everybody's.
 */
static bool is_of_the_table(const char *sqlstate)
{
    static const char *const everybodys[] = {"08", "53", "57P", "58", "XX", "F0"};
    for (size_t i = 0; i < sizeof(everybodys) / sizeof(everybodys[0]); i++)
        if (strncmp(sqlstate, everybodys[i], strlen(everybodys[i])) == 0)
            return false;
    return sqlstate[0] != '\0';
}

enum err_code pgd_fail(struct pgd_walker *w, const char *what)
{
    const struct pgd_fault *f = pgd_line_fault(w->line);
    struct err *err = w->err;
    const char *more = advice(f->sqlstate);
    *err = f->err;
    if (pgd_is_stopped(w) && (f->err.code == ERR_STOPPED || strcmp(f->sqlstate, "57014") == 0))
        return err_set(err, ERR_STOPPED, true, "stopped");
    if (f->sqlstate[0] != '\0' && f->message[0] != '\0') {
        enum err_code code = pgd_is_data_fault(w) || strcmp(f->sqlstate, "2BP01") == 0 ? ERR_INPUT : f->err.code;
        bool retryable = code == ERR_INPUT ? false : f->err.retryable;
        if (code == ERR_REMOTE && is_of_the_table(f->sqlstate))
            code = ERR_INPUT;
        err_set(err, code, retryable, "%s%s%s%s%s", f->message, f->detail[0] != '\0' ? ": " : "", f->detail,
                more != NULL ? "; " : "", more != NULL ? more : "");
        for (char *p = err->text; *p != '\0'; p++)
            if (*p == '\n' || *p == '\r')
                *p = ' ';
    }
    /* Our own tables are gone, or somebody was at them: look at them afresh next time. */
    if (strcmp(f->sqlstate, "42P01") == 0 || strcmp(f->sqlstate, "3F000") == 0) {
        w->is_prepared = false;
        err->retryable = true;
    }
    return what[0] != '\0' ? err_wrap(err, "%s", what) : err->code;
}

static enum err_code ask(struct pgd_walker *w, struct buf *sql, struct pgd_results *ret, const char *what, bool patient)
{
    enum err_code code = sql->failed ? err_nomem(w->err) : ERR_NONE;
    if (code == ERR_NONE && pgd_is_stopped(w))
        code = err_set(w->err, ERR_STOPPED, true, "stopped");
    if (code == ERR_NONE && pgd_line_ask(w->line, sql->data, patient, &w->arena, ret, w->err) != ERR_NONE)
        code = pgd_fail(w, what);
    buf_clear(sql);
    return code;
}

enum err_code pgd_ask(struct pgd_walker *w, struct buf *sql, struct pgd_results *ret, const char *what)
{
    return ask(w, sql, ret, what, false);
}

enum err_code pgd_ask_long(struct pgd_walker *w, struct buf *sql, struct pgd_results *ret, const char *what)
{
    return ask(w, sql, ret, what, true);
}

void pgd_rollback(struct pgd_walker *w)
{
    for (size_t i = 0; i < sizeof(w->stages) / sizeof(w->stages[0]); i++)
        if (w->open_stages & (1u << i))
            buf_clear(&w->stages[i]);
    w->open_stages = 0;
    pgd_line_rollback(w->line);
}

void pgd_add_table(struct buf *b, const char *space, const char *table)
{
    pg_add_name(b, space);
    buf_addc(b, '.');
    pg_add_name(b, table);
}

void pgd_add_home(struct buf *b, const struct pgd_walker *w, const char *table)
{
    pgd_add_table(b, w->home, table);
}

void pgd_add_lock(struct buf *b, const char *space, const char *table)
{
    struct buf name;
    buf_init(&name);
    buf_printf(&name, "chute %s.%s", space, table);
    buf_adds(b, "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(");
    pg_add_text(b, name.data);
    buf_adds(b, ", 0));");
    b->failed = b->failed || name.failed;
    buf_done(&name);
}

/* ---- home ---- */

static void add_create_schema(struct buf *b, const char *schema)
{
    buf_adds(b, "CREATE SCHEMA IF NOT EXISTS ");
    pg_add_name(b, schema);
    buf_addc(b, ';');
}

/* Does SCHEMA exist? CREATE SCHEMA IF NOT EXISTS asks for the right to create even where it has nothing to do. */
static enum err_code schema_exists(struct pgd_walker *w, const char *schema, bool *ret)
{
    struct pgd_results r;
    struct buf sql;
    buf_init(&sql);
    buf_adds(&sql, "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname=");
    pg_add_text(&sql, schema);
    enum err_code code = pgd_ask(w, &sql, &r, "look for the schema");
    *ret = code == ERR_NONE && r.count > 0 && r.items[0].rows > 0;
    buf_done(&sql);
    return code;
}

enum err_code pgd_make_schema(struct pgd_walker *w, const char *schema)
{
    bool exists;
    struct buf sql;
    enum err_code code = schema_exists(w, schema, &exists);
    if (code != ERR_NONE || exists)
        return code;
    buf_init(&sql);
    buf_adds(&sql, "BEGIN;");
    pgd_add_lock(&sql, "", "home"); /* IF NOT EXISTS does not help when two do it at once */
    add_create_schema(&sql, schema);
    buf_adds(&sql, "COMMIT");
    code = pgd_ask(w, &sql, NULL, "make the schema");
    if (code != ERR_NONE)
        pgd_rollback(w);
    buf_done(&sql);
    return code != ERR_NONE ? err_wrap(w->err, "schema %s", schema) : ERR_NONE;
}

static void add_tables(struct buf *b, const struct pgd_walker *w)
{
    buf_adds(b, "CREATE TABLE IF NOT EXISTS ");
    pgd_add_home(b, w, "_chute");
    buf_adds(b, "(key text PRIMARY KEY, value text NOT NULL);CREATE TABLE IF NOT EXISTS ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, load_key text NOT NULL, instance text NOT NULL,"
                " source text NOT NULL, flow text NOT NULL, path text NOT NULL, hash text NOT NULL,"
                " \"schema\" text NOT NULL, \"table\" text NOT NULL, at timestamptz NOT NULL DEFAULT"
                " pg_catalog.clock_timestamp(), kind text NOT NULL, bytes bigint NOT NULL, parsed bigint NOT NULL,"
                " inserted bigint NOT NULL, updated bigint NOT NULL, unchanged bigint NOT NULL,"
                " rejected bigint NOT NULL);CREATE UNIQUE INDEX IF NOT EXISTS _chute_loads_attempt ON ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, "(load_key, instance, \"schema\", \"table\");CREATE INDEX IF NOT EXISTS _chute_loads_version ON ");
    pgd_add_home(b, w, "_chute_loads");
    /* Paths may be longer than what a B-tree takes. */
    buf_adds(b, "(pg_catalog.md5(path), hash);CREATE INDEX IF NOT EXISTS _chute_loads_last ON ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, "(\"schema\", \"table\", id);CREATE INDEX IF NOT EXISTS _chute_loads_gone ON ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, "(\"schema\", \"table\", id) WHERE kind IN ('drop', 'empty');CREATE TABLE IF NOT EXISTS ");
    pgd_add_home(b, w, "_chute_tables");
    buf_adds(b, "(oid oid PRIMARY KEY, \"schema\" text NOT NULL, \"table\" text NOT NULL, instance text NOT NULL,"
                " flow text NOT NULL, at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),"
                " untyped text NOT NULL);");
}

static enum err_code make_home(struct pgd_walker *w)
{
    uint8_t random[16];
    char hex[33];
    struct buf sql;
    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return err_set(w->err, ERR_SYSTEM, true, "no random bytes for the database's identity: %s", strerror(errno));
    for (size_t i = 0; i < sizeof(random); i++)
        snprintf(hex + 2 * i, 3, "%02x", random[i]);
    enum err_code code = pgd_make_schema(w, w->home);
    if (code != ERR_NONE)
        return code;
    buf_init(&sql);
    buf_adds(&sql, "BEGIN;");
    pgd_add_lock(&sql, "", "home");
    add_tables(&sql, w);
    buf_adds(&sql, "INSERT INTO ");
    pgd_add_home(&sql, w, "_chute");
    /* Another chute may have been quicker: what is there stays. */
    buf_printf(&sql, " VALUES('identity', '%s'), ('version', '1') ON CONFLICT DO NOTHING;COMMIT", hex);
    code = pgd_ask(w, &sql, NULL, "make the tables that chute keeps its receipts in");
    if (code != ERR_NONE)
        pgd_rollback(w);
    buf_done(&sql);
    return code;
}

/* *RET_THERE: all of home is there, and w->identity is known. */
static enum err_code read_home(struct pgd_walker *w, bool *ret_there)
{
    struct pgd_results r;
    struct buf sql;
    buf_init(&sql);
    *ret_there = false;
    static const char *const tables[] = {"_chute", "_chute_loads", "_chute_tables"};
    buf_adds(&sql, "SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid=c.relnamespace"
                   " WHERE c.relkind IN ('r', 'p') AND n.nspname=");
    pg_add_text(&sql, w->home);
    buf_adds(&sql, " AND c.relname IN ('_chute', '_chute_loads', '_chute_tables')");
    enum err_code code = pgd_ask(w, &sql, &r, "look for chute's own tables");
    const char *count = code == ERR_NONE && r.count > 0 ? pgd_cell(&r.items[0], 0, 0) : NULL;
    if (count != NULL && strcmp(count, "3") == 0) {
        buf_adds(&sql, "SELECT value FROM ");
        pgd_add_home(&sql, w, tables[0]);
        buf_adds(&sql, " WHERE key='identity'");
        code = pgd_ask(w, &sql, &r, "read the database's identity");
        const char *id = code == ERR_NONE && r.count > 0 ? pgd_cell(&r.items[0], 0, 0) : NULL;
        if (id != NULL) {
            snprintf(w->identity, sizeof(w->identity), "%s", id);
            *ret_there = true;
        }
    }
    buf_done(&sql);
    return code;
}

static enum err_code greet(struct pgd_walker *w)
{
    struct buf sql;
    struct pgd_results r;
    int version = pgd_line_server_version(w->line);
    if (version < LOWEST_SERVER)
        return err_set(w->err, ERR_DENIED, false, "expected a server of PostgreSQL 13 or later, found %d.%d",
                       version / 10000, version % 10000);
    buf_init(&sql);
    buf_printf(&sql,
               "SET lock_timeout=%llu;SET DateStyle='ISO, YMD';SET client_min_messages=warning;"
               "SET standard_conforming_strings=on;SET escape_string_warning=off;"
               "SELECT pg_catalog.current_setting('server_version')",
               (unsigned long long)w->options->lock_timeout);
    enum err_code code = pgd_ask(w, &sql, &r, "begin the session");
    if (code == ERR_NONE && r.count > 0) {
        const char *name = pgd_cell(&r.items[r.count - 1], 0, 0);
        snprintf(w->version, sizeof(w->version), "PostgreSQL %.40s", name != NULL ? name : "?");
    }
    buf_done(&sql);
    return code;
}

enum err_code pgd_prepare(struct pgd_walker *w)
{
    bool is_fresh, is_there = false;
    if (pgd_line_connect(w->line, &is_fresh, w->err) != ERR_NONE)
        return w->err->code;
    if (is_fresh) {
        w->is_prepared = false;
        w->open_stages = 0;
        for (size_t i = 0; i < sizeof(w->stages) / sizeof(w->stages[0]); i++)
            buf_clear(&w->stages[i]);
    }
    if (w->is_prepared)
        return ERR_NONE;
    enum err_code code = greet(w);
    if (code == ERR_NONE)
        code = read_home(w, &is_there);
    if (code == ERR_NONE && !is_there) {
        code = make_home(w);
        if (code == ERR_NONE)
            code = read_home(w, &is_there);
        if (code == ERR_NONE && !is_there)
            code = err_set(w->err, ERR_REMOTE, true, "chute's own tables in schema %s vanished while they were made",
                           w->home);
    }
    w->is_prepared = code == ERR_NONE;
    return code;
}
