/*
 * work.h -- run something that blocks on libuv's thread pool and come back.
 *
 * A request carries its own copies in and its results out. The pool is for short things (open, stat, hash a small
 * file, one ledger commit); what runs for minutes takes a thread of its own (work_thread) so that the pool never
 * starves.
 */
#ifndef CHUTE_WORK_H
#define CHUTE_WORK_H

#include "err.h"

#include <uv.h>

struct work;
typedef void work_fn(struct work *work);   /* on a pool thread */
typedef void work_done(struct work *work); /* on the loop thread, on a later turn */

/* Embed it as the first member of the request. */
struct work {
    uv_work_t req;
    uv_async_t async;   /* work_thread only */
    uv_thread_t thread; /* work_thread only */
    uv_sem_t gate;      /* work_thread only: the thread waits here until the handle is ready */
    bool may_run;       /* work_thread only, written before the gate opens */
    work_fn *run;
    work_done *done;
    void *arg;
};

/* Queue RUN on the pool; DONE comes once. WORK may be freed in DONE. */
enum err_code work_start(uv_loop_t *loop, struct work *work, work_fn *run, work_done *done, struct err *err);
/* The same on a thread of its own, with a small stack (256 KiB). */
enum err_code work_thread(uv_loop_t *loop, struct work *work, work_fn *run, work_done *done, struct err *err);

#endif
