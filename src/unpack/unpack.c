/* unpack.c -- see unpack.h. */
#include "unpack.h"

#include "text.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <locale.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define BLOCK_BYTES 65536
#define FREE_BYTES (1u << 20) /* so much may come out of an archive whatever the ratio: small ones compress well */

bool unpack_is_named(const char *path)
{
    static const char *const ends[] = {".zip", ".tar",     ".tar.gz", ".tgz", ".tar.xz",
                                       ".txz", ".tar.zst", ".tzst",   ".7z",  NULL};
    size_t n = strlen(path);
    for (size_t i = 0; ends[i] != NULL; i++) {
        size_t m = strlen(ends[i]);
        if (n > m && path[n - m - 1] != '/' && strcasecmp(path + n - m, ends[i]) == 0)
            return true;
    }
    return false;
}

const char *unpack_library(void)
{
    return archive_version_string();
}

/* ---- a reader ---- */

struct unpack_reader {
    struct archive *archive;
    struct archive_entry *entry;
    const struct unpack_limits *limits;
    const atomic_bool *stop;
    uint64_t packed_bytes; /* of the whole archive */
    uint64_t bytes, count; /* so far */
    struct unpack_member member;
    char *path; /* of MEMBER */
    char shown[300];
};

/* Made once and kept: a thread may stand in it. */
static locale_t utf8_locale(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static locale_t made;
    pthread_mutex_lock(&lock);
    if (made == (locale_t)0)
        made = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    pthread_mutex_unlock(&lock);
    return made;
}

static enum err_code refused(const struct unpack_reader *r, const char *why, struct err *err)
{
    return err_set(err, ERR_INPUT, false, "archive refused as a whole: %s in member %s; nothing was taken out of it",
                   why, r->shown);
}

/* What libarchive says went wrong. */
static enum err_code broken(const struct unpack_reader *r, struct err *err)
{
    const char *words = archive_error_string(r->archive);
    int number = archive_errno(r->archive);
    char text[300];
    text_printable(words != NULL ? words : "damaged", text, sizeof text);
    if (number == ENOMEM)
        return err_nomem(err);
    if (number == EIO)
        return err_set(err, ERR_SYSTEM, true, "read the archive: %s", text);
    if (r->shown[0] == '\0')
        return err_set(err, ERR_INPUT, false,
                       "not a zip, tar or 7z archive that can be read, though its name says so: %s; its bytes are kept",
                       text);
    return err_set(err, ERR_INPUT, false, "the archive is damaged in or behind member %s: %s", r->shown, text);
}

static bool is_stopped(const struct unpack_reader *r, struct err *err)
{
    if (r->stop == NULL || !atomic_load(r->stop))
        return false;
    err_set(err, ERR_STOPPED, true, "stopped");
    return true;
}

void unpack_close(struct unpack_reader *r)
{
    if (r == NULL)
        return;
    locale_t before = uselocale(utf8_locale());
    archive_read_free(r->archive);
    uselocale(before);
    free(r->path);
    free(r);
}

static enum err_code open_archive(struct unpack_reader *r, int fd, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || lseek(fd, 0, SEEK_SET) != 0)
        return err_set(err, ERR_SYSTEM, true, "read the archive: %s", strerror(errno));
    r->packed_bytes = (uint64_t)st.st_size;
    r->archive = archive_read_new();
    if (r->archive == NULL)
        return err_nomem(err);
    /* Only what we name: each of these brings its code into the binary. */
    if (archive_read_support_format_zip(r->archive) != ARCHIVE_OK ||
        archive_read_support_format_tar(r->archive) != ARCHIVE_OK ||
        archive_read_support_format_7zip(r->archive) != ARCHIVE_OK ||
        archive_read_support_filter_gzip(r->archive) != ARCHIVE_OK ||
        archive_read_support_filter_xz(r->archive) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(r->archive) != ARCHIVE_OK)
        return err_set(err, ERR_SYSTEM, false, "libarchive was built without a format that is needed: %s",
                       archive_error_string(r->archive));
    if (archive_read_open_fd(r->archive, fd, BLOCK_BYTES) != ARCHIVE_OK)
        return broken(r, err);
    return ERR_NONE;
}

enum err_code unpack_open(int fd, const struct unpack_limits *limits, const atomic_bool *stop,
                          struct unpack_reader **ret, struct err *err)
{
    struct unpack_reader *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_nomem(err);
    r->limits = limits;
    r->stop = stop;
    locale_t before = uselocale(utf8_locale());
    enum err_code code = open_archive(r, fd, err);
    uselocale(before);
    if (code != ERR_NONE) {
        unpack_close(r);
        return code;
    }
    *ret = r;
    return ERR_NONE;
}

/* ---- names ---- */

static bool is_separator(char c)
{
    return c == '/' || c == '\\'; /* a Windows program may take either; we take neither for a part of a name */
}

/* NAME without "." segments and doubled slashes into r->path. False: it leads somewhere else, or is empty. */
static bool clean_path(struct unpack_reader *r, const char *name, const char **ret_why)
{
    size_t used = 0;
    if (is_separator(name[0]) || (name[0] != '\0' && name[1] == ':' && is_separator(name[2]))) {
        *ret_why = "an absolute path";
        return false;
    }
    while (*name != '\0') {
        size_t n = 0;
        while (name[n] != '\0' && !is_separator(name[n]))
            n++;
        if (n == 2 && name[0] == '.' && name[1] == '.') {
            *ret_why = "a path that leads out of it (..)";
            return false;
        }
        if (n > 0 && !(n == 1 && name[0] == '.')) {
            if (used > 0)
                r->path[used++] = '/';
            memmove(r->path + used, name, n);
            used += n;
        }
        name += n + (name[n] != '\0');
    }
    r->path[used] = '\0';
    *ret_why = "an empty name";
    return used > 0;
}

static enum err_code take_name(struct unpack_reader *r, struct err *err)
{
    const char *why = "a name that can't be read", *name = archive_entry_pathname_utf8(r->entry);
    if (name == NULL)
        name = archive_entry_pathname(r->entry);
    free(r->path);
    r->path = name != NULL ? malloc(strlen(name) + 1) : NULL;
    if (name == NULL) {
        snprintf(r->shown, sizeof r->shown, "number %llu", (unsigned long long)r->count + 1);
        return refused(r, why, err);
    }
    if (r->path == NULL)
        return err_nomem(err);
    text_printable(name, r->shown, sizeof r->shown);
    return clean_path(r, name, &why) ? ERR_NONE : refused(r, why, err);
}

/* ---- members ---- */

/* A folder without a name of its own ("./") is none to refuse. */
static bool is_folder(const struct unpack_reader *r)
{
    return archive_entry_filetype(r->entry) == AE_IFDIR;
}

static enum err_code check_kind(const struct unpack_reader *r, struct err *err)
{
    if (archive_entry_is_encrypted(r->entry))
        return err_set(err, ERR_INPUT, false, "the archive is encrypted (member %s): expected one without a password",
                       r->shown);
    if (archive_entry_hardlink(r->entry) != NULL || archive_entry_symlink(r->entry) != NULL)
        return refused(r, "a link", err);
    __LA_MODE_T type = archive_entry_filetype(r->entry);
    if (type != AE_IFREG && type != 0)
        return refused(r, "a device, socket or pipe", err);
    return ERR_NONE;
}

static enum err_code next_entry(struct unpack_reader *r, bool *ret_is_end, struct err *err)
{
    for (;;) {
        if (is_stopped(r, err))
            return err->code;
        int code = archive_read_next_header(r->archive, &r->entry);
        *ret_is_end = code == ARCHIVE_EOF;
        if (*ret_is_end)
            return ERR_NONE;
        if (code != ARCHIVE_OK && code != ARCHIVE_WARN)
            return broken(r, err);
        const char *name = archive_entry_pathname(r->entry);
        bool is_itself = is_folder(r) && name != NULL && name[strspn(name, "./")] == '\0' &&
                         strstr(name, "..") == NULL && name[0] != '/';
        if (is_itself)
            continue;
        if (take_name(r, err) != ERR_NONE)
            return err->code;
        if (!is_folder(r))
            return check_kind(r, err);
    }
}

enum err_code unpack_next(struct unpack_reader *r, const struct unpack_member **ret, struct err *err)
{
    bool is_end = false;
    locale_t before = uselocale(utf8_locale());
    enum err_code code = next_entry(r, &is_end, err);
    *ret = NULL;
    if (code == ERR_NONE && !is_end) {
        if (++r->count > r->limits->count)
            code = err_set(err, ERR_INPUT, false,
                           "archive refused as a whole: more than %llu members (archive_limits.count)",
                           (unsigned long long)r->limits->count);
        r->member.path = r->path;
        r->member.has_mtime = archive_entry_mtime_is_set(r->entry) != 0;
        r->member.mtime_ns = r->member.has_mtime ? (int64_t)archive_entry_mtime(r->entry) * 1000000000 +
                                                       archive_entry_mtime_nsec(r->entry)
                                                 : 0;
        *ret = code == ERR_NONE ? &r->member : NULL;
    }
    uselocale(before);
    return code;
}

static enum err_code count_bytes(struct unpack_reader *r, uint64_t n, struct err *err)
{
    r->bytes += n;
    if (r->bytes > r->limits->size)
        return err_set(
            err, ERR_INPUT, false,
            "archive refused as a whole: more than %llu bytes come out of it (archive_limits.size), in member %s",
            (unsigned long long)r->limits->size, r->shown);
    if (r->bytes > FREE_BYTES && r->bytes / r->limits->ratio > r->packed_bytes)
        return err_set(err, ERR_INPUT, false,
                       "archive refused as a whole: more than %llu bytes come out for each of its %llu "
                       "(archive_limits.ratio), in member %s",
                       (unsigned long long)r->limits->ratio, (unsigned long long)r->packed_bytes, r->shown);
    return ERR_NONE;
}

static enum err_code write_all(int fd, const char *bytes, size_t n, int64_t at, struct err *err)
{
    while (n > 0) {
        ssize_t done = pwrite(fd, bytes, n, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return err_set(err, ERR_SYSTEM, true, "write to the spool: %s", strerror(done < 0 ? errno : ENOSPC));
        bytes += done;
        at += done;
        n -= (size_t)done;
    }
    return ERR_NONE;
}

/* FD -1: only counted. Blocks come in order; what lies between them is zeros. */
static enum err_code read_member(struct unpack_reader *r, int fd, uint64_t *ret_size, XXH3_state_t *hash,
                                 struct err *err)
{
    static const char zeros[4096];
    const void *block;
    size_t n;
    la_int64_t at;
    uint64_t end = 0;
    int code;
    while ((code = archive_read_data_block(r->archive, &block, &n, &at)) == ARCHIVE_OK) {
        if (is_stopped(r, err) || count_bytes(r, (uint64_t)at + n - end, err) != ERR_NONE)
            return err->code;
        for (uint64_t hole = (uint64_t)at - end; hash != NULL && hole > 0;) {
            size_t part = hole < sizeof zeros ? (size_t)hole : sizeof zeros;
            XXH3_64bits_update(hash, zeros, part);
            hole -= part;
        }
        if (hash != NULL)
            XXH3_64bits_update(hash, block, n);
        if (fd >= 0 && write_all(fd, block, n, at, err) != ERR_NONE)
            return err->code;
        end = (uint64_t)at + n;
    }
    if (code != ARCHIVE_EOF)
        return broken(r, err);
    /* a hole at the end */
    int64_t size = archive_entry_size_is_set(r->entry) ? archive_entry_size(r->entry) : 0;
    if (size > 0 && (uint64_t)size > end && archive_entry_sparse_count(r->entry) > 0) {
        if (count_bytes(r, (uint64_t)size - end, err) != ERR_NONE)
            return err->code;
        for (uint64_t hole = (uint64_t)size - end; hash != NULL && hole > 0;) {
            size_t part = hole < sizeof zeros ? (size_t)hole : sizeof zeros;
            XXH3_64bits_update(hash, zeros, part);
            hole -= part;
        }
        end = (uint64_t)size;
    }
    if (fd >= 0 && ftruncate(fd, (off_t)end) != 0)
        return err_set(err, ERR_SYSTEM, true, "write to the spool: %s", strerror(errno));
    *ret_size = end;
    return ERR_NONE;
}

enum err_code unpack_extract(struct unpack_reader *r, int fd, uint64_t *ret_size, uint64_t *ret_hash, struct err *err)
{
    XXH3_state_t *hash = XXH3_createState();
    if (hash == NULL)
        return err_nomem(err);
    XXH3_64bits_reset(hash);
    locale_t before = uselocale(utf8_locale());
    enum err_code code = read_member(r, fd, ret_size, hash, err);
    uselocale(before);
    *ret_hash = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    return code;
}

/* ---- the check ---- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* One name twice: which of the two is the file? Told by the hashes of the names, eight bytes each. */
static enum err_code check_twice(uint64_t *names, size_t count, struct err *err)
{
    qsort(names, count, sizeof *names, by_value);
    for (size_t i = 1; i < count; i++)
        if (names[i] == names[i - 1])
            return err_set(
                err, ERR_INPUT, false,
                "archive refused as a whole: two of its members have one name, and only one of them could be "
                "the file");
    return ERR_NONE;
}

enum err_code unpack_check(int fd, const struct unpack_limits *limits, const atomic_bool *stop, uint64_t *ret_members,
                           struct err *err)
{
    struct unpack_reader *r = NULL;
    const struct unpack_member *member;
    uint64_t *names = NULL, size;
    size_t count = 0, room = 0;
    enum err_code code = unpack_open(fd, limits, stop, &r, err);
    while (code == ERR_NONE && (code = unpack_next(r, &member, err)) == ERR_NONE && member != NULL) {
        if (count == room) {
            room = room > 0 ? 2 * room : 64;
            uint64_t *grown = realloc(names, room * sizeof *names);
            if (grown == NULL) {
                code = err_nomem(err);
                break;
            }
            names = grown;
        }
        names[count++] = XXH3_64bits(member->path, strlen(member->path));
        locale_t before = uselocale(utf8_locale());
        code = read_member(r, -1, &size, NULL, err);
        uselocale(before);
    }
    if (code == ERR_NONE)
        code = check_twice(names, count, err);
    *ret_members = count;
    free(names);
    unpack_close(r);
    return code;
}
