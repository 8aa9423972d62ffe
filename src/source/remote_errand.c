/*
 * remote_errand.c -- delete or move a file over there.
 *
 * Its folder is listed first: only the version that was loaded is touched, and a name that is taken in the target
 * folder is not written over (NAME.1 … instead, as for local files). Between that look and the command somebody may
 * still write the file anew; no protocol here has a command that asks.
 */
#include "remote_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define CANDIDATES 10 /* NAME and NAME.1 to NAME.9 */

struct running {
    struct call call; /* first */
    struct source_errand *errand;
    struct running *next;
    struct probe probes[1 + CANDIDATES]; /* the file, then the names it may get */
    size_t probe_count;
    char names[CANDIDATES][1024];
    size_t chosen;
};

static void finish(struct running *run)
{
    struct source_errand *errand = run->errand;
    struct remote *r = run->call.remote;
    LL_DELETE(r->errands, run);
    free(run);
    errand->driver = NULL;
    errand->finished(errand);
    remote_kick(r);
}

static void on_done(struct call *call)
{
    struct running *run = (struct running *)call;
    call_done(call);
    run->errand->err = call->err;
    if (call->err.code == ERR_NONE && run->errand->to != NULL)
        snprintf(run->errand->moved_to, sizeof run->errand->moved_to, "%s", run->names[run->chosen]);
    finish(run);
}

static const struct call_ops ops = {.done = on_done};

/* A name as SFTP's commands take it. */
static void add_quoted(struct buf *b, const char *name)
{
    buf_addc(b, '"');
    for (; *name != '\0'; name++) {
        if (*name == '"' || *name == '\\')
            buf_addc(b, '\\');
        buf_addc(b, *name);
    }
    buf_addc(b, '"');
}

static void full_name(const struct remote *r, const char *path, struct buf *ret)
{
    struct buf plain;
    buf_init(&plain);
    remote_full_path(r->url.root, path, &plain);
    if (plain.failed)
        ret->failed = true;
    else if (r->kind == REMOTE_SFTP)
        add_quoted(ret, plain.data);
    else
        buf_adds(ret, plain.data);
    buf_done(&plain);
}

/* The folders above PATH, from the top; one that is there already is no error ('*'). */
static enum err_code make_folders(struct call *call, const char *path, struct err *err)
{
    const struct remote *r = call->remote;
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        char *folder = strndup(path, (size_t)(slash - path));
        struct buf name;
        buf_init(&name);
        if (folder != NULL)
            full_name(r, folder, &name);
        if (folder == NULL || name.failed)
            err_nomem(err);
        else
            call_quote(call, err, r->kind == REMOTE_SFTP ? "*mkdir %s" : "*MKD %s", name.data);
        buf_done(&name);
        free(folder);
        if (err->code != ERR_NONE)
            return err->code;
    }
    return ERR_NONE;
}

static enum err_code give_orders(struct running *run, struct err *err)
{
    struct call *call = &run->call;
    const struct remote *r = call->remote;
    bool is_sftp = r->kind == REMOTE_SFTP;
    struct buf from, to;
    buf_init(&from);
    buf_init(&to);
    full_name(r, run->errand->path, &from);
    if (run->errand->to != NULL)
        full_name(r, run->names[run->chosen], &to);
    if (from.failed || to.failed) {
        err_nomem(err);
    } else if (run->errand->to == NULL) {
        call_quote(call, err, is_sftp ? "rm %s" : "DELE %s", from.data);
    } else if (make_folders(call, run->names[run->chosen], err) == ERR_NONE) {
        if (is_sftp)
            call_quote(call, err, "rename %s %s", from.data, to.data);
        else if (call_quote(call, err, "RNFR %s", from.data) == ERR_NONE)
            call_quote(call, err, "RNTO %s", to.data);
    }
    buf_done(&from);
    buf_done(&to);
    return err->code;
}

static enum err_code begin(struct running *run, struct err *err)
{
    struct remote *r = run->call.remote;
    if (strpbrk(run->errand->path, "\r\n") != NULL)
        return err_set(err, ERR_INPUT, false, "a name with a line end can't be put into a command");
    if (call_init(&run->call, r, &ops, "", true, err) != ERR_NONE)
        return err->code;
    if (give_orders(run, err) == ERR_NONE && r->curl->easy_setopt(run->call.easy, CURLOPT_NOBODY, 1L) != CURLE_OK)
        err_nomem(err);
    if (err->code != ERR_NONE || call_begin(&run->call, err) != ERR_NONE)
        call_done(&run->call);
    return err->code;
}

static void on_looked(void *arg, struct probe *probes, size_t count)
{
    struct running *run = arg;
    struct source_errand *errand = run->errand;
    const struct probe *it = &probes[0];
    (void)count;
    if (it->answer == PROBE_GONE) {
        errand->is_gone = true;
        finish(run);
        return;
    }
    if (it->answer == PROBE_UNKNOWN) {
        err_set(&errand->err, ERR_REMOTE, true, "%s: its folder can't be listed", run->call.remote->where);
        finish(run);
        return;
    }
    if (it->id.size != errand->id.size || it->id.mtime_ns != errand->id.mtime_ns) {
        err_set(&errand->err, ERR_CHANGED, true, "another version is there now");
        finish(run);
        return;
    }
    while (errand->to != NULL && run->chosen < CANDIDATES && probes[1 + run->chosen].answer == PROBE_PRESENT)
        run->chosen++;
    if (run->chosen == CANDIDATES)
        err_set(&errand->err, ERR_SYSTEM, true, "%s and nine more names like it are taken", run->names[0]);
    if (errand->err.code != ERR_NONE || begin(run, &errand->err) != ERR_NONE)
        finish(run);
}

enum err_code remote_errand(struct remote *r, struct source_errand *errand, struct err *err)
{
    struct running *run = calloc(1, sizeof *run);
    if (run == NULL)
        return err_nomem(err);
    run->call.remote = r;
    run->errand = errand;
    run->probes[run->probe_count++].path = errand->path;
    err_clear(&errand->err);
    errand->is_gone = false;
    errand->moved_to[0] = '\0';
    const char *slash = strrchr(errand->path, '/'), *name = slash != NULL ? slash + 1 : errand->path;
    for (size_t i = 0; errand->to != NULL && i < CANDIDATES; i++) {
        const char *to = errand->to + strspn(errand->to, "/");
        size_t n = strlen(to);
        while (n > 0 && to[n - 1] == '/')
            n--;
        char suffix[16] = "";
        if (i > 0)
            snprintf(suffix, sizeof suffix, ".%zu", i);
        if ((size_t)snprintf(run->names[i], sizeof run->names[i], "%.*s%s%s%s", (int)n, to, n > 0 ? "/" : "", name,
                             suffix) >= sizeof run->names[i]) {
            free(run);
            return err_set(err, ERR_INPUT, false, "the name in %s is too long", errand->to);
        }
        run->probes[run->probe_count++].path = run->names[i];
    }
    if (remote_probe(r, run->probes, run->probe_count, on_looked, run, err) != ERR_NONE) {
        free(run);
        return err->code;
    }
    errand->driver = run;
    LL_PREPEND(r->errands, run);
    return ERR_NONE;
}
