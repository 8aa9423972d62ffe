/*
 * ledger_query.c -- which rows, how many, and counters.
 *
 * Rows are read in pages, and no statement runs while the caller's function does: it may write what it likes.
 */
#include "ledger_internal.h"

#include "buf.h"

#include <string.h>

#define PAGE 64
#define ENDED (STATE_BIT(STATE_SKIPPED) | STATE_BIT(STATE_QUARANTINED) | STATE_BIT(STATE_GONE))

/* Where the last page ended; which members count depends on the order. */
struct place {
    bool is_set;
    int64_t id;
    int64_t mtime_ns;
    const char *path;
};

enum order { BY_ID, BY_AGE, BY_PATH };

/* A query with its names looked up. */
struct plan {
    const struct ledger_query *q;
    enum order order;
    const char *index;
    int64_t source, flow, dest;
    bool is_empty; /* it names something that the ledger has never heard of */
    const char *below_first, *below_last;
};

static bool is_one_of(unsigned states, unsigned set)
{
    return states != 0 && (states & ~set) == 0;
}

/*
 * SQLite has no statistics here and guesses; we know. All of these give pages in the order of id without sorting more
 * than a handful of rows, or walk the table once over all pages.
 */
static const char *choose_index(const struct ledger_query *q, enum order order)
{
    if (order == BY_PATH)
        return "INDEXED BY file_name";
    if (q->path != NULL)
        return "INDEXED BY file_name";
    if (q->dest != NULL && q->table_key != NULL && q->table_key[0] != '\0')
        return "INDEXED BY file_table";
    if (q->inode != 0)
        return "INDEXED BY file_inode";
    if (q->drop_pending || q->finish_pending)
        return "INDEXED BY file_flagged";
    if (q->states == STATE_BIT(STATE_LOADING))
        return "INDEXED BY file_loading";
    if (is_one_of(q->states, ENDED) && (q->states & (q->states - 1)) == 0)
        return "INDEXED BY file_ended";
    return "NOT INDEXED";
}

static enum err_code look_up(struct ledger_tx *tx, const char *name, int64_t *ret, bool *ret_empty, struct err *err)
{
    if (name == NULL)
        return ERR_NONE;
    if (ledger_name_find(tx, name, ret, err) == ERR_NONE && *ret == 0)
        *ret_empty = true;
    return err->code;
}

static enum err_code make_plan(struct ledger_tx *tx, const struct ledger_query *q, struct arena *arena,
                               struct plan *ret, struct err *err)
{
    *ret = (struct plan){.q = q, .order = BY_ID};
    if (q->by_age)
        ret->order = BY_AGE;
    else if (q->below != NULL && q->path == NULL && q->source != NULL && q->limit == 0 && q->after_id == 0)
        ret->order = BY_PATH;
    ret->index = choose_index(q, ret->order);
    if (look_up(tx, q->source, &ret->source, &ret->is_empty, err) != ERR_NONE ||
        look_up(tx, q->flow, &ret->flow, &ret->is_empty, err) != ERR_NONE ||
        look_up(tx, q->dest, &ret->dest, &ret->is_empty, err) != ERR_NONE)
        return err->code;
    if (q->below == NULL)
        return ERR_NONE;
    ret->below_first = arena_printf(arena, "%s/", q->below);
    ret->below_last = arena_printf(arena, "%s0", q->below); /* '0' follows '/' */
    return ret->below_first == NULL || ret->below_last == NULL ? err_nomem(err) : ERR_NONE;
}

/*
 * Conditions as text; only numbers of ours are written into it, everything else is bound, always by the
 * same number (bind_where()); the highest one is in every text, so the others may be absent.
 */
static void add_where(struct buf *sql, const struct plan *p)
{
    const struct ledger_query *q = p->q;
    buf_adds(sql, "WHERE 1");
    if (q->source != NULL)
        buf_adds(sql, " AND f.source = ?1");
    else if (q->path != NULL)
        buf_adds(sql, " AND f.source IN (SELECT id FROM name)"); /* few: lets the index be used */
    if (q->flow != NULL)
        buf_adds(sql, " AND f.flow = ?2");
    if (q->dest != NULL)
        buf_adds(sql, " AND f.dest = ?3");
    if (q->path != NULL)
        buf_adds(sql, " AND f.path = ?4");
    if (q->below != NULL)
        buf_adds(sql, " AND f.path >= ?5 AND f.path < ?6");
    if (q->table_key != NULL)
        buf_adds(sql,
                 q->table_key[0] != '\0' ? " AND f.table_key = ?7 AND f.table_key <> ''" : " AND f.table_key = ?7");
    if (q->inode != 0)
        buf_adds(sql, " AND f.inode = ?8 AND f.dev = ?9 AND f.inode <> 0");
    if (q->states == STATE_BIT(STATE_LOADING))
        buf_adds(sql, " AND f.state = 3");
    else if (q->states != 0 && (q->states & (q->states - 1)) == 0)
        buf_printf(sql, " AND f.state = %d%s", __builtin_ctz(q->states),
                   is_one_of(q->states, ENDED) ? " AND f.state >= 6" : "");
    else if (q->states != 0)
        buf_printf(sql, " AND (%u >> f.state) & 1", q->states);
    if (q->drop_pending || q->finish_pending) {
        buf_adds(sql, " AND (f.flags & 10) <> 0");
        buf_printf(sql, " AND (f.flags & %d) = %d",
                   (q->drop_pending ? FLAG_DROP_PENDING : 0) | (q->finish_pending ? FLAG_FINISH_PENDING : 0),
                   (q->drop_pending ? FLAG_DROP_PENDING : 0) | (q->finish_pending ? FLAG_FINISH_PENDING : 0));
    }
    if (q->due_by_ms != 0)
        buf_adds(sql, " AND f.next_try_ms <= ?10");
}

static void bind_where(struct query *query, const struct plan *p)
{
    query_int(query, p->source);
    query_int(query, p->flow);
    query_int(query, p->dest);
    query_text(query, p->q->path);
    query_text(query, p->below_first);
    query_text(query, p->below_last);
    query_text(query, p->q->table_key);
    query_int(query, (int64_t)p->q->inode);
    query_int(query, (int64_t)p->q->dev);
    query_int(query, p->q->due_by_ms);
}

static void add_order(struct buf *sql, const struct plan *p, const struct place *after)
{
    switch (p->order) {
    case BY_ID:
        buf_adds(sql, " AND f.id > ?11 ORDER BY f.id LIMIT ?14");
        return;
    case BY_AGE:
        if (after->is_set)
            buf_adds(sql, " AND (f.mtime_ns, f.path, f.id) > (?12, ?13, ?11)");
        buf_adds(sql, " ORDER BY f.mtime_ns, f.path, f.id LIMIT ?14");
        return;
    case BY_PATH: /* (path, flow) is the order of file_name; one path has a row in few flows */
        if (after->is_set)
            buf_adds(sql, " AND (f.path, f.flow) > (?13, ?11)");
        buf_adds(sql, " ORDER BY f.path, f.flow LIMIT ?14");
        return;
    }
}

static enum err_code begin_page(struct query *query, struct ledger_tx *tx, const struct plan *p,
                                const struct place *after, size_t limit, struct err *err)
{
    struct buf sql;
    buf_init(&sql);
    buf_printf(&sql, "SELECT " LEDGER_ROW_COLUMNS ", f.flow " LEDGER_ROW_FROM("%s"), p->index);
    add_where(&sql, p);
    add_order(&sql, p, after);
    if (sql.failed)
        err_nomem(err);
    else
        query_begin_text(query, tx, sql.data, err);
    buf_done(&sql);
    if (err->code != ERR_NONE)
        return err->code;
    bind_where(query, p);
    query->at = 10;
    query_int(query, after->id);
    query_int(query, after->mtime_ns);
    query_text(query, after->path);
    query_int(query, (int64_t)limit);
    return ERR_NONE;
}

/* *RET_SEEN: rows met, also senseless ones; PLACE moves on. Its path lives in ARENA. */
static enum err_code read_page(struct ledger_tx *tx, const struct plan *p, struct place *place, size_t limit,
                               struct arena *arena, struct ledger_row **ret, size_t *ret_count, size_t *ret_seen,
                               struct err *err)
{
    struct query query;
    bool has_row;
    *ret_count = 0;
    *ret_seen = 0;
    if (begin_page(&query, tx, p, place, limit, err) != ERR_NONE)
        return err->code;
    for (;;) {
        if (query_step(&query, &has_row, err) != ERR_NONE || !has_row)
            return err->code;
        (*ret_seen)++;
        struct ledger_row *row;
        place->is_set = true;
        place->id = column_int(query.stmt, p->order == BY_PATH ? 29 : 0);
        place->mtime_ns = column_int(query.stmt, 9);
        if (p->order != BY_ID && *ret_seen == limit &&
            (place->path = arena_strdup(arena, column_text(query.stmt, 2))) == NULL)
            err_nomem(err);
        if (err->code != ERR_NONE || ledger_row_read(query.stmt, arena, &row, err) != ERR_NONE) {
            query_end(&query);
            return err->code;
        }
        if (row != NULL)
            ret[(*ret_count)++] = row;
    }
}

static enum err_code each_page(struct ledger_tx *tx, const struct plan *p, ledger_row_cb *cb, void *arg,
                               struct err *err)
{
    struct place place = {.id = p->q->after_id};
    size_t given = 0;
    size_t seen;
    size_t limit;
    bool goes_on = true;
    struct arena arenas[2]; /* the place's path lives in the page before */
    size_t turn = 0;
    if (p->order != BY_ID)
        place.id = 0;
    arena_init(&arenas[0]);
    arena_init(&arenas[1]);
    do {
        struct ledger_row *page[PAGE];
        size_t count;
        struct arena *arena = &arenas[turn++ % 2];
        arena_done(arena);
        arena_init(arena);
        limit = p->q->limit != 0 && p->q->limit - given < PAGE ? p->q->limit - given : PAGE;
        read_page(tx, p, &place, limit, arena, page, &count, &seen, err);
        for (size_t i = 0; i < count && goes_on && err->code == ERR_NONE; i++) {
            given++;
            goes_on = cb(arg, page[i]);
        }
    } while (goes_on && err->code == ERR_NONE && seen == limit && (p->q->limit == 0 || given < p->q->limit));
    arena_done(&arenas[0]);
    arena_done(&arenas[1]);
    return err->code;
}

enum err_code ledger_each(struct ledger_tx *tx, const struct ledger_query *q, ledger_row_cb *cb, void *arg,
                          struct err *err)
{
    struct plan plan;
    struct arena arena;
    err_clear(err);
    arena_init(&arena);
    if (make_plan(tx, q, &arena, &plan, err) == ERR_NONE && !plan.is_empty)
        each_page(tx, &plan, cb, arg, err);
    arena_done(&arena);
    return err->code;
}

/* ---- counting ---- */

/* Only flow and states: the tally knows. */
static bool tally_knows(const struct ledger_query *q)
{
    return q->source == NULL && q->dest == NULL && q->path == NULL && q->below == NULL && q->table_key == NULL &&
           q->inode == 0 && !q->drop_pending && !q->finish_pending && q->due_by_ms == 0 && q->after_id == 0;
}

static enum err_code begin_count(struct query *query, struct ledger_tx *tx, const struct plan *p, struct err *err)
{
    if (tally_knows(p->q)) {
        if (ledger_tally_flush(tx, err) != ERR_NONE)
            return err->code;
        if (query_begin(query, tx,
                        "SELECT coalesce(sum(n), 0) FROM tally WHERE (?1 = 0 OR flow = ?1) "
                        "AND (?2 = 0 OR (?2 >> state) & 1)",
                        err) != ERR_NONE)
            return err->code;
        query_int(query, p->flow);
        query_int(query, p->q->states);
        return ERR_NONE;
    }
    struct buf sql;
    buf_init(&sql);
    buf_printf(&sql, "SELECT count(*) FROM file f %s ", p->index);
    add_where(&sql, p);
    buf_adds(&sql, " AND f.id > ?11");
    if (sql.failed)
        err_nomem(err);
    else
        query_begin_text(query, tx, sql.data, err);
    buf_done(&sql);
    if (err->code != ERR_NONE)
        return err->code;
    bind_where(query, p);
    query_int(query, p->q->after_id);
    return ERR_NONE;
}

enum err_code ledger_count(struct ledger_tx *tx, const struct ledger_query *q, uint64_t *ret, struct err *err)
{
    struct plan plan;
    struct arena arena;
    struct query query;
    bool has_row;
    err_clear(err);
    *ret = 0;
    arena_init(&arena);
    if (make_plan(tx, q, &arena, &plan, err) == ERR_NONE && !plan.is_empty &&
        begin_count(&query, tx, &plan, err) == ERR_NONE && query_step(&query, &has_row, err) == ERR_NONE && has_row) {
        int64_t n = column_int(query.stmt, 0);
        query_end(&query);
        *ret = n > 0 ? (uint64_t)n : 0;
        if (q->limit != 0 && *ret > q->limit)
            *ret = q->limit;
    }
    arena_done(&arena);
    return err->code;
}

static enum err_code oldest_pending(struct ledger_tx *tx, int64_t flow, int64_t *ret, struct err *err)
{
    struct query q;
    bool has_row;
    if (query_begin(&q, tx,
                    "SELECT seen_ms FROM file INDEXED BY file_pending WHERE flow = ?1 AND state < 5 AND seen_ms > 0 "
                    "ORDER BY seen_ms LIMIT 1",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, flow);
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    *ret = column_int(q.stmt, 0);
    query_end(&q);
    return ERR_NONE;
}

#define COUNTERS_MAX 4096 /* flows; a configuration has a handful, a forged file may claim more */

enum err_code ledger_counters(struct ledger_tx *tx, struct arena *arena, struct ledger_counter **ret, size_t *ret_count,
                              struct err *err)
{
    struct query q;
    bool has_row;
    int64_t last_flow = 0;
    err_clear(err);
    *ret = NULL;
    *ret_count = 0;
    if (ledger_tally_flush(tx, err) != ERR_NONE ||
        query_begin(&q, tx, "SELECT count(DISTINCT flow) FROM tally", err) != ERR_NONE ||
        query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    int64_t flows = column_int(q.stmt, 0);
    query_end(&q);
    flows = flows < COUNTERS_MAX ? flows : COUNTERS_MAX;
    struct ledger_counter *counters = arena_alloc(arena, ((size_t)flows + 1) * sizeof(*counters));
    int64_t *ids = arena_alloc(arena, ((size_t)flows + 1) * sizeof(*ids));
    if (counters == NULL || ids == NULL)
        return err_nomem(err);
    size_t count = 0;
    if (query_begin(&q, tx,
                    "SELECT t.flow, w.text, t.state, t.n FROM tally t CROSS JOIN name w ON w.id = t.flow "
                    "WHERE t.state BETWEEN 0 AND 8 ORDER BY t.flow",
                    err) != ERR_NONE)
        return err->code;
    while (query_step(&q, &has_row, err) == ERR_NONE && has_row) {
        int64_t flow = column_int(q.stmt, 0);
        if (count == 0 || flow != last_flow) {
            if (count == (size_t)flows) {
                query_end(&q);
                break;
            }
            ids[count] = last_flow = flow;
            if ((counters[count++].flow = arena_strdup(arena, column_text(q.stmt, 1))) == NULL ||
                column_failed(q.stmt)) {
                query_end(&q);
                return err_nomem(err);
            }
        }
        int64_t n = column_int(q.stmt, 3);
        counters[count - 1].files[column_int(q.stmt, 2)] = n > 0 ? (uint64_t)n : 0;
    }
    for (size_t i = 0; i < count && err->code == ERR_NONE; i++)
        oldest_pending(tx, ids[i], &counters[i].oldest_pending_ms, err);
    *ret = counters;
    *ret_count = err->code == ERR_NONE ? count : 0;
    return err->code;
}
