/* admin_internal.h -- what the files of this room share. */
#ifndef CHUTE_ADMIN_INTERNAL_H
#define CHUTE_ADMIN_INTERNAL_H

#include "admin.h"
#include "arena.h"
#include "buf.h"

#include <json-c/json.h>
#include <stdio.h>

struct web;
struct client;
struct question;

struct admin {
    uv_loop_t *loop;
    struct config *config;
    struct ledger *ledger;
    struct engine *engine;
    void (*reload)(void *arg, struct err *err);
    void *arg;
    int64_t started_ms; /* wall clock */

    uv_pipe_t *listener;
    struct client *clients; /* utlist */
    size_t client_count;
    struct question *questions; /* asked of ledger or engine, not yet answered */
    struct web *http;           /* NULL: off */

    int open_parts; /* while closing: what has not answered yet */
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- admin.c: questions to the ledger ---- */

/*
 * Something asked of the ledger or the engine. It outlives who asked: after question_forget() the answer only frees it.
 * A struct that begins with this one is allocated by question_new().
 */
struct question {
    struct question *prev, *next;
    struct admin *admin; /* NULL: forgotten */
    void *asker;         /* client or http request */
    void (*done)(struct question *q);
};
void *question_new(struct admin *a, size_t size, void *asker);
void question_free(struct question *q);
/* Nobody waits for the answer any more. NULL is fine. */
void question_forget(struct question *q);

/* Files by flow and state, from the ledger. */
struct counters {
    struct question question;
    struct arena arena;
    struct ledger_counter *counters; /* with what waits in memory in its place: every file is in one state */
    size_t count;
    struct engine_waiting *waiting;
    size_t waiting_count;
    char problem[512]; /* "" or why there are none */
};
/* DONE comes on a later turn with Q being a struct counters; it then frees it with counters_free(). NULL: out of
 * memory. */
struct counters *counters_ask(struct admin *a, void *asker, void (*done)(struct question *q), struct err *err);
void counters_free(struct counters *c);

/* ---- report.c: the state as JSON ---- */
struct report {
    const struct config *config;        /* may be NULL */
    const char *state;                  /* folder */
    const struct engine_status *engine; /* NULL: no daemon runs */
    const struct ledger_counter *counters;
    size_t counter_count;
    const char *counters_problem;            /* "" */
    const struct pipeline_status *pipelines; /* without an engine */
    size_t pipeline_count;
};
/* NULL: out of memory. */
struct json_object *report_status(const struct report *r);
/* The counters of FLOW. Shared by report and metrics. */
void report_files(const struct report *r, const char *flow, uint64_t ret_files[FILE_STATES], int64_t *ret_oldest_ms);
/* The names of all flows of engine and ledger, each once; RET has room for MAX. */
size_t report_flows(const struct report *r, const char **ret, size_t max);
#define FLOWS_MAX 1024

/* ---- metrics.c ---- */
void metrics_text(const struct report *r, struct buf *ret);

/* ---- socket.c ---- */
enum err_code socket_open(struct admin *a, struct err *err);
void socket_close(struct admin *a);

/* ---- http.c ---- */
#if HAVE_HTTP
enum err_code web_open(struct admin *a, const char *listen, struct web **ret, struct err *err);
/* CLOSED comes on a later turn. */
void web_close(struct web *h, void (*closed)(void *arg), void *arg);
#endif

/* ---- explain.c ---- */
struct explain {
    const struct config *config; /* may be NULL */
    const char *state;           /* folder */
    const char *given;           /* as typed */
    const char *absolute;        /* the same, absolute */
    bool is_running;             /* a daemon answers */
    enum engine_note note;       /* what the engine's memory knows, and in words; "" */
    const char *memory;
    const char *dests; /* lines "NAME\tSTATE\treason…" of destinations that are not well; "" */
};
/* The absolute path of the folder that S watches; false: it is no folder. RET has PATH_MAX bytes. */
bool source_root(const struct config_source *s, char *ret);
/* One paragraph into RET. TX may be NULL (no ledger). Blocks; any thread. */
enum err_code explain_compose(const struct explain *x, struct ledger_tx *tx, struct buf *ret, struct err *err);

/* ---- ask.c: the commands' side of the socket ---- */
struct line; /* a connection */
/* *RET NULL and ERR_NONE: no daemon runs. ERR_SYSTEM: one is there but can't be reached. */
enum err_code line_open(const char *state, struct line **ret, struct err *err);
void line_close(struct line *l);
/* Ask and wait at most TIMEOUT_MS (0: for ever). *RET is the whole answer, to be put; ERR gets "error" of one that is
 * not ok. */
enum err_code line_ask(struct line *l, struct json_object *request, int timeout_ms, struct json_object **ret,
                       struct err *err);

/* ---- shared by the commands ---- */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* "chute: ..." to standard error */
enum err_code open_ledger(const struct command_context *c, bool read_only, struct ledger_tx **ret, struct err *err);
/* FILE made absolute, without "." and ".."; not resolved. RET has PATH_MAX bytes. */
void absolute_path(const char *file, char *ret);
/* What `state` says while no daemon runs. NULL with ERR set, or out of memory. */
struct json_object *offline_status(const struct command_context *c, struct err *err);
const char *json_text(struct json_object *o, const char *key); /* "" if missing */
int64_t json_number(struct json_object *o, const char *key);
bool json_true(struct json_object *o, const char *key);

/* TEXT for an answer that others read: what is no UTF-8 in it (a file's name may be any bytes) is U+FFFD, as in logs.
 */
struct json_object *report_text(const char *text);

#endif
