/*
 * overtaken.c -- one table for all files of a flow, with replace: only the newest version is loaded, those before it
 * are skipped. When the newest turns out to be none (bad, empty, deleted before it was loaded), the next best one has
 * its turn after all: the table holds the newest version that can be loaded.
 */
#include "job_internal.h"

#include <stdio.h>

void newest_key(const char *dest, const char *table_key, char *ret, size_t size)
{
    snprintf(ret, size, "newest:%s:%s", dest, table_key);
}

enum err_code newest_put(struct ledger_tx *tx, const struct ledger_row *row, int64_t mtime_ns, struct err *err)
{
    char key[TABLE_NAME_MAX + 128], value[4200];
    newest_key(row->dest, row->table_key, key, sizeof key);
    snprintf(value, sizeof value, "%020lld %s", (long long)mtime_ns, row->path);
    return ledger_meta_put(tx, key, value, err);
}

/* What the table of ROW holds, as newest_put() wrote it, into ARENA; *RET NULL: nothing. */
static enum err_code held_by(struct ledger_tx *tx, const struct ledger_row *row, struct arena *arena, const char **ret,
                             struct err *err)
{
    char key[TABLE_NAME_MAX + 128];
    newest_key(row->dest, row->table_key, key, sizeof key);
    return ledger_meta_get(tx, key, arena, ret, err);
}

/* Path of what is in the table and newer than ROW; NULL: ROW may replace it. HELD: as newest_put() wrote it. */
static const char *newer_in(const char *held, const struct ledger_row *row)
{
    char mine[4200];
    const char *path = held != NULL ? strchr(held, ' ') : NULL;
    snprintf(mine, sizeof mine, "%020lld %s", (long long)row->file.mtime_ns, row->path);
    return path != NULL && strcmp(path + 1, row->path) != 0 && strcmp(held, mine) > 0 ? path + 1 : NULL;
}

enum err_code newest_overtakes(struct ledger_tx *tx, const struct ledger_row *row, struct arena *arena,
                               const char **ret_by, struct err *err)
{
    const char *held = NULL;
    enum err_code code = held_by(tx, row, arena, &held, err);
    *ret_by = newer_in(held, row);
    return code;
}

struct best_search {
    const struct ledger_row *failed;
    const char *held;
    struct arena *arena;
    struct ledger_row best;
    bool found;
    struct err *err;
};

static bool see_overtaken(void *arg, const struct ledger_row *row)
{
    struct best_search *s = arg;
    bool is_one = row->id != s->failed->id && strcmp(row->flow, s->failed->flow) == 0 && !row->taken_by_us &&
                  strncmp(row->reason, OVERTAKEN_PREFIX, strlen(OVERTAKEN_PREFIX)) == 0;
    if (!is_one || newer_in(s->held, row) != NULL)
        return true;
    int64_t a = row->file.mtime_ns, b = s->best.file.mtime_ns;
    if (s->found && (a != b ? a < b : strcmp(row->path, s->best.path) < 0))
        return true;
    s->found = row_copy(s->arena, row, &s->best, s->err) == ERR_NONE;
    return s->found;
}

enum err_code overtaken_revive(struct ledger_tx *tx, const struct config_flow *flow, const struct ledger_row *failed,
                               struct err *err)
{
    if (flow == NULL || flow->plan.mode != MODE_REPLACE || !flow_is_constant(flow) || failed->table_key[0] == '\0')
        return ERR_NONE;
    struct arena arena;
    arena_init(&arena);
    struct best_search s = {.failed = failed, .arena = &arena, .err = err};
    const struct ledger_query q = {
        .dest = failed->dest, .table_key = failed->table_key, .states = STATE_BIT(STATE_SKIPPED)};
    err_clear(err);
    enum err_code code = held_by(tx, failed, &arena, &s.held, err);
    if (code == ERR_NONE)
        code = ledger_each(tx, &q, see_overtaken, &s, err);
    if (code == ERR_NONE && err->code == ERR_NONE && s.found) {
        struct log_about about = {.flow = s.best.flow, .file = s.best.path, .dest = s.best.dest};
        char key[33];
        engine_new_key(key);
        row_queue_again(&s.best, key, "");
        code = ledger_put(tx, &s.best, err);
        log_write(LOG_INFO, &about, "queued again: %s, which is newer, was not loaded", failed->path);
    }
    arena_done(&arena);
    return code != ERR_NONE ? code : err->code;
}
