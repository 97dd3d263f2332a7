/* test_adamw8.c - AdamW with moments in 8 bits: the same bits as ref on every backend, each
 * threshold of both maps, what a block may hold, calls that are refused.
 *
 * ref and the backend are given the same sweep (its sum's order is a backend's own); then
 * parameters, codes, scales and float32 moments are compared byte by byte. */
#include "tests/support/test.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adamw8_case.h"

static const char *backend; /* as it was asked for: a race-checked "sim" has another */
static const struct kn_ops *ops;

/* Bias corrections of update t, from 1 on. */
static struct kn_adamw_step step_of(int t, float weight_decay, float max_grad_norm)
{
    return (struct kn_adamw_step){.lr = 1e-2f,
                                  .beta1 = 0.9f,
                                  .beta2 = 0.999f,
                                  .eps = 1e-8f,
                                  .weight_decay = weight_decay,
                                  .max_grad_norm = max_grad_norm,
                                  .bias1 = (float)(1.0 - pow(0.9, t)),
                                  .bias2 = (float)(1.0 - pow(0.999, t))};
}

struct layout {
    int64_t tensor[12], least;
    size_t n;
    int steps, odd;
    float weight_decay, max_grad_norm;
};

static const struct layout layouts[] = {
    {.tensor = {1}, .n = 1, .steps = 3},
    {.tensor = {1, 1, 1, 2, 3}, .n = 5, .steps = 3, .least = 2, .weight_decay = 0.1f},
    {.tensor = {255, 256, 257, 300}, .n = 4, .steps = 4, .max_grad_norm = 1.0f},
    {.tensor = {255, 256, 257, 300}, .n = 4, .steps = 4, .least = 257, .odd = 1},
    {.tensor = {5000, 300, 4096, 4095, 17, 4, 8192},
     .n = 7,
     .steps = 6,
     .least = 4096,
     .weight_decay = 0.01f,
     .max_grad_norm = 0.5f},
    {.tensor = {4100, 12, 5001, 7, 6000}, .n = 5, .steps = 5, .least = 4096, .odd = 3},
    {.tensor = {33100}, .n = 1, .steps = 1, .weight_decay = 0.3f},
};

/* Gradients of several sizes, so that a block's codes are far apart; some are 0. */
static void gradient(float *g, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        const double size = pow(10.0, 4.0 * kit_value(seed, 1, i) - 4.0);
        g[i] = kit_value(seed, 2, i) > 0.95 ? 0.0f : (float)(kit_value(seed, 3, i) * size);
    }
}

static void same_as_ref(void **unused)
{
    struct kit kits[2];

    (void)unused;
    assert_true(kit_open(&kits[0], backend, KN_F32, 2));
    assert_true(kit_open(&kits[1], "ref", KN_F32, 1));
    for (size_t c = 0; c < ARRAY_LEN(layouts); c++) {
        const struct layout *l = &layouts[c];
        struct adamw8_case s[2];
        kits[0].odd = l->odd;
        for (int i = 0; i < 2; i++)
            adamw8_case_make(&s[i], &kits[i], l->tensor, l->n, l->least);
        const int64_t n = s[0].a.n;
        float *g = malloc((size_t)n * sizeof *g);
        assert_non_null(g);
        gradient(g, n, 50 + c);
        for (int i = 0; i < 2; i++)
            kit_put(&kits[i], s[i].a.p, g, (size_t)n * sizeof *g);
        for (int t = 1; t <= l->steps; t++) {
            const struct kn_adamw_step step = step_of(t, l->weight_decay, l->max_grad_norm);
            gradient(g, n, 100 * c + (uint64_t)t);
            const struct kn_sweep sweep = adamw8_case_sweep(g, n);
            for (int i = 0; i < 2; i++) {
                kit_put(&kits[i], s[i].g, g, (size_t)n * sizeof *g);
                adamw8_case_step(&s[i], &step, &sweep);
            }
            adamw8_case_same(&s[0], &s[1]);
        }
        free(g);
        kit_release(&kits[0], 0);
        kit_release(&kits[1], 0);
    }
    kit_close(&kits[0]);
    kit_close(&kits[1]);
}

/* One block whose moments become g and g * g: no memory of what was. */
static void one_block(const float *g, int n, uint8_t *m, uint8_t *v, float scale[2])
{
    const struct kn_adamw_step step = {.lr = 1e-3f, .eps = 1e-8f, .bias1 = 1.0f, .bias2 = 1.0f};
    const struct kn_sweep sweep = adamw8_case_sweep(g, n);
    const int64_t tensor = n;
    struct adamw8_case s;
    struct kit k;

    assert_true(kit_open(&k, backend, KN_F32, 1));
    adamw8_case_make(&s, &k, &tensor, 1, 0);
    kit_put(&k, s.g, g, (size_t)n * sizeof *g);
    adamw8_case_step(&s, &step, &sweep);
    kit_take(&k, m, s.a.m, (size_t)n);
    kit_take(&k, v, s.a.v, (size_t)n);
    kit_take(&k, &scale[0], s.a.m_scale, sizeof(float));
    kit_take(&k, &scale[1], s.a.v_scale, sizeof(float));
    kit_close(&k);
}

/* Entries, the float32 middles between them and what lies beside those. */
static void thresholds(void **unused)
{
    float map[2][256], g[256] = {0}, scale[2];
    uint8_t m[256], v[256];

    (void)unused;
    for (int u = 0; u < 2; u++)
        kn_dynamic_map(map[u], u == 0);
    for (int place = 0; place < 7; place++) {
        g[255] = 1.0f;
        for (int s = 0; s < 255; s++) {
            const float a = map[0][s], b = map[0][s + 1], middle = (a + b) * 0.5f;
            const float root = sqrtf((map[1][s] + map[1][s + 1]) * 0.5f);
            g[s] = place == 0   ? a
                   : place == 1 ? middle
                   : place == 2 ? nextafterf(middle, -2.0f)
                   : place == 3 ? nextafterf(middle, 2.0f)
                   : place == 4 ? root
                   : place == 5 ? nextafterf(root, 0.0f)
                                : nextafterf(root, 2.0f);
        }
        one_block(g, 256, m, v, scale);
        assert_true(scale[0] == 1.0f && scale[1] == 1.0f);
        for (int s = 0; s < 256; s++) {
            assert_int_equal(m[s], adamw8_case_nearest(map[0], g[s], true));
            assert_int_equal(v[s], adamw8_case_nearest(map[1], g[s] * g[s], false));
        }
        for (int s = 0; s < 255 && place < 4; s++) {
            const int above = s == 126 ? 126 : s + 1; /* below 0 stays below 0 */
            const int want[4] = {s, s % 2 ? s + 1 : s, s, above};
            assert_int_equal(m[s], want[place]);
        }
    }
}

static void edges(void **unused)
{
    const float tiny = 1.4e-45f;
    float g[300] = {0}, scale[2];
    uint8_t m[300], v[300];

    (void)unused;
    one_block(g, 256, m, v, scale); /* nothing but zeros */
    for (int i = 0; i < 256; i++)
        assert_true(m[i] == KN_DYNAMIC_ZERO && v[i] == 0);
    assert_true(scale[0] == 0.0f && scale[1] == 0.0f);

    g[0] = -tiny; /* the least there is; its square is 0 */
    g[1] = 3 * tiny;
    g[2] = -0.0f;
    one_block(g, 3, m, v, scale);
    assert_true(scale[0] == 3 * tiny && scale[1] == 0.0f);
    assert_true(m[1] == 255 && m[2] == KN_DYNAMIC_ZERO && m[0] < KN_DYNAMIC_ZERO);
    assert_true(v[0] == 0 && v[1] == 0 && v[2] == 0);

    g[0] = 1.0f; /* beside one so large that its square is infinite */
    g[1] = -3e38f;
    g[2] = -1.0f;
    one_block(g, 3, m, v, scale);
    assert_true(scale[0] == 3e38f && scale[1] == FLT_MAX);
    assert_true(m[0] == KN_DYNAMIC_ZERO && m[1] == 0 && m[2] == KN_DYNAMIC_ZERO - 1);
    assert_true(v[0] == 0 && v[1] == 255 && v[2] == 0);

    g[0] = -2.5f; /* one element alone is its own scale, and -1 has no code */
    one_block(g, 1, m, v, scale);
    assert_true(scale[0] == 2.5f && scale[1] == 6.25f && m[0] == 0 && v[0] == 255);
}

/* A gradient that is not finite changes nothing; one of zeros decays alone. */
static void nothing(void **unused)
{
    static const int64_t tensors[] = {5000, 300};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    struct adamw8_case s, copy;
    struct kit k;
    float g[5300];

    (void)unused;
    assert_true(kit_open(&k, backend, KN_F32, 2));
    adamw8_case_make(&s, &k, tensors, 2, 4096);
    adamw8_case_make(&copy, &k, tensors, 2, 4096);
    gradient(g, 5300, 1);
    for (int i = 0; i < 2; i++) {
        struct adamw8_case *x = i ? &copy : &s;
        const struct kn_sweep sweep = adamw8_case_sweep(g, 5300);
        const struct kn_adamw_step step = step_of(1, 0.1f, 1.0f);
        kit_put(&k, x->a.p, g, sizeof g);
        kit_put(&k, x->g, g, sizeof g);
        adamw8_case_step(x, &step, &sweep);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const struct kn_adamw_step step = step_of(2, 0.1f, 1.0f);
        struct kn_sweep sweep;
        g[1777 * i] = bad[i];
        kit_put(&k, s.g, g, sizeof g);
        assert_int_equal(
            ops->grad_sweep(k.ctx, &(struct kn_grad_sweep){.g = s.g, .n = 5300, .sweep = s.sweep}),
            0);
        kit_take(&k, &sweep, s.sweep, sizeof sweep);
        assert_int_equal(sweep.nonfinite, i + 1);
        adamw8_case_step(&s, &step, &sweep);
        adamw8_case_same(&s, &copy);
    }

    const struct kn_adamw_step step = step_of(1, 0.5f, 1.0f);
    const struct kn_sweep sweep = {0};
    float p[5300], decayed[5300];
    adamw8_case_make(&s, &k, tensors, 2, 4096);
    for (int i = 0; i < 5300; i++) {
        p[i] = (float)kit_value(7, 0, i);
        decayed[i] = p[i] * (float)(1.0 - (double)step.lr * (double)step.weight_decay);
    }
    kit_put(&k, s.a.p, p, sizeof p);
    adamw8_case_step(&s, &step, &sweep);
    kit_take(&k, p, s.a.p, sizeof p);
    assert_memory_equal(p, decayed, sizeof p);
    uint8_t *m = kit_down(&k, s.a.m, 5300), *v = kit_down(&k, s.a.v, 5300);
    for (int i = 0; i < 5300; i++)
        assert_true(m[i] == KN_DYNAMIC_ZERO && v[i] == 0);
    free(m);
    free(v);
    kit_close(&k);
}

/* A gradient shorter than the bound is left as it is; else it becomes g * c, c = bound /
 * (norm + 1e-6). */
static void clipping(void **unused)
{
    static const int64_t tensors[] = {5000, 300};
    struct adamw8_case s[2];
    struct kit k;
    float g[5300];

    (void)unused;
    assert_true(kit_open(&k, backend, KN_F32, 1));
    gradient(g, 5300, 3);
    const struct kn_sweep sweep = adamw8_case_sweep(g, 5300);
    for (int i = 0; i < 2; i++) {
        const struct kn_adamw_step step =
            step_of(1, 0.1f, i ? 2.0f * (float)sqrt(sweep.sum_sq) : 0.0f);
        adamw8_case_make(&s[i], &k, tensors, 2, 4096);
        kit_put(&k, s[i].g, g, sizeof g);
        adamw8_case_step(&s[i], &step, &sweep);
    }
    adamw8_case_same(&s[0], &s[1]);

    const int64_t one = 1;
    const float small = 1e-3f;
    const struct kn_sweep square = adamw8_case_sweep(&small, 1);
    const struct kn_adamw_step step = {
        .lr = 1e-3f, .eps = 1e-8f, .max_grad_norm = 5e-4f, .bias1 = 1.0f, .bias2 = 1.0f};
    float scale;
    adamw8_case_make(&s[0], &k, &one, 1, 0);
    kit_put(&k, s[0].g, &small, sizeof small);
    adamw8_case_step(&s[0], &step, &square);
    kit_take(&k, &scale, s[0].a.m_scale, sizeof scale);
    assert_true(fabs((double)scale / (1e-3 * 5e-4 / (1e-3 + 1e-6)) - 1.0) < 2e-7);
    kit_close(&k);
}

static void refused(void **unused)
{
    static const int64_t tensors[] = {300, 20};
    static const struct kn_adamw8_block bad[][3] = {
        {{0, -1, 256, 0}, {257, -1, 43, 0}, {300, 0, 20, 0}},  /* a gap                */
        {{0, -1, 256, 0}, {256, -1, 44, 0}, {256, 0, 20, 0}},  /* twice                */
        {{0, -1, 256, 0}, {256, -1, 44, 0}, {300, 0, 21, 0}},  /* beyond n             */
        {{0, -1, 256, 0}, {256, -1, 44, 0}, {300, 0, 19, 0}},  /* not all              */
        {{0, -1, 256, 0}, {256, -1, 64, 0}, {320, 0, 0, 0}},   /* an empty one         */
        {{0, -1, 300, 0}, {300, -1, 10, 0}, {310, 0, 10, 0}},  /* longer than a block  */
        {{0, -1, 256, 0}, {256, -1, 44, 0}, {300, -2, 20, 0}}, /* no such place in m32 */
    };
    struct adamw8_case s;
    struct kit k;

    (void)unused;
    assert_true(kit_open(&k, backend, KN_F32, 1));
    adamw8_case_make(&s, &k, tensors, 2, 256);
    const struct kn_adamw8 good = s.a;
    assert_int_equal(ops->adamw8(k.ctx, &(struct kn_adamw8){0}), 0);
    s.a.n_blocks = 1; /* cannot cover 320 */
    assert_int_equal(ops->adamw8(k.ctx, &s.a), -EINVAL);
    s.a.n_blocks = 321;
    assert_int_equal(ops->adamw8(k.ctx, &s.a), -EINVAL);
    s.a = good;
    s.a.n = -1;
    assert_int_equal(ops->adamw8(k.ctx, &s.a), -EINVAL);
    s.a = good;
    s.a.v32 = NULL;
    assert_int_equal(ops->adamw8(k.ctx, &s.a), -EINVAL);
    s.a = good;
    s.a.v_scale = NULL;
    assert_int_equal(ops->adamw8(k.ctx, &s.a), -EINVAL);
    s.a = good;
    for (size_t i = 0; i < ARRAY_LEN(bad) && kit_on_host(&k); i++) {
        kit_put(&k, s.block, bad[i], sizeof bad[i]);
        assert_int_equal(ops->adamw8(k.ctx, &s.a), -EINVAL);
    }
    if (kit_on_host(&k)) {
        adamw8_case_make(&s, &k, tensors, 2, 256);
        s.a.m32 = s.a.v32 = NULL; /* and a block that wants them */
        assert_int_equal(ops->adamw8(k.ctx, &s.a), -EINVAL);
    }
    kit_close(&k);
}

static int use(const char *name)
{
    char why[256];

    backend = name;
    return kn_backend(name, &ops, why, sizeof why);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"ref", "cpu"};
    const char *const *v = argc > 1 ? (const char *const *)&argv[1] : names;
    const size_t n = argc > 1 ? (size_t)argc - 1 : ARRAY_LEN(names);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_ref), cmocka_unit_test(thresholds), cmocka_unit_test(edges),
        cmocka_unit_test(nothing),     cmocka_unit_test(refused),    cmocka_unit_test(clipping),

    };
    int failed = 0;

    if (argc > 1)
        kit_require(v[0]);
    for (size_t i = 0; i < n; i++)
        failed += use(v[i]) ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
    return failed;
}
