/*
 * dir_tree.c -- the folders that are watched.
 *
 * A node knows its name and its parent, never its path: a folder that is renamed takes all below along by one change.
 * A few hundred bytes a folder and nothing for a file.
 */
#include "dir_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>
#include <utlist.h>

#define WATCH_MASK                                                                                                     \
    (IN_CLOSE_WRITE | IN_CREATE | IN_MODIFY | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF |   \
     IN_MOVE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK)

struct name_key {
    uint32_t parent_id;
    char name[NAME_MAX + 1];
};

static size_t key_size(const char *name)
{
    return offsetof(struct name_key, name) + strlen(name);
}

struct dir_node *dir_node_by_wd(struct dir_source *s, int wd)
{
    struct dir_node *node = NULL;
    HASH_FIND(by_wd, s->nodes_by_wd, &wd, sizeof wd, node);
    return node;
}

struct dir_node *dir_node_child(struct dir_source *s, const struct dir_node *parent, const char *name)
{
    struct name_key key;
    size_t n = strlen(name);
    if (n > NAME_MAX)
        return NULL;
    key.parent_id = (uint32_t)parent->wd;
    memcpy(key.name, name, n + 1);
    struct dir_node *node = NULL;
    HASH_FIND(by_name, s->nodes_by_name, &key, key_size(name), node);
    return node;
}

struct dir_node *dir_node_find(struct dir_source *s, const char *path)
{
    struct dir_node *node = s->tree;
    while (node != NULL && *path != '\0') {
        char name[NAME_MAX + 1];
        size_t n = strcspn(path, "/");
        if (n > NAME_MAX)
            return NULL;
        memcpy(name, path, n);
        name[n] = '\0';
        node = dir_node_child(s, node, name);
        path += n;
        if (*path == '/')
            path++;
    }
    return node;
}

bool dir_node_path(const struct dir_node *node, const char *name, char *ret, size_t size)
{
    /* From the end to the front, then moved down: the parents are only known upwards. */
    size_t at = size;
    ret[--at] = '\0';
    if (name != NULL) {
        size_t n = strlen(name);
        if (n > at)
            return false;
        at -= n;
        memcpy(ret + at, name, n);
    }
    for (; node->parent != NULL; node = node->parent) {
        size_t n = strlen(node->name);
        bool has_more = ret[at] != '\0';
        if (n + has_more > at)
            return false;
        if (has_more)
            ret[--at] = '/';
        at -= n;
        memcpy(ret + at, node->name, n);
    }
    memmove(ret, ret + at, size - at);
    return true;
}

static void unlink_node(struct dir_source *s, struct dir_node *node)
{
    HASH_DELETE(by_wd, s->nodes_by_wd, node);
    HASH_DELETE(by_name, s->nodes_by_name, node);
    if (node->parent != NULL)
        DL_DELETE(node->parent->children, node);
    else
        s->tree = NULL;
    s->node_count--;
}

static void stop_watch(struct dir_source *s, struct dir_node *node)
{
    if (node->fse != NULL)
        dir_fsevent_stop(s, node->fse);
    else if (s->inotify >= 0)
        inotify_rm_watch(s->inotify, node->wd); /* fails when the folder is gone already: fine */
}

static void free_node(struct dir_source *s, struct dir_node *node)
{
    unlink_node(s, node);
    stop_watch(s, node);
    free(node);
}

void dir_node_drop(struct dir_source *s, struct dir_node *node)
{
    /* Without recursion: the tree may be as deep as PATH_MAX allows. */
    struct dir_node *at = node;
    for (;;) {
        while (at->children != NULL)
            at = at->children;
        struct dir_node *up = at->parent;
        bool is_last = at == node;
        free_node(s, at);
        if (is_last)
            return;
        at = up;
    }
}

static void watch_parent(struct dir_source *s, struct dir_above *above, const char *folder)
{
    char parent[PATH_MAX];
    above->wd = -1;
    if (snprintf(parent, sizeof parent, "%s", folder) >= (int)sizeof parent)
        return;
    char *slash = strrchr(parent, '/');
    if (slash == NULL || slash[1] == '\0' || strlen(slash + 1) > NAME_MAX)
        return; /* "/" goes nowhere */
    strcpy(above->name, slash + 1);
    slash[slash == parent ? 1 : 0] = '\0';
    above->wd = inotify_add_watch(s->inotify, parent, IN_DELETE | IN_MOVED_FROM | IN_MOVE_SELF | IN_ONLYDIR);
}

void dir_watch_above(struct dir_source *s)
{
    if (s->inotify < 0)
        return;
    if (s->above[1].wd >= 0 && s->above[1].wd != s->above[0].wd)
        inotify_rm_watch(s->inotify, s->above[1].wd);
    if (s->above[0].wd >= 0)
        inotify_rm_watch(s->inotify, s->above[0].wd);
    s->above[1].wd = -1;
    watch_parent(s, &s->above[0], s->root);
    char *real = realpath(s->root, NULL);
    if (real != NULL && strcmp(real, s->root) != 0)
        watch_parent(s, &s->above[1], real);
    free(real);
}

const struct dir_above *dir_above_of(const struct dir_source *s, int wd)
{
    return wd < 0 ? NULL : wd == s->above[0].wd ? &s->above[0] : wd == s->above[1].wd ? &s->above[1] : NULL;
}

void dir_tree_drop(struct dir_source *s)
{
    if (s->tree != NULL)
        dir_node_drop(s, s->tree);
}

void dir_tree_sweep(struct dir_source *s, uint32_t generation)
{
    for (bool is_again = true; is_again;) {
        is_again = false;
        struct dir_node *node, *next;
        HASH_ITER(by_wd, s->nodes_by_wd, node, next) {
            /* A younger generation comes from a folder that appeared meanwhile. */
            if ((int32_t)(node->generation - generation) >= 0)
                continue;
            bool has_children = node->children != NULL;
            dir_node_drop(s, node);
            if (has_children) { /* NEXT may have been among them */
                is_again = true;
                break;
            }
        }
    }
}

/* False: out of memory, nothing has changed. */
static bool add_node(struct dir_source *s, struct dir_node *node)
{
    HASH_ADD(by_wd, s->nodes_by_wd, wd, sizeof node->wd, node);
    if (node->by_wd.tbl == NULL)
        return false;
    HASH_ADD_KEYPTR(by_name, s->nodes_by_name, &node->parent_id, key_size(node->name), node);
    if (node->by_name.tbl == NULL) {
        HASH_DELETE(by_wd, s->nodes_by_wd, node);
        return false;
    }
    if (node->parent != NULL)
        DL_APPEND(node->parent->children, node);
    else
        s->tree = node;
    s->node_count++;
    return true;
}

static struct dir_node *new_node(struct dir_node *parent, const char *name, int wd)
{
    size_t n = strlen(name);
    struct dir_node *node = calloc(1, sizeof *node + n + 1);
    if (node == NULL)
        return NULL;
    node->parent = parent;
    node->wd = wd;
    node->parent_id = parent != NULL ? (uint32_t)parent->wd : UINT32_MAX;
    memcpy(node->name, name, n + 1);
    return node;
}

static bool is_within(const struct dir_node *node, const struct dir_node *ancestor)
{
    for (; node != NULL; node = node->parent)
        if (node == ancestor)
            return true;
    return false;
}

bool dir_node_move(struct dir_source *s, struct dir_node *node, struct dir_node *parent, const char *name)
{
    struct dir_node *there = dir_node_child(s, parent, name);
    if (there == node)
        return true;
    /* Moves that were told in another order than they happened: what is true now is for a scan to find. */
    bool is_nonsense = is_within(parent, node) || (there != NULL && is_within(node, there));
    if (is_nonsense)
        dir_node_drop(s, node);
    if (there != NULL && !is_within(parent, there))
        dir_node_drop(s, there);
    if (is_nonsense)
        return false;
    struct dir_node *moved = new_node(parent, name, node->wd);
    if (moved == NULL) {
        dir_node_drop(s, node);
        return false;
    }
    moved->children = node->children;
    moved->fse = node->fse;
    moved->mtime_ns = node->mtime_ns;
    moved->generation = node->generation;
    moved->had_event = node->had_event;
    for (struct dir_node *c = moved->children; c != NULL; c = c->next)
        c->parent = moved;
    unlink_node(s, node);
    free(node);
    if (add_node(s, moved))
        return true;
    while (moved->children != NULL)
        dir_node_drop(s, moved->children);
    stop_watch(s, moved);
    free(moved);
    return false;
}

/* The same inode is watched under another name. Moved, or mounted twice? */
static bool is_still_there(struct dir_source *s, const struct dir_node *node, int fd)
{
    char path[PATH_MAX];
    struct stat here, there;
    if (!dir_node_path(node, NULL, path, sizeof path) || fstat(fd, &here) != 0)
        return false;
    int at = dir_open_below(s->root_fd, path, O_PATH | O_DIRECTORY | O_CLOEXEC, true);
    if (at < 0)
        return false;
    bool is_same = fstat(at, &there) == 0 && here.st_ino == there.st_ino && here.st_dev == there.st_dev;
    close(at);
    return is_same;
}

static void note_mtime(struct dir_node *node, int fd)
{
    bool had_event = node->had_event;
    node->had_event = false; /* before looking: an event after this belongs to the next scan */
    struct stat st;
    if (fstat(fd, &st) != 0)
        return;
    struct file_id id;
    dir_file_id(&st, &id);
    if (node->mtime_ns != 0 && node->mtime_ns != id.mtime_ns && !had_event)
        node->is_suspect = true; /* unless its event is still on its way: see doubt_timer */
    node->mtime_ns = id.mtime_ns;
}

static int watch_fd(struct dir_source *s, const struct dir_node *parent, const char *name, int fd)
{
    /* By descriptor, so that the folder watched is the one about to be read, whatever its name leads to by now. */
    char by_fd[40];
    snprintf(by_fd, sizeof by_fd, "/proc/self/fd/%d", fd);
    int wd = inotify_add_watch(s->inotify, by_fd, WATCH_MASK);
    if (wd >= 0 || errno != ENOENT)
        return wd;
    char path[PATH_MAX], full[PATH_MAX + PATH_MAX]; /* no /proc here */
    if (parent == NULL)
        path[0] = '\0';
    else if (!dir_node_path(parent, name, path, sizeof path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    snprintf(full, sizeof full, "%s/%s", s->root, path);
    return inotify_add_watch(s->inotify, full, WATCH_MASK);
}

static void note_carried(struct dir_source *s, const struct dir_node *node, const struct dir_node *parent,
                         const char *name)
{
    char from[PATH_MAX], to[PATH_MAX];
    if (!dir_node_path(node, NULL, from, sizeof from) || !dir_node_path(parent, name, to, sizeof to))
        return;
    size_t a = strlen(from) + 1, b = strlen(to) + 1;
    struct dir_carried *c = malloc(sizeof *c + a + b);
    if (c == NULL)
        return; /* told as gone and found then */
    memcpy(c->from, from, a);
    c->to = c->from + a;
    memcpy(c->to, to, b);
    LL_APPEND(s->carried, c);
}

/* What stands in the way of a node: another one at its name, or its own wd elsewhere. Returns the node if it is right.
 */
static struct dir_node *settle_names(struct dir_source *s, struct dir_node **parent, const char *name, int wd, int fd)
{
    struct dir_node *node = dir_node_by_wd(s, wd);
    struct dir_node *there = *parent != NULL ? dir_node_child(s, *parent, name) : s->tree;
    if (node != NULL && node == there)
        return node;
    if (node != NULL && *parent != NULL) {
        if (node->parent != NULL && is_still_there(s, node, fd)) {
            errno = EXDEV; /* seen at two places: a bind mount inside the root; events only tell one of the names */
            *parent = NULL;
            return NULL;
        }
        int parent_wd = (*parent)->wd;
        if (node->parent != NULL)
            note_carried(s, node, *parent, name);
        dir_node_move(s, node, *parent, name);
        *parent = dir_node_by_wd(s, parent_wd);
        return dir_node_by_wd(s, wd);
    }
    if (there != NULL)
        dir_node_drop(s, there);
    return NULL;
}

int dir_watch(struct dir_source *s, int parent_wd, const char *name, int fd)
{
    struct dir_node *parent = parent_wd >= 0 ? dir_node_by_wd(s, parent_wd) : NULL;
    bool is_root = name[0] == '\0';
    if (parent == NULL && !is_root) {
        errno = 0;
        return -1;
    }
    struct dir_node *node;
    int wd;
    if (s->is_fs_event) {
        node = is_root ? s->tree : dir_node_child(s, parent, name);
        wd = node != NULL ? node->wd : ++s->next_wd;
    } else {
        wd = watch_fd(s, parent, name, fd);
        if (wd < 0)
            return -1;
        bool was_known = dir_node_by_wd(s, wd) != NULL;
        node = settle_names(s, &parent, name, wd, fd);
        if (node == NULL && parent == NULL && !is_root)
            return -1;
        /* The node went and took the watch along. */
        if (node == NULL && was_known && (wd = watch_fd(s, parent, name, fd)) < 0)
            return -1;
    }
    if (node == NULL) {
        node = new_node(parent, name, wd);
        if (node == NULL || !add_node(s, node)) {
            free(node);
            if (!s->is_fs_event)
                inotify_rm_watch(s->inotify, wd);
            errno = ENOMEM;
            return -1;
        }
    }
    node->generation = s->generation;
    note_mtime(node, fd);
    return wd;
}
