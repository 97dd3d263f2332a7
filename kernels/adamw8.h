/* adamw8.h - what one step of kn_adamw8 multiplies with, the same bits on all backends. */
#ifndef KERNELS_ADAMW8_H
#define KERNELS_ADAMW8_H

#include <math.h>

#include "kernels.h"

struct kn_adamw8_rate {
    float clip, decay, beta1, beta2, rest1, rest2; /* rest: 1 - beta */
    float rate, root, eps;                         /* lr / bias1, sqrt(bias2) */
};

/* In float64 from what the step says, each rounded once. */
KN_INLINE struct kn_adamw8_rate kn_adamw8_rate_of(const struct kn_adamw_step *s, double sum_sq)
{
    struct kn_adamw8_rate r;
    double clip = 1.0;

    if (s->max_grad_norm > 0.0f)
        clip = (double)s->max_grad_norm / (sqrt(sum_sq) + 1e-6);
    r.clip = clip < 1.0 ? (float)clip : 1.0f;
    r.decay = (float)(1.0 - (double)s->lr * (double)s->weight_decay);
    r.beta1 = s->beta1;
    r.beta2 = s->beta2;
    r.rest1 = (float)(1.0 - (double)s->beta1);
    r.rest2 = (float)(1.0 - (double)s->beta2);
    r.rate = (float)((double)s->lr / (double)s->bias1);
    r.root = (float)sqrt((double)s->bias2);
    r.eps = s->eps;
    return r;
}

#endif
