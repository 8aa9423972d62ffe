#include "finish.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "alloc_fault.h"

/* What comes between our look and our act: done at the n-th rename, by the wrapper below. */
static void (*on_rename)(void);
static bool no_noreplace;  /* a file system without RENAME_NOREPLACE */
static int rename_failure; /* errno of every rename into another folder */
static size_t write_room = SIZE_MAX;

int __real_renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags);
int __wrap_renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags)
{
    if (on_rename != NULL) {
        void (*act)(void) = on_rename;
        on_rename = NULL;
        act();
    }
    if (no_noreplace) {
        errno = EINVAL;
        return -1;
    }
    if (rename_failure != 0 && from_folder != to_folder) {
        errno = rename_failure;
        return -1;
    }
    return __real_renameat2(from_folder, from, to_folder, to, flags);
}

ssize_t __real_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size)
{
    if (size > write_room) {
        errno = ENOSPC;
        return -1;
    }
    if (write_room != SIZE_MAX)
        write_room -= size;
    return __real_write(fd, data, size);
}

struct fixture {
    char base[64];  /* holds in/ and out/ and quarantine/ */
    char other[64]; /* on another file system; "" if this machine has none that we may use */
    char in[80], out[80], quarantine[80];
    int root;
    struct err err;
};
static struct fixture f;

static void put(const char *folder, const char *path, const char *text)
{
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s/%s", folder, path);
    FILE *file = fopen(name, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static const char *content(const char *folder, const char *path)
{
    static char text[4096];
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s/%s", folder, path);
    FILE *file = fopen(name, "r");
    if (file == NULL)
        return "(none)";
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

static struct file_id id_of(const char *path)
{
    struct stat st;
    assert_int_equal(fstatat(f.root, path, &st, AT_SYMLINK_NOFOLLOW), 0);
    return (struct file_id){.size = (uint64_t)st.st_size,
                            .mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec,
                            .ctime_ns = (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec,
                            .inode = st.st_ino,
                            .dev = st.st_dev};
}

static int count(const char *folder)
{
    int n = 0;
    DIR *dir = opendir(folder);
    if (dir == NULL)
        return -1;
    for (struct dirent *e; (e = readdir(dir)) != NULL;)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(dir);
    return n;
}

static int setup(void **state)
{
    (void)state;
    f = (struct fixture){.root = -1};
    on_rename = NULL;
    no_noreplace = false;
    rename_failure = 0;
    write_room = SIZE_MAX;
    strcpy(f.base, "/tmp/chute-finish-XXXXXX");
    if (mkdtemp(f.base) == NULL)
        return -1;
    strcpy(f.other, "/dev/shm/chute-finish-XXXXXX");
    struct stat a, b;
    if (mkdtemp(f.other) == NULL || stat(f.base, &a) != 0 || stat(f.other, &b) != 0 || a.st_dev == b.st_dev)
        f.other[0] = '\0';
    snprintf(f.in, sizeof f.in, "%s/in", f.base);
    snprintf(f.out, sizeof f.out, "%s/out", f.base);
    snprintf(f.quarantine, sizeof f.quarantine, "%s/quarantine", f.base);
    mkdir(f.in, 0755);
    f.root = open(f.in, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return f.root < 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[200];
    close(f.root);
    snprintf(command, sizeof command, "rm -rf %s %s", f.base, f.other);
    return system(command);
}

static void the_loaded_version_is_deleted(void **state)
{
    (void)state;
    mkdirat(f.root, "a", 0755);
    put(f.in, "a/x.csv", "1");
    struct file_id id = id_of("a/x.csv");
    assert_int_equal(finish_delete(NULL, f.root, "a/x.csv", &id, &f.err), ERR_NONE);
    assert_int_equal(finish_delete(NULL, f.root, "a/x.csv", &id, &f.err), ERR_NONE); /* gone already */
    assert_int_equal(finish_delete(NULL, f.root, "b/x.csv", &id, &f.err), ERR_NONE);
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/a", f.in);
    assert_int_equal(count(folder), 0);
}

static void another_version_is_left_in_place(void **state)
{
    (void)state;
    put(f.in, "x.csv", "1");
    struct file_id id = id_of("x.csv"), other = id;
    other.size++;
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &other, &f.err), ERR_CHANGED);
    other = id;
    other.mtime_ns--;
    assert_int_equal(finish_move(NULL, f.root, "x.csv", &other, f.out, false, NULL, &f.err), ERR_CHANGED);
    other = id;
    other.inode++;
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &other, &f.err), ERR_CHANGED);
    assert_string_equal(content(f.in, "x.csv"), "1");
    assert_int_equal(count(f.in), 1);
}

static void write_new_version(void)
{
    put(f.in, "y", "new version");
    renameat(f.root, "y", f.root, "x.csv");
}

static void a_version_that_comes_at_the_last_moment_survives(void **state)
{
    (void)state;
    put(f.in, "x.csv", "1");
    struct file_id id = id_of("x.csv");
    on_rename = write_new_version;
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &id, &f.err), ERR_CHANGED);
    assert_string_equal(content(f.in, "x.csv"), "new version");
    assert_int_equal(count(f.in), 1);
}

static void a_file_that_is_open_for_writing_is_left_in_place(void **state)
{
    (void)state;
    put(f.in, "x.csv", "1");
    struct file_id id = id_of("x.csv");
    int writer = openat(f.root, "x.csv", O_WRONLY | O_CLOEXEC);
    int probe = openat(f.root, "x.csv", O_RDONLY | O_CLOEXEC);
    if (fcntl(probe, F_SETLEASE, F_RDLCK) == 0 || errno != EAGAIN)
        skip(); /* no leases here */
    close(probe);
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &id, &f.err), ERR_CHANGED);
    assert_non_null(strstr(f.err.text, "open for writing"));
    assert_int_equal(finish_move(NULL, f.root, "x.csv", &id, f.out, false, NULL, &f.err), ERR_CHANGED);
    close(writer);
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &id, &f.err), ERR_NONE);
}

/* Does a writer wait for our lease on this file? */
static bool is_lease_breaking(ino_t inode)
{
    char line[256], mark[32];
    snprintf(mark, sizeof mark, ":%llu ", (unsigned long long)inode);
    FILE *locks = fopen("/proc/locks", "re");
    bool found = false;
    while (locks != NULL && !found && fgets(line, sizeof line, locks) != NULL)
        found = strstr(line, "BREAKING") != NULL && strstr(line, mark) != NULL;
    if (locks != NULL)
        fclose(locks);
    return found;
}

static pid_t writer;
static void open_for_appending(void)
{
    struct stat st;
    assert_int_equal(fstatat(f.root, "x.csv", &st, 0), 0);
    writer = fork(); /* its open() waits until our lease is gone */
    if (writer == 0) {
        for (int fd = STDERR_FILENO + 1; fd < 256; fd++) /* our copy of what holds the lease would keep it */
            if (fd != f.root)
                close(fd);
        int fd = openat(f.root, "x.csv", O_WRONLY | O_APPEND | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : __real_write(fd, "2", 1);
        _exit(n == 1 ? 0 : 1);
    }
    for (int i = 0; i < 30000 && !is_lease_breaking(st.st_ino); i++)
        usleep(1000);
}

static void a_writer_that_opens_it_at_the_last_moment_loses_nothing(void **state)
{
    (void)state;
    put(f.in, "x.csv", "1");
    struct file_id id = id_of("x.csv");
    int probe = openat(f.root, "x.csv", O_RDONLY | O_CLOEXEC);
    bool has_leases = fcntl(probe, F_SETLEASE, F_RDLCK) == 0;
    close(probe);
    if (!has_leases)
        skip();
    on_rename = open_for_appending;
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &id, &f.err), ERR_CHANGED);
    int status;
    assert_int_equal(waitpid(writer, &status, 0), writer);
    assert_int_equal(status, 0);
    assert_string_equal(content(f.in, "x.csv"), "12");
}

static void links_are_never_followed(void **state)
{
    (void)state;
    char outside[PATH_MAX];
    snprintf(outside, sizeof outside, "%s/outside", f.base);
    mkdir(outside, 0755);
    put(outside, "x.csv", "1");
    assert_int_equal(symlinkat(outside, f.root, "a"), 0);
    struct file_id id = id_of("a/x.csv");
    assert_int_equal(finish_delete(NULL, f.root, "a/x.csv", &id, &f.err), ERR_CHANGED);
    assert_int_equal(finish_move(NULL, f.root, "a/x.csv", &id, f.out, false, NULL, &f.err), ERR_CHANGED);
    assert_int_equal(symlinkat("../outside/x.csv", f.root, "x.csv"), 0);
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &id, &f.err), ERR_CHANGED);
    assert_int_equal(finish_delete(NULL, f.root, "../outside/x.csv", &id, &f.err), ERR_SYSTEM);
    assert_int_equal(finish_recover(f.root, "a", &f.err), ERR_NONE);
    assert_string_equal(content(outside, "x.csv"), "1");
}

static void a_moved_file_keeps_its_folders_unless_flat(void **state)
{
    (void)state;
    char place[PATH_MAX], want[PATH_MAX];
    mkdirat(f.root, "a", 0755);
    put(f.in, "a/x.csv", "1");
    struct file_id id = id_of("a/x.csv");
    assert_int_equal(finish_move(NULL, f.root, "a/x.csv", &id, f.out, false, place, &f.err), ERR_NONE);
    snprintf(want, sizeof want, "%s/a/x.csv", f.out);
    assert_string_equal(place, want);
    assert_string_equal(content(f.out, "a/x.csv"), "1");
    put(f.in, "a/x.csv", "2");
    id = id_of("a/x.csv");
    assert_int_equal(finish_move(NULL, f.root, "a/x.csv", &id, f.out, true, place, &f.err), ERR_NONE);
    assert_string_equal(content(f.out, "x.csv"), "2");
    assert_int_equal(finish_move(NULL, f.root, "a/x.csv", &id, f.out, true, place, &f.err), ERR_NONE);
    assert_string_equal(place, "");
}

static void move_three_versions(const char *out)
{
    static const char *const versions[] = {"one", "two", "one", "2wo", "two"};
    char place[PATH_MAX];
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        put(f.in, "x.csv", versions[i]);
        struct file_id id = id_of("x.csv");
        assert_int_equal(finish_move(NULL, f.root, "x.csv", &id, out, false, place, &f.err), ERR_NONE);
        assert_string_equal(content("", place + 1), versions[i]);
    }
    assert_string_equal(content(out, "x.csv"), "one");
    assert_string_equal(content(out, "x.csv.1"), "two");
    assert_string_equal(content(out, "x.csv.2"), "2wo");
    assert_int_equal(count(out), 3);
    assert_int_equal(count(f.in), 0);
}

static void same_bytes_are_replaced_and_others_get_a_suffix(void **state)
{
    (void)state;
    move_three_versions(f.out);
}

static void a_file_system_without_careful_renames_is_served_too(void **state)
{
    (void)state;
    no_noreplace = true;
    move_three_versions(f.out);
    put(f.in, "x.csv", "1");
    struct file_id id = id_of("x.csv");
    on_rename = write_new_version;
    assert_int_equal(finish_delete(NULL, f.root, "x.csv", &id, &f.err), ERR_CHANGED);
    assert_string_equal(content(f.in, "x.csv"), "new version");
}

static void another_file_system_gets_a_copy_with_times_and_rights(void **state)
{
    (void)state;
    if (f.other[0] == '\0')
        skip();
    move_three_versions(f.other);
    put(f.in, "t.csv", "times");
    fchmodat(f.root, "t.csv", 0604, 0);
    const struct timespec times[2] = {{1700000000, 0}, {1700000000, 123456789}};
    utimensat(f.root, "t.csv", times, 0);
    struct file_id id = id_of("t.csv");
    assert_int_equal(finish_move(NULL, f.root, "t.csv", &id, f.other, false, NULL, &f.err), ERR_NONE);
    char name[PATH_MAX];
    struct stat st;
    snprintf(name, sizeof name, "%s/t.csv", f.other);
    assert_int_equal(stat(name, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0604);
    assert_int_equal(st.st_mtim.tv_nsec, 123456789);
}

static void a_full_disk_leaves_the_file_where_it_was(void **state)
{
    (void)state;
    char text[3000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    put(f.in, "x.csv", text);
    struct file_id id = id_of("x.csv");
    rename_failure = EXDEV;
    write_room = 1000;
    for (int i = 0; i < 3; i++) { /* again and again: our own attempts must not look like a change */
        assert_int_equal(finish_move(NULL, f.root, "x.csv", &id, f.out, false, NULL, &f.err), ERR_SYSTEM);
        assert_true(f.err.retryable);
        assert_non_null(strstr(f.err.text, strerror(ENOSPC)));
        assert_int_equal(count(f.out), 0);
        assert_int_equal(count(f.in), 1);
    }
    write_room = SIZE_MAX;
    assert_int_equal(finish_move(NULL, f.root, "x.csv", &id, f.out, false, NULL, &f.err), ERR_NONE);
    assert_string_equal(content(f.out, "x.csv"), text);
    assert_int_equal(count(f.in), 0);
}

static void without_memory_the_file_stays(void **state)
{
    (void)state;
    rename_failure = EXDEV;
    ALLOC_FAULT_SWEEP
    {
        put(f.in, "x.csv", "1");
        struct file_id id = id_of("x.csv");
        enum err_code code = finish_move(NULL, f.root, "x.csv", &id, f.out, false, NULL, &f.err);
        if (code != ERR_NONE)
            assert_string_equal(content(f.in, "x.csv"), "1");
        else
            assert_string_equal(content(f.out, "x.csv"), "1");
        if (alloc_fault_hit())
            assert_int_equal(finish_delete(NULL, f.root, "x.csv", &id, NULL), ERR_NONE);
    }
}

static void a_kill_in_between_is_put_right_at_the_start(void **state)
{
    (void)state;
    char longest[NAME_MAX + 1];
    memset(longest, 'n', NAME_MAX);
    longest[NAME_MAX] = '\0';
    put(f.in, ".chute~x.csv", "1");
    put(f.in, ".chute~taken.csv", "old");
    put(f.in, "taken.csv", "new");
    put(f.in, ".chute-copy~1-2", "half");
    put(f.in, ".chute~twin.csv", "twin");
    assert_int_equal(linkat(f.root, ".chute~twin.csv", f.root, "twin.csv", 0), 0);
    mkdirat(f.root, ".chute-long~", 0700);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/.chute-long~", f.in);
    put(path, longest, "long");
    assert_int_equal(finish_recover(f.root, "", &f.err), ERR_NONE);
    assert_string_equal(content(f.in, "x.csv"), "1");
    assert_string_equal(content(f.in, "taken.csv"), "new");
    assert_string_equal(content(f.in, "taken.csv.1"), "old");
    assert_string_equal(content(f.in, "twin.csv"), "twin");
    assert_string_equal(content(f.in, longest), "long");
    assert_int_equal(count(f.in), 5);
    assert_int_equal(finish_recover(f.root, "no/such", &f.err), ERR_NONE);
}

static void the_longest_name_can_be_finished(void **state)
{
    (void)state;
    char longest[NAME_MAX + 1];
    memset(longest, 'n', NAME_MAX);
    longest[NAME_MAX] = '\0';
    for (int i = 0; i < 3; i++) {
        char text[2] = {(char)('0' + i), '\0'};
        put(f.in, longest, text);
        struct file_id id = id_of(longest);
        assert_int_equal(finish_move(NULL, f.root, longest, &id, f.out, false, NULL, &f.err), ERR_NONE);
    }
    assert_int_equal(count(f.in), 0);
    assert_int_equal(count(f.out), 3);
    put(f.in, longest, "9");
    struct file_id id = id_of(longest);
    on_rename = NULL;
    assert_int_equal(finish_delete(NULL, f.root, longest, &id, &f.err), ERR_NONE);
    assert_int_equal(count(f.in), 0);
}

static void private_names_are_known(void **state)
{
    (void)state;
    assert_true(finish_is_private(".chute~x.csv"));
    assert_true(finish_is_private(".chute-long~"));
    assert_true(finish_is_private(".chute-copy~1-2"));
    assert_false(finish_is_private("x.csv"));
    assert_false(finish_is_private(".chute"));
}

static struct quarantine_note note_for(const char *path)
{
    return (struct quarantine_note){.flow = "sales",
                                    .source = "inbox",
                                    .path = path,
                                    .table = "t",
                                    .dest = "lite",
                                    .reason = "line 3: expected 3 fields, found \"4\"",
                                    .hash_hex = "00ff",
                                    .id = {.size = 7, .mtime_ns = 1763636971123000000},
                                    .at_ms = 1763636971123,
                                    .tries = 1};
}

static void a_quarantined_file_has_its_reason_until_it_is_cleared(void **state)
{
    (void)state;
    struct quarantine_note note = note_for("a/x.csv");
    assert_int_equal(quarantine_clear(f.quarantine, "sales", "a/x.csv", &f.err), ERR_NONE);
    assert_int_equal(quarantine_write(f.quarantine, NULL, &note, &f.err), ERR_NONE);
    const char *text = content(f.quarantine, "sales/a/x.csv.error.json");
    assert_non_null(strstr(text, "\"reason\": \"line 3: expected 3 fields, found \\\"4\\\"\""));
    assert_non_null(strstr(text, "\"quarantined\": \"2025-11-20T11:09:31.123Z\""));
    assert_int_equal(quarantine_clear(f.quarantine, "sales", "a/x.csv", &f.err), ERR_NONE);
    assert_string_equal(content(f.quarantine, "sales/a/x.csv.error.json"), "(none)");
    put(f.base, "moved.csv", "1");
    char place[PATH_MAX];
    snprintf(place, sizeof place, "%s/moved.csv", f.base);
    assert_int_equal(quarantine_write(NULL, place, &note, &f.err), ERR_NONE);
    assert_string_not_equal(content(f.base, "moved.csv.error.json"), "(none)");
}

static void no_name_leaves_the_quarantine_or_meets_another(void **state)
{
    (void)state;
    char longest[2 * NAME_MAX + 2];
    memset(longest, 'n', NAME_MAX);
    longest[NAME_MAX] = '/';
    memset(longest + NAME_MAX + 1, 'm', NAME_MAX);
    longest[2 * NAME_MAX + 1] = '\0';
    const char *const paths[] = {"../../x", "a/../x", "a/./x", "b.error.json/x", "b", "\xff\xfe.csv",
                                 longest,   "..",     "."};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct quarantine_note note = note_for(paths[i]);
        note.flow = i % 2 == 0 ? "../f" : "..";
        assert_int_equal(quarantine_write(f.quarantine, NULL, &note, &f.err), ERR_NONE);
        assert_int_equal(quarantine_write(f.quarantine, NULL, &note, &f.err), ERR_NONE);
    }
    assert_int_equal(count(f.base), 2); /* in/ and quarantine/ */
    assert_int_equal(count(f.quarantine), 2);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        assert_int_equal(quarantine_clear(f.quarantine, i % 2 == 0 ? "../f" : "..", paths[i], &f.err), ERR_NONE);
}

static void a_reason_that_cannot_be_written_leaves_no_half_one(void **state)
{
    (void)state;
    struct quarantine_note note = note_for("x.csv");
    assert_int_equal(quarantine_write(f.quarantine, NULL, &note, &f.err), ERR_NONE);
    note.tries = 99;
    write_room = 10;
    assert_int_equal(quarantine_write(f.quarantine, NULL, &note, &f.err), ERR_SYSTEM);
    write_room = SIZE_MAX;
    assert_non_null(strstr(content(f.quarantine, "sales/x.csv.error.json"), "\"tries\": 1\n"));
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/sales", f.quarantine);
    assert_int_equal(count(folder), 1);
    ALLOC_FAULT_SWEEP
    {
        enum err_code code = quarantine_write(f.quarantine, NULL, &note, &f.err);
        assert_int_equal(code != ERR_NONE, alloc_fault_hit());
    }
}

static struct rejects *open_rejects(struct reject_sink *sink)
{
    struct rejects *r;
    assert_int_equal(rejects_open(f.quarantine, "sales", "a/x.csv", &r, &f.err), ERR_NONE);
    rejects_sink(r, sink);
    return r;
}

static bool put_row(struct reject_sink *sink, uint64_t line)
{
    const char *values[] = {"plain", "q\"u,o\nte", "", NULL, " space"};
    const uint32_t lengths[] = {5, 8, 0, 0, 6};
    return sink->put(sink->arg, line, line * 10, "too many fields: 5, expected 3", values, lengths, 5);
}

static void rejected_rows_are_kept_only_with_their_load(void **state)
{
    (void)state;
    struct reject_sink sink;
    struct rejects *r = open_rejects(&sink);
    assert_int_equal(rejects_keep(r, &f.err), ERR_NONE);
    assert_int_equal(count(f.quarantine), -1); /* none, no file */
    r = open_rejects(&sink);
    assert_true(put_row(&sink, 1));
    rejects_drop(r);
    rejects_drop(NULL);
    assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv"), "(none)");
    r = open_rejects(&sink);
    for (uint64_t i = 0; i < 5000; i++) /* more than one write */
        assert_true(put_row(&sink, i));
    sink.restart(sink.arg);
    assert_true(put_row(&sink, 7));
    assert_int_equal(rejects_keep(r, &f.err), ERR_NONE);
    assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv"),
                        "line,offset,reason\n7,70,\"too many fields: 5, expected 3\",plain,\"q\"\"u,o\nte\",\"\",,\" "
                        "space\"\n");
    r = open_rejects(&sink); /* the next version has none */
    assert_int_equal(rejects_keep(r, &f.err), ERR_NONE);
    assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv"), "(none)");
}

static void rejected_rows_of_a_load_that_a_kill_cut_off_are_found(void **state)
{
    (void)state;
    struct reject_sink sink;
    struct rejects *r = open_rejects(&sink);
    assert_int_equal(rejects_sync(r, &f.err), ERR_NONE);
    assert_int_equal(count(f.quarantine), -1); /* none, no file */
    assert_int_equal(rejects_adopt(f.quarantine, "sales", "a/x.csv", &f.err), ERR_NONE);
    assert_true(put_row(&sink, 7));
    assert_int_equal(rejects_sync(r, &f.err), ERR_NONE);
    /* What is on disk now is all that a kill leaves. */
    const char *rows = "line,offset,reason\n7,70,\"too many fields: 5, expected 3\",plain,\"q\"\"u,o\nte\",\"\",,\" "
                       "space\"\n";
    assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv.part"), rows);
    for (int i = 0; i < 2; i++) { /* the second time it has its name already */
        assert_int_equal(rejects_adopt(f.quarantine, "sales", "a/x.csv", &f.err), ERR_NONE);
        assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv"), rows);
        assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv.part"), "(none)");
    }
    rejects_drop(r);
    r = open_rejects(&sink);
    write_room = 0;
    assert_true(put_row(&sink, 1));
    assert_int_equal(rejects_sync(r, &f.err), ERR_SYSTEM);
    write_room = SIZE_MAX;
    assert_int_equal(rejects_sync(r, &f.err), ERR_SYSTEM); /* that it failed is not forgotten */
    rejects_drop(r);
    assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv"), rows);
}

static void rejected_rows_that_cannot_be_kept_are_an_error(void **state)
{
    (void)state;
    struct reject_sink sink;
    struct rejects *r = open_rejects(&sink);
    write_room = 70000;
    bool is_kept = true;
    for (uint64_t i = 0; i < 10000 && is_kept; i++)
        is_kept = put_row(&sink, i);
    assert_false(is_kept);
    assert_int_equal(rejects_keep(r, &f.err), ERR_SYSTEM);
    assert_string_equal(content(f.quarantine, "sales/a/x.csv.rejected.csv.part"), "(none)");
    write_room = SIZE_MAX;
    ALLOC_FAULT_SWEEP
    {
        if (rejects_open(f.quarantine, "sales", "b.csv", &r, &f.err) == ERR_NONE) {
            rejects_sink(r, &sink);
            bool is_put = put_row(&sink, 1);
            assert_int_equal(rejects_keep(r, &f.err) == ERR_NONE, is_put);
        }
    }
}

/* Neighbours find their folders open; what happens to those meanwhile is met as if they had been walked to. */
static void neighbours_share_their_folders(void **state)
{
    (void)state;
    struct finish_memo memo;
    char path[PATH_MAX], moved[PATH_MAX], place[PATH_MAX];
    static const char *const names[] = {"a/1.csv", "a/2.csv", "b/1.csv", "a/3.csv", "top.csv", "a/4.csv"};
    finish_memo_init(&memo);
    snprintf(path, sizeof path, "%s/a", f.in);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/b", f.in);
    mkdir(path, 0755);
    for (size_t i = 0; i < 6; i++) {
        put(f.in, names[i], names[i]);
        struct file_id id = id_of(names[i]);
        if (i == 3) { /* the target's folder goes: it is made again */
            snprintf(path, sizeof path, "rm -r %s/a", f.out);
            assert_int_equal(system(path), 0);
        }
        assert_int_equal(finish_move(&memo, f.root, names[i], &id, f.out, false, place, &f.err), ERR_NONE);
        snprintf(path, sizeof path, "%s/%s", f.out, names[i]);
        assert_string_equal(place, path);
        assert_string_equal(content(f.out, names[i]), names[i]);
    }
    /* The source's folder goes, and another one has its name: its file is not the loaded one, nor is it gone. */
    put(f.in, "a/5.csv", "old");
    struct file_id old = id_of("a/5.csv");
    snprintf(path, sizeof path, "%s/a", f.in);
    snprintf(moved, sizeof moved, "%s/a.old", f.in);
    assert_int_equal(rename(path, moved), 0);
    mkdir(path, 0755);
    put(f.in, "a/5.csv", "new!");
    assert_int_equal(finish_delete(&memo, f.root, "a/5.csv", &old, &f.err), ERR_NONE);
    assert_string_equal(content(f.in, "a/5.csv"), "new!");
    assert_string_equal(content(f.in, "a.old/5.csv"), "(none)"); /* the very version that was loaded */
    snprintf(path, sizeof path, "rm -r %s/a.old", f.in);
    assert_int_equal(system(path), 0);
    struct file_id fresh = id_of("a/5.csv");
    assert_int_equal(finish_delete(&memo, f.root, "a/5.csv", &fresh, &f.err), ERR_NONE); /* walks again */
    assert_string_equal(content(f.in, "a/5.csv"), "(none)");
    finish_memo_done(&memo);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(neighbours_share_their_folders),
        TEST(the_loaded_version_is_deleted),
        TEST(another_version_is_left_in_place),
        TEST(a_version_that_comes_at_the_last_moment_survives),
        TEST(a_file_that_is_open_for_writing_is_left_in_place),
        TEST(a_writer_that_opens_it_at_the_last_moment_loses_nothing),
        TEST(links_are_never_followed),
        TEST(a_moved_file_keeps_its_folders_unless_flat),
        TEST(same_bytes_are_replaced_and_others_get_a_suffix),
        TEST(a_file_system_without_careful_renames_is_served_too),
        TEST(another_file_system_gets_a_copy_with_times_and_rights),
        TEST(a_full_disk_leaves_the_file_where_it_was),
        TEST(without_memory_the_file_stays),
        TEST(a_kill_in_between_is_put_right_at_the_start),
        TEST(the_longest_name_can_be_finished),
        TEST(private_names_are_known),
        TEST(a_quarantined_file_has_its_reason_until_it_is_cleared),
        TEST(no_name_leaves_the_quarantine_or_meets_another),
        TEST(a_reason_that_cannot_be_written_leaves_no_half_one),
        TEST(rejected_rows_are_kept_only_with_their_load),
        TEST(rejected_rows_of_a_load_that_a_kill_cut_off_are_found),
        TEST(rejected_rows_that_cannot_be_kept_are_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
