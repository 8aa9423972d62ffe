/* test_postgres_memory.c -- the n-th allocation fails while a file goes to PostgreSQL: nothing of it, or all. */
#include "pg_server.h"

#include "alloc_fault.h"
#include "inspect.h"
#include "postgres_internal.h"

#include <sys/mman.h>

extern const struct dest_ops dest_postgres;

static struct pg_server server;
static unsigned keys; /* attempts are told apart by theirs, for all tests */

struct fixture {
    uv_loop_t loop;
    void *dest;
    struct pgd_options options;
    bool is_done, is_closed, is_connected;
    struct err connect_err;
};

static int start_server(void **state)
{
    (void)state;
    pg_server_start(&server);
    return 0;
}

static int stop_server(void **state)
{
    (void)state;
    pg_server_stop(&server);
    return 0;
}

static void on_connected(void *arg, const struct err *err)
{
    struct fixture *f = arg;
    f->is_connected = true;
    err_clear(&f->connect_err);
    if (err != NULL)
        f->connect_err = *err;
}

static void on_closed(void *arg)
{
    ((struct fixture *)arg)->is_closed = true;
}

static void on_finished(struct load *load)
{
    ((struct fixture *)load->owner)->is_done = true;
}

static void run_until(struct fixture *f, const bool *flag)
{
    uint64_t until = uv_hrtime() + 60000000000ull;
    while (!*flag) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        if (!*flag)
            usleep(100);
        assert_true(uv_hrtime() < until);
    }
}

static int set_up(void **state)
{
    static const struct dest_env env = {.jobs = 1, .buffer_bytes = 1 << 20};
    struct fixture *f = calloc(1, sizeof *f);
    struct err err;
    uv_loop_init(&f->loop);
    f->options = (struct pgd_options){.url = server.url,
                                      .password = "",
                                      .schema = "public",
                                      .replace = PGD_DELETE_AND_COPY,
                                      .lock_timeout = 10000,
                                      .connect_timeout = 30000,
                                      .stall_timeout = 60000,
                                      .tls_verify = true,
                                      .ca_file = "",
                                      .connections = 1};
    assert_int_equal(dest_postgres.open(&f->options, &env, &f->loop, &f->dest, &err), ERR_NONE);
    dest_postgres.connect(f->dest, on_connected, f);
    run_until(f, &f->is_connected);
    assert_int_equal(f->connect_err.code, ERR_NONE);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    dest_postgres.close(f->dest, on_closed, f);
    run_until(f, &f->is_closed);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    free(f);
    return 0;
}

/* A file of one flow, as the job opens it. */
struct file {
    struct load load;
    struct arena arena;
    struct csv_options csv;
    struct inspect_options inspect;
    char key[32];
    int fd;
};

static void file_open(struct fixture *f, struct file *file, const struct load_plan *plan, const char *text,
                      uint64_t skip)
{
    struct shape *shape;
    struct err err;
    memset(file, 0, sizeof *file);
    arena_init(&file->arena);
    file->fd = memfd_create("file", MFD_CLOEXEC);
    assert_int_equal(write(file->fd, text, strlen(text)), strlen(text));
    file->csv = (struct csv_options){.quote = '"', .max_row = 1 << 20};
    file->inspect = (struct inspect_options){.csv = &file->csv, .skip_bad_rows = skip};
    assert_int_equal(inspect_head(file->fd, &file->inspect, &file->arena, &shape, &err), ERR_NONE);
    assert_int_equal(inspect_rows(file->fd, &file->inspect, shape, &file->load.rows, &err), ERR_NONE);
    snprintf(file->key, sizeof file->key, "key-%u", ++keys);
    file->load.what = LOAD_FILE;
    file->load.plan = plan;
    file->load.instance = "me";
    file->load.source = "in";
    file->load.path = "t.csv";
    file->load.load_key = file->key;
    file->load.space = "public";
    file->load.table = "t";
    file->load.fd = file->fd;
    file->load.finished = on_finished;
    file->load.owner = f;
}

static void file_close(struct file *file)
{
    rows_free(file->load.rows);
    arena_done(&file->arena);
    close(file->fd);
}

/* Load it, with the NTH allocation failing (0: none). Did it work? */
static bool load_text(struct fixture *f, const struct load_plan *plan, const char *text, uint64_t skip, long nth)
{
    struct file file;
    struct err err = {0};
    alloc_fault_set(0);
    file_open(f, &file, plan, text, skip);
    f->is_done = false;
    alloc_fault_set(nth);
    enum err_code code = dest_postgres.begin(f->dest, &file.load, &err);
    if (code == ERR_NONE) {
        run_until(f, &f->is_done);
        err = file.load.err;
    }
    bool was_hit = alloc_fault_hit();
    alloc_fault_set(0);
    if (err.code != ERR_NONE) {
        if (!was_hit || (err.code != ERR_SYSTEM && err.code != ERR_REMOTE))
            print_error("allocation %ld: %d %s\n", nth, err.code, err.text);
        assert_true(was_hit);
        assert_true(err.code == ERR_SYSTEM || err.code == ERR_REMOTE);
        assert_true(err.retryable);
    }
    file_close(&file);
    alloc_fault_was_hit = was_hit;
    return err.code == ERR_NONE;
}

/* What another session answers; its own psql, so that none of our allocations count. */
static void assert_answer(const char *sql, const char *wanted)
{
    char command[1024], said[256] = "", binary[200];
    snprintf(command, sizeof command, "%s -AtX -d '%s' -c \"%s\"", pg_server_binary("psql", binary, sizeof binary),
             server.url, sql);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t n = fread(said, 1, sizeof said - 1, p);
    assert_int_equal(pclose(p), 0);
    while (n > 0 && said[n - 1] == '\n')
        said[--n] = '\0';
    assert_string_equal(said, wanted);
}

/* After each failure the same load works, and the table holds what one load alone would have made of it. */
static void sweep(struct fixture *f, const struct load_plan *plan, const char *first, const char *text, uint64_t skip,
                  const char *wanted)
{
    static const char *const key[] = {"id"};
    struct load_plan plain = *plan;
    plain.mode = MODE_REPLACE;
    plain.on_duplicate = DUPLICATE_RELOAD;
    plain.key = (struct option_strings){key, 1};
    assert_true(load_text(f, &plain, first, 0, 0));
    bool worked = false;
    for (long nth = 1; !worked || alloc_fault_was_hit; nth++) {
        worked = load_text(f, plan, text, skip, nth);
        bool was_hit = alloc_fault_was_hit;
        if (!worked)
            assert_true(load_text(f, plan, text, skip, 0));
        assert_answer("select string_agg(id || v, ' ' order by id, v) from t", wanted);
        assert_true(load_text(f, &plain, first, 0, 0));
        alloc_fault_was_hit = was_hit;
        assert_true(nth < 5000);
    }
    assert_answer("select count(*) from pg_stat_activity where state like 'idle in transaction%'", "0");
}

static const char *const key_names[] = {"id"};
static const struct load_plan base_plan = {.flow = "flow",
                                           .row_number = "",
                                           .key = {key_names, 1},
                                           .on_schema_change = SCHEMA_REJECT,
                                           .on_duplicate = DUPLICATE_RELOAD};
#define FIRST "id,v\n1,a\n2,b\n"

static void a_replace_of_bytes_as_they_are(void **state)
{
    struct load_plan plan = base_plan;
    plan.mode = MODE_REPLACE;
    plan.types.policy = TYPES_TEXT;
    sweep(*state, &plan, FIRST, "id,v\n7,x\n8,y\n", 0, "7x 8y");
}

static void a_merge_of_rows(void **state)
{
    struct load_plan plan = base_plan;
    plan.mode = MODE_UPSERT;
    plan.types.policy = TYPES_TEXT;
    sweep(*state, &plan, FIRST, "id,v\n2,x\n8,y\n8,z\n", 0, "1a 2x 8z");
}

static void rows_that_the_server_refuses_are_left_out(void **state)
{
    struct load_plan plan = base_plan;
    plan.mode = MODE_APPEND;
    plan.types.policy = TYPES_TEXT;
    sweep(*state, &plan, FIRST, "id,v\n2,x\n8,y\n9,z\n", 5, "1a 2b 8y 9z");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_replace_of_bytes_as_they_are),
        TEST(a_merge_of_rows),
        TEST(rows_that_the_server_refuses_are_left_out),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
