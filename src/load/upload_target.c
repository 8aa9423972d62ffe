/* upload_target.c -- where an upload goes: a checked copy, its URL, and the texts that requests and answers need. */
#include "upload_internal.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

void url_encode(const char *text, bool keep_slash, struct buf *ret)
{
    for (const char *p = text; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        bool is_plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
                        c == '.' || c == '_' || c == '~' || (c == '/' && keep_slash);
        if (is_plain)
            buf_addc(ret, (char)c);
        else
            buf_printf(ret, "%%%02X", c);
    }
}

/* The character at *P, which moves behind it; the five entities that every XML has are taken for what they mean. */
static char xml_char(const char **p)
{
    static const struct {
        const char *name;
        char c;
    } entities[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
    for (size_t i = 0; **p == '&' && i < sizeof entities / sizeof entities[0]; i++) {
        size_t n = strlen(entities[i].name);
        if (strncmp(*p, entities[i].name, n) == 0) {
            *p += n;
            return entities[i].c;
        }
    }
    return *(*p)++;
}

bool xml_text(const char *body, const char *name, char *ret, size_t size)
{
    size_t n = strlen(name);
    for (const char *p = strchr(body, '<'); p != NULL; p = strchr(p + 1, '<')) {
        if (strncmp(p + 1, name, n) != 0 || p[1 + n] != '>')
            continue;
        size_t used = 0;
        p += n + 2;
        /* Azure adds lines with the id of the request and the time: only the first one. */
        while (*p != '\0' && *p != '<' && *p != '\n' && *p != '\r' && used + 1 < size) {
            char c = xml_char(&p);
            ret[used++] = (unsigned char)c < 0x20 || c == 0x7F ? ' ' : c;
        }
        ret[used] = '\0';
        return true;
    }
    return false;
}

/* A quoted name that every server takes, and the real one if it is another. */
static void add_disposition(const char *name, struct buf *b)
{
    bool is_plain = true;
    buf_adds(b, "attachment; filename=\"");
    for (const char *p = name; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        bool is_safe = c >= 0x20 && c < 0x7F && c != '"' && c != '\\' && c != '%';
        is_plain = is_plain && is_safe;
        buf_addc(b, is_safe ? (char)c : '_');
    }
    buf_addc(b, '"');
    if (is_plain)
        return;
    buf_adds(b, "; filename*=UTF-8''");
    url_encode(name, false, b);
}

/* ---- a request ---- */

static char *print_exactly(const char *fmt, va_list args) __attribute__((format(printf, 1, 0)));
static char *print_exactly(const char *fmt, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    char *text = n < 0 ? NULL : malloc((size_t)n + 1);
    if (text != NULL)
        vsnprintf(text, (size_t)n + 1, fmt, args);
    return text;
}

static void wipe(char *text)
{
    if (text == NULL)
        return;
    explicit_bzero(text, strlen(text));
    free(text);
}

void ask_url(struct ask *a, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    wipe(a->url);
    a->url = print_exactly(fmt, args);
    va_end(args);
    a->has_failed = a->has_failed || a->url == NULL;
}

void ask_header(struct ask *a, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char *text = a->count < ASK_HEADERS ? print_exactly(fmt, args) : NULL;
    va_end(args);
    if (text == NULL)
        a->has_failed = true;
    else
        a->headers[a->count++] = text;
}

void ask_done(struct ask *a)
{
    wipe(a->url);
    for (size_t i = 0; i < a->count; i++)
        wipe(a->headers[i]);
    memset(a, 0, sizeof *a);
}

/* ---- the endpoint ---- */

struct place {
    struct buf origin, base;
    size_t host_at; /* in the origin */
};

static void place_init(struct place *p)
{
    buf_init(&p->origin);
    buf_init(&p->base);
    p->host_at = 0;
}

static void place_done(struct place *p)
{
    buf_done(&p->origin);
    buf_done(&p->base);
}

/* Curl leaves the usual port out of the Host header, and the signature covers that header: so do we, in both. */
static bool parse_endpoint(const char *url, struct place *p)
{
    bool is_https = strncasecmp(url, "https://", 8) == 0;
    if (!is_https && strncasecmp(url, "http://", 7) != 0)
        return false;
    const char *host = url + (is_https ? 8 : 7);
    size_t n = strcspn(host, "/?#");
    if (n == 0 || host[n] == '?' || host[n] == '#' || memchr(host, '@', n) != NULL)
        return false;
    const char *path = host + n;
    if (strpbrk(path, "?#") != NULL)
        return false;
    const char *usual = is_https ? ":443" : ":80";
    size_t usual_size = strlen(usual);
    if (n > usual_size && memcmp(host + n - usual_size, usual, usual_size) == 0)
        n -= usual_size;
    buf_adds(&p->origin, is_https ? "https://" : "http://");
    p->host_at = p->origin.size;
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)host[i] <= 0x20 || host[i] == 0x7F)
            return false;
        buf_addc(&p->origin, (char)tolower((unsigned char)host[i]));
    }
    size_t path_size = strlen(path);
    while (path_size > 0 && path[path_size - 1] == '/')
        path_size--;
    buf_add(&p->base, path, path_size);
    return true;
}

/* May BUCKET stand before the host name, and does the certificate's "*.s3..." hold for it? */
static bool is_host_label(const char *bucket)
{
    size_t n = strlen(bucket);
    return n > 0 && n <= 63 && strspn(bucket, "abcdefghijklmnopqrstuvwxyz0123456789-") == n && bucket[0] != '-' &&
           bucket[n - 1] != '-';
}

static bool is_region(const char *region)
{
    return region[0] != '\0' && region[strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-")] == '\0';
}

/* Origin and path of the object. NULL: done; else what is wrong. */
static const char *find_place(const struct store_target *t, struct place *p, struct buf *path)
{
    bool has_bucket_in_host = false;
    if (t->endpoint[0] != '\0') {
        if (!parse_endpoint(t->endpoint, p))
            return "the endpoint is no http or https URL";
    } else if (t->kind == STORE_AZURE) {
        return "the endpoint is missing";
    } else if (t->kind == STORE_GCS) {
        parse_endpoint("https://storage.googleapis.com", p);
    } else {
        const char *end = strncmp(t->region, "cn-", 3) == 0 ? ".cn" : "";
        has_bucket_in_host = is_host_label(t->bucket);
        buf_adds(&p->origin, "https://");
        p->host_at = p->origin.size;
        buf_printf(&p->origin, "%s%ss3.%s.amazonaws.com%s", has_bucket_in_host ? t->bucket : "",
                   has_bucket_in_host ? "." : "", t->region, end);
    }
    buf_adds(path, p->base.data);
    if (!has_bucket_in_host) {
        buf_addc(path, '/');
        url_encode(t->bucket, false, path);
    }
    buf_addc(path, '/');
    url_encode(t->key, true, path);
    return NULL;
}

static const char *what_lacks(const struct store_target *t)
{
    if (t->bucket[0] == '\0')
        return t->kind == STORE_AZURE ? "the container is missing" : "the bucket is missing";
    if (t->key[0] == '\0')
        return t->kind == STORE_AZURE ? "the name of the blob is missing" : "the key is missing";
    switch (t->kind) {
    case STORE_S3:
        if (!is_region(t->region))
            return "the region is missing or none";
        return t->access_key[0] == '\0' || t->secret_key[0] == '\0' ? "the credentials are missing" : NULL;
    case STORE_AZURE:
        return t->sas[0] == '\0' && (t->account[0] == '\0' || t->account_key[0] == '\0') ? "the SAS is missing" : NULL;
    case STORE_GCS:
        return t->access_token[0] == '\0' ? "the access token is missing" : NULL;
    }
    return "the kind of store is unknown";
}

/* ---- the copy ---- */

/* The texts of a target, to copy them all in a loop. */
static const size_t members[] = {
    offsetof(struct store_target, endpoint),      offsetof(struct store_target, bucket),
    offsetof(struct store_target, key),           offsetof(struct store_target, region),
    offsetof(struct store_target, acl),           offsetof(struct store_target, sse),
    offsetof(struct store_target, access_key),    offsetof(struct store_target, secret_key),
    offsetof(struct store_target, session_token), offsetof(struct store_target, sas),
    offsetof(struct store_target, access_token),  offsetof(struct store_target, file_name),
    offsetof(struct store_target, account),       offsetof(struct store_target, account_key),
};
#define MEMBERS (sizeof members / sizeof members[0])

static const char **member(struct store_target *t, size_t i)
{
    return (const char **)((char *)t + members[i]);
}

static char *put(char **at, const char *text)
{
    char *start = *at;
    size_t n = strlen(text) + 1;
    memcpy(start, text, n);
    *at += n;
    return start;
}

static enum err_code copy(const struct store_target *t, const struct place *p, const struct buf *path,
                          const struct buf *disposition, struct target **ret, struct err *err)
{
    struct store_target from = *t;
    size_t size = p->origin.size + p->base.size + path->size + disposition->size + 4;
    for (size_t i = 0; i < MEMBERS; i++)
        size += strlen(*member(&from, i)) + 1;
    struct target *to = calloc(1, sizeof *to + size);
    if (to == NULL)
        return err_nomem(err);
    char *at = to->text;
    to->size = sizeof *to + size;
    to->t.kind = t->kind;
    for (size_t i = 0; i < MEMBERS; i++)
        *member(&to->t, i) = put(&at, *member(&from, i));
    to->origin = put(&at, p->origin.data);
    to->host = to->origin + p->host_at;
    to->base = put(&at, p->base.data);
    to->path = put(&at, path->data);
    to->disposition = put(&at, disposition->data);
    *ret = to;
    return ERR_NONE;
}

enum err_code target_new(const struct store_target *t, struct target **ret, struct err *err)
{
    struct store_target full = *t;
    for (size_t i = 0; i < MEMBERS; i++)
        if (*member(&full, i) == NULL)
            *member(&full, i) = "";
    const char *problem = what_lacks(&full);
    if (problem != NULL)
        return err_set(err, ERR_CONFIG, false, "where to upload is not known: %s", problem);
    struct place place;
    struct buf path, disposition;
    place_init(&place);
    buf_init(&path);
    buf_init(&disposition);
    problem = find_place(&full, &place, &path);
    if (full.file_name[0] != '\0')
        add_disposition(full.file_name, &disposition);
    enum err_code code;
    if (problem != NULL)
        code = err_set(err, ERR_CONFIG, false, "where to upload is not known: %s", problem);
    else if (place.origin.failed || place.base.failed || path.failed || disposition.failed)
        code = err_nomem(err);
    else
        code = copy(&full, &place, &path, &disposition, ret, err);
    place_done(&place);
    buf_done(&path);
    buf_done(&disposition);
    return code;
}

void target_free(struct target *t)
{
    if (t == NULL)
        return;
    explicit_bzero(t, t->size);
    free(t);
}

bool target_is_same(const struct target *a, const struct target *b)
{
    return a->t.kind == b->t.kind && strcmp(a->origin, b->origin) == 0 && strcmp(a->path, b->path) == 0;
}

/* ---- no secrets in texts ---- */

static void star(char *text, const char *secret, size_t n)
{
    if (n < 4)
        return;
    for (char *at = memmem(text, strlen(text), secret, n); at != NULL; at = memmem(at, strlen(at), secret, n)) {
        memcpy(at, "***", 3);
        memmove(at + 3, at + n, strlen(at + n) + 1);
    }
}

void target_redact(const struct target *t, char *text)
{
    const char *const secrets[] = {t->t.secret_key, t->t.session_token, t->t.access_token, t->t.sas, t->t.account_key};
    for (size_t i = 0; i < sizeof secrets / sizeof secrets[0]; i++)
        star(text, secrets[i], strlen(secrets[i]));
    const char *sig = strstr(t->t.sas, "sig=");
    if (sig != NULL)
        star(text, sig + 4, strcspn(sig + 4, "&"));
}

/* ---- for drivers ---- */

enum err_code store_target_with_suffix(const struct store_target *target, const char *suffix, struct buf *key_buf,
                                       struct store_target *ret, struct err *err)
{
    buf_clear(key_buf);
    buf_adds(key_buf, target->key != NULL ? target->key : "");
    buf_adds(key_buf, suffix);
    if (key_buf->failed)
        return err_nomem(err);
    *ret = *target;
    ret->key = key_buf->data;
    return ERR_NONE;
}

void upload_manifest_entry_url(const struct store_target *target, struct buf *ret)
{
    const char *bucket = target->bucket != NULL ? target->bucket : "", *key = target->key != NULL ? target->key : "";
    switch (target->kind) {
    case STORE_S3:
        buf_printf(ret, "s3://%s/%s", bucket, key);
        break;
    case STORE_GCS:
        buf_printf(ret, "gs://%s/%s", bucket, key);
        break;
    case STORE_AZURE: {
        const char *host = target->endpoint != NULL ? target->endpoint : "";
        const char *scheme_end = strstr(host, "://");
        if (scheme_end != NULL)
            host = scheme_end + 3;
        size_t n = strlen(host);
        while (n > 0 && host[n - 1] == '/')
            n--;
        buf_printf(ret, "azure://%.*s/%s/%s", (int)n, host, bucket, key);
        break;
    }
    }
}
