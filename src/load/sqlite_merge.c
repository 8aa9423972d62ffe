/*
 * sqlite_merge.c -- rows that meet rows with the same key.
 *
 * All rows of a file go into a stage first. Of those with one key one wins, then the winners meet the table in one
 * statement. Who wins depends on the rows alone and never on when they came: by order_by (NULL lowest; times by their
 * instant, not their spelling), and a full tie by the greater row in canonical text form.
 */
#include "sqlite_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROW_ARGUMENTS 100 /* SQLite allows 127 arguments of a function */

/* ---- functions ---- */

static void add_big_endian(struct buf *b, uint64_t v)
{
    for (int shift = 56; shift >= 0; shift -= 8)
        buf_addc(b, (char)(v >> shift));
}

static void add_number(struct buf *b, double d, int64_t i)
{
    uint64_t bits;
    double plain = d == 0 ? 0.0 : d; /* -0.0 is 0 */
    memcpy(&bits, &plain, sizeof(bits));
    /* Bytes that compare as the doubles do: negative ones turned round, positive ones above them. */
    add_big_endian(b, bits >> 63 ? ~bits : bits | (1ull << 63));
    /* Neighbouring large integers share a double; the integer itself tells them apart. */
    add_big_endian(b, (uint64_t)i ^ (1ull << 63));
}

static int64_t saturated(double d)
{
    if (d >= 9223372036854775807.0)
        return INT64_MAX;
    return d <= -9223372036854775808.0 ? INT64_MIN : (int64_t)d;
}

/* A value as bytes whose memcmp() order is: NULL, numbers, instants, texts. */
static void add_rank(struct buf *b, sqlite3_value *value)
{
    int64_t seconds;
    uint32_t ns;
    switch (sqlite3_value_type(value)) {
    case SQLITE_NULL:
        buf_addc(b, 1);
        return;
    case SQLITE_INTEGER:
        buf_addc(b, 2);
        add_number(b, (double)sqlite3_value_int64(value), sqlite3_value_int64(value));
        return;
    case SQLITE_FLOAT:
        buf_addc(b, 2);
        add_number(b, sqlite3_value_double(value), saturated(sqlite3_value_double(value)));
        return;
    default:
        break;
    }
    bool is_blob = sqlite3_value_type(value) == SQLITE_BLOB; /* a text's blob would be UTF-16 in such a database */
    const char *text = is_blob ? sqlite3_value_blob(value) : (const char *)sqlite3_value_text(value);
    size_t n = (size_t)sqlite3_value_bytes(value);
    if (text != NULL && value_instant(text, n, &seconds, &ns)) {
        buf_addc(b, 3);
        add_big_endian(b, (uint64_t)seconds ^ (1ull << 63));
        add_big_endian(b, ns);
        return;
    }
    buf_addc(b, 4);
    if (n > 0)
        buf_add(b, text, n);
    buf_addc(b, 0);
}

/* A value as canonical text: NULL below everything, each with an end, so that "a","bc" and "ab","c" differ. */
static void add_canonical(struct buf *b, sqlite3_value *value)
{
    char number[40];
    int type = sqlite3_value_type(value);
    buf_addc(b, type == SQLITE_NULL ? 1 : 2);
    if (type == SQLITE_FLOAT) {
        snprintf(number, sizeof(number), "%.17g", sqlite3_value_double(value));
        buf_adds(b, number);
    } else if (type != SQLITE_NULL) {
        const unsigned char *text = type == SQLITE_BLOB ? sqlite3_value_blob(value) : sqlite3_value_text(value);
        int n = sqlite3_value_bytes(value);
        if (n > 0)
            buf_add(b, text, (size_t)n);
    }
    buf_addc(b, 0);
}

static void answer(sqlite3_context *context, int count, sqlite3_value **values,
                   void (*add)(struct buf *, sqlite3_value *))
{
    struct buf b;
    buf_init(&b);
    for (int i = 0; i < count; i++)
        add(&b, values[i]);
    if (b.failed)
        sqlite3_result_error_nomem(context);
    else
        sqlite3_result_blob(context, b.data, (int)b.size, SQLITE_TRANSIENT);
    buf_done(&b);
}

static void on_rank(sqlite3_context *context, int count, sqlite3_value **values)
{
    answer(context, count, values, add_rank);
}

static void on_row(sqlite3_context *context, int count, sqlite3_value **values)
{
    answer(context, count, values, add_canonical);
}

enum err_code merge_register(struct conn *c, struct err *err)
{
    int flags = SQLITE_UTF8 | SQLITE_DETERMINISTIC | SQLITE_DIRECTONLY;
    int rc = sqlite3_create_function(c->db, "chute_rank", -1, flags, NULL, on_rank, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_create_function(c->db, "chute_row", -1, flags, NULL, on_row, NULL, NULL);
    return rc == SQLITE_OK ? ERR_NONE : conn_err(c, rc, err, "open");
}

/* ---- the words ---- */

/* How a column of DEST is called: in the stage by number, elsewhere by name. */
enum side { SIDE_STAGE, SIDE_TABLE, SIDE_NEW };

static void add_column(struct buf *b, const struct lite_run *run, enum side side, size_t i)
{
    if (side == SIDE_STAGE) {
        buf_printf(b, "s.c%zu", i);
        return;
    }
    buf_adds(b, side == SIDE_TABLE ? "_chute_t." : "excluded.");
    sql_name(b, run->dest.items[i].name);
}

/* A column that the file lacks is given what an insert would give it; only a primary key of its own stays alone. */
static bool is_left_alone(const struct lite_run *run, size_t i)
{
    if (run->dest.items[i].from != FROM_NOWHERE)
        return false;
    for (size_t k = 0; k < run->table.primary_key_count; k++)
        if (name_same_nocase(run->table.primary_key[k], run->dest.items[i].name))
            return true;
    return false;
}

/* chute_row(chute_row(...), ...): the canonical text of a row. */
static void add_row(struct buf *b, const struct lite_run *run, enum side side)
{
    size_t in_group = 0;
    buf_adds(b, "chute_row(chute_row(");
    for (size_t i = 0; i < run->dest.count; i++) {
        if (is_left_alone(run, i) || (side == SIDE_STAGE && run->dest.items[i].from == FROM_NOWHERE))
            continue;
        if (in_group == ROW_ARGUMENTS) {
            buf_adds(b, "), chute_row(");
            in_group = 0;
        }
        buf_adds(b, in_group++ > 0 ? ", " : "");
        add_column(b, run, side, i);
    }
    buf_adds(b, "))");
}

static size_t find_dest(const struct lite_run *run, const char *name)
{
    size_t i = 0;
    while (i < run->dest.count && !name_same_nocase(run->dest.items[i].name, name))
        i++;
    return i;
}

static void add_list(struct buf *b, const struct lite_run *run, enum side side, const char *const *names, size_t count,
                     const char *joint)
{
    for (size_t i = 0; i < count; i++) {
        buf_adds(b, i > 0 ? joint : "");
        add_column(b, run, side, find_dest(run, names[i]));
    }
}

static void add_rank_call(struct buf *b, const struct lite_run *run, enum side side)
{
    buf_adds(b, "chute_rank(");
    add_list(b, run, side, run->orders, run->order_count, ", ");
    buf_addc(b, ')');
}

static void add_stage_name(struct buf *b, const char *schema, const char *stage)
{
    buf_printf(b, "%s.", schema);
    sql_name(b, stage);
}

/* ---- statements ---- */

static enum err_code run_sql(struct lite_run *run, struct buf *b, const char *what, uint64_t *ret_changes)
{
    sqlite3_stmt *stmt;
    enum err_code code = b->failed ? err_nomem(run->err) : conn_prepare(run->c, b->data, &stmt, run->err);
    if (code == ERR_NONE)
        code = conn_run(run->c, stmt, run->err, what);
    if (code == ERR_NONE && ret_changes != NULL)
        *ret_changes = (uint64_t)sqlite3_changes64(run->c->db);
    buf_clear(b);
    return code;
}

enum err_code merge_stage(struct lite_run *run)
{
    struct conn *c = run->c;
    struct buf sql;
    buf_init(&sql);
    buf_adds(&sql, "CREATE TEMP TABLE _chute_stage(");
    for (size_t i = 0; i < run->dest.count; i++) {
        const struct lite_column *column = &run->dest.items[i];
        buf_printf(&sql, "%sc%zu %s%s%s", i > 0 ? ", " : "", i, column->decl,
                   column->collation != NULL ? " COLLATE " : "", column->collation != NULL ? column->collation : "");
    }
    buf_addc(&sql, ')');
    enum err_code code = sql.failed ? err_nomem(run->err) : ERR_NONE;
    if (code == ERR_NONE && c->stage.size > 0 && strcmp(c->stage.data, sql.data) == 0) {
        buf_done(&sql);
        return conn_exec(c, run->err, "DELETE FROM temp._chute_stage"); /* many files in a row look alike */
    }
    buf_clear(&c->stage);
    if (code == ERR_NONE)
        code = conn_exec(c, run->err, "DROP TABLE IF EXISTS temp._chute_stage");
    if (code == ERR_NONE)
        code = conn_exec(c, run->err, sql.data);
    if (code == ERR_NONE)
        buf_adds(&c->stage, sql.data);
    buf_done(&sql);
    return code;
}

/* Put the row ids that win within the file into temp._chute_win. */
static enum err_code choose(struct lite_run *run, const char *schema, const char *stage, uint64_t *ret_winners)
{
    enum load_mode mode = run->plan->mode;
    struct buf b;
    enum err_code code = conn_exec(run->c, run->err,
                                   "CREATE TEMP TABLE IF NOT EXISTS _chute_win(id INTEGER PRIMARY KEY);"
                                   "DELETE FROM temp._chute_win");
    if (code != ERR_NONE)
        return code;
    buf_init(&b);
    buf_adds(&b, "INSERT INTO temp._chute_win ");
    bool has_order = mode == MODE_NEWEST || (mode == MODE_KEEP_FIRST && run->order_count > 0);
    if (!has_order) {
        buf_printf(&b, "SELECT %s(s.rowid) FROM ", mode == MODE_UPSERT ? "max" : "min");
        add_stage_name(&b, schema, stage);
        buf_adds(&b, " s GROUP BY ");
        add_list(&b, run, SIDE_STAGE, run->keys, run->key_count, ", ");
    } else {
        buf_adds(&b, "SELECT id FROM (SELECT s.rowid AS id, row_number() OVER (PARTITION BY ");
        add_list(&b, run, SIDE_STAGE, run->keys, run->key_count, ", ");
        buf_adds(&b, " ORDER BY ");
        add_rank_call(&b, run, SIDE_STAGE);
        buf_adds(&b, mode == MODE_NEWEST ? " DESC, " : ", ");
        add_row(&b, run, SIDE_STAGE);
        buf_adds(&b, " DESC) AS place FROM ");
        add_stage_name(&b, schema, stage);
        buf_adds(&b, " s) WHERE place = 1");
    }
    code = run_sql(run, &b, "choose among rows with the same key", ret_winners);
    buf_done(&b);
    return code;
}

/* How many of the winners have a row in the table already. */
static enum err_code count_known(struct lite_run *run, const char *schema, const char *stage, uint64_t *ret)
{
    struct buf b;
    int64_t known = 0;
    buf_init(&b);
    buf_adds(&b, "SELECT count(*) FROM ");
    add_stage_name(&b, schema, stage);
    buf_adds(&b, " s WHERE s.rowid IN (SELECT id FROM temp._chute_win) AND EXISTS (SELECT 1 FROM main.");
    sql_name(&b, run->table.name);
    buf_adds(&b, " AS _chute_t WHERE ");
    for (size_t i = 0; i < run->key_count; i++) {
        size_t at = find_dest(run, run->keys[i]);
        buf_adds(&b, i > 0 ? " AND " : "");
        add_column(&b, run, SIDE_TABLE, at);
        buf_adds(&b, " = ");
        add_column(&b, run, SIDE_STAGE, at);
    }
    buf_addc(&b, ')');
    sqlite3_stmt *stmt;
    enum err_code code = b.failed ? err_nomem(run->err) : conn_prepare(run->c, b.data, &stmt, run->err);
    if (code == ERR_NONE) {
        int rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW)
            known = sqlite3_column_int64(stmt, 0);
        else
            code = conn_err(run->c, rc, run->err, "count known keys");
        sqlite3_reset(stmt);
    }
    buf_done(&b);
    *ret = (uint64_t)known;
    return code;
}

/* When does the newcomer win? */
static void add_condition(struct buf *b, const struct lite_run *run)
{
    if (run->plan->mode == MODE_UPSERT) {
        add_row(b, run, SIDE_NEW);
        buf_adds(b, " <> ");
        add_row(b, run, SIDE_TABLE);
        return;
    }
    const char *sign = run->plan->mode == MODE_NEWEST ? " > " : " < ";
    add_rank_call(b, run, SIDE_NEW);
    buf_adds(b, sign);
    add_rank_call(b, run, SIDE_TABLE);
    buf_adds(b, " OR (");
    add_rank_call(b, run, SIDE_NEW);
    buf_adds(b, " = ");
    add_rank_call(b, run, SIDE_TABLE);
    buf_adds(b, " AND ");
    add_row(b, run, SIDE_NEW);
    buf_adds(b, " > ");
    add_row(b, run, SIDE_TABLE);
    buf_addc(b, ')');
}

static void add_conflict(struct buf *b, const struct lite_run *run)
{
    bool is_first = true;
    buf_adds(b, " ON CONFLICT(");
    for (size_t i = 0; i < run->key_count; i++) {
        buf_adds(b, i > 0 ? ", " : "");
        sql_name(b, run->keys[i]);
    }
    if (run->plan->mode == MODE_KEEP_FIRST && run->order_count == 0) {
        buf_adds(b, ") DO NOTHING");
        return;
    }
    struct buf set;
    buf_init(&set);
    for (size_t i = 0; i < run->dest.count; i++) {
        if (run->dest.items[i].is_key || is_left_alone(run, i))
            continue;
        buf_adds(&set, is_first ? "" : ", ");
        is_first = false;
        sql_name(&set, run->dest.items[i].name);
        buf_addc(&set, '=');
        add_column(&set, run, SIDE_NEW, i);
    }
    if (is_first) {
        buf_adds(b, ") DO NOTHING"); /* nothing but the key: equal rows */
    } else {
        buf_printf(b, ") DO UPDATE SET %s WHERE ", set.data);
        add_condition(b, run);
    }
    b->failed = b->failed || set.failed;
    buf_done(&set);
}

static void add_insert(struct buf *b, const struct lite_run *run, const char *schema, const char *stage)
{
    bool is_first = true;
    buf_adds(b, "INSERT INTO main.");
    sql_name(b, run->table.name);
    buf_adds(b, " AS _chute_t");
    for (size_t i = 0; i < run->dest.count; i++) {
        if (run->dest.items[i].from == FROM_NOWHERE)
            continue;
        buf_adds(b, is_first ? "(" : ", ");
        is_first = false;
        sql_name(b, run->dest.items[i].name);
    }
    is_first = true;
    buf_adds(b, ") SELECT ");
    for (size_t i = 0; i < run->dest.count; i++) {
        if (run->dest.items[i].from == FROM_NOWHERE)
            continue;
        buf_adds(b, is_first ? "" : ", ");
        is_first = false;
        add_column(b, run, SIDE_STAGE, i);
    }
    buf_adds(b, " FROM ");
    add_stage_name(b, schema, stage);
    buf_adds(b, " s");
}

void merge_conflict(struct buf *b, const struct lite_run *run)
{
    if (run->plan->mode != MODE_REPLACE && run->plan->mode != MODE_APPEND)
        add_conflict(b, run);
}

enum err_code merge_apply(struct lite_run *run, const char *schema, const char *stage)
{
    struct buf b;
    uint64_t winners = 0, known = 0, changed = 0;
    enum err_code code = ERR_NONE;
    buf_init(&b);
    add_insert(&b, run, schema, stage);
    if (run->plan->mode == MODE_REPLACE || run->plan->mode == MODE_APPEND) {
        buf_adds(&b, " ORDER BY s.rowid");
        code = run_sql(run, &b, "insert", &changed);
        run->inserted = changed;
    } else {
        code = choose(run, schema, stage, &winners);
        if (code == ERR_NONE)
            code = count_known(run, schema, stage, &known);
        buf_adds(&b, " WHERE s.rowid IN (SELECT id FROM temp._chute_win) ORDER BY s.rowid");
        add_conflict(&b, run);
        if (code == ERR_NONE)
            code = run_sql(run, &b, "insert or update", &changed);
        run->inserted = winners - known;
        run->updated = changed - run->inserted;
    }
    buf_done(&b);
    if (code != ERR_NONE)
        return err_wrap(run->err, "table %s", run->table.name);
    run->unchanged = run->filled - run->inserted - run->updated;
    return ERR_NONE;
}
