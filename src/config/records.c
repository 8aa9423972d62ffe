/*
 * records.c -- `records` of a flow with format json: rules that say what becomes of an event, read, checked against
 * each other and the destination, and handed to the room that applies them.
 */
#include "config_internal.h"
#include "text.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define RULES_MAX 256

/* One rule while it is read. The table's offsets are its own. */
struct record_draft {
    struct event_rule rule;
    const char *table;
    struct load_plan plan;
};

/* A column while it is read. */
struct column_draft {
    struct event_column column;
};

static const char *const load_words[] = {"replace", "append", "upsert", "keep_first", "newest", NULL};
static const char *const schema_words[] = {"reject", "add_columns", NULL};
static const char *const when_type[] = {"{pointer: value}", NULL};
static const char *const columns_type[] = {"{column: mapping}", NULL};

#define RECORD(member) offsetof(struct record_draft, member)
const struct option config_record_table[] = {
    {.name = "when",
     .type = OPT_GROUP,
     .choices = when_type,
     .help = "Which events the rule takes: JSON Pointers (RFC 6901) and the text, number or boolean that must stand "
             "there, or a list of such. All of them must hold; without `when` the rule takes every event."},
    {.name = "table",
     .type = OPT_STRING,
     .offset = RECORD(table),
     .flags = OPT_REQUIRED,
     .help = "The table that the event is a row of; no placeholders. Rules with one table have the same columns."},
    {.name = "columns",
     .type = OPT_GROUP,
     .choices = columns_type,
     .flags = OPT_REQUIRED,
     .help = "The columns of the table, and where their values are in the event."},
    {.name = "key",
     .type = OPT_STRINGS,
     .offset = RECORD(plan.key),
     .default_text = "[]",
     .help = "Columns that identify a row; they are required. Needed by `upsert`, `keep_first` and `newest`."},
    {.name = "load",
     .type = OPT_ENUM,
     .offset = RECORD(plan.mode),
     .choices = load_words,
     .help = "What an event does to the row with its key: `append` adds a row, `upsert` replaces it, `keep_first` "
             "keeps the row that is first by `order_by`, `newest` the last one. By default as the flow's `load`, "
             "which is `append` for format json."},
    {.name = "order_by",
     .type = OPT_STRINGS,
     .offset = RECORD(plan.order_by),
     .default_text = "[]",
     .help = "Columns that decide which event is newest; `keep_first` without it keeps what came first."},
    {.name = "on_schema_change",
     .type = OPT_ENUM,
     .offset = RECORD(plan.on_schema_change),
     .choices = schema_words,
     .help = "A table that lacks a column: quarantine the file, or add the column. By default as the flow's."},
    {.name = "continue",
     .type = OPT_BOOL,
     .offset = RECORD(rule.goes_on),
     .default_text = "false",
     .help = "Later rules see the event as well: a state and its history side by side."},
    {.name = NULL}};

#define COLUMN(member) offsetof(struct column_draft, column.member)
const struct option config_record_column_table[] = {
    {.name = "from",
     .type = OPT_STRING,
     .offset = COLUMN(from),
     .flags = OPT_REQUIRED,
     .help = "JSON Pointer (RFC 6901) of the value, such as `/payload/id`; `\"\"` is the whole event."},
    {.name = "type",
     .type = OPT_ENUM,
     .offset = COLUMN(type),
     .default_text = "text",
     .choices = event_type_names,
     .help = "What the value must be. A number keeps every digit; a `timestamp` has no zone and is stored as it is, a "
             "`timestamptz` has one; `json` takes any value, as it stands in the file."},
    {.name = "required",
     .type = OPT_BOOL,
     .offset = COLUMN(required),
     .default_text = "false",
     .help = "An event without the value, or with null, is a bad event."},
    {.name = "default",
     .type = OPT_STRING,
     .offset = COLUMN(default_text),
     .help = "The value when the event has nothing there; null is something, and is NULL."},
    {.name = NULL}};

/* --- reading --- */

static const struct node *or_parent(const struct node *mapping, const char *key)
{
    const struct node *n = node_get(mapping, key);
    return n != NULL ? n : mapping;
}

static void wrong_kind(struct reader *r, const struct node *n, const char *where, const char *expected)
{
    char found[80];
    reader_problem(r, n->line, n->column, "%s: expected %s, found %s", where, expected,
                   node_found(n, found, sizeof(found)));
}

static const char *key_place(struct reader *r, const char *where, const char *key)
{
    char shown[80];
    const char *place = reader_printf(r, "%s.%s", where, text_printable(key, shown, sizeof(shown)));
    return place != NULL ? place : where;
}

/* A value of `when`, or a list of them. */
static void read_values(struct reader *r, const struct node *n, const char *where, struct option_strings *ret)
{
    const struct node *item = n->kind == NODE_SEQUENCE ? n->first : n;
    size_t count = n->kind == NODE_SEQUENCE ? n->count : 1;
    const char **items = arena_alloc(r->arena, (count + 1) * sizeof(*items));

    if (items == NULL) {
        reader_nomem(r);
        return;
    }
    if (count == 0)
        wrong_kind(r, n, where, "a value or a list of values");
    ret->items = items;
    for (; item != NULL && ret->count < count; item = item->next) {
        if (item->kind != NODE_SCALAR) {
            wrong_kind(r, item, where, "a text, a number, true or false");
            return;
        }
        if ((items[ret->count] = value_text(r, item, where)) == NULL)
            return;
        ret->count++;
    }
}

static bool pointer_check(struct reader *r, const char *pointer, size_t line, size_t column, const char *where)
{
    struct err err;

    err_clear(&err);
    if (event_pointer_check(pointer, &err))
        return true;
    reader_problem(r, line, column, "%s: %s", where, err.text);
    return false;
}

static void read_when(struct reader *r, struct event_rule *rule, const struct node *n, const char *where)
{
    if (n == NULL)
        return;
    if (n->kind != NODE_MAPPING || n->count == 0) {
        wrong_kind(r, n, where, "a mapping such as {/metadata/type: card}");
        return;
    }
    if ((rule->whens = arena_alloc(r->arena, n->count * sizeof(*rule->whens))) == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *item = n->first; item != NULL && !r->failed; item = item->next) {
        struct event_when *when = &rule->whens[rule->when_count++];
        if ((when->from = arena_strdup(r->arena, item->key)) == NULL)
            reader_nomem(r);
        else if (pointer_check(r, when->from, item->key_line, item->key_column, where))
            read_values(r, item, key_place(r, where, item->key), &when->values);
    }
}

static void read_column(struct reader *r, struct event_column *ret, const struct node *n, const char *where)
{
    struct column_draft draft = {0};
    const struct target target = {config_record_column_table, &draft};
    size_t before = r->problem_count;
    struct err err;

    if (n->kind != NODE_MAPPING) {
        wrong_kind(r, n, where, "a mapping such as {from: /payload/id, type: bigint}");
        return;
    }
    options_defaults(r, config_record_column_table, &draft);
    options_read(r, &target, 1, NULL, n, where);
    *ret = draft.column;
    if (r->failed || r->problem_count != before)
        return;
    const struct node *from = or_parent(n, "from");
    pointer_check(r, ret->from, from->line, from->column, where);
    err_clear(&err);
    if (ret->default_text != NULL && !event_default_check((enum event_type)ret->type, ret->default_text, &err)) {
        const struct node *blamed = or_parent(n, "default");
        reader_problem(r, blamed->line, blamed->column, "%s.default: %s", where, err.text);
    }
}

static void read_columns(struct reader *r, struct event_rule *rule, const struct node *rule_node, const char *where)
{
    const struct node *n = node_get(rule_node, "columns");

    if (n == NULL) {
        reader_problem(r, rule_node->line, rule_node->column, "%s: 'columns' is missing", where);
        return;
    }
    const char *place = key_place(r, where, "columns");
    if (n->kind != NODE_MAPPING || n->count == 0) {
        wrong_kind(r, n, place, "a mapping of column names");
        return;
    }
    if (n->count > EVENT_COLUMNS_MAX) {
        reader_problem(r, n->line, n->column, "%s: expected at most %d columns, found %zu", place, EVENT_COLUMNS_MAX,
                       n->count);
        return;
    }
    if ((rule->columns = arena_alloc(r->arena, n->count * sizeof(*rule->columns))) == NULL) {
        reader_nomem(r);
        return;
    }
    for (const struct node *item = n->first; item != NULL && !r->failed; item = item->next) {
        struct event_column *column = &rule->columns[rule->column_count];
        const char *column_place = key_place(r, place, item->key);
        read_column(r, column, item, column_place);
        if ((column->name = arena_strdup(r->arena, item->key)) == NULL) {
            reader_nomem(r);
            return;
        }
        if (column->name[0] == '\0')
            reader_problem(r, item->key_line, item->key_column, "%s: a column name is empty", place);
        for (size_t i = 0; i < rule->column_count; i++)
            if (strcasecmp(rule->columns[i].name, column->name) == 0)
                reader_problem(r, item->key_line, item->key_column,
                               "%s: differs from column '%s' in capitals only, which not every database can tell "
                               "apart; rename one",
                               column_place, rule->columns[i].name);
        rule->column_count++;
    }
}

/* --- checks of one rule --- */

static struct event_column *find_column(const struct event_rule *rule, const char *name)
{
    for (size_t i = 0; i < rule->column_count; i++)
        if (strcmp(rule->columns[i].name, name) == 0)
            return &rule->columns[i];
    return NULL;
}

/* The names under KEY are columns of the rule. */
static void names_check(struct reader *r, const struct event_rule *rule, const struct option_strings *names,
                        const struct node *rule_node, const char *key, const char *where)
{
    const struct node *list = or_parent(rule_node, key);
    const struct node *item = list->kind == NODE_SEQUENCE ? list->first : NULL;
    const char **known = reader_alloc(r, (rule->column_count + 1) * sizeof(*known));
    char shown[80];

    if (known == NULL)
        return;
    for (size_t i = 0; i < rule->column_count; i++)
        known[i] = rule->columns[i].name;
    for (size_t i = 0; i < names->count; i++, item = item != NULL ? item->next : NULL) {
        const struct node *n = item != NULL ? item : list;
        struct event_column *column = find_column(rule, names->items[i]);
        text_printable(names->items[i], shown, sizeof(shown));
        if (column == NULL)
            reader_problem(r, n->line, n->column, "%s.%s: the rule has no column '%s'%s", where, key, shown,
                           hint_nearest(r, names->items[i], known));
        else if (column->type == EVENT_JSON)
            reader_problem(r, n->line, n->column, "%s.%s: column '%s' is json, which has no order and no equality",
                           where, key, shown);
        else if (strcmp(key, "key") == 0)
            column->required = true;
        for (size_t k = 0; k < i; k++)
            if (strcmp(names->items[i], names->items[k]) == 0)
                reader_problem(r, n->line, n->column, "%s.%s: column '%s' is named twice", where, key, shown);
    }
}

static void mode_check(struct reader *r, const struct load_plan *plan, const struct node *rule_node, const char *where)
{
    const struct node *n = or_parent(rule_node, "load");

    if (plan->mode == MODE_REPLACE)
        reader_problem(r, n->line, n->column,
                       "%s: load: replace is not for records: the events of all other files would be lost; use append, "
                       "upsert, keep_first or newest",
                       where);
    else if (plan->mode >= MODE_UPSERT && plan->key.count == 0)
        reader_problem(r, n->line, n->column, "%s: load: %s needs a key; add `key: [COLUMN]`", where,
                       load_words[plan->mode]);
    else if (plan->mode == MODE_NEWEST && plan->order_by.count == 0)
        reader_problem(r, n->line, n->column, "%s: load: newest needs order_by; add `order_by: [COLUMN]`", where);
    else if (plan->order_by.count > 0 && plan->mode != MODE_NEWEST && plan->mode != MODE_KEEP_FIRST) {
        n = or_parent(rule_node, "order_by");
        reader_problem(r, n->line, n->column, "%s: order_by is for load: newest and keep_first, not for %s", where,
                       load_words[plan->mode]);
    }
}

/* The types of a plan as drivers read them. */
static bool fill_types(struct reader *r, struct record_draft *draft)
{
    const struct event_rule *rule = &draft->rule;
    struct option_type_entry *entries = arena_alloc(r->arena, (rule->column_count + 1) * sizeof(*entries));

    if (entries == NULL) {
        reader_nomem(r);
        return false;
    }
    for (size_t i = 0; i < rule->column_count; i++)
        entries[i] = (struct option_type_entry){rule->columns[i].name, event_type_names[rule->columns[i].type]};
    draft->plan.types = (struct option_types){.policy = TYPES_MAP, .entries = entries, .count = rule->column_count};
    return true;
}

static void read_rule(struct reader *r, const struct config_flow *flow, struct record_draft *draft,
                      const struct node *n, const char *where)
{
    static const char *const handled[] = {"when", "columns", NULL};
    const struct target target = {config_record_table, draft};
    size_t before = r->problem_count;
    int mode = (int)flow->plan.mode, policy = (int)flow->plan.on_schema_change;

    if (n->kind != NODE_MAPPING) {
        wrong_kind(r, n, where, "a rule: a mapping with table and columns");
        return;
    }
    options_defaults(r, config_record_table, draft);
    draft->plan.flow = flow->plan.flow;
    draft->plan.mode = (enum load_mode)mode;
    draft->plan.row_number = "";
    draft->plan.on_schema_change = policy == SCHEMA_RECREATE ? SCHEMA_REJECT : (enum schema_policy)policy;
    draft->plan.names = flow->plan.names;
    draft->plan.on_duplicate = flow->plan.on_duplicate;
    options_read(r, &target, 1, handled, n, where);
    read_when(r, &draft->rule, node_get(n, "when"), key_place(r, where, "when"));
    read_columns(r, &draft->rule, n, where);
    if (r->failed || r->problem_count != before)
        return;
    names_check(r, &draft->rule, &draft->plan.key, n, "key", where);
    names_check(r, &draft->rule, &draft->plan.order_by, n, "order_by", where);
    mode_check(r, &draft->plan, n, where);
    fill_types(r, draft);
}

/* --- rules among each other, and their destination --- */

static bool same_names(const struct option_strings *a, const struct option_strings *b)
{
    bool is_same = a->count == b->count;

    for (size_t i = 0; is_same && i < a->count; i++)
        is_same = strcmp(a->items[i], b->items[i]) == 0;
    return is_same;
}

/* Can the rows of A and B be loaded into one table as if they were of one rule? */
static bool same_rows(const struct record_draft *a, const struct record_draft *b)
{
    bool is_same = a->rule.column_count == b->rule.column_count && a->plan.mode == b->plan.mode &&
                   a->plan.on_schema_change == b->plan.on_schema_change && same_names(&a->plan.key, &b->plan.key) &&
                   same_names(&a->plan.order_by, &b->plan.order_by);

    for (size_t i = 0; is_same && i < a->rule.column_count; i++)
        is_same = strcmp(a->rule.columns[i].name, b->rule.columns[i].name) == 0 &&
                  a->rule.columns[i].type == b->rule.columns[i].type;
    return is_same;
}

/* The legal name of the rule's table, and what it is compared by. */
static bool legal_table(struct reader *r, const struct config_flow *flow, struct record_draft *draft, char *ret_key,
                        const struct node *n, const char *where)
{
    const struct dest_ops *ops = flow->dest->ops;
    char legal[TABLE_NAME_MAX];
    struct err err;

    err_clear(&err);
    n = or_parent(n, "table");
    if (draft->table[0] == '\0' || strpbrk(draft->table, "{}") != NULL) {
        reader_problem(r, n->line, n->column, "%s.table: expected the name of a table without placeholders, found '%s'",
                       where, draft->table);
        return false;
    }
    if (ops->table_name(draft->table, flow->plan.names, legal, ret_key, sizeof(legal), &err) != ERR_NONE) {
        reader_problem(r, n->line, n->column, "%s.table: %s", where, err.text);
        return false;
    }
    if ((draft->table = arena_strdup(r->arena, legal)) == NULL)
        reader_nomem(r);
    return draft->table != NULL;
}

static struct shape *part_shape(struct reader *r, const struct event_rule *rule)
{
    struct shape *shape = arena_alloc(r->arena, sizeof(*shape));
    struct column *columns = arena_alloc(r->arena, rule->column_count * sizeof(*columns));

    if (shape == NULL || columns == NULL) {
        reader_nomem(r);
        return NULL;
    }
    for (size_t i = 0; i < rule->column_count; i++)
        columns[i] = (struct column){.name = rule->columns[i].name, .kinds = KIND_ANY};
    *shape = (struct shape){.columns = columns, .column_count = rule->column_count};
    return shape;
}

/* A part of its own for the rule. */
static void add_part(struct reader *r, struct config_flow *flow, struct record_draft *draft, const struct node *n,
                     const char *where)
{
    const struct dest_ops *ops = flow->dest->ops;
    struct load_plan *plan = arena_alloc(r->arena, sizeof(*plan));
    struct shape *shape = part_shape(r, &draft->rule);
    const char *option = "load";
    struct err err;

    err_clear(&err);
    if (plan == NULL || shape == NULL) {
        reader_nomem(r);
        return;
    }
    *plan = draft->plan;
    if (ops->check_flow != NULL && ops->check_flow(plan, &option, &err) != ERR_NONE) {
        n = or_parent(n, option);
        reader_problem(r, n->line, n->column, "%s.%s: %s", where, option, err.text);
    }
    draft->rule.part = flow->part_count;
    flow->parts[flow->part_count++] = (struct load_part){.plan = plan, .table = draft->table, .shape = shape};
}

/* Rules with one table share a part. */
static void find_parts(struct reader *r, struct config_flow *flow, struct record_draft *drafts, size_t count,
                       const struct node *list, const char *where)
{
    char(*keys)[TABLE_NAME_MAX] = reader_alloc(r, count * sizeof(*keys));
    const struct node *n = list->first;

    flow->parts = arena_alloc(r->arena, count * sizeof(*flow->parts));
    if (keys == NULL || flow->parts == NULL) {
        reader_nomem(r);
        return;
    }
    for (size_t i = 0; i < count && !r->failed; i++, n = n->next) {
        const char *place = reader_printf(r, "%s[%zu]", where, i);
        size_t same = 0, sharing = 0;
        if (place == NULL || !legal_table(r, flow, &drafts[i], keys[i], n, place))
            return;
        while (same < i && strcmp(keys[same], keys[i]) != 0)
            same++;
        if (same == i) {
            add_part(r, flow, &drafts[i], n, place);
            continue;
        }
        drafts[i].rule.part = drafts[same].rule.part;
        for (size_t k = 0; k < i; k++)
            sharing += drafts[k].rule.part == drafts[i].rule.part;
        const struct node *table = or_parent(n, "table");
        if (!same_rows(&drafts[same], &drafts[i]))
            reader_problem(r, table->line, table->column,
                           "%s.table: %s[%zu] has the same table, so both need the same columns, types, key, order_by, "
                           "load and on_schema_change",
                           place, where, same);
        else if (sharing == EVENT_PART_RULES)
            reader_problem(r, table->line, table->column, "%s.table: more than %d rules have this table", place,
                           EVENT_PART_RULES);
    }
}

/* A rule behind one that takes every event is never asked. */
static void reach_check(struct reader *r, const struct record_draft *drafts, size_t count, const struct node *list,
                        const char *where)
{
    const struct node *n = list->first;

    for (size_t i = 0; i + 1 < count; i++, n = n->next)
        if (drafts[i].rule.when_count == 0 && !drafts[i].rule.goes_on) {
            reader_problem(r, n->next->line, n->next->column,
                           "%s[%zu]: is never reached: %s[%zu] has no `when` and takes every event; put it last, or "
                           "give it `continue: true`",
                           where, i + 1, where, i);
            return;
        }
}

/* What the flow as a whole is to the engine, which asks whether the same rows might be added twice. */
static void set_flow_mode(struct config_flow *flow)
{
    flow->plan.mode = flow->parts[0].plan->mode;
    for (size_t i = 0; i < flow->part_count; i++)
        if (flow->parts[i].plan->mode == MODE_APPEND)
            flow->plan.mode = MODE_APPEND;
}

static void keep_rules(struct reader *r, struct config_flow *flow, const struct record_draft *drafts, size_t count)
{
    struct err err;

    flow->events.rules = arena_alloc(r->arena, count * sizeof(*flow->events.rules));
    if (flow->events.rules == NULL) {
        reader_nomem(r);
        return;
    }
    for (size_t i = 0; i < count; i++)
        flow->events.rules[i] = drafts[i].rule;
    flow->events.rule_count = count;
    flow->events.part_count = flow->part_count;
    if (event_compile(&flow->events, r->arena, &err) != ERR_NONE)
        reader_nomem(r);
    set_flow_mode(flow);
}

void records_read(struct reader *r, struct config_flow *flow, const struct node *list, const char *flow_where)
{
    const char *where = reader_printf(r, "%s.records", flow_where);
    size_t before = r->problem_count, count = 0;

    if (where == NULL)
        return;
    if (list->kind != NODE_SEQUENCE || list->count == 0 || list->count > RULES_MAX) {
        wrong_kind(r, list, where, "a list of 1 to 256 rules");
        return;
    }
    if (flow->dest == NULL || flow->dest->ops == NULL) /* refused already */
        return;
    if (!flow->dest->ops->takes_parts) {
        reader_problem(r, list->line, list->column, "%s: destinations of type %s take no events", where,
                       flow->dest->ops->type);
        return;
    }
    struct record_draft *drafts = reader_alloc(r, list->count * sizeof(*drafts));
    for (const struct node *n = list->first; drafts != NULL && n != NULL && !r->failed; n = n->next) {
        const char *place = reader_printf(r, "%s[%zu]", where, count);
        if (place != NULL)
            read_rule(r, flow, &drafts[count++], n, place);
    }
    if (r->failed || r->problem_count != before)
        return;
    reach_check(r, drafts, count, list, where);
    find_parts(r, flow, drafts, count, list, where);
    if (!r->failed && r->problem_count == before)
        keep_rules(r, flow, drafts, count);
}

/* --- the rest of a flow --- */

void json_defaults(struct reader *r, struct flow_draft *draft, const struct node *node)
{
    if (node == NULL || node_get(node, "include") == NULL)
        options_set(r, config_flow_table, draft, "include", "[\"**/*.{json,jsonl,ndjson}{,.gz,.zst}\"]", "json");
    if (node == NULL || node_get(node, "table") == NULL)
        draft->flow.table = "{flow}";
    if (node == NULL || node_get(node, "load") == NULL)
        draft->flow.plan.mode = MODE_APPEND;
}

#define NOT_READ "files are taken as they are"

/* Options of one format in a flow of another. */
bool format_check(struct reader *r, const struct config_flow *flow, const struct node *node, const char *where)
{
    static const struct {
        const char *key, *hint;
    } csv_only[] = {{"csv", "it says how CSV is read"},
                    {"types", "each column of `records` has its type"},
                    {"key", "each rule of `records` has its own"},
                    {"order_by", "each rule of `records` has its own"},
                    {"require", "a column of `records` is required with `required: true`"},
                    {"row_number", "events have no rows to count"},
                    {"blob", "it is for `format: raw`"}},
      json_only[] = {{"records", "add `format: json`"},
                     {"max_event", "add `format: json`"},
                     {"blob", "it is for `format: raw`; tables are named by `table`"}},
      no_raw[] = {{"csv", NOT_READ},
                  {"records", NOT_READ},
                  {"max_event", NOT_READ},
                  {"types", NOT_READ},
                  {"key", NOT_READ},
                  {"order_by", NOT_READ},
                  {"require", NOT_READ},
                  {"row_number", NOT_READ},
                  {"bad_rows", NOT_READ},
                  {"on_schema_change", NOT_READ},
                  {"load", "a file is a blob"},
                  {"table", "expected `blob`"}};
    static const char *const formats[] = {"csv", "json", "raw"};
    bool is_json = flow->format == FORMAT_JSON, is_raw = flow->format == FORMAT_RAW;
    size_t count = is_json  ? sizeof csv_only / sizeof csv_only[0]
                   : is_raw ? sizeof no_raw / sizeof no_raw[0]
                            : sizeof json_only / sizeof json_only[0];

    if (node == NULL)
        return true;
    for (size_t i = 0; i < count; i++) {
        const char *key = is_json ? csv_only[i].key : is_raw ? no_raw[i].key : json_only[i].key;
        const struct node *n = node_get(node, key);
        if (n == NULL)
            continue;
        reader_problem(r, n->key_line, n->key_column, "%s: '%s' is not for format: %s: %s", where, key,
                       formats[flow->format],
                       is_json  ? csv_only[i].hint
                       : is_raw ? no_raw[i].hint
                                : json_only[i].hint);
        return false;
    }
    if (is_json && node_get(node, "records") == NULL) {
        const struct node *n = or_parent(node, "format");
        reader_problem(r, n->line, n->column,
                       "%s: format: json needs `records`, which say what table an event goes to; `chute init events` "
                       "writes an example",
                       where);
        return false;
    }
    return true;
}

/* --- what a change of the rules means --- */

uint64_t records_hash(uint64_t hash, const struct config_flow *flow)
{
    for (size_t i = 0; i < flow->events.rule_count; i++) {
        const struct event_rule *rule = &flow->events.rules[i];
        const struct load_part *part = &flow->parts[rule->part];
        struct record_draft draft = {.rule = *rule, .table = part->table, .plan = *part->plan};
        hash = options_hash(hash, config_record_table, &draft, NULL);
        for (size_t k = 0; k < rule->when_count; k++) {
            const struct option when_table[] = {
                {.name = rule->whens[k].from, .type = OPT_STRINGS, .offset = offsetof(struct event_when, values)},
                {.name = NULL}};
            hash = options_hash(hash, when_table, &rule->whens[k], NULL);
        }
        for (size_t k = 0; k < rule->column_count; k++) {
            const struct option name_table[] = {
                {.name = "name", .type = OPT_STRING, .offset = offsetof(struct event_column, name)}, {.name = NULL}};
            hash = options_hash(hash, name_table, &rule->columns[k], NULL);
            hash = options_hash(hash, config_record_column_table, &rule->columns[k], NULL);
        }
    }
    return hash;
}
