/* state.c -- see state.h. */
#include "state.h"

#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static enum err_code make_folders(const char *dir, struct err *err)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s", dir) >= sizeof path)
        return err_set(err, ERR_CONFIG, false, "state folder: the path is too long: %s", dir);
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0755) != 0 && errno != EEXIST && errno != EROFS && errno != EACCES)
            return err_set(err, ERR_SYSTEM, true, "state folder: create %s: %s", path, strerror(errno));
        *slash = '/';
    }
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return err_set(err, ERR_SYSTEM, true,
                       "state folder: create %s: %s (choose another with `state:` or --state DIR)", path,
                       strerror(errno));
    return ERR_NONE;
}

/* Who holds the lock of FD, as it wrote there. */
static enum err_code held(int fd, const char *dir, struct err *err)
{
    char text[300], host[256] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    long pid = strtol(text, NULL, 10);
    char *space = strchr(text, ' ');
    if (space != NULL)
        snprintf(host, sizeof host, " on %.*s", (int)strcspn(space + 1, "\n"), space + 1);
    if (pid <= 0)
        return err_set(err, ERR_CONFIG, true,
                       "another chute uses the state folder %s; stop it, or give this one its own with --state DIR",
                       dir);
    return err_set(
        err, ERR_CONFIG, true,
        "another chute uses the state folder %s: process %ld%s; stop it, or give this one its own with --state DIR",
        dir, pid, host);
}

enum err_code state_lock(const char *dir, int *ret_fd, struct err *err)
{
    if (make_folders(dir, err) != ERR_NONE)
        return err->code;
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/lock", dir) >= sizeof path)
        return err_set(err, ERR_CONFIG, false, "state folder: the path is too long: %s", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_set(err, ERR_SYSTEM, true, "state folder: open %s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK)
            held(fd, dir, err);
        else
            err_set(err, ERR_SYSTEM, true, "state folder: lock %s: %s", path, strerror(errno));
        close(fd);
        return err->code;
    }
    char text[300], host[200] = "?";
    gethostname(host, sizeof host - 1);
    int n = snprintf(text, sizeof text, "%ld %s\n", (long)getpid(), host);
    /* Who we are only helps the next one's message: a full disk must not keep us from starting here. */
    if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)n, 0) != n)
        (void)ftruncate(fd, 0);
    *ret_fd = fd;
    return ERR_NONE;
}

static enum err_code keep_instance(int folder, const char *text, struct err *err)
{
    int fd = openat(folder, "instance.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, ERR_SYSTEM, true, "state folder: create instance: %s", strerror(errno));
    bool is_written = write(fd, text, 32) == 32 && write(fd, "\n", 1) == 1 && fsync(fd) == 0;
    int error = errno;
    if (close(fd) != 0 || !is_written || renameat(folder, "instance.new", folder, "instance") != 0 ||
        fsync(folder) != 0) {
        err_set(err, ERR_SYSTEM, true, "state folder: write instance: %s", strerror(is_written ? errno : error));
        unlinkat(folder, "instance.new", 0);
        return err->code;
    }
    return ERR_NONE;
}

enum err_code state_instance(const char *dir, char ret[33], struct err *err)
{
    int folder = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return err_set(err, ERR_SYSTEM, true, "state folder: open %s: %s", dir, strerror(errno));
    enum err_code code = ERR_NONE;
    uint8_t bytes[16];
    int fd = openat(folder, "instance", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, ret, 32);
        close(fd);
        ret[n > 0 ? n : 0] = '\0';
        if (n == 32 && text_unhex(ret, bytes, 16))
            goto out;
        /* A file cut short by a crash of the machine: no receipt can have used it, make another. */
    }
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) {
        code = err_set(err, ERR_SYSTEM, true, "random bytes: %s", strerror(errno));
        goto out;
    }
    text_hex(bytes, sizeof bytes, ret);
    code = keep_instance(folder, ret, err);
out:
    close(folder);
    return code;
}

enum err_code state_socket(const char *dir, struct sockaddr_un *ret, int *ret_fd, struct err *err)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    *ret_fd = -1;
    if ((size_t)snprintf(ret->sun_path, sizeof ret->sun_path, "%s/chute.sock", dir) < sizeof ret->sun_path)
        return ERR_NONE;
    *ret_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*ret_fd < 0)
        return err_set(err, ERR_SYSTEM, true, "state folder: open %s: %s", dir, strerror(errno));
    snprintf(ret->sun_path, sizeof ret->sun_path, "/proc/self/fd/%d/chute.sock", *ret_fd);
    return ERR_NONE;
}
