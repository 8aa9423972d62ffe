/*
 * buf.h -- a growing string of bytes, always NUL-terminated, that remembers a failed allocation.
 *
 * Append freely and look at `failed` once at the end.
 */
#ifndef CHUTE_BUF_H
#define CHUTE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* never NULL for readers: "" while empty */
    size_t size;
    size_t capacity;
    bool failed;
};

void buf_init(struct buf *b);
void buf_done(struct buf *b);
void buf_clear(struct buf *b); /* size 0, memory kept, failed reset */
void buf_add(struct buf *b, const void *data, size_t size);
void buf_adds(struct buf *b, const char *s);
void buf_addc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* S as a JSON string with quotes; bytes that are not UTF-8 become U+FFFD. */
void buf_add_json(struct buf *b, const char *s);
/* The text, malloc'ed, now the caller's; NULL when failed. B is empty afterwards. */
char *buf_take(struct buf *b);

#endif
