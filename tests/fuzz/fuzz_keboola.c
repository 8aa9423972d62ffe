/*
 * fuzz_keboola.c -- answers of the Storage API, or of whatever stands in its place: any bytes, no crash, and no token
 * in what is said of them. The first byte is the status, the rest the body; the same bytes are a checkpoint as well.
 */
#include "keboola_internal.h"

#include <stdlib.h>
#include <string.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            abort();                                                                                                   \
    } while (0)
#define TOKEN "4321-98765-token"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool may_quote; /* what JSON spells otherwise than it is: no service does that to a token */

static void must_be_a_line(const struct err *err)
{
    MUST(strlen(err->text) < sizeof err->text);
    MUST(strchr(err->text, '\n') == NULL);
    MUST(may_quote || strstr(err->text, TOKEN) == NULL);
}

static void fuzz_table(struct json_object *json, struct arena *arena)
{
    struct err err = {0};
    struct keboola_table table = {0};
    if (table_read(json, arena, &table, &err) != ERR_NONE) {
        must_be_a_line(&err);
        return;
    }
    MUST(table.column_count > 0);
    /* against a file that has the first of its columns, twice over */
    struct column columns[2] = {{.name = table.columns[0], .kinds = KIND_INT, .has_value = true},
                                {.name = "other", .kinds = KIND_DATE}};
    struct shape shape = {.columns = columns, .column_count = 2};
    struct rows rows = {.shape = &shape};
    const struct load_plan plan = {.types = {.policy = TYPES_INFER}};
    const struct load load = {.plan = &plan, .rows = &rows};
    const char *const names[] = {table.columns[0], "other"};
    if (table_check(&load, names, &table, &err) != ERR_NONE)
        must_be_a_line(&err);
    const char **cleaned;
    err_clear(&err);
    if (keboola_columns(&shape, arena, &cleaned, &err) == ERR_NONE)
        MUST(strlen(cleaned[0]) > 0 && strlen(cleaned[0]) <= KEBOOLA_COLUMN_MAX);
}

static void fuzz_job(struct json_object *json)
{
    struct err err = {0};
    bool is_final, again, more;
    enum err_code code = keboola_job_end(json, &is_final, &again, &err);
    MUST(code == err.code && (is_final || code == ERR_NONE) && (!again || err.retryable));
    must_be_a_line(&err);
    MUST(keboola_find_job(json, 1, 0, &more) >= -1);
}

static void fuzz_target(struct json_object *json, const struct keboola_options *options, struct arena *arena)
{
    struct store_target target;
    const char *account;
    if (!keboola_target(json, options, arena, &target, &account))
        return;
    MUST(target.bucket != NULL && target.key != NULL);
    MUST(target.kind != STORE_AZURE || (target.endpoint != NULL && target.sas != NULL));
}

static void fuzz_walk(const char *text)
{
    struct keboola_walk walk, again;
    char written[CHECKPOINT_MAX];
    if (!keboola_walk_read(text, &walk))
        return;
    keboola_walk_write(&walk, written, sizeof written);
    if (written[0] != '\0')
        MUST(keboola_walk_read(written, &again) && again.job == walk.job && again.file == walk.file &&
             again.made == walk.made);
}

static void fuzz_name(const char *text)
{
    char name[TABLE_NAME_MAX], key[TABLE_NAME_MAX];
    struct err err = {0};
    if (keboola_name("table", text, NAMES_KEBOOLA, name, key, sizeof name, &err) == ERR_NONE)
        MUST(name[0] != '\0' && name[0] != '_' && strlen(name) <= KEBOOLA_NAME_MAX && strlen(key) == strlen(name));
    else
        must_be_a_line(&err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int statuses[] = {200, 202, 204, 400, 401, 403, 404, 408, 429, 500, 501, 503, 302};
    if (size == 0)
        return 0;
    const struct keboola_options options = {.url = "https://h", .token = TOKEN, .s3_endpoint = "", .gcs_endpoint = ""};
    struct keboola k = {.options = &options};
    struct arena arena;
    char *text = malloc(size);
    if (text == NULL)
        return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    arena_init(&arena);
    may_quote = memchr(text, '\\', size) != NULL;
    struct api_reply r = {.status = statuses[data[0] % (sizeof statuses / sizeof statuses[0])],
                          .json = api_parse(&k, text, size - 1)};
    api_judge(&k, "GET x", size > 1, &r);
    MUST((r.err.code == ERR_NONE) ==
         (r.status < 300 && (r.status == 204 || json_object_is_type(r.json, json_type_object) ||
                             json_object_is_type(r.json, json_type_array))));
    must_be_a_line(&r.err);
    api_hide(&r.err, "secret-of-a-store");
    fuzz_table(r.json, &arena);
    fuzz_job(r.json);
    fuzz_target(r.json, &options, &arena);
    fuzz_walk(text);
    may_quote = true; /* a file may be called as it likes */
    fuzz_name(text);
    json_object_put(r.json);
    arena_done(&arena);
    free(text);
    return 0;
}
