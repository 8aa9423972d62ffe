/* inspect.c -- the options, the words for a dialect, and a hash on its own. */
#include "inspect_internal.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

static const char *const encoding_words[] = {"utf-8",      "utf-16", "windows-1250", "windows-1252", "iso-8859-1",
                                             "iso-8859-2", NULL};

void inspect_dialect_text(const struct dialect *dialect, char *ret, size_t size)
{
    char other[2] = {dialect->delimiter, '\0'};
    const char *word = dialect->delimiter == '\0'   ? "json"
                       : dialect->delimiter == ','  ? "comma"
                       : dialect->delimiter == ';'  ? "semicolon"
                       : dialect->delimiter == '\t' ? "tab"
                       : dialect->delimiter == '|'  ? "pipe"
                       : dialect->delimiter == ' '  ? "space"
                                                    : other;
    static const char *const compressions[] = {"", ", gzip", ", zstd"};
    snprintf(ret, size, "%s, %s%s", word, encoding_words[dialect->encoding], compressions[dialect->compression]);
}

enum err_code inspect_hash(int fd, const _Atomic bool *stop, uint8_t ret_hash[16], uint64_t *ret_size, struct err *err)
{
    return inspect_hash_prefix(fd, UINT64_MAX, stop, ret_hash, ret_size, err);
}

/* It stays in the cache, and below what malloc() takes from the system and gives back each time, page by page. */
#define HASH_BYTES ((size_t)64 * 1024)

enum err_code inspect_hash_prefix(int fd, uint64_t limit, const _Atomic bool *stop, uint8_t ret_hash[16],
                                  uint64_t *ret_size, struct err *err)
{
    const size_t size = HASH_BYTES;
    char *block = malloc(size);
    struct content_hash *hash = content_hash_new();
    enum err_code code = ERR_NONE;
    uint64_t offset = 0;
    if (block == NULL || hash == NULL) {
        code = err_nomem(err);
        goto free_all;
    }
    for (;;) {
        if (stop != NULL && *stop) {
            code = err_set(err, ERR_STOPPED, false, "stopped");
            goto free_all;
        }
        size_t want = limit - offset < size ? (size_t)(limit - offset) : size;
        ssize_t n = want > 0 ? pread(fd, block, want, (off_t)offset) : 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            code = err_set(err, ERR_SYSTEM, true, "read at byte %llu: %s", (unsigned long long)offset, strerror(errno));
            goto free_all;
        }
        if (n == 0)
            break;
        content_hash_add(hash, block, (size_t)n);
        offset += (uint64_t)n;
    }
    content_hash_get(hash, ret_hash);
    *ret_size = offset;
free_all:
    content_hash_free(hash);
    free(block);
    return code;
}
