/* test_model.c - config.json in its spellings, weights in theirs, and refusals. */
#include "tests/support/test.h"

#include <errno.h>
#include <string.h>

#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "worker/model.h"

static const struct tiny_model small = {.hidden = 32,
                                        .layers = 2,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .head_dim = 8,
                                        .intermediate = 44,
                                        .vocab = 50,
                                        .dtype = SAFETENSORS_F32};

static void test_folders(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        struct tiny_model t = small;
        struct temp_dir d;
        struct model *m = NULL;
        struct err err = {""};
        static const enum safetensors_dtype dtypes[] = {SAFETENSORS_F32, SAFETENSORS_BF16,
                                                        SAFETENSORS_F16};
        static const enum kn_dtype want[] = {KN_F32, KN_BF16, KN_F16};

        t.tied = i & 1;
        t.shards = i & 2 ? 3 : 0;
        t.dtype = dtypes[i / 4];
        temp_dir_make(&d);
        assert_int_equal(tiny_model_write(&t, d.path), 0);
        if (model_open(d.path, &m, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(m->config.hidden, 32);
        assert_int_equal(m->config.kv_heads, 2);
        assert_int_equal(m->config.torch_dtype, want[i / 4]);
        assert_int_equal(m->config.bos_id, 1);
        assert_int_equal(m->config.eos_id, 2);
        assert_int_equal(m->config.rope_type, MODEL_ROPE_DEFAULT);
        assert_true(m->config.rope_theta == 10000.0);
        assert_int_equal(m->layers[1].down.rows, 32);
        assert_int_equal(m->layers[1].down.cols, 44);
        assert_int_equal(m->layers[1].down.dtype, want[i / 4]);
        assert_int_equal(m->norm.cols, 32);
        assert_true(t.tied == (m->head.data == m->embed.data));
        assert_int_equal(model_parameters(&m->config),
                         2 * (2 * 32 + 32 * (2 * 32 + 2 * 16) + 3 * 32 * 44) + 32 +
                             (t.tied ? 1 : 2) * 50 * 32);
        model_close(m);
        temp_dir_remove(&d);
    }
    model_close(NULL);
}

static void write_config(const struct temp_dir *d, const char *text)
{
    FILE *f = fopen(temp_dir_path(d, "config.json"), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

#define SIZES                                                               \
    "\"hidden_size\":32,\"num_hidden_layers\":2,\"num_attention_heads\":4," \
    "\"intermediate_size\":44,\"vocab_size\":50"

static void test_config_spellings(void **state)
{
    struct temp_dir d;
    struct model_config c;
    struct err err = {""};

    (void)state;
    temp_dir_make(&d);
    write_config(&d, "{\"model_type\":\"llama\"," SIZES "}");
    assert_int_equal(model_config_read(d.path, &c, &err), 0);
    assert_int_equal(c.kv_heads, 4);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.max_positions, 2048);
    assert_int_equal(c.bos_id, -1);
    assert_false(c.tied_head);

    /* transformers 5 */
    write_config(&d, "{\"model_type\":\"llama\"," SIZES ",\"num_key_value_heads\":2,"
                     "\"head_dim\":16,\"dtype\":\"bfloat16\",\"eos_token_id\":[7,8],"
                     "\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0,"
                     "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                     "\"original_max_position_embeddings\":8192}}");
    assert_int_equal(model_config_read(d.path, &c, &err), 0);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.torch_dtype, KN_BF16);
    assert_int_equal(c.eos_id, 7);
    assert_int_equal(c.rope_type, MODEL_ROPE_LLAMA3);
    assert_true(c.rope_theta == 500000.0 && c.rope_factor == 8.0 && c.rope_high_freq == 4.0);

    /* transformers 4, the older key */
    write_config(&d, "{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":2,"
                     "\"rope_theta\":1e6,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"
                     "\"head_dim\":null,\"sliding_window\":64}");
    assert_int_equal(model_config_read(d.path, &c, &err), 0);
    assert_int_equal(c.rope_type, MODEL_ROPE_LINEAR);
    assert_int_equal(c.sliding_window, 64);
    write_config(&d, "{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":2,"
                     "\"sliding_window\":null,\"rope_scaling\":null}");
    assert_int_equal(model_config_read(d.path, &c, &err), 0);
    assert_int_equal(c.sliding_window, 0);
    temp_dir_remove(&d);
}

static void test_config_refusals(void **state)
{
    static const struct {
        const char *text, *says;
    } v[] = {
        {"[1]", "not a JSON object"},
        {"{\"a\": ", "config.json:"},
        {"{}", "\"model_type\": is missing"},
        {"{\"model_type\":\"qwen2\"," SIZES "}", "llama and mistral are"},
        {"{\"model_type\":\"llama\"," SIZES ",\"attention_bias\":true}", "attention_bias"},
        {"{\"model_type\":\"llama\"," SIZES ",\"mlp_bias\":true}", "mlp_bias"},
        {"{\"model_type\":\"llama\"," SIZES ",\"hidden_act\":\"gelu\"}", "silu"},
        {"{\"model_type\":\"llama\"," SIZES ",\"head_dim\":12}", "8 to 128"},
        {"{\"model_type\":\"llama\"," SIZES ",\"num_key_value_heads\":3}", "multiple"},
        {"{\"model_type\":\"llama\",\"hidden_size\":1e300}", "hidden_size"},
        {"{\"model_type\":\"llama\",\"hidden_size\":32}", "num_hidden_layers\": is missing"},
        {"{\"model_type\":\"llama\"," SIZES ",\"rms_norm_eps\":0}", "rms_norm_eps"},
        {"{\"model_type\":\"llama\"," SIZES ",\"rope_scaling\":{\"type\":\"yarn\"}}", "yarn"},
        {"{\"model_type\":\"llama\"," SIZES ",\"rope_scaling\":7}", "rope_scaling"},
        {"{\"model_type\":\"llama\"," SIZES ",\"rope_scaling\":{\"type\":\"linear\"}}", "factor"},
        {"{\"model_type\":\"llama\"," SIZES ",\"partial_rotary_factor\":0.5}", "partial"},
        {"{\"model_type\":\"llama\"," SIZES ",\"torch_dtype\":\"int8\"}", "torch_dtype"},
        {"{\"model_type\":\"llama\"," SIZES ",\"eos_token_id\":\"x\"}", "eos_token_id"},
        {"{\"model_type\":\"llama\"," SIZES ",\"quantization_config\":{}}", "load_in_4bit"},
    };
    struct temp_dir d;
    struct model_config c;

    (void)state;
    temp_dir_make(&d);
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        struct err err = {""};
        write_config(&d, v[i].text);
        assert_int_equal(model_config_read(d.path, &c, &err), -EINVAL);
        if (!strstr(err.text, v[i].says))
            fail_msg("\"%s\" should say \"%s\"", err.text, v[i].says);
    }
    temp_dir_remove(&d);
}

static void expect_open_refused(const struct temp_dir *d, const char *says)
{
    struct model *m = NULL;
    struct err err = {""};

    assert_true(model_open(d->path, &m, &err) < 0);
    assert_null(m);
    if (!strstr(err.text, says))
        fail_msg("\"%s\" should say \"%s\"", err.text, says);
}

static void test_weight_refusals(void **state)
{
    struct tiny_model t = small;
    struct temp_dir d;

    (void)state;
    temp_dir_make(&d);
    expect_open_refused(&d, "config.json: No such file");
    assert_int_equal(tiny_model_write(&t, d.path), 0);
    write_config(&d, "{\"model_type\":\"llama\"," SIZES "}"); /* 4 key heads, not 2 */
    expect_open_refused(&d, "k_proj.weight has shape [16, 32]; config.json says [32, 32]");
    t.layers = 1;
    assert_int_equal(tiny_model_write(&t, d.path), 0);
    write_config(&d, "{\"model_type\":\"llama\"," SIZES ",\"num_key_value_heads\":2}");
    expect_open_refused(&d, "has no tensor model.layers.1.");
    assert_int_equal(truncate(temp_dir_path(&d, "model.safetensors"), 3000), 0);
    expect_open_refused(&d, "model.safetensors");
    assert_int_equal(unlink(temp_dir_path(&d, "model.safetensors")), 0);
    expect_open_refused(&d, "has no model.safetensors");
    FILE *f = fopen(temp_dir_path(&d, "pytorch_model-00001-of-00002.bin"), "w");
    assert_non_null(f);
    fclose(f);
    expect_open_refused(&d, "alignd reads no pickles; convert once");
    temp_dir_remove(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_config_spellings),
        cmocka_unit_test(test_config_refusals),
        cmocka_unit_test(test_weight_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
