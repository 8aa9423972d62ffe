/*
 * upload_s3.c -- AWS S3 and what speaks like it: PUT, or the three calls of a multipart upload.
 *
 * The payload is not part of the signature (UNSIGNED-PAYLOAD), also over plain http: SHA-256 of every byte would cost
 * more than all the rest of an upload. What protects the bytes is their CRC32C, which the store verifies and whose
 * header is signed; over https nobody else can touch them, and over plain http, which only private stores use, nobody
 * should be able to.
 */
#include "upload_internal.h"

#include "clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAYLOAD "UNSIGNED-PAYLOAD"
#define CODE_MAX 64
#define MESSAGE_MAX 256
#define ETAG_MAX 256

/* "2026-03-01T10:15:30.123Z" without what the signature does not want. */
static void date_now(char ret[17])
{
    char text[32];
    size_t n = 0;
    clock_format(clock_wall_ms(), text, sizeof text);
    for (const char *c = text; *c != '\0' && *c != '.' && n < 15; c++)
        if (*c != '-' && *c != ':')
            ret[n++] = *c;
    ret[n++] = 'Z';
    ret[n] = '\0';
}

struct signing {
    struct sigv4_header headers[8]; /* sorted, as they are added */
    size_t count;
};

static void sign_header(struct signing *s, struct ask *ask, const char *name, const char *value)
{
    if (value[0] == '\0')
        return;
    s->headers[s->count++] = (struct sigv4_header){name, value};
    if (strcmp(name, "host") != 0) /* curl writes that one */
        ask_header(ask, "%s: %s", name, value);
}

static enum err_code sign(struct piece *p, struct ask *ask, const char *query, struct err *err)
{
    const struct target *to = p->upload->target;
    bool makes_object = p->step == STEP_SINGLE || p->step == STEP_BEGIN;
    bool has_sum = p->step == STEP_SINGLE || p->step == STEP_PIECE;
    char date[17], crc[DIGEST_CRC32C_TEXT];
    struct signing s = {.count = 0};
    date_now(date);
    digest_crc32c_text(p->sum.crc, crc);
    sign_header(&s, ask, "host", to->host);
    sign_header(&s, ask, "x-amz-acl", makes_object ? to->t.acl : "");
    sign_header(&s, ask, "x-amz-checksum-algorithm", p->step == STEP_BEGIN ? "CRC32C" : "");
    sign_header(&s, ask, "x-amz-checksum-crc32c", has_sum ? crc : "");
    sign_header(&s, ask, "x-amz-content-sha256", PAYLOAD);
    sign_header(&s, ask, "x-amz-date", date);
    sign_header(&s, ask, "x-amz-security-token", to->t.session_token);
    sign_header(&s, ask, "x-amz-server-side-encryption", makes_object ? to->t.sse : "");
    const struct sigv4_request r = {
        .method = ask->method,
        .path = to->path,
        .query = query,
        .headers = s.headers,
        .header_count = s.count,
        .payload = PAYLOAD,
        .date = date,
        .region = to->t.region,
        .access_key = to->t.access_key,
        .secret_key = to->t.secret_key,
    };
    struct buf authorization;
    buf_init(&authorization);
    if (sigv4_sign(&r, &authorization, err) == ERR_NONE)
        ask_header(ask, "Authorization: %s", authorization.data);
    else
        ask->has_failed = true;
    buf_done(&authorization);
    return ask->has_failed ? err->code : ERR_NONE;
}

/* <Part> for each, with the checksum that it was sent with. */
static void write_list(struct upload *u, struct buf *b)
{
    buf_adds(b, "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (unsigned i = 0; i < u->made; i++) {
        char crc[DIGEST_CRC32C_TEXT];
        digest_crc32c_text(u->marks[i].crc, crc);
        buf_printf(b, "<Part><ChecksumCRC32C>%s</ChecksumCRC32C><ETag>", crc);
        for (const char *c = u->marks[i].etag; *c != '\0'; c++) { /* quotes as they came */
            if (*c == '"')
                buf_adds(b, "&quot;");
            else if (*c == '&')
                buf_adds(b, "&amp;");
            else if (*c == '<')
                buf_adds(b, "&lt;");
            else
                buf_addc(b, *c);
        }
        buf_printf(b, "</ETag><PartNumber>%u</PartNumber></Part>", i + 1);
    }
    buf_adds(b, "</CompleteMultipartUpload>");
}

static enum err_code write_query(struct piece *p, struct buf *b, struct err *err)
{
    if (p->step == STEP_BEGIN)
        buf_adds(b, "uploads=");
    if (p->step == STEP_PIECE)
        buf_printf(b, "partNumber=%u&", p->number + 1);
    if (p->step == STEP_PIECE || p->step == STEP_COMMIT) {
        buf_adds(b, "uploadId=");
        url_encode(p->upload->session, false, b);
    }
    return b->failed ? err_nomem(err) : ERR_NONE;
}

static enum err_code s3_ask(struct piece *p, struct ask *ask, struct err *err)
{
    const struct target *to = p->upload->target;
    bool makes_object = p->step == STEP_SINGLE || p->step == STEP_BEGIN;
    struct buf query;
    buf_init(&query);
    ask->method = p->step == STEP_SINGLE || p->step == STEP_PIECE ? "PUT" : "POST";
    if (p->step == STEP_COMMIT && p->text.size == 0) {
        write_list(p->upload, &p->text);
        p->data = (const uint8_t *)p->text.data;
        p->size = p->text.size;
        if (p->text.failed)
            return err_nomem(err);
    }
    if (p->step == STEP_COMMIT) { /* the store may put the parts together before it says a word */
        ask->stall_timeout_ms = 600000;
        ask_header(ask, "Content-Type: application/xml");
    } else {
        ask_header(ask, "Content-Type: application/octet-stream");
    }
    if (makes_object && to->disposition[0] != '\0')
        ask_header(ask, "Content-Disposition: %s", to->disposition);
    enum err_code code = write_query(p, &query, err);
    if (code == ERR_NONE)
        code = sign(p, ask, query.data, err);
    if (code == ERR_NONE)
        ask_url(ask, "%s%s%s%s", to->origin, to->path, query.size > 0 ? "?" : "", query.data);
    buf_done(&query);
    return code;
}

static bool is_one_of(const char *code, const char *const *codes)
{
    for (; *codes != NULL; codes++)
        if (strcmp(code, *codes) == 0)
            return true;
    return false;
}

static enum verdict refused(struct piece *p, const struct http_answer *a)
{
    static const char *const transient[] = {"RequestTimeout",
                                            "SlowDown",
                                            "InternalError",
                                            "ServiceUnavailable",
                                            "OperationAborted",
                                            "Throttling",
                                            "ThrottlingException",
                                            "RequestLimitExceeded",
                                            NULL};
    static const char *const damaged[] = {"BadDigest", "XAmzContentChecksumMismatch", "IncompleteBody", NULL};
    char code[CODE_MAX] = "", message[MESSAGE_MAX] = "";
    xml_text(a->body, "Code", code, sizeof code);
    xml_text(a->body, "Message", message, sizeof message);
    /* The store has forgotten it because an earlier Complete, whose answer we did not get, did its work. */
    if (p->step == STEP_COMMIT && p->maybe_received && strcmp(code, "NoSuchUpload") == 0)
        return ANSWER_OK;
    enum verdict verdict = ANSWER_FAILED;
    if (strcmp(code, "ExpiredToken") == 0)
        verdict = ANSWER_EXPIRED;
    else if (status_is_transient(a->status) || is_one_of(code, transient))
        verdict = ANSWER_AGAIN;
    else if (is_one_of(code, damaged))
        verdict = ANSWER_DAMAGED;
    if (strcmp(code, "RequestTimeTooSkewed") == 0)
        snprintf(message, sizeof message,
                 "the clock of this machine differs from the store's by more than 15 minutes; "
                 "set it");
    return answer_verdict(p, a, verdict, code, message);
}

static enum verdict nomem(struct piece *p)
{
    err_nomem(&p->err);
    return ANSWER_FAILED;
}

static enum verdict s3_answer(struct piece *p, const struct http_answer *a)
{
    struct upload *u = p->upload;
    if (a->status != 200)
        return refused(p, a);
    switch (p->step) {
    case STEP_SINGLE:
        return ANSWER_OK;
    case STEP_BEGIN: {
        char id[1024];
        if (!xml_text(a->body, "UploadId", id, sizeof id) || id[0] == '\0')
            return answer_verdict(p, a, ANSWER_AGAIN, "", "the answer has no UploadId");
        free(u->session);
        u->session = strdup(id);
        return u->session != NULL ? ANSWER_OK : nomem(p);
    }
    case STEP_PIECE: {
        const char *etag = http_header(a, "ETag");
        if (etag == NULL || etag[0] == '\0' || strlen(etag) > ETAG_MAX)
            return answer_verdict(p, a, ANSWER_AGAIN, "", "the answer has no ETag");
        return upload_mark(u, p->number, etag, p->sum.crc) ? ANSWER_OK : nomem(p);
    }
    case STEP_COMMIT:
        break;
    }
    if (strstr(a->body, "<Error>") != NULL) /* the status was sent before the work began */
        return refused(p, a);
    if (strstr(a->body, "CompleteMultipartUploadResult") == NULL)
        return answer_verdict(p, a, ANSWER_AGAIN, "", "the answer does not say that the parts were put together");
    return ANSWER_OK;
}

const struct store_ops store_s3 = {
    .name = "S3",
    .sum = SUM_CRC32C,
    .has_begin = true,
    .has_commit = true,
    .single_max = 5 * GIB,
    .piece_min = 5 * MIB,
    .piece_max = 5 * GIB,
    .produce_bytes = 5 * MIB,
    .max_pieces = 10000,
    .ask = s3_ask,
    .answer = s3_answer,
};
