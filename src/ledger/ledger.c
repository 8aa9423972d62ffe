/*
 * ledger.c -- the daemon's way in: a queue of work, one request on the pool, one commit for all that waits.
 *
 *   ledger_run() -> queue -> [pool: BEGIN, each work, COMMIT] -> DONE of each, on the loop
 *
 * What is queued in one turn of the loop goes together: a group begins at the end of the turn.
 * Where one of a group may not run twice, each has a savepoint of its own. Else they run without: a savepoint costs a
 * copy of every page that is touched. If one fails then, all is undone, and they run again with savepoints.
 * A commit that fails is the failure of every work in it; what the next ledger_run() queues tries again.
 */
#include "ledger_internal.h"

#include "clock.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <utlist.h>

/* A group ends at whichever comes first, so that one commit neither grows without bound nor keeps the first work
 * waiting. */
#define GROUP_MAX 512
#define GROUP_MS 200
/* While the last commit failed: a small one may fit where a large one does not. */
#define GROUP_MAX_FAILING 16
/* 4096-byte pages in the WAL: written back to the database beyond the first; when nothing else is to do, beyond the
 * second. A page that is written often in a burst is written back once for all of these frames, so they are many. */
#define CHECKPOINT_FRAMES 4000
#define CHECKPOINT_IDLE_FRAMES 1000
/* If the write back fails and this much has piled up, that is a problem to be told: 32 MiB. */
#define CHECKPOINT_OVERDUE_FRAMES 8192
#define FRAME_BYTES (4096 + 24)
/* So long after the last work the page cache is given back; longer than a destination keeps its connection. */
#define IDLE_MS 3000

struct item {
    struct item *prev, *next;
    ledger_fn *fn;
    ledger_done *done;
    void *arg;
    bool may_repeat;
    struct err err; /* code ERR_NONE: committed */
};

struct ledger {
    struct work work; /* first: in flight while is_busy */
    uv_loop_t *loop;
    uv_timer_t idle;      /* keeps no loop alive; armed once after the last work */
    uv_idle_t turn;       /* active while the next group waits for the end of this turn */
    unsigned handles;     /* of these two, not closed yet */
    struct ledger_tx *tx; /* belongs to the pool while is_busy */
    struct item *queue;
    size_t pending; /* queued, running, or before their DONE */
    bool is_busy;
    struct item *group;          /* in flight; what did not fit comes back to the front of QUEUE */
    bool was_checkpoint;         /* the request in flight only writes back */
    bool has_written;            /* the last group that was committed has changed something */
    bool must_write;             /* PROBLEM is about writing: only a write that works ends it */
    bool idle_checkpoint_failed; /* not again before the next commit */
    struct err group_err;        /* of the commit, or of the checkpoint when CODE is set and the works are committed */
    struct err checkpoint_err;
    char problem[512];
    void (*closed)(void *arg);
    void *closed_arg;
    bool is_closing;
};

static void start_soon(struct ledger *l);

/* ---- on the pool ---- */

static void fail_group(struct item *group, const struct item *end, const struct err *err)
{
    /* A work that failed by itself keeps its own words. */
    for (struct item *i = group; i != end; i = i->next)
        if (i->err.code == ERR_NONE)
            i->err = *err;
}

static void roll_back(struct ledger_tx *tx)
{
    if (sqlite3_get_autocommit(tx->db) == 0)
        sqlite3_exec(tx->db, "ROLLBACK", NULL, NULL, NULL);
    ledger_forget_undone(tx);
}

/* How the works of a group are kept apart. */
enum apart {
    ALONE,    /* there is one: the transaction is its own */
    TOGETHER, /* not at all */
    APART     /* by savepoints */
};

/* One work. ERR: the whole transaction is lost. *RET_UNDO: it must be undone, and nothing but a rollback can. */
static enum err_code run_item(struct ledger_tx *tx, struct item *item, enum apart apart, bool *ret_undo,
                              struct err *err)
{
    *ret_undo = false;
    err_clear(&item->err);
    if (apart == APART && ledger_exec(tx, "SAVEPOINT work", err) != ERR_NONE)
        return err->code;
    enum err_code code = item->fn(tx, item->arg, &item->err);
    if (code != ERR_NONE && item->err.code == ERR_NONE)
        err_set(&item->err, code, false, "ledger work failed without a reason");
    /* A work that swallowed a failure of the file, or SQLite rolled back by itself: nothing of this can be committed.
     */
    if (tx->broken != 0 || sqlite3_get_autocommit(tx->db) != 0) {
        if (item->err.code != ERR_NONE)
            *err = item->err;
        else
            ledger_sqlite_error(tx, tx->broken != 0 ? tx->broken : SQLITE_ABORT, err);
        return err->code;
    }
    if (code == ERR_NONE && apart != APART)
        return ERR_NONE;
    if (code == ERR_NONE)
        return ledger_tally_flush(tx, err) == ERR_NONE ? ledger_exec(tx, "RELEASE work", err) : err->code;
    *ret_undo = apart == TOGETHER;
    if (*ret_undo)
        return ERR_NONE;
    ledger_forget_undone(tx);
    return ledger_exec(tx, apart == ALONE ? "ROLLBACK; BEGIN IMMEDIATE" : "ROLLBACK TO work; RELEASE work", err);
}

static enum apart apart_of(const struct item *group)
{
    bool may_repeat = true;
    for (const struct item *i = group; i != NULL; i = i->next)
        may_repeat = may_repeat && i->may_repeat;
    return group->next == NULL ? ALONE : may_repeat ? TOGETHER : APART;
}

/* The works from GROUP on, as far as there is time. *RET_END: the first one that was not run. */
static enum err_code run_items(struct ledger_tx *tx, struct item *group, enum apart apart, struct item **ret_end,
                               bool *ret_undo, struct err *err)
{
    uint64_t start_ms = clock_mono_ms();
    struct item *item = group;
    *ret_undo = false;
    for (; item != NULL && (item == group || clock_mono_ms() - start_ms < GROUP_MS); item = item->next)
        if (run_item(tx, item, apart, ret_undo, err) != ERR_NONE || *ret_undo)
            break;
    *ret_end = item;
    return err->code;
}

static void checkpoint(struct ledger *l)
{
    struct ledger_tx *tx = l->tx;
    int frames = 0;
    int rc = sqlite3_wal_checkpoint_v2(tx->db, NULL, SQLITE_CHECKPOINT_PASSIVE, &frames, NULL);
    if (rc == SQLITE_OK)
        tx->wal_frames = 0; /* the next write starts the WAL from its beginning, unless a reader holds it */
    else if (rc != SQLITE_BUSY && rc != SQLITE_LOCKED &&
             (tx->wal_frames >= CHECKPOINT_OVERDUE_FRAMES || ledger_is_corrupt(rc)))
        ledger_sqlite_error(tx, rc, &l->checkpoint_err);
}

/*
 * Is less free than twice the WAL? Writing back may let the database grow by as much as the WAL is long, so it must be
 * done while there is room for that: a WAL that fills the disk can neither grow nor be written back, for ever.
 */
static bool is_nearly_full(const struct ledger_tx *tx)
{
    struct statvfs fs;
    if (tx->wal_frames == 0 || statvfs(tx->path, &fs) != 0)
        return false;
    return (uint64_t)fs.f_bavail * fs.f_frsize < 2 * (uint64_t)tx->wal_frames * FRAME_BYTES;
}

static bool is_about_room(int rc)
{
    return (rc & 0xff) == SQLITE_FULL || (rc & 0xff) == SQLITE_IOERR;
}

/* Write all back and give the WAL's room back to the disk, as far as nobody reads: best effort, the next group tries
 * again. Without it a disk that a long WAL has filled would stay full. */
static void make_room(struct ledger_tx *tx)
{
    sqlite3_busy_timeout(tx->db, 0);
    if (sqlite3_wal_checkpoint_v2(tx->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) == SQLITE_OK)
        tx->wal_frames = 0;
    sqlite3_busy_timeout(tx->db, LEDGER_BUSY_MS);
}

static void run_group(struct ledger *l, struct item **ret_end)
{
    struct ledger_tx *tx = l->tx;
    struct err *err = &l->group_err;
    struct item *item = l->group;
    int64_t changes = sqlite3_total_changes64(tx->db);
    bool must_undo = false;
    tx->broken = 0;
    *ret_end = NULL;
    if (ledger_exec(tx, "BEGIN IMMEDIATE", err) == ERR_NONE) {
        run_items(tx, l->group, apart_of(l->group), &item, &must_undo, err);
        if (must_undo) {
            roll_back(tx);
            if (ledger_exec(tx, "BEGIN IMMEDIATE", err) == ERR_NONE)
                run_items(tx, l->group, APART, &item, &must_undo, err);
        }
        if (err->code == ERR_NONE && ledger_tally_flush(tx, err) == ERR_NONE)
            ledger_exec(tx, "COMMIT", err);
    }
    if (err->code == ERR_NONE) {
        l->has_written = sqlite3_total_changes64(tx->db) != changes;
        *ret_end = item; /* what did not fit */
        return;
    }
    l->must_write = tx->broken != 0 && (tx->broken & 0xff) != SQLITE_BUSY && (tx->broken & 0xff) != SQLITE_PROTOCOL;
    roll_back(tx);
    fail_group(l->group, NULL, err);
    if (ledger_is_corrupt(tx->broken))
        ledger_mark_suspect(tx->path);
}

static void on_pool(struct work *work)
{
    struct ledger *l = (struct ledger *)work;
    struct item *rest = NULL;
    err_clear(&l->group_err);
    err_clear(&l->checkpoint_err);
    if (!l->was_checkpoint)
        run_group(l, &rest);
    if (l->group_err.code != ERR_NONE ? is_about_room(l->tx->broken) : is_nearly_full(l->tx))
        make_room(l->tx);
    if (l->group_err.code == ERR_NONE && (l->was_checkpoint || l->tx->wal_frames >= CHECKPOINT_FRAMES))
        checkpoint(l);
    /* Put back what did not fit: the loop takes the group up to here. */
    if (rest != NULL) {
        struct item *last = l->group->prev; /* utlist: the head's prev is the tail */
        struct item *end = rest->prev;
        end->next = NULL;
        l->group->prev = end;
        rest->prev = last;
    }
    l->work.arg = rest;
}

/* ---- on the loop ---- */

static void take_group(struct ledger *l)
{
    size_t n = 0;
    size_t most = l->problem[0] != '\0' ? GROUP_MAX_FAILING : GROUP_MAX;
    l->group = NULL;
    while (l->queue != NULL && n++ < most) {
        struct item *item = l->queue;
        DL_DELETE(l->queue, item);
        DL_APPEND(l->group, item);
    }
}

static void answer_group(struct ledger *l)
{
    struct item *item;
    struct item *next;
    struct item *group = l->group;
    l->group = NULL;
    DL_FOREACH_SAFE(group, item, next) {
        l->pending--;
        if (item->done != NULL)
            item->done(item->arg, item->err.code == ERR_NONE ? NULL : &item->err);
        free(item);
    }
}

static void on_loop(struct work *work)
{
    struct ledger *l = (struct ledger *)work;
    struct item *rest = l->work.arg;
    if (rest != NULL) {
        DL_CONCAT(rest, l->queue);
        l->queue = rest;
    }
    const struct err *problem = l->group_err.code != ERR_NONE ? &l->group_err : &l->checkpoint_err;
    /* that somebody asks how we are, and gets an answer, is no proof that a full disk can be written again */
    if (problem->code != ERR_NONE)
        snprintf(l->problem, sizeof(l->problem), "%s", problem->text);
    else if (!l->was_checkpoint && (l->has_written || !l->must_write))
        l->problem[0] = '\0';
    l->idle_checkpoint_failed = l->was_checkpoint && l->tx->wal_frames != 0;
    answer_group(l); /* may queue more: that waits, is_busy is still set */
    l->is_busy = false;
    start_soon(l);
}

static void on_close_pool(struct work *work)
{
    struct ledger *l = (struct ledger *)work;
    struct err err;
    /* Whatever fails here, the commits are safe in the WAL and the next start finds them there. */
    if (ledger_mark_closed(l->tx, &err) == ERR_NONE)
        sqlite3_wal_checkpoint_v2(l->tx->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    ledger_tx_free(l->tx);
    l->tx = NULL;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct ledger *l = handle->data;
    if (--l->handles > 0)
        return;
    void (*closed)(void *arg) = l->closed;
    void *arg = l->closed_arg;
    free(l);
    if (closed != NULL)
        closed(arg);
}

static void on_close_loop(struct work *work)
{
    struct ledger *l = (struct ledger *)work;
    uv_close((uv_handle_t *)&l->idle, on_handle_closed);
    uv_close((uv_handle_t *)&l->turn, on_handle_closed);
}

/* A burst is over: what it needed goes back to the system, so that a daemon that waits for years is small. */
static void on_idle(uv_timer_t *timer)
{
    struct ledger *l = timer->data;
    if (l->is_busy || l->tx == NULL)
        return; /* armed again when that work is done */
    sqlite3_db_release_memory(l->tx->db);
    malloc_trim(0);
}

/* The pool takes no work (only when libuv is at its end): all that waits fails. */
static void fail_all(struct ledger *l, const struct err *err)
{
    l->is_busy = true; /* what DONE queues is not started from here */
    snprintf(l->problem, sizeof(l->problem), "%s", err->text);
    fail_group(l->queue, NULL, err);
    l->group = l->queue;
    l->queue = NULL;
    answer_group(l);
    l->is_busy = false;
}

static void start_next(struct ledger *l)
{
    struct err err = {0};
    uv_idle_stop(&l->turn);
    if (l->is_busy)
        return;
    bool is_last = l->queue == NULL && l->is_closing;
    l->was_checkpoint = l->queue == NULL;
    if (l->was_checkpoint && !is_last && (l->tx->wal_frames < CHECKPOINT_IDLE_FRAMES || l->idle_checkpoint_failed)) {
        uv_timer_start(&l->idle, on_idle, IDLE_MS, 0);
        return;
    }
    l->is_busy = true;
    take_group(l);
    if (work_start(l->loop, &l->work, is_last ? on_close_pool : on_pool, is_last ? on_close_loop : on_loop, &err) ==
        ERR_NONE)
        return;
    if (is_last) {
        on_close_pool(&l->work);
        on_close_loop(&l->work);
        return;
    }
    DL_CONCAT(l->group, l->queue);
    l->queue = l->group;
    fail_all(l, &err);
}

static void on_turn(uv_idle_t *turn)
{
    start_next(turn->data);
}

/* At the end of this turn of the loop, so that all that is queued until then shares a commit. */
static void start_soon(struct ledger *l)
{
    if (!l->is_busy)
        uv_idle_start(&l->turn, on_turn);
}

static enum err_code enqueue(struct ledger *l, ledger_fn *fn, ledger_done *done, void *arg, bool may_repeat,
                             struct err *err)
{
    struct item *item = calloc(1, sizeof(*item));
    if (item == NULL)
        return err_nomem(err);
    item->fn = fn;
    item->done = done;
    item->arg = arg;
    item->may_repeat = may_repeat;
    DL_APPEND(l->queue, item);
    l->pending++;
    start_soon(l);
    return ERR_NONE;
}

enum err_code ledger_run(struct ledger *l, ledger_fn *fn, ledger_done *done, void *arg, struct err *err)
{
    return enqueue(l, fn, done, arg, false, err);
}

enum err_code ledger_run_repeatable(struct ledger *l, ledger_fn *fn, ledger_done *done, void *arg, struct err *err)
{
    return enqueue(l, fn, done, arg, true, err);
}

const char *ledger_problem(const struct ledger *l)
{
    return l->problem;
}

size_t ledger_pending(const struct ledger *l)
{
    return l->pending;
}

enum err_code ledger_open(uv_loop_t *loop, const struct ledger_options *options, struct ledger **ret,
                          struct ledger_opened *ret_opened, struct err *err)
{
    *ret = NULL;
    struct ledger *l = calloc(1, sizeof(*l));
    if (l == NULL)
        return err_nomem(err);
    l->loop = loop;
    if (ledger_open_file(options->path, &l->tx, ret_opened, err) != ERR_NONE) {
        free(l);
        return err->code;
    }
    uv_timer_init(loop, &l->idle);
    uv_unref((uv_handle_t *)&l->idle);
    l->idle.data = l;
    uv_idle_init(loop, &l->turn);
    l->turn.data = l;
    l->handles = 2;
    *ret = l;
    return ERR_NONE;
}

void ledger_close(struct ledger *l, void (*closed)(void *arg), void *arg)
{
    l->closed = closed;
    l->closed_arg = arg;
    l->is_closing = true;
    start_soon(l);
}
