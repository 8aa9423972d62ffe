/*
 * job.c -- the states of one job. DESIGN.md has the picture and what a kill between two states leaves.
 *
 * Callbacks do no deciding: they store what they were told and call job_resume(). Because neither the pool, nor the
 * ledger, nor a driver answers from inside the call that asked, a step never meets itself.
 */
#include "job_internal.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <errno.h>
#include <unistd.h>

enum next { AGAIN, WAIT, OVER };

typedef enum next step_fn(struct job *job);
static step_fn enter_fetching, answer_fetching, enter_opening, answer_opening, enter_unpacking, answer_unpacking,
    enter_checking, answer_checking, enter_loading, answer_loading, enter_recording, answer_recording, enter_finishing,
    answer_finishing, enter_closing, answer_closing;

#define TO(s) (1u << JOB_##s)
static const struct {
    const char *name;
    step_fn *enter;  /* start this state's work */
    step_fn *answer; /* that work has called job_resume() */
    unsigned may_go_to;
} states[JOB_STATES] = {
    [JOB_FETCHING] = {"fetching", enter_fetching, answer_fetching, TO(OPENING) | TO(RECORDING)},
    [JOB_OPENING] = {"opening", enter_opening, answer_opening,
                     TO(UNPACKING) | TO(CHECKING) | TO(LOADING) | TO(RECORDING)},
    [JOB_UNPACKING] = {"unpacking", enter_unpacking, answer_unpacking, TO(LOADING) | TO(RECORDING)},
    [JOB_CHECKING] = {"checking", enter_checking, answer_checking, TO(UNPACKING) | TO(LOADING) | TO(RECORDING)},
    [JOB_LOADING] = {"loading", enter_loading, answer_loading, TO(OPENING) | TO(RECORDING)},
    [JOB_RECORDING] = {"recording", enter_recording, answer_recording, TO(FINISHING)},
    [JOB_FINISHING] = {"finishing", enter_finishing, answer_finishing, TO(CLOSING)},
    [JOB_CLOSING] = {"closing", enter_closing, answer_closing, 0},
};

static void run(struct job *job, step_fn *step)
{
    enum next next;
    while ((next = step(job)) == AGAIN)
        step = states[job->state].enter;
    if (next == OVER)
        job_free(job);
}

/* The only place that writes job->state after the start; also the one line of trace per move. */
static enum next go(struct job *job, enum job_state to)
{
    assert(states[job->state].may_go_to & (1u << to));
    struct log_about about = {.flow = job->row.flow, .file = job->row.path};
    if (log_wants(LOG_DEBUG))
        log_write(LOG_DEBUG, &about, "%s -> %s", states[job->state].name, states[to].name);
    bool had_not_begun = job_has_not_ended(job);
    job->state = to;
    if (to == JOB_RECORDING && had_not_begun)
        job_next_turn(job);
    return AGAIN;
}

void job_resume(struct job *job)
{
    run(job, states[job->state].answer);
}

void job_reenter(struct job *job)
{
    run(job, states[job->state].enter);
}

void job_start(struct job *job)
{
    bool has_turn = !job->is_drop && !job->is_finish_only;
    job->is_behind_newer = has_turn && job_is_behind_newer(job);
    if (has_turn)
        job_line_up(job);
    job->state = job->is_finish_only   ? JOB_RECORDING
                 : job->is_drop        ? JOB_LOADING
                 : job_is_spooled(job) ? JOB_FETCHING
                                       : JOB_OPENING;
    run(job, states[job->state].enter);
}

/* ---- how a job ends: words for the row ---- */

static enum next ends(struct job *job, enum file_state end, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static enum next ends(struct job *job, enum file_state end, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(job->reason, sizeof job->reason, fmt, args);
    va_end(args);
    log_redact(job->reason); /* it goes to the ledger, to notes and into answers of every kind */
    job->end = end;
    return go(job, JOB_RECORDING);
}

/* Back to queued as it was: the destination is blocked or down, or we stop. */
static enum next goes_back(struct job *job)
{
    job->requeue = true;
    job->end = STATE_QUEUED;
    job->reason[0] = '\0';
    return go(job, JOB_RECORDING);
}

/*
 * How much of the time since the last failure is this file's failing: that in which the destination answered somebody.
 * It may have been gone for most of it; what is longer than the pause and one probe was its outage, or ours.
 */
static int64_t failing_ms(const struct job *job, const struct retry_options *r, int64_t answered_ms, int64_t now)
{
    int64_t since = job->row.since_ms, planned = job->row.next_try_ms > since ? job->row.next_try_ms - since : 0;
    int64_t longest = planned + (int64_t)r->max;
    if (job->row.tries <= 1 || answered_ms < since || now <= since)
        return 0;
    return now - since < longest ? now - since : longest;
}

static enum next retries(struct job *job, enum retry_class class)
{
    /* The one that failed: the source while it is fetched, then the destination. */
    bool is_source = job->state == JOB_FETCHING;
    const struct retry_options *r = is_source ? &job->world->config->retry : &job->outlet->config->retry;
    int64_t now = clock_wall_ms(), answered_ms = is_source ? job->intake->answered_ms : job->outlet->answered_ms;
    job->engine->retries[class]++;
    job->row.tries++;
    if (!job->is_drop)
        job->row.failed_ms += failing_ms(job, r, answered_ms, now);
    if (job->row.failed_ms > (int64_t)r->give_up_after)
        return ends(job, job->is_drop ? STATE_GONE : STATE_QUARANTINED, "given up after %lld tries; last: %s",
                    (long long)job->row.tries, job->err.text);
    uint64_t wait = backoff_ms(job->engine, r, job->row.tries);
    if (wait < job->load.retry_after_ms)
        wait = job->load.retry_after_ms;
    job->next_try_ms = now + (int64_t)wait;
    if (job->is_drop) /* the time of its row is that of the delete: the pauses are counted */
        job->row.failed_ms += (int64_t)wait;
    return ends(job, STATE_RETRYING, "%s", job->err.text);
}

/* The input ends early: it may still be written. The version has stood still since it was first seen. */
static enum next waits_for_rest(struct job *job)
{
    int64_t now = clock_wall_ms();
    int64_t since = job->row.seen_ms < now ? job->row.seen_ms : now;
    int64_t until = since + (int64_t)job->flow->incomplete_after;
    if (now >= until)
        return ends(job, STATE_QUARANTINED, "incomplete: %s; unchanged for %llu ms", job->err.text,
                    (unsigned long long)job->flow->incomplete_after);
    job->next_try_ms = until;
    return ends(job, STATE_SETTLING, "incomplete so far: %s", job->err.text);
}

static enum next changed_meanwhile(struct job *job)
{
    job->engine->retries[RETRY_CHANGED]++;
    return ends(job, STATE_SETTLING, "changed while it was being read");
}

/* A failure on the way to the destination, before it was asked anything. */
static enum next fails_to_open(struct job *job)
{
    switch (job->err.code) {
    case ERR_INCOMPLETE:
        return waits_for_rest(job);
    case ERR_CHANGED:
        return changed_meanwhile(job);
    case ERR_STOPPED:
        return goes_back(job);
    case ERR_INPUT:
        if (job->is_missing) /* deleted or renamed a moment ago: its event or settle's look tells what became of it */
            return ends(job, STATE_SETTLING, "gone when it was opened");
        break;
    case ERR_NONE:
    case ERR_CONFIG:
    case ERR_REMOTE:
    case ERR_DENIED:
    case ERR_SYSTEM:
        break;
    }
    if (job->err.retryable)
        return retries(job, RETRY_INPUT);
    return ends(job, STATE_QUARANTINED, "%s", job->err.text);
}

/* ---- FETCHING: the bytes come to this machine; fetch.c ---- */

static enum next fetch_failed(struct job *job)
{
    if (job->abandon)
        return changed_meanwhile(job);
    bool is_source = job->step == FETCH_UNDER_WAY || job->step == FETCH_LOOKING_FOR;
    if (is_source && (job->err.code == ERR_REMOTE || job->err.code == ERR_DENIED || job->err.code == ERR_CONFIG))
        intake_failed(job->intake, &job->err);
    if (job->err.code == ERR_DENIED || job->err.code == ERR_CONFIG)
        return goes_back(job);
    if (job->err.code == ERR_REMOTE && job->err.retryable)
        return retries(job, RETRY_REMOTE);
    if (job->err.code == ERR_SYSTEM && job->err.retryable)
        return retries(job, RETRY_SYSTEM);
    return fails_to_open(job);
}

static enum next fetched(struct job *job, enum fetch_next next)
{
    switch (next) {
    case FETCH_WAITS:
        return WAIT;
    case FETCH_FAILED:
        return fetch_failed(job);
    case FETCH_DONE:
        break;
    }
    if (job->abandon)
        return changed_meanwhile(job);
    return job->engine->is_draining ? goes_back(job) : go(job, JOB_OPENING);
}

static enum next enter_fetching(struct job *job)
{
    return fetched(job, fetch_enter(job));
}

static enum next answer_fetching(struct job *job)
{
    return fetched(job, fetch_answer(job));
}

/* ---- OPENING: descriptor, hash, shape ---- */

static void open_alone(struct work *work)
{
    open_run(work->arg, NULL);
}

static void on_opened(struct work *work)
{
    job_resume(work->arg);
}

static enum next enter_opening(struct job *job)
{
    /* What reads a large file to its end takes a thread of its own: the pool must stay free for the ledger. */
    bool is_long = job->row.file.size > (16u << 20) && (job->want_hash || !job->outlet->config->ops->accepts_rows);
    atomic_store(&job->load.stop, false);
    if (job->row.file.size <= SMALL_LOAD) {
        job_hop(job, open_run);
        return WAIT;
    }
    job->work.arg = job;
    enum err_code code = is_long ? work_thread(job->engine->loop, &job->work, open_alone, on_opened, &job->err)
                                 : work_start(job->engine->loop, &job->work, open_alone, on_opened, &job->err);
    if (code != ERR_NONE)
        return retries(job, RETRY_SYSTEM);
    return WAIT;
}

static bool appends(const struct job *job)
{
    return job->flow->plan.mode == MODE_APPEND;
}

static enum next answer_opening(struct job *job)
{
    if (job->abandon)
        return changed_meanwhile(job);
    if (job->engine->is_draining)
        return goes_back(job);
    if (job->err.code != ERR_NONE)
        return fails_to_open(job);
    if (job->rows == NULL && job->flow->format != FORMAT_RAW && !job->is_archive)
        return ends(job, STATE_SKIPPED, "empty file: nothing to load");
    if (job->has_hash && (job->row.has_hash || job->row.was_loaded))
        return go(job, JOB_CHECKING);
    if (appends(job) && job->row.was_loaded)
        return go(job, JOB_CHECKING);
    return go(job, job->is_archive ? JOB_UNPACKING : JOB_LOADING);
}

/* ---- UNPACKING: what is in it becomes files of the flow; members.c ---- */

static enum next unpacked(struct job *job, enum unpack_next next)
{
    switch (next) {
    case UNPACK_WAITS:
        return WAIT;
    case UNPACK_FAILED:
        unpack_free(job);
        if (job->abandon)
            return changed_meanwhile(job);
        if (job->err.code == ERR_SYSTEM)
            return retries(job, RETRY_SYSTEM);
        return fails_to_open(job);
    case UNPACK_DONE:
        break;
    }
    unpack_free(job);
    job->is_unpacked = true;
    if (job->flow->archives == ARCHIVES_BOTH)
        return job->abandon ? changed_meanwhile(job) : go(job, JOB_LOADING);
    job->keeps_loaded = true;
    char reason[sizeof job->reason];
    memcpy(reason, job->reason, sizeof reason);
    return ends(job, STATE_LOADED, "%s", reason);
}

static enum next enter_unpacking(struct job *job)
{
    atomic_store(&job->load.stop, false);
    return unpacked(job, unpack_enter(job));
}

static enum next answer_unpacking(struct job *job)
{
    return unpacked(job, unpack_answer(job));
}

/* ---- CHECKING: has this content been loaded before? ---- */

static enum err_code check_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct job *job = arg;
    job->is_repeat = false;
    if (!job->has_hash)
        return ERR_NONE;
    return ledger_version_find(tx, job->row.id, job->hash, &job->is_repeat, err);
}

static void on_checked(void *arg, const struct err *err)
{
    struct job *job = arg;
    if (err != NULL)
        job->err = *err;
    job_resume(job);
}

static enum next enter_checking(struct job *job)
{
    if (ledger_run_repeatable(job->engine->ledger, check_fn, on_checked, job, &job->err) != ERR_NONE)
        return retries(job, RETRY_SYSTEM);
    return WAIT;
}

static enum next is_duplicate(struct job *job)
{
    job->keeps_loaded = true;
    memcpy(job->receipt.hash, job->hash, sizeof job->hash);
    job->receipt.bytes = job->row.file.size;
    job->receipt.dest_rows = -1;
    job->receipt.is_duplicate = true;
    return ends(job, STATE_SKIPPED, DUPLICATE_PREFIX ": the same content as before");
}

static enum next answer_checking(struct job *job)
{
    if (job->err.code != ERR_NONE) /* the ledger could not answer */
        return retries(job, RETRY_SYSTEM);
    if (job->abandon)
        return changed_meanwhile(job);
    if (job->engine->is_draining)
        return goes_back(job);
    const struct load_plan *plan = &job->flow->plan;
    bool reload = plan->on_duplicate == DUPLICATE_RELOAD;
    /* A replaced table holds what this path loaded last only if the table is this path's own. */
    bool own_table = !flow_is_constant(job->flow);
    bool same_as_last = job->has_hash && job->row.has_hash && job->row.was_loaded &&
                        memcmp(job->hash, job->row.hash, sizeof job->hash) == 0;
    if (job->is_archive) /* what is in it is compared file by file; on_changed is for those */
        return !reload && same_as_last ? is_duplicate(job) : go(job, JOB_UNPACKING);
    if (!reload && job->has_hash) {
        if (plan->mode == MODE_REPLACE ? (same_as_last && own_table) : job->is_repeat)
            return is_duplicate(job);
    }
    if (!appends(job) || !job->row.was_loaded || job->is_repeat)
        return go(job, JOB_LOADING);
    switch ((enum changed_policy)job->flow->on_changed) {
    case CHANGED_AGAIN:
    case CHANGED_VERSION: /* of format raw, which appends nothing */
    case CHANGED_OVERWRITE:
        return go(job, JOB_LOADING);
    case CHANGED_TAIL:
        if (job->prefix_matches) {
            job->load.skip_records = job->row.loaded_records;
            return go(job, JOB_LOADING);
        }
        return ends(job, STATE_QUARANTINED,
                    "changed after it was appended, and not only at its end: expected the first %llu bytes as loaded "
                    "before, found others; restore them, or use on_changed: again",
                    (unsigned long long)job->row.loaded_file.size);
    case CHANGED_REJECT:
        break;
    }
    return ends(job, STATE_QUARANTINED,
                "changed after its %llu records were appended to %s: loading it again would repeat them; give new "
                "data a new name, or set on_changed to tail or again",
                (unsigned long long)job->row.loaded_records, job->row.table);
}

/* ---- LOADING: the destination's turn ---- */

static void on_load_finished(struct load *load)
{
    struct job *job = load->owner;
    job->is_begun = false;
    job->err = load->err;
    job_resume(job);
}

/* "space.table" */
static enum err_code split_table(struct job *job)
{
    const char *dot = strchr(job->row.table, '.');
    if (dot == NULL)
        return err_set(&job->err, ERR_INPUT, false, "table %s has no %s", job->row.table,
                       job->outlet->config->ops->space_word);
    job->load.space = arena_printf(&job->arena, "%.*s", (int)(dot - job->row.table), job->row.table);
    job->load.table = dot + 1;
    return job->load.space != NULL ? ERR_NONE : err_nomem(&job->err);
}

/* The tables of a flow with `records`, in the space of this file. */
static enum err_code take_parts(struct job *job)
{
    const struct config_flow *flow = job->flow;
    job->load.part_count = flow->part_count;
    job->load.parts = flow->parts;
    if (job->load.space == NULL || flow->part_count == 0)
        return ERR_NONE;
    struct load_part *parts = arena_alloc(&job->arena, flow->part_count * sizeof *parts);
    if (parts == NULL)
        return err_nomem(&job->err);
    for (size_t i = 0; i < flow->part_count; i++) {
        parts[i] = flow->parts[i];
        parts[i].space = job->load.space;
    }
    job->load.parts = parts;
    return ERR_NONE;
}

static enum next enter_loading(struct job *job)
{
    struct load *load = &job->load;
    const struct dest_ops *ops = job->outlet->config->ops;
    job->waits_for_turn = !job->is_drop && job_must_wait(job);
    if (job->waits_for_turn)
        return WAIT;
    if (job->abandon)
        return changed_meanwhile(job);
    if ((job->engine->is_draining && !job->is_drop) || job->is_behind_newer)
        return goes_back(job);
    bool drops = job->flow->on_delete != ON_DELETE_EMPTY;
    load->what = !job->is_drop ? LOAD_FILE : job->is_carry ? LOAD_CARRY : drops ? LOAD_DROP : LOAD_EMPTY;
    if (job->is_carry) {
        load->from_path = job->row.reason + strlen(CARRIED_PREFIX);
        memcpy(load->hash, job->row.hash, sizeof load->hash);
    }
    load->plan = &job->flow->plan;
    load->instance = job->engine->instance;
    load->source = job->row.source;
    load->path = job->row.path;
    load->load_key = job->row.load_key;
    load->table = job->row.table;
    if (ops->space_word != NULL && job->row.table[0] != '\0' && split_table(job) != ERR_NONE)
        return answer_loading(job);
    if (!job->is_drop && take_parts(job) != ERR_NONE)
        return answer_loading(job);
    load->is_ours = job->is_ours;
    load->header = job->expect;
    load->header_count = job->expect_count;
    load->rows = job->rows;
    load->fd = job->fd;
    load->cuts = job->cut_count > 1 ? job->cuts : NULL;
    load->cut_count = job->cut_count;
    load->id = job->row.file;
    if (job_is_spooled(job) &&
        !job->is_drop) { /* what came, and the time that the server has for it (a listing may be coarser) */
        load->id.size = job->spooled.size;
        load->id.mtime_ns = job->spooled.mtime_ns;
    }
    if (job->has_hash)
        memcpy(load->hash, job->hash, sizeof load->hash);
    load->still_current = load_still_current;
    load->save = checkpoint_save;
    load->finished = on_load_finished;
    load->owner = job;
    load->receipt.dest_rows = -1;
    atomic_store(&load->stop, false);
    if (ops->begin(job->outlet->state, load, &job->err) != ERR_NONE)
        return answer_loading(job);
    job->is_begun = true;
    if (!job->is_drop)
        job_next_turn(job);
    return WAIT;
}

/* A kill came between its commit and our record: only a hash tells whether the file is still what was written then. Or
 * the destination refused some events. */
static enum next opens_again(struct job *job)
{
    rejects_drop(job->rejects);
    job->rejects = NULL;
    close(job->fd);
    job->fd = -1;
    job->want_hash = true;
    job_line_up(job);
    return go(job, JOB_OPENING);
}

/*
 * The rows that were left out get their name before the ledger is told, so that a kill in between leaves a load that is
 * resumed, which looks for them. One small rename on the loop; the rows were synced on the driver's thread.
 */
static void keep_rejects(struct job *job)
{
    struct err err = {0};
    const struct receipt *r = &job->receipt;
    bool is_repeat = r->is_duplicate && !r->is_resumed;
    if (job->rejects == NULL || is_repeat)
        return; /* job_free() drops what a repeat has read */
    if (r->is_resumed && r->rejected > 0) {
        rejects_adopt(job->engine->quarantine_dir, job->row.flow, job->row.path, &err);
    } else {
        rejects_keep(job->rejects, &err);
        job->rejects = NULL;
    }
    if (err.code != ERR_NONE)
        log_error("%s: rejected rows could not be kept: %s", job->row.path, err.text);
}

static enum next load_worked(struct job *job)
{
    uint8_t own_hash[16];
    if (job->load.receipt.is_resumed && !job->has_hash)
        return opens_again(job);
    memcpy(own_hash, job->hash, sizeof own_hash);
    job->receipt = job->load.receipt;
    keep_rejects(job);
    job->keeps_loaded = true;
    memcpy(job->hash, job->receipt.hash, sizeof job->hash);
    job->has_hash = true;
    if (job->shape != NULL)
        inspect_dialect_text(&job->shape->dialect, job->receipt.dialect, sizeof job->receipt.dialect);
    if (job->receipt.is_resumed && memcmp(job->receipt.hash, own_hash, sizeof own_hash) != 0) {
        job->load_again = true; /* it has changed since */
        return ends(job, STATE_LOADED, "%s", "");
    }
    if (job->receipt.is_duplicate && !job->receipt.is_resumed)
        return ends(job, STATE_SKIPPED, DUPLICATE_PREFIX ": the destination holds this version");
    if (job->receipt.warnings[0] != '\0')
        return ends(job, STATE_LOADED, "the destination warns: %s", job->receipt.warnings);
    if (job_is_remote(job) && !job->spooled.is_verified)
        return ends(job, STATE_LOADED, "unverified: the server does not tell how long the file is");
    return ends(job, STATE_LOADED, "%s", "");
}

static enum next answer_loading(struct job *job)
{
    /* Rows were refused whose events have others: all was taken back, and the next pass leaves those events out. */
    bool leaves_out = job->refused.is_new;
    rows_free(job->rows);
    job->rows = NULL;
    if (job->err.code == ERR_NONE) {
        outlet_answered(job->outlet);
        if (job->is_drop)
            return ends(job, STATE_GONE, "%s", "");
        return load_worked(job);
    }
    if (job->abandon && job->err.code == ERR_STOPPED)
        return changed_meanwhile(job);
    if (job->err.code == ERR_INPUT && leaves_out)
        return opens_again(job);
    switch (job->err.code) {
    case ERR_CHANGED:
        return changed_meanwhile(job);
    case ERR_STOPPED:
        return goes_back(job);
    case ERR_INCOMPLETE:
        outlet_answered(job->outlet);
        return waits_for_rest(job);
    case ERR_DENIED:
        outlet_failed(job->outlet, &job->err);
        return goes_back(job);
    case ERR_NONE:
    case ERR_CONFIG:
    case ERR_INPUT:
    case ERR_REMOTE:
    case ERR_SYSTEM:
        break;
    }
    if (job->err.code == ERR_REMOTE || job->err.code == ERR_SYSTEM)
        outlet_failed(job->outlet, &job->err);
    else
        outlet_answered(job->outlet);
    err_wrap(&job->err, job->is_drop ? "drop %s in %s" : "load into %s in %s", job->row.table,
             job->outlet->config->name);
    if (job->err.retryable && job->outlet->health == OUTLET_DOWN && outlet_is_paused(job->outlet))
        return goes_back(job); /* maintenance is no failure of this file's */
    if (job->err.retryable)
        return retries(job, job->err.code == ERR_SYSTEM ? RETRY_SYSTEM : RETRY_REMOTE);
    return ends(job, job->is_drop ? STATE_GONE : STATE_QUARANTINED, "%s", job->err.text);
}

/* ---- RECORDING: receipt and end state, in one commit ---- */

static void on_recorded(void *arg, const struct err *err)
{
    struct job *job = arg;
    if (err != NULL)
        job->err = *err;
    else
        err_clear(&job->err);
    job_resume(job);
}

static void on_record_timer(uv_timer_t *timer)
{
    struct job *job = timer->data;
    run(job, states[job->state].enter);
}

/* The ledger can't be written. The destination has confirmed, so there is nothing else to say: keep trying. */
static enum next try_again_later(struct job *job)
{
    engine_ledger_failed(job->engine);
    if (job->engine->is_draining) /* the next start finds the row in `loading` and the receipt in the destination */
        return OVER;
    if (!job->has_timer) {
        uv_timer_init(job->engine->loop, &job->timer);
        job->timer.data = job;
        job->has_timer = true;
    }
    uv_timer_start(&job->timer, on_record_timer, LEDGER_RETRY_MS, 0);
    return WAIT;
}

static enum next enter_recording(struct job *job)
{
    if (ledger_run_repeatable(job->engine->ledger, record_fn, on_recorded, job, &job->err) != ERR_NONE)
        return try_again_later(job);
    return WAIT;
}

/* After a reload the scan of the new world may have come by while this job still had the file. */
static struct intake *present_intake(const struct job *job)
{
    struct world *w = job->engine->world;
    return w != NULL && w != job->world ? intake_of(w, job->row.source) : job->intake;
}

static enum next answer_recording(struct job *job)
{
    if (job->err.code != ERR_NONE)
        return try_again_later(job);
    if (job->is_finish_only)
        return job->action == FINISH_NONE && !job->write_note && !job->clear_note ? OVER : go(job, JOB_FINISHING);
    job_count_ended(job);
    job_say_end(job);
    if (job->asked_then)
        pipes_loaded(job->engine, job->flow);
    if (job->end == STATE_SETTLING && job->next_try_ms == 0)
        intake_settle_again(present_intake(job), job->row.path, &job->row.file);
    bool is_end = job->end == STATE_LOADED || job->end == STATE_SKIPPED || job->end == STATE_QUARANTINED ||
                  job->end == STATE_GONE;
    job->ends_spool = job_is_spooled(job) && is_end && !job->is_drop;
    if (job->action == FINISH_NONE && !job->write_note && !job->clear_note && !job->ends_spool)
        return OVER;
    return go(job, JOB_FINISHING);
}

/* ---- FINISHING and CLOSING: what remains of the file ---- */

static enum next enter_finishing(struct job *job)
{
    err_clear(&job->err);
    if (job->action != FINISH_NONE && job_is_remote(job) && errand_start(job))
        return WAIT;
    job_hop(job, finish_run);
    return WAIT;
}

static enum next answer_finishing(struct job *job)
{
    struct log_about about = {.flow = job->row.flow, .file = job->row.path};
    if (job->finish_changed)
        log_write(LOG_INFO, &about, "stays: a newer version has taken its place");
    else if (job->finish_failed)
        log_write(LOG_ERROR, &about, "loaded, but not moved away: %s; tried again at the next start", job->err.text);
    else if (job->action == FINISH_MOVE)
        log_write(LOG_INFO, &about, "moved to %s", job->place != NULL ? job->place : job->action_dir);
    else if (job->action == FINISH_DELETE)
        log_write(LOG_INFO, &about, "deleted, as after_success says");
    bool is_pending = job->action != FINISH_NONE || job->write_note || job->clear_note;
    return is_pending ? go(job, JOB_CLOSING) : OVER;
}

static enum next enter_closing(struct job *job)
{
    if (ledger_run_repeatable(job->engine->ledger, close_fn, on_recorded, job, &job->err) != ERR_NONE)
        return try_again_later(job);
    return WAIT;
}

static enum next answer_closing(struct job *job)
{
    if (job->err.code != ERR_NONE)
        return try_again_later(job);
    if (job->finish_changed)
        intake_settle_again(present_intake(job), job->row.path, &job->row.file);
    return OVER;
}
