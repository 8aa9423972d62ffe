/*
 * events_test.h -- a text of JSON events in, one string out, for literal comparison: rows in the order of the file.
 *
 *   PART #record @line+offset: [cell] NULL ...   for each row
 *   = records rejected bytes                     at the end of a whole pass
 *   ! line+offset reason: [event]                for each rejected event, as the sink got it
 *   CODE: text                                   what ended the pass
 *   empty                                        nothing but white space
 */
#ifndef CHUTE_EVENTS_TEST_H
#define CHUTE_EVENTS_TEST_H

#include "inspect_test.h"

#include "event_internal.h"

#define EVENT_ROWS_MAX 64

static const char *const test_user[] = {"user"};
static const char *const test_cards[] = {"card", "karta"};

static struct event_when user_when[] = {{.from = "/type", .values = {test_user, 1}}};
static struct event_when card_when[] = {{.from = "/type", .values = {test_cards, 2}}};
static struct event_column user_columns[] = {{.name = "id", .from = "/p/id", .type = EVENT_BIGINT, .required = true},
                                             {.name = "name", .from = "/p/name", .type = EVENT_TEXT}};
static struct event_column card_columns[] = {
    {.name = "id", .from = "/p/id", .type = EVENT_BIGINT, .required = true},
    {.name = "active", .from = "/p/active", .type = EVENT_BOOLEAN, .default_text = "false"},
    {.name = "raw", .from = "", .type = EVENT_JSON}};
static struct event_rule user_and_card[] = {
    {.whens = user_when, .when_count = 1, .columns = user_columns, .column_count = 2, .part = 0},
    {.whens = card_when, .when_count = 1, .columns = card_columns, .column_count = 3, .part = 1}};
static const struct event_options two_tables = {
    .max_event = 1 << 20, .rules = user_and_card, .rule_count = 2, .part_count = 2};

/* One column called v of TYPE, from /v of every event. */
static inline struct event_options one_column(enum event_type type, bool required, const char *default_text)
{
    static struct event_column column;
    static struct event_rule rule;
    column = (struct event_column){
        .name = "v", .from = "/v", .type = (int)type, .required = required, .default_text = default_text};
    rule = (struct event_rule){.columns = &column, .column_count = 1};
    return (struct event_options){.max_event = 1 << 20, .rules = &rule, .rule_count = 1, .part_count = 1};
}

/* Rows of several parts come part by part: put back into the order of the file. */
struct seen_rows {
    char *lines[EVENT_ROWS_MAX];
    struct buf rejects;
};

static inline void see_batch(struct seen_rows *seen, const struct row_batch *b)
{
    for (size_t r = 0; r < b->rows; r++) {
        struct buf line;
        buf_init(&line);
        assert_true(b->record[r] < EVENT_ROWS_MAX);
        assert_null(seen->lines[b->record[r]]);
        buf_printf(&line, "%zu #%llu @%llu+%llu:", b->part, (unsigned long long)b->record[r],
                   (unsigned long long)b->line[r], (unsigned long long)b->offset[r]);
        add_cells(&line, b->value + r * b->columns, b->length + r * b->columns, b->columns);
        seen->lines[b->record[r]] = buf_take(&line);
    }
}

static inline enum err_code see_rows(struct seen_rows *seen, struct rows *rows, struct err *err)
{
    const struct row_batch *b;
    enum err_code code;
    while ((code = rows_next(rows, &b, err)) == ERR_NONE && b->rows > 0)
        see_batch(seen, b);
    return code;
}

/* All of FD; the caller frees the text. *RET_CODE (may be NULL) is how it ended. */
static inline char *events_fd(int fd, const struct event_options *events, uint64_t skip, enum err_code *ret_code)
{
    struct seen_rows seen = {.lines = {NULL}};
    struct event_options compiled = *events;
    struct arena arena;
    struct err err;
    struct shape *shape;
    struct rows *rows;
    struct buf out;
    buf_init(&out);
    buf_init(&seen.rejects);
    arena_init(&arena);
    struct inspect_options options = {
        .events = &compiled, .skip_bad_rows = skip, .sink = {&seen.rejects, test_put, test_restart}};
    err_clear(&err);
    enum err_code code = event_compile(&compiled, &arena, &err);
    if (code == ERR_NONE)
        code = inspect_events(fd, &options, &arena, &shape, &rows, &err);
    if (code == ERR_NONE && rows == NULL) {
        buf_adds(&out, "empty\n");
    } else if (code == ERR_NONE) {
        code = see_rows(&seen, rows, &err);
        for (size_t i = 0; i < EVENT_ROWS_MAX; i++)
            if (seen.lines[i] != NULL)
                buf_adds(&out, seen.lines[i]);
        if (code == ERR_NONE) {
            buf_printf(&out, "= %llu %llu %llu\n", (unsigned long long)rows->result.records,
                       (unsigned long long)rows->result.rejected, (unsigned long long)rows->result.bytes);
            if (shape->is_whole)
                assert_memory_equal(shape->hash, rows->result.hash, 16);
        }
        rows_free(rows);
    }
    buf_adds(&out, seen.rejects.data);
    if (code != ERR_NONE)
        buf_printf(&out, "%s: %s\n", code_name(code), err.text);
    for (size_t i = 0; i < EVENT_ROWS_MAX; i++)
        free(seen.lines[i]);
    buf_done(&seen.rejects);
    arena_done(&arena);
    if (ret_code != NULL)
        *ret_code = code;
    return buf_take(&out);
}

static inline char *events_n(const void *data, size_t n, const struct event_options *events, uint64_t skip,
                             enum err_code *ret_code)
{
    int fd = test_file(data, n);
    char *out = events_fd(fd, events, skip, ret_code);
    close(fd);
    return out;
}

static inline char *events_of(const char *text, const struct event_options *events, uint64_t skip)
{
    return events_n(text, strlen(text), events, skip, NULL);
}

static inline void expect_events(const char *text, const struct event_options *events, uint64_t skip,
                                 const char *expected)
{
    char *out = events_of(text, events, skip);
    if (out == NULL || strcmp(out, expected) != 0)
        print_error("text: %s\n", text);
    assert_string_equal(out, expected);
    free(out);
}

#endif
