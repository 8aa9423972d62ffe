/*
 * fetch.c -- the state FETCHING: the bytes of a file that is not on this machine are brought into the spool; and what
 * is done to it over there when it has ended (errand).
 *
 *   look into the spool ── whole ─────────────────────────────▶ OPENING
 *          └─ part or nothing ─▶ the source fetches the rest ─▶ named as whole ─▶ OPENING
 *                                   └─ "not there": ask the listing, so that a file the server lists and does not give
 *                                      is told from one that was deleted meanwhile
 *
 * A kill leaves a .part, which goes on where it stopped, or a whole one, which is found. What failed leaves its part.
 */
#include "job_internal.h"

#include <errno.h>
#include <unistd.h>

/* What failed is the source, not the file: after a few in a row its flows are left alone for a while. */
#define SOURCE_FAILURES 3

void intake_answered(struct intake *in)
{
    struct log_about about = {.source = in->config->name};
    if (in->down_until_ms != 0)
        log_write(LOG_INFO, &about, "answers again");
    in->down_until_ms = 0;
    in->failures = 0;
    in->answered_ms = clock_wall_ms();
}

static void on_up_timer(uv_timer_t *timer)
{
    const struct intake *in = timer->data;
    engine_pump_all(in->world->engine);
}

void intake_failed(struct intake *in, const struct err *err)
{
    struct log_about about = {.source = in->config->name};
    struct engine *e = in->world->engine;
    bool is_refused = err->code == ERR_DENIED || err->code == ERR_CONFIG;
    if (++in->failures < SOURCE_FAILURES && !is_refused)
        return;
    uint64_t wait = is_refused ? PROBE_BLOCKED_MS
                               : backoff_ms(e, &in->world->config->retry, (int64_t)in->failures) + LEDGER_RETRY_MS;
    if (in->down_until_ms == 0)
        log_write(LOG_ERROR, &about, "%s; its files wait: %s", is_refused ? "refuses us" : "does not answer",
                  err->text);
    in->down_until_ms = clock_mono_ms() + wait;
    if (!in->world->is_stopping)
        uv_timer_start(&in->up_timer, on_up_timer, wait + 1, 0);
}

bool intake_is_down(const struct intake *in)
{
    return in->down_until_ms != 0 && clock_mono_ms() < in->down_until_ms;
}

bool job_is_remote(const struct job *job)
{
    return job->intake != NULL && job->intake->state != NULL && job->intake->config->ops->fetch != NULL &&
           member_name(job->row.path) == NULL;
}

bool job_is_spooled(const struct job *job)
{
    return job_is_remote(job) || member_name(job->row.path) != NULL;
}

/* ---- on the pool ---- */

static void look_run(struct job *job, struct finish_memo *memo)
{
    (void)memo;
    if (spool_open(job->engine, &job->row, &job->spooled, &job->err) == ERR_NONE && job->spooled.fd < 0)
        spool_open_part(job->engine, &job->row, &job->spooled, &job->err);
    job->fd = job->spooled.fd;
}

static void finish_part_run(struct job *job, struct finish_memo *memo)
{
    (void)memo;
    spool_finish_part(job->engine, &job->row, &job->fetch, &job->spooled, &job->err);
}

/* ---- on the loop ---- */

static void on_fetched(struct fetch *fetch)
{
    struct job *job = fetch->owner;
    job->is_fetching = false;
    job->err = fetch->err;
    job_resume(job);
}

static void on_looked_for(void *arg, struct probe *probes, size_t count)
{
    struct job *job = arg;
    (void)probes;
    (void)count;
    job_resume(job);
}

enum fetch_next fetch_enter(struct job *job)
{
    err_clear(&job->err);
    job->step = FETCH_LOOKING;
    job_hop(job, look_run);
    return FETCH_WAITS;
}

static enum fetch_next begin(struct job *job)
{
    const struct source_ops *ops = job->intake->config->ops;
    job->fetch = (struct fetch){.path = job->row.path,
                                .id = job->row.file,
                                .fd = job->fd,
                                .offset = job->spooled.size,
                                .max_bytes = job->world->config->limits.max_file_size,
                                .finished = on_fetched,
                                .owner = job};
    job->step = FETCH_UNDER_WAY;
    if (ops->fetch(job->intake->state, &job->fetch, &job->err) != ERR_NONE)
        return FETCH_FAILED;
    job->is_fetching = true;
    return FETCH_WAITS;
}

/* The server does not give it. Does it still list it? */
static enum fetch_next look_for(struct job *job)
{
    const struct source_ops *ops = job->intake->config->ops;
    struct err err = {0};
    job->step = FETCH_LOOKING_FOR;
    job->probe = (struct probe){.path = job->row.path};
    if (ops->probe == NULL || ops->probe(job->intake->state, &job->probe, 1, on_looked_for, job, &err) != ERR_NONE)
        return FETCH_FAILED;
    return FETCH_WAITS;
}

enum fetch_next fetch_answer(struct job *job)
{
    switch (job->step) {
    case FETCH_LOOKING:
        if (job->err.code != ERR_NONE)
            return FETCH_FAILED;
        return job->spooled.is_whole ? FETCH_DONE : begin(job);
    case FETCH_UNDER_WAY:
        if (job->err.code == ERR_NONE) {
            intake_answered(job->intake);
            job->step = FETCH_NAMING;
            job_hop(job, finish_part_run);
            return FETCH_WAITS;
        }
        if (job->err.code == ERR_SYSTEM && job->fd >= 0 && ftruncate(job->fd, 0) != 0) {
            /* the spool is full: what came gives its room back to the ledger, which may be on the same disk */
        }
        return job->fetch.is_gone ? look_for(job) : FETCH_FAILED;
    case FETCH_LOOKING_FOR:
        job->is_missing = job->probe.answer == PROBE_GONE;
        if (job->probe.answer == PROBE_PRESENT)
            err_wrap(&job->err, "source %s lists it and does not give it", job->row.source);
        else if (job->probe.answer == PROBE_UNKNOWN)
            job->err.retryable = true;
        return FETCH_FAILED;
    case FETCH_NAMING:
        return job->err.code == ERR_NONE ? FETCH_DONE : FETCH_FAILED;
    }
    return FETCH_FAILED;
}

/* ---- the file over there, when its jobs have ended ---- */

static void on_errand(struct source_errand *errand)
{
    struct job *job = errand->owner;
    job->err = errand->err;
    job->finish_changed = errand->err.code == ERR_CHANGED;
    job->finish_failed = errand->err.code != ERR_NONE && !job->finish_changed;
    if (errand->moved_to[0] != '\0')
        job->place = arena_strdup(&job->arena, errand->moved_to);
    job->errand_done = true;
    job_hop(job, finish_run);
}

bool errand_start(struct job *job)
{
    const struct source_ops *ops = job->intake->config->ops;
    job->errand = (struct source_errand){.path = job->row.path,
                                         .id = job->row.file,
                                         .to = job->action == FINISH_MOVE ? job->action_dir : NULL,
                                         .finished = on_errand,
                                         .owner = job};
    if (ops->run_errand(job->intake->state, &job->errand, &job->err) == ERR_NONE)
        return true;
    job->finish_failed = true;
    job->errand_done = true;
    return false;
}
