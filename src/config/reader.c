/*
 * reader.c -- what went wrong and where, variables, and paths: all that stands between the tree and the values.
 */
#include "config_internal.h"
#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPAND_DEPTH_MAX 8

void reader_nomem(struct reader *r)
{
    r->failed = true;
}

void reader_problem(struct reader *r, size_t line, size_t column, const char *fmt, ...)
{
    char text[sizeof(r->first.text)];
    char shown[256];
    size_t used = 0;
    va_list args;

    r->problem_count++;
    if (r->problem_count > CONFIG_PROBLEMS_MAX)
        return;
    if (r->file != NULL) {
        text_printable(r->file, shown, sizeof(shown));
        if (line > 0)
            snprintf(text, sizeof(text), "%s:%zu:%zu: ", shown, line, column);
        else
            snprintf(text, sizeof(text), "%s: ", shown);
        used = strlen(text);
    }
    va_start(args, fmt);
    vsnprintf(text + used, sizeof(text) - used, fmt, args);
    va_end(args);
    for (char *c = text; *c != '\0'; c++)
        if (*c == '\n')
            *c = ' ';
    if (r->problem_count == 1)
        err_set(&r->first, ERR_CONFIG, false, "%s", text);
    else
        buf_addc(&r->problems, '\n');
    buf_adds(&r->problems, text);
}

void *reader_alloc(struct reader *r, size_t size)
{
    void *p = arena_alloc(&r->scratch, size);

    if (p == NULL)
        reader_nomem(r);
    return p;
}

char *reader_printf(struct reader *r, const char *fmt, ...)
{
    va_list args, again;

    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *s = n < 0 ? NULL : reader_alloc(r, (size_t)n + 1);
    if (s != NULL)
        vsnprintf(s, (size_t)n + 1, fmt, again);
    else
        reader_nomem(r);
    va_end(again);
    return s;
}

const char *hint_nearest(struct reader *r, const char *word, const char *const *choices)
{
    const char *nearest = text_nearest(word, choices);
    if (nearest == NULL)
        return "";
    const char *hint = reader_printf(r, "; did you mean '%s'?", nearest);
    return hint != NULL ? hint : "";
}

/* --- variables --- */

struct expansion {
    struct reader *r;
    const struct node *node;
    const char *where;
    struct buf out;
    bool is_bad;
};

static bool is_name_char(char c, bool is_first)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' || (!is_first && c >= '0' && c <= '9');
}

static void expansion_problem(struct expansion *x, const char *what)
{
    if (!x->is_bad)
        reader_problem(x->r, x->node->line, x->node->column, "%s: %s", x->where, what);
    x->is_bad = true;
}

/* Index of the '}' that closes the "${" before BEGIN, or N. Defaults may hold variables of their own. */
static size_t closing_brace(const char *s, size_t begin, size_t n)
{
    int open = 1;

    for (size_t i = begin; i < n; i++) {
        if (s[i] == '$' && i + 1 < n && s[i + 1] == '{') {
            open++;
            i++;
        } else if (s[i] == '}' && --open == 0) {
            return i;
        }
    }
    return n;
}

static void expand(struct expansion *x, const char *s, size_t n, int depth);

/* "NAME" or "NAME:-default": what stands between the braces. */
static void expand_variable(struct expansion *x, const char *s, size_t n, int depth)
{
    size_t name_size = 0;
    char what[256];

    while (name_size < n && is_name_char(s[name_size], name_size == 0))
        name_size++;
    bool has_default = n >= name_size + 2 && s[name_size] == ':' && s[name_size + 1] == '-';
    if (name_size == 0 || (name_size < n && !has_default)) {
        expansion_problem(x, "'${' begins a variable: write ${NAME} or ${NAME:-default}, or $${ for the characters");
        return;
    }
    char *name = reader_printf(x->r, "%.*s", (int)name_size, s);
    if (name == NULL)
        return;
    const char *value = getenv(name);
    if (value != NULL && (value[0] != '\0' || !has_default)) {
        buf_adds(&x->out, value);
    } else if (has_default) {
        expand(x, s + name_size + 2, n - name_size - 2, depth + 1);
    } else {
        char shown[80];
        text_printable(name, shown, sizeof(shown));
        snprintf(what, sizeof(what), "the variable %s is not set; set it, or write ${%s:-default}", shown, shown);
        expansion_problem(x, what);
    }
}

static void expand(struct expansion *x, const char *s, size_t n, int depth)
{
    if (depth > EXPAND_DEPTH_MAX) {
        expansion_problem(x, "variables are nested too deep");
        return;
    }
    for (size_t i = 0; i < n && !x->is_bad; i++) {
        if (n - i >= 3 && memcmp(s + i, "$${", 3) == 0) {
            buf_adds(&x->out, "${");
            i += 2;
        } else if (n - i >= 2 && s[i] == '$' && s[i + 1] == '{') {
            size_t end = closing_brace(s, i + 2, n);
            if (end == n) {
                expansion_problem(x, "'${' without '}'; write $${ for the characters themselves");
                return;
            }
            expand_variable(x, s + i + 2, end - i - 2, depth);
            i = end;
        } else {
            buf_addc(&x->out, s[i]);
        }
        if (x->out.size > CONFIG_VALUE_MAX)
            expansion_problem(x, "longer than 64 KiB");
    }
}

const char *value_text(struct reader *r, const struct node *node, const char *where)
{
    char *text = NULL;

    if (node->is_final || strchr(node->text, '$') == NULL) {
        if (strlen(node->text) > CONFIG_VALUE_MAX) {
            reader_problem(r, node->line, node->column, "%s: longer than 64 KiB", where);
            return NULL;
        }
        text = arena_strdup(r->arena, node->text);
        if (text == NULL)
            reader_nomem(r);
        return text;
    }
    struct expansion x = {.r = r, .node = node, .where = where};
    buf_init(&x.out);
    expand(&x, node->text, strlen(node->text), 0);
    if (x.out.failed)
        reader_nomem(r);
    else if (!x.is_bad && (text = arena_strndup(r->arena, x.out.data, x.out.size)) == NULL)
        reader_nomem(r);
    buf_done(&x.out);
    return text;
}

/* --- paths --- */

char *path_absolute(struct arena *arena, const char *folder, const char *path)
{
    size_t room = strlen(folder) + strlen(path) + 3;
    char *joined = arena_alloc(arena, room);
    char *out = arena_alloc(arena, room);

    if (joined == NULL || out == NULL)
        return NULL;
    if (path[0] == '/')
        snprintf(joined, room, "%s", path);
    else
        snprintf(joined, room, "%s/%s", folder, path);
    /* ".." stays: what it means depends on links, which only the kernel follows right. */
    size_t used = 0;
    for (char *save = NULL, *part = strtok_r(joined, "/", &save); part != NULL; part = strtok_r(NULL, "/", &save)) {
        if (strcmp(part, ".") == 0)
            continue;
        out[used++] = '/';
        size_t n = strlen(part);
        memcpy(out + used, part, n);
        used += n;
    }
    if (used == 0)
        out[used++] = '/';
    out[used] = '\0';
    return out;
}

bool path_is_within(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    if (strcmp(folder, "/") == 0)
        return true;
    return strncmp(path, folder, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

char *current_folder(struct reader *r)
{
    char *cwd = getcwd(NULL, 0);

    if (cwd == NULL) {
        reader_problem(r, 0, 0, "the current folder can't be read; change to one that exists");
        return NULL;
    }
    char *copy = reader_printf(r, "%s", cwd);
    free(cwd);
    return copy;
}
