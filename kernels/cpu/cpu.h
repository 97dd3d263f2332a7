/* cpu.h - what the files of the CPU backend share.
 *
 * Matrix products of frozen weights: oneDNN, one fixed tile of rows at a time,
 * each product single-threaded; OpenMP hands tiles to threads. So a row's bits
 * depend neither on how many rows there are nor on the number of threads.
 * Everything else: own vector code (vec_*.c), built for three instruction sets. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include <oneapi/dnnl/dnnl.h>
#include <string.h>

#include "../adamw8.h"
#include "../check.h"
#include "../dynamic.h"
#include "../kernels.h"
#include "../ref/ref.h"

/* C(i, j) = [C(i, j) +] alpha * sum_d A(i, d) B(d, j), summed in the order of d.
 * A(i, d) lies at a[i * a_row + d * a_depth]; B and C have consecutive columns. */
struct cpu_mm {
    int64_t rows, cols, depth;
    const float *a;
    int64_t a_row, a_depth;
    const float *b;
    int64_t ldb;
    float *c;
    int64_t ldc;
    bool add; /* off: alpha is not used */
    float alpha;
};

/* out = acc + 0 + bias [+ other], rounded to out's dtype: the end of a tile. */
struct cpu_tile {
    int64_t rows, cols;
    const float *acc;
    int64_t ld_acc;
    const float *bias; /* (cols) or NULL */
    const void *other; /* same dtype as out, or NULL; may be out */
    int64_t ld_other;
    void *out;
    int64_t ld_out;
    enum kn_dtype dtype;
};

/* dst = src as float, times the dropout factor of (part, row, column) when drop
 * is given: rows x cols from column col0 on. */
struct cpu_widen {
    int64_t rows, cols, row0, col0;
    const void *src; /* first element wanted */
    int64_t ld_src;
    enum kn_dtype dtype;
    float *dst;
    int64_t ld_dst;
    const struct kn_dropout *drop;
    int part;
    bool multiply; /* dst *= factor instead; src is not read */
};

/* Floats with the same upper 16 bits: a bin. Two neighbours of a dynamic map are further
 * apart than a bin there is wide, so that at most one threshold lies in it. Below 2^-23
 * one bin is enough, from 1 on too. */
enum { CPU_BIN_LOW = 0x33ff, CPU_BIN_HIGH = 0x3f80, CPU_BINS = CPU_BIN_HIGH - CPU_BIN_LOW + 1 };

/* One dynamic map (kernels/dynamic.h) and how its codes are found: the code of the least
 * float of x's bin (of x's sign), and one more where x is above that code's threshold. */
struct cpu_dynamic {
    float map[KN_DYNAMIC], above[KN_DYNAMIC];
    uint8_t bin[2][CPU_BINS];
};

/* What the blocks of a step of kn_adamw8 have in common. */
struct cpu_adamw8 {
    struct kn_adamw8_rate rate;
    struct cpu_dynamic m, v;
};

/* One instruction set's code. Row functions do rows [r0, r1). */
struct cpu_vec {
    const char *isa;
    void (*mm)(const struct cpu_mm *a);
    void (*tile)(const struct cpu_tile *t);
    void (*widen)(const struct cpu_widen *w);
    void (*rmsnorm_fwd)(const struct kn_rmsnorm_fwd *a, int64_t r0, int64_t r1);
    void (*rmsnorm_bwd)(const struct kn_rmsnorm_bwd *a, int64_t r0, int64_t r1);
    void (*rope)(const struct kn_rope *a, int64_t r0, int64_t r1);
    void (*swiglu_fwd)(const struct kn_swiglu_fwd *a, int64_t r0, int64_t r1);
    void (*swiglu_bwd)(const struct kn_swiglu_bwd *a, int64_t r0, int64_t r1);
    void (*gather)(const struct kn_gather *a, int64_t r0, int64_t r1);
    void (*logprob)(const struct kn_logprob *a, int64_t r0, int64_t r1);
    void (*sweep)(const float *g, int64_t n, struct kn_sweep *ret);
    void (*adamw)(const struct kn_adamw *a, float clip, int64_t i0, int64_t i1);
    /* Blocks [b0, b1). */
    void (*adamw8)(const struct kn_adamw8 *a, const struct cpu_adamw8 *c, int64_t b0, int64_t b1);
    size_t (*attn_fwd_bytes)(const struct kn_attn_shape *s);
    void (*attn_fwd)(const struct kn_attn_fwd *a, int seq, int kv_head, void *scratch);
    size_t (*attn_bwd_bytes)(const struct kn_attn_shape *s);
    void (*attn_bwd)(const struct kn_attn_bwd *a, int seq, int kv_head, void *scratch);
};

extern const struct cpu_vec cpu_vec_avx512, cpu_vec_avx2, cpu_vec_sse2;

struct kn_ctx {
    enum kn_dtype compute;
    int threads;
    const struct cpu_vec *vec;
    const char *isa;
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* one per thread */
    void **scratch;         /* one per thread, and one more shared by all */
    size_t *scratch_bytes;
    struct cpu_adamw8 *adamw8; /* made when it is needed first */
};

/* Memory for large things: pages of 2 MiB where the kernel has them (fewer misses
 * in the address cache; 5 % of a training step). Free with free(). NULL: none. */
void *cpu_pages(size_t bytes);

/* Makes every thread's scratch (shared: the common one) at least this long. The
 * content is not kept. */
int cpu_scratch(struct kn_ctx *ctx, size_t per_thread, size_t shared);
static inline void *cpu_shared(struct kn_ctx *ctx)
{
    return ctx->scratch[ctx->threads];
}

/* Threads worth waking for this many multiply-adds: a sleeping thread takes some
 * 20 us to come, in which one does a million. */
static inline int cpu_team(const struct kn_ctx *ctx, int64_t work)
{
    const int64_t most = work / 1000000 + 1;
    return most < ctx->threads ? (int)most : ctx->threads;
}

/* A frozen matrix for products X (rows, k) times (k, n), cut into column blocks
 * that stay in the cache while tiles of rows pass by; packed once. */
struct cpu_block_key {
    int64_t lda;
    bool copy;                     /* rows are copied to the packed matrix's own distance first */
    const char *impl;              /* oneDNN's name of what it runs */
    dnnl_primitive_t primitive[2]; /* a full block, the last block */
    dnnl_memory_t *a, *c[2], *scratch[2]; /* one per thread */
};

struct cpu_packed {
    int64_t n, k;
    int tile;      /* rows of a tile */
    int64_t block; /* columns of a block, a multiple of 64 unless it is the only one */
    int n_blocks;
    int64_t ld_acc; /* of the tile the product is written to */
    dnnl_memory_desc_t md[2];
    dnnl_memory_t *weights; /* (n_blocks), in `memory` */
    char *memory;
    struct cpu_block_key *keys;
    int n_keys;
};

struct kn_weight {
    int64_t n, k, part_n[KN_PARTS_MAX];
    int n_parts;
    bool no_backward;
    struct cpu_packed forward, backward; /* x W^T and dy W */
};

int cpu_packed_open(struct kn_ctx *ctx, struct cpu_packed *p, const void *w, int64_t n, int64_t k,
                    bool transposed);
void cpu_packed_close(struct kn_ctx *ctx, struct cpu_packed *p);
size_t cpu_packed_bytes(int64_t n, int64_t k, enum kn_dtype compute);
/* The primitives for rows lda elements apart; made at first use. keys[0] are those
 * for k rounded up to KN_LD. */
int cpu_packed_key(struct kn_ctx *ctx, struct cpu_packed *p, int64_t lda,
                   struct cpu_block_key **ret);
/* acc (tile, ld_acc) = a (tile, lda) times block b, by thread t. */
int cpu_packed_run(struct kn_ctx *ctx, const struct cpu_packed *p, const struct cpu_block_key *key,
                   int t, int b, const void *a, float *acc);

int cpu_weight_open(struct kn_ctx *ctx, const struct kn_weight_desc *d, struct kn_weight **ret);
void cpu_weight_close(struct kn_ctx *ctx, struct kn_weight *w);
size_t cpu_weight_bytes(const struct kn_weight_desc *d, enum kn_dtype compute);

int cpu_linear_fwd(struct kn_ctx *ctx, const struct kn_linear_fwd *a);
int cpu_linear_bwd(struct kn_ctx *ctx, const struct kn_linear_bwd *a);
int cpu_attn_fwd(struct kn_ctx *ctx, const struct kn_attn_fwd *a);
int cpu_attn_bwd(struct kn_ctx *ctx, const struct kn_attn_bwd *a);
int cpu_rmsnorm_fwd(struct kn_ctx *ctx, const struct kn_rmsnorm_fwd *a);
int cpu_rmsnorm_bwd(struct kn_ctx *ctx, const struct kn_rmsnorm_bwd *a);
int cpu_rope(struct kn_ctx *ctx, const struct kn_rope *a);
int cpu_swiglu_fwd(struct kn_ctx *ctx, const struct kn_swiglu_fwd *a);
int cpu_swiglu_bwd(struct kn_ctx *ctx, const struct kn_swiglu_bwd *a);
int cpu_gather(struct kn_ctx *ctx, const struct kn_gather *a);
int cpu_logprob(struct kn_ctx *ctx, const struct kn_logprob *a);
int cpu_grad_sweep(struct kn_ctx *ctx, const struct kn_grad_sweep *a);
int cpu_adamw(struct kn_ctx *ctx, const struct kn_adamw *a);
int cpu_adamw8(struct kn_ctx *ctx, const struct kn_adamw8 *a);

#endif
