/* test_source_memory.c -- the directory source while memory runs out: nothing crashes, nothing leaks, nothing is lost.
 */
#include "alloc_fault.h"

#define TEST_STRDUP __real_strdup
#include "source_test.h"

/* A whole life with the n-th allocation failing: what is missed then is found by the next look. */
static void any_allocation_may_fail(void **state)
{
    struct fixture *f = *state;
    f->options.poll_interval_ms = 100;
    folder(f, "a");
    put(f, "a/1.csv", "x");
    put(f, "2.csv", "x");
    for (int mode = DIRECTORY_AUTO; mode <= DIRECTORY_FS_EVENT; mode++) {
        f->options.mode = mode;
        struct source_sink sink = {f, on_found, on_overflow, on_scanned, on_scan_done, on_health};
        ALLOC_FAULT_SWEEP
        {
            struct err err = {0};
            forget(f);
            f->scans = 0;
            f->src = NULL;
            if (source_directory.open(&f->options, &source_env, &f->loop, &sink, -1, f->avoid, wants_csv, NULL, &f->src,
                                      &err) != ERR_NONE) {
                assert_int_equal(err.code, ERR_SYSTEM);
                assert_true(alloc_fault_hit());
                uv_run(&f->loop, UV_RUN_NOWAIT);
                f->src = NULL;
                continue;
            }
            RUN_UNTIL(f, told(f, FOUND_SCANNED, "a/1.csv") && told(f, FOUND_SCANNED, "2.csv"));
            folder(f, "b");
            put(f, "b/3.csv", "x");
            RUN_UNTIL(f, told(f, FOUND_SCANNED, "b/3.csv") || told(f, FOUND_CLOSED, "b/3.csv"));
            rename(at(f, "b"), at(f, "c"));
            RUN_UNTIL(f, told(f, FOUND_SCANNED, "c/3.csv") || told(f, FOUND_FOLDER_RENAMED, "c") ||
                             mode == DIRECTORY_POLL);
            unlink(at(f, "c/3.csv"));
            rmdir(at(f, "c"));
            stop(f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(any_allocation_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
