/*
 * source_remote.c -- files on FTP and SFTP servers: options, open and close, health.
 *
 * Nothing is watched and nothing is remembered: scan() lists, fetch() brings, run_errand() puts away; when to scan is
 * the engine's to say. One curl multi handle for each source, so that its connections are used again.
 */
#include "remote_internal.h"
#include "source_remote.h"

#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

static const char *const tls_words[] = {"explicit", "implicit", NULL};

#define AT(member) offsetof(struct remote_options, member)
#define OPTION_URL(example)                                                                                            \
    {                                                                                                                  \
        .name = "url", .type = OPT_STRING, .offset = AT(url), .flags = OPT_REQUIRED,                                   \
        .help = "The server and the folder that is the root of all paths, such as `" example                           \
                "`. A password in it is refused."                                                                      \
    }
#define OPTION_USER(otherwise)                                                                                         \
    {.name = "user",                                                                                                   \
     .type = OPT_STRING,                                                                                               \
     .offset = AT(user),                                                                                               \
     .default_text = "",                                                                                               \
     .help = "Who logs in; also as USER@ in the url. " otherwise},                                                     \
    {                                                                                                                  \
        .name = "password", .type = OPT_SECRET, .offset = AT(password), .help = "The user's password."                 \
    }
#define OPTION_PATHS                                                                                                   \
    {                                                                                                                  \
        .name = "paths", .type = OPT_STRINGS, .offset = AT(paths), .default_text = "[\"/**\"]",                        \
        .help = "Globs of the files that are looked for, below the root of the url. Only folders that they can reach " \
                "into are listed. What a flow takes of them is its `include`."                                         \
    }
#define OPTION_SCHEDULE                                                                                                \
    {.name = "every",                                                                                                  \
     .type = OPT_DURATION,                                                                                             \
     .offset = AT(every_ms),                                                                                           \
     .min = 1000,                                                                                                      \
     .max = INT64_C(366) * 86400000,                                                                                   \
     .help = "How often the server is asked, counted from the beginning of a run. Two runs never overlap; one that "   \
             "was missed is made up for once. Without `every` and `cron`: once at each start."},                       \
        {.name = "cron",                                                                                               \
         .type = OPT_STRING,                                                                                           \
         .offset = AT(cron),                                                                                           \
         .default_text = "",                                                                                           \
         .help = "When instead: minute, hour, day of the month, month, day of the week, in `timezone`, such as "       \
                 "`0 * * * *`."},                                                                                      \
        {.name = "settle",                                                                                             \
         .type = OPT_DURATION,                                                                                         \
         .offset = AT(settle_ms),                                                                                      \
         .default_text = "5s",                                                                                         \
         .max = 86400000,                                                                                              \
         .help = "How far apart two listings must agree about a file before it is taken for whole."},                  \
        {.name = "ready_marker",                                                                                       \
         .type = OPT_STRING,                                                                                           \
         .offset = AT(ready_marker),                                                                                   \
         .default_text = "",                                                                                           \
         .help = "A file is taken when this one stands beside it, for example \"{name}.done\". Empty: no marker."},    \
    {                                                                                                                  \
        .name = "jobs", .type = OPT_INT, .offset = AT(jobs), .max = 64,                                                \
        .help = "Files that are fetched at the same time, each on a connection of its own. Default: `limits.jobs`."    \
    }
#define OPTION_TIMES                                                                                                   \
    {.name = "connect_timeout",                                                                                        \
     .type = OPT_DURATION,                                                                                             \
     .offset = AT(connect_timeout_ms),                                                                                 \
     .default_text = "30s",                                                                                            \
     .min = 100,                                                                                                       \
     .max = 3600000,                                                                                                   \
     .help = "How long a connection and the login may take."},                                                         \
        {.name = "stall_timeout",                                                                                      \
         .type = OPT_DURATION,                                                                                         \
         .offset = AT(stall_timeout_ms),                                                                               \
         .default_text = "60s",                                                                                        \
         .min = 1000,                                                                                                  \
         .max = 3600000,                                                                                               \
         .help = "A transfer of which no byte came for so long is broken off, and goes on later."},                    \
    {                                                                                                                  \
        .name = "proxy", .type = OPT_STRING, .offset = AT(proxy), .default_text = "",                                  \
        .help = "Proxy for all connections, such as `socks5://host:1080`. The environment's is not used."              \
    }

static const struct option ftp_table[] = {
    OPTION_URL("ftp://files.example.org/out"),
    OPTION_USER("Without one: anonymous."),
    OPTION_PATHS,
    OPTION_SCHEDULE,
    OPTION_TIMES,
    {.name = NULL},
};
static const struct option ftps_table[] = {
    OPTION_URL("ftps://files.example.org/out"),
    OPTION_USER("Without one: anonymous."),
    OPTION_PATHS,
    OPTION_SCHEDULE,
    OPTION_TIMES,
    {.name = "tls",
     .type = OPT_ENUM,
     .offset = AT(tls),
     .default_text = "explicit",
     .choices = tls_words,
     .help = "How TLS begins: by AUTH TLS on port 21, or at once on port 990."},
    {.name = "tls_verify",
     .type = OPT_BOOL,
     .offset = AT(tls_verify),
     .default_text = "true",
     .help = "Is the server's certificate checked? Without it anyone on the way can be the server."},
    {.name = "ca_file",
     .type = OPT_PATH,
     .offset = AT(ca_file),
     .help = "Certificates that are trusted, PEM. Default: the system's."},
    {.name = NULL},
};
static const struct option sftp_table[] = {
    OPTION_URL("sftp://reader@files.example.org/out"),
    OPTION_USER("Required."),
    {.name = "private_key_file",
     .type = OPT_PATH,
     .offset = AT(private_key_file),
     .help = "The user's private key (OpenSSH or PEM; Ed25519, ECDSA). Without a key and a password the ssh-agent of "
             "SSH_AUTH_SOCK is asked."},
    {.name = "passphrase",
     .type = OPT_SECRET,
     .offset = AT(passphrase),
     .help = "What the private key is locked with."},
    {.name = "known_hosts",
     .type = OPT_STRING,
     .offset = AT(known_hosts),
     .default_text = "${HOME:-/root}/.ssh/known_hosts",
     .help = "The host keys that are trusted, as OpenSSH keeps them. An unknown or another key is refused, and told "
             "with its fingerprint; `chute check --connect` shows it too."},
    OPTION_PATHS,
    OPTION_SCHEDULE,
    OPTION_TIMES,
    {.name = NULL},
};

/* ---- check ---- */

static enum err_code check(enum remote_kind kind, const void *options, struct err *err)
{
    static const char *const schemes[][3] = {{"ftp", NULL}, {"ftps", "ftp", NULL}, {"sftp", NULL}};
    const struct remote_options *o = options;
    struct remote_url url;
    if (remote_url_parse(o->url, schemes[kind], &url, err) != ERR_NONE ||
        remote_globs_check(&o->paths, err) != ERR_NONE)
        return err->code;
    if (url.user[0] != '\0' && o->user[0] != '\0' && strcmp(url.user, o->user) != 0)
        return err_set(err, ERR_CONFIG, false, "user: the url names another one");
    const char *user = o->user[0] != '\0' ? o->user : url.user;
    if (kind == REMOTE_SFTP && user[0] == '\0')
        return err_set(err, ERR_CONFIG, false, "user: expected one, here or in the url: SFTP knows no anonymous login");
    if (user[0] == '\0' && o->password != NULL && o->password[0] != '\0')
        return err_set(err, ERR_CONFIG, false, "user: there is a password and nobody it belongs to");
    if (o->paths.count == 0)
        return err_set(err, ERR_CONFIG, false, "paths: expected at least one glob, such as \"/**\"");
    return ERR_NONE;
}

static enum err_code check_ftp(const void *options, struct err *err)
{
    return check(REMOTE_FTP, options, err);
}
static enum err_code check_ftps(const void *options, struct err *err)
{
    return check(REMOTE_FTPS, options, err);
}
static enum err_code check_sftp(const void *options, struct err *err)
{
    return check(REMOTE_SFTP, options, err);
}

static unsigned port_of(enum remote_kind kind, const struct remote_options *o, const struct remote_url *url)
{
    static const unsigned ports[] = {21, 21, 22};
    return url->port != 0 ? url->port : kind == REMOTE_FTPS && o->tls == 1 ? 990 : ports[kind];
}

/* ---- open ---- */

static enum err_code check_protocol(const struct curl_lib *curl, const char *protocol, struct err *err)
{
    const curl_version_info_data *info = curl->version_info(CURLVERSION_NOW);
    for (const char *const *p = info->protocols; *p != NULL; p++)
        if (strcmp(*p, protocol) == 0)
            return ERR_NONE;
    return err_set(err, ERR_CONFIG, false,
                   "libcurl %s was built without %s; install one that has it (Debian: libcurl4)", info->version,
                   protocol);
}

static enum err_code open_kind(enum remote_kind kind, const void *options, const struct source_env *env,
                               uv_loop_t *loop, const struct source_sink *sink,
                               bool (*wants)(void *arg, const char *path), void *wants_arg, void **ret_state,
                               struct err *err)
{
    static const char *const schemes[][3] = {{"ftp", NULL}, {"ftps", "ftp", NULL}, {"sftp", NULL}};
    const struct curl_lib *curl;
    if (curl_lib_load(&curl, err) != ERR_NONE || check_protocol(curl, schemes[kind][0], err) != ERR_NONE)
        return err->code;
    struct remote *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_nomem(err);
    const struct remote_options *o = options;
    r->options = o;
    r->kind = kind;
    r->type = schemes[kind][0];
    r->curl = curl;
    r->loop = loop;
    r->sink = *sink;
    r->wants = wants;
    r->wants_arg = wants_arg;
    r->download_rate = env->download_rate;
    r->jobs = o->jobs > 0 ? (unsigned)o->jobs : env->jobs > 0 ? env->jobs : 1;
    if (remote_url_parse(o->url, schemes[kind], &r->url, err) != ERR_NONE) {
        free(r);
        return err->code;
    }
    r->port = port_of(kind, o, &r->url);
    bool is_ipv6 = strchr(r->url.host, ':') != NULL;
    snprintf(r->where, sizeof r->where, "%s://%s%s%s:%u", r->type, is_ipv6 ? "[" : "", r->url.host, is_ipv6 ? "]" : "",
             r->port);
    r->health = (struct source_health){
        .mode = "asked", .reason = "", .evidence = "age", .is_reachable = true, .is_ready = true};
    const struct curl_loop_user user = {.arg = r, .done = remote_easy_done, .broken = remote_easy_broken};
    /* one for the scan, one for questions, one for errands */
    if (curl_loop_open(loop, curl, &user, r->jobs + 3, &r->multi, err) != ERR_NONE) {
        free(r);
        return err->code;
    }
    uv_idle_init(loop, &r->kick);
    uv_timer_init(loop, &r->pace);
    uv_timer_init(loop, &r->tick);
    r->kick.data = r->pace.data = r->tick.data = r;
    r->handles = 4; /* with the multi */
    *ret_state = r;
    return ERR_NONE;
}

#define OPEN(name, kind)                                                                                               \
    static enum err_code name(const void *options, const struct source_env *env, uv_loop_t *loop,                      \
                              const struct source_sink *sink, int max_depth, const char *const *avoid,                 \
                              bool (*wants)(void *arg, const char *path), void *wants_arg, void **ret_state,           \
                              struct err *err)                                                                         \
    {                                                                                                                  \
        (void)max_depth; /* `paths` say where to look */                                                               \
        (void)avoid;     /* folders of this machine */                                                                 \
        return open_kind(kind, options, env, loop, sink, wants, wants_arg, ret_state, err);                            \
    }
OPEN(open_ftp, REMOTE_FTP)
OPEN(open_ftps, REMOTE_FTPS)
OPEN(open_sftp, REMOTE_SFTP)

static void scan(void *state)
{
    struct remote *r = state;
    r->must_scan = true;
    remote_kick(r);
}

static void scan_resume(void *state)
{
    remote_scan_resume(state);
}

static void get_health(void *state, struct source_health *ret_health)
{
    *ret_health = ((struct remote *)state)->health;
}

static enum err_code probe(void *state, struct probe *probes, size_t count, probe_cb *cb, void *arg, struct err *err)
{
    return remote_probe(state, probes, count, cb, arg, err);
}

static enum err_code fetch(void *state, struct fetch *f, struct err *err)
{
    return remote_fetch(state, f, err);
}

static void abort_fetch(void *state, struct fetch *f)
{
    remote_abort_fetch(state, f);
}

static enum err_code run_errand(void *state, struct source_errand *errand, struct err *err)
{
    return remote_errand(state, errand, err);
}

static bool place(const void *options, char *ret_host, size_t size, unsigned *ret_port)
{
    const struct remote_options *o = options;
    struct remote_url url;
    struct err err = {0};
    static const char *const schemes[] = {"ftp", "ftps", "sftp", NULL};
    if (remote_url_parse(o->url, schemes, &url, &err) != ERR_NONE)
        return false;
    bool is_sftp = strncmp(o->url, "sftp:", 5) == 0, is_implicit = strncmp(o->url, "ftps:", 5) == 0 && o->tls == 1;
    snprintf(ret_host, size, "%s", url.host);
    *ret_port = port_of(is_sftp ? REMOTE_SFTP : is_implicit ? REMOTE_FTPS : REMOTE_FTP, o, &url);
    return true;
}

/* ---- close ---- */

static void abort_all(struct remote *r)
{
    struct call *call;
    DL_FOREACH(r->calls, call)
        call_abort(call);
    remote_kick(r);
}

static void hurry(void *state)
{
    struct remote *r = state;
    r->is_hurried = true;
    abort_all(r);
}

static void count_closed(void *arg)
{
    struct remote *r = arg;
    if (--r->handles > 0)
        return;
    void (*closed)(void *) = r->closed;
    void *closed_arg = r->closed_arg;
    free(r);
    closed(closed_arg);
}

static void on_handle_closed(uv_handle_t *handle)
{
    count_closed(handle->data);
}

void remote_maybe_closed(struct remote *r)
{
    if (!r->is_closing || r->multi == NULL)
        return;
    remote_scan_free(r);
    if (r->calls != NULL || r->fetches != NULL || r->questions != NULL || r->errands != NULL || r->scan != NULL)
        return;
    remote_drop_spare(r);
    struct curl_loop *multi = r->multi;
    r->multi = NULL;
    curl_loop_close(multi, count_closed, r);
    uv_close((uv_handle_t *)&r->kick, on_handle_closed);
    uv_close((uv_handle_t *)&r->pace, on_handle_closed);
    uv_close((uv_handle_t *)&r->tick, on_handle_closed);
}

static void close_source(void *state, void (*closed)(void *arg), void *arg)
{
    struct remote *r = state;
    r->is_closing = true;
    r->closed = closed;
    r->closed_arg = arg;
    abort_all(r);
}

#define SOURCE(scheme, what, table, open_it, check_it)                                                                 \
    {                                                                                                                  \
        .type = scheme, .summary = what, .options = table, .options_size = sizeof(struct remote_options),              \
        .check = check_it, .open = open_it, .scan = scan, .scan_resume = scan_resume, .health = get_health,            \
        .probe = probe, .fetch = fetch, .abort_fetch = abort_fetch, .run_errand = run_errand, .hurry = hurry,          \
        .place = place, .close = close_source,                                                                         \
    }
const struct source_ops source_ftp = SOURCE("ftp", "files on an FTP server", ftp_table, open_ftp, check_ftp);
const struct source_ops source_ftps =
    SOURCE("ftps", "files on an FTP server, over TLS", ftps_table, open_ftps, check_ftps);
const struct source_ops source_sftp =
    SOURCE("sftp", "files on an SSH server, by SFTP", sftp_table, open_sftp, check_sftp);
