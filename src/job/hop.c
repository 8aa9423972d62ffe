/*
 * hop.c -- jobs that go to the pool together.
 *
 * Opening a small file, or moving it, takes 20 microseconds; going to another thread and back costs as much again. So
 * what is to be done in one turn of the loop is handed over in parts of HOP_JOBS, and each part comes back as one. A
 * single file waits for nobody: parts are cut at the end of the turn. Those that put files away are cut by folder: each
 * folder that a part has to walk to costs it as many calls of the system as a file does.
 */
#include "job_internal.h"

#define HOP_JOBS 16

struct hop {
    struct work work; /* first */
    job_pool_fn *run;
    struct finish_memo memo; /* of this hop: files of one folder find it open */
    struct job *jobs[HOP_JOBS];
    size_t count;
};

static void on_pool(struct work *work)
{
    struct hop *hop = (struct hop *)work;
    finish_memo_init(&hop->memo);
    for (size_t i = 0; i < hop->count; i++)
        hop->run(hop->jobs[i], &hop->memo);
    finish_memo_done(&hop->memo);
}

static void on_back(struct work *work)
{
    struct hop *hop = (struct hop *)work;
    for (size_t i = 0; i < hop->count; i++)
        job_resume(hop->jobs[i]); /* frees that one at most */
    free(hop);
}

/* They can't go: each is told so as if it had been there. */
static void fail(struct hop *hop, struct job *const *jobs, size_t count, const struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        jobs[i]->err = *err;
        jobs[i]->finish_failed = true; /* of one that finishes; the others don't look at it */
        job_resume(jobs[i]);
    }
    free(hop);
}

static void dispatch(struct engine *e, job_pool_fn *run, struct job *const *jobs, size_t count)
{
    struct err err = {0};
    struct hop *hop = calloc(1, sizeof *hop);
    if (hop == NULL) {
        err_nomem(&err);
        fail(NULL, jobs, count, &err);
        return;
    }
    hop->run = run;
    hop->count = count;
    memcpy(hop->jobs, jobs, count * sizeof jobs[0]);
    if (work_start(e->loop, &hop->work, on_pool, on_back, &err) != ERR_NONE)
        fail(hop, jobs, count, &err);
}

/* By what they do, in no special order; then what is put away by its path. Stable: all else stays as it came. */
static int by_folder(const struct job *a, const struct job *b)
{
    bool is_away = a->hop_run == finish_run, is_other_away = b->hop_run == finish_run;
    if (is_away != is_other_away)
        return is_away ? 1 : -1;
    return is_away ? strcmp(a->row.path, b->row.path) : 0;
}

static void on_turn(uv_idle_t *idle)
{
    struct engine *e = idle->data;
    struct job *line = e->hoppers;
    e->hoppers = NULL;
    uv_idle_stop(idle);
    LL_SORT2(line, by_folder, hop_next);
    while (line != NULL) {
        struct job *part[HOP_JOBS];
        size_t count = 0;
        job_pool_fn *run = line->hop_run;
        for (; line != NULL && count < HOP_JOBS && line->hop_run == run; count++) {
            part[count] = line;
            LL_DELETE2(line, part[count], hop_next);
        }
        dispatch(e, run, part, count);
    }
}

void job_hop(struct job *job, job_pool_fn *run)
{
    struct engine *e = job->engine;
    job->hop_run = run;
    job->hop_next = NULL;
    if (e->hoppers == NULL)
        e->hoppers = job;
    else
        e->hoppers_last->hop_next = job;
    e->hoppers_last = job;
    uv_idle_start(&e->hop_idle, on_turn);
}
