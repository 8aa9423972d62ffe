/*
 * postgres_receipt.c -- what `_chute_loads` knows: which versions the database holds. Never pruned: it decides when the
 * ledger is lost.
 *
 * Receipts older than the last drop or emptying of their table speak of rows that are gone, and don't count. Ids are
 * given under the advisory lock of the table, so that their order is the order of the commits.
 */
#include "postgres_internal.h"

#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS "id, hash, bytes, parsed, inserted, updated, unchanged, rejected"

static const char *or_empty(const char *s)
{
    return s != NULL ? s : "";
}

static void add_equals(struct buf *b, const char *column, const char *text)
{
    buf_printf(b, "%s = ", column);
    pg_add_text(b, or_empty(text));
}

static void add_of_table(struct buf *b, const struct load *load)
{
    add_equals(b, "\"schema\"", load->space);
    buf_adds(b, " AND ");
    add_equals(b, "\"table\"", load->table);
}

/*
 * The same where another index has to be taken: without statistics the planner takes the one of all receipts of a
 * table for as good, and would walk them once for each file.
 */
static void add_of_table_unindexed(struct buf *b, const struct load *load)
{
    add_equals(b, "\"schema\" || ''", load->space);
    buf_adds(b, " AND ");
    add_equals(b, "\"table\" || ''", load->table);
}

/* When were the rows of the table last thrown away? id + 0: or it would look through all receipts from the newest on.
 */
static void add_gone(struct buf *b, const struct pgd_walker *w, const struct load *load)
{
    buf_adds(b, " AND id > (SELECT coalesce(max(id + 0), 0) FROM ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, " WHERE ");
    add_of_table(b, load);
    buf_adds(b, " AND kind IN ('drop', 'empty'))");
}

void pgd_add_attempt_query(struct buf *b, const struct pgd_walker *w, const struct load *load)
{
    buf_adds(b, "SELECT " COLUMNS " FROM ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, " WHERE ");
    add_equals(b, "load_key", load->load_key);
    buf_adds(b, " AND ");
    add_equals(b, "instance", load->instance);
    buf_adds(b, " AND ");
    add_of_table_unindexed(b, load);
    buf_addc(b, ';');
}

static void add_version(struct buf *b, const struct load *load, const char *path, const uint8_t hash[16])
{
    char hex[33];
    text_hex(hash, 16, hex);
    buf_adds(b, " pg_catalog.md5(path) = pg_catalog.md5(");
    pg_add_text(b, or_empty(path));
    buf_printf(b, ") AND hash = '%s' AND ", hex);
    add_equals(b, "path", path);
    buf_adds(b, " AND ");
    add_equals(b, "source", load->source);
    buf_adds(b, " AND ");
    add_equals(b, "instance", load->instance);
    buf_adds(b, " AND kind IN ('load', 'carry')");
}

void pgd_add_version_query(struct buf *b, const struct pgd_walker *w, const struct load *load, const char *path,
                           const uint8_t hash[16], bool only_last)
{
    if (only_last) {
        buf_adds(b, "SELECT " COLUMNS " FROM (SELECT * FROM ");
        pgd_add_home(b, w, "_chute_loads");
        buf_adds(b, " WHERE ");
        add_of_table(b, load);
        buf_adds(b, " ORDER BY id DESC LIMIT 1) l WHERE");
        add_version(b, load, path, hash);
    } else {
        buf_adds(b, "SELECT " COLUMNS " FROM ");
        pgd_add_home(b, w, "_chute_loads");
        buf_adds(b, " WHERE");
        add_version(b, load, path, hash);
        buf_adds(b, " AND ");
        add_of_table_unindexed(b, load);
        add_gone(b, w, load);
        buf_adds(b, " LIMIT 1");
    }
    buf_addc(b, ';');
}

#define FAR_COLUMNS "v.n, l.id, l.hash, l.bytes, l.parsed, l.inserted, l.updated, l.unchanged, l.rejected FROM (VALUES "

void pgd_add_attempts_query(struct buf *b, const struct pgd_walker *w, struct load *const *loads, size_t count)
{
    buf_adds(b, "SELECT " FAR_COLUMNS);
    for (size_t i = 0; i < count; i++) {
        buf_printf(b, "%s(%zu, ", i > 0 ? ", " : "", i);
        pg_add_text(b, or_empty(loads[i]->load_key));
        buf_addc(b, ')');
    }
    /* LATERAL with a limit leaves the planner no choice: a look into the index for each. */
    buf_adds(b, ") v(n, k), LATERAL (SELECT * FROM ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, " WHERE load_key = v.k AND ");
    add_equals(b, "instance", loads[0]->instance);
    buf_adds(b, " AND ");
    add_of_table_unindexed(b, loads[0]);
    buf_adds(b, " LIMIT 1) l;");
}

void pgd_add_versions_query(struct buf *b, const struct pgd_walker *w, struct load *const *loads, size_t count)
{
    char hex[33];
    buf_adds(b, "SELECT " FAR_COLUMNS);
    for (size_t i = 0; i < count; i++) {
        text_hex(loads[i]->rows->shape->hash, 16, hex);
        buf_printf(b, "%s(%zu, '%s', ", i > 0 ? ", " : "", i, hex);
        pg_add_text(b, or_empty(loads[i]->path));
        buf_addc(b, ')');
    }
    buf_adds(b, ") v(n, h, p), LATERAL (SELECT * FROM ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, " WHERE pg_catalog.md5(path) = pg_catalog.md5(v.p) AND hash = v.h AND path = v.p AND ");
    add_equals(b, "source", loads[0]->source);
    buf_adds(b, " AND ");
    add_equals(b, "instance", loads[0]->instance);
    buf_adds(b, " AND kind IN ('load', 'carry') AND ");
    add_of_table_unindexed(b, loads[0]);
    add_gone(b, w, loads[0]);
    buf_adds(b, " LIMIT 1) l;");
}

static uint64_t number(const struct pgd_result *r, size_t row, size_t column)
{
    const char *text = pgd_cell(r, row, column);
    return text != NULL ? strtoull(text, NULL, 10) : 0;
}

bool pgd_read_receipt(const struct pgd_result *r, size_t row, size_t at, struct load *load, bool is_attempt)
{
    struct receipt *to = &load->receipt;
    if (row >= r->rows)
        return false;
    const char *id = pgd_cell(r, row, at), *hash = pgd_cell(r, row, at + 1);
    if (hash == NULL || !text_unhex(hash, to->hash, sizeof(to->hash)))
        memset(to->hash, 0, sizeof(to->hash));
    to->bytes = number(r, row, at + 2);
    to->parsed = number(r, row, at + 3);
    to->inserted = number(r, row, at + 4);
    to->updated = number(r, row, at + 5);
    to->unchanged = number(r, row, at + 6);
    to->rejected = number(r, row, at + 7);
    to->dest_rows = -1;
    snprintf(to->dest_id, sizeof(to->dest_id), "%s", or_empty(id));
    to->is_duplicate = true;
    to->is_resumed = is_attempt;
    return true;
}

void pgd_add_receipts(struct buf *b, const struct pgd_walker *w, struct load *const *loads, size_t count,
                      const char *kind)
{
    buf_adds(b, "INSERT INTO ");
    pgd_add_home(b, w, "_chute_loads");
    buf_adds(b, "(load_key, instance, source, flow, path, hash, \"schema\", \"table\", kind, bytes, parsed, inserted,"
                " updated, unchanged, rejected) VALUES ");
    for (size_t i = 0; i < count; i++) {
        const struct load *load = loads[i];
        const struct receipt *r = &load->receipt;
        char hex[33];
        text_hex(r->hash, sizeof(r->hash), hex);
        buf_adds(b, i > 0 ? ", (" : "(");
        if (load->load_key != NULL && load->load_key[0] != '\0')
            pg_add_text(b, load->load_key);
        else
            buf_adds(b, "'none-' || pg_catalog.gen_random_uuid()");
        const char *const texts[] = {load->instance, load->source, load->plan->flow, load->path, hex, load->space,
                                     load->table,    kind};
        for (size_t k = 0; k < sizeof(texts) / sizeof(texts[0]); k++) {
            buf_adds(b, ", ");
            pg_add_text(b, or_empty(texts[k]));
        }
        buf_printf(b, ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ")", r->bytes,
                   r->parsed, r->inserted, r->updated, r->unchanged, r->rejected);
    }
    buf_adds(b, " RETURNING id;");
}

void pgd_clear_receipt(struct load *load)
{
    memset(&load->receipt, 0, sizeof(load->receipt));
    load->receipt.dest_rows = -1;
}

enum err_code pgd_complete_receipt(struct pgd_walker *w, struct load *load)
{
    struct receipt *r = &load->receipt;
    const struct rows_result *result = &load->rows->result;
    memcpy(r->hash, result->hash, sizeof(r->hash));
    r->bytes = result->bytes;
    r->parsed = result->records;
    r->rejected = result->rejected;
    if (r->parsed == r->inserted + r->updated + r->unchanged + r->rejected)
        return ERR_NONE;
    return err_set(w->err, ERR_SYSTEM, true,
                   "the numbers don't add up: %" PRIu64 " rows in the file, but %" PRIu64 " inserted, %" PRIu64
                   " updated, %" PRIu64 " unchanged, %" PRIu64 " rejected; nothing was committed",
                   r->parsed, r->inserted, r->updated, r->unchanged, r->rejected);
}
