/*
 * postgres_script.c -- see postgres_script.h.
 *
 *   read the files (pool) → connect → BEGIN and settings → each file as one request → COMMIT → hang up → finished()
 *
 * A file goes to the server whole, by the simple protocol, so that nothing of ours decides where a statement ends; our
 * own splitting (script.h) only refuses what would end the transaction, before anything has run, and says where an
 * error was that the server gave no position for.
 */
#include "postgres_script.h"

#include "buf.h"
#include "log.h"
#include "script.h"
#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LOCK_CLASS 0x63687573 /* of our advisory locks; see begin() */
#define NOTICES_MAX 50        /* of one run; the rest is counted */

struct text {
    char *data;
    size_t size;
};

struct pgd_scripter {
    uv_loop_t *loop;
    struct pg_options pg;
    char application[80];
    uint64_t lock_timeout_ms;
    struct scripts *queue;   /* the first is CURRENT, if there is one */
    struct scripts *ended;   /* their finished() is due */
    struct scripts *current; /* what follows is of it */
    struct work work;
    struct text *texts;
    size_t next_file;
    struct pg *conn;
    struct err err;
    bool is_hanging_up;
    unsigned notices;
    uv_timer_t soon;
    void (*closed)(void *arg);
    void *closed_arg;
};

static void start_next(struct pgd_scripter *s);

/* ---- the end of a run ---- */

static void tell_ended(struct pgd_scripter *s)
{
    while (s->ended != NULL) {
        struct scripts *scripts = s->ended;
        s->ended = scripts->next;
        scripts->next = NULL;
        scripts->finished(scripts);
    }
}

static void on_soon(uv_timer_t *timer)
{
    struct pgd_scripter *s = timer->data;
    tell_ended(s);
    start_next(s);
}

static void end_later(struct pgd_scripter *s, struct scripts *scripts, const struct err *err)
{
    struct scripts **end = &s->ended;
    while (*end != NULL)
        end = &(*end)->next;
    scripts->err = *err;
    scripts->next = NULL;
    *end = scripts;
    uv_timer_start(&s->soon, on_soon, 0, 0);
}

static void take_out(struct pgd_scripter *s, const struct scripts *scripts)
{
    for (struct scripts **at = &s->queue; *at != NULL; at = &(*at)->next)
        if (*at == scripts) {
            *at = scripts->next;
            return;
        }
}

/* The connection is gone, and with it the transaction, if it was not committed. */
static void on_hung_up(void *arg)
{
    struct pgd_scripter *s = arg;
    struct scripts *scripts = s->current;
    if (s->notices > NOTICES_MAX)
        log_info("%s: the server said %u more things", scripts->name, s->notices - NOTICES_MAX);
    for (size_t i = 0; s->texts != NULL && i < scripts->file_count; i++)
        free(s->texts[i].data);
    free(s->texts);
    s->texts = NULL;
    s->conn = NULL;
    s->current = NULL;
    take_out(s, scripts);
    if (s->err.code != ERR_NONE)
        scripts->statements = 0; /* none of them was kept */
    end_later(s, scripts, &s->err);
}

/* May be asked for twice: who is cut short while it connects hears of that before it is gone. */
static void hang_up(struct pgd_scripter *s)
{
    if (s->is_hanging_up)
        return;
    s->is_hanging_up = true;
    if (s->conn != NULL)
        pg_close(s->conn, on_hung_up, s);
    else
        on_hung_up(s);
}

static bool is_stopped(const struct pgd_scripter *s)
{
    return atomic_load(&s->current->stop);
}

/* ---- what the server says ---- */

static void on_notice(void *arg, const char *severity, const struct pg_fault *notice)
{
    struct pgd_scripter *s = arg;
    enum log_level level = strcmp(severity, "WARNING") == 0  ? LOG_WARN
                           : strcmp(severity, "NOTICE") == 0 ? LOG_INFO
                                                             : LOG_DEBUG;
    if (s->current == NULL || ++s->notices > NOTICES_MAX)
        return;
    log_write(level, NULL, "%s: the server says %s: %s%s%s", s->current->name, severity, notice->message,
              notice->hint[0] != '\0' ? "; " : "", notice->hint);
}

/* Where statement NUMBER (from 1) of TEXT begins. */
static size_t statement_offset(const char *text, size_t number)
{
    size_t at = script_skip(text, 0);
    for (size_t n = 1; n < number && text[at] != '\0'; n++)
        at = script_skip(text, script_end(text, at));
    return at;
}

/* Which statement of TEXT the byte at OFFSET is in (from 1); *RET_BEGIN: where that one begins. */
static size_t statement_of(const char *text, size_t offset, size_t *ret_begin)
{
    size_t number = 1, at = script_skip(text, 0);
    for (;;) {
        size_t end = script_end(text, at), next = script_skip(text, end);
        *ret_begin = at;
        if (offset <= end || text[next] == '\0')
            return number;
        at = next;
        number++;
    }
}

/* s->err from what the server said to file number FILE. */
static void fail_in_file(struct pgd_scripter *s, size_t file, const struct pg_answer *answer)
{
    const char *text = s->texts[file].data;
    const struct pg_fault *f = &answer->fault;
    char words[SCRIPT_WORDS_MAX];
    size_t number = answer->statements + 1, begin, at;
    s->err = answer->err;
    if (f->sqlstate[0] == '\0') { /* not the server's words: the connection, memory, a stop */
        err_wrap(&s->err, "%s", s->current->files[file]);
        return;
    }
    if (f->position > 0) {
        at = script_offset(text, f->position);
        number = statement_of(text, at, &begin);
    } else {
        at = begin = statement_offset(text, number);
    }
    /* What the server objects to is the script's, unless it may pass or is about our rights. */
    if (s->err.code == ERR_REMOTE && !s->err.retryable)
        s->err.code = ERR_INPUT;
    err_set(&s->err, s->err.code, s->err.retryable, "%s:%llu: statement %zu (\"%s\"): %s%s%s%s%s%s%s",
            s->current->files[file], (unsigned long long)script_line(text, at), number,
            script_words(text, begin, words), f->message, f->detail[0] != '\0' ? "; " : "", f->detail,
            f->hint[0] != '\0' ? "; " : "", f->hint, f->context[0] != '\0' ? "; in " : "", f->context);
    for (char *c = s->err.text; *c != '\0'; c++)
        if (*c == '\n')
            *c = ' ';
}

/* The same for a request of our own. */
static void fail_in(struct pgd_scripter *s, const char *what, const struct pg_answer *answer)
{
    s->err = answer->err;
    if (s->err.code == ERR_REMOTE && !s->err.retryable)
        s->err.code = ERR_INPUT; /* "chute.x" refused, a deferred constraint: for a hand */
    err_wrap(&s->err, "%s", what);
}

static void fail_stopped(struct pgd_scripter *s)
{
    err_set(&s->err, ERR_STOPPED, true, "stopped");
}

/* ---- the steps ---- */

static void ask(struct pgd_scripter *s, const char *sql, pg_done *done)
{
    /* A statement may compute for as long as it likes: the server's own statement_timeout is for who minds. */
    const struct pg_request r = {.sql = sql, .stall_timeout_ms = UINT64_MAX, .done = done, .arg = s};
    if (is_stopped(s))
        fail_stopped(s);
    else if (pg_start(s->conn, &r, &s->err) == ERR_NONE)
        return;
    hang_up(s);
}

static void on_committed(void *arg, const struct pg_answer *answer)
{
    struct pgd_scripter *s = arg;
    if (answer->err.code != ERR_NONE)
        fail_in(s, "commit", answer);
    hang_up(s);
}

static void send_next(struct pgd_scripter *s);

static void on_file_done(void *arg, const struct pg_answer *answer)
{
    struct pgd_scripter *s = arg;
    size_t file = s->next_file - 1;
    s->current->statements += answer->statements;
    if (answer->err.code != ERR_NONE) {
        fail_in_file(s, file, answer);
        hang_up(s);
    } else if (pg_tx(s->conn) != PG_TX_OPEN) {
        /* Refused before by its words; this is for what words don't show. */
        err_set(&s->err, ERR_INPUT, false,
                "%s: ended the transaction that all scripts of %s share; part of it may have been kept",
                s->current->files[file], s->current->name);
        hang_up(s);
    } else {
        send_next(s);
    }
}

static void send_next(struct pgd_scripter *s)
{
    while (s->next_file < s->current->file_count &&
           s->texts[s->next_file].data[script_skip(s->texts[s->next_file].data, 0)] == '\0')
        s->next_file++; /* nothing but comments */
    if (s->next_file == s->current->file_count)
        ask(s, "COMMIT", on_committed);
    else
        ask(s, s->texts[s->next_file++].data, on_file_done);
}

static void on_begun(void *arg, const struct pg_answer *answer)
{
    struct pgd_scripter *s = arg;
    if (answer->err.code == ERR_NONE) {
        send_next(s);
        return;
    }
    fail_in(s, "begin", answer);
    hang_up(s);
}

static void begin(struct pgd_scripter *s)
{
    struct buf sql;
    buf_init(&sql);
    buf_printf(&sql, "BEGIN; SET LOCAL lock_timeout = '%llums'", (unsigned long long)s->lock_timeout_ms);
    /* Several chutes may prepare and refresh one database: those of one name take turns. Two CREATE … IF NOT EXISTS at
     * the same time are an error of one of them. */
    buf_printf(&sql, "; SELECT pg_catalog.pg_advisory_xact_lock(%d, pg_catalog.hashtext(", LOCK_CLASS);
    pg_add_text(&sql, s->current->name);
    buf_adds(&sql, "))");
    for (size_t i = 0; i < s->current->setting_count; i++) {
        buf_printf(&sql, "; SELECT pg_catalog.set_config('chute.%s', ", s->current->settings[i].name);
        pg_add_text(&sql, s->current->settings[i].value);
        buf_adds(&sql, ", true)");
    }
    if (sql.failed) {
        err_nomem(&s->err);
        hang_up(s);
    } else {
        ask(s, sql.data, on_begun);
    }
    buf_done(&sql);
}

static void on_connected(void *arg, const struct pg_answer *answer)
{
    struct pgd_scripter *s = arg;
    if (answer->err.code == ERR_NONE) {
        begin(s);
        return;
    }
    s->err = answer->err;
    hang_up(s);
}

/* ---- the files, on the pool ---- */

/* What would end the transaction is refused before anything has run. */
static enum err_code check_words(const char *file, const char *text, struct err *err)
{
    static const char *const enders[] = {"begin", "start", "commit", "end", "rollback", "abort", "prepare"};
    size_t number = 1;
    for (size_t at = script_skip(text, 0); text[at] != '\0'; number++) {
        size_t n = strspn(text + at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
        char words[SCRIPT_WORDS_MAX];
        script_words(text, at, words);
        bool ends = false;
        for (size_t i = 0; i < sizeof enders / sizeof enders[0]; i++)
            ends = ends || (strlen(enders[i]) == n && strncasecmp(text + at, enders[i], n) == 0);
        /* of a savepoint; and a prepared statement is no prepared transaction */
        if (ends && (strncasecmp(words, "rollback to ", 12) == 0 || strcasestr(words, "savepoint") != NULL ||
                     (strncasecmp(words, "prepare ", 8) == 0 && strncasecmp(words, "prepare transaction", 19) != 0)))
            ends = false;
        if (ends)
            return err_set(
                err, ERR_INPUT, false,
                "%s:%llu: statement %zu (\"%s\"): BEGIN, COMMIT and ROLLBACK are chute's: all scripts run in "
                "one transaction; remove it",
                file, (unsigned long long)script_line(text, at), number, words);
        at = script_skip(text, script_end(text, at));
    }
    return ERR_NONE;
}

static void read_files(struct work *work)
{
    struct pgd_scripter *s = work->arg;
    for (size_t i = 0; i < s->current->file_count; i++)
        if (script_read(s->current->files[i], &s->texts[i].data, &s->texts[i].size, &s->err) != ERR_NONE ||
            check_words(s->current->files[i], s->texts[i].data, &s->err) != ERR_NONE)
            return;
}

static void on_files_read(struct work *work)
{
    struct pgd_scripter *s = work->arg;
    struct pg_options options = s->pg;
    snprintf(s->application, sizeof s->application, "chute %.40s", s->current->name);
    options.application_name = s->application;
    options.on_notice = on_notice;
    options.on_lost = NULL;
    options.arg = s;
    if (s->err.code == ERR_NONE && is_stopped(s))
        fail_stopped(s);
    if (s->err.code != ERR_NONE || pg_open(s->loop, &options, &s->conn, &s->err) != ERR_NONE)
        hang_up(s);
    else
        pg_connect(s->conn, on_connected, s);
}

static void start_next(struct pgd_scripter *s)
{
    if (s->current != NULL || s->queue == NULL)
        return;
    s->current = s->queue;
    s->current->statements = 0;
    s->next_file = 0;
    s->notices = 0;
    s->is_hanging_up = false;
    err_clear(&s->err);
    s->texts = calloc(s->current->file_count + 1, sizeof *s->texts);
    s->work.arg = s;
    if (s->texts == NULL)
        err_nomem(&s->err);
    else if (is_stopped(s))
        fail_stopped(s);
    else if (work_start(s->loop, &s->work, read_files, on_files_read, &s->err) == ERR_NONE)
        return;
    hang_up(s);
}

/* ---- what the driver asks for ---- */

enum err_code pgd_scripter_new(uv_loop_t *loop, const struct pg_options *options, uint64_t lock_timeout_ms,
                               struct pgd_scripter **ret, struct err *err)
{
    struct pgd_scripter *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_nomem(err);
    s->loop = loop;
    s->pg = *options;
    s->lock_timeout_ms = lock_timeout_ms;
    uv_timer_init(loop, &s->soon);
    s->soon.data = s;
    *ret = s;
    return ERR_NONE;
}

void pgd_scripter_run(struct pgd_scripter *s, struct scripts *scripts)
{
    struct scripts **end = &s->queue;
    while (*end != NULL)
        end = &(*end)->next;
    scripts->next = NULL;
    *end = scripts;
    uv_timer_start(&s->soon, on_soon, 0, 0);
}

void pgd_scripter_abort(struct pgd_scripter *s, struct scripts *scripts)
{
    struct err err;
    atomic_store(&scripts->stop, true);
    for (const struct scripts *e = s->ended; e != NULL; e = e->next)
        if (e == scripts) /* it is over; finished() is on its way */
            return;
    if (scripts != s->current) {
        take_out(s, scripts);
        err_set(&err, ERR_STOPPED, true, "stopped before it began");
        end_later(s, scripts, &err);
    } else if (s->conn != NULL && pg_state(s->conn) == PG_BUSY) {
        pg_cancel(s->conn); /* its done() comes, and hangs up */
    } else if (s->conn != NULL && pg_state(s->conn) == PG_CONNECTING) {
        hang_up(s); /* on_connected() comes first, with ERR_STOPPED */
    }
}

void pgd_scripter_hurry(struct pgd_scripter *s)
{
    while (s->queue != NULL && s->queue != s->current)
        pgd_scripter_abort(s, s->queue);
    while (s->current != NULL && s->current->next != NULL)
        pgd_scripter_abort(s, s->current->next);
    if (s->current != NULL)
        pgd_scripter_abort(s, s->current);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct pgd_scripter *s = handle->data;
    void (*closed)(void *) = s->closed;
    void *arg = s->closed_arg;
    free(s);
    closed(arg);
}

void pgd_scripter_close(struct pgd_scripter *s, void (*closed)(void *arg), void *arg)
{
    s->closed = closed;
    s->closed_arg = arg;
    uv_close((uv_handle_t *)&s->soon, on_timer_closed);
}
