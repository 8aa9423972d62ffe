/*
 * event_find.c -- one event after the other: where it begins and ends, and what to do with what is no event.
 *
 * What is no JSON rejects the file, because nobody knows where the next event begins; only where each line is an event
 * it costs one line.
 */
#include "event_internal.h"

#include "text.h"

#include <stdio.h>

/* "line 2, column 7: WORDS (byte offset 12)" */
static enum err_code wrong_at(const struct event_rows *r, size_t at, enum err_code code, const char *words,
                              struct err *err)
{
    uint64_t line, column;
    event_text_place(&r->text, at, &line, &column);
    return err_set(err, code, false, "line %llu, column %llu: %s (byte offset %llu)", (unsigned long long)line,
                   (unsigned long long)column, words, (unsigned long long)(r->text.offset + at));
}

enum err_code event_reject(struct event_rows *r, size_t length, size_t at, const char *reason, struct err *err)
{
    struct err place;
    const char *value = r->text.text + r->text.pos;
    uint32_t bytes = (uint32_t)length;
    uint64_t line, column;
    wrong_at(r, at, ERR_INPUT, reason, &place);
    event_text_place(&r->text, r->text.pos, &line, &column);
    const struct bad_row bad = {.record = r->records,
                                .line = line,
                                .offset = r->text.offset + r->text.pos,
                                .reason = place.text,
                                .value = &value,
                                .length = &bytes,
                                .fields = 1};
    if (reject_row(&r->base, r->options, &bad, err) != ERR_NONE)
        return err->code;
    r->records++;
    return ERR_NONE;
}

/* ---- one event */

static enum err_code too_long(const struct event_rows *r, struct err *err)
{
    char words[120], size[32];
    text_format_size(r->events->max_event, size, sizeof size);
    snprintf(words, sizeof words, "an event of more than %s; max_event allows no longer one", size);
    return wrong_at(r, r->text.pos, ERR_INPUT, words, err);
}

/* The text is over, and something is open. */
static enum err_code ends_early(const struct event_rows *r, const char *what, struct err *err)
{
    char words[120];
    snprintf(words, sizeof words, "the text ends inside %s", what);
    return wrong_at(r, r->text.size, ERR_INCOMPLETE, words, err);
}

enum err_code event_read(struct event_rows *r, bool *ret_bad, struct err *err)
{
    struct event_text *t = &r->text;
    for (;;) {
        r->scan.text = t->text;
        r->scan.start = t->pos;
        r->scan.size = t->size;
        r->scan.is_last = t->is_last;
        enum scan_end end = event_scan(&r->scan);
        size_t so_far = (end == SCAN_MORE ? t->size : end == SCAN_BAD ? r->scan.at : r->scan.end) - t->pos;
        if (so_far > r->events->max_event)
            return too_long(r, err);
        if (end != SCAN_MORE) {
            *ret_bad = end == SCAN_BAD;
            return ERR_NONE;
        }
        if (t->is_last) {
            char what[80];
            snprintf(what, sizeof what, "the event that begins on line %llu", (unsigned long long)t->line);
            return ends_early(r, what, err);
        }
        if (event_text_read(t, err) != ERR_NONE)
            return err->code;
    }
}

enum err_code event_find(struct event_rows *r, bool *ret_found, struct err *err)
{
    struct event_text *t = &r->text;
    *ret_found = false;
    for (;;) {
        size_t at = t->pos;
        while (at < t->size && event_is_space(t->text[at]))
            at++;
        event_text_advance(t, at);
        if (at == t->size && !t->is_last) {
            if (event_text_read(t, err) != ERR_NONE)
                return err->code;
            continue;
        }
        if (at == t->size) {
            bool is_open = r->where == ARRAY_BEGAN || r->where == BEHIND_ELEMENT || r->where == BEHIND_COMMA;
            return is_open ? ends_early(r, "the array of events", err) : ERR_NONE;
        }
        char c = t->text[at];
        switch (r->where) {
        case AT_START:
            if (c != '[') {
                r->where = IN_SEQUENCE;
                break;
            }
            event_text_advance(t, at + 1);
            r->where = ARRAY_BEGAN;
            continue;
        case ARRAY_BEGAN:
            if (c == ']')
                return wrong_at(r, at, ERR_INPUT, "not an object: expected an event ({...}), found an empty array",
                                err);
            break;
        case BEHIND_ELEMENT:
            if (c != ',' && c != ']')
                return wrong_at(r, at, ERR_INPUT, "expected ',' or ']' behind an event of an array", err);
            event_text_advance(t, at + 1);
            r->where = c == ',' ? BEHIND_COMMA : BEHIND_ARRAY;
            continue;
        case BEHIND_COMMA:
            if (c == ']')
                return wrong_at(r, at, ERR_INPUT, "expected an event behind ',', found ']'", err);
            break;
        case BEHIND_ARRAY:
            return wrong_at(r, at, ERR_INPUT, "expected nothing behind the array of events, found more text", err);
        case IN_SEQUENCE:
            break;
        }
        *ret_found = true;
        return ERR_NONE;
    }
}

void event_taken(struct event_rows *r, size_t end)
{
    event_text_advance(&r->text, end);
    r->is_lines =
        r->is_lines && r->where == IN_SEQUENCE && r->event_line > r->line_end && r->text.line == r->event_line;
    r->line_end = r->text.line;
    if (r->where != IN_SEQUENCE)
        r->where = BEHIND_ELEMENT;
}

/* ---- what is no JSON, in a file with one event a line */

/* The end of the line that holds AT, into RET_END, with the first byte behind it in memory. */
static enum err_code find_line_end(struct event_rows *r, size_t at, size_t *ret_end, struct err *err)
{
    struct event_text *t = &r->text;
    for (size_t behind = at - t->pos;;) {
        const char *lf = memchr(t->text + t->pos + behind, '\n', t->size - t->pos - behind);
        *ret_end = lf != NULL ? (size_t)(lf - t->text) : t->size;
        behind = *ret_end - t->pos;
        if (behind > r->events->max_event)
            return too_long(r, err);
        if (t->is_last || (lf != NULL && *ret_end + 1 < t->size))
            return ERR_NONE;
        if (event_text_read(t, err) != ERR_NONE)
            return err->code;
    }
}

/* Does a line from the position of the text to END look like an event of its own? */
static bool is_own_line(const struct event_rows *r, size_t end)
{
    const struct event_text *t = &r->text;
    size_t last = end;
    while (last > t->pos && event_is_space(t->text[last - 1]))
        last--;
    bool is_closed = last > t->pos && t->text[last - 1] == '}';
    return is_closed || end + 1 >= t->size || t->text[end + 1] == '{';
}

enum err_code event_take_bad_text(struct event_rows *r, struct err *err)
{
    const struct event_text *t = &r->text;
    uint64_t line, column;
    size_t end, from_start = r->scan.at - t->pos;
    event_text_place(t, r->scan.at, &line, &column);
    bool may_go_on = r->options->skip_bad_rows > 0 && r->where == IN_SEQUENCE && r->is_lines &&
                     r->event_line > r->line_end && line == r->event_line;
    if (!may_go_on)
        return wrong_at(r, r->scan.at, ERR_INPUT, r->scan.problem, err);
    if (find_line_end(r, r->scan.at, &end, err) != ERR_NONE)
        return err->code;
    if (!is_own_line(r, end))
        return wrong_at(r, t->pos + from_start, ERR_INPUT, r->scan.problem, err);
    if (event_reject(r, end - t->pos, t->pos + from_start, r->scan.problem, err) != ERR_NONE)
        return err->code;
    event_taken(r, end);
    return ERR_NONE;
}
