/*
 * checkpoint.c -- what a driver keeps between the remote steps of one load: ids that a restart must find again, or it
 * would start a second import of the same version. Filed under the row, not under an attempt: what the destination was
 * told to do goes on there, also when the file is deleted or changed meanwhile, and whoever works on the row next has
 * to know.
 */
#include "job_internal.h"

#include <stdio.h>

const char *checkpoint_key(int64_t row_id, char ret[CHECKPOINT_KEY_MAX])
{
    snprintf(ret, CHECKPOINT_KEY_MAX, "checkpoint:%lld", (long long)row_id);
    return ret;
}

static enum err_code save_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    const struct job *job = arg;
    char key[CHECKPOINT_KEY_MAX];
    return ledger_meta_put(tx, checkpoint_key(job->row.id, key), job->saving[0] != '\0' ? job->saving : NULL, err);
}

static void on_saved(void *arg, const struct err *err)
{
    struct job *job = arg;
    void (*saved)(struct load *, const struct err *) = job->saved;
    job->saved = NULL;
    if (err == NULL) {
        job->load.checkpoint = job->saving;
        job->has_checkpoint = true;
    } else {
        engine_ledger_failed(job->engine);
    }
    saved(&job->load, err);
}

enum err_code checkpoint_save(struct load *load, const char *text,
                              void (*saved)(struct load *load, const struct err *err), struct err *err)
{
    struct job *job = load->owner;
    if (strlen(text) > CHECKPOINT_MAX)
        return err_set(err, ERR_SYSTEM, false, "a checkpoint of %zu bytes is longer than %d", strlen(text),
                       CHECKPOINT_MAX);
    job->saving = arena_strdup(&job->arena, text);
    job->saved = saved;
    if (job->saving == NULL)
        return err_nomem(err);
    return ledger_run(job->engine->ledger, save_fn, on_saved, job, err);
}
