/* test_engine_shared.c - stories260K's golden log-probs and greedy continuation. */
#include "tests/support/test.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "tests/support/engine_rig.h"
#include "tests/support/test_data.h"

static void check_case(struct rig *g, const json_t *c)
{
    const json_t *ids = json_object_get(c, "ids_with_bos");
    const json_t *want = json_object_get(c, "token_logprobs");
    const int32_t n = (int32_t)json_array_size(ids);
    int32_t v[256];
    struct example e = {.prompt = v, .n_prompt = n, .prompt_trained = true};
    const struct example *p = &e;
    struct err err = {""};
    struct batch *b;
    int nb;

    assert_in_range(n, 2, 256);
    for (int32_t i = 0; i < n; i++)
        v[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    assert_int_equal(batch_pack(&p, NULL, 1, 600, true, &b, &nb), 0);
    assert_int_equal(b->n_head, n - 1);
    if (engine_forward(g->engine, b, NULL, false, 0, &g->out, &err) < 0)
        fail_msg("%s", err.text);
    for (int32_t i = 0; i < n - 1; i++) {
        const double x = json_number_value(json_array_get(want, (size_t)i));
        if (!(fabs(x - g->out.logp[i]) < 2e-4))
            fail_msg("token %d: %.7f, golden %.7f", i, (double)g->out.logp[i], x);
    }
    batch_free_all(b, nb);
}

/* The model's own continuation: the argmax of every position is the next token. */
static void check_greedy(struct rig *g, const json_t *greedy)
{
    const int32_t n = (int32_t)json_array_size(greedy) + 1;
    int32_t v[256] = {1};
    struct example e = {.prompt = v, .n_prompt = n, .prompt_trained = true};
    const struct example *p = &e;
    struct err err = {""};
    struct batch *b;
    int nb;

    assert_in_range(n, 2, 256);
    for (int32_t i = 1; i < n; i++)
        v[i] = (int32_t)json_integer_value(json_array_get(greedy, (size_t)i - 1));
    assert_int_equal(batch_pack(&p, NULL, 1, 600, true, &b, &nb), 0);
    if (engine_forward(g->engine, b, NULL, false, 0, &g->out, &err) < 0)
        fail_msg("%s", err.text);
    for (int32_t i = 0; i < n - 1; i++)
        assert_int_equal(g->out.hit[i], 1);
    batch_free_all(b, nb);
}

static void golden(const char *backend)
{
    const char *dir = test_data_shared("models/stories260K-hf");
    json_error_t why;
    struct rig g;
    size_t i;
    json_t *c;

    if (!rig_open(&g, &(struct rig_opts){.dir = dir, .backend = backend, .threads = 2}))
        skip();
    json_t *j = json_load_file(test_data_shared("models/stories260K-hf/golden.json"), 0, &why);
    assert_non_null(j);
    assert_true(json_array_size(json_object_get(j, "cases")) >= 3);
    json_array_foreach(json_object_get(j, "cases"), i, c) check_case(&g, c);
    check_greedy(&g, json_object_get(j, "greedy_ids_from_bos"));
    json_decref(j);
    rig_close(&g);
}

static void test_golden_ref(void **state)
{
    (void)state;
    golden("ref");
}

static void test_golden_cpu(void **state)
{
    (void)state;
    golden("cpu");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden_ref),
                                       cmocka_unit_test(test_golden_cpu)};

    test_data_need_shared();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
