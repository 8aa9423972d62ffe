/*
 * fuzz_config.c -- any bytes as a configuration: an answer, no crash, no leak, bounded time and memory.
 */
#include "config.h"

#include "../unit/config_fakes.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    char path[64], *errors = NULL;
    struct config *c = NULL;
    struct err err;

    if (fd < 0 && (fd = memfd_create("configuration", MFD_CLOEXEC)) < 0)
        abort();
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    enum err_code code = config_load(path, &fake_drivers, &c, &errors, &err);
    if ((code == ERR_NONE) != (c != NULL) || (code == ERR_CONFIG && errors == NULL))
        abort();
    if (c != NULL)
        for (size_t i = 0; i < c->flow_count; i++)
            config_flow_takes(&c->flows[i], "folder/a name.csv");
    config_unref(c);
    free(errors);
    return 0;
}
