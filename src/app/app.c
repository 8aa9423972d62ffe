/* app.c -- what is true for every command: a hardened process, arguments taken apart, one command run. */
#include "app_internal.h"

#include <malloc.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#if defined(__SANITIZE_ADDRESS__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED 0
#endif

static void harden(void)
{
    /* A core dump would hold tokens and rows. The limit stops files; the flag also stops dumps into a pipe. The leak
     * checker of sanitized builds needs to look into its own process, so they keep the flag. */
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    if (!IS_SANITIZED)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    umask(umask(077) | 022);  /* never writable for others, whatever the caller's mask */
    signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error of a write, not our end */
    signal(SIGIO, SIG_IGN);   /* a broken lease (settle's writer check) is seen by looking */
}

/* Before any thread exists. */
static void stay_small(void)
{
    mallopt(M_ARENA_MAX, 2);
    mallopt(M_MMAP_THRESHOLD, 128 * 1024); /* fixed: large buffers go back to the system when freed */
    mallopt(M_TRIM_THRESHOLD, 1024 * 1024);
    mallopt(M_TOP_PAD, 512 * 1024);
    setenv("UV_THREADPOOL_SIZE", "4", 0);
    /*
     * What a savepoint may have to undo stays in memory up to here: with the default of 64 KiB nearly every file's page
     * goes to a temporary file as well. Not beyond 128 KiB: SQLite 3.40 spills all of it in one write, of whose size
     * its file system layer keeps 17 bits; 1 MiB is written as nothing and told as a full disk.
     */
    sqlite3_config(SQLITE_CONFIG_STMTJRNL_SPILL, 124 * 1024);
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0); /* a global lock at each allocation, for numbers nobody reads */
}

int app_main(int argc, char **argv)
{
    harden();
    stay_small();
    struct args args;
    struct err err = {0};
    if (args_parse(app_commands, app_common_options, argc, argv, &args, &err) != ERR_NONE) {
        tell("%s", err.text);
        return EXIT_USAGE;
    }
    if (args_has(&args, "version"))
        return run_version(&args);
    if (args.command == NULL) {
        bool is_asked = args_has(&args, "help");
        help_overview(is_asked ? stdout : stderr);
        return is_asked ? EXIT_FINE : EXIT_USAGE;
    }
    if (args_has(&args, "help")) {
        help_command(args.command, stdout);
        return EXIT_FINE;
    }
    int code = args.command->run(&args);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        tell("standard output: it can't be written");
        return code == EXIT_FINE ? EXIT_FAILED : code;
    }
    return code;
}
