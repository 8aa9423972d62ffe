/*
 * inspect_internal.h -- the parts of the room: bytes -> text -> records -> batches.
 *
 * stream.c   bytes of the file, decompressed and re-encoded: a stream of text; the hash of the bytes on the way
 * decode.c   gzip and zstd
 * scan.c     one quick look at a block of text: what needs the careful path
 * parser.c   libcsv, line by line: records with their places, bad ones told apart
 * fill.c     blocks of text in, batches of rows out
 * count.c    whole records passed over without libcsv, where nobody takes cells
 * kind.c     which kinds of value a column can still have
 * sniff.c    delimiter and header from the head
 * head.c, rows.c  the two public entrances
 *
 * Events (format json) have a stream of text as well, and then parts of their own: event_internal.h.
 */
#ifndef CHUTE_INSPECT_INTERNAL_H
#define CHUTE_INSPECT_INTERNAL_H

#include "content_hash.h"
#include "inspect.h"

#include <csv.h>
#include <iconv.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)256 * 1024) /* read at a time, and text at a time */
#define HEAD_BYTES ((size_t)1024 * 1024)
#define MAX_COLUMNS 32767u       /* what SQLite can be built for at most; bounds memory by columns */
#define MAX_BAD_FIELDS 65536u    /* fields of one rejected row that are kept */
#define PAD_BYTES 16             /* readable bytes behind every value, for loads of 8 bytes */
#define SCAN_CHUNK ((size_t)128) /* about a line */
#define TEXT_PAD 64              /* writable bytes before and behind every block of text */

/* Sizes that tests change to reach every boundary; 0 or -1: as usual. Not for use outside tests. */
struct inspect_knobs {
    size_t block;       /* bytes per read and per block of text */
    size_t batch_bytes; /* cell data per batch */
    int threads;        /* 0 never, 1 always, -1 by size */
};
extern struct inspect_knobs inspect_knobs;
extern enum count_how { COUNT_BEST, COUNT_BY_SSE2, COUNT_BY_WORDS } count_how; /* what count.c may use; for tests */

/* ---- decode.c */
struct decoder; /* gzip or zstd */
struct bytes_in {
    const uint8_t *next;
    size_t avail;
};
enum err_code decoder_new(enum compression compression, struct decoder **ret, struct err *err);
void decoder_free(struct decoder *d);
/*
 * Decode from IN (advanced) into OUT; 0 bytes with IN used up: wants more. IN_END: nothing follows IN; then 0 bytes
 * mean the proper end, and a stream that stops early is ERR_INCOMPLETE. ERR_INPUT: damaged.
 */
enum err_code decoder_run(struct decoder *d, struct bytes_in *in, bool in_end, uint8_t *out, size_t size,
                          size_t *ret_size, struct err *err);

/* ---- stream.c */
struct text_stream {
    int fd;
    enum encoding encoding;
    enum compression compression;
    bool has_bom;
    uint64_t disk_offset;  /* bytes of the file read so far */
    uint64_t first_offset; /* of the first text byte: behind a byte order mark */
    bool disk_end;
    bool started;
    bool ended;
    struct content_hash *hash;
    struct decoder *decoder;
    uint8_t *raw; /* compressed bytes */
    struct bytes_in raw_in;
    iconv_t conv;
    bool has_conv;
    char *enc; /* decompressed, not yet re-encoded */
    size_t enc_size, enc_pos, enc_end;
    bool enc_over;
    uint64_t enc_offset; /* of enc[enc_pos] in the decompressed bytes */
    size_t block;
};
enum err_code text_open(struct text_stream *t, int fd, enum encoding encoding, struct err *err);
void text_close(struct text_stream *t);
/* The next text into BUF (SIZE >= 4); 0 bytes at the end. UTF-8 is not checked here when the file is said to be UTF-8.
 */
enum err_code text_read(struct text_stream *t, char *buf, size_t size, size_t *ret_size, struct err *err);
void text_hash(const struct text_stream *t, uint8_t ret[16]);

/* ---- scan.c */
enum scan_flags {
    SCAN_HIGH = 1,  /* a byte >= 0x80 */
    SCAN_NUL = 2,   /* a NUL */
    SCAN_SPACE = 4, /* a space or tab that touches a delimiter, a line end or the edge of the block */
    SCAN_CR = 8,    /* a CR that no LF follows (or that ends the block) */
    SCAN_ALL = SCAN_HIGH | SCAN_NUL | SCAN_SPACE | SCAN_CR /* look closely: never wrong, but slower */
};
/*
 * Flags of every SCAN_CHUNK of TEXT[0..SIZE), and of all of it. TEXT[-1] and TEXT[SIZE..SIZE+TEXT_PAD) must be
 * readable, here and below; a line end before and delimiters behind make the careful answer for the edges.
 */
unsigned scan_block(const char *text, size_t size, char delimiter, uint8_t *ret_flags);
/* True: TEXT is UTF-8. False: it is not, or this machine has no quick way to know. */
bool scan_is_utf8(const char *text, size_t size);
/*
 * Of a piece (a line, or a part of one that a block cut) with SCAN_SPACE: is such a space outside of quotes? Quotes are
 * counted, which is right up to the first quote inside an unquoted field. May say yes where it is no.
 */
bool scan_spaces_matter(const char *s, size_t n, char delimiter, char quote, bool in_quotes);

/* ---- kind.c */
unsigned kind_of(const char *s, size_t n); /* enum kind bits of one non-empty value */
/* Narrow KINDS and set HAS_VALUE by ROWS cells, STRIDE apart. Values have PAD_BYTES readable behind them. */
void kind_narrow(unsigned *kinds, bool *has_value, const char *const *value, const uint32_t *length, size_t rows,
                 size_t stride);

/* ---- batches */
struct bad_row {
    uint64_t record, line, offset;
    char *reason;
    const char **value;
    uint32_t *length;
    size_t fields;
};
struct batch {
    struct row_batch rows; /* what the puller sees */
    char *data;            /* cell bytes, then PAD_BYTES */
    size_t data_size, data_used;
    size_t usual_size;
    size_t rows_max;
    const char **value;
    uint32_t *length;
    uint64_t *record, *line, *offset;
    struct bad_row *bad;
    size_t bad_count, bad_max;
    unsigned *kinds; /* of all records up to here */
    bool *has_value;
    uint64_t records;   /* data records up to here */
    uint64_t odd;       /* places up to here where bytes and rows are not the same to everybody, see rows.h */
    uint64_t loose;     /* and quotes inside unquoted fields */
    uint64_t bytes;     /* of the file, read up to here */
    bool is_last;       /* the text ended, or ERR */
    struct err err;     /* what ended the pass */
    struct batch *next; /* in a queue */
};
enum err_code batch_new(size_t columns, size_t data_bytes, struct batch **ret, struct err *err);
void batch_free(struct batch *b);
void batch_clear(struct batch *b); /* empty again, a grown buffer given back */

/* ---- rows.c */
/* BAD is left out if bad_rows allows one more: counted and given to the sink. ERR_INPUT: it does not; ERR_SYSTEM. */
enum err_code reject_row(struct rows *rows, const struct inspect_options *options, const struct bad_row *bad,
                         struct err *err);

/* ---- parser.c */
struct parser {
    /* set by the owner */
    const struct csv_options *csv_options;
    const struct dialect *dialect;
    size_t columns;
    bool skips_header;  /* the first record is the header */
    uint64_t bad_limit; /* how many bad rows may be skipped */
    bool keeps_bad;     /* bad rows are kept in the batch for the sink */
    const _Atomic bool *stop;
    /* A batch must grow beyond its usual size for one long row; waits until it is the only one. */
    enum err_code (*before_grow)(void *arg, struct err *err);
    void *grow_arg;
    unsigned *kinds; /* narrowed by whole batches; COLUMNS entries */
    bool *has_value;
    /* text */
    struct text_stream *stream; /* NULL: TEXT is all there is */
    char *block;                /* allocation: TEXT_PAD bytes, text, TEXT_PAD bytes */
    size_t block_size;
    char *text;
    size_t text_size, text_pos;
    bool text_ends;   /* nothing follows TEXT */
    bool is_fragment; /* the end of TEXT is not the end of the file: the record that it cuts is left out */
    uint8_t *flags;
    bool is_utf8; /* the whole block is known to be */
    size_t held;  /* a UTF-8 sequence that the end of a block cut, for the next block */
    char held_bytes[4];
    /* libcsv */
    struct csv_parser csv;
    bool has_null_words, empty_is_null;
    void (*on_field)(void *s, size_t n, void *arg);
    /* null words only: was the field quoted? Followed in the raw text of the piece, libcsv does not tell */
    const char *piece_end;
    const char *cursor; /* raw start of the next field, or the rest of one that an earlier piece began */
    bool is_carried;    /* the latter */
    bool carried_quoted, carried_closing; /* it was quoted; its last byte was a quote */
    size_t carried_length;
    /* the place */
    uint64_t line, offset; /* of the next piece */
    uint64_t line_chars;   /* characters of this line in earlier pieces */
    bool after_cr;
    /* the record */
    bool in_record, row_ended, in_quotes, in_quoted_field;
    bool skips_line; /* behind a bad quote: the rest of the line belongs to the bad record */
    uint64_t record_line, record_offset, record_bytes;
    uint64_t quote_line;
    size_t quote_field;
    size_t fields;
    const char **cell; /* of this record in the batch */
    uint32_t *cell_length;
    char bad[400];      /* why this record is bad; "": it is not */
    const char **extra; /* fields behind the last column, for the sink */
    uint32_t *extra_length;
    size_t extra_max;
    bool extra_failed;
    size_t record_start; /* of this record in the batch's data */
    uint64_t record;     /* number of the next data record */
    uint64_t bad_count;
    uint64_t odd, loose;
    bool no_kinds;
    bool header_done;
    /* a pass that nobody takes rows from: good ones are counted and dropped */
    bool skims;
    size_t valid_to;              /* without is_utf8: TEXT is UTF-8 without NUL up to here */
    const struct rows_skim *skim; /* whom to tell of cuts */
    uint64_t next_cut;            /* the first good record from this offset on is told */
    /* a record that the end of a batch cut */
    char *carry;
    size_t carry_size, carry_used;
    const char **carry_cell;
    uint32_t *carry_length;
    bool has_carry;
    struct batch *batch;
};
enum err_code parser_init(struct parser *p, struct err *err);
void parser_done(struct parser *p);
void parser_restart(struct parser *p, uint64_t first_offset);
/* One piece of text with its flags: at most one line end, at its end. The batch must have room for N bytes. */
enum err_code parser_feed(struct parser *p, const char *s, size_t n, unsigned flags, struct err *err);
enum err_code parser_finish(struct parser *p, struct err *err); /* the text is over */
/* The N bytes at S, where the parser would begin a record, are a good one that nobody wants. Lines are not counted. */
void parser_good_record(struct parser *p, const char *s, size_t n);

/* ---- fill.c */
/* Fill B (cleared) with rows. B->is_last at the end of the text or with B->err. */
void parser_fill(struct parser *p, struct batch *b);
/* Parse TEXT (TEXT_PAD writable bytes before and behind it) instead of a stream. After parser_init(). */
void parser_memory(struct parser *p, char *text, size_t size);
size_t cut_sequence(const char *s, size_t n); /* bytes at the end that begin a UTF-8 sequence and do not end it */
/* Put the place that TEXT before a damaged or wrong byte leads to before the message of ERR. */
void add_place(struct err *err, uint64_t line, uint64_t column);

/* ---- count.c */
bool count_knows(const struct dialect *dialect); /* are its delimiter and quote what count.c can look for? */
/*
 * Between two records: move the text position behind as many good ones as can be told by a quick look. Those that it
 * leaves are not bad, only somebody else's. For P->skims, P->is_utf8 or P->valid_to set for this text.
 */
void count_records(struct parser *p);

/* ---- sniff.c */
/* Choose the delimiter for TEXT; IS_WHOLE: nothing follows it. */
enum err_code sniff_delimiter(const char *text, size_t size, bool is_whole, const struct inspect_options *options,
                              char *ret_delimiter, struct err *err);
/* The header of TEXT, names made unique. *RET_COUNT 0: no record. Names in ARENA. */
enum err_code sniff_header(const char *text, size_t size, bool is_whole, char delimiter, char quote,
                           struct arena *arena, const char *const **ret_names, const bool **ret_made_up,
                           size_t *ret_count, struct err *err);
int not_a_space(unsigned char c); /* for csv_set_space_func: spaces are data */

#endif
