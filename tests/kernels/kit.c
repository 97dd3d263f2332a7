/* kit.c - operands for tests of kernels. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

bool kit_open(struct kit *k, const char *backend, enum kn_dtype dtype, int threads)
{
    char why[256] = "";
    int r;

    memset(k, 0, sizeof *k);
    k->dtype = dtype;
    k->wide = strcmp(backend, "refd") == 0;
    if (kn_backend(backend, &k->ops, why, sizeof why))
        fail_msg("%s: %s", backend, why);
    r = k->ops->open(&(struct kn_open){.threads = threads, .compute = dtype}, &k->ctx);
    if (r == -ENOTSUP && dtype == KN_BF16)
        return false;
    assert_int_equal(r, 0);
    return true;
}

enum kn_dtype kit_dtype(int argc, char **argv)
{
    struct kit k;

    if (argc < 2 || strcmp(argv[1], "bf16") != 0)
        return KN_F32;
    if (!kit_open(&k, "cpu", KN_BF16, 1)) {
        puts("skipped: no AVX512-BF16 here (processor, or ONEDNN_MAX_CPU_ISA)");
        exit(77);
    }
    kit_close(&k);
    return KN_BF16;
}

void kit_release(struct kit *k, int mark)
{
    while (k->n_owned > mark)
        k->ops->free(k->ctx, k->owned[--k->n_owned]);
}

void kit_close(struct kit *k)
{
    if (!k->ctx)
        return;
    kit_release(k, 0);
    k->ops->close(k->ctx);
    k->ctx = NULL;
}

double kit_value(uint64_t seed, int64_t row, int64_t col)
{
    uint64_t x = seed * 0x9E3779B97F4A7C15u + (uint64_t)row * 0xD1B54A32D192ED03u + (uint64_t)col;

    for (int i = 0; i < 2; i++) { /* the finaliser of splitmix64 */
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
    }
    return (double)(int64_t)(x >> 41) / 4194304.0 - 1.0;
}

void *kit_alloc(struct kit *k, size_t bytes)
{
    void *p = NULL;

    assert_true(k->n_owned < (int)ARRAY_LEN(k->owned));
    assert_int_equal(k->ops->alloc(k->ctx, bytes, &p), 0);
    k->owned[k->n_owned++] = p;
    return p;
}

static size_t elem(const struct kit *k, enum kn_dtype dtype)
{
    return dtype == KN_BF16 ? 2 : k->wide ? 8 : 4;
}

double kit_vec_get(const struct kit *k, const float *v, int64_t i)
{
    return k->wide ? ((const double *)(const void *)v)[i] : (double)v[i];
}

void kit_vec_set(const struct kit *k, float *v, int64_t i, double x)
{
    if (k->wide)
        ((double *)(void *)v)[i] = x;
    else
        v[i] = (float)x;
}

double kit_get(const struct kit *k, const struct kn_mat *m, int64_t r, int64_t c)
{
    if (m->dtype == KN_BF16)
        return (double)bf16_to_f32(((const bf16 *)m->p)[r * m->ld + c]);
    return kit_vec_get(k, m->p, r * m->ld + c);
}

void kit_set(const struct kit *k, const struct kn_mat *m, int64_t r, int64_t c, double v)
{
    if (m->dtype == KN_BF16)
        ((bf16 *)m->p)[r * m->ld + c] = bf16_from_f32((float)v);
    else
        kit_vec_set(k, m->p, r * m->ld + c, v);
}

struct kn_mat kit_mat(struct kit *k, int64_t rows, int64_t cols, enum kn_dtype dtype, uint64_t seed,
                      int64_t row0, double scale)
{
    struct kn_mat m = {
        .rows = rows, .cols = cols, .ld = (cols / KN_LD + 1) * KN_LD, .dtype = dtype};

    m.p = kit_alloc(k, (size_t)(rows * m.ld) * elem(k, dtype));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < m.ld; c++) {
            const double v = seed ? scale * kit_value(seed, row0 + r, c) : 0.0;
            kit_set(k, &m, r, c, c < cols ? v : (double)NAN);
        }
    }
    return m;
}

float *kit_vec(struct kit *k, int64_t n, uint64_t seed, double scale, double offset)
{
    float *v = kit_alloc(k, (size_t)n * elem(k, KN_F32));

    for (int64_t i = 0; i < n; i++)
        kit_vec_set(k, v, i, offset + (seed ? scale * kit_value(seed, 0, i) : 0.0));
    return v;
}

int32_t *kit_ints(struct kit *k, const int32_t *v, int64_t n)
{
    int32_t *p = kit_alloc(k, (size_t)n * sizeof *p);

    memcpy(p, v, (size_t)n * sizeof *p);
    return p;
}

void kit_padding(const struct kit *k, const struct kn_mat *m)
{
    for (int64_t r = 0; r < m->rows; r++) {
        for (int64_t c = m->cols; c < m->ld; c++) {
            if (!isnan(kit_get(k, m, r, c)))
                fail_msg("padding written at (%ld, %ld)", (long)r, (long)c);
        }
    }
}

static void near(const char *what, int64_t r, int64_t c, double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol))
        fail_msg("%s (%ld, %ld): %.9g, want %.9g: off by %.3g, allowed %.3g", what, (long)r,
                 (long)c, got, want, fabs(got - want), tol);
}

void kit_near(const char *what, const struct kit *ka, const struct kn_mat *a, const struct kit *kb,
              const struct kn_mat *b, double factor)
{
    double max = 0.25;

    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->cols, b->cols);
    for (int64_t r = 0; r < b->rows; r++) {
        for (int64_t c = 0; c < b->cols; c++)
            max = fmax(max, fabs(kit_get(kb, b, r, c)));
    }
    for (int64_t r = 0; r < b->rows; r++) {
        for (int64_t c = 0; c < b->cols; c++) {
            const double want = kit_get(kb, b, r, c);
            const double ulp = a->dtype == KN_BF16 ? ldexp(fabs(want), -7) : 0.0;
            near(what, r, c, kit_get(ka, a, r, c), want, ldexp(factor * max, -24) + ulp);
        }
    }
    kit_padding(ka, a);
    kit_padding(kb, b);
}

void kit_near_vec(const char *what, const struct kit *ka, const float *a, const struct kit *kb,
                  const float *b, int64_t n, double factor)
{
    double max = 0.25;

    for (int64_t i = 0; i < n; i++)
        max = fmax(max, fabs(kit_vec_get(kb, b, i)));
    for (int64_t i = 0; i < n; i++)
        near(what, 0, i, kit_vec_get(ka, a, i), kit_vec_get(kb, b, i), ldexp(factor * max, -24));
}
