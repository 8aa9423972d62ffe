#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[64], path[96], json_path[96];
static int write_failure;            /* errno of every write to a file; 0: none */
static size_t write_most = SIZE_MAX; /* a write takes at most so many bytes */
static uint64_t clock_ahead_ms;

ssize_t __real_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size)
{
    if (write_failure != 0) {
        errno = write_failure;
        return -1;
    }
    if (size > write_most) {
        ssize_t n = __real_write(fd, data, write_most);
        write_failure = ENOSPC;
        return n;
    }
    return __real_write(fd, data, size);
}

uint64_t __real_clock_mono_ms(void);
uint64_t __wrap_clock_mono_ms(void)
{
    return __real_clock_mono_ms() + clock_ahead_ms;
}

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/chute-log-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/log", folder);
    snprintf(json_path, sizeof json_path, "%s/json", folder);
    write_failure = 0;
    write_most = SIZE_MAX;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[100];
    write_failure = 0;
    write_most = SIZE_MAX;
    log_close();
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static const char *content(const char *name)
{
    static char text[200000];
    FILE *file = fopen(name, "r");
    if (file == NULL)
        return "(none)";
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

static size_t lines(const char *name)
{
    size_t n = 0;
    for (const char *p = content(name); (p = strchr(p, '\n')) != NULL; p++)
        n++;
    return n;
}

static void open_files(int text_level, int json_level, uint64_t rotate_size, int64_t keep)
{
    const struct log_output outputs[] = {{path, text_level, LOG_TEXT, rotate_size, keep},
                                         {json_path, json_level, LOG_JSON, 0, 0}};
    struct err err;
    assert_int_equal(log_open(outputs, 2, &err), ERR_NONE);
}

static void each_output_gets_its_levels_in_its_form(void **state)
{
    (void)state;
    const struct log_about about = {.flow = "sales", .file = "a b\n.csv", .dest = "lite", .source = "inbox"};
    open_files(LOG_DEBUG, LOG_WARN, 0, 0);
    assert_true(log_wants(LOG_DEBUG));
    log_debug("small %d", 1);
    errno = ENOENT;
    log_write(LOG_WARN, &about, "say \"%s\"\x1b[31m", "hi");
    assert_int_equal(errno, ENOENT);
    const char *text = content(path);
    assert_non_null(strstr(text, "Z debug small 1\n"));
    assert_non_null(
        strstr(text, "Z warn  flow=sales file=\"a b\\x0A.csv\" dest=lite source=inbox: say \"hi\"\\x1B[31m\n"));
    text = content(json_path);
    assert_null(strstr(text, "small"));
    assert_non_null(strstr(text, "\"level\":\"warn\",\"flow\":\"sales\",\"file\":\"a b\\n.csv\",\"dest\":\"lite\","
                                 "\"source\":\"inbox\",\"message\":\"say \\\"hi\\\"\\u001b[31m\"}\n"));
    log_close();
    assert_false(log_wants(LOG_DEBUG));
    assert_true(log_wants(LOG_INFO));
}

static void no_secret_gets_into_any_line(void **state)
{
    (void)state;
    open_files(LOG_DEBUG, LOG_DEBUG, 0, 0);
    assert_true(log_secret("s3cr\"t pass"));
    assert_true(log_secret("s3cr\"t pass longer"));
    assert_true(log_secret("s3cr\"t pass"));
    assert_true(log_secret("abc")); /* too short to be told from words */
    const struct log_about about = {.file = "s3cr\"t pass.csv"};
    log_write(LOG_INFO, &about, "url ?p=s3cr%%22t%%20pass&x=abc s3cr\"t pass longer.");
    char most[5000];
    for (size_t before = 8160; before < 8192; before++) { /* across the end of what is kept */
        memset(most, 'x', sizeof most);
        most[sizeof most - 1] = '\0';
        log_info("%.*s%.*ss3cr\"t pass", 4096, most, (int)before - 4096, most);
    }
    for (size_t before = 4060; before < 4100; before++)
        log_info("%.*ss3cr\"t pass", (int)before, most);
    assert_null(strstr(content(path), "s3cr"));
    assert_null(strstr(content(json_path), "s3cr"));
    assert_non_null(strstr(content(path), "file=***.csv: url ?p=***&x=abc ***."));
    char text[] = "a s3cr\"t pass b s3cr\"t pass";
    log_redact(text);
    assert_string_equal(text, "a *** b ***");
}

static void a_message_that_repeats_is_counted(void **state)
{
    (void)state;
    const struct log_about a = {.file = "a.csv"}, b = {.file = "b.csv"};
    open_files(LOG_DEBUG, LOG_DEBUG, 0, 0);
    for (int i = 1; i <= 5; i++)
        log_write(LOG_WARN, &a, "try %d", 1);
    assert_int_equal(lines(path), 1);
    log_write(LOG_WARN, &b, "try %d", 1);
    assert_int_equal(lines(path), 3);
    assert_non_null(strstr(content(path), "file=a.csv: try 1 (repeated 4 times)\n"));
    assert_non_null(strstr(content(json_path), "\"message\":\"try 1\",\"repeated\":4}"));
    log_info("folder %s", "x"); /* other words are another message */
    log_info("folder %s", "y");
    log_info("folder %s", "y");
    assert_int_equal(lines(path), 5);
    log_flush();
    log_flush();
    assert_int_equal(lines(path), 6);
    log_info("folder %s", "y");
    clock_ahead_ms += 10000; /* its time is over */
    log_info("folder %s", "y");
    assert_int_equal(lines(path), 8);
    assert_non_null(strstr(content(path), "folder y (repeated 1 times)\n"));
}

static void files_rotate_by_size_and_the_oldest_go(void **state)
{
    (void)state;
    char old[120];
    open_files(LOG_DEBUG, LOG_ERROR, 500, 2);
    for (int i = 0; i < 100; i++)
        log_info("line %03d", i);
    assert_non_null(strstr(content(path), "line 099"));
    size_t total = lines(path);
    for (int i = 1; i <= 2; i++) {
        snprintf(old, sizeof old, "%s.%d", path, i);
        struct stat st;
        assert_int_equal(stat(old, &st), 0);
        assert_true(st.st_size <= 500 && st.st_size > 400);
        total += lines(old);
    }
    assert_true(total < 40);
    snprintf(old, sizeof old, "%s.3", path);
    assert_int_equal(access(old, F_OK), -1);
    open_files(LOG_DEBUG, LOG_ERROR, 500, 0); /* none kept */
    for (int i = 0; i < 30; i++)
        log_info("more %03d", i);
    assert_true(strlen(content(path)) <= 500);
}

static void a_rotation_that_fails_goes_on_with_the_file_it_has(void **state)
{
    (void)state;
    char old[120];
    snprintf(old, sizeof old, "%s.1", path);
    mkdir(old, 0755); /* can't be replaced */
    snprintf(old, sizeof old, "%s.1/x", path);
    mkdir(old, 0755);
    open_files(LOG_DEBUG, LOG_ERROR, 200, 1);
    for (int i = 0; i < 50; i++)
        log_info("line %03d", i);
    assert_int_equal(lines(path), 50);
}

static void a_full_disk_costs_lines_which_are_counted(void **state)
{
    (void)state;
    open_files(LOG_DEBUG, LOG_ERROR, 0, 0);
    log_info("first");
    write_failure = ENOSPC;
    for (int i = 0; i < 7; i++)
        log_info("lost %d", i);
    write_failure = 0;
    write_most = 20;
    log_info("torn");
    write_failure = 0;
    write_most = SIZE_MAX;
    log_info("back");
    const char *text = content(path);
    assert_null(strstr(text, "lost 3"));
    assert_non_null(strstr(text, "8 lines of this log could not be written and are missing here\n"));
    assert_non_null(strstr(text, "info  back\n"));
    assert_int_equal(lines(path), 4); /* the torn one is a line of its own */
}

static void a_reader_that_sleeps_or_dies_stops_nobody(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    int before = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    const struct log_output output = {"stderr", LOG_DEBUG, LOG_TEXT, 0, 0};
    struct err err;
    enum err_code code = log_open(&output, 1, &err);
    uint64_t start = __real_clock_mono_ms();
    for (int i = 0; i < 3000; i++)
        log_info("a line that fills the pipe of somebody who does not read: %d", i);
    uint64_t slept = __real_clock_mono_ms() - start;
    close(ends[0]);
    signal(SIGPIPE, SIG_DFL);
    log_info("nobody is there"); /* would end us */
    log_close();
    dup2(before, STDERR_FILENO);
    close(before);
    close(ends[1]);
    assert_int_equal(code, ERR_NONE);
    assert_true(slept < 60000); /* a stall for each line would be five minutes */
}

static void outputs_that_cannot_be_opened_leave_the_old_ones(void **state)
{
    (void)state;
    open_files(LOG_DEBUG, LOG_DEBUG, 0, 0);
    char nowhere[120], fifo[120];
    snprintf(nowhere, sizeof nowhere, "%s/no/such", folder);
    snprintf(fifo, sizeof fifo, "%s/fifo", folder);
    mkfifo(fifo, 0600);
    const char *const bad[] = {nowhere, fifo, folder, "relative", ""};
    struct err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct log_output outputs[] = {{path, LOG_DEBUG, LOG_TEXT, 0, 0}, {bad[i], LOG_DEBUG, LOG_TEXT, 0, 0}};
        assert_int_equal(log_open(outputs, 2, &err), ERR_CONFIG);
        assert_non_null(strstr(err.text, bad[i]));
    }
    const struct log_output twice[] = {{path, LOG_DEBUG, LOG_TEXT, 0, 0}, {path, LOG_DEBUG, LOG_JSON, 0, 0}};
    assert_int_equal(log_open(twice, 2, &err), ERR_CONFIG);
    log_info("still here");
    assert_int_equal(lines(json_path), 1);
}

static void files_are_opened_again_by_name(void **state)
{
    (void)state;
    char moved[120];
    snprintf(moved, sizeof moved, "%s.moved", path);
    open_files(LOG_DEBUG, LOG_DEBUG, 0, 0);
    log_info("one");
    rename(path, moved);
    log_info("two");
    log_reopen();
    log_info("three");
    assert_int_equal(lines(moved), 2);
    assert_int_equal(lines(path), 1);
}

static void *write_many(void *arg)
{
    for (int i = 0; i < 500; i++) {
        log_info("thread %d line %d", *(int *)arg, i);
        if (i % 100 == 0)
            log_reopen();
    }
    return NULL;
}

static void lines_of_several_threads_stay_whole(void **state)
{
    (void)state;
    pthread_t threads[4];
    int numbers[4];
    open_files(LOG_DEBUG, LOG_DEBUG, 0, 0);
    for (int i = 0; i < 4; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, write_many, &numbers[i]);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(lines(path), 2000);
    char *text = strdup(content(json_path));
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        assert_memory_equal(line, "{\"time\":\"", 9);
        assert_string_equal(line + strlen(line) - 2, "\"}");
    }
    free(text);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_output_gets_its_levels_in_its_form),
        TEST(no_secret_gets_into_any_line),
        TEST(a_message_that_repeats_is_counted),
        TEST(files_rotate_by_size_and_the_oldest_go),
        TEST(a_rotation_that_fails_goes_on_with_the_file_it_has),
        TEST(a_full_disk_costs_lines_which_are_counted),
        TEST(a_reader_that_sleeps_or_dies_stops_nobody),
        TEST(outputs_that_cannot_be_opened_leave_the_old_ones),
        TEST(files_are_opened_again_by_name),
        TEST(lines_of_several_threads_stay_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
