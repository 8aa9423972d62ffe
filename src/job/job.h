/*
 * job.h -- the engine: one file's life, many at a time.
 *
 * The only place that knows the order of the rooms. See DESIGN.md beside it for the states, what is in the ledger
 * before each step, and what a kill between any two steps leaves behind.
 */
#ifndef CHUTE_JOB_H
#define CHUTE_JOB_H

#include "config.h"
#include "err.h"
#include "lag.h"
#include "ledger.h"
#include "pipeline.h"

#include <json-c/json.h>
#include <uv.h>

struct engine;

/* A row that was quarantined and is queued again has this before its old reason: there is a reason file to remove. */
#define AGAIN_PREFIX "again after: "

/* Upper bounds of the buckets of chute_load_seconds; the last is +Inf. */
#define LOAD_BUCKETS 12
extern const double load_bucket_bounds[LOAD_BUCKETS - 1];

/* Counters since start, per flow. Never go down. */
struct flow_counters {
    const char *flow;
    uint64_t rows, rejected_rows, bytes;
    uint64_t loads, load_bucket[LOAD_BUCKETS]; /* not cumulative */
    double load_seconds;
};
enum retry_class { RETRY_INPUT, RETRY_REMOTE, RETRY_SYSTEM, RETRY_CHANGED, RETRY_CLASSES };
extern const char *const retry_class_names[RETRY_CLASSES];

struct engine_source_status {
    const char *name, *type;
    struct source_health health;
    const char *evidence; /* of settle: "close", "writers", "age" */
    uint64_t settling;
    uint64_t pending_deletes;         /* held, wait for `chute retry --deletes` */
    int64_t last_run_ms, next_run_ms; /* of one that is asked for its files; wall clock, 0: none */
    bool is_running;                  /* and it is being asked now */
};
struct engine_dest_status {
    const char *name, *type;
    struct dest_health health;
    const char *state;     /* "ok" "down" (breaker open) "blocked" "opening" */
    const char *reason;    /* "" or the last error */
    int64_t next_probe_ms; /* wall clock, 0 none */
    uint64_t in_flight;
};
struct engine_job_status {
    const char *flow, *path, *state;
    uint64_t bytes_done, bytes, rows_done;
    int64_t since_ms;
};
/* A snapshot, in ARENA; strings valid until the next turn of the loop. */
struct engine_status {
    bool is_ready;
    char not_ready[512]; /* reasons, "" when ready */
    struct engine_source_status *sources;
    size_t source_count;
    struct engine_dest_status *dests;
    size_t dest_count;
    struct engine_job_status *jobs; /* in flight, at most 64 */
    size_t job_count;
    struct flow_counters *flows;
    size_t flow_count;
    struct pipeline_status *pipelines;
    size_t pipeline_count;
    const char **paused; /* flows that wait since they were reset */
    size_t paused_count;
    uint64_t retries[RETRY_CLASSES];
    uint64_t overflows;
    struct lag_counts lag; /* how long the loop was busy per turn */
    int64_t started_ms;
    const char *ledger_problem;
};
enum err_code engine_status(struct engine *e, struct arena *arena, struct engine_status *ret, struct err *err);

/*
 * A file that waits in memory for one flow: settling, or seen (whole, on its way into the ledger). If the ledger has a
 * row of it, that row speaks of an older version; the file counts here and not there.
 */
struct engine_waiting {
    const char *source, *path, *flow;
    enum file_state state;
    int64_t since_ms;
};
/* All of them, in ARENA; bounded by what settle and the way into the ledger hold. */
enum err_code engine_waiting(struct engine *e, struct arena *arena, struct engine_waiting **ret, size_t *ret_count,
                             struct err *err);

/* Answers come once, on a later turn. COUNT: files queued again. AWAY: files that were asked for and stay as they are,
 * because chute moved them to their after_failure folder: who moves them back has them loaded again. */
typedef void engine_count_cb(void *arg, uint64_t count, uint64_t away, const struct err *err);
/*
 * Queue quarantined files again. PATHS: absolute or relative to a source's root; COUNT 0 with ALL: every one.
 * Also probes blocked destinations at once and resumes flows paused by reset.
 */
enum err_code engine_retry(struct engine *e, const char *const *paths, size_t count, bool all, engine_count_cb *cb,
                           void *arg, struct err *err);
/* Let the held deletes happen. */
enum err_code engine_retry_deletes(struct engine *e, engine_count_cb *cb, void *arg, struct err *err);
/* Drop what FLOW made, forget its files, pause it. TEXT: what was dropped, a line per table; borrowed for the call. */
typedef void engine_text_cb(void *arg, const char *text, const struct err *err);
enum err_code engine_reset(struct engine *e, const char *flow, engine_text_cb *cb, void *arg, struct err *err);
/*
 * Run a pipeline now; CB once, on a later turn, when that run has ended (see pipelines_ask). ERR_CONFIG: there is none
 * of that name.
 */
enum err_code engine_pipeline(struct engine *e, const char *name, pipeline_cb *cb, void *arg, struct err *err);
/* What the ledger and the room of pipelines call one of CONFIG's. */
struct pipeline_plan engine_plan(const struct config *config, const struct config_pipeline *p);
/* Runs that failed for good since the start, and `init`s that have not worked. */
uint64_t engine_failed_pipelines(const struct engine *e);
/* What memory knows about a file that the ledger does not; the first that is true. */
enum engine_note {
    NOTE_NONE,     /* nothing */
    NOTE_LOADING,  /* being loaded now */
    NOTE_SETTLING, /* not known to be whole yet */
    NOTE_DEST,     /* its destination is down or blocked */
    NOTE_PAUSED,   /* its flow was reset */
};
/* About an absolute or relative path; RET gets a sentence without its first word and full stop ("" for NOTE_NONE), such
 * as "flow F is paused …". */
enum engine_note engine_explain(struct engine *e, const char *path, char *ret, size_t size);

struct engine_options {
    uv_loop_t *loop;
    struct config *config; /* takes a reference */
    struct ledger *ledger;
    bool no_sources; /* watch nothing: files come by engine_offer() */
    bool by_hand;    /* an errand: pipelines run only when engine_pipeline() asks for one */
    bool quiet;      /* the caller tells how each file ended: only what concerns no single file is logged */
    bool once;       /* run --once or load: on_idle is called when all there is to do now is done */
    void (*on_idle)(void *arg);
    void *arg;
};
enum err_code engine_open(const struct engine_options *options, struct engine **ret, struct err *err);
/* Go on with another configuration; running jobs keep theirs. On error nothing has changed. */
enum err_code engine_reload(struct engine *e, struct config *config, struct err *err);
/* Take nothing new; DRAINED when the last job has ended or after GRACE_MS (rest aborted, they resume at the next
 * start). */
void engine_drain(struct engine *e, uint64_t grace_ms, void (*drained)(void *arg), void *arg);
void engine_close(struct engine *e, void (*closed)(void *arg), void *arg); /* after drained */

/* For load and --once: how many files ended how since start. */
void engine_totals(const struct engine *e, uint64_t ret[FILE_STATES]);
/* For load: these absolute paths (regular files) as if a source had found them whole. */
enum err_code engine_offer(struct engine *e, const char *const *paths, size_t count, struct err *err);

#endif
