/* types.c -- values read without loss and without locale. See load_internal.h. */
#include "load_internal.h"

#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

const char *const column_type_names[] = {[TYPE_TEXT] = "text",           [TYPE_BIGINT] = "bigint",
                                         [TYPE_DOUBLE] = "double",       [TYPE_DECIMAL] = "decimal",
                                         [TYPE_BOOLEAN] = "boolean",     [TYPE_DATE] = "date",
                                         [TYPE_TIMESTAMP] = "timestamp", [TYPE_TIMESTAMPTZ] = "timestamptz",
                                         [TYPE_JSON] = "json",           NULL};

bool type_of_name(const char *name, enum column_type *ret)
{
    for (int i = 0; column_type_names[i] != NULL; i++)
        if (strcasecmp(column_type_names[i], name) == 0) {
            *ret = (enum column_type)i;
            return true;
        }
    return false;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

bool value_int64(const char *s, size_t n, int64_t *ret)
{
    size_t i = n > 0 && s[0] == '-' ? 1 : 0;
    bool is_negative = i == 1;
    size_t digits = n - i;
    if (digits == 0 || digits > 19)
        return false;
    if (s[i] == '0' && (digits > 1 || is_negative))
        return false; /* 007 and -0 would not come back as they were */
    uint64_t value = 0;
    for (; i < n; i++) {
        if (!is_digit(s[i]))
            return false;
        value = value * 10 + (uint64_t)(s[i] - '0'); /* 19 digits fit into 64 bits without sign */
    }
    if (value > (uint64_t)INT64_MAX + (is_negative ? 1 : 0))
        return false;
    *ret = is_negative ? (int64_t)(0 - value) : (int64_t)value;
    return true;
}

/* What a decimal is made of. */
struct decimal {
    uint64_t digits;    /* the significant ones, while there are at most 19 */
    size_t significant; /* how many, without zeros in front */
    size_t scale;       /* digits behind the point */
    bool is_negative;
};

static bool read_decimal(const char *s, size_t n, struct decimal *d)
{
    size_t i = n > 0 && s[0] == '-' ? 1 : 0;
    memset(d, 0, sizeof(*d));
    d->is_negative = i == 1;
    if (i == n || !is_digit(s[i]))
        return false;
    if (s[i] == '0' && i + 1 < n && s[i + 1] != '.')
        return false;
    bool has_point = false;
    for (; i < n; i++) {
        if (s[i] == '.' && !has_point && i + 1 < n) {
            has_point = true;
            continue;
        }
        if (!is_digit(s[i]))
            return false;
        if (has_point)
            d->scale++;
        if (d->significant == 0 && s[i] == '0')
            continue;
        d->significant++;
        if (d->significant <= 19)
            d->digits = d->digits * 10 + (uint64_t)(s[i] - '0');
    }
    return true;
}

bool value_decimal(const char *s, size_t n)
{
    struct decimal d;
    return read_decimal(s, n, &d);
}

static locale_t c_locale;
static void make_c_locale(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

/* Very small numbers: more digits behind the point than the exact way can take. */
static bool slow_double(const char *s, size_t n, double *ret)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char text[512];
    if (n >= sizeof(text))
        return false;
    memcpy(text, s, n);
    text[n] = '\0';
    pthread_once(&once, make_c_locale);
    *ret = c_locale != (locale_t)0 ? strtod_l(text, NULL, c_locale) : strtod(text, NULL);
    return true;
}

bool value_double(const char *s, size_t n, double *ret)
{
    static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                  1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    struct decimal d;
    if (!read_decimal(s, n, &d) || d.significant > 15)
        return false;
    if (d.scale >= sizeof(tens) / sizeof(tens[0]))
        return slow_double(s, n, ret);
    /* Both operands are exact doubles, so IEEE division rounds once: correctly (Clinger 1990). */
    double value = (double)d.digits / tens[d.scale];
    *ret = d.is_negative ? -value : value;
    return true;
}

/* Where the exponent starts, or N. */
static size_t find_exponent(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && s[i] != 'e' && s[i] != 'E')
        i++;
    return i;
}

bool value_real(const char *s, size_t n, double *ret)
{
    if (value_double(s, n, ret))
        return true;
    size_t e = find_exponent(s, n);
    size_t i = e + 1;
    if (!value_decimal(s, e))
        return false;
    if (e < n) {
        if (i < n && (s[i] == '+' || s[i] == '-'))
            i++;
        if (i == n)
            return false;
        for (; i < n; i++)
            if (!is_digit(s[i]))
                return false;
    }
    return slow_double(s, n, ret) && isfinite(*ret);
}

bool value_bool(const char *s, size_t n, bool *ret)
{
    if (n == 4 && strncasecmp(s, "true", 4) == 0)
        *ret = true;
    else if (n == 5 && strncasecmp(s, "false", 5) == 0)
        *ret = false;
    else
        return false;
    return true;
}

static bool two_digits(const char *s, int *ret)
{
    if (!is_digit(s[0]) || !is_digit(s[1]))
        return false;
    *ret = (s[0] - '0') * 10 + (s[1] - '0');
    return true;
}

static int days_in(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return month == 2 && is_leap ? 29 : days[month - 1];
}

/* Days from 1970-01-01 (civil calendar, March-based years). */
static int64_t days_since_1970(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t of_era = y - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static bool read_date(const char *s, size_t n, int64_t *ret_days)
{
    int century, year, month, day;
    if (n < 10 || !two_digits(s, &century) || !two_digits(s + 2, &year) || s[4] != '-' || !two_digits(s + 5, &month) ||
        s[7] != '-' || !two_digits(s + 8, &day))
        return false;
    year += century * 100;
    if (month < 1 || month > 12 || day < 1 || day > days_in(year, month))
        return false;
    *ret_days = days_since_1970(year, month, day);
    return true;
}

struct instant {
    int64_t seconds;
    uint32_t ns;
    bool has_time, has_zone;
};

/* "Z", "+HH", "+HH:MM" at S; nothing else may follow. */
static bool read_zone(const char *s, size_t n, struct instant *t)
{
    int hours = 0, minutes = 0;
    t->has_zone = true;
    if (n == 1 && s[0] == 'Z')
        return true;
    if ((s[0] != '+' && s[0] != '-') || (n != 3 && n != 6) || !two_digits(s + 1, &hours) || hours > 23)
        return false;
    if (n == 6 && (s[3] != ':' || !two_digits(s + 4, &minutes) || minutes > 59))
        return false;
    int64_t shift = hours * 3600 + minutes * 60;
    t->seconds += s[0] == '+' ? -shift : shift;
    return true;
}

static bool read_instant(const char *s, size_t n, struct instant *t)
{
    int hour, minute, second = 0;
    int64_t days;
    memset(t, 0, sizeof(*t));
    if (!read_date(s, n, &days))
        return false;
    t->seconds = days * 86400;
    if (n == 10)
        return true;
    t->has_time = true;
    if (n < 16 || (s[10] != ' ' && s[10] != 'T') || !two_digits(s + 11, &hour) || s[13] != ':' ||
        !two_digits(s + 14, &minute) || hour > 23 || minute > 59)
        return false;
    size_t i = 16;
    if (i < n && s[i] == ':') {
        if (n < 19 || !two_digits(s + 17, &second) || second > 60)
            return false;
        i = 19;
        if (i < n && s[i] == '.') {
            uint32_t unit = 100000000;
            size_t from = ++i;
            for (; i < n && is_digit(s[i]); i++, unit /= 10)
                t->ns += (uint32_t)(s[i] - '0') * unit;
            if (i == from)
                return false;
        }
    }
    t->seconds += hour * 3600 + minute * 60 + second;
    return i == n || read_zone(s + i, n - i, t);
}

bool value_date(const char *s, size_t n)
{
    int64_t days;
    return n == 10 && read_date(s, n, &days);
}

bool value_timestamp(const char *s, size_t n, bool has_zone)
{
    struct instant t;
    return read_instant(s, n, &t) && t.has_time && t.has_zone == has_zone;
}

bool value_instant(const char *s, size_t n, int64_t *ret_seconds, uint32_t *ret_ns)
{
    struct instant t;
    if (!read_instant(s, n, &t))
        return false;
    *ret_seconds = t.seconds;
    *ret_ns = t.ns;
    return true;
}

bool value_is(enum column_type type, const char *s, size_t n)
{
    int64_t i;
    double d;
    bool b;
    switch (type) {
    case TYPE_TEXT:
    case TYPE_JSON: /* whoever says so has read it */
        return true;
    case TYPE_BIGINT:
        return value_int64(s, n, &i);
    case TYPE_DOUBLE:
        return value_real(s, n, &d);
    case TYPE_DECIMAL:
        return value_decimal(s, n);
    case TYPE_BOOLEAN:
        return value_bool(s, n, &b);
    case TYPE_DATE:
        return value_date(s, n);
    case TYPE_TIMESTAMP:
        return value_timestamp(s, n, false);
    case TYPE_TIMESTAMPTZ:
        return value_timestamp(s, n, true);
    }
    return false;
}
