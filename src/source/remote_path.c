/* remote_path.c -- addresses, escapes and globs. */
#include "remote_path.h"

#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum err_code remote_url_parse(const char *text, const char *const *schemes, struct remote_url *ret, struct err *err)
{
    const char *rest = strstr(text, "://");
    size_t n = rest != NULL ? (size_t)(rest - text) : 0;
    bool is_known = false;
    for (size_t i = 0; schemes[i] != NULL; i++)
        is_known = is_known || (strlen(schemes[i]) == n && strncmp(schemes[i], text, n) == 0);
    memset(ret, 0, sizeof *ret);
    if (!is_known)
        return err_set(err, ERR_CONFIG, false, "url: expected %s://[USER@]HOST[:PORT][/FOLDER]", schemes[0]);
    rest += 3;
    size_t authority = strcspn(rest, "/?#");
    const char *at = memchr(rest, '@', authority), *next;
    while (at != NULL && (next = memchr(at + 1, '@', authority - (size_t)(at + 1 - rest))) != NULL)
        at = next;
    if (at != NULL) {
        size_t user = (size_t)(at - rest);
        if (memchr(rest, ':', user) != NULL)
            return err_set(err, ERR_CONFIG, false,
                           "url: a password in it would be seen wherever the url is shown; use password_file, or "
                           "password: \"${VARIABLE}\"");
        if (user == 0 || user >= sizeof ret->user)
            return err_set(err, ERR_CONFIG, false, "url: the user is empty or too long");
        memcpy(ret->user, rest, user);
        rest = at + 1;
        authority -= user + 1;
    }
    size_t host = authority;
    const char *port = NULL;
    if (rest[0] == '[') {
        const char *close = memchr(rest, ']', authority);
        if (close == NULL)
            return err_set(err, ERR_CONFIG, false, "url: '[' has no partner");
        host = (size_t)(close - rest) - 1;
        port = (size_t)(close + 1 - rest) < authority ? close + 1 : NULL;
        if (host > 0 && host < sizeof ret->host)
            memcpy(ret->host, rest + 1, host);
    } else {
        const char *colon = memchr(rest, ':', authority);
        host = colon != NULL ? (size_t)(colon - rest) : authority;
        port = colon;
        if (host > 0 && host < sizeof ret->host)
            memcpy(ret->host, rest, host);
    }
    if (ret->host[0] == '\0')
        return err_set(err, ERR_CONFIG, false, "url: the host is missing or too long");
    if (port != NULL) {
        size_t digits = strspn(port + 1, "0123456789");
        unsigned long value = digits > 0 && digits <= 5 ? strtoul(port + 1, NULL, 10) : 0;
        if (port[0] != ':' || port + 1 + digits != rest + authority || value == 0 || value > 65535)
            return err_set(err, ERR_CONFIG, false, "url: expected a port from 1 to 65535 behind the host");
        ret->port = (unsigned)value;
    }
    const char *path = rest + authority;
    if (strpbrk(path, "?#") != NULL)
        return err_set(err, ERR_CONFIG, false, "url: '?' and '#' mean nothing here");
    if ((size_t)snprintf(ret->root, sizeof ret->root, "%s", path[0] == '/' ? path : "/") >= sizeof ret->root)
        return err_set(err, ERR_CONFIG, false, "url: its folder is too long");
    for (size_t length = strlen(ret->root); length > 1 && ret->root[length - 1] == '/'; length--)
        ret->root[length - 1] = '\0';
    return ERR_NONE;
}

static void escape(const char *s, struct buf *ret)
{
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        bool is_plain =
            (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-._~/", c) != NULL;
        if (is_plain)
            buf_addc(ret, *s);
        else
            buf_printf(ret, "%%%02X", c);
    }
}

void remote_url_path(const char *root, const char *path, bool is_folder, bool is_ftp, struct buf *ret)
{
    bool is_top = strcmp(root, "/") == 0;
    buf_adds(ret, is_ftp ? "/%2F" : "/");
    escape(is_top ? "" : root + 1, ret);
    if (path[0] != '\0') {
        if (!is_top)
            buf_addc(ret, '/');
        escape(path, ret);
    }
    bool is_bare = is_top && path[0] == '\0';
    if (is_folder && !is_bare)
        buf_addc(ret, '/');
    else if (is_folder && is_ftp)
        buf_addc(ret, '/');
}

void remote_full_path(const char *root, const char *path, struct buf *ret)
{
    buf_adds(ret, root);
    if (path[0] == '\0')
        return;
    if (strcmp(root, "/") != 0)
        buf_addc(ret, '/');
    buf_adds(ret, path);
}

/* ---- globs: with a slash before them in the configuration ---- */

static const char *below_root(const char *glob)
{
    return glob + strspn(glob, "/");
}

enum err_code remote_globs_check(const struct option_strings *globs, struct err *err)
{
    for (size_t i = 0; i < globs->count; i++) {
        const char *glob = globs->items[i];
        struct err why = {0};
        if (below_root(glob)[0] == '\0')
            return err_set(err, ERR_CONFIG, false, "paths: \"%s\" names no files; expected something like \"/**\"",
                           glob);
        if (!glob_check(below_root(glob), &why))
            return err_set(err, ERR_CONFIG, false, "paths: %s", why.text);
        if (strstr(below_root(glob), "//") != NULL || strstr(glob, "/../") != NULL || strstr(glob, "/./") != NULL)
            return err_set(err, ERR_CONFIG, false, "paths: \"%s\": expected one '/' between names, and no . or ..",
                           glob);
    }
    return ERR_NONE;
}

static size_t plain_length(const char *glob)
{
    return strcspn(glob, "*?[{\\");
}

bool remote_glob_is_plain(const char *glob)
{
    return below_root(glob)[plain_length(below_root(glob))] == '\0';
}

void remote_glob_base(const char *glob, struct buf *ret)
{
    const char *g = below_root(glob);
    size_t n = plain_length(g);
    while (n > 0 && g[n] != '/')
        n--;
    if (g[n] == '/')
        buf_add(ret, g, n);
    else
        buf_adds(ret, "");
}

bool remote_takes(const struct option_strings *globs, const char *path)
{
    for (size_t i = 0; i < globs->count; i++)
        if (glob_match(below_root(globs->items[i]), path))
            return true;
    return false;
}

/*
 * Does some beginning of GLOB, cut before one of its slashes, match FOLDER; or does it have a "**", which matches below
 * anything that what comes before it matches? Braces may hold slashes: then nothing is cut, and all is entered.
 */
static bool may_match_below(const char *glob, const char *folder)
{
    char head[1024];
    if (strchr(glob, '{') != NULL)
        return true;
    for (const char *at = glob; *at != '\0'; at++) {
        bool is_deep = at[0] == '*' && at[1] == '*';
        if (*at != '/' && !is_deep)
            continue;
        size_t n = (size_t)(at - glob);
        if ((size_t)snprintf(head, sizeof head, "%.*s%s", (int)n, glob, is_deep ? "**" : "") >= sizeof head)
            return true;
        if (glob_match(head, folder))
            return true;
        if (is_deep)
            return false;
    }
    return false;
}

bool remote_enters(const struct option_strings *globs, const char *folder)
{
    for (size_t i = 0; i < globs->count; i++)
        if (may_match_below(below_root(globs->items[i]), folder))
            return true;
    return false;
}
