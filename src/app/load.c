/* load.c -- `chute load`: these files now, with a bar on a terminal, and a line for each at the end. */
#include "app_internal.h"

#include "clock.h"
#include "log.h"
#include "state.h"
#include "text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BAR_MS 200
#define LOOK_MS 1000                 /* without a bar */
#define STUCK_MS (10 * 60 * 1000ull) /* so long a destination that does not answer is waited for */

struct loading {
    const char **paths; /* absolute, resolved */
    size_t count;
    uint64_t bytes; /* of all */
    uint64_t began_ms;
    uv_timer_t *timer;
    bool has_bar;   /* standard error is a terminal */
    uint64_t ended; /* files, when last looked */
    uint64_t
        waits_ms; /* monotonic: since when nothing is being loaded and no file has ended; 0 now is not such a time */
    struct daemon *daemon;
    const struct config_flow *flow;
    struct ledger_tx *tx; /* of forget() */
    struct err *err;
};

static void clear_bar(void)
{
    fputs("\r\033[K", stderr);
    fflush(stderr);
}

static void draw_bar(const struct loading *l, const struct engine_status *status)
{
    uint64_t done = 0;
    for (size_t i = 0; i < status->flow_count; i++)
        done += status->flows[i].bytes;
    for (size_t i = 0; i < status->job_count; i++)
        done += status->jobs[i].bytes_done;
    if (done > l->bytes)
        done = l->bytes;
    double part = l->bytes == 0 ? 1 : (double)done / (double)l->bytes;
    double seconds = (double)(clock_mono_ms() - l->began_ms) / 1000;
    char rate[32], left[32] = "";
    text_format_size(seconds > 0 ? (uint64_t)((double)done / seconds) : 0, rate, sizeof rate);
    if (part > 0.01)
        text_format_duration((uint64_t)(seconds * (1 - part) / part * 1000), left, sizeof left);
    struct winsize size;
    int width = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
    int room = width - 60 < 10 ? 10 : width - 60 > 50 ? 50 : width - 60;
    int filled = (int)(part * room);
    fprintf(stderr, "\r\033[K[");
    for (int i = 0; i < room; i++)
        fputc(i < filled ? '#' : '.', stderr);
    /* back to the left: a line of the log that comes now begins there */
    fprintf(stderr, "] %3d%%  %s/s  %s%s  %llu of %zu files\r", (int)(part * 100), rate, left,
            left[0] != '\0' ? " left" : "", (unsigned long long)l->ended, l->count);
    fflush(stderr);
}

/*
 * A file may take as long as it takes. What ends the wait is a destination that refuses us, one whose folder does not
 * exist (a daemon waits until it is mounted; here somebody looks on), or one that has not taken a file for STUCK_MS
 * although none is being loaded.
 */
static bool is_in_vain(struct loading *l, const struct engine_status *status)
{
    uint64_t totals[FILE_STATES];
    engine_totals(daemon_engine(l->daemon), totals);
    uint64_t ended = totals[STATE_LOADED] + totals[STATE_SKIPPED] + totals[STATE_QUARANTINED];
    bool has_ended = ended != l->ended, is_refused = false;
    l->ended = ended;
    if (status->job_count > 0 || has_ended) {
        /* a try that fails at once is no progress: only an end starts the time anew */
        if (has_ended)
            l->waits_ms = 0;
        return false;
    }
    for (size_t i = 0; i < status->dest_count; i++)
        is_refused =
            is_refused || strcmp(status->dests[i].state, "blocked") == 0 || status->dests[i].health.is_homeless;
    if (l->waits_ms == 0)
        l->waits_ms = clock_mono_ms();
    return is_refused || clock_mono_ms() - l->waits_ms >= STUCK_MS;
}

static void on_tick(uv_timer_t *timer)
{
    struct loading *l = timer->data;
    struct arena arena;
    struct engine_status status;
    struct err err = {0};
    arena_init(&arena);
    if (engine_status(daemon_engine(l->daemon), &arena, &status, &err) == ERR_NONE) {
        if (l->has_bar)
            draw_bar(l, &status);
        if (is_in_vain(l, &status))
            daemon_stop(l->daemon, EXIT_FAILED);
    }
    arena_done(&arena);
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

/* ---- a clean slate ---- */

static bool forget_row(void *arg, const struct ledger_row *row)
{
    const struct loading *l = arg;
    return (row->table_key[0] == '\0' ||
            ledger_header_put(l->tx, row->dest, row->table_key, NULL, l->err) == ERR_NONE) &&
           ledger_delete(l->tx, row->id, l->err) == ERR_NONE;
}

/*
 * Each `load` stands alone: an earlier one may have been for another database, and what it left behind must not be
 * loaded into this one. What this database holds already is known by its own receipts.
 */
static enum err_code forget(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct loading *l = arg;
    struct ledger_query query = {.source = l->flow->source->name, .flow = l->flow->name};
    l->tx = tx;
    l->err = err;
    enum err_code code = ledger_each(tx, &query, forget_row, l, err);
    if (code != ERR_NONE || err->code != ERR_NONE)
        return err->code;
    /* as the engine keeps it (job/outlet.c): another database than last time is no surprise here */
    char key[256];
    snprintf(key, sizeof key, "identity:%s", l->flow->dest->name);
    return ledger_meta_put(tx, key, NULL, err);
}

static void on_forgotten(void *arg, const struct err *err)
{
    struct loading *l = arg;
    if (err != NULL && err->code != ERR_NONE) {
        log_error("load: forget earlier ones: %s", err->text);
        daemon_stop(l->daemon, EXIT_FAILED);
        return;
    }
    struct err offer = {0};
    /* Stopped meanwhile, by a signal or because nothing takes the files: the ledger answers after the engine has gone.
     */
    if (daemon_engine(l->daemon) == NULL)
        return;
    if (engine_offer(daemon_engine(l->daemon), l->paths, l->count, &offer) != ERR_NONE) {
        log_error("load: %s", offer.text);
        daemon_stop(l->daemon, EXIT_FAILED);
    }
}

static enum err_code on_open(void *arg, struct daemon *d, struct err *err)
{
    struct loading *l = arg;
    l->daemon = d;
    l->began_ms = clock_mono_ms();
    l->has_bar = isatty(STDERR_FILENO);
    l->timer = malloc(sizeof *l->timer);
    if (l->timer == NULL)
        return err_nomem(err);
    uv_timer_init(daemon_loop(d), l->timer);
    l->timer->data = l;
    uv_timer_start(l->timer, on_tick, BAR_MS, l->has_bar ? BAR_MS : LOOK_MS);
    /* queued before the engine asks for its first row */
    return ledger_run(daemon_ledger(d), forget, on_forgotten, l, err);
}

static void on_end(void *arg, struct daemon *d)
{
    struct loading *l = arg;
    (void)d;
    if (l->timer == NULL)
        return;
    if (l->has_bar)
        clear_bar();
    uv_close((uv_handle_t *)l->timer, free_timer);
    l->timer = NULL;
}

/* ---- the summary ---- */

struct summary {
    const char *path;
    bool is_told, is_failed;
};

static bool tell_receipt(void *arg, const struct ledger_receipt *r)
{
    struct summary *s = arg;
    char path[1024], text[1024], bytes[32], time[32];
    text_printable(s->path, path, sizeof path);
    s->is_told = true;
    if (r->state != STATE_LOADED) {
        s->is_failed = r->state == STATE_QUARANTINED;
        fprintf(s->is_failed ? stderr : stdout, "%s: %s: %s\n", path, s->is_failed ? "not loaded" : "nothing to do",
                text_printable(r->reason, text, sizeof text));
        return false;
    }
    text_format_size(r->receipt.bytes, bytes, sizeof bytes);
    text_format_duration((uint64_t)r->duration_ms, time, sizeof time);
    printf("%s: %llu rows, %s, %s, table %s", path,
           (unsigned long long)(r->receipt.inserted + r->receipt.updated + r->receipt.unchanged), bytes, time,
           text_printable(r->table, text, sizeof text));
    if (r->receipt.rejected > 0)
        printf(", %llu rows rejected", (unsigned long long)r->receipt.rejected);
    putchar('\n');
    return false;
}

static bool tell_row(void *arg, const struct ledger_row *row)
{
    struct summary *s = arg;
    char path[1024], reason[1024];
    s->is_told = s->is_failed = true;
    fprintf(stderr, "%s: not loaded, it is still %s%s%s\n", text_printable(s->path, path, sizeof path),
            file_state_names[row->state], row->reason[0] != '\0' ? ": " : "",
            text_printable(row->reason, reason, sizeof reason));
    return false;
}

/* How each file ended, from the ledger. Returns how many were not loaded. */
static size_t summarize(const struct loading *l, const char *state, int64_t since_ms)
{
    struct ledger_tx *tx;
    struct err err = {0}, close_err = {0};
    char ledger[PATH_MAX];
    size_t failed = 0;
    if ((size_t)snprintf(ledger, sizeof ledger, "%s/ledger.db", state) >= sizeof ledger ||
        ledger_tx_open(ledger, true, &tx, &err) != ERR_NONE) {
        tell("%s", err.text);
        return l->count;
    }
    for (size_t i = 0; i < l->count; i++) {
        struct summary s = {.path = l->paths[i]};
        /* the source of `load` has the root "/" */
        struct ledger_receipt_query receipts = {
            .path = l->paths[i] + 1, .since_ms = since_ms, .limit = 1, .newest_first = true};
        struct ledger_query rows = {.path = l->paths[i] + 1, .limit = 1};
        if (ledger_receipts_each(tx, &receipts, tell_receipt, &s, &err) != ERR_NONE ||
            (!s.is_told && ledger_each(tx, &rows, tell_row, &s, &err) != ERR_NONE))
            tell("%s: %s", s.path, err.text);
        if (!s.is_told)
            fprintf(stderr, "%s: not loaded\n", s.path);
        failed += s.is_failed || !s.is_told;
    }
    ledger_tx_close(tx, false, &close_err);
    return failed;
}

/* ---- the command ---- */

static bool is_named(const struct loading *l, const char *path)
{
    for (size_t i = 0; i < l->count; i++) {
        if (strcmp(l->paths[i], path) == 0)
            return true;
    }
    return false;
}

/* The operands that are files into L; what is none is told. Returns how many are not. */
static size_t find_files(const struct args *args, struct loading *l)
{
    size_t bad = 0;
    for (int i = 0; i < args->operand_count; i++) {
        struct stat st;
        char *path = realpath(args->operands[i], NULL);
        if (path != NULL && is_named(l, path)) {
            free(path);
            continue; /* once is enough */
        }
        if (path == NULL || stat(path, &st) != 0) {
            tell("%s: %s", args->operands[i], strerror(errno));
        } else if (!S_ISREG(st.st_mode)) {
            tell("%s: not a regular file; a whole folder is loaded with: chute run --once --watch %s --to URL",
                 args->operands[i], args->operands[i]);
        } else {
            l->bytes += (uint64_t)st.st_size;
            l->paths[l->count++] = path;
            continue;
        }
        free(path);
        bad++;
    }
    return bad;
}

/*
 * A daemon that runs on the state folder keeps it for itself: this load takes a folder of its own below it, and is the
 * same instance, so that the destination still knows what it was given before. True: STATE is that folder now.
 */
static bool beside_daemon(struct config *config, char *state, size_t size)
{
    struct err err = {0};
    char instance[64], below[PATH_MAX];
    int lock;
    if (state_lock(state, &lock, &err) == ERR_NONE) {
        close(lock);
        return false;
    }
    if ((size_t)snprintf(below, sizeof below, "%s/load", state) >= size)
        return false;
    if (config->instance[0] == '\0' && state_instance(state, instance, &err) == ERR_NONE)
        config->instance = arena_strdup(&config->arena, instance);
    if (config->instance == NULL)
        config->instance = "";
    snprintf(state, size, "%s", below);
    return true;
}

static int load_files(const struct args *args, struct loading *l)
{
    struct err err = {0};
    char state_path[PATH_MAX], state_used[PATH_MAX];
    struct config *config;
    struct config_quick quick = {.to = args_value(args, "to"),
                                 .table = args_value(args, "table"),
                                 .state = find_state(args, state_path),
                                 .is_load = true};
    if (config_quick(&quick, &app_drivers, &config, &err) != ERR_NONE) {
        tell("load: %s", err.text);
        return err.code == ERR_CONFIG ? EXIT_USAGE : EXIT_FAILED;
    }
    static const struct log_output quiet = {.to = "stderr", .level = LOG_WARN, .format = LOG_TEXT};
    config->logs = arena_alloc(&config->arena, sizeof quiet);
    if (config->logs == NULL) {
        config_unref(config);
        tell("out of memory");
        return EXIT_FAILED;
    }
    *config->logs = quiet;
    config->log_count = 1;
    snprintf(state_used, sizeof state_used, "%s", quick.state != NULL ? quick.state : config->state);
    if (beside_daemon(config, state_used, sizeof state_used))
        quick.state = state_used;
    int64_t since_ms = clock_wall_ms();
    l->flow = &config->flows[0];
    struct daemon_options options = {.config = config,
                                     .file = "",
                                     .state_override = quick.state,
                                     .no_sources = true,
                                     .quiet = true,
                                     .once = true,
                                     .on_open = on_open,
                                     .on_end = on_end,
                                     .arg = l};
    int code = daemon_run(&options);
    if (l->daemon == NULL)
        return code; /* it did not come to loading */
    size_t failed = summarize(l, state_used, since_ms);
    if (failed > 0)
        tell("%zu of %zu files were not loaded", failed, l->count);
    return failed > 0 ? EXIT_FAILED : code;
}

int run_load(const struct args *args)
{
    struct loading l = {0};
    if (args_value(args, "to") == NULL) {
        tell("load: where to? Name the destination: chute load FILE… --to sqlite:PATH");
        return EXIT_USAGE;
    }
    l.paths = calloc((size_t)args->operand_count, sizeof *l.paths);
    if (l.paths == NULL) {
        tell("out of memory");
        return EXIT_FAILED;
    }
    size_t bad = find_files(args, &l);
    int code = l.count > 0 ? load_files(args, &l) : EXIT_FAILED;
    for (size_t i = 0; i < l.count; i++)
        free((char *)(uintptr_t)l.paths[i]);
    free(l.paths);
    return bad > 0 && code == EXIT_FINE ? EXIT_FAILED : code;
}
