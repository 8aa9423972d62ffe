/*
 * dir_scan.c -- reading folders on the pool.
 *
 * Two scans at most at a time: one of the whole root, which waits for its reader (scan_resume), and one of the folders
 * that appeared a moment ago, which must not wait behind it. Both watch a folder first and read it then, so that
 * what comes later is told by an event. Memory: a stack of open folders, one chunk of paths.
 */
#include "dir_internal.h"

#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A folder moved in with more files than this is left to a scan of the whole root: that one can be held back. */
#define SUB_FILES 2048
#define SUB_QUEUE 4096
#define CHUNK_BYTES (256 * 1024)

static bool is_marker(const struct dir_source *s, const char *path, char *ret_of, size_t size)
{
    if (s->marker_prefix == NULL)
        return false;
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    size_t n = strlen(name), before = strlen(s->marker_prefix), after = strlen(s->marker_suffix);
    if (n <= before + after || strncmp(name, s->marker_prefix, before) != 0 ||
        strcmp(name + n - after, s->marker_suffix) != 0)
        return false;
    return snprintf(ret_of, size, "%.*s%.*s", (int)(name - path), path, (int)(n - before - after), name + before) <
           (int)size;
}

bool dir_wants(const struct dir_source *s, const char *path)
{
    char of[PATH_MAX];
    if (is_marker(s, path, of, sizeof of) && !path_is_temporary(of) && s->wants(s->wants_arg, of))
        return true;
    return !path_is_temporary(path) && s->wants(s->wants_arg, path);
}

static int depth_of(const char *path)
{
    int depth = path[0] != '\0';
    for (; *path != '\0'; path++)
        depth += *path == '/';
    return depth;
}

bool dir_enters(const struct dir_source *s, const char *path)
{
    return (s->max_depth < 0 || depth_of(path) <= s->max_depth) && !path_is_temporary(path);
}

/* ---- on the pool */

static void scan_problem(struct dir_scan *scan, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void scan_problem(struct dir_scan *scan, const char *fmt, ...)
{
    scan->is_complete = false;
    if (scan->problem[0] != '\0')
        return; /* the first one is told, the others follow once it is mended */
    va_list args;
    va_start(args, fmt);
    vsnprintf(scan->problem, sizeof scan->problem, fmt, args);
    va_end(args);
}

static void add_found(struct dir_scan *scan, enum found_how how, const struct file_id *id)
{
    struct found *found = &scan->chunk[scan->count];
    memset(found, 0, sizeof *found);
    found->how = how;
    if (id != NULL)
        found->id = *id;
    scan->offsets[scan->count] = scan->names.size;
    buf_add(&scan->names, scan->path, scan->path_size + 1);
    if (scan->names.failed)
        scan_problem(scan, "out of memory while reading %s/%s; it is read again later", scan->src->root, scan->path);
    else
        scan->count++;
}

static bool is_chunk_full(const struct dir_scan *scan)
{
    return scan->count == SCAN_CHUNK || scan->names.size >= CHUNK_BYTES || scan->names.failed;
}

static bool is_avoided(const struct dir_scan *scan, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return false;
    for (size_t i = 0; i < scan->avoid_count; i++)
        if (scan->avoid[i].inode == st.st_ino && scan->avoid[i].dev == st.st_dev)
            return true;
    return false;
}

/* Watch what is open at FD. The reason why not, if so, is kept: the root is polled then. */
static int watch(struct dir_scan *scan, int parent_wd, const char *name, int fd)
{
    struct dir_source *s = scan->src;
    if ((s->inotify < 0 && !s->is_fs_event) || atomic_load(&s->is_remote))
        return -1;
    uv_mutex_lock(&s->lock);
    int wd = dir_watch(s, parent_wd, name, fd);
    int e = errno;
    struct dir_node *node = wd >= 0 && s->is_fs_event ? dir_node_by_wd(s, wd) : NULL;
    if (node != NULL && node->fse == NULL)
        scan->is_new_watch = true;
    uv_mutex_unlock(&s->lock);
    if (wd >= 0 || e == 0 || e == ENOENT || scan->reason[0] != '\0')
        return wd;
    if (e == ENOSPC)
        snprintf(scan->reason, sizeof scan->reason,
                 "the limit of watches is reached (raise fs.inotify.max_user_watches)");
    else if (e == EXDEV)
        snprintf(scan->reason, sizeof scan->reason, "a folder is mounted at two places below the root");
    else
        snprintf(scan->reason, sizeof scan->reason, "a folder can't be watched: %s", strerror(e));
    return wd;
}

/* Read the folder open at FD from now on; takes FD. */
static void push_level(struct dir_scan *scan, int fd, int parent_wd, const char *name)
{
    struct dir_source *s = scan->src;
    if (is_avoided(scan, fd)) {
        close(fd);
        return;
    }
    if (scan->level_count == DIR_MAX_LEVELS) {
        scan_problem(scan, "%s/%s is more than %d folders deep and is not read; move it up", s->root, scan->path,
                     DIR_MAX_LEVELS);
        close(fd);
        return;
    }
    int wd = watch(scan, parent_wd, name, fd);
    DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        scan_problem(scan, "read %s/%s: %s", s->root, scan->path, strerror(errno));
        close(fd);
        return;
    }
    scan->levels[scan->level_count++] = (struct dir_level){dir, wd, scan->path_size};
    scan->folders++;
    if (scan->path_size > 0)
        add_found(scan, FOUND_FOLDER, NULL);
}

static void meet_folder(struct dir_scan *scan, const struct dir_level *level, const char *name)
{
    if (!dir_enters(scan->src, scan->path))
        return;
    int fd = openat(dirfd(level->dir), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0)
        push_level(scan, fd, level->wd, name);
    else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP) /* those: gone or replaced meanwhile */
        scan_problem(scan, "can't read the folder %s/%s: %s", scan->src->root, scan->path, strerror(errno));
}

static void meet_file(struct dir_scan *scan, const struct stat *st)
{
    struct dir_source *s = scan->src;
    struct file_id id;
    if (!dir_wants(s, scan->path))
        return;
    if (S_ISLNK(st->st_mode)) {
        if (!dir_look(s->root_fd, scan->path, &id, NULL))
            return;
    } else {
        dir_file_id(st, &id);
    }
    add_found(scan, FOUND_SCANNED, &id);
    scan->files++;
}

static void meet(struct dir_scan *scan, const struct dir_level *level, const struct dirent *entry)
{
    const char *name = entry->d_name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return;
    size_t n = strlen(name);
    size_t slash = level->path_size > 0;
    if (level->path_size + slash + n >= sizeof scan->path) {
        scan_problem(scan, "a path below %s/%.200s is longer than %d bytes and is not read", scan->src->root,
                     scan->path, PATH_MAX);
        return;
    }
    if (slash)
        scan->path[level->path_size] = '/';
    memcpy(scan->path + level->path_size + slash, name, n + 1);
    scan->path_size = level->path_size + slash + n;

    /* Only what may matter costs a stat. */
    if (entry->d_type == DT_REG || entry->d_type == DT_LNK) {
        if (!dir_wants(scan->src, scan->path))
            return;
    } else if (entry->d_type != DT_DIR && entry->d_type != DT_UNKNOWN) {
        return;
    }
    if (entry->d_type == DT_DIR) {
        meet_folder(scan, level, name);
        return;
    }
    struct stat st;
    if (fstatat(dirfd(level->dir), name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT)
            scan_problem(scan, "can't look at %s/%s: %s", scan->src->root, scan->path, strerror(errno));
        return;
    }
    if (S_ISDIR(st.st_mode))
        meet_folder(scan, level, name);
    else if (S_ISREG(st.st_mode) || S_ISLNK(st.st_mode))
        meet_file(scan, &st);
}

static void find_avoided(struct dir_scan *scan)
{
    scan->avoid_count = 0;
    for (char **a = scan->src->avoid; a != NULL && *a != NULL; a++) {
        struct stat st;
        if (scan->avoid_count < sizeof scan->avoid / sizeof scan->avoid[0] && stat(*a, &st) == 0 && S_ISDIR(st.st_mode))
            dir_file_id(&st, &scan->avoid[scan->avoid_count++]);
    }
}

/* Take the root at FD for ours. Its number stays the same for finish, which may be working with it. */
static bool adopt_root(struct dir_scan *scan, int fd, const struct file_id *id)
{
    struct dir_source *s = scan->src;
    char identity[64] = "";
    dir_identity(fd, identity, sizeof identity);
    int path_fd = open(s->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct stat st;
    if (path_fd < 0 || fstat(path_fd, &st) != 0 || st.st_ino != id->inode || st.st_dev != id->dev) {
        if (path_fd >= 0)
            close(path_fd);
        return false; /* replaced again right now */
    }
    uv_mutex_lock(&s->lock);
    bool is_ours = s->root_fd >= 0 && id->inode == s->root_id.inode && id->dev == s->root_id.dev;
    if (!is_ours) {
        dir_tree_drop(s);
        if (s->root_fd < 0)
            s->root_fd = fcntl(path_fd, F_DUPFD_CLOEXEC, 3);
        else
            dup3(path_fd, s->root_fd, O_CLOEXEC);
        s->root_id = *id;
        memcpy(s->identity, identity, sizeof s->identity);
        scan->is_root_new = true;
        dir_watch_above(s);
    }
    bool is_open = s->root_fd >= 0;
    atomic_store(&s->is_root_lost, !is_open);
    uv_mutex_unlock(&s->lock);
    close(path_fd);
    return is_open;
}

static void begin_root(struct dir_scan *scan)
{
    struct dir_source *s = scan->src;
    int fd = open(s->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct stat st;
    struct file_id id;
    if (fd < 0 || fstat(fd, &st) != 0) {
        scan_problem(scan, "can't read the source's folder %s: %s", s->root, strerror(errno));
        scan->is_root_lost = true;
        if (fd >= 0)
            close(fd);
        return;
    }
    dir_file_id(&st, &id);
    if (!adopt_root(scan, fd, &id)) {
        scan_problem(scan, "the source's folder %s is being replaced; it is looked at again", s->root);
        scan->is_root_lost = true;
        close(fd);
        return;
    }
    const char *remote = dir_remote_name(fd);
    bool is_local = remote == NULL || s->options->mode != DIRECTORY_AUTO;
    atomic_store(&s->is_remote, !is_local);
    if (!is_local)
        snprintf(scan->reason, sizeof scan->reason, "%s does not tell what other machines write", remote);
    uv_mutex_lock(&s->lock);
    scan->generation = ++s->generation;
    uv_mutex_unlock(&s->lock);
    push_level(scan, fd, -1, "");
}

static void begin_sub(struct dir_scan *scan)
{
    struct dir_source *s = scan->src;
    char parent[PATH_MAX];
    memcpy(parent, scan->path, scan->path_size + 1);
    char *slash = strrchr(parent, '/');
    char *name = slash != NULL ? slash + 1 : parent;
    int fd = dir_open_below(s->root_fd, scan->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, true);
    if (fd < 0) {
        if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
            scan_problem(scan, "can't read the folder %s/%s: %s", s->root, scan->path, strerror(errno));
        return;
    }
    char last[NAME_MAX + 1];
    memcpy(last, name, strnlen(name, NAME_MAX) + 1); /* it was opened: no name is longer */
    if (slash != NULL)
        *slash = '\0';
    else
        parent[0] = '\0';
    uv_mutex_lock(&s->lock);
    struct dir_node *node = dir_node_find(s, parent);
    int parent_wd = node != NULL ? node->wd : -1;
    scan->generation = s->generation;
    uv_mutex_unlock(&s->lock);
    push_level(scan, fd, parent_wd, last);
}

/* The whole root was read: was it the same root all the time? */
static void check_root(struct dir_scan *scan)
{
    struct dir_source *s = scan->src;
    struct stat st;
    if (stat(s->root, &st) == 0 && st.st_ino == s->root_id.inode && st.st_dev == s->root_id.dev)
        return;
    scan_problem(scan, "the source's folder %s went away while it was read; it is looked at again", s->root);
    scan->is_root_lost = true;
}

static void close_levels(struct dir_scan *scan)
{
    while (scan->level_count > 0)
        closedir(scan->levels[--scan->level_count].dir);
}

static void run_step(struct work *work)
{
    struct dir_scan *scan = (struct dir_scan *)work;
    struct dir_source *s = scan->src;
    scan->count = 0;
    buf_clear(&scan->names);
    if (!scan->is_begun) {
        scan->is_begun = true;
        find_avoided(scan);
        if (scan->is_full)
            begin_root(scan);
        else
            begin_sub(scan);
    }
    while (scan->level_count > 0 && !is_chunk_full(scan) && !atomic_load(&s->is_closing)) {
        struct dir_level *level = &scan->levels[scan->level_count - 1];
        errno = 0;
        struct dirent *entry = readdir(level->dir);
        if (entry != NULL) {
            meet(scan, level, entry);
        } else {
            scan->path[level->path_size] = '\0';
            if (errno != 0 && errno != ENOENT)
                scan_problem(scan, "read %s/%s: %s", s->root, scan->path, strerror(errno));
            closedir(level->dir);
            scan->level_count--;
        }
        if (!scan->is_full && scan->files > SUB_FILES) {
            scan->is_too_much = true;
            close_levels(scan);
        }
    }
    if (scan->level_count == 0) {
        scan->is_done = true;
        if (scan->is_full && !scan->is_root_lost)
            check_root(scan);
    }
    for (size_t i = 0; i < scan->count; i++)
        scan->chunk[i].path = scan->names.data + scan->offsets[i];
}

/* ---- on the loop thread */

static void done_step(struct work *work);

static void step(struct dir_scan *scan)
{
    struct dir_source *s = scan->src;
    struct err err = {0};
    if (work_start(s->loop, &scan->work, run_step, done_step, &err) == ERR_NONE) {
        scan->is_running = true;
        return;
    }
    scan_problem(scan, "%s", err.text);
    scan->is_done = true;
    close_levels(scan);
    scan->is_active = false;
    dir_scan_finished(s, scan);
}

static void finish(struct dir_scan *scan)
{
    scan->is_active = false;
    dir_scan_finished(scan->src, scan);
    if (!scan->is_active) /* idle costs nothing */
        dir_scan_free(scan);
    dir_scan_start(scan->src);
}

static void done_step(struct work *work)
{
    struct dir_scan *scan = (struct dir_scan *)work;
    struct dir_source *s = scan->src;
    scan->is_running = false;
    if (atomic_load(&s->is_closing)) {
        dir_maybe_closed(s);
        return;
    }
    dir_tell_carried(s);
    if (!scan->is_full)
        for (size_t i = 0; i < scan->count && !atomic_load(&s->is_closing); i++)
            s->sink.on_found(s->sink.arg, &scan->chunk[i]);
    if (atomic_load(&s->is_closing)) {
        dir_maybe_closed(s);
        return;
    }
    if (scan->is_full && scan->count > 0) {
        scan->is_waiting = true;
        s->sink.on_scanned(s->sink.arg, scan->chunk, scan->count);
        return; /* scan_resume() goes on, maybe it has already */
    }
    if (scan->is_done)
        finish(scan);
    else
        step(scan);
}

void dir_scan_resume(struct dir_source *s)
{
    struct dir_scan *scan = &s->full;
    if (!scan->is_waiting || atomic_load(&s->is_closing))
        return;
    scan->is_waiting = false;
    scan->count = 0;
    /* Also when all has been read: one more turn on the pool, so that no callback comes from inside this call. */
    step(scan);
}

static bool prepare(struct dir_scan *scan, const char *path)
{
    if (scan->chunk == NULL) {
        scan->chunk = calloc(SCAN_CHUNK, sizeof *scan->chunk);
        scan->offsets = calloc(SCAN_CHUNK, sizeof *scan->offsets);
        if (scan->chunk == NULL || scan->offsets == NULL) {
            dir_scan_free(scan);
            return false;
        }
    }
    scan->is_begun = scan->is_done = scan->is_root_lost = scan->is_root_new = scan->is_too_much = false;
    scan->is_new_watch = false;
    scan->is_complete = true;
    scan->files = scan->folders = 0;
    scan->problem[0] = scan->reason[0] = '\0';
    scan->path_size = scan->base_size = strlen(path);
    memcpy(scan->path, path, scan->path_size + 1);
    scan->is_active = true;
    return true;
}

void dir_scan_free(struct dir_scan *scan)
{
    close_levels(scan);
    free(scan->chunk);
    free(scan->offsets);
    scan->chunk = NULL;
    scan->offsets = NULL;
    buf_done(&scan->names);
    buf_init(&scan->names);
}

void dir_scan_start(struct dir_source *s)
{
    if (atomic_load(&s->is_closing))
        return;
    if (s->full.is_wanted && !s->full.is_active) {
        s->full.is_wanted = false;
        if (prepare(&s->full, "")) {
            step(&s->full);
        } else {
            scan_problem(&s->full, "out of memory; the folder is read again later");
            dir_scan_finished(s, &s->full);
        }
    }
    if (s->subs != NULL && !s->sub.is_active) {
        struct dir_sub *sub = s->subs;
        s->subs = sub->next;
        s->sub_count--;
        bool is_ready = prepare(&s->sub, sub->path);
        free(sub);
        if (is_ready)
            step(&s->sub);
        else
            dir_scan_full(s);
    }
}

void dir_scan_full(struct dir_source *s)
{
    s->full.is_wanted = true;
    dir_scan_start(s);
}

void dir_scan_below(struct dir_source *s, const char *path)
{
    size_t n = strlen(path);
    struct dir_sub *sub = s->sub_count < SUB_QUEUE ? malloc(sizeof *sub + n + 1) : NULL;
    if (sub == NULL) {
        dir_scan_full(s);
        return;
    }
    memcpy(sub->path, path, n + 1);
    sub->next = NULL;
    if (s->subs == NULL)
        s->subs = sub;
    else
        s->subs_last->next = sub;
    s->subs_last = sub;
    s->sub_count++;
    dir_scan_start(s);
}
