/* digest.c -- CRC32C by ISA-L or by tables, the rest by libcrypto. */
#include "digest.h"

#include "crypto_lib.h"

#if HAVE_ISAL
#include <isa-l/crc.h>
#endif

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const struct crypto_lib *crypto;

enum err_code digest_init(struct err *err)
{
    const struct crypto_lib *lib;
    if (crypto_lib_load(&lib, err) != ERR_NONE)
        return err->code;
    if (crypto == NULL) /* other threads may be using it */
        crypto = lib;
    return ERR_NONE;
}

/* ---- CRC32C: eight bytes a step, one table for each ---- */

#define POLYNOMIAL 0x82F63B78u /* Castagnoli's, reflected */

static uint32_t tables[8][256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void make_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? POLYNOMIAL : 0);
        tables[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int k = 1; k < 8; k++)
            tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xFF];
}

uint32_t digest_crc32c_by_table(uint32_t crc, const void *data, size_t size)
{
    const uint8_t *p = data;
    pthread_once(&tables_once, make_tables);
    crc = ~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint32_t low = crc ^ (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = tables[7][low & 0xFF] ^ tables[6][(low >> 8) & 0xFF] ^ tables[5][(low >> 16) & 0xFF] ^
              tables[4][low >> 24] ^ tables[3][p[4]] ^ tables[2][p[5]] ^ tables[1][p[6]] ^ tables[0][p[7]];
    }
    for (; size > 0; size--, p++)
        crc = (crc >> 8) ^ tables[0][(crc ^ *p) & 0xFF];
    return ~crc;
}

uint32_t digest_crc32c(uint32_t crc, const void *data, size_t size)
{
#if HAVE_ISAL
    const uint8_t *p = data;
    crc = ~crc; /* ISA-L leaves both inversions to the caller */
    while (size > 0) {
        int n = size > INT_MAX ? INT_MAX : (int)size;
        crc = crc32_iscsi((unsigned char *)(uintptr_t)p, n, crc);
        p += n;
        size -= (size_t)n;
    }
    return ~crc;
#else
    return digest_crc32c_by_table(crc, data, size);
#endif
}

void digest_crc32c_text(uint32_t crc, char ret[DIGEST_CRC32C_TEXT])
{
    const uint8_t bytes[4] = {(uint8_t)(crc >> 24), (uint8_t)(crc >> 16), (uint8_t)(crc >> 8), (uint8_t)crc};
    digest_base64(bytes, sizeof bytes, ret);
}

/* ---- libcrypto ---- */

struct digest_md5 {
    EVP_MD_CTX *ctx;
    bool has_failed;
};

enum err_code digest_md5_new(struct digest_md5 **ret, struct err *err)
{
    struct digest_md5 *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_nomem(err);
    m->ctx = crypto->EVP_MD_CTX_new();
    if (m->ctx == NULL) {
        free(m);
        return err_nomem(err);
    }
    if (crypto->EVP_DigestInit_ex(m->ctx, crypto->EVP_md5(), NULL) != 1) {
        digest_md5_free(m);
        return err_set(err, ERR_CONFIG, false,
                       "libcrypto computes no MD5, which this store wants (is the machine in FIPS mode?)");
    }
    *ret = m;
    return ERR_NONE;
}

void digest_md5_add(struct digest_md5 *m, const void *data, size_t size)
{
    if (size > 0 && crypto->EVP_DigestUpdate(m->ctx, data, size) != 1)
        m->has_failed = true;
}

enum err_code digest_md5_end(struct digest_md5 *m, uint8_t ret[DIGEST_MD5_BYTES], struct err *err)
{
    unsigned n = 0;
    bool is_good = !m->has_failed && crypto->EVP_DigestFinal_ex(m->ctx, ret, &n) == 1 && n == DIGEST_MD5_BYTES;
    digest_md5_free(m);
    return is_good ? ERR_NONE : err_set(err, ERR_SYSTEM, true, "libcrypto could not compute an MD5");
}

void digest_md5_free(struct digest_md5 *m)
{
    if (m == NULL)
        return;
    crypto->EVP_MD_CTX_free(m->ctx);
    free(m);
}

enum err_code digest_sha256(const void *data, size_t size, uint8_t ret[DIGEST_SHA256_BYTES], struct err *err)
{
    unsigned n = 0;
    EVP_MD_CTX *ctx = crypto->EVP_MD_CTX_new();
    if (ctx == NULL)
        return err_nomem(err);
    bool is_good = crypto->EVP_DigestInit_ex(ctx, crypto->EVP_sha256(), NULL) == 1 &&
                   crypto->EVP_DigestUpdate(ctx, data, size) == 1 && crypto->EVP_DigestFinal_ex(ctx, ret, &n) == 1 &&
                   n == DIGEST_SHA256_BYTES;
    crypto->EVP_MD_CTX_free(ctx);
    return is_good ? ERR_NONE : err_set(err, ERR_SYSTEM, true, "libcrypto could not compute a SHA-256");
}

enum err_code digest_hmac_sha256(const void *key, size_t key_size, const void *data, size_t size,
                                 uint8_t ret[DIGEST_SHA256_BYTES], struct err *err)
{
    unsigned n = 0;
    if (key_size > INT_MAX || crypto->HMAC(crypto->EVP_sha256(), key, (int)key_size, data, size, ret, &n) == NULL ||
        n != DIGEST_SHA256_BYTES)
        return err_set(err, ERR_SYSTEM, true, "libcrypto could not compute an HMAC");
    return ERR_NONE;
}

/* ---- base64 ---- */

void digest_base64(const void *data, size_t size, char *ret)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *p = data;
    for (; size >= 3; size -= 3, p += 3, ret += 4) {
        ret[0] = digits[p[0] >> 2];
        ret[1] = digits[(p[0] & 3) << 4 | p[1] >> 4];
        ret[2] = digits[(p[1] & 15) << 2 | p[2] >> 6];
        ret[3] = digits[p[2] & 63];
    }
    if (size > 0) {
        uint8_t second = size == 2 ? p[1] : 0;
        ret[0] = digits[p[0] >> 2];
        ret[1] = digits[(p[0] & 3) << 4 | second >> 4];
        ret[2] = size == 2 ? digits[(second & 15) << 2] : '=';
        ret[3] = '=';
        ret += 4;
    }
    *ret = '\0';
}
