/*
 * scan.c -- one quick look at a block of text, so that the usual text pays for no rare case.
 *
 * libcsv calls a function for every byte to learn that spaces are data. Without one it trims them; but it can trim only
 * a run of spaces that begins behind a delimiter or line end, or ends before one. Where there is none, both ways give
 * the same cells. (Spaces behind a closing quote end before one of these too, or are refused in strict mode.)
 */
#include "inspect_internal.h"

#define LANES 32
typedef uint8_t lanes __attribute__((vector_size(LANES)));

struct seen {
    lanes high, space, cr;
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
    struct seen seen = {zero, zero, zero};
    for (size_t i = 0; i < n; i += LANES) {
        lanes v, b, a; /* the bytes, those before and those after them */
        memcpy(&v, s + i, LANES);
        memcpy(&b, s + i - 1, LANES);
        memcpy(&a, s + i + 1, LANES);
        lanes edge = (lanes)(a == d) | (lanes)(b == d) | (lanes)(a == lf) | (lanes)(b == lf) | (lanes)(a == cr) |
                     (lanes)(b == cr);
        seen.space |= ((lanes)(v == blank) | (lanes)(v == tab)) & edge;
        seen.cr |= (lanes)(v == cr) & ~(lanes)(a == lf);
        seen.high |= (v & 0x80) | (lanes)(v == zero);
    }
    return any(&seen.high) * SCAN_HIGH | any(&seen.space) * SCAN_SPACE | any(&seen.cr) * SCAN_CR;
}

typedef void scan_fn(const char *text, size_t size, uint8_t delimiter, uint8_t *ret_flags);

static inline __attribute__((always_inline)) void scan_all(const char *text, size_t size, uint8_t delimiter,
                                                           uint8_t *ret_flags)
{
    for (size_t pos = 0; pos < size; pos += SCAN_CHUNK)
        ret_flags[pos / SCAN_CHUNK] =
            (uint8_t)scan_chunk(text + pos, size - pos < SCAN_CHUNK ? size - pos : SCAN_CHUNK, delimiter);
}

static void scan_plain(const char *text, size_t size, uint8_t delimiter, uint8_t *ret_flags)
{
    scan_all(text, size, delimiter, ret_flags);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void scan_avx2(const char *text, size_t size, uint8_t delimiter,
                                                      uint8_t *ret_flags)
{
    scan_all(text, size, delimiter, ret_flags);
}
#endif

void scan_block(const char *text, size_t size, char delimiter, uint8_t *ret_flags)
{
    scan_fn *scan = scan_plain;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        scan = scan_avx2;
#endif
    scan(text, size, (uint8_t)delimiter, ret_flags);
}
