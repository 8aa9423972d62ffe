/* fuzz_archive.c -- any bytes as an archive: no crash, no member whose path leads out, and never more than the limits.
 */
#include "unpack.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must_stay_inside(const char *path)
{
    MUST(path[0] != '\0' && path[0] != '/' && path[strlen(path) - 1] != '/');
    for (const char *p = path; *p != '\0'; p += *p == '/') {
        size_t n = strcspn(p, "/");
        MUST(n > 0 && !(n == 1 && p[0] == '.') && !(n == 2 && p[0] == '.' && p[1] == '.'));
        MUST(memchr(p, '\\', n) == NULL);
        p += n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct unpack_limits limits = {.size = 4u << 20, .count = 50, .ratio = 100};
    struct err err = {0};
    uint64_t members = 0, total = 0, length, hash;
    int fd = memfd_create("archive", 0);
    MUST(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    bool is_good = unpack_check(fd, &limits, NULL, &members, &err) == ERR_NONE;
    MUST(members <= limits.count + 1);
    struct unpack_reader *r = NULL;
    err_clear(&err);
    if (unpack_open(fd, &limits, NULL, &r, &err) == ERR_NONE) {
        const struct unpack_member *m;
        uint64_t count = 0;
        while (unpack_next(r, &m, &err) == ERR_NONE && m != NULL) {
            must_stay_inside(m->path);
            int out = memfd_create("out", 0);
            count++;
            if (unpack_extract(r, out, &length, &hash, &err) == ERR_NONE)
                total += length;
            close(out);
            if (err.code != ERR_NONE)
                break;
        }
        MUST(!is_good || (err.code == ERR_NONE && count == members));
        MUST(total <= limits.size);
    }
    unpack_close(r);
    close(fd);
    return 0;
}
