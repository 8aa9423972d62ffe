/* init.c -- `chute init`: a commented configuration to start from. It must never overwrite anything. */
#include "app_internal.h"

#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/chute.yaml", dir) >= sizeof path) {
        tell("init: the path is too long: %s", dir);
        return EXIT_FAILED;
    }
    if (mkdir(dir, 0755) != 0 && errno != EEXIST) {
        tell("init: create %s: %s", dir, strerror(errno));
        return EXIT_FAILED;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        if (errno == EEXIST)
            tell("init: %s exists and is left as it is; choose another folder: chute init %s DIR", path, profile);
        else
            tell("init: create %s: %s", path, strerror(errno));
        return EXIT_FAILED;
    }
    size_t size = strlen(text);
    bool is_written = write(fd, text, size) == (ssize_t)size && fsync(fd) == 0;
    int error = errno;
    if (close(fd) != 0 || !is_written) {
        unlink(path);
        tell("init: write %s: %s", path, strerror(is_written ? errno : error));
        return EXIT_FAILED;
    }
    /* the folder that it watches, so that what is said next works; a configuration is of use without it as well */
    char inbox[PATH_MAX];
    if ((size_t)snprintf(inbox, sizeof inbox, "%s/inbox", dir) < sizeof inbox && mkdir(inbox, 0755) != 0 &&
        errno != EEXIST)
        tell("init: create %s: %s; the folder is looked for again by itself", inbox, strerror(errno));
    printf("%s\n", path);
    tell("look through it, then: chute check -c %s && chute run -c %s", path, path);
    return EXIT_FINE;
}
