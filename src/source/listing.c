/* listing.c -- lines of a listing into entries: MLSD, `ls -l`, DIR. */
#include "listing.h"

#include "text.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define SECOND_NS INT64_C(1000000000)

/* ---- time ---- */

/* Days since 1970 of a day in the Gregorian calendar. */
static int64_t days_of(int64_t year, int month, int day)
{
    int64_t y = year - (month <= 2), era = (y >= 0 ? y : y - 399) / 400;
    int64_t of_era = y - era * 400, of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int64_t year_of(int64_t seconds)
{
    int64_t year = 1970 + seconds / 31556952; /* the mean year: one off at most */
    while (days_of(year, 1, 1) * 86400 > seconds)
        year--;
    while (days_of(year + 1, 1, 1) * 86400 <= seconds)
        year++;
    return year;
}

static bool is_date(int month, int day, int hour, int minute, int second)
{
    return month >= 1 && month <= 12 && day >= 1 && day <= 31 && hour >= 0 && hour <= 23 && minute >= 0 &&
           minute <= 59 && second >= 0 && second <= 60;
}

static void set_time(struct listing_entry *e, int64_t seconds, int64_t ns)
{
    e->has_time = true;
    e->mtime_ns = seconds * SECOND_NS + ns;
}

static int64_t seconds_of(int64_t year, int month, int day, int hour, int minute, int second)
{
    return days_of(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
}

/* ---- small pieces ---- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* 1 to MOST digits; moves *P behind them. */
static bool number(const char **p, size_t most, uint64_t *ret)
{
    size_t n = 0;
    *ret = 0;
    while (n < most && is_digit((*p)[n])) {
        if (__builtin_mul_overflow(*ret, (uint64_t)10, ret) ||
            __builtin_add_overflow(*ret, (uint64_t)((*p)[n] - '0'), ret))
            return false;
        n++;
    }
    *p += n;
    return n > 0;
}

static bool small_number(const char **p, size_t most, int *ret)
{
    uint64_t n;
    if (!number(p, most, &n))
        return false;
    *ret = (int)n;
    return true;
}

static bool take(const char **p, char c)
{
    if (**p != c)
        return false;
    (*p)++;
    return true;
}

static bool blanks(const char **p)
{
    size_t n = strspn(*p, " \t");
    *p += n;
    return n > 0;
}

/* A word of the line; false: there is none. */
static bool word(const char **p, const char **ret, size_t *ret_size)
{
    *ret = *p;
    *ret_size = strcspn(*p, " \t");
    *p += *ret_size;
    return *ret_size > 0;
}

/* ---- MLSD: "type=file;size=12;modify=20261127103000.5; name" ---- */

static bool fact_is(const char *fact, size_t n, const char *name, const char **ret_value, size_t *ret_size)
{
    size_t m = strlen(name);
    if (n < m || strncasecmp(fact, name, m) != 0)
        return false;
    *ret_value = fact + m;
    *ret_size = n - m;
    return true;
}

static bool value_is(const char *value, size_t n, const char *text)
{
    return n == strlen(text) && strncasecmp(value, text, n) == 0;
}

/* YYYYMMDDHHMMSS and a fraction. */
static void read_modify(struct listing_entry *e, const char *value, size_t n)
{
    int d[14];
    for (size_t i = 0; i < 14; i++) {
        if (i >= n || !is_digit(value[i]))
            return;
        d[i] = value[i] - '0';
    }
    int64_t year = d[0] * 1000 + d[1] * 100 + d[2] * 10 + d[3], ns = 0, unit = SECOND_NS / 10;
    int month = d[4] * 10 + d[5], day = d[6] * 10 + d[7];
    int hour = d[8] * 10 + d[9], minute = d[10] * 10 + d[11], second = d[12] * 10 + d[13];
    if (!is_date(month, day, hour, minute, second))
        return;
    if (n > 15 && value[14] == '.')
        for (size_t i = 15; i < n && is_digit(value[i]) && unit > 0; i++, unit /= 10)
            ns += (value[i] - '0') * unit;
    set_time(e, seconds_of(year, month, day, hour, minute, second), ns);
}

static void read_fact(struct listing_entry *e, const char *fact, size_t n, bool *ret_is_self)
{
    const char *value;
    size_t size;
    if (fact_is(fact, n, "type=", &value, &size)) {
        *ret_is_self = value_is(value, size, "cdir") || value_is(value, size, "pdir");
        bool is_link = size >= 13 && strncasecmp(value, "os.unix=slink", 13) == 0;
        bool is_symlink = size >= 15 && strncasecmp(value, "os.unix=symlink", 15) == 0;
        e->kind = value_is(value, size, "file")  ? LISTING_FILE
                  : value_is(value, size, "dir") ? LISTING_FOLDER
                  : is_link || is_symlink        ? LISTING_LINK
                                                 : LISTING_OTHER;
    } else if (fact_is(fact, n, "size=", &value, &size)) {
        const char *p = value;
        e->has_size = number(&p, size, &e->size) && p == value + size;
    } else if (fact_is(fact, n, "modify=", &value, &size)) {
        read_modify(e, value, size);
    }
}

/* Facts are told from the other two by this: NAME=VALUE; with no blank before the first semicolon. */
static bool looks_like_facts(const char *line)
{
    if (line[0] == ' ')
        return true; /* no facts at all */
    size_t n = strcspn(line, " ;=");
    if (n == 0 || line[n] != '=')
        return false;
    return strcspn(line, ";") < strcspn(line, " ");
}

static bool read_facts(const char *line, struct listing_entry *e, bool *ret_is_self)
{
    e->kind = LISTING_OTHER;
    while (*line != ' ') {
        size_t n = strcspn(line, "; ");
        if (line[n] != ';')
            return false;
        read_fact(e, line, n, ret_is_self);
        line += n + 1;
    }
    e->name = line + 1;
    return e->name[0] != '\0';
}

/* ---- ls -l: "-rw-r--r--    1 ftp      ftp             6 Nov 14  2023 plain.txt" ---- */

static int month_named(const char *s)
{
    static const char names[12][4] = {"jan", "feb", "mar", "apr", "may", "jun",
                                      "jul", "aug", "sep", "oct", "nov", "dec"};
    for (int i = 0; i < 12; i++)
        if (strncasecmp(s, names[i], 3) == 0)
            return i + 1;
    return 0;
}

/* "Nov 14  2023", "Nov 14 10:31"; moves *P behind it. */
static bool read_short_date(const char **p, int64_t now_s, struct listing_entry *e)
{
    int month = month_named(*p), day, hour, minute;
    uint64_t n;
    if (month == 0 || ((*p)[3] != ' ' && (*p)[3] != '\t'))
        return false;
    *p += 3;
    if (!blanks(p) || !small_number(p, 2, &day) || !blanks(p) || !number(p, 5, &n))
        return false;
    if (**p != ':') {
        if (n < 1900 || !is_date(month, day, 0, 0, 0))
            return false;
        set_time(e, seconds_of((int64_t)n, month, day, 0, 0, 0), 0);
        return true;
    }
    hour = (int)n;
    if (!take(p, ':') || !small_number(p, 2, &minute) || !is_date(month, day, hour, minute, 0))
        return false;
    int64_t year = year_of(now_s) + 1, at;
    do
        at = seconds_of(year--, month, day, hour, minute, 0);
    while (at > now_s + 86400);
    set_time(e, at, 0);
    return true;
}

/* "2023-11-14 10:31", "2023-11-14 10:31:59.000000000 +0000" */
static bool read_long_date(const char **p, struct listing_entry *e)
{
    int year, month, day, hour, minute, second = 0;
    const char *q = *p;
    if (!small_number(&q, 4, &year) || !take(&q, '-') || !small_number(&q, 2, &month) || !take(&q, '-') ||
        !small_number(&q, 2, &day) || !blanks(&q) || !small_number(&q, 2, &hour) || !take(&q, ':') ||
        !small_number(&q, 2, &minute))
        return false;
    if (take(&q, ':')) {
        if (!small_number(&q, 2, &second))
            return false;
        if (take(&q, '.'))
            q += strspn(q, "0123456789");
        const char *zone = q;
        if (blanks(&zone) && (*zone == '+' || *zone == '-') && strspn(zone + 1, "0123456789") == 4 &&
            (zone[5] == ' ' || zone[5] == '\t')) {
            int sign = *zone == '-' ? 1 : -1; /* back to UTC */
            minute += sign * ((zone[1] - '0') * 600 + (zone[2] - '0') * 60 + (zone[3] - '0') * 10 + (zone[4] - '0'));
            q = zone + 5;
            if (month < 1 || month > 12)
                return false;
            set_time(e, seconds_of(year, month, day, hour, minute, second), 0);
            *p = q;
            return true;
        }
    }
    if (!is_date(month, day, hour, minute, second))
        return false;
    set_time(e, seconds_of(year, month, day, hour, minute, second), 0);
    *p = q;
    return true;
}

static bool read_date(const char **p, int64_t now_s, struct listing_entry *e)
{
    const char *q = *p;
    if (!read_short_date(&q, now_s, e)) {
        q = *p;
        if (!read_long_date(&q, e))
            return false;
    }
    if (*q != ' ' && *q != '\t')
        return false;
    *p = q + 1; /* one blank; others belong to the name */
    return **p != '\0';
}

/*
 * Behind the mode come links, owner, group, size, in servers' own numbers of words (no links, no group; owners of two
 * words). The size is the word before the first thing that reads as a date and is followed by a name.
 */
static bool read_unix(const char *line, int64_t now_s, struct listing_entry *e)
{
    static const char kinds[] = "-dlbcpsD";
    if (strchr(kinds, line[0]) == NULL || line[0] == '\0' || strspn(line + 1, "rwxsStTlL-") < 9)
        return false;
    e->kind = line[0] == '-'   ? LISTING_FILE
              : line[0] == 'd' ? LISTING_FOLDER
              : line[0] == 'l' ? LISTING_LINK
                               : LISTING_OTHER;
    const char *p = line, *text, *before = NULL;
    size_t size, before_size = 0;
    word(&p, &text, &size); /* the mode, perhaps with + . or @ */
    for (int words = 0; blanks(&p) && words < 12; words++) {
        const char *at = p;
        if (before != NULL && read_date(&at, now_s, e)) {
            const char *digits = before;
            e->has_size = number(&digits, before_size, &e->size) && digits == before + before_size;
            if (e->kind == LISTING_FILE && !e->has_size)
                return false;
            e->name = at;
            return true;
        }
        if (!word(&p, &before, &before_size))
            return false;
    }
    return false;
}

/* ---- DIR: "11-14-23  10:31AM                    6 plain.txt", "2023-11-14 ... <DIR> a" ---- */

static bool read_dos(const char *line, struct listing_entry *e)
{
    int month, day, year, hour, minute;
    const char *p = line;
    if (!small_number(&p, 2, &month) || !take(&p, '-') || !small_number(&p, 2, &day) || !take(&p, '-'))
        return false;
    const char *years = p;
    if (!small_number(&p, 4, &year))
        return false;
    if (p - years == 2)
        year += year < 70 ? 2000 : 1900;
    if (!blanks(&p) || !small_number(&p, 2, &hour) || !take(&p, ':') || !small_number(&p, 2, &minute))
        return false;
    if (strncasecmp(p, "AM", 2) == 0 || strncasecmp(p, "PM", 2) == 0) {
        bool is_afternoon = p[0] == 'P' || p[0] == 'p';
        if (hour < 1 || hour > 12)
            return false;
        hour = hour % 12 + (is_afternoon ? 12 : 0);
        p += 2;
    }
    if (!is_date(month, day, hour, minute, 0) || !blanks(&p))
        return false;
    set_time(e, seconds_of(year, month, day, hour, minute, 0), 0);
    e->kind = LISTING_FILE;
    if (strncasecmp(p, "<DIR>", 5) == 0 || strncasecmp(p, "<JUNCTION>", 10) == 0) {
        e->kind = p[1] == 'D' || p[1] == 'd' ? LISTING_FOLDER : LISTING_LINK;
        p = strchr(p, '>') + 1;
        if (!blanks(&p))
            return false;
    } else {
        e->has_size = number(&p, 20, &e->size);
        if (!e->has_size || !take(&p, ' '))
            return false;
    }
    e->name = p;
    return *p != '\0';
}

/* ---- lines ---- */

static bool is_total(const char *line)
{
    return strncasecmp(line, "total ", 6) == 0 && strspn(line + 6, "0123456789") == strlen(line + 6);
}

/* What follows the name of a link is where it leads. */
static void cut_target(char *name)
{
    char *arrow = strstr(name, " -> ");
    if (arrow != NULL && arrow != name)
        *arrow = '\0';
}

static enum err_code not_understood(const struct listing *l, struct err *err)
{
    char shown[160];
    return err_set(err, ERR_REMOTE, false,
                   "line %zu of the listing is no MLSD facts, no `ls -l` and no DIR: %s; nothing was taken for gone",
                   l->line, text_printable(l->text, shown, sizeof shown));
}

static enum err_code read_line(struct listing *l, struct err *err)
{
    struct listing_entry e = {.name = ""};
    bool is_self = false;
    if (l->used > 0 && l->text[l->used - 1] == '\r')
        l->used--;
    l->text[l->used] = '\0';
    if (l->used == 0 || is_total(l->text))
        return ERR_NONE;
    if (memchr(l->text, '\0', l->used) != NULL)
        return not_understood(l, err);
    bool is_read = looks_like_facts(l->text) && read_facts(l->text, &e, &is_self);
    if (!is_read) {
        e = (struct listing_entry){.name = ""};
        is_read = read_unix(l->text, l->now_s, &e);
    }
    if (!is_read) {
        e = (struct listing_entry){.name = ""};
        is_read = read_dos(l->text, &e);
    }
    if (!is_read)
        return not_understood(l, err);
    if (e.kind == LISTING_LINK)
        cut_target(l->text + (e.name - l->text));
    if (is_self || strcmp(e.name, ".") == 0 || strcmp(e.name, "..") == 0)
        return ERR_NONE;
    if (strchr(e.name, '/') != NULL)
        return not_understood(l, err); /* a name is one segment: this one would lead somewhere else */
    l->is_stopped = !l->cb(l->arg, &e);
    return ERR_NONE;
}

void listing_init(struct listing *l, int64_t now_s, listing_cb *cb, void *arg)
{
    l->now_s = now_s;
    l->cb = cb;
    l->arg = arg;
    l->line = 1;
    l->used = 0;
    l->is_stopped = false;
}

enum err_code listing_feed(struct listing *l, const char *bytes, size_t size, struct err *err)
{
    while (size > 0 && !l->is_stopped) {
        const char *end = memchr(bytes, '\n', size);
        size_t n = end != NULL ? (size_t)(end - bytes) : size;
        if (n > LISTING_LINE_MAX - l->used)
            return err_set(err, ERR_REMOTE, false, "line %zu of the listing is longer than %d bytes", l->line,
                           LISTING_LINE_MAX);
        memcpy(l->text + l->used, bytes, n);
        l->used += n;
        if (end == NULL)
            return ERR_NONE;
        if (read_line(l, err) != ERR_NONE)
            return err->code;
        l->used = 0;
        l->line++;
        bytes += n + 1;
        size -= n + 1;
    }
    return ERR_NONE;
}

enum err_code listing_end(struct listing *l, struct err *err)
{
    if (l->used == 0 || l->is_stopped)
        return ERR_NONE;
    return err_set(err, ERR_REMOTE, true, "the listing was cut off in line %zu", l->line);
}
