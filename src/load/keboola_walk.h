/*
 * keboola_walk.h -- one load as a walk of remote steps: what its files share. The picture is in keboola_load.c.
 *
 * keboola_load.c    the walk itself: steps, checkpoints, begin, abort, the end
 * keboola_place.c   BUCKET TABLE DEFINE: where the rows go, and whether they may
 * keboola_file.c    PREPARE REWIND UPLOAD: the bytes, into the store that the service names
 * keboola_import.c  CURRENT ORDER LOOK POLL: the import job, and the receipt
 */
#ifndef CHUTE_KEBOOLA_WALK_H
#define CHUTE_KEBOOLA_WALK_H

#include "keboola_internal.h"

#define TURNS_MAX 8 /* of "the table is there now" and "now it is not" */

enum step {
    K_BUCKET,
    K_TABLE,
    K_DEFINE,
    K_DEFINING,
    K_PREPARE,
    K_REWIND,
    K_UPLOAD,
    K_CURRENT,
    K_ORDER,
    K_LOOK,
    K_POLL,
    K_KEEP,
    K_STEPS
};
enum next { AGAIN, WAIT, OVER };

struct kload {
    struct load *load;
    struct keboola *k;
    struct arena arena;
    enum step step, after_keep;
    /* at most one of these is under way */
    struct api_call *call;
    struct upload *upload;
    struct work work;
    bool is_working, is_saving, needs_bucket;
    uv_timer_t timer;
    struct api_call *renewal;      /* beside UPLOAD */
    const struct api_reply *reply; /* inside an answer only */
    struct err err;
    bool is_over;

    char bucket[256];
    struct keboola_table table;
    const char **names, **key;
    struct keboola_walk walk;
    bool is_raw;     /* decided once: a second pass over the rows begins with counts of nothing */
    bool is_adopted; /* the walk is that of another version of this file */
    int64_t define_job;
    struct store_target target;
    const char *account; /* AZURE: how a manifest calls the store */
    size_t slice;        /* the next one; == count: the manifest */
    char *manifest;
    unsigned polls, poll_failures, looks, look_page, prepares, turns;
};

/* Start this step's work; take its answer. AGAIN: enter the step that is set now. WAIT: an answer comes. OVER: the walk
 * has ended, with l->err. */
typedef enum next step_fn(struct kload *l);
step_fn walk_enter_bucket, walk_answer_bucket, walk_enter_table, walk_answer_table, walk_enter_define,
    walk_answer_define, walk_enter_defining, walk_answer_defining, walk_enter_prepare, walk_answer_prepare,
    walk_enter_rewind, walk_answer_rewind, walk_enter_upload, walk_answer_upload, walk_enter_current,
    walk_answer_current, walk_enter_order, walk_answer_order, walk_enter_look, walk_answer_look, walk_enter_poll,
    walk_answer_poll, walk_enter_keep, walk_answer_keep;

/* Callbacks do no deciding: they store what they were told and call walk_answer(). */
void walk_enter(struct kload *l);
void walk_answer(struct kload *l);
/* One request to the service; its answer is l->reply. */
enum next walk_ask(struct kload *l, const char *method, const char *path, const struct buf *body, bool has_branch);
/* Enter this step again in MS. */
enum next walk_later(struct kload *l, uint64_t ms);
/* FN on the pool. */
enum next walk_work(struct kload *l, work_fn *fn);
/* The next step, unless we are to stop. */
enum next walk_go(struct kload *l, enum step to);
/* The checkpoint is written, then comes THEN. */
enum next walk_keep(struct kload *l, enum step then);
/* The walk ends with ERR; what is kept stays for the next try. */
enum next walk_fails(struct kload *l, const struct err *err);
/* Nothing of this walk is worth keeping: forget it, then end with ERR. */
enum next walk_fails_for_good(struct kload *l, const struct err *err);
/* The walk ends with the error of l->reply. */
enum next walk_refused(struct kload *l);
/* The walk ends because we were asked to stop. */
enum next walk_stopped(struct kload *l);
/* The uploaded file is of no use any more: from the start, a few times. */
enum next walk_prepare_again(struct kload *l, const struct err *err);
/* The table or the bucket went away under us, as CODE and ERR say: look again, make it again, a few times; then the
 * walk ends with ERR, which a later try may not meet. */
enum next walk_place_gone(struct kload *l, const char *code, const struct err *err);
/* The table or the bucket is not what it was a moment ago: look again, a few times. */
enum next walk_look_again(struct kload *l, enum step to, const struct err *err);
/* For callbacks that end the walk themselves. */
void walk_finish(struct kload *l);
/* This version of the file, nothing done yet. */
void walk_fresh(struct kload *l);
/* Wipe the credentials of the upload. */
void walk_forget_target(struct kload *l);
/* Only an empty field is NULL, which is what the service takes by itself. */
bool walk_has_default_nulls(const struct kload *l);
/* An error code that says somebody else has made the table. */
bool walk_is_table_there(const char *code);

#endif
