/* pg_result.c -- rows and columns of a result, and names and texts as SQL writes them. */
#include "pg_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

size_t pg_rows(const struct pg_result *result)
{
    return (size_t)result->lib->ntuples(result->res);
}

size_t pg_columns(const struct pg_result *result)
{
    return (size_t)result->lib->nfields(result->res);
}

/* libpq would warn on stderr, and answer anyway. */
static bool is_there(const struct pg_result *result, size_t row, size_t column)
{
    return row < pg_rows(result) && column < pg_columns(result);
}

const char *pg_value(const struct pg_result *result, size_t row, size_t column)
{
    if (!is_there(result, row, column) || result->lib->getisnull(result->res, (int)row, (int)column))
        return NULL;
    return result->lib->getvalue(result->res, (int)row, (int)column);
}

size_t pg_value_size(const struct pg_result *result, size_t row, size_t column)
{
    return is_there(result, row, column) ? (size_t)result->lib->getlength(result->res, (int)row, (int)column) : 0;
}

const char *pg_column_name(const struct pg_result *result, size_t column)
{
    return column < pg_columns(result) ? result->lib->fname(result->res, (int)column) : NULL;
}

const char *pg_tag(const struct pg_result *result)
{
    return result->lib->cmdStatus(result->res);
}

uint64_t pg_affected(const struct pg_result *result)
{
    return strtoull(result->lib->cmdTuples(result->res), NULL, 10);
}

static void add_doubled(struct buf *sql, const char *text, const char *doubled)
{
    for (;;) {
        size_t n = strcspn(text, doubled);
        buf_add(sql, text, n);
        if (text[n] == '\0')
            return;
        buf_addc(sql, text[n]);
        buf_addc(sql, text[n]);
        text += n + 1;
    }
}

void pg_add_name(struct buf *sql, const char *name)
{
    buf_addc(sql, '"');
    add_doubled(sql, name, "\"");
    buf_addc(sql, '"');
}

void pg_add_text(struct buf *sql, const char *text)
{
    bool has_backslash = strchr(text, '\\') != NULL;
    /* The blank keeps the E from becoming part of a word before it; libpq's PQescapeLiteral() does the same. */
    buf_adds(sql, has_backslash ? " E'" : "'");
    add_doubled(sql, text, has_backslash ? "'\\" : "'");
    buf_addc(sql, '\'');
}
