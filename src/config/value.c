/*
 * value.c -- one text to one value, one mapping to one struct: the only place that knows what an option type looks
 * like.
 */
#include "config_internal.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *at(void *base, size_t offset)
{
    return (char *)base + offset;
}

/* Text of a single value, or NULL with the problem noted: it is no scalar, or a variable is missing. */
static const char *scalar_text(struct reader *r, const struct node *node, const char *where, const char *expected)
{
    char found[80];

    if (node->kind == NODE_SCALAR)
        return value_text(r, node, where);
    reader_problem(r, node->line, node->column, "%s: expected %s, found %s%s", where, expected,
                   node_found(node, found, sizeof(found)),
                   node->kind == NODE_NULL && strstr(expected, "text") != NULL ? " (write \"\" for an empty text)"
                                                                               : "");
    return NULL;
}

static void wrong(struct reader *r, const struct node *node, const char *where, const char *expected, const char *hint)
{
    char found[80];

    reader_problem(r, node->line, node->column, "%s: expected %s, found %s%s", where, expected,
                   node_found(node, found, sizeof(found)), hint);
}

/* A quoted number is a text; only a variable inside makes quotes necessary in some editors, so those pass. */
static bool is_quoted_text(const struct node *node)
{
    return node->kind == NODE_SCALAR && !node->is_plain && !node->is_final && strchr(node->text, '$') == NULL;
}

static void read_string(struct reader *r, const struct node *node, const char *where, const char **ret)
{
    const char *text = scalar_text(r, node, where, "a text");

    if (text != NULL)
        *ret = text;
}

static void read_path(struct reader *r, const struct node *node, const char *where, const char **ret)
{
    const char *text = scalar_text(r, node, where, "a path");

    if (text == NULL)
        return;
    if (text[0] == '\0') {
        reader_problem(r, node->line, node->column, "%s: expected a path, found an empty text", where);
        return;
    }
    if (text[0] == '~' && (text[1] == '/' || text[1] == '\0')) {
        reader_problem(r, node->line, node->column, "%s: '~' is not replaced here; write ${HOME}%s", where, text + 1);
        return;
    }
    *ret = path_absolute(r->arena, r->folder, text);
    if (*ret == NULL)
        reader_nomem(r);
}

static void read_secret(struct reader *r, const struct node *node, const char *where, const char **ret)
{
    if (node->kind != NODE_SCALAR) {
        reader_problem(r, node->line, node->column, "%s: expected a text", where);
        return;
    }
    const char *text = value_text(r, node, where);
    if (text == NULL)
        return;
    if (!log_secret(text)) /* what can't be hidden from the log is not used */
        reader_nomem(r);
    *ret = text;
}

/* The twin of a secret: the text of a file, without the line end that editors put there. */
static void read_secret_file(struct reader *r, const struct node *node, const char *where, const char **ret)
{
    const char *path = NULL;
    char shown[160];

    read_path(r, node, where, &path);
    if (path == NULL)
        return;
    text_printable(path, shown, sizeof(shown));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    char *text = arena_alloc(r->arena, CONFIG_SECRET_MAX + 1);
    if (text == NULL) {
        reader_nomem(r);
        goto close_fd;
    }
    size_t used = 0;
    ssize_t n = -1;
    while (fd >= 0 && (n = read(fd, text + used, CONFIG_SECRET_MAX + 1 - used)) > 0)
        if ((used += (size_t)n) > CONFIG_SECRET_MAX)
            break;
    if (fd < 0 || n < 0) {
        reader_problem(r, node->line, node->column, "%s: can't read %s: %s", where, shown, strerror(errno));
        goto close_fd;
    }
    if (used > CONFIG_SECRET_MAX || memchr(text, '\0', used) != NULL) {
        reader_problem(r, node->line, node->column, "%s: %s is not a secret: longer than 64 KiB or binary", where,
                       shown);
        goto close_fd;
    }
    while (used > 0 && (text[used - 1] == '\n' || text[used - 1] == '\r'))
        used--;
    text[used] = '\0';
    if (used == 0) {
        reader_problem(r, node->line, node->column, "%s: %s is empty", where, shown);
        goto close_fd;
    }
    if (!log_secret(text)) /* what can't be hidden from the log is not used */
        reader_nomem(r);
    *ret = text;
close_fd:
    if (fd >= 0)
        close(fd);
}

static void read_bool(struct reader *r, const struct node *node, const char *where, bool *ret)
{
    const char *text = scalar_text(r, node, where, "true or false");

    if (text == NULL)
        return;
    if (!is_quoted_text(node) && strcmp(text, "true") == 0)
        *ret = true;
    else if (!is_quoted_text(node) && strcmp(text, "false") == 0)
        *ret = false;
    else
        wrong(r, node, where, "true or false", is_quoted_text(node) ? " in quotes" : "");
}

static const char *range_text(const struct option *o, char *ret, size_t size)
{
    char low[40], high[40];

    if (o->type == OPT_DURATION) {
        text_format_duration((uint64_t)o->min, low, sizeof(low));
        text_format_duration((uint64_t)o->max, high, sizeof(high));
    } else if (o->type == OPT_SIZE) {
        text_format_size((uint64_t)o->min, low, sizeof(low));
        text_format_size((uint64_t)o->max, high, sizeof(high));
    } else {
        snprintf(low, sizeof(low), "%lld", (long long)o->min);
        snprintf(high, sizeof(high), "%lld", (long long)o->max);
    }
    snprintf(ret, size, "%s to %s", low, high);
    return ret;
}

/* INT, SIZE, DURATION: 64 bits, with bounds. */
static void read_number(struct reader *r, const struct option *o, const struct node *node, const char *where, void *ret)
{
    const char *expected = o->type == OPT_INT    ? "a whole number"
                           : o->type == OPT_SIZE ? "a size such as 64KiB, 10MiB or 1GiB"
                                                 : "a duration such as 500ms, 5s, 10m, 2h or 7d";
    const char *text = scalar_text(r, node, where, expected);
    uint64_t value = 0;
    bool is_good = text != NULL;

    if (text == NULL)
        return;
    if (o->type == OPT_INT) {
        char *end;
        errno = 0;
        long long number = strtoll(text, &end, 10);
        is_good =
            errno == 0 && end != text && *end == '\0' && text[0] != '+' && text[0] != ' ' && !is_quoted_text(node);
        value = (uint64_t)number;
    } else if (o->type == OPT_SIZE) {
        is_good = text_parse_size(text, &value);
    } else {
        is_good = text_parse_duration(text, &value);
    }
    if (!is_good) {
        wrong(r, node, where, expected, o->type == OPT_INT && is_quoted_text(node) ? " in quotes" : "");
        return;
    }
    if (o->min != 0 || o->max != 0) {
        bool is_inside = o->type == OPT_INT ? (int64_t)value >= o->min && (int64_t)value <= o->max
                                            : value >= (uint64_t)o->min && value <= (uint64_t)o->max;
        if (!is_inside) {
            char range[96];
            wrong(r, node, where, range_text(o, range, sizeof(range)), "");
            return;
        }
    }
    memcpy(ret, &value, sizeof(value));
}

static void read_float(struct reader *r, const struct node *node, const char *where, double *ret)
{
    const char *text = scalar_text(r, node, where, "a number");
    char *end;

    if (text == NULL)
        return;
    double value = strtod(text, &end);
    /* strtod knows words and hexadecimal numbers; a configuration does not. */
    if (end == text || *end != '\0' || !isfinite(value) || strspn(text, "+-.0123456789eE") != strlen(text) ||
        is_quoted_text(node))
        wrong(r, node, where, "a number", is_quoted_text(node) ? " in quotes" : "");
    else
        *ret = value;
}

static const char *one_of(struct reader *r, const struct option *o)
{
    struct buf b;
    const char *text = NULL;

    buf_init(&b);
    buf_adds(&b, o->choices[0] != NULL && o->choices[1] == NULL && o->sub == NULL ? "" : "one of ");
    for (size_t i = 0; o->choices[i] != NULL; i++)
        buf_printf(&b, "%s%s", i > 0 ? ", " : "", o->choices[i]);
    if (o->type == OPT_ENUM_OR)
        buf_printf(&b, ", {%s: ...}", o->sub[0].name);
    if (!b.failed)
        text = reader_printf(r, "%s", b.data);
    else
        reader_nomem(r);
    buf_done(&b);
    return text != NULL ? text : "another value";
}

static void read_enum(struct reader *r, const struct option *o, const struct node *node, const char *where, int *ret)
{
    if (node->kind != NODE_SCALAR) {
        scalar_text(r, node, where, one_of(r, o));
        return;
    }
    const char *text = value_text(r, node, where);
    if (text == NULL)
        return;
    for (int i = 0; o->choices[i] != NULL; i++)
        if (strcmp(text, o->choices[i]) == 0) {
            *ret = i;
            return;
        }
    wrong(r, node, where, one_of(r, o), hint_nearest(r, text, o->choices));
}

static void read_char(struct reader *r, const struct option *o, const struct node *node, const char *where, char *ret)
{
    const char *expected = o->choices != NULL ? reader_printf(r, "one character or %s", one_of(r, o)) : "one character";
    const char *text = scalar_text(r, node, where, expected != NULL ? expected : "one character");

    if (text == NULL)
        return;
    for (size_t i = 0; o->choices != NULL && o->choices[i] != NULL; i++)
        if (strcmp(text, o->choices[i]) == 0) {
            *ret = '\0';
            return;
        }
    if (strcmp(text, "\\t") == 0)
        *ret = '\t';
    else if (text[0] != '\0' && text[1] == '\0' && (unsigned char)text[0] < 0x80 && text[0] != '\n' && text[0] != '\r')
        *ret = text[0];
    else
        wrong(r, node, where, expected != NULL ? expected : "one character", "");
}

static void read_strings(struct reader *r, const struct node *node, const char *where, struct option_strings *ret)
{
    size_t count = 0;

    if (node->kind != NODE_SEQUENCE) {
        wrong(r, node, where, "a list such as [a, b]", "");
        return;
    }
    const char **items = arena_alloc(r->arena, (node->count + 1) * sizeof(*items));
    if (items == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *n = node->first; n != NULL; n = n->next) {
        const char *text = scalar_text(r, n, where, "a text in this list");
        if (text != NULL)
            items[count++] = text;
    }
    ret->items = count > 0 ? items : NULL;
    ret->count = count;
}

static void read_paths(struct reader *r, const struct node *node, const char *where, struct option_strings *ret)
{
    struct option_strings texts = {NULL, 0};

    read_strings(r, node, where, &texts);
    const char **items = arena_alloc(r->arena, (texts.count + 1) * sizeof(*items));
    if (items == NULL) {
        reader_nomem(r);
        return;
    }
    for (size_t i = 0; i < texts.count; i++) {
        if (texts.items[i][0] == '\0') {
            wrong(r, node, where, "a path in this list", "");
            return;
        }
        if ((items[i] = path_absolute(r->arena, r->folder, texts.items[i])) == NULL) {
            reader_nomem(r);
            return;
        }
    }
    *ret = (struct option_strings){texts.count > 0 ? items : NULL, texts.count};
}

static void read_pairs(struct reader *r, const struct node *node, const char *where, struct option_pairs *ret)
{
    size_t count = 0;

    if (node->kind != NODE_MAPPING) {
        wrong(r, node, where, "a mapping such as {name: text}", "");
        return;
    }
    struct option_pair *items = arena_alloc(r->arena, (node->count + 1) * sizeof(*items));
    if (items == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *n = node->first; n != NULL; n = n->next) {
        char shown[64];
        const char *place = reader_printf(r, "%s.%s", where, text_printable(n->key, shown, sizeof(shown)));
        const char *text = place != NULL ? scalar_text(r, n, place, "a text") : NULL;
        if (text == NULL)
            continue;
        items[count].name = arena_strdup(r->arena, n->key);
        items[count].value = text;
        if (items[count++].name == NULL) {
            reader_nomem(r);
            return;
        }
    }
    *ret = (struct option_pairs){count > 0 ? items : NULL, count};
}

static void read_type_map(struct reader *r, const struct node *node, const char *where, struct option_types *ret)
{
    size_t count = 0;
    struct option_type_entry *entries = arena_alloc(r->arena, (node->count + 1) * sizeof(*entries));

    if (entries == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *n = node->first; n != NULL; n = n->next) {
        char shown[64];
        const char *place = reader_printf(r, "%s.%s", where, text_printable(n->key, shown, sizeof(shown)));
        if (place == NULL)
            return;
        const struct option column_type = {.name = "type", .type = OPT_ENUM, .choices = config_column_types};
        int type = -1;
        read_enum(r, &column_type, n, place, &type);
        entries[count].column = arena_strdup(r->arena, n->key);
        if (entries[count].column == NULL)
            reader_nomem(r);
        if (type >= 0)
            entries[count++].type = config_column_types[type];
    }
    *ret = (struct option_types){.policy = TYPES_MAP, .entries = entries, .count = count};
}

static void read_types(struct reader *r, const struct node *node, const char *where, struct option_types *ret)
{
    static const char *const words[] = {"infer", "text", NULL};
    const char *expected = "text, infer, or a mapping {column: type}";

    if (node->kind == NODE_MAPPING) {
        read_type_map(r, node, where, ret);
        return;
    }
    if (node->kind != NODE_SCALAR) {
        wrong(r, node, where, expected, "");
        return;
    }
    const char *text = value_text(r, node, where);
    if (text == NULL)
        return;
    if (strcmp(text, "infer") == 0)
        *ret = (struct option_types){.policy = TYPES_INFER};
    else if (strcmp(text, "text") == 0)
        *ret = (struct option_types){.policy = TYPES_TEXT};
    else
        wrong(r, node, where, expected, hint_nearest(r, text, words));
}

static void read_group(struct reader *r, const struct option *sub, void *base, const struct node *node,
                       const char *where)
{
    const struct target target = {sub, base};

    if (node->kind != NODE_MAPPING)
        wrong(r, node, where, "a mapping (key: value)", "");
    else
        options_read(r, &target, 1, NULL, node, where);
}

static void read_value(struct reader *r, const struct option *o, void *base, const struct node *node, const char *where)
{
    void *ret = at(base, o->offset);
    int word = 0;

    switch (o->type) {
    case OPT_STRING:
        read_string(r, node, where, ret);
        break;
    case OPT_PATH:
        read_path(r, node, where, ret);
        break;
    case OPT_SECRET:
        read_secret(r, node, where, ret);
        break;
    case OPT_BOOL:
        read_bool(r, node, where, ret);
        break;
    case OPT_INT:
    case OPT_SIZE:
    case OPT_DURATION:
        read_number(r, o, node, where, ret);
        break;
    case OPT_FLOAT:
        read_float(r, node, where, ret);
        break;
    case OPT_CHAR:
        read_char(r, o, node, where, ret);
        break;
    case OPT_STRINGS:
        read_strings(r, node, where, ret);
        break;
    case OPT_PATHS:
        read_paths(r, node, where, ret);
        break;
    case OPT_PAIRS:
        read_pairs(r, node, where, ret);
        break;
    case OPT_TYPES:
        read_types(r, node, where, ret);
        break;
    case OPT_GROUP:
        read_group(r, o->sub, ret, node, where);
        break;
    case OPT_ENUM_OR:
        if (node->kind == NODE_MAPPING) {
            word = o->or_value;
            memcpy(ret, &word, sizeof(word));
            read_group(r, o->sub, base, node, where);
            break;
        }
        /* fall through */
    case OPT_ENUM:
        memcpy(&word, ret, sizeof(word));
        read_enum(r, o, node, where, &word);
        memcpy(ret, &word, sizeof(word));
        break;
    }
}

/* --- tables --- */

const struct option *options_find(const struct option *table, const char *name)
{
    for (const struct option *o = table; o != NULL && o->name != NULL; o++)
        if (strcmp(o->name, name) == 0)
            return o;
    return NULL;
}

const void *options_member(const struct option *table, const void *base, const char *name, enum option_type type)
{
    const struct option *o = options_find(table, name);

    return o != NULL && o->type == type ? (const char *)base + o->offset : NULL;
}

/* TEXT as a table or a driver writes it: lists and mappings in YAML, the rest as it is (a template may begin with '{').
 */
static void read_default(struct reader *r, const struct option *o, void *base, const char *text, const char *where)
{
    struct node scalar = {.kind = NODE_SCALAR, .text = text, .is_plain = true, .is_final = true};
    const struct node *node = &scalar;
    bool is_list = o->type == OPT_STRINGS || o->type == OPT_PATHS || o->type == OPT_PAIRS ||
                   ((o->type == OPT_TYPES || o->type == OPT_ENUM_OR) && text[0] == '{');

    if (is_list)
        node = node_parse(r, text, strlen(text), true);
    if (node != NULL)
        read_value(r, o, base, node, where);
}

void options_defaults(struct reader *r, const struct option *table, void *base)
{
    for (const struct option *o = table; o != NULL && o->name != NULL; o++) {
        if (o->default_text != NULL)
            read_default(r, o, base, o->default_text, o->name);
        if (o->type == OPT_GROUP && o->sub != NULL)
            options_defaults(r, o->sub, at(base, o->offset));
        else if (o->type == OPT_ENUM_OR && o->sub != NULL)
            options_defaults(r, o->sub, base);
    }
}

void options_set(struct reader *r, const struct option *table, void *base, const char *name, const char *text,
                 const char *where)
{
    char group[64];
    const char *dot = strchr(name, '.');
    size_t n = dot != NULL ? (size_t)(dot - name) : 0;

    if (dot != NULL && n < sizeof(group)) {
        memcpy(group, name, n);
        group[n] = '\0';
        const struct option *o = options_find(table, group);
        if (o != NULL && o->type == OPT_GROUP) {
            options_set(r, o->sub, at(base, o->offset), dot + 1, text, where);
            return;
        }
    }
    const struct option *o = options_find(table, name);
    if (o == NULL)
        reader_problem(r, 0, 0, "%s: there is no option '%s'", where, name);
    else
        read_default(r, o, base, text, where);
}

static bool is_in(const char *word, const char *const *list)
{
    for (size_t i = 0; list != NULL && list[i] != NULL; i++)
        if (strcmp(word, list[i]) == 0)
            return true;
    return false;
}

/* The secret whose twin KEY is ("token_file" for "token"), in any of TARGETS. */
static const struct option *find_twin(const struct target *targets, size_t count, const char *key, void **ret_base)
{
    size_t n = strlen(key);

    if (n <= 5 || strcmp(key + n - 5, "_file") != 0)
        return NULL;
    for (size_t t = 0; t < count; t++)
        for (const struct option *o = targets[t].table; o->name != NULL; o++)
            if (o->type == OPT_SECRET && strlen(o->name) == n - 5 && strncmp(o->name, key, n - 5) == 0) {
                *ret_base = targets[t].base;
                return o;
            }
    return NULL;
}

static void unknown_key(struct reader *r, const struct target *targets, size_t count, const char *const *handled,
                        const struct node *n, const char *where)
{
    char shown[64];
    size_t room = 1, used = 0;

    for (size_t t = 0; t < count; t++)
        for (const struct option *o = targets[t].table; o->name != NULL; o++)
            room += 2;
    for (size_t i = 0; handled != NULL && handled[i] != NULL; i++)
        room++;
    const char **names = reader_alloc(r, room * sizeof(*names));
    if (names == NULL)
        return;
    for (size_t t = 0; t < count; t++)
        for (const struct option *o = targets[t].table; o->name != NULL; o++) {
            names[used++] = o->name;
            if (o->type == OPT_SECRET)
                if ((names[used] = reader_printf(r, "%s_file", o->name)) != NULL)
                    used++;
        }
    for (size_t i = 0; handled != NULL && handled[i] != NULL; i++)
        names[used++] = handled[i];
    names[used] = NULL;
    reader_problem(r, n->key_line, n->key_column, "%s%sunknown key '%s'%s", where, where[0] != '\0' ? ": " : "",
                   text_printable(n->key, shown, sizeof(shown)), hint_nearest(r, n->key, names));
}

static const char *place(struct reader *r, const char *where, const char *key)
{
    if (where[0] == '\0')
        return key;
    const char *text = reader_printf(r, "%s.%s", where, key);
    return text != NULL ? text : key;
}

static void read_pair(struct reader *r, const struct target *targets, size_t count, const char *const *handled,
                      const struct node *mapping, const struct node *n, const char *where)
{
    void *base = NULL;

    for (size_t t = 0; t < count; t++) {
        const struct option *o = options_find(targets[t].table, n->key);
        if (o == NULL)
            continue;
        read_value(r, o, targets[t].base, n, place(r, where, n->key));
        return;
    }
    const struct option *o = find_twin(targets, count, n->key, &base);
    if (o == NULL) {
        unknown_key(r, targets, count, handled, n, where);
    } else if (node_get(mapping, o->name) != NULL) {
        reader_problem(r, n->key_line, n->key_column, "%s: give either %s or %s, not both", where, o->name, n->key);
    } else {
        read_secret_file(r, n, place(r, where, n->key), at(base, o->offset));
    }
}

void options_read(struct reader *r, const struct target *targets, size_t count, const char *const *handled,
                  const struct node *mapping, const char *where)
{
    for (const struct node *n = mapping->first; n != NULL && !r->failed; n = n->next)
        if (!is_in(n->key, handled))
            read_pair(r, targets, count, handled, mapping, n, where);
    for (size_t t = 0; t < count; t++)
        for (const struct option *o = targets[t].table; o->name != NULL; o++) {
            if ((o->flags & OPT_REQUIRED) == 0 || node_get(mapping, o->name) != NULL)
                continue;
            const char *twin = o->type == OPT_SECRET ? reader_printf(r, "%s_file", o->name) : NULL;
            if (twin != NULL && node_get(mapping, twin) != NULL)
                continue;
            if (!is_in(o->name, handled))
                reader_problem(r, mapping->line, mapping->column, "%s: '%s' is missing", where, o->name);
        }
}

/* --- hash --- */

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ p[i]) * 1099511628211u; /* FNV-1a: equal on every machine and in every version */
    return hash;
}

static uint64_t hash_text(uint64_t hash, const char *s)
{
    return s == NULL ? hash_bytes(hash, "\1", 2) : hash_bytes(hash, s, strlen(s) + 1);
}

static uint64_t hash_types(uint64_t hash, const struct option_types *types)
{
    int policy = (int)types->policy;

    hash = hash_bytes(hash, &policy, sizeof(policy));
    for (size_t i = 0; i < types->count; i++)
        hash = hash_text(hash_text(hash, types->entries[i].column), types->entries[i].type);
    return hash;
}

static uint64_t hash_value(uint64_t hash, const struct option *o, const void *base, const char *const *skip)
{
    const void *value = (const char *)base + o->offset;
    const struct option_strings *strings = value;
    const struct option_pairs *pairs = value;

    switch (o->type) {
    case OPT_STRING:
    case OPT_PATH:
        return hash_text(hash, *(const char *const *)value);
    case OPT_SECRET: /* a new password is not a new meaning */
        return hash;
    case OPT_BOOL:
        return hash_bytes(hash, value, sizeof(bool));
    case OPT_CHAR:
        return hash_bytes(hash, value, 1);
    case OPT_INT:
    case OPT_SIZE:
    case OPT_DURATION:
    case OPT_FLOAT:
        return hash_bytes(hash, value, 8);
    case OPT_ENUM:
        return hash_bytes(hash, value, sizeof(int));
    case OPT_PAIRS:
        hash = hash_bytes(hash, &pairs->count, sizeof(pairs->count));
        for (size_t i = 0; i < pairs->count; i++)
            hash = hash_text(hash_text(hash, pairs->items[i].name), pairs->items[i].value);
        return hash;
    case OPT_STRINGS:
    case OPT_PATHS:
        hash = hash_bytes(hash, &strings->count, sizeof(strings->count));
        for (size_t i = 0; i < strings->count; i++)
            hash = hash_text(hash, strings->items[i]);
        return hash;
    case OPT_TYPES:
        return hash_types(hash, value);
    case OPT_GROUP:
        return o->sub != NULL ? options_hash(hash, o->sub, value, skip) : hash;
    case OPT_ENUM_OR:
        return options_hash(hash_bytes(hash, value, sizeof(int)), o->sub, base, skip);
    }
    return hash;
}

uint64_t options_hash(uint64_t hash, const struct option *table, const void *base, const char *const *skip)
{
    for (const struct option *o = table; o != NULL && o->name != NULL; o++)
        if (!is_in(o->name, skip))
            hash = hash_value(hash_text(hash, o->name), o, base, skip);
    return hash;
}
