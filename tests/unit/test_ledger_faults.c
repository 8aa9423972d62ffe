/* test_ledger_faults.c -- the n-th allocation fails, ours and SQLite's: no crash, no leak, nothing half stored. */
#include "ledger_test.h"

#include "alloc_fault.h"

static bool is_done;
static enum err_code done_code;

static enum err_code everything(struct ledger_tx *tx, void *arg, struct err *err)
{
    struct fixture *f = arg;
    struct ledger_row row = test_row("a.csv", "w");
    struct ledger_row other = test_row("d/b.csv", "w");
    struct ledger_row **rows;
    struct ledger_row *back;
    struct ledger_counter *counters;
    struct ledger_receipt receipt = {
        .source = "dir", .path = "a.csv", .flow = "w", .dest = "db", .state = STATE_LOADED};
    const char *text;
    size_t count;
    uint64_t n;
    bool found;
    if (ledger_put(tx, &row, err) != ERR_NONE || ledger_put(tx, &other, err) != ERR_NONE ||
        ledger_get(tx, "dir", "a.csv", "w", &f->arena, &back, err) != ERR_NONE ||
        ledger_claim(tx, "db", 1, 10, 0, (const char *const[]){NULL}, NULL, &f->arena, &rows, &count, err) !=
            ERR_NONE ||
        ledger_version_put(tx, row.id, row.hash, 1, 1, err) != ERR_NONE ||
        ledger_version_find(tx, row.id, row.hash, &found, err) != ERR_NONE ||
        ledger_header_put(tx, "db", "t", "[]", err) != ERR_NONE ||
        ledger_header_get(tx, "db", "t", &f->arena, &text, err) != ERR_NONE ||
        ledger_receipt_put(tx, &receipt, err) != ERR_NONE ||
        ledger_rename(tx, "dir", "d", "e", true, err) != ERR_NONE ||
        ledger_count(tx, &(struct ledger_query){.below = "e"}, &n, err) != ERR_NONE ||
        ledger_requeue_loading(tx, &n, err) != ERR_NONE || ledger_prune(tx, 1, &n, err) != ERR_NONE ||
        ledger_delete(tx, other.id, err) != ERR_NONE ||
        ledger_counters(tx, &f->arena, &counters, &count, err) != ERR_NONE)
        return err->code;
    assert_int_equal(count, 1);
    assert_int_equal(counters[0].files[STATE_QUEUED], 1);
    return ERR_NONE;
}

static void on_done(void *arg, const struct err *err)
{
    (void)arg;
    assert_false(is_done);
    is_done = true;
    done_code = err != NULL ? err->code : ERR_NONE;
}

/* Open, do everything, close. True: nothing failed. */
static bool live(struct fixture *f)
{
    uv_loop_t loop;
    struct ledger *l;
    struct ledger_opened opened;
    bool closed = false;
    bool ok = false;
    is_done = false;
    arena_done(&f->arena);
    arena_init(&f->arena);
    assert_int_equal(uv_loop_init(&loop), 0);
    if (ledger_open(&loop, &(struct ledger_options){.path = f->path}, &l, &opened, &f->err) == ERR_NONE) {
        if (opened.was_recovered)
            fail_msg("%s", opened.message);
        if (ledger_run(l, everything, on_done, f, &f->err) == ERR_NONE) {
            uv_run(&loop, UV_RUN_DEFAULT);
            assert_true(is_done);
            ok = done_code == ERR_NONE;
        } else {
            assert_false(is_done);
        }
        ledger_close(l, on_closed, &closed);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_true(closed);
    } else {
        assert_string_not_equal(f->err.text, "");
    }
    assert_int_equal(uv_loop_close(&loop), 0);
    return ok;
}

static void nothing_breaks_when_an_allocation_of_ours_fails(void **state)
{
    struct fixture *f = *state;
    int runs = 0;
    ALLOC_FAULT_SWEEP
    {
        bool ok = live(f);
        assert_true(ok || alloc_fault_hit());
        runs++;
    }
    assert_true(runs > 20);
    assert_true(live(f));
}

/* ---- SQLite's own ---- */

static sqlite3_mem_methods real_memory;
static _Atomic long sqlite_left;
static _Atomic bool sqlite_hit;

static bool sqlite_fails_now(void)
{
    if (sqlite_left <= 0 || atomic_fetch_sub(&sqlite_left, 1) != 1)
        return false;
    sqlite_hit = true;
    return true;
}
static void *faulty_malloc(int n)
{
    return sqlite_fails_now() ? NULL : real_memory.xMalloc(n);
}
static void *faulty_realloc(void *p, int n)
{
    return sqlite_fails_now() ? NULL : real_memory.xRealloc(p, n);
}

static void nothing_breaks_when_an_allocation_of_sqlite_fails(void **state)
{
    struct fixture *f = *state;
    long nth = 1;
    int failed = 0;
    do {
        sqlite_hit = false;
        sqlite_left = nth;
        bool ok = live(f);
        sqlite_left = 0;
        failed += !ok;
        /* SQLite does without some of them (caches), so a hit need not be a failure; a failure needs a hit. */
        assert_true(ok || sqlite_hit);
        nth += 1 + nth / 60;
    } while (sqlite_hit);
    assert_true(failed > 20);
    assert_true(live(f));
}

static int set_up_alone(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    make_folder(f);
    arena_init(&f->arena);
    *state = f;
    return 0;
}

static int tear_down_alone(void **state)
{
    struct fixture *f = *state;
    arena_done(&f->arena);
    remove_folder(f->folder);
    free(f);
    return 0;
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up_alone, tear_down_alone)
    const struct CMUnitTest tests[] = {
        T(nothing_breaks_when_an_allocation_of_ours_fails),
        T(nothing_breaks_when_an_allocation_of_sqlite_fails),
    };
    sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real_memory);
    sqlite3_mem_methods faulty = real_memory;
    faulty.xMalloc = faulty_malloc;
    faulty.xRealloc = faulty_realloc;
    sqlite3_config(SQLITE_CONFIG_MALLOC, &faulty);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
