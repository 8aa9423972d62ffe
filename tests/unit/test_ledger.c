/* test_ledger.c -- rows, claims, receipts and counters, as the engine uses them. */
#include "ledger_test.h"

static void a_row_comes_back_as_it_was_put(void **state)
{
    struct fixture *f = *state;
    struct ledger_row row = test_row("a/b.csv", "orders");
    row.state = STATE_RETRYING;
    row.file = (struct file_id){UINT64_MAX, -5, 7, UINT64_MAX - 1, 3};
    row.loaded_file = (struct file_id){1, 2, 3, 4, 5};
    row.has_hash = true;
    memset(row.hash, 0xab, sizeof(row.hash));
    row.loaded_records = 12;
    row.was_loaded = row.finish_pending = row.taken_by_us = row.drop_pending = true;
    row.reason = "because";
    row.load_key = "key";
    row.tries = 3;
    row.failed_ms = 4;
    row.next_try_ms = 5;
    row.since_ms = 6;
    row.seen_ms = 7;
    row.definition = UINT64_MAX;
    put(f, &row);
    struct ledger_row *back = get(f, "a/b.csv", "orders");
    assert_non_null(back);
    assert_int_equal(back->id, row.id);
    assert_string_equal(back->source, "dir");
    assert_string_equal(back->path, "a/b.csv");
    assert_string_equal(back->flow, "orders");
    assert_string_equal(back->dest, "db");
    assert_string_equal(back->table, row.table);
    assert_string_equal(back->table_key, row.table_key);
    assert_int_equal(back->state, STATE_RETRYING);
    assert_true(file_id_same(&back->file, &row.file));
    assert_true(file_id_same(&back->loaded_file, &row.loaded_file));
    assert_true(back->has_hash);
    assert_memory_equal(back->hash, row.hash, sizeof(row.hash));
    assert_int_equal(back->loaded_records, 12);
    assert_true(back->was_loaded && back->finish_pending && back->taken_by_us && back->drop_pending);
    assert_string_equal(back->reason, "because");
    assert_string_equal(back->load_key, "key");
    assert_int_equal(back->tries, 3);
    assert_int_equal(back->failed_ms, 4);
    assert_int_equal(back->next_try_ms, 5);
    assert_int_equal(back->since_ms, 6);
    assert_int_equal(back->seen_ms, 7);
    assert_true(back->definition == UINT64_MAX);
}

static void a_put_of_a_known_name_replaces_the_row(void **state)
{
    struct fixture *f = *state;
    struct ledger_row one = test_row("x.csv", "w");
    struct ledger_row two = test_row("x.csv", "w");
    put(f, &one);
    assert_int_equal(ledger_version_put(f->tx, one.id, one.hash, 1, 1, &f->err), ERR_NONE);
    two.state = STATE_LOADED;
    put(f, &two);
    assert_int_not_equal(one.id, two.id);
    assert_int_equal(count_of(f, &(struct ledger_query){0}), 1);
    bool found = true;
    assert_int_equal(ledger_version_find(f->tx, one.id, one.hash, &found, &f->err), ERR_NONE);
    assert_false(found);
    struct ledger_row third = test_row("y.csv", "w");
    put(f, &third);
    third.path = "x.csv"; /* an update onto a taken name */
    put(f, &third);
    assert_int_equal(get(f, "x.csv", "w")->id, third.id);
    assert_int_equal(count_of(f, &(struct ledger_query){0}), 1);
    check_tally(f);
}

static void paths_of_any_bytes_come_back(void **state)
{
    struct fixture *f = *state;
    struct ledger_row row = test_row("\xff\xfe/\x01'\"%\xc3.csv", "w");
    put(f, &row);
    assert_non_null(get(f, row.path, "w"));
    assert_string_equal(get(f, row.path, "w")->path, row.path);
}

static bool note_path(void *arg, const struct ledger_row *row)
{
    struct buf *b = arg;
    buf_adds(b, row->path);
    buf_addc(b, ' ');
    return true;
}

static void each(struct fixture *f, const struct ledger_query *q, const char *expected)
{
    struct buf b;
    buf_init(&b);
    assert_int_equal(ledger_each(f->tx, q, note_path, &b, &f->err), ERR_NONE);
    assert_string_equal(b.data, expected);
    if (!q->by_age || q->limit == 0) {
        uint64_t n = 0;
        for (const char *c = b.data; *c != '\0'; c++)
            n += *c == ' ';
        assert_int_equal(count_of(f, q), n);
    }
    buf_done(&b);
}

static void queries_restrict_by_every_member(void **state)
{
    struct fixture *f = *state;
    static const char *const paths[] = {"b/2", "a/1", "a/3", "a.x", "a0", "c"};
    for (size_t i = 0; i < 6; i++) {
        struct ledger_row row = test_row(paths[i], i % 2 ? "odd" : "even");
        row.file.mtime_ns = 100 - (int64_t)i;
        row.file.inode = 1000 + i;
        row.file.dev = 9;
        row.state = i < 2 ? STATE_QUEUED : i < 4 ? STATE_LOADED : i == 4 ? STATE_QUARANTINED : STATE_GONE;
        row.drop_pending = i == 5;
        row.finish_pending = i == 3;
        row.next_try_ms = (int64_t)i * 10;
        put(f, &row);
    }
    each(f, &(struct ledger_query){0}, "b/2 a/1 a/3 a.x a0 c ");
    each(f, &(struct ledger_query){.source = "dir", .below = "a"}, "a/1 a/3 ");
    each(f, &(struct ledger_query){.below = "a"}, "a/1 a/3 ");
    each(f, &(struct ledger_query){.source = "dir", .below = "a", .limit = 1}, "a/1 ");
    each(f, &(struct ledger_query){.flow = "odd"}, "a/1 a.x c ");
    each(f, &(struct ledger_query){.path = "a0"}, "a0 ");
    each(f, &(struct ledger_query){.source = "dir", .path = "a0"}, "a0 ");
    each(f, &(struct ledger_query){.source = "elsewhere", .path = "a0"}, "");
    each(f, &(struct ledger_query){.dest = "db", .table_key = "t_a/1"}, "a/1 ");
    each(f, &(struct ledger_query){.source = "dir", .inode = 1002, .dev = 9}, "a/3 ");
    each(f, &(struct ledger_query){.source = "dir", .inode = 1002, .dev = 8}, "");
    each(f, &(struct ledger_query){.states = STATE_BIT(STATE_LOADED) | STATE_BIT(STATE_GONE)}, "a/3 a.x c ");
    each(f, &(struct ledger_query){.states = STATE_BIT(STATE_QUARANTINED)}, "a0 ");
    each(f, &(struct ledger_query){.states = STATE_BIT(STATE_LOADING)}, "");
    each(f, &(struct ledger_query){.drop_pending = true}, "c ");
    each(f, &(struct ledger_query){.finish_pending = true}, "a.x ");
    each(f, &(struct ledger_query){.due_by_ms = 20}, "b/2 a/1 a/3 ");
    each(f, &(struct ledger_query){.by_age = true}, "c a0 a.x a/3 a/1 b/2 ");
    each(f, &(struct ledger_query){.by_age = true, .limit = 2}, "c a0 ");
    each(f, &(struct ledger_query){.after_id = get(f, "a/3", "even")->id}, "a.x a0 c ");
}

static bool requeue_it(void *arg, const struct ledger_row *row)
{
    struct fixture *f = arg;
    struct ledger_row copy = *row;
    copy.state = STATE_QUEUED;
    copy.file.mtime_ns += 1000000;
    f->seen++;
    return ledger_put(f->tx, &copy, &f->err) == ERR_NONE;
}

static void a_callback_may_write_what_it_walks_over(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 1000; i++) {
        char path[32];
        snprintf(path, sizeof(path), "d/%04d.csv", i);
        struct ledger_row row = test_row(path, "w");
        row.state = STATE_QUARANTINED;
        put(f, &row);
    }
    const struct ledger_query queries[] = {
        {.states = STATE_BIT(STATE_QUARANTINED)}, {.by_age = false}, {.source = "dir", .below = "d"}};
    for (size_t i = 0; i < 3; i++) {
        f->seen = 0;
        assert_int_equal(ledger_each(f->tx, &queries[i], requeue_it, f, &f->err), ERR_NONE);
        assert_int_equal(f->seen, 1000);
    }
    check_tally(f);
}

static void a_rename_carries_rows_and_versions_along(void **state)
{
    struct fixture *f = *state;
    bool found;
    uint8_t hash[16] = {7};
    struct ledger_row a = test_row("a.csv", "w");
    struct ledger_row a2 = test_row("a.csv", "v");
    struct ledger_row b = test_row("b.csv", "w");
    put(f, &a);
    put(f, &a2);
    put(f, &b);
    assert_int_equal(ledger_version_put(f->tx, a.id, hash, 5, 1, &f->err), ERR_NONE);
    assert_int_equal(ledger_rename(f->tx, "dir", "a.csv", "b.csv", false, &f->err), ERR_NONE);
    assert_null(get(f, "a.csv", "w"));
    assert_int_equal(get(f, "b.csv", "w")->id, a.id);
    assert_int_equal(get(f, "b.csv", "v")->id, a2.id);
    assert_int_equal(ledger_version_find(f->tx, a.id, hash, &found, &f->err), ERR_NONE);
    assert_true(found);
    assert_int_equal(ledger_version_sized(f->tx, a.id, 5, &found, &f->err), ERR_NONE);
    assert_true(found);
    assert_int_equal(ledger_version_sized(f->tx, a.id, 6, &found, &f->err), ERR_NONE);
    assert_false(found);
    check_tally(f);
}

static void a_folder_rename_moves_all_below_and_nothing_beside(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 300; i++) {
        char path[32];
        snprintf(path, sizeof(path), "old/%03d/x", i);
        struct ledger_row row = test_row(path, "w");
        put(f, &row);
    }
    struct ledger_row beside = test_row("old.csv", "w");
    struct ledger_row beside2 = test_row("older/1", "w");
    struct ledger_row there = test_row("new/005/x", "w");
    put(f, &beside);
    put(f, &beside2);
    put(f, &there);
    assert_int_equal(ledger_rename(f->tx, "dir", "old", "new", true, &f->err), ERR_NONE);
    assert_int_equal(count_of(f, &(struct ledger_query){.below = "old"}), 0);
    assert_int_equal(count_of(f, &(struct ledger_query){.below = "new"}), 300);
    assert_int_not_equal(get(f, "new/005/x", "w")->id, there.id);
    assert_non_null(get(f, "old.csv", "w"));
    assert_non_null(get(f, "older/1", "w"));
    assert_int_not_equal(ledger_rename(f->tx, "dir", "new", "new/in", true, &f->err), ERR_NONE);
    check_tally(f);
}

static size_t claim(struct fixture *f, int64_t now, size_t limit, uint64_t bytes, bool one, const char *const *skip)
{
    arena_done(&f->arena);
    arena_init(&f->arena);
    static const char *const busy[] = {"busy", NULL};
    assert_int_equal(
        ledger_claim(f->tx, "db", now, limit, bytes, one ? busy : NULL, skip, &f->arena, &f->rows, &f->count, &f->err),
        ERR_NONE);
    return f->count;
}

static void add(struct fixture *f, const char *path, const char *flow, const char *table, enum file_state s,
                int64_t mtime, int64_t next)
{
    struct ledger_row row = test_row(path, flow);
    row.table = row.table_key = table;
    row.state = s;
    row.file.mtime_ns = mtime;
    row.file.size = 10;
    row.next_try_ms = next;
    put(f, &row);
}

static void a_claim_takes_the_oldest_due_rows(void **state)
{
    struct fixture *f = *state;
    add(f, "new", "w", "t", STATE_QUEUED, 30, 0);
    add(f, "old", "v", "t", STATE_QUEUED, 10, 0);
    add(f, "b", "w", "t", STATE_RETRYING, 20, 50);
    add(f, "a", "w", "t", STATE_QUEUED, 20, 0);
    add(f, "later", "w", "t", STATE_RETRYING, 1, 101);
    add(f, "settle", "w", "t", STATE_SETTLING, 1, 0);
    add(f, "settled", "w", "t", STATE_SETTLING, 40, 100);
    add(f, "loaded", "w", "t", STATE_LOADED, 1, 0);
    int64_t due;
    assert_int_equal(ledger_next_due(f->tx, "db", NULL, &due, &f->err), ERR_NONE);
    assert_int_equal(due, 0);
    assert_int_equal(claim(f, 100, 3, 0, false, NULL), 3);
    assert_string_equal(f->rows[0]->path, "old");
    assert_string_equal(f->rows[1]->path, "a");
    assert_string_equal(f->rows[2]->path, "b");
    assert_int_equal(f->rows[0]->state, STATE_LOADING);
    assert_int_equal(get(f, "old", "v")->state, STATE_LOADING);
    assert_int_equal(claim(f, 100, 9, 0, false, (const char *const[]){"w", NULL}), 0);
    assert_int_equal(claim(f, 100, 9, 0, false, NULL), 2);
    assert_string_equal(f->rows[1]->path, "settled");
    assert_int_equal(ledger_next_due(f->tx, "db", NULL, &due, &f->err), ERR_NONE);
    assert_int_equal(due, 101);
    assert_int_equal(ledger_next_due(f->tx, "db", (const char *const[]){"w", NULL}, &due, &f->err), ERR_NONE);
    assert_true(due == INT64_MAX);
    uint64_t n;
    assert_int_equal(ledger_requeue_loading(f->tx, &n, &f->err), ERR_NONE);
    assert_int_equal(n, 5);
    assert_int_equal(claim(f, 100, 9, 25, false, NULL), 2); /* 10 bytes each */
    assert_int_equal(claim(f, 100, 9, 1, false, NULL), 1);
    check_tally(f);
}

static void a_claim_takes_one_file_per_table(void **state)
{
    struct fixture *f = *state;
    add(f, "1", "w", "a", STATE_QUEUED, 1, 0);
    add(f, "2", "v", "a", STATE_QUEUED, 0, 0);
    add(f, "3", "w", "b", STATE_QUEUED, 3, 0);
    add(f, "4", "w", "b", STATE_RETRYING, 2, 5);
    add(f, "5", "w", "", STATE_QUEUED, 9, 0);
    add(f, "6", "w", "", STATE_QUEUED, 9, 0);
    add(f, "7", "w", "busy", STATE_QUEUED, 0, 0);
    assert_int_equal(claim(f, 10, 9, 0, true, NULL), 4);
    assert_string_equal(f->rows[0]->path, "2");
    assert_string_equal(f->rows[1]->path, "4");
    assert_string_equal(f->rows[2]->path, "5");
    assert_string_equal(f->rows[3]->path, "6");
    assert_int_equal(claim(f, 10, 9, 0, true, NULL), 0);
    struct ledger_row done = *get(f, "2", "v");
    done.state = STATE_LOADED;
    put(f, &done);
    assert_int_equal(claim(f, 10, 9, 0, true, NULL), 1);
    assert_string_equal(f->rows[0]->path, "1");
    assert_int_equal(claim(f, 10, 9, 0, false, NULL), 2);
    assert_string_equal(f->rows[0]->path, "7");
    check_tally(f);
}

static void small_facts_and_headers_are_kept_and_forgotten(void **state)
{
    struct fixture *f = *state;
    const char *text;
    assert_int_equal(ledger_meta_get(f->tx, "k", &f->arena, &text, &f->err), ERR_NONE);
    assert_null(text);
    assert_int_equal(ledger_meta_put(f->tx, "k", "v1", &f->err), ERR_NONE);
    assert_int_equal(ledger_meta_put(f->tx, "k", "v2", &f->err), ERR_NONE);
    assert_int_equal(ledger_meta_get(f->tx, "k", &f->arena, &text, &f->err), ERR_NONE);
    assert_string_equal(text, "v2");
    assert_int_equal(ledger_meta_put(f->tx, "k", NULL, &f->err), ERR_NONE);
    assert_int_equal(ledger_meta_get(f->tx, "k", &f->arena, &text, &f->err), ERR_NONE);
    assert_null(text);
    assert_int_equal(ledger_header_put(f->tx, "db", "t", "[\"a\"]", &f->err), ERR_NONE);
    assert_int_equal(ledger_header_get(f->tx, "db", "t", &f->arena, &text, &f->err), ERR_NONE);
    assert_string_equal(text, "[\"a\"]");
    assert_int_equal(ledger_header_get(f->tx, "db2", "t", &f->arena, &text, &f->err), ERR_NONE);
    assert_null(text);
    assert_int_equal(ledger_header_put(f->tx, "db", "t", NULL, &f->err), ERR_NONE);
    assert_int_equal(ledger_header_get(f->tx, "db", "t", &f->arena, &text, &f->err), ERR_NONE);
    assert_null(text);
}

static bool note_receipt(void *arg, const struct ledger_receipt *r)
{
    struct buf *b = arg;
    buf_printf(b, "%s@%d ", r->path, (int)r->at_ms);
    return true;
}

static void receipts(struct fixture *f, const struct ledger_receipt_query *q, const char *expected)
{
    struct buf b;
    buf_init(&b);
    assert_int_equal(ledger_receipts_each(f->tx, q, note_receipt, &b, &f->err), ERR_NONE);
    if (expected != NULL)
        assert_string_equal(b.data, expected);
    buf_done(&b);
}

static void receipts_are_listed_and_pruned(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 200; i++) {
        struct ledger_receipt r = {.at_ms = 1000 + i / 2,
                                   .source = "dir",
                                   .path = i % 2 ? "odd" : "even",
                                   .flow = "w",
                                   .dest = "db",
                                   .table = "t",
                                   .state = i % 10 ? STATE_LOADED : STATE_QUARANTINED,
                                   .reason = "",
                                   .receipt = {.parsed = 4, .dest_id = "id", .dialect = "comma"}};
        assert_int_equal(ledger_receipt_put(f->tx, &r, &f->err), ERR_NONE);
    }
    receipts(f, &(struct ledger_receipt_query){.limit = 3}, "even@1000 odd@1000 even@1001 ");
    receipts(f, &(struct ledger_receipt_query){.limit = 3, .newest_first = true}, "odd@1099 even@1099 odd@1098 ");
    receipts(f, &(struct ledger_receipt_query){.path = "odd", .since_ms = 1098}, "odd@1098 odd@1099 ");
    receipts(f, &(struct ledger_receipt_query){.states = STATE_BIT(STATE_QUARANTINED), .since_ms = 1090},
             "even@1090 even@1095 ");
    receipts(f, &(struct ledger_receipt_query){.flow = "none"}, "");
    receipts(
        f,
        &(struct ledger_receipt_query){.source = "dir", .flow = "w", .path = "even", .limit = 1, .newest_first = true},
        "even@1099 ");
    struct ledger_row gone = test_row("gone", "w");
    gone.state = STATE_GONE;
    gone.since_ms = 5;
    put(f, &gone);
    struct ledger_row pending = test_row("pending", "w");
    pending.state = STATE_GONE;
    pending.drop_pending = true;
    pending.since_ms = 5;
    put(f, &pending);
    uint64_t n;
    assert_int_equal(ledger_prune(f->tx, 1098, &n, &f->err), ERR_NONE);
    assert_int_equal(n, 197);
    receipts(f, &(struct ledger_receipt_query){.limit = 0}, "even@1098 odd@1098 even@1099 odd@1099 ");
    assert_null(get(f, "gone", "w"));
    assert_non_null(get(f, "pending", "w"));
    check_tally(f);
}

static void counters_tell_files_by_flow_and_state(void **state)
{
    struct fixture *f = *state;
    add(f, "1", "w", "a", STATE_QUEUED, 1, 0);
    add(f, "2", "w", "a", STATE_LOADED, 1, 0);
    add(f, "3", "v", "a", STATE_LOADED, 1, 0);
    struct ledger_row old = test_row("4", "w");
    old.state = STATE_LOADING;
    old.seen_ms = 3;
    put(f, &old);
    struct ledger_counter *c;
    size_t n;
    assert_int_equal(ledger_counters(f->tx, &f->arena, &c, &n, &f->err), ERR_NONE);
    assert_int_equal(n, 2);
    assert_string_equal(c[0].flow, "w");
    assert_int_equal(c[0].files[STATE_QUEUED], 1);
    assert_int_equal(c[0].files[STATE_LOADED], 1);
    assert_int_equal(c[0].files[STATE_LOADING], 1);
    assert_int_equal(c[0].oldest_pending_ms, 3);
    assert_int_equal(c[1].oldest_pending_ms, 0);
    assert_int_equal(
        count_of(f, &(struct ledger_query){.flow = "w", .states = STATE_BIT(STATE_QUEUED) | STATE_BIT(STATE_LOADED)}),
        2);
    assert_int_equal(count_of(f, &(struct ledger_query){.flow = "nobody"}), 0);
}

static void a_clock_that_was_set_back_makes_no_wait_longer(void **state)
{
    struct fixture *f = *state;
    int64_t due;
    add(f, "a", "w", "t", STATE_RETRYING, 1, 90000000);
    add(f, "b", "w", "t", STATE_RETRYING, 2, 1500);
    add(f, "c", "w", "t", STATE_LOADED, 3, 90000000);
    assert_int_equal(ledger_clamp_due(f->tx, "db", 2000, &f->err), ERR_NONE);
    assert_int_equal(ledger_next_due(f->tx, "db", NULL, &due, &f->err), ERR_NONE);
    assert_int_equal(due, 1500);
    assert_int_equal(claim(f, 2000, 10, 0, false, NULL), 2);
    assert_int_equal(get(f, "c", "w")->next_try_ms, 90000000);
    assert_int_equal(ledger_clamp_due(f->tx, "nobody", 2000, &f->err), ERR_NONE);
}

static void the_folder_may_be_a_link_but_not_the_ledger_itself(void **state)
{
    struct fixture *f = *state;
    char link[128], path[160];
    struct ledger_tx *tx;
    snprintf(link, sizeof(link), "%s-link", f->folder);
    assert_int_equal(symlink(f->folder, link), 0);
    snprintf(path, sizeof(path), "%s/ledger.db", link);
    assert_int_equal(ledger_tx_close(f->tx, false, &f->err), ERR_NONE);
    f->tx = NULL;
    for (int read_only = 0; read_only <= 1; read_only++) {
        assert_int_equal(ledger_tx_open(path, read_only, &tx, &f->err), ERR_NONE);
        assert_int_equal(ledger_tx_close(tx, false, &f->err), ERR_NONE);
    }
    unlink(link);
    snprintf(path, sizeof(path), "%s/other.db", f->folder);
    assert_int_equal(symlink(f->path, path), 0);
    for (int read_only = 0; read_only <= 1; read_only++)
        assert_int_not_equal(ledger_tx_open(path, read_only, &tx, &f->err), ERR_NONE);
    assert_int_equal(ledger_tx_open(f->path, false, &f->tx, &f->err), ERR_NONE);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_row_comes_back_as_it_was_put),
        T(a_put_of_a_known_name_replaces_the_row),
        T(paths_of_any_bytes_come_back),
        T(queries_restrict_by_every_member),
        T(a_callback_may_write_what_it_walks_over),
        T(a_rename_carries_rows_and_versions_along),
        T(a_folder_rename_moves_all_below_and_nothing_beside),
        T(a_claim_takes_the_oldest_due_rows),
        T(a_claim_takes_one_file_per_table),
        T(small_facts_and_headers_are_kept_and_forgotten),
        T(receipts_are_listed_and_pruned),
        T(counters_tell_files_by_flow_and_state),
        T(a_clock_that_was_set_back_makes_no_wait_longer),
        T(the_folder_may_be_a_link_but_not_the_ledger_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
