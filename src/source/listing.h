/*
 * listing.h -- what an FTP or SFTP server says about the files of one folder.
 *
 * Three ways of saying it are understood, told apart line by line: the facts of MLSD (RFC 3659), `ls -l` as Unix
 * servers print it for LIST and OpenSSH for SFTP's long names, and the DIR of MS-DOS and IIS. Any other line is an
 * error that shows it: an entry that nobody understood must not look like a file that is not there. Pure; any thread.
 *
 * Times: MLSD's are UTC (RFC 3659). `ls` and DIR give the server's own, and no zone: they are read as if they were UTC,
 * which makes them good for comparing and no more. `ls` leaves out the year of the last months: it is the one that puts
 * the time no more than a day after NOW.
 */
#ifndef CHUTE_LISTING_H
#define CHUTE_LISTING_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LISTING_LINE_MAX 8192

enum listing_kind { LISTING_FILE, LISTING_FOLDER, LISTING_LINK, LISTING_OTHER };

struct listing_entry {
    const char *name; /* any bytes but NUL and '/'; borrowed for the call */
    enum listing_kind kind;
    bool has_size, has_time;
    uint64_t size;
    int64_t mtime_ns; /* since 1970; see above */
};
/* False: stop, nothing more is wanted. */
typedef bool listing_cb(void *arg, const struct listing_entry *entry);

/* The parser of one listing; no memory of its own but this. */
struct listing {
    int64_t now_s; /* in: the year of `ls` is made from it */
    listing_cb *cb;
    void *arg;
    size_t line; /* from 1, of the one that is being read */
    size_t used;
    bool is_stopped;
    char text[LISTING_LINE_MAX + 1];
};

void listing_init(struct listing *l, int64_t now_s, listing_cb *cb, void *arg);
/* The next SIZE bytes, as they come. ERR_REMOTE, not retryable: the line is none of the three, or too long. */
enum err_code listing_feed(struct listing *l, const char *bytes, size_t size, struct err *err);
/*
 * There is no more. ERR_REMOTE retryable: the last line has no end, so the listing was cut: a name may be cut as well,
 * and is not told. (A server that leaves out the last line end does not follow the protocol of any of the three.)
 */
enum err_code listing_end(struct listing *l, struct err *err);

#endif
