/* event_rules.c -- the rules of a flow, checked and prepared: all their pointers become one tree. */
#include "event_internal.h"

#include "text.h"

#include <stdio.h>

const char *const event_type_names[] = {"bigint",    "double",      "decimal", "boolean", "date",
                                        "timestamp", "timestamptz", "text",    "json",    NULL};

bool event_pointer_check(const char *pointer, struct err *err)
{
    char shown[80];
    if (pointer[0] != '\0' && pointer[0] != '/') {
        err_set(err, ERR_CONFIG, false,
                "expected a JSON Pointer such as /payload/id, or \"\" for the whole event, found '%s'; did you mean "
                "'/%s'?",
                text_printable(pointer, shown, sizeof shown), shown);
        return false;
    }
    for (const char *p = strchr(pointer, '~'); p != NULL; p = strchr(p + 1, '~'))
        if (p[1] != '0' && p[1] != '1') {
            err_set(err, ERR_CONFIG, false, "in a JSON Pointer '~' is written ~0 and '/' in a key ~1; found '%s'",
                    text_printable(pointer, shown, sizeof shown));
            return false;
        }
    const char *last = strrchr(pointer, '/');
    if (last != NULL && strcmp(last, "/-") == 0) {
        err_set(err, ERR_CONFIG, false, "'-' names the place behind the last element of an array, where nothing is");
        return false;
    }
    return true;
}

/* ---- the tree */

/* TOKEN (LENGTH bytes) as the index of an array, or -1. */
static int64_t index_of(const char *token, size_t length)
{
    int64_t index = 0;
    if (length == 0 || length > 9 || (token[0] == '0' && length > 1))
        return -1;
    for (size_t i = 0; i < length; i++) {
        if (token[i] < '0' || token[i] > '9')
            return -1;
        index = index * 10 + (token[i] - '0');
    }
    return index;
}

static size_t find_child(const struct event_tree *tree, size_t parent, const char *token, size_t length)
{
    size_t child = tree->nodes[parent].first;
    while (child != 0 && (tree->nodes[child].length != length || memcmp(tree->nodes[child].token, token, length) != 0))
        child = tree->nodes[child].next;
    return child;
}

/* The node of POINTER, made where it is not there yet; SIZE_MAX: out of memory. There is room. */
static size_t add_pointer(struct event_tree *tree, const char *pointer, struct arena *arena)
{
    size_t node = 0;
    for (const char *p = pointer; *p == '/';) {
        size_t raw = strcspn(++p, "/"), length = 0;
        char *token = arena_alloc(arena, raw + 1);
        if (token == NULL)
            return SIZE_MAX;
        for (size_t i = 0; i < raw; i++) {
            token[length++] = p[i] != '~' ? p[i] : p[i + 1] == '0' ? '~' : '/';
            i += p[i] == '~';
        }
        p += raw;
        size_t child = find_child(tree, node, token, length);
        if (child == 0) {
            child = tree->count++;
            tree->nodes[child] = (struct event_node){.pointer = arena_strndup(arena, pointer, (size_t)(p - pointer)),
                                                     .token = token,
                                                     .length = length,
                                                     .index = index_of(token, length),
                                                     .next = tree->nodes[node].first};
            if (tree->nodes[child].pointer == NULL)
                return SIZE_MAX;
            tree->nodes[node].first = child;
        }
        node = child;
    }
    return node;
}

static size_t count_tokens(const char *pointer)
{
    size_t count = 0;
    for (; *pointer != '\0'; pointer++)
        count += *pointer == '/';
    return count;
}

enum err_code event_compile(struct event_options *events, struct arena *arena, struct err *err)
{
    size_t most = 1;
    for (size_t r = 0; r < events->rule_count; r++) {
        const struct event_rule *rule = &events->rules[r];
        for (size_t i = 0; i < rule->when_count; i++)
            most += count_tokens(rule->whens[i].from);
        for (size_t i = 0; i < rule->column_count; i++)
            most += count_tokens(rule->columns[i].from);
    }
    struct event_tree *tree = arena_alloc(arena, sizeof *tree);
    if (tree == NULL || (tree->nodes = arena_alloc(arena, most * sizeof *tree->nodes)) == NULL)
        return err_nomem(err);
    tree->nodes[0] = (struct event_node){.pointer = "", .token = "", .index = -1};
    tree->count = 1;
    bool failed = false;
    for (size_t r = 0; r < events->rule_count; r++) {
        struct event_rule *rule = &events->rules[r];
        for (size_t i = 0; i < rule->when_count; i++)
            failed |= (rule->whens[i].node = add_pointer(tree, rule->whens[i].from, arena)) == SIZE_MAX;
        for (size_t i = 0; i < rule->column_count; i++)
            failed |= (rule->columns[i].node = add_pointer(tree, rule->columns[i].from, arena)) == SIZE_MAX;
    }
    if (failed)
        return err_nomem(err);
    events->tree = tree;
    return ERR_NONE;
}
