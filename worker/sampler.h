/* sampler.h - which examples make which optimizer step, and on which rank.
 *
 * Pure: a function of (seed, examples, batch, step), so that a resumed run goes
 * on exactly where the interrupted one stopped. Each epoch is a fresh shuffle;
 * its last step holds what is left. One thread per sampler. */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H

#include <stdint.h>

struct sampler {
    uint64_t seed; /* data_seed */
    int64_t n;     /* examples of the training set                                  */
    int64_t batch; /* examples of a full optimizer step                             */
    int64_t epoch; /* whose order perm holds; -1: none yet                          */
    uint32_t *perm;
};

/* n in [1, 2^32), batch > 0. Returns 0, -EINVAL, -ENOMEM. */
int sampler_init(struct sampler *s, uint64_t seed, int64_t n, int64_t batch);
void sampler_fini(struct sampler *s); /* NULL is a no-op */

int64_t sampler_steps_per_epoch(int64_t n, int64_t batch);

/* The examples of optimizer step `step` (from 0) in step order: *ret points into
 * the sampler until the next call. */
void sampler_step(struct sampler *s, int64_t step, const uint32_t **ret, int *ret_n);

/* Deals n examples of the given token counts to ranks so that the fullest rank has
 * as little as possible (longest first to the emptiest; ties to the lower index).
 * order: out (n) the examples longest first; owner: out (n) the rank of each.
 * Returns 0, -ENOMEM. */
int sampler_deal(const int64_t *tokens, int n, uint32_t ranks, int32_t *order, uint32_t *owner);

#endif
