/* gemm.cu - matrix products by cuBLASLt, in row-major terms.
 *
 * The algorithm of a product is chosen once per (n, k, layouts, types) from
 * cuBLASLt's heuristic at a fixed m, without split-k, and kept: never by m, so
 * that a row's bits do not depend on how many rows are in the call
 * (numerics: batch invariance). */
#include "cuda.cuh"

#include <mutex>
#include <string.h>
#include <vector>

enum { CANONICAL_M = 4096 };

namespace
{
struct gemm_key {
    int device;
    int64_t n, k, lda, ldb, ldd;
    int flags;
    bool operator==(const gemm_key &o) const
    {
        return device == o.device && n == o.n && k == o.k && lda == o.lda && ldb == o.ldb &&
               ldd == o.ldd && flags == o.flags;
    }
};
struct gemm_choice {
    gemm_key key;
    cublasLtMatmulAlgo_t algo;
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
int describe(gemm_parts *p, const cuda_gemm *g, int64_t m)
{
    const cublasOperation_t ta = g->b_rows_are_n ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t tb = g->a_is_k_m ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cudaDataType ab = type_of(g->ab), cd = type_of(g->cd);

    if (cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
        cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta) ||
        cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb))
        return -EIO;
    if (cublasLtMatrixLayoutCreate(&p->a, ab, (uint64_t)(g->b_rows_are_n ? g->k : g->n),
                                   (uint64_t)(g->b_rows_are_n ? g->n : g->k), g->ldb) ||
        cublasLtMatrixLayoutCreate(&p->b, ab, (uint64_t)(g->a_is_k_m ? m : g->k),
                                   (uint64_t)(g->a_is_k_m ? g->k : m), g->lda) ||
        cublasLtMatrixLayoutCreate(&p->c, cd, (uint64_t)g->n, (uint64_t)m,
                                   g->c ? g->ldc : g->ldd) ||
        cublasLtMatrixLayoutCreate(&p->d, cd, (uint64_t)g->n, (uint64_t)m, g->ldd))
        return -EIO;
    return 0;
}

int ask_heuristic(kn_ctx *ctx, const cuda_gemm *g, cublasLtMatmulAlgo_t *ret_algo)
{
    const int64_t m = g->a_is_k_m ? g->m : (int64_t)CANONICAL_M;
    const uint32_t no_split = CUBLASLT_REDUCTION_SCHEME_NONE;
    const size_t workspace = ctx->workspace.bytes;
    cublasLtMatmulPreference_t pref = nullptr;
    cublasLtMatmulHeuristicResult_t result;
    gemm_parts p;
    int found = 0, r = describe(&p, g, m);

    if (r)
        return r;
    if (cublasLtMatmulPreferenceCreate(&pref))
        return -EIO;
    if (cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace, sizeof workspace) ||
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                             &no_split, sizeof no_split) ||
        cublasLtMatmulAlgoGetHeuristic(ctx->lt, p.desc, p.a, p.b, p.c, p.d, pref, 1, &result,
                                       &found))
        r = -EIO;
    cublasLtMatmulPreferenceDestroy(pref);
    if (!r && found < 1)
        r = -EINVAL;
    if (!r)
        *ret_algo = result.algo;
    return r;
}

int algorithm(kn_ctx *ctx, const cuda_gemm *g, cublasLtMatmulAlgo_t *ret_algo)
{
    const int flags = (g->a_is_k_m ? 1 : 0) | (g->b_rows_are_n ? 2 : 0) |
                      (g->ab == KN_BF16 ? 4 : 0) | (g->cd == KN_BF16 ? 8 : 0);
    const gemm_key key = {ctx->device, g->n, g->k, g->lda, g->ldb, g->ldd, flags};
    std::lock_guard<std::mutex> hold(choices_lock);

    /* In a^T products k is the number of rows: no row of the result belongs to one
     * row of the input, so nothing is lost by keeping a choice per k. */
    for (const gemm_choice &c : choices) {
        if (c.key == key) {
            *ret_algo = c.algo;
            return 0;
        }
    }
    const int r = ask_heuristic(ctx, g, ret_algo);
    if (r == 0)
        choices.push_back({key, *ret_algo});
    return r;
}
} // namespace

int cuda_gemm_run(kn_ctx *ctx, const cuda_gemm *g)
{
    cublasLtMatmulAlgo_t algo;
    gemm_parts p;
    int r;

    if (g->m == 0 || g->n == 0)
        return 0;
    r = algorithm(ctx, g, &algo);
    if (!r)
        r = describe(&p, g, g->m);
    if (r)
        return r;
    if (cublasLtMatmul(ctx->lt, p.desc, &g->alpha, g->b, p.a, g->a, p.b, &g->beta,
                       g->c ? g->c : g->d, p.c, g->d, p.d, &algo, ctx->workspace.p,
                       ctx->workspace.bytes, ctx->stream) != CUBLAS_STATUS_SUCCESS)
        return -EIO;
    return 0;
}
