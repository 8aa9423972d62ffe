/*
 * pipeline.h -- SQL scripts in a destination: when one is due, that it runs once for many reasons, and how it ended.
 *
 * Knows the ledger, and destinations only through the hooks that its owner (the engine) gives it: whether one is well,
 * run these scripts there, stop them. See DESIGN.md beside it for what is on disk before each step.
 *
 * Reasons to run: a load of a flow that says `then` (pipeline_want() in the ledger transaction that records the load,
 * then pipelines_wanted() on the loop), a schedule, and a person. One pipeline never overlaps itself, and one
 * destination runs one at a time, in the order of the configuration. All on the loop thread, except where said.
 */
#ifndef CHUTE_PIPELINE_H
#define CHUTE_PIPELINE_H

#include "arena.h"
#include "cron.h"
#include "dest.h"
#include "err.h"
#include "ledger.h"

#include <uv.h>

/* One pipeline as configured; read-only, outlives the set. */
struct pipeline_plan {
    const char *name, *dest;
    struct option_strings sql;
    const struct script_setting *settings;
    size_t setting_count;
    uint64_t every_ms;       /* 0: none */
    const struct cron *cron; /* NULL: none */
    uint64_t schedule;       /* hash of what cron says and in which zone: another one begins anew */
};

enum pipeline_trigger { TRIGGER_LOAD, TRIGGER_SCHEDULE, TRIGGER_HAND, PIPELINE_TRIGGERS };
extern const char *const pipeline_trigger_names[PIPELINE_TRIGGERS]; /* "load" "schedule" "hand" */

/* What the ledger remembers of one. Zeroed: it never ran. Times are wall clock ms. */
struct pipeline_facts {
    bool is_wanted;   /* a load asked for a run that has not ended yet */
    int64_t began_ms; /* of the last run */
    int64_t ended_ms;
    int64_t duration_ms; /* of its scripts */
    uint64_t statements; /* that it ran */
    int64_t good_ms;     /* when one last ended well; 0: never */
    int64_t served_ms;   /* what was due until then has run, or is not to be caught up */
    uint64_t schedule;   /* plan.schedule that SERVED_MS is of */
    enum pipeline_trigger trigger;
    char error[512];   /* of the last run; "" it was good */
    bool is_permanent; /* of ERROR: it is not tried again by itself */
};

enum pipeline_state { PIPELINE_IDLE, PIPELINE_WAITING, PIPELINE_RUNNING, PIPELINE_RETRYING, PIPELINE_STATES };
extern const char *const pipeline_state_names[PIPELINE_STATES]; /* "idle" "waiting" "running" "retrying" */

/* For status and metrics. Strings are the plan's and the set's. */
struct pipeline_status {
    const char *name, *dest;
    enum pipeline_state state;
    struct pipeline_facts facts;
    int64_t next_ms; /* next run: by schedule, or the next try; 0: none is known; in the past: as soon as possible */
    /* since the start of the process */
    uint64_t good, failed; /* runs */
    double seconds;
};

/* ---- the ledger's part: in a transaction, on its thread ---- */

/* A load was recorded whose flow says `then: NAME`. The run is owed from the commit on, over kills. */
enum err_code pipeline_want(struct ledger_tx *tx, const char *name, struct err *err);
enum err_code pipeline_facts_get(struct ledger_tx *tx, const char *name, struct pipeline_facts *ret, struct err *err);
/* The whole status of PLAN without a daemon. */
enum err_code pipeline_status_offline(struct ledger_tx *tx, const struct pipeline_plan *plan,
                                      struct pipeline_status *ret, struct err *err);

/* ---- the set of all pipelines of one configuration ---- */

enum pipeline_readiness {
    DEST_READY,
    DEST_WAITS,  /* not yet: it is being opened, or the ledger can't be written */
    DEST_REFUSES /* down or blocked: who asks by hand is told so */
};
struct pipeline_hooks {
    void *arg;
    /* DEST_REFUSES: why, into RET. */
    enum pipeline_readiness (*readiness)(void *arg, const char *dest, char *ret, size_t size);
    /* Loads are on their way into it: a run that follows loads waits for them to end, but not for long. */
    bool (*is_busy)(void *arg, const char *dest);
    /* As dest_ops. */
    enum err_code (*run)(void *arg, const char *dest, struct scripts *scripts, struct err *err);
    void (*abort)(void *arg, const char *dest, struct scripts *scripts);
    uint64_t (*backoff_ms)(void *arg, const char *dest, int64_t tries);
    void (*ledger_failed)(void *arg); /* it will call pipelines_pump() when the ledger works again */
    /* The set is in use between the two; CHANGED: it may be quiet now. */
    void (*hold)(void *arg);
    void (*release)(void *arg);
    void (*changed)(void *arg);
};

struct pipelines;
/* PLANS are borrowed. IS_AUTOMATIC false: only what is asked for by hand runs. Does nothing before pipelines_pump(). */
enum err_code pipelines_open(uv_loop_t *loop, struct ledger *ledger, const struct pipeline_plan *plans, size_t count,
                             const struct pipeline_hooks *hooks, bool is_automatic, struct pipelines **ret,
                             struct err *err);
/* Something changed for the better: a destination is well, the ledger works. Starts what is due. */
void pipelines_pump(struct pipelines *s);
/* pipeline_want(NAME) was committed. */
void pipelines_wanted(struct pipelines *s, const char *name);
/*
 * Run NAME now, or right after the run that is on. CB comes once, on a later turn, with the facts of that run; ERR: it
 * did not run or failed. ERR_CONFIG: there is none of that name (with a suggestion; CB never comes).
 */
typedef void pipeline_cb(void *arg, const struct pipeline_facts *facts, const struct err *err);
enum err_code pipelines_ask(struct pipelines *s, const char *name, pipeline_cb *cb, void *arg, struct err *err);
/* Nothing runs, and nothing is due now (what waits for a later time does not count). */
bool pipelines_are_quiet(const struct pipelines *s);
size_t pipelines_running(const struct pipelines *s);
uint64_t pipelines_failed(const struct pipelines *s); /* runs that ended badly for good */
/* COUNT of open() long. */
void pipelines_status(const struct pipelines *s, struct pipeline_status *ret);
size_t pipelines_count(const struct pipelines *s);
/* Start nothing more; who asked and waits is told. What runs goes on. */
void pipelines_stop(struct pipelines *s);
/* Stop what runs; it is owed still. */
void pipelines_abort(struct pipelines *s);
/* After stop(), with no hold left. CLOSED comes on a later turn. */
void pipelines_close(struct pipelines *s, void (*closed)(void *arg), void *arg);

#endif
