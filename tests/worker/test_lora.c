/* test_lora.c - an adapter's parameters, its choice of modules, and its PEFT files. */
#include "tests/support/test.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "worker/lora.h"
#include "worker/model.h"

static const struct tiny_model tiny = {.hidden = 32,
                                       .layers = 2,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 8,
                                       .intermediate = 44,
                                       .vocab = 50,
                                       .dtype = SAFETENSORS_F32};

struct rig {
    struct temp_dir dir;
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    struct model *model;
};

static int setup(void **state)
{
    static struct rig g;
    struct err err = {""};

    temp_dir_make(&g.dir);
    assert_int_equal(tiny_model_write(&tiny, g.dir.path), 0);
    assert_int_equal(kn_backend("ref", &g.ops, err.text, sizeof err.text), 0);
    assert_int_equal(g.ops->open(&(struct kn_open){.threads = 1, .compute = KN_F32}, &g.ctx), 0);
    assert_int_equal(model_open(g.dir.path, &g.model, &err), 0);
    *state = &g;
    return 0;
}

static int teardown(void **state)
{
    struct rig *g = *state;

    model_close(g->model);
    g->ops->close(g->ctx);
    temp_dir_remove(&g->dir);
    return 0;
}

static struct spec spec_of(const char *const *targets, int n)
{
    struct spec s = {.model_name_or_path = (char *)"org/tiny",
                     .lora_r = 4,
                     .lora_alpha = 8,
                     .lora_dropout = 0.05,
                     .lora_all_linear = n == 0,
                     .n_lora_target_modules = n,
                     .seed = 3};

    for (int i = 0; i < n; i++)
        s.lora_target_modules[i] = (char *)targets[i];
    return s;
}

static struct adapter *make(const struct rig *g, const struct spec *s)
{
    struct adapter *a = NULL;
    struct err err = {""};

    if (lora_new(g->ops, g->ctx, g->model, s, &a, &err) < 0)
        fail_msg("%s", err.text);
    return a;
}

static void test_new(void **state)
{
    const struct rig *g = *state;
    const struct spec s = spec_of(NULL, 0);
    struct adapter *a = make(g, &s), *b = make(g, &s);
    int64_t n = 0;
    double sum = 0, sum_sq = 0;

    struct err err = {""};
    struct moments_shape shape;

    assert_int_equal(a->n_modules, 2 * LORA_TARGETS);
    assert_int_equal(lora_shape(&g->model->config, &s, &shape, &err), 0);
    assert_true(shape.n == a->n && moments_shape_equal(&shape, &a->moments.shape));
    assert_true(a->scale == 2.0f);
    assert_true(a->dropout == 0.05f);
    for (int i = 0; i < a->n_modules; i++) {
        const struct lora_module *m = &a->modules[i];
        assert_int_equal(a->index[m->layer * LORA_TARGETS + m->target], i);
        assert_int_equal(m->a_off, n);
        assert_int_equal(m->b_off, n + 4 * m->k);
        n += 4 * (m->k + m->n);
        const double bound = 1 / sqrt((double)m->k);
        for (int64_t j = 0; j < 4 * m->k; j++) {
            const double u = a->p[m->a_off + j] / bound;
            assert_true(fabs(u) <= 1);
            sum += u / (4 * (double)m->k);
            sum_sq += u * u / (4 * (double)m->k);
        }
        for (int64_t j = 0; j < 4 * m->n; j++)
            assert_true(a->p[m->b_off + j] == 0);
    }
    assert_int_equal(a->n, n);
    assert_true(fabs(sum / a->n_modules) < 0.05); /* uniform on (-1, 1) */
    assert_true(fabs(sum_sq / a->n_modules - 1.0 / 3) < 0.03);
    assert_memory_equal(a->p, b->p, (size_t)n * sizeof *a->p);
    lora_free(a);
    lora_free(b);
    lora_free(NULL);
}

static void test_targets(void **state)
{
    static const struct {
        const char *targets[3];
        int n, modules;
    } v[] = {
        {{"q_proj", "v_proj"}, 2, 4},
        {{"self_attn.q_proj"}, 1, 2},
        {{"model.layers.1.mlp.down_proj"}, 1, 1},
        {{"layers.0.mlp.up_proj", "up_proj"}, 2, 2},
    };
    const struct rig *g = *state;
    const struct spec all = spec_of(NULL, 0);
    struct adapter *whole = make(g, &all);

    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        const struct spec s = spec_of(v[i].targets, v[i].n);
        struct adapter *a = make(g, &s);
        assert_int_equal(a->n_modules, v[i].modules);
        /* A module starts the same whatever else is adapted. */
        const struct lora_module *m = &a->modules[0];
        const struct lora_module *w =
            &whole->modules[whole->index[m->layer * LORA_TARGETS + m->target]];
        assert_memory_equal(a->p + m->a_off, whole->p + w->a_off, 4 * (size_t)m->k * sizeof(float));
        lora_free(a);
    }
    lora_free(whole);
}

static void expect_refused(const struct rig *g, const struct spec *s, const char *says)
{
    struct adapter *a = NULL;
    struct err err = {""};

    assert_int_equal(lora_new(g->ops, g->ctx, g->model, s, &a, &err), -EINVAL);
    assert_null(a);
    if (!strstr(err.text, says))
        fail_msg("\"%s\" should say \"%s\"", err.text, says);
}

static void test_refusals(void **state)
{
    static const char *const bad[] = {"qproj", "roj", "lm_head", "layers.2.mlp.up_proj", ""};
    const struct rig *g = *state;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const char *targets[2] = {"q_proj", bad[i]};
        const struct spec s = spec_of(targets, 2);
        expect_refused(g, &s, "matches no linear");
    }
    struct spec s = spec_of(NULL, 0);
    s.lora_r = 0;
    expect_refused(g, &s, "lora_r");
    s.lora_r = 4;
    s.lora_dropout = 1;
    expect_refused(g, &s, "lora_dropout");
}

static void test_scale(void **state)
{
    const struct rig *g = *state;
    struct spec s = spec_of(NULL, 0);

    s.use_rslora = true;
    s.disable_dropout = true;
    struct adapter *a = make(g, &s);
    assert_true(a->scale == 4.0f); /* 8 / sqrt(4) */
    assert_true(a->dropout == 0.0f);
    lora_free(a);
}

/* The field list and the values of LoraConfig(...).save_pretrained in peft 0.21. */
static void check_config(const char *path)
{
    static const char *const fields =
        "alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path "
        "bias corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out "
        "inference_mode init_lora_weights kasa_config layer_replication layers_pattern "
        "layers_to_transform loftq_config lora_alpha lora_bias lora_dropout lora_ga_config "
        "megatron_config megatron_core modules_to_save monteclora_config peft_type peft_version "
        "qalora_group_size r rank_pattern revision target_modules target_parameters task_type "
        "trainable_token_indices use_bdlora use_dora use_qalora use_rslora velora_config ";
    char got[1024] = "", text[64] = "";
    json_error_t why;
    const char *key;
    json_t *v;

    json_t *j = json_load_file(path, 0, &why);
    assert_non_null(j);
    json_object_foreach(j, key, v)
    {
        strncat(got, key, sizeof got - strlen(got) - 1);
        strncat(got, " ", sizeof got - strlen(got) - 1);
    }
    assert_string_equal(got, fields); /* sorted, none missing */
    assert_int_equal(json_integer_value(json_object_get(j, "r")), 4);
    assert_string_equal(json_string_value(json_object_get(j, "peft_type")), "LORA");
    assert_string_equal(json_string_value(json_object_get(j, "base_model_name_or_path")),
                        "org/tiny");
    assert_int_equal(json_array_size(json_object_get(j, "target_modules")), LORA_TARGETS);
    json_decref(j);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(text, sizeof text, f) && !strstr(text, "lora_dropout"))
        ;
    assert_string_equal(text, "  \"lora_dropout\": 0.05,\n"); /* Python's shortest form */
    fclose(f);
}

static void test_files(void **state)
{
    const struct rig *g = *state;
    const struct spec s = spec_of(NULL, 0);
    struct temp_dir d;
    struct safetensors *f = NULL;
    struct err err = {""};
    struct adapter *a = make(g, &s), *b = make(g, &s);

    for (int64_t i = 0; i < a->n; i++)
        a->p[i] += (float)i;
    temp_dir_make(&d);
    const int fd = open(d.path, O_RDONLY | O_DIRECTORY);
    if (lora_save(a, g->model, &s, fd, &err) < 0)
        fail_msg("%s", err.text);
    close(fd);
    check_config(temp_dir_path(&d, "adapter_config.json"));
    const char *path = temp_dir_path(&d, "adapter_model.safetensors");
    assert_int_equal(safetensors_open(path, &f, &err), 0);
    assert_string_equal(safetensors_metadata(f, "format"), "pt");
    const struct safetensors_tensor *t =
        safetensors_find(f, "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight");
    assert_non_null(t);
    assert_true(t->shape[0] == 4 && t->shape[1] == 44);
    assert_non_null(
        safetensors_find(f, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"));
    safetensors_close(f);
    if (lora_load(b, g->model, d.path, &err) < 0)
        fail_msg("%s", err.text);
    assert_memory_equal(a->p, b->p, (size_t)a->n * sizeof *a->p);

    /* Another rank, other targets, a file cut short. */
    struct spec other = spec_of(NULL, 0);
    other.lora_r = 8;
    struct adapter *c = make(g, &other);
    assert_int_equal(lora_load(c, g->model, d.path, &err), -EINVAL);
    assert_non_null(strstr(err.text, "lora_A"));
    lora_free(c);
    const char *q[] = {"q_proj"};
    other = spec_of(q, 1);
    c = make(g, &other);
    assert_int_equal(lora_load(c, g->model, d.path, &err), -EINVAL);
    assert_non_null(strstr(err.text, "target modules differ"));
    lora_free(c);
    assert_int_equal(truncate(path, 3000), 0);
    assert_int_equal(lora_load(b, g->model, d.path, &err), -EINVAL);
    assert_memory_equal(a->p, b->p, (size_t)a->n * sizeof *a->p);
    lora_free(a);
    lora_free(b);
    temp_dir_remove(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new),      cmocka_unit_test(test_targets),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_scale),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
