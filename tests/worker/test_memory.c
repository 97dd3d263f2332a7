/* test_memory.c - the memory planner: what it chooses, that its choices change no bit, and
 * that what it predicts is what a device then holds. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/engine_rig.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "worker/batch.h"
#include "worker/memory.h"
#include "worker/rng.h"

enum { EXAMPLES = 6, VOCAB = 200 };

static const struct tiny_model tiny = {.hidden = 64,
                                       .layers = 3,
                                       .heads = 8,
                                       .kv_heads = 4,
                                       .head_dim = 8,
                                       .intermediate = 172,
                                       .vocab = VOCAB,
                                       .dtype = SAFETENSORS_BF16};

struct data {
    struct example e[EXAMPLES];
    const struct example *p[EXAMPLES];
    int32_t ids[EXAMPLES * 64];
    struct batch *b;
    int nb;
};

/* One micro-batch of pairs with shared prompts. */
static void data_make(struct data *d)
{
    int32_t *at = d->ids;

    *d = (struct data){0};
    for (int i = 0; i < EXAMPLES; i++) {
        struct example *e = &d->e[i];
        *e = (struct example){.ordinal = (uint64_t)i, .prompt = at, .n_prompt = 9 + i};
        e->n_reply[0] = 7 + i % 3;
        e->n_reply[1] = 5 + i;
        e->reply[0] = at + e->n_prompt;
        e->reply[1] = e->reply[0] + e->n_reply[0];
        for (int j = 0; j < e->n_prompt + e->n_reply[0] + e->n_reply[1]; j++)
            *at++ = (int32_t)(rng_philox(3, (uint64_t)i, (uint64_t)j).v[0] % VOCAB);
        d->p[i] = e;
    }
    assert_int_equal(batch_pack(d->p, NULL, EXAMPLES, 600, true, &d->b, &d->nb), 0);
    assert_int_equal(d->nb, 1);
}

static void stir(const struct rig *g)
{
    const size_t bytes = (size_t)g->adapter->n * sizeof(float);
    float *p = malloc(bytes);

    assert_non_null(p);
    for (int64_t i = 0; i < g->adapter->n; i++)
        p[i] = 0.2f * ((float)(rng_philox(4, (uint64_t)i, 0).v[0] >> 8) * 0x1p-24f - 0.5f);
    assert_int_equal(g->ops->copy(g->ctx, g->adapter->p, p, bytes, KN_TO_DEVICE), 0);
    free(p);
}

/* Forward and backward with dropout; the gradient, malloc'ed. */
static float *pass(struct rig *g, const struct data *d)
{
    const size_t bytes = (size_t)g->adapter->n * sizeof(float);
    float coef[600], *grad = malloc(bytes);
    struct err err = {""};

    assert_non_null(grad);
    for (int i = 0; i < 600; i++)
        coef[i] = (float)(i % 7 - 3) / 8;
    assert_int_equal(g->ops->zero(g->ctx, g->adapter->g, bytes), 0);
    if (engine_forward(g->engine, d->b, g->adapter, true, 77, &g->out, &err) < 0 ||
        engine_backward(g->engine, d->b, g->adapter, 77, coef, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(g->ops->copy(g->ctx, grad, g->adapter->g, bytes, KN_TO_HOST), 0);
    assert_int_equal(g->ops->sync(g->ctx), 0);
    return grad;
}

static bool open_rig(struct rig *g, const char *dir, const struct rig_opts *o)
{
    struct rig_opts all = *o;

    all.dir = dir;
    all.nf4 = true;
    all.max_tokens = o->max_tokens ? o->max_tokens : 300;
    if (!rig_open(g, &all))
        return false;
    stir(g);
    return true;
}

/* Activations computed again, and weights dequantised for each product: the same bits. */
static void same_bits(const char *backend, bool half)
{
    struct temp_dir dir;
    struct data d;
    struct rig g;
    float *want = NULL, *logp = NULL;
    size_t bytes = 0;

    temp_dir_make(&dir);
    assert_int_equal(tiny_model_write(&tiny, dir.path), 0);
    data_make(&d);
    const int step = strcmp(backend, "sim") == 0 ? 2 : 1; /* it takes seconds */
    for (int i = 0; i < 5; i += step) {                   /* 0 to 3 layers again, then per use */
        const struct rig_opts o = {.backend = backend,
                                   .bf16 = half,
                                   .dropout = 0.1,
                                   .recompute = i % 4,
                                   .per_use = i == 4};
        float *grad;
        if (!open_rig(&g, dir.path, &o)) {
            rig_close(&g);
            break;
        }
        grad = pass(&g, &d);
        if (i == 0) {
            bytes = (size_t)g.adapter->n * sizeof *grad;
            want = grad;
            logp = malloc((size_t)d.b->n_head * sizeof *logp);
            assert_non_null(logp);
            memcpy(logp, g.out.logp, (size_t)d.b->n_head * sizeof *logp);
        } else {
            assert_memory_equal(g.out.logp, logp, (size_t)d.b->n_head * sizeof *logp);
            assert_memory_equal(grad, want, bytes);
            free(grad);
        }
        rig_close(&g);
    }
    const bool ran = want != NULL;
    free(want);
    free(logp);
    batch_free_all(d.b, d.nb);
    temp_dir_remove(&dir);
    if (!ran)
        skip();
}

static void same_bits_ref(void **state)
{
    (void)state;
    same_bits("ref", false);
}

static void same_bits_cpu(void **state)
{
    (void)state;
    same_bits("cpu", false);
}

static void same_bits_sim(void **state)
{
    (void)state;
    same_bits("sim", false);
}

static void same_bits_sim_bf16(void **state)
{
    (void)state;
    same_bits("sim", true);
}

static size_t free_on(const struct rig *g)
{
    struct kn_info info;

    assert_int_equal(g->ops->info(g->ctx, &info), 0);
    return info.mem_free;
}

/* On a device that only we use: predicted bytes are what is gone, within 5 %. What the
 * context came to hold says that products took no copy of x or dy. */
static void predicted_is_measured(void **state)
{
    struct temp_dir dir;
    struct data d;

    (void)state;
    temp_dir_make(&dir);
    assert_int_equal(tiny_model_write(&tiny, dir.path), 0);
    data_make(&d);
    for (int i = 0; i < 6; i++) {
        const struct rig_opts o = {.backend = "sim",
                                   .bf16 = i & 1,
                                   .per_use = i % 3 == 1,
                                   .dropout = i < 3 ? 0 : 0.1,
                                   .recompute = i % 3 == 2 ? 2 : 0,
                                   .max_tokens = d.b->n_tokens};
        struct engine_opts eo = {.max_tokens = d.b->n_tokens,
                                 .max_head = 600,
                                 .max_seqs = 64,
                                 .max_positions = 256,
                                 .recompute = o.recompute,
                                 .per_use = o.per_use};
        struct engine_plan p;
        struct rig g;
        if (!open_rig(&g, dir.path, &o)) {
            rig_close(&g);
            temp_dir_remove(&dir);
            batch_free_all(d.b, d.nb);
            skip();
        }
        eo.ops = g.ops;
        eo.spec = &g.spec;
        eo.params = g.adapter->n;
        struct kn_info info;
        assert_int_equal(g.ops->info(g.ctx, &info), 0);
        eo.page = info.page; /* CUSIM_PAGE_KB, or 1 */
        assert_true(info.held > 0 && info.held < info.mem_total);
        assert_int_equal(engine_plan_bytes(&eo, &g.model->config, &p), 0);
        const size_t opened = free_on(&g);
        free(pass(&g, &d));
        const size_t context = opened - free_on(&g), copies = d.b->n_tokens * 64 * (o.bf16 ? 2 : 4);
        /* An adapter's p, g, m, v lie there as well. */
        rig_close(&g);
        assert_int_equal(
            g.ops->open(&(struct kn_open){.compute = o.bf16 ? KN_BF16 : KN_F32}, &g.ctx), 0);
        const size_t gone = free_on(&g) - opened + context;
        g.ops->close(g.ctx);
        const size_t each = (size_t)eo.params * sizeof(float);
        const size_t want = p.total + 4 * ((each + eo.page - 1) / eo.page * eo.page);
        if (gone > want || gone + 6 * eo.page < want / 100 * 95) /* the context's six buffers */
            fail_msg("case %d: predicted %zu bytes, %zu are gone", i, want, gone);
        if (context > p.context ||
            (o.dropout == 0 && context > 2 * copies + (eo.page > 1 ? 6 * eo.page : 0)))
            fail_msg("case %d: the context holds %zu bytes, predicted %zu", i, context, p.context);
    }
    batch_free_all(d.b, d.nb);
    temp_dir_remove(&dir);
}

/* ---- what is chosen --------------------------------------------------------------------- */

static const struct model_config mistral = {.hidden = 4096,
                                            .layers = 32,
                                            .heads = 32,
                                            .kv_heads = 8,
                                            .head_dim = 128,
                                            .intermediate = 14336,
                                            .vocab = 32000,
                                            .max_positions = 32768,
                                            .torch_dtype = KN_BF16};

struct choice {
    struct spec spec;
    struct example e[64];
    struct dataset data;
    struct memory_ask ask;
    struct memory_plan plan;
    struct err err;
};

static void choice_make(struct choice *c, const struct kn_ops *ops, bool nf4)
{
    *c = (struct choice){.spec = {.method = SPEC_DPO,
                                  .bf16 = true,
                                  .load_in_4bit = nf4,
                                  .bnb_4bit_use_double_quant = true,
                                  .lora_r = 16,
                                  .train_batch_size = 64,
                                  .num_train_epochs = 1,
                                  .devices = 1}};
    for (int i = 0; i < 64; i++)
        c->e[i] = (struct example){.n_prompt = 150, .n_reply = {280, 280}};
    c->data = (struct dataset){.train = c->e, .n_train = 64};
    c->ask = (struct memory_ask){.spec = &c->spec,
                                 .ops = ops,
                                 .config = &mistral,
                                 .data = &c->data,
                                 .adapter = {.n = 41943040},
                                 .gpu = true};
}

static int choose(struct choice *c, double gib)
{
    c->ask.free = (size_t)(gib * (1 << 30));
    return memory_choose(&c->ask, &c->plan, &c->err);
}

/* More memory never means more time; nothing is planned beyond what there is. */
static void chooses(void **state)
{
    static const double gib[] = {139, 94, 78, 60, 46, 38, 30, 22.5, 20, 18, 15, 11, 9, 7.5, 6.5};
    const struct kn_ops *ops;
    struct choice c;
    int64_t recompute = 0;

    (void)state;
    if (!has_sim)
        skip();
    assert_int_equal(kn_backend("sim", &ops, NULL, 0), 0);
    choice_make(&c, ops, true);
    for (size_t i = 0; i < ARRAY_LEN(gib); i++) {
        if (choose(&c, gib[i]) < 0)
            fail_msg("%g GiB: %s", gib[i], c.err.text);
        assert_true(c.plan.need <= c.ask.free);
        assert_true(c.plan.plan.max_tokens >= 710 && c.plan.plan.max_tokens <= 8192);
        if (c.plan.plan.token_budget == 8192 && !c.plan.per_use) {
            assert_true(c.plan.recompute >= recompute);
            recompute = c.plan.recompute;
        }
    }
    assert_int_equal(choose(&c, 78), 0);
    assert_true(c.plan.recompute == 0 && !c.plan.per_use && c.plan.plan.token_budget == 8192);
    char text[320];
    memory_text(&c.plan, text, sizeof text);
    assert_non_null(strstr(text, "GB of 83.75 GB free"));
    assert_non_null(strstr(text, "all activations kept"));
    c.plan.sharing = 2; /* on the CPU */
    memory_text(&c.plan, text, sizeof text);
    assert_non_null(strstr(text, "GB free (1/2 of this machine's): weights"));
    assert_int_equal(choose(&c, 11), 0);
    assert_true(c.plan.per_use && c.plan.recompute == 0);
    assert_int_equal(choose(&c, 6.5), 0); /* a card for games */
    assert_true(c.plan.per_use && c.plan.recompute > 0);
    c.spec.token_budget = 3000; /* asked for: kept, where it fits */
    assert_int_equal(choose(&c, 78), 0);
    assert_int_equal(c.plan.plan.token_budget, 3000);
}

/* 8 bits a moment: what they save, to the byte, and what the device then holds. */
static void eight_bits(void **state)
{
    const struct moments_shape whole = {.n = (int64_t)1 << 25};
    const struct rig_opts o = {.backend = "sim"};
    struct moments_shape eight = {.optim = SPEC_ADAMW_8BIT};
    const struct kn_ops *ops;
    struct temp_dir dir;
    struct choice c;
    struct err err = {""};
    struct rig g;
    char text[320];

    (void)state;
    if (!has_sim)
        skip();
    assert_int_equal(kn_backend("sim", &ops, NULL, 0), 0);
    choice_make(&c, ops, true);
    moments_shape_add(&eight, whole.n);
    c.ask.adapter = whole;
    assert_int_equal(choose(&c, 78), 0);
    assert_int_equal(c.plan.adapter, (size_t)whole.n * 16);
    c.ask.adapter = eight;
    assert_int_equal(choose(&c, 78), 0);
    assert_int_equal(c.plan.adapter, (size_t)whole.n * 8 + (size_t)whole.n * 17 / 8);
    memory_text(&c.plan, text, sizeof text);
    assert_non_null(strstr(text, "(8-bit moments)"));

    temp_dir_make(&dir);
    assert_int_equal(tiny_model_write(&tiny, dir.path), 0);
    assert_true(open_rig(&g, dir.path, &o));
    g.spec.optim = SPEC_ADAMW_8BIT;
    g.spec.lora_r = 64;
    const size_t before = free_on(&g);
    struct adapter *a = NULL;
    if (lora_new(g.ops, g.ctx, g.model, &g.spec, &a, &err) < 0)
        fail_msg("%s", err.text);
    const size_t gone = before - free_on(&g);
    const size_t want =
        8 * (size_t)a->n + moments_device_bytes(&a->moments.shape); /* p, g and the moments */
    assert_true(a->moments.shape.n_float > 0 && a->moments.shape.n_float < a->n / 2);
    struct kn_info info;
    assert_int_equal(g.ops->info(g.ctx, &info), 0); /* nine buffers, each rounded up */
    if (gone < want || gone > want + 9 * (info.page > 256 ? info.page : 256))
        fail_msg("predicted %zu bytes, %zu are gone", want, gone);
    lora_free(a);
    rig_close(&g);
    temp_dir_remove(&dir);
}

static void refuses(void **state)
{
    const struct kn_ops *ops;
    struct choice c;

    (void)state;
    if (!has_sim)
        skip();
    assert_int_equal(kn_backend("sim", &ops, NULL, 0), 0);
    choice_make(&c, ops, false);
    assert_int_equal(choose(&c, 10), -ENOMEM);
    assert_non_null(strstr(c.err.text, "10240 MiB free"));
    assert_non_null(strstr(c.err.text, "load_in_4bit: true"));
    choice_make(&c, ops, true);
    assert_int_equal(choose(&c, 2), -ENOMEM);
    assert_non_null(strstr(c.err.text, "needs at least"));
    c.spec.token_budget = 200000;
    assert_int_equal(choose(&c, 78), 0);
    assert_int_equal(c.plan.plan.max_tokens, 64 * 710); /* no more than a step has */
    for (int i = 0; i < 64; i++)
        c.e[i].n_prompt = 6000;
    assert_int_equal(choose(&c, 60), -ENOMEM);
    assert_non_null(strstr(c.err.text, "would fit"));
    c.spec.token_budget = 0;
    c.ask.frozen_budget = 200000; /* a checkpoint's, on a smaller device */
    assert_int_equal(choose(&c, 60), -ENOMEM);
    assert_non_null(strstr(c.err.text, "bitwise: false"));
    c.ask.frozen_budget = 100;
    assert_int_equal(choose(&c, 60), -EINVAL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_ref),
        cmocka_unit_test(same_bits_cpu),
        cmocka_unit_test(same_bits_sim),
        cmocka_unit_test(same_bits_sim_bf16),
        cmocka_unit_test(predicted_is_measured),
        cmocka_unit_test(chooses),
        cmocka_unit_test(eight_bits),
        cmocka_unit_test(refuses),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
