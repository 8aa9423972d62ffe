/*
 * keboola_load.c -- one file version into one table: a walk of remote steps. See keboola_internal.h.
 *
 *                      ┌────────────── exists / made meanwhile ──────────────┐
 *   BUCKET ─▶ TABLE ─▶ (DEFINE ─▶ DEFINING) ─▶ PREPARE ─▶ UPLOAD ─▶ CURRENT ─▶ ORDER ─▶ POLL ─▶ over
 *   id         header,  typed or sliced       file id   bytes to  still the  import   job
 *              key,     tables only           [kept]    the store version?   job id   ends
 *              types                                    [kept]    [intent    [kept]
 *              compared                                            kept]       ▲
 *                                                                    └─ LOOK ──┘ did the service take it?
 *
 * [kept]: a checkpoint is on disk before the next step. After a kill or a lost answer:
 *
 *   kept            what is done
 *   nothing, file   prepare anew: an unused file expires by itself
 *   uploaded        the table is compared again, then the import is ordered
 *   intent          LOOK through the jobs for one that loads this file; only if there is none it is ordered again
 *   job             POLL goes on
 *
 * So no file version is imported by two jobs. A checkpoint of another version of the file (it changed while its import
 * ran) is followed to its end and told as is_resumed: what the service took it has. One of a drop (keboola_drop.c) is
 * followed to its end, too, and then the load begins.
 */
#include "keboola_walk.h"

#include "clock.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define PREPARES_MAX 4 /* credentials that expire, files that are not found: then the engine waits */

static const struct {
    step_fn *enter, *answer;
} steps[K_STEPS] = {
    [K_BUCKET] = {walk_enter_bucket, walk_answer_bucket},    [K_TABLE] = {walk_enter_table, walk_answer_table},
    [K_DEFINE] = {walk_enter_define, walk_answer_define},    [K_DEFINING] = {walk_enter_defining, walk_answer_defining},
    [K_PREPARE] = {walk_enter_prepare, walk_answer_prepare}, [K_REWIND] = {walk_enter_rewind, walk_answer_rewind},
    [K_UPLOAD] = {walk_enter_upload, walk_answer_upload},    [K_CURRENT] = {walk_enter_current, walk_answer_current},
    [K_ORDER] = {walk_enter_order, walk_answer_order},       [K_LOOK] = {walk_enter_look, walk_answer_look},
    [K_POLL] = {walk_enter_poll, walk_answer_poll},          [K_KEEP] = {walk_enter_keep, walk_answer_keep},
};

/* ---- the end ---- */

static void wipe(const char *secret)
{
    if (secret != NULL)
        explicit_bzero((char *)(uintptr_t)secret, strlen(secret));
}

void walk_forget_target(struct kload *l)
{
    wipe(l->target.secret_key);
    wipe(l->target.session_token);
    wipe(l->target.sas);
    wipe(l->target.access_token);
    memset(&l->target, 0, sizeof l->target);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct kload *l = handle->data;
    struct load *load = l->load;
    struct keboola *k = l->k;
    load->err = l->err;
    load->driver = NULL;
    if (l->err.code != ERR_NONE) {
        memset(&load->receipt, 0, sizeof load->receipt);
        load->receipt.dest_rows = -1;
    }
    free(l->manifest);
    arena_done(&l->arena);
    free(l);
    load->finished(load);
    keboola_load_over(k);
}

/* The walk is over, with ERR; nothing but a renewal may still be under way, and it calls again. */
void walk_finish(struct kload *l)
{
    l->is_over = true;
    if (l->renewal != NULL) {
        api_cancel(l->renewal);
        return;
    }
    walk_forget_target(l);
    uv_close((uv_handle_t *)&l->timer, on_timer_closed);
}

static void run(struct kload *l, step_fn *step)
{
    enum next next;
    while ((next = step(l)) == AGAIN)
        step = steps[l->step].enter;
    if (next == OVER)
        walk_finish(l);
}

void walk_enter(struct kload *l)
{
    run(l, steps[l->step].enter);
}

void walk_answer(struct kload *l)
{
    run(l, steps[l->step].answer);
}

enum next walk_stopped(struct kload *l)
{
    err_set(&l->err, ERR_STOPPED, true, "stopped");
    return OVER;
}

enum next walk_go(struct kload *l, enum step to)
{
    if (l->load->stop && to != K_KEEP)
        return walk_stopped(l);
    l->step = to;
    return AGAIN;
}

enum next walk_keep(struct kload *l, enum step then)
{
    l->after_keep = then;
    return walk_go(l, K_KEEP);
}

enum next walk_fails(struct kload *l, const struct err *err)
{
    l->err = *err;
    return OVER;
}

/* The answer to a request that the walk can't go on from. */
enum next walk_refused(struct kload *l)
{
    if (l->reply->status == 403 && l->bucket[0] != '\0' && bucket_is_foreign(l->k, l->bucket, false)) {
        struct err err = {0}; /* no reason to stop those that are for other buckets */
        err_set(&err, ERR_INPUT, true, "token %s may not write to bucket %s; give it that right in Keboola",
                l->k->token_name, l->bucket);
        return walk_fails(l, &err);
    }
    l->load->retry_after_ms = l->reply->retry_after_ms;
    return walk_fails(l, &l->reply->err);
}

static void name_table(const struct load *load, char *ret, size_t size)
{
    snprintf(ret, size, "%s.%s", load->space, load->table);
}

void keboola_walk_name(const struct keboola *k, const struct load *load, struct keboola_walk *ret)
{
    name_table(load, ret->table, sizeof ret->table);
    memcpy(ret->at, k->identity, sizeof ret->at);
}

/* This version of the file, nothing done yet. */
void walk_fresh(struct kload *l)
{
    const struct load *load = l->load;
    bool made = l->walk.made;
    memset(&l->walk, 0, sizeof l->walk);
    l->walk.made = made;
    keboola_walk_name(l->k, load, &l->walk);
    l->walk.is_raw = l->is_raw;
    text_hex(load->hash, sizeof load->hash, l->walk.hash);
    l->walk.parsed = load->rows->result.records;
    l->walk.rejected = load->rows->result.rejected;
    l->walk.bytes = load->rows->result.bytes;
    l->walk.rows_before = -1;
}

/* Bytes that any reader takes for the same rows go up as they are. To be asked before a second pass. */
static bool goes_raw(const struct load *load)
{
    const struct dialect *d = &load->rows->shape->dialect;
    const struct rows_result *r = &load->rows->result;
    return d->encoding == ENC_UTF8 && d->compression != COMPRESSION_ZSTD && !d->ends_cr && r->rejected == 0 &&
           r->odd == 0 && load->skip_records == 0 && load->plan->null_values.count <= 1;
}

/* ---- asking ---- */

static void on_reply(void *arg, const struct api_reply *reply)
{
    struct kload *l = arg;
    l->call = NULL;
    l->reply = reply;
    /* A job that was accepted is kept, also when we stop. */
    bool is_order = l->step == K_ORDER && reply->err.code == ERR_NONE;
    if (l->load->stop && !is_order) {
        walk_stopped(l);
        walk_finish(l);
        return;
    }
    walk_answer(l);
}

enum next walk_ask(struct kload *l, const char *method, const char *path, const struct buf *body, bool has_branch)
{
    struct err err = {0};
    if (body != NULL && body->failed)
        err_nomem(&err);
    else if (api_start(l->k, method, path, body != NULL ? body->data : NULL, has_branch, on_reply, l, &l->call, &err) ==
             ERR_NONE)
        return WAIT;
    return walk_fails(l, &err);
}

static void on_timer(uv_timer_t *timer)
{
    struct kload *l = timer->data;
    if (l->load->stop) {
        walk_stopped(l);
        walk_finish(l);
        return;
    }
    walk_enter(l);
}

/* Enter this step again in MS. */
enum next walk_later(struct kload *l, uint64_t ms)
{
    uv_timer_start(&l->timer, on_timer, ms, 0);
    return WAIT;
}

static void on_worked(struct work *work)
{
    struct kload *l = work->arg;
    l->is_working = false;
    walk_answer(l);
}

enum next walk_work(struct kload *l, work_fn *fn)
{
    struct err err = {0};
    l->work.arg = l;
    l->is_working = true;
    if (work_start(l->k->loop, &l->work, fn, on_worked, &err) == ERR_NONE)
        return WAIT;
    l->is_working = false;
    return walk_fails(l, &err);
}

/* ---- the checkpoint ---- */

void keboola_walk_write(const struct keboola_walk *w, char *ret, size_t size)
{
    if (w->file == 0 && !w->made && !w->drops)
        ret[0] = '\0';
    else
        snprintf(ret, size,
                 "keboola1 hash=%s file=%" PRId64 " job=%" PRId64 " ordered=%" PRId64 " flags=%u parsed=%" PRIu64
                 " rejected=%" PRIu64 " bytes=%" PRIu64 " before=%" PRId64 " at=%s table=%s",
                 w->hash, w->file, w->job, w->ordered_ms,
                 (unsigned)w->is_uploaded | (unsigned)w->creates << 1 | (unsigned)w->made << 2 |
                     (unsigned)w->is_sliced << 3 | (unsigned)w->is_keyed << 4 | (unsigned)w->is_raw << 5 |
                     (unsigned)w->drops << 6,
                 w->parsed, w->rejected, w->bytes, w->rows_before, w->at, w->table);
}

bool keboola_walk_read(const char *text, struct keboola_walk *w)
{
    unsigned flags;
    struct keboola_walk r = {0};
    if (text == NULL ||
        sscanf(text,
               "keboola1 hash=%32s file=%" SCNd64 " job=%" SCNd64 " ordered=%" SCNd64 " flags=%u parsed=%" SCNu64
               " rejected=%" SCNu64 " bytes=%" SCNu64 " before=%" SCNd64 " at=%39s table=%399s",
               r.hash, &r.file, &r.job, &r.ordered_ms, &flags, &r.parsed, &r.rejected, &r.bytes, &r.rows_before, r.at,
               r.table) != 11)
        return false;
    r.is_uploaded = flags & 1;
    r.creates = flags & 2;
    r.made = flags & 4;
    r.is_sliced = flags & 8;
    r.is_keyed = flags & 16;
    r.is_raw = flags & 32;
    r.drops = flags & 64;
    *w = r;
    return true;
}

bool keboola_walk_of(const struct keboola *k, const struct load *load, struct keboola_walk *ret)
{
    char table[sizeof ret->table];
    struct keboola_walk w;
    name_table(load, table, sizeof table);
    if (!keboola_walk_read(load->checkpoint, &w) || strcmp(w.table, table) != 0 || strcmp(w.at, k->identity) != 0)
        return false;
    *ret = w;
    return true;
}

static void on_saved(struct load *load, const struct err *err)
{
    struct kload *l = load->driver;
    l->is_saving = false;
    if (err != NULL && l->err.code == ERR_NONE)
        l->err = *err;
    walk_answer(l);
}

enum next walk_enter_keep(struct kload *l)
{
    char text[CHECKPOINT_MAX];
    struct err err = {0};
    keboola_walk_write(&l->walk, text, sizeof text);
    l->is_saving = true;
    if (l->load->save(l->load, text, on_saved, &err) == ERR_NONE)
        return WAIT;
    l->is_saving = false;
    if (l->err.code == ERR_NONE)
        l->err = err;
    return OVER;
}

enum next walk_answer_keep(struct kload *l)
{
    if (l->err.code != ERR_NONE) /* of the ledger, or the job's own, told when its trace is gone */
        return OVER;
    return walk_go(l, l->after_keep);
}

/* Nothing of this walk is worth keeping: forget it, then end with ERR. */
enum next walk_fails_for_good(struct kload *l, const struct err *err)
{
    walk_fresh(l);
    l->err = *err;
    l->step = K_KEEP;
    return AGAIN;
}

/* The uploaded file is of no use any more: from the start, a few times. */
enum next walk_prepare_again(struct kload *l, const struct err *err)
{
    l->walk.file = l->walk.job = l->walk.ordered_ms = 0;
    l->walk.is_uploaded = false;
    l->slice = 0;
    struct err missing = *err;
    missing.retryable = true; /* no fault of the file's */
    if (++l->prepares >= PREPARES_MAX)
        return walk_fails_for_good(l, &missing);
    return walk_go(l, K_TABLE);
}

/* The table or the bucket is not what it was a moment ago: look again. */
enum next walk_look_again(struct kload *l, enum step to, const struct err *err)
{
    l->walk.ordered_ms = l->walk.job = 0;
    if (++l->turns >= TURNS_MAX)
        return walk_fails(l, err);
    return walk_keep(l, to);
}

/* ---- begin and abort ---- */

/* Where to begin, by what the last try has kept. */
static enum step first_step(struct kload *l)
{
    const struct load *load = l->load;
    char hash[33];
    text_hex(load->hash, sizeof load->hash, hash);
    bool has_walk = keboola_walk_of(l->k, load, &l->walk);
    bool is_ours = has_walk && strcmp(l->walk.hash, hash) == 0;
    if (has_walk && l->walk.drops && l->walk.job > 0) {
        l->is_adopted = true;
        return K_POLL;
    }
    if (has_walk && !l->walk.drops && (l->walk.job > 0 || l->walk.ordered_ms > 0)) {
        l->is_adopted = !is_ours;
        return l->walk.job > 0 ? K_POLL : K_LOOK;
    }
    if (!is_ours || !l->walk.is_uploaded || l->walk.is_raw != l->is_raw) /* other options may have come in between */
        walk_fresh(l);
    return K_BUCKET;
}

enum err_code keboola_load_begin(struct keboola *k, struct load *load, struct err *err)
{
    struct kload *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_nomem(err);
    l->k = k;
    l->load = load;
    arena_init(&l->arena);
    uv_timer_init(k->loop, &l->timer);
    l->timer.data = l;
    load->driver = l;
    load->retry_after_ms = 0;
    l->is_raw = goes_raw(load);
    l->step = first_step(l);
    uv_timer_start(&l->timer, on_timer, 0, 0);
    return ERR_NONE;
}

void keboola_load_abort(struct load *load)
{
    struct kload *l = load->driver;
    if (l == NULL || l->is_over || uv_is_closing((uv_handle_t *)&l->timer))
        return;
    if (l->upload != NULL)
        upload_cancel(l->upload);
    else if (l->call != NULL)
        api_cancel(l->call); /* an order that was on its way is looked for by the next try */
    else if (l->needs_bucket || uv_is_active((uv_handle_t *)&l->timer)) {
        bucket_leave(l->k, l);
        l->needs_bucket = false;
        uv_timer_start(&l->timer, on_timer, 0, 0);
    }
    /* A checkpoint and work on the pool are waited for: they end soon. */
}
