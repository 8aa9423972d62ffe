/* cron.c -- see cron.h. Steps through real time, minute by minute in the hours that can match, and asks libc what each
 * is called in the zone: so there is no arithmetic of our own about clocks that are put forward and back. */
#include "cron.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define MINUTE 60
#define YEARS 9 /* 29 February may be eight years away */

struct field {
    const char *name;
    int min, max;
    const char *const *words; /* for MIN, MIN + 1 …; NULL: only numbers */
};
static const char *const month_words[] = {"jan", "feb", "mar", "apr", "may", "jun", "jul",
                                          "aug", "sep", "oct", "nov", "dec", NULL};
static const char *const day_words[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat", NULL};
static const struct field fields[5] = {{"minute", 0, 59, NULL},
                                       {"hour", 0, 23, NULL},
                                       {"day of the month", 1, 31, NULL},
                                       {"month", 1, 12, month_words},
                                       {"day of the week", 0, 7, day_words}};

/* ---- parsing ---- */

/* A number or a word at *AT, which moves on; -1: neither, or out of range. */
static int parse_value(const struct field *f, const char **at)
{
    int value = 0;
    if (isdigit((unsigned char)**at)) {
        for (; isdigit((unsigned char)**at); (*at)++)
            value = value > 1000 ? value : value * 10 + (**at - '0');
        return value >= f->min && value <= f->max ? value : -1;
    }
    for (int i = 0; f->words != NULL && f->words[i] != NULL; i++)
        if (strncasecmp(*at, f->words[i], 3) == 0) {
            *at += 3;
            return f->min + i;
        }
    return -1;
}

/* One item of a list: "*", "5", "1-5", each with "/2". */
static bool parse_item(const struct field *f, const char **at, uint64_t *bits)
{
    int from = f->min, to = f->max, step = 1;
    bool is_one = false;
    if (**at == '*') {
        (*at)++;
        to = f->words == day_words ? 6 : f->max;
    } else {
        from = parse_value(f, at);
        if (from < 0)
            return false;
        is_one = **at != '-';
        if (is_one)
            to = from;
        else
            (*at)++;
        if (!is_one && (to = parse_value(f, at)) < from)
            return false;
    }
    if (**at == '/') {
        (*at)++;
        for (step = 0; isdigit((unsigned char)**at); (*at)++)
            step = step > 1000 ? step : step * 10 + (**at - '0');
        if (step < 1 || step > f->max)
            return false;
        if (is_one) /* 5/15: from there on */
            to = f->max;
    }
    for (int v = from; v <= to; v += step)
        *bits |= UINT64_C(1) << v;
    return true;
}

static bool parse_field(const struct field *f, const char *text, size_t size, uint64_t *ret)
{
    const char *at = text;
    *ret = 0;
    do {
        if (at > text)
            at++;
        if (!parse_item(f, &at, ret))
            return false;
    } while (*at == ',' && at < text + size);
    return at == text + size;
}

enum err_code cron_parse(const char *text, struct cron *ret, struct err *err)
{
    uint64_t bits[5] = {0};
    bool any[5];
    const char *at = text + strspn(text, " \t");
    int count = 0;
    *ret = (struct cron){0};
    for (; *at != '\0' && count < 5; count++) {
        size_t size = strcspn(at, " \t");
        if (!parse_field(&fields[count], at, size, &bits[count]))
            return err_set(err, ERR_CONFIG, false,
                           "%s: expected numbers from %d to %d, ranges, lists, steps or *, "
                           "found '%.*s'",
                           fields[count].name, fields[count].min, fields[count].max, (int)(size < 60 ? size : 60), at);
        any[count] = *at == '*';
        at += size;
        at += strspn(at, " \t");
    }
    if (count < 5 || *at != '\0')
        return err_set(err, ERR_CONFIG, false,
                       "expected five fields (minute, hour, day of the month, month, day of the week), such as "
                       "\"0 3 * * *\", found %s",
                       count < 5 ? "fewer" : "more");
    if ((bits[4] & (1u << 7)) != 0)
        bits[4] |= 1;
    *ret = (struct cron){.minutes = bits[0],
                         .hours = (uint32_t)bits[1],
                         .days = (uint32_t)bits[2],
                         .months = (uint16_t)bits[3],
                         .weekdays = (uint8_t)(bits[4] & 0x7f),
                         .any_hour = any[1],
                         .any_day = any[2],
                         .any_weekday = any[4]};
    if (cron_next(ret, 0) < 0)
        return err_set(err, ERR_CONFIG, false, "no such day ever comes");
    return ERR_NONE;
}

/* ---- when ---- */

static bool day_matches(const struct cron *c, const struct tm *t)
{
    bool by_day = (c->days >> t->tm_mday & 1) != 0, by_weekday = (c->weekdays >> t->tm_wday & 1) != 0;
    return c->any_day || c->any_weekday ? by_day && by_weekday : by_day || by_weekday;
}

static bool matches(const struct cron *c, const struct tm *t)
{
    return (c->months >> (t->tm_mon + 1) & 1) != 0 && day_matches(c, t) && (c->hours >> t->tm_hour & 1) != 0 &&
           (c->minutes >> t->tm_min & 1) != 0;
}

/* Has the minute AT that is called NAME come before under that name, because clocks were put back in between? */
static bool is_second(time_t at, const struct tm *name)
{
    struct tm then;
    /* half an hour (Lord Howe) and an hour are all there is; three hours back covers what a decree may bring */
    for (time_t back = 30 * MINUTE; back <= 180 * MINUTE; back += 30 * MINUTE) {
        time_t before = at - back;
        if (localtime_r(&before, &then) != NULL && then.tm_hour == name->tm_hour && then.tm_min == name->tm_min &&
            then.tm_mday == name->tm_mday)
            return true;
    }
    return false;
}

/* Clocks jump forward just before AT, which is called NAME: is there a minute among those left out that matches? */
static bool matches_gap(const struct cron *c, time_t at, const struct tm *name)
{
    time_t before = at - MINUTE;
    struct tm t;
    if (localtime_r(&before, &t) == NULL)
        return false;
    long jump = name->tm_gmtoff - t.tm_gmtoff;
    for (long left_out = MINUTE; left_out <= jump; left_out += MINUTE) {
        /* the names that a clock which was not put forward would show */
        time_t shown = before + t.tm_gmtoff + left_out;
        struct tm skipped;
        if (gmtime_r(&shown, &skipped) != NULL && matches(c, &skipped))
            return true;
    }
    return false;
}

static bool is_due(const struct cron *c, time_t at, const struct tm *t)
{
    if (matches(c, t))
        return c->any_hour || !is_second(at, t);
    return !c->any_hour && matches_gap(c, at, t);
}

/* The first moment of the next day (NEXT_MONTH: of the next month) after AT, which is called NAME. */
static time_t next_day(time_t at, const struct tm *name, bool next_month)
{
    struct tm t = {.tm_year = name->tm_year,
                   .tm_mon = name->tm_mon + (next_month ? 1 : 0),
                   .tm_mday = next_month ? 1 : name->tm_mday + 1,
                   .tm_isdst = -1};
    time_t next = mktime(&t);
    /* Where midnight itself is left out libc may answer with a moment before the jump: go on from there. */
    return next > at ? next : at + 60 * MINUTE - name->tm_min * MINUTE;
}

int64_t cron_next(const struct cron *c, int64_t after_ms)
{
    time_t at = (time_t)(after_ms / 1000 / MINUTE * MINUTE + MINUTE);
    time_t end = at + (time_t)YEARS * 366 * 24 * 3600;
    struct tm t;
    while (at <= end && localtime_r(&at, &t) != NULL) {
        if (t.tm_sec != 0) { /* zones of old days are not whole minutes from Greenwich */
            at += MINUTE - t.tm_sec;
            continue;
        }
        if (is_due(c, at, &t))
            return (int64_t)at * 1000;
        if ((c->months >> (t.tm_mon + 1) & 1) == 0)
            at = next_day(at, &t, true);
        else if (!day_matches(c, &t))
            at = next_day(at, &t, false);
        else if ((c->hours >> t.tm_hour & 1) == 0)
            at += (60 - t.tm_min) * MINUTE;
        else
            at += MINUTE;
    }
    return -1;
}
