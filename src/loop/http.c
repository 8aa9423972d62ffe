/*
 * http.c -- requests over curl_loop.h.
 *
 * curl is never entered from inside one of its callbacks: what our users ask for there (start, cancel, resume, close)
 * is noted and done by on_kick() on the next turn. done() is called only from the loop's callbacks.
 */
#include "http_internal.h"

#include "utlist.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONNECT_TIMEOUT_MS 30000
#define STALL_TIMEOUT_MS 120000
#define MAX_CONNECTIONS 8
#define IDLE_MS 1000 /* then what was kept for the next request is let go */

/* ---- later ----------------------------------------------------------------------------------------------------- */

static void on_kick(uv_idle_t *idle);

static void kick(struct http *h)
{
    if (!h->is_torn_down)
        uv_idle_start(&h->kick, on_kick);
}

void http_todo(struct http_transfer *t)
{
    struct http *h = t->http;
    if (t->is_ended) /* its own done() is running */
        return;
    if (!t->is_todo) {
        t->is_todo = true;
        t->todo_turn = h->turn;
        DL_APPEND2(h->todo, t, todo_prev, todo_next);
    }
    kick(h);
}

enum err_code http_fail_later(struct http_transfer *t, enum err_code code, bool retryable, const char *fmt, ...)
{
    if (t->err.code != ERR_NONE)
        return t->err.code;
    char text[sizeof t->err.text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err_set(&t->err, code, retryable, "%s: %s", t->host, text);
    http_todo(t);
    return code;
}

static void on_idle(uv_timer_t *timer)
{
    struct http *h = timer->data;
    if (h->transfers == NULL)
        curl_spare_drop(&h->spare, h->curl);
}

static void end(struct http_transfer *t, CURLcode result)
{
    struct http *h = t->http;
    t->is_ended = true;
    DL_DELETE(h->transfers, t);
    if (t->is_todo)
        DL_DELETE2(h->todo, t, todo_prev, todo_next);
    if (t->is_added) {
        curl_loop_remove(h->multi, t->easy);
        t->is_added = false;
    }
    if (h->transfers == NULL) { /* nothing of ours wakes the loop any more */
        uv_timer_stop(&h->watch);
        uv_timer_stop(&h->pace);
        if (h->is_closing)
            kick(h);
        else
            uv_timer_start(&h->idle, on_idle, IDLE_MS, 0);
    }
    http_transfer_end(t, result);
}

/* ---- what curl says -------------------------------------------------------------------------------------------- */

static struct http_transfer *transfer_of(struct http *h, CURL *easy)
{
    struct http_transfer *t = NULL;
    h->curl->easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&t); /* NULL: one of curl's own */
    return t;
}

static void on_done(void *arg, CURL *easy, CURLcode result)
{
    struct http_transfer *t = transfer_of(arg, easy);
    t->is_added = false;
    end(t, result);
}

/* curl tells us of headers by the line, which may take long. */
static void on_active(void *arg, CURL *easy)
{
    struct http_transfer *t = transfer_of(arg, easy);
    if (t != NULL)
        http_transfer_note_activity(t);
}

static void on_broken(void *arg, CURL *easy, const char *why)
{
    struct http *h = arg;
    struct http_transfer *t = easy != NULL ? transfer_of(h, easy) : NULL;
    if (t != NULL)
        http_fail_later(t, ERR_SYSTEM, true, "%s", why);
    if (easy == NULL)
        DL_FOREACH(h->transfers, t)
            http_fail_later(t, ERR_SYSTEM, true, "%s", why);
}

/* ---- timers ---------------------------------------------------------------------------------------------------- */

static void on_pace(uv_timer_t *timer);

static bool is_in_line(const struct http *h)
{
    const struct http_transfer *t;
    DL_FOREACH(h->transfers, t)
        if (t->send_turn.is_waiting || t->recv_turn.is_waiting)
            return true;
    return false;
}

/* Serve the lines of both limits, for whoever stands there, and come back while one of ours does. */
static void pace(struct http *h)
{
    uint64_t now_ns = uv_hrtime(), up_ns = 0, down_ns = 0;
    if (h->upload_rate != NULL)
        up_ns = rate_serve(h->upload_rate, now_ns);
    if (h->download_rate != NULL)
        down_ns = rate_serve(h->download_rate, now_ns);
    if (!is_in_line(h)) {
        uv_timer_stop(&h->pace);
        return;
    }
    uint64_t next_ns = up_ns == 0 || (down_ns != 0 && down_ns < up_ns) ? down_ns : up_ns;
    uv_timer_start(&h->pace, on_pace, next_ns / 1000000 + 1, 0);
}

static void on_pace(uv_timer_t *timer)
{
    pace(timer->data);
}

void http_pace_soon(struct http *h)
{
    h->is_pace_due = true;
    kick(h);
}

static void on_watch(uv_timer_t *timer);

/* Have a look at all transfers in AGAIN_MS, or earlier. */
static void watch_in(struct http *h, uint64_t again_ms)
{
    if (!uv_is_active((uv_handle_t *)&h->watch) || uv_timer_get_due_in(&h->watch) > again_ms)
        uv_timer_start(&h->watch, on_watch, again_ms, 0);
}

static void on_watch(uv_timer_t *timer)
{
    struct http *h = timer->data;
    struct http_transfer *t;
    DL_FOREACH(h->transfers, t) {
        uint64_t again_ms;
        if (http_transfer_is_stalled(t, uv_now(h->loop), &again_ms))
            http_fail_later(t, ERR_REMOTE, true, "no byte came or went for %llu ms",
                            (unsigned long long)t->r.stall_timeout_ms);
        else
            watch_in(h, again_ms);
    }
}

/* ---- the next turn --------------------------------------------------------------------------------------------- */

static bool add(struct http_transfer *t)
{
    struct http *h = t->http;
    uint64_t again_ms;
    CURLMcode failed = curl_loop_add(h->multi, t->easy);
    if (failed != CURLM_OK) {
        err_set(&t->err, ERR_SYSTEM, true, "%s: %s", t->host, h->curl->multi_strerror(failed));
        return false;
    }
    t->is_added = true;
    http_transfer_is_stalled(t, uv_now(h->loop), &again_ms);
    watch_in(h, again_ms);
    return true;
}

static void look_at(struct http_transfer *t)
{
    CURLcode result = CURLE_OK;
    if (t->is_cancelled || t->err.code != ERR_NONE || (!t->is_added && !add(t)) ||
        (result = http_transfer_resume(t)) != CURLE_OK)
        end(t, result);
}

static void tear_down(struct http *h);

static void on_kick(uv_idle_t *idle)
{
    struct http *h = idle->data;
    uv_idle_stop(idle);
    uint64_t now = h->turn++; /* what is asked for from here on is for the next turn */
    if (h->is_pace_due) {
        h->is_pace_due = false;
        pace(h); /* those whose turn it is are at the end of the list now */
    }
    while (h->todo != NULL && h->todo->todo_turn <= now) {
        struct http_transfer *t = h->todo;
        DL_DELETE2(h->todo, t, todo_prev, todo_next);
        t->is_todo = false;
        look_at(t);
    }
    curl_loop_drive(h->multi); /* what is new begins now, not after curl's timer */
    if (h->is_closing && h->transfers == NULL)
        tear_down(h);
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

static void free_http(struct http *h)
{
    free(h->user_agent);
    if (h->proxy != NULL)
        explicit_bzero(h->proxy, strlen(h->proxy));
    free(h->proxy);
    free(h->ca_file);
    free(h->protocols);
    free(h);
}

static void count_closed(void *arg)
{
    struct http *h = arg;
    if (--h->handles > 0)
        return;
    void (*closed)(void *arg) = h->closed;
    void *closed_arg = h->closed_arg;
    free_http(h);
    if (closed != NULL)
        closed(closed_arg);
}

static void on_handle_closed(uv_handle_t *handle)
{
    count_closed(handle->data);
}

static void tear_down(struct http *h)
{
    uv_handle_t *ours[] = {(uv_handle_t *)&h->kick, (uv_handle_t *)&h->pace, (uv_handle_t *)&h->watch,
                           (uv_handle_t *)&h->idle};
    if (h->is_torn_down)
        return;
    h->is_torn_down = true;
    curl_spare_drop(&h->spare, h->curl);
    curl_loop_close(h->multi, count_closed, h);
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        uv_close(ours[i], on_handle_closed);
}

/* Is there a file in PATH that OpenSSL would find by its hash? Not so where somebody copied only the bundle. */
static bool has_hashes(const char *path)
{
    DIR *dir = opendir(path);
    bool found = false;
    if (dir == NULL)
        return false;
    for (const struct dirent *entry; !found && (entry = readdir(dir)) != NULL;)
        found = strspn(entry->d_name, "0123456789abcdef") == 8 && strcmp(entry->d_name + 8, ".0") == 0;
    closedir(dir);
    return found;
}

static enum err_code check_ca_file(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, ERR_CONFIG, false, "CA file %s: %s", path, strerror(errno));
    close(fd);
    return ERR_NONE;
}

/* A copy of S, or of OTHERWISE when S is not given; NULL also when neither is. */
static char *copy(const char *s, const char *otherwise, bool *failed)
{
    s = s != NULL && s[0] != '\0' ? s : otherwise;
    char *made = s != NULL ? strdup(s) : NULL;
    *failed |= s != NULL && made == NULL;
    return made;
}

static enum err_code copy_options(struct http *h, const struct http_options *o, struct err *err)
{
    bool failed = false;
    h->user_agent = copy(o->user_agent, "chute/" CHUTE_VERSION, &failed);
    h->proxy = copy(o->proxy, NULL, &failed);
    h->ca_file = copy(o->ca_file, NULL, &failed);
    h->protocols = copy(o->protocols, "http,https", &failed);
    if (failed)
        return err_nomem(err);
    h->tls_insecure = o->tls_insecure;
    h->connect_timeout_ms = o->connect_timeout_ms > 0 ? o->connect_timeout_ms : CONNECT_TIMEOUT_MS;
    h->stall_timeout_ms = o->stall_timeout_ms > 0 ? o->stall_timeout_ms : STALL_TIMEOUT_MS;
    h->upload_rate = o->upload_rate;
    h->download_rate = o->download_rate;
    if (h->proxy != NULL && http_check_proxy(h->curl, h->proxy, err) != ERR_NONE)
        return err->code;
    if (h->ca_file != NULL)
        return check_ca_file(h->ca_file, err);
    /* One certificate by its hash instead of all: the bundle takes OpenSSL 30 ms, during which the loop stands. */
    const char *path = h->curl->version_info(CURLVERSION_NOW)->capath;
    h->ca_path = path != NULL && has_hashes(path) ? path : NULL;
    return ERR_NONE;
}

enum err_code http_open(uv_loop_t *loop, const struct http_options *options, struct http **ret_http, struct err *err)
{
    const struct curl_lib *curl;
    if (curl_lib_load(&curl, err) != ERR_NONE)
        return err->code;
    struct http *h = calloc(1, sizeof *h);
    if (h == NULL)
        return err_nomem(err);
    h->curl = curl;
    h->loop = loop;
    h->turn = 1;
    const struct curl_loop_user user = {.arg = h, .done = on_done, .active = on_active, .broken = on_broken};
    unsigned to_one_host = options->max_connections > 0 ? options->max_connections : MAX_CONNECTIONS;
    if (copy_options(h, options, err) != ERR_NONE ||
        curl_loop_open(loop, curl, &user, to_one_host, &h->multi, err) != ERR_NONE) {
        free_http(h);
        return err->code;
    }
    uv_idle_init(loop, &h->kick); /* these four can't fail */
    uv_timer_init(loop, &h->pace);
    uv_timer_init(loop, &h->watch);
    uv_timer_init(loop, &h->idle);
    uv_unref((uv_handle_t *)&h->idle);
    h->kick.data = h->pace.data = h->watch.data = h->idle.data = h;
    h->handles = 5;
    *ret_http = h;
    return ERR_NONE;
}

void http_close(struct http *h, void (*closed)(void *arg), void *arg)
{
    struct http_transfer *t;
    h->is_closing = true;
    h->closed = closed;
    h->closed_arg = arg;
    DL_FOREACH(h->transfers, t)
        http_cancel(t);
    kick(h);
}

/* ---- transfers ------------------------------------------------------------------------------------------------- */

enum err_code http_start(struct http *h, const struct http_request *r, struct http_transfer **ret_transfer,
                         struct err *err)
{
    struct http_transfer *t;
    if (h->is_closing)
        return err_set(err, ERR_STOPPED, false, "no more requests: closing");
    if (http_transfer_new(h, r, &t, err) != ERR_NONE)
        return err->code;
    DL_APPEND(h->transfers, t);
    http_todo(t);
    if (ret_transfer != NULL)
        *ret_transfer = t;
    return ERR_NONE;
}

void http_resume(struct http_transfer *t)
{
    t->is_resumed = true;
    http_todo(t);
}

void http_cancel(struct http_transfer *t)
{
    t->is_cancelled = true;
    http_todo(t);
}

void http_libraries(char *ret, size_t size)
{
    const struct curl_lib *lib;
    struct err err = {0};
    if (curl_lib_load(&lib, &err) != ERR_NONE) {
        snprintf(ret, size, "libcurl can't be used: %s", err.text);
        return;
    }
    const curl_version_info_data *info = lib->version_info(CURLVERSION_NOW);
    bool has_h2 = (info->features & CURL_VERSION_HTTP2) != 0 && info->age >= CURLVERSION_SEVENTH;
    snprintf(ret, size, "libcurl %s (%s%s%s)", info->version, info->ssl_version, has_h2 ? ", nghttp2/" : "",
             has_h2 ? info->nghttp2_version : "");
}
