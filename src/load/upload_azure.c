/*
 * upload_azure.c -- Azure Blob Storage with a SAS: Put Blob, or Put Block and Put Block List.
 *
 * No x-ms-version: then the version is the one of the SAS, whatever that is, and MD5 is the only sum that all of them
 * verify. Each block has its own; one of the whole blob would not be verified by Put Block List, but cost a second MD5
 * of every byte.
 */
#include "upload_internal.h"

#include "clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define CODE_MAX 64
#define MESSAGE_MAX 256
#define ID_MAX 16

/* Six digits: their base64 has no padding and nothing that a URL would want encoded. All ids must be equally long. */
static void block_id(unsigned number, char ret[ID_MAX])
{
    char digits[12];
    snprintf(digits, sizeof digits, "%06u", number % 1000000);
    digest_base64(digits, 6, ret);
}

static void write_list(struct upload *u, struct buf *b)
{
    buf_adds(b, "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
    for (unsigned i = 0; i < u->made; i++) {
        char id[ID_MAX];
        block_id(i, id);
        buf_printf(b, "<Latest>%s</Latest>", id);
    }
    buf_adds(b, "</BlockList>");
}

static enum err_code azure_ask(struct piece *p, struct ask *ask, struct err *err)
{
    const struct target *to = p->upload->target;
    const char *sas = to->t.sas[0] == '?' ? to->t.sas + 1 : to->t.sas;
    char id[ID_MAX], md5[DIGEST_MD5_TEXT];
    ask->method = "PUT";
    switch (p->step) {
    case STEP_PIECE:
        block_id(p->number, id);
        ask_url(ask, "%s%s?comp=block&blockid=%s&%s", to->origin, to->path, id, sas);
        break;
    case STEP_COMMIT:
        ask_url(ask, "%s%s?comp=blocklist&%s", to->origin, to->path, sas);
        if (p->text.size == 0)
            write_list(p->upload, &p->text);
        if (p->text.failed)
            return err_nomem(err);
        p->data = (const uint8_t *)p->text.data;
        p->size = p->text.size;
        break;
    case STEP_SINGLE:
    case STEP_BEGIN:
        ask_url(ask, "%s%s?%s", to->origin, to->path, sas);
        ask_header(ask, "x-ms-blob-type: BlockBlob");
        break;
    }
    if (p->step == STEP_COMMIT) {
        ask_header(ask, "Content-Type: application/xml");
        ask_header(ask, "x-ms-blob-content-type: application/octet-stream");
    } else {
        ask_header(ask, "Content-Type: application/octet-stream");
        digest_base64(p->sum.md5, DIGEST_MD5_BYTES, md5);
        ask_header(ask, "Content-MD5: %s", md5);
    }
    if (p->step != STEP_PIECE && to->disposition[0] != '\0')
        ask_header(ask, "x-ms-blob-content-disposition: %s", to->disposition);
    return ask->has_failed ? err_nomem(err) : ERR_NONE;
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
    if (a->status == 201)
        return ANSWER_OK;
    char code[CODE_MAX] = "", message[MESSAGE_MAX] = "";
    const char *header = http_header(a, "x-ms-error-code");
    if (header != NULL)
        snprintf(code, sizeof code, "%s", header);
    else
        xml_text(a->body, "Code", code, sizeof code);
    xml_text(a->body, "Message", message, sizeof message);
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
