/*
 * members.c -- the state UNPACKING: what is in an archive becomes files of the flow.
 *
 *   check the whole archive ─▶ take out a batch ─▶ note it in the ledger ─┐─▶ forget members that are no more ─▶ done
 *     (its own thread)           (its own thread)   ▲      (one commit)    │
 *                                                   └────── the next batch ┘
 *
 * A member is a row of its own with the path ARCHIVE//PATH IN IT; its bytes lie in the spool, under the row's name from
 * the commit on in which the row is noted. From there it goes as any file. Its version is its size, time and content;
 * in file_id.dev is which version of the archive it came with, so that those that are no more in it can be told.
 *
 * A kill leaves the archive `loading`: it is unpacked again, and what was noted before is known. Bytes are synced batch
 * by batch before they are noted: the archive itself may be deleted when it has been unpacked. Memory: one batch of
 * names, whatever is in the archive.
 */
#include "job_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH_FILES 128
#define BATCH_BYTES (64u << 20)

enum phase { PHASE_CHECK, PHASE_TAKE, PHASE_NOTE, PHASE_FORGET };

struct member {
    const char *path; /* of the row */
    const char *scratch;
    struct file_id id;
};

struct unpack {
    struct work work; /* first */
    struct job *job;
    struct unpack_reader *reader;
    enum phase phase;
    struct arena arena; /* of the batch */
    struct member batch[BATCH_FILES];
    size_t count;
    bool is_end;
    uint64_t version; /* of the archive, into file_id.dev */
    uint64_t taken, left_out;
    struct err err;
};

static uint64_t version_of(const struct job *job)
{
    uint64_t v = 0; /* by its content: the same archive under another time has the same members */
    memcpy(&v, job->hash, sizeof v);
    return (v & INT64_MAX) | 1;
}

static bool keep_going(const struct unpack *u)
{
    return u->err.code == ERR_NONE;
}

/* ---- on a thread of its own ---- */

static void drop_scratch(struct unpack *u)
{
    for (size_t i = 0; i < u->count; i++)
        if (u->batch[i].scratch != NULL)
            unlink(u->batch[i].scratch);
    u->count = 0;
}

static void take_one(struct unpack *u, const struct unpack_member *m, uint64_t *ret_bytes)
{
    struct job *job = u->job;
    struct member *member = &u->batch[u->count];
    char scratch[PATH_MAX];
    int fd = spool_open_scratch(job->engine, job->row.id, (unsigned)u->count, scratch, &u->err);
    if (fd < 0)
        return;
    uint64_t size = 0, hash = 0;
    *member = (struct member){.path = arena_printf(&u->arena, "%s" MEMBER_MARK "%s", job->row.path, m->path),
                              .scratch = arena_strdup(&u->arena, scratch)};
    u->count++;
    if (member->path == NULL || member->scratch == NULL) {
        err_nomem(&u->err);
        unlink(scratch);
    } else if (unpack_extract(u->reader, fd, &size, &hash, &u->err) == ERR_NONE) {
        int64_t ns = m->has_mtime ? m->mtime_ns : job->row.file.mtime_ns;
        int64_t seconds = ns / 1000000000 - (ns % 1000000000 < 0);
        const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                          {.tv_sec = seconds, .tv_nsec = ns - seconds * 1000000000}};
        if (futimens(fd, times) != 0)
            err_set(&u->err, ERR_SYSTEM, true, "set the time of %s: %s", scratch, strerror(errno));
        member->id =
            (struct file_id){.size = size, .mtime_ns = ns, .ctime_ns = (int64_t)(hash & INT64_MAX), .dev = u->version};
        *ret_bytes += size;
    }
    close(fd);
}

static void take_batch(struct unpack *u)
{
    struct job *job = u->job;
    const struct unpack_member *m;
    uint64_t bytes = 0;
    u->count = 0;
    if (u->reader == NULL)
        unpack_open(job->fd, &job->flow->archive_limits, &job->load.stop, &u->reader, &u->err);
    while (keep_going(u) && u->count < BATCH_FILES && bytes < BATCH_BYTES) {
        if (unpack_next(u->reader, &m, &u->err) != ERR_NONE)
            return;
        u->is_end = m == NULL;
        if (u->is_end)
            break;
        /* nothing of an archive is looked for in the archives that are in it, where those stay as they are */
        if (flow_takes_member(job->flow, job->row.path, m->path))
            take_one(u, m, &bytes);
        else
            u->left_out++;
    }
    if (keep_going(u) && u->count > 0) {
        int fd = open(job->engine->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || syncfs(fd) != 0) /* one call for the whole batch */
            err_set(&u->err, ERR_SYSTEM, true, "sync the spool: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
    }
}

static void on_thread(struct work *work)
{
    struct unpack *u = (struct unpack *)work;
    struct job *job = u->job;
    uint64_t members;
    if (u->phase == PHASE_CHECK)
        unpack_check(job->fd, &job->flow->archive_limits, &job->load.stop, &members, &u->err);
    if (u->phase == PHASE_CHECK && keep_going(u))
        u->phase = PHASE_TAKE;
    if (u->phase == PHASE_TAKE && keep_going(u))
        take_batch(u);
    if (!keep_going(u))
        drop_scratch(u);
}

static void on_thread_back(struct work *work)
{
    job_resume(((struct unpack *)work)->job);
}

/* ---- in the ledger ---- */

static enum err_code note_member(struct ledger_tx *tx, struct job *job, const struct member *m, int64_t now_ms,
                                 struct err *err)
{
    char key[33];
    struct ledger_row *row = NULL;
    struct unpack *u = job->unpack;
    engine_new_key(key);
    if (note_version(tx, job->intake, job->flow, m->path, &m->id, key, now_ms, err) != ERR_NONE ||
        ledger_get(tx, job->row.source, m->path, job->flow->name, &u->arena, &row, err) != ERR_NONE)
        return err->code;
    bool is_wanted = row != NULL && is_unended(row->state) && file_id_same(&row->file, &m->id);
    if (is_wanted)
        return spool_put_member(job->engine, row, m->scratch, err);
    unlink(m->scratch); /* known, and ended: unpacked before a kill, or the archive came again */
    return ERR_NONE;
}

static enum err_code note_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct job *job = arg;
    struct unpack *u = job->unpack;
    int64_t now_ms = clock_wall_ms();
    for (size_t i = 0; i < u->count; i++)
        if (note_member(tx, job, &u->batch[i], now_ms, err) != ERR_NONE)
            return err->code;
    return ERR_NONE;
}

struct forget {
    struct ledger_tx *tx;
    struct err *err;
    struct intake *in;
    const char *flow; /* NULL: of all */
    uint64_t version; /* of the members that stay; 0: none does */
};

static bool forget_row(void *arg, const struct ledger_row *row)
{
    struct forget *f = arg;
    struct ledger_row gone = *row;
    if (row->state == STATE_GONE || (f->version != 0 && row->file.dev == f->version) ||
        (f->flow != NULL && strcmp(f->flow, row->flow) != 0))
        return true;
    return note_gone(f->tx, f->in->world->config, &gone, "", clock_wall_ms(), f->err) == ERR_NONE;
}

/* All below "PATH/" are those below "PATH//": no source gives a path like that. */
static enum err_code forget_members(struct forget *f, const char *path)
{
    char below[PATH_MAX];
    if (snprintf(below, sizeof below, "%s/", path) >= (int)sizeof below)
        return ERR_NONE;
    const struct ledger_query q = {.source = f->in->config->name, .below = below};
    enum err_code code = ledger_each(f->tx, &q, forget_row, f, f->err);
    return code != ERR_NONE ? code : f->err->code;
}

static enum err_code forget_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct job *job = arg;
    struct forget f = {
        .tx = tx, .err = err, .in = job->intake, .flow = job->flow->name, .version = job->unpack->version};
    return forget_members(&f, job->row.path);
}

enum err_code members_gone(struct ledger_tx *tx, struct intake *in, const char *path, struct err *err)
{
    struct forget f = {.tx = tx, .err = err, .in = in};
    return unpack_is_named(path) ? forget_members(&f, path) : ERR_NONE;
}

static void on_ledger(void *arg, const struct err *err)
{
    struct job *job = arg;
    if (err != NULL)
        job->unpack->err = *err;
    job_resume(job);
}

/* ---- on the loop ---- */

static enum unpack_next to_thread(struct unpack *u)
{
    struct job *job = u->job;
    if (work_thread(job->engine->loop, &u->work, on_thread, on_thread_back, &job->err) == ERR_NONE)
        return UNPACK_WAITS;
    return UNPACK_FAILED;
}

static enum unpack_next to_ledger(struct unpack *u, enum phase phase)
{
    struct job *job = u->job;
    u->phase = phase;
    /* note_fn renames files: it is not run twice */
    if (ledger_run(job->engine->ledger, phase == PHASE_NOTE ? note_fn : forget_fn, on_ledger, job, &job->err) ==
        ERR_NONE)
        return UNPACK_WAITS;
    return UNPACK_FAILED;
}

enum unpack_next unpack_enter(struct job *job)
{
    struct unpack *u = calloc(1, sizeof *u);
    if (u == NULL) {
        err_nomem(&job->err);
        return UNPACK_FAILED;
    }
    u->job = job;
    u->version = version_of(job);
    arena_init(&u->arena);
    job->unpack = u;
    return to_thread(u);
}

enum unpack_next unpack_answer(struct job *job)
{
    struct unpack *u = job->unpack;
    if (u->err.code != ERR_NONE) {
        if (u->phase == PHASE_NOTE)
            drop_scratch(u);
        job->err = u->err;
        return UNPACK_FAILED;
    }
    switch (u->phase) {
    case PHASE_CHECK:
    case PHASE_TAKE:
        if (u->count > 0)
            return to_ledger(u, PHASE_NOTE);
        return to_ledger(u, PHASE_FORGET); /* nothing in it is for us */
    case PHASE_NOTE:
        u->taken += u->count;
        u->count = 0;
        arena_done(&u->arena);
        arena_init(&u->arena);
        engine_pump_all(job->engine);
        if (u->is_end)
            return to_ledger(u, PHASE_FORGET);
        if (job->abandon || job->engine->is_draining) {
            err_set(&job->err, ERR_STOPPED, true, "stopped");
            return UNPACK_FAILED;
        }
        u->phase = PHASE_TAKE;
        return to_thread(u);
    case PHASE_FORGET:
        break;
    }
    job->receipt.parsed = job->receipt.inserted = u->taken;
    job->receipt.rejected = 0;
    job->receipt.bytes = job->row.file.size;
    memcpy(job->receipt.hash, job->hash, sizeof job->receipt.hash);
    snprintf(job->reason, sizeof job->reason, "unpacked: %llu files taken, %llu left out, as include and exclude say",
             (unsigned long long)u->taken, (unsigned long long)u->left_out);
    engine_pump_all(job->engine);
    return UNPACK_DONE;
}

void unpack_free(struct job *job)
{
    struct unpack *u = job->unpack;
    if (u == NULL)
        return;
    unpack_close(u->reader);
    arena_done(&u->arena);
    free(u);
    job->unpack = NULL;
}
