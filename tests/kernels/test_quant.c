/* test_quant.c - 4-bit quantisation: bytes of bitsandbytes 0.50.2, every threshold,
 * blocks of zeros, nested absmax, and the half-precision conversions. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

static const char *backend; /* as it was asked for: a race-checked "sim" has another */
static const struct kn_ops *ops;

/* quantize_4bit(x, blocksize=64, quant_type="nf4") of x[i] = 0.05 kit_value(77, 0, i). */
static const uint8_t nf4_bytes[128] = {
    0x64, 0xff, 0x9f, 0xc3, 0xee, 0x02, 0x41, 0xec, 0xe1, 0x60, 0x9e, 0x8d, 0xbf, 0x52, 0xb7, 0x1d,
    0xb6, 0x0e, 0x3f, 0xbb, 0xb2, 0xc8, 0xed, 0xed, 0x08, 0x27, 0xa8, 0x5d, 0xd5, 0x8b, 0x90, 0x23,
    0xd1, 0x52, 0xa2, 0x51, 0x2b, 0xce, 0x26, 0xbb, 0x45, 0x23, 0xa5, 0x10, 0x92, 0x23, 0x51, 0x36,
    0x22, 0xa1, 0x1e, 0x74, 0xcc, 0xd1, 0xa3, 0xda, 0x10, 0xe5, 0x01, 0xa2, 0xc0, 0x4d, 0xf2, 0xee,
    0x1e, 0xb0, 0x42, 0x09, 0x5f, 0xa8, 0xba, 0xc2, 0xda, 0x16, 0xbd, 0x4c, 0x8d, 0x33, 0xfc, 0x30,
    0xf4, 0xb5, 0x38, 0xc0, 0x5b, 0x48, 0x10, 0xc8, 0xd1, 0x11, 0xc7, 0x12, 0x78, 0xf0, 0x1d, 0x72,
    0x10, 0xe5, 0x0d, 0xe1, 0xdf, 0x10, 0xef, 0xce, 0x1c, 0x2b, 0xe1, 0xd9, 0x3c, 0x07, 0xec, 0x3d,
    0xe8, 0xdf, 0x5b, 0xe4, 0xca, 0x4e, 0x79, 0xf5, 0x31, 0xcf, 0x0f, 0x6e, 0x57, 0x03, 0xc4, 0xc2,
};
static const float nf4_absmax[4] = {0x1.97a046p-5f, 0x1.9675fap-5f, 0x1.951706p-5f, 0x1.92c9d4p-5f};

static uint64_t hash(const uint8_t *v, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */

    for (size_t i = 0; i < n; i++)
        h = (h ^ v[i]) * 0x100000001b3u;
    return h;
}

static void bytes(void **state)
{
    float x[256], absmax[4];
    uint8_t packed[128];

    (void)state;
    for (int i = 0; i < 256; i++)
        x[i] = (float)(kit_value(77, 0, i) * 0.05);
    assert_int_equal(
        ops->quantize4(&(struct kn_quantize4){
            .x = x, .n = 256, .type = KN_QUANT_NF4, .packed = packed, .absmax = absmax}),
        0);
    assert_memory_equal(packed, nf4_bytes, sizeof packed);
    assert_memory_equal(absmax, nf4_absmax, sizeof absmax);
}

/* Codes of a block whose largest magnitude is 1. */
static uint8_t code_of(enum kn_quant type, float v)
{
    float x[64] = {v, 1.0f}, absmax;
    uint8_t packed[32];

    assert_int_equal(ops->quantize4(&(struct kn_quantize4){
                         .x = x, .n = 64, .type = type, .packed = packed, .absmax = &absmax}),
                     0);
    assert_true(absmax == 1.0f);
    assert_int_equal(packed[0] & 15, type == KN_QUANT_NF4 ? 15 : 3);
    return packed[0] >> 4;
}

static float value_of(enum kn_quant type, uint8_t code)
{
    const float absmax = 1.0f;
    const uint8_t packed = (uint8_t)(code << 4);
    float y;

    assert_int_equal(ops->dequantize4(&(struct kn_dequantize4){
                         .y = &y, .n = 1, .type = type, .packed = &packed, .absmax = &absmax}),
                     0);
    return y;
}

static void thresholds(void **state)
{
    static const struct {
        float above;
        uint8_t below, over;
    } fp4[] = {{0.00260417f, 0, 1}, {0.0859375f, 1, 6}, {0.20833333f, 6, 7}, {0.29166667f, 7, 4},
               {0.4166667f, 4, 5},  {0.583333f, 5, 2},  {0.8333333f, 2, 3}};

    (void)state;
    for (uint8_t c = 0; c < 15; c++) {
        const float a = value_of(KN_QUANT_NF4, c), b = value_of(KN_QUANT_NF4, c + 1);
        const float middle = (a + b) * 0.5f;
        assert_true(a < b);
        assert_int_equal(code_of(KN_QUANT_NF4, middle), c); /* a tie: the lower */
        assert_int_equal(code_of(KN_QUANT_NF4, nextafterf(middle, 2.0f)), c + 1);
        assert_int_equal(code_of(KN_QUANT_NF4, a), c);
    }
    for (size_t i = 0; i < ARRAY_LEN(fp4); i++) {
        assert_int_equal(code_of(KN_QUANT_FP4, fp4[i].above), fp4[i].below);
        assert_int_equal(code_of(KN_QUANT_FP4, nextafterf(fp4[i].above, 2.0f)), fp4[i].over);
        assert_int_equal(code_of(KN_QUANT_FP4, -nextafterf(fp4[i].above, 2.0f)), fp4[i].over | 8);
    }
    for (uint8_t c = 1; c < 8; c++) {
        assert_int_equal(code_of(KN_QUANT_FP4, value_of(KN_QUANT_FP4, c)), c);
        assert_true(value_of(KN_QUANT_FP4, c | 8) == -value_of(KN_QUANT_FP4, c));
    }
}

static void zeros_and_tails(void **state)
{
    static const enum kn_quant types[] = {KN_QUANT_NF4, KN_QUANT_FP4};
    float x[64 + 3] = {0}, y[64 + 3], absmax[2];
    uint8_t packed[34];

    (void)state;
    x[64] = 0.5f;
    x[65] = -2.0f;
    x[66] = 2.0f;
    for (int i = 0; i < 2; i++) {
        memset(packed, 0xff, sizeof packed);
        assert_int_equal(
            ops->quantize4(&(struct kn_quantize4){
                .x = x, .n = 67, .type = types[i], .packed = packed, .absmax = absmax}),
            0);
        for (int j = 0; j < 32; j++)
            assert_int_equal(packed[j], 0);
        assert_true(absmax[0] == 0.0f && absmax[1] == 2.0f);
        assert_int_equal(packed[33] & 15, 0);
        assert_int_equal(
            ops->dequantize4(&(struct kn_dequantize4){
                .y = y, .n = 67, .type = types[i], .packed = packed, .absmax = absmax}),
            0);
        for (int j = 0; j < 64; j++)
            assert_true(y[j] == 0.0f);
        assert_true(y[65] == -2.0f && y[66] == 2.0f);
    }
    assert_int_equal(ops->quantize4(&(struct kn_quantize4){.type = KN_QUANT_NF4}), 0);
    assert_int_equal(ops->quantize4(&(struct kn_quantize4){.n = 1, .type = KN_QUANT_NONE}),
                     -EINVAL);
    assert_int_equal(ops->quantize4(&(struct kn_quantize4){.n = 1, .type = KN_QUANT_NF4}), -EINVAL);
}

/* compress_statistics=True of x[i] = (0.01 + 0.02 (i / 64 mod 7)) kit_value(78, 0, i);
 * the 8-bit codes are the nearest entries of create_dynamic_map(), found apart. */
static void nested(void **state)
{
    enum { BLOCKS = 300, N = 64 * BLOCKS };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y), *z = malloc(N * sizeof *z);
    uint8_t *packed = malloc(N / 2), codes[BLOCKS];
    float absmax[BLOCKS], outer[2], offset, equal[64 * 2];

    (void)state;
    assert_true(x && y && z && packed);
    for (int i = 0; i < N; i++)
        x[i] = (float)(kit_value(78, 0, i) * (0.01 + (double)(i / 64 % 7) * 0.02));
    struct kn_quantize4 q = {.x = x,
                             .n = N,
                             .type = KN_QUANT_NF4,
                             .nested = true,
                             .packed = packed,
                             .absmax = absmax,
                             .absmax_q = codes,
                             .nested_absmax = outer,
                             .offset = &offset};
    assert_int_equal(ops->quantize4(&q), 0);
    assert_true(hash(packed, N / 2) == 0x66619efbaa8a50b0u);
    assert_true(fabsf(offset - 0x1.193706p-4f) <= 2.0f * 0x1p-27f); /* 2 ulp: a mean */
    offset = 0x1.193706p-4f;
    q.offset_in = &offset;
    float again;
    q.offset = &again;
    assert_int_equal(ops->quantize4(&q), 0);
    assert_true(again == offset && outer[0] == 0x1.f60a14p-5f && outer[1] == 0x1.ee7804p-5f);
    assert_true(hash(codes, BLOCKS) == 0x355f1d801fa96d7u);
    struct kn_dequantize4 d = {
        .y = y, .n = N, .type = KN_QUANT_NF4, .packed = packed, .absmax = absmax};
    assert_int_equal(ops->dequantize4(&d), 0);
    d.y = z;
    d.absmax_q = codes;
    d.nested_absmax = outer;
    d.offset = offset;
    assert_int_equal(ops->dequantize4(&d), 0);
    for (int i = 0; i < N; i++) /* entries of the map are at most 1/64 apart */
        assert_true(fabsf(y[i] - z[i]) <= outer[0] / 120.0f);
    /* All absmax equal: absmax - offset is 0 everywhere, 0 * inf no number: code 0. */
    for (int i = 0; i < 128; i++)
        equal[i] = i % 2 ? 0.25f : -0.25f;
    q.x = equal;
    q.n = 128;
    q.offset_in = NULL;
    assert_int_equal(ops->quantize4(&q), 0);
    assert_true(again == 0.25f && outer[0] == 0.0f && codes[0] == 0 && codes[1] == 0);
    d.n = 128;
    d.offset = again;
    assert_int_equal(ops->dequantize4(&d), 0);
    assert_true(z[0] == -0.25f && z[127] == 0.25f);
    free(x);
    free(y);
    free(z);
    free(packed);
}

static void halves(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        const float f = f16_to_f32((uint16_t)h);
        if (isnan(f)) {
            assert_true((f16_from_f32(f) & 0x7fffu) > 0x7c00u);
            continue;
        }
        assert_int_equal(f16_from_f32(f), h);
        assert_int_equal(bf16_from_f32(bf16_to_f32((bf16){(uint16_t)h})).bits,
                         isnan(bf16_to_f32((bf16){(uint16_t)h})) ? (h | 0x40u) : h);
        if ((h & 0x7fffu) >= 0x7bffu) /* the largest and infinity have no upper neighbour */
            continue;
        const float up = f16_to_f32((uint16_t)(h + 1)), middle = f + (up - f) / 2.0f;
        assert_int_equal(f16_from_f32(middle), h + (h & 1)); /* a tie: the even one */
        assert_int_equal(f16_from_f32(nextafterf(middle, f)), h);
        assert_int_equal(f16_from_f32(nextafterf(middle, up)), h + 1);
    }
    assert_int_equal(f16_from_f32(65519.996f), 0x7bff);
    assert_int_equal(f16_from_f32(65520.0f), 0x7c00);
    assert_int_equal(f16_from_f32(-1e30f), 0xfc00);
}

/* A weight is what dequantize4 gives: seen through x = identity. */
static void weights(void **state)
{
    enum { N = 24, MOST = 40 };
    static const enum kn_dtype loads[] = {KN_F32, KN_BF16, KN_F16};
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, backend, KN_F32, 1));
    for (int i = 0; i < 12; i++) {
        const bool twice = i % 6 >= 3;
        const int K = i < 6 ? MOST : 38; /* rows that begin within a byte of codes, or not */
        float x[N * MOST], want[N * MOST], absmax[N * MOST / 64], outer, offset;
        uint8_t packed[N * MOST / 2], codes[N * MOST / 64];
        struct kn_weight_part part = {.data = x, .dtype = KN_F32, .n = N};
        struct kn_weight_desc desc = {.parts = &part,
                                      .n_parts = 1,
                                      .k = K,
                                      .quant = KN_QUANT_NF4,
                                      .double_quant = twice,
                                      .load_dtype = loads[i % 3],
                                      .no_backward = true};
        struct kn_weight *w;
        struct kn_mat eye = kit_mat(&k, K, K, KN_F32, 0, 0, 0.0);
        struct kn_mat y = kit_mat(&k, K, N, KN_F32, 0, 0, 0.0);
        for (int j = 0; j < N * K; j++) { /* exact in every load type */
            x[j] = bf16_to_f32(bf16_from_f32((float)kit_value(79, 0, j)));
            x[j] = f16_to_f32(f16_from_f32(x[j]));
        }
        for (int j = 0; j < K; j++)
            kit_set(&k, &eye, j, j, 1.0);
        assert_int_equal(ops->quantize4(&(struct kn_quantize4){.x = x,
                                                               .n = N * K,
                                                               .type = KN_QUANT_NF4,
                                                               .nested = twice,
                                                               .packed = packed,
                                                               .absmax = absmax,
                                                               .absmax_q = codes,
                                                               .nested_absmax = &outer,
                                                               .offset = &offset}),
                         0);
        assert_int_equal(ops->dequantize4(&(struct kn_dequantize4){.y = want,
                                                                   .n = N * K,
                                                                   .type = KN_QUANT_NF4,
                                                                   .dtype = loads[i % 3],
                                                                   .packed = packed,
                                                                   .absmax = absmax,
                                                                   .absmax_q = twice ? codes : NULL,
                                                                   .nested_absmax = &outer,
                                                                   .offset = offset}),
                         0);
        assert_int_equal(ops->weight_open(k.ctx, &desc, &w), 0);
        assert_int_equal(ops->linear_fwd(k.ctx, &(struct kn_linear_fwd){.y = y, .x = eye, .w = w}),
                         0);
        for (int r = 0; r < K; r++) {
            for (int c = 0; c < N; c++)
                assert_true(kit_get(&k, &y, r, c) == (double)want[c * K + r]);
        }
        ops->weight_close(k.ctx, w);
        kit_release(&k, 0);
    }
    kit_close(&k);
}

/* Weights that stay in 4 bits against the same dequantised once: calls in any order,
 * with and without hints, right ones and wrong ones: the same bits. */
static void per_use(void **state)
{
    enum { WEIGHTS = 4, CALLS = 40 };
    static const struct linear_case shapes[WEIGHTS] = {
        {.m = 9, .k = 64, .n_parts = 1, .n = {40}, .r = {4}, .n_segs = 1},
        {.m = 9, .k = 72, .n_parts = 3, .n = {24, 8, 8}, .r = {2, 0, 3}, .n_segs = 1, .bias = true},
        {.m = 9, .k = 45, .n_parts = 2, .n = {33, 31}, .r = {3, 3}, .n_segs = 1},
        {.m = 9, .k = 136, .n_parts = 1, .n = {72}}};
    struct linear_call once[WEIGHTS], small[WEIGHTS];
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, backend, KN_F32, 1));
    for (int i = 0; i < WEIGHTS; i++) {
        struct linear_case c = shapes[i];
        c.quant = i == 2 ? KN_QUANT_FP4 : KN_QUANT_NF4;
        c.double_quant = i != 0;
        c.load_dtype = KN_BF16;
        linear_make(&k, &c, &once[i]);
        c.per_use = true;
        linear_make(&k, &c, &small[i]);
    }
    for (int call = 0; call < CALLS; call++) {
        const int i = (int)((kit_value(80, 0, call) + 1.0) * 2.0) % WEIGHTS;
        const int hint = (int)((kit_value(80, 1, call) + 1.0) * 3.0);
        struct linear_call *const pair[2] = {&once[i], &small[i]};
        if (hint < WEIGHTS)
            assert_int_equal(ops->weight_soon(k.ctx, small[hint].w), 0);
        for (int j = 0; j < 2; j++) {
            assert_int_equal(ops->linear_fwd(k.ctx, &pair[j]->fwd), 0);
            if (hint % 2 == 0)
                assert_int_equal(ops->weight_soon(k.ctx, small[(i + 1) % WEIGHTS].w), 0);
            assert_int_equal(ops->linear_bwd(k.ctx, &pair[j]->bwd), 0);
        }
        assert_int_equal(ops->sync(k.ctx), 0);
        kit_same("y", &k, once[i].y.p, &k, small[i].y.p, (size_t)(9 * once[i].y.ld) * 4);
        kit_same("dx", &k, once[i].dx.p, &k, small[i].dx.p, (size_t)(9 * once[i].dx.ld) * 4);
    }
    for (int i = 0; i < WEIGHTS; i++) {
        ops->weight_close(k.ctx, once[i].w);
        ops->weight_close(k.ctx, small[i].w);
    }
    kit_close(&k);
}

/* x of part p of a large weight, exact in every type; as it is stored. */
enum { LARGE_N = 250, LARGE_K = 136, LARGE_PARTS = 2, LARGE = LARGE_N * LARGE_K };

static void *large_part(enum kn_dtype stored, int p, float *ret_x)
{
    char *data = malloc(LARGE * sizeof(float));

    assert_non_null(data);
    for (int i = 0; i < LARGE; i++) {
        const bf16 b = bf16_from_f32((float)kit_value(81 + (uint64_t)p, 0, i));
        ret_x[i] = f16_to_f32(f16_from_f32(bf16_to_f32(b)));
        const bf16 again = bf16_from_f32(ret_x[i]);
        const uint16_t half = f16_from_f32(ret_x[i]);
        if (stored == KN_F32)
            memcpy(data + (size_t)i * 4, &ret_x[i], 4);
        else
            memcpy(data + (size_t)i * 2, stored == KN_BF16 ? (const void *)&again : &half, 2);
    }
    return data;
}

/* What dequantize4 makes of x, which was quantised as a whole. */
static void there_and_back(float *x)
{
    static uint8_t packed[LARGE / 2], codes[LARGE / 64 + 1];
    static float absmax[LARGE / 64 + 1], outer[LARGE / 64 / 256 + 1];
    float offset;

    assert_int_equal(ops->quantize4(&(struct kn_quantize4){.x = x,
                                                           .n = LARGE,
                                                           .type = KN_QUANT_NF4,
                                                           .nested = true,
                                                           .packed = packed,
                                                           .absmax = absmax,
                                                           .absmax_q = codes,
                                                           .nested_absmax = outer,
                                                           .offset = &offset}),
                     0);
    assert_int_equal(ops->dequantize4(&(struct kn_dequantize4){.y = x,
                                                               .n = LARGE,
                                                               .type = KN_QUANT_NF4,
                                                               .dtype = KN_F32,
                                                               .packed = packed,
                                                               .absmax = absmax,
                                                               .absmax_q = codes,
                                                               .nested_absmax = outer,
                                                               .offset = offset}),
                     0);
}

static void large_check(struct kit *k, const struct kn_mat *y, float x[][LARGE])
{
    for (int p = 0; p < LARGE_PARTS; p++)
        for (int i = 0; i < LARGE; i++)
            if (kit_get(k, y, i % LARGE_K, p * LARGE_N + i / LARGE_K) != (double)x[p][i])
                fail_msg("part %d element %d", p, i);
}

/* Weights that a GPU takes in several pieces are what one piece gives; their data may go as
 * soon as the call returns. Two of a kind: the first one's buffers serve the second, and
 * nothing is allocated between its loading and its use. */
static void large(void **state)
{
    static float x[LARGE_PARTS][LARGE];
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, backend, KN_F32, 1));
    for (int i = 0; i < 9; i++) { /* stored as any type; as it is, in 4 bits, per use */
        struct kn_weight_part parts[LARGE_PARTS];
        const struct kn_weight_desc d = {.parts = parts,
                                         .n_parts = LARGE_PARTS,
                                         .k = LARGE_K,
                                         .quant = i / 3 == 0 ? KN_QUANT_NONE : KN_QUANT_NF4,
                                         .double_quant = true,
                                         .load_dtype = KN_F32,
                                         .no_backward = true,
                                         .per_use = i / 3 == 2};
        struct kn_mat eye = kit_mat(&k, LARGE_K, LARGE_K, KN_F32, 0, 0, 0.0);
        struct kn_mat y = kit_mat(&k, LARGE_K, LARGE_PARTS * LARGE_N, KN_F32, 0, 0, 0.0);
        struct kn_weight *w[2];
        void *data[LARGE_PARTS];
        for (int j = 0; j < LARGE_K; j++)
            kit_set(&k, &eye, j, j, 1.0);
        for (int p = 0; p < LARGE_PARTS; p++) {
            data[p] = large_part((enum kn_dtype)(i % 3), p, x[p]);
            parts[p] = (struct kn_weight_part){data[p], (enum kn_dtype)(i % 3), LARGE_N};
        }
        assert_int_equal(ops->weight_open(k.ctx, &d, &w[0]), 0);
        assert_int_equal(ops->weight_open(k.ctx, &d, &w[1]), 0);
        for (int p = 0; p < LARGE_PARTS; p++) {
            memset(data[p], 0xff, (size_t)LARGE * (i % 3 == 0 ? 4 : 2));
            free(data[p]);
        }
        assert_int_equal(
            ops->linear_fwd(k.ctx, &(struct kn_linear_fwd){.y = y, .x = eye, .w = w[1]}), 0);
        for (int p = 0; p < LARGE_PARTS && d.quant != KN_QUANT_NONE; p++)
            there_and_back(x[p]);
        large_check(&k, &y, x);
        ops->weight_close(k.ctx, w[0]);
        ops->weight_close(k.ctx, w[1]);
        kit_release(&k, 0);
    }
    kit_close(&k);
}

/* Large copies to a device likewise, whatever was queued before them. */
static void large_copies(void **state)
{
    enum { N = 70000, TURNS = 3 };
    float *host = malloc(N * sizeof *host);
    void *v[TURNS];
    struct kit k;

    (void)state;
    assert_non_null(host);
    assert_true(kit_open(&k, backend, KN_F32, 1));
    for (int t = 0; t < TURNS; t++) {
        assert_int_equal(ops->alloc(k.ctx, N * sizeof *host, &v[t]), 0);
        for (int i = 0; i < N; i++)
            host[i] = (float)(i + t);
        assert_int_equal(ops->copy(k.ctx, v[t], host, N * sizeof *host, KN_TO_DEVICE), 0);
        memset(host, 0xff, N * sizeof *host);
    }
    for (int t = 0; t < TURNS; t++) {
        assert_int_equal(ops->copy(k.ctx, host, v[t], N * sizeof *host, KN_TO_HOST), 0);
        assert_int_equal(ops->sync(k.ctx), 0);
        for (int i = 0; i < N; i++)
            if (host[i] != (float)(i + t))
                fail_msg("copy %d element %d: %g", t, i, (double)host[i]);
        ops->free(k.ctx, v[t]);
    }
    free(host);
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
        cmocka_unit_test(bytes),   cmocka_unit_test(thresholds), cmocka_unit_test(zeros_and_tails),
        cmocka_unit_test(nested),  cmocka_unit_test(halves),     cmocka_unit_test(weights),
        cmocka_unit_test(per_use), cmocka_unit_test(large),      cmocka_unit_test(large_copies),
    };
    int failed = 0;

    if (argc > 1)
        kit_require(v[0]);
    for (size_t i = 0; i < n; i++)
        failed += use(v[i]) ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
    return failed;
}
