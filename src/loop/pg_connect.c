/*
 * pg_connect.c -- from a target to an open connection: names, addresses, one after the other, each with its own clock.
 *
 * libpq could try several hosts by itself, but without a clock and with a resolver that blocks. So each attempt of
 * libpq's gets one host and one address, and which is next is decided here, as libpq does: the next address after a
 * failure of the network, a server that is not ready, or one that is not what target_session_attrs wants; none after
 * an answer that all would give (a wrong password).
 */
#include "pg_internal.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ADDRESS_BYTES 64 /* an IPv6 address with its scope */

/* A name on its way; it ends on its own time, also when nobody waits any more. */
struct pg_lookup {
    uv_getaddrinfo_t req;
    struct pg *pg; /* NULL: nobody waits */
};

struct pg_connecting {
    struct pg_target target;
    size_t place;                     /* which of the target's */
    char (*addresses)[ADDRESS_BYTES]; /* of that one; "" for a socket */
    size_t address_count, address;
    const char *attrs;     /* target_session_attrs of this round */
    bool has_second_round; /* prefer-standby: once more, and any will do */
    struct pg_lookup *lookup;
    struct err err; /* of all that failed so far */
    char sqlstate[6];
    bool was_tls; /* the last step was in the middle of TLS */
};

/* ---- the end ----------------------------------------------------------------------------------------------------- */

static void drop_attempt(struct pg *pg)
{
    pg_unwatch(pg);
    if (pg->conn != NULL)
        pg->lib->finish(pg->conn);
    pg->conn = NULL;
}

void pg_connect_stop(struct pg *pg)
{
    struct pg_connecting *c = pg->connecting;
    uv_timer_stop(&pg->deadline);
    pg->connecting = NULL;
    if (c->lookup != NULL) {
        c->lookup->pg = NULL;
        uv_cancel((uv_req_t *)&c->lookup->req); /* if it has not begun */
    }
    pg_target_done(&c->target);
    free(c->addresses);
    free(c);
}

static void finish(struct pg *pg, const struct err *err, const char *sqlstate)
{
    pg->connect_err = *err;
    snprintf(pg->connect_sqlstate, sizeof pg->connect_sqlstate, "%s", sqlstate);
    pg->is_connect_due = true;
    pg_connect_stop(pg);
    if (err->code != ERR_NONE)
        drop_attempt(pg);
    pg_kick(pg);
}

static void finish_failed(struct pg *pg)
{
    struct err err = pg->connecting->err;
    char sqlstate[6];
    memcpy(sqlstate, pg->connecting->sqlstate, sizeof sqlstate);
    finish(pg, &err, sqlstate);
}

/* ---- one attempt ------------------------------------------------------------------------------------------------- */

static void next_address(struct pg *pg);

static void name_attempt(const struct pg_connecting *c, char *ret, size_t size)
{
    const struct pg_place *place = &c->target.places[c->place];
    const char *address = c->addresses[c->address];
    const char *port = place->port[0] != '\0' ? place->port : "5432";
    if (address[0] == '\0')
        snprintf(ret, size, "%s", place->host[0] != '\0' ? place->host : "the local socket");
    else if (place->host[0] == '\0' || strcmp(place->host, address) == 0)
        snprintf(ret, size, "%s:%s", address, port);
    else
        snprintf(ret, size, "%s:%s (%s)", place->host, port, address);
}

/* Keep why this attempt failed, behind why those before it did. */
static void note_failure(struct pg_connecting *c, const struct err *err, const char *sqlstate)
{
    struct err before = c->err;
    if (before.code == ERR_NONE)
        c->err = *err;
    else
        err_set(&c->err, err->code, err->retryable, "%s; %s", before.text, err->text);
    snprintf(c->sqlstate, sizeof c->sqlstate, "%s", sqlstate);
}

/* The attempt failed. Is there another one? */
static void attempt_failed(struct pg *pg, struct err *err, const char *sqlstate)
{
    struct pg_connecting *c = pg->connecting;
    char name[ADDRESS_BYTES + 300];
    name_attempt(c, name, sizeof name);
    err_wrap(err, "%s", name);
    note_failure(c, err, sqlstate);
    drop_attempt(pg);
    if (!err->retryable) { /* all would say that */
        c->err = *err;
        finish_failed(pg);
        return;
    }
    c->address++;
    next_address(pg);
}

static void attempt_ended(struct pg *pg, bool is_refused)
{
    struct err err;
    char sqlstate[6];
    pg_err_connect(pg->lib->errorMessage(pg->conn), is_refused, pg->connecting->was_tls, &err, sqlstate);
    attempt_failed(pg, &err, sqlstate);
}

static void attempt_succeeded(struct pg *pg)
{
    struct err err;
    const char *host = pg->lib->host(pg->conn), *port = pg->lib->port(pg->conn);
    pg_note_where(pg, host != NULL ? host : "", port != NULL ? port : "");
    err_clear(&err);
    pg_is_open(pg, &err);
    finish(pg, &err, "");
}

/* libpq wants EVENTS next. The old handle is gone: the socket may be another one. */
static void attempt_waits(struct pg *pg, int events)
{
    struct err err;
    if (pg_watch(pg, events))
        return;
    err_set(&err, ERR_SYSTEM, true, "the connection can't be watched: out of memory or descriptors");
    attempt_failed(pg, &err, "");
}

void pg_connect_event(struct pg *pg)
{
    if (pg->conn == NULL)
        return;
    pg_unwatch(pg); /* before libpq may close it */
    pg->connecting->was_tls = pg->lib->status(pg->conn) == CONNECTION_SSL_STARTUP;
    switch (pg->lib->connectPoll(pg->conn)) {
    case PGRES_POLLING_READING:
        attempt_waits(pg, UV_READABLE);
        break;
    case PGRES_POLLING_WRITING:
        attempt_waits(pg, UV_WRITABLE);
        break;
    case PGRES_POLLING_OK:
        attempt_succeeded(pg);
        break;
    case PGRES_POLLING_FAILED:
    default:
        attempt_ended(pg, false);
        break;
    }
}

static void begin_attempt(struct pg *pg)
{
    struct pg_connecting *c = pg->connecting;
    const struct pg_place *place = &c->target.places[c->place];
    struct pg_params params;
    struct err err;
    pg_params_init(pg, &params);
    pg_params_set(&params, "host", place->host);
    pg_params_set(&params, "hostaddr", c->addresses[c->address]);
    pg_params_set(&params, "port", place->port);
    pg_params_set(&params, "target_session_attrs", c->attrs);
    pg_deadline_in(pg, c->target.timeout_ms);
    pg->conn = pg->lib->connectStartParams(params.keys, params.values, 0);
    if (pg->conn == NULL) {
        err_nomem(&err);
        attempt_failed(pg, &err, "");
        return;
    }
    c->was_tls = false;
    pg->lib->setNoticeReceiver(pg->conn, pg_hear, pg);      /* a login may begin with warnings; they went to stderr */
    pg->lib->setErrorVerbosity(pg->conn, PQERRORS_VERBOSE); /* the only way to a SQLSTATE */
    if (pg->lib->status(pg->conn) == CONNECTION_BAD)
        attempt_ended(pg, true);
    else
        attempt_waits(pg, UV_WRITABLE);
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static void place_failed(struct pg *pg, const char *words)
{
    struct pg_connecting *c = pg->connecting;
    struct err err;
    err_set(&err, ERR_REMOTE, true, "%s: %s", c->target.places[c->place].host, words);
    note_failure(c, &err, "");
    c->address = c->address_count;
    next_address(pg);
}

static void shuffle(struct pg_connecting *c)
{
    if (!c->target.is_random)
        return;
    for (size_t i = c->address_count; i > 1; i--) {
        char swap[ADDRESS_BYTES];
        unsigned r = 0;
        uv_random(NULL, NULL, &r, sizeof r, 0, NULL);
        memcpy(swap, c->addresses[i - 1], sizeof swap);
        memmove(c->addresses[i - 1], c->addresses[r % i], sizeof swap);
        memcpy(c->addresses[r % i], swap, sizeof swap);
    }
}

static void shuffle_places(struct pg_target *t)
{
    for (size_t i = t->count; t->is_random && i > 1; i--) {
        unsigned r = 0;
        uv_random(NULL, NULL, &r, sizeof r, 0, NULL);
        struct pg_place swap = t->places[i - 1];
        t->places[i - 1] = t->places[r % i];
        t->places[r % i] = swap;
    }
}

static bool keep_addresses(struct pg_connecting *c, const struct addrinfo *found)
{
    size_t n = 0;
    for (const struct addrinfo *a = found; a != NULL; a = a->ai_next)
        n++;
    c->addresses = calloc(n, sizeof *c->addresses);
    if (c->addresses == NULL)
        return false;
    for (const struct addrinfo *a = found; a != NULL; a = a->ai_next) {
        char *text = c->addresses[c->address_count];
        if (getnameinfo(a->ai_addr, a->ai_addrlen, text, ADDRESS_BYTES, NULL, 0, NI_NUMERICHOST) == 0)
            c->address_count++;
    }
    shuffle(c);
    return true;
}

static void on_name(uv_getaddrinfo_t *req, int status, struct addrinfo *found)
{
    struct pg_lookup *lookup = (struct pg_lookup *)req;
    struct pg *pg = lookup->pg;
    if (pg != NULL) {
        struct pg_connecting *c = pg->connecting;
        c->lookup = NULL;
        if (status != 0)
            place_failed(pg, uv_strerror(status));
        else if (!keep_addresses(c, found))
            place_failed(pg, "out of memory");
        else if (c->address_count == 0)
            place_failed(pg, "has no address");
        else
            begin_attempt(pg);
    }
    uv_freeaddrinfo(found);
    free(lookup);
}

static void look_up(struct pg *pg)
{
    struct pg_connecting *c = pg->connecting;
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct pg_lookup *lookup = calloc(1, sizeof *lookup);
    if (lookup == NULL) {
        place_failed(pg, "out of memory");
        return;
    }
    int failed = uv_getaddrinfo(pg->loop, &lookup->req, on_name, c->target.places[c->place].host, NULL, &hints);
    if (failed != 0) { /* a name that is none */
        free(lookup);
        place_failed(pg, uv_strerror(failed));
        return;
    }
    lookup->pg = pg;
    c->lookup = lookup;
    pg_deadline_in(pg, c->target.timeout_ms);
}

/* ---- which is next ----------------------------------------------------------------------------------------------- */

/* One address that needs no resolver: hostaddr, or none for a socket. */
static bool keep_one(struct pg_connecting *c, const char *address)
{
    c->addresses = calloc(1, sizeof *c->addresses);
    if (c->addresses == NULL)
        return false;
    snprintf(c->addresses[0], ADDRESS_BYTES, "%s", address);
    c->address_count = 1;
    return true;
}

static void begin_place(struct pg *pg)
{
    struct pg_connecting *c = pg->connecting;
    const struct pg_place *place = &c->target.places[c->place];
    free(c->addresses);
    c->addresses = NULL;
    c->address = c->address_count = 0;
    bool is_socket = place->host[0] == '\0' || place->host[0] == '/' || place->host[0] == '@';
    if (place->address[0] == '\0' && !is_socket)
        look_up(pg);
    else if (!keep_one(c, place->address))
        place_failed(pg, "out of memory");
    else
        begin_attempt(pg);
}

static void next_address(struct pg *pg)
{
    struct pg_connecting *c = pg->connecting;
    if (c->address < c->address_count) {
        begin_attempt(pg);
        return;
    }
    c->place++;
    if (c->place == c->target.count && c->has_second_round) {
        c->has_second_round = false;
        c->attrs = "any";
        c->place = 0;
    }
    if (c->place < c->target.count)
        begin_place(pg);
    else
        finish_failed(pg);
}

void pg_connect_timeout(struct pg *pg)
{
    struct pg_connecting *c = pg->connecting;
    struct err err;
    unsigned long long ms = (unsigned long long)c->target.timeout_ms;
    if (c->lookup != NULL) {
        char words[80];
        c->lookup->pg = NULL;
        uv_cancel((uv_req_t *)&c->lookup->req);
        c->lookup = NULL;
        snprintf(words, sizeof words, "no address within %llu ms", ms);
        place_failed(pg, words);
        return;
    }
    err_set(&err, ERR_REMOTE, true, "no answer within %llu ms", ms);
    attempt_failed(pg, &err, "");
}

void pg_connect_begin(struct pg *pg)
{
    struct err err;
    struct pg_connecting *c = calloc(1, sizeof *c);
    if (c == NULL) {
        err_nomem(&pg->connect_err);
        pg->is_connect_due = true;
        pg_kick(pg);
        return;
    }
    pg->connecting = c;
    if (pg_target_find(pg, &c->target, &err) != ERR_NONE) {
        finish(pg, &err, "");
        return;
    }
    shuffle_places(&c->target);
    c->attrs = c->target.attrs;
    if (strcmp(c->attrs, "prefer-standby") == 0) {
        c->attrs = "standby";
        c->has_second_round = true;
    }
    begin_place(pg);
}
