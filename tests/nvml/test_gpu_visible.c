/* test_gpu_visible.c - CUDA_VISIBLE_DEVICES and what Slurm gave, word by word. */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "daemon/gpu_visible.h"

static const char *const UUIDS[] = {"GPU-aaaa0000-1111", "GPU-aabb0000-1111", "GPU-cccc0000-1111",
                                    "GPU-dddd0000-1111"};
static const char *const ALIKE[] = {"H100", "H100", "H100", "H100"};
static const char *const MIXED[] = {"H100", "T4", "H100", "H100"};

static const char *const WHOLE[] = {"", "", "", ""};

static const char *seen(const struct gpu_visible_env *e, const char *const *names, size_t n,
                        char *note, size_t size)
{
    static char text[8];
    bool ret[4];
    size_t count = gpu_visible(e, UUIDS, names, WHOLE, n, ret, note, size), k = 0;

    for (size_t i = 0; i < n; i++)
        if (ret[i])
            text[k++] = (char)('0' + i);
    text[k] = 0;
    assert_int_equal(count, k);
    return text;
}

/* Of the second of three GPUs there are two instances. */
static void test_instances(void **state)
{
    static const char *const uuids[] = {"GPU-aaaa", "MIG-1111", "MIG-1122", "GPU-cccc"};
    static const char *const parents[] = {"", "GPU-bbbb", "GPU-bbbb", ""};
    static const struct {
        const char *list, *want;
    } t[] = {
        {"MIG-1122", "2"}, {"mig-1111", "1"}, {"MIG-11", ""},  {"MIG-3,0", ""},       {"1", "12"},
        {"2", "3"},        {"3", ""},         {"GPU-b", "12"}, {"GPU-bbbb,0", "012"},
    };
    char note[256], text[8];
    bool ret[4];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        const struct gpu_visible_env e = {.cuda_visible_devices = t[i].list};
        size_t k = 0;
        (void)gpu_visible(&e, uuids, ALIKE, parents, 4, ret, note, sizeof note);
        for (size_t d = 0; d < 4; d++)
            if (ret[d])
                text[k++] = (char)('0' + d);
        text[k] = 0;
        assert_string_equal(text, t[i].want);
    }
}

static void test_cuda_visible_devices(void **state)
{
    static const struct {
        const char *list, *want;
    } t[] = {
        {"", ""},
        {"0", "0"},
        {"2,0", "02"},
        {"0, 3", "03"},
        {"1,1", "1"},
        {"-1", ""},
        {"0,-1,1", "0"}, /* as CUDA: what follows does not count */
        {"7", ""},
        {"0,7,1", "0"},
        {"NoDevFiles", ""},
        {"GPU-cccc", "2"},
        {"gpu-CCCC0000-1111,0", "02"},
        {"GPU-aa", ""}, /* the beginning of two */
        {"GPU-aab,GPU-d", "13"},
        {"GPU-ffff,0", ""},
        {"GPU-", ""},
        {"MIG-aaaa0000/1/0", ""},
        {"MIG-aaaa,2", ""},
        {"0,,1", "0"},
        {",", ""},
        {"99999999999999999999999999", ""},
        {"0x1", ""},
    };
    char note[256];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        const struct gpu_visible_env e = {.cuda_visible_devices = t[i].list};
        const char *got = seen(&e, ALIKE, 4, note, sizeof note);
        if (strcmp(got, t[i].want) != 0)
            fail_msg("\"%s\": %s, not %s", t[i].list, got, t[i].want);
        assert_non_null(strstr(note, "CUDA_VISIBLE_DEVICES leaves"));
    }
}

static void test_nothing_said(void **state)
{
    const struct gpu_visible_env none = {0}, all = {.cuda_visible_devices = "0,1,2,3"};
    char note[256];

    (void)state;
    assert_string_equal(seen(&none, ALIKE, 4, note, sizeof note), "0123");
    assert_string_equal(note, "");
    assert_string_equal(seen(&all, ALIKE, 4, note, sizeof note), "0123");
    assert_string_equal(note, "");
    assert_string_equal(seen(&all, ALIKE, 0, note, sizeof note), "");
}

static void test_indices_of_mixed_gpus(void **state)
{
    const struct gpu_visible_env e = {.cuda_visible_devices = "1"},
                                 pci = {.cuda_visible_devices = "1",
                                        .cuda_device_order = "PCI_BUS_ID"},
                                 uuid = {.cuda_visible_devices = "GPU-cccc"};
    char note[256];

    (void)state;
    assert_string_equal(seen(&e, MIXED, 4, note, sizeof note), "1");
    assert_non_null(strstr(note, "use UUIDs"));
    (void)seen(&pci, MIXED, 4, note, sizeof note);
    assert_null(strstr(note, "use UUIDs"));
    (void)seen(&uuid, MIXED, 4, note, sizeof note);
    assert_null(strstr(note, "use UUIDs"));
}

static void test_slurm(void **state)
{
    static const struct {
        const char *cuda, *step, *job, *want;
        size_t n;
    } t[] = {
        {NULL, NULL, NULL, "", 4},    /* a job without GPUs                          */
        {NULL, NULL, "1,3", "13", 4}, /* no cgroups: the node's numbers              */
        {NULL, NULL, "1-2", "12", 4}, {NULL, "2", "1-2", "2", 4}, /* the step's share of the job */
        {NULL, NULL, "6,7", "01", 2}, /* cgroups show these two alone, from 0        */
        {NULL, NULL, "0-1", "01", 2}, {"0", NULL, "6,7", "0", 2}, /* CUDA's own word goes first */
        {NULL, NULL, "x", "", 4},     {NULL, NULL, "3-1", "", 4}, {NULL, NULL, "", "", 4},
    };
    char note[256];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        const struct gpu_visible_env e = {.cuda_visible_devices = t[i].cuda,
                                          .slurm_job_id = "17",
                                          .slurm_step_gpus = t[i].step,
                                          .slurm_job_gpus = t[i].job};
        const char *got = seen(&e, ALIKE, t[i].n, note, sizeof note);
        if (strcmp(got, t[i].want) != 0)
            fail_msg("case %zu: %s, not %s", i, got, t[i].want);
    }
    assert_non_null(strstr(note, "the Slurm job leaves 0 of 4 GPUs"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_instances), cmocka_unit_test(test_cuda_visible_devices),
        cmocka_unit_test(test_nothing_said), cmocka_unit_test(test_indices_of_mixed_gpus),
        cmocka_unit_test(test_slurm)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
