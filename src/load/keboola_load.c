/*
 * keboola_load.c -- one file version into one table: a walk of remote steps. See keboola_internal.h.
 *
 *                      ┌────────────── exists / made meanwhile ──────────────┐
 *   BUCKET ─▶ TABLE ─▶ (DEFINE ─▶ DEFINING) ─▶ PREPARE ─▶ UPLOAD ─▶ CURRENT ─▶ ORDER ─▶ POLL ─▶ over
 *   id         header,  typed or sliced       file id   bytes to  still the  import   job
 *              key,     tables only           [kept]    the store version?   job id   ends
 *              types                                    [kept]    [intent    [kept]
 *              compared                                            kept]       ▲
 *                                                                    └─ LOOK ──┘ did the service take it?
 *
 * [kept]: a checkpoint is on disk before the next step. After a kill or a lost answer:
 *
 *   kept            what is done
 *   nothing, file   prepare anew: an unused file expires by itself
 *   uploaded        the table is compared again, then the import is ordered
 *   intent          LOOK through the jobs for one that loads this file; only if there is none it is ordered again
 *   job             POLL goes on
 *
 * So no file version is imported by two jobs. A checkpoint of another version of the file (it changed while its import
 * ran) is followed to its end and told as is_resumed: what the service took it has.
 */
#include "keboola_internal.h"

#include "clock.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PREPARES_MAX 4                  /* credentials that expire, files that are not found: then the engine waits */
#define LOOK_MARGIN_MS (10 * 60 * 1000) /* clocks of the service and ours */
#define POLL_FAILURES_MAX 6
#define TURNS_MAX 8 /* of "the table is there now" and "now it is not" */

enum step {
    K_BUCKET,
    K_TABLE,
    K_DEFINE,
    K_DEFINING,
    K_PREPARE,
    K_REWIND,
    K_UPLOAD,
    K_CURRENT,
    K_ORDER,
    K_LOOK,
    K_POLL,
    K_KEEP,
    K_STEPS
};
enum next { AGAIN, WAIT, OVER };

struct kload {
    struct load *load;
    struct keboola *k;
    struct arena arena;
    enum step step, after_keep;
    /* at most one of these is under way */
    struct api_call *call;
    struct upload *upload;
    struct work work;
    bool is_working, is_saving, needs_bucket;
    uv_timer_t timer;
    struct api_call *renewal;      /* beside UPLOAD */
    const struct api_reply *reply; /* inside an answer only */
    struct err err;
    bool is_over;

    char bucket[256];
    struct keboola_table table;
    const char **names, **key;
    struct keboola_walk walk;
    bool is_raw;     /* decided once: a second pass over the rows begins with counts of nothing */
    bool is_adopted; /* the walk is that of another version of this file */
    int64_t define_job;
    struct store_target target;
    const char *account; /* AZURE: how a manifest calls the store */
    size_t slice;        /* the next one; == count: the manifest */
    char *manifest;
    unsigned polls, poll_failures, looks, look_page, prepares, turns;
};

typedef enum next step_fn(struct kload *l);
static step_fn enter_bucket, answer_bucket, enter_table, answer_table, enter_define, answer_define, enter_defining,
    answer_defining, enter_prepare, answer_prepare, enter_rewind, answer_rewind, enter_upload, answer_upload,
    enter_current, answer_current, enter_order, answer_order, enter_look, answer_look, enter_poll, answer_poll,
    enter_keep, answer_keep;

static const struct {
    step_fn *enter, *answer;
} steps[K_STEPS] = {
    [K_BUCKET] = {enter_bucket, answer_bucket},    [K_TABLE] = {enter_table, answer_table},
    [K_DEFINE] = {enter_define, answer_define},    [K_DEFINING] = {enter_defining, answer_defining},
    [K_PREPARE] = {enter_prepare, answer_prepare}, [K_REWIND] = {enter_rewind, answer_rewind},
    [K_UPLOAD] = {enter_upload, answer_upload},    [K_CURRENT] = {enter_current, answer_current},
    [K_ORDER] = {enter_order, answer_order},       [K_LOOK] = {enter_look, answer_look},
    [K_POLL] = {enter_poll, answer_poll},          [K_KEEP] = {enter_keep, answer_keep},
};

/* ---- the end ---- */

static void wipe(const char *secret)
{
    if (secret != NULL)
        explicit_bzero((char *)(uintptr_t)secret, strlen(secret));
}

static void forget_target(struct kload *l)
{
    wipe(l->target.secret_key);
    wipe(l->target.session_token);
    wipe(l->target.sas);
    wipe(l->target.access_token);
    memset(&l->target, 0, sizeof l->target);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct kload *l = handle->data;
    struct load *load = l->load;
    struct keboola *k = l->k;
    load->err = l->err;
    load->driver = NULL;
    if (l->err.code != ERR_NONE) {
        memset(&load->receipt, 0, sizeof load->receipt);
        load->receipt.dest_rows = -1;
    }
    free(l->manifest);
    arena_done(&l->arena);
    free(l);
    load->finished(load);
    keboola_load_over(k);
}

/* The walk is over, with ERR; nothing but a renewal may still be under way, and it calls again. */
static void finish(struct kload *l)
{
    l->is_over = true;
    if (l->renewal != NULL) {
        api_cancel(l->renewal);
        return;
    }
    forget_target(l);
    uv_close((uv_handle_t *)&l->timer, on_timer_closed);
}

static void run(struct kload *l, step_fn *step)
{
    enum next next;
    while ((next = step(l)) == AGAIN)
        step = steps[l->step].enter;
    if (next == OVER)
        finish(l);
}

static enum next stopped(struct kload *l)
{
    err_set(&l->err, ERR_STOPPED, true, "stopped");
    return OVER;
}

static enum next go(struct kload *l, enum step to)
{
    if (l->load->stop && to != K_KEEP)
        return stopped(l);
    l->step = to;
    return AGAIN;
}

static enum next keep(struct kload *l, enum step then)
{
    l->after_keep = then;
    return go(l, K_KEEP);
}

static enum next fails(struct kload *l, const struct err *err)
{
    l->err = *err;
    return OVER;
}

/* The answer to a request that the walk can't go on from. */
static enum next refused(struct kload *l)
{
    if (l->reply->status == 403 && l->bucket[0] != '\0' && bucket_is_foreign(l->k, l->bucket)) {
        struct err err = {0}; /* no reason to stop those that are for other buckets */
        err_set(&err, ERR_INPUT, true, "token %s may not write to bucket %s; give it that right in Keboola",
                l->k->token_name, l->bucket);
        return fails(l, &err);
    }
    l->load->retry_after_ms = l->reply->retry_after_ms;
    return fails(l, &l->reply->err);
}

static void name_table(const struct load *load, char *ret, size_t size)
{
    snprintf(ret, size, "%s.%s", load->space, load->table);
}

/* This version of the file, nothing done yet. */
static void fresh_walk(struct kload *l)
{
    const struct load *load = l->load;
    bool made = l->walk.made;
    memset(&l->walk, 0, sizeof l->walk);
    l->walk.made = made;
    name_table(load, l->walk.table, sizeof l->walk.table);
    memcpy(l->walk.at, l->k->identity, sizeof l->walk.at);
    l->walk.is_raw = l->is_raw;
    text_hex(load->hash, sizeof load->hash, l->walk.hash);
    l->walk.parsed = load->rows->result.records;
    l->walk.rejected = load->rows->result.rejected;
    l->walk.bytes = load->rows->result.bytes;
    l->walk.rows_before = -1;
}

/* Bytes that any reader takes for the same rows go up as they are. To be asked before a second pass. */
static bool goes_raw(const struct load *load)
{
    const struct dialect *d = &load->rows->shape->dialect;
    const struct rows_result *r = &load->rows->result;
    return d->encoding == ENC_UTF8 && d->compression != COMPRESSION_ZSTD && !d->ends_cr && r->rejected == 0 &&
           r->odd == 0 && load->skip_records == 0 && load->plan->null_values.count <= 1;
}

/* ---- asking ---- */

static void on_reply(void *arg, const struct api_reply *reply)
{
    struct kload *l = arg;
    l->call = NULL;
    l->reply = reply;
    /* A job that was accepted is kept, also when we stop. */
    bool is_order = l->step == K_ORDER && reply->err.code == ERR_NONE;
    if (l->load->stop && !is_order) {
        stopped(l);
        finish(l);
        return;
    }
    run(l, steps[l->step].answer);
}

static enum next ask(struct kload *l, const char *method, const char *path, const struct buf *body, bool has_branch)
{
    struct err err = {0};
    if (body != NULL && body->failed)
        err_nomem(&err);
    else if (api_start(l->k, method, path, body != NULL ? body->data : NULL, has_branch, on_reply, l, &l->call, &err) ==
             ERR_NONE)
        return WAIT;
    return fails(l, &err);
}

static void on_timer(uv_timer_t *timer)
{
    struct kload *l = timer->data;
    if (l->load->stop) {
        stopped(l);
        finish(l);
        return;
    }
    run(l, steps[l->step].enter);
}

/* Enter this step again in MS. */
static enum next later(struct kload *l, uint64_t ms)
{
    uv_timer_start(&l->timer, on_timer, ms, 0);
    return WAIT;
}

/* ---- the checkpoint ---- */

void keboola_walk_write(const struct keboola_walk *w, char *ret, size_t size)
{
    if (w->file == 0 && !w->made)
        ret[0] = '\0';
    else
        snprintf(ret, size,
                 "keboola1 hash=%s file=%" PRId64 " job=%" PRId64 " ordered=%" PRId64 " flags=%u parsed=%" PRIu64
                 " rejected=%" PRIu64 " bytes=%" PRIu64 " before=%" PRId64 " at=%s table=%s",
                 w->hash, w->file, w->job, w->ordered_ms,
                 (unsigned)w->is_uploaded | (unsigned)w->creates << 1 | (unsigned)w->made << 2 |
                     (unsigned)w->is_sliced << 3 | (unsigned)w->is_keyed << 4 | (unsigned)w->is_raw << 5,
                 w->parsed, w->rejected, w->bytes, w->rows_before, w->at, w->table);
}

bool keboola_walk_read(const char *text, struct keboola_walk *w)
{
    unsigned flags;
    struct keboola_walk r = {0};
    if (text == NULL ||
        sscanf(text,
               "keboola1 hash=%32s file=%" SCNd64 " job=%" SCNd64 " ordered=%" SCNd64 " flags=%u parsed=%" SCNu64
               " rejected=%" SCNu64 " bytes=%" SCNu64 " before=%" SCNd64 " at=%39s table=%399s",
               r.hash, &r.file, &r.job, &r.ordered_ms, &flags, &r.parsed, &r.rejected, &r.bytes, &r.rows_before, r.at,
               r.table) != 11)
        return false;
    r.is_uploaded = flags & 1;
    r.creates = flags & 2;
    r.made = flags & 4;
    r.is_sliced = flags & 8;
    r.is_keyed = flags & 16;
    r.is_raw = flags & 32;
    *w = r;
    return true;
}

bool keboola_walk_of(const struct keboola *k, const struct load *load, struct keboola_walk *ret)
{
    char table[sizeof ret->table];
    struct keboola_walk w;
    name_table(load, table, sizeof table);
    if (!keboola_walk_read(load->checkpoint, &w) || strcmp(w.table, table) != 0 || strcmp(w.at, k->identity) != 0)
        return false;
    *ret = w;
    return true;
}

static void on_saved(struct load *load, const struct err *err)
{
    struct kload *l = load->driver;
    l->is_saving = false;
    if (err != NULL && l->err.code == ERR_NONE)
        l->err = *err;
    run(l, answer_keep);
}

static enum next enter_keep(struct kload *l)
{
    char text[CHECKPOINT_MAX];
    struct err err = {0};
    keboola_walk_write(&l->walk, text, sizeof text);
    l->is_saving = true;
    if (l->load->save(l->load, text, on_saved, &err) == ERR_NONE)
        return WAIT;
    l->is_saving = false;
    if (l->err.code == ERR_NONE)
        l->err = err;
    return OVER;
}

static enum next answer_keep(struct kload *l)
{
    if (l->err.code != ERR_NONE) /* of the ledger, or the job's own, told when its trace is gone */
        return OVER;
    return go(l, l->after_keep);
}

/* Nothing of this walk is worth keeping: forget it, then end with ERR. */
static enum next fails_for_good(struct kload *l, const struct err *err)
{
    fresh_walk(l);
    l->err = *err;
    l->step = K_KEEP;
    return AGAIN;
}

/* The uploaded file is of no use any more: from the start, a few times. */
static enum next prepare_again(struct kload *l, const struct err *err)
{
    l->walk.file = l->walk.job = l->walk.ordered_ms = 0;
    l->walk.is_uploaded = false;
    l->slice = 0;
    if (++l->prepares >= PREPARES_MAX)
        return fails_for_good(l, err);
    return go(l, K_TABLE);
}

/* The table or the bucket is not what it was a moment ago: look again. */
static enum next look_again(struct kload *l, enum step to, const struct err *err)
{
    l->walk.ordered_ms = l->walk.job = 0;
    if (++l->turns >= TURNS_MAX)
        return fails(l, err);
    return keep(l, to);
}

/* ---- BUCKET and TABLE ---- */

static bool is_table_there(const char *code)
{
    return code_is(code, "storage.buckets.tableAlreadyExists") || code_is(code, "storage.tables.alreadyExists");
}

static void on_bucket(void *arg, const char *id, const struct err *err)
{
    struct kload *l = arg;
    l->needs_bucket = false;
    if (err != NULL) {
        l->err = *err;
        l->load->retry_after_ms = bucket_pause_ms(l->k, l->load->space);
    } else if (id == NULL || (size_t)snprintf(l->bucket, sizeof l->bucket, "%s", id) >= sizeof l->bucket) {
        err_set(&l->err, ERR_REMOTE, true, "the service gives bucket %s no usable id", l->load->space);
    }
    run(l, answer_bucket);
}

static enum next enter_bucket(struct kload *l)
{
    struct err err = {0};
    if (bucket_need(l->k, l->load->space, true, on_bucket, l, &err) != ERR_NONE)
        return fails(l, &err);
    l->needs_bucket = true;
    return WAIT;
}

static enum next answer_bucket(struct kload *l)
{
    return l->err.code != ERR_NONE ? OVER : go(l, K_TABLE);
}

static enum next enter_table(struct kload *l)
{
    if (l->bucket[0] == '\0')
        return go(l, K_BUCKET);
    return ask(l, "GET", arena_printf(&l->arena, "tables/%s.%s", l->bucket, l->load->table), NULL, true);
}

static bool has_default_nulls(const struct kload *l)
{
    const struct option_strings *n = &l->load->plan->null_values;
    return !l->is_raw || (n->count == 1 && n->items[0][0] == '\0');
}

/* What the file alone can't say when it makes the table: types, a header that slices don't have, other words for NULL.
 */
static bool needs_definition(const struct kload *l)
{
    return l->load->plan->types.policy != TYPES_TEXT || l->walk.is_sliced || !has_default_nulls(l);
}

static enum next answer_table(struct kload *l)
{
    const struct api_reply *r = l->reply;
    struct err err = {0};
    memset(&l->table, 0, sizeof l->table);
    l->table.rows = -1;
    if (r->err.code == ERR_NONE) {
        if (table_read(r->json, &l->arena, &l->table, &err) != ERR_NONE)
            return fails(l, &err);
    } else if (r->status == 404 && code_is(r->code, "storage.buckets.notFound")) {
        bucket_forget(l->k, l->bucket);
        l->bucket[0] = '\0';
        return ++l->turns < TURNS_MAX ? go(l, K_BUCKET) : refused(l);
    } else if (r->status != 404 || !r->is_api) {
        return refused(l);
    }
    if (!l->table.exists)
        snprintf(l->table.id, sizeof l->table.id, "%s.%s", l->bucket, l->load->table);
    if (keboola_columns(l->load->rows->shape, &l->arena, &l->names, &err) != ERR_NONE ||
        table_check(l->load, l->names, &l->table, &err) != ERR_NONE ||
        table_key(l->load, l->names, &l->arena, &l->key, &err) != ERR_NONE)
        return fails(l, &err);
    if (!l->walk.is_uploaded)
        l->walk.is_sliced = l->load->cuts != NULL && l->is_raw;
    l->walk.is_keyed = l->load->plan->key.count > 0 || l->table.key_count > 0;
    l->walk.rows_before = l->table.exists ? l->table.rows : 0;
    if (!l->table.exists && needs_definition(l)) {
        l->walk.made = true;
        return keep(l, K_DEFINE);
    }
    return go(l, l->walk.is_uploaded ? K_CURRENT : K_PREPARE);
}

/* ---- DEFINE: a table with types, or with columns that slices don't name ---- */

static enum next enter_define(struct kload *l)
{
    struct buf b;
    buf_init(&b);
    buf_adds(&b, "{\"name\":");
    buf_add_json(&b, l->load->table);
    buf_adds(&b, ",\"primaryKeysNames\":[");
    for (size_t i = 0; i < l->load->plan->key.count; i++) {
        buf_adds(&b, i > 0 ? "," : "");
        buf_add_json(&b, l->key[i]);
    }
    buf_adds(&b, "],\"columns\":[");
    for (size_t i = 0; i < l->load->rows->shape->column_count; i++) {
        buf_adds(&b, i > 0 ? ",{\"name\":" : "{\"name\":");
        buf_add_json(&b, l->names[i]);
        if (l->load->plan->types.policy != TYPES_TEXT)
            buf_printf(&b, ",\"basetype\":\"%s\"", table_base_type(l->load, i));
        buf_addc(&b, '}');
    }
    buf_adds(&b, "]}");
    enum next next = ask(l, "POST", arena_printf(&l->arena, "buckets/%s/tables-definition", l->bucket), &b, true);
    buf_done(&b);
    return next;
}

static enum next answer_define(struct kload *l)
{
    struct err err = {0};
    if (l->reply->err.code == ERR_NONE) {
        l->define_job = api_number(l->reply->json, "id", 0);
        l->polls = 0;
        if (l->define_job > 0)
            return go(l, K_DEFINING);
        err_set(&err, ERR_REMOTE, true, "tables-definition: the answer has no number of a job");
        return fails(l, &err); /* the next try looks whether the table is there */
    }
    if (code_is(l->reply->code, "storage.buckets.tableAlreadyExists") ||
        code_is(l->reply->code, "storage.tables.alreadyExists")) {
        l->walk.made = false;
        return ++l->turns < TURNS_MAX ? go(l, K_TABLE) : refused(l);
    }
    return refused(l);
}

static enum next enter_defining(struct kload *l)
{
    char path[64];
    snprintf(path, sizeof path, "jobs/%" PRId64, l->define_job);
    return ask(l, "GET", path, NULL, false);
}

static enum next answer_defining(struct kload *l)
{
    struct err err = {0};
    bool is_final, again;
    if (l->reply->err.code != ERR_NONE)
        return refused(l); /* the next try looks whether the table is there */
    if (keboola_job_end(l->reply->json, &is_final, &again, &err) != ERR_NONE &&
        !is_table_there(api_text(api_member(l->reply->json, "error"), "code")))
        return fails(l, &err);
    if (!is_final)
        return later(l, keboola_poll_ms(l->polls++));
    if (++l->turns < TURNS_MAX)
        return go(l, K_TABLE);
    err_set(&err, ERR_REMOTE, true, "table %s is said to be defined, and is not there", l->table.id);
    return fails(l, &err);
}

/* ---- PREPARE ---- */

static bool gzips(const struct kload *l)
{
    bool is_plain = !l->is_raw || l->load->rows->shape->dialect.compression == COMPRESSION_NONE;
    return is_plain && l->load->id.size > l->k->options->gzip_above;
}

static enum next enter_prepare(struct kload *l)
{
    const struct load *load = l->load;
    bool gz = gzips(l), is_gz = gz || (l->is_raw && load->rows->shape->dialect.compression == COMPRESSION_GZIP);
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{\"name\":\"%s.csv%s\",\"federationToken\":true,\"isEncrypted\":true", load->table,
               is_gz ? ".gz" : "");
    if (l->is_raw && !gz && !l->walk.is_sliced)
        buf_printf(&b, ",\"sizeBytes\":%" PRIu64, load->id.size);
    buf_printf(&b, "%s,\"tags\":[\"file-import\",\"chute\"]}", l->walk.is_sliced ? ",\"isSliced\":true" : "");
    enum next next = ask(l, "POST", "files/prepare", &b, true);
    buf_done(&b);
    return next;
}

static const char *copy(struct arena *arena, struct json_object *o, const char *key, bool *missing)
{
    const char *s = api_text(o, key);
    const char *ret = s != NULL ? arena_strdup(arena, s) : NULL;
    *missing = *missing || ret == NULL;
    return ret;
}

/* "BlobEndpoint=…;SharedAccessSignature=…" */
static const char *connection_part(struct arena *arena, const char *text, const char *key)
{
    size_t n = strlen(key);
    for (const char *p = text; p != NULL && *p != '\0'; p = strchr(p, ';'), p = p != NULL ? p + 1 : NULL)
        if (strncmp(p, key, n) == 0 && p[n] == '=')
            return arena_strndup(arena, p + n + 1, strcspn(p + n + 1, ";"));
    return NULL;
}

bool keboola_target(struct json_object *file, const struct keboola_options *options, struct arena *arena,
                    struct store_target *t, const char **ret_account)
{
    const char *provider = api_text(file, "provider"), *name = api_text(file, "name");
    bool missing = false, ignored = false;
    *ret_account = NULL;
    memset(t, 0, sizeof *t);
    t->file_name = name != NULL ? arena_strdup(arena, name) : NULL;
    if (provider == NULL)
        return false;
    if (strcmp(provider, "aws") == 0) {
        struct json_object *p = api_member(file, "uploadParams"), *c = api_member(p, "credentials");
        t->kind = STORE_S3;
        t->endpoint = options->s3_endpoint;
        t->region = copy(arena, file, "region", &missing);
        t->bucket = copy(arena, p, "bucket", &missing);
        t->key = copy(arena, p, "key", &missing);
        t->acl = copy(arena, p, "acl", &ignored);
        t->sse = copy(arena, p, "x-amz-server-side-encryption", &ignored);
        t->access_key = copy(arena, c, "AccessKeyId", &missing);
        t->secret_key = copy(arena, c, "SecretAccessKey", &missing);
        t->session_token = copy(arena, c, "SessionToken", &ignored);
    } else if (strcmp(provider, "azure") == 0) {
        struct json_object *p = api_member(file, "absUploadParams");
        const char *text = api_text(api_member(p, "absCredentials"), "SASConnectionString");
        t->kind = STORE_AZURE;
        *ret_account = copy(arena, p, "accountName", &ignored);
        t->bucket = copy(arena, p, "container", &missing);
        t->key = copy(arena, p, "blobName", &missing);
        t->endpoint = connection_part(arena, text, "BlobEndpoint");
        t->sas = connection_part(arena, text, "SharedAccessSignature");
        missing = missing || t->endpoint == NULL || t->sas == NULL;
    } else if (strcmp(provider, "gcp") == 0) {
        struct json_object *p = api_member(file, "gcsUploadParams");
        t->kind = STORE_GCS;
        t->endpoint = options->gcs_endpoint;
        t->bucket = copy(arena, p, "bucket", &missing);
        t->key = copy(arena, p, "key", &missing);
        t->access_token = copy(arena, p, "access_token", &missing);
    } else {
        return false;
    }
    return !missing;
}

static bool read_target(struct kload *l, struct json_object *file)
{
    forget_target(l);
    return keboola_target(file, l->k->options, &l->arena, &l->target, &l->account);
}

static enum next answer_prepare(struct kload *l)
{
    struct err err = {0};
    if (l->reply->err.code != ERR_NONE)
        return refused(l);
    l->walk.file = api_number(l->reply->json, "id", 0);
    if (l->walk.file <= 0 || !read_target(l, l->reply->json)) {
        const char *provider = api_text(l->reply->json, "provider");
        char shown[40];
        err_set(&err, ERR_REMOTE, true, "files/prepare: the answer lacks what an upload to %s needs",
                provider != NULL ? text_printable(provider, shown, sizeof shown) : "its store");
        return fails(l, &err);
    }
    l->slice = 0;
    l->walk.is_uploaded = false;
    return keep(l, l->is_raw ? K_UPLOAD : K_REWIND);
}

/* ---- UPLOAD ---- */

static void on_worked(struct work *work)
{
    struct kload *l = work->arg;
    l->is_working = false;
    run(l, steps[l->step].answer);
}

static enum next work(struct kload *l, work_fn *fn)
{
    struct err err = {0};
    l->work.arg = l;
    l->is_working = true;
    if (work_start(l->k->loop, &l->work, fn, on_worked, &err) == ERR_NONE)
        return WAIT;
    l->is_working = false;
    return fails(l, &err);
}

static void rewind_fn(struct work *work)
{
    struct kload *l = work->arg;
    rows_rewind(l->load->rows, &l->err);
}

static enum next enter_rewind(struct kload *l)
{
    return work(l, rewind_fn);
}

static enum next answer_rewind(struct kload *l)
{
    return l->err.code != ERR_NONE ? OVER : go(l, K_UPLOAD);
}

static void on_uploaded(void *arg, const struct upload_result *result)
{
    struct kload *l = arg;
    l->upload = NULL;
    l->err = result->err;
    if (result->err.code != ERR_NONE) {
        l->load->retry_after_ms = result->retry_after_ms;
        if (l->err.code == ERR_REMOTE || l->err.code == ERR_CONFIG)
            api_blame_connection(&l->err);
        api_hide(&l->err, l->target.secret_key); /* a store may quote the request */
        api_hide(&l->err, l->target.session_token);
        api_hide(&l->err, l->target.sas);
        api_hide(&l->err, l->target.access_token);
        api_hide(&l->err, l->k->options->token);
    }
    if (result->is_expired && !l->load->stop) {
        struct err err = l->err;
        err_clear(&l->err);
        if (prepare_again(l, &err) == OVER)
            finish(l);
        else
            run(l, steps[l->step].enter);
        return;
    }
    run(l, answer_upload);
}

static void on_renewed(void *arg, const struct api_reply *reply)
{
    struct kload *l = arg;
    struct err err = {0};
    l->renewal = NULL;
    if (l->is_over) {
        finish(l);
        return;
    }
    if (l->upload == NULL)
        return;
    if (reply->err.code != ERR_NONE || !read_target(l, reply->json) ||
        upload_renew(l->upload, &l->target, &err) != ERR_NONE)
        upload_cancel(l->upload); /* told as stopped: answer_upload() makes another try of it */
}

/* Google's tokens live an hour, and the service gives new ones for the same file. */
static bool on_expired(void *arg)
{
    struct kload *l = arg;
    struct err err = {0};
    char path[64];
    if (l->target.kind != STORE_GCS || l->load->stop || l->renewal != NULL)
        return false;
    snprintf(path, sizeof path, "files/%" PRId64 "/refresh", l->walk.file);
    return api_start(l->k, "PUT", path, NULL, true, on_renewed, l, &l->renewal, &err) == ERR_NONE;
}

/* The service knows a slice on Azure by the name of the account, whatever the address is that it is uploaded to. */
static void add_entry_url(const struct kload *l, const struct store_target *target, struct buf *url)
{
    if (target->kind == STORE_AZURE && l->account != NULL)
        buf_printf(url, "azure://%s.blob.core.windows.net/%s/%s", l->account, target->bucket, target->key);
    else
        upload_manifest_entry_url(target, url);
}

/* Which part of the file, and what the object is called behind the key. */
static enum err_code next_slice(struct kload *l, struct upload_body *body, char suffix[32])
{
    const struct load *load = l->load;
    if (l->slice == load->cut_count) {
        struct err err = {0};
        struct buf b, key;
        buf_init(&b);
        buf_adds(&b, "{\"entries\":[");
        for (size_t i = 0; i < load->cut_count; i++) {
            struct store_target t;
            struct buf url;
            char part[32];
            snprintf(part, sizeof part, "part%05zu", i);
            buf_init(&key);
            buf_init(&url);
            if (store_target_with_suffix(&l->target, part, &key, &t, &err) != ERR_NONE)
                b.failed = true;
            else
                add_entry_url(l, &t, &url);
            buf_adds(&b, i > 0 ? ",{\"url\":" : "{\"url\":");
            buf_add_json(&b, url.data);
            buf_addc(&b, '}');
            b.failed = b.failed || url.failed;
            buf_done(&key);
            buf_done(&url);
        }
        buf_adds(&b, "]}");
        free(l->manifest);
        l->manifest = buf_take(&b);
        if (l->manifest == NULL)
            return err_nomem(&l->err);
        *body = (struct upload_body){.from = UPLOAD_MEMORY, .data = l->manifest, .size = strlen(l->manifest)};
        snprintf(suffix, 32, "manifest");
        return ERR_NONE;
    }
    body->offset = load->cuts[l->slice];
    uint64_t end = l->slice + 1 < load->cut_count ? load->cuts[l->slice + 1] : load->id.size;
    body->size = end - body->offset;
    snprintf(suffix, 32, "part%05zu", l->slice);
    return ERR_NONE;
}

static enum next enter_upload(struct kload *l)
{
    struct load *load = l->load;
    char suffix[32] = "";
    struct upload_request request = {
        .target = l->target, .done = on_uploaded, .expired = on_expired, .stop = &load->stop, .arg = l};
    struct buf key;
    struct err err = {0};
    request.body = (struct upload_body){.from = l->is_raw ? UPLOAD_FILE : UPLOAD_ROWS,
                                        .fd = load->fd,
                                        .size = load->id.size,
                                        .rows = load->rows,
                                        .csv = {.has_header = true, .skip_records = load->skip_records},
                                        .gzip = gzips(l)};
    buf_init(&key);
    if (l->walk.is_sliced && next_slice(l, &request.body, suffix) == ERR_NONE) {
        store_target_with_suffix(&l->target, suffix, &key, &request.target, &l->err);
    }
    if (l->err.code != ERR_NONE) {
        buf_done(&key);
        return OVER;
    }
    upload_start(l->k->uploader, &request, &l->upload, &err);
    buf_done(&key);
    return err.code == ERR_NONE ? WAIT : fails(l, &err);
}

/* What was written anew must be what was inspected. */
static bool is_same_pass(const struct kload *l)
{
    const struct load *load = l->load;
    return l->is_raw || memcmp(load->rows->result.hash, load->hash, sizeof load->hash) == 0;
}

static enum next answer_upload(struct kload *l)
{
    if (l->err.code == ERR_STOPPED && !l->load->stop) /* renewed in vain */
        err_set(&l->err, ERR_REMOTE, true,
                "the store's credentials ended during the upload, and there were no new ones");
    if (l->err.code != ERR_NONE)
        return OVER;
    if (l->walk.is_sliced && l->slice++ < l->load->cut_count)
        return go(l, K_UPLOAD);
    if (!is_same_pass(l)) {
        err_set(&l->err, ERR_CHANGED, true, "changed while it was uploaded");
        return OVER;
    }
    l->walk.is_uploaded = true;
    forget_target(l);
    return keep(l, K_CURRENT);
}

/* ---- CURRENT and ORDER ---- */

static void current_fn(struct work *work)
{
    struct kload *l = work->arg;
    l->load->still_current(l->load, &l->err);
}

static enum next enter_current(struct kload *l)
{
    return work(l, current_fn);
}

static enum next answer_current(struct kload *l)
{
    if (l->err.code != ERR_NONE)
        return OVER;
    l->walk.creates = !l->table.exists;
    l->walk.ordered_ms = clock_wall_ms();
    l->looks = l->look_page = 0;
    return keep(l, K_ORDER);
}

static void add_char(struct buf *b, const char *key, char c)
{
    const char text[2] = {c, '\0'};
    buf_printf(b, ",\"%s\":", key);
    buf_add_json(b, text);
}

static void add_list(struct buf *b, const char *key, const char *const *items, size_t count)
{
    buf_printf(b, ",\"%s\":[", key);
    for (size_t i = 0; i < count; i++) {
        buf_adds(b, i > 0 ? "," : "");
        buf_add_json(b, items[i]);
    }
    buf_addc(b, ']');
}

static enum next enter_order(struct kload *l)
{
    const struct load *load = l->load;
    const struct dialect *d = &load->rows->shape->dialect;
    bool raw = l->is_raw;
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{\"dataFileId\":%" PRId64, l->walk.file);
    add_char(&b, "delimiter", raw ? d->delimiter : ',');
    add_char(&b, "enclosure", raw ? d->quote : '"');
    const char *path;
    if (l->walk.creates) {
        path = arena_printf(&l->arena, "buckets/%s/tables-async", l->bucket);
        buf_adds(&b, ",\"name\":");
        buf_add_json(&b, load->table);
        if (load->plan->key.count > 0) {
            struct buf key;
            buf_init(&key);
            for (size_t i = 0; i < load->plan->key.count; i++)
                buf_printf(&key, "%s%s", i > 0 ? "," : "", l->key[i]);
            buf_adds(&b, ",\"primaryKey\":");
            buf_add_json(&b, key.data);
            b.failed = b.failed || key.failed;
            buf_done(&key);
        }
    } else {
        path = arena_printf(&l->arena, "tables/%s/import-async", l->table.id);
        buf_printf(&b, ",\"incremental\":%s", load->plan->mode == MODE_REPLACE ? "false" : "true");
        if (l->walk.is_sliced)
            add_list(&b, "columns", l->names, load->rows->shape->column_count);
        if (!has_default_nulls(l))
            add_list(&b, "treatValuesAsNull", load->plan->null_values.items, load->plan->null_values.count);
    }
    buf_addc(&b, '}');
    b.failed = b.failed || path == NULL;
    enum next next = ask(l, "POST", path != NULL ? path : "", &b, true);
    buf_done(&b);
    return next;
}

static bool is_missing_file(const char *code)
{
    return code_is(code, "storage.files.notFound") || code_is(code, "storage.fileNotUploaded") ||
           code_is(code, "storage.manifestFileMissing") || code_is(code, "storage.importFileMissing") ||
           code_is(code, "storage.unauthorizedAccess");
}

static enum next answer_order(struct kload *l)
{
    const struct api_reply *r = l->reply;
    if (r->err.code == ERR_NONE) {
        l->walk.job = api_number(r->json, "id", 0);
        if (l->walk.job <= 0)
            return go(l, K_LOOK); /* taken, but under which number? */
        l->polls = l->poll_failures = 0;
        return keep(l, K_POLL);
    }
    /* Only an error of the API itself is a clear no; anything else may have been a yes that got lost on the way. */
    bool is_clear = r->status >= 400 && r->status < 500 && r->status != 408 && r->is_api;
    bool may_ask = r->status != 429 && r->retry_after_ms == 0 && l->k->pause_until_ms == 0;
    if (!is_clear && r->maybe_received && r->err.retryable && may_ask)
        return go(l, K_LOOK);
    if (!is_clear || r->status == 429 || r->err.code == ERR_DENIED)
        return refused(l); /* what was ordered is looked for before it is ordered again */
    if (is_table_there(r->code) || code_is(r->code, "storage.tables.notFound"))
        return look_again(l, K_TABLE, &r->err);
    if (code_is(r->code, "storage.buckets.notFound")) {
        bucket_forget(l->k, l->bucket);
        l->bucket[0] = '\0';
        return look_again(l, K_BUCKET, &r->err);
    }
    if (is_missing_file(r->code))
        return prepare_again(l, &r->err);
    return fails_for_good(l, &r->err);
}

/* ---- LOOK: was it taken? ---- */

static int64_t created_ms(struct json_object *job)
{
    const char *text = api_text(job, "createdTime");
    struct tm tm = {0};
    if (text == NULL || strptime(text, "%Y-%m-%dT%H:%M:%S%z", &tm) == NULL)
        return 0;
    long zone = tm.tm_gmtoff;
    return ((int64_t)timegm(&tm) - zone) * 1000;
}

static enum next enter_look(struct kload *l)
{
    char path[64];
    snprintf(path, sizeof path, "jobs?limit=%d&offset=%u", LOOK_PAGE, l->look_page * LOOK_PAGE);
    return ask(l, "GET", path, NULL, false);
}

int64_t keboola_find_job(struct json_object *list, int64_t file, int64_t ordered_ms, bool *ret_more)
{
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    *ret_more = n > 0;
    for (size_t i = 0; i < n; i++) {
        struct json_object *job = json_object_array_get_idx(list, i);
        struct json_object *params = api_member(job, "operationParams");
        if (api_number(api_member(params, "source"), "fileId", 0) == file) {
            int64_t id = api_number(job, "id", -1);
            return id > 0 ? id : -1;
        }
        int64_t at = created_ms(job);
        *ret_more = *ret_more && (at == 0 || at > ordered_ms - LOOK_MARGIN_MS);
    }
    return 0;
}

static enum next answer_look(struct kload *l)
{
    bool more;
    struct err err = {0};
    if (l->reply->err.code != ERR_NONE)
        return refused(l);
    int64_t job = keboola_find_job(l->reply->json, l->walk.file, l->walk.ordered_ms, &more);
    if (job < 0 || !json_object_is_type(l->reply->json, json_type_array)) { /* no answer at all: ask again */
        err_set(&err, ERR_REMOTE, true, "GET jobs: the answer is no list of jobs with numbers");
        return fails(l, &err);
    }
    if (job > 0) {
        l->walk.job = job;
        l->polls = l->poll_failures = 0;
        return keep(l, K_POLL);
    }
    if (more && ++l->look_page < LOOK_PAGES_MAX)
        return go(l, K_LOOK);
    l->look_page = 0;
    if (++l->looks < LOOKS_MAX)
        return later(l, keboola_look_ms(l->looks));
    /* It was never taken. */
    l->looks = 0;
    l->walk.ordered_ms = 0;
    if (l->is_adopted) {
        l->is_adopted = false;
        fresh_walk(l);
    }
    if (++l->turns < TURNS_MAX)
        return keep(l, K_BUCKET);
    err_set(&err, ERR_REMOTE, true, "the import was ordered %u times, and the service has no job for it", l->turns);
    return fails(l, &err);
}

/* ---- POLL, and the receipt ---- */

static enum next enter_poll(struct kload *l)
{
    char path[64];
    if (l->polls == 0) { /* the first look comes a moment later */
        l->polls = 1;
        return later(l, keboola_poll_ms(0));
    }
    snprintf(path, sizeof path, "jobs/%" PRId64, l->walk.job);
    return ask(l, "GET", path, NULL, false);
}

static void read_warnings(struct json_object *results, char *ret, size_t size)
{
    struct json_object *list = api_member(results, "warnings");
    size_t used = 0;
    ret[0] = '\0';
    for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
        char shown[160];
        const char *text = json_object_get_string(json_object_array_get_idx(list, i));
        if (used < size)
            used += (size_t)snprintf(ret + used, size - used, "%s%s", i > 0 ? "; " : "",
                                     text_printable(text != NULL ? text : "", shown, sizeof shown));
    }
}

static enum next succeeded(struct kload *l, struct json_object *job)
{
    struct load *load = l->load;
    struct receipt *r = &load->receipt;
    struct json_object *results = api_member(job, "results");
    uint64_t loaded = l->walk.parsed - l->walk.rejected;
    uint64_t skipped = l->is_adopted ? 0 : load->skip_records < loaded ? load->skip_records : loaded;
    loaded -= skipped;
    int64_t total = api_number(results, l->walk.creates ? "rowsCount" : "totalRowsCount", -1);
    bool is_whole_table = load->plan->mode == MODE_REPLACE || l->walk.creates;
    *r = (struct receipt){
        .bytes = l->walk.bytes, .parsed = l->walk.parsed, .rejected = l->walk.rejected, .dest_rows = total};
    read_warnings(results, r->warnings, sizeof r->warnings);
    text_unhex(l->walk.hash, r->hash, sizeof r->hash);
    snprintf(r->dest_id, sizeof r->dest_id, "job %" PRId64, l->walk.job);
    r->created_table = l->walk.creates || l->walk.made;
    r->is_resumed = r->is_duplicate = l->is_adopted;
    r->inserted = loaded;
    r->unchanged = skipped;
    if (load->plan->mode == MODE_UPSERT && total >= 0 && l->walk.rows_before >= 0 && total >= l->walk.rows_before &&
        (uint64_t)(total - l->walk.rows_before) <= loaded) {
        r->inserted = (uint64_t)(total - l->walk.rows_before);
        r->updated = loaded - r->inserted;
    }
    if (is_whole_table && !l->walk.is_keyed && !l->is_adopted && total >= 0 && (uint64_t)total != loaded) {
        struct err err = {0};
        err_set(&err, ERR_INPUT, false,
                "job %" PRId64 ": the service imported %" PRId64 " rows, the file has %" PRIu64
                "; the table holds what was imported: look at it and at the file, then chute retry",
                l->walk.job, total, loaded);
        return fails_for_good(l, &err);
    }
    return OVER;
}

static enum next answer_poll(struct kload *l)
{
    struct err err = {0};
    bool is_final, again;
    const struct api_reply *r = l->reply;
    if (r->err.code != ERR_NONE) {
        if (r->status == 404 &&
            r->is_api) { /* jobs are not forgotten within days: is there another one for our file? */
            l->walk.job = 0;
            l->looks = l->look_page = 0;
            return ++l->turns < TURNS_MAX ? go(l, K_LOOK) : refused(l);
        }
        /* The job goes on whatever happens to a question about it. */
        if (!r->err.retryable || ++l->poll_failures > POLL_FAILURES_MAX || l->k->pause_until_ms != 0)
            return refused(l);
        uint64_t wait = keboola_poll_ms(l->poll_failures + 3);
        return later(l, wait > r->retry_after_ms ? wait : r->retry_after_ms);
    }
    l->poll_failures = 0;
    keboola_job_end(r->json, &is_final, &again, &err);
    if (!is_final)
        return later(l, keboola_poll_ms(l->polls++));
    if (err.code == ERR_NONE)
        return succeeded(l, r->json);
    const char *code = api_text(api_member(r->json, "error"), "code");
    if (l->is_adopted) { /* the other version's import failed: this one has the table for itself */
        l->is_adopted = false;
        fresh_walk(l);
        return keep(l, K_BUCKET);
    }
    if (is_table_there(code))
        return look_again(l, l->names != NULL ? K_TABLE : K_BUCKET, &err);
    if (again)
        return prepare_again(l, &err);
    return fails_for_good(l, &err);
}

uint64_t keboola_look_ms(unsigned looks)
{
    return looks <= 1 ? 1000 : 3000;
}

uint64_t keboola_poll_ms(unsigned polls)
{
    uint64_t ms = 50;
    while (polls-- > 0 && ms < 5000)
        ms *= 2;
    return ms < 5000 ? ms : 5000;
}

/* Trouble of the platform has no code of the import's; a refusal of the data has. */
static bool is_platform_trouble(const char *code, const char *message)
{
    if (code != NULL && code[0] != '\0')
        return strncasecmp(code, "internalError", 13) == 0 || strncasecmp(code, "application", 11) == 0;
    if (message == NULL || message[0] == '\0')
        return true;
    return strcasestr(message, "internal") != NULL || strcasestr(message, "application error") != NULL ||
           strcasestr(message, "try again") != NULL || strcasestr(message, "timeout") != NULL;
}

enum err_code keboola_job_end(struct json_object *job, bool *ret_final, bool *ret_again, struct err *err)
{
    const char *status = api_text(job, "status");
    *ret_again = false;
    *ret_final = status != NULL && (strcmp(status, "success") == 0 || strcmp(status, "error") == 0);
    err_clear(err);
    if (!*ret_final || strcmp(status, "success") == 0)
        return ERR_NONE;
    struct json_object *e = api_member(job, "error");
    const char *code = api_text(e, "code"), *message = api_text(e, "message"), *id = api_text(e, "exceptionId");
    char text[340], shown_code[80], shown_id[64];
    text_printable(message != NULL && message[0] != '\0' ? message : "it says no more", text, sizeof text);
    text_printable(code != NULL ? code : "", shown_code, sizeof shown_code);
    text_printable(id != NULL ? id : "", shown_id, sizeof shown_id);
    bool is_trouble = is_platform_trouble(code, message);
    *ret_again = is_missing_file(code);
    return err_set(err, is_trouble || *ret_again ? ERR_REMOTE : ERR_INPUT, is_trouble || *ret_again,
                   "job %" PRId64 " failed: %s%s%s%s%s%s%s", api_number(job, "id", 0), text,
                   shown_code[0] != '\0' || shown_id[0] != '\0' ? " (" : "", shown_code,
                   shown_code[0] != '\0' && shown_id[0] != '\0' ? ", " : "", shown_id[0] != '\0' ? "exception " : "",
                   shown_id, shown_code[0] != '\0' || shown_id[0] != '\0' ? ")" : "");
}

/* ---- begin and abort ---- */

/* Where to begin, by what the last try has kept. */
static enum step first_step(struct kload *l)
{
    const struct load *load = l->load;
    char hash[33];
    text_hex(load->hash, sizeof load->hash, hash);
    bool has_walk = keboola_walk_of(l->k, load, &l->walk);
    bool is_ours = has_walk && strcmp(l->walk.hash, hash) == 0;
    if (has_walk && (l->walk.job > 0 || l->walk.ordered_ms > 0)) {
        l->is_adopted = !is_ours;
        return l->walk.job > 0 ? K_POLL : K_LOOK;
    }
    if (!is_ours || !l->walk.is_uploaded || l->walk.is_raw != l->is_raw) /* other options may have come in between */
        fresh_walk(l);
    return K_BUCKET;
}

enum err_code keboola_load_begin(struct keboola *k, struct load *load, struct err *err)
{
    struct kload *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_nomem(err);
    l->k = k;
    l->load = load;
    arena_init(&l->arena);
    uv_timer_init(k->loop, &l->timer);
    l->timer.data = l;
    load->driver = l;
    load->retry_after_ms = 0;
    l->is_raw = goes_raw(load);
    l->step = first_step(l);
    uv_timer_start(&l->timer, on_timer, 0, 0);
    return ERR_NONE;
}

void keboola_load_abort(struct load *load)
{
    struct kload *l = load->driver;
    if (l == NULL || l->is_over || uv_is_closing((uv_handle_t *)&l->timer))
        return;
    if (l->upload != NULL)
        upload_cancel(l->upload);
    else if (l->call != NULL)
        api_cancel(l->call); /* an order that was on its way is looked for by the next try */
    else if (l->needs_bucket || uv_is_active((uv_handle_t *)&l->timer)) {
        bucket_leave(l->k, l);
        l->needs_bucket = false;
        uv_timer_start(&l->timer, on_timer, 0, 0);
    }
    /* A checkpoint and work on the pool are waited for: they end soon. */
}
