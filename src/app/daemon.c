/*
 * daemon.c -- opens every room in order, turns the loop, and closes them in reverse.
 *
 * Opened: logs, state folder with its lock, ledger, engine, control socket and http, signals. Closed: engine drained
 * (the socket still answers meanwhile), then socket and http, engine, ledger, signals; then the loop must be empty.
 */
#include "app_internal.h"

#include "clock.h"
#include "log.h"
#include "state.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PRUNE_MS (24 * 3600 * 1000ull)
#define SIGNALS 4
#define SAME_STOP_MS 300 /* a second signal this soon after the first is the same one */

struct daemon {
    uv_loop_t loop;
    struct daemon_options options;
    struct config *config;
    struct ledger *ledger;
    struct engine *engine;
    struct admin *admin;
    int lock;
    char instance[33];
    uv_signal_t signals[SIGNALS];
    size_t signal_count;
    uv_timer_t deadline;
    uv_check_t prune;
    bool has_timers;
    uint64_t pruned_ms, stopped_ms; /* monotonic */
    bool is_stopping, is_drained;
    int exit_code;
};

static void shut(struct daemon *d);

/* systemd, or whatever plays its part, wants to know; nobody listening is fine. */
static void notify(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    if (path == NULL || (path[0] != '/' && path[0] != '@'))
        return;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length >= sizeof address.sun_path)
        return;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    (void)sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
    close(fd);
}

/* ---- what is kept and for how long ---- */

struct pruning {
    struct daemon *daemon;
    int64_t before_ms;
    uint64_t count;
};

static enum err_code run_prune(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct pruning *p = arg;
    return ledger_prune(tx, p->before_ms, &p->count, err);
}

static void on_pruned(void *arg, const struct err *err)
{
    struct pruning *p = arg;
    struct daemon *d = p->daemon;
    struct err again = {0};
    if (err != NULL && err->code != ERR_NONE)
        log_warn("history: prune: %s", err->text);
    else if (p->count >= LEDGER_PRUNE_MAX && !d->is_stopping && d->ledger != NULL &&
             ledger_run(d->ledger, run_prune, on_pruned, p, &again) == ERR_NONE)
        return; /* there is more; what the files wait for gets its turn in between */
    free(p);
}

static void prune(struct daemon *d)
{
    d->pruned_ms = clock_mono_ms();
    if (d->config->history_keep == 0)
        return;
    struct err err = {0};
    struct pruning *p = malloc(sizeof *p);
    if (p == NULL)
        return; /* tomorrow again */
    *p = (struct pruning){.daemon = d, .before_ms = clock_wall_ms() - (int64_t)d->config->history_keep};
    if (ledger_run(d->ledger, run_prune, on_pruned, p, &err) != ERR_NONE)
        free(p);
}

/* Runs when the loop turns for some other reason: no wake-up of its own. */
static void on_turn(uv_check_t *check)
{
    struct daemon *d = check->data;
    if (!d->is_stopping && clock_mono_ms() - d->pruned_ms >= PRUNE_MS)
        prune(d);
}

/* ---- the end ---- */

static void on_admin_closed(void *arg)
{
    shut(arg);
}

static void on_engine_closed(void *arg)
{
    shut(arg);
}

static void on_ledger_closed(void *arg)
{
    shut(arg);
}

static void on_drained(void *arg)
{
    struct daemon *d = arg;
    d->is_drained = true;
    if (d->options.on_end != NULL)
        d->options.on_end(d->options.arg, d);
    shut(d);
}

/* The next step of closing: each room's answer leads here again. */
static void shut(struct daemon *d)
{
    if (d->engine != NULL && !d->is_drained) {
        engine_drain(d->engine, d->config->shutdown_grace, on_drained, d);
    } else if (d->admin != NULL) {
        struct admin *admin = d->admin;
        d->admin = NULL;
        admin_close(admin, on_admin_closed, d);
    } else if (d->engine != NULL) {
        struct engine *engine = d->engine;
        d->engine = NULL;
        engine_close(engine, on_engine_closed, d);
    } else if (d->ledger != NULL) {
        struct ledger *ledger = d->ledger;
        d->ledger = NULL;
        ledger_close(ledger, on_ledger_closed, d);
    } else {
        for (size_t i = 0; i < d->signal_count; i++) {
            int number = d->signals[i].signum;
            uv_close((uv_handle_t *)&d->signals[i], NULL);
            if (number != 0)
                signal(number,
                       SIG_IGN); /* libuv gives it back its default: a late one would kill what has ended well */
        }
        if (d->has_timers) {
            uv_close((uv_handle_t *)&d->deadline, NULL);
            uv_close((uv_handle_t *)&d->prune, NULL);
        }
    }
}

void daemon_stop(struct daemon *d, int exit_code)
{
    if (d->is_stopping)
        return;
    d->is_stopping = true;
    d->stopped_ms = clock_mono_ms();
    d->exit_code = exit_code;
    notify("STOPPING=1");
    shut(d);
}

/* ---- reload ---- */

static enum err_code complete_config(struct daemon *d, struct config *config, struct err *err)
{
    if (d->options.state_override != NULL) {
        config->state = arena_strdup(&config->arena, d->options.state_override);
        if (config->state == NULL)
            return err_nomem(err);
    }
    if (config->instance == NULL || config->instance[0] == '\0') {
        config->instance = arena_strdup(&config->arena, d->instance);
        if (config->instance == NULL)
            return err_nomem(err);
    }
    return ERR_NONE;
}

static enum err_code take_config(struct daemon *d, struct config *config, struct err *err)
{
    if (complete_config(d, config, err) != ERR_NONE)
        return err->code;
    if (strcmp(config->state, d->config->state) != 0)
        return err_set(err, ERR_CONFIG, false,
                       "`state` can't change while chute runs (%s, now %s); restart it for that", d->config->state,
                       config->state);
    if (strcmp(config->timezone, d->config->timezone) != 0)
        return err_set(err, ERR_CONFIG, false, "`timezone` can't change while chute runs; restart it for that");
    if (log_open(config->logs, config->log_count, err) != ERR_NONE)
        return err->code;
    if (engine_reload(d->engine, config, err) != ERR_NONE)
        goto old_logs;
    if (d->admin != NULL && admin_reconfigure(d->admin, config, err) != ERR_NONE) {
        struct err back = {0};
        if (engine_reload(d->engine, d->config, &back) != ERR_NONE)
            log_error("reload: going back to the old configuration: %s", back.text);
        goto old_logs;
    }
    config_unref(d->config);
    d->config = config_ref(config);
    return ERR_NONE;
old_logs:;
    struct err back = {0};
    (void)log_open(d->config->logs, d->config->log_count, &back);
    return err->code;
}

/* What HUP does, and `chute reload`. */
static void reload(void *arg, struct err *err)
{
    struct daemon *d = arg;
    log_reopen();
    if (d->is_stopping) {
        err_set(err, ERR_STOPPED, false, "stopping");
        return;
    }
    if (d->options.file == NULL || d->options.file[0] == '\0') {
        log_info("reload: log files opened again; there is no configuration file to read");
        return;
    }
    struct config *config = NULL;
    char *errors = NULL;
    notify("RELOADING=1");
    enum err_code code = config_load(d->options.file, &app_drivers, &config, &errors, err);
    if (code == ERR_NONE)
        code = take_config(d, config, err);
    if (code == ERR_NONE) {
        log_info("reload: %s is in force now", d->options.file);
    } else {
        char *rest = errors;
        for (char *line; rest != NULL && (line = strsep(&rest, "\n")) != NULL;) {
            if (line[0] != '\0')
                log_error("reload: %s", line);
        }
        if (errors == NULL)
            log_error("reload: %s", err->text);
        log_error("reload: the configuration is not taken; the old one goes on");
    }
    notify("READY=1");
    config_unref(config);
    free(errors);
}

/* ---- signals ---- */

static void on_signal(uv_signal_t *handle, int number)
{
    struct daemon *d = handle->data;
    struct err err = {0};
    switch (number) {
    case SIGHUP:
        reload(d, &err);
        break;
    case SIGUSR1:
        if (d->admin != NULL)
            admin_log_state(d->admin);
        break;
    default:
        if (d->is_stopping && clock_mono_ms() - d->stopped_ms < SAME_STOP_MS)
            break; /* timeout(1) and shells tell the process and then its group: that is one wish, not two */
        if (d->is_stopping) {
            log_warn("stop: told twice, ending at once; what was under way is taken up at the next start");
            _exit(EXIT_FAILED);
        }
        log_info("stop: %s received, finishing what is under way (up to %llu s)", number == SIGINT ? "INT" : "TERM",
                 (unsigned long long)(d->config->shutdown_grace / 1000));
        /* a daemon that was asked to stop did well; what was to be finished now was not */
        daemon_stop(d, d->options.once ? EXIT_FAILED : EXIT_FINE);
    }
}

static enum err_code watch_signals(struct daemon *d, struct err *err)
{
    static const int numbers[SIGNALS] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1};
    for (size_t i = 0; i < SIGNALS; i++) {
        int status = uv_signal_init(&d->loop, &d->signals[i]);
        if (status == 0) {
            d->signal_count++;
            d->signals[i].data = d;
            status = uv_signal_start(&d->signals[i], on_signal, numbers[i]);
        }
        if (status != 0)
            return err_set(err, ERR_SYSTEM, false, "signals: %s", uv_strerror(status));
    }
    return ERR_NONE;
}

/* ---- run --once ---- */

/* What could not be read may hold files that nobody has seen: "all is done" would be a guess. */
static size_t unread_sources(struct daemon *d)
{
    struct arena arena;
    struct engine_status status;
    struct err err = {0};
    size_t count = 0;
    arena_init(&arena);
    bool is_known = engine_status(d->engine, &arena, &status, &err) == ERR_NONE;
    for (size_t i = 0; is_known && i < status.source_count; i++) {
        const struct source_health *health = &status.sources[i].health;
        count += health->mode != NULL && (!health->is_reachable || health->problem[0] != '\0');
    }
    arena_done(&arena);
    return is_known ? count : 1;
}

/* How the files of this run ended, for cron's mail. */
static void tell_summary(const struct daemon *d, size_t unread)
{
    static const struct {
        enum file_state state;
        const char *word;
    } ends[] = {{STATE_LOADED, "loaded"}, {STATE_SKIPPED, "skipped"}, {STATE_QUARANTINED, "quarantined"}};
    uint64_t totals[FILE_STATES];
    char text[200] = "", *at = text;
    if (d->options.quiet)
        return;
    engine_totals(d->engine, totals);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        at += snprintf(at, (size_t)(text + sizeof text - at), "%s%llu %s", i > 0 ? ", " : "",
                       (unsigned long long)totals[ends[i].state], ends[i].word);
    if (unread > 0)
        snprintf(at, (size_t)(text + sizeof text - at), "; %zu source%s could not be read whole", unread,
                 unread > 1 ? "s" : "");
    log_info("once: %s", text);
}

static void on_deadline(uv_timer_t *timer)
{
    struct daemon *d = timer->data;
    tell_summary(d, unread_sources(d));
    log_warn("once: not done within the deadline; the rest keeps its state for the next run");
    daemon_stop(d, EXIT_FAILED);
}

static void on_idle(void *arg)
{
    struct daemon *d = arg;
    uint64_t totals[FILE_STATES];
    engine_totals(d->engine, totals);
    /* what was tried in vain has been loaded since, else this would not be idle */
    size_t unread = unread_sources(d);
    bool is_fine = totals[STATE_QUARANTINED] == 0 && engine_failed_pipelines(d->engine) == 0 && unread == 0;
    tell_summary(d, unread);
    daemon_stop(d, is_fine ? EXIT_FINE : EXIT_FAILED);
}

/* ---- the beginning ---- */

static enum err_code open_ledger_room(struct daemon *d, struct err *err)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/ledger.db", d->config->state) >= sizeof path)
        return err_set(err, ERR_CONFIG, false, "state folder: the path is too long: %s", d->config->state);
    struct ledger_options options = {.path = path, .history_keep_ms = d->config->history_keep};
    struct ledger_opened opened = {0};
    if (ledger_open(&d->loop, &options, &d->ledger, &opened, err) != ERR_NONE)
        return err->code;
    if (opened.was_recovered)
        log_error("ledger: %s", opened.message);
    return ERR_NONE;
}

/*
 * SQLite sorts and journals large things in files of its own. In a container with a read-only root the usual folders
 * for those can't be written, and every large load would fail; the state folder can. Before the first thread exists.
 */
static void keep_temporary_files(const char *state)
{
    setenv("SQLITE_TMPDIR", state, 0);
}

static enum err_code open_rooms(struct daemon *d, struct err *err)
{
    uv_timer_init(&d->loop, &d->deadline);
    uv_check_init(&d->loop, &d->prune);
    d->deadline.data = d->prune.data = d;
    d->has_timers = true;
    if (watch_signals(d, err) != ERR_NONE)
        return err->code;
    if (d->options.state_override != NULL) {
        d->config->state = arena_strdup(&d->config->arena, d->options.state_override);
        if (d->config->state == NULL)
            return err_nomem(err);
    }
    if (state_lock(d->config->state, &d->lock, err) != ERR_NONE ||
        state_instance(d->config->state, d->instance, err) != ERR_NONE ||
        complete_config(d, d->config, err) != ERR_NONE)
        return err->code;
    keep_temporary_files(d->config->state);
    if (open_ledger_room(d, err) != ERR_NONE)
        return err->code;
    struct engine_options engine = {.loop = &d->loop,
                                    .config = d->config,
                                    .ledger = d->ledger,
                                    .no_sources = d->options.no_sources,
                                    .by_hand = d->options.by_hand,
                                    .quiet = d->options.quiet,
                                    .once = d->options.once,
                                    .on_idle = d->options.once ? on_idle : NULL,
                                    .arg = d};
    if (engine_open(&engine, &d->engine, err) != ERR_NONE)
        return err->code;
    if (d->options.has_admin) {
        struct admin_options admin = {&d->loop, d->config, d->ledger, d->engine, reload, d};
        if (admin_open(&admin, &d->admin, err) != ERR_NONE)
            return err->code;
    }
    if (d->options.deadline_ms > 0)
        uv_timer_start(&d->deadline, on_deadline, d->options.deadline_ms, 0);
    uv_check_start(&d->prune, on_turn);
    prune(d);
    return d->options.on_open == NULL ? ERR_NONE : d->options.on_open(d->options.arg, d, err);
}

static void print_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    log_error("stop: a %s is still open (please report this)", uv_handle_type_name(uv_handle_get_type(handle)));
}

int daemon_run(const struct daemon_options *options)
{
    struct err err = {0};
    struct daemon *d = calloc(1, sizeof *d);
    if (d == NULL || uv_loop_init(&d->loop) != 0) {
        free(d);
        config_unref(options->config);
        tell("out of memory");
        return EXIT_FAILED;
    }
    d->options = *options;
    d->config = options->config;
    d->lock = -1;
    if (log_open(d->config->logs, d->config->log_count, &err) != ERR_NONE || open_rooms(d, &err) != ERR_NONE) {
        log_error("%s", err.text);
        daemon_stop(d, err.code == ERR_CONFIG && !err.retryable ? EXIT_CONFIG : EXIT_FAILED);
    } else {
        log_info("chute %s started: process %ld, state folder %s, %zu flows", CHUTE_VERSION, (long)getpid(),
                 d->config->state, d->config->flow_count);
        notify("READY=1");
    }
    uv_run(&d->loop, UV_RUN_DEFAULT);
    if (!d->is_stopping) { /* every room keeps the loop alive while it is open */
        daemon_stop(d, EXIT_FAILED);
        uv_run(&d->loop, UV_RUN_DEFAULT);
    }
    if (uv_loop_close(&d->loop) != 0)
        uv_walk(&d->loop, print_handle, NULL);
    int code = d->exit_code;
    if (d->options.has_admin && code == EXIT_FINE)
        log_info("stopped");
    if (d->lock >= 0)
        close(d->lock);
    config_unref(d->config);
    log_close();
    free(d);
    return code;
}

struct engine *daemon_engine(struct daemon *d)
{
    return d->engine;
}

struct ledger *daemon_ledger(struct daemon *d)
{
    return d->ledger;
}

uv_loop_t *daemon_loop(struct daemon *d)
{
    return &d->loop;
}

/* ---- an engine for one errand ---- */

struct errand {
    void (*work)(void *arg, struct engine *e);
    void *arg;
    bool *is_done;
    uv_prepare_t *turn; /* looks before the loop sleeps: the work may be done at once */
    struct daemon *daemon;
};

static void free_turn(uv_handle_t *handle)
{
    free(handle);
}

static void on_errand_turn(uv_prepare_t *turn)
{
    struct errand *e = turn->data;
    if (*e->is_done)
        daemon_stop(e->daemon, EXIT_FINE);
}

static void on_errand_end(void *arg, struct daemon *d)
{
    struct errand *e = arg;
    (void)d;
    if (e->turn != NULL)
        uv_close((uv_handle_t *)e->turn, free_turn);
    e->turn = NULL;
}

static enum err_code on_errand_open(void *arg, struct daemon *d, struct err *err)
{
    struct errand *e = arg;
    e->daemon = d;
    e->turn = malloc(sizeof *e->turn);
    if (e->turn == NULL)
        return err_nomem(err);
    uv_prepare_init(&d->loop, e->turn);
    e->turn->data = e;
    uv_prepare_start(e->turn, on_errand_turn);
    e->work(e->arg, d->engine);
    return ERR_NONE;
}

enum err_code daemon_errand(const struct command_context *c, void (*work)(void *arg, struct engine *e), void *arg,
                            bool *is_done, struct err *err)
{
    struct errand errand = {.work = work, .arg = arg, .is_done = is_done};
    struct daemon_options options = {.config = config_ref(c->config),
                                     .file = "",
                                     .state_override = c->state,
                                     .by_hand = true,
                                     .on_open = on_errand_open,
                                     .on_end = on_errand_end,
                                     .arg = &errand};
    if (daemon_run(&options) != EXIT_FINE)
        return err_set(err, ERR_SYSTEM, true, "it could not be done; the reason is above");
    return ERR_NONE;
}
