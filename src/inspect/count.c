/*
 * count.c -- pass over whole records of usual text by their bits, for a pass that nobody takes cells from.
 *
 * Why: a file that goes up as it is must be read to its end first, so that nothing bad is sent, and libcsv needs ten
 * times longer for that than the kernel to hand out the bytes. Most records need no parser: quotes stand where a field
 * begins and ends, each line end outside of them ends a record, the delimiters outside of them count its fields.
 *
 * Whatever else there is in a record (a quote inside an unquoted field, text behind a closing quote, another number of
 * fields, no byte at all, a CR without LF, a NUL, a byte that is not UTF-8, more than max_row, no line end in this
 * block of text) leaves it to the parser as if this file were not here. So this file says nothing about a record but
 * "good": it has no error texts, no options, and must never be the one that is right where the parser is wrong.
 */
#include "inspect_internal.h"

#include "text.h"

#include <endian.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define STEP 64 /* bytes at a time, one bit each; no more than TEXT_PAD, which is read beyond the end of the text */

struct marks { /* of STEP bytes; bit I is byte I */
    uint64_t quotes, delimiters, lfs, crs, nuls;
};

struct signs {
    char delimiter, quote;
};

typedef struct marks marks_fn(const char *s, const struct signs *signs);
typedef uint64_t parity_fn(uint64_t bits); /* bit I: is the number of BITS up to and including I odd? */

/* ---- the loop: inlined once for each pair of functions below */

/* What a step tells the next one about its last byte; in bit 0, or all bits. */
struct before {
    uint64_t inside; /* all bits: within quotes */
    uint64_t
        field_ends;  /* a quote may follow: a delimiter, a line end, or a closing quote that this makes a doubled one */
    uint64_t closes; /* a closing quote */
    uint64_t cr;
};

/* Bits of bytes at which the text is not what count.c understands; the fault is in the record that has this byte. */
static inline __attribute__((always_inline)) uint64_t odd_bytes(const struct marks *m, uint64_t inside,
                                                                struct before *before)
{
    uint64_t opens = m->quotes & inside, closes = m->quotes & ~inside;
    uint64_t ends = m->delimiters | m->lfs, field_ends = (ends & ~inside) | closes;
    uint64_t odd = (opens & ~(field_ends << 1 | before->field_ends)) |
                   ((closes << 1 | before->closes) & ~(ends | m->crs | m->quotes)) |
                   ((m->crs << 1 | before->cr) & ~m->lfs) | m->nuls;
    before->inside = (uint64_t)0 - (inside >> 63);
    before->field_ends = field_ends >> 63;
    before->closes = closes >> 63;
    before->cr = m->crs >> 63;
    return odd;
}

/* A line end alone is no record. */
static inline bool is_blank_line(const char *s, size_t n)
{
    return n <= 2 && (n == 1 || s[0] == '\r');
}

static inline unsigned bits_in(uint64_t bits)
{
    return (unsigned)__builtin_popcountll(bits);
}

/* Pass over good records from the text position up to END. */
static inline __attribute__((always_inline)) void count(struct parser *p, size_t end, marks_fn *marks_of,
                                                        parity_fn *parity_of)
{
    const struct signs signs = {p->dialect->delimiter, p->dialect->quote};
    const char *s = p->text + p->text_pos;
    const size_t size = end - p->text_pos;
    struct before before = {.field_ends = 1};
    size_t start = 0;                   /* of the record at hand: all before it is good */
    uint64_t lines = 0, all_lines = 0;  /* line ends up to START, and in the steps so far */
    uint64_t delimiters = 0, first = 0; /* outside of quotes: in the steps so far, and up to START */
    for (size_t i = 0; i < size; i += STEP) {
        const struct marks m = marks_of(s + i, &signs);
        uint64_t inside = parity_of(m.quotes) ^ before.inside;
        uint64_t odd = odd_bytes(&m, inside, &before);
        uint64_t outer = m.delimiters & ~inside, ends = m.lfs & ~inside;
        if (__builtin_expect(odd != 0, 0))
            ends &= (odd & (0 - odd)) - 1;
        if (__builtin_expect(size - i < STEP, 0))
            ends &= ((uint64_t)1 << (size - i)) - 1;
        for (; ends != 0; ends &= ends - 1) {
            uint64_t upto = ends ^ (ends - 1); /* the line end and all before it */
            size_t next = i + bits_in(upto), n = next - start;
            uint64_t last = delimiters + bits_in(outer & upto);
            if (last - first + 1 != p->columns || n > p->csv_options->max_row || is_blank_line(s + start, n))
                goto out;
            parser_good_record(p, s + start, n);
            start = next;
            first = last;
            lines = all_lines + bits_in(m.lfs & upto);
        }
        if (__builtin_expect(odd != 0, 0))
            goto out;
        delimiters += bits_in(outer);
        all_lines += bits_in(m.lfs);
    }
out:
    if (start == 0)
        return;
    p->text_pos += start;
    p->line += lines;
    p->after_cr = false;
}

static uint64_t parity_by_shifts(uint64_t bits)
{
    for (unsigned i = 1; i < 64; i *= 2)
        bits ^= bits << i;
    return bits;
}

/* ---- any machine: eight bytes at a time */

#define EACH(byte) ((uint64_t)(byte)*0x0101010101010101u)

/* Bit I: byte I of WORD, counted from the low end, is BYTE. */
static inline uint64_t equal_bits(uint64_t word, char byte)
{
    uint64_t x = word ^ EACH((uint8_t)byte), low = EACH(0x7F);
    uint64_t is_zero = ~(((x & low) + low) | x | low); /* 0x80 in each byte of X that is 0; no carry leaves a byte */
    return ((is_zero >> 7) * 0x0102040810204080u) >> 56;
}

static struct marks marks_by_words(const char *s, const struct signs *signs)
{
    struct marks m = {0, 0, 0, 0, 0};
    for (unsigned i = 0; i < STEP; i += 8) {
        uint64_t word;
        memcpy(&word, s + i, sizeof word);
        word = le64toh(word);
        m.quotes |= equal_bits(word, signs->quote) << i;
        m.delimiters |= equal_bits(word, signs->delimiter) << i;
        m.lfs |= equal_bits(word, '\n') << i;
        m.crs |= equal_bits(word, '\r') << i;
        m.nuls |= equal_bits(word, '\0') << i;
    }
    return m;
}

static void count_by_words(struct parser *p, size_t end)
{
    count(p, end, marks_by_words, parity_by_shifts);
}

/* ---- x86-64 */

#if defined(__x86_64__)
static inline __attribute__((always_inline)) uint64_t equal_16(__m128i v, char byte)
{
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_set1_epi8(byte)));
}

static inline __attribute__((always_inline)) struct marks marks_sse2(const char *s, const struct signs *signs)
{
    struct marks m = {0, 0, 0, 0, 0};
    for (unsigned i = 0; i < STEP; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(s + i));
        m.quotes |= equal_16(v, signs->quote) << i;
        m.delimiters |= equal_16(v, signs->delimiter) << i;
        m.lfs |= equal_16(v, '\n') << i;
        m.crs |= equal_16(v, '\r') << i;
        m.nuls |= equal_16(v, '\0') << i;
    }
    return m;
}

static void count_sse2(struct parser *p, size_t end)
{
    count(p, end, marks_sse2, parity_by_shifts);
}

#define AVX2 __attribute__((target("avx2,pclmul,popcnt,bmi")))

AVX2 static inline __attribute__((always_inline)) uint64_t equal_32(__m256i v, char byte)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(byte)));
}

AVX2 static inline __attribute__((always_inline)) uint64_t equal_64(__m256i low, __m256i high, char byte)
{
    return equal_32(low, byte) | equal_32(high, byte) << 32;
}

AVX2 static inline __attribute__((always_inline)) struct marks marks_avx2(const char *s, const struct signs *signs)
{
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)s);
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(s + 32));
    struct marks m = {equal_64(low, high, signs->quote), equal_64(low, high, signs->delimiter),
                      equal_64(low, high, '\n'), equal_64(low, high, '\r'), 0};
    if (__builtin_expect(equal_32(_mm256_min_epu8(low, high), '\0') != 0, 0))
        m.nuls = equal_64(low, high, '\0');
    return m;
}

/* A product without carries with all ones is that sum of bits. */
AVX2 static inline __attribute__((always_inline)) uint64_t parity_by_product(uint64_t bits)
{
    __m128i product = _mm_clmulepi64_si128(_mm_set_epi64x(0, (long long)bits), _mm_set1_epi8((char)0xFF), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}

AVX2 static void count_avx2(struct parser *p, size_t end)
{
    count(p, end, marks_avx2, parity_by_product);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("popcnt") &&
           __builtin_cpu_supports("bmi");
}
#endif

/* ---- the entrance */

enum count_how count_how;

bool count_knows(const struct dialect *dialect)
{
    char d = dialect->delimiter, q = dialect->quote;
    return d != q && d != '\0' && q != '\0' && d != '\n' && d != '\r' && q != '\n' && q != '\r';
}

void count_records(struct parser *p)
{
    if (!p->is_utf8 && p->valid_to <= p->text_pos)
        p->valid_to = p->text_pos + text_utf8_valid(p->text + p->text_pos, p->text_size - p->text_pos);
    size_t end = p->is_utf8 ? p->text_size : p->valid_to;
#if defined(__x86_64__)
    if (count_how != COUNT_BY_WORDS) {
        if (count_how == COUNT_BEST && has_avx2())
            count_avx2(p, end);
        else
            count_sse2(p, end);
        return;
    }
#endif
    count_by_words(p, end);
}
