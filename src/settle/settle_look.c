/*
 * settle_look.c -- look at the files that are due, and say what that means.
 *
 * One batch at a time on the pool. What was noted about a ticket while it was looked at wins over what the look saw.
 */
#include "settle_internal.h"

#include "clock.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define RETRY_FIRST_MS 1000
#define RETRY_MAX_MS 60000

/* Where leases are refused whoever writes (and a refusal would look like a writer for ever). */
static bool has_no_leases(int fd)
{
    static const uint32_t magics[] = {0x6969, 0xff534d42, 0xfe534d42, 0x517b, 0x65735546, 0x01021997, 0x00c36400};
    struct statfs fs;
    if (fstatfs(fd, &fs) != 0)
        return true;
    for (size_t i = 0; i < sizeof magics / sizeof magics[0]; i++)
        if ((uint32_t)fs.f_type == magics[i])
            return true;
    return false;
}

/* A read lease is only given on a file that nobody has open for writing. Given back at once: it would hold up writers.
 */
static enum lease try_lease(int fd)
{
    if (fcntl(fd, F_SETLEASE, F_RDLCK) == 0) {
        fcntl(fd, F_SETLEASE, F_UNLCK);
        return LEASE_FREE;
    }
    return (errno == EAGAIN || errno == EBUSY) && !has_no_leases(fd) ? LEASE_WRITER : LEASE_CANNOT;
}

static bool stat_fd(int fd, struct file_id *ret)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return false;
    ret->size = (uint64_t)st.st_size;
    ret->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    ret->ctime_ns = (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec;
    ret->inode = st.st_ino;
    ret->dev = st.st_dev;
    return true;
}

static void look_at_marker(struct settle *s, struct look_result *r, const char *marker)
{
    struct file_id id;
    int fd = s->open_now(s->state, marker, NULL);
    if (fd < 0)
        return;
    if (stat_fd(fd, &id)) {
        r->has_marker = true;
        r->marker_mtime_ns = id.mtime_ns;
    }
    close(fd);
}

static void look_at(struct settle *s, struct look_result *r)
{
    char marker[PATH_MAX];
    r->err.code = ERR_NONE;
    r->lease = LEASE_CANNOT;
    r->has_marker = false;
    int fd = s->open_now(s->state, r->ticket->path, &r->err);
    if (fd < 0)
        return;
    /* The lease first: what is written between the two calls shows in the second. */
    r->lease = try_lease(fd);
    if (!stat_fd(fd, &r->id))
        err_set(&r->err, ERR_SYSTEM, true, "look at %s: %s", r->ticket->path, strerror(errno));
    close(fd);
    if (r->err.code == ERR_NONE && settle_marker_path(s, r->ticket->path, marker, sizeof marker))
        look_at_marker(s, r, marker);
}

static void run_look(struct work *work)
{
    struct look *look = (struct look *)work;
    for (size_t i = 0; i < look->count; i++)
        look_at(look->settle, &look->results[i]);
}

/* ---- on the loop thread */

/* This part of all tickets may wait for markers; more are forgotten. */
#define MARKER_SHARE 4

static void try_later(struct settle *s, struct ticket *t, enum ticket_why why, uint64_t now)
{
    /* Events end these waits as a rule; looking again is for those that no event can tell (another name of the file).
     */
    uint64_t wait_ms = t->tries < 6 ? (uint64_t)RETRY_FIRST_MS << t->tries : RETRY_MAX_MS;
    t->tries++;
    t->why = why;
    ticket_due(s, t, now + (wait_ms < RETRY_MAX_MS ? wait_ms : RETRY_MAX_MS));
}

static bool is_as_seen(const struct ticket *t, const struct file_id *id)
{
    if (t->kind == TICKET_CLOSED && t->seen.inode == 0)
        return true; /* the event could not tell what it was */
    return t->seen.size == id->size && t->seen.mtime_ns == id->mtime_ns && t->seen.inode == id->inode;
}

static uint64_t still_to_wait(struct settle *s, const struct ticket *t, const struct look_result *r, uint64_t now)
{
    if (t->kind == TICKET_CLOSED)
        return 0;
    uint64_t need = settle_need_ms(s, r->lease);
    if (!s->is_polled && settle_is_old(&r->id, need))
        return 0;
    uint64_t waited = now - t->seen_ms, by_age = s->is_polled ? need : settle_rest_ms(s, &r->id, need, now);
    if (waited >= need)
        return 0;
    return by_age < need - waited ? by_age : need - waited;
}

/* True: it is whole. Else the ticket has been told what to wait for. */
static bool is_whole(struct settle *s, struct ticket *t, const struct look_result *r, uint64_t now)
{
    char marker[PATH_MAX];
    bool needs_marker = settle_marker_path(s, t->path, marker, sizeof marker);
    if (r->lease == LEASE_FREE || r->lease == LEASE_CANNOT)
        s->leases = r->lease;
    if (r->lease == LEASE_WRITER) {
        t->seen = r->id;
        t->seen_ms = now;
        try_later(s, t, WHY_WRITER, now);
        return false;
    }
    if (needs_marker && !r->has_marker) {
        t->why = WHY_MARKER;
        t->seen = r->id;
        t->seen_ms = now;
        ticket_due(s, t, NEVER);
        return false;
    }
    /* A marker that is older than the file belongs to the version before. */
    if (needs_marker && r->marker_mtime_ns >= r->id.mtime_ns)
        return true;
    if (!is_as_seen(t, &r->id)) {
        t->seen = r->id;
        t->seen_ms = now;
        t->why = WHY_QUIET;
        ticket_due(s, t, now + (t->kind == TICKET_CLOSED ? s->options.debounce_ms : settle_need_ms(s, r->lease)));
        return false;
    }
    uint64_t rest = still_to_wait(s, t, r, now);
    t->why = WHY_QUIET;
    if (rest > 0)
        ticket_due(s, t, now + rest);
    return rest == 0;
}

/* Thousands that wait for their markers must not keep others out: the marker brings its file back by itself. */
static void forget(struct settle *s, struct ticket *t)
{
    struct found found = {.path = t->path, .how = FOUND_SCANNED, .id = t->seen};
    struct err err;
    err_set(&err, ERR_STOPPED, true, "it waits for its marker, and is looked at again when that appears");
    t->is_looked_at = true; /* the ticket's path lives until the callback is back */
    ticket_drop(s, t);
    s->cb(s->arg, &found, &err);
    free(t);
}

void settle_answer(struct settle *s, const struct look_result *r)
{
    struct ticket *t = r->ticket;
    uint64_t now = clock_mono_ms();
    t->is_looked_at = false;
    if (t->is_dropped) {
        free(t);
        return;
    }
    if (t->is_changed) {
        t->is_changed = false;
        ticket_due(s, t, t->due_ms);
        return;
    }
    bool is_gone = r->err.code == ERR_INPUT;
    if (r->err.code != ERR_NONE && !is_gone) {
        if (t->why != WHY_OPEN) { /* once: it may stay like that for years */
            struct log_about about = {.file = t->path};
            log_write(LOG_WARN, &about, "can't be looked at: %s; tried again until it can", r->err.text);
        }
        try_later(s, t, WHY_OPEN, now);
        return;
    }
    if (!is_gone && !is_whole(s, t, r, now)) {
        if (t->why == WHY_MARKER && s->count > s->options.max_tickets / MARKER_SHARE)
            forget(s, t);
        return;
    }
    struct found found = {.path = t->path, .how = t->kind == TICKET_CLOSED ? FOUND_CLOSED : FOUND_SCANNED};
    bool is_silent = is_gone && t->is_from_marker; /* a marker without its file */
    t->is_looked_at = true;                        /* the ticket's path lives until the callback is back */
    ticket_drop(s, t);
    if (!is_gone)
        found.id = r->id;
    else
        found.how = FOUND_GONE;
    if (!is_silent)
        s->cb(s->arg, &found, is_gone ? &r->err : NULL);
    free(t);
}

void settle_looked(struct settle *s)
{
    s->is_looking = false;
    if (s->is_closing) {
        settle_maybe_closed(s);
        return;
    }
    settle_arm(s);
    if (s->looked != NULL)
        s->looked(s->arg);
}

static void done_look(struct work *work)
{
    struct look *look = (struct look *)work;
    struct settle *s = look->settle;
    for (size_t i = 0; i < look->count; i++) {
        struct ticket *t = look->results[i].ticket;
        if (!s->is_closing) {
            settle_answer(s, &look->results[i]);
        } else {
            t->is_looked_at = false;
            if (t->is_dropped)
                free(t);
        }
    }
    settle_looked(s);
}

struct ticket *settle_next_due(struct settle *s, uint64_t now)
{
    struct ticket *t = s->heap.count > 0 ? s->heap.items[0] : NULL;
    if (t == NULL || t->due_ms > now)
        return NULL;
    heap_remove(&s->heap, t);
    t->is_looked_at = true;
    t->is_changed = false;
    t->due_ms = NEVER;
    return t;
}

void settle_look(struct settle *s)
{
    struct look *look = &s->look;
    struct ticket *t;
    uint64_t now = clock_mono_ms();
    if (s->is_looking || s->is_closing)
        return;
    look->first_due_ms = s->heap.count > 0 ? s->heap.items[0]->due_ms : NEVER;
    if (s->options.probe != NULL) {
        settle_probe(s);
        return;
    }
    look->count = 0;
    while (look->count < LOOKS && (t = settle_next_due(s, now)) != NULL)
        look->results[look->count++].ticket = t;
    struct err err;
    if (look->count > 0 && work_start(s->loop, &look->work, run_look, done_look, &err) != ERR_NONE) {
        for (size_t i = 0; i < look->count; i++) {
            look->results[i].ticket->is_looked_at = false;
            ticket_due(s, look->results[i].ticket, now + RETRY_FIRST_MS);
        }
        look->count = 0;
    }
    s->is_looking = look->count > 0;
    settle_arm(s);
}
