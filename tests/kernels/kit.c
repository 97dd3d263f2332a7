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
    if (argc > 2) /* another backend than the CPU's */
        return KN_BF16;
    if (!kit_open(&k, argc > 2 ? argv[2] : "cpu", KN_BF16, 1)) {
        puts("skipped: no AVX512-BF16 here (processor, or ONEDNN_MAX_CPU_ISA)");
        exit(77);
    }
    kit_close(&k);
    return KN_BF16;
}

void kit_require(const char *backend)
{
    const struct kn_ops *ops;
    struct kn_device d;
    char why[256] = "";
    const char *must = getenv("KN_REQUIRE");

    if (strcmp(backend, "cuda") != 0)
        return;
    if (kn_backend(backend, &ops, why, sizeof why) == 0 && ops->devices(&d, 1, why, sizeof why) > 0)
        return;
    printf("%s: %s\n", must && strcmp(must, backend) == 0 ? "required" : "skipped", why);
    exit(must && strcmp(must, backend) == 0 ? 1 : 77);
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

bool kit_on_host(const struct kit *k)
{
    return strncmp(k->ops->name, "ref", 3) == 0 || strcmp(k->ops->name, "cpu") == 0;
}

void kit_put(const struct kit *k, void *to, const void *host, size_t bytes)
{
    assert_int_equal(k->ops->copy(k->ctx, to, host, bytes, KN_TO_DEVICE), 0);
}

void kit_take(const struct kit *k, void *host, const void *from, size_t bytes)
{
    assert_int_equal(k->ops->copy(k->ctx, host, from, bytes, KN_TO_HOST), 0);
    assert_int_equal(k->ops->sync(k->ctx), 0);
}

void *kit_down(const struct kit *k, const void *from, size_t bytes)
{
    void *host = malloc(bytes ? bytes : 1);

    assert_non_null(host);
    kit_take(k, host, from, bytes);
    return host;
}

void kit_same(const char *what, const struct kit *ka, const void *a, const struct kit *kb,
              const void *b, size_t bytes)
{
    void *x = kit_down(ka, a, bytes), *y = kit_down(kb, b, bytes);
    const bool same = memcmp(x, y, bytes) == 0;

    free(x);
    free(y);
    if (!same)
        fail_msg("%s: not the same bits", what);
}

/* Elements of host memory, as the kit's backend stores them. */
static double load(const struct kit *k, const void *host, int64_t i, enum kn_dtype dtype)
{
    if (dtype == KN_BF16)
        return (double)bf16_to_f32(((const bf16 *)host)[i]);
    return k->wide ? ((const double *)host)[i] : (double)((const float *)host)[i];
}

static void store(const struct kit *k, void *host, int64_t i, enum kn_dtype dtype, double v)
{
    if (dtype == KN_BF16)
        ((bf16 *)host)[i] = bf16_from_f32((float)v);
    else if (k->wide)
        ((double *)host)[i] = v;
    else
        ((float *)host)[i] = (float)v;
}

static char *at_element(const struct kit *k, const void *p, int64_t i, enum kn_dtype dtype)
{
    return (char *)(uintptr_t)p + (size_t)i * elem(k, dtype);
}

static double get_one(const struct kit *k, const void *p, int64_t i, enum kn_dtype dtype)
{
    double host = 0;

    kit_take(k, &host, at_element(k, p, i, dtype), elem(k, dtype));
    return load(k, &host, 0, dtype);
}

static void set_one(const struct kit *k, void *p, int64_t i, enum kn_dtype dtype, double v)
{
    double host = 0;

    store(k, &host, 0, dtype, v);
    kit_put(k, at_element(k, p, i, dtype), &host, elem(k, dtype));
}

double kit_vec_get(const struct kit *k, const float *v, int64_t i)
{
    return get_one(k, v, i, KN_F32);
}

void kit_vec_set(const struct kit *k, float *v, int64_t i, double x)
{
    set_one(k, v, i, KN_F32, x);
}

double kit_get(const struct kit *k, const struct kn_mat *m, int64_t r, int64_t c)
{
    return get_one(k, m->p, r * m->ld + c, m->dtype);
}

void kit_set(const struct kit *k, const struct kn_mat *m, int64_t r, int64_t c, double v)
{
    set_one(k, m->p, r * m->ld + c, m->dtype, v);
}

static size_t mat_bytes(const struct kit *k, const struct kn_mat *m)
{
    return (size_t)(m->rows * m->ld) * elem(k, m->dtype);
}

void kit_fill(const struct kit *k, const struct kn_mat *m, int64_t r0, int64_t rows, uint64_t seed,
              int64_t row0, double scale)
{
    const size_t bytes = (size_t)(rows * m->ld) * elem(k, m->dtype);
    char *host = malloc(bytes ? bytes : 1);

    assert_non_null(host);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < m->ld; c++) {
            const double v = seed ? scale * kit_value(seed, row0 + r, c) : 0.0;
            store(k, host, r * m->ld + c, m->dtype, c < m->cols ? v : (double)NAN);
        }
    }
    kit_put(k, at_element(k, m->p, r0 * m->ld, m->dtype), host, bytes);
    free(host);
}

struct kn_mat kit_mat(struct kit *k, int64_t rows, int64_t cols, enum kn_dtype dtype, uint64_t seed,
                      int64_t row0, double scale)
{
    struct kn_mat m = {
        .rows = rows, .cols = cols, .ld = (cols / KN_LD + 1) * KN_LD + k->odd, .dtype = dtype};

    m.p = kit_alloc(k, mat_bytes(k, &m));
    kit_fill(k, &m, 0, rows, seed, row0, scale);
    return m;
}

float *kit_vec(struct kit *k, int64_t n, uint64_t seed, double scale, double offset)
{
    const size_t bytes = (size_t)n * elem(k, KN_F32);
    char *v = kit_alloc(k, bytes + (size_t)k->odd * elem(k, KN_F32));
    void *host = malloc(bytes ? bytes : 1);

    v += (size_t)k->odd * elem(k, KN_F32);
    assert_non_null(host);
    for (int64_t i = 0; i < n; i++)
        store(k, host, i, KN_F32, offset + (seed ? scale * kit_value(seed, 0, i) : 0.0));
    kit_put(k, v, host, bytes);
    free(host);
    return (float *)(void *)v;
}

int32_t *kit_ints(struct kit *k, const int32_t *v, int64_t n)
{
    int32_t *p = kit_alloc(k, (size_t)n * sizeof *p);

    kit_put(k, p, v, (size_t)n * sizeof *p);
    return p;
}

static void padding_of(const struct kit *k, const struct kn_mat *m, const void *host)
{
    for (int64_t r = 0; r < m->rows; r++) {
        for (int64_t c = m->cols; c < m->ld; c++) {
            if (!isnan(load(k, host, r * m->ld + c, m->dtype)))
                fail_msg("padding written at (%ld, %ld)", (long)r, (long)c);
        }
    }
}

void kit_padding(const struct kit *k, const struct kn_mat *m)
{
    void *host = kit_down(k, m->p, mat_bytes(k, m));

    padding_of(k, m, host);
    free(host);
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
    void *x = kit_down(ka, a->p, mat_bytes(ka, a)), *y = kit_down(kb, b->p, mat_bytes(kb, b));
    double max = 0.25;

    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->cols, b->cols);
    for (int64_t r = 0; r < b->rows; r++) {
        for (int64_t c = 0; c < b->cols; c++)
            max = fmax(max, fabs(load(kb, y, r * b->ld + c, b->dtype)));
    }
    for (int64_t r = 0; r < b->rows; r++) {
        for (int64_t c = 0; c < b->cols; c++) {
            const double want = load(kb, y, r * b->ld + c, b->dtype);
            const double ulp = a->dtype == KN_BF16 ? ldexp(fabs(want), -7) : 0.0;
            near(what, r, c, load(ka, x, r * a->ld + c, a->dtype), want,
                 ldexp(factor * max, -24) + ulp);
        }
    }
    padding_of(ka, a, x);
    padding_of(kb, b, y);
    free(x);
    free(y);
}

void kit_near_vec(const char *what, const struct kit *ka, const float *a, const struct kit *kb,
                  const float *b, int64_t n, double factor)
{
    void *x = kit_down(ka, a, (size_t)n * elem(ka, KN_F32));
    void *y = kit_down(kb, b, (size_t)n * elem(kb, KN_F32));
    double max = 0.25;

    for (int64_t i = 0; i < n; i++)
        max = fmax(max, fabs(load(kb, y, i, KN_F32)));
    for (int64_t i = 0; i < n; i++)
        near(what, 0, i, load(ka, x, i, KN_F32), load(kb, y, i, KN_F32), ldexp(factor * max, -24));
    free(x);
    free(y);
}

void kit_logits_near(const struct kit *ka, const struct kn_mat *a, const struct kit *kb,
                     const struct kn_mat *b, double allowed)
{
    void *x = kit_down(ka, a->p, mat_bytes(ka, a)), *y = kit_down(kb, b->p, mat_bytes(kb, b));

    for (int64_t r = 0; r < b->rows; r++) {
        for (int64_t c = 0; c < b->cols; c++) {
            const double want = load(kb, y, r * b->ld + c, b->dtype);
            const double ulp = a->dtype == KN_BF16 ? ldexp(fabs(want), -7) : 0.0;
            near("gradient of the logits", r, c, load(ka, x, r * a->ld + c, a->dtype), want,
                 allowed + ulp);
        }
    }
    free(x);
    free(y);
}

void kit_near_rms(const char *what, const struct kit *ka, const struct kn_mat *a,
                  const struct kit *kb, const struct kn_mat *b, double most)
{
    void *x = kit_down(ka, a->p, mat_bytes(ka, a)), *y = kit_down(kb, b->p, mat_bytes(kb, b));
    const double n = (double)(b->rows * b->cols > 0 ? b->rows * b->cols : 1);
    double off = 0.0, size = 0.0;

    for (int64_t r = 0; r < b->rows; r++) {
        for (int64_t c = 0; c < b->cols; c++) {
            const double want = load(kb, y, r * b->ld + c, b->dtype);
            const double d = load(ka, x, r * a->ld + c, a->dtype) - want;
            off += d * d;
            size += want * want;
        }
    }
    free(x);
    free(y);
    if (!(sqrt(off / n) <= most * sqrt(size / n) + 0x1p-20))
        fail_msg("%s: off by %.3g in the mean of %.3g, allowed %.3g of it", what, sqrt(off / n),
                 sqrt(size / n), most);
}
