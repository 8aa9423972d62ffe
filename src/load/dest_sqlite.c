/*
 * dest_sqlite.c -- the SQLite destination: its operations, its queue, and the groups of small loads that share a
 * commit.
 *
 * One connection, used by one thread at a time. While there is work a worker thread takes a batch from the queue's
 * front: one large load, or as many small ones as wait. When the batch is done the loop hears of it and starts the
 * next. No thread, no timer and after a moment no open file is left when nothing waits.
 */
#include "sqlite_internal.h"

#include "clock.h"
#include "text.h"
#include "work.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LITE_NAME_MAX 512 /* of a table, with its end */
#define GROUP_LOADS 512
#define GROUP_MS 50        /* small loads share a transaction for so long: others want to write too */
#define IDLE_CLOSE_MS 2000 /* then the database is a plain file again that can be copied */

struct sqlite_options {
    const char *path;
    uint64_t lock_timeout;
};

static const struct option option_table[] = {
    {.name = "path",
     .type = OPT_PATH,
     .offset = offsetof(struct sqlite_options, path),
     .flags = OPT_REQUIRED,
     .help = "The database file; made, in WAL mode, if it does not exist. Its folder must exist."},
    {.name = "lock_timeout",
     .type = OPT_DURATION,
     .offset = offsetof(struct sqlite_options, lock_timeout),
     .default_text = "5s",
     .help = "How long one try waits while another program holds the database's lock; then the load is retried later.",
     .min = 1,
     .max = 24LL * 3600 * 1000},
    {.name = NULL},
};

static const char *const flow_defaults[] = {"table", "{path_stem}",      "names",    "keep", "types",
                                            "infer", "on_schema_change", "recreate", NULL};

struct waiter {
    struct waiter *next;
    dest_cb *cb;
    void *arg;
};

/* The work member comes first: the worker's callbacks get it. */
struct lite_dest {
    struct work work;
    uv_loop_t *loop;
    char *path;
    struct conn conn;   /* the worker's while is_running */
    struct load *queue; /* begun, not with the worker yet; in order */
    struct load **queue_end;
    struct load *batch;            /* with the worker */
    struct load *ended;            /* aborted before the worker had them */
    struct scripts *scripts;       /* wait for the worker; in order */
    struct scripts *script;        /* with the worker; then there is no batch */
    struct scripts *ended_scripts; /* as ended */
    struct waiter *waiters;        /* connect() calls to be answered by the next run */
    struct waiter spare;
    struct waiter *answering; /* by the run that is on */
    struct err connect_err;
    bool wants_close; /* the run that is on only closes the connection */
    bool is_running;
    bool is_open; /* as the last run found it */
    bool is_homeless;
    char identity[40];
    uv_timer_t idle;
    uv_timer_t soon; /* tells ended loads on a later turn */
    int open_handles;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- on the worker's thread ---- */

static void fail(struct load *load, const struct err *err)
{
    load->err = *err;
    memset(&load->receipt, 0, sizeof(load->receipt));
    load->receipt.dest_rows = -1;
}

/* Small loads from FIRST to before END are in the open transaction; commit, or give all of them its error. */
static void end_group(struct conn *c, struct load *first, const struct load *end)
{
    struct err err;
    err_clear(&err);
    if (first == NULL)
        return;
    c->current = NULL;
    if (conn_in_transaction(c)) {
        if (conn_commit(c, &err) == ERR_NONE)
            return;
        conn_rollback(c);
    } else {
        err_set(&err, ERR_SYSTEM, true, "%s: SQLite gave up the transaction that this load shared with another",
                c->path);
    }
    for (struct load *load = first; load != end; load = load->next)
        if (load->err.code == ERR_NONE)
            fail(load, &err);
}

static enum err_code run_small(struct conn *c, struct load *load)
{
    struct err err;
    err_clear(&err);
    enum err_code code = conn_word(c, &err, "SAVEPOINT chute_load");
    if (code == ERR_NONE)
        code = lite_small(c, load, &err);
    if (code == ERR_NONE)
        code = conn_word(c, &err, "RELEASE chute_load");
    if (code == ERR_NONE)
        return ERR_NONE;
    if (!conn_in_transaction(c) && err.code != ERR_STOPPED && !(err.code == ERR_SYSTEM && err.retryable))
        code = err_set(&err, ERR_SYSTEM, true, "%s: SQLite gave up the transaction of this load", c->path);
    fail(load, &err);
    c->current = NULL; /* or an aborted load would abort its own rollback */
    buf_clear(&c->stage);
    parts_forget(c);
    known_forget(c);
    if (conn_in_transaction(c))
        sqlite3_exec(c->db, "ROLLBACK TO chute_load; RELEASE chute_load", NULL, NULL, NULL);
    return code;
}

/* The loads from LOAD on can't run. */
static void fail_rest(struct load *load, const struct err *err)
{
    for (; load != NULL; load = load->next)
        fail(load, err);
}

/* Open the transaction of a group. */
static bool begin_group(struct conn *c, struct load *load)
{
    struct err err;
    err_clear(&err);
    c->current = load;
    if (conn_begin(c, &err) == ERR_NONE)
        return true;
    if (err.code == ERR_STOPPED)
        fail(load, &err); /* only this one; the next waits anew */
    else
        fail_rest(load, &err); /* locked for one is locked for all: don't wait for each */
    return false;
}

static void run_loads(struct conn *c, struct load *batch)
{
    struct load *group = NULL;
    uint64_t began_ms = 0;
    struct err err;
    for (struct load *load = batch; load != NULL; load = load->next) {
        err_clear(&load->err);
        if (atomic_load(&load->stop)) {
            err_set(&err, ERR_STOPPED, true, "stopped before it began");
            fail(load, &err);
            continue;
        }
        if (!lite_is_small(load)) {
            c->current = load;
            err_clear(&err);
            if (lite_large(c, load, &err) != ERR_NONE)
                fail(load, &err);
            c->current = NULL;
            continue;
        }
        if (group == NULL) {
            if (!begin_group(c, load)) {
                if (load->err.code == ERR_STOPPED)
                    continue;
                break;
            }
            group = load;
            began_ms = clock_mono_ms();
        }
        c->current = load;
        run_small(c, load);
        c->current = NULL;
        if (!conn_in_transaction(c) || clock_mono_ms() - began_ms >= GROUP_MS) {
            end_group(c, group, load->next);
            group = NULL;
        }
    }
    end_group(c, group, NULL);
    c->current = NULL;
}

static void run(struct work *work)
{
    struct lite_dest *d = (struct lite_dest *)work;
    struct err err;
    err_clear(&err);
    if (d->wants_close) {
        conn_close(&d->conn);
        return;
    }
    enum err_code code = conn_open(&d->conn, &err);
    if (code == ERR_NONE && d->answering != NULL)
        code = shadow_clean(&d->conn, NULL, &err);
    d->connect_err = err;
    if (d->script != NULL) {
        if (code == ERR_NONE)
            lite_script(&d->conn, d->script, &err);
        d->script->err = err;
    } else if (code != ERR_NONE)
        fail_rest(d->batch, &err);
    else
        run_loads(&d->conn, d->batch);
    /* A database that turned out sick is looked at afresh next time. */
    for (const struct load *load = d->batch; load != NULL; load = load->next)
        if (load->err.code == ERR_DENIED || load->err.code == ERR_SYSTEM)
            conn_close(&d->conn);
}

/* ---- on the loop ---- */

static void start_next(struct lite_dest *d);

static void tell_ended(struct lite_dest *d)
{
    while (d->ended_scripts != NULL) {
        struct scripts *scripts = d->ended_scripts;
        d->ended_scripts = scripts->next;
        scripts->next = NULL;
        scripts->finished(scripts);
    }
    while (d->ended != NULL) {
        struct load *load = d->ended;
        d->ended = load->next;
        load->next = NULL;
        load->finished(load);
    }
}

static void on_soon(uv_timer_t *timer)
{
    struct lite_dest *d = timer->data;
    tell_ended(d);
    if (!d->is_running)
        start_next(d);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct lite_dest *d = handle->data;
    if (--d->open_handles > 0)
        return;
    void (*closed)(void *) = d->closed;
    void *arg = d->closed_arg;
    conn_done(&d->conn);
    free(d->path);
    free(d);
    closed(arg);
}

static void answer_waiters(struct lite_dest *d)
{
    while (d->answering != NULL) {
        struct waiter *w = d->answering;
        struct err err = d->connect_err;
        d->answering = w->next;
        dest_cb *cb = w->cb;
        void *arg = w->arg;
        if (w == &d->spare)
            w->cb = NULL;
        else
            free(w);
        cb(arg, err.code == ERR_NONE ? NULL : &err);
    }
}

static void on_done(struct work *work)
{
    struct lite_dest *d = (struct lite_dest *)work;
    bool was_closing = d->wants_close;
    d->wants_close = false;
    if (!was_closing) {
        d->is_open = d->connect_err.code == ERR_NONE;
        d->is_homeless = !d->is_open && d->conn.is_homeless;
        if (d->is_open)
            snprintf(d->identity, sizeof(d->identity), "%s", d->conn.identity);
    }
    struct load *batch = d->batch;
    struct scripts *script = d->script;
    d->batch = NULL;
    d->script = NULL;
    if (script != NULL)
        script->finished(script);
    while (batch != NULL) {
        struct load *load = batch;
        batch = load->next;
        load->next = NULL;
        load->finished(load); /* may begin others: is_running keeps them in the queue */
    }
    answer_waiters(d);
    d->is_running = false;
    start_next(d);
}

static void on_idle(uv_timer_t *timer)
{
    struct lite_dest *d = timer->data;
    struct err ignored;
    if (d->is_running || d->queue != NULL || d->waiters != NULL || d->scripts != NULL)
        return;
    d->wants_close = true;
    d->is_running = work_thread(d->loop, &d->work, run, on_done, &ignored) == ERR_NONE;
    if (!d->is_running) {
        d->wants_close = false;
        uv_timer_start(&d->idle, on_idle, IDLE_CLOSE_MS, 0);
    }
}

/* One large load, or the small ones up to the next large one. */
static struct load *take_batch(struct lite_dest *d)
{
    struct load *first = d->queue;
    struct load *last = first;
    if (first == NULL)
        return NULL;
    for (int i = 1; i < GROUP_LOADS && lite_is_small(last) && last->next != NULL && lite_is_small(last->next); i++)
        last = last->next;
    d->queue = last->next;
    last->next = NULL;
    if (d->queue == NULL)
        d->queue_end = &d->queue;
    return first;
}

/* Told on a later turn. */
static void end_scripts(struct lite_dest *d, struct scripts *scripts, const struct err *err)
{
    scripts->err = *err;
    scripts->next = d->ended_scripts;
    d->ended_scripts = scripts;
}

static void start_next(struct lite_dest *d)
{
    struct err err;
    if (d->is_running || d->open_handles < 2)
        return;
    if (d->queue == NULL && d->waiters == NULL && d->scripts == NULL) {
        if (d->closed != NULL && d->ended == NULL && d->ended_scripts == NULL) {
            /* The connection is closed where its work is done: the last one out copies the WAL back, which may take a
             * while. */
            if (d->conn.db != NULL) {
                d->wants_close = true;
                d->is_running = work_thread(d->loop, &d->work, run, on_done, &err) == ERR_NONE;
                if (d->is_running)
                    return;
                d->wants_close = false;
            }
            uv_close((uv_handle_t *)&d->idle, on_handle_closed);
            uv_close((uv_handle_t *)&d->soon, on_handle_closed);
        } else if (d->conn.db != NULL) {
            uv_timer_start(&d->idle, on_idle, IDLE_CLOSE_MS, 0);
        }
        return;
    }
    uv_timer_stop(&d->idle);
    d->answering = d->waiters;
    d->waiters = NULL;
    d->script = d->scripts;
    if (d->script != NULL) { /* before the loads that wait, so that a long queue does not keep it for hours */
        d->scripts = d->script->next;
        d->script->next = NULL;
    } else {
        d->batch = take_batch(d);
    }
    d->is_running = true;
    if (work_thread(d->loop, &d->work, run, on_done, &err) == ERR_NONE)
        return;
    /* No thread to be had: tell them on a later turn, as promised. */
    err_wrap(&err, "start the worker of %s", d->path);
    d->is_running = false;
    fail_rest(d->batch, &err);
    struct load **end = &d->ended;
    while (*end != NULL)
        end = &(*end)->next;
    *end = d->batch;
    d->batch = NULL;
    if (d->script != NULL)
        end_scripts(d, d->script, &err);
    d->script = NULL;
    d->connect_err = err;
    answer_waiters(d);
    uv_timer_start(&d->soon, on_soon, 0, 0);
}

static enum err_code lite_from_url(const char *url, void *options, struct err *err)
{
    struct sqlite_options *o = options;
    const char *scheme = "sqlite:";
    const char *path = strncmp(url, scheme, strlen(scheme)) == 0 ? url + strlen(scheme) : url;
    if (path[0] == '\0')
        return err_set(err, ERR_CONFIG, false, "expected sqlite:PATH, found \"%s\": say which file the tables go to",
                       url);
    o->path = path;
    return ERR_NONE;
}

static enum err_code lite_check(const void *options, struct err *err)
{
    const struct sqlite_options *o = options;
    if (o->path == NULL || o->path[0] == '\0')
        return err_set(err, ERR_CONFIG, false, "path: expected a file name, found nothing");
    size_t n = strlen(o->path);
    if (o->path[n - 1] == '/')
        return err_set(err, ERR_CONFIG, false, "path: expected a file name, found the folder \"%s\"", o->path);
    if (n >= 8 && strcmp(o->path + n - 8, ":memory:") == 0)
        return err_set(err, ERR_CONFIG, false, "path: a database in memory would be gone with chute: name a file");
    return ERR_NONE;
}

static char *absolute(const char *path, struct err *err)
{
    char folder[4096], *ret = NULL;
    if (path[0] == '/')
        ret = strdup(path);
    else if (getcwd(folder, sizeof(folder)) == NULL) {
        err_set(err, ERR_SYSTEM, true, "the current folder: %s", strerror(errno));
        return NULL;
    } else if (asprintf(&ret, "%s/%s", folder, path) < 0)
        ret = NULL;
    if (ret == NULL)
        err_nomem(err);
    return ret;
}

static enum err_code lite_open(const void *options, const struct dest_env *env, uv_loop_t *loop, void **ret_state,
                               struct err *err)
{
    (void)env;
    const struct sqlite_options *o = options;
    struct lite_dest *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return err_nomem(err);
    d->path = absolute(o->path, err);
    if (d->path == NULL) {
        free(d);
        return err != NULL ? err->code : ERR_SYSTEM;
    }
    d->loop = loop;
    d->queue_end = &d->queue;
    conn_init(&d->conn, d->path, o->lock_timeout);
    uv_timer_init(loop, &d->idle);
    uv_timer_init(loop, &d->soon);
    uv_unref((uv_handle_t *)&d->idle); /* waiting for nothing keeps no loop alive */
    d->idle.data = d->soon.data = d;
    d->open_handles = 2;
    *ret_state = d;
    return ERR_NONE;
}

static void lite_connect(void *state, dest_cb *cb, void *arg)
{
    struct lite_dest *d = state;
    struct waiter *w = calloc(1, sizeof(*w));
    /* An answer is promised, so one waiter needs no memory; the engine never has two at once. */
    if (w == NULL && d->spare.cb == NULL)
        w = &d->spare;
    if (w == NULL)
        return;
    w->cb = cb;
    w->arg = arg;
    w->next = d->waiters;
    d->waiters = w;
    uv_timer_start(&d->soon, on_soon, 0, 0);
}

static void lite_health(void *state, struct dest_health *ret)
{
    const struct lite_dest *d = state;
    memset(ret, 0, sizeof(*ret));
    snprintf(ret->where, sizeof(ret->where), "%s", d->path);
    snprintf(ret->version, sizeof(ret->version), "SQLite %s", sqlite3_libversion());
    snprintf(ret->identity, sizeof(ret->identity), "%s", d->identity);
    ret->is_open = d->is_open;
    ret->is_homeless = d->is_homeless;
}

static enum err_code lite_table_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                                     struct err *err)
{
    enum err_code code = name_legal("table", name, policy, ret, size < LITE_NAME_MAX ? size : LITE_NAME_MAX, err);
    if (code != ERR_NONE)
        return code;
    for (size_t i = 0; i <= strlen(ret); i++)
        ret_key[i] = ret[i] >= 'A' && ret[i] <= 'Z' ? (char)(ret[i] + ('a' - 'A')) : ret[i];
    if (strncmp(ret_key, "sqlite_", 7) == 0 || strncmp(ret_key, LITE_PREFIX, strlen(LITE_PREFIX)) == 0)
        return err_set(err, ERR_INPUT, false,
                       "table name \"%.200s\": names that begin with sqlite_ or " LITE_PREFIX
                       " are reserved: rename the file or give the flow another table",
                       ret);
    return ERR_NONE;
}

static enum err_code lite_begin(void *state, struct load *load, struct err *err)
{
    struct lite_dest *d = state;
    if (d->closed != NULL)
        return err_set(err, ERR_STOPPED, true, "%s is being closed", d->path);
    load->next = NULL;
    *d->queue_end = load;
    d->queue_end = &load->next;
    /* On a later turn: whoever begins many at once gets them into one group. */
    if (!d->is_running && !uv_is_active((uv_handle_t *)&d->soon))
        uv_timer_start(&d->soon, on_soon, 0, 0);
    return ERR_NONE;
}

static void lite_abort(void *state, struct load *load)
{
    struct lite_dest *d = state;
    struct err err;
    atomic_store(&load->stop, true);
    for (struct load **at = &d->queue; *at != NULL; at = &(*at)->next) {
        if (*at != load)
            continue;
        *at = load->next;
        if (*at == NULL)
            d->queue_end = at;
        err_set(&err, ERR_STOPPED, true, "stopped before it began");
        fail(load, &err);
        load->next = d->ended;
        d->ended = load;
        uv_timer_start(&d->soon, on_soon, 0, 0);
        return;
    }
}

static enum err_code lite_run_scripts(void *state, struct scripts *scripts, struct err *err)
{
    struct lite_dest *d = state;
    struct scripts **end = &d->scripts;
    if (d->closed != NULL)
        return err_set(err, ERR_STOPPED, true, "%s is being closed", d->path);
    while (*end != NULL)
        end = &(*end)->next;
    scripts->next = NULL;
    *end = scripts;
    if (!d->is_running && !uv_is_active((uv_handle_t *)&d->soon))
        uv_timer_start(&d->soon, on_soon, 0, 0);
    return ERR_NONE;
}

static void lite_abort_scripts(void *state, struct scripts *scripts)
{
    struct lite_dest *d = state;
    struct err err;
    atomic_store(&scripts->stop, true);
    for (struct scripts **at = &d->scripts; *at != NULL; at = &(*at)->next) {
        if (*at != scripts)
            continue;
        *at = scripts->next;
        err_set(&err, ERR_STOPPED, true, "stopped before it began");
        end_scripts(d, scripts, &err);
        uv_timer_start(&d->soon, on_soon, 0, 0);
        return;
    }
}

static void lite_close(void *state, void (*closed)(void *arg), void *arg)
{
    struct lite_dest *d = state;
    d->closed = closed;
    d->closed_arg = arg;
    uv_timer_start(&d->soon, on_soon, 0, 0);
}

const struct dest_ops dest_sqlite = {
    .type = "sqlite",
    .summary = "tables in a SQLite database file",
    .options = option_table,
    .options_size = sizeof(struct sqlite_options),
    .url_scheme = "sqlite:",
    .quick_name = "lite",
    .quick_flow = "file2sql",
    .from_url = lite_from_url,
    .check = lite_check,
    .flow_defaults = flow_defaults,
    .takes_parts = true,
    .accepts_rows = true,
    .runs_in_order = true,
    .max_small = GROUP_LOADS,
    .open = lite_open,
    .connect = lite_connect,
    .health = lite_health,
    .table_name = lite_table_name,
    .begin = lite_begin,
    .abort = lite_abort,
    .run_scripts = lite_run_scripts,
    .abort_scripts = lite_abort_scripts,
    .close = lite_close,
};
