/* keboola_place.c -- where the rows go: bucket, table, and whether this file may go into it. See keboola_walk.h. */
#include "keboola_walk.h"

#include "clock.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* ---- BUCKET and TABLE ---- */

bool walk_is_table_there(const char *code)
{
    return code_is(code, "storage.buckets.tableAlreadyExists") || code_is(code, "storage.tables.alreadyExists");
}

bool keboola_is_place_gone(const char *code)
{
    return code_is(code, "storage.tables.notFound") || code_is(code, "storage.buckets.notFound");
}

enum next walk_place_gone(struct kload *l, const char *code, const struct err *err)
{
    struct err gone = *err;
    if (code_is(code, "storage.buckets.notFound") && l->bucket[0] != '\0') {
        bucket_forget(l->k, l->bucket);
        l->bucket[0] = '\0';
    }
    l->walk.made = false;  /* what stands there next is made by this walk, or is somebody else's */
    gone.code = ERR_INPUT; /* no reason to stop what is for other tables */
    gone.retryable = true; /* nor is it a fault of the file */
    return walk_look_again(l, l->bucket[0] != '\0' ? K_TABLE : K_BUCKET, &gone);
}

static void on_bucket(void *arg, const char *id, const struct err *err)
{
    struct kload *l = arg;
    l->needs_bucket = false;
    if (err != NULL) {
        l->err = *err;
        l->load->retry_after_ms = bucket_pause_ms(l->k, l->load->space);
    } else if (id == NULL || (size_t)snprintf(l->bucket, sizeof l->bucket, "%s", id) >= sizeof l->bucket) {
        err_set(&l->err, ERR_REMOTE, true, "the service gives bucket %s no usable id", l->load->space);
    }
    walk_answer(l);
}

enum next walk_enter_bucket(struct kload *l)
{
    struct err err = {0};
    if (bucket_need(l->k, l->load->space, true, on_bucket, l, &err) != ERR_NONE)
        return walk_fails(l, &err);
    l->needs_bucket = true;
    return WAIT;
}

enum next walk_answer_bucket(struct kload *l)
{
    return l->err.code != ERR_NONE ? OVER : walk_go(l, K_TABLE);
}

enum next walk_enter_table(struct kload *l)
{
    if (l->bucket[0] == '\0')
        return walk_go(l, K_BUCKET);
    return walk_ask(l, "GET", arena_printf(&l->arena, "tables/%s.%s", l->bucket, l->load->table), NULL, true);
}

bool walk_has_default_nulls(const struct kload *l)
{
    const struct option_strings *n = &l->load->plan->null_values;
    return !l->is_raw || (n->count == 1 && n->items[0][0] == '\0');
}

/* What the file alone can't say when it makes the table: types, a header that slices don't have, other words for NULL.
 */
static bool needs_definition(const struct kload *l)
{
    return l->load->plan->types.policy != TYPES_TEXT || l->walk.is_sliced || !walk_has_default_nulls(l);
}

enum next walk_answer_table(struct kload *l)
{
    const struct api_reply *r = l->reply;
    struct err err = {0};
    memset(&l->table, 0, sizeof l->table);
    l->table.rows = -1;
    if (r->err.code == ERR_NONE) {
        if (table_read(r->json, &l->arena, &l->table, &err) != ERR_NONE)
            return walk_fails(l, &err);
    } else if (r->status == 404 && code_is(r->code, "storage.buckets.notFound")) {
        return walk_place_gone(l, r->code, &r->err);
    } else if (r->status != 404 || !r->is_api) {
        return walk_refused(l);
    }
    if (!l->table.exists)
        snprintf(l->table.id, sizeof l->table.id, "%s.%s", l->bucket, l->load->table);
    if (keboola_columns(l->load->rows->shape, &l->arena, &l->names, &err) != ERR_NONE ||
        table_check(l->load, l->names, &l->table, &err) != ERR_NONE ||
        table_key(l->load, l->names, &l->arena, &l->key, &err) != ERR_NONE)
        return walk_fails(l, &err);
    if (!l->walk.is_uploaded)
        l->walk.is_sliced = l->load->cuts != NULL && l->is_raw;
    l->walk.is_keyed = l->load->plan->key.count > 0 || l->table.key_count > 0;
    l->walk.rows_before = l->table.exists ? l->table.rows : 0;
    if (!l->table.exists && needs_definition(l)) {
        l->walk.made = true;
        return walk_keep(l, K_DEFINE);
    }
    return walk_go(l, l->walk.is_uploaded ? K_CURRENT : K_PREPARE);
}

/* ---- DEFINE: a table with types, or with columns that slices don't name ---- */

enum next walk_enter_define(struct kload *l)
{
    struct buf b;
    buf_init(&b);
    buf_adds(&b, "{\"name\":");
    buf_add_json(&b, l->load->table);
    buf_adds(&b, ",\"primaryKeysNames\":[");
    for (size_t i = 0; i < l->load->plan->key.count; i++) {
        buf_adds(&b, i > 0 ? "," : "");
        buf_add_json(&b, l->key[i]);
    }
    buf_adds(&b, "],\"columns\":[");
    for (size_t i = 0; i < l->load->rows->shape->column_count; i++) {
        buf_adds(&b, i > 0 ? ",{\"name\":" : "{\"name\":");
        buf_add_json(&b, l->names[i]);
        if (l->load->plan->types.policy != TYPES_TEXT)
            buf_printf(&b, ",\"basetype\":\"%s\"", table_base_type(l->load, i));
        buf_addc(&b, '}');
    }
    buf_adds(&b, "]}");
    enum next next = walk_ask(l, "POST", arena_printf(&l->arena, "buckets/%s/tables-definition", l->bucket), &b, true);
    buf_done(&b);
    return next;
}

enum next walk_answer_define(struct kload *l)
{
    struct err err = {0};
    if (l->reply->err.code == ERR_NONE) {
        l->define_job = api_number(l->reply->json, "id", 0);
        l->polls = 0;
        if (l->define_job > 0)
            return walk_go(l, K_DEFINING);
        err_set(&err, ERR_REMOTE, true, "tables-definition: the answer has no number of a job");
        return walk_fails(l, &err); /* the next try looks whether the table is there */
    }
    if (walk_is_table_there(l->reply->code)) {
        l->walk.made = false;
        return ++l->turns < TURNS_MAX ? walk_go(l, K_TABLE) : walk_refused(l);
    }
    if (keboola_is_place_gone(l->reply->code))
        return walk_place_gone(l, l->reply->code, &l->reply->err);
    return walk_refused(l);
}

enum next walk_enter_defining(struct kload *l)
{
    char path[64];
    snprintf(path, sizeof path, "jobs/%" PRId64, l->define_job);
    return walk_ask(l, "GET", path, NULL, false);
}

enum next walk_answer_defining(struct kload *l)
{
    struct err err = {0};
    bool is_final, again;
    bool is_unknown = l->reply->status == 404 && l->reply->is_api; /* the job: is the table there? */
    if (l->reply->err.code != ERR_NONE)
        return is_unknown && ++l->turns < TURNS_MAX ? walk_go(l, K_TABLE) : walk_refused(l);
    const char *code = api_text(api_member(l->reply->json, "error"), "code");
    if (keboola_job_end(l->reply->json, &is_final, &again, &err) != ERR_NONE && keboola_is_place_gone(code))
        return walk_place_gone(l, code, &err);
    if (err.code != ERR_NONE && !walk_is_table_there(code))
        return walk_fails(l, &err);
    if (!is_final)
        return walk_later(l, keboola_poll_ms(l->polls++));
    if (++l->turns < TURNS_MAX)
        return walk_go(l, K_TABLE);
    err_set(&err, ERR_REMOTE, true, "table %s is said to be defined, and is not there", l->table.id);
    return walk_fails(l, &err);
}
