/*
 * http.h -- HTTP requests on the loop: curl's multi socket interface next to libuv, and the only place that knows both.
 *
 * Why: everything that speaks to a web service needs the same care: connections used again, bodies that wait for
 * their producer, timeouts by silence instead of by total time, honest words about whether a request may have arrived.
 *
 * libcurl is loaded by the first http_open() (curl_lib.h): who uses no network pays nothing for it. An idle struct http
 * has no active handle and wakes nobody, also not when a server closes an idle connection. All functions and all
 * callbacks run on the loop's thread. The process must ignore SIGPIPE. Redirects are never followed: the caller gets
 * the 3xx. HTTP/2 is spoken where a server offers it, one request at a time on each connection. No answer is
 * decompressed. No text of an error holds more of a URL than host and port.
 */
#ifndef CHUTE_HTTP_H
#define CHUTE_HTTP_H

#include "err.h"
#include "rate.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

/* "libcurl 7.88.1 (OpenSSL/3.0, nghttp2/1.52)", or why it can't be used, into RET. Loads it: for `chute version`. */
void http_libraries(char *ret, size_t size);

struct http;          /* connections and requests of one destination, or one source */
struct http_transfer; /* one request under way; gone once its done() returned */

/* Zero or NULL is the default that the comment names. Copied, except the two rates, which outlive the struct http. */
struct http_options {
    const char *user_agent; /* "chute/VERSION" */
    /* http://, https://, socks4://, socks4a://, socks5:// or socks5h://[USER:PASSWORD@]HOST[:PORT]; "none": no proxy,
     * whatever the environment says. Default: https_proxy, http_proxy, all_proxy and no_proxy, as curl reads them. */
    const char *proxy;
    /* PEM, the only ones trusted; read by the first connection and then once a day, on the loop: 0.2 ms for each
     * certificate. Default: those of the system, which are read one by one as they are needed. */
    const char *ca_file;
    bool tls_insecure;           /* believe any certificate of any host */
    uint64_t connect_timeout_ms; /* name, connection, TLS and proxy together. Default: 30 s */
    uint64_t stall_timeout_ms;   /* without a byte in or out. Default: 2 min. See http_request */
    unsigned max_connections;    /* to one host; further requests wait for a free one. Default: 8 */
    const char *protocols;       /* what a URL may be, as curl writes it. Default: "http,https" */
    struct rate *upload_rate;    /* of bodies, without headers and TLS. Default: no limit */
    struct rate *download_rate;  /* of answers' bodies. Default: no limit */
};

/*
 * *RET_HTTP is closed with http_close(). Loads libcurl when it is the first, which takes some 20 ms: open when the
 * service starts, not in between. ERR_CONFIG: no libcurl, or one that can't be used (too old, or it would block the
 * loop while it resolves names); a CA file that can't be read; a proxy that is none. ERR_SYSTEM: memory.
 */
enum err_code http_open(uv_loop_t *loop, const struct http_options *options, struct http **ret_http, struct err *err);
/*
 * Cancel what is under way: each done() comes with ERR_STOPPED, then CLOSED(ARG) (may be NULL), all on later turns.
 * H must not be used by then; http_start() refuses from now on with ERR_STOPPED. May be called from any callback.
 */
void http_close(struct http *h, void (*closed)(void *arg), void *arg);

/* What the two body callbacks may return instead of data. */
enum {
    HTTP_LATER = -1, /* nothing now: http_resume() says when to ask again */
    HTTP_FAIL = -2   /* give up: ERR is filled, and done() gets it */
};

struct http_answer {
    struct err err;   /* ERR_NONE when a whole answer came, whatever its status */
    int status;       /* of the final answer; with an error: of the one that began, 0: none did */
    int version;      /* 10, 11, 20; 0: no answer */
    const char *body; /* NUL-terminated, never NULL; gone when done() returns */
    size_t body_size;
    uint64_t sent_bytes;     /* of the request's body, the last time it was sent */
    uint64_t received_bytes; /* of the answer's body, streamed or kept */
    /* The server may have seen the whole request, and may have obeyed it. false: it certainly did not get all of it (no
     * connection, or the body was not sent to its end). Always true with ERR_NONE: the answer tells what happened. */
    bool maybe_received;
    const char *headers; /* for http_header() */
};

/* The first header called NAME (in any case of letters) of the final answer, not of a 100 Continue or of a proxy; NULL:
 * none. Without blanks around it; lives as long as the answer. */
const char *http_header(const struct http_answer *answer, const char *name);

/* Up to ROOM bytes into BUF: > 0 how many, 0 the end, HTTP_LATER, HTTP_FAIL. */
typedef ssize_t http_read(void *arg, char *buf, size_t room, struct err *err);
/* Go back to the first byte of the body: it is sent again. false: that is not possible, and the request fails. */
typedef bool http_rewind(void *arg);
/* Take all SIZE bytes (> 0) and return 0, or none with HTTP_LATER (they come again) or HTTP_FAIL. SO_FAR has status,
 * version and headers. */
typedef int http_data(void *arg, const struct http_answer *so_far, const char *data, size_t size, struct err *err);
typedef void http_done(void *arg, const struct http_answer *answer);

struct http_request {
    const char *method;         /* "GET", "POST", … */
    const char *url;            /* copied */
    const char *const *headers; /* "Name: value", NULL-terminated, may be NULL; copied, and wiped before they are freed.
                                 * "Name;" sends an empty one, "Name:" drops one of curl's. Never Content-Length. */
    /* The body, one of three: none (but POST, PUT and PATCH say Content-Length: 0); in memory, borrowed until done();
     * or streamed, when READ is set. */
    const void *body;
    size_t body_size;
    http_read *read;
    int64_t stream_size; /* exact: fewer bytes are an error, more are never asked for. -1: unknown, sent in chunks */
    http_rewind *rewind; /* for READ; NULL: it can't be sent twice */
    /* Ask first whether the body is welcome. Otherwise large bodies are sent to servers that refuse them at once. */
    bool expect_continue;
    /* curl sends a request again by itself when a connection that was used before turns out to be closed, and no byte
     * of the answer came. We allow it when the first one certainly was not received whole, or when the method says that
     * twice is as good as once (GET, HEAD, PUT, DELETE, OPTIONS). ONLY_ONCE: never for such a method either. */
    bool only_once;
    size_t max_answer; /* an answer that is kept may have this many bytes; more is an error, not a cut */
    http_data *data;   /* if set, a 2xx answer goes here piece by piece; others are kept all the same */
    /* Instead of the one in http_options, for a server that thinks for long: while a request is sent, waits for its
     * answer or receives it, and no byte moves. It does not run while the request waits for a free connection, for
     * HTTP_LATER, or for the rate limit. */
    uint64_t stall_timeout_ms;
    http_done *done;
    void *arg; /* for all four callbacks */
};

/*
 * Begin R; the struct itself may go when we return. done() comes once, on a later turn, never from inside any function
 * of this header. *RET_TRANSFER (may be NULL) lives until done() returns.
 *
 * Returns ERR_NONE, or fills ERR and done() never comes: ERR_CONFIG for a URL that is none or has a scheme that is not
 * allowed, or for a header with a line break; ERR_STOPPED after http_close(); ERR_SYSTEM.
 *
 * What done() gets: ERR_REMOTE, retryable: no name, no connection, silence, a connection that broke, an answer that is
 * no HTTP. ERR_REMOTE, not retryable: certificate refused, answer larger than max_answer. ERR_CONFIG: the proxy wants
 * other credentials. ERR_INPUT: READ ended before stream_size. ERR_SYSTEM, retryable: memory, descriptors. ERR_STOPPED:
 * cancelled. And what a body callback said with HTTP_FAIL.
 *
 * The callbacks may call any function of this header, also http_cancel() and http_close() for their own transfer.
 */
enum err_code http_start(struct http *h, const struct http_request *r, struct http_transfer **ret_transfer,
                         struct err *err);
/* After HTTP_LATER: ask the callback again, on a later turn. Too early or too often does no harm. */
void http_resume(struct http_transfer *t);
/* done() comes with ERR_STOPPED on a later turn, and no other callback of T before it. */
void http_cancel(struct http_transfer *t);

#endif
