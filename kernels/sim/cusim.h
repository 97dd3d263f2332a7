/* cusim.h - the CUDA device language as host C++. */
// cusim.h - compile CUDA C++ kernels as host C++ and run them on fibers.
// Included (through gpu.h) instead of cuda_runtime.h when CUSIM is defined.
#ifndef CUSIM_H
#define CUSIM_H
#include <cuda_bf16.h> // bit-exact conversions and +,-,*,/ on the host
#include <cuda_fp16.h>
#include <cuda_runtime_api.h> // NVIDIA's own prototypes: the host API is type-checked
#include <functional>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector_functions.h>

// ---- language keywords -----------------------------------------------------
// host_defines.h already makes __global__, __device__, __host__, __constant__
// and __shared__ empty when __CUDACC__ is not defined.
// __shared__ has no lexical equivalent that every compiler accepts (see pitfalls):
// kernels say SHARED(float, tile, [32][33]) and raw __shared__ does not compile here.
#undef __shared__
#define __shared__ cusim_use_SHARED_or_DYN_SHARED_from_gpu_h
#define __launch_bounds__(...)
#define CUSIM_NOSAN __attribute__((no_sanitize("thread"), no_sanitize("address")))

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
enum { warpSize = 32 };

#define CUSIM_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()

namespace cusim
{
// A warp collective: the lanes of `mask` meet, the last one runs fn once over
// every lane's descriptor (they stay alive on the parked lanes' stacks).
typedef void (*Completer)(void *const *desc, unsigned mask, unsigned exited);
void warp_collective(unsigned mask, const char *op, void *desc, Completer fn, const char *file,
                     int line);
// Block barrier. id 0 = __syncthreads; count<0 = all non-exited threads.
int block_barrier(int id, int count, const char *op, int pred, const char *file, int line);
int lane_id();
void spin_yield();
int linear_tid();
// Shared memory of the current block, one redzoned piece per key; made at first use.
void *shared_get(const void *key, size_t bytes, size_t align, size_t dyn_end);
int shared_bytes_dynamic();
bool shared_span(const void *p, size_t n); // inside one shared array of the block
[[noreturn]] void fatal(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void rc_atomic(const void *p, size_t n); // race checker: atomic access
void rc_fence();
void rc_access(const void *p, size_t n, bool write); // an access made by the shim for this thread
void rc_args(const void *p, size_t n); // the launch's arguments: readable by the kernel
void run_grid(const char *name, dim3 g, dim3 b, size_t smem, void (*body)(void *), void *ctx);
void enqueue(cudaStream_t s, const char *name, std::function<void()> fn);
cudaError_t check_launch(const char *name, const void *fn, dim3 g, dim3 b, size_t smem);
void set_func_smem(const void *fn, int bytes);

template <class... P, class... A>
void launch(const char *name, void (*k)(P...), dim3 g, dim3 b, size_t smem, cudaStream_t s,
            A &&...a)
{
    if (check_launch(name, (const void *)k, g, b, smem) != cudaSuccess)
        return;
    std::tuple<std::decay_t<P>...> args(static_cast<P>(a)...); // converted now, like <<<>>>
    enqueue(s, name, [=]() {
        struct {
            void (*f)(P...);
            std::tuple<std::decay_t<P>...> v;
        } c = {k, args};
        rc_args(&c, sizeof c);
        auto body = [](void *p) {
            auto *x = (decltype(c) *)p;
            std::apply(x->f, x->v);
        };
        run_grid(name, g, b, smem, body, &c);
    });
}
// Dynamic shared memory, carved piece by piece in the same order by every thread.
struct Smem {
    size_t off = 0, k = 0;
    template <class T> T *take(size_t n)
    {
        size_t b = n * sizeof(T);
        off += (b + 15) / 16 * 16;
        return (T *)shared_get((const void *)++k, b, 128, off);
    }
};
} // namespace cusim

// ---- barriers ----------------------------------------------------------------
static inline void __syncthreads(CUSIM_SITE)
{
    cusim::block_barrier(0, -1, "__syncthreads", 0, file_, line_);
}
static inline int __syncthreads_count(int p, CUSIM_SITE)
{
    return cusim::block_barrier(0, -1, "__syncthreads_count", p != 0, file_, line_);
}
static inline int __syncthreads_or(int p, CUSIM_SITE)
{
    return cusim::block_barrier(0, -1, "__syncthreads_or", p != 0, file_, line_) > 0;
}
static inline int __syncthreads_and(int p, CUSIM_SITE)
{
    return cusim::block_barrier(0, -1, "__syncthreads_and", p == 0, file_, line_) == 0;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, CUSIM_SITE)
{
    cusim::warp_collective(mask, "__syncwarp", nullptr, nullptr, file_, line_);
}
static inline void __threadfence()
{
    cusim::rc_fence();
}
static inline void __threadfence_block() {}
static inline void __threadfence_system()
{
    cusim::rc_fence();
}
// bar.sync id, n
static inline void named_barrier_sync(int id, int n, CUSIM_SITE)
{
    cusim::block_barrier(id, n, "bar.sync", 0, file_, line_);
}

// ---- warp operations -----------------------------------------------------------
namespace cusim
{
struct Shfl {
    const void *in;
    void *out;
    int size, src;
};
inline void shfl_done(void *const *d, unsigned mask, unsigned exited)
{
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) {
            Shfl *s = (Shfl *)d[l];
            if (!(mask >> s->src & 1))
                fatal("lane %d shuffles from lane %d, which is %s", l, s->src,
                      exited >> s->src & 1 ? "exited" : "not in the mask");
            memcpy(s->out, ((Shfl *)d[s->src])->in, s->size);
        }
}
template <class T> T shfl(unsigned mask, T v, int src, const char *op, const char *f, int l)
{
    static_assert(std::is_trivially_copyable<T>::value || sizeof(T) <= 8, "");
    T out;
    Shfl d = {&v, &out, (int)sizeof(T), src};
    warp_collective(mask, op, &d, shfl_done, f, l);
    return out;
}
struct Vote {
    unsigned long long v, out;
};
} // namespace cusim
template <class T> T __shfl_sync(unsigned m, T v, int src, int w = 32, CUSIM_SITE)
{
    int l = cusim::lane_id();
    return cusim::shfl(m, v, (l & ~(w - 1)) | (src & (w - 1)), "__shfl_sync", file_, line_);
}
template <class T> T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, CUSIM_SITE)
{
    int l = cusim::lane_id(), s = l - (int)d;
    return cusim::shfl(m, v, s < (l & ~(w - 1)) ? l : s, "__shfl_up_sync", file_, line_);
}
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, CUSIM_SITE)
{
    int l = cusim::lane_id(), s = l + (int)d;
    return cusim::shfl(m, v, s > (l | (w - 1)) ? l : s, "__shfl_down_sync", file_, line_);
}
template <class T> T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, CUSIM_SITE)
{
    int l = cusim::lane_id(), s = l ^ x;
    return cusim::shfl(m, v, s > (l | (w - 1)) ? l : s, "__shfl_xor_sync", file_, line_);
}
static inline unsigned __ballot_sync(unsigned m, int p, CUSIM_SITE)
{
    cusim::Vote d = {(unsigned long long)(p != 0), 0};
    cusim::warp_collective(
        m, "__ballot_sync", &d,
        [](void *const *d, unsigned mask, unsigned) {
            unsigned r = 0;
            for (int l = 0; l < 32; l++)
                if (mask >> l & 1)
                    r |= (unsigned)((cusim::Vote *)d[l])->v << l;
            for (int l = 0; l < 32; l++)
                if (mask >> l & 1)
                    ((cusim::Vote *)d[l])->out = r;
        },
        file_, line_);
    return (unsigned)d.out;
}
static inline int __any_sync(unsigned m, int p, CUSIM_SITE)
{
    return __ballot_sync(m, p, file_, line_) != 0;
}
static inline int __all_sync(unsigned m, int p, CUSIM_SITE)
{
    return __ballot_sync(m, !p, file_, line_) == 0;
}
template <class T> unsigned __match_any_sync(unsigned m, T v, CUSIM_SITE)
{
    cusim::Vote d = {0, 0};
    static_assert(sizeof(T) <= 8, "");
    memcpy(&d.v, &v, sizeof v);
    cusim::warp_collective(
        m, "__match_any_sync", &d,
        [](void *const *d, unsigned mask, unsigned) {
            for (int l = 0; l < 32; l++)
                if (mask >> l & 1) {
                    unsigned r = 0;
                    for (int k = 0; k < 32; k++)
                        if (mask >> k & 1 && ((cusim::Vote *)d[k])->v == ((cusim::Vote *)d[l])->v)
                            r |= 1u << k;
                    ((cusim::Vote *)d[l])->out = r;
                }
        },
        file_, line_);
    return (unsigned)d.out;
}
static inline int __reduce_add_sync(unsigned m, int v, CUSIM_SITE)
{
    cusim::Vote d = {(unsigned long long)(unsigned)v, 0};
    cusim::warp_collective(
        m, "__reduce_add_sync", &d,
        [](void *const *d, unsigned mask, unsigned) {
            unsigned r = 0;
            for (int l = 0; l < 32; l++)
                if (mask >> l & 1)
                    r += (unsigned)((cusim::Vote *)d[l])->v;
            for (int l = 0; l < 32; l++)
                if (mask >> l & 1)
                    ((cusim::Vote *)d[l])->out = r;
        },
        file_, line_);
    return (int)d.out;
}
// __activemask() is deliberately missing: its value depends on hardware convergence.

// ---- atomics (the simulator runs one fiber at a time; rc_atomic tells the race checker) ----
#define CUSIM_ATOMIC(name, T, expr)             \
    CUSIM_NOSAN static inline T name(T *p, T v) \
    {                                           \
        cusim::rc_atomic(p, sizeof(T));         \
        T o = *p;                               \
        *p = (expr);                            \
        return o;                               \
    }
CUSIM_ATOMIC(atomicAdd, int, o + v)
CUSIM_ATOMIC(atomicAdd, unsigned, o + v)
CUSIM_ATOMIC(atomicAdd, unsigned long long, o + v)
CUSIM_ATOMIC(atomicAdd, float, o + v)
CUSIM_ATOMIC(atomicAdd, double, o + v)
CUSIM_ATOMIC(atomicAdd, __nv_bfloat16, o + v)
CUSIM_ATOMIC(atomicAdd, __nv_bfloat162, o + v)
CUSIM_ATOMIC(atomicSub, int, o - v)
CUSIM_ATOMIC(atomicMax, int, o > v ? o : v)
CUSIM_ATOMIC(atomicMax, unsigned, o > v ? o : v)
CUSIM_ATOMIC(atomicMin, int, o < v ? o : v)
CUSIM_ATOMIC(atomicMin, unsigned, o < v ? o : v)
CUSIM_ATOMIC(atomicOr, unsigned, o | v)
CUSIM_ATOMIC(atomicOr, int, o | v)
CUSIM_ATOMIC(atomicAnd, unsigned, o &v)
CUSIM_ATOMIC(atomicExch, int, v)
CUSIM_ATOMIC(atomicExch, unsigned, v)
CUSIM_ATOMIC(atomicExch, float, v)
CUSIM_ATOMIC(atomicInc, unsigned, o >= v ? 0 : o + 1)
#define CUSIM_CAS(T)                                      \
    CUSIM_NOSAN static inline T atomicCAS(T *p, T c, T v) \
    {                                                     \
        cusim::rc_atomic(p, sizeof(T));                   \
        T o = *p;                                         \
        if (o == c)                                       \
            *p = v;                                       \
        return o;                                         \
    }
CUSIM_CAS(int)
CUSIM_CAS(unsigned) CUSIM_CAS(unsigned long long)

    // ---- memory-hint loads/stores ---------------------------------------------------
    template <class T>
    static inline T __ldg(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcs(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <class T> static inline void __stcs(T *p, T v)
{
    *p = v;
}
template <class T> static inline void __stcg(T *p, T v)
{
    *p = v;
}

// ---- math. glibc declares __expf, __logf ... itself, hence macros ------------------
#define CUSIM_F1(name, expr)                  \
    static inline float cusim_##name(float x) \
    {                                         \
        return expr;                          \
    }
CUSIM_F1(expf, ::expf(x))
CUSIM_F1(logf, ::logf(x)) CUSIM_F1(log2f, ::log2f(x)) CUSIM_F1(sinf, ::sinf(x))
    CUSIM_F1(cosf, ::cosf(x))
        CUSIM_F1(exp10f, ::powf(10.f, x)) static inline float cusim_powf(float x, float y)
{
    return ::powf(x, y);
}
#define __expf   cusim_expf
#define __logf   cusim_logf
#define __log2f  cusim_log2f
#define __sinf   cusim_sinf
#define __cosf   cusim_cosf
#define __exp10f cusim_exp10f
#define __powf   cusim_powf
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline float __frsqrt_rn(float x)
{
    return 1.0f / sqrtf(x);
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
// Rounded by itself: no compiler option lets the result melt into the next operation.
static inline float cusim_rounded(float x)
{
#if defined(__x86_64__)
    __asm__("" : "+x"(x));
    return x;
#else
    volatile float y = x;
    return y;
#endif
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline float __fadd_rn(float a, float b)
{
    return cusim_rounded(cusim_rounded(a) + cusim_rounded(b));
}
static inline float __fsub_rn(float a, float b)
{
    return cusim_rounded(cusim_rounded(a) - cusim_rounded(b));
}
static inline float __fmul_rn(float a, float b)
{
    return cusim_rounded(a * b);
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __saturatef(float a)
{
    return a < 0 ? 0.f : a > 1 ? 1.f : a;
}
template <class A, class B> static inline auto min(A a, B b) -> std::common_type_t<A, B>
{
    return b < a ? (std::common_type_t<A, B>)b : (std::common_type_t<A, B>)a;
}
template <class A, class B> static inline auto max(A a, B b) -> std::common_type_t<A, B>
{
    return a < b ? (std::common_type_t<A, B>)b : (std::common_type_t<A, B>)a;
}
template <class D, class S> static inline D cusim_bits(S s)
{
    static_assert(sizeof(D) == sizeof(S), "");
    D d;
    memcpy(&d, &s, sizeof d);
    return d;
}
static inline int __float_as_int(float f)
{
    return cusim_bits<int>(f);
}
static inline unsigned __float_as_uint(float f)
{
    return cusim_bits<unsigned>(f);
}
static inline float __int_as_float(int i)
{
    return cusim_bits<float>(i);
}
static inline float __uint_as_float(unsigned i)
{
    return cusim_bits<float>(i);
}
static inline int __float2int_rn(float f)
{
    return (int)lrintf(f);
}
static inline int __float2int_rz(float f)
{
    return (int)f;
}
static inline int __float2int_rd(float f)
{
    return (int)floorf(f);
}
static inline unsigned __float2uint_rn(float f)
{
    return (unsigned)lrintf(f);
}
static inline float __int2float_rn(int i)
{
    return (float)i;
}
static inline float __uint2float_rn(unsigned i)
{
    return (float)i;
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s)
{
    s &= 31;
    return s ? hi << s | lo >> (32 - s) : hi;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s)
{
    uint64_t v = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= (unsigned)(v >> (8 * (s >> (4 * i) & 7)) & 0xff) << (8 * i);
    return r;
}
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return c;
}
// bf16 intrinsics that NVIDIA's header keeps from the host
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c)
{
    return __float2bfloat16_rn(fmaf(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c)
{
    return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline void __trap()
{
    cusim::fatal("__trap()");
}
static inline void __nanosleep(unsigned) {}
static inline long long clock64()
{
    static long long c;
    return ++c;
}

// ---- symbols and attributes (templates in cuda_runtime.h, which needs nvcc) ---------
template <class T>
static inline cudaError_t cusim_symbol_to(T &sym, const void *src, size_t n, size_t off = 0,
                                          cudaMemcpyKind = cudaMemcpyHostToDevice)
{
    if (off + n > sizeof(T))
        return cudaErrorInvalidValue;
    memcpy((char *)&sym + off, src, n);
    return cudaSuccess;
}
#define cudaMemcpyToSymbol cusim_symbol_to
template <class T> static inline cudaError_t cudaMalloc(T **p, size_t n)
{
    return ::cudaMalloc((void **)(void *)p, n);
}
template <class T> static inline cudaError_t cudaMallocHost(T **p, size_t n)
{
    return ::cudaMallocHost((void **)(void *)p, n);
}
template <class... P>
static inline cudaError_t cudaFuncSetAttribute(void (*f)(P...), cudaFuncAttribute a, int v)
{
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize)
        cusim::set_func_smem((const void *)f, v);
    return cudaSuccess;
}

#include "cusim_mma.h"
#endif
