/* test_listing.c -- what servers say about a folder, in all the ways they do; and addresses, escapes and globs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "listing.h"
#include "remote_path.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOW 1795771800 /* 2026-11-27 09:30:00 UTC */
#define S INT64_C(1000000000)

struct seen {
    char text[4000];
};

static bool note(void *arg, const struct listing_entry *e)
{
    struct seen *s = arg;
    static const char kinds[] = "fdlo";
    size_t n = strlen(s->text);
    char size[32] = "-", at[32] = "-";
    if (e->has_size)
        snprintf(size, sizeof size, "%llu", (unsigned long long)e->size);
    if (e->has_time)
        snprintf(at, sizeof at, "%lld", (long long)(e->mtime_ns / S));
    snprintf(s->text + n, sizeof s->text - n, "%c %s %s [%s]\n", kinds[e->kind], size, at, e->name);
    return true;
}

/* TEXT in pieces of every size gives the same. */
static void expect(const char *text, const char *want)
{
    size_t size = strlen(text);
    for (size_t piece = 1; piece <= size; piece += piece < 8 ? 1 : 13) {
        struct listing *l = malloc(sizeof *l);
        struct seen seen = {""};
        struct err err = {0};
        listing_init(l, NOW, note, &seen);
        for (size_t at = 0; at < size; at += piece)
            assert_int_equal(listing_feed(l, text + at, size - at < piece ? size - at : piece, &err), ERR_NONE);
        assert_int_equal(listing_end(l, &err), ERR_NONE);
        assert_string_equal(seen.text, want);
        free(l);
    }
}

static void mlsd_facts(void **state)
{
    (void)state;
    expect("type=cdir;modify=20231114221320; .\r\n"
           "type=pdir;modify=20231114221320; ..\r\n"
           "type=dir;modify=20231114221320;UNIX.mode=0755; a b\r\n"
           "Type=file;Size=6;Modify=20231114221320.25;Perm=r; plain.txt\r\n"
           "type=file;size=0;modify=20231114221320;  two blanks \r\n"
           "type=OS.unix=slink:/x;modify=20231114221320; link\r\n"
           "type=OS.unix=chr-1/3;modify=20231114221320; null\r\n"
           "size=7;type=file; no time = here; x\r\n"
           " nameonly\r\n",
           "d - 1700000000 [a b]\n"
           "f 6 1700000000 [plain.txt]\n"
           "f 0 1700000000 [ two blanks ]\n"
           "l - 1700000000 [link]\n"
           "o - 1700000000 [null]\n"
           "f 7 - [no time = here; x]\n"
           "o - - [nameonly]\n");
}

static void unix_lists(void **state)
{
    (void)state;
    expect("total 12\n"
           "drwxr-xr-x    2 0        0            4096 Nov 27 03:19 a\n"
           "-rw-r--r--    1 0        0               6 Nov 14  2023 plain.txt\n"
           "-rw-r--r--   1 reader   0               6 Nov 14  2023 sp ace  two.txt\n"
           "-rw-r--r--+  1 reader   group one      77 Nov 27 03:19  leading\n"
           "-rw-r--r--@  1 reader   77 Jan  2 2025 no group\n"
           "-rw-r--r--    1 root     root            1 Nov 28 03:00 tomorrow\n"
           "-rw-r--r--    1 root     root            1 Dec 31 03:00 last year\n"
           "lrwxrwxrwx    1 root     root            7 Nov 27 03:19 here -> a/there\n"
           "crw-rw-rw-    1 root     root       1,   3 Nov 27 03:19 null\n"
           "-rw-r--r--    1 1000     1000   3000000000 2023-11-14 22:13 iso\n"
           "-rw-r--r--    1 1000     1000            9 2023-11-14 23:13:20.500000000 +0100 iso full\n"
           "-rwsr-sr-t    1 root     root            5 Feb 29 2024 leap\n",
           "d 4096 1795749540 [a]\n"
           "f 6 1699920000 [plain.txt]\n"
           "f 6 1699920000 [sp ace  two.txt]\n"
           "f 77 1795749540 [ leading]\n"
           "f 77 1735776000 [no group]\n"
           "f 1 1795834800 [tomorrow]\n"
           "f 1 1767150000 [last year]\n"
           "l 7 1795749540 [here]\n"
           "o 3 1795749540 [null]\n"
           "f 3000000000 1699999980 [iso]\n"
           "f 9 1700000000 [iso full]\n"
           "f 5 1709164800 [leap]\n");
}

static void dos_lists(void **state)
{
    (void)state;
    expect("11-14-23  10:13PM       <DIR>          a b\r\n"
           "11-14-23  10:13PM                    6 plain.txt\r\n"
           "11-14-2023  12:00AM                  6  lead\r\n"
           "01-02-99  12:30PM           3000000000 old\r\n",
           "d - 1699999980 [a b]\n"
           "f 6 1699999980 [plain.txt]\n"
           "f 6 1699920000 [ lead]\n"
           "f 3000000000 915280200 [old]\n");
}

static void what_is_none_of_them_is_an_error_that_shows_it(void **state)
{
    (void)state;
    static const char *const wrong[] = {"?? no idea\r\n",
                                        "-rw-r--r-- 1 a b\r\n",
                                        "-rw-r--r-- 1 a b 12 Foo 12 10:00 x\r\n",
                                        "-rw-r--r-- 1 a b x Nov 12 10:00 x\r\n",
                                        "11-14-23  13:13PM 6 x\r\n",
                                        "type=file;size=1;modify=1; a/b\r\n",
                                        "type=file;size=1\r\n",
                                        "-rw-r--r-- 1 a b 12 Nov 12 10:00 ../x\r\n"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct listing *l = malloc(sizeof *l);
        struct seen seen = {""};
        struct err err = {0};
        listing_init(l, NOW, note, &seen);
        if (listing_feed(l, wrong[i], strlen(wrong[i]), &err) == ERR_NONE)
            print_error("taken: %s as %s", wrong[i], seen.text);
        assert_int_equal(err.code, ERR_REMOTE);
        assert_non_null(strstr(err.text, "line 1"));
        assert_string_equal(seen.text, "");
        free(l);
    }
}

static void a_line_without_its_end_is_no_entry(void **state)
{
    (void)state;
    struct listing *l = malloc(sizeof *l);
    struct seen seen = {""};
    struct err err = {0};
    const char *text = "-rw-r--r-- 1 0 0 6 Nov 14  2023 a\n-rw-r--r-- 1 0 0 6 Nov 14  2023 plain.t";
    listing_init(l, NOW, note, &seen);
    assert_int_equal(listing_feed(l, text, strlen(text), &err), ERR_NONE);
    assert_int_equal(listing_end(l, &err), ERR_REMOTE);
    assert_true(err.retryable);
    assert_string_equal(seen.text, "f 6 1699920000 [a]\n");
    char *longest = malloc(20000);
    memset(longest, 'x', 20000);
    err_clear(&err);
    listing_init(l, NOW, note, &seen);
    assert_int_equal(listing_feed(l, longest, 20000, &err), ERR_REMOTE);
    free(longest);
    free(l);
}

static void urls(void **state)
{
    (void)state;
    static const char *const schemes[] = {"ftps", "ftp", NULL};
    static const struct {
        const char *text, *host, *user, *root;
        unsigned port;
    } good[] = {
        {"ftp://h", "h", "", "/", 0},
        {"ftps://u@h:2121/", "h", "u", "/", 2121},
        {"ftp://u@x@h/out//", "h", "u@x", "/out", 0},
        {"ftp://[::1]:21/a b", "::1", "", "/a b", 21},
        {"ftp://[fe80::1]/", "fe80::1", "", "/", 0},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        struct remote_url u;
        struct err err = {0};
        assert_int_equal(remote_url_parse(good[i].text, schemes, &u, &err), ERR_NONE);
        assert_string_equal(u.host, good[i].host);
        assert_string_equal(u.user, good[i].user);
        assert_string_equal(u.root, good[i].root);
        assert_int_equal(u.port, good[i].port);
    }
    static const char *const bad[] = {
        "",           "h",           "sftp://h",      "ftp://",     "ftp://:21/", "ftp://u:p@h/",
        "ftp://@h/",  "ftp://h:0",   "ftp://h:65536", "ftp://h:2x", "ftp://[::1", "ftp://h/?x",
        "ftp://h/#x", "ftp://[::1]x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct remote_url u;
        struct err err = {0};
        assert_int_equal(remote_url_parse(bad[i], schemes, &u, &err), ERR_CONFIG);
        assert_null(strstr(err.text, "u:p"));
    }
}

static void escapes(void **state)
{
    (void)state;
    static const struct {
        const char *root, *path;
        bool is_folder, is_ftp;
        const char *want;
    } rows[] = {
        {"/", "", true, true, "/%2F/"},
        {"/", "", true, false, "/"},
        {"/", "a b/c%d", false, true, "/%2Fa%20b/c%25d"},
        {"/out", "ñ#?;", false, false, "/out/%C3%B1%23%3F%3B"},
        {"/out", "", true, true, "/%2Fout/"},
        {"/out", "x", true, false, "/out/x/"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct buf b;
        buf_init(&b);
        remote_url_path(rows[i].root, rows[i].path, rows[i].is_folder, rows[i].is_ftp, &b);
        assert_string_equal(b.data, rows[i].want);
        buf_done(&b);
    }
}

static void globs(void **state)
{
    (void)state;
    static const struct {
        const char *glob, *base, *folder;
        bool enters;
    } rows[] = {
        {"/out/*.zip", "out", "out", false},
        {"/out/*.zip", "out", "out/x", false},
        {"/daily/**", "daily", "daily/x/y", true},
        {"/**", "", "anything/at/all", true},
        {"/*/x.csv", "", "a", true},
        {"/*/x.csv", "", "a/b", false},
        {"/a*/**/x", "", "abc", true},
        {"/a*/**/x", "", "b", false},
        {"/in/{a,b}/*.csv", "in", "in/a", true},
        {"/y/2026-[01]?/d/*", "y", "y/2026-11", true},
        {"/y/2026-[01]?/d/*", "y", "y/2026-11/e", false},
        {"/f.txt", "", "x", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct option_strings one = {.items = &rows[i].glob, .count = 1};
        struct buf base;
        buf_init(&base);
        remote_glob_base(rows[i].glob, &base);
        assert_string_equal(base.data, rows[i].base);
        buf_done(&base);
        bool is_itself = strcmp(rows[i].folder, rows[i].base) == 0;
        if (!is_itself && remote_enters(&one, rows[i].folder) != rows[i].enters)
            print_error("%s %s\n", rows[i].glob, rows[i].folder);
        assert_true(is_itself || remote_enters(&one, rows[i].folder) == rows[i].enters);
    }
    struct err err = {0};
    static const char *const bad[] = {"/", "", "/a//b", "/a/../b", "/[x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct option_strings one = {.items = &bad[i], .count = 1};
        err_clear(&err);
        assert_int_equal(remote_globs_check(&one, &err), ERR_CONFIG);
    }
    assert_true(remote_glob_is_plain("/a/b.txt"));
    assert_false(remote_glob_is_plain("/a/*.txt"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mlsd_facts),
        cmocka_unit_test(unix_lists),
        cmocka_unit_test(dos_lists),
        cmocka_unit_test(what_is_none_of_them_is_an_error_that_shows_it),
        cmocka_unit_test(a_line_without_its_end_is_no_entry),
        cmocka_unit_test(urls),
        cmocka_unit_test(escapes),
        cmocka_unit_test(globs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
