/* test_far.c - matrices of a GPU whose rows lie 2^30 elements apart: every operation
 * counts elements in 64 bits. The same rows close together give the same bits.
 *
 * Matrices of 4 to 9 GB of which three rows are touched; the simulation has memory
 * only for those. Where a device has too little, the test is skipped. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdio.h>

#include "kit.h"

enum { ROWS = 3, ROOM = 128, WIDTH = 384 };

static const int64_t distances[2] = {WIDTH, (int64_t)1 << 30}; /* near, far */
static enum kn_dtype dtype;
static const char *backend;
static struct kit kit;

static size_t elem(enum kn_dtype t)
{
    return t == KN_BF16 ? 2 : 4;
}

/* ROWS rows; seed 0: zeros. */
static struct kn_mat make(int far, int64_t cols, enum kn_dtype t, uint64_t seed)
{
    struct kn_mat m = {.rows = ROWS, .cols = cols, .ld = distances[far], .dtype = t};
    const size_t bytes = (size_t)((ROWS - 1) * m.ld + WIDTH) * elem(t);
    float row[WIDTH];
    bf16 half[WIDTH];

    if (kit.ops->alloc(kit.ctx, bytes, &m.p) == -ENOMEM) {
        kit_release(&kit, 0);
        skip();
    }
    kit.owned[kit.n_owned++] = m.p;
    for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t c = 0; c < WIDTH; c++) {
            row[c] = seed && c < cols ? (float)kit_value(seed, r, c) : 0.0f;
            half[c] = bf16_from_f32(row[c]);
        }
        kit_put(&kit, (char *)m.p + (size_t)(r * m.ld) * elem(t),
                t == KN_BF16 ? (void *)half : (void *)row, WIDTH * elem(t));
    }
    return m;
}

/* The first cols columns of both, whatever their type. */
static void same(const char *what, const struct kn_mat *m, int64_t cols)
{
    for (int64_t r = 0; r < ROWS; r++)
        kit_same(what, &kit, (char *)m[0].p + (size_t)(r * m[0].ld) * elem(m[0].dtype), &kit,
                 (char *)m[1].p + (size_t)(r * m[1].ld) * elem(m[1].dtype),
                 (size_t)cols * elem(m[0].dtype));
}

static void moving(void **state)
{
    static const int32_t idx[ROWS] = {2, 0, 2};
    const int32_t *at = kit_ints(&kit, idx, ROWS);
    struct kn_mat y[2], e[2];

    (void)state;
    for (int far = 0; far < 2; far++) {
        const struct kn_mat x = make(far, 100, dtype, 1);
        y[far] = make(far, 100, dtype, 2);
        e[far] = make(far, 100, dtype, 0);
        assert_int_equal(
            kit.ops->gather(kit.ctx,
                            &(struct kn_gather){.y = y[far], .add = true, .x = x, .idx = at}),
            0);
        assert_int_equal(
            kit.ops->embed(kit.ctx, &(struct kn_embed){.y = e[far], .table = x, .ids = at}), 0);
    }
    same("gather", y, 100);
    same("embed", e, 100);
    kit_release(&kit, 0);
}

static void norm(void **state)
{
    const float *w = kit_vec(&kit, 100, 3, 0.5, 1.0);
    float *rstd = kit_vec(&kit, ROWS, 0, 0.0, 0.0);
    struct kn_mat y[2], dx[2];

    (void)state;
    for (int far = 0; far < 2; far++) {
        const struct kn_mat x = make(far, 100, dtype, 1), dy = make(far, 100, dtype, 2);
        y[far] = make(far, 100, dtype, 0);
        dx[far] = make(far, 100, dtype, 4);
        assert_int_equal(
            kit.ops->rmsnorm_fwd(
                kit.ctx,
                &(struct kn_rmsnorm_fwd){.y = y[far], .rstd = rstd, .x = x, .w = w, .eps = 1e-5f}),
            0);
        assert_int_equal(
            kit.ops->rmsnorm_bwd(
                kit.ctx,
                &(struct kn_rmsnorm_bwd){
                    .dx = dx[far], .add_dx = true, .dy = dy, .x = x, .w = w, .rstd = rstd}),
            0);
    }
    same("rmsnorm", y, 100);
    same("rmsnorm's gradient", dx, 100);
    kit_release(&kit, 0);
}

static void pointwise(void **state)
{
    static const int32_t pos[ROWS] = {0, 3, 1};
    const int32_t *at = kit_ints(&kit, pos, ROWS);
    const float *table = kit_vec(&kit, 4 * 32, 5, 1.0, 0.0);
    struct kn_mat x[2], y[2], d[2];

    (void)state;
    for (int far = 0; far < 2; far++) {
        const struct kn_mat gu = make(far, 144, dtype, 1), dy = make(far, 72, dtype, 2);
        x[far] = make(far, 64, dtype, 3);
        y[far] = make(far, 72, dtype, 0);
        d[far] = make(far, 144, dtype, 0);
        assert_int_equal(kit.ops->rope(kit.ctx, &(struct kn_rope){.x = x[far],
                                                                  .pos = at,
                                                                  .cos_sin = table,
                                                                  .heads = 2,
                                                                  .head_dim = 32}),
                         0);
        assert_int_equal(
            kit.ops->swiglu_fwd(kit.ctx, &(struct kn_swiglu_fwd){.y = y[far], .gu = gu}), 0);
        assert_int_equal(
            kit.ops->swiglu_bwd(
                kit.ctx, &(struct kn_swiglu_bwd){.dgu = d[far], .dy = dy, .gu = gu, .y = y[far]}),
            0);
    }
    same("rope", x, 64);
    same("swiglu", y, 72);
    same("swiglu's gradient", d, 144);
    kit_release(&kit, 0);
}

static void logprob(void **state)
{
    static const int32_t target[ROWS] = {7, 0, 255};
    const int32_t *at = kit_ints(&kit, target, ROWS);
    struct kn_mat z[2];
    float *logp[2];

    (void)state;
    for (int far = 0; far < 2; far++) {
        z[far] = make(far, 256, KN_F32, 1);
        logp[far] = kit_vec(&kit, ROWS, 0, 0.0, 0.0);
        assert_int_equal(kit.ops->logprob(kit.ctx, &(struct kn_logprob){.z = z[far],
                                                                        .target = at,
                                                                        .logp = logp[far],
                                                                        .grad = true,
                                                                        .grad_dtype = dtype}),
                         0);
    }
    kit_same("logp", &kit, logp[0], &kit, logp[1], ROWS * sizeof(float));
    same("gradient of the logits", z, 128); /* bf16 lies in the first half of a row */
    kit_release(&kit, 0);
}

/* x and dy with room behind them, or without: in place, or by way of a copy. */
static void one_linear(bool room)
{
    enum { N = 96, K = 64, R = 8 };
    static float w[N * K];
    const struct kn_weight_part part = {.data = w, .dtype = KN_F32, .n = N};
    const struct kn_weight_desc desc = {
        .parts = &part, .n_parts = 1, .k = K, .load_dtype = KN_BF16, .lora_cols = R};
    const struct kn_lora lora = {.a = kit_vec(&kit, R * K, 6, 0.25, 0.0),
                                 .b = kit_vec(&kit, N * R, 7, 0.25, 0.0),
                                 .da = kit_vec(&kit, R * K, 8, 0.25, 0.0),
                                 .db = kit_vec(&kit, N * R, 9, 0.25, 0.0),
                                 .r = R,
                                 .scale = 0.5f};
    const struct kn_lora_seg seg = {.row0 = 0, .rows = ROWS, .parts = &lora};
    float *s = kit_vec(&kit, ROWS * R, 0, 0.0, 0.0), *ds = kit_vec(&kit, ROWS * R, 0, 0.0, 0.0);
    struct kn_mat y[2], dx[2];
    struct kn_weight *weight;

    for (int i = 0; i < N * K; i++)
        w[i] = (float)kit_value(10, i / K, i % K);
    assert_int_equal(kit.ops->weight_open(kit.ctx, &desc, &weight), 0);
    for (int far = 0; far < 2; far++) {
        const struct kn_mat x = make(far, K, dtype, 1), dy = make(far, N, dtype, 2);
        const struct kn_mat residual = make(1 - far, N, dtype, 3);
        y[far] = make(far, N, dtype, 0);
        dx[far] = make(far, K, dtype, 4);
        assert_int_equal(
            kit.ops->linear_fwd(kit.ctx, &(struct kn_linear_fwd){.y = y[far],
                                                                 .x = x,
                                                                 .w = weight,
                                                                 .residual = &residual,
                                                                 .segs = &seg,
                                                                 .n_segs = 1,
                                                                 .s = s,
                                                                 .s_cols = R,
                                                                 .x_room = room ? ROOM : 0}),
            0);
        assert_int_equal(
            kit.ops->linear_bwd(kit.ctx, &(struct kn_linear_bwd){.dx = dx[far],
                                                                 .add_dx = true,
                                                                 .dy = dy,
                                                                 .x = x,
                                                                 .w = weight,
                                                                 .segs = &seg,
                                                                 .n_segs = 1,
                                                                 .s = s,
                                                                 .s_cols = R,
                                                                 .ds = ds,
                                                                 .dy_room = room ? ROOM : 0}),
            0);
    }
    same("linear", y, N);
    same("linear's gradient", dx, K);
    kit.ops->weight_close(kit.ctx, weight);
    kit_release(&kit, 0);
}

static void linear(void **state)
{
    (void)state;
    one_linear(true);
    one_linear(false);
}

/* Two sequences, the second of which begins at row `second`. */
static void one_attention(int32_t second)
{
    const int32_t at[] = {0, second, ROWS};
    const int32_t *cu = kit_ints(&kit, at, 3);
    const struct kn_attn_shape shape = {.cu_q = cu,
                                        .cu_k = cu,
                                        .n_seqs = 2,
                                        .max_q = second,
                                        .max_k = second,
                                        .heads = 2,
                                        .kv_heads = 2,
                                        .head_dim = 16,
                                        .scale = 0.25f};
    float *lse = kit_vec(&kit, 2 * ROWS, 0, 0, 0), *delta = kit_vec(&kit, 2 * ROWS, 0, 0, 0);
    struct kn_mat o[2], dq[2], dk[2], dv[2];

    for (int far = 0; far < 2; far++) {
        const struct kn_mat q = make(far, 32, dtype, 1), k = make(far, 32, dtype, 2);
        const struct kn_mat v = make(far, 32, dtype, 3), d_o = make(far, 32, dtype, 4);
        o[far] = make(far, 32, dtype, 0);
        dq[far] = make(far, 32, dtype, 0);
        dk[far] = make(far, 32, dtype, 0);
        dv[far] = make(far, 32, dtype, 0);
        assert_int_equal(
            kit.ops->attn_fwd(kit.ctx,
                              &(struct kn_attn_fwd){
                                  .o = o[far], .lse = lse, .q = q, .k = k, .v = v, .shape = shape}),
            0);
        assert_int_equal(kit.ops->attn_bwd(kit.ctx, &(struct kn_attn_bwd){.dq = dq[far],
                                                                          .dk = dk[far],
                                                                          .dv = dv[far],
                                                                          .d_o = d_o,
                                                                          .o = o[far],
                                                                          .q = q,
                                                                          .k = k,
                                                                          .v = v,
                                                                          .lse = lse,
                                                                          .delta = delta,
                                                                          .shape = shape}),
                         0);
    }
    same("attention", o, 32);
    same("dq", dq, 32);
    same("dk", dk, 32);
    same("dv", dv, 32);
    kit_release(&kit, 0);
}

static void attention(void **state)
{
    (void)state;
    one_attention(2);
    one_attention(ROWS); /* an empty one */
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(moving),    cmocka_unit_test(norm),
                                       cmocka_unit_test(pointwise), cmocka_unit_test(logprob),
                                       cmocka_unit_test(linear),    cmocka_unit_test(attention)};

    if (argc < 2) {
        fprintf(stderr, "use: %s [bf16] BACKEND\n", argv[0]);
        return 2;
    }
    backend = argv[argc - 1];
    dtype = kit_dtype(argc, argv);
    kit_require(backend);
    if (!kit_open(&kit, backend, dtype, 1))
        return 77;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    kit_close(&kit);
    return failed;
}
