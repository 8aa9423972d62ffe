/*
 * dest_azure.c -- Azure Blob Storage: a file is a blob, as it is. See dest.h and azure_internal.h.
 *
 * Nothing is linked for it: libcurl and libcrypto are loaded when such a destination is opened.
 */
#include "azure_internal.h"

#include "clock.h"
#include "log.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define OPTION(member) offsetof(struct azure_options, member)
static const struct option option_table[] = {
    {.name = "connection_string",
     .type = OPT_SECRET,
     .offset = OPTION(connection_string),
     .default_text = "",
     .help =
         "As the portal shows it, with an account key or a SAS; `UseDevelopmentStorage=true` is the emulator on this "
         "machine."},
    {.name = "account",
     .type = OPT_STRING,
     .offset = OPTION(account),
     .default_text = "",
     .help = "Instead of a connection string: the name of the storage account."},
    {.name = "account_key",
     .type = OPT_SECRET,
     .offset = OPTION(account_key),
     .default_text = "",
     .help = "With `account`: one of its keys."},
    {.name = "sas",
     .type = OPT_SECRET,
     .offset = OPTION(sas),
     .default_text = "",
     .help =
         "Instead of a key: a shared access signature (`sv=…&sig=…`) that allows to read, create and write blobs; to "
         "delete as well where `on_delete: drop` is wanted."},
    {.name = "endpoint",
     .type = OPT_STRING,
     .offset = OPTION(endpoint),
     .default_text = "",
     .help = "URL of the account's Blob service; empty: `https://ACCOUNT.blob.core.windows.net`. `http://` is for this "
             "machine only."},
    {.name = "container",
     .type = OPT_STRING,
     .offset = OPTION(container),
     .flags = OPT_REQUIRED,
     .help = "Container that the blobs are in."},
    {.name = "create_container",
     .type = OPT_BOOL,
     .offset = OPTION(create_container),
     .default_text = "false",
     .help = "Make the container if there is none; it is private."},
    {.name = "tls_verify",
     .type = OPT_BOOL,
     .offset = OPTION(tls_verify),
     .default_text = "true",
     .help = "`false` believes any certificate: whoever is in between reads the data."},
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

static const char *const flow_defaults[] = {"include", "[\"**\"]", "format", "raw", "blob", "{path}", NULL};
static const char *const remote_defaults[] = {"blob", "{host}_{port}/{path}", NULL};

/* ---- options ---- */

static bool is_loopback(const char *url)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    const char *host = strstr(url, "://") + 3;
    size_t n = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == n && strncasecmp(names[i], host, n) == 0)
            return true;
    return false;
}

static enum err_code azure_check(const void *options, struct err *err)
{
    const struct azure_options *o = options;
    struct azure_account account;
    if (azure_account_new(o, &account, err) != ERR_NONE)
        return err->code;
    if (strncasecmp(account.endpoint, "http://", 7) == 0 && o->tls_verify && !is_loopback(account.endpoint))
        err_set(err, ERR_CONFIG, false,
                "endpoint: http:// would send the data in clear over the network: use https://, or say `tls_verify: "
                "false` if that is meant");
    else if (!azure_is_container(o->container))
        err_set(
            err, ERR_CONFIG, false,
            "container: expected 3 to 63 lower-case letters, digits and single hyphens between them, found \"%.80s\"",
            o->container);
    else
        err_clear(err);
    azure_account_done(&account);
    return err->code;
}

/* "azblob:CONTAINER"; the rest is in the environment. */
static enum err_code azure_from_url(const char *url, void *options, struct err *err)
{
    struct azure_options *o = options;
    const char *string = getenv("AZURE_STORAGE_CONNECTION_STRING");
    if (string == NULL || string[0] == '\0')
        return err_set(err, ERR_CONFIG, false,
                       "AZURE_STORAGE_CONNECTION_STRING is not set: export it as the portal shows it");
    if (!log_secret(string))
        return err_nomem(err);
    o->connection_string = string;
    o->container = url + strlen("azblob:");
    o->create_container = true;
    return ERR_NONE;
}

/* ---- life ---- */

struct store_target azure_target(const struct azure *a, const char *blob)
{
    return (struct store_target){.kind = STORE_AZURE,
                                 .endpoint = a->account.endpoint,
                                 .bucket = a->options->container,
                                 .key = blob,
                                 .sas = a->account.sas,
                                 .account = a->account.name,
                                 .account_key = a->account.key};
}

static void part_closed(struct azure *a)
{
    if (--a->open_parts > 0)
        return;
    void (*closed)(void *) = a->closed;
    void *arg = a->closed_arg;
    azure_account_done(&a->account);
    free(a);
    closed(arg);
}

static void on_timer_closed(uv_handle_t *handle)
{
    part_closed(handle->data);
}

static void on_http_closed(void *arg)
{
    struct azure *a = arg;
    uv_close((uv_handle_t *)&a->connecting.timer, on_timer_closed);
    part_closed(a);
}

/* Uploads use http, so they go first. */
static void on_uploader_closed(void *arg)
{
    struct azure *a = arg;
    http_close(a->http, on_http_closed, a);
    part_closed(a);
}

/* The account's secrets are no option of the configuration when they came in a connection string. */
static bool hide_secrets(const struct azure_account *account)
{
    const char *sig = strstr(account->sas, "sig=");
    char only[300];
    if (account->key[0] != '\0' && !log_secret(account->key))
        return false;
    if (account->sas[0] != '\0' && !log_secret(account->sas))
        return false;
    if (sig == NULL)
        return true;
    snprintf(only, sizeof only, "%.*s", (int)strcspn(sig + 4, "&"), sig + 4);
    return only[0] == '\0' || log_secret(only);
}

static enum err_code azure_open(const void *options, const struct dest_env *env, uv_loop_t *loop, void **ret_state,
                                struct err *err)
{
    const struct azure_options *o = options;
    struct azure *a = calloc(1, sizeof *a);
    if (a == NULL)
        return err_nomem(err);
    a->options = o;
    a->loop = loop;
    const struct http_options http = {.proxy = o->proxy[0] != '\0' ? o->proxy : NULL,
                                      .ca_file = o->ca_file,
                                      .tls_insecure = !o->tls_verify,
                                      .connect_timeout_ms = o->connect_timeout,
                                      .stall_timeout_ms = o->stall_timeout,
                                      .max_connections = 2 * env->jobs + 2,
                                      .upload_rate = env->upload_rate};
    const struct uploader_limits limits = {
        .parallel = env->jobs, .buffer_bytes = env->buffer_bytes, .piece_bytes = 8 * 1024 * 1024};
    if (azure_account_new(o, &a->account, err) != ERR_NONE)
        goto free_state;
    if (!hide_secrets(&a->account)) {
        err_nomem(err);
        goto free_state;
    }
    if (http_open(loop, &http, &a->http, err) != ERR_NONE)
        goto free_state;
    if (uploader_open(loop, a->http, &limits, &a->uploader, err) != ERR_NONE) {
        http_close(a->http, NULL, NULL);
        goto free_state;
    }
    uv_timer_init(loop, &a->connecting.timer);
    a->connecting.timer.data = a;
    a->open_parts = 3;
    *ret_state = a;
    return ERR_NONE;
free_state:
    azure_account_done(&a->account);
    free(a);
    return err->code;
}

static void close_now(struct azure *a)
{
    if (a->is_closing && a->loads == 0 && a->uploader != NULL) {
        struct uploader *up = a->uploader;
        a->uploader = NULL;
        uploader_close(up, on_uploader_closed, a);
    }
}

void azure_load_over(struct azure *a)
{
    a->loads--;
    close_now(a);
}

static void azure_close(void *state, void (*closed)(void *arg), void *arg)
{
    struct azure *a = state;
    a->closed = closed;
    a->closed_arg = arg;
    a->is_closing = true;
    close_now(a);
}

/* ---- connect: is there a container, and may we? ---- */

static void tell_connected(struct azure *a)
{
    dest_cb *cb = a->connecting.cb;
    a->connecting.cb = NULL;
    a->is_open = a->connecting.err.code == ERR_NONE;
    cb(a->connecting.arg, a->is_open ? NULL : &a->connecting.err);
}

static void on_connect_timer(uv_timer_t *timer)
{
    tell_connected(timer->data);
}

static void refused(struct azure *a, const struct azure_reply *r)
{
    a->connecting.err = r->err;
    if (r->retry_after_ms > 0)
        a->pause_until_ms = clock_mono_ms() + r->retry_after_ms;
    if (strcmp(r->code, "AuthenticationFailed") == 0 ||
        (r->status == 403 && strcmp(r->code, "AuthorizationFailure") == 0))
        err_set(&a->connecting.err, ERR_DENIED, false,
                "%s; is it the key or SAS of this account, not ended, and is this "
                "machine's clock right?",
                r->err.text);
    else if (r->err.code == ERR_INPUT)
        err_set(&a->connecting.err, ERR_REMOTE, true, "%s; is the endpoint that of a Blob service?", r->err.text);
    else if (!r->err.retryable && r->err.code != ERR_DENIED && r->err.code != ERR_STOPPED)
        a->connecting.err.retryable = true; /* a certificate may be mended, too */
    tell_connected(a);
}

static void on_created(void *arg, const struct azure_reply *r)
{
    struct azure *a = arg;
    a->connecting.call = NULL;
    if (r->err.code == ERR_NONE || strcmp(r->code, "ContainerAlreadyExists") == 0) {
        tell_connected(a);
        return;
    }
    if (r->status == 409) { /* it is being deleted */
        err_set(&a->connecting.err, ERR_REMOTE, true, "%s", r->err.text);
        tell_connected(a);
        return;
    }
    refused(a, r);
}

static void on_found(void *arg, const struct azure_reply *r)
{
    struct azure *a = arg;
    a->connecting.call = NULL;
    /* A SAS for blobs alone may not look at the container: then the first load will tell. */
    bool is_only_forbidden =
        r->status == 403 && a->account.sas[0] != '\0' &&
        (strncmp(r->code, "AuthorizationPermission", 23) == 0 || strncmp(r->code, "AuthorizationResource", 21) == 0 ||
         strncmp(r->code, "AuthorizationService", 20) == 0);
    if (r->err.code == ERR_NONE || is_only_forbidden) {
        tell_connected(a);
        return;
    }
    if (r->status != 404) {
        refused(a, r);
        return;
    }
    if (!a->options->create_container) {
        err_set(&a->connecting.err, ERR_DENIED, false,
                "container %s does not exist: make it, or set create_container: true", a->options->container);
        tell_connected(a);
        return;
    }
    if (azure_call(a, "PUT", NULL, "restype=container", NULL, on_created, a, &a->connecting.call, &a->connecting.err) !=
        ERR_NONE)
        tell_connected(a);
}

static void azure_connect(void *state, dest_cb *cb, void *arg)
{
    struct azure *a = state;
    a->connecting.cb = cb;
    a->connecting.arg = arg;
    a->pause_until_ms = 0;
    err_clear(&a->connecting.err);
    if (azure_call(a, "GET", NULL, "restype=container", NULL, on_found, a, &a->connecting.call, &a->connecting.err) !=
        ERR_NONE)
        uv_timer_start(&a->connecting.timer, on_connect_timer, 0, 0);
}

static void azure_health(void *state, struct dest_health *ret)
{
    const struct azure *a = state;
    uint64_t now = clock_mono_ms();
    snprintf(ret->where, sizeof ret->where, "%.160s/%.80s", a->account.endpoint, a->options->container);
    ret->is_open = a->is_open;
    ret->pause_ms = a->pause_until_ms > now ? a->pause_until_ms - now : 0;
}

static void azure_hurry(void *state)
{
    struct azure *a = state;
    azure_cancel(a->connecting.call);
}

/* ---- names and work ---- */

/* A name of at most 1,024 characters, which no segment ends with a dot (the service would cut it). */
static enum err_code azure_table_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                                      struct err *err)
{
    if (policy != NAMES_KEEP && policy != NAMES_BLOB)
        return err_set(err, ERR_INPUT, false, "names of blobs are made by `names: keep` or `names: blob`");
    if (name_legal("blob", name, policy, ret, size < 1025 ? size : 1025, err) != ERR_NONE)
        return err->code;
    if (ret[0] == '/')
        return err_set(err, ERR_INPUT, false, "blob name \"%.80s\" begins with a slash", ret);
    for (const char *p = ret; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '\\')
            return err_set(err, ERR_INPUT, false,
                           "blob name \"%.80s\" has a character that none may have (a control character or a "
                           "backslash): use `names: blob`",
                           ret);
        if (*p == '.' && (p[1] == '/' || p[1] == '\0'))
            return err_set(err, ERR_INPUT, false,
                           "a part of the blob name \"%.80s\" ends with a dot, which Azure cuts off: "
                           "rename the file",
                           ret);
    }
    snprintf(ret_key, size, "%s", ret);
    return ERR_NONE;
}

static enum err_code azure_begin(void *state, struct load *load, struct err *err)
{
    struct azure *a = state;
    if (a->is_closing)
        return err_set(err, ERR_STOPPED, true, "the destination is being closed");
    err_clear(&load->err);
    enum err_code code = load->what == LOAD_FILE ? azure_load_begin(a, load, err) : azure_drop_begin(a, load, err);
    a->loads += code == ERR_NONE;
    return code;
}

static void azure_abort(void *state, struct load *load)
{
    (void)state;
    atomic_store(&load->stop, true);
    if (load->what == LOAD_FILE)
        azure_load_abort(load);
    else
        azure_drop_abort(load);
}

const struct dest_ops dest_azure = {
    .type = "azure_blob",
    .summary = "blobs of an Azure Storage container, files as they are",
    .options = option_table,
    .options_size = sizeof(struct azure_options),
    .url_scheme = "azblob:",
    .quick_name = "lake",
    .quick_flow = "blobs",
    .from_url = azure_from_url,
    .check = azure_check,
    .flow_defaults = flow_defaults,
    .remote_defaults = remote_defaults,
    .takes_bytes = true,
    .open = azure_open,
    .connect = azure_connect,
    .health = azure_health,
    .table_name = azure_table_name,
    .begin = azure_begin,
    .abort = azure_abort,
    .hurry = azure_hurry,
    .close = azure_close,
};
