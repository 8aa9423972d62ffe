/*
 * dir_internal.h -- what the files of the directory source share.
 *
 * source_dir.c  the driver: open, timers, health, close
 * dir_tree.c    the folders that are watched: small nodes with a name and a parent
 * dir_events.c  inotify events to struct found
 * dir_fsevent.c the same with uv_fs_event
 * dir_scan.c    reading folders on the pool, in chunks
 * dir_path.c    opening and looking below the root without following links out of it
 *
 * Threads: scans run on the pool and watch folders while they read them, because a watch must be there before the
 * folder is read. Everything about the tree is therefore under `lock`; it is never held while calling the sink.
 */
#ifndef CHUTE_DIR_INTERNAL_H
#define CHUTE_DIR_INTERNAL_H

#include "source_directory.h"

#include "buf.h"
#include "work.h"

#include <dirent.h>
#include <limits.h>
#include <stdatomic.h>
#include <sys/stat.h>
#define HASH_NONFATAL_OOM                                                                                              \
    1 /* a full memory is no reason to exit: the element is not in the table then, see its tbl                         \
       */
#include <uthash.h>

struct dir_source;

/* One watched folder. Its parent's id and its name are hashed together, so that a child is found by its name. */
struct dir_fse;
struct dir_node {
    UT_hash_handle by_wd;
    UT_hash_handle by_name;
    struct dir_node *parent; /* NULL: the root */
    struct dir_node *children;
    struct dir_node *prev, *next; /* siblings */
    struct dir_fse *fse;          /* mode fs_event only */
    int64_t mtime_ns;             /* of the folder at the last scan: what changed without an event? */
    int wd;                       /* inotify's, or a number of our own in mode fs_event */
    uint32_t generation;          /* of the last scan that met it */
    bool had_event;               /* since the last scan */
    bool is_suspect;              /* changed without an event, as it seems */
    uint32_t parent_id;           /* the key of by_name: from here to the end of the name, in one block */
    char name[];
};

/* A folder being read. */
struct dir_level {
    DIR *dir;
    int wd; /* its node; -1: not watched */
    size_t path_size;
};
#define DIR_MAX_LEVELS 128

/* One scan: the whole root (flow-controlled, on_scanned) or the folders made a moment ago (on_found). */
struct dir_scan {
    struct work work;
    struct dir_source *src;
    bool is_full;
    bool is_active;  /* between begin and done */
    bool is_running; /* a step is on the pool */
    bool is_waiting; /* for scan_resume() */
    bool is_wanted;  /* another one after this */
    /* Below: the pool's while is_running. */
    bool is_begun, is_done, is_complete, is_root_lost, is_root_new, is_too_much;
    uint32_t generation;
    uint64_t files, folders;
    struct dir_level levels[DIR_MAX_LEVELS];
    size_t level_count;
    char path[PATH_MAX];
    size_t path_size;
    size_t base_size; /* of the path it began with */
    struct found *chunk;
    size_t *offsets; /* of the paths in NAMES while the chunk grows */
    size_t count;
    struct buf names;
    char problem[512];
    char reason[200];  /* why events can't work, met by this scan; "" they can */
    bool is_new_watch; /* mode fs_event: folders wait for their watch */
    struct file_id avoid[16];
    size_t avoid_count;
};

/* A folder to read soon. */
struct dir_sub {
    struct dir_sub *next;
    char path[];
};

/* A name that went; its MOVED_TO may follow. */
struct dir_moved {
    struct dir_moved *prev, *next;
    uint32_t cookie;
    bool is_dir;
    char path[];
};

/* A folder that a scan met under another name than its watch had: moved to where nothing was watched yet. */
struct dir_carried {
    struct dir_carried *next;
    char *to; /* in the same block */
    char from[];
};

struct dir_source {
    const struct directory_options *options;
    uv_loop_t *loop;
    struct source_sink sink;
    int max_depth;
    char **avoid;
    bool (*wants)(void *arg, const char *path);
    void *wants_arg;
    char *root;
    char *marker_prefix, *marker_suffix; /* NULL: no ready_marker */

    uv_mutex_t lock;
    atomic_int
        root_fd; /* O_PATH; the number never changes once it is there (dup3), finish may be using it. -1: never seen */
    struct file_id root_id;
    char identity[64];
    char identity_told[64]; /* the loop's copy */
    char expected[64];
    struct dir_node *tree;       /* the root */
    struct dir_carried *carried; /* to be told by the loop */
    struct dir_fse *fse_stopped; /* to be closed by the loop */
    struct dir_node *nodes_by_wd;
    struct dir_node *nodes_by_name;
    uint64_t node_count;
    uint32_t generation;
    int next_wd; /* mode fs_event */
    int inotify; /* -1: none */
    struct dir_above {
        int wd; /* -1: none */
        char name[NAME_MAX + 1];
    } above[2];   /* watches of the folders that the root's name, and the folder it resolves to, are in */
    bool is_wary; /* events are not trusted here; polled for good */

    uv_poll_t poll;
    uv_timer_t rescan_timer;
    uv_timer_t slow_timer;  /* polling, or looking for a root that is missing */
    uv_timer_t moved_timer; /* names that went and did not come back */
    uv_timer_t doubt_timer; /* folders that changed without an event */
    unsigned handles;       /* open ones */
    unsigned looks;         /* probes on the pool */
    atomic_bool is_closing;
    void (*closed)(void *arg);
    void *closed_arg;

    struct dir_scan full, sub;
    struct dir_sub *subs, *subs_last;
    size_t sub_count;
    struct dir_moved *moved;
    size_t moved_count;

    atomic_bool is_root_lost; /* what events tell is not about our root */
    atomic_bool is_remote;    /* its file system can't tell: no watches */
    bool is_polling, is_fs_event, is_ready, is_reachable, is_poll_open;
    char reason[512];         /* of polling, as told */
    char inotify_reason[160]; /* why there is no inotify; "" there is */
    char wary_reason[400];
    char problem[512];
    uint64_t retry_ms; /* until the next look after a scan that was not complete */
    uint64_t overflows, scans;
};

/* dir_path.c */
/* Open PATH below ROOT_FD; "" is the root. Never leaves the root. IS_STRICT: no link at all. -1 and errno. */
int dir_open_below(int root_fd, const char *path, int flags, bool is_strict);
void dir_file_id(const struct stat *st, struct file_id *ret);
/* What is at PATH: a regular file, or a link to one inside the root. False: neither, or gone. RET_LINKS may be NULL. */
bool dir_look(int root_fd, const char *path, struct file_id *ret, uint64_t *ret_links);
/* "fsid:inode" of an open folder. */
bool dir_identity(int fd, char *ret, size_t size);
/* A name if events can't be relied on in that file system ("nfs"), else NULL. */
const char *dir_remote_name(int fd);
int dir_open_now(void *state, const char *path, struct err *err);
enum err_code dir_probe(void *state, struct probe *probes, size_t count, probe_cb *cb, void *arg, struct err *err);

/* dir_tree.c: all under lock. */
struct dir_node *dir_node_by_wd(struct dir_source *s, int wd);
struct dir_node *dir_node_child(struct dir_source *s, const struct dir_node *parent, const char *name);
struct dir_node *dir_node_find(struct dir_source *s, const char *path);
/* The node's path, and '/' NAME if NAME is not NULL. False: longer than PATH_MAX. */
bool dir_node_path(const struct dir_node *node, const char *name, char *ret, size_t size);
/* Drop NODE and all below with their watches. */
void dir_node_drop(struct dir_source *s, struct dir_node *node);
void dir_tree_drop(struct dir_source *s);
/* Drop what the scan of GENERATION did not meet. */
void dir_tree_sweep(struct dir_source *s, uint32_t generation);
/* Put NODE below PARENT as NAME (same watches); what stood there is dropped. False: out of memory, NODE is dropped. */
bool dir_node_move(struct dir_source *s, struct dir_node *node, struct dir_node *parent, const char *name);
/*
 * Watch the folder open at FD as NAME below the node PARENT_WD (-1 and NAME "": the root). Returns its wd; -1 with
 * errno if it can't be watched; -1 with errno 0 if its parent is not watched (any more).
 */
int dir_watch(struct dir_source *s, int parent_wd, const char *name, int fd);
/*
 * Watch for the root itself going away. Its own watch does not tell: we hold the folder open, so the kernel keeps it.
 * Best effort: without it the rescan finds out.
 */
void dir_watch_above(struct dir_source *s);
/* The watch that WD is, or NULL. */
const struct dir_above *dir_above_of(const struct dir_source *s, int wd);

/* dir_events.c */
void dir_on_inotify(uv_poll_t *handle, int status, int events);
void dir_drain(struct dir_source *s);
void dir_on_moved_timer(uv_timer_t *timer);
void dir_moved_drop(struct dir_source *s);
void dir_tell_carried(struct dir_source *s); /* after a scan's step, before what it found */
void dir_tell(struct dir_source *s, enum found_how how, const char *path, const char *from, const struct file_id *id);

/* dir_fsevent.c */
/* Start what the scans left to start. True: there was something, so scan again. */
bool dir_fsevent_start(struct dir_source *s);
void dir_fsevent_stop(struct dir_source *s, struct dir_fse *fse); /* any thread, under lock */

/* dir_scan.c */
void dir_scan_full(struct dir_source *s);                    /* as soon as possible */
void dir_scan_below(struct dir_source *s, const char *path); /* a folder appeared */
void dir_scan_start(struct dir_source *s);                   /* start what waits */
void dir_scan_resume(struct dir_source *s);
void dir_scan_free(struct dir_scan *scan);
/* Would a flow take it (or is it the marker of one that would be)? */
bool dir_wants(const struct dir_source *s, const char *path);
/* May the folder be entered: depth and name. */
bool dir_enters(const struct dir_source *s, const char *path);

/* source_dir.c */
void dir_scan_finished(struct dir_source *s, struct dir_scan *scan);
void dir_overflowed(struct dir_source *s);
void dir_handle_closed(uv_handle_t *handle); /* data: the source */
void dir_maybe_closed(struct dir_source *s);

#endif
