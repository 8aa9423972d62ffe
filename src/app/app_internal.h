/* app_internal.h -- what the files of this room share. */
#ifndef CHUTE_APP_INTERNAL_H
#define CHUTE_APP_INTERNAL_H

#include "admin.h"
#include "app.h"
#include "args.h"
#include "config.h"
#include "job.h"

#include <limits.h>
#include <stdio.h>

#define EXIT_FINE 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define EXIT_CONFIG 78 /* EX_CONFIG */

/* "chute: ..." to standard error. */
void tell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- commands.c: the table ---- */
extern const struct arg_command app_commands[];
extern const struct arg_option app_common_options[];

/* ---- help.c ---- */
int run_help(const struct args *args);
int run_completion(const struct args *args);
int run_version(const struct args *args);
void help_command(const struct arg_command *c, FILE *out);
void help_overview(FILE *out);

/* ---- find.c: which configuration, which state folder ---- */
/*
 * The configuration a command line means. *RET NULL with code 0: there is none. Else what went wrong was told; the
 * exit code is returned. *RET_FILE gets the absolute path it was read from ("" from the command line).
 */
int find_config(const struct args *args, bool is_needed, struct config **ret, char ret_file[PATH_MAX]);
/* What --state says (its last value that is no state's name), absolute; NULL: not given. RET has PATH_MAX bytes. */
const char *find_state(const struct args *args, char *ret);
/* Read FILE and tell all its errors. */
int read_config(const char *file, struct config **ret);

/* ---- daemon.c: every room, opened in order, and the loop ---- */
struct daemon;
struct daemon_options {
    struct config *config;      /* the daemon's from now on */
    const char *file;           /* read again on HUP; "" none */
    const char *state_override; /* --state; NULL none */
    bool once;                  /* end when all there is to do now is done */
    bool has_admin;             /* control socket and http */
    bool no_sources;            /* watch nothing: files come by engine_offer() */
    bool by_hand;               /* an errand: no pipeline runs by itself */
    bool quiet;                 /* the caller tells how each file ended */
    uint64_t deadline_ms;       /* 0 none */
    /* Once, when all is open, on the loop's thread; may be NULL. ERR: close again. */
    enum err_code (*on_open)(void *arg, struct daemon *d, struct err *err);
    /* Before the rooms are closed; may be NULL. */
    void (*on_end)(void *arg, struct daemon *d);
    void *arg;
};
/* Runs until stopped. Returns the exit code; what went wrong was logged. */
int daemon_run(const struct daemon_options *options);
/* End it, from its loop. */
void daemon_stop(struct daemon *d, int exit_code);
struct engine *daemon_engine(struct daemon *d);
struct ledger *daemon_ledger(struct daemon *d);
uv_loop_t *daemon_loop(struct daemon *d);

/* ---- run.c, load.c, check.c, init.c ---- */
int run_run(const struct args *args);
int run_load(const struct args *args);
int run_check(const struct args *args);
int run_init(const struct args *args);

/* ---- context.c: status receipts explain retry reset reload ---- */
int run_status(const struct args *args);
int run_receipts(const struct args *args);
int run_explain(const struct args *args);
int run_retry(const struct args *args);
int run_reset(const struct args *args);
int run_pipeline(const struct args *args);
int run_reload(const struct args *args);

/* An engine for one errand of a command (reset) while no daemon runs. See struct command_context. */
enum err_code daemon_errand(const struct command_context *c, void (*work)(void *arg, struct engine *e), void *arg,
                            bool *is_done, struct err *err);

#endif
