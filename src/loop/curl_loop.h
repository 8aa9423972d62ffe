/*
 * curl_loop.h -- a libcurl multi handle on libuv: sockets, timer, and who has finished.
 *
 * Two rules keep the libraries apart. curl is never entered from inside one of its callbacks: what is to be done there
 * (add, remove, unpause) is noted by the user and done on a later turn. And the memory of a libuv handle is freed in
 * its close callback, nowhere else. Loop thread only.
 */
#ifndef CHUTE_CURL_LOOP_H
#define CHUTE_CURL_LOOP_H

#include "curl_lib.h"
#include "err.h"

#include <uv.h>

struct curl_loop;

/* What a user of it is told. ARG is its own. */
struct curl_loop_user {
    void *arg;
    /* EASY has finished and was removed; it may be cleaned up, and others added. Not from inside curl. */
    void (*done)(void *arg, CURL *easy, CURLcode result);
    /* Bytes moved, or may move, on the connection that EASY uses. May be NULL. */
    void (*active)(void *arg, CURL *easy);
    /* EASY (NULL: all of them) can't go on: no memory or descriptors. Perhaps from inside curl: its user removes it, on
     * a later turn. */
    void (*broken)(void *arg, CURL *easy, const char *why);
};

/* MAX_CONNECTIONS to one host; twice as many are kept idle. */
enum err_code curl_loop_open(uv_loop_t *loop, const struct curl_lib *curl, const struct curl_loop_user *user,
                             unsigned max_connections, struct curl_loop **ret, struct err *err);
CURLMcode curl_loop_add(struct curl_loop *c, CURL *easy);
void curl_loop_remove(struct curl_loop *c, CURL *easy); /* before it is done */
/* The socket that EASY asked to be watched last, as far as curl told; -1: none. */
curl_socket_t curl_loop_socket(const struct curl_loop *c, const CURL *easy);
void curl_loop_drive(struct curl_loop *c); /* what is new begins now, not after curl's timer */
void curl_loop_poke(struct curl_loop *c);  /* curl looks at all of its transfers itself */
/* All easy handles are removed. CLOSED comes once, later. */
void curl_loop_close(struct curl_loop *c, void (*closed)(void *arg), void *arg);

#endif
