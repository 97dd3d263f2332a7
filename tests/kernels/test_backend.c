/* test_backend.c - opening backends: found, missing, of another version. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"

/* The table promises that no member is NULL; it is all pointers. */
static void every_member_is_set(const struct kn_ops *ops)
{
    const size_t n = sizeof *ops / sizeof(void *);
    void *members[sizeof *ops / sizeof(void *)];

    memcpy(members, ops, sizeof members);
    for (size_t i = 0; i < n; i++)
        assert_non_null(members[i]);
}

static void opens_ref(void **state)
{
    const struct kn_ops *ops = NULL, *again = NULL;
    struct kn_ctx *ctx = NULL;
    struct kn_info info;
    void *p = NULL;
    char why[256] = "";

    (void)state;
    assert_int_equal(kn_backend("ref", &ops, why, sizeof why), 0);
    assert_int_equal(kn_backend("ref", &again, why, sizeof why), 0);
    assert_ptr_equal(ops, again);
    assert_string_equal(ops->name, "ref");
    every_member_is_set(ops);
    assert_int_equal(ops->open(&(struct kn_open){.compute = KN_F16}, &ctx), -EINVAL);
    assert_int_equal(ops->open(&(struct kn_open){.threads = 1, .compute = KN_F32}, &ctx), 0);
    assert_int_equal(ops->info(ctx, &info), 0);
    assert_true(info.isa[0] && info.device[0] && info.mem_free <= info.mem_total);
    assert_int_equal(ops->alloc(ctx, 1000, &p), 0);
    assert_int_equal((uintptr_t)p % 256, 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(((char *)p)[i], 0);
    ops->free(ctx, p);
    ops->free(ctx, NULL);
    assert_int_equal(ops->alloc(ctx, SIZE_MAX, &p), -ENOMEM);
    assert_int_equal(ops->sync(ctx), 0);
    assert_int_equal(ops->poll(ctx), 1);
    assert_null(ops->stream(ctx));
    assert_null(kn_symbol(ops, "libnosuch.so.1", "nosuch"));
    assert_non_null(kn_symbol(ops, "libnosuch.so.1", "kn_table"));
    assert_non_null(kn_symbol(ops, "libm.so.6", "cos"));
    ops->close(ctx);
    ops->close(NULL);
}

static void says_why_not(void **state)
{
    const struct kn_ops *ops = NULL;
    char why[256] = "";

    (void)state;
    assert_int_equal(kn_backend("nosuch", &ops, why, sizeof why), -ENOENT);
    assert_non_null(strstr(why, "kn_nosuch.so"));
    assert_int_equal(kn_backend("../../etc/x", &ops, why, sizeof why), -ENOENT);
    assert_int_equal(kn_backend("", &ops, NULL, 0), -ENOENT);
    assert_null(ops);
}

static void refuses_what_is_no_module(void **state)
{
    const struct kn_ops *ops = NULL;
    char dir[] = "/tmp/alignd-backend-XXXXXX", path[64], why[512] = "";
    FILE *f;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/kn_bad.so", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs("no ELF file", f);
    fclose(f);
    setenv("ALIGND_KERNELS", dir, 1);
    assert_int_equal(kn_backend("bad", &ops, why, sizeof why), -ENOTSUP);
    assert_non_null(strstr(why, "kn_bad.so"));
    assert_int_equal(kn_backend("none", &ops, why, sizeof why), -ENOENT);
    unsetenv("ALIGND_KERNELS");
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_ref),
        cmocka_unit_test(says_why_not),
        cmocka_unit_test(refuses_what_is_no_module),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
