/* test_settle.c -- when is a file whole: on real files and a real loop. */
#include "settle.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define PATIENCE_MS 30000 /* until waiting is a failure, however slow the machine */
#define NEVER_MS 3600000  /* a wait that no test lives to see the end of */

struct fixture {
    char root[64];
    int root_fd;
    uv_loop_t loop;
    uv_timer_t watchdog;
    struct settle *s;
    struct settle_options options;
    bool is_late, is_closed, is_denied;
    unsigned whole, gone, forgotten;
    char path[256];
    struct found found;
    uint64_t at_ms;
};

static bool no_leases;
int __real_fcntl64(int fd, int cmd, ...);
int __wrap_fcntl64(int fd, int cmd, ...);
int __wrap_fcntl64(int fd, int cmd, ...)
{
    va_list args;
    va_start(args, cmd);
    long arg = va_arg(args, long);
    va_end(args);
    if (cmd == F_SETLEASE && no_leases) {
        errno = EACCES;
        return -1;
    }
    return __real_fcntl64(fd, cmd, arg);
}
int __real_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, ...)
{
    va_list args;
    va_start(args, cmd);
    long arg = va_arg(args, long);
    va_end(args);
    if (cmd == F_SETLEASE && no_leases) {
        errno = EACCES;
        return -1;
    }
    return __real_fcntl(fd, cmd, arg);
}

static int open_now(void *state, const char *path, struct err *err)
{
    struct fixture *f = state;
    if (f->is_denied) {
        err_set(err, ERR_SYSTEM, true, "denied");
        return -1;
    }
    int fd = openat(f->root_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        err_set(err, ERR_INPUT, false, "gone");
    return fd;
}

static uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

static void on_settled(void *arg, const struct found *found, const struct err *err)
{
    struct fixture *f = arg;
    if (err == NULL)
        f->whole++;
    else if (err->code == ERR_STOPPED)
        f->forgotten++;
    else
        f->gone++;
    if (err != NULL && err->code != ERR_STOPPED)
        assert_int_equal(err->code, ERR_INPUT);
    f->found = *found;
    snprintf(f->path, sizeof f->path, "%s", found->path);
    f->at_ms = now_ms();
}

static void on_watchdog(uv_timer_t *timer)
{
    ((struct fixture *)timer->data)->is_late = true;
}

static void run_for(struct fixture *f, uint64_t ms)
{
    f->is_late = false;
    uv_update_time(&f->loop);
    uv_timer_start(&f->watchdog, on_watchdog, ms, 0);
    while (!f->is_late)
        uv_run(&f->loop, UV_RUN_ONCE);
}

#define RUN_UNTIL(f, cond)                                                                                             \
    do {                                                                                                               \
        (f)->is_late = false;                                                                                          \
        uv_update_time(&(f)->loop);                                                                                    \
        uv_timer_start(&(f)->watchdog, on_watchdog, PATIENCE_MS, 0);                                                   \
        while (!(cond) && !(f)->is_late)                                                                               \
            uv_run(&(f)->loop, UV_RUN_ONCE);                                                                           \
        uv_timer_stop(&(f)->watchdog);                                                                                 \
        if (!(cond))                                                                                                   \
            fail_msg("not within %d ms: %s", PATIENCE_MS, #cond);                                                      \
    } while (0)

static int put(struct fixture *f, const char *path, const char *text, int64_t age_ms)
{
    int fd = openat(f->root_fd, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    if (age_ms != 0) {
        struct timespec now, times[2];
        clock_gettime(CLOCK_REALTIME, &now);
        times[0] = times[1] = (struct timespec){now.tv_sec - age_ms / 1000, now.tv_nsec};
        futimens(fd, times);
    }
    return fd;
}

static struct found seen(struct fixture *f, const char *path, enum found_how how)
{
    struct found found = {.path = path, .how = how};
    struct stat st;
    if (fstatat(f->root_fd, path, &st, 0) == 0)
        found.id = (struct file_id){(uint64_t)st.st_size, st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec,
                                    st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec, st.st_ino, st.st_dev};
    return found;
}

static void note(struct fixture *f, const char *path, enum found_how how)
{
    struct found found = seen(f, path, how);
    struct err err = {0};
    assert_int_equal(settle_note(f->s, &found, &err), ERR_NONE);
}

static bool explains(struct fixture *f, const char *path, const char *words)
{
    char text[256];
    const char *why = settle_explain(f->s, path, text, sizeof text);
    return why != NULL && strstr(why, words) != NULL;
}

static void begin(struct fixture *f)
{
    struct err err = {0};
    assert_int_equal(settle_open(&f->loop, &f->options, open_now, f, on_settled, f, &f->s, &err), ERR_NONE);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->root, "/tmp/chute-settle-XXXXXX");
    assert_non_null(mkdtemp(f->root));
    f->root_fd = open(f->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    f->options = (struct settle_options){.debounce_ms = 60, .settle_ms = 300, .ready_marker = ""};
    uv_loop_init(&f->loop);
    uv_timer_init(&f->loop, &f->watchdog);
    f->watchdog.data = f;
    no_leases = false;
    *state = f;
    return 0;
}

static void on_closed(void *arg)
{
    ((struct fixture *)arg)->is_closed = true;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[128];
    if (f->s != NULL) {
        unsigned answers = f->whole + f->gone;
        settle_close(f->s, on_closed, f);
        RUN_UNTIL(f, f->is_closed);
        assert_int_equal(f->whole + f->gone, answers);
    }
    uv_close((uv_handle_t *)&f->watchdog, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    close(f->root_fd);
    snprintf(command, sizeof command, "rm -rf %s", f->root);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static void a_closed_file_is_whole_after_debounce(void **state)
{
    struct fixture *f = *state;
    f->options.settle_ms = NEVER_MS;
    begin(f);
    close(put(f, "a.csv", "abc", 0));
    uint64_t from = now_ms();
    note(f, "a.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
    assert_true(f->at_ms - from >= 59);
    assert_string_equal(f->path, "a.csv");
    assert_int_equal(f->found.id.size, 3);
    struct settle_health h;
    settle_health(f->s, &h);
    assert_string_equal(h.evidence, "close");
    assert_int_equal(h.waiting, 0);
}

static void two_opens_are_one_file_after_the_last_close(void **state)
{
    struct fixture *f = *state;
    begin(f);
    close(put(f, "a.csv", "abc", 0));
    note(f, "a.csv", FOUND_CLOSED); /* no turn of the loop now: a slow one could be longer than debounce */
    int fd = put(f, "a.csv", "abcdef", 0);
    note(f, "a.csv", FOUND_WRITING);
    run_for(f, 150);
    assert_int_equal(f->whole, 0);
    char text[256];
    assert_non_null(strstr(settle_explain(f->s, "a.csv", text, sizeof text), "its writer still has it open since"));
    close(fd);
    note(f, "a.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
    run_for(f, 100);
    assert_int_equal(f->whole, 1);
    assert_int_equal(f->found.id.size, 6);
    assert_null(settle_explain(f->s, "a.csv", text, sizeof text));
}

static void a_writer_that_stalls_is_waited_for(void **state)
{
    struct fixture *f = *state;
    begin(f);
    int fd = put(f, "a.csv", "abc", 0);
    note(f, "a.csv", FOUND_WRITING);
    run_for(f, 500);
    note(f, "a.csv", FOUND_SCANNED); /* a rescan meanwhile proves nothing */
    run_for(f, 500);
    assert_int_equal(f->whole, 0);
    close(fd);
    note(f, "a.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
}

static void a_close_counts_for_nothing_while_another_writer_has_it_open(void **state)
{
    struct fixture *f = *state;
    begin(f);
    int fd = put(f, "a.csv", "abc", 0);
    note(f, "a.csv", FOUND_CLOSED); /* somebody else's */
    run_for(f, 300);
    assert_int_equal(f->whole, 0);
    close(fd);
    RUN_UNTIL(f, f->whole == 1); /* also if that close is never told */
}

static void an_old_file_is_taken_at_once(void **state)
{
    struct fixture *f = *state;
    f->options.settle_ms = NEVER_MS;
    begin(f);
    close(put(f, "a.csv", "abc", 2 * NEVER_MS));
    note(f, "a.csv", FOUND_SCANNED);
    assert_int_equal(f->whole, 0);
    RUN_UNTIL(f, f->whole == 1);
    struct settle_health h;
    settle_health(f->s, &h);
    assert_string_equal(h.evidence, "writers");
}

static void an_old_file_with_an_open_writer_waits(void **state)
{
    struct fixture *f = *state;
    begin(f);
    int fd = put(f, "a.csv", "abc", 60000);
    note(f, "a.csv", FOUND_SCANNED);
    char text[256];
    RUN_UNTIL(f, explains(f, "a.csv", "its writer"));
    run_for(f, 600);
    assert_int_equal(f->whole, 0);
    assert_non_null(strstr(settle_explain(f->s, "a.csv", text, sizeof text), "its writer"));
    close(fd);
    note(f, "a.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
}

static void a_young_file_must_stand_still(void **state)
{
    struct fixture *f = *state;
    f->options.settle_ms = 2000; /* ten times what passes before the change: a slow machine has time for it */
    begin(f);
    close(put(f, "a.csv", "abc", 0));
    note(f, "a.csv", FOUND_SCANNED);
    run_for(f, 200);
    uint64_t from = now_ms();
    close(put(f, "a.csv", "abcd", 0)); /* no event tells it */
    RUN_UNTIL(f, f->whole == 1);
    assert_true(f->at_ms - from >= 1980);
    assert_int_equal(f->found.id.size, 4);
}

static void a_time_from_the_future_does_not_wait_for_it(void **state)
{
    struct fixture *f = *state;
    begin(f);
    close(put(f, "a.csv", "abc", -86400000));
    uint64_t from = now_ms();
    note(f, "a.csv", FOUND_SCANNED);
    RUN_UNTIL(f, f->whole == 1);
    assert_true(f->at_ms - from >= 295);
}

static void where_leases_do_not_work_age_must_be_ten_seconds(void **state)
{
    struct fixture *f = *state;
    no_leases = true;
    begin(f);
    close(put(f, "a.csv", "abc", 1000));
    note(f, "a.csv", FOUND_SCANNED);
    run_for(f, 500);
    assert_int_equal(f->whole, 0);
    struct settle_health h;
    settle_health(f->s, &h);
    assert_string_equal(h.evidence, "age");
    close(put(f, "b.csv", "abc", 11000));
    note(f, "b.csv", FOUND_SCANNED);
    RUN_UNTIL(f, f->whole == 1);
    assert_string_equal(f->path, "b.csv");
    close(put(f, "c.csv", "abc", 0));
    note(f, "c.csv", FOUND_CLOSED); /* a seen close needs no lease */
    RUN_UNTIL(f, f->whole == 2);
}

static void lost_events_end_a_wait_for_a_close(void **state)
{
    struct fixture *f = *state;
    begin(f);
    close(put(f, "a.csv", "abc", 0));
    note(f, "a.csv", FOUND_WRITING); /* its close was lost */
    run_for(f, 500);
    assert_int_equal(f->whole, 0);
    settle_lost_events(f->s);
    RUN_UNTIL(f, f->whole == 1);
}

static void a_poll_needs_two_equal_looks(void **state)
{
    struct fixture *f = *state;
    begin(f);
    settle_set_polled(f->s, true);
    close(put(f, "a.csv", "abc", 60000));
    uint64_t from = now_ms();
    note(f, "a.csv", FOUND_SCANNED);
    run_for(f, 150);
    note(f, "a.csv", FOUND_SCANNED); /* the next poll meets it as it was: the wait goes on */
    RUN_UNTIL(f, f->whole == 1);
    assert_true(f->at_ms - from >= 295);
}

static void a_file_waits_for_its_marker(void **state)
{
    struct fixture *f = *state;
    f->options.ready_marker = "{name}.done";
    begin(f);
    assert_true(settle_is_marker(f->s, "x/a.csv.done"));
    assert_false(settle_is_marker(f->s, "x/.done"));
    assert_false(settle_is_marker(f->s, "x/a.csv"));
    close(put(f, "a.csv", "abc", 0));
    note(f, "a.csv", FOUND_CLOSED);
    RUN_UNTIL(f, explains(f, "a.csv", "a.csv.done"));
    run_for(f, 200);
    assert_int_equal(f->whole, 0);
    close(put(f, "a.csv.done", "", 0));
    note(f, "a.csv.done", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
    assert_string_equal(f->path, "a.csv");
    /* Both found by a scan, marker first. */
    close(put(f, "b.csv", "abc", 0));
    close(put(f, "b.csv.done", "", 0));
    note(f, "b.csv.done", FOUND_SCANNED);
    note(f, "b.csv", FOUND_SCANNED);
    RUN_UNTIL(f, f->whole == 2);
    assert_string_equal(f->path, "b.csv");
    /* A marker without its file is nothing. */
    close(put(f, "c.csv.done", "", 0));
    note(f, "c.csv.done", FOUND_CLOSED);
    run_for(f, 100);
    assert_int_equal(f->gone, 0);
}

static void files_without_their_markers_keep_nobody_out(void **state)
{
    struct fixture *f = *state;
    char name[32];
    f->options.ready_marker = "{name}.done";
    f->options.max_tickets = 40;
    begin(f);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "w%03d.csv", i);
        close(put(f, name, "abc", 0));
        note(f, name, FOUND_CLOSED);
        run_for(f, 5);
    }
    struct settle_health health;
    RUN_UNTIL(f, (settle_health(f->s, &health), health.waiting <= 10));
    assert_int_equal(f->forgotten + health.waiting, 100);
    assert_int_equal(f->whole, 0);
    close(put(f, "w000.csv.done", "", 0));
    note(f, "w000.csv.done", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
    assert_string_equal(f->path, "w000.csv");
}

static void a_rename_carries_the_wait(void **state)
{
    struct fixture *f = *state;
    begin(f);
    int fd = put(f, "a.csv", "abc", 0);
    note(f, "a.csv", FOUND_WRITING);
    renameat(f->root_fd, "a.csv", f->root_fd, "b.csv");
    struct found found = seen(f, "b.csv", FOUND_RENAMED);
    struct err err = {0};
    found.from = "a.csv";
    assert_int_equal(settle_note(f->s, &found, &err), ERR_NONE);
    run_for(f, 150);
    assert_int_equal(f->whole, 0); /* its writer has it open under the new name */
    close(fd);
    note(f, "b.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
    assert_string_equal(f->path, "b.csv");
    struct settle_health h;
    settle_health(f->s, &h);
    assert_int_equal(h.waiting, 0);
}

static void a_renamed_folder_carries_its_waits_and_a_gone_one_ends_them(void **state)
{
    struct fixture *f = *state;
    begin(f);
    mkdirat(f->root_fd, "d", 0755);
    for (int i = 0; i < 50; i++) {
        char path[32];
        snprintf(path, sizeof path, "d/%d.csv", i);
        close(put(f, path, "x", 0));
        note(f, path, FOUND_CLOSED);
    }
    renameat(f->root_fd, "d", f->root_fd, "e");
    struct found found = {.path = "e", .from = "d", .how = FOUND_FOLDER_RENAMED};
    struct err err = {0};
    assert_int_equal(settle_note(f->s, &found, &err), ERR_NONE);
    RUN_UNTIL(f, f->whole == 50);
    assert_int_equal(f->gone, 0);
    note(f, "e/1.csv", FOUND_CLOSED);
    found = (struct found){.path = "e", .how = FOUND_FOLDER_GONE};
    assert_int_equal(settle_note(f->s, &found, &err), ERR_NONE);
    run_for(f, 150);
    assert_int_equal(f->whole + f->gone, 50);
}

static void a_file_that_is_gone_is_told_and_one_said_to_be_gone_is_forgotten(void **state)
{
    struct fixture *f = *state;
    begin(f);
    note(f, "never.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->gone == 1);
    close(put(f, "a.csv", "x", 0));
    note(f, "a.csv", FOUND_CLOSED);
    note(f, "a.csv", FOUND_GONE);
    run_for(f, 150);
    assert_int_equal(f->whole + f->gone, 1);
}

static void a_file_that_can_not_be_opened_is_tried_again(void **state)
{
    struct fixture *f = *state;
    begin(f);
    f->is_denied = true;
    close(put(f, "a.csv", "x", 0));
    note(f, "a.csv", FOUND_CLOSED);
    RUN_UNTIL(f, explains(f, "a.csv", "can't be opened"));
    f->is_denied = false;
    RUN_UNTIL(f, f->whole == 1);
}

static void tickets_are_bounded(void **state)
{
    struct fixture *f = *state;
    f->options.max_tickets = 10;
    begin(f);
    struct err err = {0};
    char path[32];
    for (int i = 0; i < 11; i++) {
        snprintf(path, sizeof path, "%d.csv", i);
        close(put(f, path, "x", 0));
        struct found found = seen(f, path, FOUND_CLOSED);
        assert_int_equal(settle_note(f->s, &found, &err), i < 10 ? ERR_NONE : ERR_SYSTEM);
    }
    assert_true(err.retryable);
    RUN_UNTIL(f, f->whole == 10);
    note(f, "10.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 11);
}

static void forty_slow_writes_are_one_file(void **state)
{
    struct fixture *f = *state;
    begin(f);
    int fd = put(f, "a.csv", "", 0);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(write(fd, "x", 1), 1);
        note(f, "a.csv", FOUND_WRITING);
        run_for(f, 25);
    }
    assert_int_equal(f->whole, 0);
    close(fd);
    note(f, "a.csv", FOUND_CLOSED);
    RUN_UNTIL(f, f->whole == 1);
    run_for(f, 100);
    assert_int_equal(f->whole, 1);
    assert_int_equal(f->found.id.size, 40);
}

static void closing_in_the_middle_of_a_look_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    begin(f);
    char path[32];
    for (int i = 0; i < 100; i++) {
        snprintf(path, sizeof path, "%d.csv", i);
        close(put(f, path, "x", 60000));
        note(f, path, FOUND_SCANNED);
    }
    uv_run(&f->loop, UV_RUN_NOWAIT); /* a batch is on the pool now; the teardown closes and counts the handles */
    note(f, "1.csv", FOUND_GONE);
    note(f, "2.csv", FOUND_WRITING);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_closed_file_is_whole_after_debounce),
        TEST(two_opens_are_one_file_after_the_last_close),
        TEST(a_writer_that_stalls_is_waited_for),
        TEST(a_close_counts_for_nothing_while_another_writer_has_it_open),
        TEST(an_old_file_is_taken_at_once),
        TEST(an_old_file_with_an_open_writer_waits),
        TEST(a_young_file_must_stand_still),
        TEST(a_time_from_the_future_does_not_wait_for_it),
        TEST(where_leases_do_not_work_age_must_be_ten_seconds),
        TEST(lost_events_end_a_wait_for_a_close),
        TEST(a_poll_needs_two_equal_looks),
        TEST(a_file_waits_for_its_marker),
        TEST(files_without_their_markers_keep_nobody_out),
        TEST(a_rename_carries_the_wait),
        TEST(a_renamed_folder_carries_its_waits_and_a_gone_one_ends_them),
        TEST(a_file_that_is_gone_is_told_and_one_said_to_be_gone_is_forgotten),
        TEST(a_file_that_can_not_be_opened_is_tried_again),
        TEST(tickets_are_bounded),
        TEST(forty_slow_writes_are_one_file),
        TEST(closing_in_the_middle_of_a_look_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
