/*
 * facts.c -- what the ledger remembers of a pipeline, as two small facts of it.
 *
 *   then:NAME      "wanted"   a load asks for a run
 *                  "running"  that run has begun; a load that comes now makes it "wanted" again
 *                  none       nothing is owed
 *   pipeline:NAME  how the last run ended, and what of its schedule has been served
 *
 * A kill during a run leaves "running": that is owed, since nobody knows whether it was committed.
 */
#include "pipeline_internal.h"

#include "clock.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const pipeline_trigger_names[PIPELINE_TRIGGERS] = {"load", "schedule", "hand"};
const char *const pipeline_state_names[PIPELINE_STATES] = {"idle", "waiting", "running", "retrying"};

#define KEY_MAX 160 /* names have at most 100 bytes */

static const char *then_key(const char *name, char ret[KEY_MAX])
{
    snprintf(ret, KEY_MAX, "then:%s", name);
    return ret;
}

static const char *facts_key(const char *name, char ret[KEY_MAX])
{
    snprintf(ret, KEY_MAX, "pipeline:%s", name);
    return ret;
}

/* *RET: 'w'anted, 'r'unning, or '\0'. */
static enum err_code owed(struct ledger_tx *tx, const char *name, char *ret, struct err *err)
{
    char key[KEY_MAX];
    const char *text = NULL;
    struct arena arena;
    arena_init(&arena);
    enum err_code code = ledger_meta_get(tx, then_key(name, key), &arena, &text, err);
    *ret = text != NULL ? text[0] : '\0';
    arena_done(&arena);
    return code;
}

enum err_code pipeline_want(struct ledger_tx *tx, const char *name, struct err *err)
{
    char key[KEY_MAX], state;
    if (owed(tx, name, &state, err) != ERR_NONE || state == 'w') /* the usual case of many loads: nothing is written */
        return err->code;
    return ledger_meta_put(tx, then_key(name, key), "wanted", err);
}

enum err_code facts_begin(struct ledger_tx *tx, const char *name, struct err *err)
{
    char key[KEY_MAX], state;
    if (owed(tx, name, &state, err) != ERR_NONE || state != 'w')
        return err->code;
    return ledger_meta_put(tx, then_key(name, key), "running", err);
}

/* Numbers parted by spaces; the one text, which may hold anything, comes last. */
static void parse(const char *text, struct pipeline_facts *ret)
{
    long long began, ended, duration, good, served;
    unsigned long long statements, schedule;
    int trigger, is_permanent, at = 0;
    if (sscanf(text, "1 %lld %lld %lld %llu %lld %lld %llu %d %d %n", &began, &ended, &duration, &statements, &good,
               &served, &schedule, &trigger, &is_permanent, &at) != 9 ||
        trigger < 0 || trigger >= PIPELINE_TRIGGERS)
        return; /* of another version, or damaged: as if it never ran, which runs it once more at worst */
    *ret = (struct pipeline_facts){.is_wanted = ret->is_wanted,
                                   .began_ms = began,
                                   .ended_ms = ended,
                                   .duration_ms = duration,
                                   .statements = statements,
                                   .good_ms = good,
                                   .served_ms = served,
                                   .schedule = schedule,
                                   .trigger = (enum pipeline_trigger)trigger,
                                   .is_permanent = is_permanent != 0};
    snprintf(ret->error, sizeof ret->error, "%s", at > 0 ? text + at : "");
}

enum err_code pipeline_facts_get(struct ledger_tx *tx, const char *name, struct pipeline_facts *ret, struct err *err)
{
    char key[KEY_MAX], state;
    const char *text = NULL;
    struct arena arena;
    *ret = (struct pipeline_facts){0};
    if (owed(tx, name, &state, err) != ERR_NONE)
        return err->code;
    ret->is_wanted = state != '\0';
    arena_init(&arena);
    enum err_code code = ledger_meta_get(tx, facts_key(name, key), &arena, &text, err);
    if (code == ERR_NONE && text != NULL)
        parse(text, ret);
    arena_done(&arena);
    return code;
}

enum err_code facts_put(struct ledger_tx *tx, const char *name, const struct pipeline_facts *f, struct err *err)
{
    char key[KEY_MAX], text[sizeof f->error + 256];
    snprintf(text, sizeof text, "1 %lld %lld %lld %llu %lld %lld %llu %d %d %s", (long long)f->began_ms,
             (long long)f->ended_ms, (long long)f->duration_ms, (unsigned long long)f->statements,
             (long long)f->good_ms, (long long)f->served_ms, (unsigned long long)f->schedule, (int)f->trigger,
             f->is_permanent, f->error);
    return ledger_meta_put(tx, facts_key(name, key), text, err);
}

enum err_code facts_end(struct ledger_tx *tx, const char *name, struct pipeline_facts *f, bool is_settled,
                        struct err *err)
{
    char key[KEY_MAX], state;
    if (owed(tx, name, &state, err) != ERR_NONE)
        return err->code;
    if (is_settled && state == 'r') {
        if (ledger_meta_put(tx, then_key(name, key), NULL, err) != ERR_NONE)
            return err->code;
        state = '\0';
    }
    f->is_wanted = state != '\0';
    return facts_put(tx, name, f, err);
}

int64_t plan_due(const struct pipeline_plan *plan, const struct pipeline_facts *f, int64_t now_ms)
{
    if (plan->every_ms > 0) {
        int64_t from = f->began_ms > 0 ? f->began_ms : f->served_ms;
        /* A clock that was set back must not make the wait longer than it can be. */
        return (from > now_ms || from == 0 ? now_ms : from) + (int64_t)plan->every_ms;
    }
    if (plan->cron == NULL)
        return INT64_MAX;
    bool is_known = f->served_ms > 0 && f->served_ms <= now_ms && f->schedule == plan->schedule;
    int64_t next = cron_next(plan->cron, is_known ? f->served_ms : now_ms);
    return next < 0 ? INT64_MAX : next;
}

enum err_code pipeline_status_offline(struct ledger_tx *tx, const struct pipeline_plan *plan,
                                      struct pipeline_status *ret, struct err *err)
{
    *ret = (struct pipeline_status){.name = plan->name, .dest = plan->dest};
    if (pipeline_facts_get(tx, plan->name, &ret->facts, err) != ERR_NONE)
        return err->code;
    int64_t due = plan_due(plan, &ret->facts, clock_wall_ms());
    ret->state = ret->facts.is_wanted ? PIPELINE_WAITING : PIPELINE_IDLE;
    ret->next_ms = due == INT64_MAX ? 0 : due;
    return ERR_NONE;
}
