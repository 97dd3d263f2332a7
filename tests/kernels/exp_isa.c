/* exp_isa.c - one instruction set's exponential, for test_exp.c to hold to libm. */
#include "kernels/cpu/vec.h"

void VNAME(exp_isa)(const float *x, float *y, int64_t n);

void VNAME(exp_isa)(const float *x, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i += VW)
        vf_put(y, i, n - i, KN_F32, vf_exp(vf_get(x, i, n - i, KN_F32)));
}
