/*
 * upload_gcs.c -- Google Cloud Storage: one PUT of the XML API, or a resumable upload of the JSON API.
 *
 * A resumable upload is one stream in chunks: the store says after each how much it has, and after an error it is
 * asked. The CRC32C of the whole goes with the last chunk, for stores that verify it there, and is compared with what
 * the store has computed.
 */
#include "upload_internal.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CODE_MAX 64
#define MESSAGE_MAX 256
#define UNIT (256 * KIB) /* every chunk but the last is a multiple of it */

static enum err_code ask_single(struct piece *p, struct ask *ask)
{
    const struct target *to = p->upload->target;
    char crc[DIGEST_CRC32C_TEXT];
    digest_crc32c_text(p->sum.crc, crc);
    ask->method = "PUT";
    ask_url(ask, "%s%s", to->origin, to->path);
    ask_header(ask, "x-goog-hash: crc32c=%s", crc);
    return ERR_NONE;
}

static enum err_code ask_begin(struct piece *p, struct ask *ask, struct err *err)
{
    const struct target *to = p->upload->target;
    struct buf name;
    buf_init(&name);
    url_encode(to->t.bucket, false, &name);
    buf_adds(&name, "/o?uploadType=resumable&name=");
    url_encode(to->t.key, false, &name);
    if (name.failed) {
        buf_done(&name);
        return err_nomem(err);
    }
    ask->method = "POST";
    ask_url(ask, "%s%s/upload/storage/v1/b/%s", to->origin, to->base, name.data);
    ask_header(ask, "X-Upload-Content-Type: application/octet-stream");
    buf_done(&name);
    return ERR_NONE;
}

static void ask_chunk(struct piece *p, struct ask *ask)
{
    char total[24] = "*";
    uint64_t from = p->offset + p->skip, end = p->offset + p->size;
    if (p->is_last)
        snprintf(total, sizeof total, "%" PRIu64, end);
    ask->method = "PUT";
    ask_url(ask, "%s", p->upload->session);
    if (p->must_query || from == end) { /* nothing to send: what do you have? With the total it is also the end. */
        ask_header(ask, "Content-Range: bytes */%s", total);
        return;
    }
    ask_header(ask, "Content-Range: bytes %" PRIu64 "-%" PRIu64 "/%s", from, end - 1, total);
    if (p->is_last) {
        char crc[DIGEST_CRC32C_TEXT];
        digest_crc32c_text(p->sum.crc, crc);
        ask_header(ask, "x-goog-hash: crc32c=%s", crc);
    }
}

/* The session's URL is the store's word; the token goes only where it belongs. */
static bool is_at_home(const struct target *to, const char *url)
{
    size_t n = strlen(to->origin);
    return strncmp(url, to->origin, n) == 0 && (url[n] == '/' || url[n] == '?' || url[n] == '\0');
}

static enum err_code gcs_ask(struct piece *p, struct ask *ask, struct err *err)
{
    const struct target *to = p->upload->target;
    enum err_code code = ERR_NONE;
    if (p->step == STEP_SINGLE)
        code = ask_single(p, ask);
    else if (p->step == STEP_BEGIN)
        code = ask_begin(p, ask, err);
    else
        ask_chunk(p, ask);
    if (code != ERR_NONE)
        return code;
    ask_header(ask, "Content-Type: application/octet-stream");
    if (p->step != STEP_PIECE || is_at_home(to, p->upload->session))
        ask_header(ask, "Authorization: Bearer %s", to->t.access_token);
    return ask->has_failed ? err_nomem(err) : ERR_NONE;
}

/* The words of the JSON API, or of the XML API, whoever answered. */
static void read_words(const char *body, char *code, char *message)
{
    xml_text(body, "Code", code, CODE_MAX);
    xml_text(body, "Message", message, MESSAGE_MAX);
    json_object *root = body[0] == '{' ? json_tokener_parse(body) : NULL, *error, *word;
    if (root != NULL && json_object_object_get_ex(root, "error", &error) &&
        json_object_is_type(error, json_type_object) && json_object_object_get_ex(error, "message", &word) &&
        json_object_is_type(word, json_type_string))
        snprintf(message, MESSAGE_MAX, "%s", json_object_get_string(word));
    json_object_put(root);
}

static enum verdict refused(struct piece *p, const struct http_answer *a)
{
    char code[CODE_MAX] = "", message[MESSAGE_MAX] = "";
    read_words(a->body, code, message);
    enum verdict verdict = ANSWER_FAILED;
    if (a->status == 401)
        verdict = ANSWER_EXPIRED;
    else if (status_is_transient(a->status))
        verdict = ANSWER_AGAIN;
    else if (a->status == 400 && (strcmp(code, "BadDigest") == 0 || strcasestr(message, "crc32c") != NULL))
        verdict = ANSWER_DAMAGED;
    if (verdict == ANSWER_AGAIN && p->step == STEP_PIECE)
        p->must_query = true;
    if ((a->status == 404 || a->status == 410) && p->step == STEP_PIECE)
        snprintf(message, sizeof message, "the store has forgotten the upload's session; the upload must begin again");
    return answer_verdict(p, a, verdict, code, message);
}

static bool says_other(json_object *root, const char *name, const char *ours)
{
    json_object *member;
    const char *theirs = NULL;
    if (json_object_object_get_ex(root, name, &member))
        theirs = json_object_get_string(member); /* NULL for null */
    return theirs != NULL && strcmp(theirs, ours) != 0;
}

/* The whole object is there: is it what we meant? The session has ended, so that no piece can be sent again. */
static enum verdict check_object(struct piece *p, const struct http_answer *a)
{
    char crc[DIGEST_CRC32C_TEXT], size[24];
    digest_crc32c_text(p->sum.crc, crc);
    snprintf(size, sizeof size, "%" PRIu64, p->offset + p->size);
    json_object *root = json_tokener_parse(a->body);
    const char *problem = NULL;
    if (says_other(root, "size", size))
        problem = "the object has another size than what was sent";
    else if (says_other(root, "crc32c", crc))
        problem = "the object has another checksum than what was sent";
    json_object_put(root);
    return problem == NULL ? ANSWER_OK : answer_verdict(p, a, ANSWER_FAILED, "", problem);
}

/* 308: how much of the object it has, "bytes=0-N" in Range; no Range: nothing. */
static enum verdict has_so_far(struct piece *p, const struct http_answer *a)
{
    const char *range = http_header(a, "Range");
    uint64_t last = 0, have = 0;
    if (range != NULL) {
        if (sscanf(range, "bytes=0-%" SCNu64, &last) != 1 || last >= UINT64_MAX - 1)
            return answer_verdict(p, a, ANSWER_FAILED, "", "the answer's Range can't be understood");
        have = last + 1;
    }
    if (have < p->offset)
        return answer_verdict(p, a, ANSWER_FAILED, "", "the store has lost bytes that it had");
    if (have > p->offset + p->size)
        return answer_verdict(p, a, ANSWER_FAILED, "", "the store has more bytes than were sent");
    bool was_query = p->must_query, has_grown = have - p->offset > p->skip;
    p->must_query = false;
    p->skip = have - p->offset;
    if (has_grown)
        p->tries = 0;
    if (p->skip == p->size && !p->is_last)
        return ANSWER_OK;
    /* An answer to a question is progress of a kind; a chunk that is never taken must end some time. */
    return was_query || has_grown ? ANSWER_MORE : answer_verdict(p, a, ANSWER_AGAIN, "", "the store took no bytes");
}

static enum verdict gcs_answer(struct piece *p, const struct http_answer *a)
{
    struct upload *u = p->upload;
    switch (p->step) {
    case STEP_SINGLE:
        return a->status == 200 ? ANSWER_OK : refused(p, a);
    case STEP_BEGIN: {
        if (a->status != 200 && a->status != 201)
            return refused(p, a);
        const char *location = http_header(a, "Location");
        if (location == NULL || strncasecmp(location, "http", 4) != 0)
            return answer_verdict(p, a, ANSWER_AGAIN, "", "the answer has no Location");
        free(u->session);
        u->session = strdup(location);
        if (u->session == NULL) {
            err_nomem(&p->err);
            return ANSWER_FAILED;
        }
        return ANSWER_OK;
    }
    case STEP_PIECE:
    case STEP_COMMIT:
        break;
    }
    if (a->status == 308)
        return has_so_far(p, a);
    if (a->status != 200 && a->status != 201)
        return refused(p, a);
    if (!p->is_last)
        return answer_verdict(p, a, ANSWER_FAILED, "", "the store has ended the object before its last byte");
    return check_object(p, a);
}

const struct store_ops store_gcs = {
    .name = "Google Cloud Storage",
    .sum = SUM_WHOLE_CRC32C,
    .is_sequential = true,
    .has_begin = true,
    .single_max = 5 * GIB,
    .piece_min = UNIT,
    .piece_max = 5 * GIB,
    .produce_bytes = 2 * MIB,
    .max_pieces = 1000000, /* there is no limit */
    .ask = gcs_ask,
    .answer = gcs_answer,
};
