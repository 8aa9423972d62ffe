/* test_unpack.c -- every format, each refusal, and what a damaged archive may not do. Made with libarchive's writer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "alloc_fault.h"
#include "unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct unpack_limits wide = {.size = 1u << 30, .count = 1000, .ratio = 200};

struct made {
    const char *name, *text;
    int type; /* AE_IFREG unless told otherwise */
    const char *link;
    time_t mtime;
};

enum format { ZIP, TAR, TAR_GZ, TAR_XZ, TAR_ZST, SEVEN, ZIP_ENCRYPTED };
static const char *const format_names[] = {"zip", "tar", "tar.gz", "tar.xz", "tar.zst", "7z", "encrypted zip"};

static int make(enum format format, const struct made *members, size_t count)
{
    int fd = memfd_create("archive", 0);
    struct archive *a = archive_write_new();
    if (format == ZIP || format == ZIP_ENCRYPTED)
        archive_write_set_format_zip(a);
    else if (format == SEVEN)
        archive_write_set_format_7zip(a);
    else
        archive_write_set_format_pax_restricted(a);
    if (format == TAR_GZ)
        archive_write_add_filter_gzip(a);
    if (format == TAR_XZ)
        archive_write_add_filter_xz(a);
    if (format == TAR_ZST)
        archive_write_add_filter_zstd(a);
    if (format == ZIP_ENCRYPTED) {
        archive_write_set_options(a, "zip:encryption=traditional");
        archive_write_set_passphrase(a, "x");
    }
    assert_int_equal(archive_write_open_fd(a, fd), ARCHIVE_OK);
    for (size_t i = 0; i < count; i++) {
        struct archive_entry *e = archive_entry_new();
        size_t size = members[i].text != NULL ? strlen(members[i].text) : 0;
        archive_entry_set_pathname(e, members[i].name);
        archive_entry_set_filetype(e, members[i].type != 0 ? (unsigned)members[i].type : AE_IFREG);
        archive_entry_set_perm(e, 0644);
        archive_entry_set_size(e, (la_int64_t)size);
        archive_entry_set_mtime(e, members[i].mtime != 0 ? members[i].mtime : 1700000000, 0);
        if (members[i].type == AE_IFLNK)
            archive_entry_set_symlink(e, members[i].link);
        else if (members[i].link != NULL)
            archive_entry_set_hardlink(e, members[i].link);
        assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
        if (size > 0)
            assert_int_equal(archive_write_data(a, members[i].text, size), (la_ssize_t)size);
        archive_entry_free(e);
    }
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
    return fd;
}

static enum err_code check(int fd, const struct unpack_limits *limits, struct err *err)
{
    uint64_t members;
    err_clear(err);
    return unpack_check(fd, limits, NULL, &members, err);
}

/* All that is in FD as text: "path=bytes@mtime ". */
static void take(int fd, char *ret, size_t size)
{
    struct unpack_reader *r = NULL;
    const struct unpack_member *m;
    struct err err = {0};
    ret[0] = '\0';
    assert_int_equal(unpack_open(fd, &wide, NULL, &r, &err), ERR_NONE);
    while (unpack_next(r, &m, &err) == ERR_NONE && m != NULL) {
        char bytes[64] = "", path[200];
        uint64_t length, hash;
        int out = memfd_create("out", 0);
        snprintf(path, sizeof path, "%s", m->path);
        int64_t at = m->mtime_ns / 1000000000;
        assert_int_equal(unpack_extract(r, out, &length, &hash, &err), ERR_NONE);
        assert_true(pread(out, bytes, sizeof bytes - 1, 0) == (ssize_t)length);
        size_t n = strlen(ret);
        snprintf(ret + n, size - n, "%s=%s@%lld ", path, bytes, (long long)at);
        close(out);
    }
    assert_int_equal(err.code, ERR_NONE);
    unpack_close(r);
}

static void every_format_gives_what_was_put_in(void **state)
{
    (void)state;
    static const struct made members[] = {{.name = "one.csv", .text = "1"},
                                          {.name = "dir/", .type = AE_IFDIR},
                                          {.name = "./dir//two.csv", .text = "22", .mtime = 1600000000},
                                          {.name = "empty"},
                                          {.name = "sp&cial nämé 😀.txt", .text = "ü"}};
    for (int f = ZIP; f <= SEVEN; f++) {
        char found[1000];
        struct err err = {0};
        int fd = make((enum format)f, members, 5);
        uint64_t count = 0;
        assert_int_equal(unpack_check(fd, &wide, NULL, &count, &err), ERR_NONE);
        assert_int_equal(count, 4);
        take(fd, found, sizeof found);
        if (f == SEVEN) /* which puts what is empty last */
            assert_non_null(strstr(found, "dir/two.csv=22@1600000000 "));
        else
            assert_string_equal(found, "one.csv=1@1700000000 dir/two.csv=22@1600000000 empty=@1700000000 "
                                       "sp&cial nämé 😀.txt=ü@1700000000 ");
        close(fd);
    }
}

static void each_refusal_names_the_member(void **state)
{
    (void)state;
    static const struct {
        struct made member;
        const char *says;
    } rows[] = {
        {{.name = "../evil", .text = "x"}, "leads out"},
        {{.name = "a/../../evil", .text = "x"}, "leads out"},
        {{.name = "a\\..\\..\\evil", .text = "x"}, "leads out"},
        {{.name = "/etc/evil", .text = "x"}, "absolute"},
        {{.name = "c:\\evil", .text = "x"}, "absolute"},
        {{.name = "\\evil", .text = "x"}, "absolute"},
        {{.name = "evil", .type = AE_IFLNK, .link = "/etc"}, "a link"},
        {{.name = "evil", .link = "good"}, "a link"},
        {{.name = "evil", .type = AE_IFIFO}, "a device"},
        {{.name = "evil", .type = AE_IFCHR}, "a device"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct made members[] = {{.name = "good", .text = "g"}, rows[i].member};
        struct err err = {0};
        int fd = make(TAR, members, 2);
        assert_int_equal(check(fd, &wide, &err), ERR_INPUT);
        assert_false(err.retryable);
        if (strstr(err.text, rows[i].says) == NULL || strstr(err.text, "evil") == NULL)
            print_error("%s\n", err.text);
        assert_non_null(strstr(err.text, rows[i].says));
        assert_non_null(strstr(err.text, "evil"));
        close(fd);
    }
}

static void one_name_twice_and_a_password(void **state)
{
    (void)state;
    static const struct made twice[] = {{.name = "a/b", .text = "1"}, {.name = "./a//b", .text = "2"}};
    struct err err = {0};
    int fd = make(ZIP, twice, 2);
    assert_int_equal(check(fd, &wide, &err), ERR_INPUT);
    assert_non_null(strstr(err.text, "one name"));
    close(fd);
    fd = make(ZIP_ENCRYPTED, twice, 1);
    assert_int_equal(check(fd, &wide, &err), ERR_INPUT);
    assert_non_null(strstr(err.text, "encrypted"));
    close(fd);
}

static void limits_are_kept(void **state)
{
    (void)state;
    static char big[3u << 20];
    memset(big, 'a', sizeof big - 1);
    const struct made members[] = {{.name = "a", .text = "1"}, {.name = "big", .text = big}};
    const struct {
        struct unpack_limits limits;
        const char *says;
    } rows[] = {{{.size = 2u << 20, .count = 10, .ratio = 100000}, "archive_limits.size"},
                {{.size = 1u << 30, .count = 1, .ratio = 100000}, "archive_limits.count"},
                {{.size = 1u << 30, .count = 10, .ratio = 10}, "archive_limits.ratio"}};
    for (int f = ZIP; f <= SEVEN; f++) {
        struct err err = {0};
        int fd = make((enum format)f, members, 2);
        for (size_t i = 0; i < 3; i++) {
            if (f == TAR && i == 2)
                continue; /* nothing is compressed */
            assert_int_equal(check(fd, &rows[i].limits, &err), ERR_INPUT);
            assert_non_null(strstr(err.text, rows[i].says));
        }
        const struct unpack_limits enough = {.size = 4u << 20, .count = 2, .ratio = 1000000};
        assert_int_equal(check(fd, &enough, &err), ERR_NONE);
        close(fd);
    }
}

static void what_is_cut_off_or_damaged_is_never_fine(void **state)
{
    (void)state;
    static char text[30000];
    unsigned x = 1;
    for (size_t i = 0; i + 1 < sizeof text; i++) {
        x = x * 1103515245 + 12345;
        text[i] = (char)('a' + (x >> 16) % 20);
    }
    const struct made members[] = {{.name = "a", .text = text}, {.name = "b", .text = "bb"}};
    for (int f = ZIP; f <= SEVEN; f++) {
        struct err err = {0};
        int fd = make((enum format)f, members, 2);
        off_t size = lseek(fd, 0, SEEK_END);
        /* what pads the end of a tar may be missing, and the directory of a zip, which repeats what its members say */
        off_t last = f == TAR ? size - 12000 : f == ZIP ? size - 200 : size - 40;
        for (off_t n = 0; n < last; n += 97) {
            char copy[40000];
            int cut = memfd_create("cut", 0);
            assert_true(n < (off_t)sizeof copy && pread(fd, copy, (size_t)n, 0) == n &&
                        write(cut, copy, (size_t)n) == n);
            enum err_code code = check(cut, &wide, &err);
            if (code != ERR_INPUT)
                print_error("%s cut at %lld: %d %s\n", format_names[f], (long long)n, code, err.text);
            assert_int_equal(code, ERR_INPUT);
            close(cut);
        }
        /* a tar has no sums of its content, zstd's are left out by most, and libarchive does not look at gzip's */
        if (f == ZIP || f == TAR_XZ || f == SEVEN) {
            char byte;
            assert_true(pread(fd, &byte, 1, 9000) == 1);
            byte = (char)(byte ^ 0x55);
            assert_true(pwrite(fd, &byte, 1, 9000) == 1);
            assert_int_equal(check(fd, &wide, &err), ERR_INPUT);
        }
        close(fd);
    }
}

static void a_stop_is_heard(void **state)
{
    (void)state;
    const struct made members[] = {{.name = "a", .text = "1"}};
    atomic_bool stop = true;
    uint64_t count;
    struct err err = {0};
    int fd = make(ZIP, members, 1);
    assert_int_equal(unpack_check(fd, &wide, &stop, &count, &err), ERR_STOPPED);
    close(fd);
    err_clear(&err);
    assert_int_not_equal(unpack_check(fd, &wide, NULL, &count, &err), ERR_NONE); /* which can't be read any more */
}

static void any_failed_allocation_is_an_error_and_no_leak(void **state)
{
    (void)state;
    const struct made members[] = {{.name = "a", .text = "1"}, {.name = "b/c", .text = "22"}};
    for (int f = ZIP; f <= SEVEN; f++) {
        int fd = make((enum format)f, members, 2);
        ALLOC_FAULT_SWEEP
        {
            struct err err = {0};
            enum err_code code = check(fd, &wide, &err);
            assert_int_equal(code, alloc_fault_hit() ? ERR_SYSTEM : ERR_NONE);
        }
        close(fd);
    }
}

static void names_of_archives(void **state)
{
    (void)state;
    static const char *const yes[] = {"a.zip",    "A.ZIP", "x/b.tar.gz", "c.tgz", "d.tar",
                                      "e.tar.xz", "f.txz", "g.tar.zst",  "h.7z",  "a.b.zip"};
    static const char *const no[] = {"a.xlsx", "a.jar",   "a.gz",   "zip",   ".zip",
                                     "x/.zip", "a.zip/b", "a.zipx", "a.csv", ""};
    for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++)
        assert_true(unpack_is_named(yes[i]));
    for (size_t i = 0; i < sizeof no / sizeof no[0]; i++)
        assert_false(unpack_is_named(no[i]));
    assert_int_equal(strncmp(unpack_library(), "libarchive", 10), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_gives_what_was_put_in),
        cmocka_unit_test(each_refusal_names_the_member),
        cmocka_unit_test(one_name_twice_and_a_password),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(what_is_cut_off_or_damaged_is_never_fine),
        cmocka_unit_test(a_stop_is_heard),
        cmocka_unit_test(any_failed_allocation_is_an_error_and_no_leak),
        cmocka_unit_test(names_of_archives),
    };
    setlocale(LC_CTYPE, "C.UTF-8"); /* for the writer */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
