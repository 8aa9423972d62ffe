/* azure_drop.c -- a blob goes with its file, or is told the file's new name. Only blobs that chute wrote are touched.
 */
#include "azure_internal.h"

#include "upload_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEPT_HEADERS 12

struct azure_drop {
    struct azure *a;
    struct load *load;
    struct azure_call *call;
};

static void finish(struct azure_drop *d, const char *said, const struct err *err)
{
    struct azure *a = d->a;
    struct load *load = d->load;
    snprintf(load->receipt.dest_id, sizeof load->receipt.dest_id, "%s", said);
    load->receipt.dest_rows = -1;
    load->receipt.updated = load->what == LOAD_FORGET && strcmp(said, "dropped") == 0;
    if (err != NULL)
        load->err = *err;
    else
        err_clear(&load->err);
    free(d);
    load->driver = NULL;
    load->finished(load);
    azure_load_over(a);
}

static void on_changed(void *arg, const struct azure_reply *r)
{
    struct azure_drop *d = arg;
    struct err err = r->err;
    bool is_drop = d->load->what != LOAD_CARRY;
    d->call = NULL;
    d->load->retry_after_ms = r->retry_after_ms;
    if (err.code == ERR_NONE || r->status == 404) {
        finish(d, is_drop ? "dropped" : "", NULL);
        return;
    }
    if (r->status == 412 || r->status == 409)
        err_set(&err, ERR_REMOTE, true, "%s", r->err.text);
    finish(d, "kept", &err);
}

/* All that it had, with another path. */
static enum err_code carry(struct azure_drop *d, const struct azure_reply *r, const char *condition, struct err *err)
{
    static const char *const names[] = {"original_size", "modified",   "modified_seconds", "chute_source",
                                        "chute_hash",    "chute_load", "chute_instance"};
    struct ask headers = {.method = ""};
    struct buf path;
    const char *slash = strrchr(d->load->path, '/');
    buf_init(&path);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "x-ms-meta-%s", names[i]);
        const char *value = http_header(r->answer, name);
        if (value != NULL)
            ask_header(&headers, "%s: %s", name, value);
    }
    url_encode(d->load->path, true, &path);
    ask_header(&headers, AZURE_META "path: %s", path.failed ? "" : path.data);
    buf_clear(&path);
    url_encode(slash != NULL ? slash + 1 : d->load->path, true, &path);
    ask_header(&headers, "x-ms-meta-original_name: %s", path.failed ? "" : path.data);
    ask_header(&headers, "%s", condition);
    enum err_code code = path.failed || headers.has_failed ? err_nomem(err) : ERR_NONE;
    if (code == ERR_NONE)
        code = azure_call(d->a, "PUT", d->load->table, "comp=metadata", (const char *const *)headers.headers,
                          on_changed, d, &d->call, err);
    ask_done(&headers);
    buf_done(&path);
    return code;
}

static void on_looked(void *arg, const struct azure_reply *r)
{
    struct azure_drop *d = arg;
    const struct load *load = d->load;
    struct err err;
    char condition[160];
    d->call = NULL;
    if (r->status == 404) {
        finish(d, "kept", NULL);
        return;
    }
    if (r->err.code != ERR_NONE) {
        d->load->retry_after_ms = r->retry_after_ms;
        finish(d, "kept", &r->err);
        return;
    }
    const char *etag = http_header(r->answer, "ETag");
    snprintf(condition, sizeof condition, "If-Match: %s", etag != NULL ? etag : "*");
    bool is_ours = azure_is_of(r, load->source, load->what == LOAD_CARRY ? load->from_path : load->path) ||
                   (load->what == LOAD_FORGET && azure_meta(r, "hash")[0] != '\0');
    enum err_code code;
    if (!is_ours) { /* somebody's, or that of a file which has taken the name */
        finish(d, "kept", NULL);
        return;
    }
    if (load->what == LOAD_CARRY) {
        code = carry(d, r, condition, &err);
    } else {
        const char *const headers[] = {condition, "x-ms-delete-snapshots: include", NULL};
        code = azure_call(d->a, "DELETE", load->table, "", headers, on_changed, d, &d->call, &err);
    }
    if (code != ERR_NONE)
        finish(d, "kept", &err);
}

enum err_code azure_drop_begin(struct azure *a, struct load *load, struct err *err)
{
    if (load->what == LOAD_EMPTY)
        return err_set(err, ERR_INPUT, false, "a blob can't be emptied");
    struct azure_drop *d = calloc(1, sizeof *d);
    if (d == NULL)
        return err_nomem(err);
    d->a = a;
    d->load = load;
    memset(&load->receipt, 0, sizeof load->receipt);
    load->driver = d;
    if (azure_call(a, "HEAD", load->table, "", NULL, on_looked, d, &d->call, err) == ERR_NONE)
        return ERR_NONE;
    load->driver = NULL;
    free(d);
    return err->code;
}

void azure_drop_abort(struct load *load)
{
    struct azure_drop *d = load->driver;
    if (d != NULL)
        azure_cancel(d->call);
}
