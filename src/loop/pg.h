/*
 * pg.h -- one connection to PostgreSQL on the loop: libpq next to libuv, and the only place that knows both.
 *
 * Why: libpq can do everything without blocking, but only if somebody resolves names elsewhere, changes the poll
 * handle with the socket, keeps the clocks, stops feeding a COPY when the server does not read, and knows what may have
 * happened when a connection breaks. Nobody above should have to.
 *
 *   pg_open -> pg_connect -> pg_start* -> pg_close         (pg_connect again after the connection broke)
 *
 * libpq is loaded by the first pg_open() (pg_lib.h): who uses no PostgreSQL pays nothing for it. An idle connection
 * wakes nobody, and keeps no loop alive. All functions and all callbacks run on the loop's thread; no callback comes
 * from inside a function of this header. The process must ignore SIGPIPE, and must not fork with connections open.
 * The text of every message is UTF-8 (client_encoding is always that). No error holds a password or a URL.
 */
#ifndef CHUTE_PG_H
#define CHUTE_PG_H

#include "buf.h"
#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

/* "libpq 15.20", or why it can't be used, into RET. Loads it: for `chute version`. */
void pg_libraries(char *ret, size_t size);

struct pg;        /* one connection, open or not, and its queue of requests */
struct pg_result; /* rows of one statement; see pg_value() */

/*
 * What went wrong in the server's words. Members are "" when it did not say, never NULL, and live as long as the
 * answer. DETAIL and CONTEXT may hold values of rows: they belong into the reason of the file they came from.
 */
struct pg_fault {
    char sqlstate[6]; /* five characters; "": not the server's words, but ours (connection, memory, cancelled) */
    const char *message;
    const char *detail;
    const char *hint;
    const char *context; /* "COPY orders, line 812, column price: \"x\"" */
    const char *schema;
    const char *table;
    const char *column;
    const char *type;
    const char *constraint;
    const char *internal_query; /* text of a statement inside a function, that INTERNAL_POSITION counts in */
    unsigned position;          /* in the request's sql, in characters from 1; 0: not said */
    unsigned internal_position;
};

/* How a request, or an attempt to connect, ended. Borrowed: gone when the callback returns. */
struct pg_answer {
    struct err err; /* ERR_NONE: all of it happened; else see pg_start() */
    struct pg_fault fault;
    /* With an error: the server may have obeyed (it got all of the request, and its answer was lost). false: it said
     * itself that it failed, or it certainly did not get all of it. What the last COMMIT did is unknown when true. */
    bool maybe_done;
    size_t statements; /* that ended well; with several in one sql, the failed one is number STATEMENTS + 1 */
    const struct pg_result *result; /* of the last of them; NULL: there was none, or on_result took them */
    uint64_t copied_bytes;          /* of COPY, given to libpq */
};

typedef void pg_done(void *arg, const struct pg_answer *answer);
/* One result of a statement that ended well; with one_by_one, one row of it (and none at the end). Borrowed. */
typedef void pg_on_result(void *arg, const struct pg_result *result);
/* A warning, a notice or a log line of the server, from the login on. SEVERITY is "WARNING", "NOTICE", …, never
 * translated. */
typedef void pg_on_notice(void *arg, const char *severity, const struct pg_fault *notice);

/* What the producer of COPY may return instead of data. */
enum {
    PG_LATER = -1, /* nothing now: pg_resume() says when to ask again */
    PG_FAIL = -2   /* give up: ERR is filled; the COPY is aborted, and done() gets that ERR */
};
/*
 * More bytes for COPY FROM STDIN: > 0 how many are at *RET_DATA, 0 the end, PG_LATER, PG_FAIL. Any number of bytes, cut
 * anywhere; *RET_DATA must stay as it is until the next call for this request, or its done(). It is asked only when
 * the server takes more, so what waits here is never more than libpq's own buffer and 64 KiB.
 */
typedef ssize_t pg_read(void *arg, const char **ret_data, struct err *err);

/* Zero or NULL is the default that the comment names. All copied. */
struct pg_options {
    /* postgresql://…, or "host=… dbname=…", as libpq reads it. Default: "", which is what the environment (PGHOST, …),
     * a service and .pgpass say, as they do for whatever the text leaves out. A host is resolved off the loop; several
     * hosts and addresses are tried in order, target_session_attrs holds. */
    const char *conninfo;
    const char *password;         /* goes before the one in conninfo, PGPASSWORD and .pgpass */
    const char *application_name; /* goes before the one in conninfo. Default: that one, PGAPPNAME, or "chute" */
    uint64_t connect_timeout_ms;  /* for one address, with TLS and login; for all the names. Default: connect_timeout
                                     as libpq reads it, if it is > 0, or 30 s */
    uint64_t stall_timeout_ms;    /* default for requests, see pg_request. 0: none */
    uint64_t cancel_timeout_ms;   /* how long a server may take to stop before the connection is cut. Default: 10 s */
    pg_on_notice *on_notice;      /* may be NULL: nobody hears them */
    /* The connection broke while nothing was under way; an err as done() would get it. May be NULL. */
    void (*on_lost)(void *arg, const struct err *err);
    void *arg; /* of these two */
};

/*
 * *RET_PG is closed with pg_close(). Does not connect, and resolves nothing. Loads libpq when it is the first.
 * Passwords in CONNINFO are made known to log_secret(). ERR_CONFIG: no libpq, or one that can't be used; a conninfo
 * that is none or has a key or a value that libpq does not know; a service that is not defined. ERR_SYSTEM: memory.
 */
enum err_code pg_open(uv_loop_t *loop, const struct pg_options *options, struct pg **ret_pg, struct err *err);
/* Only the checks of pg_open(), for --check. */
enum err_code pg_check(const struct pg_options *options, struct err *err);

/*
 * Connect; DONE comes once, on a later turn. Not while pg_state() is PG_CONNECTING; with a connection DONE gets
 * ERR_CONFIG and nothing else happens, after pg_close() ERR_STOPPED. Otherwise it gets what pg_start() describes; in
 * particular
 *
 *   ERR_REMOTE, retryable: no name, no connection, no answer in time, server starts or stops, too many connections
 *   ERR_DENIED: login refused (28), no such database (3D000), no right to connect (42501): blocks the destination
 *   ERR_CONFIG: what libpq can only find out now (a certificate file that can't be read, sslmode=require against a
 *               server without TLS, a certificate that is not believed is ERR_DENIED)
 */
void pg_connect(struct pg *pg, pg_done *done, void *arg);

/*
 * Stop what is under way and close: the server is asked to cancel, its connection is ended politely, or cut after
 * cancel_timeout_ms. Every callback that is due comes with ERR_STOPPED (or how it ended in the meantime), then
 * CLOSED(ARG) (may be NULL), on later turns. PG must not be used by then; pg_start() refuses with ERR_STOPPED from now
 * on. May be called from any callback.
 */
void pg_close(struct pg *pg, void (*closed)(void *arg), void *arg);

struct pg_request {
    const char *sql; /* copied. Several statements may stand in it when there are no parameters: the simple protocol,
                      * where what is outside of BEGIN … COMMIT is one transaction */
    const char *const *params; /* of $1, $2, …, as text; NULL: null. Copied. NULL: none */
    size_t param_count;
    bool one_by_one;         /* rows go to on_result as they come, instead of being kept till the last is there */
    pg_on_result *on_result; /* may be NULL: the last result is in the answer */
    pg_read *read;           /* for COPY … FROM STDIN; NULL: one is aborted. COPY … TO STDOUT is always an error */
    /* While we wait for the server and no byte moves, in either direction: the connection is cut. It does not run
     * while read() says PG_LATER. UINT64_MAX: none for this request; 0: the one in pg_options. A statement that
     * computes for long, or waits for a lock, is silence. */
    uint64_t stall_timeout_ms;
    pg_done *done; /* may be NULL */
    void *arg;     /* of all three callbacks */
};

/*
 * Queue R: requests run one after the other, in the order of pg_start(). The struct itself may go when we return.
 * done() comes once, on a later turn. A failed request does not stop the ones behind it, but a connection that breaks
 * does: all get that error.
 *
 * Returns ERR_NONE, or fills ERR and no callback ever comes: ERR_REMOTE, retryable, when pg_state() is not PG_READY or
 * PG_BUSY; ERR_STOPPED after pg_close(); ERR_SYSTEM: memory.
 *
 * What done() gets, by SQLSTATE (see pg_classify()):
 *
 *   ERR_REMOTE, retryable: the connection broke or is silent; classes 08, 40, 53, 57, 58; 55P03 (lock_timeout), 55006
 *   ERR_DENIED: class 28, 42501, 3D000, 0L, 0P; also 25006 (a server that only reads)
 *   ERR_INPUT: classes 22, 23: the data
 *   ERR_REMOTE, not retryable: everything else the server says
 *   ERR_SYSTEM, retryable: memory, descriptors, threads
 *   ERR_STOPPED: pg_cancel(), pg_close()
 *   and what read() said with PG_FAIL
 */
enum err_code pg_start(struct pg *pg, const struct pg_request *r, struct err *err);
/* After PG_LATER: ask read() again, on a later turn. Too early or too often does no harm. Loop thread: a producer on
 * another thread comes here through a uv_async_t. */
void pg_resume(struct pg *pg);
/*
 * Stop the request that runs now, if there is one, and drop those behind it: each done() gets ERR_STOPPED, unless it
 * ended before the server heard of it. The connection stays usable, in an aborted transaction if there was one: say
 * ROLLBACK, which may be queued at once. A server that does not stop within cancel_timeout_ms is cut off.
 */
void pg_cancel(struct pg *pg);

enum pg_state {
    PG_DOWN,       /* not connected: never, refused, or broken. pg_connect() */
    PG_CONNECTING, /* */
    PG_READY,      /* nothing under way */
    PG_BUSY,       /* a request is */
    PG_CLOSING     /* after pg_close() */
};
enum pg_state pg_state(const struct pg *pg);

/* Of the session, as the server last said; PG_TX_UNKNOWN without a connection. */
enum pg_tx { PG_TX_IDLE, PG_TX_ACTIVE, PG_TX_OPEN, PG_TX_ABORTED, PG_TX_UNKNOWN };
enum pg_tx pg_tx(const struct pg *pg);
int pg_backend_pid(const struct pg *pg);    /* 0: no connection */
int pg_server_version(const struct pg *pg); /* 150004; 0: no connection */
/* What the server reports of a setting ("TimeZone", "server_version", …), or NULL. Borrowed till the next request. */
const char *pg_parameter(const struct pg *pg, const char *name);
/* For people: "warehouse on db.example:5432", "warehouse on /run/postgresql", into RET; without user and password.
 * Before the first connection as the configuration says it, afterwards where we are. */
void pg_where(const struct pg *pg, char *ret, size_t size);

/* ---- results: rows and columns count from 0 ---------------------------------------------------------------------- */

size_t pg_rows(const struct pg_result *result);
size_t pg_columns(const struct pg_result *result);
/* NUL-terminated text; NULL for null, and where ROW or COLUMN does not exist. Lives as long as RESULT. */
const char *pg_value(const struct pg_result *result, size_t row, size_t column);
size_t pg_value_size(const struct pg_result *result, size_t row, size_t column); /* bytes; 0 for null */
const char *pg_column_name(const struct pg_result *result, size_t column);       /* NULL: no such column */
const char *pg_tag(const struct pg_result *result);   /* "INSERT 0 5", "COMMIT" or, of an aborted one, "ROLLBACK" */
uint64_t pg_affected(const struct pg_result *result); /* rows, from the tag; COPY as well; 0 where it has none */

/* ---- pure -------------------------------------------------------------------------------------------------------- */

/* Code and retryable of a five-character SQLSTATE; "" is a broken connection. */
enum err_code pg_classify(const char *sqlstate, bool *ret_retryable);
/* NAME as a quoted identifier: "a""b". */
void pg_add_name(struct buf *sql, const char *name);
/* TEXT as a literal, safe whatever standard_conforming_strings is: 'it''s', or E'\\' if it has a backslash. */
void pg_add_text(struct buf *sql, const char *text);

#endif
