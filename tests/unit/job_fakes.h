/*
 * job_fakes.h -- a source that says what a test tells it to and a destination that answers from a script, each one turn
 * of the loop later; around them the real ledger, settle, inspect and finish, in a temporary folder.
 */
#ifndef CHUTE_JOB_FAKES_H
#define CHUTE_JOB_FAKES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "clock.h"
#include "config.h"
#include "job.h"
#include "ledger.h"
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utlist.h>

/* ---- the source ---- */

struct fake_dir_options {
    const char *path;
    uint64_t debounce, settle;
    const char *ready_marker;
};
static const struct option fake_dir_table[] = {
    {.name = "path",
     .type = OPT_PATH,
     .offset = offsetof(struct fake_dir_options, path),
     .flags = OPT_REQUIRED,
     .help = "x"},
    {.name = "debounce",
     .type = OPT_DURATION,
     .offset = offsetof(struct fake_dir_options, debounce),
     .default_text = "5ms",
     .help = "x"},
    {.name = "settle",
     .type = OPT_DURATION,
     .offset = offsetof(struct fake_dir_options, settle),
     .default_text = "5ms",
     .help = "x"},
    {.name = "ready_marker",
     .type = OPT_STRING,
     .offset = offsetof(struct fake_dir_options, ready_marker),
     .default_text = "",
     .help = "x"},
    {.name = NULL},
};

struct fake_dir {
    struct source_sink sink;
    uv_idle_t idle;
    char root[PATH_MAX];
    int root_fd;
    char identity[64], expected[64];
    bool must_scan, is_closing, is_waiting, scanned;
    struct found found[SCAN_CHUNK];
    size_t found_count;
    char names[SCAN_CHUNK][256];
    unsigned scans;
    void (*closed)(void *arg);
    void *closed_arg;
    struct fake_probe {
        struct probe *probes;
        size_t count;
        probe_cb *cb;
        void *arg;
    } asked[16];
    size_t asked_count;
};
static struct fake_dir *the_dir; /* the last one opened */
static char fake_identity[64] = "1:1";
static const char *fake_slow_until; /* files with names before this one are slow to open; NULL: none */

static void fake_stat(const struct fake_dir *d, const char *path, struct file_id *id, bool *exists)
{
    struct stat st;
    *exists = fstatat(d->root_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    memset(id, 0, sizeof *id);
    if (*exists)
        *id = (struct file_id){(uint64_t)st.st_size, (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec,
                               (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec, st.st_ino, st.st_dev};
}

static void fake_dir_list(struct fake_dir *d)
{
    char command[PATH_MAX + 64];
    d->found_count = 0;
    snprintf(command, sizeof command, "cd '%s' && find . -type f -name '*.csv' | sort", d->root);
    FILE *list = popen(command, "r");
    char line[300];
    while (list != NULL && d->found_count < SCAN_CHUNK && fgets(line, sizeof line, list) != NULL) {
        bool exists;
        line[strcspn(line, "\n")] = '\0';
        snprintf(d->names[d->found_count], sizeof d->names[0], "%.250s", line + 2);
        struct found *f = &d->found[d->found_count];
        *f = (struct found){.path = d->names[d->found_count], .how = FOUND_SCANNED};
        fake_stat(d, f->path, &f->id, &exists);
        d->found_count += exists;
    }
    if (list != NULL)
        pclose(list);
}

static void fake_dir_idle(uv_idle_t *idle)
{
    struct fake_dir *d = idle->data;
    if (d->asked_count > 0) {
        struct fake_probe p = d->asked[0];
        struct probe *probes = p.probes;
        size_t count = p.count;
        memmove(d->asked, d->asked + 1, --d->asked_count * sizeof d->asked[0]);
        for (size_t i = 0; i < count; i++) {
            bool exists;
            fake_stat(d, probes[i].path, &probes[i].id, &exists);
            bool trusted = d->expected[0] == '\0' || strcmp(d->expected, d->identity) == 0;
            probes[i].answer = exists ? PROBE_PRESENT : trusted ? PROBE_GONE : PROBE_UNKNOWN;
        }
        p.cb(p.arg, probes, count);
        return;
    }
    if (d->must_scan && !d->is_waiting) {
        d->must_scan = false;
        d->scans++;
        fake_dir_list(d);
        d->is_waiting = true;
        d->sink.on_scanned(d->sink.arg, d->found, d->found_count);
        return;
    }
    if (!d->must_scan && !d->is_waiting)
        uv_idle_stop(idle);
}

static enum err_code fake_dir_open(const void *options, const struct source_env *env, uv_loop_t *loop,
                                   const struct source_sink *sink, int max_depth, const char *const *avoid,
                                   bool (*wants)(void *arg, const char *path), void *wants_arg, void **ret_state,
                                   struct err *err)
{
    const struct fake_dir_options *o = options;
    struct fake_dir *d = calloc(1, sizeof *d);
    (void)env;
    (void)max_depth;
    (void)avoid;
    (void)wants;
    (void)wants_arg;
    if (d == NULL)
        return err_nomem(err);
    d->sink = *sink;
    snprintf(d->root, sizeof d->root, "%s", o->path);
    d->root_fd = open(o->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    snprintf(d->identity, sizeof d->identity, "%s", fake_identity);
    uv_idle_init(loop, &d->idle);
    d->idle.data = d;
    d->must_scan = true;
    uv_idle_start(&d->idle, fake_dir_idle);
    *ret_state = the_dir = d;
    return ERR_NONE;
}
static void fake_dir_scan(void *state)
{
    struct fake_dir *d = state;
    d->must_scan = true;
    uv_idle_start(&d->idle, fake_dir_idle);
}
static void fake_dir_resume(void *state)
{
    struct fake_dir *d = state;
    const struct scan_result result = {.is_complete = true, .files = d->found_count};
    d->is_waiting = false;
    d->scanned = true;
    d->sink.on_scan_done(d->sink.arg, &result);
}
static void fake_dir_health(void *state, struct source_health *ret)
{
    struct fake_dir *d = state;
    *ret = (struct source_health){.mode = "events",
                                  .reason = "",
                                  .evidence = "close",
                                  .scans = d->scans,
                                  .is_ready = d->scanned,
                                  .is_reachable = true};
}
static size_t fake_asked; /* paths that the engine wanted to have looked for */
static enum err_code fake_dir_probe(void *state, struct probe *probes, size_t count, probe_cb *cb, void *arg,
                                    struct err *err)
{
    struct fake_dir *d = state;
    fake_asked += count;
    if (d->asked_count == sizeof d->asked / sizeof d->asked[0])
        return err_set(err, ERR_SYSTEM, true, "busy");
    d->asked[d->asked_count++] = (struct fake_probe){probes, count, cb, arg};
    uv_idle_start(&d->idle, fake_dir_idle);
    return ERR_NONE;
}
static int fake_dir_open_now(void *state, const char *path, struct err *err)
{
    struct fake_dir *d = state;
    if (fake_slow_until != NULL && strcmp(path, fake_slow_until) < 0)
        usleep(2000);
    int fd = openat(d->root_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        err_set(err, ERR_INPUT, false, "open: %s", strerror(errno));
    return fd;
}
static int fake_dir_root_fd(void *state)
{
    return ((struct fake_dir *)state)->root_fd;
}
static const char *fake_dir_root_path(void *state)
{
    return ((struct fake_dir *)state)->root;
}
static const char *fake_dir_identity(void *state)
{
    return ((struct fake_dir *)state)->identity;
}
static void fake_dir_expect(void *state, const char *identity)
{
    struct fake_dir *d = state;
    snprintf(d->expected, sizeof d->expected, "%s", identity);
}
static void fake_dir_on_close(uv_handle_t *handle)
{
    struct fake_dir *d = handle->data;
    void (*closed)(void *) = d->closed;
    void *arg = d->closed_arg;
    if (d->root_fd >= 0)
        close(d->root_fd);
    if (the_dir == d)
        the_dir = NULL;
    free(d);
    closed(arg);
}
static void fake_dir_close(void *state, void (*closed)(void *arg), void *arg)
{
    struct fake_dir *d = state;
    d->closed = closed;
    d->closed_arg = arg;
    uv_close((uv_handle_t *)&d->idle, fake_dir_on_close);
}
static const struct source_ops fake_dir_ops = {
    .type = "directory",
    .summary = "x",
    .options = fake_dir_table,
    .options_size = sizeof(struct fake_dir_options),
    .open = fake_dir_open,
    .scan = fake_dir_scan,
    .scan_resume = fake_dir_resume,
    .health = fake_dir_health,
    .probe = fake_dir_probe,
    .open_now = fake_dir_open_now,
    .root_fd = fake_dir_root_fd,
    .root_path = fake_dir_root_path,
    .root_identity = fake_dir_identity,
    .expect_root = fake_dir_expect,
    .close = fake_dir_close,
};

/* ---- the destination ---- */

struct fake_table_options {
    const char *path;
};
static const struct option fake_table_table[] = {
    {.name = "path",
     .type = OPT_PATH,
     .offset = offsetof(struct fake_table_options, path),
     .flags = OPT_REQUIRED,
     .help = "x"},
    {.name = NULL},
};

enum { FAKE_LOG = 256 };
static void fake_table_idle(uv_idle_t *idle);
struct fake_table {
    uv_idle_t idle;
    struct load *queue;
    dest_cb *connect_cb;
    void *connect_arg;
    void (*closed)(void *arg);
    void *closed_arg;
};
/* What the test says and sees; outlives the destination. */
static struct {
    struct err script[32]; /* answers to loads, in order; afterwards ERR_NONE */
    size_t script_count, script_next;
    struct err connect_script[8];
    size_t connect_count, connect_next;
    char log[FAKE_LOG][300]; /* "load a.csv -> a (2 rows)", "drop a" */
    size_t log_count;
    bool hold;  /* answer nothing for now */
    bool walks; /* a load saves a checkpoint first, and one that finds one says so */
    char identity[40];
    char keys[FAKE_LOG][40]; /* load_keys committed */
    uint8_t hashes[FAKE_LOG][16];
    uint64_t parsed[FAKE_LOG];
    size_t key_count;
} fake;

static void fake_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void fake_say(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    if (fake.log_count < FAKE_LOG)
        vsnprintf(fake.log[fake.log_count++], sizeof fake.log[0], fmt, args);
    va_end(args);
}

static void fake_run_load(struct load *load)
{
    load->receipt.dest_rows = -1;
    if (load->stop) {
        err_set(&load->err, ERR_STOPPED, true, "stopped");
        return;
    }
    if (fake.script_next < fake.script_count) {
        load->err = fake.script[fake.script_next++];
        if (load->err.code != ERR_NONE) {
            fake_say("%s %s: %s", load->what == LOAD_FILE ? "load" : "drop", load->path, load->err.text);
            return;
        }
    }
    if (load->what != LOAD_FILE) {
        snprintf(load->receipt.dest_id, sizeof load->receipt.dest_id, "dropped");
        fake_say("%s %s",
                 load->what == LOAD_DROP    ? "drop"
                 : load->what == LOAD_EMPTY ? "empty"
                                            : "forget",
                 load->table);
        return;
    }
    for (size_t i = 0; i < fake.key_count; i++)
        if (strcmp(fake.keys[i], load->load_key) == 0) {
            load->receipt.is_duplicate = load->receipt.is_resumed = true;
            load->receipt.parsed = load->receipt.inserted = fake.parsed[i];
            memcpy(load->receipt.hash, fake.hashes[i], 16);
            fake_say("resumed %s", load->path);
            return;
        }
    const struct row_batch *batch;
    uint64_t rows = 0;
    do {
        if (rows_next(load->rows, &batch, &load->err) != ERR_NONE)
            return;
        rows += batch->rows;
    } while (batch->rows > 0);
    if (load->still_current(load, &load->err) != ERR_NONE)
        return;
    memcpy(load->receipt.hash, load->rows->result.hash, 16);
    load->receipt.bytes = load->rows->result.bytes;
    load->receipt.parsed = load->rows->result.records;
    load->receipt.rejected = load->rows->result.rejected;
    load->receipt.inserted = rows - (load->skip_records < rows ? load->skip_records : rows);
    if (fake.key_count < FAKE_LOG) {
        snprintf(fake.keys[fake.key_count], sizeof fake.keys[0], "%s", load->load_key);
        memcpy(fake.hashes[fake.key_count], load->receipt.hash, 16);
        fake.parsed[fake.key_count++] = load->receipt.parsed;
    }
    fake_say("load %s -> %s (%llu rows)", load->path, load->table, (unsigned long long)load->receipt.inserted);
}

/* The remote id is on disk: now the next step may be taken. */
static void fake_saved(struct load *load, const struct err *err)
{
    struct fake_table *t = load->driver;
    assert_null(err);
    assert_string_equal(load->checkpoint, "import 7");
    load->next = NULL;
    LL_APPEND(t->queue, load);
    uv_idle_start(&t->idle, fake_table_idle);
}

static bool fake_walks_on(struct fake_table *t, struct load *load)
{
    struct err err = {0};
    if (!fake.walks || load->what != LOAD_FILE || load->stop)
        return false;
    if (load->driver == NULL && load->checkpoint[0] != '\0')
        fake_say("found %s", load->checkpoint);
    if (load->checkpoint[0] != '\0')
        return false;
    load->driver = t;
    fake_say("started import 7");
    assert_int_equal(load->save(load, "import 7", fake_saved, &err), ERR_NONE);
    return true;
}

static void fake_table_idle(uv_idle_t *idle)
{
    struct fake_table *t = idle->data;
    if (t->connect_cb != NULL) {
        dest_cb *cb = t->connect_cb;
        struct err err = {0};
        t->connect_cb = NULL;
        if (fake.connect_next < fake.connect_count)
            err = fake.connect_script[fake.connect_next++];
        cb(t->connect_arg, err.code != ERR_NONE ? &err : NULL);
        return;
    }
    struct load *load = t->queue;
    while (load != NULL && fake.hold && !load->stop)
        load = load->next;
    if (load != NULL) {
        LL_DELETE(t->queue, load);
        if (fake_walks_on(t, load))
            return;
        fake_run_load(load);
        load->finished(load);
        return;
    }
    if (t->queue == NULL)
        uv_idle_stop(idle);
}

static enum err_code fake_table_open(const void *options, const struct dest_env *env, uv_loop_t *loop, void **ret_state,
                                     struct err *err)
{
    struct fake_table *t = calloc(1, sizeof *t);
    (void)options;
    (void)env;
    if (t == NULL)
        return err_nomem(err);
    uv_idle_init(loop, &t->idle);
    t->idle.data = t;
    *ret_state = t;
    return ERR_NONE;
}
static void fake_table_connect(void *state, dest_cb *cb, void *arg)
{
    struct fake_table *t = state;
    t->connect_cb = cb;
    t->connect_arg = arg;
    uv_idle_start(&t->idle, fake_table_idle);
}
static void fake_table_health(void *state, struct dest_health *ret)
{
    (void)state;
    snprintf(ret->where, sizeof ret->where, "nowhere");
    snprintf(ret->identity, sizeof ret->identity, "%s", fake.identity);
    ret->is_open = true;
}
static enum err_code fake_table_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                                     struct err *err)
{
    (void)policy;
    (void)err;
    snprintf(ret, size, "%s", name);
    snprintf(ret_key, size, "%s", name);
    return ERR_NONE;
}
static enum err_code fake_table_begin(void *state, struct load *load, struct err *err)
{
    struct fake_table *t = state;
    (void)err;
    err_clear(&load->err);
    load->next = NULL;
    LL_APPEND(t->queue, load);
    uv_idle_start(&t->idle, fake_table_idle);
    return ERR_NONE;
}
static void fake_table_abort(void *state, struct load *load)
{
    struct fake_table *t = state;
    atomic_store(&load->stop, true);
    uv_idle_start(&t->idle, fake_table_idle);
}
static void fake_table_on_close(uv_handle_t *handle)
{
    struct fake_table *t = handle->data;
    void (*closed)(void *) = t->closed;
    void *arg = t->closed_arg;
    assert_null(t->queue);
    assert_null(t->connect_cb);
    free(t);
    closed(arg);
}
static void fake_table_close(void *state, void (*closed)(void *arg), void *arg)
{
    struct fake_table *t = state;
    t->closed = closed;
    t->closed_arg = arg;
    uv_close((uv_handle_t *)&t->idle, fake_table_on_close);
}
static const char *const fake_flow_defaults[] = {"table", "{path_stem}", "on_schema_change", "recreate", NULL};
static struct dest_ops fake_table_ops = {
    .type = "sqlite",
    .summary = "x",
    .options = fake_table_table,
    .options_size = sizeof(struct fake_table_options),
    .url_scheme = "sqlite:",
    .quick_name = "lite",
    .quick_flow = "file2sql",
    .flow_defaults = fake_flow_defaults,
    .accepts_rows = true,
    .runs_in_order = true,
    .keeps_checkpoints = true,
    .max_small = 64,
    .open = fake_table_open,
    .connect = fake_table_connect,
    .health = fake_table_health,
    .table_name = fake_table_name,
    .begin = fake_table_begin,
    .abort = fake_table_abort,
    .close = fake_table_close,
};

static const struct source_ops *const fake_sources[] = {&fake_dir_ops, NULL};
static const struct dest_ops *const fake_dests[] = {&fake_table_ops, NULL};
static const struct config_drivers fake_drivers = {fake_sources, fake_dests};

#endif
