/*
 * receipt.h -- the durable record of a finished job.
 *
 * Filled by the driver after the destination confirmed, completed and stored by
 * the job. parsed = inserted + updated + unchanged + rejected, always.
 */
#ifndef CHUTE_RECEIPT_H
#define CHUTE_RECEIPT_H

#include <stdbool.h>
#include <stdint.h>

struct receipt {
    uint8_t hash[16]; /* XXH3-128 of the file's bytes */
    uint64_t bytes;
    uint64_t parsed; /* data records in the file */
    uint64_t inserted;
    uint64_t updated;
    uint64_t unchanged; /* rows that an older or equal row of the table won over */
    uint64_t rejected;
    int64_t dest_rows;  /* rows the table holds afterwards by the destination's own count; -1: not asked */
    char dest_id[64];   /* the destination's own name for the load (job id), "" if it has none */
    char warnings[200]; /* what the destination said besides, "" */
    char dialect[64];   /* what was chosen: "comma, utf-8, gzip" */
    bool is_duplicate;  /* nothing was written: the destination already holds this version */
    bool
        is_resumed; /* with is_duplicate: it was this very attempt (load_key) that wrote it, before a crash; HASH and
                       the   counts are those it stored, perhaps of an older version of the file than the one opened now
                     */
    bool created_table; /* the load made the table */
};

#endif
