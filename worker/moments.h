/* moments.h - what AdamW keeps of a flat parameter buffer: two float32 moments, or
 * bitsandbytes' 8 bits a moment with a scale for each block; and the host image of
 * parameters and moments, which is what a checkpoint holds.
 *
 * Rules of the 8 bits: bitsandbytes optim/optimizer.py (Optimizer2State): blocks begin anew
 * at each tensor; a tensor of fewer than 4096 elements keeps float32 moments. */
#ifndef WORKER_MOMENTS_H
#define WORKER_MOMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "proto/spec.h"
#include "worker/safetensors.h"

/* Sizes, by arithmetic alone. */
struct moments_shape {
    enum spec_optim optim;
    int64_t n;        /* parameters                                                */
    int64_t n_blocks; /* 8 bits: stretches of at most KN_ADAMW8_BLOCK parameters   */
    int64_t n_float;  /* 8 bits: parameters with float32 moments all the same      */
};

/* The next tensor of the flat buffer. */
void moments_shape_add(struct moments_shape *s, int64_t elements);
/* Whether tensors can have such sizes; s may come from a file. */
bool moments_shape_valid(const struct moments_shape *s);
bool moments_shape_equal(const struct moments_shape *a, const struct moments_shape *b);

/* A tensor of the image; `at` and `bytes` are its place in it. */
struct moments_part {
    const char *name;
    enum safetensors_dtype dtype;
    int64_t n;
    size_t at, bytes;
    size_t field; /* the pointer's place in struct moments                             */
};
enum { MOMENTS_PARTS = 7 };
/* p, m, v; or p, m_scale, v_scale, m32, v32 (where there are any), m8, v8. How many. */
int moments_parts(const struct moments_shape *s, struct moments_part ret[MOMENTS_PARTS]);
size_t moments_image_bytes(const struct moments_shape *s);
/* Whether scales are what kn_adamw8 takes. */
bool moments_image_valid(const struct moments_shape *s, const void *image);
/* Of the device, without parameters and gradient. */
size_t moments_device_bytes(const struct moments_shape *s);

struct moments { /* all device memory */
    struct moments_shape shape;
    float *p;                      /* (n); borrowed                     */
    float *m, *v;                  /* (n); 32 bits                      */
    uint8_t *m8, *v8;              /* (n); 8 bits                       */
    float *m_scale, *v_scale;      /* (n_blocks)                        */
    float *m32, *v32;              /* (n_float); NULL: there are none   */
    struct kn_adamw8_block *block; /* (n_blocks)                        */
};

/* Moments of zero for the parameters p, tensors of these sizes one behind the other. On failure
 * *ret is to be freed as well. */
int moments_init(const struct kn_ops *ops, struct kn_ctx *ctx, enum spec_optim optim, float *p,
                 const int64_t *tensors, int n_tensors, struct moments *ret);
void moments_free(const struct kn_ops *ops, struct kn_ctx *ctx, struct moments *m);

/* One update of the parameters. */
int moments_update(const struct kn_ops *ops, struct kn_ctx *ctx, const struct moments *m,
                   const float *g, const struct kn_sweep *sweep, const struct kn_adamw_step *step);

/* Parameters and moments to (KN_TO_HOST) or from an image; waits until it is done. */
int moments_move(const struct kn_ops *ops, struct kn_ctx *ctx, const struct moments *m, void *image,
                 enum kn_dir dir);

#endif
