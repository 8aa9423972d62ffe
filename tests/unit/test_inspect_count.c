/*
 * A pass without rows says what a pass with rows says, of every file: its result, its errors with their places, its
 * rejected rows, and where it can be cut. And it is worth having: what is usual never meets libcsv.
 */
#include "skim_said.h"

#include <sys/mman.h>
#include <unistd.h>

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>

static const char *const nulls[] = {"", "NA", "x"};

struct sides {
    struct buf pulled, pulled_cuts, skimmed, skimmed_cuts;
};

static int setup(void **state)
{
    struct sides *s = calloc(1, sizeof *s);
    buf_init(&s->pulled);
    buf_init(&s->pulled_cuts);
    buf_init(&s->skimmed);
    buf_init(&s->skimmed_cuts);
    *state = s;
    return 0;
}

static int teardown(void **state)
{
    struct sides *s = *state;
    buf_done(&s->pulled);
    buf_done(&s->pulled_cuts);
    buf_done(&s->skimmed);
    buf_done(&s->skimmed_cuts);
    free(s);
    inspect_knobs = (struct inspect_knobs){0, 0, -1};
    count_how = COUNT_BEST;
    return 0;
}

static int file_of(const char *text, size_t n)
{
    int fd = memfd_create("count", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, n), (ssize_t)n);
    return fd;
}

/* ---- libcsv, with a count of what it was given */

size_t __real_csv_parse(struct csv_parser *p, const void *s, size_t n, void (*on_field)(void *, size_t, void *),
                        void (*on_row)(int, void *), void *arg);
size_t __wrap_csv_parse(struct csv_parser *p, const void *s, size_t n, void (*on_field)(void *, size_t, void *),
                        void (*on_row)(int, void *), void *arg);
static size_t parsed_bytes;

size_t __wrap_csv_parse(struct csv_parser *p, const void *s, size_t n, void (*on_field)(void *, size_t, void *),
                        void (*on_row)(int, void *), void *arg)
{
    parsed_bytes += n;
    return __real_csv_parse(p, s, n, on_field, on_row, arg);
}

/* ---- texts */

struct text {
    char *data;
    size_t size;
};

static uint64_t seed;

static uint32_t pick(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 16) % below);
}

struct how {
    struct csv_options csv;
    uint64_t skip, cut_bytes;
    const char *shape_of; /* the header to read the text under, so that odd text meets the passes and not the head */
    size_t columns;
};

/* A shape that says what an earlier look at the file would have said, had it seen only a good head. */
static void fake_shape(const struct how *how, struct shape *shape, struct column *columns)
{
    memset(shape, 0, sizeof *shape);
    for (size_t i = 0; i < how->columns; i++)
        columns[i] = (struct column){.name = "c", .kinds = KIND_ANY};
    shape->dialect = (struct dialect){
        .delimiter = how->csv.delimiter, .quote = how->csv.quote, .encoding = (enum encoding)how->csv.encoding};
    shape->columns = columns;
    shape->column_count = how->columns;
}

static void compare(struct sides *s, int fd, const struct how *how, size_t block, size_t batch, enum count_how count)
{
    struct inspect_options options = {.csv = &how->csv, .skip_bad_rows = how->skip, .no_kinds = true};
    struct column columns[8];
    struct shape shape;
    fake_shape(how, &shape, columns);
    inspect_knobs = (struct inspect_knobs){block, batch, 0};
    count_how = count;
    say_pass(fd, &options, &shape, true, how->cut_bytes, &s->skimmed, &s->skimmed_cuts);
    assert_string_equal(s->skimmed.data, s->pulled.data);
    assert_int_equal(s->skimmed.size, s->pulled.size);
    assert_memory_equal(s->skimmed.data, s->pulled.data, s->pulled.size);
    assert_int_equal(s->skimmed_cuts.size, s->pulled_cuts.size);
    if (s->pulled_cuts.size > 0)
        assert_string_equal(s->skimmed_cuts.data, s->pulled_cuts.data);
}

static void pull(struct sides *s, int fd, const struct how *how)
{
    struct inspect_options options = {.csv = &how->csv, .skip_bad_rows = how->skip, .no_kinds = true};
    struct column columns[8];
    struct shape shape;
    fake_shape(how, &shape, columns);
    inspect_knobs = (struct inspect_knobs){0, 0, 0};
    say_pass(fd, &options, &shape, false, how->cut_bytes, &s->pulled, &s->pulled_cuts);
}

static const struct how usual = {
    .csv = {.delimiter = ',', .quote = '"', .null_values = {nulls, 1}, .max_row = 1 << 20},
    .cut_bytes = 40,
    .columns = 3,
};

/* ---- */

#define LONG "0123456789012345678901234567890123456789012345678901234567890123456789"

/* Each with a good record before and behind it. */
static const char *const odd_records[] = {
    "",
    "\r\n",
    "\n\n\r\n",
    "a,b",
    "a,b,c,d",
    ",,",
    "\"\",\"\",\"\"",
    "a,\"b\"\"c\",\"\"\"\"",
    "\"a\nb\",\"c\r\nd\",\",\"",
    "\"a\rb\",c,d",
    "a\rb,c,d",
    "a,b,c\r",
    "a,b,c\r\r",
    "a,b\"c,d",
    "a,b\"\"c,d",
    "a,b\"c,d\"",
    "a,b\"c,d\",e",
    "a,b\"c\"",
    "a, \"b\",c",
    "a,\"b\"c,d",
    "a,\"b\" ,d",
    "a,\"b\"\rc,d,e",
    "a,\"b\"\r\n,\"d\n",
    " , ,\t",
    "NA,x,\"NA\"",
    "\"NA\",x\",NA",
    "\xC3\xA9,\xE2\x82\xAC,\xF0\x9F\x98\x80",
    "a,\xC3,c",
    "a,\"\xFF\n\",c",
    "a,\xED\xA0\x80,c",
    "a,\"b\nc\",d\"",
    "a,b,\"c",
    "a,\"b\"\"\n\"\"c\n",
    "\"" LONG LONG "\"\"\n" LONG "\"," LONG ",\"\"",
    LONG LONG LONG,
    "\"" LONG "\",\"" LONG "\",\"" LONG "\"x",
};
#define ODD_RECORDS (sizeof odd_records / sizeof *odd_records)

static void check_all_blocks(struct sides *s, const char *text, size_t n, const struct how *how)
{
    int fd = file_of(text, n);
    pull(s, fd, how);
    for (size_t block = 1; block <= n + 8; block += block < 160 ? 1 : 7)
        compare(s, fd, how, block, block % 3 == 0 ? 1 + block / 3 : 0, (enum count_how)(block % 3));
    for (int count = COUNT_BEST; count <= COUNT_BY_WORDS; count++)
        compare(s, fd, how, 0, 0, (enum count_how)count);
    close(fd);
}

static void every_odd_record_is_told_as_the_parser_tells_it(void **state)
{
    struct buf text;
    buf_init(&text);
    for (size_t i = 0; i < ODD_RECORDS; i++) {
        for (int last = 0; last < 2; last++) { /* 1: nothing follows it, not even a line end */
            struct how how = usual;
            how.skip = i % 3;
            buf_clear(&text);
            buf_printf(&text, "c1,c2,c3\n1,\"one\n,\"\"two\"\"\",3\r\n4,5,6\n%s%s", odd_records[i],
                       last != 0 ? "" : "\n7,8,9\n\"x\",y,\"z\"\n1,2,3\n");
            check_all_blocks(*state, text.data, text.size, &how);
        }
    }
    buf_done(&text);
}

/* Steps of count.c begin with a record and have 64 bytes: what it must remember from one to the next. */
static void an_odd_record_is_odd_wherever_it_lies(void **state)
{
    struct sides *s = *state;
    struct buf text;
    buf_init(&text);
    for (size_t i = 0; i < ODD_RECORDS; i++) {
        for (int before = 0; before < 130; before++) {
            struct how how = usual;
            how.skip = 5;
            buf_clear(&text);
            buf_printf(&text, "c1,c2,c3\n%.*s,\"%.*s\",3\n%s\n7,8,9\n", before / 2, LONG, (before + 1) / 2, LONG,
                       odd_records[i]);
            int fd = file_of(text.data, text.size);
            pull(s, fd, &how);
            for (int count = COUNT_BEST; count <= COUNT_BY_WORDS; count++)
                compare(s, fd, &how, 0, 0, (enum count_how)count);
            close(fd);
        }
    }
    buf_done(&text);
}

/* For who sends the bytes to somebody who takes such a quote for the beginning of a quoted field. */
static void a_quote_inside_an_unquoted_field_is_told(void **state)
{
    struct sides *s = *state;
    static const struct {
        const char *record;
        bool is_loose;
    } cases[] = {
        {"a,b\"c,d", true}, {"a, \"b\",c", true},          {"a,b,5\"", true},
        {"a,b,c", false},   {"\"a\",\"b\"\"c\",d", false}, {"\"a\nb\",\"\",c\r", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buf text;
        buf_init(&text);
        buf_printf(&text, "c1,c2,c3\n1,2,3\n%s\n7,8,9\n", cases[i].record);
        int fd = file_of(text.data, text.size);
        struct how how = usual;
        pull(s, fd, &how);
        assert_int_equal(strstr(s->pulled.data, "loose") != NULL, cases[i].is_loose);
        compare(s, fd, &how, 0, 0, COUNT_BEST);
        close(fd);
        buf_done(&text);
    }
}

static void a_nul_anywhere_is_found(void **state)
{
    static const char text[] = "c1,c2,c3\n1,\"2\n\",3\n4,5,6\r\n7,8,9\n";
    char copy[sizeof text - 1];
    for (size_t i = 9; i < sizeof copy; i++) {
        struct how how = usual;
        how.skip = i % 4;
        memcpy(copy, text, sizeof copy);
        copy[i] = '\0';
        check_all_blocks(*state, copy, sizeof copy, &how);
    }
}

static void a_record_of_each_length_around_the_limit_is_taken_or_refused(void **state)
{
    static const char *const ends[] = {"\n", "\r\n", "\r", "\xFF\xFF\n", "\xC1\n"};
    struct buf text;
    buf_init(&text);
    for (size_t n = 55; n < 75; n++) {
        for (int end = 0; end < 5; end++) {
            struct how how = usual;
            how.csv.max_row = 66;
            how.skip = end < 3;
            buf_clear(&text);
            buf_printf(&text, "c1,c2,c3\n1,2,3\n\"a\nb\",\"%.*s\",%s4,5,6\n", (int)(n - 11), LONG, ends[end]);
            check_all_blocks(*state, text.data, text.size, &how);
        }
    }
    buf_done(&text);
}

/* Mostly good records of COLUMNS fields; one in WILD is made of anything. */
static void make_text(struct buf *out, const struct how *how, uint32_t wild)
{
    static const char *const good[] = {"a",     "",        "bc",        "\xC5\xBE",   "12.5",         " ", LONG, "\"\"",
                                       "\"q\"", "\"n\n\"", "\"r\r\n\"", "\"d\"\"d\"", "\"" LONG "\"", "NA"};
    static const char *const any[] = {"\"", "\"\"", "\n",       "\r", "\r\n", "a",  " ",
                                      "\t", "\xC3", "\xE2\x82", LONG, "\"\n", "x\""};
    size_t records = 1 + pick(30);
    const char *line_end = pick(3) == 0 ? "\r\n" : "\n";
    buf_clear(out);
    for (size_t r = 0; r < records; r++) {
        bool is_wild = r > 0 && pick(wild) == 0;
        size_t parts = is_wild ? pick(12) : how->columns;
        for (size_t c = 0; c < parts; c++) {
            if (c > 0 && (!is_wild || pick(3) != 0))
                buf_addc(out, how->csv.delimiter);
            buf_adds(out, is_wild && pick(2) == 0 ? any[pick(sizeof any / sizeof *any)]
                                                  : good[pick(sizeof good / sizeof *good)]);
            if (is_wild && pick(8) == 0)
                buf_addc(out, '\0');
        }
        if (how->columns == 1 && parts == 1 && pick(8) != 0)
            buf_addc(out, 'z'); /* else a blank line, or text behind a quote */
        buf_adds(out, r + 1 < records || pick(2) != 0 ? line_end : "");
    }
}

static void generated_files_are_told_alike(void **state)
{
    static const char delimiters[] = {',', ';', '\t', ' '};
    struct sides *s = *state;
    struct buf text;
    buf_init(&text);
    seed = 88172645463325252u;
    for (unsigned i = 0; i < 6000; i++) {
        struct how how = usual;
        how.csv.delimiter = delimiters[pick(4)];
        how.csv.quote = pick(4) == 0 ? '\'' : '"';
        how.csv.null_values.count = pick(4);
        how.csv.short_rows = pick(2) == 0 ? SHORT_PAD : SHORT_REJECT;
        how.csv.max_row = pick(4) == 0 ? 30 + pick(120) : 1 << 20;
        how.csv.encoding = pick(8) == 0 ? ENC_ISO_8859_2 : ENC_UTF8;
        how.columns = 1 + pick(4);
        how.skip = pick(2) == 0 ? 0 : pick(20);
        how.cut_bytes = pick(3) * 25;
        make_text(&text, &how, 2 + pick(20));
        int fd = file_of(text.data, text.size);
        pull(s, fd, &how);
        for (int count = COUNT_BEST; count <= COUNT_BY_WORDS; count++) {
            compare(s, fd, &how, 0, 0, (enum count_how)count);
            compare(s, fd, &how, 1 + pick(200), pick(3) == 0 ? 1 + pick(100) : 0, (enum count_how)count);
        }
        close(fd);
    }
    buf_done(&text);
}

/* ---- */

static void usual_records_never_meet_libcsv(void **state)
{
    struct sides *s = *state;
    struct buf text;
    buf_init(&text);
    buf_adds(&text, "c1,c2,c3\r\n");
    for (unsigned i = 0; i < 40000; i++)
        buf_printf(&text, "\"%u\",\"text \xE2\x82\xAC, with \"\"quotes\"\"\nand lines\",%s\r\n", i,
                   i % 2 == 0 ? "" : "\"\"");
    int fd = file_of(text.data, text.size);
    pull(s, fd, &usual);
    assert_non_null(strstr(s->pulled.data, "= 40000 records, 0 rejected, 0 odd"));
    for (int count = COUNT_BEST; count <= COUNT_BY_WORDS; count++) {
        parsed_bytes = 0;
        compare(s, fd, &usual, 0, 0, (enum count_how)count);
        assert_true(parsed_bytes < text.size / 100); /* the header, and what the ends of blocks cut */
    }
    close(fd);
    buf_done(&text);
}

struct pass {
    int fd;
    struct inspect_options options;
    struct column columns[8];
    struct shape shape;
    struct rows *rows;
    struct err err;
};

static void open_pass(struct pass *p, const char *text, size_t n)
{
    memset(p, 0, sizeof *p);
    p->fd = file_of(text, n);
    p->options = (struct inspect_options){.csv = &usual.csv, .no_kinds = true};
    fake_shape(&usual, &p->shape, p->columns);
    assert_int_equal(inspect_rows(p->fd, &p->options, &p->shape, &p->rows, &p->err), ERR_NONE);
}

static void close_pass(struct pass *p)
{
    rows_free(p->rows);
    close(p->fd);
}

static const char good_text[] = "c1,c2,c3\n1,2,3\n\"4\",5,6\n7,8,9\n";

static void rows_can_be_pulled_after_a_rewind(void **state)
{
    (void)state;
    struct buf cuts;
    const struct rows_skim skim = {.cut_bytes = 8, .on_cut = said_cut, .arg = &cuts};
    const struct row_batch *batch;
    struct pass p;
    buf_init(&cuts);
    for (int threads = 0; threads < 2; threads++) {
        inspect_knobs = (struct inspect_knobs){8, 0, threads};
        open_pass(&p, good_text, sizeof good_text - 1);
        for (int i = 0; i < 2; i++) {
            buf_clear(&cuts);
            assert_int_equal(rows_skim(p.rows, &skim, &p.err), ERR_NONE);
            assert_string_equal(cuts.data, "cut 9\ncut 23\n");
            assert_int_equal(p.rows->result.records, 3);
            assert_int_equal(p.rows->rows_done, 3);
            assert_int_equal(p.rows->bytes_done, sizeof good_text - 1);
            assert_int_equal(rows_rewind(p.rows, &p.err), ERR_NONE);
            size_t rows = 0;
            while (rows_next(p.rows, &batch, &p.err) == ERR_NONE && batch->rows > 0)
                rows += batch->rows;
            assert_int_equal(rows, 3);
            assert_int_equal(rows_rewind(p.rows, &p.err), ERR_NONE);
        }
        close_pass(&p);
    }
    buf_done(&cuts);
}

static void a_pass_that_has_begun_goes_on_to_its_end(void **state)
{
    (void)state;
    const struct rows_skim skim = {0};
    const struct row_batch *batch;
    struct pass p;
    inspect_knobs = (struct inspect_knobs){8, 8, 0};
    open_pass(&p, good_text, sizeof good_text - 1);
    assert_int_equal(rows_next(p.rows, &batch, &p.err), ERR_NONE);
    assert_int_equal(rows_skim(p.rows, &skim, &p.err), ERR_NONE);
    assert_int_equal(p.rows->result.records, 3);
    close_pass(&p);
}

static void a_stop_ends_it_between_two_blocks(void **state)
{
    (void)state;
    _Atomic bool stop = true;
    const struct rows_skim skim = {.stop = &stop};
    struct pass p;
    inspect_knobs = (struct inspect_knobs){8, 0, 0};
    open_pass(&p, good_text, sizeof good_text - 1);
    assert_int_equal(rows_skim(p.rows, &skim, &p.err), ERR_STOPPED);
    assert_int_equal(rows_skim(p.rows, &skim, &p.err), ERR_STOPPED); /* as after every error */
    stop = false;
    assert_int_equal(rows_rewind(p.rows, &p.err), ERR_NONE);
    assert_int_equal(rows_skim(p.rows, &skim, &p.err), ERR_NONE);
    assert_int_equal(rows_rewind(p.rows, &p.err), ERR_NONE);
    stop = true;
    assert_int_equal(rows_pull_all(p.rows, &skim, &p.err), ERR_STOPPED);
    close_pass(&p);
}

static void kinds_that_somebody_asks_for_are_found(void **state)
{
    (void)state;
    const struct rows_skim skim = {0};
    struct pass p;
    open_pass(&p, good_text, sizeof good_text - 1);
    p.options.no_kinds = false; /* read when the pass begins */
    rows_free(p.rows);
    assert_int_equal(inspect_rows(p.fd, &p.options, &p.shape, &p.rows, &p.err), ERR_NONE);
    assert_int_equal(rows_skim(p.rows, &skim, &p.err), ERR_NONE);
    assert_true(p.shape.columns[0].has_value);
    assert_true((p.shape.columns[0].kinds & KIND_INT) != 0);
    assert_true((p.shape.columns[0].kinds & KIND_DATE) == 0);
    close_pass(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_odd_record_is_told_as_the_parser_tells_it, setup, teardown),
        cmocka_unit_test_setup_teardown(an_odd_record_is_odd_wherever_it_lies, setup, teardown),
        cmocka_unit_test_setup_teardown(a_quote_inside_an_unquoted_field_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(a_nul_anywhere_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(a_record_of_each_length_around_the_limit_is_taken_or_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(generated_files_are_told_alike, setup, teardown),
        cmocka_unit_test_setup_teardown(usual_records_never_meet_libcsv, setup, teardown),
        cmocka_unit_test_setup_teardown(rows_can_be_pulled_after_a_rewind, setup, teardown),
        cmocka_unit_test_setup_teardown(a_pass_that_has_begun_goes_on_to_its_end, setup, teardown),
        cmocka_unit_test_setup_teardown(a_stop_ends_it_between_two_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(kinds_that_somebody_asks_for_are_found, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
