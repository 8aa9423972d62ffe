/*
 * load.h -- what the destinations share, and the list of them.
 */
#ifndef CHUTE_LOAD_H
#define CHUTE_LOAD_H

#include "dest.h"

extern const struct dest_ops dest_sqlite;
extern const struct dest_ops dest_keboola;  /* in builds that have curl */
extern const struct dest_ops dest_azure;    /* the same */
extern const struct dest_ops dest_postgres; /* in builds that have libpq */

/*
 * Columns of a file as a flow wants them in a table: names legalised and made unique, row number first, types decided.
 * Shared by all drivers that make tables.
 */
enum column_type {
    TYPE_TEXT,
    TYPE_BIGINT,
    TYPE_DOUBLE,
    TYPE_DECIMAL,
    TYPE_BOOLEAN,
    TYPE_DATE,
    TYPE_TIMESTAMP,
    TYPE_TIMESTAMPTZ,
    TYPE_JSON /* of `records` only */
};
extern const char *const column_type_names[]; /* as in the configuration's `types` */

/*
 * Compare the header of a file with the columns a table has (both legal names, SAME decides equality), in words a
 * person can act on: "missing: b; extra: c; renamed: x -> y; reordered: ...". Returns 0 when equal in names and order.
 */
enum header_difference { HEADER_MISSING = 1, HEADER_EXTRA = 2, HEADER_REORDERED = 4, HEADER_RENAMED = 8 };
unsigned header_compare(const char *const *want, size_t want_count, const char *const *have, size_t have_count,
                        bool (*same)(const char *a, const char *b), char *ret_text, size_t size);

#endif
