/* quant.c - 4-bit block quantisation as bitsandbytes' CUDA kernels define it.
 *
 * NF4: Dettmers et al. 2023 (arXiv:2305.14314), section 3. What decides the bits:
 * blocks of 64 over the flattened tensor; a value is multiplied by the float32
 * reciprocal of its block's largest magnitude; thresholds are the float32
 * midpoints of neighbouring codes and a tie goes to the lower code. In a block of
 * zeros 0 * inf is NaN, above no threshold: code 0. */
#include "ref.h"

#include <math.h>

#include "../dynamic.h"
#include "../quant4.h"

enum { BLOCK = KN_Q4_BLOCK, OUTER = KN_Q4_OUTER };

static const float nf4_code[16] = KN_NF4_CODE;
static const float fp4_code[8] = KN_FP4_CODE;
static const float fp4_above[7] = KN_FP4_ABOVE;
static const uint8_t fp4_next[7] = KN_FP4_NEXT;

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

    for (int i = 0; i < 7 && fabsf(x) > fp4_above[i]; i++)
        code = fp4_next[i];
    return (uint8_t)(code | (x < 0.0f ? 8 : 0));
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

    kn_dynamic_map(map, true);
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
        kn_dynamic_map(map, true);
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
