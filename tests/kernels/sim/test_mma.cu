/* test_mma.cu - the matrix instructions and the fragments of the attention kernels,
 * position by position, copies before and after they arrive: over the simulation, and
 * on a GPU. test_ptx.cu has each function of ptx.cuh by itself. */
#include "attn_mma.cuh"

#include <stdio.h>

#define CHECK(c)                                                                       \
    do {                                                                               \
        if (!(c)) {                                                                    \
            printf("%s:%d: %s (lane %d)\n", __FILE__, __LINE__, #c, (int)threadIdx.x); \
            atomicAdd(bad, 1);                                                         \
        }                                                                              \
    } while (0)

/* Element i of a lane's fragments, as the PTX ISA manual gives them ("Matrix Fragments
 * for mma.m16n8k16 with floating point type"): row and column. */
struct place {
    int row, col;
};
__device__ static inline place place_a(int lane, int i)
{
    const int group = lane >> 2, in_group = lane % 4;
    place p;
    p.row = (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
    p.col = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    return p;
}
__device__ static inline place place_b(int lane, int i)
{
    place p;
    p.row = lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    p.col = lane >> 2;
    return p;
}
__device__ static inline place place_c(int lane, int i)
{
    place p;
    p.row = i < 2 ? lane >> 2 : (lane >> 2) + 8;
    p.col = lane % 4 * 2 + (i & 1);
    return p;
}
__device__ static inline void put(uint32_t *r, int i, float v)
{
    const uint32_t half = __float_as_uint(v) >> 16; /* small integers: exact in bf16 */
    r[i / 2] |= i % 2 ? half << 16 : half;
}
__device__ static inline float half_of(uint32_t r, int i)
{
    return __uint_as_float(i ? r & 0xffff0000u : r << 16);
}

/* One element of A (or of B) is 1, the other matrix counts up: every position of the
 * three fragments is seen where it should be, and nowhere else. */
__global__ void one_hot(int *bad)
{
    const int lane = threadIdx.x;

    for (int hot = 0; hot < 256 + 128; hot++) {
        const bool in_a = hot < 256;
        const int hi = in_a ? hot / 16 : (hot - 256) / 8, hj = in_a ? hot % 16 : (hot - 256) % 8;
        uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
        float c[4], d[4];
        for (int i = 0; i < 8; i++) {
            const place p = place_a(lane, i);
            put(a, i, in_a ? (float)(p.row == hi && p.col == hj) : (float)(p.row * 16 + p.col + 1));
        }
        for (int i = 0; i < 4; i++) {
            const place p = place_b(lane, i), q = place_c(lane, i);
            put(b, i, in_a ? (float)(p.row * 8 + p.col + 1) : (float)(p.row == hi && p.col == hj));
            c[i] = (float)(1000 * q.row + q.col);
        }
        mma_m16n8k16(d, a, b, c);
        for (int i = 0; i < 4; i++) {
            const place q = place_c(lane, i);
            float want = (float)(1000 * q.row + q.col);
            if (in_a && q.row == hi)
                want += (float)(hj * 8 + q.col + 1);
            if (!in_a && q.col == hj)
                want += (float)(q.row * 16 + hi + 1);
            CHECK(d[i] == want);
        }
    }
}

/* Four matrices whose rows lie in any order. */
__global__ void load_matrix(int *bad)
{
    SHARED(uint16_t, s, [32 * 24]);
    const int lane = threadIdx.x;
    uint32_t r[4], t[4];

    for (int i = lane; i < 32 * 24; i += 32)
        s[i] = (uint16_t)i;
    __syncwarp();
    const auto row = [](int l) { return l * 13 % 32 * 24; }; /* of lane l's address */
    ldmatrix_x4<false>(r, s + row(lane));
    ldmatrix_x4<true>(t, s + row(lane));
    for (int m = 0; m < 4; m++) {
        for (int h = 0; h < 2; h++) {
            const uint32_t plain = row(m * 8 + lane / 4) + lane % 4 * 2 + h;
            const uint32_t turned = row(m * 8 + lane % 4 * 2 + h) + lane / 4;
            CHECK((r[m] >> (16 * h) & 0xffff) == plain);
            CHECK((t[m] >> (16 * h) & 0xffff) == turned);
        }
    }
}

/* The attention kernels' own fragments: x = A B^T, y = A B, and a sum used as A. */
template <int HD> __global__ void fragments(int *bad)
{
    SHARED(bf16_t, s, [2 * 16 * (HD + 8)]);
    const int lane = threadIdx.x;
    bf16_t *sa = s, *sb = s + 16 * (HD + 8);
    uint32_t a[4], b[4];
    float x[2][4] = {}, y[2][4] = {};

    for (int i = lane; i < 16 * (HD + 8); i += 32) {
        const int r = i / (HD + 8), c = i % (HD + 8);
        sa[i] = fromf<bf16_t>(c < HD ? (float)((r * 3 + c * 5) % 7 - 3) : NAN);
        sb[i] = fromf<bf16_t>(c < HD ? (float)((r * 4 + c * 3) % 5 - 2) : NAN);
    }
    __syncwarp();
    const auto at = [&](const bf16_t *p, int r, int c) { return tof(p[r * (HD + 8) + c]); };
    for (int k = 0; k < HD; k += 16) {
        frag_a<HD>(a, sa, k);
        for (int i = 0; i < 8; i++)
            CHECK(half_of(a[i / 2], i % 2) ==
                  at(sa, place_a(lane, i).row, k + place_a(lane, i).col));
        frag_b<HD>(b, sb, 0, k);
        for (int i = 0; i < 8; i++)
            CHECK(half_of(b[i / 2], i % 2) ==
                  at(sb, i / 4 * 8 + place_b(lane, i % 4).col, k + place_b(lane, i % 4).row));
        mma_m16n8k16(x[0], a, b, x[0]);
        mma_m16n8k16(x[1], a, b + 2, x[1]);
    }
    for (int n = 0; n < 2; n++) {
        for (int i = 0; i < 4; i++) {
            const place p = place_c(lane, i);
            float want = 0.0f;
            for (int k = 0; k < HD; k++)
                want += at(sa, p.row, k) * at(sb, n * 8 + p.col, k);
            CHECK(x[n][i] == want);
        }
    }
    for (int n = 0; n < 2; n++) /* x = 1, 2, ... as A */
        for (int i = 0; i < 4; i++)
            x[n][i] = (float)(place_c(lane, i).row + n * 8 + place_c(lane, i).col);
    frag_of_acc(a, x[0], x[1]);
    for (int c = 0; c < HD; c += 16) {
        frag_b_rows<HD>(b, sb, 0, c);
        for (int n = 0; n < 2; n++) {
            for (int i = 0; i < 4; i++)
                y[n][i] = 0.0f;
            mma_m16n8k16(y[n], a, b + 2 * n, y[n]);
            for (int i = 0; i < 4; i++) {
                const place p = place_c(lane, i);
                float want = 0.0f;
                for (int k = 0; k < 16; k++)
                    want += (float)(p.row + k) * at(sb, k, c + n * 8 + p.col);
                CHECK(y[n][i] == want);
            }
        }
    }
    __syncwarp();
    float acc[HD / 8][4];
    for (int n = 0; n < HD / 8; n++)
        for (int i = 0; i < 4; i++)
            acc[n][i] = (float)(place_c(lane, i).row + n);
    put_acc<HD>(sa, acc, 2.0f, 4.0f);
    __syncwarp();
    for (int i = lane; i < 16 * HD; i += 32)
        CHECK(at(sa, i / HD, i % HD) == (float)(i / HD + i % HD / 8) * (i / HD < 8 ? 2.0f : 4.0f));
}

/* Groups of copies, and copies of nothing. */
__global__ void copies(int *bad, const float *x)
{
    SHARED(float, s, [32 * 4 * 3]);
    SHARED(float, one, [32]);
    const int lane = threadIdx.x;
    float *own = s + lane * 4;

    cp_async16(own, x + lane * 4);
    cp_async_commit();
    cp_async16(own + 128, x + 128 + lane * 4, lane % 2 == 0);
    cp_async4(one + lane, x + lane, lane % 3 == 0);
    cp_async_commit();
    cp_async16(own + 256, x + 256 + lane * 4);
#ifdef CUSIM
    CHECK(own[0] != own[0] && own[128] != own[128]); /* NaN until it has arrived */
#endif
    cp_async_wait<1>();
    CHECK(own[0] == (float)(lane * 4) && own[3] == (float)(lane * 4 + 3));
#ifdef CUSIM
    CHECK(own[128] != own[128]);
#endif
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        const int l = 31 - lane; /* another lane's */
        CHECK(s[128 + l * 4 + i] == (l % 2 == 0 ? (float)(128 + l * 4 + i) : 0.0f));
        CHECK(s[256 + l * 4 + i] == (float)(256 + l * 4 + i));
        CHECK(one[l] == (l % 3 == 0 ? (float)l : 0.0f));
    }
}

int main()
{
    float h[384], *x;
    int *bad, n = 0;

    for (int i = 0; i < 384; i++)
        h[i] = (float)i;
    cudaMalloc((void **)&bad, 4);
    cudaMalloc((void **)&x, sizeof h);
    cudaMemset(bad, 0, 4);
    cudaMemcpy(x, h, sizeof h, cudaMemcpyHostToDevice);
    LAUNCH(one_hot, 1, 32, 0, 0, bad);
    LAUNCH(load_matrix, 1, 32, 0, 0, bad);
    LAUNCH(fragments<16>, 1, 32, 0, 0, bad);
    LAUNCH(fragments<96>, 1, 32, 0, 0, bad);
    LAUNCH(fragments<128>, 1, 32, 0, 0, bad);
    LAUNCH(copies, 1, 32, 0, 0, bad, (const float *)x);
    const cudaError_t e = cudaMemcpy(&n, bad, 4, cudaMemcpyDeviceToHost);
    printf("mma: %d bad, %s\n", n, e == cudaSuccess ? "ran" : cudaGetErrorString(e));
    cudaFree(bad);
    cudaFree(x);
    return n || e != cudaSuccess;
}
