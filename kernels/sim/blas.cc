/* blas.cc - the cuBLAS and cuBLASLt calls we use, as loops. */
// blas.cc - cuBLAS / cuBLASLt subset under their real names. Naive loops, fp32 accumulation.
#include "cusim_int.h"
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <functional>
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
static void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const void *A,
                 cudaDataType at, int64_t lda, const void *B, cudaDataType bt, int64_t ldb,
                 float beta, void *C, cudaDataType ct, int64_t ldc, const float *bias = nullptr)
{
    extent("A", A, at, ta ? k : m, ta ? m : k, lda);
    extent("B", B, bt, tb ? n : k, tb ? k : n, ldb);
    extent("C", C, ct, m, n, ldc);
    heap_open();
    std::vector<float> a(m * k), acc(m); // a: k columns of m
    for (int64_t p = 0; p < k; p++)
        for (int64_t i = 0; i < m; i++)
            a[p * m + i] = ta ? ld(A, at, i * lda + p) : ld(A, at, p * lda + i);
    for (int64_t j = 0; j < n; j++) {
        std::fill(acc.begin(), acc.end(), 0.f);
        for (int64_t p = 0; p < k; p++) {
            float b = tb ? ld(B, bt, p * ldb + j) : ld(B, bt, j * ldb + p);
            const float *x = &a[p * m];
            float *y = acc.data();
            for (int64_t i = 0; i < m; i++)
                y[i] += x[i] * b;
        }
        for (int64_t i = 0; i < m; i++) {
            float v = alpha * acc[i] + (beta == 0 ? 0 : beta * ld(C, ct, j * ldc + i)) +
                      (bias ? bias[i] : 0);
            st(C, ct, j * ldc + i, v);
        }
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
                 ct, ldc);
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
    cublasLtEpilogue_t ep = CUBLASLT_EPILOGUE_DEFAULT;
    void *bias = nullptr;
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
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        memcpy(&x->ep, b, 4);
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        memcpy(&x->bias, b, 8);
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
// An algorithm is good for matrices at least as aligned as the heuristic was told (256 bytes if it
// was not): on a GPU anything else is a refusal at best, a misaligned access at worst.
static void aligned(const char *what, const void *p, uint64_t to)
{
    if (to && (uintptr_t)p % to)
        fatal("cublasLt: matrix %s at %p, the algorithm was asked for with %d bytes of alignment",
              what, p, (int)to);
}
API cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *A,
                   cublasLtMatrixLayout_t al, const void *B, cublasLtMatrixLayout_t bl,
                   const void *beta, const void *C, cublasLtMatrixLayout_t cl, void *D,
                   cublasLtMatrixLayout_t dl, const cublasLtMatmulAlgo_t *algo, void *, size_t,
                   cudaStream_t s)
{
    if (algo) {
        aligned("A", A, algo->data[0]);
        aligned("B", B, algo->data[1]);
        aligned("C", C, algo->data[2]);
        aligned("D", D, algo->data[3]);
    }
    LtDesc x = *(LtDesc *)d;
    LtLayout a = *(LtLayout *)al, b = *(LtLayout *)bl, dd = *(LtLayout *)dl;
    float fa = *(const float *)alpha, fb = *(const float *)beta;
    if (x.ep != CUBLASLT_EPILOGUE_DEFAULT && x.ep != CUBLASLT_EPILOGUE_BIAS)
        fatal("cublasLt: epilogue %d not emulated", x.ep);
    LtLayout cc = *(LtLayout *)cl;
    if (fb != 0 && C != D && (dd.batch != 1 || cc.t != dd.t || cc.r != dd.r || cc.c != dd.c))
        return CUBLAS_STATUS_INVALID_VALUE;
    int64_t m = dd.r, n = dd.c, k = x.ta != CUBLAS_OP_N ? a.r : a.c;
    if ((uint64_t)m != (x.ta != CUBLAS_OP_N ? a.c : a.r) ||
        (uint64_t)n != (x.tb != CUBLAS_OP_N ? b.r : b.c) ||
        (uint64_t)k != (x.tb != CUBLAS_OP_N ? b.c : b.r))
        return CUBLAS_STATUS_INVALID_VALUE;
    enqueue(s, "ltmatmul", [=] {
        if (fb != 0 && C != D) { // D starts as C
            extent("C", C, cc.t, cc.r, cc.c, cc.ld);
            extent("D", D, dd.t, dd.r, dd.c, dd.ld);
            heap_open();
            for (int64_t j = 0; j < n; j++)
                memcpy((char *)D + j * dd.ld * esize(dd.t),
                       (const char *)C + j * cc.ld * esize(cc.t), m * esize(dd.t));
            heap_close();
        }
        for (int i = 0; i < dd.batch; i++)
            gemm(x.ta != CUBLAS_OP_N, x.tb != CUBLAS_OP_N, m, n, k, fa,
                 (const char *)A + i * a.stride * esize(a.t), a.t, a.ld,
                 (const char *)B + i * b.stride * esize(b.t), b.t, b.ld, fb,
                 (char *)D + i * dd.stride * esize(dd.t), dd.t, dd.ld);
    });
    return CUBLAS_STATUS_SUCCESS;
}
// The heuristic has one answer; of what it was told it keeps the alignments.
struct LtPreference {
    uint32_t align[4] = {256, 256, 256, 256};
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
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                            cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                            const cublasLtMatmulAlgo_t *algo,
                            cublasLtMatmulHeuristicResult_t *result)
{
    memset(result, 0, sizeof *result);
    result->algo = *algo;
    return CUBLAS_STATUS_SUCCESS;
}
API cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                   cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                   cublasLtMatrixLayout_t, cublasLtMatmulPreference_t pref, int,
                                   cublasLtMatmulHeuristicResult_t *result, int *found)
{
    memset(result, 0, sizeof *result);
    for (int i = 0; i < 4; i++)
        result->algo.data[i] = ((LtPreference *)pref)->align[i];
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}
