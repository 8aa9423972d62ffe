/* dir_path.c -- open and look below the root; no link, no ".." and no race leads out of it. */
#include "dir_internal.h"

#include "err.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Kernels before 5.6 and some seccomp filters have no openat2: segment by segment, no links at all. */
static int open_by_segments(int root_fd, const char *path, int flags)
{
    int at = fcntl(root_fd, F_DUPFD_CLOEXEC, 3);
    while (at >= 0) {
        size_t n = strcspn(path, "/");
        char name[NAME_MAX + 1];
        if (n == 0 || n > NAME_MAX || (n == 1 && path[0] == '.') || (n == 2 && path[0] == '.' && path[1] == '.')) {
            close(at);
            errno = n > NAME_MAX ? ENAMETOOLONG : EXDEV;
            return -1;
        }
        memcpy(name, path, n);
        name[n] = '\0';
        bool is_last = path[n] == '\0';
        int next = openat(at, name, is_last ? flags | O_NOFOLLOW : O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int saved = errno;
        close(at);
        errno = saved;
        if (is_last || next < 0)
            return next;
        at = next;
        path += n + 1;
    }
    return -1;
}

int dir_open_below(int root_fd, const char *path, int flags, bool is_strict)
{
    if (root_fd < 0) {
        errno = ENOENT;
        return -1;
    }
    if (path[0] == '\0')
        return openat(root_fd, ".", flags);
    struct open_how how = {
        .flags = (uint64_t)(unsigned)flags,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | (is_strict ? RESOLVE_NO_SYMLINKS : 0),
    };
    for (int tries = 0; tries < 16; tries++) {
        long fd = syscall(SYS_openat2, root_fd, path, &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        if (errno == ENOSYS || errno == EPERM)
            return open_by_segments(root_fd, path, flags);
        if (errno != EAGAIN) /* a rename somewhere raced with "..": the kernel asks to try again */
            return -1;
    }
    return -1;
}

void dir_file_id(const struct stat *st, struct file_id *ret)
{
    ret->size = (uint64_t)st->st_size;
    ret->mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    ret->ctime_ns = (int64_t)st->st_ctim.tv_sec * 1000000000 + st->st_ctim.tv_nsec;
    ret->inode = st->st_ino;
    ret->dev = st->st_dev;
}

bool dir_look(int root_fd, const char *path, struct file_id *ret, uint64_t *ret_links)
{
    /* O_PATH: neither blocks on a FIFO nor needs permission to read, and says what a link inside the root leads to. */
    int fd = dir_open_below(root_fd, path, O_PATH | O_CLOEXEC, false);
    if (fd < 0)
        return false;
    struct stat st;
    bool is_file = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    close(fd);
    if (!is_file)
        return false;
    dir_file_id(&st, ret);
    if (ret_links != NULL)
        *ret_links = st.st_nlink;
    return true;
}

bool dir_identity(int fd, char *ret, size_t size)
{
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0)
        return false;
    /* The file system's own id where it has one: device numbers are dealt out anew at every boot. */
    uint32_t words[2];
    _Static_assert(sizeof words == sizeof fs.f_fsid, "f_fsid is two words");
    memcpy(words, &fs.f_fsid, sizeof words);
    uint64_t id = (uint64_t)words[1] << 32 | words[0];
    snprintf(ret, size, "%" PRIx64 ":%" PRIu64, id != 0 ? id : (uint64_t)st.st_dev, (uint64_t)st.st_ino);
    return true;
}

const char *dir_remote_name(int fd)
{
    static const struct {
        uint32_t magic;
        const char *name;
    } remote[] = {
        {0x6969, "nfs"},        {0xff534d42, "cifs"},   {0xfe534d42, "smb"},    {0x517b, "smb"},
        {0x65735546, "fuse"},   {0x01021997, "9p"},     {0x5346414f, "afs"},    {0x00c36400, "ceph"},
        {0x73757245, "coda"},   {0x564c, "ncp"},        {0x7461636f, "ocfs2"},  {0x01161970, "gfs2"},
        {0x0bd00bd0, "lustre"}, {0x786f4256, "vboxsf"}, {0x7c7c6673, "prl_fs"}, {0x19830326, "beegfs"},
        {0xaad7aaea, "panfs"},  {0x47504653, "gpfs"},
    };
    struct statfs fs;
    if (fstatfs(fd, &fs) != 0)
        return NULL;
    for (size_t i = 0; i < sizeof remote / sizeof remote[0]; i++)
        if ((uint32_t)fs.f_type == remote[i].magic)
            return remote[i].name;
    return NULL;
}

int dir_open_now(void *state, const char *path, struct err *err)
{
    struct dir_source *s = state;
    /* O_NONBLOCK: a FIFO with that name must not hold a pool thread. O_NOATIME is the owner's privilege. */
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    int status = O_NOATIME; /* of the flags that a file keeps: what remains without O_NONBLOCK */
    uv_mutex_lock(&s->lock);
    int root_fd = s->root_fd;
    uv_mutex_unlock(&s->lock);
    int fd = dir_open_below(root_fd, path, flags | O_NOATIME, false);
    if (fd < 0 && errno == EPERM) {
        status = 0;
        fd = dir_open_below(root_fd, path, flags, false);
    }
    if (fd < 0) {
        int e = errno;
        if (e == EXDEV || e == ELOOP)
            err_set(err, ERR_INPUT, false, "%s/%s is a link that leads out of the source's folder; it is not followed",
                    s->root, path);
        else if (e == ENOENT || e == ENOTDIR || e == ENXIO)
            err_set(err, ERR_INPUT, false, "%s/%s is gone", s->root, path);
        else
            err_set(err, ERR_SYSTEM, true, "open %s/%s: %s", s->root, path, strerror(e));
        return -1;
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        err_set(err, ERR_INPUT, false, "%s/%s is not a regular file", s->root, path);
        return -1;
    }
    fcntl(fd, F_SETFL, status);
    return fd;
}

/* ---- probe: look at many paths */

struct look {
    struct work work;
    struct dir_source *src;
    struct probe *probes;
    size_t count;
    probe_cb *cb;
    void *cb_arg;
    char expected[64];
    int root_fd;
};

/* Can the root be trusted: is it still at its path, listed, and the one that the ledger knows? */
static bool root_is_known(const struct look *l)
{
    if (l->root_fd < 0)
        return false;
    int fd = open(l->src->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    char id[64], ours[64];
    bool is_known = dir_identity(fd, id, sizeof id) && dir_identity(l->root_fd, ours, sizeof ours) &&
                    strcmp(id, ours) == 0 && (l->expected[0] == '\0' || strcmp(id, l->expected) == 0);
    close(fd);
    return is_known;
}

/* Gone means: the nearest parent that exists could be listed. Not found and not allowed to look are different things.
 */
static enum probe_answer answer_missing(int root_fd, const char *path)
{
    char parent[PATH_MAX];
    size_t n = strlen(path);
    if (n >= sizeof parent)
        return PROBE_UNKNOWN;
    memcpy(parent, path, n + 1);
    for (;;) {
        char *slash = strrchr(parent, '/');
        if (slash != NULL)
            *slash = '\0';
        else
            parent[0] = '\0';
        int fd = dir_open_below(root_fd, parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC, true);
        if (fd >= 0) {
            close(fd);
            return PROBE_GONE;
        }
        if (errno == ELOOP && parent[0] != '\0')
            continue; /* a link stands where the folder was: look at the folder above */
        if ((errno != ENOENT && errno != ENOTDIR) || parent[0] == '\0')
            return PROBE_UNKNOWN;
    }
}

static void run_look(struct work *work)
{
    struct look *l = (struct look *)work;
    bool is_known = root_is_known(l);
    for (size_t i = 0; i < l->count; i++) {
        struct probe *p = &l->probes[i];
        memset(&p->id, 0, sizeof p->id);
        p->answer = PROBE_UNKNOWN;
        if (!is_known || atomic_load(&l->src->is_closing))
            continue;
        int fd = dir_open_below(l->root_fd, p->path, O_PATH | O_CLOEXEC, false);
        struct stat st;
        if (fd >= 0 && fstat(fd, &st) == 0) {
            if (S_ISREG(st.st_mode)) {
                dir_file_id(&st, &p->id);
                p->answer = PROBE_PRESENT;
            } else {
                p->answer = PROBE_GONE; /* something else has taken its name */
            }
        } else if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == EXDEV || errno == ELOOP)) {
            p->answer = answer_missing(l->root_fd, p->path);
        }
        if (fd >= 0)
            close(fd);
    }
    if (is_known && !root_is_known(l)) /* unmounted while we looked */
        for (size_t i = 0; i < l->count; i++)
            if (l->probes[i].answer == PROBE_GONE)
                l->probes[i].answer = PROBE_UNKNOWN;
}

static void done_look(struct work *work)
{
    struct look *l = (struct look *)work;
    struct dir_source *s = l->src;
    l->cb(l->cb_arg, l->probes, l->count);
    free(l);
    s->looks--;
    dir_maybe_closed(s);
}

enum err_code dir_probe(void *state, struct probe *probes, size_t count, probe_cb *cb, void *arg, struct err *err)
{
    struct dir_source *s = state;
    struct look *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_nomem(err);
    l->src = s;
    l->probes = probes;
    l->count = count;
    l->cb = cb;
    l->cb_arg = arg;
    l->root_fd = s->root_fd;
    memcpy(l->expected, s->expected, sizeof l->expected);
    if (work_start(s->loop, &l->work, run_look, done_look, err) != ERR_NONE) {
        free(l);
        return err->code;
    }
    s->looks++;
    return ERR_NONE;
}
