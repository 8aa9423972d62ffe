/*
 * azure_load.c -- a file into its blob.
 *
 *   small: PUT unless there is one ── there is one ──▶ look
 *   look ─▶ of another file, or nobody's: refused
 *        ─▶ this attempt, this content: nothing to do
 *        ─▶ older: keep it as a snapshot (on_changed: version) ─▶ PUT if it is still that one
 *   large: look, sum the whole, ask which blocks are there, PUT the others and the list ─▶ compare size and sum
 *
 * A kill between any two of these leaves the blob as it was or as it is to be: the request that makes it is one. A
 * snapshot may be taken twice; both have the old bytes. Blocks that no list named vanish after a week by themselves, or
 * with the next list; the same attempt finds them by their ids.
 */
#include "azure_internal.h"

#include "upload_internal.h"

#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define ROUNDS 4 /* how often somebody may be faster */
#define META_HEADERS 10
#define SUM_BYTES ((size_t)256 * 1024)

struct azure_load {
    struct azure *a;
    struct load *load;
    struct azure_call *call;
    struct upload *upload;
    struct work work; /* the sum of a large file */
    struct err work_err;
    bool works;
    unsigned rounds;
    bool is_large;
    uint64_t piece_bytes;
    char *etag; /* of the blob that is to be replaced; NULL: there must be none */
    bool existed;
    char md5[DIGEST_MD5_TEXT]; /* large: of the whole */
    char prefix[16];
    uint64_t *have;
    size_t have_count;
    char *meta[META_HEADERS + 1];
    char condition[160];
    struct upload_blob blob;
};

/* ---- ends ---- */

static void finish(struct azure_load *l)
{
    struct azure *a = l->a;
    struct load *load = l->load;
    for (size_t i = 0; i < META_HEADERS; i++)
        free(l->meta[i]);
    free(l->have);
    free(l->etag);
    free(l);
    load->driver = NULL;
    load->finished(load);
    azure_load_over(a);
}

static void fail(struct azure_load *l, const struct err *err)
{
    l->load->err = *err;
    if (atomic_load(&l->load->stop) && err->code != ERR_NONE)
        err_set(&l->load->err, ERR_STOPPED, true, "stopped");
    finish(l);
}

static void fill_receipt(struct azure_load *l)
{
    struct receipt *r = &l->load->receipt;
    memcpy(r->hash, l->load->hash, sizeof r->hash);
    r->bytes = l->load->id.size;
    r->dest_rows = -1;
    r->created_table = !l->existed;
}

/* Somebody has taken the container away: the next connect() makes it again, or says who has to. */
static void set_missing(const struct azure_load *l, struct err *err)
{
    const struct azure_options *o = l->a->options;
    if (o->create_container)
        err_set(err, ERR_REMOTE, true, "container %s has been removed; it is made again", o->container);
    else
        err_set(err, ERR_DENIED, false, "container %s does not exist: make it, or set create_container: true",
                o->container);
}

/* What a refused request means where the blob's owner does not matter. */
static void fail_reply(struct azure_load *l, const struct azure_reply *r)
{
    struct err err = r->err;
    if (r->status == 404 && strcmp(r->code, "ContainerNotFound") == 0)
        set_missing(l, &err);
    else if (r->status == 409 &&
             (strcmp(r->code, "ContainerBeingDeleted") == 0 || strcmp(r->code, "OperationTimedOut") == 0))
        err_set(&err, ERR_REMOTE, true, "%s", r->err.text);
    l->load->retry_after_ms = r->retry_after_ms;
    fail(l, &err);
}

static bool must_stop(struct azure_load *l)
{
    struct err err;
    if (!atomic_load(&l->load->stop))
        return false;
    err_set(&err, ERR_STOPPED, true, "stopped");
    fail(l, &err);
    return true;
}

static void look(struct azure_load *l);
static void send_file(struct azure_load *l);

/* ---- what the blob is told about itself ---- */

/* Headers are ASCII: what a file may be called is percent-encoded, what we make ourselves (IS_OURS) is as it is. */
static bool add_meta(struct azure_load *l, size_t *count, const char *name, bool is_ours, const char *value)
{
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "x-ms-meta-%s: ", name);
    if (is_ours)
        buf_adds(&b, value);
    else
        url_encode(value, true, &b);
    char *text = b.failed ? NULL : strdup(b.data);
    buf_done(&b);
    if (text != NULL)
        l->meta[(*count)++] = text;
    return text != NULL;
}

static void format_time(int64_t ns, char *ret, size_t size)
{
    time_t seconds = (time_t)(ns / 1000000000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    strftime(ret, size, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static bool make_meta(struct azure_load *l)
{
    const struct load *load = l->load;
    const char *slash = strrchr(load->path, '/');
    char hash[33], size[24], modified[32], seconds[24];
    size_t n = 0;
    text_hex(load->hash, sizeof load->hash, hash);
    snprintf(size, sizeof size, "%llu", (unsigned long long)load->id.size);
    snprintf(seconds, sizeof seconds, "%lld", (long long)(load->id.mtime_ns / 1000000000));
    format_time(load->id.mtime_ns, modified, sizeof modified);
    return add_meta(l, &n, "original_name", false, slash != NULL ? slash + 1 : load->path) &&
           add_meta(l, &n, "original_size", true, size) && add_meta(l, &n, "modified", true, modified) &&
           add_meta(l, &n, "modified_seconds", true, seconds) && add_meta(l, &n, "chute_source", false, load->source) &&
           add_meta(l, &n, "chute_path", false, load->path) && add_meta(l, &n, "chute_hash", true, hash) &&
           add_meta(l, &n, "chute_load", true, load->load_key) &&
           add_meta(l, &n, "chute_instance", false, load->instance != NULL ? load->instance : "");
}

/* So that a browser shows what it can show. */
static const char *content_type(const char *path)
{
    static const struct {
        const char *ext, *type;
    } types[] = {{"csv", "text/csv"},
                 {"txt", "text/plain"},
                 {"log", "text/plain"},
                 {"json", "application/json"},
                 {"jsonl", "application/x-ndjson"},
                 {"xml", "application/xml"},
                 {"html", "text/html"},
                 {"pdf", "application/pdf"},
                 {"zip", "application/zip"},
                 {"gz", "application/gzip"},
                 {"png", "image/png"},
                 {"jpg", "image/jpeg"},
                 {"jpeg", "image/jpeg"},
                 {"gif", "image/gif"},
                 {"svg", "image/svg+xml"}};
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash != NULL ? slash : path, '.');
    for (size_t i = 0; dot != NULL && i < sizeof types / sizeof types[0]; i++)
        if (strcasecmp(dot + 1, types[i].ext) == 0)
            return types[i].type;
    return NULL;
}

/* ---- sending ---- */

static void on_compared(void *arg, const struct azure_reply *r)
{
    struct azure_load *l = arg;
    l->call = NULL;
    if (r->err.code != ERR_NONE) {
        fail_reply(l, r);
        return;
    }
    const char *length = http_header(r->answer, "Content-Length"), *md5 = http_header(r->answer, "Content-MD5");
    struct err err;
    if (strcmp(azure_meta(r, "load"), l->load->load_key) != 0)
        err_set(&err, ERR_REMOTE, true, "somebody else wrote the blob at the same time");
    else if (length == NULL || strtoull(length, NULL, 10) != l->load->id.size || md5 == NULL ||
             strcmp(md5, l->md5) != 0)
        err_set(&err, ERR_REMOTE, true, "the blob has %s bytes with MD5 %s, expected %llu with %s",
                length != NULL ? length : "?", md5 != NULL ? md5 : "?", (unsigned long long)l->load->id.size, l->md5);
    else
        err_clear(&err);
    if (err.code != ERR_NONE) {
        fail(l, &err);
        return;
    }
    fill_receipt(l);
    err_clear(&l->load->err);
    finish(l);
}

static void on_uploaded(void *arg, const struct upload_result *result)
{
    struct azure_load *l = arg;
    struct err err = result->err;
    l->upload = NULL;
    bool was_faster = result->status == 409 || result->status == 412;
    if (err.code == ERR_NONE && l->load->still_current != NULL)
        l->load->still_current(l->load, &err);
    if (err.code == ERR_NONE && l->is_large) {
        if (azure_call(l->a, "HEAD", l->load->table, "", NULL, on_compared, l, &l->call, &err) == ERR_NONE)
            return;
    } else if (err.code == ERR_NONE) {
        fill_receipt(l);
        err_clear(&l->load->err);
        finish(l);
        return;
    }
    l->load->retry_after_ms = result->retry_after_ms;
    if (was_faster && !atomic_load(&l->load->stop)) {
        if (++l->rounds < ROUNDS) {
            look(l);
            return;
        }
        err_set(&err, ERR_REMOTE, true, "blob %s is changed by others all the time: %s", l->load->table, result->code);
    } else if (result->status == 401 || result->status == 403) {
        err.code = ERR_DENIED;
        err.retryable = false;
    } else if (result->status == 404) {
        set_missing(l, &err);
    } else if (result->status >= 400 && result->status < 500 && result->status != 408 && result->status != 429) {
        err.code = ERR_INPUT;
        err.retryable = false;
    }
    fail(l, &err);
}

static void send_file(struct azure_load *l)
{
    struct err err;
    if (must_stop(l))
        return;
    err_clear(&err);
    if (l->etag == NULL)
        snprintf(l->condition, sizeof l->condition, "If-None-Match: *");
    else
        snprintf(l->condition, sizeof l->condition, "If-Match: %s", l->etag);
    l->blob = (struct upload_blob){.content_type = content_type(l->load->path),
                                   .headers = (const char *const *)l->meta,
                                   .condition = l->condition,
                                   .md5 = l->is_large ? l->md5 : NULL,
                                   .block_prefix = l->is_large ? l->prefix : NULL,
                                   .have = l->have,
                                   .have_count = l->have_count};
    const struct upload_request request = {
        .target = azure_target(l->a, l->load->table),
        .blob = &l->blob,
        .body = {.from = UPLOAD_FILE, .fd = l->load->fd, .size = l->load->id.size},
        .done = on_uploaded,
        .stop = &l->load->stop,
        .arg = l,
    };
    if (l->load->still_current != NULL && l->load->still_current(l->load, &err) != ERR_NONE) {
        fail(l, &err);
        return;
    }
    if (upload_start(l->a->uploader, &request, &l->upload, &err) != ERR_NONE)
        fail(l, &err);
}

/* ---- large files: the sum of the whole, and what is there already ---- */

/* Number of the block with this id; -1: not one of ours. */
static long block_number(const struct azure_load *l, const char *id, size_t size)
{
    char wanted[AZURE_BLOCK_ID];
    size_t most = (size_t)(l->load->id.size / l->piece_bytes) + 1;
    azure_block_id(l->prefix, 0, wanted);
    size_t same = 12; /* the prefix fills 13 digits of base64, the last of them shared with the number */
    if (size != strlen(wanted) || strncmp(id, wanted, same) != 0)
        return -1;
    for (size_t i = 0; i < most; i++) {
        azure_block_id(l->prefix, (unsigned)i, wanted);
        if (strncmp(id, wanted, size) == 0)
            return (long)i;
    }
    return -1;
}

/* <Block><Name>ID</Name><Size>N</Size></Block> …, of which those with our prefix count. */
static enum err_code read_blocks(struct azure_load *l, const char *body, struct err *err)
{
    l->have_count = (size_t)(l->load->id.size / l->piece_bytes) + 1;
    l->have = calloc(l->have_count, sizeof *l->have);
    if (l->have == NULL)
        return err_nomem(err);
    for (const char *at = body; (at = strstr(at, "<Name>")) != NULL;) {
        at += strlen("<Name>");
        const char *end = strchr(at, '<'), *size = end != NULL ? strstr(end, "<Size>") : NULL;
        if (size == NULL)
            break;
        long n = block_number(l, at, (size_t)(end - at));
        if (n >= 0 && (size_t)n < l->have_count)
            l->have[n] = strtoull(size + strlen("<Size>"), NULL, 10);
        at = size;
    }
    return ERR_NONE;
}

static void on_blocks(void *arg, const struct azure_reply *r)
{
    struct azure_load *l = arg;
    struct err err;
    l->call = NULL;
    if (r->err.code != ERR_NONE && r->status != 404) {
        fail_reply(l, r);
        return;
    }
    if (r->err.code == ERR_NONE && read_blocks(l, r->answer->body, &err) != ERR_NONE)
        fail(l, &err);
    else
        send_file(l);
}

static void ask_blocks(struct azure_load *l)
{
    struct err err;
    if (must_stop(l))
        return;
    if (l->have != NULL) /* a second round */
        send_file(l);
    else if (azure_call(l->a, "GET", l->load->table, "blocklisttype=uncommitted&comp=blocklist", NULL, on_blocks, l,
                        &l->call, &err) != ERR_NONE)
        fail(l, &err);
}

static void sum_run(struct work *work)
{
    struct azure_load *l = work->arg;
    struct digest_md5 *md5;
    uint8_t sum[DIGEST_MD5_BYTES], *data = malloc(SUM_BYTES);
    uint64_t at = 0;
    if (data == NULL || digest_md5_new(&md5, &l->work_err) != ERR_NONE) {
        if (data == NULL)
            err_nomem(&l->work_err);
        free(data);
        return;
    }
    for (ssize_t n; (n = pread(l->load->fd, data, SUM_BYTES, (off_t)at)) != 0;) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            err_set(&l->work_err, ERR_SYSTEM, true, "read at byte %llu: %s", (unsigned long long)at, strerror(errno));
        else if (atomic_load(&l->load->stop))
            err_set(&l->work_err, ERR_STOPPED, true, "stopped");
        if (l->work_err.code != ERR_NONE)
            break;
        digest_md5_add(md5, data, (size_t)n);
        at += (uint64_t)n;
    }
    free(data);
    if (l->work_err.code != ERR_NONE) {
        digest_md5_free(md5);
        return;
    }
    if (digest_md5_end(md5, sum, &l->work_err) == ERR_NONE)
        digest_base64(sum, sizeof sum, l->md5);
    if (at != l->load->id.size)
        err_set(&l->work_err, ERR_CHANGED, true, "changed while it was read: %llu bytes, expected %llu",
                (unsigned long long)at, (unsigned long long)l->load->id.size);
}

static void on_summed(struct work *work)
{
    struct azure_load *l = work->arg;
    l->works = false;
    if (l->work_err.code != ERR_NONE)
        fail(l, &l->work_err);
    else
        ask_blocks(l);
}

/* All that is needed before the bytes of the file go. */
static void prepare(struct azure_load *l)
{
    struct err err;
    if (!l->is_large) {
        send_file(l);
        return;
    }
    if (l->md5[0] != '\0') {
        ask_blocks(l);
        return;
    }
    l->work.arg = l;
    err_clear(&l->work_err);
    if (work_thread(l->a->loop, &l->work, sum_run, on_summed, &err) != ERR_NONE)
        fail(l, &err);
    else
        l->works = true;
}

/* ---- what is there ---- */

static void on_snapshot(void *arg, const struct azure_reply *r)
{
    struct azure_load *l = arg;
    l->call = NULL;
    if (r->status == 412 && ++l->rounds < ROUNDS)
        look(l);
    else if (r->err.code != ERR_NONE)
        fail_reply(l, r);
    else
        prepare(l);
}

static void keep_old(struct azure_load *l)
{
    struct err err;
    snprintf(l->condition, sizeof l->condition, "If-Match: %s", l->etag);
    const char *const headers[] = {l->condition, NULL};
    if (azure_call(l->a, "PUT", l->load->table, "comp=snapshot", headers, on_snapshot, l, &l->call, &err) != ERR_NONE)
        fail(l, &err);
}

static bool read_hash(const char *hex, uint8_t ret[16])
{
    for (size_t i = 0; i < 16; i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return false;
        ret[i] = (uint8_t)byte;
    }
    return true;
}

/* Is there nothing to do? */
static bool is_done(struct azure_load *l, const struct azure_reply *r)
{
    const char *length = http_header(r->answer, "Content-Length");
    char hash[33];
    struct receipt *to = &l->load->receipt;
    bool is_resumed = strcmp(azure_meta(r, "load"), l->load->load_key) == 0;
    text_hex(l->load->hash, sizeof l->load->hash, hash);
    bool is_same =
        strcmp(azure_meta(r, "hash"), hash) == 0 && length != NULL && strtoull(length, NULL, 10) == l->load->id.size;
    if (!is_resumed && (!is_same || l->load->plan->on_duplicate == DUPLICATE_RELOAD))
        return false;
    fill_receipt(l);
    to->is_duplicate = true;
    to->is_resumed = is_resumed;
    if (is_resumed) {
        to->bytes = length != NULL ? strtoull(length, NULL, 10) : to->bytes;
        read_hash(azure_meta(r, "hash"), to->hash);
    }
    return true;
}

static void on_looked(void *arg, const struct azure_reply *r)
{
    struct azure_load *l = arg;
    struct err err;
    l->call = NULL;
    free(l->etag);
    l->etag = NULL;
    if (r->status == 404 && strcmp(r->code, "ContainerNotFound") != 0) {
        prepare(l);
        return;
    }
    if (r->err.code != ERR_NONE) {
        fail_reply(l, r);
        return;
    }
    l->existed = true;
    const char *etag = http_header(r->answer, "ETag"), *type = http_header(r->answer, "x-ms-blob-type");
    if (!azure_is_of(r, l->load->source, l->load->path)) {
        char owner[300];
        azure_owner(r, owner, sizeof owner);
        err_set(&err, ERR_INPUT, false,
                "blob %s %s and would be overwritten by %s of source %s: rename one of them, or give the flow another "
                "`blob`",
                l->load->table, owner, l->load->path, l->load->source);
        fail(l, &err);
        return;
    }
    if (type != NULL && strcmp(type, "BlockBlob") != 0) {
        err_set(&err, ERR_INPUT, false, "blob %s is a %s, expected a BlockBlob: remove it", l->load->table, type);
        fail(l, &err);
        return;
    }
    if (is_done(l, r)) {
        err_clear(&l->load->err);
        finish(l);
        return;
    }
    l->etag = strdup(etag != NULL ? etag : "*");
    if (l->etag == NULL) {
        err_nomem(&err);
        fail(l, &err);
    } else if (l->load->plan->overwrites) {
        prepare(l);
    } else {
        keep_old(l);
    }
}

static void look(struct azure_load *l)
{
    struct err err;
    if (must_stop(l))
        return;
    if (azure_call(l->a, "HEAD", l->load->table, "", NULL, on_looked, l, &l->call, &err) != ERR_NONE)
        fail(l, &err);
}

/* ---- life ---- */

enum err_code azure_load_begin(struct azure *a, struct load *load, struct err *err)
{
    struct azure_load *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_nomem(err);
    l->a = a;
    l->load = load;
    l->piece_bytes = uploader_piece_bytes(a->uploader, STORE_AZURE, load->id.size);
    l->is_large = l->piece_bytes > 0;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *p = load->load_key; *p != '\0'; p++)
        hash = (hash ^ (unsigned char)*p) * UINT64_C(0x100000001b3);
    snprintf(l->prefix, sizeof l->prefix, "%010llx", (unsigned long long)(hash & UINT64_C(0xffffffffff)));
    memset(&load->receipt, 0, sizeof load->receipt);
    load->driver = l;
    if (!make_meta(l)) {
        err_nomem(err);
        goto failed;
    }
    if (l->is_large) {
        if (azure_call(a, "HEAD", load->table, "", NULL, on_looked, l, &l->call, err) != ERR_NONE)
            goto failed;
        return ERR_NONE;
    }
    /* A small file is most often a new one: it costs one request. */
    snprintf(l->condition, sizeof l->condition, "If-None-Match: *");
    l->blob = (struct upload_blob){
        .content_type = content_type(load->path), .headers = (const char *const *)l->meta, .condition = l->condition};
    const struct upload_request request = {.target = azure_target(a, load->table),
                                           .blob = &l->blob,
                                           .body = {.from = UPLOAD_FILE, .fd = load->fd, .size = load->id.size},
                                           .done = on_uploaded,
                                           .stop = &load->stop,
                                           .arg = l};
    if (upload_start(a->uploader, &request, &l->upload, err) == ERR_NONE)
        return ERR_NONE;
failed:
    for (size_t i = 0; i < META_HEADERS; i++)
        free(l->meta[i]);
    free(l);
    load->driver = NULL;
    return err->code;
}

void azure_load_abort(struct load *load)
{
    struct azure_load *l = load->driver;
    if (l == NULL)
        return;
    if (l->call != NULL)
        azure_cancel(l->call);
    else if (l->upload != NULL)
        upload_cancel(l->upload);
    /* the thread that sums sees load->stop */
}
