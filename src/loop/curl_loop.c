/* curl_loop.c -- see curl_loop.h. */
#include "curl_loop.h"

#include <stdlib.h>

/* A socket of curl's that libuv watches. */
struct watched {
    uv_poll_t poll;
    struct curl_loop *loop;
    curl_socket_t fd;
    CURL *easy; /* the one it works for; NULL: none, or gone */
    int events;
    struct watched *prev, *next;
};

struct curl_loop {
    const struct curl_lib *curl;
    uv_loop_t *loop;
    CURLM *multi;
    struct curl_loop_user user;
    uv_timer_t timer;
    struct watched *sockets;
    unsigned handles;
    bool is_closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

static void read_results(struct curl_loop *c)
{
    int left;
    for (CURLMsg *message; (message = c->curl->multi_info_read(c->multi, &left)) != NULL;) {
        if (message->msg != CURLMSG_DONE)
            continue;
        CURLcode result = message->data.result; /* removing the handle frees the message */
        CURL *easy = message->easy_handle;
        curl_loop_remove(c, easy);
        c->user.done(c->user.arg, easy, result);
        if (c->is_closing)
            return;
    }
}

/* Results are read dry after every call into curl: nothing reminds us of what is left. */
static void drive(struct curl_loop *c, curl_socket_t fd, int events)
{
    int running; /* curl writes there without asking */
    CURLMcode failed = c->curl->multi_socket_action(c->multi, fd, events, &running);
    if (failed != CURLM_OK) /* out of memory, or a bug: nothing would move any more */
        c->user.broken(c->user.arg, NULL, c->curl->multi_strerror(failed));
    read_results(c);
}

void curl_loop_drive(struct curl_loop *c)
{
    if (!c->is_closing)
        drive(c, CURL_SOCKET_TIMEOUT, 0);
}

/*
 * "Deprecated", and yet the only call that also looks at transfers of which curl watches no socket at all; and FTP's
 * second connection is such a one.
 */
void curl_loop_poke(struct curl_loop *c)
{
    int running;
    if (c->is_closing)
        return;
    c->curl->multi_socket_all(c->multi, &running);
    read_results(c);
}

static void on_socket(uv_poll_t *poll, int status, int events)
{
    struct watched *w = poll->data;
    int bits = 0;
    if ((events & UV_READABLE) != 0)
        bits |= CURL_CSELECT_IN;
    if ((events & UV_WRITABLE) != 0)
        bits |= CURL_CSELECT_OUT;
    if (w->easy != NULL && events != 0 && w->loop->user.active != NULL)
        w->loop->user.active(w->loop->user.arg, w->easy);
    if (status < 0) {
        /* An error is pending on the socket (UV_EBADF), and libuv has stopped watching it. "Readable" as well, so that
         * curl takes an answer that came before the connection broke; it would give up on an error alone. Watched
         * again before curl hears of it: should it want to go on, it would not tell us. */
        bits = CURL_CSELECT_ERR | CURL_CSELECT_IN;
        uv_poll_start(poll, w->events, on_socket);
    }
    drive(w->loop, w->fd, bits);
}

static void count_closed(struct curl_loop *c)
{
    if (--c->handles > 0)
        return;
    void (*closed)(void *arg) = c->closed;
    void *arg = c->closed_arg;
    free(c);
    closed(arg);
}

static void on_socket_closed(uv_handle_t *handle)
{
    struct watched *w = handle->data;
    struct curl_loop *c = w->loop;
    free(w);
    count_closed(c);
}

static struct watched *watch_socket(struct curl_loop *c, curl_socket_t fd)
{
    struct watched *w = calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    if (uv_poll_init_socket(c->loop, &w->poll, fd) != 0) {
        free(w);
        return NULL;
    }
    w->poll.data = w;
    w->loop = c;
    w->fd = fd;
    w->next = c->sockets;
    if (c->sockets != NULL)
        c->sockets->prev = w;
    c->sockets = w;
    c->handles++;
    c->curl->multi_assign(c->multi, fd, w);
    return w;
}

static void unwatch(struct curl_loop *c, struct watched *w)
{
    if (w->prev != NULL)
        w->prev->next = w->next;
    else
        c->sockets = w->next;
    if (w->next != NULL)
        w->next->prev = w->prev;
    c->curl->multi_assign(c->multi, w->fd, NULL);
    uv_close((uv_handle_t *)&w->poll, on_socket_closed);
}

/* CURLMOPT_SOCKETFUNCTION. Never fails: curl would take that for the end of all its transfers. */
static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
    struct curl_loop *c = arg;
    struct watched *w = socket_arg;
    if (what == CURL_POLL_REMOVE) {
        if (w != NULL)
            unwatch(c, w);
        return 0;
    }
    if (w == NULL)
        w = watch_socket(c, fd);
    if (w != NULL) {
        w->easy = easy;
        w->events = ((what & CURL_POLL_IN) != 0 ? UV_READABLE : 0) | ((what & CURL_POLL_OUT) != 0 ? UV_WRITABLE : 0);
        if (uv_poll_start(&w->poll, w->events, on_socket) == 0)
            return 0;
    }
    c->user.broken(c->user.arg, easy, "the connection can't be watched: out of memory or descriptors");
    return 0;
}

static void on_timer(uv_timer_t *timer)
{
    drive(timer->data, CURL_SOCKET_TIMEOUT, 0);
}

/* CURLMOPT_TIMERFUNCTION. May come from inside on_timer(): with 0 ms libuv would run it again before it looks at any
 * socket. */
static int on_curl_timer(CURLM *multi, long timeout_ms, void *arg)
{
    struct curl_loop *c = arg;
    (void)multi;
    if (timeout_ms < 0 || c->is_closing)
        uv_timer_stop(&c->timer);
    else
        uv_timer_start(&c->timer, on_timer, timeout_ms == 0 ? 1 : (uint64_t)timeout_ms, 0);
    return 0;
}

enum err_code curl_loop_open(uv_loop_t *loop, const struct curl_lib *curl, const struct curl_loop_user *user,
                             unsigned max_connections, struct curl_loop **ret, struct err *err)
{
    struct curl_loop *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_nomem(err);
    c->curl = curl;
    c->loop = loop;
    c->user = *user;
    c->multi = curl->multi_init();
    if (c->multi == NULL) {
        free(c);
        return err_nomem(err);
    }
    const struct {
        CURLMoption option;
        long value;
    } numbers[] = {
        {CURLMOPT_MAX_HOST_CONNECTIONS, (long)max_connections},
        /* One request at a time also on a connection that speaks HTTP/2: of several, libcurl 7.88 now and then forgets
         * one for good when another is cancelled or paused. Large bodies are faster on connections of their own. */
        {CURLMOPT_PIPELINING, CURLPIPE_NOTHING},
        {CURLMOPT_MAXCONNECTS, (long)max_connections * 2}, /* idle ones: a service often has a second host */
    };
    bool failed = curl->multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket) != CURLM_OK ||
                  curl->multi_setopt(c->multi, CURLMOPT_SOCKETDATA, c) != CURLM_OK ||
                  curl->multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer) != CURLM_OK ||
                  curl->multi_setopt(c->multi, CURLMOPT_TIMERDATA, c) != CURLM_OK;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        failed |= curl->multi_setopt(c->multi, numbers[i].option, numbers[i].value) != CURLM_OK;
    if (failed) {
        curl->multi_cleanup(c->multi);
        free(c);
        return err_set(err, ERR_SYSTEM, false, "libcurl does not take its options");
    }
    uv_timer_init(loop, &c->timer); /* can't fail */
    c->timer.data = c;
    c->handles = 1;
    *ret = c;
    return ERR_NONE;
}

CURLMcode curl_loop_add(struct curl_loop *c, CURL *easy)
{
    return c->curl->multi_add_handle(c->multi, easy);
}

/* Its connection stays, and so does the watch of its socket, for the next one that uses it. */
void curl_loop_remove(struct curl_loop *c, CURL *easy)
{
    c->curl->multi_remove_handle(c->multi, easy);
    for (struct watched *w = c->sockets; w != NULL; w = w->next)
        if (w->easy == easy)
            w->easy = NULL;
}

curl_socket_t curl_loop_socket(const struct curl_loop *c, const CURL *easy)
{
    for (const struct watched *w = c->sockets; w != NULL; w = w->next)
        if (w->easy == easy)
            return w->fd;
    return CURL_SOCKET_BAD;
}

static void on_timer_closed(uv_handle_t *handle)
{
    count_closed(handle->data);
}

/* curl_multi_cleanup() still calls the socket callback for connections that it closes, and the timer callback. */
void curl_loop_close(struct curl_loop *c, void (*closed)(void *arg), void *arg)
{
    c->is_closing = true;
    c->closed = closed;
    c->closed_arg = arg;
    c->curl->multi_cleanup(c->multi);
    while (c->sockets != NULL) /* one that curl forgot */
        unwatch(c, c->sockets);
    uv_close((uv_handle_t *)&c->timer, on_timer_closed);
}
