/*
 * lag.c -- busy time per turn of the loop.
 *
 * libuv calls back for sockets from inside its poll phase, between prepare and check, so that neither pair of hooks
 * encloses all callbacks. We measure from one prepare to the next instead, and take away the time that the kernel's
 * wait took in between, which libuv counts for us.
 */
#include "lag.h"

#include <stdlib.h>

const uint64_t lag_bounds_ms[LAG_BOUNDS] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000};

struct lag {
    uv_prepare_t prepare;
    uint64_t at_ns;     /* of the last prepare; 0: none yet */
    uint64_t waited_ns; /* all waits up to then */
    struct lag_counts counts;
};

static void count(struct lag_counts *c, uint64_t busy_ns)
{
    int bucket = 0;
    while (bucket < LAG_BOUNDS && busy_ns > lag_bounds_ms[bucket] * 1000000)
        bucket++;
    c->turns[bucket]++;
    c->sum_ns += busy_ns;
    if (busy_ns > c->max_ns)
        c->max_ns = busy_ns;
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct lag *lag = prepare->data;
    uint64_t now_ns = uv_hrtime(), waited_ns = uv_metrics_idle_time(prepare->loop);
    uint64_t turn_ns = now_ns - lag->at_ns, wait_ns = waited_ns - lag->waited_ns;
    if (lag->at_ns != 0)
        count(&lag->counts, turn_ns > wait_ns ? turn_ns - wait_ns : 0);
    lag->at_ns = now_ns;
    lag->waited_ns = waited_ns;
}

enum err_code lag_open(uv_loop_t *loop, struct lag **ret_lag, struct err *err)
{
    struct lag *lag = calloc(1, sizeof *lag);
    if (lag == NULL)
        return err_nomem(err);
    int failed = uv_loop_configure(loop, UV_METRICS_IDLE_TIME);
    if (failed != 0) {
        free(lag);
        return err_set(err, ERR_SYSTEM, false, "measure the loop: %s", uv_strerror(failed));
    }
    uv_prepare_init(loop, &lag->prepare); /* these three can't fail */
    lag->prepare.data = lag;
    uv_prepare_start(&lag->prepare, on_prepare);
    uv_unref((uv_handle_t *)&lag->prepare);
    *ret_lag = lag;
    return ERR_NONE;
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void lag_close(struct lag *lag)
{
    if (lag != NULL)
        uv_close((uv_handle_t *)&lag->prepare, on_closed);
}

void lag_read(const struct lag *lag, struct lag_counts *ret_counts)
{
    *ret_counts = lag->counts;
}
