/* quant.c - 4-bit block quantisation as bitsandbytes' CUDA kernels define it.
 *
 * NF4: Dettmers et al. 2023 (arXiv:2305.14314), section 3. What decides the bits:
 * blocks of 64 over the flattened tensor; a value is multiplied by the float32
 * reciprocal of its block's largest magnitude; thresholds are the float32
 * midpoints of neighbouring codes and a tie goes to the lower code. In a block of
 * zeros 0 * inf is NaN, above no threshold: code 0. */
#include "ref.h"

#include <math.h>

enum { BLOCK = 64, OUTER = 256 };

static const float nf4_code[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

/* By the low three bits; bit 3 is the sign. */
static const float fp4_code[8] = {
    0.0f, 0.005208333333f, 0.66666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f,
};

/* Magnitudes above which the next larger code is taken, with that code. */
static const struct {
    float above;
    uint8_t code;
} fp4_steps[7] = {
    {0.00260417f, 1}, {0.0859375f, 6}, {0.20833333f, 7}, {0.29166667f, 4},
    {0.4166667f, 5},  {0.583333f, 2},  {0.8333333f, 3},
};

/* How many thresholds x is above: NaN none. */
static uint8_t quantize_nf4(const float *middle, float x)
{
    int code = 0;

    for (int i = 0; i < 15; i++)
        code += x > middle[i];
    return (uint8_t)code;
}

static uint8_t quantize_fp4(float x)
{
    uint8_t code = 0;

    for (int i = 0; i < 7 && fabsf(x) > fp4_steps[i].above; i++)
        code = fp4_steps[i].code;
    return (uint8_t)(code | (x < 0.0f ? 8 : 0));
}

/* The signed dynamic 8-bit map: Dettmers et al. 2022 (arXiv:2110.02861), section
 * 2.1. For i in 0..6, 2^i means of neighbours among 2^i + 1 equally spaced points
 * of [0.1, 1], times 10^(i - 6), with both signs; 0 and 1. Sorted: entry 127 is
 * 0. Every step in float32 as torch makes it: points from the nearer end, with one
 * rounding of step * k + end. */
static void dynamic_map(float *map)
{
    int at = 128;

    map[127] = 0.0f;
    map[255] = 1.0f;
    for (int i = 0; i < 7; i++) {
        const int n = 1 << i;
        const float step = (1.0f - 0.1f) / (float)n, power = (float)pow(10.0, i - 6);
        for (int j = 0; j < n; j++) {
            float edge[2];
            for (int e = 0; e < 2; e++)
                edge[e] = j + e < (n + 1) / 2 ? fmaf(step, (float)(j + e), 0.1f)
                                              : fmaf(-step, (float)(n - j - e), 1.0f);
            map[at] = power * ((edge[0] + edge[1]) / 2.0f);
            map[254 - at] = -map[at];
            at++;
        }
    }
}

/* The nearest entry; a tie goes to the even index; NaN to 0. */
static uint8_t quantize_dynamic(const float *map, float x)
{
    int low = 0;

    if (!(x > map[0]))
        return 0;
    while (low < 254 && x > map[low + 1])
        low++;
    const float middle = (map[low] + map[low + 1]) * 0.5f;
    if (x == middle)
        return (uint8_t)(low + (low & 1));
    return (uint8_t)(x > middle ? low + 1 : low);
}

static float largest(const float *x, int64_t n, float minus)
{
    float m = 0.0f;

    for (int64_t i = 0; i < n; i++)
        m = fmaxf(m, fabsf(x[i] - minus));
    return m;
}

static void quantize_nested(const struct kn_quantize4 *a, int64_t blocks)
{
    float map[256];
    double sum = 0.0;

    dynamic_map(map);
    for (int64_t i = 0; i < blocks; i++)
        sum += (double)a->absmax[i];
    *a->offset = a->offset_in ? *a->offset_in : (float)(sum / (double)blocks);
    for (int64_t b = 0; b < blocks; b += OUTER) {
        const int64_t n = blocks - b < OUTER ? blocks - b : OUTER;
        const float max = largest(a->absmax + b, n, *a->offset), inverse = 1.0f / max;
        a->nested_absmax[b / OUTER] = max;
        for (int64_t i = b; i < b + n; i++)
            a->absmax_q[i] = quantize_dynamic(map, (a->absmax[i] - *a->offset) * inverse);
    }
}

int ref_quantize4(const struct kn_quantize4 *a)
{
    const int r = kn_check_quantize4(a);
    float middle[15];

    if (r)
        return r < 0 ? r : 0;
    for (int i = 0; i < 15; i++)
        middle[i] = (nf4_code[i] + nf4_code[i + 1]) * 0.5f;
    for (int64_t b = 0; b < a->n; b += BLOCK) {
        const int64_t n = a->n - b < BLOCK ? a->n - b : BLOCK;
        const float max = largest(a->x + b, n, 0.0f), inverse = 1.0f / max;
        a->absmax[b / BLOCK] = max;
        for (int64_t i = b; i < b + n; i++) {
            const float v = a->x[i] * inverse;
            const uint8_t code =
                a->type == KN_QUANT_NF4 ? quantize_nf4(middle, v) : quantize_fp4(v);
            if (i % 2 == 0)
                a->packed[i / 2] = (uint8_t)(code << 4);
            else
                a->packed[i / 2] |= code;
        }
    }
    if (a->nested)
        quantize_nested(a, (a->n + BLOCK - 1) / BLOCK);
    return 0;
}

int ref_dequantize4(const struct kn_dequantize4 *a)
{
    const int r = kn_check_dequantize4(a);
    float map[256];

    if (r)
        return r < 0 ? r : 0;
    if (a->absmax_q)
        dynamic_map(map);
    for (int64_t i = 0; i < a->n; i++) {
        const int64_t b = i / BLOCK;
        const uint8_t code = i % 2 == 0 ? a->packed[i / 2] >> 4 : a->packed[i / 2] & 15;
        float scale, v;
        if (a->absmax_q)
            scale = map[a->absmax_q[b]] * a->nested_absmax[b / OUTER] + a->offset;
        else
            scale = a->absmax[b];
        if (a->type == KN_QUANT_NF4)
            v = nf4_code[code];
        else
            v = code & 8 ? -fp4_code[code & 7] : fp4_code[code & 7];
        v *= scale;
        if (a->dtype == KN_BF16)
            v = bf16_to_f32(bf16_from_f32(v));
        else if (a->dtype == KN_F16)
            v = f16_to_f32(f16_from_f32(v));
        a->y[i] = v;
    }
    return 0;
}
