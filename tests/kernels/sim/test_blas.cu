/* test_blas.cu - cuBLASLt's twin: what its algorithms are good for, and that bits depend
 * on which one a product takes and on where in k a term stands. Of the simulation alone. */
#include "gpu.h"
#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>
#define CHECK(c)                                           \
    do {                                                   \
        if (!(c)) {                                        \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #c); \
            bad++;                                         \
        }                                                  \
    } while (0)

static int bad;
static cublasLtHandle_t lt;
enum { WORKSPACE = 1 << 20, K = 64 };

struct product { /* d (m, n) = op(a) b, column-major, dense, float32 */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    product(int m, int n, bool turned)
    {
        const cublasOperation_t op = turned ? CUBLAS_OP_T : CUBLAS_OP_N;
        cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof op);
        cublasLtMatrixLayoutCreate(&a, CUDA_R_32F, turned ? K : m, turned ? m : K, turned ? K : m);
        cublasLtMatrixLayoutCreate(&b, CUDA_R_32F, K, n, K);
        cublasLtMatrixLayoutCreate(&d, CUDA_R_32F, m, n, m);
    }
    ~product()
    {
        cublasLtMatrixLayoutDestroy(d);
        cublasLtMatrixLayoutDestroy(b);
        cublasLtMatrixLayoutDestroy(a);
        cublasLtMatmulDescDestroy(desc);
    }
    std::vector<cublasLtMatmulAlgo_t> ask(size_t workspace, int most = 8) const
    {
        cublasLtMatmulHeuristicResult_t r[8];
        cublasLtMatmulPreference_t pref;
        std::vector<cublasLtMatmulAlgo_t> v;
        int found = 0;
        cublasLtMatmulPreferenceCreate(&pref);
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace, sizeof workspace);
        cublasLtMatmulAlgoGetHeuristic(lt, desc, a, b, d, d, pref, most, r, &found);
        cublasLtMatmulPreferenceDestroy(pref);
        for (int i = 0; i < found; i++)
            v.push_back(r[i].algo);
        return v;
    }
    int check(const cublasLtMatmulAlgo_t &algo) const
    {
        cublasLtMatmulHeuristicResult_t r;
        return cublasLtMatmulAlgoCheck(lt, desc, a, b, d, d, &algo, &r);
    }
    int run(const cublasLtMatmulAlgo_t &algo, const float *x, const float *y, float *z,
            void *workspace, size_t bytes) const
    {
        const float one = 1.0f, zero = 0.0f;
        return cublasLtMatmul(lt, desc, &one, x, a, y, b, &zero, z, d, z, d, &algo, workspace,
                              bytes, 0);
    }
};

int main()
{
    const int m = 16, n = 2000;
    float *x, *y, *z, got[2];
    void *workspace;
    std::vector<float> hx(m * K), hy(K * n);

    cublasLtCreate(&lt);
    cudaMalloc(&x, hx.size() * 4);
    cudaMalloc(&y, hy.size() * 4);
    cudaMalloc(&z, m * n * 4);
    cudaMalloc(&workspace, WORKSPACE);
    /* 1 + 2^-24 + 2^-24: 1 term by term, more where the small ones meet first. */
    const float small = 0x1p-24f;
    hx[0] = 1.0f;
    hx[m * 4] = hx[m * 5] = small; /* row 0: the two after the first four terms */
    hx[1] = 1.0f;
    hx[m * 1 + 1] = hx[m * 2 + 1] = small; /* row 1: right behind the first */
    for (float &f : hy)
        f = 1.0f;
    cudaMemcpy(x, hx.data(), hx.size() * 4, cudaMemcpyHostToDevice);
    cudaMemcpy(y, hy.data(), hy.size() * 4, cudaMemcpyHostToDevice);
    {
        const product large(m, n, false), few(m, 4, false), turned(m, n, true);
        const auto v = large.ask(WORKSPACE), none = large.ask(0), small_v = few.ask(WORKSPACE);
        CHECK(v.size() >= 2 && none.size() >= 1 && none.size() < v.size());
        CHECK(large.ask(WORKSPACE, 1).size() == 1);
        CHECK(large.check(v[0]) == 0 && few.check(v[0]) != 0); /* the best is not for all */
        CHECK(few.check(v[1]) == 0 && turned.check(v[1]) != 0);
        CHECK(large.run(v[0], x, y, z, workspace, 0) != 0); /* its workspace is missing */
        CHECK(few.run(v[0], x, y, z, workspace, WORKSPACE) != 0);
        CHECK(turned.run(v[1], x, y, z, workspace, WORKSPACE) != 0);
        CHECK(large.run(v[1], x, y, z, workspace, WORKSPACE) == 0);
        cudaMemcpy(got, z, sizeof got, cudaMemcpyDeviceToHost);
        CHECK(got[0] == 1.0f + 2 * small && got[1] == 1.0f); /* by their place in k */
        CHECK(few.run(small_v[0], x, y, z, workspace, WORKSPACE) == 0);
        cudaMemcpy(got, z, sizeof got, cudaMemcpyDeviceToHost);
        CHECK(got[0] == 1.0f); /* asked for few columns: another algorithm, other bits */
    }
    cudaFree(workspace);
    cudaFree(z);
    cudaFree(y);
    cudaFree(x);
    cublasLtDestroy(lt);
    printf("blas: %d bad\n", bad);
    return bad != 0;
}
