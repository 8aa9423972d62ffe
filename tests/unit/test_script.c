/* test_script.c -- SQL files: read whole or refused with a place, and where their statements are. */
#include "script.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/chute-script-XXXXXX";

static const char *put(const char *text, size_t size)
{
    static char path[64];
    snprintf(path, sizeof path, "%s/s.sql", folder);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    return path;
}

static void a_file_is_read_whole(void **state)
{
    (void)state;
    char *text;
    size_t size;
    struct err err = {0};
    assert_int_equal(script_read(put("SELECT 'ž';\n", 13), &text, &size, &err), ERR_NONE);
    assert_int_equal(size, 13);
    assert_string_equal(text, "SELECT 'ž';\n");
    free(text);
    assert_int_equal(script_read(put("", 0), &text, &size, &err), ERR_NONE);
    assert_string_equal(text, "");
    free(text);
    /* an editor's byte order mark is no SQL */
    assert_int_equal(script_read(put("\xef\xbb\xbfSELECT 1", 11), &text, &size, &err), ERR_NONE);
    assert_int_equal(size, 8);
    assert_string_equal(text, "SELECT 1");
    free(text);
}

static void what_is_no_script_is_refused(void **state)
{
    (void)state;
    char *text;
    size_t size;
    struct err err = {0};
    assert_int_equal(script_read("/nowhere/x.sql", &text, &size, &err), ERR_INPUT);
    assert_string_equal(err.text, "/nowhere/x.sql: can't be read: No such file or directory");
    assert_false(err.retryable);
    assert_int_equal(script_read("/tmp", &text, &size, &err), ERR_INPUT);
    assert_non_null(strstr(err.text, "expected a file with SQL"));
    assert_int_equal(script_read(put("a\nb\0c", 5), &text, &size, &err), ERR_INPUT);
    assert_non_null(strstr(err.text, "s.sql:2: expected UTF-8 text, found the byte 0x00 at offset 3"));
    assert_int_equal(script_read(put("\n\n\xff", 3), &text, &size, &err), ERR_INPUT);
    assert_non_null(strstr(err.text, "s.sql:3: expected UTF-8 text, found the byte 0xff"));
    const char *path = put("x", 1);
    assert_int_equal(truncate(path, (off_t)SCRIPT_MAX + 1), 0);
    assert_int_equal(script_read(path, &text, &size, &err), ERR_INPUT);
    assert_non_null(strstr(err.text, "at most 64 MiB"));
    unlink(path);
    /* nobody writes to it: it must not wait for who would */
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(script_read(path, &text, &size, &err), ERR_INPUT);
    unlink(path);
}

/* The statements of TEXT, each between brackets. */
static void check_split(const char *text, const char *want)
{
    char found[1024] = "";
    for (size_t i = script_skip(text, 0); text[i] != '\0';) {
        size_t end = script_end(text, i), n = strlen(found);
        snprintf(found + n, sizeof found - n, "[%.*s]", (int)(end - i), text + i);
        i = script_skip(text, end);
    }
    assert_string_equal(found, want);
}

static void statements_end_where_the_server_says(void **state)
{
    (void)state;
    check_split("", "");
    check_split(" ; -- x\n /* ; */ ;;", "");
    check_split("a; b ;c", "[a][b ][c]");
    check_split("a';'';'; b", "[a';'';'][b]");
    check_split("a\";\"; b", "[a\";\"][b]");
    check_split("select e'\\';'; b", "[select e'\\';'][b]");
    check_split("select ee'\\';'; b", "[select ee'\\']['; b]");
    check_split("select '\\'; b", "[select '\\'][b]");
    check_split("do $$ a; b; $$; c", "[do $$ a; b; $$][c]");
    check_split("do $x$ $$; $y$; $x$; c", "[do $x$ $$; $y$; $x$][c]");
    check_split("select $1; a$b$; c", "[select $1][a$b$][c]");
    check_split("a /* ; /* ; */ ; */ b; -- ;\nc", "[a /* ; /* ; */ ; */ b][c]");
    check_split("create function f() begin atomic select case when a then 1 end; select 2; end; b",
                "[create function f() begin atomic select case when a then 1 end; select 2; end][b]");
    check_split("begin; a; end; b", "[begin][a][end][b]");
    check_split("a 'open ; b", "[a 'open ; b]");
    check_split("a /* open ; b", "[a /* open ; b]");
    check_split("a $$ open ; b", "[a $$ open ; b]");
}

static void places_are_counted_as_people_do(void **state)
{
    (void)state;
    assert_int_equal(script_line("a\nb\nc", 0), 1);
    assert_int_equal(script_line("a\nb\nc", 2), 2);
    assert_int_equal(script_line("a\nb\nc", 4), 3);
    assert_int_equal(script_offset("žluť x", 1), 0);
    assert_int_equal(script_offset("žluť x", 2), 2);
    assert_int_equal(script_offset("žluť x", 6), 7);
    assert_int_equal(script_offset("ab", 99), 2);
    char words[SCRIPT_WORDS_MAX];
    assert_string_equal(script_words("-- c\n SELECT\n\t 1 ; x", 0, words), "SELECT 1");
    assert_string_equal(script_words("", 0, words), "");
    const char *longer = "SELECT 'žžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžžž'";
    script_words(longer, 0, words);
    assert_true(strlen(words) < SCRIPT_WORDS_MAX && strlen(words) > 40);
    assert_memory_equal(words, longer, strlen(words));
    assert_int_equal((unsigned char)longer[strlen(words)] & 0xc0, 0xc0); /* no half character */
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int tear_down(void **state)
{
    char path[64];
    (void)state;
    snprintf(path, sizeof path, "%s/s.sql", folder);
    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_read_whole),
        cmocka_unit_test(what_is_no_script_is_refused),
        cmocka_unit_test(statements_end_where_the_server_says),
        cmocka_unit_test(places_are_counted_as_people_do),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
