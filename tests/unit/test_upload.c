/* The three stores, played by a server of ours: what arrives, what is tried again, how an upload ends. */
#include "alloc_fault.h"
#include "store_test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <zlib.h>

#define PATIENCE_MS 120000u
#define CANARY_SECRET "CanarySecret/Key+000000000000000000000001"
#define CANARY_SESSION "CanarySession//token=="
#define CANARY_TOKEN "ya29.canary-token"
#define CANARY_SIG "CanarySignature%3D"
#define SMALL (256 * KIB) /* a piece, with the knobs */

struct fixture {
    uv_loop_t loop;
    uv_timer_t tick;
    struct http *http;
    struct uploader *up;
    struct store *store;
    bool is_closed;
    unsigned done;
};

struct call {
    struct fixture *f;
    struct upload *u;
    struct upload_request r;
    char endpoint[64], sas[256];
    unsigned done, expired;
    struct upload_result result;
    bool renews, renews_later, renews_wrong, cancels;
    uint64_t order; /* of the end */
};

static void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct err err;
    const struct http_options options = {.proxy = "none"};
    const struct uploader_limits limits = {.single_bytes = SMALL, .piece_bytes = SMALL, .buffer_bytes = 5 * SMALL};
    signal(SIGPIPE, SIG_IGN);
    upload_knobs = (struct upload_knobs){.pause_ms = 1, .produce_bytes = SMALL, .piece_min = SMALL};
    assert_int_equal(uv_loop_init(&f->loop), 0);
    uv_timer_init(&f->loop, &f->tick);
    f->store = store_start();
    assert_int_equal(http_open(&f->loop, &options, &f->http, &err), ERR_NONE);
    assert_int_equal(uploader_open(&f->loop, f->http, &limits, &f->up, &err), ERR_NONE);
    *state = f;
    return 0;
}

static void on_closed(void *arg)
{
    struct fixture *f = arg;
    f->is_closed = true;
}

static void turn_until_closed(struct fixture *f)
{
    while (!f->is_closed)
        uv_run(&f->loop, UV_RUN_ONCE);
    f->is_closed = false;
}

static void close_uploader(struct fixture *f)
{
    uploader_close(f->up, on_closed, f);
    assert_false(f->is_closed); /* never from inside */
    turn_until_closed(f);
    f->up = NULL;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    if (f->up != NULL)
        close_uploader(f);
    http_close(f->http, on_closed, f);
    turn_until_closed(f);
    uv_close((uv_handle_t *)&f->tick, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    store_stop(f->store);
    memset(&upload_knobs, 0, sizeof upload_knobs);
    free(f);
    return 0;
}

static void reopen(struct fixture *f, const struct uploader_limits *limits)
{
    struct err err;
    close_uploader(f);
    assert_int_equal(uploader_open(&f->loop, f->http, limits, &f->up, &err), ERR_NONE);
}

static void turn_until(struct fixture *f, const unsigned *count, unsigned wanted)
{
    uint64_t until = uv_hrtime() + PATIENCE_MS * 1000000ull;
    uv_timer_start(&f->tick, on_tick, 5, 5);
    while (*count < wanted) {
        uv_run(&f->loop, UV_RUN_ONCE);
        if (uv_hrtime() > until)
            fail_msg("waited too long: %u of %u", *count, wanted);
    }
    uv_timer_stop(&f->tick);
}

/* ---- bytes ---- */

static uint64_t seed;

static uint32_t any(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 16);
}

/* SIZE bytes that nothing can compress. */
static uint8_t *noise(size_t size)
{
    uint8_t *data = mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(data != MAP_FAILED);
    seed = 88172645463325252u + size;
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)any();
    return data;
}

/* A file with PAD bytes before and behind DATA. */
static int file_of(const uint8_t *data, size_t size, size_t pad)
{
    int fd = memfd_create("upload", MFD_CLOEXEC);
    static const char padding[4096];
    assert_true(fd >= 0);
    assert_int_equal(write(fd, padding, pad), pad);
    for (size_t at = 0; at < size;) {
        ssize_t n = write(fd, data + at, size - at);
        assert_true(n > 0);
        at += (size_t)n;
    }
    assert_int_equal(write(fd, padding, pad), pad);
    return fd;
}

static struct bytes inflated(const struct bytes *gz)
{
    struct bytes out = {0};
    static uint8_t buf[65536];
    z_stream z = {.next_in = gz->data, .avail_in = (uInt)gz->size};
    assert_int_equal(inflateInit2(&z, 15 + 16), Z_OK);
    int status;
    do {
        z.next_out = buf;
        z.avail_out = sizeof buf;
        status = inflate(&z, Z_NO_FLUSH);
        assert_true(status == Z_OK || status == Z_STREAM_END);
        bytes_add(&out, buf, sizeof buf - z.avail_out);
    } while (status != Z_STREAM_END);
    assert_int_equal(z.avail_in, 0);
    inflateEnd(&z);
    return out;
}

static void assert_same(const struct bytes *got, const uint8_t *data, size_t size)
{
    assert_int_equal(got->size, size);
    if (size > 0)
        assert_memory_equal(got->data, data, size);
}

/* ---- rows ---- */

struct fake_rows {
    struct rows rows;
    struct shape shape;
    struct column columns[2];
    unsigned batches, at; /* of 100 rows each */
    enum err_code fails_with;
    const char *value[200];
    uint32_t length[200];
    uint64_t numbers[100];
    struct row_batch batch;
    char text[100][32];
};

static enum err_code fake_next(struct rows *rows, const struct row_batch **ret, struct err *err)
{
    struct fake_rows *r = (struct fake_rows *)rows;
    if (r->fails_with != ERR_NONE && r->at == r->batches / 2)
        return err_set(err, r->fails_with, false, "row 812 is bad");
    r->batch.rows = r->at < r->batches ? 100 : 0;
    for (size_t i = 0; i < r->batch.rows; i++) {
        r->length[2 * i] = (uint32_t)snprintf(r->text[i], sizeof r->text[i], "%u \"%zu\"", r->at, i);
        r->numbers[i] = r->at * 100 + i;
    }
    r->at++;
    *ret = &r->batch;
    return ERR_NONE;
}

static void fake_rows_init(struct fake_rows *r, unsigned batches)
{
    static const struct rows_ops ops = {.next = fake_next};
    memset(r, 0, sizeof *r);
    r->rows.ops = &ops;
    r->rows.shape = &r->shape;
    r->shape.columns = r->columns;
    r->shape.column_count = 2;
    r->columns[0].name = "a";
    r->columns[1].name = "b";
    r->batches = batches;
    for (size_t i = 0; i < 100; i++)
        r->value[2 * i] = r->text[i]; /* the second column is NULL */
    r->batch = (struct row_batch){.columns = 2,
                                  .value = r->value,
                                  .length = r->length,
                                  .record = r->numbers,
                                  .line = r->numbers,
                                  .offset = r->numbers};
}

static struct bytes text_of_rows(unsigned batches)
{
    struct bytes b = {0};
    char line[64];
    bytes_add(&b, "a,b\n", 4);
    for (unsigned k = 0; k < batches; k++)
        for (unsigned i = 0; i < 100; i++)
            bytes_add(&b, line, (size_t)snprintf(line, sizeof line, "\"%u \"\"%u\"\"\",\n", k, i));
    return b;
}

/* ---- calls ---- */

static void fill_target(struct call *c, enum store_kind kind, bool is_new)
{
    snprintf(c->endpoint, sizeof c->endpoint, "http://127.0.0.1:%d", c->f->store->port);
    snprintf(c->sas, sizeof c->sas, "sv=2017-11-09&sr=c&se=2026-03-01T21%%3A15%%3A30Z&sp=rwl%s&sig=%s",
             is_new ? "n" : "", CANARY_SIG);
    c->r.target = (struct store_target){
        .kind = kind,
        .endpoint = c->endpoint,
        .bucket = "kbc-files",
        .key = "exp-15/a b/f.csv",
        .region = "eu-central-1",
        .acl = "private",
        .sse = "AES256",
        .access_key = "AKCANARY",
        .secret_key = CANARY_SECRET,
        .session_token = is_new ? "new" CANARY_SESSION : CANARY_SESSION,
        .sas = c->sas,
        .access_token = is_new ? "new" CANARY_TOKEN : CANARY_TOKEN,
        .file_name = "f.csv",
    };
}

static const char *path_of(enum store_kind kind, bool is_many)
{
    return kind == STORE_GCS && is_many ? "exp-15%2Fa%20b%2Ff.csv" : "/kbc-files/exp-15/a%20b/f.csv";
}

static const struct object *find(struct fixture *f, enum store_kind kind)
{
    const struct object *found = NULL;
    for (unsigned i = 0; i < f->store->object_count; i++) {
        const struct object *o = &f->store->objects[i];
        if (!o->is_there || (strcmp(o->path, path_of(kind, true)) != 0 && strcmp(o->path, path_of(kind, false)) != 0))
            continue;
        assert_null(found);
        found = o;
    }
    return found;
}

/* What the store must see from now on for the credentials to be good. */
static const char *token_of(enum store_kind kind, bool is_new)
{
    switch (kind) {
    case STORE_S3:
        return is_new ? "new" CANARY_SESSION : CANARY_SESSION;
    case STORE_AZURE:
        return is_new ? "sp=rwln&" : "sp=rwl&";
    case STORE_GCS:
        return is_new ? "new" CANARY_TOKEN : CANARY_TOKEN;
    }
    return NULL;
}

static void on_done(void *arg, const struct upload_result *result)
{
    struct call *c = arg;
    assert_int_equal(c->done, 0);
    c->done++;
    c->result = *result;
    c->order = ++c->f->done;
}

static bool on_expired(void *arg)
{
    struct call *c = arg;
    struct err err;
    c->expired++;
    fill_target(c, c->r.target.kind, !c->renews_wrong);
    if (c->renews) {
        struct call other = *c;
        fill_target(&other, c->r.target.kind, true);
        other.r.target.key = "other";
        assert_int_equal(upload_renew(c->u, &other.r.target, &err), ERR_CONFIG);
        assert_int_equal(upload_renew(c->u, &c->r.target, &err), ERR_NONE);
    }
    if (c->cancels)
        upload_cancel(c->u);
    return c->renews || c->renews_later || c->cancels;
}

static void call_init(struct fixture *f, struct call *c, enum store_kind kind)
{
    memset(c, 0, sizeof *c);
    c->f = f;
    fill_target(c, kind, false);
    c->r.done = on_done;
    c->r.arg = c;
}

static void start(struct call *c)
{
    struct err err;
    if (upload_start(c->f->up, &c->r, &c->u, &err) != ERR_NONE)
        fail_msg("%s", err.text);
    assert_int_equal(c->done, 0);
}

static void run(struct call *c)
{
    start(c);
    turn_until(c->f, &c->done, 1);
}

static void run_well(struct call *c)
{
    run(c);
    if (c->result.err.code != ERR_NONE)
        fail_msg("%s", c->result.err.text);
}

static void body_file(struct call *c, int fd, uint64_t offset, uint64_t size)
{
    c->r.body = (struct upload_body){.from = UPLOAD_FILE, .fd = fd, .offset = offset, .size = size};
}

static const enum store_kind kinds[] = {STORE_S3, STORE_AZURE, STORE_GCS};
#define EACH_KIND(f, kind)                                                                                             \
    for (enum store_kind kind = STORE_S3; kind <= STORE_GCS && (store_reset((f)->store), true); kind++)

/* ---- what arrives ---- */

static void every_size_from_file_and_memory_arrives_as_it_is(void **state)
{
    struct fixture *f = *state;
    const uint64_t sizes[] = {0, 1, 1000, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL - 1, 3 * SMALL, 9 * SMALL + 77};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t size = (size_t)sizes[i];
        uint8_t *data = noise(size);
        int fd = file_of(data, size, 100);
        EACH_KIND(f, kind)
        {
            for (int from_memory = 0; from_memory < 2; from_memory++) {
                struct call c;
                call_init(f, &c, kind);
                store_reset(f->store);
                f->store->token = token_of(kind, false);
                if (kind == STORE_S3)
                    f->store->secret_key = CANARY_SECRET;
                body_file(&c, fd, 100, size);
                if (from_memory)
                    c.r.body = (struct upload_body){.from = UPLOAD_MEMORY, .data = data, .size = size};
                run_well(&c);
                assert_non_null(find(f, kind));
                assert_same(&find(f, kind)->whole, data, size);
                assert_int_equal(c.result.sent_bytes, size);
                assert_int_equal(c.result.source_bytes, size);
                assert_int_equal(c.result.parts, size <= SMALL ? 1 : (size + SMALL - 1) / SMALL);
                assert_int_equal(f->store->asked[size <= SMALL ? ASKED_SINGLE : ASKED_PIECE], c.result.parts);
            }
        }
        close(fd);
        munmap(data, size + 1);
    }
}

static void the_object_gets_what_was_handed_out(void **state)
{
    struct fixture *f = *state;
    uint8_t *data = noise(2 * SMALL);
    int fd = file_of(data, 2 * SMALL, 0);
    for (uint64_t size = SMALL; size <= 2 * SMALL; size += SMALL) {
        struct call c;
        char value[512];
        struct question q;
        store_reset(f->store);
        call_init(f, &c, STORE_S3);
        body_file(&c, fd, 0, size);
        c.r.target.file_name = "ž\"x.csv";
        run_well(&c);
        snprintf(q.head, sizeof q.head, "%s", find(f, STORE_S3)->headers);
        assert_string_equal(find_header(&q, "x-amz-acl", value, sizeof value), "private");
        assert_string_equal(find_header(&q, "x-amz-server-side-encryption", value, sizeof value), "AES256");
        assert_string_equal(find_header(&q, "Content-Disposition", value, sizeof value),
                            "attachment; filename=\"___x.csv\"; filename*=UTF-8''%C5%BE%22x.csv");
        store_reset(f->store);
        call_init(f, &c, STORE_AZURE);
        body_file(&c, fd, 0, size);
        run_well(&c);
        snprintf(q.head, sizeof q.head, "%s", find(f, STORE_AZURE)->headers);
        assert_string_equal(find_header(&q, "x-ms-blob-content-disposition", value, sizeof value),
                            "attachment; filename=\"f.csv\"");
        assert_non_null(strstr(q.head, "sig=" CANARY_SIG " HTTP/1.1")); /* as it was given */
    }
    close(fd);
    munmap(data, 2 * SMALL + 1);
}

static void five_mebibytes_are_the_least_part_of_s3(void **state)
{
    struct fixture *f = *state;
    const struct uploader_limits limits = {.single_bytes = 5 * MIB, .piece_bytes = 1};
    memset(&upload_knobs, 0, sizeof upload_knobs);
    reopen(f, &limits);
    uint8_t *data = noise(5 * MIB + 1);
    int fd = file_of(data, 5 * MIB + 1, 0);
    for (uint64_t size = 5 * MIB - 1; size <= 5 * MIB + 1; size++) {
        struct call c;
        store_reset(f->store);
        call_init(f, &c, STORE_S3);
        body_file(&c, fd, 0, size);
        run_well(&c);
        assert_same(&find(f, STORE_S3)->whole, data, (size_t)size);
        assert_int_equal(c.result.parts, size > 5 * MIB ? 2 : 1);
    }
    close(fd);
    munmap(data, 5 * MIB + 2);
}

static void gzip_arrives_and_inflates_to_the_file(void **state)
{
    struct fixture *f = *state;
    const uint64_t sizes[] = {0, 1, 100000, SMALL, SMALL + 1, 5 * SMALL};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t size = (size_t)sizes[i];
        uint8_t *data = noise(size);
        int fd = file_of(data, size, 50);
        EACH_KIND(f, kind)
        {
            for (int from_memory = 0; from_memory < 2; from_memory++) {
                struct call c;
                call_init(f, &c, kind);
                store_reset(f->store);
                body_file(&c, fd, 50, size);
                if (from_memory)
                    c.r.body = (struct upload_body){.from = UPLOAD_MEMORY, .data = data, .size = size};
                c.r.body.gzip = true;
                run_well(&c);
                struct bytes got = inflated(&find(f, kind)->whole);
                assert_same(&got, data, size);
                assert_int_equal(c.result.source_bytes, size);
                assert_int_equal(c.result.sent_bytes, find(f, kind)->whole.size);
                assert_int_equal(c.result.parts > 1, c.result.sent_bytes > SMALL);
                bytes_free(&got);
            }
        }
        close(fd);
        munmap(data, size + 1);
    }
}

static void rows_arrive_as_text(void **state)
{
    struct fixture *f = *state;
    const unsigned batches[] = {0, 1, 300, 500};
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        struct bytes text = text_of_rows(batches[i]);
        EACH_KIND(f, kind)
        {
            for (int gzip = 0; gzip < 2; gzip++) {
                struct call c;
                struct fake_rows rows;
                fake_rows_init(&rows, batches[i]);
                store_reset(f->store);
                call_init(f, &c, kind);
                c.r.body = (struct upload_body){
                    .from = UPLOAD_ROWS, .rows = &rows.rows, .csv = {.has_header = true}, .gzip = gzip};
                run_well(&c);
                struct bytes got = {0};
                if (gzip)
                    got = inflated(&find(f, kind)->whole);
                assert_same(gzip ? &got : &find(f, kind)->whole, text.data, text.size);
                assert_int_equal(c.result.source_bytes, text.size);
                bytes_free(&got);
            }
        }
        bytes_free(&text);
    }
}

static void what_rows_say_is_what_the_upload_says(void **state)
{
    struct fixture *f = *state;
    for (int gzip = 0; gzip < 2; gzip++) {
        struct call c;
        struct fake_rows rows;
        fake_rows_init(&rows, 500);
        rows.fails_with = ERR_INCOMPLETE;
        call_init(f, &c, STORE_S3);
        c.r.body = (struct upload_body){.from = UPLOAD_ROWS, .rows = &rows.rows, .gzip = gzip};
        run(&c);
        assert_int_equal(c.result.err.code, ERR_INCOMPLETE);
        assert_string_equal(c.result.err.text, "row 812 is bad");
        assert_null(find(f, STORE_S3));
    }
}

/* ---- what is tried again ---- */

/* Two pieces and a bit of DATA with one fault; gzip instead of plain if it has an odd number. */
static void run_with(struct fixture *f, struct call *c, enum store_kind kind, const struct fault *fault, uint64_t size,
                     bool gzip)
{
    uint8_t *data = noise((size_t)size);
    int fd = file_of(data, (size_t)size, 0);
    store_reset(f->store);
    call_init(f, c, kind);
    f->store->faults[0] = *fault;
    body_file(c, fd, 0, size);
    c->r.body.gzip = gzip;
    run(c);
    if (c->result.err.code == ERR_NONE) {
        struct bytes got = {0};
        if (gzip)
            got = inflated(&find(f, kind)->whole);
        assert_same(gzip ? &got : &find(f, kind)->whole, data, (size_t)size);
        bytes_free(&got);
    }
    close(fd);
    munmap(data, (size_t)size + 1);
}

static void each_request_is_tried_again_where_that_helps(void **state)
{
    struct fixture *f = *state;
    const struct fault faults[] = {
        {FAULT_ANSWER, .status = "503 Slow", .body = "<Error><Code>SlowDown</Code></Error>"},
        {FAULT_ANSWER, .status = "500 No"},
        {FAULT_ANSWER, .status = "429 Many"},
        {FAULT_ANSWER, .status = "408 Late"},
        {FAULT_LATE, .status = "500 No"},
        {.what = FAULT_CUT},
        {.what = FAULT_LOST},
        {.what = FAULT_DAMAGE},
    };
    const enum asked all[] = {ASKED_SINGLE, ASKED_BEGIN, ASKED_PIECE, ASKED_COMMIT, ASKED_QUERY};
    EACH_KIND(f, kind)
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
            for (unsigned from = 1; from <= 3; from += 2)
                for (int gzip = 0; gzip < 2; gzip++) {
                    struct fault fault = faults[i];
                    struct call c;
                    if (fault.what == FAULT_DAMAGE && (all[k] == ASKED_COMMIT || (kind == STORE_GCS && k == 2)))
                        continue; /* see below */
                    fault.asked = all[k];
                    fault.from = from;
                    fault.times = 2;
                    run_with(f, &c, kind, &fault, all[k] == ASKED_SINGLE ? SMALL / 2 : 3 * SMALL + 5, gzip);
                    if (c.result.err.code != ERR_NONE)
                        fail_msg("store %d fault %zu asked %zu from %u gzip %d: %s", kind, i, k, from, gzip,
                                 c.result.err.text);
                }
}

static void after_four_failures_the_upload_fails_and_can_be_begun_again(void **state)
{
    struct fixture *f = *state;
    const struct fault fault = {
        FAULT_ANSWER,         ASKED_PIECE, 2,   1000, "503 Slow", "<Error><Code>SlowDown</Code></Error>",
        "Retry-After: 1\r\n", NULL,        NULL};
    EACH_KIND(f, kind)
    {
        struct call c;
        upload_knobs.pause_ms = 1;
        run_with(f, &c, kind, &fault, 2 * SMALL, false);
        assert_int_equal(c.result.err.code, ERR_REMOTE);
        assert_true(c.result.err.retryable);
        assert_non_null(strstr(c.result.err.text, "503"));
        assert_int_equal(c.result.retry_after_ms, 1000);
        assert_false(c.result.is_expired);
    }
}

static void a_long_pause_is_left_to_the_caller(void **state)
{
    struct fixture *f = *state;
    const struct fault fault = {FAULT_ANSWER, ASKED_SINGLE, 1, 1000, "503 Slow", "", "Retry-After: 3600\r\n",
                                NULL,         NULL};
    struct call c;
    run_with(f, &c, STORE_S3, &fault, 10, false);
    assert_int_equal(c.result.err.code, ERR_REMOTE);
    assert_int_equal(c.result.retry_after_ms, 3600000);
    assert_int_equal(f->store->asked[ASKED_SINGLE], 1);
}

static void what_cannot_help_is_not_tried_again(void **state)
{
    struct fixture *f = *state;
    const struct fault denied = {FAULT_ANSWER,
                                 ASKED_PIECE,
                                 1,
                                 1000,
                                 "403 Forbidden",
                                 "<Error><Code>AccessDenied</Code><Message>Access &lt;Denied&gt;</Message></Error>",
                                 NULL,
                                 NULL,
                                 NULL};
    struct call c;
    run_with(f, &c, STORE_S3, &denied, 2 * SMALL, false);
    assert_string_equal(c.result.err.text, "S3 answered 403 AccessDenied: Access <Denied>");
    assert_int_equal(c.result.err.code, ERR_REMOTE);
    assert_true(c.result.err.retryable);
    assert_true(f->store->asked[ASKED_PIECE] <= 2);
    const struct fault skewed = {FAULT_ANSWER,
                                 ASKED_SINGLE,
                                 1,
                                 1000,
                                 "403 Forbidden",
                                 "<Error><Code>RequestTimeTooSkewed</Code><Message>x</Message></Error>",
                                 NULL,
                                 NULL,
                                 NULL};
    run_with(f, &c, STORE_S3, &skewed, 10, false);
    assert_non_null(strstr(c.result.err.text, "the clock of this machine"));
}

static void complete_may_say_200_and_fail(void **state)
{
    struct fixture *f = *state;
    struct fault fault = {FAULT_ANSWER,
                          ASKED_COMMIT,
                          1,
                          2,
                          "200 OK",
                          "<?xml?>\n<Error><Code>InternalError</Code><Message>We did</Message></Error>",
                          NULL,
                          NULL,
                          NULL};
    struct call c;
    run_with(f, &c, STORE_S3, &fault, 2 * SMALL, false);
    assert_int_equal(c.result.err.code, ERR_NONE);
    assert_int_equal(f->store->asked[ASKED_COMMIT], 3);
    fault.times = 1000;
    run_with(f, &c, STORE_S3, &fault, 2 * SMALL, false);
    assert_int_equal(c.result.err.code, ERR_REMOTE);
    assert_non_null(strstr(c.result.err.text, "InternalError"));
}

static void no_such_upload_is_success_only_after_a_lost_complete(void **state)
{
    struct fixture *f = *state;
    struct fault fault = {FAULT_LOST, ASKED_COMMIT, 1, 1, NULL, NULL, NULL, NULL, NULL};
    struct call c;
    run_with(f, &c, STORE_S3, &fault, 2 * SMALL, false); /* the store has forgotten it by then */
    assert_int_equal(c.result.err.code, ERR_NONE);
    assert_int_equal(f->store->asked[ASKED_COMMIT], 2);
    fault.what = FAULT_ANSWER;
    fault.status = "404 Not Found";
    fault.body = "<Error><Code>NoSuchUpload</Code></Error>";
    run_with(f, &c, STORE_S3, &fault, 2 * SMALL, false);
    assert_int_equal(c.result.err.code, ERR_REMOTE);
    assert_null(find(f, STORE_S3));
}

static void google_keeps_what_it_has(void **state)
{
    struct fixture *f = *state;
    const struct uploader_limits limits = {.single_bytes = SMALL, .piece_bytes = 4 * SMALL};
    struct call c;
    reopen(f, &limits);
    /* A quarter of a chunk is kept: the rest is sent, nothing is asked. */
    struct fault fault = {FAULT_HALF, ASKED_PIECE, 1, 2, NULL, NULL, NULL, NULL, NULL};
    run_with(f, &c, STORE_GCS, &fault, 6 * SMALL, false);
    assert_int_equal(c.result.err.code, ERR_NONE);
    assert_int_equal(f->store->asked[ASKED_PIECE], 4);
    assert_int_equal(f->store->asked[ASKED_QUERY], 0);
    /* The end is lost: the question finds it done. */
    fault = (struct fault){FAULT_LOST, ASKED_PIECE, 2, 1, NULL, NULL, NULL, NULL, NULL};
    run_with(f, &c, STORE_GCS, &fault, 6 * SMALL, false);
    assert_int_equal(c.result.err.code, ERR_NONE);
    assert_int_equal(f->store->asked[ASKED_PIECE], 2);
    assert_int_equal(f->store->asked[ASKED_QUERY], 1);
    /* An object with other bytes is no success. */
    fault = (struct fault){FAULT_LATE, ASKED_PIECE, 2,   1, "200 OK", "{\"size\":\"1572864\",\"crc32c\":\"AAAAAA==\"}",
                           NULL,       NULL,        NULL};
    run_with(f, &c, STORE_GCS, &fault, 6 * SMALL, false);
    assert_int_equal(c.result.err.code, ERR_REMOTE);
    assert_non_null(strstr(c.result.err.text, "another checksum"));
    fault.body = "{\"size\":\"7\",\"crc32c\":null}";
    run_with(f, &c, STORE_GCS, &fault, 6 * SMALL, false);
    assert_non_null(strstr(c.result.err.text, "another size"));
    /* A store that never takes a byte ends. */
    fault = (struct fault){FAULT_ANSWER, ASKED_PIECE, 1, 1000, "308 Resume Incomplete", NULL, NULL, NULL, NULL};
    run_with(f, &c, STORE_GCS, &fault, 6 * SMALL, false);
    assert_int_equal(c.result.err.code, ERR_REMOTE);
}

static void a_store_that_gives_nonsense_ends(void **state)
{
    struct fixture *f = *state;
    const struct fault faults[] = {
        {FAULT_ANSWER, ASKED_BEGIN, .status = "200 OK", .body = "<a"},
        {FAULT_ANSWER, ASKED_PIECE, .status = "200 OK"},
        {FAULT_ANSWER, ASKED_COMMIT, .status = "200 OK"},
        {FAULT_ANSWER, ASKED_PIECE, .status = "308 R", .headers = "Range: bytes=0-99999999999999999999999\r\n"},
        {FAULT_ANSWER, ASKED_PIECE, .status = "308 R", .headers = "Range: bytes=0-99999999\r\n"},
        {FAULT_ANSWER, ASKED_PIECE, .status = "308 R", .headers = "Range: x\r\n"},
        {FAULT_ANSWER, ASKED_PIECE, .status = "404 Gone", .body = "{\"error\":{\"message\":7}}"},
        {FAULT_ANSWER, ASKED_PIECE, .status = "400 No", .body = "{\"error\":\"x\"}"},
        {FAULT_ANSWER, ASKED_BEGIN, .status = "301 Moved", .headers = "Location: http://127.0.0.1:1/\r\n"},
    };
    EACH_KIND(f, kind)
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        struct fault fault = faults[i];
        struct call c;
        fault.from = 1;
        fault.times = 1000;
        if (kind == STORE_AZURE && (fault.asked == ASKED_BEGIN))
            continue;
        if (kind == STORE_GCS && fault.asked == ASKED_COMMIT)
            continue;
        run_with(f, &c, kind, &fault, 2 * SMALL, false);
        if (c.result.err.code != ERR_REMOTE)
            fail_msg("store %d fault %zu: %d", kind, i, c.result.err.code);
    }
}

/* ---- credentials ---- */

/* At REQUEST number N of that kind the credentials end. */
struct ending {
    struct store *store;
    const char *token;
};

static void end_credentials(void *arg)
{
    struct ending *e = arg;
    pthread_mutex_lock(&e->store->lock);
    e->store->token = e->token;
    pthread_mutex_unlock(&e->store->lock);
}

static void run_expiry(struct fixture *f, struct call *c, enum store_kind kind, enum asked asked, unsigned nth,
                       bool gzip)
{
    uint64_t size = asked == ASKED_SINGLE ? SMALL / 2 : 5 * SMALL;
    struct ending ending = {f->store, token_of(kind, true)};
    uint8_t *data = noise((size_t)size);
    int fd = file_of(data, (size_t)size, 0);
    store_reset(f->store);
    f->store->token = token_of(kind, false);
    f->store->faults[0] = (struct fault){FAULT_CALL, asked, nth, 1, NULL, NULL, NULL, end_credentials, &ending};
    body_file(c, fd, 0, size);
    c->r.body.gzip = gzip;
    start(c);
    if (c->renews_later) {
        struct err err;
        turn_until(f, &c->expired, 1);
        for (int i = 0; i < 20; i++)
            uv_run(&f->loop, UV_RUN_NOWAIT);
        assert_int_equal(c->done, 0); /* it rests */
        assert_int_equal(upload_renew(c->u, &c->r.target, &err), ERR_NONE);
    }
    turn_until(f, &c->done, 1);
    if (c->result.err.code == ERR_NONE) {
        struct bytes got = {0};
        if (gzip)
            got = inflated(&find(f, kind)->whole);
        assert_same(gzip ? &got : &find(f, kind)->whole, data, (size_t)size);
        bytes_free(&got);
    }
    close(fd);
    munmap(data, (size_t)size + 1);
}

static bool can_ask(enum store_kind kind, enum asked asked)
{
    return !(kind == STORE_AZURE && asked == ASKED_BEGIN) && !(kind == STORE_GCS && asked == ASKED_COMMIT);
}

static void renewed_credentials_go_on_where_it_was(void **state)
{
    struct fixture *f = *state;
    EACH_KIND(f, kind)
    for (enum asked asked = ASKED_SINGLE; asked <= ASKED_COMMIT; asked++)
        for (int way = 0; way < 4; way++) {
            struct call c;
            unsigned nth = asked == ASKED_PIECE ? 3 : 1;
            if (!can_ask(kind, asked))
                continue;
            call_init(f, &c, kind);
            c.r.expired = on_expired;
            c.renews = way % 2 == 0;
            c.renews_later = !c.renews;
            run_expiry(f, &c, kind, asked, nth, way >= 2);
            if (c.result.err.code != ERR_NONE)
                fail_msg("store %d asked %d way %d: %s", kind, asked, way, c.result.err.text);
            assert_int_equal(c.expired, 1);
            assert_int_equal(f->store->uploads <= 1, true); /* no second session */
        }
}

static void without_new_credentials_it_ends_as_expired(void **state)
{
    struct fixture *f = *state;
    EACH_KIND(f, kind)
    for (enum asked asked = ASKED_SINGLE; asked <= ASKED_COMMIT; asked++)
        for (int way = 0; way < 4; way++) {
            struct call c;
            if (!can_ask(kind, asked))
                continue;
            call_init(f, &c, kind);
            c.r.expired = way > 0 ? on_expired : NULL; /* 1: it has none */
            c.renews = c.renews_wrong = way == 2;
            c.cancels = way == 3;
            run_expiry(f, &c, kind, asked, 1, false);
            assert_int_equal(c.expired, way > 0);
            assert_int_equal(c.result.err.code, way == 3 ? ERR_STOPPED : ERR_REMOTE);
            assert_int_equal(c.result.is_expired, way < 3);
            if (way < 3)
                assert_true(c.result.err.retryable);
            assert_null(find(f, kind));
        }
}

static void an_azure_refusal_before_the_end_of_the_sas_is_no_expiry(void **state)
{
    struct fixture *f = *state;
    struct call c;
    call_init(f, &c, STORE_AZURE);
    snprintf(c.sas, sizeof c.sas, "se=2026-11-25T20:00:01Z&sp=rwl&sig=x"); /* the store says 20:00:00 */
    run_expiry(f, &c, STORE_AZURE, ASKED_PIECE, 1, false);
    assert_int_equal(c.result.err.code, ERR_REMOTE);
    assert_false(c.result.is_expired);
    call_init(f, &c, STORE_AZURE);
    snprintf(c.sas, sizeof c.sas, "?sp=rwl&se=2026-11-25&sig=x");
    run_expiry(f, &c, STORE_AZURE, ASKED_PIECE, 1, false);
    assert_true(c.result.is_expired);
}

static void no_text_holds_a_secret(void **state)
{
    struct fixture *f = *state;
    EACH_KIND(f, kind)
    {
        static const char *const secrets[] = {CANARY_SECRET, CANARY_SESSION, CANARY_TOKEN, CANARY_SIG};
        struct call c;
        store_reset(f->store);
        call_init(f, &c, kind);
        f->store->token = "another";
        f->store->echoes = true;
        c.r.body = (struct upload_body){.from = UPLOAD_MEMORY, .data = "x", .size = 1};
        run(&c);
        assert_int_equal(c.result.err.code, ERR_REMOTE);
        for (size_t i = 0; i < sizeof secrets / sizeof secrets[0]; i++)
            assert_null(strstr(c.result.err.text, secrets[i]));
        assert_non_null(strstr(c.result.err.text, "***"));
    }
}

/* ---- a file that changes ---- */

struct change {
    int fd;
    uint64_t at;
    bool is_cut;
};

static void change_file(void *arg)
{
    struct change *c = arg;
    if (c->is_cut) {
        if (ftruncate(c->fd, (off_t)c->at) != 0)
            abort();
    } else if (pwrite(c->fd, "!changed!", 9, (off_t)c->at) != 9) {
        abort();
    }
}

static void a_file_that_changes_between_sum_and_send_is_noticed(void **state)
{
    struct fixture *f = *state;
    const struct uploader_limits limits = {.single_bytes = 4 * MIB, .piece_bytes = 2 * MIB, .parallel = 1};
    reopen(f, &limits);
    EACH_KIND(f, kind)
    for (int is_cut = 0; is_cut < 2; is_cut++)
        for (int is_many = 0; is_many < 2; is_many++) {
            uint64_t size = is_many ? 5 * MIB : 3 * MIB;
            uint8_t *data = noise((size_t)size);
            struct change change = {file_of(data, (size_t)size, 0), (is_many ? 2 : 3) * MIB - 100, is_cut};
            struct call c;
            store_reset(f->store);
            call_init(f, &c, kind);
            /* The body is announced first, and what is read ahead of it is half a MiB: the end is not read yet. */
            f->store->faults[0] = (struct fault){
                FAULT_CALL, is_many ? ASKED_PIECE : ASKED_SINGLE, 1, 1, NULL, NULL, NULL, change_file, &change};
            body_file(&c, change.fd, 0, size);
            run(&c);
            if (kind == STORE_GCS && is_many && !is_cut) { /* found out at the end, from the whole */
                assert_int_equal(c.result.err.code, ERR_REMOTE);
            } else {
                assert_int_equal(c.result.err.code, ERR_CHANGED);
            }
            assert_true(c.result.err.retryable);
            close(change.fd);
            munmap(data, (size_t)size + 1);
        }
}

static void a_file_that_is_shorter_than_said_has_changed(void **state)
{
    struct fixture *f = *state;
    for (int gzip = 0; gzip < 2; gzip++) {
        int fd = file_of((const uint8_t *)"abc", 3, 0);
        struct call c;
        call_init(f, &c, STORE_S3);
        body_file(&c, fd, 0, 1000);
        c.r.body.gzip = gzip;
        run(&c);
        assert_int_equal(c.result.err.code, ERR_CHANGED);
        assert_non_null(strstr(c.result.err.text, "ends at byte 3"));
        close(fd);
    }
}

/* ---- an end in the middle ---- */

enum ending_kind { END_CANCEL, END_CLOSE, END_STOP_FLAG, END_KINDS };

static void run_to_an_end(struct fixture *f, enum store_kind kind, int body, enum ending_kind ending, unsigned turns,
                          bool *ret_was_early)
{
    static const struct uploader_limits limits = {
        .single_bytes = SMALL, .piece_bytes = SMALL, .buffer_bytes = 2 * SMALL};
    _Atomic bool stop = false;
    struct fake_rows rows;
    size_t size = 3 * SMALL;
    uint8_t *data = noise(size);
    int fd = file_of(data, size, 0);
    struct call c;
    if (f->up == NULL) {
        struct err err;
        assert_int_equal(uploader_open(&f->loop, f->http, &limits, &f->up, &err), ERR_NONE);
    }
    store_reset(f->store);
    call_init(f, &c, kind);
    body_file(&c, fd, 0, size);
    c.r.body.gzip = body == 1;
    if (body == 2) {
        fake_rows_init(&rows, 400);
        c.r.body = (struct upload_body){.from = UPLOAD_ROWS, .rows = &rows.rows};
    }
    c.r.stop = &stop;
    start(&c);
    uv_timer_start(&f->tick, on_tick, 1, 1);
    for (unsigned i = 0; i < turns && c.done == 0; i++)
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_timer_stop(&f->tick);
    *ret_was_early = c.done == 0;
    if (c.done == 0) {
        if (ending == END_CANCEL) {
            upload_cancel(c.u);
            assert_int_equal(c.done, 0);
        } else if (ending == END_CLOSE) {
            close_uploader(f);
            assert_int_equal(c.done, 1);
        } else {
            stop = true;
        }
        turn_until(f, &c.done, 1);
        assert_true(c.result.err.code == ERR_STOPPED || c.result.err.code == ERR_NONE);
        assert_true(ending == END_STOP_FLAG || c.result.err.code == ERR_STOPPED);
    }
    close(fd);
    munmap(data, size + 1);
}

static void it_can_end_at_every_turn_of_the_loop(void **state)
{
    struct fixture *f = *state;
    EACH_KIND(f, kind)
    for (int body = 0; body < 3; body++)
        for (int ending = 0; ending < END_KINDS; ending++) {
            bool was_early = true;
            for (unsigned turns = 0; was_early && turns < 400; turns += turns < 40 ? 1 : 7)
                run_to_an_end(f, kind, body, (enum ending_kind)ending, turns, &was_early);
        }
}

static void after_close_nothing_begins(void **state)
{
    struct fixture *f = *state;
    struct call c;
    struct err err;
    call_init(f, &c, STORE_S3);
    c.r.body = (struct upload_body){.from = UPLOAD_MEMORY, .data = "x", .size = 1};
    uploader_close(f->up, on_closed, f);
    assert_int_equal(upload_start(f->up, &c.r, NULL, &err), ERR_STOPPED);
    turn_until_closed(f);
    f->up = NULL;
}

static void an_idle_uploader_keeps_no_loop_awake(void **state)
{
    struct fixture *f = *state;
    struct call c;
    call_init(f, &c, STORE_S3);
    c.r.body = (struct upload_body){.from = UPLOAD_MEMORY, .data = "x", .size = 1};
    run_well(&c);
    for (int i = 0; i < 10; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_false(uv_is_active((uv_handle_t *)&f->up->timer));
}

/* ---- sharing ---- */

static void buffers_and_requests_stay_within_their_limits(void **state)
{
    struct fixture *f = *state;
    const struct uploader_limits limits = {.single_bytes = SMALL, .buffer_bytes = 2 * SMALL + SMALL / 2, .parallel = 3};
    struct call calls[16];
    char keys[16][32];
    size_t size = 4 * SMALL;
    uint8_t *data = noise(size);
    int fd = file_of(data, size, 0);
    reopen(f, &limits);
    for (size_t i = 0; i < 16; i++) {
        call_init(f, &calls[i], kinds[i % 3]);
        snprintf(keys[i], sizeof keys[i], "k%zu", i);
        calls[i].r.target.key = keys[i];
        body_file(&calls[i], fd, 0, size);
        calls[i].r.body.gzip = true;
        start(&calls[i]);
    }
    uint64_t most = 0;
    uv_timer_start(&f->tick, on_tick, 5, 5);
    while (f->done < 16) {
        uv_run(&f->loop, UV_RUN_ONCE);
        if (f->up->buffer_used > most)
            most = f->up->buffer_used;
        assert_true(f->up->running <= 3);
    }
    uv_timer_stop(&f->tick);
    assert_true(most <= 2 * SMALL + SMALL / 2);
    assert_true(most > SMALL); /* and not one by one */
    assert_true(f->store->most <= 3);
    assert_int_equal(f->up->buffer_used, 0);
    assert_int_equal(f->up->running, 0);
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(calls[i].result.err.code, ERR_NONE);
    for (unsigned i = 0, found = 0; i < f->store->object_count; i++) {
        if (!f->store->objects[i].is_there)
            continue;
        struct bytes got = inflated(&f->store->objects[i].whole);
        assert_same(&got, data, size);
        bytes_free(&got);
        found++;
        assert_true(i + 1 < f->store->object_count || found == 16);
    }
    close(fd);
    munmap(data, size + 1);
}

static void a_buffer_larger_than_the_budget_is_granted(void **state)
{
    struct fixture *f = *state;
    const struct uploader_limits limits = {.buffer_bytes = 1};
    struct call calls[4];
    char keys[4][32];
    uint8_t *data = noise(3 * SMALL);
    int fd = file_of(data, 3 * SMALL, 0);
    reopen(f, &limits);
    for (size_t i = 0; i < 4; i++) {
        call_init(f, &calls[i], STORE_S3);
        put_text(keys[i], sizeof keys[i], "k%zu", i);
        calls[i].r.target.key = keys[i];
        body_file(&calls[i], fd, 0, 3 * SMALL);
        calls[i].r.body.gzip = true;
        start(&calls[i]);
    }
    turn_until(f, &f->done, 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(calls[i].result.err.code, ERR_NONE);
    close(fd);
    munmap(data, 3 * SMALL + 1);
}

static void small_files_do_not_wait_for_the_end_of_a_large_one(void **state)
{
    struct fixture *f = *state;
    struct call large, small[8];
    uint8_t *data = noise(60 * SMALL);
    int fd = file_of(data, 60 * SMALL, 0);
    char keys[8][32];
    call_init(f, &large, STORE_S3);
    body_file(&large, fd, 0, 60 * SMALL);
    start(&large);
    for (size_t i = 0; i < 8; i++) {
        call_init(f, &small[i], STORE_S3);
        snprintf(keys[i], sizeof keys[i], "small%zu", i);
        small[i].r.target.key = keys[i];
        body_file(&small[i], fd, 0, 10);
        start(&small[i]);
    }
    uv_timer_start(&f->tick, on_tick, 5, 5);
    while (f->done < 9) {
        uv_run(&f->loop, UV_RUN_ONCE);
        assert_true(f->up->running <= 4);
    }
    uv_timer_stop(&f->tick);
    assert_int_equal(large.result.err.code, ERR_NONE);
    assert_int_equal(large.order, 9);
    assert_true(f->store->most <= 4);
    assert_same(&find(f, STORE_S3)->whole, data, 60 * SMALL);
    close(fd);
    munmap(data, 60 * SMALL + 1);
}

/* ---- memory ---- */

static void every_failed_allocation_is_a_clean_failure(void **state)
{
    struct fixture *f = *state;
    uint8_t *data = noise(3 * SMALL);
    int fd = file_of(data, 3 * SMALL, 0);
    EACH_KIND(f, kind)
    for (int body = 0; body < 4; body++) {
        ALLOC_FAULT_SWEEP
        {
            struct call c;
            struct err err;
            struct fake_rows rows;
            fake_rows_init(&rows, 300);
            store_reset(f->store);
            f->store->checks_nothing = kind == STORE_AZURE; /* it would compute with our functions */
            call_init(f, &c, kind);
            body_file(&c, fd, 0, body == 3 ? 1000 : 3 * SMALL);
            c.r.body.gzip = body == 1;
            if (body == 2)
                c.r.body = (struct upload_body){.from = UPLOAD_ROWS, .rows = &rows.rows};
            if (upload_start(f->up, &c.r, &c.u, &err) != ERR_NONE) {
                assert_int_equal(err.code, ERR_SYSTEM);
                continue;
            }
            turn_until(f, &c.done, 1);
            if (c.result.err.code != ERR_NONE) {
                assert_true(alloc_fault_hit());
                assert_true(c.result.err.code == ERR_SYSTEM || c.result.err.code == ERR_REMOTE);
                assert_true(c.result.err.retryable);
            } else {
                assert_non_null(find(f, kind));
            }
        }
    }
    close(fd);
    munmap(data, 3 * SMALL + 1);
}

/* ---- pure ---- */

static void sizes_of_pieces_fit_every_store(void **state)
{
    (void)state;
    memset(&upload_knobs, 0, sizeof upload_knobs);
    const struct store_ops *const all[] = {&store_s3, &store_azure, &store_gcs};
    const uint64_t sizes[] = {0, 1, 32 * MIB, 500 * MIB, 10 * GIB, 160 * GIB, 161 * GIB, 1000 * GIB, 4000 * GIB};
    for (size_t s = 0; s < 3; s++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            for (uint64_t wanted = 1; wanted < 10 * GIB; wanted *= 3) {
                const struct store_ops *ops = all[s];
                uint64_t piece = upload_plain_bytes(ops, wanted, sizes[i]);
                assert_true(piece >= ops->piece_min && piece <= ops->piece_max);
                assert_int_equal(piece % (256 * KIB), 0);
                assert_true(piece * ops->max_pieces >= sizes[i]);
                uint64_t total = 0; /* the pieces that are produced hold what is expected, and a good deal more */
                for (unsigned number = 0; number < ops->max_pieces && s < 2; number++) {
                    uint64_t size = upload_produce_bytes(ops, sizes[i], number);
                    assert_true(size >= ops->piece_min && size <= ops->piece_max && size % (256 * KIB) == 0);
                    total += size;
                }
                assert_true(s == 2 || total >= sizes[i]);
                assert_true(s == 2 || total / 6 >= sizes[i] ||
                            upload_produce_bytes(ops, sizes[i], ops->max_pieces - 1) == ops->piece_max);
            }
    assert_int_equal(upload_plain_bytes(&store_s3, 16 * MIB, 500 * MIB), 16 * MIB);
    assert_int_equal(upload_plain_bytes(&store_s3, 1, 1), 5 * MIB);
    assert_int_equal(upload_produce_bytes(&store_s3, 500 * MIB, 0), 5 * MIB);
    assert_int_equal(upload_produce_bytes(&store_s3, 45000 * MIB, 4999), 5 * MIB);
    assert_int_equal(upload_produce_bytes(&store_s3, 45001 * MIB, 0), 5 * MIB + 256 * KIB);
    assert_int_equal(upload_produce_bytes(&store_azure, 0, 0), 4 * MIB);
    assert_int_equal(upload_produce_bytes(&store_gcs, 0, 0), 2 * MIB);
}

static void a_target_that_lacks_something_is_refused(void **state)
{
    struct fixture *f = *state;
    struct err err;
    for (int i = 0; i < 10; i++) {
        struct call c;
        call_init(f, &c, i < 5 ? STORE_S3 : i < 8 ? STORE_AZURE : STORE_GCS);
        struct store_target *t = &c.r.target;
        const char **const members[] = {&t->bucket,   &t->key,    &t->region, &t->secret_key,   &t->access_key,
                                        &t->endpoint, &t->bucket, &t->sas,    &t->access_token, &t->key};
        *members[i] = i % 2 == 0 ? NULL : "";
        c.r.body = (struct upload_body){.from = UPLOAD_MEMORY, .data = "x", .size = 1};
        assert_int_equal(upload_start(f->up, &c.r, NULL, &err), ERR_CONFIG);
        assert_non_null(strstr(err.text, "where to upload is not known"));
    }
    static const char *const endpoints[] = {"ftp://x", "https://", "https://u:p@h/", "http://h?x", "http://h/p#x", "h"};
    for (size_t i = 0; i < sizeof endpoints / sizeof endpoints[0]; i++) {
        struct call c;
        call_init(f, &c, STORE_S3);
        c.r.target.endpoint = endpoints[i];
        assert_int_equal(upload_start(f->up, &c.r, NULL, &err), ERR_CONFIG);
    }
}

static void places_are_what_the_stores_call_them(void **state)
{
    (void)state;
    static const struct {
        struct store_target t;
        const char *origin, *path, *url;
    } cases[] = {
        {{.kind = STORE_S3,
          .bucket = "kbc-files-test",
          .key = "exp/1.a b.csv",
          .region = "eu-central-1",
          .access_key = "a",
          .secret_key = "s"},
         "https://kbc-files-test.s3.eu-central-1.amazonaws.com",
         "/exp/1.a%20b.csv",
         "s3://kbc-files-test/exp/1.a b.csv"},
        {{.kind = STORE_S3,
          .bucket = "with.dots",
          .key = "k",
          .region = "cn-north-1",
          .access_key = "a",
          .secret_key = "s"},
         "https://s3.cn-north-1.amazonaws.com.cn",
         "/with.dots/k",
         "s3://with.dots/k"},
        {{.kind = STORE_S3,
          .endpoint = "HTTP://Host:80/base/",
          .bucket = "b",
          .key = "k+",
          .region = "r",
          .access_key = "a",
          .secret_key = "s"},
         "http://host",
         "/base/b/k%2B",
         "s3://b/k+"},
        {{.kind = STORE_AZURE,
          .endpoint = "https://acc.blob.core.windows.net:443/",
          .bucket = "c",
          .key = "b/ž",
          .sas = "s"},
         "https://acc.blob.core.windows.net",
         "/c/b/%C5%BE",
         "azure://acc.blob.core.windows.net:443/c/b/ž"},
        {{.kind = STORE_GCS, .bucket = "b", .key = "k", .access_token = "t"},
         "https://storage.googleapis.com",
         "/b/k",
         "gs://b/k"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct target *t;
        struct err err;
        struct buf url, key;
        struct store_target slice;
        buf_init(&url);
        buf_init(&key);
        assert_int_equal(target_new(&cases[i].t, &t, &err), ERR_NONE);
        assert_string_equal(t->origin, cases[i].origin);
        assert_string_equal(t->path, cases[i].path);
        upload_manifest_entry_url(&cases[i].t, &url);
        assert_string_equal(url.data, cases[i].url);
        assert_int_equal(store_target_with_suffix(&cases[i].t, "part0001", &key, &slice, &err), ERR_NONE);
        assert_int_equal(strlen(slice.key), strlen(cases[i].t.key) + 8);
        assert_string_equal(slice.key + strlen(cases[i].t.key), "part0001");
        assert_ptr_equal(slice.bucket, cases[i].t.bucket);
        target_free(t);
        buf_done(&url);
        buf_done(&key);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(every_size_from_file_and_memory_arrives_as_it_is),
        T(the_object_gets_what_was_handed_out),
        T(five_mebibytes_are_the_least_part_of_s3),
        T(gzip_arrives_and_inflates_to_the_file),
        T(rows_arrive_as_text),
        T(what_rows_say_is_what_the_upload_says),
        T(each_request_is_tried_again_where_that_helps),
        T(after_four_failures_the_upload_fails_and_can_be_begun_again),
        T(a_long_pause_is_left_to_the_caller),
        T(what_cannot_help_is_not_tried_again),
        T(complete_may_say_200_and_fail),
        T(no_such_upload_is_success_only_after_a_lost_complete),
        T(google_keeps_what_it_has),
        T(a_store_that_gives_nonsense_ends),
        T(renewed_credentials_go_on_where_it_was),
        T(without_new_credentials_it_ends_as_expired),
        T(an_azure_refusal_before_the_end_of_the_sas_is_no_expiry),
        T(no_text_holds_a_secret),
        T(a_file_that_changes_between_sum_and_send_is_noticed),
        T(a_file_that_is_shorter_than_said_has_changed),
        T(it_can_end_at_every_turn_of_the_loop),
        T(after_close_nothing_begins),
        T(an_idle_uploader_keeps_no_loop_awake),
        T(buffers_and_requests_stay_within_their_limits),
        T(a_buffer_larger_than_the_budget_is_granted),
        T(small_files_do_not_wait_for_the_end_of_a_large_one),
        T(every_failed_allocation_is_a_clean_failure),
        T(a_target_that_lacks_something_is_refused),
        cmocka_unit_test(sizes_of_pieces_fit_every_store),
        cmocka_unit_test(places_are_what_the_stores_call_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
