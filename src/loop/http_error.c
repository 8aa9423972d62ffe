/*
 * http_error.c -- what curl says, as an error that the layers above can act on.
 *
 * Never a URL: its query may be a signature and its path a secret. Of a URL we say host and port; of curl's own words
 * only those whose origin is known.
 */
#include "http_internal.h"
#include "text.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *words_of(struct http_transfer *t, CURLcode result, char *ret, size_t size)
{
    const char *words = t->words;
    switch (result) {
    case CURLE_COULDNT_RESOLVE_HOST: /* these quote nothing but a host, or the peer's certificate */
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CIPHER:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_PROXY:
        break;
    default: /* others may quote what was given to curl */
        words = "";
    }
    if (strstr(words, "://") != NULL ||
        strchr(words, '@') != NULL) /* a proxy from the environment, with its password */
        words = "";
    return text_printable(words[0] != '\0' ? words : t->http->curl->easy_strerror(result), ret, size);
}

/* What no retry helps against. */
static bool is_proxys_fault(struct http_transfer *t)
{
    long status = 0;
    t->http->curl->easy_getinfo(t->easy, CURLINFO_HTTP_CONNECTCODE, &status);
    if (status == 407)
        err_set(&t->err, ERR_CONFIG, false, "%s: the proxy wants other credentials (407)", t->host);
    else if (strncmp(t->words, "Unsupported proxy", 17) == 0) /* the one in our options has been checked before */
        err_set(&t->err, ERR_CONFIG, false,
                "%s: the proxy in the environment is none: look at http_proxy, https_proxy "
                "and all_proxy",
                t->host);
    return t->err.code != ERR_NONE;
}

void http_error_of(struct http_transfer *t, CURLcode result)
{
    char words[sizeof t->words * 2];
    if (t->err.code != ERR_NONE)
        return;
    if (result == CURLE_OK) { /* curl says so also when the connection ends in the middle of a header */
        if (!t->has_headers)
            err_set(&t->err, ERR_REMOTE, true, "%s: the connection ended in the middle of the answer", t->host);
        return;
    }
    if (is_proxys_fault(t))
        return;
    words_of(t, result, words, sizeof words);
    switch (result) {
    case CURLE_OUT_OF_MEMORY:
        err_set(&t->err, ERR_SYSTEM, true, "%s: out of memory", t->host);
        break;
    case CURLE_UNSUPPORTED_PROTOCOL: /* not of the URL, which has been checked */
        err_set(&t->err, ERR_REMOTE, true, "%s: what answers there is no HTTP", t->host);
        break;
    case CURLE_URL_MALFORMAT:
        err_set(&t->err, ERR_CONFIG, false, "%s: this URL can't be asked: %s", t->host, words);
        break;
    case CURLE_SSL_CACERT_BADFILE:
        err_set(&t->err, ERR_CONFIG, false, "%s: the CA file can't be used: %s", t->host, words);
        break;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_ISSUER_ERROR:
        err_set(&t->err, ERR_REMOTE, false, "%s: its certificate is refused: %s", t->host, words);
        break;
    case CURLE_SEND_FAIL_REWIND:
        err_set(&t->err, ERR_REMOTE, true, "%s: the connection broke, and the body can't be sent again from here",
                t->host);
        break;
    default:
        err_set(&t->err, ERR_REMOTE, true, "%s: %s", t->host, words);
    }
}

/* Is SCHEME in LIST ("http,https")? */
static bool is_listed(const char *list, const char *scheme)
{
    size_t n = strlen(scheme);
    for (const char *at = list;; at++) {
        if (strncasecmp(at, scheme, n) == 0 && (at[n] == ',' || at[n] == '\0'))
            return true;
        at = strchr(at, ',');
        if (at == NULL)
            return false;
    }
}

static enum err_code refuse(CURLUcode failed, const struct curl_lib *curl, const char *what, struct err *err)
{
    if (failed == CURLUE_OUT_OF_MEMORY)
        return err_nomem(err);
    return err_set(err, ERR_CONFIG, false, "%s: %s", what, curl->url_strerror(failed));
}

/* HOST, or HOST:PORT when URL names one. */
static enum err_code name_host(const struct curl_lib *curl, CURLU *url, char **ret_host, struct err *err)
{
    char *host = NULL, *port = NULL, printable[512];
    struct buf text;
    CURLUcode failed = curl->url_get(url, CURLUPART_HOST, &host, 0);
    if (failed != CURLUE_OK)
        return refuse(failed, curl, "a URL without a host", err);
    curl->url_get(url, CURLUPART_PORT, &port, 0);
    buf_init(&text);
    buf_adds(&text, text_printable(host, printable, sizeof printable));
    if (port != NULL)
        buf_printf(&text, ":%s", port);
    curl->free(host);
    curl->free(port);
    *ret_host = buf_take(&text);
    return *ret_host != NULL ? ERR_NONE : err_nomem(err);
}

enum err_code http_check_url(struct http *h, const char *url, char **ret_host, struct err *err)
{
    const struct curl_lib *curl = h->curl;
    char *scheme = NULL;
    CURLU *parsed = curl->url();
    err_clear(err);
    if (parsed == NULL)
        return err_nomem(err);
    CURLUcode failed = curl->url_set(parsed, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME);
    if (failed == CURLUE_OK)
        failed = curl->url_get(parsed, CURLUPART_SCHEME, &scheme, 0);
    enum err_code code;
    if (failed != CURLUE_OK)
        code = refuse(failed, curl, "not a URL that can be asked", err);
    else if (!is_listed(h->protocols, scheme))
        code = err_set(err, ERR_CONFIG, false, "not a URL that can be asked: its scheme is none of %s", h->protocols);
    else
        code = name_host(curl, parsed, ret_host, err);
    curl->free(scheme);
    curl->url_cleanup(parsed);
    return code;
}

enum err_code http_check_proxy(const struct curl_lib *curl, const char *proxy, struct err *err)
{
    static const char *const schemes = "http,https,socks4,socks4a,socks5,socks5h";
    char *scheme = NULL;
    if (strcmp(proxy, "none") == 0)
        return ERR_NONE;
    CURLU *parsed = curl->url();
    if (parsed == NULL)
        return err_nomem(err);
    CURLUcode failed = curl->url_set(parsed, CURLUPART_URL, proxy, CURLU_NON_SUPPORT_SCHEME);
    if (failed == CURLUE_OK)
        failed = curl->url_get(parsed, CURLUPART_SCHEME, &scheme, 0);
    enum err_code code = ERR_NONE;
    if (failed != CURLUE_OK)
        code = refuse(failed, curl, "proxy", err);
    else if (!is_listed(schemes, scheme))
        code = err_set(err, ERR_CONFIG, false, "proxy: its scheme is none of %s", schemes);
    curl->free(scheme);
    curl->url_cleanup(parsed);
    return code;
}
