/*
 * curl_lib.h -- libcurl, loaded when it is needed first.
 *
 * Why not linked: it brings some fifty libraries and several MiB, which every chute would pay for, also one that only
 * fills a SQLite file. Its macros that check the types of variadic arguments don't apply to these pointers: pass long
 * where the manual says long, curl_off_t where it says curl_off_t.
 */
#ifndef CHUTE_CURL_LIB_H
#define CHUTE_CURL_LIB_H

#include "err.h"

#include <curl/curl.h>
#include <stdbool.h>

/* X(name without "curl_") */
#define CURL_LIB_FUNCTIONS(X)                                                                                          \
    X(global_init)                                                                                                     \
    X(version_info)                                                                                                    \
    X(free)                                                                                                            \
    X(easy_init)                                                                                                       \
    X(easy_setopt)                                                                                                     \
    X(easy_getinfo)                                                                                                    \
    X(easy_pause)                                                                                                      \
    X(easy_strerror)                                                                                                   \
    X(easy_cleanup)                                                                                                    \
    X(easy_reset)                                                                                                      \
    X(multi_init)                                                                                                      \
    X(multi_setopt)                                                                                                    \
    X(multi_assign)                                                                                                    \
    X(multi_add_handle)                                                                                                \
    X(multi_remove_handle)                                                                                             \
    X(multi_socket_action)                                                                                             \
    X(multi_socket_all)                                                                                                \
    X(multi_info_read)                                                                                                 \
    X(multi_strerror)                                                                                                  \
    X(multi_cleanup)                                                                                                   \
    X(slist_append)                                                                                                    \
    X(slist_free_all)                                                                                                  \
    X(url)                                                                                                             \
    X(url_set)                                                                                                         \
    X(url_get)                                                                                                         \
    X(url_strerror)                                                                                                    \
    X(url_cleanup)

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* multi_socket_all; curl_loop_poke() says why */
struct curl_lib {
#define CURL_LIB_MEMBER(name) __typeof__(curl_##name) *name;
    CURL_LIB_FUNCTIONS(CURL_LIB_MEMBER)
#undef CURL_LIB_MEMBER
};
#pragma GCC diagnostic pop

/*
 * *RET is filled for good: the library is initialised and never unloaded (its threads and exit handlers could outlive
 * it). Loop thread only. ERR_CONFIG: not installed, too old, or built so that it would block the loop or can't do TLS;
 * tried again by the next call.
 */
enum err_code curl_lib_load(const struct curl_lib **ret, struct err *err);

/* Easy handles between two uses, reset: each has buffers, and libcurl's many small parts. Whoever owns it drops it when
   nothing was asked for a while, and at its end. Begins as zero. Loop thread only. */
enum { CURL_SPARE_MAX = 16 };
struct curl_spare {
    CURL *easy[CURL_SPARE_MAX];
    unsigned count;
};
/* A spare one, or a new one without any option. NULL: no memory. */
CURL *curl_spare_take(struct curl_spare *s, const struct curl_lib *curl);
/* EASY (NULL is fine), out of its multi handle, is kept; cleaned up where it did not end well, or there are enough. */
void curl_spare_give(struct curl_spare *s, const struct curl_lib *curl, CURL *easy, bool is_sound);
void curl_spare_drop(struct curl_spare *s, const struct curl_lib *curl);

#endif
