/*
 * glob.c -- does a path match a pattern?
 *
 * Offsets in the pattern are the states of an automaton; all of them that are possible walk along the path together,
 * so the time is at most length of pattern times length of path, whatever stars and braces a pattern has. Every step
 * that takes no character leads to a greater offset: one pass upwards over the set follows them all.
 */
#include "base_internal.h"
#include "text.h"

#include <string.h>
#include <strings.h>

#define GLOB_MAX 1023   /* longer ones are refused by glob_check() and match nothing */
#define GLOB_NESTING 32 /* braces in braces */

/* The braces of a pattern. An offset with `next` 0 is no brace or comma that means something. */
struct braces {
    uint16_t next[GLOB_MAX + 1];  /* '{' and ',': the next ',' or '}' of its group; '}': itself */
    uint16_t close[GLOB_MAX + 1]; /* '{' and ',': the '}' of its group */
};

struct open_group {
    size_t at;
    size_t last; /* '{' or ',' met last */
};

/* Offset after the ']' that closes the class at I, or 0 if none does. A ']' that comes first is a member. */
static size_t class_end(const char *glob, size_t n, size_t i)
{
    i++;
    if (i < n && (glob[i] == '!' || glob[i] == '^'))
        i++;
    for (bool is_first = true; i < n; i++, is_first = false) {
        if (glob[i] == '/')
            return 0;
        if (glob[i] == ']' && !is_first)
            return i + 1;
        if (glob[i] == '\\')
            i++;
    }
    return 0;
}

static void close_group(struct braces *b, const struct open_group *g, size_t at)
{
    b->next[g->last] = (uint16_t)at;
    b->next[at] = (uint16_t)at;
    for (size_t i = g->at; i != at; i = b->next[i])
        b->close[i] = (uint16_t)at;
}

/* Find the groups. Returns the offset of a '{' that is never closed, of a '}' that closes nothing, or N: all is well.
 */
static size_t find_braces(const char *glob, size_t n, struct braces *b)
{
    struct open_group open[GLOB_NESTING];
    size_t depth = 0, bad = n;
    memset(b->next, 0, (n + 1) * sizeof b->next[0]);
    for (size_t i = 0; i < n; i++) {
        switch (glob[i]) {
        case '\\':
            i++;
            break;
        case '[':;
            size_t end = class_end(glob, n, i);
            if (end > 0)
                i = end - 1;
            break;
        case '{':
            if (depth == GLOB_NESTING) {
                bad = i;
                break;
            }
            open[depth++] = (struct open_group){i, i};
            break;
        case ',':
            if (depth > 0) {
                b->next[open[depth - 1].last] = (uint16_t)i;
                open[depth - 1].last = i;
            }
            break;
        case '}':
            if (depth > 0)
                close_group(b, &open[--depth], i);
            else if (bad == n)
                bad = i;
            break;
        default:
            break;
        }
    }
    while (depth > 0) { /* never closed: its brace and commas stand for themselves */
        struct open_group *g = &open[--depth];
        size_t i = g->at;
        do {
            size_t next = b->next[i];
            b->next[i] = 0;
            i = next;
        } while (i != 0);
        bad = g->at;
    }
    return bad;
}

/* A member of a class at *I: its code point; moves *I. */
static uint32_t class_char(const char *glob, size_t end, size_t *i)
{
    uint32_t c;
    if (glob[*i] == '\\' && *i + 1 < end)
        ++*i;
    *i += text_utf8_decode(glob + *i, end - *i, &c);
    return c;
}

/* Is C in the class from I to END (the offset of its ']')? */
static bool class_has(const char *glob, size_t i, size_t end, uint32_t c)
{
    i++;
    bool is_not = glob[i] == '!' || glob[i] == '^';
    if (is_not)
        i++;
    bool is_in = false;
    while (i < end) {
        uint32_t low = class_char(glob, end, &i), high = low;
        if (i + 1 < end && glob[i] == '-') {
            i++;
            high = class_char(glob, end, &i);
        }
        if (c >= low && c <= high)
            is_in = true;
    }
    return is_in != is_not;
}

typedef uint64_t state_set[(GLOB_MAX + 1 + 63) / 64];

static void put(state_set set, size_t i)
{
    set[i / 64] |= UINT64_C(1) << (i % 64);
}

struct matching {
    const char *glob;
    size_t n;
    struct braces braces;
    const char *at; /* the character of the path */
    size_t length;  /* 0 at the end */
    uint32_t c;
    bool starts_name; /* the first of a segment */
};

/* State I before the current character: the states that follow without it go into NOW, those after it into LATER. */
static void step(const struct matching *m, size_t i, state_set now, state_set later)
{
    const char *glob = m->glob;
    bool is_name_char = m->length > 0 && m->c != '/';
    size_t n = m->n, end;
    switch (glob[i]) {
    case '*':
        if (i + 1 < n && glob[i + 1] == '*') {
            put(now, i + 2);
            if (i + 2 < n && glob[i + 2] == '/' && m->starts_name)
                put(now, i + 3); /* any number of folders may be none */
            if (m->length > 0)
                put(later, i);
        } else {
            put(now, i + 1);
            if (is_name_char)
                put(later, i);
        }
        return;
    case '?':
        if (is_name_char)
            put(later, i + 1);
        return;
    case '[':
        end = class_end(glob, n, i);
        if (end == 0)
            break;
        if (is_name_char && class_has(glob, i, end - 1, m->c))
            put(later, end);
        return;
    case '{':
        if (m->braces.next[i] == 0)
            break;
        for (size_t k = i; k != m->braces.close[i]; k = m->braces.next[k])
            put(now, k + 1);
        return;
    case ',':
    case '}':
        if (m->braces.next[i] == 0)
            break;
        put(now, (glob[i] == ',' ? m->braces.close[i] : i) + 1);
        return;
    case '\\':
        if (i + 1 < n)
            i++;
        break;
    default:
        break;
    }
    if (m->length > 0 && m->length <= n - i && memcmp(glob + i, m->at, m->length) == 0)
        put(later, i + m->length);
}

bool glob_match(const char *glob, const char *path)
{
    struct matching m = {.glob = glob, .n = strlen(glob), .starts_name = true};
    if (m.n > GLOB_MAX)
        return false;
    find_braces(glob, m.n, &m.braces);
    size_t words = m.n / 64 + 1, left = strlen(path);
    state_set sets[2] = {{1}};
    uint64_t *now = sets[0], *later = sets[1];
    for (m.at = path;; m.at += m.length) {
        uint64_t any = 0;
        m.length = left > 0 ? text_utf8_decode(m.at, left, &m.c) : 0;
        for (size_t w = 0; w < words; w++) {
            uint64_t done = 0, todo;
            while ((todo = now[w] & ~done) != 0) {
                size_t bit = (size_t)__builtin_ctzll(todo);
                done |= UINT64_C(1) << bit;
                if (w * 64 + bit < m.n)
                    step(&m, w * 64 + bit, now, later);
            }
        }
        if (m.length == 0)
            return (now[m.n / 64] >> (m.n % 64) & 1) != 0;
        for (size_t w = 0; w < words; w++) {
            any |= later[w];
            now[w] = 0;
        }
        if (any == 0)
            return false;
        uint64_t *other = now;
        now = later;
        later = other;
        m.starts_name = m.c == '/';
        left -= m.length;
    }
}

static bool class_check(const char *glob, size_t i, size_t end, struct err *err)
{
    size_t from = i++;
    if (glob[i] == '!' || glob[i] == '^')
        i++;
    while (i < end) {
        uint32_t low = class_char(glob, end, &i), high = low;
        if (i + 1 < end && glob[i] == '-') {
            i++;
            high = class_char(glob, end, &i);
        }
        if (low > high) {
            err_set(err, ERR_CONFIG, false, "pattern '%s': the range in '%.*s' runs backwards and matches nothing",
                    glob, (int)(end + 1 - from), glob + from);
            return false;
        }
    }
    return true;
}

bool glob_check(const char *glob, struct err *err)
{
    size_t n = strlen(glob);
    if (n == 0 || n > GLOB_MAX) {
        err_set(err, ERR_CONFIG, false,
                n == 0 ? "the pattern is empty: write ** for every file"
                       : "the pattern has more than 1023 bytes: write it as several");
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (glob[i] == '\\') {
            if (++i < n)
                continue;
            err_set(err, ERR_CONFIG, false, "pattern '%s' ends with a backslash: write \\\\ for one", glob);
            return false;
        }
        if (glob[i] != '[')
            continue;
        size_t end = class_end(glob, n, i);
        if (end == 0) {
            err_set(err, ERR_CONFIG, false,
                    "pattern '%s': '[' at byte %zu has no ']' in its segment: write \\[ for the character", glob,
                    i + 1);
            return false;
        }
        if (!class_check(glob, i, end - 1, err))
            return false;
        i = end - 1;
    }
    struct braces braces;
    size_t bad = find_braces(glob, n, &braces);
    if (bad < n) {
        err_set(
            err, ERR_CONFIG, false,
            "pattern '%s': '%c' at byte %zu has no partner (or more than 32 are nested): write \\%c for the character",
            glob, glob[bad], bad + 1, glob[bad]);
        return false;
    }
    return true;
}

/* A group that is open: the most slashes of its alternatives so far, and of the one being read. */
struct depth_group {
    int most;
    int before; /* slashes before the group */
};

int glob_depth(const char *glob)
{
    struct braces b;
    struct depth_group open[GLOB_NESTING + 1];
    size_t n = strlen(glob), depth = 0, end;
    int now = 0;
    if (n > GLOB_MAX)
        return -1;
    find_braces(glob, n, &b);
    for (size_t i = 0; i < n; i++) {
        if (glob[i] == '\\' && i + 1 < n) {
            i++;
            now += glob[i] == '/';
        } else if (glob[i] == '[' && (end = class_end(glob, n, i)) > 0) {
            i = end - 1;
        } else if (glob[i] == '*' && glob[i + 1] == '*') {
            return -1;
        } else if (glob[i] == '/') {
            now++;
        } else if (b.next[i] != 0 && glob[i] == '{') {
            open[depth++] = (struct depth_group){now, now};
        } else if (b.next[i] != 0 && depth > 0) {
            struct depth_group *g = &open[depth - 1];
            if (now > g->most)
                g->most = now;
            now = glob[i] == ',' ? g->before : g->most;
            if (glob[i] == '}')
                depth--;
        }
    }
    return now;
}

static bool ends_with(const char *name, size_t n, const char *end)
{
    size_t m = strlen(end);
    return n >= m && strcasecmp(name + n - m, end) == 0;
}

bool path_is_temporary(const char *path)
{
    static const char *const ends[] = {"~",        ".part",       ".tmp",        ".temp",      ".crdownload",
                                       ".partial", ".filepart",   ".download",   ".swp",       ".swo",
                                       ".swx",     ".opdownload", ".inprogress", ".uploading", NULL};
    const char *name = path;
    for (const char *p = path;; p++) {
        if (p == name && *p == '.')
            return true;
        if (*p == '\0')
            break;
        if (*p == '/')
            name = p + 1;
    }
    size_t n = strlen(name);
    for (const char *const *end = ends; *end != NULL; end++) {
        if (ends_with(name, n, *end))
            return true;
    }
    /* Locks of office programs, and an editor's copy of what it has not saved. */
    return strncmp(name, "~$", 2) == 0 || (n >= 2 && name[0] == '#' && name[n - 1] == '#');
}
