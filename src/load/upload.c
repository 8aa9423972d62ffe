/*
 * upload.c -- the uploader: whose turn it is for a request or a buffer; and the life of an upload.
 *
 * Everything is decided in turn(), which a timer of no length calls after something happened. A turn looks at each
 * upload, gives buffers to those in line, gives free slots to pieces that are ready, and tells those that have ended.
 */
#include "upload_internal.h"

#include "clock.h"

#include "utlist.h"

#include <stdlib.h>
#include <string.h>

#define PARALLEL 4u
#define BUFFER_BYTES (12 * MIB)
#define SINGLE_BYTES (32 * MIB)
#define PIECE_BYTES (16 * MIB)

struct upload_knobs upload_knobs;

static const struct store_ops *const stores[] = {
    [STORE_S3] = &store_s3,
    [STORE_AZURE] = &store_azure,
    [STORE_GCS] = &store_gcs,
};

static void turn(struct uploader *up);

/* ---- sizes ---- */

static uint64_t piece_min(const struct store_ops *ops)
{
    return upload_knobs.piece_min > 0 ? upload_knobs.piece_min : ops->piece_min;
}

static uint64_t round_up(uint64_t size, uint64_t unit)
{
    return (size + unit - 1) / unit * unit;
}

/* A tenth of the allowed number is kept in reserve. */
static uint64_t least_for(const struct store_ops *ops, uint64_t size)
{
    uint64_t most = ops->max_pieces / 10 * 9;
    return size / most + (size % most != 0);
}

static uint64_t within(const struct store_ops *ops, uint64_t size)
{
    if (size < piece_min(ops))
        size = piece_min(ops);
    size = round_up(size, 256 * KIB); /* what Google wants; nice for all */
    return size < ops->piece_max ? size : ops->piece_max;
}

uint64_t upload_plain_bytes(const struct store_ops *ops, uint64_t wanted, uint64_t size)
{
    uint64_t least = least_for(ops, size);
    return within(ops, wanted > least ? wanted : least);
}

/* What is expected may be too little (text that grows when it is decompressed or decoded), so later pieces are larger:
 * what fits is six times what is expected, and without any idea 275 GB for S3. */
uint64_t upload_produce_bytes(const struct store_ops *ops, uint64_t expected, unsigned number)
{
    uint64_t size = upload_knobs.produce_bytes > 0 ? upload_knobs.produce_bytes : ops->produce_bytes;
    uint64_t least = least_for(ops, expected);
    if (size < least)
        size = least;
    if (number >= ops->max_pieces / 4 * 3)
        size *= 16;
    else if (number >= ops->max_pieces / 2)
        size *= 4;
    return within(ops, size);
}

/* ---- the uploader ---- */

static void on_timer(uv_timer_t *timer)
{
    turn(timer->data);
}

static void poke_in(struct uploader *up, uint64_t ms)
{
    if (up->is_closed)
        return;
    if (uv_is_active((uv_handle_t *)&up->timer) && uv_timer_get_due_in(&up->timer) <= ms)
        return;
    uv_timer_start(&up->timer, on_timer, ms, 0);
}

void upload_poke(struct uploader *up)
{
    poke_in(up, 0);
}

enum err_code uploader_open(uv_loop_t *loop, struct http *http, const struct uploader_limits *limits,
                            struct uploader **ret_uploader, struct err *err)
{
    if (digest_init(err) != ERR_NONE)
        return err->code;
    struct uploader *up = calloc(1, sizeof *up);
    if (up == NULL)
        return err_nomem(err);
    up->loop = loop;
    up->http = http;
    if (limits != NULL)
        up->limits = *limits;
    if (up->limits.parallel == 0)
        up->limits.parallel = PARALLEL;
    if (up->limits.buffer_bytes == 0)
        up->limits.buffer_bytes = BUFFER_BYTES;
    if (up->limits.single_bytes == 0)
        up->limits.single_bytes = SINGLE_BYTES;
    if (up->limits.piece_bytes == 0)
        up->limits.piece_bytes = PIECE_BYTES;
    up->random = uv_hrtime() | 1;
    uv_timer_init(loop, &up->timer);
    up->timer.data = up;
    *ret_uploader = up;
    return ERR_NONE;
}

static void on_closed(uv_handle_t *handle)
{
    struct uploader *up = handle->data;
    void (*closed)(void *) = up->closed;
    void *arg = up->closed_arg;
    free(up);
    if (closed != NULL)
        closed(arg);
}

void uploader_close(struct uploader *up, void (*closed)(void *arg), void *arg)
{
    if (up == NULL || up->is_closing)
        return;
    up->is_closing = true;
    up->closed = closed;
    up->closed_arg = arg;
    struct upload *u;
    DL_FOREACH(up->uploads, u)
        upload_cancel(u);
    upload_poke(up);
}

/* ---- an upload ---- */

struct piece *upload_add_piece(struct upload *u, enum step step)
{
    struct piece *p = calloc(1, sizeof *p);
    if (p == NULL)
        return NULL;
    p->upload = u;
    p->step = step;
    p->state = PIECE_READY;
    buf_init(&p->text);
    DL_APPEND(u->pieces, p);
    return p;
}

static void upload_free(struct upload *u)
{
    producer_free(u->producer);
    for (size_t i = 0; i < u->mark_capacity; i++)
        free(u->marks[i].etag);
    free(u->marks);
    if (u->session != NULL)
        explicit_bzero(u->session, strlen(u->session)); /* Google's is a right to write */
    free(u->session);
    target_free(u->target);
    free(u);
}

uint64_t uploader_piece_bytes(const struct uploader *up, enum store_kind kind, uint64_t size)
{
    const struct store_ops *ops = stores[kind];
    uint64_t single = up->limits.single_bytes < ops->single_max ? up->limits.single_bytes : ops->single_max;
    return size > single ? upload_plain_bytes(ops, up->limits.piece_bytes, size) : 0;
}

/* Is the piece at hand in the store since an earlier try? */
static bool is_there(const struct upload *u, uint64_t left)
{
    const struct upload_blob *b = u->blob;
    uint64_t size = left > u->piece_bytes ? u->piece_bytes : left;
    return u->is_many && b != NULL && u->made < b->have_count && b->have[u->made] == size;
}

enum err_code upload_start(struct uploader *up, const struct upload_request *request, struct upload **ret_upload,
                           struct err *err)
{
    if (up->is_closing)
        return err_set(err, ERR_STOPPED, false, "uploads are being stopped");
    struct upload *u = calloc(1, sizeof *u);
    if (u == NULL)
        return err_nomem(err);
    u->up = up;
    u->body = request->body;
    u->done = request->done;
    u->expired = request->expired;
    u->stop = request->stop;
    u->arg = request->arg;
    u->blob = request->blob;
    u->has_proof = true;
    enum err_code code = target_new(&request->target, &u->target, err);
    if (code == ERR_NONE) {
        u->ops = stores[u->target->t.kind];
        if (u->body.from == UPLOAD_ROWS || u->body.gzip)
            code = producer_new(u, &u->producer, err);
    }
    if (code != ERR_NONE) {
        upload_free(u);
        return code;
    }
    if (u->producer == NULL) {
        u->piece_bytes = uploader_piece_bytes(up, request->target.kind, u->body.size);
        u->is_many = u->piece_bytes > 0;
    }
    DL_APPEND(up->uploads, u);
    if (ret_upload != NULL)
        *ret_upload = u;
    upload_poke(up);
    return ERR_NONE;
}

bool upload_must_stop(const struct upload *u)
{
    return atomic_load_explicit(&u->is_stopping, memory_order_relaxed) ||
           (u->stop != NULL && atomic_load_explicit(u->stop, memory_order_relaxed));
}

void upload_fail(struct upload *u, const struct err *err, uint64_t retry_after_ms)
{
    if (u->is_over)
        return;
    u->is_over = true;
    u->result.err = *err;
    u->result.retry_after_ms = retry_after_ms;
    atomic_store(&u->is_stopping, true);
    struct piece *p;
    DL_FOREACH(u->pieces, p)
        piece_cancel(p);
    upload_poke(u->up);
}

void upload_cancel(struct upload *u)
{
    struct err err;
    err_set(&err, ERR_STOPPED, false, "the upload was stopped");
    upload_fail(u, &err, 0);
}

enum err_code upload_renew(struct upload *u, const struct store_target *target, struct err *err)
{
    struct target *next;
    if (target_new(target, &next, err) != ERR_NONE)
        return err->code;
    if (!target_is_same(u->target, next)) {
        target_free(next);
        return err_set(err, ERR_CONFIG, false, "the new credentials are for another object");
    }
    target_free(u->target);
    u->target = next;
    u->generation++;
    u->has_proof = false;
    u->is_resting = false;
    upload_poke(u->up);
    return ERR_NONE;
}

static void add_or_fail(struct upload *u, enum step step)
{
    struct err err;

    if (upload_add_piece(u, step) == NULL) {
        err_nomem(&err);
        upload_fail(u, &err, 0);
    }
}

/* The pieces of a body that is there already: as many as may be under way. */
static void cut_pieces(struct upload *u)
{
    unsigned most = u->ops->is_sequential || !u->is_many ? 1 : u->up->limits.parallel, under_way = 0;
    struct piece *p;
    DL_FOREACH(u->pieces, p)
        under_way++;
    for (; under_way < most && !u->all_made && !u->is_over; under_way++) {
        uint64_t left = u->body.size - u->made_bytes;
        struct err err;
        if (is_there(u, left)) {
            uint64_t size = left > u->piece_bytes ? u->piece_bytes : left;
            u->made++;
            u->made_bytes += size;
            u->all_made = size == left;
            under_way--; /* the loop's own count */
            continue;
        }
        p = upload_add_piece(u, u->is_many ? STEP_PIECE : STEP_SINGLE);
        if (p == NULL) {
            err_nomem(&err);
            upload_fail(u, &err, 0);
            return;
        }
        p->number = u->made++;
        p->offset = u->made_bytes;
        p->size = u->is_many && left > u->piece_bytes ? u->piece_bytes : left;
        p->is_last = p->size == left;
        p->sum_before = u->made_crc;
        if (u->body.from == UPLOAD_MEMORY)
            p->data = (const uint8_t *)u->body.data + p->offset;
        u->made_bytes += p->size;
        u->all_made = p->is_last;
    }
}

/* What can this upload do now? */
static void step_upload(struct upload *u)
{
    struct piece *p, *next;
    if (!u->is_over && upload_must_stop(u))
        upload_cancel(u);
    DL_FOREACH_SAFE(u->pieces, p, next)
        if (!u->is_over)
            piece_step(p);
    if (u->producer != NULL)
        producer_step(u->producer);
    if (u->is_over)
        return;
    if (u->is_many && !u->has_begun && !u->was_begun) {
        u->was_begun = true;
        u->has_begun = !u->ops->has_begin;
        if (!u->has_begun)
            add_or_fail(u, STEP_BEGIN);
    }
    if (u->producer == NULL && (u->has_begun || !u->is_many))
        cut_pieces(u);
    if (u->is_many && u->all_made && u->pieces == NULL && u->ops->has_commit)
        add_or_fail(u, STEP_COMMIT);
}

/* ---- whose turn it is ---- */

static bool may_run(const struct upload *u, const struct piece *p)
{
    if (p->state != PIECE_READY || u->is_over || u->is_resting)
        return false;
    if (p->step != STEP_PIECE)
        return true;
    return u->has_begun && (!u->ops->is_sequential || p == u->pieces);
}

static struct piece *next_piece(struct uploader *up)
{
    struct upload *u;
    DL_FOREACH(up->uploads, u) {
        struct piece *p;
        DL_FOREACH(u->pieces, p)
            if (may_run(u, p))
                return p;
    }
    return NULL;
}

static void give_buffers(struct uploader *up)
{
    while (up->line != NULL) {
        struct producer *pr = up->line->producer;
        uint64_t wanted = producer_wants(pr);
        if (up->buffer_used > 0 && up->buffer_used + wanted > up->limits.buffer_bytes)
            return;
        producer_grant(pr);
    }
}

static void give_slots(struct uploader *up)
{
    while (up->running < up->limits.parallel) {
        struct piece *p = next_piece(up);
        if (p == NULL)
            return;
        /* To the end of the list: one piece of each upload in turns, so that small files don't wait for large ones. */
        struct upload *u = p->upload;
        DL_DELETE(up->uploads, u);
        DL_APPEND(up->uploads, u);
        p->has_slot = true;
        up->running++;
        piece_run(p);
    }
}

/* Over, and nothing touches it any more. */
static bool is_quiet(const struct upload *u)
{
    if (!u->is_over || (u->producer != NULL && producer_is_busy(u->producer)))
        return false;
    struct piece *p;
    DL_FOREACH(u->pieces, p)
        if (piece_is_busy(p))
            return false;
    return true;
}

static void end_upload(struct upload *u)
{
    struct piece *p, *next;
    DL_FOREACH_SAFE(u->pieces, p, next)
        piece_free(p);
    DL_DELETE(u->up->uploads, u);
    u->result.source_bytes = u->producer != NULL ? producer_read_bytes(u->producer) : u->made_bytes;
    producer_free(u->producer);
    u->producer = NULL;
    target_redact(u->target, u->result.err.text);
    u->done(u->arg, &u->result);
    upload_free(u);
}

/* Tell those that have ended; each time from the start, because done() may do anything to the list. */
static bool end_one(struct uploader *up)
{
    struct upload *u;
    DL_FOREACH(up->uploads, u) {
        if (!is_quiet(u))
            continue;
        end_upload(u);
        return true;
    }
    return false;
}

static void wake_for_pauses(struct uploader *up)
{
    uint64_t now = clock_mono_ms();
    struct upload *u;
    DL_FOREACH(up->uploads, u) {
        struct piece *p;
        DL_FOREACH(u->pieces, p)
            if (p->state == PIECE_PAUSED)
                poke_in(up, p->due_ms > now ? p->due_ms - now : 0);
    }
}

#define IDLE_MS 1000 /* what one upload needed is kept so long for the next */

static void drop_when_idle(struct uploader *up)
{
    uint64_t now = uv_now(up->loop);
    if (up->uploads != NULL) {
        up->idle_ms = 0;
        return;
    }
    if (up->idle_ms == 0)
        up->idle_ms = now;
    if (up->is_closing || now - up->idle_ms >= IDLE_MS)
        pumps_drop(up);
    else if (up->spare != NULL)
        poke_in(up, IDLE_MS - (now - up->idle_ms));
}

static void turn(struct uploader *up)
{
    struct upload *u, *next;
    DL_FOREACH_SAFE(up->uploads, u, next)
        step_upload(u);
    give_buffers(up);
    give_slots(up);
    while (end_one(up))
        ;
    wake_for_pauses(up);
    drop_when_idle(up);
    if (up->is_closing && up->uploads == NULL) {
        up->is_closed = true;
        uv_close((uv_handle_t *)&up->timer, on_closed);
    }
}
