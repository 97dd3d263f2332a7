/* test_tokenizer_shared.c - real tokenizers of ../shared/data: llama.cpp's 47 vectors,
 * by tokenizer.json and by tokenizer.model; Mistral and a ByteLevel one open. */
#include "tests/support/temp_dir.h"
#include "tests/support/test.h"
#include "tests/support/test_data.h"

#include "worker/tokenizer.h"

static const char mark[] = "\n__ggml_vocab_test__\n";

static int check_vectors(const struct tokenizer *t)
{
    char *in =
        test_data_read(test_data_shared("tokenizers/vectors/ggml-vocab-llama-spm.gguf.inp"), NULL);
    char *want =
        test_data_read(test_data_shared("tokenizers/vectors/ggml-vocab-llama-spm.gguf.out"), NULL);
    struct tokens out = {0};
    int n = 0;

    assert_true(in && want);
    char *ids = want;
    for (char *s = in; s; n++) {
        char *end = strstr(s, mark);
        const size_t k = end ? (size_t)(end - s) : strlen(s);
        out.n = 0;
        assert_int_equal(tokenizer_encode(t, s, k, false, &out), 0);
        for (size_t i = 0; i < out.n; i++)
            assert_int_equal(strtol(ids, &ids, 10), out.ids[i]);
        ids += strspn(ids, " ");
        assert_true(*ids == (end ? '\n' : '\0'));
        ids += end != NULL;
        s = end ? end + strlen(mark) : NULL;
    }
    free(in);
    free(want);
    tokens_free(&out);
    return n;
}

static void test_llama_json(void **state)
{
    (void)state;
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open(test_data_shared("tokenizers/llama"), &t, NULL), 0);
    assert_int_equal(tokenizer_vocab(t), 32000);
    assert_true(tokenizer_adds_bos(t));
    assert_int_equal(check_vectors(t), 47);
    tokenizer_close(t);
}

static struct tokenizer *open_model(struct temp_dir *d, const char *name)
{
    struct tokenizer *t = NULL;
    struct err err = {{0}};
    char real[PATH_MAX];

    temp_dir_make(d);
    assert_non_null(realpath(test_data_shared(name), real));
    assert_int_equal(symlink(real, temp_dir_path(d, "tokenizer.model")), 0);
    if (tokenizer_open(d->path, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

static void test_llama_model(void **state)
{
    (void)state;
    struct temp_dir d;
    struct tokenizer *t = open_model(&d, "tokenizers/llama/tokenizer.model");
    struct tokens out = {0};

    assert_int_equal(check_vectors(t), 47);
    /* A special token in the text; without a tokenizer_config.json BOS is added. */
    assert_int_equal(tokenizer_encode(t, "Hello</s>", 9, true, &out), 0);
    assert_int_equal(out.n, 3);
    assert_int_equal(out.ids[0], 1);
    assert_int_equal(out.ids[1], 15043);
    assert_int_equal(out.ids[2], 2);
    tokens_free(&out);
    tokenizer_close(t);
    temp_dir_remove(&d);
}

static void test_mistral(void **state)
{
    (void)state;
    struct temp_dir d;
    struct tokenizer *t = open_model(&d, "tokenizers/mistral/tokenizer.model.v1");
    struct tokens out = {0};
    /* mistral-common's tokenizer v1: <s>[INST] Hello [/INST] */
    static const int32_t want[] = {1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793};

    assert_int_equal(tokenizer_encode(t, "[INST] Hello [/INST]", 20, true, &out), 0);
    assert_int_equal(out.n, ARRAY_LEN(want));
    assert_memory_equal(out.ids, want, sizeof want);
    tokens_free(&out);
    tokenizer_close(t);
    temp_dir_remove(&d);
}

static void test_minimind(void **state)
{
    (void)state;
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open(test_data_shared("tokenizers/minimind"), &t, NULL), 0);
    assert_int_equal(tokenizer_vocab(t), 6400);
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_false(tokenizer_adds_bos(t));
    assert_non_null(tokenizer_chat_template(t));
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_json),
        cmocka_unit_test(test_llama_model),
        cmocka_unit_test(test_mistral),
        cmocka_unit_test(test_minimind),
    };
    test_data_need_shared();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
