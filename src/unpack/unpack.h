/*
 * unpack.h -- what is in an archive: zip, tar (plain, .gz, .xz, .zst) and 7z, by libarchive.
 *
 * An archive is refused as a whole or not at all: unpack_check() reads it to its end, with all that is compressed in
 * it, before anything is taken out. Streamed: what is in memory are libarchive's windows (up to 64 MiB for what was
 * packed with xz -9, some MiB as a rule) and eight bytes for each member.
 *
 * Damage is told where the format can tell: by the sums of zip, 7z and xz; a tar has none of its own, zstd's are
 * optional, and libarchive does not look at gzip's.
 *
 * All functions block, on pool threads or threads of their own; one reader on one thread at a time. They set the
 * thread's locale to UTF-8 while they run, because libarchive asks it what names mean.
 *
 * Times are those of the archive: UTC where it says so (tar, 7z, zips with the extended field); the DOS times of other
 * zips have no zone and are read in the zone of this process.
 */
#ifndef CHUTE_UNPACK_H
#define CHUTE_UNPACK_H

#include "err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct unpack_limits {
    uint64_t size;  /* bytes of all members together */
    uint64_t count; /* members */
    uint64_t ratio; /* bytes that come out for each byte of the archive */
};

struct unpack_member {
    const char *path; /* '/' between segments, none at either end, no "." or ".."; valid until the next call */
    int64_t mtime_ns; /* since 1970; 0 where the archive has none */
    bool has_mtime;
};

/* Is PATH called like an archive? In any case of letters; .xlsx and its like are none. */
bool unpack_is_named(const char *path);

/*
 * May it be taken out? FD is seekable and read from its beginning. ERR_INPUT: damaged, encrypted, or refused, with the
 * member named: a path that leads out, a link, a device, one name twice, a limit. ERR_SYSTEM: it can't be read.
 * ERR_STOPPED: *STOP was set meanwhile. RET_MEMBERS: files in it.
 */
enum err_code unpack_check(int fd, const struct unpack_limits *limits, const atomic_bool *stop, uint64_t *ret_members,
                           struct err *err);

struct unpack_reader;
enum err_code unpack_open(int fd, const struct unpack_limits *limits, const atomic_bool *stop,
                          struct unpack_reader **ret, struct err *err);
/* The next file in it; *RET NULL: there are no more. Folders are passed over. */
enum err_code unpack_next(struct unpack_reader *r, const struct unpack_member **ret, struct err *err);
/* The bytes of that file into FD, which is empty; holes stay holes. *RET_HASH: of all of them (XXH3, 64 bits). */
enum err_code unpack_extract(struct unpack_reader *r, int fd, uint64_t *ret_size, uint64_t *ret_hash, struct err *err);
void unpack_close(struct unpack_reader *r); /* NULL is fine */

/* "libarchive 3.6.2"; "" where this build has none. */
const char *unpack_library(void);

#endif
