/* test_moments.c - what the optimizer keeps: sizes by arithmetic, the state at the start, the
 * image there and back, and that updates go on from it to the bit, on every backend. */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dynamic.h"
#include "tests/support/has_sim.h"
#include "worker/moments.h"

/* 8 bits: the first, the third and the last; partial blocks at the ends of three. */
static const int64_t tensors[] = {4096, 4095, 5000, 1, 256, 12800};
enum { N = 4096 + 4095 + 5000 + 1 + 256 + 12800, FLOATS = 4095 + 1 + 256 };
enum { BLOCKS = 16 + 16 + 20 + 1 + 1 + 50 };

static const struct moments_shape eight = {SPEC_ADAMW_8BIT, N, BLOCKS, FLOATS};

struct rig {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    float *p, *g;
    struct kn_sweep *sweep;
    struct kn_adamw_step *step;
    struct moments m;
    char *image;
};

static float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) * 0x1p-23f - 1;
}

static void put(const struct rig *g, void *to, const void *from, size_t bytes)
{
    assert_int_equal(g->ops->copy(g->ctx, to, from, bytes, KN_TO_DEVICE), 0);
    assert_int_equal(g->ops->sync(g->ctx), 0);
}

static void open_rig(struct rig *g, const char *backend, enum spec_optim optim)
{
    float *start = malloc(N * sizeof *start);
    uint32_t seed = 7;
    char why[256];

    *g = (struct rig){0};
    if (kn_backend(backend, &g->ops, why, sizeof why) < 0)
        fail_msg("%s", why);
    assert_int_equal(g->ops->open(&(struct kn_open){.threads = 1}, &g->ctx), 0);
    assert_int_equal(g->ops->alloc(g->ctx, N * sizeof(float), (void **)&g->p), 0);
    assert_int_equal(g->ops->alloc(g->ctx, N * sizeof(float), (void **)&g->g), 0);
    assert_int_equal(g->ops->alloc(g->ctx, sizeof *g->sweep, (void **)&g->sweep), 0);
    assert_int_equal(g->ops->alloc(g->ctx, sizeof *g->step, (void **)&g->step), 0);
    for (int i = 0; i < N; i++)
        start[i] = noise(&seed);
    put(g, g->p, start, N * sizeof *start);
    free(start);
    assert_int_equal(moments_init(g->ops, g->ctx, optim, g->p, tensors, ARRAY_LEN(tensors), &g->m),
                     0);
    g->image = malloc(moments_image_bytes(&g->m.shape));
}

static void close_rig(struct rig *g)
{
    moments_free(g->ops, g->ctx, &g->m);
    g->ops->free(g->ctx, g->p);
    g->ops->free(g->ctx, g->g);
    g->ops->free(g->ctx, g->sweep);
    g->ops->free(g->ctx, g->step);
    g->ops->close(g->ctx);
    free(g->image);
}

/* Update number t (from 1) with a gradient that only t says, its magnitudes from 1 down to
 * 10 ^ -decades. */
static void update(struct rig *g, int t, float decades)
{
    const struct kn_adamw_step step = {.lr = 1e-3f,
                                       .beta1 = 0.9f,
                                       .beta2 = 0.999f,
                                       .eps = 1e-8f,
                                       .weight_decay = 0.01f,
                                       .bias1 = (float)(1 - pow(0.9, t)),
                                       .bias2 = (float)(1 - pow(0.999, t))};
    float *host = malloc(N * sizeof *host);
    uint32_t seed = 100u + (uint32_t)t;

    for (int i = 0; i < N; i++)
        host[i] = noise(&seed) * powf(10, decades * (noise(&seed) - 1) / 2);
    put(g, g->g, host, N * sizeof *host);
    free(host);
    put(g, g->step, &step, sizeof step);
    assert_int_equal(g->ops->grad_sweep(g->ctx, &(struct kn_grad_sweep){g->g, N, g->sweep}), 0);
    assert_int_equal(moments_update(g->ops, g->ctx, &g->m, g->g, g->sweep, g->step), 0);
}

static const void *image_of(struct rig *g)
{
    assert_int_equal(moments_move(g->ops, g->ctx, &g->m, g->image, KN_TO_HOST), 0);
    return g->image;
}

static const struct moments_part *part(const struct moments_shape *s, const char *name)
{
    static struct moments_part v[MOMENTS_PARTS];
    const int n = moments_parts(s, v);

    for (int i = 0; i < n; i++)
        if (strcmp(v[i].name, name) == 0)
            return &v[i];
    return NULL;
}

static void sizes(void **state)
{
    static const char *const names[][MOMENTS_PARTS + 1] = {
        {"p", "m", "v"}, {"p", "m_scale", "v_scale", "m32", "v32", "m8", "v8"}};

    (void)state;
    for (int k = 0; k < 2; k++) {
        struct moments_shape s = {.optim = k ? SPEC_ADAMW_8BIT : SPEC_ADAMW_TORCH};
        struct moments_part v[MOMENTS_PARTS];
        size_t at = 0;
        for (size_t i = 0; i < ARRAY_LEN(tensors); i++)
            moments_shape_add(&s, tensors[i]);
        assert_int_equal(s.n, N);
        assert_true(moments_shape_valid(&s));
        const int n = moments_parts(&s, v);
        for (int i = 0; i < n; i++) {
            assert_string_equal(v[i].name, names[k][i]);
            assert_int_equal(v[i].at, at);
            assert_int_equal(at % safetensors_dtype_bytes(v[i].dtype), 0);
            at += v[i].bytes;
        }
        assert_null(names[k][n]);
        assert_int_equal(at, moments_image_bytes(&s));
        if (k == 0)
            assert_true(at == 12 * (size_t)N && moments_device_bytes(&s) == 8 * (size_t)N);
        else
            assert_true(moments_shape_equal(&s, &eight) &&
                        at == 6 * (size_t)N + 8 * (size_t)(BLOCKS + FLOATS) &&
                        moments_device_bytes(&s) ==
                            2 * (size_t)N + 8 * (size_t)FLOATS + 32 * (size_t)BLOCKS);
    }
    /* 7B, rank 16: 2.125 bytes a parameter instead of 8 */
    struct moments_shape large = {.optim = SPEC_ADAMW_8BIT};
    moments_shape_add(&large, (int64_t)1 << 25);
    assert_int_equal(moments_device_bytes(&large), ((int64_t)1 << 25) * 17 / 8);
    assert_null(part(&large, "m32"));
}

static void sizes_that_no_tensors_have(void **state)
{
    static const struct moments_shape bad[] = {
        {SPEC_ADAMW_TORCH, 0, 0, 0},      {SPEC_ADAMW_TORCH, N, 1, 0},
        {SPEC_ADAMW_TORCH, N, 0, 1},      {SPEC_ADAMW_TORCH, INT64_MAX, 0, 0},
        {SPEC_ADAMW_8BIT, N, 0, 0},       {SPEC_ADAMW_8BIT, N, (N + 255) / 256 - 1, 0},
        {SPEC_ADAMW_8BIT, N, N + 1, 0},   {SPEC_ADAMW_8BIT, N, BLOCKS, N + 1},
        {SPEC_ADAMW_8BIT, N, BLOCKS, -1}, {SPEC_ADAMW_8BIT, INT64_MAX / 63, INT64_MAX / 63, 0},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(moments_shape_valid(&bad[i]));
    assert_true(moments_shape_valid(&eight));
}

static void begins_at_zero(void **state)
{
    struct rig g;
    struct kn_adamw8_block b[BLOCKS];
    const char *image;
    int64_t at = 0, full = 0, floats = 0;

    (void)state;
    open_rig(&g, "ref", SPEC_ADAMW_8BIT);
    assert_true(moments_shape_equal(&g.m.shape, &eight));
    image = image_of(&g);
    for (int i = 0; i < N; i++) {
        assert_int_equal((uint8_t)image[part(&eight, "m8")->at + (size_t)i], KN_DYNAMIC_ZERO);
        assert_int_equal(image[part(&eight, "v8")->at + (size_t)i], 0);
    }
    for (size_t i = part(&eight, "m_scale")->at; i < part(&eight, "m8")->at; i++)
        assert_int_equal(image[i], 0);
    assert_int_equal(g.ops->copy(g.ctx, b, g.m.block, sizeof b, KN_TO_HOST), 0);
    assert_int_equal(g.ops->sync(g.ctx), 0);
    for (int i = 0; i < BLOCKS; i++) {
        assert_int_equal(b[i].at, at);
        assert_in_range(b[i].n, 1, KN_ADAMW8_BLOCK);
        if (b[i].full >= 0) {
            assert_int_equal(b[i].full, full);
            full += b[i].n;
        }
        floats += b[i].full >= 0;
        at += b[i].n;
    }
    assert_int_equal(at, N);
    assert_int_equal(full, FLOATS);
    assert_int_equal(floats, 16 + 1 + 1);
    close_rig(&g);
}

static const char *const backends[] = {"ref", "cpu", "sim"};

/* Three updates, the state taken out and put into others, two more: the bytes of five. On all
 * backends the same ones, but for what a sum of squares' order leaves: it is not used here. */
static void goes_on_to_the_bit(void **state)
{
    const size_t bytes = moments_image_bytes(&eight);
    char *first = malloc(bytes);

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(backends); i++) {
        struct rig a, b;
        if (!has_sim && strcmp(backends[i], "sim") == 0)
            continue;
        open_rig(&a, backends[i], SPEC_ADAMW_8BIT);
        open_rig(&b, backends[i], SPEC_ADAMW_8BIT);
        for (int t = 1; t <= 3; t++)
            update(&a, t, 8);
        memcpy(b.image, image_of(&a), bytes);
        assert_true(moments_image_valid(&eight, b.image));
        assert_int_equal(moments_move(b.ops, b.ctx, &b.m, b.image, KN_TO_DEVICE), 0);
        for (int t = 4; t <= 5; t++) {
            update(&a, t, 8);
            update(&b, t, 8);
        }
        assert_memory_equal(image_of(&a), image_of(&b), bytes);
        if (i == 0)
            memcpy(first, a.image, bytes);
        else if (memcmp(first, a.image, bytes) != 0)
            fail_msg("%s has other bytes than ref", backends[i]);
        close_rig(&a);
        close_rig(&b);
    }
    free(first);
}

/* Small tensors are AdamW's; large ones near it: an update is off by what 8 bits are off. */
static void near_float_moments(void **state)
{
    struct rig a, b;
    const float *x, *y;
    double off = 0, moved = 0;

    (void)state;
    open_rig(&a, "ref", SPEC_ADAMW_8BIT);
    open_rig(&b, "ref", SPEC_ADAMW_TORCH);
    uint32_t seed = 7;
    for (int t = 1; t <= 5; t++) {
        update(&a, t, 1);
        update(&b, t, 1);
    }
    x = image_of(&a);
    y = image_of(&b);
    for (int i = 0; i < N; i++) {
        const bool small = (i >= 4096 && i < 8191) || (i >= 13191 && i < 13448);
        const float start = noise(&seed);
        if (small && fabsf(x[i] - y[i]) > 1e-6f)
            fail_msg("parameter %d: %.9g and %.9g", i, x[i], y[i]);
        off += small ? 0 : fabs((double)x[i] - y[i]);
        moved += small ? 0 : fabs((double)y[i] - start);
    }
    if (!(off > 1e-3 * moved && off < 0.2 * moved))
        fail_msg("off by %g of %g", off, moved);
    close_rig(&a);
    close_rig(&b);
}

static void scales_are_checked(void **state)
{
    static const float bad[] = {NAN, INFINITY, -1e-9f};
    const size_t bytes = moments_image_bytes(&eight);
    char *image = calloc(1, bytes);

    (void)state;
    assert_true(moments_image_valid(&eight, image));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        float *scale = (float *)(image + part(&eight, i ? "v_scale" : "m_scale")->at);
        scale[BLOCKS - 1] = bad[i];
        assert_false(moments_image_valid(&eight, image));
        scale[BLOCKS - 1] = 0;
    }
    free(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(sizes_that_no_tensors_have),
        cmocka_unit_test(begins_at_zero),
        cmocka_unit_test(goes_on_to_the_bit),
        cmocka_unit_test(near_float_moments),
        cmocka_unit_test(scales_are_checked),
    };
    return cmocka_run_group_tests_name("moments", tests, NULL, NULL);
}
