/* pipeline_internal.h -- what the two files of this room share. */
#ifndef CHUTE_PIPELINE_INTERNAL_H
#define CHUTE_PIPELINE_INTERNAL_H

#include "pipeline.h"

/* In a ledger transaction: the run that is owed begins. */
enum err_code facts_begin(struct ledger_tx *tx, const char *name, struct err *err);
/* In a ledger transaction: a run ended as FACTS say. IS_SETTLED: what was owed when it began is owed no more. Sets
 * FACTS->is_wanted to what is owed now. */
enum err_code facts_end(struct ledger_tx *tx, const char *name, struct pipeline_facts *facts, bool is_settled,
                        struct err *err);
enum err_code facts_put(struct ledger_tx *tx, const char *name, const struct pipeline_facts *facts, struct err *err);
/* When the schedule asks for the next run: wall clock ms, perhaps in the past; INT64_MAX: it has none. */
int64_t plan_due(const struct pipeline_plan *plan, const struct pipeline_facts *facts, int64_t now_ms);

#endif
