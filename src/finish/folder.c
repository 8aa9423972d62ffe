/*
 * folder.c -- one segment at a time.
 *
 * Whoever may write into a watched folder may put a link where a folder was: a path given to the kernel in one piece
 * would then delete or move a file anywhere. So every segment is opened by itself and links are refused.
 */
#include "finish_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FOLDER_FLAGS (O_PATH | O_DIRECTORY | O_CLOEXEC)

bool folder_sync(int folder)
{
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* O_PATH descriptors can't be synced */
    if (fd < 0)
        return false;
    bool is_done = fsync(fd) == 0 || errno == EINVAL; /* some file systems have nothing to sync for a folder */
    int failure = errno;
    close(fd);
    errno = failure;
    return is_done;
}

/* The folder SEGMENT of FOLDER; takes FOLDER over. */
static int enter(int folder, const char *segment, bool make)
{
    struct stat st;
    int fd = openat(folder, segment, FOLDER_FLAGS | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT && make) {
        bool is_made = mkdirat(folder, segment, 0777) == 0;
        if (is_made ? !folder_sync(folder) : errno != EEXIST)
            goto leave;
        fd = openat(folder, segment, FOLDER_FLAGS | O_NOFOLLOW);
    }
    if (fd < 0 && errno == ENOTDIR && fstatat(folder, segment, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode))
        errno = ELOOP;
leave:;
    int failure = errno;
    close(folder);
    errno = failure;
    return fd;
}

/* Enter the folders in the first N bytes of PATH. */
static int walk(int dirfd, const char *path, size_t n, bool make)
{
    char segment[NAME_MAX + 1];
    int fd = openat(dirfd, ".", FOLDER_FLAGS);
    for (size_t i = 0; i < n && fd >= 0;) {
        size_t length = 0;
        while (i + length < n && path[i + length] != '/')
            length++;
        if (length > NAME_MAX || length == 0 || (length == 1 && path[i] == '.') ||
            (length == 2 && path[i] == '.' && path[i + 1] == '.')) {
            close(fd);
            errno = length > NAME_MAX ? ENAMETOOLONG : EINVAL;
            return -1;
        }
        memcpy(segment, path + i, length);
        segment[length] = '\0';
        fd = enter(fd, segment, make);
        i += length + 1;
    }
    return fd;
}

int folder_walk(int dirfd, const char *path, bool make)
{
    return walk(dirfd, path, strlen(path), make);
}

int folder_parent(int dirfd, const char *path, const char **ret_name)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    if (*name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        errno = EINVAL;
        return -1;
    }
    *ret_name = name;
    return walk(dirfd, path, slash != NULL ? (size_t)(slash - path) : 0, false);
}

int folder_make(const char *absolute)
{
    char path[PATH_MAX];
    int fd = open(absolute, FOLDER_FLAGS);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    if (snprintf(path, sizeof path, "%s", absolute) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = open("/", FOLDER_FLAGS);
    for (char *segment = path, *end; fd >= 0 && *segment != '\0'; segment = end) {
        segment += strspn(segment, "/");
        end = segment + strcspn(segment, "/");
        if (end == segment)
            break;
        if (*end != '\0')
            *end++ = '\0';
        int next = openat(fd, segment, FOLDER_FLAGS);
        if (next < 0 && errno == ENOENT) {
            fd = enter(fd, segment, true);
            continue;
        }
        int failure = errno;
        close(fd);
        errno = failure;
        fd = next;
    }
    return fd;
}

/* Is what the memo has of PATH still somewhere? A folder that was removed takes no files any more. */
static bool is_remembered(const struct finish_folder *f, int dirfd, const char *path)
{
    struct stat st;
    return f->fd >= 0 && f->dirfd == dirfd && strcmp(f->path, path) == 0 && fstat(f->fd, &st) == 0 && st.st_nlink > 0;
}

int folder_recall(const struct finish_folder *f, int dirfd, const char *path)
{
    return f != NULL && is_remembered(f, dirfd, path) ? f->fd : -1;
}

bool folder_remember(struct finish_folder *f, int dirfd, const char *path, int fd)
{
    char *copy = f != NULL ? strdup(path) : NULL;
    if (copy == NULL)
        return false;
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    *f = (struct finish_folder){.fd = fd, .dirfd = dirfd, .path = copy};
    return true;
}

void finish_memo_init(struct finish_memo *memo)
{
    *memo = (struct finish_memo){.source = {.fd = -1}, .target = {.fd = -1}};
}

void finish_memo_done(struct finish_memo *memo)
{
    struct finish_folder *both[] = {&memo->source, &memo->target};
    for (size_t i = 0; i < 2; i++) {
        if (both[i]->fd >= 0)
            close(both[i]->fd);
        free(both[i]->path);
    }
    finish_memo_init(memo);
}

bool rename_new(int from_folder, const char *from, int to_folder, const char *to)
{
    if (renameat2(from_folder, from, to_folder, to, RENAME_NOREPLACE) == 0)
        return true;
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
        return false;
    /* A second name and then away with the first; a crash between them leaves two names of one file, no loss. */
    if (linkat(from_folder, from, to_folder, to, 0) == 0)
        return unlinkat(from_folder, from, 0) == 0;
    if (errno == EEXIST || errno == EXDEV || errno == ENOENT || errno == ENAMETOOLONG)
        return false;
    struct stat st; /* neither of the two exists here: look, then rename */
    if (fstatat(to_folder, to, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        errno = EEXIST;
        return false;
    }
    return errno == ENOENT && renameat(from_folder, from, to_folder, to) == 0;
}

void name_with_suffix(const char *name, unsigned suffix, char ret[NAME_MAX + 1])
{
    char end[16] = "";
    if (suffix > 0)
        snprintf(end, sizeof end, ".%u", suffix);
    size_t n = strlen(name), room = NAME_MAX - strlen(end);
    if (n > room) {
        n = room;
        while (n > 1 && ((unsigned char)name[n] & 0xC0) == 0x80)
            n--;
    }
    memcpy(ret, name, n);
    memcpy(ret + n, end, strlen(end) + 1);
}
