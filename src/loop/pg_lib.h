/*
 * pg_lib.h -- libpq, loaded when it is needed first.
 *
 * Why not linked: it brings Kerberos, LDAP and OpenSSL, which every chute would pay for, also one that only fills a
 * SQLite file.
 */
#ifndef CHUTE_PG_LIB_H
#define CHUTE_PG_LIB_H

#include "err.h"

#include <libpq-fe.h>

/* X(name without "PQ") */
#define PG_LIB_FUNCTIONS(X)                                                                                            \
    X(libVersion)                                                                                                      \
    X(isthreadsafe)                                                                                                    \
    X(initOpenSSL)                                                                                                     \
    X(conninfoParse)                                                                                                   \
    X(conninfo)                                                                                                        \
    X(conninfoFree)                                                                                                    \
    X(freemem)                                                                                                         \
    X(connectStartParams)                                                                                              \
    X(connectPoll)                                                                                                     \
    X(finish)                                                                                                          \
    X(status)                                                                                                          \
    X(errorMessage)                                                                                                    \
    X(socket)                                                                                                          \
    X(setnonblocking)                                                                                                  \
    X(setErrorVerbosity)                                                                                               \
    X(setNoticeReceiver)                                                                                               \
    X(consumeInput)                                                                                                    \
    X(isBusy)                                                                                                          \
    X(flush)                                                                                                           \
    X(sendQuery)                                                                                                       \
    X(sendQueryParams)                                                                                                 \
    X(setSingleRowMode)                                                                                                \
    X(getResult)                                                                                                       \
    X(clear)                                                                                                           \
    X(resultStatus)                                                                                                    \
    X(resultErrorField)                                                                                                \
    X(resultErrorMessage)                                                                                              \
    X(ntuples)                                                                                                         \
    X(nfields)                                                                                                         \
    X(getvalue)                                                                                                        \
    X(getisnull)                                                                                                       \
    X(getlength)                                                                                                       \
    X(fname)                                                                                                           \
    X(cmdStatus)                                                                                                       \
    X(cmdTuples)                                                                                                       \
    X(putCopyData)                                                                                                     \
    X(putCopyEnd)                                                                                                      \
    X(getCopyData)                                                                                                     \
    X(notifies)                                                                                                        \
    X(transactionStatus)                                                                                               \
    X(backendPID)                                                                                                      \
    X(serverVersion)                                                                                                   \
    X(parameterStatus)                                                                                                 \
    X(db)                                                                                                              \
    X(host)                                                                                                            \
    X(hostaddr)                                                                                                        \
    X(port)                                                                                                            \
    X(sslInUse)                                                                                                        \
    X(gssEncInUse)                                                                                                     \
    X(getCancel)                                                                                                       \
    X(cancel)                                                                                                          \
    X(freeCancel)

struct pg_lib {
#define PG_LIB_MEMBER(name) __typeof__(PQ##name) *name;
    PG_LIB_FUNCTIONS(PG_LIB_MEMBER)
#undef PG_LIB_MEMBER
};

/*
 * *RET is filled for good: the library is never unloaded (the exit handlers of what it brings could outlive it). Loop
 * thread only. ERR_CONFIG: not installed, too old, or built so that a cancel could not run beside the loop; tried again
 * by the next call.
 */
enum err_code pg_lib_load(const struct pg_lib **ret, struct err *err);

#endif
