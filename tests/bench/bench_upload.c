/*
 * bench_upload.c -- upload a file to a store, and what that cost; also the client of checks against real servers.
 *
 *   bench_upload s3|azure|gcs ENDPOINT BUCKET KEY FILE [gzip] [copies N] [single BYTES] [piece BYTES] [parallel N]
 *
 * What is secret comes from the environment: UPLOAD_SAS, UPLOAD_TOKEN, UPLOAD_ACCESS_KEY, UPLOAD_SECRET_KEY,
 * UPLOAD_SESSION_TOKEN; also UPLOAD_SSE, UPLOAD_REGION and UPLOAD_CA. Copies after the first get their number behind
 * the key. Prints one line of name=value; exit 1 if an upload failed.
 */
#include "upload.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define COPIES_MAX 64

struct bench {
    struct uploader *up;
    struct http *http;
    uv_timer_t tick;
    uint64_t last_ns, lag_ns;
    uint64_t last_cpu_ns, busy_ns;
    unsigned left;
    bool has_failed;
    uint64_t sent, source;
    unsigned parts;
};

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? value : otherwise;
}

static void on_http_closed(void *arg)
{
    (void)arg;
}

static void on_closed(void *arg)
{
    struct bench *b = arg;
    http_close(b->http, on_http_closed, NULL);
    uv_close((uv_handle_t *)&b->tick, NULL);
}

static void on_done(void *arg, const struct upload_result *r)
{
    struct bench *b = arg;
    if (r->err.code != ERR_NONE) {
        fprintf(stderr, "bench_upload: %s%s\n", r->err.text, r->is_expired ? " (expired)" : "");
        b->has_failed = true;
    }
    b->sent += r->sent_bytes;
    b->source += r->source_bytes;
    b->parts += r->parts;
    if (--b->left == 0)
        uploader_close(b->up, on_closed, b);
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* How long was the loop kept from a timer of 1 ms? On a busy machine much of that is other processes' doing, so we look
 * at the CPU time of the loop's thread as well. */
static void on_tick(uv_timer_t *timer)
{
    struct bench *b = timer->data;
    uint64_t now = uv_hrtime(), lag = b->last_ns == 0 ? 0 : now - b->last_ns;
    b->last_ns = now;
    if (lag > b->lag_ns)
        b->lag_ns = lag;
    uint64_t cpu = thread_cpu_ns(), busy = b->last_cpu_ns == 0 ? 0 : cpu - b->last_cpu_ns;
    b->last_cpu_ns = cpu;
    if (busy > b->busy_ns)
        b->busy_ns = busy;
}

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "bench_upload: %s: %s\n", what, why);
    exit(2);
}

static double cpu_s(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    static const char *const kinds[] = {"s3", "azure", "gcs"};
    struct upload_request r = {.done = on_done, .body.from = UPLOAD_FILE};
    struct uploader_limits limits = {0};
    struct bench b = {.left = 1};
    struct err err;
    unsigned copies = 1, kind = 0;
    if (argc < 6)
        fail("called wrongly", "s3|azure|gcs ENDPOINT BUCKET KEY FILE [gzip] [copies N] [single|piece|parallel N]");
    while (kind < 3 && strcmp(argv[1], kinds[kind]) != 0)
        kind++;
    for (int i = 6; i < argc; i++) {
        unsigned long long value = i + 1 < argc ? strtoull(argv[i + 1], NULL, 10) : 0;
        if (strcmp(argv[i], "gzip") == 0) {
            r.body.gzip = true;
            continue;
        }
        if (strcmp(argv[i], "copies") == 0 && value > 0 && value <= COPIES_MAX)
            copies = (unsigned)value;
        else if (strcmp(argv[i], "single") == 0)
            limits.single_bytes = value;
        else if (strcmp(argv[i], "piece") == 0)
            limits.piece_bytes = value;
        else if (strcmp(argv[i], "parallel") == 0)
            limits.parallel = (unsigned)value;
        else
            fail("called wrongly", argv[i]);
        i++;
    }
    if (kind == 3)
        fail("called wrongly", argv[1]);
    struct stat st;
    r.body.fd = open(argv[5], O_RDONLY | O_CLOEXEC);
    if (r.body.fd < 0 || fstat(r.body.fd, &st) != 0)
        fail(argv[5], "can't be opened");
    r.body.size = (uint64_t)st.st_size;
    r.arg = &b;
    r.target = (struct store_target){
        .kind = (enum store_kind)kind,
        .endpoint = argv[2],
        .bucket = argv[3],
        .region = setting("UPLOAD_REGION", "eu-central-1"),
        .acl = kind == STORE_S3 ? "private" : "",
        .access_key = setting("UPLOAD_ACCESS_KEY", "S3RVER"),
        .secret_key = setting("UPLOAD_SECRET_KEY", "S3RVER"),
        .sse = setting("UPLOAD_SSE", ""),
        .session_token = setting("UPLOAD_SESSION_TOKEN", ""),
        .sas = setting("UPLOAD_SAS", ""),
        .access_token = setting("UPLOAD_TOKEN", "token"),
        .file_name = "bench.csv",
    };
    signal(SIGPIPE, SIG_IGN);
    uv_loop_t *loop = uv_default_loop();
    const struct http_options http = {.ca_file = getenv("UPLOAD_CA"), .proxy = "none"};
    if (http_open(loop, &http, &b.http, &err) != ERR_NONE ||
        uploader_open(loop, b.http, &limits, &b.up, &err) != ERR_NONE)
        fail("open", err.text);
    uv_timer_init(loop, &b.tick);
    b.tick.data = &b;
    uv_timer_start(&b.tick, on_tick, 1, 1);
    double cpu = cpu_s();
    uint64_t start_ns = uv_hrtime();
    b.left = copies;
    for (unsigned i = 0; i < copies; i++) {
        char key[1024];
        snprintf(key, sizeof key, i == 0 ? "%s" : "%s.%u", argv[4], i);
        r.target.key = key;
        if (upload_start(b.up, &r, NULL, &err) != ERR_NONE)
            fail("start", err.text);
    }
    uv_run(loop, UV_RUN_DEFAULT);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("cpu_s=%.3f wall_s=%.3f sent=%" PRIu64 " source=%" PRIu64
           " parts=%u max_rss_kib=%ld max_lag_ms=%.1f max_busy_ms=%.1f\n",
           cpu_s() - cpu, (double)(uv_hrtime() - start_ns) / 1e9, b.sent, b.source, b.parts, usage.ru_maxrss,
           (double)b.lag_ns / 1e6, (double)b.busy_ns / 1e6);
    close(r.body.fd);
    return uv_loop_close(loop) != 0 || b.has_failed;
}
