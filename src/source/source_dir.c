/*
 * source_dir.c -- the directory source: a local folder, watched; polled where watching can't work.
 *
 * Events are hints and the scan is the truth. Nothing here decides what to do with a file, and nothing is remembered
 * about files: what was there before is the ledger's to know.
 */
#include "dir_internal.h"

#include "err.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define DOUBT_MS 1000
#define MARKER_NAME "{name}"

static const char *const mode_names[] = {"auto", "events", "poll", "fs_event", NULL};

#define AT(member) offsetof(struct directory_options, member)
static const struct option directory_table[] = {
    {.name = "path",
     .type = OPT_PATH,
     .offset = AT(path),
     .flags = OPT_REQUIRED,
     .help = "The folder to watch. Relative to the configuration file's folder."},
    {.name = "debounce",
     .type = OPT_DURATION,
     .offset = AT(debounce_ms),
     .default_text = "200ms",
     .min = 0,
     .max = 3600000,
     .help = "Quiet time after a file was closed by its writer or renamed into place, before it is taken."},
    {.name = "settle",
     .type = OPT_DURATION,
     .offset = AT(settle_ms),
     .default_text = "1s",
     .min = 0,
     .max = 86400000,
     .help =
         "Quiet time for files that nobody saw being closed: found by a scan or a poll. At least 10s where it can't "
         "be known whether a writer still has them open."},
    {.name = "ready_marker",
     .type = OPT_STRING,
     .offset = AT(ready_marker),
     .default_text = "",
     .help = "A file is taken when this one stands beside it, for example \"{name}.done\". Empty: no marker."},
    {.name = "poll_interval",
     .type = OPT_DURATION,
     .offset = AT(poll_interval_ms),
     .default_text = "10s",
     .min = 100,
     .max = 86400000,
     .help = "How often the folder is read where events can't work, and a missing folder looked for."},
    {.name = "rescan_interval",
     .type = OPT_DURATION,
     .offset = AT(rescan_interval_ms),
     .default_text = "1h",
     .min = 1000,
     .max = 604800000,
     .help = "How often the folder is read although events work."},
    {.name = "mode",
     .type = OPT_ENUM,
     .offset = AT(mode),
     .default_text = "auto",
     .choices = mode_names,
     .help = "How changes are noticed: auto uses events and polls where they can't work; events uses them on network "
             "file systems too; poll never uses them; fs_event is the portable way and sees no closes."},
    {.name = NULL},
};

static enum err_code check(const void *options, struct err *err)
{
    const struct directory_options *o = options;
    const char *marker = o->ready_marker;
    if (marker == NULL || marker[0] == '\0')
        return ERR_NONE;
    const char *at = strstr(marker, MARKER_NAME);
    if (at == NULL || strchr(at + 1, '{') != NULL || strchr(marker, '{') != at || strchr(marker, '/') != NULL ||
        strcmp(marker, MARKER_NAME) == 0)
        return err_set(err, ERR_CONFIG, false,
                       "ready_marker: expected a file name with {name} in it once, like \"{name}.done\", found \"%s\"",
                       marker);
    return ERR_NONE;
}

/* ---- timers */

static void on_rescan(uv_timer_t *timer)
{
    dir_scan_full(timer->data);
}

static void on_slow(uv_timer_t *timer)
{
    dir_scan_full(timer->data);
}

/* A folder changed and no event had told it: was it only late? */
static void on_doubt(uv_timer_t *timer)
{
    struct dir_source *s = timer->data;
    char path[PATH_MAX] = "";
    bool is_any = false;
    dir_drain(s);
    uv_mutex_lock(&s->lock);
    struct dir_node *node, *next;
    HASH_ITER(by_wd, s->nodes_by_wd, node, next) {
        if (node->is_suspect && !is_any)
            is_any = dir_node_path(node, NULL, path, sizeof path);
        node->is_suspect = false;
    }
    uv_mutex_unlock(&s->lock);
    if (!is_any || s->is_wary)
        return;
    s->is_wary = true;
    snprintf(s->wary_reason, sizeof s->wary_reason, "%.150s%s%.150s changed and no event told it", s->root,
             path[0] != '\0' ? "/" : "", path);
    dir_scan_full(s);
}

static bool has_suspects(struct dir_source *s)
{
    bool is_any = false;
    uv_mutex_lock(&s->lock);
    struct dir_node *node, *next;
    HASH_ITER(by_wd, s->nodes_by_wd, node, next)
        is_any = is_any || node->is_suspect;
    uv_mutex_unlock(&s->lock);
    return is_any;
}

void dir_overflowed(struct dir_source *s)
{
    s->overflows++;
    dir_moved_drop(s); /* their other halves may be lost; the scan finds what is true */
    uv_mutex_lock(&s->lock);
    struct dir_node *node, *next;
    HASH_ITER(by_wd, s->nodes_by_wd, node, next)
        node->had_event = true; /* no suspicion for what is known to be lost */
    uv_mutex_unlock(&s->lock);
    s->sink.on_overflow(s->sink.arg);
    if (atomic_load(&s->is_closing))
        return;
    dir_scan_full(s);
    s->sink.on_health(s->sink.arg);
}

/* ---- after a scan */

static bool choose_mode(struct dir_source *s, const char *scan_reason)
{
    bool was_polling = s->is_polling;
    char before[sizeof s->reason];
    memcpy(before, s->reason, sizeof before);
    s->reason[0] = '\0';
    s->is_polling = s->options->mode == DIRECTORY_POLL;
    const char *reason = s->inotify_reason[0] != '\0' ? s->inotify_reason : s->is_wary ? s->wary_reason : scan_reason;
    if (!s->is_polling && reason[0] != '\0') {
        s->is_polling = true;
        snprintf(s->reason, sizeof s->reason, "%s", reason);
    }
    return was_polling != s->is_polling || strcmp(before, s->reason) != 0;
}

/* When to look again, apart from events and the rescan: polling, a missing root, a folder that could not be read. */
static void plan_next(struct dir_source *s, const struct dir_scan *scan)
{
    uint64_t wait_ms = 0;
    if (s->is_polling || scan->is_root_lost) {
        wait_ms = s->options->poll_interval_ms;
        s->retry_ms = 0;
    } else if (!scan->is_complete) {
        s->retry_ms = s->retry_ms == 0 ? s->options->poll_interval_ms : s->retry_ms * 2;
        if (s->retry_ms > s->options->rescan_interval_ms)
            s->retry_ms = s->options->rescan_interval_ms;
        wait_ms = s->retry_ms;
    } else {
        s->retry_ms = 0;
    }
    uv_timer_stop(&s->slow_timer);
    if (wait_ms > 0)
        uv_timer_start(&s->slow_timer, on_slow, wait_ms, 0);
}

static void full_finished(struct dir_source *s, struct dir_scan *scan)
{
    bool is_new_watch = false;
    uv_mutex_lock(&s->lock);
    if (scan->is_complete)
        dir_tree_sweep(s, scan->generation);
    memcpy(s->identity_told, s->identity, sizeof s->identity_told);
    /* Here and not where the scan begins: expect_root() may have come just after. */
    if (s->expected[0] != '\0' && strcmp(s->expected, s->identity) != 0 && !scan->is_root_lost) {
        scan->is_complete = false;
        snprintf(scan->problem, sizeof scan->problem,
                 "the source's folder %.240s is another one than before (%.60s, was %.60s): is its disk mounted? "
                 "Nothing counts as deleted",
                 s->root, s->identity, s->expected);
    }
    uv_mutex_unlock(&s->lock);
    if (s->is_fs_event)
        is_new_watch = dir_fsevent_start(s);
    bool is_new = choose_mode(s, scan->reason);
    is_new = is_new || s->is_reachable == scan->is_root_lost || strcmp(s->problem, scan->problem) != 0 ||
             (!s->is_ready && !scan->is_root_lost);
    s->is_reachable = !scan->is_root_lost;
    if (!scan->is_root_lost) {
        s->is_ready = true;
        s->scans++;
    }
    memcpy(s->problem, scan->problem, sizeof s->problem);
    if (has_suspects(s) && !uv_is_active((uv_handle_t *)&s->doubt_timer))
        uv_timer_start(&s->doubt_timer, on_doubt, DOUBT_MS, 0);
    plan_next(s, scan);
    if (is_new_watch) /* watch first, then read: what came before the watch was there */
        s->full.is_wanted = true;
    struct scan_result result = {.is_complete = scan->is_complete, .files = scan->files, .folders = scan->folders};
    s->sink.on_scan_done(s->sink.arg, &result);
    if (is_new && !atomic_load(&s->is_closing))
        s->sink.on_health(s->sink.arg);
}

void dir_scan_finished(struct dir_source *s, struct dir_scan *scan)
{
    if (scan->is_full) {
        full_finished(s, scan);
        return;
    }
    if (s->is_fs_event && dir_fsevent_start(s)) {
        char path[PATH_MAX];
        memcpy(path, scan->path, scan->base_size);
        path[scan->base_size] = '\0';
        dir_scan_below(s, path);
    }
    /* A scan of the whole root finds the same trouble, tells it and plans the next look. */
    if (scan->is_too_much || !scan->is_complete || (scan->reason[0] != '\0' && !s->is_polling))
        s->full.is_wanted = true;
}

/* ---- the driver */

static void free_source(struct dir_source *s)
{
    for (char **a = s->avoid; a != NULL && *a != NULL; a++)
        free(*a);
    free(s->avoid);
    free(s->root);
    free(s->marker_prefix);
    free(s->marker_suffix);
    dir_moved_drop(s);
    while (s->carried != NULL) {
        struct dir_carried *next = s->carried->next;
        free(s->carried);
        s->carried = next;
    }
    while (s->subs != NULL) {
        struct dir_sub *next = s->subs->next;
        free(s->subs);
        s->subs = next;
    }
    dir_scan_free(&s->full);
    dir_scan_free(&s->sub);
    if (s->inotify >= 0)
        close(s->inotify);
    if (s->root_fd >= 0)
        close(s->root_fd);
    uv_mutex_destroy(&s->lock);
    free(s);
}

void dir_handle_closed(uv_handle_t *handle)
{
    struct dir_source *s = handle->data;
    s->handles--;
    dir_maybe_closed(s);
}

void dir_maybe_closed(struct dir_source *s)
{
    if (!atomic_load(&s->is_closing) || s->full.is_running || s->sub.is_running || s->looks > 0)
        return;
    if (s->tree != NULL) {
        dir_tree_drop(s); /* nobody else is left: no lock */
        if (s->is_fs_event)
            dir_fsevent_start(s);
    }
    if (s->handles > 0)
        return;
    void (*closed)(void *) = s->closed;
    void *arg = s->closed_arg;
    free_source(s);
    closed(arg);
}

static void dir_close(void *state, void (*closed)(void *arg), void *arg)
{
    struct dir_source *s = state;
    s->closed = closed;
    s->closed_arg = arg;
    atomic_store(&s->is_closing, true);
    if (s->is_poll_open)
        uv_close((uv_handle_t *)&s->poll, dir_handle_closed);
    uv_close((uv_handle_t *)&s->rescan_timer, dir_handle_closed);
    uv_close((uv_handle_t *)&s->slow_timer, dir_handle_closed);
    uv_close((uv_handle_t *)&s->moved_timer, dir_handle_closed);
    uv_close((uv_handle_t *)&s->doubt_timer, dir_handle_closed);
}

static void open_timer(struct dir_source *s, uv_timer_t *timer)
{
    uv_timer_init(s->loop, timer);
    timer->data = s;
    s->handles++;
}

static void start_inotify(struct dir_source *s)
{
    s->inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    int code = s->inotify < 0 ? -errno : uv_poll_init(s->loop, &s->poll, s->inotify);
    if (code == 0) {
        s->is_poll_open = true;
        s->handles++;
        s->poll.data = s;
        code = uv_poll_start(&s->poll, UV_READABLE, dir_on_inotify);
    }
    if (code == 0)
        return;
    snprintf(s->inotify_reason, sizeof s->inotify_reason, "inotify can't be used: %s%s", strerror(-code),
             code == -EMFILE ? " (raise fs.inotify.max_user_instances)" : "");
    /* Events that nobody reads would only fill the queue. */
    if (s->inotify >= 0 && !s->is_poll_open) {
        close(s->inotify);
        s->inotify = -1;
    }
}

static bool copy_settings(struct dir_source *s, const char *const *avoid)
{
    size_t n = 0;
    while (avoid != NULL && avoid[n] != NULL)
        n++;
    s->avoid = calloc(n + 1, sizeof *s->avoid);
    s->root = strdup(s->options->path);
    if (s->avoid == NULL || s->root == NULL)
        return false;
    for (size_t len = strlen(s->root); len > 1 && s->root[len - 1] == '/'; len--)
        s->root[len - 1] = '\0';
    for (size_t i = 0; i < n; i++)
        if ((s->avoid[i] = strdup(avoid[i])) == NULL)
            return false;
    const char *marker = s->options->ready_marker;
    const char *at = marker != NULL ? strstr(marker, MARKER_NAME) : NULL;
    if (at == NULL)
        return true;
    s->marker_prefix = strndup(marker, (size_t)(at - marker));
    s->marker_suffix = strdup(at + strlen(MARKER_NAME));
    return s->marker_prefix != NULL && s->marker_suffix != NULL;
}

static enum err_code dir_open(const void *options, const struct source_env *env, uv_loop_t *loop,
                              const struct source_sink *sink, int max_depth, const char *const *avoid,
                              bool (*wants)(void *arg, const char *path), void *wants_arg, void **ret_state,
                              struct err *err)
{
    struct dir_source *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_nomem(err);
    (void)env;
    s->options = options;
    s->loop = loop;
    s->sink = *sink;
    s->max_depth = max_depth;
    s->wants = wants;
    s->wants_arg = wants_arg;
    s->inotify = s->above[0].wd = s->above[1].wd = -1;
    s->root_fd = -1;
    s->full.src = s->sub.src = s;
    s->full.is_full = true;
    s->is_fs_event = s->options->mode == DIRECTORY_FS_EVENT;
    buf_init(&s->full.names);
    buf_init(&s->sub.names);
    if (uv_mutex_init(&s->lock) != 0) {
        free(s);
        return err_nomem(err);
    }
    if (!copy_settings(s, avoid)) {
        free_source(s);
        return err_nomem(err);
    }
    open_timer(s, &s->rescan_timer);
    open_timer(s, &s->slow_timer);
    open_timer(s, &s->moved_timer);
    open_timer(s, &s->doubt_timer);
    if (s->options->mode == DIRECTORY_AUTO || s->options->mode == DIRECTORY_EVENTS)
        start_inotify(s);
    if (s->options->rescan_interval_ms > 0)
        uv_timer_start(&s->rescan_timer, on_rescan, s->options->rescan_interval_ms, s->options->rescan_interval_ms);
    choose_mode(s, "");
    *ret_state = s;
    dir_scan_full(s);
    return ERR_NONE;
}

static void dir_scan(void *state)
{
    dir_scan_full(state);
}

static void dir_resume(void *state)
{
    dir_scan_resume(state);
}

static void dir_health(void *state, struct source_health *ret)
{
    struct dir_source *s = state;
    memset(ret, 0, sizeof *ret);
    ret->mode = s->is_polling ? "poll" : s->is_fs_event ? "fs_event" : "events";
    ret->reason = s->reason;
    ret->evidence = s->is_polling || s->is_fs_event ? "age" : "close";
    uv_mutex_lock(&s->lock);
    ret->folders = s->node_count;
    uv_mutex_unlock(&s->lock);
    ret->overflows = s->overflows;
    ret->scans = s->scans;
    ret->is_ready = s->is_ready;
    ret->is_reachable = s->is_reachable;
    memcpy(ret->problem, s->problem, sizeof ret->problem);
}

static int dir_root_fd(void *state)
{
    struct dir_source *s = state;
    return s->root_fd;
}

static const char *dir_root_identity(void *state)
{
    struct dir_source *s = state;
    uv_mutex_lock(&s->lock);
    memcpy(s->identity_told, s->identity, sizeof s->identity_told);
    uv_mutex_unlock(&s->lock);
    return s->identity_told;
}

static void dir_expect_root(void *state, const char *identity)
{
    struct dir_source *s = state;
    uv_mutex_lock(&s->lock);
    snprintf(s->expected, sizeof s->expected, "%s", identity);
    uv_mutex_unlock(&s->lock);
}

static const char *dir_root_path(void *state)
{
    const struct dir_source *s = state;
    return s->root;
}

const struct source_ops source_directory = {
    .type = "directory",
    .summary = "a folder of this machine",
    .options = directory_table,
    .options_size = sizeof(struct directory_options),
    .check = check,
    .open = dir_open,
    .scan = dir_scan,
    .scan_resume = dir_resume,
    .health = dir_health,
    .probe = dir_probe,
    .open_now = dir_open_now,
    .root_fd = dir_root_fd,
    .root_path = dir_root_path,
    .root_identity = dir_root_identity,
    .expect_root = dir_expect_root,
    .close = dir_close,
};
