/* adamw8_case.h - a state of kn_adamw8 in a backend's memory and its steps, for several
 * tests. */
#ifndef TESTS_KERNELS_ADAMW8_CASE_H
#define TESTS_KERNELS_ADAMW8_CASE_H

#include "kernels/dynamic.h"
#include "kit.h"

/* A state in one kit's memory. Tensors lie one behind the other; those with fewer than
 * `least` elements keep float32 moments. */
struct adamw8_case {
    struct kit *k;
    struct kn_adamw8 a;
    int64_t n32;
    struct kn_adamw_step *step;
    struct kn_sweep *sweep;
    float *g;
    struct kn_adamw8_block *block;
};

/* All but the block descriptions begin k->odd elements behind where memory does. */
void adamw8_case_make(struct adamw8_case *s, struct kit *k, const int64_t *tensors,
                      size_t n_tensors, int64_t least);
void adamw8_case_same(const struct adamw8_case *x, const struct adamw8_case *y);
/* One step of a state whose gradient has this sweep. */
void adamw8_case_step(const struct adamw8_case *s, const struct kn_adamw_step *step,
                      const struct kn_sweep *sweep);
struct kn_sweep adamw8_case_sweep(const float *g, int64_t n);

/* The nearest entry by looking at all of them; a tie to the even one. */
int adamw8_case_nearest(const float *map, float x, bool is_signed);

#endif
