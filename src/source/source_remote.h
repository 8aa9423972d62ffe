/* source_remote.h -- files on FTP and SFTP servers. */
#ifndef CHUTE_SOURCE_REMOTE_H
#define CHUTE_SOURCE_REMOTE_H

#include "source.h"

/*
 * Listed when scan() asks, brought here by fetch(), moved or deleted by run_errand(); all over libcurl, on the loop.
 * ftps is FTP over TLS, explicit (AUTH TLS on port 21) or implicit (port 990).
 */
extern const struct source_ops source_ftp, source_ftps, source_sftp;

#endif
