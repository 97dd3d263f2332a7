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

// D = A(16x16,row) * B(16x8,col) + C, bf16 in, fp32 out. One warp.
__device__ __forceinline__ void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2],
                                             const float c[4])
{
#ifdef CUSIM
    cusim::mma_m16n8k16(d, a, b, c);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
}
// Four 8x8 b16 matrices from shared memory; lane l gives the address of row l%8 of matrix l/8.
template <bool TRANS>
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *smem_row)
{
#ifdef CUSIM
    cusim::ldmatrix(r, smem_row, 4, TRANS);
#else
    unsigned s = (unsigned)__cvta_generic_to_shared(smem_row);
    if (TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(s)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(s)
                     : "memory");
#endif
}
__device__ __forceinline__ void cp_async16(void *smem, const void *gmem)
{
#ifdef CUSIM
    cusim::cp_async(smem, gmem, 16);
#else
    unsigned s = (unsigned)__cvta_generic_to_shared(smem);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s), "l"(gmem) : "memory");
#endif
}
__device__ __forceinline__ void cp_async_commit()
{
#ifdef CUSIM
    cusim::cp_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void cp_async_wait()
{
#ifdef CUSIM
    cusim::cp_async_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
#endif
