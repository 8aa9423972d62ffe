/*
 * log.h -- what chute says while it runs: text or JSON lines to any number of outputs.
 *
 * One line per event, one event once: the layer that decides writes it. A message that repeats within 10 s of its
 * first is counted and told as "(repeated N times)" when the next different one comes or the 10 s are over (no timer:
 * said with the next line or at log_flush()). The same message: same level, same context, same words.
 * Secrets: log_secret() registers texts that are replaced by "***" in every output at any level.
 * Thread-safe; never blocks on anything but the write itself, and on a pipe or terminal whose reader sleeps at most
 * 100 ms. A line that can't be written is counted, and the count is told when writing works again. errno is kept.
 * Text lines: "<time> <level> flow=F file=P dest=D source=S: <message>", names and message made printable.
 */
#ifndef CHUTE_LOG_H
#define CHUTE_LOG_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_TEXT, LOG_JSON };

struct log_output {
    const char *to;       /* "stderr", "stdout", or an absolute path */
    int level;            /* enum log_level */
    int format;           /* enum log_format */
    uint64_t rotate_size; /* bytes; 0: never */
    int64_t rotate_keep;  /* old files kept: .1 .2 …; 0: the full one is deleted */
};

/* Replace all outputs (none: one to stderr, info, text). On failure the old ones stay. ERR_CONFIG: can't be opened, or
 * two to one place. Copies OUTPUTS. */
enum err_code log_open(const struct log_output *outputs, size_t count, struct err *err);
void log_reopen(void); /* open files again by name (HUP, logrotate) */
void log_flush(void);  /* tell repeats that wait */
void log_close(void);  /* log_flush(), then back to plain stderr */
/* Copied; shorter than 4 bytes is ignored; also as it looks percent-encoded. false: out of memory, it must not be used.
 */
bool log_secret(const char *secret) __attribute__((warn_unused_result));
void log_redact(char *text); /* what the log does to a line, for other outputs; never longer than before */
bool log_wants(enum log_level level);

/* Context of a line; in JSON the non-NULL members become fields, in text they stand before the message. */
struct log_about {
    const char *flow;
    const char *file;
    const char *dest;
    const char *source;
};
void log_write(enum log_level level, const struct log_about *about, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#define log_debug(...) log_write(LOG_DEBUG, NULL, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, NULL, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, NULL, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, NULL, __VA_ARGS__)

#endif
