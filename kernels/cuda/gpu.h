/* gpu.h - the only header kernels include: nvcc, or the simulator. */
// gpu.h - the only header kernels include. Two implementations of one surface:
// nvcc (real GPU) and cusim (host C++ on fibers).
#ifndef GPU_H
#define GPU_H
#ifdef CUSIM
#include "cusim.h"
#define LAUNCH(kernel, grid, block, smem, stream, ...) \
    cusim::launch(#kernel, kernel, dim3(grid), dim3(block), smem, stream, __VA_ARGS__)
#define SHARED(T, name, dims)                          \
    static char name##_key_;                           \
    typedef T name##_t_ dims;                          \
    name##_t_ &name = *(name##_t_ *)cusim::shared_get( \
        &name##_key_, sizeof(name##_t_), alignof(name##_t_) < 16 ? 16 : alignof(name##_t_), 0)
#define DYN_SHARED(name) cusim::Smem name
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#define LAUNCH(kernel, grid, block, smem, stream, ...) \
    (kernel)<<<dim3(grid), dim3(block), smem, stream>>>(__VA_ARGS__)
// SHARED(float, tile, [32][33]);  static shared memory
#define SHARED(T, name, dims) __shared__ __align__(16) T name dims
// DYN_SHARED(sm); float *a = sm.take<float>(n), *b = sm.take<float>(m);  in the same order in every
// thread
struct Smem {
    unsigned char *p;
    template <class T> __device__ __forceinline__ T *take(size_t n)
    {
        T *r = reinterpret_cast<T *>(p);
        p += (n * sizeof(T) + 15) / 16 * 16;
        return r;
    }
};
#define DYN_SHARED(name)                                        \
    extern __shared__ __align__(1024) unsigned char gpu_dyn_[]; \
    Smem name                                                   \
    {                                                           \
        gpu_dyn_                                                \
    }
__device__ __forceinline__ void named_barrier_sync(int id, int n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
#endif
typedef __nv_bfloat16 bf16_t; /* bf16 is the host-side struct of dtype.h */
// Every polling loop calls this; in the simulator it lets the thread that is waited for run.
__device__ __forceinline__ void spin_pause()
{
#ifdef CUSIM
    cusim::spin_yield();
#else
    __nanosleep(20);
#endif
}
#define SMEM16(bytes) (((bytes) + 15) / 16 * 16) // what take() uses: sum these for the launch

#include "ptx.cuh"
#endif
