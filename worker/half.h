/* half.h - IEEE binary16 in plain C: model files may hold it, nothing computes in it. */
#ifndef WORKER_HALF_H
#define WORKER_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Exact. */
static inline float half_to_f32(uint16_t h)
{
    const int e = h >> 10 & 31, m = h & 1023;
    const float sign = h & 0x8000 ? -1.0f : 1.0f;

    if (e == 31)
        return m ? NAN : sign * INFINITY;
    return sign * ldexpf((float)(e ? 1024 + m : m), (e ? e : 1) - 25);
}

/* To nearest, ties to even; too large becomes infinite. */
static inline uint16_t half_from_f32(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    const float a = fabsf(f);
    if (!(a < INFINITY))
        return sign | (isnan(f) ? 0x7e00 : 0x7c00);
    if (a == 0.0f)
        return sign;
    if (a >= 65520.0f)
        return sign | 0x7c00;
    /* The unit of the last place, 2^-24 at the least; nearbyintf rounds to even. */
    int e;
    (void)frexpf(a, &e);
    const int unit = e - 11 > -24 ? e - 11 : -24;
    const float places = nearbyintf(ldexpf(a, -unit)); /* at most 2048 */
    if (unit == -24)
        return sign | (uint16_t)places; /* subnormal, or carried into the first normal */
    return sign | (uint16_t)(((unit + 24 + 1) << 10) + (int)places - 1024);
}

#endif
