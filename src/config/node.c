/*
 * node.c -- YAML text to a small tree in which every node knows its place.
 *
 * By libyaml's events and not its documents: we bound depth and count while they come, so that a hostile file is
 * refused before it has cost memory. Anchors and tags are refused: an alias could repeat a large node many times,
 * and a tag could say that a number is something else.
 */
#include "config_internal.h"
#include "text.h"

#include <stdio.h>
#include <string.h>
#include <yaml.h>

static struct node *read_node(struct reader *r, yaml_parser_t *parser, yaml_event_t *event, int depth, bool is_final);

/* Line and column (from 1) of byte OFFSET: libyaml gives no mark for bytes it can't decode. */
static void place_of(const char *text, size_t size, size_t offset, size_t *ret_line, size_t *ret_column)
{
    *ret_line = 1;
    *ret_column = 1;
    for (size_t i = 0; i < offset && i < size; i++) {
        if (text[i] == '\n') {
            (*ret_line)++;
            *ret_column = 1;
        } else if (((unsigned char)text[i] & 0xc0) != 0x80) {
            (*ret_column)++;
        }
    }
}

static void syntax_problem(struct reader *r, const yaml_parser_t *parser, const char *text, size_t size)
{
    const char *what = parser->problem != NULL ? parser->problem : "not understood";

    if (parser->error == YAML_MEMORY_ERROR) {
        reader_nomem(r);
        return;
    }
    size_t line = parser->problem_mark.line + 1;
    size_t column = parser->problem_mark.column + 1;
    if (parser->error == YAML_READER_ERROR)
        place_of(text, size, parser->problem_offset, &line, &column);
    if (parser->context != NULL && parser->context_mark.line + 1 != line)
        reader_problem(r, line, column, "not valid YAML: %s (%s that begins in line %zu)", what, parser->context,
                       parser->context_mark.line + 1);
    else if (parser->context != NULL)
        reader_problem(r, line, column, "not valid YAML: %s (%s)", what, parser->context);
    else
        reader_problem(r, line, column, "not valid YAML: %s", what);
}

/* Next event, or false with the problem noted. */
static bool next_event(struct reader *r, yaml_parser_t *parser, yaml_event_t *event)
{
    if (yaml_parser_parse(parser, event))
        return true;
    syntax_problem(r, parser, (const char *)parser->input.string.start,
                   (size_t)(parser->input.string.end - parser->input.string.start));
    return false;
}

static struct node *new_node(struct reader *r, const yaml_event_t *event, enum node_kind kind, bool is_final)
{
    size_t line = event->start_mark.line + 1, column = event->start_mark.column + 1;

    if (++r->nodes > CONFIG_NODES_MAX) {
        reader_problem(r, line, column, "more than %d values: too much for a configuration", CONFIG_NODES_MAX);
        return NULL;
    }
    struct node *node = reader_alloc(r, sizeof(*node));
    if (node == NULL)
        return NULL;
    node->kind = kind;
    node->line = is_final ? 0 : line;
    node->column = is_final ? 0 : column;
    node->is_final = is_final;
    return node;
}

static void append(struct node *parent, struct node *child)
{
    if (parent->last != NULL)
        parent->last->next = child;
    else
        parent->first = child;
    parent->last = child;
    parent->count++;
}

static bool is_null_word(const char *s)
{
    return s[0] == '\0' || strcmp(s, "~") == 0 || strcmp(s, "null") == 0 || strcmp(s, "Null") == 0 ||
           strcmp(s, "NULL") == 0;
}

static struct node *read_scalar(struct reader *r, const yaml_event_t *event, bool is_final)
{
    const char *value = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    bool is_plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    struct node *node = new_node(r, event, NODE_SCALAR, is_final);

    if (node == NULL)
        return NULL;
    if (memchr(value, '\0', length) != NULL) {
        reader_problem(r, node->line, node->column, "a NUL character is not allowed in a value");
        return NULL;
    }
    char *text = reader_alloc(r, length + 1);
    if (text == NULL)
        return NULL;
    memcpy(text, value, length);
    node->text = text;
    node->is_plain = is_plain;
    if (is_plain && is_null_word(text))
        node->kind = NODE_NULL;
    return node;
}

static struct node *read_sequence(struct reader *r, yaml_parser_t *parser, const yaml_event_t *start, int depth,
                                  bool is_final)
{
    struct node *node = new_node(r, start, NODE_SEQUENCE, is_final);

    while (node != NULL) {
        yaml_event_t event;
        if (!next_event(r, parser, &event))
            return NULL;
        if (event.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&event);
            return node;
        }
        struct node *child = read_node(r, parser, &event, depth + 1, is_final);
        yaml_event_delete(&event);
        if (child == NULL)
            return NULL;
        append(node, child);
    }
    return NULL;
}

/* The key of a pair; NULL with the problem noted. */
static struct node *read_key(struct reader *r, const struct node *mapping, const yaml_event_t *event, bool is_final)
{
    size_t line = event->start_mark.line + 1, column = event->start_mark.column + 1;

    if (event->type != YAML_SCALAR_EVENT) {
        reader_problem(r, line, column, "a key must be a plain word");
        return NULL;
    }
    if (event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL) {
        reader_problem(r, line, column, "anchors and tags are not supported on keys; write the key without");
        return NULL;
    }
    struct node *key = read_scalar(r, event, is_final);
    if (key == NULL)
        return NULL;
    if (strcmp(key->text, "<<") == 0 && key->is_plain) {
        reader_problem(r, line, column, "merge keys (<<) are not supported; write the keys out");
        return NULL;
    }
    if (mapping->count >= CONFIG_KEYS_MAX) {
        reader_problem(r, line, column, "more than %d keys in one mapping", CONFIG_KEYS_MAX);
        return NULL;
    }
    return key;
}

static struct node *read_mapping(struct reader *r, yaml_parser_t *parser, const yaml_event_t *start, int depth,
                                 bool is_final)
{
    struct node *node = new_node(r, start, NODE_MAPPING, is_final);

    while (node != NULL) {
        yaml_event_t event;
        if (!next_event(r, parser, &event))
            return NULL;
        if (event.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&event);
            return node;
        }
        struct node *key = read_key(r, node, &event, is_final);
        yaml_event_delete(&event);
        if (key == NULL || !next_event(r, parser, &event))
            return NULL;
        struct node *value = read_node(r, parser, &event, depth + 1, is_final);
        yaml_event_delete(&event);
        if (value == NULL)
            return NULL;
        value->key = key->text;
        value->key_line = key->line;
        value->key_column = key->column;
        const struct node *twin = node_get(node, key->text);
        if (twin != NULL) {
            char shown[80];
            reader_problem(r, key->line, key->column, "'%s' is given twice (first in line %zu); keep one",
                           text_printable(key->text, shown, sizeof(shown)), twin->key_line);
        } else {
            append(node, value);
        }
    }
    return NULL;
}

static bool has_tag_or_anchor(const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL;
    case YAML_SEQUENCE_START_EVENT:
        return event->data.sequence_start.anchor != NULL || event->data.sequence_start.tag != NULL;
    case YAML_MAPPING_START_EVENT:
        return event->data.mapping_start.anchor != NULL || event->data.mapping_start.tag != NULL;
    default:
        return event->type == YAML_ALIAS_EVENT;
    }
}

static struct node *read_node(struct reader *r, yaml_parser_t *parser, yaml_event_t *event, int depth, bool is_final)
{
    size_t line = event->start_mark.line + 1, column = event->start_mark.column + 1;

    if (has_tag_or_anchor(event)) {
        reader_problem(r, line, column,
                       "anchors (&), aliases (*) and tags (!) are not supported; write the value out, and put a text "
                       "that begins with one of these characters in quotes");
        return NULL;
    }
    if (depth > CONFIG_DEPTH_MAX) {
        reader_problem(r, line, column, "nested deeper than %d levels", CONFIG_DEPTH_MAX);
        return NULL;
    }
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return read_scalar(r, event, is_final);
    case YAML_SEQUENCE_START_EVENT:
        return read_sequence(r, parser, event, depth, is_final);
    case YAML_MAPPING_START_EVENT:
        return read_mapping(r, parser, event, depth, is_final);
    default:
        reader_problem(r, line, column, "not valid YAML: a value was expected here");
        return NULL;
    }
}

/* After the document nothing may follow: a second one would be silently ignored. */
static bool read_end(struct reader *r, yaml_parser_t *parser)
{
    for (;;) {
        yaml_event_t event;
        if (!next_event(r, parser, &event))
            return false;
        yaml_event_type_t type = event.type;
        size_t line = event.start_mark.line + 1, column = event.start_mark.column + 1;
        yaml_event_delete(&event);
        if (type == YAML_STREAM_END_EVENT)
            return true;
        if (type == YAML_DOCUMENT_START_EVENT) {
            reader_problem(r, line, column, "a second document begins here; a configuration is one document");
            return false;
        }
    }
}

struct node *node_parse(struct reader *r, const char *text, size_t size, bool is_final)
{
    yaml_parser_t parser;
    struct node *root = NULL;

    if (!yaml_parser_initialize(&parser)) {
        reader_nomem(r);
        return NULL;
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    for (;;) {
        yaml_event_t event;
        if (!next_event(r, &parser, &event))
            break;
        yaml_event_type_t type = event.type;
        if (type == YAML_STREAM_START_EVENT || type == YAML_DOCUMENT_START_EVENT) {
            yaml_event_delete(&event);
            continue;
        }
        if (type == YAML_STREAM_END_EVENT)
            reader_problem(r, 1, 1, "the file is empty; `chute init file2sql` writes one to begin with");
        else
            root = read_node(r, &parser, &event, 1, is_final);
        yaml_event_delete(&event);
        if (root != NULL && !read_end(r, &parser))
            root = NULL;
        break;
    }
    yaml_parser_delete(&parser);
    return root;
}

const struct node *node_get(const struct node *mapping, const char *key)
{
    if (mapping == NULL || mapping->kind != NODE_MAPPING)
        return NULL;
    for (const struct node *n = mapping->first; n != NULL; n = n->next)
        if (strcmp(n->key, key) == 0)
            return n;
    return NULL;
}

const char *node_found(const struct node *node, char *ret, size_t size)
{
    char shown[64];

    switch (node->kind) {
    case NODE_NULL:
        return "nothing";
    case NODE_SEQUENCE:
        return "a list";
    case NODE_MAPPING:
        return "a mapping";
    default:
        snprintf(ret, size, "'%s'", text_printable(node->text, shown, sizeof(shown)));
        return ret;
    }
}
