/* reduce.cuh - reductions over a warp and a block; element conversions. */
#ifndef KERNELS_CUDA_REDUCE_CUH
#define KERNELS_CUDA_REDUCE_CUH
#include "gpu.h"
__device__ __forceinline__ float tof(float x)
{
    return x;
}
__device__ __forceinline__ float tof(bf16_t x)
{
    return __bfloat162float(x);
}
template <class T> __device__ __forceinline__ T fromf(float x);
template <> __device__ __forceinline__ float fromf<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ bf16_t fromf<bf16_t>(float x)
{
    return __float2bfloat16_rn(x);
}

// Eight elements, moved 16 bytes at a time. The address is 16-byte aligned.
template <class T> struct alignas(16) vec8 {
    T v[8];
};
struct alignas(16) vec4 {
    float v[4];
};
// Four floats, in one piece where `whole`: the same values, in the same order.
__device__ __forceinline__ vec4 load4(const float *p, bool whole)
{
    vec4 x;
    if (whole) {
        *(uint4 *)&x = *(const uint4 *)p;
        return x;
    }
    for (int i = 0; i < 4; i++)
        x.v[i] = p[i];
    return x;
}
__device__ __forceinline__ void store4(float *p, const vec4 &x, bool whole)
{
    if (whole) {
        *(uint4 *)p = *(const uint4 *)&x;
        return;
    }
    for (int i = 0; i < 4; i++)
        p[i] = x.v[i];
}
template <class T> __device__ __forceinline__ vec8<T> load8(const T *p)
{
    vec8<T> x;
    for (unsigned i = 0; i < sizeof x / 16; i++)
        ((uint4 *)&x)[i] = ((const uint4 *)p)[i];
    return x;
}
template <class T> __device__ __forceinline__ void store8(T *p, const vec8<T> &x)
{
    for (unsigned i = 0; i < sizeof x / 16; i++)
        ((uint4 *)p)[i] = ((const uint4 *)&x)[i];
}

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}
// Every thread of the block gets the result. blockDim.x is a multiple of 32.
__device__ __forceinline__ float block_sum(float v)
{
    SHARED(float, part, [32]);
    int lane = threadIdx.x & 31, w = threadIdx.x >> 5, nw = blockDim.x >> 5;
    v = warp_sum(v);
    if (lane == 0)
        part[w] = v;
    __syncthreads();
    if (w == 0) { // only warp 0 shuffles: divergent warps
        float t = lane < nw ? part[lane] : 0.f;
        t = warp_sum(t);
        if (lane == 0)
            part[0] = t;
    }
    __syncthreads();
    v = part[0];
    __syncthreads(); // part is reused by the next call
    return v;
}
#endif
