/* fuzz_script.c -- the splitter of SQL files, and cron's five fields: any text, no crash, no endless walk, and the
 * promises of script.h and cron.h. */
#include "cron.h"
#include "script.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_split(const char *text, size_t size)
{
    char words[SCRIPT_WORDS_MAX];
    size_t at = script_skip(text, 0), before = 0;
    while (text[at] != '\0') {
        size_t end = script_end(text, at);
        MUST(at >= before && at < size && end > at && end <= size);
        MUST(text[end] == ';' || text[end] == '\0');
        script_words(text, at, words);
        MUST(words[0] != '\0' || (unsigned char)text[at] >= 0x80);
        MUST(strlen(words) < SCRIPT_WORDS_MAX);
        MUST(script_line(text, at) >= 1);
        before = end;
        at = script_skip(text, end);
    }
    MUST(at == size);
    size_t last = 0;
    for (uint64_t position = 1; position < 20; position++) {
        size_t offset = script_offset(text, position);
        MUST(offset <= size && offset >= last);
        last = offset;
    }
}

static void fuzz_cron(const char *text)
{
    struct cron c;
    struct err err = {0};
    if (cron_parse(text, &c, &err) != ERR_NONE) {
        MUST(err.code == ERR_CONFIG && err.text[0] != '\0');
        return;
    }
    int64_t now = INT64_C(1774742400000); /* the day before clocks are put forward */
    for (int i = 0; i < 5; i++) {
        int64_t next = cron_next(&c, now);
        MUST(next > now && next % 60000 == 0); /* what never comes was refused */
        now = next;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int is_ready;
    char *copy = malloc(size + 1);
    if (copy == NULL)
        return 0;
    if (!is_ready) {
        setenv("TZ", "Europe/Prague", 1);
        tzset();
        is_ready = 1;
    }
    memcpy(copy, data, size);
    copy[size] = '\0';
    fuzz_split(copy, strlen(copy));
    if (size < 200)
        fuzz_cron(copy);
    free(copy);
    return 0;
}
