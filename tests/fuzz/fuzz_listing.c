/* fuzz_listing.c -- a listing of any bytes: no crash, no entry that leads out of its folder, and the same whatever
 * pieces it comes in; and the url, the globs and the escapes of a remote source. */
#include "listing.h"
#include "remote_path.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sum {
    uint64_t entries, hash;
};

static bool note(void *arg, const struct listing_entry *e)
{
    struct sum *s = arg;
    MUST(e->name[0] != '\0' && strchr(e->name, '/') == NULL && strcmp(e->name, ".") != 0 && strcmp(e->name, "..") != 0);
    s->entries++;
    for (const char *p = e->name; *p != '\0'; p++)
        s->hash = s->hash * 31 + (unsigned char)*p;
    s->hash = s->hash * 31 + e->size + (uint64_t)e->mtime_ns + e->kind;
    return true;
}

static enum err_code parse(const char *text, size_t size, size_t piece, struct sum *s)
{
    static struct listing l;
    struct err err = {0};
    *s = (struct sum){0};
    listing_init(&l, 1795771800, note, s);
    for (size_t at = 0; at < size; at += piece)
        if (listing_feed(&l, text + at, size - at < piece ? size - at : piece, &err) != ERR_NONE)
            return err.code;
    return listing_end(&l, &err);
}

static void fuzz_path(const char *text)
{
    static const char *const schemes[] = {"ftp", "ftps", "sftp", NULL};
    struct remote_url url;
    struct err err = {0};
    if (remote_url_parse(text, schemes, &url, &err) == ERR_NONE)
        MUST(url.host[0] != '\0' && url.root[0] == '/' && url.port <= 65535);
    const struct option_strings one = {.items = &text, .count = 1};
    struct buf b;
    buf_init(&b);
    err_clear(&err);
    if (remote_globs_check(&one, &err) == ERR_NONE) {
        remote_glob_base(text, &b);
        (void)remote_enters(&one, "a/b");
        (void)remote_takes(&one, "a/b.csv");
    }
    buf_done(&b);
    buf_init(&b);
    remote_url_path("/out", text, true, true, &b);
    for (const char *p = b.data; p != NULL && *p != '\0'; p++)
        MUST(*p > ' ' && *p < 0x7f && *p != '?' && *p != '#');
    buf_done(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sum whole, pieces;
    char *text = malloc(size + 1);
    MUST(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    enum err_code code = parse(text, size, size > 0 ? size : 1, &whole);
    MUST(parse(text, size, 3, &pieces) == code && pieces.entries == whole.entries && pieces.hash == whole.hash);
    fuzz_path(text);
    free(text);
    return 0;
}
