/* test_schedule.c - learning-rate curves against transformers' own values. */
#include "tests/support/test.h"

#include <math.h>

#include "worker/schedule.h"

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-14))
        fail_msg("got %.17g, want %.17g", got, want);
}

/* get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup: 3 warm-up
 * updates of 10, lambda at 0..10 (transformers 5.23.0). */
static void curves(void **state)
{
    static const double cosine[] = {0.0,
                                    1.0 / 3,
                                    2.0 / 3,
                                    1.0,
                                    0.9504844339512095,
                                    0.8117449009293668,
                                    0.6112604669781572,
                                    0.38873953302184283,
                                    0.1882550990706332,
                                    0.04951556604879043,
                                    0.0};

    (void)state;
    for (int s = 0; s <= 10; s++) {
        near(schedule_factor(SPEC_COSINE, s, 3, 10), cosine[s]);
        near(schedule_factor(SPEC_LINEAR, s, 3, 10), s < 3 ? s / 3.0 : (10 - s) / 7.0);
        near(schedule_factor(SPEC_CONSTANT_WITH_WARMUP, s, 3, 10), s < 3 ? s / 3.0 : 1.0);
        near(schedule_factor(SPEC_CONSTANT, s, 3, 10), 1.0);
    }
}

static void edges(void **state)
{
    (void)state;
    near(schedule_factor(SPEC_LINEAR, 0, 0, 1), 1.0);
    near(schedule_factor(SPEC_LINEAR, 5, 0, 1), 0.0);    /* past the end */
    near(schedule_factor(SPEC_COSINE, 4, 10, 10), 0.4);  /* nothing but warm-up */
    near(schedule_factor(SPEC_COSINE, 10, 10, 10), 1.0); /* max(1, T - w) = 1 */
    near(schedule_factor(SPEC_LINEAR, 10, 20, 10), 0.5); /* warm-up longer than the run */
}

static void warmup(void **state)
{
    struct spec s = {.lr_scheduler_type = SPEC_COSINE, .warmup_ratio = 0.1};

    (void)state;
    assert_int_equal(schedule_warmup(&s, 100), 10);
    assert_int_equal(schedule_warmup(&s, 101), 11); /* ceil */
    assert_int_equal(schedule_warmup(&s, 1), 1);
    s.warmup_steps = 7; /* wins over the ratio */
    assert_int_equal(schedule_warmup(&s, 100), 7);
    s.lr_scheduler_type = SPEC_CONSTANT;
    assert_int_equal(schedule_warmup(&s, 100), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(curves),
        cmocka_unit_test(edges),
        cmocka_unit_test(warmup),
    };

    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
