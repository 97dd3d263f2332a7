/* bugs.cu - 44 planted bugs: each must be caught by some configuration. */
// Planted bugs. `bugs N` runs bug N; exit 3 when the numbers come out wrong, 0 when right.
// Bug 0 is the correct twin of 33 to 44.
#include "attn_mma.cuh"
#include <stdio.h>
#include <stdlib.h>
#include <vector>
static cudaStream_t S;
static float *dev(const std::vector<float> &v)
{
    float *p;
    cudaMalloc(&p, v.size() * 4);
    cudaMemcpy(p, v.data(), v.size() * 4, cudaMemcpyHostToDevice);
    return p;
}
static std::vector<float> host(const float *p, size_t n)
{
    std::vector<float> v(n);
    cudaStreamSynchronize(S);
    cudaMemcpy(v.data(), p, n * 4, cudaMemcpyDeviceToHost);
    return v;
}
static std::vector<float> iota(size_t n)
{
    std::vector<float> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(i % 97);
    return v;
}
static bool same(const std::vector<float> &a, const std::vector<float> &b)
{
    for (size_t i = 0; i < b.size(); i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-4f * (1 + fabsf(b[i]))))
            return false;
    return true;
}
#define RET(cond) return (cond)

// 1 static shared: one past the end of a fixed array
__global__ void b1(float *y, const float *x)
{
    SHARED(float, s, [64]);
    s[threadIdx.x + (x[0] > -1 ? 1 : 0)] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x ? threadIdx.x : 1];
}
static bool t1()
{
    auto x = iota(64);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b1, 1, 64, 0, S, y, d);
    host(y, 64);
    RET(true);
}
// 2 static shared 2-D, through a pointer
__global__ void b2(float *y, const float *x, int n)
{
    SHARED(float, s, [8][8]);
    float *p = &s[0][0];
    for (int i = threadIdx.x; i <= n; i += 32)
        p[i] = x[i % 64];
    __syncthreads();
    y[threadIdx.x] = p[threadIdx.x];
}
static bool t2()
{
    auto x = iota(64);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b2, 1, 32, 0, S, y, d, 64);
    host(y, 64);
    RET(true);
}
// 3 inner index overflows into the next row
__global__ void b3(float *y, const float *x, int c)
{
    SHARED(float, s, [8][8]);
    s[threadIdx.x / 8][threadIdx.x % 8] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x / 8 % 7][c];
}
static bool t3()
{
    auto x = iota(64);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b3, 1, 64, 0, S, y, d, 8);
    host(y, 64);
    RET(true);
}
// 4 dynamic shared past the end
__global__ void b4(float *y, const float *x, int n)
{
    DYN_SHARED(sm);
    float *s = sm.take<float>(n);
    for (int i = threadIdx.x; i <= n; i += 32)
        s[i] = x[i % n];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
static bool t4()
{
    auto x = iota(64);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b4, 1, 32, 256, S, y, d, 64);
    host(y, 64);
    RET(true);
}
// 5 one dynamic array runs into its neighbour
__global__ void b5(float *y, const float *x, int n)
{
    DYN_SHARED(sm);
    float *a = sm.take<float>(n), *b = sm.take<float>(n);
    b[threadIdx.x] = 1;
    __syncthreads();
    for (int i = threadIdx.x; i <= n; i += 32)
        a[i] = x[i % n];
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x];
}
static bool t5()
{
    auto x = iota(64);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b5, 1, 32, 512, S, y, d, 64);
    host(y, 64);
    RET(true);
}
// 6 global read past the end (no i<n guard)
__global__ void b6(float *y, const float *x)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i];
}
static bool t6()
{
    auto x = iota(100);
    float *d = dev(x), *y = dev(iota(128));
    LAUNCH(b6, 1, 128, 0, S, y, d);
    RET(same(host(y, 100), x));
}
// 7 global write before the start
__global__ void b7(float *y)
{
    y[(int)threadIdx.x - 1] = 1;
}
static bool t7()
{
    float *y = dev(iota(64));
    LAUNCH(b7, 1, 32, 0, S, y);
    host(y, 64);
    RET(true);
}
// 8 use after free
static bool t8()
{
    auto x = iota(128);
    float *d = dev(x), *y = dev(x);
    cudaFree(d);
    LAUNCH(b6, 1, 100, 0, S, y, d);
    host(y, 64);
    RET(true);
}
// 9 misaligned float4
__global__ void b9(float *y, const float *x)
{
    *(float4 *)(y + 4 * threadIdx.x) = *(const float4 *)(x + 4 * threadIdx.x + 1);
}
static bool t9()
{
    auto x = iota(132);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b9, 1, 32, 0, S, y, d);
    auto r = host(y, 128);
    std::vector<float> e(x.begin() + 1, x.begin() + 129);
    RET(same(r, e));
}
// 10 missing __syncthreads, write -> read by another warp
__global__ void b10(float *y, const float *x)
{
    SHARED(float, s, [128]);
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[127 - threadIdx.x];
}
static bool t10()
{
    auto x = iota(128), e = x;
    for (int i = 0; i < 128; i++)
        e[i] = x[127 - i];
    float *d = dev(x), *y = dev(x);
    LAUNCH(b10, 1, 128, 0, S, y, d);
    RET(same(host(y, 128), e));
}
// 11 missing __syncthreads at the end of a tile loop (write after read)
__global__ void b11(float *y, const float *x)
{
    SHARED(float, s, [64]);
    float a = 0;
    for (int t = 0; t < 4; t++) {
        s[threadIdx.x] = x[t * 64 + threadIdx.x];
        __syncthreads();
        for (int i = 0; i < 64; i++)
            a += s[i];
    }
    y[threadIdx.x] = a;
}
static bool t11()
{
    auto x = iota(256);
    float t = 0;
    for (float f : x)
        t += f;
    std::vector<float> e(64, t);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b11, 1, 64, 0, S, y, d);
    RET(same(host(y, 64), e));
}
// 12 missing __syncwarp
__global__ void b12(float *y, const float *x)
{
    SHARED(float, s, [32]);
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
static bool t12()
{
    auto x = iota(32), e = x;
    for (int i = 0; i < 32; i++)
        e[i] = x[i ^ 1];
    float *d = dev(x), *y = dev(x);
    LAUNCH(b12, 1, 32, 0, S, y, d);
    RET(same(host(y, 32), e));
}
// 13 __syncthreads in a divergent branch
__global__ void b13(float *y)
{
    if (threadIdx.x < 32) {
        y[threadIdx.x] = 1;
        __syncthreads();
    } else {
        y[threadIdx.x] = 2;
        __syncthreads();
    }
}
static bool t13()
{
    float *y = dev(iota(64));
    LAUNCH(b13, 1, 64, 0, S, y);
    host(y, 64);
    RET(true);
}
// 14 full-mask shuffle in a divergent branch: never completes
__global__ void b14(float *y)
{
    float v = threadIdx.x;
    if (threadIdx.x < 16)
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    __syncthreads();
    y[threadIdx.x] = v;
}
static bool t14()
{
    float *y = dev(iota(32));
    LAUNCH(b14, 1, 32, 0, S, y);
    host(y, 32);
    RET(true);
}
// 15 shuffle from a lane outside the mask
__global__ void b15(float *y)
{
    float v = threadIdx.x;
    if (threadIdx.x < 16)
        v = __shfl_xor_sync(0xffffu, v, 16);
    y[threadIdx.x] = v;
}
static bool t15()
{
    float *y = dev(iota(32));
    LAUNCH(b15, 1, 32, 0, S, y);
    host(y, 32);
    RET(true);
}
// 16 shared accumulator never zeroed
__global__ void b16(float *y, const float *x)
{
    SHARED(float, s, [1]);
    atomicAdd(&s[0], x[threadIdx.x]);
    __syncthreads();
    if (!threadIdx.x)
        y[0] = s[0];
}
static bool t16()
{
    auto x = iota(32);
    float t = 0;
    for (float f : x)
        t += f;
    float *d = dev(x), *y = dev(x);
    LAUNCH(b16, 1, 32, 0, S, y, d);
    RET(same(host(y, 1), {t}));
}
// 17 global accumulator never zeroed
__global__ void b17(float *y, const float *x)
{
    y[threadIdx.x] += x[threadIdx.x];
}
static bool t17()
{
    auto x = iota(32);
    float *d = dev(x), *y;
    cudaMalloc(&y, 128);
    LAUNCH(b17, 1, 32, 0, S, y, d);
    RET(same(host(y, 32), x));
}
// 18 blocks add to one word without atomics
__global__ void b18(float *y, const float *x)
{
    if (!threadIdx.x)
        y[0] += x[blockIdx.x];
}
static bool t18()
{
    auto x = iota(32);
    float t = 0;
    for (float f : x)
        t += f;
    float *d = dev(x), *y = dev({0.f});
    LAUNCH(b18, 32, 32, 0, S, y, d);
    RET(same(host(y, 1), {t}));
}
// 19 threads of a block add to one word without atomics
__global__ void b19(float *y, const float *x)
{
    SHARED(float, s, [1]);
    if (!threadIdx.x)
        s[0] = 0;
    __syncthreads();
    s[0] += x[threadIdx.x];
    __syncthreads();
    if (!threadIdx.x)
        y[0] = s[0];
}
static bool t19()
{
    auto x = iota(32);
    float t = 0;
    for (float f : x)
        t += f;
    float *d = dev(x), *y = dev({0.f});
    LAUNCH(b19, 1, 32, 0, S, y, d);
    RET(same(host(y, 1), {t}));
}
// 20 host reads a pinned buffer before synchronising
__global__ void b20(float *y)
{
    y[threadIdx.x] = 7;
}
static bool t20()
{
    float *y = dev(iota(32)), *h;
    cudaMallocHost(&h, 128);
    for (int i = 0; i < 32; i++)
        h[i] = 0;
    LAUNCH(b20, 1, 32, 0, S, y);
    cudaMemcpyAsync(h, y, 128, cudaMemcpyDeviceToHost, S);
    bool ok = h[3] == 7;
    cudaStreamSynchronize(S);
    cudaFreeHost(h);
    RET(ok);
}
// 21 two streams without an event between them
__global__ void b21(float *z, const float *y)
{
    z[threadIdx.x] = y[threadIdx.x] * 2;
}
static bool t21()
{
    cudaStream_t s2;
    cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking);
    float *y = dev(iota(32)), *z = dev(iota(32));
    LAUNCH(b20, 1, 32, 0, S, y);
    LAUNCH(b21, 1, 32, 0, s2, z, y);
    cudaStreamSynchronize(s2);
    auto r = host(z, 32);
    cudaStreamDestroy(s2);
    RET(same(r, std::vector<float>(32, 14.f)));
}
// 22 host dereferences a device pointer
static bool t22()
{
    float *y = dev(iota(32));
    RET(y[1] == 1);
}
// 23 kernel dereferences a host pointer
static bool t23()
{
    std::vector<float> h(128, 1.f);
    float *y = dev(iota(128));
    LAUNCH(b6, 1, 100, 0, S, y, (const float *)h.data());
    host(y, 64);
    RET(true);
}
// 24 dynamic shared over 48 KiB without the attribute
static bool t24()
{
    auto x = iota(64);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b4, 1, 32, 60000, S, y, d, 63);
    if (cudaGetLastError() != cudaSuccess) {
        fprintf(stderr, "CUSIM: launch error reported\n");
        return false;
    }
    RET(true);
}
// 25 cp.async without wait
__global__ void b25(float *y, const float *x)
{
    SHARED(float, s, [128]);
    cp_async16(&s[threadIdx.x * 4], x + threadIdx.x * 4);
    cp_async_commit();
    __syncthreads();
    y[threadIdx.x] = s[127 - threadIdx.x];
    cp_async_wait<0>();
}
static bool t25()
{
    auto x = iota(128), e = iota(32);
    for (int i = 0; i < 32; i++)
        e[i] = x[127 - i];
    float *d = dev(x), *y = dev(e);
    LAUNCH(b25, 1, 32, 0, S, y, d);
    RET(same(host(y, 32), e));
}
// 26 32-bit index overflow
__global__ void b26(float *y, int row, int dim)
{
    if (threadIdx.x == 0)
        y[(row * dim) & 31] = 1;
}
static bool t26()
{
    float *y = dev(iota(32));
    LAUNCH(b26, 1, 32, 0, S, y, 70000, 40000);
    host(y, 32);
    RET(true);
}
// 27 wait for a lane that exited, then read it
__global__ void b27(float *y, int n)
{
    if ((int)threadIdx.x >= n)
        return;
    float v = warp_sum(1.f);
    y[threadIdx.x] = v;
}
static bool t27()
{
    float *y = dev(iota(32));
    LAUNCH(b27, 1, 32, 0, S, y, 20);
    host(y, 32);
    RET(true);
}
// 28 shared memory expected to survive from block to block
__global__ void b28(float *y)
{
    SHARED(float, s, [32]);
    if (blockIdx.x == 0)
        s[threadIdx.x] = 5;
    __syncthreads();
    y[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}
static bool t28()
{
    float *y = dev(iota(64));
    LAUNCH(b28, 2, 32, 0, S, y);
    RET(same(host(y, 64), std::vector<float>(64, 5.f)));
}
// 29 launch gives less dynamic shared memory than the kernel carves
static bool t29()
{
    auto x = iota(64);
    float *d = dev(x), *y = dev(x);
    LAUNCH(b5, 1, 32, 384, S, y, d, 63);
    host(y, 64);
    RET(true);
}
// 30 cuBLAS-free: block count from n, but the tail block is missing
static bool t30()
{
    auto x = iota(100);
    float *d = dev(x), *y;
    cudaMalloc(&y, 400);
    LAUNCH(b21, 3, 32, 0, S, y, d);
    auto e = x;
    for (auto &f : e)
        f *= 2;
    RET(same(host(y, 100), e));
}
// 31 race between warps hidden by a barrier in one branch only: reduction without the second
// barrier
__global__ void b31(float *y, const float *x)
{
    SHARED(float, p, [4]);
    for (int k = 0; k < 2; k++) {
        float v = warp_sum(x[k * 128 + threadIdx.x]);
        if (!(threadIdx.x & 31))
            p[threadIdx.x >> 5] = v;
        __syncthreads();
        float t = p[0] + p[1] + p[2] + p[3];
        y[k * 128 + threadIdx.x] = t;
    }
}
static bool t31()
{
    auto x = iota(256), e = x;
    for (int k = 0; k < 2; k++) {
        float t = 0;
        for (int i = 0; i < 128; i++)
            t += x[k * 128 + i];
        for (int i = 0; i < 128; i++)
            e[k * 128 + i] = t;
    }
    float *d = dev(x), *y = dev(x);
    LAUNCH(b31, 1, 128, 0, S, y, d);
    RET(same(host(y, 256), e));
}
// 32 wrong stride: two threads of a block write the same element with the same value
// order-dependently
__global__ void b32(float *y, const float *x)
{
    y[threadIdx.x / 2] = x[threadIdx.x];
}
static bool t32()
{
    auto x = iota(64);
    std::vector<float> e(32);
    for (int i = 0; i < 32; i++)
        e[i] = x[2 * i + 1];
    float *d = dev(x), *y = dev(e);
    LAUNCH(b32, 1, 64, 0, S, y, d);
    RET(same(host(y, 32), e));
}

// 33 .. 44: a product on tensor cores as the attention kernels make theirs: two warps with 16
// rows each, tiles of 32 keys that arrive by cp.async in two buffers, a causal mask on the rows.
//   y[i, c] = sum over j <= i of (q_i k_j) v_j,c
enum { HD = 16, LD = HD + 8, TILE = 32, KEYS = 96 };
template <int BUG>
__global__ void __launch_bounds__(64)
    attn_like(float *y, const bf16_t *q, const bf16_t *k, const bf16_t *v, int keys)
{
    SHARED(bf16_t, sq, [32 * LD]);
    SHARED(bf16_t, sk, [2][TILE * LD]);
    SHARED(bf16_t, sv, [2][TILE * LD]);
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int row0 = blockIdx.x * 32 + (threadIdx.x >> 5) * 16;
    const bf16_t *own = sq + (threadIdx.x >> 5) * 16 * LD;
    float acc[2][4];
    if (BUG != 42) // uninitialised sums
        for (int i = 0; i < 8; i++)
            acc[i / 4][i % 4] = 0.0f;
    auto load = [&](bf16_t *to, const bf16_t *from, int r0, int rows) {
        for (int i = threadIdx.x; i < 32 * 2; i += 64) {
            const int r = i / 2, c = i % 2 * 8;
            const bool ok = BUG == 41 || r0 + r < rows; // reads rows that are not there
            cp_async16(to + r * LD + c, from + (r0 + r) * HD + c, ok);
        }
    };
    load(sq, q, blockIdx.x * 32, keys);
    load(sk[0], k, 0, keys);
    load(sv[0], v, 0, keys);
    cp_async_commit();
    const int end = blockIdx.x * 32 + 32;
    for (int j0 = 0; j0 < end; j0 += TILE) {
        const int buf = j0 / TILE & 1;
        if (BUG == 38 && j0 + TILE < end) { // the next tile lands where others still read
            load(sk[buf ^ 1], k, j0 + TILE, keys);
            load(sv[buf ^ 1], v, j0 + TILE, keys);
            cp_async_commit();
            cp_async_wait<1>();
        } else if (BUG == 35) { // no wait_group
        } else if (BUG == 36) { // waits for all but the one it needs
            cp_async_wait<1>();
        } else
            cp_async_wait<0>();
        if (BUG != 37) // what another thread copied is read without a barrier
            __syncthreads();
        if (BUG != 38 && j0 + TILE < end) {
            load(sk[buf ^ 1], k, j0 + TILE, keys);
            load(sv[buf ^ 1], v, j0 + TILE, keys);
            cp_async_commit();
        }
        float s[4][4] = {};
        uint32_t a[4], b[4];
        const int arow = BUG == 33 ? (lane & 7) * 2 + (lane >> 3 & 1) : lane & 15; // wrong row
        ldmatrix_x4<false>(a,
                           own + arow * LD + (lane >> 4) * 8 + (BUG == 40 ? 4 : 0)); // misaligned
        for (int n = 0; n < 4; n += 2) {
            const int brow = (n + (BUG == 39 && n ? 1 : 0)) * 8; // past the tile's last row
            ldmatrix_x4<false>(b, sk[buf] + (brow + (lane & 7) + (lane >> 4) * 8) * LD +
                                      (lane >> 3 & 1) * 8);
            mma_m16n8k16(s[n], a, b, s[n]);
            mma_m16n8k16(s[n + 1], a, b + 2, s[n + 1]);
        }
        for (int n = 0; n < 4; n++)
            for (int e = 0; e < 4; e++) {
                const int i = row0 + g + e / 2 * 8, j = j0 + n * 8 + 2 * t + e % 2;
                if (BUG == 34 ? j >= i : j > i) // off by one
                    s[n][e] = 0.0f;
            }
        for (int kk = 0; kk < 2; kk++) {
            frag_of_acc(a, s[2 * kk], s[2 * kk + 1]);
            ldmatrix_x4<BUG != 43>(b, sv[buf] + (kk * 16 + (lane & 15)) * LD +
                                          (lane >> 4) * 8); // not turned
            if (BUG == 44 && lane >= 16)                    // half a warp multiplies
                continue;
            mma_m16n8k16(acc[0], a, b, acc[0]);
            mma_m16n8k16(acc[1], a, b + 2, acc[1]);
        }
    }
    cp_async_wait<0>();
    for (int n = 0; n < 2; n++)
        for (int e = 0; e < 4; e++) {
            const int i = row0 + g + e / 2 * 8;
            if (i < keys)
                y[i * HD + n * 8 + 2 * t + e % 2] = acc[n][e];
        }
}
template <int BUG> static bool t_mma()
{
    const int n = KEYS - 5; // the last tile is not whole
    std::vector<float> qkv[3], e((size_t)n * HD);
    bf16_t *d[3];
    for (int m = 0; m < 3; m++) {
        std::vector<bf16_t> h((size_t)n * HD);
        for (int i = 0; i < n * HD; i++)
            h[i] = __float2bfloat16_rn((float)((i * (7 + m) + i / 13) % 5 - 2) * 0.5f);
        for (bf16_t x : h)
            qkv[m].push_back(__bfloat162float(x));
        cudaMalloc((void **)&d[m], h.size() * 2);
        cudaMemcpy(d[m], h.data(), h.size() * 2, cudaMemcpyHostToDevice);
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j <= i; j++) {
            float s = 0;
            for (int c = 0; c < HD; c++)
                s += qkv[0][i * HD + c] * qkv[1][j * HD + c];
            s = __bfloat162float(__float2bfloat16_rn(s));
            for (int c = 0; c < HD; c++)
                e[i * HD + c] += s * qkv[2][j * HD + c];
        }
    float *y = dev(std::vector<float>((size_t)n * HD));
    LAUNCH(attn_like<BUG>, KEYS / 32, 64, 0, S, y, d[0], d[1], d[2], n);
    RET(same(host(y, e.size()), e));
}

int main(int argc, char **argv)
{
    bool (*t[])() = {t_mma<0>,  t1,        t2,        t3,        t4,        t5,        t6,
                     t7,        t8,        t9,        t10,       t11,       t12,       t13,
                     t14,       t15,       t16,       t17,       t18,       t19,       t20,
                     t21,       t22,       t23,       t24,       t25,       t26,       t27,
                     t28,       t29,       t30,       t31,       t32,       t_mma<33>, t_mma<34>,
                     t_mma<35>, t_mma<36>, t_mma<37>, t_mma<38>, t_mma<39>, t_mma<40>, t_mma<41>,
                     t_mma<42>, t_mma<43>, t_mma<44>};
    int n = (int)strtol(argc > 1 ? argv[1] : "0", 0, 10);
    if (n < 0 || n > 44)
        return 2;
    cudaStreamCreateWithFlags(&S, cudaStreamNonBlocking);
    bool ok = t[n]();
    cudaError_t e = cudaDeviceSynchronize();
    printf("bug %d: numbers %s, %s\n", n, ok ? "right" : "wrong", cudaGetErrorString(e));
    return ok ? 0 : 3;
}
