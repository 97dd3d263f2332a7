/* attn_mma_bwd.cu - attention backward on tensor cores, bf16 in, float32 inside.
 *
 * Two runs of one kernel, without atomics and each in a fixed order. A block owns 64
 * rows of one matrix (two tiles of them, `own`) and walks over tiles of 32 rows of the
 * other (`met`), each of its four warps with 16 of the own rows:
 *
 *             own     met     x = own met^T   y = own met^T   sums up
 *   queries   Q, dO   K, V    scores          dP              dQ = dS K
 *   keys      K, V    Q, dO   scores^T        dP^T            dK = dS^T Q, dV = P^T dO
 *
 *   P = exp(scale x - lse),  dS = P (y - delta),  delta = rowsum(dO o O)
 *
 * (Dao 2023, arXiv:2307.08691, algorithm 2). x and y stay in registers, where they
 * become the A operand of the last products. The keys' block takes the heads of its
 * group one after the other. The products of x and y are made twice, once in each
 * run: 7 products for 5, the price of the fixed order. */
#include "attn_mma.cuh"

#include <type_traits>

typedef attn_bwd_args<bf16_t> mma_bwd_args;

enum { OWN = 16 * MMA_WARPS, MET = 32 };

/* What a block works on, whichever run it is: the own rows' number, and the met rows
 * [from, end) of the first, then of every further head. */
struct mma_bwd_walk {
    int row0, rows, met_rows, from, end, tiles, heads, head0;
};

template <bool KEYS>
__device__ static inline mma_bwd_walk walk_of(const kn_attn_shape &s, const attn_at &at)
{
    const int group = s.heads / s.kv_heads;
    mma_bwd_walk w;

    w.rows = KEYS ? at.lk : at.lq;
    w.met_rows = KEYS ? at.lq : at.lk;
    w.heads = KEYS ? group : 1;
    w.head0 = (int)blockIdx.y * w.heads;
    /* The longest walks start first: early keys are seen by most, late queries see most. */
    w.row0 = OWN * (KEYS ? attn_tile(s) : attn_tile_last(s));
    const int last = min(w.row0 + OWN, w.rows) - 1;
    if (KEYS) {
        w.from = max(0, w.row0 - at.shift);
        w.end = s.window > 0 ? min(at.lq, last + s.window - at.shift) : at.lq;
    } else {
        w.from = s.window > 0 ? max(0, w.row0 + at.shift - s.window + 1) : 0;
        w.end = last + at.shift + 1;
    }
    w.from = w.from / MET * MET;
    w.tiles = w.end > w.from ? (w.end - w.from + MET - 1) / MET : 0;
    return w;
}

/* x = own1 met1^T and y = own2 met2^T for a warp's 16 rows. */
template <int HD>
__device__ static inline void two_products(float x[MET / 8][4], float y[MET / 8][4],
                                           const bf16_t *own1, const bf16_t *own2,
                                           const bf16_t *met1, const bf16_t *met2)
{
#pragma unroll
    for (int i = 0; i < MET / 8 * 4; i++)
        x[i / 4][i % 4] = y[i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int c = 0; c < HD; c += 16) {
        uint32_t a1[4], a2[4], b[4];
        frag_a<HD>(a1, own1, c);
        frag_a<HD>(a2, own2, c);
#pragma unroll
        for (int n = 0; n < MET / 8; n += 2) {
            frag_b<HD>(b, met1, n * 8, c);
            mma_m16n8k16(x[n], a1, b, x[n]);
            mma_m16n8k16(x[n + 1], a1, b + 2, x[n + 1]);
            frag_b<HD>(b, met2, n * 8, c);
            mma_m16n8k16(y[n], a2, b, y[n]);
            mma_m16n8k16(y[n + 1], a2, b + 2, y[n + 1]);
        }
    }
}

/* acc += p met, p (16 x MET) from registers. */
template <int HD>
__device__ static inline void add_product(float acc[HD / 8][4], const float p[MET / 8][4],
                                          const bf16_t *met)
{
#pragma unroll
    for (int j = 0; j < MET / 8; j += 2) {
        uint32_t a[4], b[4];
        frag_of_acc(a, p[j], p[j + 1]);
#pragma unroll
        for (int n = 0; n < HD / 8; n += 2) {
            frag_b_rows<HD>(b, met, j * 8, n * 8);
            mma_m16n8k16(acc[n], a, b, acc[n]);
            mma_m16n8k16(acc[n + 1], a, b + 2, acc[n + 1]);
        }
    }
}

/* x becomes P, y becomes dS. lse and delta belong to queries: to the rows, or with KEYS
 * to the columns. `whole`: everybody sees everybody. Rows that are not there are zero,
 * and so are lse and delta: they add nothing to anybody. */
template <bool KEYS>
__device__ static inline void to_ds(float x[MET / 8][4], float y[MET / 8][4], const float *lse,
                                    const float *delta, int row, int col, const attn_at &at,
                                    int window, float c, bool whole)
{
#pragma unroll
    for (int n = 0; n < MET / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int r = row + e / 2 * 8, k = col + n * 8 + e % 2;
            const int i = KEYS ? n * 8 + e % 2 : e / 2;
            const bool sees = whole || (KEYS ? attn_sees(k + at.shift, r, window)
                                             : attn_sees(r + at.shift, k, window));
            const float p = sees ? exp2_fast(x[n][e] * c - lse[i] * LOG2E) : 0.0f;
            x[n][e] = p;
            y[n][e] = p * (y[n][e] - delta[i]);
        }
    }
}

/* One tile of met rows on its way into shared memory. */
template <int HD, bool KEYS>
__device__ static inline void load_met(const mma_bwd_args &a, const attn_at &at,
                                       const mma_bwd_walk &w, int i, bf16_t *met1, bf16_t *met2,
                                       float *lse, float *delta)
{
    const int hd = a.s.head_dim, h = w.head0 + i / w.tiles, c0 = w.from + i % w.tiles * MET;

    if (!KEYS) {
        const int kv = h / (a.s.heads / a.s.kv_heads) * hd;
        load_rows<HD, MET>(met1, a.k + at.k0 * a.ldk + kv, a.ldk, c0, at.lk, hd);
        load_rows<HD, MET>(met2, a.v + at.k0 * a.ldv + kv, a.ldv, c0, at.lk, hd);
        return;
    }
    load_rows<HD, MET>(met1, a.q + at.q0 * a.ldq + h * hd, a.ldq, c0, at.lq, hd);
    load_rows<HD, MET>(met2, a.d_o + at.q0 * a.lddo + h * hd, a.lddo, c0, at.lq, hd);
    if (threadIdx.x < 2 * MET) {
        const int r = threadIdx.x % MET;
        const bool ok = c0 + r < at.lq;
        const int64_t t = ok ? (int64_t)(at.q0 + c0 + r) * a.s.heads + h : 0;
        cp_async4((threadIdx.x < MET ? lse : delta) + r, (threadIdx.x < MET ? a.lse : a.delta) + t,
                  ok);
    }
}

/* A warp's rows of one result, by way of the own tile that it alone has read. */
template <int HD>
__device__ static inline void finish(bf16_t *to, int64_t ld, bf16_t *own,
                                     const float acc[HD / 8][4], float scale, int rows, int hd)
{
    put_acc<HD>(own, acc, scale, scale);
    __syncwarp();
    store_rows<HD>(to, ld, own, min(16, rows), hd);
}

template <int HD, bool KEYS>
__global__ void __launch_bounds__(MMA_THREADS) attn_mma_bwd(mma_bwd_args a)
{
    const attn_at at = attn_sequence(a.s, attn_seq(a.s));
    const mma_bwd_walk w = walk_of<KEYS>(a.s, at);
    const int lane = threadIdx.x & 31, warp0 = warp_number() * 16, row0 = w.row0 + warp0;
    const int hd = a.s.head_dim, window = a.s.window, tiles = w.tiles * w.heads;
    float acc1[HD / 8][4] = {}, acc2[KEYS ? HD / 8 : 1][4] = {};
    float lse[2] = {INFINITY, INFINITY}, delta[2] = {};

    if (w.row0 >= w.rows)
        return;
    DYN_SHARED(sm);
    enum { LD = HD + 8 };
    bf16_t *own1 = sm.take<bf16_t>(OWN * LD), *own2 = sm.take<bf16_t>(OWN * LD);
    bf16_t *met1 = sm.take<bf16_t>(2 * MET * LD), *met2 = sm.take<bf16_t>(2 * MET * LD);
    float *met_lse = sm.take<float>(2 * MET), *met_delta = sm.take<float>(2 * MET);
    if (KEYS) {
        const int64_t col = (int64_t)blockIdx.y * hd;
        load_rows<HD, OWN>(own1, a.k + at.k0 * a.ldk + col, a.ldk, w.row0, at.lk, hd);
        load_rows<HD, OWN>(own2, a.v + at.k0 * a.ldv + col, a.ldv, w.row0, at.lk, hd);
    } else {
        const int64_t col = (int64_t)blockIdx.y * hd;
        load_rows<HD, OWN>(own1, a.q + at.q0 * a.ldq + col, a.ldq, w.row0, at.lq, hd);
        load_rows<HD, OWN>(own2, a.d_o + at.q0 * a.lddo + col, a.lddo, w.row0, at.lq, hd);
        for (int i = 0; i < 2; i++) {
            const int row = row0 + (lane >> 2) + i * 8;
            const int64_t t = (int64_t)(at.q0 + row) * a.s.heads + blockIdx.y;
            if (row < at.lq) {
                lse[i] = a.lse[t];
                delta[i] = a.delta[t];
            }
        }
    }
    own1 += warp0 * LD;
    own2 += warp0 * LD;
    if (tiles > 0)
        load_met<HD, KEYS>(a, at, w, 0, met1, met2, met_lse, met_delta);
    cp_async_commit();
    for (int i = 0; i < tiles; i++) {
        const int buf = i & 1, next = buf ^ 1, col0 = w.from + i % w.tiles * MET;
        /* Uniform over the warp; query and key: the first of each. */
        const int query = (KEYS ? col0 : row0) + at.shift, key = KEYS ? row0 : col0;
        const int queries = KEYS ? MET : 16, keys = KEYS ? 16 : MET;
        const bool busy = row0 < w.rows && key < query + queries &&
                          (window <= 0 || key + keys - 1 > query - window);
        const bool whole =
            key + keys - 1 <= query && (window <= 0 || key > query + queries - 1 - window);
        cp_async_wait<0>();
        __syncthreads(); /* this tile is there; the other buffer is no longer read */
        if (i + 1 < tiles)
            load_met<HD, KEYS>(a, at, w, i + 1, met1 + next * MET * LD, met2 + next * MET * LD,
                               met_lse + next * MET, met_delta + next * MET);
        cp_async_commit();
        if (!busy)
            continue;
        const bf16_t *m1 = met1 + buf * MET * LD, *m2 = met2 + buf * MET * LD;
        float x[MET / 8][4], y[MET / 8][4];
        two_products<HD>(x, y, own1, own2, m1, m2);
        to_ds<KEYS>(x, y, KEYS ? met_lse + buf * MET + 2 * (lane & 3) : lse,
                    KEYS ? met_delta + buf * MET + 2 * (lane & 3) : delta, row0 + (lane >> 2),
                    col0 + 2 * (lane & 3), at, window, a.s.scale * LOG2E, whole);
        add_product<HD>(acc1, y, m1);
        if (KEYS)
            add_product<HD>(acc2, x, m2);
    }
    if (tiles == 0) { /* nobody waited for the own tiles */
        cp_async_wait<0>();
        __syncthreads();
    }
    if (row0 >= w.rows)
        return;
    __syncwarp();
    if (KEYS) {
        finish<HD>(a.dk + (int64_t)(at.k0 + row0) * a.lddk + blockIdx.y * hd, a.lddk, own1, acc1,
                   a.s.scale, w.rows - row0, hd);
        finish<HD>(a.dv + (int64_t)(at.k0 + row0) * a.lddv + blockIdx.y * hd, a.lddv, own2, acc2,
                   1.0f, w.rows - row0, hd);
    } else {
        finish<HD>(a.dq + (int64_t)(at.q0 + row0) * a.lddq + blockIdx.y * hd, a.lddq, own1, acc1,
                   a.s.scale, w.rows - row0, hd);
    }
}

/* delta[t, h] = sum over the head of do * o: as many lanes as the head has pieces of 16
 * bytes (rounded up to a power of two) share one (t, h). */
__global__ void __launch_bounds__(256)
    attn_mma_delta(float *delta, const bf16_t *d_o, int64_t lddo, const bf16_t *o, int64_t ldo,
                   int heads, int hd, int lanes, int64_t n)
{
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / lanes;
    const int piece = threadIdx.x % lanes;
    float sum = 0.0f;

    if (i < n && piece < hd / 8) {
        const int64_t t = i / heads, col = i % heads * hd + piece * 8;
        const vec8<bf16_t> x = load8(d_o + t * lddo + col), y = load8(o + t * ldo + col);
        for (int e = 0; e < 8; e++)
            sum += tof(x.v[e]) * tof(y.v[e]);
    }
    for (int d = lanes / 2; d; d >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (i < n && piece == 0)
        delta[i] = sum;
}

/* Rows of no sequence, before the first and after the last, get zeros. */
struct outside {
    bf16_t *p;
    int64_t ld, cols, rows;
    const int32_t *cu;
};

__global__ void zero_outside(outside dq, outside dk, outside dv, int n_seqs)
{
    const outside m = blockIdx.y == 0 ? dq : blockIdx.y == 1 ? dk : dv;
    const int64_t from = n_seqs ? m.cu[0] : 0, to = n_seqs ? m.cu[n_seqs] : 0;

    for (int64_t r = blockIdx.x; r < m.rows - (to - from); r += gridDim.x) {
        const int64_t row = r < from ? r : r + to - from;
        for (int64_t c = threadIdx.x; c < m.cols; c += blockDim.x)
            m.p[row * m.ld + c] = fromf<bf16_t>(0.0f);
    }
}

template <int HD, bool KEYS>
static void launch_run(kn_ctx *ctx, const mma_bwd_args &a, int rows, int heads)
{
    const size_t smem = 2 * SMEM16(OWN * (HD + 8) * sizeof(bf16_t)) +
                        2 * SMEM16(2 * MET * (HD + 8) * sizeof(bf16_t)) +
                        2 * SMEM16(2 * MET * sizeof(float));

    cudaFuncSetAttribute(attn_mma_bwd<HD, KEYS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)smem);
    LAUNCH((attn_mma_bwd<HD, KEYS>), attn_grid(rows, OWN, heads, a.s.n_seqs), MMA_THREADS, smem,
           ctx->stream, a);
}

int cuda_attn_mma_bwd(kn_ctx *ctx, const kn_attn_bwd *b)
{
    const kn_attn_shape *s = &b->shape;
    const int64_t n = b->q.rows * s->heads;
    const mma_bwd_args a = attn_bwd_of<bf16_t>(b);
    int lanes = 1;

    LAUNCH(zero_outside, dim3(32, 3), 128, 0, ctx->stream,
           outside{a.dq, a.lddq, b->dq.cols, b->dq.rows, s->cu_q},
           outside{a.dk, a.lddk, b->dk.cols, b->dk.rows, s->cu_k},
           outside{a.dv, a.lddv, b->dv.cols, b->dv.rows, s->cu_k}, s->n_seqs);
    if (s->n_seqs == 0 || s->max_k == 0)
        return cuda_launched();
    while (lanes * 8 < s->head_dim)
        lanes *= 2;
    if (n > 0)
        LAUNCH(attn_mma_delta, (unsigned)((n * lanes + 255) / 256), 256, 0, ctx->stream, b->delta,
               a.d_o, a.lddo, a.o, a.ldo, s->heads, s->head_dim, lanes, n);
    return attn_mma_by_size(s->head_dim, [&](auto size) {
        constexpr int HD = decltype(size)::value;
        if (s->max_q > 0)
            launch_run<HD, false>(ctx, a, s->max_q, s->heads);
        launch_run<HD, true>(ctx, a, s->max_k, s->kv_heads);
        return cuda_launched();
    });
}
