/* rng.h - counter-based random numbers: (seed, what, a, b) -> bits, so that a
 * resumed run repeats nothing and skips nothing, and no number depends on a
 * buffer offset or a rank. Philox4x32-10: Salmon et al. 2011, table 2. */
#ifndef WORKER_RNG_H
#define WORKER_RNG_H

#include <stdint.h>

enum rng_what {
    RNG_LORA_A = 1,  /* a: index of the module; b: element / 4                     */
    RNG_SHUFFLE = 2, /* a: epoch; b: draw                                          */
    RNG_SAMPLES = 3, /* a: source; b: draw                                         */
    RNG_SPLIT = 4,   /* a: 0; b: draw                                              */
    RNG_DROPOUT = 5, /* folded into kn_dropout.seed                                */
};

struct rng_block {
    uint32_t v[4];
};

static inline struct rng_block rng_philox(uint64_t key, uint64_t c0, uint64_t c1)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t x0 = (uint32_t)c0, x1 = (uint32_t)(c0 >> 32);
    uint32_t x2 = (uint32_t)c1, x3 = (uint32_t)(c1 >> 32);

    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * x0, p1 = (uint64_t)0xCD9E8D57u * x2;
        x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)p1;
        x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (struct rng_block){{x0, x1, x2, x3}};
}

/* The block (a, b) of stream `what` under `seed`. b < 2^56. */
static inline struct rng_block rng_at(uint64_t seed, enum rng_what what, uint64_t a, uint64_t b)
{
    return rng_philox(seed, b | (uint64_t)what << 56, a);
}

/* An unbiased draw in [0, n), n > 0, for step b of a shuffle. Lemire 2019 without
 * the rejection loop: 64 bits against n < 2^32 leave a bias below 2^-32. */
static inline uint64_t rng_below(uint64_t seed, enum rng_what what, uint64_t a, uint64_t b,
                                 uint64_t n)
{
    const struct rng_block r = rng_at(seed, what, a, b);
    const uint64_t bits = (uint64_t)r.v[1] << 32 | r.v[0];
    return (uint64_t)(((unsigned __int128)bits * n) >> 64);
}

#endif
