/*
 * settle_probe.c -- look at files on another machine: by asking the source, which lists their folders once more.
 *
 * All that is due goes in one question, with the markers that are waited for: a listing tells of a whole folder. What
 * the server says twice, `settle` apart, is taken for whole; nobody can tell there who has a file open.
 */
#include "settle_internal.h"

#include "arena.h"
#include "clock.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_MS 1000

struct question {
    struct settle *settle;
    struct arena arena; /* the paths: a ticket may be renamed meanwhile */
    size_t count;       /* tickets */
    struct ticket *tickets[PROBES];
    size_t marker_at[PROBES]; /* of each: its marker's place in PROBES + 1; 0: it has none */
    size_t probe_count;
    struct probe probes[2 * PROBES]; /* the tickets' first */
};

static void question_free(struct question *q)
{
    arena_done(&q->arena);
    free(q);
}

static void answer_one(struct question *q, size_t i)
{
    const struct probe *p = &q->probes[i];
    struct look_result r = {.ticket = q->tickets[i], .id = p->id, .lease = LEASE_CANNOT};
    switch (p->answer) {
    case PROBE_PRESENT:
        break;
    case PROBE_GONE:
        err_set(&r.err, ERR_INPUT, false, "it is not there any more");
        break;
    case PROBE_UNKNOWN:
        err_set(&r.err, ERR_REMOTE, true, "its folder can't be listed");
        break;
    }
    if (q->marker_at[i] > 0) {
        const struct probe *marker = &q->probes[q->marker_at[i] - 1];
        r.has_marker = marker->answer == PROBE_PRESENT;
        r.marker_mtime_ns = marker->id.mtime_ns;
    }
    settle_answer(q->settle, &r);
}

static void drop_one(struct ticket *t)
{
    t->is_looked_at = false;
    if (t->is_dropped)
        free(t);
}

static void on_probed(void *arg, struct probe *probes, size_t count)
{
    struct question *q = arg;
    struct settle *s = q->settle;
    (void)probes;
    (void)count;
    for (size_t i = 0; i < q->count; i++) {
        if (s->is_closing)
            drop_one(q->tickets[i]);
        else
            answer_one(q, i);
    }
    question_free(q);
    settle_looked(s);
}

/* False: no memory. */
static bool ask_for(struct question *q, struct ticket *t)
{
    char marker[PATH_MAX];
    const char *path = arena_strdup(&q->arena, t->path), *marker_path = NULL;
    bool has_marker = settle_marker_path(q->settle, t->path, marker, sizeof marker);
    if (has_marker)
        marker_path = arena_strdup(&q->arena, marker);
    if (path == NULL || (has_marker && marker_path == NULL))
        return false;
    q->probes[q->count] = (struct probe){.path = path};
    if (has_marker) {
        q->probes[PROBES + q->count] = (struct probe){.path = marker_path};
        q->marker_at[q->count] = 1;
    }
    q->tickets[q->count++] = t;
    return true;
}

/* The markers come behind the tickets, without a gap. */
static void close_up(struct question *q)
{
    q->probe_count = q->count;
    for (size_t i = 0; i < q->count; i++) {
        if (q->marker_at[i] == 0)
            continue;
        q->probes[q->probe_count] = q->probes[PROBES + i];
        q->marker_at[i] = ++q->probe_count;
    }
}

static void try_again(struct question *q, struct ticket *refused)
{
    struct settle *s = q->settle;
    uint64_t now = clock_mono_ms();
    for (size_t i = 0; i < q->count; i++) {
        q->tickets[i]->is_looked_at = false;
        ticket_due(s, q->tickets[i], now + RETRY_MS);
    }
    if (refused != NULL) {
        refused->is_looked_at = false;
        ticket_due(s, refused, now + RETRY_MS);
    }
    question_free(q);
    settle_arm(s);
}

void settle_probe(struct settle *s)
{
    uint64_t now = clock_mono_ms();
    struct question *q = s->heap.count > 0 && s->heap.items[0]->due_ms <= now ? calloc(1, sizeof *q) : NULL;
    struct ticket *t = NULL;
    struct err err = {0};
    if (q == NULL) {
        /* nothing is due yet; or no memory: then the timer comes back */
        uint64_t due = s->heap.count > 0 ? s->heap.items[0]->due_ms : NEVER;
        if (due <= now)
            ticket_due(s, s->heap.items[0], now + RETRY_MS);
        settle_arm(s);
        return;
    }
    arena_init(&q->arena);
    q->settle = s;
    while (q->count < PROBES && (t = settle_next_due(s, now)) != NULL)
        if (!ask_for(q, t))
            break;
    close_up(q);
    bool is_short = t != NULL && (q->count == 0 || q->tickets[q->count - 1] != t);
    if (is_short || s->options.probe(s->state, q->probes, q->probe_count, on_probed, q, &err) != ERR_NONE) {
        try_again(q, is_short ? t : NULL);
        return;
    }
    s->is_looking = true;
    settle_arm(s);
}
