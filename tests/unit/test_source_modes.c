/* test_source_modes.c -- the directory source where events don't work, and where its root is not what it was. */
#include "source_test.h"

#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <sys/wait.h>

static int watches_left = -1; /* -1: no limit */
static bool has_no_inotify, is_deaf;
static long fake_type;

int __real_inotify_add_watch(int fd, const char *path, uint32_t mask);
int __wrap_inotify_add_watch(int fd, const char *path, uint32_t mask);
int __wrap_inotify_add_watch(int fd, const char *path, uint32_t mask)
{
    if (watches_left == 0) {
        errno = ENOSPC;
        return -1;
    }
    if (watches_left > 0)
        watches_left--;
    /* A file system that takes watches and tells nothing. */
    return __real_inotify_add_watch(fd, path, is_deaf ? IN_DELETE_SELF | IN_ONLYDIR : mask);
}

int __real_inotify_init1(int flags);
int __wrap_inotify_init1(int flags);
int __wrap_inotify_init1(int flags)
{
    if (has_no_inotify) {
        errno = EMFILE;
        return -1;
    }
    return __real_inotify_init1(flags);
}

int __real_fstatfs(int fd, struct statfs *fs);
int __wrap_fstatfs(int fd, struct statfs *fs);
int __wrap_fstatfs(int fd, struct statfs *fs)
{
    int ret = __real_fstatfs(fd, fs);
    if (fake_type != 0)
        fs->f_type = fake_type;
    return ret;
}

/* The same by its name for large files, which is what meson builds with. */
int __wrap_fstatfs64(int fd, struct statfs *fs);
int __wrap_fstatfs64(int fd, struct statfs *fs)
{
    return __wrap_fstatfs(fd, fs);
}

static int plain_setup(void **state)
{
    watches_left = -1;
    has_no_inotify = is_deaf = false;
    fake_type = 0;
    return setup(state);
}

static void polling_finds_what_comes(void **state)
{
    struct fixture *f = *state;
    f->options.mode = DIRECTORY_POLL;
    start_and_scan(f);
    assert_string_equal(health(f).mode, "poll");
    assert_string_equal(health(f).reason, "");
    assert_string_equal(health(f).evidence, "age");
    assert_int_equal(health(f).folders, 0);
    folder(f, "a");
    put(f, "a/f.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "a/f.csv"));
    unsigned scans = f->scans;
    RUN_UNTIL(f, f->scans > scans + 1); /* and goes on */
}

static void without_inotify_the_root_is_polled_and_says_why(void **state)
{
    struct fixture *f = *state;
    has_no_inotify = true;
    start_and_scan(f);
    assert_string_equal(health(f).mode, "poll");
    assert_non_null(strstr(health(f).reason, "max_user_instances"));
    put(f, "f.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "f.csv"));
}

static void beyond_the_limit_of_watches_nothing_is_lost(void **state)
{
    struct fixture *f = *state;
    folder(f, "a");
    folder(f, "b");
    folder(f, "c");
    watches_left = 2;
    start_and_scan(f);
    assert_string_equal(health(f).mode, "poll");
    assert_non_null(strstr(health(f).reason, "max_user_watches"));
    put(f, "a/1.csv", "x");
    put(f, "b/1.csv", "x");
    put(f, "c/1.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "a/1.csv") && told(f, FOUND_SCANNED, "b/1.csv") &&
                     told(f, FOUND_SCANNED, "c/1.csv"));
    watches_left = -1; /* raised: back to events by itself */
    RUN_UNTIL(f, strcmp(health(f).mode, "events") == 0);
    put(f, "c/2.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "c/2.csv"));
}

static void the_limit_met_by_a_new_folder_makes_it_poll(void **state)
{
    struct fixture *f = *state;
    start_and_scan(f);
    assert_string_equal(health(f).mode, "events");
    watches_left = 0;
    folder(f, "late");
    RUN_UNTIL(f, strcmp(health(f).mode, "poll") == 0);
    put(f, "late/1.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "late/1.csv"));
}

static void network_file_systems_are_polled(void **state)
{
    struct fixture *f = *state;
    fake_type = 0x6969;
    start_and_scan(f);
    assert_string_equal(health(f).mode, "poll");
    assert_non_null(strstr(health(f).reason, "nfs"));
    put(f, "f.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "f.csv"));
    stop(f);
    f->options.mode = DIRECTORY_EVENTS; /* asked for: done */
    f->scans = 0;
    start_and_scan(f);
    assert_string_equal(health(f).mode, "events");
}

static void where_events_do_not_come_the_root_is_polled_from_then_on(void **state)
{
    struct fixture *f = *state;
    is_deaf = true;
    folder(f, "a");
    start_and_scan(f);
    put(f, "a/f.csv", "x");
    run_for(f, 100);
    assert_null(told(f, FOUND_SCANNED, "a/f.csv"));
    source_directory.scan(f->src); /* the hourly one */
    RUN_UNTIL(f, f->scans == 2);
    assert_non_null(told(f, FOUND_SCANNED, "a/f.csv"));
    RUN_UNTIL(f, strcmp(health(f).mode, "poll") == 0);
    assert_non_null(strstr(health(f).reason, "no event told it"));
    put(f, "a/g.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "a/g.csv"));
}

static void where_events_come_rescans_change_nothing(void **state)
{
    struct fixture *f = *state;
    folder(f, "a");
    start_and_scan(f);
    for (int i = 0; i < 20; i++) {
        char path[32];
        snprintf(path, sizeof path, "a/%d.csv", i);
        put(f, path, "x");
        unsigned scans = f->scans;
        source_directory.scan(f->src);
        RUN_UNTIL(f, f->scans > scans);
    }
    run_for(f, 1200);
    assert_string_equal(health(f).mode, "events");
}

static void fs_event_finds_files_folders_and_departures(void **state)
{
    struct fixture *f = *state;
    f->options.mode = DIRECTORY_FS_EVENT;
    folder(f, "a");
    put(f, "a/1.csv", "x");
    start_and_scan(f);
    assert_non_null(told(f, FOUND_SCANNED, "a/1.csv"));
    RUN_UNTIL(f, f->scans >= 2); /* read again once it was watched */
    assert_string_equal(health(f).mode, "fs_event");
    assert_string_equal(health(f).evidence, "age");
    assert_int_equal(health(f).folders, 2);
    put(f, "a/2.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "a/2.csv"));
    folder(f, "n");
    folder(f, "n/m");
    put(f, "n/m/3.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "n/m/3.csv"));
    RUN_UNTIL(f, health(f).folders == 4);
    put(f, "n/m/4.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "n/m/4.csv"));
    unlink(at(f, "a/2.csv"));
    RUN_UNTIL(f, told(f, FOUND_GONE, "a/2.csv"));
    rename(at(f, "n"), at(f, "o"));
    RUN_UNTIL(f, told(f, FOUND_FOLDER_GONE, "n") && told(f, FOUND_SCANNED, "o/m/3.csv"));
    RUN_UNTIL(f, health(f).folders == 4);
    put(f, "o/m/5.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "o/m/5.csv"));
    folder(f, "last"); /* the teardown closes in the middle */
}

static void a_root_that_is_missing_is_waited_for(void **state)
{
    struct fixture *f = *state;
    rmdir(f->root);
    start(f);
    RUN_UNTIL(f, f->scans > 0);
    assert_false(f->result.is_complete);
    assert_false(health(f).is_reachable);
    assert_false(health(f).is_ready);
    assert_non_null(strstr(health(f).problem, f->root));
    assert_string_equal(source_directory.root_identity(f->src), "");
    mkdir(f->root, 0755);
    put(f, "f.csv", "x");
    RUN_UNTIL(f, health(f).is_ready);
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "f.csv"));
    assert_string_equal(health(f).problem, "");
    put(f, "g.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "g.csv"));
}

static void a_root_that_is_replaced_is_another_one(void **state)
{
    struct fixture *f = *state;
    char away[PATH_MAX], identity[64];
    put(f, "f.csv", "x");
    start_and_scan(f);
    snprintf(identity, sizeof identity, "%s", source_directory.root_identity(f->src));
    source_directory.expect_root(f->src, identity);
    int fd = source_directory.root_fd(f->src);
    snprintf(away, sizeof away, "%s/away", f->base);
    rename(f->root, away);
    RUN_UNTIL(f, !health(f).is_reachable);
    mkdir(f->root, 0755);
    put(f, "new.csv", "x");
    RUN_UNTIL(f, health(f).is_reachable);
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "new.csv"));
    assert_false(f->result.is_complete); /* so nothing counts as deleted */
    assert_non_null(strstr(health(f).problem, "another one than before"));
    assert_int_equal(source_directory.root_fd(f->src), fd);
    assert_int_equal(faccessat(fd, "new.csv", F_OK, 0), 0);
    assert_string_not_equal(source_directory.root_identity(f->src), identity);
    assert_int_equal(told_times(f, FOUND_GONE, "f.csv"), 0);
    put(f, "more.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "more.csv"));
    source_directory.expect_root(f->src, source_directory.root_identity(f->src));
    unsigned scans = f->scans;
    source_directory.scan(f->src);
    RUN_UNTIL(f, f->scans > scans);
    assert_true(f->result.is_complete);
}

struct answers {
    unsigned calls;
    size_t count;
};

static void on_probed(void *arg, struct probe *probes, size_t count)
{
    struct answers *a = arg;
    (void)probes;
    a->calls++;
    a->count = count;
}

static void a_probe_tells_gone_only_from_a_root_it_knows(void **state)
{
    struct fixture *f = *state;
    struct answers a = {0};
    struct err err = {0};
    folder(f, "a");
    put(f, "a/1.csv", "xyz");
    start_and_scan(f);
    struct probe probes[] = {{.path = "a/1.csv"}, {.path = "a/2.csv"}, {.path = "b/c/3.csv"}, {.path = "a"}};
    assert_int_equal(source_directory.probe(f->src, probes, 4, on_probed, &a, &err), ERR_NONE);
    assert_int_equal(a.calls, 0);
    RUN_UNTIL(f, a.calls == 1);
    assert_int_equal(probes[0].answer, PROBE_PRESENT);
    assert_int_equal(probes[0].id.size, 3);
    assert_int_equal(probes[1].answer, PROBE_GONE);
    assert_int_equal(probes[2].answer, PROBE_GONE);
    assert_int_equal(probes[3].answer, PROBE_GONE);
    source_directory.expect_root(f->src, "0:1");
    source_directory.probe(f->src, probes, 4, on_probed, &a, &err);
    RUN_UNTIL(f, a.calls == 2);
    assert_int_equal(probes[1].answer, PROBE_UNKNOWN);
    source_directory.expect_root(f->src, "");
    char away[PATH_MAX];
    snprintf(away, sizeof away, "%s/away", f->base);
    rename(f->root, away);
    source_directory.probe(f->src, probes, 4, on_probed, &a, &err);
    stop(f); /* the answer still comes, before the source is closed */
    assert_int_equal(a.calls, 3);
    assert_int_equal(probes[0].answer, PROBE_UNKNOWN);
    assert_int_equal(probes[1].answer, PROBE_UNKNOWN);
}

/* root may read everything: in a child with another uid, on the same folder. */
static void as_nobody(struct fixture *f, void (*body)(struct fixture *f))
{
    if (getuid() != 0)
        skip();
    assert_int_equal(chmod(f->base, 0777), 0);
    assert_int_equal(chmod(f->root, 0777), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)
            _exit(99);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        uv_loop_fork(&f->loop);
        body(f);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

#define NEED(cond)                                                                                                     \
    do {                                                                                                               \
        if (!(cond)) {                                                                                                 \
            fprintf(stderr, "not so: %s\n", #cond);                                                                    \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static void turn_until_scan(struct fixture *f, unsigned scans)
{
    for (int i = 0; i < PATIENCE_MS && f->scans < scans; i++) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        usleep(1000);
    }
    NEED(f->scans >= scans);
}

static void read_unreadable(struct fixture *f)
{
    struct answers a = {0};
    struct err err = {0};
    f->options.poll_interval_ms = 100;
    start(f);
    turn_until_scan(f, 1);
    NEED(!f->result.is_complete);
    NEED(strstr(health(f).problem, "/shut") != NULL);
    NEED(told(f, FOUND_SCANNED, "open.csv") != NULL);
    struct probe probes[] = {{.path = "shut/1.csv"}, {.path = "open.csv"}, {.path = "none.csv"}};
    NEED(source_directory.probe(f->src, probes, 3, on_probed, &a, &err) == ERR_NONE);
    while (a.calls == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    NEED(probes[0].answer == PROBE_UNKNOWN);
    NEED(probes[1].answer == PROBE_PRESENT);
    NEED(probes[2].answer == PROBE_GONE);
    NEED(chmod(at(f, "mine"), 0755) == 0); /* ours: was shut too */
    for (int i = 0; i < PATIENCE_MS && told(f, FOUND_SCANNED, "mine/2.csv") == NULL; i++) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        usleep(1000);
    }
    NEED(told(f, FOUND_SCANNED, "mine/2.csv") != NULL);
}

static void an_unreadable_folder_makes_the_scan_incomplete(void **state)
{
    struct fixture *f = *state;
    if (getuid() != 0)
        skip();
    folder(f, "shut");
    put(f, "shut/1.csv", "x");
    folder(f, "mine");
    put(f, "mine/2.csv", "x");
    put(f, "open.csv", "x");
    assert_int_equal(chmod(at(f, "shut"), 0), 0);
    assert_int_equal(chmod(at(f, "mine"), 0), 0);
    assert_int_equal(chown(at(f, "mine"), 65534, 65534), 0);
    as_nobody(f, read_unreadable);
}

static void paths_too_deep_are_told_not_hidden(void **state)
{
    struct fixture *f = *state;
    char path[1024] = "d";
    folder(f, path);
    for (int i = 0; i < 140; i++) {
        strcat(path, "/d");
        folder(f, path);
    }
    start_and_scan(f);
    assert_false(f->result.is_complete);
    assert_non_null(strstr(health(f).problem, "folders deep"));
}

#undef TEST
#define TEST(name) cmocka_unit_test_setup_teardown(name, plain_setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_unreadable_folder_makes_the_scan_incomplete), /* first: it forks, and the pool has no threads yet */
        TEST(polling_finds_what_comes),
        TEST(without_inotify_the_root_is_polled_and_says_why),
        TEST(beyond_the_limit_of_watches_nothing_is_lost),
        TEST(the_limit_met_by_a_new_folder_makes_it_poll),
        TEST(network_file_systems_are_polled),
        TEST(where_events_do_not_come_the_root_is_polled_from_then_on),
        TEST(where_events_come_rescans_change_nothing),
        TEST(fs_event_finds_files_folders_and_departures),
        TEST(a_root_that_is_missing_is_waited_for),
        TEST(a_root_that_is_replaced_is_another_one),
        TEST(a_probe_tells_gone_only_from_a_root_it_knows),
        TEST(paths_too_deep_are_told_not_hidden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
