/*
 * metrics.c -- /metrics: the state in the Prometheus text format.
 *
 * Never a file name as a label: what grows with the files would grow with every scrape.
 */
#include "admin_internal.h"

#include "clock.h"

#include <string.h>

static void head(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* NAME="VALUE" with what the format wants escaped. */
static void label(struct buf *b, const char *name, const char *value)
{
    buf_printf(b, "%s=\"", name);
    for (; *value != '\0'; value++) {
        if (*value == '\n')
            buf_adds(b, "\\n");
        else if (*value == '\\' || *value == '"')
            buf_printf(b, "\\%c", *value);
        else
            buf_addc(b, *value);
    }
    buf_addc(b, '"');
}

static void sample(struct buf *b, const char *metric, const char *name, const char *value, double number)
{
    buf_printf(b, "%s{", metric);
    label(b, name, value);
    buf_printf(b, "} %.15g\n", number);
}

static void add_files(struct buf *b, const struct report *r)
{
    const char *flows[FLOWS_MAX];
    uint64_t files[FILE_STATES];
    int64_t oldest, now = clock_wall_ms();
    size_t count = report_flows(r, flows, FLOWS_MAX);
    head(b, "chute_files", "gauge", "Files by state and flow.");
    /* without the ledger only what waits in memory is known; a zero would be a lie */
    for (size_t i = 0; i < count && r->counters_problem[0] == '\0'; i++) {
        report_files(r, flows[i], files, &oldest);
        for (int s = 0; s < FILE_STATES; s++) {
            buf_adds(b, "chute_files{");
            label(b, "state", file_state_names[s]);
            buf_addc(b, ',');
            label(b, "flow", flows[i]);
            buf_printf(b, "} %llu\n", (unsigned long long)files[s]);
        }
    }
    head(b, "chute_oldest_pending_seconds", "gauge",
         "Age of the file that has waited longest to be loaded; 0 when none waits.");
    for (size_t i = 0; i < count && r->counters_problem[0] == '\0'; i++) {
        report_files(r, flows[i], files, &oldest);
        sample(b, "chute_oldest_pending_seconds", "flow", flows[i],
               oldest > 0 && now > oldest ? (double)(now - oldest) / 1000 : 0);
    }
}

static void add_counter(struct buf *b, const struct engine_status *e, const char *name, const char *help, size_t offset)
{
    head(b, name, "counter", help);
    for (size_t i = 0; i < e->flow_count; i++)
        sample(b, name, "flow", e->flows[i].flow, (double)*(const uint64_t *)((const char *)&e->flows[i] + offset));
}

static void add_loads(struct buf *b, const struct engine_status *e)
{
    add_counter(b, e, "chute_rows_total", "Rows loaded.", offsetof(struct flow_counters, rows));
    add_counter(b, e, "chute_rejected_rows_total", "Rows rejected.", offsetof(struct flow_counters, rejected_rows));
    add_counter(b, e, "chute_bytes_total", "Bytes of files loaded.", offsetof(struct flow_counters, bytes));
    head(b, "chute_load_seconds", "histogram", "Duration of loads.");
    for (size_t i = 0; i < e->flow_count; i++) {
        const struct flow_counters *f = &e->flows[i];
        uint64_t sum = 0;
        for (int k = 0; k < LOAD_BUCKETS; k++) {
            sum += f->load_bucket[k];
            buf_adds(b, "chute_load_seconds_bucket{");
            label(b, "flow", f->flow);
            if (k < LOAD_BUCKETS - 1)
                buf_printf(b, ",le=\"%.10g\"} %llu\n", load_bucket_bounds[k], (unsigned long long)sum);
            else
                buf_printf(b, ",le=\"+Inf\"} %llu\n", (unsigned long long)sum);
        }
        sample(b, "chute_load_seconds_sum", "flow", f->flow, f->load_seconds);
        sample(b, "chute_load_seconds_count", "flow", f->flow, (double)sum);
    }
    head(b, "chute_retries_total", "counter", "Loads to be tried again, by whose fault it was.");
    for (int i = 0; i < RETRY_CLASSES; i++)
        sample(b, "chute_retries_total", "class", retry_class_names[i], (double)e->retries[i]);
}

static void add_dests(struct buf *b, const struct engine_status *e)
{
    head(b, "chute_breaker_open", "gauge", "1 while a destination is down and loads wait for it.");
    for (size_t i = 0; i < e->dest_count; i++)
        sample(b, "chute_breaker_open", "destination", e->dests[i].name, strcmp(e->dests[i].state, "down") == 0);
    head(b, "chute_destination_blocked", "gauge", "1 while a destination refuses us.");
    for (size_t i = 0; i < e->dest_count; i++)
        sample(b, "chute_destination_blocked", "destination", e->dests[i].name,
               strcmp(e->dests[i].state, "blocked") == 0);
    head(b, "chute_loads_in_flight", "gauge", "Loads under way.");
    for (size_t i = 0; i < e->dest_count; i++)
        sample(b, "chute_loads_in_flight", "destination", e->dests[i].name, (double)e->dests[i].in_flight);
}

static void add_sources(struct buf *b, const struct engine_status *e)
{
    head(b, "chute_watch_overflow_total", "counter", "Times the kernel dropped events; a scan followed each.");
    buf_printf(b, "chute_watch_overflow_total %llu\n", (unsigned long long)e->overflows);
    head(b, "chute_source_reachable", "gauge", "1 while the root exists and can be listed.");
    for (size_t i = 0; i < e->source_count; i++)
        sample(b, "chute_source_reachable", "source", e->sources[i].name, e->sources[i].health.is_reachable);
    head(b, "chute_source_polling", "gauge", "1 while a source is polled, not watched by events.");
    for (size_t i = 0; i < e->source_count; i++) {
        const char *mode = e->sources[i].health.mode;
        sample(b, "chute_source_polling", "source", e->sources[i].name, mode != NULL && strcmp(mode, "poll") == 0);
    }
    head(b, "chute_watched_folders", "gauge", "Folders watched.");
    for (size_t i = 0; i < e->source_count; i++)
        sample(b, "chute_watched_folders", "source", e->sources[i].name, (double)e->sources[i].health.folders);
    head(b, "chute_held_deletes", "gauge", "Deletes that wait for chute retry --deletes.");
    for (size_t i = 0; i < e->source_count; i++)
        sample(b, "chute_held_deletes", "source", e->sources[i].name, (double)e->sources[i].pending_deletes);
}

static void add_pipelines(struct buf *b, const struct engine_status *e)
{
    static const char *const results[] = {"good", "failed"};
    if (e->pipeline_count == 0)
        return;
    head(b, "chute_pipeline_runs_total", "counter", "Runs of pipelines that came to an end, by how.");
    for (size_t i = 0; i < e->pipeline_count; i++)
        for (size_t k = 0; k < 2; k++) {
            buf_adds(b, "chute_pipeline_runs_total{");
            label(b, "pipeline", e->pipelines[i].name);
            buf_addc(b, ',');
            label(b, "result", results[k]);
            buf_printf(b, "} %llu\n", (unsigned long long)(k == 0 ? e->pipelines[i].good : e->pipelines[i].failed));
        }
    head(b, "chute_pipeline_seconds_total", "counter", "Time that the scripts of pipelines took, failed runs too.");
    for (size_t i = 0; i < e->pipeline_count; i++)
        sample(b, "chute_pipeline_seconds_total", "pipeline", e->pipelines[i].name, e->pipelines[i].seconds);
    head(b, "chute_pipeline_failing", "gauge", "1 while the last run of a pipeline failed.");
    for (size_t i = 0; i < e->pipeline_count; i++)
        sample(b, "chute_pipeline_failing", "pipeline", e->pipelines[i].name, e->pipelines[i].facts.error[0] != '\0');
    head(b, "chute_pipeline_pending", "gauge", "1 while a pipeline runs or is to run.");
    for (size_t i = 0; i < e->pipeline_count; i++)
        sample(b, "chute_pipeline_pending", "pipeline", e->pipelines[i].name, e->pipelines[i].state != PIPELINE_IDLE);
    head(b, "chute_pipeline_last_good_time_seconds", "gauge",
         "When a run of a pipeline last ended well, in seconds since 1970; 0: never.");
    for (size_t i = 0; i < e->pipeline_count; i++)
        sample(b, "chute_pipeline_last_good_time_seconds", "pipeline", e->pipelines[i].name,
               (double)e->pipelines[i].facts.good_ms / 1000);
}

/* A turn that takes long makes everything else wait: timers, sockets, other loads. */
static void add_lag(struct buf *b, const struct engine_status *e)
{
    uint64_t sum = 0;
    head(b, "chute_loop_lag_seconds", "histogram", "How long one turn of the loop kept everything else waiting.");
    for (int i = 0; i < LAG_BOUNDS; i++) {
        sum += e->lag.turns[i];
        buf_printf(b, "chute_loop_lag_seconds_bucket{le=\"%.10g\"} %llu\n", (double)lag_bounds_ms[i] / 1000,
                   (unsigned long long)sum);
    }
    sum += e->lag.turns[LAG_BOUNDS];
    buf_printf(b, "chute_loop_lag_seconds_bucket{le=\"+Inf\"} %llu\n", (unsigned long long)sum);
    buf_printf(b, "chute_loop_lag_seconds_sum %.9f\nchute_loop_lag_seconds_count %llu\n", (double)e->lag.sum_ns / 1e9,
               (unsigned long long)sum);
    head(b, "chute_loop_lag_max_seconds", "gauge", "The longest turn of the loop since the start.");
    buf_printf(b, "chute_loop_lag_max_seconds %.6f\n", (double)e->lag.max_ns / 1e9);
}

void metrics_text(const struct report *r, struct buf *b)
{
    const struct engine_status *e = r->engine;
    head(b, "chute_build_info", "gauge", "Always 1; the version is its label.");
    sample(b, "chute_build_info", "version", CHUTE_VERSION, 1);
    head(b, "chute_start_time_seconds", "gauge", "When the process started, in seconds since 1970.");
    buf_printf(b, "chute_start_time_seconds %.3f\n", (double)e->started_ms / 1000);
    head(b, "chute_ready", "gauge", "1 while /readyz says yes.");
    buf_printf(b, "chute_ready %d\n", e->is_ready);
    head(b, "chute_ledger_writable", "gauge", "0 while the ledger can't be written and intake has stopped.");
    buf_printf(b, "chute_ledger_writable %d\n", e->ledger_problem == NULL || e->ledger_problem[0] == '\0');
    add_files(b, r);
    add_loads(b, e);
    add_dests(b, e);
    add_sources(b, e);
    add_pipelines(b, e);
    add_lag(b, e);
}
