/*
 * upload_produce.c -- bodies that exist only while they are made: compressed, or rows written as CSV.
 *
 * One producer per upload. It waits in line for a buffer of the uploader's budget, fills it, sums on the way, and makes
 * it a piece; while that one is sent, the next one may be filled. A file or memory is compressed on the pool, a MiB at
 * a time; rows, whose parser may let us wait, on a thread of their own, a buffer at a time.
 */
#include "upload_internal.h"

#include "utlist.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define INPUT_BYTES ((size_t)128 * 1024) /* what is compressed is read in such portions */
#define STEP_BYTES MIB                   /* of input in one work on the pool */

struct producer {
    struct work work;
    struct upload *u;
    bool is_running;      /* a thread has it */
    bool is_in_line;      /* for a buffer */
    bool has_ended;       /* everything is made */
    bool is_full;         /* of the current piece */
    struct csv_text *csv; /* rows */
    struct gzip_out *gzip;
    uint8_t *input;
    const uint8_t *in; /* not compressed yet */
    size_t in_size;
    bool in_is_over;
    uint64_t read; /* bytes of the source */
    struct piece *piece;
    size_t room; /* of its buffer */
    struct summer summer;
    uint32_t crc; /* up to here, for SUM_WHOLE_CRC32C */
    struct err err;
};

enum err_code producer_new(struct upload *u, struct producer **ret, struct err *err)
{
    struct producer *pr = calloc(1, sizeof *pr);
    if (pr == NULL)
        return err_nomem(err);
    pr->u = u;
    enum err_code code = ERR_NONE;
    if (u->body.from == UPLOAD_ROWS)
        code = csv_text_new(u->body.rows, &u->body.csv, &pr->csv, err);
    if (code == ERR_NONE && u->body.gzip)
        code = gzip_out_new(&pr->gzip, err);
    if (code == ERR_NONE && u->body.gzip && u->body.from != UPLOAD_MEMORY) {
        pr->input = malloc(INPUT_BYTES);
        if (pr->input == NULL)
            code = err_nomem(err);
    }
    if (code != ERR_NONE) {
        producer_free(pr);
        return code;
    }
    *ret = pr;
    return ERR_NONE;
}

static void leave_line(struct producer *pr)
{
    if (pr->is_in_line)
        DL_DELETE2(pr->u->up->line, pr->u, line_prev, line_next);
    pr->is_in_line = false;
}

void producer_free(struct producer *pr)
{
    if (pr == NULL)
        return;
    leave_line(pr);
    summer_drop(&pr->summer);
    csv_text_free(pr->csv);
    gzip_out_free(pr->gzip);
    free(pr->input);
    free(pr);
}

bool producer_is_busy(const struct producer *pr)
{
    return pr->is_running;
}

uint64_t producer_read_bytes(const struct producer *pr)
{
    return pr->read;
}

/* ---- on the pool, or on a thread of its own ---- */

/* More to compress: pr->in, pr->in_is_over. */
static enum err_code read_input(struct producer *pr, struct err *err)
{
    const struct upload_body *body = &pr->u->body;
    size_t got = 0;
    if (body->from == UPLOAD_ROWS) {
        if (csv_text_read(pr->csv, (char *)pr->input, INPUT_BYTES, &got, &pr->in_is_over, err) != ERR_NONE)
            return err->code;
        pr->in = pr->input;
    } else {
        uint64_t left = body->size - pr->read;
        size_t want = left < INPUT_BYTES ? (size_t)left : INPUT_BYTES;
        if (body->from == UPLOAD_MEMORY) {
            pr->in = (const uint8_t *)body->data + pr->read;
            got = want;
        }
        while (body->from == UPLOAD_FILE && got < want) {
            ssize_t n = pread(body->fd, pr->input + got, want - got, (off_t)(body->offset + pr->read + got));
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                return err_set(err, ERR_SYSTEM, true, "read at byte %llu: %s",
                               (unsigned long long)(body->offset + pr->read + got), strerror(errno));
            if (n == 0)
                return err_set(err, ERR_CHANGED, true, "changed while it was being uploaded: it ends at byte %llu",
                               (unsigned long long)(body->offset + pr->read + got));
            got += (size_t)n;
        }
        if (body->from == UPLOAD_FILE)
            pr->in = pr->input;
        pr->in_is_over = got == left;
    }
    pr->in_size = got;
    pr->read += got;
    return ERR_NONE;
}

/* Into the buffer until it is full, everything is made, or LIMIT bytes of input are used. */
static enum err_code fill_gzip(struct producer *pr, uint64_t limit, struct err *err)
{
    struct piece *p = pr->piece;
    uint64_t until = pr->read + limit;
    while (p->size < pr->room && !pr->has_ended && !upload_must_stop(pr->u)) {
        if (pr->in_size == 0 && !pr->in_is_over) {
            if (pr->read >= until)
                return ERR_NONE;
            if (read_input(pr, err) != ERR_NONE)
                return err->code;
        }
        struct gzip_io io = {pr->in, pr->in_size, p->memory + p->size, pr->room - (size_t)p->size};
        pr->has_ended = gzip_out_run(pr->gzip, &io, pr->in_is_over);
        pr->in = io.in;
        pr->in_size = io.in_size;
        size_t made = pr->room - (size_t)p->size - io.out_size;
        summer_add(&pr->summer, p->memory + p->size, made);
        p->size += made;
    }
    return ERR_NONE;
}

static enum err_code fill_text(struct producer *pr, struct err *err)
{
    struct piece *p = pr->piece;
    while (p->size < pr->room && !pr->has_ended && !upload_must_stop(pr->u)) {
        size_t left = pr->room - (size_t)p->size, got;
        size_t want = left < INPUT_BYTES ? left : INPUT_BYTES; /* a look at the stop flag in between */
        if (csv_text_read(pr->csv, (char *)p->memory + p->size, want, &got, &pr->has_ended, err) != ERR_NONE)
            return err->code;
        summer_add(&pr->summer, p->memory + p->size, got);
        p->size += got;
        pr->read += got;
    }
    return ERR_NONE;
}

static void fill_run(struct work *work)
{
    struct producer *pr = work->arg;
    struct piece *p = pr->piece;
    bool is_rows = pr->u->body.from == UPLOAD_ROWS;
    enum err_code code =
        pr->gzip != NULL ? fill_gzip(pr, is_rows ? UINT64_MAX / 2 : STEP_BYTES, &pr->err) : fill_text(pr, &pr->err);
    pr->is_full = code == ERR_NONE && (pr->has_ended || p->size == pr->room);
    if (!pr->is_full)
        return;
    if (summer_end(&pr->summer, &p->sum, &pr->err) == ERR_NONE)
        pr->crc = p->sum.crc;
}

/* ---- on the loop ---- */

static void fill_done(struct work *work)
{
    struct producer *pr = work->arg;
    pr->is_running = false;
    upload_poke(pr->u->up);
}

static void fill_more(struct producer *pr)
{
    struct err err;
    pr->work.arg = pr;
    enum err_code code = (pr->u->body.from == UPLOAD_ROWS ? work_thread : work_start)(pr->u->up->loop, &pr->work,
                                                                                      fill_run, fill_done, &err);
    pr->is_running = code == ERR_NONE;
    if (code != ERR_NONE)
        upload_fail(pr->u, &err, 0);
}

uint64_t producer_wants(const struct producer *pr)
{
    const struct upload *u = pr->u;
    uint64_t size = upload_produce_bytes(u->ops, u->body.size, u->made);
    /* A small file in one buffer that can hold all of it. */
    if (u->made == 0 && u->body.from != UPLOAD_ROWS && u->body.size < size && gzip_out_bound(u->body.size) < size)
        size = gzip_out_bound(u->body.size);
    return (size + 4095) / 4096 * 4096;
}

void producer_grant(struct producer *pr)
{
    struct upload *u = pr->u;
    struct err err;
    size_t size = (size_t)producer_wants(pr);
    leave_line(pr);
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct piece *p = memory == MAP_FAILED ? NULL : upload_add_piece(u, STEP_PIECE);
    if (p == NULL) {
        if (memory != MAP_FAILED)
            munmap(memory, size);
        err_nomem(&err);
        upload_fail(u, &err, 0);
        return;
    }
    u->up->buffer_used += size;
    p->memory = memory;
    p->memory_size = size;
    p->data = p->memory;
    p->number = u->made++;
    p->offset = u->made_bytes;
    p->state = PIECE_FILLING;
    pr->piece = p;
    pr->room = u->made == 1 ? size : (size_t)upload_produce_bytes(u->ops, u->body.size, p->number);
    pr->is_full = false;
    if (summer_begin(&pr->summer, u->ops->sum, pr->crc, &err) != ERR_NONE)
        upload_fail(u, &err, 0);
    else
        fill_more(pr);
}

/* The buffer is what it will be. */
static void end_piece(struct producer *pr)
{
    struct upload *u = pr->u;
    struct piece *p = pr->piece;
    pr->piece = NULL;
    p->has_sum = true;
    p->is_last = pr->has_ended;
    p->state = PIECE_READY;
    u->made_bytes += p->size;
    u->all_made = pr->has_ended;
    if (p->number == 0 && p->is_last)
        p->step = STEP_SINGLE;
    else
        u->is_many = true;
}

void producer_step(struct producer *pr)
{
    struct upload *u = pr->u;
    if (pr->is_running)
        return;
    if (pr->err.code != ERR_NONE)
        upload_fail(u, &pr->err, 0);
    if (u->is_over) {
        if (pr->piece != NULL)
            pr->piece->state = PIECE_READY; /* not being filled any more */
        pr->piece = NULL;
        leave_line(pr);
        return;
    }
    if (pr->piece != NULL && pr->is_full)
        end_piece(pr);
    else if (pr->piece != NULL)
        fill_more(pr);
    if (pr->piece != NULL || pr->has_ended || pr->is_in_line)
        return;
    /* One that is sent, one that is ready: more would only take buffers from others. */
    unsigned most = u->ops->is_sequential ? 2 : u->up->limits.parallel, pieces = 0;
    struct piece *p;
    DL_FOREACH(u->pieces, p)
        pieces += p->step == STEP_PIECE;
    if (pieces >= most)
        return;
    DL_APPEND2(u->up->line, u, line_prev, line_next);
    pr->is_in_line = true;
}
