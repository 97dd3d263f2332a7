/* test_step.c - optimizer steps: TRL's own numbers, the same on any number of ranks and
 * any token budget, and loud refusals. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/example_set.h"
#include "tests/support/shelf.h"
#include "tests/support/test_data.h"
#include "worker/evaluate.h"
#include "worker/link.h"
#include "worker/step.h"

enum { STEPS = 20, BATCH = 4 };

static const char *backend = "ref";
static char tiny64[1024], tiny128[1024], trl_dir[1024];

static void within(const char *what, int step, double got, double want, double allowed)
{
    if (!(fabs(got - want) <= allowed))
        fail_msg("step %d: %s is %.9g, TRL has %.9g", step, what, got, want);
}

static void close_to(const char *what, int step, double got, double want, double tolerance)
{
    within(what, step, got, want, tolerance * fmax(fabs(want), 1e-3));
}

/* ---- against TRL ---- */

static json_t *fixture(const char *name)
{
    char path[1100];
    json_error_t e;
    json_t *o;

    snprintf(path, sizeof path, "%s/%s", trl_dir, name);
    o = json_load_file(path, 0, &e);
    if (o == NULL)
        fail_msg("%s: %s", path, e.text);
    return o;
}

static struct spec spec_of(const json_t *settings, enum spec_method method)
{
    const char *kind = json_string_value(json_object_get(settings, "lr_scheduler_type"));

    return (struct spec){
        .method = method,
        .model_name_or_path = tiny128,
        .model_dir = tiny128,
        .model_revision = (char *)"",
        .dtype = SPEC_DTYPE_F32,
        .optim = json_object_get(settings, "optim") ? SPEC_ADAMW_8BIT : SPEC_ADAMW_TORCH,
        .load_in_4bit = json_object_get(settings, "quant") != NULL,
        .bnb_4bit_quant_type = SPEC_NF4,
        .bnb_4bit_use_double_quant = true,
        .lora_r = (int)json_integer_value(json_object_get(settings, "r")),
        .lora_alpha = (int)json_integer_value(json_object_get(settings, "lora_alpha")),
        .lora_all_linear = true,
        .beta = 0.1,
        .disable_dropout = true,
        .learning_rate = json_number_value(json_object_get(settings, "learning_rate")),
        .lr_scheduler_type = strcmp(kind, "cosine") == 0 ? SPEC_COSINE : SPEC_LINEAR,
        .warmup_steps = json_integer_value(json_object_get(settings, "warmup_steps")),
        .weight_decay = json_number_value(json_object_get(settings, "weight_decay")),
        .max_grad_norm = 1.0,
        .adam_beta1 = 0.9,
        .adam_beta2 = 0.999,
        .adam_epsilon = 1e-8,
        .max_steps = STEPS,
        .train_batch_size = BATCH,
        .seed = 1,
        .data_seed = 1,
    };
}

/* A reward is the difference of two log-probs: with 8 bits it is held to what they allow. */
static double allowed(const char *key, double want, enum spec_optim optim, double tolerance)
{
    const bool reward = optim == SPEC_ADAMW_8BIT && strncmp(key, "rewards/", 8) == 0;

    return strcmp(key, "learning_rate") == 0 ? 1e-9 * want
                                             : tolerance * fmax(fabs(want), reward ? 0.1 : 1e-3);
}

/* Every value that TRL logs and we report, by name. */
static void compare_row(int step, const struct spec *spec, const struct step_result *s,
                        int64_t num_tokens, const json_t *log, double tolerance)
{
    struct spool_row *row = calloc(1, sizeof *row);
    const char *key;
    json_t *v;
    int compared = 0;

    metrics_row(row, spec->method, "", s->v);
    metrics_put(row, "", "grad_norm", s->grad_norm);
    metrics_put(row, "", "learning_rate", s->learning_rate);
    metrics_put(row, "", "num_tokens", (double)num_tokens);
    json_object_foreach((json_t *)log, key, v)
    {
        const double got = metrics_get(row, key);
        if (isnan(got))
            continue;
        const double want = json_number_value(v);
        within(key, step, got, want, allowed(key, want, spec->optim, tolerance));
        compared++;
    }
    assert_true(compared >= (spec->method == SPEC_DPO ? 14 : 6));
    free(row);
}

/* start_of() of tests/oracle/make_trl.py: A by a few integers, B = 0. */
static void start_8bit(struct trainer *t)
{
    const struct adapter *a = t->adapter;
    float *image = malloc(trainer_state_bytes(t));
    struct err err = {""};

    assert_int_equal(trainer_state_get(t, image, &err), 0);
    for (int k = 0; k < a->n_modules; k++) {
        const struct lora_module *m = &a->modules[k];
        const float bound = (float)pow((double)m->k, -0.5);
        for (int64_t i = 0; i < a->r * m->k; i++) {
            const uint32_t u = (uint32_t)i * 2654435761u;
            image[m->a_off + i] = ((float)(u >> 8) * 0x1p-23f - 1.0f) * bound;
        }
    }
    assert_int_equal(trainer_state_set(t, image, &err), 0);
    free(image);
}

/* name: the rows' fixture; run: that of the log and the settings. */
static void like_trl_within(const char *name, const char *run, const char *key,
                            enum spec_method method, double tolerance)
{
    json_t *o = fixture(name), *ran = fixture(run);
    const json_t *log = json_object_get(ran, key);
    struct spec spec = spec_of(json_object_get(ran, "settings"), method);
    struct dataset data;
    struct trainer t;
    struct err err = {""};
    int64_t num_tokens = 0;

    example_set_of(json_object_get(o, "rows"), &data);
    if (trainer_open(&t, &(struct trainer_opts){&spec, backend, 1, NULL, &data}, &err) < 0 ||
        trainer_plan(&t, 0, &err) < 0)
        fail_msg("%s", err.text);
    if (spec.optim == SPEC_ADAMW_8BIT)
        start_8bit(&t);
    else if (lora_load(t.adapter, t.model, trl_dir, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(t.plan.steps, STEPS);
    for (int step = 0; step < STEPS; step++) {
        uint32_t idx[BATCH];
        struct step_result s;

        for (uint32_t i = 0; i < BATCH; i++)
            idx[i] = (uint32_t)step * BATCH + i; /* sequential: as the fixture was made */
        if (step_run_on(&t, step, idx, BATCH, 0, step == 0, &s, &err) < 0)
            fail_msg("%s", err.text);
        num_tokens += s.num_tokens;
        compare_row(step + 1, &spec, &s, num_tokens, json_array_get(log, (size_t)step), tolerance);
        if (step == 0 && method == SPEC_DPO)
            assert_true(s.v[METRIC_LOSS] == M_LN2);
    }
    trainer_close(&t);
    example_set_free(&data);
    json_decref(o);
    json_decref(ran);
}

static void like_trl(const char *name, enum spec_method method)
{
    like_trl_within(name, name, "log", method, 1e-3);
}

static void lora_dpo_like_trl(void **state)
{
    (void)state;
    like_trl("dpo.json", SPEC_DPO);
}

static void qlora_sft_like_trl(void **state)
{
    (void)state;
    like_trl("sft.json", SPEC_SFT);
}

/* bitsandbytes' 8-bit AdamW on the CPU, with the quantisation of its CUDA kernel, which is
 * ours (kernels.h): as near as with float32 moments, though a gradient's last bits decide which
 * of two codes a moment gets. And as its CPU backend quantises, by a coarser table. */
static void lora_dpo_8bit_like_trl(void **state)
{
    (void)state;
    like_trl_within("dpo.json", "dpo_8bit.json", "nearest", SPEC_DPO, 1e-3);
    like_trl_within("dpo.json", "dpo_8bit.json", "log", SPEC_DPO, 2e-3);
}

static void lora_sft_8bit_like_trl(void **state)
{
    (void)state;
    like_trl_within("sft.json", "sft_8bit.json", "nearest", SPEC_SFT, 1e-3);
    like_trl_within("sft.json", "sft_8bit.json", "log", SPEC_SFT, 2e-3);
}

/* ---- ranks ---- */

struct gang {
    const struct spec *spec;
    const struct dataset *data;
    uint32_t ranks;
    const char *coll;
    void *local;
    struct shelf shelf;
    unsigned told[LIMIT_RANKS];
    int steps;
    /* out */
    struct step_result results[LIMIT_RANKS][STEPS];
    double eval[LIMIT_RANKS][METRICS];
    char *image[LIMIT_RANKS];
    size_t bytes;
    char error[1100];
};

struct member {
    struct gang *g;
    uint32_t rank;
};

static void *rank_main(void *arg)
{
    struct member *m = arg;
    struct gang *g = m->g;
    const struct coll_store store = {shelf_put, shelf_get, &g->shelf};
    struct coll_opts co = {.backend = g->coll,
                           .rank = m->rank,
                           .ranks = g->ranks,
                           .local = g->local,
                           .store = &store,
                           .timeout_ms = 60000};
    struct coll *c = NULL;
    struct trainer t = {0};
    struct err err = {""};
    int r = coll_open(&co, &c, &err);

    if (r == 0)
        r = trainer_open(&t, &(struct trainer_opts){g->spec, backend, 1, c, g->data}, &err);
    if (r == 0)
        r = trainer_plan(&t, 0, &err);
    for (int step = 0; r == 0 && step < g->steps; step++)
        r = step_run(&t, step, step == 1 ? g->told[m->rank] : 0, step == 0,
                     &g->results[m->rank][step], &err);
    if (r == 0 && t.plan.n_eval > 0)
        r = evaluate_run(&t, t.plan.n_eval, g->eval[m->rank], &err);
    if (r == 0) {
        if (m->rank == 0)
            g->bytes = trainer_state_bytes(&t);
        g->image[m->rank] = malloc(trainer_state_bytes(&t));
        r = trainer_state_get(&t, g->image[m->rank], &err);
    }
    if (r < 0)
        snprintf(g->error, sizeof g->error, "rank %u: %s", m->rank, err.text);
    trainer_close(&t);
    coll_close(c);
    return NULL;
}

static struct gang *gang_run(const char *coll, const struct spec *spec, const struct dataset *data,
                             uint32_t ranks, int steps, int told)
{
    struct gang *g = calloc(1, sizeof *g);
    struct member m[LIMIT_RANKS];
    pthread_t th[LIMIT_RANKS];

    *g = (struct gang){
        .coll = coll,
        .spec = spec,
        .data = data,
        .ranks = ranks,
        .steps = steps,
        .local = coll_local_new(ranks),
    };
    pthread_mutex_init(&g->shelf.mutex, NULL);
    pthread_cond_init(&g->shelf.changed, NULL);
    if (told >= 0)
        g->told[told] = LINK_STOP;
    for (uint32_t r = 0; r < ranks; r++) {
        m[r] = (struct member){g, r};
        assert_int_equal(pthread_create(&th[r], NULL, rank_main, &m[r]), 0);
    }
    for (uint32_t r = 0; r < ranks; r++)
        pthread_join(th[r], NULL);
    coll_local_free(g->local);
    if (g->error[0] != 0)
        fail_msg("%s", g->error);
    for (uint32_t r = 1; r < ranks; r++) { /* all ranks end with the same bits */
        assert_memory_equal(g->results[r], g->results[0], sizeof g->results[0]);
        assert_memory_equal(g->image[r], g->image[0], g->bytes);
        assert_memory_equal(g->eval[r], g->eval[0], sizeof g->eval[0]);
    }
    return g;
}

static void gang_free(struct gang *g)
{
    for (uint32_t r = 0; r < g->ranks; r++)
        free(g->image[r]);
    pthread_mutex_destroy(&g->shelf.mutex);
    pthread_cond_destroy(&g->shelf.changed);
    free(g);
}

static struct spec small_spec(enum spec_method method)
{
    return (struct spec){
        .method = method,
        .model_name_or_path = tiny64,
        .model_dir = tiny64,
        .model_revision = (char *)"",
        .lora_r = 4,
        .lora_alpha = 8,
        .lora_all_linear = true,
        .beta = 0.1,
        .disable_dropout = true,
        .learning_rate = 2e-3,
        .lr_scheduler_type = SPEC_COSINE,
        .warmup_ratio = 0.1,
        .max_grad_norm = 1.0,
        .adam_beta1 = 0.9,
        .adam_beta2 = 0.999,
        .adam_epsilon = 1e-8,
        .max_steps = STEPS,
        .train_batch_size = 6,
        .seed = 1,
        .data_seed = 5,
    };
}

/* Rank 64: of tiny64's matrices those of k and v have float32 moments, the others 8 bits. */
static struct spec spec_8bit(enum spec_method method)
{
    struct spec s = small_spec(method);

    s.optim = SPEC_ADAMW_8BIT;
    s.lora_r = 64;
    s.lora_alpha = 64;
    return s;
}

/* numerics.md 20. 26 pairs in steps of 6: the last of an epoch holds 2, fewer than
 * the ranks. */
static void ranks_agree(struct spec spec)
{
    const enum spec_method method = spec.method;
    static const uint32_t ranks[] = {1, 2, 4};
    struct gang *g[ARRAY_LEN(ranks)];
    struct dataset data;

    example_set_random(&data, 11, 26, 9, 14, 512, method == SPEC_DPO);
    for (size_t i = 0; i < ARRAY_LEN(ranks); i++)
        g[i] = gang_run("gloo", &spec, &data, ranks[i], STEPS, -1);
    for (size_t i = 1; i < ARRAY_LEN(ranks); i++) {
        assert_memory_equal(g[i]->results[0][0].v, g[0]->results[0][0].v,
                            sizeof g[0]->results[0][0].v);
        close_to("first gradient norm", 1, g[i]->results[0][0].grad_norm,
                 g[0]->results[0][0].grad_norm, 1e-6);
        for (int s = 0; s < STEPS; s++)
            close_to("loss", s + 1, g[i]->results[0][s].v[METRIC_LOSS],
                     g[0]->results[0][s].v[METRIC_LOSS], 1e-4);
        close_to("eval_loss", STEPS, g[i]->eval[0][METRIC_LOSS], g[0]->eval[0][METRIC_LOSS], 1e-2);
    }
    for (size_t i = 0; i < ARRAY_LEN(ranks); i++)
        gang_free(g[i]);
    example_set_free(&data);
}

static void ranks_agree_dpo(void **state)
{
    (void)state;
    ranks_agree(small_spec(SPEC_DPO));
}

static void ranks_agree_sft(void **state)
{
    (void)state;
    ranks_agree(small_spec(SPEC_SFT));
}

static void ranks_agree_8bit(void **state)
{
    (void)state;
    ranks_agree(spec_8bit(SPEC_DPO));
    ranks_agree(spec_8bit(SPEC_SFT));
}

/* ... whatever carries them: Gloo over TCP, or threads. */
static void twice_the_same_bytes(void **state)
{
    const struct spec spec = small_spec(SPEC_DPO);
    struct dataset data;
    struct gang *a, *b;

    (void)state;
    example_set_random(&data, 12, 20, 0, 12, 512, true);
    a = gang_run("gloo", &spec, &data, 2, 6, -1);
    b = gang_run("local", &spec, &data, 2, 6, -1);
    assert_memory_equal(a->image[0], b->image[0], a->bytes);
    assert_memory_equal(a->results[0], b->results[0], sizeof a->results[0]);
    gang_free(a);
    gang_free(b);
    example_set_free(&data);
}

/* Told to any one rank, all act after the same step. */
static void flags_reach_every_rank(void **state)
{
    const struct spec spec = small_spec(SPEC_DPO);
    struct dataset data;

    (void)state;
    example_set_random(&data, 13, 8, 0, 8, 512, true);
    for (int told = 0; told < 4; told++) {
        struct gang *g = gang_run("local", &spec, &data, 4, 3, told);
        for (int r = 0; r < 4; r++) {
            assert_int_equal(g->results[r][0].flags, 0);
            assert_int_equal(g->results[r][1].flags, LINK_STOP);
            assert_int_equal(g->results[r][2].flags, 0);
        }
        gang_free(g);
    }
    example_set_free(&data);
}

/* ---- budgets ---- */

static void budgets_change_only_speed(void **state)
{
    static const int64_t budgets[] = {1, 64, 100, 4096};
    struct spec spec = small_spec(SPEC_DPO);
    struct step_result first[ARRAY_LEN(budgets)];
    struct dataset data;

    (void)state;
    example_set_random(&data, 14, 12, 0, 20, 512, true);
    for (size_t i = 0; i < ARRAY_LEN(budgets); i++) {
        struct trainer t;
        struct err err = {""};

        spec.token_budget = budgets[i];
        if (trainer_open(&t, &(struct trainer_opts){&spec, backend, 1, NULL, &data}, &err) < 0 ||
            trainer_plan(&t, 0, &err) < 0)
            fail_msg("%s", err.text);
        assert_true(t.plan.token_budget >= data.longest);
        for (int s = 0; s < 3; s++)
            if (step_run(&t, s, 0, s == 0, &first[i], &err) < 0)
                fail_msg("%s", err.text);
        if (i > 0) {
            close_to("loss", 3, first[i].v[METRIC_LOSS], first[0].v[METRIC_LOSS], 1e-6);
            close_to("grad_norm", 3, first[i].grad_norm, first[0].grad_norm, 1e-4);
        }
        trainer_close(&t);
    }
    example_set_free(&data);
}

/* ---- refusals ---- */

static void open_small(struct trainer *t, const struct spec *spec, const struct dataset *data)
{
    struct err err = {""};

    if (trainer_open(t, &(struct trainer_opts){spec, backend, 1, NULL, data}, &err) < 0 ||
        trainer_plan(t, 0, &err) < 0)
        fail_msg("%s", err.text);
}

static void refuses_what_is_not_finite_with(struct spec spec)
{
    struct dataset data;
    struct trainer t;
    struct step_result s;
    struct err err = {""};
    float *pmv, *after;

    example_set_random(&data, 15, 12, 0, 8, 512, true);
    open_small(&t, &spec, &data);
    pmv = malloc(trainer_state_bytes(&t));
    after = malloc(trainer_state_bytes(&t));
    assert_int_equal(trainer_state_get(&t, pmv, &err), 0);
    pmv[5] = NAN;
    assert_int_equal(trainer_state_set(&t, pmv, &err), 0);
    assert_int_equal(step_run(&t, 6, 0, false, &s, &err), -EDOM);
    assert_non_null(strstr(err.text, "step 7"));
    assert_non_null(strstr(err.text, "not finite"));
    assert_int_equal(trainer_state_get(&t, after, &err), 0);
    assert_memory_equal(pmv, after, trainer_state_bytes(&t));
    free(pmv);
    free(after);
    trainer_close(&t);
    example_set_free(&data);
}

static void refuses_what_is_not_finite(void **state)
{
    (void)state;
    refuses_what_is_not_finite_with(small_spec(SPEC_DPO));
    refuses_what_is_not_finite_with(spec_8bit(SPEC_DPO));
}

static void refuses_a_start_that_is_none(void **state)
{
    const struct spec spec = small_spec(SPEC_DPO);
    struct dataset data;
    struct trainer t;
    struct step_result s;
    struct err err = {""};
    float *pmv;

    (void)state;
    example_set_random(&data, 16, 12, 0, 8, 512, true);
    open_small(&t, &spec, &data);
    pmv = malloc(trainer_state_bytes(&t));
    assert_int_equal(trainer_state_get(&t, pmv, &err), 0);
    for (int64_t i = 0; i < t.adapter->n; i++)
        pmv[i] += 0.01f;
    assert_int_equal(trainer_state_set(&t, pmv, &err), 0);
    assert_int_equal(step_run(&t, 0, 0, true, &s, &err), -EDOM);
    assert_non_null(strstr(err.text, "step 0"));
    free(pmv);
    trainer_close(&t);
    example_set_free(&data);
}

static int find_data(void **state)
{
    (void)state;
    snprintf(tiny64, sizeof tiny64, "%s", test_data_path("tiny64"));
    snprintf(tiny128, sizeof tiny128, "%s", test_data_path("tiny128"));
    snprintf(trl_dir, sizeof trl_dir, "%s", test_data_path("fixtures/trl"));
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lora_dpo_like_trl),
        cmocka_unit_test(qlora_sft_like_trl),
        cmocka_unit_test(lora_dpo_8bit_like_trl),
        cmocka_unit_test(lora_sft_8bit_like_trl),
        cmocka_unit_test(ranks_agree_dpo),
        cmocka_unit_test(ranks_agree_sft),
        cmocka_unit_test(ranks_agree_8bit),
        cmocka_unit_test(twice_the_same_bytes),
        cmocka_unit_test(flags_reach_every_rank),
        cmocka_unit_test(budgets_change_only_speed),
        cmocka_unit_test(refuses_what_is_not_finite),
        cmocka_unit_test(refuses_a_start_that_is_none),
    };

    backend = argc > 1 ? argv[1] : "ref";
    return cmocka_run_group_tests_name("step", tests, find_data, NULL);
}
