/* header.c -- say in words how a file's header differs from the columns of a table. See load.h. */
#include "load.h"

#include <stdio.h>
#include <string.h>

/* A bounded text that remembers where it was cut. */
struct words {
    char *text;
    size_t size, used;
};

static void add(struct words *w, const char *s)
{
    int more = snprintf(w->text + w->used, w->size - w->used, "%s", s);
    if (more < 0)
        return;
    w->used += (size_t)more;
    if (w->used < w->size)
        return;
    w->used = w->size - 1;
    if (w->size > 4)
        memcpy(w->text + w->size - 4, "...", 4);
}

static void item(struct words *w, const char *title, bool *is_first, const char *name, const char *to)
{
    if (*is_first && w->used > 0)
        add(w, "; ");
    add(w, *is_first ? title : ", ");
    *is_first = false;
    add(w, name);
    if (to != NULL) {
        add(w, " -> ");
        add(w, to);
    }
}

static size_t find(const char *name, const char *const *names, size_t count, bool (*same)(const char *, const char *))
{
    size_t i = 0;
    while (i < count && !same(name, names[i]))
        i++;
    return i;
}

/* One header against the other. A name that is new where an old one is gone, at the same place, was renamed. */
struct pair {
    const char *const *want;
    size_t want_count;
    const char *const *have;
    size_t have_count;
    bool (*same)(const char *, const char *);
};

static bool want_is_missing(const struct pair *p, size_t i)
{
    return find(p->want[i], p->have, p->have_count, p->same) == p->have_count;
}

static bool have_is_extra(const struct pair *p, size_t i)
{
    return find(p->have[i], p->want, p->want_count, p->same) == p->want_count;
}

static bool is_renamed(const struct pair *p, size_t i)
{
    return p->want_count == p->have_count && i < p->want_count && want_is_missing(p, i) && have_is_extra(p, i);
}

static unsigned say_reordered(const struct pair *p, struct words *w)
{
    bool is_first = true;
    size_t last = 0;
    unsigned bits = 0;
    for (size_t i = 0; i < p->have_count; i++) {
        size_t at = find(p->have[i], p->want, p->want_count, p->same);
        if (at == p->want_count)
            continue;
        if (at < last) {
            item(w, "reordered: ", &is_first, p->have[i], NULL);
            bits = HEADER_REORDERED;
        } else {
            last = at;
        }
    }
    return bits;
}

unsigned header_compare(const char *const *want, size_t want_count, const char *const *have, size_t have_count,
                        bool (*same)(const char *a, const char *b), char *ret_text, size_t size)
{
    const struct pair p = {want, want_count, have, have_count, same};
    struct words w = {ret_text, size, 0};
    unsigned bits = 0;
    bool is_first = true;
    if (size > 0)
        ret_text[0] = '\0';
    for (size_t i = 0; i < want_count && i < have_count && same(want[i], have[i]); i++)
        if (i + 1 == want_count && want_count == have_count)
            return 0; /* the usual case, without looking for every name in every other */
    for (size_t i = 0; i < want_count; i++)
        if (want_is_missing(&p, i) && !is_renamed(&p, i)) {
            item(&w, "missing: ", &is_first, want[i], NULL);
            bits |= HEADER_MISSING;
        }
    is_first = true;
    for (size_t i = 0; i < have_count; i++)
        if (have_is_extra(&p, i) && !is_renamed(&p, i)) {
            item(&w, "extra: ", &is_first, have[i], NULL);
            bits |= HEADER_EXTRA;
        }
    is_first = true;
    for (size_t i = 0; i < want_count; i++)
        if (is_renamed(&p, i)) {
            item(&w, "renamed: ", &is_first, want[i], have[i]);
            bits |= HEADER_RENAMED;
        }
    return bits | say_reordered(&p, &w);
}
