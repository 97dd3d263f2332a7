/* test_dataset_shared.c - the real preference files of ../shared/data: how many rows
 * are usable, and why the others are not. */
#include "tests/support/test.h"
#include "tests/support/test_data.h"

#include "worker/dataset.h"

struct counts {
    int64_t rows, usable;
    int64_t dropped[DROP_REASONS];
};

static struct counts count(const char *file, enum spec_format format, enum spec_template template,
                           const char *tokenizer)
{
    static struct spec spec;
    struct counts c = {0};
    struct tokenizer *tok = NULL;
    struct dataset *d = NULL;
    struct err err = {{0}};
    char path[1024];

    memset(&spec, 0, sizeof spec);
    (void)snprintf(path, sizeof path, "%s", test_data_shared(file));
    spec.method = SPEC_DPO;
    spec.max_length = 4096;
    spec.n_train = 1;
    spec.train[0] = (struct spec_source){.path = path, .format = format, .template = template};
    assert_int_equal(tokenizer_open(test_data_shared(tokenizer), &tok, &err), 0);
    if (dataset_open(&spec, tok, tokenizer_vocab(tok), &d, &err))
        fail_msg("%s", err.text);
    c.rows = d->n_rows[0];
    c.usable = d->n_usable[0];
    assert_int_equal(d->n_train, c.usable);
    for (int64_t i = 0; i < d->n_dropped; i++)
        c.dropped[d->dropped[i].reason]++;
    dataset_close(d);
    tokenizer_close(tok);
    return c;
}

#define HH "hh-rlhf/harmless-base.test.jsonl.gz"

/* 2,312 rows, 5 whose prompts differ, 4 with an empty reply. */
static void test_harmless_none(void **state)
{
    (void)state;
    const struct counts c = count(HH, SPEC_FORMAT_AUTO, SPEC_TEMPLATE_NONE, "tokenizers/llama");
    assert_int_equal(c.rows, 2312);
    assert_int_equal(c.usable, 2303);
    assert_int_equal(c.dropped[DROP_PROMPT_DIFFERS], 5);
    assert_int_equal(c.dropped[DROP_EMPTY_REPLY], 4);
}

static void test_harmless_templates(void **state)
{
    (void)state;
    static const char *const tokenizers[] = {"tokenizers/llama", "tokenizers/minimind"};
    for (size_t i = 0; i < ARRAY_LEN(tokenizers); i++)
        for (int t = 0; t < 2; t++) {
            const struct counts c =
                count(HH, SPEC_FORMAT_HH_RLHF, t ? SPEC_TEMPLATE_MISTRAL : SPEC_TEMPLATE_VICUNA,
                      tokenizers[i]);
            assert_int_equal(c.rows, 2312);
            assert_int_equal(c.usable, 2303);
            assert_int_equal(c.dropped[DROP_PROMPT_DIFFERS], 5);
            assert_int_equal(c.dropped[DROP_EMPTY_REPLY], 4);
        }
}

static void test_pku_pairs(void **state)
{
    (void)state;
    const struct counts c = count("pku-saferlhf/pku_seferlhf_realign_dpo_5k.json", SPEC_FORMAT_AUTO,
                                  SPEC_TEMPLATE_VICUNA, "tokenizers/llama");
    assert_int_equal(c.rows, 5135);
    assert_int_equal(c.usable, 5135);
}

static void test_pku_raw(void **state)
{
    (void)state;
    const struct counts c = count("pku-saferlhf/pku_saferlhf_raw_schema_sample.jsonl",
                                  SPEC_FORMAT_AUTO, SPEC_TEMPLATE_MISTRAL, "tokenizers/llama");
    assert_int_equal(c.rows, 3);
    assert_int_equal(c.usable, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_harmless_none),
        cmocka_unit_test(test_harmless_templates),
        cmocka_unit_test(test_pku_pairs),
        cmocka_unit_test(test_pku_raw),
    };
    test_data_need_shared();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
