/*
 * pg_conninfo.c -- what to connect to: the text of the configuration, and what libpq adds to it.
 *
 * Why not leave all of it to libpq: it would resolve names on the loop. So we must know the hosts, and they may also
 * come from the environment or a service file. libpq tells what it made of everything when it refuses to connect for
 * one bad parameter: we give it one on purpose. It opens no socket and resolves nothing before it has checked them all.
 * (A service that lies in LDAP is the exception: libpq asks there, and waits.)
 */
#include "pg_internal.h"

#include "log.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define CONNECT_TIMEOUT_MS 30000
#define REFUSED "chute-looks"

static const char *option(const PQconninfoOption *options, const char *key)
{
    for (const PQconninfoOption *o = options; o != NULL && o->keyword != NULL; o++)
        if (strcmp(o->keyword, key) == 0)
            return o->val != NULL ? o->val : "";
    return "";
}

void pg_params_set(struct pg_params *params, const char *key, const char *value)
{
    size_t i = 0;
    while (i < params->count && strcmp(params->keys[i], key) != 0)
        i++;
    if (i == PG_MAX_PARAMS) /* twice as many as libpq knows; what it does not know was refused */
        abort();
    params->keys[i] = key;
    params->values[i] = value;
    if (i == params->count)
        params->keys[++params->count] = NULL;
}

static void add_configured(const struct pg *pg, struct pg_params *params)
{
    pg_params_set(params, "fallback_application_name", "chute");
    for (const PQconninfoOption *o = pg->parsed; o->keyword != NULL; o++)
        if (o->val != NULL)
            pg_params_set(params, o->keyword, o->val);
    if (pg->o.password != NULL)
        pg_params_set(params, "password", pg->o.password);
    if (pg->o.application_name != NULL)
        pg_params_set(params, "application_name", pg->o.application_name);
    pg_params_set(params, "client_encoding", "UTF8");
}

void pg_params_init(const struct pg *pg, struct pg_params *ret_params)
{
    memset(ret_params, 0, sizeof *ret_params);
    add_configured(pg, ret_params);
    /* Encryption by Kerberos may ask a server for tickets, and wait: only for those who want it. */
    if (!pg->wants_gss)
        pg_params_set(ret_params, "gssencmode", "disable");
    /* A machine that is gone is found in two minutes, instead of two hours. */
    if (!pg->wants_keepalives) {
        pg_params_set(ret_params, "keepalives_idle", "60");
        pg_params_set(ret_params, "keepalives_interval", "15");
        pg_params_set(ret_params, "keepalives_count", "4");
    }
    if (!pg->wants_user_timeout)
        pg_params_set(ret_params, "tcp_user_timeout", "120000");
}

/* ---- the text ---------------------------------------------------------------------------------------------------- */

/* The word in quotes of libpq's message, if it is a key: only letters, digits and '_'. */
static bool quoted_key(const char *message, char *ret, size_t size)
{
    const char *from = strchr(message, '"');
    const char *end = from != NULL ? strchr(from + 1, '"') : NULL;
    if (end == NULL || end == from + 1 || (size_t)(end - from) > size)
        return false;
    for (const char *p = from + 1; p < end; p++)
        if (!isalnum((unsigned char)*p) && *p != '_')
            return false;
    snprintf(ret, size, "%.*s", (int)(end - from - 1), from + 1);
    return true;
}

/* libpq quotes what it can't read, which may be a part of a password: only the name of a key is passed on. */
static enum err_code refuse_text(const char *message, struct err *err)
{
    char key[64];
    if ((strstr(message, "invalid connection option") != NULL ||
         strstr(message, "invalid URI query parameter") != NULL) &&
        quoted_key(message, key, sizeof key))
        return err_set(err, ERR_CONFIG, false, "libpq has no connection parameter '%s'", key);
    return err_set(
        err, ERR_CONFIG, false,
        "is no connection string of PostgreSQL: expected postgresql://USER@HOST:PORT/DATABASE?KEY=VALUE with "
        "special characters as %%XX, or KEY='VALUE' …");
}

/* A password with an '@' or a '/' in it makes a URL whose host or port holds the rest of it: don't tell it to DNS. */
static enum err_code check_places(const struct pg *pg, struct err *err)
{
    const char *host = option(pg->parsed, "host"), *port = option(pg->parsed, "port");
    for (const char *at = host; (at = strchr(at, '@')) != NULL; at++)
        if (at != host && at[-1] != ',')
            return err_set(err, ERR_CONFIG, false, "the host holds an '@': in a password of a URL, write %%40 for it");
    if (port[strspn(port, "0123456789,")] != '\0')
        return err_set(
            err, ERR_CONFIG, false,
            "the port is no number: in a password of a URL, write %%2F for '/', %%3F for '?' and %%23 for '#'");
    return ERR_NONE;
}

static enum err_code check_keys(struct pg *pg, struct err *err)
{
    const char *encoding = option(pg->parsed, "client_encoding");
    if (option(pg->parsed, "replication")[0] != '\0')
        return err_set(err, ERR_CONFIG, false, "replication is not for chute: leave it out");
    if (encoding[0] != '\0' && strcasecmp(encoding, "UTF8") != 0 && strcasecmp(encoding, "UTF-8") != 0)
        return err_set(err, ERR_CONFIG, false, "client_encoding is always UTF8: leave it out");
    if (!log_secret(option(pg->parsed, "password")) || !log_secret(option(pg->parsed, "sslpassword")) ||
        (pg->o.password != NULL && !log_secret(pg->o.password)))
        return err_nomem(err);
    return ERR_NONE;
}

enum err_code pg_parse(struct pg *pg, struct err *err)
{
    struct pg_target target;
    char *words = NULL;
    pg->parsed = pg->lib->conninfoParse(pg->o.conninfo, &words);
    if (pg->parsed == NULL) {
        if (words == NULL)
            return err_nomem(err);
        refuse_text(words, err);
        explicit_bzero(words, strlen(words));
        pg->lib->freemem(words);
        return err->code;
    }
    if (check_places(pg, err) != ERR_NONE || check_keys(pg, err) != ERR_NONE)
        return err->code;
    pg_target_find(pg, &target, err);
    pg_target_done(&target);
    return err->code;
}

/* ---- what libpq makes of it -------------------------------------------------------------------------------------- */

/*
 * All that libpq would use, with KEY as it can't be, so that nothing comes of it; to be freed with PQconninfoFree().
 * The database (the user's name if there is none) into RET_DB. NULL: ERR.
 */
static PQconninfoOption *look(const struct pg *pg, const char *key, char *ret_db, size_t size, struct err *err)
{
    struct pg_params params = {.count = 0};
    PQconninfoOption *found = NULL;
    add_configured(pg, &params);
    pg_params_set(&params, key, REFUSED);
    PGconn *conn = pg->lib->connectStartParams(params.keys, params.values, 0);
    if (conn == NULL) {
        err_nomem(err);
        return NULL;
    }
    const char *words = pg->lib->errorMessage(conn);
    if (strstr(words, REFUSED) != NULL) {
        const char *db = pg->lib->db(conn);
        snprintf(ret_db, size, "%s", db != NULL ? db : "");
        found = pg->lib->conninfo(conn);
        if (found == NULL)
            err_nomem(err);
    } else { /* something else can't be, and that is the operator's */
        char line[300];
        snprintf(line, sizeof line, "%.*s", (int)strcspn(words, "\n"), words);
        log_redact(line);
        err_set(err, ERR_CONFIG, false, "%s", line);
    }
    pg->lib->finish(conn);
    return found;
}

/* The Nth of a list with commas, malloc'ed; "" behind its end. */
static char *nth(const char *list, size_t n)
{
    for (; n > 0 && list[0] != '\0'; n--) {
        list += strcspn(list, ",");
        list += list[0] == ',';
    }
    return strndup(list, strcspn(list, ","));
}

static size_t count(const char *list)
{
    size_t n = 1;
    for (; *list != '\0'; list++)
        n += *list == ',';
    return n;
}

static enum err_code split(const char *hosts, const char *addresses, const char *ports, struct pg_target *target,
                           struct err *err)
{
    size_t n = hosts[0] != '\0' ? count(hosts) : count(addresses);
    target->places = calloc(n, sizeof *target->places);
    if (target->places == NULL)
        return err_nomem(err);
    target->count = n;
    for (size_t i = 0; i < n; i++) {
        struct pg_place *place = &target->places[i];
        place->host = nth(hosts, i);
        place->address = nth(addresses, i);
        place->port = nth(ports, count(ports) > 1 ? i : 0);
        if (place->host == NULL || place->address == NULL || place->port == NULL)
            return err_nomem(err);
        if (n > 1 && place->host[0] == '\0' && place->address[0] == '\0')
            return err_set(err, ERR_CONFIG, false, "host has an empty entry: number %zu of %zu", i + 1, n);
    }
    return ERR_NONE;
}

static enum err_code find_timeout(const struct pg *pg, const char *seconds, uint64_t *ret_ms, struct err *err)
{
    char *end;
    long value = strtol(seconds, &end, 10);
    if (*end != '\0' || value > 1000000)
        return err_set(err, ERR_CONFIG, false, "connect_timeout must be a number of seconds, not '%s'", seconds);
    if (pg->o.connect_timeout_ms > 0)
        *ret_ms = pg->o.connect_timeout_ms;
    else
        *ret_ms = value > 0 ? (uint64_t)value * 1000 : CONNECT_TIMEOUT_MS;
    return ERR_NONE;
}

static void note_where(struct pg *pg, const struct pg_target *target)
{
    const struct pg_place *first = &target->places[0];
    const char *host = first->host[0] != '\0' ? first->host : first->address;
    pg_note_where(pg, host, first->port);
    size_t length = strlen(pg->where);
    if (target->count > 1)
        snprintf(pg->where + length, sizeof pg->where - length, " (one of %zu)", target->count);
}

void pg_note_where(struct pg *pg, const char *host, const char *port)
{
    if (host[0] == '/' || host[0] == '@')
        snprintf(pg->where, sizeof pg->where, "%s on %s", pg->db, host);
    else if (host[0] == '\0')
        snprintf(pg->where, sizeof pg->where, "%s on the local socket", pg->db);
    else
        snprintf(pg->where, sizeof pg->where, "%s on %s:%s", pg->db, host, port[0] != '\0' ? port : "5432");
}

static enum err_code find(struct pg *pg, const PQconninfoOption *all, struct pg_target *target, struct err *err)
{
    snprintf(target->attrs, sizeof target->attrs, "%s", option(all, "target_session_attrs"));
    target->is_random = strcmp(option(all, "load_balance_hosts"), "random") == 0; /* since libpq 16 */
    pg->wants_keepalives = option(all, "keepalives_idle")[0] != '\0' || option(all, "keepalives_interval")[0] != '\0' ||
                           option(all, "keepalives_count")[0] != '\0';
    pg->wants_user_timeout = option(all, "tcp_user_timeout")[0] != '\0';
    if (find_timeout(pg, option(all, "connect_timeout"), &target->timeout_ms, err) != ERR_NONE ||
        split(option(all, "host"), option(all, "hostaddr"), option(all, "port"), target, err) != ERR_NONE)
        return err->code;
    note_where(pg, target);
    return ERR_NONE;
}

enum err_code pg_target_find(struct pg *pg, struct pg_target *ret_target, struct err *err)
{
    memset(ret_target, 0, sizeof *ret_target);
    err_clear(err);
    /* Twice, since the parameter that we spoil is one that we don't see. gssencmode is checked before
     * target_session_attrs, and that one last of all. */
    PQconninfoOption *all = look(pg, "target_session_attrs", pg->db, sizeof pg->db, err);
    if (all == NULL)
        return err->code;
    pg->wants_gss = option(pg->parsed, "gssencmode")[0] != '\0' || strcmp(option(all, "gssencmode"), "prefer") != 0;
    pg->lib->conninfoFree(all);
    all = look(pg, "gssencmode", pg->db, sizeof pg->db, err);
    if (all == NULL)
        return err->code;
    find(pg, all, ret_target, err);
    pg->lib->conninfoFree(all);
    return err->code;
}

void pg_target_done(struct pg_target *target)
{
    for (size_t i = 0; i < target->count; i++) {
        free(target->places[i].host);
        free(target->places[i].address);
        free(target->places[i].port);
    }
    free(target->places);
    target->places = NULL;
    target->count = 0;
}
