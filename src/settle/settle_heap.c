/* settle_heap.c -- the ticket that is due next is the first; of several the one of the oldest file. */
#include "settle_internal.h"

#include <stdlib.h>
#include <string.h>

bool heap_reserve(struct heap *h, size_t count)
{
    if (count <= h->room)
        return true;
    size_t room = h->room == 0 ? 64 : h->room * 2;
    struct ticket **items = realloc(h->items, room * sizeof *items);
    if (items == NULL)
        return false;
    h->items = items;
    h->room = room;
    return true;
}

static void place(struct heap *h, struct ticket *t, size_t at)
{
    h->items[at] = t;
    t->heap_at = at + 1;
}

/* Of what is due at the same time the older file is first: its news may go out alone, and who decides by what came
 * first would be told wrong. */
static bool is_before(const struct ticket *a, const struct ticket *b)
{
    if (a->due_ms != b->due_ms)
        return a->due_ms < b->due_ms;
    if (a->seen.mtime_ns != b->seen.mtime_ns)
        return a->seen.mtime_ns < b->seen.mtime_ns;
    return strcmp(a->path, b->path) < 0;
}

static void sift(struct heap *h, struct ticket *t, size_t at)
{
    while (at > 0 && is_before(t, h->items[(at - 1) / 2])) {
        place(h, h->items[(at - 1) / 2], at);
        at = (at - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < h->count && is_before(h->items[child + 1], h->items[child]))
            child++;
        if (child >= h->count || !is_before(h->items[child], t))
            break;
        place(h, h->items[child], at);
        at = child;
    }
    place(h, t, at);
}

void heap_put(struct heap *h, struct ticket *t)
{
    if (t->heap_at == 0)
        sift(h, t, h->count++);
    else
        sift(h, t, t->heap_at - 1);
}

void heap_remove(struct heap *h, struct ticket *t)
{
    if (t->heap_at == 0)
        return;
    size_t at = t->heap_at - 1;
    struct ticket *last = h->items[--h->count];
    t->heap_at = 0;
    if (last != t)
        sift(h, last, at);
}
