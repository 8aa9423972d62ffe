/*
 * remote_path.h -- addresses of servers, paths on them, and which of those a source takes. Pure; any thread.
 *
 * A path on a server is told as everywhere in the house: below the source's root, without a slash before it. The root
 * is the path of the source's url, "/" as a rule.
 */
#ifndef CHUTE_REMOTE_PATH_H
#define CHUTE_REMOTE_PATH_H

#include "buf.h"
#include "err.h"
#include "option.h"

#include <stdbool.h>

/* sftp://user@host:port/root */
struct remote_url {
    char host[256];  /* without the brackets of IPv6 */
    char user[256];  /* "" not given */
    unsigned port;   /* 0: not given */
    char root[1024]; /* begins with '/', ends without one but for "/" */
};
/* SCHEMES: NULL-terminated, such as "ftp". ERR_CONFIG. A password in it is refused: it would be shown everywhere. */
enum err_code remote_url_parse(const char *text, const char *const *schemes, struct remote_url *ret, struct err *err);

/* ROOT and PATH (may be "") as the path of a URL: each byte that is not plain is escaped. FOLDER: with '/' at its end.
 * IS_FTP: its first slash as %2F, so that it is absolute whatever folder the login begins in. */
void remote_url_path(const char *root, const char *path, bool is_folder, bool is_ftp, struct buf *ret);
/* ROOT and PATH as the server knows it: "/out/a.txt". */
void remote_full_path(const char *root, const char *path, struct buf *ret);

/* `paths`: globs with a slash before them. ERR_CONFIG: one of them is none. */
enum err_code remote_globs_check(const struct option_strings *globs, struct err *err);
/* The folder (below the root, "" is the root) where looking for GLOB begins. */
void remote_glob_base(const char *glob, struct buf *ret);
bool remote_glob_is_plain(const char *glob); /* it names one file */
bool remote_takes(const struct option_strings *globs, const char *path);
/* Can there be files below FOLDER that one of GLOBS takes? */
bool remote_enters(const struct option_strings *globs, const char *folder);

#endif
