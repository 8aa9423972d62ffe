/*
 * turn.c -- which job is next at its table.
 *
 * Files are opened at the same time, small ones are ready first; but a table takes them in the order of their claim. A
 * job stands in the line of its table from its start until its driver has it, or until it has nothing for it. There are
 * a few hundred jobs at most, but each asks several times: the lines keep that from being a walk over all of them.
 */
#include "job_internal.h"

static bool same_table(const struct job *a, const struct job *b)
{
    return a->table_hash == b->table_hash && a->outlet == b->outlet && strcmp(a->row.table_key, b->row.table_key) == 0;
}

static struct job **line_of(const struct job *job)
{
    return &job->engine->lines[job->table_hash % JOB_LINES];
}

static struct job *first_of(const struct job *job)
{
    struct job *first = *line_of(job);
    while (first != NULL && !same_table(first, job))
        first = first->line_next;
    return first;
}

void job_line_up(struct job *job)
{
    struct job **line = line_of(job), *after = NULL, *other;
    if (job->is_in_line)
        return;
    DL_FOREACH2(*line, other, line_next)
    {
        if (other->number > job->number) /* it stood here before, and goes back to its place */
            break;
        after = other;
    }
    if (after == NULL)
        DL_PREPEND2(*line, job, line_prev, line_next);
    else
        DL_APPEND_ELEM2(*line, after, job, line_prev, line_next);
    job->is_in_line = true;
}

static void leave_line(struct job *job)
{
    if (!job->is_in_line)
        return;
    DL_DELETE2(*line_of(job), job, line_prev, line_next);
    job->is_in_line = false;
}

static bool shares_newest(const struct job *job)
{
    return job->flow->plan.mode == MODE_REPLACE && flow_is_constant(job->flow);
}

/*
 * One table for all files of a flow, and OTHER, claimed before, is the newer one: it must not be replaced, unless it
 * fails, which only its end tells. The claim could not know: the ledger learns of what is newest with that end.
 */
static bool is_newer_of_flow(const struct job *other, const struct job *job)
{
    if (other->is_drop || other->is_finish_only || strcmp(other->row.flow, job->row.flow) != 0 ||
        other->row.id == job->row.id)
        return false;
    int64_t a = other->row.file.mtime_ns, b = job->row.file.mtime_ns;
    return a != b ? a > b : strcmp(other->row.path, job->row.path) > 0;
}

bool job_is_behind_newer(const struct job *job)
{
    if (!shares_newest(job))
        return false;
    for (const struct job *other = job->engine->jobs; other != NULL && other != job; other = other->next)
        if (is_newer_of_flow(other, job))
            return true;
    return false;
}

bool job_must_wait(const struct job *job)
{
    if (first_of(job) != job && !job->is_drop)
        return true;
    if (!shares_newest(job))
        return false;
    for (const struct job *other = job->engine->jobs; other != NULL && other != job; other = other->next)
        if (same_table(other, job) && is_newer_of_flow(other, job))
            return true;
    return false;
}

void job_next_turn(struct job *done)
{
    struct engine *e = done->engine;
    leave_line(done);
    if (e->is_giving_turns) /* a job that was let in has come here: who let it in goes on */
        return;
    e->is_giving_turns = true;
    for (;;) {
        struct job *job = first_of(done);
        if (job == NULL || !job->waits_for_turn || job_must_wait(job))
            break;
        job->waits_for_turn = false;
        job_reenter(job);
    }
    e->is_giving_turns = false;
}
