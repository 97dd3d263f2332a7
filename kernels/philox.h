/* philox.h - the counter-based random bits of dropout, shared by all backends.
 *
 * Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as
 * 1, 2, 3", section 3.3 and table 2. */
#ifndef KERNELS_PHILOX_H
#define KERNELS_PHILOX_H

#include "kernels.h"

struct kn_philox {
    uint32_t v[4];
};

KN_INLINE struct kn_philox kn_philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                     uint32_t c3)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    struct kn_philox r;

    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    r.v[0] = c0;
    r.v[1] = c1;
    r.v[2] = c2;
    r.v[3] = c3;
    return r;
}

/* An element is kept iff its word is >= this; p * 2^32 is exact in double. */
KN_INLINE uint64_t kn_drop_threshold(float p)
{
    const double t = (double)p * 4294967296.0;
    const uint64_t u = (uint64_t)t;
    return (double)u < t ? u + 1 : u;
}

/* What element (row with this key, col) of part `part`'s input is multiplied
 * with: 0 or 1 / (1 - p). */
KN_INLINE float kn_drop_factor(const struct kn_dropout *d, int part, uint64_t row_key, int64_t col)
{
    const struct kn_philox r = kn_philox(d->seed, (uint32_t)(col / 4), (uint32_t)row_key,
                                         (uint32_t)(row_key >> 32), d->stream + (uint32_t)part);
    return r.v[col % 4] >= kn_drop_threshold(d->p) ? 1.0f / (1.0f - d->p) : 0.0f;
}

#endif
