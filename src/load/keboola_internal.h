/*
 * keboola_internal.h -- the parts of the Keboola Storage destination.
 *
 * keboola_api.c    one request and its answer: JSON, errors classed, maintenance, Retry-After
 * keboola_bucket.c a bucket found or made once, whoever needs it
 * keboola_name.c   names as the service cleans them
 * keboola_table.c  a file's header against a table's columns
 * keboola_load.c   one load: the walk of remote steps, each with its checkpoint; with keboola_place.c, keboola_file.c
 * and keboola_import.c, see keboola_walk.h keboola_drop.c   drop, empty, forget dest_keboola.c   options, token,
 * health, the contract
 *
 * Everything runs on the loop; uploads read and compress on the pool. Source of the protocol: Keboola's Storage API
 * reference and the behaviour of its official clients.
 */
#ifndef CHUTE_KEBOOLA_INTERNAL_H
#define CHUTE_KEBOOLA_INTERNAL_H

#include "http.h"
#include "load_internal.h"
#include "upload.h"
#include "work.h"

#include "arena.h"
#include "buf.h"

#include <json-c/json.h>
#include <uv.h>

struct keboola_options {
    const char *url;   /* "https://connection.keboola.com", without a slash at its end */
    const char *token; /* secret */
    int stage;         /* 0 in, 1 out */
    const char *branch;
    uint64_t gzip_above, slice_above;
    const char *s3_endpoint, *gcs_endpoint;
    bool tls_verify;
    const char *ca_file, *proxy;
    uint64_t connect_timeout, stall_timeout;
};
extern const char *const keboola_stages[]; /* "in", "out" */

struct keboola {
    const struct keboola_options *options;
    uv_loop_t *loop;
    struct http *http;
    struct uploader *uploader;
    char *base;         /* "https://HOST/v2/storage/" */
    char *token_header; /* wiped when freed */
    /* What the token may, as last verified. */
    bool is_open;
    bool can_manage_buckets;
    char token_name[160]; /* "98765 (csv loader)" for messages; "" unknown */
    char project[160];    /* "4321 (Retail)" */
    char provider[16], backend[32];
    char identity[40];
    struct arena rights; /* of permits */
    struct permit {
        const char *bucket, *level;
    } * permits;
    size_t permit_count;
    char until[64];          /* announced end of the maintenance, "" */
    uint64_t pause_until_ms; /* monotonic; 0: none */
    struct bucket *buckets;  /* keboola_bucket.c */
    struct connecting {
        dest_cb *cb;
        void *arg;
        struct api_call *call;
        struct err err;
        uv_timer_t timer; /* an answer on a later turn, where nothing could be asked */
    } connecting;
    unsigned open_parts; /* http, uploader, timer: closing */
    unsigned loads;      /* begun and not finished */
    bool is_closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- keboola_api.c ---- */

struct api_call; /* one request under way; gone when its callback returned */
struct api_reply {
    struct err err;           /* ERR_NONE: 2xx, and JSON is what came; else classed as below */
    int status;               /* 0: no answer */
    struct json_object *json; /* NULL: none (204), or not parsed; owned by the call */
    const char *code;         /* "storage.buckets.notFound", "" */
    bool is_api;              /* with an error: it is in the API's own form, not a proxy's page */
    bool maybe_received;      /* with an error: the service may have obeyed */
    uint64_t retry_after_ms;  /* 0: not said */
};
/*
 * ERR is, by status: 401 ERR_DENIED; 403 ERR_DENIED (the caller may know better); 400, 404, 409, 422 and other 4xx
 * ERR_INPUT, 405, 501 ERR_REMOTE, but ERR_REMOTE retryable where it is not the API that speaks (a page of some proxy
 * says nothing about a file), as for 3xx; 408, 423, 429, 5xx ERR_REMOTE retryable; no answer as http_start() says, and
 * api_blame_connection(). Maintenance (503 without an error code) sets the pause of the whole destination.
 */
typedef void api_cb(void *arg, const struct api_reply *reply);

/*
 * METHOD PATH (below /v2/storage/, already encoded) with BODY (JSON text, copied; NULL none). CB once, on a later turn.
 * HAS_BRANCH: the path exists per branch. Fills ERR when CB won't come.
 */
enum err_code api_start(struct keboola *k, const char *method, const char *path, const char *body, bool has_branch,
                        api_cb *cb, void *arg, struct api_call **ret, struct err *err);
void api_cancel(struct api_call *call); /* CB comes with ERR_STOPPED, on a later turn */

/* Members of an object, NULL or the default where they are missing or of another type. Ids may be numbers or texts. */
const char *api_text(struct json_object *o, const char *key);
int64_t api_number(struct json_object *o, const char *key, int64_t missing);
int64_t api_time_ms(struct json_object *o, const char *key); /* "2026-03-01T10:15:41+0100", since 1970; 0: missing */
bool api_flag(struct json_object *o, const char *key);
struct json_object *api_member(struct json_object *o, const char *key); /* NULL also for an empty map told as [] */
/* A list of texts, or an object whose values are texts (the service encodes some lists so), into ARENA. */
enum err_code api_texts(struct json_object *o, struct arena *arena, const char ***ret, size_t *ret_count,
                        struct err *err);
/*
 * The JSON of an answer, NULL for anything else; the caller's. What the service says ends in messages, in the ledger
 * and in notes beside files, so our token is made stars before anything of it is cut or copied.
 */
struct json_object *api_parse(const struct keboola *k, const char *answer, size_t size);
/* Fill CODE, IS_API and ERR of a reply by its STATUS, JSON and RETRY_AFTER_MS; WHAT was asked is for the message. */
void api_judge(struct keboola *k, const char *what, bool has_body, struct api_reply *r);
/*
 * A certificate that is refused, a proxy that wants a password: no retry helps before somebody mends it, yet it is
 * nothing of the file's, and what was ordered may be done. So its loads are tried again, and the destination is down.
 */
void api_blame_connection(struct err *err);
/* Take SECRET (NULL: none) out of the text, also a part of it that was cut at the end. */
void api_hide(struct err *err, const char *secret);
/* Two error codes of the service, without case. */
bool code_is(const char *code, const char *want);

/* ---- keboola_bucket.c ---- */

typedef void bucket_cb(void *arg, const char *id, const struct err *err); /* ID NULL: see ERR, or it does not exist */
/*
 * The id of bucket NAME: found, or made if MAKE; CB once, on a later turn. Asks the service once for all who wait.
 * Fills ERR when CB won't come. bucket_leave(): CB won't come for ARG.
 */
enum err_code bucket_need(struct keboola *k, const char *name, bool make, bucket_cb *cb, void *arg, struct err *err);
void bucket_leave(struct keboola *k, void *arg);
/* How long the service still wants to be left alone about bucket NAME; who asks before that waits for it. */
uint64_t bucket_pause_ms(const struct keboola *k, const char *name);
void bucket_forget(struct keboola *k, const char *id); /* it turned out to be gone: ask again next time */
void buckets_done(struct keboola *k);
/* Does the token's list of buckets explain a 403 on bucket ID? Then it concerns that one only. NEEDS_MANAGE: it was for
 * something that takes more than the right to write. */
bool bucket_is_foreign(const struct keboola *k, const char *id, bool needs_manage);

/* ---- keboola_name.c ---- */

#define KEBOOLA_NAME_MAX 90 /* of buckets and tables; the service's own limit is not published, clients stop at 96 */
#define KEBOOLA_COLUMN_MAX 64
enum err_code keboola_name(const char *what, const char *name, enum names_policy policy, char *ret, char *ret_key,
                           size_t size, struct err *err);
/*
 * The header of SHAPE as the service will name the columns, into ARENA. ERR_INPUT: a name that is blank, repeated (also
 * but for case), too long, or of which nothing is left.
 */
enum err_code keboola_columns(const struct shape *shape, struct arena *arena, const char ***ret, struct err *err);

/* ---- keboola_table.c ---- */

struct keboola_table {
    char id[400];
    bool exists, is_typed;
    const char **columns, **types; /* TYPES: base type of each, where typed; else NULL */
    size_t column_count;
    const char **key;
    size_t key_count;
    int64_t rows;
};
/* JSON of GET tables/ID into RET, memory from ARENA. */
enum err_code table_read(struct json_object *json, struct arena *arena, struct keboola_table *ret, struct err *err);
/*
 * May a file with the header of LOAD's shape (NAMES: as cleaned) go into TABLE under LOAD's plan? Header, key, types.
 * ERR_INPUT with a diff. Pure.
 */
enum err_code table_check(const struct load *load, const char *const *names, const struct keboola_table *table,
                          struct err *err);
/* Base type ("INTEGER") for column I of LOAD's shape as the plan's `types` decide; "STRING" for text. */
const char *table_base_type(const struct load *load, size_t i);
/* Key columns of the plan as the service names them, into ARENA. ERR_INPUT: one is not in the header. */
enum err_code table_key(const struct load *load, const char *const *names, struct arena *arena, const char ***ret,
                        struct err *err);

/* ---- keboola_load.c, keboola_drop.c ---- */

enum err_code keboola_load_begin(struct keboola *k, struct load *load, struct err *err);
void keboola_load_abort(struct load *load);
enum err_code keboola_drop_begin(struct keboola *k, struct load *load, struct err *err);
void keboola_drop_abort(struct load *load);
void keboola_load_over(struct keboola *k); /* one less; goes on with a close that waits */

/* What a restart has to know of a load, as its checkpoint has it. */
struct keboola_walk {
    char hash[33];
    char table[400]; /* "space.table" as the engine calls it: with another name in the configuration it is not ours */
    char at[40];     /* identity of the destination: in another stage or project these numbers mean nothing */
    int64_t file, job;
    int64_t ordered_ms; /* wall; 0: no import was ordered. Of a drop: when the table was made, by the service's clock */
    bool is_uploaded;
    bool creates; /* the order makes the table */
    bool made;    /* we defined it */
    bool drops;   /* JOB is that of a delete, 0: asked for, maybe; of the whole table if CREATES, else of its rows */
    bool is_sliced;
    bool is_keyed; /* the table has a primary key: the service removes duplicates */
    bool is_raw;   /* the file's own bytes go up; else it is written anew */
    uint64_t parsed, rejected, bytes;
    int64_t rows_before; /* of the table; -1 unknown */
};
/* The walk that the last try for LOAD's path and table left in this very project and stage; false: none. */
bool keboola_walk_of(const struct keboola *k, const struct load *load, struct keboola_walk *ret);
/* Begin RET as a walk of LOAD's path and table in this project and stage. */
void keboola_walk_name(const struct keboola *k, const struct load *load, struct keboola_walk *ret);
/* "" where there is nothing to know. */
void keboola_walk_write(const struct keboola_walk *w, char *ret, size_t size);
bool keboola_walk_read(const char *text, struct keboola_walk *ret); /* false: RET stays */

/*
 * Where and with what right to upload, as POST files/prepare and PUT files/ID/refresh hand it out; texts in ARENA.
 * *RET_ACCOUNT: of Azure, NULL elsewhere. false: something is missing, RET is to be wiped all the same.
 */
bool keboola_target(struct json_object *file, const struct keboola_options *options, struct arena *arena,
                    struct store_target *ret, const char **ret_account);

/* The job of LIST (newest first) that loads FILE, 0: none, -1: one without a number. *RET_MORE: the next page may have
 * it, since not all of these are older than an order at ORDERED_MS. */
int64_t keboola_find_job(struct json_object *list, int64_t file, int64_t ordered_ms, bool *ret_more);
#define LOOKS_MAX 3 /* a job that was accepted a moment ago may not be listed yet */
#define LOOK_PAGE 100
#define LOOK_PAGES_MAX 50
uint64_t keboola_look_ms(unsigned looks); /* until the next look through the list, after LOOKS (from 1) in vain */
/* An error code that says that the table or the bucket is not there. */
bool keboola_is_place_gone(const char *code);
/*
 * What became of a storage job: ERR_NONE, succeeded; ERR_INPUT: refused the data; ERR_REMOTE retryable: the platform
 * failed, a new job may work. *RET_FINAL false: it still runs. *RET_AGAIN: the uploaded file is missing, upload again.
 */
enum err_code keboola_job_end(struct json_object *job, bool *ret_final, bool *ret_again, struct err *err);
/* How long until the next look at a job: 50 ms doubling to 5 s. */
uint64_t keboola_poll_ms(unsigned polls);

#endif
