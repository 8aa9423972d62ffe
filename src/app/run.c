/* run.c -- `chute run`, and the commands that need to know where the state is. */
#include "app_internal.h"

#include "text.h"

#include <stdlib.h>
#include <string.h>

#define DEADLINE_MS (10 * 60 * 1000)

/* Without a file: --watch DIR --to URL. */
static int quick_config(const struct args *args, const char *state, struct config **ret)
{
    struct err err = {0};
    struct config_quick quick = {.profile = args_value(args, "profile"),
                                 .watch = args_value(args, "watch"),
                                 .to = args_value(args, "to"),
                                 .state = state};
    if (args_has(args, "config") || quick.watch == NULL || quick.to == NULL) {
        tell(args_has(args, "config")
                 ? "run: expected either -c FILE, or --watch DIR --to URL, not both"
                 : "run: without a configuration file expected --watch DIR and --to URL. See: chute help run");
        return EXIT_USAGE;
    }
    if (config_quick(&quick, &app_drivers, ret, &err) != ERR_NONE) {
        tell("run: %s", err.text);
        return err.code == ERR_CONFIG ? EXIT_USAGE : EXIT_FAILED; /* the command line is all there is to it */
    }
    return EXIT_FINE;
}

int run_run(const struct args *args)
{
    struct config *config = NULL;
    char file[PATH_MAX] = "", state_path[PATH_MAX];
    const char *state = find_state(args, state_path), *deadline = args_value(args, "deadline");
    uint64_t deadline_ms = DEADLINE_MS;
    bool once = args_has(args, "once");
    if (deadline != NULL && (!once || !text_parse_duration(deadline, &deadline_ms) || deadline_ms == 0)) {
        tell(once ? "--deadline %s: expected a duration such as 90s, 10m or 2h" : "--deadline %s: only with --once",
             deadline);
        return EXIT_USAGE;
    }
    bool is_quick = args_has(args, "watch") || args_has(args, "to") || args_has(args, "profile");
    int code = is_quick ? quick_config(args, state, &config) : find_config(args, true, &config, file);
    if (code != EXIT_FINE)
        return code;
    struct daemon_options options = {.config = config,
                                     .file = file,
                                     .state_override = state,
                                     .once = once,
                                     .has_admin = true,
                                     .deadline_ms = once ? deadline_ms : 0};
    return daemon_run(&options);
}
