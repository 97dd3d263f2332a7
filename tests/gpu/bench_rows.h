/* bench_rows.h - rows of random token ids of given lengths, for bench_gpu.c. */
#ifndef TESTS_GPU_BENCH_ROWS_H
#define TESTS_GPU_BENCH_ROWS_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/dataset.h"
#include "worker/model.h"
#include "worker/rng.h"

enum { BENCH_BATCHES = 2 }; /* optimizer batches there are rows for                  */

struct bench_rows {
    int p, c, r; /* tokens of the prompt and the replies; r 0: no second reply       */
    int batch;
    const struct dataset *data;
};

static inline const int32_t *bench_ids(uint64_t seed, uint64_t what, int n, int64_t vocab)
{
    int32_t *v = malloc((size_t)(n + 1) * sizeof *v);

    for (int i = 0; v && i < n; i++)
        v[i] = 3 + (int32_t)rng_below(seed, RNG_SAMPLES, what, (uint64_t)i, (uint64_t)vocab - 3);
    return v;
}

static inline int bench_rows_make(struct bench_rows *b, const char *model_dir, uint64_t seed,
                                  struct dataset *d, struct err *err)
{
    const int64_t n = (int64_t)b->batch * BENCH_BATCHES;
    struct model_config config;
    int r = model_config_read(model_dir, &config, err);

    if (r < 0)
        return r;
    *d = (struct dataset){.n_train = n, .longest = b->p + b->c + b->r};
    d->train = calloc((size_t)n, sizeof *d->train);
    b->data = d;
    for (int64_t i = 0; d->train && i < n; i++) {
        struct example *e = &d->train[i];
        const uint64_t k = 4 * (uint64_t)i;
        e->ordinal = (uint64_t)i;
        e->row = i + 1;
        e->n_prompt = b->p;
        e->n_reply[0] = b->c;
        e->n_reply[1] = b->r;
        e->prompt = bench_ids(seed, k, b->p, config.vocab);
        e->reply[0] = bench_ids(seed, k + 1, b->c, config.vocab);
        e->reply[1] = bench_ids(seed, k + 2, b->r, config.vocab);
        if (!e->prompt || !e->reply[0] || !e->reply[1])
            return -ENOMEM;
    }
    return d->train ? 0 : -ENOMEM;
}

static inline void bench_rows_free(struct dataset *d)
{
    for (int64_t i = 0; d->train && i < d->n_train; i++) {
        free((void *)d->train[i].prompt);
        free((void *)d->train[i].reply[0]);
        free((void *)d->train[i].reply[1]);
    }
    free(d->train);
}

static inline void bench_print_ids(FILE *f, const char *name, const int32_t *v, int n)
{
    fprintf(f, "\"%s\": [", name);
    for (int i = 0; i < n; i++)
        fprintf(f, "%s%d", i ? ", " : "", v[i]);
    fputs("]", f);
}

/* All rows as a JSON array of objects: prompt, chosen, rejected. */
static inline int bench_rows_write(const struct bench_rows *b, const char *path)
{
    FILE *f = fopen(path, "we");

    if (!f)
        return -errno;
    for (int64_t i = 0; i < b->data->n_train; i++) {
        const struct example *e = &b->data->train[i];
        fputs(i ? ",\n{" : "[{", f);
        bench_print_ids(f, "prompt", e->prompt, e->n_prompt);
        fputs(", ", f);
        bench_print_ids(f, "chosen", e->reply[0], e->n_reply[0]);
        fputs(", ", f);
        bench_print_ids(f, "rejected", e->reply[1], e->n_reply[1]);
        fputs("}", f);
    }
    fputs("]\n", f);
    return fclose(f) == 0 ? 0 : -errno;
}

static inline void bench_rows_list(const char *name, const double *v, int n)
{
    printf(", \"%s\": [", name);
    for (int i = 0; i < n; i++)
        printf("%s%.17g", i ? ", " : "", v[i]);
    printf("]");
}

#endif
