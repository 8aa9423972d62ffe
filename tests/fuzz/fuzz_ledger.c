/*
 * fuzz_ledger.c -- the ledger's content is trusted by nobody: any bytes as the file, or as rows that a hand has edited,
 * are read or refused, and never end the process.
 *
 * The first byte says how: odd, the rest is SQL literals' raw material put into random columns of a sound ledger; even,
 * the rest overwrites a sound ledger from a place that the next two bytes say.
 */
#include "clock.h"
#include "ledger.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void on_closed(void *arg)
{
    (void)arg;
}

static void open_and_close(const char *path)
{
    uv_loop_t loop;
    struct ledger *l;
    struct ledger_opened opened;
    struct err err;
    uv_loop_init(&loop);
    if (ledger_open(&loop, &(struct ledger_options){.path = path}, &l, &opened, &err) == ERR_NONE) {
        ledger_close(l, on_closed, NULL);
        uv_run(&loop, UV_RUN_DEFAULT);
    }
    uv_loop_close(&loop);
}

static void fill(struct ledger_tx *tx)
{
    struct err err;
    for (int i = 0; i < 40; i++) {
        char path[32];
        snprintf(path, sizeof(path), "d/%d.csv", i);
        struct ledger_row row = {.source = "s",
                                 .path = path,
                                 .flow = i % 2 ? "f" : "g",
                                 .dest = "d",
                                 .table = path,
                                 .table_key = path,
                                 .state = (enum file_state)(i % FILE_STATES),
                                 .file = {.inode = 3}};
        struct ledger_receipt receipt = {.source = "s", .path = path, .flow = "f", .dest = "d", .state = STATE_LOADED};
        ledger_put(tx, &row, &err);
        ledger_receipt_put(tx, &receipt, &err);
        ledger_version_put(tx, row.id, row.hash, 1, 1, &err);
    }
}

static bool on_row(void *arg, const struct ledger_row *row)
{
    size_t *sum = arg;
    *sum += strlen(row->path) + strlen(row->source) + strlen(row->flow) + strlen(row->dest) + strlen(row->table) +
            strlen(row->reason) + strlen(row->load_key) + strlen(file_state_names[row->state]);
    return true;
}

static bool on_receipt(void *arg, const struct ledger_receipt *r)
{
    size_t *sum = arg;
    *sum += strlen(r->path) + strlen(r->table) + strlen(r->receipt.dialect) + strlen(file_state_names[r->state]);
    return true;
}

static void use(const char *path)
{
    struct ledger_tx *tx;
    struct err err;
    struct arena arena;
    struct ledger_row **rows;
    struct ledger_row *row;
    struct ledger_counter *counters;
    size_t count;
    size_t sum = 0;
    uint64_t n;
    int64_t due;
    if (ledger_tx_open(path, false, &tx, &err) != ERR_NONE)
        return;
    arena_init(&arena);
    ledger_each(tx, &(struct ledger_query){0}, on_row, &sum, &err);
    ledger_each(tx, &(struct ledger_query){.by_age = true}, on_row, &sum, &err);
    ledger_each(tx, &(struct ledger_query){.source = "s", .below = "d"}, on_row, &sum, &err);
    ledger_receipts_each(tx, &(struct ledger_receipt_query){.newest_first = true}, on_receipt, &sum, &err);
    ledger_counters(tx, &arena, &counters, &count, &err);
    ledger_get(tx, "s", "d/2.csv", "g", &arena, &row, &err);
    ledger_next_due(tx, "d", NULL, &due, &err);
    ledger_claim(tx, "d", clock_wall_ms(), 10, 100, (const char *const[]){NULL}, NULL, &arena, &rows, &count, &err);
    ledger_rename(tx, "s", "d", "e", true, &err);
    ledger_requeue_loading(tx, &n, &err);
    ledger_prune(tx, INT64_MAX, &n, &err);
    arena_done(&arena);
    ledger_tx_close(tx, true, &err);
}

static void edit_rows(const char *path, const uint8_t *data, size_t size)
{
    static const char *const columns[] = {"path",   "tbl",    "table_key",   "state",    "flow",
                                          "source", "dest",   "size",        "mtime_ns", "hash",
                                          "flags",  "reason", "next_try_ms", "inode",    "l_size"};
    sqlite3 *db;
    char sql[200];
    if (sqlite3_open(path, &db) == SQLITE_OK) {
        sqlite3_exec(db, "PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF", NULL, NULL, NULL);
        for (size_t at = 0; at + 12 <= size; at += 12) {
            sqlite3_stmt *stmt;
            snprintf(sql, sizeof(sql), "UPDATE %s SET %s = ?1 WHERE id = ?2", data[at] & 128 ? "receipt" : "file",
                     columns[data[at] % (sizeof(columns) / sizeof(columns[0]))]);
            if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) != SQLITE_OK)
                continue;
            int64_t number;
            memcpy(&number, data + at + 4, sizeof(number));
            if (data[at + 1] % 4 == 0)
                sqlite3_bind_int64(stmt, 1, number);
            else if (data[at + 1] % 4 == 1)
                sqlite3_bind_text(stmt, 1, (const char *)data + at + 4, 8, SQLITE_STATIC);
            else if (data[at + 1] % 4 == 2)
                sqlite3_bind_blob(stmt, 1, data + at + 4, 8, SQLITE_STATIC);
            sqlite3_bind_int(stmt, 2, data[at + 2] % 40 + 1);
            sqlite3_step(stmt);
            sqlite3_finalize(stmt);
        }
    }
    sqlite3_close(db);
}

static void overwrite(const char *path, const uint8_t *data, size_t size)
{
    FILE *file = fopen(path, "r+b");
    if (file == NULL || size < 2)
        goto close_file;
    long at = (long)(((unsigned)data[0] << 8 | data[1]) * 2u);
    fseek(file, 0, SEEK_END);
    if (ftell(file) > 0)
        at %= ftell(file);
    fseek(file, at, SEEK_SET);
    fwrite(data + 2, 1, size - 2, file);
close_file:
    if (file != NULL)
        fclose(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char folder[64];
    char path[96];
    char command[96];
    struct ledger_tx *tx;
    struct err err;
    if (size < 1)
        return 0;
    snprintf(folder, sizeof(folder), "%s/fuzz-ledger-XXXXXX", P_tmpdir);
    if (mkdtemp(folder) == NULL)
        return 0;
    snprintf(path, sizeof(path), "%s/ledger.db", folder);
    open_and_close(path);
    if (ledger_tx_open(path, false, &tx, &err) == ERR_NONE) {
        fill(tx);
        ledger_tx_close(tx, true, &err);
    }
    (data[0] & 1 ? edit_rows : overwrite)(path, data + 1, size - 1);
    if (data[0] & 2)
        use(path); /* before a start that would recover it */
    open_and_close(path);
    use(path);
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    if (system(command) != 0)
        abort();
    return 0;
}
