/*
 * cron.h -- five fields that say when: minute, hour, day of the month, month, day of the week.
 *
 * As cron(8) reads them: "*", numbers, ranges a-b, steps /n and lists; months and days also as three letters; Sunday is
 * 0 or 7. Where day of the month and day of the week are both restricted (neither begins with "*"), either is enough.
 * Times are those of the zone that the process lives in (TZ). Pure; any thread.
 */
#ifndef CHUTE_CRON_H
#define CHUTE_CRON_H

#include "err.h"

#include <stdbool.h>
#include <stdint.h>

struct cron {
    uint64_t minutes; /* bit per minute */
    uint32_t hours;
    uint32_t days;    /* of the month, bits 1 to 31 */
    uint16_t months;  /* bits 1 to 12 */
    uint8_t weekdays; /* bits 0 (Sunday) to 6 */
    bool any_hour;    /* the hour begins with "*": such jobs run by the clock that never jumps */
    bool any_day;     /* the day of the month begins with "*" */
    bool any_weekday;
};

/* ERR_CONFIG: not understood, with the field; or it names a time that never comes (31 February). */
enum err_code cron_parse(const char *text, struct cron *ret, struct err *err);

/*
 * The first time after AFTER_MS (wall clock, ms since 1970), in ms; always a whole minute. -1: none within nine years.
 *
 * When clocks are put forward, what falls into the hour that is left out comes at its end. When they are put back, what
 * falls into the hour that comes twice comes the first time only, unless its hour begins with "*": then it is every
 * such minute.
 */
int64_t cron_next(const struct cron *c, int64_t after_ms);

#endif
