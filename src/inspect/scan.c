/*
 * scan.c -- one quick look at a block of text, so that the usual text pays for no rare case.
 *
 * libcsv calls a function for every byte to learn that spaces are data. Without one it trims them; but it can trim only
 * a run of spaces that begins behind a delimiter or line end, or ends before one. Where there is none, both ways give
 * the same cells. (Spaces behind a closing quote end before one of these too, or are refused in strict mode.)
 */
#include "inspect_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES 32
typedef uint8_t lanes __attribute__((vector_size(LANES)));

struct seen {
    lanes high, nul, space, cr;
};

static inline __attribute__((always_inline)) unsigned any(const lanes *v)
{
    uint64_t words[LANES / 8], all = 0;
    memcpy(words, v, LANES);
    for (int i = 0; i < LANES / 8; i++)
        all |= words[i];
    return all != 0;
}

static inline __attribute__((always_inline)) unsigned scan_chunk(const char *s, size_t n, uint8_t delimiter)
{
    const lanes zero = {0};
    const lanes d = zero + delimiter, lf = zero + (uint8_t)'\n', cr = zero + (uint8_t)'\r';
    const lanes tab = zero + (uint8_t)(delimiter == '\t' ? ' ' : '\t');
    const lanes blank = zero + (uint8_t)(delimiter == ' ' ? '\t' : ' ');
    struct seen seen = {zero, zero, zero, zero};
    for (size_t i = 0; i < n; i += LANES) {
        lanes v, b, a; /* the bytes, those before and those after them */
        memcpy(&v, s + i, LANES);
        memcpy(&b, s + i - 1, LANES);
        memcpy(&a, s + i + 1, LANES);
        lanes edge = (lanes)(a == d) | (lanes)(b == d) | (lanes)(a == lf) | (lanes)(b == lf) | (lanes)(a == cr) |
                     (lanes)(b == cr);
        seen.space |= ((lanes)(v == blank) | (lanes)(v == tab)) & edge;
        seen.cr |= (lanes)(v == cr) & ~(lanes)(a == lf);
        seen.high |= v & 0x80;
        seen.nul |= (lanes)(v == zero);
    }
    return any(&seen.high) * SCAN_HIGH | any(&seen.nul) * SCAN_NUL | any(&seen.space) * SCAN_SPACE |
           any(&seen.cr) * SCAN_CR;
}

static inline __attribute__((always_inline)) unsigned scan_all(const char *text, size_t size, uint8_t delimiter,
                                                               uint8_t *ret_flags)
{
    unsigned all = 0;
    for (size_t pos = 0; pos < size; pos += SCAN_CHUNK) {
        unsigned flags = scan_chunk(text + pos, size - pos < SCAN_CHUNK ? size - pos : SCAN_CHUNK, delimiter);
        ret_flags[pos / SCAN_CHUNK] = (uint8_t)flags;
        all |= flags;
    }
    return all;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static unsigned scan_avx2(const char *text, size_t size, uint8_t delimiter,
                                                          uint8_t *ret_flags)
{
    return scan_all(text, size, delimiter, ret_flags);
}
#endif

unsigned scan_block(const char *text, size_t size, char delimiter, uint8_t *ret_flags)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return scan_avx2(text, size, (uint8_t)delimiter, ret_flags);
#endif
    return scan_all(text, size, (uint8_t)delimiter, ret_flags);
}

/* ---- UTF-8, 32 bytes at a time */

#if defined(__x86_64__)
/*
 * The method of J. Keiser and D. Lemire, "Validating UTF-8 in less than one instruction per byte" (2021): each pair of
 * neighbouring bytes is looked up by three of its four halves; a bit that all three tables have is an error of that
 * kind. What needs a third or fourth byte is checked by its distance.
 */
enum {
    TOO_SHORT = 1 << 0, /* a lead byte without its continuation */
    TOO_LONG = 1 << 1,  /* a continuation without a lead byte */
    OVERLONG_3 = 1 << 2,
    TOO_LARGE = 1 << 3,
    SURROGATE = 1 << 4,
    OVERLONG_2 = 1 << 5,
    TOO_LARGE_1000 = 1 << 6, /* beyond U+10FFFF with a second byte of 0x80..0x8F; an overlong form of four bytes too */
    OVERLONG_4 = 1 << 6,
    TWO_CONTINUATIONS = 1 << 7, /* right only as a third or fourth byte */
    ANY_LOW = TOO_SHORT | TOO_LONG | TWO_CONTINUATIONS,
    LARGE = TOO_LARGE | TOO_LARGE_1000,
    SECOND = TOO_LONG | OVERLONG_2 | TWO_CONTINUATIONS
};

static const uint8_t first_high[16] = {TOO_LONG,
                                       TOO_LONG,
                                       TOO_LONG,
                                       TOO_LONG,
                                       TOO_LONG,
                                       TOO_LONG,
                                       TOO_LONG,
                                       TOO_LONG,
                                       TWO_CONTINUATIONS,
                                       TWO_CONTINUATIONS,
                                       TWO_CONTINUATIONS,
                                       TWO_CONTINUATIONS,
                                       TOO_SHORT | OVERLONG_2,
                                       TOO_SHORT,
                                       TOO_SHORT | OVERLONG_3 | SURROGATE,
                                       TOO_SHORT | LARGE | OVERLONG_4};
static const uint8_t first_low[16] = {ANY_LOW | OVERLONG_3 | OVERLONG_2 | OVERLONG_4,
                                      ANY_LOW | OVERLONG_2,
                                      ANY_LOW,
                                      ANY_LOW,
                                      ANY_LOW | TOO_LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE | SURROGATE,
                                      ANY_LOW | LARGE,
                                      ANY_LOW | LARGE};
static const uint8_t second_high[16] = {TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        SECOND | OVERLONG_3 | TOO_LARGE_1000 | OVERLONG_4,
                                        SECOND | OVERLONG_3 | TOO_LARGE,
                                        SECOND | SURROGATE | TOO_LARGE,
                                        SECOND | SURROGATE | TOO_LARGE,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT,
                                        TOO_SHORT};

#define AVX2 __attribute__((target("avx2")))

AVX2 static bool utf8_avx2(const char *text, size_t size)
{
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)first_high));
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)first_low));
    const __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)second_high));
    const __m256i half = _mm256_set1_epi8(0x0F), top = _mm256_set1_epi8((char)0x80);
    __m256i wrong = _mm256_setzero_si256(), before = _mm256_setzero_si256();
    for (size_t i = 0; i <= size; i += 32) { /* one byte further: a sequence that the end cuts meets what follows */
        __m256i now = _mm256_loadu_si256((const __m256i *)(const void *)(text + i));
        __m256i across = _mm256_permute2x128_si256(before, now, 0x21);
        __m256i one = _mm256_alignr_epi8(now, across, 15), two = _mm256_alignr_epi8(now, across, 14),
                three = _mm256_alignr_epi8(now, across, 13);
        __m256i pair = _mm256_and_si256(
            _mm256_and_si256(_mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(one, 4), half)),
                             _mm256_shuffle_epi8(low, _mm256_and_si256(one, half))),
            _mm256_shuffle_epi8(second, _mm256_and_si256(_mm256_srli_epi16(now, 4), half)));
        __m256i third = _mm256_subs_epu8(two, _mm256_set1_epi8((char)(0xE0 - 0x80)));
        __m256i fourth = _mm256_subs_epu8(three, _mm256_set1_epi8((char)(0xF0 - 0x80)));
        __m256i must = _mm256_and_si256(_mm256_or_si256(third, fourth), top);
        wrong = _mm256_or_si256(wrong, _mm256_xor_si256(must, pair));
        before = now;
    }
    return _mm256_testz_si256(wrong, wrong) != 0;
}
#endif

bool scan_is_utf8(const char *text, size_t size)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return utf8_avx2(text, size);
#endif
    (void)text;
    (void)size;
    return false;
}

/* ---- spaces inside quotes */

#if defined(__x86_64__)
struct bits { /* of 64 bytes */
    uint64_t quotes, edges, spaces;
};

struct wanted {
    char delimiter, quote, blank, other;
};

typedef struct bits bits_fn(const char *s, const struct wanted *w);

/* Bit I: an odd number of bits of W up to and including I. */
static inline __attribute__((always_inline)) uint64_t parity_up_to(uint64_t w)
{
    for (unsigned i = 1; i < 64; i *= 2)
        w ^= w << i;
    return w;
}

static inline __attribute__((always_inline)) bool spaces_matter(const char *s, size_t n, const struct wanted *w,
                                                                bool in_quotes, bits_fn *bits_of)
{
    uint64_t inside_before = in_quotes ? ~(uint64_t)0 : 0, edge_before = 1;
    for (size_t i = 0; i < n; i += 64) {
        struct bits bits = bits_of(s + i, w);
        char next = s[i + 64];
        uint64_t edge_next = next == w->delimiter || next == '\n' || next == '\r';
        uint64_t inside = parity_up_to(bits.quotes) ^ inside_before;
        uint64_t touched = bits.edges << 1 | edge_before | bits.edges >> 1 | edge_next << 63;
        uint64_t matter = bits.spaces & touched & ~inside;
        if (n - i < 64)
            matter &= ~(uint64_t)0 >> (64 - (n - i));
        if (matter != 0)
            return true;
        inside_before = (inside >> 63) != 0 ? ~(uint64_t)0 : 0;
        edge_before = bits.edges >> 63;
    }
    return false;
}

static inline __attribute__((always_inline)) struct bits bits_sse2(const char *s, const struct wanted *w)
{
    struct bits bits = {0, 0, 0};
    for (unsigned i = 0; i < 64; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(s + i));
        __m128i quotes = _mm_cmpeq_epi8(v, _mm_set1_epi8(w->quote));
        __m128i edges = _mm_or_si128(
            _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8(w->delimiter)), _mm_cmpeq_epi8(v, _mm_set1_epi8('\n'))),
            _mm_cmpeq_epi8(v, _mm_set1_epi8('\r')));
        __m128i spaces =
            _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8(w->blank)), _mm_cmpeq_epi8(v, _mm_set1_epi8(w->other)));
        bits.quotes |= (uint64_t)(uint32_t)_mm_movemask_epi8(quotes) << i;
        bits.edges |= (uint64_t)(uint32_t)_mm_movemask_epi8(edges) << i;
        bits.spaces |= (uint64_t)(uint32_t)_mm_movemask_epi8(spaces) << i;
    }
    return bits;
}

AVX2 static inline __attribute__((always_inline)) struct bits bits_avx2(const char *s, const struct wanted *w)
{
    struct bits bits = {0, 0, 0};
    for (unsigned i = 0; i < 64; i += 32) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(s + i));
        __m256i quotes = _mm256_cmpeq_epi8(v, _mm256_set1_epi8(w->quote));
        __m256i edges = _mm256_or_si256(_mm256_or_si256(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(w->delimiter)),
                                                        _mm256_cmpeq_epi8(v, _mm256_set1_epi8('\n'))),
                                        _mm256_cmpeq_epi8(v, _mm256_set1_epi8('\r')));
        __m256i spaces = _mm256_or_si256(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(w->blank)),
                                         _mm256_cmpeq_epi8(v, _mm256_set1_epi8(w->other)));
        bits.quotes |= (uint64_t)(uint32_t)_mm256_movemask_epi8(quotes) << i;
        bits.edges |= (uint64_t)(uint32_t)_mm256_movemask_epi8(edges) << i;
        bits.spaces |= (uint64_t)(uint32_t)_mm256_movemask_epi8(spaces) << i;
    }
    return bits;
}

static bool spaces_matter_sse2(const char *s, size_t n, const struct wanted *w, bool in_quotes)
{
    return spaces_matter(s, n, w, in_quotes, bits_sse2);
}

AVX2 static bool spaces_matter_avx2(const char *s, size_t n, const struct wanted *w, bool in_quotes)
{
    return spaces_matter(s, n, w, in_quotes, bits_avx2);
}

bool scan_spaces_matter(const char *s, size_t n, char delimiter, char quote, bool in_quotes)
{
    const struct wanted wanted = {delimiter, quote, delimiter == ' ' ? '\t' : ' ', delimiter == '\t' ? ' ' : '\t'};
    return __builtin_cpu_supports("avx2") ? spaces_matter_avx2(s, n, &wanted, in_quotes)
                                          : spaces_matter_sse2(s, n, &wanted, in_quotes);
}
#else
bool scan_spaces_matter(const char *s, size_t n, char delimiter, char quote, bool in_quotes)
{
    (void)s, (void)n, (void)delimiter, (void)quote, (void)in_quotes;
    return true;
}
#endif
