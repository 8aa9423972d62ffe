/* decode.c -- gzip (ISA-L or zlib) and zstd as one pull decoder: all members, checks included, bounded memory. */
#include "inspect_internal.h"

#if HAVE_ISAL
#include <isa-l/igzip_lib.h>
#else
#include <zlib.h>
#endif
#if HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

#define ZSTD_WINDOW_LOG 23 /* 8 MiB: all levels up to 19; --long and --ultra need more than we promise to use */

enum where { BETWEEN, INSIDE, PADDING };

struct decoder {
    enum compression compression;
    enum where where;
    bool any; /* some member has ended */
#if HAVE_ISAL
    struct inflate_state gz;
#else
    z_stream gz;
    bool has_gz;
#endif
#if HAVE_ZSTD
    ZSTD_DStream *zstd;
#endif
};

static enum err_code damaged(const char *format, const char *what, struct err *err)
{
    return err_set(err, ERR_INPUT, false, "damaged %s data: %s; write the file again", format, what);
}

/* ---- gzip: one call of the library behind two functions */

#if HAVE_ISAL
static enum err_code gz_begin(struct decoder *d, struct err *err)
{
    (void)err;
    isal_inflate_reset(&d->gz);
    d->gz.crc_flag = ISAL_GZIP;
    return ERR_NONE;
}

static enum err_code gz_step(struct decoder *d, struct bytes_in *in, uint8_t *out, size_t size, size_t *ret_size,
                             bool *ret_over, struct err *err)
{
    d->gz.next_in = (uint8_t *)(uintptr_t)in->next;
    d->gz.avail_in = (uint32_t)in->avail;
    d->gz.next_out = out;
    d->gz.avail_out = (uint32_t)size;
    int status = isal_inflate(&d->gz);
    in->next = d->gz.next_in;
    in->avail = d->gz.avail_in;
    *ret_size = size - d->gz.avail_out;
    *ret_over = d->gz.block_state == ISAL_BLOCK_FINISH;
    switch (status) {
    case ISAL_DECOMP_OK:
    case ISAL_END_INPUT:
    case ISAL_OUT_OVERFLOW:
        return ERR_NONE;
    case ISAL_INCORRECT_CHECKSUM:
        return damaged("gzip", "the checksum does not match", err);
    case ISAL_INVALID_WRAPPER:
    case ISAL_UNSUPPORTED_METHOD:
        return damaged("gzip", "a member's header is not valid", err);
    default:
        return damaged("gzip", "a block is not valid", err);
    }
}
#else
static enum err_code gz_begin(struct decoder *d, struct err *err)
{
    int status = d->has_gz ? inflateReset(&d->gz) : inflateInit2(&d->gz, 15 + 16);
    if (status != Z_OK)
        return err_nomem(err);
    d->has_gz = true;
    return ERR_NONE;
}

static enum err_code gz_step(struct decoder *d, struct bytes_in *in, uint8_t *out, size_t size, size_t *ret_size,
                             bool *ret_over, struct err *err)
{
    d->gz.next_in = (uint8_t *)(uintptr_t)in->next;
    d->gz.avail_in = (uInt)in->avail;
    d->gz.next_out = out;
    d->gz.avail_out = (uInt)size;
    int status = inflate(&d->gz, Z_NO_FLUSH);
    in->next = d->gz.next_in;
    in->avail = d->gz.avail_in;
    *ret_size = size - d->gz.avail_out;
    *ret_over = status == Z_STREAM_END;
    if (status == Z_MEM_ERROR)
        return err_nomem(err);
    if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
        return damaged("gzip", d->gz.msg != NULL ? d->gz.msg : "a block is not valid", err);
    return ERR_NONE;
}
#endif

/* Between two members: the next one, zero padding up to the end (tapes, block devices), or the end. */
static enum err_code gz_between(struct decoder *d, struct bytes_in *in, struct err *err)
{
    if (d->any && (d->where == PADDING || *in->next == 0)) {
        d->where = PADDING;
        while (in->avail > 0 && *in->next == 0) {
            in->next++;
            in->avail--;
        }
        return in->avail == 0 ? ERR_NONE : damaged("gzip", "other bytes follow its end", err);
    }
    if (*in->next != 0x1f)
        return damaged("gzip", "other bytes follow its end", err);
    d->where = INSIDE;
    return gz_begin(d, err);
}

static enum err_code gz_run(struct decoder *d, struct bytes_in *in, bool in_end, uint8_t *out, size_t size,
                            size_t *ret_size, struct err *err)
{
    *ret_size = 0;
    for (;;) {
        if (d->where != INSIDE) {
            if (in->avail == 0)
                return ERR_NONE;
            if (gz_between(d, in, err) != ERR_NONE)
                return err->code;
            if (d->where != INSIDE)
                continue;
        }
        size_t avail = in->avail;
        bool is_over;
        if (gz_step(d, in, out, size, ret_size, &is_over, err) != ERR_NONE)
            return err->code;
        if (is_over) {
            d->where = BETWEEN;
            d->any = true;
        }
        if (*ret_size > 0)
            return ERR_NONE;
        if (is_over)
            continue;
        if (in->avail > 0) {
            if (in->avail == avail)
                return damaged("gzip", "the data makes no progress", err);
            continue;
        }
        if (!in_end)
            return ERR_NONE;
        return err_set(err, ERR_INCOMPLETE, false,
                       "the gzip data ends early, without its trailer: the file is not complete");
    }
}

/* ---- zstd */

#if HAVE_ZSTD
static enum err_code zstd_begin(struct decoder *d, struct err *err)
{
    d->zstd = ZSTD_createDStream();
    if (d->zstd == NULL)
        return err_nomem(err);
    ZSTD_DCtx_setParameter(d->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG);
    return ERR_NONE;
}

static enum err_code zstd_run(struct decoder *d, struct bytes_in *in, bool in_end, uint8_t *out, size_t size,
                              size_t *ret_size, struct err *err)
{
    *ret_size = 0;
    for (;;) {
        ZSTD_inBuffer from = {in->next, in->avail, 0};
        ZSTD_outBuffer to = {out, size, 0};
        if (in->avail == 0 && d->where == BETWEEN)
            return ERR_NONE;
        size_t status = ZSTD_decompressStream(d->zstd, &to, &from);
        if (ZSTD_isError(status)) {
            if (ZSTD_getErrorCode(status) == ZSTD_error_memory_allocation)
                return err_nomem(err);
            if (ZSTD_getErrorCode(status) == ZSTD_error_frameParameter_windowTooLarge)
                return err_set(
                    err, ERR_INPUT, false,
                    "the zstd data needs a window of more than 8 MiB; compress it without --long and --ultra");
            return damaged("zstd", ZSTD_getErrorName(status), err);
        }
        in->next += from.pos;
        in->avail -= from.pos;
        d->where = status == 0 ? BETWEEN : INSIDE;
        *ret_size = to.pos;
        if (to.pos > 0)
            return ERR_NONE;
        if (in->avail > 0) {
            if (from.pos == 0)
                return damaged("zstd", "the data makes no progress", err);
            continue;
        }
        if (d->where == BETWEEN || !in_end)
            return ERR_NONE;
        return err_set(err, ERR_INCOMPLETE, false, "the zstd data ends early: the file is not complete");
    }
}
#endif

enum err_code decoder_new(enum compression compression, struct decoder **ret, struct err *err)
{
#if !HAVE_ZSTD
    if (compression == COMPRESSION_ZSTD)
        return err_set(err, ERR_INPUT, false, "zstd data, and this chute was built without zstd");
#endif
    struct decoder *d = calloc(1, sizeof *d);
    if (d == NULL)
        return err_nomem(err);
    d->compression = compression;
#if HAVE_ISAL
    isal_inflate_init(&d->gz);
#endif
#if HAVE_ZSTD
    if (compression == COMPRESSION_ZSTD && zstd_begin(d, err) != ERR_NONE) {
        free(d);
        return err->code;
    }
#endif
    *ret = d;
    return ERR_NONE;
}

void decoder_free(struct decoder *d)
{
    if (d == NULL)
        return;
#if !HAVE_ISAL
    if (d->has_gz)
        inflateEnd(&d->gz);
#endif
#if HAVE_ZSTD
    ZSTD_freeDStream(d->zstd);
#endif
    free(d);
}

enum err_code decoder_run(struct decoder *d, struct bytes_in *in, bool in_end, uint8_t *out, size_t size,
                          size_t *ret_size, struct err *err)
{
#if HAVE_ZSTD
    if (d->compression == COMPRESSION_ZSTD)
        return zstd_run(d, in, in_end, out, size, ret_size, err);
#endif
    return gz_run(d, in, in_end, out, size, ret_size, err);
}
