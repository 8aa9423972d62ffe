/*
 * content_hash.h -- the hash by which chute knows what is in a file: XXH3-128 of its bytes, in canonical order.
 *
 * One thread at a time; nothing blocks.
 */
#ifndef CHUTE_CONTENT_HASH_H
#define CHUTE_CONTENT_HASH_H

#include <stddef.h>
#include <stdint.h>

#define CONTENT_HASH_SIZE 16

struct content_hash;

struct content_hash *content_hash_new(void); /* of no bytes yet; NULL: out of memory */
void content_hash_restart(struct content_hash *h);
void content_hash_add(struct content_hash *h, const void *bytes, size_t size);
void content_hash_get(const struct content_hash *h,
                      uint8_t ret[CONTENT_HASH_SIZE]); /* of what was added; more may follow */
void content_hash_free(struct content_hash *h);        /* may be NULL */

#endif
