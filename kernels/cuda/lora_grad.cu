/* lora_grad.cu - dA and dB on tensor cores: products of a narrow and a wide matrix over
 * all rows, out (R, C) = narrow (rows, R)^T wide (rows, C).
 *
 *         narrow     wide   out
 *   dA    dS         x      (R, K)
 *   dB    scale S    dy     (R, N), of each part's N its own R
 *
 * The output is small and the sum long: as one product it would leave most of the device
 * idle. So rows are cut into strips, a block sums one strip for 128 columns, and a second
 * kernel adds the strips in order. Where strips are cut follows from the number of rows and
 * of columns of s alone: the same bits on any device. The wide matrix is read once for all
 * parts. */
#include "lora.cuh"
#include "mma.cuh"

/* Rows and wide columns of a tile; narrow columns of a block, at most; columns of a warp. */
enum { KT = 64, CT = 128, RT = 64, WT = CT / MMA_WARPS };
enum { PIECES = KN_PARTS_MAX };
static constexpr int64_t MIN_STRIP = 256, MOST_COLUMNS = 1024; /* rows; strips' narrow columns */

/* Where in a strip's sums element (j, c) goes, j in [j0, j1) and c in [c0, c1). */
struct grad_piece {
    int64_t j0, j1, c0, c1, to, j_step, c_step;
};

struct grad_args {
    const bf16_t *narrow, *wide;
    int64_t ldn, ldw, cols;
    int rows, strip;
    float *sums;    /* of the first strip */
    int64_t stride; /* to the next one's  */
    int n_pieces;
    grad_piece pieces[PIECES];
};

struct grad_added { /* to[i] += the strips' sums from `from` on, n of them */
    float *to;
    int64_t from, n;
};

struct grad_adds {
    grad_added a[2 * PIECES];
};

__device__ static inline bool meets(const grad_args &a, int64_t j0, int64_t c0, int rt)
{
    bool any = false;

    for (int i = 0; i < a.n_pieces; i++) {
        const grad_piece &p = a.pieces[i];
        any = any || (j0 < p.j1 && j0 + rt > p.j0 && c0 < p.c1 && c0 + CT > p.c0);
    }
    return any;
}

/* A warp's sums: rows j.. of the output, columns c.., of the lane's first element. */
template <int MT>
__device__ static inline void put_sums(const grad_args &a, const float acc[MT][WT / 8][4],
                                       int64_t j, int64_t c)
{
    float *sums = a.sums + blockIdx.y * a.stride;

#pragma unroll 1
    for (int i = 0; i < a.n_pieces; i++) {
        const grad_piece p = a.pieces[i];
        float *to = sums + p.to + (j - p.j0) * p.j_step + (c - p.c0) * p.c_step;
#pragma unroll
        for (int e = 0; e < MT * (WT / 8) * 4; e++) {
            const int m = e / 4 / (WT / 8), n = e / 4 % (WT / 8);
            const int dj = m * 16 + e % 4 / 2 * 8, dc = n * 8 + e % 2;
            if (j + dj >= p.j0 && j + dj < p.j1 && c + dc >= p.c0 && c + dc < p.c1)
                to[dj * p.j_step + dc * p.c_step] = acc[m][n][e % 4];
        }
    }
}

template <int MT> __global__ void __launch_bounds__(MMA_THREADS, 4) grad_strips(grad_args a)
{
    enum { R = 16 * MT, WIDE = KT * (CT + 8), NARROW = KT * (R + 8) };
    const int64_t c0 = (int64_t)blockIdx.x * CT, j0 = (int64_t)blockIdx.z * RT;
    const int row0 = (int)blockIdx.y * a.strip, end = min(a.rows, row0 + a.strip);
    const int tiles = (end - row0 + KT - 1) / KT, left = (int)min((int64_t)CT, a.cols - c0);
    const int warp = warp_number(), lane = threadIdx.x & 31;
    float acc[MT][WT / 8][4] = {};

    if (!meets(a, j0, c0, R))
        return;
    DYN_SHARED(sm);
    bf16_t *wide = sm.take<bf16_t>(2 * WIDE), *narrow = sm.take<bf16_t>(2 * NARROW);
    load_rows<CT, KT>(wide, a.wide + c0, a.ldw, row0, end, left);
    load_rows<R, KT>(narrow, a.narrow + j0, a.ldn, row0, end, R);
    cp_async_commit();
    for (int i = 0; i < tiles; i++) {
        const bf16_t *w = wide + (i & 1) * WIDE, *s = narrow + (i & 1) * NARROW;
        cp_async_wait<0>();
        __syncthreads(); /* this tile is there; the other buffer is no longer read */
        if (i + 1 < tiles) {
            const int next = (i + 1) & 1, r0 = row0 + (i + 1) * KT;
            load_rows<CT, KT>(wide + next * WIDE, a.wide + c0, a.ldw, r0, end, left);
            load_rows<R, KT>(narrow + next * NARROW, a.narrow + j0, a.ldn, r0, end, R);
        }
        cp_async_commit();
#pragma unroll
        for (int k = 0; k < KT; k += 16) {
            uint32_t f[MT][4], b[4];
#pragma unroll
            for (int m = 0; m < MT; m++)
                frag_a_rows<R>(f[m], s, k, m * 16);
#pragma unroll
            for (int n = 0; n < WT / 8; n += 2) {
                frag_b_rows<CT>(b, w, k, warp * WT + n * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_m16n8k16(acc[m][n], f[m], b, acc[m][n]);
                    mma_m16n8k16(acc[m][n + 1], f[m], b + 2, acc[m][n + 1]);
                }
            }
        }
    }
    put_sums<MT>(a, acc, j0 + (lane >> 2), c0 + warp * WT + 2 * (lane & 3));
}

/* Four elements a thread, each the sum of its strips, first to last; blockIdx.y: which. */
__global__ void grad_add(grad_adds adds, const float *sums, int64_t stride, int strips)
{
    const grad_added a = adds.a[blockIdx.y];
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;

    if (i >= a.n)
        return;
    const float *from = sums + a.from + i;
    float *to = a.to + i;
    const bool whole =
        i + 4 <= a.n &&
        ((uintptr_t)to | (uintptr_t)from | (uintptr_t)stride * sizeof(float)) % 16 == 0;
    if (whole) {
        vec4 sum = load4(from, true), x;
        for (int s = 1; s < strips; s++) {
            x = load4(from + s * stride, true);
            for (int e = 0; e < 4; e++)
                sum.v[e] += x.v[e];
        }
        x = load4(to, true);
        for (int e = 0; e < 4; e++)
            x.v[e] += sum.v[e];
        store4(to, x, true);
        return;
    }
    for (int e = 0; e < 4 && i + e < a.n; e++) {
        float sum = from[e];
        for (int s = 1; s < strips; s++)
            sum += from[s * stride + e];
        to[e] += sum;
    }
}

namespace
{
/* Rows of a strip: as many strips as keep a device busy, few enough for their sums to be
 * small beside the wide matrix. */
int64_t strip_of(int64_t rows, int64_t total)
{
    const int64_t most = total > MOST_COLUMNS ? 1 : MOST_COLUMNS / ((total + RT - 1) / RT * RT);
    const int64_t least = (rows + most - 1) / most;

    return ((least > MIN_STRIP ? least : MIN_STRIP) + KT - 1) / KT * KT;
}

/* Where a strip's sums lie: dA of all parts as one block, then dB part by part. */
struct grad_layout {
    int64_t strip, strips, stride, total;
    int64_t b[KN_PARTS_MAX + 1];
};

grad_layout layout_of(const kn_weight *w, const lora_at &l, int64_t rows)
{
    grad_layout at = {};

    at.total = l.first[l.n_parts];
    at.strip = strip_of(rows, at.total);
    at.strips = (rows + at.strip - 1) / at.strip;
    at.b[0] = at.total * w->k;
    for (int i = 0; i < l.n_parts; i++)
        at.b[i + 1] = at.b[i] + w->part_n[i] * l.r[i];
    at.stride = (at.b[l.n_parts] + 3) / 4 * 4;
    return at;
}

template <int MT> int launch_strips(kn_ctx *ctx, const grad_args &a, dim3 grid)
{
    const size_t smem = 2 * SMEM16(KT * (CT + 8) * sizeof(bf16_t)) +
                        2 * SMEM16(KT * (16 * MT + 8) * sizeof(bf16_t));

    cudaFuncSetAttribute(grad_strips<MT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
    LAUNCH(grad_strips<MT>, grid, MMA_THREADS, smem, ctx->stream, a);
    return cuda_launched();
}

int run_strips(kn_ctx *ctx, const grad_layout &at, const lora_rows &narrow, const lora_rows &wide,
               int64_t rows, int64_t cols, grad_args *a)
{
    const dim3 grid((unsigned)((cols + CT - 1) / CT), (unsigned)at.strips,
                    (unsigned)((at.total + RT - 1) / RT));

    a->narrow = (const bf16_t *)narrow.p;
    a->ldn = narrow.ld;
    a->wide = (const bf16_t *)wide.p;
    a->ldw = wide.ld;
    a->cols = cols;
    a->rows = (int)rows;
    a->strip = (int)at.strip;
    a->sums = (float *)ctx->grad.p;
    a->stride = at.stride;
    switch (at.total > RT ? 4 : (at.total + 15) / 16) {
    case 1:
        return launch_strips<1>(ctx, *a, grid);
    case 2:
        return launch_strips<2>(ctx, *a, grid);
    case 3:
        return launch_strips<3>(ctx, *a, grid);
    default:
        return launch_strips<4>(ctx, *a, grid);
    }
}
} // namespace

size_t lora_grad_bytes(int64_t rows, int64_t cols, int64_t k, int64_t n)
{
    const int64_t strips = (rows + MIN_STRIP - 1) / MIN_STRIP;
    int64_t most = cols > RT ? MOST_COLUMNS : MOST_COLUMNS / RT * cols;

    most = most > strips * cols ? strips * cols : most;
    return (size_t)((most > cols ? most : cols) * (k + n) + MOST_COLUMNS) * sizeof(float);
}

bool lora_grad_ok(const kn_weight *w, const lora_rows &x, const lora_rows &dy)
{
    return w->compute == KN_BF16 && w->k % 8 == 0 && w->n % 8 == 0 &&
           cuda_eights(8, {{x.p, x.ld, 2}, {dy.p, dy.ld, 2}}) != 0;
}

int lora_grad_begin(kn_ctx *ctx, const kn_weight *w, const lora_at &l, int64_t rows)
{
    const grad_layout at = layout_of(w, l, rows);

    return cuda_reserve(&ctx->grad, (size_t)(at.strips * at.stride) * sizeof(float));
}

int lora_grad_a(kn_ctx *ctx, const kn_weight *w, const lora_at &l, int part, const lora_rows &ds,
                const lora_rows &x, int64_t rows)
{
    const grad_layout at = layout_of(w, l, rows);
    grad_args a = {};

    for (int i = 0; i < l.n_parts; i++) {
        if (l.r[i] > 0 && (part < 0 || part == i))
            a.pieces[a.n_pieces++] = {
                l.first[i], l.first[i] + l.r[i], 0, w->k, l.first[i] * w->k, w->k, 1};
    }
    return run_strips(ctx, at, ds, x, rows, w->k, &a);
}

int lora_grad_b(kn_ctx *ctx, const kn_weight *w, const lora_at &l, const lora_rows &s,
                const lora_rows &dy, int64_t rows)
{
    const grad_layout at = layout_of(w, l, rows);
    grad_args a = {};

    for (int i = 0; i < l.n_parts; i++) {
        if (l.r[i] > 0)
            a.pieces[a.n_pieces++] = {
                l.first[i], l.first[i] + l.r[i], l.n0[i], l.n0[i + 1], at.b[i], 1, l.r[i]};
    }
    return run_strips(ctx, at, s, dy, rows, w->n, &a);
}

int lora_grad_end(kn_ctx *ctx, const kn_weight *w, const lora_at &l, int64_t rows)
{
    const grad_layout at = layout_of(w, l, rows);
    grad_adds adds = {};
    int64_t most = 0;
    int n = 0;

    for (int i = 0; i < l.n_parts; i++) {
        if (l.r[i] > 0 && l.da[i])
            adds.a[n++] = {l.da[i], l.first[i] * w->k, l.r[i] * w->k};
        if (l.r[i] > 0 && l.db[i])
            adds.a[n++] = {l.db[i], at.b[i], w->part_n[i] * l.r[i]};
    }
    for (int i = 0; i < n; i++)
        most = adds.a[i].n > most ? adds.a[i].n : most;
    if (most == 0)
        return 0;
    LAUNCH(grad_add, dim3((unsigned)((most + 1023) / 1024), (unsigned)n), 256, 0, ctx->stream, adds,
           (const float *)ctx->grad.p, at.stride, (int)at.strips);
    return cuda_launched();
}
