/* mma.cuh - tiles in shared memory and the fragments that mma.sync takes from them.
 *
 * A tile is rows of HD columns, HD + 8 elements apart: eight rows of 16 bytes then lie in
 * different banks, so ldmatrix has no conflicts. */
#ifndef KERNELS_CUDA_MMA_CUH
#define KERNELS_CUDA_MMA_CUH

#include "cuda.cuh"

enum { MMA_WARPS = 4, MMA_THREADS = 32 * MMA_WARPS };

/* The warp's number, so that the compiler sees that all lanes have the same. */
__device__ static inline int warp_number()
{
    return __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0);
}

/* Rows [r0, r0 + ROWS) of a matrix into a tile, asynchronously; zero beyond `rows` and
 * beyond the first hd columns. Not unrolled: registers are for sums. */
template <int HD, int ROWS>
__device__ static inline void load_rows(bf16_t *to, const bf16_t *from, int64_t ld, int r0,
                                        int rows, int hd)
{
    enum { CHUNKS = HD / 8 };

#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += MMA_THREADS) {
        const int r = i / CHUNKS, c = i % CHUNKS * 8;
        const bool ok = r0 + r < rows && c < hd;
        cp_async16(to + r * (HD + 8) + c, ok ? from + (r0 + r) * ld + c : from, ok);
    }
}

/* The fragment of a 16 x 16 matrix A: rows [0, 16) and columns [k, k + 16) of a tile. */
template <int HD> __device__ static inline void frag_a(uint32_t a[4], const bf16_t *tile, int k)
{
    const int lane = threadIdx.x & 31;

    ldmatrix_x4<false>(a, tile + (lane & 15) * (HD + 8) + k + (lane >> 4) * 8);
}

/* The fragment of A = T^T, T being rows [k, k + 16) and columns [m, m + 16) of a tile. */
template <int HD>
__device__ static inline void frag_a_rows(uint32_t a[4], const bf16_t *tile, int k, int m)
{
    const int lane = threadIdx.x & 31;

    ldmatrix_x4<true>(a, tile + (k + (lane & 7) + (lane >> 4) * 8) * (HD + 8) + m +
                             (lane >> 3 & 1) * 8);
}

/* Two neighbouring 16 x 8 matrices B, b[0..1] and b[2..3], whose columns are rows
 * [n, n + 16) of a tile, columns [k, k + 16). */
template <int HD>
__device__ static inline void frag_b(uint32_t b[4], const bf16_t *tile, int n, int k)
{
    const int lane = threadIdx.x & 31;

    ldmatrix_x4<false>(b, tile + (n + (lane & 7) + (lane >> 4) * 8) * (HD + 8) + k +
                              (lane >> 3 & 1) * 8);
}

/* The same for rows [k, k + 16), columns [n, n + 16) of a tile as they stand. */
template <int HD>
__device__ static inline void frag_b_rows(uint32_t b[4], const bf16_t *tile, int k, int n)
{
    const int lane = threadIdx.x & 31;

    ldmatrix_x4<true>(b, tile + (k + (lane & 15)) * (HD + 8) + n + (lane >> 4) * 8);
}

__device__ static inline uint32_t pack_bf16(float low, float high)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t u;

    memcpy(&u, &v, sizeof u);
    return u;
}

/* Two neighbouring accumulators (16 x 8 each) as the fragment of one A (16 x 16). */
__device__ static inline void frag_of_acc(uint32_t a[4], const float c0[4], const float c1[4])
{
    a[0] = pack_bf16(c0[0], c0[1]);
    a[1] = pack_bf16(c0[2], c0[3]);
    a[2] = pack_bf16(c1[0], c1[1]);
    a[3] = pack_bf16(c1[2], c1[3]);
}

/* 16 rows of accumulators times two factors (of the upper and the lower eight rows)
 * into a tile that only this warp uses. */
template <int HD>
__device__ static inline void put_acc(bf16_t *tile, const float (*acc)[4], float upper, float lower)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;

#pragma unroll
    for (int n = 0; n < HD / 8; n++) {
        uint32_t *p = (uint32_t *)(tile + g * (HD + 8) + n * 8 + 2 * t);
        p[0] = pack_bf16(acc[n][0] * upper, acc[n][1] * upper);
        p[8 * (HD + 8) / 2] = pack_bf16(acc[n][2] * lower, acc[n][3] * lower);
    }
}

/* The first `rows` rows of a warp's tile to global memory, 16 bytes at a time. */
template <int HD>
__device__ static inline void store_rows(bf16_t *to, int64_t ld, const bf16_t *tile, int rows,
                                         int hd)
{
    const int chunks = hd / 8;

    for (int i = threadIdx.x & 31; i < rows * chunks; i += 32) {
        const int r = i / chunks, c = i % chunks * 8;
        *(uint4 *)(to + r * ld + c) = *(const uint4 *)(tile + r * (HD + 8) + c);
    }
}

#endif
