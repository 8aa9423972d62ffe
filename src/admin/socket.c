/*
 * socket.c -- the control socket: one JSON object a line each way.
 *
 * A client is served one request at a time: the next line waits until its answer has been written, so what one client
 * can make us hold is one request and one answer. It must never wait for a client: writes are queued by libuv.
 */
#include "admin_internal.h"

#include "state.h"
#include "utlist.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REQUEST_MAX (64 * 1024) /* bytes of one line */
#define CLIENTS_MAX 16
#define SILENCE_MS 30000 /* a client that neither asks nor reads is sent away */

struct client {
    uv_pipe_t pipe;
    uv_timer_t timer;
    uv_write_t write;
    struct admin *admin; /* NULL: the room is closed */
    struct client *prev, *next;
    struct question *question; /* being answered */
    char *answer;              /* being written */
    struct buf in;
    char chunk[2048];
    int handles; /* not closed yet */
    bool is_closing, is_writing;
};

static void next_request(struct client *c);

static void on_handle_closed(uv_handle_t *handle)
{
    struct client *c = handle->data;
    if (--c->handles > 0)
        return;
    buf_done(&c->in);
    free(c->answer);
    free(c);
}

static void hang_up(struct client *c)
{
    if (c->is_closing)
        return;
    c->is_closing = true;
    question_forget(c->question);
    c->question = NULL;
    if (c->admin != NULL) {
        DL_DELETE(c->admin->clients, c);
        c->admin->client_count--;
    }
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
    uv_close((uv_handle_t *)&c->pipe, on_handle_closed);
}

static void on_silence(uv_timer_t *timer)
{
    hang_up(timer->data);
}

static void on_written(uv_write_t *write, int status)
{
    struct client *c = write->data;
    c->is_writing = false;
    free(c->answer);
    c->answer = NULL;
    if (status != 0) {
        hang_up(c);
        return;
    }
    if (!c->is_closing)
        next_request(c);
}

/* Send OBJECT (ours from now on; NULL: out of memory) as one line. */
static void answer(struct client *c, struct json_object *object)
{
    c->question = NULL;
    size_t length;
    const char *text = object == NULL ? NULL
                                      : json_object_to_json_string_length(
                                            object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &length);
    c->answer = text == NULL ? NULL : malloc(length + 1);
    if (c->answer == NULL) {
        json_object_put(object);
        hang_up(c);
        return;
    }
    memcpy(c->answer, text, length);
    c->answer[length] = '\n';
    json_object_put(object);
    c->write.data = c;
    uv_buf_t piece = uv_buf_init(c->answer, (unsigned)(length + 1));
    uv_timer_start(&c->timer, on_silence, SILENCE_MS, 0);
    c->is_writing = true;
    if (uv_write(&c->write, (uv_stream_t *)&c->pipe, &piece, 1, on_written) != 0) {
        c->is_writing = false;
        hang_up(c);
    }
}

static struct json_object *ok(void)
{
    struct json_object *o = json_object_new_object();
    json_object_object_add(o, "ok", json_object_new_boolean(true));
    return o;
}

static struct json_object *failed(const char *text)
{
    struct json_object *o = json_object_new_object();
    json_object_object_add(o, "ok", json_object_new_boolean(false));
    json_object_object_add(o, "error", json_object_new_string(text));
    return o;
}

static void answer_status(struct question *q)
{
    struct counters *counters = (struct counters *)q;
    struct client *c = q->asker;
    struct admin *a = q->admin;
    struct arena arena;
    arena_init(&arena);
    struct engine_status status;
    struct err err = {0};
    if (engine_status(a->engine, &arena, &status, &err) != ERR_NONE) {
        counters_free(counters);
        answer(c, failed(err.text));
    } else {
        struct report report = {.config = a->config,
                                .state = a->config->state,
                                .engine = &status,
                                .counters = counters->counters,
                                .counter_count = counters->count,
                                .counters_problem = counters->problem};
        struct json_object *o = ok();
        json_object_object_add(o, "status", report_status(&report));
        counters_free(counters);
        answer(c, o);
    }
    arena_done(&arena);
}

static void ask_status(struct client *c)
{
    struct err err = {0};
    struct counters *counters = counters_ask(c->admin, c, answer_status, &err);
    if (counters == NULL)
        answer(c, failed(err.text));
    else
        c->question = &counters->question;
}

/*
 * Is this process fit to serve? Answered from memory, so that a health check costs nothing. A destination that is down
 * does not count: restarting chute would not bring it back. That is what readiness (/readyz) is for.
 */
static void ask_live(struct client *c)
{
    const char *problem = ledger_problem(c->admin->ledger);
    answer(c, problem[0] == '\0' ? ok() : failed(problem));
}

/* The engine has answered Q: who waits for it? NULL: nobody any more, or ERR was the answer. Frees Q. */
static struct client *asker_of(struct question *q, const struct err *err)
{
    struct client *c = q->asker;
    question_free(q);
    if (c == NULL || err == NULL || err->code == ERR_NONE)
        return c;
    answer(c, failed(err->text));
    return NULL;
}

static void answer_count(void *arg, uint64_t count, uint64_t away, const struct err *err)
{
    struct client *c = asker_of(arg, err);
    if (c == NULL)
        return;
    struct json_object *o = ok();
    json_object_object_add(o, "count", json_object_new_uint64(count));
    json_object_object_add(o, "away", json_object_new_uint64(away));
    answer(c, o);
}

static void ask_retry(struct client *c, struct json_object *request)
{
    struct json_object *list;
    bool is_deletes = json_true(request, "deletes"), is_all = json_true(request, "all");
    size_t count = 0;
    if (json_object_object_get_ex(request, "paths", &list) && json_object_is_type(list, json_type_array))
        count = json_object_array_length(list);
    if (!is_deletes && !is_all && count == 0) {
        answer(c, failed("retry: expected paths, all or deletes"));
        return;
    }
    struct err err = {0};
    struct question *q = question_new(c->admin, sizeof *q, c);
    const char **paths = calloc(count + 1, sizeof *paths);
    if (q == NULL || paths == NULL) {
        err_nomem(&err);
        goto fail;
    }
    for (size_t i = 0; i < count; i++) {
        paths[i] = json_object_get_string(json_object_array_get_idx(list, i));
        if (paths[i] == NULL) {
            err_set(&err, ERR_CONFIG, false, "retry: paths must be texts");
            goto fail;
        }
    }
    enum err_code code = is_deletes ? engine_retry_deletes(c->admin->engine, answer_count, q, &err)
                                    : engine_retry(c->admin->engine, paths, count, is_all, answer_count, q, &err);
    if (code != ERR_NONE)
        goto fail;
    c->question = q;
    free(paths);
    return;
fail:
    free(paths);
    if (q != NULL)
        question_free(q);
    answer(c, failed(err.text));
}

static void answer_reset(void *arg, const char *text, const struct err *err)
{
    struct client *c = asker_of(arg, err);
    if (c == NULL)
        return;
    struct json_object *o = ok();
    json_object_object_add(o, "text", json_object_new_string(text == NULL ? "" : text));
    answer(c, o);
}

static void ask_reset(struct client *c, struct json_object *request)
{
    struct err err = {0};
    struct question *q = question_new(c->admin, sizeof *q, c);
    if (q == NULL) {
        err_nomem(&err);
        answer(c, failed(err.text));
        return;
    }
    if (engine_reset(c->admin->engine, json_text(request, "flow"), answer_reset, q, &err) != ERR_NONE) {
        question_free(q);
        answer(c, failed(err.text));
        return;
    }
    c->question = q;
}

static void answer_pipeline(void *arg, const struct pipeline_facts *facts, const struct err *err)
{
    struct client *c = asker_of(arg, err);
    if (c == NULL)
        return;
    struct json_object *o = ok();
    json_object_object_add(o, "statements", json_object_new_uint64(facts->statements));
    json_object_object_add(o, "duration_ms", json_object_new_int64(facts->duration_ms));
    answer(c, o);
}

static void ask_pipeline(struct client *c, struct json_object *request)
{
    struct err err = {0};
    struct question *q = question_new(c->admin, sizeof *q, c);
    if (q == NULL) {
        err_nomem(&err);
        answer(c, failed(err.text));
        return;
    }
    if (engine_pipeline(c->admin->engine, json_text(request, "name"), answer_pipeline, q, &err) != ERR_NONE) {
        question_free(q);
        answer(c, failed(err.text));
        return;
    }
    c->question = q;
}

/* ---- explain: composed on the pool, where the ledger is ---- */
struct explain_question {
    struct question question;
    struct explain explain;
    struct config *config;
    char *given, *absolute;
    char memory[1024];
    struct buf dests, text;
};

static void explain_free(struct explain_question *x)
{
    config_unref(x->config);
    free(x->given);
    free(x->absolute);
    buf_done(&x->dests);
    buf_done(&x->text);
    question_free(&x->question);
}

static enum err_code run_explain(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct explain_question *x = arg;
    buf_clear(&x->text);
    return explain_compose(&x->explain, tx, &x->text, err);
}

static void answer_explain(void *arg, const struct err *err)
{
    struct explain_question *x = arg;
    struct client *c = x->question.asker;
    if (c != NULL) {
        struct json_object *o;
        if (err != NULL && err->code != ERR_NONE) {
            o = failed(err->text);
        } else {
            o = ok();
            json_object_object_add(o, "text", json_object_new_string(x->text.data));
        }
        c->question = NULL;
        question_forget(&x->question);
        answer(c, o);
    }
    explain_free(x);
}

static void sick_dests(struct admin *a, struct buf *ret)
{
    struct arena arena;
    arena_init(&arena);
    struct engine_status status;
    struct err err = {0};
    if (engine_status(a->engine, &arena, &status, &err) == ERR_NONE) {
        for (size_t i = 0; i < status.dest_count; i++) {
            if (strcmp(status.dests[i].state, "ok") != 0)
                buf_printf(ret, "%s\t%s\t%s\n", status.dests[i].name, status.dests[i].state, status.dests[i].reason);
        }
    }
    arena_done(&arena);
}

static void ask_explain(struct client *c, struct json_object *request)
{
    struct err err = {0};
    struct explain_question *x = question_new(c->admin, sizeof *x, c);
    if (x == NULL) {
        err_nomem(&err);
        answer(c, failed(err.text));
        return;
    }
    buf_init(&x->dests);
    buf_init(&x->text);
    x->config = config_ref(c->admin->config);
    x->given = strdup(json_text(request, "given"));
    x->absolute = strdup(json_text(request, "path"));
    if (x->given == NULL || x->absolute == NULL) {
        err_nomem(&err);
        goto fail;
    }
    enum engine_note note = engine_explain(c->admin->engine, x->absolute, x->memory, sizeof x->memory);
    if (note == NOTE_NONE)
        note = engine_explain(c->admin->engine, x->given, x->memory, sizeof x->memory);
    sick_dests(c->admin, &x->dests);
    x->explain =
        (struct explain){x->config, x->config->state, x->given, x->absolute, true, note, x->memory, x->dests.data};
    if (ledger_run(c->admin->ledger, run_explain, answer_explain, x, &err) != ERR_NONE)
        goto fail;
    c->question = &x->question;
    return;
fail:
    explain_free(x);
    answer(c, failed(err.text));
}

/* What waits in memory; the ledger's rows are read by the command itself. */
static void ask_waiting(struct client *c)
{
    struct arena arena;
    struct engine_waiting *waiting;
    size_t count;
    struct err err = {0};
    arena_init(&arena);
    if (engine_waiting(c->admin->engine, &arena, &waiting, &count, &err) != ERR_NONE) {
        answer(c, failed(err.text));
    } else {
        struct json_object *o = ok(), *list = json_object_new_array_ext((int)count);
        for (size_t i = 0; i < count; i++) {
            struct json_object *item = json_object_new_object();
            json_object_object_add(item, "source", json_object_new_string(waiting[i].source));
            json_object_object_add(item, "path", json_object_new_string(waiting[i].path));
            json_object_object_add(item, "flow", json_object_new_string(waiting[i].flow));
            json_object_object_add(item, "state", json_object_new_int((int)waiting[i].state));
            json_object_object_add(item, "since_ms", json_object_new_int64(waiting[i].since_ms));
            json_object_array_add(list, item);
        }
        json_object_object_add(o, "waiting", list);
        answer(c, o);
    }
    arena_done(&arena);
}

static void handle(struct client *c, struct json_object *request)
{
    const char *command = json_text(request, "command");
    struct err err = {0};
    if (strcmp(command, "status") == 0) {
        ask_status(c);
    } else if (strcmp(command, "live") == 0) {
        ask_live(c);
    } else if (strcmp(command, "waiting") == 0) {
        ask_waiting(c);
    } else if (strcmp(command, "explain") == 0) {
        ask_explain(c, request);
    } else if (strcmp(command, "retry") == 0) {
        ask_retry(c, request);
    } else if (strcmp(command, "reset") == 0) {
        ask_reset(c, request);
    } else if (strcmp(command, "pipeline") == 0) {
        ask_pipeline(c, request);
    } else if (strcmp(command, "reload") == 0) {
        c->admin->reload(c->admin->arg, &err);
        answer(c, err.code == ERR_NONE ? ok() : failed(err.text));
    } else {
        answer(c, failed("unknown command; expected status, live, waiting, explain, retry, reset, pipeline or reload"));
    }
}

/* Serve the first whole line that has come, if no answer is under way. */
static void next_request(struct client *c)
{
    if (c->is_closing || c->question != NULL || c->is_writing)
        return;
    char *end = c->in.size == 0 ? NULL : memchr(c->in.data, '\n', c->in.size);
    if (end == NULL) {
        if (c->in.size >= REQUEST_MAX || c->in.failed)
            hang_up(c);
        return;
    }
    size_t length = (size_t)(end - c->in.data), rest = c->in.size - length - 1;
    struct json_tokener *tokener = json_tokener_new_ex(8);
    struct json_object *request = NULL;
    if (tokener != NULL) {
        *end = '\0';
        request = json_tokener_parse_ex(tokener, c->in.data, (int)length + 1);
        json_tokener_free(tokener);
    }
    memmove(c->in.data, end + 1, rest);
    c->in.size = rest;
    c->in.data[rest] = '\0';
    uv_timer_stop(&c->timer); /* the time an answer takes is ours, not the client's */
    if (json_object_is_type(request, json_type_object))
        handle(c, request);
    else
        answer(c, failed("expected one JSON object a line"));
    json_object_put(request);
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *ret)
{
    (void)size;
    struct client *c = handle->data;
    *ret = uv_buf_init(c->chunk, sizeof c->chunk);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *piece)
{
    struct client *c = stream->data;
    if (n < 0) {
        hang_up(c);
        return;
    }
    if (c->in.size + (size_t)n > REQUEST_MAX) {
        hang_up(c); /* a line this long, or a flood of them while one is being answered */
        return;
    }
    buf_add(&c->in, piece->base, (size_t)n);
    next_request(c);
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct admin *a = listener->data;
    if (status != 0)
        return;
    struct client *c = calloc(1, sizeof *c);
    if (c == NULL)
        return; /* libuv stops accepting until the next accept; the client's own timeout ends its wait */
    buf_init(&c->in);
    c->pipe.data = c->timer.data = c;
    c->handles = 2;
    uv_pipe_init(a->loop, &c->pipe, 0);
    uv_timer_init(a->loop, &c->timer);
    if (uv_accept(listener, (uv_stream_t *)&c->pipe) != 0 || a->client_count >= CLIENTS_MAX ||
        uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_read) != 0) {
        hang_up(c);
        return;
    }
    c->admin = a;
    DL_APPEND(a->clients, c);
    a->client_count++;
    uv_timer_start(&c->timer, on_silence, SILENCE_MS, 0);
}

enum err_code socket_open(struct admin *a, struct err *err)
{
    struct sockaddr_un address;
    int folder = -1, fd = -1;
    if (state_socket(a->config->state, &address, &folder, err) != ERR_NONE)
        return err->code;
    unlink(address.sun_path); /* left by a killed process; the lock says that nobody serves it */
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* fchmod before bind: the socket never exists with wider permissions */
    if (fd < 0 || fchmod(fd, 0600) != 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        chmod(address.sun_path, 0600) != 0) {
        err_set(err, ERR_SYSTEM, true, "control socket %s/chute.sock: %s", a->config->state, strerror(errno));
        goto close_all;
    }
    a->listener = calloc(1, sizeof *a->listener);
    if (a->listener == NULL) {
        err_nomem(err);
        goto close_all;
    }
    uv_pipe_init(a->loop, a->listener, 0);
    a->listener->data = a;
    int status = uv_pipe_open(a->listener, fd);
    if (status == 0)
        fd = -1; /* the handle's now */
    if (status == 0)
        status = uv_listen((uv_stream_t *)a->listener, CLIENTS_MAX, on_connection);
    if (status != 0) {
        err_set(err, ERR_SYSTEM, true, "control socket %s/chute.sock: %s", a->config->state, uv_strerror(status));
        uv_close((uv_handle_t *)a->listener, (uv_close_cb)free);
        goto close_all;
    }
    if (folder >= 0)
        close(folder);
    return ERR_NONE;
close_all:
    if (fd >= 0)
        close(fd);
    if (folder >= 0)
        close(folder);
    return err->code;
}

void socket_close(struct admin *a)
{
    while (a->clients != NULL) {
        struct client *c = a->clients;
        hang_up(c);
        c->admin = NULL;
    }
    struct sockaddr_un address;
    int folder;
    struct err err;
    if (state_socket(a->config->state, &address, &folder, &err) == ERR_NONE) {
        unlink(address.sun_path);
        if (folder >= 0)
            close(folder);
    }
}
