/*
 * postgres_group.c -- many small files, or one with several tables, in one transaction.
 *
 * Why: an event file has 300 bytes, and a commit of its own costs more than all else together. All rows of a group for
 * one table go there in one COPY and meet it in one statement, and all receipts are one INSERT: the number of requests
 * does not depend on the number of files. A file that can't be loaded is found, and the others are loaded without it.
 */
#include "postgres_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLUSH_BYTES (1024 * 1024) /* a file alone needs not be held in memory till its end */
#define MOST_COLLISIONS 3
#define MOST_TARGETS 64

/* What is known of one load of the group. */
struct member {
    struct load *load;
    uint64_t *taken;  /* rows, by target */
    uint64_t skipped; /* before skip_records */
    bool is_out;      /* its answer is there: a duplicate, or failed */
};

struct group {
    struct pgd_walker *w;
    struct member *members;
    size_t count;
    struct pgd_target *targets;
    struct pgd_feed *feeds;
    uint64_t *sent;            /* rows in COPY so far, by target */
    struct pgd_counts *counts; /* by target, then load */
    size_t target_count;
    struct pgd_learned learned;
    bool is_careful; /* a file alone, of which the server refused a row */
    bool is_alone;
    bool is_creating; /* its table is not there: the first file makes it, alone */
    size_t culprit;   /* member whose row the server refused; count: unknown */
};

void pgd_set_failed(struct load *load, const struct err *err)
{
    load->err = *err;
    pgd_clear_receipt(load);
}

bool pgd_is_groupable(const struct load *load)
{
    if (load->what != LOAD_FILE)
        return false;
    const struct load_plan *plan = load->plan;
    bool is_replace = plan->mode == MODE_REPLACE && load->part_count == 0;
    for (size_t i = 0; i < load->part_count; i++)
        is_replace = is_replace || load->parts[i].plan->mode == MODE_REPLACE;
    return !is_replace && load->rows->shape->is_whole && load->rows->shape->has_hash && load->skip_records == 0 &&
           load->part_count <= MOST_TARGETS;
}

static bool same_text(const char *a, const char *b)
{
    return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

bool pgd_go_together(const struct load *a, const struct load *b)
{
    const struct shape *x = a->rows->shape, *y = b->rows->shape;
    if (a->plan != b->plan || !same_text(a->instance, b->instance) || !same_text(a->source, b->source) ||
        !same_text(a->space, b->space) || !same_text(a->table, b->table) || a->part_count != b->part_count ||
        x->column_count != y->column_count)
        return false;
    for (size_t i = 0; i < x->column_count; i++)
        if (strcmp(x->columns[i].name, y->columns[i].name) != 0)
            return false;
    for (size_t i = 0; i < a->part_count; i++)
        if (a->parts[i].plan != b->parts[i].plan || !same_text(a->parts[i].space, b->parts[i].space) ||
            !same_text(a->parts[i].table, b->parts[i].table))
            return false;
    return true;
}

/* ---- begin ---- */

static int by_name(const void *a, const void *b)
{
    const struct pgd_target *x = *(struct pgd_target *const *)a, *y = *(struct pgd_target *const *)b;
    int order = strcmp(x->space, y->space);
    return order != 0 ? order : strcmp(x->table, y->table);
}

static enum err_code make_targets(struct group *g)
{
    struct pgd_walker *w = g->w;
    const struct load *first = g->members[0].load;
    g->target_count = first->part_count > 0 ? first->part_count : 1;
    g->targets = arena_alloc(&w->arena, g->target_count * sizeof(*g->targets));
    g->feeds = arena_alloc(&w->arena, g->target_count * sizeof(*g->feeds));
    g->sent = arena_alloc(&w->arena, g->target_count * sizeof(*g->sent));
    g->counts = arena_alloc(&w->arena, g->target_count * g->count * sizeof(*g->counts));
    if (g->targets == NULL || g->feeds == NULL || g->sent == NULL || g->counts == NULL)
        return err_nomem(w->err);
    for (size_t i = 0; i < g->count; i++) {
        g->members[i].taken = arena_alloc(&w->arena, g->target_count * sizeof(uint64_t));
        g->members[i].is_out = false;
        g->members[i].skipped = 0;
        if (g->members[i].taken == NULL)
            return err_nomem(w->err);
        pgd_clear_receipt(g->members[i].load);
    }
    for (size_t i = 0; i < g->target_count; i++) {
        struct pgd_target *t = &g->targets[i];
        const struct load_part *part = first->part_count > 0 ? &first->parts[i] : NULL;
        t->plan = part != NULL ? part->plan : first->plan;
        t->shape = part != NULL ? part->shape : first->rows->shape;
        t->space = part != NULL ? part->space : first->space;
        t->table = part != NULL ? part->table : first->table;
        t->is_part = part != NULL;
        t->number = (unsigned)i;
    }
    return ERR_NONE;
}

/* Always in the same order, so that two chutes never wait for each other. */
static enum err_code add_locks(struct group *g, struct buf *sql)
{
    const struct load *first = g->members[0].load;
    struct pgd_target **sorted = arena_alloc(&g->w->arena, g->target_count * sizeof(struct pgd_target *));
    if (sorted == NULL)
        return err_nomem(g->w->err);
    for (size_t i = 0; i < g->target_count; i++)
        sorted[i] = &g->targets[i];
    qsort(sorted, g->target_count, sizeof(struct pgd_target *), by_name);
    if (first->part_count > 0)
        pgd_add_lock(sql, first->space != NULL ? first->space : "", first->table);
    for (size_t i = 0; i < g->target_count; i++)
        pgd_add_lock(sql, sorted[i]->space, sorted[i]->table);
    return ERR_NONE;
}

static void take_receipts(struct group *g, const struct pgd_result *r, bool are_attempts)
{
    for (size_t row = 0; row < r->rows; row++) {
        size_t n = strtoull(pgd_cell(r, row, 0), NULL, 10);
        if (n >= g->count || g->members[n].is_out)
            continue;
        if (!are_attempts && g->members[n].load->plan->on_duplicate == DUPLICATE_RELOAD)
            continue;
        g->members[n].is_out = pgd_read_receipt(r, row, 1, g->members[n].load, are_attempts);
    }
}

static enum err_code take_answers(struct group *g, const struct pgd_results *r)
{
    struct pgd_walker *w = g->w;
    size_t tables = r->count - g->target_count;
    bool all_exist = true;
    for (size_t i = 0; i < g->target_count; i++) {
        struct pgd_target *t = &g->targets[i];
        if (pgd_read_table(w, &r->items[tables + i], t->space, t->table, &t->have) != ERR_NONE)
            return w->err->code;
        all_exist = all_exist && t->have.exists;
    }
    take_receipts(g, &r->items[tables - 2], true);
    /* What was loaded into a table that is gone is not there any more. */
    if (all_exist)
        take_receipts(g, &r->items[tables - 1], false);
    g->is_creating = !all_exist && !g->targets[0].is_part;
    return ERR_NONE;
}

static enum err_code look(struct group *g)
{
    struct pgd_walker *w = g->w;
    struct pgd_results r;
    struct buf sql;
    struct load **loads = arena_alloc(&w->arena, g->count * sizeof(struct load *));
    if (loads == NULL)
        return err_nomem(w->err);
    for (size_t i = 0; i < g->count; i++)
        loads[i] = g->members[i].load;
    buf_init(&sql);
    buf_adds(&sql, "BEGIN;");
    enum err_code code = add_locks(g, &sql);
    pgd_add_attempts_query(&sql, w, loads, g->count);
    pgd_add_versions_query(&sql, w, loads, g->count);
    for (size_t i = 0; i < g->target_count; i++)
        pgd_add_table_query(&sql, w, g->targets[i].space, g->targets[i].table);
    if (code == ERR_NONE)
        code = pgd_ask(w, &sql, &r, "begin the load");
    buf_done(&sql);
    if (code == ERR_NONE && r.count < g->target_count + 4)
        code = err_set(w->err, ERR_REMOTE, true, "the server gave %zu answers to %zu questions", r.count,
                       g->target_count + 4);
    return code == ERR_NONE ? take_answers(g, &r) : code;
}

/* ---- rows ---- */

static enum err_code copy_text(struct group *g, size_t target)
{
    struct pgd_walker *w = g->w;
    struct pgd_feed *feed = &g->feeds[target];
    struct buf sql;
    uint64_t rows = 0;
    size_t size = feed->text.size;
    if (size == 0)
        return ERR_NONE;
    char *data = buf_take(&feed->text);
    if (data == NULL)
        return err_nomem(w->err);
    buf_init(&sql);
    pgd_add_copy(&sql, &g->targets[target], feed->load >= 0);
    enum err_code code = sql.failed ? err_nomem(w->err) : pgd_line_copy(w->line, sql.data, w->err);
    buf_done(&sql);
    if (code != ERR_NONE) {
        free(data);
        return code;
    }
    code = pgd_line_put(w->line, data, size, w->err);
    if (code == ERR_NONE)
        code = pgd_line_copy_end(w->line, &rows, w->err);
    if (code != ERR_NONE)
        return pgd_fail(w, "");
    g->sent[target] += rows;
    return ERR_NONE;
}

static size_t part_of(const struct group *g, const struct row_batch *b)
{
    return b->part < g->target_count ? b->part : 0;
}

static enum err_code take_batch(struct group *g, struct member *m, const struct row_batch *b)
{
    size_t at = part_of(g, b);
    struct pgd_feed *feed = &g->feeds[at];
    const uint64_t skip = m->load->skip_records;
    bool is_narrowed = false;
    if (g->is_careful) {
        uint64_t before = m->taken[at];
        enum err_code code = pgd_careful_batch(feed, b, skip, &m->taken[at], &m->skipped, &is_narrowed);
        g->sent[at] += m->taken[at] - before;
        return code;
    }
    for (size_t row = 0; row < b->rows; row++) {
        if (b->record[row] < skip) {
            m->skipped++;
            continue;
        }
        enum pgd_verdict verdict = pgd_feed_row(feed, b, row);
        if (verdict == FEED_FAILED)
            return g->w->err->code;
        m->taken[at] += verdict == FEED_TAKEN;
    }
    return g->is_alone && feed->text.size >= FLUSH_BYTES ? copy_text(g, at) : ERR_NONE;
}

static enum err_code take_member(struct group *g, struct member *m)
{
    struct pgd_walker *w = g->w;
    const struct row_batch *batch;
    if (atomic_load(&m->load->stop))
        return err_set(w->err, ERR_STOPPED, true, "stopped");
    do {
        if (rows_next(m->load->rows, &batch, w->err) != ERR_NONE ||
            (batch->rows > 0 && take_batch(g, m, batch) != ERR_NONE))
            return w->err->code;
    } while (batch->rows > 0);
    return m->load->still_current != NULL ? m->load->still_current(m->load, w->err) : ERR_NONE;
}

/* The rows of all members as text. One that fails is taken out, and nothing of it stays. */
static enum err_code take_members(struct group *g)
{
    size_t *before = arena_alloc(&g->w->arena, g->target_count * sizeof(*before));
    if (before == NULL)
        return err_nomem(g->w->err);
    for (size_t i = 0; i < g->count; i++) {
        struct member *m = &g->members[i];
        if (m->is_out)
            continue;
        for (size_t k = 0; k < g->target_count; k++) {
            before[k] = g->feeds[k].text.size;
            g->feeds[k].rows = m->load->rows;
            if (g->feeds[k].load >= 0)
                g->feeds[k].load = (int)i;
        }
        if (take_member(g, m) == ERR_NONE)
            continue;
        if (g->is_alone)
            return g->w->err->code;
        for (size_t k = 0; k < g->target_count; k++) {
            pgd_cut(&g->feeds[k].text, before[k]);
            m->taken[k] = 0;
        }
        m->is_out = true;
        pgd_set_failed(m->load, g->w->err);
        err_clear(g->w->err);
    }
    return ERR_NONE;
}

/* Whose row is row LINE (from 1) of the COPY into TARGET? */
static size_t member_at(const struct group *g, size_t target, uint64_t line)
{
    uint64_t end = 0;
    for (size_t i = 0; line > 0 && i < g->count; i++) {
        end += g->members[i].is_out ? 0 : g->members[i].taken[target];
        if (line <= end)
            return i;
    }
    return g->count;
}

static uint64_t taken_in_all(const struct group *g, size_t target)
{
    uint64_t rows = 0;
    for (size_t i = 0; i < g->count; i++)
        rows += g->members[i].is_out ? 0 : g->members[i].taken[target];
    return rows;
}

static enum err_code copy_all(struct group *g)
{
    struct pgd_walker *w = g->w;
    for (size_t k = 0; k < g->target_count; k++) {
        if (copy_text(g, k) != ERR_NONE) {
            if (!g->is_alone)
                g->culprit = member_at(g, k, pgd_fault_line(pgd_line_fault(w->line)->context));
            return w->err->code;
        }
        uint64_t rows = taken_in_all(g, k);
        if (g->sent[k] != rows)
            return err_set(w->err, ERR_INPUT, false,
                           "table %s.%s took %llu of %llu rows without saying why: is there a trigger that leaves some "
                           "out?",
                           g->targets[k].space, g->targets[k].table, (unsigned long long)g->sent[k],
                           (unsigned long long)rows);
    }
    return ERR_NONE;
}

/* ---- the end ---- */

static enum err_code merge_all(struct group *g)
{
    for (size_t k = 0; k < g->target_count; k++) {
        struct pgd_counts *counts = g->counts + k * g->count;
        uint64_t rows = taken_in_all(g, k);
        if (g->targets[k].is_merge) {
            if (rows > 0 && pgd_merge(g->w, &g->targets[k], rows, !g->is_alone, g->count, counts) != ERR_NONE)
                return g->w->err->code;
        } else {
            for (size_t i = 0; i < g->count; i++)
                counts[i].inserted = g->members[i].taken[k];
        }
        for (size_t i = 0; i < g->count; i++) {
            struct receipt *r = &g->members[i].load->receipt;
            if (g->members[i].is_out)
                continue;
            r->inserted += counts[i].inserted;
            r->updated += counts[i].updated;
            r->unchanged += g->members[i].taken[k] - counts[i].inserted - counts[i].updated;
            r->created_table = r->created_table || !g->targets[k].have.exists;
        }
    }
    return ERR_NONE;
}

static enum err_code commit(struct group *g)
{
    struct pgd_walker *w = g->w;
    struct pgd_results r;
    struct buf sql;
    size_t count = 0;
    struct load **loads = arena_alloc(&w->arena, g->count * sizeof(struct load *));
    if (loads == NULL)
        return err_nomem(w->err);
    for (size_t i = 0; i < g->count; i++) {
        if (g->members[i].is_out)
            continue;
        g->members[i].load->receipt.unchanged += g->members[i].skipped;
        loads[count++] = g->members[i].load;
        if (pgd_complete_receipt(w, g->members[i].load) != ERR_NONE)
            return w->err->code;
    }
    buf_init(&sql);
    buf_adds(&sql, "SET CONSTRAINTS ALL IMMEDIATE;");
    if (count > 0)
        pgd_add_receipts(&sql, w, loads, count, "load");
    buf_adds(&sql, "COMMIT");
    enum err_code code = pgd_ask_long(w, &sql, &r, "commit");
    buf_done(&sql);
    for (size_t i = 0; code == ERR_NONE && count > 0 && r.count >= 2 && i < count; i++) {
        const char *id = pgd_cell(&r.items[r.count - 2], i, 0);
        snprintf(loads[i]->receipt.dest_id, sizeof(loads[i]->receipt.dest_id), "%s", id != NULL ? id : "");
    }
    if (code != ERR_NONE)
        return code;
    w->open_stages = 0;
    /* whose rows it was is not told: each of them has it */
    char warning[sizeof(loads[0]->receipt.warnings)];
    pgd_line_warning(w->line, warning, sizeof(warning));
    for (size_t i = 0; i < count; i++)
        memcpy(loads[i]->receipt.warnings, warning, sizeof(warning));
    return ERR_NONE;
}

static enum err_code make_ready(struct group *g)
{
    struct pgd_walker *w = g->w;
    for (size_t k = 0; k < g->target_count; k++) {
        struct pgd_target *t = &g->targets[k];
        enum err_code code = pgd_plan(w, t, &g->learned);
        if (code == ERR_NONE)
            code = pgd_make_ready(w, t, g->members[0].load->instance, !g->is_alone && t->is_merge);
        if (code == ERR_NONE)
            code = pgd_feed_init(&g->feeds[k], w, t, NULL, &g->learned);
        if (code != ERR_NONE)
            return code;
        g->feeds[k].load = !g->is_alone && t->is_merge ? 0 : -1;
    }
    return ERR_NONE;
}

static bool all_are_out(const struct group *g)
{
    for (size_t i = 0; i < g->count; i++)
        if (!g->members[i].is_out)
            return false;
    return true;
}

static enum err_code attempt(struct group *g)
{
    struct pgd_walker *w = g->w;
    arena_done(&w->arena);
    arena_init(&w->arena);
    err_clear(w->err);
    g->culprit = g->count;
    g->is_creating = false;
    g->target_count = 0;
    char before[256];
    pgd_line_warning(w->line, before, sizeof(before)); /* those of before are others' */
    enum err_code code = make_targets(g);
    if (code == ERR_NONE)
        code = look(g);
    if (code != ERR_NONE || g->is_creating || all_are_out(g))
        return code;
    code = make_ready(g);
    if (code == ERR_NONE)
        code = take_members(g);
    if (code == ERR_NONE && !all_are_out(g)) {
        code = copy_all(g);
        if (code == ERR_NONE)
            code = merge_all(g);
        if (code == ERR_NONE)
            code = commit(g);
    }
    for (size_t k = 0; k < g->target_count; k++)
        pgd_feed_done(&g->feeds[k]);
    return code;
}

/* ---- the group, and parts of it ---- */

static void run(struct pgd_walker *w, struct member *members, size_t count);

static void fail_all(struct member *members, size_t count, const struct err *err)
{
    for (size_t i = 0; i < count; i++)
        pgd_set_failed(members[i].load, err);
}

/* Back to the first row of all of them; one that can't go back has failed. Returns how many are left. */
static size_t rewind_all(struct member *members, size_t count)
{
    size_t left = 0;
    for (size_t i = 0; i < count; i++) {
        struct err err;
        err_clear(&err);
        if (rows_rewind(members[i].load->rows, &err) != ERR_NONE) {
            pgd_set_failed(members[i].load, &err);
            continue;
        }
        err_clear(&members[i].load->err);
        members[left++] = members[i];
    }
    return left;
}

static void run_one(struct pgd_walker *w, struct member *m)
{
    struct err err;
    err_clear(&err);
    struct err *outer = w->err;
    w->err = &err;
    if (pgd_load_file(w, m->load) != ERR_NONE)
        pgd_set_failed(m->load, &err);
    w->err = outer;
}

/* One of them is bad: those before it, it, and those behind it, in this order. */
static void run_divided(struct pgd_walker *w, struct member *members, size_t count, size_t culprit)
{
    size_t middle = culprit < count ? culprit : count / 2;
    size_t behind = culprit < count ? culprit + 1 : middle;
    if (middle > 0)
        run(w, members, middle);
    if (behind > middle)
        run(w, members + middle, behind - middle);
    if (behind < count)
        run(w, members + behind, count - behind);
}

/* What can't be loaded in a group but may be alone: the row that is wrong is found there. */
static bool is_dividable(const struct err *err)
{
    return (err->code == ERR_INPUT && !err->retryable) || err->code == ERR_SYSTEM;
}

static void run(struct pgd_walker *w, struct member *members, size_t count)
{
    struct group g = {.w = w, .members = members, .count = count, .is_alone = count == 1};
    struct err err, *outer = w->err;
    unsigned collisions = 0, revivals = 0, schemas = 0;
    enum err_code code;
    err_clear(&err);
    w->err = &err;
    if (count == 1 && members[0].load->part_count == 0) {
        run_one(w, &members[0]);
        w->err = outer;
        return;
    }
    for (;;) {
        w->stop = g.is_alone ? &members[0].load->stop : NULL;
        code = pgd_prepare(w);
        if (code == ERR_NONE)
            code = attempt(&g);
        w->stop = NULL;
        bool is_collision = code != ERR_NONE && pgd_is_collision(w);
        bool lacks_schema = code != ERR_NONE && strcmp(pgd_line_fault(w->line)->sqlstate, "3F000") == 0;
        bool was_dead = code == ERR_REMOTE && pgd_line_is_lost(w->line) && g.target_count > 0 &&
                        g.targets[0].plan != NULL && g.targets[0].dest.count == 0;
        bool is_bad = code == ERR_INPUT && g.is_alone && !g.is_careful && pgd_is_data_fault(w);
        pgd_rollback(w);
        if (code == ERR_NONE || err.code == ERR_STOPPED)
            break;
        if (lacks_schema && schemas++ == 0) {
            for (size_t k = 0; k < g.target_count; k++)
                if (pgd_prepare(w) == ERR_NONE)
                    pgd_make_schema(w, g.targets[k].space);
        } else if (is_bad) {
            g.is_careful = true;
        } else if (!(is_collision && collisions++ < MOST_COLLISIONS) && !(was_dead && revivals++ == 0)) {
            break;
        }
        g.count = rewind_all(members, g.count);
        if (g.count == 0)
            break;
    }
    if (g.count > 0 && code == ERR_NONE && g.is_creating) {
        g.count = rewind_all(members, g.count);
        if (g.count > 0)
            run_one(w, &members[0]);
        if (g.count > 1)
            run(w, members + 1, g.count - 1);
    } else if (g.count > 1 && code != ERR_NONE && is_dividable(&err)) {
        g.count = rewind_all(members, g.count);
        if (g.count > 0)
            run_divided(w, members, g.count, g.culprit < g.count ? g.culprit : g.count);
    } else if (g.count > 0 && code != ERR_NONE) {
        fail_all(members, g.count, &err);
    }
    w->err = outer;
}

void pgd_load_group(struct pgd_walker *w, struct load **loads, size_t count)
{
    struct member *members = calloc(count, sizeof(*members));
    if (members == NULL) {
        struct err err;
        err_nomem(&err);
        for (size_t i = 0; i < count; i++)
            pgd_set_failed(loads[i], &err);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        err_clear(&loads[i]->err);
        members[i].load = loads[i];
    }
    run(w, members, count);
    free(members);
}
