/*
 * parser.c -- records by libcsv, with the place of each and the bad ones told apart.
 *
 * libcsv knows no positions, so it is fed line by line. Its output buffer is the batch itself: after each field the
 * callback moves entry_buf (public in csv.h, reread by libcsv for every byte) behind it, so nothing is copied and
 * libcsv never has to allocate: a piece is fed only when the batch has room for all of it.
 *
 * Quotes: a quote inside an unquoted field is data, as most programs write it. Text behind a closing quote ("a"b) has
 * no reading that all programs share: the record is bad, up to the end of that line.
 */
#include "inspect_internal.h"

#include "text.h"

#include <stdarg.h>
#include <stdio.h>

enum { CSV_ROW_NOT_BEGUN, CSV_FIELD_NOT_BEGUN, CSV_FIELD_BEGUN, CSV_FIELD_MIGHT_HAVE_ENDED }; /* csv_parser.pstate */

int not_a_space(unsigned char c)
{
    (void)c;
    return 0;
}

static void *never_realloc(void *old, size_t size)
{
    (void)old;
    (void)size;
    return NULL;
}

static void never_free(void *memory)
{
    (void)memory;
}

/* ---- places */

/* How many bytes of the file's own encoding N bytes of UTF-8 are. */
static uint64_t own_width(const struct parser *p, const char *s, size_t n)
{
    if (p->dialect->encoding == ENC_UTF8)
        return n;
    uint64_t chars = 0, pairs = 0;
    for (size_t i = 0; i < n; i++) {
        chars += ((unsigned char)s[i] & 0xC0) != 0x80;
        pairs += (unsigned char)s[i] >= 0xF0;
    }
    return p->dialect->encoding == ENC_UTF16 ? 2 * (chars + pairs) : chars;
}

static uint64_t chars_in(const char *s, size_t n)
{
    uint64_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)s[i] & 0xC0) != 0x80;
    return chars;
}

/* The record is bad: an error if none may be skipped, else remembered (the first reason) until the record ends. */
static __attribute__((format(printf, 3, 4))) enum err_code bad_record(struct parser *p, struct err *err,
                                                                      const char *fmt, ...)
{
    char text[sizeof p->bad];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (p->bad_limit == 0 || (p->skips_header && !p->header_done))
        return err_set(err, ERR_INPUT, false, "%s", text);
    if (p->bad[0] == '\0')
        memcpy(p->bad, text, sizeof text);
    return ERR_NONE;
}

/* ---- fields */

/* Behind the field whose quotes opened before C; IS_CLOSING: the byte before C was a quote. */
static const char *behind_quoted(const struct parser *p, const char *c, bool is_closing)
{
    char quote = (char)p->csv.quote_char;
    for (;;) {
        if (is_closing && (c >= p->piece_end || *c != quote))
            return c;
        if (is_closing)
            c++;
        const char *found = c < p->piece_end ? memchr(c, quote, (size_t)(p->piece_end - c)) : NULL;
        if (found == NULL)
            return p->piece_end;
        c = found + 1;
        is_closing = true;
    }
}

/* Was the field of N bytes that just ended quoted? Moves the cursor to the next one. */
static bool next_is_quoted(struct parser *p, size_t n)
{
    bool is_quoted =
        p->is_carried ? p->carried_quoted : p->cursor < p->piece_end && *p->cursor == (char)p->csv.quote_char;
    const char *c = p->cursor;
    if (is_quoted)
        c = p->is_carried ? behind_quoted(p, c, p->carried_closing) : behind_quoted(p, c + 1, false);
    else
        c += p->is_carried ? n - p->carried_length : n;
    p->cursor = c < p->piece_end ? c + 1 : p->piece_end;
    p->is_carried = false;
    return is_quoted;
}

static bool is_null_word(const struct parser *p, const char *s, size_t n)
{
    for (size_t i = 0; i < p->csv_options->null_values.count; i++) {
        const char *word = p->csv_options->null_values.items[i];
        if (strlen(word) == n && memcmp(word, s, n) == 0)
            return true;
    }
    return false;
}

static void keep_extra(struct parser *p, size_t at, const char *s, size_t n)
{
    if (at >= MAX_BAD_FIELDS)
        return;
    if (at >= p->extra_max) {
        size_t max = p->extra_max > 0 ? 2 * p->extra_max : 64;
        const char **extra = realloc(p->extra, max * sizeof *extra);
        if (extra != NULL)
            p->extra = extra;
        uint32_t *length = realloc(p->extra_length, max * sizeof *length);
        if (length != NULL)
            p->extra_length = length;
        if (extra == NULL || length == NULL) {
            p->extra_failed = true;
            return;
        }
        p->extra_max = max;
    }
    p->extra[at] = s;
    p->extra_length[at] = (uint32_t)n;
}

static inline void take_field(struct parser *p, const char *s, size_t n, size_t used)
{
    size_t i = p->fields++;
    if (__builtin_expect(i < p->columns, 1)) {
        p->cell[i] = s;
        p->cell_length[i] = (uint32_t)n;
    } else if (p->keeps_bad) {
        keep_extra(p, i - p->columns, s, n);
    }
    p->csv.entry_buf += used;
    p->csv.entry_size -= used;
}

static void on_field(void *s, size_t n, void *arg)
{
    take_field(arg, s, n, n);
}

static void on_field_null_words(void *s, size_t n, void *arg)
{
    struct parser *p = arg;
    bool is_null = !next_is_quoted(p, n) && s != NULL && is_null_word(p, s, n);
    take_field(p, is_null ? NULL : s, is_null ? 0 : n, n);
}

static void on_row(int c, void *arg)
{
    struct parser *p = arg;
    (void)c;
    p->row_ended = true;
}

/* ---- the end of a record */

static void drop_record(struct parser *p)
{
    struct batch *b = p->batch;
    p->csv.entry_buf = (unsigned char *)b->data + p->record_start;
    p->csv.entry_size = b->data_size - p->record_start;
}

static enum err_code keep_bad(struct parser *p, uint64_t number, struct err *err)
{
    struct batch *b = p->batch;
    if (b->bad_count == b->bad_max) {
        size_t max = b->bad_max > 0 ? 2 * b->bad_max : 8;
        struct bad_row *bad = realloc(b->bad, max * sizeof *bad);
        if (bad == NULL)
            return err_nomem(err);
        b->bad = bad;
        b->bad_max = max;
    }
    size_t inside = p->fields < p->columns ? p->fields : p->columns;
    size_t behind = p->fields - inside < MAX_BAD_FIELDS ? p->fields - inside : MAX_BAD_FIELDS;
    struct bad_row row = {number, p->record_line, p->record_offset, strdup(p->bad), NULL, NULL, inside + behind};
    row.value = malloc((row.fields + 1) * sizeof *row.value);
    row.length = malloc((row.fields + 1) * sizeof *row.length);
    if (row.reason == NULL || row.value == NULL || row.length == NULL || p->extra_failed) {
        free(row.reason);
        free(row.value);
        free(row.length);
        return err_nomem(err);
    }
    memcpy(row.value, p->cell, inside * sizeof *row.value);
    memcpy(row.length, p->cell_length, inside * sizeof *row.length);
    if (behind > 0) {
        memcpy(row.value + inside, p->extra, behind * sizeof *row.value);
        memcpy(row.length + inside, p->extra_length, behind * sizeof *row.length);
    }
    b->bad[b->bad_count++] = row;
    return ERR_NONE;
}

static enum err_code finish_bad(struct parser *p, uint64_t number, struct err *err)
{
    if (++p->bad_count > p->bad_limit)
        return err_set(err, ERR_INPUT, false, "%llu bad rows, and bad_rows allows %llu; the last one: %s",
                       (unsigned long long)p->bad_count, (unsigned long long)p->bad_limit, p->bad);
    if (p->keeps_bad)
        return keep_bad(p, number, err);
    drop_record(p);
    return ERR_NONE;
}

static enum err_code finish_header(struct parser *p, struct err *err)
{
    p->header_done = true;
    drop_record(p);
    if (p->fields != p->columns)
        return err_set(err, ERR_CHANGED, true, "the header has %zu columns, and had %zu a moment ago", p->fields,
                       p->columns);
    return ERR_NONE;
}

static void pad_record(struct parser *p)
{
    while (p->fields < p->columns) {
        p->cell[p->fields] = NULL;
        p->cell_length[p->fields++] = 0;
    }
}

static void tell_cut(struct parser *p, uint64_t offset)
{
    if (p->skim->cut_bytes == 0 || offset < p->next_cut)
        return;
    p->skim->on_cut(p->skim->arg, offset);
    p->next_cut = offset + p->skim->cut_bytes;
}

void parser_good_record(struct parser *p, const char *s, size_t n)
{
    tell_cut(p, p->offset);
    p->record++;
    p->offset += own_width(p, s, n);
}

static enum err_code finish_record(struct parser *p, struct err *err)
{
    struct batch *b = p->batch;
    p->row_ended = p->in_record = p->in_quotes = p->in_quoted_field = p->skips_line = false;
    if (p->skips_header && !p->header_done)
        return finish_header(p, err);
    uint64_t number = p->record++;
    if (__builtin_expect(p->fields != p->columns && p->bad[0] == '\0', 0)) {
        if (p->fields < p->columns && p->csv_options->short_rows == SHORT_PAD) {
            pad_record(p);
            p->odd++;
        } else if (bad_record(p, err, "line %llu: %zu field%s, expected %zu (byte offset %llu)",
                              (unsigned long long)p->record_line, p->fields, p->fields == 1 ? "" : "s", p->columns,
                              (unsigned long long)p->record_offset) != ERR_NONE)
            return err->code;
    }
    if (__builtin_expect(p->bad[0] != '\0', 0))
        return finish_bad(p, number, err);
    if (p->skims) {
        tell_cut(p, p->record_offset);
        drop_record(p);
        return ERR_NONE;
    }
    size_t row = b->rows.rows++;
    b->record[row] = number;
    b->line[row] = p->record_line;
    b->offset[row] = p->record_offset;
    p->cell += p->columns;
    p->cell_length += p->columns;
    return ERR_NONE;
}

/* ---- one piece of text: at most one line end, at its end */

/* Behind text that follows a closing quote: all up to the line end goes to the field, and the record ends there. */
static void take_rest_of_line(struct parser *p, const char *s, size_t n)
{
    bool ends_line = n > 0 && (s[n - 1] == '\n' || s[n - 1] == '\r');
    while (n > 0 && (s[n - 1] == '\n' || s[n - 1] == '\r'))
        n--;
    memcpy(p->csv.entry_buf + p->csv.entry_pos, s, n);
    p->csv.entry_pos += n;
    p->skips_line = !ends_line;
    if (!ends_line)
        return;
    size_t length = p->csv.entry_pos;
    take_field(p, (const char *)p->csv.entry_buf, length, length);
    csv_fini(&p->csv, NULL, NULL, NULL);
    p->row_ended = true;
}

/* The byte at S[AT] is not UTF-8. */
static enum err_code bad_byte(struct parser *p, const char *s, size_t at, struct err *err)
{
    unsigned long long column = (unsigned long long)(p->line_chars + chars_in(s, at) + 1),
                       offset = (unsigned long long)(p->offset + own_width(p, s, at)),
                       line = (unsigned long long)p->line;
    if (s[at] == '\0')
        return bad_record(p, err, "line %llu, column %llu: a NUL byte (byte offset %llu)", line, column, offset);
    return bad_record(p, err,
                      "line %llu, column %llu: byte 0x%02X is not UTF-8 (byte offset %llu); set csv.encoding if the "
                      "file has another encoding",
                      line, column, (unsigned char)s[at], offset);
}

/* libcsv stopped at S[AT]. Goes on behind it, or fails. WRONG: the first byte that is not UTF-8, or N. */
static enum err_code strict_stop(struct parser *p, const char *s, size_t n, size_t wrong, size_t *at, struct err *err)
{
    if (csv_error(&p->csv) != CSV_EPARSE)
        return err_set(err, ERR_SYSTEM, true, "line %llu: libcsv: %s", (unsigned long long)p->line,
                       csv_strerror(csv_error(&p->csv)));
    if (p->csv.pstate == CSV_FIELD_BEGUN && !p->csv.quoted) {
        p->loose++;
        p->csv.is_space = not_a_space; /* scan_spaces_matter() counted quotes: from here on it may be wrong */
        csv_set_opts(&p->csv, (unsigned char)(csv_get_opts(&p->csv) & ~CSV_STRICT));
        csv_parse(&p->csv, s + *at, 1, p->on_field, on_row, p);
        csv_set_opts(&p->csv, (unsigned char)(csv_get_opts(&p->csv) | CSV_STRICT));
        ++*at;
        return ERR_NONE;
    }
    /* Without the space function libcsv has passed over spaces before it stopped: stop where they begin. */
    *at -= p->csv.spaces;
    p->csv.entry_pos -= p->csv.spaces;
    p->csv.spaces = 0;
    if (wrong < *at && bad_byte(p, s, wrong, err) != ERR_NONE)
        return err->code; /* what comes first is told */
    if (bad_record(p, err, "line %llu, column %llu: field %zu goes on behind its closing quote (byte offset %llu)",
                   (unsigned long long)p->line, (unsigned long long)(p->line_chars + chars_in(s, *at) + 1),
                   p->fields + 1, (unsigned long long)(p->offset + own_width(p, s, *at))) != ERR_NONE)
        return err->code;
    take_rest_of_line(p, s + *at, n - *at);
    *at = n;
    return ERR_NONE;
}

/* How many of the N bytes of a piece its record may still have. Line ends are not counted, a block may cut them. */
static size_t begin_record(struct parser *p, const char *s, size_t n)
{
    if (!p->in_record) {
        p->record_line = p->line;
        p->record_offset = p->offset;
        p->record_bytes = 0;
        p->record_start = (size_t)(p->csv.entry_buf - (unsigned char *)p->batch->data);
        p->fields = 0;
        p->bad[0] = '\0';
    }
    uint64_t room = p->csv_options->max_row > p->record_bytes ? p->csv_options->max_row - p->record_bytes : 0;
    if (__builtin_expect(n <= room, 1))
        return n;
    size_t content = n;
    while (content > 0 && (s[content - 1] == '\n' || s[content - 1] == '\r'))
        content--;
    return content <= room || content == 0 ? n : (size_t)room;
}

static enum err_code too_long(const struct parser *p, struct err *err)
{
    char limit[32];
    text_format_size(p->csv_options->max_row, limit, sizeof limit);
    return err_set(err, ERR_INPUT, false,
                   "line %llu: the row that starts here (byte offset %llu) is longer than csv.max_row (%s)%s",
                   (unsigned long long)p->record_line, (unsigned long long)p->record_offset, limit,
                   p->in_quotes ? "; is a quote not closed?" : "");
}

/* After a piece that did not end its record. */
static void note_open_record(struct parser *p, size_t fields_before, bool was_in_record)
{
    p->in_record = was_in_record || p->csv.pstate != CSV_ROW_NOT_BEGUN;
    bool is_open = p->csv.pstate == CSV_FIELD_BEGUN && p->csv.quoted;
    /* A block may end between the two of a doubled quote: the field goes on, no other quote has opened it. */
    bool is_quoted = is_open || (p->csv.pstate == CSV_FIELD_MIGHT_HAVE_ENDED && p->csv.quoted);
    if (is_quoted && (!p->in_quoted_field || p->fields != fields_before || !was_in_record)) {
        p->quote_line = p->line;
        p->quote_field = p->fields + 1;
    }
    p->in_quotes = is_open;
    p->in_quoted_field = is_quoted;
}

static void note_cursor(struct parser *p, const char *s, size_t n)
{
    p->piece_end = s + n;
    p->cursor = s;
    p->is_carried = p->csv.pstate == CSV_FIELD_BEGUN || p->csv.pstate == CSV_FIELD_MIGHT_HAVE_ENDED;
    p->carried_quoted = p->csv.quoted;
    p->carried_closing = p->csv.pstate == CSV_FIELD_MIGHT_HAVE_ENDED;
    p->carried_length = p->csv.entry_pos;
}

static void move_on(struct parser *p, const char *s, size_t n)
{
    p->text_pos += n;
    p->offset += own_width(p, s, n);
    char last = s[n - 1];
    if (last == '\n' || last == '\r') {
        p->line += !(p->after_cr && last == '\n' && n == 1); /* the LF of a CRLF that a block cut was counted */
        p->line_chars = 0;
    } else {
        p->line_chars += chars_in(s, n);
    }
    p->after_cr = last == '\r';
}

static enum err_code run_csv(struct parser *p, const char *s, size_t n, unsigned flags, size_t wrong, struct err *err)
{
    bool in_quotes = p->csv.pstate == CSV_FIELD_BEGUN && p->csv.quoted;
    bool keeps_spaces = (flags & SCAN_SPACE) != 0 &&
                        scan_spaces_matter(s, n, (char)p->csv.delim_char, (char)p->csv.quote_char, in_quotes);
    p->csv.is_space = keeps_spaces ? not_a_space : NULL;
    p->csv.spaces = 0; /* never anything to trim, see scan.c; a run of spaces may go on from the piece before */
    if (p->has_null_words)
        note_cursor(p, s, n);
    size_t at = csv_parse(&p->csv, s, n, p->on_field, on_row, p);
    while (__builtin_expect(at < n, 0)) {
        if (strict_stop(p, s, n, wrong, &at, err) != ERR_NONE)
            return err->code;
        if (at < n)
            at += csv_parse(&p->csv, s + at, n - at, p->on_field, on_row, p);
    }
    return ERR_NONE;
}

static enum err_code feed(struct parser *p, const char *s, size_t n, unsigned flags, struct err *err)
{
    size_t fields = p->fields, wrong = n;
    bool was_in_record = p->in_record;
    p->record_bytes += n;
    if ((flags & SCAN_NUL) != 0 || ((flags & SCAN_HIGH) != 0 && !p->is_utf8))
        wrong = text_utf8_valid(s, n);
    if (p->skips_line)
        take_rest_of_line(p, s, n);
    else if (run_csv(p, s, n, flags, wrong, err) != ERR_NONE)
        return err->code;
    if (__builtin_expect(wrong < n, 0) && bad_byte(p, s, wrong, err) != ERR_NONE)
        return err->code;
    if (p->row_ended) {
        if (finish_record(p, err) != ERR_NONE)
            return err->code;
    } else {
        note_open_record(p, fields, was_in_record);
        /* a blank line, unless it is the LF of a CRLF that a block cut */
        p->odd += !p->in_record && !(p->after_cr && n == 1 && s[0] == '\n');
    }
    move_on(p, s, n);
    return ERR_NONE;
}

enum err_code parser_feed(struct parser *p, const char *s, size_t n, unsigned flags, struct err *err)
{
    size_t fitting = begin_record(p, s, n);
    if (__builtin_expect(fitting == n, 1))
        return feed(p, s, n, flags, err);
    fitting -= cut_sequence(s, fitting); /* what is wrong before the limit is told first */
    if (fitting > 0 && feed(p, s, fitting, flags, err) != ERR_NONE)
        return err->code;
    return too_long(p, err);
}

/* ---- text */

static enum err_code never_closed(struct parser *p, struct err *err)
{
    return err_set(
        err, ERR_INCOMPLETE, false,
        "line %llu: the quote that opens field %zu is never closed; the row starts on line %llu (byte offset "
        "%llu)",
        (unsigned long long)p->quote_line, p->quote_field, (unsigned long long)p->record_line,
        (unsigned long long)p->record_offset);
}

enum err_code parser_finish(struct parser *p, struct err *err)
{
    if (!p->in_record || p->is_fragment)
        return ERR_NONE;
    if (p->skips_line)
        take_rest_of_line(p, "\n", 1);
    else if (p->has_null_words)
        note_cursor(p, "", 0);
    if (!p->row_ended && csv_fini(&p->csv, p->on_field, on_row, p) != 0)
        return never_closed(p, err);
    return finish_record(p, err);
}

/* ---- life */

void parser_restart(struct parser *p, uint64_t first_offset)
{
    p->text_size = p->text_pos = p->held = 0;
    p->text_ends = false;
    p->csv.pstate = CSV_ROW_NOT_BEGUN;
    p->csv.quoted = 0;
    p->csv.spaces = p->csv.entry_pos = 0;
    p->line = 1;
    p->offset = first_offset;
    p->line_chars = p->record = p->bad_count = p->odd = p->loose = 0;
    p->after_cr = p->in_record = p->row_ended = p->in_quotes = p->in_quoted_field = p->skips_line = false;
    p->header_done = p->has_carry = p->extra_failed = p->skims = false;
    p->valid_to = 0;
    p->next_cut = 0;
    p->bad[0] = '\0';
    p->fields = 0;
}

enum err_code parser_init(struct parser *p, struct err *err)
{
    p->empty_is_null = false;
    p->has_null_words = false;
    for (size_t i = 0; i < p->csv_options->null_values.count; i++) {
        if (p->csv_options->null_values.items[i][0] == '\0')
            p->empty_is_null = true;
        else
            p->has_null_words = true;
    }
    p->on_field = p->has_null_words ? on_field_null_words : on_field;
    csv_init(&p->csv, (unsigned char)(CSV_STRICT | CSV_STRICT_FINI | (p->empty_is_null ? CSV_EMPTY_IS_NULL : 0)));
    csv_set_delim(&p->csv, (unsigned char)p->dialect->delimiter);
    csv_set_quote(&p->csv, (unsigned char)p->dialect->quote);
    csv_set_realloc_func(&p->csv, never_realloc);
    csv_set_free_func(&p->csv, never_free);
    p->block = p->stream != NULL ? malloc(p->block_size + 2 * TEXT_PAD) : NULL;
    p->flags = malloc(p->block_size / SCAN_CHUNK + 2);
    if ((p->stream != NULL && p->block == NULL) || p->flags == NULL) {
        parser_done(p);
        return err_nomem(err);
    }
    parser_restart(p, 0);
    return ERR_NONE;
}

void parser_done(struct parser *p)
{
    free(p->block);
    free(p->flags);
    free(p->extra);
    free(p->extra_length);
    free(p->carry);
    free(p->carry_cell);
    free(p->carry_length);
    p->block = NULL;
    p->flags = NULL;
    p->extra = p->carry_cell = NULL;
    p->extra_length = p->carry_length = NULL;
    p->carry = NULL;
}
