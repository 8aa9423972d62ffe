#include "curl_lib.h"

#include <setjmp.h>
#include <stdarg.h>
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

/* A machine whose libcurl is missing, or another than we can use. */
static bool is_missing;
static const char *missing_function;
static curl_version_info_data info;

void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags)
{
    return __real_dlopen(is_missing ? "libcurl-that-nobody-has.so.4" : name, flags);
}

static curl_version_info_data *fake_version_info(CURLversion stamp)
{
    (void)stamp;
    return &info;
}

void *__real_dlsym(void *handle, const char *symbol);
void *__wrap_dlsym(void *handle, const char *symbol)
{
    if (missing_function != NULL && strcmp(symbol, missing_function) == 0)
        return NULL;
    curl_version_info_data *(*fake)(CURLversion) = fake_version_info;
    void *address;
    memcpy(&address, &fake, sizeof address);
    return info.version != NULL && strcmp(symbol, "curl_version_info") == 0 ? address : __real_dlsym(handle, symbol);
}

static void assert_refused(const char *words)
{
    const struct curl_lib *lib;
    struct err err;
    assert_int_equal(curl_lib_load(&lib, &err), ERR_CONFIG);
    assert_false(err.retryable);
    assert_non_null(strstr(err.text, words));
    assert_non_null(strstr(err.text, "install libcurl")); /* what to do */
}

static void a_libcurl_that_cannot_be_used_is_the_operators_to_solve(void **state)
{
    const struct curl_lib *lib, *again;
    (void)state;
    is_missing = true;
    assert_refused("libcurl-that-nobody-has.so.4");
    is_missing = false;
    missing_function = "curl_multi_socket_action";
    assert_refused("curl_multi_socket_action");
    missing_function = NULL;
    info.version = "7.86.0";
    info.version_num = 0x075600;
    info.features = CURL_VERSION_ASYNCHDNS | CURL_VERSION_SSL;
    assert_refused("7.86.0 is too old");
    info.version_num = 0x075700;
    info.features = CURL_VERSION_SSL;
    assert_refused("resolver");
    info.features = CURL_VERSION_ASYNCHDNS;
    assert_refused("TLS");
    info.version = NULL;
    assert_int_equal(curl_lib_load(&lib, NULL), ERR_NONE); /* once it is repaired, it is found */
    is_missing = true;
    assert_int_equal(curl_lib_load(&again, NULL), ERR_NONE);
    assert_ptr_equal(lib, again);
    assert_non_null(lib->version_info(CURLVERSION_NOW));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_libcurl_that_cannot_be_used_is_the_operators_to_solve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
