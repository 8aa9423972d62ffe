/*
 * found.h -- what a source tells about a path.
 *
 * Events are hints, the scan is the truth: a struct found says what was seen,
 * never what to do about it.
 */
#ifndef CHUTE_FOUND_H
#define CHUTE_FOUND_H

#include <stdbool.h>
#include <stdint.h>

/* What stat() said. Equal in all members: unchanged, no need to hash. Never an identity. */
struct file_id {
    uint64_t size; /* bytes */
    int64_t mtime_ns;
    int64_t ctime_ns;
    uint64_t inode;
    uint64_t dev;
};

static inline bool file_id_same(const struct file_id *a, const struct file_id *b)
{
    return a->size == b->size && a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns && a->inode == b->inode &&
           a->dev == b->dev;
}

enum found_how {
    FOUND_SCANNED,        /* a scan or a poll met it; nobody saw it being closed */
    FOUND_CLOSED,         /* its writer's close was seen (IN_CLOSE_WRITE) */
    FOUND_RENAMED,        /* it was renamed into place; FROM says from where, NULL: from outside the root */
    FOUND_WRITING,        /* a modification or create was seen, no close yet: a writer is open */
    FOUND_GONE,           /* it was deleted or moved out */
    FOUND_FOLDER,         /* a folder appeared (created, moved in, or met by a scan) */
    FOUND_FOLDER_RENAMED, /* a folder was renamed inside the root: everything below FROM/ is now below PATH/ */
    FOUND_FOLDER_GONE     /* a folder was deleted or moved out with all below it */
};

/* PATH and FROM are relative to the source's root, '/'-separated, any bytes but NUL; borrowed. */
struct found {
    const char *path;
    const char *from; /* FOUND_RENAMED and FOUND_FOLDER_RENAMED only, else NULL */
    enum found_how how;
    struct file_id id; /* all zero for folders and for what is gone */
};

#endif
