/* unpack_none.c -- a build without libarchive: nothing is called like an archive, so nothing is ever unpacked. The
 * configuration refuses `archives: extract`, so that nobody waits for it. */
#include "unpack.h"

bool unpack_is_named(const char *path)
{
    (void)path;
    return false;
}

const char *unpack_library(void)
{
    return "";
}

static enum err_code none(struct err *err)
{
    return err_set(err, ERR_CONFIG, false, "this chute was built without libarchive");
}

enum err_code unpack_check(int fd, const struct unpack_limits *limits, const atomic_bool *stop, uint64_t *ret_members,
                           struct err *err)
{
    (void)fd, (void)limits, (void)stop, (void)ret_members;
    return none(err);
}

enum err_code unpack_open(int fd, const struct unpack_limits *limits, const atomic_bool *stop,
                          struct unpack_reader **ret, struct err *err)
{
    (void)fd, (void)limits, (void)stop, (void)ret;
    return none(err);
}

enum err_code unpack_next(struct unpack_reader *r, const struct unpack_member **ret, struct err *err)
{
    (void)r, (void)ret;
    return none(err);
}

enum err_code unpack_extract(struct unpack_reader *r, int fd, uint64_t *ret_size, uint64_t *ret_hash, struct err *err)
{
    (void)r, (void)fd, (void)ret_size, (void)ret_hash;
    return none(err);
}

void unpack_close(struct unpack_reader *r)
{
    (void)r;
}
