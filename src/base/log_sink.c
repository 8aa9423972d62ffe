/*
 * log_sink.c -- writing log lines where they belong, whatever happens there.
 *
 * A full disk, a reader that went away or sleeps, a folder that lost its permissions: none of them may stop the
 * daemon. The line is lost, counted, and the count is told when writing works again.
 */
#include "log_internal.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STALL_MS 100
#define PIPE_CHUNK 4096 /* PIPE_BUF: what poll() promises to fit */
#define ROTATE_AGAIN_MS 60000

static bool wants_colour(int fd)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return (no == NULL || *no == '\0') && term != NULL && strcmp(term, "dumb") != 0 && isatty(fd) == 1;
}

static void look_at(struct sink *s)
{
    struct stat st;
    s->is_regular = fstat(s->fd, &st) == 0 && S_ISREG(st.st_mode);
    s->size = s->is_regular ? (uint64_t)st.st_size : 0;
    s->is_torn = false;
    s->is_stalled = false;
}

/* Not blocking, so that a FIFO without a reader is an error instead of a hang. */
static int open_file(const char *path)
{
    return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
}

enum err_code sink_open(struct sink *s, const struct log_output *output, struct err *err)
{
    *s = (struct sink){.fd = -1,
                       .level = output->level,
                       .format = output->format,
                       .rotate_size = output->rotate_size,
                       .rotate_keep = output->rotate_keep};
    if (strcmp(output->to, "stderr") == 0) {
        s->fd = STDERR_FILENO;
    } else if (strcmp(output->to, "stdout") == 0) {
        s->fd = STDOUT_FILENO;
    } else if (output->to[0] == '/') {
        s->is_ours = true;
        s->fd = open_file(output->to);
        if (s->fd < 0)
            return err_set(err, ERR_CONFIG, true,
                           "log: open %s: %s; expected a file that user %u can append to, in a folder that exists",
                           output->to, strerror(errno), (unsigned)geteuid());
    } else {
        return err_set(err, ERR_CONFIG, false, "log: 'to' is '%s', expected stderr, stdout or an absolute path",
                       output->to);
    }
    s->to = strdup(output->to);
    if (s->to == NULL) {
        sink_done(s);
        return err_nomem(err);
    }
    look_at(s);
    s->has_colour = s->format == LOG_TEXT && wants_colour(s->fd);
    return ERR_NONE;
}

void sink_done(struct sink *s)
{
    if (s->is_ours && s->fd >= 0)
        close(s->fd);
    free(s->to);
    s->to = NULL;
    s->fd = -1;
}

void sink_reopen(struct sink *s)
{
    if (!s->is_ours)
        return;
    int fd = open_file(s->to);
    if (fd < 0)
        return;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = fd;
    look_at(s);
}

/* orders.log.1 -> orders.log.2 and so on, the oldest goes; then a new file. What fails leaves us with the old one. */
static void rotate(struct sink *s)
{
    char from[PATH_MAX], to[PATH_MAX];
    bool is_moved = true;
    if (s->rotate_keep <= 0) {
        is_moved = unlink(s->to) == 0 || errno == ENOENT;
    } else {
        for (int64_t i = s->rotate_keep; i > 0 && is_moved; i--) {
            int n = i > 1 ? snprintf(from, sizeof from, "%s.%" PRId64, s->to, i - 1)
                          : snprintf(from, sizeof from, "%s", s->to);
            int m = snprintf(to, sizeof to, "%s.%" PRId64, s->to, i);
            is_moved = n < (int)sizeof from && m < (int)sizeof to && (rename(from, to) == 0 || errno == ENOENT);
        }
    }
    if (is_moved) {
        uint64_t before = s->size;
        sink_reopen(s);
        if (s->size < before)
            return;
    }
    s->rotate_again_ms = clock_mono_ms() + ROTATE_AGAIN_MS;
}

/* write(2) that never raises SIGPIPE: a daemon must survive the one who reads its messages. */
static ssize_t write_quietly(int fd, const char *data, size_t size)
{
    sigset_t pipe_only, before, pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigemptyset(&pending);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    ssize_t n = write(fd, data, size);
    int failure = errno;
    if (n < 0 && failure == EPIPE && !was_pending) {
        const struct timespec now = {0};
        while (sigtimedwait(&pipe_only, NULL, &now) < 0 && errno == EINTR)
            ;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = failure;
    return n;
}

/* Would a write of up to PIPE_CHUNK bytes return at once? Waits a little, but not twice for the same sleeper. */
static bool is_writable(struct sink *s)
{
    struct pollfd p = {.fd = s->fd, .events = POLLOUT};
    int n = poll(&p, 1, s->is_stalled ? 0 : STALL_MS);
    s->is_stalled = n <= 0;
    return n > 0 && (p.revents & POLLOUT) != 0;
}

static bool write_all(struct sink *s, const char *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        size_t part = size - done;
        ssize_t n;
        if (s->is_regular) {
            n = write(s->fd, data + done, part);
        } else {
            if (!is_writable(s))
                break;
            n = write_quietly(s->fd, data + done, part < PIPE_CHUNK ? part : PIPE_CHUNK);
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    s->size += done;
    if (done > 0)
        s->is_torn = done < size;
    return done == size;
}

bool sink_write(struct sink *s, const char *line, size_t size)
{
    if (s->fd < 0)
        sink_reopen(s);
    if (s->fd < 0)
        return false;
    if (s->is_ours && s->is_regular && s->rotate_size > 0 && s->size > 0 && s->size + size > s->rotate_size &&
        clock_mono_ms() >= s->rotate_again_ms)
        rotate(s);
    if (s->is_torn && !write_all(s, "\n", 1))
        return false;
    return write_all(s, line, size);
}
