/* pg_internal.h -- what the files of one connection share; see pg.c for the rules. */
#ifndef CHUTE_PG_INTERNAL_H
#define CHUTE_PG_INTERNAL_H

#include "pg.h"
#include "pg_lib.h"

#include <pthread.h>

#define PG_MAX_PARAMS 96 /* connection parameters; libpq 17 knows 51 */

struct pg_result {
    const struct pg_lib *lib;
    PGresult *res;
};

/* The socket of the moment. libpq closes it when it likes to, so the handle is ours and ends before that. */
struct pg_watched {
    uv_poll_t poll;
    struct pg *pg;
    int events; /* that are watched; 0: none */
};

/* A request, from pg_start() to the end of its done(). */
struct pg_call {
    struct pg_call *prev, *next;
    struct pg_request r; /* its texts are ours */
    char **params;
    struct err err;        /* ours: it goes before what the server says */
    PGresult *failed;      /* the first error of the server; its fault points in there */
    struct pg_result last; /* res NULL: none */
    size_t statements;
    uint64_t copied_bytes;
    const char *piece; /* of read(), not given to libpq yet */
    size_t piece_size;
    size_t unflushed;             /* given to libpq since it was empty */
    unsigned long notices_before; /* the COPY */
    bool has_heard;               /* something came during the COPY */
    bool is_sent;                 /* the server may have all of it */
    bool is_copying;              /* COPY FROM STDIN: the server waits for us */
    bool is_draining;             /* COPY TO STDOUT */
    bool has_copied;              /* there was a COPY FROM STDIN … */
    bool has_ended;               /* … whose end we have sent */
    bool is_waiting;              /* for pg_resume() */
    bool is_cancelled;            /* pg_cancel() or pg_close() */
    bool is_stopping;             /* and the server was told */
    bool is_done;                 /* the server is ready for the next one */
};

struct pg_connecting; /* see pg_connect.c */
struct pg_canceller;  /* see pg_cancel.c */

struct pg {
    const struct pg_lib *lib;
    uv_loop_t *loop;
    struct pg_options o;      /* texts are ours */
    PQconninfoOption *parsed; /* conninfo as it was written */
    char where[192];          /* "DATABASE on HOST:PORT" */
    char db[64];
    bool wants_gss; /* gssencmode was chosen */
    bool wants_keepalives, wants_user_timeout;

    PGconn *conn;
    bool is_open; /* CONN is connected */
    struct pg_watched *watched;
    struct pg_connecting *connecting;
    pg_done *connect_done; /* due */
    void *connect_arg;
    bool is_connect_due; /* with CONNECT_ERR */
    struct err connect_err;
    char connect_sqlstate[6];

    struct pg_call *queue; /* the first is CURRENT, if there is one */
    struct pg_call *current;
    struct pg_call *ended; /* their done() is due */
    struct err lost_err;   /* on_lost() is due */
    bool is_lost_due;

    struct pg_canceller *canceller; /* a cancel is on its way */
    uv_async_t cancelled;           /* it has arrived */

    unsigned long notices; /* how many came */
    struct {
        char sqlstate[6];
        char text[256];
    } last_words; /* of a server that ends an idle connection */

    uv_idle_t kick;
    uv_timer_t deadline; /* to connect; of silence */
    uv_timer_t cut;      /* a server that does not stop is cut off */
    uv_timer_t doubt;    /* a server that said something during COPY, or did not stop yet */
    uint64_t active_ms;  /* when a byte last moved */
    bool is_doubtful;
    bool is_closing, is_torn_down;
    unsigned handles;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- pg.c -------------------------------------------------------------------------------------------------------- */

void pg_kick(struct pg *pg);
/* Watch the socket for EVENTS (UV_READABLE | UV_WRITABLE). A new handle when there is none. false: not possible. */
bool pg_watch(struct pg *pg, int events);
/* Let go of the socket before libpq closes it. */
void pg_unwatch(struct pg *pg);
/* The clock for an attempt to connect, or for silence. */
void pg_deadline_in(struct pg *pg, uint64_t ms);
/* The connection is gone, or is to go: everything that waits gets ERR. */
void pg_break(struct pg *pg, const struct err *err);
/* Hears what the server says beside its answers; for PQsetNoticeReceiver(). */
void pg_hear(void *arg, const PGresult *res);
/* CONN is connected: begin to work. */
enum err_code pg_is_open(struct pg *pg, struct err *err);

/* Ask the server to stop what runs; cut the connection when it does not. */
void pg_cancel_begin(struct pg *pg);
/* In MS milliseconds, unless is_doubtful is over by then: pg_call_doubted(). */
void pg_doubt_soon(struct pg *pg, uint64_t ms);

/* ---- pg_connect.c ------------------------------------------------------------------------------------------------ */

/* Begin to connect; pg->connect_err is due at the end. */
void pg_connect_begin(struct pg *pg);
void pg_connect_event(struct pg *pg);   /* the socket is ready */
void pg_connect_timeout(struct pg *pg); /* it never was */
void pg_connect_stop(struct pg *pg);    /* forget the attempt; CONN and its handle may be left, half open */

/* ---- pg_conninfo.c ----------------------------------------------------------------------------------------------- */

/* Keys and values for PQconnectStartParams(); borrowed. */
struct pg_params {
    const char *keys[PG_MAX_PARAMS + 1];
    const char *values[PG_MAX_PARAMS + 1];
    size_t count;
};
void pg_params_set(struct pg_params *params, const char *key, const char *value); /* instead of the one it had */

/* One of several places to connect to. Texts are its own. */
struct pg_place {
    char *host;    /* a name, an address or a folder; "": what libpq takes by itself */
    char *address; /* hostaddr; "": HOST is to be resolved, or is a folder */
    char *port;
};
/* What libpq makes of the configuration, the environment and the service at this moment. */
struct pg_target {
    struct pg_place *places;
    size_t count;
    char attrs[32];      /* target_session_attrs */
    bool is_random;      /* load_balance_hosts */
    uint64_t timeout_ms; /* for each address */
};

/* Parse pg->o.conninfo into pg->parsed, have libpq check it, fill pg->where. ERR_CONFIG. */
enum err_code pg_parse(struct pg *pg, struct err *err);
/* *RET_TARGET is freed with pg_target_done(), also after a failure. ERR_CONFIG, ERR_SYSTEM. */
enum err_code pg_target_find(struct pg *pg, struct pg_target *ret_target, struct err *err);
void pg_target_done(struct pg_target *target);
void pg_note_where(struct pg *pg, const char *host, const char *port);
/* All parameters but host, hostaddr, port and target_session_attrs. Borrowed from PG. */
void pg_params_init(const struct pg *pg, struct pg_params *ret_params);

/* ---- pg_request.c ------------------------------------------------------------------------------------------------ */

void pg_call_free(struct pg *pg, struct pg_call *call);
/* Send pg->current. */
void pg_call_send(struct pg *pg);
/* As far as it goes: feed, flush, take results. is_done when it ended. READABLE: the socket is. */
void pg_call_advance(struct pg *pg, bool is_readable);
/* Ask the server to stop it. */
void pg_call_stop(struct pg *pg);
/* After some time the server has said something during COPY that is no notice. */
void pg_call_doubted(struct pg *pg);
/* Call done(), free it. */
void pg_call_deliver(struct pg *pg, struct pg_call *call);

/* ---- pg_cancel.c ------------------------------------------------------------------------------------------------- */

/* Send a cancel of what runs on CONN, from a thread; pg->cancelled comes when the server has it. false: no memory. */
bool pg_cancel_send(struct pg *pg);
/* It has arrived (or failed): true, once. */
bool pg_cancel_arrived(struct pg *pg);
/* Let a thread that hangs alone. */
void pg_cancel_leave(struct pg *pg);

/* ---- pg_error.c -------------------------------------------------------------------------------------------------- */

extern const struct pg_fault pg_no_fault;
void pg_fault_of(const struct pg_lib *lib, const PGresult *res, struct pg_fault *ret_fault);
/* ERR of a statement that failed with FAULT. */
void pg_err_of(const struct pg_fault *fault, struct err *err);
/* ERR of a connection that broke, from libpq's words. */
void pg_err_broken(const struct pg *pg, const char *text, struct err *err);
/* ERR and SQLSTATE of a failed attempt to connect, from libpq's verbose words. IS_REFUSED: it did not even begin. */
void pg_err_connect(const char *text, bool is_refused, bool was_tls, struct err *err, char *ret_sqlstate);

#endif
