/*
 * ledger_claim.c -- what to load next.
 *
 * Rows that may go at once are in the index file_due (by destination, flow, mtime, path), rows that wait for a time in
 * file_later (by destination, flow, time): a claim walks the first in order and the due part of the second, flow by
 * flow, and never meets rows of held flows or rows that must wait, however many there are.
 */
#include "ledger_internal.h"

#include "clock.h"

#include <stdlib.h>
#include <string.h>

/* With busy_tables: so many rows of busy tables are looked at per flow before we wait for those tables to be free. */
#define BUSY_WINDOW 1024

struct candidate {
    int64_t id;
    int64_t flow;
    int64_t mtime_ns;
    int state;
    uint64_t size;
    const char *path;
    const char *table_key;
};

struct claim {
    struct ledger_tx *tx;
    int64_t dest;
    int64_t now_ms;
    size_t limit;
    const char *const *busy_tables; /* NULL: a table may be claimed any number of times */
    struct arena arena;             /* paths of candidates, for the time of the call */
    struct candidate *best;         /* at most LIMIT, oldest first */
    size_t count;
    size_t capacity;
};

static int older(const struct candidate *a, const struct candidate *b)
{
    if (a->mtime_ns != b->mtime_ns)
        return a->mtime_ns < b->mtime_ns ? -1 : 1;
    int d = strcmp(a->path, b->path);
    return d != 0 ? d : (a->id > b->id) - (a->id < b->id);
}

static enum err_code table_is_loading(struct claim *c, const char *table_key, bool *ret, struct err *err)
{
    struct query q;
    if (query_begin(
            &q, c->tx,
            "SELECT 1 FROM file INDEXED BY file_loading WHERE state = 3 AND dest = ?1 AND table_key = ?2 LIMIT 1",
            err) != ERR_NONE)
        return err->code;
    query_int(&q, c->dest);
    query_text(&q, table_key);
    if (query_step(&q, ret, err) == ERR_NONE)
        query_end(&q);
    return err->code;
}

static bool is_busy_table(const struct claim *c, const char *table_key)
{
    size_t i = 0;
    while (c->busy_tables[i] != NULL && strcmp(c->busy_tables[i], table_key) != 0)
        i++;
    return c->busy_tables[i] != NULL;
}

static struct candidate *same_table(struct claim *c, const char *table_key)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->best[i].table_key, table_key) == 0)
            return &c->best[i];
    return NULL;
}

static void remove_candidate(struct claim *c, struct candidate *at)
{
    size_t i = (size_t)(at - c->best);
    memmove(at, at + 1, (c->count - i - 1) * sizeof(*at));
    c->count--;
}

static enum err_code make_room(struct claim *c, struct err *err)
{
    if (c->count < c->capacity)
        return ERR_NONE;
    size_t capacity = c->capacity == 0 ? 16 : c->capacity * 2;
    struct candidate *best = realloc(c->best, (capacity + 1) * sizeof(*best));
    if (best == NULL)
        return err_nomem(err);
    c->best = best;
    c->capacity = capacity;
    return ERR_NONE;
}

/*
 * Put CAND where it belongs. *RET_WORSE: the list is full of older ones, and so is everything that comes after CAND in
 * order. *RET_BUSY: its table has an older candidate or is loading.
 */
static enum err_code offer(struct claim *c, struct candidate cand, bool *ret_worse, bool *ret_busy, struct err *err)
{
    *ret_worse = *ret_busy = false;
    if (c->count == c->limit && older(&cand, &c->best[c->count - 1]) > 0) {
        *ret_worse = true;
        return ERR_NONE;
    }
    if (c->busy_tables != NULL && cand.table_key[0] != '\0') {
        struct candidate *other = same_table(c, cand.table_key);
        if (other != NULL && older(other, &cand) < 0)
            *ret_busy = true;
        else if (other != NULL)
            remove_candidate(c, other);
        else if (is_busy_table(c, cand.table_key))
            *ret_busy = true;
        else if (table_is_loading(c, cand.table_key, ret_busy, err) != ERR_NONE)
            return err->code;
        if (*ret_busy)
            return ERR_NONE;
    }
    if (make_room(c, err) != ERR_NONE)
        return err->code;
    cand.path = arena_strdup(&c->arena, cand.path);
    cand.table_key = arena_strdup(&c->arena, cand.table_key);
    if (cand.path == NULL || cand.table_key == NULL)
        return err_nomem(err);
    size_t at = c->count;
    while (at > 0 && older(&cand, &c->best[at - 1]) < 0)
        at--;
    memmove(&c->best[at + 1], &c->best[at], (c->count - at) * sizeof(cand));
    c->best[at] = cand;
    if (c->count < c->limit)
        c->count++;
    return ERR_NONE;
}

#define CANDIDATE_COLUMNS "SELECT id, mtime_ns, state, size, path, table_key FROM file "

static enum err_code scan_flow(struct claim *c, int64_t flow, bool later, struct err *err)
{
    struct query q;
    bool has_row;
    size_t busy_count = 0;
    const char *sql = later ? CANDIDATE_COLUMNS "INDEXED BY file_later WHERE dest = ?1 AND flow = ?2 AND "
                                                "next_try_ms <= ?3 AND next_try_ms > 0 AND state IN (1, 2, 4)"
                            : CANDIDATE_COLUMNS "INDEXED BY file_due WHERE dest = ?1 AND flow = ?2 AND ?3 IS NOT NULL "
                                                "AND next_try_ms <= 0 AND state IN (2, 4) ORDER BY mtime_ns, path";
    if (query_begin(&q, c->tx, sql, err) != ERR_NONE)
        return err->code;
    query_int(&q, c->dest);
    query_int(&q, flow);
    query_int(&q, c->now_ms);
    for (;;) {
        if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
            return err->code;
        bool is_worse;
        bool is_busy;
        struct candidate cand = {
            .id = column_int(q.stmt, 0),
            .flow = flow,
            .mtime_ns = column_int(q.stmt, 1),
            .state = (int)column_int(q.stmt, 2),
            .size = (uint64_t)column_int(q.stmt, 3),
            .path = column_text(q.stmt, 4),
            .table_key = column_text(q.stmt, 5),
        };
        if (column_failed(q.stmt)) {
            query_end(&q);
            return err_nomem(err);
        }
        offer(c, cand, &is_worse, &is_busy, err);
        busy_count += is_busy;
        /* file_later is in order of time, not of age: all of its due rows are looked at. */
        if (err->code != ERR_NONE || (!later && (is_worse || busy_count >= BUSY_WINDOW))) {
            query_end(&q);
            return err->code;
        }
    }
}

/* The next flow after *FLOW that has rows of DEST in one of the two indexes; *FLOW 0: no more. */
static enum err_code next_flow(struct ledger_tx *tx, int64_t dest, bool later, int64_t *flow, struct err *err)
{
    struct query q;
    bool has_row;
    const char *sql = later ? "SELECT flow FROM file INDEXED BY file_later WHERE dest = ?1 AND flow > ?2 AND "
                              "next_try_ms > 0 AND state IN (1, 2, 4) ORDER BY flow LIMIT 1"
                            : "SELECT flow FROM file INDEXED BY file_due WHERE dest = ?1 AND flow > ?2 AND "
                              "next_try_ms <= 0 AND state IN (2, 4) ORDER BY flow LIMIT 1";
    if (query_begin(&q, tx, sql, err) != ERR_NONE)
        return err->code;
    query_int(&q, dest);
    query_int(&q, *flow);
    *flow = 0;
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    *flow = column_int(q.stmt, 0);
    query_end(&q);
    return ERR_NONE;
}

static enum err_code is_skipped(struct ledger_tx *tx, int64_t flow, const char *const *skip_flows, bool *ret,
                                struct err *err)
{
    *ret = false;
    for (size_t i = 0; skip_flows != NULL && skip_flows[i] != NULL && !*ret; i++) {
        int64_t id;
        if (ledger_name_find(tx, skip_flows[i], &id, err) != ERR_NONE)
            return err->code;
        *ret = id == flow;
    }
    return ERR_NONE;
}

static enum err_code collect(struct claim *c, const char *const *skip_flows, struct err *err)
{
    for (int later = 0; later < 2; later++) {
        int64_t flow = 0;
        for (;;) {
            bool skipped;
            if (next_flow(c->tx, c->dest, later, &flow, err) != ERR_NONE)
                return err->code;
            if (flow == 0)
                break;
            if (is_skipped(c->tx, flow, skip_flows, &skipped, err) != ERR_NONE ||
                (!skipped && scan_flow(c, flow, later, err) != ERR_NONE))
                return err->code;
        }
    }
    return ERR_NONE;
}

static enum err_code read_row(struct ledger_tx *tx, int64_t id, struct arena *arena, struct ledger_row **ret,
                              struct err *err)
{
    struct query q;
    bool has_row;
    *ret = NULL;
    if (query_begin(&q, tx, "SELECT " LEDGER_ROW_COLUMNS LEDGER_ROW_FROM("") "WHERE f.id = ?1", err) != ERR_NONE)
        return err->code;
    query_int(&q, id);
    if (query_step(&q, &has_row, err) != ERR_NONE || !has_row)
        return err->code;
    ledger_row_read(q.stmt, arena, ret, err);
    query_end(&q);
    return err->code;
}

static enum err_code take(struct claim *c, const struct candidate *cand, struct arena *arena, struct ledger_row **ret,
                          struct err *err)
{
    struct query q;
    if (read_row(c->tx, cand->id, arena, ret, err) != ERR_NONE)
        return err->code;
    if (*ret == NULL) /* senseless content: forget it, else it would be due for ever; a scan finds the file again */
        return ledger_delete(c->tx, cand->id, err);
    if (query_begin(&q, c->tx, "UPDATE file SET state = 3, since_ms = ?1 WHERE id = ?2", err) != ERR_NONE)
        return err->code;
    query_int(&q, c->now_ms);
    query_int(&q, cand->id);
    if (query_run(&q, err) != ERR_NONE || ledger_tally(c->tx, cand->flow, cand->state, -1, err) != ERR_NONE ||
        ledger_tally(c->tx, cand->flow, STATE_LOADING, 1, err) != ERR_NONE)
        return err->code;
    (*ret)->state =
        STATE_LOADING; /* since_ms stays that of the state it leaves: of the last failure, for one that is retried */
    return ERR_NONE;
}

enum err_code ledger_claim(struct ledger_tx *tx, const char *dest, int64_t now_ms, size_t limit, uint64_t max_bytes,
                           const char *const *busy_tables, const char *const *skip_flows, struct arena *arena,
                           struct ledger_row ***ret_rows, size_t *ret_count, struct err *err)
{
    struct claim c = {.tx = tx, .now_ms = now_ms, .limit = limit, .busy_tables = busy_tables};
    uint64_t bytes = 0;
    size_t count = 0;
    err_clear(err);
    *ret_rows = NULL;
    *ret_count = 0;
    if (limit == 0 || ledger_name_find(tx, dest, &c.dest, err) != ERR_NONE || c.dest == 0)
        return err->code;
    arena_init(&c.arena);
    struct ledger_row **rows = NULL;
    if (collect(&c, skip_flows, err) == ERR_NONE && c.count > 0 &&
        (rows = arena_alloc(arena, c.count * sizeof(struct ledger_row *))) == NULL)
        err_nomem(err);
    for (size_t i = 0; i < c.count && err->code == ERR_NONE; i++) {
        if (max_bytes != 0 && i > 0 && (c.best[i].size > max_bytes || bytes > max_bytes - c.best[i].size))
            break;
        bytes = bytes + c.best[i].size < bytes ? UINT64_MAX : bytes + c.best[i].size;
        struct ledger_row *row;
        if (take(&c, &c.best[i], arena, &row, err) == ERR_NONE && row != NULL)
            rows[count++] = row;
    }
    free(c.best);
    arena_done(&c.arena);
    if (err->code == ERR_NONE) {
        *ret_rows = rows;
        *ret_count = count;
    }
    return err->code;
}

enum err_code ledger_clamp_due(struct ledger_tx *tx, const char *dest, int64_t latest_ms, struct err *err)
{
    struct query q;
    int64_t dest_id;
    err_clear(err);
    if (ledger_name_find(tx, dest, &dest_id, err) != ERR_NONE || dest_id == 0)
        return err->code;
    if (query_begin(&q, tx,
                    "UPDATE file SET next_try_ms = ?2 WHERE dest = ?1 AND next_try_ms > ?2 AND state IN (1, 2, 4, 8)",
                    err) != ERR_NONE)
        return err->code;
    query_int(&q, dest_id);
    query_int(&q, latest_ms);
    return query_run(&q, err);
}

enum err_code ledger_next_due(struct ledger_tx *tx, const char *dest, const char *const *skip_flows, int64_t *ret_ms,
                              struct err *err)
{
    int64_t dest_id;
    err_clear(err);
    *ret_ms = INT64_MAX;
    if (ledger_name_find(tx, dest, &dest_id, err) != ERR_NONE || dest_id == 0)
        return err->code;
    for (int later = 0; later < 2; later++) {
        int64_t flow = 0;
        for (;;) {
            bool skipped;
            struct query q;
            if (next_flow(tx, dest_id, later, &flow, err) != ERR_NONE)
                return err->code;
            if (flow == 0)
                break;
            if (is_skipped(tx, flow, skip_flows, &skipped, err) != ERR_NONE)
                return err->code;
            if (skipped)
                continue;
            if (!later) {
                *ret_ms = 0;
                return ERR_NONE;
            }
            if (query_begin(&q, tx,
                            "SELECT next_try_ms FROM file INDEXED BY file_later WHERE dest = ?1 AND flow = ?2 "
                            "AND next_try_ms > 0 AND state IN (1, 2, 4) ORDER BY next_try_ms LIMIT 1",
                            err) != ERR_NONE)
                return err->code;
            query_int(&q, dest_id);
            query_int(&q, flow);
            bool has_row;
            if (query_step(&q, &has_row, err) != ERR_NONE)
                return err->code;
            if (has_row && column_int(q.stmt, 0) < *ret_ms)
                *ret_ms = column_int(q.stmt, 0);
            query_end(&q);
        }
    }
    return ERR_NONE;
}

enum err_code ledger_requeue_loading(struct ledger_tx *tx, uint64_t *ret, struct err *err)
{
    struct query q;
    bool has_row;
    err_clear(err);
    *ret = 0;
    for (;;) {
        int64_t ids[64];
        int64_t flows[64];
        size_t count = 0;
        if (query_begin(&q, tx, "SELECT id, flow FROM file INDEXED BY file_loading WHERE state = 3 LIMIT 64", err) !=
            ERR_NONE)
            return err->code;
        while (query_step(&q, &has_row, err) == ERR_NONE && has_row) {
            ids[count] = column_int(q.stmt, 0);
            flows[count++] = column_int(q.stmt, 1);
        }
        for (size_t i = 0; i < count && err->code == ERR_NONE; i++) {
            if (query_begin(&q, tx, "UPDATE file SET state = 2, since_ms = ?1, next_try_ms = 0 WHERE id = ?2", err) !=
                ERR_NONE)
                return err->code;
            query_int(&q, clock_wall_ms());
            query_int(&q, ids[i]);
            if (query_run(&q, err) != ERR_NONE || ledger_tally(tx, flows[i], STATE_LOADING, -1, err) != ERR_NONE)
                return err->code;
            ledger_tally(tx, flows[i], STATE_QUEUED, 1, err);
        }
        *ret += count;
        if (err->code != ERR_NONE || count == 0)
            return err->code;
    }
}
