/* http_internal.h -- what the files of http share: the loop's side (http.c), one request (http_transfer.c), words for
 * what curl says (http_error.c). */
#ifndef CHUTE_HTTP_INTERNAL_H
#define CHUTE_HTTP_INTERNAL_H

#include "buf.h"
#include "curl_loop.h"
#include "http.h"

#include <curl/curl.h>
#include <uv.h>

struct http {
    const struct curl_lib *curl;
    uv_loop_t *loop;
    struct curl_loop *multi;
    struct http_transfer *transfers; /* all that have not ended; utlist */
    struct http_transfer *todo;      /* those that wait for on_kick() */
    uint64_t turn;                   /* of on_kick() */
    uv_idle_t kick;                  /* runs only while something is to do on the next turn */
    uv_timer_t pace;                 /* when the rate limits have something for us again */
    uv_timer_t watch;                /* looks for stalled transfers, while there are transfers */
    uv_timer_t idle;                 /* nothing has been asked for a while: SPARE is let go. Holds no loop open */
    unsigned handles;                /* not closed yet: the four above and MULTI */
    struct curl_spare spare;         /* for the next requests */
    bool is_pace_due;                /* a transfer stands in line, or the line has moved */
    bool is_closing;
    bool is_torn_down;
    void (*closed)(void *arg);
    void *closed_arg;
    /* options, copied */
    char *user_agent, *proxy, *ca_file, *protocols;
    const char *ca_path; /* curl's own folder of certificates by their hash; NULL: not used */
    bool tls_insecure;
    uint64_t connect_timeout_ms, stall_timeout_ms;
    struct rate *upload_rate, *download_rate;
};

/* Why one direction of a transfer is paused. */
enum http_wait { WAIT_NONE, WAIT_CALLER, WAIT_RATE };

struct http_transfer {
    struct http *http;
    struct http_transfer *prev, *next; /* http->transfers */
    struct http_transfer *todo_prev, *todo_next;
    uint64_t todo_turn;
    bool is_todo;
    bool is_added; /* to curl's multi */
    bool is_ended; /* done() is called, or will be before anything else happens */
    bool is_sound; /* curl came to its end without a fault: EASY can serve again */
    bool is_cancelled;
    bool is_resumed; /* http_resume() came since we looked last */
    CURL *easy;
    struct curl_slist *headers;
    struct http_request r; /* url, method and headers of it are not valid any more */
    bool has_body, is_repeatable;
    char *host;                  /* for messages: HOST or HOST:PORT */
    char words[CURL_ERROR_SIZE]; /* curl's */
    struct err err;              /* ours: set first, wins over what curl says */
    /* the request */
    unsigned sent_times; /* how often curl began to send it */
    uint64_t taken;      /* bytes of the body that curl has taken this time */
    bool is_taken;       /* all of them */
    bool maybe_received; /* any time */
    /* the answer */
    int status, version;
    bool has_headers;
    struct buf answer_headers; /* NAME NUL VALUE NUL … and one NUL from buf */
    struct buf body;
    uint64_t received;
    /* waiting */
    enum http_wait send_wait, recv_wait;
    struct rate_turn send_turn, recv_turn;
    uint64_t active_ms;          /* last byte in or out (loop time) */
    uint64_t seen_up, seen_down; /* by curl's progress callback */
    int unsent;                  /* bytes in the kernel's queue when we looked last */
};

/* http.c */
void http_todo(struct http_transfer *t); /* on_kick() will look at T on the next turn */
/* End T with ERR on the next turn; the first reason stays. */
enum err_code http_fail_later(struct http_transfer *t, enum err_code code, bool retryable, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void http_pace_soon(struct http *h); /* a transfer stands in line */

/* http_transfer.c */
enum err_code http_transfer_new(struct http *h, const struct http_request *r, struct http_transfer **ret,
                                struct err *err);
void http_transfer_free(struct http_transfer *t);
/* T has ended in curl with RESULT, or by T's own err: out of curl, tell done(), free. */
void http_transfer_end(struct http_transfer *t, CURLcode result);
/* What has been waiting and need not any more goes on. Returns what curl says. */
CURLcode http_transfer_resume(struct http_transfer *t);
/* A byte came or went, or nothing is owed to us. */
void http_transfer_note_activity(struct http_transfer *t);
/* Has no byte moved for too long? Otherwise when to look again, in ms. */
bool http_transfer_is_stalled(struct http_transfer *t, uint64_t now_ms, uint64_t *ret_again_ms);

/* http_error.c */
/* Fill T's err with what RESULT means, unless it is filled already. */
void http_error_of(struct http_transfer *t, CURLcode result);
/* CURLUcode of URL as an error; HOST for messages into *RET_HOST (malloc'ed). */
enum err_code http_check_url(struct http *h, const char *url, char **ret_host, struct err *err);
enum err_code http_check_proxy(const struct curl_lib *curl, const char *proxy, struct err *err);

#endif
