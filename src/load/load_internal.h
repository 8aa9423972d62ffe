/*
 * load_internal.h -- what the drivers of this room share: names made legal, values read without loss.
 *
 * Pure functions; any thread.
 */
#ifndef CHUTE_LOAD_INTERNAL_H
#define CHUTE_LOAD_INTERNAL_H

#include "load.h"

#include "arena.h"

/* ---- ascii.c ---- */

/* Valid UTF-8 S as ASCII into RET, cut at SIZE: accents removed, letters of other scripts dropped. Returns the length
 * it wants, as snprintf does. */
size_t name_ascii(const char *s, char *ret, size_t size);

/* ---- names.c ---- */

/*
 * How Keboola Storage cleans names: ASCII, every run of other characters than letters, digits and '_' one '_', none at
 * either end. Into RET, cut at SIZE; returns the length it wants. 0: nothing is left.
 */
size_t name_webalize(const char *s, char *ret, size_t size);

/* Equal without case, ASCII only: how SQLite compares names. */
bool name_same_nocase(const char *a, const char *b);

/*
 * NAME under POLICY, into RET (size bytes): keep leaves it as it is, snake gives lower-case words joined by '_'.
 * ERR_INPUT: empty, not UTF-8, or too long. WHAT ("table", "column") is for the message.
 */
enum err_code name_legal(const char *what, const char *name, enum names_policy policy, char *ret, size_t size,
                         struct err *err);

/*
 * COUNT column names under POLICY, made unique under SAME by `.1`, `.2` … (snake: `_1`), into RET_NAMES; memory from
 * ARENA. A name that is blank under POLICY becomes column_<position>.
 */
enum err_code names_columns(const struct shape *shape, enum names_policy policy,
                            bool (*same)(const char *, const char *), struct arena *arena, const char ***ret_names,
                            struct err *err);

/* WANTED, or WANTED.1, .2 … if one of NAMES is the SAME already. NULL: out of memory. */
const char *names_free_one(const char *wanted, const char *const *names, size_t count,
                           bool (*same)(const char *, const char *), struct arena *arena);

/* ---- types.c ---- */

bool type_of_name(const char *name, enum column_type *ret);

/* Each: can these bytes be read as that, without loss (but for value_real)? The grammar is that of enum kind. */
bool value_int64(const char *s, size_t n, int64_t *ret);
/* [-]digits[.digits] of at most 15 significant digits, rounded correctly. */
bool value_double(const char *s, size_t n, double *ret);
/* Any number of digits, an exponent too: what a column is given that somebody declared as double. */
bool value_real(const char *s, size_t n, double *ret);
bool value_decimal(const char *s, size_t n);
bool value_bool(const char *s, size_t n, bool *ret);
bool value_date(const char *s, size_t n);
/* HAS_ZONE: with Z or an offset, or without. */
bool value_timestamp(const char *s, size_t n, bool has_zone);
/* A date or timestamp as seconds since 1970 (no zone: as if UTC) and nanoseconds. */
bool value_instant(const char *s, size_t n, int64_t *ret_seconds, uint32_t *ret_ns);
/* Does the value satisfy TYPE, as declared in `types`? TEXT takes everything. */
bool value_is(enum column_type type, const char *s, size_t n);

#endif
