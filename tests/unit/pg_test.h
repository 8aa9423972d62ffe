/*
 * pg_test.h -- a loop, a connection, answers that are kept, and a wire that can be cut.
 *
 * The server is one for the whole program (pg_server.h). The wire is a thread that passes bytes between a port of its
 * own and the server, as many as a test allows.
 */
#ifndef CHUTE_PG_TEST_H
#define CHUTE_PG_TEST_H

#include "pg.h"
#include "pg_server.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define PATIENCE_MS 60000u /* longer than anything takes on a machine that is busy and sanitized */

static struct pg_server server;

/* ---- answers ----------------------------------------------------------------------------------------------------- */

struct told {
    unsigned times;
    struct err err;
    struct pg_fault fault; /* its texts are below */
    char message[300], detail[300], context[300], constraint[100], table[100], column[100];
    bool maybe_done, has_result;
    size_t statements, rows, columns;
    uint64_t copied_bytes, affected;
    char tag[40], value[200];
};

static inline void keep(char *ret, size_t size, const char *text)
{
    assert_non_null(text); /* never NULL, says pg.h */
    snprintf(ret, size, "%s", text);
}

static inline void on_told(void *arg, const struct pg_answer *a)
{
    struct told *t = arg;
    t->times++;
    t->err = a->err;
    t->fault = a->fault;
    keep(t->message, sizeof t->message, a->fault.message);
    keep(t->detail, sizeof t->detail, a->fault.detail);
    keep(t->context, sizeof t->context, a->fault.context);
    keep(t->constraint, sizeof t->constraint, a->fault.constraint);
    keep(t->table, sizeof t->table, a->fault.table);
    keep(t->column, sizeof t->column, a->fault.column);
    assert_non_null(a->fault.hint);
    assert_non_null(a->fault.schema);
    assert_non_null(a->fault.type);
    assert_non_null(a->fault.internal_query);
    t->maybe_done = a->maybe_done;
    t->statements = a->statements;
    t->copied_bytes = a->copied_bytes;
    t->has_result = a->result != NULL;
    if (a->result == NULL)
        return;
    t->rows = pg_rows(a->result);
    t->columns = pg_columns(a->result);
    t->affected = pg_affected(a->result);
    keep(t->tag, sizeof t->tag, pg_tag(a->result));
    const char *value = pg_value(a->result, 0, 0);
    snprintf(t->value, sizeof t->value, "%s", value != NULL ? value : "NULL");
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

struct fixture {
    uv_loop_t loop;
    struct pg *pg;
    uv_timer_t patience;
    bool is_closed;
    unsigned lost;
    struct err lost_err;
    unsigned notices;
    char severity[20], notice[200];
};

static inline void on_impatient(uv_timer_t *timer)
{
    (void)timer;
    fail_msg("waited for %u ms", PATIENCE_MS);
}

/* Turn the loop until *FLAG is not 0. */
static inline void run_until_count(struct fixture *f, const unsigned *count, unsigned wanted)
{
    uv_timer_start(&f->patience, on_impatient, PATIENCE_MS, 0);
    while (*count < wanted)
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_timer_stop(&f->patience);
}

static inline void run_until(struct fixture *f, const bool *flag)
{
    uv_timer_start(&f->patience, on_impatient, PATIENCE_MS, 0);
    while (!*flag)
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_timer_stop(&f->patience);
}

static inline void on_turn(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

/* Some turns, and MS milliseconds at least. For what must not happen. */
static inline void run_for(struct fixture *f, unsigned ms)
{
    uv_timer_t timer;
    bool is_over = false;
    uv_timer_init(&f->loop, &timer);
    timer.data = &is_over;
    uv_timer_start(&timer, on_turn, ms, 0);
    run_until(f, &is_over);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
}

static inline void on_lost(void *arg, const struct err *err)
{
    struct fixture *f = arg;
    f->lost++;
    f->lost_err = *err;
}

static inline void on_heard(void *arg, const char *severity, const struct pg_fault *notice)
{
    struct fixture *f = arg;
    f->notices++;
    snprintf(f->severity, sizeof f->severity, "%s", severity);
    snprintf(f->notice, sizeof f->notice, "%s", notice->message);
}

static inline void fixture_init(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    uv_timer_init(&f->loop, &f->patience);
}

static inline void on_fixture_closed(void *arg)
{
    struct fixture *f = arg;
    assert_false(f->is_closed); /* once */
    f->is_closed = true;
}

static inline void close_pg(struct fixture *f)
{
    f->is_closed = false;
    pg_close(f->pg, on_fixture_closed, f);
    assert_false(f->is_closed); /* later */
    run_until(f, &f->is_closed);
    f->pg = NULL;
}

/* Nothing is left: no handle, no request. */
static inline void fixture_done(struct fixture *f)
{
    if (f->pg != NULL)
        close_pg(f);
    uv_close((uv_handle_t *)&f->patience, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
}

static inline struct pg_options options_of(struct fixture *f, const char *conninfo)
{
    return (struct pg_options){.conninfo = conninfo, .on_notice = on_heard, .on_lost = on_lost, .arg = f};
}

static inline void open_with(struct fixture *f, const struct pg_options *o)
{
    struct err err;
    if (pg_open(&f->loop, o, &f->pg, &err) != ERR_NONE)
        fail_msg("pg_open: %s", err.text);
}

static inline void open_at(struct fixture *f, const char *conninfo)
{
    struct pg_options o = options_of(f, conninfo);
    open_with(f, &o);
}

static inline struct told connect_now(struct fixture *f)
{
    struct told t = {.times = 0};
    pg_connect(f->pg, on_told, &t);
    assert_int_equal(t.times, 0);
    assert_int_equal(pg_state(f->pg), PG_CONNECTING);
    run_until_count(f, &t.times, 1);
    return t;
}

/* A text that lives for a while. */
static inline const char *text_of(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static inline const char *text_of(const char *fmt, ...)
{
    static char text[8][600];
    static unsigned n;
    va_list args;
    n = (n + 1) % 8;
    va_start(args, fmt);
    vsnprintf(text[n], sizeof text[n], fmt, args);
    va_end(args);
    return text[n];
}

#define assert_ok(t)                                                                                                   \
    do {                                                                                                               \
        if ((t).err.code != ERR_NONE)                                                                                  \
            fail_msg("%s", (t).err.text);                                                                              \
    } while (0)
#define assert_says(text, words)                                                                                       \
    do {                                                                                                               \
        if (strstr(text, words) == NULL)                                                                               \
            fail_msg("\"%s\" does not say \"%s\"", text, words);                                                       \
    } while (0)

static inline void connect_at(struct fixture *f, const char *conninfo)
{
    open_at(f, conninfo);
    struct told t = connect_now(f);
    assert_ok(t);
    assert_int_equal(pg_state(f->pg), PG_READY);
}

static inline void start_request(struct fixture *f, const struct pg_request *r)
{
    struct err err;
    if (pg_start(f->pg, r, &err) != ERR_NONE)
        fail_msg("pg_start: %s", err.text);
}

static inline void start(struct fixture *f, const char *sql, struct told *t)
{
    const struct pg_request r = {.sql = sql, .done = on_told, .arg = t};
    memset(t, 0, sizeof *t);
    start_request(f, &r);
}

static inline struct told query(struct fixture *f, const char *sql)
{
    struct told t;
    start(f, sql, &t);
    assert_int_equal(t.times, 0); /* never from inside */
    run_until_count(f, &t.times, 1);
    return t;
}

/* SQL on a connection of its own: for what another session does or sees. */
static inline struct told elsewhere(const char *sql)
{
    struct fixture other;
    fixture_init(&other);
    connect_at(&other, server.url);
    struct told t = query(&other, sql);
    fixture_done(&other);
    return t;
}

/* Ask until SQL answers WANTED. */
static inline void wait_for_answer(const char *sql, const char *wanted)
{
    struct fixture other;
    struct told t;
    fixture_init(&other);
    connect_at(&other, server.url);
    for (unsigned i = 0; i < PATIENCE_MS / 10; i++) {
        t = query(&other, sql);
        if (strcmp(t.value, wanted) == 0)
            break;
        usleep(10000);
    }
    fixture_done(&other);
    assert_string_equal(t.value, wanted);
}

/* ---- the wire ---------------------------------------------------------------------------------------------------- */

enum { TO_SERVER, TO_CLIENT };

struct wire {
    int listener, port;
    pthread_t thread;
    atomic_bool stopping, paused;
    atomic_llong allowed[2]; /* bytes that still may pass; < 0: all. When they have, everything is cut */
    atomic_llong passed[2];
    atomic_uint accepted, cuts;
    bool cuts_hard; /* by RST */
    bool hangs;     /* instead: nothing passes any more */
};

static inline bool wire_pass(struct wire *w, int from, int to, int direction)
{
    char data[16384];
    size_t room = sizeof data;
    long long allowed = w->allowed[direction];
    if (allowed >= 0 && (unsigned long long)allowed < room)
        room = (size_t)allowed;
    if (room == 0)
        return false;
    ssize_t n = recv(from, data, room, 0);
    if (n <= 0)
        return false;
    for (ssize_t done = 0; done < n;) {
        ssize_t sent = send(to, data + done, (size_t)(n - done), MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        done += sent;
    }
    w->passed[direction] += n;
    if (allowed >= 0)
        w->allowed[direction] -= n;
    return allowed < 0 || n < allowed || w->hangs;
}

static inline void wire_serve(struct wire *w, int client, int upstream)
{
    while (!w->stopping) {
        struct pollfd p[2] = {{.fd = client, .events = POLLIN}, {.fd = upstream, .events = POLLIN}};
        if (w->paused) {
            usleep(1000);
            continue;
        }
        bool is_used_up = w->allowed[TO_SERVER] == 0 || w->allowed[TO_CLIENT] == 0;
        if (is_used_up && !w->hangs)
            break;
        if (is_used_up) { /* till the client has enough */
            char byte;
            if (recv(client, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
                break;
            usleep(1000);
            continue;
        }
        if (poll(p, 2, 10) <= 0)
            continue;
        if (p[0].revents != 0 && !wire_pass(w, client, upstream, TO_SERVER))
            break;
        if (p[1].revents != 0 && !wire_pass(w, upstream, client, TO_CLIENT))
            break;
    }
    w->cuts++;
    const struct linger hard = {.l_onoff = 1, .l_linger = 0};
    if (w->cuts_hard)
        setsockopt(client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(client);
    close(upstream);
}

static inline int wire_upstream(void)
{
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)server.port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* One connection after the other: so that a test knows which bytes are counted. */
static inline void *wire_thread(void *arg)
{
    struct wire *w = arg;
    while (!w->stopping) {
        struct pollfd p = {.fd = w->listener, .events = POLLIN};
        if (poll(&p, 1, 10) <= 0)
            continue;
        int client = accept(w->listener, NULL, NULL), upstream = client >= 0 ? wire_upstream() : -1;
        if (upstream < 0) {
            close(client);
            continue;
        }
        w->accepted++;
        wire_serve(w, client, upstream);
    }
    return NULL;
}

static inline void wire_start(struct wire *w)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    memset(w, 0, sizeof *w);
    w->allowed[0] = w->allowed[1] = -1;
    w->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(w->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(getsockname(w->listener, (struct sockaddr *)&at, &size), 0);
    assert_int_equal(listen(w->listener, 20), 0);
    w->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&w->thread, NULL, wire_thread, w), 0);
}

static inline void wire_stop(struct wire *w)
{
    w->stopping = true;
    pthread_join(w->thread, NULL);
    close(w->listener);
}

/* ---- the program ------------------------------------------------------------------------------------------------- */

/* Nothing that whoever runs the tests has set. */
static inline void clean_environment(void)
{
    static const char *const names[] = {"PGHOST",
                                        "PGHOSTADDR",
                                        "PGPORT",
                                        "PGDATABASE",
                                        "PGUSER",
                                        "PGPASSWORD",
                                        "PGSERVICE",
                                        "PGOPTIONS",
                                        "PGAPPNAME",
                                        "PGSSLMODE",
                                        "PGGSSENCMODE",
                                        "PGTARGETSESSIONATTRS",
                                        "PGCONNECT_TIMEOUT",
                                        "PGCLIENTENCODING"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unsetenv(names[i]);
    setenv("PGPASSFILE", "/nonexistent", 1);
    setenv("PGSERVICEFILE", "/nonexistent", 1);
    signal(SIGPIPE, SIG_IGN);
}

static inline int start_server(void **state)
{
    (void)state;
    clean_environment();
    pg_server_start(&server);
    return 0;
}

static inline int start_server_with_tls(void **state)
{
    (void)state;
    clean_environment();
    pg_server_make(&server);
    pg_server_tls(&server);
    pg_server_run(&server);
    return 0;
}

static inline int stop_server(void **state)
{
    (void)state;
    pg_server_stop(&server);
    return 0;
}

static inline int set_up(void **state)
{
    struct fixture *f = malloc(sizeof *f);
    fixture_init(f);
    *state = f;
    return 0;
}

static inline int tear_down(void **state)
{
    fixture_done(*state);
    free(*state);
    return 0;
}

#endif
