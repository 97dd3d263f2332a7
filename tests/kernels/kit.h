/* kit.h - operands for tests of kernels: made from (seed, row, column), so that a
 * row is the same row in whatever call it stands, and checked padding.
 *
 * Operands lie in the backend's memory: everything here goes through ops->copy, so
 * the same tests run on a GPU. */
#ifndef TESTS_KERNELS_KIT_H
#define TESTS_KERNELS_KIT_H

#include "kernels/kernels.h"

struct kit {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    enum kn_dtype dtype;
    bool wide; /* KN_F32 storage is double: the finite differences' build of ref */
    int odd;   /* so many elements more between rows and before vectors: none begins
                  at 16 bytes                                                      */
    void *owned[256];
    int n_owned;
};

/* false: this host cannot run it (bf16). Fails the test on anything else. */
bool kit_open(struct kit *k, const char *backend, enum kn_dtype dtype, int threads);
void kit_close(struct kit *k);
/* Frees what was made since `mark` (k->n_owned of then). */
void kit_release(struct kit *k, int mark);

/* From the program's arguments: "bf16" [BACKEND] or nothing. Where the processor cannot,
 * says so and exits 77, which the test runner shows as a skip. */
enum kn_dtype kit_dtype(int argc, char **argv);

/* In [-1, 1), exact in float32. */
double kit_value(uint64_t seed, int64_t row, int64_t col);

/* Backend "cuda" without a GPU: says why and exits 77, a skip; 1 with
 * KN_REQUIRE=cuda. Other backends: nothing. */
void kit_require(const char *backend);
/* The backend's memory is the host's: it also checks indices it is given. */
bool kit_on_host(const struct kit *k);

void *kit_alloc(struct kit *k, size_t bytes);
void kit_put(const struct kit *k, void *to, const void *host, size_t bytes);
void kit_take(const struct kit *k, void *host, const void *from, size_t bytes);
void *kit_down(const struct kit *k, const void *from, size_t bytes); /* malloc'ed */
/* The same bits in two kits' memory. */
void kit_same(const char *what, const struct kit *ka, const void *a, const struct kit *kb,
              const void *b, size_t bytes);
/* Rows [r0, r0 + rows) of m as kit_mat fills them. */
void kit_fill(const struct kit *k, const struct kn_mat *m, int64_t r0, int64_t rows, uint64_t seed,
              int64_t row0, double scale);
/* (rows, cols) with ld > cols, the padding NaN. Values scale * kit_value(seed,
 * row0 + r, c); seed 0: zeros. */
struct kn_mat kit_mat(struct kit *k, int64_t rows, int64_t cols, enum kn_dtype dtype, uint64_t seed,
                      int64_t row0, double scale);
/* A float vector: offset + scale * kit_value(seed, 0, i). */
float *kit_vec(struct kit *k, int64_t n, uint64_t seed, double scale, double offset);
int32_t *kit_ints(struct kit *k, const int32_t *v, int64_t n);

/* One element: a copy each. */
double kit_get(const struct kit *k, const struct kn_mat *m, int64_t r, int64_t c);
void kit_set(const struct kit *k, const struct kn_mat *m, int64_t r, int64_t c, double v);
double kit_vec_get(const struct kit *k, const float *v, int64_t i);
void kit_vec_set(const struct kit *k, float *v, int64_t i, double x);

/* Every padding element is still the NaN kit_mat put there. */
void kit_padding(const struct kit *k, const struct kn_mat *m);

/* |a - b| <= factor * 2^-24 * max(max|b|, 1/4) everywhere, and in bf16 one ulp of
 * |b| more. The quarter is for results that cancel: operands are of size 1.
 * factor: how many roundings of what size reach the result, said at the call. */
void kit_near(const char *what, const struct kit *ka, const struct kn_mat *a, const struct kit *kb,
              const struct kn_mat *b, double factor);
void kit_near_vec(const char *what, const struct kit *ka, const float *a, const struct kit *kb,
                  const float *b, int64_t n, double factor);
/* |a - b| <= allowed (and one bf16 ulp of |b|) everywhere; padding not looked at. */
void kit_logits_near(const struct kit *ka, const struct kn_mat *a, const struct kit *kb,
                     const struct kn_mat *b, double allowed);
/* The root mean square of a - b is at most `most` times that of b (and 2^-20, for what
 * cancels to nothing): sharper than kit_near where values are rounded within. */
void kit_near_rms(const char *what, const struct kit *ka, const struct kn_mat *a,
                  const struct kit *kb, const struct kn_mat *b, double most);

#endif
