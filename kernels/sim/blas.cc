/* blas.cc - the cuBLAS and cuBLASLt calls we use, as loops. */
// blas.cc - cuBLAS / cuBLASLt subset under their real names. Naive loops, fp32 accumulation.
#include "cusim_int.h"
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <functional>
#include <stdlib.h>
#include <string.h>
#include <vector>
namespace cusim
{
[[noreturn]] void fatal(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void enqueue(cudaStream_t s, const char *name, std::function<void()> fn);
static size_t esize(cudaDataType t)
{
    switch (t) {
    case CUDA_R_32F:
        return 4;
    case CUDA_R_16BF:
    case CUDA_R_16F:
        return 2;
    default:
        fatal("cublas: data type %d", t);
    }
}
static float ld(const void *p, cudaDataType t, size_t i)
{
    if (t == CUDA_R_32F)
        return ((const float *)p)[i];
    if (t == CUDA_R_16BF)
        return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    return __half2float(((const __half *)p)[i]);
}
static void st(void *p, cudaDataType t, size_t i, float v)
{
    if (t == CUDA_R_32F)
        ((float *)p)[i] = v;
    else if (t == CUDA_R_16BF)
        ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(v);
    else
        ((__half *)p)[i] = __float2half_rn(v);
}
static void extent(const char *what, const void *p, cudaDataType t, int64_t rows, int64_t cols,
                   int64_t ld)
{
    if (rows <= 0 || cols <= 0)
        return;
    if (ld < rows)
        fatal("cublas: leading dimension of %s is %ld, below its %ld rows", what, (long)ld,
              (long)rows);
    size_t n = ((size_t)(cols - 1) * ld + rows) * esize(t);
    if (!heap_range_ok(p, n))
        fatal("cublas: matrix %s (%ldx%ld, ld %ld) runs outside its allocation: %s", what,
              (long)rows, (long)cols, (long)ld, heap_describe(p));
    if ((uintptr_t)p % esize(t))
        fatal("cublas: matrix %s misaligned", what);
}
// slice: terms of k are summed up in two halves, so many in turn for each. An algorithm of a GPU
// takes them in some order of its own too: where a term stands in k decides bits.
static void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const void *A,
                 cudaDataType at, int64_t lda, const void *B, cudaDataType bt, int64_t ldb,
                 float beta, void *C, cudaDataType ct, int64_t ldc, int slice)
{
    extent("A", A, at, ta ? k : m, ta ? m : k, lda);
    extent("B", B, bt, tb ? n : k, tb ? k : n, ldb);
    extent("C", C, ct, m, n, ldc);
    heap_open();
    std::vector<float> a(m * k), acc(2 * m); // a: k columns of m
    for (int64_t p = 0; p < k; p++)
        for (int64_t i = 0; i < m; i++)
            a[p * m + i] = ta ? ld(A, at, i * lda + p) : ld(A, at, p * lda + i);
    for (int64_t j = 0; j < n; j++) {
        std::fill(acc.begin(), acc.end(), 0.f);
        for (int64_t p = 0; p < k; p++) {
            float b = tb ? ld(B, bt, p * ldb + j) : ld(B, bt, j * ldb + p);
            const float *x = &a[p * m];
            float *y = &acc[p / slice % 2 * m];
            for (int64_t i = 0; i < m; i++)
                y[i] += x[i] * b;
        }
        for (int64_t i = 0; i < m; i++)
            st(C, ct, j * ldc + i,
               alpha * (acc[i] + acc[m + i]) + (beta == 0 ? 0 : beta * ld(C, ct, j * ldc + i)));
        rc_host_write((char *)C + j * ldc * esize(ct), m * esize(ct));
    }
    heap_close();
}
struct Handle {
    cudaStream_t s;
};
} // namespace cusim
using namespace cusim;
#define API extern "C" cublasStatus_t CUBLASWINAPI
API cublasCreate_v2(cublasHandle_t *h)
{
    *h = (cublasHandle_t) new Handle{0};
    return CUBLAS_STATUS_SUCCESS;
}
API cublasDestroy_v2(cublasHandle_t h)
{
    delete (Handle *)h;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasSetStream_v2(cublasHandle_t h, cudaStream_t s)
{
    ((Handle *)h)->s = s;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasSetMathMode(cublasHandle_t, cublasMath_t)
{
    return CUBLAS_STATUS_SUCCESS;
}
API cublasSetWorkspace_v2(cublasHandle_t, void *, size_t)
{
    return CUBLAS_STATUS_SUCCESS;
}
API cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                               int n, int k, const void *alpha, const void *A, cudaDataType at,
                               int lda, long long sa, const void *B, cudaDataType bt, int ldb,
                               long long sb, const void *beta, void *C, cudaDataType ct, int ldc,
                               long long sc, int cnt, cublasComputeType_t, cublasGemmAlgo_t)
{
    float al = *(const float *)alpha, be = *(const float *)beta;
    if (m < 0 || n < 0 || k < 0 || cnt < 0)
        return CUBLAS_STATUS_INVALID_VALUE;
    enqueue(((Handle *)h)->s, "gemm", [=] {
        for (int i = 0; i < cnt; i++)
            gemm(ta != CUBLAS_OP_N, tb != CUBLAS_OP_N, m, n, k, al,
                 (const char *)A + i * sa * esize(at), at, lda,
                 (const char *)B + i * sb * esize(bt), bt, ldb, be, (char *)C + i * sc * esize(ct),
                 ct, ldc, 4);
    });
    return CUBLAS_STATUS_SUCCESS;
}
API cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                 const void *alpha, const void *A, cudaDataType at, int lda, const void *B,
                 cudaDataType bt, int ldb, const void *beta, void *C, cudaDataType ct, int ldc,
                 cublasComputeType_t c, cublasGemmAlgo_t g)
{
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, A, at, lda, 0, B, bt, ldb, 0, beta,
                                      C, ct, ldc, 0, 1, c, g);
}
API cublasSgemm_v2(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                   int k, const float *alpha, const float *A, int lda, const float *B, int ldb,
                   const float *beta, float *C, int ldc)
{
    return cublasGemmEx(h, ta, tb, m, n, k, alpha, A, CUDA_R_32F, lda, B, CUDA_R_32F, ldb, beta, C,
                        CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
// ---- cublasLt: descriptors keep their attributes; matmul reads the few it knows and refuses the
// rest
struct LtDesc {
    cublasOperation_t ta = CUBLAS_OP_N, tb = CUBLAS_OP_N;
};
struct LtLayout {
    cudaDataType t;
    uint64_t r, c;
    int64_t ld;
    int32_t batch = 1;
    int64_t stride = 0;
};

extern "C" size_t CUBLASWINAPI cublasLtGetVersion(void)
{
    return 0; // no library's
}
API cublasLtCreate(cublasLtHandle_t *h)
{
    *h = (cublasLtHandle_t) new int;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtDestroy(cublasLtHandle_t h)
{
    delete (int *)h;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t, cudaDataType_t)
{
    *d = (cublasLtMatmulDesc_t) new LtDesc;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete (LtDesc *)d;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a,
                                   const void *b, size_t)
{
    LtDesc *x = (LtDesc *)d;
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        memcpy(&x->ta, b, 4);
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        memcpy(&x->tb, b, 4);
        break;
    default:
        fatal("cublasLt: matmul attribute %d not emulated", a);
    }
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType t, uint64_t r, uint64_t c,
                               int64_t ld)
{
    *l = (cublasLtMatrixLayout_t) new LtLayout{t, r, c, ld};
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete (LtLayout *)l;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a,
                                     const void *b, size_t)
{
    LtLayout *x = (LtLayout *)l;
    if (a == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT)
        memcpy(&x->batch, b, 4);
    else if (a == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET)
        memcpy(&x->stride, b, 8);
    else
        fatal("cublasLt: layout attribute %d not emulated", a);
    return CUBLAS_STATUS_SUCCESS;
}

// What the heuristic answered, inside cublasLtMatmulAlgo_t. An algorithm is good for matrices at
// least as aligned as the heuristic was told (256 bytes if it was not), for the operand order and
// types it was asked with, for sizes it can do, and with its workspace: on a GPU anything else is
// a refusal at best, a misaligned access at worst.
enum { LT_WORKSPACE = 1 << 16, LT_MOST = 3 };
struct LtAlgo {
    uint32_t align[4];
    uint32_t kind; // LtKind
    uint32_t min;  // the least of m, n and k it can do
    uint32_t slice;
    uint32_t workspace;
};
static_assert(sizeof(LtAlgo) <= sizeof(cublasLtMatmulAlgo_t));
struct LtProblem {
    int64_t m, n, k;
    uint32_t kind;
};
// false: the descriptors do not go together.
static bool problem_of(const LtDesc *x, const LtLayout *a, const LtLayout *b, const LtLayout *c,
                       const LtLayout *d, LtProblem *p)
{
    const bool ta = x->ta != CUBLAS_OP_N, tb = x->tb != CUBLAS_OP_N;
    *p = {(int64_t)d->r, (int64_t)d->c, (int64_t)(ta ? a->r : a->c),
          (uint32_t)(ta | tb << 1 | a->t << 8 | d->t << 16)};
    return (uint64_t)p->m == (ta ? a->c : a->r) && (uint64_t)p->n == (tb ? b->r : b->c) &&
           (uint64_t)p->k == (tb ? b->c : b->r) && c->t == d->t && c->r == d->r && c->c == d->c &&
           a->t == b->t && a->ld >= (int64_t)a->r && b->ld >= (int64_t)b->r &&
           c->ld >= (int64_t)c->r && d->ld >= (int64_t)d->r;
}
static bool does(const LtAlgo *algo, const LtProblem *p)
{
    const int64_t least = p->m < p->n ? p->m : p->n;
    return algo->kind == p->kind && (least < p->k ? least : p->k) >= algo->min;
}
static void aligned(const char *what, const void *p, uint32_t to)
{
    if (to && (uintptr_t)p % to)
        fatal("cublasLt: matrix %s at %p, the algorithm was asked for with %d bytes of alignment",
              what, p, (int)to);
}
// Columns of one buffer side by side may lie between each other; else nothing is shared.
static void apart(const char *what, const void *p, const LtLayout &l, const void *d,
                  const LtLayout &dl)
{
    const uintptr_t a = (uintptr_t)p, b = (uintptr_t)d, pitch = l.ld * esize(l.t);
    const uintptr_t an = (l.c - 1) * pitch + l.r * esize(l.t);
    const uintptr_t bw = dl.r * esize(dl.t), bn = (dl.c - 1) * dl.ld * esize(dl.t) + bw;
    if (!l.c || !l.r || !dl.c || !dl.r || a + an <= b || b + bn <= a)
        return;
    const uintptr_t at = (b - a + pitch * (bn / pitch + 1)) % pitch; // of D's columns in p's
    if (pitch != dl.ld * esize(dl.t) || at < l.r * esize(l.t) || at + bw > pitch)
        fatal("cublasLt: the result overlaps matrix %s", what);
}
API cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *A,
                   cublasLtMatrixLayout_t al, const void *B, cublasLtMatrixLayout_t bl,
                   const void *beta, const void *C, cublasLtMatrixLayout_t cl, void *D,
                   cublasLtMatrixLayout_t dl, const cublasLtMatmulAlgo_t *given, void *workspace,
                   size_t workspace_bytes, cudaStream_t s)
{
    LtDesc x = *(LtDesc *)d;
    LtLayout a = *(LtLayout *)al, b = *(LtLayout *)bl, cc = *(LtLayout *)cl, dd = *(LtLayout *)dl;
    float fa = *(const float *)alpha, fb = *(const float *)beta;
    LtProblem p;
    if (!given)
        fatal("cublasLt: without an algorithm the library takes one by the number of rows");
    const LtAlgo algo = *(const LtAlgo *)given;
    if (!problem_of(&x, &a, &b, &cc, &dd, &p))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!does(&algo, &p) || workspace_bytes < algo.workspace)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (const char *fails = getenv("CUSIM_BLAS_FAILS")) // with this status, from now on
        return (cublasStatus_t)strtol(fails, nullptr, 10);
    const void *const mats[4] = {A, B, C, D};
    for (int i = 0; i < 4; i++)
        aligned(i == 0 ? "A" : i == 1 ? "B" : i == 2 ? "C" : "D", mats[i], algo.align[i]);
    if (dd.batch == 1) {
        apart("A", A, a, D, dd);
        apart("B", B, b, D, dd);
        if (fb != 0 && (C != D || cc.ld != dd.ld))
            apart("C", C, cc, D, dd);
    } else if (a.batch != dd.batch || b.batch != dd.batch || (fb != 0 && C != D)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    enqueue(s, "ltmatmul", [=] {
        if (!heap_range_ok(workspace, algo.workspace))
            fatal("cublasLt: the workspace lies outside any allocation");
        heap_open();
        memset(workspace, 0xff, algo.workspace);
        rc_host_write(workspace, algo.workspace);
        if (fb != 0 && C != D) { // D starts as C
            extent("C", C, cc.t, cc.r, cc.c, cc.ld);
            extent("D", D, dd.t, dd.r, dd.c, dd.ld);
            for (int64_t j = 0; j < p.n; j++)
                memcpy((char *)D + j * dd.ld * esize(dd.t),
                       (const char *)C + j * cc.ld * esize(cc.t), p.m * esize(dd.t));
        }
        heap_close();
        for (int i = 0; i < dd.batch; i++)
            gemm(x.ta != CUBLAS_OP_N, x.tb != CUBLAS_OP_N, p.m, p.n, p.k, fa,
                 (const char *)A + i * a.stride * esize(a.t), a.t, a.ld,
                 (const char *)B + i * b.stride * esize(b.t), b.t, b.ld, fb,
                 (char *)D + i * dd.stride * esize(dd.t), dd.t, dd.ld, (int)algo.slice);
    });
    return CUBLAS_STATUS_SUCCESS;
}
struct LtPreference {
    uint32_t align[4] = {256, 256, 256, 256};
    uint64_t workspace = 0;
};
API cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = (cublasLtMatmulPreference_t) new LtPreference;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete (LtPreference *)p;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                         cublasLtMatmulPreferenceAttributes_t a, const void *b,
                                         size_t)
{
    static_assert(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES ==
                  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + 3);
    if (a >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
        a <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES)
        memcpy(&((LtPreference *)p)->align[a - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], b, 4);
    else if (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        memcpy(&((LtPreference *)p)->workspace, b, 8);
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t al,
                            cublasLtMatrixLayout_t bl, cublasLtMatrixLayout_t cl,
                            cublasLtMatrixLayout_t dl, const cublasLtMatmulAlgo_t *given,
                            cublasLtMatmulHeuristicResult_t *result)
{
    LtProblem p;
    const LtAlgo *algo = (const LtAlgo *)given;
    if (!problem_of((LtDesc *)d, (LtLayout *)al, (LtLayout *)bl, (LtLayout *)cl, (LtLayout *)dl,
                    &p))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!does(algo, &p))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(result, 0, sizeof *result);
    result->algo = *given;
    result->workspaceSize = algo->workspace;
    return CUBLAS_STATUS_SUCCESS;
}
// Three answers, the best first: one that cannot do less than 8 of anything; one that can, and
// sums up in another order for few columns than for many; one more. Some want a workspace.
API cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                   cublasLtMatrixLayout_t al, cublasLtMatrixLayout_t bl,
                                   cublasLtMatrixLayout_t cl, cublasLtMatrixLayout_t dl,
                                   cublasLtMatmulPreference_t pref, int asked,
                                   cublasLtMatmulHeuristicResult_t *result, int *found)
{
    const LtPreference *want = (const LtPreference *)pref;
    LtProblem p;
    *found = 0;
    if (!problem_of((LtDesc *)d, (LtLayout *)al, (LtLayout *)bl, (LtLayout *)cl, (LtLayout *)dl,
                    &p))
        return CUBLAS_STATUS_INVALID_VALUE;
    const uint32_t slice = p.n < 1024 && p.k < 1024 ? 2 : 4;
    const LtAlgo all[LT_MOST] = {{{}, p.kind, 8, 16, LT_WORKSPACE},
                                 {{}, p.kind, 1, slice, LT_WORKSPACE},
                                 {{}, p.kind, 1, 8, 0}};
    for (int i = 0; i < LT_MOST && *found < asked; i++) {
        LtAlgo algo = all[i];
        if (!does(&algo, &p) || algo.workspace > want->workspace)
            continue;
        memcpy(algo.align, want->align, sizeof algo.align);
        memset(&result[*found], 0, sizeof *result);
        memcpy(&result[*found].algo, &algo, sizeof algo);
        result[(*found)++].workspaceSize = algo.workspace;
    }
    return *found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
API cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *,
                                         cublasLtMatmulAlgoConfigAttributes_t, void *value,
                                         size_t bytes, size_t *written)
{
    memset(value, 0, bytes); // nothing that has a number
    *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}
