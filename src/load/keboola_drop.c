/*
 * keboola_drop.c -- drop or empty a table, or say that there is nothing to do. See keboola_internal.h.
 *
 *   (LOOK ─▶) AWAIT ─▶ KEEP ─▶ BUCKET ─▶ TABLE ─▶ KEEP ─▶ DELETE ─▶ KEEP ─▶ POLL ─▶ over
 *                                        is it    [asked]           [job]
 *                                        there?
 *
 * An import that a load of this path began goes on over there, also when its file is deleted meanwhile: it is waited
 * for, else it would put back what was dropped, and whether it made the table is known only then. That is kept before
 * the table goes, so that a kill in between does not leave it there.
 *
 * Only what we made is dropped; nothing cascades. Before the delete is asked for, it is kept when the table was made,
 * by the service's own clock: whoever begins again after a kill, or after an answer that got lost, drops that very
 * table or nothing. One that somebody has made there since is another one. When the service has taken it, the number of
 * its job is kept: that job is followed, also by a load of the file if that comes again (keboola_load.c).
 */
#include "keboola_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOST_MAX = 3 }; /* jobs of a delete that the service then does not know */

struct kdrop {
    struct load *load;
    struct keboola *k;
    struct api_call *call;
    bool needs_bucket;
    bool is_saving;
    bool is_ours;
    bool has_walk;   /* an import may be under way: WALK.job is its number, 0 while it is looked for */
    bool is_asked;   /* the delete was asked for by this try or one before; WALK.job is its job, 0 not known */
    bool was_looked; /* the table is there, and it may be deleted */
    bool ends_kept;  /* what was saved is the end: with SAID and ERR */
    struct keboola_walk walk;
    char bucket[256];
    unsigned polls, looks, look_page, lost;
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

static bool is_whole(const struct kdrop *d)
{
    return d->load->what != LOAD_EMPTY;
}

static void refused(struct kdrop *d, const struct api_reply *r)
{
    struct err err = {0};
    if (r->status == 403 && d->bucket[0] != '\0' && bucket_is_foreign(d->k, d->bucket, is_whole(d))) {
        err_set(&err, ERR_INPUT, true, "token %s may not %s table %s.%s; give it the right to %s in Keboola",
                d->k->token_name, is_whole(d) ? "drop" : "empty", d->bucket, d->load->table,
                is_whole(d) ? "manage that bucket" : "write to that bucket");
        over(d, "", &err); /* no reason to stop what is for other buckets */
        return;
    }
    d->load->retry_after_ms = r->retry_after_ms;
    over(d, "", &r->err);
}

/* The table is not as it was before us, whoever did it. */
static void done(struct kdrop *d, bool by_us)
{
    over(d, !by_us ? "kept" : is_whole(d) ? "dropped" : "emptied", NULL);
}

static void on_timer(uv_timer_t *timer);

/* ---- an import under way ---- */

static void go_on(struct kdrop *d);

static void on_saved(struct load *load, const struct err *err)
{
    struct kdrop *d = load->driver;
    d->is_saving = false;
    if (d->ends_kept)
        over(d, "", d->err.code != ERR_NONE ? &d->err : err);
    else if (load->stop)
        stop(d);
    else if (err != NULL)
        over(d, "", err);
    else
        go_on(d);
}

/* WALK is on disk before the next step. */
static void keep(struct kdrop *d)
{
    struct err err = {0};
    char text[CHECKPOINT_MAX];
    keboola_walk_write(&d->walk, text, sizeof text);
    d->is_saving = true;
    if (d->load->save(d->load, text, on_saved, &err) != ERR_NONE) {
        d->is_saving = false;
        over(d, "", d->err.code != ERR_NONE ? &d->err : &err);
    }
}

/* It has ended, or never began: all there is to know of it is whether we made the table. */
static void import_ended(struct kdrop *d)
{
    d->has_walk = false;
    d->is_ours = d->is_ours || d->walk.made;
    d->walk.made = d->is_ours;
    d->walk.file = d->walk.job = d->walk.ordered_ms = 0;
    d->walk.is_uploaded = false;
    keep(d);
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

/* The job of the delete is over and did nothing: the next try asks anew. */
static void failed(struct kdrop *d, const struct err *err)
{
    d->err = *err;
    d->ends_kept = true;
    d->walk.job = 0;
    keep(d);
}

static void on_poll(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    struct err err = {0};
    bool is_final, again;
    d->call = NULL;
    if (d->load->stop) {
        stop(d);
    } else if (r->status == 404 && r->is_api && ++d->lost < LOST_MAX) { /* no such job: how is the table? */
        d->walk.job = 0;
        d->was_looked = false;
        go_on(d);
    } else if (r->err.code != ERR_NONE) {
        refused(d, r);
    } else if (keboola_job_end(r->json, &is_final, &again, &err) != ERR_NONE) {
        if (keboola_is_place_gone(api_text(api_member(r->json, "error"), "code")))
            done(d, true); /* by a job that was asked for before it, whose answer got lost */
        else
            failed(d, &err);
    } else if (is_final) {
        done(d, true);
    } else {
        uv_timer_start(&d->timer, on_timer, keboola_poll_ms(d->polls++), 0);
    }
}

static void on_asked(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    struct err err = {0};
    d->call = NULL;
    if (r->err.code == ERR_NONE && r->status == 204) {
        done(d, true);
    } else if (r->err.code == ERR_NONE && (d->walk.job = api_number(r->json, "id", 0)) > 0) {
        keep(d); /* also when we stop */
    } else if (d->load->stop) {
        stop(d);
    } else if (r->status == 404 && r->is_api) { /* gone since we looked: libcurl repeats a request on a connection that
                                                   was closed, and the first one has worked */
        done(d, true);
    } else if (r->err.code != ERR_NONE) {
        refused(d, r);
    } else {
        d->walk.job = 0;
        err_set(&err, ERR_REMOTE, true, "the answer to the delete has no number of a job");
        over(d, "", &err);
    }
}

/* Is it the table that we are to delete? */
static void on_table(void *arg, const struct api_reply *r)
{
    struct kdrop *d = arg;
    d->call = NULL;
    if (d->load->stop) {
        stop(d);
        return;
    }
    if (r->status == 404 && r->is_api) { /* no such table, or bucket */
        done(d, d->is_asked);
        return;
    }
    if (r->err.code != ERR_NONE) {
        refused(d, r);
        return;
    }
    int64_t made_ms = api_time_ms(r->json, "created");
    if (d->is_asked && made_ms != d->walk.ordered_ms) { /* ours is gone, and this is another one */
        done(d, true);
        return;
    }
    bool was_asked = d->is_asked;
    d->is_asked = d->was_looked = true;
    d->walk.drops = true;
    d->walk.creates = is_whole(d);
    d->walk.made = d->is_ours;
    d->walk.ordered_ms = made_ms;
    if (was_asked)
        go_on(d);
    else
        keep(d);
}

static void ask(struct kdrop *d)
{
    struct err err = {0};
    char path[700];
    const char *method = "GET";
    api_cb *cb = on_table;
    if (d->walk.job > 0) {
        snprintf(path, sizeof path, "jobs/%" PRId64, d->walk.job);
        cb = on_poll;
    } else {
        snprintf(path, sizeof path, "tables/%s.%s%s", d->bucket, d->load->table,
                 !d->was_looked ? ""
                 : is_whole(d)  ? "?async=1"
                                : "/rows?allowTruncate=1");
        if (d->was_looked) {
            method = "DELETE";
            cb = on_asked;
        }
    }
    if (api_start(d->k, method, path, NULL, d->walk.job == 0, cb, d, &d->call, &err) != ERR_NONE)
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
        done(d, d->is_asked);
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
    else
        go_on(d);
}

static void go_on(struct kdrop *d)
{
    struct err err = {0};
    if (d->load->what == LOAD_CARRY) { /* there are no receipts over there that could follow a file */
        over(d, "", NULL);
    } else if (!d->is_ours && is_whole(d)) {
        done(d, false);
    } else if (d->walk.job > 0 || d->bucket[0] != '\0') {
        ask(d);
    } else if (bucket_need(d->k, d->load->space, false, on_bucket, d, &err) == ERR_NONE) {
        d->needs_bucket = true;
    } else {
        over(d, "", &err);
    }
}

/* What the last try has kept: an import, or a delete of this kind, that may be under way. */
static void take_checkpoint(struct kdrop *d)
{
    struct keboola_walk *w = &d->walk;
    if (d->load->what == LOAD_CARRY)
        return;
    if (keboola_walk_of(d->k, d->load, w)) {
        d->is_ours = d->is_ours || w->made;
        d->is_asked = w->drops && w->creates == is_whole(d);
        d->has_walk = !w->drops && (w->job > 0 || w->ordered_ms > 0);
    } else {
        keboola_walk_name(d->k, d->load, w);
        snprintf(w->hash, sizeof w->hash, "-");
    }
    if (!d->is_asked && !d->has_walk)
        w->file = w->job = w->ordered_ms = 0;
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
    take_checkpoint(d);
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
