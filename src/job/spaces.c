/*
 * spaces.c -- folders become buckets as soon as they appear, and two folders never share one by accident.
 *
 * Nothing here is durable: after a start the scan meets every folder again, and a driver that finds the bucket makes
 * none. Whatever fails here is no loss, since the first load into a space makes it too.
 */
#include "job_internal.h"

#include <stdio.h>

/* One space somebody's folder stands for; in the outlet's list, freed with it. */
struct space_want {
    struct space_want *next;
    bool is_done; /* it exists, or can't be made, which was said */
    char *name;   /* legal */
    char *folder; /* below its source's root; NULL: it is gone, the next may have the name */
};

static struct outlet *outlet_of(struct world *w, const struct config_dest *dest)
{
    for (size_t i = 0; i < w->outlet_count; i++)
        if (w->outlets[i].config == dest)
            return &w->outlets[i];
    return NULL;
}

static void on_space_made(void *arg, const struct err *err);

void spaces_pump(struct outlet *o)
{
    struct world *w = o->world;
    struct space_want *s;
    if (o->is_making_space || w->is_stopping || w->engine->is_draining || o->health != OUTLET_OK ||
        uv_is_active((uv_handle_t *)&o->space_timer))
        return;
    LL_SEARCH_SCALAR(o->spaces, s, is_done, false);
    if (s == NULL)
        return;
    o->making = s;
    o->is_making_space = true;
    world_hold(w);
    o->config->ops->make_space(o->state, s->name, on_space_made, o);
}

static void on_space_timer(uv_timer_t *timer)
{
    spaces_pump(timer->data);
}

static void on_space_made(void *arg, const struct err *err)
{
    struct outlet *o = arg;
    struct world *w = o->world;
    struct space_want *s = o->making;
    struct log_about about = {.dest = o->config->name};
    o->is_making_space = false;
    if (err == NULL || err->code == ERR_NONE) {
        s->is_done = true;
        o->space_tries = 0;
        outlet_answered(o);
    } else if (err->code == ERR_REMOTE || err->code == ERR_DENIED || err->code == ERR_SYSTEM || err->retryable) {
        if (err->code != ERR_INPUT)
            outlet_failed(o, err);
        uint64_t wait = backoff_ms(w->engine, &o->config->retry, ++o->space_tries);
        if (o->space_tries == 1)
            log_write(LOG_WARN, &about, "%s %s: %s; tried again", o->config->ops->space_word, s->name, err->text);
        if (o->health == OUTLET_OK && !w->is_stopping)
            uv_timer_start(&o->space_timer, on_space_timer, wait, 0);
    } else {
        s->is_done = true;
        log_write(LOG_ERROR, &about, "%s %s for folder %s: %s", o->config->ops->space_word, s->name,
                  s->folder != NULL ? s->folder : "?", err->text);
    }
    spaces_pump(o);
    engine_check_idle(w->engine);
    world_release(w);
}

static void free_space(struct space_want *s)
{
    free(s->name);
    free(s->folder);
    free(s);
}

void spaces_forget(struct outlet *o)
{
    struct space_want *s, *tmp;
    LL_FOREACH_SAFE(o->spaces, s, tmp)
        free_space(s);
    o->spaces = NULL;
}

static void want_space(struct outlet *o, const char *name, const char *folder)
{
    struct log_about about = {.dest = o->config->name};
    struct space_want *s;
    LL_FOREACH(o->spaces, s)
        if (strcmp(s->name, name) == 0)
            break;
    if (s != NULL && s->folder == NULL) {
        s->folder = strdup(folder);
        return;
    }
    if (s != NULL) {
        if (strcmp(s->folder, folder) != 0)
            log_write(LOG_ERROR, &about,
                      "folders %s and %s would both be %s %s: the first has it, files in the other are "
                      "not loaded; rename one of them",
                      s->folder, folder, o->config->ops->space_word, name);
        return;
    }
    s = calloc(1, sizeof *s);
    if (s == NULL)
        return; /* the first load makes it */
    s->name = strdup(name);
    s->folder = strdup(folder);
    if (s->name == NULL || s->folder == NULL) {
        free_space(s);
        return;
    }
    LL_APPEND(o->spaces, s);
    spaces_pump(o);
}

void spaces_folder(struct intake *in, const char *folder)
{
    char inside[4200], name[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
    for (size_t i = 0; i < in->flow_count; i++) {
        const struct config_flow *flow = in->flows[i];
        struct err err = {0};
        if (flow->dest->ops->make_space == NULL || !flow_wants_folder(flow, folder) ||
            (size_t)snprintf(inside, sizeof inside, "%s/x", folder) >= sizeof inside)
            continue;
        if (flow_space_name(flow, inside, name, key, sizeof name, &err) == ERR_NONE) {
            struct outlet *o = outlet_of(in->world, flow->dest);
            if (o != NULL)
                want_space(o, name, folder);
            continue;
        }
        struct log_about about = {.flow = flow->name, .dest = flow->dest->name};
        log_write(LOG_ERROR, &about, "folder %s: %s", folder, err.text);
    }
}

void spaces_folder_gone(struct intake *in, const char *folder)
{
    for (size_t i = 0; i < in->world->outlet_count; i++) {
        struct space_want *s;
        LL_FOREACH(in->world->outlets[i].spaces, s)
            if (s->folder != NULL && strcmp(s->folder, folder) == 0) {
                free(s->folder);
                s->folder = NULL;
            }
    }
}

bool spaces_are_quiet(const struct outlet *o)
{
    const struct space_want *s;
    LL_SEARCH_SCALAR(o->spaces, s, is_done, false);
    return s == NULL && !o->is_making_space;
}

/* ---- files: in a ledger transaction ---- */

static void folder_of(const char *path, char *ret, size_t size)
{
    const char *slash = strrchr(path, '/');
    snprintf(ret, size, "%.*s", slash != NULL ? (int)(slash - path) : 0, path);
}

enum err_code space_owner(struct ledger_tx *tx, const struct config_flow *flow, const struct ledger_row *row,
                          struct arena *arena, const char **ret_owner, struct err *err)
{
    char name[TABLE_NAME_MAX], key[TABLE_NAME_MAX], fact[TABLE_NAME_MAX + 128], folder[4200], mine[4400];
    const char *owner = NULL;
    *ret_owner = NULL;
    if (flow->space == NULL || flow->space_is_given || template_is_constant(flow->space))
        return ERR_NONE;
    folder_of(row->path, folder, sizeof folder);
    if (flow_space_name(flow, row->path, name, key, sizeof name, err) != ERR_NONE) {
        err_clear(err); /* the job says so when it opens the file */
        return ERR_NONE;
    }
    snprintf(fact, sizeof fact, "space:%s:%s", row->dest, key);
    snprintf(mine, sizeof mine, "%s\t%s", row->source, folder);
    if (ledger_meta_get(tx, fact, arena, &owner, err) != ERR_NONE)
        return err->code;
    if (owner != NULL && strcmp(owner, mine) == 0)
        return ERR_NONE;
    const char *tab = owner != NULL ? strchr(owner, '\t') : NULL;
    if (tab != NULL && tab[1] != '\0') {
        uint64_t held = 0;
        const char *source = arena_printf(arena, "%.*s", (int)(tab - owner), owner);
        const struct ledger_query q = {.source = source,
                                       .below = tab + 1,
                                       .dest = row->dest,
                                       .states = (1u << FILE_STATES) - 1 - STATE_BIT(STATE_GONE) -
                                                 STATE_BIT(STATE_QUARANTINED)};
        if (source == NULL)
            return err_nomem(err);
        if (ledger_count(tx, &q, &held, err) != ERR_NONE)
            return err->code;
        if (held > 0) {
            *ret_owner = tab + 1;
            return ERR_NONE;
        }
    }
    return ledger_meta_put(tx, fact, mine, err);
}
