/* test_source_dir.c -- the directory source: scans and inotify events, on a real folder. */
#include "source_test.h"

static void what_is_there_at_start_is_scanned(void **state)
{
    struct fixture *f = *state;
    folder(f, "a");
    folder(f, "a/b");
    put(f, "one.csv", "x");
    put(f, "a/b/two.csv", "yy");
    put(f, "note.txt", "x");
    put(f, ".hidden.csv", "x");
    put(f, "three.csv.part", "x");
    start_and_scan(f);
    assert_true(f->result.is_complete);
    assert_int_equal(f->result.files, 2);
    assert_int_equal(told(f, FOUND_SCANNED, "a/b/two.csv")->id.size, 2);
    assert_non_null(told(f, FOUND_SCANNED, "one.csv"));
    assert_non_null(told(f, FOUND_FOLDER, "a/b"));
    assert_int_equal(f->count, 4);
    assert_string_equal(health(f).mode, "events");
    assert_string_equal(health(f).reason, "");
    assert_string_equal(health(f).problem, "");
    assert_int_equal(health(f).folders, 3);
    assert_true(health(f).is_ready && health(f).is_reachable);
}

static void a_close_after_writing_is_told(void **state)
{
    struct fixture *f = *state;
    start_and_scan(f);
    int fd = open(at(f, "w.csv"), O_WRONLY | O_CREAT, 0644);
    RUN_UNTIL(f, told(f, FOUND_WRITING, "w.csv"));
    assert_int_equal(write(fd, "abc", 3), 3);
    run_for(f, 50);
    assert_null(told(f, FOUND_CLOSED, "w.csv"));
    close(fd);
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "w.csv"));
    assert_int_equal(told(f, FOUND_CLOSED, "w.csv")->id.size, 3);
    unlink(at(f, "w.csv"));
    RUN_UNTIL(f, told(f, FOUND_GONE, "w.csv"));
}

static void a_rename_is_told_with_both_names(void **state)
{
    struct fixture *f = *state;
    put(f, "a.csv", "x");
    start_and_scan(f);
    rename(at(f, "a.csv"), at(f, "b.csv"));
    RUN_UNTIL(f, told(f, FOUND_RENAMED, "b.csv"));
    assert_string_equal(told(f, FOUND_RENAMED, "b.csv")->from, "a.csv");
    rename(at(f, "b.csv"), at(f, "b.txt"));
    RUN_UNTIL(f, told(f, FOUND_GONE, "b.csv"));
    put(f, "c.tmp", "x");
    rename(at(f, "c.tmp"), at(f, "c.csv"));
    RUN_UNTIL(f, told(f, FOUND_RENAMED, "c.csv"));
    assert_null(told(f, FOUND_RENAMED, "c.csv")->from);
    assert_int_equal(told_times(f, FOUND_GONE, "a.csv"), 0);
}

static void moves_in_and_out_of_the_root_are_told(void **state)
{
    struct fixture *f = *state;
    char outside[PATH_MAX];
    put(f, "a.csv", "x");
    start_and_scan(f);
    snprintf(outside, sizeof outside, "%s/outside.csv", f->base);
    rename(at(f, "a.csv"), outside);
    RUN_UNTIL(f, told(f, FOUND_GONE, "a.csv"));
    rename(outside, at(f, "back.csv"));
    RUN_UNTIL(f, told(f, FOUND_RENAMED, "back.csv"));
    assert_null(told(f, FOUND_RENAMED, "back.csv")->from);
}

static void what_follows_a_move_out_comes_after_it(void **state)
{
    struct fixture *f = *state;
    char outside[PATH_MAX];
    put(f, "a.csv", "x");
    start_and_scan(f);
    snprintf(outside, sizeof outside, "%s/outside.csv", f->base);
    rename(at(f, "a.csv"), outside);
    put(f, "a.csv", "new");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "a.csv"));
    run_for(f, 100);
    assert_int_equal(told_times(f, FOUND_GONE, "a.csv"), 1);
    assert_true(told(f, FOUND_GONE, "a.csv") < told(f, FOUND_CLOSED, "a.csv"));
}

static void links_are_found_without_a_close(void **state)
{
    struct fixture *f = *state;
    char outside[PATH_MAX];
    put(f, "x.txt", "content");
    snprintf(outside, sizeof outside, "%s/secret.csv", f->base);
    int fd = open(outside, O_WRONLY | O_CREAT, 0644);
    close(fd);
    start_and_scan(f);
    assert_int_equal(link(at(f, "x.txt"), at(f, "hard.csv")), 0);
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "hard.csv"));
    assert_int_equal(symlink("x.txt", at(f, "soft.csv")), 0);
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "soft.csv"));
    assert_int_equal(told(f, FOUND_SCANNED, "soft.csv")->id.size, 7);
    assert_int_equal(symlink(outside, at(f, "out.csv")), 0);
    assert_int_equal(symlink("../secret.csv", at(f, "up.csv")), 0);
    run_for(f, 100);
    f->scans = 0;
    source_directory.scan(f->src);
    RUN_UNTIL(f, f->scans > 0);
    assert_int_equal(told_times(f, FOUND_SCANNED, "out.csv") + told_times(f, FOUND_SCANNED, "up.csv"), 0);
    struct err err = {0};
    assert_int_equal(source_directory.open_now(f->src, "out.csv", &err), -1);
    assert_int_equal(err.code, ERR_INPUT);
    assert_int_equal(source_directory.open_now(f->src, "up.csv", &err), -1);
    assert_int_equal(source_directory.open_now(f->src, "../secret.csv", &err), -1);
    fd = source_directory.open_now(f->src, "soft.csv", &err);
    assert_true(fd >= 0);
    close(fd);
}

static void a_file_linked_from_nowhere_is_found(void **state)
{
    struct fixture *f = *state;
    start_and_scan(f);
    int fd = open(f->root, O_TMPFILE | O_WRONLY, 0644);
    if (fd < 0)
        skip();
    assert_int_equal(write(fd, "whole", 5), 5);
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    assert_int_equal(linkat(AT_FDCWD, name, AT_FDCWD, at(f, "t.csv"), AT_SYMLINK_FOLLOW), 0);
    close(fd);
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "t.csv") || told(f, FOUND_CLOSED, "t.csv"));
}

static void nothing_but_regular_files_is_told_or_opened(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(mkfifo(at(f, "p.csv"), 0644), 0);
    folder(f, "d.csv");
    start_and_scan(f);
    assert_int_equal(mkfifo(at(f, "q.csv"), 0644), 0);
    run_for(f, 50);
    assert_int_equal(f->count, 1); /* the folder */
    struct err err = {0};
    assert_int_equal(source_directory.open_now(f->src, "p.csv", &err), -1); /* and does not hang */
    assert_int_equal(err.code, ERR_INPUT);
    assert_int_equal(source_directory.open_now(f->src, "d.csv", &err), -1);
    assert_int_equal(source_directory.open_now(f->src, "none.csv", &err), -1);
    assert_int_equal(err.code, ERR_INPUT);
}

static void files_in_folders_made_a_moment_ago_are_found(void **state)
{
    struct fixture *f = *state;
    start_and_scan(f);
    char path[128];
    for (int i = 0; i < 300; i++) {
        snprintf(path, sizeof path, "a%d", i);
        folder(f, path);
        snprintf(path, sizeof path, "a%d/b", i);
        folder(f, path);
        snprintf(path, sizeof path, "a%d/b/f.csv", i);
        put(f, path, "x");
        if (i % 10 == 0)
            uv_run(&f->loop, UV_RUN_NOWAIT);
    }
    for (int i = 0; i < 300; i++) {
        snprintf(path, sizeof path, "a%d/b/f.csv", i);
        RUN_UNTIL(f, told(f, FOUND_SCANNED, path) || told(f, FOUND_CLOSED, path));
    }
    RUN_UNTIL(f, health(f).folders == 601);
}

static void a_renamed_folder_keeps_its_watches(void **state)
{
    struct fixture *f = *state;
    folder(f, "a");
    folder(f, "a/b");
    put(f, "a/b/f.csv", "x");
    start_and_scan(f);
    rename(at(f, "a"), at(f, "z"));
    RUN_UNTIL(f, told(f, FOUND_FOLDER_RENAMED, "z"));
    assert_string_equal(told(f, FOUND_FOLDER_RENAMED, "z")->from, "a");
    put(f, "z/b/g.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "z/b/g.csv"));
    assert_int_equal(health(f).folders, 3);
    folder(f, "y");
    rename(at(f, "z/b"), at(f, "y/c"));
    RUN_UNTIL(f, told(f, FOUND_FOLDER_RENAMED, "y/c"));
    put(f, "y/c/h.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "y/c/h.csv"));
}

static void a_folder_moved_out_is_gone_with_its_watches(void **state)
{
    struct fixture *f = *state;
    char outside[PATH_MAX];
    folder(f, "a");
    folder(f, "a/b");
    start_and_scan(f);
    snprintf(outside, sizeof outside, "%s/moved", f->base);
    rename(at(f, "a"), outside);
    RUN_UNTIL(f, told(f, FOUND_FOLDER_GONE, "a"));
    assert_int_equal(health(f).folders, 1);
    strcat(outside, "/b/f.csv");
    close(open(outside, O_WRONLY | O_CREAT, 0644));
    run_for(f, 80);
    assert_int_equal(told_times(f, FOUND_CLOSED, NULL), 0);
    *strstr(outside, "/b/f.csv") = '\0';
    rename(outside, at(f, "again"));
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "again/b/f.csv"));
    assert_non_null(told(f, FOUND_FOLDER, "again/b"));
}

static void a_deleted_folder_is_gone(void **state)
{
    struct fixture *f = *state;
    folder(f, "a");
    folder(f, "a/b");
    start_and_scan(f);
    rmdir(at(f, "a/b"));
    rmdir(at(f, "a"));
    RUN_UNTIL(f, told(f, FOUND_FOLDER_GONE, "a"));
    assert_non_null(told(f, FOUND_FOLDER_GONE, "a/b"));
    assert_int_equal(health(f).folders, 1);
}

static void depth_and_avoided_folders_bound_the_scan(void **state)
{
    struct fixture *f = *state;
    char state_dir[PATH_MAX];
    folder(f, "a");
    folder(f, "a/b");
    folder(f, "state");
    put(f, "a/1.csv", "x");
    put(f, "a/b/2.csv", "x");
    put(f, "state/3.csv", "x");
    f->max_depth = 1;
    snprintf(state_dir, sizeof state_dir, "%s/../in/state", f->root); /* by whatever name */
    f->avoid[0] = state_dir;
    start_and_scan(f);
    assert_int_equal(f->result.files, 1);
    assert_non_null(told(f, FOUND_SCANNED, "a/1.csv"));
    assert_int_equal(health(f).folders, 2);
    folder(f, "a/c");
    put(f, "a/c/4.csv", "x");
    put(f, "state/5.csv", "x");
    put(f, "a/6.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "a/6.csv"));
    run_for(f, 50);
    assert_int_equal(told_times(f, FOUND_CLOSED, NULL), 1);
    assert_int_equal(health(f).folders, 2);
}

static void a_scan_waits_for_its_reader(void **state)
{
    struct fixture *f = *state;
    char path[64];
    for (int i = 0; i < 1500; i++) {
        snprintf(path, sizeof path, "%d.csv", i);
        put(f, path, "");
    }
    f->is_held = true;
    start(f);
    RUN_UNTIL(f, f->is_held_now);
    run_for(f, 50);
    assert_int_equal(f->count, SCAN_CHUNK);
    /* Folders that appear meanwhile don't wait behind it. */
    folder(f, "new");
    put(f, "new/n.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_SCANNED, "new/n.csv") || told(f, FOUND_CLOSED, "new/n.csv"));
    f->is_held = false;
    source_directory.scan_resume(f->src);
    RUN_UNTIL(f, f->scans == 1);
    assert_int_equal(f->result.files >= 1500, 1);
    for (int i = 0; i < 1500; i++) {
        snprintf(path, sizeof path, "%d.csv", i);
        assert_int_equal(told_times(f, FOUND_SCANNED, path), 1);
    }
}

static void a_large_folder_moved_in_is_left_to_a_scan_that_waits(void **state)
{
    struct fixture *f = *state;
    char outside[PATH_MAX], path[PATH_MAX + 32];
    snprintf(outside, sizeof outside, "%s/big", f->base);
    mkdir(outside, 0755);
    for (int i = 0; i < 5000; i++) {
        snprintf(path, sizeof path, "%s/%d.csv", outside, i);
        close(open(path, O_WRONLY | O_CREAT, 0644));
    }
    start_and_scan(f);
    rename(outside, at(f, "big"));
    RUN_UNTIL(f, f->scans == 2);
    size_t n = 0;
    for (size_t i = 0; i < f->count; i++)
        n += f->told[i].is_scan && f->told[i].how == FOUND_SCANNED;
    assert_int_equal(n, 5000);
}

static void a_folder_deleted_while_it_is_scanned_is_no_error(void **state)
{
    struct fixture *f = *state;
    char path[64];
    folder(f, "a");
    for (int i = 0; i < 1200; i++) {
        snprintf(path, sizeof path, "a/%d.csv", i);
        put(f, path, "");
    }
    f->is_held = true;
    start(f);
    RUN_UNTIL(f, f->is_held_now);
    for (int i = 0; i < 1200; i++) {
        snprintf(path, sizeof path, "a/%d.csv", i);
        unlink(at(f, path));
    }
    rmdir(at(f, "a"));
    f->is_held = false;
    source_directory.scan_resume(f->src);
    RUN_UNTIL(f, f->scans == 1);
    assert_true(f->result.is_complete);
    RUN_UNTIL(f, health(f).folders == 1);
}

static void lost_events_are_followed_by_a_scan(void **state)
{
    struct fixture *f = *state;
    folder(f, "a");
    start_and_scan(f);
    int fd1 = open(at(f, "1.csv"), O_WRONLY | O_CREAT, 0644), fd2 = open(at(f, "2.csv"), O_WRONLY | O_CREAT, 0644);
    for (int i = 0; i < 20000; i++) /* more than the queue holds: equal neighbours would be one */
        if (write(i % 2 ? fd1 : fd2, "x", 1) != 1)
            fail();
    close(fd1);
    close(fd2);
    folder(f, "a/b"); /* lost */
    put(f, "a/b/f.csv", "x");
    RUN_UNTIL(f, f->overflows > 0);
    RUN_UNTIL(f, f->scans == 2);
    assert_int_equal(health(f).overflows, 1);
    assert_non_null(told(f, FOUND_SCANNED, "a/b/f.csv"));
    assert_non_null(told(f, FOUND_SCANNED, "1.csv"));
    put(f, "a/b/g.csv", "x");
    RUN_UNTIL(f, told(f, FOUND_CLOSED, "a/b/g.csv"));
    run_for(f, 1200);
    assert_string_equal(health(f).mode, "events"); /* lost by overflow is no reason to distrust events */
}

static void closing_in_the_middle_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    char path[64];
    for (int i = 0; i < 600; i++) {
        snprintf(path, sizeof path, "d%d", i);
        folder(f, path);
    }
    start(f);
    stop(f); /* the first step is on the pool */
    f->is_held = true;
    start(f);
    RUN_UNTIL(f, f->is_held_now);
    rename(at(f, "d1"), "/tmp/chute-no-such/x"); /* fails: fine */
    put(f, "x.csv", "1");
    char outside[PATH_MAX];
    snprintf(outside, sizeof outside, "%s/x.csv", f->base);
    rename(at(f, "x.csv"), outside);
    uv_run(&f->loop, UV_RUN_ONCE); /* a name that went waits for its other half */
    folder(f, "new");
    uv_run(&f->loop, UV_RUN_NOWAIT);
    stop(f);
}

static void a_marker_is_told_with_its_file(void **state)
{
    struct fixture *f = *state;
    f->options.ready_marker = "{name}.done";
    put(f, "a.csv", "x");
    put(f, "a.csv.done", "");
    put(f, "b.txt.done", "");
    start_and_scan(f);
    assert_non_null(told(f, FOUND_SCANNED, "a.csv.done"));
    assert_int_equal(f->result.files, 2);
    struct directory_options bad = f->options;
    struct err err = {0};
    bad.ready_marker = "done";
    assert_int_equal(source_directory.check(&bad, &err), ERR_CONFIG);
    assert_int_equal(source_directory.check(&f->options, &err), ERR_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_there_at_start_is_scanned),
        TEST(a_close_after_writing_is_told),
        TEST(a_rename_is_told_with_both_names),
        TEST(moves_in_and_out_of_the_root_are_told),
        TEST(what_follows_a_move_out_comes_after_it),
        TEST(links_are_found_without_a_close),
        TEST(a_file_linked_from_nowhere_is_found),
        TEST(nothing_but_regular_files_is_told_or_opened),
        TEST(files_in_folders_made_a_moment_ago_are_found),
        TEST(a_renamed_folder_keeps_its_watches),
        TEST(a_folder_moved_out_is_gone_with_its_watches),
        TEST(a_deleted_folder_is_gone),
        TEST(depth_and_avoided_folders_bound_the_scan),
        TEST(a_scan_waits_for_its_reader),
        TEST(a_large_folder_moved_in_is_left_to_a_scan_that_waits),
        TEST(a_folder_deleted_while_it_is_scanned_is_no_error),
        TEST(lost_events_are_followed_by_a_scan),
        TEST(closing_in_the_middle_leaves_nothing),
        TEST(a_marker_is_told_with_its_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
