/*
 * sqlite_load.c -- one load, from its first look to its receipt.
 *
 * Small: all in the transaction of the caller, which others may share. Large: rows go into a table of our own in short
 * transactions, with the types that the head of the file suggests; if a later value contradicts them, the file is read
 * to its end, the types are known, and it is read once more. Then one transaction makes the rows visible together with
 * the receipt.
 */
#include "sqlite_internal.h"

#include <stdio.h>
#include <string.h>

bool lite_is_small(const struct load *load)
{
    return load->what != LOAD_FILE || load->rows->shape->is_whole;
}

void lite_init(struct lite_run *run, struct conn *c, struct load *load, struct err *err)
{
    memset(run, 0, sizeof(*run));
    run->c = c;
    run->load = load;
    run->err = err;
    run->plan = load->plan;
    run->shape = load->rows != NULL ? load->rows->shape : NULL;
    run->table_name = load->table;
    arena_init(&run->arena);
}

/* For the second pass: everything is decided anew, from what the first one learned. */
static enum err_code run_again(struct lite_run *run)
{
    if (run->was_narrowed)
        return err_set(run->err, ERR_CHANGED, true,
                       "the file changed while it was read: its second pass has other types than the first");
    struct conn *c = run->c;
    struct load *load = run->load;
    struct err *err = run->err;
    arena_done(&run->arena);
    lite_init(run, c, load, err);
    run->was_narrowed = true;
    return rows_rewind(load->rows, err);
}

bool lite_is_merge(const struct lite_run *run)
{
    enum load_mode mode = run->plan->mode;
    return mode == MODE_UPSERT || mode == MODE_KEEP_FIRST || mode == MODE_NEWEST;
}

static enum err_code check_mode(struct lite_run *run)
{
    if (lite_is_merge(run) && run->plan->key.count == 0)
        return err_set(run->err, ERR_CONFIG, false, "flow %s: this way of loading needs a key", run->plan->flow);
    if (run->plan->mode == MODE_NEWEST && run->plan->order_by.count == 0)
        return err_set(run->err, ERR_CONFIG, false, "flow %s: load: newest needs order_by", run->plan->flow);
    return ERR_NONE;
}

/* ---- the end, the same for all ---- */

void lite_clear_receipt(struct load *load)
{
    memset(&load->receipt, 0, sizeof(load->receipt));
    load->receipt.dest_rows = -1;
}

enum err_code lite_judge(struct lite_run *run, bool *ret_duplicate)
{
    struct load *load = run->load;
    /* Receipts of a table that was not there speak of rows that are gone; by now we may have made it ourselves. */
    bool speaks = run->table.exists || load->part_count > 0;
    enum err_code code = receipt_find(run, speaks ? load->rows->result.hash : NULL, ret_duplicate);
    if (code == ERR_NONE && !*ret_duplicate && load->still_current != NULL)
        code = load->still_current(load, run->err);
    return code;
}

enum err_code lite_write_receipt(struct lite_run *run)
{
    struct receipt *r = &run->load->receipt;
    const struct rows_result *result = &run->load->rows->result;
    memcpy(r->hash, result->hash, sizeof(r->hash));
    r->bytes = result->bytes;
    r->parsed = result->records;
    r->rejected = result->rejected;
    r->inserted = run->inserted;
    r->updated = run->updated;
    r->unchanged = run->unchanged + run->skipped;
    r->created_table = !run->table.exists;
    if (r->parsed != r->inserted + r->updated + r->unchanged + r->rejected)
        return err_set(run->err, ERR_SYSTEM, true,
                       "the numbers don't add up: %llu rows in the file, but %llu inserted, %llu updated, %llu "
                       "unchanged, %llu rejected;"
                       " nothing was committed",
                       (unsigned long long)r->parsed, (unsigned long long)r->inserted, (unsigned long long)r->updated,
                       (unsigned long long)r->unchanged, (unsigned long long)r->rejected);
    return receipt_put(run->c, run->load, "load", run->err);
}

static enum err_code create_table(struct lite_run *run)
{
    char *sql = schema_create_sql(run, run->table.name, true);
    enum err_code code = sql == NULL ? err_nomem(run->err) : conn_exec(run->c, run->err, sql);
    sqlite3_free(sql);
    return code == ERR_NONE ? schema_own(run, run->table.name) : code;
}

/* Empty the table that keeps its definition, and give it what it lacks. */
static enum err_code prepare_table(struct lite_run *run)
{
    enum err_code code = schema_add_columns(run);
    if (code == ERR_NONE && run->action != ACT_ADD)
        code = schema_need_key(run);
    if (code == ERR_NONE && run->action == ACT_REFILL)
        code = conn_execf(run->c, run->err, "DELETE FROM main.\"%w\"", run->table.name);
    return code;
}

enum err_code lite_make_table(struct lite_run *run)
{
    return run->action == ACT_CREATE ? create_table(run) : prepare_table(run);
}

/* ---- small ---- */

static enum err_code fill_staged(struct lite_run *run, enum fill_end *ret_end)
{
    enum err_code code = merge_stage(run);
    if (code == ERR_NONE)
        code = fill_rows(run, "temp", LITE_PREFIX "stage", true, false, ret_end);
    if (code == ERR_NONE && *ret_end == FILL_DONE)
        code = merge_apply(run, "temp", LITE_PREFIX "stage");
    return code;
}

static enum err_code small_action(struct lite_run *run, enum fill_end *ret_end)
{
    char name[128], old[128];
    enum err_code code = ERR_NONE;
    if (run->action == ACT_REBUILD) {
        code = shadow_create(run, false, name, sizeof(name));
        if (code == ERR_NONE)
            code = fill_rows(run, "main", name, false, false, ret_end);
        if (code == ERR_NONE && *ret_end == FILL_DONE)
            code = swap_tables(run, name, old, sizeof(old));
        return code;
    }
    code = lite_make_table(run);
    if (code != ERR_NONE)
        return code;
    if (lite_is_merge(run))
        return fill_staged(run, ret_end);
    code = fill_rows(run, "main", run->table.name, false, false, ret_end);
    /* What was without a value may have one now. */
    if (code == ERR_NONE && *ret_end == FILL_DONE && run->action == ACT_REFILL && run->table.is_ours)
        code = schema_own(run, run->table.name);
    return code;
}

/* One try at filling; NARROWED ones leave nothing behind. */
static enum err_code small_try(struct lite_run *run, enum fill_end *ret_end)
{
    enum err_code code = schema_plan(run);
    if (code == ERR_NONE)
        code = conn_exec(run->c, run->err, "SAVEPOINT chute_fill");
    if (code != ERR_NONE)
        return code;
    code = small_action(run, ret_end);
    if (code != ERR_NONE)
        return code; /* the caller's savepoint undoes this one too */
    if (*ret_end == FILL_NARROWED) {
        buf_clear(&run->c->stage);
        known_forget(run->c);
        return conn_exec(run->c, run->err, "ROLLBACK TO chute_fill; RELEASE chute_fill");
    }
    return conn_exec(run->c, run->err, "RELEASE chute_fill");
}

/* An undone load must not be seen: a duplicate found at the end of the pass. */
static enum err_code undo_small(struct lite_run *run)
{
    buf_clear(&run->c->stage);
    known_forget(run->c);
    return conn_exec(run->c, run->err, "ROLLBACK TO chute_file");
}

static enum err_code small_file(struct lite_run *run)
{
    struct load *load = run->load;
    const struct shape *shape = load->rows->shape;
    enum fill_end end = FILL_DONE;
    bool is_duplicate = false;
    enum err_code code = check_mode(run);
    if (code == ERR_NONE)
        code = receipt_find(run, shape->has_hash ? shape->hash : NULL, &is_duplicate);
    if (code != ERR_NONE || is_duplicate)
        return code;
    run->is_new = true;
    code = conn_exec(run->c, run->err, "SAVEPOINT chute_file");
    if (code == ERR_NONE)
        code = small_try(run, &end);
    if (code == ERR_NONE && end == FILL_NARROWED) {
        code = run_again(run);
        if (code == ERR_NONE)
            code = small_try(run, &end);
        if (code == ERR_NONE && end == FILL_NARROWED)
            code = run_again(run);
    }
    if (code == ERR_NONE)
        code = lite_judge(run, &is_duplicate);
    if (code == ERR_NONE && is_duplicate)
        return undo_small(run);
    if (!lite_is_merge(run))
        run->inserted = run->filled;
    return code == ERR_NONE ? lite_write_receipt(run) : code;
}

/* ---- what is no file ---- */

static enum err_code drop_table(struct conn *c, struct load *load, struct err *err)
{
    struct arena arena;
    bool is_dropped = false;
    arena_init(&arena);
    enum err_code code =
        load->part_count > 0 ? parts_drop(c, load, err) : swap_drop(c, load->table, &arena, &is_dropped, err);
    arena_done(&arena);
    is_dropped = is_dropped || load->receipt.updated > 0;
    if (code == ERR_NONE && load->what == LOAD_FORGET)
        code = receipt_forget(c, load, err);
    else if (code == ERR_NONE && is_dropped)
        code = receipt_put(c, load, "drop", err);
    snprintf(load->receipt.dest_id, sizeof(load->receipt.dest_id), "%s", is_dropped ? "dropped" : "kept");
    return code;
}

static enum err_code empty_table(struct conn *c, struct load *load, struct err *err)
{
    struct arena arena;
    struct lite_table t;
    arena_init(&arena);
    enum err_code code = schema_read(c, load->table, &arena, &t, err);
    if (code == ERR_NONE && t.exists) {
        code = conn_execf(c, err, "DELETE FROM main.\"%w\"", t.name);
        if (code == ERR_NONE)
            code = receipt_put(c, load, "empty", err);
        load->receipt.dest_rows = 0;
    }
    arena_done(&arena);
    return code;
}

static enum err_code small_change(struct conn *c, struct load *load, struct err *err)
{
    bool is_done = false;
    enum err_code code =
        load->what == LOAD_DROP || load->what == LOAD_EMPTY ? receipt_was_done(c, load, &is_done, err) : ERR_NONE;
    if (is_done)
        load->receipt.is_duplicate = true;
    if (code != ERR_NONE || is_done)
        return code;
    switch (load->what) {
    case LOAD_DROP:
    case LOAD_FORGET:
        return drop_table(c, load, err);
    case LOAD_EMPTY:
        return empty_table(c, load, err);
    case LOAD_CARRY:
        return receipt_carry(c, load, err);
    case LOAD_FILE:
        break;
    }
    return ERR_NONE;
}

enum err_code lite_small(struct conn *c, struct load *load, struct err *err)
{
    lite_clear_receipt(load);
    if (load->what == LOAD_FILE && load->part_count > 0)
        return parts_small(c, load, err);
    parts_forget(c); /* their tables may change now */
    if (load->what != LOAD_FILE)
        return small_change(c, load, err);
    struct lite_run run;
    lite_init(&run, c, load, err);
    enum err_code code = small_file(&run);
    arena_done(&run.arena);
    return code;
}

/* ---- large ---- */

/* Do the rows become a table as they are, or are they a stage for another one? */
static bool becomes_table(const struct lite_run *run)
{
    return run->action == ACT_REBUILD || (run->action == ACT_CREATE && !lite_is_merge(run));
}

/* Fill a shadow, in two passes at most. NAME is "" if nothing is left of it. */
static enum err_code fill_shadow(struct lite_run *run, char *name, size_t size)
{
    for (;;) {
        enum fill_end end;
        name[0] = '\0';
        enum err_code code = schema_plan(run);
        if (code == ERR_NONE)
            code = shadow_create(run, !becomes_table(run), name, size);
        if (code != ERR_NONE) {
            name[0] = '\0';
            return code;
        }
        code = fill_rows(run, "main", name, !becomes_table(run), true, &end);
        if (code != ERR_NONE || end == FILL_DONE)
            return code;
        shadow_drop(run->c, name);
        name[0] = '\0';
        code = run_again(run);
        if (code != ERR_NONE)
            return code;
    }
}

/* Others may have changed the table while the shadow filled: the plan was made for another one then. */
enum err_code lite_still_planned(struct lite_run *run)
{
    struct lite_table now;
    enum err_code code = schema_read(run->c, run->table_name, &run->arena, &now, run->err);
    if (code != ERR_NONE)
        return code;
    if (now.exists != run->table.exists || (now.exists && strcmp(now.sql, run->table.sql) != 0))
        return err_set(run->err, ERR_REMOTE, true,
                       "table %s was changed by another program during the load; it is tried again", run->table_name);
    return ERR_NONE;
}

static enum err_code show_rows(struct lite_run *run, const char *name, char *ret_old, size_t size)
{
    ret_old[0] = '\0';
    if (becomes_table(run))
        return swap_tables(run, name, ret_old, size);
    enum err_code code = lite_make_table(run);
    return code == ERR_NONE ? merge_apply(run, "main", name) : code;
}

/* The transaction that counts. */
static enum err_code publish(struct lite_run *run, const char *name, char *ret_old, size_t size, bool *ret_duplicate)
{
    struct conn *c = run->c;
    enum err_code code = conn_exec(c, run->err, "PRAGMA synchronous=FULL");
    if (code == ERR_NONE)
        code = conn_begin(c, run->err);
    if (code == ERR_NONE)
        code = shadow_beat(c, name, run->err);
    if (code == ERR_NONE)
        code = lite_still_planned(run);
    if (code == ERR_NONE)
        code = lite_judge(run, ret_duplicate);
    if (code == ERR_NONE && *ret_duplicate) {
        conn_rollback(c);
        return ERR_NONE;
    }
    if (code == ERR_NONE)
        code = show_rows(run, name, ret_old, size);
    if (becomes_table(run))
        run->inserted = run->filled;
    if (code == ERR_NONE)
        code = lite_write_receipt(run);
    if (code == ERR_NONE)
        code = conn_commit(c, run->err);
    if (code != ERR_NONE)
        conn_rollback(c);
    return code;
}

static enum err_code large_file(struct lite_run *run)
{
    char name[128] = "", old[128] = "";
    bool is_duplicate = false, is_swapped = false;
    const struct shape *shape = run->shape;
    enum err_code code = check_mode(run);
    if (code == ERR_NONE)
        code = receipt_find(run, shape->has_hash ? shape->hash : NULL, &is_duplicate);
    if (code != ERR_NONE || is_duplicate)
        return code;
    code = shadow_clean(run->c, run->load->instance, run->err);
    if (code == ERR_NONE)
        code = conn_greedy(run->c, true, run->err);
    if (code == ERR_NONE)
        code = fill_shadow(run, name, sizeof(name));
    if (code == ERR_NONE) {
        code = publish(run, name, old, sizeof(old), &is_duplicate);
        is_swapped = code == ERR_NONE && !is_duplicate;
    }
    if (name[0] != '\0' && !(is_swapped && becomes_table(run)))
        shadow_drop(run->c, name);
    if (is_swapped && old[0] != '\0')
        shadow_drop(run->c, old);
    return code;
}

enum err_code lite_large(struct conn *c, struct load *load, struct err *err)
{
    struct lite_run run;
    struct err ignored;
    lite_clear_receipt(load);
    lite_init(&run, c, load, err);
    enum err_code code = load->part_count > 0 ? parts_large(c, load, err) : large_file(&run);
    arena_done(&run.arena);
    /* The connection goes back to small habits; if even that fails, it is opened anew. */
    if (conn_greedy(c, false, &ignored) != ERR_NONE)
        conn_close(c);
    return code;
}
