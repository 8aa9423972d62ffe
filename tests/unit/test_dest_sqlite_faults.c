/* test_dest_sqlite_faults.c -- locks, readers, kills, full disks, no memory, and being stopped: old or new, once, or an
 * error that says so. */
#include "lite_test.h"

#include "alloc_fault.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

/* "a,b" and COUNT records "VERSION,i". */
static char *version_text(int version, size_t count)
{
    struct buf b;
    buf_init(&b);
    buf_adds(&b, "a,b\n");
    for (size_t i = 0; i < count; i++)
        buf_printf(&b, "%d,%zu\n", version, i);
    return buf_take(&b);
}

static uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

static void a_locked_database_is_waited_for_and_then_retryable(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    ask(f, "BEGIN IMMEDIATE");
    for (size_t head = 0; head < 2; head++) {
        uint64_t began = now_ms();
        struct test_load *l = run_load(f, make_load(f, "t", "t.csv", "a\n2\n", head));
        assert_int_equal(l->base.err.code, ERR_REMOTE);
        assert_true(l->base.err.retryable);
        assert_says(l->base.err.text, "lock");
        assert_true(now_ms() - began >= 280);
        free_load(l);
    }
    ask(f, "COMMIT");
    assert_loads(f, "t", "t.csv", "a\n2\n", 0);
}

static void a_rollback_journal_is_kept_and_works(void **state)
{
    struct fixture *f = *state;
    ask(f, "CREATE TABLE theirs(x)");
    char *text = version_text(1, 2000);
    assert_loads(f, "t", "t.csv", text, 1);
    assert_loads(f, "u", "u.csv", text, 0);
    free(text);
    assert_string_equal(ask(f, "PRAGMA journal_mode"), "delete");
    assert_string_equal(ask(f, "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)"), "2000|2000");
}

/* Another program that reads or writes all the time. */
struct other {
    pthread_t thread;
    const char *db;
    _Atomic bool stop;
    _Atomic uint64_t times;
    char problem[256];
};

static void *read_on(void *arg)
{
    struct other *o = arg;
    sqlite3 *db;
    sqlite3_stmt *stmt;
    sqlite3_open(o->db, &db);
    sqlite3_busy_timeout(db, 5000);
    while (!o->stop && o->problem[0] == '\0') {
        if (sqlite3_prepare_v2(db, "SELECT count(*), min(a), max(a), count(DISTINCT b) FROM t", -1, &stmt, NULL) !=
                SQLITE_OK ||
            sqlite3_step(stmt) != SQLITE_ROW)
            snprintf(o->problem, sizeof(o->problem), "%s", sqlite3_errmsg(db));
        else if (sqlite3_column_int(stmt, 0) != 300 || sqlite3_column_int(stmt, 3) != 300 ||
                 sqlite3_column_int(stmt, 1) != sqlite3_column_int(stmt, 2))
            snprintf(o->problem, sizeof(o->problem), "%d rows of versions %d to %d", sqlite3_column_int(stmt, 0),
                     sqlite3_column_int(stmt, 1), sqlite3_column_int(stmt, 2));
        sqlite3_finalize(stmt);
        o->times++;
    }
    sqlite3_close(db);
    return NULL;
}

static void a_reader_sees_old_or_new_during_a_hundred_replaces(void **state)
{
    struct fixture *f = *state;
    char *text = version_text(0, 300);
    assert_loads(f, "t", "t.csv", text, 0);
    free(text);
    struct other reader = {.db = f->db};
    pthread_create(&reader.thread, NULL, read_on, &reader);
    for (int i = 1; i <= 100 || (reader.times <= 20 && i < 10000); i++) { /* a slow reader gets more to see */
        text = version_text(i, 300);
        assert_loads(f, "t", "t.csv", text, (size_t)i % 2);
        free(text);
    }
    reader.stop = true;
    pthread_join(reader.thread, NULL);
    assert_string_equal(reader.problem, "");
    assert_true(reader.times > 20);
}

#define LARGE_ROWS 400000

/* How many rows of a load that is under way are committed already, in a table that nobody reads yet; 0: none. */
static int rows_under_way(sqlite3 *db)
{
    sqlite3_stmt *stmt = NULL;
    int rows = 0;
    char *sql = NULL;
    if (sqlite3_prepare_v2(db, "SELECT name FROM _chute_work", -1, &stmt, NULL) == SQLITE_OK &&
        sqlite3_step(stmt) == SQLITE_ROW)
        sql = sqlite3_mprintf("SELECT count(*) FROM \"%w\"", sqlite3_column_text(stmt, 0));
    sqlite3_finalize(stmt);
    if (sql != NULL && sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK) {
        if (sqlite3_step(stmt) == SQLITE_ROW)
            rows = sqlite3_column_int(stmt, 0);
        sqlite3_finalize(stmt);
    }
    sqlite3_free(sql);
    return rows;
}

/* Writes, and counts how often it could while a load had some of its rows in, but not all. */
static void *write_on(void *arg)
{
    struct other *o = arg;
    sqlite3 *db;
    sqlite3_open(o->db, &db);
    while (!o->stop) {
        bool is_ours = sqlite3_exec(db, "BEGIN IMMEDIATE; INSERT INTO theirs VALUES(1)", NULL, NULL, NULL) == SQLITE_OK;
        int rows = is_ours ? rows_under_way(db) : 0;
        if (is_ours && sqlite3_exec(db, "COMMIT", NULL, NULL, NULL) == SQLITE_OK)
            o->times += rows > 0 && rows < LARGE_ROWS;
        else
            sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
        usleep(is_ours ? 20000 : 1000);
    }
    sqlite3_close(db);
    return NULL;
}

static void others_keep_writing_while_a_large_file_is_loaded(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(connect_dest(f), ERR_NONE);
    ask(f, "CREATE TABLE theirs(x)");
    char *text = version_text(1, LARGE_ROWS), table[16], path[24];
    struct other writer = {.db = f->db};
    pthread_create(&writer.thread, NULL, write_on, &writer);
    /* New tables each time: dropping an old one takes turns as well. A busy machine may not let it in at once. */
    for (int i = 0; i == 0 || (writer.times == 0 && i < 20); i++) {
        snprintf(table, sizeof table, "t%d", i);
        snprintf(path, sizeof path, "%s.csv", table);
        assert_loads(f, table, path, text, 1);
    }
    writer.stop = true;
    pthread_join(writer.thread, NULL);
    free(text);
    print_message("another program wrote %d times between rows\n", (int)writer.times);
    assert_true(writer.times > 0);
}

/* The child: loads with KEY until it is killed. */
static void child_load(struct fixture *parent, const char *text, const char *key, size_t head)
{
    struct fixture *f = calloc(1, sizeof(*f));
    memcpy(f->db, parent->db, sizeof(f->db));
    f->plan = parent->plan;
    uv_loop_init(&f->loop);
    open_dest(f);
    struct test_load *l = make_load(f, "t", "t.csv", text, head);
    snprintf(l->key, sizeof(l->key), "%s", key);
    begin_load(f, l);
    run_until(f, &l->is_done);
    _exit(l->base.err.code == ERR_NONE ? 0 : 1);
}

static void a_killed_load_begun_again_is_there_exactly_once(void **state)
{
    struct fixture *f = *state;
    char *text = version_text(1, 3000);
    char key[32];
    int committed = 0, killed = 0;
    f->plan.mode = MODE_APPEND;
    f->plan.on_duplicate = DUPLICATE_RELOAD; /* only the key can tell */
    close_dest(f);
    srand(11);
    for (int i = 0; i < 50; i++) {
        int status;
        snprintf(key, sizeof(key), "attempt %d", i);
        pid_t pid = fork();
        if (pid == 0)
            child_load(f, text, key, (size_t)i % 2);
        usleep((useconds_t)(1500 + rand() % 7000));
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        killed += WIFSIGNALED(status);
        open_dest(f);
        assert_int_equal(connect_dest(f), ERR_NONE);
        struct test_load *l = make_load(f, "t", "t.csv", text, (size_t)i % 2);
        snprintf(l->key, sizeof(l->key), "%s", key);
        run_load(f, l);
        if (l->base.err.code != ERR_NONE)
            fail_msg("%s", l->base.err.text);
        committed += l->base.receipt.is_duplicate;
        free_load(l);
        close_dest(f);
    }
    open_dest(f);
    print_message("%d of 50 were killed, %d had committed\n", killed, committed);
    free(text);
    assert_string_equal(ask(f, "SELECT count(*), count(DISTINCT b) FROM t"), "150000|3000");
    assert_string_equal(ask(f, "SELECT count(*) FROM _chute_loads"), "50");
    assert_string_equal(
        ask(f,
            "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%\\_stage\\_%' ESCAPE '\\' OR name LIKE '%\\_new\\_%'"
            " ESCAPE '\\'"),
        "0");
    assert_string_equal(ask(f, "PRAGMA integrity_check"), "ok");
}

static void a_full_disk_is_retryable_and_harms_nothing(void **state)
{
    struct fixture *f = *state;
    struct rlimit before, small;
    char *text = version_text(2, 40000);
    assert_loads(f, "t", "t.csv", "a,b\n1,1\n", 0);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    for (rlim_t kib = 40; kib < 900; kib = kib * 3 / 2) {
        for (size_t head = 0; head < 2; head++) {
            small = before;
            small.rlim_cur = kib * 1024;
            setrlimit(RLIMIT_FSIZE, &small);
            struct test_load *l = run_load(f, make_load(f, "t", "t.csv", text, head));
            setrlimit(RLIMIT_FSIZE, &before);
            if (l->base.err.code != ERR_NONE) {
                assert_int_equal(l->base.err.code, ERR_SYSTEM);
                assert_true(l->base.err.retryable);
                assert_string_equal(ask(f, "SELECT a FROM t"), "1");
            }
            free_load(l);
        }
    }
    signal(SIGXFSZ, SIG_DFL);
    assert_loads(f, "t", "t.csv", text, 1);
    free(text);
    assert_string_equal(ask(f, "SELECT count(*) FROM t"), "40000");
    assert_string_equal(ask(f, "SELECT count(*) FROM _chute_work"), "0");
    assert_string_equal(ask(f, "PRAGMA integrity_check"), "ok");
}

static void what_is_no_database_blocks_the_destination(void **state)
{
    struct fixture *f = *state;
    FILE *file = fopen(f->db, "w");
    for (int i = 0; i < 1000; i++)
        fputs("this is no database\n", file);
    fclose(file);
    assert_int_equal(connect_dest(f), ERR_DENIED);
    assert_false(f->connect_err.retryable);
    assert_int_equal(load_text(f, "t", "t.csv", "a\n1\n", 0), ERR_DENIED);
    assert_says(f->answer, "no SQLite database");
    unlink(f->db);
    assert_int_equal(connect_dest(f), ERR_NONE);
}

static void a_missing_folder_is_retried(void **state)
{
    struct fixture *f = *state;
    char away[128];
    snprintf(away, sizeof(away), "%s.away", f->folder);
    rename(f->folder, away);
    assert_int_equal(connect_dest(f), ERR_SYSTEM);
    assert_true(f->connect_err.retryable);
    rename(away, f->folder);
    assert_int_equal(connect_dest(f), ERR_NONE);
}

/* Stop the load at its n-th batch. */
static void stop_at(struct text_rows *rows)
{
    struct test_load *l = rows->arg;
    if (rows->fail_at == 0 && --rows->skip == 0)
        atomic_store(&l->base.stop, true);
}

static void a_load_stops_in_every_phase(void **state)
{
    struct fixture *f = *state;
    char *text = version_text(2, 2000);
    assert_loads(f, "t", "t.csv", "a,b\n1,1\n", 0);
    for (size_t head = 0; head < 2; head++)
        for (uint64_t n = 1; n < 22; n += 4) {
            struct test_load *l = make_load(f, "t", "t.csv", text, head);
            struct text_rows *rows = (struct text_rows *)l->base.rows;
            rows->arg = l;
            rows->skip = n;
            rows->on_batch = stop_at;
            run_load(f, l);
            assert_int_equal(l->base.err.code, ERR_STOPPED);
            free_load(l);
            assert_string_equal(ask(f, "SELECT a FROM t"), "1");
        }
    free(text);
    assert_loads(f, "t", "t.csv", "a,b\n3,1\n", 1);
    assert_string_equal(ask(f, "SELECT count(*) FROM _chute_work"), "0");
}

static void an_abort_is_answered_wherever_the_load_is(void **state)
{
    struct fixture *f = *state;
    char *text = version_text(2, 20000);
    for (int turns = 0; turns < 40; turns++) {
        struct test_load *first = make_load(f, "t", "t.csv", text, 1);
        struct test_load *second = make_load(f, "u", "u.csv", text, 0);
        begin_load(f, first);
        begin_load(f, second);
        for (int i = 0; i < turns; i++) {
            uv_run(&f->loop, UV_RUN_NOWAIT);
            usleep(500);
        }
        if (!first->is_done)
            dest_sqlite.abort(f->dest, &first->base);
        if (!second->is_done)
            dest_sqlite.abort(f->dest, &second->base);
        run_until(f, &first->is_done);
        run_until(f, &second->is_done);
        assert_true(first->base.err.code == ERR_STOPPED || first->base.err.code == ERR_NONE);
        assert_true(second->base.err.code == ERR_STOPPED || second->base.err.code == ERR_NONE);
        free_load(first);
        free_load(second);
    }
    free(text);
}

/* A wait for a lock ends when the load is aborted. */
static void an_abort_ends_the_wait_for_a_lock(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a\n1\n", 0);
    close_dest(f);
    struct err err;
    fill_options(f, 60000);
    assert_int_equal(dest_sqlite.open(f->options, &env, &f->loop, &f->dest, &err), ERR_NONE);
    ask(f, "BEGIN IMMEDIATE");
    struct test_load *l = make_load(f, "t", "t.csv", "a\n2\n", 0);
    begin_load(f, l);
    for (int i = 0; i < 50; i++) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        usleep(1000);
    }
    uint64_t began = now_ms();
    dest_sqlite.abort(f->dest, &l->base);
    run_until(f, &l->is_done);
    assert_true(now_ms() - began < 30000); /* half the lock_timeout it would wait for */
    assert_int_equal(l->base.err.code, ERR_STOPPED);
    free_load(l);
    ask(f, "COMMIT");
}

static void without_memory_a_load_fails_cleanly(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a,b\n1,x\n", 0);
    f->plan.on_duplicate = DUPLICATE_RELOAD;
    for (size_t head = 0; head < 2; head++)
        ALLOC_FAULT_SWEEP
        {
            long nth = alloc_fault_left;
            alloc_fault_set(0);
            struct test_load *l = make_load(f, "t", "t.csv", "a,b,c\n2,y,1.5\n3,z,q\n", head);
            begin_load(f, l);
            alloc_fault_set(nth);
            run_until(f, &l->is_done);
            bool was_hit = alloc_fault_hit();
            alloc_fault_set(0);
            if (l->base.err.code != ERR_NONE) {
                assert_true(was_hit);
                assert_int_equal(l->base.err.code, ERR_SYSTEM);
                assert_true(l->base.err.retryable);
            }
            free_load(l);
            assert_loads(f, "t", "t.csv", "a,b\n1,x\n", 0);
            assert_string_equal(ask(f, "SELECT * FROM t"), "1|x");
            alloc_fault_was_hit = was_hit;
        }
    assert_string_equal(ask(f, "PRAGMA integrity_check"), "ok");
}

/* ---- SQLite's own memory ---- */

static sqlite3_mem_methods real_memory;
static _Atomic long memory_left; /* until an allocation of SQLite fails; 0: none will */
static _Atomic bool memory_failed;
static bool memory_fails(void)
{
    if (memory_left <= 0 || atomic_fetch_sub(&memory_left, 1) != 1)
        return false;
    memory_failed = true;
    return true;
}
static void *failing_malloc(int n)
{
    return memory_fails() ? NULL : real_memory.xMalloc(n);
}
static void *failing_realloc(void *p, int n)
{
    return memory_fails() ? NULL : real_memory.xRealloc(p, n);
}

static void without_memory_for_sqlite_a_load_fails_cleanly(void **state)
{
    struct fixture *f = *state;
    assert_loads(f, "t", "t.csv", "a,b\n1,x\n", 0);
    static const char *const keys[] = {"a"};
    f->plan.on_duplicate = DUPLICATE_RELOAD;
    for (int kind = 0; kind < 3; kind++) {
        bool is_over = false;
        f->plan.mode = kind == 2 ? MODE_UPSERT : MODE_REPLACE;
        f->plan.key = kind == 2 ? (struct option_strings){keys, 1} : (struct option_strings){NULL, 0};
        for (long nth = 1; !is_over; nth += nth < 40 ? 1 : 7) {
            struct test_load *l =
                make_load(f, "t", "t.csv", kind == 2 ? "a,b\n2,y\n1,x\n" : "a,b,c\n2,y,1\n3,z,q\n", (size_t)kind % 2);
            begin_load(f, l);
            memory_failed = false;
            memory_left = nth;
            run_until(f, &l->is_done);
            memory_left = 0;
            is_over = !memory_failed;
            if (l->base.err.code != ERR_NONE &&
                !(memory_failed && l->base.err.code == ERR_SYSTEM && l->base.err.retryable))
                fail_msg("%ld. allocation: %s", nth, l->base.err.text);
            free_load(l);
            f->plan.mode = MODE_REPLACE;
            assert_loads(f, "t", "t.csv", "a,b\n1,x\n", 0);
            assert_string_equal(ask(f, "SELECT * FROM t"), "1|x");
            f->plan.mode = kind == 2 ? MODE_UPSERT : MODE_REPLACE;
        }
    }
    assert_string_equal(ask(f, "PRAGMA integrity_check"), "ok");
}

#define one(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
int main(void)
{
    sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real_memory);
    sqlite3_mem_methods failing = real_memory;
    failing.xMalloc = failing_malloc;
    failing.xRealloc = failing_realloc;
    sqlite3_config(SQLITE_CONFIG_MALLOC, &failing);
    const struct CMUnitTest tests[] = {
        one(a_locked_database_is_waited_for_and_then_retryable),
        one(a_rollback_journal_is_kept_and_works),
        one(a_reader_sees_old_or_new_during_a_hundred_replaces),
        one(others_keep_writing_while_a_large_file_is_loaded),
        one(a_killed_load_begun_again_is_there_exactly_once),
        one(a_full_disk_is_retryable_and_harms_nothing),
        one(what_is_no_database_blocks_the_destination),
        one(a_missing_folder_is_retried),
        one(a_load_stops_in_every_phase),
        one(an_abort_is_answered_wherever_the_load_is),
        one(an_abort_ends_the_wait_for_a_lock),
        one(without_memory_a_load_fails_cleanly),
        one(without_memory_for_sqlite_a_load_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
