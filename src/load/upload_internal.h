/*
 * upload_internal.h -- what the files of an upload share.
 *
 *   upload.c          the uploader: whose turn it is for a request or a buffer; the life of an upload
 *   upload_piece.c    one request and its retries; a range of a file summed first, then sent
 *   upload_produce.c  what is compressed or written anew, into buffers that are the pieces
 *   upload_s3.c, upload_azure.c, upload_gcs.c   what to ask, and what an answer means
 *   upload_sigv4.c    signatures;   upload_target.c   where to, percent-encoding, texts of answers
 *
 * Callbacks of libuv and curl decide nothing: they store what happened and call upload_poke(). All decisions are made
 * in turn() of upload.c, in a timer of no length, so that no callback of ours is called from inside another.
 */
#ifndef CHUTE_UPLOAD_INTERNAL_H
#define CHUTE_UPLOAD_INTERNAL_H

#include "upload.h"

#include "digest.h"
#include "gzip_out.h"
#include "work.h"

#define KIB ((uint64_t)1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

/* For tests; zero is the real thing. */
struct upload_knobs {
    uint64_t pause_ms;      /* instead of the first pause before a request is tried again */
    uint64_t produce_bytes; /* size of the buffers, instead of what the store likes */
    uint64_t piece_min;     /* what the store is believed to take */
};
extern struct upload_knobs upload_knobs;

/* ---- upload_target.c ---- */

/* A copy of a target, complete: no member is NULL. One allocation. */
struct target {
    struct store_target t;
    const char *origin;      /* "https://host[:port]", port only where it is not the usual one */
    const char *host;        /* of it, as in the Host header */
    const char *base;        /* path of the endpoint, "" or "/…" */
    const char *path;        /* of the object, percent-encoded, with the base and, where it belongs there, the bucket */
    const char *disposition; /* value of Content-Disposition, "" none */
    size_t size;
    char text[];
};
enum err_code target_new(const struct store_target *t, struct target **ret, struct err *err);
void target_free(struct target *t); /* wipes */
bool target_is_same(const struct target *a, const struct target *b);
/* Replace what is secret in TEXT by stars. */
void target_redact(const struct target *t, char *text);

/* TEXT percent-encoded for a URL, appended; '/' stays if KEEP_SLASH. */
void url_encode(const char *text, bool keep_slash, struct buf *ret);

/* The text of the first element NAME in BODY, without line breaks and controls, into RET; false: there is none. */
bool xml_text(const char *body, const char *name, char *ret, size_t size);

/* ---- upload_sigv4.c ---- */

struct sigv4_header {
    const char *name; /* lower case; the list is sorted by it, and has host and x-amz-date */
    const char *value;
};
struct sigv4_request {
    const char *method;
    const char *path;  /* percent-encoded */
    const char *query; /* percent-encoded, sorted, "name=value" also where the value is empty */
    const struct sigv4_header *headers;
    size_t header_count;
    const char *payload; /* hex SHA-256 or UNSIGNED-PAYLOAD */
    const char *date;    /* 20260301T101530Z */
    const char *region;
    const char *access_key;
    const char *secret_key;
};
/* The value of the Authorization header, appended to RET. ERR_SYSTEM. */
enum err_code sigv4_sign(const struct sigv4_request *r, struct buf *ret, struct err *err);

/* ---- upload_azure.c ---- */

struct ask;
/*
 * Sign a request by the account's key (SharedKey): adds x-ms-date, x-ms-version and Authorization to ASK, whose URL and
 * headers are complete. BODY_SIZE: of what follows the headers. ERR_SYSTEM; ERR_CONFIG: the key is no base64.
 */
enum err_code azure_sign(struct ask *ask, const char *account, const char *account_key, uint64_t body_size,
                         struct err *err);
/* The id of block NUMBER, as it stands in a URL, into RET. PREFIX: of struct upload_blob, may be NULL. */
#define AZURE_BLOCK_ID 32
void azure_block_id(const char *prefix, unsigned number, char ret[AZURE_BLOCK_ID]);
#define AZURE_VERSION "2020-10-02"

/* ---- a request as a store wants it ---- */

#define ASK_HEADERS 20
struct ask {
    const char *method;
    char *url;
    char *headers[ASK_HEADERS + 1];
    size_t count;
    bool has_failed; /* out of memory somewhere */
    uint64_t stall_timeout_ms;
};
/* Each text is allocated once with its exact size, and wiped by ask_done(): it may hold a secret. */
void ask_url(struct ask *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ask_header(struct ask *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ask_done(struct ask *a);

/* ---- a checksum under way ---- */

enum sum_kind {
    SUM_CRC32C,       /* of each piece */
    SUM_MD5,          /* of each piece */
    SUM_WHOLE_CRC32C, /* of all bytes from the first to the end of the piece */
};
struct sum {
    uint32_t crc;
    uint8_t md5[DIGEST_MD5_BYTES];
};
struct summer {
    enum sum_kind kind;
    struct digest_md5 *md5;
    uint32_t crc;
};
/* BEFORE: the sum up to the piece, for SUM_WHOLE_CRC32C. */
enum err_code summer_begin(struct summer *s, enum sum_kind kind, uint32_t before, struct err *err);
void summer_add(struct summer *s, const void *data, size_t size);
enum err_code summer_end(struct summer *s, struct sum *ret, struct err *err);
void summer_drop(struct summer *s);

/* ---- a piece: one request, its bytes, its retries ---- */

enum step {
    STEP_SINGLE, /* the whole object */
    STEP_BEGIN,  /* S3: CreateMultipartUpload; GCS: a session */
    STEP_PIECE,  /* a part, a block, a chunk */
    STEP_COMMIT  /* S3: CompleteMultipartUpload; Azure: Put Block List */
};
enum piece_state {
    PIECE_FILLING, /* the producer writes into it */
    PIECE_READY,   /* waits for its turn */
    PIECE_SUMMING, /* its range is read on the pool; so it is again to see whether it changed */
    PIECE_SENDING,
    PIECE_PAUSED /* until due_ms */
};
enum verdict {
    ANSWER_NONE,
    ANSWER_OK,
    ANSWER_MORE,    /* the store has some of the piece: send the rest */
    ANSWER_AGAIN,   /* may work when tried again */
    ANSWER_EXPIRED, /* the credentials have ended */
    ANSWER_DAMAGED, /* the store got other bytes than we summed */
    ANSWER_FAILED
};

struct piece;

/* A range of a file is read ahead of curl into two buffers by the pool. */
#define PUMP_BYTES ((size_t)256 * 1024)
enum half_state { HALF_EMPTY, HALF_READING, HALF_STALE, HALF_FULL };
struct half {
    struct work work;
    struct piece *piece;
    enum half_state state; /* STALE: being read, but nobody wants it any more */
    uint64_t offset;       /* in the file */
    size_t size, got;      /* to be read, read */
    int cause;             /* errno */
    uint8_t *data;
};
struct pump {
    struct half half[2];
    uint64_t next_read, next_take, end; /* in the file */
    bool is_waited_for;                 /* curl was told to wait */
    struct err err;
    uint8_t *memory;
    struct pump *next; /* of the spare ones */
};

struct piece {
    struct upload *upload;
    struct piece *prev, *next;
    enum step step;
    enum piece_state state;
    bool has_slot;
    unsigned number; /* from 0; STEP_PIECE */
    uint64_t offset; /* in the object */
    uint64_t size;
    bool is_last;        /* nothing follows it */
    uint64_t skip;       /* GCS: this many bytes the store has already */
    bool must_query;     /* GCS: ask first how much that is */
    const uint8_t *data; /* the bytes if they are in memory: of the body, of MEMORY, or of TEXT */
    uint8_t *memory;     /* a buffer of the budget */
    size_t memory_size;
    struct buf text; /* body of STEP_COMMIT */
    /* its sum */
    struct work sum_work; /* pool */
    struct summer summer;
    uint64_t summed; /* bytes */
    uint32_t sum_before;
    struct sum sum;
    bool has_sum, is_recheck;
    struct err sum_err;
    bool is_sum_ready; /* what sum_work did is not looked at yet */
    /* its request */
    struct pump *pump;
    struct http_transfer *transfer;
    unsigned busy; /* works on the pool that still touch it */
    unsigned generation;
    unsigned tries;      /* that failed */
    bool maybe_received; /* a failed one may have been obeyed */
    uint64_t due_ms;
    /* its answer */
    enum verdict verdict;
    struct err err;
    uint64_t retry_after_ms;
};

/* Sizes in bytes. */
struct store_ops {
    const char *name;
    enum sum_kind sum;
    bool is_sequential; /* one piece after the other */
    bool has_begin, has_commit;
    uint64_t single_max;
    uint64_t piece_min, piece_max;
    uint64_t produce_bytes; /* a good piece when it must be kept in memory */
    unsigned max_pieces;
    /* The request for P; HTTP adds the body and its length. */
    enum err_code (*ask)(struct piece *p, struct ask *ask, struct err *err);
    /* What this answer (whole, any status) means; fills P->err and P->retry_after_ms unless it is good. */
    enum verdict (*answer)(struct piece *p, const struct http_answer *a);
};
extern const struct store_ops store_s3, store_azure, store_gcs;

/* What the store said of each piece. */
struct mark {
    char *etag;
    uint32_t crc;
};

struct producer;

struct upload {
    struct uploader *up;
    struct upload *prev, *next;
    struct upload *line_prev, *line_next; /* those that wait for a buffer */
    const struct store_ops *ops;
    struct target *target;
    unsigned generation; /* of the credentials */
    bool has_proof;      /* these have worked, or are the first */
    bool is_resting;     /* until upload_renew() */
    struct upload_body body;
    upload_done *done;
    upload_expired *expired;
    const _Atomic bool *stop;
    void *arg;
    const struct upload_blob *blob;

    struct piece *pieces; /* under way, in the order of the object */
    struct producer *producer;
    bool is_many;         /* more than a single request */
    bool has_begun;       /* pieces may go */
    bool all_made;        /* no further piece comes */
    bool was_begun;       /* BEGIN is under way, or was */
    uint64_t piece_bytes; /* plain */
    uint64_t made_bytes;
    unsigned made;
    uint32_t made_crc; /* SUM_WHOLE_CRC32C */
    struct mark *marks;
    size_t mark_capacity;
    char *session; /* S3: UploadId; GCS: URL */

    _Atomic bool is_stopping; /* for the threads */
    bool is_over;             /* complete or failed; result says */
    struct upload_result result;
};

struct uploader {
    uv_loop_t *loop;
    struct http *http;
    struct uploader_limits limits;
    struct upload *uploads;
    struct upload *line; /* for buffers */
    uint64_t buffer_used;
    unsigned running; /* pieces that have a slot */
    uv_timer_t timer;
    struct pump *spare; /* for the next pieces; at most limits.parallel */
    uint64_t idle_ms;   /* loop time since when there is no upload; 0: there are */
    uint64_t random;
    bool is_closing, is_closed;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- upload.c ---- */

/* Look at everything on a later turn. */
void upload_poke(struct uploader *up);
/* U ends with ERR (copied), unless it is over already. */
void upload_fail(struct upload *u, const struct err *err, uint64_t retry_after_ms);
bool upload_must_stop(const struct upload *u); /* any thread */
struct piece *upload_add_piece(struct upload *u, enum step step);
/* The size of piece NUMBER of a file of SIZE bytes, WANTED if possible. Pure. */
uint64_t upload_plain_bytes(const struct store_ops *ops, uint64_t wanted, uint64_t size);
/* The size of the buffer for piece NUMBER, when about EXPECTED bytes are to come in all (0: no idea). Pure. */
uint64_t upload_produce_bytes(const struct store_ops *ops, uint64_t expected, unsigned number);

/* ---- upload_piece.c ---- */

void pumps_drop(struct uploader *up); /* the spare ones */
/* Has its turn: sum it or send it. */
void piece_run(struct piece *p);
/* Something may have happened to it: decide. true: it is gone. */
bool piece_step(struct piece *p);
bool piece_is_busy(const struct piece *p);
void piece_cancel(struct piece *p);
void piece_free(struct piece *p); /* not busy; gives back slot and buffer */
/* Remember what the store said about piece NUMBER. false: out of memory. */
bool upload_mark(struct upload *u, unsigned number, const char *etag, uint32_t crc);

/* For answer(): fill P->err from a status and the store's code and message, and P->retry_after_ms. */
enum verdict answer_verdict(struct piece *p, const struct http_answer *a, enum verdict verdict, const char *code,
                            const char *message);
/* 408, 429 and 5xx. */
bool status_is_transient(int status);
/* A date of HTTP in seconds since 1970; -1: none. */
int64_t http_date(const char *text);

/* ---- upload_produce.c ---- */

enum err_code producer_new(struct upload *u, struct producer **ret, struct err *err);
void producer_free(struct producer *pr); /* not busy */
bool producer_is_busy(const struct producer *pr);
/* Go on if that is possible: take a place in the line for a buffer, fill it, make it a piece. */
void producer_step(struct producer *pr);
/* Size of the buffer that it waits for in the line. */
uint64_t producer_wants(const struct producer *pr);
/* The budget has room: take it. */
void producer_grant(struct producer *pr);
uint64_t producer_read_bytes(const struct producer *pr);

#endif
