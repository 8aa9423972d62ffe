/*
 * remote_fetch.c -- the bytes of a file into the caller's descriptor.
 *
 * curl gives bytes on the loop, the disk takes them on the pool: of two buffers one is filled while the other is
 * written and hashed, and when both are full the server waits. What is begun from its first byte is hashed here, while
 * it is in the cache; what goes on where another process stopped is read again later, by whoever wants its hash. It
 * goes on at the offset that is there already; a server that can't (no REST) is asked for all of it. `jobs` at a time;
 * the others wait their turn.
 */
#include "remote_internal.h"

#include "content_hash.h"
#include "work.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#define PIECE_BYTES (256u * 1024)

struct piece {
    struct piece *next; /* of the spare ones */
    size_t size;
    char bytes[PIECE_BYTES];
};

struct fetching {
    struct call call; /* first */
    struct fetch *fetch;
    struct fetching *prev, *next;
    struct work work;
    struct piece *filling, *writing;
    uint64_t at;               /* where the piece that is written goes */
    struct content_hash *hash; /* of the bytes before AT; NULL: they are not all ours */
    struct err write_err;
    bool is_writing, is_paused, is_under_way, is_aborted;
    bool is_over; /* curl has ended; what is left is on its way to the disk */
    bool is_restarted;
    struct rate_turn turn;
    bool is_in_line;
};

/* Pieces are kept for the next file: their pages would be taken from the system and cleared anew for each. */
static struct piece *take_piece(struct remote *r)
{
    struct piece *p = r->spare;
    if (p != NULL)
        r->spare = p->next;
    else
        p = malloc(sizeof *p);
    if (p != NULL)
        p->size = 0;
    return p;
}

static void give_piece(struct remote *r, struct piece *p)
{
    if (p == NULL)
        return;
    p->next = r->spare;
    r->spare = p;
}

void remote_drop_spare(struct remote *r)
{
    while (r->spare != NULL) {
        struct piece *p = r->spare;
        r->spare = p->next;
        free(p);
    }
    curl_spare_drop(&r->spare_easy, r->curl);
}

static void finish(struct fetching *f)
{
    struct fetch *fetch = f->fetch;
    struct remote *r = f->call.remote;
    if (r->download_rate != NULL)
        rate_leave(r->download_rate, &f->turn);
    DL_DELETE(r->fetches, f);
    if (f->is_under_way)
        r->fetch_count--;
    give_piece(r, f->filling);
    give_piece(r, f->writing);
    content_hash_free(f->hash);
    free(f);
    fetch->driver = NULL;
    fetch->finished(fetch);
    remote_kick(r);
}

/* ---- the disk ---- */

static void on_pool(struct work *work)
{
    struct fetching *f = work->arg;
    size_t done = 0;
    while (done < f->writing->size) {
        ssize_t n = pwrite(f->fetch->fd, f->writing->bytes + done, f->writing->size - done, (off_t)(f->at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            err_set(&f->write_err, ERR_SYSTEM, true, "write to the spool: %s", strerror(n < 0 ? errno : ENOSPC));
            break;
        }
        done += (size_t)n;
    }
    if (f->hash != NULL)
        content_hash_add(f->hash, f->writing->bytes, done);
    f->writing->size = done;
}

static void write_on(struct fetching *f);

static void on_written(struct work *work)
{
    struct fetching *f = work->arg;
    f->is_writing = false;
    f->at += f->writing->size;
    f->writing->size = 0;
    f->fetch->offset = f->at;
    if (f->write_err.code != ERR_NONE && !f->is_over) {
        f->call.err = f->write_err; /* ends it on the next turn */
        remote_kick(f->call.remote);
    }
    write_on(f);
}

static void conclude(struct fetching *f);

/* What is there goes to the disk, if that is free; then the server may go on. */
static void write_on(struct fetching *f)
{
    struct remote *r = f->call.remote;
    bool is_worth_it = f->is_over || f->is_paused;
    if (!f->is_writing && f->filling->size > 0 && is_worth_it && f->write_err.code == ERR_NONE) {
        struct piece *swap = f->writing;
        f->writing = f->filling;
        f->filling = swap;
        f->work.arg = f;
        f->is_writing = work_start(r->loop, &f->work, on_pool, on_written, &f->write_err) == ERR_NONE;
    }
    if (f->is_over && !f->is_writing) {
        conclude(f);
    } else if (f->is_paused && f->filling->size == 0 && !f->is_over) {
        f->is_paused = false;
        call_resume(&f->call);
    }
}

/* ---- curl ---- */

static size_t on_bytes(struct call *call, const char *bytes, size_t size)
{
    struct fetching *f = (struct fetching *)call;
    struct remote *r = call->remote;
    const struct fetch *fetch = f->fetch;
    uint64_t come = f->at + (f->is_writing ? f->writing->size : 0) + f->filling->size + size;
    if (fetch->max_bytes > 0 && come > fetch->max_bytes) {
        err_set(&call->err, ERR_INPUT, false, "file is larger than limits.max_file_size, %llu bytes",
                (unsigned long long)fetch->max_bytes);
        return 0;
    }
    if (size > PIECE_BYTES - f->filling->size) {
        f->is_paused = true;
        write_on(f);
        if (size > PIECE_BYTES - f->filling->size) /* both are full */
            return CURL_WRITEFUNC_PAUSE;
        f->is_paused = false;
    }
    if (r->download_rate != NULL && !rate_pass(r->download_rate, &f->turn, size, uv_hrtime())) {
        f->is_in_line = true;
        remote_kick(r);
        return CURL_WRITEFUNC_PAUSE;
    }
    memcpy(f->filling->bytes + f->filling->size, bytes, size);
    f->filling->size += size;
    return size;
}

static void on_turn(struct rate_turn *turn)
{
    struct fetching *f = (struct fetching *)((char *)turn - offsetof(struct fetching, turn));
    f->is_in_line = false;
    call_resume(&f->call);
}

static void on_pace(uv_timer_t *timer)
{
    remote_fetch_pace(timer->data);
}

/* Serve the line of the limit, for whoever stands there, and come back while one of ours does. */
void remote_fetch_pace(struct remote *r)
{
    const struct fetching *f;
    bool is_any = false;
    if (r->download_rate == NULL)
        return;
    uint64_t next_ns = rate_serve(r->download_rate, uv_hrtime());
    DL_FOREACH(r->fetches, f)
        is_any = is_any || f->is_in_line;
    if (is_any)
        uv_timer_start(&r->pace, on_pace, next_ns / 1000000 + 1, 0);
    else
        uv_timer_stop(&r->pace);
}

static bool begin(struct fetching *f);

static void on_done(struct call *call)
{
    struct fetching *f = (struct fetching *)call;
    struct remote *r = call->remote;
    curl_off_t size = -1, mtime = -1;
    r->curl->easy_getinfo(call->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &size);
    r->curl->easy_getinfo(call->easy, CURLINFO_FILETIME_T, &mtime);
    call_done(call);
    f->fetch->is_verified = size >= 0;
    f->fetch->has_mtime = mtime >= 0;
    f->fetch->mtime_ns = (int64_t)mtime * 1000000000;
    f->is_over = true;
    write_on(f);
}

static const struct call_ops ops = {.bytes = on_bytes, .done = on_done};

/* It can't go on where we are: then from the beginning, once. */
static bool must_restart(const struct fetching *f)
{
    CURLcode result = f->call.result;
    return !f->is_restarted && f->at > 0 && !f->call.is_aborted &&
           (result == CURLE_FTP_COULDNT_USE_REST || result == CURLE_BAD_DOWNLOAD_RESUME || result == CURLE_RANGE_ERROR);
}

static void conclude(struct fetching *f)
{
    struct fetch *fetch = f->fetch;
    struct err *err = &f->call.err;
    if (must_restart(f)) {
        f->is_restarted = fetch->is_restarted = true;
        f->at = fetch->offset = 0;
        if (f->hash != NULL)
            content_hash_restart(f->hash);
        if (begin(f))
            return;
    }
    fetch->offset = f->at;
    fetch->is_gone = f->call.is_gone;
    fetch->err = f->write_err.code != ERR_NONE ? f->write_err : *err;
    if (fetch->err.code == ERR_NONE && f->at != fetch->id.size)
        err_set(&fetch->err, ERR_REMOTE, true, "%s: expected %llu bytes, as it was listed, got %llu",
                f->call.remote->where, (unsigned long long)fetch->id.size, (unsigned long long)f->at);
    fetch->has_hash = fetch->err.code == ERR_NONE && f->hash != NULL;
    if (fetch->has_hash)
        content_hash_get(f->hash, fetch->hash);
    finish(f);
}

/* False: call->err says why. */
static bool begin(struct fetching *f)
{
    struct remote *r = f->call.remote;
    struct err err = {0};
    f->is_over = false;
    enum err_code code = call_init(&f->call, r, &ops, f->fetch->path, false, &err);
    if (code == ERR_NONE &&
        (r->curl->easy_setopt(f->call.easy, CURLOPT_FILETIME, 1L) != CURLE_OK ||
         r->curl->easy_setopt(f->call.easy, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)f->at) != CURLE_OK))
        code = err_nomem(&err);
    if (code == ERR_NONE)
        code = call_begin(&f->call, &err);
    if (code == ERR_NONE)
        return true;
    if (f->call.easy != NULL)
        call_done(&f->call);
    f->call.err = err;
    f->is_over = true;
    return false;
}

void remote_fetch_next(struct remote *r)
{
    struct fetching *f, *next;
    DL_FOREACH_SAFE(r->fetches, f, next) {
        if (f->is_under_way)
            continue;
        if (f->is_aborted || r->is_closing || r->is_hurried) {
            err_set(&f->fetch->err, ERR_STOPPED, true, "stopped");
            finish(f);
            next = r->fetches; /* finished() may have changed the list */
            continue;
        }
        if (r->fetch_count >= r->jobs)
            continue;
        f->filling = take_piece(r);
        f->writing = take_piece(r);
        if (f->at == 0)
            f->hash = content_hash_new();
        if (f->filling == NULL || f->writing == NULL || (f->at == 0 && f->hash == NULL)) {
            err_nomem(&f->fetch->err);
            finish(f);
            next = r->fetches;
            continue;
        }
        f->is_under_way = true;
        r->fetch_count++;
        if (!begin(f)) {
            conclude(f);
            next = r->fetches;
        }
    }
}

enum err_code remote_fetch(struct remote *r, struct fetch *fetch, struct err *err)
{
    if (r->is_closing || r->is_hurried)
        return err_set(err, ERR_STOPPED, true, "the source is closing");
    struct fetching *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_nomem(err);
    f->call.remote = r;
    f->fetch = fetch;
    f->at = fetch->offset;
    f->turn.on_turn = on_turn;
    err_clear(&fetch->err);
    fetch->is_gone = fetch->is_restarted = fetch->is_verified = fetch->has_mtime = fetch->has_hash = false;
    fetch->driver = f;
    DL_APPEND(r->fetches, f);
    remote_kick(r);
    return ERR_NONE;
}

void remote_abort_fetch(struct remote *r, struct fetch *fetch)
{
    struct fetching *f = fetch->driver;
    if (f == NULL)
        return;
    f->is_aborted = true;
    if (f->is_under_way && !f->is_over)
        call_abort(&f->call);
    remote_kick(r);
}
