/* keboola_import.c -- the import job: ordered once, found again, followed to its end; and the receipt. See
 * keboola_walk.h. */
#include "keboola_walk.h"

#include "clock.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define LOOK_MARGIN_MS (10 * 60 * 1000) /* clocks of the service and ours */
#define POLL_FAILURES_MAX 6

/* ---- CURRENT and ORDER ---- */

static void current_fn(struct work *work)
{
    struct kload *l = work->arg;
    l->load->still_current(l->load, &l->err);
}

enum next walk_enter_current(struct kload *l)
{
    return walk_work(l, current_fn);
}

enum next walk_answer_current(struct kload *l)
{
    if (l->err.code != ERR_NONE)
        return OVER;
    l->walk.creates = !l->table.exists;
    l->walk.ordered_ms = clock_wall_ms();
    l->looks = l->look_page = 0;
    return walk_keep(l, K_ORDER);
}

static void add_char(struct buf *b, const char *key, char c)
{
    const char text[2] = {c, '\0'};
    buf_printf(b, ",\"%s\":", key);
    buf_add_json(b, text);
}

static void add_list(struct buf *b, const char *key, const char *const *items, size_t count)
{
    buf_printf(b, ",\"%s\":[", key);
    for (size_t i = 0; i < count; i++) {
        buf_adds(b, i > 0 ? "," : "");
        buf_add_json(b, items[i]);
    }
    buf_addc(b, ']');
}

enum next walk_enter_order(struct kload *l)
{
    const struct load *load = l->load;
    const struct dialect *d = &load->rows->shape->dialect;
    bool raw = l->is_raw;
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{\"dataFileId\":%" PRId64, l->walk.file);
    add_char(&b, "delimiter", raw ? d->delimiter : ',');
    add_char(&b, "enclosure", raw ? d->quote : '"');
    const char *path;
    if (l->walk.creates) {
        path = arena_printf(&l->arena, "buckets/%s/tables-async", l->bucket);
        buf_adds(&b, ",\"name\":");
        buf_add_json(&b, load->table);
        if (load->plan->key.count > 0) {
            struct buf key;
            buf_init(&key);
            for (size_t i = 0; i < load->plan->key.count; i++)
                buf_printf(&key, "%s%s", i > 0 ? "," : "", l->key[i]);
            buf_adds(&b, ",\"primaryKey\":");
            buf_add_json(&b, key.data);
            b.failed = b.failed || key.failed;
            buf_done(&key);
        }
    } else {
        path = arena_printf(&l->arena, "tables/%s/import-async", l->table.id);
        buf_printf(&b, ",\"incremental\":%s", load->plan->mode == MODE_REPLACE ? "false" : "true");
        if (l->walk.is_sliced)
            add_list(&b, "columns", l->names, load->rows->shape->column_count);
        if (!walk_has_default_nulls(l))
            add_list(&b, "treatValuesAsNull", load->plan->null_values.items, load->plan->null_values.count);
    }
    buf_addc(&b, '}');
    b.failed = b.failed || path == NULL;
    enum next next = walk_ask(l, "POST", path != NULL ? path : "", &b, true);
    buf_done(&b);
    return next;
}

static bool is_missing_file(const char *code)
{
    return code_is(code, "storage.files.notFound") || code_is(code, "storage.fileNotUploaded") ||
           code_is(code, "storage.manifestFileMissing") || code_is(code, "storage.importFileMissing") ||
           code_is(code, "storage.unauthorizedAccess");
}

enum next walk_answer_order(struct kload *l)
{
    const struct api_reply *r = l->reply;
    if (r->err.code == ERR_NONE) {
        l->walk.job = api_number(r->json, "id", 0);
        if (l->walk.job <= 0)
            return walk_go(l, K_LOOK); /* taken, but under which number? */
        l->polls = l->poll_failures = 0;
        return walk_keep(l, K_POLL);
    }
    /* Only an error of the API itself is a clear no; anything else may have been a yes that got lost on the way. */
    bool is_clear = r->status >= 400 && r->status < 500 && r->status != 408 && r->is_api;
    bool may_ask = r->status != 429 && r->retry_after_ms == 0 && l->k->pause_until_ms == 0;
    if (!is_clear && r->maybe_received && r->err.retryable && may_ask)
        return walk_go(l, K_LOOK);
    if (!is_clear || r->status == 429 || r->err.code == ERR_DENIED)
        return walk_refused(l); /* what was ordered is looked for before it is ordered again */
    if (walk_is_table_there(r->code))
        return walk_look_again(l, K_TABLE, &r->err);
    if (keboola_is_place_gone(r->code))
        return walk_place_gone(l, r->code, &r->err);
    if (is_missing_file(r->code))
        return walk_prepare_again(l, &r->err);
    return walk_fails_for_good(l, &r->err);
}

/* ---- LOOK: was it taken? ---- */

enum next walk_enter_look(struct kload *l)
{
    char path[64];
    snprintf(path, sizeof path, "jobs?limit=%d&offset=%u", LOOK_PAGE, l->look_page * LOOK_PAGE);
    return walk_ask(l, "GET", path, NULL, false);
}

int64_t keboola_find_job(struct json_object *list, int64_t file, int64_t ordered_ms, bool *ret_more)
{
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    *ret_more = n > 0;
    for (size_t i = 0; i < n; i++) {
        struct json_object *job = json_object_array_get_idx(list, i);
        struct json_object *params = api_member(job, "operationParams");
        if (api_number(api_member(params, "source"), "fileId", 0) == file) {
            int64_t id = api_number(job, "id", -1);
            return id > 0 ? id : -1;
        }
        int64_t at = api_time_ms(job, "createdTime");
        *ret_more = *ret_more && (at == 0 || at > ordered_ms - LOOK_MARGIN_MS);
    }
    return 0;
}

enum next walk_answer_look(struct kload *l)
{
    bool more;
    struct err err = {0};
    if (l->reply->err.code != ERR_NONE)
        return walk_refused(l);
    int64_t job = keboola_find_job(l->reply->json, l->walk.file, l->walk.ordered_ms, &more);
    if (job < 0 || !json_object_is_type(l->reply->json, json_type_array)) { /* no answer at all: ask again */
        err_set(&err, ERR_REMOTE, true, "GET jobs: the answer is no list of jobs with numbers");
        return walk_fails(l, &err);
    }
    if (job > 0) {
        l->walk.job = job;
        l->polls = l->poll_failures = 0;
        return walk_keep(l, K_POLL);
    }
    if (more && ++l->look_page < LOOK_PAGES_MAX)
        return walk_go(l, K_LOOK);
    l->look_page = 0;
    if (++l->looks < LOOKS_MAX)
        return walk_later(l, keboola_look_ms(l->looks));
    /* It was never taken. */
    l->looks = 0;
    l->walk.ordered_ms = 0;
    if (l->is_adopted) {
        l->is_adopted = false;
        walk_fresh(l);
    }
    if (++l->turns < TURNS_MAX)
        return walk_keep(l, K_BUCKET);
    err_set(&err, ERR_REMOTE, true, "the import was ordered %u times, and the service has no job for it", l->turns);
    return walk_fails(l, &err);
}

/* ---- POLL, and the receipt ---- */

enum next walk_enter_poll(struct kload *l)
{
    char path[64];
    if (l->polls == 0) { /* the first look comes a moment later */
        l->polls = 1;
        return walk_later(l, keboola_poll_ms(0));
    }
    snprintf(path, sizeof path, "jobs/%" PRId64, l->walk.job);
    return walk_ask(l, "GET", path, NULL, false);
}

static void read_warnings(struct json_object *results, char *ret, size_t size)
{
    struct json_object *list = api_member(results, "warnings");
    size_t used = 0;
    ret[0] = '\0';
    for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
        char shown[160];
        const char *text = json_object_get_string(json_object_array_get_idx(list, i));
        if (used < size)
            used += (size_t)snprintf(ret + used, size - used, "%s%s", i > 0 ? "; " : "",
                                     text_printable(text != NULL ? text : "", shown, sizeof shown));
    }
}

static enum next succeeded(struct kload *l, struct json_object *job)
{
    struct load *load = l->load;
    struct receipt *r = &load->receipt;
    struct json_object *results = api_member(job, "results");
    uint64_t loaded = l->walk.parsed - l->walk.rejected;
    uint64_t skipped = l->is_adopted ? 0 : load->skip_records < loaded ? load->skip_records : loaded;
    loaded -= skipped;
    int64_t total = api_number(results, l->walk.creates ? "rowsCount" : "totalRowsCount", -1);
    bool is_whole_table = load->plan->mode == MODE_REPLACE || l->walk.creates;
    *r = (struct receipt){
        .bytes = l->walk.bytes, .parsed = l->walk.parsed, .rejected = l->walk.rejected, .dest_rows = total};
    read_warnings(results, r->warnings, sizeof r->warnings);
    text_unhex(l->walk.hash, r->hash, sizeof r->hash);
    snprintf(r->dest_id, sizeof r->dest_id, "job %" PRId64, l->walk.job);
    r->created_table = l->walk.creates || l->walk.made;
    r->is_resumed = r->is_duplicate = l->is_adopted;
    r->inserted = loaded;
    r->unchanged = skipped;
    if (load->plan->mode == MODE_UPSERT && total >= 0 && l->walk.rows_before >= 0 && total >= l->walk.rows_before &&
        (uint64_t)(total - l->walk.rows_before) <= loaded) {
        r->inserted = (uint64_t)(total - l->walk.rows_before);
        r->updated = loaded - r->inserted;
    }
    if (is_whole_table && !l->walk.is_keyed && !l->is_adopted && total >= 0 && (uint64_t)total != loaded) {
        struct err err = {0};
        err_set(&err, ERR_INPUT, false,
                "job %" PRId64 ": the service imported %" PRId64 " rows, the file has %" PRIu64
                "; the table holds what was imported: look at it and at the file, then chute retry",
                l->walk.job, total, loaded);
        return walk_fails_for_good(l, &err);
    }
    return OVER;
}

/* A drop of this path was under way when its file came again. Now nothing takes away what this version brings. */
static enum next drop_ended(struct kload *l, bool worked)
{
    if (worked && l->walk.creates)
        l->walk.made = false;
    l->is_adopted = false;
    l->polls = l->poll_failures = 0;
    walk_fresh(l);
    return walk_keep(l, K_BUCKET);
}

enum next walk_answer_poll(struct kload *l)
{
    struct err err = {0};
    bool is_final, again;
    const struct api_reply *r = l->reply;
    if (r->err.code != ERR_NONE) {
        bool is_unknown = r->status == 404 && r->is_api;
        if (is_unknown && l->walk.drops)
            return drop_ended(l, false);
        if (is_unknown) { /* jobs are not forgotten within days: is there another one for our file? */
            l->walk.job = 0;
            l->looks = l->look_page = 0;
            return ++l->turns < TURNS_MAX ? walk_go(l, K_LOOK) : walk_refused(l);
        }
        /* The job goes on whatever happens to a question about it. */
        if (!r->err.retryable || ++l->poll_failures > POLL_FAILURES_MAX || l->k->pause_until_ms != 0)
            return walk_refused(l);
        uint64_t wait = keboola_poll_ms(l->poll_failures + 3);
        return walk_later(l, wait > r->retry_after_ms ? wait : r->retry_after_ms);
    }
    l->poll_failures = 0;
    keboola_job_end(r->json, &is_final, &again, &err);
    if (!is_final)
        return walk_later(l, keboola_poll_ms(l->polls++));
    if (l->walk.drops)
        return drop_ended(l, err.code == ERR_NONE);
    if (err.code == ERR_NONE)
        return succeeded(l, r->json);
    const char *code = api_text(api_member(r->json, "error"), "code");
    if (l->is_adopted) { /* the other version's import failed: this one has the table for itself */
        l->is_adopted = false;
        walk_fresh(l);
        return walk_keep(l, K_BUCKET);
    }
    if (walk_is_table_there(code))
        return walk_look_again(l, l->names != NULL ? K_TABLE : K_BUCKET, &err);
    if (keboola_is_place_gone(code)) /* dropped between the order and its job: what went up is still there */
        return walk_place_gone(l, code, &err);
    if (again)
        return walk_prepare_again(l, &err);
    return walk_fails_for_good(l, &err);
}

uint64_t keboola_look_ms(unsigned looks)
{
    return looks <= 1 ? 1000 : 3000;
}

uint64_t keboola_poll_ms(unsigned polls)
{
    uint64_t ms = 50;
    while (polls-- > 0 && ms < 5000)
        ms *= 2;
    return ms < 5000 ? ms : 5000;
}

/* Trouble of the platform has no code of the import's; a refusal of the data has. */
static bool is_platform_trouble(const char *code, const char *message)
{
    if (code != NULL && code[0] != '\0')
        return strncasecmp(code, "internalError", 13) == 0 || strncasecmp(code, "application", 11) == 0;
    if (message == NULL || message[0] == '\0')
        return true;
    return strcasestr(message, "internal") != NULL || strcasestr(message, "application error") != NULL ||
           strcasestr(message, "try again") != NULL || strcasestr(message, "timeout") != NULL;
}

enum err_code keboola_job_end(struct json_object *job, bool *ret_final, bool *ret_again, struct err *err)
{
    const char *status = api_text(job, "status");
    *ret_again = false;
    *ret_final = status != NULL && (strcmp(status, "success") == 0 || strcmp(status, "error") == 0);
    err_clear(err);
    if (!*ret_final || strcmp(status, "success") == 0)
        return ERR_NONE;
    struct json_object *e = api_member(job, "error");
    const char *code = api_text(e, "code"), *message = api_text(e, "message"), *id = api_text(e, "exceptionId");
    char text[340], shown_code[80], shown_id[64];
    text_printable(message != NULL && message[0] != '\0' ? message : "it says no more", text, sizeof text);
    text_printable(code != NULL ? code : "", shown_code, sizeof shown_code);
    text_printable(id != NULL ? id : "", shown_id, sizeof shown_id);
    bool is_trouble = is_platform_trouble(code, message);
    *ret_again = is_missing_file(code);
    return err_set(err, is_trouble || *ret_again ? ERR_REMOTE : ERR_INPUT, is_trouble || *ret_again,
                   "job %" PRId64 " failed: %s%s%s%s%s%s%s", api_number(job, "id", 0), text,
                   shown_code[0] != '\0' || shown_id[0] != '\0' ? " (" : "", shown_code,
                   shown_code[0] != '\0' && shown_id[0] != '\0' ? ", " : "", shown_id[0] != '\0' ? "exception " : "",
                   shown_id, shown_code[0] != '\0' || shown_id[0] != '\0' ? ")" : "");
}
