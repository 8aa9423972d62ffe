/* keboola_name.c -- names of buckets, tables and columns as Keboola Storage takes them. See keboola_internal.h. */
#include "keboola_internal.h"

#include "text.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static uint32_t hash_of(const char *s)
{
    uint32_t h = 2166136261u; /* FNV-1a: only has to tell two long names of one project apart, the same for ever */
    for (; *s != '\0'; s++)
        h = (h ^ (unsigned char)*s) * 16777619u;
    return h;
}

static bool is_legal(const char *name)
{
    size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-");
    return n > 0 && name[n] == '\0' && name[0] != '_';
}

enum err_code keboola_name(const char *what, const char *name, enum names_policy policy, char *ret, char *ret_key,
                           size_t size, struct err *err)
{
    char shown[128], step[TABLE_NAME_MAX], clean[TABLE_NAME_MAX];
    size_t length = strlen(name);
    if (text_utf8_valid(name, length) != length)
        return err_set(err, ERR_INPUT, false, "%s name \"%s\" is not UTF-8: rename it", what,
                       text_printable(name, shown, sizeof shown));
    const char *source = name;
    if (policy == NAMES_SNAKE) {
        if (name_legal(what, name, NAMES_SNAKE, step, sizeof step, err) != ERR_NONE)
            return err->code;
        source = step;
    }
    size_t used = policy == NAMES_KEEP ? (size_t)snprintf(clean, sizeof clean, "%s", source)
                                       : name_webalize(source, clean, sizeof clean);
    if (used == 0)
        return err_set(err, ERR_INPUT, false,
                       "%s name \"%s\": no ASCII letter or digit is left of it to call the %s by: rename it", what,
                       text_printable(name, shown, sizeof shown), what);
    if (policy == NAMES_KEEP && (!is_legal(clean) || used > KEBOOLA_NAME_MAX))
        return err_set(
            err, ERR_INPUT, false,
            "%s name \"%s\": expected at most %d ASCII letters, digits, '_' and '-', the first no '_'; rename "
            "it, or let `names: keboola` clean it",
            what, text_printable(name, shown, sizeof shown), KEBOOLA_NAME_MAX);
    if (used > KEBOOLA_NAME_MAX) /* a long name is cut; what two long ones differ in may lie behind the cut */
        snprintf(clean + KEBOOLA_NAME_MAX - 9, sizeof clean - KEBOOLA_NAME_MAX + 9, "_%08x", hash_of(name));
    if ((size_t)snprintf(ret, size, "%s", clean) >= size)
        return err_set(err, ERR_INPUT, false, "%s name \"%s\" is too long", what,
                       text_printable(name, shown, sizeof shown));
    size_t i = 0;
    do /* ids that differ only in case are not to be relied on */
        ret_key[i] = (char)tolower((unsigned char)ret[i]);
    while (ret[i++] != '\0');
    return ERR_NONE;
}

/* Names that the databases behind the service keep for themselves get a '_' from it. */
static bool is_reserved(const char *name)
{
    static const char *const reserved[] = {"oid", "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"};
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++)
        if (strcasecmp(name, reserved[i]) == 0)
            return true;
    return false;
}

static enum err_code column_name(const struct shape *shape, size_t i, struct arena *arena, const char **ret,
                                 struct err *err)
{
    const struct column *c = &shape->columns[i];
    char shown[100], clean[TABLE_NAME_MAX];
    text_printable(c->name, shown, sizeof shown);
    if (c->is_made_up)
        return err_set(err, ERR_INPUT, false,
                       "the header has no name of its own for column %zu (it is blank, or another column has it): the "
                       "file goes up as it is, so Keboola needs a name for each column; correct the header",
                       i + 1);
    size_t used = name_webalize(c->name, clean, sizeof clean);
    if (used == 0)
        return err_set(err, ERR_INPUT, false, "column \"%s\": no ASCII letter or digit is left of its name; rename it",
                       shown);
    bool reserved = is_reserved(clean);
    if (used + reserved > KEBOOLA_COLUMN_MAX)
        return err_set(err, ERR_INPUT, false, "column \"%s\" has %zu characters, Keboola takes at most %d; shorten it",
                       shown, used, KEBOOLA_COLUMN_MAX);
    *ret = arena_printf(arena, "%s%s", clean, reserved ? "_" : "");
    return *ret != NULL ? ERR_NONE : err_nomem(err);
}

struct seen {
    char *key;
    size_t index;
};

static int compare_seen(const void *a, const void *b)
{
    return strcmp(((const struct seen *)a)->key, ((const struct seen *)b)->key);
}

enum err_code keboola_columns(const struct shape *shape, struct arena *arena, const char ***ret, struct err *err)
{
    size_t n = shape->column_count;
    const char **names = arena_alloc(arena, (n + 1) * sizeof *names);
    struct seen *seen = arena_alloc(arena, (n + 1) * sizeof *seen);
    if (names == NULL || seen == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++) {
        if (column_name(shape, i, arena, &names[i], err) != ERR_NONE)
            return err->code;
        seen[i] = (struct seen){arena_strdup(arena, names[i]), i};
        if (seen[i].key == NULL)
            return err_nomem(err);
        for (char *c = seen[i].key; *c != '\0'; c++)
            *c = (char)tolower((unsigned char)*c);
    }
    qsort(seen, n, sizeof *seen, compare_seen);
    for (size_t i = 1; i < n; i++) {
        char a[80], b[80];
        if (strcmp(seen[i - 1].key, seen[i].key) == 0)
            return err_set(err, ERR_INPUT, false,
                           "columns \"%s\" and \"%s\" would both be named %s in Keboola; rename one of them",
                           text_printable(shape->columns[seen[i - 1].index].name, a, sizeof a),
                           text_printable(shape->columns[seen[i].index].name, b, sizeof b), names[seen[i].index]);
    }
    *ret = names;
    return ERR_NONE;
}
