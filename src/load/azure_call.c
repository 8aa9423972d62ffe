/* azure_call.c -- one request to the Blob service beside an upload, signed, and what its answer means. */
#include "azure_internal.h"

#include "upload_internal.h"

#include "clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MAX ((size_t)8 * 1024 * 1024) /* a list of 50,000 blocks */

struct azure_call {
    struct azure *a;
    struct http_transfer *transfer;
    azure_cb *cb;
    void *arg;
    char what[24];
};

static uint64_t retry_after(const struct http_answer *answer)
{
    const char *text = http_header(answer, "Retry-After");
    unsigned long seconds = text != NULL ? strtoul(text, NULL, 10) : 0;
    return seconds < 100000 ? seconds * 1000 : 0;
}

static void judge(struct azure_call *call, const struct http_answer *answer, struct azure_reply *r)
{
    char message[160] = "";
    const char *code = http_header(answer, "x-ms-error-code");
    r->status = answer->status;
    if (answer->status >= 200 && answer->status < 300)
        return;
    if (code != NULL)
        snprintf(r->code, sizeof r->code, "%s", code);
    else
        xml_text(answer->body, "Code", r->code, sizeof r->code);
    xml_text(answer->body, "Message", message, sizeof message);
    /* 409 and 412: somebody else is at work there; callers who know what to do about it look at STATUS. */
    bool is_transient = status_is_transient(answer->status) || answer->status == 409 || answer->status == 412;
    bool is_denied = answer->status == 401 || answer->status == 403;
    r->retry_after_ms = is_transient ? retry_after(answer) : 0;
    err_set(&r->err,
            is_denied      ? ERR_DENIED
            : is_transient ? ERR_REMOTE
                           : ERR_INPUT,
            is_transient, "Azure answered %d%s%s%s%s", answer->status, r->code[0] != '\0' ? " " : "", r->code,
            message[0] != '\0' ? ": " : "", message);
    (void)call;
}

static void on_answer(void *arg, const struct http_answer *answer)
{
    struct azure_call *call = arg;
    struct azure_reply r = {.answer = answer};
    r.err = answer->err;
    if (answer->err.code == ERR_NONE)
        judge(call, answer, &r);
    if (r.err.code != ERR_NONE && r.err.code != ERR_STOPPED)
        err_wrap(&r.err, "%s", call->what);
    azure_cb *cb = call->cb;
    void *cb_arg = call->arg;
    free(call);
    cb(cb_arg, &r);
}

/* The URL of the blob, or of the container. */
static enum err_code make_url(struct azure *a, const char *blob, const char *query, struct ask *ask, struct err *err)
{
    struct buf path;
    const char *sas = a->account.sas;
    buf_init(&path);
    url_encode(a->options->container, false, &path);
    if (blob != NULL) {
        buf_addc(&path, '/');
        url_encode(blob, true, &path);
    }
    if (!path.failed)
        ask_url(ask, "%s/%s%s%s%s%s", a->account.endpoint, path.data, query[0] != '\0' || sas[0] != '\0' ? "?" : "",
                query, query[0] != '\0' && sas[0] != '\0' ? "&" : "", sas);
    bool has_failed = path.failed || ask->has_failed;
    buf_done(&path);
    return has_failed ? err_nomem(err) : ERR_NONE;
}

enum err_code azure_call(struct azure *a, const char *method, const char *blob, const char *query,
                         const char *const *headers, azure_cb *cb, void *arg, struct azure_call **ret, struct err *err)
{
    struct ask ask = {.method = method};
    struct azure_call *call = calloc(1, sizeof *call);
    if (call == NULL)
        return err_nomem(err);
    *call = (struct azure_call){.a = a, .cb = cb, .arg = arg};
    snprintf(call->what, sizeof call->what, "%s %s", method, blob != NULL ? "blob" : "container");
    for (; headers != NULL && *headers != NULL; headers++)
        ask_header(&ask, "%s", *headers);
    enum err_code code = make_url(a, blob, query, &ask, err);
    if (code == ERR_NONE && ask.has_failed)
        code = err_nomem(err);
    if (code == ERR_NONE && a->account.key[0] != '\0')
        code = azure_sign(&ask, a->account.name, a->account.key, 0, err);
    if (code == ERR_NONE) {
        const struct http_request request = {.method = method,
                                             .url = ask.url,
                                             .headers = (const char *const *)ask.headers,
                                             .max_answer = ANSWER_MAX,
                                             .done = on_answer,
                                             .arg = call};
        code = http_start(a->http, &request, &call->transfer, err);
    }
    ask_done(&ask);
    if (code != ERR_NONE) {
        free(call);
        return code;
    }
    *ret = call;
    return ERR_NONE;
}

void azure_cancel(struct azure_call *call)
{
    if (call != NULL)
        http_cancel(call->transfer);
}

const char *azure_meta(const struct azure_reply *r, const char *name)
{
    char header[64];
    snprintf(header, sizeof header, AZURE_META "%s", name);
    const char *value = http_header(r->answer, header);
    return value != NULL ? value : "";
}

static bool is_encoded(const char *encoded, const char *text)
{
    struct buf b;
    buf_init(&b);
    url_encode(text, true, &b);
    bool is_same = !b.failed && strcmp(b.data != NULL ? b.data : "", encoded) == 0;
    buf_done(&b);
    return is_same;
}

bool azure_is_of(const struct azure_reply *r, const char *source, const char *path)
{
    return azure_meta(r, "hash")[0] != '\0' && is_encoded(azure_meta(r, "source"), source) &&
           is_encoded(azure_meta(r, "path"), path);
}

void azure_owner(const struct azure_reply *r, char *ret, size_t size)
{
    const char *path = azure_meta(r, "path"), *source = azure_meta(r, "source");
    if (azure_meta(r, "hash")[0] != '\0')
        snprintf(ret, size, "is %.200s of source %.60s", path, source);
    else
        snprintf(ret, size, "was not written by chute");
}
