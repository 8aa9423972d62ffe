/*
 * dir_fsevent.c -- watching by libuv's uv_fs_event, for systems without inotify.
 *
 * It tells a name in a folder and neither a close nor an overflow, so every event is a look: what is there is
 * reported as scanned (settle waits for it to stand still), what is not is gone. A rename is a departure and an
 * arrival.
 */
#include "dir_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Apart from its node: libuv frees it later than the folder goes. */
struct dir_fse {
    uv_fs_event_t handle;
    struct dir_fse *next_stopped;
    struct dir_source *src;
    int wd;
};

static void on_fse_closed(uv_handle_t *handle)
{
    struct dir_fse *fse = handle->data;
    struct dir_source *s = fse->src;
    free(fse);
    s->handles--;
    dir_maybe_closed(s);
}

/* From any thread, under lock: the pool may find that a folder is no longer there. The loop closes what it finds here.
 */
void dir_fsevent_stop(struct dir_source *s, struct dir_fse *fse)
{
    fse->wd = -1;
    fse->next_stopped = s->fse_stopped;
    s->fse_stopped = fse;
}

static void close_stopped(struct dir_source *s)
{
    uv_mutex_lock(&s->lock);
    struct dir_fse *fse = s->fse_stopped;
    s->fse_stopped = NULL;
    uv_mutex_unlock(&s->lock);
    while (fse != NULL) {
        struct dir_fse *next = fse->next_stopped;
        uv_close((uv_handle_t *)&fse->handle, on_fse_closed);
        fse = next;
    }
}

static void on_fse(uv_fs_event_t *handle, const char *name, int events, int status)
{
    struct dir_fse *fse = handle->data;
    struct dir_source *s = fse->src;
    char path[PATH_MAX];
    if (atomic_load(&s->is_closing) || fse->wd < 0)
        return;
    uv_mutex_lock(&s->lock);
    struct dir_node *node = dir_node_by_wd(s, fse->wd);
    bool is_known = node != NULL && name != NULL && dir_node_path(node, name, path, sizeof path);
    if (node != NULL) {
        node->had_event = true;
        node->is_suspect = false;
    }
    struct dir_node *child = is_known ? dir_node_child(s, node, name) : NULL;
    uv_mutex_unlock(&s->lock);
    if (status != 0 || name == NULL) {
        dir_scan_full(s);
        return;
    }
    if (!is_known)
        return;
    int fd = dir_open_below(s->root_fd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC, true);
    struct stat st;
    bool is_folder = fd >= 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    if (fd >= 0)
        close(fd);
    struct file_id id;
    if (child != NULL && (!is_folder || (events & UV_RENAME) != 0)) {
        /* Gone, or made anew with that name: then its watch is dead. A scan watches it again. */
        uv_mutex_lock(&s->lock);
        child = dir_node_find(s, path);
        if (child != NULL)
            dir_node_drop(s, child);
        uv_mutex_unlock(&s->lock);
        close_stopped(s);
        if (!is_folder)
            dir_tell(s, FOUND_FOLDER_GONE, path, NULL, NULL);
    }
    if (is_folder) {
        if (dir_enters(s, path))
            dir_scan_below(s, path);
    } else if (dir_wants(s, path)) {
        if (dir_look(s->root_fd, path, &id, NULL))
            dir_tell(s, FOUND_SCANNED, path, NULL, &id);
        else if (child == NULL)
            dir_tell(s, FOUND_GONE, path, NULL, NULL);
    }
}

/* False: it can't be watched; RET_CODE says why. */
static bool start_one(struct dir_source *s, int wd, const char *path, int *ret_code)
{
    char full[PATH_MAX + PATH_MAX];
    snprintf(full, sizeof full, path[0] != '\0' ? "%s/%s" : "%s%s", s->root, path);
    struct dir_fse *fse = calloc(1, sizeof *fse);
    *ret_code = UV_ENOMEM;
    if (fse == NULL)
        return false;
    fse->src = s;
    fse->wd = wd;
    uv_fs_event_init(s->loop, &fse->handle);
    fse->handle.data = fse;
    s->handles++;
    *ret_code = uv_fs_event_start(&fse->handle, on_fse, full, 0);
    uv_mutex_lock(&s->lock);
    struct dir_node *node = dir_node_by_wd(s, wd);
    bool is_watched = *ret_code == 0 && node != NULL && node->fse == NULL;
    if (is_watched)
        node->fse = fse;
    uv_mutex_unlock(&s->lock);
    if (!is_watched)
        uv_close((uv_handle_t *)&fse->handle, on_fse_closed);
    return is_watched || *ret_code == 0 || *ret_code == UV_ENOENT || *ret_code == UV_ENOTDIR;
}

bool dir_fsevent_start(struct dir_source *s)
{
    bool is_any = false;
    close_stopped(s);
    if (atomic_load(&s->is_closing))
        return false;
    for (;;) {
        char path[PATH_MAX];
        int wd = -1, code = 0;
        struct dir_node *node, *next;
        uv_mutex_lock(&s->lock);
        HASH_ITER(by_wd, s->nodes_by_wd, node, next) {
            if (node->fse == NULL && dir_node_path(node, NULL, path, sizeof path)) {
                wd = node->wd;
                break;
            }
        }
        uv_mutex_unlock(&s->lock);
        if (wd < 0)
            return is_any;
        bool is_fine = start_one(s, wd, path, &code);
        is_any = is_any || code == 0;
        if (code != 0) { /* no node without its watch: found again by the next scan or event */
            uv_mutex_lock(&s->lock);
            node = dir_node_by_wd(s, wd);
            if (node != NULL)
                dir_node_drop(s, node);
            uv_mutex_unlock(&s->lock);
            close_stopped(s);
        }
        if (!is_fine)
            snprintf(s->full.reason, sizeof s->full.reason, "a folder can't be watched: %s", uv_strerror(code));
    }
}
