/*
 * keboola_bucket.c -- a bucket is looked for once, and made if it is not there. See keboola_internal.h.
 *
 *   asked ─GET in.c-NAME─▶ 200: known
 *                       └▶ 404 ─POST─▶ 201: known
 *                                   └▶ "already exists" ─GET buckets─▶ found by stage and name: known
 *                                                                   └▶ not: its display name clashes, an error
 *
 * The id always comes from the service: not every project has the "c-" in it. All who need a bucket while it is asked
 * for wait for the one answer; only ids are remembered, errors are not.
 */
#include "keboola_internal.h"

#include "clock.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

struct bucket_waiter {
    struct bucket_waiter *next;
    bucket_cb *cb;
    void *arg;
    bool make;
};

struct bucket {
    struct bucket *next;
    struct keboola *k;
    char *name;
    char *id; /* NULL: not known */
    struct bucket_waiter *waiters;
    struct api_call *call;
    bool is_asked;
    bool is_posted;         /* in this round */
    uint64_t wait_until_ms; /* monotonic: the service asked for a pause; 0 none */
    uv_timer_t soon;        /* an answer that is known is told on a later turn */
    bool has_timer;
};

static void bucket_ask(struct bucket *b);

static void tell(struct bucket *b, const struct err *err)
{
    struct bucket_waiter *w, *list = b->waiters;
    b->waiters = NULL;
    b->is_asked = false;
    while ((w = list) != NULL) {
        bucket_cb *cb = w->cb;
        void *arg = w->arg;
        list = w->next;
        free(w);
        cb(arg, b->id, err);
    }
}

static bool somebody_makes(const struct bucket *b)
{
    const struct bucket_waiter *w;
    LL_FOREACH(b->waiters, w)
        if (w->make)
            return true;
    return false;
}

static bool keep_id(struct bucket *b, struct json_object *json)
{
    const char *id = api_text(json, "id");
    free(b->id);
    b->id = id != NULL && strchr(id, '/') == NULL && strchr(id, '?') == NULL ? strdup(id) : NULL;
    return b->id != NULL;
}

static void fail(struct bucket *b, const struct err *err)
{
    tell(b, err);
}

/* The service said no. Those who come again before the pause is over that it asked for wait with us. */
static void refused(struct bucket *b, const struct api_reply *r)
{
    b->wait_until_ms = r->retry_after_ms > 0 ? clock_mono_ms() + r->retry_after_ms : 0;
    fail(b, &r->err);
}

static void no_sense(struct bucket *b, const char *what)
{
    struct err err = {0};
    err_set(&err, ERR_REMOTE, true, "%s: the answer has no usable id", what);
    fail(b, &err);
}

static void on_list(void *arg, const struct api_reply *r)
{
    struct bucket *b = arg;
    struct err err = {0};
    b->call = NULL;
    if (r->err.code != ERR_NONE) {
        refused(b, r);
        return;
    }
    const char *stage = keboola_stages[b->k->options->stage];
    for (size_t i = 0; json_object_is_type(r->json, json_type_array) && i < json_object_array_length(r->json); i++) {
        struct json_object *o = json_object_array_get_idx(r->json, i);
        const char *s = api_text(o, "stage"), *name = api_text(o, "name");
        if (s == NULL || name == NULL || strcmp(s, stage) != 0)
            continue;
        if (strcmp(name, b->name) == 0 || (strncmp(name, "c-", 2) == 0 && strcmp(name + 2, b->name) == 0)) {
            if (keep_id(b, o))
                tell(b, NULL);
            else
                no_sense(b, "GET buckets");
            return;
        }
    }
    err_set(
        &err, ERR_INPUT, false,
        "bucket %s can't be made in stage %s: another bucket is displayed under that name; rename the folder, or that "
        "bucket in Keboola",
        b->name, stage);
    fail(b, &err);
}

static void on_posted(void *arg, const struct api_reply *r)
{
    struct bucket *b = arg;
    struct err err = r->err;
    b->call = NULL;
    if (err.code == ERR_NONE) {
        if (keep_id(b, r->json))
            tell(b, NULL);
        else
            no_sense(b, "POST buckets");
        return;
    }
    if ((r->status == 400 || r->status == 409) && code_is(r->code, "storage.buckets.alreadyExists")) {
        if (api_start(b->k, "GET", "buckets", NULL, true, on_list, b, &b->call, &err) != ERR_NONE)
            fail(b, &err);
        return;
    }
    if (r->status == 403) /* a token for certain buckets only may not make others: no reason to stop the rest */
        err_set(&err, ERR_INPUT, true,
                "bucket %s does not exist, and token %s may not make one; make it in Keboola, or use a token that may "
                "manage buckets",
                b->name, b->k->token_name);
    struct api_reply told = *r;
    told.err = err;
    refused(b, &told);
}

static void post(struct bucket *b)
{
    struct buf body;
    struct err err = {0};
    buf_init(&body);
    buf_adds(&body, "{\"name\":");
    buf_add_json(&body, b->name);
    buf_printf(&body, ",\"stage\":\"%s\"}", keboola_stages[b->k->options->stage]);
    b->is_posted = true;
    if (body.failed)
        err_nomem(&err);
    else
        api_start(b->k, "POST", "buckets", body.data, true, on_posted, b, &b->call, &err);
    buf_done(&body);
    if (err.code != ERR_NONE)
        fail(b, &err);
}

static void on_got(void *arg, const struct api_reply *r)
{
    struct bucket *b = arg;
    b->call = NULL;
    if (r->err.code == ERR_NONE) {
        if (keep_id(b, r->json))
            tell(b, NULL);
        else
            no_sense(b, "GET buckets");
    } else if (r->status == 403 && !b->k->can_manage_buckets) { /* a token for some buckets: this is none of them */
        struct err err = {0};
        err_set(&err, ERR_INPUT, true, "token %s may not write to bucket %s; give it that right in Keboola",
                b->k->token_name, b->name);
        fail(b, &err);
    } else if (r->status != 404 || !code_is(r->code, "storage.buckets.notFound")) {
        refused(b, r);
    } else if (somebody_makes(b)) {
        post(b);
    } else {
        tell(b, NULL);
    }
}

static void bucket_ask(struct bucket *b)
{
    struct err err = {0};
    char path[256];
    b->is_asked = true;
    b->is_posted = false;
    snprintf(path, sizeof path, "buckets/%s.c-%s", keboola_stages[b->k->options->stage], b->name);
    if (api_start(b->k, "GET", path, NULL, true, on_got, b, &b->call, &err) != ERR_NONE)
        fail(b, &err);
}

/* Tell what is known, or ask: both from the loop, never from inside bucket_need(). */
static void on_soon(uv_timer_t *timer)
{
    struct bucket *b = timer->data;
    if (b->is_asked)
        return;
    if (b->id != NULL)
        tell(b, NULL);
    else if (b->waiters != NULL)
        bucket_ask(b);
}

static struct bucket *bucket_named(struct keboola *k, const char *name)
{
    struct bucket *b;
    LL_FOREACH(k->buckets, b)
        if (strcmp(b->name, name) == 0)
            return b;
    b = calloc(1, sizeof *b);
    if (b == NULL || (b->name = strdup(name)) == NULL) {
        free(b);
        return NULL;
    }
    b->k = k;
    uv_timer_init(k->loop, &b->soon);
    b->soon.data = b;
    LL_PREPEND(k->buckets, b);
    return b;
}

enum err_code bucket_need(struct keboola *k, const char *name, bool make, bucket_cb *cb, void *arg, struct err *err)
{
    struct bucket *b = bucket_named(k, name);
    struct bucket_waiter *w = b != NULL ? calloc(1, sizeof *w) : NULL;
    if (w == NULL)
        return err_nomem(err);
    w->cb = cb;
    w->arg = arg;
    w->make = make;
    LL_APPEND(b->waiters, w);
    uint64_t now = clock_mono_ms();
    if (!b->is_asked)
        uv_timer_start(&b->soon, on_soon, b->id == NULL && b->wait_until_ms > now ? b->wait_until_ms - now : 0, 0);
    return ERR_NONE;
}

uint64_t bucket_pause_ms(const struct keboola *k, const char *name)
{
    const struct bucket *b;
    uint64_t now = clock_mono_ms();
    LL_FOREACH(k->buckets, b)
        if (strcmp(b->name, name) == 0 && b->wait_until_ms > now)
            return b->wait_until_ms - now;
    return 0;
}

void bucket_leave(struct keboola *k, void *arg)
{
    struct bucket *b;
    struct bucket_waiter *w, *tmp;
    LL_FOREACH(k->buckets, b)
        LL_FOREACH_SAFE(b->waiters, w, tmp)
            if (w->arg == arg) {
                LL_DELETE(b->waiters, w);
                free(w);
            }
}

void bucket_forget(struct keboola *k, const char *id)
{
    struct bucket *b;
    LL_FOREACH(k->buckets, b)
        if (b->id != NULL && strcmp(b->id, id) == 0) {
            free(b->id);
            b->id = NULL;
        }
}

bool bucket_is_foreign(const struct keboola *k, const char *id, bool needs_manage)
{
    if (k->can_manage_buckets || k->permit_count == 0)
        return false;
    for (size_t i = 0; i < k->permit_count; i++)
        if (strcmp(k->permits[i].bucket, id) == 0)
            return needs_manage ? strcmp(k->permits[i].level, "manage") != 0 : strcmp(k->permits[i].level, "read") == 0;
    return true;
}

static void on_bucket_closed(uv_handle_t *handle)
{
    struct bucket *b = handle->data;
    struct bucket_waiter *w, *tmp;
    LL_FOREACH_SAFE(b->waiters, w, tmp)
        free(w);
    free(b->name);
    free(b->id);
    free(b);
}

void buckets_done(struct keboola *k)
{
    struct bucket *b, *tmp;
    LL_FOREACH_SAFE(k->buckets, b, tmp)
        uv_close((uv_handle_t *)&b->soon, on_bucket_closed);
    k->buckets = NULL;
}
