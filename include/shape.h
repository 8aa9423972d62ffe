/*
 * shape.h -- what a file is: dialect, columns, the types its values allow.
 *
 * Made by inspect from the head of a file (provisional) or from all of it
 * (`is_whole`); lives in the job's arena.
 */
#ifndef CHUTE_SHAPE_H
#define CHUTE_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Which kinds of value every non-null cell of a column can be read as without
 * loss. A column starts with KIND_ANY and each value takes bits away; 0 is text.
 */
enum kind {
    KIND_INT = 1u << 0,         /* int64, no '+', no leading zeros, no "-0" */
    KIND_DECIMAL = 1u << 1,     /* [-]digits[.digits], any number of digits, no leading zeros */
    KIND_DOUBLE = 1u << 2,      /* a KIND_DECIMAL of at most 15 significant digits */
    KIND_BOOL = 1u << 3,        /* true or false in any case */
    KIND_DATE = 1u << 4,        /* YYYY-MM-DD, a real date */
    KIND_TIMESTAMP = 1u << 5,   /* YYYY-MM-DD[ T]HH:MM[:SS[.fraction]], no zone */
    KIND_TIMESTAMPTZ = 1u << 6, /* the same with Z or +HH[:MM] */
    KIND_ANY = (1u << 7) - 1
};

enum encoding { ENC_UTF8, ENC_UTF16, ENC_WINDOWS_1250, ENC_WINDOWS_1252, ENC_ISO_8859_1, ENC_ISO_8859_2 };
enum compression { COMPRESSION_NONE, COMPRESSION_GZIP, COMPRESSION_ZSTD };

struct dialect {
    char delimiter;
    char quote;
    enum encoding encoding;
    enum compression compression;
    bool has_bom;
    bool ends_cr; /* lines end with a lone CR (old Macintosh) */
};

struct column {
    const char *name; /* made unique and non-blank, as the specification says; not yet legalised for a destination */
    unsigned kinds;   /* enum kind bits that still hold */
    bool has_value;   /* some cell was not null; false: kinds means nothing, the column is text */
    bool is_made_up;  /* the file has no name here, or one that another column has: NAME is ours */
};

struct shape {
    struct dialect dialect;
    struct column *columns;
    size_t column_count;
    uint64_t records; /* records behind KINDS: of the head, or of the file when is_whole */
    bool is_whole;    /* KINDS speak for the whole file */
    bool has_hash;    /* HASH is the hash of the whole file's bytes as they are on disk */
    uint8_t hash[16]; /* XXH3-128, canonical (big endian) form */
};

#endif
