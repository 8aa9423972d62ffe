/* pg_session.c -- what can be known of a connection without asking the server. */
#include "pg_internal.h"

#include <stdio.h>

enum pg_state pg_state(const struct pg *pg)
{
    if (pg->is_closing)
        return PG_CLOSING;
    if (pg->connect_done != NULL)
        return PG_CONNECTING;
    if (!pg->is_open)
        return PG_DOWN;
    return pg->queue != NULL ? PG_BUSY : PG_READY;
}

enum pg_tx pg_tx(const struct pg *pg)
{
    if (!pg->is_open)
        return PG_TX_UNKNOWN;
    switch (pg->lib->transactionStatus(pg->conn)) {
    case PQTRANS_IDLE:
        return PG_TX_IDLE;
    case PQTRANS_ACTIVE:
        return PG_TX_ACTIVE;
    case PQTRANS_INTRANS:
        return PG_TX_OPEN;
    case PQTRANS_INERROR:
        return PG_TX_ABORTED;
    case PQTRANS_UNKNOWN:
        break;
    }
    return PG_TX_UNKNOWN;
}

int pg_backend_pid(const struct pg *pg)
{
    return pg->is_open ? pg->lib->backendPID(pg->conn) : 0;
}

int pg_server_version(const struct pg *pg)
{
    return pg->is_open ? pg->lib->serverVersion(pg->conn) : 0;
}

const char *pg_parameter(const struct pg *pg, const char *name)
{
    return pg->is_open ? pg->lib->parameterStatus(pg->conn, name) : NULL;
}

void pg_where(const struct pg *pg, char *ret, size_t size)
{
    snprintf(ret, size, "%s", pg->where);
}
