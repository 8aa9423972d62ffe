/* crypto_lib.c -- dlopen and one table of functions. */
#include "crypto_lib.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define NAME "libcrypto.so.3" /* the name holds for all of 3.x */
#define INSTALL "install OpenSSL 3 (Debian: libssl3)"

static struct crypto_lib lib;
static bool is_loaded;

static const struct {
    const char *symbol;
    size_t offset;
} functions[] = {
#define CRYPTO_LIB_ROW(name) {#name, offsetof(struct crypto_lib, name)},
    CRYPTO_LIB_FUNCTIONS(CRYPTO_LIB_ROW)
#undef CRYPTO_LIB_ROW
};

enum err_code crypto_lib_load(const struct crypto_lib **ret, struct err *err)
{
    *ret = &lib;
    if (is_loaded)
        return ERR_NONE;
    void *handle = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return err_set(err, ERR_CONFIG, false, "uploads need libcrypto: %s; " INSTALL, dlerror());
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *address = dlsym(handle, functions[i].symbol);
        if (address == NULL) {
            dlclose(handle);
            return err_set(err, ERR_CONFIG, false, "%s has no %s: " INSTALL, NAME, functions[i].symbol);
        }
        memcpy((char *)&lib + functions[i].offset, &address, sizeof address); /* C has no cast for this */
    }
    is_loaded = true;
    return ERR_NONE;
}
