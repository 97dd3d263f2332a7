/* quant4.h - the tables of 4-bit quantisation, one copy for all backends; of the 8 bits
 * of its scales: dynamic.h.
 *
 * NF4: Dettmers et al. 2023 (arXiv:2305.14314), section 3 and appendix E; FP4 as
 * bitsandbytes codes it. Blocks of 64 values; scales in blocks of 256. */
#ifndef KERNELS_QUANT4_H
#define KERNELS_QUANT4_H

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

#endif
