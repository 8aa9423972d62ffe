/*
 * postgres_types.c -- types of columns, and which values they would take with a loss.
 *
 * The server refuses most of what a type can't hold, and then its word counts. Some of it takes silently and changes:
 * numeric(10,2) rounds, a date drops the time of day, a timestamp ignores the zone. Those values are found here.
 */
#include "postgres_internal.h"

#include <string.h>

#define WHOLE_DIGITS 131072 /* of a numeric before the point */
#define SCALE_DIGITS 16383  /* behind it */

static const struct {
    const char *decl, *base;
} types[] = {
    [TYPE_TEXT] = {"text", "text"},
    [TYPE_BIGINT] = {"bigint", "int8"},
    [TYPE_DOUBLE] = {"double precision", "float8"},
    [TYPE_DECIMAL] = {"numeric", "numeric"},
    [TYPE_BOOLEAN] = {"boolean", "bool"},
    [TYPE_DATE] = {"date", "date"},
    [TYPE_TIMESTAMP] = {"timestamp without time zone", "timestamp"},
    [TYPE_TIMESTAMPTZ] = {"timestamp with time zone", "timestamptz"},
    [TYPE_JSON] = {"jsonb", "jsonb"},
};

static bool is_one_of(const char *base, const char *const *names)
{
    for (; *names != NULL; names++)
        if (strcmp(*names, base) == 0)
            return true;
    return false;
}

static void follow_from_base(struct pgd_column *c, int typmod)
{
    static const char *const texts[] = {"text", "varchar", "bpchar", "citext", "name", NULL};
    static const char *const exact[] = {"text",      "varchar",     "int2", "int4",  "int8", "bool", "date",
                                        "timestamp", "timestamptz", "uuid", "bytea", "oid",  NULL};
    c->is_text = is_one_of(c->base, texts);
    c->is_exact = is_one_of(c->base, exact);
    c->loss = LOSS_NONE;
    c->digits = 6;
    if (strcmp(c->base, "numeric") == 0) {
        c->loss = typmod >= 4 ? LOSS_SCALE : LOSS_RANGE;
        /* (precision << 16 | scale) + 4; a scale may be negative since PostgreSQL 15: eleven bits with a sign. */
        c->digits = typmod >= 4 ? (int)((((typmod - 4) & 0x7ff) ^ 1024) - 1024) : SCALE_DIGITS;
    } else if (strcmp(c->base, "date") == 0) {
        c->loss = LOSS_TIME;
    } else if (strcmp(c->base, "timestamp") == 0 || strcmp(c->base, "timestamptz") == 0) {
        c->loss = strcmp(c->base, "timestamp") == 0 ? LOSS_ZONE : LOSS_FRACTION;
        if (typmod >= 0 && typmod <= 6)
            c->digits = typmod;
    }
}

void pgd_column_of_type(struct pgd_column *c, enum column_type type)
{
    c->decl = types[type].decl;
    c->base = types[type].base;
    follow_from_base(c, -1);
}

void pgd_column_of_catalog(struct pgd_column *c, const char *decl, const char *base, int typmod)
{
    c->decl = decl;
    c->base = base;
    follow_from_base(c, typmod);
}

/* A column in which nothing or only '' stood still has every bit: no value can be a number and a date at once. */
bool pgd_is_untyped(const struct column *column)
{
    return !column->has_value || (column->kinds & KIND_ANY) == KIND_ANY;
}

enum column_type pgd_infer(const struct column *column, bool is_plain)
{
    if (is_plain || pgd_is_untyped(column))
        return TYPE_TEXT;
    if (column->kinds & KIND_INT)
        return TYPE_BIGINT;
    if (column->kinds & KIND_DECIMAL)
        return TYPE_DECIMAL;
    if (column->kinds & KIND_BOOL)
        return TYPE_BOOLEAN;
    if (column->kinds & KIND_DATE)
        return TYPE_DATE;
    if (column->kinds & KIND_TIMESTAMP)
        return TYPE_TIMESTAMP;
    return column->kinds & KIND_TIMESTAMPTZ ? TYPE_TIMESTAMPTZ : TYPE_TEXT;
}

bool pgd_kinds_fit(const struct pgd_column *c, const struct column *file)
{
    if (pgd_is_untyped(file) || c->is_text)
        return true;
    if (strcmp(c->base, "int8") == 0 || strcmp(c->base, "int4") == 0 || strcmp(c->base, "int2") == 0)
        return (file->kinds & KIND_INT) != 0;
    if (strcmp(c->base, "numeric") == 0)
        return (file->kinds & KIND_DECIMAL) != 0;
    if (strcmp(c->base, "bool") == 0)
        return (file->kinds & (KIND_BOOL | KIND_INT)) != 0;
    if (strcmp(c->base, "date") == 0)
        return (file->kinds & KIND_DATE) != 0;
    if (strcmp(c->base, "timestamp") == 0)
        return (file->kinds & (KIND_TIMESTAMP | KIND_DATE)) != 0;
    if (strcmp(c->base, "timestamptz") == 0)
        return (file->kinds & (KIND_TIMESTAMPTZ | KIND_TIMESTAMP | KIND_DATE)) != 0;
    return true;
}

/* Digits behind the (last) point, without zeros at their end; -1: there is an exponent, which is not followed. */
static int scale_of(const char *s, size_t n)
{
    const char *point = memrchr(s, '.', n);
    if (point == NULL)
        return 0;
    int digits = 0, last = 0;
    for (const char *p = point + 1; p < s + n && *p >= '0' && *p <= '9'; p++) {
        digits++;
        if (*p != '0')
            last = digits;
        if (p + 1 < s + n && (p[1] == 'e' || p[1] == 'E'))
            return -1;
    }
    return last;
}

static bool ends_with_zone(const char *s, size_t n)
{
    if (s[n - 1] == 'Z' || s[n - 1] == 'z')
        return true;
    /* A sign behind the time of day: what stands before it is a date with signs of its own. */
    const char *colon = memchr(s, ':', n);
    if (colon == NULL)
        return false;
    size_t rest = (size_t)(s + n - colon);
    return memchr(colon, '+', rest) != NULL || memchr(colon, '-', rest) != NULL;
}

bool pgd_would_lose(const struct pgd_column *c, const char *value, size_t n)
{
    if (n == 0)
        return false;
    switch (c->loss) {
    case LOSS_NONE:
        return false;
    case LOSS_SCALE:
        return scale_of(value, n) > (c->digits > 0 ? c->digits : 0) || (c->digits < 0 && value_decimal(value, n));
    case LOSS_RANGE:
        return n > SCALE_DIGITS && (n > WHOLE_DIGITS || scale_of(value, n) > SCALE_DIGITS);
    case LOSS_TIME:
        return memchr(value, ':', n) != NULL;
    case LOSS_ZONE:
        return scale_of(value, n) > c->digits || ends_with_zone(value, n);
    case LOSS_FRACTION:
        return scale_of(value, n) > c->digits;
    }
    return false;
}
