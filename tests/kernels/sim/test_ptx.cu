/* test_ptx.cu - every function of ptx.cuh, exact on small integers: the twins here, the
 * instructions themselves when built by nvcc and run on a GPU. */
#include "gpu.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define CHECK(c)                                           \
    do {                                                   \
        if (!(c)) {                                        \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #c); \
            atomicAdd(bad, 1);                             \
        }                                                  \
    } while (0)

/* Small integers: products and sums of them are exact in float32. */
__host__ __device__ static inline int small_a(int r, int c)
{
    return (r * 7 + c * 3) % 11 - 5;
}
__host__ __device__ static inline int small_b(int r, int c)
{
    return (r * 5 + c * 13) % 9 - 4;
}
__host__ __device__ static inline int small_c(int r, int c)
{
    return (r * 3 + c) % 17 - 8;
}
__device__ static inline uint32_t two(float low, float high)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t r;
    memcpy(&r, &v, sizeof r);
    return r;
}

__global__ void product(int *bad, float *d) /* (16, 8), one warp */
{
    const int l = threadIdx.x, g = l / 4, t = l % 4;
    uint32_t a[4], b[2];
    float c[4], out[4];

    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i % 2), col = 2 * t + 8 * (i / 2);
        a[i] = two((float)small_a(row, col), (float)small_a(row, col + 1));
        c[i] = (float)small_c(g + 8 * (i / 2), 2 * t + i % 2);
    }
    for (int i = 0; i < 2; i++)
        b[i] = two((float)small_b(2 * t + 8 * i, g), (float)small_b(2 * t + 8 * i + 1, g));
    mma_m16n8k16(out, a, b, c);
    for (int i = 0; i < 4; i++) {
        d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = out[i];
        CHECK(out[i] == out[i]);
    }
    mma_m16n8k16(c, a, b, c); /* the sum may be its own summand */
    for (int i = 0; i < 4; i++)
        CHECK(c[i] == out[i]);
}

__global__ void matrices(int *bad)
{
    SHARED(uint16_t, m, [4][8][24]); /* rows 48 bytes apart: aligned, not dense */
    const int l = threadIdx.x;
    uint32_t r[4];

    for (int i = l; i < 4 * 8 * 8; i += 32)
        m[i / 64][i / 8 % 8][i % 8] = (uint16_t)i;
    __syncwarp();
    ldmatrix_x4<false>(r, &m[l / 8][l % 8][0]);
    for (int i = 0; i < 4; i++) {
        CHECK((r[i] & 0xffff) == (uint32_t)(64 * i + 8 * (l / 4) + 2 * (l % 4)));
        CHECK(r[i] >> 16 == (uint32_t)(64 * i + 8 * (l / 4) + 2 * (l % 4) + 1));
    }
    ldmatrix_x4<true>(r, &m[l / 8][l % 8][0]);
    for (int i = 0; i < 4; i++) {
        CHECK((r[i] & 0xffff) == (uint32_t)(64 * i + 8 * (2 * (l % 4)) + l / 4));
        CHECK(r[i] >> 16 == (uint32_t)(64 * i + 8 * (2 * (l % 4) + 1) + l / 4));
    }
}

__global__ void copies(int *bad, const int *src) /* 64 threads; src (64 * 4 * 2 + 64) */
{
    SHARED(int4, a, [64]);
    SHARED(int4, b, [64]);
    SHARED(int, one, [64]);
    const int t = threadIdx.x;

    one[t] = a[t].x = -1;
    __syncthreads();
    cp_async16(&a[t], src + 4 * t);
    cp_async_commit();
    cp_async16(&b[t], src + 256 + 4 * t, t % 3 != 0);
    cp_async4(&one[t], src + 512 + t, t % 2 == 0);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    CHECK(a[63 - t].x == 4 * (63 - t) && a[63 - t].w == 4 * (63 - t) + 3);
    cp_async_wait<0>();
    __syncthreads();
    const int u = 63 - t;
    CHECK(u % 3 == 0 ? b[u].x == 0 && b[u].w == 0 : b[u].x == 256 + 4 * u && b[u].w == 259 + 4 * u);
    CHECK(one[u] == (u % 2 == 0 ? 512 + u : 0));
}

__global__ void powers(int *bad)
{
    for (int i = (int)threadIdx.x - 4000; i < 4000; i += blockDim.x) {
        const float x = 0.03125f * (float)i, want = exp2f(x), got = exp2_fast(x);
        if (want < 1.17549435e-38f) /* smaller than a normal number */
            CHECK(got >= 0.0f && got <= 1.17549435e-38f);
        else
            CHECK(fabsf(got - want) <= 2.5e-7f * want);
    }
    CHECK(exp2_fast(-INFINITY) == 0.0f && exp2_fast(0.0f) == 1.0f);
}

/* Rounding to bf16 is the host's own: ties to even, NaN stays NaN. */
__global__ void roundings(int *bad, const float *x, const uint16_t *want, int n)
{
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const __nv_bfloat16 b = __float2bfloat16_rn(x[i]);
        uint16_t bits;
        memcpy(&bits, &b, sizeof bits);
        CHECK(bits == want[i]);
        CHECK(__bfloat162float(b) == __uint_as_float((uint32_t)want[i] << 16));
    }
}

static int wrong_products(const float *d)
{
    int wrong = 0;

    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 8; j++) {
            int want = small_c(i, j);
            for (int k = 0; k < 16; k++)
                want += small_a(i, k) * small_b(k, j);
            wrong += d[i * 8 + j] != (float)want;
        }
    }
    return wrong;
}

static uint16_t round_even(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

int main()
{
    enum { VALUES = 4096, SRC = 64 * 4 * 2 + 64 };
    static float x[VALUES], d[16 * 8];
    static uint16_t want[VALUES];
    static int src[SRC];
    int *bad, *dsrc, h = 0;
    float *dd, *dx;
    uint16_t *dwant;

    for (uint32_t i = 0; i < VALUES; i++) {
        const uint32_t u = (i * 2654435761u & 0xbfffffffu) | (i & 1 ? 0x8000u : 0u); /* many ties */
        memcpy(&x[i], &u, sizeof u);
        want[i] = round_even(x[i]);
    }
    for (int i = 0; i < SRC; i++)
        src[i] = i;
    cudaMalloc(&bad, 4);
    cudaMalloc(&dd, sizeof d);
    cudaMalloc(&dx, sizeof x);
    cudaMalloc(&dwant, sizeof want);
    cudaMalloc(&dsrc, sizeof src);
    cudaMemset(bad, 0, 4);
    cudaMemcpy(dx, x, sizeof x, cudaMemcpyHostToDevice);
    cudaMemcpy(dwant, want, sizeof want, cudaMemcpyHostToDevice);
    cudaMemcpy(dsrc, src, sizeof src, cudaMemcpyHostToDevice);
    LAUNCH(product, 1, 32, 0, 0, bad, dd);
    LAUNCH(matrices, 2, 32, 0, 0, bad);
    LAUNCH(copies, 2, 64, 0, 0, bad, dsrc);
    LAUNCH(powers, 1, 128, 0, 0, bad);
    LAUNCH(roundings, 1, 128, 0, 0, bad, dx, dwant, (int)VALUES);
    cudaMemcpy(d, dd, sizeof d, cudaMemcpyDeviceToHost);
    cudaMemcpy(&h, bad, 4, cudaMemcpyDeviceToHost);
    const cudaError_t e = cudaDeviceSynchronize();
    h += wrong_products(d);
    cudaFree(bad);
    cudaFree(dd);
    cudaFree(dx);
    cudaFree(dwant);
    cudaFree(dsrc);
    printf("ptx: %d bad, %s %s\n", h, cudaGetErrorString(e), h || e ? "FAIL" : "ok");
    return h || e;
}
