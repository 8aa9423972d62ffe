/*
 * lite_test.h -- what the tests of the SQLite destination share: a real loop, a real database file, and rows from a
 * text.
 *
 * The rows are a little CSV reader that keeps the contract of rows.h and can be told to behave like a large file (types
 * known from its head only), to stall, to fail, and to be counted.
 */
#ifndef CHUTE_TEST_LITE_H
#define CHUTE_TEST_LITE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "buf.h"
#include "load.h"
#include "load_internal.h"

#include <dirent.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

/* ---- rows from a text ---- */

#define TEXT_COLUMNS 64
struct text_rows {
    struct rows base;
    struct shape shape;
    struct column columns[TEXT_COLUMNS];
    char header[2048];
    const char *text; /* borrowed */
    const char *at;
    size_t head; /* records behind the first kinds; 0: all of them (is_whole) */
    size_t batch_rows;
    uint64_t skip; /* bad rows that may be left out */
    uint64_t rejected, records, line;
    unsigned passes;
    void (*on_batch)(struct text_rows *rows); /* before each batch; NULL none */
    uint64_t fail_at;                         /* ERR_SYSTEM before this record; 0 never */
    void *arg;
    /* the batch */
    struct row_batch batch;
    char *pool;
    const char **value;
    uint32_t *length;
    uint64_t *record, *lines, *offset;
};

static unsigned kinds_of(const char *s, size_t n)
{
    int64_t i;
    double d;
    bool b;
    unsigned kinds = 0;
    kinds |= value_int64(s, n, &i) ? KIND_INT : 0;
    kinds |= value_decimal(s, n) ? KIND_DECIMAL : 0;
    kinds |= value_double(s, n, &d) ? KIND_DOUBLE : 0;
    kinds |= value_bool(s, n, &b) ? KIND_BOOL : 0;
    kinds |= value_date(s, n) ? KIND_DATE : 0;
    kinds |= value_timestamp(s, n, false) ? KIND_TIMESTAMP : 0;
    kinds |= value_timestamp(s, n, true) ? KIND_TIMESTAMPTZ : 0;
    return kinds;
}

/* One field from *AT into OUT; returns its length, -1 for NULL. *ENDS: it was the last of its record. */
static long read_field(const char **at, char *out, bool *ends)
{
    const char *p = *at;
    size_t n = 0;
    bool was_quoted = *p == '"';
    if (was_quoted)
        for (p++; *p != '\0' && !(*p == '"' && p[1] != '"'); p++) {
            if (*p == '"')
                p++;
            out[n++] = *p;
        }
    if (was_quoted)
        p++;
    while (*p != ',' && *p != '\n' && *p != '\0')
        out[n++] = *p++;
    *ends = *p != ',';
    *at = *p == '\0' ? p : p + 1;
    return n == 0 && !was_quoted ? -1 : (long)n;
}

static void text_narrow(struct text_rows *t, size_t column, const char *s, long n)
{
    if (n < 0)
        return;
    t->columns[column].has_value = true;
    if (n > 0)
        t->columns[column].kinds &= kinds_of(s, (size_t)n);
}

static void text_read_header(struct text_rows *t)
{
    char *out = t->header;
    bool ends = false;
    t->at = t->text;
    while (!ends && *t->text != '\0') {
        long n = read_field(&t->at, out, &ends);
        out[n < 0 ? 0 : n] = '\0';
        t->columns[t->shape.column_count++] = (struct column){.name = out, .kinds = KIND_ANY};
        out += (n < 0 ? 0 : n) + 1;
    }
}

static void text_restart(struct text_rows *t)
{
    char skip[2048];
    bool ends = false;
    t->at = t->text;
    while (!ends && *t->text != '\0')
        read_field(&t->at, skip, &ends);
    t->records = t->rejected = 0;
    t->line = 2;
    t->passes++;
}

static void text_hash(const char *text, uint8_t ret[16])
{
    uint64_t h = 14695981039346656037u;
    for (; *text != '\0'; text++)
        h = (h ^ (unsigned char)*text) * 1099511628211u;
    memcpy(ret, &h, 8);
    h *= 31;
    memcpy(ret + 8, &h, 8);
}

static enum err_code text_next(struct rows *rows, const struct row_batch **ret, struct err *err)
{
    struct text_rows *t = (struct text_rows *)rows;
    size_t columns = t->shape.column_count;
    char *out = t->pool;
    if (t->on_batch != NULL)
        t->on_batch(t);
    t->batch = (struct row_batch){.columns = columns,
                                  .value = t->value,
                                  .length = t->length,
                                  .record = t->record,
                                  .line = t->lines,
                                  .offset = t->offset};
    while (t->batch.rows < t->batch_rows && *t->at != '\0') {
        size_t row = t->batch.rows++;
        bool ends = false;
        if (t->fail_at > 0 && t->records == t->fail_at)
            return err_set(err, ERR_SYSTEM, true, "the disk went away");
        t->offset[row] = (uint64_t)(t->at - t->text);
        t->lines[row] = t->line++;
        t->record[row] = t->records++;
        for (size_t c = 0; c < columns; c++) {
            long n = ends ? -1 : read_field(&t->at, out, &ends);
            t->value[row * columns + c] = n < 0 ? NULL : out;
            t->length[row * columns + c] = n < 0 ? 0 : (uint32_t)n;
            text_narrow(t, c, out, n);
            out += n < 0 ? 0 : n;
        }
    }
    atomic_store(&rows->rows_done, t->records);
    if (t->batch.rows == 0) {
        rows->result.records = t->records;
        rows->result.rejected = t->rejected;
        rows->result.bytes = strlen(t->text);
        text_hash(t->text, rows->result.hash);
        t->shape.is_whole = true;
    }
    *ret = &t->batch;
    return ERR_NONE;
}

static enum err_code text_reject(struct rows *rows, size_t row, int column, const char *reason, struct err *err)
{
    struct text_rows *t = (struct text_rows *)rows;
    if (++t->rejected <= t->skip)
        return ERR_NONE;
    return err_set(err, ERR_INPUT, false, "line %llu, column %d: %s", (unsigned long long)t->lines[row], column + 1,
                   reason);
}

static enum err_code text_rewind(struct rows *rows, struct err *err)
{
    (void)err;
    text_restart((struct text_rows *)rows);
    return ERR_NONE;
}

static void text_free(struct rows *rows)
{
    struct text_rows *t = (struct text_rows *)rows;
    free(t->pool);
    free(t->value);
    free(t->length);
    free(t->record);
    free(t->lines);
    free(t->offset);
    free(t);
}

static const struct rows_ops text_rows_ops = {
    .next = text_next, .reject = text_reject, .rewind = text_rewind, .free = text_free};

/* HEAD: how many records the first look saw; 0 for all (a small file). */
static struct text_rows *text_rows_new(const char *text, size_t head)
{
    struct text_rows *t = calloc(1, sizeof(*t));
    t->base.ops = &text_rows_ops;
    t->base.shape = &t->shape;
    t->text = text;
    t->head = head;
    t->batch_rows = 100;
    text_read_header(t);
    t->shape.columns = t->columns;
    t->shape.is_whole = head == 0;
    t->shape.has_hash = head == 0;
    text_hash(text, t->shape.hash);
    size_t cells = t->batch_rows * (t->shape.column_count + 1);
    t->pool = malloc(strlen(text) + 1);
    t->value = calloc(cells, sizeof(*t->value));
    t->length = calloc(cells, sizeof(*t->length));
    t->record = calloc(t->batch_rows, sizeof(*t->record));
    t->lines = calloc(t->batch_rows, sizeof(*t->lines));
    t->offset = calloc(t->batch_rows, sizeof(*t->offset));
    const char *at = t->at;
    for (size_t r = 0; *at != '\0' && (head == 0 || r < head); r++) {
        bool ends = false;
        for (size_t c = 0; c < t->shape.column_count; c++) {
            long n = ends ? -1 : read_field(&at, t->pool, &ends);
            text_narrow(t, c, t->pool, n);
        }
    }
    text_restart(t);
    t->passes = 1;
    return t;
}

/* ---- the fixture ---- */

struct fixture {
    uv_loop_t loop;
    char folder[64];
    char db[96];
    void *dest;
    uint64_t *options;
    struct load_plan plan;
    unsigned keys_made;
    sqlite3 *reader;
    char answer[8192];
    bool is_connected, is_closed;
    struct err connect_err;
};

struct test_load {
    struct load base;
    struct fixture *f;
    char key[64];
    bool is_done;
};

static void on_closed(void *arg)
{
    ((struct fixture *)arg)->is_closed = true;
}

static void on_connected(void *arg, const struct err *err)
{
    struct fixture *f = arg;
    f->is_connected = true;
    err_clear(&f->connect_err);
    if (err != NULL)
        f->connect_err = *err;
}

/* Turn the loop until *FLAG; a hang fails instead of hanging. */
static void run_until(struct fixture *f, const bool *flag)
{
    uint64_t until = uv_hrtime() + 60000000000ull;
    while (!*flag) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        if (!*flag)
            usleep(200);
        assert_true(uv_hrtime() < until);
    }
}

/* The driver's options are its own struct; a path and milliseconds are its members, in that order (see dest_sqlite.c).
 */
static void fill_options(struct fixture *f, uint64_t lock_timeout_ms)
{
    struct err err;
    f->options = calloc(1, dest_sqlite.options_size);
    char url[128];
    snprintf(url, sizeof(url), "sqlite:%s", f->db);
    static char kept[128];
    snprintf(kept, sizeof(kept), "%s", url);
    assert_int_equal(dest_sqlite.from_url(kept, f->options, &err), ERR_NONE);
    for (const struct option *o = dest_sqlite.options; o->name != NULL; o++)
        if (strcmp(o->name, "lock_timeout") == 0)
            memcpy((char *)f->options + o->offset, &lock_timeout_ms, sizeof(lock_timeout_ms));
}

static const struct dest_env env = {.jobs = 4, .buffer_bytes = 12 * 1024 * 1024};

static void open_dest(struct fixture *f)
{
    struct err err;
    fill_options(f, 300);
    assert_int_equal(dest_sqlite.open(f->options, &env, &f->loop, &f->dest, &err), ERR_NONE);
}

static void close_dest(struct fixture *f)
{
    f->is_closed = false;
    dest_sqlite.close(f->dest, on_closed, f);
    run_until(f, &f->is_closed);
    free(f->options);
    f->options = NULL;
}

static inline enum err_code connect_dest(struct fixture *f)
{
    f->is_connected = false;
    dest_sqlite.connect(f->dest, on_connected, f);
    run_until(f, &f->is_connected);
    return f->connect_err.code;
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    snprintf(f->folder, sizeof(f->folder), "/tmp/chute-lite-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->db, sizeof(f->db), "%s/w.db", f->folder);
    uv_loop_init(&f->loop);
    f->plan =
        (struct load_plan){.flow = "flow", .mode = MODE_REPLACE, .row_number = "", .on_schema_change = SCHEMA_RECREATE};
    open_dest(f);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    close_dest(f);
    sqlite3_close(f->reader);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    DIR *dir = opendir(f->folder);
    for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s", f->folder, e->d_name);
        unlink(path);
    }
    if (dir != NULL)
        closedir(dir);
    assert_int_equal(rmdir(f->folder), 0);
    free(f);
    return 0;
}

/* What another program sees: rows as "a|b", a line each; "error: ..." if it sees none. */
static const char *ask(struct fixture *f, const char *sql)
{
    sqlite3_stmt *stmt = NULL;
    size_t used = 0;
    f->answer[0] = '\0';
    if (f->reader == NULL) {
        assert_int_equal(sqlite3_open(f->db, &f->reader), SQLITE_OK);
        sqlite3_busy_timeout(f->reader, 5000);
    }
    if (sqlite3_prepare_v2(f->reader, sql, -1, &stmt, NULL) == SQLITE_OK)
        while (sqlite3_step(stmt) == SQLITE_ROW && used < sizeof(f->answer) - 1) {
            if (used > 0)
                used += (size_t)snprintf(f->answer + used, sizeof(f->answer) - used, "\n");
            for (int i = 0; i < sqlite3_column_count(stmt) && used < sizeof(f->answer) - 1; i++) {
                const char *text = (const char *)sqlite3_column_text(stmt, i);
                used += (size_t)snprintf(f->answer + used, sizeof(f->answer) - used, "%s%s", i > 0 ? "|" : "",
                                         text != NULL ? text : "NULL");
            }
        }
    if (sqlite3_finalize(stmt) != SQLITE_OK || sqlite3_errcode(f->reader) == SQLITE_ERROR)
        snprintf(f->answer, sizeof(f->answer), "error: %s", sqlite3_errmsg(f->reader));
    return f->answer;
}

static void on_finished(struct load *load)
{
    ((struct test_load *)load)->is_done = true;
}

/* TEXT NULL: no file (drop, empty ...). */
static struct test_load *make_load(struct fixture *f, const char *table, const char *path, const char *text,
                                   size_t head)
{
    struct test_load *l = calloc(1, sizeof(*l));
    l->f = f;
    snprintf(l->key, sizeof(l->key), "key-%ld-%u", (long)getpid(), ++f->keys_made);
    l->base = (struct load){.what = LOAD_FILE,
                            .plan = &f->plan,
                            .instance = "me",
                            .source = "in",
                            .path = path,
                            .load_key = l->key,
                            .table = table,
                            .fd = -1,
                            .finished = on_finished};
    if (text != NULL)
        l->base.rows = &text_rows_new(text, head)->base;
    return l;
}

static void free_load(struct test_load *l)
{
    rows_free(l->base.rows);
    free(l);
}

static void begin_load(struct fixture *f, struct test_load *l)
{
    struct err err;
    assert_int_equal(dest_sqlite.begin(f->dest, &l->base, &err), ERR_NONE);
    assert_false(l->is_done);
}

/* The whole way; the load is left for a look, to be freed by the caller. */
static struct test_load *run_load(struct fixture *f, struct test_load *l)
{
    begin_load(f, l);
    run_until(f, &l->is_done);
    const struct receipt *r = &l->base.receipt;
    if (l->base.err.code == ERR_NONE && l->base.what == LOAD_FILE)
        assert_int_equal(r->parsed, r->inserted + r->updated + r->unchanged + r->rejected);
    return l;
}

/* Load TEXT as PATH.csv into TABLE; returns the error code, with the load's last words in f->answer. */
static inline enum err_code load_text(struct fixture *f, const char *table, const char *path, const char *text,
                                      size_t head)
{
    struct test_load *l = run_load(f, make_load(f, table, path, text, head));
    enum err_code code = l->base.err.code;
    snprintf(f->answer, sizeof(f->answer), "%s", l->base.err.text);
    free_load(l);
    return code;
}

#define assert_loads(f, table, path, text, head)                                                                       \
    do {                                                                                                               \
        if (load_text(f, table, path, text, head) != ERR_NONE)                                                         \
            fail_msg("%s", (f)->answer);                                                                               \
    } while (0)

#define assert_says(text, part)                                                                                        \
    do {                                                                                                               \
        if (strstr((text), (part)) == NULL)                                                                            \
            fail_msg("expected \"%s\" in \"%s\"", (part), (text));                                                     \
    } while (0)

#endif
