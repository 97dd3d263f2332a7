/* weight.h - the reference backend's frozen matrix: its values, spelled out. */
#ifndef KERNELS_REF_WEIGHT_H
#define KERNELS_REF_WEIGHT_H

#include "ref.h"

struct kn_weight {
    int64_t n, k, part_n[KN_PARTS_MAX];
    int n_parts;
    enum kn_dtype compute;
    bool no_backward;
    real values[]; /* (n, k), already rounded to `compute` */
};

#endif
