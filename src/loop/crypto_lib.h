/*
 * crypto_lib.h -- libcrypto, loaded when it is needed first.
 *
 * Why not linked: it is several MiB and some milliseconds of start-up, for the few digests that only uploads need.
 * libcurl brings the same library along, so that whoever uses the network has it in memory already.
 */
#ifndef CHUTE_CRYPTO_LIB_H
#define CHUTE_CRYPTO_LIB_H

#include "err.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

/* X(name) */
#define CRYPTO_LIB_FUNCTIONS(X)                                                                                        \
    X(EVP_MD_CTX_new)                                                                                                  \
    X(EVP_MD_CTX_free)                                                                                                 \
    X(EVP_DigestInit_ex)                                                                                               \
    X(EVP_DigestUpdate)                                                                                                \
    X(EVP_DigestFinal_ex)                                                                                              \
    X(EVP_md5)                                                                                                         \
    X(EVP_sha256)                                                                                                      \
    X(HMAC)

struct crypto_lib {
#define CRYPTO_LIB_MEMBER(name) __typeof__(name) *name;
    CRYPTO_LIB_FUNCTIONS(CRYPTO_LIB_MEMBER)
#undef CRYPTO_LIB_MEMBER
};

/*
 * *RET is filled for good and never unloaded; its functions may be called on any thread. Loop thread only.
 * ERR_CONFIG: not installed, or not version 3; tried again by the next call.
 */
enum err_code crypto_lib_load(const struct crypto_lib **ret, struct err *err);

#endif
