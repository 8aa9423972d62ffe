/*
 * fuzz_events.c -- any bytes as a file of JSON events: rows or an error with its place, the same ones at every size of
 * a block and after a rewind; and json-c agrees on what is JSON and what stands in it.
 *
 * The first byte chooses how many bad events are left out, the second the size of a block.
 */
#include "event_internal.h"

#include "buf.h"
#include "text.h"

#include <json-c/json.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "fuzz_events: not true: %s\n", what);
        abort();
    }
}
#define MUST(condition) must(condition, #condition)

static const char *const x_value[] = {"x", "1", "true"};
static struct event_when when[] = {{.from = "/t", .values = {x_value, 3}}};
static struct event_column typed[] = {{.name = "i", .from = "/i", .type = EVENT_BIGINT},
                                      {.name = "d", .from = "/d/0", .type = EVENT_DOUBLE},
                                      {.name = "n", .from = "/d/n", .type = EVENT_DECIMAL},
                                      {.name = "at", .from = "/at", .type = EVENT_TIMESTAMPTZ, .required = true}};
static struct event_column any[] = {{.name = "v", .from = "/v", .type = EVENT_TEXT, .default_text = "none"},
                                    {.name = "raw", .from = "", .type = EVENT_JSON}};
static struct event_rule rules[] = {
    {.whens = when, .when_count = 1, .columns = typed, .column_count = 4, .part = 1, .goes_on = true},
    {.columns = any, .column_count = 2, .part = 0}};
static struct event_options events = {.max_event = 4096, .rules = rules, .rule_count = 2, .part_count = 2};

/* Everything that was said about a pass, apart from where batches end. */
struct pass {
    uint64_t sum, rows, rejected;
    struct err err;
    struct buf v, raw; /* of the last row of part 0 */
    bool has_v;
};

static uint64_t mix(uint64_t sum, uint64_t n)
{
    return (sum ^ n) * 0x100000001B3ULL;
}

static void see_value(struct pass *p, uint64_t record, const char *value, uint32_t length)
{
    uint64_t sum = mix(record + 1, value == NULL ? UINT64_MAX : length);
    for (uint32_t i = 0; value != NULL && i < length; i++)
        sum = mix(sum, (unsigned char)value[i]);
    p->sum += sum; /* in any order: rows of one part come before those of another */
    if (value != NULL)
        MUST(text_utf8_valid(value, length) == length);
}

static void see_batch(struct pass *p, const struct row_batch *b)
{
    MUST(b->part < 2 && b->columns == rules[1 - b->part].column_count);
    for (size_t r = 0; r < b->rows; r++) {
        MUST(b->line[r] > 0);
        p->rows++;
        p->sum += mix(b->offset[r], b->line[r]);
        for (size_t c = 0; c < b->columns; c++)
            see_value(p, b->record[r] * 8 + b->part * 4 + c, b->value[r * b->columns + c],
                      b->length[r * b->columns + c]);
        if (b->part != 0)
            continue;
        buf_clear(&p->v);
        buf_clear(&p->raw);
        p->has_v = b->value[r * 2] != NULL;
        if (p->has_v)
            buf_add(&p->v, b->value[r * 2], b->length[r * 2]);
        buf_add(&p->raw, b->value[r * 2 + 1], b->length[r * 2 + 1]);
    }
}

static bool on_reject(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                      const uint32_t *length, size_t fields)
{
    struct pass *p = arg;
    MUST(*reason != '\0' && line > 0 && fields == 1 && length[0] > 0);
    p->rejected++;
    p->sum += mix(offset, line);
    for (const char *s = reason; *s != '\0'; s++)
        p->sum = p->sum * 31 + (unsigned char)*s;
    (void)value;
    return true;
}

static void forget(struct pass *p)
{
    p->sum = p->rows = p->rejected = 0;
    err_clear(&p->err);
}

static void on_restart(void *arg)
{
    forget(arg);
}

static void run(struct rows *rows, struct pass *p)
{
    const struct row_batch *b;
    enum err_code code;
    while ((code = rows_next(rows, &b, &p->err)) == ERR_NONE && b->rows > 0)
        see_batch(p, b);
    if (code == ERR_NONE) {
        MUST(p->rows + p->rejected == rows->result.records && p->rejected == rows->result.rejected);
        return;
    }
    MUST(code == p->err.code && (code == ERR_INPUT || code == ERR_INCOMPLETE));
    MUST(strncmp(p->err.text, "line ", 5) == 0 || strstr(p->err.text, " bad rows, and ") != NULL);
    p->sum = p->rows = p->rejected = 0; /* how far it came depends on the batches */
}

/* One pass over FD, twice; PASS is what the second one says. */
static void read_all(int fd, uint64_t skip, bool is_packed, struct pass *p)
{
    struct arena arena;
    struct shape *shape;
    struct rows *rows;
    const struct inspect_options options = {
        .events = &events, .skip_bad_rows = skip, .sink = {p, on_reject, on_restart}};
    forget(p);
    arena_init(&arena);
    if (inspect_events(fd, &options, &arena, &shape, &rows, &p->err) == ERR_NONE && rows != NULL) {
        struct pass first;
        run(rows, p);
        first = *p;
        if (rows_rewind(rows, &p->err) == ERR_NONE) {
            forget(p);
            run(rows, p);
            MUST(first.sum == p->sum && first.rows == p->rows);
            MUST(strcmp(first.err.text, p->err.text) == 0 || is_packed);
        } else { /* a damaged archive, met at once because more is read at once by now */
            MUST(first.err.code != ERR_NONE && p->err.code != ERR_SYSTEM && is_packed);
            p->sum = p->rows = p->rejected = 0;
        }
        rows_free(rows);
    }
    arena_done(&arena);
}

/* What json-c makes of one event and of its /v must be what we made of it. */
static void compare_values(const struct pass *p)
{
    struct json_tokener *tokener = json_tokener_new_ex(EVENT_DEPTH + 2);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    struct json_object *event = json_tokener_parse_ex(tokener, p->raw.data, (int)p->raw.size + 1), *v = NULL;
    MUST(event != NULL && json_tokener_get_error(tokener) == json_tokener_success);
    MUST(json_object_is_type(event, json_type_object));
    bool is_there = json_object_object_get_ex(event, "v", &v);
    if (!is_there)
        MUST(strcmp(p->v.data, "none") == 0);
    else if (v == NULL)
        MUST(!p->has_v);
    else if (json_object_is_type(v, json_type_string))
        MUST(json_object_get_string_len(v) == (int)p->v.size &&
             memcmp(json_object_get_string(v), p->v.data, p->v.size) == 0);
    else if (json_object_is_type(v, json_type_boolean))
        MUST(strcmp(json_object_get_string(v), p->v.data) == 0);
    else if (json_object_is_type(v, json_type_int))
        MUST((double)json_object_get_int64(v) == strtod(p->v.data, NULL) || p->v.size > 17 || p->v.data[0] == '-');
    else
        MUST(json_object_is_type(v, json_type_double) && json_object_get_double(v) == strtod(p->v.data, NULL));
    json_object_put(event);
    json_tokener_free(tokener);
}

/* What json-c takes whole as an object, we take too, unless we know better. */
static void compare_verdict(const char *text, size_t n, const struct pass *p)
{
    struct json_tokener *tokener = json_tokener_new_ex(EVENT_DEPTH);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    struct json_object *event = json_tokener_parse_ex(tokener, text, (int)n);
    bool is_whole = event != NULL && json_tokener_get_parse_end(tokener) == n;
    if (is_whole && json_object_is_type(event, json_type_object) && p->err.code != ERR_NONE) {
        static const char *const known[] = {"is there twice",     /* it keeps one and says nothing */
                                            "no column can hold", /* it makes a NUL, or a replacement character */
                                            "expected a digit",   /* it takes "1." and "1e" */
                                            ": expected bigint",
                                            ": expected double",
                                            ": expected decimal",
                                            ": expected timestamptz",
                                            ": expected text",
                                            "is missing: ",
                                            "is null: ",
                                            "max_event",
                                            "control character",
                                            "zero in front",
                                            "end of the line inside a text"};
        bool is_known = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            is_known = is_known || strstr(p->err.text, known[i]) != NULL;
        if (!is_known)
            fprintf(stderr, "%s\n", p->err.text);
        MUST(is_known);
    }
    json_object_put(event);
    json_tokener_free(tokener);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct arena arena;
    struct pass usual = {0}, small = {0};
    struct err err;
    if (size < 2 || size > 8192)
        return 0;
    if (events.tree == NULL)
        MUST(event_compile(&events, &arena, &err) == ERR_NONE);
    uint64_t skip = data[0] % 4;
    int fd = memfd_create("events", MFD_CLOEXEC);
    MUST(fd >= 0 && write(fd, data + 2, size - 2) == (ssize_t)size - 2);
    buf_init(&usual.v);
    buf_init(&usual.raw);
    buf_init(&small.v);
    buf_init(&small.raw);
    /* where a damaged archive ends the text, and so which mistake is met first, depends on what is read at once */
    bool is_packed = size > 2 && (data[2] == 0x1F || data[2] == 0x28 || (data[2] & 0xF0) == 0x50);
    read_all(fd, skip, is_packed, &usual);
    inspect_knobs.block = data[1] % 61 + 1;
    inspect_knobs.batch_bytes = data[1];
    read_all(fd, skip, is_packed, &small);
    inspect_knobs.block = inspect_knobs.batch_bytes = 0;
    if (is_packed)
        MUST((usual.err.code == ERR_NONE) == (small.err.code == ERR_NONE));
    else
        MUST(usual.sum == small.sum && usual.rows == small.rows && strcmp(usual.err.text, small.err.text) == 0);
    if (usual.err.code == ERR_NONE && usual.raw.size > 0)
        compare_values(&usual);
    if (skip == 0)
        compare_verdict((const char *)data + 2, size - 2, &usual);
    buf_done(&usual.v);
    buf_done(&usual.raw);
    buf_done(&small.v);
    buf_done(&small.raw);
    close(fd);
    return 0;
}
