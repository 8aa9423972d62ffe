/* postgres_change.c -- what is no file: drop, empty, carry, forget. Each in one transaction with its receipt. */
#include "postgres_internal.h"

#include <stdio.h>
#include <string.h>

/* One table of the load. */
struct place {
    const char *space, *table;
};

static struct place place_at(const struct load *load, size_t i)
{
    if (load->part_count == 0)
        return (struct place){load->space, load->table};
    return (struct place){load->parts[i].space, load->parts[i].table};
}

/* BEGIN, the lock, and whether this attempt was done already. */
static enum err_code begin(struct pgd_walker *w, struct load *load, bool *ret_done)
{
    struct pgd_results r;
    struct buf sql;
    buf_init(&sql);
    buf_adds(&sql, "BEGIN;");
    pgd_add_lock(&sql, load->space, load->table);
    pgd_add_attempt_query(&sql, w, load);
    enum err_code code = pgd_ask(w, &sql, &r, "begin");
    *ret_done = code == ERR_NONE && r.count > 2 && load->load_key != NULL && load->load_key[0] != '\0' &&
                pgd_read_receipt(&r.items[2], 0, 0, load, true);
    buf_done(&sql);
    return code;
}

static enum err_code commit(struct pgd_walker *w, struct load *load, const char *kind, struct buf *sql)
{
    struct pgd_results r;
    if (kind != NULL)
        pgd_add_receipts(sql, w, &load, 1, kind);
    buf_adds(sql, "COMMIT");
    enum err_code code = pgd_ask_long(w, sql, &r, "");
    if (code == ERR_NONE && kind != NULL && load->receipt.dest_id[0] == '\0' && r.count >= 2) {
        const char *id = pgd_cell(&r.items[r.count - 2], 0, 0);
        snprintf(load->receipt.dest_id, sizeof(load->receipt.dest_id), "%s", id != NULL ? id : "");
    }
    return code;
}

static enum err_code read_place(struct pgd_walker *w, struct place p, struct pgd_table *ret)
{
    struct pgd_results r;
    struct buf sql;
    buf_init(&sql);
    pgd_add_table_query(&sql, w, p.space, p.table);
    enum err_code code = pgd_ask(w, &sql, &r, "look at the table");
    memset(ret, 0, sizeof(*ret));
    if (code == ERR_NONE && r.count > 0 && r.items[0].rows > 0)
        code = pgd_read_table(w, &r.items[0], p.space, p.table, ret);
    buf_done(&sql);
    return code;
}

/* Drop P, if chute made it. */
static enum err_code drop_place(struct pgd_walker *w, struct place p, bool *ret_dropped)
{
    struct pgd_table t;
    struct buf sql;
    enum err_code code = read_place(w, p, &t);
    *ret_dropped = false;
    if (code == ERR_INPUT) { /* a view of that name: not ours to touch */
        err_clear(w->err);
        return ERR_NONE;
    }
    if (code != ERR_NONE || !t.exists || !t.is_ours)
        return code;
    buf_init(&sql);
    buf_adds(&sql, "DROP TABLE ");
    pgd_add_table(&sql, p.space, p.table);
    buf_adds(&sql, ";DELETE FROM ");
    pgd_add_home(&sql, w, "_chute_tables");
    buf_printf(&sql, " WHERE oid = %u", t.oid);
    code = pgd_ask(w, &sql, NULL, "");
    buf_done(&sql);
    if (code != ERR_NONE)
        return err_wrap(w->err, "drop table %s.%s", p.space, p.table);
    *ret_dropped = true;
    return ERR_NONE;
}

static enum err_code drop(struct pgd_walker *w, struct load *load)
{
    bool any = false, is_dropped;
    struct buf sql;
    size_t count = load->part_count > 0 ? load->part_count : 1;
    for (size_t i = 0; i < count; i++) {
        if (drop_place(w, place_at(load, i), &is_dropped) != ERR_NONE)
            return w->err->code;
        any = any || is_dropped;
        if (is_dropped && load->part_count > 0) {
            size_t used = strlen(load->receipt.warnings);
            snprintf(load->receipt.warnings + used, sizeof(load->receipt.warnings) - used, "%s%s", used > 0 ? ", " : "",
                     load->parts[i].table);
            load->receipt.updated++;
        }
    }
    buf_init(&sql);
    if (load->what == LOAD_FORGET) {
        buf_adds(&sql, "DELETE FROM ");
        pgd_add_home(&sql, w, "_chute_loads");
        buf_adds(&sql, " WHERE flow = ");
        pg_add_text(&sql, load->plan->flow);
        buf_adds(&sql, " AND instance = ");
        pg_add_text(&sql, load->instance != NULL ? load->instance : "");
        buf_adds(&sql, " AND \"schema\" = ");
        pg_add_text(&sql, load->space);
        buf_adds(&sql, " AND \"table\" = ");
        pg_add_text(&sql, load->table);
        buf_addc(&sql, ';');
    }
    snprintf(load->receipt.dest_id, sizeof(load->receipt.dest_id), "%s", any ? "dropped" : "kept");
    enum err_code code = commit(w, load, load->what == LOAD_DROP && any ? "drop" : NULL, &sql);
    buf_done(&sql);
    return code;
}

static enum err_code empty(struct pgd_walker *w, struct load *load)
{
    struct pgd_table t;
    struct buf sql;
    enum err_code code = ERR_NONE;
    bool any = false;
    size_t count = load->part_count > 0 ? load->part_count : 1;
    buf_init(&sql);
    for (size_t i = 0; i < count && code == ERR_NONE; i++) {
        struct place p = place_at(load, i);
        code = read_place(w, p, &t);
        if (code != ERR_NONE || !t.exists)
            continue;
        any = true;
        buf_adds(&sql, "DELETE FROM ");
        buf_adds(&sql, pgd_own_rows(&t));
        pgd_add_table(&sql, p.space, p.table);
        buf_addc(&sql, ';');
    }
    if (code == ERR_NONE)
        code = commit(w, load, any ? "empty" : NULL, &sql);
    load->receipt.dest_rows = code == ERR_NONE && any ? 0 : -1;
    buf_done(&sql);
    return code;
}

/* The receipt of the old name, written for the new one; the counts go along: they say what this version brought. */
static enum err_code carry(struct pgd_walker *w, struct load *load)
{
    struct pgd_results r;
    struct buf sql;
    buf_init(&sql);
    pgd_add_version_query(&sql, w, load, load->path, load->hash, false);
    pgd_add_version_query(&sql, w, load, load->from_path, load->hash, false);
    enum err_code code = pgd_ask(w, &sql, &r, "look for the receipt");
    bool is_there = code == ERR_NONE && r.count == 2 && pgd_read_receipt(&r.items[0], 0, 0, load, false);
    if (code == ERR_NONE && !is_there) {
        if (r.count == 2)
            pgd_read_receipt(&r.items[1], 0, 0, load, false);
        load->receipt.is_duplicate = false;
        load->receipt.dest_id[0] = '\0';
        memcpy(load->receipt.hash, load->hash, sizeof(load->receipt.hash));
        code = commit(w, load, "carry", &sql);
    }
    buf_done(&sql);
    return code;
}

static enum err_code change(struct pgd_walker *w, struct load *load)
{
    bool is_done;
    arena_done(&w->arena);
    arena_init(&w->arena);
    pgd_clear_receipt(load);
    enum err_code code = begin(w, load, &is_done);
    if (code != ERR_NONE)
        return code;
    if (is_done && load->what != LOAD_FORGET) {
        /* This very attempt did it: what it dropped is gone, and may have been made anew since. */
        if (load->what == LOAD_DROP)
            snprintf(load->receipt.dest_id, sizeof(load->receipt.dest_id), "dropped");
        return ERR_NONE;
    }
    if (load->what == LOAD_CARRY)
        return carry(w, load);
    return load->what == LOAD_EMPTY ? empty(w, load) : drop(w, load);
}

enum err_code pgd_change(struct pgd_walker *w, struct load *load)
{
    enum { TRIES = 3 };
    enum err_code code = ERR_NONE;
    w->stop = &load->stop;
    for (int i = 0; i < TRIES; i++) {
        code = pgd_prepare(w);
        if (code != ERR_NONE)
            break;
        code = change(w, load);
        bool is_again = code != ERR_NONE && (pgd_is_collision(w) || (code == ERR_REMOTE && pgd_line_is_lost(w->line)));
        pgd_rollback(w);
        if (!is_again || code == ERR_STOPPED)
            break;
    }
    w->stop = NULL;
    return code;
}
