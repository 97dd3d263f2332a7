/* test_limits.c - the edges of what calls may be: windows as long as an int32 can say,
 * nothing to attend to, ids and scales on the border, forbidden calls; and products that do
 * not depend on what a process multiplied first. */
#include "tests/support/test.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cases.h"
#include "kernels/dynamic.h"

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

/* A batch without sequences: nobody's rows, gradients of zero. */
static void no_sequences(void **state)
{
    struct attn_case c = {
        .n_seqs = 1, .lq = {20}, .lk = {20}, .heads = 2, .kv_heads = 2, .head_dim = 16};
    struct attn_call call;
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, backend, dtype, 2));
    attn_make(&k, &c, &call); /* gradients hold other numbers */
    call.bwd.shape.n_seqs = 0;
    call.bwd.shape.max_q = call.bwd.shape.max_k = 0;
    assert_int_equal(k.ops->attn_bwd(k.ctx, &call.bwd), 0);
    const struct kn_mat *const mats[] = {&call.dq, &call.dk, &call.dv};
    for (size_t i = 0; i < ARRAY_LEN(mats); i++)
        for (int64_t r = 0; r < 20; r++)
            for (int64_t col = 0; col < 32; col += 31)
                assert_true(kit_get(&k, mats[i], r, col) == 0.0);
    kit_close(&k);
}

/* Where nobody can look at the ids, a row of NaN says so. */
static void unknown_ids(void **state)
{
    static const int32_t ids[4] = {0, -1, 9, 8};
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, backend, dtype, 2));
    for (int i = 0; i < 2 && !kit_on_host(&k); i++) {
        k.odd = i; /* wide accesses, and none */
        const struct kn_mat table = kit_mat(&k, 9, 37, dtype, 1, 0, 1.0);
        const struct kn_mat y = kit_mat(&k, 4, 37, dtype, 0, 0, 0.0);
        assert_int_equal(
            k.ops->embed(k.ctx,
                         &(struct kn_embed){.y = y, .table = table, .ids = kit_ints(&k, ids, 4)}),
            0);
        for (int64_t c = 0; c < 37; c++) {
            assert_true(kit_get(&k, &y, 0, c) == kit_get(&k, &table, 0, c));
            assert_true(isnan(kit_get(&k, &y, 1, c)) && isnan(kit_get(&k, &y, 2, c)));
            assert_true(kit_get(&k, &y, 3, c) == kit_get(&k, &table, 8, c));
        }
        kit_padding(&k, &y);
    }
    kit_close(&k);
}

/* Scales exactly between two entries of their map: the even index. */
static void scales_between(void **state)
{
    enum { BLOCKS = 256, N = 64 * BLOCKS };
    static float x[N], map[256], absmax[BLOCKS];
    static uint8_t packed[N / 2], codes[BLOCKS];
    const float zero = 0.0f;
    float outer, offset;
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, backend, KN_F32, 1));
    kn_dynamic_map(map, true);
    for (int i = 0; i < BLOCKS; i++) { /* the last one is the largest: 1 */
        const float middle = (map[i] + map[i < 255 ? i + 1 : i]) * 0.5f;
        x[64 * i] = middle > 0.0f ? middle : 1.0f;
    }
    assert_int_equal(k.ops->quantize4(&(struct kn_quantize4){.x = x,
                                                             .n = N,
                                                             .type = KN_QUANT_NF4,
                                                             .nested = true,
                                                             .packed = packed,
                                                             .absmax = absmax,
                                                             .absmax_q = codes,
                                                             .nested_absmax = &outer,
                                                             .offset = &offset,
                                                             .offset_in = &zero}),
                     0);
    assert_true(outer == 1.0f && codes[255] == 255);
    for (int i = 0; i < 255; i++)
        if (x[64 * i] < 1.0f)
            assert_int_equal(codes[i], i + (i & 1));
    kit_close(&k);
}

/* Scales of 8 bits are a product and a sum, each rounded: the same values as ref's, also where
 * a compiler would fuse the two. */
static void nested_values(void **state)
{
    enum { BLOCKS = 300, N = 64 * BLOCKS };
    static float x[N], y[2][N], absmax[BLOCKS];
    static uint8_t packed[N / 2], codes[BLOCKS];
    float outer[2], offset;
    struct kit k[2];

    (void)state;
    assert_true(kit_open(&k[0], backend, KN_F32, 1));
    assert_true(kit_open(&k[1], "ref", KN_F32, 1));
    for (int i = 0; i < N; i++)
        x[i] = (float)(kit_value(81, 0, i) * (0.01 + (double)(i / 64 % 7) * 0.02));
    assert_int_equal(k[1].ops->quantize4(&(struct kn_quantize4){.x = x,
                                                                .n = N,
                                                                .type = KN_QUANT_NF4,
                                                                .nested = true,
                                                                .packed = packed,
                                                                .absmax = absmax,
                                                                .absmax_q = codes,
                                                                .nested_absmax = outer,
                                                                .offset = &offset}),
                     0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(k[i].ops->dequantize4(&(struct kn_dequantize4){.y = y[i],
                                                                        .n = N,
                                                                        .type = KN_QUANT_NF4,
                                                                        .packed = packed,
                                                                        .absmax_q = codes,
                                                                        .nested_absmax = outer,
                                                                        .offset = offset}),
                         0);
    assert_memory_equal(y[0], y[1], sizeof y[0]);
    kit_close(&k[0]);
    kit_close(&k[1]);
}

/* Nothing to do, and calls that the contract forbids. */
static void empty_and_forbidden(void **state)
{
    const struct kn_mat none = {.dtype = KN_F32}, wrong = {.rows = 1, .cols = 2, .ld = 1};
    struct kit k;

    (void)state;
    assert_true(kit_open(&k, backend, dtype, 2));
    for (int bad = 0; bad < 2; bad++) {
        const struct kn_mat m = bad ? wrong : none;
        const int want = bad ? -EINVAL : 0;
        const struct kn_attn_shape s = {.heads = 1, .kv_heads = 1, .head_dim = bad ? 9 : 8};
        const struct kn_ops *ops = k.ops;
        const struct kn_mat h = {.cols = 8, .ld = 8, .dtype = KN_F32};
        assert_int_equal(ops->embed(k.ctx, &(struct kn_embed){.y = m, .table = m}), want);
        assert_int_equal(ops->gather(k.ctx, &(struct kn_gather){.y = m, .x = m}), want);
        assert_int_equal(ops->rope(k.ctx, &(struct kn_rope){.x = m, .head_dim = 2}), want);
        assert_int_equal(ops->swiglu_fwd(k.ctx, &(struct kn_swiglu_fwd){.y = m, .gu = m}), want);
        assert_int_equal(
            ops->swiglu_bwd(k.ctx, &(struct kn_swiglu_bwd){.dgu = m, .dy = m, .gu = m}), want);
        assert_int_equal(ops->rmsnorm_fwd(k.ctx, &(struct kn_rmsnorm_fwd){.y = m, .x = m}), want);
        assert_int_equal(
            ops->rmsnorm_bwd(k.ctx, &(struct kn_rmsnorm_bwd){.dx = m, .dy = m, .x = m}), want);
        assert_int_equal(ops->logprob(k.ctx, &(struct kn_logprob){.z = m}), want);
        assert_int_equal(ops->adamw(k.ctx, &(struct kn_adamw){.n = -bad}), want);
        assert_int_equal(
            ops->attn_fwd(k.ctx, &(struct kn_attn_fwd){.o = h, .q = h, .k = h, .v = h, .shape = s}),
            want);
        assert_int_equal(ops->attn_bwd(k.ctx, &(struct kn_attn_bwd){.dq = h,
                                                                    .dk = h,
                                                                    .dv = h,
                                                                    .d_o = h,
                                                                    .o = h,
                                                                    .q = h,
                                                                    .k = h,
                                                                    .v = h,
                                                                    .shape = s}),
                         want);
        assert_int_equal(
            ops->dequantize4(&(struct kn_dequantize4){.n = -bad, .type = KN_QUANT_FP4}), want);
    }
    assert_int_equal(k.ops->grad_sweep(k.ctx, &(struct kn_grad_sweep){.n = 1}), -EINVAL);
    assert_int_equal(k.ops->copy(k.ctx, &k, &k, 1, (enum kn_dir)7), -EINVAL);
    kit_close(&k);
}

/* A library that lacks memory is no broken device. */
static void failing_products(void **state)
{
    static const struct {
        const char *status; /* CUBLAS_STATUS_ALLOC_FAILED, CUBLAS_STATUS_EXECUTION_FAILED */
        int error;
    } cases[] = {{"3", -ENOMEM}, {"13", -EIO}, {NULL, 0}};
    struct linear_case c = {.m = 9, .k = 64, .n_parts = 1, .n = {32}};
    struct linear_call call = {0};
    struct kit k;

    (void)state;
    if (strcmp(backend, "sim") != 0)
        skip();
    assert_true(kit_open(&k, backend, dtype, 2));
    linear_make(&k, &c, &call);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        if (cases[i].status)
            assert_int_equal(setenv("CUSIM_BLAS_FAILS", cases[i].status, 1), 0);
        else
            assert_int_equal(unsetenv("CUSIM_BLAS_FAILS"), 0);
        assert_int_equal(k.ops->linear_fwd(k.ctx, &call.fwd), cases[i].error);
    }
    k.ops->weight_close(k.ctx, call.w);
    kit_close(&k);
}

/* A process's products: one of so many rows first, then one of 33, whose bits it prints. */
static void multiply(int64_t first)
{
    struct linear_case c = {.m = first, .k = 288, .n_parts = 1, .n = {80}, .r = {8}, .n_segs = 1};
    struct linear_call call = {0};
    struct kit k;
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */

    assert_true(kit_open(&k, backend, dtype, 2));
    linear_weight(&k, &c, &call.w);
    for (int i = 0; i < 2; i++) {
        linear_operands(&k, &c, &call);
        assert_int_equal(k.ops->linear_fwd(k.ctx, &call.fwd), 0);
        assert_int_equal(k.ops->linear_bwd(k.ctx, &call.bwd), 0);
        c.m = 33;
    }
    const struct kn_mat *const mats[] = {&call.y, &call.dx};
    for (int i = 0; i < 2; i++) {
        const size_t bytes = (size_t)(33 * mats[i]->ld) * (dtype == KN_BF16 ? 2 : 4);
        unsigned char *v = kit_down(&k, mats[i]->p, bytes);
        for (size_t j = 0; j < bytes; j++)
            hash = (hash ^ v[j]) * 0x100000001b3u;
        free(v);
    }
    printf("%016" PRIx64 "\n", hash);
    k.ops->weight_close(k.ctx, call.w);
    kit_close(&k);
}

/* Which algorithm a product takes is nobody's choice but its shape's. */
static void first_product(void **state)
{
    static const int firsts[] = {1, 1500};
    char program[PATH_MAX], command[PATH_MAX + 64], said[ARRAY_LEN(firsts)][32] = {{0}};
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);

    (void)state;
    assert_true(n > 0);
    program[n] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(firsts); i++) {
        snprintf(command, sizeof command, "LIMITS_FIRST=%d '%s' %s%s", firsts[i], program,
                 dtype == KN_BF16 ? "bf16 " : "", backend);
        FILE *f = popen(command, "r"); /* a process of its own: choices are kept in it */
        assert_non_null(f);
        assert_non_null(fgets(said[i], sizeof said[i], f));
        assert_int_equal(pclose(f), 0);
        assert_string_equal(said[i], said[0]);
    }
}

int main(int argc, char **argv)
{
    const char *first = getenv("LIMITS_FIRST");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(longest_windows),     cmocka_unit_test(no_queries),
        cmocka_unit_test(no_sequences),        cmocka_unit_test(unknown_ids),
        cmocka_unit_test(scales_between),      cmocka_unit_test(nested_values),
        cmocka_unit_test(empty_and_forbidden), cmocka_unit_test(failing_products),
        cmocka_unit_test(first_product),
    };

    dtype = kit_dtype(argc, argv);
    if (argc > 1 && strcmp(argv[argc - 1], "bf16") != 0)
        backend = argv[argc - 1];
    kit_require(backend);
    if (first) {
        multiply(strtol(first, NULL, 10));
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
