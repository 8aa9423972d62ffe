/* base_internal.h -- what the text files of this room share. */
#ifndef CHUTE_BASE_INTERNAL_H
#define CHUTE_BASE_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

/*
 * The character at S (n > 0 bytes): its length, its code point in *RET. A byte that starts no valid UTF-8 sequence is a
 * character of its own, length 1, code point 0x110000 + byte, so that such file names still match themselves.
 */
size_t text_utf8_decode(const char *s, size_t n, uint32_t *ret);

#endif
