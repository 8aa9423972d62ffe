/*
 * store_test.h -- a store for tests: the S3, Azure and Google requests that uploads use, on loopback, with checks and
 * with faults at the places that a test names.
 *
 * Each connection is a thread. Memory comes from mmap, because faults of malloc are for the code under test.
 */
#ifndef CHUTE_STORE_TEST_H
#define CHUTE_STORE_TEST_H

#include "upload_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define STORE_CONNECTIONS 1024
#define STORE_OBJECTS 64
#define STORE_PARTS 512
#define STORE_FAULTS 8
#define STORE_HEAD 16384

/* snprintf() for texts that may be cut. */
static inline void put_text(char *ret, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static inline void put_text(char *ret, size_t size, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(ret, size, fmt, args);
    va_end(args);
}

struct bytes {
    uint8_t *data;
    size_t size, room;
};

static inline void bytes_free(struct bytes *b)
{
    if (b->data != NULL)
        munmap(b->data, b->room);
    *b = (struct bytes){0};
}

static inline void bytes_add(struct bytes *b, const void *data, size_t size)
{
    if (b->size + size > b->room) {
        size_t room = (b->size + size) * 2 + 65536;
        uint8_t *more = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (more == MAP_FAILED)
            abort();
        if (b->size > 0)
            memcpy(more, b->data, b->size);
        size_t kept = b->size;
        bytes_free(b);
        *b = (struct bytes){more, kept, room};
    }
    if (size > 0)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

enum asked { ASKED_SINGLE, ASKED_BEGIN, ASKED_PIECE, ASKED_COMMIT, ASKED_QUERY, ASKED_KINDS };

enum fault_what {
    FAULT_NONE,
    FAULT_ANSWER, /* say this, with no effect */
    FAULT_LATE,   /* say this, after the effect */
    FAULT_CUT,    /* break the connection, with no effect */
    FAULT_LOST,   /* break it after the effect, without an answer */
    FAULT_HALF,   /* Google: keep the first 256 KiB of the chunk only */
    FAULT_CALL,   /* call the test, then go on */
    FAULT_DAMAGE  /* one bit of the body is another */
};
struct fault {
    enum fault_what what;
    enum asked asked;
    unsigned from, times;      /* the FROMth request of that kind, from 1, and TIMES - 1 that follow */
    const char *status, *body; /* "503 Slow" */
    const char *headers;       /* lines with CRLF */
    void (*call)(void *arg);
    void *arg;
};

struct object {
    char path[512]; /* as it came, percent-encoded */
    struct bytes parts[STORE_PARTS];
    unsigned part_count;
    uint32_t part_crc[STORE_PARTS];
    struct bytes whole;
    bool is_there;
    char headers[2048]; /* of the request that made it */
};

struct store;
struct store_connection {
    struct store *s;
    pthread_t thread;
    int fd;
    uint8_t in[65536];
    size_t have;
};

struct store {
    int fd, port;
    pthread_t thread;
    pthread_mutex_t lock;
    struct store_connection connections[STORE_CONNECTIONS];
    unsigned accepted;
    struct object objects[STORE_OBJECTS];
    unsigned object_count;
    struct fault faults[STORE_FAULTS];
    unsigned asked[ASKED_KINDS]; /* how often */
    unsigned now, most;          /* requests at once */
    unsigned uploads;            /* S3 sessions */
    const char *token;           /* what a request must have: session token, part of the SAS, bearer. NULL: anything */
    const char *secret_key;      /* S3: check signatures with it */
    bool echoes;                 /* errors repeat what the client sent */
    bool checks_nothing;         /* sums */
    atomic_bool hold;            /* requests wait before they are answered */
    atomic_bool is_stopping;
};

struct question {
    char head[STORE_HEAD];
    char method[8], target[4096];
    char path[4096], query[4096];
    struct bytes body;
    enum asked asked;
};

/* ---- bytes of a connection ---- */

static inline bool conn_fill(struct store_connection *c)
{
    while (!c->s->is_stopping && c->have < sizeof c->in) {
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        ssize_t n = recv(c->fd, c->in + c->have, sizeof c->in - c->have, 0);
        if (n <= 0)
            return false;
        c->have += (size_t)n;
        return true;
    }
    return false;
}

static inline void conn_use(struct store_connection *c, size_t n)
{
    memmove(c->in, c->in + n, c->have - n);
    c->have -= n;
}

static inline bool conn_say(struct store_connection *c, const char *text)
{
    size_t left = strlen(text);
    while (left > 0) {
        ssize_t n = send(c->fd, text, left, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        text += n;
        left -= (size_t)n;
    }
    return true;
}

static inline const char *find_header(const struct question *q, const char *name, char *ret, size_t size)
{
    char line[64];
    put_text(line, sizeof line, "\r\n%s:", name);
    const char *at = strcasestr(q->head, line);
    ret[0] = '\0';
    if (at == NULL)
        return NULL;
    at += strlen(line);
    at += strspn(at, " ");
    put_text(ret, size, "%.*s", (int)strcspn(at, "\r"), at);
    return ret;
}

static inline bool query_value(const struct question *q, const char *name, char *ret, size_t size)
{
    size_t n = strlen(name);
    for (const char *p = q->query; *p != '\0';) {
        size_t length = strcspn(p, "&");
        if (strncmp(p, name, n) == 0 && (p[n] == '=' || n == length)) {
            put_text(ret, size, "%.*s", (int)(length > n ? length - n - 1 : 0), p + n + 1);
            return true;
        }
        p += length + (p[length] == '&');
    }
    ret[0] = '\0';
    return false;
}

static inline enum asked what_is_asked(const struct question *q)
{
    char value[256], range[128];
    if (query_value(q, "uploads", value, sizeof value) || query_value(q, "uploadType", value, sizeof value))
        return ASKED_BEGIN;
    if (query_value(q, "partNumber", value, sizeof value))
        return ASKED_PIECE;
    if (query_value(q, "uploadId", value, sizeof value))
        return ASKED_COMMIT;
    if (query_value(q, "comp", value, sizeof value))
        return strcmp(value, "block") == 0 ? ASKED_PIECE : ASKED_COMMIT;
    if (find_header(q, "Content-Range", range, sizeof range) != NULL)
        return strncmp(range, "bytes */", 8) == 0 ? ASKED_QUERY : ASKED_PIECE;
    return ASKED_SINGLE;
}

static inline bool read_head(struct store_connection *c, struct question *q)
{
    uint8_t *end;
    while ((end = memmem(c->in, c->have, "\r\n\r\n", 4)) == NULL)
        if (!conn_fill(c))
            return false;
    size_t n = (size_t)(end - c->in) + 4;
    if (n >= sizeof q->head)
        abort();
    memcpy(q->head, c->in, n);
    q->head[n] = '\0';
    conn_use(c, n);
    if (sscanf(q->head, "%7s %4095s", q->method, q->target) != 2)
        return false;
    size_t path = strcspn(q->target, "?");
    put_text(q->path, sizeof q->path, "%.*s", (int)path, q->target);
    put_text(q->query, sizeof q->query, "%s", q->target[path] == '?' ? q->target + path + 1 : "");
    q->asked = what_is_asked(q);
    return true;
}

static inline bool read_body(struct store_connection *c, struct question *q)
{
    char value[64];
    uint64_t left = find_header(q, "Content-Length", value, sizeof value) != NULL ? strtoull(value, NULL, 10) : 0;
    if (find_header(q, "Expect", value, sizeof value) != NULL && !conn_say(c, "HTTP/1.1 100 Continue\r\n\r\n"))
        return false;
    while (left > 0) {
        if (c->have == 0 && !conn_fill(c))
            return false;
        size_t n = c->have < left ? c->have : (size_t)left;
        bytes_add(&q->body, c->in, n);
        conn_use(c, n);
        left -= n;
    }
    return true;
}

/* ---- answers ---- */

static inline bool answer(struct store_connection *c, const char *status, const char *headers, const char *body)
{
    char text[STORE_HEAD];
    put_text(text, sizeof text, "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n%s", status, headers, strlen(body), body);
    return conn_say(c, text);
}

static inline bool answer_error(struct store_connection *c, const struct question *q, const char *status,
                                const char *code)
{
    char text[STORE_HEAD], echo[4096] = "as it is";
    if (c->s->echoes) {
        char a[1500], b[1500];
        find_header(q, "x-amz-security-token", a, sizeof a);
        find_header(q, "Authorization", b, sizeof b);
        put_text(echo, sizeof echo, "%s %s %.900s", a, b, q->query);
        for (char *p = echo; *p != '\0'; p++) /* as XML */
            if (*p == '<' || *p == '&')
                *p = ' ';
    }
    put_text(text, sizeof text, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>%s</Message></Error>", code,
             echo);
    return answer(c, status, "Date: Wed, 25 Nov 2026 20:00:00 GMT\r\n", text);
}

static inline struct object *object_at(struct store *s, const char *path)
{
    for (unsigned i = 0; i < s->object_count; i++)
        if (strcmp(s->objects[i].path, path) == 0)
            return &s->objects[i];
    if (s->object_count == STORE_OBJECTS)
        abort();
    struct object *o = &s->objects[s->object_count++];
    put_text(o->path, sizeof o->path, "%s", path);
    return o;
}

static inline void object_keep(struct object *o, const struct question *q)
{
    put_text(o->headers, sizeof o->headers, "%s", q->head);
    bytes_free(&o->whole);
    o->is_there = true;
}

static inline bool has_crc(const struct question *q, const char *header, uint32_t crc)
{
    char value[128], text[DIGEST_CRC32C_TEXT];
    digest_crc32c_text(crc, text);
    if (find_header(q, header, value, sizeof value) == NULL)
        return false;
    const char *at = strstr(value, "crc32c=");
    return strcmp(at != NULL ? at + 7 : value, text) == 0;
}

/* Everything of the S3 request as we got it must be what was signed. */
static inline bool is_signed(struct store *s, const struct question *q)
{
    static const char *const names[] = {"host",
                                        "x-amz-acl",
                                        "x-amz-checksum-algorithm",
                                        "x-amz-checksum-crc32c",
                                        "x-amz-content-sha256",
                                        "x-amz-date",
                                        "x-amz-security-token",
                                        "x-amz-server-side-encryption"};
    struct sigv4_header headers[8];
    char values[8][512], claim[1024];
    size_t count = 0;
    for (size_t i = 0; i < 8; i++)
        if (find_header(q, names[i], values[i], sizeof values[i]) != NULL)
            headers[count++] = (struct sigv4_header){names[i], values[i]};
    char date[64];
    if (find_header(q, "x-amz-date", date, sizeof date) == NULL)
        return false;
    const struct sigv4_request r = {
        .method = q->method,
        .path = q->path,
        .query = q->query,
        .headers = headers,
        .header_count = count,
        .payload = "UNSIGNED-PAYLOAD",
        .date = date,
        .region = "eu-central-1",
        .access_key = "AKCANARY",
        .secret_key = s->secret_key,
    };
    struct buf b;
    buf_init(&b);
    bool is_good = sigv4_sign(&r, &b, NULL) == ERR_NONE &&
                   find_header(q, "Authorization", claim, sizeof claim) != NULL && strcmp(claim, b.data) == 0;
    buf_done(&b);
    return is_good;
}

static inline bool s3_answers(struct store_connection *c, struct question *q)
{
    struct store *s = c->s;
    struct object *o = object_at(s, q->path);
    char value[4096], text[1024];
    uint32_t crc = digest_crc32c_by_table(0, q->body.data, q->body.size);
    bool is_part = q->asked == ASKED_PIECE;
    if (s->secret_key != NULL && !is_signed(s, q))
        return answer_error(c, q, "403 Forbidden", "SignatureDoesNotMatch");
    if (s->token != NULL &&
        (find_header(q, "x-amz-security-token", value, sizeof value) == NULL || strcmp(value, s->token) != 0))
        return answer_error(c, q, "400 Bad Request", "ExpiredToken");
    if ((is_part || q->asked == ASKED_SINGLE) && !s->checks_nothing && !has_crc(q, "x-amz-checksum-crc32c", crc))
        return answer_error(c, q, "400 Bad Request", "BadDigest");
    if (q->asked == ASKED_BEGIN) {
        object_keep(o, q);
        o->is_there = false;
        o->part_count = 0;
        s->uploads++;
        return answer(c, "200 OK", "",
                      "<InitiateMultipartUploadResult><UploadId>up/1 =&gt;</UploadId></InitiateMultipartUploadResult>");
    }
    if (q->asked != ASKED_SINGLE &&
        (!query_value(q, "uploadId", value, sizeof value) || strcmp(value, "up%2F1%20%3D%3E") != 0))
        return answer_error(c, q, "404 Not Found", "NoSuchUpload");
    if (is_part) {
        query_value(q, "partNumber", value, sizeof value);
        unsigned n = (unsigned)atoi(value);
        if (n == 0 || n > STORE_PARTS)
            abort();
        bytes_free(&o->parts[n - 1]);
        o->parts[n - 1] = q->body;
        q->body = (struct bytes){0};
        o->part_crc[n - 1] = crc;
        if (o->part_count < n)
            o->part_count = n;
        put_text(text, sizeof text, "ETag: \"etag<%u>&\"\r\n", n);
        return answer(c, "200 OK", text, "");
    }
    if (q->asked == ASKED_SINGLE) {
        object_keep(o, q);
        o->whole = q->body;
        q->body = (struct bytes){0};
        return answer(c, "200 OK", "ETag: \"x\"\r\n", "");
    }
    if (o->part_count == 0)
        return answer_error(c, q, "404 Not Found", "NoSuchUpload");
    bytes_add(&q->body, "", 1);
    const char *list = (const char *)q->body.data;
    for (unsigned i = 0; i < o->part_count; i++) { /* in order, each with its sum and its tag */
        char sum[DIGEST_CRC32C_TEXT];
        digest_crc32c_text(o->part_crc[i], sum);
        put_text(text, sizeof text,
                 "<Part><ChecksumCRC32C>%s</ChecksumCRC32C><ETag>&quot;etag&lt;%u>&amp;&quot;</ETag>"
                 "<PartNumber>%u</PartNumber></Part>",
                 sum, i + 1, i + 1);
        list = strstr(list, text);
        if (list == NULL)
            return answer_error(c, q, "400 Bad Request", "InvalidPart");
    }
    bytes_free(&o->whole);
    for (unsigned i = 0; i < o->part_count; i++) {
        bytes_add(&o->whole, o->parts[i].data, o->parts[i].size);
        bytes_free(&o->parts[i]);
    }
    o->part_count = 0;
    o->is_there = true;
    return answer(c, "200 OK", "", "  <CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>");
}

static inline bool azure_answers(struct store_connection *c, struct question *q)
{
    struct store *s = c->s;
    struct object *o = object_at(s, q->path);
    char value[256];
    if (s->token != NULL && strstr(q->query, s->token) == NULL)
        return answer_error(c, q, "403 Forbidden", "AuthenticationFailed");
    if (q->asked != ASKED_COMMIT && !s->checks_nothing) {
        uint8_t md5[DIGEST_MD5_BYTES];
        char text[DIGEST_MD5_TEXT];
        struct digest_md5 *m;
        if (digest_md5_new(&m, NULL) != ERR_NONE)
            abort();
        digest_md5_add(m, q->body.data, q->body.size);
        digest_md5_end(m, md5, NULL);
        digest_base64(md5, sizeof md5, text);
        if (find_header(q, "Content-MD5", value, sizeof value) == NULL || strcmp(value, text) != 0)
            return answer_error(c, q, "400 Bad Request", "Md5Mismatch");
    }
    if (q->asked == ASKED_PIECE) {
        char id[64], digits[16];
        query_value(q, "blockid", id, sizeof id);
        unsigned n = 0;
        for (; n < STORE_PARTS; n++) { /* which number has this id? */
            put_text(digits, sizeof digits, "%06u", n);
            digest_base64(digits, 6, value);
            if (strcmp(value, id) == 0)
                break;
        }
        if (n == STORE_PARTS)
            abort();
        bytes_free(&o->parts[n]);
        o->parts[n] = q->body;
        q->body = (struct bytes){0};
        if (o->part_count <= n)
            o->part_count = n + 1;
        return answer(c, "201 Created", "", "");
    }
    object_keep(o, q);
    if (q->asked == ASKED_SINGLE) {
        if (find_header(q, "x-ms-blob-type", value, sizeof value) == NULL)
            return answer_error(c, q, "400 Bad Request", "MissingRequiredHeader");
        o->whole = q->body;
        q->body = (struct bytes){0};
        return answer(c, "201 Created", "", "");
    }
    bytes_add(&q->body, "", 1);
    unsigned listed = 0;
    for (const char *at = (const char *)q->body.data; (at = strstr(at, "<Latest>")) != NULL; at++)
        bytes_add(&o->whole, o->parts[listed].data, o->parts[listed].size), listed++;
    return answer(c, "201 Created", "", "");
}

static inline bool gcs_says_so_far(struct store_connection *c, const struct object *o)
{
    char range[64] = "";
    if (o->whole.size > 0)
        put_text(range, sizeof range, "Range: bytes=0-%zu\r\n", o->whole.size - 1);
    return answer(c, "308 Resume Incomplete", range, "");
}

static inline bool gcs_says_object(struct store_connection *c, const struct object *o)
{
    char text[256], crc[DIGEST_CRC32C_TEXT];
    digest_crc32c_text(digest_crc32c_by_table(0, o->whole.data, o->whole.size), crc);
    put_text(text, sizeof text, "{\"name\":\"x\",\"size\":\"%zu\",\"crc32c\":\"%s\"}", o->whole.size, crc);
    return answer(c, "200 OK", "Content-Type: application/json\r\n", text);
}

static inline bool gcs_answers(struct store_connection *c, struct question *q, bool keeps_half)
{
    struct store *s = c->s;
    char value[4096], name[512];
    if (s->token != NULL && (find_header(q, "Authorization", value, sizeof value) == NULL ||
                             strncmp(value, "Bearer ", 7) != 0 || strcmp(value + 7, s->token) != 0))
        return answer_error(c, q, "401 Unauthorized", "AuthenticationRequired");
    if (q->asked == ASKED_BEGIN) {
        query_value(q, "name", name, sizeof name);
        struct object *o = object_at(s, name);
        object_keep(o, q);
        o->is_there = false;
        char text[1024];
        put_text(text, sizeof text, "Location: http://127.0.0.1:%d/session?name=%s\r\n", s->port, name);
        return answer(c, "200 OK", text, "");
    }
    if (q->asked == ASKED_SINGLE) {
        if (!has_crc(q, "x-goog-hash", digest_crc32c_by_table(0, q->body.data, q->body.size)))
            return answer_error(c, q, "400 Bad Request", "BadDigest");
        struct object *o = object_at(s, q->path);
        object_keep(o, q);
        o->whole = q->body;
        q->body = (struct bytes){0};
        return answer(c, "200 OK", "", "");
    }
    if (!query_value(q, "name", name, sizeof name))
        return answer_error(c, q, "404 Not Found", "NoSuchSession");
    struct object *o = object_at(s, name);
    find_header(q, "Content-Range", value, sizeof value);
    const char *total = strchr(value, '/') + 1;
    if (q->asked == ASKED_PIECE && !o->is_there) {
        unsigned long long from = strtoull(value + 6, NULL, 10);
        if (from != o->whole.size || (*total == '*' && q->body.size % (256 * KIB) != 0))
            return answer_error(c, q, "400 Bad Request", "InvalidRange");
        size_t n = keeps_half ? 256 * KIB : q->body.size;
        bytes_add(&o->whole, q->body.data, n < q->body.size ? n : q->body.size);
    }
    if (*total == '*' || strtoull(total, NULL, 10) != o->whole.size)
        return gcs_says_so_far(c, o);
    if (q->asked == ASKED_PIECE && !has_crc(q, "x-goog-hash", digest_crc32c_by_table(0, o->whole.data, o->whole.size)))
        return answer_error(c, q, "400 Bad Request", "BadDigest");
    o->is_there = true;
    return gcs_says_object(c, o);
}

static inline bool is_gcs(const struct question *q)
{
    char value[64];
    return find_header(q, "x-goog-hash", value, sizeof value) != NULL ||
           find_header(q, "Content-Range", value, sizeof value) != NULL ||
           strncmp(q->path, "/upload/storage/", 16) == 0;
}

static inline bool store_answers(struct store_connection *c, struct question *q, bool keeps_half)
{
    char value[64];
    pthread_mutex_lock(&c->s->lock);
    bool is_open;
    if (is_gcs(q))
        is_open = gcs_answers(c, q, keeps_half);
    else if (find_header(q, "x-amz-date", value, sizeof value) != NULL)
        is_open = s3_answers(c, q);
    else
        is_open = azure_answers(c, q);
    pthread_mutex_unlock(&c->s->lock);
    return is_open;
}

static inline struct fault find_fault(struct store *s, enum asked asked)
{
    struct fault found = {.what = FAULT_NONE};
    pthread_mutex_lock(&s->lock);
    unsigned nth = ++s->asked[asked];
    if (++s->now > s->most)
        s->most = s->now;
    for (size_t i = 0; i < STORE_FAULTS; i++) {
        const struct fault *f = &s->faults[i];
        if (f->what != FAULT_NONE && f->asked == asked && nth >= f->from && nth < f->from + f->times)
            found = *f;
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

static inline void store_left(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    s->now--;
    pthread_mutex_unlock(&s->lock);
}

/* true: the connection goes on. */
static inline bool serve_one(struct store_connection *c, struct question *q)
{
    const struct fault f = find_fault(c->s, q->asked);
    const char *headers = f.headers != NULL ? f.headers : "", *body = f.body != NULL ? f.body : "";
    if (f.what == FAULT_CALL)
        f.call(f.arg); /* before the body is asked for */
    bool is_open = read_body(c, q);
    while (c->s->hold && !c->s->is_stopping)
        usleep(1000);
    if (is_open) {
        switch (f.what) {
        case FAULT_ANSWER:
            store_left(c->s);
            return answer(c, f.status, headers, body);
        case FAULT_CUT:
            is_open = false;
            break;
        case FAULT_LATE:
        case FAULT_LOST: { /* the effect, without its answer */
            int fd = c->fd;
            int nowhere[2];
            if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, nowhere) != 0)
                abort();
            c->fd = nowhere[0];
            store_answers(c, q, false);
            c->fd = fd;
            close(nowhere[0]);
            close(nowhere[1]);
            store_left(c->s);
            return f.what == FAULT_LATE && answer(c, f.status, headers, body);
        }
        case FAULT_DAMAGE:
            if (q->body.size > 0)
                q->body.data[q->body.size / 2] ^= 1;
            /* fall through */
        case FAULT_NONE:
        case FAULT_CALL:
        case FAULT_HALF:
            store_left(c->s);
            return store_answers(c, q, f.what == FAULT_HALF);
        }
    }
    store_left(c->s);
    return false;
}

static inline void *store_connection(void *arg)
{
    struct store_connection *c = arg;
    struct question *q = mmap(NULL, sizeof *q, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (q == MAP_FAILED)
        abort();
    bool is_open = true;
    while (is_open && read_head(c, q)) {
        is_open = serve_one(c, q);
        bytes_free(&q->body);
    }
    bytes_free(&q->body);
    munmap(q, sizeof *q);
    shutdown(c->fd, SHUT_RDWR);
    close(c->fd);
    return NULL;
}

static inline void *store_listen(void *arg)
{
    struct store *s = arg;
    while (!s->is_stopping) {
        struct pollfd p = {.fd = s->fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept(s->fd, NULL, NULL);
        if (fd < 0)
            continue;
        if (s->accepted == STORE_CONNECTIONS)
            abort();
        struct store_connection *c = &s->connections[s->accepted];
        c->s = s;
        c->fd = fd;
        if (pthread_create(&c->thread, NULL, store_connection, c) != 0)
            abort();
        s->accepted++;
    }
    return NULL;
}

static inline struct store *store_start(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    struct store *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(s != MAP_FAILED);
    pthread_mutex_init(&s->lock, NULL);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(s->fd >= 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(s->fd, 256), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&at, &size), 0);
    s->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&s->thread, NULL, store_listen, s), 0);
    return s;
}

/* Forget objects, faults and counters; connections stay. */
static inline void store_reset(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->object_count; i++) {
        bytes_free(&s->objects[i].whole);
        for (unsigned k = 0; k < STORE_PARTS; k++)
            bytes_free(&s->objects[i].parts[k]);
    }
    memset(s->objects, 0, s->object_count * sizeof s->objects[0]);
    s->object_count = 0;
    memset(s->faults, 0, sizeof s->faults);
    memset(s->asked, 0, sizeof s->asked);
    s->most = s->uploads = 0;
    s->token = s->secret_key = NULL;
    s->echoes = s->checks_nothing = false;
    pthread_mutex_unlock(&s->lock);
}

static inline void store_stop(struct store *s)
{
    s->is_stopping = true;
    pthread_join(s->thread, NULL);
    for (unsigned i = 0; i < s->accepted; i++)
        pthread_join(s->connections[i].thread, NULL);
    store_reset(s);
    close(s->fd);
    pthread_mutex_destroy(&s->lock);
    munmap(s, sizeof *s);
}

#endif
