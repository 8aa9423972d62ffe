/*
 * upload.h -- bytes into an object of a store in the cloud: AWS S3, Azure Blob Storage, Google Cloud Storage.
 *
 * Why: the three want different requests, but the same care. Files go up straight from disk in pieces that the store
 * checks by a checksum of ours; what is compressed or written anew on the way exists only in a few buffers; a piece
 * that fails is sent again, not the file; credentials that end midway are exchanged and the upload goes on.
 *
 * All functions and all callbacks run on the loop's thread; what reads, compresses or computes runs on the pool, and a
 * producer of rows on a thread of its own. Nothing is written to disk, nothing runs while no upload does.
 */
#ifndef CHUTE_UPLOAD_H
#define CHUTE_UPLOAD_H

#include "buf.h"
#include "csv_text.h"
#include "err.h"
#include "http.h"
#include "rows.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

enum store_kind { STORE_S3, STORE_AZURE, STORE_GCS };

/* Where to, and with what right. Text that is not needed is NULL or "". Percent-encoding is done here, but for the SAS,
 * which goes into the URL exactly as it is. */
struct store_target {
    enum store_kind kind;
    /* "http[s]://HOST[:PORT][/PATH]". AZURE: the BlobEndpoint, needed. S3: "" is
     * https://BUCKET.s3.REGION.amazonaws.com, else ENDPOINT/BUCKET/KEY. GCS: "" is https://storage.googleapis.com. */
    const char *endpoint;
    const char *bucket;        /* AZURE: the container */
    const char *key;           /* AZURE: the name of the blob */
    const char *region;        /* S3 */
    const char *acl;           /* S3: x-amz-acl */
    const char *sse;           /* S3: x-amz-server-side-encryption */
    const char *access_key;    /* S3 */
    const char *secret_key;    /* S3 */
    const char *session_token; /* S3 */
    const char *sas;           /* AZURE, or ACCOUNT and ACCOUNT_KEY */
    const char *account;       /* AZURE: its name */
    const char *account_key;   /* AZURE: base64 */
    const char *access_token;  /* GCS */
    const char *file_name;     /* S3, AZURE: sent as Content-Disposition */
};

/* The target of a slice or of the manifest: *RET is TARGET with KEY followed by SUFFIX; the rest is borrowed from
 * TARGET, RET->key lives in KEY_BUF (initialised by the caller). ERR_SYSTEM: memory. */
enum err_code store_target_with_suffix(const struct store_target *target, const char *suffix, struct buf *key_buf,
                                       struct store_target *ret, struct err *err);
/* How a manifest calls the object: s3://BUCKET/KEY, gs://BUCKET/KEY, azure://HOST/CONTAINER/BLOB (HOST as in the
 * endpoint; without percent-encoding), appended to RET. */
void upload_manifest_entry_url(const struct store_target *target, struct buf *ret);

/* What goes up. Borrowed until done(). */
enum upload_from { UPLOAD_MEMORY, UPLOAD_FILE, UPLOAD_ROWS };
struct upload_body {
    enum upload_from from;
    const void *data;  /* MEMORY */
    int fd;            /* FILE: read with pread(); it may be shared with others */
    uint64_t offset;   /* FILE: the first byte */
    uint64_t size;     /* MEMORY, FILE: how many. ROWS: roughly how many bytes of text, for the size of the pieces; 0:
                          no idea */
    struct rows *rows; /* ROWS: pulled to its end, unless it fails; never rewound, never freed */
    struct csv_text_options csv; /* ROWS */
    bool gzip;                   /* compress on the way */
};

struct upload_result {
    struct err err;
    bool is_expired;         /* the credentials have ended: prepare the file again. ERR is ERR_REMOTE, retryable */
    uint64_t sent_bytes;     /* size of the object */
    uint64_t source_bytes;   /* what was read for it: bytes of the file or memory; ROWS: of CSV text */
    unsigned parts;          /* 1: a single request */
    uint64_t retry_after_ms; /* the store asked for at least that long a pause; 0 */
    int status;              /* AZURE, with an error: what the store answered last; 0 nothing */
    char code[48];           /* AZURE, with an error: its code, "" none */
};

/* Zero is the default that the comment names. */
struct uploader_limits {
    unsigned parallel;     /* requests at once, over all uploads. Default: 4 */
    uint64_t buffer_bytes; /* for what is compressed or written anew, over all uploads. Default: 12 MiB. One buffer is
                              granted always, also a larger one */
    uint64_t single_bytes; /* larger files go up in pieces. Default: 32 MiB */
    uint64_t piece_bytes;  /* size of such pieces, made larger where the store wants it. Default: 16 MiB */
};

struct uploader; /* what the uploads of one destination share: requests, buffers */
struct upload;   /* one under way; gone once its done() returned */

/* How large the pieces of a file of SIZE bytes are; 0: it goes up in one request. */
uint64_t uploader_piece_bytes(const struct uploader *up, enum store_kind kind, uint64_t size);

/*
 * HTTP is borrowed until CLOSED. Loads libcrypto when it is the first, some milliseconds. ERR_CONFIG: no libcrypto, or
 * one that has no MD5 or SHA-256. ERR_SYSTEM: memory.
 */
enum err_code uploader_open(uv_loop_t *loop, struct http *http, const struct uploader_limits *limits,
                            struct uploader **ret_uploader, struct err *err);
/* Cancel what is under way: each done() comes with ERR_STOPPED, then CLOSED(ARG) (may be NULL), on later turns. NULL
 * does nothing but CLOSED is never called. */
void uploader_close(struct uploader *up, void (*closed)(void *arg), void *arg);

typedef void upload_done(void *arg, const struct upload_result *result);
/*
 * The store says that the credentials have ended. true: upload_renew() or upload_cancel() will come for this upload,
 * now or later; until then it rests, and goes on where it was. false, or no such callback: it ends with is_expired.
 * Called again only after a request with the renewed ones has succeeded: else it ends with is_expired.
 */
typedef bool upload_expired(void *arg);

/*
 * What more an Azure blob is to get, and when. Borrowed until done().
 */
struct upload_blob {
    const char *content_type;   /* NULL: application/octet-stream */
    const char *const *headers; /* "x-ms-meta-...: value", NULL-terminated: with the request that makes the blob */
    const char *condition;      /* "If-None-Match: *", "If-Match: ETAG": of that request; NULL: none */
    const char *md5; /* base64, of the whole blob: stored with it. Only where it goes up in pieces: what goes up
                        in one request is summed on the way, and the store's own sum compared */
    const char *block_prefix; /* 10 characters of [0-9a-f] before the number in the ids of blocks; NULL: none */
    const uint64_t *have;     /* sizes of the blocks that the store has already under those ids, by number; 0: not it */
    size_t have_count;
};

struct upload_request {
    struct store_target target;     /* copied, and wiped before the copy is freed */
    const struct upload_blob *blob; /* AZURE; may be NULL */
    struct upload_body body;
    upload_done *done;
    upload_expired *expired;  /* may be NULL */
    const _Atomic bool *stop; /* may be NULL; seen between two steps by whatever thread works for the upload. For an end
                                 at once, also of requests: upload_cancel() */
    void *arg;                /* for both callbacks */
};

/*
 * Begin; the request itself may go when we return. done() comes once, on a later turn, never from inside a function of
 * this header, and when nothing touches the body any more. *RET_UPLOAD (may be NULL) lives until done() returns.
 *
 * Each request is tried up to 4 times where that can help (network, 408, 429, 5xx, throttling), with growing pauses and
 * those that the store asks for (up to a minute). Starting the same upload again overwrites the object.
 *
 * Returns ERR_NONE, or fills ERR and done() never comes: ERR_CONFIG: the target lacks something or its endpoint is no
 * URL; ERR_STOPPED after uploader_close(); ERR_SYSTEM.
 *
 * What done() gets: ERR_REMOTE: the store refused or can't be reached, always retryable but for a certificate that is
 * not trusted. ERR_CHANGED, retryable: the file ends early, or its bytes changed under us. ERR_CONFIG: proxy.
 * ERR_SYSTEM, retryable: reading, memory. ERR_STOPPED. And what rows_next() said. No text holds a secret.
 *
 * Of an upload in several pieces that fails, pieces remain in the store without being an object: the credentials that
 * are handed out don't permit to remove them; the store does when they are old.
 */
enum err_code upload_start(struct uploader *up, const struct upload_request *request, struct upload **ret_upload,
                           struct err *err);
/* done() comes with ERR_STOPPED on a later turn (or with what it was about to say). */
void upload_cancel(struct upload *u);
/* Other credentials for the same object, copied; at any time before done(), also inside expired(). ERR_CONFIG: TARGET
 * is another object, or incomplete; ERR_SYSTEM: memory; either way nothing has changed. */
enum err_code upload_renew(struct upload *u, const struct store_target *target, struct err *err);

#endif
