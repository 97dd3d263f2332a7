/* rng.h - counter-based random numbers: (seed, what, a, b) -> bits, so that a
 * resumed run repeats nothing and skips nothing, and no number depends on a
 * buffer offset or a rank. The generator is that of the kernels' dropout. */
#ifndef WORKER_RNG_H
#define WORKER_RNG_H

#include <stdint.h>

#include "kernels/philox.h"

enum rng_what {
    RNG_LORA_A = 1,  /* a: index of the module; b: element / 4                     */
    RNG_SHUFFLE = 2, /* a: epoch; b: draw                                          */
    RNG_SAMPLES = 3, /* a: source; b: draw                                         */
    RNG_SPLIT = 4,   /* a: 0; b: draw                                              */
    RNG_DROPOUT = 5, /* folded into kn_dropout.seed                                */
};

static inline struct kn_philox rng_philox(uint64_t key, uint64_t c0, uint64_t c1)
{
    return kn_philox(key, (uint32_t)c0, (uint32_t)(c0 >> 32), (uint32_t)c1, (uint32_t)(c1 >> 32));
}

/* The block (a, b) of stream `what` under `seed`. b < 2^56. */
static inline struct kn_philox rng_at(uint64_t seed, enum rng_what what, uint64_t a, uint64_t b)
{
    return rng_philox(seed, b | (uint64_t)what << 56, a);
}

/* An unbiased draw in [0, n), n > 0, for step b of a shuffle. Lemire 2019 without
 * the rejection loop: 64 bits against n < 2^32 leave a bias below 2^-32. */
static inline uint64_t rng_below(uint64_t seed, enum rng_what what, uint64_t a, uint64_t b,
                                 uint64_t n)
{
    const struct kn_philox r = rng_at(seed, what, a, b);
    const uint64_t bits = (uint64_t)r.v[1] << 32 | r.v[0];
    return (uint64_t)(((unsigned __int128)bits * n) >> 64);
}

#endif
