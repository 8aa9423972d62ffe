/*
 * fuzz_inspect_count.c -- any bytes as a file: a pass without rows says what one with rows says, whatever the machine
 * can do and whatever the size of blocks. The first 5 bytes choose options, sizes and the shape.
 */
#include "../unit/skim_said.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must_equal(const struct buf *pulled, const struct buf *skimmed, const char *what)
{
    if (pulled->size == skimmed->size && (pulled->size == 0 || memcmp(pulled->data, skimmed->data, pulled->size) == 0))
        return;
    fprintf(stderr, "fuzz_inspect_count: %s\npulled: ", what); /* values may have NULs */
    fwrite(pulled->data, 1, pulled->size, stderr);
    fprintf(stderr, "\nskimmed: ");
    fwrite(skimmed->data, 1, skimmed->size, stderr);
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const nulls[] = {"", "NA", "x"};
    static const char delimiters[] = {',', ';', '\t', ' '};
    static int fd = -1;
    if (size < 5)
        return 0;
    /* What is decoded before an error in compressed data depends on the sizes. */
    if (size >= 6 && (data[5] == 0x1F || data[5] == 0x28 || (data[5] & 0xF0) == 0x50))
        return 0;
    if (fd < 0 && (fd = memfd_create("fuzz", MFD_CLOEXEC)) < 0)
        abort();
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data + 5, size - 5, 0) != (ssize_t)(size - 5))
        abort();
    const struct csv_options csv = {.delimiter = delimiters[data[0] & 3],
                                    .quote = (data[0] & 4) != 0 ? '\'' : '"',
                                    .encoding = (data[0] & 0x18) == 0x18 ? (data[0] >> 5) % 6 : ENC_UTF8,
                                    .null_values = {nulls, data[1] & 3},
                                    .short_rows = (data[1] & 4) != 0 ? SHORT_PAD : SHORT_REJECT,
                                    .max_row = (data[1] & 8) != 0 ? 20 : 1 << 20};
    struct inspect_options options = {.csv = &csv, .skip_bad_rows = data[1] >> 4, .no_kinds = true};
    struct column columns[4] = {{.name = "a"}, {.name = "b"}, {.name = "c"}, {.name = "d"}};
    struct shape shape = {
        .dialect = {.delimiter = csv.delimiter, .quote = csv.quote, .encoding = (enum encoding)csv.encoding},
        .columns = columns,
        .column_count = 1 + (data[4] & 3)};
    struct buf pulled, pulled_cuts, skimmed, skimmed_cuts;
    buf_init(&pulled);
    buf_init(&pulled_cuts);
    buf_init(&skimmed);
    buf_init(&skimmed_cuts);
    inspect_knobs = (struct inspect_knobs){0, 0, 0};
    say_pass(fd, &options, &shape, false, data[4] >> 2, &pulled, &pulled_cuts);
    for (int count = COUNT_BEST; count <= COUNT_BY_WORDS; count++) {
        inspect_knobs = (struct inspect_knobs){0, 0, 0};
        count_how = (enum count_how)count;
        if ((data[3] & 3) == (unsigned)count)
            inspect_knobs = (struct inspect_knobs){1 + data[2], 1 + data[3] % 60u, 0};
        say_pass(fd, &options, &shape, true, data[4] >> 2, &skimmed, &skimmed_cuts);
        must_equal(&pulled, &skimmed, "result differs");
        must_equal(&pulled_cuts, &skimmed_cuts, "cuts differ");
    }
    buf_done(&pulled);
    buf_done(&pulled_cuts);
    buf_done(&skimmed);
    buf_done(&skimmed_cuts);
    return 0;
}
