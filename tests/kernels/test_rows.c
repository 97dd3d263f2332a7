/* test_rows.c - batch invariance: a row's forward bits are the same alone, in any
 * call, at any number of threads; gradients are the same at any number of threads. */
#include "tests/support/test.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

enum { TEAMS = 3, SPLITS = 12 };

static enum kn_dtype dtype;
static struct kit kits[TEAMS]; /* 1, 2 and 3 threads */
static const char *backend = "cpu";

static int open_kits(void **state)
{
    (void)state;
    for (int i = 0; i < TEAMS; i++)
        assert_true(kit_open(&kits[i], backend, dtype, i + 1));
    return 0;
}

static int close_kits(void **state)
{
    (void)state;
    for (int i = 0; i < TEAMS; i++)
        kit_close(&kits[i]);
    return 0;
}

static uint64_t draw(uint64_t n)
{
    static uint64_t x = 1;

    x = x * 6364136223846793005u + 1442695040888963407u;
    return (x >> 33) % n;
}

/* Rows of m, which begin with row `row0` of the whole, against the whole's bits. */
static void same_rows(const char *what, const struct kit *k, const struct kn_mat *m,
                      const struct kit *kw, const struct kn_mat *whole, int64_t row0)
{
    const size_t row = (size_t)m->ld * (m->dtype == KN_BF16 ? 2 : 4);
    const size_t bytes = (size_t)m->rows * row, used = row / (size_t)m->ld * (size_t)m->cols;
    char *a = kit_down(k, m->p, bytes);
    char *b = kit_down(kw, (const char *)whole->p + (size_t)row0 * row, bytes);

    assert_int_equal(m->ld, whole->ld);
    for (int64_t r = 0; r < m->rows; r++)
        if (memcmp(a + (size_t)r * row, b + (size_t)r * row, used) != 0)
            fail_msg("%s: row %ld of %ld differs from the same row in a call of %ld", what, (long)r,
                     (long)m->rows, (long)whole->rows);
    free(a);
    free(b);
}

static const struct linear_case linears[] = {
    {.m = 200, .k = 64, .n_parts = 3, .n = {64, 32, 32}, .r = {8, 8, 8}},
    {.m = 200, .k = 172, .n_parts = 1, .n = {64}, .r = {16}, .residual = true},
    {.m = 200, .k = 288, .n_parts = 1, .n = {1000}, .r = {4}, .bias = true},
    {.m = 120, .k = 768, .n_parts = 2, .n = {448, 64}, .r = {16, 16}, .dropout = 0.1f},
    {.m = 200, .k = 64, .n_parts = 1, .n = {512}, .y_float = true},
    {.m = 60, .k = 9000, .n_parts = 1, .n = {70}},
    {.m = 200, .k = 61, .n_parts = 1, .n = {37}, .r = {5}},
};

/* seg: 0 adapter off, 1 on, 2 on with B = 0. */
static void run_linear(struct kit *k, struct kn_weight *w, const struct linear_case *base,
                       int64_t row0, int64_t rows, int seg, struct linear_call *call)
{
    struct linear_case c = *base;

    c.row0 = row0;
    c.m = rows;
    c.n_segs = seg && base->r[0] ? 1 : 0;
    c.b_zero = seg == 2;
    call->w = w;
    linear_operands(k, &c, call);
    assert_int_equal(k->ops->linear_fwd(k->ctx, &call->fwd), 0);
}

static void one_linear(const struct linear_case *c)
{
    struct kn_weight *w[TEAMS];
    struct linear_call whole[3], part;
    int marks[TEAMS];

    for (int i = 0; i < TEAMS; i++)
        linear_weight(&kits[i], c, &w[i]);
    for (int seg = 0; seg < 3; seg++)
        run_linear(&kits[0], w[0], c, 0, c->m, seg, &whole[seg]);
    same_rows("linear, B = 0 against off", &kits[0], &whole[2].y, &kits[0], &whole[0].y, 0);
    for (int i = 0; i < TEAMS; i++)
        marks[i] = kits[i].n_owned;
    for (int n = 0; n < SPLITS; n++) {
        const int team = n % TEAMS, seg = (int)draw(3);
        const int64_t row0 = (int64_t)draw((uint64_t)c->m);
        const int64_t most = n < 4 ? 3 : c->m - row0;
        int64_t rows = 1 + (int64_t)draw((uint64_t)most);
        rows = rows > c->m - row0 ? c->m - row0 : rows;
        run_linear(&kits[team], w[team], c, row0, rows, seg, &part);
        same_rows("linear", &kits[team], &part.y, &kits[0], &whole[seg].y, row0);
        kit_release(&kits[team], marks[team]);
    }
    for (int i = 0; i < TEAMS; i++) {
        kits[i].ops->weight_close(kits[i].ctx, w[i]);
        kit_release(&kits[i], 0);
    }
}

static void linear(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(linears); i++) {
        if (linears[i].k <= 300 || strcmp(backend, "ref") != 0) /* plain loops: seconds */
            one_linear(&linears[i]);
    }
}

/* All of a backward's results at 1, 2 and 3 threads. */
static void linear_gradients(void **state)
{
    static const struct linear_case cases[] = {
        {.m = 700, .k = 96, .n_parts = 3, .n = {96, 48, 48}, .r = {8, 8, 8}, .n_segs = 2},
        {.m = 300, .k = 288, .n_parts = 1, .n = {800}, .r = {16}, .n_segs = 1, .dropout = 0.1f},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const struct linear_case *c = &cases[i];
        struct linear_call call[TEAMS] = {0};
        for (int t = 0; t < TEAMS; t++) {
            struct kit *k = &kits[t];
            linear_make(k, c, &call[t]);
            assert_int_equal(k->ops->linear_fwd(k->ctx, &call[t].fwd), 0);
            assert_int_equal(k->ops->linear_bwd(k->ctx, &call[t].bwd), 0);
            same_rows("dx", k, &call[t].dx, &kits[0], &call[0].dx, 0);
            for (int s = 0; s < c->n_segs; s++) {
                for (int p = 0; p < c->n_parts; p++) {
                    const struct kn_lora *a = &call[t].lora[s][p], *b = &call[0].lora[s][p];
                    const int64_t na = a->r * c->k, nb = a->r * c->n[p];
                    kit_same("da", k, a->da, &kits[0], b->da, (size_t)na * sizeof(float));
                    kit_same("db", k, a->db, &kits[0], b->db, (size_t)nb * sizeof(float));
                }
            }
        }
        for (int t = 0; t < TEAMS; t++) {
            kits[t].ops->weight_close(kits[t].ctx, call[t].w);
            kit_release(&kits[t], 0);
        }
    }
}

/* Every sequence alone against the same in a pack, gradients too. */
static void attention(void **state)
{
    static const struct attn_case packs[] = {
        {.n_seqs = 3,
         .lq = {140, 20, 5},
         .lk = {140, 150, 133},
         .heads = 2,
         .kv_heads = 1,
         .head_dim = 16,
         .window = 90},
        {.n_seqs = 5,
         .lq = {7, 61, 1, 30, 24},
         .lk = {7, 61, 9, 55, 24},
         .heads = 4,
         .kv_heads = 2,
         .head_dim = 8},
        {.n_seqs = 4,
         .lq = {50, 25, 3, 90},
         .lk = {50, 40, 3, 90},
         .heads = 3,
         .kv_heads = 3,
         .head_dim = 48,
         .window = 20},
        {.n_seqs = 3,
         .lq = {20, 49, 10},
         .lk = {33, 49, 100},
         .heads = 2,
         .kv_heads = 1,
         .head_dim = 128,
         .gap = true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(packs); i++) {
        struct attn_call pack;
        attn_make(&kits[0], &packs[i], &pack);
        assert_int_equal(kits[0].ops->attn_fwd(kits[0].ctx, &pack.fwd), 0);
        assert_int_equal(kits[0].ops->attn_bwd(kits[0].ctx, &pack.bwd), 0);
        for (int n = 0; n < packs[i].n_seqs * TEAMS; n++) {
            struct kit *k = &kits[n % TEAMS];
            const int s = n / TEAMS, mark = k->n_owned;
            struct attn_case c = packs[i];
            struct attn_call alone;
            c.n_seqs = 1;
            c.lq[0] = packs[i].lq[s];
            c.lk[0] = packs[i].lk[s];
            c.first = s;
            c.gap = false;
            attn_make(k, &c, &alone);
            assert_int_equal(k->ops->attn_fwd(k->ctx, &alone.fwd), 0);
            assert_int_equal(k->ops->attn_bwd(k->ctx, &alone.bwd), 0);
            same_rows("o", k, &alone.o, &kits[0], &pack.o, pack.cu_q[s]);
            same_rows("dq", k, &alone.dq, &kits[0], &pack.dq, pack.cu_q[s]);
            same_rows("dk", k, &alone.dk, &kits[0], &pack.dk, pack.cu_k[s]);
            same_rows("dv", k, &alone.dv, &kits[0], &pack.dv, pack.cu_k[s]);
            kit_same("lse", k, alone.lse, &kits[0], pack.lse + pack.cu_q[s] * c.heads,
                     (size_t)(c.lq[0] * c.heads) * sizeof(float));
            kit_release(k, mark);
        }
        kit_release(&kits[0], 0);
    }
}

/* Later queries alone, their prefix as keys only: the shared prompt's case. */
static void attention_prefix(void **state)
{
    const struct attn_case whole = {
        .n_seqs = 1, .lq = {75}, .lk = {75}, .heads = 4, .kv_heads = 2, .head_dim = 24};

    (void)state;
    for (int n = 0; n < SPLITS; n++) {
        struct kit *k = &kits[n % TEAMS];
        struct attn_case c = whole;
        struct attn_call all, tail;
        const int32_t prefix = (int32_t)draw(75);
        attn_make(k, &whole, &all);
        c.lq[0] = 75 - prefix;
        attn_make(k, &c, &tail);
        kit_fill(k, &tail.q, 0, c.lq[0], 11, prefix, 1.0); /* attn_make's rows of all.q */
        assert_int_equal(k->ops->attn_fwd(k->ctx, &all.fwd), 0);
        assert_int_equal(k->ops->attn_fwd(k->ctx, &tail.fwd), 0);
        same_rows("tail of a sequence", k, &tail.o, k, &all.o, prefix);
        kit_same("its lse", k, tail.lse, k, all.lse + prefix * c.heads,
                 (size_t)(c.lq[0] * c.heads) * sizeof(float));
        kit_release(k, 0);
    }
}

/* More sequences than a grid's y or z holds, all but the first and the last empty. */
static void attention_many(void **state)
{
    enum { MANY = 66000 };
    const struct attn_case two = {
        .n_seqs = 2, .lq = {5, 7}, .lk = {5, 9}, .heads = 1, .kv_heads = 1, .head_dim = 8};
    struct kit *k = &kits[0];
    struct attn_call few, many;
    int32_t *cu = malloc((MANY + 1) * sizeof *cu);

    (void)state;
    assert_non_null(cu);
    attn_make(k, &two, &few);
    attn_make(k, &two, &many);
    for (int q = 0; q < 2; q++) {
        const int32_t *from = q ? many.cu_q : many.cu_k;
        for (int i = 0; i <= MANY; i++)
            cu[i] = from[i == 0 ? 0 : i < MANY ? 1 : 2];
        *(q ? &many.shape.cu_q : &many.shape.cu_k) = kit_ints(k, cu, MANY + 1);
    }
    free(cu);
    many.shape.n_seqs = MANY;
    many.fwd.shape = many.bwd.shape = many.shape;
    assert_int_equal(k->ops->attn_fwd(k->ctx, &few.fwd), 0);
    assert_int_equal(k->ops->attn_bwd(k->ctx, &few.bwd), 0);
    assert_int_equal(k->ops->attn_fwd(k->ctx, &many.fwd), 0);
    assert_int_equal(k->ops->attn_bwd(k->ctx, &many.bwd), 0);
    same_rows("o of many", k, &many.o, k, &few.o, 0);
    same_rows("dq of many", k, &many.dq, k, &few.dq, 0);
    same_rows("dk of many", k, &many.dk, k, &few.dk, 0);
    same_rows("dv of many", k, &many.dv, k, &few.dv, 0);
    kit_release(k, 0);
}

struct row_ops {
    struct kn_mat norm, rope, swiglu, gather, grad;
    float *lse, *logp;
    int32_t *hit;
};

static void run_rows(struct kit *k, int64_t row0, int64_t rows, struct row_ops *out)
{
    enum { COLS = 144, HEADS = 6, HEAD_DIM = 24, VOCAB = 517 };
    int32_t *pos, *at, host[2][400];
    struct kn_mat x = kit_mat(k, rows, COLS, dtype, 21, row0, 2.0);
    struct kn_mat z = kit_mat(k, rows, VOCAB, KN_F32, 22, row0, 9.0);

    for (int64_t r = 0; r < rows; r++) {
        host[0][r] = (int32_t)((row0 + r) % 64);
        host[1][r] = (int32_t)r;
    }
    pos = kit_ints(k, host[0], rows);
    at = kit_ints(k, host[1], rows);
    out->norm = kit_mat(k, rows, COLS, dtype, 0, 0, 0.0);
    out->rope = kit_mat(k, rows, COLS, dtype, 23, row0, 1.0);
    out->swiglu = kit_mat(k, rows, COLS / 2, dtype, 0, 0, 0.0);
    out->gather = kit_mat(k, rows, COLS, dtype, 0, 0, 0.0);
    out->grad = z;
    out->lse = kit_vec(k, rows, 0, 0.0, 0.0);
    out->logp = kit_vec(k, rows, 0, 0.0, 0.0);
    k->ops->rmsnorm_fwd(
        k->ctx, &(struct kn_rmsnorm_fwd){
                    .y = out->norm, .x = x, .w = kit_vec(k, COLS, 24, 0.5, 1.0), .eps = 1e-6f});
    k->ops->rope(k->ctx, &(struct kn_rope){.x = out->rope,
                                           .pos = pos,
                                           .cos_sin = kit_vec(k, 64 * HEAD_DIM, 25, 1.0, 0.0),
                                           .heads = HEADS,
                                           .head_dim = HEAD_DIM});
    k->ops->swiglu_fwd(k->ctx, &(struct kn_swiglu_fwd){.y = out->swiglu, .gu = x});
    k->ops->gather(k->ctx, &(struct kn_gather){.y = out->gather, .x = x, .idx = at});
    assert_int_equal(k->ops->logprob(k->ctx, &(struct kn_logprob){.z = z,
                                                                  .target = pos,
                                                                  .lse = out->lse,
                                                                  .logp = out->logp,
                                                                  .grad = true}),
                     0);
}

static void row_operations(void **state)
{
    struct row_ops whole, part;
    int marks[TEAMS];

    (void)state;
    run_rows(&kits[0], 0, 400, &whole);
    for (int i = 0; i < TEAMS; i++)
        marks[i] = kits[i].n_owned;
    for (int n = 0; n < SPLITS; n++) {
        struct kit *k = &kits[n % TEAMS];
        const int64_t row0 = (int64_t)draw(400), rows = 1 + (int64_t)draw((uint64_t)(400 - row0));
        run_rows(k, row0, rows, &part);
        same_rows("rmsnorm", k, &part.norm, &kits[0], &whole.norm, row0);
        same_rows("rope", k, &part.rope, &kits[0], &whole.rope, row0);
        same_rows("swiglu", k, &part.swiglu, &kits[0], &whole.swiglu, row0);
        same_rows("gather", k, &part.gather, &kits[0], &whole.gather, row0);
        same_rows("logprob", k, &part.grad, &kits[0], &whole.grad, row0);
        kit_same("lse", k, part.lse, &kits[0], whole.lse + row0, (size_t)rows * sizeof(float));
        kit_same("logp", k, part.logp, &kits[0], whole.logp + row0, (size_t)rows * sizeof(float));
        kit_release(k, marks[n % TEAMS]);
    }
}

static void optimiser(void **state)
{
    enum { N = 100003 };
    float *p[TEAMS];

    (void)state;
    for (int t = 0; t < TEAMS; t++) {
        struct kit *k = &kits[t];
        struct kn_sweep *sweep = kit_alloc(k, sizeof *sweep);
        struct kn_adamw_step *step = kit_alloc(k, sizeof *step);
        float *g = kit_vec(k, N, 31, 0.5, 0.0);
        kit_put(k, step,
                &(struct kn_adamw_step){.lr = 1e-2f,
                                        .beta1 = 0.9f,
                                        .beta2 = 0.999f,
                                        .eps = 1e-8f,
                                        .max_grad_norm = 1.0f,
                                        .bias1 = 0.1f,
                                        .bias2 = 0.001f},
                sizeof *step);
        p[t] = kit_vec(k, N, 32, 1.0, 0.0);
        k->ops->grad_sweep(k->ctx, &(struct kn_grad_sweep){.g = g, .n = N, .sweep = sweep});
        k->ops->adamw(k->ctx, &(struct kn_adamw){.p = p[t],
                                                 .m = kit_vec(k, N, 0, 0.0, 0.0),
                                                 .v = kit_vec(k, N, 0, 0.0, 0.0),
                                                 .g = g,
                                                 .n = N,
                                                 .sweep = sweep,
                                                 .step = step});
        kit_same("p", k, p[t], &kits[0], p[0], N * sizeof(float));
    }
}

/* Ranks as threads of one process: each its own context of two threads. */
struct rank {
    pthread_t thread;
    struct kit kit;
    struct linear_call call;
    struct attn_call attn;
};

static const struct linear_case rank_linear = {
    .m = 130, .k = 96, .n_parts = 2, .n = {96, 200}, .r = {8, 8}, .n_segs = 1};
static const struct attn_case rank_attn = {
    .n_seqs = 3, .lq = {40, 20, 33}, .lk = {40, 35, 33}, .heads = 4, .kv_heads = 2, .head_dim = 24};

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct kit *k = &r->kit;
    intptr_t failed = 0;

    for (int i = 0; i < 10; i++) {
        failed |= k->ops->linear_fwd(k->ctx, &r->call.fwd);
        failed |= k->ops->linear_bwd(k->ctx, &r->call.bwd);
        failed |= k->ops->attn_fwd(k->ctx, &r->attn.fwd);
        failed |= k->ops->attn_bwd(k->ctx, &r->attn.bwd);
    }
    return (void *)failed;
}

static void ranks(void **state)
{
    enum { RANKS = 3 };
    static struct rank rank[RANKS];

    (void)state;
    memset(rank, 0, sizeof rank);
    for (int i = 0; i < RANKS; i++) {
        assert_true(kit_open(&rank[i].kit, backend, dtype, 2));
        linear_make(&rank[i].kit, &rank_linear, &rank[i].call);
        attn_make(&rank[i].kit, &rank_attn, &rank[i].attn);
    }
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(pthread_create(&rank[i].thread, NULL, rank_main, &rank[i]), 0);
    for (int i = 0; i < RANKS; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(rank[i].thread, &failed), 0);
        assert_null(failed);
    }
    for (int i = 1; i < RANKS; i++) {
        same_rows("y", &rank[i].kit, &rank[i].call.y, &rank[0].kit, &rank[0].call.y, 0);
        same_rows("dx", &rank[i].kit, &rank[i].call.dx, &rank[0].kit, &rank[0].call.dx, 0);
        kit_same("da", &rank[i].kit, rank[i].call.lora[0][1].da, &rank[0].kit,
                 rank[0].call.lora[0][1].da, 8 * 96 * sizeof(float));
        same_rows("o", &rank[i].kit, &rank[i].attn.o, &rank[0].kit, &rank[0].attn.o, 0);
        same_rows("dk", &rank[i].kit, &rank[i].attn.dk, &rank[0].kit, &rank[0].attn.dk, 0);
    }
    for (int i = 0; i < RANKS; i++) {
        rank[i].kit.ops->weight_close(rank[i].kit.ctx, rank[i].call.w);
        kit_close(&rank[i].kit);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(linear, open_kits, close_kits),
        cmocka_unit_test_setup_teardown(linear_gradients, open_kits, close_kits),
        cmocka_unit_test_setup_teardown(attention, open_kits, close_kits),
        cmocka_unit_test_setup_teardown(attention_prefix, open_kits, close_kits),
        cmocka_unit_test_setup_teardown(attention_many, open_kits, close_kits),
        cmocka_unit_test_setup_teardown(row_operations, open_kits, close_kits),
        cmocka_unit_test_setup_teardown(optimiser, open_kits, close_kits),
        cmocka_unit_test(ranks),
    };

    dtype = kit_dtype(argc, argv);
    if (argc > 1 && strcmp(argv[argc - 1], "bf16") != 0)
        backend = argv[argc - 1];
    kit_require(backend);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
