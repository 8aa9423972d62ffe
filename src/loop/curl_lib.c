/* curl_lib.c -- dlopen, one table of functions, and what we ask of the library that we find. */
#include "curl_lib.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define NAME "libcurl.so.4"
#define INSTALL "install libcurl 7.87 or newer (Debian: libcurl4)"
#define LOWEST 0x075700u /* 7.87.0, as third_party/meson.build says */

static struct curl_lib lib;
static bool is_loaded;

static const struct {
    const char *symbol;
    size_t offset;
} functions[] = {
#define CURL_LIB_ROW(name) {"curl_" #name, offsetof(struct curl_lib, name)},
    CURL_LIB_FUNCTIONS(CURL_LIB_ROW)
#undef CURL_LIB_ROW
};

static enum err_code resolve(void *handle, struct err *err)
{
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *address = dlsym(handle, functions[i].symbol);
        if (address == NULL)
            return err_set(err, ERR_CONFIG, false, "%s has no %s: " INSTALL, NAME, functions[i].symbol);
        memcpy((char *)&lib + functions[i].offset, &address, sizeof address); /* C has no cast for this */
    }
    return ERR_NONE;
}

static enum err_code check(struct err *err)
{
    const curl_version_info_data *info = lib.version_info(CURLVERSION_NOW);
    if (info->version_num < LOWEST)
        return err_set(err, ERR_CONFIG, false, "libcurl %s is too old: " INSTALL, info->version);
    if ((info->features & CURL_VERSION_ASYNCHDNS) == 0)
        return err_set(err, ERR_CONFIG, false,
                       "libcurl %s was built without a resolver that runs beside the loop: " INSTALL, info->version);
    if ((info->features & CURL_VERSION_SSL) == 0)
        return err_set(err, ERR_CONFIG, false, "libcurl %s was built without TLS: " INSTALL, info->version);
    return ERR_NONE;
}

enum err_code curl_lib_load(const struct curl_lib **ret, struct err *err)
{
    *ret = &lib;
    if (is_loaded)
        return ERR_NONE;
    void *handle = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return err_set(err, ERR_CONFIG, false, "HTTP needs libcurl: %s; " INSTALL, dlerror());
    if (resolve(handle, err) != ERR_NONE || check(err) != ERR_NONE) {
        dlclose(handle); /* nothing of it has run that would stay behind */
        return err->code;
    }
    if (lib.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return err_set(err, ERR_SYSTEM, true, "libcurl can't be initialised: out of memory");
    is_loaded = true;
    return ERR_NONE;
}

CURL *curl_spare_take(struct curl_spare *s, const struct curl_lib *curl)
{
    return s->count > 0 ? s->easy[--s->count] : curl->easy_init();
}

void curl_spare_give(struct curl_spare *s, const struct curl_lib *curl, CURL *easy, bool is_sound)
{
    if (easy == NULL)
        return;
    if (!is_sound || s->count == CURL_SPARE_MAX) {
        curl->easy_cleanup(easy);
        return;
    }
    curl->easy_reset(easy);
    s->easy[s->count++] = easy;
}

void curl_spare_drop(struct curl_spare *s, const struct curl_lib *curl)
{
    while (s->count > 0)
        curl->easy_cleanup(s->easy[--s->count]);
}
