/* utf8.c -- UTF-8, fast: every byte of every file comes through here. */
#include "base_internal.h"
#include "text.h"

#include <stdio.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Length of the valid sequence of two or more bytes at S, or 0. No overlong forms, surrogates, or beyond U+10FFFF. */
static inline size_t sequence(const unsigned char *s, size_t n)
{
    unsigned char c = s[0];
    if (c < 0xC2 || n < 2)
        return 0;
    if (c < 0xE0)
        return (s[1] & 0xC0) == 0x80 ? 2 : 0;
    if (c < 0xF0) {
        unsigned char low = c == 0xE0 ? 0xA0 : 0x80;
        unsigned char high = c == 0xED ? 0x9F : 0xBF;
        return n >= 3 && s[1] >= low && s[1] <= high && (s[2] & 0xC0) == 0x80 ? 3 : 0;
    }
    if (c > 0xF4)
        return 0;
    unsigned char low = c == 0xF0 ? 0x90 : 0x80;
    unsigned char high = c == 0xF4 ? 0x8F : 0xBF;
    return n >= 4 && s[1] >= low && s[1] <= high && (s[2] & 0xC0) == 0x80 && (s[3] & 0xC0) == 0x80 ? 4 : 0;
}

#ifdef __SSE2__
#define STEP 16u
/* Bytes before the first one of 16 that is not 1..127: as signed bytes those are exactly the ones not above 0. */
static inline size_t plain_step(const unsigned char *s)
{
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)s);
    unsigned good = (unsigned)_mm_movemask_epi8(_mm_cmpgt_epi8(v, _mm_setzero_si128()));
    return (size_t)__builtin_ctz(~good);
}
static inline bool plain_64(const unsigned char *s)
{
    const __m128i zero = _mm_setzero_si128();
    const __m128i *p = (const __m128i *)(const void *)s;
    __m128i a = _mm_and_si128(_mm_cmpgt_epi8(_mm_loadu_si128(p), zero), _mm_cmpgt_epi8(_mm_loadu_si128(p + 1), zero));
    __m128i b =
        _mm_and_si128(_mm_cmpgt_epi8(_mm_loadu_si128(p + 2), zero), _mm_cmpgt_epi8(_mm_loadu_si128(p + 3), zero));
    return _mm_movemask_epi8(_mm_and_si128(a, b)) == 0xFFFF;
}
#else
#define STEP 8u
static inline uint64_t word_at(const unsigned char *s)
{
    uint64_t w;
    memcpy(&w, s, sizeof w);
    return w;
}
/* High bits set in the result: some byte is 0 (the subtraction borrows) or above 127. Exact, see the borrow. */
static inline uint64_t not_plain(uint64_t w)
{
    return (w | (w - 0x0101010101010101u)) & 0x8080808080808080u;
}
static inline size_t plain_step(const unsigned char *s)
{
    if (not_plain(word_at(s)) == 0)
        return STEP;
    size_t i = 0;
    while (s[i] - 1u < 0x7Fu)
        i++;
    return i;
}
static inline bool plain_64(const unsigned char *s)
{
    uint64_t any = 0;
    for (int i = 0; i < 64; i += 8)
        any |= not_plain(word_at(s + i));
    return any == 0;
}
#endif

size_t text_utf8_valid(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < n) {
        while (n - i >= 64 && plain_64(s + i))
            i += 64;
        size_t plain = STEP;
        while (n - i >= STEP && (plain = plain_step(s + i)) == STEP)
            i += STEP;
        if (n - i >= STEP)
            i += plain; /* < STEP: there is a byte that is not plain, and it is in the text */
        else
            while (i < n && s[i] - 1u < 0x7Fu)
                i++;
        while (i < n && s[i] - 1u >= 0x7Fu) { /* a run of other scripts */
            size_t length = sequence(s + i, n - i);
            if (length == 0)
                return i;
            i += length;
        }
    }
    return n;
}

size_t text_utf8_decode(const char *text, size_t n, uint32_t *ret)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *ret = s[0];
        return 1;
    }
    size_t length = sequence(s, n);
    switch (length) {
    case 2:
        *ret = (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
        return 2;
    case 3:
        *ret = (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
        return 3;
    case 4:
        *ret = (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 |
               (s[3] & 0x3F);
        return 4;
    default:
        *ret = 0x110000u + s[0];
        return 1;
    }
}

/* Controls, and the invisible marks that turn the direction of a line or break it. */
static bool hides(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || (c >= 0x200E && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E) ||
           (c >= 0x2066 && c <= 0x2069) || c == 0xFEFF || c >= 0x110000;
}

const char *text_printable(const char *s, char *ret, size_t size)
{
    if (size == 0)
        return "";
    size_t n = strlen(s), out = 0;
    for (size_t i = 0; i < n;) {
        uint32_t c;
        size_t length = text_utf8_decode(s + i, n - i, &c);
        bool is_hidden = hides(c);
        size_t need = is_hidden ? 4 * length : length;
        if (need >= size - out)
            break;
        for (size_t k = 0; k < length; k++) {
            if (is_hidden) {
                snprintf(ret + out, 5, "\\x%02X", (unsigned)(unsigned char)s[i + k]);
                out += 4;
            } else {
                ret[out++] = s[i + k];
            }
        }
        i += length;
    }
    ret[out] = '\0';
    return ret;
}
