/* test_cpu.c - the CPU backend against ref: every operation, odd shapes, both
 * storage types, padding untouched.
 *
 * Allowances: a sum of n terms in float32 is off by at most n 2^-24 times the sum
 * of magnitudes; with operands of random sign the result's largest entry is about
 * sqrt(n) / n of that sum, and rounding errors of random sign grow with sqrt(n)
 * too. 8 + n / 4 units of 2^-24 of the largest entry are beyond what was seen by
 * a factor of 4 and far below any wrong term. */
#include "tests/support/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

static enum kn_dtype dtype;
static const char *backend = "cpu";
static int odd; /* kit.odd of both */

static double sum_of(int64_t n)
{
    return 8.0 + (double)n / 4.0;
}

static void open_pair(struct kit *cpu, struct kit *ref)
{
    assert_true(kit_open(cpu, backend, dtype, 2));
    assert_true(kit_open(ref, "ref", dtype, 1));
    cpu->odd = ref->odd = odd;
}

static void close_pair(struct kit *cpu, struct kit *ref)
{
    kit_close(cpu);
    kit_close(ref);
}

static const struct linear_case linear_cases[] = {
    {.m = 1, .k = 1, .n_parts = 1, .n = {1}},
    {.m = 5, .k = 64, .n_parts = 1, .n = {172}, .bias = true},
    {.m = 33, .k = 172, .n_parts = 1, .n = {64}, .r = {4}, .n_segs = 1, .residual = true},
    {.m = 70, .k = 64, .n_parts = 3, .n = {64, 32, 32}, .r = {8, 8, 8}, .n_segs = 1, .bias = true},
    {.m = 65, .k = 48, .n_parts = 2, .n = {172, 172}, .r = {16, 0}, .n_segs = 2, .add_dx = true},
    {.m = 300, .k = 96, .n_parts = 1, .n = {80}, .r = {17}, .n_segs = 3, .residual = true},
    {.m = 37, .k = 60, .n_parts = 3, .n = {24, 8, 8}, .r = {3, 5, 2}, .n_segs = 1, .dropout = 0.3f},
    {.m = 40, .k = 288, .n_parts = 1, .n = {2000}, .r = {8}, .n_segs = 1},
    {.m = 40, .k = 2000, .n_parts = 1, .n = {72}, .r = {8}, .n_segs = 1, .y_float = true},
    {.m = 66,
     .k = 64,
     .n_parts = 1,
     .n = {96},
     .r = {64},
     .n_segs = 2,
     .dropout = 0.05f,
     .add_dx = true},
    {.m = 20, .k = 64, .n_parts = 1, .n = {48}, .r = {4}, .n_segs = 1, .no_dx = true},
    {.m = 3, .k = 9000, .n_parts = 1, .n = {70}},
    {.m = 34,
     .k = 128,
     .n_parts = 2,
     .n = {64, 30},
     .r = {4, 4},
     .n_segs = 1,
     .quant = KN_QUANT_NF4,
     .double_quant = true,
     .load_dtype = KN_BF16},
    {.m = 34, .k = 60, .n_parts = 1, .n = {33}, .quant = KN_QUANT_FP4, .load_dtype = KN_F16},
    {.m = 40, .k = 64, .n_parts = 1, .n = {64}}, /* forward and backward of one size */
    {.m = 21, .k = 61, .n_parts = 3, .n = {24, 8, 8}, .r = {3, 0, 2}, .n_segs = 1, .dropout = 0.3f},
};

static void compare_linear(struct kit *cpu, struct kit *ref, const struct linear_case *c)
{
    struct linear_call a = {0}, b = {0};
    /* A GPU rounds A, B, S, dS and the bias to bf16 for its products: 2^-9 each, of sums of r
     * terms below 1: 2^-7 of the largest entry. */
    const bool rounded = dtype == KN_BF16 && strcmp(backend, "cpu") != 0 && (c->n_segs || c->bias);
    const double more = rounded ? 131072.0 : 0.0;
    const double f = sum_of(c->k) + more, g = sum_of(c->m > 300 ? c->m : 300) + more;

    linear_make(cpu, c, &a);
    linear_make(ref, c, &b);
    assert_int_equal(cpu->ops->linear_fwd(cpu->ctx, &a.fwd), 0);
    assert_int_equal(ref->ops->linear_fwd(ref->ctx, &b.fwd), 0);
    kit_near("y", cpu, &a.y, ref, &b.y, f);
    if (c->n_segs)
        kit_near_vec("s", cpu, a.fwd.s, ref, b.fwd.s, c->m * a.s_cols, f);
    assert_int_equal(cpu->ops->linear_bwd(cpu->ctx, &a.bwd), 0);
    assert_int_equal(ref->ops->linear_bwd(ref->ctx, &b.bwd), 0);
    kit_near("dx", cpu, &a.dx, ref, &b.dx, sum_of(a.n) + more);
    for (int s = 0; s < c->n_segs; s++) {
        for (int i = 0; i < c->n_parts; i++) {
            if (c->r[i] == 0)
                continue;
            kit_near_vec("da", cpu, a.lora[s][i].da, ref, b.lora[s][i].da, c->r[i] * c->k, g);
            kit_near_vec("db", cpu, a.lora[s][i].db, ref, b.lora[s][i].db, c->n[i] * c->r[i], g);
        }
    }
    kit_padding(cpu, &a.x);
    cpu->ops->weight_close(cpu->ctx, a.w);
    ref->ops->weight_close(ref->ctx, b.w);
    kit_release(cpu, 0);
    kit_release(ref, 0);
}

static void linear(void **state)
{
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (size_t i = 0; i < ARRAY_LEN(linear_cases); i++)
        compare_linear(&cpu, &ref, &linear_cases[i]);
    close_pair(&cpu, &ref);
}

/* bf16 on a GPU: dA and dB on tensor cores, in several strips of rows, against the library's
 * products, which rows that begin anywhere still take. The same operands to the bit: only
 * the order of sums differs. */
static void linear_portable(void **state)
{
    static const struct linear_case cases[] = {
        {.m = 700, .k = 200, .n_parts = 3, .n = {136, 20, 28}, .r = {40, 3, 24}, .n_segs = 1},
        {.m = 530,
         .k = 136,
         .n_parts = 2,
         .n = {24, 40},
         .r = {16, 12},
         .n_segs = 1,
         .dropout = 0.2f},
        {.m = 640, .k = 64, .n_parts = 2, .n = {32, 160}, .r = {0, 8}, .n_segs = 2},
    };
    struct kit mma, plain;

    (void)state;
    if (dtype != KN_BF16 || strcmp(backend, "cpu") == 0)
        return;
    assert_true(kit_open(&mma, backend, dtype, 2));
    assert_true(kit_open(&plain, backend, dtype, 2));
    plain.odd = 1;
    for (size_t n = 0; n < ARRAY_LEN(cases); n++) {
        const struct linear_case *c = &cases[n];
        struct linear_call a = {0}, b = {0};
        linear_make(&mma, c, &a);
        linear_make(&plain, c, &b);
        assert_int_equal(mma.ops->linear_fwd(mma.ctx, &a.fwd), 0);
        assert_int_equal(plain.ops->linear_fwd(plain.ctx, &b.fwd), 0);
        assert_int_equal(mma.ops->linear_bwd(mma.ctx, &a.bwd), 0);
        assert_int_equal(plain.ops->linear_bwd(plain.ctx, &b.bwd), 0);
        for (int i = 0; i < c->n_parts * c->n_segs; i++) {
            const struct kn_lora *x = &a.lora[i / c->n_parts][i % c->n_parts];
            const struct kn_lora *y = &b.lora[i / c->n_parts][i % c->n_parts];
            const int64_t n_part = c->n[i % c->n_parts];
            if (x->r == 0)
                continue;
            kit_near_vec("da", &mma, x->da, &plain, y->da, x->r * c->k, sum_of(c->m));
            kit_near_vec("db", &mma, x->db, &plain, y->db, n_part * x->r, sum_of(c->m));
        }
        mma.ops->weight_close(mma.ctx, a.w);
        plain.ops->weight_close(plain.ctx, b.w);
        kit_release(&mma, 0);
        kit_release(&plain, 0);
    }
    close_pair(&mma, &plain);
}

static const struct attn_case attn_cases[] = {
    {.n_seqs = 1, .lq = {1}, .lk = {1}, .heads = 1, .kv_heads = 1, .head_dim = 8},
    {.n_seqs = 3, .lq = {7, 25, 1}, .lk = {7, 25, 1}, .heads = 8, .kv_heads = 4, .head_dim = 8},
    {.n_seqs = 2, .lq = {40, 9}, .lk = {40, 30}, .heads = 3, .kv_heads = 3, .head_dim = 24},
    {.n_seqs = 2, .lq = {50, 13}, .lk = {70, 13}, .heads = 4, .kv_heads = 2, .head_dim = 64},
    {.n_seqs = 2, .lq = {0, 33}, .lk = {5, 35}, .heads = 4, .kv_heads = 1, .head_dim = 128},
    {.n_seqs = 2,
     .lq = {60, 20},
     .lk = {60, 50},
     .heads = 2,
     .kv_heads = 1,
     .head_dim = 48,
     .window = 17,
     .gap = true},
    {.n_seqs = 1, .lq = {30}, .lk = {30}, .heads = 2, .kv_heads = 2, .head_dim = 40, .window = 1},
    /* several tiles of every size there is, with and without whole ones */
    {.n_seqs = 2, .lq = {200, 33}, .lk = {200, 197}, .heads = 2, .kv_heads = 1, .head_dim = 16},
    {.n_seqs = 2,
     .lq = {161, 64},
     .lk = {290, 64},
     .heads = 1,
     .kv_heads = 1,
     .head_dim = 88,
     .window = 100},
};

static void one_attention(struct kit *cpu, struct kit *ref, const struct attn_case *c)
{
    /* Tensor cores take P and dS in bf16: off by up to 2^-9 each, of any sign, in
     * sums that may cancel: 2^-8 of the largest entry. With the
     * result's own rounding that was 1.0 to 1.6 times 2^-9 in the mean; a key too many
     * or too few in a row of 50 is 70 times as much. */
    const bool rounded = dtype == KN_BF16 && strcmp(backend, "cpu") != 0;
    const double f = sum_of(128) + (rounded ? 65536.0 : 0.0);
    const double mean = rounded ? 2.0 / 512 : dtype == KN_BF16 ? 1.0 / 1024 : 1e-6;
    struct attn_call a, b;

    attn_make(cpu, c, &a);
    attn_make(ref, c, &b);
    assert_int_equal(cpu->ops->attn_fwd(cpu->ctx, &a.fwd), 0);
    assert_int_equal(ref->ops->attn_fwd(ref->ctx, &b.fwd), 0);
    kit_near("o", cpu, &a.o, ref, &b.o, f);
    kit_near_rms("o", cpu, &a.o, ref, &b.o, mean);
    kit_near_vec("lse", cpu, a.lse, ref, b.lse, a.q.rows * c->heads, sum_of(128));
    /* The backward from the same o and lse: its own error alone. */
    kit_put(cpu, a.o.p, b.o.p, (size_t)(b.o.rows * b.o.ld) * (dtype == KN_BF16 ? 2 : 4));
    kit_put(cpu, a.lse, b.lse, (size_t)(b.q.rows * c->heads) * sizeof(float));
    assert_int_equal(cpu->ops->attn_bwd(cpu->ctx, &a.bwd), 0);
    assert_int_equal(ref->ops->attn_bwd(ref->ctx, &b.bwd), 0);
    kit_near("dq", cpu, &a.dq, ref, &b.dq, f);
    kit_near_rms("dq", cpu, &a.dq, ref, &b.dq, mean);
    kit_near("dk", cpu, &a.dk, ref, &b.dk, f);
    kit_near_rms("dk", cpu, &a.dk, ref, &b.dk, mean);
    kit_near("dv", cpu, &a.dv, ref, &b.dv, f);
    kit_near_rms("dv", cpu, &a.dv, ref, &b.dv, mean);
    kit_near_vec("delta", cpu, a.delta, ref, b.delta, a.q.rows * c->heads, sum_of(128));
    kit_release(cpu, 0);
    kit_release(ref, 0);
}

static void attention(void **state)
{
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (size_t i = 0; i < ARRAY_LEN(attn_cases); i++)
        one_attention(&cpu, &ref, &attn_cases[i]);
    close_pair(&cpu, &ref);
}

/* Where what a tile sees begins or ends with the tile, or one key before or behind:
 * every distance of queries to keys and of windows to tiles, modulo 32. */
static void attention_edges(void **state)
{
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (int shift = 0; shift < 33; shift += strcmp(backend, "simrace") ? 1 : 8) {
        const int windows[] = {0, shift + 2, shift + 31, shift + 95};
        for (int i = 0; i < 4; i++)
            one_attention(&cpu, &ref,
                          &(struct attn_case){.n_seqs = 1,
                                              .lq = {98},
                                              .lk = {98 + shift},
                                              .heads = 1,
                                              .kv_heads = 1,
                                              .head_dim = 8,
                                              .window = windows[i]});
    }
    close_pair(&cpu, &ref);
}

/* bf16 on a GPU: tensor cores against the portable kernels, which rows that begin
 * anywhere still take. */
static void attention_portable(void **state)
{
    struct kit mma, plain;

    (void)state;
    if (dtype != KN_BF16 || strcmp(backend, "cpu") == 0)
        return;
    assert_true(kit_open(&mma, backend, dtype, 2));
    assert_true(kit_open(&plain, backend, dtype, 2));
    plain.odd = 1;
    for (size_t i = 0; i < ARRAY_LEN(attn_cases); i++) {
        const double mean = 1.5 / 512;
        struct attn_call a, b;
        attn_make(&mma, &attn_cases[i], &a);
        attn_make(&plain, &attn_cases[i], &b);
        assert_int_equal(mma.ops->attn_fwd(mma.ctx, &a.fwd), 0);
        assert_int_equal(plain.ops->attn_fwd(plain.ctx, &b.fwd), 0);
        assert_int_equal(mma.ops->attn_bwd(mma.ctx, &a.bwd), 0);
        assert_int_equal(plain.ops->attn_bwd(plain.ctx, &b.bwd), 0);
        kit_near_rms("o", &mma, &a.o, &plain, &b.o, mean);
        kit_near_rms("dq", &mma, &a.dq, &plain, &b.dq, 2.0 * mean); /* o differs already */
        kit_near_rms("dk", &mma, &a.dk, &plain, &b.dk, 2.0 * mean);
        kit_near_rms("dv", &mma, &a.dv, &plain, &b.dv, mean);
        kit_padding(&plain, &b.o);
        kit_padding(&plain, &b.dk);
    }
    close_pair(&mma, &plain);
}

static const struct {
    int64_t rows, cols;
} row_shapes[] = {{1, 1}, {3, 64}, {7, 172}, {65, 288}, {2, 513}, {300, 24}};

static void one_norm(struct kit *cpu, struct kit *ref, int64_t rows, int64_t cols, bool add)
{
    struct kit *kits[2] = {cpu, ref};
    struct kn_mat y[2], dx[2];
    float *rstd[2];

    for (int i = 0; i < 2; i++) {
        struct kit *k = kits[i];
        struct kn_mat x = kit_mat(k, rows, cols, dtype, 1, 0, 2.0);
        struct kn_mat dy = kit_mat(k, rows, cols, dtype, 2, 0, 1.0);
        float *w = kit_vec(k, cols, 3, 0.5, 1.0);
        y[i] = kit_mat(k, rows, cols, dtype, 0, 0, 0.0);
        dx[i] = kit_mat(k, rows, cols, dtype, 4, 0, 1.0);
        rstd[i] = kit_vec(k, rows, 0, 0.0, 0.0);
        assert_int_equal(
            k->ops->rmsnorm_fwd(
                k->ctx,
                &(struct kn_rmsnorm_fwd){.y = y[i], .rstd = rstd[i], .x = x, .w = w, .eps = 1e-5f}),
            0);
        assert_int_equal(
            k->ops->rmsnorm_bwd(
                k->ctx,
                &(struct kn_rmsnorm_bwd){
                    .dx = dx[i], .add_dx = add, .dy = dy, .x = x, .w = w, .rstd = rstd[i]}),
            0);
    }
    /* bf16 rounds twice, before and after the gain: once more than kit_near allows. */
    kit_near("rmsnorm y", cpu, &y[0], ref, &y[1], dtype == KN_BF16 ? 65536.0 : 32.0);
    kit_near("rmsnorm dx", cpu, &dx[0], ref, &dx[1], 64.0);
    kit_near_vec("rstd", cpu, rstd[0], ref, rstd[1], rows, 32.0);
    kit_release(cpu, 0);
    kit_release(ref, 0);
}

static void norms(void **state)
{
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (size_t i = 0; i < ARRAY_LEN(row_shapes); i++)
        one_norm(&cpu, &ref, row_shapes[i].rows, row_shapes[i].cols, i % 2);
    close_pair(&cpu, &ref);
}

static void one_swiglu(struct kit *cpu, struct kit *ref, int64_t rows, int64_t cols)
{
    struct kit *kits[2] = {cpu, ref};
    struct kn_mat y[2], again[2], dgu[2];

    for (int i = 0; i < 2; i++) {
        struct kit *k = kits[i];
        struct kn_mat gu = kit_mat(k, rows, 2 * cols, dtype, 1, 0, 8.0);
        struct kn_mat dy = kit_mat(k, rows, cols, dtype, 2, 0, 1.0);
        y[i] = kit_mat(k, rows, cols, dtype, 0, 0, 0.0);
        again[i] = kit_mat(k, rows, cols, dtype, 0, 0, 0.0);
        dgu[i] = gu; /* in place */
        assert_int_equal(k->ops->swiglu_fwd(k->ctx, &(struct kn_swiglu_fwd){.y = y[i], .gu = gu}),
                         0);
        assert_int_equal(
            k->ops->swiglu_bwd(
                k->ctx, &(struct kn_swiglu_bwd){.dgu = gu, .dy = dy, .gu = gu, .y = again[i]}),
            0);
    }
    kit_near("swiglu y", cpu, &y[0], ref, &y[1], 16.0);
    kit_near("swiglu y again", cpu, &again[0], ref, &y[1], 16.0);
    kit_near("swiglu dgu", cpu, &dgu[0], ref, &dgu[1], 16.0);
    kit_release(cpu, 0);
    kit_release(ref, 0);
}

static void swiglu(void **state)
{
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (size_t i = 0; i < ARRAY_LEN(row_shapes); i++)
        one_swiglu(&cpu, &ref, row_shapes[i].rows, row_shapes[i].cols);
    close_pair(&cpu, &ref);
}

static void rope(void **state)
{
    static const int dims[] = {2, 8, 24, 48, 64, 128};
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (size_t i = 0; i < ARRAY_LEN(dims) * 2; i++) {
        struct kit *kits[2] = {&cpu, &ref};
        const int hd = dims[i / 2], heads = 3;
        struct kn_mat x[2];
        int32_t pos[37];
        for (int t = 0; t < 37; t++)
            pos[t] = t * 7 % 50;
        for (int j = 0; j < 2; j++) {
            struct kit *k = kits[j];
            x[j] = kit_mat(k, 37, heads * hd, dtype, 1, 0, 1.0);
            assert_int_equal(
                k->ops->rope(k->ctx, &(struct kn_rope){.x = x[j],
                                                       .pos = kit_ints(k, pos, 37),
                                                       .cos_sin = kit_vec(k, 50 * hd, 2, 1, 0),
                                                       .heads = heads,
                                                       .head_dim = hd,
                                                       .inverse = i % 2}),
                0);
        }
        kit_near("rope", &cpu, &x[0], &ref, &x[1], 8.0);
        kit_release(&cpu, 0);
        kit_release(&ref, 0);
    }
    close_pair(&cpu, &ref);
}

static void moving(void **state)
{
    static const int32_t start[] = {0, 2, 2, 5, 6}, idx[] = {4, 0, 3, 3, 1, 2};
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (int i = 0; i < 8; i++) {
        struct kit *kits[2] = {&cpu, &ref};
        const int64_t cols = i < 4 ? 64 : 37;
        struct kn_mat y[2], e[2];
        for (int j = 0; j < 2; j++) {
            struct kit *k = kits[j];
            struct kn_mat x = kit_mat(k, 5, cols, dtype, 1, 0, 1.0);
            int32_t *at = kit_ints(k, idx, 6);
            y[j] = kit_mat(k, 4, cols, dtype, 2, 0, 1.0);
            e[j] = kit_mat(k, 4, cols, dtype, 0, 0, 0.0);
            assert_int_equal(
                k->ops->gather(k->ctx,
                               &(struct kn_gather){.y = y[j],
                                                   .add = i & 1,
                                                   .x = x,
                                                   .start = i & 2 ? kit_ints(k, start, 5) : NULL,
                                                   .idx = at,
                                                   .coef = i & 1 ? kit_vec(k, 6, 3, 1, 0) : NULL}),
                0);
            assert_int_equal(
                k->ops->embed(k->ctx, &(struct kn_embed){.y = e[j], .table = x, .ids = at}), 0);
            if (!kit_on_host(k))
                continue; /* indices in device memory are nobody's to check */
            at[1] = 5;
            assert_true(
                k->ops->embed(k->ctx, &(struct kn_embed){.y = e[j], .table = x, .ids = at}) < 0);
            assert_true(k->ops->gather(k->ctx, &(struct kn_gather){.y = y[j], .x = x, .idx = at}) <
                        0);
        }
        kit_near("gather", &cpu, &y[0], &ref, &y[1], 8.0);
        kit_near("embed", &cpu, &e[0], &ref, &e[1], 0.0);
        kit_release(&cpu, 0);
        kit_release(&ref, 0);
    }
    close_pair(&cpu, &ref);
}

static void one_logprob(struct kit *cpu, struct kit *ref, int64_t rows, int64_t v, double scale)
{
    struct kit *kits[2] = {cpu, ref};
    struct kn_logprob a[2];

    for (int i = 0; i < 2; i++) {
        struct kit *k = kits[i];
        int32_t *target = malloc((size_t)rows * sizeof *target);
        assert_non_null(target);
        for (int64_t r = 0; r < rows; r++)
            target[r] = (int32_t)((r * 131) % v);
        a[i] = (struct kn_logprob){.z = kit_mat(k, rows, v, KN_F32, 1, 0, scale),
                                   .target = kit_ints(k, target, rows),
                                   .lse = kit_vec(k, rows, 0, 0, 0),
                                   .logp = kit_vec(k, rows, 0, 0, 0),
                                   .sum_z = kit_vec(k, rows, 0, 0, 0),
                                   .sum_pz = kit_vec(k, rows, 0, 0, 0),
                                   .lse2 = kit_vec(k, rows, 0, 0, 0),
                                   .hit = kit_alloc(k, (size_t)rows * sizeof(int32_t)),
                                   .grad = true,
                                   .grad_dtype = dtype};
        for (int64_t r = 0; r < rows; r++) {
            if (r % 3 == 0) /* a tie for the largest: the lower index wins */
                kit_set(k, &a[i].z, r, target[r], 2.0 * scale);
            if (r % 6 == 0)
                kit_set(k, &a[i].z, r, (target[r] + v / 2) % v, 2.0 * scale);
        }
        assert_int_equal(k->ops->logprob(k->ctx, &a[i]), 0);
        target[0] = (int32_t)v;
        kit_put(k, (void *)(uintptr_t)a[i].target, target, sizeof *target);
        free(target);
        if (kit_on_host(k)) /* targets in device memory are nobody's to check */
            assert_true(k->ops->logprob(k->ctx, &a[i]) < 0);
    }
    kit_near_vec("lse", cpu, a[0].lse, ref, a[1].lse, rows, 16.0);
    kit_near_vec("logp", cpu, a[0].logp, ref, a[1].logp, rows, 16.0);
    kit_near_vec("sum_pz", cpu, a[0].sum_pz, ref, a[1].sum_pz, rows, 64.0);
    kit_near_vec("lse2", cpu, a[0].lse2, ref, a[1].lse2, rows, 16.0);
    kit_near_vec("sum_z", cpu, a[0].sum_z, ref, a[1].sum_z, rows, sum_of(v));
    kit_same("hit", cpu, a[0].hit, ref, a[1].hit, (size_t)rows * sizeof(int32_t));
    struct kn_mat g[2] = {a[0].z, a[1].z};
    for (int i = 0; i < 2 && dtype == KN_BF16; i++) {
        g[i].dtype = KN_BF16;
        g[i].ld *= 2;
    }
    kit_logits_near(cpu, &g[0], ref, &g[1], ldexp(1.0, -19));
    kit_release(cpu, 0);
    kit_release(ref, 0);
}

static void logprob(void **state)
{
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    one_logprob(&cpu, &ref, 1, 1, 1.0);
    one_logprob(&cpu, &ref, 9, 37, 10.0);
    one_logprob(&cpu, &ref, 13, 512, 30.0);
    one_logprob(&cpu, &ref, 7, 5003, 5.0);
    one_logprob(&cpu, &ref, 2, 32000, 12.0);
    close_pair(&cpu, &ref);
}

static void optimiser(void **state)
{
    static const int64_t sizes[] = {1, 17, 4096, 100003};
    struct kit cpu, ref;

    (void)state;
    open_pair(&cpu, &ref);
    for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
        struct kit *kits[2] = {&cpu, &ref};
        const int64_t n = sizes[s];
        struct kn_adamw a[2];
        for (int i = 0; i < 2; i++) {
            struct kit *k = kits[i];
            struct kn_sweep *sweep = kit_alloc(k, sizeof *sweep);
            struct kn_adamw_step *step = kit_alloc(k, sizeof *step);
            float *g = kit_vec(k, n, 4, 0.5, 0.0);
            kit_put(k, step,
                    &(struct kn_adamw_step){.lr = 1e-2f,
                                            .beta1 = 0.9f,
                                            .beta2 = 0.999f,
                                            .eps = 1e-8f,
                                            .weight_decay = 0.1f,
                                            .max_grad_norm = s % 2 ? 1.0f : 0.0f,
                                            .bias1 = 1.0f - 0.729f,
                                            .bias2 = 1.0f - 0.997f},
                    sizeof *step);
            a[i] = (struct kn_adamw){.p = kit_vec(k, n, 1, 1.0, 0.0),
                                     .m = kit_vec(k, n, 2, 0.1, 0.0),
                                     .v = kit_vec(k, n, 3, 0.01, 0.01),
                                     .g = g,
                                     .n = n,
                                     .sweep = sweep,
                                     .step = step};
            assert_int_equal(
                k->ops->grad_sweep(k->ctx, &(struct kn_grad_sweep){.g = g, .n = n, .sweep = sweep}),
                0);
            assert_int_equal(k->ops->adamw(k->ctx, &a[i]), 0);
        }
        struct kn_sweep swept[2];
        kit_take(&cpu, &swept[0], a[0].sweep, sizeof swept[0]);
        kit_take(&ref, &swept[1], a[1].sweep, sizeof swept[1]);
        assert_true(fabs(swept[0].sum_sq / swept[1].sum_sq - 1.0) < 1e-12);
        kit_near_vec("p", &cpu, a[0].p, &ref, a[1].p, n, 8.0);
        kit_near_vec("m", &cpu, a[0].m, &ref, a[1].m, n, 8.0);
        kit_near_vec("v", &cpu, a[0].v, &ref, a[1].v, n, 8.0);
        /* A gradient that is not finite is counted and changes nothing. */
        const double before = kit_vec_get(&cpu, a[0].p, 0);
        kit_vec_set(&cpu, (float *)(uintptr_t)a[0].g, n / 2, NAN);
        assert_int_equal(
            cpu.ops->grad_sweep(
                cpu.ctx,
                &(struct kn_grad_sweep){
                    .g = a[0].g, .n = n, .sweep = (struct kn_sweep *)(uintptr_t)a[0].sweep}),
            0);
        kit_take(&cpu, &swept[0], a[0].sweep, sizeof swept[0]);
        assert_int_equal(swept[0].nonfinite, 1);
        assert_int_equal(cpu.ops->adamw(cpu.ctx, &a[0]), 0);
        assert_true(kit_vec_get(&cpu, a[0].p, 0) == before);
        kit_release(&cpu, 0);
        kit_release(&ref, 0);
    }
    close_pair(&cpu, &ref);
}

int main(int argc, char **argv)
{
    /* Rows that begin anywhere: no wide accesses. */
    const struct CMUnitTest anywhere[] = {cmocka_unit_test(norms),   cmocka_unit_test(swiglu),
                                          cmocka_unit_test(rope),    cmocka_unit_test(moving),
                                          cmocka_unit_test(logprob), cmocka_unit_test(optimiser)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear),
        cmocka_unit_test(linear_portable),
        cmocka_unit_test(attention),
        cmocka_unit_test(attention_edges),
        cmocka_unit_test(attention_portable),
        cmocka_unit_test(norms),
        cmocka_unit_test(swiglu),
        cmocka_unit_test(rope),
        cmocka_unit_test(moving),
        cmocka_unit_test(logprob),
        cmocka_unit_test(optimiser),
    };

    dtype = kit_dtype(argc, argv);
    if (argc > 1 && strcmp(argv[argc - 1], "bf16") != 0)
        backend = argv[argc - 1];
    kit_require(backend);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (strcmp(backend, "cpu") == 0)
        return failed;
    odd = 1;
    return failed + cmocka_run_group_tests(anywhere, NULL, NULL);
}
