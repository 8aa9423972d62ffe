#include "work.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <cmocka.h>

struct request {
    struct work work;
    int answer;
    uv_thread_t ran_on;
    int *done_count;
};

static uv_thread_t loop_thread;

static void compute(struct work *work)
{
    struct request *r = (struct request *)work;
    char stack[64 * 1024]; /* what a thread's work may need */
    memset(stack, 1, sizeof stack);
    r->answer = 41 + stack[r->answer];
    r->ran_on = uv_thread_self();
}

static void finished(struct work *work)
{
    struct request *r = (struct request *)work;
    uv_thread_t now = uv_thread_self();
    assert_true(uv_thread_equal(&now, &loop_thread));
    assert_false(uv_thread_equal(&r->ran_on, &loop_thread));
    assert_int_equal(r->answer, 42);
    ++*r->done_count;
    free(r); /* as the contract allows */
}

typedef enum err_code start_fn(uv_loop_t *loop, struct work *work, work_fn *run, work_done *done, struct err *err);

static void run_many(start_fn *start)
{
    uv_loop_t loop;
    int done = 0;
    loop_thread = uv_thread_self();
    assert_int_equal(uv_loop_init(&loop), 0);
    for (int i = 0; i < 20; i++) {
        struct request *r = calloc(1, sizeof *r);
        r->done_count = &done;
        assert_int_equal(start(&loop, &r->work, compute, finished, NULL), ERR_NONE);
    }
    assert_int_equal(done, 0); /* never from inside the call */
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(done, 20);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void work_on_the_pool_comes_back_once_on_the_loop(void **state)
{
    (void)state;
    run_many(work_start);
}

static void work_on_its_own_thread_comes_back_once_on_the_loop(void **state)
{
    (void)state;
    run_many(work_thread);
}

static bool no_threads;
int __real_uv_thread_create_ex(uv_thread_t *tid, const uv_thread_options_t *params, uv_thread_cb entry, void *arg);
int __wrap_uv_thread_create_ex(uv_thread_t *tid, const uv_thread_options_t *params, uv_thread_cb entry, void *arg)
{
    return no_threads ? UV_EAGAIN : __real_uv_thread_create_ex(tid, params, entry, arg);
}
static bool no_handles;
int __real_uv_async_init(uv_loop_t *loop, uv_async_t *async, uv_async_cb cb);
int __wrap_uv_async_init(uv_loop_t *loop, uv_async_t *async, uv_async_cb cb)
{
    return no_handles ? UV_EMFILE : __real_uv_async_init(loop, async, cb);
}

static void must_not_run(struct work *work)
{
    (void)work;
    abort();
}

static void a_thread_that_cannot_start_leaves_nothing_behind(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct work work;
    struct err err;
    assert_int_equal(uv_loop_init(&loop), 0);
    no_threads = true;
    assert_int_equal(work_thread(&loop, &work, must_not_run, must_not_run, &err), ERR_SYSTEM);
    assert_true(err.retryable);
    no_threads = false;
    no_handles = true;
    assert_int_equal(work_thread(&loop, &work, must_not_run, must_not_run, &err), ERR_SYSTEM);
    no_handles = false;
    memset(&work, 0xAA, sizeof work);
    assert_int_equal(uv_run(&loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_on_the_pool_comes_back_once_on_the_loop),
        cmocka_unit_test(work_on_its_own_thread_comes_back_once_on_the_loop),
        cmocka_unit_test(a_thread_that_cannot_start_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
