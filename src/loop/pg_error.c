/* pg_error.c -- what the server or libpq said, and whose problem it is. */
#include "pg_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct pg_fault pg_no_fault = {
    .message = "",
    .detail = "",
    .hint = "",
    .context = "",
    .schema = "",
    .table = "",
    .column = "",
    .type = "",
    .constraint = "",
    .internal_query = "",
};

static const struct {
    const char *sqlstate; /* five characters, or the two of a class; the first row that fits counts */
    enum err_code code;
    bool retryable;
} classes[] = {
    {"", ERR_REMOTE, true},       /* the connection broke */
    {"08", ERR_REMOTE, true},     /* connection exceptions; poolers say 08P01 for all of theirs */
    {"0L", ERR_DENIED, false},    /* invalid grantor */
    {"0P", ERR_DENIED, false},    /* invalid role */
    {"22", ERR_INPUT, false},     /* data exception */
    {"23", ERR_INPUT, false},     /* constraint violated */
    {"25006", ERR_DENIED, false}, /* read only: a standby, or default_transaction_read_only */
    {"25P03", ERR_REMOTE, true},  /* idle in transaction for too long: the server ended the session */
    {"25P04", ERR_REMOTE, true},  /* the whole transaction took too long (17) */
    {"28", ERR_DENIED, false},    /* login refused */
    {"3D000", ERR_DENIED, false}, /* no such database */
    {"40", ERR_REMOTE, true},     /* deadlock, serialization, rolled back for another reason */
    {"42501", ERR_DENIED, false}, /* insufficient privilege */
    {"53", ERR_REMOTE, true},     /* disk full, out of memory, too many connections */
    {"55006", ERR_REMOTE, true},  /* object in use */
    {"55P03", ERR_REMOTE, true},  /* lock not available */
    {"57", ERR_REMOTE, true},     /* cancelled, shut down, starting */
    {"58", ERR_REMOTE, true},     /* errors of the server's system */
};

enum err_code pg_classify(const char *sqlstate, bool *ret_retryable)
{
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        size_t length = strlen(classes[i].sqlstate);
        if (length == 0 ? sqlstate[0] == '\0' : strncmp(sqlstate, classes[i].sqlstate, length) == 0) {
            *ret_retryable = classes[i].retryable;
            return classes[i].code;
        }
    }
    *ret_retryable = false;
    return ERR_REMOTE;
}

static const char *field(const struct pg_lib *lib, const PGresult *res, int code)
{
    const char *text = lib->resultErrorField(res, code);
    return text != NULL ? text : "";
}

static void copy_sqlstate(char *ret, const char *sqlstate)
{
    snprintf(ret, 6, "%.5s", sqlstate);
}

void pg_fault_of(const struct pg_lib *lib, const PGresult *res, struct pg_fault *ret_fault)
{
    *ret_fault = pg_no_fault;
    if (res == NULL)
        return;
    copy_sqlstate(ret_fault->sqlstate, field(lib, res, PG_DIAG_SQLSTATE));
    ret_fault->message = field(lib, res, PG_DIAG_MESSAGE_PRIMARY);
    if (ret_fault->message[0] == '\0') /* libpq's own */
        ret_fault->message = lib->resultErrorMessage(res);
    ret_fault->detail = field(lib, res, PG_DIAG_MESSAGE_DETAIL);
    ret_fault->hint = field(lib, res, PG_DIAG_MESSAGE_HINT);
    ret_fault->context = field(lib, res, PG_DIAG_CONTEXT);
    ret_fault->schema = field(lib, res, PG_DIAG_SCHEMA_NAME);
    ret_fault->table = field(lib, res, PG_DIAG_TABLE_NAME);
    ret_fault->column = field(lib, res, PG_DIAG_COLUMN_NAME);
    ret_fault->type = field(lib, res, PG_DIAG_DATATYPE_NAME);
    ret_fault->constraint = field(lib, res, PG_DIAG_CONSTRAINT_NAME);
    ret_fault->internal_query = field(lib, res, PG_DIAG_INTERNAL_QUERY);
    ret_fault->position = (unsigned)strtoul(field(lib, res, PG_DIAG_STATEMENT_POSITION), NULL, 10);
    ret_fault->internal_position = (unsigned)strtoul(field(lib, res, PG_DIAG_INTERNAL_POSITION), NULL, 10);
}

void pg_err_of(const struct pg_fault *fault, struct err *err)
{
    bool retryable;
    enum err_code code = pg_classify(fault->sqlstate, &retryable);
    err_set(err, code, retryable, "%s (SQLSTATE %s)%s%s%s%s", fault->message, fault->sqlstate,
            fault->detail[0] != '\0' ? "; " : "", fault->detail, fault->hint[0] != '\0' ? "; " : "", fault->hint);
}

/* The first line of TEXT, without a full stop or blank behind it. */
static void first_line(const char *text, char *ret, size_t size)
{
    size_t length = strcspn(text, "\n");
    while (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '.'))
        length--;
    snprintf(ret, size, "%.*s", (int)length, text);
}

void pg_err_broken(const struct pg *pg, const char *text, struct err *err)
{
    char line[300];
    if (pg->last_words.text[0] != '\0') {
        bool retryable;
        enum err_code code = pg_classify(pg->last_words.sqlstate, &retryable);
        err_set(err, code, retryable, "%s: %s (SQLSTATE %s)", pg->where, pg->last_words.text, pg->last_words.sqlstate);
        return;
    }
    first_line(text, line, sizeof line);
    err_set(err, ERR_REMOTE, true, "%s: %s", pg->where, line[0] != '\0' ? line : "the connection broke");
}

/* ---- a failed attempt to connect: libpq gives its words only, and those of the server inside of them
 * ------------------ */

/* The last "SEVERITY:  SQLSTATE: message" of TEXT, as PQERRORS_VERBOSE writes it: with sslmode=prefer there may be one
 * for each try, and the last is about the try without TLS. */
static const char *find_sqlstate(const char *text, char *ret_sqlstate)
{
    const char *found = NULL;
    for (const char *at = text; (at = strstr(at, ":  ")) != NULL; at++) {
        size_t n = strspn(at + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        if (n == 5 && strncmp(at + 8, ": ", 2) == 0) {
            memcpy(ret_sqlstate, at + 3, 5);
            ret_sqlstate[5] = '\0';
            found = at + 10;
        }
    }
    return found;
}

/* Words of libpq itself (fe-secure-openssl.c, fe-auth.c, fe-connect.c), in the order in which they are looked for. They
 * are translated only in a process that calls setlocale(), which chute does not. */
static const struct {
    const char *words;
    enum err_code code;
    const char *advice;
} known[] = {
    {"root certificate file", ERR_CONFIG, "; check sslrootcert"},
    {"certificate revocation list", ERR_CONFIG, "; check sslcrl"},
    {"certificate file", ERR_CONFIG, "; check sslcert and sslkey"},
    {"private key file", ERR_CONFIG, "; check sslkey: a file of ours, with mode 0600"},
    {"certificate present, but not private key", ERR_CONFIG, "; check sslkey"},
    {"server does not support SSL", ERR_CONFIG,
     "; the server speaks no TLS: switch it on there, or choose another sslmode"},
    {"SSL was required", ERR_CONFIG, ""},
    {"GSSAPI", ERR_CONFIG, ""},
    {"certificate verify failed", ERR_DENIED, "; sslrootcert names the CA that is believed"},
    {"does not match host name", ERR_DENIED, "; connect with the name in the certificate"},
    {"no password supplied", ERR_DENIED, "; set password, or an entry in .pgpass"},
    {"requirepeer", ERR_DENIED, ""},
    {"channel binding", ERR_DENIED, ""},
    {"SCRAM", ERR_DENIED, ""},
    {"SASL", ERR_DENIED, ""},
    {"authentication method", ERR_DENIED, ""},
    {"sslv3 alert", ERR_DENIED, "; the server refuses our certificate"},
    {"tlsv1 alert", ERR_DENIED, "; the server refuses our certificate or version of TLS"},
    {"tlsv13 alert", ERR_DENIED, "; the server wants a certificate of ours: set sslcert and sslkey"},
};

/* libpq begins with 'connection to server at "a" (1.2.3.4), port 5432 failed: ', which we say in our own words. */
static const char *skip_prefix(const char *text)
{
    const char *at = strstr(text, " failed: ");
    const char *end = strchr(text, '\n');
    if (strncmp(text, "connection to server ", 21) == 0 && at != NULL && (end == NULL || at < end))
        return at + 9;
    return text;
}

static void server_refused(const char *message, const char *sqlstate, struct err *err)
{
    char line[300], detail[150] = "";
    bool retryable;
    enum err_code code = pg_classify(sqlstate, &retryable);
    const char *rest = strstr(message, "\nDETAIL:  ");
    first_line(message, line, sizeof line);
    if (rest != NULL)
        first_line(rest + 10, detail, sizeof detail);
    /* Nothing of us has reached the server but the settings that it is to begin the session with. */
    if (code == ERR_INPUT || strncmp(sqlstate, "42", 2) == 0)
        code = strcmp(sqlstate, "42501") == 0 ? ERR_DENIED : ERR_CONFIG;
    else if (code == ERR_REMOTE)
        retryable = true; /* the same words may not come tomorrow; only an operator could say so */
    err_set(err, code, retryable, "%s (SQLSTATE %s)%s%s", line, sqlstate, detail[0] != '\0' ? "; " : "", detail);
}

void pg_err_connect(const char *text, bool is_refused, bool was_tls, struct err *err, char *ret_sqlstate)
{
    char line[300];
    ret_sqlstate[0] = '\0';
    const char *message = find_sqlstate(text, ret_sqlstate);
    if (message != NULL) {
        server_refused(message, ret_sqlstate, err);
        return;
    }
    const char *own = skip_prefix(text);
    first_line(own, line, sizeof line);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strstr(line, known[i].words) != NULL) {
            err_set(err, known[i].code, false, "%s%s", line, known[i].advice);
            return;
        }
    }
    if (own == text && is_refused) { /* libpq has not even tried: its own parameters */
        err_set(err, ERR_CONFIG, false, "%s", line);
        return;
    }
    err_set(err, ERR_REMOTE, true, "%s%s", was_tls ? "while TLS began: " : "",
            line[0] != '\0' ? line : "the connection failed");
}
