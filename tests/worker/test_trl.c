/* test_trl.c - per-token log-probs of transformers, and 20 steps of LoRA DPO and of
 * QLoRA SFT as TRL's trainers took them (tests/oracle/make_trl.py): losses, gradient
 * norms, rewards. Tolerances: numerics.md 18. */
#include "tests/support/test.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/engine_rig.h"
#include "tests/support/test_data.h"
#include "worker/loss.h"
#include "worker/schedule.h"

enum { BATCH = 4, TOKENS = 256 };

static json_t *fixture(const char *name)
{
    json_error_t why;

    json_t *j = json_load_file(test_data_path(name), 0, &why);
    if (!j)
        fail_msg("%s: %s", name, why.text);
    return j;
}

static double number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    if (!json_is_number(v))
        fail_msg("the fixture has no %s", key);
    return json_number_value(v);
}

static int32_t ids_of(const json_t *list, int32_t *to)
{
    const json_t *v;
    size_t i;

    assert_in_range(json_array_size(list), 1, TOKENS);
    json_array_foreach(list, i, v) to[i] = (int32_t)json_integer_value(v);
    return (int32_t)json_array_size(list);
}

/* ---- log-probs ------------------------------------------------------------------- */

static void check_logp(struct rig *g, const json_t *c)
{
    const json_t *logp = json_object_get(c, "logp"), *v;
    int32_t ids[TOKENS];
    struct example e = {.prompt = ids, .prompt_trained = true};
    const struct example *p = &e;
    struct err err = {""};
    struct batch *b;
    double sum = 0;
    size_t i;
    int nb;

    e.n_prompt = ids_of(json_object_get(c, "ids"), ids);
    assert_int_equal(batch_pack(&p, NULL, 1, 600, true, &b, &nb), 0);
    if (engine_forward(g->engine, b, NULL, false, 0, &g->out, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(b->n_head, json_array_size(logp));
    json_array_foreach(logp, i, v)
    {
        sum += g->out.logp[i];
        assert_true(fabs(g->out.logp[i] - json_number_value(v)) < 2e-4);
    }
    assert_true(fabs(sum - number(c, "sum")) < 1e-4 * fabs(number(c, "sum")));
    batch_free_all(b, nb);
}

static void check_logps(const char *backend)
{
    static const char *const models[] = {"demo", "tiny64", "tiny128"};
    json_t *j = fixture("fixtures/logprobs.json");
    int checked = 0;

    for (size_t m = 0; m < ARRAY_LEN(models); m++) {
        const struct rig_opts o = {.dir = test_data_path(models[m]), .backend = backend};
        struct rig g;
        size_t i;
        json_t *c;
        if (!rig_open(&g, &o)) {
            json_decref(j);
            skip();
        }
        json_array_foreach(j, i, c)
        {
            if (strcmp(json_string_value(json_object_get(c, "model")), models[m]) == 0) {
                check_logp(&g, c);
                checked++;
            }
        }
        rig_close(&g);
    }
    assert_true(checked >= 6);
    json_decref(j);
}

static void test_logps_ref(void **state)
{
    (void)state;
    check_logps("ref");
}

static void test_logps_cpu(void **state)
{
    (void)state;
    check_logps("cpu");
}

/* ---- training -------------------------------------------------------------------- */

struct training {
    struct rig g;
    struct loss_opts loss;
    struct kn_adamw_step step;
    struct kn_sweep *sweep;       /* device */
    struct kn_adamw_step *device; /* device */
    enum spec_schedule schedule;
    double learning_rate;
    int64_t warmup, steps;
    json_t *fixture;
};

struct taken {
    double loss, grad_norm, reward[2], entropy;
};

static bool training_open(struct training *t, const char *name, const char *backend,
                          enum spec_method method)
{
    const bool dpo = method == SPEC_DPO;
    const struct rig_opts o = {.dir = test_data_path("tiny128"),
                               .backend = backend,
                               .threads = 1,
                               .r = 8,
                               .nf4 = !dpo,
                               .dtype = SPEC_DTYPE_F32};
    struct err err = {""};

    *t = (struct training){0};
    if (!rig_open(&t->g, &o))
        return false;
    if (lora_load(t->g.adapter, t->g.model, test_data_path("fixtures/trl"), &err) < 0)
        fail_msg("%s", err.text);
    t->fixture = fixture(name);
    const json_t *s = json_object_get(t->fixture, "settings");
    assert_int_equal(json_integer_value(json_object_get(s, "lora_alpha")), 16);
    t->loss = (struct loss_opts){
        .method = method, .beta = dpo ? number(s, "beta") : 0, .vocab = t->g.model->config.vocab};
    t->learning_rate = number(s, "learning_rate");
    t->warmup = json_integer_value(json_object_get(s, "warmup_steps"));
    t->steps = (int64_t)json_array_size(json_object_get(t->fixture, "log"));
    assert_int_equal(t->steps, 20);
    t->schedule = dpo ? SPEC_COSINE : SPEC_LINEAR;
    t->step = (struct kn_adamw_step){.beta1 = 0.9f,
                                     .beta2 = 0.999f,
                                     .eps = 1e-8f,
                                     .weight_decay = (float)number(s, "weight_decay"),
                                     .max_grad_norm = 1.0f};
    assert_int_equal(t->g.ops->alloc(t->g.ctx, sizeof *t->sweep, (void **)&t->sweep), 0);
    assert_int_equal(t->g.ops->alloc(t->g.ctx, sizeof t->step, (void **)&t->device), 0);
    return true;
}

static void training_close(struct training *t)
{
    t->g.ops->free(t->g.ctx, t->sweep);
    t->g.ops->free(t->g.ctx, t->device);
    json_decref(t->fixture);
    rig_close(&t->g);
}

/* Four rows of the fixture as examples; returns the loss's divisor. */
static double rows_take(const struct training *t, int64_t step, struct example e[BATCH],
                        int32_t ids[BATCH][3][TOKENS])
{
    const bool dpo = t->loss.method == SPEC_DPO;
    double tokens = 0;

    for (int i = 0; i < BATCH; i++) {
        const json_t *row =
            json_array_get(json_object_get(t->fixture, "rows"), (size_t)(step * BATCH + i));
        e[i] = (struct example){.ordinal = (uint64_t)(step * BATCH + i),
                                .prompt = ids[i][0],
                                .reply = {ids[i][1], ids[i][2]}};
        e[i].n_prompt = ids_of(json_object_get(row, "prompt"), ids[i][0]);
        e[i].n_reply[0] = ids_of(json_object_get(row, dpo ? "chosen" : "completion"), ids[i][1]);
        if (dpo)
            e[i].n_reply[1] = ids_of(json_object_get(row, "rejected"), ids[i][2]);
        tokens += e[i].n_reply[0];
    }
    return dpo ? BATCH : tokens;
}

/* The forward and backward of one micro-batch; its slots are added up. */
static void micro_batch(struct training *t, const struct batch *b, struct taken *ret)
{
    struct rig *g = &t->g;
    struct err err = {""};
    float coef[1024], refs[1024];
    const float *ref[BATCH] = {NULL};
    double slots[BATCH * LOSS_SLOTS];

    assert_in_range(b->n_head, 1, ARRAY_LEN(coef));
    if (t->loss.method == SPEC_DPO) {
        assert_int_equal(engine_forward(g->engine, b, NULL, false, 0, &g->out, &err), 0);
        memcpy(refs, g->out.logp, (size_t)b->n_head * sizeof refs[0]);
        for (int64_t h = b->n_head - 1; h >= 0; h--)
            ref[b->head_example[h]] = refs + h;
    }
    if (engine_forward(g->engine, b, g->adapter, true, 0, &g->out, &err) < 0 ||
        loss_batch(&t->loss, b, &g->out, ref, coef, slots, &err) < 0 ||
        engine_backward(g->engine, b, g->adapter, 0, coef, &err) < 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < b->n_examples; i++) {
        const double *s = slots + i * LOSS_SLOTS;
        ret->loss += s[LOSS_SUM] / t->loss.divisor;
        ret->reward[0] += s[LOSS_REWARD_0] / BATCH;
        ret->reward[1] += s[LOSS_REWARD_1] / BATCH;
        ret->entropy += s[LOSS_ENTROPY];
    }
}

static void step_take(struct training *t, int64_t done, struct taken *ret)
{
    static int32_t ids[BATCH][3][TOKENS];
    const struct kn_ops *ops = t->g.ops;
    struct adapter *a = t->g.adapter;
    struct example e[BATCH];
    const struct example *p[BATCH] = {&e[0], &e[1], &e[2], &e[3]};
    struct kn_sweep sweep;
    struct batch *b;
    int nb;

    *ret = (struct taken){0};
    t->loss.divisor = rows_take(t, done, e, ids);
    t->loss.must_be_start = done == 0 && t->loss.method == SPEC_DPO;
    assert_int_equal(ops->zero(t->g.ctx, a->g, (size_t)a->n * sizeof(float)), 0);
    assert_int_equal(batch_pack(p, NULL, BATCH, 400, true, &b, &nb), 0);
    for (int i = 0; i < nb; i++)
        micro_batch(t, &b[i], ret);
    batch_free_all(b, nb);

    t->step.lr =
        (float)(t->learning_rate * schedule_factor(t->schedule, done, t->warmup, t->steps));
    t->step.bias1 = (float)(1 - pow(0.9, (double)(done + 1)));
    t->step.bias2 = (float)(1 - pow(0.999, (double)(done + 1)));
    assert_int_equal(ops->copy(t->g.ctx, t->device, &t->step, sizeof t->step, KN_TO_DEVICE), 0);
    assert_int_equal(ops->grad_sweep(t->g.ctx, &(struct kn_grad_sweep){a->g, a->n, t->sweep}), 0);
    assert_int_equal(moments_update(ops, t->g.ctx, &a->moments, a->g, t->sweep, t->device), 0);
    assert_int_equal(ops->copy(t->g.ctx, &sweep, t->sweep, sizeof sweep, KN_TO_HOST), 0);
    assert_int_equal(ops->sync(t->g.ctx), 0);
    assert_int_equal(sweep.nonfinite, 0);
    ret->grad_norm = sqrt(sweep.sum_sq);
}

static void expect_near(double got, double want, double relative, int64_t step, const char *what)
{
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("step %lld: %s is %.8g, TRL's %.8g", (long long)step + 1, what, got, want);
}

static void train(const char *name, const char *backend, enum spec_method method, int64_t steps)
{
    struct training t;
    struct taken got;

    if (!training_open(&t, name, backend, method))
        skip();
    for (int64_t i = 0; i < steps; i++) {
        const json_t *log = json_array_get(json_object_get(t.fixture, "log"), (size_t)i);
        step_take(&t, i, &got);
        expect_near(t.step.lr, number(log, "learning_rate"), 1e-6, i, "learning_rate");
        expect_near(got.loss, number(log, "loss"), 1e-3, i, "loss");
        expect_near(got.grad_norm, number(log, "grad_norm"), 1e-3, i, "grad_norm");
        if (method == SPEC_DPO) {
            const double margin = number(log, "rewards/margins");
            assert_true(fabs(got.reward[0] - got.reward[1] - margin) < 1e-3 * (0.1 + margin));
        }
    }
    training_close(&t);
}

static void test_dpo_ref(void **state)
{
    (void)state;
    train("fixtures/trl/dpo.json", "ref", SPEC_DPO, 2);
}

static void test_dpo_cpu(void **state)
{
    (void)state;
    train("fixtures/trl/dpo.json", "cpu", SPEC_DPO, 20);
}

static void test_sft_ref(void **state)
{
    (void)state;
    train("fixtures/trl/sft.json", "ref", SPEC_SFT, 1);
}

static void test_sft_cpu(void **state)
{
    (void)state;
    train("fixtures/trl/sft.json", "cpu", SPEC_SFT, 20);
}

/* The CUDA sources over the simulator: skipped where the build has no CUDA headers. */
static void test_dpo_sim(void **state)
{
    (void)state;
    train("fixtures/trl/dpo.json", "sim", SPEC_DPO, 2);
}

static void test_sft_sim(void **state)
{
    (void)state;
    train("fixtures/trl/sft.json", "sim", SPEC_SFT, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logps_ref), cmocka_unit_test(test_logps_cpu),
        cmocka_unit_test(test_dpo_ref),   cmocka_unit_test(test_dpo_cpu),
        cmocka_unit_test(test_sft_ref),   cmocka_unit_test(test_sft_cpu),
        cmocka_unit_test(test_dpo_sim),   cmocka_unit_test(test_sft_sim),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
