/* test_grad.c - every backward operation of ref against central differences, in
 * double: truncation h^2 and rounding 1e-16 / h leave about 1e-9 at h = 1e-5. */
#include "tests/support/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cases.h"

static const double step = 1e-5, allowed = 2e-8;

/* The scalar all gradients are of: sum of u(r, c) * out(r, c). */
static double weigh(const struct kit *k, const struct kn_mat *out, const struct kn_mat *u)
{
    double sum = 0.0;

    for (int64_t r = 0; r < out->rows; r++) {
        for (int64_t c = 0; c < out->cols; c++)
            sum += kit_get(k, out, r, c) * kit_get(k, u, r, c);
    }
    return sum;
}

struct probe {
    struct kit *kit;
    double (*loss)(struct kit *k, void *call);
    void *call;
};

/* The gradient of element i of the doubles at x. */
static double central(const struct probe *p, void *x, int64_t i)
{
    double *v = (double *)x + i, before = *v, up, down;

    *v = before + step;
    up = p->loss(p->kit, p->call);
    *v = before - step;
    down = p->loss(p->kit, p->call);
    *v = before;
    return (up - down) / (2.0 * step);
}

static void near(const char *what, int64_t i, double got, double want)
{
    if (!(fabs(got - want) <= allowed * fmax(1.0, fabs(want))))
        fail_msg("%s[%ld]: %.12g, by differences %.12g", what, (long)i, got, want);
}

/* grad is d loss / d x, less what `before` held. */
static void check_mat(const struct probe *p, const char *what, const struct kn_mat *x,
                      const struct kn_mat *grad, const struct kn_mat *before)
{
    for (int64_t r = 0; r < x->rows; r++) {
        for (int64_t c = 0; c < x->cols; c++) {
            const double old = before ? kit_get(p->kit, before, r, c) : 0.0;
            near(what, r * x->cols + c, kit_get(p->kit, grad, r, c) - old,
                 central(p, x->p, r * x->ld + c));
        }
    }
}

static double linear_loss(struct kit *k, void *call)
{
    struct linear_call *c = call;

    assert_int_equal(k->ops->linear_fwd(k->ctx, &c->fwd), 0);
    return weigh(k, &c->y, &c->dy);
}

static void check_lora(const struct probe *p, const char *what, const float *x, const float *grad,
                       const float *before, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        near(what, i, kit_vec_get(p->kit, grad, i) - kit_vec_get(p->kit, before, i),
             central(p, (void *)(uintptr_t)x, i));
}

static void linear(void **state)
{
    static const struct linear_case cases[] = {
        {.m = 3, .k = 5, .n_parts = 1, .n = {4}},
        {.m = 4,
         .k = 5,
         .n_parts = 1,
         .n = {6},
         .r = {2},
         .n_segs = 1,
         .bias = true,
         .residual = true},
        {.m = 9, .k = 6, .n_parts = 3, .n = {4, 2, 3}, .r = {2, 3, 1}, .n_segs = 2, .add_dx = true},
        {.m = 6, .k = 7, .n_parts = 2, .n = {3, 5}, .r = {2, 0}, .n_segs = 3, .dropout = 0.4f},
        {.m = 5, .k = 70, .n_parts = 1, .n = {3}, .r = {2}, .n_segs = 1, .dropout = 0.25f},
    };
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, "refd", KN_F32, 1));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const struct linear_case *c = &cases[i];
        struct linear_call call = {0};
        struct probe p = {&k, linear_loss, &call};
        struct kn_mat dx0;
        linear_make(&k, c, &call);
        dx0 = kit_mat(&k, c->m, c->k, KN_F32, c->add_dx ? 4 : 0, 0, 1.0);
        linear_loss(&k, &call);
        assert_int_equal(k.ops->linear_bwd(k.ctx, &call.bwd), 0);
        check_mat(&p, "dx", &call.x, &call.dx, &dx0);
        for (int s = 0; s < c->n_segs; s++) {
            for (int j = 0; j < c->n_parts; j++) {
                const struct kn_lora *l = &call.lora[s][j];
                const uint64_t seed = 200 + (uint64_t)(s * 10 + j); /* as cases.c */
                if (l->r == 0)
                    continue;
                check_lora(&p, "da", l->a, l->da, kit_vec(&k, l->r * c->k, seed + 200, 0.5, 0.0),
                           l->r * c->k);
                check_lora(&p, "db", l->b, l->db, kit_vec(&k, c->n[j] * l->r, seed + 300, 0.5, 0.0),
                           c->n[j] * l->r);
            }
        }
        k.ops->weight_close(k.ctx, call.w);
        kit_release(&k, 0);
    }
    kit_close(&k);
}

static double attn_loss(struct kit *k, void *call)
{
    struct attn_call *c = call;

    assert_int_equal(k->ops->attn_fwd(k->ctx, &c->fwd), 0);
    return weigh(k, &c->o, &c->d_o);
}

static void attention(void **state)
{
    static const struct attn_case cases[] = {
        {.n_seqs = 2, .lq = {4, 1}, .lk = {4, 1}, .heads = 1, .kv_heads = 1, .head_dim = 8},
        {.n_seqs = 2, .lq = {3, 2}, .lk = {5, 2}, .heads = 4, .kv_heads = 2, .head_dim = 8},
        {.n_seqs = 1, .lq = {6}, .lk = {7}, .heads = 2, .kv_heads = 1, .head_dim = 16, .window = 3},
    };
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, "refd", KN_F32, 1));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct attn_call call;
        struct probe p = {&k, attn_loss, &call};
        attn_make(&k, &cases[i], &call);
        attn_loss(&k, &call);
        assert_int_equal(k.ops->attn_bwd(k.ctx, &call.bwd), 0);
        check_mat(&p, "dq", &call.q, &call.dq, NULL);
        check_mat(&p, "dk", &call.k, &call.dk, NULL);
        check_mat(&p, "dv", &call.v, &call.dv, NULL);
        kit_release(&k, 0);
    }
    kit_close(&k);
}

struct norm_call {
    struct kn_rmsnorm_fwd fwd;
    struct kn_mat u;
};

static double norm_loss(struct kit *k, void *call)
{
    struct norm_call *c = call;

    assert_int_equal(k->ops->rmsnorm_fwd(k->ctx, &c->fwd), 0);
    return weigh(k, &c->fwd.y, &c->u);
}

static void norm(void **state)
{
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, "refd", KN_F32, 1));
    for (int add = 0; add < 2; add++) {
        struct norm_call call = {.fwd = {.y = kit_mat(&k, 4, 9, KN_F32, 0, 0, 0.0),
                                         .rstd = kit_vec(&k, 4, 0, 0.0, 0.0),
                                         .x = kit_mat(&k, 4, 9, KN_F32, 1, 0, 1.0),
                                         .w = kit_vec(&k, 9, 2, 0.5, 1.0),
                                         .eps = 1e-3f},
                                 .u = kit_mat(&k, 4, 9, KN_F32, 3, 0, 1.0)};
        struct probe p = {&k, norm_loss, &call};
        struct kn_mat dx = kit_mat(&k, 4, 9, KN_F32, 4, 0, 1.0);
        struct kn_mat old = kit_mat(&k, 4, 9, KN_F32, add ? 4 : 0, 0, 1.0);
        norm_loss(&k, &call);
        assert_int_equal(k.ops->rmsnorm_bwd(k.ctx, &(struct kn_rmsnorm_bwd){.dx = dx,
                                                                            .add_dx = add,
                                                                            .dy = call.u,
                                                                            .x = call.fwd.x,
                                                                            .w = call.fwd.w,
                                                                            .rstd = call.fwd.rstd}),
                         0);
        check_mat(&p, "dx", &call.fwd.x, &dx, &old);
    }
    kit_close(&k);
}

struct swiglu_call {
    struct kn_swiglu_fwd fwd;
    struct kn_mat u;
};

static double swiglu_loss(struct kit *k, void *call)
{
    struct swiglu_call *c = call;

    assert_int_equal(k->ops->swiglu_fwd(k->ctx, &c->fwd), 0);
    return weigh(k, &c->fwd.y, &c->u);
}

static void swiglu(void **state)
{
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, "refd", KN_F32, 1));
    struct swiglu_call call = {.fwd = {.y = kit_mat(&k, 3, 7, KN_F32, 0, 0, 0.0),
                                       .gu = kit_mat(&k, 3, 14, KN_F32, 1, 0, 3.0)},
                               .u = kit_mat(&k, 3, 7, KN_F32, 2, 0, 1.0)};
    struct probe p = {&k, swiglu_loss, &call};
    struct kn_mat dgu = kit_mat(&k, 3, 14, KN_F32, 0, 0, 0.0);
    struct kn_mat y = kit_mat(&k, 3, 7, KN_F32, 0, 0, 0.0);
    swiglu_loss(&k, &call);
    assert_int_equal(
        k.ops->swiglu_bwd(
            k.ctx, &(struct kn_swiglu_bwd){.dgu = dgu, .dy = call.u, .gu = call.fwd.gu, .y = y}),
        0);
    for (int64_t r = 0; r < 3; r++) {
        for (int64_t c = 0; c < 7; c++)
            assert_true(kit_get(&k, &y, r, c) == kit_get(&k, &call.fwd.y, r, c));
    }
    check_mat(&p, "dgu", &call.fwd.gu, &dgu, NULL);
    kit_close(&k);
}

struct rope_call {
    struct kn_rope fwd;
    struct kn_mat x, u;
};

static double rope_loss(struct kit *k, void *call)
{
    struct rope_call *c = call;

    memcpy(c->fwd.x.p, c->x.p, (size_t)(c->x.rows * c->x.ld) * sizeof(double));
    assert_int_equal(k->ops->rope(k->ctx, &c->fwd), 0);
    return weigh(k, &c->fwd.x, &c->u);
}

static void rope(void **state)
{
    static const int32_t pos[] = {3, 0, 4};
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, "refd", KN_F32, 1));
    struct rope_call call = {.fwd = {.x = kit_mat(&k, 3, 12, KN_F32, 0, 0, 0.0),
                                     .pos = kit_ints(&k, pos, 3),
                                     .cos_sin = kit_vec(&k, 5 * 6, 1, 1.0, 0.0),
                                     .heads = 2,
                                     .head_dim = 6},
                             .x = kit_mat(&k, 3, 12, KN_F32, 2, 0, 1.0),
                             .u = kit_mat(&k, 3, 12, KN_F32, 3, 0, 1.0)};
    struct probe p = {&k, rope_loss, &call};
    struct kn_rope back = call.fwd;
    back.x = kit_mat(&k, 3, 12, KN_F32, 3, 0, 1.0);
    back.inverse = true;
    assert_int_equal(k.ops->rope(k.ctx, &back), 0);
    check_mat(&p, "dx", &call.x, &back.x, NULL);
    kit_close(&k);
}

struct logprob_call {
    struct kn_logprob fwd;
    struct kn_mat z;
    float *u;
};

static double logprob_loss(struct kit *k, void *call)
{
    struct logprob_call *c = call;
    double sum = 0.0;

    memcpy(c->fwd.z.p, c->z.p, (size_t)(c->z.rows * c->z.ld) * sizeof(double));
    assert_int_equal(k->ops->logprob(k->ctx, &c->fwd), 0);
    for (int64_t r = 0; r < c->z.rows; r++)
        sum += kit_vec_get(k, c->fwd.logp, r) * kit_vec_get(k, c->u, r);
    return sum;
}

static void logprob(void **state)
{
    static const int32_t target[] = {0, 10, 5};
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, "refd", KN_F32, 1));
    struct logprob_call call = {.fwd = {.z = kit_mat(&k, 3, 11, KN_F32, 0, 0, 0.0),
                                        .target = kit_ints(&k, target, 3),
                                        .lse = kit_vec(&k, 3, 0, 0.0, 0.0),
                                        .logp = kit_vec(&k, 3, 0, 0.0, 0.0),
                                        .sum_z = kit_vec(&k, 3, 0, 0.0, 0.0),
                                        .sum_pz = kit_vec(&k, 3, 0, 0.0, 0.0),
                                        .lse2 = kit_vec(&k, 3, 0, 0.0, 0.0),
                                        .grad = true},
                                .z = kit_mat(&k, 3, 11, KN_F32, 1, 0, 4.0),
                                .u = kit_vec(&k, 3, 0, 0.0, 1.0)};
    struct probe p = {&k, logprob_loss, &call};
    struct kn_mat grad = kit_mat(&k, 3, 11, KN_F32, 0, 0, 0.0);
    logprob_loss(&k, &call);
    memcpy(grad.p, call.fwd.z.p, (size_t)(3 * grad.ld) * sizeof(double));
    check_mat(&p, "dz", &call.z, &grad, NULL);
    logprob_loss(&k, &call);
    /* The other sums, spelled out. */
    for (int64_t r = 0; r < 3; r++) {
        double sum = 0.0, sum2 = 0.0, sum_z = 0.0, sum_pz = 0.0;
        for (int64_t c = 0; c < 11; c++) {
            const double z = kit_get(&k, &call.z, r, c);
            sum += exp(z);
            sum2 += exp(2.0 * z);
            sum_z += z;
            sum_pz += exp(z) * z;
        }
        near("lse", r, kit_vec_get(&k, call.fwd.lse, r), log(sum));
        near("lse2", r, kit_vec_get(&k, call.fwd.lse2, r), log(sum2));
        near("sum_z", r, kit_vec_get(&k, call.fwd.sum_z, r), sum_z);
        near("sum_pz", r, kit_vec_get(&k, call.fwd.sum_pz, r), sum_pz / sum);
    }
    kit_close(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear), cmocka_unit_test(attention), cmocka_unit_test(norm),
        cmocka_unit_test(swiglu), cmocka_unit_test(rope),      cmocka_unit_test(logprob),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
