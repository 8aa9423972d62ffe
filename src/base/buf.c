/* buf.c -- a growing string. While it is empty it points at a shared "", which is never written. */
#include "buf.h"
#include "text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char empty[1];

void buf_init(struct buf *b)
{
    b->data = empty;
    b->size = 0;
    b->capacity = 0;
    b->failed = false;
}

void buf_done(struct buf *b)
{
    if (b->capacity > 0)
        free(b->data);
    buf_init(b);
}

void buf_clear(struct buf *b)
{
    b->size = 0;
    b->failed = false;
    if (b->capacity > 0)
        b->data[0] = '\0';
}

/* Room for MORE bytes and the NUL. After a failure nothing is added any more: a text with a hole is worse than none. */
static bool reserve(struct buf *b, size_t more)
{
    if (b->failed)
        return false;
    if (more >= SIZE_MAX / 2 - b->size) {
        b->failed = true;
        return false;
    }
    size_t need = b->size + more + 1;
    if (need <= b->capacity)
        return true;
    size_t capacity = b->capacity < 64 ? 64 : b->capacity;
    while (capacity < need)
        capacity += capacity / 2;
    char *data = realloc(b->capacity > 0 ? b->data : NULL, capacity);
    if (data == NULL) {
        b->failed = true;
        return false;
    }
    data[b->size] = '\0';
    b->data = data;
    b->capacity = capacity;
    return true;
}

void buf_add(struct buf *b, const void *data, size_t size)
{
    if (size == 0 || !reserve(b, size))
        return;
    memcpy(b->data + b->size, data, size);
    b->size += size;
    b->data[b->size] = '\0';
}

void buf_adds(struct buf *b, const char *s)
{
    buf_add(b, s, strlen(s));
}

void buf_addc(struct buf *b, char c)
{
    buf_add(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0)
        b->failed = true;
    else if (reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->size, (size_t)n + 1, fmt, again);
        b->size += (size_t)n;
    }
    va_end(again);
}

static void add_json_char(struct buf *b, unsigned char c)
{
    switch (c) {
    case '"':
        buf_adds(b, "\\\"");
        break;
    case '\\':
        buf_adds(b, "\\\\");
        break;
    case '\n':
        buf_adds(b, "\\n");
        break;
    case '\r':
        buf_adds(b, "\\r");
        break;
    case '\t':
        buf_adds(b, "\\t");
        break;
    default:
        if (c < 0x20 || c == 0x7F)
            buf_printf(b, "\\u%04x", c);
        else
            buf_addc(b, (char)c);
    }
}

void buf_add_json(struct buf *b, const char *s)
{
    size_t n = strlen(s);
    buf_addc(b, '"');
    for (size_t i = 0; i < n;) {
        size_t end = i + text_utf8_valid(s + i, n - i);
        while (i < end) {
            size_t plain = i; /* a run that needs no escape goes in one piece */
            while (plain < end && (unsigned char)s[plain] >= 0x20 && s[plain] != '"' && s[plain] != '\\' &&
                   s[plain] != 0x7F)
                plain++;
            buf_add(b, s + i, plain - i);
            i = plain;
            if (i < end)
                add_json_char(b, (unsigned char)s[i++]);
        }
        if (i < n) {
            buf_adds(b, "\xEF\xBF\xBD");
            i++;
        }
    }
    buf_addc(b, '"');
}

char *buf_take(struct buf *b)
{
    char *text = NULL;
    if (!b->failed && reserve(b, 0)) { /* an empty one becomes a real "" */
        text = b->data;
        b->capacity = 0;
    }
    buf_done(b);
    return text;
}
