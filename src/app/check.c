/*
 * check.c -- `chute check`: is the configuration right, and with --connect, does everything answer?
 *
 * It opens sources and destinations as the daemon does, but takes nothing and loads nothing.
 */
#include "app_internal.h"

#include "text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONNECT_MS 30000

/* One source or destination being tried. */
struct trial {
    uv_loop_t loop;
    uv_timer_t timer;
    bool is_done, is_late;
    struct err err;
    /* sources */
    const struct config_source *source;
    const struct config *config;
    void *state;
    uint64_t wanted;
    struct scan_result scan;
};

static void on_late(uv_timer_t *timer)
{
    struct trial *t = timer->data;
    t->is_done = t->is_late = true;
    uv_stop(&t->loop);
}

static void on_closed(void *arg)
{
    struct trial *t = arg;
    uv_close((uv_handle_t *)&t->timer, NULL);
}

static enum err_code trial_begin(struct trial *t, struct err *err)
{
    int status = uv_loop_init(&t->loop);
    if (status != 0)
        return err_set(err, ERR_SYSTEM, true, "loop: %s", uv_strerror(status));
    uv_timer_init(&t->loop, &t->timer);
    t->timer.data = t;
    uv_timer_start(&t->timer, on_late, CONNECT_MS, 0);
    return ERR_NONE;
}

static void trial_wait(struct trial *t)
{
    while (!t->is_done)
        uv_run(&t->loop, UV_RUN_ONCE);
    uv_timer_stop(&t->timer);
}

static void trial_end(struct trial *t)
{
    uv_run(&t->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&t->loop) != 0)
        tell("check: a handle was left open (please report this)");
}

/* ---- destinations ---- */

static void on_connected(void *arg, const struct err *err)
{
    struct trial *t = arg;
    if (err != NULL)
        t->err = *err;
    t->is_done = true;
}

static bool try_dest(const struct config_dest *dest)
{
    struct err err = {0};
    void *state;
    struct trial *t = calloc(1, sizeof *t);
    if (t == NULL || trial_begin(t, &err) != ERR_NONE) {
        free(t);
        tell("destination %s: %s", dest->name, err.code == ERR_NONE ? "out of memory" : err.text);
        return false;
    }
    bool is_fine = false;
    const struct dest_env env = {.jobs = 1, .buffer_bytes = 1024 * 1024};
    if (dest->ops->open(dest->options, &env, &t->loop, &state, &err) != ERR_NONE) {
        tell("destination %s: %s", dest->name, err.text);
        on_closed(t);
    } else {
        struct dest_health health = {0};
        dest->ops->connect(state, on_connected, t);
        trial_wait(t);
        dest->ops->health(state, &health);
        if (t->is_late)
            tell("destination %s: no answer within %d s", dest->name, CONNECT_MS / 1000);
        else if (t->err.code != ERR_NONE)
            tell("destination %s: %s", dest->name, t->err.text);
        else
            printf("destination %s: fine: %s %s (%s)\n", dest->name, dest->ops->type, health.where, health.version);
        if (!t->is_late && t->err.code == ERR_NONE && health.advice[0] != '\0')
            printf("destination %s: note: %s\n", dest->name, health.advice);
        is_fine = !t->is_late && t->err.code == ERR_NONE;
        dest->ops->close(state, on_closed, t);
    }
    trial_end(t);
    free(t);
    return is_fine;
}

/* ---- sources ---- */

static void ignore_found(void *arg, const struct found *found)
{
    (void)arg;
    (void)found;
}

static void ignore_event(void *arg)
{
    (void)arg;
}

static void on_scanned(void *arg, const struct found *found, size_t count)
{
    struct trial *t = arg;
    for (size_t i = 0; i < count; i++)
        t->wanted += found[i].how == FOUND_SCANNED;
    t->source->ops->scan_resume(t->state);
}

static void on_scan_done(void *arg, const struct scan_result *result)
{
    struct trial *t = arg;
    t->scan = *result;
    t->is_done = true;
}

static bool wants(void *arg, const char *path)
{
    const struct trial *t = arg;
    for (size_t i = 0; i < t->config->flow_count; i++) {
        const struct config_flow *f = &t->config->flows[i];
        if (strcmp(f->source->name, t->source->name) == 0 && config_flow_takes(f, path))
            return true;
    }
    return false;
}

static void on_health(void *arg)
{
    struct trial *t = arg;
    struct source_health health;
    if (t->state == NULL)
        return; /* told while it opens: looked at afterwards */
    t->source->ops->health(t->state, &health);
    if (!health.is_reachable && health.problem[0] != '\0')
        t->is_done = true;
}

static bool judge_source(const struct trial *t)
{
    struct source_health health;
    t->source->ops->health(t->state, &health);
    if (health.problem[0] != '\0') {
        tell("source %s: %s", t->source->name, health.problem);
        return false;
    }
    if (t->is_late) {
        printf("source %s: reachable, %s%s%s; still being listed after %d s\n", t->source->name, health.mode,
               health.reason[0] != '\0' ? ": " : "", health.reason, CONNECT_MS / 1000);
        return true;
    }
    if (!t->scan.is_complete) {
        tell("source %s: it can't be listed", t->source->name);
        return false;
    }
    printf("source %s: fine: %s, %s%s%s, %llu folders, %llu files that a flow takes\n", t->source->name,
           t->source->ops->type, health.mode, health.reason[0] != '\0' ? ": " : "", health.reason,
           (unsigned long long)t->scan.folders, (unsigned long long)t->wanted);
    return true;
}

static bool try_source(const struct config *config, const struct config_source *source)
{
    struct err err = {0};
    struct trial *t = calloc(1, sizeof *t);
    if (t == NULL || trial_begin(t, &err) != ERR_NONE) {
        free(t);
        tell("source %s: %s", source->name, err.code == ERR_NONE ? "out of memory" : err.text);
        return false;
    }
    t->source = source;
    t->config = config;
    bool is_fine = false;
    const char *const avoid[] = {config->state, NULL};
    const struct source_env env = {.jobs = (unsigned)config->limits.jobs};
    struct source_sink sink = {t, ignore_found, ignore_event, on_scanned, on_scan_done, on_health};
    if (source->ops->open(source->options, &env, &t->loop, &sink, -1, avoid, wants, t, &t->state, &err) != ERR_NONE) {
        tell("source %s: %s", source->name, err.text);
        on_closed(t);
    } else {
        on_health(t);
        if (source->ops->fetch != NULL) /* it lists only when it is asked */
            source->ops->scan(t->state);
        trial_wait(t);
        is_fine = judge_source(t);
        source->ops->close(t->state, on_closed, t);
    }
    trial_end(t);
    free(t);
    return is_fine;
}

/* ---- scripts ---- */

/* They are read when they run, so a missing one is found here or at night. */
static bool try_scripts(const struct option_strings *files, const char *what, const char *name)
{
    bool is_fine = true;
    for (size_t i = 0; i < files->count; i++)
        if (access(files->items[i], R_OK) != 0) {
            tell("%s %s: %s can't be read: %s", what, name, files->items[i], strerror(errno));
            is_fine = false;
        }
    return is_fine;
}

static bool try_all_scripts(const struct config *config)
{
    bool is_fine = true;
    for (size_t i = 0; i < config->dest_count; i++)
        is_fine = try_scripts(&config->dests[i].init, "init of destination", config->dests[i].name) && is_fine;
    for (size_t i = 0; i < config->pipeline_count; i++)
        is_fine = try_scripts(&config->pipelines[i].sql, "pipeline", config->pipelines[i].name) && is_fine;
    return is_fine;
}

int run_check(const struct args *args)
{
    char file[PATH_MAX];
    struct config *config;
    int code = find_config(args, true, &config, file);
    if (code != EXIT_FINE)
        return code;
    printf("%s: fine: %zu sources, %zu destinations, %zu flows\n", file, config->source_count, config->dest_count,
           config->flow_count);
    bool is_fine = try_all_scripts(config);
    if (args_has(args, "connect")) {
        for (size_t i = 0; i < config->source_count; i++)
            is_fine = try_source(config, &config->sources[i]) && is_fine;
        for (size_t i = 0; i < config->dest_count; i++)
            is_fine = try_dest(&config->dests[i]) && is_fine;
    }
    config_unref(config);
    return is_fine ? EXIT_FINE : EXIT_FAILED;
}
