/*
 * postgres_line.h -- a connection as the thread that walks a load sees it: ask, wait, go on.
 *
 * Why: rows are pulled on a thread of the load, since that blocks; libpq lives on the loop, since that must not. So the
 * walk asks here and sleeps until the loop has the answer, and reads as the straight sequence of steps that it is. No
 * thread waits for an idle connection: a walk has one only while it runs, like every load of this room.
 *
 * One thread walks at a time (the walker); what else may be called where is said below.
 */
#ifndef CHUTE_POSTGRES_LINE_H
#define CHUTE_POSTGRES_LINE_H

#include "arena.h"
#include "err.h"
#include "pg.h"

#include <stdatomic.h>
#include <uv.h>

struct pgd_line;

/* One result of one statement; cells are NUL-terminated, NULL is null. */
struct pgd_result {
    size_t rows, columns;
    const char *const *cells; /* row-major */
    uint64_t affected;
};
struct pgd_results {
    struct pgd_result *items;
    size_t count, capacity;
};
static inline const char *pgd_cell(const struct pgd_result *r, size_t row, size_t column)
{
    return row < r->rows && column < r->columns ? r->cells[row * r->columns + column] : NULL;
}

/* What the server said to the last request of the walker; texts are cut. */
struct pgd_fault {
    struct err err; /* as pg.h classifies it */
    char sqlstate[6];
    bool maybe_done;
    char message[400], detail[400], hint[200], context[300], constraint[128], column[128];
};

/* ---- loop thread ---- */

/* What OPTIONS point to is borrowed till pgd_line_close(); their callbacks are ours. */
enum err_code pgd_line_new(uv_loop_t *loop, const struct pg_options *options, struct pgd_line **ret, struct err *err);
/* Look at the options without connecting; where() knows afterwards what they say. Errors are those of pg_open(). */
enum err_code pgd_line_try_out(struct pgd_line *line, struct err *err);
/* End what is asked now with ERR_STOPPED; the connection stays if it can. */
void pgd_line_cancel(struct pgd_line *line);
/* Close the connection, if nobody walks; the next pgd_line_connect() makes another. */
void pgd_line_hang_up(struct pgd_line *line);
/* The same even while somebody walks: all that is asked, now and later, ends with ERR_STOPPED. */
void pgd_line_hurry(struct pgd_line *line);
bool pgd_line_is_up(const struct pgd_line *line);
/* Nobody walks. CLOSED comes once, on a later turn; LINE is gone then. */
void pgd_line_close(struct pgd_line *line, void (*closed)(void *arg), void *arg);
/* For people, without secrets; as pg_where(). "" before the first connection. */
void pgd_line_where(const struct pgd_line *line, char *ret, size_t size);

/* ---- the walker ---- */

/* Connect if there is no connection. *RET_FRESH: it is a new one, on which nothing has been said yet. */
enum err_code pgd_line_connect(struct pgd_line *line, bool *ret_fresh, struct err *err);
int pgd_line_server_version(const struct pgd_line *line); /* 150004, of the last connection */
/*
 * Ask SQL (several statements are one request) and wait. RET, if not NULL, gets a result for each statement, in ARENA.
 * PATIENT: the server may compute for as long as it likes. ERR is filled as pg.h says; more is in pgd_line_fault().
 */
enum err_code pgd_line_ask(struct pgd_line *line, const char *sql, bool patient, struct arena *arena,
                           struct pgd_results *ret, struct err *err);
const struct pgd_fault *pgd_line_fault(const struct pgd_line *line);
/* What the server warned of since the last call, "" nothing: one line. */
void pgd_line_warning(struct pgd_line *line, char *ret, size_t size);

/* Begin COPY … FROM STDIN; then put any number of times, then end or abort. */
enum err_code pgd_line_copy(struct pgd_line *line, const char *sql, struct err *err);
/* DATA (malloc'ed) is the line's from here on, whatever is returned. Waits while the server has enough to do. An error
 * is what the server said to the COPY: nothing but pgd_line_ask() may follow. */
enum err_code pgd_line_put(struct pgd_line *line, char *data, size_t size, struct err *err);
/* *RET_ROWS: by the server's count. */
enum err_code pgd_line_copy_end(struct pgd_line *line, uint64_t *ret_rows, struct err *err);
/* Give it up; nothing to do after an error. */
void pgd_line_copy_abort(struct pgd_line *line);

/* Is a transaction open (or aborted)? Then say ROLLBACK, unless the connection is gone. Never fails. */
void pgd_line_rollback(struct pgd_line *line);
/* Was the connection lost, or is it in a state that nobody should go on with? */
bool pgd_line_is_lost(const struct pgd_line *line);

#endif
