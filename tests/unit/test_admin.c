/* test_admin.c -- the control socket and the http endpoints, with a fake engine behind them and a real ledger. */
#include "admin.h"
#include "clock.h"
#include "state.h"

#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define PATIENCE_MS 30000

/* ---- the fake engine ---- */

struct engine {
    bool is_ready;
    bool hold; /* answers of retry and reset come only when told */
    engine_count_cb *count_cb;
    engine_text_cb *text_cb;
    pipeline_cb *pipeline_cb;
    bool fails;
    void *arg;
    char asked[256]; /* what was asked last */
};

const double load_bucket_bounds[LOAD_BUCKETS - 1] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120, 600};
const char *const retry_class_names[RETRY_CLASSES] = {"input", "remote", "system", "changed"};

static struct engine_waiting fake_waiting[4];
static size_t fake_waiting_count;

enum err_code engine_waiting(struct engine *e, struct arena *arena, struct engine_waiting **ret, size_t *ret_count,
                             struct err *err)
{
    (void)e;
    (void)arena;
    (void)err;
    *ret = fake_waiting;
    *ret_count = fake_waiting_count;
    return ERR_NONE;
}

enum err_code engine_status(struct engine *e, struct arena *arena, struct engine_status *ret, struct err *err)
{
    memset(ret, 0, sizeof *ret);
    ret->is_ready = e->is_ready;
    snprintf(ret->not_ready, sizeof ret->not_ready, "%s", e->is_ready ? "" : "destination lite is \"down\"");
    ret->sources = arena_alloc(arena, sizeof *ret->sources);
    ret->dests = arena_alloc(arena, sizeof *ret->dests);
    ret->flows = arena_alloc(arena, sizeof *ret->flows);
    if (ret->sources == NULL || ret->dests == NULL || ret->flows == NULL)
        return err_nomem(err);
    ret->sources[0] = (struct engine_source_status){.name = "inbox", .type = "directory", .evidence = "close"};
    ret->sources[0].health =
        (struct source_health){.mode = "events", .reason = "", .evidence = "close", .is_reachable = true};
    ret->dests[0] = (struct engine_dest_status){.name = "lite", .type = "sqlite", .state = "ok", .reason = ""};
    ret->flows[0] =
        (struct flow_counters){.flow = "a\"b\\c\nd", .rows = 7, .bytes = 70, .loads = 3, .load_seconds = 1.5};
    ret->flows[0].load_bucket[0] = 1;
    ret->flows[0].load_bucket[2] = 1;
    ret->flows[0].load_bucket[LOAD_BUCKETS - 1] = 1;
    ret->source_count = ret->dest_count = ret->flow_count = 1;
    ret->pipelines = arena_alloc(arena, sizeof *ret->pipelines);
    if (ret->pipelines == NULL)
        return err_nomem(err);
    ret->pipelines[0] = (struct pipeline_status){
        .name = "etl", .dest = "lite", .state = PIPELINE_RETRYING, .good = 4, .failed = 2, .seconds = 1.25};
    snprintf(ret->pipelines[0].facts.error, sizeof ret->pipelines[0].facts.error, "database is locked");
    ret->pipelines[0].facts.good_ms = 1700000000500;
    ret->pipeline_count = 1;
    ret->started_ms = clock_wall_ms();
    ret->ledger_problem = "";
    return ERR_NONE;
}

enum err_code engine_retry(struct engine *e, const char *const *paths, size_t count, bool all, engine_count_cb *cb,
                           void *arg, struct err *err)
{
    (void)err;
    snprintf(e->asked, sizeof e->asked, "retry %zu %d %s", count, all, count > 0 ? paths[0] : "");
    e->count_cb = cb;
    e->arg = arg;
    return ERR_NONE;
}

enum err_code engine_retry_deletes(struct engine *e, engine_count_cb *cb, void *arg, struct err *err)
{
    (void)cb;
    (void)arg;
    snprintf(e->asked, sizeof e->asked, "deletes");
    return err_set(err, ERR_STOPPED, false, "chute is stopping");
}

enum err_code engine_reset(struct engine *e, const char *flow, engine_text_cb *cb, void *arg, struct err *err)
{
    (void)err;
    snprintf(e->asked, sizeof e->asked, "reset %s", flow);
    e->text_cb = cb;
    e->arg = arg;
    return ERR_NONE;
}

enum err_code engine_pipeline(struct engine *e, const char *name, pipeline_cb *cb, void *arg, struct err *err)
{
    snprintf(e->asked, sizeof e->asked, "pipeline %s", name);
    if (strcmp(name, "etl") != 0)
        return err_set(err, ERR_CONFIG, false, "there is no pipeline %s; did you mean etl?", name);
    e->pipeline_cb = cb;
    e->arg = arg;
    return ERR_NONE;
}

struct pipeline_plan engine_plan(const struct config *config, const struct config_pipeline *p)
{
    (void)config;
    return (struct pipeline_plan){.name = p->name, .dest = p->dest->name, .every_ms = p->every_ms};
}

enum engine_note engine_explain(struct engine *e, const char *path, char *ret, size_t size)
{
    (void)e;
    bool is_open = strstr(path, "open.csv") != NULL;
    snprintf(ret, size, "%s", is_open ? "its writer still has it open" : "");
    return is_open ? NOTE_SETTLING : NOTE_NONE;
}

/* The answers, on a later turn. */
static void engine_turn(struct engine *e)
{
    if (e->hold)
        return;
    if (e->count_cb != NULL) {
        engine_count_cb *cb = e->count_cb;
        e->count_cb = NULL;
        cb(e->arg, 3, 0, NULL);
    }
    if (e->text_cb != NULL) {
        engine_text_cb *cb = e->text_cb;
        e->text_cb = NULL;
        cb(e->arg, "dropped table \"t\"\n", NULL);
    }
    if (e->pipeline_cb != NULL) {
        const struct pipeline_facts facts = {.statements = 12, .duration_ms = 345};
        struct err err = {0};
        pipeline_cb *cb = e->pipeline_cb;
        e->pipeline_cb = NULL;
        if (e->fails)
            err_set(&err, ERR_INPUT, false, "etl.sql:3: statement 2 (\"SELECT\"): no such table");
        cb(e->arg, &facts, e->fails ? &err : NULL);
    }
}

/* ---- the fixture ---- */

struct fixture {
    uv_loop_t loop;
    char dir[64];
    struct config *config;
    struct ledger *ledger;
    struct engine engine;
    struct admin *admin;
    int reloads;
    bool is_admin_closed, is_ledger_closed;
};

static void turn_loop(struct fixture *f)
{
    uv_run(&f->loop, UV_RUN_NOWAIT);
    engine_turn(&f->engine);
    usleep(200);
}

static void set_true(void *arg)
{
    *(bool *)arg = true;
}

static void on_reload(void *arg, struct err *err)
{
    struct fixture *f = arg;
    if (f->reloads++ > 0)
        err_set(err, ERR_CONFIG, false, "chute.yaml:1:1: no");
}

static struct config *make_config(const char *dir, const char *listen_at)
{
    struct config *c = calloc(1, sizeof *c);
    assert_non_null(c);
    arena_init(&c->arena);
    c->references = 1;
    c->file = "";
    c->state = dir;
    c->http_listen = listen_at;
    return c;
}

static struct fixture *begin(const char *listen_at)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct err err = {0};
    assert_non_null(f);
    strcpy(f->dir, "/tmp/chute-admin-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    assert_int_equal(uv_loop_init(&f->loop), 0);
    f->config = make_config(f->dir, listen_at);
    char path[128];
    snprintf(path, sizeof path, "%s/ledger.db", f->dir);
    struct ledger_options options = {.path = path};
    struct ledger_opened opened;
    assert_int_equal(ledger_open(&f->loop, &options, &f->ledger, &opened, &err), ERR_NONE);
    f->engine.is_ready = true;
    struct admin_options admin = {&f->loop, f->config, f->ledger, &f->engine, on_reload, f};
    if (admin_open(&admin, &f->admin, &err) != ERR_NONE)
        fail_msg("%s", err.text);
    return f;
}

static void finish(struct fixture *f)
{
    if (f->admin != NULL)
        admin_close(f->admin, set_true, &f->is_admin_closed);
    else
        f->is_admin_closed = true;
    ledger_close(f->ledger, set_true, &f->is_ledger_closed);
    uint64_t late = clock_mono_ms() + PATIENCE_MS;
    while (!(f->is_admin_closed && f->is_ledger_closed) && clock_mono_ms() < late)
        turn_loop(f);
    assert_true(f->is_admin_closed && f->is_ledger_closed);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    char path[128];
    snprintf(path, sizeof path, "%s/chute.sock", f->dir);
    assert_int_not_equal(access(path, F_OK), 0);
    config_unref(f->config);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
}

static int dial(struct fixture *f)
{
    struct sockaddr_un address;
    int folder;
    struct err err;
    assert_int_equal(state_socket(f->dir, &address, &folder, &err), ERR_NONE);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* Read until END stands in what came, or the other side hangs up (then false). */
static bool hear(struct fixture *f, int fd, const char *end, char *ret, size_t size)
{
    size_t used = 0;
    uint64_t late = clock_mono_ms() + PATIENCE_MS;
    ret[0] = '\0';
    while (strstr(ret, end) == NULL) {
        turn_loop(f);
        ssize_t n = recv(fd, ret + used, size - used - 1, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return false;
        if (n > 0)
            used += (size_t)n;
        ret[used] = '\0';
        if (clock_mono_ms() > late)
            fail_msg("no answer; so far: %s", ret);
    }
    return true;
}

static void ask(struct fixture *f, int fd, const char *request, char *ret, size_t size)
{
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), (ssize_t)strlen(request));
    assert_true(hear(f, fd, "\n", ret, size));
}

/* ---- the control socket ---- */

static void the_socket_is_for_its_owner_only(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    struct stat st;
    char path[128];
    snprintf(path, sizeof path, "%s/chute.sock", f->dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_true(S_ISSOCK(st.st_mode));
    finish(f);
}

static void every_command_gets_one_line(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    char text[16384];
    int fd = dial(f);
    ask(f, fd, "{\"command\":\"live\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "\"ok\":true"));
    ask(f, fd, "{\"command\":\"status\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "\"running\":true"));
    assert_non_null(strstr(text, "\"inbox\""));
    ask(f, fd, "{\"command\":\"retry\",\"paths\":[\"/in/x.csv\"]}\n", text, sizeof text);
    assert_non_null(strstr(text, "\"count\":3"));
    assert_string_equal(f->engine.asked, "retry 1 0 /in/x.csv");
    ask(f, fd, "{\"command\":\"retry\",\"all\":true}\n", text, sizeof text);
    assert_string_equal(f->engine.asked, "retry 0 1 ");
    ask(f, fd, "{\"command\":\"retry\",\"deletes\":true}\n", text, sizeof text);
    assert_non_null(strstr(text, "chute is stopping"));
    ask(f, fd, "{\"command\":\"retry\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "\"ok\":false"));
    ask(f, fd, "{\"command\":\"reset\",\"flow\":\"a\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "dropped table"));
    ask(f, fd, "{\"command\":\"pipeline\",\"name\":\"etl\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "\"statements\":12,\"duration_ms\":345"));
    f->engine.fails = true;
    ask(f, fd, "{\"command\":\"pipeline\",\"name\":\"etl\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "\"ok\":false"));
    assert_non_null(strstr(text, "etl.sql:3: statement 2"));
    ask(f, fd, "{\"command\":\"pipeline\",\"name\":\"elt\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "did you mean etl?"));
    ask(f, fd, "{\"command\":\"reload\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "\"ok\":true"));
    ask(f, fd, "{\"command\":\"reload\"}\n", text, sizeof text);
    assert_non_null(strstr(text, "chute.yaml:1:1"));
    close(fd);
    finish(f);
}

static void nonsense_is_answered_not_obeyed(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    char text[4096];
    static const char *const lines[] = {"\n",
                                        "{}\n",
                                        "[1]\n",
                                        "{\"command\":7}\n",
                                        "{\"command\":\"rm\"}\n",
                                        "{\"command\":\n",
                                        "{\"command\":\"retry\",\"paths\":[null]}\n",
                                        "\"x\"\n",
                                        "{\"a\":[[[[[[[[[[1]]]]]]]]]]}\n"};
    int fd = dial(f);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        ask(f, fd, lines[i], text, sizeof text);
        assert_non_null(strstr(text, "\"ok\":false"));
    }
    close(fd);
    finish(f);
}

static void requests_in_one_packet_are_answered_in_order(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    char text[32768];
    int fd = dial(f);
    const char *request =
        "{\"command\":\"reset\",\"flow\":\"a\"}\n{\"command\":\"live\"}\n{\"command\":\"nonsense\"}\n";
    assert_true(send(fd, request, strlen(request), 0) > 0);
    assert_true(hear(f, fd, "unknown command", text, sizeof text));
    char *reset = strstr(text, "dropped"), *live = strstr(text, "{\"ok\":true}");
    assert_non_null(reset);
    assert_non_null(live);
    assert_true(reset < live);
    close(fd);
    finish(f);
}

static void a_line_without_end_is_hung_up_on(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    char chunk[4096], text[16];
    memset(chunk, 'x', sizeof chunk);
    int fd = dial(f);
    for (int i = 0; i < 100; i++) {
        (void)send(fd, chunk, sizeof chunk, MSG_NOSIGNAL | MSG_DONTWAIT);
        turn_loop(f);
    }
    assert_false(hear(f, fd, "\n", text, sizeof text));
    close(fd);
    finish(f);
}

static void more_clients_than_allowed_are_sent_away_and_the_others_served(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    int fds[20];
    char text[256];
    for (int i = 0; i < 20; i++) {
        fds[i] = dial(f);
        turn_loop(f);
    }
    assert_false(hear(f, fds[19], "\n", text, sizeof text));
    ask(f, fds[0], "{\"command\":\"live\"}\n", text, sizeof text);
    for (int i = 0; i < 20; i++)
        close(fds[i]);
    for (int i = 0; i < 50; i++)
        turn_loop(f);
    int fd = dial(f);
    ask(f, fd, "{\"command\":\"live\"}\n", text, sizeof text);
    close(fd);
    finish(f);
}

static void a_client_that_leaves_before_its_answer_leaves_nothing_behind(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    static const char *const requests[] = {"{\"command\":\"reset\",\"flow\":\"a\"}\n",
                                           "{\"command\":\"retry\",\"all\":true}\n", "{\"command\":\"status\"}\n",
                                           "{\"command\":\"explain\",\"path\":\"/x\",\"given\":\"x\"}\n"};
    for (size_t i = 0; i < 4; i++) {
        f->engine.hold = true;
        int fd = dial(f);
        assert_true(send(fd, requests[i], strlen(requests[i]), 0) > 0);
        for (int k = 0; k < 5; k++)
            uv_run(&f->loop, UV_RUN_NOWAIT);
        close(fd);
        for (int k = 0; k < 5; k++)
            uv_run(&f->loop, UV_RUN_NOWAIT);
        f->engine.hold = false;
        for (int k = 0; k < 50; k++)
            turn_loop(f);
    }
    finish(f);
}

static void closing_with_questions_open_is_clean(void **state)
{
    (void)state;
    static const char *const requests[] = {"{\"command\":\"reset\",\"flow\":\"a\"}\n", "{\"command\":\"status\"}\n",
                                           "{\"command\":\"explain\",\"path\":\"/x\",\"given\":\"x\"}\n"};
    for (size_t i = 0; i < 3; i++) {
        struct fixture *f = begin(HAVE_HTTP ? "127.0.0.1:0" : "");
        f->engine.hold = true;
        int fd = dial(f);
        assert_true(send(fd, requests[i], strlen(requests[i]), 0) > 0);
        for (int k = 0; k < 3; k++)
            uv_run(&f->loop, UV_RUN_NOWAIT);
        admin_close(f->admin, set_true, &f->is_admin_closed);
        f->admin = NULL;
        while (!f->is_admin_closed)
            uv_run(&f->loop, UV_RUN_NOWAIT);
        f->engine.hold = false;
        engine_turn(&f->engine); /* the engine answers nobody */
        close(fd);
        finish(f);
    }
}

/* ---- explain ---- */

static void explain_says_what_the_ledger_and_memory_know(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    struct ledger_tx *tx;
    struct err err = {0};
    char path[128], text[8192];
    snprintf(path, sizeof path, "%s/ledger.db", f->dir);
    struct ledger_row row = {.source = "inbox",
                             .path = "bad.csv",
                             .flow = "main",
                             .dest = "lite",
                             .table = "bad",
                             .table_key = "bad",
                             .state = STATE_QUARANTINED,
                             .reason = "line 2: expected 1 field, found 2",
                             .load_key = "",
                             .since_ms = 1700000000000};
    assert_int_equal(ledger_tx_open(path, false, &tx, &err), ERR_NONE);
    assert_int_equal(ledger_put(tx, &row, &err), ERR_NONE);
    assert_int_equal(ledger_tx_close(tx, true, &err), ERR_NONE);
    struct option options[] = {{.name = "path", .type = OPT_PATH, .offset = 0}, {.name = NULL}};
    struct source_ops ops = {.type = "directory", .options = options};
    const char *root = f->dir;
    const char *include[] = {"**/*.csv"};
    struct config_source source = {.name = "inbox", .ops = &ops, .options = &root, .ready_marker = "{name}.done"};
    struct config_dest dest = {.name = "lite"};
    struct config_flow flow = {.name = "main", .source = &source, .dest = &dest, .include = {include, 1}};
    f->config->sources = &source;
    f->config->flows = &flow;
    f->config->source_count = f->config->flow_count = 1;
    char state_dir[128];
    snprintf(state_dir, sizeof state_dir, "%s/nowhere", f->dir);
    snprintf(path, sizeof path, "%s/notes.txt", f->dir);
    fclose(fopen(path, "w"));
    static const struct {
        const char *name, *words[3];
    } cases[] = {
        {"bad.csv", {"quarantined", "expected 1 field", "2023-11-14"}},
        {"open.csv", {"settling", "its writer still has it open", NULL}},
        {"notes.txt", {"no flow takes it", "include", "**/*.csv"}},
        {"missing.csv", {"does not exist", NULL, NULL}},
        {"x.csv.done", {"marker", "x.csv", NULL}},
        {"../outside.csv", {"outside of every source", "inbox", NULL}},
    };
    int fd = dial(f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char request[1024], clean[256];
        snprintf(clean, sizeof clean, "%s/%s", f->dir, cases[i].name);
        if (strncmp(cases[i].name, "../", 3) == 0)
            snprintf(clean, sizeof clean, "/tmp/outside.csv");
        snprintf(request, sizeof request, "{\"command\":\"explain\",\"given\":\"%s\",\"path\":\"%s\"}\n", clean, clean);
        f->config->state = state_dir; /* the state folder is the root here: nothing in it may count as chute's own */
        ask(f, fd, request, text, sizeof text);
        f->config->state = f->dir;
        for (int w = 0; w < 3 && cases[i].words[w] != NULL; w++) {
            if (strstr(text, cases[i].words[w]) == NULL)
                fail_msg("explain %s: \"%s\" not in: %s", cases[i].name, cases[i].words[w], text);
        }
    }
    close(fd);
    finish(f);
}

/* ---- http ---- */

#if HAVE_HTTP
static int http_port(struct fixture *f)
{
    /* port 0 is told in the log only; find the listening socket among our descriptors */
    (void)f;
    for (int fd = 3; fd < 256; fd++) {
        struct sockaddr_in address;
        socklen_t size = sizeof address;
        int is_listening = 0;
        socklen_t length = sizeof is_listening;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &length) == 0 && is_listening != 0 &&
            getsockname(fd, (struct sockaddr *)&address, &size) == 0 && address.sin_family == AF_INET)
            return ntohs(address.sin_port);
    }
    return 0;
}

static int http_dial(struct fixture *f)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)http_port(f))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* The whole answer to METHOD PATH, over a connection of its own. */
static void get(struct fixture *f, const char *method, const char *path, char *ret, size_t size)
{
    char request[256];
    int fd = http_dial(f);
    snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path);
    assert_true(send(fd, request, strlen(request), 0) > 0);
    assert_false(hear(f, fd, "\x01never", ret, size)); /* until it hangs up */
    close(fd);
}

static void the_endpoints_answer(void **state)
{
    (void)state;
    struct fixture *f = begin("127.0.0.1:0");
    char text[65536];
    get(f, "GET", "/healthz", text, sizeof text);
    assert_non_null(strstr(text, " 200 "));
    get(f, "GET", "/readyz", text, sizeof text);
    assert_non_null(strstr(text, " 200 "));
    f->engine.is_ready = false;
    get(f, "GET", "/readyz", text, sizeof text);
    assert_non_null(strstr(text, " 503 "));
    assert_non_null(strstr(text, "\\\"down\\\""));
    get(f, "GET", "/api/v1/status", text, sizeof text);
    assert_non_null(strstr(text, " 200 "));
    assert_non_null(strstr(text, "\"flows\":"));
    get(f, "HEAD", "/metrics", text, sizeof text);
    assert_non_null(strstr(text, " 200 "));
    assert_null(strstr(text, "chute_files"));
    get(f, "POST", "/metrics", text, sizeof text);
    assert_non_null(strstr(text, " 405 "));
    get(f, "GET", "/../etc/passwd", text, sizeof text);
    assert_non_null(strstr(text, " 404 "));
    assert_non_null(strstr(text, "application/json"));
    finish(f);
}

static void metrics_escape_labels_and_sum_buckets(void **state)
{
    (void)state;
    struct fixture *f = begin("127.0.0.1:0");
    char text[65536];
    get(f, "GET", "/metrics", text, sizeof text);
    assert_non_null(strstr(text, "text/plain; version=0.0.4"));
    assert_non_null(strstr(text, "# TYPE chute_load_seconds histogram\n"));
    assert_non_null(strstr(text, "chute_rows_total{flow=\"a\\\"b\\\\c\\nd\"} 7\n"));
    assert_non_null(strstr(text, "le=\"0.005\"} 1\n"));
    assert_non_null(strstr(text, "le=\"0.025\"} 2\n"));
    assert_non_null(strstr(text, "le=\"600\"} 2\n"));
    assert_non_null(strstr(text, "le=\"+Inf\"} 3\n"));
    assert_non_null(strstr(text, "chute_pipeline_runs_total{pipeline=\"etl\",result=\"good\"} 4\n"));
    assert_non_null(strstr(text, "chute_pipeline_runs_total{pipeline=\"etl\",result=\"failed\"} 2\n"));
    assert_non_null(strstr(text, "chute_pipeline_seconds_total{pipeline=\"etl\"} 1.25\n"));
    assert_non_null(strstr(text, "chute_pipeline_failing{pipeline=\"etl\"} 1\n"));
    assert_non_null(strstr(text, "chute_pipeline_pending{pipeline=\"etl\"} 1\n"));
    assert_non_null(strstr(text, "chute_pipeline_last_good_time_seconds{pipeline=\"etl\"} 1700000000.5\n"));
    assert_non_null(strstr(text, "chute_load_seconds_count{flow=\"a\\\"b\\\\c\\nd\"} 3\n"));
    finish(f);
}

static void idle_http_keeps_no_timer(void **state)
{
    (void)state;
    struct fixture *f = begin("127.0.0.1:0");
    char text[4096];
    get(f, "GET", "/healthz", text, sizeof text);
    uint64_t late = clock_mono_ms() + PATIENCE_MS;
    while (uv_backend_timeout(&f->loop) != -1) {
        turn_loop(f);
        assert_true(clock_mono_ms() < late);
    }
    finish(f);
}

static void http_closes_in_the_middle_of_a_request(void **state)
{
    (void)state;
    static const char *const requests[] = {"GET /met", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                                           "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"};
    for (size_t i = 0; i < 3; i++) {
        for (int turns = 0; turns < 4; turns++) {
            struct fixture *f = begin("127.0.0.1:0");
            int fd = http_dial(f);
            assert_true(send(fd, requests[i], strlen(requests[i]), 0) > 0);
            for (int k = 0; k < turns; k++)
                uv_run(&f->loop, UV_RUN_NOWAIT);
            finish(f);
            close(fd);
        }
    }
}

static void an_address_that_is_none_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"nonsense", "127.0.0.1:", "127.0.0.1:99999", "1.2.3.4:80x", ":"};
    struct fixture *f = begin("");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = {0};
        struct config *other = make_config(f->dir, bad[i]);
        assert_int_equal(admin_reconfigure(f->admin, other, &err), ERR_CONFIG);
        assert_non_null(strstr(err.text, "http.listen"));
        config_unref(other);
    }
    finish(f);
}

static void a_reload_moves_http(void **state)
{
    (void)state;
    struct fixture *f = begin("");
    struct err err = {0};
    char text[4096];
    assert_int_equal(http_port(f), 0);
    struct config *other = make_config(f->dir, "127.0.0.1:0");
    assert_int_equal(admin_reconfigure(f->admin, other, &err), ERR_NONE);
    get(f, "GET", "/healthz", text, sizeof text);
    assert_non_null(strstr(text, " 200 "));
    assert_int_equal(admin_reconfigure(f->admin, f->config, &err), ERR_NONE);
    for (int i = 0; i < 20; i++)
        turn_loop(f);
    assert_int_equal(http_port(f), 0);
    config_unref(other);
    finish(f);
}
#endif

/* ---- the state folder ---- */

static void a_second_process_is_told_who_has_the_state_folder(void **state)
{
    (void)state;
    char dir[64] = "/tmp/chute-state-XXXXXX", inner[96], words[32];
    struct err err = {0};
    int first, second;
    assert_non_null(mkdtemp(dir));
    snprintf(inner, sizeof inner, "%s/a/b", dir);
    assert_int_equal(state_lock(inner, &first, &err), ERR_NONE);
    assert_int_equal(state_lock(inner, &second, &err), ERR_CONFIG);
    snprintf(words, sizeof words, "process %ld", (long)getpid());
    assert_non_null(strstr(err.text, words));
    close(first);
    assert_int_equal(state_lock(inner, &second, &err), ERR_NONE);
    char one[33], two[33];
    assert_int_equal(state_instance(inner, one, &err), ERR_NONE);
    assert_int_equal(state_instance(inner, two, &err), ERR_NONE);
    assert_string_equal(one, two);
    assert_int_equal(strlen(one), 32);
    close(second);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
}

static void a_state_folder_with_a_long_path_has_a_socket_too(void **state)
{
    (void)state;
    char dir[300] = "/tmp/chute-long-XXXXXX";
    struct err err = {0};
    struct sockaddr_un address;
    int lock, folder;
    assert_non_null(mkdtemp(dir));
    size_t length = strlen(dir);
    dir[length] = '/';
    memset(dir + length + 1, 'x', 200);
    dir[length + 201] = '\0';
    assert_int_equal(state_lock(dir, &lock, &err), ERR_NONE);
    assert_int_equal(state_socket(dir, &address, &folder, &err), ERR_NONE);
    assert_true(folder >= 0);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    close(folder);
    close(lock);
    dir[length] = '\0';
    char command[400];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_socket_is_for_its_owner_only),
        cmocka_unit_test(every_command_gets_one_line),
        cmocka_unit_test(nonsense_is_answered_not_obeyed),
        cmocka_unit_test(requests_in_one_packet_are_answered_in_order),
        cmocka_unit_test(a_line_without_end_is_hung_up_on),
        cmocka_unit_test(more_clients_than_allowed_are_sent_away_and_the_others_served),
        cmocka_unit_test(a_client_that_leaves_before_its_answer_leaves_nothing_behind),
        cmocka_unit_test(closing_with_questions_open_is_clean),
        cmocka_unit_test(explain_says_what_the_ledger_and_memory_know),
#if HAVE_HTTP
        cmocka_unit_test(the_endpoints_answer),
        cmocka_unit_test(metrics_escape_labels_and_sum_buckets),
        cmocka_unit_test(idle_http_keeps_no_timer),
        cmocka_unit_test(http_closes_in_the_middle_of_a_request),
        cmocka_unit_test(an_address_that_is_none_is_refused),
        cmocka_unit_test(a_reload_moves_http),
#endif
        cmocka_unit_test(a_second_process_is_told_who_has_the_state_folder),
        cmocka_unit_test(a_state_folder_with_a_long_path_has_a_socket_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
