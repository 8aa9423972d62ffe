/* pg_lib.c -- dlopen, one table of functions, and what we ask of the library that we find. */
#include "pg_lib.h"

#include "pg.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define NAME "libpq.so.5"
#define INSTALL "install libpq 14 or newer (Debian: libpq5)"
/* 14.0, as third_party/meson.build says: from here on a connection that breaks in the middle of a COPY ends the COPY,
 * and a write that fails does not hide what the server had said before. */
#define LOWEST 140000

static struct pg_lib lib;
static bool is_loaded;

static const struct {
    const char *symbol;
    size_t offset;
} functions[] = {
#define PG_LIB_ROW(name) {"PQ" #name, offsetof(struct pg_lib, name)},
    PG_LIB_FUNCTIONS(PG_LIB_ROW)
#undef PG_LIB_ROW
};

static void format_version(int version, char *ret, size_t size)
{
    snprintf(ret, size, "%d.%d", version / 10000, version % 10000);
}

static enum err_code check(struct err *err)
{
    char version[24];
    format_version(lib.libVersion(), version, sizeof version);
    if (lib.libVersion() < LOWEST)
        return err_set(err, ERR_CONFIG, false, "libpq %s is too old: " INSTALL, version);
    if (!lib.isthreadsafe())
        return err_set(err, ERR_CONFIG, false, "libpq %s was built without threads: " INSTALL, version);
    return ERR_NONE;
}

/* The version first: it is why a function is missing. */
static enum err_code resolve(void *handle, struct err *err)
{
    const char *missing = NULL;
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *address = dlsym(handle, functions[i].symbol);
        if (address == NULL && missing == NULL)
            missing = functions[i].symbol;
        memcpy((char *)&lib + functions[i].offset, &address, sizeof address); /* C has no cast for this */
    }
    if (lib.libVersion != NULL && lib.isthreadsafe != NULL && check(err) != ERR_NONE)
        return err->code;
    if (missing != NULL)
        return err_set(err, ERR_CONFIG, false, "%s has no %s: " INSTALL, NAME, missing);
    return ERR_NONE;
}

enum err_code pg_lib_load(const struct pg_lib **ret, struct err *err)
{
    struct err unheard;
    if (err == NULL)
        err = &unheard;
    *ret = &lib;
    if (is_loaded)
        return ERR_NONE;
    void *handle = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return err_set(err, ERR_CONFIG, false, "PostgreSQL needs libpq: %s; " INSTALL, dlerror());
    if (resolve(handle, err) != ERR_NONE) {
        dlclose(handle); /* nothing of it has run that would stay behind */
        return err->code;
    }
    /* OpenSSL initialises itself since 1.1, once for libcurl and for us; libpq must not do it a second time. */
    lib.initOpenSSL(0, 0);
    is_loaded = true;
    return ERR_NONE;
}

void pg_libraries(char *ret, size_t size)
{
    const struct pg_lib *found;
    struct err err;
    if (pg_lib_load(&found, &err) != ERR_NONE) {
        snprintf(ret, size, "%s", err.text);
        return;
    }
    char version[24];
    format_version(found->libVersion(), version, sizeof version);
    snprintf(ret, size, "libpq %s", version);
}
