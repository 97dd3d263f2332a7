/* test_dataprint.c - rows as they will be trained, and what is said about a job. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "client/dataprint.h"
#include "client/planprint.h"
#include "client/summary.h"

static const char text[] =
    "{\"sources\":[{\"path\":\"/d/x.jsonl\",\"set\":\"train\",\"format\":\"hh-rlhf\","
    "\"template\":\"vicuna\",\"rows\":1600,\"usable\":1596,\"selected\":1596}],"
    "\"rows\":1600,\"examples\":1468,\"eval_examples\":128,\"cut\":2,\"longest\":431,"
    "\"dropped\":{\"empty_reply\":3,\"same_reply\":1},"
    "\"lengths_by_part\":{\"pair\":{\"p50\":120,\"p95\":1300,\"max\":1431}},"
    "\"examples_shown\":[{\"path\":\"/d/x.jsonl\",\"row\":17,\"cut\":[false,true],\"parts\":["
    "{\"name\":\"prompt\",\"tokens\":[{\"id\":1,\"text\":\"<s>\",\"special\":true},"
    "{\"id\":5,\"text\":\"Hi\\n\"}]},"
    "{\"name\":\"chosen\",\"tokens\":[{\"id\":6,\"text\":\" yes\",\"trained\":true},"
    "{\"id\":2,\"text\":\"</s>\",\"special\":true,\"trained\":true}]},"
    "{\"name\":\"rejected\",\"tokens\":[{\"id\":7,\"text\":\" n\\u001b[o\",\"trained\":true}]}]}]}";

static void test_rows(void **state)
{
    (void)state;
    json_t *j = json_loads(text, 0, NULL);
    struct buf b = {.max = 1 << 16};
    dataprint_rows(j, false, false, &b);
    assert_non_null(strstr(b.data, "/d/x.jsonl row 17\n"));
    assert_non_null(strstr(b.data, "chosen (2 + 2 tokens)\n<s>Hi\\n\n|[[ yes</s>]]\n"));
    assert_non_null(strstr(b.data, "rejected (2 + 1 tokens, cut at max_length)\n"));
    assert_non_null(strstr(b.data, "|[[ n<0x1B>[o]]\n"));
    buf_clear(&b);
    dataprint_rows(j, true, true, &b);
    assert_non_null(strstr(b.data, "\x1b[32m yes\x1b[0m"));
    assert_non_null(strstr(b.data, "\x1b[90m\x1b[1m<s>\x1b[0m"));
    buf_clear(&b);
    dataprint_summary(j, &b);
    assert_non_null(strstr(b.data, "1,600 rows, 1,596 usable"));
    assert_non_null(strstr(b.data, "1,468 examples to train on, 128 to evaluate, 2 replies cut"));
    assert_non_null(strstr(b.data, "p50 120  p95 1,300  max 1,431 tokens"));
    assert_non_null(strstr(b.data, "4 of 1,600 rows dropped (3 empty reply, 1 same reply)"));
    buf_free(&b);
    json_decref(j);
}

static void test_dropped(void **state)
{
    (void)state;
    char b[256];
    json_t *j = json_loads("{\"rows\":1600,\"dropped\":{\"empty_reply\":4}}", 0, NULL);
    assert_string_equal(dataprint_dropped(j, b, sizeof b), "4 of 1,600 rows dropped (empty reply)");
    json_decref(j);
    j = json_loads("{\"rows\":1600,\"dropped\":{}}", 0, NULL);
    assert_string_equal(dataprint_dropped(j, b, sizeof b), "");
    json_decref(j);
    static const char *const odd[] = {
        "{}", "[]", "{\"rows\":[1,[],{}],\"dropped\":7,\"sources\":3}",
        "{\"examples_shown\":[{\"parts\":[{\"name\":\"chosen\",\"tokens\":[1,[],{},null]}]},7]}"};
    for (size_t i = 0; i < ARRAY_LEN(odd); i++) {
        struct buf out = {.max = 1 << 16};
        j = json_loads(odd[i], 0, NULL);
        dataprint_rows(j, true, true, &out);
        dataprint_summary(j, &out);
        buf_free(&out);
        json_decref(j);
    }
}

static void test_summary(void **state)
{
    (void)state;
    char b[1024];
    struct spec s = {.method = SPEC_DPO,
                     .train_batch_size = 16,
                     .per_device_train_batch_size = 4,
                     .gradient_accumulation_steps = 2,
                     .devices = 2,
                     .learning_rate = 5e-6,
                     .beta = 0.1,
                     .lora_r = 16,
                     .lora_alpha = 32,
                     .max_length = 512,
                     .load_in_4bit = true};
    static const char resolved[] =
        "{\"origin\":{\"learning_rate\":\"default\",\"beta\":\"user\",\"max_length\":\"user\"}}";
    json_t *check = json_loads("{\"steps\":100,\"epochs\":1.002,\"examples\":1596,\"rows\":1600,"
                               "\"dropped\":{\"empty_reply\":4}}",
                               0, NULL);
    assert_string_equal(summary_text(&s, resolved, check, b, sizeof b),
                        "batch 16 = 4 x 2 x 2 devices; 100 steps = 1.0 epochs of 1,596 pairs; "
                        "learning_rate 5e-06 (default); beta 0.1 (user); QLoRA r 16, alpha 32; "
                        "max_length 512 (user); 4 of 1,600 rows dropped (empty reply)");
    char small[20];
    assert_true(strlen(summary_text(&s, resolved, check, small, sizeof small)) < sizeof small);
    s.method = SPEC_SFT;
    s.per_device_train_batch_size = 0;
    s.num_train_epochs = 3;
    assert_non_null(strstr(summary_text(&s, resolved, NULL, b, sizeof b),
                           "batch 16 = 8 x 2 devices; 3 epochs; "));
    json_decref(check);
}

static void test_plan(void **state)
{
    static const char gpu[] =
        "{\"method\":\"dpo\",\"device_type\":\"gpu\",\"steps\":1000,\"steps_per_epoch\":500,"
        "\"warmup_steps\":100,\"train_tokens\":412345,\"token_budget\":8192,"
        "\"flops\":{\"step\":1.25e15,\"reference\":2e17,\"run\":1.6e18},"
        "\"memory\":{\"free\":85e9,\"need\":61.5e9,\"weights\":3900000000,\"tables\":0,"
        "\"process\":50000000,\"in_4bit\":true,\"dequantise\":\"for each product\","
        "\"layers\":32,\"recomputed_layers\":12,\"activations\":41000000000}}";
    json_t *j = json_loads(gpu, 0, NULL), *bare = json_loads("{\"steps\":3}", 0, NULL);
    struct buf b = {.max = 1 << 16};

    (void)state;
    planprint(j, &b);
    assert_string_equal(
        b.data,
        "steps       1,000, 500 an epoch; warmup 100\n"
        "tokens      412,345 in the training set, a pair's prompt once; micro-batches of at most "
        "8,192\n"
        "work        1.25 PFLOP a step, 1.6 EFLOP in all, 12 % of it the reference\n"
        "memory      61.5 GB of 85.0 GB, of each rank:\n"
        "  weights               3.9 GB  4 bits, dequantised for each product\n"
        "  activations          41.0 GB  12 of 32 layers computed again\n"
        "  kernels              50.0 MB\n");
    buf_clear(&b);
    planprint(bare, &b); /* nothing that is not there is printed, nothing breaks */
    assert_non_null(strstr(b.data, "steps       3, "));
    assert_null(strstr(b.data, "memory"));
    buf_free(&b);
    json_decref(j);
    json_decref(bare);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_dropped),
        cmocka_unit_test(test_summary),
        cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests_name("dataprint", tests, NULL, NULL);
}
