/* cuda.cuh - what the files of the CUDA backend share.
 *
 * One context: one device, one stream, one cuBLASLt handle. Every operation
 * checks its arguments (check.h), launches on the stream and returns; a failure
 * of the device is sticky and comes out of cuda_sync. The same sources are the
 * `sim` backend when built over ../sim. */
#ifndef KERNELS_CUDA_CUDA_CUH
#define KERNELS_CUDA_CUDA_CUH

#include "gpu.h"

#include <initializer_list>

#include <cublasLt.h>

#include "../check.h"
#include "../kernels.h"
#include "reduce.cuh"

/* Extension columns behind K (and rows behind N): LoRA's R, padded to KN_LD. */
static inline int64_t cuda_round(int64_t n)
{
    return (n + KN_LD - 1) / KN_LD * KN_LD;
}

/* Columns (and rows) of a weight's extension; kn_weight_desc.lora_cols 0: room for
 * r = 64 on each of three parts, and a bias. */
static inline int64_t cuda_ext(int64_t lora_cols)
{
    return cuda_round(lora_cols == 0 ? 255 : lora_cols < 0 ? 1 : lora_cols + 1);
}

struct cuda_buffer { /* grows, never shrinks; freed with the context */
    void *p;
    size_t bytes;
};

enum { CUDA_SLOTS = 2 };

/* Most rows that a product may need (gemm.cu). */
enum { CUDA_FILL_ROWS = 64 };

/* Room for one dequantised matrix (weight.cu). */
struct cuda_slot {
    cuda_buffer buffer;
    const kn_weight *holds;
    bool waiting;             /* filled on a hint, not used yet                    */
    uint64_t turn;            /* when it was used last                             */
    cudaEvent_t filled, used; /* on the side stream; on the context's              */
};

/* Large: the bus is kept busy; small where it is simulated, so that tiny matrices take
 * several and a ring's turn. A multiple of a block of 4-bit elements in every type. */
#ifdef CUSIM
enum { CUDA_RING = 4, CUDA_CHUNK = 16 << 10 };
#else
enum { CUDA_RING = 4, CUDA_CHUNK = 16 << 20 };
#endif

/* What loading holds (load.cu). */
struct cuda_load {
    void *host;          /* CUDA_RING chunks, pinned, until the context closes       */
    cuda_buffer device;  /* as many                                                  */
    cuda_buffer scratch; /* of one part of a weight                                 */
    cudaEvent_t copied[CUDA_RING], used[CUDA_RING];
    unsigned at;        /* the chunk used last                                      */
    cudaEvent_t loaded; /* on the context's stream, after the last weight           */
    struct fill *fill;
};

struct kn_ctx {
    int device;
    size_t page, free_before; /* kn_info's; the device's when this opened          */
    cudaStream_t stream, side; /* side: fills slots, and the device's ring         */
    cublasLtHandle_t lt;
    enum kn_dtype compute;
    cuda_buffer workspace; /* cuBLASLt's                                           */
    cuda_buffer partial;   /* of reductions in two steps                           */
    cuda_buffer x_ext;     /* [x | S] when x itself has no room behind K           */
    cuda_buffer dy_ext;    /* [dy | dS] likewise                                   */
    cuda_buffer grad;      /* dA and dB of one call before they are added          */
    cuda_buffer fill;      /* operands of a product with fewer rows than it needs  */
    cuda_slot slots[CUDA_SLOTS];
    uint64_t turn;
    cuda_load load;
    unsigned without; /* cuda_without: nothing but tests/gpu/plain.cu sets it, to measure */
};

enum cuda_without { CUDA_MMA = 1, CUDA_SIDE = 2 };

/* n elements in 4 bits; all pointers to device memory (quant.cuh). */
struct cuda_quant4 {
    int64_t n, blocks, outer;
    kn_quant type;
    bool nested;     /* absmax is 8 bits; else `absmax` and nothing below it    */
    uint8_t *packed; /* element 2j in the high half of byte j                   */
    float *absmax;   /* of each block of 64                                     */
    uint8_t *absmax_q;
    float *nested_absmax; /* of each 256 blocks                                      */
    float *offset;        /* 1                                                       */
    float *map;           /* 256: what absmax_q stands for                           */
};

/* A frozen matrix. Ready for products (p): rows [0, n) hold [W | B], rows [n, n + ext)
 * hold A, in the compute dtype, ld = k_pad + ext_cap. The extension belongs to the
 * call in flight, not to the matrix: it is written before each use. */
struct kn_weight {
    int64_t n, k, ld;
    int64_t part_n[KN_PARTS_MAX];
    int n_parts;
    int64_t ext; /* columns and rows there are for the extension                   */
    enum kn_dtype compute, loaded;
    bool no_backward;
    bool per_use;                    /* p is NULL: cuda_weight_take                */
    void *p, *store;                 /* store: the memory that is its own          */
    cuda_quant4 parts[KN_PARTS_MAX]; /* with per_use                               */
};

/* The matrix ready for products on the context's stream, as a copy of the handle with
 * p set; after the last product of the call: give. */
int cuda_weight_take(kn_ctx *ctx, const kn_weight *w, kn_weight *ret);
int cuda_weight_give(kn_ctx *ctx, const kn_weight *w);
size_t cuda_slot_bytes(const kn_weight_desc *d, kn_dtype compute);
/* Built for compute capability 8.0 and newer: bf16 in tensor cores. */
static inline bool cuda_new_enough(const cudaDeviceProp *p)
{
    return p->major >= 8;
}
int cuda_device_of(const char *uuid);                /* its index, or -ENODEV */
size_t cuda_sweep_bytes(int64_t n);                  /* of grad_sweep's scratch */
void cuda_uuid(const cudaDeviceProp *p, char *text); /* KN_UUID bytes */
/* As errno. What failed is said on standard error (want of memory only with KN_DEBUG in the
 * environment): an operation itself can say no more than -EIO. */
int cuda_error(cudaError_t e, const char *file = __builtin_FILE(), int line = __builtin_LINE());
/* Of the launches since the last call. */
int cuda_launched(const char *file = __builtin_FILE(), int line = __builtin_LINE());
bool cuda_debug(void);
int cuda_reserve(cuda_buffer *b, size_t bytes);
/* Device memory, zeroed in the stream's order; cuda_alloc without its end of loading. */
int cuda_take(kn_ctx *ctx, size_t bytes, void **ret_ptr);
void cuda_load_end(cuda_load *l);   /* gives the device's memory back               */
void cuda_load_close(cuda_load *l); /* and the host's                               */

static inline size_t cuda_size(enum kn_dtype t)
{
    return t == KN_F32 ? 4 : 2;
}

/* Rows of elements of `size` bytes, ld apart; p NULL: none. */
struct cuda_rows {
    const void *p;
    int64_t ld;
    size_t size;
};

/* How many of a row's first columns kernels may take eight at a time, 16 bytes an
 * access: as many eights as there are when all the rows begin at 16 bytes, else 0. The
 * rest is taken one by one. */
static inline int cuda_eights(int64_t cols, std::initializer_list<cuda_rows> rows)
{
    for (const cuda_rows &r : rows) {
        if ((uintptr_t)r.p % 16 || (r.p && (size_t)r.ld * r.size % 16))
            return 0;
    }
    return (int)(cols / 8 * 8);
}

/* One product in row-major terms: d (m, n) = alpha * a (m, k) op(b) + beta * c, with
 * op(b) = b^T for b (n, k) when b_rows_are_n, else b (k, n). a^T when a_is_k_m:
 * a is (k, m). c may be d or another matrix of d's shape and dtype. */
struct cuda_gemm {
    int64_t m, n, k;
    const void *a;
    int64_t lda;
    bool a_is_k_m;
    const void *b;
    int64_t ldb;
    bool b_rows_are_n;
    enum kn_dtype ab;
    const void *c;
    int64_t ldc;
    void *d;
    int64_t ldd;
    enum kn_dtype cd;
    float alpha, beta;
};
int cuda_gemm_run(kn_ctx *ctx, const cuda_gemm *g);

extern "C" {
int cuda_devices(kn_device *ret, int max, char *why, size_t why_size);
int cuda_weight_soon(kn_ctx *ctx, const kn_weight *w);
size_t cuda_scratch_bytes(const kn_scratch *s, kn_dtype compute);
int64_t cuda_lora_room(int64_t lora_cols);
int cuda_open(const kn_open *o, kn_ctx **ret_ctx);
void cuda_close(kn_ctx *ctx);
int cuda_info(kn_ctx *ctx, kn_info *ret_info);
int cuda_alloc(kn_ctx *ctx, size_t bytes, void **ret_ptr);
void cuda_free(kn_ctx *ctx, void *ptr);
int cuda_copy(kn_ctx *ctx, void *dst, const void *src, size_t bytes, kn_dir dir);
int cuda_zero(kn_ctx *ctx, void *dst, size_t bytes);
int cuda_sync(kn_ctx *ctx);
int cuda_poll(kn_ctx *ctx);
void *cuda_stream(kn_ctx *ctx);
int cuda_weight_open(kn_ctx *ctx, const kn_weight_desc *d, kn_weight **ret);
void cuda_weight_close(kn_ctx *ctx, kn_weight *w);
size_t cuda_weight_bytes(const kn_weight_desc *d, kn_dtype compute);
int cuda_quantize4(const kn_quantize4 *a);
int cuda_dequantize4(const kn_dequantize4 *a);
int cuda_linear_fwd(kn_ctx *ctx, const kn_linear_fwd *a);
int cuda_linear_bwd(kn_ctx *ctx, const kn_linear_bwd *a);
int cuda_embed(kn_ctx *ctx, const kn_embed *a);
int cuda_rmsnorm_fwd(kn_ctx *ctx, const kn_rmsnorm_fwd *a);
int cuda_rmsnorm_bwd(kn_ctx *ctx, const kn_rmsnorm_bwd *a);
int cuda_rope(kn_ctx *ctx, const kn_rope *a);
int cuda_attn_fwd(kn_ctx *ctx, const kn_attn_fwd *a);
int cuda_attn_bwd(kn_ctx *ctx, const kn_attn_bwd *a);
int cuda_swiglu_fwd(kn_ctx *ctx, const kn_swiglu_fwd *a);
int cuda_swiglu_bwd(kn_ctx *ctx, const kn_swiglu_bwd *a);
int cuda_gather(kn_ctx *ctx, const kn_gather *a);
int cuda_logprob(kn_ctx *ctx, const kn_logprob *a);
int cuda_grad_sweep(kn_ctx *ctx, const kn_grad_sweep *a);
int cuda_adamw(kn_ctx *ctx, const kn_adamw *a);
int cuda_adamw8(kn_ctx *ctx, const kn_adamw8 *a);
}

#endif
