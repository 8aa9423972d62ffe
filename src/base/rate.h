/*
 * rate.h -- a limit of bytes per second that several transfers share in turns.
 *
 * A token bucket with room for 100 ms: after a pause no more than that goes at once. Whoever finds it empty stands in
 * line and is served in order of arrival, a portion each, so that all who want more than their part get the same. No
 * clock and no timer inside: the caller says what time it is (nanoseconds, monotonic). Not thread-safe.
 */
#ifndef CHUTE_RATE_H
#define CHUTE_RATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rate_turn;
typedef void rate_on_turn(struct rate_turn *turn);

/* One transfer's place; zeroed, with ON_TURN set, embedded by the caller. */
struct rate_turn {
    rate_on_turn *on_turn; /* from rate_serve(): ask again now, you will get something. Must not call into the rate */
    struct rate_turn *prev, *next;
    size_t want;    /* while in line */
    size_t granted; /* already taken out of the bucket for this one */
    bool is_whole;  /* of rate_pass() */
    bool is_waiting;
};

struct rate {
    uint64_t bytes_per_s; /* 0: no limit */
    uint64_t full_at_ns;  /* when the bucket will be full again: all that is missing is in this one number */
    struct rate_turn *line;
};

/* At most 10 GB/s; more is taken for that. 0: no limit. */
void rate_init(struct rate *r, uint64_t bytes_per_s);
/* Another limit from now on; those in line are served by the next rate_serve(). */
void rate_set(struct rate *r, uint64_t bytes_per_s);
/* How many of WANT (> 0) bytes may go now. 0: none, and TURN stands in line. What is not used goes back with
 * rate_return(). */
size_t rate_take(struct rate *r, struct rate_turn *turn, size_t want, uint64_t now_ns);
void rate_return(struct rate *r, size_t bytes);
/* For bytes that came and can't be divided: may they pass? true: all SIZE are taken, into debt if need be. false: TURN
 * stands in line. */
bool rate_pass(struct rate *r, struct rate_turn *turn, size_t size, uint64_t now_ns);
/* TURN ends: leave the line, give back what was granted. */
void rate_leave(struct rate *r, struct rate_turn *turn);
/* Serve those in line for whom there is enough. Returns how long until there is enough for the next one, in ns (> 0);
 * 0: the line is empty. */
uint64_t rate_serve(struct rate *r, uint64_t now_ns);

#endif
