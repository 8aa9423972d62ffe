/* ask.c -- the commands' side of the control socket, and what all commands share. */
#include "admin_internal.h"

#include "clock.h"
#include "state.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct line {
    int fd;
    struct buf in;
};

enum err_code line_open(const char *state, struct line **ret, struct err *err)
{
    *ret = NULL;
    struct sockaddr_un address;
    int folder;
    if (state_socket(state, &address, &folder, err) != ERR_NONE) {
        if (access(state, F_OK) == 0)
            return err->code;
        err_clear(err); /* no state folder: nothing ever ran there */
        return ERR_NONE;
    }
    enum err_code code = ERR_NONE;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        code = err_set(err, ERR_SYSTEM, true, "control socket: %s", strerror(errno));
    } else if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        close(fd);
        /* a killed daemon leaves its socket behind: refused means nobody there */
        if (error != ENOENT && error != ECONNREFUSED && error != ENOTDIR)
            code = err_set(err, ERR_SYSTEM, true, "control socket %s/chute.sock: %s%s", state, strerror(error),
                           error == EACCES ? " (run this command as the user that runs the daemon)" : "");
    } else {
        struct line *l = calloc(1, sizeof *l);
        if (l == NULL) {
            close(fd);
            code = err_nomem(err);
        } else {
            l->fd = fd;
            buf_init(&l->in);
            *ret = l;
        }
    }
    if (folder >= 0)
        close(folder);
    return code;
}

void line_close(struct line *l)
{
    if (l == NULL)
        return;
    close(l->fd);
    buf_done(&l->in);
    free(l);
}

static enum err_code send_all(int fd, const char *text, size_t size, struct err *err)
{
    while (size > 0) {
        ssize_t n = send(fd, text, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, ERR_SYSTEM, true, "the daemon hung up: %s", strerror(errno));
        text += n;
        size -= (size_t)n;
    }
    return ERR_NONE;
}

/* Read until L holds a line. */
static enum err_code receive(struct line *l, int timeout_ms, struct err *err)
{
    uint64_t end_ms = clock_mono_ms() + (uint64_t)timeout_ms;
    while (l->in.size == 0 || memchr(l->in.data, '\n', l->in.size) == NULL) {
        int wait = -1;
        if (timeout_ms > 0) {
            uint64_t now = clock_mono_ms();
            wait = now >= end_ms ? 0 : (int)(end_ms - now);
        }
        struct pollfd p = {.fd = l->fd, .events = POLLIN};
        int n = poll(&p, 1, wait);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            return err_set(err, ERR_SYSTEM, true, "the daemon did not answer within %d s", timeout_ms / 1000);
        char chunk[8192];
        ssize_t got = n < 0 ? -1 : recv(l->fd, chunk, sizeof chunk, 0);
        if (got < 0)
            return err_set(err, ERR_SYSTEM, true, "the daemon's answer: %s", strerror(errno));
        if (got == 0)
            return err_set(err, ERR_SYSTEM, true, "the daemon hung up before it answered (is it stopping?)");
        buf_add(&l->in, chunk, (size_t)got);
        if (l->in.failed)
            return err_nomem(err);
    }
    return ERR_NONE;
}

enum err_code line_ask(struct line *l, struct json_object *request, int timeout_ms, struct json_object **ret,
                       struct err *err)
{
    *ret = NULL;
    size_t length;
    const char *text = json_object_to_json_string_length(request, JSON_C_TO_STRING_PLAIN, &length);
    if (text == NULL)
        return err_nomem(err);
    if (send_all(l->fd, text, length, err) != ERR_NONE || send_all(l->fd, "\n", 1, err) != ERR_NONE ||
        receive(l, timeout_ms, err) != ERR_NONE)
        return err->code;
    char *end = memchr(l->in.data, '\n', l->in.size);
    *end = '\0';
    struct json_object *answer = json_tokener_parse(l->in.data);
    size_t rest = l->in.size - (size_t)(end + 1 - l->in.data);
    memmove(l->in.data, end + 1, rest);
    l->in.size = rest;
    if (!json_object_is_type(answer, json_type_object)) {
        json_object_put(answer);
        return err_set(err, ERR_SYSTEM, false, "the daemon's answer is no JSON object (another version of chute?)");
    }
    if (!json_true(answer, "ok")) {
        err_set(err, ERR_SYSTEM, false, "%s", json_text(answer, "error"));
        json_object_put(answer);
        return err->code;
    }
    *ret = answer;
    return ERR_NONE;
}

void say(const char *fmt, ...)
{
    va_list args;
    fputs("chute: ", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}

enum err_code open_ledger(const struct command_context *c, bool read_only, struct ledger_tx **ret, struct err *err)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/ledger.db", c->state) >= sizeof path)
        return err_set(err, ERR_CONFIG, false, "state folder: the path is too long: %s", c->state);
    return ledger_tx_open(path, read_only, ret, err);
}

void absolute_path(const char *file, char *ret)
{
    char whole[2 * PATH_MAX], cwd[PATH_MAX];
    if (file[0] == '/' || getcwd(cwd, sizeof cwd) == NULL)
        snprintf(whole, sizeof whole, "%s", file);
    else
        snprintf(whole, sizeof whole, "%s/%s", cwd, file);
    size_t size = 0;
    ret[0] = '\0';
    char *rest = whole;
    for (char *segment; (segment = strsep(&rest, "/")) != NULL;) {
        if (segment[0] == '\0' || strcmp(segment, ".") == 0)
            continue;
        if (strcmp(segment, "..") == 0) {
            while (size > 0 && ret[--size] != '/')
                ;
            ret[size] = '\0';
            continue;
        }
        size_t length = strlen(segment);
        if (size + 1 + length >= PATH_MAX)
            return;
        ret[size++] = '/';
        memcpy(ret + size, segment, length + 1);
        size += length;
    }
    if (size == 0)
        memcpy(ret, "/", 2);
}

const char *json_text(struct json_object *o, const char *key)
{
    struct json_object *value;
    if (!json_object_object_get_ex(o, key, &value) || !json_object_is_type(value, json_type_string))
        return "";
    return json_object_get_string(value);
}

int64_t json_number(struct json_object *o, const char *key)
{
    struct json_object *value;
    return json_object_object_get_ex(o, key, &value) ? json_object_get_int64(value) : 0;
}

bool json_true(struct json_object *o, const char *key)
{
    struct json_object *value;
    return json_object_object_get_ex(o, key, &value) && json_object_get_boolean(value);
}
