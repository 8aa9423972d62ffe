/*
 * sqlite_parts.c -- one load whose rows go to several tables: events of a flow with `records`.
 *
 * Small ones meet their tables row by row, without a stage: a file of one event must cost a few statements, not
 * twenty. Who wins does not depend on the order in which rows meet, so the tables are the same as by a stage. Large
 * ones go into a stage per table in short transactions, so that others can write in between, and then all stages into
 * their tables in one.
 */
#include "sqlite_internal.h"

#include "clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BEAT_MS 1000 /* a stage that gets no rows for a while is still ours */

/* One table of the load. */
struct part {
    struct lite_run run;
    struct fill fill;
    bool is_begun;
    char stage[128]; /* large: its name; "" none */
};

struct parts {
    struct lite_run run; /* of the load as a whole: receipt and counts */
    struct arena arena;
    const struct load_part *of; /* load->parts: the flow's, so the same for all its files */
    struct part *items;
    size_t count;
    bool is_large;
    uint64_t beat_ms;
};

static void parts_free(struct parts *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; p->items != NULL && i < p->count; i++) {
        if (!p->items[i].is_begun)
            continue;
        fill_end(&p->items[i].fill);
        arena_done(&p->items[i].run.arena);
    }
    arena_done(&p->run.arena);
    arena_done(&p->arena);
    free(p);
}

static struct parts *parts_new(struct load *load, struct err *err)
{
    struct parts *p = calloc(1, sizeof(*p));
    if (p == NULL) {
        err_nomem(err);
        return NULL;
    }
    arena_init(&p->arena);
    arena_init(&p->run.arena);
    p->of = load->parts;
    p->count = load->part_count;
    p->items = arena_alloc(&p->arena, p->count * sizeof(*p->items));
    if (p->items == NULL) {
        parts_free(p);
        err_nomem(err);
        return NULL;
    }
    return p;
}

void parts_forget(struct conn *c)
{
    parts_free(c->kept);
    c->kept = NULL;
}

/*
 * What the load before found out about the same tables, in the transaction that is still open: nobody else can have
 * changed them, and whatever we do to them beside it calls parts_forget(). It saves a small file most of its work.
 */
static struct parts *parts_take(struct conn *c, struct load *load, struct err *err)
{
    struct parts *p = c->kept;
    if (p == NULL || p->of != load->parts || p->count != load->part_count) {
        parts_forget(c);
        return parts_new(load, err);
    }
    c->kept = NULL;
    for (size_t i = 0; i < p->count; i++) {
        struct lite_run *run = &p->items[i].run;
        if (!p->items[i].is_begun)
            continue;
        run->load = load;
        run->err = err;
        run->table.exists = true;
        run->filled = run->skipped = run->inserted = run->updated = run->unchanged = 0;
    }
    return p;
}

/* ---- the pass ---- */

/* The table itself takes the rows. */
static enum err_code open_table(struct part *part)
{
    struct buf conflict;
    enum err_code code = lite_make_table(&part->run);
    if (code != ERR_NONE)
        return code;
    buf_init(&conflict);
    merge_conflict(&conflict, &part->run);
    code = conflict.failed ? err_nomem(part->run.err)
                           : fill_begin(&part->fill, &part->run, "main", part->run.table.name, false, conflict.data);
    buf_done(&conflict);
    return code;
}

static enum err_code open_stage(struct part *part)
{
    enum err_code code = shadow_create(&part->run, true, part->stage, sizeof(part->stage));
    if (code != ERR_NONE) {
        part->stage[0] = '\0';
        return code;
    }
    code = fill_begin(&part->fill, &part->run, "main", part->stage, true, "");
    part->fill.is_short = true;
    part->fill.shadow = part->stage;
    return code;
}

/* The first row of a part has come. */
static enum err_code begin_part(struct parts *p, size_t index)
{
    struct part *part = &p->items[index];
    struct load *load = p->run.load;
    lite_init(&part->run, p->run.c, load, p->run.err);
    part->is_begun = true;
    part->run.plan = load->parts[index].plan;
    part->run.shape = load->parts[index].shape;
    part->run.table_name = load->parts[index].table;
    enum err_code code = schema_plan(&part->run);
    if (code != ERR_NONE)
        return code;
    return p->is_large ? open_stage(part) : open_table(part);
}

static enum err_code beat_stages(struct parts *p)
{
    uint64_t now_ms = clock_mono_ms();
    if (now_ms - p->beat_ms < BEAT_MS)
        return ERR_NONE;
    p->beat_ms = now_ms;
    enum err_code code = ERR_NONE;
    for (size_t i = 0; i < p->count && code == ERR_NONE; i++)
        if (p->items[i].stage[0] != '\0')
            code = shadow_beat(p->run.c, p->items[i].stage, p->run.err);
    return code;
}

static enum err_code take_batch(struct parts *p, const struct row_batch *batch)
{
    struct part *part = &p->items[batch->part];
    enum err_code code = part->is_begun ? ERR_NONE : begin_part(p, batch->part);
    if (code == ERR_NONE)
        code = fill_batch(&part->fill, batch);
    if (code == ERR_NONE && part->fill.is_narrowed) /* every column is declared, so this is a mistake of ours */
        code = err_set(p->run.err, ERR_SYSTEM, false, "table %s: a declared type changed", part->run.table_name);
    return code == ERR_NONE && p->is_large ? beat_stages(p) : code;
}

/* All rows of the file; the transaction stays open. */
static enum err_code take_rows(struct parts *p)
{
    const struct row_batch *batch;
    for (;;) {
        enum err_code code = rows_next(p->run.load->rows, &batch, p->run.err);
        if (code == ERR_NONE && conn_is_stopped(p->run.c))
            code = err_set(p->run.err, ERR_STOPPED, true, "stopped");
        if (code != ERR_NONE || batch->rows == 0)
            return code;
        code = take_batch(p, batch);
        if (code != ERR_NONE)
            return code;
    }
}

/* What the parts did, for the one receipt. */
static void add_up(struct parts *p)
{
    p->run.table.exists = true;
    for (size_t i = 0; i < p->count; i++) {
        struct lite_run *run = &p->items[i].run;
        if (!p->items[i].is_begun)
            continue;
        if (!p->is_large && !p->items[i].fill.meets_rows)
            run->inserted = run->filled;
        p->run.inserted += run->inserted;
        p->run.updated += run->updated;
        p->run.unchanged += run->unchanged;
        p->run.skipped += run->skipped;
        p->run.table.exists = p->run.table.exists && run->table.exists;
    }
}

/* ---- small ---- */

static enum err_code small_file(struct parts *p)
{
    struct lite_run *run = &p->run;
    bool is_duplicate = false;
    enum err_code code = receipt_find(run, run->shape->has_hash ? run->shape->hash : NULL, &is_duplicate);
    if (code != ERR_NONE || is_duplicate)
        return code;
    code = take_rows(p);
    /* The version was looked for above, in this very transaction: nobody can have brought it since. */
    if (code == ERR_NONE && run->load->still_current != NULL)
        code = run->load->still_current(run->load, run->err);
    add_up(p);
    return code == ERR_NONE ? lite_write_receipt(run) : code;
}

enum err_code parts_small(struct conn *c, struct load *load, struct err *err)
{
    struct parts *p = parts_take(c, load, err);
    if (p == NULL)
        return err->code;
    arena_done(&p->run.arena);
    lite_init(&p->run, c, load, err);
    enum err_code code = small_file(p);
    if (code == ERR_NONE)
        c->kept = p;
    else
        parts_free(p);
    return code;
}

/* ---- large ---- */

static enum err_code fill_stages(struct parts *p)
{
    struct conn *c = p->run.c;
    enum err_code code = conn_begin(c, p->run.err);
    if (code == ERR_NONE)
        code = take_rows(p);
    if (code == ERR_NONE)
        code = conn_commit(c, p->run.err);
    if (code != ERR_NONE)
        conn_rollback(c);
    return code;
}

/* The rows of a stage into their table, in the transaction that counts. */
static enum err_code show_part(struct part *part)
{
    if (!part->is_begun)
        return ERR_NONE;
    enum err_code code = shadow_beat(part->run.c, part->stage, part->run.err);
    if (code == ERR_NONE)
        code = lite_still_planned(&part->run);
    if (code == ERR_NONE)
        code = lite_make_table(&part->run);
    return code == ERR_NONE ? merge_apply(&part->run, "main", part->stage) : code;
}

static enum err_code publish(struct parts *p)
{
    struct conn *c = p->run.c;
    bool is_duplicate = false;
    enum err_code code = conn_exec(c, p->run.err, "PRAGMA synchronous=FULL");
    if (code == ERR_NONE)
        code = conn_begin(c, p->run.err);
    if (code == ERR_NONE)
        code = lite_judge(&p->run, &is_duplicate);
    if (code == ERR_NONE && is_duplicate) {
        conn_rollback(c);
        return ERR_NONE;
    }
    for (size_t i = 0; i < p->count && code == ERR_NONE; i++)
        code = show_part(&p->items[i]);
    add_up(p);
    if (code == ERR_NONE)
        code = lite_write_receipt(&p->run);
    if (code == ERR_NONE)
        code = conn_commit(c, p->run.err);
    if (code != ERR_NONE)
        conn_rollback(c);
    return code;
}

static enum err_code large_file(struct parts *p)
{
    struct lite_run *run = &p->run;
    bool is_duplicate = false;
    enum err_code code = receipt_find(run, run->shape->has_hash ? run->shape->hash : NULL, &is_duplicate);
    if (code != ERR_NONE || is_duplicate)
        return code;
    code = shadow_clean(run->c, run->load->instance, run->err);
    if (code == ERR_NONE)
        code = conn_greedy(run->c, true, run->err);
    if (code == ERR_NONE)
        code = fill_stages(p);
    if (code == ERR_NONE)
        code = publish(p);
    for (size_t i = 0; i < p->count; i++)
        if (p->items[i].stage[0] != '\0')
            shadow_drop(run->c, p->items[i].stage);
    return code;
}

enum err_code parts_large(struct conn *c, struct load *load, struct err *err)
{
    struct parts *p = parts_new(load, err);
    if (p == NULL)
        return err->code;
    lite_init(&p->run, c, load, err);
    p->is_large = true;
    enum err_code code = large_file(p);
    parts_free(p);
    return code;
}

/* ---- reset ---- */

enum err_code parts_drop(struct conn *c, struct load *load, struct err *err)
{
    struct arena arena;
    size_t used = 0;
    enum err_code code = ERR_NONE;
    arena_init(&arena);
    for (size_t i = 0; i < load->part_count && code == ERR_NONE; i++) {
        bool is_dropped = false;
        code = swap_drop(c, load->parts[i].table, &arena, &is_dropped, err);
        if (code != ERR_NONE || !is_dropped)
            continue;
        char *text = load->receipt.warnings;
        if (used < sizeof(load->receipt.warnings))
            used += (size_t)snprintf(text + used, sizeof(load->receipt.warnings) - used, "%s%s", used > 0 ? ", " : "",
                                     load->parts[i].table);
        load->receipt.updated++;
    }
    arena_done(&arena);
    return code;
}
