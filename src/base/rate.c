/* rate.c -- a token bucket kept as one number: the time at which it will be full again. */
#include "rate.h"

#include "utlist.h"

#define SECOND_NS 1000000000ull
#define BURST_NS (SECOND_NS / 10)
#define MAX_BYTES_PER_S 10000000000ull /* keeps the products below inside 64 bits */

void rate_init(struct rate *r, uint64_t bytes_per_s)
{
    r->full_at_ns = 0;
    r->line = NULL;
    rate_set(r, bytes_per_s);
}

void rate_set(struct rate *r, uint64_t bytes_per_s)
{
    r->bytes_per_s = bytes_per_s < MAX_BYTES_PER_S ? bytes_per_s : MAX_BYTES_PER_S;
}

/* Time that BYTES take, rounded up: a limit is never exceeded by rounding. */
static uint64_t cost_ns(const struct rate *r, uint64_t bytes)
{
    uint64_t seconds = bytes / r->bytes_per_s, rest = bytes % r->bytes_per_s;
    return seconds * SECOND_NS + (rest * SECOND_NS + r->bytes_per_s - 1) / r->bytes_per_s;
}

/* What the bucket holds when full, in time: 100 ms, but at least one byte. */
static uint64_t burst_ns(const struct rate *r)
{
    uint64_t one_ns = cost_ns(r, 1);
    return one_ns > BURST_NS ? one_ns : BURST_NS;
}

static uint64_t in_bucket(const struct rate *r, uint64_t now_ns)
{
    uint64_t full_ns = burst_ns(r);
    uint64_t missing_ns = r->full_at_ns > now_ns ? r->full_at_ns - now_ns : 0;
    return missing_ns >= full_ns ? 0 : (full_ns - missing_ns) * r->bytes_per_s / SECOND_NS;
}

/* The least worth waking up for: not a few bytes at a time, and never more than the bucket can hold. */
static uint64_t portion(const struct rate *r, size_t want)
{
    uint64_t half = burst_ns(r) * r->bytes_per_s / SECOND_NS / 2;
    if (half == 0)
        half = 1;
    return want < half ? want : half;
}

static void take(struct rate *r, uint64_t bytes, uint64_t now_ns)
{
    if (r->full_at_ns < now_ns)
        r->full_at_ns = now_ns;
    r->full_at_ns += cost_ns(r, bytes);
}

static void stand_in_line(struct rate *r, struct rate_turn *turn, size_t want, bool is_whole)
{
    turn->want = want;
    turn->is_whole = is_whole;
    if (turn->is_waiting)
        return;
    turn->is_waiting = true;
    DL_APPEND(r->line, turn);
}

/* Out of what TURN was granted when its turn came. */
static size_t take_granted(struct rate_turn *turn, size_t want)
{
    size_t bytes = turn->granted < want ? turn->granted : want;
    turn->granted -= bytes;
    return bytes;
}

size_t rate_take(struct rate *r, struct rate_turn *turn, size_t want, uint64_t now_ns)
{
    if (r->bytes_per_s == 0)
        return want;
    if (turn->granted > 0)
        return take_granted(turn, want);
    uint64_t there = in_bucket(r, now_ns);
    if (r->line != NULL || there < portion(r, want)) {
        stand_in_line(r, turn, want, false);
        return 0;
    }
    size_t bytes = there < want ? (size_t)there : want;
    take(r, bytes, now_ns);
    return bytes;
}

bool rate_pass(struct rate *r, struct rate_turn *turn, size_t size, uint64_t now_ns)
{
    if (r->bytes_per_s == 0)
        return true;
    if (turn->granted > 0) { /* its turn has come; what arrived since then passes with it */
        take(r, size - take_granted(turn, size), now_ns);
        return true;
    }
    if (r->line != NULL || in_bucket(r, now_ns) < portion(r, size)) {
        stand_in_line(r, turn, size, true);
        return false;
    }
    take(r, size, now_ns);
    return true;
}

void rate_return(struct rate *r, size_t bytes)
{
    if (r->bytes_per_s == 0 || bytes == 0)
        return;
    uint64_t back_ns = cost_ns(r, bytes);
    r->full_at_ns = r->full_at_ns > back_ns ? r->full_at_ns - back_ns : 0;
}

void rate_leave(struct rate *r, struct rate_turn *turn)
{
    if (turn->is_waiting)
        DL_DELETE(r->line, turn);
    turn->is_waiting = false;
    rate_return(r, turn->granted);
    turn->granted = 0;
}

uint64_t rate_serve(struct rate *r, uint64_t now_ns)
{
    while (r->line != NULL) {
        struct rate_turn *turn = r->line;
        if (r->bytes_per_s > 0) {
            uint64_t least = portion(r, turn->want), there = in_bucket(r, now_ns);
            if (there < least) {
                uint64_t at_ns = r->full_at_ns + cost_ns(r, least) - burst_ns(r);
                return at_ns > now_ns ? at_ns - now_ns : 1;
            }
            turn->granted = turn->is_whole || there > turn->want ? turn->want : (size_t)there;
            take(r, turn->granted, now_ns);
        }
        DL_DELETE(r->line, turn);
        turn->is_waiting = false;
        turn->on_turn(turn);
    }
    return 0;
}
