/* azure_account.c -- who we are at Azure: a connection string, or account and key, or a SAS. */
#include "azure_internal.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* What a connection string says; pieces of it. */
struct parts {
    const char *name, *key, *sas, *endpoint, *suffix, *scheme;
    bool is_development;
};

static const struct {
    const char *key;
    size_t offset;
} known[] = {
    {"AccountName", offsetof(struct parts, name)},
    {"AccountKey", offsetof(struct parts, key)},
    {"SharedAccessSignature", offsetof(struct parts, sas)},
    {"BlobEndpoint", offsetof(struct parts, endpoint)},
    {"EndpointSuffix", offsetof(struct parts, suffix)},
    {"DefaultEndpointsProtocol", offsetof(struct parts, scheme)},
};

static bool is_other_service(const char *key)
{
    static const char *const others[] = {"QueueEndpoint",         "TableEndpoint",          "FileEndpoint",
                                         "BlobSecondaryEndpoint", "QueueSecondaryEndpoint", "TableSecondaryEndpoint",
                                         "FileSecondaryEndpoint"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (strcasecmp(key, others[i]) == 0)
            return true;
    return false;
}

/* TEXT is cut into pieces. Values may have '=' in them. */
static enum err_code take_apart(char *text, struct parts *p, struct err *err)
{
    for (char *piece; (piece = strsep(&text, ";")) != NULL;) {
        piece += strspn(piece, " \t\r\n");
        if (*piece == '\0')
            continue;
        char *value = strchr(piece, '=');
        if (value == NULL)
            return err_set(err, ERR_CONFIG, false,
                           "connection_string: expected NAME=VALUE;NAME=VALUE, found a part without '='");
        *value++ = '\0';
        if (strcasecmp(piece, "UseDevelopmentStorage") == 0) {
            p->is_development = strcasecmp(value, "true") == 0;
            continue;
        }
        bool is_known = is_other_service(piece);
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            if (strcasecmp(piece, known[i].key) == 0) {
                *(const char **)((char *)p + known[i].offset) = value;
                is_known = true;
            }
        if (!is_known)
            return err_set(err, ERR_CONFIG, false,
                           "connection_string: the part '%.40s' is none that a connection string has", piece);
    }
    return ERR_NONE;
}

/* What everybody who has the emulator knows. */
#define DEVELOPMENT_NAME "devstoreaccount1"
#define DEVELOPMENT_KEY "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
#define DEVELOPMENT_ENDPOINT "http://127.0.0.1:10000/devstoreaccount1"

static bool is_name(const char *s)
{
    size_t n = strlen(s);
    return n >= 3 && n <= 24 && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789") == n;
}

static bool is_url(const char *s)
{
    bool is_https = strncasecmp(s, "https://", 8) == 0;
    const char *host = s + (is_https ? 8 : 7);
    return (is_https || strncasecmp(s, "http://", 7) == 0) && *host != '\0' && *host != '/' &&
           strpbrk(host, "@?# ;") == NULL;
}

static bool is_text(const char *s)
{
    for (; *s != '\0'; s++)
        if ((unsigned char)*s <= ' ' || (unsigned char)*s >= 0x7f)
            return false;
    return true;
}

static enum err_code check_parts(const struct parts *p, bool has_string, struct err *err)
{
    const char *where = has_string ? "connection_string: " : "";
    if (p->sas[0] == '\0' && p->key[0] == '\0')
        return err_set(err, ERR_CONFIG, false, "%sexpected %s", where,
                       has_string ? "AccountKey=… or SharedAccessSignature=… in it, as the portal shows it"
                                  : "connection_string, or account with account_key, or a sas");
    if (p->sas[0] != '\0' && p->key[0] != '\0')
        return err_set(err, ERR_CONFIG, false, "%sexpected an account key or a SAS, found both", where);
    if (p->key[0] != '\0' && !is_name(p->name))
        return err_set(err, ERR_CONFIG, false,
                       "%s%s: expected the name of the storage account, 3 to 24 lower-case letters and digits", where,
                       has_string ? "AccountName" : "account");
    if (p->endpoint[0] == '\0' && !is_name(p->name))
        return err_set(err, ERR_CONFIG, false, "%sexpected %s or %s, which say where the account is", where,
                       has_string ? "AccountName" : "account", has_string ? "BlobEndpoint" : "endpoint");
    if (p->endpoint[0] != '\0' && !is_url(p->endpoint))
        return err_set(err, ERR_CONFIG, false, "%s%s: expected https://HOST[/PATH]", where,
                       has_string ? "BlobEndpoint" : "endpoint");
    if (!is_text(p->sas) || !is_text(p->key))
        return err_set(err, ERR_CONFIG, false, "%sthe %s has a character that none has (a space, a line end?)", where,
                       p->sas[0] != '\0' ? "SAS" : "account key");
    if (p->sas[0] != '\0' && strstr(p->sas, "sig=") == NULL)
        return err_set(err, ERR_CONFIG, false,
                       "%sthe SAS has no signature (sig=): expected the whole query, sv=…&sig=…", where);
    return ERR_NONE;
}

static const char *or_empty(const char *s)
{
    return s != NULL ? s : "";
}

static bool add(struct buf *b, const char *text, size_t *ret_at)
{
    *ret_at = b->size;
    buf_adds(b, text);
    buf_addc(b, '\0');
    return !b->failed;
}

static enum err_code keep(const struct parts *p, struct azure_account *ret, struct err *err)
{
    struct buf b;
    size_t at[4];
    buf_init(&b);
    at[0] = 0;
    if (p->endpoint[0] != '\0') {
        size_t n = strlen(p->endpoint);
        while (n > 0 && p->endpoint[n - 1] == '/')
            n--;
        buf_printf(&b, "%.*s", (int)n, p->endpoint);
    } else {
        buf_printf(&b, "%s://%s.blob.%s", p->scheme[0] != '\0' ? p->scheme : "https", p->name,
                   p->suffix[0] != '\0' ? p->suffix : "core.windows.net");
    }
    buf_addc(&b, '\0');
    const char *sas = p->sas[0] == '?' ? p->sas + 1 : p->sas;
    if (b.failed || !add(&b, p->name, &at[1]) || !add(&b, p->key, &at[2]) || !add(&b, sas, &at[3])) {
        buf_done(&b);
        return err_nomem(err);
    }
    size_t size = b.size;
    ret->memory = malloc(size);
    if (ret->memory != NULL)
        memcpy(ret->memory, b.data, size);
    explicit_bzero(b.data, size);
    buf_done(&b);
    if (ret->memory == NULL)
        return err_nomem(err);
    ret->endpoint = ret->memory;
    ret->name = ret->memory + at[1];
    ret->key = ret->memory + at[2];
    ret->sas = ret->memory + at[3];
    return ERR_NONE;
}

enum err_code azure_account_new(const struct azure_options *o, struct azure_account *ret, struct err *err)
{
    struct parts p = {0};
    bool has_string = or_empty(o->connection_string)[0] != '\0';
    bool has_more = or_empty(o->account)[0] != '\0' || or_empty(o->account_key)[0] != '\0' ||
                    or_empty(o->sas)[0] != '\0' || or_empty(o->endpoint)[0] != '\0';
    *ret = (struct azure_account){0};
    if (has_string && has_more)
        return err_set(err, ERR_CONFIG, false,
                       "connection_string says all of it: expected no account, account_key, sas or endpoint beside it");
    char *text = has_string ? strdup(o->connection_string) : NULL;
    if (has_string && text == NULL)
        return err_nomem(err);
    enum err_code code = has_string ? take_apart(text, &p, err) : ERR_NONE;
    if (!has_string)
        p = (struct parts){.name = o->account, .key = o->account_key, .sas = o->sas, .endpoint = o->endpoint};
    if (p.is_development) {
        p.name = DEVELOPMENT_NAME;
        p.key = DEVELOPMENT_KEY;
        p.endpoint = p.endpoint != NULL ? p.endpoint : DEVELOPMENT_ENDPOINT;
    }
    const char **all[] = {&p.name, &p.key, &p.sas, &p.endpoint, &p.suffix, &p.scheme};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        *all[i] = or_empty(*all[i]);
    if (code == ERR_NONE)
        code = check_parts(&p, has_string, err);
    if (code == ERR_NONE)
        code = keep(&p, ret, err);
    if (text != NULL)
        explicit_bzero(text, strlen(o->connection_string));
    free(text);
    return code;
}

void azure_account_done(struct azure_account *a)
{
    if (a->memory != NULL) {
        explicit_bzero((char *)(uintptr_t)a->key, strlen(a->key));
        explicit_bzero((char *)(uintptr_t)a->sas, strlen(a->sas));
    }
    free(a->memory);
    *a = (struct azure_account){0};
}

bool azure_is_container(const char *name)
{
    size_t n = strlen(name);
    if (strcmp(name, "$root") == 0)
        return true;
    if (n < 3 || n > 63 || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
        return false;
    return name[0] != '-' && name[n - 1] != '-' && strstr(name, "--") == NULL;
}
