/* vec_mm.c - small matrix products in registers: adapters and attention.
 *
 * A block of mr rows and nv vectors of columns is summed in registers, one
 * broadcast of A and one vector of B at a time. Each element is one chain of
 * multiply-adds in the order of d, whatever block it falls into. */
#include "vec.h"

#ifdef __AVX512F__ /* 32 registers: 24 sums, up to 4 of B, a broadcast */
enum { MR = 8, NV = 4 };
#else
enum { MR = 6, NV = 2 };
#endif

/* tail: columns of the last vector, VW when it is whole. */
VINLINE void mm_block(const struct cpu_mm *m, int64_t i0, int64_t j0, const int mr, const int nv,
                      const bool whole, int64_t tail)
{
    const float *a = m->a + i0 * m->a_row, *b = m->b + j0;
    const int64_t a_row = m->a_row, a_depth = m->a_depth, ldb = m->ldb;
    vf sum[MR][NV];

    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nv; j++)
            sum[i][j] = (vf){0};
    }
    for (int64_t d = m->depth; d > 0; d--) {
        vf bv[NV];
        for (int j = 0; j < nv; j++)
            bv[j] = whole || j < nv - 1 ? vf_load(b + j * VW) : vf_load_n(b + j * VW, tail);
        for (int i = 0; i < mr; i++) {
            const vf av = vf_set(a[i * a_row]);
            for (int j = 0; j < nv; j++)
                sum[i][j] = vf_fma(av, bv[j], sum[i][j]);
        }
        a += a_depth;
        b += ldb;
    }
    for (int i = 0; i < mr; i++) {
        for (int j = 0; j < nv; j++) {
            float *c = m->c + (i0 + i) * m->ldc + j0 + j * VW;
            const int64_t n = whole || j < nv - 1 ? VW : tail;
            vf v = sum[i][j];
            if (m->add)
                v = vf_fma(vf_set(m->alpha), v, n == VW ? vf_load(c) : vf_load_n(c, n));
            if (n == VW)
                vf_store(c, v);
            else
                vf_store_n(c, v, n);
        }
    }
}

VINLINE void mm_rows(const struct cpu_mm *m, int64_t j0, const int mr, const int nv,
                     const bool whole, int64_t tail)
{
    int64_t i = 0;

    for (; i + mr <= m->rows; i += mr)
        mm_block(m, i, j0, mr, nv, whole, tail);
    if (i + 4 <= m->rows) {
        mm_block(m, i, j0, 4, nv, whole, tail);
        i += 4;
    }
    if (i + 2 <= m->rows) {
        mm_block(m, i, j0, 2, nv, whole, tail);
        i += 2;
    }
    if (i < m->rows)
        mm_block(m, i, j0, 1, nv, whole, tail);
}

/* nv vectors of columns from j0 on, the last of them `tail` long. */
static void mm_columns(const struct cpu_mm *m, int64_t j0, int64_t nv, int64_t tail)
{
    const bool whole = tail == VW;

    switch (nv * 2 + whole) {
#ifdef __AVX512F__
    case 9:
        mm_rows(m, j0, 6, 4, true, VW);
        break;
    case 8:
        mm_rows(m, j0, 6, 4, false, tail);
        break;
    case 7:
        mm_rows(m, j0, 8, 3, true, VW);
        break;
    case 6:
        mm_rows(m, j0, 8, 3, false, tail);
        break;
#endif
    case 5:
        mm_rows(m, j0, MR, 2, true, VW);
        break;
    case 4:
        mm_rows(m, j0, MR, 2, false, tail);
        break;
    case 3:
        mm_rows(m, j0, MR, 1, true, VW);
        break;
    default:
        mm_rows(m, j0, MR, 1, false, tail);
        break;
    }
}

void VNAME(vec_mm)(const struct cpu_mm *m)
{
    const int64_t vectors = (m->cols + VW - 1) / VW;
    const int64_t most = VW == 16 && vectors % 4 != 0 ? 3 : NV;

    for (int64_t v = 0; v < vectors; v += most) {
        const int64_t nv = vectors - v < most ? vectors - v : most;
        const int64_t cols = m->cols - v * VW;
        mm_columns(m, v * VW, nv, cols >= nv * VW ? VW : cols - (nv - 1) * VW);
    }
}

/* The end of a tile: 0 is added so that an adapter that is off and one whose B is
 * 0 give the same sign of zero. */
void VNAME(vec_tile)(const struct cpu_tile *t)
{
    for (int64_t r = 0; r < t->rows; r++) {
        const float *acc = t->acc + r * t->ld_acc;
        const size_t size = t->dtype == KN_BF16 ? 2 : 4;
        const char *other = (const char *)t->other + (size_t)(r * t->ld_other) * size;
        char *out = (char *)t->out + (size_t)(r * t->ld_out) * size;

        for (int64_t c = 0; c < t->cols; c += VW) {
            const int64_t n = t->cols - c;
            vf v = vf_get(acc, c, n, KN_F32) + (vf){0};
            if (t->bias)
                v += vf_get(t->bias, c, n, KN_F32);
            if (t->other)
                v += vf_get(other, c, n, t->dtype);
            vf_put(out, c, n, t->dtype, v);
        }
    }
}
