/*
 * spool.c -- bytes that are not where their file is: fetched from another machine, or taken out of an archive.
 *
 * One file in STATE/spool for each version of a row, under a name that says which: "ROW-VERSION[-BOOT].KIND". What was
 * fetched is not synced, so it counts only while this boot lasts: a machine that lost power fetches again. What came
 * out of an archive is synced by the one who took it out, and stays. A name is given only to what is whole, by rename;
 * what is being fetched is called .part and goes on where it stopped.
 *
 * Gone with the end of its row (spool_drop); kept beside the reason of one that is quarantined (spool_keep); what a
 * kill left behind goes at the next start (spool_sweep), and what was overtaken while it waited now and then
 * (spool_tidy).
 */
#include "job_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_SIZE 96
#define SPOOL_MODE 0600

enum spool_kind { SPOOL_PART, SPOOL_VERIFIED, SPOOL_UNVERIFIED, SPOOL_MEMBER, SPOOL_KINDS };
static const char *const kind_names[SPOOL_KINDS] = {"part", "whole", "unverified", "member"};

static uint64_t mix(uint64_t hash, const void *data, size_t size)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static uint64_t version_of(const struct file_id *id)
{
    const uint64_t facts[] = {id->size, (uint64_t)id->mtime_ns, (uint64_t)id->ctime_ns, id->inode, id->dev};
    return mix(UINT64_C(0xcbf29ce484222325), facts, sizeof facts);
}

/* What is known of this boot; "" where nothing is (then what was fetched is trusted over a restart of the machine). */
static char boot[24];

static void read_boot(void)
{
    char text[64] = "";
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    if (n > 0)
        snprintf(boot, sizeof boot, "%016llx",
                 (unsigned long long)mix(UINT64_C(0xcbf29ce484222325), text, strcspn(text, "\n")));
}

static const char *boot_name(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_boot);
    return boot;
}

static void spool_name(const struct ledger_row *row, enum spool_kind kind, char ret[NAME_SIZE])
{
    unsigned long long version = version_of(&row->file);
    if (kind == SPOOL_MEMBER)
        snprintf(ret, NAME_SIZE, "%lld-%016llx.%s", (long long)row->id, version, kind_names[kind]);
    else
        snprintf(ret, NAME_SIZE, "%lld-%016llx-%s.%s", (long long)row->id, version, boot_name(), kind_names[kind]);
}

static const char *spool_path(const struct engine *e, const char *name, char ret[PATH_MAX])
{
    snprintf(ret, PATH_MAX, "%s/spool/%s", e->state_dir, name);
    return ret;
}

static enum err_code make_folder(const struct engine *e, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/spool", e->state_dir);
    if (mkdir(path, 0700) == 0 || errno == EEXIST)
        return ERR_NONE;
    return err_set(err, ERR_SYSTEM, true, "make %s: %s", path, strerror(errno));
}

static enum err_code broken(struct err *err, const char *what, const char *path)
{
    return err_set(err, ERR_SYSTEM, true, "%s %s: %s", what, path, strerror(errno));
}

static enum err_code look_at(int fd, struct spooled *ret, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set(err, ERR_SYSTEM, true, "stat in the spool: %s", strerror(errno));
    ret->size = (uint64_t)st.st_size;
    ret->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    ret->inode = st.st_ino;
    return ERR_NONE;
}

/* The file of ROW that is whole, under one of its names. */
static int open_whole(const struct engine *e, const struct ledger_row *row, enum spool_kind *ret_kind, struct err *err)
{
    static const enum spool_kind fetched[] = {SPOOL_VERIFIED, SPOOL_UNVERIFIED}, unpacked[] = {SPOOL_MEMBER};
    bool is_member = member_name(row->path) != NULL;
    const enum spool_kind *kinds = is_member ? unpacked : fetched;
    char name[NAME_SIZE], path[PATH_MAX];
    for (size_t i = 0; i < (is_member ? 1 : 2); i++) {
        spool_name(row, kinds[i], name);
        int fd = open(spool_path(e, name, path), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0) {
            *ret_kind = kinds[i];
            return fd;
        }
        if (errno != ENOENT) {
            broken(err, "open", path);
            return -1;
        }
    }
    return -1;
}

/* A version that was quarantined and is tried again has its bytes beside the reason. */
static enum err_code take_back(const struct engine *e, const struct ledger_row *row, bool is_member, bool *ret,
                               struct err *err)
{
    char name[NAME_SIZE], path[PATH_MAX];
    spool_name(row, is_member ? SPOOL_MEMBER : SPOOL_VERIFIED, name);
    if (make_folder(e, err) != ERR_NONE)
        return err->code;
    return quarantine_take_back(e->quarantine_dir, row->flow, row->path, row->file.size, spool_path(e, name, path), ret,
                                err);
}

enum err_code spool_open(const struct engine *e, const struct ledger_row *row, struct spooled *ret, struct err *err)
{
    enum spool_kind kind = SPOOL_VERIFIED;
    bool is_member = member_name(row->path) != NULL, was_kept = false;
    *ret = (struct spooled){.fd = open_whole(e, row, &kind, err)};
    if (ret->fd < 0 && err->code == ERR_NONE && is_member) {
        if (take_back(e, row, true, &was_kept, err) != ERR_NONE)
            return err->code;
        if (was_kept)
            ret->fd = open_whole(e, row, &kind, err);
    }
    if (err->code != ERR_NONE)
        return err->code;
    if (ret->fd < 0 && is_member)
        return err_set(err, ERR_INPUT, false,
                       "what was taken out of its archive is no longer in %s/spool; change the archive's time (touch) "
                       "to have it unpacked again",
                       e->state_dir);
    if (ret->fd < 0)
        return ERR_NONE;
    ret->is_whole = true;
    ret->is_verified = kind != SPOOL_UNVERIFIED;
    if (look_at(ret->fd, ret, err) != ERR_NONE) {
        close(ret->fd);
        ret->fd = -1;
    }
    return err->code;
}

enum err_code spool_open_part(const struct engine *e, const struct ledger_row *row, struct spooled *ret,
                              struct err *err)
{
    char name[NAME_SIZE], path[PATH_MAX];
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
    spool_name(row, SPOOL_PART, name);
    *ret = (struct spooled){.fd = open(spool_path(e, name, path), flags, SPOOL_MODE)};
    if (ret->fd < 0 && errno == ENOENT) {
        if (make_folder(e, err) != ERR_NONE)
            return err->code;
        ret->fd = open(path, flags, SPOOL_MODE);
    }
    if (ret->fd < 0)
        return broken(err, "open", path);
    if (look_at(ret->fd, ret, err) != ERR_NONE)
        return err->code;
    /* more than there is to come is not the beginning of it */
    if (ret->size > row->file.size && ftruncate(ret->fd, 0) == 0)
        ret->size = 0;
    return ERR_NONE;
}

enum err_code spool_finish_part(const struct engine *e, const struct ledger_row *row, const struct fetch *fetch,
                                struct spooled *s, struct err *err)
{
    char from[NAME_SIZE], to[NAME_SIZE], from_path[PATH_MAX], to_path[PATH_MAX];
    int64_t mtime_ns = fetch->has_mtime ? fetch->mtime_ns : row->file.mtime_ns;
    int64_t seconds = mtime_ns / 1000000000 - (mtime_ns % 1000000000 < 0);
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                      {.tv_sec = seconds, .tv_nsec = mtime_ns - seconds * 1000000000}};
    spool_name(row, SPOOL_PART, from);
    spool_name(row, fetch->is_verified ? SPOOL_VERIFIED : SPOOL_UNVERIFIED, to);
    spool_path(e, from, from_path);
    /* one that was begun anew may have been longer before */
    bool may_be_longer = s->size > fetch->offset || fetch->is_restarted;
    if ((may_be_longer && ftruncate(s->fd, (off_t)fetch->offset) != 0) || futimens(s->fd, times) != 0 ||
        rename(from_path, spool_path(e, to, to_path)) != 0)
        return broken(err, "finish", from_path);
    s->is_whole = true;
    s->is_verified = fetch->is_verified;
    s->has_hash = fetch->has_hash;
    memcpy(s->hash, fetch->hash, sizeof s->hash);
    return look_at(s->fd, s, err);
}

void spool_drop(const struct engine *e, const struct ledger_row *row)
{
    char name[NAME_SIZE], path[PATH_MAX];
    /* under one name at most; what else there may be goes with the next spool_tidy() */
    static const enum spool_kind kinds[SPOOL_KINDS] = {SPOOL_VERIFIED, SPOOL_MEMBER, SPOOL_UNVERIFIED, SPOOL_PART};
    for (size_t i = 0; i < SPOOL_KINDS; i++) {
        spool_name(row, kinds[i], name);
        if (unlink(spool_path(e, name, path)) == 0)
            return;
    }
}

enum err_code spool_keep(const struct engine *e, const struct ledger_row *row, struct err *err)
{
    static const enum spool_kind kinds[] = {SPOOL_VERIFIED, SPOOL_MEMBER, SPOOL_UNVERIFIED};
    char name[NAME_SIZE], path[PATH_MAX];
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        spool_name(row, kinds[i], name);
        if (access(spool_path(e, name, path), F_OK) == 0)
            return quarantine_keep(e->quarantine_dir, row->flow, row->path, path, err);
    }
    return ERR_NONE; /* nothing came; or it was kept before a kill */
}

enum err_code spool_put_member(const struct engine *e, const struct ledger_row *row, const char *from, struct err *err)
{
    char name[NAME_SIZE], path[PATH_MAX];
    spool_name(row, SPOOL_MEMBER, name);
    if (rename(from, spool_path(e, name, path)) != 0)
        return broken(err, "rename into the spool", from);
    return ERR_NONE;
}

int spool_open_scratch(const struct engine *e, int64_t row_id, unsigned number, char ret_path[PATH_MAX],
                       struct err *err)
{
    char name[NAME_SIZE];
    if (make_folder(e, err) != ERR_NONE)
        return -1;
    snprintf(name, sizeof name, "%lld-unpacking-%u", (long long)row_id, number);
    int fd = open(spool_path(e, name, ret_path), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, SPOOL_MODE);
    if (fd < 0)
        broken(err, "make", ret_path);
    return fd;
}

/* ---- what no row waits for ---- */

struct spool_search {
    const char *name;
    bool is_running; /* jobs are under way */
    bool is_wanted;
};

static bool see_row(void *arg, const struct ledger_row *row)
{
    struct spool_search *s = arg;
    char name[NAME_SIZE];
    /* what an archive's job is taking out right now */
    s->is_wanted = s->is_running && row->state == STATE_LOADING && strstr(s->name, "-unpacking-") != NULL;
    for (int kind = 0; kind < SPOOL_KINDS && !s->is_wanted; kind++) {
        spool_name(row, (enum spool_kind)kind, name);
        s->is_wanted = strcmp(name, s->name) == 0 &&
                       (is_unended(row->state) || (row->state == STATE_QUARANTINED && row->finish_pending));
    }
    return false;
}

static enum err_code sweep(const struct engine *e, struct ledger_tx *tx, bool is_running, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/spool", e->state_dir);
    DIR *dir = opendir(path);
    if (dir == NULL)
        return ERR_NONE; /* nothing was ever spooled */
    const struct dirent *entry;
    while (err->code == ERR_NONE && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        struct spool_search s = {.name = entry->d_name, .is_running = is_running};
        const struct ledger_query q = {.after_id = strtoll(entry->d_name, NULL, 10) - 1, .limit = 1};
        if (ledger_each(tx, &q, see_row, &s, err) == ERR_NONE && !s.is_wanted)
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
    return err->code;
}

enum err_code spool_sweep(const struct engine *e, struct ledger_tx *tx, struct err *err)
{
    return sweep(e, tx, false, err);
}

/* ---- now and then ---- */

#define TIDY_MS 60000

static enum err_code tidy_fn(struct ledger_tx *tx, void *arg, struct err *err)
{
    return sweep(arg, tx, true, err);
}

static void on_tidied(void *arg, const struct err *err)
{
    struct engine *e = arg;
    (void)err; /* the next time, or the next start */
    e->is_tidying = false;
    engine_answered(e);
}

void spool_tidy(struct engine *e)
{
    struct err err = {0};
    uint64_t now = clock_mono_ms();
    if (e->is_tidying || e->is_draining || (e->tidied_ms != 0 && now - e->tidied_ms < TIDY_MS))
        return;
    e->tidied_ms = now;
    e->is_tidying = engine_ask(e, tidy_fn, on_tidied, e, &err) == ERR_NONE;
}
