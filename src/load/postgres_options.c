/*
 * postgres_options.c -- what a person can say about a PostgreSQL destination, and what its names may be.
 *
 * Pure functions; any thread.
 */
#include "postgres_internal.h"

#include <stdio.h>
#include <string.h>

#define MOST_CONNECTIONS 16
#define CANCEL_MS 2000 /* a server that goes on for longer after it was asked to stop is left alone */

static const char *const strategies[] = {"delete-and-copy", "truncate-and-insert", "staging-optimized", NULL};

#define OPTION(member) offsetof(struct pgd_options, member)
const struct option pgd_option_table[] = {
    {.name = "url",
     .type = OPT_STRING,
     .offset = OPTION(url),
     .default_text = "",
     .help = "Where the database is, as libpq reads it: `postgres://USER@HOST:PORT/DATABASE?sslmode=…`, or `host=… "
             "dbname=…`. What it leaves out comes from PGHOST and its like, a service, and ~/.pgpass."},
    {.name = "password",
     .type = OPT_SECRET,
     .offset = OPTION(password),
     .default_text = "",
     .help = "Of the user; goes before one in the URL, PGPASSWORD and ~/.pgpass."},
    {.name = "schema",
     .type = OPT_STRING,
     .offset = OPTION(schema),
     .default_text = "public",
     .help = "Where tables go whose flow names no schema, and where chute keeps its own: _chute, _chute_loads, "
             "_chute_tables. Made if it does not exist."},
    {.name = "replace",
     .type = OPT_ENUM,
     .offset = OPTION(replace),
     .default_text = "delete-and-copy",
     .choices = strategies,
     .help = "How `load: replace` replaces. `delete-and-copy`: readers never wait and never see half. "
             "`truncate-and-insert`: no dead rows are left, but readers wait. `staging-optimized`: a new table takes "
             "the place of the old one; views and grants stay with the old one. See docs/postgres.md."},
    {.name = "lock_timeout",
     .type = OPT_DURATION,
     .offset = OPTION(lock_timeout),
     .default_text = "10s",
     .min = 1,
     .max = 24LL * 3600 * 1000,
     .help = "How long one try waits for a lock that others hold; then the load is retried later."},
    {.name = "connect_timeout",
     .type = OPT_DURATION,
     .offset = OPTION(connect_timeout),
     .default_text = "30s",
     .min = 100,
     .max = 3600 * 1000,
     .help = "How long a connection may take, TLS and login included."},
    {.name = "stall_timeout",
     .type = OPT_DURATION,
     .offset = OPTION(stall_timeout),
     .default_text = "10m",
     .min = 1000,
     .max = 24 * 3600 * 1000,
     .help = "A server from which nothing comes and that takes nothing for so long while rows are sent is given up. "
             "Merges and indexes may take as long as they like."},
    {.name = "tls_verify",
     .type = OPT_BOOL,
     .offset = OPTION(tls_verify),
     .default_text = "true",
     .help = "Servers that are not this machine must have a certificate that is believed and names them "
             "(sslmode=verify-full), unless the URL says another sslmode. `false` takes any server, also one without "
             "TLS: whoever is in between reads password and data."},
    {.name = "ca_file",
     .type = OPT_PATH,
     .offset = OPTION(ca_file),
     .help = "PEM file of the only certificate authorities to trust (sslrootcert); empty: ~/.postgresql/root.crt, or "
             "those of the system."},
    {.name = "connections",
     .type = OPT_INT,
     .offset = OPTION(connections),
     .default_text = "2",
     .min = 1,
     .max = MOST_CONNECTIONS,
     .help = "How many tables are loaded at the same time. Each costs the server a process while it runs."},
    {.name = NULL},
};

const char *const pgd_flow_defaults[] = {"table", "{path_stem}",      "names",  "snake", "types",
                                         "infer", "on_schema_change", "reject", NULL};

enum err_code pgd_from_url(const char *url, void *options, struct err *err)
{
    struct pgd_options *o = options;
    if (!pgd_is_uri(url))
        return err_set(err, ERR_CONFIG, false,
                       "expected postgres://USER@HOST/DATABASE; what is left out comes from the environment");
    o->url = url;
    return ERR_NONE;
}

static enum err_code check_schema(const char *schema, struct err *err)
{
    size_t n = strlen(schema);
    if (n == 0 || n > PGD_NAME_BYTES || strchr(schema, '.') != NULL)
        return err_set(err, ERR_CONFIG, false, "schema: expected a name of 1 to %d bytes without a '.', found \"%s\"",
                       PGD_NAME_BYTES, schema);
    if (strncmp(schema, "pg_", 3) == 0)
        return err_set(err, ERR_CONFIG, false, "schema: names that begin with pg_ are the server's own: \"%s\"",
                       schema);
    return ERR_NONE;
}

void pgd_fill_pg_options(const struct pgd_options *o, const struct buf *conninfo, struct pg_options *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->conninfo = conninfo->data;
    ret->password = o->password != NULL && o->password[0] != '\0' ? o->password : NULL;
    ret->connect_timeout_ms = o->connect_timeout;
    ret->stall_timeout_ms = o->stall_timeout;
    ret->cancel_timeout_ms = CANCEL_MS;
}

enum err_code pgd_check(const void *options, struct err *err)
{
    const struct pgd_options *o = options;
    struct pg_options pg;
    struct buf conninfo;
    if (check_schema(o->schema, err) != ERR_NONE)
        return err->code;
    buf_init(&conninfo);
    pgd_add_conninfo(&conninfo, o);
    enum err_code code = conninfo.failed ? err_nomem(err) : ERR_NONE;
    if (code == ERR_NONE) {
        pgd_fill_pg_options(o, &conninfo, &pg);
        code = pg_check(&pg, err);
        if (code != ERR_NONE)
            err_wrap(err, "url");
    }
    buf_done(&conninfo);
    return code;
}

static enum err_code pgd_legal_name(const char *what, const char *name, enum names_policy policy, char *ret,
                                    char *ret_key, size_t size, struct err *err)
{
    char legal[PGD_NAME_BYTES + 1];
    enum err_code code = name_legal(what, name, policy, legal, sizeof(legal), err);
    if (code != ERR_NONE)
        return code;
    if (strlen(legal) >= size)
        return err_set(err, ERR_INPUT, false, "%s name \"%s\" is too long", what, legal);
    memcpy(ret, legal, strlen(legal) + 1);
    memcpy(ret_key, legal, strlen(legal) + 1);
    return ERR_NONE;
}

enum err_code pgd_table_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                             struct err *err)
{
    enum err_code code = pgd_legal_name("table", name, policy, ret, ret_key, size, err);
    if (code == ERR_NONE && strncmp(ret, PGD_PREFIX, strlen(PGD_PREFIX)) == 0)
        return err_set(err, ERR_INPUT, false,
                       "table name \"%s\": names that begin with " PGD_PREFIX
                       " are reserved: rename the file or give the flow another table",
                       ret);
    return code;
}

enum err_code pgd_space_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                             struct err *err)
{
    enum err_code code = pgd_legal_name("schema", name, policy, ret, ret_key, size, err);
    if (code != ERR_NONE)
        return code;
    if (strncmp(ret, "pg_", 3) == 0 || strcmp(ret, "information_schema") == 0)
        return err_set(err, ERR_INPUT, false, "schema name \"%s\" is the server's own: give the flow another one", ret);
    if (strchr(ret, '.') != NULL)
        return err_set(err, ERR_INPUT, false, "schema name \"%s\": expected a name without a '.'", ret);
    return ERR_NONE;
}
