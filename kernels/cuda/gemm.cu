/* gemm.cu - matrix products by cuBLASLt, in row-major terms.
 *
 * The algorithm of a product is chosen once per (n, k, layouts, types) from
 * cuBLASLt's heuristic at a fixed number of rows, without split-k, and kept: never
 * by the rows of a call, so that a row's bits do not depend on how many are in it
 * (numerics: batch invariance). Rows are m, and in a^T products k. */
#include "cuda.cuh"

#include <mutex>
#include <stdio.h>
#include <string.h>
#include <vector>

enum { CANONICAL_ROWS = 4096, ASKED = 8 };

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

/* Does the algorithm do for any number of rows? */
bool fits_all(kn_ctx *ctx, const cuda_gemm *g, const cublasLtMatmulAlgo_t *algo)
{
    static const int64_t counts[] = {1, 8, 100, 1000, 16384, 131072};
    cublasLtMatmulHeuristicResult_t result;

    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        gemm_parts p;
        if (describe(&p, g, counts[i]) ||
            cublasLtMatmulAlgoCheck(ctx->lt, p.desc, p.a, p.b, p.c, p.d, algo, &result) ||
            result.workspaceSize > ctx->workspace.bytes)
            return false;
    }
    return true;
}

/* The best that does for any number of rows; else the best. */
int ask_heuristic(kn_ctx *ctx, const cuda_gemm *g, const uint32_t align[4],
                  cublasLtMatmulAlgo_t *ret_algo)
{
    cublasLtMatmulHeuristicResult_t result[ASKED];
    cublasLtMatmulPreference_t pref = nullptr;
    gemm_parts p;
    int found = 0, status;

    if (describe(&p, g, CANONICAL_ROWS))
        return -EIO;
    if (cublasLtMatmulPreferenceCreate(&pref))
        return -EIO;
    status = prefer(pref, ctx->workspace.bytes, align);
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(ctx->lt, p.desc, p.a, p.b, p.c, p.d, pref, ASKED,
                                                result, &found);
    cublasLtMatmulPreferenceDestroy(pref);
    int best = -1, first = -1;
    for (int i = 0; i < found && !status && best < 0; i++) {
        if (result[i].state)
            continue;
        first = first < 0 ? i : first;
        if (fits_all(ctx, g, &result[i].algo))
            best = i;
    }
    if (first < 0)
        return refused(g, "no algorithm, cuBLAS status", status);
    if (best != first) /* not the fastest, or not for all */
        (void)refused(g, "of the algorithms offered this one does for any number of rows:", best);
    *ret_algo = result[best < 0 ? first : best].algo;
    return 0;
}

int algorithm(kn_ctx *ctx, const cuda_gemm *g, cublasLtMatmulAlgo_t *ret_algo)
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
            *ret_algo = c.algo;
            return 0;
        }
    }
    const int r = ask_heuristic(ctx, g, key.align, ret_algo);
    if (r == 0)
        choices.push_back({key, *ret_algo});
    return r;
}
} // namespace

int cuda_gemm_run(kn_ctx *ctx, const cuda_gemm *g)
{
    cublasLtMatmulAlgo_t algo;
    gemm_parts p;
    int r, status;

    if (g->m == 0 || g->n == 0)
        return 0;
    r = algorithm(ctx, g, &algo);
    if (!r)
        r = describe(&p, g, g->a_is_k_m ? g->k : g->m);
    if (r)
        return r;
    status = cublasLtMatmul(ctx->lt, p.desc, &g->alpha, g->b, p.a, g->a, p.b, &g->beta,
                            g->c ? g->c : g->d, p.c, g->d, p.d, &algo, ctx->workspace.p,
                            ctx->workspace.bytes, ctx->stream);
    return status ? refused(g, "cublasLtMatmul, cuBLAS status", status) : 0;
}
