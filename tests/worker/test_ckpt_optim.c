/* test_ckpt_optim.c - checkpoints of one optimizer or another: 8-bit moments to the bit, sizes
 * and scales that cannot be, the other optimizer's, and release 0.1's, which name none. */
#include "tests/support/test.h"

#include <errno.h>

#include "proto/sha256.h"
#include "tests/support/ckpt_rig.h"

static void comes_back_to_the_bit(void **state)
{
    const struct world *w = *state;
    struct ckpt_state got;
    void *image = NULL;
    struct err err = {""}, note;
    char name[64];

    assert_true(w->state.adapter.n_float > 0 && w->state.adapter.n_float < w->state.adapter.n / 2);
    save(w, 1, 7, 0);
    assert_int_equal(ckpt_find(w->run_dir.path, 2, &got, &image, name, &note, &err), 1);
    assert_memory_equal(image, w->image, w->bytes);
    assert_true(moments_shape_equal(&got.adapter, &w->state.adapter) && got.names_optim);
    free(image);
}

/* A sample of the bytes cut off or flipped. */
static void torn_files_are_not_taken(void **state)
{
    static const char *const files[] = {"state.json", "state.safetensors"};
    struct world *w = *state;
    struct err note;

    save(w, 1, 5, 0);
    save(w, 1, 7, 0);
    for (size_t k = 0; k < ARRAY_LEN(files); k++) {
        char path[320];
        size_t bytes;
        char *whole;

        snprintf(path, sizeof path, "%s/attempts/1/checkpoint-7/%s", w->run_dir.path, files[k]);
        whole = slurp(path, &bytes);
        for (size_t at = 0; at < bytes; at += bytes / 20 + 1) {
            spill(path, whole, at);
            assert_int_equal(find(w, 2, &note), 5);
            whole[at] ^= 0x20;
            spill(path, whole, bytes);
            assert_int_equal(find(w, 2, &note), 5);
            whole[at] ^= 0x20;
        }
        spill(path, whole, bytes);
        assert_int_equal(find(w, 2, &note), 7);
        free(whole);
    }
}

/* Another optimizer's moments are of no use, bitwise or not. */
static void other_optimizers_do_not_fit(void **state)
{
    struct world *w = *state;
    struct ckpt_state now = w->state;
    struct err err;

    assert_int_equal(ckpt_fits(&w->state, &now, true, &err), 0);
    now.adapter.n_blocks++; /* as many parameters in other tensors */
    assert_int_equal(ckpt_fits(&w->state, &now, false, &err), -EINVAL);
    assert_non_null(strstr(err.text, "lora_target_modules"));
    now.adapter = (struct moments_shape){.n = w->state.adapter.n};
    assert_int_equal(ckpt_fits(&w->state, &now, false, &err), -EINVAL);
    assert_non_null(strstr(err.text, "holds the moments of optim: adamw_8bit, this job has optim: "
                                     "adamw_torch"));
    assert_int_equal(ckpt_fits(&now, &w->state, true, &err), -EINVAL);
    assert_non_null(strstr(err.text, "optim: adamw_torch, this job has optim: adamw_8bit"));
}

/* Writes state.json anew with `was` replaced and the checksum made right again. */
static void change_state(const struct world *w, int64_t step, const char *was, const char *now)
{
    char path[320], text[4096], hex[SHA256_HEX];
    uint8_t digest[SHA256_BYTES];
    size_t bytes;
    char *whole, *at;

    snprintf(path, sizeof path, "%s/attempts/1/checkpoint-%lld/state.json", w->run_dir.path,
             (long long)step);
    whole = slurp(path, &bytes);
    whole[bytes] = 0;
    at = strstr(whole, was);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - whole), whole, now, at + strlen(was));
    at = strstr(text, "  \"check\": ");
    assert_non_null(at);
    sha256_of(text, (size_t)(at - text), digest);
    sha256_hex(digest, hex);
    snprintf(at, sizeof text - (size_t)(at - text), "  \"check\": \"%s\"\n}\n", hex);
    spill(path, text, strlen(text));
    free(whole);
}

/* Release 0.1 knew one optimizer and did not name it. */
static void older_release_is_read(void **state)
{
    struct world *w = *state;
    struct ckpt_state got;
    void *image = NULL;
    struct err err = {""}, note;
    char name[64];

    save(w, 1, 7, 0);
    change_state(w, 7, "  \"optim\": \"adamw_torch\",\n", "");
    if (ckpt_find(w->run_dir.path, 2, &got, &image, name, &note, &err) != 1)
        fail_msg("%s%s", note.text, err.text);
    assert_memory_equal(image, w->image, w->bytes);
    assert_true(moments_shape_equal(&got.adapter, &w->state.adapter));
    assert_false(got.names_optim);
    assert_int_equal(ckpt_fits(&got, &w->state, true, &err), 0);
    free(image);
}

static void wrong_sizes_are_not_taken(void **state)
{
    const struct moments_shape *a = &((struct world *)*state)->state.adapter;
    struct world *w = *state;
    struct err note;
    char was[64], now[64];

    save(w, 1, 5, 0);
    const struct {
        const char *key;
        int64_t value, other;
    } v[] = {{"n_blocks", a->n_blocks, a->n_blocks + 1},
             {"n_blocks", a->n_blocks, 1},
             {"n_float", a->n_float, a->n_float - 1},
             {"n_float", a->n_float, -1},
             {"n_float", a->n_float, 0},
             {"n_parameters", a->n, a->n - 1},
             {"n_parameters", a->n, INT64_MAX / 20}};
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        save(w, 1, 7, 0);
        snprintf(was, sizeof was, "\"%s\": %lld,", v[i].key, (long long)v[i].value);
        snprintf(now, sizeof now, "\"%s\": %lld,", v[i].key, (long long)v[i].other);
        change_state(w, 7, was, now);
        assert_int_equal(find(w, 2, &note), 5);
        assert_int_equal(
            rundir_remove(AT_FDCWD, temp_dir_path(&w->run_dir, "attempts/1/checkpoint-7")), 0);
    }
    static const char *const names[] = {"adamw_torch", "lion", "paged_adamw_8bit"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        save(w, 1, 7, 0);
        change_state(w, 7, "adamw_8bit", names[i]);
        assert_int_equal(find(w, 2, &note), 5);
        assert_int_equal(
            rundir_remove(AT_FDCWD, temp_dir_path(&w->run_dir, "attempts/1/checkpoint-7")), 0);
    }
    w->image[(size_t)a->n * 4 + 3] = (char)0xff; /* the first scale */
    save(w, 1, 7, 0);
    assert_int_equal(find(w, 2, &note), 5);
    assert_non_null(strstr(note.text, "a scale is below 0"));
}

#define TEST(f)  cmocka_unit_test_setup_teardown(f, set_up, tear_down)
#define TEST8(f) cmocka_unit_test_setup_teardown(f, set_up_8bit, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(older_release_is_read),      TEST8(comes_back_to_the_bit),
        TEST8(torn_files_are_not_taken),  TEST8(other_optimizers_do_not_fit),
        TEST8(wrong_sizes_are_not_taken),
    };

    return cmocka_run_group_tests_name("ckpt_optim", tests, NULL, NULL);
}
