/* context.c -- the commands that look at a daemon or its ledger: where that is, and then the admin room's answer. */
#include "app_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* With --state alone a configuration is welcome, not needed: it may be broken, or want secrets we don't have. */
static int with_context(const struct args *args,
                        int (*command)(const struct command_context *c, const struct args *args))
{
    char file[PATH_MAX], state[PATH_MAX];
    struct command_context context = {.drivers = &app_drivers, .with_engine = daemon_errand};
    const char *given = find_state(args, state);
    int code = EXIT_FINE;
    if (given == NULL || args_has(args, "config")) {
        code = find_config(args, false, &context.config, file);
    } else if (access("chute.yaml", R_OK) == 0) {
        struct err ignored = {0};
        char *errors = NULL;
        char cwd[PATH_MAX - 16];
        if (getcwd(cwd, sizeof cwd) != NULL) {
            snprintf(file, sizeof file, "%s/chute.yaml", cwd);
            if (config_load(file, &app_drivers, &context.config, &errors, &ignored) != ERR_NONE)
                context.config = NULL;
            else
                config_use_timezone(context.config);
            free(errors);
        }
    }
    if (code != EXIT_FINE) {
        tell("to look at a state folder without its configuration, name it with --state DIR");
        return code;
    }
    if (given == NULL && context.config != NULL) {
        snprintf(state, sizeof state, "%s", context.config->state);
    } else if (given == NULL) {
        char cwd[PATH_MAX - 8];
        if (getcwd(cwd, sizeof cwd) == NULL) {
            tell("the current folder has no path; name the state folder with --state DIR");
            return EXIT_FAILED;
        }
        snprintf(state, sizeof state, "%s/.chute", cwd);
    }
    context.state = state;
    code = command(&context, args);
    config_unref(context.config);
    return code;
}

int run_status(const struct args *args)
{
    return with_context(args, command_status);
}

int run_receipts(const struct args *args)
{
    return with_context(args, command_receipts);
}

int run_explain(const struct args *args)
{
    return with_context(args, command_explain);
}

int run_retry(const struct args *args)
{
    return with_context(args, command_retry);
}

int run_reset(const struct args *args)
{
    return with_context(args, command_reset);
}

int run_reload(const struct args *args)
{
    return with_context(args, command_reload);
}

int run_pipeline(const struct args *args)
{
    return with_context(args, command_pipeline);
}
