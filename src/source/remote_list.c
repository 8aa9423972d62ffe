/*
 * remote_list.c -- the entries of one folder, whatever the server speaks.
 *
 * FTP: MLSD where the server knows it, LIST where it said that it does not. SFTP: the long names that libssh2 brings.
 * Only a listing that curl calls complete and whose last line has an end counts; of another one the entries came all
 * the same, and its owner hears of the error at the end.
 */
#include "remote_internal.h"

#include "clock.h"

#include <stdlib.h>
#include <string.h>

static size_t on_bytes(struct call *call, const char *bytes, size_t size)
{
    struct lister *l = (struct lister *)call;
    if (l->is_full != NULL && l->is_full(l->arg))
        return CURL_WRITEFUNC_PAUSE;
    return listing_feed(&l->listing, bytes, size, &call->err) == ERR_NONE ? size : 0;
}

static bool on_entry(void *arg, const struct listing_entry *entry)
{
    struct lister *l = arg;
    l->entries++;
    return l->cb(l->arg, entry);
}

static bool does_not_know_mlsd(const struct lister *l)
{
    const struct call *call = &l->call;
    return l->is_mlsd && l->entries == 0 && call->result != CURLE_OK && !call->is_aborted &&
           (call->response == 500 || call->response == 501 || call->response == 502 || call->response == 504);
}

static enum err_code begin(struct lister *l, struct remote *r, struct err *err);

static void on_done(struct call *call)
{
    struct lister *l = (struct lister *)call;
    struct remote *r = call->remote;
    call_done(call);
    if (does_not_know_mlsd(l)) {
        struct err err = {0};
        r->has_no_mlsd = true;
        if (begin(l, r, &err) == ERR_NONE)
            return;
        call->err = err;
    }
    if (call->err.code == ERR_NONE)
        listing_end(&l->listing, &call->err);
    if (call->err.code != ERR_NONE && call->err.code != ERR_STOPPED)
        err_wrap(&call->err, "list /%s", l->folder);
    l->done(l);
}

static const struct call_ops ops = {.bytes = on_bytes, .done = on_done};

static enum err_code begin(struct lister *l, struct remote *r, struct err *err)
{
    if (call_init(&l->call, r, &ops, l->folder, true, err) != ERR_NONE)
        return err->code;
    listing_init(&l->listing, clock_wall_ms() / 1000, on_entry, l);
    l->is_mlsd = r->kind != REMOTE_SFTP && !r->has_no_mlsd;
    if (l->is_mlsd && r->curl->easy_setopt(l->call.easy, CURLOPT_CUSTOMREQUEST, "MLSD") != CURLE_OK)
        err_nomem(err);
    if (err->code != ERR_NONE || call_begin(&l->call, err) != ERR_NONE)
        call_done(&l->call);
    return err->code;
}

enum err_code lister_start(struct lister *l, struct remote *r, const char *folder, struct err *err)
{
    l->entries = 0;
    free(l->folder);
    l->folder = strdup(folder);
    if (l->folder == NULL)
        return err_nomem(err);
    return begin(l, r, err);
}

void lister_free(struct lister *l)
{
    free(l->folder);
    l->folder = NULL;
}

void remote_id_of(const struct listing_entry *entry, struct file_id *ret)
{
    *ret =
        (struct file_id){.size = entry->has_size ? entry->size : 0, .mtime_ns = entry->has_time ? entry->mtime_ns : 0};
}
