/*
 * postgres_merge.c -- rows that meet rows with the same key.
 *
 * Rows wait in a temporary table. Of those with one key one wins, then the winners meet the table in one INSERT … ON
 * CONFLICT. Who wins depends on the rows alone and never on when they came: by order_by (NULL lowest, texts by their
 * bytes), and a full tie by the greater row in canonical text form.
 */
#include "postgres_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FEW_ROWS                                                                                                       \
    20000 /* a sort of so many costs nothing; of more it is left out where there is nothing to sort out                \
           */

struct merge {
    struct pgd_walker *w;
    struct pgd_target *t;
    bool with_load;
    bool chooses;    /* one row of each key is chosen first */
    bool is_counted; /* by the server's own counters */
};

static void add_column(struct buf *b, const char *side, const char *name)
{
    buf_printf(b, "%s.", side);
    pg_add_name(b, name);
}

static bool is_filled(const struct pgd_column *c)
{
    return c->from != PGD_FROM_NOWHERE;
}

/* What an update touches: what the file brings, and what it lacks where an insert would leave nothing either. */
static bool is_set(const struct pgd_column *c)
{
    return !c->is_key && (is_filled(c) || !c->has_default);
}

/* The canonical text of a row: NULL below everything, then the bytes. */
static void add_row(struct buf *b, const struct pgd_target *t, const char *side)
{
    bool is_first = true;
    buf_adds(b, "ARRAY[");
    for (size_t i = 0; i < t->dest.count; i++) {
        if (!is_filled(&t->dest.items[i]))
            continue;
        buf_adds(b, is_first ? "coalesce('=' || " : ", coalesce('=' || ");
        is_first = false;
        add_column(b, side, t->dest.items[i].name);
        buf_adds(b, "::text, '')");
    }
    buf_adds(b, "]::text[] COLLATE \"C\"");
}

static bool is_text_column(const struct pgd_target *t, const char *name)
{
    const struct pgd_column *c = pgd_find_column(&t->dest, name);
    return c == NULL || c->is_text;
}

static void add_order_value(struct buf *b, const struct pgd_target *t, const char *side, const char *name)
{
    add_column(b, side, name);
    if (is_text_column(t, name))
        buf_adds(b, "::text COLLATE \"C\"");
}

static void add_order_by(struct buf *b, const struct merge *m)
{
    const struct pgd_target *t = m->t;
    enum load_mode mode = t->plan->mode;
    buf_adds(b, " ORDER BY ");
    for (size_t i = 0; i < t->key_count; i++) {
        add_column(b, "s", t->keys[i]);
        buf_adds(b, ", ");
    }
    bool is_ranked = mode == MODE_NEWEST || (mode == MODE_KEEP_FIRST && t->order_count > 0);
    for (size_t i = 0; is_ranked && i < t->order_count; i++) {
        add_order_value(b, t, "s", t->orders[i]);
        buf_adds(b, mode == MODE_NEWEST ? " DESC NULLS LAST, " : " ASC NULLS FIRST, ");
    }
    if (is_ranked) {
        add_row(b, t, "s");
        buf_adds(b, " DESC, ");
    }
    buf_adds(b, mode == MODE_UPSERT ? "s.ctid DESC" : "s.ctid"); /* rows lie in the order in which they came */
}

/* The rows that meet the table. */
static void add_source(struct buf *b, const struct merge *m)
{
    const struct pgd_target *t = m->t;
    bool is_first = true;
    buf_adds(b, "SELECT ");
    if (m->chooses) {
        buf_adds(b, "DISTINCT ON (");
        pgd_add_names(b, "s.", t->keys, t->key_count);
        buf_adds(b, ") ");
    }
    if (m->with_load) {
        buf_adds(b, "s._chute_load");
        is_first = false;
    }
    for (size_t i = 0; i < t->dest.count; i++) {
        if (!is_filled(&t->dest.items[i]))
            continue;
        buf_adds(b, is_first ? "" : ", ");
        is_first = false;
        add_column(b, "s", t->dest.items[i].name);
    }
    buf_printf(b, " FROM pg_temp._chute_stage%u s", t->number);
    if (m->chooses)
        add_order_by(b, m);
}

/* A > B (or A < B) by the columns from AT on, NULL lowest, then by the greater row. */
static void add_wins(struct buf *b, const struct pgd_target *t, size_t at)
{
    if (at == t->order_count) {
        add_row(b, t, "excluded");
        buf_adds(b, " > ");
        add_row(b, t, "_chute_t");
        return;
    }
    bool newest = t->plan->mode == MODE_NEWEST;
    const char *winner = newest ? "excluded" : "_chute_t", *loser = newest ? "_chute_t" : "excluded";
    const char *name = t->orders[at];
    buf_addc(b, '(');
    add_column(b, winner, name);
    buf_adds(b, " IS NOT NULL AND (");
    add_column(b, loser, name);
    buf_adds(b, " IS NULL OR ");
    add_order_value(b, t, winner, name);
    buf_adds(b, " > ");
    add_order_value(b, t, loser, name);
    buf_adds(b, ")) OR (");
    add_column(b, "excluded", name);
    buf_adds(b, " IS NOT DISTINCT FROM ");
    add_column(b, "_chute_t", name);
    buf_adds(b, " AND (");
    add_wins(b, t, at + 1);
    buf_adds(b, "))");
}

static void add_differs(struct buf *b, const struct pgd_target *t)
{
    bool is_first = true;
    for (size_t i = 0; i < t->dest.count; i++) {
        const struct pgd_column *c = &t->dest.items[i];
        const char *cast = c->is_exact ? "" : "::text"; /* 1.0 and 1.00 are equal, and not the same */
        if (!is_set(c))
            continue;
        buf_adds(b, is_first ? "" : " OR ");
        is_first = false;
        add_column(b, "excluded", c->name);
        buf_printf(b, "%s IS DISTINCT FROM ", cast);
        add_column(b, "_chute_t", c->name);
        buf_adds(b, cast);
    }
}

static void add_conflict(struct buf *b, const struct merge *m)
{
    const struct pgd_target *t = m->t;
    bool is_first = true;
    buf_adds(b, " ON CONFLICT (");
    pgd_add_names(b, "", t->keys, t->key_count);
    buf_addc(b, ')');
    if (t->plan->mode == MODE_KEEP_FIRST && t->order_count == 0) {
        buf_adds(b, " DO NOTHING");
        return;
    }
    for (size_t i = 0; i < t->dest.count; i++) {
        if (!is_set(&t->dest.items[i]))
            continue;
        buf_adds(b, is_first ? " DO UPDATE SET " : ", ");
        is_first = false;
        pg_add_name(b, t->dest.items[i].name);
        buf_adds(b, " = ");
        add_column(b, "excluded", t->dest.items[i].name);
    }
    if (is_first) {
        buf_adds(b, " DO NOTHING"); /* nothing but the key: equal rows */
        return;
    }
    buf_adds(b, " WHERE ");
    if (t->plan->mode == MODE_UPSERT)
        add_differs(b, t);
    else
        add_wins(b, t, 0);
}

static void add_insert(struct buf *b, const struct merge *m)
{
    const struct pgd_target *t = m->t;
    bool is_first = true;
    buf_adds(b, "INSERT INTO ");
    pgd_add_table(b, t->space, t->table);
    buf_adds(b, " AS _chute_t (");
    for (size_t i = 0; i < t->dest.count; i++) {
        if (!is_filled(&t->dest.items[i]))
            continue;
        buf_adds(b, is_first ? "" : ", ");
        is_first = false;
        pg_add_name(b, t->dest.items[i].name);
    }
    buf_adds(b, ") SELECT ");
    is_first = true;
    for (size_t i = 0; i < t->dest.count; i++) {
        if (!is_filled(&t->dest.items[i]))
            continue;
        buf_adds(b, is_first ? "" : ", ");
        is_first = false;
        add_column(b, "_chute_s", t->dest.items[i].name);
    }
    if (m->is_counted) {
        buf_adds(b, " FROM (");
        add_source(b, m);
        buf_adds(b, ") _chute_s");
        add_conflict(b, m);
        return;
    }
    buf_adds(b, " FROM _chute_s");
    add_conflict(b, m);
    /* A row that this statement inserted was never locked or deleted by anybody: the others got our own mark. */
    buf_adds(b, " RETURNING ");
    if (m->with_load) {
        for (size_t i = 0; i < t->key_count; i++) {
            add_column(b, "_chute_t", t->keys[i]);
            buf_printf(b, " AS _chute_k%zu, ", i);
        }
    }
    if (t->have.kind != 'p') {
        buf_adds(b, "(_chute_t.xmax = 0) AS _chute_fresh");
        return;
    }
    /* A partitioned table has no such mark; a look at it shows what was there before this statement. */
    buf_adds(b, "NOT EXISTS (SELECT 1 FROM ");
    pgd_add_table(b, t->space, t->table);
    buf_adds(b, " _chute_o WHERE ");
    for (size_t i = 0; i < t->key_count; i++) {
        buf_adds(b, i > 0 ? " AND " : "");
        add_column(b, "_chute_o", t->keys[i]);
        buf_adds(b, " = ");
        add_column(b, "_chute_t", t->keys[i]);
    }
    buf_adds(b, ") AS _chute_fresh");
}

static void add_statement(struct buf *b, const struct merge *m)
{
    buf_printf(b, "WITH _chute_s AS %s(", m->with_load ? "MATERIALIZED " : "NOT MATERIALIZED ");
    add_source(b, m);
    buf_adds(b, "), _chute_w AS (");
    add_insert(b, m);
    buf_printf(b,
               ") SELECT %s, count(*) FILTER (WHERE w._chute_fresh), count(*) FILTER (WHERE NOT w._chute_fresh)"
               " FROM _chute_w w",
               m->with_load ? "s._chute_load" : "0");
    if (!m->with_load)
        return;
    buf_adds(b, " JOIN _chute_s s ON ");
    for (size_t i = 0; i < m->t->key_count; i++) {
        buf_adds(b, i > 0 ? " AND " : "");
        add_column(b, "s", m->t->keys[i]);
        buf_printf(b, " = w._chute_k%zu", i);
    }
    buf_adds(b, " GROUP BY 1");
}

static enum err_code run(struct merge *m, struct pgd_results *r)
{
    struct buf sql;
    buf_init(&sql);
    add_statement(&sql, m);
    enum err_code code = pgd_ask_long(m->w, &sql, r, "");
    buf_done(&sql);
    return code;
}

/* How many rows this transaction has inserted into the table and updated in it, by the server's own counters. */
static void add_counters(struct buf *b, const struct pgd_target *t)
{
    struct buf name;
    static const char *const counters[] = {"inserted", "updated"};
    buf_init(&name);
    pgd_add_table(&name, t->space, t->table);
    for (size_t i = 0; i < 2; i++) {
        buf_printf(b, "%spg_catalog.pg_stat_get_xact_tuples_%s(", i > 0 ? ", " : "SELECT ", counters[i]);
        pg_add_text(b, name.data);
        buf_adds(b, "::pg_catalog.regclass)");
    }
    b->failed = b->failed || name.failed;
    buf_done(&name);
}

static uint64_t grown(const struct pgd_results *r, size_t column)
{
    const char *before = pgd_cell(&r->items[0], 0, column), *after = pgd_cell(&r->items[2], 0, column);
    return before != NULL && after != NULL ? strtoull(after, NULL, 10) - strtoull(before, NULL, 10) : 0;
}

/*
 * As the statement that a person would write; to hand out a mark for every row takes the server a third longer.
 * *RET_KNOWN false: the counters don't agree with what it says (they are off, or a trigger writes to the table too).
 */
static enum err_code run_counted(struct merge *m, struct pgd_counts *ret, bool *ret_known)
{
    struct pgd_results r;
    struct buf sql;
    buf_init(&sql);
    m->is_counted = true;
    add_counters(&sql, m->t);
    buf_addc(&sql, ';');
    add_insert(&sql, m);
    buf_addc(&sql, ';');
    add_counters(&sql, m->t);
    enum err_code code = pgd_ask_long(m->w, &sql, &r, "");
    m->is_counted = false;
    *ret_known = false;
    if (code == ERR_NONE && r.count == 3) {
        ret->inserted = grown(&r, 0);
        ret->updated = grown(&r, 1);
        *ret_known = ret->inserted + ret->updated == r.items[1].affected;
    }
    buf_done(&sql);
    return code;
}

static enum err_code say(struct merge *m, const char *words)
{
    struct buf sql;
    buf_init(&sql);
    buf_adds(&sql, words);
    enum err_code code = pgd_ask(m->w, &sql, NULL, "");
    buf_done(&sql);
    return code;
}

/*
 * Many rows: without choosing first. PostgreSQL itself sees when a row would meet one that this statement has written
 * (cardinality_violation), and only then the work of choosing has to be done. What it lets pass is right: the first of
 * two equal keys changed nothing, and the second is compared with the same row of the table.
 */
static enum err_code run_many(struct merge *m, struct pgd_counts *ret, bool *ret_known)
{
    m->chooses = false;
    enum err_code code = say(m, "SAVEPOINT chute_merge");
    if (code == ERR_NONE)
        code = run_counted(m, ret, ret_known);
    if (code != ERR_NONE && strcmp(pgd_line_fault(m->w->line)->sqlstate, "21000") == 0) {
        m->chooses = true;
        code = say(m, "ROLLBACK TO chute_merge");
        if (code == ERR_NONE)
            code = run_counted(m, ret, ret_known);
    }
    return code == ERR_NONE && !*ret_known ? say(m, "ROLLBACK TO chute_merge") : code;
}

enum err_code pgd_merge(struct pgd_walker *w, struct pgd_target *t, uint64_t rows, bool with_load, size_t loads,
                        struct pgd_counts *ret)
{
    struct merge m = {.w = w, .t = t, .with_load = with_load, .chooses = true};
    struct pgd_results r;
    bool is_known = false;
    enum err_code code = rows > FEW_ROWS && !with_load ? run_many(&m, &ret[0], &is_known) : ERR_NONE;
    if (code == ERR_NONE && is_known)
        return ERR_NONE;
    if (code == ERR_NONE) {
        ret[0] = (struct pgd_counts){0};
        code = run(&m, &r);
    }
    if (code != ERR_NONE)
        return err_wrap(w->err, "merge into table %s.%s", t->space, t->table);
    for (size_t i = 0; r.count > 0 && i < r.items[r.count - 1].rows; i++) {
        const struct pgd_result *last = &r.items[r.count - 1];
        size_t load = strtoull(pgd_cell(last, i, 0), NULL, 10);
        if (load >= loads)
            continue;
        ret[load].inserted = strtoull(pgd_cell(last, i, 1), NULL, 10);
        ret[load].updated = strtoull(pgd_cell(last, i, 2), NULL, 10);
    }
    return ERR_NONE;
}
