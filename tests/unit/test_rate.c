#include "rate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define SECOND_NS 1000000000ull
#define START_NS (12345 * SECOND_NS)

struct client {
    struct rate_turn turn;
    unsigned turns;
    uint64_t bytes;
    uint64_t wanted; /* in all; 0: without end */
};

static void on_turn(struct rate_turn *turn)
{
    struct client *c = (struct client *)turn;
    c->turns++;
    assert_false(turn->is_waiting);
}

static void client_init(struct client *c)
{
    memset(c, 0, sizeof *c);
    c->turn.on_turn = on_turn;
}

static void no_limit_gives_everything(void **state)
{
    struct rate r;
    struct client c;
    (void)state;
    client_init(&c);
    rate_init(&r, 0);
    assert_int_equal(rate_take(&r, &c.turn, SIZE_MAX, 0), SIZE_MAX);
    assert_true(rate_pass(&r, &c.turn, SIZE_MAX, 0));
    rate_return(&r, 17);
    assert_int_equal(rate_serve(&r, 0), 0);
    rate_leave(&r, &c.turn);
    assert_null(r.line);
}

static void a_full_bucket_holds_a_tenth_of_a_second(void **state)
{
    struct rate r;
    struct client c;
    (void)state;
    client_init(&c);
    rate_init(&r, 1000000);
    assert_int_equal(rate_take(&r, &c.turn, 1 << 30, START_NS), 100000);
    assert_int_equal(rate_take(&r, &c.turn, 1 << 30, START_NS), 0);
    assert_true(c.turn.is_waiting);
    /* it wants more than the bucket holds: worth waking up for is half of that */
    assert_int_equal(rate_serve(&r, START_NS), SECOND_NS / 20);
    assert_int_equal(rate_serve(&r, START_NS + SECOND_NS / 20 - 1), 1);
    assert_int_equal(c.turns, 0);
    assert_int_equal(rate_serve(&r, START_NS + SECOND_NS / 20), 0);
    assert_int_equal(c.turns, 1);
    assert_int_equal(rate_take(&r, &c.turn, 10, START_NS + SECOND_NS / 20), 10); /* out of what was granted */
    assert_int_equal(rate_take(&r, &c.turn, 1 << 30, START_NS + SECOND_NS / 20), 49990);
    rate_leave(&r, &c.turn);
    assert_int_equal(rate_take(&r, &c.turn, 1 << 30, START_NS + 1000 * SECOND_NS), 100000); /* no savings */
}

static void what_is_not_used_goes_back(void **state)
{
    struct rate r;
    struct client c;
    (void)state;
    client_init(&c);
    rate_init(&r, 1000000);
    assert_int_equal(rate_take(&r, &c.turn, 60000, START_NS), 60000);
    rate_return(&r, 60000);
    assert_int_equal(rate_take(&r, &c.turn, 100000, START_NS), 100000);
    assert_int_equal(rate_take(&r, &c.turn, 100000, START_NS), 0);
    rate_serve(&r, START_NS + SECOND_NS);
    assert_int_equal(c.turn.granted, 100000);
    rate_leave(&r, &c.turn); /* with what it was granted */
    assert_int_equal(rate_take(&r, &c.turn, 100000, START_NS + SECOND_NS), 100000);
}

static void a_piece_that_cannot_be_divided_goes_into_debt(void **state)
{
    struct rate r;
    struct client c;
    (void)state;
    client_init(&c);
    rate_init(&r, 1000);
    assert_true(rate_pass(&r, &c.turn, 10000, START_NS));
    assert_false(rate_pass(&r, &c.turn, 10000, START_NS)); /* 9.9 s until the bucket has its first byte, 50 ms more */
    uint64_t wait_ns = rate_serve(&r, START_NS);
    assert_in_range(wait_ns, 9900000000, 10000000000);
    assert_int_equal(rate_serve(&r, START_NS + wait_ns), 0);
    assert_int_equal(c.turns, 1);
    assert_true(rate_pass(&r, &c.turn, 10000, START_NS + wait_ns));
    assert_false(rate_pass(&r, &c.turn, 1, START_NS + wait_ns));
    rate_leave(&r, &c.turn);
    assert_null(r.line);
}

static void another_limit_holds_from_now_on(void **state)
{
    struct rate r;
    struct client c;
    (void)state;
    client_init(&c);
    rate_init(&r, 1);
    assert_int_equal(rate_take(&r, &c.turn, 10, START_NS), 1);
    assert_int_equal(rate_take(&r, &c.turn, 10, START_NS), 0);
    rate_set(&r, 0);
    assert_int_equal(rate_serve(&r, START_NS), 0);
    assert_int_equal(c.turns, 1);
    assert_int_equal(rate_take(&r, &c.turn, 10, START_NS), 10);
    rate_set(&r, UINT64_MAX);
    assert_true(r.bytes_per_s <= 10000000000);
    assert_int_equal(rate_take(&r, &c.turn, SIZE_MAX, START_NS + 2 * SECOND_NS), 1000000000);
}

/* Simulated time: COUNT clients that want all they can get, 16 KiB at a time at most. */
static void run(struct rate *r, struct client *clients, int count, uint64_t for_ns, uint64_t step_ns)
{
    uint64_t total = 0;
    for (uint64_t at = 0; at <= for_ns; at += step_ns) {
        rate_serve(r, START_NS + at);
        for (bool goes_on = true; goes_on;) {
            goes_on = false;
            for (int nth = 0; nth < count; nth++) {
                int i = (int)((at / step_ns + (uint64_t)nth) % (uint64_t)count); /* who asks first is chance */
                size_t got = clients[i].turn.is_waiting ? 0 : rate_take(r, &clients[i].turn, 16384, START_NS + at);
                clients[i].bytes += got;
                total += got;
                goes_on |= got > 0;
            }
        }
        uint64_t burst = r->bytes_per_s / 10 > 0 ? r->bytes_per_s / 10 : 1;
        assert_true(total <= burst + (at / 1000 * r->bytes_per_s) / 1000000 + 1);
    }
}

static void many_get_the_same_and_together_never_too_much(void **state)
{
    static const uint64_t rates[] = {1, 7, 100, 12345, 1000000, 123456789, 4000000000};
    (void)state;
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        struct client clients[5];
        struct rate r;
        const uint64_t seconds = rates[i] < 1000 ? 1000 : 10;
        uint64_t least = UINT64_MAX, most = 0, total = 0;
        for (int c = 0; c < 5; c++)
            client_init(&clients[c]);
        rate_init(&r, rates[i]);
        run(&r, clients, 5, seconds * SECOND_NS, SECOND_NS / 1000);
        for (int c = 0; c < 5; c++) {
            uint64_t bytes = clients[c].bytes;
            least = bytes < least ? bytes : least;
            most = bytes > most ? bytes : most;
            total += bytes;
            rate_leave(&r, &clients[c].turn);
        }
        assert_true(total >= rates[i] * seconds * 98 / 100); /* nor too little: steps are far shorter than the bucket */
        /* the first one empties the full bucket, and each may be one portion ahead */
        assert_true(most - least <= rates[i] / 10 + 2 * 16384);
        assert_null(r.line);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_limit_gives_everything),
        cmocka_unit_test(a_full_bucket_holds_a_tenth_of_a_second),
        cmocka_unit_test(what_is_not_used_goes_back),
        cmocka_unit_test(a_piece_that_cannot_be_divided_goes_into_debt),
        cmocka_unit_test(another_limit_holds_from_now_on),
        cmocka_unit_test(many_get_the_same_and_together_never_too_much),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
