/*
 * source.h -- the contract of a source: where files come from.
 *
 * A source reports what it sees; it decides nothing. One file per kind and one
 * line in the table of sources (src/app/drivers.c). All functions and callbacks run on the loop
 * thread except open_now, which is called on pool threads.
 *
 * Order: open -> (events and scans) -> close. After open() the source watches
 * first and then scans; a scan is also asked for by scan(), and the source
 * starts one by itself when it lost events (overflow) or on its rescan timer.
 */
#ifndef CHUTE_SOURCE_H
#define CHUTE_SOURCE_H

#include "err.h"
#include "found.h"
#include "option.h"

#include <uv.h>

/* How a source is doing, for `status`. Strings are owned by the source, valid until it reports again. */
struct source_health {
    const char *mode;     /* "events", "poll", "fs_event" */
    const char *reason;   /* why that mode, "" if it is what was asked for */
    const char *evidence; /* "close" (closes are seen), "writers" (lease check works), "age" */
    uint64_t folders;     /* folders watched */
    uint64_t overflows;   /* queue overflows met */
    uint64_t scans;       /* scans finished */
    bool is_ready;        /* the first scan has finished */
    bool is_reachable;    /* root exists and can be listed */
    char problem[512];    /* "" or what is wrong now: unreadable folders, root missing */
};

/* How one scan ended. */
struct scan_result {
    bool is_complete; /* every folder was listed without error and the root is the one we know */
    uint64_t files;
    uint64_t folders;
};

/* What a source gets from the house; outlives it. */
struct rate;
struct source_env {
    unsigned jobs;              /* limits.jobs: files under way at once */
    struct rate *download_rate; /* limits.download_rate, shared by all sources; NULL: none */
};

/*
 * Bring the bytes of one file here, for sources whose files are not on this machine. Made and freed by the caller; the
 * source owns it between fetch() and finished(). FD is the caller's, open for reading and writing; the source writes
 * there from OFFSET on, on the pool, and never truncates, syncs or closes it.
 */
struct fetch {
    const char *path;   /* in: below the root; borrowed until finished() */
    struct file_id id;  /* in: what the listing told of it */
    int fd;             /* in */
    uint64_t offset;    /* in: bytes that FD holds already, of this very version; out: bytes it holds now (>= in) */
    uint64_t max_bytes; /* in: more is ERR_INPUT ("larger than max_file_size"); 0: any */
    bool is_restarted;  /* out: the server can't resume, so the bytes were written anew from 0 */
    bool is_verified;   /* out: the server told the size, and it is what came */
    bool has_mtime;     /* out: MTIME_NS is the file's own, in UTC, asked for this file (MDTM, SFTP's stat) */
    int64_t mtime_ns;   /* out */
    bool has_hash;      /* out: HASH is that of all bytes (content_hash.h), taken while they were written */
    uint8_t hash[16];   /* out */
    /* out. ERR_INPUT: it is not there (is_gone) or must not be read. ERR_REMOTE retryable: the connection broke; what
     * came is in FD up to OFFSET. ERR_SYSTEM with ENOSPC's words: the spool is full. ERR_STOPPED: abort_fetch(). */
    struct err err;
    bool is_gone;
    void (*finished)(struct fetch *fetch); /* on the loop thread, once, on a later turn */
    void *owner;                           /* the caller's */
    struct fetch *next;                    /* the source's while it owns it */
    void *driver;                          /* the source's */
};

/* Something to do with a file where it lies, for sources whose files are not on this machine. */
struct source_errand {
    const char *path;  /* in: below the root; borrowed until finished() */
    struct file_id id; /* in: only while the server still tells this; else ERR_CHANGED and nothing is done */
    const char *to; /* in: folder below the root (made if missing) to move it to, under its own name; NULL: delete it */
    struct err err; /* out. What is not there any more is no error (is_gone) */
    bool is_gone;
    char moved_to[1024];                            /* out: where it is now, below the root */
    void (*finished)(struct source_errand *errand); /* on the loop thread, once, on a later turn */
    void *owner;
    struct source_errand *next; /* the source's while it owns it */
    void *driver;               /* the source's */
};

/* Whom a source talks to; given at open(), valid until closed. */
struct source_sink {
    void *arg;
    /* Something happened to one path. FOUND is borrowed for the call. Cheap: notes it down. */
    void (*on_found)(void *arg, const struct found *found);
    /* The source lost events (overflow, watch lost). A scan of its own follows. */
    void (*on_overflow)(void *arg);
    /*
     * Up to SCAN_CHUNK paths a scan has met. The scan waits until scan_resume(). Borrowed until then.
     * Files and folders (FOUND_SCANNED, FOUND_FOLDER), in the order the folders gave them.
     */
    void (*on_scanned)(void *arg, const struct found *found, size_t count);
    /* The scan has met everything. */
    void (*on_scan_done)(void *arg, const struct scan_result *result);
    /* health() has something new to tell. */
    void (*on_health)(void *arg);
};
#define SCAN_CHUNK 512

/* What became of a path, by looking. */
enum probe_answer { PROBE_PRESENT, PROBE_GONE, PROBE_UNKNOWN };
struct probe {
    const char *path;         /* in: relative to the root; borrowed until the callback */
    enum probe_answer answer; /* out: UNKNOWN when a parent can't be listed or the root is not the one we know */
    struct file_id id;        /* out, if PRESENT */
};
typedef void probe_cb(void *arg, struct probe *probes, size_t count);

struct source_ops {
    const char *type;             /* as written in the configuration: "directory" */
    const char *summary;          /* one line for help */
    const struct option *options; /* parsed into the options struct by offset */
    size_t options_size;          /* its size; the configuration allocates and fills it */

    /* Check what the table can't: ERR_CONFIG. NULL: nothing to check. */
    enum err_code (*check)(const void *options, struct err *err);

    /*
     * Start watching. OPTIONS outlives the source. MAX_DEPTH: folders below the root that flows can match, -1: all.
     * AVOID: absolute paths (NULL-terminated) never to enter: state folder, move targets.
     * WANTS(WANTS_ARG, path): whether any flow would take that file; others are not reported (pure, any thread).
     * A root that is missing is not an error here: health() says so and the source looks again.
     */
    enum err_code (*open)(const void *options, const struct source_env *env, uv_loop_t *loop,
                          const struct source_sink *sink, int max_depth, const char *const *avoid,
                          bool (*wants)(void *arg, const char *path), void *wants_arg, void **ret_state,
                          struct err *err);
    void (*scan)(void *state);        /* scan as soon as possible; coalesced with one that waits */
    void (*scan_resume)(void *state); /* the sink has room again */
    void (*health)(void *state, struct source_health *ret_health);
    /* Look at COUNT paths on the pool; CB comes once, on a later turn. PROBES is borrowed until then. NULL: can't. */
    enum err_code (*probe)(void *state, struct probe *probes, size_t count, probe_cb *cb, void *arg, struct err *err);
    /* Open a file for reading, never following a link out of the root. Thread-safe, blocks. NULL: use fetch(). */
    int (*open_now)(void *state, const char *path, struct err *err);
    /* The files are on another machine: both, or neither. ERR_NONE: finished() comes once, on a later turn; else never.
     */
    enum err_code (*fetch)(void *state, struct fetch *fetch, struct err *err);
    void (*abort_fetch)(void *state, struct fetch *fetch); /* finished() still comes */
    enum err_code (*run_errand)(void *state, struct source_errand *errand, struct err *err);
    /* We are being stopped and the grace is over: what waits for a server that does not answer shall end now. NULL:
     * nothing of this driver waits for long. */
    void (*hurry)(void *state);
    /* For templates {host} and {port}, from options that check() has passed; NULL: a directory, both are "". Pure. */
    bool (*place)(const void *options, char *ret_host, size_t size, unsigned *ret_port);
    /* The root as an O_PATH descriptor for finish (move, delete), owned by the source; NULL: not a local folder. */
    int (*root_fd)(void *state);
    /* The root as an absolute path, as configured; for people who name files. NULL: not a local folder. */
    const char *(*root_path)(void *state);
    /* Identity of the root: "filesystem:inode", opaque, "" while unknown. The ledger keeps it; another one deletes
     * nothing. */
    const char *(*root_identity)(void *state);
    /* Tell the source which root identity the ledger has ("" none yet): PROBE and scans distrust another one. */
    void (*expect_root)(void *state, const char *identity);
    void (*close)(void *state, void (*closed)(void *arg), void *arg);
};

#endif
