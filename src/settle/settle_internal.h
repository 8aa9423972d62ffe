/*
 * settle_internal.h -- what the files of settle share.
 *
 * settle.c       tickets: what was seen of a path and when to look at it
 * settle_look.c  the look on the pool, and what it means
 * settle_probe.c the same for files on another machine, by asking the source
 * settle_heap.c  which ticket is due next
 */
#ifndef CHUTE_SETTLE_INTERNAL_H
#define CHUTE_SETTLE_INTERNAL_H

#include "settle.h"

#include "work.h"

#define HASH_NONFATAL_OOM                                                                                              \
    1 /* a full memory is no reason to exit: the element is not in the table then, see its tbl                         \
       */
#include <uthash.h>

#define NEVER UINT64_MAX
/* Where nobody can tell whether a writer has the file open, age must be more than a pause between two writes. */
#define SETTLE_BLIND_MS 10000
#define BASE_DRIFT_MS 50 /* a wall clock that was moved further than that is another one */

enum ticket_kind {
    TICKET_CLOSED,  /* a close or a rename into place was seen */
    TICKET_UNSEEN,  /* found by a look: age and standing still must do */
    TICKET_WRITING, /* a change was seen and no close: not due */
};
enum ticket_why { WHY_QUIET, WHY_WRITER, WHY_MARKER, WHY_OPEN };

/* One path that waits. */
struct ticket {
    UT_hash_handle hh;
    uint64_t due_ms;  /* monotonic; NEVER: not in the heap */
    size_t heap_at;   /* its place + 1; 0: not in it */
    uint64_t seen_ms; /* since when SEEN is what is there, monotonic */
    int64_t since_ms; /* since when it waits, wall clock, for people */
    struct file_id seen;
    enum ticket_kind kind;
    enum ticket_why why;
    unsigned tries;      /* looks that changed nothing */
    bool is_looked_at;   /* on the pool */
    bool is_changed;     /* noted again while it was looked at: that look counts for nothing */
    bool is_dropped;     /* out of the table; freed when its look is over */
    bool is_from_marker; /* only its marker was seen so far */
    char path[];
};

enum lease { LEASE_UNKNOWN, LEASE_FREE, LEASE_WRITER, LEASE_CANNOT };

/* What a look at one ticket gave. */
struct look_result {
    struct ticket *ticket;
    struct err err;
    struct file_id id;
    enum lease lease;
    bool has_marker;
    int64_t marker_mtime_ns;
};
#define LOOKS 128
#define PROBES 2048 /* a listing costs the same for one name of a folder as for all */

struct look {
    struct work work; /* first */
    struct settle *settle;
    uint64_t first_due_ms; /* of its results the one that was due first */
    size_t count;
    struct look_result results[LOOKS];
};

struct heap {
    struct ticket **items;
    size_t count, room;
};

struct settle {
    uv_loop_t *loop;
    struct settle_options options;
    char *marker; /* owned; "" none */
    int (*open_now)(void *state, const char *path, struct err *err);
    void *state;
    settle_cb *cb;
    void (*looked)(void *arg); /* NULL: nobody asked */
    void *arg;
    uv_timer_t timer;
    struct ticket *tickets;
    size_t count;
    int64_t base_wall_ns; /* the wall clock when the other one said base_mono_ms; see old_at() */
    uint64_t base_mono_ms;
    struct heap heap;
    struct look look;
    bool is_looking, is_closing, is_timer_closed, is_polled;
    bool is_unseen_met;
    enum lease leases; /* the last answer that says whether they work: FREE or CANNOT */
    void (*closed)(void *arg);
    void *closed_arg;
};

/* settle_heap.c */
bool heap_reserve(struct heap *h, size_t count);
void heap_put(struct heap *h, struct ticket *t); /* into the heap, or to its new place; room was reserved */
void heap_remove(struct heap *h, struct ticket *t);

/* settle.c */
void ticket_due(struct settle *s, struct ticket *t, uint64_t due_ms);
void ticket_drop(struct settle *s, struct ticket *t);
void settle_arm(struct settle *s);
void settle_maybe_closed(struct settle *s);
/* How long a file that no event described must stand still. */
uint64_t settle_need_ms(const struct settle *s, enum lease lease);
/* Is a file of that time old enough by now? Never if it is from the future. */
bool settle_is_old(const struct file_id *id, uint64_t need_ms);
/* How long until then, at least a millisecond; NEED_MS if its time says nothing. */
uint64_t settle_rest_ms(struct settle *s, const struct file_id *id, uint64_t need_ms, uint64_t now);
/* The marker of PATH; false: none is asked for. */
bool settle_marker_path(const struct settle *s, const char *path, char *ret, size_t size);

/* settle_look.c */
void settle_look(struct settle *s);                                /* at what is due */
struct ticket *settle_next_due(struct settle *s, uint64_t now);    /* out of the heap, to be looked at; NULL: none */
void settle_answer(struct settle *s, const struct look_result *r); /* on the loop: what the look means */
void settle_looked(struct settle *s);                              /* all answers of a look have been given */

/* settle_probe.c */
void settle_probe(struct settle *s); /* settle_look() for files on another machine */

#endif
