/* report.c -- the state as one JSON object: for `chute status`, its --json, and /api/v1/status. */
#include "admin_internal.h"

#include "buf.h"
#include "clock.h"
#include "text.h"

#include <string.h>
#include <unistd.h>

struct json_object *report_text(const char *text)
{
    size_t n = text == NULL ? 0 : strlen(text), valid = n == 0 ? 0 : text_utf8_valid(text, n);
    if (valid == n)
        return json_object_new_string(text == NULL ? "" : text);
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < n; i += valid + 1, valid = i < n ? text_utf8_valid(text + i, n - i) : 0) {
        buf_add(&b, text + i, valid);
        if (i + valid < n)
            buf_adds(&b, "\xEF\xBF\xBD");
    }
    struct json_object *o = b.failed ? NULL : json_object_new_string(b.data);
    buf_done(&b);
    return o;
}

static void put_text(struct json_object *o, const char *key, const char *text)
{
    json_object_object_add(o, key, report_text(text));
}

static void put_number(struct json_object *o, const char *key, uint64_t number)
{
    json_object_object_add(o, key, json_object_new_uint64(number));
}

static void put_true(struct json_object *o, const char *key, bool is_true)
{
    json_object_object_add(o, key, json_object_new_boolean(is_true));
}

/* null while there is none */
static void put_time(struct json_object *o, const char *key, int64_t wall_ms)
{
    char text[32];
    if (wall_ms <= 0) {
        json_object_object_add(o, key, NULL);
        return;
    }
    clock_format(wall_ms, text, sizeof text);
    put_text(o, key, text);
}

static size_t add_flow(const char *name, const char **ret, size_t count, size_t max)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(ret[i], name) == 0)
            return count;
    }
    if (count < max)
        ret[count++] = name;
    return count;
}

size_t report_flows(const struct report *r, const char **ret, size_t max)
{
    size_t count = 0;
    for (size_t i = 0; r->config != NULL && i < r->config->flow_count; i++)
        count = add_flow(r->config->flows[i].name, ret, count, max);
    for (size_t i = 0; r->engine != NULL && i < r->engine->flow_count; i++)
        count = add_flow(r->engine->flows[i].flow, ret, count, max);
    for (size_t i = 0; i < r->counter_count; i++)
        count = add_flow(r->counters[i].flow, ret, count, max);
    return count;
}

static const struct flow_counters *engine_flow(const struct report *r, const char *flow)
{
    for (size_t i = 0; r->engine != NULL && i < r->engine->flow_count; i++) {
        if (strcmp(r->engine->flows[i].flow, flow) == 0)
            return &r->engine->flows[i];
    }
    return NULL;
}

static bool is_paused(const struct report *r, const char *flow)
{
    for (size_t i = 0; r->engine != NULL && i < r->engine->paused_count; i++) {
        if (strcmp(r->engine->paused[i], flow) == 0)
            return true;
    }
    return false;
}

void report_files(const struct report *r, const char *flow, uint64_t ret_files[FILE_STATES], int64_t *ret_oldest_ms)
{
    memset(ret_files, 0, FILE_STATES * sizeof *ret_files);
    *ret_oldest_ms = 0;
    for (size_t i = 0; i < r->counter_count; i++) {
        const struct ledger_counter *c = &r->counters[i];
        if (strcmp(c->flow, flow) != 0)
            continue;
        for (int s = 0; s < FILE_STATES; s++)
            ret_files[s] += c->files[s];
        if (c->oldest_pending_ms > 0 && (*ret_oldest_ms == 0 || c->oldest_pending_ms < *ret_oldest_ms))
            *ret_oldest_ms = c->oldest_pending_ms;
    }
}

static struct json_object *files_json(const uint64_t files[FILE_STATES])
{
    struct json_object *o = json_object_new_object();
    for (int s = 0; s < FILE_STATES; s++)
        put_number(o, file_state_names[s], files[s]);
    return o;
}

static void add_flows(const struct report *r, struct json_object *ret)
{
    const char *names[FLOWS_MAX];
    size_t count = report_flows(r, names, FLOWS_MAX);
    uint64_t all[FILE_STATES] = {0};
    struct json_object *list = json_object_new_array_ext((int)count);
    for (size_t i = 0; i < count; i++) {
        uint64_t files[FILE_STATES];
        int64_t oldest;
        report_files(r, names[i], files, &oldest);
        for (int s = 0; s < FILE_STATES; s++)
            all[s] += files[s];
        struct json_object *o = json_object_new_object();
        put_text(o, "name", names[i]);
        for (size_t f = 0; r->config != NULL && f < r->config->flow_count; f++) {
            if (strcmp(r->config->flows[f].name, names[i]) == 0) {
                put_text(o, "from", r->config->flows[f].source->name);
                put_text(o, "to", r->config->flows[f].dest->name);
            }
        }
        json_object_object_add(o, "files", files_json(files));
        put_time(o, "oldest_pending", oldest);
        put_true(o, "paused", is_paused(r, names[i]));
        const struct flow_counters *c = engine_flow(r, names[i]);
        if (c != NULL) {
            put_number(o, "rows", c->rows);
            put_number(o, "rejected_rows", c->rejected_rows);
            put_number(o, "bytes", c->bytes);
            put_number(o, "loads", c->loads);
        }
        json_object_array_add(list, o);
    }
    json_object_object_add(ret, "files", files_json(all));
    json_object_object_add(ret, "flows", list);
}

static struct json_object *source_json(const struct engine_source_status *s)
{
    struct json_object *o = json_object_new_object();
    put_text(o, "name", s->name);
    put_text(o, "type", s->type);
    put_text(o, "mode", s->health.mode);
    put_text(o, "reason", s->health.reason);
    put_text(o, "evidence", s->evidence != NULL && s->evidence[0] != '\0' ? s->evidence : s->health.evidence);
    put_number(o, "folders", s->health.folders);
    put_number(o, "overflows", s->health.overflows);
    put_number(o, "scans", s->health.scans);
    put_true(o, "ready", s->health.is_ready);
    put_true(o, "reachable", s->health.is_reachable);
    put_text(o, "problem", s->health.problem);
    put_number(o, "settling", s->settling);
    put_number(o, "pending_deletes", s->pending_deletes);
    put_time(o, "last_run", s->last_run_ms);
    put_time(o, "next_run", s->next_run_ms);
    put_true(o, "running", s->is_running);
    return o;
}

static struct json_object *dest_json(const struct engine_dest_status *d)
{
    struct json_object *o = json_object_new_object();
    put_text(o, "name", d->name);
    put_text(o, "type", d->type);
    put_text(o, "where", d->health.where);
    put_text(o, "version", d->health.version);
    put_text(o, "state", d->state);
    put_text(o, "reason", d->reason);
    put_time(o, "next_probe", d->next_probe_ms);
    put_number(o, "in_flight", d->in_flight);
    return o;
}

static struct json_object *pipeline_json(const struct pipeline_status *p)
{
    struct json_object *o = json_object_new_object();
    const struct pipeline_facts *f = &p->facts;
    put_text(o, "name", p->name);
    put_text(o, "in", p->dest);
    put_text(o, "state", pipeline_state_names[p->state]);
    put_time(o, "next", p->next_ms);
    put_time(o, "last_began", f->began_ms);
    put_time(o, "last_ended", f->ended_ms);
    put_time(o, "last_good", f->good_ms);
    put_text(o, "last_trigger", f->ended_ms > 0 ? pipeline_trigger_names[f->trigger] : "");
    put_number(o, "last_duration_ms", (uint64_t)f->duration_ms);
    put_number(o, "last_statements", f->statements);
    put_text(o, "last_error", f->error);
    put_number(o, "good_runs", p->good);
    put_number(o, "failed_runs", p->failed);
    return o;
}

static void add_pipelines(const struct report *r, struct json_object *ret)
{
    const struct pipeline_status *list = r->engine != NULL ? r->engine->pipelines : r->pipelines;
    size_t count = r->engine != NULL ? r->engine->pipeline_count : r->pipeline_count;
    struct json_object *array = json_object_new_array_ext((int)count);
    for (size_t i = 0; i < count; i++)
        json_object_array_add(array, pipeline_json(&list[i]));
    json_object_object_add(ret, "pipelines", array);
}

static void add_engine(const struct engine_status *e, struct json_object *ret)
{
    struct json_object *list = json_object_new_array_ext((int)e->source_count);
    for (size_t i = 0; i < e->source_count; i++)
        json_object_array_add(list, source_json(&e->sources[i]));
    json_object_object_add(ret, "sources", list);
    list = json_object_new_array_ext((int)e->dest_count);
    for (size_t i = 0; i < e->dest_count; i++)
        json_object_array_add(list, dest_json(&e->dests[i]));
    json_object_object_add(ret, "destinations", list);
    list = json_object_new_array_ext((int)e->job_count);
    for (size_t i = 0; i < e->job_count; i++) {
        const struct engine_job_status *j = &e->jobs[i];
        struct json_object *o = json_object_new_object();
        put_text(o, "flow", j->flow);
        put_text(o, "path", j->path);
        put_text(o, "state", j->state);
        put_number(o, "bytes_done", j->bytes_done);
        put_number(o, "bytes", j->bytes);
        put_number(o, "rows_done", j->rows_done);
        put_time(o, "since", j->since_ms);
        json_object_array_add(list, o);
    }
    json_object_object_add(ret, "jobs", list);
    struct json_object *retries = json_object_new_object();
    for (int i = 0; i < RETRY_CLASSES; i++)
        put_number(retries, retry_class_names[i], e->retries[i]);
    json_object_object_add(ret, "retries", retries);
    put_number(ret, "watch_overflows", e->overflows);
}

/* Without a daemon the configuration still says what there would be. */
static void add_config(const struct config *c, struct json_object *ret)
{
    struct json_object *list = json_object_new_array();
    for (size_t i = 0; c != NULL && i < c->source_count; i++) {
        struct json_object *o = json_object_new_object();
        put_text(o, "name", c->sources[i].name);
        put_text(o, "type", c->sources[i].ops->type);
        json_object_array_add(list, o);
    }
    json_object_object_add(ret, "sources", list);
    list = json_object_new_array();
    for (size_t i = 0; c != NULL && i < c->dest_count; i++) {
        struct json_object *o = json_object_new_object();
        put_text(o, "name", c->dests[i].name);
        put_text(o, "type", c->dests[i].ops->type);
        json_object_array_add(list, o);
    }
    json_object_object_add(ret, "destinations", list);
}

struct json_object *report_status(const struct report *r)
{
    struct json_object *o = json_object_new_object();
    if (o == NULL)
        return NULL;
    put_text(o, "version", CHUTE_VERSION);
    put_true(o, "running", r->engine != NULL);
    put_text(o, "state", r->state);
    put_text(o, "config", r->config == NULL ? "" : r->config->file);
    if (r->engine != NULL) {
        put_number(o, "pid", (uint64_t)getpid());
        put_time(o, "started", r->engine->started_ms);
        put_true(o, "ready", r->engine->is_ready);
        put_text(o, "not_ready", r->engine->is_ready ? "" : r->engine->not_ready);
    }
    struct json_object *ledger = json_object_new_object();
    const char *problem = r->counters_problem == NULL ? "" : r->counters_problem;
    if (r->engine != NULL && r->engine->ledger_problem != NULL && r->engine->ledger_problem[0] != '\0')
        problem = r->engine->ledger_problem;
    put_true(ledger, "ok", problem[0] == '\0');
    put_text(ledger, "problem", problem);
    json_object_object_add(o, "ledger", ledger);
    add_flows(r, o);
    if (r->engine != NULL)
        add_engine(r->engine, o);
    else
        add_config(r->config, o);
    add_pipelines(r, o);
    return o;
}
