/* fuzz_template.c -- templates, globs and the small parsers of text: any bytes, no crash, and the promises of text.h.
 */
#include "clock.h"
#include "text.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_glob(const char *glob, const char *path)
{
    struct err err = {.code = ERR_NONE};
    bool is_good = glob_check(glob, &err);
    MUST(is_good == (err.code == ERR_NONE));
    bool matches = glob_match(glob, path);
    int slashes = 0;
    for (const char *p = path; *p != '\0'; p++)
        slashes += *p == '/';
    int depth = glob_depth(glob);
    MUST(!matches || depth < 0 || slashes <= depth);
    MUST(glob_match("**", path));
    path_is_temporary(path);
}

static void fuzz_template(const char *tmpl, const char *path)
{
    const struct template_facts facts = {.path = path, .flow = "f", .host = "h", .port = "1"};
    struct err err = {.code = ERR_NONE};
    bool is_good = template_check(tmpl, &err);
    MUST(is_good == (err.code == ERR_NONE));
    struct buf b, other;
    buf_init(&b);
    buf_init(&other);
    template_expand(tmpl, &facts, &b);
    MUST(b.failed || strlen(b.data) == b.size);
    if (is_good && template_is_constant(tmpl)) {
        const struct template_facts elsewhere = {.path = "a/b.c", .flow = "f", .host = "h", .port = "1"};
        template_expand(tmpl, &elsewhere, &other);
        MUST(b.failed || other.failed || strcmp(b.data, other.data) == 0);
    }
    buf_clear(&b);
    buf_add_json(&b, path);
    MUST(b.failed || text_utf8_valid(b.data, b.size) == b.size);
    buf_done(&b);
    buf_done(&other);
}

static void fuzz_text(const char *text, size_t n)
{
    uint64_t value;
    char shown[100];
    static const char *const words[] = {"debounce", "settle", NULL};
    text_parse_duration(text, &value);
    text_parse_size(text, &value);
    MUST(clock_parse(text) >= -1);
    text_nearest(text, words);
    MUST(text_utf8_valid(text, n) <= n);
    text_printable(text, shown, sizeof shown);
    MUST(text_utf8_valid(shown, strlen(shown)) == strlen(shown));
}

/* The input is a pattern, a NUL, and a path. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = malloc(size + 2);
    if (copy == NULL)
        return 0;
    memcpy(copy, data, size);
    copy[size] = copy[size + 1] = '\0';
    const char *path = copy + strlen(copy) + 1;
    fuzz_glob(copy, path);
    fuzz_template(copy, path);
    fuzz_text(copy, size);
    free(copy);
    return 0;
}
