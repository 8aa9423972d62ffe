/* template.c -- names of tables and buckets from paths: {folder} {stem} and their like. */
#include "text.h"

#include <string.h>
#include <strings.h>

enum word { W_FOLDER, W_NAME, W_STEM, W_FIRST, W_EXT, W_PATH, W_PATH_STEM, W_HOST, W_PORT, W_FLOW, W_COUNT };
static const char *const words[W_COUNT + 1] = {"folder",    "name", "stem", "first", "ext", "path",
                                               "path_stem", "host", "port", "flow",  NULL};

/* Which placeholder is the N bytes at S? W_COUNT: none. */
static enum word find_word(const char *s, size_t n)
{
    int w = 0;
    while (w < W_COUNT && (strlen(words[w]) != n || memcmp(words[w], s, n) != 0))
        w++;
    return (enum word)w;
}

/* The parts of a path; all point into it. */
struct parts {
    const char *whole_name; /* {name}: NAME, or the path inside the archive */
    const char *name;
    size_t folders; /* bytes before the last '/' */
    size_t name_length;
    size_t stem_length;
    size_t first_length;
    const char *ext;
    size_t ext_length;
};

/* A dot that comes first begins a hidden name, no extension. */
static size_t last_dot(const char *name, size_t n)
{
    while (n > 1) {
        n--;
        if (name[n] == '.')
            return n;
    }
    return 0;
}

static void split(const char *path, struct parts *p)
{
    const char *slash = strrchr(path, '/');
    p->whole_name = p->name = slash != NULL ? slash + 1 : path;
    p->folders = slash != NULL ? (size_t)(slash - path) : 0;
    p->name_length = strlen(p->name);
    size_t n = p->name_length;
    size_t dot = last_dot(p->name, n);
    if (dot > 0 && (strcasecmp(p->name + dot, ".gz") == 0 || strcasecmp(p->name + dot, ".zst") == 0))
        n = dot;
    dot = last_dot(p->name, n);
    p->stem_length = dot > 0 ? dot : n;
    p->ext = p->name + n;
    p->ext_length = 0;
    if (dot > 0) {
        p->ext = p->name + dot + 1;
        p->ext_length = n - dot - 1;
    }
    const char *first = p->name_length > 0 ? memchr(p->name + 1, '.', p->name_length - 1) : NULL;
    p->first_length = first != NULL ? (size_t)(first - p->name) : p->name_length;
}

static void add_folders(struct buf *ret, const char *path, size_t n)
{
    for (size_t i = 0; i < n; i++)
        buf_addc(ret, path[i] == '/' ? '_' : path[i]);
}

static void add_word(enum word w, const struct template_facts *facts, const struct parts *p, struct buf *ret)
{
    switch (w) {
    case W_FOLDER:
        add_folders(ret, facts->path, p->folders);
        break;
    case W_NAME:
        buf_adds(ret, p->whole_name);
        break;
    case W_STEM:
        buf_add(ret, p->name, p->stem_length);
        break;
    case W_FIRST:
        buf_add(ret, p->name, p->first_length);
        break;
    case W_EXT:
        buf_add(ret, p->ext, p->ext_length);
        break;
    case W_PATH:
        buf_adds(ret, facts->path);
        break;
    case W_PATH_STEM:
        add_folders(ret, facts->path, p->folders);
        if (p->name != facts->path)
            buf_addc(ret, '_');
        buf_add(ret, p->name, p->stem_length);
        break;
    case W_HOST:
        buf_adds(ret, facts->host != NULL ? facts->host : "");
        break;
    case W_PORT:
        buf_adds(ret, facts->port != NULL ? facts->port : "");
        break;
    case W_FLOW:
        buf_adds(ret, facts->flow != NULL ? facts->flow : "");
        break;
    case W_COUNT:
        break;
    }
}

const char *member_name(const char *path)
{
    const char *mark = strstr(path, MEMBER_MARK);
    return mark != NULL ? mark + strlen(MEMBER_MARK) : NULL;
}

unsigned member_depth(const char *path)
{
    unsigned depth = 0;
    while ((path = member_name(path)) != NULL)
        depth++;
    return depth;
}

void member_plain(const char *path, struct buf *ret)
{
    const char *inside;
    for (; (inside = member_name(path)) != NULL; path = inside)
        buf_add(ret, path, (size_t)(inside - path) - 1);
    buf_adds(ret, path);
}

static void expand(const char *tmpl, const struct template_facts *facts, const struct parts *parts, struct buf *ret)
{
    while (*tmpl != '\0') {
        size_t plain = strcspn(tmpl, "{");
        buf_add(ret, tmpl, plain);
        tmpl += plain;
        if (*tmpl == '\0')
            break;
        size_t n = strcspn(tmpl + 1, "{}");
        enum word w = tmpl[1 + n] == '}' ? find_word(tmpl + 1, n) : W_COUNT;
        if (w == W_COUNT) { /* template_check() refuses these; here they stand for themselves */
            buf_addc(ret, *tmpl++);
            continue;
        }
        add_word(w, facts, parts, ret);
        tmpl += n + 2;
    }
}

void template_expand(const char *tmpl, const struct template_facts *facts, struct buf *ret)
{
    struct parts parts;
    const char *inside = member_name(facts->path);
    if (inside == NULL) {
        split(facts->path, &parts);
        expand(tmpl, facts, &parts, ret);
        return;
    }
    struct template_facts plain = *facts;
    struct buf path;
    buf_init(&path);
    member_plain(facts->path, &path);
    if (path.failed) {
        ret->failed = true;
    } else {
        plain.path = path.data;
        split(plain.path, &parts);
        parts.whole_name = path.data + (inside - facts->path) - 1;
        expand(tmpl, &plain, &parts, ret);
    }
    buf_done(&path);
}

static bool unknown_word(const char *tmpl, const char *at, size_t n, struct err *err)
{
    char word[65];
    const char *near = NULL;
    if (n < sizeof word) {
        memcpy(word, at, n);
        word[n] = '\0';
        near = text_nearest(word, words);
    }
    if (near != NULL)
        err_set(err, ERR_CONFIG, false, "template '%s': unknown placeholder {%.*s}; did you mean {%s}?", tmpl, (int)n,
                at, near);
    else
        err_set(err, ERR_CONFIG, false,
                "template '%s': unknown placeholder {%.*s}; there are {folder} {name} {stem} {first} {ext} {path} "
                "{path_stem} {host} {port} {flow}",
                tmpl, (int)n, at);
    return false;
}

bool template_check(const char *tmpl, struct err *err)
{
    if (*tmpl == '\0') {
        err_set(err, ERR_CONFIG, false, "the template is empty: expected a name such as {stem}");
        return false;
    }
    for (const char *p = tmpl; *p != '\0'; p++) {
        if (*p != '{' && *p != '}')
            continue;
        size_t n = *p == '{' ? strcspn(p + 1, "{}") : 0;
        if (*p == '}' || p[1 + n] != '}') {
            err_set(err, ERR_CONFIG, false, "template '%s': '%c' at byte %zu has no partner", tmpl, *p,
                    (size_t)(p - tmpl) + 1);
            return false;
        }
        if (find_word(p + 1, n) == W_COUNT)
            return unknown_word(tmpl, p + 1, n, err);
        p += n + 1;
    }
    return true;
}

bool template_is_constant(const char *tmpl)
{
    for (const char *p = strchr(tmpl, '{'); p != NULL; p = strchr(p + 1, '{')) {
        size_t n = strcspn(p + 1, "{}");
        enum word w = p[1 + n] == '}' ? find_word(p + 1, n) : W_COUNT;
        if (w <= W_PATH_STEM) /* a flow has one source, so host and port are the same for all its files */
            return false;
    }
    return true;
}
