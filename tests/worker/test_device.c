/* test_device.c - which backend and which devices a job gets, and why it does not. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/has_sim.h"
#include "worker/device.h"
#include "worker/trainer.h"

static const struct spec gpu = {.device_type = SPEC_DEVICE_GPU, .devices = 2, .bf16_auto = true};
static const struct spec cpu = {.device_type = SPEC_DEVICE_CPU, .devices = 2, .bf16_auto = true};
static const struct spec any = {.device_type = SPEC_DEVICE_AUTO, .devices = 2, .bf16_auto = true};

static void tell(const char *backend, const char *devices)
{
    if (backend)
        setenv("ALIGND_BACKEND", backend, 1);
    else
        unsetenv("ALIGND_BACKEND");
    if (devices)
        setenv("CUSIM_DEVICES", devices, 1);
    else
        unsetenv("CUSIM_DEVICES");
}

static void takes_gpus(void **state)
{
    struct device_set d;
    struct err err;

    (void)state;
    if (!has_sim)
        skip();
    tell("sim", "2");
    assert_int_equal(device_look(&gpu, &d, &err), 0);
    assert_true(d.gpu && d.n == 2 && strcmp(d.backend, "sim") == 0 && d.why[0] == '\0');
    assert_true(strncmp(d.v[0].uuid, "GPU-", 4) == 0 && strlen(d.v[0].uuid) == 40);
    assert_string_not_equal(d.v[0].uuid, d.v[1].uuid);
    assert_int_equal(device_look(&any, &d, &err), 0);
    assert_true(d.gpu);
    assert_int_equal(device_look(&cpu, &d, &err), 0);
    assert_true(!d.gpu && strcmp(d.backend, "cpu") == 0);
    tell("sim", "1");
    assert_int_equal(device_look(&any, &d, &err), -ENODEV);
    assert_non_null(strstr(err.text, "only 1 GPU can be used here"));
}

static void says_why_there_is_none(void **state)
{
    struct device_set d;
    struct err err;

    (void)state;
    tell("ref", NULL);
    assert_int_equal(device_look(&gpu, &d, &err), -ENODEV);
    assert_non_null(strstr(err.text, "device_type: gpu"));
    assert_non_null(strstr(err.text, "ALIGND_BACKEND"));
    assert_int_equal(device_look(&any, &d, &err), 0);
    assert_true(!d.gpu && d.why[0] && strcmp(d.backend, "ref") == 0);
    if (!has_sim)
        return;
    tell("sim", "0");
    assert_int_equal(setenv("CUDA_VISIBLE_DEVICES", "", 1), 0);
    assert_int_equal(device_look(&gpu, &d, &err), -ENODEV);
    assert_non_null(strstr(err.text, "CUDA finds no GPU"));
    assert_non_null(strstr(err.text, "CUDA_VISIBLE_DEVICES is \"\""));
    assert_non_null(strstr(err.text, "set device_type: cpu"));
    assert_int_equal(device_look(&any, &d, &err), 0);
    assert_true(!d.gpu && d.n == 0);
    unsetenv("CUDA_VISIBLE_DEVICES");
    tell("sim", "2");
    assert_int_equal(setenv("CUSIM_SM", "75", 1), 0);
    assert_int_equal(device_look(&gpu, &d, &err), -ENODEV);
    assert_non_null(strstr(err.text, "compute capability 7.5, 8.0 is needed"));
    unsetenv("CUSIM_SM");
}

static void decides_what_was_open(void **state)
{
    struct spec s = any;

    (void)state;
    device_settle(&s, true);
    assert_true(s.bf16);
    device_settle(&s, false);
    assert_false(s.bf16);
    s.bf16_auto = false;
    device_settle(&s, true);
    assert_false(s.bf16);
}

/* A rank opens the device it was given, whatever its index, or none. */
static void opens_by_uuid(void **state)
{
    struct device_set d;
    struct trainer t;
    struct kn_info info;
    struct kn_ctx *ctx;
    struct err err = {""};
    struct spec s = gpu;

    (void)state;
    if (!has_sim)
        skip();
    tell("sim", "2");
    assert_int_equal(device_look(&gpu, &d, &err), 0);
    assert_int_equal(d.ops->open(&(struct kn_open){.uuid = d.v[1].uuid, .compute = KN_F32}, &ctx),
                     0);
    assert_int_equal(d.ops->info(ctx, &info), 0);
    assert_string_equal(info.uuid, d.v[1].uuid);
    d.ops->close(ctx);
    s.model_dir = (char *)"/nowhere";
    const struct trainer_opts o = {
        .spec = &s, .backend = "sim", .uuid = "GPU-00000000-0000-0000-0000-000000000000"};
    assert_int_equal(trainer_open(&t, &o, &err), -ENODEV);
    assert_non_null(strstr(err.text, "was given GPU-00000000-0000-0000-0000-000000000000"));
    trainer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_gpus),
        cmocka_unit_test(says_why_there_is_none),
        cmocka_unit_test(decides_what_was_open),
        cmocka_unit_test(opens_by_uuid),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
