/* log_internal.h -- one place where log lines go: a stream that is there already, or a file that rotates. */
#ifndef CHUTE_LOG_INTERNAL_H
#define CHUTE_LOG_INTERNAL_H

#include "log.h"

#include <sys/types.h>

struct sink {
    char *to;
    int fd; /* -1: a file that could not be opened again; tried with every line */
    int level;
    int format;
    uint64_t rotate_size;
    int64_t rotate_keep;
    bool is_ours;    /* a file: we opened it, and it can be opened again and rotated */
    bool is_regular; /* else it may be a pipe with a reader who sleeps */
    bool has_colour;
    bool is_stalled;          /* the reader slept the last time: don't wait for it again */
    bool is_torn;             /* the last line was written in part */
    uint64_t size;            /* of the file, as far as we know */
    uint64_t rotate_again_ms; /* after a failed rotation: not before this time (monotonic) */
    uint64_t lost;            /* lines that could not be written */
};

/* Fill S from OUTPUT. On failure S needs no sink_done(). */
enum err_code sink_open(struct sink *s, const struct log_output *output, struct err *err);
void sink_done(struct sink *s);
/* Open the file again by its name; keeps the old one if that fails. */
void sink_reopen(struct sink *s);
/* Write one whole line (with its newline). Never raises SIGPIPE, waits at most once 100 ms for a sleeping reader. */
bool sink_write(struct sink *s, const char *line, size_t size);

#endif
