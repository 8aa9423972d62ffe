/*
 * digest.h -- the sums that object stores verify, and the text forms in which they want them.
 *
 * CRC32C and base64 are ours or ISA-L's; MD5, SHA-256 and HMAC are libcrypto's, which knows the instructions of the
 * machine: digest_init() must have succeeded before they are used. Any thread, but for digest_init().
 */
#ifndef CHUTE_DIGEST_H
#define CHUTE_DIGEST_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Load libcrypto. Loop thread; more than once does no harm. ERR_CONFIG: there is none. */
enum err_code digest_init(struct err *err);

/* CRC of SIZE more bytes; CRC is 0 at the beginning, and what the last call returned later (RFC 3720, appendix B.4). */
uint32_t digest_crc32c(uint32_t crc, const void *data, size_t size);
/* The same by tables, on every machine; for tests. */
uint32_t digest_crc32c_by_table(uint32_t crc, const void *data, size_t size);
/* As stores write it: base64 of the four bytes, big endian. */
#define DIGEST_CRC32C_TEXT 9
void digest_crc32c_text(uint32_t crc, char ret[DIGEST_CRC32C_TEXT]);

/* One MD5 over any number of pieces. What fails inside is told at the end. */
struct digest_md5;
#define DIGEST_MD5_BYTES 16
#define DIGEST_MD5_TEXT 25
/* ERR_SYSTEM: memory. ERR_CONFIG: libcrypto is not allowed to compute MD5 (FIPS). */
enum err_code digest_md5_new(struct digest_md5 **ret, struct err *err);
void digest_md5_add(struct digest_md5 *m, const void *data, size_t size);
enum err_code digest_md5_end(struct digest_md5 *m, uint8_t ret[DIGEST_MD5_BYTES], struct err *err); /* M is freed */
void digest_md5_free(struct digest_md5 *m);

/* ERR_SYSTEM: memory. */
#define DIGEST_SHA256_BYTES 32
enum err_code digest_sha256(const void *data, size_t size, uint8_t ret[DIGEST_SHA256_BYTES], struct err *err);
enum err_code digest_hmac_sha256(const void *key, size_t key_size, const void *data, size_t size,
                                 uint8_t ret[DIGEST_SHA256_BYTES], struct err *err);

/* With padding and a NUL: 4 bytes for each 3 begun, and one. */
#define DIGEST_BASE64_SIZE(n) (((n) + 2) / 3 * 4 + 1)
void digest_base64(const void *data, size_t size, char *ret);

#endif
