/*
 * source_directory.h -- the directory source. The contract is in include/source.h; one line in src/app/drivers.c each.
 */
#ifndef CHUTE_SOURCE_DIRECTORY_H
#define CHUTE_SOURCE_DIRECTORY_H

#include "source.h"

/* A local folder, watched by inotify (or uv_fs_event), polled where events can't work. */
extern const struct source_ops source_directory;

/* The options of a directory source, in the order of its table. Durations in milliseconds. */
enum directory_mode { DIRECTORY_AUTO, DIRECTORY_EVENTS, DIRECTORY_POLL, DIRECTORY_FS_EVENT };
struct directory_options {
    const char *path;
    uint64_t debounce_ms;
    uint64_t settle_ms;
    const char *ready_marker; /* "" off; the engine hands these three to settle */
    uint64_t poll_interval_ms;
    uint64_t rescan_interval_ms;
    int mode; /* enum directory_mode */
};

#endif
