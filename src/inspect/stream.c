/*
 * stream.c -- the text of a file: its bytes, hashed as they are on disk, decompressed by content, re-encoded as UTF-8.
 *
 * Reads by pread() from offset 0 of its own, so that several passes may share one descriptor.
 */
#include "inspect_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

struct inspect_knobs inspect_knobs = {0, 0, -1};

static const char *const iconv_names[] = {
    [ENC_UTF8] = NULL,
    [ENC_UTF16] = NULL,
    [ENC_WINDOWS_1250] = "WINDOWS-1250",
    [ENC_WINDOWS_1252] = "WINDOWS-1252",
    [ENC_ISO_8859_1] = "ISO-8859-1",
    [ENC_ISO_8859_2] = "ISO-8859-2",
};

/* Bytes of the file: read, counted, hashed. */
static enum err_code disk_read(struct text_stream *t, void *buf, size_t size, size_t *ret_size, struct err *err)
{
    *ret_size = 0;
    if (t->disk_end)
        return ERR_NONE;
    ssize_t n;
    do
        n = pread(t->fd, buf, size < t->block ? size : t->block, (off_t)t->disk_offset);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_set(err, ERR_SYSTEM, true, "read at byte %llu: %s", (unsigned long long)t->disk_offset,
                       strerror(errno));
    if (n == 0)
        t->disk_end = true;
    content_hash_add(t->hash, buf, (size_t)n);
    t->disk_offset += (uint64_t)n;
    *ret_size = (size_t)n;
    return ERR_NONE;
}

/* Decompressed bytes; 0: the end. */
static enum err_code plain_read(struct text_stream *t, void *buf, size_t size, size_t *ret_size, struct err *err)
{
    if (t->decoder == NULL)
        return disk_read(t, buf, size, ret_size, err);
    for (;;) {
        if (t->raw_in.avail == 0 && !t->disk_end) {
            t->raw_in.next = t->raw;
            if (disk_read(t, t->raw, BLOCK_BYTES, &t->raw_in.avail, err) != ERR_NONE)
                return err->code;
        }
        if (decoder_run(t->decoder, &t->raw_in, t->disk_end, buf, size < t->block ? size : t->block, ret_size, err) !=
            ERR_NONE)
            return err->code;
        if (*ret_size > 0 || (t->disk_end && t->raw_in.avail == 0))
            return ERR_NONE;
    }
}

/* At least WANTED bytes into BUF unless the text ends before. */
static enum err_code plain_fill(struct text_stream *t, char *buf, size_t size, size_t wanted, size_t *ret_size,
                                struct err *err)
{
    *ret_size = 0;
    do {
        size_t n;
        if (plain_read(t, buf + *ret_size, size - *ret_size, &n, err) != ERR_NONE)
            return err->code;
        if (n == 0)
            break;
        *ret_size += n;
    } while (*ret_size < wanted);
    return ERR_NONE;
}

static enum err_code start_iconv(struct text_stream *t, const char *name, struct err *err)
{
    t->conv = iconv_open("UTF-8", name);
    if (t->conv == (iconv_t)-1)
        return err_set(err, ERR_SYSTEM, false, "encoding %s: %s (is the C library's gconv folder installed?)", name,
                       strerror(errno));
    t->has_conv = true;
    return ERR_NONE;
}

/* The first text: byte order marks, and the converter that they or the configuration ask for. */
static enum err_code start(struct text_stream *t, char *buf, size_t size, size_t *ret_size, struct err *err)
{
    t->started = true;
    size_t n;
    if (t->encoding == ENC_UTF8) {
        if (plain_fill(t, buf, size, 3, &n, err) != ERR_NONE)
            return err->code;
        if (n >= 3 && memcmp(buf, "\xEF\xBB\xBF", 3) == 0) {
            t->has_bom = true;
            t->first_offset = 3;
            n -= 3;
            memmove(buf, buf + 3, n);
            if (n == 0)
                return plain_read(t, buf, size, ret_size, err);
        } else if (n >= 2 && (memcmp(buf, "\xFF\xFE", 2) == 0 || memcmp(buf, "\xFE\xFF", 2) == 0)) {
            return err_set(
                err, ERR_INPUT, false,
                "byte offset 0: a UTF-16 byte order mark, expected UTF-8; write the file as UTF-8, or, if it "
                "is CSV, set csv.encoding: utf-16 for this flow");
        }
        *ret_size = n;
        return ERR_NONE;
    }
    if (plain_fill(t, t->enc, t->enc_size, 2, &t->enc_end, err) != ERR_NONE)
        return err->code;
    if (t->encoding != ENC_UTF16)
        return start_iconv(t, iconv_names[t->encoding], err);
    if (t->enc_end == 0)
        return ERR_NONE;
    bool is_little = t->enc_end >= 2 && memcmp(t->enc, "\xFF\xFE", 2) == 0;
    if (!is_little && (t->enc_end < 2 || memcmp(t->enc, "\xFE\xFF", 2) != 0))
        return err_set(err, t->enc_end < 2 ? ERR_INCOMPLETE : ERR_INPUT, false,
                       "byte offset 0: no UTF-16 byte order mark, and csv.encoding is utf-16");
    t->has_bom = true;
    t->first_offset = t->enc_offset = 2;
    t->enc_pos = 2;
    return start_iconv(t, is_little ? "UTF-16LE" : "UTF-16BE", err);
}

/* A sequence that iconv does not take: cut by the end of what we have, or wrong. */
static enum err_code convert_stuck(struct text_stream *t, int cause, struct err *err)
{
    if (cause == EINVAL && t->enc_over)
        return err_set(err, ERR_INCOMPLETE, false, "byte offset %llu: the text ends in the middle of a character",
                       (unsigned long long)t->enc_offset);
    if (cause == EINVAL)
        return ERR_NONE;
    return err_set(err, ERR_INPUT, false, "byte offset %llu: byte 0x%02X is no character in %s; correct csv.encoding",
                   (unsigned long long)t->enc_offset, (unsigned char)t->enc[t->enc_pos],
                   t->encoding == ENC_UTF16 ? "utf-16" : iconv_names[t->encoding]);
}

static enum err_code convert_read(struct text_stream *t, char *buf, size_t size, size_t *ret_size, struct err *err)
{
    *ret_size = 0;
    while (*ret_size == 0) {
        if (t->enc_pos == t->enc_end && t->enc_over)
            return ERR_NONE;
        char *in = t->enc + t->enc_pos, *out = buf;
        size_t in_left = t->enc_end - t->enc_pos, out_left = size;
        size_t status = in_left > 0 ? iconv(t->conv, &in, &in_left, &out, &out_left) : 0;
        int cause = status == (size_t)-1 ? errno : 0;
        size_t used = t->enc_end - t->enc_pos - in_left;
        t->enc_pos += used;
        t->enc_offset += used;
        *ret_size = size - out_left;
        if (*ret_size > 0)
            return ERR_NONE; /* what stopped it is met again by the next call, with its place */
        if (cause != 0 && cause != E2BIG && convert_stuck(t, cause, err) != ERR_NONE)
            return err->code;
        memmove(t->enc, t->enc + t->enc_pos, in_left);
        t->enc_pos = 0;
        t->enc_end = in_left;
        size_t n;
        if (plain_read(t, t->enc + t->enc_end, t->enc_size - t->enc_end, &n, err) != ERR_NONE)
            return err->code;
        t->enc_over = n == 0;
        t->enc_end += n;
    }
    return ERR_NONE;
}

enum err_code text_read(struct text_stream *t, char *buf, size_t size, size_t *ret_size, struct err *err)
{
    *ret_size = 0;
    if (t->ended)
        return ERR_NONE;
    if (!t->started) {
        if (start(t, buf, size, ret_size, err) != ERR_NONE)
            return err->code;
        if (*ret_size > 0)
            return ERR_NONE;
    }
    if (t->has_conv ? convert_read(t, buf, size, ret_size, err) != ERR_NONE
                    : plain_read(t, buf, size, ret_size, err) != ERR_NONE)
        return err->code;
    t->ended = *ret_size == 0;
    return ERR_NONE;
}

void text_hash(const struct text_stream *t, uint8_t ret[16])
{
    content_hash_get(t->hash, ret);
}

/* By the first bytes. A file that holds only a part of a signature is a compressed file that has just begun. */
static enum err_code detect(struct text_stream *t, struct err *err)
{
    uint8_t magic[4] = {0};
    ssize_t n;
    do
        n = pread(t->fd, magic, sizeof magic, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_set(err, ERR_SYSTEM, true, "read: %s", strerror(errno));
    size_t got = (size_t)n;
    if (got > 0 && memcmp(magic, "\x1F\x8B\x08", got < 3 ? got : 3) == 0)
        t->compression = COMPRESSION_GZIP;
    else if (got >= 2 && memcmp(magic, "\x28\xB5\x2F\xFD", got) == 0)
        t->compression = COMPRESSION_ZSTD;
    else if (got == 4 && (magic[0] & 0xF0) == 0x50 && memcmp(magic + 1, "\x2A\x4D\x18", 3) == 0)
        t->compression = COMPRESSION_ZSTD; /* a skippable frame first, as pzstd writes */
    return ERR_NONE;
}

enum err_code text_open(struct text_stream *t, int fd, enum encoding encoding, struct err *err)
{
    memset(t, 0, sizeof *t);
    t->fd = fd;
    t->encoding = encoding;
    t->block = inspect_knobs.block > 0 ? inspect_knobs.block : BLOCK_BYTES;
    if (detect(t, err) != ERR_NONE)
        return err->code;
    t->hash = content_hash_new();
    if (t->hash == NULL)
        return err_nomem(err);
    if (t->compression != COMPRESSION_NONE) {
        t->raw = malloc(BLOCK_BYTES);
        if (t->raw == NULL) {
            err_nomem(err);
            goto close_stream;
        }
        if (decoder_new(t->compression, &t->decoder, err) != ERR_NONE)
            goto close_stream;
    }
    if (encoding != ENC_UTF8) {
        t->enc_size = BLOCK_BYTES / 4;
        t->enc = malloc(t->enc_size);
        if (t->enc == NULL) {
            err_nomem(err);
            goto close_stream;
        }
    }
    return ERR_NONE;
close_stream:
    text_close(t);
    return err->code;
}

void text_close(struct text_stream *t)
{
    if (t->has_conv)
        iconv_close(t->conv);
    t->has_conv = false;
    decoder_free(t->decoder);
    t->decoder = NULL;
    free(t->raw);
    free(t->enc);
    t->raw = NULL;
    t->enc = NULL;
    content_hash_free(t->hash);
    t->hash = NULL;
}
