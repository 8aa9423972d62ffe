/*
 * open.c -- the parts of a job that block: open and look at the file, and put it away afterwards. Pool threads only;
 * they touch nothing but their job, which waits for them.
 */
#include "job_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static void file_id_of(const struct stat *st, struct file_id *ret)
{
    ret->size = (uint64_t)st->st_size;
    ret->mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    ret->ctime_ns = (int64_t)st->st_ctim.tv_sec * 1000000000 + st->st_ctim.tv_nsec;
    ret->inode = st->st_ino;
    ret->dev = st->st_dev;
}

/*
 * Same bytes as far as stat() can tell. Not the ctime: a rename over the name or a chmod while we read changes it, and
 * the open inode still is a whole version.
 */
static enum err_code still_the_version(int fd, const struct file_id *want, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set(err, ERR_SYSTEM, true, "stat: %s", strerror(errno));
    struct file_id id;
    file_id_of(&st, &id);
    if (id.size != want->size || id.mtime_ns != want->mtime_ns || id.inode != want->inode)
        return err_set(err, ERR_CHANGED, true, "changed while it was being read: expected %llu bytes, found %llu",
                       (unsigned long long)want->size, (unsigned long long)id.size);
    return ERR_NONE;
}

enum err_code file_id_at(const char *path, struct file_id *ret, struct err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return err_set(err, ERR_INPUT, false, "%s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_INPUT, false, "not a regular file");
    file_id_of(&st, ret);
    return ERR_NONE;
}

/* What the open file must still be: the version that was claimed, or what was fetched of it. */
static enum err_code is_still_it(const struct job *job, struct err *err)
{
    struct file_id want = job->row.file;
    if (job_is_spooled(job))
        want =
            (struct file_id){.size = job->spooled.size, .mtime_ns = job->spooled.mtime_ns, .inode = job->spooled.inode};
    return still_the_version(job->fd, &want, err);
}

enum err_code load_still_current(struct load *load, struct err *err)
{
    const struct job *job = load->owner;
    if (is_still_it(job, err) != ERR_NONE)
        return err->code;
    /* Rows that are left out must be somewhere else before anything is done to the file they are in. */
    return job->rejects != NULL ? rejects_sync(job->rejects, err) : ERR_NONE;
}

static int open_file(struct job *job)
{
    struct intake *in = job->intake;
    if (job_is_spooled(job)) { /* FETCHING has opened it; or it is opened again */
        if (job->fd < 0)
            spool_open(job->engine, &job->row, &job->spooled, &job->err);
        if (job->fd < 0 && job->err.code == ERR_NONE && job->spooled.fd < 0)
            err_set(&job->err, ERR_CHANGED, true, "what was fetched is no longer in the spool");
        return job->fd >= 0 ? job->fd : job->spooled.fd;
    }
    if (in->state != NULL)
        return in->config->ops->open_now(in->state, job->row.path, &job->err);
    /* chute load: the root is "/" and paths are what the user gave. */
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "/%s", job->row.path) >= (int)sizeof path) {
        err_set(&job->err, ERR_INPUT, false, "path is longer than %d bytes", PATH_MAX);
        return -1;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        err_set(&job->err, errno == ENOENT ? ERR_INPUT : ERR_SYSTEM, errno != ENOENT && errno != EACCES, "open %s: %s",
                path, strerror(errno));
    return fd;
}

/* on_changed: tail. Are the first bytes those that were loaded, and do they end where a record ends? */
static enum err_code check_prefix(struct job *job)
{
    uint64_t size = job->row.loaded_file.size;
    job->prefix_matches = false;
    if (size == 0 || size > job->row.file.size || job->shape->dialect.compression != COMPRESSION_NONE)
        return ERR_NONE;
    uint8_t hash[16];
    uint64_t read_bytes;
    if (inspect_hash_prefix(job->fd, size, NULL, hash, &read_bytes, &job->err) != ERR_NONE)
        return job->err.code;
    char edge[2] = {'\n', '\n'};
    if (pread(job->fd, edge, sizeof edge, (off_t)size - 1) < 1)
        return err_set(&job->err, ERR_SYSTEM, true, "read: %s", strerror(errno));
    bool ends_record = edge[0] == '\n' || edge[0] == '\r' || edge[1] == '\n' || edge[1] == '\r';
    job->prefix_matches = ends_record && read_bytes == size && memcmp(hash, job->row.hash, sizeof hash) == 0;
    return ERR_NONE;
}

/* A file that is too large for one piece: remember where records begin that may begin the next one. */
static void note_cut(void *arg, uint64_t offset)
{
    struct job *job = arg;
    if (job->cut_count < job->cut_max) /* the file may have grown since: then it is not sent */
        job->cuts[job->cut_count++] = offset;
}

static enum err_code allocate_cuts(struct job *job, uint64_t slice)
{
    job->cut_max = (size_t)(job->row.file.size / slice) + 2;
    job->cuts = arena_alloc(&job->arena, job->cut_max * sizeof *job->cuts);
    return job->cuts != NULL ? ERR_NONE : err_nomem(&job->err);
}

/* A destination that wants the file gets one that has been read to its end: nothing bad is sent. */
static enum err_code inspect_whole(struct job *job)
{
    const struct dest_ops *ops = job->outlet->config->ops;
    struct rows_skim skim = {.on_cut = note_cut, .arg = job, .stop = &job->load.stop};
    uint64_t slice = ops->slice_bytes != NULL ? ops->slice_bytes(job->outlet->config->options) : 0;
    if (slice > 0 && job->row.file.size > slice && job->shape->dialect.compression == COMPRESSION_NONE &&
        job->shape->dialect.encoding == ENC_UTF8) {
        skim.cut_bytes = slice;
        if (allocate_cuts(job, slice) != ERR_NONE)
            return job->err.code;
    }
    if (rows_skim(job->rows, &skim, &job->err) != ERR_NONE)
        return job->err.code;
    job->shape->is_whole = true;
    memcpy(job->hash, job->rows->result.hash, sizeof job->hash);
    job->has_hash = true;
    return ERR_NONE;
}

/* `require`: a file without one of these columns is another file than the flow is for. */
static enum err_code check_required(struct job *job)
{
    const struct option_strings *want = &job->flow->require;
    const struct shape *shape = job->shape;
    for (size_t i = 0; i < want->count; i++) {
        size_t c = 0;
        while (c < shape->column_count && strcmp(shape->columns[c].name, want->items[i]) != 0)
            c++;
        if (c < shape->column_count)
            continue;
        char found[256] = "";
        for (c = 0; c < shape->column_count && strlen(found) < 200; c++) {
            size_t used = strlen(found);
            snprintf(found + used, sizeof found - used, "%s%.60s", c > 0 ? ", " : "", shape->columns[c].name);
        }
        return err_set(&job->err, ERR_INPUT, false,
                       "column \"%s\" is missing, which the flow requires; line 1 names %zu columns: %s%s",
                       want->items[i], shape->column_count, found, c < shape->column_count ? " …" : "");
    }
    return ERR_NONE;
}

static enum err_code open_rejects(struct job *job)
{
    if (job->flow->skip_bad_rows == 0)
        return ERR_NONE;
    if (rejects_open(job->engine->quarantine_dir, job->row.flow, job->row.path, &job->rejects, &job->err) != ERR_NONE)
        return job->err.code;
    rejects_sink(job->rejects, &job->inspect.sink);
    return ERR_NONE;
}

/* A table name that can't be made, a table of somebody else's, a file too large: known without opening the file. */
static enum err_code check_claim(struct job *job)
{
    uint64_t limit = job->world->config->limits.max_file_size;
    if (limit > 0 && job->row.file.size > limit)
        return err_set(&job->err, ERR_INPUT, false, "file has %llu bytes, limits.max_file_size is %llu",
                       (unsigned long long)job->row.file.size, (unsigned long long)limit);
    bool has_table = !flow_unpacks(job->flow, job->row.path) || job->flow->archives == ARCHIVES_BOTH;
    if (job->row.table[0] == '\0' && has_table) {
        char table[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
        return flow_table_name(job->flow, job->row.path, table, key, sizeof table, &job->err);
    }
    return ERR_NONE;
}

static void take_hash(struct job *job)
{
    if (!job->shape->has_hash)
        return;
    memcpy(job->hash, job->shape->hash, sizeof job->hash);
    job->has_hash = true;
}

/* Shape and rows of the file; no rows if it is empty. */
static enum err_code open_csv(struct job *job)
{
    if (inspect_head(job->fd, &job->inspect, &job->arena, &job->shape, &job->err) != ERR_NONE)
        return job->err.code;
    take_hash(job);
    if (job->shape->column_count == 0)
        return ERR_NONE;
    if (check_required(job) != ERR_NONE || open_rejects(job) != ERR_NONE)
        return job->err.code;
    return inspect_rows(job->fd, &job->inspect, job->shape, &job->rows, &job->err);
}

static enum err_code open_events(struct job *job)
{
    if (open_rejects(job) != ERR_NONE ||
        inspect_events(job->fd, &job->inspect, &job->arena, &job->shape, &job->rows, &job->err) != ERR_NONE)
        return job->err.code;
    take_hash(job);
    return ERR_NONE;
}

void open_run(struct job *job, struct finish_memo *memo)
{
    (void)memo;
    if (check_claim(job) != ERR_NONE)
        return;
    job->fd = open_file(job);
    job->is_missing = job->fd < 0 && job->err.code == ERR_INPUT && job->intake->settle != NULL && !job_is_spooled(job);
    if (job->fd < 0 || is_still_it(job, &job->err) != ERR_NONE)
        return;
    bool is_raw = job->flow->format == FORMAT_RAW;
    job->is_archive = flow_unpacks(job->flow, job->row.path);
    if (job_is_spooled(job) && job->spooled.has_hash) {
        memcpy(job->hash, job->spooled.hash, sizeof job->hash);
        job->has_hash = true;
    } else if (is_raw || job->is_archive || (job->row.file.size > 0 && job->want_hash)) {
        uint64_t size;
        if (inspect_hash(job->fd, &job->load.stop, job->hash, &size, &job->err) != ERR_NONE)
            return;
        job->has_hash = true;
    }
    if (is_raw || job->is_archive) {
        is_still_it(job, &job->err);
        return;
    }
    job->inspect = (struct inspect_options){
        .csv = &job->flow->csv,
        .events = &job->flow->events,
        .skip_bad_rows = job->flow->skip_bad_rows,
        .no_kinds = !job->outlet->config->ops->accepts_rows && job->flow->plan.types.policy == TYPES_TEXT,
        .expect_columns = job->expect,
        .expect_count = job->expect_count,
        .buffer_bytes = job->world->config->limits.buffer / 3,
        .refused = &job->refused,
    };
    if ((job->flow->format == FORMAT_JSON ? open_events(job) : open_csv(job)) != ERR_NONE || job->rows == NULL)
        return;
    if (job->flow->plan.mode == MODE_APPEND && job->row.was_loaded && job->flow->on_changed == CHANGED_TAIL &&
        check_prefix(job) != ERR_NONE)
        return;
    if (!job->outlet->config->ops->accepts_rows && inspect_whole(job) != ERR_NONE)
        return;
    is_still_it(job, &job->err);
}

/* A kill may have left the file under its private name: put it back before anything else. */
static enum err_code recover_folder(int dirfd, const char *path, struct err *err)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash != NULL ? (int)(slash - path) : 0, path);
    return finish_recover(dirfd, folder, err);
}

static void put_away(struct job *job, struct finish_memo *memo)
{
    const struct intake *in = job->intake;
    int dirfd =
        in != NULL && in->state != NULL && in->config->ops->root_fd != NULL ? in->config->ops->root_fd(in->state) : -1;
    if (dirfd >= 0 && job->is_finish_only && recover_folder(dirfd, job->row.path, &job->err) != ERR_NONE) {
        job->finish_failed = true;
        return;
    }
    if (dirfd < 0) {
        err_set(&job->err, ERR_SYSTEM, true, "the folder of source %s can't be reached", job->row.source);
    } else if (job->action == FINISH_DELETE) {
        finish_delete(memo, dirfd, job->row.path, &job->row.file, &job->err);
    } else {
        char place[PATH_MAX];
        finish_move(memo, dirfd, job->row.path, &job->row.file, job->action_dir, false, place, &job->err);
        /* moved before a kill, which may have come before its reason lay beside it */
        if (job->is_finish_only && job->write_note && job->err.code == ERR_NONE && place[0] == '\0')
            finish_find(job->action_dir, job->row.path, &job->row.file, place);
        job->place = arena_strdup(&job->arena, place);
    }
    job->finish_changed = job->err.code == ERR_CHANGED;
    job->finish_failed = job->err.code != ERR_NONE && !job->finish_changed;
}

void finish_run(struct job *job, struct finish_memo *memo)
{
    struct err note_err = {0};
    bool is_remote = job_is_remote(job);
    if (job->action != FINISH_NONE && !is_remote)
        put_away(job, memo);
    if (job->clear_note)
        quarantine_clear(job->engine->quarantine_dir, job->row.flow, job->row.path, &note_err);
    if (job->write_note) {
        char hex[33] = "";
        if (job->has_hash)
            text_hex(job->hash, sizeof job->hash, hex);
        struct quarantine_note note = {
            .flow = job->row.flow,
            .source = job->row.source,
            .path = job->row.path,
            .table = job->row.table,
            .dest = job->row.dest,
            .reason = job->reason[0] != '\0' ? job->reason : job->row.reason,
            .hash_hex = hex,
            .id = job->row.file,
            .at_ms = clock_wall_ms(),
            .tries = job->row.tries > 0 ? (uint64_t)job->row.tries : 1, /* as in its receipt */
        };
        bool was_moved = job->action == FINISH_MOVE && !job->finish_changed && !job->finish_failed && !is_remote &&
                         job->place != NULL && job->place[0] != '\0';
        quarantine_write(was_moved ? NULL : job->engine->quarantine_dir, was_moved ? job->place : NULL, &note,
                         &note_err);
    }
    /* The reason first: a kill in between leaves bytes that the next start still has a row for. */
    if (job->write_note && job_is_spooled(job) && note_err.code == ERR_NONE)
        spool_keep(job->engine, &job->row, &note_err);
    if (job->ends_spool && (!job->write_note || note_err.code == ERR_NONE))
        spool_drop(job->engine, &job->row);
    if (note_err.code != ERR_NONE) {
        struct log_about about = {.flow = job->row.flow, .file = job->row.path};
        log_write(LOG_ERROR, &about, "the reason could not be written: %s", note_err.text);
    }
}
