/*
 * remote_call.c -- one conversation with an FTP or SFTP server.
 *
 * curl's callbacks take notes only; what follows from them is done on the next turn (remote_on_kick). Errors are told
 * by the server's address, never by curl's url, and pass log_redact(): curl likes to quote.
 */
#include "remote_internal.h"

#include "buf.h"
#include "crypto_lib.h"
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utlist.h>

#define POKE_MS 10
#define LOOK_MS 500
/* What one transfer needed is kept so long for the next: memory taken anew has to be cleared by the system, page by
 * page. */
#define IDLE_MS 1000
/* Of an easy handle, always the same: libcurl 7.88 keeps the memory over a reset, and not its size. A socket has no
 * more at a time; libssh2 asks the server for as much ahead as it is given room for. */
#define BUFFER_BYTES (64L * 1024)
#define SFTP_BUFFER_BYTES (256L * 1024)

void remote_kick(struct remote *r)
{
    if (r->multi != NULL)
        uv_idle_start(&r->kick, remote_on_kick);
}

/* ---- host keys ---- */

static size_t unbase64(const char *s, uint8_t *ret, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    size_t n = 0;
    for (int have = 0; *s != '\0' && *s != '='; s++) {
        const char *at = strchr(digits, *s);
        if (at == NULL)
            continue;
        bits = bits << 6 | (uint32_t)(at - digits);
        have += 6;
        if (have >= 8 && n < size) {
            have -= 8;
            ret[n++] = (uint8_t)(bits >> have);
        }
    }
    return n;
}

/* "SHA256:…" as ssh-keygen -l shows it; "" when libcrypto can't be had. */
static void fingerprint(const struct curl_khkey *key, char ret[64])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const struct crypto_lib *lib;
    struct err err = {0};
    uint8_t raw[4096], hash[EVP_MAX_MD_SIZE];
    unsigned hash_size = 0;
    size_t n = key->len;
    ret[0] = '\0';
    if (n == 0)
        n = unbase64(key->key, raw, sizeof raw);
    else if (n <= sizeof raw)
        memcpy(raw, key->key, n);
    if (n > sizeof raw || crypto_lib_load(&lib, &err) != ERR_NONE)
        return;
    EVP_MD_CTX *ctx = lib->EVP_MD_CTX_new();
    bool is_hashed = ctx != NULL && lib->EVP_DigestInit_ex(ctx, lib->EVP_sha256(), NULL) == 1 &&
                     lib->EVP_DigestUpdate(ctx, raw, n) == 1 && lib->EVP_DigestFinal_ex(ctx, hash, &hash_size) == 1;
    lib->EVP_MD_CTX_free(ctx);
    if (!is_hashed)
        return;
    char *at = ret + sprintf(ret, "SHA256:");
    for (unsigned i = 0; i < hash_size; i += 3) {
        uint32_t bits = (uint32_t)hash[i] << 16 | (i + 1 < hash_size ? (uint32_t)hash[i + 1] << 8 : 0) |
                        (i + 2 < hash_size ? hash[i + 2] : 0);
        unsigned left = hash_size - i < 3 ? hash_size - i : 3;
        for (unsigned d = 0; d <= left; d++)
            *at++ = digits[bits >> (18 - 6 * d) & 63];
    }
    *at = '\0';
}

static const char *key_type(enum curl_khtype type)
{
    switch (type) {
    case CURLKHTYPE_RSA:
    case CURLKHTYPE_RSA1:
        return "RSA";
    case CURLKHTYPE_DSS:
        return "DSA";
    case CURLKHTYPE_ECDSA:
        return "ECDSA";
    case CURLKHTYPE_ED25519:
        return "ED25519";
    case CURLKHTYPE_UNKNOWN:
        break;
    }
    return "host";
}

/* CURLOPT_SSH_KEYFUNCTION. Only what is in known_hosts is let through; nobody is there to ask. */
static int on_host_key(CURL *easy, const struct curl_khkey *known, const struct curl_khkey *found,
                       enum curl_khmatch match, void *arg)
{
    struct call *call = arg;
    struct remote *r = call->remote;
    char print[64];
    (void)easy;
    (void)known;
    if (match == CURLKHMATCH_OK)
        return CURLKHSTAT_FINE;
    fingerprint(found, print);
    if (match == CURLKHMATCH_MISMATCH)
        err_set(&call->err, ERR_DENIED, false,
                "%s: its %s key %s is another one than %s has; if the server was made anew, take the old line out and "
                "add what ssh-keyscan -p %u %s prints, once its fingerprint is confirmed",
                r->where, key_type(found->keytype), print, r->options->known_hosts, r->port, r->url.host);
    else
        err_set(&call->err, ERR_DENIED, false,
                "%s: its %s key %s is not in %s; if that is its fingerprint, add what ssh-keyscan -p %u %s prints",
                r->where, key_type(found->keytype), print, r->options->known_hosts, r->port, r->url.host);
    return CURLKHSTAT_REJECT;
}

/* ---- what went wrong ---- */

static bool says_gone(const struct call *call)
{
    if (call->remote->kind == REMOTE_SFTP)
        return call->result == CURLE_REMOTE_FILE_NOT_FOUND;
    return call->response == 550 &&
           (call->result == CURLE_REMOTE_FILE_NOT_FOUND || call->result == CURLE_FTP_COULDNT_RETR_FILE ||
            call->result == CURLE_REMOTE_ACCESS_DENIED);
}

static void explain(struct call *call)
{
    struct remote *r = call->remote;
    char words[CURL_ERROR_SIZE + 64];
    if (call->err.code != ERR_NONE || call->result == CURLE_OK)
        return;
    snprintf(words, sizeof words, "%s", call->words[0] != '\0' ? call->words : r->curl->easy_strerror(call->result));
    log_redact(words);
    call->is_gone = says_gone(call);
    switch (call->result) {
    case CURLE_LOGIN_DENIED:
        err_set(&call->err, ERR_DENIED, false, "%s: the login of %s was refused: %s", r->where,
                r->url.user[0] != '\0' || r->options->user[0] != '\0' ? "the user" : "anonymous", words);
        return;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_USE_SSL_FAILED:
        err_set(&call->err, ERR_DENIED, false, "%s: %s", r->where, words);
        return;
    case CURLE_OUT_OF_MEMORY:
        err_nomem(&call->err);
        return;
    case CURLE_URL_MALFORMAT:
        err_set(&call->err, ERR_INPUT, false, "%s: a name with control characters can't be asked for", r->where);
        return;
    case CURLE_OPERATION_TIMEDOUT:
        err_set(&call->err, ERR_REMOTE, true, "%s: timed out: %s", r->where, words);
        return;
    default:
        break;
    }
    if (call->is_gone || (call->response >= 500 && call->response < 600 &&
                          (call->result == CURLE_FTP_COULDNT_RETR_FILE || call->result == CURLE_QUOTE_ERROR ||
                           call->result == CURLE_REMOTE_ACCESS_DENIED)))
        err_set(&call->err, ERR_INPUT, false, "%s: %s", r->where, words);
    else
        err_set(&call->err, ERR_REMOTE, true, "%s: %s", r->where, words);
}

/* ---- an easy handle ---- */

static size_t on_bytes(char *bytes, size_t size, size_t count, void *arg)
{
    struct call *call = arg;
    if (call->is_aborted || call->err.code != ERR_NONE)
        return 0;
    call->active_ms = uv_now(call->remote->loop);
    call->has_bytes = true;
    size_t taken = call->ops->bytes != NULL ? call->ops->bytes(call, bytes, size * count) : size * count;
    call->is_paused = taken == CURL_WRITEFUNC_PAUSE;
    return taken;
}

static enum err_code refused(struct err *err, const char *what)
{
    return err_set(err, ERR_SYSTEM, false, "libcurl does not take its options: %s", what);
}

#define SET(option, value)                                                                                             \
    do {                                                                                                               \
        if (r->curl->easy_setopt(call->easy, option, value) != CURLE_OK)                                               \
            return refused(err, #option);                                                                              \
    } while (0)

static enum err_code set_login(struct call *call, struct err *err)
{
    struct remote *r = call->remote;
    const struct remote_options *o = r->options;
    const char *user = o->user[0] != '\0' ? o->user : r->url.user;
    if (user[0] != '\0') {
        SET(CURLOPT_USERNAME, user);
        SET(CURLOPT_PASSWORD, o->password != NULL ? o->password : "");
    }
    if (r->kind != REMOTE_SFTP)
        return ERR_NONE;
    long auth = CURLSSH_AUTH_AGENT;
    if (o->private_key_file != NULL && o->private_key_file[0] != '\0') {
        auth = CURLSSH_AUTH_PUBLICKEY;
        SET(CURLOPT_SSH_PRIVATE_KEYFILE, o->private_key_file);
        if (o->passphrase != NULL && o->passphrase[0] != '\0')
            SET(CURLOPT_KEYPASSWD, o->passphrase);
    }
    if (o->password != NULL && o->password[0] != '\0')
        auth = (auth == CURLSSH_AUTH_PUBLICKEY ? auth : 0) | CURLSSH_AUTH_PASSWORD | CURLSSH_AUTH_KEYBOARD;
    SET(CURLOPT_SSH_AUTH_TYPES, auth);
    SET(CURLOPT_SSH_KNOWNHOSTS, o->known_hosts);
    SET(CURLOPT_SSH_KEYFUNCTION, on_host_key);
    SET(CURLOPT_SSH_KEYDATA, call);
    return ERR_NONE;
}

static enum err_code set_tls(struct call *call, struct err *err)
{
    struct remote *r = call->remote;
    const struct remote_options *o = r->options;
    if (r->kind != REMOTE_FTPS)
        return ERR_NONE;
    SET(CURLOPT_USE_SSL, (long)CURLUSESSL_ALL);
    SET(CURLOPT_SSL_VERIFYPEER, (long)o->tls_verify);
    SET(CURLOPT_SSL_VERIFYHOST, o->tls_verify ? 2L : 0L);
    if (o->ca_file != NULL && o->ca_file[0] != '\0')
        SET(CURLOPT_CAINFO, o->ca_file);
    return ERR_NONE;
}

static enum err_code set_all(struct call *call, const char *url, struct err *err)
{
    struct remote *r = call->remote;
    const struct remote_options *o = r->options;
    static const char *const protocols[] = {"ftp", "ftp,ftps", "sftp"};
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, protocols[r->kind]);
    SET(CURLOPT_PRIVATE, call);
    SET(CURLOPT_BUFFERSIZE, r->kind == REMOTE_SFTP ? SFTP_BUFFER_BYTES : BUFFER_BYTES);
    SET(CURLOPT_ERRORBUFFER, call->words);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_WRITEFUNCTION, on_bytes);
    SET(CURLOPT_WRITEDATA, call);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)o->connect_timeout_ms);
    SET(CURLOPT_SERVER_RESPONSE_TIMEOUT, (long)((o->stall_timeout_ms + 999) / 1000));
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_PROXY, o->proxy != NULL ? o->proxy : ""); /* "": not that of the environment */
    if (r->kind != REMOTE_SFTP) {
        SET(CURLOPT_FTP_FILEMETHOD, (long)CURLFTPMETHOD_SINGLECWD); /* the folder once, whatever it is called */
        SET(CURLOPT_TRANSFERTEXT, 0L);
    }
    return set_login(call, err) != ERR_NONE || set_tls(call, err) != ERR_NONE ? err->code : ERR_NONE;
}

enum err_code call_init(struct call *call, struct remote *r, const struct call_ops *ops, const char *path,
                        bool is_folder, struct err *err)
{
    bool is_implicit = r->kind == REMOTE_FTPS && r->options->tls == 1;
    struct buf url;
    *call = (struct call){.remote = r, .ops = ops};
    call->easy = curl_spare_take(&r->spare_easy, r->curl);
    if (call->easy == NULL)
        return err_nomem(err);
    buf_init(&url);
    bool is_ipv6 = strchr(r->url.host, ':') != NULL;
    buf_printf(&url, "%s://%s%s%s:%u",
               r->kind == REMOTE_SFTP ? "sftp"
               : is_implicit          ? "ftps"
                                      : "ftp",
               is_ipv6 ? "[" : "", r->url.host, is_ipv6 ? "]" : "", r->port);
    remote_url_path(r->url.root, path, is_folder, r->kind != REMOTE_SFTP, &url);
    if (url.failed)
        err_nomem(err);
    else
        set_all(call, url.data, err);
    buf_done(&url);
    if (err->code != ERR_NONE)
        call_done(call);
    return err->code;
}

enum err_code call_quote(struct call *call, struct err *err, const char *fmt, ...)
{
    struct remote *r = call->remote;
    char *text = NULL;
    va_list args;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    struct curl_slist *more = n >= 0 ? r->curl->slist_append(call->quote, text) : NULL;
    if (n >= 0)
        free(text);
    if (more == NULL)
        return err_nomem(err);
    call->quote = more;
    return ERR_NONE;
}

/* No byte for too long? curl's own check looks at the mean of the last seconds, and forgives a connection that died. */
static void end_stalled(struct remote *r)
{
    uint64_t now = uv_now(r->loop);
    struct call *call;
    DL_FOREACH(r->calls, call) {
        /* until the first byte it connects and logs in, which has a limit of its own */
        uint64_t limit = r->options->stall_timeout_ms + (call->has_bytes ? 0 : r->options->connect_timeout_ms);
        if (call->is_paused)
            call->active_ms = now; /* it is us who do not want any */
        if (call->err.code != ERR_NONE || now - call->active_ms < limit)
            continue;
        err_set(&call->err, ERR_REMOTE, true, "%s: timed out: no byte came for %llu ms", r->where,
                (unsigned long long)(now - call->active_ms));
        remote_kick(r);
    }
}

/*
 * While a call is under way. libcurl 7.88 does not watch the second connection of FTP while that is being made, nor,
 * over TLS, the first one meanwhile: what comes of it is seen at the next timeout, 30 s later. So it is asked to look.
 */
static void on_tick(uv_timer_t *timer)
{
    struct remote *r = timer->data;
    if (r->calls == NULL) {
        if (r->idle_ms == 0)
            r->idle_ms = uv_now(r->loop);
        if (uv_now(r->loop) - r->idle_ms < IDLE_MS)
            return;
        uv_timer_stop(timer);
        remote_drop_spare(r);
        return;
    }
    end_stalled(r);
    if (r->multi != NULL && r->kind != REMOTE_SFTP)
        curl_loop_poke(r->multi);
}

enum err_code call_begin(struct call *call, struct err *err)
{
    struct remote *r = call->remote;
    if (r->is_closing || r->is_hurried)
        return err_set(err, ERR_STOPPED, true, "the source is closing");
    if (call->quote != NULL && r->curl->easy_setopt(call->easy, CURLOPT_QUOTE, call->quote) != CURLE_OK)
        return refused(err, "CURLOPT_QUOTE");
    if (curl_loop_add(r->multi, call->easy) != CURLM_OK)
        return err_nomem(err);
    call->is_added = true;
    DL_APPEND(r->calls, call);
    call->active_ms = uv_now(r->loop);
    r->idle_ms = 0;
    if (!uv_is_active((uv_handle_t *)&r->tick)) {
        uint64_t tick_ms = r->kind == REMOTE_SFTP ? LOOK_MS : POKE_MS;
        uv_timer_start(&r->tick, on_tick, tick_ms, tick_ms);
    }
    remote_kick(r);
    return ERR_NONE;
}

void call_resume(struct call *call)
{
    call->is_resuming = true;
    remote_kick(call->remote);
}

void call_abort(struct call *call)
{
    call->is_aborted = true;
    remote_kick(call->remote);
}

void call_done(struct call *call)
{
    struct remote *r = call->remote;
    bool is_sound = call->is_ended && call->result == CURLE_OK && call->err.code == ERR_NONE;
    curl_spare_give(&r->spare_easy, r->curl, call->easy, is_sound);
    r->curl->slist_free_all(call->quote);
    call->easy = NULL;
    call->quote = NULL;
}

static void end(struct call *call)
{
    struct remote *r = call->remote;
    DL_DELETE(r->calls, call);
    call->is_added = false;
    call->is_ended = true;
    if (call->is_aborted)
        err_set(&call->err, ERR_STOPPED, true, "stopped");
    explain(call);
    call->ops->done(call);
    remote_maybe_closed(r);
}

void remote_easy_done(void *arg, CURL *easy, CURLcode result)
{
    struct remote *r = arg;
    struct call *call = NULL;
    r->curl->easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&call);
    call->result = result;
    r->curl->easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &call->response);
    end(call);
}

void remote_easy_broken(void *arg, CURL *easy, const char *why)
{
    struct remote *r = arg;
    struct call *call;
    DL_FOREACH(r->calls, call)
        if ((easy == NULL || call->easy == easy) && call->err.code == ERR_NONE)
            err_set(&call->err, ERR_SYSTEM, true, "%s: %s", r->where, why);
    remote_kick(r);
}

/* What was noted inside of curl, or asked for by our users, outside of it. */
void remote_on_kick(uv_idle_t *idle)
{
    struct remote *r = idle->data;
    struct call *call, *next;
    uv_idle_stop(idle);
    DL_FOREACH_SAFE(r->calls, call, next) {
        if (call->is_aborted || call->err.code != ERR_NONE) {
            curl_loop_remove(r->multi, call->easy);
            end(call);
            next = r->calls; /* done() may have ended or begun others */
            continue;
        }
        if (call->is_resuming) {
            call->is_resuming = call->is_paused = false;
            r->curl->easy_pause(call->easy, CURLPAUSE_CONT);
        }
    }
    remote_questions_next(r);
    remote_fetch_next(r); /* these two also end what waits when it is closing */
    if (!r->is_closing) {
        remote_scan_next(r);
        remote_fetch_pace(r);
    }
    if (r->multi != NULL && r->calls != NULL)
        curl_loop_drive(r->multi);
    remote_maybe_closed(r);
}
