/*
 * finish.c -- delete and move, but only the version that was loaded.
 *
 * A name can get another file between our look and our act. So the file first goes aside under a private name, where
 * nobody else looks for it, is looked at again there, and only then goes away. A read lease, where the kernel gives us
 * one, tells of a writer that has the file open, and of one that opens it until the moment we act.
 */
#include "finish.h"
#include "finish_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASIDE_PREFIX ".chute~"      /* before the file's own name */
#define ASIDE_FOLDER ".chute-long~" /* for names that leave no room for the prefix: they keep theirs, in there */

/* A file that went aside, or stands before it. */
struct aside {
    int folder;       /* where it lives */
    bool is_borrowed; /* FOLDER belongs to a memo */
    const char *name; /* its own */
    int fd;           /* reads it; O_PATH if it can't be read */
    bool can_read;
    bool has_lease;
    bool is_gone; /* somebody else was faster: nothing to do */
    int hold;     /* where it is now: FOLDER or the ASIDE_FOLDER in it */
    char held[NAME_MAX + 1];
};

bool finish_is_private(const char *name)
{
    return strncmp(name, ASIDE_PREFIX, strlen(ASIDE_PREFIX)) == 0 || strcmp(name, ASIDE_FOLDER) == 0 ||
           strncmp(name, COPY_PREFIX, strlen(COPY_PREFIX)) == 0;
}

/* A writer that meets our lease makes the kernel send us SIGIO, which ends a process that does not expect it. */
static void ignore_sigio(void)
{
    struct sigaction action;
    if (sigaction(SIGIO, NULL, &action) == 0 && (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == SIG_DFL) {
        action.sa_handler = SIG_IGN;
        sigaction(SIGIO, &action, NULL);
    }
}

static void release(struct aside *a)
{
    if (a->hold >= 0 && a->hold != a->folder) {
        close(a->hold);
        unlinkat(a->folder, ASIDE_FOLDER, AT_REMOVEDIR); /* not while another one is in there */
    }
    if (a->fd >= 0)
        close(a->fd); /* ends the lease */
    if (a->folder >= 0 && !a->is_borrowed)
        close(a->folder);
}

/* The folder of PATH, its last segment into a->name. As folder_parent(), which it asks where MEMO does not know. */
static int find_folder(struct aside *a, struct finish_memo *memo, int dirfd, const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (memo == NULL || slash == NULL || (size_t)(slash - path) >= sizeof folder)
        return folder_parent(dirfd, path, &a->name);
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    int fd = folder_recall(&memo->source, dirfd, folder);
    a->is_borrowed = fd >= 0;
    if (a->is_borrowed) {
        a->name = slash + 1;
        return fd;
    }
    fd = folder_parent(dirfd, path, &a->name);
    a->is_borrowed = fd >= 0 && folder_remember(&memo->source, dirfd, folder, fd);
    return fd;
}

static bool is_version(const struct stat *st, const struct file_id *id)
{
    /* Not ctime: our own renames change it, also those of an attempt that failed. */
    return S_ISREG(st->st_mode) && (uint64_t)st->st_ino == id->inode && (uint64_t)st->st_size == id->size &&
           (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec == id->mtime_ns;
}

static enum err_code changed(struct err *err, const char *what)
{
    return err_set(err, ERR_CHANGED, true, "%s; it was left in place", what);
}

static enum err_code open_file(struct aside *a, struct err *err)
{
    a->fd = openat(a->folder, a->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    a->can_read = a->fd >= 0;
    if (a->fd < 0 && errno == EACCES)
        a->fd = openat(a->folder, a->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (a->fd >= 0)
        return ERR_NONE;
    switch (errno) {
    case ENOENT:
        a->is_gone = true;
        return ERR_NONE;
    case ELOOP:
        return changed(err, "a symbolic link has its name now");
    case ENXIO:
    case ENODEV:
        return changed(err, "something that is no file has its name now");
    case EWOULDBLOCK:
        return changed(err, "another program has it leased for writing");
    default:
        return err_set(err, ERR_SYSTEM, true, "open it to see whether it is still the loaded version: %s",
                       strerror(errno));
    }
}

/* Is it the loaded version, and does nobody write it? Takes the lease. */
static enum err_code check_version(struct aside *a, const struct file_id *id, struct err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct stat st;
    pthread_once(&once, ignore_sigio);
    if (a->can_read) {
        a->has_lease = fcntl(a->fd, F_SETLEASE, F_RDLCK) == 0;
        if (!a->has_lease && errno == EAGAIN)
            return changed(err, "a program has it open for writing");
    }
    if (fstat(a->fd, &st) != 0)
        return err_set(err, ERR_SYSTEM, true, "look at it: %s", strerror(errno));
    return is_version(&st, id) ? ERR_NONE : changed(err, "it is another version now");
}

/* Under its own name again; if that has been given away meanwhile, beside it. Says so in ERR, which is kept. */
static void put_back(struct aside *a, struct err *err)
{
    char name[NAME_MAX + 1];
    struct stat ours, other;
    for (unsigned suffix = 0; suffix <= SUFFIX_MAX; suffix++) {
        name_with_suffix(a->name, suffix, name);
        if (rename_new(a->hold, a->held, a->folder, name)) {
            if (suffix > 0 && err != NULL)
                err_wrap(err, "its name was taken meanwhile, it is now %s", name);
            return;
        }
        if (errno != EEXIST)
            break;
        if (fstatat(a->hold, a->held, &ours, AT_SYMLINK_NOFOLLOW) == 0 &&
            fstatat(a->folder, name, &other, AT_SYMLINK_NOFOLLOW) == 0 && ours.st_ino == other.st_ino &&
            ours.st_dev == other.st_dev) {
            unlinkat(a->hold, a->held, 0); /* two names of one file: a kill came between link and unlink */
            return;
        }
    }
    if (err != NULL)
        err_wrap(err, "it could not get its name back and is now %s (%s)", a->held, strerror(errno));
}

/* Open the folder for long names. A neighbour that is done may remove it between the two calls. */
static int open_long(int folder)
{
    int fd = -1;
    for (int tries = 0; tries < 100 && fd < 0; tries++) {
        if (mkdirat(folder, ASIDE_FOLDER, 0700) != 0 && errno != EEXIST)
            return -1;
        fd = openat(folder, ASIDE_FOLDER, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 && errno != ENOENT)
            return -1;
    }
    return fd;
}

/* Rename to the private name. false with errno. */
static bool hide(struct aside *a)
{
    int n = snprintf(a->held, sizeof a->held, ASIDE_PREFIX "%s", a->name);
    a->hold = a->folder;
    if (n < (int)sizeof a->held) {
        if (rename_new(a->folder, a->name, a->hold, a->held))
            return true;
        if (errno == EEXIST) { /* a kill left one there, and nobody has recovered it: its turn first */
            put_back(a, NULL);
            if (rename_new(a->folder, a->name, a->hold, a->held))
                return true;
        }
        if (errno != ENAMETOOLONG)
            return false;
    }
    snprintf(a->held, sizeof a->held, "%s", a->name);
    for (int tries = 0; tries < 100; tries++) {
        a->hold = open_long(a->folder);
        if (a->hold < 0)
            return false;
        if (rename_new(a->folder, a->name, a->hold, a->held))
            return true;
        struct stat st;
        bool is_removed = errno == ENOENT && fstatat(a->folder, a->name, &st, AT_SYMLINK_NOFOLLOW) == 0;
        if (!is_removed) /* else: the folder was, between opening it and the rename */
            return false;
        close(a->hold);
        a->hold = -1;
    }
    return false;
}

/* The second look, at what is under the private name now. */
static enum err_code check_aside(const struct aside *a, const struct file_id *id, struct err *err)
{
    struct stat st;
    if (fstatat(a->hold, a->held, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return err_set(err, ERR_SYSTEM, true, "look at it again: %s", strerror(errno));
    if (!is_version(&st, id))
        return changed(err, "another version took its place at this moment");
    if (a->has_lease && fcntl(a->fd, F_GETLEASE) != F_RDLCK)
        return changed(err, "a program opened it for writing at this moment");
    return ERR_NONE;
}

/* Find the file, check it, hide it, check it again. After a failure nothing is held, and the file has its name. */
static enum err_code take_aside(struct aside *a, struct finish_memo *memo, int dirfd, const char *path,
                                const struct file_id *id, struct err *err)
{
    *a = (struct aside){.fd = -1, .hold = -1};
    a->folder = find_folder(a, memo, dirfd, path);
    if (a->folder < 0) {
        a->is_gone = errno == ENOENT;
        if (a->is_gone)
            return ERR_NONE;
        if (errno == ELOOP || errno == ENOTDIR)
            return changed(err, "a folder of its path is a link or a file now");
        return err_set(err, ERR_SYSTEM, true, "open its folder: %s", strerror(errno));
    }
    enum err_code code = open_file(a, err);
    if (code == ERR_NONE && !a->is_gone)
        code = check_version(a, id, err);
    if (code == ERR_NONE && !a->is_gone && !hide(a)) {
        a->is_gone = errno == ENOENT;
        if (!a->is_gone)
            code = err_set(err, ERR_SYSTEM, true,
                           "rename it in its folder: %s; user %u needs the right to write into that folder",
                           strerror(errno), (unsigned)geteuid());
    } else if (code == ERR_NONE && !a->is_gone) {
        code = check_aside(a, id, err);
        if (code != ERR_NONE)
            put_back(a, err);
    }
    if (code != ERR_NONE || a->is_gone)
        release(a);
    return code;
}

enum err_code finish_delete(struct finish_memo *memo, int dirfd, const char *path, const struct file_id *id,
                            struct err *err)
{
    struct aside a;
    enum err_code code = take_aside(&a, memo, dirfd, path, id, err);
    if (code != ERR_NONE || a.is_gone)
        return code;
    /* Not synced: what a power cut brings back is met by the next scan and known from the ledger. */
    if (unlinkat(a.hold, a.held, 0) != 0 && errno != ENOENT) {
        code = err_set(err, ERR_SYSTEM, true, "delete it: %s", strerror(errno));
        put_back(&a, err);
    }
    release(&a);
    return code;
}

/* FOLDERS below TARGET_DIR, made if missing. -1: ERR. */
static int open_target(struct finish_memo *memo, const char *target_dir, const char *folders, bool *ret_borrowed,
                       struct err *err)
{
    char whole[PATH_MAX];
    bool is_short = snprintf(whole, sizeof whole, "%s/%s", target_dir, folders) < (int)sizeof whole;
    struct finish_folder *known = memo != NULL && is_short ? &memo->target : NULL;
    int target = folder_recall(known, -1, whole);
    *ret_borrowed = target >= 0;
    if (*ret_borrowed)
        return target;
    int base = folder_make(target_dir);
    target = base < 0 ? -1 : folder_walk(base, folders, true);
    if (target < 0)
        err_set(err, ERR_SYSTEM, true, "move to %s: make the folder %s: %s", target_dir,
                base < 0 ? target_dir : folders, strerror(errno));
    if (base >= 0)
        close(base);
    *ret_borrowed = target >= 0 && folder_remember(known, -1, whole, target);
    return target;
}

enum err_code finish_move(struct finish_memo *memo, int dirfd, const char *path, const struct file_id *id,
                          const char *target_dir, bool flat, char *ret_place, struct err *err)
{
    char folders[PATH_MAX] = "", name[NAME_MAX + 1];
    const char *slash = strrchr(path, '/');
    if (ret_place != NULL)
        ret_place[0] = '\0';
    if (!flat && slash != NULL &&
        snprintf(folders, sizeof folders, "%.*s", (int)(slash - path), path) >= (int)sizeof folders)
        return err_set(err, ERR_SYSTEM, false, "move to %s: the path is too long", target_dir);
    /* The target first: a full or forbidden one must not make the file go aside and back with every attempt. */
    bool is_borrowed;
    int target = open_target(memo, target_dir, folders, &is_borrowed, err);
    if (target < 0)
        return ERR_SYSTEM;
    struct aside a;
    enum err_code code = take_aside(&a, memo, dirfd, path, id, err);
    if (code == ERR_NONE && !a.is_gone) {
        code = place_file(a.hold, a.held, a.can_read ? a.fd : -1, target, a.name, name, err);
        if (code != ERR_NONE) {
            err_wrap(err, "move to %s", target_dir);
            put_back(&a, err);
        } else if (ret_place != NULL && snprintf(ret_place, PATH_MAX, "%s%s%s/%s", target_dir,
                                                 *folders != '\0' ? "/" : "", folders, name) >= PATH_MAX) {
            snprintf(ret_place, PATH_MAX, "%s", target_dir); /* folders can be nested deeper than a path can say */
        }
        release(&a);
    }
    if (!is_borrowed)
        close(target);
    return code;
}

void finish_find(const char *target_dir, const char *path, const struct file_id *id, char *ret_place)
{
    char folders[PATH_MAX] = "", name[NAME_MAX + 1];
    const char *slash = strrchr(path, '/'), *last = slash != NULL ? slash + 1 : path;
    ret_place[0] = '\0';
    if (slash != NULL)
        snprintf(folders, sizeof folders, "%.*s", (int)(slash - path), path);
    int base = open(target_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int target = base < 0 ? -1 : folder_walk(base, folders, false);
    if (base >= 0)
        close(base);
    for (unsigned suffix = 0; target >= 0 && suffix <= SUFFIX_MAX; suffix++) {
        struct stat st;
        name_with_suffix(last, suffix, name);
        if (fstatat(target, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            break;
        if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != id->size ||
            st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec != id->mtime_ns)
            continue;
        if (snprintf(ret_place, PATH_MAX, "%s%s%s/%s", target_dir, *folders != '\0' ? "/" : "", folders, name) >=
            PATH_MAX)
            ret_place[0] = '\0';
        break;
    }
    if (target >= 0)
        close(target);
}

/* What lies in HOLD goes back to FOLDER. Names are read first: renaming while reading may show a name twice. */
static enum err_code bring_back(int folder, int hold, struct err *err)
{
    const size_t prefix = hold == folder ? strlen(ASIDE_PREFIX) : 0;
    int fd = openat(hold, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir == NULL) {
        err_set(err, ERR_SYSTEM, true, "look for files that a kill left aside: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return ERR_SYSTEM;
    }
    struct err problem = {.code = ERR_NONE};
    for (struct dirent *entry; (errno = 0, entry = readdir(dir)) != NULL;) {
        struct aside a = {.folder = folder, .fd = -1, .hold = hold, .name = entry->d_name + prefix};
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (prefix > 0 && strncmp(entry->d_name, COPY_PREFIX, strlen(COPY_PREFIX)) == 0)
            unlinkat(hold, entry->d_name, 0);
        if (prefix > 0 && strncmp(entry->d_name, ASIDE_PREFIX, prefix) != 0)
            continue;
        snprintf(a.held, sizeof a.held, "%s", entry->d_name);
        put_back(&a, NULL);
        struct stat st;
        if (fstatat(hold, a.held, &st, AT_SYMLINK_NOFOLLOW) == 0)
            err_set(&problem, ERR_SYSTEM, true, "%s was left aside and could not get its name back: %s", a.held,
                    "rename it by hand, without its prefix");
    }
    closedir(dir);
    if (problem.code != ERR_NONE)
        return err_set(err, problem.code, problem.retryable, "%s", problem.text);
    return ERR_NONE;
}

enum err_code finish_recover(int dirfd, const char *folder, struct err *err)
{
    int fd = folder_walk(dirfd, folder, false);
    if (fd < 0)
        return errno == ENOENT || errno == ELOOP || errno == ENOTDIR
                   ? ERR_NONE
                   : err_set(err, ERR_SYSTEM, true, "open the folder %s: %s", folder, strerror(errno));
    enum err_code code = bring_back(fd, fd, err);
    int hold = openat(fd, ASIDE_FOLDER, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (hold >= 0) {
        enum err_code more = bring_back(fd, hold, err);
        if (code == ERR_NONE)
            code = more;
        close(hold);
        unlinkat(fd, ASIDE_FOLDER, AT_REMOVEDIR);
    }
    close(fd);
    return code;
}
