/* example_set.h - data sets made of token ids: of the TRL fixtures, or random. */
#ifndef TESTS_SUPPORT_EXAMPLE_SET_H
#define TESTS_SUPPORT_EXAMPLE_SET_H

#include "tests/support/test.h"

#include <jansson.h>
#include <stdlib.h>

#include "worker/batch.h"
#include "worker/dataset.h"
#include "worker/rng.h"

static inline const int32_t *example_set_ids(const json_t *a, int32_t *ret_n)
{
    const size_t n = json_array_size(a);
    int32_t *v = malloc((n + 1) * sizeof *v);

    for (size_t i = 0; i < n; i++)
        v[i] = (int32_t)json_integer_value(json_array_get(a, i));
    *ret_n = (int32_t)n;
    return v;
}

static inline void example_set_measure(struct dataset *d)
{
    d->longest = 0;
    for (int64_t i = 0; i < d->n_train; i++)
        if (batch_example_tokens(&d->train[i], true) > d->longest)
            d->longest = (int32_t)batch_example_tokens(&d->train[i], true);
}

/* rows: objects of prompt and chosen, rejected (pairs) or completion. */
static inline void example_set_of(const json_t *rows, struct dataset *d)
{
    *d = (struct dataset){.n_train = (int64_t)json_array_size(rows)};
    d->train = calloc((size_t)d->n_train, sizeof *d->train);
    for (int64_t i = 0; i < d->n_train; i++) {
        const json_t *row = json_array_get(rows, (size_t)i);
        const json_t *first = json_object_get(row, "chosen");
        struct example *e = &d->train[i];

        if (first == NULL)
            first = json_object_get(row, "completion");
        e->ordinal = (uint64_t)i;
        e->row = i + 1;
        e->prompt = example_set_ids(json_object_get(row, "prompt"), &e->n_prompt);
        e->reply[0] = example_set_ids(first, &e->n_reply[0]);
        e->reply[1] = example_set_ids(json_object_get(row, "rejected"), &e->n_reply[1]);
    }
    example_set_measure(d);
}

static inline const int32_t *example_set_draw(uint64_t seed, uint64_t what, int32_t n,
                                              int32_t vocab)
{
    int32_t *v = malloc((size_t)(n + 1) * sizeof *v);

    for (int32_t i = 0; i < n; i++)
        v[i] = (int32_t)rng_below(seed, RNG_SAMPLES, what, (uint64_t)i, (uint64_t)vocab);
    return v;
}

/* n_train and n_eval random pairs of 3 to `most` tokens a part. */
static inline void example_set_random(struct dataset *d, uint64_t seed, int64_t n_train,
                                      int64_t n_eval, int32_t most, int32_t vocab, bool pairs)
{
    *d = (struct dataset){.n_train = n_train, .n_eval = n_eval};
    d->train = calloc((size_t)(n_train + n_eval), sizeof *d->train);
    d->eval = d->train + n_train;
    for (int64_t i = 0; i < n_train + n_eval; i++) {
        struct example *e = &d->train[i];
        const uint64_t k = 100 + 8 * (uint64_t)i;
        int32_t n[3];

        for (uint64_t j = 0; j < 3; j++)
            n[j] = 3 + (int32_t)rng_below(seed, RNG_SPLIT, k, j, (uint64_t)most - 2);
        e->ordinal = (uint64_t)(i < n_train ? i : i - n_train);
        e->row = i + 1;
        e->n_prompt = n[0];
        e->n_reply[0] = n[1];
        e->n_reply[1] = pairs ? n[2] : 0;
        e->prompt = example_set_draw(seed, k, n[0], vocab);
        e->reply[0] = example_set_draw(seed, k + 1, n[1], vocab);
        e->reply[1] = example_set_draw(seed, k + 2, n[2], vocab);
    }
    example_set_measure(d);
}

static inline void example_set_free(struct dataset *d)
{
    for (int64_t i = 0; i < d->n_train + d->n_eval; i++) {
        free((void *)d->train[i].prompt);
        free((void *)d->train[i].reply[0]);
        free((void *)d->train[i].reply[1]);
    }
    free(d->train);
    *d = (struct dataset){0};
}

#endif
