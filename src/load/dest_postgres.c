/*
 * dest_postgres.c -- the PostgreSQL destination: its operations, its queue, and who walks which loads on which
 * connection.
 *
 * There are a few slots, each with a connection and, while there is work, a thread that walks. A free slot takes the
 * oldest load whose table no other slot is busy with: large ones alone, small ones of one table together. So the loads
 * of one table run in the order of begin(), those of different tables beside each other. When nothing has happened for
 * a moment the connections are closed: an idle destination has no thread, no timer, no connection.
 */
#include "postgres_internal.h"
#include "postgres_script.h"

#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_LOADS 256
#define GROUP_BYTES ((uint64_t)8 << 20)
/* While one group is loaded the next one is opened, and the one before it recorded and moved. */
#define IN_FLIGHT (2 * GROUP_LOADS)
#define IDLE_CLOSE_MS 5000

/* Somebody who waits for connect() or make_space(). */
struct waiter {
    struct waiter *next;
    char *space; /* make_space(); NULL: connect() */
    dest_cb *cb;
    void *arg;
    struct err err;
};

struct pgd_dest;

/* The work member comes first: the callbacks of the thread get it. */
struct slot {
    struct work work;
    struct pgd_dest *dest;
    struct pgd_walker walker;
    struct pg_options pg;
    struct load *batch; /* walked now */
    struct waiter *waiter;
    bool is_running;
    struct err err; /* of a waiter's errand */
    char advice[512];
};

struct pgd_dest {
    uv_loop_t *loop;
    const struct pgd_options *options;
    struct buf conninfo;
    struct slot *slots;
    size_t slot_count;
    struct load *queue;
    struct load **queue_end;
    struct load *ended;     /* aborted before anybody had them */
    struct waiter *waiters; /* in order */
    struct waiter spare;    /* an answer is promised, so one waiter needs no memory */
    bool spare_used;
    struct pgd_scripter *scripter;
    struct pg_options script_pg;
    bool is_open;
    bool is_hurried;
    char identity[40], version[64], where[256], advice[512];
    uv_timer_t idle, soon;
    unsigned open_handles;
    void (*closed)(void *arg);
    void *closed_arg;
    bool is_closing;
};

/* ---- on a walker's thread ---- */

static void add_advice(struct slot *s)
{
    static const char *const words[] = {
        [PGD_DELETE_AND_COPY] = "",
        [PGD_TRUNCATE_AND_INSERT] = "replace: truncate-and-insert locks readers out of a table while it is loaded, and "
                                    "a transaction that began before sees it empty afterwards",
        [PGD_STAGING_OPTIMIZED] = "replace: staging-optimized gives a table a new identity with every load: grants, "
                                  "triggers and foreign keys stay behind, and a table that a view needs is refused"};
    struct pgd_walker *w = &s->walker;
    struct pgd_results r;
    struct buf sql;
    snprintf(s->advice, sizeof(s->advice), "%s", words[w->options->replace]);
    if (w->options->replace != PGD_STAGING_OPTIMIZED)
        return;
    buf_init(&sql);
    buf_adds(&sql, "SELECT pg_catalog.string_agg(DISTINCT t.\"schema\" || '.' || t.\"table\", ', ') FROM ");
    pgd_add_home(&sql, w, "_chute_tables");
    buf_adds(&sql, " t JOIN pg_catalog.pg_depend d ON d.refobjid = t.oid AND d.refclassid = "
                   "'pg_catalog.pg_class'::pg_catalog.regclass JOIN pg_catalog.pg_rewrite v ON v.oid = d.objid AND "
                   "d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass");
    if (pgd_ask(w, &sql, &r, "") == ERR_NONE && r.count > 0 && pgd_cell(&r.items[0], 0, 0) != NULL) {
        size_t used = strlen(s->advice);
        snprintf(s->advice + used, sizeof(s->advice) - used, ". Views need: %s", pgd_cell(&r.items[0], 0, 0));
    }
    err_clear(w->err);
    buf_done(&sql);
}

static void run_errand(struct slot *s)
{
    struct pgd_walker *w = &s->walker;
    arena_done(&w->arena);
    arena_init(&w->arena);
    w->err = &s->err;
    err_clear(&s->err);
    enum err_code code = pgd_prepare(w);
    if (code == ERR_NONE && s->waiter->space != NULL)
        code = pgd_make_schema(w, s->waiter->space);
    else if (code == ERR_NONE)
        add_advice(s);
    if (code != ERR_NONE)
        pgd_rollback(w);
}

static void run_one(struct slot *s, struct load *load)
{
    struct pgd_walker *w = &s->walker;
    struct err err;
    err_clear(&err);
    err_clear(&load->err);
    w->err = &err;
    enum err_code code;
    if (atomic_load(&load->stop))
        code = err_set(&err, ERR_STOPPED, true, "stopped before it began");
    else
        code = load->what == LOAD_FILE ? pgd_load_file(w, load) : pgd_change(w, load);
    if (code != ERR_NONE)
        pgd_set_failed(load, &err);
}

static void run_batch(struct slot *s)
{
    struct load *load = s->batch;
    size_t count = 0;
    bool is_group = load->what == LOAD_FILE && (load->next != NULL || load->part_count > 0);
    if (!is_group) {
        run_one(s, load);
        return;
    }
    struct load *loads[GROUP_LOADS];
    for (; load != NULL && count < GROUP_LOADS; load = load->next)
        loads[count++] = load;
    struct err err;
    s->walker.err = &err;
    err_clear(&err);
    pgd_load_group(&s->walker, loads, count);
}

static void run(struct work *work)
{
    struct slot *s = (struct slot *)work;
    if (s->batch != NULL)
        run_batch(s);
    else
        run_errand(s);
    arena_done(&s->walker.arena);
    arena_init(&s->walker.arena);
    s->walker.err = NULL;
}

/* ---- on the loop ---- */

static void start_next(struct pgd_dest *d);

static void tell_ended(struct pgd_dest *d)
{
    while (d->ended != NULL) {
        struct load *load = d->ended;
        d->ended = load->next;
        load->next = NULL;
        load->finished(load);
    }
}

static void on_soon(uv_timer_t *timer)
{
    struct pgd_dest *d = timer->data;
    tell_ended(d);
    start_next(d);
}

static void later(struct pgd_dest *d)
{
    if (!uv_is_active((uv_handle_t *)&d->soon))
        uv_timer_start(&d->soon, on_soon, 0, 0);
}

static void on_idle(uv_timer_t *timer)
{
    struct pgd_dest *d = timer->data;
    for (size_t i = 0; i < d->slot_count; i++)
        if (!d->slots[i].is_running)
            pgd_line_hang_up(d->slots[i].walker.line);
}

static void learn(struct pgd_dest *d, struct slot *s)
{
    if (s->walker.identity[0] != '\0')
        snprintf(d->identity, sizeof(d->identity), "%s", s->walker.identity);
    if (s->walker.version[0] != '\0')
        snprintf(d->version, sizeof(d->version), "%s", s->walker.version);
    d->is_open = !pgd_line_is_lost(s->walker.line);
    pgd_line_where(s->walker.line, d->where, sizeof(d->where));
}

static void answer_waiter(struct pgd_dest *d, struct waiter *w)
{
    struct err err = w->err;
    dest_cb *cb = w->cb;
    void *arg = w->arg;
    free(w->space);
    if (w == &d->spare)
        d->spare_used = false;
    else
        free(w);
    cb(arg, err.code == ERR_NONE ? NULL : &err);
}

static void on_done(struct work *work)
{
    struct slot *s = (struct slot *)work;
    struct pgd_dest *d = s->dest;
    struct load *batch = s->batch;
    struct waiter *waiter = s->waiter;
    s->batch = NULL;
    s->waiter = NULL;
    learn(d, s);
    while (batch != NULL) {
        struct load *load = batch;
        batch = load->next;
        load->next = NULL;
        load->finished(load); /* may begin others: is_running keeps this slot out of it */
    }
    if (waiter != NULL) {
        if (waiter->space == NULL)
            snprintf(d->advice, sizeof(d->advice), "%s", s->advice);
        waiter->err = s->err;
        answer_waiter(d, waiter);
    }
    s->is_running = false;
    start_next(d);
}

/* ---- the queue ---- */

static bool same_table(const struct load *a, const struct load *b)
{
    return strcmp(a->table, b->table) == 0 &&
           (a->space == b->space || (a->space != NULL && b->space != NULL && strcmp(a->space, b->space) == 0));
}

static bool is_busy(const struct pgd_dest *d, const struct load *load)
{
    for (size_t i = 0; i < d->slot_count; i++)
        if (d->slots[i].is_running && d->slots[i].batch != NULL && same_table(d->slots[i].batch, load))
            return true;
    return false;
}

static void unlink_at(struct pgd_dest *d, struct load **at)
{
    struct load *load = *at;
    *at = load->next;
    load->next = NULL;
    if (*at == NULL)
        d->queue_end = at;
}

/* The loads of its table that may go with FIRST, up to the first that may not. */
static void take_companions(struct pgd_dest *d, struct load *first)
{
    struct load *last = first;
    uint64_t bytes = first->id.size;
    if (!pgd_is_groupable(first))
        return;
    int count = 1;
    for (struct load **at = &d->queue; *at != NULL && count < GROUP_LOADS;) {
        struct load *load = *at;
        if (!same_table(first, load)) {
            at = &load->next;
            continue;
        }
        if (!pgd_is_groupable(load) || !pgd_go_together(first, load) || bytes + load->id.size > GROUP_BYTES)
            return;
        bytes += load->id.size;
        count++;
        unlink_at(d, at);
        last->next = load;
        last = load;
    }
}

static struct load *take_batch(struct pgd_dest *d)
{
    for (struct load **at = &d->queue; *at != NULL; at = &(*at)->next) {
        if (is_busy(d, *at))
            continue;
        struct load *first = *at;
        unlink_at(d, at);
        take_companions(d, first);
        return first;
    }
    return NULL;
}

static struct slot *free_slot(struct pgd_dest *d)
{
    struct slot *found = NULL;
    for (size_t i = 0; i < d->slot_count; i++) {
        struct slot *s = &d->slots[i];
        if (s->is_running)
            continue;
        /* One that is connected is better than one that is not. */
        if (found == NULL || (!pgd_line_is_up(found->walker.line) && pgd_line_is_up(s->walker.line)))
            found = s;
    }
    return found;
}

static bool is_idle(const struct pgd_dest *d)
{
    for (size_t i = 0; i < d->slot_count; i++)
        if (d->slots[i].is_running)
            return false;
    return d->queue == NULL && d->waiters == NULL && d->ended == NULL;
}

/* No thread to be had: they hear it on a later turn, as promised. */
static void give_up(struct pgd_dest *d, struct slot *s, const struct err *err)
{
    struct load **end = &d->ended;
    while (*end != NULL)
        end = &(*end)->next;
    for (struct load *load = s->batch; load != NULL; load = load->next)
        pgd_set_failed(load, err);
    *end = s->batch;
    s->batch = NULL;
    s->is_running = false;
    if (s->waiter != NULL) {
        struct waiter *w = s->waiter;
        s->waiter = NULL;
        w->err = *err;
        answer_waiter(d, w);
    }
    later(d);
}

static void start(struct pgd_dest *d, struct slot *s)
{
    struct err err;
    s->is_running = true;
    if (work_thread(d->loop, &s->work, run, on_done, &err) == ERR_NONE)
        return;
    err_wrap(&err, "start a thread for %s", d->where);
    give_up(d, s, &err);
}

static void close_now(struct pgd_dest *d);

static void start_next(struct pgd_dest *d)
{
    struct slot *s;
    if (d->is_closing)
        return;
    while ((s = free_slot(d)) != NULL) {
        if (d->waiters != NULL) {
            s->waiter = d->waiters;
            d->waiters = d->waiters->next;
        } else if ((s->batch = take_batch(d)) == NULL) {
            break;
        }
        uv_timer_stop(&d->idle);
        start(d, s);
    }
    if (!is_idle(d))
        return;
    if (d->closed != NULL)
        close_now(d);
    else
        uv_timer_start(&d->idle, on_idle, IDLE_CLOSE_MS, 0);
}

/* ---- operations ---- */

static void free_dest(struct pgd_dest *d)
{
    for (size_t i = 0; i < d->slot_count; i++) {
        struct pgd_walker *w = &d->slots[i].walker;
        arena_done(&w->arena);
        for (size_t k = 0; k < sizeof(w->stages) / sizeof(w->stages[0]); k++)
            buf_done(&w->stages[k]);
    }
    buf_done(&d->conninfo);
    free(d->slots);
    free(d);
}

static void on_part_closed(struct pgd_dest *d)
{
    if (--d->open_handles > 0)
        return;
    void (*closed)(void *) = d->closed;
    void *arg = d->closed_arg;
    free_dest(d);
    if (closed != NULL)
        closed(arg);
}

static void on_timer_closed(uv_handle_t *handle)
{
    on_part_closed(handle->data);
}

static void on_line_closed(void *arg)
{
    on_part_closed(arg);
}

static void close_now(struct pgd_dest *d)
{
    d->is_closing = true;
    d->open_handles = 2;
    for (size_t i = 0; i < d->slot_count; i++)
        d->open_handles += d->slots[i].walker.line != NULL;
    d->open_handles += d->scripter != NULL;
    if (d->scripter != NULL)
        pgd_scripter_close(d->scripter, on_line_closed, d);
    uv_close((uv_handle_t *)&d->idle, on_timer_closed);
    uv_close((uv_handle_t *)&d->soon, on_timer_closed);
    for (size_t i = 0; i < d->slot_count; i++)
        if (d->slots[i].walker.line != NULL)
            pgd_line_close(d->slots[i].walker.line, on_line_closed, d);
}

static enum err_code open_slots(struct pgd_dest *d, struct err *err)
{
    for (size_t i = 0; i < (size_t)d->options->connections; i++) {
        struct slot *s = &d->slots[i];
        s->dest = d;
        pgd_fill_pg_options(d->options, &d->conninfo, &s->pg);
        s->walker.options = d->options;
        s->walker.home = d->options->schema;
        arena_init(&s->walker.arena);
        for (size_t k = 0; k < sizeof(s->walker.stages) / sizeof(s->walker.stages[0]); k++)
            buf_init(&s->walker.stages[k]);
        d->slot_count++;
        if (pgd_line_new(d->loop, &s->pg, &s->walker.line, err) != ERR_NONE) {
            s->walker.line = NULL;
            return ERR_SYSTEM;
        }
    }
    enum err_code code = pgd_line_try_out(d->slots[0].walker.line, err);
    if (code == ERR_NONE)
        pgd_line_where(d->slots[0].walker.line, d->where, sizeof(d->where));
    return code;
}

static enum err_code pgd_open(const void *options, const struct dest_env *env, uv_loop_t *loop, void **ret_state,
                              struct err *err)
{
    (void)env;
    struct err own;
    if (err == NULL)
        err = &own;
    struct pgd_dest *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return err_nomem(err);
    d->loop = loop;
    d->options = options;
    d->queue_end = &d->queue;
    buf_init(&d->conninfo);
    pgd_add_conninfo(&d->conninfo, d->options);
    d->slots = calloc((size_t)d->options->connections, sizeof(*d->slots));
    if (d->slots == NULL || d->conninfo.failed) {
        free_dest(d);
        return err_nomem(err);
    }
    uv_timer_init(loop, &d->idle);
    uv_timer_init(loop, &d->soon);
    uv_unref((uv_handle_t *)&d->idle); /* waiting for nothing keeps no loop alive */
    d->idle.data = d->soon.data = d;
    pgd_fill_pg_options(d->options, &d->conninfo, &d->script_pg);
    if (open_slots(d, err) != ERR_NONE ||
        pgd_scripter_new(loop, &d->script_pg, d->options->lock_timeout, &d->scripter, err) != ERR_NONE) {
        close_now(d);
        return err->code;
    }
    *ret_state = d;
    return ERR_NONE;
}

static void wait_for(struct pgd_dest *d, char *space, dest_cb *cb, void *arg, const struct err *failed)
{
    struct waiter *w = calloc(1, sizeof(*w));
    if (w == NULL && !d->spare_used) {
        w = &d->spare;
        memset(w, 0, sizeof(*w));
        d->spare_used = true;
    }
    if (w == NULL) {
        free(space);
        return; /* the engine never has two at once */
    }
    w->space = space;
    w->cb = cb;
    w->arg = arg;
    if (failed != NULL)
        w->err = *failed;
    struct waiter **end = &d->waiters;
    while (*end != NULL)
        end = &(*end)->next;
    *end = w;
    later(d);
}

static void pgd_connect(void *state, dest_cb *cb, void *arg)
{
    wait_for(state, NULL, cb, arg, NULL);
}

static void pgd_make_space(void *state, const char *space, dest_cb *cb, void *arg)
{
    char *copy = strdup(space);
    wait_for(state, copy, cb, arg, NULL);
}

static void pgd_health(void *state, struct dest_health *ret)
{
    const struct pgd_dest *d = state;
    memset(ret, 0, sizeof(*ret));
    snprintf(ret->where, sizeof(ret->where), "%s", d->where);
    snprintf(ret->version, sizeof(ret->version), "%s", d->version);
    snprintf(ret->identity, sizeof(ret->identity), "%s", d->identity);
    snprintf(ret->advice, sizeof(ret->advice), "%s", d->advice);
    ret->is_open = d->is_open;
}

static enum err_code pgd_begin(void *state, struct load *load, struct err *err)
{
    struct pgd_dest *d = state;
    if (d->closed != NULL || d->is_closing)
        return err_set(err, ERR_STOPPED, true, "%s is being closed", d->where);
    load->next = NULL;
    if (load->space == NULL)
        load->space = d->options->schema;
    *d->queue_end = load;
    d->queue_end = &load->next;
    later(d); /* on a later turn: whoever begins many at once gets them into one group */
    return ERR_NONE;
}

static bool end_queued(struct pgd_dest *d, struct load *load)
{
    struct err err;
    for (struct load **at = &d->queue; *at != NULL; at = &(*at)->next) {
        if (*at != load)
            continue;
        unlink_at(d, at);
        err_set(&err, ERR_STOPPED, true, "stopped before it began");
        pgd_set_failed(load, &err);
        load->next = d->ended;
        d->ended = load;
        later(d);
        return true;
    }
    return false;
}

static void pgd_abort(void *state, struct load *load)
{
    struct pgd_dest *d = state;
    atomic_store(&load->stop, true);
    if (end_queued(d, load))
        return;
    for (size_t i = 0; i < d->slot_count; i++) {
        struct slot *s = &d->slots[i];
        bool is_mine = false, all_stop = true;
        for (const struct load *l = s->batch; l != NULL; l = l->next) {
            is_mine = is_mine || l == load;
            all_stop = all_stop && atomic_load(&l->stop);
        }
        /* A group goes on without the one that is stopped; the server hears of it when nobody is left. */
        if (is_mine && all_stop)
            pgd_line_cancel(s->walker.line);
    }
}

static void pgd_hurry(void *state)
{
    struct pgd_dest *d = state;
    d->is_hurried = true;
    for (size_t i = 0; i < d->slot_count; i++)
        pgd_line_hurry(d->slots[i].walker.line);
    pgd_scripter_hurry(d->scripter);
}

static enum err_code pgd_run_scripts(void *state, struct scripts *scripts, struct err *err)
{
    struct pgd_dest *d = state;
    if (d->closed != NULL || d->is_closing)
        return err_set(err, ERR_STOPPED, true, "%s is being closed", d->where);
    pgd_scripter_run(d->scripter, scripts);
    return ERR_NONE;
}

static void pgd_abort_scripts(void *state, struct scripts *scripts)
{
    struct pgd_dest *d = state;
    pgd_scripter_abort(d->scripter, scripts);
}

static void pgd_close(void *state, void (*closed)(void *arg), void *arg)
{
    struct pgd_dest *d = state;
    d->closed = closed;
    d->closed_arg = arg;
    later(d);
}

const struct dest_ops dest_postgres = {
    .type = "postgres",
    .summary = "tables in a PostgreSQL database",
    .options = pgd_option_table,
    .options_size = sizeof(struct pgd_options),
    .url_scheme = "postgres",
    .quick_name = "dwh",
    .quick_flow = "postgres",
    .from_url = pgd_from_url,
    .check = pgd_check,
    .flow_defaults = pgd_flow_defaults,
    .takes_parts = true,
    .accepts_rows = true,
    .runs_in_order = true,
    .max_small = IN_FLIGHT,
    .open = pgd_open,
    .connect = pgd_connect,
    .health = pgd_health,
    .table_name = pgd_table_name,
    .space_word = "schema",
    .space_name = pgd_space_name,
    .make_space = pgd_make_space,
    .begin = pgd_begin,
    .abort = pgd_abort,
    .run_scripts = pgd_run_scripts,
    .abort_scripts = pgd_abort_scripts,
    .hurry = pgd_hurry,
    .close = pgd_close,
};
