/*
 * keboola_drop.c -- drop or empty a table, or say that there is nothing to do. See keboola_internal.h.
 *
 *   BUCKET ─▶ ASK (DELETE …) ─▶ POLL ─▶ over
 *
 * Only what the ledger knows as made by us is dropped; nothing cascades. Begun again after a kill it finds nothing
 * left.
 */
#include "keboola_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kdrop {
    struct load *load;
    struct keboola *k;
    struct api_call *call;
    bool needs_bucket;
    bool is_asked; /* the job's number is known */
    char bucket[256];
    int64_t job;
    unsigned polls;
    uv_timer_t timer;
    struct err err;
    const char *said; /* dest_id: "dropped", "kept", "emptied" */
};

static void on_closed(uv_handle_t *handle)
{
    struct kdrop *d = handle->data;
    struct load *load = d->load;
    struct keboola *k = d->k;
    memset(&load->receipt, 0, sizeof load->receipt);
    load->receipt.dest_rows = -1;
    snprintf(load->receipt.dest_id, sizeof load->receipt.dest_id, "%s", d->said);
    load->err = d->err;
    load->driver = NULL;
    free(d);
    load->finished(load);
    keboola_load_over(k);
}

static void over(struct kdrop *d, const char *said, const struct err *err)
{
    d->said = said;
    if (err != NULL)
        d->err = *err;
    uv_close((uv_handle_t *)&d->timer, on_closed);
}

static void stop(struct kdrop *d)
{
    struct err err = {0};
    err_set(&err, ERR_STOPPED, true, "stopped");
    over(d, "", &err);
}

static void on_timer(uv_timer_t *timer);

static void on_poll(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    struct err err = {0};
    bool is_final, again;
    d->call = NULL;
    if (d->load->stop) {
        stop(d);
    } else if (r->err.code != ERR_NONE) {
        over(d, "", &r->err);
    } else if (keboola_job_end(r->json, &is_final, &again, &err) != ERR_NONE) {
        over(d, "", &err);
    } else if (is_final) {
        over(d, d->load->what == LOAD_EMPTY ? "emptied" : "dropped", NULL);
    } else {
        uv_timer_start(&d->timer, on_timer, keboola_poll_ms(d->polls++), 0);
    }
}

static void on_asked(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    d->call = NULL;
    if (r->status == 404 && r->is_api) { /* no such table, or bucket; gone by a request whose answer got lost, maybe */
        over(d, "kept", NULL);
    } else if (r->err.code != ERR_NONE || d->load->stop) {
        if (d->load->stop)
            stop(d);
        else
            over(d, "", &r->err);
    } else if (r->status == 204) {
        over(d, d->load->what == LOAD_EMPTY ? "emptied" : "dropped", NULL);
    } else {
        struct err err = {0};
        d->job = api_number(r->json, "id", 0);
        d->is_asked = true;
        if (d->job > 0) {
            uv_timer_start(&d->timer, on_timer, keboola_poll_ms(0), 0);
        } else {
            err_set(&err, ERR_REMOTE, true, "the answer to the delete has no number of a job");
            over(d, "", &err);
        }
    }
}

static void ask(struct kdrop *d)
{
    struct err err = {0};
    char path[400];
    if (d->is_asked)
        snprintf(path, sizeof path, "jobs/%" PRId64, d->job);
    else
        snprintf(path, sizeof path, "tables/%s.%s%s", d->bucket, d->load->table,
                 d->load->what == LOAD_EMPTY ? "/rows?allowTruncate=1" : "?async=1");
    if (api_start(d->k, d->is_asked ? "GET" : "DELETE", path, NULL, !d->is_asked, d->is_asked ? on_poll : on_asked, d,
                  &d->call, &err) != ERR_NONE)
        over(d, "", &err);
}

static void on_bucket(void *arg, const char *id, const struct err *err)
{
    struct kdrop *d = arg;
    d->needs_bucket = false;
    if (err != NULL) {
        over(d, "", err);
    } else if (id == NULL) {
        over(d, "kept", NULL);
    } else {
        snprintf(d->bucket, sizeof d->bucket, "%s", id);
        ask(d);
    }
}

static void on_timer(uv_timer_t *timer)
{
    struct kdrop *d = timer->data;
    struct err err = {0};
    bool is_ours = d->load->is_ours || d->load->what == LOAD_EMPTY;
    if (d->load->stop) {
        stop(d);
    } else if (d->load->what == LOAD_CARRY ||
               !is_ours) { /* there are no receipts over there that could follow a file */
        over(d, d->load->what == LOAD_CARRY ? "" : "kept", NULL);
    } else if (d->is_asked) {
        ask(d);
    } else if (bucket_need(d->k, d->load->space, false, on_bucket, d, &err) == ERR_NONE) {
        d->needs_bucket = true;
    } else {
        over(d, "", &err);
    }
}

enum err_code keboola_drop_begin(struct keboola *k, struct load *load, struct err *err)
{
    struct kdrop *d = calloc(1, sizeof *d);
    if (d == NULL)
        return err_nomem(err);
    d->k = k;
    d->load = load;
    load->driver = d;
    load->retry_after_ms = 0;
    uv_timer_init(k->loop, &d->timer);
    d->timer.data = d;
    uv_timer_start(&d->timer, on_timer, 0, 0);
    return ERR_NONE;
}

void keboola_drop_abort(struct load *load)
{
    struct kdrop *d = load->driver;
    if (d == NULL || uv_is_closing((uv_handle_t *)&d->timer))
        return;
    if (d->call != NULL) {
        api_cancel(d->call);
    } else {
        if (d->needs_bucket)
            bucket_leave(d->k, d);
        uv_timer_start(&d->timer, on_timer, 0, 0);
    }
}
