/*
 * kind.c -- which kinds of value a column can still have.
 *
 * kind_of() is the rule. The surely_*() functions are quick tests that answer only "yes, this value takes nothing
 * away"; whatever they do not know goes to the rule, so they can't change a result.
 */
#include "inspect_internal.h"

#define DOUBLE_DIGITS 15 /* every decimal of so many digits survives a double and back */

static inline bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int two(const char *s)
{
    return is_digit(s[0]) && is_digit(s[1]) ? (s[0] - '0') * 10 + (s[1] - '0') : -1;
}

/* [-]digits[.digits] */
static unsigned number_kinds(const char *s, size_t n)
{
    const char *end = s + n, *p = s;
    bool is_negative = *p == '-';
    p += is_negative;
    const char *whole = p;
    while (p < end && is_digit(*p))
        p++;
    size_t whole_digits = (size_t)(p - whole);
    if (whole_digits == 0 || (whole_digits > 1 && *whole == '0'))
        return 0;
    unsigned kinds = KIND_DECIMAL;
    size_t digits = *whole == '0' ? 0 : whole_digits;
    if (p == end) {
        static const char max[] = "9223372036854775807", min[] = "9223372036854775808";
        bool fits = whole_digits < 19 || (whole_digits == 19 && memcmp(whole, is_negative ? min : max, 19) <= 0);
        if (fits && !(is_negative && *whole == '0'))
            kinds |= KIND_INT;
    } else {
        if (*p++ != '.' || p == end)
            return 0;
        for (; p < end; p++) {
            if (!is_digit(*p))
                return 0;
            digits += digits > 0 || *p != '0';
        }
    }
    return digits <= DOUBLE_DIGITS ? kinds | KIND_DOUBLE : kinds;
}

static bool is_date(const char *s)
{
    static const int8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int century = two(s), rest = two(s + 2), month = two(s + 5), day = two(s + 8);
    if (century < 0 || rest < 0 || s[4] != '-' || s[7] != '-' || month < 1 || month > 12 || day < 1)
        return false;
    int year = century * 100 + rest;
    if (year == 0)
        return false; /* no such year outside astronomy; PostgreSQL refuses it */
    bool is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return day <= days[month - 1] + (is_leap && month == 2);
}

/* What may follow HH:MM: [:SS[.fraction]] and a zone; at most six digits of fraction, microseconds are what databases
 * keep. */
static unsigned time_kinds(const char *s, const char *end)
{
    if (end - s >= 3 && *s == ':') {
        int second = two(s + 1);
        if (second < 0 || second > 59)
            return 0;
        s += 3;
        if (s < end && *s == '.') {
            const char *fraction = ++s;
            while (s < end && is_digit(*s))
                s++;
            if (s == fraction || s - fraction > 6)
                return 0;
        }
    }
    if (s == end)
        return KIND_TIMESTAMP;
    if (*s == 'Z')
        return s + 1 == end ? KIND_TIMESTAMPTZ : 0;
    if ((*s != '+' && *s != '-') || (end - s != 3 && end - s != 6))
        return 0;
    int hours = two(s + 1), minutes = end - s == 6 ? two(s + 4) : 0;
    if (hours < 0 || hours > 15 || minutes < 0 || minutes > 59 || (end - s == 6 && s[3] != ':'))
        return 0;
    return KIND_TIMESTAMPTZ;
}

unsigned kind_of(const char *s, size_t n)
{
    if (is_digit(*s) && n >= 10 && s[4] == '-') {
        if (!is_date(s))
            return 0;
        if (n == 10)
            return KIND_DATE;
        if (n < 16 || (s[10] != ' ' && s[10] != 'T') || s[13] != ':')
            return 0;
        int hour = two(s + 11), minute = two(s + 14);
        return hour >= 0 && hour <= 23 && minute >= 0 && minute <= 59 ? time_kinds(s + 16, s + n) : 0;
    }
    if (is_digit(*s) || *s == '-')
        return number_kinds(s, n);
    if ((n == 4 && strncasecmp(s, "true", 4) == 0) || (n == 5 && strncasecmp(s, "false", 5) == 0))
        return KIND_BOOL;
    return 0;
}

/* ---- the quick tests: N bytes at S, and PAD_BYTES readable behind them */

#define ONES 0x0101010101010101u
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAVE_QUICK 1

static inline uint64_t word(const char *s)
{
    uint64_t w;
    memcpy(&w, s, sizeof w);
    return w;
}

static inline bool all_digits(uint64_t w)
{
    return ((w & (0xF0 * ONES)) | (((w + 0x06 * ONES) & (0xF0 * ONES)) >> 4)) == 0x33 * ONES;
}

/* The first N (1..8) bytes of W, '0' for the others. */
static inline uint64_t first_bytes(uint64_t w, size_t n)
{
    uint64_t keep = ~(uint64_t)0 >> (64 - 8 * n);
    return (w & keep) | (0x30 * ONES & ~keep);
}

/* An integer of at most 15 digits, no sign. */
static inline bool surely_int(const char *s, size_t n)
{
    if (*s == '0')
        return n == 1;
    if (n <= 8)
        return all_digits(first_bytes(word(s), n));
    return n <= DOUBLE_DIGITS && all_digits(word(s)) && all_digits(first_bytes(word(s + 8), n - 8));
}

/* digits[.digits], 2 to 8 bytes, the first digit not 0. */
static inline bool surely_decimal(const char *s, size_t n)
{
    if (n > 8 || *s == '0')
        return false;
    uint64_t w = first_bytes(word(s), n);
    uint64_t points = w ^ (0x2E * ONES);
    points = ~(((points & (0x7F * ONES)) + 0x7F * ONES) | points | (0x7F * ONES)); /* 0x80 where a byte was '.' */
    if (points == 0)
        return all_digits(w);
    unsigned at = (unsigned)__builtin_ctzll(points) / 8;
    w ^= (uint64_t)(0x2E ^ 0x30) << (8 * at);
    return at > 0 && at + 1 < n && all_digits(w);
}

/* A date with a day that every month has. */
static inline bool surely_date(const char *s, size_t n)
{
    if (n != 10)
        return false;
    uint64_t w = word(s), dashes = w ^ 0x2D00002D00000000u;
    if ((dashes & 0xFF0000FF00000000u) != 0)
        return false;
    w = (w & ~0xFF0000FF00000000u) | 0x3000003000000000u;
    if (!all_digits(w) || !is_digit(s[8]) || !is_digit(s[9]))
        return false;
    unsigned month = (unsigned)(s[5] - '0') * 10 + (unsigned)(s[6] - '0');
    unsigned day = (unsigned)(s[8] - '0') * 10 + (unsigned)(s[9] - '0');
    return month - 1 < 12 && day - 1 < 28 && (w & 0xFFFFFFFFu) != 0x30303030u;
}

/* YYYY-MM-DD[ T]HH:MM:SS and nothing more. */
static inline bool surely_timestamp(const char *s, size_t n)
{
    if (n != 19 || !surely_date(s, 10) || (s[10] != ' ' && s[10] != 'T'))
        return false;
    uint64_t w = word(s + 11);
    if ((w & 0x0000FF0000FF0000u) != 0x00003A00003A0000u)
        return false;
    w = (w & ~0x0000FF0000FF0000u) | 0x0000300000300000u;
    return all_digits(w) && (s[11] < '2' || (s[11] == '2' && s[12] < '4')) && s[14] < '6' && s[17] < '6';
}

/* The same with Z. */
static inline bool surely_timestamptz(const char *s, size_t n)
{
    return n == 20 && s[19] == 'Z' && surely_timestamp(s, 19);
}

static inline bool surely_bool(const char *s, size_t n)
{
    uint64_t w = word(s) | 0x20 * ONES;
    return n == 4 ? (uint32_t)w == 0x65757274u : n == 5 && (w & 0xFFFFFFFFFFu) == 0x65736C6166u;
}
#else
#define HAVE_QUICK 0
#endif

struct cells {
    const char *const *value;
    const uint32_t *length;
    size_t count, stride;
};

/*
 * The next cell from ROW on that TEST does not vouch for. Sets *SEEN when a value was met. Always inlined, so that each
 * kind of column gets a loop of its own.
 */
static inline __attribute__((always_inline)) size_t skip_by(const struct cells *c, size_t row, bool *seen,
                                                            bool (*test)(const char *s, size_t n))
{
    const char *const *value = c->value + row * c->stride;
    const uint32_t *length = c->length + row * c->stride;
    for (; row < c->count; row++, value += c->stride, length += c->stride) {
        if (*length == 0)
            continue; /* NULL, or a quoted empty field, which a typed column takes as NULL */
        *seen = true;
        if (!test(*value, *length))
            return row;
    }
    return row;
}

static inline bool never_sure(const char *s, size_t n)
{
    (void)s;
    (void)n;
    return false;
}

static size_t skip_sure(const struct cells *c, size_t row, unsigned kinds, bool *seen)
{
#if HAVE_QUICK
    switch (kinds) {
    case KIND_INT | KIND_DECIMAL | KIND_DOUBLE:
        return skip_by(c, row, seen, surely_int);
    case KIND_DECIMAL | KIND_DOUBLE:
    case KIND_DECIMAL:
        return skip_by(c, row, seen, surely_decimal);
    case KIND_BOOL:
        return skip_by(c, row, seen, surely_bool);
    case KIND_DATE:
        return skip_by(c, row, seen, surely_date);
    case KIND_TIMESTAMP:
        return skip_by(c, row, seen, surely_timestamp);
    case KIND_TIMESTAMPTZ:
        return skip_by(c, row, seen, surely_timestamptz);
    }
#endif
    return skip_by(c, row, seen, never_sure);
}

void kind_narrow(unsigned *kinds, bool *has_value, const char *const *value, const uint32_t *length, size_t rows,
                 size_t stride)
{
    const struct cells cells = {value, length, rows, stride};
    if (*kinds == 0 && *has_value)
        return;
    for (size_t row = skip_sure(&cells, 0, *kinds, has_value); row < rows;
         row = skip_sure(&cells, row + 1, *kinds, has_value)) {
        *kinds &= kind_of(value[row * stride], length[row * stride]);
        if (*kinds == 0)
            return;
    }
}
