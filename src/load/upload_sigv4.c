/*
 * upload_sigv4.c -- AWS Signature Version 4, for requests whose headers are known.
 *
 * Keys of each stage live on the stack and are wiped.
 */
#include "upload_internal.h"

#include "text.h"

#include <stdio.h>
#include <string.h>

#define KEY_MAX 256 /* "AWS4" and a secret key: those of AWS have 40 characters */

static void add_names(const struct sigv4_request *r, struct buf *b)
{
    for (size_t i = 0; i < r->header_count; i++)
        buf_printf(b, "%s%s", i > 0 ? ";" : "", r->headers[i].name);
}

static enum err_code canonical_hash(const struct sigv4_request *r, char ret[2 * DIGEST_SHA256_BYTES + 1],
                                    struct err *err)
{
    struct buf b;
    uint8_t hash[DIGEST_SHA256_BYTES];
    buf_init(&b);
    buf_printf(&b, "%s\n%s\n%s\n", r->method, r->path, r->query);
    for (size_t i = 0; i < r->header_count; i++)
        buf_printf(&b, "%s:%s\n", r->headers[i].name, r->headers[i].value);
    buf_addc(&b, '\n');
    add_names(r, &b);
    buf_printf(&b, "\n%s", r->payload);
    enum err_code code = b.failed ? err_nomem(err) : digest_sha256(b.data, b.size, hash, err);
    if (b.size > 0)
        explicit_bzero(b.data, b.size); /* the session token is a header */
    buf_done(&b);
    if (code == ERR_NONE)
        text_hex(hash, sizeof hash, ret);
    return code;
}

/* HMAC after HMAC: day, region, service, end. KEY is the first and the last. */
static enum err_code signing_key(const struct sigv4_request *r, const char *day, uint8_t key[DIGEST_SHA256_BYTES],
                                 struct err *err)
{
    char first[KEY_MAX];
    int n = snprintf(first, sizeof first, "AWS4%s", r->secret_key);
    if (n < 0 || (size_t)n >= sizeof first) {
        explicit_bzero(first, sizeof first);
        return err_set(err, ERR_CONFIG, false, "the secret key of the store is longer than %d bytes", KEY_MAX - 5);
    }
    enum err_code code = digest_hmac_sha256(first, (size_t)n, day, strlen(day), key, err);
    explicit_bzero(first, sizeof first);
    const char *const rest[] = {r->region, "s3", "aws4_request"};
    for (size_t i = 0; i < 3 && code == ERR_NONE; i++) {
        uint8_t next[DIGEST_SHA256_BYTES];
        code = digest_hmac_sha256(key, DIGEST_SHA256_BYTES, rest[i], strlen(rest[i]), next, err);
        if (code == ERR_NONE)
            memcpy(key, next, sizeof next);
        explicit_bzero(next, sizeof next);
    }
    return code;
}

enum err_code sigv4_sign(const struct sigv4_request *r, struct buf *ret, struct err *err)
{
    char day[9], request[2 * DIGEST_SHA256_BYTES + 1], signature[2 * DIGEST_SHA256_BYTES + 1];
    uint8_t key[DIGEST_SHA256_BYTES], hash[DIGEST_SHA256_BYTES];
    struct buf to_sign;
    snprintf(day, sizeof day, "%.8s", r->date);
    if (canonical_hash(r, request, err) != ERR_NONE)
        return err->code;
    buf_init(&to_sign);
    buf_printf(&to_sign, "AWS4-HMAC-SHA256\n%s\n%s/%s/s3/aws4_request\n%s", r->date, day, r->region, request);
    enum err_code code = to_sign.failed ? err_nomem(err) : signing_key(r, day, key, err);
    if (code == ERR_NONE)
        code = digest_hmac_sha256(key, sizeof key, to_sign.data, to_sign.size, hash, err);
    explicit_bzero(key, sizeof key);
    buf_done(&to_sign);
    if (code != ERR_NONE)
        return code;
    text_hex(hash, sizeof hash, signature);
    buf_printf(ret, "AWS4-HMAC-SHA256 Credential=%s/%s/%s/s3/aws4_request, SignedHeaders=", r->access_key, day,
               r->region);
    add_names(r, ret);
    buf_printf(ret, ", Signature=%s", signature);
    return ret->failed ? err_nomem(err) : ERR_NONE;
}
