/* finish_internal.h -- walking folders without following links, and putting files where nothing is lost. */
#ifndef CHUTE_FINISH_INTERNAL_H
#define CHUTE_FINISH_INTERNAL_H

#include "err.h"
#include "finish.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#define COPY_PREFIX ".chute-copy~" /* a copy on its way to another file system; never the only one */
#define QUARANTINE_PART ".part"

/* All return a descriptor (O_PATH, for the ...at() family) or -1 with errno. They never follow a link below DIRFD. */
int folder_parent(int dirfd, const char *path,
                  const char **ret_name);                /* of PATH's last segment; ELOOP: a link is in the way */
int folder_walk(int dirfd, const char *path, bool make); /* PATH "" is DIRFD itself */
int folder_make(const char *absolute);                   /* with the folders above; links are the operator's own */
/*
 * The descriptor that F has of PATH below DIRFD (-1 for an absolute one), which stays its own; -1: none, or F is NULL.
 * remember() gives it FD; false: FD is still the caller's to close.
 */
int folder_recall(const struct finish_folder *f, int dirfd, const char *path);
bool folder_remember(struct finish_folder *f, int dirfd, const char *path, int fd);
bool folder_sync(int folder); /* fsync; false with errno */

/* Rename that fails with EEXIST instead of replacing, also where the file system has no such thing itself. */
bool rename_new(int from_folder, const char *from, int to_folder, const char *to);
/* NAME, NAME.1, NAME.2 …, cut so that it stays a legal name. */
void name_with_suffix(const char *name, unsigned suffix, char ret[NAME_MAX + 1]);
#define SUFFIX_MAX 9999u

/*
 * Bring the file FROM (in FROM_FOLDER; FD reads it, -1: it can't be read) into TO_FOLDER as NAME: same bytes there
 * already are replaced, else a suffix. Across file systems it is copied first. Afterwards FROM is gone and RET_NAME
 * says the name; after a failure FROM is still there.
 */
enum err_code place_file(int from_folder, const char *from, int fd, int to_folder, const char *name,
                         char ret_name[NAME_MAX + 1], struct err *err);

/*
 * The folder of <dir>/<flow>/<path> and the name of PATH's file with SUFFIX, both made safe for the file system and
 * short enough for QUARANTINE_PART behind it. A descriptor, or -1 with errno.
 */
int quarantine_folder(const char *dir, const char *flow, const char *path, const char *suffix, bool make,
                      char ret_name[NAME_MAX + 1]);

#endif
