/*
 * admin.c -- opens and closes the doors, and asks the ledger on their behalf.
 *
 * What is asked may be answered after who asked has gone (a client that hung up, the room itself at the end): the
 * questions own themselves, and forgetting one only means that nobody listens.
 */
#include "admin_internal.h"

#include "clock.h"
#include "utlist.h"

#include <stdlib.h>
#include <string.h>

void *question_new(struct admin *a, size_t size, void *asker)
{
    struct question *q = calloc(1, size);
    if (q == NULL)
        return NULL;
    q->admin = a;
    q->asker = asker;
    DL_APPEND(a->questions, q);
    return q;
}

void question_forget(struct question *q)
{
    if (q == NULL || q->admin == NULL)
        return;
    DL_DELETE(q->admin->questions, q);
    q->admin = NULL;
    q->asker = NULL;
}

void question_free(struct question *q)
{
    question_forget(q);
    free(q);
}

static struct ledger_counter *counter_of(struct counters *c, const char *flow)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->counters[i].flow, flow) == 0)
            return &c->counters[i];
    struct ledger_counter *grown = arena_alloc(&c->arena, (c->count + 1) * sizeof *grown);
    if (grown == NULL)
        return NULL;
    if (c->count > 0)
        memcpy(grown, c->counters, c->count * sizeof *grown);
    grown[c->count].flow = flow;
    c->counters = grown;
    return &grown[c->count++];
}

/* A file that waits as a new version is counted as that, and no longer as what became of the old one. */
static enum err_code count_waiting(struct ledger_tx *tx, struct counters *c, const struct engine_waiting *w,
                                   struct err *err)
{
    struct ledger_row *row;
    struct ledger_counter *counter = counter_of(c, w->flow);
    if (counter == NULL)
        return err_nomem(err);
    if (ledger_get(tx, w->source, w->path, w->flow, &c->arena, &row, err) != ERR_NONE)
        return err->code;
    if (row != NULL && counter->files[row->state] > 0)
        counter->files[row->state]--;
    counter->files[w->state]++;
    if (w->since_ms > 0 && (counter->oldest_pending_ms == 0 || w->since_ms < counter->oldest_pending_ms))
        counter->oldest_pending_ms = w->since_ms;
    return ERR_NONE;
}

static enum err_code run_counters(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct counters *c = arg;
    if (ledger_counters(tx, &c->arena, &c->counters, &c->count, err) != ERR_NONE)
        return err->code;
    for (size_t i = 0; i < c->waiting_count; i++)
        if (count_waiting(tx, c, &c->waiting[i], err) != ERR_NONE)
            return err->code;
    return ERR_NONE;
}

static void on_counters(void *arg, const struct err *err)
{
    struct counters *c = arg;
    if (c->question.admin == NULL) {
        counters_free(c);
        return;
    }
    if (err != NULL && err->code != ERR_NONE) {
        c->count = 0;
        snprintf(c->problem, sizeof c->problem, "%s", err->text);
    }
    c->question.done(&c->question);
}

struct counters *counters_ask(struct admin *a, void *asker, void (*done)(struct question *q), struct err *err)
{
    struct counters *c = question_new(a, sizeof *c, asker);
    if (c == NULL) {
        err_nomem(err);
        return NULL;
    }
    arena_init(&c->arena);
    c->question.done = done;
    if (engine_waiting(a->engine, &c->arena, &c->waiting, &c->waiting_count, err) != ERR_NONE ||
        ledger_run(a->ledger, run_counters, on_counters, c, err) != ERR_NONE) {
        counters_free(c);
        return NULL;
    }
    return c;
}

void counters_free(struct counters *c)
{
    if (c == NULL)
        return;
    arena_done(&c->arena);
    question_free(&c->question);
}

static void log_state(struct question *q)
{
    struct counters *c = (struct counters *)q;
    struct admin *a = q->admin;
    struct arena arena;
    arena_init(&arena);
    struct engine_status status;
    struct err err = {0};
    if (engine_status(a->engine, &arena, &status, &err) != ERR_NONE) {
        log_error("state: %s", err.text);
        goto out;
    }
    struct report report = {.config = a->config,
                            .state = a->config->state,
                            .engine = &status,
                            .counters = c->counters,
                            .counter_count = c->count,
                            .counters_problem = c->problem};
    log_info("state: %s", status.is_ready ? "ready" : status.not_ready);
    for (size_t i = 0; i < status.source_count; i++) {
        struct engine_source_status *s = &status.sources[i];
        log_write(LOG_INFO, &(struct log_about){.source = s->name},
                  "state: %s%s%s, evidence %s, %llu folders, %llu settling, %llu deletes held%s%s", s->health.mode,
                  s->health.reason[0] != '\0' ? ": " : "", s->health.reason, s->evidence,
                  (unsigned long long)s->health.folders, (unsigned long long)s->settling,
                  (unsigned long long)s->pending_deletes, s->health.problem[0] != '\0' ? "; " : "", s->health.problem);
    }
    for (size_t i = 0; i < status.dest_count; i++) {
        struct engine_dest_status *d = &status.dests[i];
        log_write(LOG_INFO, &(struct log_about){.dest = d->name}, "state: %s%s%s, %llu in flight", d->state,
                  d->reason[0] != '\0' ? ": " : "", d->reason, (unsigned long long)d->in_flight);
    }
    const char *flows[FLOWS_MAX];
    size_t count = report_flows(&report, flows, FLOWS_MAX);
    for (size_t i = 0; i < count; i++) {
        uint64_t files[FILE_STATES];
        int64_t oldest;
        report_files(&report, flows[i], files, &oldest);
        struct buf text;
        buf_init(&text);
        for (int s = 0; s < FILE_STATES; s++) {
            if (files[s] > 0)
                buf_printf(&text, " %s %llu", file_state_names[s], (unsigned long long)files[s]);
        }
        log_write(LOG_INFO, &(struct log_about){.flow = flows[i]}, "state: files:%s",
                  text.size > 0 ? text.data : " none");
        buf_done(&text);
    }
    if (c->problem[0] != '\0')
        log_error("state: ledger: %s", c->problem);
out:
    arena_done(&arena);
    counters_free(c);
}

void admin_log_state(struct admin *a)
{
    struct err err = {0};
    if (counters_ask(a, NULL, log_state, &err) == NULL)
        log_error("state: %s", err.text);
}

static enum err_code start_http(struct admin *a, const struct config *config, struct web **ret, struct err *err)
{
    *ret = NULL;
    if (config->http_listen == NULL || config->http_listen[0] == '\0')
        return ERR_NONE;
#if HAVE_HTTP
    return web_open(a, config->http_listen, ret, err);
#else
    (void)a;
    return err_set(err, ERR_CONFIG, false,
                   "http: this chute was built without http; remove `http:` from the configuration");
#endif
}

enum err_code admin_open(const struct admin_options *options, struct admin **ret, struct err *err)
{
    struct admin *a = calloc(1, sizeof *a);
    if (a == NULL)
        return err_nomem(err);
    a->loop = options->loop;
    a->ledger = options->ledger;
    a->engine = options->engine;
    a->reload = options->reload;
    a->arg = options->arg;
    a->started_ms = clock_wall_ms();
    a->config = config_ref(options->config);
    /* http first: it can be undone without the loop as long as nobody has connected */
    if (start_http(a, a->config, &a->http, err) != ERR_NONE)
        goto free_admin;
    if (socket_open(a, err) != ERR_NONE)
        goto stop_http;
    *ret = a;
    return ERR_NONE;
stop_http:
#if HAVE_HTTP
    if (a->http != NULL)
        web_close(a->http, NULL, NULL);
#endif
free_admin:
    config_unref(a->config);
    free(a);
    return err->code;
}

enum err_code admin_reconfigure(struct admin *a, struct config *config, struct err *err)
{
    const char *old = a->config->http_listen == NULL ? "" : a->config->http_listen;
    const char *new = config->http_listen == NULL ? "" : config->http_listen;
    if (strcmp(old, new) != 0) {
        struct web *http;
        if (start_http(a, config, &http, err) != ERR_NONE)
            return err->code;
#if HAVE_HTTP
        if (a->http != NULL)
            web_close(a->http, NULL, NULL);
#endif
        a->http = http;
    }
    struct config *before = a->config;
    a->config = config_ref(config);
    config_unref(before);
    return ERR_NONE;
}

static void on_part_closed(void *arg)
{
    struct admin *a = arg;
    if (--a->open_parts > 0)
        return;
    void (*closed)(void *) = a->closed;
    void *closed_arg = a->closed_arg;
    config_unref(a->config);
    free(a);
    closed(closed_arg);
}

/* The close callback of a handle of our own, so that closed() never comes from inside admin_close(). */
static void on_last_handle(uv_handle_t *handle)
{
    struct admin *a = handle->data;
    free(handle);
    on_part_closed(a);
}

void admin_close(struct admin *a, void (*closed)(void *arg), void *arg)
{
    a->closed = closed;
    a->closed_arg = arg;
    a->open_parts = 1;
    while (a->questions != NULL)
        question_forget(a->questions);
    socket_close(a);
#if HAVE_HTTP
    if (a->http != NULL) {
        a->open_parts++;
        web_close(a->http, on_part_closed, a);
        a->http = NULL;
    }
#endif
    a->listener->data = a;
    uv_close((uv_handle_t *)a->listener, on_last_handle);
}
