/* clock.c -- reading the clocks, and times as people write them. */
#include "clock.h"
#include "text.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

uint64_t clock_mono_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

int64_t clock_wall_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t clock_wall_ms(void)
{
    return clock_wall_ns() / 1000000;
}

void clock_format(int64_t wall_ms, char *ret, size_t size)
{
    int64_t s = wall_ms / 1000;
    int ms = (int)(wall_ms % 1000);
    if (ms < 0) { /* before 1970 the remainder counts backwards */
        ms += 1000;
        s--;
    }
    time_t t = (time_t)s;
    struct tm tm;
    if (gmtime_r(&t, &tm) == NULL)
        memset(&tm, 0, sizeof tm);
    snprintf(ret, size, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour,
             tm.tm_min, tm.tm_sec, ms);
}

/* COUNT digits at *S into *RET; moves *S. */
static bool digits(const char **s, int count, int *ret)
{
    int value = 0;
    for (int i = 0; i < count; i++) {
        char c = (*s)[i];
        if (c < '0' || c > '9')
            return false;
        value = value * 10 + (c - '0');
    }
    *s += count;
    *ret = value;
    return true;
}

static bool literal(const char **s, char c)
{
    if (**s != c)
        return false;
    ++*s;
    return true;
}

/* ".123456" -> 123; moves *S past all digits. */
static bool fraction(const char **s, int *ret_ms)
{
    *ret_ms = 0;
    if (**s != '.' && **s != ',')
        return true;
    ++*s;
    if (!isdigit((unsigned char)**s))
        return false;
    for (int weight = 100; isdigit((unsigned char)**s); weight /= 10)
        *ret_ms += (*(*s)++ - '0') * weight;
    return true;
}

/* "Z", "+02:00" -> minutes east of Greenwich. */
static bool zone(const char **s, int *ret_minutes)
{
    *ret_minutes = 0;
    if (literal(s, 'Z') || literal(s, 'z'))
        return true;
    int sign = **s == '-' ? -1 : 1;
    int hours, minutes;
    if (!literal(s, '+') && !literal(s, '-'))
        return false;
    if (!digits(s, 2, &hours) || !literal(s, ':') || !digits(s, 2, &minutes) || hours > 23 || minutes > 59)
        return false;
    *ret_minutes = sign * (hours * 60 + minutes);
    return true;
}

static int64_t parse_date_time(const char *s)
{
    struct tm tm = {0};
    int year, month, ms = 0, minutes = 0;
    if (!digits(&s, 4, &year) || !literal(&s, '-') || !digits(&s, 2, &month) || !literal(&s, '-') ||
        !digits(&s, 2, &tm.tm_mday))
        return -1;
    tm.tm_year = year - 1900;
    tm.tm_mon = month - 1;
    int day = tm.tm_mday;
    if (*s != '\0') {
        if (!literal(&s, 'T') && !literal(&s, 't') && !literal(&s, ' '))
            return -1;
        if (!digits(&s, 2, &tm.tm_hour) || !literal(&s, ':') || !digits(&s, 2, &tm.tm_min) || !literal(&s, ':') ||
            !digits(&s, 2, &tm.tm_sec) || tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60)
            return -1;
        if (!fraction(&s, &ms) || !zone(&s, &minutes) || *s != '\0')
            return -1;
    }
    if (month < 1 || month > 12 || day < 1 || day > 31)
        return -1;
    int second = tm.tm_sec; /* timegm() carries a leap second, and the 30th of February, over: */
    tm.tm_sec = 0;
    time_t t = timegm(&tm);
    if (tm.tm_mday != day)
        return -1;
    int64_t wall_ms = ((int64_t)t + second - (int64_t)minutes * 60) * 1000 + ms;
    return wall_ms < 0 ? -1 : wall_ms;
}

int64_t clock_parse(const char *text)
{
    uint64_t age_ms;
    if (!text_parse_duration(text, &age_ms))
        return parse_date_time(text);
    int64_t now = clock_wall_ms();
    return age_ms > (uint64_t)now ? 0 : now - (int64_t)age_ms;
}
