/* test_ledger_recovery.c -- a damaged ledger is recovered, never refused, never the end of the process. */
#include "ledger_test.h"

#include "../../src/ledger/ledger_internal.h"

#include <fcntl.h>
#include <sys/stat.h>

#define FILES 200

static int set_up_filled(void **state)
{
    if (set_up(state) != 0)
        return -1;
    struct fixture *f = *state;
    for (int i = 0; i < FILES; i++) {
        char path[64];
        snprintf(path, sizeof(path), "folder/file-%04d.csv", i);
        struct ledger_row row = test_row(path, "w");
        row.state = STATE_LOADED;
        put(f, &row);
        uint8_t hash[16] = {(uint8_t)i};
        ledger_version_put(f->tx, row.id, hash, 1, 1, &f->err);
        struct ledger_receipt r = {.at_ms = 1,
                                   .source = "dir",
                                   .path = path,
                                   .flow = "w",
                                   .dest = "db",
                                   .table = "t",
                                   .state = STATE_LOADED,
                                   .reason = "",
                                   .receipt = {.dialect = "comma"}};
        ledger_receipt_put(f->tx, &r, &f->err);
    }
    ledger_meta_put(f->tx, "instance", "me", &f->err);
    ledger_header_put(f->tx, "db", "t", "[]", &f->err);
    return ledger_tx_close(f->tx, true, &f->err);
}

static int tear_down_filled(void **state)
{
    struct fixture *f = *state;
    f->tx = NULL;
    return tear_down(state);
}

static size_t read_all(const char *path, char **ret)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    *ret = malloc(size + 1);
    assert_int_equal(fread(*ret, 1, size, file), size);
    fclose(file);
    return size;
}

static void write_all(const char *path, const char *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

/* Open it, and see that what opened is a working ledger. Returns the rows it has. */
static uint64_t open_any(struct fixture *f, struct ledger_opened *opened)
{
    uint64_t n = 0;
    if (open_and_close(f->path, opened, &f->err) != ERR_NONE)
        fail_msg("%s", f->err.text);
    assert_true(!opened->was_recovered || opened->message[0] != '\0');
    assert_int_equal(ledger_tx_open(f->path, false, &f->tx, &f->err), ERR_NONE);
    struct ledger_row row = test_row("new.csv", "w");
    put(f, &row);
    n = count_of(f, &(struct ledger_query){.source = "dir", .below = "folder"});
    assert_int_equal(ledger_tx_close(f->tx, true, &f->err), ERR_NONE);
    f->tx = NULL;
    return n;
}

static void a_sound_ledger_is_not_touched(void **state)
{
    struct ledger_opened opened;
    assert_int_equal(open_any(*state, &opened), FILES);
    assert_false(opened.was_recovered || opened.is_new);
}

static void an_empty_file_is_recovered(void **state)
{
    struct fixture *f = *state;
    struct ledger_opened opened;
    assert_int_equal(truncate(f->path, 0), 0);
    assert_int_equal(open_any(f, &opened), 0);
    assert_true(opened.was_recovered);
    assert_false(opened.is_new);
}

static void a_file_that_is_no_database_is_recovered(void **state)
{
    struct fixture *f = *state;
    struct ledger_opened opened;
    struct stat st;
    static char text[30000];
    memset(text, 'x', sizeof(text));
    write_all(f->path, text, sizeof(text));
    assert_int_equal(open_any(f, &opened), 0);
    assert_true(opened.was_recovered);
    const char *aside = strstr(opened.message, f->path);
    aside = strstr(aside + 1, f->path); /* the second name is the file that was moved */
    char name[200];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(aside, ";"), aside);
    assert_int_equal(stat(name, &st), 0);
    assert_int_equal(st.st_size, sizeof(text)); /* nothing is deleted */
}

static void the_database_of_another_program_is_moved_aside(void **state)
{
    struct fixture *f = *state;
    struct ledger_opened opened;
    sqlite3 *db;
    empty_folder(f->folder);
    assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "CREATE TABLE t(a)", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    open_any(f, &opened);
    assert_true(opened.was_recovered);
}

static void every_cut_is_recovered(void **state)
{
    struct fixture *f = *state;
    char *data;
    size_t size = read_all(f->path, &data);
    uint64_t saved = 0;
    for (size_t cut = 1; cut < size; cut += cut < 4200 ? 97 : 2999) {
        struct ledger_opened opened;
        empty_folder(f->folder);
        write_all(f->path, data, cut);
        uint64_t n = open_any(f, &opened);
        if (!opened.was_recovered && n != FILES)
            fail_msg("cut at %zu: %llu rows, not a word", cut, (unsigned long long)n);
        saved += n;
    }
    assert_true(saved > 0);
    free(data);
}

static void every_flip_is_survived(void **state)
{
    struct fixture *f = *state;
    char *data;
    size_t size = read_all(f->path, &data);
    for (size_t at = 0; at < size; at += at < 120 ? 1 : 1511) {
        struct ledger_opened opened;
        empty_folder(f->folder);
        data[at] ^= (char)(at % 3 == 0 ? 0xff : 1 << (at % 8));
        write_all(f->path, data, size);
        data[at] ^= (char)(at % 3 == 0 ? 0xff : 1 << (at % 8));
        uint64_t n = open_any(f, &opened);
        if (!opened.was_recovered)
            assert_true(n <= FILES);
    }
    free(data);
}

static void garbage_in_the_middle_loses_only_what_it_covers(void **state)
{
    struct fixture *f = *state;
    char *data;
    size_t size = read_all(f->path, &data);
    uint64_t saved = 0;
    int runs = 0;
    for (size_t page = 8; page < size / 4096; page += 3, runs++) {
        struct ledger_opened opened;
        char keep[4096];
        empty_folder(f->folder);
        memcpy(keep, data + page * 4096, sizeof(keep));
        for (size_t i = 0; i < sizeof(keep); i++)
            data[page * 4096 + i] = (char)(i * 7919 >> 3);
        write_all(f->path, data, size);
        memcpy(data + page * 4096, keep, sizeof(keep));
        uint64_t n = open_any(f, &opened);
        saved += n;
        assert_true(opened.was_recovered || n == FILES);
    }
    /* On average far more than half of the files is still known. */
    assert_true(runs > 3 && saved > (uint64_t)runs * FILES / 2);
    free(data);
}

static void garbage_beside_it_is_survived(void **state)
{
    struct fixture *f = *state;
    static const char *const tails[] = {"-wal", "-shm", "-journal", ".recovering", ".suspect"};
    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        struct ledger_opened opened;
        char name[200];
        static char garbage[70000];
        for (size_t k = 0; k < sizeof(garbage); k++)
            garbage[k] = (char)(k * 31 >> 2);
        snprintf(name, sizeof(name), "%s%s", f->path, tails[i]);
        write_all(name, garbage, sizeof(garbage));
        assert_int_equal(open_any(f, &opened), FILES);
        assert_false(opened.was_recovered);
    }
}

static void a_recovery_that_was_cut_off_is_finished(void **state)
{
    struct fixture *f = *state;
    struct ledger_opened opened;
    char name[200];
    char *data;
    size_t size = read_all(f->path, &data);
    snprintf(name, sizeof(name), "%s.recovered", f->path);
    write_all(name, data, size);
    write_all(f->path, "broken", 6);
    assert_int_equal(open_any(f, &opened), FILES);
    assert_true(opened.was_recovered);
    assert_int_equal(rename(f->path, name), 0); /* cut off later: the old one is aside already */
    assert_int_equal(open_any(f, &opened), FILES);
    assert_true(opened.was_recovered && !opened.is_new);
    free(data);
}

static void run_sql(const char *path, const char *sql)
{
    sqlite3 *db;
    char *text = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &text) != SQLITE_OK)
        fail_msg("%s", text);
    sqlite3_close(db);
}

static void what_a_hand_has_edited_never_ends_the_process(void **state)
{
    struct fixture *f = *state;
    struct ledger_opened opened;
    run_sql(f->path, "DELETE FROM name");
    open_any(f, &opened);
    assert_int_equal(ledger_tx_open(f->path, false, &f->tx, &f->err), ERR_NONE);
    assert_int_equal(ledger_tx_close(f->tx, true, &f->err), ERR_NONE);
    f->tx = NULL;
    run_sql(f->path, "DROP INDEX file_due");
    open_any(f, &opened);
    assert_true(opened.was_recovered);
}

static void a_newer_ledger_is_refused_and_left_alone(void **state)
{
    struct fixture *f = *state;
    struct ledger_opened opened;
    run_sql(f->path, "UPDATE meta SET value = '99' WHERE key = 'schema'; PRAGMA user_version = 99");
    assert_int_equal(open_and_close(f->path, &opened, &f->err), ERR_CONFIG);
    assert_non_null(strstr(f->err.text, "newer"));
    assert_int_equal(ledger_tx_open(f->path, true, &f->tx, &f->err), ERR_CONFIG);
    f->tx = NULL;
    run_sql(f->path, "PRAGMA user_version = 1"); /* only one of the two places: damage */
    assert_int_equal(open_any(f, &opened), FILES);
    assert_true(opened.was_recovered);
}

static void an_older_schema_is_migrated_step_by_step(void **state)
{
    struct fixture *f = *state;
    int64_t version = 0;
    struct ledger_step steps[3] = {ledger_steps[0],
                                   {"CREATE TABLE extra(a); INSERT INTO extra SELECT path FROM file"},
                                   {"ALTER TABLE extra ADD COLUMN b"}};
    assert_int_equal(ledger_connect(f->path, SQLITE_OPEN_READWRITE, &f->tx, &f->err), ERR_NONE);
    assert_int_equal(ledger_migrate(f->tx, steps, 3, &f->err), ERR_NONE);
    struct query q;
    bool has_row;
    assert_int_equal(query_begin(&q, f->tx,
                                 "SELECT (SELECT count(a) + count(b) FROM extra), user_version "
                                 "FROM pragma_user_version",
                                 &f->err),
                     ERR_NONE);
    assert_int_equal(query_step(&q, &has_row, &f->err), ERR_NONE);
    version = column_int(q.stmt, 1);
    assert_int_equal(column_int(q.stmt, 0), FILES);
    query_end(&q);
    assert_int_equal(version, 3);
    steps[2].sql = "this is no SQL"; /* a step that fails undoes all */
    assert_int_equal(ledger_exec(f->tx, "DROP TABLE extra; PRAGMA user_version = 1", &f->err), ERR_NONE);
    assert_int_not_equal(ledger_migrate(f->tx, steps, 3, &f->err), ERR_NONE);
    assert_int_not_equal(ledger_exec(f->tx, "SELECT a FROM extra", &f->err), ERR_NONE);
    ledger_tx_free(f->tx);
    f->tx = NULL;
}

static void a_ledger_that_cannot_be_written_is_an_error_with_advice(void **state)
{
    struct fixture *f = *state;
    struct ledger_opened opened;
    struct ledger_options options = {.path = "/proc/nowhere/ledger.db"};
    struct ledger *l;
    uv_loop_t loop;
    uv_loop_init(&loop);
    assert_int_equal(ledger_open(&loop, &options, &l, &opened, &f->err), ERR_SYSTEM);
    assert_non_null(strstr(f->err.text, "must be able to write"));
    uv_loop_close(&loop);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up_filled, tear_down_filled)
    const struct CMUnitTest tests[] = {
        T(a_sound_ledger_is_not_touched),
        T(an_empty_file_is_recovered),
        T(a_file_that_is_no_database_is_recovered),
        T(the_database_of_another_program_is_moved_aside),
        T(every_cut_is_recovered),
        T(every_flip_is_survived),
        T(garbage_in_the_middle_loses_only_what_it_covers),
        T(garbage_beside_it_is_survived),
        T(a_recovery_that_was_cut_off_is_finished),
        T(what_a_hand_has_edited_never_ends_the_process),
        T(a_newer_ledger_is_refused_and_left_alone),
        T(an_older_schema_is_migrated_step_by_step),
        T(a_ledger_that_cannot_be_written_is_an_error_with_advice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
