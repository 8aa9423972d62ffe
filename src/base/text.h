/* text.h -- small things about text: numbers with units, distances, UTF-8, globs, templates, hex. Pure functions. */
#ifndef CHUTE_TEXT_H
#define CHUTE_TEXT_H

#include "buf.h"
#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "500ms" "5s" "10m" "2h" "7d" -> milliseconds; "64KiB" "10MiB" "1GiB" "123" -> bytes. false: not understood or
 * overflow. */
bool text_parse_duration(const char *s, uint64_t *ret_ms);
bool text_parse_size(const char *s, uint64_t *ret_bytes);
void text_format_duration(uint64_t ms, char *ret, size_t size); /* "1.2 s", "3 min" for people */
void text_format_size(uint64_t bytes, char *ret, size_t size);  /* "1.5 MiB" for people */

/* The nearest of CHOICES (NULL-terminated) within an edit distance that a slip of the fingers makes; NULL: none. */
const char *text_nearest(const char *word, const char *const *choices);

void text_hex(const uint8_t *bytes, size_t n, char *ret); /* 2n+1 bytes */
bool text_unhex(const char *hex, uint8_t *ret, size_t n);

/* Offset of the first byte that is no valid UTF-8 (or a NUL), or N. A sequence cut by the end counts as invalid. */
size_t text_utf8_valid(const char *s, size_t n);

/* A printable copy of a file name for logs: controls, marks that turn the direction of text, and invalid UTF-8 as \xNN;
   into RET, cut at SIZE. Returns RET. */
const char *text_printable(const char *s, char *ret, size_t size);

/*
 * Does PATH match the glob? '*' and '?' and [..] stop at '/', '**' does not, {a,b} alternatives (may be empty and
 * nested, 32 deep). "**" + "/" also matches no folder at all: "**" + "/a.csv" takes a.csv at the top. [!..] and [^..]
 * are everything else, a backslash takes the meaning of the next character away. '?' and classes take whole UTF-8
 * characters. A glob that glob_check() refuses matches what is left of its meaning, one of more than 1023 bytes
 * nothing. Time: at most length of glob times length of path.
 */
bool glob_match(const char *glob, const char *path);
bool glob_check(const char *glob, struct err *err); /* ERR_CONFIG: unbalanced brackets or braces */
/* How many '/' a path that matches can have at most; -1: no bound. */
int glob_depth(const char *glob);
/* Names that are never taken: dotfiles (any segment), *~ *.part *.tmp *.temp *.crdownload *.partial *.filepart
 **.download .opdownload *.inprogress *.uploading *.swp *.swo *.swx ~$* #*#, in any case of letters */
bool path_is_temporary(const char *path);

/*
 * A member of an archive has the path "ARCHIVE//PATH IN IT": no source gives a path with two slashes, so nothing else
 * can look like one. Archives in archives have more of them. All of these are for any path.
 */
#define MEMBER_MARK "//"
const char *member_name(const char *path);            /* what comes behind the first mark; NULL: it is no member */
unsigned member_depth(const char *path);              /* how many archives it is in */
void member_plain(const char *path, struct buf *ret); /* PATH with a single slash for each mark */

/* What a template can use, all derived from PATH below the root and the flow. HOST and PORT: "" for directories. */
struct template_facts {
    const char *path;
    const char *flow;
    const char *host;
    const char *port;
};
/*
 * Expand {folder} {name} {stem} {first} {ext} {path} {path_stem} {host} {port} {flow}.
 * {name} last segment; {stem}: name without .gz/.zst and then without one extension; {first}: name up to its first dot;
 * {ext}: the extension that {stem} dropped, without dot, "" if none; {folder}: all segments before the last joined by
 * '_'
 * ("" at the top level); {path}: as it is; {path_stem}: folders and stem joined by '_'. For a member of an archive
 * {name} is the whole path inside the archive, which counts as a folder for all others.
 */
void template_expand(const char *tmpl, const struct template_facts *facts, struct buf *ret);
bool template_check(const char *tmpl,
                    struct err *err);        /* ERR_CONFIG: unknown placeholder (with a suggestion), unbalanced brace */
bool template_is_constant(const char *tmpl); /* gives the same for every path of a flow */

#endif
