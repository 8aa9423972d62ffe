/* err.c -- one line that says what went wrong; built so that a cut never leaves half a character. */
#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Cut TEXT (size bytes of room) before a UTF-8 sequence that the end split; make it one line. */
static void tidy(char *text, size_t size, bool was_cut)
{
    size_t n = strnlen(text, size - 1);
    if (was_cut) {
        size_t start = n;
        while (start > 0 && n - start < 4 && ((unsigned char)text[start - 1] & 0xC0) == 0x80)
            start--;
        if (start > 0 && (unsigned char)text[start - 1] >= 0xC0) {
            unsigned char lead = (unsigned char)text[start - 1];
            size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
            if (n - (start - 1) < want)
                n = start - 1;
        }
    }
    text[n] = '\0';
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\n' || text[i] == '\r')
            text[i] = ' ';
    }
}

enum err_code err_set(struct err *err, enum err_code code, bool retryable, const char *fmt, ...)
{
    if (err == NULL)
        return code;
    /* Not straight into err->text: the arguments may point into it. */
    char text[sizeof err->text];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0)
        text[0] = '\0';
    tidy(text, sizeof text, n >= (int)sizeof text);
    memcpy(err->text, text, sizeof text);
    err->code = code;
    err->retryable = retryable;
    return code;
}

enum err_code err_wrap(struct err *err, const char *fmt, ...)
{
    if (err == NULL)
        return ERR_SYSTEM;
    char text[sizeof err->text];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0)
        n = 0;
    bool was_cut = n >= (int)sizeof text;
    if (!was_cut) {
        int m = snprintf(text + n, sizeof text - (size_t)n, ": %s", err->text);
        was_cut = m >= (int)sizeof text - n;
    }
    tidy(text, sizeof text, was_cut);
    memcpy(err->text, text, sizeof text);
    return err->code;
}

enum err_code err_nomem(struct err *err)
{
    return err_set(err, ERR_SYSTEM, true, "out of memory");
}

void err_clear(struct err *err)
{
    if (err == NULL)
        return;
    err->code = ERR_NONE;
    err->retryable = false;
    err->text[0] = '\0';
}
