/* text.c -- numbers with units, distances between words, hex. */
#include "text.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct unit {
    const char *name;
    uint64_t factor;
};

/* Digits and a unit, nothing else: "1.5h" or "5 s" are refused rather than guessed. */
static bool parse_unit(const char *s, const struct unit *units, uint64_t *ret)
{
    uint64_t value = 0;
    if (!isdigit((unsigned char)*s))
        return false;
    for (; isdigit((unsigned char)*s); s++) {
        uint64_t digit = (uint64_t)(*s - '0');
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, digit, &value))
            return false;
    }
    if (*s == '\0' && value == 0) { /* nothing is nothing in every unit */
        *ret = 0;
        return true;
    }
    for (const struct unit *u = units; u->name != NULL; u++) {
        if (strcmp(s, u->name) == 0)
            return !__builtin_mul_overflow(value, u->factor, ret);
    }
    return false;
}

bool text_parse_duration(const char *s, uint64_t *ret_ms)
{
    static const struct unit units[] = {{"ms", 1},      {"s", 1000},     {"m", 60000},
                                        {"h", 3600000}, {"d", 86400000}, {NULL, 0}};
    uint64_t ms;
    if (!parse_unit(s, units, &ms) || ms > INT64_MAX)
        return false;
    *ret_ms = ms;
    return true;
}

bool text_parse_size(const char *s, uint64_t *ret_bytes)
{
    static const struct unit units[] = {{"", 1},
                                        {"B", 1},
                                        {"KiB", UINT64_C(1) << 10},
                                        {"MiB", UINT64_C(1) << 20},
                                        {"GiB", UINT64_C(1) << 30},
                                        {"TiB", UINT64_C(1) << 40},
                                        {NULL, 0}};
    uint64_t bytes;
    if (!parse_unit(s, units, &bytes) || bytes > INT64_MAX)
        return false;
    *ret_bytes = bytes;
    return true;
}

void text_format_duration(uint64_t ms, char *ret, size_t size)
{
    uint64_t s = ms / 1000;
    if (ms < 1000)
        snprintf(ret, size, "%" PRIu64 " ms", ms);
    else if (ms < 10000)
        snprintf(ret, size, "%" PRIu64 ".%" PRIu64 " s", s, ms % 1000 / 100);
    else if (s < 120)
        snprintf(ret, size, "%" PRIu64 " s", s);
    else if (s < 120 * 60)
        snprintf(ret, size, "%" PRIu64 " min", s / 60);
    else if (s < 48 * 3600)
        snprintf(ret, size, "%" PRIu64 " h", s / 3600);
    else
        snprintf(ret, size, "%" PRIu64 " d", s / 86400);
}

void text_format_size(uint64_t bytes, char *ret, size_t size)
{
    static const char *const names[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        snprintf(ret, size, "%" PRIu64 " B", bytes);
        return;
    }
    unsigned unit = 0;
    while (unit < 5 && bytes >> (10 * (unit + 2)) != 0)
        unit++;
    uint64_t whole = bytes >> (10 * (unit + 1));
    uint64_t tenth = ((bytes >> (10 * unit)) & 1023) * 10 / 1024;
    snprintf(ret, size, "%" PRIu64 ".%" PRIu64 " %s", whole, tenth, names[unit]);
}

#define WORD_MAX 64

static int min3(int a, int b, int c)
{
    int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Insertions, deletions, replacements and swaps of neighbours, without case. Both words fit WORD_MAX. */
static int distance(const char *a, size_t na, const char *b, size_t nb)
{
    int rows[3][WORD_MAX + 1];
    int *before = rows[0], *last = rows[1], *now = rows[2];
    for (size_t j = 0; j <= nb; j++)
        last[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        now[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int ca = tolower((unsigned char)a[i - 1]), cb = tolower((unsigned char)b[j - 1]);
            now[j] = min3(last[j] + 1, now[j - 1] + 1, last[j - 1] + (ca != cb));
            if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) && cb == tolower((unsigned char)a[i - 2]) &&
                before[j - 2] + 1 < now[j])
                now[j] = before[j - 2] + 1;
        }
        int *oldest = before;
        before = last;
        last = now;
        now = oldest;
    }
    return last[nb];
}

const char *text_nearest(const char *word, const char *const *choices)
{
    size_t n = strlen(word);
    if (n == 0 || n > WORD_MAX)
        return NULL;
    int limit = n < 2 ? 0 : n < 5 ? 1 : n < 9 ? 2 : 3;
    const char *nearest = NULL;
    for (; *choices != NULL; choices++) {
        size_t m = strlen(*choices);
        if (m > WORD_MAX)
            continue;
        int d = distance(word, n, *choices, m);
        if (d <= limit) {
            nearest = *choices;
            limit = d - 1; /* only a nearer one replaces it */
        }
        if (d == 0)
            break;
    }
    return nearest;
}

void text_hex(const uint8_t *bytes, size_t n, char *ret)
{
    static const char hex[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        ret[2 * i] = hex[bytes[i] >> 4];
        ret[2 * i + 1] = hex[bytes[i] & 15];
    }
    ret[2 * n] = '\0';
}

static int nibble(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool text_unhex(const char *hex, uint8_t *ret, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int high = nibble(hex[2 * i]);
        int low = high < 0 ? -1 : nibble(hex[2 * i + 1]);
        if (low < 0)
            return false;
        ret[i] = (uint8_t)(high << 4 | low);
    }
    return hex[2 * n] == '\0';
}
