/* quant4.h - the tables of 4-bit quantisation and of the 8 bits of its scales, one copy
 * for all backends.
 *
 * NF4: Dettmers et al. 2023 (arXiv:2305.14314), section 3 and appendix E; FP4 as
 * bitsandbytes codes it. Blocks of 64 values; scales in blocks of 256. */
#ifndef KERNELS_QUANT4_H
#define KERNELS_QUANT4_H

#include <math.h>

enum { KN_Q4_BLOCK = 64, KN_Q4_OUTER = 256 };

/* Sorted; entry 7 is 0. */
#define KN_NF4_CODE                                                                               \
    {                                                                                             \
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,                 \
            -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,            \
            0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,                     \
            0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, \
            1.0f                                                                                  \
    }

/* Magnitudes by the low three bits; bit 3 is the sign. */
#define KN_FP4_CODE                                                                     \
    {                                                                                   \
        0.0f, 0.005208333333f, 0.66666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f \
    }

/* Magnitudes above which the next larger code is taken, and that code. */
#define KN_FP4_ABOVE                                                                         \
    {                                                                                        \
        0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f \
    }
#define KN_FP4_NEXT         \
    {                       \
        1, 6, 7, 4, 5, 2, 3 \
    }

/* The signed dynamic 8-bit map: Dettmers et al. 2022 (arXiv:2110.02861), section
 * 2.1. For i in 0..6, 2^i means of neighbours among 2^i + 1 equally spaced points
 * of [0.1, 1], times 10^(i - 6), with both signs; 0 and 1. Sorted: entry 127 is
 * 0. Every step in float32 as torch makes it: points from the nearer end, with one
 * rounding of step * k + end. */
static inline void kn_dynamic_map(float map[256])
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

#endif
