/*
 * settle.c -- tickets: what was seen of a path, and when to look at it.
 *
 * Every wait ends in a look at the file itself (settle_look.c); a ticket only says when. Stronger evidence is never
 * replaced by weaker: a scan that meets a file whose writer is known to be open changes nothing.
 */
#include "settle_internal.h"

#include "clock.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARKER_NAME "{name}"

/* ---- markers */

/* The parts of the marker's name around {name}; false: no marker. */
static bool marker_parts(const struct settle *s, size_t *ret_before, const char **ret_after)
{
    const char *hole = strstr(s->marker, MARKER_NAME);
    if (hole == NULL)
        return false;
    *ret_before = (size_t)(hole - s->marker);
    *ret_after = hole + strlen(MARKER_NAME);
    return true;
}

static const char *last_segment(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

bool settle_marker_path(const struct settle *s, const char *path, char *ret, size_t size)
{
    size_t before;
    const char *after;
    if (!marker_parts(s, &before, &after))
        return false;
    const char *name = last_segment(path);
    int n = snprintf(ret, size, "%.*s%.*s%s%s", (int)(name - path), path, (int)before, s->marker, name, after);
    return n > 0 && (size_t)n < size;
}

/* The path that the marker PATH stands for. */
static bool marked_path(const struct settle *s, const char *path, char *ret, size_t size)
{
    size_t before;
    const char *after;
    if (!marker_parts(s, &before, &after))
        return false;
    const char *name = last_segment(path);
    size_t n = strlen(name), after_size = strlen(after);
    if (n <= before + after_size || strncmp(name, s->marker, before) != 0 || strcmp(name + n - after_size, after) != 0)
        return false;
    int written =
        snprintf(ret, size, "%.*s%.*s", (int)(name - path), path, (int)(n - before - after_size), name + before);
    return written > 0 && (size_t)written < size;
}

bool settle_is_marker(const struct settle *s, const char *path)
{
    char of[PATH_MAX];
    return marked_path(s, path, of, sizeof of);
}

/* ---- times */

uint64_t settle_need_ms(const struct settle *s, enum lease lease)
{
    if (lease == LEASE_UNKNOWN)
        lease = s->leases;
    bool is_blind = lease == LEASE_CANNOT && s->options.settle_ms < SETTLE_BLIND_MS && s->options.probe == NULL;
    return is_blind ? SETTLE_BLIND_MS : s->options.settle_ms;
}

bool settle_is_old(const struct file_id *id, uint64_t need_ms)
{
    int64_t age_ns;
    /* A time from the future says nothing (a clock was moved, or is wrong elsewhere): standing still has to do. */
    if (__builtin_sub_overflow(clock_wall_ns(), id->mtime_ns, &age_ns) || age_ns < 0)
        return false;
    return (uint64_t)age_ns / 1000000 >= need_ms;
}

/*
 * When a file of this time is old enough, by the clock that timers go by. All files by the same pair of clocks, so that
 * they are due in the order of their times: who decides by what came first must not see two of them swapped.
 */
static uint64_t old_at(struct settle *s, int64_t mtime_ns, uint64_t need, uint64_t now)
{
    int64_t wall_ns = clock_wall_ns(), passed_ms = (int64_t)(now - s->base_mono_ms);
    int64_t drift_ms = (wall_ns - s->base_wall_ns) / 1000000 - passed_ms;
    if (s->base_mono_ms == 0 || drift_ms > BASE_DRIFT_MS || drift_ms < -BASE_DRIFT_MS) {
        s->base_wall_ns = wall_ns;
        s->base_mono_ms = now;
    }
    int64_t after_ns = mtime_ns - s->base_wall_ns;
    int64_t after_ms = after_ns / 1000000 - (after_ns % 1000000 < 0);
    /* Both clocks were cut to whole milliseconds: one that is due is really old enough. */
    int64_t due = (int64_t)s->base_mono_ms + after_ms + (int64_t)need + 2;
    return due > (int64_t)now ? (uint64_t)due : now;
}

static uint64_t unseen_due(struct settle *s, const struct ticket *t, uint64_t now)
{
    uint64_t need = settle_need_ms(s, LEASE_UNKNOWN);
    if (s->is_polled) /* another machine's clock made that time: only two looks count */
        return now + need;
    if (settle_is_old(&t->seen, need))
        return now;
    int64_t age_ns;
    if (__builtin_sub_overflow(clock_wall_ns(), t->seen.mtime_ns, &age_ns) || age_ns < 0)
        return now + need;
    return old_at(s, t->seen.mtime_ns, need, now);
}

uint64_t settle_rest_ms(struct settle *s, const struct file_id *id, uint64_t need_ms, uint64_t now)
{
    int64_t age_ns;
    if (__builtin_sub_overflow(clock_wall_ns(), id->mtime_ns, &age_ns) || age_ns < 0)
        return need_ms;
    uint64_t due = old_at(s, id->mtime_ns, need_ms, now);
    return due > now ? due - now : 1;
}

/* ---- tickets */

static void on_timer(uv_timer_t *timer)
{
    settle_look(timer->data);
}

void settle_arm(struct settle *s)
{
    if (s->is_closing)
        return;
    if (s->is_looking || s->heap.count == 0) {
        uv_timer_stop(&s->timer);
        return;
    }
    uint64_t now = clock_mono_ms(), due = s->heap.items[0]->due_ms;
    uv_update_time(s->loop); /* the timer counts from the loop's time, which may be a long turn old */
    uv_timer_start(&s->timer, on_timer, due > now ? due - now : 0, 0);
}

void ticket_due(struct settle *s, struct ticket *t, uint64_t due_ms)
{
    t->due_ms = due_ms;
    if (due_ms == NEVER || t->is_looked_at)
        heap_remove(&s->heap, t);
    else
        heap_put(&s->heap, t);
}

void ticket_drop(struct settle *s, struct ticket *t)
{
    heap_remove(&s->heap, t);
    HASH_DEL(s->tickets, t);
    s->count--;
    t->is_dropped = true;
    if (!t->is_looked_at)
        free(t);
}

static struct ticket *find(const struct settle *s, const char *path)
{
    struct ticket *t = NULL;
    HASH_FIND_STR(s->tickets, path, t);
    return t;
}

static struct ticket *make(struct settle *s, const char *path, struct err *err)
{
    if (s->count >= s->options.max_tickets) {
        err_set(err, ERR_SYSTEM, true, "%zu files wait to become whole already; the others are found by a later scan",
                s->count);
        return NULL;
    }
    size_t n = strlen(path);
    struct ticket *t = heap_reserve(&s->heap, s->count + 1) ? calloc(1, sizeof *t + n + 1) : NULL;
    if (t == NULL) {
        err_nomem(err);
        return NULL;
    }
    memcpy(t->path, path, n + 1);
    t->since_ms = clock_wall_ms();
    t->due_ms = NEVER;
    HASH_ADD_KEYPTR(hh, s->tickets, t->path, n, t);
    if (t->hh.tbl == NULL) {
        free(t);
        err_nomem(err);
        return NULL;
    }
    s->count++;
    return t;
}

static void see(struct ticket *t, const struct file_id *id, uint64_t now)
{
    t->seen = *id;
    t->seen_ms = now;
    t->tries = 0;
    t->why = WHY_QUIET;
    t->is_changed = t->is_looked_at;
    t->is_from_marker = false;
}

static void note_scanned(struct settle *s, struct ticket *t, const struct found *found, bool is_new, uint64_t now)
{
    s->is_unseen_met = true;
    bool is_same = !is_new && t->seen.size == found->id.size && t->seen.mtime_ns == found->id.mtime_ns &&
                   t->seen.inode == found->id.inode;
    if (!is_new && t->kind == TICKET_WRITING && s->leases != LEASE_FREE)
        return; /* its writer has it open, a look at it from outside proves nothing else */
    if (!is_new && t->kind == TICKET_CLOSED) {
        if (!is_same) {
            see(t, &found->id, now);
            ticket_due(s, t, now + s->options.debounce_ms);
        }
        return;
    }
    if (is_same && t->kind == TICKET_UNSEEN)
        return; /* the wait goes on: seen again as it was */
    t->kind = TICKET_UNSEEN;
    see(t, &found->id, now);
    ticket_due(s, t, is_new ? unseen_due(s, t, now) : now + settle_need_ms(s, LEASE_UNKNOWN));
}

static void note_marker(struct settle *s, struct ticket *t, bool is_new, uint64_t now)
{
    if (is_new) {
        t->kind = TICKET_UNSEEN;
        t->seen_ms = now;
        t->is_from_marker = true;
    }
    if (t->kind == TICKET_WRITING)
        return; /* the marker came too early: the close still decides */
    t->is_changed = t->is_looked_at;
    t->tries = 0;
    ticket_due(s, t, now);
}

static bool is_below(const char *path, const char *folder)
{
    size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && path[n] == '/';
}

static void drop_below(struct settle *s, const char *folder)
{
    struct ticket *t, *next;
    HASH_ITER(hh, s->tickets, t, next) {
        if (is_below(t->path, folder))
            ticket_drop(s, t);
    }
}

/* Carry a wait to another name. False: no room for it. */
static bool carry(struct settle *s, struct ticket *t, const char *path, struct err *err)
{
    struct ticket *there = find(s, path);
    if (there == t)
        return true;
    if (there != NULL)
        ticket_drop(s, there);
    struct ticket copy = *t;
    ticket_drop(s, t); /* first: its place is the one that is needed */
    struct ticket *moved = make(s, path, err);
    if (moved == NULL)
        return false;
    moved->kind = copy.kind;
    moved->seen = copy.seen;
    moved->seen_ms = copy.seen_ms;
    moved->since_ms = copy.since_ms;
    moved->why = copy.why;
    /* What was being looked at is looked at anew under its new name. */
    ticket_due(s, moved,
               copy.is_looked_at && copy.due_ms == NEVER && copy.kind != TICKET_WRITING ? clock_mono_ms()
                                                                                        : copy.due_ms);
    return true;
}

static enum err_code rename_below(struct settle *s, const char *from, const char *to, struct err *err)
{
    struct ticket *t, *next;
    bool is_all = true;
    HASH_ITER(hh, s->tickets, t, next) {
        char path[PATH_MAX];
        if (!is_below(t->path, from))
            continue;
        int n = snprintf(path, sizeof path, "%s%s", to, t->path + strlen(from));
        if (n < 0 || (size_t)n >= sizeof path)
            continue;
        struct ticket *there = find(s, path);
        if (there != NULL && there == next)
            next = there->hh.next;
        is_all = carry(s, t, path, err) && is_all;
    }
    return is_all ? ERR_NONE : err->code;
}

static enum err_code note_one(struct settle *s, const struct found *found, const char *path, bool is_marker,
                              struct err *err)
{
    uint64_t now = clock_mono_ms();
    struct ticket *t = find(s, path);
    bool is_new = t == NULL;
    if (is_new && (t = make(s, path, err)) == NULL)
        return err->code;
    if (is_marker) {
        note_marker(s, t, is_new, now);
    } else if (found->how == FOUND_SCANNED) {
        note_scanned(s, t, found, is_new || t->is_from_marker, now);
    } else {
        t->kind = found->how == FOUND_WRITING ? TICKET_WRITING : TICKET_CLOSED;
        see(t, &found->id, now);
        ticket_due(s, t, t->kind == TICKET_WRITING ? NEVER : now + s->options.debounce_ms);
    }
    settle_arm(s);
    return ERR_NONE;
}

static enum err_code note_renamed(struct settle *s, const struct found *found, struct err *err)
{
    struct ticket *t = found->from != NULL ? find(s, found->from) : NULL;
    if (t == NULL)
        return note_one(s, found, found->path, false, err);
    bool is_writing = t->kind == TICKET_WRITING;
    ticket_drop(s, t);
    /* Renamed while its writer has it open: the close will be told under the new name. */
    struct found as = *found;
    as.how = is_writing ? FOUND_WRITING : FOUND_RENAMED;
    return note_one(s, &as, found->path, false, err);
}

enum err_code settle_note(struct settle *s, const struct found *found, struct err *err)
{
    char of[PATH_MAX];
    struct ticket *t;
    if (s->is_closing)
        return err_set(err, ERR_STOPPED, false, "settle is closing");
    switch (found->how) {
    case FOUND_FOLDER:
        return ERR_NONE;
    case FOUND_FOLDER_GONE:
        drop_below(s, found->path);
        return ERR_NONE;
    case FOUND_FOLDER_RENAMED: {
        enum err_code code = rename_below(s, found->from, found->path, err);
        settle_arm(s);
        return code;
    }
    case FOUND_GONE:
        t = find(s, found->path);
        if (t != NULL)
            ticket_drop(s, t);
        return ERR_NONE;
    case FOUND_RENAMED:
    case FOUND_SCANNED:
    case FOUND_CLOSED:
    case FOUND_WRITING:
        break;
    }
    if (marked_path(s, found->path, of, sizeof of))
        return found->how == FOUND_WRITING ? ERR_NONE : note_one(s, found, of, true, err);
    return found->how == FOUND_RENAMED ? note_renamed(s, found, err) : note_one(s, found, found->path, false, err);
}

void settle_lost_events(struct settle *s)
{
    struct ticket *t, *next;
    uint64_t now = clock_mono_ms();
    HASH_ITER(hh, s->tickets, t, next) {
        if (t->kind != TICKET_WRITING)
            continue;
        t->kind = TICKET_UNSEEN;
        t->seen_ms = now;
        s->is_unseen_met = true;
        ticket_due(s, t, now + settle_need_ms(s, LEASE_UNKNOWN));
    }
    settle_arm(s);
}

void settle_set_polled(struct settle *s, bool is_polled)
{
    if (is_polled && !s->is_polled)
        settle_lost_events(s);
    s->is_polled = is_polled || s->options.probe != NULL;
}

/* ---- for people */

const char *settle_explain(struct settle *s, const char *path, char *ret, size_t size)
{
    const struct ticket *t = find(s, path);
    if (t == NULL)
        return NULL;
    char since[32], marker[PATH_MAX] = "";
    clock_format(t->since_ms, since, sizeof since);
    settle_marker_path(s, path, marker, sizeof marker);
    if (t->kind == TICKET_WRITING || t->why == WHY_WRITER)
        snprintf(ret, size, "its writer still has it open since %s; it is taken when it is closed", since);
    else if (t->why == WHY_MARKER)
        snprintf(ret, size, "it waits for its marker %s since %s", marker, since);
    else if (t->why == WHY_OPEN)
        snprintf(ret, size, "it can't be opened since %s (permissions?); it is tried again", since);
    else if (t->kind == TICKET_CLOSED)
        snprintf(ret, size, "it was closed or renamed into place at %s and must stay quiet for %llu ms", since,
                 (unsigned long long)s->options.debounce_ms);
    else
        snprintf(ret, size, "nobody saw it being closed; since %s it must stand still for %llu ms", since,
                 (unsigned long long)settle_need_ms(s, LEASE_UNKNOWN));
    return ret;
}

void settle_each(const struct settle *s, settle_waiting_cb *cb, void *arg)
{
    for (const struct ticket *t = s->tickets; t != NULL; t = t->hh.next)
        if (!t->is_dropped && !cb(arg, t->path, t->since_ms))
            return;
}

void settle_health(const struct settle *s, struct settle_health *ret)
{
    ret->evidence = s->leases == LEASE_CANNOT ? "age" : s->is_unseen_met ? "writers" : "close";
    ret->waiting = s->count;
}

bool settle_has_looked(const struct settle *s, uint64_t due_ms)
{
    return !(s->is_looking && s->look.first_due_ms <= due_ms) &&
           !(s->heap.count > 0 && s->heap.items[0]->due_ms <= due_ms);
}

void settle_on_looked(struct settle *s, void (*looked)(void *arg))
{
    s->looked = looked;
}

/* ---- open and close */

enum err_code settle_open(uv_loop_t *loop, const struct settle_options *options,
                          int (*open_now)(void *state, const char *path, struct err *err), void *state, settle_cb *cb,
                          void *arg, struct settle **ret_settle, struct err *err)
{
    struct settle *s = calloc(1, sizeof *s);
    char *marker = strdup(options->ready_marker != NULL ? options->ready_marker : "");
    if (s == NULL || marker == NULL) {
        free(s);
        free(marker);
        return err_nomem(err);
    }
    s->options = *options;
    s->options.ready_marker = NULL; /* not ours */
    s->marker = marker;
    if (s->options.max_tickets == 0)
        s->options.max_tickets = 4096;
    if (marker[0] != '\0' && (strstr(marker, MARKER_NAME) == NULL || strcmp(marker, MARKER_NAME) == 0)) {
        err_set(err, ERR_CONFIG, false, "ready_marker: expected a name with {name} in it, like {name}.done, found %s",
                marker);
        free(marker);
        free(s);
        return err->code;
    }
    s->loop = loop;
    s->open_now = open_now;
    s->state = state;
    s->cb = cb;
    s->arg = arg;
    s->look.settle = s;
    s->is_polled = options->probe != NULL;
    uv_timer_init(loop, &s->timer);
    s->timer.data = s;
    /* Somebody opens a file for writing in the microseconds of our lease: the kernel tells us by a signal that kills.
     */
    struct sigaction now;
    if (sigaction(SIGIO, NULL, &now) == 0 && now.sa_handler == SIG_DFL)
        signal(SIGIO, SIG_IGN);
    *ret_settle = s;
    return ERR_NONE;
}

void settle_reconfigure(struct settle *s, const struct settle_options *options)
{
    s->options.debounce_ms = options->debounce_ms;
    s->options.settle_ms = options->settle_ms;
    if (options->max_tickets != 0)
        s->options.max_tickets = options->max_tickets;
}

void settle_maybe_closed(struct settle *s)
{
    if (!s->is_timer_closed || s->is_looking)
        return;
    void (*closed)(void *) = s->closed;
    void *arg = s->closed_arg;
    struct ticket *t, *next;
    HASH_ITER(hh, s->tickets, t, next)
        ticket_drop(s, t);
    free(s->heap.items);
    free(s->marker);
    free(s);
    closed(arg);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct settle *s = handle->data;
    s->is_timer_closed = true;
    settle_maybe_closed(s);
}

void settle_close(struct settle *s, void (*closed)(void *arg), void *arg)
{
    s->is_closing = true;
    s->closed = closed;
    s->closed_arg = arg;
    uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}
