/*
 * dir_events.c -- inotify events to struct found.
 *
 * Events are hints: each is looked at (the inode was touched a moment ago, so that costs no disk), and whatever they
 * leave open is left to a scan. Must never take a folder's old path for its new one: the tree changes in the order of
 * the events, and a folder that appears or moves is read anew.
 */
#include "dir_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utlist.h>

/* A MOVED_TO follows its MOVED_FROM at once in the queue; only a full queue or a slow disk comes between. */
#define MOVED_WAIT_MS 30
#define MOVED_MAX 256
#define READS_PER_TURN 64

void dir_tell(struct dir_source *s, enum found_how how, const char *path, const char *from, const struct file_id *id)
{
    struct found found = {.path = path, .from = from, .how = how};
    if (id != NULL)
        found.id = *id;
    s->sink.on_found(s->sink.arg, &found);
}

/* ---- names that went */

static void forget_moved(struct dir_source *s, struct dir_moved *m)
{
    DL_DELETE(s->moved, m);
    s->moved_count--;
    free(m);
}

void dir_moved_drop(struct dir_source *s)
{
    while (s->moved != NULL)
        forget_moved(s, s->moved);
}

static void drop_folder(struct dir_source *s, const char *path)
{
    uv_mutex_lock(&s->lock);
    struct dir_node *node = dir_node_find(s, path);
    if (node != NULL && node->parent != NULL)
        dir_node_drop(s, node);
    uv_mutex_unlock(&s->lock);
}

static void is_gone(struct dir_source *s, const char *path, bool is_dir)
{
    if (is_dir) {
        drop_folder(s, path);
        if (dir_enters(s, path))
            dir_tell(s, FOUND_FOLDER_GONE, path, NULL, NULL);
    } else if (dir_wants(s, path)) {
        dir_tell(s, FOUND_GONE, path, NULL, NULL);
    }
}

/* It left the root: nothing took it in again. */
static void give_up_moved(struct dir_source *s, struct dir_moved *m)
{
    DL_DELETE(s->moved, m);
    s->moved_count--;
    is_gone(s, m->path, m->is_dir);
    free(m);
}

void dir_on_moved_timer(uv_timer_t *timer)
{
    struct dir_source *s = timer->data;
    dir_drain(s); /* its other half may be waiting in the queue */
    while (s->moved != NULL)
        give_up_moved(s, s->moved);
}

static void moved_from(struct dir_source *s, const char *path, uint32_t cookie, bool is_dir)
{
    /* What no flow wants needs no other half: its MOVED_TO counts as coming from outside. */
    if (is_dir ? !dir_enters(s, path) : !dir_wants(s, path))
        return;
    size_t n = strlen(path);
    struct dir_moved *m = malloc(sizeof *m + n + 1);
    if (m == NULL) {
        is_gone(s, path, is_dir); /* and found again as new */
        return;
    }
    m->cookie = cookie;
    m->is_dir = is_dir;
    memcpy(m->path, path, n + 1);
    if (s->moved_count == MOVED_MAX)
        give_up_moved(s, s->moved);
    DL_APPEND(s->moved, m);
    s->moved_count++;
    if (!uv_is_active((uv_handle_t *)&s->moved_timer))
        uv_timer_start(&s->moved_timer, dir_on_moved_timer, MOVED_WAIT_MS, 0);
}

static void moved_file(struct dir_source *s, const char *path, struct dir_moved *m)
{
    struct file_id id = {0};
    if (!dir_wants(s, path)) {
        if (m != NULL)
            dir_tell(s, FOUND_GONE, m->path, NULL, NULL);
        return;
    }
    bool is_here = dir_look(s->root_fd, path, &id, NULL);
    if (m != NULL) {
        dir_tell(s, FOUND_RENAMED, path, m->path, &id); /* also if it went on: the next event carries it further */
    } else if (is_here) {
        dir_tell(s, FOUND_RENAMED, path, NULL, &id);
    }
}

static void moved_folder(struct dir_source *s, const char *path, struct dir_moved *m)
{
    if (!dir_enters(s, path)) {
        if (m != NULL)
            is_gone(s, m->path, true);
        return;
    }
    if (m != NULL) {
        char parent_path[PATH_MAX];
        strcpy(parent_path, path);
        char *slash = strrchr(parent_path, '/');
        if (slash != NULL)
            *slash = '\0';
        uv_mutex_lock(&s->lock);
        struct dir_node *node = dir_node_find(s, m->path);
        struct dir_node *parent = dir_node_find(s, slash != NULL ? parent_path : "");
        if (node != NULL && node->parent != NULL) {
            if (parent != NULL)
                dir_node_move(s, node, parent, slash != NULL ? slash + 1 : path);
            else
                dir_node_drop(s, node);
        }
        uv_mutex_unlock(&s->lock);
        dir_tell(s, FOUND_FOLDER_RENAMED, path, m->path, NULL);
    }
    /* New here, or a scan on its way may have read it under its old name. */
    dir_scan_below(s, path);
}

static void moved_to(struct dir_source *s, const char *path, uint32_t cookie, bool is_dir)
{
    struct dir_moved *m;
    DL_FOREACH(s->moved, m) {
        if (m->cookie == cookie && m->is_dir == is_dir)
            break;
    }
    if (is_dir)
        moved_folder(s, path, m);
    else
        moved_file(s, path, m);
    if (m != NULL)
        forget_moved(s, m);
}

/* `mkdir new && mv old new/`: the arrival was not watched yet. The departure waits here and has its other half now. */
void dir_tell_carried(struct dir_source *s)
{
    uv_mutex_lock(&s->lock);
    struct dir_carried *c = s->carried;
    s->carried = NULL;
    uv_mutex_unlock(&s->lock);
    if (c != NULL)
        dir_drain(s);
    while (c != NULL) {
        struct dir_carried *next = c->next;
        struct dir_moved *m;
        DL_FOREACH(s->moved, m) {
            if (m->is_dir && strcmp(m->path, c->from) == 0)
                break;
        }
        if (m != NULL) {
            forget_moved(s, m);
            if (!atomic_load(&s->is_closing))
                dir_tell(s, FOUND_FOLDER_RENAMED, c->to, c->from, NULL);
        }
        free(c);
        c = next;
    }
}

/* Something else happens at a name that went: what it was before is over. */
static void close_moved(struct dir_source *s, const char *path)
{
    struct dir_moved *m, *next;
    DL_FOREACH_SAFE(s->moved, m, next) {
        if (strcmp(m->path, path) == 0)
            give_up_moved(s, m);
    }
}

/* ---- one event */

static void file_event(struct dir_source *s, const char *path, uint32_t mask)
{
    struct file_id id = {0};
    uint64_t links = 0;
    if (!dir_wants(s, path))
        return;
    if ((mask & IN_DELETE) != 0) {
        dir_tell(s, FOUND_GONE, path, NULL, NULL);
        return;
    }
    if ((mask & IN_ATTRIB) != 0 || !dir_look(s->root_fd, path, &id, &links))
        return; /* gone again: its event follows. Or a FIFO, a socket, a link that leads out */
    if ((mask & IN_CLOSE_WRITE) != 0)
        dir_tell(s, FOUND_CLOSED, path, NULL, &id);
    else if ((mask & IN_MODIFY) != 0)
        dir_tell(s, FOUND_WRITING, path, NULL, &id);
    else if (id.size == 0 && links == 1)
        dir_tell(s, FOUND_WRITING, path, NULL, &id); /* open(O_CREAT): its close will be told */
    else
        /* link(2), symlink(2), a nameless file given a name: no close ever comes. If somebody does write it, his
         * IN_MODIFY is the next event. */
        dir_tell(s, FOUND_SCANNED, path, NULL, &id);
}

static void folder_event(struct dir_source *s, const char *path, uint32_t mask)
{
    if ((mask & IN_DELETE) != 0) {
        is_gone(s, path, true);
        return;
    }
    if (!dir_enters(s, path))
        return;
    if ((mask & IN_ATTRIB) != 0) { /* readable now? */
        uv_mutex_lock(&s->lock);
        bool is_watched = dir_node_find(s, path) != NULL;
        uv_mutex_unlock(&s->lock);
        if (is_watched)
            return;
    }
    if ((mask & (IN_CREATE | IN_ATTRIB)) != 0)
        dir_scan_below(s, path);
}

/* In a folder that the root is in. Other names there are none of our business. */
static bool is_about_root(struct dir_source *s, const struct inotify_event *e, bool *ret_above)
{
    uv_mutex_lock(&s->lock);
    const struct dir_above *one = dir_above_of(s, e->wd);
    *ret_above = one != NULL;
    /* Both may be the same folder, and so the same watch, under two names. */
    bool is_root = one != NULL && (e->mask & IN_MOVE_SELF) != 0; /* the folder above took the root along */
    is_root = is_root || (one != NULL && e->len > 0 &&
                          ((s->above[0].wd == e->wd && strcmp(e->name, s->above[0].name) == 0) ||
                           (s->above[1].wd == e->wd && strcmp(e->name, s->above[1].name) == 0)));
    uv_mutex_unlock(&s->lock);
    return is_root;
}

/* About the watched folder itself. */
static void self_event(struct dir_source *s, int wd, uint32_t mask)
{
    uv_mutex_lock(&s->lock);
    struct dir_node *node = dir_node_by_wd(s, wd);
    bool is_root = node != NULL && node->parent == NULL;
    if (node != NULL && (mask & (IN_IGNORED | IN_UNMOUNT)) != 0)
        dir_node_drop(s, node);
    uv_mutex_unlock(&s->lock);
    if (node == NULL)
        return;
    bool is_scan_wanted = false;
    if ((is_root && (mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED)) != 0) ||
        (mask & IN_UNMOUNT) != 0 || ((mask & IN_ATTRIB) != 0 && s->problem[0] != '\0'))
        is_scan_wanted = true;
    if (is_root && (mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT)) != 0)
        atomic_store(&s->is_root_lost,
                     true); /* what is told from now on is not about our root, until a scan has found it */
    if (is_scan_wanted)
        dir_scan_full(s); /* it begins with a look at the root */
}

static void handle_event(struct dir_source *s, const struct inotify_event *e)
{
    if ((e->mask & IN_Q_OVERFLOW) != 0) {
        dir_overflowed(s);
        return;
    }
    bool is_above;
    if (is_about_root(s, e, &is_above) && !atomic_exchange(&s->is_root_lost, true))
        dir_scan_full(s); /* it says what is missing, and looks again until it is back */
    if (is_above)
        return;
    if (e->len == 0) {
        self_event(s, e->wd, e->mask);
        return;
    }
    char path[PATH_MAX];
    uv_mutex_lock(&s->lock);
    struct dir_node *node = dir_node_by_wd(s, e->wd);
    bool is_known = node != NULL && dir_node_path(node, e->name, path, sizeof path);
    if (node != NULL) {
        node->had_event = true;
        node->is_suspect = false;
    }
    uv_mutex_unlock(&s->lock);
    if (!is_known || atomic_load(&s->is_root_lost))
        return;
    bool is_dir = (e->mask & IN_ISDIR) != 0;
    if ((e->mask & IN_MOVED_TO) != 0) {
        close_moved(s, path);
        moved_to(s, path, e->cookie, is_dir);
        return;
    }
    close_moved(s, path);
    if ((e->mask & IN_MOVED_FROM) != 0)
        moved_from(s, path, e->cookie, is_dir);
    else if (is_dir)
        folder_event(s, path, e->mask);
    else
        file_event(s, path, e->mask);
}

void dir_drain(struct dir_source *s)
{
    _Alignas(struct inotify_event) char buf[16 * 1024];
    /* Bounded, so that a storm of events leaves the loop its other turns; the descriptor stays readable. */
    for (int i = 0; i < READS_PER_TURN && s->inotify >= 0 && !atomic_load(&s->is_closing); i++) {
        ssize_t n = read(s->inotify, buf, sizeof buf);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        for (char *at = buf; at < buf + n && !atomic_load(&s->is_closing);) {
            const struct inotify_event *e = (const struct inotify_event *)(const void *)at;
            handle_event(s, e);
            at += sizeof *e + e->len;
        }
    }
}

void dir_on_inotify(uv_poll_t *handle, int status, int events)
{
    (void)status;
    (void)events;
    dir_drain(handle->data);
}
