#include "pg_lib.h"

#include "pg.h"

#include <setjmp.h>
#include <stdarg.h>
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

/* A machine whose libpq is missing, or another than we can use. */
static bool is_missing;
static const char *missing_function, *faked_function;
static int faked_answer;

void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags)
{
    return __real_dlopen(is_missing ? "libpq-that-nobody-has.so.5" : name, flags);
}

static int fake(void)
{
    return faked_answer;
}

void *__real_dlsym(void *handle, const char *symbol);
void *__wrap_dlsym(void *handle, const char *symbol)
{
    if (missing_function != NULL && strcmp(symbol, missing_function) == 0)
        return NULL;
    int (*faked)(void) = fake;
    void *address;
    memcpy(&address, &faked, sizeof address);
    return faked_function != NULL && strcmp(symbol, faked_function) == 0 ? address : __real_dlsym(handle, symbol);
}

static void assert_refused(const char *words)
{
    const struct pg_options options = {.conninfo = "host=h"};
    const struct pg_lib *lib;
    struct pg *pg = NULL;
    struct err err;
    char text[600];
    assert_int_equal(pg_lib_load(&lib, &err), ERR_CONFIG);
    assert_false(err.retryable);
    assert_non_null(strstr(err.text, words));
    assert_non_null(strstr(err.text, "install libpq")); /* what to do */
    pg_libraries(text, sizeof text);
    assert_string_equal(text, err.text);
    assert_int_equal(pg_open(NULL, &options, &pg, &err), ERR_CONFIG);
    assert_string_equal(text, err.text);
    assert_null(pg);
    assert_int_equal(pg_check(&options, NULL), ERR_CONFIG);
}

static void a_libpq_that_cannot_be_used_is_the_operators_to_solve(void **state)
{
    const struct pg_lib *lib, *again;
    (void)state;
    is_missing = true;
    assert_refused("libpq-that-nobody-has.so.5");
    is_missing = false;
    missing_function = "PQsetSingleRowMode";
    assert_refused("libpq.so.5 has no PQsetSingleRowMode");
    faked_function = "PQlibVersion";
    faked_answer = 130022;
    assert_refused("libpq 13.22 is too old"); /* which is why it has not */
    missing_function = NULL;
    assert_refused("libpq 13.22 is too old");
    faked_function = "PQisthreadsafe";
    faked_answer = 0;
    assert_refused("was built without threads");
    faked_function = NULL;
    assert_int_equal(pg_lib_load(&lib, NULL), ERR_NONE); /* once it is repaired, it is found */
    is_missing = true;
    assert_int_equal(pg_lib_load(&again, NULL), ERR_NONE);
    assert_ptr_equal(lib, again);
    assert_true(lib->libVersion() >= 140000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_libpq_that_cannot_be_used_is_the_operators_to_solve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
