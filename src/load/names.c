/* names.c -- names of tables and columns as a destination can take them. See load_internal.h. */
#include "load_internal.h"

#include "text.h"

#include <stdio.h>
#include <string.h>

static unsigned char lower(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c + ('a' - 'A')) : c;
}

bool name_same_nocase(const char *a, const char *b)
{
    const unsigned char *x = (const unsigned char *)a;
    const unsigned char *y = (const unsigned char *)b;
    while (*x != '\0' && lower(*x) == lower(*y)) {
        x++;
        y++;
    }
    return lower(*x) == lower(*y);
}

static bool is_word(unsigned char c)
{
    /* Bytes above ASCII are letters of some script: kept as they are. */
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
}

/* "OrderItems 2024" -> "order_items_2024". Returns the length it wants, as snprintf does. */
static size_t snake(const char *name, char *ret, size_t size)
{
    size_t used = 0;
    bool gap = false;
    unsigned char before = 0;
    for (const unsigned char *p = (const unsigned char *)name; *p != '\0'; before = *p++) {
        if (!is_word(*p)) {
            gap = true;
            continue;
        }
        bool is_upper = *p >= 'A' && *p <= 'Z';
        bool after_small = (before >= 'a' && before <= 'z') || (before >= '0' && before <= '9');
        if (used > 0 && (gap || (is_upper && after_small))) {
            if (used + 1 < size)
                ret[used] = '_';
            used++;
        }
        gap = false;
        if (used + 1 < size)
            ret[used] = (char)lower(*p);
        used++;
    }
    if (size > 0)
        ret[used < size ? used : size - 1] = '\0';
    return used;
}

size_t name_webalize(const char *s, char *ret, size_t size)
{
    char ascii[4 * TABLE_NAME_MAX];
    size_t used = 0, wanted = name_ascii(s, ascii, sizeof(ascii));
    bool gap = false;
    for (const char *p = ascii; *p != '\0'; p++) {
        bool is_plain = (*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || *p == '_';
        if (!is_plain && gap)
            continue;
        gap = !is_plain;
        if (used == 0 && (gap || *p == '_'))
            continue;
        if (used + 1 < size)
            ret[used] = gap ? '_' : *p;
        used++;
    }
    size_t kept = used < size ? used : size - 1;
    if (wanted < sizeof(ascii) && used < size)
        while (kept > 0 && ret[kept - 1] == '_')
            used = --kept;
    ret[kept] = '\0';
    return wanted < sizeof(ascii) ? used : wanted;
}

/* Characters, not bytes: of what is no ASCII one '-' is left. A part between slashes that is empty is called none. */
static size_t blob(const char *s, char *ret, size_t size)
{
    size_t used = 0;
    bool begins = true;
    for (const char *p = s;; p++) {
        bool ends = *p == '/' || *p == '\0';
        const char *add = ends && begins ? "none" : "";
        for (; *add != '\0'; add++, used++)
            if (used + 1 < size)
                ret[used] = *add;
        if (*p == '\0')
            break;
        if (((unsigned char)*p & 0xC0) == 0x80)
            continue;
        bool is_plain = (*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
                        strchr(".-_ /", *p) != NULL;
        if (used + 1 < size)
            ret[used] = is_plain ? *p : '-';
        used++;
        begins = *p == '/';
    }
    if (size > 0)
        ret[used < size ? used : size - 1] = '\0';
    return used;
}

/* NAME under a POLICY that changes it; the length it wants. */
static size_t changed(enum names_policy policy, const char *name, char *ret, size_t size)
{
    if (policy == NAMES_BLOB)
        return blob(name, ret, size);
    return policy == NAMES_SNAKE ? snake(name, ret, size) : name_webalize(name, ret, size);
}

enum err_code name_legal(const char *what, const char *name, enum names_policy policy, char *ret, size_t size,
                         struct err *err)
{
    char shown[128];
    size_t length = strlen(name);
    /* of a blob's name only ASCII is left: bytes that are no character become '-' as well */
    if (policy != NAMES_BLOB && text_utf8_valid(name, length) != length)
        return err_set(err, ERR_INPUT, false, "%s name \"%s\" is not UTF-8: rename it", what,
                       text_printable(name, shown, sizeof(shown)));
    size_t used = policy != NAMES_KEEP ? changed(policy, name, ret, size) : (size_t)snprintf(ret, size, "%s", name);
    if (used >= size)
        return err_set(err, ERR_INPUT, false, "%s name \"%s\" has %zu bytes, at most %zu are possible: shorten it",
                       what, text_printable(name, shown, sizeof(shown)), used, size - 1);
    if (used == 0)
        return err_set(err, ERR_INPUT, false, "%s name \"%s\" leaves nothing to call it by: rename it", what,
                       text_printable(name, shown, sizeof(shown)));
    return ERR_NONE;
}

static bool is_taken(const char *name, const char *const *names, size_t count, bool (*same)(const char *, const char *))
{
    for (size_t i = 0; i < count; i++)
        if (names[i] != NULL && same(names[i], name))
            return true;
    return false;
}

static const char *with_suffix(const char *wanted, char joint, const char *const *names, size_t count,
                               bool (*same)(const char *, const char *), struct arena *arena)
{
    const char *name = wanted;
    for (unsigned i = 1; name != NULL && is_taken(name, names, count, same); i++)
        name = arena_printf(arena, "%s%c%u", wanted, joint, i);
    return name;
}

const char *names_free_one(const char *wanted, const char *const *names, size_t count,
                           bool (*same)(const char *, const char *), struct arena *arena)
{
    return with_suffix(wanted, '.', names, count, same, arena);
}

enum err_code names_columns(const struct shape *shape, enum names_policy policy,
                            bool (*same)(const char *, const char *), struct arena *arena, const char ***ret_names,
                            struct err *err)
{
    char legal[TABLE_NAME_MAX];
    const char **names = arena_alloc(arena, (shape->column_count + 1) * sizeof(*names));
    if (names == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < shape->column_count; i++) {
        const char *wanted = shape->columns[i].name;
        if (policy != NAMES_KEEP) {
            if (changed(policy, wanted, legal, sizeof(legal)) == 0)
                snprintf(legal, sizeof(legal), "column_%zu", i);
            wanted = arena_strdup(arena, legal);
        }
        if (wanted == NULL)
            return err_nomem(err);
        /* Inspect made them unique as bytes; "A" and "a" are still one column to a database that ignores case. */
        names[i] = with_suffix(wanted, policy != NAMES_KEEP ? '_' : '.', names, i, same, arena);
        if (names[i] == NULL)
            return err_nomem(err);
    }
    *ret_names = names;
    return ERR_NONE;
}
