/* clock.h -- the two clocks: one that only goes forward, and the one on the wall, which people and power cuts set. */
#ifndef CHUTE_CLOCK_H
#define CHUTE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

uint64_t clock_mono_ms(void);
int64_t clock_wall_ms(void); /* since 1970, UTC */
int64_t clock_wall_ns(void);
/* "2026-11-20T11:09:31.123Z" into RET (>= 25 bytes). */
void clock_format(int64_t wall_ms, char *ret, size_t size);
/* RFC 3339 or YYYY-MM-DD (UTC), or an age: "2h", "7d" before now. -1: not understood. */
int64_t clock_parse(const char *text);

#endif
