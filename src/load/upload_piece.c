/*
 * upload_piece.c -- one request: its checksum, its bytes, its answer, its retries.
 *
 * A range of a file is read twice: once for the checksum that must stand before the body, and once when it is sent,
 * then mostly from the cache of the system. Both happen on the pool, never more than a MiB at a time. If the file
 * changes between the two, the store refuses the piece; whether that was the reason is found out by summing again.
 */
#include "upload_internal.h"

#include "clock.h"

#include "utlist.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SUM_STEP MIB /* of one work on the pool */
/* It stays in the cache, and below what malloc() takes from the system and gives back each time, page by page. */
#define SUM_BYTES ((size_t)64 * 1024)
#define TRIES_MAX 3u        /* after the first */
#define PAUSE_FIRST_MS 200u /* four times as long each time */
#define PAUSE_MAX_MS 3000u
#define RETRY_AFTER_MAX_MS 60000u /* a longer pause is the job's to make */
#define EXPECT_BYTES MIB          /* larger bodies are announced before they are sent */
#define ANSWER_MAX ((size_t)256 * 1024)

/* ---- a checksum ---- */

enum err_code summer_begin(struct summer *s, enum sum_kind kind, uint32_t before, struct err *err)
{
    s->kind = kind;
    s->md5 = NULL;
    s->crc = kind == SUM_WHOLE_CRC32C ? before : 0;
    return kind == SUM_MD5 ? digest_md5_new(&s->md5, err) : ERR_NONE;
}

void summer_add(struct summer *s, const void *data, size_t size)
{
    if (s->kind == SUM_MD5)
        digest_md5_add(s->md5, data, size);
    else
        s->crc = digest_crc32c(s->crc, data, size);
}

enum err_code summer_end(struct summer *s, struct sum *ret, struct err *err)
{
    memset(ret, 0, sizeof *ret);
    ret->crc = s->crc;
    if (s->kind != SUM_MD5)
        return ERR_NONE;
    struct digest_md5 *md5 = s->md5;
    s->md5 = NULL;
    ret->crc = 0;
    return digest_md5_end(md5, ret->md5, err);
}

void summer_drop(struct summer *s)
{
    digest_md5_free(s->md5);
    s->md5 = NULL;
}

/* ---- reading ---- */

/* Exactly SIZE bytes, or what there is; errno in *RET_CAUSE, 0 none. */
static size_t read_range(int fd, uint8_t *data, size_t size, uint64_t offset, int *ret_cause)
{
    size_t got = 0;
    *ret_cause = 0;
    while (got < size) {
        ssize_t n = pread(fd, data + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            *ret_cause = errno;
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    return got;
}

static enum err_code read_err(int cause, uint64_t offset, struct err *err)
{
    if (cause != 0)
        return err_set(err, ERR_SYSTEM, true, "read at byte %llu: %s", (unsigned long long)offset, strerror(cause));
    return err_set(err, ERR_CHANGED, true, "changed while it was being uploaded: it ends at byte %llu",
                   (unsigned long long)offset);
}

static bool is_from_file(const struct piece *p)
{
    return p->upload->body.from == UPLOAD_FILE && (p->step == STEP_SINGLE || p->step == STEP_PIECE) &&
           p->memory == NULL && p->upload->producer == NULL;
}

/* ---- the sum of a piece, on the pool ---- */

static void sum_run(struct work *work)
{
    struct piece *p = work->arg;
    struct upload *u = p->upload;
    uint64_t left = p->size - p->summed < SUM_STEP ? p->size - p->summed : SUM_STEP;
    if (!is_from_file(p)) {
        summer_add(&p->summer, p->data + p->summed, (size_t)left);
        p->summed += left;
    } else {
        uint8_t *buf = left > 0 ? malloc(SUM_BYTES) : NULL;
        if (buf == NULL && left > 0) {
            err_nomem(&p->sum_err);
            return;
        }
        while (left > 0) {
            int cause;
            uint64_t at = u->body.offset + p->offset + p->summed;
            size_t want = left < SUM_BYTES ? (size_t)left : SUM_BYTES;
            size_t got = read_range(u->body.fd, buf, want, at, &cause);
            if (got < want) {
                read_err(cause, at + got, &p->sum_err);
                break;
            }
            summer_add(&p->summer, buf, got);
            p->summed += got;
            left -= got;
        }
        free(buf);
    }
    if (p->sum_err.code == ERR_NONE && p->summed == p->size) {
        struct sum before = p->sum;
        if (summer_end(&p->summer, &p->sum, &p->sum_err) != ERR_NONE)
            return;
        if (p->is_recheck && memcmp(&before, &p->sum, sizeof before) != 0)
            err_set(&p->sum_err, ERR_CHANGED, true, "changed while it was being uploaded: bytes %llu to %llu differ",
                    (unsigned long long)(u->body.offset + p->offset),
                    (unsigned long long)(u->body.offset + p->offset + p->size - 1));
        p->has_sum = true;
    }
}

static void sum_done(struct work *work)
{
    struct piece *p = work->arg;
    p->busy--;
    p->is_sum_ready = true;
    upload_poke(p->upload->up);
}

static void sum_more(struct piece *p)
{
    p->sum_work.arg = p;
    p->is_sum_ready = false;
    if (work_start(p->upload->up->loop, &p->sum_work, sum_run, sum_done, &p->err) != ERR_NONE)
        upload_fail(p->upload, &p->err, 0);
    else
        p->busy++;
}

static void sum_start(struct piece *p, bool is_recheck)
{
    p->state = PIECE_SUMMING;
    p->has_sum = false;
    p->is_recheck = is_recheck;
    p->summed = 0;
    err_clear(&p->sum_err);
    if (summer_begin(&p->summer, p->upload->ops->sum, p->sum_before, &p->err) != ERR_NONE)
        upload_fail(p->upload, &p->err, 0);
    else
        sum_more(p);
}

/* ---- the bytes of a range, ahead of curl ---- */

static void pump_fill(struct piece *p);

static void half_run(struct work *work)
{
    struct half *h = work->arg;
    h->got = read_range(h->piece->upload->body.fd, h->data, h->size, h->offset, &h->cause);
}

static void half_done(struct work *work)
{
    struct half *h = work->arg;
    struct piece *p = h->piece;
    struct pump *pump = p->pump;
    p->busy--;
    bool is_stale = h->state == HALF_STALE;
    h->state = is_stale ? HALF_EMPTY : HALF_FULL;
    if (!is_stale && h->got < h->size)
        read_err(h->cause, h->offset + h->got, &pump->err);
    if (p->transfer == NULL) {
        upload_poke(p->upload->up); /* the request has ended, and waited only for us */
        return;
    }
    pump_fill(p);
    if (pump->is_waited_for && (!is_stale || pump->err.code != ERR_NONE)) {
        pump->is_waited_for = false;
        http_resume(p->transfer);
    }
}

static void pump_fill(struct piece *p)
{
    struct pump *pump = p->pump;
    for (size_t i = 0; i < 2 && pump->err.code == ERR_NONE; i++) {
        struct half *h = &pump->half[i];
        if (h->state != HALF_EMPTY || pump->next_read >= pump->end)
            continue;
        uint64_t left = pump->end - pump->next_read;
        h->offset = pump->next_read;
        h->size = left < PUMP_BYTES ? (size_t)left : PUMP_BYTES;
        h->work.arg = h;
        if (work_start(p->upload->up->loop, &h->work, half_run, half_done, &pump->err) != ERR_NONE)
            return;
        h->state = HALF_READING;
        p->busy++;
        pump->next_read += h->size;
    }
}

static struct half *half_with(struct pump *pump, uint64_t offset)
{
    for (size_t i = 0; i < 2; i++) {
        struct half *h = &pump->half[i];
        if (h->state == HALF_FULL && h->offset <= offset && offset < h->offset + h->got)
            return h;
    }
    return NULL;
}

static ssize_t on_read(void *arg, char *buf, size_t room, struct err *err)
{
    struct piece *p = arg;
    struct pump *pump = p->pump;
    size_t used = 0;
    while (used < room && pump->next_take < pump->end) {
        struct half *h = half_with(pump, pump->next_take);
        if (h == NULL)
            break;
        size_t at = (size_t)(pump->next_take - h->offset), left = h->got - at;
        size_t n = left < room - used ? left : room - used;
        memcpy(buf + used, h->data + at, n);
        used += n;
        pump->next_take += n;
        if (n == left && h->got == h->size)
            h->state = HALF_EMPTY;
    }
    pump_fill(p);
    if (used > 0 || pump->next_take == pump->end)
        return (ssize_t)used;
    if (pump->err.code != ERR_NONE) {
        *err = pump->err;
        return HTTP_FAIL;
    }
    pump->is_waited_for = true;
    return HTTP_LATER;
}

static bool on_rewind(void *arg)
{
    struct piece *p = arg;
    struct pump *pump = p->pump;
    for (size_t i = 0; i < 2; i++) {
        struct half *h = &pump->half[i];
        h->state = h->state == HALF_READING || h->state == HALF_STALE ? HALF_STALE : HALF_EMPTY;
    }
    err_clear(&pump->err);
    pump->next_read = pump->next_take = p->upload->body.offset + p->offset + p->skip;
    pump_fill(p);
    return true;
}

static void pump_free(struct piece *p)
{
    if (p->pump == NULL)
        return;
    p->pump->next = p->upload->up->spare;
    p->upload->up->spare = p->pump;
    p->pump = NULL;
}

void pumps_drop(struct uploader *up)
{
    while (up->spare != NULL) {
        struct pump *pump = up->spare;
        up->spare = pump->next;
        munmap(pump->memory, 2 * PUMP_BYTES);
        free(pump);
    }
}

/* By mmap, here and for the larger buffers: they go back to the system at once, whatever malloc would keep. One that
 * was in use is taken first: the system clears each page of a new one. */
static enum err_code pump_new(struct piece *p, struct err *err)
{
    struct pump *pump = p->upload->up->spare;
    void *memory = NULL;
    if (pump != NULL) {
        p->upload->up->spare = pump->next;
        memory = pump->memory;
        *pump = (struct pump){.memory = memory};
    } else {
        pump = calloc(1, sizeof *pump);
    }
    if (pump == NULL)
        return err_nomem(err);
    if (memory == NULL)
        memory = mmap(NULL, 2 * PUMP_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        free(pump);
        return err_nomem(err);
    }
    pump->memory = memory;
    for (size_t i = 0; i < 2; i++) {
        pump->half[i].piece = p;
        pump->half[i].data = pump->memory + i * PUMP_BYTES;
    }
    pump->end = p->upload->body.offset + p->offset + p->size;
    p->pump = pump;
    return ERR_NONE;
}

/* ---- the request ---- */

bool status_is_transient(int status)
{
    return status == 408 || status == 429 || status >= 500;
}

int64_t http_date(const char *text)
{
    struct tm tm;
    memset(&tm, 0, sizeof tm);
    return strptime(text, "%a, %d %b %Y %H:%M:%S GMT", &tm) != NULL ? (int64_t)timegm(&tm) : -1;
}

/* Seconds, or a date. */
static uint64_t retry_after_ms(const struct http_answer *a)
{
    const char *text = http_header(a, "Retry-After");
    if (text == NULL)
        return 0;
    char *end;
    errno = 0;
    unsigned long long seconds = strtoull(text, &end, 10);
    if (end != text && *end == '\0' && text[0] != '-')
        return errno == 0 && seconds < 1000000 ? seconds * 1000 : 1000000000u;
    int64_t date = http_date(text), now = clock_wall_ms();
    return date >= 0 && date * 1000 > now ? (uint64_t)(date * 1000 - now) : 0;
}

enum verdict answer_verdict(struct piece *p, const struct http_answer *a, enum verdict verdict, const char *code,
                            const char *message)
{
    const struct upload *u = p->upload;
    char words[320];
    bool has_code = code[0] != '\0', has_message = message[0] != '\0';
    snprintf(words, sizeof words, "%s%s%s%s", has_code ? " " : "", code, has_message ? ": " : "", message);
    target_redact(u->target, words);
    for (char *c = words; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7F)
            *c = ' ';
    p->retry_after_ms = status_is_transient(a->status) ? retry_after_ms(a) : 0;
    err_set(&p->err, ERR_REMOTE, true, "%s answered %d%s", u->ops->name, a->status, words);
    return verdict;
}

static void on_answer(void *arg, const struct http_answer *a)
{
    struct piece *p = arg;
    p->transfer = NULL;
    if (a->err.code == ERR_NONE) {
        p->verdict = p->upload->ops->answer(p, a);
        if (p->verdict == ANSWER_AGAIN)
            p->maybe_received = true;
    } else {
        p->err = a->err;
        target_redact(p->upload->target, p->err.text);
        p->verdict = a->err.code == ERR_REMOTE && a->err.retryable ? ANSWER_AGAIN : ANSWER_FAILED;
        p->maybe_received = p->maybe_received || a->maybe_received;
        if (p->step == STEP_PIECE && p->upload->ops->is_sequential)
            p->must_query = true; /* some of it may be there */
    }
    upload_poke(p->upload->up);
}

static enum err_code send_request(struct piece *p, struct ask *ask, struct err *err)
{
    struct upload *u = p->upload;
    bool has_body = p->step != STEP_BEGIN && !p->must_query && p->size > p->skip;
    uint64_t size = has_body ? p->size - p->skip : 0;
    struct http_request r = {
        .method = ask->method,
        .url = ask->url,
        .headers = (const char *const *)ask->headers,
        .expect_continue = size >= EXPECT_BYTES,
        /* A second one by curl itself would begin a second upload, or meet what the first one has ended. */
        .only_once = p->step == STEP_BEGIN || p->step == STEP_COMMIT || u->ops->is_sequential,
        .max_answer = ANSWER_MAX,
        .stall_timeout_ms = ask->stall_timeout_ms,
        .done = on_answer,
        .arg = p,
    };
    if (has_body && is_from_file(p)) {
        if (pump_new(p, err) != ERR_NONE)
            return err->code;
        on_rewind(p);
        r.read = on_read;
        r.rewind = on_rewind;
        r.stream_size = (int64_t)size;
    } else if (has_body) {
        r.body = p->data + p->skip;
        r.body_size = (size_t)size;
    }
    p->generation = u->generation;
    p->verdict = ANSWER_NONE;
    err_clear(&p->err);
    p->retry_after_ms = 0;
    return http_start(u->up->http, &r, &p->transfer, err);
}

static void send_piece(struct piece *p)
{
    struct ask ask = {.count = 0};
    struct err err = {.code = ERR_NONE};
    p->state = PIECE_SENDING;
    enum err_code code = p->upload->ops->ask(p, &ask, &err);
    if (code == ERR_NONE && ask.has_failed)
        code = err_nomem(&err);
    if (code == ERR_NONE)
        code = send_request(p, &ask, &err);
    ask_done(&ask);
    if (code != ERR_NONE)
        upload_fail(p->upload, &err, 0);
}

void piece_run(struct piece *p)
{
    bool needs_sum = p->step == STEP_SINGLE || p->step == STEP_PIECE;
    if (needs_sum && !p->has_sum)
        sum_start(p, false);
    else
        send_piece(p);
}

/* ---- its life ---- */

bool piece_is_busy(const struct piece *p)
{
    return p->busy > 0 || p->transfer != NULL || p->state == PIECE_FILLING;
}

void piece_cancel(struct piece *p)
{
    if (p->transfer != NULL)
        http_cancel(p->transfer);
}

static void drop_slot(struct piece *p)
{
    if (p->has_slot)
        p->upload->up->running--;
    p->has_slot = false;
}

void piece_free(struct piece *p)
{
    struct uploader *up = p->upload->up;
    drop_slot(p);
    pump_free(p);
    summer_drop(&p->summer);
    if (p->memory != NULL) {
        munmap(p->memory, p->memory_size);
        up->buffer_used -= p->memory_size;
    }
    buf_done(&p->text);
    DL_DELETE(p->upload->pieces, p);
    free(p);
}

bool upload_mark(struct upload *u, unsigned number, const char *etag, uint32_t crc)
{
    if (number >= u->mark_capacity) {
        size_t capacity = u->mark_capacity == 0 ? 16 : u->mark_capacity * 2;
        while (capacity <= number)
            capacity *= 2;
        struct mark *marks = realloc(u->marks, capacity * sizeof *marks);
        if (marks == NULL)
            return false;
        memset(marks + u->mark_capacity, 0, (capacity - u->mark_capacity) * sizeof *marks);
        u->marks = marks;
        u->mark_capacity = capacity;
    }
    char *copy = strdup(etag);
    if (copy == NULL)
        return false;
    free(u->marks[number].etag);
    u->marks[number] = (struct mark){copy, crc};
    return true;
}

static void ready_again(struct piece *p)
{
    drop_slot(p);
    pump_free(p);
    p->state = PIECE_READY;
}

/* Somewhere between nothing and the whole pause: many that failed together must not come back together. */
static uint64_t pause_ms(struct piece *p)
{
    uint64_t pause = upload_knobs.pause_ms > 0 ? upload_knobs.pause_ms : PAUSE_FIRST_MS;
    pause <<= 2 * (p->tries - 1);
    if (pause > PAUSE_MAX_MS)
        pause = PAUSE_MAX_MS;
    uint64_t *x = &p->upload->up->random;
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    pause = 1 + *x % pause;
    return pause > p->retry_after_ms ? pause : p->retry_after_ms;
}

static void try_again(struct piece *p)
{
    struct upload *u = p->upload;
    p->tries++;
    if (p->tries > TRIES_MAX || p->retry_after_ms > RETRY_AFTER_MAX_MS) {
        upload_fail(u, &p->err, p->retry_after_ms);
        return;
    }
    ready_again(p);
    p->state = PIECE_PAUSED;
    p->due_ms = clock_mono_ms() + pause_ms(p);
}

/* Whoever was sent with credentials that are already replaced goes again with the new ones. */
static void ask_for_credentials(struct piece *p)
{
    struct upload *u = p->upload;
    ready_again(p);
    if (p->generation != u->generation || u->is_resting)
        return;
    if (u->expired == NULL || !u->has_proof) {
        u->result.is_expired = true;
        upload_fail(u, &p->err, 0);
        return;
    }
    struct err err = p->err; /* the callback may do anything to this upload but free it */
    u->is_resting = true;
    if (!u->expired(u->arg)) {
        u->result.is_expired = !u->is_over;
        upload_fail(u, &err, 0);
    }
}

static void finish_piece(struct piece *p)
{
    struct upload *u = p->upload;
    bool is_whole = p->step == STEP_SINGLE || p->step == STEP_COMMIT ||
                    (p->step == STEP_PIECE && p->is_last && !u->ops->has_commit);
    if (p->step == STEP_BEGIN)
        u->has_begun = true;
    piece_free(p);
    if (is_whole) {
        u->is_over = true;
        u->result.sent_bytes = u->made_bytes;
        u->result.parts = u->made;
    }
}

/* The sum is there, or was made once more because the store had got something else. */
static void step_sum(struct piece *p)
{
    p->is_sum_ready = false;
    if (p->sum_err.code != ERR_NONE) {
        summer_drop(&p->summer);
        upload_fail(p->upload, &p->sum_err, 0);
    } else if (!p->has_sum) {
        sum_more(p);
    } else if (p->is_recheck) { /* the file is as it was: the bytes were damaged on their way */
        p->is_recheck = false;
        try_again(p);
    } else {
        if (p->upload->ops->sum == SUM_WHOLE_CRC32C)
            p->upload->made_crc = p->sum.crc;
        send_piece(p);
    }
}

bool piece_step(struct piece *p)
{
    struct upload *u = p->upload;
    if (piece_is_busy(p))
        return false;
    if (p->state == PIECE_PAUSED && clock_mono_ms() >= p->due_ms)
        p->state = PIECE_READY;
    if (p->state == PIECE_SUMMING && p->is_sum_ready)
        step_sum(p);
    if (p->state != PIECE_SENDING || p->verdict == ANSWER_NONE)
        return false;
    enum verdict verdict = p->verdict;
    p->verdict = ANSWER_NONE;
    if ((verdict == ANSWER_OK || verdict == ANSWER_MORE) && p->generation == u->generation)
        u->has_proof = true;
    switch (verdict) {
    case ANSWER_NONE:
        break;
    case ANSWER_OK:
        finish_piece(p);
        return true;
    case ANSWER_MORE:
        ready_again(p);
        break;
    case ANSWER_AGAIN:
        try_again(p);
        break;
    case ANSWER_EXPIRED:
        ask_for_credentials(p);
        break;
    case ANSWER_DAMAGED:
        pump_free(p);
        if (is_from_file(p))
            sum_start(p, true);
        else
            try_again(p);
        break;
    case ANSWER_FAILED:
        upload_fail(u, &p->err, p->retry_after_ms);
        break;
    }
    return false;
}
