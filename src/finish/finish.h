/*
 * finish.h -- what remains of a file after its jobs: kept, deleted, moved, or quarantined with its reason.
 *
 * Must never delete or move anything but the exact version that was loaded: rename to a private sibling name, look
 * again, then act; otherwise rename back. A crash leaves the file in exactly one place, and finish_recover() completes.
 * All functions block and run on pool threads. DIRFD: the source's root. They never follow links below it.
 */
#ifndef CHUTE_FINISH_H
#define CHUTE_FINISH_H

#include "err.h"
#include "found.h"
#include "rows.h"

#include <stddef.h>

/*
 * Folders that were walked to a moment ago, for files that are put away one after the other: most are neighbours.
 * On one thread, for milliseconds: a folder that is renamed meanwhile stays the one that it was, and only the very
 * version that was loaded is acted on in there. Keeps two descriptors open until finish_memo_done().
 */
struct finish_folder {
    int fd; /* -1: none */
    int dirfd;
    char *path;
};
struct finish_memo {
    struct finish_folder source, target;
};
void finish_memo_init(struct finish_memo *memo);
void finish_memo_done(struct finish_memo *memo);

/* MEMO may be NULL. Delete PATH below DIRFD if it still is ID and nobody writes it. ERR_CHANGED: it is another version
   now, or open for writing, left in place. Already gone: ERR_NONE. "Is ID": inode, size and mtime; ctime changes with
   our own attempts. Who writes is told by a read lease where the kernel grants one; SIGIO is set to be ignored for
   that. */
enum err_code finish_delete(struct finish_memo *memo, int dirfd, const char *path, const struct file_id *id,
                            struct err *err);

/*
 * Move it to TARGET_DIR (absolute, made if missing) under its path below the root... last segment only if FLAT.
 * Same bytes there already: replaced; else `.1`, `.2` …. RET_PLACE (PATH_MAX bytes, may be NULL) gets where it went,
 * TARGET_DIR if that is longer than a path may be.
 * Across file systems: copy, fsync, rename, unlink. Already gone: ERR_NONE and an empty RET_PLACE.
 * ERR_CHANGED as above. ERR_SYSTEM: it has its own name again, and the text says why the target did not take it.
 */
enum err_code finish_move(struct finish_memo *memo, int dirfd, const char *path, const struct file_id *id,
                          const char *target_dir, bool flat, char *ret_place, struct err *err);

/*
 * Where finish_move() of before a kill brought PATH: the name, or NAME.1 …, that holds a file of this size and time.
 * RET_PLACE (PATH_MAX bytes) is "" where there is none. Nothing is changed.
 */
void finish_find(const char *target_dir, const char *path, const struct file_id *id, char *ret_place);

/*
 * Private sibling names left by a kill: put them back under their own names, or, where those were given away
 * meanwhile, under NAME.1 …. Called once per root at start, before the first scan is judged. FOLDER ("" is DIRFD) only,
 * not what is below it. A folder that is missing or a link: ERR_NONE.
 */
enum err_code finish_recover(int dirfd, const char *folder, struct err *err);
/* Is this last segment one of our private sibling names? Sources never report those. */
bool finish_is_private(const char *name);

/* One quarantined version, for its `<file>.error.json`. Strings are borrowed. */
struct quarantine_note {
    const char *flow, *source, *path, *table, *dest;
    const char *reason;   /* one line for a person */
    const char *hash_hex; /* "" unknown */
    struct file_id id;
    int64_t at_ms;
    uint64_t tries;
};
/*
 * Write <dir>/<flow>/<path>.error.json (atomically: temporary name, fsync, rename). PATH's folders become folders.
 * Flow and path segments are made safe for the file system (almost always: are as they are). With MOVE_TO
 * (after_failure: {move: DIR}) the reason goes beside the moved file: <place>.error.json, and this is called with DIR
 * NULL and PLACE set.
 */
enum err_code quarantine_write(const char *dir, const char *place, const struct quarantine_note *note, struct err *err);
/*
 * The bytes of a quarantined version that has no file of its own (fetched, or out of an archive) go beside its reason:
 * the file FROM becomes <dir>/<flow>/<path>.kept, replacing an older one. Both on one file system (the state folder).
 */
enum err_code quarantine_keep(const char *dir, const char *flow, const char *path, const char *from, struct err *err);
/* It is tried again: if there are kept bytes of SIZE, they become the file TO. */
enum err_code quarantine_take_back(const char *dir, const char *flow, const char *path, uint64_t size, const char *to,
                                   bool *ret_found, struct err *err);
/* Remove the reason again (retried and loaded), and bytes that were kept with it. Missing: fine. */
enum err_code quarantine_clear(const char *dir, const char *flow, const char *path, struct err *err);

/*
 * Rejected rows of one load, collected in <dir>/<flow>/<path>.rejected.csv.part and renamed when kept: a header
 * "line,offset,reason", then per row these three and its fields. It tells of the version that was loaded last.
 * put() on one thread; open, keep and drop may be on others.
 */
struct rejects;
enum err_code rejects_open(const char *dir, const char *flow, const char *path, struct rejects **ret, struct err *err);
void rejects_sink(struct rejects *r, struct reject_sink *ret_sink);
/* The load is about to be committed: all rows are on disk, or ERR_SYSTEM and it must not be. Blocks; any thread. */
enum err_code rejects_sync(struct rejects *r, struct err *err);
/* The load was committed; frees R; no file if there were none. Rows that were synced stay in their .part on error. */
enum err_code rejects_keep(struct rejects *r, struct err *err);
/* A load with rejected rows was committed before a kill: give its .part the name it lacks, if it lacks it. */
enum err_code rejects_adopt(const char *dir, const char *flow, const char *path, struct err *err);
void rejects_drop(struct rejects *r); /* it was not; frees R; NULL is fine */

#endif
