/*
 * script.h -- SQL files as text: read whole, and places in them told to people. For every driver that runs scripts.
 */
#ifndef CHUTE_SCRIPT_H
#define CHUTE_SCRIPT_H

#include "err.h"

#include <stddef.h>
#include <stdint.h>

#define SCRIPT_MAX (64u * 1024 * 1024) /* bytes of one file; what is larger is data, and belongs into a flow */

/*
 * All of FILE into *RET (malloc'ed, NUL-terminated, a byte order mark at its begin left out), its size into *RET_SIZE.
 * Blocks. ERR_INPUT: it can't be read, is too large, or is no text (with the place). ERR_SYSTEM: no memory.
 */
enum err_code script_read(const char *file, char **ret, size_t *ret_size, struct err *err);

/* The line (from 1) of the byte at OFFSET of TEXT. */
uint64_t script_line(const char *text, size_t offset);

/* The byte of TEXT that is its character number POSITION, counted from 1 as PostgreSQL counts; the end if it is behind.
 */
size_t script_offset(const char *text, uint64_t position);

/* Where the next statement of TEXT begins, at or after OFFSET: behind white space, comments and lone semicolons. */
size_t script_skip(const char *text, size_t offset);

/*
 * Where the statement that begins at OFFSET ends: at its semicolon, or at the end of TEXT. As PostgreSQL reads it:
 * quotes, E'' strings, $tag$ bodies, nested comments, and BEGIN ATOMIC … END bodies of functions.
 */
size_t script_end(const char *text, size_t offset);

#define SCRIPT_WORDS_MAX 64
/* The first words of the statement at OFFSET, white space made single spaces. */
const char *script_words(const char *text, size_t offset, char ret[SCRIPT_WORDS_MAX]);

#endif
