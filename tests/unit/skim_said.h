/*
 * skim_said.h -- all that a pass over a file says, as one text, pulled row by row or skimmed: for tests that compare
 * the two. Without cmocka, so that a fuzz target may include it.
 */
#ifndef CHUTE_SKIM_SAID_H
#define CHUTE_SKIM_SAID_H

#include "inspect_internal.h"

#include "buf.h"

static inline bool said_put(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                            const uint32_t *length, size_t fields)
{
    struct buf *out = arg;
    buf_printf(out, "! %llu+%llu %s:", (unsigned long long)line, (unsigned long long)offset, reason);
    for (size_t i = 0; i < fields; i++) {
        buf_printf(out, " %d:%u:", value[i] != NULL, length[i]);
        buf_add(out, value[i], length[i]);
    }
    buf_addc(out, '\n');
    return true;
}

static inline void said_cut(void *arg, uint64_t offset)
{
    buf_printf(arg, "cut %llu\n", (unsigned long long)offset);
}

static inline void said_end(struct buf *out, const struct rows *rows, const struct err *err)
{
    const struct rows_result *r = &rows->result;
    if (err->code != ERR_NONE) {
        buf_printf(out, "%d %s\n", err->code, err->text);
        return;
    }
    buf_printf(out, "= %llu records, %llu rejected, %llu odd, %s%llu bytes, ", (unsigned long long)r->records,
               (unsigned long long)r->rejected, (unsigned long long)r->odd, r->loose > 0 ? "loose, " : "",
               (unsigned long long)r->bytes);
    for (size_t i = 0; i < sizeof r->hash; i++)
        buf_printf(out, "%02x", r->hash[i]);
    buf_addc(out, '\n');
}

/*
 * What a pass over FD says: rejects into OUT in their order, cuts into CUTS (other passes tell the two in another order
 * to each other). OPTIONS without kinds; its sink is replaced. SHAPE is that of an earlier look.
 */
static inline void say_pass(int fd, struct inspect_options *options, struct shape *shape, bool skims,
                            uint64_t cut_bytes, struct buf *out, struct buf *cuts)
{
    const struct rows_skim skim = {.cut_bytes = cut_bytes, .on_cut = said_cut, .arg = cuts};
    struct rows *rows;
    struct err err;
    buf_clear(out);
    buf_clear(cuts);
    options->sink = (struct reject_sink){out, said_put, NULL};
    if (inspect_rows(fd, options, shape, &rows, &err) != ERR_NONE) {
        buf_adds(out, err.text);
        return;
    }
    if (skims)
        rows_skim(rows, &skim, &err);
    else
        rows_pull_all(rows, &skim, &err);
    said_end(out, rows, &err);
    if (err.code != ERR_NONE)
        buf_clear(cuts); /* how far a pass had come when it failed depends on its batches */
    rows_free(rows);
}

#endif
