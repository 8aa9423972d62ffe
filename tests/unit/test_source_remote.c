/*
 * test_source_remote.c -- the ftp source against a small server in a thread: listings, questions, fetches and errands;
 * every allocation of ours fails once, and the source is closed at every turn of the loop.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "content_hash.h"
#include "alloc_fault.h"
#include "source_remote.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the server: a folder of four files, one of them deeper ---- */

#define BIG (700 * 1024)
static char big[BIG + 1];
static struct server_file {
    const char *folder, *name;
    const char *bytes;
    bool is_gone;
} files[] = {{"/", "a.txt", "abc", false},
             {"/", "big.bin", big, false},
             {"/sub", "b c.txt", "bb", false},
             {"/sub", "per%cent.txt", "", false}};
#define FILES (sizeof files / sizeof files[0])
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic unsigned retrs, restarted;

static int listen_on(unsigned *ret_port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 64) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &size) != 0)
        abort();
    *ret_port = ntohs(a.sin_port);
    return fd;
}

static void say(int fd, const char *text)
{
    size_t n = strlen(text);
    while (n > 0) {
        ssize_t done = send(fd, text, n, MSG_NOSIGNAL);
        if (done <= 0)
            return;
        text += done;
        n -= (size_t)done;
    }
}

static struct server_file *file_at(const char *cwd, const char *path)
{
    char full[600], whole[600];
    snprintf(full, sizeof full, "%s%s%s", path[0] == '/' ? "" : cwd, path[0] == '/' || strcmp(cwd, "/") == 0 ? "" : "/",
             path);
    for (size_t i = 0; i < FILES; i++) {
        snprintf(whole, sizeof whole, "%s%s%s", files[i].folder, strcmp(files[i].folder, "/") == 0 ? "" : "/",
                 files[i].name);
        if (strcmp(whole, full) == 0 && !files[i].is_gone)
            return &files[i];
    }
    return NULL;
}

static void send_data(int control, int *passive, const char *bytes, size_t n)
{
    say(control, "150 here\r\n");
    int data = *passive >= 0 ? accept(*passive, NULL, NULL) : -1;
    while (data >= 0 && n > 0) {
        ssize_t done = send(data, bytes, n, MSG_NOSIGNAL);
        if (done <= 0)
            break;
        bytes += done;
        n -= (size_t)done;
    }
    if (data >= 0)
        close(data);
    if (*passive >= 0)
        close(*passive);
    *passive = -1;
    say(control, "226 sent\r\n");
}

static void list(int control, int *passive, const char *cwd)
{
    char text[2000] = "";
    for (size_t i = 0; i < FILES; i++) {
        size_t n = strlen(text);
        if (strcmp(files[i].folder, cwd) == 0 && !files[i].is_gone)
            snprintf(text + n, sizeof text - n, "type=file;size=%zu;modify=20231114221320; %s\r\n",
                     strlen(files[i].bytes), files[i].name);
    }
    if (strcmp(cwd, "/") == 0)
        snprintf(text + strlen(text), sizeof text - strlen(text), "type=dir;modify=20231114221320; sub\r\n");
    send_data(control, passive, text, strlen(text));
}

static void *serve_one(void *arg)
{
    int fd = (int)(intptr_t)arg, passive = -1;
    char cwd[300] = "/", line[600], answer[700];
    size_t rest = 0;
    FILE *in = fdopen(fd, "r");
    say(fd, "220 ready\r\n");
    while (fgets(line, sizeof line, in) != NULL) {
        unsigned port;
        line[strcspn(line, "\r\n")] = '\0';
        char *argument = strchr(line, ' ') != NULL ? strchr(line, ' ') + 1 : line + strlen(line);
        struct server_file *f = file_at(cwd, argument);
        pthread_mutex_lock(&lock);
        if (strncmp(line, "USER", 4) == 0) {
            say(fd, "331 password\r\n");
        } else if (strncmp(line, "PWD", 3) == 0) {
            say(fd, "257 \"/\"\r\n");
        } else if (strncmp(line, "CWD", 3) == 0) {
            bool is_there = strcmp(argument, "/") == 0 || strcmp(argument, "/sub") == 0;
            if (is_there)
                snprintf(cwd, sizeof cwd, "%s", argument);
            say(fd, is_there ? "250 fine\r\n" : "550 no\r\n");
        } else if (strncmp(line, "EPSV", 4) == 0) {
            if (passive >= 0)
                close(passive);
            passive = listen_on(&port);
            snprintf(answer, sizeof answer, "229 go (|||%u|)\r\n", port);
            say(fd, answer);
        } else if (strncmp(line, "MLSD", 4) == 0) {
            list(fd, &passive, cwd);
        } else if (strncmp(line, "MDTM", 4) == 0) {
            say(fd, f != NULL ? "213 20231114221320\r\n" : "550 no\r\n");
        } else if (strncmp(line, "SIZE", 4) == 0) {
            snprintf(answer, sizeof answer, "213 %zu\r\n", f != NULL ? strlen(f->bytes) : 0);
            say(fd, f != NULL ? answer : "550 no\r\n");
        } else if (strncmp(line, "REST", 4) == 0) {
            rest = strtoul(argument, NULL, 10);
            restarted++;
            say(fd, "350 from there\r\n");
        } else if (strncmp(line, "RETR", 4) == 0) {
            retrs++;
            if (f != NULL)
                send_data(fd, &passive, f->bytes + rest, strlen(f->bytes) - rest);
            else
                say(fd, "550 no\r\n");
            rest = 0;
        } else if (strncmp(line, "DELE", 4) == 0) {
            if (f != NULL)
                f->is_gone = true;
            say(fd, f != NULL ? "250 gone\r\n" : "550 no\r\n");
        } else {
            say(fd, "200 fine\r\n"); /* PASS, TYPE, MKD, RNFR, RNTO, QUIT */
        }
        pthread_mutex_unlock(&lock);
    }
    if (passive >= 0)
        close(passive);
    fclose(in);
    return NULL;
}

static void *serve(void *arg)
{
    int fd = (int)(intptr_t)arg;
    for (;;) {
        pthread_t thread;
        int one = accept(fd, NULL, NULL);
        if (one < 0)
            return NULL;
        if (pthread_create(&thread, NULL, serve_one, (void *)(intptr_t)one) == 0)
            pthread_detach(thread);
    }
}

static unsigned start_server(void)
{
    static unsigned port;
    pthread_t thread;
    if (port == 0) {
        memset(big, 'x', BIG);
        int fd = listen_on(&port);
        pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd);
        pthread_detach(thread);
    }
    for (size_t i = 0; i < FILES; i++)
        files[i].is_gone = false;
    return port;
}

/* ---- the source and what it says ---- */

struct options_buffer {
    union {
        char bytes[512];
        void *align;
    };
};

static struct {
    uv_loop_t loop;
    struct options_buffer options;
    char url[100];
    void *state;
    char met[1000];
    bool is_complete;
    unsigned done, probed, fetched, run, closed;
    struct probe probes[3];
    struct fetch fetch;
    struct source_errand errand;
} t;

static void on_found(void *arg, const struct found *found)
{
    (void)arg;
    (void)found;
}
static void on_nothing(void *arg)
{
    (void)arg;
}
static void on_scanned(void *arg, const struct found *found, size_t count)
{
    (void)arg;
    for (size_t i = 0; i < count; i++) {
        size_t n = strlen(t.met);
        snprintf(t.met + n, sizeof t.met - n, "%s=%llu ", found[i].path, (unsigned long long)found[i].id.size);
    }
    source_ftp.scan_resume(t.state);
}
static void on_scan_done(void *arg, const struct scan_result *result)
{
    (void)arg;
    t.is_complete = result->is_complete;
    t.done++;
}
static bool wants_all(void *arg, const char *path)
{
    (void)arg;
    return path[0] != '\0';
}
static void on_probed(void *arg, struct probe *probes, size_t count)
{
    (void)arg;
    (void)probes;
    (void)count;
    t.probed++;
}
static void on_fetched(struct fetch *fetch)
{
    (void)fetch;
    t.fetched++;
}
static void on_errand(struct source_errand *errand)
{
    (void)errand;
    t.run++;
}
static void on_closed(void *arg)
{
    (void)arg;
    t.closed++;
}

static void set_option(const char *name, const void *value, size_t size)
{
    for (const struct option *o = source_ftp.options; o->name != NULL; o++)
        if (strcmp(o->name, name) == 0) {
            memcpy(t.options.bytes + o->offset, value, size);
            return;
        }
    fail_msg("no option %s", name);
}

static enum err_code open_source(struct err *err)
{
    static const char *const globs[] = {"/**"};
    const struct option_strings paths = {.items = globs, .count = 1};
    const char *nothing = "", *url = t.url;
    uint64_t ms = 5000;
    memset(&t, 0, sizeof t);
    assert_true(source_ftp.options_size <= sizeof t.options);
    snprintf(t.url, sizeof t.url, "ftp://127.0.0.1:%u/", start_server());
    set_option("url", &url, sizeof url);
    set_option("user", &nothing, sizeof nothing);
    set_option("proxy", &nothing, sizeof nothing);
    set_option("cron", &nothing, sizeof nothing);
    set_option("ready_marker", &nothing, sizeof nothing);
    set_option("paths", &paths, sizeof paths);
    set_option("connect_timeout", &ms, sizeof ms);
    set_option("stall_timeout", &ms, sizeof ms);
    uv_loop_init(&t.loop);
    const struct source_env env = {.jobs = 2};
    const struct source_sink sink = {NULL, on_found, on_nothing, on_scanned, on_scan_done, on_nothing};
    return source_ftp.open(&t.options, &env, &t.loop, &sink, -1, NULL, wants_all, NULL, &t.state, err);
}

static void turn_until(const unsigned *count)
{
    while (*count == 0 && uv_run(&t.loop, UV_RUN_ONCE) != 0)
        ;
    assert_int_equal(*count, 1);
}

static void close_source(void)
{
    source_ftp.close(t.state, on_closed, NULL);
    uv_run(&t.loop, UV_RUN_DEFAULT);
    assert_int_equal(t.closed, 1);
    assert_int_equal(uv_loop_close(&t.loop), 0);
}

/* One of each; what could not be begun counts as answered. */
static void begin_all(int fd)
{
    struct err err = {0};
    t.probes[0].path = "sub/b c.txt";
    t.probes[1].path = "a.txt";
    t.probes[2].path = "nothing/here";
    t.fetch = (struct fetch){.path = "big.bin", .id = {.size = BIG}, .fd = fd, .finished = on_fetched};
    t.errand = (struct source_errand){
        .path = "a.txt", .id = {.size = 3, .mtime_ns = INT64_C(1700000000000000000)}, .finished = on_errand};
    source_ftp.scan(t.state);
    t.probed += source_ftp.probe(t.state, t.probes, 3, on_probed, NULL, &err) != ERR_NONE;
    t.fetched += source_ftp.fetch(t.state, &t.fetch, &err) != ERR_NONE;
    t.run += source_ftp.run_errand(t.state, &t.errand, &err) != ERR_NONE;
}

static void assert_hash_of(int fd, const uint8_t hash[CONTENT_HASH_SIZE])
{
    struct content_hash *h = content_hash_new();
    uint8_t bytes[4096], want[CONTENT_HASH_SIZE];
    uint64_t at = 0;
    for (ssize_t n; (n = pread(fd, bytes, sizeof bytes, (off_t)at)) > 0; at += (uint64_t)n)
        content_hash_add(h, bytes, (size_t)n);
    content_hash_get(h, want);
    content_hash_free(h);
    assert_int_equal(at, BIG);
    assert_memory_equal(hash, want, sizeof want);
}

static void it_lists_answers_fetches_and_puts_away(void **state)
{
    (void)state;
    struct err err = {0};
    int fd = memfd_create("spool", 0);
    assert_int_equal(open_source(&err), ERR_NONE);
    source_ftp.scan(t.state);
    turn_until(&t.done);
    assert_true(t.is_complete);
    assert_string_equal(t.met, "a.txt=3 big.bin=716800 sub/b c.txt=2 sub/per%cent.txt=0 ");
    begin_all(fd);
    turn_until(&t.probed);
    turn_until(&t.fetched);
    turn_until(&t.run);
    assert_int_equal(t.probes[0].answer, PROBE_PRESENT);
    assert_int_equal(t.probes[0].id.mtime_ns, INT64_C(1700000000000000000));
    assert_int_equal(t.probes[2].answer, PROBE_GONE);
    assert_int_equal(t.fetch.err.code, ERR_NONE);
    assert_int_equal(t.fetch.offset, BIG);
    assert_true(t.fetch.is_verified && t.fetch.has_mtime);
    assert_true(t.fetch.has_hash);
    assert_hash_of(t.fetch.fd, t.fetch.hash);
    assert_int_equal(lseek(fd, 0, SEEK_END), BIG);
    assert_int_equal(t.errand.err.code, ERR_NONE);
    assert_true(files[0].is_gone);
    /* half of it is there */
    unsigned before = restarted;
    t.fetched = 0;
    t.fetch.offset = BIG / 2;
    assert_int_equal(source_ftp.fetch(t.state, &t.fetch, &err), ERR_NONE);
    turn_until(&t.fetched);
    assert_int_equal(t.fetch.err.code, ERR_NONE);
    assert_int_equal(t.fetch.offset, BIG);
    assert_false(t.fetch.has_hash); /* the first half is not ours */
    assert_true(restarted > before);
    close_source();
    close(fd);
}

static void another_version_is_left_alone_and_what_is_gone_is_no_error(void **state)
{
    (void)state;
    struct err err = {0};
    assert_int_equal(open_source(&err), ERR_NONE);
    t.errand = (struct source_errand){.path = "a.txt", .id = {.size = 4, .mtime_ns = 1}, .finished = on_errand};
    assert_int_equal(source_ftp.run_errand(t.state, &t.errand, &err), ERR_NONE);
    turn_until(&t.run);
    assert_int_equal(t.errand.err.code, ERR_CHANGED);
    assert_false(files[0].is_gone);
    t.run = 0;
    t.errand.path = "sub/never.txt";
    assert_int_equal(source_ftp.run_errand(t.state, &t.errand, &err), ERR_NONE);
    turn_until(&t.run);
    assert_int_equal(t.errand.err.code, ERR_NONE);
    assert_true(t.errand.is_gone);
    int fd = memfd_create("spool", 0);
    t.fetch = (struct fetch){.path = "sub/never.txt", .id = {.size = 1}, .fd = fd, .finished = on_fetched};
    assert_int_equal(source_ftp.fetch(t.state, &t.fetch, &err), ERR_NONE);
    turn_until(&t.fetched);
    assert_int_equal(t.fetch.err.code, ERR_INPUT);
    assert_true(t.fetch.is_gone);
    close(fd);
    close_source();
}

static void closed_at_every_turn_it_answers_all(void **state)
{
    (void)state;
    for (int turns = 0; turns < 120; turns++) {
        struct err err = {0};
        int fd = memfd_create("spool", 0);
        assert_int_equal(open_source(&err), ERR_NONE);
        begin_all(fd);
        for (int i = 0; i < turns && (t.probed == 0 || t.fetched == 0 || t.run == 0); i++)
            uv_run(&t.loop, UV_RUN_ONCE);
        if (turns % 3 == 1)
            source_ftp.hurry(t.state);
        if (turns % 3 == 2 && t.fetched == 0)
            source_ftp.abort_fetch(t.state, &t.fetch);
        close_source();
        assert_int_equal(t.probed, 1);
        assert_int_equal(t.fetched, 1);
        assert_int_equal(t.run, 1);
        close(fd);
    }
}

static void any_failed_allocation_is_an_answer_and_no_leak(void **state)
{
    (void)state;
    ALLOC_FAULT_SWEEP
    {
        struct err err = {0};
        int fd = memfd_create("spool", 0);
        if (open_source(&err) == ERR_NONE) {
            begin_all(fd);
            while ((t.done == 0 || t.probed == 0 || t.fetched == 0 || t.run == 0) && uv_run(&t.loop, UV_RUN_ONCE) != 0)
                ;
            assert_true(t.done == 1 && t.probed == 1 && t.fetched == 1 && t.run == 1);
            bool was_hit = alloc_fault_hit();
            assert_true(was_hit || (t.is_complete && t.fetch.err.code == ERR_NONE && t.errand.err.code == ERR_NONE));
            close_source();
        } else {
            assert_true(alloc_fault_hit());
            uv_run(&t.loop, UV_RUN_DEFAULT);
            assert_int_equal(uv_loop_close(&t.loop), 0);
        }
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_lists_answers_fetches_and_puts_away),
        cmocka_unit_test(another_version_is_left_alone_and_what_is_gone_is_no_error),
        cmocka_unit_test(closed_at_every_turn_it_answers_all),
        cmocka_unit_test(any_failed_allocation_is_an_answer_and_no_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
