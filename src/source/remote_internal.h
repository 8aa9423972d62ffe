/*
 * remote_internal.h -- what the files of the remote sources share.
 *
 * source_remote.c  options, open and close, health
 * remote_call.c    one conversation with the server: an easy handle, who is told, what went wrong
 * remote_list.c    one folder, whatever the server speaks
 * remote_scan.c    all folders that `paths` reach into; and questions about single files
 * remote_fetch.c   the bytes of a file, through the pool into the caller's descriptor
 * remote_errand.c  delete or move a file over there
 *
 * A call belongs to whoever began it until its done(); the source only knows which are under way, to end them.
 */
#ifndef CHUTE_REMOTE_INTERNAL_H
#define CHUTE_REMOTE_INTERNAL_H

#include "curl_loop.h"
#include "listing.h"
#include "option.h"
#include "rate.h"
#include "remote_path.h"
#include "source.h"

#include <uv.h>

struct remote_options {
    const char *url, *user, *password, *private_key_file, *passphrase, *known_hosts, *ca_file, *proxy, *ready_marker;
    struct option_strings paths;
    const char *cron;
    uint64_t every_ms, settle_ms, connect_timeout_ms, stall_timeout_ms;
    int64_t jobs;
    int tls; /* 0 explicit, 1 implicit */
    bool tls_verify;
};

enum remote_kind { REMOTE_FTP, REMOTE_FTPS, REMOTE_SFTP };

struct call;
struct call_ops {
    /* Bytes came: how many were taken (all, or 0 with an error in call->err), or CURL_WRITEFUNC_PAUSE. Inside curl. */
    size_t (*bytes)(struct call *call, const char *bytes, size_t size);
    void (*done)(struct call *call); /* on the loop, once; call->err says how it ended */
};

struct call {
    struct remote *remote;
    struct call *prev, *next; /* remote->calls */
    const struct call_ops *ops;
    CURL *easy;
    struct curl_slist *quote;
    bool is_added, is_ended;
    bool is_aborted; /* ERR_STOPPED */
    bool is_paused, has_bytes;
    uint64_t active_ms; /* loop time: when the last byte came */
    bool is_resuming;   /* to be unpaused on the next turn */
    CURLcode result;
    long response;  /* the server's last number (FTP); 0: none */
    struct err err; /* ours: set first, wins over what curl says */
    bool is_gone;   /* the server says that there is nothing of that name */
    char words[CURL_ERROR_SIZE];
};

struct remote {
    const struct remote_options *options;
    enum remote_kind kind;
    const char *type;
    struct remote_url url;
    unsigned port;
    char where[400]; /* "sftp://host:22", for people */
    const struct curl_lib *curl;
    uv_loop_t *loop;
    struct source_sink sink;
    struct rate *download_rate;
    unsigned jobs;
    bool (*wants)(void *arg, const char *path);
    void *wants_arg;
    struct curl_loop *multi;
    uv_idle_t kick; /* something is to be done on the next turn */
    uv_timer_t pace, tick;
    unsigned handles;
    struct call *calls;
    bool has_no_mlsd; /* it answered that it does not know it */

    struct scan *scan; /* under way */
    bool must_scan;
    struct questions *questions; /* probes that wait, the first is being answered */
    struct fetching *fetches;    /* under way and waiting, utlist */
    unsigned fetch_count;        /* under way */
    struct piece *spare;         /* buffers for the next ones */
    struct curl_spare spare_easy;
    uint64_t idle_ms; /* loop time since when no call is under way; 0: one is */
    struct running *errands;

    struct source_health health;
    bool is_hurried; /* nothing new is begun */
    bool is_closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- remote_call.c ---- */
/* PATH below the root ("" with IS_FOLDER: the root). The caller fills what is its own in easy, then call_begin(). */
enum err_code call_init(struct call *call, struct remote *r, const struct call_ops *ops, const char *path,
                        bool is_folder, struct err *err);
enum err_code call_begin(struct call *call, struct err *err); /* done() comes once, later */
void call_resume(struct call *call);                          /* it was paused by bytes() */
void call_abort(struct call *call);                           /* done() still comes */
void call_done(struct call *call);                            /* frees what it has of curl */
enum err_code call_quote(struct call *call, struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void remote_kick(struct remote *r);
void remote_on_kick(uv_idle_t *idle);
void remote_easy_done(void *arg, CURL *easy, CURLcode result);
void remote_easy_broken(void *arg, CURL *easy, const char *why);

/* ---- remote_list.c ---- */
struct lister {
    struct call call; /* first */
    struct listing listing;
    char *folder; /* owned */
    bool is_mlsd;
    uint64_t entries;
    listing_cb *cb; /* inside curl: takes notes */
    void *arg;
    bool (*is_full)(void *arg);     /* may be NULL; true: the listing waits until lister_resume() */
    void (*done)(struct lister *l); /* l->call.err, l->call.is_gone */
};
enum err_code lister_start(struct lister *l, struct remote *r, const char *folder, struct err *err);
void lister_free(struct lister *l); /* what it owns */
void remote_id_of(const struct listing_entry *entry, struct file_id *ret);

/* ---- remote_scan.c ---- */
void remote_scan_next(struct remote *r);   /* begin the scan that is asked for, if none is under way */
void remote_scan_resume(struct remote *r); /* the sink has room */
void remote_scan_free(struct remote *r);
enum err_code remote_probe(struct remote *r, struct probe *probes, size_t count, probe_cb *cb, void *arg,
                           struct err *err);
void remote_questions_next(struct remote *r); /* begin the first; when it is closing they are answered UNKNOWN */

/* ---- remote_fetch.c ---- */
enum err_code remote_fetch(struct remote *r, struct fetch *fetch, struct err *err);
void remote_abort_fetch(struct remote *r, struct fetch *fetch);
void remote_fetch_next(struct remote *r);
void remote_fetch_pace(struct remote *r);
void remote_drop_spare(struct remote *r); /* buffers and handles that wait for a next call */

/* ---- remote_errand.c ---- */
enum err_code remote_errand(struct remote *r, struct source_errand *errand, struct err *err);

/* ---- source_remote.c ---- */
void remote_maybe_closed(struct remote *r);
void remote_tell(struct remote *r); /* the health has something new */

#endif
