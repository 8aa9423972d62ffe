/*
 * rows.c -- the rows of a file, for a destination to pull; for a large file the parser runs ahead on its own thread.
 *
 * Three batches go round: one with the puller, the others full or being filled. A batch that had to grow for a long row
 * is the only grown one, so that memory is bounded by one max_row.
 *
 * Without that thread nothing but the place is held before the first pull and after the last one: hundreds of small
 * files wait for their turn in a commit, and only one at a time is read.
 */
#include "inspect_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <uv.h>

#define BATCHES 3
#define THREAD_FROM_BYTES ((off_t)1024 * 1024)
#define THREAD_FROM_COMPRESSED ((off_t)128 * 1024)
#define DEFAULT_BUFFER ((uint64_t)4 * 1024 * 1024)

struct file_rows {
    struct rows base;
    const struct inspect_options *options;
    int fd;
    off_t size;
    bool is_ready; /* there is a parser, it has batches and begins a pass or is in one */
    bool is_told;  /* the pass has ended well, and all it needed is gone */
    struct text_stream stream;
    bool is_open; /* STREAM */
    struct parser parser;
    struct batch *batches[BATCHES]; /* [0] only when inline */
    size_t batch_count;
    struct batch *current;               /* the puller's */
    uint64_t records, bytes, odd, loose; /* up to the end of CURRENT */
    bool is_over;                        /* CURRENT was the last */
    struct err pending;                  /* what ended the pass, told after the rows before it */
    struct err failed;                   /* what every further call answers */
    /* the thread; under LOCK: the two queues, and GROWN */
    bool is_threaded, is_running;
    uv_thread_t thread;
    uv_mutex_t lock;
    uv_cond_t changed;
    struct batch *free, *full, **full_tail;
    size_t grown;
    _Atomic bool stop;
};

static struct file_rows *of(struct rows *rows)
{
    return (struct file_rows *)rows;
}

/* ---- the parser's thread */

static struct batch *take_free(struct file_rows *r)
{
    uv_mutex_lock(&r->lock);
    while (r->free == NULL && !r->stop)
        uv_cond_wait(&r->changed, &r->lock);
    struct batch *b = r->stop ? NULL : r->free;
    if (b != NULL)
        r->free = b->next;
    uv_mutex_unlock(&r->lock);
    return b;
}

static void put_full(struct file_rows *r, struct batch *b)
{
    uv_mutex_lock(&r->lock);
    b->next = NULL;
    *r->full_tail = b;
    r->full_tail = &b->next;
    uv_cond_broadcast(&r->changed);
    uv_mutex_unlock(&r->lock);
}

static void run_ahead(void *arg)
{
    struct file_rows *r = arg;
    bool is_last = false;
    while (!is_last) {
        struct batch *b = take_free(r);
        if (b == NULL)
            return;
        parser_fill(&r->parser, b);
        is_last = b->is_last;
        put_full(r, b);
    }
}

/* Before a batch grows: wait until the puller has given back the one that grew before. */
static enum err_code wait_alone(void *arg, struct err *err)
{
    struct file_rows *r = arg;
    uv_mutex_lock(&r->lock);
    while (r->grown > 0 && !r->stop)
        uv_cond_wait(&r->changed, &r->lock);
    r->grown++;
    uv_mutex_unlock(&r->lock);
    return r->stop ? err_set(err, ERR_STOPPED, false, "stopped") : ERR_NONE;
}

static enum err_code start_thread(struct file_rows *r, struct err *err)
{
    const uv_thread_options_t options = {.flags = UV_THREAD_HAS_STACK_SIZE, .stack_size = 256 * 1024};
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the loop thread's */
    int status = uv_thread_create_ex(&r->thread, &options, run_ahead, r);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (status != 0)
        return err_set(err, ERR_SYSTEM, true, "start a thread: %s", uv_strerror(status));
    r->is_running = true;
    return ERR_NONE;
}

static void stop_thread(struct file_rows *r)
{
    if (!r->is_running)
        return;
    uv_mutex_lock(&r->lock);
    r->stop = true;
    uv_cond_broadcast(&r->changed);
    uv_mutex_unlock(&r->lock);
    uv_thread_join(&r->thread);
    r->is_running = false;
    r->stop = false;
}

/* ---- the puller's side */

static void give_back(struct file_rows *r)
{
    struct batch *b = r->current;
    r->current = NULL;
    if (b == NULL)
        return;
    bool has_grown = b->data_size > b->usual_size;
    batch_clear(b);
    if (!r->is_threaded)
        return;
    uv_mutex_lock(&r->lock);
    r->grown -= has_grown;
    b->next = r->free;
    r->free = b;
    uv_cond_broadcast(&r->changed);
    uv_mutex_unlock(&r->lock);
}

static enum err_code take_full(struct file_rows *r, struct err *err)
{
    if (!r->is_threaded) {
        r->current = r->batches[0];
        batch_clear(r->current);
        parser_fill(&r->parser, r->current);
        return ERR_NONE;
    }
    if (!r->is_running && start_thread(r, err) != ERR_NONE)
        return err->code;
    uv_mutex_lock(&r->lock);
    while (r->full == NULL)
        uv_cond_wait(&r->changed, &r->lock);
    r->current = r->full;
    r->full = r->current->next;
    if (r->full == NULL)
        r->full_tail = &r->full;
    uv_mutex_unlock(&r->lock);
    return ERR_NONE;
}

enum err_code reject_row(struct rows *rows, const struct inspect_options *options, const struct bad_row *bad,
                         struct err *err)
{
    const struct reject_sink *sink = &options->sink;
    if (options->skip_bad_rows == 0)
        return err_set(err, ERR_INPUT, false, "%s", bad->reason);
    if (rows->result.rejected == options->skip_bad_rows)
        return err_set(err, ERR_INPUT, false, "%llu bad rows, and bad_rows allows %llu; the last one: %s",
                       (unsigned long long)(rows->result.rejected + 1), (unsigned long long)options->skip_bad_rows,
                       bad->reason);
    rows->result.rejected++;
    if (sink->put != NULL &&
        !sink->put(sink->arg, bad->line, bad->offset, bad->reason, bad->value, bad->length, bad->fields))
        return err_set(err, ERR_SYSTEM, true, "the rejected row can't be kept: %s", bad->reason);
    return ERR_NONE;
}

/* What the batch says besides its rows: kinds, progress, rejected rows, the end. */
static enum err_code take_news(struct file_rows *r, struct err *err)
{
    struct batch *b = r->current;
    for (size_t c = 0; c < r->parser.columns; c++) {
        r->base.shape->columns[c].kinds = b->kinds[c];
        r->base.shape->columns[c].has_value = b->has_value[c];
    }
    r->records = b->records;
    r->bytes = b->bytes;
    r->odd = b->odd;
    r->loose = b->loose;
    atomic_store_explicit(&r->base.rows_done, b->records, memory_order_relaxed);
    atomic_store_explicit(&r->base.bytes_done, b->bytes, memory_order_relaxed);
    for (size_t i = 0; i < b->bad_count; i++)
        if (reject_row(&r->base, r->options, &b->bad[i], err) != ERR_NONE)
            return err->code;
    r->is_over = b->is_last;
    r->pending = b->err;
    return ERR_NONE;
}

/* A file without columns has no records to read, but bytes that count: a byte order mark, blank lines. */
static enum err_code read_on(struct file_rows *r, struct err *err)
{
    size_t n;
    do {
        if (text_read(&r->stream, r->parser.block, r->parser.block_size, &n, err) != ERR_NONE)
            return err->code;
    } while (n > 0);
    r->bytes = r->stream.disk_offset;
    return ERR_NONE;
}

/* What ended the pass: an error, or the end of the file, and then RESULT. */
static enum err_code end_pass(struct file_rows *r, struct err *err)
{
    if (r->pending.code != ERR_NONE) {
        *err = r->pending;
        return err->code;
    }
    if (r->is_running) {
        uv_thread_join(&r->thread); /* it has put the last batch: nothing to wait for */
        r->is_running = false;
    }
    if (r->parser.columns == 0 && read_on(r, err) != ERR_NONE)
        return err->code;
    r->base.result.records = r->records;
    r->base.result.bytes = r->bytes;
    r->base.result.odd = r->odd;
    r->base.result.loose = r->loose;
    text_hash(&r->stream, r->base.result.hash);
    return ERR_NONE;
}

static enum err_code get_ready(struct file_rows *r, struct err *err);
static void let_go(struct file_rows *r);

static enum err_code next_batch(struct file_rows *r, const struct row_batch **ret_batch, struct err *err)
{
    static const struct row_batch none;
    if (r->is_told) {
        *ret_batch = &none;
        return ERR_NONE;
    }
    if (get_ready(r, err) != ERR_NONE)
        return err->code;
    give_back(r);
    while (!r->is_over) {
        if (take_full(r, err) != ERR_NONE || take_news(r, err) != ERR_NONE)
            return err->code;
        if (r->current->rows.rows > 0) {
            *ret_batch = &r->current->rows;
            return ERR_NONE;
        }
        give_back(r);
    }
    *ret_batch = &none;
    if (end_pass(r, err) != ERR_NONE)
        return err->code;
    r->is_told = true;
    if (!r->is_threaded)
        let_go(r);
    return ERR_NONE;
}

static enum err_code rows_next_batch(struct rows *rows, const struct row_batch **ret_batch, struct err *err)
{
    struct file_rows *r = of(rows);
    struct err own;
    if (err == NULL)
        err = &own;
    if (r->failed.code == ERR_NONE && next_batch(r, ret_batch, err) != ERR_NONE)
        r->failed = *err;
    if (r->failed.code != ERR_NONE)
        *err = r->failed;
    return r->failed.code;
}

static enum err_code rows_reject_row(struct rows *rows, size_t row, int column, const char *reason, struct err *err)
{
    struct file_rows *r = of(rows);
    const struct row_batch *b = &r->current->rows;
    char text[400], place[160] = "";
    if (column >= 0)
        snprintf(place, sizeof place, ", column %.120s", rows->shape->columns[column].name);
    snprintf(text, sizeof text, "line %llu%s: %s (byte offset %llu)", (unsigned long long)b->line[row], place, reason,
             (unsigned long long)b->offset[row]);
    struct err own;
    if (err == NULL)
        err = &own;
    const struct bad_row bad = {b->record[row],
                                b->line[row],
                                b->offset[row],
                                text,
                                (const char **)(uintptr_t)(b->value + row * b->columns),
                                (uint32_t *)(uintptr_t)(b->length + row * b->columns),
                                b->columns};
    if (reject_row(rows, r->options, &bad, err) == ERR_NONE)
        return ERR_NONE;
    r->failed = *err;
    return err->code;
}

/* ---- a pass that nobody takes rows from: on the caller's thread, there is nothing to run ahead of */

static enum err_code skim_all(struct file_rows *r, const struct rows_skim *skim, struct err *err)
{
    struct parser *p = &r->parser;
    if (get_ready(r, err) != ERR_NONE)
        return err->code;
    p->skims = true;
    p->skim = skim;
    p->stop = skim->stop;
    p->before_grow = NULL;
    while (!r->is_over) {
        r->current = r->batches[0];
        batch_clear(r->current);
        parser_fill(p, r->current);
        if (take_news(r, err) != ERR_NONE)
            return err->code;
    }
    r->current = NULL;
    return end_pass(r, err);
}

static enum err_code rows_pass_over(struct rows *rows, const struct rows_skim *skim, struct err *err)
{
    struct file_rows *r = of(rows);
    struct err own;
    if (err == NULL)
        err = &own;
    bool has_begun = r->is_running || r->is_told || r->bytes > 0 || r->failed.code != ERR_NONE;
    bool no_kinds = r->options->no_kinds || skim->no_kinds;
    if (has_begun || !no_kinds || !count_knows(&rows->shape->dialect))
        return rows_pull_all(rows, skim, err);
    if (skim_all(r, skim, err) != ERR_NONE)
        r->failed = *err;
    return r->failed.code;
}

/* ---- life */

static enum err_code begin(struct file_rows *r, struct err *err)
{
    if (text_open(&r->stream, r->fd, r->base.shape->dialect.encoding, err) != ERR_NONE)
        return err->code;
    r->is_open = true;
    const struct dialect *d = &r->base.shape->dialect;
    r->parser.stop = &r->stop;
    r->parser.before_grow = r->is_threaded ? wait_alone : NULL;
    parser_restart(&r->parser, !d->has_bom ? 0 : d->encoding == ENC_UTF16 ? 2 : 3);
    r->full = NULL;
    r->full_tail = &r->full;
    r->free = NULL;
    r->grown = 0;
    r->current = NULL;
    r->is_over = r->parser.columns == 0;
    for (size_t i = 0; i < r->batch_count; i++) {
        batch_clear(r->batches[i]);
        r->batches[i]->next = r->free;
        r->free = r->batches[i];
    }
    r->records = r->bytes = r->odd = r->loose = 0;
    memset(&r->base.result, 0, sizeof r->base.result);
    r->base.bytes_done = r->base.rows_done = 0;
    err_clear(&r->pending);
    err_clear(&r->failed);
    return ERR_NONE;
}

static void end(struct file_rows *r)
{
    stop_thread(r);
    if (r->is_open)
        text_close(&r->stream);
    r->is_open = false;
}

/* The next pull begins anew. */
static void let_go(struct file_rows *r)
{
    end(r);
    for (size_t i = 0; i < BATCHES; i++) {
        batch_free(r->batches[i]);
        r->batches[i] = NULL;
    }
    r->current = NULL;
    parser_done(&r->parser);
    free(r->parser.kinds);
    free(r->parser.has_value);
    r->parser.kinds = NULL;
    r->parser.has_value = NULL;
    r->is_ready = false;
}

static enum err_code rows_again(struct rows *rows, struct err *err)
{
    struct file_rows *r = of(rows);
    struct err own;
    if (err == NULL)
        err = &own;
    if (r->options->skip_bad_rows > 0 && r->options->sink.restart != NULL)
        r->options->sink.restart(r->options->sink.arg);
    if (r->is_threaded)
        end(r);
    else
        let_go(r);
    r->is_told = false;
    err_clear(&r->failed);
    if (r->is_threaded ? begin(r, err) != ERR_NONE : get_ready(r, err) != ERR_NONE)
        r->failed = *err;
    return r->failed.code;
}

static void rows_done(struct rows *rows)
{
    struct file_rows *r = of(rows);
    let_go(r);
    uv_cond_destroy(&r->changed);
    uv_mutex_destroy(&r->lock);
    free(r);
}

static const struct rows_ops file_rows_ops = {.next = rows_next_batch,
                                              .reject = rows_reject_row,
                                              .rewind = rows_again,
                                              .free = rows_done,
                                              .skim = rows_pass_over};

static void fill_parser(struct file_rows *r, off_t size)
{
    struct parser *p = &r->parser;
    memset(p, 0, sizeof *p);
    bool is_plain = r->base.shape->dialect.compression == COMPRESSION_NONE;
    p->csv_options = r->options->csv;
    p->dialect = &r->base.shape->dialect;
    p->columns = r->base.shape->column_count;
    p->skips_header = true;
    p->bad_limit = r->options->skip_bad_rows;
    p->keeps_bad = p->bad_limit > 0;
    p->no_kinds = r->options->no_kinds;
    p->stream = &r->stream;
    p->block_size = BLOCK_BYTES;
    if (is_plain && p->dialect->encoding == ENC_UTF8 && size < (off_t)BLOCK_BYTES)
        p->block_size = (size_t)size + 64;
    if (inspect_knobs.block > 0)
        p->block_size = inspect_knobs.block + 8;
    r->is_threaded = size > (is_plain ? THREAD_FROM_BYTES : THREAD_FROM_COMPRESSED);
    if (inspect_knobs.threads >= 0)
        r->is_threaded = inspect_knobs.threads > 0;
    p->grow_arg = r;
    r->batch_count = r->is_threaded ? BATCHES : 1;
}

static size_t batch_bytes(const struct file_rows *r)
{
    uint64_t buffer = r->options->buffer_bytes > 0 ? r->options->buffer_bytes : DEFAULT_BUFFER;
    size_t bytes = buffer / 16 < 32 * 1024     ? 32 * 1024
                   : buffer / 16 > BLOCK_BYTES ? BLOCK_BYTES
                                               : (size_t)(buffer / 16);
    if (!r->is_threaded && r->parser.block_size < bytes)
        bytes = r->parser.block_size;
    return inspect_knobs.batch_bytes > 0 ? inspect_knobs.batch_bytes : bytes;
}

static enum err_code allocate(struct file_rows *r, struct err *err)
{
    size_t n = r->parser.columns + 1;
    r->parser.kinds = malloc(n * sizeof *r->parser.kinds);
    r->parser.has_value = malloc(n * sizeof *r->parser.has_value);
    if (r->parser.kinds == NULL || r->parser.has_value == NULL)
        return err_nomem(err);
    for (size_t c = 0; c < r->parser.columns; c++) {
        r->parser.kinds[c] = r->base.shape->columns[c].kinds;
        r->parser.has_value[c] = r->base.shape->columns[c].has_value;
    }
    for (size_t i = 0; i < r->batch_count; i++)
        if (batch_new(r->parser.columns, batch_bytes(r), &r->batches[i], err) != ERR_NONE)
            return err->code;
    return parser_init(&r->parser, err);
}

/* Allocate what a pass needs and begin it, if that has not been done. */
static enum err_code get_ready(struct file_rows *r, struct err *err)
{
    if (r->is_ready)
        return ERR_NONE;
    fill_parser(r, r->size);
    if (allocate(r, err) != ERR_NONE || begin(r, err) != ERR_NONE) {
        let_go(r);
        return err->code;
    }
    r->is_ready = true;
    return ERR_NONE;
}

enum err_code inspect_rows(int fd, const struct inspect_options *options, struct shape *shape, struct rows **ret_rows,
                           struct err *err)
{
    struct err own;
    if (err == NULL)
        err = &own;
    err_clear(err);
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set(err, ERR_SYSTEM, true, "fstat: %s", strerror(errno));
    struct file_rows *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_nomem(err);
    if (uv_mutex_init(&r->lock) != 0) {
        free(r);
        return err_nomem(err);
    }
    if (uv_cond_init(&r->changed) != 0) {
        uv_mutex_destroy(&r->lock);
        free(r);
        return err_nomem(err);
    }
    r->base.ops = &file_rows_ops;
    r->base.shape = shape;
    r->options = options;
    r->fd = fd;
    r->size = st.st_size;
    fill_parser(r, st.st_size); /* tells whether there will be a thread */
    if (r->is_threaded && get_ready(r, err) != ERR_NONE) {
        rows_done(&r->base);
        return err->code;
    }
    if (r->is_threaded)
        posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    *ret_rows = &r->base;
    return ERR_NONE;
}
