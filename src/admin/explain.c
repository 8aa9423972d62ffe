/*
 * explain.c -- `chute explain FILE`: one paragraph that is true and specific.
 *
 * Composed from the configuration (which flow would take it), the file system (what is there), the engine's memory
 * (what waits) and the ledger (what was decided), in the daemon or, without one, in the command.
 */
#include "admin_internal.h"

#include "clock.h"
#include "text.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool source_root(const struct config_source *s, char *ret)
{
    for (const struct option *o = s->ops->options; o != NULL && o->name != NULL; o++) {
        if (strcmp(o->name, "path") != 0 || o->type != OPT_PATH)
            continue;
        const char *path = *(const char *const *)((const char *)s->options + o->offset);
        if (path == NULL)
            return false;
        absolute_path(path, ret);
        return true;
    }
    return false;
}

/* Is PATH below ROOT? Then *RET is the rest of it ("" for the root itself). */
static bool is_below(const char *path, const char *root, const char **ret)
{
    size_t length = strlen(root);
    if (length == 1)
        length = 0; /* "/" */
    if (strncmp(path, root, length) != 0 || (path[length] != '/' && path[length] != '\0'))
        return false;
    *ret = path + length + (path[length] == '/');
    return true;
}

/* PATH below the root of S, also when either is reached by a link. RET has PATH_MAX bytes. */
static bool path_in_source(const struct config_source *s, const char *path, char *ret)
{
    char root[PATH_MAX], folder[PATH_MAX], real[PATH_MAX];
    const char *rest;
    if (!source_root(s, root))
        return false;
    if (is_below(path, root, &rest)) {
        snprintf(ret, PATH_MAX, "%s", rest);
        return true;
    }
    const char *name = strrchr(path, '/');
    if (name == NULL || realpath(root, real) == NULL)
        return false;
    snprintf(folder, sizeof folder, "%.*s", (int)(name - path), path);
    char real_folder[PATH_MAX], whole[2 * PATH_MAX];
    snprintf(whole, sizeof whole, "%s%s", realpath(folder, real_folder) != NULL ? real_folder : folder, name);
    if (strlen(whole) >= PATH_MAX || !is_below(whole, real, &rest))
        return false;
    snprintf(ret, PATH_MAX, "%s", rest);
    return true;
}

static void add_size(struct buf *ret, uint64_t bytes)
{
    char text[32];
    text_format_size(bytes, text, sizeof text);
    buf_adds(ret, text);
}

static void add_time(struct buf *ret, int64_t wall_ms)
{
    char text[32];
    clock_format(wall_ms, text, sizeof text);
    buf_adds(ret, text);
}

/* " (REASON)" of a destination that is not well. */
static void add_dest_trouble(struct buf *ret, const struct explain *x, const char *dest)
{
    const char *line = x->dests;
    size_t length = strlen(dest);
    while (line[0] != '\0') {
        const char *end = strchr(line, '\n');
        size_t size = end == NULL ? strlen(line) : (size_t)(end - line);
        if (size > length && strncmp(line, dest, length) == 0 && line[length] == '\t') {
            const char *state = line + length + 1, *tab = memchr(state, '\t', size - length - 1);
            size_t state_size = tab == NULL ? size - length - 1 : (size_t)(tab - state);
            buf_printf(ret, " Its destination %s is %.*s", dest, (int)state_size, state);
            if (tab != NULL && tab + 1 < line + size)
                buf_printf(ret, ": %.*s", (int)(line + size - tab - 1), tab + 1);
            buf_adds(ret, strncmp(state, "blocked", 7) == 0
                              ? ". It is asked again every 5 minutes, and by `chute retry --all`."
                              : ".");
        }
        line += size + (end != NULL);
    }
}

/* TOLD: the reason that has been given already. */
static void add_receipt(struct buf *ret, const struct ledger_receipt *r, const char *told)
{
    buf_adds(ret, " Receipt of ");
    add_time(ret, r->at_ms);
    buf_printf(ret, ": %s", file_state_names[r->state]);
    if (r->reason[0] != '\0' && strcmp(r->reason, told) != 0)
        buf_printf(ret, " (%s)", r->reason);
    if (r->state == STATE_QUARANTINED && r->receipt.parsed == 0) { /* nothing was loaded: there are no numbers */
        buf_addc(ret, '.');
        return;
    }
    buf_printf(ret, ", %llu rows parsed = %llu inserted + %llu updated + %llu unchanged + %llu rejected, ",
               (unsigned long long)r->receipt.parsed, (unsigned long long)r->receipt.inserted,
               (unsigned long long)r->receipt.updated, (unsigned long long)r->receipt.unchanged,
               (unsigned long long)r->receipt.rejected);
    add_size(ret, r->receipt.bytes);
    if (r->table[0] != '\0')
        buf_printf(ret, ", table %s", r->table);
    if (r->receipt.dest_rows >= 0)
        buf_printf(ret, " (%lld rows there afterwards)", (long long)r->receipt.dest_rows);
    if (r->receipt.dialect[0] != '\0')
        buf_printf(ret, ", read as %s", r->receipt.dialect);
    buf_printf(ret, ", try %lld, %.3f s.", (long long)(r->tries > 0 ? r->tries : 1), (double)r->duration_ms / 1000);
}

struct last_receipt {
    const char *source, *told;
    struct buf *ret;
};

static bool on_receipt(void *arg, const struct ledger_receipt *r)
{
    const struct last_receipt *l = arg;
    if (strcmp(r->source, l->source) != 0)
        return true;
    add_receipt(l->ret, r, l->told);
    return false;
}

/* What the ledger has decided, in words. */
static void add_row(struct buf *ret, const struct explain *x, const struct ledger_row *row)
{
    const char *reason = row->reason;
    buf_printf(ret, "is %s in flow %s", file_state_names[row->state], row->flow);
    if (row->since_ms > 0) {
        buf_adds(ret, " since ");
        add_time(ret, row->since_ms);
    }
    switch (row->state) {
    case STATE_SEEN:
    case STATE_SETTLING:
        buf_printf(ret, ": chute waits until it is whole%s%s.", reason[0] != '\0' ? ": " : "", reason);
        break;
    case STATE_QUEUED:
        buf_printf(ret, " and waits for its turn to be loaded into %s%s%s%s%s.", row->dest,
                   row->table[0] != '\0' ? ", table " : "", row->table, reason[0] != '\0' ? ": " : "", reason);
        break;
    case STATE_LOADING:
        buf_printf(ret, " into %s%s%s%s", row->dest, row->table[0] != '\0' ? ", table " : "", row->table,
                   x->is_running ? "." : "; the process that did it has ended, the next start takes it up again.");
        break;
    case STATE_RETRYING:
        buf_printf(ret, " after %lld tries: %s.", (long long)row->tries,
                   reason[0] != '\0' ? reason : "the last one failed");
        if (row->next_try_ms > 0) {
            buf_adds(ret, " The next one is due at ");
            add_time(ret, row->next_try_ms);
            buf_addc(ret, '.');
        }
        break;
    case STATE_LOADED:
        buf_printf(ret, ": it is in %s, table %s%s%s%s.", row->dest, row->table, reason[0] != '\0' ? "; " : "", reason,
                   row->finish_pending ? "; what is to happen to the file afterwards is still under way" : "");
        break;
    case STATE_SKIPPED:
        buf_printf(ret, ": there was nothing to load: %s.", reason);
        break;
    case STATE_QUARANTINED:
        buf_printf(ret,
                   ": %s. Correct the file (a new version is taken by itself), or the configuration, or try the same "
                   "again with `chute retry`.",
                   reason[0] != '\0' ? reason : "it can't be loaded as it is");
        break;
    case STATE_GONE:
        buf_printf(ret, ": the file is no longer there%s%s%s.",
                   row->taken_by_us ? "; chute itself moved or deleted it after the load" : "",
                   row->drop_pending ? "; what on_delete asks for is still to be done in the destination" : "", "");
        if (reason[0] != '\0')
            buf_printf(ret, " (%s)", reason);
        break;
    case FILE_STATES:
        break;
    }
    if (x->is_running && (row->state == STATE_QUEUED || row->state == STATE_RETRYING)) {
        add_dest_trouble(ret, x, row->dest);
        if (x->note == NOTE_PAUSED)
            buf_printf(ret, " The %s.", x->memory);
    }
    if (!x->is_running && (STATE_BIT(row->state) & (STATE_BIT(STATE_SEEN) | STATE_BIT(STATE_SETTLING) |
                                                    STATE_BIT(STATE_QUEUED) | STATE_BIT(STATE_RETRYING))))
        buf_adds(ret, " No daemon runs; it goes on at the next start.");
}

struct rows_told {
    const struct explain *x;
    struct ledger_tx *tx;
    struct buf *ret;
    size_t count;
    struct err *err;
};

static bool tell_row(void *arg, const struct ledger_row *row)
{
    struct rows_told *t = arg;
    if (t->count++ > 0)
        buf_adds(t->ret, " It ");
    add_row(t->ret, t->x, row);
    struct last_receipt last = {row->source, row->reason, t->ret};
    struct ledger_receipt_query query = {
        .flow = row->flow, .path = row->path, .source = row->source, .newest_first = true, .limit = 1};
    return ledger_receipts_each(t->tx, &query, on_receipt, &last, t->err) == ERR_NONE;
}

/* All that the ledger knows of PATH in SOURCE (NULL: any). */
static enum err_code tell_rows(const struct explain *x, struct ledger_tx *tx, const char *source, const char *path,
                               struct buf *ret, size_t *ret_count, struct err *err)
{
    struct rows_told told = {x, tx, ret, 0, err};
    struct ledger_query query = {.source = source, .path = path};
    *ret_count = 0;
    if (tx == NULL)
        return ERR_NONE;
    enum err_code code = ledger_each(tx, &query, tell_row, &told, err);
    *ret_count = told.count;
    return code == ERR_NONE ? err->code : code;
}

/* ---- why no flow takes it ---- */

static void add_globs(struct buf *ret, const struct option_strings *globs)
{
    for (size_t i = 0; i < globs->count; i++)
        buf_printf(ret, "%s`%s`", i > 0 ? ", " : "", globs->items[i]);
}

static void add_refusal(struct buf *ret, const struct config_flow *f, const char *path)
{
    for (size_t i = 0; i < f->exclude.count; i++) {
        if (glob_match(f->exclude.items[i], path)) {
            buf_printf(ret, " Flow %s leaves it out by its exclude `%s`.", f->name, f->exclude.items[i]);
            return;
        }
    }
    buf_printf(ret, " Flow %s does not take it: its include is ", f->name);
    add_globs(ret, &f->include);
    buf_adds(ret, ", which does not match.");
}

static bool is_marker(const struct config_source *s, const char *path, struct buf *ret)
{
    if (s->ready_marker == NULL || s->ready_marker[0] == '\0')
        return false;
    const char *hole = strstr(s->ready_marker, "{name}");
    if (hole == NULL)
        return false;
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    size_t head = (size_t)(hole - s->ready_marker), tail = strlen(hole + 6), length = strlen(name);
    if (length <= head + tail || strncmp(name, s->ready_marker, head) != 0 ||
        strcmp(name + length - tail, hole + 6) != 0)
        return false;
    buf_printf(ret, "is the marker that says that %.*s is whole (ready_marker `%s`); it is no file to load.",
               (int)(length - head - tail), name + head, s->ready_marker);
    return true;
}

/* What lies at the path, if that alone is the reason. */
static bool add_file_kind(struct buf *ret, const char *absolute)
{
    struct stat st;
    if (lstat(absolute, &st) != 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            buf_adds(ret, "does not exist, and chute has never taken a file of that name.");
        else
            buf_printf(ret, "can't be looked at: %s.", strerror(errno));
        return true;
    }
    if (S_ISDIR(st.st_mode)) {
        buf_adds(ret, "is a folder; chute takes the files in it.");
        return true;
    }
    char real[PATH_MAX];
    if (S_ISLNK(st.st_mode) && (realpath(absolute, real) == NULL || stat(real, &st) != 0)) {
        buf_adds(ret, "is a symbolic link to nothing.");
        return true;
    }
    if (!S_ISREG(st.st_mode)) {
        buf_adds(ret, "is not a regular file; chute takes nothing else.");
        return true;
    }
    return false;
}

static void add_unseen(struct buf *ret, const struct explain *x, const struct config_source *s, const char *path)
{
    const struct config_flow *taker = NULL;
    char real[PATH_MAX], root[PATH_MAX], real_root[PATH_MAX];
    const char *rest;
    if (is_marker(s, path, ret) || add_file_kind(ret, x->absolute))
        return;
    for (size_t i = 0; i < x->config->flow_count && taker == NULL; i++) {
        const struct config_flow *f = &x->config->flows[i];
        if (strcmp(f->source->name, s->name) == 0 && config_flow_takes(f, path))
            taker = f;
    }
    if (taker != NULL && realpath(x->absolute, real) != NULL && source_root(s, root) &&
        realpath(root, real_root) != NULL && !is_below(real, real_root, &rest)) {
        buf_printf(ret, "is a symbolic link that leads out of %s, to %s; such links are not followed.", root, real);
        return;
    }
    if (taker != NULL && x->note == NOTE_PAUSED) {
        buf_printf(ret, "is not loaded: %s.", x->memory);
        return;
    }
    if (taker != NULL) {
        buf_printf(ret, "would be taken by flow %s, but chute has not seen it yet: %s", taker->name,
                   x->is_running
                       ? "its source has still to scan that folder, or can't read it (chute status says which)."
                       : "no daemon runs; the next start finds it.");
        return;
    }
    buf_adds(ret, "is not loaded because no flow takes it.");
    if (path_is_temporary(path)) {
        buf_adds(ret, " Its name, or that of a folder on the way, is one that programs use while they still write "
                      "(dotfiles, *.part, *.tmp, "
                      "*~, …); such names are never taken. Rename it when it is whole.");
        return;
    }
    for (size_t i = 0; i < x->config->flow_count; i++) {
        if (strcmp(x->config->flows[i].source->name, s->name) == 0)
            add_refusal(ret, &x->config->flows[i], path);
    }
}

/* chute's own folders are never taken. */
static bool add_own_folder(struct buf *ret, const struct explain *x)
{
    const char *rest;
    if (is_below(x->absolute, x->state, &rest)) {
        buf_printf(ret, "lies in chute's own state folder %s, which is never taken as input.", x->state);
        return true;
    }
    for (size_t i = 0; x->config != NULL && i < x->config->flow_count; i++) {
        const struct config_flow *f = &x->config->flows[i];
        const char *const dirs[] = {f->after_success == AFTER_MOVE ? f->after_success_dir : NULL,
                                    f->after_failure == AFTER_MOVE ? f->after_failure_dir : NULL};
        for (int d = 0; d < 2; d++) {
            if (dirs[d] != NULL && is_below(x->absolute, dirs[d], &rest)) {
                buf_printf(ret, "lies in %s, where flow %s moves files after %s; that folder is never taken as input.",
                           dirs[d], f->name, d == 0 ? "they are loaded" : "they failed");
                return true;
            }
        }
    }
    return false;
}

/*
 * Without a configuration the roots are unknown: the whole path is that of a file loaded by name, and the longest other
 * tail that the ledger has is the one below a root.
 */
static enum err_code explain_by_ledger(const struct explain *x, struct ledger_tx *tx, struct buf *ret, struct err *err)
{
    bool is_known = false;
    size_t count = 0;
    for (const char *tail = x->absolute; tail != NULL && count == 0; tail = strchr(tail, '/')) {
        size_t before = ret->size;
        tail += tail[0] == '/';
        if (is_known)
            buf_adds(ret, " It ");
        if (tell_rows(x, tx, NULL, tail, ret, &count, err) != ERR_NONE)
            return err->code;
        if (count == 0 && !ret->failed) {
            ret->size = before;
            ret->data[before] = '\0';
        } else if (tail == x->absolute + 1) {
            is_known = true;
            count = 0;
        }
    }
    if (!is_known && count == 0 && !add_own_folder(ret, x) && !add_file_kind(ret, x->absolute))
        buf_adds(ret, "is not in the ledger. Whether a flow's include takes it can't be said without the "
                      "configuration: name it with -c FILE.");
    return ERR_NONE;
}

static void add_roots(struct buf *ret, const struct config *c)
{
    buf_adds(ret, "lies outside of every source:");
    for (size_t i = 0; i < c->source_count; i++) {
        char root[PATH_MAX];
        if (source_root(&c->sources[i], root))
            buf_printf(ret, "%s %s is %s", i > 0 ? "," : "", c->sources[i].name, root);
    }
    buf_addc(ret, '.');
}

/* What the engine's memory knows comes first, if it is about this very file: it is newer than the ledger. */
static bool add_memory(struct buf *ret, const struct explain *x)
{
    /* a destination that is down and a flow that is paused matter to rows that wait: told with those */
    if (x->note != NOTE_LOADING && x->note != NOTE_SETTLING)
        return false;
    buf_printf(ret, "%s%s.", x->note == NOTE_SETTLING ? "is settling: " : "", x->memory);
    return true;
}

/* PATH below source S, as the ledger and the file system know it. */
static enum err_code explain_in(const struct explain *x, struct ledger_tx *tx, const struct config_source *s,
                                const char *path, bool is_first, struct buf *ret, struct err *err)
{
    size_t count, before = ret->size;
    bool is_known = is_first && add_memory(ret, x);
    if (is_known)
        buf_adds(ret, " It ");
    if (tell_rows(x, tx, s->name, path, ret, &count, err) != ERR_NONE)
        return err->code;
    if (is_known && count == 0) {
        ret->size -= 4;
        ret->data[ret->size] = '\0';
    }
    if (!is_known && count == 0 && ret->size == before && !add_own_folder(ret, x))
        add_unseen(ret, x, s, path);
    return ERR_NONE;
}

/* Is the path as typed one below the root of S, typed from elsewhere? Then RET (2 * PATH_MAX) is where that is. */
static bool typed_from_root(const struct explain *x, const struct config_source *s, struct ledger_tx *tx, char *ret)
{
    char root[PATH_MAX];
    if (x->given[0] == '/' || !source_root(s, root))
        return false;
    snprintf(ret, 2 * PATH_MAX, "%s/%s", root, x->given);
    if (strlen(ret) >= PATH_MAX)
        return false;
    if (access(ret, F_OK) == 0)
        return true;
    uint64_t count = 0;
    struct err ignored = {0};
    struct ledger_query query = {.source = s->name, .path = x->given};
    return tx != NULL && ledger_count(tx, &query, &count, &ignored) == ERR_NONE && count > 0;
}

enum err_code explain_compose(const struct explain *x, struct ledger_tx *tx, struct buf *ret, struct err *err)
{
    char printable[PATH_MAX], path[PATH_MAX], elsewhere[2 * PATH_MAX];
    size_t found = 0;
    buf_printf(ret, "%s ", text_printable(x->given, printable, sizeof printable));
    if (x->config == NULL)
        return explain_by_ledger(x, tx, ret, err);
    for (size_t i = 0; i < x->config->source_count; i++) {
        const struct config_source *s = &x->config->sources[i];
        if (!path_in_source(s, x->absolute, path))
            continue;
        if (found > 0)
            buf_adds(ret, " It ");
        if (explain_in(x, tx, s, path, found++ == 0, ret, err) != ERR_NONE)
            return err->code;
    }
    for (size_t i = 0; found == 0 && i < x->config->source_count; i++) {
        const struct config_source *s = &x->config->sources[i];
        if (!typed_from_root(x, s, tx, elsewhere))
            continue;
        struct explain there = *x;
        there.absolute = elsewhere;
        if (explain_in(&there, tx, s, x->given, found++ == 0, ret, err) != ERR_NONE)
            return err->code;
    }
    if (found == 0 && !add_own_folder(ret, x))
        add_roots(ret, x->config);
    return ret->failed ? err_nomem(err) : ERR_NONE;
}

/* ---- the command ---- */

static enum err_code explain_offline(const struct command_context *c, struct explain *x, struct buf *ret,
                                     struct err *err)
{
    struct ledger_tx *tx = NULL;
    struct err close_err = {0};
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/ledger.db", c->state);
    bool has_ledger = access(path, F_OK) == 0;
    if (has_ledger && open_ledger(c, true, &tx, err) != ERR_NONE)
        return err->code;
    if (!has_ledger && c->config == NULL)
        return err_set(err, ERR_SYSTEM, false,
                       "no ledger at %s: nothing was ever loaded there; name the right state folder with --state DIR, "
                       "or the configuration with -c FILE",
                       path);
    enum err_code code = explain_compose(x, tx, ret, err);
    if (tx != NULL)
        ledger_tx_close(tx, false, &close_err);
    return code;
}

/* Names of tables and columns come from files: nothing in them may steer a terminal. */
static void print_safely(const char *text)
{
    size_t size = 4 * strlen(text) + 1;
    char *shown = malloc(size);
    puts(shown == NULL ? "out of memory" : text_printable(text, shown, size));
    free(shown);
}

int command_explain(const struct command_context *c, const struct args *args)
{
    char absolute[PATH_MAX];
    struct err err = {0};
    struct line *line;
    absolute_path(args->operands[0], absolute);
    bool is_running = line_open(c->state, &line, &err) != ERR_NONE; /* it is there, but doesn't talk to us */
    if (is_running) {
        say("%s; the ledger is read instead", err.text);
        err_clear(&err);
    }
    if (line != NULL) {
        struct json_object *request = json_object_new_object(), *answer = NULL;
        json_object_object_add(request, "command", json_object_new_string("explain"));
        json_object_object_add(request, "path", json_object_new_string(absolute));
        json_object_object_add(request, "given", json_object_new_string(args->operands[0]));
        if (line_ask(line, request, 10000, &answer, &err) == ERR_NONE)
            print_safely(json_text(answer, "text"));
        json_object_put(answer);
        json_object_put(request);
        line_close(line);
    } else {
        struct buf text;
        buf_init(&text);
        struct explain x = {c->config, c->state, args->operands[0], absolute, is_running, NOTE_NONE, "", ""};
        if (explain_offline(c, &x, &text, &err) == ERR_NONE)
            print_safely(text.data);
        buf_done(&text);
    }
    if (err.code != ERR_NONE)
        say("%s", err.text);
    return err.code == ERR_NONE ? 0 : 1;
}
