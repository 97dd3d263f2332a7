/* cusim_mma.h - host twins of the warp-level matrix instructions and asynchronous
 * copies of kernels/cuda/ptx.cuh: lane by lane as the PTX ISA manual lays them out. */
#ifndef CUSIM_MMA_H
#define CUSIM_MMA_H

namespace cusim
{
struct Mma {
    float *d;
    const uint32_t *a, *b;
    const float *c;
};
inline float bf(uint32_t r, int hi)
{
    return cusim_bits<float>((hi ? r >> 16 : r & 0xffff) << 16);
}
// Fragments: PTX ISA 9.7.14.5.8, "Matrix Fragments for mma.m16n8k16 with floating point type".
CUSIM_NOSAN inline void mma_16816_done(void *const *desc, unsigned mask, unsigned)
{
    if (mask != 0xffffffffu)
        fatal("mma.sync with an incomplete warp");
    float A[16][16], B[16][8], D[16][8];
    for (int l = 0; l < 32; l++) {
        const Mma *m = (const Mma *)desc[l];
        int g = l >> 2, t = l & 3;
        for (int h = 0; h < 2; h++) {
            A[g][t * 2 + h] = bf(m->a[0], h);
            A[g + 8][t * 2 + h] = bf(m->a[1], h);
            A[g][t * 2 + 8 + h] = bf(m->a[2], h);
            A[g + 8][t * 2 + 8 + h] = bf(m->a[3], h);
            B[t * 2 + h][g] = bf(m->b[0], h);
            B[t * 2 + 8 + h][g] = bf(m->b[1], h);
            D[g][t * 2 + h] = m->c[h];
            D[g + 8][t * 2 + h] = m->c[2 + h];
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                D[i][j] += A[i][k] * B[k][j];
    for (int l = 0; l < 32; l++) {
        const Mma *m = (const Mma *)desc[l];
        int g = l >> 2, t = l & 3;
        for (int h = 0; h < 2; h++) {
            m->d[h] = D[g][t * 2 + h];
            m->d[2 + h] = D[g + 8][t * 2 + h];
        }
    }
}
struct Ldm {
    uint32_t *r;
    const void *row;
    int n, trans;
};
// PTX ISA, "Warp-level matrix load instruction: ldmatrix".
CUSIM_NOSAN inline void ldmatrix_done(void *const *desc, unsigned mask, unsigned)
{
    if (mask != 0xffffffffu)
        fatal("ldmatrix with an incomplete warp");
    for (int l = 0; l < 32; l++) {
        Ldm *m = (Ldm *)desc[l];
        for (int i = 0; i < m->n; i++) {
            uint16_t v[2];
            for (int h = 0; h < 2; h++) {
                int row = m->trans ? (l & 3) * 2 + h : l >> 2,
                    col = m->trans ? l >> 2 : (l & 3) * 2 + h;
                const uint16_t *p = (const uint16_t *)((Ldm *)desc[i * 8 + row])->row;
                v[h] = p[col];
            }
            m->r[i] = (uint32_t)v[1] << 16 | v[0];
        }
    }
}
inline void ldmatrix(uint32_t *r, const void *row, int n, int trans, CUSIM_SITE)
{
    if (lane_id() < n * 8) {
        if ((uintptr_t)row & 15)
            fatal("ldmatrix: the row address of lane %d is not 16-byte aligned", lane_id());
        if (!shared_span(row, 16)) // the instruction reads no other memory
            fatal("ldmatrix: the row of lane %d lies outside any shared array", lane_id());
        rc_access(row, 16, false);
    }
    Ldm m = {r, row, n, trans};
    warp_collective(0xffffffffu, "ldmatrix", &m, ldmatrix_done, file_, line_);
}
inline void mma_m16n8k16(float *d, const uint32_t *a, const uint32_t *b, const float *c, CUSIM_SITE)
{
    Mma m = {d, a, b, c};
    warp_collective(0xffffffffu, "mma.m16n8k16", &m, mma_16816_done, file_, line_);
}
// PTX ISA, "cp.async": the copy lands when the thread waits for its group; until then the
// target holds NaN. ok false: zeros land, nothing is read.
void cp_async(void *dst, const void *src, int bytes, bool ok);
void cp_async_commit();
void cp_async_wait(int pending_groups);
inline float exp2_flushed(float x)
{
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
} // namespace cusim
#endif
