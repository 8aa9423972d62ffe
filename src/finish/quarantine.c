/* quarantine.c -- why a file was not loaded, told in a small file that people and programs can read. */
#include "finish.h"
#include "finish_internal.h"
#include "buf.h"
#include "clock.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOTE_SUFFIX ".error.json"
#define KEPT_SUFFIX ".kept"
#define HASH_DIGITS 17 /* "~" and 16 of them */

static uint64_t hash_of(const char *s, size_t n)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)s[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static bool ends_with(const char *s, size_t n, const char *end)
{
    size_t m = strlen(end);
    return n >= m && memcmp(s + n - m, end, m) == 0;
}

/*
 * The segment S as one name that leaves ROOM bytes for what comes behind it. Almost always as it is; one that is not
 * legal, too long, or would meet a file of ours gets a hash, so that different ones stay different.
 */
static void safe_segment(const char *s, size_t n, bool is_folder, size_t room, char ret[NAME_MAX + 1])
{
    bool is_dots = n == 0 || (s[0] == '.' && (n == 1 || (n == 2 && s[1] == '.')));
    bool is_ours = is_folder && (ends_with(s, n, NOTE_SUFFIX) || ends_with(s, n, KEPT_SUFFIX) ||
                                 ends_with(s, n, ".rejected.csv") || ends_with(s, n, QUARANTINE_PART));
    bool has_slash = memchr(s, '/', n) != NULL;
    size_t most = NAME_MAX - room;
    if (n <= most && !is_dots && !is_ours && !has_slash) {
        memcpy(ret, s, n);
        ret[n] = '\0';
        return;
    }
    size_t keep = n;
    if (keep > most - HASH_DIGITS) {
        keep = most - HASH_DIGITS;
        while (keep > 0 && ((unsigned char)s[keep] & 0xC0) == 0x80)
            keep--;
    }
    for (size_t i = 0; i < keep; i++)
        ret[i] = s[i] == '/' ? '_' : s[i];
    snprintf(ret + keep, NAME_MAX + 1 - keep, "~%016" PRIx64, hash_of(s, n));
}

/* Go from FOLDER (taken over) into the folder that the segment stands for. */
static int enter_safe(int folder, const char *segment, size_t n, bool make)
{
    char name[NAME_MAX + 1];
    safe_segment(segment, n, true, 0, name);
    int next = folder_walk(folder, name, make);
    int failure = errno;
    close(folder);
    errno = failure;
    return next;
}

int quarantine_folder(const char *dir, const char *flow, const char *path, const char *suffix, bool make,
                      char ret_name[NAME_MAX + 1])
{
    int fd = make ? folder_make(dir) : open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        fd = enter_safe(fd, flow, strlen(flow), make);
    const char *slash;
    while (fd >= 0 && (slash = strchr(path, '/')) != NULL) {
        fd = enter_safe(fd, path, (size_t)(slash - path), make);
        path = slash + 1;
    }
    if (fd < 0)
        return -1;
    size_t room = strlen(suffix) + strlen(QUARANTINE_PART);
    safe_segment(path, strlen(path), false, room, ret_name);
    memcpy(ret_name + strlen(ret_name), suffix, strlen(suffix) + 1);
    return fd;
}

static void add_field(struct buf *b, const char *name, const char *value)
{
    buf_printf(b, "  \"%s\": ", name);
    buf_add_json(b, value != NULL ? value : "");
    buf_adds(b, ",\n");
}

static void build_note(struct buf *b, const struct quarantine_note *note)
{
    char at[32], modified[32];
    clock_format(note->at_ms, at, sizeof at);
    clock_format(note->id.mtime_ns / 1000000, modified, sizeof modified);
    buf_adds(b, "{\n");
    add_field(b, "path", note->path);
    size_t n = strlen(note->path);
    if (text_utf8_valid(note->path, n) < n) { /* JSON can't say such a name; the bytes can */
        buf_adds(b, "  \"file_bytes\": \"");
        for (size_t i = 0; i < n; i++)
            buf_printf(b, "%02x", (unsigned)(unsigned char)note->path[i]);
        buf_adds(b, "\",\n");
    }
    add_field(b, "reason", note->reason);
    add_field(b, "flow", note->flow);
    add_field(b, "source", note->source);
    add_field(b, "destination", note->dest);
    add_field(b, "table", note->table);
    add_field(b, "hash", note->hash_hex);
    add_field(b, "modified", modified);
    add_field(b, "quarantined", at);
    buf_printf(b, "  \"size\": %" PRIu64 ",\n  \"tries\": %" PRIu64 "\n}\n", note->id.size, note->tries);
}

static bool write_synced(int folder, const char *name, const struct buf *b)
{
    int fd = openat(folder, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (fd < 0)
        return false;
    size_t done = 0;
    while (done < b->size) {
        ssize_t n = write(fd, b->data + done, b->size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    bool is_written = done == b->size && fsync(fd) == 0;
    int failure = errno;
    if (close(fd) != 0 && is_written) {
        is_written = false;
        failure = errno;
    }
    errno = failure;
    return is_written;
}

/* All of B under NAME, or what was there before. */
static enum err_code write_whole(int folder, const char *name, const struct buf *b, struct err *err)
{
    char part[NAME_MAX + 1 + sizeof QUARANTINE_PART];
    snprintf(part, sizeof part, "%s" QUARANTINE_PART, name);
    if (write_synced(folder, part, b) && renameat(folder, part, folder, name) == 0 && folder_sync(folder))
        return ERR_NONE;
    int failure = errno;
    unlinkat(folder, part, 0);
    return err_set(err, ERR_SYSTEM, true, "write the reason %s: %s", name, strerror(failure));
}

/* The folder of PLACE and the name of its reason. */
static int place_folder(const char *place, char ret_name[NAME_MAX + 1])
{
    char folder[PATH_MAX];
    const char *slash = strrchr(place, '/');
    if (slash == NULL || slash - place >= PATH_MAX) {
        errno = slash == NULL ? EINVAL : ENAMETOOLONG;
        return -1;
    }
    snprintf(folder, sizeof folder, "%.*s", slash == place ? 1 : (int)(slash - place), place);
    size_t room = strlen(NOTE_SUFFIX) + strlen(QUARANTINE_PART);
    safe_segment(slash + 1, strlen(slash + 1), false, room, ret_name);
    memcpy(ret_name + strlen(ret_name), NOTE_SUFFIX, strlen(NOTE_SUFFIX) + 1);
    return open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

enum err_code quarantine_write(const char *dir, const char *place, const struct quarantine_note *note, struct err *err)
{
    char name[NAME_MAX + 1];
    int folder = dir != NULL ? quarantine_folder(dir, note->flow, note->path, NOTE_SUFFIX, true, name)
                             : place_folder(place, name);
    if (folder < 0)
        return err_set(err, ERR_SYSTEM, true, "write the reason into %s: %s", dir != NULL ? dir : place,
                       strerror(errno));
    struct buf b;
    buf_init(&b);
    build_note(&b, note);
    enum err_code code = b.failed ? err_nomem(err) : write_whole(folder, name, &b, err);
    buf_done(&b);
    close(folder);
    return code;
}

/* <dir>/<flow>/<path>.kept; -1: the folder is not there, or can't be made. */
static int kept_folder(const char *dir, const char *flow, const char *path, bool make, char ret_name[NAME_MAX + 1])
{
    return quarantine_folder(dir, flow, path, KEPT_SUFFIX, make, ret_name);
}

enum err_code quarantine_keep(const char *dir, const char *flow, const char *path, const char *from, struct err *err)
{
    char name[NAME_MAX + 1];
    int folder = kept_folder(dir, flow, path, true, name);
    bool is_kept = folder >= 0 && renameat(AT_FDCWD, from, folder, name) == 0;
    int failure = errno;
    if (folder >= 0)
        close(folder);
    if (is_kept)
        return ERR_NONE;
    return err_set(err, ERR_SYSTEM, true, "keep the bytes of %s in %s: %s", path, dir, strerror(failure));
}

enum err_code quarantine_take_back(const char *dir, const char *flow, const char *path, uint64_t size, const char *to,
                                   bool *ret_found, struct err *err)
{
    char name[NAME_MAX + 1];
    struct stat st;
    int folder = kept_folder(dir, flow, path, false, name);
    *ret_found = false;
    if (folder < 0)
        return errno == ENOENT ? ERR_NONE : err_set(err, ERR_SYSTEM, true, "look into %s: %s", dir, strerror(errno));
    bool is_there = fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && (uint64_t)st.st_size == size;
    *ret_found = is_there && renameat(folder, name, AT_FDCWD, to) == 0;
    int failure = errno;
    close(folder);
    if (!is_there || *ret_found)
        return ERR_NONE;
    return err_set(err, ERR_SYSTEM, true, "take the bytes of %s back from %s: %s", path, dir, strerror(failure));
}

static bool remove_one(const char *dir, const char *flow, const char *path, const char *suffix)
{
    char name[NAME_MAX + 1];
    int folder = quarantine_folder(dir, flow, path, suffix, false, name);
    if (folder < 0)
        return errno == ENOENT;
    /* The folders stay: another file of theirs may be writing its reason at this moment. */
    bool is_clear = unlinkat(folder, name, 0) == 0 || errno == ENOENT;
    int failure = errno;
    close(folder);
    errno = failure;
    return is_clear;
}

enum err_code quarantine_clear(const char *dir, const char *flow, const char *path, struct err *err)
{
    if (remove_one(dir, flow, path, NOTE_SUFFIX) && remove_one(dir, flow, path, KEPT_SUFFIX))
        return ERR_NONE;
    return err_set(err, ERR_SYSTEM, true, "remove the reason of %s from %s: %s", path, dir, strerror(errno));
}
