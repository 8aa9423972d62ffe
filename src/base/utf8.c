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

/*
 * The same as an automaton whose step is one shift: text in most languages of Europe changes between one and two bytes
 * all the time, and a branch per change is what would cost. A state is the place of its six bits in every entry; the
 * entry of a byte holds in those the next state. BAD is 0, so nothing leads out of it.
 */
enum { BAD = 0, GOOD = 6, ONE = 12, TWO = 18, AFTER_E0 = 24, AFTER_ED = 30, THREE = 36, AFTER_F0 = 42, AFTER_F4 = 48 };
#define TO(from, to) ((uint64_t)(to) << (from))
#define ASCII TO(GOOD, GOOD)
#define CONTINUED (TO(ONE, GOOD) | TO(TWO, ONE) | TO(THREE, TWO))
#define C8 (CONTINUED | TO(AFTER_ED, ONE) | TO(AFTER_F4, TWO))
#define C9 (CONTINUED | TO(AFTER_ED, ONE) | TO(AFTER_F0, TWO))
#define CA (CONTINUED | TO(AFTER_E0, ONE) | TO(AFTER_F0, TWO))
#define L2 TO(GOOD, ONE)
#define L3 TO(GOOD, TWO)
#define L4 TO(GOOD, THREE)
#define FOUR(x) x, x, x, x
#define SIXTEEN(x) FOUR(x), FOUR(x), FOUR(x), FOUR(x)
static const uint64_t steps[256] = {
    /* 00 */ BAD,
    ASCII,
    ASCII,
    ASCII,
    FOUR(ASCII),
    FOUR(ASCII),
    FOUR(ASCII),
    /* 10 */ SIXTEEN(ASCII),
    SIXTEEN(ASCII),
    SIXTEEN(ASCII),
    SIXTEEN(ASCII),
    SIXTEEN(ASCII),
    SIXTEEN(ASCII),
    /* 70 */ SIXTEEN(ASCII),
    /* 80 */ SIXTEEN(C8),
    SIXTEEN(C9),
    SIXTEEN(CA),
    SIXTEEN(CA),
    /* C0 */ BAD,
    BAD,
    L2,
    L2,
    FOUR(L2),
    FOUR(L2),
    FOUR(L2),
    /* D0 */ SIXTEEN(L2),
    /* E0 */ TO(GOOD, AFTER_E0),
    L3,
    L3,
    L3,
    FOUR(L3),
    FOUR(L3),
    L3,
    TO(GOOD, AFTER_ED),
    L3,
    L3,
    /* F0 */ TO(GOOD, AFTER_F0),
    L4,
    L4,
    L4,
    TO(GOOD, AFTER_F4),
    BAD,
    BAD,
    BAD,
    FOUR(BAD),
    FOUR(BAD)};

#define BLOCK 64u

/* Are the bytes of a block all 1..127? */
static inline bool is_plain(const unsigned char *s)
{
#ifdef __SSE2__
    /* As signed bytes those are exactly the ones above 0: ASCII and no NUL in one comparison. */
    const __m128i zero = _mm_setzero_si128();
    const __m128i *p = (const __m128i *)(const void *)s;
    __m128i a = _mm_and_si128(_mm_cmpgt_epi8(_mm_loadu_si128(p), zero), _mm_cmpgt_epi8(_mm_loadu_si128(p + 1), zero));
    __m128i b =
        _mm_and_si128(_mm_cmpgt_epi8(_mm_loadu_si128(p + 2), zero), _mm_cmpgt_epi8(_mm_loadu_si128(p + 3), zero));
    return _mm_movemask_epi8(_mm_and_si128(a, b)) == 0xFFFF;
#else
    /* A high bit stays set where a byte is above 127, or is 0 and makes the subtraction borrow. */
    uint64_t any = 0, w;
    for (unsigned i = 0; i < BLOCK; i += 8) {
        memcpy(&w, s + i, sizeof w);
        any |= w | (w - 0x0101010101010101u);
    }
    return (any & 0x8080808080808080u) == 0;
#endif
}

/* The exact place, from I, where a character starts. */
static size_t find_bad(const unsigned char *s, size_t i, size_t n)
{
    while (i < n) {
        size_t length = s[i] - 1u < 0x7Fu ? 1 : sequence(s + i, n - i);
        if (length == 0)
            return i;
        i += length;
    }
    return n;
}

size_t text_utf8_valid(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    uint64_t state = GOOD;
    size_t i = 0;
    size_t start = 0; /* of a character, at or before i: all before it is valid */
    while (n - i >= BLOCK) {
        if ((state & 63) == GOOD) {
            start = i;
            if (is_plain(s + i)) {
                i += BLOCK;
                continue;
            }
        }
        for (size_t end = i + BLOCK; i < end; i++)
            state = steps[s[i]] >> (state & 63);
        if ((state & 63) == BAD)
            return find_bad(s, start, n);
    }
    for (; i < n; i++)
        state = steps[s[i]] >> (state & 63);
    return (state & 63) == GOOD ? n : find_bad(s, start, n);
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
