/*
 * postgres_line.c -- the walker's requests, carried to the loop and their answers back; see postgres_line.h.
 *
 * One request at a time is in the struct, under the lock. The walker sleeps on `changed`; the loop is woken by `async`.
 * The answer is written by the loop into memory of the walker, who sleeps meanwhile.
 */
#include "postgres_line.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RING 4 /* chunks of COPY that wait for the loop */

enum ask { ASK_NOTHING, ASK_CONNECT, ASK_SQL };

struct chunk {
    char *data;
    size_t size;
};

struct pgd_line {
    uv_loop_t *loop;
    struct pg_options options;
    struct pg *pg; /* loop thread; NULL: none */
    uv_async_t async;
    uv_mutex_t lock;
    uv_cond_t changed;
    /* under LOCK */
    enum ask ask; /* what the loop has not begun yet */
    bool is_answered;
    bool is_up, has_transaction; /* as of the last answer */
    bool is_hurried;
    bool was_resumed;  /* the ring has something new */
    char warning[160]; /* the first one since pgd_line_warning() */
    unsigned warnings;
    struct chunk ring[RING];
    size_t first, filled;
    bool copy_ends, copy_fails;
    char *copy_sql; /* of the last COPY: the walker goes on before the loop has read it */
    /* the request, written by the walker before ASK is set, read by the loop after */
    const char *sql;
    bool patient, is_copy;
    struct arena *arena;
    struct pgd_results *results;
    bool results_failed;
    /* the loop's */
    struct chunk feeding;
    bool is_closing;     /* pg_close() is under way */
    bool connects_later; /* and somebody asks to connect meanwhile */
    bool is_ending;      /* pgd_line_close() */
    unsigned handles;
    char where[256];
    void (*closed)(void *arg);
    void *closed_arg;
    /* the answer */
    struct pgd_fault fault;
    uint64_t affected;
    int version;
};

/* ---- loop ---- */

static void copy_text(char *ret, size_t size, const char *text)
{
    snprintf(ret, size, "%s", text != NULL ? text : "");
}

static void answer(struct pgd_line *line, const struct pg_answer *a)
{
    struct pgd_fault *f = &line->fault;
    memset(f, 0, sizeof(*f));
    f->err = a->err;
    f->maybe_done = a->maybe_done;
    memcpy(f->sqlstate, a->fault.sqlstate, sizeof(f->sqlstate));
    copy_text(f->message, sizeof(f->message), a->fault.message);
    copy_text(f->detail, sizeof(f->detail), a->fault.detail);
    copy_text(f->hint, sizeof(f->hint), a->fault.hint);
    copy_text(f->context, sizeof(f->context), a->fault.context);
    copy_text(f->constraint, sizeof(f->constraint), a->fault.constraint);
    copy_text(f->column, sizeof(f->column), a->fault.column);
    if (f->err.code == ERR_NONE && line->results_failed)
        err_nomem(&f->err);
    free(line->feeding.data);
    line->feeding.data = NULL;
    bool is_there = line->pg != NULL && !line->is_closing;
    enum pg_state state = is_there ? pg_state(line->pg) : PG_DOWN;
    enum pg_tx tx = is_there ? pg_tx(line->pg) : PG_TX_UNKNOWN;
    uv_mutex_lock(&line->lock);
    line->is_up = state == PG_READY || state == PG_BUSY;
    line->has_transaction = tx == PG_TX_OPEN || tx == PG_TX_ABORTED || tx == PG_TX_ACTIVE;
    line->is_answered = true;
    while (line->filled > 0) {
        free(line->ring[line->first].data);
        line->first = (line->first + 1) % RING;
        line->filled--;
    }
    uv_cond_broadcast(&line->changed);
    uv_mutex_unlock(&line->lock);
}

static void answer_err(struct pgd_line *line, const struct err *err)
{
    struct pg_answer a;
    memset(&a, 0, sizeof(a));
    a.err = *err;
    answer(line, &a);
}

/* NOTICE and what is below it are talk; a WARNING is meant for who loads. */
static void on_notice(void *arg, const char *severity, const struct pg_fault *notice)
{
    struct pgd_line *line = arg;
    if (strcmp(severity, "WARNING") != 0)
        return;
    uv_mutex_lock(&line->lock);
    if (line->warnings++ == 0)
        copy_text(line->warning, sizeof(line->warning), notice->message);
    uv_mutex_unlock(&line->lock);
}

void pgd_line_warning(struct pgd_line *line, char *ret, size_t size)
{
    uv_mutex_lock(&line->lock);
    if (line->warnings > 1)
        snprintf(ret, size, "%s (and %u more)", line->warning, line->warnings - 1);
    else
        snprintf(ret, size, "%s", line->warnings > 0 ? line->warning : "");
    line->warnings = 0;
    uv_mutex_unlock(&line->lock);
    for (char *p = ret; *p != '\0'; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
}

static void on_connected(void *arg, const struct pg_answer *a)
{
    struct pgd_line *line = arg;
    if (a->err.code == ERR_NONE) {
        line->version = pg_server_version(line->pg);
        pg_where(line->pg, line->where, sizeof(line->where));
    }
    answer(line, a);
}

static bool keep_result(struct pgd_line *line, const struct pg_result *r)
{
    struct pgd_results *all = line->results;
    if (all->count == all->capacity) {
        size_t more = all->capacity > 0 ? 2 * all->capacity : 8;
        struct pgd_result *items = arena_alloc(line->arena, more * sizeof(*items));
        if (items == NULL)
            return false;
        if (all->count > 0)
            memcpy(items, all->items, all->count * sizeof(*items));
        all->items = items;
        all->capacity = more;
    }
    struct pgd_result *to = &all->items[all->count];
    to->rows = pg_rows(r);
    to->columns = pg_columns(r);
    to->affected = pg_affected(r);
    const char **cells = arena_alloc(line->arena, (to->rows * to->columns + 1) * sizeof(*cells));
    if (cells == NULL)
        return false;
    for (size_t i = 0; i < to->rows * to->columns; i++) {
        const char *value = pg_value(r, i / to->columns, i % to->columns);
        cells[i] = value != NULL ? arena_strdup(line->arena, value) : NULL;
        if (value != NULL && cells[i] == NULL)
            return false;
    }
    to->cells = cells;
    all->count++;
    return true;
}

static void on_result(void *arg, const struct pg_result *r)
{
    struct pgd_line *line = arg;
    line->affected = pg_affected(r);
    if (line->results != NULL && !keep_result(line, r))
        line->results_failed = true;
}

static void on_done(void *arg, const struct pg_answer *a)
{
    answer(arg, a);
}

static ssize_t on_read(void *arg, const char **ret_data, struct err *err)
{
    struct pgd_line *line = arg;
    ssize_t n = PG_LATER;
    free(line->feeding.data);
    line->feeding.data = NULL;
    uv_mutex_lock(&line->lock);
    if (line->copy_fails) {
        err_set(err, ERR_STOPPED, true, "given up");
        n = PG_FAIL;
    } else if (line->filled > 0) {
        line->feeding = line->ring[line->first];
        line->first = (line->first + 1) % RING;
        line->filled--;
        *ret_data = line->feeding.data;
        n = (ssize_t)line->feeding.size;
        uv_cond_broadcast(&line->changed);
    } else if (line->copy_ends) {
        n = 0;
    }
    uv_mutex_unlock(&line->lock);
    return n;
}

static void begin_connect(struct pgd_line *line)
{
    struct err err;
    err_clear(&err);
    line->connects_later = line->is_closing;
    if (line->connects_later)
        return; /* the connection before this one was idle for too long, and is just being closed */
    if (line->pg == NULL && pg_open(line->loop, &line->options, &line->pg, &err) != ERR_NONE) {
        line->pg = NULL;
        answer_err(line, &err);
        return;
    }
    pg_connect(line->pg, on_connected, line);
}

static void begin_sql(struct pgd_line *line)
{
    struct err err;
    const struct pg_request r = {.sql = line->sql,
                                 .on_result = on_result,
                                 .read = line->is_copy ? on_read : NULL,
                                 .stall_timeout_ms = line->patient ? UINT64_MAX : 0,
                                 .done = on_done,
                                 .arg = line};
    if (line->pg == NULL)
        err_set(&err, ERR_REMOTE, true, "the connection is closed");
    else if (pg_start(line->pg, &r, &err) == ERR_NONE)
        return;
    /* Whatever it was, it may have been the ROLLBACK: nobody may go on in the transaction that is open. */
    if (line->pg != NULL && err.code == ERR_SYSTEM)
        pgd_line_hang_up(line);
    answer_err(line, &err);
}

static void on_async(uv_async_t *async)
{
    struct pgd_line *line = async->data;
    uv_mutex_lock(&line->lock);
    enum ask ask = line->ask;
    bool was_resumed = line->was_resumed, is_hurried = line->is_hurried;
    line->ask = ASK_NOTHING;
    line->was_resumed = false;
    uv_mutex_unlock(&line->lock);
    if (ask != ASK_NOTHING && is_hurried) {
        struct err err;
        err_set(&err, ERR_STOPPED, true, "stopped");
        answer_err(line, &err);
    } else if (ask == ASK_CONNECT) {
        begin_connect(line);
    } else if (ask == ASK_SQL) {
        begin_sql(line);
    } else if (was_resumed && line->pg != NULL && !line->is_closing) {
        pg_resume(line->pg);
    }
}

/* While nobody asked anything: a server that was stopped, a firewall that forgets. */
static void on_lost(void *arg, const struct err *err)
{
    struct pgd_line *line = arg;
    (void)err; /* the next one who asks connects anew, and hears what is wrong then */
    uv_mutex_lock(&line->lock);
    line->is_up = line->has_transaction = false;
    uv_mutex_unlock(&line->lock);
}

enum err_code pgd_line_new(uv_loop_t *loop, const struct pg_options *options, struct pgd_line **ret, struct err *err)
{
    struct pgd_line *line = calloc(1, sizeof(*line));
    if (line == NULL)
        return err_nomem(err);
    line->loop = loop;
    line->options = *options;
    line->options.on_lost = on_lost;
    line->options.on_notice = on_notice;
    line->options.arg = line;
    if (uv_mutex_init(&line->lock) != 0) {
        free(line);
        return err_nomem(err);
    }
    if (uv_cond_init(&line->changed) != 0) {
        uv_mutex_destroy(&line->lock);
        free(line);
        return err_nomem(err);
    }
    int status = uv_async_init(loop, &line->async, on_async);
    if (status != 0) {
        uv_cond_destroy(&line->changed);
        uv_mutex_destroy(&line->lock);
        free(line);
        return err_set(err, ERR_SYSTEM, true, "wake the loop: %s", uv_strerror(status));
    }
    line->async.data = line;
    uv_unref((uv_handle_t *)&line->async); /* who walks has a thread that keeps the loop alive */
    *ret = line;
    return ERR_NONE;
}

enum err_code pgd_line_try_out(struct pgd_line *line, struct err *err)
{
    enum err_code code = pg_open(line->loop, &line->options, &line->pg, err);
    if (code != ERR_NONE)
        line->pg = NULL;
    else
        pg_where(line->pg, line->where, sizeof(line->where));
    return code;
}

static void on_async_closed(uv_handle_t *handle)
{
    struct pgd_line *line = handle->data;
    void (*closed)(void *) = line->closed;
    void *arg = line->closed_arg;
    uv_cond_destroy(&line->changed);
    uv_mutex_destroy(&line->lock);
    free(line->copy_sql);
    free(line);
    closed(arg);
}

static void on_pg_closed(void *arg)
{
    struct pgd_line *line = arg;
    line->pg = NULL;
    line->is_closing = false;
    uv_mutex_lock(&line->lock);
    line->is_up = line->has_transaction = false;
    bool is_hurried = line->is_hurried;
    uv_mutex_unlock(&line->lock);
    if (line->connects_later && is_hurried) {
        struct err err;
        err_set(&err, ERR_STOPPED, true, "stopped");
        line->connects_later = false;
        answer_err(line, &err);
    } else if (line->connects_later) {
        begin_connect(line);
    }
    if (line->is_ending)
        uv_close((uv_handle_t *)&line->async, on_async_closed);
}

void pgd_line_hang_up(struct pgd_line *line)
{
    if (line->pg == NULL || line->is_closing)
        return;
    line->is_closing = true;
    pg_close(line->pg, on_pg_closed, line);
}

void pgd_line_hurry(struct pgd_line *line)
{
    uv_mutex_lock(&line->lock);
    line->is_hurried = true;
    uv_mutex_unlock(&line->lock);
    pgd_line_hang_up(line);
}

void pgd_line_cancel(struct pgd_line *line)
{
    if (line->pg != NULL && !line->is_closing)
        pg_cancel(line->pg);
}

bool pgd_line_is_up(const struct pgd_line *line)
{
    return line->pg != NULL && !line->is_closing && pg_state(line->pg) != PG_DOWN;
}

void pgd_line_close(struct pgd_line *line, void (*closed)(void *arg), void *arg)
{
    line->closed = closed;
    line->closed_arg = arg;
    line->is_ending = true;
    if (line->pg == NULL)
        uv_close((uv_handle_t *)&line->async, on_async_closed);
    else
        pgd_line_hang_up(line);
}

void pgd_line_where(const struct pgd_line *line, char *ret, size_t size)
{
    if (line->pg != NULL && !line->is_closing)
        pg_where(line->pg, ret, size);
    else
        snprintf(ret, size, "%s", line->where);
}

/* ---- the walker ---- */

static void post(struct pgd_line *line, enum ask ask)
{
    uv_mutex_lock(&line->lock);
    line->ask = ask;
    line->is_answered = false;
    uv_mutex_unlock(&line->lock);
    uv_async_send(&line->async);
}

static enum err_code wait_answer(struct pgd_line *line, struct err *err)
{
    uv_mutex_lock(&line->lock);
    while (!line->is_answered)
        uv_cond_wait(&line->changed, &line->lock);
    uv_mutex_unlock(&line->lock);
    if (line->fault.err.code != ERR_NONE && err != NULL)
        *err = line->fault.err;
    return line->fault.err.code;
}

enum err_code pgd_line_connect(struct pgd_line *line, bool *ret_fresh, struct err *err)
{
    *ret_fresh = false;
    if (!pgd_line_is_lost(line))
        return ERR_NONE;
    *ret_fresh = true;
    post(line, ASK_CONNECT);
    return wait_answer(line, err);
}

int pgd_line_server_version(const struct pgd_line *line)
{
    return line->version;
}

static void ask_sql(struct pgd_line *line, const char *sql, bool patient, bool is_copy, struct arena *arena,
                    struct pgd_results *results)
{
    line->sql = sql;
    line->patient = patient;
    line->is_copy = is_copy;
    line->arena = arena;
    line->results = results;
    line->results_failed = false;
    line->affected = 0;
    line->copy_ends = line->copy_fails = false;
    if (results != NULL)
        memset(results, 0, sizeof(*results));
    post(line, ASK_SQL);
}

enum err_code pgd_line_ask(struct pgd_line *line, const char *sql, bool patient, struct arena *arena,
                           struct pgd_results *ret, struct err *err)
{
    ask_sql(line, sql, patient, false, arena, ret);
    return wait_answer(line, err);
}

const struct pgd_fault *pgd_line_fault(const struct pgd_line *line)
{
    return &line->fault;
}

enum err_code pgd_line_copy(struct pgd_line *line, const char *sql, struct err *err)
{
    free(line->copy_sql);
    line->copy_sql = strdup(sql);
    if (line->copy_sql == NULL)
        return err_nomem(err);
    ask_sql(line, line->copy_sql, false, true, NULL, NULL);
    return ERR_NONE; /* what the server thinks of it comes with the first put, or the end */
}

enum err_code pgd_line_put(struct pgd_line *line, char *data, size_t size, struct err *err)
{
    uv_mutex_lock(&line->lock);
    while (!line->is_answered && line->filled == RING)
        uv_cond_wait(&line->changed, &line->lock);
    bool is_over = line->is_answered;
    if (!is_over) {
        line->ring[(line->first + line->filled++) % RING] = (struct chunk){data, size};
        line->was_resumed = true;
    }
    uv_mutex_unlock(&line->lock);
    if (!is_over) {
        uv_async_send(&line->async);
        return ERR_NONE;
    }
    free(data);
    if (line->fault.err.code == ERR_NONE)
        err_set(&line->fault.err, ERR_REMOTE, true, "the server ended COPY before all rows were sent");
    *err = line->fault.err;
    return err->code;
}

static void end_copy(struct pgd_line *line, bool fails)
{
    uv_mutex_lock(&line->lock);
    line->copy_ends = !fails;
    line->copy_fails = fails;
    line->was_resumed = true;
    uv_mutex_unlock(&line->lock);
    uv_async_send(&line->async);
}

enum err_code pgd_line_copy_end(struct pgd_line *line, uint64_t *ret_rows, struct err *err)
{
    end_copy(line, false);
    enum err_code code = wait_answer(line, err);
    *ret_rows = line->affected;
    return code;
}

void pgd_line_copy_abort(struct pgd_line *line)
{
    end_copy(line, true);
    wait_answer(line, NULL);
}

bool pgd_line_is_lost(const struct pgd_line *line)
{
    struct pgd_line *l = (struct pgd_line *)(uintptr_t)line;
    uv_mutex_lock(&l->lock);
    bool is_up = l->is_up;
    uv_mutex_unlock(&l->lock);
    return !is_up;
}

void pgd_line_rollback(struct pgd_line *line)
{
    uv_mutex_lock(&line->lock);
    bool is_open = line->is_up && line->has_transaction;
    uv_mutex_unlock(&line->lock);
    struct pgd_fault said = line->fault; /* what made us roll back is still wanted */
    if (is_open)
        pgd_line_ask(line, "ROLLBACK", false, NULL, NULL, NULL);
    line->fault = said;
}
