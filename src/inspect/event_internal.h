/*
 * event_internal.h -- the parts of reading events among themselves: text -> events -> values -> batches.
 *
 * event_text.c   the text of the file in a buffer that moves along, and the place in it
 * event_scan.c   one event: is it JSON, where does it end, and where are the values that the rules ask for
 * event_value.c  a value of an event as a column wants it
 * event_rules.c  the rules prepared: a tree of all pointers
 * event_find.c   one event after the other, and what is none
 * event_rows.c   the rows: which rule takes an event, batches
 *
 * Not json-c: of a number beyond 64 bits it keeps the nearest integer that fits (every digit must reach the column),
 * of a key that is there twice it keeps one and says nothing, it knows no place but an offset, and it builds a tree of
 * which we want six values. Its parser is what tests/fuzz/fuzz_events.c compares this one with.
 */
#ifndef CHUTE_EVENT_INTERNAL_H
#define CHUTE_EVENT_INTERNAL_H

#include "inspect_internal.h"

/* ---- event_rules.c */

/* What a pointer leads through: one key of an object or index of an array. Node 0 is the event itself. */
struct event_node {
    const char *pointer; /* all of it, for messages */
    const char *token;   /* its last part, ~0 and ~1 replaced */
    size_t length;
    int64_t index;      /* TOKEN as the index of an array; -1: it is none */
    size_t first, next; /* child, sibling; 0: none */
};
struct event_tree {
    struct event_node *nodes;
    size_t count;
};

/* ---- event_scan.c */

#define EVENT_DEPTH 256 /* of nesting; more is refused */
#define NO_NODE SIZE_MAX

enum event_kind { VALUE_NULL, VALUE_FALSE, VALUE_TRUE, VALUE_NUMBER, VALUE_TEXT, VALUE_OBJECT, VALUE_ARRAY };
extern const char *const event_kind_names[]; /* "null", "a number" */

/* Where the value of a node is. */
struct event_hit {
    uint64_t scan;     /* in which scan it was met; another one: it is not there */
    size_t start, end; /* in the text; texts with their quotes */
    enum event_kind kind;
    bool has_escape, has_nul, has_lone; /* of a text: \..., \u0000, half of a surrogate pair */
};

struct event_frame {
    size_t node; /* NO_NODE: no pointer leads into it */
    size_t start;
    uint32_t index;
    bool is_array, has_value;
};

struct event_scan {
    const struct event_tree *tree;
    struct event_hit *hits; /* one per node */
    const char *text;
    size_t start, size; /* the event begins at START, which is no white space */
    bool is_last;       /* nothing follows SIZE */
    /* what was found */
    uint64_t scan; /* number of this scan, from 1 */
    size_t end;    /* behind the event */
    enum event_kind kind;
    size_t twice; /* a node that was met twice; NO_NODE */
    size_t at;    /* where it is wrong */
    char problem[200];
    /* on the way */
    size_t pos, depth;
    struct event_frame *frames; /* EVENT_DEPTH, while a scan runs */
};

enum scan_end {
    SCAN_DONE,
    SCAN_MORE, /* the text ends inside the event */
    SCAN_BAD   /* problem, at */
};
/* One event from START on. Each call begins anew. */
enum scan_end event_scan(struct event_scan *s);
/* The value of NODE; NULL: it is not there. */
const struct event_hit *event_hit(const struct event_scan *s, size_t node);
/* The text of S (between its quotes, checked) without escapes into TO (at least N bytes). Returns its length. Halves of
 * surrogate pairs become U+FFFD. */
size_t event_unescape(const char *s, size_t n, char *to);
static inline bool event_is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* ---- event_value.c */

/* A value on its way into a batch: TEXT as it is, or to be written in another way. */
struct event_cell {
    enum { CELL_NULL, CELL_COPY, CELL_UNESCAPE, CELL_EXPAND } how;
    const char *text;
    size_t length; /* of TEXT */
    size_t room;   /* bytes it needs at most */
};
/* HIT (NULL: missing) of TEXT as COLUMN wants it. False: REASON says what was expected and found. */
bool event_cell(const struct event_column *column, const struct event_hit *hit, const char *text,
                struct event_cell *ret, char *reason, size_t size);
/* Write CELL to TO; returns its length. Not for CELL_NULL. */
size_t event_cell_write(const struct event_cell *cell, char *to);
/* Does the value equal WANTED, as `when` compares? */
bool event_equals(const struct event_hit *hit, const char *text, const char *wanted);
/* The value for a message, such as the text "abc", cut; into RET, which is returned. */
const char *event_shown(const struct event_hit *hit, const char *text, char *ret, size_t size);

/* ---- event_text.c */

struct event_text {
    struct text_stream stream;
    bool is_open;
    char *memory; /* TEXT, then TEXT_PAD bytes */
    char *text;
    size_t capacity, size;
    size_t pos;       /* what is before it has been taken */
    uint64_t offset;  /* of text[0] in the decompressed text */
    uint64_t line;    /* of text[pos], from 1 */
    uint64_t column;  /* in characters, from 1 */
    bool is_last;     /* nothing follows TEXT */
    bool has_moved;   /* TEXT does not begin where the file does */
    uint64_t longest; /* room is made for so many bytes from POS on */
};
enum err_code event_text_open(struct event_text *t, int fd, uint64_t longest, struct err *err);
void event_text_close(struct event_text *t);
/* Give back all memory; to be opened again before anything else but rewind. For a file that waits for its turn. */
void event_text_park(struct event_text *t);
/* Start again; reads anew only what is not in memory. */
enum err_code event_text_rewind(struct event_text *t, struct err *err);
/* More text behind what is there, or is_last. What is before POS goes. */
enum err_code event_text_read(struct event_text *t, struct err *err);
void event_text_advance(struct event_text *t, size_t to);
/* Line and column of POS or something behind it. */
void event_text_place(const struct event_text *t, size_t at, uint64_t *ret_line, uint64_t *ret_column);

/* ---- event_rows.c */

/* Where in the file the next event is. */
enum event_where { AT_START, IN_SEQUENCE, ARRAY_BEGAN, BEHIND_ELEMENT, BEHIND_COMMA, BEHIND_ARRAY };

/* The rows of one part that wait for the puller. */
struct part_rows {
    struct batch *batch; /* NULL: it has had none yet */
    const char **event;  /* per row, with bad_rows: its event, in the batch's data */
    uint32_t *event_length;
    size_t new_rows, new_bytes; /* that the event at hand will add */
};

struct event_rows {
    struct rows base;
    const struct inspect_options *options;
    const struct event_options *events;
    int fd;
    struct event_text text;
    enum event_where where;
    bool is_lines;           /* every event so far is one line */
    uint64_t line_end;       /* the line on which the last event ended */
    uint64_t event_line;     /* of the event at hand */
    size_t siblings;         /* rows of the event that was refused, without the first */
    uint64_t left_out;       /* all of them */
    struct part_rows *parts; /* events->part_count */
    size_t *columns;         /* of each part */
    struct event_cell *cells;
    size_t next_part; /* of the batches that are full, the next one to be given away */
    bool is_full;     /* batches wait to be given away */
    struct part_rows *current;
    uint64_t records;
    struct err failed; /* what every further call answers */
    struct event_scan scan;
};

/* ---- event_find.c */

/* Is there an event at the position of the text? Goes on to it. */
enum err_code event_find(struct event_rows *r, bool *ret_found, struct err *err);
/* Scan the event that was found, wholly in memory. *RET_BAD: it is no JSON. ERR_INPUT: too long; ERR_INCOMPLETE. */
enum err_code event_read(struct event_rows *r, bool *ret_bad, struct err *err);
/* The event up to END has been dealt with. */
void event_taken(struct event_rows *r, size_t end);
/* The event that was scanned is no JSON: left out with its line, or the file is refused. */
enum err_code event_take_bad_text(struct event_rows *r, struct err *err);
/* ---- event_refused.c */

/* Why the event at OFFSET was refused before; NULL: it was not. */
const char *event_refused_why(const struct refused_events *refused, uint64_t offset);
/* Does the destination's verdict on a row concern rows in other batches? */
bool event_has_siblings(const struct event_rows *r);
/* Keep it. ERR_INPUT: there are more than bad_rows allows. */
enum err_code event_refuse(struct event_rows *r, uint64_t offset, uint64_t line, const char *reason, struct err *err);

/* ---- event_find.c, continued */

/* The LENGTH bytes at the position are no event that a rule could take, because of what is AT: left out, or the file is
 * refused. */
enum err_code event_reject(struct event_rows *r, size_t length, size_t at, const char *reason, struct err *err);

#endif
