/* test_sampler.c - steps cover each epoch once; deals are balanced and repeatable. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/rng.h"
#include "worker/sampler.h"

static void covers_each_epoch_once(void **state)
{
    static const int64_t cases[][2] = {{1, 1}, {1, 16}, {7, 3}, {16, 16}, {100, 16}, {1596, 16}};

    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        const int64_t n = cases[c][0], batch = cases[c][1];
        const int64_t per_epoch = sampler_steps_per_epoch(n, batch);
        struct sampler s;
        int *seen = calloc((size_t)n, sizeof *seen);

        assert_int_equal(sampler_init(&s, 42, n, batch), 0);
        for (int64_t step = 0; step < 3 * per_epoch; step++) {
            const uint32_t *v;
            int got;
            sampler_step(&s, step, &v, &got);
            assert_true(got >= 1 && got <= batch);
            if (step % per_epoch < per_epoch - 1)
                assert_int_equal(got, batch);
            for (int i = 0; i < got; i++) {
                assert_true(v[i] < n);
                seen[v[i]]++;
            }
            if ((step + 1) % per_epoch == 0)
                for (int64_t i = 0; i < n; i++)
                    assert_int_equal(seen[i], step / per_epoch + 1);
        }
        free(seen);
        sampler_fini(&s);
    }
}

/* A step looked at out of order is the same step: what a resume relies on. */
static void pure(void **state)
{
    struct sampler a, b;
    const uint32_t *v, *w;
    int n, m;

    (void)state;
    assert_int_equal(sampler_init(&a, 7, 50, 8), 0);
    assert_int_equal(sampler_init(&b, 7, 50, 8), 0);
    for (int64_t step = 20; step >= 0; step--) {
        uint32_t copy[8];
        sampler_step(&a, step, &v, &n);
        memcpy(copy, v, (size_t)n * sizeof *v);
        for (int64_t t = 0; t <= step; t++)
            sampler_step(&b, t, &w, &m);
        assert_int_equal(n, m);
        assert_memory_equal(copy, w, (size_t)n * sizeof *w);
    }
    sampler_step(&a, 0, &v, &n);
    sampler_fini(&b);
    assert_int_equal(sampler_init(&b, 8, 50, 8), 0);
    sampler_step(&b, 0, &w, &m);
    assert_memory_not_equal(v, w, 8 * sizeof *v);
    sampler_fini(&a);
    sampler_fini(&b);
}

static void refuses(void **state)
{
    struct sampler s;

    (void)state;
    assert_int_equal(sampler_init(&s, 1, 0, 4), -EINVAL);
    sampler_fini(&s);
    assert_int_equal(sampler_init(&s, 1, 4, 0), -EINVAL);
    sampler_fini(&s);
    assert_int_equal(sampler_init(&s, 1, (int64_t)1 << 33, 4), -EINVAL);
    sampler_fini(&s);
    sampler_fini(NULL);
}

/* Longest-first greedy stays within 4/3 of the best possible (Graham 1969), which is
 * at least the mean load and the longest item. */
static void deals(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        const int n = 1 + (int)rng_below(seed, RNG_SAMPLES, 0, 0, 40);
        const uint32_t ranks = 1 + (uint32_t)rng_below(seed, RNG_SAMPLES, 0, 1, 5);
        int64_t tokens[40], load[8] = {0}, total = 0, longest = 0, fullest = 0;
        int32_t order[40], again[40];
        uint32_t owner[40], owner2[40];

        for (int i = 0; i < n; i++) {
            tokens[i] = 2 + (int64_t)rng_below(seed, RNG_SAMPLES, 1, (uint64_t)i, 500);
            total += tokens[i];
            longest = tokens[i] > longest ? tokens[i] : longest;
        }
        assert_int_equal(sampler_deal(tokens, n, ranks, order, owner), 0);
        assert_int_equal(sampler_deal(tokens, n, ranks, again, owner2), 0);
        assert_memory_equal(order, again, (size_t)n * sizeof *order);
        assert_memory_equal(owner, owner2, (size_t)n * sizeof *owner);
        for (int i = 0; i < n; i++) {
            assert_true(owner[i] < ranks);
            load[owner[i]] += tokens[i];
            if (i > 0)
                assert_true(tokens[order[i - 1]] >= tokens[order[i]]);
        }
        for (uint32_t r = 0; r < ranks; r++)
            fullest = load[r] > fullest ? load[r] : fullest;
        assert_true(fullest <= total / ranks + longest);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(covers_each_epoch_once),
        cmocka_unit_test(pure),
        cmocka_unit_test(refuses),
        cmocka_unit_test(deals),
    };

    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
