/*
 * event_scan.c -- one event: is it JSON (RFC 8259), where does it end, and where are the values that the rules ask for.
 *
 * One walk over the bytes, no memory taken. A text that ends inside the event is no error here: the caller reads more
 * and calls again, with at least twice the text, so that an event is walked over twice at most.
 */
#include "event_internal.h"

#include <stdarg.h>
#include <stdio.h>

const char *const event_kind_names[] = {
    [VALUE_NULL] = "null",   [VALUE_FALSE] = "false",      [VALUE_TRUE] = "true",     [VALUE_NUMBER] = "a number",
    [VALUE_TEXT] = "a text", [VALUE_OBJECT] = "an object", [VALUE_ARRAY] = "an array"};

static enum scan_end bad(struct event_scan *s, size_t at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static enum scan_end bad(struct event_scan *s, size_t at, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(s->problem, sizeof s->problem, fmt, args);
    va_end(args);
    s->at = at;
    return SCAN_BAD;
}

/* Not WANTED at POS, but something else. */
static enum scan_end expected(struct event_scan *s, const char *wanted)
{
    unsigned char c = (unsigned char)s->text[s->pos];
    if (c > ' ' && c < 0x7F)
        return bad(s, s->pos, "expected %s, found '%c'", wanted, c);
    if (c == '\n' || c == '\r')
        return bad(s, s->pos, "expected %s, found the end of the line", wanted);
    return bad(s, s->pos, "expected %s, found byte 0x%02X", wanted, c);
}

static void skip_space(struct event_scan *s)
{
    while (s->pos < s->size && event_is_space(s->text[s->pos]))
        s->pos++;
}

/* ---- texts */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Four digits at S, or -1. */
static int hex4(const char *s)
{
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(s[i]);
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

static bool is_high(int unit)
{
    return unit >= 0xD800 && unit < 0xDC00;
}

static bool is_low(int unit)
{
    return unit >= 0xDC00 && unit < 0xE000;
}

/* The escape whose backslash is at POS. */
static enum scan_end scan_escape(struct event_scan *s, struct event_hit *hit)
{
    size_t left = s->size - s->pos;
    hit->has_escape = true;
    if (left < 2)
        return SCAN_MORE;
    if (s->text[s->pos + 1] != 'u') {
        if (s->text[s->pos + 1] == '\0' || strchr("\"\\/bfnrt", s->text[s->pos + 1]) == NULL) {
            s->pos++;
            return expected(s, "one of \" \\ / b f n r t u behind a backslash");
        }
        s->pos += 2;
        return SCAN_DONE;
    }
    for (size_t i = 2; i < 6; i++) {
        if (i >= left)
            return SCAN_MORE;
        if (hex_digit(s->text[s->pos + i]) < 0) {
            s->pos += i;
            return expected(s, "four hexadecimal digits behind \\u");
        }
    }
    int unit = hex4(s->text + s->pos + 2);
    hit->has_nul = hit->has_nul || unit == 0;
    s->pos += 6;
    if (!is_high(unit)) {
        hit->has_lone = hit->has_lone || is_low(unit);
        return SCAN_DONE;
    }
    left = s->size - s->pos;
    if (left < 6 && memcmp(s->text + s->pos, "\\u", left < 2 ? left : 2) == 0)
        return SCAN_MORE;
    if (left >= 6 && memcmp(s->text + s->pos, "\\u", 2) == 0 && is_low(hex4(s->text + s->pos + 2)))
        s->pos += 6;
    else
        hit->has_lone = true; /* what follows is looked at on its own */
    return SCAN_DONE;
}

/* A byte of 0x80 or more at POS: a whole sequence of UTF-8? */
static enum scan_end scan_sequence(struct event_scan *s)
{
    const unsigned char *p = (const unsigned char *)s->text + s->pos;
    size_t left = s->size - s->pos;
    size_t n = p[0] < 0xC2 || p[0] > 0xF4 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    unsigned char low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < n; i++) {
        if (i >= left)
            return SCAN_MORE;
        if (p[i] < (i == 1 ? low : 0x80) || p[i] > (i == 1 ? high : 0xBF))
            n = 0;
    }
    if (n == 0)
        return bad(s, s->pos, "byte 0x%02X is not UTF-8", p[0]);
    s->pos += n;
    return SCAN_DONE;
}

/* The text whose quote is at POS. */
static enum scan_end scan_text(struct event_scan *s, struct event_hit *hit)
{
    s->pos++;
    while (s->pos < s->size) {
        unsigned char c = (unsigned char)s->text[s->pos];
        enum scan_end end = SCAN_DONE;
        if (c == '"') {
            s->pos++;
            return SCAN_DONE;
        }
        if (c == '\\')
            end = scan_escape(s, hit);
        else if (c >= 0x80)
            end = scan_sequence(s);
        else if (c < 0x20)
            return c == '\n' || c == '\r'
                       ? bad(s, s->pos, "expected a quote, found the end of the line inside a text (written \\n)")
                       : bad(s, s->pos, "control character 0x%02X in a text, expected it as \\u%04X", c, c);
        else
            s->pos++;
        if (end != SCAN_DONE)
            return end;
    }
    return SCAN_MORE;
}

size_t event_unescape(const char *s, size_t n, char *to)
{
    static const char from[] = "bfnrt", into[] = "\b\f\n\r\t";
    char *out = to;
    for (size_t i = 0; i < n;) {
        if (s[i] != '\\') {
            *out++ = s[i++];
            continue;
        }
        char c = s[i + 1];
        if (c != 'u') {
            const char *known = strchr(from, c);
            *out++ = known != NULL ? into[known - from] : c;
            i += 2;
            continue;
        }
        unsigned unit = (unsigned)hex4(s + i + 2);
        i += 6;
        if (is_high((int)unit) && i + 6 <= n && s[i] == '\\' && s[i + 1] == 'u' && is_low(hex4(s + i + 2))) {
            unit = 0x10000 + ((unit - 0xD800) << 10) + ((unsigned)hex4(s + i + 2) - 0xDC00);
            i += 6;
        } else if (unit >= 0xD800 && unit < 0xE000) {
            unit = 0xFFFD;
        }
        if (unit < 0x80) {
            *out++ = (char)unit;
        } else if (unit < 0x800) {
            *out++ = (char)(0xC0 | unit >> 6);
            *out++ = (char)(0x80 | (unit & 0x3F));
        } else if (unit < 0x10000) {
            *out++ = (char)(0xE0 | unit >> 12);
            *out++ = (char)(0x80 | (unit >> 6 & 0x3F));
            *out++ = (char)(0x80 | (unit & 0x3F));
        } else {
            *out++ = (char)(0xF0 | unit >> 18);
            *out++ = (char)(0x80 | (unit >> 12 & 0x3F));
            *out++ = (char)(0x80 | (unit >> 6 & 0x3F));
            *out++ = (char)(0x80 | (unit & 0x3F));
        }
    }
    return (size_t)(out - to);
}

/* ---- numbers and words */

/* At least one digit at POS. */
static enum scan_end scan_digits(struct event_scan *s)
{
    if (s->pos == s->size)
        return SCAN_MORE;
    if (s->text[s->pos] < '0' || s->text[s->pos] > '9')
        return expected(s, "a digit");
    while (s->pos < s->size && s->text[s->pos] >= '0' && s->text[s->pos] <= '9')
        s->pos++;
    return SCAN_DONE;
}

static enum scan_end scan_number(struct event_scan *s)
{
    enum scan_end end;
    s->pos += s->text[s->pos] == '-';
    size_t first = s->pos;
    if ((end = scan_digits(s)) != SCAN_DONE)
        return end;
    if (s->text[first] == '0' && s->pos - first > 1)
        return bad(s, first, "expected a number, found one with a zero in front");
    if (s->pos < s->size && s->text[s->pos] == '.') {
        s->pos++;
        if ((end = scan_digits(s)) != SCAN_DONE)
            return end;
    }
    if (s->pos < s->size && (s->text[s->pos] == 'e' || s->text[s->pos] == 'E')) {
        s->pos++;
        s->pos += s->pos < s->size && (s->text[s->pos] == '+' || s->text[s->pos] == '-');
        if ((end = scan_digits(s)) != SCAN_DONE)
            return end;
    }
    return s->pos == s->size && !s->is_last ? SCAN_MORE : SCAN_DONE; /* more digits may follow */
}

static enum scan_end scan_word(struct event_scan *s, const char *word)
{
    size_t start = s->pos;
    for (; *word != '\0'; word++, s->pos++) {
        if (s->pos == s->size)
            return SCAN_MORE;
        if (s->text[s->pos] != *word) {
            s->pos = start;
            return expected(s, "a value");
        }
    }
    return SCAN_DONE;
}

/* ---- values */

/* Where a value of NODE is noted; SCRATCH for those that nobody asks for. */
static struct event_hit *note(struct event_scan *s, size_t node, struct event_hit *scratch)
{
    struct event_hit *hit = node != NO_NODE ? &s->hits[node] : scratch;
    if (node != NO_NODE && hit->scan == s->scan) {
        s->twice = s->twice == NO_NODE ? node : s->twice;
        hit = scratch;
    }
    *hit = (struct event_hit){.scan = s->scan, .start = s->pos};
    return hit;
}

/* An object or array begins at POS. */
static enum scan_end enter(struct event_scan *s, size_t node, bool is_array)
{
    if (s->depth == EVENT_DEPTH)
        return bad(s, s->pos, "objects and arrays inside each other more than %d deep", EVENT_DEPTH);
    s->frames[s->depth++] = (struct event_frame){.node = node, .start = s->pos, .is_array = is_array};
    s->pos++;
    return SCAN_DONE;
}

/* A value at POS, without what is inside an object or array. */
static enum scan_end scan_value(struct event_scan *s, size_t node)
{
    struct event_hit scratch;
    if (s->pos == s->size)
        return SCAN_MORE;
    struct event_hit *hit = note(s, node, &scratch);
    if (hit == &scratch)
        node = NO_NODE;
    enum scan_end end;
    char c = s->text[s->pos];
    if (c == '"') {
        hit->kind = VALUE_TEXT;
        end = scan_text(s, hit);
    } else if (c == '{' || c == '[') {
        hit->kind = c == '[' ? VALUE_ARRAY : VALUE_OBJECT;
        end = enter(s, node, c == '[');
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        hit->kind = VALUE_NUMBER;
        end = scan_number(s);
    } else if (c == 't' || c == 'f') {
        hit->kind = c == 't' ? VALUE_TRUE : VALUE_FALSE;
        end = scan_word(s, c == 't' ? "true" : "false");
    } else if (c == 'n') {
        hit->kind = VALUE_NULL;
        end = scan_word(s, "null");
    } else {
        return expected(s, "a value");
    }
    hit->end = s->pos;
    return end;
}

/* How many bytes the character at S is written with. */
static size_t written_length(const char *s, size_t n)
{
    if (s[0] != '\\')
        return 1;
    if (s[1] != 'u')
        return 2;
    bool is_pair = is_high(hex4(s + 2)) && n >= 12 && s[6] == '\\' && s[7] == 'u' && is_low(hex4(s + 8));
    return is_pair ? 12 : 6;
}

/* Does the key (between its quotes) spell the token of NODE? */
static bool is_key(const char *key, size_t n, bool has_escape, const struct event_node *node)
{
    if (!has_escape)
        return n == node->length && memcmp(key, node->token, n) == 0;
    size_t spelled = 0;
    while (n > 0) {
        char plain[4];
        size_t written = written_length(key, n), length = event_unescape(key, written, plain);
        if (length > node->length - spelled || memcmp(plain, node->token + spelled, length) != 0)
            return false;
        spelled += length;
        key += written;
        n -= written;
    }
    return spelled == node->length;
}

static size_t child_by_key(const struct event_scan *s, size_t parent, const char *key, size_t n, bool has_escape)
{
    if (parent == NO_NODE)
        return NO_NODE;
    const struct event_node *nodes = s->tree->nodes;
    for (size_t child = nodes[parent].first; child != 0; child = nodes[child].next)
        if (is_key(key, n, has_escape, &nodes[child]))
            return child;
    return NO_NODE;
}

static size_t child_by_index(const struct event_scan *s, size_t parent, uint32_t index)
{
    if (parent == NO_NODE)
        return NO_NODE;
    const struct event_node *nodes = s->tree->nodes;
    for (size_t child = nodes[parent].first; child != 0; child = nodes[child].next)
        if (nodes[child].index == (int64_t)index)
            return child;
    return NO_NODE;
}

static enum scan_end scan_member(struct event_scan *s, const struct event_frame *frame)
{
    struct event_hit key = {.start = s->pos};
    if (s->text[s->pos] != '"')
        return expected(s, frame->has_value ? "a key in quotes behind ','" : "a key in quotes or '}'");
    enum scan_end end = scan_text(s, &key);
    if (end != SCAN_DONE)
        return end;
    size_t node = child_by_key(s, frame->node, s->text + key.start + 1, s->pos - key.start - 2, key.has_escape);
    skip_space(s);
    if (s->pos == s->size)
        return SCAN_MORE;
    if (s->text[s->pos] != ':')
        return expected(s, "':' behind a key");
    s->pos++;
    skip_space(s);
    return scan_value(s, node);
}

static enum scan_end leave(struct event_scan *s)
{
    const struct event_frame *frame = &s->frames[--s->depth];
    s->pos++;
    if (frame->node != NO_NODE)
        s->hits[frame->node].end = s->pos;
    return SCAN_DONE;
}

/* The next value, or the end, of the innermost object or array. */
static enum scan_end scan_inside(struct event_scan *s)
{
    struct event_frame *frame = &s->frames[s->depth - 1];
    skip_space(s);
    if (s->pos == s->size)
        return SCAN_MORE;
    if (s->text[s->pos] == (frame->is_array ? ']' : '}'))
        return leave(s);
    if (frame->has_value) {
        if (s->text[s->pos] != ',')
            return expected(s, frame->is_array ? "',' or ']'" : "',' or '}'");
        s->pos++;
        skip_space(s);
        if (s->pos == s->size)
            return SCAN_MORE;
    }
    enum scan_end end =
        frame->is_array ? scan_value(s, child_by_index(s, frame->node, frame->index)) : scan_member(s, frame);
    frame->index++;
    frame->has_value = true;
    return end;
}

enum scan_end event_scan(struct event_scan *s)
{
    struct event_frame frames[EVENT_DEPTH];
    s->scan++;
    s->frames = frames;
    s->pos = s->start;
    s->depth = 0;
    s->twice = NO_NODE;
    enum scan_end end = scan_value(s, 0);
    s->kind = s->hits[0].kind;
    while (end == SCAN_DONE && s->depth > 0)
        end = scan_inside(s);
    s->end = s->pos;
    s->frames = NULL;
    return end;
}

const struct event_hit *event_hit(const struct event_scan *s, size_t node)
{
    return s->hits[node].scan == s->scan ? &s->hits[node] : NULL;
}
