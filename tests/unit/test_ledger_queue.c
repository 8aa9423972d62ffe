/* test_ledger_queue.c -- the daemon's way in: order, one commit for many, failures that undo only themselves, full
 * disks, kills. */
#include "ledger_test.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

struct daemon {
    struct fixture f;
    uv_loop_t loop;
    struct ledger *l;
};

struct job {
    struct daemon *d;
    int n;
    int rows;
    enum err_code fails;
    bool may_repeat;
    int runs;
    int *order;
    int *order_count;
    bool done;
    enum err_code code;
    char text[512];
};

static void open_daemon(struct daemon *d)
{
    struct ledger_opened opened;
    assert_int_equal(uv_loop_init(&d->loop), 0);
    if (ledger_open(&d->loop, &(struct ledger_options){.path = d->f.path}, &d->l, &opened, &d->f.err) != ERR_NONE)
        fail_msg("%s", d->f.err.text);
    assert_false(opened.was_recovered);
}

static void close_daemon(struct daemon *d)
{
    bool closed = false;
    ledger_close(d->l, on_closed, &closed);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_true(closed);
    assert_int_equal(uv_loop_close(&d->loop), 0);
}

static int set_up_daemon(void **state)
{
    struct daemon *d = calloc(1, sizeof(*d));
    make_folder(&d->f);
    arena_init(&d->f.arena);
    open_daemon(d);
    *state = d;
    return 0;
}

static int tear_down_daemon(void **state)
{
    struct daemon *d = *state;
    close_daemon(d);
    remove_folder(d->f.folder);
    arena_done(&d->f.arena);
    free(d);
    return 0;
}

static enum err_code put_rows(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct job *job = arg;
    job->runs++;
    if (job->order != NULL && job->runs == 1)
        job->order[(*job->order_count)++] = job->n;
    for (int i = 0; i < job->rows; i++) {
        char path[64];
        snprintf(path, sizeof(path), "%d/%d", job->n, i);
        struct ledger_row row = test_row(path, "w");
        row.reason = "some text so that a row has a size that fills a page before long, as real reasons do";
        if (ledger_put(tx, &row, err) != ERR_NONE)
            return err->code;
    }
    if (job->fails != ERR_NONE)
        return err_set(err, job->fails, false, "as told");
    return ERR_NONE;
}

static void on_put(void *arg, const struct err *err)
{
    struct job *job = arg;
    assert_false(job->done);
    job->done = true;
    job->code = err != NULL ? err->code : ERR_NONE;
    snprintf(job->text, sizeof(job->text), "%s", err != NULL ? err->text : "");
}

static void queue(struct daemon *d, struct job *job)
{
    if (job->may_repeat)
        assert_int_equal(ledger_run_repeatable(d->l, put_rows, on_put, job, &d->f.err), ERR_NONE);
    else
        assert_int_equal(ledger_run(d->l, put_rows, on_put, job, &d->f.err), ERR_NONE);
    assert_false(job->done); /* never from inside */
}

static uint64_t rows_below(struct daemon *d, int n)
{
    struct ledger_tx *tx;
    struct err err;
    char below[16];
    uint64_t count;
    snprintf(below, sizeof(below), "%d", n);
    if (ledger_tx_open(d->f.path, true, &tx, &err) != ERR_NONE)
        fail_msg("%s", err.text);
    assert_int_equal(ledger_count(tx, &(struct ledger_query){.source = "dir", .below = below}, &count, &err), ERR_NONE);
    assert_int_equal(ledger_tx_close(tx, false, &err), ERR_NONE);
    return count;
}

static void work_runs_in_order_and_a_failing_one_undoes_only_itself(void **state)
{
    struct daemon *d = *state;
    enum { N = 1300 };
    static struct job jobs[N];
    static int order[N];
    int count = 0;
    for (int i = 0; i < N; i++) {
        jobs[i] = (struct job){.d = d,
                               .n = i,
                               .rows = 1,
                               .order = order,
                               .order_count = &count,
                               .fails = i % 7 == 3 ? ERR_INPUT : ERR_NONE};
        queue(d, &jobs[i]);
    }
    assert_int_equal(ledger_pending(d->l), N);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(ledger_pending(d->l), 0);
    assert_int_equal(count, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(order[i], i);
        assert_true(jobs[i].done);
        assert_int_equal(jobs[i].code, jobs[i].fails);
        if (i < 50)
            assert_int_equal(rows_below(d, i), jobs[i].fails == ERR_NONE);
    }
    assert_string_equal(ledger_problem(d->l), "");
}

/* They have no savepoints. */
static void works_that_may_run_twice_undo_only_themselves_too(void **state)
{
    struct daemon *d = *state;
    enum { N = 700 };
    static struct job jobs[N];
    int again = 0;
    for (int i = 0; i < N; i++) {
        jobs[i] = (struct job){
            .d = d, .n = i, .rows = 2, .may_repeat = i != 600, .fails = i == 20 || i == 21 || i == 650 ? ERR_INPUT : 0};
        queue(d, &jobs[i]);
    }
    uv_run(&d->loop, UV_RUN_DEFAULT);
    for (int i = 0; i < N; i++) {
        assert_int_equal(jobs[i].code, jobs[i].fails);
        assert_in_range(jobs[i].runs, 1, 2);
        again += jobs[i].runs == 2;
        if (i < 30 || i > 640)
            assert_int_equal(rows_below(d, i), jobs[i].fails == ERR_NONE ? 2 : 0);
    }
    assert_true(again > 20);             /* the ones before the first failure, at least */
    assert_int_equal(jobs[600].runs, 1); /* it may not, and its group had savepoints from the start */
    assert_string_equal(ledger_problem(d->l), "");
    struct err *err = &d->f.err;
    assert_int_equal(ledger_tx_open(d->f.path, false, &d->f.tx, err), ERR_NONE);
    check_tally(&d->f);
    assert_int_equal(ledger_tx_close(d->f.tx, false, err), ERR_NONE);
}

static enum err_code see_row_of_first(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct job *job = arg;
    (void)tx;
    (void)err;
    job->rows = (int)rows_below(job->d, 1); /* as another connection sees it */
    return ERR_NONE;
}

static void works_of_one_turn_share_a_commit(void **state)
{
    struct daemon *d = *state;
    struct job first = {.d = d, .n = 1, .rows = 1}, second = {.d = d, .rows = -1};
    queue(d, &first);
    assert_int_equal(ledger_run(d->l, see_row_of_first, on_put, &second, &d->f.err), ERR_NONE);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(second.rows, 0); /* not committed yet when the second one ran */
    assert_int_equal(rows_below(d, 1), 1);
}

static void a_failing_work_alone_undoes_itself(void **state)
{
    struct daemon *d = *state;
    struct job bad = {.d = d, .n = 1, .rows = 3, .fails = ERR_REMOTE};
    struct job good = {.d = d, .n = 2, .rows = 3};
    queue(d, &bad);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    queue(d, &good);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(bad.code, ERR_REMOTE);
    assert_string_equal(bad.text, "as told");
    assert_int_equal(rows_below(d, 1), 0);
    assert_int_equal(rows_below(d, 2), 3);
}

/* What the disk has left, as statvfs() tells; 0: the truth. */
static uint64_t free_bytes;

int __real_statvfs(const char *path, struct statvfs *ret);
int __wrap_statvfs(const char *path, struct statvfs *ret)
{
    int result = __real_statvfs(path, ret);
    if (free_bytes != 0) {
        ret->f_frsize = 1;
        ret->f_bavail = (fsblkcnt_t)free_bytes;
    }
    return result;
}
int __wrap_statvfs64(const char *path, struct statvfs *ret)
{
    return __wrap_statvfs(path, ret);
}

static void on_a_nearly_full_disk_the_wal_is_written_back_while_there_is_room_for_it(void **state)
{
    struct daemon *d = *state;
    struct job first = {.d = d, .n = 1, .rows = 300};
    struct job second = {.d = d, .n = 2, .rows = 300};
    struct stat st;
    char wal[200];
    snprintf(wal, sizeof(wal), "%s-wal", d->f.path);
    queue(d, &first);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(stat(wal, &st), 0);
    assert_true(st.st_size > 0); /* enough room: it stays, for the next commit to go on with */
    free_bytes = (uint64_t)st.st_size;
    queue(d, &second);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    free_bytes = 0;
    assert_int_equal(second.code, ERR_NONE);
    assert_int_equal(stat(wal, &st), 0);
    assert_int_equal(st.st_size, 0);
    assert_int_equal(rows_below(d, 1), 300);
    assert_int_equal(rows_below(d, 2), 300);
}

static void a_command_reads_beside_the_daemon_and_leaves_no_trace(void **state)
{
    struct daemon *d = *state;
    struct job job = {.d = d, .n = 1, .rows = 3};
    struct err err;
    struct ledger_tx *tx;
    char name[200];
    queue(d, &job);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(rows_below(d, 1), 3); /* from the WAL */
    close_daemon(d);
    snprintf(name, sizeof(name), "%s-wal", d->f.path);
    assert_int_not_equal(access(name, F_OK), 0);
    assert_int_equal(rows_below(d, 1), 3); /* from the file alone */
    assert_int_not_equal(access(name, F_OK), 0);
    snprintf(name, sizeof(name), "%s-shm", d->f.path);
    assert_int_not_equal(access(name, F_OK), 0);
    assert_int_equal(ledger_tx_open(d->f.path, true, &tx, &err), ERR_NONE);
    assert_int_not_equal(ledger_meta_put(tx, "k", "v", &err), ERR_NONE);
    ledger_tx_close(tx, true, &err);
    snprintf(name, sizeof(name), "%s/none.db", d->f.folder);
    assert_int_equal(ledger_tx_open(name, true, &tx, &err), ERR_SYSTEM);
    assert_non_null(strstr(err.text, "no ledger at"));
    assert_int_equal(ledger_tx_open(name, false, &tx, &err), ERR_SYSTEM);
    assert_int_not_equal(access(name, F_OK), 0);
    open_daemon(d);
}

static void a_command_writes_beside_the_daemon(void **state)
{
    struct daemon *d = *state;
    struct err err;
    struct ledger_tx *tx;
    struct job job = {.d = d, .n = 1, .rows = 2};
    assert_int_equal(ledger_tx_open(d->f.path, false, &tx, &err), ERR_NONE);
    queue(d, &job); /* waits for the lock on the pool, not here */
    struct ledger_row row = test_row("9/0", "w");
    assert_int_equal(ledger_put(tx, &row, &err), ERR_NONE);
    assert_int_equal(ledger_tx_close(tx, true, &err), ERR_NONE);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(job.code, ERR_NONE);
    assert_int_equal(rows_below(d, 1), 2);
    assert_int_equal(rows_below(d, 9), 1);
}

static void the_wal_stays_small(void **state)
{
    struct daemon *d = *state;
    char name[200];
    snprintf(name, sizeof(name), "%s-wal", d->f.path);
    for (int i = 0; i < 40; i++) {
        struct job job = {.d = d, .n = i, .rows = 512};
        queue(d, &job);
        uv_run(&d->loop, UV_RUN_DEFAULT);
        assert_int_equal(job.code, ERR_NONE);
    }
    FILE *file = fopen(name, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    assert_true(ftell(file) < 16 << 20);
    fclose(file);
}

/* RLIMIT_FSIZE in the place of a full disk: SQLite sees writes that fail in the middle. */
static void on_a_full_disk_nothing_is_half_written_and_it_goes_on_later(void **state)
{
    struct daemon *d = *state;
    struct rlimit old;
    int committed = 0;
    static struct job jobs[400];
    memset(jobs, 0, sizeof(jobs));
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    struct rlimit low = {.rlim_cur = 700 << 10, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int n = 0;
    for (; n < 400; n++) {
        jobs[n] = (struct job){.d = d, .n = n, .rows = 64};
        queue(d, &jobs[n]);
        uv_run(&d->loop, UV_RUN_DEFAULT);
        if (jobs[n].code != ERR_NONE)
            break;
        committed++;
    }
    bool has_problem = ledger_problem(d->l)[0] != '\0';
    setrlimit(RLIMIT_FSIZE, &old);
    assert_true(n < 400);
    assert_true(has_problem);
    assert_int_equal(jobs[n].code, ERR_SYSTEM);
    for (int i = 0; i <= n; i++)
        assert_int_equal(rows_below(d, i), i < committed ? 64 : 0);
    struct job again = {.d = d, .n = n, .rows = 64};
    queue(d, &again);
    uv_run(&d->loop, UV_RUN_DEFAULT);
    assert_int_equal(again.code, ERR_NONE);
    assert_string_equal(ledger_problem(d->l), "");
    assert_int_equal(rows_below(d, n), 64);
}

/* ---- kill -9 ---- */

struct told {
    int fd;
    struct job job;
};

static void on_told(void *arg, const struct err *err)
{
    struct told *told = arg;
    if (err != NULL || write(told->fd, &told->job.n, sizeof(told->job.n)) != sizeof(told->job.n))
        _exit(3);
    free(told);
}

static enum err_code put_told(struct ledger_tx *tx, void *arg, struct err *err)
{
    return put_rows(tx, &((struct told *)arg)->job, err);
}

static void write_for_ever(const char *path, int first, int fd)
{
    uv_loop_t loop;
    struct ledger *l;
    struct ledger_opened opened;
    struct err err;
    if (uv_loop_init(&loop) != 0 ||
        ledger_open(&loop, &(struct ledger_options){.path = path}, &l, &opened, &err) != ERR_NONE ||
        opened.was_recovered)
        _exit(2);
    for (int n = first;;) {
        if (ledger_pending(l) >= 20) {
            uv_run(&loop, UV_RUN_ONCE);
            continue;
        }
        struct told *told = calloc(1, sizeof(*told));
        told->fd = fd;
        told->job = (struct job){.n = n++, .rows = 5};
        ledger_run(l, put_told, on_told, told, &err);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
}

static void what_was_told_as_done_survives_a_kill_at_any_moment(void **state)
{
    struct daemon *d = *state;
    close_daemon(d);
    int first = 0;
    int works = 0;
    srand(7);
    for (int turn = 0; turn < 50; turn++) {
        int fds[2];
        int told = -1;
        int n;
        assert_int_equal(pipe(fds), 0);
        pid_t pid = fork();
        if (pid == 0)
            write_for_ever(d->f.path, first, fds[1]);
        close(fds[1]);
        if (turn % 2 == 1) /* on a slow machine there may be no other that gets so far */
            assert_int_equal(read(fds[0], &told, sizeof(told)), sizeof(told));
        usleep((useconds_t)(rand() % 40000));
        kill(pid, SIGKILL);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        while (read(fds[0], &n, sizeof(n)) == sizeof(n))
            told = n;
        close(fds[0]);
        open_daemon(d); /* asserts that nothing was corrupt */
        for (int i = first; i <= told; i++)
            if (i < first + 3 || i > told - 20)
                assert_int_equal(rows_below(d, i), 5);
        for (int i = told + 1; i < told + 300; i++) {
            uint64_t rows = rows_below(d, i);
            assert_true(rows == 0 || rows == 5); /* never half a work */
            if (rows == 0)
                break;
        }
        close_daemon(d);
        works += told < first ? 0 : told - first + 1;
        first = (told < first ? first : told) + 10000;
    }
    assert_true(works > 0);
    struct err *err = &d->f.err;
    assert_int_equal(ledger_tx_open(d->f.path, false, &d->f.tx, err), ERR_NONE);
    check_tally(&d->f);
    assert_int_equal(ledger_tx_close(d->f.tx, false, err), ERR_NONE);
    open_daemon(d);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up_daemon, tear_down_daemon)
    const struct CMUnitTest tests[] = {
        T(work_runs_in_order_and_a_failing_one_undoes_only_itself),
        T(works_that_may_run_twice_undo_only_themselves_too),
        T(works_of_one_turn_share_a_commit),
        T(a_failing_work_alone_undoes_itself),
        T(on_a_nearly_full_disk_the_wal_is_written_back_while_there_is_room_for_it),
        T(a_command_reads_beside_the_daemon_and_leaves_no_trace),
        T(a_command_writes_beside_the_daemon),
        T(the_wal_stays_small),
        T(on_a_full_disk_nothing_is_half_written_and_it_goes_on_later),
        T(what_was_told_as_done_survives_a_kill_at_any_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
