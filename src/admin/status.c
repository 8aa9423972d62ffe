/* status.c -- `chute status`: the state for people, from the daemon or, without one, from the ledger. */
#include "admin_internal.h"

#include "clock.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_MS 10000
#define LIVE_MS 5000

static enum err_code offline_pipelines(struct ledger_tx *tx, struct arena *arena, struct report *report,
                                       struct err *err)
{
    const struct config *config = report->config;
    size_t count = config != NULL ? config->pipeline_count : 0;
    struct pipeline_status *list = arena_alloc(arena, (count + 1) * sizeof *list);
    struct pipeline_plan *plans = arena_alloc(arena, (count + 1) * sizeof *plans);
    if (list == NULL || plans == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < count; i++) {
        plans[i] = engine_plan(config, &config->pipelines[i]);
        if (pipeline_status_offline(tx, &plans[i], &list[i], err) != ERR_NONE)
            return err->code;
    }
    report->pipelines = list;
    report->pipeline_count = count;
    return ERR_NONE;
}

struct json_object *offline_status(const struct command_context *c, struct err *err)
{
    struct arena arena;
    struct ledger_tx *tx;
    struct ledger_counter *counters = NULL;
    size_t count = 0;
    if (open_ledger(c, true, &tx, err) != ERR_NONE)
        return NULL;
    arena_init(&arena);
    struct json_object *o = NULL;
    struct err close_err = {0};
    struct report report = {.config = c->config, .state = c->state, .counters_problem = ""};
    if (ledger_counters(tx, &arena, &counters, &count, err) == ERR_NONE &&
        offline_pipelines(tx, &arena, &report, err) == ERR_NONE) {
        report.counters = counters;
        report.counter_count = count;
        o = report_status(&report);
        if (o == NULL)
            err_nomem(err);
    }
    ledger_tx_close(tx, false, &close_err);
    arena_done(&arena);
    return o;
}

static bool wants_colour(void)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return isatty(STDOUT_FILENO) && (no == NULL || no[0] == '\0') && (term == NULL || strcmp(term, "dumb") != 0);
}

static const char *paint(const char *colour)
{
    return wants_colour() ? colour : "";
}
#define RED paint("\033[31m")
#define GREEN paint("\033[32m")
#define YELLOW paint("\033[33m")
#define PLAIN paint("\033[0m")

/* "2026-11-20T11:09:31.123Z" -> "3 min ago" */
static void print_age(const char *label, const char *time)
{
    int64_t then = time[0] == '\0' ? -1 : clock_parse(time), now = clock_wall_ms();
    if (then < 0)
        return;
    char age[64];
    text_format_duration(now > then ? (uint64_t)(now - then) : 0, age, sizeof age);
    printf("%s%s", label, age);
}

static void print_files(struct json_object *files)
{
    bool is_any = false;
    for (int s = 0; s < FILE_STATES; s++) {
        int64_t n = json_number(files, file_state_names[s]);
        if (n == 0)
            continue;
        const char *colour = s == STATE_QUARANTINED ? RED : s == STATE_RETRYING ? YELLOW : "";
        printf("%s%s%s %lld%s", is_any ? ", " : "", colour, file_state_names[s], (long long)n,
               colour[0] != '\0' ? PLAIN : "");
        is_any = true;
    }
    printf("%s", is_any ? "" : "none");
}

static struct json_object *member(struct json_object *o, const char *key)
{
    struct json_object *value = NULL;
    json_object_object_get_ex(o, key, &value);
    return value;
}

static size_t length_of(struct json_object *list)
{
    return json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
}

static int widest(struct json_object *list, int width)
{
    for (size_t i = 0; i < length_of(list); i++) {
        int n = (int)strlen(json_text(json_object_array_get_idx(list, i), "name"));
        width = n > width ? n : width;
    }
    return width;
}

static void print_source(struct json_object *s, int width)
{
    printf("  %-*s  %s", width, json_text(s, "name"), json_text(s, "type"));
    if (json_text(s, "mode")[0] != '\0') {
        printf(", %s", json_text(s, "mode"));
        if (json_text(s, "reason")[0] != '\0')
            printf(" (%s)", json_text(s, "reason"));
        printf(", evidence: %s, %lld folders", json_text(s, "evidence"), (long long)json_number(s, "folders"));
        if (!json_true(s, "ready"))
            printf(", %sfirst scan under way%s", YELLOW, PLAIN);
        if (json_number(s, "settling") > 0)
            printf(", %lld settling", (long long)json_number(s, "settling"));
        if (json_number(s, "overflows") > 0)
            printf(", %lld overflows", (long long)json_number(s, "overflows"));
        if (json_true(s, "running"))
            printf(", a run is on");
        else if (json_text(s, "last_run")[0] != '\0')
            printf(", last run at %s", json_text(s, "last_run"));
        if (json_text(s, "next_run")[0] != '\0')
            printf(", next run at %s", json_text(s, "next_run"));
    }
    putchar('\n');
    if (json_text(s, "problem")[0] != '\0')
        printf("  %-*s  %s%s%s\n", width, "", RED, json_text(s, "problem"), PLAIN);
    if (json_number(s, "pending_deletes") > 0)
        printf("  %-*s  %s%lld deletes are held; let them happen: chute retry --deletes%s\n", width, "", YELLOW,
               (long long)json_number(s, "pending_deletes"), PLAIN);
}

static void print_dest(struct json_object *d, int width)
{
    const char *state = json_text(d, "state");
    printf("  %-*s  %s", width, json_text(d, "name"), json_text(d, "type"));
    if (json_text(d, "where")[0] != '\0')
        printf(" %s", json_text(d, "where"));
    if (state[0] != '\0')
        printf(", %s%s%s",
               strcmp(state, "ok") == 0        ? GREEN
               : strcmp(state, "opening") == 0 ? YELLOW
                                               : RED,
               state, PLAIN);
    if (json_number(d, "in_flight") > 0)
        printf(", %lld loads under way", (long long)json_number(d, "in_flight"));
    putchar('\n');
    if (json_text(d, "reason")[0] != '\0')
        printf("  %-*s  %s\n", width, "", json_text(d, "reason"));
    if (json_text(d, "next_probe")[0] != '\0')
        printf("  %-*s  asked again at %s\n", width, "", json_text(d, "next_probe"));
}

static void print_job(struct json_object *j)
{
    char path[512], done[32], size[32];
    text_printable(json_text(j, "path"), path, sizeof path);
    text_format_size((uint64_t)json_number(j, "bytes_done"), done, sizeof done);
    text_format_size((uint64_t)json_number(j, "bytes"), size, sizeof size);
    printf("  %s  %s of %s, %lld rows (%s, %s)\n", path, done, size, (long long)json_number(j, "rows_done"),
           json_text(j, "flow"), json_text(j, "state"));
}

static void print_pipeline(struct json_object *p, int width)
{
    const char *state = json_text(p, "state"), *error = json_text(p, "last_error");
    char took[32];
    printf("  %-*s  in %s, %s%s%s", width, json_text(p, "name"), json_text(p, "in"),
           strcmp(state, "retrying") == 0 ? YELLOW : "", state, strcmp(state, "retrying") == 0 ? PLAIN : "");
    if (json_text(p, "last_ended")[0] == '\0') {
        printf(", never run");
    } else {
        text_format_duration((uint64_t)json_number(p, "last_duration_ms"), took, sizeof took);
        print_age(error[0] != '\0' ? ", last run failed; it was " : ", last run ", json_text(p, "last_ended"));
        printf(" ago (%s, %lld statement%s in %s)", json_text(p, "last_trigger"),
               (long long)json_number(p, "last_statements"), json_number(p, "last_statements") == 1 ? "" : "s", took);
    }
    if (json_text(p, "next")[0] != '\0' && strcmp(state, "idle") == 0)
        printf(", next run at %s", json_text(p, "next"));
    else if (json_text(p, "next")[0] != '\0' && strcmp(state, "retrying") == 0)
        printf(", tried again at %s", json_text(p, "next"));
    putchar('\n');
    if (error[0] != '\0')
        printf("  %-*s  %s%s%s\n", width, "", RED, error, PLAIN);
}

static void print_status(struct json_object *o)
{
    struct json_object *ledger = member(o, "ledger"), *list = member(o, "sources");
    int width = widest(member(o, "pipelines"), 8);
    width = widest(member(o, "flows"), widest(member(o, "destinations"), widest(list, width)));
    if (json_true(o, "running")) {
        printf("chute %s, process %lld", json_text(o, "version"), (long long)json_number(o, "pid"));
        print_age(", up ", json_text(o, "started"));
        printf(", %s%s%s", json_true(o, "ready") ? GREEN : RED, json_true(o, "ready") ? "ready" : "not ready: ", PLAIN);
        printf("%s\n", json_text(o, "not_ready"));
    } else {
        printf("%s; this is what the ledger says\n",
               json_true(o, "unreachable") ? "the daemon can't be asked" : "no daemon runs on this state folder");
    }
    if (json_text(o, "config")[0] != '\0')
        printf("configuration  %s\n", json_text(o, "config"));
    printf("state folder   %s\n", json_text(o, "state"));
    if (!json_true(ledger, "ok"))
        printf("ledger         %s%s%s\n", RED, json_text(ledger, "problem"), PLAIN);
    printf("\nfiles          ");
    print_files(member(o, "files"));
    printf("\n\nsources\n");
    for (size_t i = 0; i < length_of(list); i++)
        print_source(json_object_array_get_idx(list, i), width);
    printf("\ndestinations\n");
    list = member(o, "destinations");
    for (size_t i = 0; i < length_of(list); i++)
        print_dest(json_object_array_get_idx(list, i), width);
    printf("\nflows\n");
    list = member(o, "flows");
    for (size_t i = 0; i < length_of(list); i++) {
        struct json_object *f = json_object_array_get_idx(list, i);
        printf("  %-*s  ", width, json_text(f, "name"));
        print_files(member(f, "files"));
        print_age("; the oldest waits since ", json_text(f, "oldest_pending"));
        if (json_true(f, "paused"))
            printf("; %spaused since it was reset%s (chute retry --all starts it again)", YELLOW, PLAIN);
        putchar('\n');
    }
    list = member(o, "pipelines");
    if (length_of(list) > 0)
        printf("\npipelines\n");
    for (size_t i = 0; i < length_of(list); i++)
        print_pipeline(json_object_array_get_idx(list, i), width);
    list = member(o, "jobs");
    if (length_of(list) > 0)
        printf("\nloading\n");
    for (size_t i = 0; i < length_of(list); i++)
        print_job(json_object_array_get_idx(list, i));
}

/* ---- --state STATE: the files ---- */

struct listing {
    bool is_json;
    uint64_t count;
    struct json_object *waiting; /* what the daemon has in memory: those are not in the state their row says; NULL */
};

static void time_or_null(struct json_object *o, const char *key, int64_t wall_ms)
{
    char text[32];
    if (wall_ms > 0)
        clock_format(wall_ms, text, sizeof text);
    json_object_object_add(o, key, wall_ms > 0 ? json_object_new_string(text) : NULL);
}

static void print_row_json(const struct ledger_row *row, bool is_first)
{
    struct json_object *o = json_object_new_object();
    json_object_object_add(o, "path", report_text(row->path));
    json_object_object_add(o, "source", report_text(row->source));
    json_object_object_add(o, "flow", report_text(row->flow));
    json_object_object_add(o, "destination", report_text(row->dest));
    json_object_object_add(o, "table", report_text(row->table));
    json_object_object_add(o, "state", json_object_new_string(file_state_names[row->state]));
    json_object_object_add(o, "reason", report_text(row->reason));
    json_object_object_add(o, "size", json_object_new_uint64(row->file.size));
    json_object_object_add(o, "tries", json_object_new_int64(row->tries));
    time_or_null(o, "since", row->since_ms);
    time_or_null(o, "seen", row->seen_ms);
    time_or_null(o, "next_try", row->next_try_ms);
    printf("%s%s", is_first ? "{\"file_list\": [\n" : ",\n",
           json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(o);
}

static bool is_waiting(const struct listing *l, const struct ledger_row *row)
{
    size_t count = l->waiting == NULL ? 0 : json_object_array_length(l->waiting);
    for (size_t i = 0; i < count; i++) {
        struct json_object *w = json_object_array_get_idx(l->waiting, i);
        if (strcmp(json_text(w, "path"), row->path) == 0 && strcmp(json_text(w, "flow"), row->flow) == 0 &&
            strcmp(json_text(w, "source"), row->source) == 0)
            return true;
    }
    return false;
}

static void list_row(struct listing *l, const struct ledger_row *row);

static bool print_row(void *arg, const struct ledger_row *row)
{
    struct listing *l = arg;
    if (!is_waiting(l, row))
        list_row(l, row);
    return !ferror(stdout);
}

static void list_row(struct listing *l, const struct ledger_row *row)
{
    bool is_first = l->count++ == 0;
    if (l->is_json) {
        print_row_json(row, is_first); /* one a line and never all in memory */
        return;
    }
    char path[1024], size[32], since[32];
    text_format_size(row->file.size, size, sizeof size);
    clock_format(row->since_ms, since, sizeof since);
    printf("%s  %-11s  %10s  %-12s  %s%s%s\n", since, file_state_names[row->state], size, row->flow,
           text_printable(row->path, path, sizeof path), row->reason[0] != '\0' ? ": " : "", row->reason);
}

/* Ask a running daemon what it has in memory, and print what of it is in STATES. */
static void list_waiting(const struct command_context *c, unsigned states, struct listing *l)
{
    struct err err = {0};
    struct line *line;
    struct json_object *answer = NULL, *request = json_object_new_object();
    json_object_object_add(request, "command", json_object_new_string("waiting"));
    if (line_open(c->state, &line, &err) == ERR_NONE && line != NULL &&
        line_ask(line, request, ANSWER_MS, &answer, &err) == ERR_NONE)
        l->waiting = json_object_get(member(answer, "waiting"));
    if (err.code != ERR_NONE)
        say("%s; files that settle are not listed", err.text);
    size_t count = l->waiting == NULL ? 0 : json_object_array_length(l->waiting);
    for (size_t i = 0; i < count; i++) {
        struct json_object *w = json_object_array_get_idx(l->waiting, i);
        int64_t state = json_object_get_int64(member(w, "state"));
        const struct ledger_row row = {
            .path = json_text(w, "path"),
            .source = json_text(w, "source"),
            .flow = json_text(w, "flow"),
            .dest = "",
            .table = "",
            .reason = "",
            .state = state == STATE_SEEN ? STATE_SEEN : STATE_SETTLING,
            .since_ms = json_object_get_int64(member(w, "since_ms")),
        };
        if ((states & STATE_BIT(row.state)) != 0)
            list_row(l, &row);
    }
    json_object_put(answer);
    json_object_put(request);
    line_close(line);
}

static int list_files(const struct command_context *c, unsigned states, bool is_json)
{
    struct err err = {0}, close_err = {0};
    struct ledger_tx *tx;
    if (open_ledger(c, true, &tx, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    struct listing listing = {.is_json = is_json};
    struct ledger_query query = {.states = states};
    list_waiting(c, states, &listing);
    if (ledger_each(tx, &query, print_row, &listing, &err) != ERR_NONE)
        say("%s", err.text);
    ledger_tx_close(tx, false, &close_err);
    json_object_put(listing.waiting);
    if (is_json)
        printf("%s\n]}\n", listing.count == 0 ? "{\"file_list\": [" : "");
    else if (err.code == ERR_NONE && listing.count == 0)
        say("no file is in that state");
    return err.code == ERR_NONE ? 0 : 1;
}

/* The nine words among the values of --state; other values are the state folder. */
static unsigned states_asked(const struct args *args)
{
    unsigned states = 0;
    for (size_t i = 0; i < args->given_count; i++) {
        if (strcmp(args->given[i].option->name, "state") != 0)
            continue;
        for (int s = 0; s < FILE_STATES; s++) {
            if (strcmp(args->given[i].value, file_state_names[s]) == 0)
                states |= STATE_BIT(s);
        }
    }
    return states;
}

static int is_live(const struct command_context *c)
{
    struct err err = {0};
    struct line *line;
    struct json_object *answer = NULL, *request = json_object_new_object();
    if (line_open(c->state, &line, &err) == ERR_NONE && line == NULL)
        err_set(&err, ERR_SYSTEM, true, "no daemon runs on the state folder %s", c->state);
    if (line != NULL) {
        json_object_object_add(request, "command", json_object_new_string("live"));
        line_ask(line, request, LIVE_MS, &answer, &err);
    }
    json_object_put(request);
    json_object_put(answer);
    line_close(line);
    if (err.code != ERR_NONE)
        say("not live: %s", err.text);
    return err.code == ERR_NONE ? 0 : 1;
}

int command_status(const struct command_context *c, const struct args *args)
{
    if (args_has(args, "live"))
        return is_live(c);
    unsigned states = states_asked(args);
    if (states != 0)
        return list_files(c, states, args_has(args, "json"));

    struct err err = {0};
    struct line *line;
    struct json_object *answer = NULL, *status = NULL, *request = json_object_new_object();
    bool is_unreachable = line_open(c->state, &line, &err) != ERR_NONE;
    if (is_unreachable) {
        say("%s; the ledger is read instead", err.text);
        err_clear(&err);
    }
    if (line != NULL) {
        json_object_object_add(request, "command", json_object_new_string("status"));
        if (line_ask(line, request, ANSWER_MS, &answer, &err) == ERR_NONE)
            status = json_object_get(member(answer, "status"));
    } else {
        status = offline_status(c, &err);
        if (status != NULL && is_unreachable)
            json_object_object_add(status, "unreachable", json_object_new_boolean(true));
    }
    if (status == NULL)
        say("%s", err.code == ERR_NONE ? "out of memory" : err.text);
    else if (args_has(args, "json"))
        puts(json_object_to_json_string_ext(status, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
    else
        print_status(status);
    int code = status == NULL;
    json_object_put(status);
    json_object_put(answer);
    json_object_put(request);
    line_close(line);
    return code;
}
