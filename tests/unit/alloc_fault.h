/*
 * alloc_fault.h -- the n-th allocation fails.
 *
 * For a test's one source file. In tests/unit/meson.build the test gets a third item, alloc_fault_args, which sends
 * all allocations of our own code (not those inside shared libraries) through here:
 *
 *   ALLOC_FAULT_SWEEP { result = thing_under_test(); if (alloc_fault_hit()) assert_that_it_failed_cleanly(result); }
 *
 * runs its body with the 1st, 2nd, 3rd ... allocation failing, until one run needs fewer. Leave it by its end only.
 */
#ifndef CHUTE_TEST_ALLOC_FAULT_H
#define CHUTE_TEST_ALLOC_FAULT_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Left until one fails; 0: none will. */
static _Atomic long alloc_fault_left;
static _Atomic bool alloc_fault_was_hit;

static inline void alloc_fault_set(long nth)
{
    alloc_fault_was_hit = false;
    alloc_fault_left = nth;
}
static inline bool alloc_fault_hit(void)
{
    return alloc_fault_was_hit;
}
/* For the sweep: go on while the last run was hit. Ends with faults switched off. */
static inline bool alloc_fault_next(long *nth)
{
    if (*nth > 0 && !alloc_fault_was_hit) {
        alloc_fault_set(0);
        return false;
    }
    alloc_fault_set(++*nth);
    return true;
}
#define ALLOC_FAULT_SWEEP for (long alloc_fault_nth = 0; alloc_fault_next(&alloc_fault_nth);)

static inline bool alloc_fault_now(void)
{
    if (alloc_fault_left <= 0 || atomic_fetch_sub(&alloc_fault_left, 1) != 1)
        return false;
    alloc_fault_was_hit = true;
    errno = ENOMEM;
    return true;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);

void *__wrap_malloc(size_t size)
{
    return alloc_fault_now() ? NULL : __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size)
{
    return alloc_fault_now() ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *p, size_t size)
{
    return alloc_fault_now() ? NULL : __real_realloc(p, size);
}
char *__wrap_strdup(const char *s)
{
    return alloc_fault_now() ? NULL : __real_strdup(s);
}
char *__wrap_strndup(const char *s, size_t n)
{
    return alloc_fault_now() ? NULL : __real_strndup(s, n);
}

#endif
