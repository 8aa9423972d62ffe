/* retry.c -- `chute retry`, `chute reset`, `chute pipeline`, `chute reload`: what a person asks the engine for. */
#include "admin_internal.h"

#include "state.h"
#include "text.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_MS 60000

static struct json_object *request_new(const char *command)
{
    struct json_object *o = json_object_new_object();
    json_object_object_add(o, "command", json_object_new_string(command));
    return o;
}

/* What became of the files that were asked for. */
struct retried {
    uint64_t queued;
    uint64_t away; /* chute moved them to their after_failure folder */
};

static void say_all(const struct retried *r, const char *then)
{
    say("%" PRIu64 " files queued again%s", r->queued, then);
    if (r->away > 0)
        say("%" PRIu64 " %s in the after_failure folder: move back to the source what shall be loaded again", r->away,
            r->away == 1 ? "file is" : "files are");
}

/* false: there was nothing to retry. */
static bool say_one(const char *name, const struct retried *r, const char *then)
{
    if (r->queued > 0)
        say("%s: queued again%s", name, then);
    else if (r->away > 0)
        say("%s: is in its after_failure folder: move it back to where it came from, and it is loaded again", name);
    else
        say("%s: not quarantined, nothing to retry; see: chute explain %s", name, name);
    return r->queued > 0;
}

/* ---- retry beside a daemon ---- */

static enum err_code ask_count(struct line *line, struct json_object *request, struct retried *ret, struct err *err)
{
    struct json_object *answer;
    enum err_code code = line_ask(line, request, ANSWER_MS, &answer, err);
    json_object_put(request);
    if (code == ERR_NONE)
        *ret = (struct retried){.queued = (uint64_t)json_number(answer, "count"),
                                .away = (uint64_t)json_number(answer, "away")};
    json_object_put(answer);
    return code;
}

/* Both spellings are asked for: the absolute one, and what was typed, which may be relative to a source's root. */
static enum err_code ask_path(struct line *line, const char *file, struct retried *ret, struct err *err)
{
    char absolute[PATH_MAX];
    absolute_path(file, absolute);
    *ret = (struct retried){0};
    for (int turn = 0; turn < 2 && ret->queued + ret->away == 0; turn++) {
        if (turn == 1 && file[0] == '/')
            break;
        struct json_object *request = request_new("retry"), *paths = json_object_new_array();
        json_object_array_add(paths, json_object_new_string(turn == 0 ? absolute : file));
        json_object_object_add(request, "paths", paths);
        if (ask_count(line, request, ret, err) != ERR_NONE)
            return err->code;
    }
    return ERR_NONE;
}

static int retry_running(struct line *line, const struct args *args)
{
    struct err err = {0};
    struct retried r = {0};
    if (args_has(args, "deletes") || args_has(args, "all")) {
        const char *what = args_has(args, "deletes") ? "deletes" : "all";
        struct json_object *request = request_new("retry");
        json_object_object_add(request, what, json_object_new_boolean(true));
        if (ask_count(line, request, &r, &err) != ERR_NONE) {
            say("%s", err.text);
            return 1;
        }
        if (strcmp(what, "all") == 0)
            say_all(&r, "");
        else
            say("%" PRIu64 " held deletes let go", r.queued);
        return 0;
    }
    int code = 0;
    for (int i = 0; i < args->operand_count; i++) {
        if (ask_path(line, args->operands[i], &r, &err) != ERR_NONE) {
            say("%s: %s", args->operands[i], err.text);
            return 1;
        }
        if (!say_one(args->operands[i], &r, ""))
            code = 1;
    }
    return code;
}

/* ---- retry without one: the ledger says it, the next start does it ---- */

struct requeue {
    struct ledger_tx *tx;
    const char *absolute; /* NULL: all */
    const char *given;
    const struct config *config;
    const char *tail; /* without a configuration: the part of ABSOLUTE that may be the path below the root */
    struct retried answer;
    struct err *err;
};

/* Is ROW the file a person names? */
static bool row_is(const struct requeue *r, const struct ledger_row *row)
{
    if (r->absolute == NULL || strcmp(row->path, r->given) == 0 || (r->tail != NULL && strcmp(row->path, r->tail) == 0))
        return true;
    for (size_t i = 0; r->config != NULL && i < r->config->source_count; i++) {
        const struct config_source *s = &r->config->sources[i];
        char root[PATH_MAX];
        if (strcmp(s->name, row->source) != 0 || !source_root(s, root))
            continue;
        size_t length = strlen(root);
        if (strncmp(r->absolute, root, length) == 0 &&
            strcmp(r->absolute + length + (r->absolute[length] == '/'), row->path) == 0)
            return true;
    }
    return false;
}

/* Without a configuration every flow may still be there. */
static bool has_flow(const struct config *config, const char *name)
{
    for (size_t i = 0; config != NULL && i < config->flow_count; i++)
        if (strcmp(config->flows[i].name, name) == 0)
            return true;
    return config == NULL;
}

static bool requeue_row(void *arg, const struct ledger_row *row)
{
    struct requeue *r = arg;
    if (!row_is(r, row))
        return true;
    /* --all is for the daemon's flows; what `chute load` was given by name is loaded again by that command only. */
    if (r->absolute == NULL && (strcmp(row->flow, "load") == 0 || !has_flow(r->config, row->flow)))
        return true;
    if (row->taken_by_us) {
        r->answer.away++;
        return true;
    }
    struct ledger_row again = *row;
    char reason[300];
    snprintf(reason, sizeof reason, AGAIN_PREFIX "%.250s", row->reason);
    again.state = STATE_QUEUED;
    again.reason = reason;
    again.tries = 0;
    again.failed_ms = 0;
    again.next_try_ms = 0;
    again.finish_pending = false;
    if (ledger_put(r->tx, &again, r->err) != ERR_NONE)
        return false;
    r->answer.queued++;
    return true;
}

static enum err_code requeue_all(struct requeue *r)
{
    struct ledger_query query = {.states = STATE_BIT(STATE_QUARANTINED)};
    if (ledger_each(r->tx, &query, requeue_row, r, r->err) != ERR_NONE)
        return r->err->code;
    return r->err->code;
}

/*
 * The file that a person names. Without a configuration the roots are unknown: the whole path is that of a file loaded
 * by name, and the longest other tail that is quarantined is the one below a root (as explain tells it).
 */
static enum err_code requeue_named(struct requeue *r)
{
    if (r->config != NULL || r->absolute == NULL)
        return requeue_all(r);
    uint64_t named = 0;
    for (const char *tail = r->absolute; tail != NULL && r->answer.queued + r->answer.away == named;
         tail = strchr(tail, '/')) {
        tail += tail[0] == '/';
        r->tail = tail;
        if (requeue_all(r) != ERR_NONE)
            return r->err->code;
        if (tail == r->absolute + 1)
            named = r->answer.queued + r->answer.away;
    }
    return ERR_NONE;
}

static int retry_offline(const struct command_context *c, const struct args *args)
{
    struct err err = {0};
    struct ledger_tx *tx;
    int lock, code = 0;
    if (access(c->state, F_OK) != 0) {
        say("no state folder at %s: nothing was ever loaded there; name the right one with --state DIR", c->state);
        return 1;
    }
    if (state_lock(c->state, &lock, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    if (open_ledger(c, false, &tx, &err) != ERR_NONE) {
        say("%s", err.text);
        close(lock);
        return 1;
    }
    struct requeue requeue = {.tx = tx, .config = c->config, .err = &err};
    int names = args_has(args, "all") ? 1 : args->operand_count;
    for (int i = 0; i < names && err.code == ERR_NONE; i++) {
        char absolute[PATH_MAX];
        requeue.answer = (struct retried){0};
        if (!args_has(args, "all")) {
            absolute_path(args->operands[i], absolute);
            requeue.absolute = absolute;
            requeue.given = args->operands[i];
        }
        if (requeue_named(&requeue) != ERR_NONE)
            break;
        if (requeue.absolute == NULL) {
            say_all(&requeue.answer, "; no daemon runs: they are loaded at the next start");
        } else if (!say_one(requeue.given, &requeue.answer, "; no daemon runs: it is loaded at the next start")) {
            code = 1;
        }
    }
    struct err close_err = {0};
    bool is_fine = err.code == ERR_NONE;
    if (ledger_tx_close(tx, is_fine, &close_err) != ERR_NONE && is_fine) {
        err = close_err;
        is_fine = false;
    }
    close(lock);
    if (!is_fine)
        say("nothing was changed: %s", err.text);
    return is_fine ? code : 1;
}

/* ---- without a daemon, by an engine just for it ---- */

struct errand {
    const char *name; /* of the flow, or of the pipeline */
    bool is_done, is_failed;
};

static void on_reset(void *arg, const char *text, const struct err *err)
{
    struct errand *e = arg;
    e->is_done = true;
    if (err != NULL && err->code != ERR_NONE) {
        say("%s", err->text);
        e->is_failed = true;
        return;
    }
    fputs(text == NULL ? "" : text, stdout);
}

static void start_reset(void *arg, struct engine *engine)
{
    struct errand *e = arg;
    struct err err = {0};
    if (engine_reset(engine, e->name, on_reset, e, &err) != ERR_NONE)
        on_reset(e, NULL, &err);
}

static int run_errand(const struct command_context *c, struct errand *e,
                      void (*start)(void *arg, struct engine *engine))
{
    struct err err = {0};
    if (c->config == NULL) {
        say("no daemon runs on the state folder %s, and no configuration was found; name it with -c FILE", c->state);
        return 1;
    }
    if (c->with_engine(c, start, e, &e->is_done, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    return e->is_failed || !e->is_done;
}

int command_retry(const struct command_context *c, const struct args *args)
{
    bool is_deletes = args_has(args, "deletes"), is_all = args_has(args, "all");
    if ((args->operand_count > 0) + is_deletes + is_all != 1) {
        say("retry: expected either files, or --all, or --deletes. See: chute help retry");
        return 2;
    }
    struct err err = {0};
    struct line *line;
    if (line_open(c->state, &line, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    int code;
    if (line != NULL) {
        code = retry_running(line, args);
    } else if (is_deletes) {
        /* which deletes are held is found by comparing the folder with the ledger, at every start anew */
        say("no daemon runs on the state folder %s, so no deletes are held; start it, look at chute status, then ask "
            "again",
            c->state);
        code = 1;
    } else {
        code = retry_offline(c, args);
    }
    line_close(line);
    return code;
}

/* ---- reset ---- */

struct tables {
    const char *last;
    struct buf text;
    uint64_t files;
};

static bool note_table(void *arg, const struct ledger_row *row)
{
    struct tables *t = arg;
    t->files++;
    if (row->table[0] == '\0' || !row->was_loaded)
        return true;
    buf_printf(&t->text, "\t%s", row->table);
    buf_addc(&t->text, '\n');
    return true;
}

static int compare_lines(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The lines of TEXT, sorted, each once, to standard error. */
static void print_unique(char *text)
{
    size_t count = 0, used = 0;
    for (char *p = text; *p != '\0'; p++)
        count += *p == '\n';
    char **lines = calloc(count + 1, sizeof *lines);
    if (lines == NULL)
        return;
    for (char *line; used < count && (line = strsep(&text, "\n")) != NULL;)
        lines[used++] = line;
    qsort(lines, used, sizeof *lines, compare_lines);
    for (size_t i = 0; i < used; i++) {
        if (i == 0 || strcmp(lines[i], lines[i - 1]) != 0)
            fprintf(stderr, "%s\n", lines[i]);
    }
    free(lines);
}

static bool is_flow(const struct config *config, const char *name)
{
    for (size_t i = 0; config != NULL && i < config->flow_count; i++) {
        if (strcmp(config->flows[i].name, name) == 0)
            return true;
    }
    return config == NULL; /* without one it can't be told */
}

/* Without --yes: what would happen. */
static int preview_reset(const struct command_context *c, const char *flow)
{
    struct err err = {0}, close_err = {0};
    struct ledger_tx *tx;
    struct tables tables = {0};
    if (open_ledger(c, true, &tx, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    buf_init(&tables.text);
    struct ledger_query query = {.flow = flow};
    enum err_code code = ledger_each(tx, &query, note_table, &tables, &err);
    ledger_tx_close(tx, false, &close_err);
    if (code != ERR_NONE) {
        say("%s", err.text);
    } else if (tables.files == 0 && !is_flow(c->config, flow)) {
        say("no flow is called %s, and chute has no files of one", flow);
    } else {
        say("reset %s would forget %llu files, drop the tables that chute made for them, and pause the flow until the "
            "next start or "
            "`chute retry`:",
            flow, (unsigned long long)tables.files);
        if (tables.text.size > 0)
            print_unique(tables.text.data);
        say("nothing was done; to do it: chute reset %s --yes", flow);
    }
    buf_done(&tables.text);
    return code == ERR_NONE ? 2 : 1;
}

int command_reset(const struct command_context *c, const struct args *args)
{
    struct err err = {0};
    const char *flow = args->operands[0];
    if (!args_has(args, "yes"))
        return preview_reset(c, flow);
    struct line *line;
    if (line_open(c->state, &line, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    if (line == NULL) {
        struct errand errand = {.name = flow};
        return run_errand(c, &errand, start_reset);
    }
    struct json_object *request = request_new("reset"), *answer;
    json_object_object_add(request, "flow", json_object_new_string(flow));
    enum err_code code = line_ask(line, request, 0, &answer, &err);
    if (code == ERR_NONE)
        fputs(json_text(answer, "text"), stdout);
    else
        say("%s", err.text);
    json_object_put(answer);
    json_object_put(request);
    line_close(line);
    return code == ERR_NONE ? 0 : 1;
}

/* ---- pipeline ---- */

static void print_run(const char *name, uint64_t statements, int64_t duration_ms)
{
    printf("%s: %llu statement%s, %lld ms\n", name, (unsigned long long)statements, statements == 1 ? "" : "s",
           (long long)duration_ms);
}

static void on_pipeline(void *arg, const struct pipeline_facts *facts, const struct err *err)
{
    struct errand *e = arg;
    e->is_done = true;
    e->is_failed = err != NULL && err->code != ERR_NONE;
    if (e->is_failed)
        say("pipeline %s: %s", e->name, err->text);
    else
        print_run(e->name, facts->statements, facts->duration_ms);
}

static void start_pipeline(void *arg, struct engine *engine)
{
    struct errand *e = arg;
    struct err err = {0};
    if (engine_pipeline(engine, e->name, on_pipeline, e, &err) == ERR_NONE)
        return;
    say("%s", err.text);
    e->is_done = e->is_failed = true;
}

/* Said before anything is opened or asked: a destination that is down is no reason to wait for this answer. */
static bool has_pipeline(const struct config *config, const char *name)
{
    const char **names = calloc(config->pipeline_count + 1, sizeof *names);
    if (names == NULL)
        return true; /* the engine will tell */
    bool is_there = false;
    for (size_t i = 0; i < config->pipeline_count; i++) {
        names[i] = config->pipelines[i].name;
        is_there = is_there || strcmp(names[i], name) == 0;
    }
    const char *near = text_nearest(name, names);
    if (!is_there)
        say("there is no pipeline %s%s%s%s", name, near != NULL ? "; did you mean " : "", near != NULL ? near : "",
            near != NULL ? "?" : "");
    free(names);
    return is_there;
}

int command_pipeline(const struct command_context *c, const struct args *args)
{
    struct err err = {0};
    const char *name = args->operands[0];
    struct line *line;
    if (line_open(c->state, &line, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    if (line == NULL) {
        struct errand errand = {.name = name};
        if (c->config != NULL && !has_pipeline(c->config, name))
            return 1;
        return run_errand(c, &errand, start_pipeline);
    }
    struct json_object *request = request_new("pipeline"), *answer;
    json_object_object_add(request, "name", json_object_new_string(name));
    enum err_code code = line_ask(line, request, 0, &answer, &err);
    if (code == ERR_NONE)
        print_run(name, (uint64_t)json_number(answer, "statements"), json_number(answer, "duration_ms"));
    else
        say("pipeline %s: %s", name, err.text);
    json_object_put(answer);
    json_object_put(request);
    line_close(line);
    return code == ERR_NONE ? 0 : 1;
}

int command_reload(const struct command_context *c, const struct args *args)
{
    (void)args;
    struct err err = {0};
    struct line *line;
    if (line_open(c->state, &line, &err) == ERR_NONE && line == NULL)
        err_set(&err, ERR_SYSTEM, true, "no daemon runs on the state folder %s", c->state);
    if (line != NULL) {
        struct json_object *request = request_new("reload"), *answer;
        line_ask(line, request, ANSWER_MS, &answer, &err);
        json_object_put(answer);
        json_object_put(request);
    }
    line_close(line);
    if (err.code != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    say("reloaded");
    return 0;
}
