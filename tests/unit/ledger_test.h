/* ledger_test.h -- a ledger in a folder of its own, for the test_ledger* programs. */
#ifndef LEDGER_TEST_H
#define LEDGER_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "buf.h"
#include "ledger.h"

#include <dirent.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fixture {
    char folder[64];
    char path[96];
    struct ledger_tx *tx; /* a writing one, for tests of what happens within a transaction */
    struct arena arena;
    struct err err;
    struct ledger_row **rows;
    size_t count;
    int seen;
};

static inline struct ledger_row test_row(const char *path, const char *flow)
{
    static char tables[64][300];
    static unsigned next;
    char *table = tables[next++ % 64];
    snprintf(table, sizeof(tables[0]), "t_%s", path);
    return (struct ledger_row){.source = "dir",
                               .path = path,
                               .flow = flow,
                               .dest = "db",
                               .table = table,
                               .table_key = table,
                               .state = STATE_QUEUED,
                               .reason = "",
                               .load_key = "",
                               .file = {.size = 1, .mtime_ns = 1, .ctime_ns = 1, .inode = 1, .dev = 1},
                               .seen_ms = 100};
}

static inline void make_folder(struct fixture *f)
{
    snprintf(f->folder, sizeof(f->folder), "%s/chute-ledger-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof(f->path), "%s/ledger.db", f->folder);
}

static inline void empty_folder(const char *folder)
{
    char name[400];
    DIR *dir = opendir(folder);
    if (dir == NULL)
        return;
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        snprintf(name, sizeof(name), "%s/%s", folder, e->d_name);
        if (e->d_name[0] != '.')
            unlink(name);
    }
    closedir(dir);
}

static inline void remove_folder(const char *folder)
{
    empty_folder(folder);
    rmdir(folder);
}

static inline void on_closed(void *arg)
{
    *(bool *)arg = true;
}

/* Open the ledger as the daemon does, and close it. */
static inline enum err_code open_and_close(const char *path, struct ledger_opened *opened, struct err *err)
{
    uv_loop_t loop;
    struct ledger *l;
    bool closed = false;
    assert_int_equal(uv_loop_init(&loop), 0);
    enum err_code code = ledger_open(&loop, &(struct ledger_options){.path = path}, &l, opened, err);
    if (code == ERR_NONE) {
        ledger_close(l, on_closed, &closed);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_true(closed);
    }
    assert_int_equal(uv_loop_close(&loop), 0);
    return code;
}

static inline int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct ledger_opened opened;
    make_folder(f);
    arena_init(&f->arena);
    *state = f;
    if (open_and_close(f->path, &opened, &f->err) != ERR_NONE || !opened.is_new || opened.was_recovered)
        return -1;
    return ledger_tx_open(f->path, false, &f->tx, &f->err) == ERR_NONE ? 0 : -1;
}

static inline int tear_down(void **state)
{
    struct fixture *f = *state;
    enum err_code code = ledger_tx_close(f->tx, true, &f->err);
    arena_done(&f->arena);
    remove_folder(f->folder);
    free(f);
    return code == ERR_NONE ? 0 : -1;
}

static inline void put(struct fixture *f, struct ledger_row *row)
{
    if (ledger_put(f->tx, row, &f->err) != ERR_NONE)
        fail_msg("put: %s", f->err.text);
    assert_true(row->id > 0);
}

static inline struct ledger_row *get(struct fixture *f, const char *path, const char *flow)
{
    struct ledger_row *row;
    assert_int_equal(ledger_get(f->tx, "dir", path, flow, &f->arena, &row, &f->err), ERR_NONE);
    return row;
}

static inline uint64_t count_of(struct fixture *f, const struct ledger_query *q)
{
    uint64_t n;
    assert_int_equal(ledger_count(f->tx, q, &n, &f->err), ERR_NONE);
    return n;
}

/* The kept numbers must be what counting gives. */
static inline void check_tally(struct fixture *f)
{
    for (unsigned s = 0; s < FILE_STATES; s++) {
        struct ledger_query tally = {.states = STATE_BIT(s)};
        struct ledger_query counted = {.states = STATE_BIT(s), .source = "dir"};
        assert_int_equal(count_of(f, &tally), count_of(f, &counted));
    }
}

#endif
