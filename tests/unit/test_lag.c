#include "lag.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* Time as the tests say, unless they want the real one. */
static bool is_real;
static uint64_t now_ns, waited_ns;
uint64_t __real_uv_hrtime(void);
uint64_t __wrap_uv_hrtime(void)
{
    return is_real ? __real_uv_hrtime() : now_ns;
}
uint64_t __real_uv_metrics_idle_time(uv_loop_t *loop);
uint64_t __wrap_uv_metrics_idle_time(uv_loop_t *loop)
{
    return is_real ? __real_uv_metrics_idle_time(loop) : waited_ns;
}

static void turn(uv_loop_t *loop, uint64_t busy_ns, uint64_t wait_ns)
{
    now_ns += busy_ns + wait_ns;
    waited_ns += wait_ns;
    uv_run(loop, UV_RUN_NOWAIT);
}

static void on_idle(uv_idle_t *idle)
{
    (void)idle;
}

static void each_turn_is_counted_once_without_its_wait(void **state)
{
    uv_loop_t loop;
    uv_idle_t idle; /* so that a turn is one without waiting */
    struct lag *lag;
    struct lag_counts counts;
    const uint64_t ms = 1000000;
    (void)state;
    is_real = false;
    now_ns = 77 * ms;
    waited_ns = 7 * ms;
    assert_int_equal(uv_loop_init(&loop), 0);
    uv_idle_init(&loop, &idle);
    uv_idle_start(&idle, on_idle);
    assert_int_equal(lag_open(&loop, &lag, NULL), ERR_NONE);
    lag_read(lag, &counts);
    turn(&loop, 1000 * ms, 0); /* before the first wait: opening things is no lag of the loop */
    assert_int_equal(counts.max_ns, 0);
    turn(&loop, 0, 5000 * ms);
    turn(&loop, 1 * ms, 5000 * ms);     /* a bound belongs to its bucket */
    turn(&loop, 1 * ms + 1, 5000 * ms); /* and not one more */
    turn(&loop, 20 * ms, 0);
    turn(&loop, 5000 * ms, 1);
    turn(&loop, 5000 * ms + 1, 1);
    waited_ns += 10 * ms; /* clocks that disagree */
    turn(&loop, 5 * ms, 0);
    lag_read(lag, &counts);
    static const uint64_t wanted[LAG_BOUNDS + 1] = {3, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1};
    assert_memory_equal(counts.turns, wanted, sizeof wanted);
    assert_int_equal(counts.max_ns, 5000 * ms + 1);
    assert_int_equal(counts.sum_ns, 10022 * ms + 2);
    lag_close(lag);
    lag_close(NULL);
    uv_close((uv_handle_t *)&idle, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void on_last(uv_timer_t *timer)
{
    (void)timer;
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    char c;
    int fd;
    (void)status, (void)events;
    assert_int_equal(uv_fileno((uv_handle_t *)poll, &fd), 0);
    assert_int_equal(read(fd, &c, 1), 1);
    usleep(60000);
    uv_poll_stop(poll);
    uv_timer_start(poll->data, on_last, 1, 0); /* a turn is over when the next one begins to wait */
}

static void on_timer(uv_timer_t *timer)
{
    int *fd = timer->data;
    assert_int_equal(write(*fd, "x", 1), 1);
}

/* libuv runs the callbacks of sockets inside its poll phase. */
static void callbacks_of_sockets_count_and_waiting_does_not(void **state)
{
    uv_loop_t loop;
    uv_timer_t timer;
    uv_poll_t poll;
    struct lag *lag;
    struct lag_counts counts;
    int fds[2];
    (void)state;
    is_real = true;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(lag_open(&loop, &lag, NULL), ERR_NONE);
    uv_timer_init(&loop, &timer);
    timer.data = &fds[1];
    uv_timer_start(&timer, on_timer, 1000, 0);
    uv_poll_init(&loop, &poll, fds[0]);
    poll.data = &timer;
    uv_poll_start(&poll, UV_READABLE, on_readable);
    uint64_t began_ns = uv_hrtime();
    uv_run(&loop, UV_RUN_DEFAULT);
    uint64_t took_ns = uv_hrtime() - began_ns;
    lag_read(lag, &counts);
    assert_true(counts.max_ns >= 60000000);
    assert_true(counts.sum_ns >= counts.max_ns);
    assert_true(counts.sum_ns <= took_ns - 900000000); /* the wait for the timer */
    lag_close(lag);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_close((uv_handle_t *)&poll, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    close(fds[0]);
    close(fds[1]);
}

static void it_keeps_no_loop_alive(void **state)
{
    uv_loop_t loop;
    struct lag *lag;
    (void)state;
    is_real = true;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(lag_open(&loop, &lag, NULL), ERR_NONE);
    assert_false(uv_loop_alive(&loop));
    assert_int_equal(uv_run(&loop, UV_RUN_DEFAULT), 0);
    lag_close(lag);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_turn_is_counted_once_without_its_wait),
        cmocka_unit_test(callbacks_of_sockets_count_and_waiting_does_not),
        cmocka_unit_test(it_keeps_no_loop_alive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
