/*
 * arena.h -- memory that goes all at once.
 *
 * Strings and shapes of one job, or of one configuration, live in its arena. Not thread-safe.
 */
#ifndef CHUTE_ARENA_H
#define CHUTE_ARENA_H

#include <stddef.h>

struct arena_block;
struct arena {
    struct arena_block *blocks;
    size_t used; /* bytes handed out, for the memory tests */
};

void arena_init(struct arena *a);
void arena_done(struct arena *a);

/* Zeroed memory aligned for any type; NULL when out of memory. */
void *arena_alloc(struct arena *a, size_t size);
char *arena_strdup(struct arena *a, const char *s);
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
