/* test_job.c -- the engine, between a fake source and a fake destination. */
#include "alloc_fault.h"
#include "job_fakes.h"
#include "job_internal.h"

#include "log.h"
#include "text.h"

struct fixture {
    char dir[64];
    uv_loop_t loop;
    struct ledger *ledger;
    struct engine *engine;
    struct config *config;
    bool drained, closed, ledger_closed, idle;
};

static void write_file(const struct fixture *f, const char *name, const char *text)
{
    char path[PATH_MAX], *slash;
    snprintf(path, sizeof path, "%s/in/%s", f->dir, name);
    for (slash = strchr(path + strlen(f->dir) + 4, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void remove_file(const struct fixture *f, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/in/%s", f->dir, name);
    assert_int_equal(unlink(path), 0);
}

static bool file_exists(const struct fixture *f, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", f->dir, name);
    return access(path, F_OK) == 0;
}

static void tell(const char *path, enum found_how how, const char *from)
{
    struct found found = {.path = path, .from = from, .how = how};
    bool exists;
    fake_stat(the_dir, path, &found.id, &exists);
    the_dir->sink.on_found(the_dir->sink.arg, &found);
}

static void on_idle(void *arg)
{
    ((struct fixture *)arg)->idle = true;
}

static int make_config(struct fixture *f, const char *flow_options)
{
    char path[128], text[2048];
    struct err err = {0};
    char *errors = NULL;
    snprintf(path, sizeof path, "%s/chute.yaml", f->dir);
    FILE *file = fopen(path, "w");
    snprintf(text, sizeof text,
             "state: state\nretry: {first: 10ms, max: 20ms}\nsources: {inbox: {type: directory, path: in}}\n"
             "destinations: {lite: {type: sqlite, path: x.db}}\n"
             "flows:\n  - {name: f, from: inbox, to: lite, incomplete_after: 50ms, %s}\n",
             flow_options);
    fputs(text, file);
    fclose(file);
    if (config_load(path, &fake_drivers, &f->config, &errors, &err) != ERR_NONE)
        print_error("%s\n", errors != NULL ? errors : err.text);
    free(errors);
    return f->config == NULL ? -1 : 0;
}

static enum err_code try_start(struct fixture *f, struct err *err)
{
    char path[128];
    struct ledger_opened opened;
    snprintf(path, sizeof path, "%s/state/ledger.db", f->dir);
    const struct ledger_options options = {.path = path, .history_keep_ms = 1000000000};
    f->idle = f->drained = f->closed = f->ledger_closed = false;
    if (ledger_open(&f->loop, &options, &f->ledger, &opened, err) != ERR_NONE)
        return err->code;
    const struct engine_options engine = {
        .loop = &f->loop, .config = f->config, .ledger = f->ledger, .once = true, .on_idle = on_idle, .arg = f};
    return engine_open(&engine, &f->engine, err);
}

static void start(struct fixture *f)
{
    struct err err = {0};
    enum err_code code = try_start(f, &err);
    if (code != ERR_NONE)
        print_error("%s\n", err.text);
    assert_int_equal(code, ERR_NONE);
}

static void on_true(void *arg)
{
    *(bool *)arg = true;
}

/* What waits for the ledger does not wait a second each time. */
int __real_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat);
int __wrap_uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout, uint64_t repeat)
{
    return __real_uv_timer_start(timer, cb, timeout == LEDGER_RETRY_MS ? 50 : timeout, repeat);
}

static void on_guard(uv_timer_t *guard)
{
    (void)guard;
}

/* One turn that waits for something to happen, but not long: another thread's progress may be what is waited for. */
static void turn(struct fixture *f)
{
    uv_timer_t guard;
    uv_timer_init(&f->loop, &guard);
    uv_timer_start(&guard, on_guard, 5, 0);
    uv_run(&f->loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&guard, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT); /* closes it: it is ours, not the loop's */
}

static void turn_until(struct fixture *f, const bool *flag)
{
    uint64_t end = clock_mono_ms() + 20000;
    while (!*flag && clock_mono_ms() < end)
        turn(f);
    assert_true(*flag);
}

static void stop_within(struct fixture *f, uint64_t grace_ms)
{
    if (f->engine != NULL) {
        engine_drain(f->engine, grace_ms, on_true, &f->drained);
        turn_until(f, &f->drained);
        engine_close(f->engine, on_true, &f->closed);
        turn_until(f, &f->closed);
    }
    if (f->ledger != NULL) {
        ledger_close(f->ledger, on_true, &f->ledger_closed);
        turn_until(f, &f->ledger_closed);
    }
    f->engine = NULL;
    f->ledger = NULL;
}

static void stop(struct fixture *f)
{
    stop_within(f, 5000);
}

/* All there is to do now is done. */
static void settle_all(struct fixture *f)
{
    turn_until(f, &f->idle);
}

/* Whoever reads the content of a file waits as long as the test holds it; and how much was read. */
static _Atomic bool holds_reading, is_reading;
static _Atomic uint64_t read_bytes;

static void before_reading(size_t size)
{
    if (size < 4096)
        return;
    atomic_store(&is_reading, true);
    for (int i = 0; i < 20000 && atomic_load(&holds_reading); i++)
        usleep(1000);
}

ssize_t __real_pread(int fd, void *buf, size_t size, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t size, off_t offset);
ssize_t __wrap_pread(int fd, void *buf, size_t size, off_t offset)
{
    before_reading(size);
    ssize_t n = __real_pread(fd, buf, size, offset);
    read_bytes += n > 0 ? (uint64_t)n : 0;
    return n;
}
ssize_t __real_pread64(int fd, void *buf, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t size, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t size, off_t offset)
{
    before_reading(size);
    ssize_t n = __real_pread64(fd, buf, size, offset);
    read_bytes += n > 0 ? (uint64_t)n : 0;
    return n;
}

static void begin(struct fixture *f, const char *flow_options)
{
    char command[160];
    memset(&fake, 0, sizeof fake);
    snprintf(fake.identity, sizeof fake.identity, "db-1");
    snprintf(fake_identity, sizeof fake_identity, "1:1");
    strcpy(f->dir, "/tmp/chute-job-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(command, sizeof command, "mkdir %s/in %s/state", f->dir, f->dir);
    assert_int_equal(system(command), 0);
    uv_loop_init(&f->loop);
    assert_int_equal(make_config(f, flow_options), 0);
}

static void end(struct fixture *f)
{
    char command[160];
    stop(f);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    config_unref(f->config);
    snprintf(command, sizeof command, "rm -rf %s", f->dir);
    assert_int_equal(system(command), 0);
}

struct row_copy {
    int state;
    char reason[512];
    bool found;
};
static bool copy_row(void *arg, const struct ledger_row *row)
{
    struct row_copy *c = arg;
    c->state = row->state;
    c->found = true;
    snprintf(c->reason, sizeof c->reason, "%s", row->reason);
    return false;
}
static struct row_copy row_of(const struct fixture *f, const char *path)
{
    char ledger[128];
    struct ledger_tx *tx;
    struct err err = {0};
    struct row_copy copy = {.state = -1};
    snprintf(ledger, sizeof ledger, "%s/state/ledger.db", f->dir);
    assert_int_equal(ledger_tx_open(ledger, true, &tx, &err), ERR_NONE);
    const struct ledger_query q = {.path = path};
    assert_int_equal(ledger_each(tx, &q, copy_row, &copy, &err), ERR_NONE);
    ledger_tx_close(tx, false, &err);
    return copy;
}

static void turn_until_row(struct fixture *f, const char *path, enum file_state want)
{
    uint64_t end = clock_mono_ms() + 20000;
    while (row_of(f, path).state != (int)want && clock_mono_ms() < end)
        for (int i = 0; i < 100; i++)
            uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(row_of(f, path).state, want);
}

static void assert_log(size_t i, const char *want)
{
    assert_true(i < fake.log_count);
    assert_string_equal(fake.log[i], want);
}

/* ---- the tests ---- */

static void a_file_found_by_the_scan_is_loaded_once(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "include: ['**/*.csv']");
    write_file(&f, "a.csv", "x,y\n1,2\n3,4\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    start(&f); /* again: nothing */
    settle_all(&f);
    assert_int_equal(fake.log_count, 1);
    assert_log(0, "load a.csv -> a (2 rows)");
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    end(&f);
}

/* More than one turn of looks; while the oldest are looked at, in the second, there is time to load the others. */
static void what_the_first_scan_found_goes_into_a_shared_table_oldest_first(void **state)
{
    struct fixture f = {0};
    char path[160], want[64];
    (void)state;
    begin(&f, "load: append, table: t");
    const int count = 200;
    for (int i = 0; i < count; i++) {
        snprintf(want, sizeof want, "f%03d.csv", i);
        write_file(&f, want, "x\n1\n");
        snprintf(path, sizeof path, "%s/in/%s", f.dir, want);
        const struct timespec times[2] = {{1700000000, 0}, {1700000000 + i, 0}};
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    }
    fake_slow_until = "f060.csv";
    start(&f);
    settle_all(&f);
    fake_slow_until = NULL;
    assert_int_equal(fake.log_count, count);
    for (int i = 0; i < count; i++) {
        snprintf(want, sizeof want, "load f%03d.csv -> t (1 rows)", i);
        assert_log((size_t)i, want);
    }
    end(&f);
}

static void a_retryable_refusal_is_tried_again(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    fake.script[0] = (struct err){ERR_REMOTE, true, "503"};
    fake.script[1] = (struct err){ERR_REMOTE, true, "503"};
    fake.script_count = 2;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    assert_int_equal(fake.log_count, 3);
    assert_log(2, "load a.csv -> a (1 rows)");
    end(&f);
}

static void bad_input_is_quarantined_with_its_reason_and_does_not_hold_others(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    write_file(&f, "a.csv", "x,y\n1,2\n1,2,3\n");
    write_file(&f, "b.csv", "x,y\n1,2\n");
    start(&f);
    settle_all(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_QUARANTINED);
    assert_non_null(strstr(row_of(&f, "a.csv").reason, "line 3"));
    assert_int_equal(row_of(&f, "b.csv").state, STATE_LOADED);
    assert_true(file_exists(&f, "state/quarantine/f/a.csv.error.json"));
    assert_true(file_exists(&f, "in/a.csv"));
    stop(&f);
    write_file(&f, "a.csv", "x,y\n1,2\n"); /* mended: loaded, and the reason goes */
    start(&f);
    settle_all(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    assert_false(file_exists(&f, "state/quarantine/f/a.csv.error.json"));
    end(&f);
}

static void an_empty_file_is_skipped(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    write_file(&f, "a.csv", "");
    start(&f);
    settle_all(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_SKIPPED);
    assert_int_equal(fake.log_count, 0);
    end(&f);
}

static void an_unfinished_file_waits_and_is_then_quarantined_as_incomplete(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    write_file(&f, "a.csv", "x,y\n1,\"open\n");
    start(&f);
    settle_all(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_QUARANTINED);
    assert_non_null(strstr(row_of(&f, "a.csv").reason, "incomplete"));
    end(&f);
}

static void a_refusal_of_ourselves_blocks_the_destination_not_the_file(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    fake.script[0] = (struct err){ERR_DENIED, false, "read-only"};
    fake.script_count = 1;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    while (fake.log_count < 1)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    turn_until_row(&f, "a.csv", STATE_QUEUED);
    struct arena arena;
    struct engine_status status;
    struct err err = {0};
    arena_init(&arena);
    assert_int_equal(engine_status(f.engine, &arena, &status, &err), ERR_NONE);
    assert_string_equal(status.dests[0].state, "blocked");
    assert_false(status.is_ready);
    arena_done(&arena);
    end(&f);
}

static void count_cb(void *arg, uint64_t count, uint64_t away, const struct err *err)
{
    assert_null(err);
    *(bool *)arg = true;
    fake.parsed[FAKE_LOG - 1] = count;
    fake.parsed[FAKE_LOG - 2] = away;
}

static void retry_queues_what_is_quarantined_again(void **state)
{
    struct fixture f = {0};
    struct err err = {0};
    bool answered = false;
    (void)state;
    begin(&f, "load: replace");
    fake.script[0] = (struct err){ERR_INPUT, false, "no"};
    fake.script_count = 1;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_QUARANTINED);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/in/a.csv", f.dir);
    const char *paths[] = {path};
    assert_int_equal(engine_retry(f.engine, paths, 1, false, count_cb, &answered, &err), ERR_NONE);
    turn_until(&f, &answered);
    assert_int_equal(fake.parsed[FAKE_LOG - 1], 1);
    while (fake.log_count < 2)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    stop(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    end(&f);
}

static void three_failures_open_the_breaker_and_a_probe_closes_it(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    for (int i = 0; i < 5; i++)
        fake.script[i] = (struct err){ERR_REMOTE, true, "gone fishing"};
    fake.script_count = 5;
    fake.connect_script[1] = (struct err){ERR_REMOTE, true, "still out"};
    fake.connect_count = 2;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    assert_true(fake.connect_next == 2);
    assert_log(5, "load a.csv -> a (1 rows)");
    end(&f);
}

/* What one failing file costs: time counts only while its destination answered somebody. */
static void a_file_is_given_up_when_its_destination_answered_and_it_failed_for_too_long(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    f.config->dests[0].retry.give_up_after = 1;
    for (int i = 0; i < 32; i++)
        fake.script[i] = (struct err){ERR_REMOTE, true, "always this one"};
    fake.script_count = 32;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f); /* the breaker opens, each probe is answered, and the file fails again */
    stop(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_QUARANTINED);
    assert_non_null(strstr(row_of(&f, "a.csv").reason, "given up after"));
    assert_non_null(strstr(row_of(&f, "a.csv").reason, "always this one"));
    assert_true(fake.script_next < 32);
    end(&f);
}

static void an_outage_gives_nothing_up_however_long(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    f.config->dests[0].retry.give_up_after = 1;
    for (int i = 0; i < 3; i++)
        fake.script[i] = (struct err){ERR_REMOTE, true, "out"};
    fake.script_count = 3;
    for (int i = 1; i < 8; i++)
        fake.connect_script[i] = (struct err){ERR_REMOTE, true, "still out"};
    fake.connect_count = 8;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    assert_int_equal(fake.connect_next, 8);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    assert_log(3, "load a.csv -> a (1 rows)");
    end(&f);
}

static void waits_are_random_up_to_a_bound_that_grows_to_its_limit(void **state)
{
    struct fixture f = {0};
    const struct retry_options r = {.first = 1000, .factor = 2, .max = 5000};
    const uint64_t bound[] = {1000, 2000, 4000, 5000, 5000};
    (void)state;
    begin(&f, "load: replace");
    start(&f);
    for (int tries = 1; tries <= 5; tries++) {
        uint64_t least = UINT64_MAX, most = 0;
        for (int i = 0; i < 2000; i++) {
            uint64_t wait = backoff_ms(f.engine, &r, tries);
            least = wait < least ? wait : least;
            most = wait > most ? wait : most;
        }
        assert_in_range(least, 10, bound[tries - 1] / 10); /* full jitter: from nothing ... */
        assert_in_range(most, bound[tries - 1] * 9 / 10, bound[tries - 1]);
    }
    assert_true(backoff_ms(f.engine, &r, INT64_MAX) <= 5000);
    end(&f);
}

static void a_change_in_place_during_the_load_abandons_it_and_takes_the_new_version(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    fake.hold = true;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    for (int i = 0; i < 3000; i++)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    write_file(&f, "a.csv", "x\n1\n2\n");
    tell("a.csv", FOUND_WRITING, NULL);
    tell("a.csv", FOUND_CLOSED, NULL);
    fake.hold = false;
    settle_all(&f);
    assert_int_equal(fake.log_count, 1);
    assert_log(0, "load a.csv -> a (2 rows)");
    end(&f);
}

static void a_kill_after_the_commit_repeats_nothing(void **state)
{
    struct fixture f = {0};
    char path[128];
    struct ledger_tx *tx;
    struct ledger_row *row;
    struct arena arena;
    struct err err = {0};
    (void)state;
    begin(&f, "load: append, table: t");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    /* as if the record had never been written: the row still in `loading`, no versions */
    snprintf(path, sizeof path, "%s/state/ledger.db", f.dir);
    arena_init(&arena);
    assert_int_equal(ledger_tx_open(path, false, &tx, &err), ERR_NONE);
    assert_int_equal(ledger_get(tx, "inbox", "a.csv", "f", &arena, &row, &err), ERR_NONE);
    assert_int_equal(ledger_delete(tx, row->id, &err), ERR_NONE);
    row->id = 0;
    row->state = STATE_LOADING;
    row->was_loaded = row->has_hash = false;
    assert_int_equal(ledger_put(tx, row, &err), ERR_NONE);
    assert_int_equal(ledger_tx_close(tx, true, &err), ERR_NONE);
    arena_done(&arena);
    start(&f);
    settle_all(&f);
    assert_log(1, "resumed a.csv");
    assert_int_equal(fake.key_count, 1);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    end(&f);
}

static void a_remote_step_that_was_begun_is_found_again_not_begun_twice(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace");
    fake.walks = true;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    uint64_t end_ms = clock_mono_ms() + 20000;
    while (fake.log_count < 1 && clock_mono_ms() < end_ms)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    fake.hold = true; /* saved, and then nothing: cut off */
    for (int i = 0; i < 2000; i++)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    stop_within(&f, 0);
    fake.hold = false;
    start(&f);
    settle_all(&f);
    assert_log(0, "started import 7");
    assert_log(fake.log_count - 2, "found import 7");
    assert_log(fake.log_count - 1, "load a.csv -> a (1 rows)");
    stop(&f);
    usleep(15000);
    write_file(&f, "a.csv", "x\n2\n"); /* another version knows nothing of it */
    start(&f);
    settle_all(&f);
    assert_log(fake.log_count - 2, "started import 7");
    end(&f);
}

static void a_deleted_file_takes_its_table_along_only_where_asked(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace, on_delete: drop");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    remove_file(&f, "a.csv");
    start(&f);
    settle_all(&f);
    assert_log(1, "drop a");
    assert_int_equal(row_of(&f, "a.csv").state, STATE_GONE);
    end(&f);
}

static void a_file_deleted_while_its_load_fails_takes_its_table_along(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace, on_delete: drop");
    fake.script[0] = (struct err){ERR_REMOTE, true, "the answer to the commit was lost"};
    fake.script_count = 1;
    fake.hold = true;
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    uint64_t end_ms = clock_mono_ms() + 20000;
    while ((f.engine->jobs == NULL || !f.engine->jobs->is_begun) && clock_mono_ms() < end_ms)
        turn(&f);
    remove_file(&f, "a.csv");
    tell("a.csv", FOUND_GONE, NULL);
    turn_until_row(&f, "a.csv", STATE_GONE);
    fake.hold = false;
    while (fake.log_count < 2 && clock_mono_ms() < end_ms)
        turn(&f);
    assert_log(0, "load a.csv: the answer to the commit was lost");
    assert_log(1, "drop a");
    assert_int_equal(row_of(&f, "a.csv").state, STATE_GONE);
    end(&f);
}

static void a_root_that_is_not_the_one_we_know_deletes_nothing(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace, on_delete: drop");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    remove_file(&f, "a.csv");
    snprintf(fake_identity, sizeof fake_identity, "2:2");
    start(&f);
    settle_all(&f);
    assert_int_equal(fake.log_count, 1);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    end(&f);
}

static void a_mass_delete_is_held_until_it_is_confirmed(void **state)
{
    struct fixture f = {0};
    struct err err = {0};
    char name[32];
    bool answered = false;
    (void)state;
    begin(&f, "load: replace, on_delete: drop");
    for (int i = 0; i < 12; i++) {
        snprintf(name, sizeof name, "f%02d.csv", i);
        write_file(&f, name, "x\n1\n");
    }
    start(&f);
    settle_all(&f);
    stop(&f);
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "f%02d.csv", i);
        remove_file(&f, name);
    }
    start(&f);
    settle_all(&f);
    assert_int_equal(fake.log_count, 12);
    assert_int_equal(engine_retry_deletes(f.engine, count_cb, &answered, &err), ERR_NONE);
    while (fake.log_count < 20)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    assert_int_equal(fake.parsed[FAKE_LOG - 1], 8);
    end(&f);
}

static void a_mirrored_rename_loads_the_new_name_before_it_drops_the_old(void **state)
{
    struct fixture f = {0};
    char from[128], to[128];
    (void)state;
    begin(&f, "load: replace, on_delete: drop");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    f.idle = false;
    snprintf(from, sizeof from, "%s/in/a.csv", f.dir);
    snprintf(to, sizeof to, "%s/in/b.csv", f.dir);
    assert_int_equal(rename(from, to), 0);
    tell("b.csv", FOUND_RENAMED, "a.csv");
    while (fake.log_count < 3)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    assert_log(1, "load b.csv -> b (1 rows)");
    assert_log(2, "drop a");
    end(&f);
}

static void a_renamed_file_that_is_deleted_at_once_takes_its_table_along(void **state)
{
    struct fixture f = {0};
    char from[128], to[128];
    (void)state;
    begin(&f, "load: replace, on_delete: drop");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    snprintf(from, sizeof from, "%s/in/a.csv", f.dir);
    snprintf(to, sizeof to, "%s/in/b.csv", f.dir);
    assert_int_equal(rename(from, to), 0);
    tell("b.csv", FOUND_RENAMED, "a.csv");
    assert_int_equal(unlink(to), 0);
    tell("b.csv", FOUND_GONE, NULL);
    uint64_t end_ms = clock_mono_ms() + 20000;
    while (fake.log_count < 2 && clock_mono_ms() < end_ms)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    assert_log(1, "drop a");
    end(&f);
}

static void a_renamed_file_that_was_appended_is_not_appended_twice(void **state)
{
    struct fixture f = {0};
    char from[128], to[128];
    (void)state;
    begin(&f, "load: append, table: t");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    snprintf(from, sizeof from, "%s/in/a.csv", f.dir);
    snprintf(to, sizeof to, "%s/in/b.csv", f.dir);
    assert_int_equal(rename(from, to), 0); /* nobody told us: the inode does */
    start(&f);
    settle_all(&f);
    stop(&f);
    for (size_t i = 1; i < fake.log_count; i++)
        assert_null(strstr(fake.log[i], "load"));
    assert_int_equal(row_of(&f, "b.csv").state, STATE_SKIPPED);
    assert_false(row_of(&f, "a.csv").found);
    end(&f);
}

static void two_files_of_one_table_leave_it_to_the_first(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: replace, table: '{stem}', on_delete: drop");
    write_file(&f, "a/same.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    write_file(&f, "b/same.csv", "x\n2\n");
    start(&f);
    settle_all(&f);
    struct row_copy row = row_of(&f, "b/same.csv");
    assert_int_equal(row.state, STATE_QUARANTINED);
    assert_non_null(strstr(row.reason, "a/same.csv"));
    assert_non_null(strstr(row.reason, "b/same.csv"));
    stop(&f);
    assert_true(file_exists(&f, "state/quarantine/f/b/same.csv.error.json"));
    remove_file(&f, "a/same.csv"); /* the owner goes: the newcomer's turn */
    start(&f);
    settle_all(&f);
    assert_int_equal(row_of(&f, "b/same.csv").state, STATE_LOADED);
    end(&f);
}

static void content_that_returns_is_loaded_again_where_it_replaces(void **state)
{
    struct fixture f = {0};
    static const char *const contents[] = {"x\n1\n", "x\n2\n", "x\n1\n"};
    (void)state;
    begin(&f, "load: replace");
    for (int i = 0; i < 3; i++) {
        write_file(&f, "a.csv", contents[i]);
        start(&f);
        settle_all(&f);
        stop(&f);
        usleep(15000);
    }
    assert_int_equal(fake.log_count, 3);
    end(&f);
}

static void what_was_appended_and_changed_is_quarantined_unless_the_tail_is_asked_for(void **state)
{
    struct fixture f = {0};
    (void)state;
    for (int tail = 0; tail < 2; tail++) {
        begin(&f, tail ? "load: append, table: t, on_changed: tail" : "load: append, table: t");
        write_file(&f, "a.csv", "x\n1\n");
        start(&f);
        settle_all(&f);
        stop(&f);
        write_file(&f, "a.csv", "x\n1\n2\n3\n");
        start(&f);
        settle_all(&f);
        stop(&f);
        assert_int_equal(row_of(&f, "a.csv").state, tail ? STATE_LOADED : STATE_QUARANTINED);
        if (tail)
            assert_log(1, "load a.csv -> t (2 rows)");
        end(&f);
        memset(&f, 0, sizeof f);
    }
}

static void a_moved_file_is_no_delete_and_is_in_one_place(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: append, table: t, after_success: {move: done}");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    assert_true(file_exists(&f, "done/a.csv"));
    assert_false(file_exists(&f, "in/a.csv"));
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    start(&f);
    settle_all(&f);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    stop(&f);
    write_file(&f, "a.csv", "x\n2\n"); /* a new file of an old name is no changed one */
    start(&f);
    settle_all(&f);
    stop(&f);
    assert_log(fake.log_count - 1, "load a.csv -> t (1 rows)");
    assert_int_equal(fake.log_count, 2);
    assert_true(file_exists(&f, "done/a.csv.1"));
    end(&f);
}

static void another_database_gets_everything_again(void **state)
{
    struct fixture f = {0};
    (void)state;
    begin(&f, "load: append, table: t");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    stop(&f);
    snprintf(fake.identity, sizeof fake.identity, "db-2");
    start(&f);
    settle_all(&f);
    assert_int_equal(fake.log_count, 2);
    end(&f);
}

static void text_cb(void *arg, const char *text, const struct err *err)
{
    assert_null(err);
    assert_non_null(strstr(text, "dropped a"));
    *(bool *)arg = true;
}

static void reset_drops_what_the_flow_made_and_pauses_it(void **state)
{
    struct fixture f = {0};
    struct err err = {0};
    bool answered = false;
    (void)state;
    begin(&f, "load: replace");
    write_file(&f, "a.csv", "x\n1\n");
    start(&f);
    settle_all(&f);
    assert_int_equal(engine_reset(f.engine, "f", text_cb, &answered, &err), ERR_NONE);
    turn_until(&f, &answered);
    assert_log(1, "forget a");
    assert_false(row_of(&f, "a.csv").found);
    answered = false;
    assert_int_equal(engine_retry(f.engine, NULL, 0, true, count_cb, &answered, &err), ERR_NONE);
    turn_until(&f, &answered);
    while (fake.log_count < 3)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    assert_log(2, "load a.csv -> a (1 rows)");
    end(&f);
}

static void a_reload_keeps_what_runs_and_repeats_nothing(void **state)
{
    struct fixture f = {0};
    struct err err = {0};
    (void)state;
    begin(&f, "load: replace");
    write_file(&f, "a.csv", "x\n1\n");
    fake.hold = true;
    start(&f);
    for (int i = 0; i < 3000; i++)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    struct config *old = f.config;
    f.config = NULL;
    assert_int_equal(make_config(&f, "load: replace, exclude: ['z*']"), 0);
    assert_int_equal(engine_reload(f.engine, f.config, &err), ERR_NONE);
    config_unref(old);
    fake.hold = false;
    settle_all(&f);
    assert_int_equal(fake.log_count, 1);
    end(&f);
}

/* Its events are of our own making: nobody looks for the file, and its row stays what it is. */
static void a_file_that_chute_moves_itself_is_not_looked_for(void **state)
{
    struct fixture f = {0};
    bool is_told = false;
    (void)state;
    begin(&f, "after_success: {move: done}");
    write_file(&f, "a.csv", "x\n1\n");
    fake.hold = true;
    start(&f);
    turn_until_row(&f, "a.csv", STATE_LOADING);
    for (int i = 0; i < 50; i++) /* the sweep behind the first scan has looked */
        turn(&f);
    fake_asked = 0;
    fake.hold = false;
    uint64_t end_ms = clock_mono_ms() + 20000;
    while (!f.idle && clock_mono_ms() < end_ms) {
        turn(&f);
        if (!is_told && !file_exists(&f, "in/a.csv")) { /* the job waits for the ledger at least for one more turn */
            tell("a.csv", FOUND_GONE, NULL);
            is_told = true;
        }
    }
    settle_all(&f);
    assert_true(is_told);
    assert_true(file_exists(&f, "done/a.csv"));
    assert_int_equal(fake_asked, 0);
    assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
    end(&f);
}

/* More than go to the pool at once; the fake destination sees them in the order of their age. */
static void many_small_files_are_loaded_in_order_and_moved(void **state)
{
    struct fixture f = {0};
    char name[32], want[64];
    (void)state;
    begin(&f, "after_success: {move: done}, table: t, load: append");
    for (int i = 0; i < 100; i++) {
        const struct timespec times[2] = {{.tv_sec = 1000000 - i}, {.tv_sec = 1000000 - i}};
        char path[160];
        snprintf(name, sizeof name, "d%d/f%02d.csv", i % 3, i);
        write_file(&f, name, "x\n1\n");
        snprintf(path, sizeof path, "%s/in/%s", f.dir, name);
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    }
    start(&f);
    settle_all(&f);
    for (int i = 0; i < 100; i++) {
        int of = 99 - i;
        snprintf(want, sizeof want, "load d%d/f%02d.csv -> t (1 rows)", of % 3, of);
        assert_log((size_t)i, want);
        snprintf(name, sizeof name, "done/d%d/f%02d.csv", i % 3, i);
        assert_true(file_exists(&f, name));
    }
    end(&f);
}

/* Stop at every turn of the loop: all handles close, nothing leaks, and the next start finishes the work. */
static void a_stop_at_any_moment_loses_and_repeats_nothing(void **state)
{
    struct fixture f = {0};
    (void)state;
    for (int turns = 0; turns < 100; turns += 1 + turns / 20) {
        begin(&f, "load: append, table: t, on_delete: ignore, after_success: {move: done}");
        write_file(&f, "a.csv", "x\n1\n");
        write_file(&f, "b.csv", "x\n1,2\n");
        start(&f);
        for (int i = 0; i < turns; i++)
            uv_run(&f.loop, UV_RUN_NOWAIT);
        usleep((useconds_t)(turns % 7) * 1000);
        stop_within(&f, turns % 2 == 0 ? 0 : 5000);
        start(&f);
        settle_all(&f);
        stop(&f);
        size_t loads = 0;
        for (size_t i = 0; i < fake.log_count; i++)
            loads += strncmp(fake.log[i], "load a.csv", 10) == 0;
        assert_int_equal(loads, 1);
        assert_int_equal(row_of(&f, "b.csv").state, STATE_QUARANTINED);
        assert_true(file_exists(&f, "done/a.csv"));
        end(&f);
        memset(&f, 0, sizeof f);
    }
}

/* The 1st, 2nd, 3rd … allocation fails: nothing crashes or leaks, and the next start finishes the work, once. */
static void an_allocation_that_fails_loses_and_repeats_nothing(void **state)
{
    (void)state;
    bool was_hit = true;
    for (long nth = 1; was_hit; nth += nth < 150 ? 1 : 13) {
        struct fixture f = {0};
        struct err err = {0};
        begin(&f, "load: append, table: t, after_success: {move: done}");
        write_file(&f, "a.csv", "x\n1\n");
        write_file(&f, "b.csv", "x\n1,2\n");
        alloc_fault_set(nth);
        uint64_t end_ms = clock_mono_ms() + 20000;
        if (try_start(&f, &err) == ERR_NONE)
            for (bool is_noted = false; !f.idle && clock_mono_ms() < end_ms; turn(&f)) {
                if (!is_noted && alloc_fault_hit()) /* what comes of it comes soon: retries wait 20 ms at most here */
                    end_ms = clock_mono_ms() + 80;
                is_noted = alloc_fault_hit();
            }
        was_hit = alloc_fault_hit();
        alloc_fault_set(0);
        stop_within(&f, 0);
        start(&f);
        settle_all(&f);
        stop(&f);
        size_t loads = 0;
        for (size_t i = 0; i < fake.log_count; i++)
            loads += strncmp(fake.log[i], "load a.csv ->", 13) == 0;
        if (loads != 1)
            print_error("allocation %ld\n", nth);
        assert_int_equal(loads, 1);
        assert_int_equal(row_of(&f, "a.csv").state, STATE_LOADED);
        assert_int_equal(row_of(&f, "b.csv").state, STATE_QUARANTINED);
        assert_true(file_exists(&f, "done/a.csv"));
        end(&f);
    }
}

/* A destination that takes files gets them read to their end first, and a large one takes its time. */
static void a_file_that_is_read_before_it_is_sent_can_be_stopped(void **state)
{
    (void)state;
    enum { LINES = 4 * 1024 * 1024 / 16 };
    struct fixture f = {0};
    begin(&f, "table: t, types: text");
    fake_table_ops.accepts_rows = false;
    char *text = malloc(LINES * 16 + 1);
    assert_non_null(text);
    for (size_t i = 0; i < LINES; i++)
        memcpy(text + 16 * i, "0123456789abcde\n", 16);
    text[LINES * 16] = '\0';
    write_file(&f, "a.csv", text);
    free(text);
    atomic_store(&is_reading, false);
    atomic_store(&holds_reading, true);
    start(&f);
    for (uint64_t end_ms = clock_mono_ms() + 20000; !atomic_load(&is_reading) && clock_mono_ms() < end_ms;)
        turn(&f);
    assert_true(atomic_load(&is_reading));
    read_bytes = 0;
    engine_drain(f.engine, 0, on_true, &f.drained);
    for (uint64_t end_ms = clock_mono_ms() + 20000; !f.engine->jobs->load.stop && clock_mono_ms() < end_ms;)
        turn(&f);
    atomic_store(&holds_reading, false);
    turn_until(&f, &f.drained);
    assert_in_range(read_bytes, 1, 2 * 1024 * 1024); /* its head, and not its 4 MiB */
    assert_int_equal(fake.log_count, 0);
    engine_close(f.engine, on_true, &f.closed);
    turn_until(&f, &f.closed);
    f.engine = NULL;
    fake_table_ops.accepts_rows = true;
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_found_by_the_scan_is_loaded_once),
        cmocka_unit_test(what_the_first_scan_found_goes_into_a_shared_table_oldest_first),
        cmocka_unit_test(a_retryable_refusal_is_tried_again),
        cmocka_unit_test(bad_input_is_quarantined_with_its_reason_and_does_not_hold_others),
        cmocka_unit_test(an_empty_file_is_skipped),
        cmocka_unit_test(an_unfinished_file_waits_and_is_then_quarantined_as_incomplete),
        cmocka_unit_test(a_refusal_of_ourselves_blocks_the_destination_not_the_file),
        cmocka_unit_test(retry_queues_what_is_quarantined_again),
        cmocka_unit_test(three_failures_open_the_breaker_and_a_probe_closes_it),
        cmocka_unit_test(a_file_is_given_up_when_its_destination_answered_and_it_failed_for_too_long),
        cmocka_unit_test(an_outage_gives_nothing_up_however_long),
        cmocka_unit_test(waits_are_random_up_to_a_bound_that_grows_to_its_limit),
        cmocka_unit_test(a_change_in_place_during_the_load_abandons_it_and_takes_the_new_version),
        cmocka_unit_test(a_kill_after_the_commit_repeats_nothing),
        cmocka_unit_test(a_remote_step_that_was_begun_is_found_again_not_begun_twice),
        cmocka_unit_test(a_deleted_file_takes_its_table_along_only_where_asked),
        cmocka_unit_test(a_file_deleted_while_its_load_fails_takes_its_table_along),
        cmocka_unit_test(a_root_that_is_not_the_one_we_know_deletes_nothing),
        cmocka_unit_test(a_mass_delete_is_held_until_it_is_confirmed),
        cmocka_unit_test(a_mirrored_rename_loads_the_new_name_before_it_drops_the_old),
        cmocka_unit_test(a_renamed_file_that_is_deleted_at_once_takes_its_table_along),
        cmocka_unit_test(a_renamed_file_that_was_appended_is_not_appended_twice),
        cmocka_unit_test(two_files_of_one_table_leave_it_to_the_first),
        cmocka_unit_test(content_that_returns_is_loaded_again_where_it_replaces),
        cmocka_unit_test(what_was_appended_and_changed_is_quarantined_unless_the_tail_is_asked_for),
        cmocka_unit_test(a_moved_file_is_no_delete_and_is_in_one_place),
        cmocka_unit_test(another_database_gets_everything_again),
        cmocka_unit_test(reset_drops_what_the_flow_made_and_pauses_it),
        cmocka_unit_test(a_reload_keeps_what_runs_and_repeats_nothing),
        cmocka_unit_test(a_file_that_chute_moves_itself_is_not_looked_for),
        cmocka_unit_test(many_small_files_are_loaded_in_order_and_moved),
        cmocka_unit_test(a_stop_at_any_moment_loses_and_repeats_nothing),
        cmocka_unit_test(a_file_that_is_read_before_it_is_sent_can_be_stopped),
        cmocka_unit_test(an_allocation_that_fails_loses_and_repeats_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
