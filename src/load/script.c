/* script.c -- see script.h. */
#include "script.h"

#include "text.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static enum err_code read_all(int fd, const char *file, char *text, size_t room, size_t *ret_size, struct err *err)
{
    size_t used = 0;
    for (;;) {
        ssize_t n = read(fd, text + used, room - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, ERR_INPUT, false, "%s: can't be read: %s", file, strerror(errno));
        used += (size_t)n;
        if (n == 0)
            break;
        if (used == room)
            return err_set(err, ERR_INPUT, false, "%s: changed while it was being read", file);
    }
    text[used] = '\0';
    *ret_size = used;
    return ERR_NONE;
}

static enum err_code check_text(const char *file, const char *text, size_t size, struct err *err)
{
    size_t valid = text_utf8_valid(text, size);
    if (valid == size)
        return ERR_NONE;
    return err_set(err, ERR_INPUT, false, "%s:%llu: expected UTF-8 text, found the byte 0x%02x at offset %zu", file,
                   (unsigned long long)script_line(text, valid), (unsigned char)text[valid], valid);
}

enum err_code script_read(const char *file, char **ret, size_t *ret_size, struct err *err)
{
    struct stat st;
    char *text = NULL;
    size_t size = 0;
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    *ret = NULL;
    if (fd < 0)
        return err_set(err, ERR_INPUT, false, "%s: can't be read: %s", file, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        err_set(err, ERR_INPUT, false, "%s: expected a file with SQL, found something else", file);
        goto close_file;
    }
    if ((uint64_t)st.st_size > SCRIPT_MAX) {
        err_set(err, ERR_INPUT, false, "%s: expected at most %u MiB of SQL, found %llu bytes; load data with a flow",
                file, SCRIPT_MAX >> 20, (unsigned long long)st.st_size);
        goto close_file;
    }
    text = malloc((size_t)st.st_size + 2);
    if (text == NULL) {
        err_nomem(err);
        goto close_file;
    }
    if (read_all(fd, file, text, (size_t)st.st_size + 1, &size, err) != ERR_NONE ||
        check_text(file, text, size, err) != ERR_NONE)
        goto free_text;
    close(fd);
    if (strncmp(text, "\xef\xbb\xbf", 3) == 0) {
        memmove(text, text + 3, size - 2);
        size -= 3;
    }
    *ret = text;
    *ret_size = size;
    return ERR_NONE;
free_text:
    free(text);
close_file:
    close(fd);
    return err->code;
}

uint64_t script_line(const char *text, size_t offset)
{
    uint64_t line = 1;
    for (size_t i = 0; i < offset; i++)
        line += text[i] == '\n';
    return line;
}

size_t script_offset(const char *text, uint64_t position)
{
    size_t i = 0;
    for (uint64_t at = 1; at < position && text[i] != '\0'; at++)
        do
            i++;
        while (((unsigned char)text[i] & 0xc0) == 0x80);
    return i;
}

/* ---- statements ---- */

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80;
}

static size_t skip_comment(const char *text, size_t i)
{
    int depth = 0;
    if (text[i] == '-')
        return i + strcspn(text + i, "\n");
    do {
        if (text[i] == '/' && text[i + 1] == '*') {
            depth++;
            i += 2;
        } else if (text[i] == '*' && text[i + 1] == '/') {
            depth--;
            i += 2;
        } else {
            i++;
        }
    } while (depth > 0 && text[i] != '\0');
    return i;
}

static bool is_comment(const char *at)
{
    return (at[0] == '-' && at[1] == '-') || (at[0] == '/' && at[1] == '*');
}

size_t script_skip(const char *text, size_t offset)
{
    size_t i = offset;
    while (text[i] != '\0') {
        if (is_comment(text + i))
            i = skip_comment(text, i);
        else if (isspace((unsigned char)text[i]) || text[i] == ';')
            i++;
        else
            break;
    }
    return i;
}

/* Behind the quoted text that begins at I. */
static size_t skip_quoted(const char *text, size_t i, bool has_escapes)
{
    char quote = text[i++];
    for (; text[i] != '\0'; i++) {
        if (has_escapes && text[i] == '\\' && text[i + 1] != '\0') {
            i++;
        } else if (text[i] == quote) {
            if (text[i + 1] != quote)
                return i + 1;
            i++;
        }
    }
    return i;
}

/* Behind the $tag$ … $tag$ that begins at I; I + 1 if none does. */
static size_t skip_dollars(const char *text, size_t i)
{
    size_t n = 1;
    if (isdigit((unsigned char)text[i + 1]))
        return i + 1;
    while (is_word(text[i + n]))
        n++;
    if (text[i + n] != '$')
        return i + 1;
    n++;
    for (size_t k = i + n; text[k] != '\0'; k++)
        if (strncmp(text + k, text + i, n) == 0)
            return k + n;
    return i + strlen(text + i);
}

static bool is_this(const char *text, size_t i, size_t n, const char *word)
{
    return strlen(word) == n && strncasecmp(text + i, word, n) == 0;
}

size_t script_end(const char *text, size_t offset)
{
    int atomic = 0; /* depth of BEGIN ATOMIC, and of the CASEs inside */
    bool was_begin = false;
    for (size_t i = offset; text[i] != '\0';) {
        size_t n = 0;
        if (is_comment(text + i)) {
            i = skip_comment(text, i);
        } else if (text[i] == '\'' || text[i] == '"') {
            bool has_escapes = text[i] == '\'' && i > offset && (text[i - 1] == 'E' || text[i - 1] == 'e') &&
                               (i - 1 == offset || !is_word(text[i - 2]));
            i = skip_quoted(text, i, has_escapes);
        } else if (text[i] == '$') {
            i = skip_dollars(text, i);
        } else if (text[i] == ';' && atomic == 0) {
            return i;
        } else if (is_word(text[i])) {
            while (is_word(text[i + n]) || text[i + n] == '$')
                n++;
            if (was_begin && is_this(text, i, n, "atomic"))
                atomic = 1;
            else if (atomic > 0 && is_this(text, i, n, "case"))
                atomic++;
            else if (atomic > 0 && is_this(text, i, n, "end"))
                atomic--;
            was_begin = is_this(text, i, n, "begin");
            /* E'': the quote must see the letter before it */
            i += n;
        } else {
            i++;
        }
    }
    return strlen(text);
}

const char *script_words(const char *text, size_t offset, char ret[SCRIPT_WORDS_MAX])
{
    size_t n = 0;
    for (size_t i = script_skip(text, offset); text[i] != '\0' && text[i] != ';' && n < SCRIPT_WORDS_MAX - 8; i++) {
        if (!isspace((unsigned char)text[i]))
            ret[n++] = text[i];
        else if (n > 0 && ret[n - 1] != ' ')
            ret[n++] = ' ';
    }
    while (n > 0 && (ret[n - 1] == ' ' || ((unsigned char)ret[n - 1] & 0xc0) == 0x80))
        n--; /* not into the middle of a character */
    if (n > 0 && (unsigned char)ret[n - 1] >= 0xc0)
        n--;
    ret[n] = '\0';
    return ret;
}
