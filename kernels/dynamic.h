/* dynamic.h - the dynamic 8-bit maps, one copy for all backends: the signed one (scales
 * of 4-bit weights, Adam's first moment) and the unsigned one (its second).
 *
 * Dettmers et al. 2022 (arXiv:2110.02861), section 2.1, with the numbers that
 * bitsandbytes' create_dynamic_map() has: every step in float32 as torch makes it. */
#ifndef KERNELS_DYNAMIC_H
#define KERNELS_DYNAMIC_H

#include <math.h>
#include <stdbool.h>

#include "dtype.h"

enum { KN_DYNAMIC = 256, KN_DYNAMIC_ZERO = 127 }; /* entries; which one is 0, signed */

/* Entry c of a sorted map. Signed: for i in 0..6 the 2^i means of neighbours among
 * 2^i + 1 equally spaced points of [0.1, 1], times 10^(i - 6), with both signs; 0 and
 * 1. Unsigned: 2^(i + 1) means, without the signs. The points are made from the nearer
 * end, with one rounding of step * k + end. */
KN_INLINE float kn_dynamic_entry(int c, bool is_signed)
{
    const int at = !is_signed            ? c + 1
                   : c < KN_DYNAMIC_ZERO ? KN_DYNAMIC_ZERO - c
                                         : c - KN_DYNAMIC_ZERO;
    const int last = is_signed ? 6 : 7;
    float ten = 1.0f, edge[2];
    int i = 0;

    if (c == KN_DYNAMIC - 1)
        return 1.0f;
    if (c == (is_signed ? KN_DYNAMIC_ZERO : 0))
        return 0.0f;
    while (at >> (i + 1))
        i++;
    const int n = 1 << i, j = at - n; /* the j-th of n means */
    const float step = (1.0f - 0.1f) / (float)n;
    for (int e = 0; e < 2; e++)
        edge[e] = j + e < (n + 1) / 2 ? fmaf(step, (float)(j + e), 0.1f)
                                      : fmaf(-step, (float)(n - j - e), 1.0f);
    for (; i < last; i++)
        ten *= 10.0f; /* exact, so that 1 / ten is the power of ten rounded once */
    const float v = 1.0f / ten * ((edge[0] + edge[1]) / 2.0f);
    return is_signed && c < KN_DYNAMIC_ZERO ? -v : v;
}

static inline void kn_dynamic_map(float map[KN_DYNAMIC], bool is_signed)
{
    for (int c = 0; c < KN_DYNAMIC; c++)
        map[c] = kn_dynamic_entry(c, is_signed);
}

/* The code of x in [-1, 1] is the number of thresholds that x is above: one between each
 * two neighbours, s and s + 1, in float32 halfway. A tie goes to the even entry, as in
 * bitsandbytes' CUDA kernels: from an odd s on "above" the float before is "from here
 * on". And as there a value below 0 never becomes 0 in the signed map. */
KN_INLINE float kn_dynamic_threshold(float low, float high, int s, bool is_signed)
{
    const float middle = (low + high) * 0.5f;
    uint32_t u;
    float f;

    memcpy(&u, &middle, sizeof u);
    if (s % 2)
        u += u >> 31 ? 1 : -1u;
    if (is_signed && s == KN_DYNAMIC_ZERO - 1)
        u = 0x80000001u; /* the largest below 0 */
    memcpy(&f, &u, sizeof f);
    return f;
}

/* The thresholds as a binary tree, the children of node k at 2 k and 2 k + 1: a search
 * is eight times k = 2 k + (x > tree[k]) from k = 1 on; the code is k - 256. Each
 * level is a stretch of memory: in a GPU's shared memory 32 lanes meet in a bank from
 * the seventh level on only. What stands at node k, 1 to 255: */
KN_INLINE int kn_dynamic_node(int k)
{
    int level = 0;

    while (k >> (level + 1))
        level++;
    return ((2 * (k - (1 << level)) + 1) << (7 - level)) - 1;
}

static inline void kn_dynamic_tree(float tree[KN_DYNAMIC], const float map[KN_DYNAMIC],
                                   bool is_signed)
{
    tree[0] = 0.0f; /* not used */
    for (int k = 1; k < KN_DYNAMIC; k++) {
        const int s = kn_dynamic_node(k);
        tree[k] = kn_dynamic_threshold(map[s], map[s + 1], s, is_signed);
    }
}

KN_INLINE uint8_t kn_dynamic_code(const float *tree, float x)
{
    int k = 1;

    for (int level = 0; level < 8; level++)
        k = 2 * k + (x > tree[k]);
    return (uint8_t)(k - KN_DYNAMIC);
}

#endif
