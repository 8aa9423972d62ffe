/* sniff.c -- delimiter and header, from the head of the text. Bytes and quotes are checked later, by the parser. */
#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(element) ((element)->is_lost = true)
#include "inspect_internal.h"

#include <strings.h>
#include <uthash.h>

#define SNIFF_BYTES ((size_t)128 * 1024) /* enough records to see which delimiter is right */

static const char candidates[] = {',', ';', '\t', '|'};

struct count {
    size_t fields, header, records, agree;
    bool has_header;
};

static void count_field(void *s, size_t n, void *arg)
{
    (void)s;
    (void)n;
    ((struct count *)arg)->fields++;
}

static void count_row(int c, void *arg)
{
    struct count *count = arg;
    (void)c;
    if (!count->has_header)
        count->header = count->fields;
    else
        count->records++;
    count->agree += count->has_header && count->fields == count->header;
    count->has_header = true;
    count->fields = 0;
}

static enum err_code csv_failed(struct csv_parser *csv, struct err *err)
{
    csv_free(csv);
    return err_nomem(err);
}

static void start_csv(struct csv_parser *csv, char delimiter, char quote)
{
    csv_init(csv, 0);
    csv_set_delim(csv, (unsigned char)delimiter);
    csv_set_quote(csv, (unsigned char)quote);
    csv_set_space_func(csv, not_a_space);
    csv_set_blk_size(csv, 4096);
}

static enum err_code count_fields(const char *text, size_t size, bool is_whole, char delimiter, char quote,
                                  struct count *ret, struct err *err)
{
    struct csv_parser csv;
    start_csv(&csv, delimiter, quote);
    *ret = (struct count){0};
    size_t first = size < SNIFF_BYTES ? size : SNIFF_BYTES;
    if (csv_parse(&csv, text, first, count_field, count_row, ret) != first)
        return csv_failed(&csv, err);
    if (!ret->has_header && csv_parse(&csv, text + first, size - first, count_field, count_row, ret) != size - first)
        return csv_failed(&csv, err);
    if (is_whole && first == size)
        csv_fini(&csv, count_field, count_row, ret); /* otherwise the last record is cut: not counted */
    csv_free(&csv);
    return ERR_NONE;
}

static int compare_names(const void *a, const void *b)
{
    return strcasecmp(*(const char *const *)a, *(const char *const *)b);
}

/* Does the header that DELIMITER gives have all the columns that the table has? Destinations may ignore case. */
static enum err_code header_matches(const char *text, size_t size, bool is_whole, char delimiter,
                                    const struct inspect_options *options, bool *ret, struct err *err)
{
    struct arena arena;
    arena_init(&arena);
    const char *const *names;
    size_t count;
    *ret = false;
    struct err ignored;
    const bool *made_up;
    if (sniff_header(text, size, is_whole, delimiter, options->csv->quote, &arena, &names, &made_up, &count,
                     &ignored) != ERR_NONE) {
        arena_done(&arena);
        if (ignored.code == ERR_SYSTEM && err != NULL)
            *err = ignored;
        return ignored.code == ERR_SYSTEM ? ERR_SYSTEM : ERR_NONE;
    }
    const char **sorted = arena_alloc(&arena, (count + 1) * sizeof *sorted);
    if (sorted == NULL) {
        arena_done(&arena);
        return err_nomem(err);
    }
    memcpy(sorted, names, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare_names);
    *ret = true;
    for (size_t i = 0; i < options->expect_count && *ret; i++)
        *ret = bsearch(&options->expect_columns[i], sorted, count, sizeof *sorted, compare_names) != NULL;
    arena_done(&arena);
    return ERR_NONE;
}

/* A is a better choice than B: its records agree more often. */
static bool agrees_more(const struct count *a, const struct count *b)
{
    if (a->records == 0 || b->records == 0)
        return false; /* nothing to compare by: the order of the candidates decides */
    return (unsigned long long)a->agree * b->records > (unsigned long long)b->agree * a->records;
}

enum err_code sniff_delimiter(const char *text, size_t size, bool is_whole, const struct inspect_options *options,
                              char *ret_delimiter, struct err *err)
{
    enum { N = sizeof candidates };
    struct count counts[N];
    bool accepted[N];
    bool some = false;
    for (size_t i = 0; i < N; i++) {
        if (count_fields(text, size, is_whole, candidates[i], options->csv->quote, &counts[i], err) != ERR_NONE)
            return err->code;
        accepted[i] = false;
        if (options->expect_count > 0 &&
            header_matches(text, size, is_whole, candidates[i], options, &accepted[i], err) != ERR_NONE)
            return err->code;
        some = some || accepted[i];
    }
    /* No header has the table's columns: it really changed, and the comparison of headers shall say so. */
    size_t best = N;
    for (size_t i = 0; i < N; i++) {
        if ((some && !accepted[i]) || counts[i].header < 2)
            continue;
        if (best == N || agrees_more(&counts[i], &counts[best]))
            best = i;
    }
    *ret_delimiter = best < N ? candidates[best] : ',';
    return ERR_NONE;
}

/* ---- the header */

struct collect {
    struct arena *arena;
    const char **names;
    size_t count, max;
    bool is_done, failed;
};

static void collect_field(void *s, size_t n, void *arg)
{
    struct collect *c = arg;
    if (c->is_done || c->failed)
        return;
    if (c->count == c->max && c->count <= MAX_COLUMNS) {
        size_t max = c->max > 0 ? 2 * c->max : 16;
        const char **names = realloc(c->names, max * sizeof *names);
        if (names == NULL) {
            c->failed = true;
            return;
        }
        c->names = names;
        c->max = max;
    }
    if (c->count <= MAX_COLUMNS) {
        c->names[c->count] = arena_strndup(c->arena, n > 0 ? s : "", n);
        c->failed = c->names[c->count] == NULL;
    }
    c->count++;
}

static void collect_row(int end, void *arg)
{
    (void)end;
    ((struct collect *)arg)->is_done = true;
}

static enum err_code collect_names(const char *text, size_t size, bool is_whole, char delimiter, char quote,
                                   struct collect *c, struct err *err)
{
    struct csv_parser csv;
    start_csv(&csv, delimiter, quote);
    for (size_t pos = 0; pos < size && !c->is_done && !c->failed; pos += 4096) {
        size_t n = size - pos < 4096 ? size - pos : 4096;
        c->failed = csv_parse(&csv, text + pos, n, collect_field, collect_row, c) != n || c->failed;
    }
    if (is_whole && !c->is_done)
        csv_fini(&csv, collect_field, collect_row, c);
    csv_free(&csv);
    if (c->failed)
        return err_nomem(err);
    if (!c->is_done && !is_whole)
        return err_set(err, ERR_INPUT, false,
                       "line 1: the header does not end within the first %zu bytes; is a quote not closed?", size);
    if (c->count > MAX_COLUMNS)
        return err_set(err, ERR_INPUT, false, "line 1: %zu columns, expected at most %u", c->count, MAX_COLUMNS);
    return ERR_NONE;
}

struct taken {
    const char *name;
    unsigned next; /* suffix to try for a repetition */
    bool is_lost;
    UT_hash_handle hh;
};

static bool is_blank(const char *s)
{
    return s[strspn(s, " \t\r\n")] == '\0';
}

/* NAME now belongs to a column; ENTRY is its memory. */
static bool take_name(struct taken **set, struct taken *entry, const char *name)
{
    entry->name = name;
    entry->next = 1;
    entry->is_lost = false;
    HASH_ADD_KEYPTR(hh, *set, entry->name, strlen(entry->name), entry);
    return !entry->is_lost;
}

/* NAME.1, NAME.2 ...: the first that nobody has. */
static const char *free_name(struct taken **set, struct taken *entry, const char *name, struct arena *arena)
{
    struct taken *first, *other;
    HASH_FIND_STR(*set, name, first);
    for (unsigned suffix = first != NULL ? first->next : 1;; suffix++) {
        const char *text = arena_printf(arena, "%s.%u", name, suffix);
        if (text == NULL)
            return NULL;
        HASH_FIND_STR(*set, text, other);
        if (other != NULL)
            continue;
        if (first != NULL)
            first->next = suffix + 1;
        return take_name(set, entry, text) ? text : NULL;
    }
}

/* Names as written keep their first place; blank and repeated ones get what is free. */
static bool make_unique(const char **names, size_t count, struct arena *arena)
{
    struct taken *set = NULL, *found, *entries = calloc(count + 1, sizeof *entries);
    bool *is_open = calloc(count + 1, sizeof *is_open);
    bool done = entries != NULL && is_open != NULL;
    for (size_t i = 0; i < count && done; i++) {
        HASH_FIND_STR(set, names[i], found);
        is_open[i] = is_blank(names[i]) || found != NULL;
        if (!is_open[i])
            done = take_name(&set, &entries[i], names[i]);
    }
    for (size_t i = 0; i < count && done; i++) {
        if (!is_open[i])
            continue;
        if (is_blank(names[i])) {
            names[i] = arena_printf(arena, "column_%zu", i);
            if (names[i] == NULL) {
                done = false;
                break;
            }
            HASH_FIND_STR(set, names[i], found);
            if (found == NULL) {
                done = take_name(&set, &entries[i], names[i]);
                continue;
            }
        }
        names[i] = free_name(&set, &entries[i], names[i], arena);
        done = names[i] != NULL;
    }
    HASH_CLEAR(hh, set);
    free(entries);
    free(is_open);
    return done;
}

enum err_code sniff_header(const char *text, size_t size, bool is_whole, char delimiter, char quote,
                           struct arena *arena, const char *const **ret_names, const bool **ret_made_up,
                           size_t *ret_count, struct err *err)
{
    struct collect c = {.arena = arena};
    enum err_code code = collect_names(text, size, is_whole, delimiter, quote, &c, err);
    if (code == ERR_NONE) {
        const char **names = arena_alloc(arena, (c.count + 1) * sizeof *names);
        if (names != NULL && c.count > 0)
            memcpy(names, c.names, c.count * sizeof *names);
        bool *made_up = arena_alloc(arena, c.count + 1);
        if (names == NULL || made_up == NULL || !make_unique(names, c.count, arena))
            code = err_nomem(err);
        for (size_t i = 0; code == ERR_NONE && i < c.count; i++)
            made_up[i] = names[i] != c.names[i];
        *ret_made_up = made_up;
        *ret_names = names;
        *ret_count = c.count;
    }
    free(c.names);
    return code;
}
