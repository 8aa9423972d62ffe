/* init.c -- `chute init`: a commented configuration to start from. It must never overwrite anything. */
#include "app_internal.h"

#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Nothing is written unless all can be: half a set of files would be a puzzle. */
static bool is_free(const char *dir, const char *name, const char *profile)
{
    char path[PATH_MAX];
    struct stat st;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path) {
        tell("init: the path is too long: %s", dir);
        return false;
    }
    if (lstat(path, &st) == 0) {
        tell("init: %s exists and is left as it is; choose another folder: chute init %s DIR", path, profile);
        return false;
    }
    return true;
}

/* TEXT as DIR/NAME, whose folder is made and told on standard output. */
static bool write_new(const char *dir, const char *name, const char *text)
{
    char path[PATH_MAX];
    const char *slash = strrchr(name, '/');
    if (slash != NULL) {
        snprintf(path, sizeof path, "%s/%.*s", dir, (int)(slash - name), name);
        if (mkdir(path, 0755) != 0 && errno != EEXIST) {
            tell("init: create %s: %s", path, strerror(errno));
            return false;
        }
    }
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        tell("init: create %s: %s", path, strerror(errno));
        return false;
    }
    size_t size = strlen(text);
    bool is_written = write(fd, text, size) == (ssize_t)size && fsync(fd) == 0;
    int error = errno;
    if (close(fd) == 0 && is_written) {
        printf("%s\n", path);
        return true;
    }
    unlink(path);
    tell("init: write %s: %s", path, strerror(is_written ? errno : error));
    return false;
}

int run_init(const struct args *args)
{
    const char *profile = args->operands[0], *dir = args->operand_count > 1 ? args->operands[1] : ".";
    const char *text = config_profile_text(profile);
    if (text == NULL) {
        const char *near = text_nearest(profile, config_profiles);
        fprintf(stderr, "chute: init: there is no profile %s%s%s%s; there are:", profile,
                near != NULL ? " (did you mean " : "", near != NULL ? near : "", near != NULL ? "?)" : "");
        for (const char *const *p = config_profiles; *p != NULL; p++)
            fprintf(stderr, " %s", *p);
        fputc('\n', stderr);
        return EXIT_USAGE;
    }
    if (mkdir(dir, 0755) != 0 && errno != EEXIST) {
        tell("init: create %s: %s", dir, strerror(errno));
        return EXIT_FAILED;
    }
    /* The scripts first: who has a chute.yaml has all that it names. */
    const char *const *files = config_profile_files(profile);
    if (!is_free(dir, "chute.yaml", profile))
        return EXIT_FAILED;
    for (size_t i = 0; files != NULL && files[i] != NULL; i += 2)
        if (!is_free(dir, files[i], profile))
            return EXIT_FAILED;
    for (size_t i = 0; files != NULL && files[i] != NULL; i += 2)
        if (!write_new(dir, files[i], files[i + 1]))
            return EXIT_FAILED;
    if (!write_new(dir, "chute.yaml", text))
        return EXIT_FAILED;
    /* the folder that it watches, so that what is said next works; a configuration is of use without it as well */
    char inbox[PATH_MAX];
    if ((size_t)snprintf(inbox, sizeof inbox, "%s/inbox", dir) < sizeof inbox && mkdir(inbox, 0755) != 0 &&
        errno != EEXIST)
        tell("init: create %s: %s; the folder is looked for again by itself", inbox, strerror(errno));
    tell("look through it, then: chute check -c %s/chute.yaml && chute run -c %s/chute.yaml", dir, dir);
    return EXIT_FINE;
}
