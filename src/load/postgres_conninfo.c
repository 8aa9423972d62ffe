/*
 * postgres_conninfo.c -- what a destination's options add to the text that libpq reads.
 *
 * Why: libpq believes any server that does not speak TLS, and any certificate. For a server behind a network that is
 * not what "on by default" means, so the text is given sslmode=verify-full there, unless somebody said otherwise.
 */
#include "postgres_internal.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static const char *const schemes[] = {"postgresql://", "postgres://"};

bool pgd_is_uri(const char *conninfo)
{
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (strncmp(conninfo, schemes[i], strlen(schemes[i])) == 0)
            return true;
    return false;
}

/* Does the text itself set KEY? */
static bool sets(const char *conninfo, const char *key)
{
    const char *from = pgd_is_uri(conninfo) ? strchr(conninfo, '?') : conninfo;
    size_t n = strlen(key);
    for (const char *p = from; p != NULL && (p = strstr(p, key)) != NULL; p += n) {
        bool begins = p == conninfo || strchr("?& \t\n", p[-1]) != NULL;
        const char *behind = p + n + strspn(p + n, " \t");
        if (begins && *behind == '=')
            return true;
    }
    return false;
}

/* The hosts, divided by commas, into B; empty: none is named. */
static void add_hosts(struct buf *b, const char *conninfo)
{
    if (pgd_is_uri(conninfo)) {
        const char *from = strstr(conninfo, "://") + 3;
        size_t n = strcspn(from, "/?");
        const char *at = memrchr(from, '@', n);
        if (at != NULL) {
            n -= (size_t)(at + 1 - from);
            from = at + 1;
        }
        buf_add(b, from, n);
    }
    if (b->size > 0)
        return;
    const char *keys[] = {"host", "hostaddr"};
    for (size_t i = 0; i < 2; i++) {
        if (!sets(conninfo, keys[i]))
            continue;
        const char *p = conninfo;
        size_t n = strlen(keys[i]);
        while ((p = strstr(p, keys[i])) != NULL &&
               (p[n + strspn(p + n, " \t")] != '=' || (p > conninfo && strchr("?& \t\n", p[-1]) == NULL)))
            p += n;
        if (p == NULL)
            continue;
        p += n + strspn(p + n, " \t") + 1;
        p += strspn(p, " \t'");
        if (b->size > 0)
            buf_addc(b, ',');
        buf_add(b, p, strcspn(p, " \t\n'&"));
    }
}

static bool begins_with(const char *s, size_t n, const char *prefix)
{
    size_t length = strlen(prefix);
    return n >= length && strncasecmp(s, prefix, length) == 0;
}

static bool is_local(const char *host, size_t n)
{
    static const char *const prefixes[] = {"127.", "[::1]", "::1", "/", "%2F", "@"};
    static const char name[] = "localhost";
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
        if (begins_with(host, n, prefixes[i]))
            return true;
    return n == 0 || (begins_with(host, n, name) && (n == strlen(name) || host[strlen(name)] == ':'));
}

/* Is every server that the text names this machine? Without a host it is PGHOST, or a socket. */
bool pgd_is_local(const char *conninfo)
{
    struct buf hosts;
    buf_init(&hosts);
    add_hosts(&hosts, conninfo);
    if (hosts.size == 0 && getenv("PGHOST") != NULL)
        buf_adds(&hosts, getenv("PGHOST"));
    bool all = !hosts.failed;
    const char *p = hosts.data != NULL ? hosts.data : "";
    for (;;) {
        size_t n = strcspn(p, ",");
        all = all && is_local(p, n);
        if (p[n] == '\0')
            break;
        p += n + 1;
    }
    buf_done(&hosts);
    return all;
}

static void add_setting(struct buf *b, const char *key, const char *value)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    if (!pgd_is_uri(b->data != NULL ? b->data : "")) {
        buf_printf(b, "%s%s='", b->size > 0 ? " " : "", key);
        for (const char *p = value; *p != '\0'; p++) {
            if (*p == '\'' || *p == '\\')
                buf_addc(b, '\\');
            buf_addc(b, *p);
        }
        buf_addc(b, '\'');
        return;
    }
    buf_printf(b, "%c%s=", strchr(b->data, '?') != NULL ? '&' : '?', key);
    for (const char *p = value; *p != '\0'; p++) {
        if (strchr(plain, *p) != NULL)
            buf_addc(b, *p);
        else
            buf_printf(b, "%%%02X", (unsigned char)*p);
    }
}

/* Where systems keep the authorities that they trust; NULL: nowhere we know. */
static const char *system_authorities(void)
{
    static const char *const files[] = {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                                        "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"};
    const char *named = getenv("SSL_CERT_FILE");
    if (named != NULL && named[0] != '\0')
        return named;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        if (access(files[i], R_OK) == 0)
            return files[i];
    return NULL;
}

static bool has_own_authorities(void)
{
    const char *home = getenv("HOME");
    struct buf path;
    buf_init(&path);
    buf_printf(&path, "%s/.postgresql/root.crt", home != NULL ? home : "");
    bool has = home != NULL && !path.failed && access(path.data, R_OK) == 0;
    buf_done(&path);
    return has;
}

void pgd_add_conninfo(struct buf *b, const struct pgd_options *o)
{
    const char *url = o->url != NULL ? o->url : "";
    bool has_ca = o->ca_file != NULL && o->ca_file[0] != '\0';
    /* A service may say how it is to be reached; what we add would go before it. */
    bool is_said = sets(url, "sslmode") || sets(url, "service") || getenv("PGSSLMODE") != NULL ||
                   getenv("PGSERVICE") != NULL || !o->tls_verify;
    buf_adds(b, url);
    if (!is_said && (has_ca || !pgd_is_local(url))) {
        add_setting(b, "sslmode", "verify-full");
        if (!has_ca && !sets(url, "sslrootcert") && getenv("PGSSLROOTCERT") == NULL && !has_own_authorities() &&
            system_authorities() != NULL)
            add_setting(b, "sslrootcert", system_authorities());
    }
    if (has_ca)
        add_setting(b, "sslrootcert", o->ca_file);
    /* A server that vanished without a word is noticed after two minutes, also while it computes for long. */
    if (!sets(url, "keepalives") && !sets(url, "keepalives_idle")) {
        add_setting(b, "keepalives_idle", "60");
        add_setting(b, "keepalives_interval", "10");
        add_setting(b, "keepalives_count", "6");
    }
}
