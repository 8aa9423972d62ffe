/*
 * rejects.c -- the rows that a load left out, with line and reason, as CSV.
 *
 * They are written while the load runs and get their name only when it was committed: rows of a load that was rolled
 * back were not rejected, they were never loaded. No file is made before the first row.
 */
#include "finish.h"
#include "finish_internal.h"
#include "buf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REJECT_SUFFIX ".rejected.csv"
#define FLUSH_BYTES ((size_t)64 * 1024)

struct rejects {
    char *dir, *flow, *path;
    int folder; /* -1: nothing was written yet */
    int fd;
    char name[NAME_MAX + 1];
    char part[NAME_MAX + 1 + sizeof QUARANTINE_PART];
    struct buf buf;
    uint64_t rows;
    bool is_synced; /* all ROWS are on disk */
    int failure;    /* errno of the first failed write */
};

static void free_rejects(struct rejects *r)
{
    if (r->fd >= 0)
        close(r->fd);
    if (r->folder >= 0)
        close(r->folder);
    buf_done(&r->buf);
    free(r->dir);
    free(r->flow);
    free(r->path);
    free(r);
}

enum err_code rejects_open(const char *dir, const char *flow, const char *path, struct rejects **ret, struct err *err)
{
    struct rejects *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_nomem(err);
    buf_init(&r->buf);
    r->folder = r->fd = -1;
    r->dir = strdup(dir);
    r->flow = strdup(flow);
    r->path = strdup(path);
    if (r->dir == NULL || r->flow == NULL || r->path == NULL) {
        free_rejects(r);
        return err_nomem(err);
    }
    *ret = r;
    return ERR_NONE;
}

static bool start_file(struct rejects *r)
{
    if (r->folder < 0)
        r->folder = quarantine_folder(r->dir, r->flow, r->path, REJECT_SUFFIX, true, r->name);
    if (r->folder < 0)
        return false;
    snprintf(r->part, sizeof r->part, "%s" QUARANTINE_PART, r->name);
    r->fd = openat(r->folder, r->part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0640);
    return r->fd >= 0;
}

static bool flush(struct rejects *r)
{
    size_t done = 0;
    while (done < r->buf.size) {
        ssize_t n = write(r->fd, r->buf.data + done, r->buf.size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    buf_clear(&r->buf);
    return true;
}

/* NULL stays an empty field without quotes, an empty text gets them: the difference can be read back. */
static void add_value(struct buf *b, const char *value, size_t n)
{
    if (value == NULL)
        return;
    bool needs_quotes = n == 0 || value[0] == ' ' || value[n - 1] == ' ';
    for (size_t i = 0; i < n && !needs_quotes; i++)
        needs_quotes = value[i] == ',' || value[i] == '"' || value[i] == '\n' || value[i] == '\r';
    if (!needs_quotes) {
        buf_add(b, value, n);
        return;
    }
    buf_addc(b, '"');
    for (size_t i = 0; i < n;) {
        const char *quote = memchr(value + i, '"', n - i);
        size_t run = quote != NULL ? (size_t)(quote - value) + 1 - i : n - i;
        buf_add(b, value + i, run);
        if (quote != NULL)
            buf_addc(b, '"');
        i += run;
    }
    buf_addc(b, '"');
}

static bool on_put(void *arg, uint64_t line, uint64_t offset, const char *reason, const char *const *value,
                   const uint32_t *length, size_t fields)
{
    struct rejects *r = arg;
    if (r->failure != 0)
        return false;
    if (r->fd < 0 && !start_file(r)) {
        r->failure = errno;
        return false;
    }
    if (r->rows == 0)
        buf_adds(&r->buf, "line,offset,reason\n");
    r->rows++;
    r->is_synced = false;
    buf_printf(&r->buf, "%" PRIu64 ",%" PRIu64 ",", line, offset);
    add_value(&r->buf, reason, strlen(reason));
    for (size_t i = 0; i < fields; i++) {
        buf_addc(&r->buf, ',');
        add_value(&r->buf, value[i], length[i]);
    }
    buf_addc(&r->buf, '\n');
    if (r->buf.failed)
        r->failure = ENOMEM;
    else if (r->buf.size >= FLUSH_BYTES && !flush(r))
        r->failure = errno;
    return r->failure == 0;
}

static void on_restart(void *arg)
{
    struct rejects *r = arg;
    buf_clear(&r->buf);
    r->rows = 0;
    r->failure = 0;
    if (r->fd >= 0 && (lseek(r->fd, 0, SEEK_SET) != 0 || ftruncate(r->fd, 0) != 0))
        r->failure = errno;
}

void rejects_sink(struct rejects *r, struct reject_sink *ret_sink)
{
    *ret_sink = (struct reject_sink){.arg = r, .put = on_put, .restart = on_restart};
}

static enum err_code not_kept(const struct rejects *r, struct err *err)
{
    return err_set(err, ERR_SYSTEM, true, "keep %" PRIu64 " rejected rows of %s in %s: %s", r->rows, r->path, r->dir,
                   strerror(r->failure));
}

enum err_code rejects_sync(struct rejects *r, struct err *err)
{
    if (r->rows == 0 || r->is_synced)
        return ERR_NONE;
    if (r->failure == 0 && (!flush(r) || fsync(r->fd) != 0 || !folder_sync(r->folder)))
        r->failure = errno;
    r->is_synced = r->failure == 0;
    return r->is_synced ? ERR_NONE : not_kept(r, err);
}

/* PART gets its NAME, for good. */
static bool give_name(int folder, const char *part, const char *name)
{
    return renameat(folder, part, folder, name) == 0 && folder_sync(folder);
}

enum err_code rejects_keep(struct rejects *r, struct err *err)
{
    enum err_code code = ERR_NONE;
    char name[NAME_MAX + 1];
    if (r->rows == 0) { /* what an earlier version of this file left is no longer true */
        int folder = quarantine_folder(r->dir, r->flow, r->path, REJECT_SUFFIX, false, name);
        if (folder >= 0) {
            unlinkat(folder, name, 0);
            close(folder);
        }
        rejects_drop(r);
        return ERR_NONE;
    }
    code = rejects_sync(r, err);
    if (code != ERR_NONE) {
        rejects_drop(r);
        return code;
    }
    if (!give_name(r->folder, r->part, r->name)) {
        r->failure = errno;
        code = not_kept(r, err);
    }
    free_rejects(r); /* what could not get its name stays under the other one: nobody else has these rows */
    return code;
}

enum err_code rejects_adopt(const char *dir, const char *flow, const char *path, struct err *err)
{
    char name[NAME_MAX + 1], part[NAME_MAX + 1 + sizeof QUARANTINE_PART];
    int folder = quarantine_folder(dir, flow, path, REJECT_SUFFIX, false, name);
    snprintf(part, sizeof part, "%s" QUARANTINE_PART, name);
    bool is_done = folder >= 0 ? give_name(folder, part, name) : false;
    int failure = errno;
    if (folder >= 0)
        close(folder);
    if (is_done || failure == ENOENT) /* it has its name already */
        return ERR_NONE;
    return err_set(err, ERR_SYSTEM, true, "keep rejected rows of %s in %s: %s", path, dir, strerror(failure));
}

void rejects_drop(struct rejects *r)
{
    if (r == NULL)
        return;
    if (r->folder >= 0)
        unlinkat(r->folder, r->part, 0);
    free_rejects(r);
}
