/*
 * option.h -- options as data: one table drives parsing, defaults, `chute help`,
 * the man page, the reference in docs/ and the test that compares them.
 *
 * A table ends with an entry whose name is NULL. Each value is parsed into the
 * struct at OFFSET. Strings are owned by the configuration's arena.
 */
#ifndef CHUTE_OPTION_H
#define CHUTE_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_type {
    OPT_STRING,   /* const char * */
    OPT_PATH,     /* const char *, made absolute against the configuration file's folder */
    OPT_SECRET,   /* const char *; NAME_file is accepted too and read at load time; never shown */
    OPT_BOOL,     /* bool */
    OPT_INT,      /* int64_t */
    OPT_SIZE,     /* uint64_t bytes: 64KiB 10MiB 1GiB, plain number */
    OPT_DURATION, /* uint64_t milliseconds: 500ms 5s 10m 2h 7d */
    OPT_ENUM,     /* int: index into CHOICES */
    OPT_CHAR,     /* char: one ASCII character, or "\t"; CHOICES may give words that stand for 0 ("auto") */
    OPT_STRINGS,  /* struct option_strings */
    OPT_FLOAT,    /* double */
    OPT_GROUP,    /* nested mapping: the struct at OFFSET is described by SUB */
    OPT_ENUM_OR   /* int as OPT_ENUM at OFFSET, or a mapping described by SUB, parsed into the same enclosing struct
                     at its own offsets; the int then becomes OR_VALUE */
    ,
    OPT_TYPES, /* struct option_types: `text`, `infer`, or a mapping column -> type name */
    OPT_PATHS, /* struct option_strings: a list of paths, each made absolute as OPT_PATH */
    OPT_PAIRS  /* struct option_pairs: a mapping of names to texts */
};

struct option_strings {
    const char *const *items; /* NULL if empty */
    size_t count;
};

struct option_pair {
    const char *name;
    const char *value;
};
struct option_pairs {
    const struct option_pair *items; /* NULL if empty; in the order of the file */
    size_t count;
};

enum types_policy { TYPES_INFER, TYPES_TEXT, TYPES_MAP };
struct option_type_entry {
    const char *column;
    const char *type; /* bigint double decimal boolean date timestamp timestamptz text */
};
struct option_types {
    enum types_policy policy; /* TYPES_MAP: columns that are not named are inferred */
    const struct option_type_entry *entries;
    size_t count;
};

enum option_flags {
    OPT_REQUIRED = 1 << 0,
};

struct option {
    const char *name;
    enum option_type type;
    size_t offset;
    const char *default_text;   /* parsed like a value from the file; NULL: zero/absent */
    const char *const *choices; /* OPT_ENUM, OPT_ENUM_OR, OPT_CHAR; NULL-terminated */
    const struct option *sub;   /* OPT_GROUP, OPT_ENUM_OR */
    int or_value;               /* OPT_ENUM_OR */
    unsigned flags;
    const char *help; /* one or more sentences for a person */
    int64_t min, max; /* for INT, SIZE, DURATION; both 0: unchecked */
};

#endif
