/*
 * pg_cancel.c -- ask a server to stop, from a thread.
 *
 * Why a thread: before libpq 17 PQcancel() is the only way, and it blocks until the server has taken the request. Why
 * not work_thread(): a server that hangs may never take it, and nothing can wake PQcancel() then; a thread that the
 * loop waits for would keep the loop from ending. So this one may be left alone: it owns what it touches.
 */
#include "pg_internal.h"

#include <signal.h>
#include <stdlib.h>

#define STACK_BYTES ((size_t)256 * 1024)

struct pg_canceller {
    pthread_mutex_t lock; /* of the members below; COMES is valid while OWNER is there */
    struct pg *owner;     /* NULL: left alone */
    uv_async_t *comes;
    bool is_over; /* the thread needs this no more */
    PGcancel *request;
    const struct pg_lib *lib;
};

static void canceller_free(struct pg_canceller *c)
{
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static void *on_thread(void *arg)
{
    struct pg_canceller *c = arg;
    char words[256]; /* nobody needs them: when it fails, the connection is cut after a while */
    c->lib->cancel(c->request, words, (int)sizeof words);
    c->lib->freeCancel(c->request);
    pthread_mutex_lock(&c->lock);
    bool is_left = c->owner == NULL;
    c->is_over = true;
    if (!is_left)
        uv_async_send(c->comes);
    pthread_mutex_unlock(&c->lock);
    if (is_left)
        canceller_free(c);
    return NULL;
}

/* Signals are the main thread's. */
static int start_thread(struct pg_canceller *c)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    int failed = pthread_attr_init(&attributes);
    if (failed != 0)
        return failed;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(&thread, &attributes, on_thread, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return failed;
}

bool pg_cancel_send(struct pg *pg)
{
    if (pg->canceller != NULL)
        return true; /* one is on its way */
    struct pg_canceller *c = calloc(1, sizeof *c);
    if (c == NULL)
        return false;
    c->lib = pg->lib;
    c->request = pg->lib->getCancel(pg->conn);
    if (c->request == NULL)
        goto free_c;
    if (pthread_mutex_init(&c->lock, NULL) != 0)
        goto free_request;
    c->owner = pg;
    c->comes = &pg->cancelled;
    if (start_thread(c) != 0)
        goto destroy_lock;
    pg->canceller = c;
    return true;
destroy_lock:
    pthread_mutex_destroy(&c->lock);
free_request:
    pg->lib->freeCancel(c->request);
free_c:
    free(c);
    return false;
}

bool pg_cancel_arrived(struct pg *pg)
{
    struct pg_canceller *c = pg->canceller;
    if (c == NULL)
        return false;
    pthread_mutex_lock(&c->lock);
    bool is_over = c->is_over;
    pthread_mutex_unlock(&c->lock);
    if (!is_over)
        return false;
    pg->canceller = NULL;
    canceller_free(c);
    return true;
}

void pg_cancel_leave(struct pg *pg)
{
    struct pg_canceller *c = pg->canceller;
    if (c == NULL)
        return;
    pg->canceller = NULL;
    pthread_mutex_lock(&c->lock);
    bool is_over = c->is_over;
    c->owner = NULL;
    pthread_mutex_unlock(&c->lock);
    if (is_over)
        canceller_free(c);
}
