/*
 * pg.c -- the life of one connection: its socket on the loop, its queue, its clocks, its end.
 *
 * Three rules keep it simple. Callbacks of our users come from one place, turn(), which only the loop's own callbacks
 * call; everything else notes what is due. Requests are begun there too, so libpq is never entered from inside one of
 * its callbacks. And the socket's handle ends before libpq can close the socket: a new one may have the same number.
 *
 *   down -> connecting -> ready <-> busy        pg_break() leads from anywhere back to down
 */
#include "pg_internal.h"

#include "utlist.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CANCEL_TIMEOUT_MS 10000
#define CANCEL_AGAIN_MS 100

static void turn(struct pg *pg);

/* ---- the next turn ----------------------------------------------------------------------------------------------- */

static void on_kick(uv_idle_t *idle)
{
    struct pg *pg = idle->data;
    uv_idle_stop(idle);
    if (pg->current != NULL && pg->current->is_copying && !pg->current->is_waiting) /* pg_resume() */
        pg_call_advance(pg, false);
    turn(pg);
}

void pg_kick(struct pg *pg)
{
    if (!pg->is_torn_down)
        uv_idle_start(&pg->kick, on_kick);
}

/* ---- the socket -------------------------------------------------------------------------------------------------- */

static void count_closed(struct pg *pg);

static void on_unwatched(uv_handle_t *handle)
{
    struct pg_watched *w = handle->data;
    struct pg *pg = w->pg;
    free(w);
    count_closed(pg);
}

void pg_unwatch(struct pg *pg)
{
    if (pg->watched != NULL)
        uv_close((uv_handle_t *)&pg->watched->poll, on_unwatched);
    pg->watched = NULL;
}

static void on_socket(uv_poll_t *poll, int status, int events)
{
    struct pg_watched *w = poll->data;
    struct pg *pg = w->pg;
    pg->active_ms = uv_now(pg->loop);
    if (status < 0) { /* an error is pending, and libuv has stopped watching: reading tells which */
        w->events = 0;
        events = UV_READABLE;
    }
    if (pg->connecting != NULL)
        pg_connect_event(pg);
    else if (pg->is_open)
        pg_call_advance(pg, (events & UV_READABLE) != 0);
    turn(pg);
}

bool pg_watch(struct pg *pg, int events)
{
    struct pg_watched *w = pg->watched;
    if (w == NULL) {
        w = calloc(1, sizeof *w);
        if (w == NULL)
            return false;
        if (uv_poll_init(pg->loop, &w->poll, pg->lib->socket(pg->conn)) != 0) {
            free(w);
            return false;
        }
        w->poll.data = w;
        w->pg = pg;
        pg->watched = w;
        pg->handles++;
    }
    if (w->events == events) /* starting anew costs two system calls */
        return true;
    w->events = events;
    return uv_poll_start(&w->poll, events, on_socket) == 0;
}

/* An idle connection listens, but does not keep the loop alive. */
static void watch_idle(struct pg *pg)
{
    struct err err;
    if (!pg_watch(pg, UV_READABLE)) {
        err_set(&err, ERR_SYSTEM, true, "%s: the connection can't be watched: out of memory or descriptors", pg->where);
        pg_break(pg, &err);
        return;
    }
    uv_unref((uv_handle_t *)&pg->watched->poll);
}

/* ---- clocks ------------------------------------------------------------------------------------------------------ */

static void on_deadline(uv_timer_t *timer);

void pg_deadline_in(struct pg *pg, uint64_t ms)
{
    uv_timer_start(&pg->deadline, on_deadline, ms, 0);
}

static void watch_silence(struct pg *pg)
{
    pg->active_ms = uv_now(pg->loop);
    if (pg->current->r.stall_timeout_ms != UINT64_MAX)
        pg_deadline_in(pg, pg->current->r.stall_timeout_ms);
}

/* Bytes only note that they came or went; the clock is set again when it has run out. */
static void look_at_silence(struct pg *pg, const struct pg_call *call)
{
    struct err err;
    uint64_t limit = call->r.stall_timeout_ms, silent = uv_now(pg->loop) - pg->active_ms;
    if (call->is_stopping) /* on_cut() will see to it */
        return;
    if (call->is_waiting) { /* the silence is the producer's */
        pg_deadline_in(pg, limit);
    } else if (silent < limit) {
        pg_deadline_in(pg, limit - silent);
    } else {
        err_set(&err, ERR_REMOTE, true, "%s: no byte came or went for %llu ms", pg->where, (unsigned long long)limit);
        pg_break(pg, &err);
    }
}

static void on_deadline(uv_timer_t *timer)
{
    struct pg *pg = timer->data;
    if (pg->connecting != NULL)
        pg_connect_timeout(pg);
    else if (pg->current != NULL)
        look_at_silence(pg, pg->current);
    turn(pg);
}

static void on_cut(uv_timer_t *timer)
{
    struct pg *pg = timer->data;
    struct err err;
    if (pg->current != NULL && pg->current->err.code == ERR_NONE) /* asked to stop: so that is what happened to it */
        err_set(&pg->current->err, ERR_STOPPED, false, "stopped; the server did not, its connection was cut");
    err_set(&err, ERR_REMOTE, true, "%s: the server did not stop within %llu ms: its connection was cut", pg->where,
            (unsigned long long)pg->o.cancel_timeout_ms);
    if (pg->is_open)
        pg_break(pg, &err);
    turn(pg);
}

void pg_cancel_begin(struct pg *pg)
{
    /* Without memory for it the connection is cut after a while. Else the handle keeps the loop alive till it came. */
    if (pg_cancel_send(pg))
        uv_ref((uv_handle_t *)&pg->cancelled);
    uv_timer_start(&pg->cut, on_cut, pg->o.cancel_timeout_ms, 0);
}

static void on_doubt(uv_timer_t *timer)
{
    struct pg *pg = timer->data;
    if (pg->current != NULL && pg->current->is_stopping) {
        if (pg_cancel_send(pg))
            uv_ref((uv_handle_t *)&pg->cancelled);
    } else if (pg->current != NULL && pg->is_doubtful) {
        pg_call_doubted(pg);
    }
    turn(pg);
}

void pg_doubt_soon(struct pg *pg, uint64_t ms)
{
    pg->is_doubtful = true;
    uv_timer_start(&pg->doubt, on_doubt, ms, 0);
}

/* ---- broken, and open again -------------------------------------------------------------------------------------- */

static void end_call(struct pg *pg, struct pg_call *call)
{
    DL_DELETE(pg->queue, call);
    DL_APPEND(pg->ended, call);
}

/* Everything in the queue but what runs ends with ERR. */
static void drop_waiting(struct pg *pg, const struct err *err)
{
    struct pg_call *call, *next;
    DL_FOREACH_SAFE(pg->queue, call, next) {
        if (call == pg->current)
            continue;
        call->err = *err;
        end_call(pg, call);
    }
}

static void end_current(struct pg *pg)
{
    struct pg_call *call = pg->current;
    uv_timer_stop(&pg->deadline);
    uv_timer_stop(&pg->doubt);
    pg->is_doubtful = false;
    if (pg->canceller == NULL)
        uv_timer_stop(&pg->cut);
    pg->current = NULL;
    end_call(pg, call);
}

static void drop_connection(struct pg *pg)
{
    pg_unwatch(pg);
    pg_cancel_leave(pg);
    uv_unref((uv_handle_t *)&pg->cancelled);
    uv_timer_stop(&pg->cut);
    if (pg->conn != NULL)
        pg->lib->finish(pg->conn);
    pg->conn = NULL;
    pg->is_open = false;
}

void pg_break(struct pg *pg, const struct err *err)
{
    bool was_idle = pg->queue == NULL;
    if (pg->current != NULL) {
        /* It may have heard already, from the server or from us, why it failed. */
        if (pg->current->err.code == ERR_NONE && pg->current->failed == NULL)
            pg->current->err = *err;
        end_current(pg);
    }
    drop_waiting(pg, err);
    drop_connection(pg);
    if (was_idle && !pg->is_closing) {
        pg->lost_err = *err;
        pg->is_lost_due = true;
    }
    pg_kick(pg);
}

static void note_last_words(struct pg *pg, const struct pg_fault *fault)
{
    snprintf(pg->last_words.sqlstate, sizeof pg->last_words.sqlstate, "%s", fault->sqlstate);
    snprintf(pg->last_words.text, sizeof pg->last_words.text, "%s", fault->message);
}

/* A server that ends an idle session says why in an error that belongs to no request: libpq gives it as a notice. */
void pg_hear(void *arg, const PGresult *res)
{
    struct pg *pg = arg;
    struct pg_fault fault;
    const char *severity = pg->lib->resultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
    if (severity == NULL) /* before 9.6, or of libpq itself */
        severity = pg->lib->resultErrorField(res, PG_DIAG_SEVERITY);
    if (severity == NULL)
        severity = "NOTICE";
    pg_fault_of(pg->lib, res, &fault);
    pg->notices++;
    if (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0)
        note_last_words(pg, &fault);
    else if (pg->o.on_notice != NULL)
        pg->o.on_notice(pg->o.arg, severity, &fault);
}

enum err_code pg_is_open(struct pg *pg, struct err *err)
{
    pg->last_words.text[0] = '\0';
    pg->lib->setErrorVerbosity(pg->conn, PQERRORS_DEFAULT);
    if (pg->lib->setnonblocking(pg->conn, 1) != 0 || !pg_watch(pg, UV_READABLE))
        return err_set(err, ERR_SYSTEM, true, "%s: the connection can't be watched: out of memory or descriptors",
                       pg->where);
    pg->is_open = true;
    return ERR_NONE;
}

/* ---- a turn ------------------------------------------------------------------------------------------------------ */

static void tell_connected(struct pg *pg)
{
    pg_done *done = pg->connect_done;
    struct pg_answer answer = {.err = pg->connect_err, .fault = pg_no_fault};
    memcpy(answer.fault.sqlstate, pg->connect_sqlstate, sizeof answer.fault.sqlstate);
    if (answer.fault.sqlstate[0] != '\0')
        answer.fault.message = answer.err.text;
    pg->connect_done = NULL;
    pg->is_connect_due = false;
    done(pg->connect_arg, &answer);
}

/* Tell one thing that is due. false: nothing was. */
static bool tell(struct pg *pg)
{
    struct pg_call *call = pg->ended;
    if (pg->is_connect_due) {
        tell_connected(pg);
    } else if (call != NULL) {
        DL_DELETE(pg->ended, call);
        pg_call_deliver(pg, call);
    } else if (pg->is_lost_due) {
        struct err err = pg->lost_err;
        pg->is_lost_due = false;
        if (pg->o.on_lost != NULL && !pg->is_closing)
            pg->o.on_lost(pg->o.arg, &err);
    } else {
        return false;
    }
    return true;
}

static void begin_next(struct pg *pg)
{
    pg->current = pg->queue;
    uv_ref((uv_handle_t *)&pg->watched->poll);
    watch_silence(pg);
    pg_call_send(pg);
}

static void tear_down(struct pg *pg);

static void stop_connecting(struct pg *pg)
{
    pg_connect_stop(pg);
    err_set(&pg->connect_err, ERR_STOPPED, false, "stopped");
    pg->is_connect_due = true;
    drop_connection(pg);
}

/* Everything that can be done now. The last thing that a callback of the loop does. */
static void turn(struct pg *pg)
{
    if (pg->is_torn_down)
        return;
    if (pg->is_closing && pg->connecting != NULL)
        stop_connecting(pg);
    for (;;) {
        if (pg->current != NULL && pg->current->is_cancelled && !pg->current->is_done && !pg->current->is_stopping) {
            pg->current->is_stopping = true;
            pg_call_stop(pg);
        }
        if (pg->current != NULL && pg->current->is_done)
            end_current(pg);
        if (tell(pg))
            continue;
        if (!pg->is_open || pg->current != NULL)
            break;
        if (pg->canceller != NULL) /* it might hit the next request */
            break;
        if (pg->queue == NULL) {
            watch_idle(pg);
            break;
        }
        begin_next(pg);
        if (pg->current != NULL && !pg->current->is_done)
            break;
    }
    if (pg->is_closing && pg->current == NULL && pg->ended == NULL && pg->canceller == NULL && pg->connect_done == NULL)
        tear_down(pg);
}

static void on_cancelled(uv_async_t *async)
{
    struct pg *pg = async->data;
    if (pg_cancel_arrived(pg)) {
        uv_unref((uv_handle_t *)async);
        if (pg->current == NULL)
            uv_timer_stop(&pg->cut);
        else if (pg->current->is_stopping) /* one that overtakes its request finds nothing to stop */
            uv_timer_start(&pg->doubt, on_doubt, CANCEL_AGAIN_MS, 0);
    }
    turn(pg);
}

/* ---- open, close ------------------------------------------------------------------------------------------------- */

static bool copy_text(const char **text)
{
    if (*text == NULL)
        return true;
    *text = strdup(*text);
    return *text != NULL;
}

static void wipe(const char *text)
{
    if (text == NULL)
        return;
    explicit_bzero((char *)text, strlen(text));
    free((char *)text);
}

static void pg_free(struct pg *pg)
{
    if (pg == NULL)
        return;
    if (pg->parsed != NULL) {
        for (PQconninfoOption *o = pg->parsed; o->keyword != NULL; o++)
            if (o->val != NULL)
                explicit_bzero(o->val, strlen(o->val));
        pg->lib->conninfoFree(pg->parsed);
    }
    wipe(pg->o.conninfo);
    wipe(pg->o.password);
    free((char *)pg->o.application_name);
    free(pg);
}

static struct pg *make(const struct pg_options *options, struct err *err)
{
    struct pg *pg = calloc(1, sizeof *pg);
    if (pg == NULL) {
        err_nomem(err);
        return NULL;
    }
    pg->o = *options;
    if (pg->o.conninfo == NULL)
        pg->o.conninfo = "";
    if (pg->o.cancel_timeout_ms == 0)
        pg->o.cancel_timeout_ms = CANCEL_TIMEOUT_MS;
    /* All three, whatever fails: pg_free() frees all three. */
    bool is_copied = copy_text(&pg->o.conninfo);
    is_copied = copy_text(&pg->o.password) && is_copied;
    is_copied = copy_text(&pg->o.application_name) && is_copied;
    if (!is_copied) {
        err_nomem(err);
        goto free_pg;
    }
    if (pg_lib_load(&pg->lib, err) != ERR_NONE || pg_parse(pg, err) != ERR_NONE)
        goto free_pg;
    return pg;
free_pg:
    pg_free(pg);
    return NULL;
}

enum err_code pg_check(const struct pg_options *options, struct err *err)
{
    struct err found;
    err_clear(&found);
    pg_free(make(options, &found));
    if (err != NULL)
        *err = found;
    return found.code;
}

enum err_code pg_open(uv_loop_t *loop, const struct pg_options *options, struct pg **ret_pg, struct err *err)
{
    struct err found;
    err_clear(&found);
    struct pg *pg = make(options, &found);
    if (err != NULL)
        *err = found;
    if (pg == NULL)
        return found.code;
    pg->loop = loop;
    int failed = uv_async_init(loop, &pg->cancelled, on_cancelled);
    if (failed != 0) { /* descriptors; nothing was made, and nothing else can fail */
        pg_free(pg);
        return err_set(err, ERR_SYSTEM, true, "watch a connection: %s", uv_strerror(failed));
    }
    uv_unref((uv_handle_t *)&pg->cancelled);
    uv_idle_init(loop, &pg->kick);
    uv_timer_init(loop, &pg->deadline);
    uv_timer_init(loop, &pg->cut);
    uv_timer_init(loop, &pg->doubt);
    pg->cancelled.data = pg->kick.data = pg->deadline.data = pg->cut.data = pg->doubt.data = pg;
    pg->handles = 5;
    *ret_pg = pg;
    return ERR_NONE;
}

static void count_closed(struct pg *pg)
{
    pg->handles--;
    if (!pg->is_torn_down || pg->handles > 0)
        return;
    void (*closed)(void *arg) = pg->closed;
    void *arg = pg->closed_arg;
    pg_free(pg);
    if (closed != NULL)
        closed(arg);
}

static void on_closed(uv_handle_t *handle)
{
    count_closed(handle->data);
}

static void tear_down(struct pg *pg)
{
    pg->is_torn_down = true;
    drop_connection(pg); /* says goodbye, if the socket takes it */
    uv_close((uv_handle_t *)&pg->cancelled, on_closed);
    uv_close((uv_handle_t *)&pg->kick, on_closed);
    uv_close((uv_handle_t *)&pg->deadline, on_closed);
    uv_close((uv_handle_t *)&pg->cut, on_closed);
    uv_close((uv_handle_t *)&pg->doubt, on_closed);
}

void pg_close(struct pg *pg, void (*closed)(void *arg), void *arg)
{
    pg->is_closing = true;
    pg->closed = closed;
    pg->closed_arg = arg;
    pg_cancel(pg);
}

/* ---- what users ask for ------------------------------------------------------------------------------------------ */

void pg_connect(struct pg *pg, pg_done *done, void *arg)
{
    assert(pg->connect_done == NULL);
    pg->connect_done = done;
    pg->connect_arg = arg;
    pg->connect_sqlstate[0] = '\0';
    pg->is_lost_due = false; /* whoever connects anew knows */
    if (pg->is_closing)
        err_set(&pg->connect_err, ERR_STOPPED, false, "%s: stopped", pg->where);
    else if (pg->is_open)
        err_set(&pg->connect_err, ERR_CONFIG, false, "%s: connected already", pg->where);
    else {
        pg_connect_begin(pg);
        return;
    }
    pg->is_connect_due = true;
    pg_kick(pg);
}

void pg_cancel(struct pg *pg)
{
    struct err err;
    err_set(&err, ERR_STOPPED, false, "stopped before it began");
    drop_waiting(pg, &err);
    if (pg->current != NULL && !pg->current->is_done)
        pg->current->is_cancelled = true;
    pg_kick(pg); /* the rest is for turn(): we may be in a callback that libpq has called */
}

static bool copy_params(struct pg_call *call, const struct pg_request *r)
{
    if (r->param_count == 0)
        return true;
    call->params = calloc(r->param_count, sizeof *call->params);
    if (call->params == NULL)
        return false;
    for (size_t i = 0; i < r->param_count; i++) {
        if (r->params[i] != NULL && (call->params[i] = strdup(r->params[i])) == NULL)
            return false;
    }
    return true;
}

enum err_code pg_start(struct pg *pg, const struct pg_request *r, struct err *err)
{
    if (pg->is_closing)
        return err_set(err, ERR_STOPPED, false, "%s: stopped", pg->where);
    if (!pg->is_open)
        return err_set(err, ERR_REMOTE, true, "%s: not connected", pg->where);
    struct pg_call *call = calloc(1, sizeof *call);
    if (call == NULL)
        return err_nomem(err);
    call->r = *r;
    call->r.sql = strdup(r->sql);
    if (call->r.sql == NULL || !copy_params(call, r)) {
        pg_call_free(pg, call);
        return err_nomem(err);
    }
    if (r->stall_timeout_ms == 0)
        call->r.stall_timeout_ms = pg->o.stall_timeout_ms > 0 ? pg->o.stall_timeout_ms : UINT64_MAX;
    DL_APPEND(pg->queue, call);
    if (pg->current == NULL)
        pg_kick(pg);
    return ERR_NONE;
}

void pg_resume(struct pg *pg)
{
    if (pg->current == NULL || !pg->current->is_waiting)
        return;
    pg->current->is_waiting = false;
    pg->active_ms = uv_now(pg->loop);
    pg_kick(pg);
}
