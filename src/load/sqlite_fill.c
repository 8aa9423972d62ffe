/*
 * sqlite_fill.c -- rows into a table, as fast as SQLite takes them.
 *
 * Values are bound where they lie (SQLITE_STATIC: the batch outlives the step) and as what they are, so that SQLite
 * converts nothing. Transactions that share the file with other programs are short; between two of them SQLite copies
 * the WAL back into the database without a lock that a writer needs, which is when the others get their turn.
 */
#include "sqlite_internal.h"

#include "clock.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOLD_MS 40                 /* so long a filling transaction keeps others from writing */
#define PAUSE_WAL_NS 1000000L      /* on top of the checkpoint, so that who polls for the lock meets it free */
#define PAUSE_ROLLBACK_NS 4000000L /* with a rollback journal there is no checkpoint that would leave a gap */

static char *insert_sql(const struct fill *f, const char *schema, const char *table, bool by_position,
                        const char *conflict)
{
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "INSERT INTO %s.", schema);
    sql_name(&b, table);
    buf_adds(&b, f->meets_rows ? " AS _chute_t" : "");
    for (size_t i = 0; i < f->bound; i++) {
        buf_adds(&b, i > 0 ? ", " : "(");
        if (by_position)
            buf_printf(&b, "c%zu", f->columns[i]);
        else
            sql_name(&b, f->run->dest.items[f->columns[i]].name);
    }
    for (size_t i = 0; i < f->bound; i++)
        buf_adds(&b, i > 0 ? ",?" : ") VALUES(?");
    buf_printf(&b, ")%s", conflict);
    char *sql = b.failed ? NULL : buf_take(&b);
    buf_done(&b);
    return sql;
}

/* A row that the flow's own words forbid: bad_rows decides. */
static enum err_code reject(struct fill *f, size_t row, int column, const char *reason)
{
    f->is_reject = true;
    return rows_reject(f->run->load->rows, row, column, reason, f->run->err);
}

static const char *shown(const char *value, size_t n, char *ret, size_t size)
{
    char cut[41];
    snprintf(cut, sizeof(cut), "%.*s", (int)(n < 40 ? n : 40), value);
    return text_printable(cut, ret, size);
}

/* A value that the table's type can't hold: a schema change, or (types still open) the sign for a second pass. */
static enum err_code misfit(struct fill *f, const struct row_batch *b, size_t row, const struct lite_column *c,
                            const char *value, size_t n)
{
    char text[168];
    if (!f->run->keeps_types) {
        f->is_narrowed = true;
        return ERR_NONE;
    }
    return err_set(f->run->err, ERR_INPUT, false,
                   "line %llu, byte %llu, column %d (%s): the column is %s in table %s, expected a value that fits it "
                   "without loss,"
                   " found \"%s\"; correct the value, or the type of the column",
                   (unsigned long long)b->line[row], (unsigned long long)b->offset[row], c->from + 1, c->name, c->decl,
                   f->run->table.name, shown(value, n, text, sizeof(text)));
}

/* Would SQLite's NUMERIC affinity turn this text into a number, and so lose how it was written? */
static bool looks_numeric(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && (s[i] == ' ' || (s[i] >= '\t' && s[i] <= '\r')))
        i++;
    if (i < n && (s[i] == '+' || s[i] == '-'))
        i++;
    return i < n && ((s[i] >= '0' && s[i] <= '9') || s[i] == '.');
}

/* Dates look like numbers at their beginning only. */
static bool is_plain_text(const char *s, size_t n)
{
    if (!looks_numeric(s, n))
        return true;
    int64_t seconds;
    uint32_t ns;
    return value_instant(s, n, &seconds, &ns);
}

/* Bind one value that is not NULL. False: it does not fit. */
static bool bind_value(sqlite3_stmt *stmt, int at, const struct lite_column *c, const char *value, size_t n)
{
    int64_t i;
    double d;
    bool b;
    switch (c->bind) {
    case BIND_INT:
        return value_int64(value, n, &i) && sqlite3_bind_int64(stmt, at, i) == SQLITE_OK;
    case BIND_REAL:
        if (c->is_declared && c->type == TYPE_DOUBLE ? !value_real(value, n, &d) : !value_double(value, n, &d))
            return false;
        return sqlite3_bind_double(stmt, at, d) == SQLITE_OK;
    case BIND_BOOL:
        if (value_bool(value, n, &b))
            return sqlite3_bind_int(stmt, at, b) == SQLITE_OK;
        return n == 1 && (value[0] == '0' || value[0] == '1') && !c->is_inferred &&
               sqlite3_bind_int(stmt, at, value[0] - '0') == SQLITE_OK;
    case BIND_NUMERIC:
        if (value_int64(value, n, &i))
            return sqlite3_bind_int64(stmt, at, i) == SQLITE_OK;
        if (value_double(value, n, &d))
            return sqlite3_bind_double(stmt, at, d) == SQLITE_OK;
        return is_plain_text(value, n) && sqlite3_bind_text(stmt, at, value, (int)n, SQLITE_STATIC) == SQLITE_OK;
    case BIND_TEXT:
    case BIND_BLOB:
        break;
    }
    return sqlite3_bind_text(stmt, at, value, (int)n, SQLITE_STATIC) == SQLITE_OK;
}

/* One cell. What is wrong with it is in f->is_reject or f->is_narrowed, or an error. */
static enum err_code bind_cell(struct fill *f, const struct row_batch *b, size_t row, size_t i)
{
    const struct lite_column *c = &f->run->dest.items[f->columns[i]];
    int at = (int)i + 1;
    char reason[256], text[168];
    if (c->from == FROM_ROW_NUMBER) {
        sqlite3_bind_int64(f->insert, at, (sqlite3_int64)b->record[row]);
        return ERR_NONE;
    }
    size_t cell = row * b->columns + (size_t)c->from;
    const char *value = b->value[cell];
    size_t n = b->length[cell];
    bool is_text = (c->bind == BIND_TEXT || c->bind == BIND_BLOB) && (!c->is_declared || c->type == TYPE_TEXT);
    if (value == NULL || (n == 0 && !is_text)) {
        sqlite3_bind_null(f->insert, at);
        if (!c->is_key)
            return ERR_NONE;
        snprintf(reason, sizeof(reason), "key column \"%.128s\": expected a value, found none", c->name);
        return reject(f, row, c->from, reason);
    }
    if (c->is_declared && !value_is(c->type, value, n)) {
        snprintf(reason, sizeof(reason), "column \"%.64s\": expected %s, found \"%s\"", c->name,
                 column_type_names[c->type], shown(value, n, text, sizeof(text)));
        return reject(f, row, c->from, reason);
    }
    if (__builtin_expect(bind_value(f->insert, at, c, value, n), 1))
        return ERR_NONE;
    return misfit(f, b, row, c, value, n);
}

/* The database refused the row: a repeated key, or a constraint that others put on the table. */
static enum err_code refused(struct fill *f, size_t row, int rc)
{
    char reason[300];
    if ((rc & 0xff) != SQLITE_CONSTRAINT) {
        conn_err(f->run->c, rc, f->run->err, "insert into table %s", f->run->table_name);
        sqlite3_reset(f->insert);
        return f->run->err->code;
    }
    bool is_repeated = rc == SQLITE_CONSTRAINT_PRIMARYKEY || rc == SQLITE_CONSTRAINT_UNIQUE;
    snprintf(reason, sizeof(reason), "%s%.240s", is_repeated ? "expected a key that is not there yet: " : "",
             sqlite3_errmsg(f->run->c->db));
    sqlite3_reset(f->insert);
    return reject(f, row, -1, reason);
}

#define NO_ROWID INT64_MIN /* no row has it unless somebody is after it */

/* What became of a row that may have met another: only a row that is new leaves its number behind. */
static void count_row(struct lite_run *run)
{
    if (sqlite3_changes(run->c->db) == 0)
        run->unchanged++;
    else if (sqlite3_last_insert_rowid(run->c->db) == NO_ROWID)
        run->updated++;
    else
        run->inserted++;
}

static enum err_code insert_row(struct fill *f, const struct row_batch *b, size_t row)
{
    struct lite_run *run = f->run;
    f->is_reject = false;
    for (size_t i = 0; i < f->bound; i++) {
        enum err_code code = bind_cell(f, b, row, i);
        if (code != ERR_NONE || f->is_narrowed || f->is_reject)
            return code;
    }
    if (f->meets_rows)
        sqlite3_set_last_insert_rowid(run->c->db, NO_ROWID);
    int rc = sqlite3_step(f->insert);
    if (__builtin_expect(rc != SQLITE_DONE, 0))
        return refused(f, row, rc);
    sqlite3_reset(f->insert);
    run->filled++;
    if (f->meets_rows)
        count_row(run);
    return ERR_NONE;
}

/* Give others the lock, if we had it long enough. */
static enum err_code breathe(struct fill *f)
{
    struct conn *c = f->run->c;
    if (!f->is_short || clock_mono_ms() - f->began_ms < HOLD_MS)
        return ERR_NONE;
    enum err_code code = conn_commit(c, f->run->err);
    if (code == ERR_NONE) {
        struct timespec pause = {0, c->is_wal ? PAUSE_WAL_NS : PAUSE_ROLLBACK_NS};
        nanosleep(&pause, NULL);
    }
    if (code == ERR_NONE)
        code = conn_begin(c, f->run->err);
    if (code == ERR_NONE && f->shadow != NULL)
        code = shadow_beat(c, f->shadow, f->run->err);
    f->began_ms = clock_mono_ms();
    return code;
}

#define LOOK_ROWS 256 /* the clock and the stop flag are looked at once in so many rows */

static enum err_code insert_batch(struct fill *f, const struct row_batch *b)
{
    struct lite_run *run = f->run;
    for (size_t row = 0; row < b->rows && !f->is_narrowed; row++) {
        if (row % LOOK_ROWS == LOOK_ROWS - 1) {
            if (conn_is_stopped(run->c))
                return err_set(run->err, ERR_STOPPED, true, "stopped");
            enum err_code code = breathe(f);
            if (code != ERR_NONE)
                return code;
        }
        if (b->record[row] < run->load->skip_records) {
            run->skipped++;
            continue;
        }
        enum err_code code = insert_row(f, b, row);
        if (code != ERR_NONE)
            return code;
    }
    return breathe(f);
}

/* To the end of the file; the transaction that is short and open is left open. */
static enum err_code pump(struct fill *f)
{
    struct lite_run *run = f->run;
    const struct row_batch *batch;
    for (;;) {
        enum err_code code = rows_next(run->load->rows, &batch, run->err);
        if (code == ERR_NONE && conn_is_stopped(run->c))
            code = err_set(run->err, ERR_STOPPED, true, "stopped");
        if (code != ERR_NONE)
            return code;
        /* Once a type turned out wrong, the pass only goes on to learn all of them. */
        f->is_narrowed = f->is_narrowed || schema_is_narrowed(run, batch->rows == 0);
        if (f->is_narrowed && f->is_short && conn_in_transaction(run->c)) {
            code = conn_commit(run->c, run->err);
            if (code != ERR_NONE)
                return code;
        }
        if (batch->rows == 0)
            return ERR_NONE;
        if (f->is_narrowed)
            continue;
        code = insert_batch(f, batch);
        if (code != ERR_NONE)
            return code;
    }
}

enum err_code fill_begin(struct fill *f, struct lite_run *run, const char *schema, const char *table, bool by_position,
                         const char *conflict)
{
    memset(f, 0, sizeof(*f));
    f->run = run;
    f->meets_rows = conflict[0] != '\0';
    run->filled = run->skipped = 0;
    f->columns = arena_alloc(&run->arena, (run->dest.count + 1) * sizeof(*f->columns));
    if (f->columns == NULL)
        return err_nomem(run->err);
    for (size_t i = 0; i < run->dest.count; i++)
        if (run->dest.items[i].from != FROM_NOWHERE)
            f->columns[f->bound++] = i;
    f->sql = insert_sql(f, schema, table, by_position, conflict);
    f->began_ms = clock_mono_ms();
    return f->sql != NULL ? ERR_NONE : err_nomem(run->err);
}

enum err_code fill_batch(struct fill *f, const struct row_batch *batch)
{
    /* Not kept from one batch to the next: the rows of other tables in between may need its place. */
    enum err_code code = conn_prepare(f->run->c, f->sql, &f->insert, f->run->err);
    if (code != ERR_NONE)
        return code;
    code = insert_batch(f, batch);
    sqlite3_reset(f->insert);
    sqlite3_clear_bindings(f->insert); /* they point into a batch that goes */
    return code;
}

void fill_end(struct fill *f)
{
    free(f->sql);
    f->sql = NULL;
}

enum err_code fill_rows(struct lite_run *run, const char *schema, const char *table, bool by_position, bool is_short,
                        enum fill_end *ret_end)
{
    struct fill f;
    enum err_code code = fill_begin(&f, run, schema, table, by_position, "");
    if (code != ERR_NONE)
        return code;
    f.is_short = is_short;
    f.shadow = is_short ? table : NULL;
    code = is_short ? conn_begin(run->c, run->err) : ERR_NONE;
    if (code == ERR_NONE)
        code = conn_prepare(run->c, f.sql, &f.insert, run->err);
    fill_end(&f);
    f.began_ms = clock_mono_ms();
    if (code == ERR_NONE) {
        code = pump(&f);
        sqlite3_reset(f.insert);
        sqlite3_clear_bindings(f.insert); /* they point into a batch that goes */
    }
    if (is_short && code == ERR_NONE && conn_in_transaction(run->c))
        code = conn_commit(run->c, run->err);
    if (is_short && code != ERR_NONE)
        conn_rollback(run->c);
    *ret_end = f.is_narrowed ? FILL_NARROWED : FILL_DONE;
    return code;
}
