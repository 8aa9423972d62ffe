/* work.c -- blocking work on libuv's pool or on a thread of its own. */
#include "work.h"

#define STACK_BYTES ((size_t)256 * 1024)

static void on_pool(uv_work_t *req)
{
    struct work *work = (struct work *)req;
    work->run(work);
}

static void on_pool_done(uv_work_t *req, int status)
{
    struct work *work = (struct work *)req;
    (void)status; /* nothing here is ever cancelled */
    work->done(work);
}

enum err_code work_start(uv_loop_t *loop, struct work *work, work_fn *run, work_done *done, struct err *err)
{
    work->run = run;
    work->done = done;
    int failed = uv_queue_work(loop, &work->req, on_pool, on_pool_done);
    if (failed != 0)
        return err_set(err, ERR_SYSTEM, true, "queue work for the thread pool: %s", uv_strerror(failed));
    return ERR_NONE;
}

/*
 * The thread is made before the handle, and waits at a gate: a thread that can't be made leaves nothing behind, while
 * a handle would need a turn of the loop to close, and the caller may free WORK when we return a failure.
 */
static void on_thread(void *arg)
{
    struct work *work = arg;
    uv_sem_wait(&work->gate);
    if (!work->may_run)
        return;
    work->run(work);
    uv_async_send(&work->async); /* the last touch: after it WORK belongs to the loop thread */
}

static void on_closed(uv_handle_t *handle)
{
    struct work *work = handle->data;
    work->done(work);
}

static void on_thread_done(uv_async_t *async)
{
    struct work *work = async->data;
    uv_thread_join(&work->thread);
    uv_sem_destroy(&work->gate);
    uv_close((uv_handle_t *)async, on_closed);
}

enum err_code work_thread(uv_loop_t *loop, struct work *work, work_fn *run, work_done *done, struct err *err)
{
    const uv_thread_options_t options = {.flags = UV_THREAD_HAS_STACK_SIZE, .stack_size = STACK_BYTES};
    work->run = run;
    work->done = done;
    int failed = uv_sem_init(&work->gate, 0);
    if (failed != 0)
        return err_set(err, ERR_SYSTEM, true, "start a thread: %s", uv_strerror(failed));
    failed = uv_thread_create_ex(&work->thread, &options, on_thread, work);
    if (failed != 0) {
        uv_sem_destroy(&work->gate);
        return err_set(err, ERR_SYSTEM, true, "start a thread: %s", uv_strerror(failed));
    }
    failed = uv_async_init(loop, &work->async, on_thread_done);
    work->may_run = failed == 0;
    work->async.data = work;
    uv_sem_post(&work->gate);
    if (failed != 0) {
        uv_thread_join(&work->thread);
        uv_sem_destroy(&work->gate);
        return err_set(err, ERR_SYSTEM, true, "start a thread: %s", uv_strerror(failed));
    }
    return ERR_NONE;
}
