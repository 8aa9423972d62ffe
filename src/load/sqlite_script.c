/*
 * sqlite_script.c -- SQL files in one transaction: `init` and pipelines. On the worker's thread, between loads.
 *
 * SQLite itself says where a statement ends, so triggers and quotes need no parser of ours. Begin and commit are
 * chute's: an authorizer refuses those words, and writes to chute's own tables. Whatever a script changed of the
 * connection (pragmas, temporary tables, attached databases) ends with it: it is closed afterwards.
 */
#include "sqlite_internal.h"

#include "script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct lite_script {
    struct conn *c;
    struct scripts *scripts;
    const char *file;
    const char *text;
    uint64_t number;    /* of the statement in its file, from 1 */
    bool is_commanding; /* the authorizer met BEGIN, COMMIT or ROLLBACK */
    char own_table[64]; /* ... or a write to this table of chute's */
};

/* chute_setting('NAME') */
static void setting_fn(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    const struct scripts *scripts = sqlite3_user_data(context);
    const char *name = (const char *)sqlite3_value_text(argv[0]);
    (void)argc;
    for (size_t i = 0; name != NULL && i < scripts->setting_count; i++)
        if (strcmp(scripts->settings[i].name, name) == 0) {
            sqlite3_result_text(context, scripts->settings[i].value, -1, SQLITE_STATIC);
            return;
        }
    sqlite3_result_null(context);
}

static int authorize(void *arg, int action, const char *what, const char *more, const char *schema, const char *trigger)
{
    struct lite_script *s = arg;
    const char *table = what;
    (void)schema;
    (void)trigger;
    switch (action) {
    case SQLITE_TRANSACTION:
        s->is_commanding = true;
        return SQLITE_DENY;
    case SQLITE_ALTER_TABLE:
        table = more;
        break;
    case SQLITE_INSERT:
    case SQLITE_UPDATE:
    case SQLITE_DELETE:
    case SQLITE_DROP_TABLE:
        break;
    default:
        return SQLITE_OK;
    }
    if (table == NULL || sqlite3_strnicmp(table, LITE_PREFIX, (int)strlen(LITE_PREFIX)) != 0)
        return SQLITE_OK;
    snprintf(s->own_table, sizeof s->own_table, "%s", table);
    return SQLITE_DENY;
}

/* ERR with the place of the statement at OFFSET; AT: of the very thing that is wrong. */
static enum err_code failed_at(struct lite_script *s, size_t offset, size_t at, int rc, struct err *err)
{
    char words[SCRIPT_WORDS_MAX];
    const char *message = sqlite3_errmsg(s->c->db);
    enum err_code code = ERR_INPUT;
    switch (rc & 0xff) {
    case SQLITE_ERROR:
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
    case SQLITE_TOOBIG:
    case SQLITE_RANGE:
    case SQLITE_MISUSE:
    case SQLITE_ABORT:
        err_set(err, ERR_INPUT, false, "%s", message);
        break;
    case SQLITE_AUTH:
        if (s->is_commanding)
            err_set(err, ERR_INPUT, false,
                    "BEGIN, COMMIT and ROLLBACK are chute's: all scripts run in one transaction; remove it");
        else if (s->own_table[0] != '\0')
            err_set(err, ERR_INPUT, false, "table %s is chute's own; a script must not write to it", s->own_table);
        else
            err_set(err, ERR_INPUT, false, "%s", message);
        break;
    default:
        conn_err(s->c, rc, err, "run");
        code = err->code;
    }
    err_wrap(err, "%s:%llu: statement %llu (\"%s\")", s->file, (unsigned long long)script_line(s->text, at),
             (unsigned long long)s->number, script_words(s->text, offset, words));
    return code;
}

static enum err_code run_text(struct lite_script *s, struct err *err)
{
    struct conn *c = s->c;
    size_t offset = 0;
    for (;;) {
        const char *tail;
        sqlite3_stmt *stmt = NULL;
        offset = script_skip(s->text, offset);
        if (s->text[offset] == '\0')
            return ERR_NONE;
        s->number++;
        int rc = sqlite3_prepare_v2(c->db, s->text + offset, -1, &stmt, &tail);
        if (rc != SQLITE_OK) {
            int wrong = sqlite3_error_offset(c->db);
            return failed_at(s, offset, wrong > 0 ? offset + (size_t)wrong : offset, rc, err);
        }
        while (stmt != NULL && (rc = sqlite3_step(stmt)) == SQLITE_ROW)
            ;
        if (stmt != NULL && rc != SQLITE_DONE) {
            failed_at(s, offset, offset, rc, err);
            sqlite3_finalize(stmt);
            return err->code;
        }
        sqlite3_finalize(stmt);
        s->scripts->statements += stmt != NULL;
        offset = (size_t)(tail - s->text);
    }
}

static enum err_code run_file(struct lite_script *s, struct err *err)
{
    char *text;
    size_t size;
    if (script_read(s->file, &text, &size, err) != ERR_NONE)
        return err->code;
    s->text = text;
    s->number = 0;
    enum err_code code = run_text(s, err);
    s->text = NULL;
    free(text);
    return code;
}

static enum err_code run_all(struct lite_script *s, struct err *err)
{
    struct conn *c = s->c;
    for (size_t i = 0; i < s->scripts->file_count; i++) {
        s->file = s->scripts->files[i];
        if (run_file(s, err) != ERR_NONE)
            return err->code;
    }
    sqlite3_set_authorizer(c->db, NULL, NULL);
    if (conn_commit(c, err) != ERR_NONE)
        return err_wrap(err, "commit %s", s->scripts->name);
    return ERR_NONE;
}

enum err_code lite_script(struct conn *c, struct scripts *scripts, struct err *err)
{
    struct lite_script s = {.c = c, .scripts = scripts};
    scripts->statements = 0;
    conn_forget_statements(c);
    c->script_stop = &scripts->stop;
    /* What chute needs for its own swaps is not what a person expects of ALTER TABLE … RENAME. */
    enum err_code code = conn_exec(c, err, "PRAGMA legacy_alter_table=OFF");
    if (code == ERR_NONE && sqlite3_create_function_v2(c->db, "chute_setting", 1, SQLITE_UTF8 | SQLITE_DIRECTONLY,
                                                       scripts, setting_fn, NULL, NULL, NULL) != SQLITE_OK)
        code = conn_err(c, SQLITE_NOMEM, err, "chute_setting");
    if (code == ERR_NONE)
        code = conn_begin(c, err);
    if (code == ERR_NONE) {
        sqlite3_set_authorizer(c->db, authorize, &s);
        code = run_all(&s, err);
        sqlite3_set_authorizer(c->db, NULL, NULL);
    }
    conn_rollback(c);
    c->script_stop = NULL;
    conn_close(c);
    if (code != ERR_NONE)
        scripts->statements = 0; /* none of them was kept */
    return code;
}
