/*
 * config_internal.h -- what the files of this room share: the tree of a YAML text, the reader that collects every
 * mistake with its place, and the option tables.
 */
#ifndef CHUTE_CONFIG_INTERNAL_H
#define CHUTE_CONFIG_INTERNAL_H

#include "buf.h"
#include "config.h"

/* A configuration is written by a person; whatever is beyond these bounds is an accident or an attack. */
#define CONFIG_BYTES_MAX (1024 * 1024)
#define CONFIG_DEPTH_MAX 32
#define CONFIG_NODES_MAX 50000
#define CONFIG_KEYS_MAX 4096         /* of one mapping */
#define CONFIG_VALUE_MAX (64 * 1024) /* bytes of one value after its variables */
#define CONFIG_SECRET_MAX (64 * 1024)
#define CONFIG_PROBLEMS_MAX 20

enum node_kind { NODE_NULL, NODE_SCALAR, NODE_SEQUENCE, NODE_MAPPING };

/* One node of the text. Lives in the reader's scratch arena. */
struct node {
    enum node_kind kind;
    size_t line, column;       /* from 1, in characters; 0: a default, not in the file */
    const char *text;          /* scalar, before variables */
    bool is_plain;             /* scalar without quotes */
    bool is_final;             /* a default: variables are not replaced */
    struct node *first, *last; /* children of a sequence or mapping */
    size_t count;
    struct node *next; /* sibling */
    const char *key;   /* in a mapping */
    size_t key_line, key_column;
};

/* Reads one text into one configuration; remembers what was wrong. */
struct reader {
    struct arena scratch; /* the tree; gone when reading ends */
    struct arena *arena;  /* the configuration's */
    const char *file;     /* as the user wrote it, for messages; NULL: the command line */
    const char *folder;   /* absolute; relative paths start here */
    struct buf problems;
    size_t problem_count;
    struct err first;
    bool failed; /* out of memory: reported instead of everything else */
    size_t nodes;
};

/* "FILE:LINE:COLUMN: ..." ; LINE 0: without place. Counts towards the 20 that are told. */
void reader_problem(struct reader *r, size_t line, size_t column, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void reader_nomem(struct reader *r);
/* Scratch memory; notes a failure. */
void *reader_alloc(struct reader *r, size_t size);
char *reader_printf(struct reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The tree of TEXT. NULL: problems noted. IS_FINAL marks every node as a default. */
struct node *node_parse(struct reader *r, const char *text, size_t size, bool is_final);
const struct node *node_get(const struct node *mapping, const char *key);
/* "'abc'", "a list", "nothing": what stands there, for messages; never a replaced variable. */
const char *node_found(const struct node *node, char *ret, size_t size);

/* The text of a scalar with its variables replaced, in the configuration's arena; NULL: problem noted. */
const char *value_text(struct reader *r, const struct node *node, const char *where);
/* PATH absolute against FOLDER, without "." and doubled slashes; NULL: out of memory. */
char *path_absolute(struct arena *arena, const char *folder, const char *path);
/* Is PATH FOLDER itself or below it? Both as path_absolute() makes them. */
bool path_is_within(const char *path, const char *folder);

/* One struct that a mapping fills, and the table that describes it. */
struct target {
    const struct option *table;
    void *base;
};
/* Defaults of TABLE into BASE. */
void options_defaults(struct reader *r, const struct option *table, void *base);
/* The pairs of MAPPING into TARGETS; keys named in HANDLED (NULL-terminated, may be NULL) are the caller's. WHERE:
 * "limits". */
void options_read(struct reader *r, const struct target *targets, size_t target_count, const char *const *handled,
                  const struct node *mapping, const char *where);
/* One option by name ("csv.short_rows"), from its text, as flow_defaults and profiles give it. */
void options_set(struct reader *r, const struct option *table, void *base, const char *name, const char *text,
                 const char *where);
const struct option *options_find(const struct option *table, const char *name);
/* Value of an option by name, if the table has it with that type; else NULL. */
const void *options_member(const struct option *table, const void *base, const char *name, enum option_type type);
/* Add the values of TABLE to HASH, except secrets and those named in SKIP. */
uint64_t options_hash(uint64_t hash, const struct option *table, const void *base, const char *const *skip);
/* "; did you mean 'x'?", or that a later version will have it, or "". */
const char *hint_nearest(struct reader *r, const char *word, const char *const *choices);

/* A flow while it is read. FLOW is the first member: the table's offsets are its own. */
struct flow_draft {
    struct config_flow flow;
    const char *from, *to;
};

/* The same of a pipeline. */
struct pipeline_draft {
    struct config_pipeline pipeline;
    const char *in, *every;
    struct option_pairs settings;
};

/* The tables (options.c). */
extern const struct option config_top_table[];
extern const struct option config_log_table[];
extern const struct option config_retry_table[];
extern const struct option config_source_table[];   /* what every source has: struct config_source */
extern const struct option config_dest_table[];     /* what every destination has: struct config_dest */
extern const struct option config_flow_table[];     /* struct flow_draft */
extern const struct option config_pipeline_table[]; /* struct pipeline_draft */
extern const char *const config_column_types[];

/* A flow's defaults: the table's, then the destination's. */
void flow_defaults(struct reader *r, struct flow_draft *draft, const struct config_source *source,
                   const struct config_dest *dest);
/* records.c */
extern const struct option config_record_table[];
extern const struct option config_record_column_table[];
/* Defaults of format json for what NODE (may be NULL) does not say. */
void json_defaults(struct reader *r, struct flow_draft *draft, const struct node *node);
/* The rules in LIST into FLOW, whose dest, names and defaults are known. */
void records_read(struct reader *r, struct config_flow *flow, const struct node *list, const char *where);
/* False: an option of another format was given, or `records` is missing; noted. */
bool format_check(struct reader *r, const struct config_flow *flow, const struct node *node, const char *where);
uint64_t records_hash(uint64_t hash, const struct config_flow *flow);

/* Everything the tables can't say. NODE may be NULL (command line). False: problems noted. */
bool flow_check(struct reader *r, struct config_flow *flow, const struct node *node, const char *where);
bool source_check(struct reader *r, struct config_source *source, const struct node *node, const char *where);
bool retry_check(struct reader *r, const struct retry_options *retry, const struct node *node, const char *where);
void config_check(struct reader *r, const struct config *c, const struct node *top);
bool name_check(struct reader *r, const char *name, size_t line, size_t column, const char *where);
void flow_define(struct config_flow *flow);
/* debounce, settle and ready_marker of the source's own table. */
void source_adopt(struct config_source *source);

/* profiles.c */
struct profile {
    const char *name;
    const char *dest_type;      /* NULL: any that can do it */
    const char *const *options; /* pairs, NULL-terminated */
    const char *text;
    const char *const *files; /* pairs path, text; NULL: none */
};
/* profile_titles.c */
extern const char *const titles_options[];
extern const char titles_text[];
extern const char *const ftp_blob_options[];
extern const char ftp_blob_text[];
extern const char *const titles_files[];
const struct profile *profile_find(const char *name); /* NULL: none such */

/* pipelines.c: `pipelines`, `init`, `then` and `timezone` */
const struct config_dest *config_dest_named(const struct config *c, const char *name);
void pipelines_read(struct reader *r, struct config *c, const struct node *top);
bool init_check(struct reader *r, const struct config_dest *dest, const struct node *node, const char *where);
void then_check(struct reader *r, const struct config *c, const struct config_flow *flow, const struct node *node,
                const char *where);
void timezone_check(struct reader *r, const struct config *c, const struct node *top);

struct config *config_new(struct reader *r);
/* Ends reading: *RET, or the problems. Frees the reader's memory. */
enum err_code reader_finish(struct reader *r, struct config *c, struct config **ret, char **ret_errors,
                            struct err *err);
char *current_folder(struct reader *r);

#endif
