/* test_loss.c - the objectives against golden values, finite differences and by hand. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "worker/loss.h"
#include "worker/metrics.h"

static void near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("got %.17g, want %.17g", got, want);
}

/* Batch mean of TRL's sigmoid loss for two pairs: computed with the library. */
static void golden(void **state)
{
    double g, sum;

    (void)state;
    sum = loss_dpo_sigmoid(0.1, -10.0 - -11.0, -12.0 - -11.5, &g);
    sum += loss_dpo_sigmoid(0.1, -30.0 - -29.0, -25.0 - -26.5, &g);
    near(sum / 2, 0.723448234, 5e-10);
    assert_true(loss_dpo_sigmoid(0.1, 0, 0, &g) == M_LN2);
    assert_true(g == -0.05);
}

static void extremes(void **state)
{
    double g;

    (void)state;
    assert_true(loss_dpo_sigmoid(1, 1e6, -1e6, &g) == 0);
    assert_true(g == 0);
    assert_true(loss_dpo_sigmoid(1, -1e6, 1e6, &g) == 2e6);
    assert_true(g == -1);
    assert_true(isnan(loss_dpo_sigmoid(1, NAN, 0, &g)));
}

static void derivative(void **state)
{
    const double h = 1e-6;

    (void)state;
    for (double x = -40; x <= 40; x += 0.7) {
        double g, ignored;
        const double up = loss_dpo_sigmoid(0.3, x + h, 1.5, &ignored);
        const double down = loss_dpo_sigmoid(0.3, x - h, 1.5, &ignored);
        loss_dpo_sigmoid(0.3, x, 1.5, &g);
        near(g, (up - down) / (2 * h), 1e-8);
    }
}

/* Two pairs in one micro-batch: 2 + 1 and 1 + 2 target tokens. */
static int32_t head_example[] = {0, 0, 0, 1, 1, 1};
static uint8_t head_half[] = {0, 0, 1, 0, 1, 1};
static float logp[] = {-1, -2, -4, -1.5f, -2, -3};
static float lse[] = {3, 3, 3, 3, 3, 3}, sum_z[] = {10, 20, 30, 40, 50, 60};
static float sum_pz[] = {1, 1, 1, 1, 1, 1};
static int32_t hit[] = {1, 0, 1, 0, 1, 1};
static const float ref0[] = {-1, -2.5f, -3}, ref1[] = {-1.5f, -2.5f, -3};
static struct example rows[2] = {{.row = 11, .source = 0}, {.row = 12, .source = 0}};

static struct batch two_pairs(const struct example **examples)
{
    examples[0] = &rows[0];
    examples[1] = &rows[1];
    return (struct batch){.n_head = 6,
                          .head_example = head_example,
                          .head_half = head_half,
                          .n_examples = 2,
                          .examples = examples};
}

static const struct head_out head = {
    .logp = logp, .lse = lse, .sum_z = sum_z, .sum_pz = sum_pz, .hit = hit, .cap = 6};

static void dpo_batch(void **state)
{
    const struct example *examples[2];
    const struct batch b = two_pairs(examples);
    const struct loss_opts o = {.method = SPEC_DPO, .beta = 0.5, .divisor = 2, .vocab = 10};
    const float *ref[] = {ref0, ref1};
    double slots[2 * LOSS_SLOTS], v[METRICS], g0, g1, want;
    float coef[6];
    struct err err;

    (void)state;
    assert_int_equal(loss_batch(&o, &b, &head, ref, coef, slots, &err), 0);
    want = loss_dpo_sigmoid(0.5, 0.5, -1, &g0) + loss_dpo_sigmoid(0.5, 0, 0.5, &g1);
    near(slots[LOSS_SUM] + slots[LOSS_SLOTS + LOSS_SUM], want, 1e-15);
    near(coef[0], g0 / 2, 1e-7);
    near(coef[1], g0 / 2, 1e-7);
    near(coef[2], -g0 / 2, 1e-7);
    near(coef[3], g1 / 2, 1e-7);
    near(coef[5], -g1 / 2, 1e-7);

    metrics_mean(SPEC_DPO, slots, 2, (const int64_t[]){3, 3}, v);
    near(v[METRIC_LOSS], want / 2, 1e-15);
    near(v[METRIC_REWARDS_CHOSEN], (0.25 + 0) / 2, 1e-15);
    near(v[METRIC_REWARDS_REJECTED], (-0.5 + 0.25) / 2, 1e-15);
    near(v[METRIC_REWARDS_MARGINS], (0.75 - 0.25) / 2, 1e-15);
    near(v[METRIC_REWARDS_ACCURACIES], 0.5, 0);
    near(v[METRIC_LOGPS_CHOSEN], (-3 - 1.5) / 2, 1e-15);
    near(v[METRIC_LOGPS_REJECTED], (-4 - 5) / 2.0, 1e-15);
    near(v[METRIC_LOGITS_CHOSEN], (1 + 2 + 4) / 3.0, 1e-15);
    near(v[METRIC_LOGITS_REJECTED], (3 + 5 + 6) / 3.0, 1e-15);
    near(v[METRIC_ENTROPY], 2, 1e-15);
    near(v[METRIC_TOKEN_ACCURACY], 1.0 / 3, 1e-15);
}

static void sft_batch(void **state)
{
    static uint8_t chosen_only[6];
    const struct example *examples[2];
    struct batch b = two_pairs(examples);
    const struct loss_opts o = {.method = SPEC_SFT, .divisor = 24, .vocab = 10};
    double slots[2 * LOSS_SLOTS], v[METRICS];
    float coef[6];
    struct err err;

    (void)state;
    b.head_half = chosen_only;
    assert_int_equal(loss_batch(&o, &b, &head, NULL, coef, slots, &err), 0);
    for (int i = 0; i < 6; i++)
        near(coef[i], -1.0 / 24, 1e-8);
    metrics_mean(SPEC_SFT, slots, 2, (const int64_t[]){6, 0}, v);
    near(v[METRIC_LOSS], 13.5 / 6, 1e-15);
    near(v[METRIC_TOKEN_ACCURACY], 4.0 / 6, 1e-15);
    near(v[METRIC_ENTROPY], 2, 1e-15);
}

/* The step-0 check: exact zeros pass with ln 2; one bit is refused by row. */
static void start_check(void **state)
{
    const struct example *examples[2];
    const struct batch b = two_pairs(examples);
    const struct loss_opts o = {
        .method = SPEC_DPO, .beta = 0.1, .divisor = 2, .vocab = 10, .must_be_start = true};
    float off[3];
    const float *ref[] = {logp, logp + 3};
    double slots[2 * LOSS_SLOTS];
    struct err err;

    (void)state;
    assert_int_equal(loss_batch(&o, &b, &head, ref, NULL, slots, &err), 0);
    assert_true(slots[LOSS_SUM] == M_LN2 && slots[LOSS_SLOTS + LOSS_SUM] == M_LN2);

    memcpy(off, logp + 3, sizeof off);
    off[2] = nextafterf(off[2], 0);
    ref[1] = off;
    assert_int_equal(loss_batch(&o, &b, &head, ref, NULL, slots, &err), -EDOM);
    assert_non_null(strstr(err.text, "row 12"));
}

static void windows(void **state)
{
    struct metrics_window w = {0};
    double a[METRICS], b[METRICS];

    (void)state;
    for (int k = 0; k < METRICS; k++) {
        a[k] = 0.1 * (k + 1);
        b[k] = 0.7 * (k + 1);
    }
    metrics_window_add(&w, a, 7);
    assert_memory_equal(w.mean, a, sizeof a); /* one step: its own bits */
    metrics_window_add(&w, b, 3);
    assert_int_equal(w.steps, 2);
    for (int k = 0; k < METRICS; k++)
        near(w.mean[k], (7 * a[k] + 3 * b[k]) / 10, 1e-14);
}

static void names(void **state)
{
    struct spool_row row = {0};
    const double v[METRICS] = {[METRIC_LOSS] = 0.5, [METRIC_ENTROPY] = 2};

    (void)state;
    metrics_row(&row, SPEC_SFT, "eval_", v);
    assert_int_equal(row.n_values, 3);
    assert_true(metrics_get(&row, "eval_loss") == 0.5);
    assert_true(isnan(metrics_get(&row, "loss")));
    assert_true(metrics_is_timing("step_seconds"));
    assert_true(metrics_is_timing("eval_runtime"));
    assert_false(metrics_is_timing("eval_loss"));
    assert_false(metrics_is_timing("num_tokens"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),    cmocka_unit_test(extremes),  cmocka_unit_test(derivative),
        cmocka_unit_test(dpo_batch), cmocka_unit_test(sft_batch), cmocka_unit_test(start_check),
        cmocka_unit_test(windows),   cmocka_unit_test(names),
    };

    return cmocka_run_group_tests_name("loss", tests, NULL, NULL);
}
