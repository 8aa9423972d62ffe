/* test_cron.c -- five fields, what they refuse, and the two nights a year on which clocks jump. */
#include "cron.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void use_zone(const char *zone)
{
    setenv("TZ", zone, 1);
    tzset();
}

/* "2026-03-29 01:30:00" of the zone in use, in ms; with +S behind it: in summer time. */
static int64_t at(const char *text)
{
    struct tm t = {.tm_isdst = -1};
    const char *rest = strptime(text, "%Y-%m-%d %H:%M", &t);
    assert_non_null(rest);
    t.tm_isdst = strcmp(rest, "S") == 0 ? 1 : strcmp(rest, "W") == 0 ? 0 : -1;
    return (int64_t)mktime(&t) * 1000;
}

static const char *name_of(int64_t ms)
{
    static char text[64];
    struct tm t;
    time_t seconds = (time_t)(ms / 1000);
    if (ms < 0)
        return "never";
    assert_non_null(localtime_r(&seconds, &t));
    strftime(text, sizeof text, "%Y-%m-%d %H:%M %Z", &t);
    return text;
}

/* The times that TEXT means after AFTER, one after the other. */
static void check(const char *text, const char *after, const char *const *want)
{
    struct cron c;
    struct err err = {0};
    int64_t now = at(after);
    if (cron_parse(text, &c, &err) != ERR_NONE)
        fail_msg("%s: %s", text, err.text);
    for (; *want != NULL; want++) {
        int64_t next = cron_next(&c, now);
        assert_string_equal(name_of(next), *want);
        assert_true(next > now);
        now = next;
    }
}
#define CHECK(text, after, ...) check(text, after, (const char *const[]){__VA_ARGS__, NULL})

static void the_fields_mean_what_cron_says(void **state)
{
    (void)state;
    use_zone("UTC");
    CHECK("* * * * *", "2026-01-01 00:00", "2026-01-01 00:01 UTC", "2026-01-01 00:02 UTC");
    CHECK("0 3 * * *", "2026-01-01 03:00", "2026-01-02 03:00 UTC", "2026-01-03 03:00 UTC");
    CHECK("*/20 9-10 * * *", "2026-01-01 08:00", "2026-01-01 09:00 UTC", "2026-01-01 09:20 UTC", "2026-01-01 09:40 UTC",
          "2026-01-01 10:00 UTC");
    CHECK("5/30 * * * *", "2026-01-01 00:00", "2026-01-01 00:05 UTC", "2026-01-01 00:35 UTC", "2026-01-01 01:05 UTC");
    CHECK("30 8 * * mon-fri", "2026-01-02 09:00", "2026-01-05 08:30 UTC", "2026-01-06 08:30 UTC");
    CHECK("30 8 * * Sun", "2026-01-01 09:00", "2026-01-04 08:30 UTC", "2026-01-11 08:30 UTC");
    CHECK("0 0 * * 7", "2026-01-01 00:00", "2026-01-04 00:00 UTC");
    CHECK("0 12 1,15 jan,JUL *", "2026-01-02 00:00", "2026-01-15 12:00 UTC", "2026-07-01 12:00 UTC");
    CHECK("0 0 31 * *", "2026-02-01 00:00", "2026-03-31 00:00 UTC", "2026-05-31 00:00 UTC");
    CHECK("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00 UTC", "2032-02-29 00:00 UTC");
    CHECK("0 0 1 * *", "2026-12-31 23:59", "2027-01-01 00:00 UTC");
}

static void either_day_is_enough_where_both_are_given(void **state)
{
    (void)state;
    use_zone("UTC");
    CHECK("0 0 13 * 5", "2026-02-01 00:00", "2026-02-06 00:00 UTC", "2026-02-13 00:00 UTC", "2026-02-20 00:00 UTC");
    CHECK("0 0 13 * 1", "2026-02-10 00:00", "2026-02-13 00:00 UTC", "2026-02-16 00:00 UTC");
    /* a field that begins with * restricts as well, and then both must be right */
    CHECK("0 0 */2 * 1", "2026-02-01 00:00", "2026-02-09 00:00 UTC", "2026-02-23 00:00 UTC");
}

static void what_is_left_out_in_spring_comes_at_its_end(void **state)
{
    (void)state;
    use_zone("Europe/Prague"); /* 2026-03-29: 02:00 becomes 03:00 */
    CHECK("30 2 * * *", "2026-03-28 12:00", "2026-03-29 03:00 CEST", "2026-03-30 02:30 CEST");
    CHECK("0,30 2 * * *", "2026-03-29 01:00", "2026-03-29 03:00 CEST", "2026-03-30 02:00 CEST");
    CHECK("0 2-4 * * *", "2026-03-29 01:00", "2026-03-29 03:00 CEST", "2026-03-29 04:00 CEST");
    CHECK("30 * * * *", "2026-03-29 01:00", "2026-03-29 01:30 CET", "2026-03-29 03:30 CEST");
    CHECK("30 2 29 3 *", "2026-03-01 00:00", "2026-03-29 03:00 CEST", "2027-03-29 02:30 CEST");
    CHECK("30 3 * * *", "2026-03-28 12:00", "2026-03-29 03:30 CEST");
    use_zone("Australia/Lord_Howe"); /* half an hour, 2026-10-04: 02:00 becomes 02:30 */
    CHECK("15 2 * * *", "2026-10-03 12:00", "2026-10-04 02:30 +11", "2026-10-05 02:15 +11");
    use_zone("America/Santiago"); /* midnight itself is left out, 2026-09-06 */
    CHECK("0 0 * * *", "2026-09-05 12:00", "2026-09-06 01:00 -03", "2026-09-07 00:00 -03");
    CHECK("30 0 6 9 *", "2026-08-01 00:00", "2026-09-06 01:00 -03");
}

static void what_comes_twice_in_autumn_runs_once(void **state)
{
    (void)state;
    use_zone("Europe/Prague"); /* 2026-10-25: 03:00 becomes 02:00 */
    CHECK("30 2 * * *", "2026-10-24 12:00", "2026-10-25 02:30 CEST", "2026-10-26 02:30 CET");
    CHECK("0,30 2 * * *", "2026-10-25 01:00", "2026-10-25 02:00 CEST", "2026-10-25 02:30 CEST", "2026-10-26 02:00 CET");
    CHECK("0 3 * * *", "2026-10-24 12:00", "2026-10-25 03:00 CET", "2026-10-26 03:00 CET");
    /* by the clock that never jumps */
    CHECK("30 * * * *", "2026-10-25 01:00", "2026-10-25 01:30 CEST", "2026-10-25 02:30 CEST", "2026-10-25 02:30 CET",
          "2026-10-25 03:30 CET");
    CHECK("*/30 */2 * * *", "2026-10-25 01:00", "2026-10-25 02:00 CEST", "2026-10-25 02:30 CEST",
          "2026-10-25 02:00 CET", "2026-10-25 02:30 CET", "2026-10-25 04:00 CET");
    /* begun in the second of the two hours: the first one was there */
    CHECK("30 2 * * *", "2026-10-25 02:10W", "2026-10-26 02:30 CET");
    use_zone("Australia/Lord_Howe"); /* 2026-04-05: 02:00 becomes 01:30 */
    CHECK("45 1 * * *", "2026-04-04 12:00", "2026-04-05 01:45 +11", "2026-04-06 01:45 +1030");
}

static void a_whole_year_has_as_many_as_days(void **state)
{
    (void)state;
    static const char *const zones[] = {
        "UTC", "Europe/Prague", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu"};
    for (size_t z = 0; z < sizeof zones / sizeof zones[0]; z++) {
        use_zone(zones[z]);
        for (int minute = 0; minute < 24 * 60; minute += 37) {
            struct cron c;
            struct err err = {0};
            char text[32];
            int days = 0;
            snprintf(text, sizeof text, "%d %d * * *", minute % 60, minute / 60);
            assert_int_equal(cron_parse(text, &c, &err), ERR_NONE);
            for (int64_t t = at("2026-01-01 00:00") - 1; (t = cron_next(&c, t)) < at("2027-01-01 00:00");)
                days++;
            if (days != 365)
                fail_msg("%s in %s: %d times", text, zones[z], days);
        }
    }
}

static void nonsense_is_refused_by_field(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "found fewer"},
        {"* * * *", "found fewer"},
        {"* * * * * *", "found more"},
        {"60 * * * *", "minute: expected numbers from 0 to 59"},
        {"* 24 * * *", "hour: expected"},
        {"* * 0 * *", "day of the month: expected"},
        {"* * * 13 *", "month: expected"},
        {"* * * * 8", "day of the week: expected"},
        {"* * * foo *", "found 'foo'"},
        {"5-1 * * * *", "minute: expected"},
        {"*/0 * * * *", "minute: expected"},
        {"*/60 * * * *", "minute: expected"},
        {"1, * * * *", "minute: expected"},
        {",1 * * * *", "minute: expected"},
        {"1-2-3 * * * *", "minute: expected"},
        {"99999999999 * * * *", "minute: expected"},
        {"1/99999999999 * * * *", "minute: expected"},
        {"-1 * * * *", "minute: expected"},
        {"0 0 30 2 *", "no such day"},
        {"0 0 31 4,6 *", "no such day"},
    };
    (void)state;
    use_zone("UTC");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct cron c;
        struct err err = {0};
        assert_int_equal(cron_parse(bad[i].text, &c, &err), ERR_CONFIG);
        if (strstr(err.text, bad[i].says) == NULL)
            fail_msg("%s: %s", bad[i].text, err.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_fields_mean_what_cron_says),
        cmocka_unit_test(either_day_is_enough_where_both_are_given),
        cmocka_unit_test(what_is_left_out_in_spring_comes_at_its_end),
        cmocka_unit_test(what_comes_twice_in_autumn_runs_once),
        cmocka_unit_test(a_whole_year_has_as_many_as_days),
        cmocka_unit_test(nonsense_is_refused_by_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
