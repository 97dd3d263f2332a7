/* test_adamw8_bnb.c - AdamW with moments in 8 bits against bitsandbytes: both maps entry by
 * entry, six steps with every code the same, a step from the state its CPU backend had. */
#include "tests/support/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "adamw8_case.h"
#include "tests/support/test_data.h"

static const char *backend;

/* What bitsandbytes says (tests/oracle/make_adamw8.py). */
struct fixture {
    json_t *root;
    struct kit k;
    struct adamw8_case s;
    int64_t n, n8;
    float *p0, *g;
};

/* A field's bytes, malloc'ed. */
static void *unhex(const json_t *v, size_t bytes)
{
    const char *hex = json_string_value(v);
    uint8_t *out = malloc(bytes);

    assert_non_null(hex);
    assert_non_null(out);
    assert_int_equal(strlen(hex), 2 * bytes);
    for (size_t i = 0; i < bytes; i++) {
        const char two[3] = {hex[2 * i], hex[2 * i + 1], 0};
        out[i] = (uint8_t)strtoul(two, NULL, 16);
    }
    return out;
}

static int64_t integer(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static float number(const json_t *o, const char *key)
{
    return (float)json_number_value(json_object_get(o, key));
}

/* The script's gradient of a step, in f->g. */
static void fixture_gradient(struct fixture *f, int step)
{
    const uint64_t seed = (uint64_t)integer(f->root, "seed");

    for (int64_t i = 0; i < f->n; i++)
        f->g[i] = (float)ldexp(kit_value(seed, 2 * step, i),
                               -(int)(4.0 + 4.0 * kit_value(seed, 2 * step + 1, i)));
}

static void fixture_open(struct fixture *f)
{
    json_error_t why;
    int64_t tensors[2];

    f->root = json_load_file(test_data_path("fixtures/adamw8.json"), 0, &why);
    if (!f->root)
        fail_msg("adamw8.json: %s", why.text);
    const json_t *sizes = json_object_get(f->root, "tensors");
    for (size_t i = 0; i < 2; i++)
        tensors[i] = json_integer_value(json_array_get(sizes, i));
    assert_true(kit_open(&f->k, backend, KN_F32, 2));
    adamw8_case_make(&f->s, &f->k, tensors, 2, 4096);
    f->n = f->s.a.n;
    f->n8 = tensors[0];
    f->p0 = malloc((size_t)f->n * sizeof(float));
    f->g = malloc((size_t)f->n * sizeof(float));
    assert_true(f->p0 && f->g);
    for (int64_t i = 0; i < f->n; i++)
        f->p0[i] = (float)kit_value((uint64_t)integer(f->root, "seed"), 0, i);
    kit_put(&f->k, f->s.a.p, f->p0, (size_t)f->n * sizeof(float));
}

static void fixture_close(struct fixture *f)
{
    kit_close(&f->k);
    json_decref(f->root);
    free(f->p0);
    free(f->g);
}

/* One update; returns what the gradient was multiplied with. */
static double fixture_step(struct fixture *f, int t, const json_t *run)
{
    const double beta1 = json_number_value(json_object_get(f->root, "beta1"));
    const double beta2 = json_number_value(json_object_get(f->root, "beta2"));
    const json_t *lr = json_object_get(f->root, "learning_rate");
    const struct kn_adamw_step step = {
        .lr = (float)json_number_value(json_array_get(lr, (size_t)t - 1)),
        .beta1 = (float)beta1,
        .beta2 = (float)beta2,
        .eps = number(f->root, "eps"),
        .weight_decay = number(f->root, "weight_decay"),
        .max_grad_norm = number(f->root, "max_grad_norm"),
        .bias1 = (float)(1.0 - pow(beta1, t)),
        .bias2 = (float)(1.0 - pow(beta2, t))};
    const double norm =
        json_number_value(json_array_get(json_object_get(run, "grad_norm"), (size_t)t - 1));

    fixture_gradient(f, t);
    const struct kn_sweep sweep = adamw8_case_sweep(f->g, f->n);
    assert_true(fabs(sqrt(sweep.sum_sq) / norm - 1.0) < 1e-6);
    kit_put(&f->k, f->s.g, f->g, (size_t)f->n * sizeof(float));
    adamw8_case_step(&f->s, &step, &sweep);
    return fmin(1.0, (double)step.max_grad_norm / (norm + 1e-6));
}

static void maps(void **unused)
{
    static const char *const names[] = {"signed", "unsigned"};
    struct fixture f;

    (void)unused;
    fixture_open(&f);
    for (int u = 0; u < 2; u++) {
        float *want = unhex(json_object_get(f.root, names[u]), 256 * 4), map[256];
        kn_dynamic_map(map, u == 0);
        assert_memory_equal(map, want, sizeof map);
        free(want);
    }
    fixture_close(&f);
}

/* |a - b| <= most * max(|b|, least) everywhere. */
static void close_to(const struct kit *k, const float *a, const json_t *want, int64_t n,
                     double most, double least)
{
    float *x = kit_down(k, a, (size_t)n * sizeof *x), *y = unhex(want, (size_t)n * sizeof *y);

    for (int64_t i = 0; i < n; i++)
        if (fabs((double)x[i] - (double)y[i]) > most * fmax(fabs((double)y[i]), least))
            fail_msg("element %lld: %.9g, not %.9g", (long long)i, (double)x[i], (double)y[i]);
    free(x);
    free(y);
}

/* All but the codes. 1 - beta is taken of a float32 beta, as in bitsandbytes' CUDA kernel;
 * torch takes it of a double: of 0.1 2.4e-7, of 0.001 1.3e-5 (v, and half of it in what p
 * moves by). Besides, each is a few float32 operations away, of terms up to about 4e-3 in
 * m: units of 2^-23. */
static void all_but_codes(struct fixture *f, const json_t *want)
{
    const struct kn_adamw8 *a = &f->s.a;
    const int64_t blocks = (f->n8 + 255) / 256, rest = f->n - f->n8;
    const double unit = ldexp(1.0, -23);

    close_to(&f->k, a->p, json_object_get(want, "p"), f->n, 3.0 * unit, 1.0);
    close_to(&f->k, a->m_scale, json_object_get(want, "m_scale"), blocks, 6.0 * unit, 0.0);
    close_to(&f->k, a->v_scale, json_object_get(want, "v_scale"), blocks, 1.4e-5, 0.0);
    close_to(&f->k, a->m32, json_object_get(want, "m32"), rest, 6.0 * unit, 4e-3);
    close_to(&f->k, a->v32, json_object_get(want, "v32"), rest, 1.4e-5, 0.0);
}

/* Six steps beside bitsandbytes with a quantiser that finds the nearest entry: every
 * code is the same. */
static void trajectory(void **unused)
{
    struct fixture f;

    (void)unused;
    fixture_open(&f);
    const json_t *run = json_array_get(json_object_get(f.root, "runs"), 1);
    const json_t *want = json_array_get(json_object_get(run, "after"), 0);
    assert_string_equal(json_string_value(json_object_get(run, "quantizer")), "default");
    for (int t = 1; t <= 6; t++)
        fixture_step(&f, t, run);
    all_but_codes(&f, want);
    for (int u = 0; u < 2; u++) {
        uint8_t *codes = unhex(json_object_get(want, u ? "v" : "m"), (size_t)f.n8);
        uint8_t *ours = kit_down(&f.k, u ? f.s.a.v : f.s.a.m, (size_t)f.n8);
        assert_memory_equal(ours, codes, (size_t)f.n8);
        free(codes);
        free(ours);
    }
    fixture_close(&f);
}

/* Is code an entry nearest to something within `off` of x? */
static bool between(const float *map, int code, double x, double off, bool is_signed)
{
    return adamw8_case_nearest(map, (float)(x - off), is_signed) <= code &&
           code <= adamw8_case_nearest(map, (float)(x + off), is_signed);
}

/* The codes after a step from these codes and scales, ours and bitsandbytes': its table
 * is of what lies within half of one of its 65535 steps of 2 / 65535 (and 3 % for the
 * rounding on the way to it). */
static void one_step_codes(struct fixture *f, const json_t *before, const json_t *after,
                           bool second, double clip)
{
    const char *const key = second ? "v" : "m", *const scale_key = second ? "v_scale" : "m_scale";
    const double beta = json_number_value(json_object_get(f->root, second ? "beta2" : "beta1"));
    const size_t n = (size_t)f->n8, blocks = (n + 255) / 256;
    const struct kn_adamw8 *a = &f->s.a;
    uint8_t *old = unhex(json_object_get(before, key), n), *codes[2];
    float *scale = unhex(json_object_get(before, scale_key), blocks * 4), *now[2], map[256];

    codes[0] = kit_down(&f->k, second ? a->v : a->m, n); /* ours, bitsandbytes' */
    codes[1] = unhex(json_object_get(after, key), n);
    now[0] = kit_down(&f->k, second ? a->v_scale : a->m_scale, blocks * 4);
    now[1] = unhex(json_object_get(after, scale_key), blocks * 4);
    kn_dynamic_map(map, !second);
    for (size_t i = 0; i < n; i++) {
        const double g = (double)f->g[i] * clip, rest[2] = {1.0 - (double)(float)beta, 1.0 - beta};
        const double was = beta * (double)map[old[i]] * (double)scale[i / 256];
        for (int t = 0; t < 2; t++) {
            const double x = (was + rest[t] * (second ? g * g : g)) / (double)now[t][i / 256];
            const double off = t ? 1.03 / 65535.0 : 5e-7 * fabs(x);
            assert_true(between(map, codes[t][i], x, off, !second && t == 0));
        }
    }
    free(old);
    free(scale);
    for (int t = 0; t < 2; t++) {
        free(codes[t]);
        free(now[t]);
    }
}

/* One step of bitsandbytes as it is, from the state it had. */
static void from_its_state(void **unused)
{
    struct fixture f;

    (void)unused;
    fixture_open(&f);
    const json_t *run = json_array_get(json_object_get(f.root, "runs"), 0);
    const json_t *after = json_object_get(run, "after");
    const json_t *five = json_array_get(after, 0), *six = json_array_get(after, 1);
    const struct kn_adamw8 *a = &f.s.a;
    const size_t n8 = (size_t)f.n8, blocks = (n8 + 255) / 256, rest = (size_t)f.n - n8;
    const struct {
        const char *key;
        void *to;
        size_t bytes;
    } put[] = {{"p", a->p, (size_t)f.n * 4},
               {"m", a->m, n8},
               {"v", a->v, n8},
               {"m_scale", a->m_scale, blocks * 4},
               {"v_scale", a->v_scale, blocks * 4},
               {"m32", a->m32, rest * 4},
               {"v32", a->v32, rest * 4}};
    assert_int_equal(integer(five, "step"), 5);
    for (size_t i = 0; i < ARRAY_LEN(put); i++) {
        void *host = unhex(json_object_get(five, put[i].key), put[i].bytes);
        kit_put(&f.k, put[i].to, host, put[i].bytes);
        free(host);
    }
    const double clip = fixture_step(&f, 6, run);
    all_but_codes(&f, six);
    one_step_codes(&f, five, six, false, clip);
    one_step_codes(&f, five, six, true, clip);
    fixture_close(&f);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"ref", "cpu"};
    const size_t n = argc > 1 ? 1 : ARRAY_LEN(names);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps),
        cmocka_unit_test(trajectory),
        cmocka_unit_test(from_its_state),
    };
    int failed = 0;

    if (argc > 1)
        kit_require(argv[1]);
    for (size_t i = 0; i < n; i++) {
        backend = argc > 1 ? argv[1] : names[i];
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
