/* ptx.cuh - every PTX instruction that kernels use, one function each, beside its
 * host twin (kernels/sim/cusim_mma.h). No other file contains asm.
 *
 * Sections are those of the PTX ISA manual. All of these need sm_80. */
#ifndef KERNELS_CUDA_PTX_CUH
#define KERNELS_CUDA_PTX_CUH

/* d = a (16 x 16, rows) * b (16 x 8, columns) + c, bf16 in, float32 out, by one warp.
 * Fragments of lane l, g = l / 4, t = l % 4 (9.7.14.5.8, "Matrix Fragments for
 * mma.m16n8k16 with floating point type"); two bf16 a register, the lower index low:
 *   a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
 *   b[0] (2t.., g)  b[1] (2t + 8.., g)
 *   c[0] c[1] (g, 2t..)                 c[2] c[3] (g + 8, 2t..)              */
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

/* Four 8 x 8 matrices of 16-bit elements from shared memory ("Warp-level matrix load instruction:
 * ldmatrix"): lane l brings the address of row l % 8 of matrix l / 8 (16 bytes, aligned); lane l
 * receives of matrix i in r[i] the elements (l / 4, 2 (l % 4)) and the one after it in
 * the row, with TRANS of the transposed matrix. */
template <bool TRANS>
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *smem_row)
{
#ifdef CUSIM
    cusim::ldmatrix(r, smem_row, 4, TRANS);
#else
    const unsigned s = (unsigned)__cvta_generic_to_shared(smem_row);
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

/* Copies global memory to shared memory without passing through registers (data movement
 * instructions, "cp.async"): visible to this thread after the wait for its group, to others after a
 * barrier behind that. ok false: zeros are written and nothing is read, but the
 * address must be one that could be. 16 bytes, by way of L2 alone. */
__device__ __forceinline__ void cp_async16(void *smem, const void *gmem, bool ok = true)
{
#ifdef CUSIM
    cusim::cp_async(smem, gmem, 16, ok);
#else
    const unsigned s = (unsigned)__cvta_generic_to_shared(smem);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(gmem),
                 "r"(ok ? 16 : 0)
                 : "memory");
#endif
}

/* The same for one float. */
__device__ __forceinline__ void cp_async4(void *smem, const void *gmem, bool ok = true)
{
#ifdef CUSIM
    cusim::cp_async(smem, gmem, 4, ok);
#else
    const unsigned s = (unsigned)__cvta_generic_to_shared(smem);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(s), "l"(gmem), "r"(ok ? 4 : 0)
                 : "memory");
#endif
}

/* Closes a group of copies ("cp.async.commit_group"). */
__device__ __forceinline__ void cp_async_commit()
{
#ifdef CUSIM
    cusim::cp_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Waits until at most the N youngest groups are under way ("cp.async.wait_group"). */
template <int N> __device__ __forceinline__ void cp_async_wait()
{
#ifdef CUSIM
    cusim::cp_async_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

/* 2^x within 2 units in the last place, denormals as zero ("ex2"); 0 for
 * -infinity. The twin is exact. */
__device__ __forceinline__ float exp2_fast(float x)
{
#ifdef CUSIM
    return cusim::exp2_flushed(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

#endif
