/*
 * admin.h -- the control socket, the http endpoints, and the commands that use them.
 *
 * It reads the engine and the ledger, and asks the engine for retry, reset and reload. It must never block the loop:
 * answers that need the ledger go through ledger_run().
 *
 * Control socket: <state>/chute.sock, mode 0600. One JSON object a line each way:
 * {"command":"status"} -> {"ok":true,...} or {"ok":false,"error":"..."}.
 */
#ifndef CHUTE_ADMIN_H
#define CHUTE_ADMIN_H

#include "args.h"
#include "config.h"
#include "err.h"
#include "job.h"
#include "ledger.h"

#include <uv.h>

struct admin;
struct admin_options {
    uv_loop_t *loop;
    struct config *config; /* takes a reference */
    struct ledger *ledger;
    struct engine *engine;
    void (*reload)(void *arg, struct err *err); /* what HUP does */
    void *arg;
};
enum err_code admin_open(const struct admin_options *options, struct admin **ret, struct err *err);
/* After a reload: http listens elsewhere if `http.listen` changed. On error the old one goes on. */
enum err_code admin_reconfigure(struct admin *a, struct config *config, struct err *err);
void admin_close(struct admin *a, void (*closed)(void *arg), void *arg);
/* USR1: the state, as log lines. */
void admin_log_state(struct admin *a);

/*
 * The commands. They return the exit code. Data goes to standard output, talk to standard error. They work beside a
 * running daemon (by its socket, or by reading the ledger) and without one.
 */
struct command_context {
    const struct config_drivers *drivers;
    struct config *config; /* NULL: none could be found; commands then use only STATE */
    const char *state;     /* absolute */
    /*
     * What needs an engine while no daemon runs: open one on STATE, call WORK(ARG, engine, done_arg), turn the loop
     * until work_done, close all. Given by the application; returns ERR_NONE when the engine could be opened and
     * closed.
     */
    enum err_code (*with_engine)(const struct command_context *c, void (*work)(void *arg, struct engine *e), void *arg,
                                 bool *is_done, struct err *err);
};
int command_status(const struct command_context *c, const struct args *args);
int command_receipts(const struct command_context *c, const struct args *args);
int command_explain(const struct command_context *c, const struct args *args);
int command_retry(const struct command_context *c, const struct args *args);
int command_reset(const struct command_context *c, const struct args *args);
int command_pipeline(const struct command_context *c, const struct args *args);
int command_reload(const struct command_context *c, const struct args *args);

#endif
