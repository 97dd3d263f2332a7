/* gemm.cu - matrix products by cuBLASLt, in row-major terms.
 *
 * The algorithm of a product is chosen once per (n, k, layouts, types) and kept: the
 * fastest that cuBLASLt's heuristic knows at a fixed number of rows, without split-k.
 * Never by the rows of a call, so that a row's bits do not depend on how many are in it
 * (numerics: batch invariance); nor by the batches a job was planned for, so that they do
 * not depend on the job either. One that refuses small numbers of rows is not passed over
 * for that: a call with fewer runs with rows of zeros behind its own. Rows are m, and in
 * a^T products k. */
#include "lora.cuh"

#include <mutex>
#include <stdio.h>
#include <string.h>
#include <vector>

/* What a batch is planned to hold where memory allows (kn_scratch_use.rows' usual size);
 * answers asked for. */
enum { CANONICAL_ROWS = 8192, ASKED = 16, FEW_THREADS = 256 };

namespace
{
struct gemm_key {
    int device, flags;
    int64_t n, mk, lda, ldb, ldc, ldd; /* mk: the one of m and k that is not rows    */
    uint32_t align[4];
    bool operator==(const gemm_key &o) const
    {
        return device == o.device && flags == o.flags && n == o.n && mk == o.mk && lda == o.lda &&
               ldb == o.ldb && ldc == o.ldc && ldd == o.ldd &&
               memcmp(align, o.align, sizeof align) == 0;
    }
};
struct gemm_choice {
    gemm_key key;
    cublasLtMatmulAlgo_t algo;
    int64_t least; /* rows */
};
std::mutex choices_lock;
std::vector<gemm_choice> choices;

struct gemm_parts { /* descriptors of one product; destroyed with it */
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;
    ~gemm_parts()
    {
        if (d)
            cublasLtMatrixLayoutDestroy(d);
        if (c)
            cublasLtMatrixLayoutDestroy(c);
        if (b)
            cublasLtMatrixLayoutDestroy(b);
        if (a)
            cublasLtMatrixLayoutDestroy(a);
        if (desc)
            cublasLtMatmulDescDestroy(desc);
    }
};

cudaDataType type_of(kn_dtype t)
{
    return t == KN_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Row-major (r, c) with ld is column-major (c, r) with the same ld: the product is
 * computed as d^T = op(b) a^T. */
int describe(gemm_parts *p, const cuda_gemm *g, int64_t rows)
{
    const int64_t m = g->a_is_k_m ? g->m : rows, k = g->a_is_k_m ? rows : g->k;
    const cublasOperation_t ta = g->b_rows_are_n ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t tb = g->a_is_k_m ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cudaDataType ab = type_of(g->ab), cd = type_of(g->cd);

    if (cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
        cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta) ||
        cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb))
        return -EIO;
    if (cublasLtMatrixLayoutCreate(&p->a, ab, (uint64_t)(g->b_rows_are_n ? k : g->n),
                                   (uint64_t)(g->b_rows_are_n ? g->n : k), g->ldb) ||
        cublasLtMatrixLayoutCreate(&p->b, ab, (uint64_t)(g->a_is_k_m ? m : k),
                                   (uint64_t)(g->a_is_k_m ? k : m), g->lda) ||
        cublasLtMatrixLayoutCreate(&p->c, cd, (uint64_t)g->n, (uint64_t)m,
                                   g->c ? g->ldc : g->ldd) ||
        cublasLtMatrixLayoutCreate(&p->d, cd, (uint64_t)g->n, (uint64_t)m, g->ldd))
        return -EIO;
    return 0;
}

/* As errno. With KN_DEBUG: which product, and what cuBLASLt said to it. */
int refused(const cuda_gemm *g, const char *call, int status)
{
    if (cuda_debug())
        fprintf(stderr,
                "gemm.cu: %s %d: m %lld n %lld k %lld, a %p ld %lld%s, "
                "b %p ld %lld%s, c %p ld %lld, d %p ld %lld, types %d %d, alpha %g beta %g\n",
                call, status, (long long)g->m, (long long)g->n, (long long)g->k, g->a,
                (long long)g->lda, g->a_is_k_m ? " (k, m)" : "", g->b, (long long)g->ldb,
                g->b_rows_are_n ? " (n, k)" : "", g->c, (long long)g->ldc, g->d, (long long)g->ldd,
                (int)g->ab, (int)g->cd, (double)g->alpha, (double)g->beta);
    return status == CUBLAS_STATUS_ALLOC_FAILED ? -ENOMEM : -EIO;
}

/* What every row of a matrix is aligned to, up to 256 bytes: the same wherever in the
 * buffer a call's rows begin. */
uint32_t aligned_to(const void *p, int64_t ld, kn_dtype t)
{
    const uintptr_t bits = (uintptr_t)p | (uintptr_t)ld * cuda_size(t) | 256;

    return (uint32_t)(bits & -bits);
}

/* The heuristic takes all matrices for aligned to 256 bytes unless it is told. */
int prefer(cublasLtMatmulPreference_t pref, size_t workspace, const uint32_t align[4])
{
    static const cublasLtMatmulPreferenceAttributes_t which[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint32_t no_split = CUBLASLT_REDUCTION_SCHEME_NONE;
    int r = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &workspace, sizeof workspace);

    if (!r)
        r = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                 &no_split, sizeof no_split);
    for (int i = 0; i < 4 && !r; i++)
        r = cublasLtMatmulPreferenceSetAttribute(pref, which[i], &align[i], sizeof align[i]);
    return r;
}

bool takes(kn_ctx *ctx, const cuda_gemm *g, const cublasLtMatmulAlgo_t *algo, int64_t rows)
{
    cublasLtMatmulHeuristicResult_t result;
    gemm_parts p;

    return !describe(&p, g, rows) &&
           !cublasLtMatmulAlgoCheck(ctx->lt, p.desc, p.a, p.b, p.c, p.d, algo, &result) &&
           result.workspaceSize <= ctx->workspace.bytes;
}

/* The fewest rows from which on the algorithm takes any number of them: 1, or one of a few
 * that calls may be filled up to; 0: none of these. The sums of an a^T product run over the
 * rows, which no zeros change, but it has two operands to fill up: not done. */
int64_t least_rows(kn_ctx *ctx, const cuda_gemm *g, const cublasLtMatmulAlgo_t *algo)
{
    static const int64_t counts[] = {131072,         16384, 8191, 1000, 257, 100,
                                     CUDA_FILL_ROWS, 33,    16,   8,    1};
    int64_t least = 0;

    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        if (!takes(ctx, g, algo, counts[i]))
            break;
        least = counts[i];
    }
    return least > CUDA_FILL_ROWS || (g->a_is_k_m && least > 1) ? 0 : least;
}

/* With KN_DEBUG: what was chosen for which product. */
void chosen(const cuda_gemm *g, const cublasLtMatmulHeuristicResult_t *r, int i, int found,
            int64_t least)
{
    static const cublasLtMatmulAlgoConfigAttributes_t which[] = {
        CUBLASLT_ALGO_CONFIG_ID, CUBLASLT_ALGO_CONFIG_TILE_ID, CUBLASLT_ALGO_CONFIG_STAGES_ID};
    int32_t v[3] = {-1, -1, -1};
    uint16_t cluster = 0;
    size_t n;

    if (!cuda_debug())
        return;
    for (int j = 0; j < 3; j++)
        cublasLtMatmulAlgoConfigGetAttribute(&r->algo, which[j], &v[j], sizeof v[j], &n);
    cublasLtMatmulAlgoConfigGetAttribute(&r->algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster,
                                         sizeof cluster, &n);
    fprintf(stderr,
            "gemm.cu: n %lld, %s %lld, b (%s), ld %lld %lld %lld, types %d %d: algorithm %d, tile "
            "%d, stages %d, cluster %d, %.2f waves at %d rows, number %d of %d, from %lld rows\n",
            (long long)g->n, g->a_is_k_m ? "a^T, m" : "k", (long long)(g->a_is_k_m ? g->m : g->k),
            g->b_rows_are_n ? "n, k" : "k, n", (long long)g->lda, (long long)g->ldb,
            (long long)g->ldd, (int)g->ab, (int)g->cd, v[0], v[1], v[2], cluster,
            (double)r->wavesCount, CANONICAL_ROWS, i + 1, found, (long long)least);
}

/* The best that takes any number of rows, filled up where few; else the best. */
int ask_heuristic(kn_ctx *ctx, const cuda_gemm *g, const uint32_t align[4], gemm_choice *ret)
{
    cublasLtMatmulHeuristicResult_t result[ASKED];
    cublasLtMatmulPreference_t pref = nullptr;
    gemm_parts p;
    int found = 0, status, best = -1, first = -1;

    if (describe(&p, g, CANONICAL_ROWS))
        return -EIO;
    if (cublasLtMatmulPreferenceCreate(&pref))
        return -EIO;
    status = prefer(pref, ctx->workspace.bytes, align);
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(ctx->lt, p.desc, p.a, p.b, p.c, p.d, pref, ASKED,
                                                result, &found);
    cublasLtMatmulPreferenceDestroy(pref);
    ret->least = 0;
    for (int i = 0; i < found && !status && best < 0; i++) {
        if (result[i].state)
            continue;
        first = first < 0 ? i : first;
        ret->least = least_rows(ctx, g, &result[i].algo);
        best = ret->least > 0 ? i : -1;
    }
    if (first < 0)
        return refused(g, "no algorithm, cuBLAS status", status);
    best = best < 0 ? first : best;
    chosen(g, &result[best], best, found, ret->least);
    ret->algo = result[best].algo;
    return 0;
}

int choose(kn_ctx *ctx, const cuda_gemm *g, gemm_choice *ret)
{
    const int flags = (g->a_is_k_m ? 1 : 0) | (g->b_rows_are_n ? 2 : 0) |
                      (g->ab == KN_BF16 ? 4 : 0) | (g->cd == KN_BF16 ? 8 : 0);
    const void *const c = g->c ? g->c : g->d;
    const int64_t ldc = g->c ? g->ldc : g->ldd;
    const gemm_key key = {ctx->device,
                          flags,
                          g->n,
                          g->a_is_k_m ? g->m : g->k,
                          g->lda,
                          g->ldb,
                          ldc,
                          g->ldd,
                          {aligned_to(g->b, g->ldb, g->ab), aligned_to(g->a, g->lda, g->ab),
                           aligned_to(c, ldc, g->cd), aligned_to(g->d, g->ldd, g->cd)}};
    std::lock_guard<std::mutex> hold(choices_lock);

    for (const gemm_choice &c : choices) {
        if (c.key == key) {
            *ret = c;
            return 0;
        }
    }
    const int r = ask_heuristic(ctx, g, key.align, ret);
    ret->key = key;
    if (r == 0)
        choices.push_back(*ret);
    return r;
}

int launch(kn_ctx *ctx, const cuda_gemm *g, const cublasLtMatmulAlgo_t *algo)
{
    gemm_parts p;
    int status;

    if (describe(&p, g, g->a_is_k_m ? g->k : g->m))
        return -EIO;
    status = cublasLtMatmul(ctx->lt, p.desc, &g->alpha, g->b, p.a, g->a, p.b, &g->beta,
                            g->c ? g->c : g->d, p.c, g->d, p.d, algo, ctx->workspace.p,
                            ctx->workspace.bytes, ctx->stream);
    return status ? refused(g, "cublasLtMatmul, cuBLAS status", status) : 0;
}

/* Of a matrix, so that the next one begins at 256 bytes. */
size_t bytes_of(int64_t rows, int64_t ld, kn_dtype t)
{
    return ((size_t)(rows * ld) * cuda_size(t) + 255) / 256 * 256;
}

/* Row blockIdx.x: of `from` while it has so many, then zeros. */
template <class T>
__global__ void __launch_bounds__(FEW_THREADS)
    few_rows(T *to, int64_t ldt, const T *from, int64_t ldf, int64_t cols, int64_t rows)
{
    const int64_t row = blockIdx.x;

    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x)
        to[row * ldt + c] = row < rows ? from[row * ldf + c] : T{};
}

/* The first `least` rows of `to`: those of `from` (NULL: none), zeros behind them. */
int fill_up(kn_ctx *ctx, const lora_rows &to, const lora_rows &from, int64_t cols, int64_t rows,
            int64_t least)
{
    const int64_t have = from.p ? rows : 0;

    if (to.t == KN_BF16)
        LAUNCH(few_rows<bf16_t>, (unsigned)least, FEW_THREADS, 0, ctx->stream, (bf16_t *)to.p,
               to.ld, (const bf16_t *)from.p, from.ld, cols, have);
    else
        LAUNCH(few_rows<float>, (unsigned)least, FEW_THREADS, 0, ctx->stream, (float *)to.p, to.ld,
               (const float *)from.p, from.ld, cols, have);
    return cuda_launched();
}

/* Of a filled-up matrix: no wider than its columns ask, and aligned as the caller's is, for
 * which the algorithm was chosen. */
int64_t filled_ld(int64_t cols, int64_t ld)
{
    return cuda_round(cols) < ld ? cuda_round(cols) : ld;
}

/* Room for the product's a and d at the fewest rows of its algorithm: taken whether or not this
 * call has so few, so that a later one finds it. */
int fill_reserve(kn_ctx *ctx, const cuda_gemm *g, const gemm_choice *choice, size_t *ret_a)
{
    *ret_a = bytes_of(choice->least, filled_ld(g->k, g->lda), g->ab);
    return cuda_reserve(&ctx->fill,
                        *ret_a + bytes_of(choice->least, filled_ld(g->n, g->ldd), g->cd));
}

/* The product with as many rows as its algorithm needs. */
int launch_filled(kn_ctx *ctx, const cuda_gemm *g, const gemm_choice *choice, size_t a_bytes)
{
    char *const a = (char *)ctx->fill.p, *const d = a + a_bytes;
    const lora_rows x = {a, filled_ld(g->k, g->lda), g->ab},
                    y = {d, filled_ld(g->n, g->ldd), g->cd};
    const void *const c = g->beta == 0.0f ? NULL : g->c ? g->c : g->d;
    cuda_gemm filled = *g;
    int r = fill_up(ctx, x, {(void *)g->a, g->lda, g->ab}, g->k, g->m, choice->least);

    filled.m = choice->least;
    filled.a = a;
    filled.lda = x.ld;
    filled.c = NULL; /* d holds it */
    filled.d = d;
    filled.ldd = y.ld;
    if (!r)
        r = fill_up(ctx, y, {(void *)c, g->c ? g->ldc : g->ldd, g->cd}, g->n, g->m, choice->least);
    if (!r)
        r = launch(ctx, &filled, &choice->algo);
    return r ? r : fill_up(ctx, {g->d, g->ldd, g->cd}, y, g->n, g->m, g->m);
}
} // namespace

int cuda_gemm_run(kn_ctx *ctx, const cuda_gemm *g)
{
    gemm_choice choice;
    size_t a_bytes;
    int r;

    if (g->m == 0 || g->n == 0)
        return 0;
    r = choose(ctx, g, &choice);
    if (r)
        return r;
    if (g->a_is_k_m || choice.least <= 1)
        return launch(ctx, g, &choice.algo);
    r = fill_reserve(ctx, g, &choice, &a_bytes);
    if (r)
        return r;
    return g->m < choice.least ? launch_filled(ctx, g, &choice, a_bytes)
                               : launch(ctx, g, &choice.algo);
}
