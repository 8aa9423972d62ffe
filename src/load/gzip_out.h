/*
 * gzip_out.h -- a gzip file, made piece by piece in a bounded memory of about a quarter MiB.
 *
 * ISA-L where it exists: a fifth of the CPU time of `gzip -1`, and smaller; else zlib's level 1. The same bytes in,
 * in pieces of any size, need not give the same bytes out; they inflate to the same.
 */
#ifndef CHUTE_GZIP_OUT_H
#define CHUTE_GZIP_OUT_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gzip_out; /* any thread, one at a time */

enum err_code gzip_out_new(struct gzip_out **ret, struct err *err); /* ERR_SYSTEM: memory */
void gzip_out_free(struct gzip_out *g);

/* Both move on as bytes are used. */
struct gzip_io {
    const uint8_t *in;
    size_t in_size;
    uint8_t *out;
    size_t out_size;
};
/*
 * Compress until there is no more input or no more room. IS_LAST: what IO holds is the end of the text; from then on
 * only with less input and with IS_LAST. true: the file is complete, no byte follows.
 */
bool gzip_out_run(struct gzip_out *g, struct gzip_io *io, bool is_last);

/* No text of SIZE bytes gives a larger file. */
uint64_t gzip_out_bound(uint64_t size);

#endif
