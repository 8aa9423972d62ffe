/*
 * remote_scan.c -- all folders that `paths` reach into, and questions about single files.
 *
 * A scan begins in the folders that the globs name literally and goes down where something could match. It keeps the
 * folders it has still to visit and what the sink has not taken yet; while that is more than a chunk the server waits.
 * Links are not followed: nobody here could say whether they lead out of what was meant.
 *
 * A question (probe) lists each folder that its paths are in once and looks them up there.
 */
#include "remote_internal.h"

#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define LIST_TRIES 3 /* a connection that breaks once is no news; entries that come twice are the same */

struct met {
    struct met *next;
    struct file_id id;
    char path[];
};

struct folder {
    struct folder *next;
    char path[];
};

struct scan {
    struct lister lister; /* first */
    struct remote *remote;
    struct folder *todo;
    struct met *met, *met_last;
    size_t met_count;
    struct found given[SCAN_CHUNK]; /* with the sink until resume */
    struct met *held;               /* what those point into */
    bool is_given, is_listing;
    unsigned tries;  /* of the folder in the lister */
    bool has_missed; /* some folder could not be listed */
    uint64_t files, folders;
    bool *is_matched; /* per glob */
};

/* ---- what is met ---- */

static bool join(struct buf *b, const char *folder, const char *name)
{
    buf_adds(b, folder);
    if (folder[0] != '\0')
        buf_addc(b, '/');
    buf_adds(b, name);
    return !b->failed;
}

static bool is_base(const struct remote *r, const char *path)
{
    bool is_it = false;
    for (size_t i = 0; i < r->options->paths.count && !is_it; i++) {
        struct buf base;
        buf_init(&base);
        remote_glob_base(r->options->paths.items[i], &base);
        is_it = !base.failed && base.data != NULL && strcmp(base.data, path) == 0;
        buf_done(&base);
    }
    return is_it;
}

static bool push_folder(struct scan *s, const char *path)
{
    size_t size = strlen(path) + 1;
    struct folder *f = malloc(sizeof *f + size);
    if (f == NULL)
        return false;
    memcpy(f->path, path, size);
    LL_PREPEND(s->todo, f);
    return true;
}

static bool push_met(struct scan *s, const char *path, const struct file_id *id)
{
    size_t size = strlen(path) + 1;
    struct met *m = malloc(sizeof *m + size);
    if (m == NULL)
        return false;
    *m = (struct met){.id = *id};
    memcpy(m->path, path, size);
    if (s->met_last != NULL)
        s->met_last->next = m;
    else
        s->met = m;
    s->met_last = m;
    s->met_count++;
    return true;
}

static void note_matches(struct scan *s, const char *path)
{
    const struct option_strings *globs = &s->remote->options->paths;
    for (size_t i = 0; i < globs->count; i++) {
        const struct option_strings one = {.items = &globs->items[i], .count = 1};
        if (!s->is_matched[i])
            s->is_matched[i] = remote_takes(&one, path);
    }
}

static bool on_entry(void *arg, const struct listing_entry *entry)
{
    struct scan *s = arg;
    struct remote *r = s->remote;
    struct buf path;
    bool is_fine = true;
    buf_init(&path);
    if (!join(&path, s->lister.folder, entry->name)) {
        is_fine = false;
    } else if (entry->kind == LISTING_FOLDER) {
        if (remote_enters(&r->options->paths, path.data) && !is_base(r, path.data))
            is_fine = push_folder(s, path.data);
    } else if (entry->kind == LISTING_FILE && remote_takes(&r->options->paths, path.data)) {
        struct file_id id;
        note_matches(s, path.data);
        s->files++;
        remote_id_of(entry, &id);
        if (r->wants(r->wants_arg, path.data))
            is_fine = push_met(s, path.data, &id);
    }
    buf_done(&path);
    if (!is_fine)
        err_nomem(&s->lister.call.err);
    return is_fine;
}

static bool is_full(void *arg)
{
    const struct scan *s = arg;
    if (s->met_count < SCAN_CHUNK)
        return false;
    remote_kick(s->remote); /* hands them over, outside of curl */
    return true;
}

/* ---- and handed over ---- */

static void free_met(struct met *list)
{
    struct met *m, *next;
    LL_FOREACH_SAFE(list, m, next)
        free(m);
}

static void step(struct scan *s);

static void give(struct scan *s)
{
    size_t n = 0;
    s->held = s->met;
    while (s->met != NULL && n < SCAN_CHUNK) {
        struct met *m = s->met;
        s->given[n++] = (struct found){.path = m->path, .how = FOUND_SCANNED, .id = m->id};
        s->met = m->next;
        if (n == SCAN_CHUNK || s->met == NULL)
            m->next = NULL;
    }
    if (s->met == NULL)
        s->met_last = NULL;
    s->met_count -= n;
    s->is_given = true;
    s->remote->sink.on_scanned(s->remote->sink.arg, s->given, n);
}

void remote_scan_resume(struct remote *r)
{
    struct scan *s = r->scan;
    if (s == NULL || !s->is_given)
        return;
    free_met(s->held);
    s->held = NULL;
    s->is_given = false;
    if (s->is_listing && !is_full(s))
        call_resume(&s->lister.call);
    remote_kick(r); /* never from inside the sink's call */
}

/* ---- from folder to folder ---- */

static void problem(struct remote *r, const struct err *err)
{
    if (err->code != ERR_STOPPED && r->health.problem[0] == '\0')
        snprintf(r->health.problem, sizeof r->health.problem, "%s", err->text);
}

static bool begin_folder(struct scan *s, const char *path)
{
    struct err err = {0};
    s->is_listing = lister_start(&s->lister, s->remote, path, &err) == ERR_NONE;
    if (!s->is_listing) {
        s->has_missed = true;
        problem(s->remote, &err);
    }
    return s->is_listing;
}

static void drop_todo(struct scan *s)
{
    struct folder *f, *next;
    LL_FOREACH_SAFE(s->todo, f, next)
        free(f);
    s->todo = NULL;
}

static void on_listed(struct lister *l)
{
    struct scan *s = (struct scan *)l;
    struct remote *r = s->remote;
    const struct err *err = &l->call.err;
    s->is_listing = false;
    if (err->code == ERR_REMOTE && err->retryable && ++s->tries < LIST_TRIES && !r->is_closing && !r->is_hurried) {
        char *again = strdup(l->folder);
        bool is_begun = again != NULL && begin_folder(s, again);
        free(again);
        if (is_begun)
            return;
    }
    if (err->code == ERR_NONE) {
        s->folders++;
    } else {
        s->has_missed = true;
        problem(r, err);
        if (err->code != ERR_INPUT) { /* the server does not answer: asking it for other folders tells nothing new */
            r->health.is_reachable = false;
            drop_todo(s);
        }
    }
    step(s);
}

/* A file that `paths` name one by one and that is not there is told; nothing else would ever speak of it. */
static void tell_missing(struct scan *s)
{
    struct remote *r = s->remote;
    for (size_t i = 0; i < r->options->paths.count; i++) {
        const char *glob = r->options->paths.items[i];
        char shown[300];
        struct err err = {0};
        if (s->is_matched[i] || !remote_glob_is_plain(glob) || s->has_missed)
            continue;
        err_set(&err, ERR_INPUT, false, "%s: %s does not exist there", r->where,
                text_printable(glob, shown, sizeof shown));
        problem(r, &err);
    }
}

static void finish(struct scan *s)
{
    struct remote *r = s->remote;
    const struct scan_result result = {.is_complete = !s->has_missed, .files = s->files, .folders = s->folders};
    tell_missing(s);
    if (!s->has_missed)
        r->health.is_reachable = true;
    r->health.folders = s->folders;
    r->health.scans++;
    remote_scan_free(r);
    r->sink.on_health(r->sink.arg);
    r->sink.on_scan_done(r->sink.arg, &result);
    remote_kick(r);
}

static void step(struct scan *s)
{
    struct remote *r = s->remote;
    if (r->is_closing) {
        remote_scan_free(r);
        return;
    }
    if (s->is_given)
        return;
    if (s->met_count >= SCAN_CHUNK || (s->met_count > 0 && !s->is_listing && s->todo == NULL)) {
        give(s);
        return;
    }
    while (!s->is_listing && s->todo != NULL) {
        struct folder *f = s->todo;
        LL_DELETE(s->todo, f);
        s->tries = 0;
        bool is_begun = begin_folder(s, f->path);
        free(f);
        if (is_begun)
            return;
    }
    if (!s->is_listing && s->todo == NULL && s->met_count == 0)
        finish(s);
}

static bool push_bases(struct scan *s)
{
    const struct option_strings *globs = &s->remote->options->paths;
    for (size_t i = 0; i < globs->count; i++) {
        struct buf base;
        bool is_fine, is_there = false;
        const struct folder *f;
        buf_init(&base);
        remote_glob_base(globs->items[i], &base);
        is_fine = !base.failed && base.data != NULL;
        LL_FOREACH(s->todo, f)
            is_there = is_there || (is_fine && strcmp(f->path, base.data) == 0);
        if (is_fine && !is_there)
            is_fine = push_folder(s, base.data);
        buf_done(&base);
        if (!is_fine)
            return false;
    }
    return true;
}

void remote_scan_next(struct remote *r)
{
    if (r->scan != NULL) {
        if (!r->scan->is_listing || r->scan->met_count >= SCAN_CHUNK)
            step(r->scan);
        return;
    }
    if (!r->must_scan || r->is_hurried)
        return;
    r->must_scan = false;
    struct scan *s = calloc(1, sizeof *s);
    bool *matched = calloc(r->options->paths.count + 1, sizeof *matched);
    r->health.problem[0] = '\0';
    if (s == NULL || matched == NULL) {
        const struct scan_result nothing = {.is_complete = false};
        free(s);
        free(matched);
        r->sink.on_scan_done(r->sink.arg, &nothing);
        return;
    }
    r->scan = s;
    s->remote = r;
    s->is_matched = matched;
    s->lister.cb = on_entry;
    s->lister.is_full = is_full;
    s->lister.arg = s;
    s->lister.done = on_listed;
    if (!push_bases(s)) {
        struct err err = {0};
        s->has_missed = true;
        err_nomem(&err);
        problem(r, &err);
    }
    step(s);
}

void remote_scan_free(struct remote *r)
{
    struct scan *s = r->scan;
    if (s == NULL || s->is_listing) /* then its lister's end comes back here */
        return;
    r->scan = NULL;
    drop_todo(s);
    free_met(s->met);
    free_met(s->held);
    lister_free(&s->lister);
    free(s->is_matched);
    free(s);
}

/* ---- questions ---- */

struct questions {
    struct lister lister; /* first */
    struct remote *remote;
    struct questions *next;
    struct probe *probes;
    size_t count;
    size_t *order;   /* by path: neighbours in a folder are neighbours here, as far as it is one folder */
    size_t from, to; /* those of ORDER that are in the folder that is being listed */
    bool is_listing;
    probe_cb *cb;
    void *arg;
};

static size_t folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? (size_t)(slash - path) : 0;
}

static const char *name_in(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* By folder, then by name. */
static int by_place(const char *a, const char *b)
{
    size_t n = folder_length(a), m = folder_length(b);
    int order = strncmp(a, b, n < m ? n : m);
    if (order != 0)
        return order;
    if (n != m)
        return n < m ? -1 : 1;
    return strcmp(name_in(a), name_in(b));
}

static int by_place_of(const void *a, const void *b, void *arg)
{
    const struct probe *probes = arg;
    return by_place(probes[*(const size_t *)a].path, probes[*(const size_t *)b].path);
}

static bool on_asked_entry(void *arg, const struct listing_entry *entry)
{
    struct questions *q = arg;
    size_t low = q->from, high = q->to;
    if (entry->kind != LISTING_FILE)
        return true;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(name_in(q->probes[q->order[middle]].path), entry->name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < q->to && strcmp(name_in(q->probes[q->order[low]].path), entry->name) == 0; low++) {
        struct probe *p = &q->probes[q->order[low]];
        p->answer = PROBE_PRESENT;
        remote_id_of(entry, &p->id);
    }
    return true;
}

static void next_folder(struct questions *q);

static void on_answered(struct lister *l)
{
    struct questions *q = (struct questions *)l;
    bool is_known = l->call.err.code == ERR_NONE || l->call.is_gone;
    q->is_listing = false;
    for (size_t i = q->from; i < q->to; i++) {
        struct probe *p = &q->probes[q->order[i]];
        if (!is_known)
            p->answer = PROBE_UNKNOWN; /* of half a listing nothing is believed */
        else if (p->answer != PROBE_PRESENT)
            p->answer = PROBE_GONE;
    }
    q->from = q->to;
    next_folder(q);
}

static void next_question(struct remote *r);

static void answer(struct questions *q)
{
    struct remote *r = q->remote;
    LL_DELETE(r->questions, q);
    q->cb(q->arg, q->probes, q->count);
    lister_free(&q->lister);
    free(q->order);
    free(q);
    if (!r->is_closing)
        next_question(r);
}

static void next_folder(struct questions *q)
{
    struct remote *r = q->remote;
    while (q->from < q->count) {
        const char *first = q->probes[q->order[q->from]].path;
        size_t n = folder_length(first);
        char *folder = strndup(first, n);
        struct err err = {0};
        for (q->to = q->from; q->to < q->count; q->to++) {
            struct probe *p = &q->probes[q->order[q->to]];
            if (folder_length(p->path) != n || strncmp(p->path, first, n) != 0)
                break;
            p->answer = PROBE_UNKNOWN;
        }
        bool is_begun = folder != NULL && lister_start(&q->lister, r, folder, &err) == ERR_NONE;
        free(folder);
        q->is_listing = is_begun;
        if (is_begun)
            return;
        q->from = q->to;
    }
    answer(q);
}

static void next_question(struct remote *r)
{
    struct questions *q = r->questions;
    if (q == NULL || q->is_listing || q->from > 0)
        return;
    next_folder(q);
}

enum err_code remote_probe(struct remote *r, struct probe *probes, size_t count, probe_cb *cb, void *arg,
                           struct err *err)
{
    struct questions *q = calloc(1, sizeof *q);
    size_t *order = calloc(count + 1, sizeof *order);
    if (r->is_closing || q == NULL || order == NULL) {
        free(q);
        free(order);
        return r->is_closing ? err_set(err, ERR_STOPPED, true, "the source is closing") : err_nomem(err);
    }
    for (size_t i = 0; i < count; i++) {
        order[i] = i;
        probes[i].answer = PROBE_UNKNOWN;
    }
    qsort_r(order, count, sizeof *order, by_place_of, probes);
    q->remote = r;
    q->probes = probes;
    q->count = count;
    q->order = order;
    q->cb = cb;
    q->arg = arg;
    q->lister.cb = on_asked_entry;
    q->lister.arg = q;
    q->lister.done = on_answered;
    LL_APPEND(r->questions, q);
    remote_kick(r);
    return ERR_NONE;
}

void remote_questions_next(struct remote *r)
{
    if (!r->is_closing && !r->is_hurried) {
        next_question(r);
        return;
    }
    while (r->questions != NULL && !r->questions->is_listing) { /* the others are ended by their listers */
        r->questions->from = r->questions->to = r->questions->count;
        answer(r->questions);
    }
}
