/*
 * postgres_script.h -- SQL files in a PostgreSQL database: `init` and pipelines.
 *
 * On a connection of their own, opened for each run and closed after it, so that loads go on beside them and nothing a
 * script changed of its session outlives it. Loop thread only; files are read on the pool.
 */
#ifndef CHUTE_POSTGRES_SCRIPT_H
#define CHUTE_POSTGRES_SCRIPT_H

#include "dest.h"
#include "pg.h"

struct pgd_scripter;

/*
 * What OPTIONS point to is borrowed till close; their callbacks and application_name are ours. LOCK_TIMEOUT_MS: how
 * long a statement waits for a lock, unless its script says otherwise.
 */
enum err_code pgd_scripter_new(uv_loop_t *loop, const struct pg_options *options, uint64_t lock_timeout_ms,
                               struct pgd_scripter **ret, struct err *err);
/* scripts->finished() comes once, on a later turn. One after the other, in the order of these calls. */
void pgd_scripter_run(struct pgd_scripter *s, struct scripts *scripts);
/* finished() still comes, soon: ERR_STOPPED, unless it was over before. */
void pgd_scripter_abort(struct pgd_scripter *s, struct scripts *scripts);
/* Abort all of them. */
void pgd_scripter_hurry(struct pgd_scripter *s);
/* All have finished. CLOSED comes once, on a later turn. */
void pgd_scripter_close(struct pgd_scripter *s, void (*closed)(void *arg), void *arg);

#endif
