/* test_engine.c - the whole model: gradients by finite differences, and bits that do
 * not depend on what shares the batch. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/engine_rig.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "worker/engine.h"
#include "worker/rng.h"

static float draw(uint64_t key, uint64_t i)
{
    return ((float)(rng_philox(key, i, 0).v[0] >> 8) + 0.5f) * 0x1p-23f - 1.0f;
}

static float *params_get(const struct rig *g, const float *from)
{
    float *p = malloc((size_t)g->adapter->n * sizeof *p);

    assert_non_null(p);
    assert_int_equal(g->ops->copy(g->ctx, p, from, (size_t)g->adapter->n * sizeof *p, KN_TO_HOST),
                     0);
    assert_int_equal(g->ops->sync(g->ctx), 0);
    return p;
}

static void params_set(const struct rig *g, const float *p)
{
    assert_int_equal(
        g->ops->copy(g->ctx, g->adapter->p, p, (size_t)g->adapter->n * sizeof *p, KN_TO_DEVICE), 0);
    assert_int_equal(g->ops->sync(g->ctx), 0);
}

/* B != 0, as after some training. */
static void adapter_stir(const struct rig *g)
{
    float *p = params_get(g, g->adapter->p);

    for (int i = 0; i < g->adapter->n_modules; i++) {
        const struct lora_module *m = &g->adapter->modules[i];
        for (int64_t j = 0; j < m->n * g->adapter->r; j++)
            p[m->b_off + j] = 0.1f * draw(99, (uint64_t)(m->b_off + j));
    }
    params_set(g, p);
    free(p);
}

/* ---- data ------------------------------------------------------------------------ */

enum { EXAMPLES = 12 };

struct data {
    struct example e[EXAMPLES];
    const struct example *p[EXAMPLES];
    int32_t ids[EXAMPLES * 3 * 64];
};

static void data_make(struct data *d, int32_t vocab, int n, int longest)
{
    int32_t *at = d->ids;

    *d = (struct data){0};
    for (int i = 0; i < n; i++) {
        struct example *e = &d->e[i];
        const struct kn_philox r = rng_philox(5, (uint64_t)i, 1);
        e->ordinal = (uint64_t)i * 3 + 1;
        e->n_prompt = 1 + (int32_t)(r.v[0] % (uint32_t)longest);
        e->n_reply[0] = 1 + (int32_t)(r.v[1] % (uint32_t)longest);
        e->n_reply[1] = 1 + (int32_t)(r.v[2] % (uint32_t)longest);
        e->prompt = at;
        e->reply[0] = at + e->n_prompt;
        e->reply[1] = e->reply[0] + e->n_reply[0];
        for (int32_t j = 0; j < e->n_prompt + e->n_reply[0] + e->n_reply[1]; j++)
            *at++ = (int32_t)(rng_philox(6, (uint64_t)i, (uint64_t)j).v[0] % (uint32_t)vocab);
        d->p[i] = e;
    }
}

/* Log-probs by (example, half, token): what must not depend on the packing. */
struct numbers {
    float logp[EXAMPLES][2][64];
    float lse[EXAMPLES][2][64];
};

static void collect(const struct data *d, const struct batch *b, const struct head_out *out,
                    struct numbers *n)
{
    for (int64_t i = 0; i < b->n_head; i++) {
        const int64_t at = b->examples[b->head_example[i]] - d->e;
        n->logp[at][b->head_half[i]][b->head_index[i]] = out->logp[i];
        n->lse[at][b->head_half[i]][b->head_index[i]] = out->lse[i];
    }
}

static void run_packed(struct rig *g, const struct data *d, const struct example *const *examples,
                       int count, int64_t budget, bool share, const struct adapter *a, bool keep,
                       struct numbers *n)
{
    struct err err = {""};
    struct batch *b;
    int nb;

    assert_int_equal(batch_pack(examples, NULL, count, budget, share, &b, &nb), 0);
    for (int i = 0; i < nb; i++) {
        if (engine_forward(g->engine, &b[i], a, keep, 0, &g->out, &err) < 0)
            fail_msg("%s", err.text);
        collect(d, &b[i], &g->out, n);
    }
    batch_free_all(b, nb);
}

/* ---- gradients --------------------------------------------------------------------- */

static const struct tiny_model tiny = {.hidden = 24,
                                       .layers = 2,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 8,
                                       .intermediate = 20,
                                       .vocab = 40,
                                       .dtype = SAFETENSORS_F32,
                                       .scale = 1.5f};

static double objective(struct rig *g, const struct batch *b, const float *coef, uint64_t drop)
{
    struct err err = {""};
    double sum = 0;

    if (engine_forward(g->engine, b, g->adapter, true, drop, &g->out, &err) < 0)
        fail_msg("%s", err.text);
    for (int64_t i = 0; i < b->n_head; i++)
        sum += (double)coef[i] * g->out.logp[i];
    return sum;
}

static float *gradient(struct rig *g, const struct batch *b, const float *coef, uint64_t drop)
{
    struct err err = {""};

    assert_int_equal(g->ops->zero(g->ctx, g->adapter->g, (size_t)g->adapter->n * sizeof(float)), 0);
    (void)objective(g, b, coef, drop);
    if (engine_backward(g->engine, b, g->adapter, drop, coef, &err) < 0)
        fail_msg("%s", err.text);
    /* Once only: the pass used its activations up. */
    assert_int_equal(engine_backward(g->engine, b, g->adapter, drop, coef, &err), -EINVAL);
    return params_get(g, g->adapter->g);
}

/* Along a random direction in each module's A and B apart. */
static void check_directions(struct rig *g, const struct batch *b, const float *coef, uint64_t drop)
{
    const float step = 1e-2f;
    float *p = params_get(g, g->adapter->p), *grad = gradient(g, b, coef, drop);
    float *moved = malloc((size_t)g->adapter->n * sizeof *moved);

    assert_non_null(moved);
    for (int i = 0; i < 2 * g->adapter->n_modules; i++) {
        const struct lora_module *m = &g->adapter->modules[i / 2];
        const int64_t off = i % 2 ? m->b_off : m->a_off;
        const int64_t n = g->adapter->r * (i % 2 ? m->n : m->k);
        double along = 0, f[2], norm = 0;
        for (int64_t j = 0; j < n; j++) {
            along += (double)grad[off + j] * draw(3, (uint64_t)(off + j));
            norm += (double)grad[off + j] * grad[off + j];
        }
        for (int s = 0; s < 2; s++) {
            memcpy(moved, p, (size_t)g->adapter->n * sizeof *p);
            for (int64_t j = 0; j < n; j++)
                moved[off + j] += (s ? step : -step) * draw(3, (uint64_t)(off + j));
            params_set(g, moved);
            f[s] = objective(g, b, coef, drop);
        }
        const double numeric = (f[1] - f[0]) / (2.0 * (double)step);
        if (!(fabs(numeric - along) < 3e-3 + 4e-3 * sqrt(norm)))
            fail_msg("layer %d %s %c: numeric %.6f, backward %.6f (norm %.6f)", m->layer,
                     lora_target_name(m->target), i % 2 ? 'B' : 'A', numeric, along, sqrt(norm));
    }
    params_set(g, p);
    free(moved);
    free(grad);
    free(p);
}

static void gradients(const char *backend, double dropout, const char *only)
{
    struct temp_dir dir;
    struct data d;
    struct rig g;
    struct batch *b;
    float coef[600];
    int nb;

    temp_dir_make(&dir);
    assert_int_equal(tiny_model_write(&tiny, dir.path), 0);
    if (!rig_open(&g, &(struct rig_opts){
                          .dir = dir.path, .backend = backend, .dropout = dropout, .only = only})) {
        temp_dir_remove(&dir);
        skip();
    }
    adapter_stir(&g);
    data_make(&d, tiny.vocab, 4, 9);
    for (int i = 0; i < 600; i++)
        coef[i] = draw(12, (uint64_t)i);
    for (int share = 0; share < 2; share++) {
        assert_int_equal(batch_pack(d.p, NULL, 4, 500, share, &b, &nb), 0);
        assert_int_equal(nb, 1);
        check_directions(&g, b, coef, dropout > 0 ? 1234 : 0);
        batch_free_all(b, nb);
    }
    rig_close(&g);
    temp_dir_remove(&dir);
}

static void test_gradients_ref(void **state)
{
    (void)state;
    gradients("ref", 0, NULL);
    gradients("ref", 0, "layers.1.self_attn.o_proj");
    gradients("ref", 0, "layers.1.mlp.down_proj");
    gradients("ref", 0, "layers.1.self_attn.k_proj");
    gradients("ref", 0, "layers.1.mlp.gate_proj");
}

static void test_gradients_dropout(void **state)
{
    (void)state;
    gradients("ref", 0.3, NULL);
}

static void test_gradients_cpu(void **state)
{
    (void)state;
    gradients("cpu", 0, NULL);
    gradients("cpu", 0.3, NULL);
}

/* Accumulation: two backward passes add up, micro-batches sum to the whole. */
static void micro_batches(const char *backend)
{
    struct temp_dir dir;
    struct data d;
    struct rig g;
    struct err err = {""};
    struct batch *b;
    float coef[600];
    double worst = 0, norm = 0;
    int nb;

    temp_dir_make(&dir);
    assert_int_equal(tiny_model_write(&tiny, dir.path), 0);
    if (!rig_open(&g, &(struct rig_opts){.dir = dir.path, .backend = backend})) {
        temp_dir_remove(&dir);
        skip();
    }
    adapter_stir(&g);
    data_make(&d, tiny.vocab, 6, 9);
    for (int i = 0; i < 600; i++)
        coef[i] = 0.5f;
    assert_int_equal(batch_pack(d.p, NULL, 6, 500, true, &b, &nb), 0);
    float *whole = gradient(&g, b, coef, 0);
    batch_free_all(b, nb);
    assert_int_equal(g.ops->zero(g.ctx, g.adapter->g, (size_t)g.adapter->n * sizeof(float)), 0);
    assert_int_equal(batch_pack(d.p, NULL, 6, 30, true, &b, &nb), 0);
    assert_true(nb > 2);
    for (int i = 0; i < nb; i++) {
        (void)objective(&g, &b[i], coef, 0);
        assert_int_equal(engine_backward(g.engine, &b[i], g.adapter, 0, coef, &err), 0);
    }
    batch_free_all(b, nb);
    float *parts = params_get(&g, g.adapter->g);
    for (int64_t i = 0; i < g.adapter->n; i++) {
        worst = fmax(worst, fabs((double)whole[i] - parts[i]));
        norm += (double)whole[i] * whole[i];
    }
    assert_true(norm > 0 && worst < 1e-5 * sqrt(norm));
    free(whole);
    free(parts);
    rig_close(&g);
    temp_dir_remove(&dir);
}

static void test_micro_batches(void **state)
{
    (void)state;
    micro_batches("ref");
}

static void test_micro_batches_cpu(void **state)
{
    (void)state;
    micro_batches("cpu");
}

/* ---- batch invariance ---------------------------------------------------------------- */

static void expect_same(const struct numbers *a, const struct numbers *b, const char *what)
{
    if (memcmp(a, b, sizeof *a) != 0)
        fail_msg("%s changed bits", what);
}

/* adapter: 0 off, 1 with B = 0, 2 trained. */
static void invariance(const struct rig_opts *base, int packs)
{
    struct data d;
    static struct numbers want[3], got;

    for (int threads = 1; threads <= 2; threads++) {
        struct rig_opts o = *base;
        struct rig g;
        o.threads = threads;
        o.max_tokens = 2000;
        if (!rig_open(&g, &o))
            skip();
        data_make(&d, (int32_t)g.model->config.vocab, EXAMPLES, 24);
        for (int mode = 0; mode < 3; mode++) {
            const struct adapter *a = mode ? g.adapter : NULL;
            if (mode == 2)
                adapter_stir(&g);
            if (threads == 1) {
                memset(&want[mode], 0, sizeof want[mode]);
                for (int i = 0; i < EXAMPLES; i++) /* each one alone, nothing shared */
                    run_packed(&g, &d, &d.p[i], 1, 1, false, a, false, &want[mode]);
            }
            for (int k = 0; k < packs; k++) {
                const struct kn_philox r = rng_philox(11, (uint64_t)k, (uint64_t)mode);
                const struct example *order[EXAMPLES];
                memcpy(order, d.p, sizeof order);
                for (int i = EXAMPLES - 1; i > 0; i--) {
                    const int j = (int)(rng_philox(13, (uint64_t)k, (uint64_t)i).v[0] % (i + 1));
                    const struct example *t = order[i];
                    order[i] = order[j];
                    order[j] = t;
                }
                memset(&got, 0, sizeof got);
                run_packed(&g, &d, order, EXAMPLES, 1 + r.v[0] % 400, r.v[1] & 1, a, r.v[2] & 1,
                           &got);
                expect_same(&want[mode], &got, "packing");
            }
        }
        rig_close(&g);
    }
    expect_same(&want[0], &want[1], "an adapter with B = 0");
    assert_memory_not_equal(&want[0], &want[2], sizeof want[0]);
}

static void invariance_on(const char *backend, bool half, int packs)
{
    const struct tiny_model shapes[] = {
        tiny,
        {.hidden = 64,
         .layers = 2,
         .heads = 8,
         .kv_heads = 4,
         .head_dim = 8,
         .intermediate = 172,
         .vocab = 200,
         .dtype = SAFETENSORS_BF16,
         .tied = true},
    };
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        struct temp_dir dir;
        struct rig g;
        temp_dir_make(&dir);
        assert_int_equal(tiny_model_write(&shapes[i], dir.path), 0);
        const struct rig_opts o = {.dir = dir.path, .backend = backend, .bf16 = half, .nf4 = i > 0};
        const bool have = rig_open(&g, &o);
        rig_close(&g);
        if (have)
            invariance(&o, packs);
        temp_dir_remove(&dir);
        if (!have)
            skip();
    }
}

static void test_invariance_ref(void **state)
{
    (void)state;
    invariance_on("ref", false, 1);
}

static void test_invariance_cpu(void **state)
{
    (void)state;
    invariance_on("cpu", false, 17);
}

static void test_invariance_cpu_bf16(void **state)
{
    (void)state;
    invariance_on("cpu", true, 4);
}

static void test_invariance_sim(void **state)
{
    (void)state;
    invariance_on("sim", false, 1);
}

static void test_invariance_sim_bf16(void **state)
{
    (void)state;
    invariance_on("sim", true, 1);
}

/* ---- cpu against ref ------------------------------------------------------------------- */

static void test_cpu_is_ref(void **state)
{
    struct temp_dir dir;
    struct data d;
    struct rig g[2];
    float coef[600];

    (void)state;
    temp_dir_make(&dir);
    assert_int_equal(tiny_model_write(&tiny, dir.path), 0);
    if (!rig_open(&g[1], &(struct rig_opts){.dir = dir.path, .backend = "cpu", .threads = 2})) {
        temp_dir_remove(&dir);
        skip();
    }
    assert_true(rig_open(&g[0], &(struct rig_opts){.dir = dir.path, .backend = "ref"}));
    data_make(&d, tiny.vocab, 8, 20);
    for (int i = 0; i < 600; i++)
        coef[i] = draw(12, (uint64_t)i);
    float *grad[2];
    for (int k = 0; k < 2; k++) {
        struct batch *b;
        int nb;
        adapter_stir(&g[k]);
        assert_int_equal(batch_pack(d.p, NULL, 8, 600, true, &b, &nb), 0);
        assert_int_equal(nb, 1);
        grad[k] = gradient(&g[k], b, coef, 0);
        if (k == 1)
            for (int64_t i = 0; i < b->n_head; i++)
                assert_true(fabsf(g[0].out.logp[i] - g[1].out.logp[i]) < 2e-5f);
        batch_free_all(b, nb);
    }
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < g[0].adapter->n; i++) {
        diff += ((double)grad[0][i] - grad[1][i]) * ((double)grad[0][i] - grad[1][i]);
        norm += (double)grad[0][i] * grad[0][i];
    }
    assert_true(norm > 0 && sqrt(diff) < 2e-5 * sqrt(norm));
    for (int k = 0; k < 2; k++) {
        free(grad[k]);
        rig_close(&g[k]);
    }
    temp_dir_remove(&dir);
}

/* ---- the plan and refusals ---------------------------------------------------------------- */

static void test_plan_and_refusals(void **state)
{
    struct temp_dir dir;
    struct rig g;
    struct err err = {""};
    struct engine_plan p;
    int32_t id = 0, pos = 0;
    uint64_t key = 0;
    struct batch_seq seq = {0, 1, 0, 0};
    struct batch b = {
        .n_tokens = 1, .ids = &id, .pos = &pos, .row_key = &key, .n_seqs = 1, .seqs = &seq};

    (void)state;
    temp_dir_make(&dir);
    assert_int_equal(tiny_model_write(&tiny, dir.path), 0);
    assert_true(rig_open(&g, &(struct rig_opts){.dir = dir.path, .backend = "ref"}));
    struct engine_opts o = {.ops = g.ops,
                            .ctx = g.ctx,
                            .model = g.model,
                            .spec = &g.spec,
                            .max_tokens = 600,
                            .max_head = 600,
                            .max_seqs = 64,
                            .max_positions = 256};
    assert_int_equal(engine_plan_bytes(&o, &g.model->config, &p), 0);
    assert_int_equal(p.total, engine_bytes(g.engine));
    assert_int_equal(p.total, p.weights + p.tables + p.activations + p.scratch + p.context);
    struct engine *none = NULL;
    o.max_tokens = 1 << 29;
    assert_int_equal(engine_open(&o, &none, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "MiB free"));
    o.max_tokens = 0;
    assert_int_equal(engine_plan_bytes(&o, &g.model->config, &p), -EINVAL);

    assert_int_equal(engine_forward(g.engine, &b, NULL, false, 0, &g.out, &err), 0);
    assert_int_equal(engine_backward(g.engine, &b, g.adapter, 0, NULL, &err), -EINVAL);
    id = tiny.vocab;
    assert_int_equal(engine_forward(g.engine, &b, NULL, false, 0, &g.out, &err), -EINVAL);
    id = 0;
    pos = 256;
    assert_int_equal(engine_forward(g.engine, &b, NULL, false, 0, &g.out, &err), -EINVAL);
    pos = 0;
    seq.rows = 2;
    assert_int_equal(engine_forward(g.engine, &b, NULL, false, 0, &g.out, &err), -EINVAL);
    rig_close(&g);
    temp_dir_remove(&dir);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_and_refusals),   cmocka_unit_test(test_gradients_ref),
        cmocka_unit_test(test_gradients_dropout),   cmocka_unit_test(test_gradients_cpu),
        cmocka_unit_test(test_micro_batches),       cmocka_unit_test(test_micro_batches_cpu),
        cmocka_unit_test(test_invariance_ref),      cmocka_unit_test(test_invariance_cpu),
        cmocka_unit_test(test_invariance_cpu_bf16), cmocka_unit_test(test_invariance_sim),
        cmocka_unit_test(test_invariance_sim_bf16), cmocka_unit_test(test_cpu_is_ref),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
