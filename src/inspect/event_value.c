/*
 * event_value.c -- a value of an event as a column wants it: without loss, or not at all.
 *
 * What is a number in JSON is one here, what is a text is none: "12" for a bigint is a mistake of the sender that
 * somebody should hear of. The exceptions have a reason: decimals are often sent as texts to protect their digits, and
 * JSON has neither dates nor times. Numbers keep the digits they were sent with; only a decimal that was sent with an
 * exponent is written out, because not every table could hold it otherwise.
 */
#include "event_internal.h"

#include "text.h"

#include <math.h>
#include <stdio.h>

#define DECIMAL_DIGITS 400 /* of a decimal that is written out */
#define DOUBLE_BYTES 400   /* more digits than any double has */

/* ---- for messages */

const char *event_shown(const struct event_hit *hit, const char *text, char *ret, size_t size)
{
    size_t n = hit->end - hit->start;
    char cut[64], printable[160];
    if (hit->kind != VALUE_TEXT && hit->kind != VALUE_NUMBER) {
        snprintf(ret, size, "%s", event_kind_names[hit->kind]);
        return ret;
    }
    size_t most = n < 40 ? n : 40;
    while (most < n && most > 0 && ((unsigned char)text[hit->start + most] & 0xC0) == 0x80)
        most--; /* not in the middle of a character */
    snprintf(cut, sizeof cut, "%.*s%s", (int)most, text + hit->start, most < n ? "…" : "");
    snprintf(ret, size, "%s%s", hit->kind == VALUE_TEXT ? "the text " : "the number ",
             text_printable(cut, printable, sizeof printable));
    return ret;
}

static const char *const wanted_words[] = {
    [EVENT_BIGINT] = "bigint (a whole number within 64 bits)",
    [EVENT_DOUBLE] = "double (a number)",
    [EVENT_DECIMAL] = "decimal (a number, or one in quotes, of at most 400 digits when it is written out)",
    [EVENT_BOOLEAN] = "boolean (true or false)",
    [EVENT_DATE] = "date (\"YYYY-MM-DD\")",
    [EVENT_TIMESTAMP] = "timestamp (\"YYYY-MM-DD hh:mm:ss\" without zone, at most six digits of fraction)",
    [EVENT_TIMESTAMPTZ] = "timestamptz (\"YYYY-MM-DDThh:mm:ssZ\" or with +hh:mm, at most six digits of fraction)",
    [EVENT_TEXT] = "text",
    [EVENT_JSON] = "json"};

/* ---- numbers */

/* A number that a double can hold: not beyond its range, and not so small that nothing is left. */
static bool is_double(const char *s, size_t n)
{
    char text[DOUBLE_BYTES + 1];
    if (n > DOUBLE_BYTES)
        return false;
    memcpy(text, s, n);
    text[n] = '\0';
    double value = strtod(text, NULL); /* chute never sets a locale */
    size_t digits = strcspn(text, "eE");
    bool is_zero = strcspn(text, "123456789") >= digits;
    return isfinite(value) && (value != 0 || is_zero);
}

/* A number with an exponent, taken apart. */
struct parts {
    const char *whole, *fraction;
    size_t whole_digits, fraction_digits;
    long exponent;
    bool is_negative;
};

static struct parts take_apart(const char *s, size_t n)
{
    struct parts p = {.is_negative = s[0] == '-'};
    const char *end = s + n;
    s += p.is_negative;
    p.whole = s;
    while (s < end && *s >= '0' && *s <= '9')
        s++;
    p.whole_digits = (size_t)(s - p.whole);
    if (s < end && *s == '.') {
        p.fraction = ++s;
        while (s < end && *s >= '0' && *s <= '9')
            s++;
        p.fraction_digits = (size_t)(s - p.fraction);
    }
    bool is_down = s + 1 < end && s[1] == '-';
    for (s += s < end ? 1 : 0; s < end; s++)
        if (*s >= '0' && *s <= '9' && p.exponent < 100000)
            p.exponent = p.exponent * 10 + (*s - '0');
    p.exponent = is_down ? -p.exponent : p.exponent;
    return p;
}

/* How long the number is when it is written out; 0: longer than we write. */
static size_t expanded_room(const char *s, size_t n)
{
    struct parts p = take_apart(s, n);
    size_t shift = (size_t)(p.exponent < 0 ? -p.exponent : p.exponent);
    size_t room = p.whole_digits + p.fraction_digits + shift + 3; /* sign, point, a zero before it */
    return p.whole_digits + p.fraction_digits + shift <= DECIMAL_DIGITS ? room : 0;
}

/* The number without its exponent: the point moves. */
static size_t expand(const char *s, size_t n, char *to)
{
    struct parts p = take_apart(s, n);
    char digits[DECIMAL_DIGITS + 1];
    size_t count = p.whole_digits + p.fraction_digits;
    memcpy(digits, p.whole, p.whole_digits);
    if (p.fraction_digits > 0)
        memcpy(digits + p.whole_digits, p.fraction, p.fraction_digits);
    long point = (long)p.whole_digits + p.exponent; /* so many digits are before it */
    char *out = to;
    if (p.is_negative)
        *out++ = '-';
    char *first = out;
    for (long i = 0; i < point; i++) {
        char digit = i < (long)count ? digits[i] : '0';
        if (digit != '0' || out > first) /* no zeros in front */
            *out++ = digit;
    }
    if (out == first)
        *out++ = '0';
    if (point < (long)count) {
        *out++ = '.';
        for (long i = point; i < (long)count; i++)
            *out++ = i < 0 ? '0' : digits[i];
    }
    return (size_t)(out - to);
}

static bool has_exponent(const char *s, size_t n)
{
    return memchr(s, 'e', n) != NULL || memchr(s, 'E', n) != NULL;
}

/* ---- texts */

/* The kinds of a text that is short enough to have one; without its escapes. */
static unsigned kinds_of(const char *s, size_t n, bool has_escape)
{
    char plain[512 + PAD_BYTES] = {0};
    if (n == 0 || n > 512)
        return 0;
    if (has_escape) {
        n = event_unescape(s, n, plain);
        s = plain;
    }
    return kind_of(s, n);
}

static const unsigned kind_of_type[] = {[EVENT_BIGINT] = KIND_INT,
                                        [EVENT_DECIMAL] = KIND_DECIMAL,
                                        [EVENT_BOOLEAN] = KIND_BOOL,
                                        [EVENT_DATE] = KIND_DATE,
                                        [EVENT_TIMESTAMP] = KIND_TIMESTAMP,
                                        [EVENT_TIMESTAMPTZ] = KIND_TIMESTAMPTZ,
                                        [EVENT_TEXT] = 0,
                                        [EVENT_JSON] = 0};

static void copy(struct event_cell *ret, const char *s, size_t n, bool has_escape)
{
    *ret = (struct event_cell){.how = has_escape ? CELL_UNESCAPE : CELL_COPY, .text = s, .length = n, .room = n};
}

static bool number_cell(enum event_type type, const char *s, size_t n, struct event_cell *ret)
{
    bool is_good = false;
    copy(ret, s, n, false);
    switch (type) {
    case EVENT_BIGINT:
        is_good = n <= 20 && (kind_of(s, n) & KIND_INT) != 0;
        break;
    case EVENT_DOUBLE:
        is_good = is_double(s, n);
        break;
    case EVENT_DECIMAL:
        if (!has_exponent(s, n))
            return true;
        ret->how = CELL_EXPAND;
        ret->room = expanded_room(s, n);
        is_good = ret->room > 0;
        break;
    case EVENT_TEXT:
        return true;
    case EVENT_BOOLEAN:
    case EVENT_DATE:
    case EVENT_TIMESTAMP:
    case EVENT_TIMESTAMPTZ:
    case EVENT_JSON:
        break;
    }
    return is_good;
}

/* A text; N bytes between its quotes. */
static bool text_cell(enum event_type type, const char *s, size_t n, const struct event_hit *hit,
                      struct event_cell *ret)
{
    copy(ret, s, n, hit->has_escape);
    if (type == EVENT_TEXT)
        return true;
    if (type != EVENT_DECIMAL && type != EVENT_DATE && type != EVENT_TIMESTAMP && type != EVENT_TIMESTAMPTZ)
        return false;
    return (kinds_of(s, n, hit->has_escape) & kind_of_type[type]) != 0;
}

static bool fits(enum event_type type, const struct event_hit *hit, const char *text, struct event_cell *ret)
{
    const char *s = text + hit->start;
    size_t n = hit->end - hit->start;
    switch (hit->kind) {
    case VALUE_NUMBER:
        return number_cell(type, s, n, ret);
    case VALUE_TEXT:
        return text_cell(type, s + 1, n - 2, hit, ret);
    case VALUE_FALSE:
    case VALUE_TRUE:
        copy(ret, s, n, false);
        return type == EVENT_BOOLEAN || type == EVENT_TEXT;
    case VALUE_NULL:
    case VALUE_OBJECT:
    case VALUE_ARRAY:
        break;
    }
    return false;
}

/* What stands in a message before a value: its pointer, unless it is the event itself. */
static const char *place_of(const struct event_column *column)
{
    return column->from[0] != '\0' ? column->from : "the event";
}

bool event_cell(const struct event_column *column, const struct event_hit *hit, const char *text,
                struct event_cell *ret, char *reason, size_t size)
{
    char shown[256];
    enum event_type type = (enum event_type)column->type;
    bool is_null = hit != NULL && hit->kind == VALUE_NULL;
    *ret = (struct event_cell){.how = CELL_NULL};
    if (hit == NULL && column->default_text != NULL) {
        copy(ret, column->default_text, strlen(column->default_text), false);
        return true;
    }
    if (hit == NULL || is_null) {
        if (!column->required)
            return true;
        snprintf(reason, size, "%s is %s: expected %s at %s", column->name, is_null ? "null" : "missing",
                 event_type_names[type], place_of(column));
        return false;
    }
    if (type == EVENT_JSON) {
        copy(ret, text + hit->start, hit->end - hit->start, false);
        return true;
    }
    if (hit->has_nul || hit->has_lone) {
        snprintf(reason, size, "%s (%s): expected %s, found a text with %s, which no column can hold", column->name,
                 place_of(column), event_type_names[type], hit->has_nul ? "\\u0000" : "half of a surrogate pair");
        return false;
    }
    if (fits(type, hit, text, ret))
        return true;
    snprintf(reason, size, "%s (%s): expected %s, found %s", column->name, place_of(column), wanted_words[type],
             event_shown(hit, text, shown, sizeof shown));
    return false;
}

size_t event_cell_write(const struct event_cell *cell, char *to)
{
    if (cell->how == CELL_UNESCAPE)
        return event_unescape(cell->text, cell->length, to);
    if (cell->how == CELL_EXPAND)
        return expand(cell->text, cell->length, to);
    memcpy(to, cell->text, cell->length);
    return cell->length;
}

/* ---- when, default */

bool event_equals(const struct event_hit *hit, const char *text, const char *wanted)
{
    const char *s = text + hit->start;
    size_t n = hit->end - hit->start, length = strlen(wanted);
    if (hit->kind == VALUE_OBJECT || hit->kind == VALUE_ARRAY)
        return false;
    if (hit->kind == VALUE_TEXT) {
        s++;
        n -= 2;
    }
    if (!hit->has_escape)
        return n == length && memcmp(s, wanted, n) == 0;
    if (n > 12 * length || hit->has_nul) /* no character is written with more than 12 bytes */
        return false;
    char *plain = malloc(n + 1);
    bool is_equal = plain != NULL && event_unescape(s, n, plain) == length && memcmp(plain, wanted, length) == 0;
    free(plain);
    return is_equal;
}

/* One JSON value and nothing else. */
static bool is_json(const char *text)
{
    static const struct event_node root = {.pointer = "", .token = "", .index = -1};
    const struct event_tree tree = {(struct event_node *)(uintptr_t)&root, 1};
    struct event_hit hit = {0};
    struct event_scan scan = {.tree = &tree, .hits = &hit, .text = text, .size = strlen(text), .is_last = true};
    while (event_is_space(text[scan.start]))
        scan.start++;
    if (event_scan(&scan) != SCAN_DONE)
        return false;
    while (event_is_space(text[scan.end]))
        scan.end++;
    return scan.end == scan.size;
}

bool event_default_check(enum event_type type, const char *text, struct err *err)
{
    size_t n = strlen(text);
    char shown[80];
    unsigned kinds;
    bool is_good = text_utf8_valid(text, n) == n;
    switch (type) {
    case EVENT_TEXT:
        break;
    case EVENT_JSON:
        is_good = is_good && is_json(text);
        break;
    case EVENT_DOUBLE:
        is_good = is_json(text) && (text[0] == '-' || (text[0] >= '0' && text[0] <= '9')) && is_double(text, n);
        break;
    case EVENT_BOOLEAN:
        is_good = strcmp(text, "true") == 0 || strcmp(text, "false") == 0;
        break;
    case EVENT_BIGINT:
    case EVENT_DECIMAL:
    case EVENT_DATE:
    case EVENT_TIMESTAMP:
    case EVENT_TIMESTAMPTZ: {
        char padded[512 + PAD_BYTES] = {0};
        kinds = 0;
        if (n > 0 && n <= 512) {
            memcpy(padded, text, n);
            kinds = kind_of(padded, n);
        }
        is_good = (kinds & kind_of_type[type]) != 0;
        break;
    }
    }
    if (!is_good)
        err_set(err, ERR_CONFIG, false, "expected %s, found '%s'",
                type == EVENT_DECIMAL ? "decimal (a number without exponent)" : wanted_words[type],
                text_printable(text, shown, sizeof shown));
    return is_good;
}
