/*
 * azure_internal.h -- the parts of the Azure Blob destination.
 *
 *   azure_account.c  who we are: connection string, account key or SAS
 *   azure_call.c     one request beside an upload, and what its answer means
 *   azure_load.c     one file into its blob: look, keep the old bytes, send, compare
 *   azure_drop.c     drop, carry, forget
 *   dest_azure.c     options, the container, the contract
 *
 * The bytes go up by upload.h, as those for other stores do. Everything runs on the loop; what reads and sums files is
 * on the pool. Source of the protocol: the Blob service's REST reference, version 2020-10-02.
 *
 * What chute knows of a blob is in its metadata (x-ms-meta-chute_…): who wrote it, from which source and path, which
 * content (XXH3-128) and with which attempt. So a load that was cut off is found again by its attempt, the same content
 * is not sent twice, and a blob that has none of this is nobody's but its owner's: it is never written over.
 */
#ifndef CHUTE_AZURE_INTERNAL_H
#define CHUTE_AZURE_INTERNAL_H

#include "http.h"
#include "load_internal.h"
#include "upload.h"
#include "work.h"

#include "buf.h"

#include <uv.h>

struct azure_options {
    const char *connection_string; /* secret */
    const char *account;
    const char *account_key; /* secret */
    const char *sas;         /* secret */
    const char *endpoint;
    const char *container;
    bool create_container;
    bool tls_verify;
    const char *ca_file, *proxy;
    uint64_t connect_timeout, stall_timeout;
};

/* ---- azure_account.c ---- */

/* No member is NULL. One of KEY (base64) and SAS is "". */
struct azure_account {
    char *memory; /* what the texts lie in; wiped when freed */
    const char *endpoint, *name, *key, *sas;
};
/*
 * From the connection string, or from the options beside it. ERR_CONFIG: says what is missing, never what is there.
 * Without a SAS the account's name is needed; without an endpoint it is https://NAME.blob.core.windows.net.
 */
enum err_code azure_account_new(const struct azure_options *o, struct azure_account *ret, struct err *err);
void azure_account_done(struct azure_account *a);
/* Is NAME one that a container may have: 3 to 63 lower-case letters, digits and single hyphens between them? */
bool azure_is_container(const char *name);

/* ---- dest_azure.c ---- */

struct azure_call;
struct azure {
    const struct azure_options *options;
    struct azure_account account;
    uv_loop_t *loop;
    struct http *http;
    struct uploader *uploader;
    bool is_open;
    bool is_closing;
    uint64_t pause_until_ms; /* monotonic; 0: none */
    struct {
        dest_cb *cb;
        void *arg;
        struct azure_call *call;
        struct err err;
        uv_timer_t timer; /* an answer on a later turn, where nothing could be asked */
    } connecting;
    unsigned open_parts; /* http, uploader, timer: closing */
    unsigned loads;      /* begun and not finished */
    void (*closed)(void *arg);
    void *closed_arg;
};
void azure_load_over(struct azure *a);
/* The target of BLOB; borrowed from A and BLOB. */
struct store_target azure_target(const struct azure *a, const char *blob);

/* ---- azure_call.c ---- */

struct azure_reply {
    struct err err; /* ERR_NONE: 2xx. 401, 403 ERR_DENIED; 408, 409, 412, 429, 5xx ERR_REMOTE retryable; other 4xx
                       ERR_INPUT, which callers know better by STATUS; no answer: as http_start() says */
    int status;     /* 0: no answer */
    char code[64];  /* "BlobNotFound", "" */
    uint64_t retry_after_ms;
    const struct http_answer *answer; /* headers and body; gone when the callback returns */
};
typedef void azure_cb(void *arg, const struct azure_reply *reply);
/*
 * METHOD for BLOB (NULL: the container) with QUERY ("comp=…&…", sorted by name, "" none) and HEADERS (NULL-terminated,
 * may be NULL). CB once, on a later turn. Fills ERR when CB won't come.
 */
enum err_code azure_call(struct azure *a, const char *method, const char *blob, const char *query,
                         const char *const *headers, azure_cb *cb, void *arg, struct azure_call **ret, struct err *err);
void azure_cancel(struct azure_call *call); /* CB comes with ERR_STOPPED, on a later turn */

/* ---- what both kinds of work know of a blob ---- */

#define AZURE_META "x-ms-meta-chute_"
/* The header NAME (behind AZURE_META) of a reply, percent-encoded as it was written; "" none. */
const char *azure_meta(const struct azure_reply *r, const char *name);
/* Did a chute write it for SOURCE and PATH? */
bool azure_is_of(const struct azure_reply *r, const char *source, const char *path);
/* Words for a person: "PATH of source SOURCE", or that chute did not write it. */
void azure_owner(const struct azure_reply *r, char *ret, size_t size);

/* ---- azure_load.c, azure_drop.c ---- */

enum err_code azure_load_begin(struct azure *a, struct load *load, struct err *err);
void azure_load_abort(struct load *load);
enum err_code azure_drop_begin(struct azure *a, struct load *load, struct err *err);
void azure_drop_abort(struct load *load);

#endif
