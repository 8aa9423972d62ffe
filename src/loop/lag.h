/*
 * lag.h -- how long the loop was busy between two waits: nothing may hold it for longer than some 20 ms.
 *
 * Counts the time from when the kernel's wait ended to when the next one begins: all callbacks, of sockets, timers and
 * work that came back. Its own handles are unreferenced and wake nobody.
 */
#ifndef CHUTE_LAG_H
#define CHUTE_LAG_H

#include "err.h"

#include <stdint.h>
#include <uv.h>

#define LAG_BOUNDS 11 /* and one bucket above the last bound */

struct lag;
extern const uint64_t lag_bounds_ms[LAG_BOUNDS]; /* 1 2 5 10 20 50 100 200 500 1000 5000; inclusive */

struct lag_counts {
    uint64_t turns[LAG_BOUNDS + 1]; /* not cumulated: each turn is in one */
    uint64_t sum_ns;
    uint64_t max_ns;
};

/* One for LOOP, before it runs. Closed with lag_close(); the memory goes on a later turn. */
enum err_code lag_open(uv_loop_t *loop, struct lag **ret_lag, struct err *err);
void lag_close(struct lag *lag);
/* What was counted up to the last wait; for the loop's thread. */
void lag_read(const struct lag *lag, struct lag_counts *ret_counts);

#endif
