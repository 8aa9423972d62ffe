/* event_text.c -- the text of a file of events: a buffer that moves along, and the place in it that was reached. */
#include "event_internal.h"

#include <errno.h>
#include <sys/stat.h>

/* Room for CAPACITY bytes. */
static enum err_code reserve(struct event_text *t, size_t capacity, struct err *err)
{
    char *memory = realloc(t->memory, capacity + TEXT_PAD);
    if (memory == NULL)
        return err_nomem(err);
    t->memory = t->text = memory;
    t->capacity = capacity;
    return ERR_NONE;
}

/* Read until the buffer is full or the text over. */
static enum err_code fill_buffer(struct event_text *t, struct err *err)
{
    while (t->size < t->capacity && !t->is_last) {
        size_t n, room = t->capacity - t->size;
        if (room < 4) /* what text_read() wants at least */
            break;
        if (text_read(&t->stream, t->text + t->size, room, &n, err) != ERR_NONE) {
            uint64_t line, column;
            event_text_place(t, t->size, &line, &column);
            add_place(err, line, column);
            t->has_moved = true; /* what the stream would say next is no continuation */
            return err->code;
        }
        t->size += n;
        t->is_last = n == 0;
        if (!t->has_moved && t->size == n)
            t->offset = t->stream.first_offset;
    }
    memset(t->text + t->size, 0, TEXT_PAD);
    return ERR_NONE;
}

static void to_the_start(struct event_text *t)
{
    t->pos = 0;
    t->line = t->column = 1;
}

static enum err_code begin(struct event_text *t, struct err *err)
{
    int fd = t->stream.fd;
    if (text_open(&t->stream, fd, ENC_UTF8, err) != ERR_NONE)
        return err->code;
    t->is_open = true;
    t->size = 0;
    t->offset = 0;
    t->is_last = t->has_moved = false;
    to_the_start(t);
    return fill_buffer(t, err);
}

enum err_code event_text_open(struct event_text *t, int fd, uint64_t longest, struct err *err)
{
    struct stat st;
    size_t block = inspect_knobs.block > 0 ? inspect_knobs.block + 8 : EVENT_HEAD_BYTES;
    event_text_close(t); /* nothing, unless an opening failed half-way */
    memset(t, 0, sizeof *t);
    t->stream.fd = fd;
    t->longest = longest;
    if (fstat(fd, &st) != 0)
        return err_set(err, ERR_SYSTEM, true, "fstat: %s", strerror(errno));
    /* Most files are small. One more byte than there is, to meet the end; compressed ones show their size by growing.
     */
    size_t capacity = st.st_size + 64 < (off_t)block ? (size_t)st.st_size + 64 : block;
    if (reserve(t, capacity, err) != ERR_NONE || begin(t, err) != ERR_NONE)
        return err->code;
    while (!t->is_last && t->capacity < block)
        if (reserve(t, t->capacity * 4 < block ? t->capacity * 4 : block, err) != ERR_NONE ||
            fill_buffer(t, err) != ERR_NONE)
            return err->code;
    return ERR_NONE;
}

void event_text_close(struct event_text *t)
{
    if (t->is_open)
        text_close(&t->stream);
    t->is_open = false;
    free(t->memory);
    t->memory = t->text = NULL;
}

void event_text_park(struct event_text *t)
{
    event_text_close(t);
    t->size = t->capacity = 0;
    t->has_moved = t->is_last = false;
    to_the_start(t);
}

enum err_code event_text_rewind(struct event_text *t, struct err *err)
{
    if (!t->has_moved) {
        to_the_start(t);
        return ERR_NONE;
    }
    text_close(&t->stream);
    t->is_open = false;
    return begin(t, err);
}

enum err_code event_text_read(struct event_text *t, struct err *err)
{
    if (t->pos > 0) {
        memmove(t->text, t->text + t->pos, t->size - t->pos);
        t->offset += t->pos;
        t->size -= t->pos;
        t->pos = 0;
        t->has_moved = true;
    }
    /* Twice the text, or what is in it would be looked at again for a few bytes more. */
    if (t->size > t->capacity / 2) {
        uint64_t most = t->longest + EVENT_HEAD_BYTES;
        size_t capacity = 2 * (uint64_t)t->capacity < most ? 2 * t->capacity : (size_t)most;
        if (capacity > t->capacity && reserve(t, capacity, err) != ERR_NONE)
            return err->code;
    }
    return fill_buffer(t, err);
}

/* The place behind FROM..TO of a text that begins at LINE and COLUMN. */
static void follow(const char *from, const char *to, uint64_t *line, uint64_t *column)
{
    const char *end;
    while ((end = memchr(from, '\n', (size_t)(to - from))) != NULL) {
        ++*line;
        *column = 1;
        from = end + 1;
    }
    for (; from < to; from++)
        *column += ((unsigned char)*from & 0xC0) != 0x80;
}

void event_text_place(const struct event_text *t, size_t at, uint64_t *ret_line, uint64_t *ret_column)
{
    *ret_line = t->line;
    *ret_column = t->column;
    follow(t->text + t->pos, t->text + at, ret_line, ret_column);
}

void event_text_advance(struct event_text *t, size_t to)
{
    follow(t->text + t->pos, t->text + to, &t->line, &t->column);
    t->pos = to;
}
