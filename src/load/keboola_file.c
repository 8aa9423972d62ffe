/* keboola_file.c -- the bytes, into the store that the service names, as they are or written anew. See keboola_walk.h.
 */
#include "keboola_walk.h"

#include "clock.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* ---- PREPARE ---- */

static bool gzips(const struct kload *l)
{
    bool is_plain = !l->is_raw || l->load->rows->shape->dialect.compression == COMPRESSION_NONE;
    return is_plain && l->load->id.size > l->k->options->gzip_above;
}

enum next walk_enter_prepare(struct kload *l)
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
    enum next next = walk_ask(l, "POST", "files/prepare", &b, true);
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
    walk_forget_target(l);
    return keboola_target(file, l->k->options, &l->arena, &l->target, &l->account);
}

enum next walk_answer_prepare(struct kload *l)
{
    struct err err = {0};
    if (l->reply->err.code != ERR_NONE)
        return walk_refused(l);
    l->walk.file = api_number(l->reply->json, "id", 0);
    if (l->walk.file <= 0 || !read_target(l, l->reply->json)) {
        const char *provider = api_text(l->reply->json, "provider");
        char shown[40];
        err_set(&err, ERR_REMOTE, true, "files/prepare: the answer lacks what an upload to %s needs",
                provider != NULL ? text_printable(provider, shown, sizeof shown) : "its store");
        return walk_fails(l, &err);
    }
    l->slice = 0;
    l->walk.is_uploaded = false;
    return walk_keep(l, l->is_raw ? K_UPLOAD : K_REWIND);
}

/* ---- UPLOAD ---- */

static void rewind_fn(struct work *work)
{
    struct kload *l = work->arg;
    rows_rewind(l->load->rows, &l->err);
}

enum next walk_enter_rewind(struct kload *l)
{
    return walk_work(l, rewind_fn);
}

enum next walk_answer_rewind(struct kload *l)
{
    return l->err.code != ERR_NONE ? OVER : walk_go(l, K_UPLOAD);
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
        if (walk_prepare_again(l, &err) == OVER)
            walk_finish(l);
        else
            walk_enter(l);
        return;
    }
    walk_answer(l);
}

static void on_renewed(void *arg, const struct api_reply *reply)
{
    struct kload *l = arg;
    struct err err = {0};
    l->renewal = NULL;
    if (l->is_over) {
        walk_finish(l);
        return;
    }
    if (l->upload == NULL)
        return;
    if (reply->err.code != ERR_NONE || !read_target(l, reply->json) ||
        upload_renew(l->upload, &l->target, &err) != ERR_NONE)
        upload_cancel(l->upload); /* told as stopped: walk_answer_upload() makes another try of it */
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

enum next walk_enter_upload(struct kload *l)
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
    return err.code == ERR_NONE ? WAIT : walk_fails(l, &err);
}

/* What was written anew must be what was inspected. */
static bool is_same_pass(const struct kload *l)
{
    const struct load *load = l->load;
    return l->is_raw || memcmp(load->rows->result.hash, load->hash, sizeof load->hash) == 0;
}

enum next walk_answer_upload(struct kload *l)
{
    if (l->err.code == ERR_STOPPED && !l->load->stop) /* renewed in vain */
        err_set(&l->err, ERR_REMOTE, true,
                "the store's credentials ended during the upload, and there were no new ones");
    if (l->err.code != ERR_NONE)
        return OVER;
    if (l->walk.is_sliced && l->slice++ < l->load->cut_count)
        return walk_go(l, K_UPLOAD);
    if (!is_same_pass(l)) {
        err_set(&l->err, ERR_CHANGED, true, "changed while it was uploaded");
        return OVER;
    }
    l->walk.is_uploaded = true;
    walk_forget_target(l);
    return walk_keep(l, K_CURRENT);
}
