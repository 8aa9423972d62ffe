/*
 * keboola_drop.c -- drop or empty a table, or say that there is nothing to do. See keboola_internal.h.
 *
 *   (LOOK ─▶) AWAIT ─▶ KEEP ─▶ BUCKET ─▶ DELETE … ─▶ POLL ─▶ over
 *
 * An import that a load of this path began goes on over there, also when its file is deleted meanwhile: it is waited
 * for, else it would put back what was dropped, and whether it made the table is known only then. That is kept before
 * the table goes, so that a kill in between does not leave it there.
 *
 * Only what we made is dropped; nothing cascades. Begun again after a kill it finds nothing left.
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
    bool is_asked; /* JOB is that of the delete */
    bool is_saving;
    bool is_ours;
    bool has_walk; /* an import may be under way: WALK.job is its number, 0 while it is looked for */
    struct keboola_walk walk;
    char bucket[256];
    int64_t job;
    unsigned polls, looks, look_page;
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

static void refused(struct kdrop *d, const struct api_reply *r)
{
    d->load->retry_after_ms = r->retry_after_ms;
    over(d, "", &r->err);
}

static void on_timer(uv_timer_t *timer);

/* ---- an import under way ---- */

static void go_on(struct kdrop *d);

static void on_saved(struct load *load, const struct err *err)
{
    struct kdrop *d = load->driver;
    d->is_saving = false;
    if (load->stop)
        stop(d);
    else if (err != NULL)
        over(d, "", err);
    else
        go_on(d);
}

/* It has ended, or never began: all there is to know of it is whether we made the table. */
static void import_ended(struct kdrop *d)
{
    struct err err = {0};
    char text[CHECKPOINT_MAX];
    d->has_walk = false;
    d->is_ours = d->is_ours || d->walk.made;
    d->walk.made = d->is_ours;
    d->walk.file = d->walk.job = d->walk.ordered_ms = 0;
    d->walk.is_uploaded = false;
    keboola_walk_write(&d->walk, text, sizeof text);
    d->is_saving = true;
    if (d->load->save(d->load, text, on_saved, &err) != ERR_NONE) {
        d->is_saving = false;
        over(d, "", &err);
    }
}

static void on_awaited(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    struct err err = {0};
    bool is_final, again;
    d->call = NULL;
    if (d->load->stop) {
        stop(d);
        return;
    }
    if (r->status == 404 && r->is_api) {
        import_ended(d);
        return;
    }
    if (r->err.code != ERR_NONE) {
        refused(d, r);
        return;
    }
    enum err_code code = keboola_job_end(r->json, &is_final, &again, &err);
    if (!is_final) {
        uv_timer_start(&d->timer, on_timer, keboola_poll_ms(d->polls++), 0);
        return;
    }
    d->is_ours = d->is_ours || (code == ERR_NONE && d->walk.creates);
    import_ended(d);
}

static void on_looked(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    struct err err = {0};
    bool more;
    d->call = NULL;
    int64_t job = keboola_find_job(r->json, d->walk.file, d->walk.ordered_ms, &more);
    if (d->load->stop) {
        stop(d);
    } else if (r->err.code != ERR_NONE) {
        refused(d, r);
    } else if (job < 0 || !json_object_is_type(r->json, json_type_array)) {
        err_set(&err, ERR_REMOTE, true, "GET jobs: the answer is no list of jobs with numbers");
        over(d, "", &err);
    } else if (job > 0) {
        d->walk.job = job;
        uv_timer_start(&d->timer, on_timer, 0, 0);
    } else if (more && ++d->look_page < LOOK_PAGES_MAX) {
        uv_timer_start(&d->timer, on_timer, 0, 0);
    } else if (++d->looks < LOOKS_MAX) {
        d->look_page = 0;
        uv_timer_start(&d->timer, on_timer, keboola_look_ms(d->looks), 0);
    } else {
        import_ended(d);
    }
}

static void await(struct kdrop *d)
{
    struct err err = {0};
    char path[64];
    bool is_known = d->walk.job > 0;
    if (is_known)
        snprintf(path, sizeof path, "jobs/%" PRId64, d->walk.job);
    else
        snprintf(path, sizeof path, "jobs?limit=%d&offset=%u", LOOK_PAGE, d->look_page * LOOK_PAGE);
    if (api_start(d->k, "GET", path, NULL, false, is_known ? on_awaited : on_looked, d, &d->call, &err) != ERR_NONE)
        over(d, "", &err);
}

/* ---- the delete ---- */

static void on_poll(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    struct err err = {0};
    bool is_final, again;
    d->call = NULL;
    if (d->load->stop) {
        stop(d);
    } else if (r->err.code != ERR_NONE) {
        refused(d, r);
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
            refused(d, r);
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
        d->load->retry_after_ms = bucket_pause_ms(d->k, d->load->space);
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
    if (d->load->stop)
        stop(d);
    else if (d->has_walk)
        await(d);
    else if (d->is_asked)
        ask(d);
    else
        go_on(d);
}

static void go_on(struct kdrop *d)
{
    struct err err = {0};
    if (d->load->what == LOAD_CARRY) { /* there are no receipts over there that could follow a file */
        over(d, "", NULL);
    } else if (!d->is_ours && d->load->what != LOAD_EMPTY) {
        over(d, "kept", NULL);
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
    d->is_ours = load->is_ours;
    bool has_walk = load->what != LOAD_CARRY && load->save != NULL && keboola_walk_of(k, load, &d->walk);
    d->has_walk = has_walk && (d->walk.job > 0 || d->walk.ordered_ms > 0);
    d->is_ours = d->is_ours || (has_walk && d->walk.made);
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
    } else if (!d->is_saving) { /* which ends soon */
        if (d->needs_bucket)
            bucket_leave(d->k, d);
        uv_timer_start(&d->timer, on_timer, 0, 0);
    }
}
