/* receipts.c -- `chute receipts`: what was loaded, with all its numbers. Read from the ledger, with or without a
 * daemon. */
#include "admin_internal.h"

#include "clock.h"
#include "text.h"

#include <string.h>

static void add_text(struct json_object *o, const char *key, const char *text)
{
    json_object_object_add(o, key, report_text(text));
}

static void add_number(struct json_object *o, const char *key, uint64_t number)
{
    json_object_object_add(o, key, json_object_new_uint64(number));
}

static void print_json(const struct ledger_receipt *r, bool is_first)
{
    char time[32], hash[33];
    static const uint8_t none[16];
    clock_format(r->at_ms, time, sizeof time);
    text_hex(r->receipt.hash, sizeof r->receipt.hash, hash);
    struct json_object *o = json_object_new_object();
    add_text(o, "time", time);
    add_text(o, "source", r->source);
    add_text(o, "path", r->path);
    add_text(o, "flow", r->flow);
    add_text(o, "destination", r->dest);
    add_text(o, "table", r->table);
    add_text(o, "state", file_state_names[r->state]);
    add_text(o, "reason", r->reason);
    add_text(o, "hash", memcmp(r->receipt.hash, none, sizeof none) == 0 ? "" : hash);
    add_number(o, "bytes", r->receipt.bytes);
    add_number(o, "parsed", r->receipt.parsed);
    add_number(o, "loaded", r->receipt.inserted + r->receipt.updated + r->receipt.unchanged);
    add_number(o, "inserted", r->receipt.inserted);
    add_number(o, "updated", r->receipt.updated);
    add_number(o, "unchanged", r->receipt.unchanged);
    add_number(o, "rejected", r->receipt.rejected);
    json_object_object_add(o, "destination_rows",
                           r->receipt.dest_rows < 0 ? NULL : json_object_new_int64(r->receipt.dest_rows));
    add_text(o, "destination_id", r->receipt.dest_id);
    add_text(o, "dialect", r->receipt.dialect);
    json_object_object_add(o, "duplicate", json_object_new_boolean(r->receipt.is_duplicate));
    add_number(o, "tries", (uint64_t)r->tries);
    add_number(o, "duration_ms", (uint64_t)r->duration_ms);
    printf("%s%s", is_first ? "[\n" : ",\n",
           json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(o);
}

struct printing {
    bool is_json;
    uint64_t count;
};

static bool print_receipt(void *arg, const struct ledger_receipt *r)
{
    struct printing *p = arg;
    if (p->is_json) {
        print_json(r, p->count++ == 0); /* an array, but one object a line and never all in memory */
        return !ferror(stdout);
    }
    if (p->count++ == 0)
        printf("%-24s  %-11s  %10s  %10s  %8s  %10s  %9s  %5s  %-12s  %-20s  %s\n", "time", "state", "parsed", "loaded",
               "rejected", "bytes", "seconds", "tries", "flow", "table", "file");
    char time[32], path[1024], flow[256], table[1024], reason[1024];
    clock_format(r->at_ms, time, sizeof time);
    printf("%-24s  %-11s  %10llu  %10llu  %8llu  %10llu  %9.3f  %5lld  %-12s  %-20s  %s%s%s\n", time,
           file_state_names[r->state], (unsigned long long)r->receipt.parsed,
           (unsigned long long)(r->receipt.inserted + r->receipt.updated + r->receipt.unchanged),
           (unsigned long long)r->receipt.rejected, (unsigned long long)r->receipt.bytes, (double)r->duration_ms / 1000,
           (long long)r->tries, text_printable(r->flow, flow, sizeof flow),
           text_printable(r->table, table, sizeof table), text_printable(r->path, path, sizeof path),
           r->reason[0] != '\0' ? ": " : "", text_printable(r->reason, reason, sizeof reason));
    return !ferror(stdout);
}

int command_receipts(const struct command_context *c, const struct args *args)
{
    struct err err = {0}, close_err = {0};
    const char *since = args_value(args, "since");
    struct ledger_receipt_query query = {.flow = args_value(args, "flow")};
    if (since != NULL) {
        query.since_ms = clock_parse(since);
        if (query.since_ms < 0) {
            say("--since %s: expected a date (2026-11-20), a time (2026-11-20T11:00:00Z) or an age (2h, 7d)", since);
            return 2;
        }
    }
    struct ledger_tx *tx;
    if (open_ledger(c, true, &tx, &err) != ERR_NONE) {
        say("%s", err.text);
        return 1;
    }
    struct printing printing = {.is_json = args_has(args, "json")};
    if (ledger_receipts_each(tx, &query, print_receipt, &printing, &err) != ERR_NONE)
        say("%s", err.text);
    ledger_tx_close(tx, false, &close_err);
    if (printing.is_json)
        printf("%s\n]\n", printing.count == 0 ? "[" : "");
    else if (err.code == ERR_NONE && printing.count == 0)
        say("no receipts%s%s", query.flow != NULL ? " of flow " : "", query.flow != NULL ? query.flow : "");
    return err.code == ERR_NONE ? 0 : 1;
}
