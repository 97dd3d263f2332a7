/* plain.h - the CUDA backend without one of its techniques at a time, for gpu_bench.
 *
 * Modules kn_cudaplain.so and kn_simplain.so hold the backend and plain.cu beside it; the
 * product has neither. */
#ifndef TESTS_GPU_PLAIN_H
#define TESTS_GPU_PLAIN_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum plain_without {
    PLAIN_LORA = 1,     /* adapters in products of their own, beside the base's            */
    PLAIN_NORM = 2,     /* a norm's steps, and the residual's addition, one kernel each    */
    PLAIN_ROPE = 4,     /* x cos + rotate_half(x) sin, one kernel each                     */
    PLAIN_SWIGLU = 8,   /* silu, product and their gradients, one kernel each              */
    PLAIN_LOGPROB = 16, /* log-softmax written out, then read by each of its users         */
    PLAIN_MMA = 32,     /* attention on the portable kernels                               */
    PLAIN_SIDE = 64,    /* no second stream: dequantisation stands between the products    */
};

/* Fills *table with the operations of an open context without the techniques in
 * `without`; 0: all as in the product, and what this took of the device is given back.
 * One context at a time. What it cannot do (dropout, several adapters): -EINVAL. */
typedef int plain_set(struct kn_ctx *ctx, struct kn_ops *table, unsigned without);
plain_set kn_plain; /* by kn_symbol */

#ifdef __cplusplus
}
#endif
#endif
