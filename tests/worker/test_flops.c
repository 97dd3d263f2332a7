/* test_flops.c - the arithmetic of a run, against figures worked out by hand. */
#include "tests/support/test.h"

#include <math.h>

#include "worker/flops.h"

static const struct model_config mistral = {.hidden = 4096,
                                            .layers = 32,
                                            .heads = 32,
                                            .kv_heads = 8,
                                            .head_dim = 128,
                                            .intermediate = 14336,
                                            .vocab = 32000};

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-3 * want))
        fail_msg("%g, not %g", got, want);
}

/* Mistral-7B: 6.979 G elements in linears, 131.1 M in the head; 1,024 tokens attend to
 * 524,800 pairs, of 4 x 4,096 operations in 32 layers. */
static void sft(void **state)
{
    struct example e = {.n_prompt = 24, .n_reply = {1000, 0}};
    const struct dataset d = {.train = &e, .n_train = 1};
    const struct plan p = {.batch = 8, .n_train = 1, .epochs = 3};
    const double attention = 524800.0 * 4 * 4096 * 32;
    struct flops f;

    (void)state;
    flops_count(&mistral, &d, 41943040, &f);
    near(f.train, 1024 * (4 * 6.979e9 + 6 * 41943040.0) + 4 * 1000 * 131.1e6 + 3.5 * attention);
    near(f.again, 1024 * 2 * (6.979e9 + 41943040.0) + attention);
    near(flops_step(&f, &p, 0, 32), 8 * f.train);
    near(flops_step(&f, &p, 16, 32), 8 * (f.train + f.again / 2));
}

/* A pair's prompt is computed once: of 2 x 430 tokens 710 are left, and of the attention the
 * prompt's part once. */
static void dpo(void **state)
{
    struct example e[2] = {{.n_prompt = 150, .n_reply = {280, 280}},
                           {.n_prompt = 150, .n_reply = {280, 280}}};
    const struct dataset d = {.train = e, .n_train = 2};
    const struct plan p = {.batch = 1, .n_train = 2, .epochs = 2};
    const double pairs = 2 * (430.0 * 431 - 150.0 * 151 / 2), attention = pairs * 4 * 4096 * 32;
    struct flops f;

    (void)state;
    flops_count(&mistral, &d, 0, &f);
    near(f.train, 1420 * 4 * 6.979e9 + 4 * 1120 * 131.1e6 + 3.5 * attention);
    near(f.reference, 1420 * 2 * 6.979e9 + 2 * 1120 * 131.1e6 + attention);
    near(flops_step(&f, &p, 0, 32), f.train / 2);
    near(flops_run(&f, &p, 0, 32), 2 * f.train + f.reference);
    struct model_config windowed = mistral;
    struct flops less;
    windowed.sliding_window = 100;
    flops_count(&windowed, &d, 0, &less);
    /* A sequence of 430 with a window of 100: 5,050 + 330 x 100 pairs; of 150: 5,050 + 5,000. */
    near(f.reference - less.reference, (pairs - 2 * (2 * 38050.0 - 10050)) * 4 * 4096 * 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sft), cmocka_unit_test(dpo)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
