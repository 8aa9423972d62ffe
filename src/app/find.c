/* find.c -- which configuration and which state folder a command line means. */
#include "app_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const places[] = {"chute.yaml", "/etc/chute/chute.yaml", NULL};

void tell(const char *fmt, ...)
{
    va_list args;
    fputs("chute: ", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}

int read_config(const char *file, struct config **ret)
{
    struct err err = {0};
    char *errors = NULL;
    if (config_load(file, &app_drivers, ret, &errors, &err) == ERR_NONE) {
        config_use_timezone(*ret); /* a command begins with this, before it has threads */
        free(errors);
        return EXIT_FINE;
    }
    /* as they are, "FILE:LINE:COLUMN: ...", so that editors can jump to them */
    fprintf(stderr, "%s\n", errors != NULL ? errors : err.text);
    free(errors);
    *ret = NULL;
    return err.code == ERR_CONFIG ? EXIT_CONFIG : EXIT_FAILED;
}

static bool is_file_state(const char *word)
{
    for (int s = 0; s < FILE_STATES; s++) {
        if (strcmp(word, file_state_names[s]) == 0)
            return true;
    }
    return false;
}

const char *find_state(const struct args *args, char *ret)
{
    bool is_status = args->command != NULL && strcmp(args->command->name, "status") == 0;
    for (size_t i = args->given_count; i > 0; i--) {
        const char *value = args->given[i - 1].value;
        if (strcmp(args->given[i - 1].option->name, "state") != 0 || (is_status && is_file_state(value)))
            continue;
        char cwd[PATH_MAX];
        if (value[0] == '/' || getcwd(cwd, sizeof cwd) == NULL)
            snprintf(ret, PATH_MAX, "%s", value);
        else if ((size_t)snprintf(ret, PATH_MAX, "%s/%s", cwd, value) >= PATH_MAX)
            ret[0] = '\0'; /* too long for the system: refused when it is opened */
        return ret;
    }
    return NULL;
}

int find_config(const struct args *args, bool is_needed, struct config **ret, char ret_file[PATH_MAX])
{
    *ret = NULL;
    ret_file[0] = '\0';
    const char *file = args_value(args, "config");
    for (size_t i = 0; file == NULL && places[i] != NULL; i++) {
        if (access(places[i], F_OK) == 0)
            file = places[i];
    }
    if (file == NULL) {
        if (!is_needed)
            return EXIT_FINE;
        tell("no configuration: looked for ./%s and %s; name one with -c FILE, or write one with: chute init file2sql",
             places[0], places[1]);
        return EXIT_CONFIG;
    }
    /* not resolved: where the file is a link that is set anew (a mounted configuration), HUP must follow it again */
    char cwd[PATH_MAX];
    int length = file[0] == '/' || getcwd(cwd, sizeof cwd) == NULL ? snprintf(ret_file, PATH_MAX, "%s", file)
                                                                   : snprintf(ret_file, PATH_MAX, "%s/%s", cwd, file);
    if (length >= PATH_MAX) {
        tell("%s: the path is too long", file);
        return EXIT_CONFIG;
    }
    return read_config(ret_file, ret);
}
