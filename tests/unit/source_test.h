/* source_test.h -- a directory source on a real folder and a real loop, with a sink that remembers what it was told. */
#ifndef CHUTE_SOURCE_TEST_H
#define CHUTE_SOURCE_TEST_H

#include "source_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define TOLD_MAX 65536
#define PATIENCE_MS 30000 /* until waiting is a failure, however slow the machine */
#ifndef TEST_STRDUP       /* a test whose allocations fail keeps its own */
#define TEST_STRDUP strdup
#endif

struct told {
    enum found_how how;
    char *path, *from;
    struct file_id id;
    bool is_scan;
};

struct fixture {
    char base[64], root[96];
    struct directory_options options;
    uv_loop_t loop;
    uv_timer_t watchdog;
    void *src;
    struct told *told;
    size_t count;
    unsigned scans, overflows, healths;
    struct scan_result result;
    bool is_held;     /* do not resume scans by yourself */
    bool is_held_now; /* one waits */
    bool is_closed, is_late;
    int max_depth;
    const char *avoid[4];
};

static inline void add_told(struct fixture *f, const struct found *found, bool is_scan)
{
    if (f->count == TOLD_MAX)
        return;
    f->told[f->count++] = (struct told){found->how, TEST_STRDUP(found->path),
                                        found->from ? TEST_STRDUP(found->from) : NULL, found->id, is_scan};
}

static inline void on_found(void *arg, const struct found *found)
{
    add_told(arg, found, false);
}

static inline void on_overflow(void *arg)
{
    ((struct fixture *)arg)->overflows++;
}

static inline void on_scanned(void *arg, const struct found *found, size_t count)
{
    struct fixture *f = arg;
    assert_true(count > 0 && count <= SCAN_CHUNK);
    for (size_t i = 0; i < count; i++)
        add_told(f, &found[i], true);
    f->is_held_now = f->is_held;
    if (!f->is_held)
        source_directory.scan_resume(f->src);
}

static inline void on_scan_done(void *arg, const struct scan_result *result)
{
    struct fixture *f = arg;
    f->scans++;
    f->result = *result;
}

static inline void on_health(void *arg)
{
    ((struct fixture *)arg)->healths++;
}

static inline bool wants_csv(void *arg, const char *path)
{
    (void)arg;
    size_t n = strlen(path);
    return n > 4 && strcmp(path + n - 4, ".csv") == 0;
}

static inline void on_watchdog(uv_timer_t *timer)
{
    ((struct fixture *)timer->data)->is_late = true;
}

/* Turn the loop until COND is true. */
#define RUN_UNTIL(f, cond)                                                                                             \
    do {                                                                                                               \
        (f)->is_late = false;                                                                                          \
        uv_timer_start(&(f)->watchdog, on_watchdog, PATIENCE_MS, 0);                                                   \
        while (!(cond) && !(f)->is_late)                                                                               \
            uv_run(&(f)->loop, UV_RUN_ONCE);                                                                           \
        uv_timer_stop(&(f)->watchdog);                                                                                 \
        if (!(cond))                                                                                                   \
            fail_msg("not within %d ms: %s", PATIENCE_MS, #cond);                                                      \
    } while (0)

static inline void run_for(struct fixture *f, uint64_t ms)
{
    f->is_late = false;
    uv_timer_start(&f->watchdog, on_watchdog, ms, 0);
    while (!f->is_late)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static inline const struct told *told(const struct fixture *f, enum found_how how, const char *path)
{
    for (size_t i = f->count; i-- > 0;)
        if (f->told[i].how == how && strcmp(f->told[i].path, path) == 0)
            return &f->told[i];
    return NULL;
}

static inline size_t told_times(const struct fixture *f, enum found_how how, const char *path)
{
    size_t n = 0;
    for (size_t i = 0; i < f->count; i++)
        n += f->told[i].how == how && (path == NULL || strcmp(f->told[i].path, path) == 0);
    return n;
}

static inline void forget(struct fixture *f)
{
    for (size_t i = 0; i < f->count; i++) {
        free(f->told[i].path);
        free(f->told[i].from);
    }
    f->count = 0;
}

static inline const char *at(const struct fixture *f, const char *path)
{
    static char full[8][PATH_MAX];
    static unsigned next;
    char *ret = full[next++ % 8];
    snprintf(ret, PATH_MAX, "%s/%s", f->root, path);
    return ret;
}

static inline void put(const struct fixture *f, const char *path, const char *text)
{
    int fd = open(at(f, path), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static inline void folder(const struct fixture *f, const char *path)
{
    assert_int_equal(mkdir(at(f, path), 0755), 0);
}

static inline struct source_health health(struct fixture *f)
{
    struct source_health h;
    source_directory.health(f->src, &h);
    return h;
}

static const struct source_env source_env = {.jobs = 4};

static inline void start(struct fixture *f)
{
    struct source_sink sink = {f, on_found, on_overflow, on_scanned, on_scan_done, on_health};
    struct err err = {0};
    assert_int_equal(source_directory.open(&f->options, &source_env, &f->loop, &sink, f->max_depth, f->avoid, wants_csv,
                                           NULL, &f->src, &err),
                     ERR_NONE);
}

static inline void start_and_scan(struct fixture *f)
{
    start(f);
    RUN_UNTIL(f, f->scans > 0);
}

static inline void on_closed(void *arg)
{
    ((struct fixture *)arg)->is_closed = true;
}

static inline void stop(struct fixture *f)
{
    if (f->src == NULL)
        return;
    f->is_closed = false;
    source_directory.close(f->src, on_closed, f);
    assert_false(f->is_closed);
    RUN_UNTIL(f, f->is_closed);
    f->src = NULL;
}

static inline int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->base, "/tmp/chute-source-XXXXXX");
    assert_non_null(mkdtemp(f->base));
    snprintf(f->root, sizeof f->root, "%s/in", f->base);
    assert_int_equal(mkdir(f->root, 0755), 0);
    f->told = calloc(TOLD_MAX, sizeof *f->told);
    f->options = (struct directory_options){.path = f->root,
                                            .debounce_ms = 200,
                                            .settle_ms = 1000,
                                            .ready_marker = "",
                                            .poll_interval_ms = 200,
                                            .rescan_interval_ms = 3600000,
                                            .mode = DIRECTORY_AUTO};
    f->max_depth = -1;
    uv_loop_init(&f->loop);
    uv_timer_init(&f->loop, &f->watchdog);
    f->watchdog.data = f;
    *state = f;
    return 0;
}

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    remove(path);
    return 0;
}

static inline int teardown(void **state)
{
    struct fixture *f = *state;
    stop(f);
    uv_close((uv_handle_t *)&f->watchdog, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    forget(f);
    free(f->told);
    nftw(f->base, remove_one, 32, FTW_DEPTH | FTW_PHYS);
    free(f);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

#endif
