/*
 * err.h -- what went wrong, whose problem it is, and whether trying again can help.
 *
 * Whoever meets a failure fills a struct err; the layers above add the words that
 * only they know with err_wrap(); only the layer that decides writes the log, once.
 */
#ifndef CHUTE_ERR_H
#define CHUTE_ERR_H

#include <stdbool.h>

enum err_code {
    ERR_NONE,
    ERR_CONFIG,     /* the operator's: the configuration or the command line */
    ERR_INPUT,      /* this file's: it can't be loaded as it is */
    ERR_INCOMPLETE, /* this file ends early; wait for more of it before giving up */
    ERR_CHANGED,    /* this file changed while we read it: abandon, take the new version */
    ERR_REMOTE,     /* the destination or the server: it answered badly or not at all */
    ERR_DENIED,     /* the destination refuses *us*: block the destination, not the file */
    ERR_SYSTEM,     /* this machine: memory, disk, descriptors */
    ERR_STOPPED     /* nobody's: we were asked to stop */
};

struct err {
    enum err_code code;
    bool retryable; /* may the same call succeed later, unchanged? */
    char text[512]; /* one line for a person; no newline, no secrets */
};

/* Fill ERR and return CODE, so that a failing path reads `return err_set(...)`. ERR may be NULL. */
enum err_code err_set(struct err *err, enum err_code code, bool retryable, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Put "<words>: " before the text; code and retryable stay. Returns the code. */
enum err_code err_wrap(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The usual "out of memory", retryable. */
enum err_code err_nomem(struct err *err);

/* Make ERR say that nothing is wrong. */
void err_clear(struct err *err);

#endif
