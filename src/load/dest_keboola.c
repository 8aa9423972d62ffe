/*
 * dest_keboola.c -- Keboola Storage: a folder is a bucket, a CSV is a table. See dest.h and keboola_internal.h.
 *
 * Nothing is linked for it: libcurl and libcrypto are loaded when such a destination is opened.
 */
#include "keboola_internal.h"

#include "clock.h"
#include "log.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

const char *const keboola_stages[] = {"in", "out", NULL};

#define OPTION(member) offsetof(struct keboola_options, member)
#define KEBOOLA_MIB ((int64_t)1024 * 1024)
static const struct option option_table[] = {
    {.name = "url",
     .type = OPT_STRING,
     .offset = OPTION(url),
     .flags = OPT_REQUIRED,
     .help = "The stack, such as `https://connection.keboola.com`. `http://` is for this machine only."},
    {.name = "token",
     .type = OPT_SECRET,
     .offset = OPTION(token),
     .flags = OPT_REQUIRED,
     .help = "A Storage API token. It needs the right to manage buckets, or to write to those that exist."},
    {.name = "stage",
     .type = OPT_ENUM,
     .offset = OPTION(stage),
     .default_text = "in",
     .choices = keboola_stages,
     .help = "Which stage the buckets are in."},
    {.name = "branch",
     .type = OPT_STRING,
     .offset = OPTION(branch),
     .default_text = "",
     .help = "Number of a development branch; the production branch if empty."},
    {.name = "gzip_above",
     .type = OPT_SIZE,
     .offset = OPTION(gzip_above),
     .default_text = "50MiB",
     .help = "Larger files are compressed while they are uploaded."},
    {.name = "slice_above",
     .type = OPT_SIZE,
     .offset = OPTION(slice_above),
     .default_text = "1900MiB",
     .min = 64 * 1024,
     .max = KEBOOLA_MIB * 1024 * 1024 * 1024,
     .help = "Larger files go up as slices of that size, cut between records."},
    {.name = "s3_endpoint",
     .type = OPT_STRING,
     .offset = OPTION(s3_endpoint),
     .default_text = "",
     .help = "Base URL of a private store that speaks S3, for stacks that have one; empty: Amazon's."},
    {.name = "gcs_endpoint",
     .type = OPT_STRING,
     .offset = OPTION(gcs_endpoint),
     .default_text = "",
     .help = "Base URL of a private store that speaks Google Cloud Storage; empty: Google's."},
    {.name = "tls_verify",
     .type = OPT_BOOL,
     .offset = OPTION(tls_verify),
     .default_text = "true",
     .help = "`false` believes any certificate: whoever is in between reads token and data."},
    {.name = "ca_file",
     .type = OPT_PATH,
     .offset = OPTION(ca_file),
     .help = "PEM file of the only certificate authorities to trust; empty: those of the system."},
    {.name = "proxy",
     .type = OPT_STRING,
     .offset = OPTION(proxy),
     .default_text = "",
     .help = "URL of a proxy (http, https, socks5, socks5h), or `none`; empty: what https_proxy and no_proxy say."},
    {.name = "connect_timeout",
     .type = OPT_DURATION,
     .offset = OPTION(connect_timeout),
     .default_text = "30s",
     .min = 100,
     .max = 3600 * 1000,
     .help = "How long a connection may take, name and TLS included."},
    {.name = "stall_timeout",
     .type = OPT_DURATION,
     .offset = OPTION(stall_timeout),
     .default_text = "2m",
     .min = 1000,
     .max = 24 * 3600 * 1000,
     .help = "A request during which no byte moves for so long has failed; there is no limit for all of it."},
    {.name = NULL}};

static const char *const flow_defaults[] = {
    "include", "[\"*/*.csv{,.gz,.zst}\"]", "bucket", "{folder}", "table", "{stem}", "names", "keboola", "types",
    "text",    "on_schema_change",         "reject", NULL};

/* ---- options ---- */

static bool is_loopback(const char *host, size_t n)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == n && strncasecmp(names[i], host, n) == 0)
            return true;
    return false;
}

static bool is_plain_http(const char *url, const char *ret_host[1], size_t *ret_size)
{
    bool is_http = strncasecmp(url, "http://", 7) == 0;
    const char *host = url + (is_http ? 7 : 8);
    *ret_host = host;
    *ret_size = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/?#");
    return is_http;
}

static enum err_code check_url(const char *name, const char *url, bool insecure, struct err *err)
{
    const char *host;
    size_t n;
    if (strncasecmp(url, "https://", 8) != 0 && strncasecmp(url, "http://", 7) != 0)
        return err_set(err, ERR_CONFIG, false, "%s: expected a URL that begins with https://", name);
    bool is_http = is_plain_http(url, &host, &n);
    if (n == 0 || strchr(host, '@') != NULL || strpbrk(host, "?# ") != NULL)
        return err_set(err, ERR_CONFIG, false, "%s: expected https://HOST, without user, query or spaces", name);
    if (is_http && !insecure && !is_loopback(host, n))
        return err_set(err, ERR_CONFIG, false,
                       "%s: http:// would send the token in clear over the network: use https://, or say `tls_verify: "
                       "false` if that is meant",
                       name);
    return ERR_NONE;
}

static enum err_code keboola_check(const void *options, struct err *err)
{
    const struct keboola_options *o = options;
    if (check_url("url", o->url, !o->tls_verify, err) != ERR_NONE ||
        (o->s3_endpoint[0] != '\0' && check_url("s3_endpoint", o->s3_endpoint, !o->tls_verify, err) != ERR_NONE) ||
        (o->gcs_endpoint[0] != '\0' && check_url("gcs_endpoint", o->gcs_endpoint, !o->tls_verify, err) != ERR_NONE))
        return err->code;
    if (strspn(o->branch, "0123456789") != strlen(o->branch) && strcmp(o->branch, "default") != 0)
        return err_set(err, ERR_CONFIG, false, "branch: expected a number, or default");
    size_t n = strlen(o->token);
    if (n == 0)
        return err_set(err, ERR_CONFIG, false, "token: is empty");
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)o->token[i] <= ' ' || (unsigned char)o->token[i] >= 0x7f)
            return err_set(err, ERR_CONFIG, false, "token: has a character that no token has (a space, a line end?)");
    return ERR_NONE;
}

/* "keboola+https://HOST"; the token is in the environment. */
static enum err_code keboola_from_url(const char *url, void *options, struct err *err)
{
    struct keboola_options *o = options;
    const char *token = getenv("KBC_TOKEN");
    o->url = url + strlen("keboola+");
    if (token == NULL || token[0] == '\0')
        return err_set(err, ERR_CONFIG, false, "KBC_TOKEN is not set: export KBC_TOKEN=<Storage API token>");
    if (!log_secret(token))
        return err_nomem(err);
    o->token = token;
    return ERR_NONE;
}

static enum err_code keboola_check_flow(const struct load_plan *plan, const char **ret_option, struct err *err)
{
    if (plan->mode == MODE_KEEP_FIRST || plan->mode == MODE_NEWEST) {
        *ret_option = "load";
        return err_set(err, ERR_CONFIG, false, "Keboola Storage can replace, append and upsert");
    }
    if (plan->row_number[0] != '\0') {
        *ret_option = "row_number";
        return err_set(err, ERR_CONFIG, false, "files go to Keboola as they are, no column can be added");
    }
    if (plan->on_schema_change == SCHEMA_RECREATE) {
        *ret_option = "on_schema_change";
        return err_set(
            err, ERR_CONFIG, false,
            "recreate is not possible in Keboola: between drop and create there would be no table; reject or "
            "add_columns");
    }
    return ERR_NONE;
}

static uint64_t keboola_slice_bytes(const void *options)
{
    return ((const struct keboola_options *)options)->slice_above;
}

/* ---- life ---- */

static void part_closed(struct keboola *k)
{
    if (--k->open_parts > 0)
        return;
    void (*closed)(void *) = k->closed;
    void *arg = k->closed_arg;
    buckets_done(k);
    arena_done(&k->rights);
    if (k->token_header != NULL)
        explicit_bzero(k->token_header, strlen(k->token_header));
    free(k->token_header);
    free(k->base);
    free(k);
    closed(arg);
}

static void on_timer_closed(uv_handle_t *handle)
{
    part_closed(handle->data);
}

static void on_http_closed(void *arg)
{
    struct keboola *k = arg;
    uv_close((uv_handle_t *)&k->connecting.timer, on_timer_closed);
    part_closed(k);
}

/* Uploads use http, so they go first. */
static void on_uploader_closed(void *arg)
{
    struct keboola *k = arg;
    http_close(k->http, on_http_closed, k);
    part_closed(k);
}

static enum err_code make_texts(struct keboola *k, struct err *err)
{
    const char *url = k->options->url;
    size_t n = strlen(url);
    while (n > 0 && url[n - 1] == '/')
        n--;
    if (asprintf(&k->base, "%.*s/v2/storage/", (int)n, url) < 0)
        k->base = NULL;
    if (asprintf(&k->token_header, "X-StorageApi-Token: %s", k->options->token) < 0)
        k->token_header = NULL;
    return k->base != NULL && k->token_header != NULL ? ERR_NONE : err_nomem(err);
}

static enum err_code keboola_open(const void *options, const struct dest_env *env, uv_loop_t *loop, void **ret_state,
                                  struct err *err)
{
    const struct keboola_options *o = options;
    struct keboola *k = calloc(1, sizeof *k);
    if (k == NULL)
        return err_nomem(err);
    k->options = o;
    k->loop = loop;
    arena_init(&k->rights);
    const struct http_options http = {.proxy = o->proxy[0] != '\0' ? o->proxy : NULL,
                                      .ca_file = o->ca_file,
                                      .tls_insecure = !o->tls_verify,
                                      .connect_timeout_ms = o->connect_timeout,
                                      .stall_timeout_ms = o->stall_timeout,
                                      .max_connections = 2 * env->jobs + 2,
                                      .upload_rate = env->upload_rate};
    const struct uploader_limits limits = {.parallel = env->jobs, .buffer_bytes = env->buffer_bytes};
    if (make_texts(k, err) != ERR_NONE || http_open(loop, &http, &k->http, err) != ERR_NONE)
        goto free_state;
    if (uploader_open(loop, k->http, &limits, &k->uploader, err) != ERR_NONE) {
        http_close(k->http, NULL, NULL);
        goto free_state;
    }
    uv_timer_init(loop, &k->connecting.timer);
    k->connecting.timer.data = k;
    k->open_parts = 3;
    *ret_state = k;
    return ERR_NONE;
free_state:
    free(k->token_header);
    free(k->base);
    free(k);
    return err->code;
}

static void close_now(struct keboola *k)
{
    if (k->is_closing && k->loads == 0 && k->uploader != NULL) {
        struct uploader *up = k->uploader;
        k->uploader = NULL;
        uploader_close(up, on_uploader_closed, k);
    }
}

void keboola_load_over(struct keboola *k)
{
    k->loads--;
    close_now(k);
}

static void keboola_close(void *state, void (*closed)(void *arg), void *arg)
{
    struct keboola *k = state;
    k->closed = closed;
    k->closed_arg = arg;
    k->is_closing = true;
    close_now(k);
}

/* ---- connect: what the token may do ---- */

static const char *shown_text(struct json_object *o, const char *key, char *ret, size_t size)
{
    const char *s = api_text(o, key);
    return text_printable(s != NULL ? s : "", ret, size);
}

static void read_rights(struct keboola *k, struct json_object *token)
{
    struct json_object *map = api_member(token, "bucketPermissions");
    arena_done(&k->rights);
    arena_init(&k->rights);
    k->permits = NULL;
    k->permit_count = 0;
    k->can_manage_buckets = api_flag(token, "canManageBuckets") || api_flag(token, "isMasterToken");
    if (!json_object_is_type(map, json_type_object))
        return;
    k->permits = arena_alloc(&k->rights, (size_t)json_object_object_length(map) * sizeof *k->permits);
    struct json_object_iterator at = json_object_iter_begin(map), end = json_object_iter_end(map);
    for (; !json_object_iter_equal(&at, &end); json_object_iter_next(&at)) {
        const char *text = json_object_get_string(json_object_iter_peek_value(&at));
        if (k->permits == NULL || text == NULL)
            continue;
        struct permit p = {arena_strdup(&k->rights, json_object_iter_peek_name(&at)), arena_strdup(&k->rights, text)};
        if (p.bucket != NULL && p.level != NULL)
            k->permits[k->permit_count++] = p;
    }
}

static bool may_write_somewhere(const struct keboola *k)
{
    for (size_t i = 0; i < k->permit_count; i++)
        if (strcmp(k->permits[i].level, "read") != 0)
            return true;
    return k->can_manage_buckets;
}

/* The project is the destination's identity: with another one, everything has to go there again. */
static void identify(struct keboola *k, const char *project)
{
    uint64_t h = UINT64_C(14695981039346656037);
    const char *parts[] = {k->base, project, keboola_stages[k->options->stage], k->options->branch};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        for (const char *s = parts[i];; s++) {
            h = (h ^ (unsigned char)*s) * UINT64_C(1099511628211);
            if (*s == '\0')
                break;
        }
    snprintf(k->identity, sizeof k->identity, "%016llx", (unsigned long long)h);
}

static void read_token(struct keboola *k, struct json_object *token, struct err *err)
{
    struct json_object *owner = api_member(token, "owner");
    char id[32], description[64], project[32], name[64];
    shown_text(token, "id", id, sizeof id);
    shown_text(token, "description", description, sizeof description);
    shown_text(owner, "id", project, sizeof project);
    shown_text(owner, "name", name, sizeof name);
    snprintf(k->token_name, sizeof k->token_name, "%s%s%s%s", id, description[0] != '\0' ? " (" : "", description,
             description[0] != '\0' ? ")" : "");
    if (id[0] == '\0' || project[0] == '\0') {
        err_set(err, ERR_REMOTE, true,
                "tokens/verify: the answer is not that of the Storage API: is `url` the right stack?");
        return;
    }
    snprintf(k->project, sizeof k->project, "%s%s%s%s", project, name[0] != '\0' ? " (" : "", name,
             name[0] != '\0' ? ")" : "");
    shown_text(owner, "fileStorageProvider", k->provider, sizeof k->provider);
    shown_text(owner, "defaultBackend", k->backend, sizeof k->backend);
    read_rights(k, token);
    identify(k, project);
    if (api_flag(token, "isExpired"))
        err_set(err, ERR_DENIED, false, "token %s has expired; make a new one in Keboola", k->token_name);
    else if (api_flag(token, "isDisabled") || api_flag(owner, "isDisabled"))
        err_set(err, ERR_DENIED, false, "%s %s is disabled in Keboola",
                api_flag(token, "isDisabled") ? "token" : "project",
                api_flag(token, "isDisabled") ? k->token_name : k->project);
    else if (!may_write_somewhere(k))
        err_set(
            err, ERR_DENIED, false,
            "token %s may neither manage buckets nor write to any: give it canManageBuckets, or write permission for "
            "the buckets that exist",
            k->token_name);
    k->is_open = err->code == ERR_NONE;
}

static void tell_connected(struct keboola *k)
{
    dest_cb *cb = k->connecting.cb;
    k->connecting.cb = NULL;
    cb(k->connecting.arg, k->connecting.err.code != ERR_NONE ? &k->connecting.err : NULL);
}

static void on_verified(void *arg, const struct api_reply *r)
{
    struct keboola *k = arg;
    k->connecting.call = NULL;
    k->connecting.err = r->err;
    k->is_open = false;
    if (r->err.code == ERR_NONE)
        read_token(k, r->json, &k->connecting.err);
    else if (r->err.code == ERR_INPUT ||
             (r->status >= 400 && r->status < 500 && !r->is_api && r->err.code == ERR_REMOTE))
        err_set(&k->connecting.err, ERR_REMOTE, true, "%s; is `url` the right stack?", r->err.text);
    else if (!r->err.retryable && r->err.code != ERR_DENIED && r->err.code != ERR_STOPPED)
        k->connecting.err.retryable = true; /* a certificate may be mended, too */
    tell_connected(k);
}

static void on_connect_timer(uv_timer_t *timer)
{
    tell_connected(timer->data);
}

static void keboola_connect(void *state, dest_cb *cb, void *arg)
{
    struct keboola *k = state;
    k->connecting.cb = cb;
    k->connecting.arg = arg;
    k->pause_until_ms = 0;
    k->until[0] = '\0';
    err_clear(&k->connecting.err);
    if (api_start(k, "GET", "tokens/verify", NULL, false, on_verified, k, &k->connecting.call, &k->connecting.err) !=
        ERR_NONE)
        uv_timer_start(&k->connecting.timer, on_connect_timer, 0, 0);
}

static void keboola_health(void *state, struct dest_health *ret)
{
    const struct keboola *k = state;
    uint64_t now = clock_mono_ms();
    snprintf(ret->where, sizeof ret->where, "%.120s%s%.90s, stage %s", k->options->url,
             k->project[0] != '\0' ? " project " : "", k->project, keboola_stages[k->options->stage]);
    if (k->is_open)
        snprintf(ret->version, sizeof ret->version, "%s files, %s tables", k->provider, k->backend);
    snprintf(ret->identity, sizeof ret->identity, "%s", k->identity);
    ret->is_open = k->is_open;
    ret->pause_ms = k->pause_until_ms > now ? k->pause_until_ms - now : 0;
}

/* ---- names ---- */

static enum err_code keboola_table_name(const char *name, enum names_policy policy, char *ret, char *ret_key,
                                        size_t size, struct err *err)
{
    return keboola_name("table", name, policy, ret, ret_key, size, err);
}

static enum err_code keboola_space_name(const char *name, enum names_policy policy, char *ret, char *ret_key,
                                        size_t size, struct err *err)
{
    if (name[0] == '\0')
        return err_set(
            err, ERR_INPUT, false,
            "the file lies in no folder, and its folder is what names the bucket: put it into one, or give the "
            "flow a `bucket`");
    return keboola_name("bucket", name, policy, ret, ret_key, size, err);
}

/* ---- work ---- */

struct space_work {
    dest_cb *cb;
    void *arg;
};

static void on_space(void *arg, const char *id, const struct err *err)
{
    struct space_work *w = arg;
    dest_cb *cb = w->cb;
    void *cb_arg = w->arg;
    (void)id;
    free(w);
    cb(cb_arg, err);
}

static void keboola_make_space(void *state, const char *space, dest_cb *cb, void *arg)
{
    struct keboola *k = state;
    struct err err = {0};
    struct space_work *w = calloc(1, sizeof *w);
    if (w != NULL)
        *w = (struct space_work){cb, arg};
    if (w != NULL && bucket_need(k, space, true, on_space, w, &err) == ERR_NONE)
        return;
    free(w);
    /* Out of memory: the timer that answers connect() is free as long as nothing connects, which it does not now. */
    err_nomem(&k->connecting.err);
    k->connecting.cb = cb;
    k->connecting.arg = arg;
    uv_timer_start(&k->connecting.timer, on_connect_timer, 0, 0);
}

static enum err_code keboola_begin(void *state, struct load *load, struct err *err)
{
    struct keboola *k = state;
    if (k->is_closing)
        return err_set(err, ERR_STOPPED, true, "the destination is being closed");
    err_clear(&load->err);
    enum err_code code = load->what == LOAD_FILE ? keboola_load_begin(k, load, err) : keboola_drop_begin(k, load, err);
    k->loads += code == ERR_NONE;
    return code;
}

static void keboola_abort(void *state, struct load *load)
{
    (void)state;
    atomic_store(&load->stop, true);
    if (load->what == LOAD_FILE)
        keboola_load_abort(load);
    else
        keboola_drop_abort(load);
}

const struct dest_ops dest_keboola = {
    .type = "keboola",
    .summary = "buckets and tables of a Keboola Storage project",
    .options = option_table,
    .options_size = sizeof(struct keboola_options),
    .url_scheme = "keboola+",
    .quick_name = "kbc",
    .quick_flow = "keboola",
    .from_url = keboola_from_url,
    .check = keboola_check,
    .flow_defaults = flow_defaults,
    .check_flow = keboola_check_flow,
    .slice_bytes = keboola_slice_bytes,
    .keeps_checkpoints = true,
    .ledger_knows_tables = true,
    .open = keboola_open,
    .connect = keboola_connect,
    .health = keboola_health,
    .table_name = keboola_table_name,
    .space_word = "bucket",
    .space_name = keboola_space_name,
    .make_space = keboola_make_space,
    .begin = keboola_begin,
    .abort = keboola_abort,
    .close = keboola_close,
};
