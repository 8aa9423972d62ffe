/*
 * upload_azure.c -- Azure Blob Storage with a SAS or an account key: Put Blob, or Put Block and Put Block List.
 *
 * No x-ms-version: then the version is the one of the SAS, whatever that is, and MD5 is the only sum that all of them
 * verify. Each block has its own; one of the whole blob would not be verified by Put Block List, but cost a second MD5
 * of every byte.
 */
#include "upload_internal.h"

#include "clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CODE_MAX 64
#define MESSAGE_MAX 256

/* 6 or 18 characters: their base64 has no padding and nothing that a URL would want encoded. All ids of a blob must be
 * equally long. */
void azure_block_id(const char *prefix, unsigned number, char ret[AZURE_BLOCK_ID])
{
    char text[32];
    snprintf(text, sizeof text, prefix != NULL ? "%.10s%08u" : "%.0s%06u", prefix != NULL ? prefix : "",
             number % 1000000);
    digest_base64(text, prefix != NULL ? 18 : 6, ret);
}

/* ---- SharedKey: "Authorize with Shared Key" of the Blob service's REST reference ---- */

static int value_of_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    return at != NULL ? (int)(at - digits) : -1;
}

/* How many bytes; -1: that is no base64. */
static int decode_key(const char *text, uint8_t *ret, size_t size)
{
    size_t length = strlen(text), used = 0;
    uint32_t bits = 0;
    while (length > 0 && text[length - 1] == '=')
        length--;
    for (size_t i = 0; i < length; i++) {
        int value = value_of_digit(text[i]);
        if (value < 0)
            return -1;
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 != 0 && used < size)
            ret[used++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
        else if (i % 4 != 0)
            return -1;
    }
    return length % 4 == 1 ? -1 : (int)used;
}

static const char *header_of(const struct ask *ask, const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < ask->count; i++)
        if (ask->headers[i] != NULL && strncasecmp(ask->headers[i], name, n) == 0 && ask->headers[i][n] == ':') {
            const char *value = ask->headers[i] + n + 1;
            return value + strspn(value, " ");
        }
    return "";
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The x-ms- headers as "name:value\n", sorted; names are lower case by house rule. */
static void add_headers(struct buf *b, const struct ask *ask)
{
    const char *sorted[ASK_HEADERS];
    size_t count = 0;
    for (size_t i = 0; i < ask->count; i++)
        if (ask->headers[i] != NULL && strncmp(ask->headers[i], "x-ms-", 5) == 0)
            sorted[count++] = ask->headers[i];
    qsort(sorted, count, sizeof sorted[0], by_text);
    for (size_t i = 0; i < count; i++) {
        const char *colon = strchr(sorted[i], ':'), *value = colon + 1 + strspn(colon + 1, " ");
        buf_printf(b, "%.*s:%s\n", (int)(colon - sorted[i]), sorted[i], value);
    }
}

static void add_decoded(struct buf *b, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned byte;
        char two[3] = {0};
        if (text[i] == '%' && i + 2 < size + 0) {
            two[0] = text[i + 1];
            two[1] = text[i + 2];
            if (sscanf(two, "%2x", &byte) == 1) {
                buf_addc(b, (char)byte);
                i += 2;
                continue;
            }
        }
        buf_addc(b, text[i]);
    }
}

/* "/account/path" and the parameters of the query, sorted by name, a line each; ours are given in that order. */
static void add_resource(struct buf *b, const struct ask *ask, const char *account)
{
    const char *host = strstr(ask->url, "://"), *path = host != NULL ? strchr(host + 3, '/') : NULL;
    const char *query = path != NULL ? strchr(path, '?') : NULL;
    size_t n = path == NULL ? 0 : query != NULL ? (size_t)(query - path) : strlen(path);
    buf_printf(b, "/%s%.*s", account, (int)n, path != NULL ? path : "");
    while (query != NULL && *query != '\0') {
        const char *name = query + 1, *end = strchr(name, '&');
        size_t size = end != NULL ? (size_t)(end - name) : strlen(name);
        const char *equals = memchr(name, '=', size);
        size_t name_size = equals != NULL ? (size_t)(equals - name) : size;
        if (size > 0) {
            buf_addc(b, '\n');
            buf_printf(b, "%.*s:", (int)name_size, name);
            if (equals != NULL)
                add_decoded(b, equals + 1, size - name_size - 1);
        }
        query = end;
    }
}

enum err_code azure_sign(struct ask *ask, const char *account, const char *account_key, uint64_t body_size,
                         struct err *err)
{
    uint8_t key[128], mac[DIGEST_SHA256_BYTES];
    char date[64], signature[DIGEST_BASE64_SIZE(DIGEST_SHA256_BYTES)], length[24] = "";
    int key_size = decode_key(account_key, key, sizeof key);
    time_t now = (time_t)(clock_wall_ms() / 1000);
    struct tm tm;
    struct buf text;
    if (key_size <= 0)
        return err_set(err, ERR_CONFIG, false, "the account key is not what the portal shows: expected base64");
    gmtime_r(&now, &tm);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    ask_header(ask, "x-ms-date: %s", date);
    ask_header(ask, "x-ms-version: %s", AZURE_VERSION);
    if (ask->has_failed)
        return err_nomem(err);
    if (body_size > 0)
        snprintf(length, sizeof length, "%llu", (unsigned long long)body_size);
    buf_init(&text);
    buf_printf(&text, "%s\n\n\n%s\n%s\n%s\n\n\n%s\n%s\n\n\n", ask->method, length, header_of(ask, "Content-MD5"),
               header_of(ask, "Content-Type"), header_of(ask, "If-Match"), header_of(ask, "If-None-Match"));
    add_headers(&text, ask);
    add_resource(&text, ask, account);
    enum err_code code =
        text.failed ? err_nomem(err) : digest_hmac_sha256(key, (size_t)key_size, text.data, text.size, mac, err);
    explicit_bzero(key, sizeof key);
    buf_done(&text);
    if (code != ERR_NONE)
        return code;
    digest_base64(mac, sizeof mac, signature);
    ask_header(ask, "Authorization: SharedKey %s:%s", account, signature);
    return ask->has_failed ? err_nomem(err) : ERR_NONE;
}

static const char *prefix_of(const struct upload *u)
{
    return u->blob != NULL ? u->blob->block_prefix : NULL;
}

static void write_list(struct upload *u, struct buf *b)
{
    buf_adds(b, "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
    for (unsigned i = 0; i < u->made; i++) {
        char id[AZURE_BLOCK_ID];
        azure_block_id(prefix_of(u), i, id);
        buf_printf(b, "<Latest>%s</Latest>", id);
    }
    buf_adds(b, "</BlockList>");
}

/* What the request that makes the blob says of it besides. */
static void add_blob(const struct upload_blob *blob, bool is_commit, struct ask *ask)
{
    if (blob->condition != NULL)
        ask_header(ask, "%s", blob->condition);
    for (const char *const *h = blob->headers; h != NULL && *h != NULL; h++)
        ask_header(ask, "%s", *h);
    if (is_commit && blob->md5 != NULL)
        ask_header(ask, "x-ms-blob-content-md5: %s", blob->md5);
}

static enum err_code azure_ask(struct piece *p, struct ask *ask, struct err *err)
{
    const struct target *to = p->upload->target;
    const struct upload_blob *blob = p->upload->blob;
    const char *sas = to->t.sas[0] == '?' ? to->t.sas + 1 : to->t.sas, *and = sas[0] != '\0' ? "&" : "";
    const char *type = blob != NULL && blob->content_type != NULL ? blob->content_type : "application/octet-stream";
    char id[AZURE_BLOCK_ID], md5[DIGEST_MD5_TEXT];
    ask->method = "PUT";
    switch (p->step) {
    case STEP_PIECE:
        azure_block_id(prefix_of(p->upload), p->number, id);
        ask_url(ask, "%s%s?blockid=%s&comp=block%s%s", to->origin, to->path, id, and, sas);
        break;
    case STEP_COMMIT:
        ask_url(ask, "%s%s?comp=blocklist%s%s", to->origin, to->path, and, sas);
        if (p->text.size == 0)
            write_list(p->upload, &p->text);
        if (p->text.failed)
            return err_nomem(err);
        p->data = (const uint8_t *)p->text.data;
        p->size = p->text.size;
        break;
    case STEP_SINGLE:
    case STEP_BEGIN:
        ask_url(ask, "%s%s%s%s", to->origin, to->path, sas[0] != '\0' ? "?" : "", sas);
        ask_header(ask, "x-ms-blob-type: BlockBlob");
        break;
    }
    if (p->step == STEP_COMMIT) {
        ask_header(ask, "Content-Type: application/xml");
        ask_header(ask, "x-ms-blob-content-type: %s", type);
    } else {
        ask_header(ask, "Content-Type: %s", p->step == STEP_PIECE ? "application/octet-stream" : type);
        digest_base64(p->sum.md5, DIGEST_MD5_BYTES, md5);
        ask_header(ask, "Content-MD5: %s", md5);
    }
    if (p->step != STEP_PIECE && to->disposition[0] != '\0')
        ask_header(ask, "x-ms-blob-content-disposition: %s", to->disposition);
    if (blob != NULL && p->step != STEP_PIECE)
        add_blob(blob, p->step == STEP_COMMIT, ask);
    if (ask->has_failed)
        return err_nomem(err);
    return to->t.account_key[0] != '\0' ? azure_sign(ask, to->t.account, to->t.account_key, p->size, err) : ERR_NONE;
}

/* "se=2026-03-01T21:15:30Z" or only a date, ':' perhaps encoded, in seconds since 1970; -1: none. */
static int64_t sas_end(const char *sas)
{
    const char *at = strncmp(sas, "se=", 3) == 0 ? sas : strstr(sas, "&se=");
    if (at == NULL)
        return -1;
    at = strchr(at, '=') + 1;
    char text[32];
    size_t n = 0;
    for (; *at != '\0' && *at != '&' && n + 1 < sizeof text; at++) {
        if (strncasecmp(at, "%3A", 3) == 0) {
            text[n++] = ':';
            at += 2;
        } else {
            text[n++] = *at;
        }
    }
    text[n] = '\0';
    struct tm tm = {.tm_mday = 1};
    const char *const forms[] = {"%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        memset(&tm, 0, sizeof tm);
        if (strptime(text, forms[i], &tm) != NULL)
            return (int64_t)timegm(&tm);
    }
    return -1;
}

/* The code is the same for every reason (AuthenticationFailed, Azurite: AuthorizationFailure), so we ask the clock: the
 * store's, because ours may be wrong. */
static bool has_ended(const struct target *to, const struct http_answer *a)
{
    int64_t end = sas_end(to->t.sas[0] == '?' ? to->t.sas + 1 : to->t.sas), now = -1;
    const char *date = http_header(a, "Date");
    if (date != NULL)
        now = http_date(date);
    if (now < 0)
        now = clock_wall_ms() / 1000;
    return end >= 0 && now >= end;
}

static enum verdict azure_answer(struct piece *p, const struct http_answer *a)
{
    if (a->status == 201 && p->step == STEP_SINGLE) {
        /* what it stored, not what we sent */
        char md5[DIGEST_MD5_TEXT];
        const char *stored = http_header(a, "Content-MD5");
        digest_base64(p->sum.md5, DIGEST_MD5_BYTES, md5);
        if (stored != NULL && strcmp(stored, md5) != 0)
            return answer_verdict(p, a, ANSWER_DAMAGED, "", "it stored other bytes than were sent");
    }
    if (a->status == 201)
        return ANSWER_OK;
    char code[CODE_MAX] = "", message[MESSAGE_MAX] = "";
    const char *header = http_header(a, "x-ms-error-code");
    if (header != NULL)
        snprintf(code, sizeof code, "%s", header);
    else
        xml_text(a->body, "Code", code, sizeof code);
    xml_text(a->body, "Message", message, sizeof message);
    p->upload->result.status = a->status;
    snprintf(p->upload->result.code, sizeof p->upload->result.code, "%.47s", code);
    enum verdict verdict = ANSWER_FAILED;
    if (a->status == 403 && has_ended(p->upload->target, a))
        verdict = ANSWER_EXPIRED;
    else if (status_is_transient(a->status))
        verdict = ANSWER_AGAIN;
    else if (strcmp(code, "Md5Mismatch") == 0)
        verdict = ANSWER_DAMAGED;
    return answer_verdict(p, a, verdict, code, message);
}

/* 100 MiB and 256 MiB: what all versions take. */
const struct store_ops store_azure = {
    .name = "Azure",
    .sum = SUM_MD5,
    .has_commit = true,
    .single_max = 256 * MIB,
    .piece_min = 1,
    .piece_max = 100 * MIB,
    .produce_bytes = 4 * MIB,
    .max_pieces = 50000,
    .ask = azure_ask,
    .answer = azure_answer,
};
