/* row.c -- what several parts of the engine do to a row of the ledger. Any thread: nothing but their arguments. */
#include "job_internal.h"

enum err_code row_copy(struct arena *arena, const struct ledger_row *row, struct ledger_row *ret, struct err *err)
{
    *ret = *row;
    const char **strings[] = {&ret->source, &ret->path,      &ret->flow,   &ret->dest,
                              &ret->table,  &ret->table_key, &ret->reason, &ret->load_key};
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++)
        if ((*strings[i] = arena_strdup(arena, *strings[i] != NULL ? *strings[i] : "")) == NULL)
            return err_nomem(err);
    return ERR_NONE;
}

void row_queue_again(struct ledger_row *row, const char *load_key, const char *reason)
{
    row->state = STATE_QUEUED;
    row->load_key = load_key;
    row->reason = reason;
    row->tries = 0;
    row->failed_ms = 0;
    row->next_try_ms = 0;
    row->since_ms = clock_wall_ms();
}
