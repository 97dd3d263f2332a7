/* schedule.c - see schedule.h. */
#include "worker/schedule.h"

#include <math.h>

int64_t schedule_warmup(const struct spec *spec, int64_t steps)
{
    if (spec->lr_scheduler_type == SPEC_CONSTANT)
        return 0;
    if (spec->warmup_steps > 0)
        return spec->warmup_steps;
    return spec->warmup_ratio > 0 ? (int64_t)ceil(spec->warmup_ratio * (double)steps) : 0;
}

double schedule_factor(enum spec_schedule kind, int64_t done, int64_t warmup, int64_t steps)
{
    const double span = steps - warmup > 1 ? (double)(steps - warmup) : 1.0;

    if (kind == SPEC_CONSTANT)
        return 1.0;
    if (done < warmup)
        return (double)done / (double)warmup;
    switch (kind) {
    case SPEC_LINEAR:
        return done < steps ? (double)(steps - done) / span : 0.0;
    case SPEC_COSINE: {
        /* half a wave, num_cycles 0.5 */
        const double f = 0.5 * (1.0 + cos(M_PI * 0.5 * 2.0 * ((double)(done - warmup) / span)));
        return f > 0.0 ? f : 0.0;
    }
    default:
        return 1.0;
    }
}
