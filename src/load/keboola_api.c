/*
 * keboola_api.c -- one request to the Storage API and what its answer means. See keboola_internal.h.
 *
 * Never assumes JSON: a proxy in between answers HTML, or nothing.
 */
#include "keboola_internal.h"

#include "clock.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ANSWER_MAX (16u << 20)
#define PAUSE_MAX_MS (24u * 3600 * 1000)
#define SECRET_PART_MIN 6             /* letters of a secret, whole or what a cut left of it; fewer are anybody's */
#define PAUSE_DEFAULT_MS (60u * 1000) /* maintenance that does not say for how long */

struct api_call {
    struct keboola *k;
    struct http_transfer *transfer;
    char *body;
    char what[200]; /* "POST buckets", for messages */
    api_cb *cb;
    void *arg;
};

/* ---- JSON ---- */

struct json_object *api_member(struct json_object *o, const char *key)
{
    struct json_object *m = NULL;
    if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &m))
        return NULL;
    if (json_object_is_type(m, json_type_array) && json_object_array_length(m) == 0)
        return NULL;
    return m;
}

const char *api_text(struct json_object *o, const char *key)
{
    struct json_object *m = api_member(o, key);
    if (json_object_is_type(m, json_type_string) || json_object_is_type(m, json_type_int))
        return json_object_get_string(m);
    return NULL;
}

int64_t api_number(struct json_object *o, const char *key, int64_t missing)
{
    struct json_object *m = api_member(o, key);
    if (json_object_is_type(m, json_type_int))
        return json_object_get_int64(m);
    if (!json_object_is_type(m, json_type_string))
        return missing;
    const char *s = json_object_get_string(m);
    char *end;
    int64_t n = strtoll(s, &end, 10);
    return *s != '\0' && *end == '\0' ? n : missing;
}

int64_t api_time_ms(struct json_object *o, const char *key)
{
    const char *text = api_text(o, key);
    struct tm tm = {0};
    if (text == NULL || strptime(text, "%Y-%m-%dT%H:%M:%S%z", &tm) == NULL)
        return 0;
    long zone = tm.tm_gmtoff;
    return ((int64_t)timegm(&tm) - zone) * 1000;
}

bool api_flag(struct json_object *o, const char *key)
{
    return json_object_get_boolean(api_member(o, key)) != 0;
}

enum err_code api_texts(struct json_object *o, struct arena *arena, const char ***ret, size_t *ret_count,
                        struct err *err)
{
    bool is_list = json_object_is_type(o, json_type_array);
    size_t n = is_list                                    ? json_object_array_length(o)
               : json_object_is_type(o, json_type_object) ? (size_t)json_object_object_length(o)
                                                          : 0;
    const char **texts = arena_alloc(arena, (n + 1) * sizeof *texts);
    size_t used = 0;
    bool failed = texts == NULL;
    if (is_list) {
        for (size_t i = 0; i < n && !failed; i++) {
            const char *s = json_object_get_string(json_object_array_get_idx(o, i));
            texts[used] = arena_strdup(arena, s != NULL ? s : "");
            failed = texts[used++] == NULL;
        }
    } else if (n > 0 && !failed) {
        struct json_object_iterator at = json_object_iter_begin(o), end = json_object_iter_end(o);
        for (; !json_object_iter_equal(&at, &end) && !failed; json_object_iter_next(&at)) {
            const char *s = json_object_get_string(json_object_iter_peek_value(&at));
            texts[used] = arena_strdup(arena, s != NULL ? s : "");
            failed = texts[used++] == NULL;
        }
    }
    if (failed)
        return err_nomem(err);
    *ret = texts;
    *ret_count = used;
    return ERR_NONE;
}

bool code_is(const char *code, const char *want)
{
    return code != NULL && strcasecmp(code, want) == 0;
}

/* ---- what an answer means ---- */

/* "120" or an HTTP date. */
static uint64_t retry_after(const struct http_answer *answer)
{
    const char *value = http_header(answer, "Retry-After");
    if (value == NULL)
        return 0;
    char *end;
    unsigned long long seconds = strtoull(value, &end, 10);
    if (end != value && *end == '\0')
        return seconds < PAUSE_MAX_MS / 1000 ? (uint64_t)seconds * 1000 : PAUSE_MAX_MS;
    struct tm tm = {0};
    end = strptime(value, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    if (end == NULL)
        return 0;
    int64_t wait = ((int64_t)timegm(&tm) * 1000) - clock_wall_ms();
    return wait <= 0 ? 0 : wait < (int64_t)PAUSE_MAX_MS ? (uint64_t)wait : PAUSE_MAX_MS;
}

static void add_part(struct buf *b, const char *before, const char *text)
{
    char shown[400];
    if (text == NULL || text[0] == '\0')
        return;
    buf_adds(b, before);
    buf_adds(b, text_printable(text, shown, sizeof shown));
}

/* "POST buckets: 400: The bucket … (storage.buckets.alreadyExists, exception keboola-…)" */
static void describe(struct buf *b, const char *what, const struct api_reply *r)
{
    const char *message = api_text(r->json, "error");
    if (message == NULL || message[0] == '\0')
        message = api_text(r->json, "message");
    buf_printf(b, "%s: %d", what, r->status);
    add_part(b, ": ", message);
    struct json_object *errors = api_member(r->json, "errors");
    for (size_t i = 0; json_object_is_type(errors, json_type_array) && i < json_object_array_length(errors) && i < 4;
         i++) {
        struct json_object *e = json_object_array_get_idx(errors, i);
        add_part(b, "; ", api_text(e, "key"));
        add_part(b, ": ", api_text(e, "message"));
    }
    const char *id = api_text(r->json, "exceptionId");
    bool has_code = r->code[0] != '\0', has_id = id != NULL && id[0] != '\0';
    if (has_code || has_id)
        buf_adds(b, " (");
    add_part(b, "", r->code);
    if (has_id)
        add_part(b, has_code ? ", exception " : "exception ", id);
    if (has_code || has_id)
        buf_addc(b, ')');
}

static bool is_maintenance(const struct api_reply *r)
{
    const char *status = api_text(r->json, "status");
    return r->status == 503 && status != NULL && strcasecmp(status, "maintenance") == 0;
}

static void refuse(struct keboola *k, const char *what, struct api_reply *r)
{
    struct buf b;
    buf_init(&b);
    describe(&b, what, r);
    char text[sizeof r->err.text];
    snprintf(text, sizeof text, "%s", b.failed ? what : b.data);
    buf_done(&b);
    const char *name = k->token_name[0] != '\0' ? k->token_name : "of this destination";
    switch (r->status) {
    case 401:
        err_set(&r->err, ERR_DENIED, false, "token %s is not accepted: %s; give the destination a valid `token`", name,
                text);
        return;
    case 403:
        err_set(&r->err, ERR_DENIED, false, "token %s may not do that: %s", name, text);
        return;
    case 405:
    case 501:
        err_set(&r->err, ERR_REMOTE, !r->is_api, "%s", text);
        return;
    case 408:
    case 423:
    case 429:
        err_set(&r->err, ERR_REMOTE, true, "%s", text);
        return;
    default:
        break;
    }
    if (is_maintenance(r)) {
        const char *until = api_text(r->json, "estimatedEndTime"), *why = api_text(r->json, "reason");
        char shown[80], reason[120];
        uint64_t wait = r->retry_after_ms > 0 ? r->retry_after_ms : PAUSE_DEFAULT_MS;
        k->pause_until_ms = clock_mono_ms() + wait;
        snprintf(k->until, sizeof k->until, "%s", until != NULL ? text_printable(until, shown, sizeof shown) : "");
        err_set(&r->err, ERR_REMOTE, true, "%s: maintenance%s%s%s%s", k->options->url,
                k->until[0] != '\0' ? " until " : "", k->until, why != NULL ? ": " : "",
                why != NULL ? text_printable(why, reason, sizeof reason) : "");
    } else if (r->status >= 500) {
        err_set(&r->err, ERR_REMOTE, true, "%s", text);
    } else if (r->status >= 400 && r->is_api) {
        err_set(&r->err, ERR_INPUT, false, "%s", text);
    } else if (r->status >= 400) {
        err_set(&r->err, ERR_REMOTE, true, "%s, and not in the form of the Storage API; is there a proxy in between?",
                text);
    } else {
        err_set(&r->err, ERR_REMOTE, true, "%s; expected an answer of the Storage API: is `url` the right stack?",
                text);
    }
}

struct json_object *api_parse(const struct keboola *k, const char *answer, size_t size)
{
    const char *token = k->options->token;
    size_t n = strlen(token);
    if (size == 0)
        return NULL;
    bool quotes = n >= SECRET_PART_MIN && memmem(answer, size, token, n) != NULL;
    char *own = quotes ? malloc(size) : NULL;
    const char *body = answer;
    if (own != NULL) {
        memcpy(own, body, size);
        for (char *p = own; (p = memmem(p, size - (size_t)(p - own), token, n)) != NULL; p += n)
            memset(p, '*', n);
        body = own;
    } else if (quotes) {
        return NULL; /* out of memory: nothing of it may be told */
    }
    struct json_object *json = NULL;
    struct json_tokener *tokener = json_tokener_new();
    if (tokener != NULL) {
        json = json_tokener_parse_ex(tokener, body, (int)size);
        if (json_tokener_get_error(tokener) != json_tokener_success) {
            json_object_put(json);
            json = NULL;
        }
        json_tokener_free(tokener);
    }
    free(own);
    return json;
}

void api_hide(struct err *err, const char *secret)
{
    size_t n = secret != NULL ? strlen(secret) : 0;
    if (n < SECRET_PART_MIN)
        return;
    for (char *p; (p = strstr(err->text, secret)) != NULL;) {
        memcpy(p, "***", 3);
        memmove(p + 3, p + n, strlen(p + n) + 1);
    }
    size_t length = strlen(err->text); /* one that was cut off at the end */
    for (size_t cut = n < length ? n : length; cut >= SECRET_PART_MIN; cut--)
        if (strncmp(err->text + length - cut, secret, cut) == 0) {
            snprintf(err->text + length - cut, sizeof err->text - (length - cut), "***");
            return;
        }
}

void api_judge(struct keboola *k, const char *what, bool has_body, struct api_reply *r)
{
    const char *code = api_text(r->json, "code");
    r->code = code != NULL ? code : "";
    r->is_api = code != NULL || api_text(r->json, "error") != NULL || api_text(r->json, "exceptionId") != NULL;
    bool is_container = json_object_is_type(r->json, json_type_object) || json_object_is_type(r->json, json_type_array);
    if (r->status < 200 || r->status >= 300)
        refuse(k, what, r);
    else if (r->status != 204 && !is_container)
        err_set(&r->err, ERR_REMOTE, true, "%s: answered %d with %s; is there a proxy in between?", what, r->status,
                has_body ? "something that is no JSON" : "nothing");
}

void api_blame_connection(struct err *err)
{
    if (err->code == ERR_CONFIG || err->code == ERR_INPUT)
        err->code = ERR_REMOTE;
    err->retryable = err->retryable || err->code == ERR_REMOTE;
}

static void on_answer(void *arg, const struct http_answer *answer)
{
    struct api_call *call = arg;
    struct api_reply r = {
        .err = answer->err, .status = answer->status, .code = "", .maybe_received = answer->maybe_received};
    if (answer->err.code == ERR_NONE) {
        r.retry_after_ms = retry_after(answer);
        r.json = api_parse(call->k, answer->body, answer->body_size);
        api_judge(call->k, call->what, answer->body_size > 0, &r);
    } else {
        api_blame_connection(&r.err);
        err_wrap(&r.err, "%s", call->what);
        r.status = 0;
    }
    call->cb(call->arg, &r);
    json_object_put(r.json);
    free(call->body);
    free(call);
}

/* ---- asking ---- */

/* What may be said of a path: without its query. */
static void name_call(struct api_call *call, const char *method, const char *path)
{
    snprintf(call->what, sizeof call->what, "%s %.*s", method, (int)strcspn(path, "?"), path);
}

enum err_code api_start(struct keboola *k, const char *method, const char *path, const char *body, bool has_branch,
                        api_cb *cb, void *arg, struct api_call **ret, struct err *err)
{
    struct api_call *call = calloc(1, sizeof *call);
    struct buf url;
    buf_init(&url);
    if (call == NULL)
        return err_nomem(err);
    call->k = k;
    call->cb = cb;
    call->arg = arg;
    name_call(call, method, path);
    buf_adds(&url, k->base);
    if (has_branch && k->options->branch[0] != '\0')
        buf_printf(&url, "branch/%s/", k->options->branch);
    buf_adds(&url, path);
    if (body != NULL && (call->body = strdup(body)) == NULL)
        url.failed = true;
    const char *headers[] = {k->token_header, "Accept: application/json",
                             body != NULL ? "Content-Type: application/json" : NULL, NULL};
    const struct http_request request = {.method = method,
                                         .url = url.data,
                                         .headers = headers,
                                         .body = call->body,
                                         .body_size = body != NULL ? strlen(body) : 0,
                                         .max_answer = ANSWER_MAX,
                                         .done = on_answer,
                                         .arg = call};
    enum err_code code = url.failed ? err_nomem(err) : http_start(k->http, &request, &call->transfer, err);
    buf_done(&url);
    if (code != ERR_NONE) {
        err_wrap(err, "%s", call->what);
        free(call->body);
        free(call);
        return code;
    }
    if (ret != NULL)
        *ret = call;
    return ERR_NONE;
}

void api_cancel(struct api_call *call)
{
    http_cancel(call->transfer);
}
