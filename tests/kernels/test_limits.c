/* test_limits.c - attention with windows as long as an int32 can say, and sequences
 * without queries. */
#include "tests/support/test.h"

#include <string.h>

#include "cases.h"

static enum kn_dtype dtype;
static const char *backend = "cpu";

static void compare(const struct attn_case *c)
{
    struct kit k, ref;
    struct attn_call a, b;
    const double f = dtype == KN_BF16 ? 65536.0 : 40.0; /* as test_cpu */

    assert_true(kit_open(&k, backend, dtype, 2));
    assert_true(kit_open(&ref, "ref", dtype, 1));
    attn_make(&k, c, &a);
    attn_make(&ref, c, &b);
    assert_int_equal(k.ops->attn_fwd(k.ctx, &a.fwd), 0);
    assert_int_equal(ref.ops->attn_fwd(ref.ctx, &b.fwd), 0);
    assert_int_equal(k.ops->attn_bwd(k.ctx, &a.bwd), 0);
    assert_int_equal(ref.ops->attn_bwd(ref.ctx, &b.bwd), 0);
    kit_near("o", &k, &a.o, &ref, &b.o, f);
    kit_near("dq", &k, &a.dq, &ref, &b.dq, 2.0 * f);
    kit_near("dk", &k, &a.dk, &ref, &b.dk, 2.0 * f);
    kit_near("dv", &k, &a.dv, &ref, &b.dv, f);
    kit_close(&k);
    kit_close(&ref);
}

static void longest_windows(void **state)
{
    static const int windows[] = {INT32_MAX, INT32_MAX - 1, INT32_MAX - 100, 91, 90, 89};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(windows); i++)
        compare(&(struct attn_case){.n_seqs = 2,
                                    .lq = {70, 33},
                                    .lk = {90, 33},
                                    .heads = 2,
                                    .kv_heads = 1,
                                    .head_dim = 16,
                                    .window = windows[i]});
}

static void no_queries(void **state)
{
    (void)state;
    compare(&(struct attn_case){.n_seqs = 2,
                                .lq = {0, 0},
                                .lk = {5, 40},
                                .heads = 2,
                                .kv_heads = 2,
                                .head_dim = 16,
                                .gap = true});
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(longest_windows),
        cmocka_unit_test(no_queries),
    };

    dtype = kit_dtype(argc, argv);
    if (argc > 1 && strcmp(argv[argc - 1], "bf16") != 0)
        backend = argv[argc - 1];
    kit_require(backend);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
