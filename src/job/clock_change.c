/*
 * clock_change.c -- a server whose listing tells other times than before, for files that are the same.
 *
 * Its clock, its zone or the way it writes times has changed: then (nearly) all files of known size have moved by one
 * and the same difference, and nothing is fetched anew (rules.md: at least nine tenths). That can only be said when the
 * listing is over. Until then files of the same size and another time wait; then, if there were any, the folders are
 * listed once more, and each of them is either known under its new time or a changed file.
 *
 * A time that got coarser ("Nov 27 2026" for what was "Nov 27 10:31" half a year before) and still agrees is the same.
 * Memory: a handful of candidates per source, however many files there are.
 */
#include "job_internal.h"

#define MINUTE_NS INT64_C(60000000000)
#define DAY_NS (1440 * MINUTE_NS)
#define ENOUGH_TENTHS 9

static int64_t floor_to(int64_t t, int64_t unit)
{
    int64_t rest = t % unit;
    return t - (rest < 0 ? rest + unit : rest);
}

/* One of the two is the other, cut to whole minutes or days. */
static bool is_same_but_coarser(int64_t a, int64_t b)
{
    return floor_to(a, MINUTE_NS) == b || floor_to(b, MINUTE_NS) == a || floor_to(a, DAY_NS) == b ||
           floor_to(b, DAY_NS) == a;
}

/* Misra-Gries: a difference that more than an eighth of the files have is among those that are left. */
static void count_delta(struct clock_change *c, int64_t delta_ns)
{
    size_t free_at = CLOCK_CANDIDATES;
    for (size_t i = 0; i < CLOCK_CANDIDATES; i++) {
        if (c->seen[i].files > 0 && c->seen[i].delta_ns == delta_ns) {
            c->seen[i].files++;
            return;
        }
        if (c->seen[i].files == 0)
            free_at = i;
    }
    if (free_at < CLOCK_CANDIDATES) {
        c->seen[free_at].delta_ns = delta_ns;
        c->seen[free_at].files = 1;
        return;
    }
    for (size_t i = 0; i < CLOCK_CANDIDATES; i++)
        c->seen[i].files--;
}

static enum err_code rebase(struct ledger_tx *tx, struct ledger_row *row, int64_t mtime_ns, struct err *err)
{
    row->file.mtime_ns = mtime_ns;
    return ledger_put(tx, row, err);
}

enum err_code clock_compare(struct ledger_tx *tx, struct clock_change *c, struct ledger_row *row, const struct found *f,
                            bool *ret_same, bool *ret_waits, struct err *err)
{
    *ret_same = *ret_waits = false;
    bool is_ended = row->state == STATE_LOADED || row->state == STATE_SKIPPED || row->state == STATE_QUARANTINED;
    if (row->file.size != f->id.size || row->state == STATE_GONE)
        return ERR_NONE;
    int64_t delta_ns = f->id.mtime_ns - row->file.mtime_ns;
    if (!c->is_decided) {
        c->known++;
        count_delta(c, delta_ns);
    }
    if (delta_ns == 0 || !is_ended)
        return ERR_NONE;
    if (is_same_but_coarser(f->id.mtime_ns, row->file.mtime_ns)) {
        *ret_same = true; /* the finer of the two stays: what comes later is compared with that */
        return ERR_NONE;
    }
    if (!c->is_decided) {
        c->moved++;
        *ret_waits = true;
        return ERR_NONE;
    }
    if (c->delta_ns == 0 || delta_ns != c->delta_ns)
        return ERR_NONE;
    *ret_same = true;
    return rebase(tx, row, f->id.mtime_ns, err);
}

static int64_t common_delta(const struct clock_change *c)
{
    /* The counts of Misra-Gries are at most an eighth too small; what is asked for is nine tenths of them. */
    for (size_t i = 0; i < CLOCK_CANDIDATES; i++)
        if (c->seen[i].delta_ns != 0 && c->seen[i].files * 10 >= c->known * ENOUGH_TENTHS)
            return c->seen[i].delta_ns;
    return 0;
}

bool clock_listed(struct intake *in, bool is_complete)
{
    struct clock_change *c = &in->clock;
    struct clock_change next = {0};
    bool is_owed = !c->is_decided && c->moved > 0;
    if (is_owed) {
        next.is_decided = true;
        /* Half a listing proves nothing: then each file is looked at by its content, which costs a transfer. */
        next.delta_ns = is_complete ? common_delta(c) : 0;
        if (next.delta_ns != 0)
            log_info("source %s: %llu of %llu known files have times that differ by one and the same %lld s: the "
                     "server's clock or zone has changed, the files have not",
                     in->config->name, (unsigned long long)c->moved, (unsigned long long)c->known,
                     (long long)(next.delta_ns / 1000000000));
    }
    *c = next;
    return is_owed;
}
