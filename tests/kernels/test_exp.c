/* test_exp.c - the vector exponential of every instruction set against libm's in
 * double, over its whole range; sets with fused multiply-add agree to the bit. */
#include "tests/support/test.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

void exp_isa_avx512(const float *x, float *y, int64_t n);
void exp_isa_avx2(const float *x, float *y, int64_t n);
void exp_isa_sse2(const float *x, float *y, int64_t n);

enum { BATCH = 4099 }; /* odd: tails too */

static float of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Errors in units of the last place of the true value. */
static double error(float got, float x)
{
    const double want = exp((double)x);
    int exponent;

    if (want < 0x1p-126) /* flushed to 0 below; above it still a normal number */
        return got == 0.0f || fabs((double)got - want) < 0x1p-149 ? 0.0 : 1e9;
    if (want > 0x1.fffffep127)
        return isinf(got) || want < 0x1.ffffffp127 ? 0.0 : 1e9;
    (void)frexp(want, &exponent);
    return fabs((double)got - want) / ldexp(1.0, exponent - 24);
}

static void whole_range(void (*f)(const float *, float *, int64_t), double allowed)
{
    static float x[BATCH], y[BATCH];
    double worst = 0.0;
    uint32_t bits = 0;
    int n = 0;

    for (bool more = true; more; bits += 1511) {
        more = bits < 0x42b40000u; /* 90 */
        for (int sign = 0; sign < 2; sign++)
            x[n++] = of_bits(bits | (uint32_t)sign << 31);
        if (n < BATCH - 1 && more)
            continue;
        f(x, y, n);
        for (int i = 0; i < n; i++) {
            const double e = error(y[i], x[i]);
            if (e > allowed)
                fail_msg("e^%.9g = %.9g, off by %.3g ulp", (double)x[i], (double)y[i], e);
            worst = fmax(worst, e);
        }
        n = 0;
    }
    print_message("worst error: %.3f ulp\n", worst);
}

static void special(void (*f)(const float *, float *, int64_t))
{
    const float x[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1000.0f, -1000.0f, -87.34f};
    float y[ARRAY_LEN(x)];

    f(x, y, ARRAY_LEN(x));
    assert_true(y[0] == 1.0f && y[1] == 1.0f && isinf(y[2]) && y[3] == 0.0f && isnan(y[4]));
    assert_true(isinf(y[5]) && y[6] == 0.0f && y[7] == 0.0f);
}

static void sse2(void **state)
{
    (void)state;
    whole_range(exp_isa_sse2, 1.2);
    special(exp_isa_sse2);
}

static void avx2(void **state)
{
    (void)state;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        skip();
    whole_range(exp_isa_avx2, 1.0);
    special(exp_isa_avx2);
}

static void avx512(void **state)
{
    static float x[BATCH], a[BATCH], b[BATCH];

    (void)state;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq"))
        skip();
    whole_range(exp_isa_avx512, 1.0);
    special(exp_isa_avx512);
    for (int i = 0; i < BATCH; i++)
        x[i] = (float)(i - BATCH / 2) * 0.043f;
    exp_isa_avx512(x, a, BATCH);
    exp_isa_avx2(x, b, BATCH);
    assert_memory_equal(a, b, sizeof a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sse2),
        cmocka_unit_test(avx2),
        cmocka_unit_test(avx512),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
