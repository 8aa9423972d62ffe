/*
 * job_life.c -- around the states of a job: making and freeing it, stopping it, and telling how it ended.
 */
#include "job_internal.h"

#include <stdio.h>
#include <unistd.h>

uint64_t path_hash(const char *path)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a: only to skip most strcmp() */
    for (const unsigned char *p = (const unsigned char *)path; *p != '\0'; p++)
        h = (h ^ *p) * 1099511628211u;
    return h;
}

static struct job **paths_of(struct engine *e, uint64_t hash)
{
    return &e->paths[hash % JOB_PATHS];
}

struct job *job_new(struct outlet *o, const struct ledger_row *row, const struct config_flow *flow)
{
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return NULL;
    arena_init(&job->arena);
    if (row_copy(&job->arena, row, &job->row, NULL) != ERR_NONE) {
        arena_done(&job->arena);
        free(job);
        return NULL;
    }
    job->engine = o->world->engine;
    job->world = o->world;
    job->outlet = o;
    job->flow = flow;
    job->fd = -1;
    job->receipt.dest_rows = -1;
    job->started_ms = clock_wall_ms();
    job->path_hash = path_hash(job->row.path);
    job->table_hash = path_hash(job->row.table_key);
    job->number = ++o->world->engine->last_number;
    for (size_t i = 0; i < o->world->intake_count; i++)
        if (strcmp(o->world->intakes[i].config->name, job->row.source) == 0)
            job->intake = &o->world->intakes[i];
    DL_APPEND(job->engine->jobs, job);
    LL_PREPEND2(*paths_of(job->engine, job->path_hash), job, path_next);
    job->engine->job_count++;
    o->in_flight++;
    o->in_flight_bytes += job->row.file.size;
    world_hold(job->world);
    return job;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct job *job = handle->data;
    arena_done(&job->arena);
    free(job);
}

void job_free(struct job *job)
{
    struct engine *e = job->engine;
    struct outlet *o = job->outlet;
    struct world *w = job->world;
    unpack_free(job);
    if (job->is_archive)
        spool_tidy(e);
    rows_free(job->rows);
    rejects_drop(job->rejects);
    refused_events_done(&job->refused);
    if (job->fd >= 0)
        close(job->fd);
    DL_DELETE(e->jobs, job);
    LL_DELETE2(*paths_of(e, job->path_hash), job, path_next);
    job_next_turn(job);
    e->job_count--;
    o->in_flight--;
    o->in_flight_bytes -= job->row.file.size;
    if (job->has_timer) {
        uv_close((uv_handle_t *)&job->timer, on_timer_closed);
    } else {
        arena_done(&job->arena);
        free(job);
    }
    outlet_pump(o);
    if (o->in_flight == 0 && !o->is_claiming)
        pipes_pump(w);
    world_release(w);
    engine_job_ended(e);
}

void job_abort(struct job *job)
{
    if (job->is_begun)
        job->outlet->config->ops->abort(job->outlet->state, &job->load);
    else if (job->is_fetching)
        job->intake->config->ops->abort_fetch(job->intake->state, &job->fetch);
    else
        atomic_store(&job->load.stop, true); /* of a large file that is being read before it is sent */
}

bool job_has_not_ended(const struct job *job)
{
    return job->state < JOB_RECORDING;
}

/* PATH is being written in place: what we read of it is no version. */
void job_change_seen(struct engine *e, struct intake *in, const char *path)
{
    uint64_t hash = path_hash(path);
    struct job *job, *tmp;
    LL_FOREACH_SAFE2(*paths_of(e, hash), job, tmp, path_next)
    {
        if (job->path_hash != hash || job->intake != in || job->is_drop || strcmp(job->row.path, path) != 0)
            continue;
        if (job_has_not_ended(job)) {
            job->abandon = true;
            job_abort(job);
        }
    }
}

bool job_takes_away(const struct engine *e, const struct intake *in, const char *path)
{
    uint64_t hash = path_hash(path);
    for (const struct job *job = e->paths[hash % JOB_PATHS]; job != NULL; job = job->path_next)
        if (job->path_hash == hash && job->intake == in && (job->state == JOB_FINISHING || job->state == JOB_CLOSING) &&
            job->action != FINISH_NONE && strcmp(job->row.path, path) == 0)
            return true;
    return false;
}

/* The row of a job in flight was carried to another path. */
void job_renamed(struct engine *e, struct intake *in, const struct config_flow *flow, const char *from, const char *to)
{
    uint64_t hash = path_hash(from);
    struct job *job, *tmp;
    LL_FOREACH_SAFE2(*paths_of(e, hash), job, tmp, path_next)
    {
        if (job->path_hash != hash || job->intake != in || job->flow != flow || strcmp(job->row.path, from) != 0)
            continue;
        const char *path = arena_strdup(&job->arena, to);
        if (path == NULL)
            continue; /* the record finds no row and writes none; the scan finds the file again */
        LL_DELETE2(*paths_of(e, hash), job, path_next);
        job->row.path = path;
        job->path_hash = path_hash(to);
        LL_PREPEND2(*paths_of(e, job->path_hash), job, path_next);
    }
}

/* ---- telling how it ended ---- */

void job_count_ended(struct job *job)
{
    struct engine *e = job->engine;
    if (job->is_drop)
        return;
    e->totals[job->end]++;
    struct flow_counters *c = engine_counters(e, job->row.flow);
    if (c == NULL || job->end != STATE_LOADED)
        return;
    double seconds = (double)(clock_wall_ms() - job->started_ms) / 1000.0;
    int b = 0;
    while (b < LOAD_BUCKETS - 1 && seconds > load_bucket_bounds[b])
        b++;
    c->load_bucket[b]++;
    c->load_seconds += seconds > 0 ? seconds : 0;
    c->loads++;
    c->rows += job->receipt.parsed - job->receipt.rejected;
    c->rejected_rows += job->receipt.rejected;
    c->bytes += job->receipt.bytes;
}

/* One line for each end, written here and nowhere else. */
void job_say_end(struct job *job)
{
    struct log_about about = {.flow = job->row.flow, .file = job->row.path, .dest = job->outlet->config->name};
    char took[32], size[32];
    bool is_end = job->end == STATE_LOADED || job->end == STATE_SKIPPED || job->end == STATE_QUARANTINED;
    if (job->engine->quiet && is_end && !job->is_drop)
        return;
    text_format_duration((uint64_t)(clock_wall_ms() - job->started_ms), took, sizeof took);
    text_format_size(job->receipt.bytes, size, sizeof size);
    switch (job->end) {
    case STATE_LOADED:
        if (job->is_unpacked && job->flow->archives == ARCHIVES_EXTRACT) {
            log_write(LOG_INFO, &about, "%s", job->reason);
            break;
        }
        if (job->flow->format == FORMAT_RAW)
            log_write(LOG_INFO, &about, "loaded %s into %s in %s", size, job->row.table, took);
        else
            log_write(LOG_INFO, &about, "loaded %llu rows (%llu rejected), %s into %s in %s",
                      (unsigned long long)(job->receipt.parsed - job->receipt.rejected),
                      (unsigned long long)job->receipt.rejected, size, job->row.table, took);
        if (job->reason[0] != '\0')
            log_write(LOG_WARN, &about, "%s", job->reason);
        break;
    case STATE_SKIPPED:
        log_write(LOG_INFO, &about, "skipped: %s", job->reason);
        break;
    case STATE_QUARANTINED:
        log_write(LOG_ERROR, &about, "quarantined: %s", job->reason);
        break;
    case STATE_RETRYING:
        text_format_duration(
            (uint64_t)(job->next_try_ms - clock_wall_ms() > 0 ? job->next_try_ms - clock_wall_ms() : 0), took,
            sizeof took);
        log_write(LOG_WARN, &about, "try %lld failed, next in %s: %s", (long long)job->row.tries, took, job->reason);
        break;
    case STATE_GONE:
        if (job->is_carry)
            log_write(LOG_INFO, &about, "%s: what it loaded into %s stays its own", job->row.reason, job->row.table);
        else if (job->is_drop && job->reason[0] != '\0')
            log_write(LOG_ERROR, &about, "file deleted, but its table stays: %s", job->reason);
        else if (job->is_drop && strcmp(job->load.receipt.dest_id, "kept") == 0)
            log_write(LOG_DEBUG, &about, "file deleted: there is no table %s of ours to drop", job->row.table);
        else if (job->is_drop)
            log_write(LOG_INFO, &about, "file deleted: %s %s",
                      job->flow->on_delete == ON_DELETE_EMPTY ? "emptied" : "dropped", job->row.table);
        else
            log_write(LOG_INFO, &about, "vanished before it was loaded");
        break;
    case STATE_SETTLING:
        log_write(LOG_DEBUG, &about, "waits: %s", job->reason);
        break;
    case STATE_SEEN:
    case STATE_QUEUED:
    case STATE_LOADING:
    case FILE_STATES:
        break;
    }
}
