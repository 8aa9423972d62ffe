/* place.c -- a file arrives under a name where something may be already, perhaps on another disk. */
#include "finish_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COPY_BYTES ((size_t)256 * 1024)

static ssize_t read_at(int fd, char *data, size_t size, off_t offset)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, data + done, size - done, offset + (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static bool write_full(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

enum likeness { DIFFERENT, SAME_BYTES, SAME_FILE };

/* What is at NAME: our own file, its bytes, or something else? What can't be read counts as something else. */
static enum likeness compare(int fd, int folder, const char *name)
{
    enum likeness answer = DIFFERENT;
    struct stat a, b;
    int other = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (other < 0)
        return DIFFERENT;
    char *data = NULL;
    if (fd < 0 || fstat(fd, &a) != 0 || fstat(other, &b) != 0 || !S_ISREG(b.st_mode) || a.st_size != b.st_size)
        goto close_other;
    if (a.st_ino == b.st_ino && a.st_dev == b.st_dev) {
        answer = SAME_FILE;
        goto close_other;
    }
    data = malloc(2 * COPY_BYTES);
    if (data == NULL)
        goto close_other;
    for (off_t at = 0;;) {
        ssize_t n = read_at(fd, data, COPY_BYTES, at);
        ssize_t m = read_at(other, data + COPY_BYTES, COPY_BYTES, at);
        if (n < 0 || n != m || memcmp(data, data + COPY_BYTES, (size_t)n) != 0)
            goto close_other;
        at += n;
        if (n < (ssize_t)COPY_BYTES)
            break;
    }
    answer = SAME_BYTES;
close_other:
    free(data);
    close(other);
    return answer;
}

/* All bytes of FROM, its times and rights into TO, on disk. */
static bool copy_into(int from, int to, const struct stat *st, char *data)
{
    off_t at = 0;
    for (;;) {
        ssize_t n = read_at(from, data, COPY_BYTES, at);
        if (n < 0 || !write_full(to, data, (size_t)n))
            return false;
        at += n;
        if (n < (ssize_t)COPY_BYTES)
            break;
    }
    if (at != st->st_size) {
        errno = ESTALE;
        return false;
    }
    /* The owner only where we may; rights and times are worth a failure, since others look at them. */
    if (fchown(to, st->st_uid, st->st_gid) != 0 && errno != EPERM && errno != EINVAL)
        return false;
    const struct timespec times[2] = {st->st_atim, st->st_mtim};
    if ((fchmod(to, st->st_mode & 0777) != 0 && errno != EPERM) || futimens(to, times) != 0)
        return false;
    return fsync(to) == 0;
}

/* A copy in TO_FOLDER under a private name that depends on the file alone: what a kill left is overwritten next time.
 */
static enum err_code copy_over(int fd, int to_folder, char ret_name[NAME_MAX + 1], struct err *err)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0)
        return err_set(err, ERR_SYSTEM, true, "copy to another file system: the file can't be read");
    snprintf(ret_name, NAME_MAX + 1, COPY_PREFIX "%" PRIxMAX "-%" PRIxMAX, (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    char *data = malloc(COPY_BYTES);
    if (data == NULL)
        return err_nomem(err);
    unlinkat(to_folder, ret_name, 0);
    int to = openat(to_folder, ret_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (to < 0) {
        err_set(err, ERR_SYSTEM, true, "copy to another file system: create a file there: %s", strerror(errno));
        goto free_data;
    }
    bool is_copied = copy_into(fd, to, &st, data);
    int failure = errno;
    if (close(to) != 0 && is_copied) {
        is_copied = false;
        failure = errno;
    }
    free(data);
    if (is_copied)
        return ERR_NONE;
    unlinkat(to_folder, ret_name, 0);
    return err_set(err, ERR_SYSTEM, true, "copy to another file system: %s", strerror(failure));
free_data:
    free(data);
    return ERR_SYSTEM;
}

/* Find the name and take it. 0, or an errno. */
static int settle_in(int from_folder, const char *from, int fd, int to_folder, const char *name,
                     char ret_name[NAME_MAX + 1])
{
    for (unsigned suffix = 0; suffix <= SUFFIX_MAX; suffix++) {
        name_with_suffix(name, suffix, ret_name);
        if (rename_new(from_folder, from, to_folder, ret_name))
            return 0;
        if (errno != EEXIST)
            return errno;
        switch (compare(fd, to_folder, ret_name)) {
        case SAME_FILE: /* renaming one name of a file to another one of it would do nothing at all */
            return unlinkat(from_folder, from, 0) == 0 ? 0 : errno;
        case SAME_BYTES:
            return renameat(from_folder, from, to_folder, ret_name) == 0 ? 0 : errno;
        case DIFFERENT:
            break;
        }
    }
    return EEXIST;
}

enum err_code place_file(int from_folder, const char *from, int fd, int to_folder, const char *name,
                         char ret_name[NAME_MAX + 1], struct err *err)
{
    int failure = settle_in(from_folder, from, fd, to_folder, name, ret_name);
    if (failure ==
        0) /* a rename is one step in the journal of its file system: at no time none or two, no fsync needed */
        return ERR_NONE;
    if (failure != EXDEV)
        return err_set(err, ERR_SYSTEM, true, "%s: %s", name,
                       failure == EEXIST ? "that name and all up to .9999 are taken: clear the folder"
                                         : strerror(failure));
    char copy[NAME_MAX + 1];
    if (copy_over(fd, to_folder, copy, err) != ERR_NONE)
        return err->code;
    failure = settle_in(to_folder, copy, fd, to_folder, name, ret_name);
    if (failure == 0 && !folder_sync(to_folder))
        failure = errno;
    if (failure == 0 && unlinkat(from_folder, from, 0) != 0)
        failure = errno; /* two places now; the next attempt finds the same bytes and goes on here */
    if (failure == 0)
        return ERR_NONE;
    unlinkat(to_folder, copy, 0);
    return err_set(err, ERR_SYSTEM, true, "%s: %s", name, strerror(failure));
}
