/*
 * log.c -- from a message to lines: context, secrets, repeats, and who wants it.
 *
 * Everything is behind one lock. A line is built in memory that stays, and a message is cut at MESSAGE_MAX, so that
 * saying that memory or disk is short needs neither.
 */
#include "log.h"
#include "buf.h"
#include "clock.h"
#include "log_internal.h"
#include "text.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MESSAGE_MAX 4096
#define CONTEXT_MAX 4096
#define REPEAT_MS 10000
#define SECRET_MIN 4

enum { C_FLOW, C_FILE, C_DEST, C_SOURCE, C_COUNT };
static const char *const context_names[C_COUNT] = {"flow", "file", "dest", "source"};
static const char *const level_names[] = {"debug", "info", "warn", "error"};

struct secret {
    char *text;
    size_t size;
};

/* A message on its way, and the last one, in case it comes again. Secrets are out of it already. */
struct message {
    enum log_level level;
    uint64_t key;
    uint64_t at_ms; /* monotonic */
    bool has[C_COUNT];
    char context[C_COUNT][CONTEXT_MAX];
    char text[2 * MESSAGE_MAX];
};

static struct {
    pthread_mutex_t lock;
    struct sink *sinks;
    size_t sink_count;
    struct sink plain;      /* while there are no others */
    struct secret *secrets; /* longest first */
    size_t secret_count;
    struct message last;
    uint64_t repeats; /* of last, not told yet */
    struct message now;
    struct buf line;
    bool is_started;
    _Atomic int lowest; /* level that any output wants */
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .lowest = LOG_INFO};

static void start(void)
{
    if (state.is_started)
        return;
    static const struct log_output plain = {.to = "stderr", .level = LOG_INFO, .format = LOG_TEXT};
    buf_init(&state.line);
    if (sink_open(&state.plain, &plain, NULL) != ERR_NONE) /* no memory for its name: it works without */
        state.plain = (struct sink){.fd = STDERR_FILENO, .level = LOG_INFO, .format = LOG_TEXT};
    state.is_started = true;
}

static struct sink *sinks(size_t *ret_count)
{
    *ret_count = state.sink_count > 0 ? state.sink_count : 1;
    return state.sink_count > 0 ? state.sinks : &state.plain;
}

bool log_wants(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&state.lowest, memory_order_relaxed);
}

/* Returns the new length. */
static size_t redact(char *text)
{
    size_t n = strlen(text);
    for (size_t i = 0; i < state.secret_count; i++) {
        const struct secret *s = &state.secrets[i];
        for (char *at = text; (at = memmem(at, n - (size_t)(at - text), s->text, s->size)) != NULL; at += 3) {
            memcpy(at, "***", 3);
            memmove(at + 3, at + s->size, n - (size_t)(at - text) - s->size + 1);
            n -= s->size - 3;
        }
    }
    return n;
}

void log_redact(char *text)
{
    pthread_mutex_lock(&state.lock);
    redact(text);
    pthread_mutex_unlock(&state.lock);
}

static bool add_secret(const char *text, size_t size)
{
    size_t at = 0;
    for (size_t i = 0; i < state.secret_count; i++) {
        if (strcmp(state.secrets[i].text, text) == 0)
            return true;
        if (state.secrets[i].size >= size)
            at = i + 1;
    }
    char *copy = strdup(text);
    struct secret *more = copy == NULL ? NULL : realloc(state.secrets, (state.secret_count + 1) * sizeof *more);
    if (more == NULL) {
        free(copy);
        return false;
    }
    memmove(more + at + 1, more + at, (state.secret_count - at) * sizeof *more);
    more[at] = (struct secret){copy, size};
    state.secrets = more;
    state.secret_count++;
    return true;
}

/* The way it looks inside a URL. */
static bool add_encoded(const char *secret)
{
    struct buf b;
    buf_init(&b);
    for (const unsigned char *p = (const unsigned char *)secret; *p != '\0'; p++) {
        bool is_plain = (*p >= '0' && *p <= '9') || (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z') ||
                        strchr("-._~", *p) != NULL;
        if (is_plain)
            buf_addc(&b, (char)*p);
        else
            buf_printf(&b, "%%%02X", *p);
    }
    bool is_kept = !b.failed && (strcmp(b.data, secret) == 0 || add_secret(b.data, b.size));
    buf_done(&b);
    return is_kept;
}

bool log_secret(const char *secret)
{
    size_t n = strlen(secret);
    if (n < SECRET_MIN)
        return true;
    pthread_mutex_lock(&state.lock);
    bool is_kept = add_secret(secret, n) && add_encoded(secret);
    pthread_mutex_unlock(&state.lock);
    return is_kept;
}

static void add_text_context(struct buf *b, const char *name, const char *value)
{
    char shown[CONTEXT_MAX];
    text_printable(value, shown, sizeof shown);
    const char *quote = *shown == '\0' || strpbrk(shown, " \"=") != NULL ? "\"" : "";
    buf_printf(b, "%s=%s%s%s ", name, quote, shown, quote);
}

static void build_text(struct buf *b, const struct message *m, const char *time, uint64_t repeats, bool has_colour)
{
    static const char *const colours[] = {"\033[2m", "\033[0m", "\033[33m", "\033[31m"};
    static const char *const padding[] = {"", " ", " ", ""};
    char shown[MESSAGE_MAX + 1];
    buf_printf(b, "%s ", time);
    if (has_colour)
        buf_adds(b, colours[m->level]);
    buf_printf(b, "%s%s", level_names[m->level], padding[m->level]);
    if (has_colour)
        buf_adds(b, "\033[0m");
    buf_addc(b, ' ');
    size_t before = b->size;
    for (int c = 0; c < C_COUNT; c++) {
        if (m->has[c])
            add_text_context(b, context_names[c], m->context[c]);
    }
    if (b->size > before) {
        b->size--;
        buf_adds(b, ": ");
    }
    buf_adds(b, text_printable(m->text, shown, sizeof shown));
    if (repeats > 0)
        buf_printf(b, " (repeated %" PRIu64 " times)", repeats);
    buf_addc(b, '\n');
}

static void build_json(struct buf *b, const struct message *m, const char *time, uint64_t repeats)
{
    buf_printf(b, "{\"time\":\"%s\",\"level\":\"%s\"", time, level_names[m->level]);
    for (int c = 0; c < C_COUNT; c++) {
        if (m->has[c]) {
            buf_printf(b, ",\"%s\":", context_names[c]);
            buf_add_json(b, m->context[c]);
        }
    }
    buf_adds(b, ",\"message\":");
    buf_add_json(b, m->text);
    if (repeats > 0)
        buf_printf(b, ",\"repeated\":%" PRIu64, repeats);
    buf_adds(b, "}\n");
}

static bool write_to(struct sink *s, const struct message *m, uint64_t repeats)
{
    struct buf *b = &state.line;
    char time[32];
    clock_format(clock_wall_ms(), time, sizeof time);
    buf_clear(b);
    if (s->format == LOG_JSON)
        build_json(b, m, time, repeats);
    else
        build_text(b, m, time, repeats, s->has_colour);
    return !b->failed && sink_write(s, b->data, b->size);
}

/* Tell how many lines are missing here, as soon as there is a place to tell it. */
static bool confess(struct sink *s)
{
    static struct message m; /* under the lock, like all else here */
    if (s->lost == 0)
        return true;
    m.level = LOG_WARN;
    snprintf(m.text, sizeof m.text, "%" PRIu64 " lines of this log could not be written and are missing here", s->lost);
    if (!write_to(s, &m, 0))
        return false;
    s->lost = 0;
    return true;
}

static void emit(const struct message *m, uint64_t repeats)
{
    size_t count;
    struct sink *all = sinks(&count);
    for (size_t i = 0; i < count; i++) {
        if ((int)m->level < all[i].level)
            continue;
        if (!confess(&all[i]) || !write_to(&all[i], m, repeats))
            all[i].lost++;
    }
}

static void tell_repeats(void)
{
    if (state.repeats > 0)
        emit(&state.last, state.repeats);
    state.repeats = 0;
}

static uint64_t mix(uint64_t hash, const char *s)
{
    do {
        hash = (hash ^ (unsigned char)*s) * UINT64_C(0x100000001b3);
    } while (*s++ != '\0');
    return hash;
}

/* What makes two messages the same one: every word. "2 rows" after "1 rows", or the second try after the first, is
 * news. */
static uint64_t key_of(const struct message *m)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325) + (uint64_t)m->level;
    for (int c = 0; c < C_COUNT; c++)
        hash = mix(hash, m->has[c] ? m->context[c] : "\x01");
    return mix(hash, m->text);
}

static void fill_context(struct message *m, const struct log_about *about)
{
    const char *values[C_COUNT] = {NULL};
    if (about != NULL) {
        values[C_FLOW] = about->flow;
        values[C_FILE] = about->file;
        values[C_DEST] = about->dest;
        values[C_SOURCE] = about->source;
    }
    for (int c = 0; c < C_COUNT; c++) {
        m->has[c] = values[c] != NULL;
        m->context[c][0] = '\0';
        if (m->has[c]) {
            snprintf(m->context[c], CONTEXT_MAX, "%s", values[c]);
            redact(m->context[c]);
        }
    }
}

/* More room than a line gets, so that a secret across the cut is hidden before it is cut. */
__attribute__((format(printf, 2, 0))) static void fill_text(struct message *m, const char *fmt, va_list args)
{
    int n = vsnprintf(m->text, sizeof m->text, fmt, args);
    if (n < 0)
        snprintf(m->text, sizeof m->text, "(a message that can't be shown: %s)", strerror(errno));
    size_t size = redact(m->text);
    if (n >= (int)sizeof m->text) { /* the cut may have left the beginning of one */
        size_t longest = state.secret_count > 0 ? state.secrets[0].size : 0;
        size -= size < longest ? size : longest;
    }
    if (size > MESSAGE_MAX - 4) {
        size = MESSAGE_MAX - 4;
        while (size > 0 && ((unsigned char)m->text[size] & 0xC0) == 0x80)
            size--;
        memcpy(m->text + size, "...", 4);
    } else {
        m->text[size] = '\0';
    }
}

void log_write(enum log_level level, const struct log_about *about, const char *fmt, ...)
{
    if (!log_wants(level))
        return;
    int before = errno; /* a message about a failure must not change it */
    pthread_mutex_lock(&state.lock);
    start();
    struct message *m = &state.now;
    va_list args;
    va_start(args, fmt);
    fill_text(m, fmt, args);
    va_end(args);
    fill_context(m, about);
    m->level = level;
    m->key = key_of(m);
    m->at_ms = clock_mono_ms();
    if (state.last.at_ms != 0 && state.last.key == m->key && m->at_ms - state.last.at_ms < REPEAT_MS) {
        state.repeats++;
    } else {
        tell_repeats();
        emit(m, 0);
        memcpy(&state.last, m, sizeof *m);
    }
    pthread_mutex_unlock(&state.lock);
    errno = before;
}

void log_flush(void)
{
    pthread_mutex_lock(&state.lock);
    start();
    tell_repeats();
    pthread_mutex_unlock(&state.lock);
}

static enum err_code check_twice(const struct log_output *outputs, size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(outputs[i].to, outputs[k].to) == 0)
                return err_set(err, ERR_CONFIG, false, "log: two outputs go to %s: give each its own file",
                               outputs[i].to);
        }
    }
    return ERR_NONE;
}

/* Put SINKS in the place of the old ones. */
static void replace_sinks(struct sink *new_sinks, size_t count)
{
    int lowest = count > 0 ? LOG_ERROR : LOG_INFO;
    for (size_t i = 0; i < count; i++) {
        if (new_sinks[i].level < lowest)
            lowest = new_sinks[i].level;
    }
    pthread_mutex_lock(&state.lock);
    start();
    tell_repeats();
    state.last.at_ms = 0;
    for (size_t i = 0; i < state.sink_count; i++)
        sink_done(&state.sinks[i]);
    free(state.sinks);
    state.sinks = new_sinks;
    state.sink_count = count;
    atomic_store(&state.lowest, lowest);
    pthread_mutex_unlock(&state.lock);
}

enum err_code log_open(const struct log_output *outputs, size_t count, struct err *err)
{
    if (check_twice(outputs, count, err) != ERR_NONE)
        return ERR_CONFIG;
    if (count == 0) {
        replace_sinks(NULL, 0);
        return ERR_NONE;
    }
    struct sink *opened = calloc(count, sizeof *opened);
    if (opened == NULL)
        return err_nomem(err);
    for (size_t i = 0; i < count; i++) {
        enum err_code code = sink_open(&opened[i], &outputs[i], err);
        if (code == ERR_NONE)
            continue;
        while (i-- > 0)
            sink_done(&opened[i]);
        free(opened);
        return code;
    }
    replace_sinks(opened, count);
    return ERR_NONE;
}

void log_reopen(void)
{
    pthread_mutex_lock(&state.lock);
    for (size_t i = 0; i < state.sink_count; i++)
        sink_reopen(&state.sinks[i]);
    pthread_mutex_unlock(&state.lock);
}

void log_close(void)
{
    replace_sinks(NULL, 0);
}
