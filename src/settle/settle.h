/*
 * settle.h -- decide when a file is whole.
 *
 * Why: we often see a name while its writer still has the file open, and half a file parses as a shorter one.
 * Nothing later in the house checks again, except for a change during the load.
 *
 * Evidence, not age: after a seen close (or a rename into place) nothing may follow for `debounce`; where no close
 * was seen, size and mtime stand still for `settle` and nobody holds the file open for writing, as far as that can be
 * known. A modification without a close means an open writer: wait, however long.
 *
 * Memory: one small ticket per path that waits, at most `max_tickets`; beyond that settle_note() says so and the caller
 * scans again later (events are hints).
 */
#ifndef CHUTE_SETTLE_H
#define CHUTE_SETTLE_H

#include "err.h"
#include "found.h"
#include "source.h"

#include <uv.h>

struct settle;

struct settle_options {
    uint64_t debounce_ms;     /* after a seen close; trailing edge */
    uint64_t settle_ms;       /* where no close was seen */
    const char *ready_marker; /* template with {name}: the file is whole when that one exists beside it; "" off */
    size_t max_tickets;       /* 0: 4096 */
    /*
     * The files are on another machine (source_ops.probe): looked at by a second listing, and whole when that says the
     * same as the first. Nobody can tell there who writes. NULL: by OPEN_NOW.
     */
    enum err_code (*probe)(void *state, struct probe *probes, size_t count, probe_cb *cb, void *arg, struct err *err);
};

/* How the root lets us know writers. */
struct settle_health {
    const char *evidence; /* "close" no unseen file met yet, "writers" leases work here, "age" they don't */
    size_t waiting;
};

/*
 * A path is whole (ERR NULL, FOUND->id filled by a fresh stat) or gone, not a regular file, or a link that leads out of
 * the root (ERR_INPUT). ERR_STOPPED: it was forgotten because too many wait for their markers; its marker brings it
 * back. On the loop thread, on a later turn. A file that can't be opened (permissions) goes on waiting.
 */
typedef void settle_cb(void *arg, const struct found *found, const struct err *err);

/*
 * OPEN_NOW opens a path below the root for reading without following links out (source_ops.open_now); called on pool
 * threads. OPTIONS is copied (READY_MARKER too). OPEN_NOW may be NULL where OPTIONS has a probe.
 */
enum err_code settle_open(uv_loop_t *loop, const struct settle_options *options,
                          int (*open_now)(void *state, const char *path, struct err *err), void *state, settle_cb *cb,
                          void *arg, struct settle **ret_settle, struct err *err);

/*
 * Something was seen at FOUND->path; begins or restarts its wait. FOUND is borrowed. FOUND_SCANNED with an mtime older
 * than settle (and not in the future) is checked for writers at once. FOUND_GONE forgets the path. FOUND_RENAMED moves
 * a wait from FROM. Marker files themselves: call with their path too; the file they stand for becomes ready. Returns
 * ERR_SYSTEM retryable when there is no room: the caller must scan again when settle_health().waiting has fallen.
 */
enum err_code settle_note(struct settle *s, const struct found *found, struct err *err);

/* Is a wait for PATH on? Then what is the text for `explain` ("its writer still has it open since 12:00:01"); NULL: no.
 */
const char *settle_explain(struct settle *s, const char *path, char *ret, size_t size);
/* Is PATH a marker of another file, not a file to load? Any thread. */
bool settle_is_marker(const struct settle *s, const char *path);
/*
 * Events were lost (overflow, a watch that failed): a close that is waited for may never be told. Those waits go on by
 * standing still, as for files that no event described. Call it from source_sink.on_overflow.
 */
void settle_lost_events(struct settle *s);
/* The source polls: an mtime's age counts for nothing (another machine's clock), two looks a settle apart must agree.
 */
void settle_set_polled(struct settle *s, bool is_polled);
void settle_health(const struct settle *s, struct settle_health *ret_health);
/* Has every wait been looked at, and answered if it was over, that was due at DUE_MS (clock_mono_ms())? */
bool settle_has_looked(const struct settle *s, uint64_t due_ms);
/* Call LOOKED with the ARG of settle_open() after each turn of looks, on the loop: settle_has_looked() may have
 * changed. */
void settle_on_looked(struct settle *s, void (*looked)(void *arg));
/* Every path that waits, and since when (wall clock). PATH is borrowed; CB returns false to stop and must not call back
 * in here. */
typedef bool settle_waiting_cb(void *arg, const char *path, int64_t since_ms);
void settle_each(const struct settle *s, settle_waiting_cb *cb, void *arg);
/* New times after a reload; waits already on keep theirs. Another marker needs another settle (and source). */
void settle_reconfigure(struct settle *s, const struct settle_options *options);

/* No callback comes after this; CLOSED comes once. */
void settle_close(struct settle *s, void (*closed)(void *arg), void *arg);

#endif
