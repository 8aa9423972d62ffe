/*
 * pg_request.c -- one request on an open connection: sent, fed while it is a COPY, its results taken.
 *
 * pg_call_advance() goes as far as the socket lets it and leaves the socket watched for what it waits for. It may be
 * called at any time.
 *
 * An error of the server in the middle of a COPY is no business of libpq before we end the COPY: it leaves the message
 * in its buffer, and the server throws away all that we go on to send. So we look for one ourselves: during COPY a
 * server sends nothing but notices and that error. The first byte that comes tells which it is, if it can be seen: not
 * with TLS, and not behind notices, whose last may have come in part. Then whatever came and turns out to be no notice
 * is taken for an error after a while. An error that comes in one packet with notices, or with
 * the word that the server takes the COPY, is not seen: such a COPY runs to the end of its rows, and fails then.
 */
#include "pg_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SEND_BYTES ((size_t)8192) /* libpq sends when it has so many, and only multiples of that */
/* What is given to libpq at once: with the five bytes it puts before, a multiple of the above. A socket that is
 * writable takes them: it has a third of its buffer free, of at least 80 KiB unless somebody has made it smaller. */
#define PIECE_BYTES (2 * SEND_BYTES - 5)
#define TURN_BYTES ((size_t)1024 * 1024) /* so much per turn, then others are served */
#define DOUBT_MS 25
#define DOUBT_AFTER_NOTICES_MS 1000
#define INTERRUPTED "chute stopped: the server had something to say"

void pg_call_free(struct pg *pg, struct pg_call *call)
{
    if (call->params != NULL) {
        for (size_t i = 0; i < call->r.param_count; i++)
            free(call->params[i]);
    }
    free(call->params);
    free((char *)call->r.sql);
    pg->lib->clear(call->failed);
    pg->lib->clear(call->last.res);
    free(call);
}

static bool has_failed(const struct pg_call *call)
{
    return call->err.code != ERR_NONE || call->failed != NULL;
}

static bool is_broken(const struct pg *pg)
{
    return pg->lib->status(pg->conn) == CONNECTION_BAD;
}

/* ---- telling ----------------------------------------------------------------------------------------------------- */

static bool may_have_happened(const struct pg *pg, const struct pg_call *call)
{
    if (!call->is_sent)
        return false;
    /* "ERROR": it says itself that nothing of this transaction stays. "FATAL" can come from a server that dies after it
     * has written a commit to its log. */
    if (call->failed != NULL) {
        const char *severity = pg->lib->resultErrorField(call->failed, PG_DIAG_SEVERITY_NONLOCALIZED);
        if (severity != NULL && strcmp(severity, "ERROR") == 0)
            return false;
    }
    /* A COPY whose end was never sent can't have been committed by its own statement; what stands before it can. */
    return !call->has_copied || call->has_ended || call->statements > 0;
}

/* Our own reason goes first: a server only repeats it ("COPY from stdin failed: …", "canceling statement"). */
static void fill_err(const struct pg *pg, const struct pg_call *call, const struct pg_fault *fault, struct err *err)
{
    if (call->err.code != ERR_NONE)
        *err = call->err;
    else if (call->failed == NULL)
        err_clear(err);
    else if (call->is_cancelled && strcmp(fault->sqlstate, "57014") == 0)
        err_set(err, ERR_STOPPED, false, "stopped");
    else if (fault->sqlstate[0] == '\0')
        pg_err_broken(pg, fault->message, err);
    else
        pg_err_of(fault, err);
}

void pg_call_deliver(struct pg *pg, struct pg_call *call)
{
    struct pg_answer answer = {
        .statements = call->statements,
        .copied_bytes = call->copied_bytes,
        .result = call->last.res != NULL ? &call->last : NULL,
    };
    pg_fault_of(pg->lib, call->failed, &answer.fault);
    fill_err(pg, call, &answer.fault, &answer.err);
    answer.maybe_done = answer.err.code != ERR_NONE && may_have_happened(pg, call);
    if (call->r.done != NULL)
        call->r.done(call->r.arg, &answer);
    pg_call_free(pg, call);
}

/* ---- ending ------------------------------------------------------------------------------------------------------ */

/* The connection can't go on. ERR of libpq's words, unless the request has its own. */
static void give_up(struct pg *pg)
{
    struct err err;
    pg_err_broken(pg, pg->lib->errorMessage(pg->conn), &err);
    pg_break(pg, &err);
}

static void wait_for(struct pg *pg, int events)
{
    struct err err;
    if (is_broken(pg)) { /* nothing would ever come */
        give_up(pg);
        return;
    }
    if (pg_watch(pg, events))
        return;
    err_set(&err, ERR_SYSTEM, true, "%s: the connection can't be watched: out of memory or descriptors", pg->where);
    pg_break(pg, &err);
}

/* End a COPY: with its last byte, or with a reason why there is none. */
static void end_copy(struct pg *pg, struct pg_call *call, const char *reason)
{
    call->is_copying = call->is_waiting = false;
    pg->is_doubtful = false;
    uv_timer_stop(&pg->doubt);
    if (pg->lib->putCopyEnd(pg->conn, reason) != 1) { /* libpq would never leave the COPY */
        if (call->err.code == ERR_NONE && !is_broken(pg))
            err_nomem(&call->err);
        give_up(pg);
        return;
    }
    call->has_ended = reason == NULL;
}

void pg_call_stop(struct pg *pg)
{
    struct pg_call *call = pg->current;
    /* Both: the server may read, and then it takes our word for it; or it may be busy with something else. */
    if (call->is_copying) {
        end_copy(pg, call, "stopped");
        if (pg->current == call)
            pg_call_advance(pg, false);
    }
    if (pg->current == call && !call->is_done)
        pg_cancel_begin(pg);
}

/* ---- feeding a COPY ---------------------------------------------------------------------------------------------- */

/* Give libpq the next bytes. It sends them when they are 8 KiB or more. false: the COPY has ended. */
static bool put_piece(struct pg *pg, struct pg_call *call)
{
    size_t size = call->piece_size < PIECE_BYTES ? call->piece_size : PIECE_BYTES;
    int put = pg->lib->putCopyData(pg->conn, call->piece, (int)size);
    if (put != 1) {
        if (is_broken(pg)) {
            end_copy(pg, call, INTERRUPTED);
        } else { /* 0: its buffer can't grow */
            err_nomem(&call->err);
            end_copy(pg, call, "out of memory");
        }
        return false;
    }
    call->piece += size;
    call->piece_size -= size;
    call->copied_bytes += size;
    call->unflushed += size;
    return true;
}

/* Ask for the next bytes. false: there are none now, or the COPY has ended. */
static bool ask(struct pg *pg, struct pg_call *call)
{
    ssize_t n = call->r.read(call->r.arg, &call->piece, &call->err);
    if (n > 0) {
        err_clear(&call->err);
        call->piece_size = (size_t)n;
        return true;
    }
    if (n == PG_LATER) {
        err_clear(&call->err);
        call->is_waiting = true;
        return false;
    }
    if (n != 0) { /* PG_FAIL; the server's log has no need of our reason, which may hold a path */
        if (call->err.code == ERR_NONE)
            err_set(&call->err, ERR_INPUT, false, "the rows ended in an error");
        end_copy(pg, call, "chute stopped: the rows ended in an error");
        return false;
    }
    err_clear(&call->err);
    end_copy(pg, call, NULL);
    return false;
}

/* What came while the server should be reading. false: the COPY has ended. */
static bool listen_to_server(struct pg *pg, struct pg_call *call)
{
    unsigned long notices = pg->notices;
    char type = '\0';
    bool is_plain = !pg->lib->sslInUse(pg->conn) && !pg->lib->gssEncInUse(pg->conn);
    /* The first byte of the first message that comes. Later ones may begin in the middle of what libpq has read. */
    if (is_plain && !call->has_heard && recv(pg->lib->socket(pg->conn), &type, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
        errno == EAGAIN)
        return true;
    if (!pg->lib->consumeInput(pg->conn) || is_broken(pg) || type == 'E') {
        end_copy(pg, call, INTERRUPTED);
        return false;
    }
    call->has_heard = true;
    pg->lib->isBusy(pg->conn); /* takes whole notices out of the buffer */
    if (pg->notices != notices) {
        pg->is_doubtful = false;
        uv_timer_stop(&pg->doubt);
    } else if (!pg->is_doubtful && (type == '\0' || type == 'N')) {
        pg_doubt_soon(pg, pg->notices == call->notices_before ? DOUBT_MS : DOUBT_AFTER_NOTICES_MS);
    }
    return true;
}

static short socket_ready(const struct pg *pg)
{
    struct pollfd p = {.fd = pg->lib->socket(pg->conn), .events = POLLIN | POLLOUT};
    return poll(&p, 1, 0) > 0 ? p.revents : 0;
}

/* Send what libpq has kept. true: it has nothing left. */
static bool flush_copy(struct pg *pg, struct pg_call *call)
{
    int left = pg->lib->flush(pg->conn);
    if (left < 0 || is_broken(pg)) {
        end_copy(pg, call, INTERRUPTED);
        return false;
    }
    if (left > 0) {
        wait_for(pg, UV_READABLE | UV_WRITABLE);
        return false;
    }
    call->unflushed = 0;
    return true;
}

/*
 * Feed until the socket is full, the producer has nothing, or the turn is long enough. Leaves the socket watched if the
 * COPY goes on. The socket is asked before each piece: one that takes nothing now would make libpq read, and hide from
 * us that the server has said something. One that is writable takes a piece.
 */
static void feed(struct pg *pg, struct pg_call *call)
{
    size_t fed = 0, unasked = PIECE_BYTES;
    while (call->is_copying) {
        if (is_broken(pg)) { /* libpq has found out by itself */
            end_copy(pg, call, INTERRUPTED);
            return;
        }
        if (unasked >= SEND_BYTES) {
            short ready = socket_ready(pg);
            if ((ready & ~POLLOUT) != 0 && !listen_to_server(pg, call))
                return;
            if (pg->is_doubtful) { /* say nothing while it is not clear whether it listens */
                wait_for(pg, UV_READABLE);
                return;
            }
            if ((ready & POLLOUT) == 0 || fed >= TURN_BYTES) {
                wait_for(pg, UV_READABLE | UV_WRITABLE);
                return;
            }
            unasked = 0;
        }
        if ((call->unflushed >= PIECE_BYTES || call->is_waiting) && !flush_copy(pg, call))
            return;
        if (call->is_waiting) {
            wait_for(pg, UV_READABLE);
            return;
        }
        if (call->piece_size == 0 && !ask(pg, call)) {
            unasked = SEND_BYTES;
            continue; /* waiting, or over */
        }
        size_t before = call->piece_size;
        if (!put_piece(pg, call))
            return;
        unasked += before - call->piece_size;
        fed += before - call->piece_size;
    }
}

void pg_call_doubted(struct pg *pg)
{
    struct pg_call *call = pg->current;
    if (!call->is_copying)
        return;
    end_copy(pg, call, INTERRUPTED);
    if (pg->current == call)
        pg_call_advance(pg, false);
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

static void take_result(struct pg *pg, struct pg_call *call, PGresult *res)
{
    struct pg_result result = {.lib = pg->lib, .res = res};
    call->statements++;
    if (call->r.on_result != NULL) {
        if (!has_failed(call) && !call->is_cancelled &&
            !(call->r.one_by_one && pg->lib->resultStatus(res) == PGRES_TUPLES_OK))
            call->r.on_result(call->r.arg, &result);
        pg->lib->clear(res);
        return;
    }
    pg->lib->clear(call->last.res);
    call->last = result;
}

static void take_row(struct pg *pg, struct pg_call *call, PGresult *res)
{
    struct pg_result result = {.lib = pg->lib, .res = res};
    if (call->r.on_result != NULL && !has_failed(call) && !call->is_cancelled)
        call->r.on_result(call->r.arg, &result);
    pg->lib->clear(res);
}

static void begin_copy(struct pg *pg, struct pg_call *call)
{
    call->has_copied = true;
    call->has_ended = false;
    call->is_copying = true;
    call->has_heard = false;
    call->notices_before = pg->notices;
    call->unflushed = 0;
    if (call->is_cancelled) {
        end_copy(pg, call, "stopped");
    } else if (has_failed(call)) {
        end_copy(pg, call, "chute stopped: an error came before");
    } else if (call->r.read == NULL) {
        err_set(&call->err, ERR_INPUT, false,
                "COPY … FROM STDIN has no data here: name a file of the server, or INSERT");
        end_copy(pg, call, "chute has no data for it");
    }
}

static void begin_drain(struct pg *pg, struct pg_call *call)
{
    call->is_draining = true;
    if (call->err.code == ERR_NONE)
        err_set(&call->err, ERR_INPUT, false, "COPY … TO STDOUT has nowhere to go here: name a file of the server");
    pg_cancel_begin(pg);
}

/* Throw away what COPY TO STDOUT sends. false: more comes later. */
static bool drain(struct pg *pg, struct pg_call *call)
{
    for (;;) {
        char *data = NULL;
        int n = pg->lib->getCopyData(pg->conn, &data, 1);
        pg->lib->freemem(data);
        if (n == 0)
            return false;
        if (n < 0) {
            call->is_draining = false;
            return true;
        }
    }
}

/* One of PQgetResult(). */
static void handle(struct pg *pg, struct pg_call *call, PGresult *res)
{
    switch (pg->lib->resultStatus(res)) {
    case PGRES_TUPLES_OK:
    case PGRES_COMMAND_OK:
        take_result(pg, call, res);
        return;
    case PGRES_SINGLE_TUPLE:
        take_row(pg, call, res);
        return;
    case PGRES_COPY_IN:
        begin_copy(pg, call);
        break;
    case PGRES_COPY_OUT:
        begin_drain(pg, call);
        break;
    case PGRES_EMPTY_QUERY:
        break;
    case PGRES_FATAL_ERROR:
    case PGRES_BAD_RESPONSE:
        if (call->failed == NULL) { /* the first is the reason of the others */
            call->failed = res;
            return;
        }
        break;
    default: /* replication and pipelines, which nobody asked for: there is no way out of them */
        if (call->err.code == ERR_NONE)
            err_set(&call->err, ERR_REMOTE, false, "the server began something that is no query");
        pg->lib->clear(res);
        give_up(pg);
        return;
    }
    pg->lib->clear(res);
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

/* Nothing runs: a server may say that settings changed, or goodbye. */
static void listen_idle(struct pg *pg)
{
    bool is_heard = pg->lib->consumeInput(pg->conn) != 0;
    pg->lib->isBusy(pg->conn);
    for (PGnotify *note; (note = pg->lib->notifies(pg->conn)) != NULL;)
        pg->lib->freemem(note);
    if (!is_heard || is_broken(pg))
        give_up(pg);
}

static void read_input(struct pg *pg, struct pg_call *call)
{
    if (call->is_copying)
        listen_to_server(pg, call);
    else
        pg->lib->consumeInput(pg->conn); /* a failure comes as a result */
}

/* Results until one is not there yet. */
static void take_results(struct pg *pg, struct pg_call *call)
{
    while (pg->current == call && !call->is_copying) {
        if (call->is_draining && !drain(pg, call))
            break;
        if (pg->lib->isBusy(pg->conn))
            break;
        PGresult *res = pg->lib->getResult(pg->conn);
        if (res == NULL) {
            if (is_broken(pg)) {
                give_up(pg);
                return;
            }
            call->is_done = true;
            return;
        }
        handle(pg, call, res);
    }
}

void pg_call_advance(struct pg *pg, bool is_readable)
{
    struct pg_call *call = pg->current;
    if (call == NULL) {
        if (is_readable)
            listen_idle(pg);
        return;
    }
    if (is_readable)
        read_input(pg, call);
    while (pg->current == call && !call->is_done) {
        if (is_broken(pg)) /* libpq has closed the socket, whose number may be another's soon */
            pg_unwatch(pg);
        if (call->is_copying) {
            feed(pg, call);
            if (call->is_copying)
                return;
            continue;
        }
        int left = pg->lib->flush(pg->conn);
        call->is_sent = call->is_sent || left == 0;
        take_results(pg, call);
        if (pg->current != call || call->is_done || call->is_copying)
            continue;
        wait_for(pg, UV_READABLE | (left > 0 ? UV_WRITABLE : 0));
        return;
    }
}

void pg_call_send(struct pg *pg)
{
    struct pg_call *call = pg->current;
    int sent = call->r.param_count > 0 ? pg->lib->sendQueryParams(pg->conn, call->r.sql, (int)call->r.param_count, NULL,
                                                                  (const char *const *)call->params, NULL, NULL, 0)
                                       : pg->lib->sendQuery(pg->conn, call->r.sql);
    if (sent == 0) {
        if (is_broken(pg)) {
            give_up(pg);
            return;
        }
        char line[200];
        snprintf(line, sizeof line, "%s", pg->lib->errorMessage(pg->conn));
        err_set(&call->err, ERR_SYSTEM, true, "%s: the request can't be sent: %s", pg->where, line);
        call->is_done = true;
        return;
    }
    if (call->r.one_by_one)
        pg->lib->setSingleRowMode(pg->conn);
    pg_call_advance(pg, false);
}
