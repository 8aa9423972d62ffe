/* job_internal.h -- what the files of the engine share; nobody else includes it. See DESIGN.md. */
#ifndef CHUTE_JOB_INTERNAL_H
#define CHUTE_JOB_INTERNAL_H

#include "rate.h"
#include "arena.h"
#include "buf.h"
#include "clock.h"
#include "config.h"
#include "finish.h"
#include "inspect.h"
#include "job.h"
#include "ledger.h"
#include "load.h"
#include "log.h"
#include "pipeline.h"
#include "settle.h"
#include "text.h"
#include "unpack.h"
#include "work.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define SETTLED_MAX 4096        /* tickets and paths kept in memory per source */
#define PAGE_ROWS 256           /* rows of one sweep step */
#define PAGE_ROWS_REMOTE 4096   /* the same, where each step asks another machine */
#define PROBE_BLOCKED_MS 300000 /* rules.md: a blocked destination is probed every 5 minutes */
#define BREAKER_FAILURES 3
#define LEDGER_RETRY_MS 1000
#define CLAIM_BYTES (8u << 20)
#define JOB_LINES 64  /* by the hash of their table */
#define JOB_PATHS 256 /* by the hash of their path */

struct world {
    struct engine *engine;
    struct config *config;
    struct dest_env env;          /* what every destination gets */
    struct source_env source_env; /* what every source gets */
    struct intake *intakes;
    size_t intake_count;
    struct outlet *outlets;
    size_t outlet_count;
    struct pipeline_plan *plans; /* of PIPELINES, one for each of config->pipelines */
    struct pipelines *pipelines;
    unsigned holds;   /* jobs, ledger works, probes under way */
    unsigned closing; /* handles and drivers that have not closed yet */
    bool is_stopping; /* takes nothing new */
    bool is_closing;
    struct world *next; /* older worlds */
};

/* A path and a version of it, on its way into the ledger. */
struct observed {
    struct observed *next;
    struct file_id id;
    bool skip_inode; /* the rename check was done */
    char path[];
};

/* A path that may have been deleted. */
struct gone_path {
    struct gone_path *next;
    uint64_t due_ms; /* monotonic */
    char path[];
};

struct sweep;

/* When a source that is asked for its files is asked; schedule.c. */
struct schedule {
    uv_timer_t timer;
    int64_t last_ms; /* wall: when the last run began; 0: never */
    int64_t next_ms; /* wall: when the next one is due; 0: none is planned */
    bool is_running; /* listing, or its files are still on their way */
    bool is_asking;  /* the ledger, whether the run is over */
    uint64_t waiting;
    int64_t failed; /* runs in a row that could not list all */
    bool is_due;    /* it came due while one was running: that one is followed by another at once */
};

/* A server whose clock changed: all its files have other times, and are the same. clock_change.c. */
#define CLOCK_CANDIDATES 8
struct clock_change {
    struct {
        int64_t delta_ns; /* new time minus known time; 0: unchanged */
        uint64_t files;
    } seen[CLOCK_CANDIDATES]; /* the commonest differences (Misra-Gries), of known files of the same size */
    uint64_t known;           /* files of this listing that the ledger has, with the same size */
    uint64_t moved;           /* of those, with another time: they wait for the end of the listing */
    bool is_decided;          /* this listing is the one after: */
    int64_t delta_ns;         /* 0: those with another time are changed files; else by this much nothing has changed */
};

struct intake {
    struct world *world;
    const struct config_source *config;
    void *state; /* the driver's; NULL when nothing is watched (chute load) */
    struct settle *settle;
    const struct config_flow **flows;
    size_t flow_count;
    const char **avoid;

    const struct found *chunk; /* of the scan; borrowed until scan_resume() */
    size_t chunk_count, chunk_next;
    bool chunk_needed[SCAN_CHUNK];
    bool is_checking; /* the chunk is with the ledger */

    struct observed *deferred; /* until nothing is looked for any more */
    struct observed *settled;
    size_t settled_count;
    bool is_flushing;
    bool is_lost; /* something was dropped: scan when there is room again */

    struct gone_path *gone;
    size_t gone_count;
    uv_timer_t gone_timer;
    bool is_probing_gone;

    struct sweep *sweep; /* under way */
    bool sweep_again;
    bool sweep_owed;    /* a scan is over: sweep once all it found is in the ledger, so that renames are known first */
    bool force_deletes; /* chute retry --deletes */
    uint64_t held_deletes;
    char held_reason[256];
    char root_identity[64]; /* the one in the ledger */
    unsigned looking;       /* new names that may be old files, being looked at */
    bool is_scanned;        /* the first scan has finished, and all it found is in the ledger */
    bool scan_over;         /* on_scan_done came */
    uint64_t scan_over_ms;  /* when; what it found and is old enough is due by then */
    char problem[512];      /* of the source, as it was last logged */
    bool is_missing;        /* said to be unreachable */

    /* of sources on other machines */
    unsigned failures;      /* fetches in a row that failed for a reason that is the source's */
    uint64_t down_until_ms; /* monotonic: until then nothing of it is claimed; 0: it answers */
    int64_t answered_ms;    /* wall: when it last gave a file or a listing */
    uv_timer_t up_timer;    /* at DOWN_UNTIL_MS */
    struct schedule schedule;
    struct clock_change clock;
};

enum outlet_state { OUTLET_OPENING, OUTLET_OK, OUTLET_DOWN, OUTLET_BLOCKED };

struct outlet {
    struct world *world;
    const struct config_dest *config;
    void *state;
    enum outlet_state health;
    char reason[512];
    unsigned failures;   /* in a row */
    int64_t answered_ms; /* wall: when it last answered anybody */
    int64_t probe_at_ms; /* wall, for status */
    bool is_connecting;
    bool is_claiming;
    bool claim_again;
    bool on_probation;       /* one load at a time until one works */
    int64_t clock_offset_ms; /* wall minus monotonic clock at the last claim; 0: there was none */
    char identity[sizeof((struct dest_health *)0)->identity]; /* as the ledger was asked about last */
    bool is_learning; /* the ledger is asked whether this is the destination it knows */
    bool identity_known;
    unsigned in_flight;
    uint64_t in_flight_bytes;
    uv_timer_t timer;                   /* next due row, breaker or probe */
    struct space_want *spaces, *making; /* spaces.c */
    bool is_making_space;
    struct scripts init; /* pipes.c */
    bool is_init_running;
    bool waits_for_old; /* connected; init comes when the world before this one is gone */
    bool init_done;     /* in the database that IDENTITY is of */
    int64_t space_tries;
    uv_timer_t space_timer;
};

enum job_state {
    JOB_FETCHING, /* only what is not a file of this machine: fetch.c */
    JOB_OPENING,
    JOB_UNPACKING, /* only archives: unpack.c */
    JOB_CHECKING,
    JOB_LOADING,
    JOB_RECORDING,
    JOB_FINISHING,
    JOB_CLOSING,
    JOB_STATES
};

/* A file in the spool. */
struct spooled {
    int fd;           /* -1: there is none */
    uint64_t size;    /* bytes that are there */
    int64_t mtime_ns; /* the file's own, once it is whole */
    uint64_t inode;
    bool is_whole, is_verified;
    bool has_hash; /* HASH is that of its content, taken while it came */
    uint8_t hash[16];
};

/* Within FETCHING, and what comes next. */
enum fetch_step { FETCH_LOOKING, FETCH_UNDER_WAY, FETCH_LOOKING_FOR, FETCH_NAMING };
enum fetch_next { FETCH_WAITS, FETCH_DONE, FETCH_FAILED };

enum finish_action { FINISH_NONE, FINISH_DELETE, FINISH_MOVE };

struct job;
/* Work of a job on the pool, see hop.c. MEMO is shared by the jobs that go there together. */
typedef void job_pool_fn(struct job *job, struct finish_memo *memo);

struct job {
    /* What is asked of many jobs at once comes first. */
    struct job *prev, *next;
    struct job *line_prev, *line_next; /* turn.c */
    struct job *path_next;             /* of the same hash */
    struct job *hop_next;              /* hop.c */
    job_pool_fn *hop_run;
    uint64_t number; /* in the order of their claim */
    uint64_t table_hash;
    bool is_in_line;
    struct engine *engine;
    struct world *world;
    struct intake *intake;
    struct outlet *outlet;
    const struct config_flow *flow;
    struct arena arena;
    enum job_state state;
    uint64_t path_hash;
    struct ledger_row row; /* as claimed; strings in ARENA */
    bool is_drop;
    bool is_carry; /* with is_drop: not a drop, but a receipt that follows a renamed file */
    bool is_finish_only;
    int64_t started_ms;

    /* from the claim */
    const char *header; /* stored header of the table, JSON; NULL none */
    bool is_ours;       /* of a drop: a load of ours made the table */
    const char **expect;
    size_t expect_count;
    bool want_hash;
    bool is_repeat; /* CHECKING: the ledger has this content */

    /* FETCHING */
    enum fetch_step step;
    struct fetch fetch;
    struct probe probe;
    bool is_fetching; /* the source has it */
    struct spooled spooled;

    /* OPENING, on the pool */
    struct work work;
    int fd;
    bool is_archive; /* to be unpacked */
    bool is_unpacked;
    struct unpack *unpack; /* UNPACKING */
    struct inspect_options inspect;
    struct refused_events refused; /* found by one load, left out by the next */
    struct shape *shape;
    struct rows *rows;
    struct rejects *rejects;
    bool has_hash;
    uint8_t hash[16];
    uint64_t *cuts; /* see load.cuts */
    size_t cut_count, cut_max;
    bool prefix_matches;  /* on_changed: tail */
    bool abandon;         /* a change in place was seen */
    bool is_missing;      /* gone when it was to be opened: settle finds out what became of it */
    bool waits_for_turn;  /* LOADING: an older one for the same table has not begun, or is_behind_newer */
    bool is_behind_newer; /* a newer file was on its way into the table: to be claimed again when that one has ended */

    struct load load;
    void (*saved)(struct load *load, const struct err *err); /* a checkpoint is on its way to the ledger */
    const char *saving;
    bool has_checkpoint;
    bool is_begun; /* the driver has it */

    /* how it ended */
    struct err err;
    enum file_state end;
    char reason[768];
    struct receipt receipt;
    bool load_again;   /* the destination confirmed an older version under this key: this one is still to do */
    bool keeps_loaded; /* loaded or duplicate: row gets hash and versions */
    bool asked_then;   /* the runs of `then` are in the ledger */
    int64_t next_try_ms;
    bool requeue; /* back to queued with the same load_key (stop, blocked) */

    /* FINISHING */
    enum finish_action action;
    const char *action_dir;
    bool write_note;
    bool clear_note;
    bool finish_failed;
    bool finish_changed; /* another version was there: left in place */
    const char *place;   /* where it went, in ARENA; "" or NULL: nowhere */
    bool ends_spool;     /* its bytes in the spool are not needed any more */
    struct source_errand errand;
    bool errand_done;
    uv_timer_t timer; /* waits for a ledger that can't be written */
    bool has_timer;
};

struct engine {
    uv_loop_t *loop;
    struct ledger *ledger;
    struct world *world; /* the present one */
    struct world *old;   /* being drained */
    struct job *jobs;
    unsigned job_count;
    uint64_t last_number;
    struct job *lines[JOB_LINES]; /* those whose driver does not have them yet, in order; see turn.c */
    struct job *paths[JOB_PATHS];
    bool is_giving_turns;
    struct job *hoppers, *hoppers_last; /* go to the pool at the end of this turn of the loop */
    uv_idle_t hop_idle;
    char *instance;
    bool ledger_failing; /* and that was said */
    bool once;
    bool quiet;
    bool no_sources;
    bool by_hand;
    bool is_draining;
    bool is_closed;
    void (*on_idle)(void *arg);
    void *arg;
    bool is_idle_checking, idle_again, idle_told;
    void (*drained)(void *arg);
    void *drained_arg;
    void (*closed)(void *arg);
    void *closed_arg;
    uv_timer_t grace_timer;
    uv_timer_t ledger_timer;
    bool ledger_timer_on;
    unsigned asks;        /* ledger works of our own (not of a world) under way: they use the engine */
    unsigned handles;     /* of our own, still open */
    struct reset *resets; /* under way */
    struct engine_root {
        char key[256];
        char value[64];
    } * roots; /* facts about the sources, as the ledger has them: identities of their roots, last runs */
    size_t root_count;
    bool ledger_trying;
    bool is_tidying;    /* the spool */
    uint64_t tidied_ms; /* monotonic; 0: not yet */
    char **paused;      /* names of flows that reset has paused */
    size_t paused_count;
    struct flow_counters *counters;
    size_t counter_count;
    uint64_t retries[RETRY_CLASSES];
    uint64_t overflows;
    uint64_t totals[FILE_STATES];
    struct lag *lag;
    struct rate upload_rate;   /* limits.upload_rate; one for all destinations of all worlds */
    struct rate download_rate; /* limits.download_rate; one for all sources of all worlds */
    int64_t started_ms;
    uint64_t random;
    char state_dir[1024];
    char quarantine_dir[1100];
};

/* engine.c */
void world_hold(struct world *w);
void world_release(struct world *w);
struct flow_counters *engine_counters(struct engine *e, const char *flow);
bool engine_flow_paused(const struct engine *e, const char *flow);
void engine_check_idle(struct engine *e);
void engine_ledger_failed(struct engine *e); /* watch it until it works again, then scan */
uint64_t engine_random(struct engine *e);
void engine_new_key(char ret[33]);
void engine_job_ended(struct engine *e);
void engine_pump_all(struct engine *e);
void engine_finish_close(struct engine *e);
/* ledger_run() for work that belongs to the engine itself: it stays until DONE has called engine_answered(). */
enum err_code engine_ask(struct engine *e, ledger_fn *fn, ledger_done *done, void *arg, struct err *err);
void engine_answered(struct engine *e);
enum err_code engine_read_roots(struct engine *e, struct ledger_tx *tx, const struct config *config, struct err *err);
void engine_remember_root(struct engine *e, const struct intake *in);
/* What the ledger said about a source at the start, or was told since; NULL: nothing. */
const char *engine_fact(const struct engine *e, const char *key);
void engine_remember(struct engine *e, const char *key, const char *value);
void on_nothing_to_drain(uv_timer_t *timer);

/* intake.c */
enum err_code intake_open(struct intake *in, const struct config_source *config, const char *root_identity,
                          struct err *err);
void intake_forget(struct intake *in); /* what is on its way in, when the world closes */
void intake_settle_again(struct intake *in, const char *path, const struct file_id *id);
void intake_rescan(struct intake *in);
void intake_lost(struct intake *in); /* something on its way in was dropped: a scan is owed */
void intake_observe(struct intake *in, const char *path, const struct file_id *id);
void intake_flush(struct intake *in);
void intake_scan_settled(struct intake *in);
bool intake_is_quiet(const struct intake *in);
/* In a ledger transaction: what a version of a path means for one flow. */
enum err_code note_version(struct ledger_tx *tx, struct intake *in, const struct config_flow *flow, const char *path,
                           const struct file_id *id, const char *new_key, int64_t now_ms, struct err *err);
/* In a ledger transaction: the row's file is gone. REASON: RENAMED_PREFIX and the new name, or "". */
enum err_code note_gone(struct ledger_tx *tx, const struct config *config, struct ledger_row *row, const char *reason,
                        int64_t now_ms, struct err *err);
/* In a ledger transaction: those quarantined because OWNER had their table are queued again. */
enum err_code release_owner(struct ledger_tx *tx, const struct ledger_row *owner, struct err *err);
bool is_unended(enum file_state s);
const struct config_flow *config_flow_named(const struct config *config, const char *name);
/* Of a row whose table, or blob, is another file's. */
#define OWNED_PREFIX "table already belongs to "
#define OWNED_BLOB_PREFIX "blob already belongs to "
#define RENAMED_PREFIX "renamed to " /* row in gone: its table goes when that path is loaded */
#define CARRIED_PREFIX                                                                                                 \
    "renamed from " /* row with drop_pending that is not gone: the destination's receipt is to be carried along */
#define DUPLICATE_PREFIX "already loaded"

/* spool.c: pool threads, but for spool_sweep() */
/* The bytes of ROW's version, if they are whole; RET->fd -1 and ERR_NONE: they are not there. ERR_INPUT: a member of an
 * archive, and they are not there. */
enum err_code spool_open(const struct engine *e, const struct ledger_row *row, struct spooled *ret, struct err *err);
/* What came so far of a version that is being fetched; open for reading and writing. */
enum err_code spool_open_part(const struct engine *e, const struct ledger_row *row, struct spooled *ret,
                              struct err *err);
/* All of it has come: name and time of what is whole. */
enum err_code spool_finish_part(const struct engine *e, const struct ledger_row *row, const struct fetch *fetch,
                                struct spooled *s, struct err *err);
void spool_drop(const struct engine *e, const struct ledger_row *row);
/* ROW is quarantined: its bytes go beside the reason. */
enum err_code spool_keep(const struct engine *e, const struct ledger_row *row, struct err *err);
/* FROM, a scratch file, is the member that ROW speaks of. */
enum err_code spool_put_member(const struct engine *e, const struct ledger_row *row, const char *from, struct err *err);
int spool_open_scratch(const struct engine *e, int64_t row_id, unsigned number, char ret_path[PATH_MAX],
                       struct err *err);
/* At the start: what no row waits for goes. */
enum err_code spool_sweep(const struct engine *e, struct ledger_tx *tx, struct err *err);
/* The same while all runs: a version that was overtaken while it waited leaves its bytes there. At most once a minute.
 */
void spool_tidy(struct engine *e);

/* fetch.c */
bool job_is_remote(const struct job *job);  /* the file is on another machine */
bool job_is_spooled(const struct job *job); /* its bytes are in the spool: that, or it is a member of an archive */
enum fetch_next fetch_enter(struct job *job);
enum fetch_next fetch_answer(struct job *job); /* FETCH_FAILED: job->err says why */
bool errand_start(struct job *job);            /* delete or move it over there; false: it can't, and that is noted */
void intake_answered(struct intake *in);
void intake_failed(struct intake *in, const struct err *err); /* for a reason that is the source's */
bool intake_is_down(const struct intake *in);

/* members.c: the state UNPACKING */
enum unpack_next { UNPACK_WAITS, UNPACK_DONE, UNPACK_FAILED };
enum unpack_next unpack_enter(struct job *job);
enum unpack_next unpack_answer(struct job *job); /* UNPACK_FAILED: job->err says why */
void unpack_free(struct job *job);
/* In a ledger transaction: the members of the archive PATH go with it. */
enum err_code members_gone(struct ledger_tx *tx, struct intake *in, const char *path, struct err *err);

/* schedule.c: sources that are asked for their files */
enum err_code schedule_open(struct intake *in, struct err *err);
void schedule_start(struct intake *in); /* the world has begun */
void schedule_check(struct intake *in); /* a run may be over */
void schedule_listed(struct intake *in, bool is_complete);
void schedule_stop(struct intake *in);

/* clock_change.c, in the comparison of a listing with the ledger */
/* Is F, whose row is ROW, the same file under another time? *RET_WAITS: that is known when the listing is over. */
enum err_code clock_compare(struct ledger_tx *tx, struct clock_change *c, struct ledger_row *row, const struct found *f,
                            bool *ret_same, bool *ret_waits, struct err *err);
/* A listing is over. True: it is to be made once more, now that it is known what the other times mean. */
bool clock_listed(struct intake *in, bool is_complete);

/* sweep.c and rename.c */
/* These new names may be old files: look whether the old names are gone, then rename or note. Takes LIST. */
void renames_look(struct intake *in, struct observed *list);
void sweep_start(struct intake *in, const char *below, bool is_event);
void intake_renamed(struct intake *in, const char *from, const char *to, bool is_folder);
void intake_gone(struct intake *in, const char *path);
void on_gone_timer(uv_timer_t *timer);

/* outlet.c */
enum err_code outlet_open(struct outlet *o, const struct config_dest *config, struct err *err);
void outlet_pump(struct outlet *o);
void outlet_connect(struct outlet *o);
void outlet_answered(struct outlet *o);                      /* it works */
void outlet_failed(struct outlet *o, const struct err *err); /* a load failed for a reason that is not the file's */
void outlet_stop(struct outlet *o);
bool outlet_is_paused(const struct outlet *o); /* it asked to be left alone as a whole */
uint64_t backoff_ms(struct engine *e, const struct retry_options *r, int64_t tries);

/* CONNECT is over (and init, if there was one); ERR NULL: it is open. */
void outlet_opened(struct outlet *o, const struct err *err);

/* pipes.c */
enum err_code pipes_open(struct world *w, struct err *err);
void pipes_pump(struct world *w);
void pipes_loaded(struct engine *e, const struct config_flow *flow); /* pipes_want() was committed */
enum err_code pipes_want(struct ledger_tx *tx, const struct config_flow *flow, struct err *err);
bool pipes_are_running(const struct engine *e);
void pipes_abort(struct engine *e);
bool init_is_due(const struct outlet *o);
void init_start(struct outlet *o); /* outlet_opened() comes once, perhaps from inside this call */
void init_stop(struct outlet *o);

/* spaces.c */
void spaces_folder(struct intake *in, const char *folder);      /* a folder is there: make its space, if it has one */
void spaces_folder_gone(struct intake *in, const char *folder); /* its name is free for another one */
void spaces_pump(struct outlet *o);
void spaces_forget(struct outlet *o);
bool spaces_are_quiet(const struct outlet *o);
/*
 * In a ledger transaction: the folder that has ROW's space already, if it is another one than ROW's own and still has
 * files there; else NULL, and ROW's folder has it from now on.
 */
enum err_code space_owner(struct ledger_tx *tx, const struct config_flow *flow, const struct ledger_row *row,
                          struct arena *arena, const char **ret_owner, struct err *err);
/* The ledger's fact that a load of ours made this table (ledger_knows_tables). */
#define MADE_KEY_MAX (TABLE_NAME_MAX + 128)
const char *made_key(const char *dest, const char *table_key, char ret[MADE_KEY_MAX]);

/* claim.c */
#define DROPS_AT_ONCE 64
struct claimed;
struct claim {
    struct outlet *outlet;
    struct arena arena;
    size_t limit;
    uint64_t max_bytes;
    const char **held;   /* flows to leave alone; NULL-terminated */
    int64_t *busy_drops; /* rows with a job in flight: nothing of theirs is dropped now */
    size_t busy_count;
    /*
     * Tables with a job in flight, drops included; NULL-terminated. The ledger does not know them all: a row whose file
     * is deleted and comes again while it is loaded is queued by then, and its job goes on.
     */
    const char **busy_tables;
    int64_t started_ms;
    bool all_scanned;         /* every source has been scanned since then, and what was found is in the ledger */
    struct ledger_row **rows; /* as the ledger gave them, oldest first */
    size_t row_count;
    struct claimed *items; /* those that become jobs */
    size_t count;
    int64_t next_due_ms;
    int64_t clamp_ms; /* no wait may end later than this; 0: the clock went on as it should */
};
struct claim *claim_new(struct outlet *o, size_t limit, uint64_t max_bytes);
void claim_check_clock(struct claim *c, struct outlet *o);
void claim_free(struct claim *c);
enum err_code claim_fn(struct ledger_tx *tx, void *arg, struct err *err);
size_t claim_start_jobs(struct claim *c);
/* finish-only jobs for rows with finish_pending */
void finish_pending_start(struct world *w);
/* reset.c: those under way end soon, with ERR_STOPPED. */
void resets_stop(struct engine *e);
/* In a ledger transaction: what DEST should hold is queued again. */
enum err_code requeue_destination(struct ledger_tx *tx, const struct config *config, const char *dest, struct err *err);
struct intake *intake_of(struct world *w, const char *source);

/* job_life.c */
void job_count_ended(struct job *job); /* in the totals and counters */
void job_say_end(struct job *job);     /* one line for each end, there and nowhere else */

/* job.c */
void job_start(struct job *job); /* from OPENING, or LOADING for a drop, or FINISHING */
void job_abort(struct job *job);
void job_change_seen(struct engine *e, struct intake *in, const char *path);
void job_renamed(struct engine *e, struct intake *in, const struct config_flow *flow, const char *from, const char *to);
struct job *job_new(struct outlet *o, const struct ledger_row *row, const struct config_flow *flow);
void job_free(struct job *job);
uint64_t path_hash(const char *path);
void job_resume(struct job *job);
bool job_has_not_ended(const struct job *job); /* nothing of how it ended is decided */
void job_reenter(struct job *job);             /* LOADING again: it was not its turn before */
/* Is PATH being moved or deleted by us right now? Then that it goes is no news. */
bool job_takes_away(const struct engine *e, const struct intake *in, const char *path);

/* turn.c */
void job_line_up(struct job *job);    /* from now on those claimed after it wait for it at its table */
void job_next_turn(struct job *done); /* DONE leaves its table: the next one in the order of their claim may begin */
bool job_must_wait(const struct job *job);
bool job_is_behind_newer(const struct job *job); /* one claimed before is the newer one of a table they share */

/* hop.c */
/* Do RUN on the pool, with others that wait for the same; then job_resume(), on a later turn. */
void job_hop(struct job *job, job_pool_fn *run);

/* checkpoint.c: what a driver keeps between the remote steps of one load */
#define CHECKPOINT_KEY_MAX 64
const char *checkpoint_key(int64_t row_id, char ret[CHECKPOINT_KEY_MAX]);
enum err_code checkpoint_save(struct load *load, const char *text,
                              void (*saved)(struct load *load, const struct err *err), struct err *err);
/* row.c */
/* ROW with all its strings into ARENA. */
enum err_code row_copy(struct arena *arena, const struct ledger_row *row, struct ledger_row *ret, struct err *err);
/* ROW, whose version had ended, waits again with no tries behind it; the strings are borrowed. */
void row_queue_again(struct ledger_row *row, const char *load_key, const char *reason);

/* record.c */
enum err_code record_fn(struct ledger_tx *tx, void *arg, struct err *err);
enum err_code close_fn(struct ledger_tx *tx, void *arg, struct err *err);

/* Decide what is done to the file now that ROW has ended; marks ROW (not yet put) and the rows of other flows. */
enum err_code decide_finish(struct ledger_tx *tx, struct job *job, struct ledger_row *row, struct err *err);

/* overtaken.c, in a ledger transaction: one table for all files of a flow, of which it holds the newest */
#define OVERTAKEN_PREFIX "overtaken: "
/* The ledger's fact about which version such a table holds. */
void newest_key(const char *dest, const char *table_key, char *ret, size_t size);
/* It holds the version of ROW that was written at MTIME_NS. */
enum err_code newest_put(struct ledger_tx *tx, const struct ledger_row *row, int64_t mtime_ns, struct err *err);
/* *RET_BY, in ARENA: the path of what it holds and is newer than ROW; NULL: ROW may replace it. */
enum err_code newest_overtakes(struct ledger_tx *tx, const struct ledger_row *row, struct arena *arena,
                               const char **ret_by, struct err *err);
/*
 * FAILED ended, or went, without being loaded: the best of those that were skipped for it or for what came before it is
 * queued again, if that is newer than what the table holds. Nothing for other flows.
 */
enum err_code overtaken_revive(struct ledger_tx *tx, const struct config_flow *flow, const struct ledger_row *failed,
                               struct err *err);

/* open.c */
enum err_code file_id_at(const char *path, struct file_id *ret, struct err *err);

/* open.c, finish part of a job: run on the pool */
void open_run(struct job *job, struct finish_memo *memo);
void finish_run(struct job *job, struct finish_memo *memo);
enum err_code load_still_current(struct load *load, struct err *err);
enum err_code header_json(const struct shape *shape, struct arena *arena, const char **ret, struct err *err);
enum err_code header_parse(const char *json, struct arena *arena, const char ***ret, size_t *ret_count,
                           struct err *err);

#endif
