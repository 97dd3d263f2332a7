/* lora.h - a LoRA adapter as a value: its parameters, gradients and moments in
 * one flat device buffer each, and its PEFT files.
 *
 * The base is frozen and shared; an adapter is passed in, never part of the
 * model. Formats: reference PEFT (adapter_config.json, adapter_model.safetensors). */
#ifndef WORKER_LORA_H
#define WORKER_LORA_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "proto/err.h"
#include "proto/spec.h"
#include "worker/moments.h"

struct model; /* worker/model.h */
struct model_config;

/* The linears of a Llama block, in the order of the fused weights. */
enum lora_target { LORA_Q, LORA_K, LORA_V, LORA_O, LORA_GATE, LORA_UP, LORA_DOWN, LORA_TARGETS };
const char *lora_target_name(enum lora_target t); /* "q_proj" ... */
/* "model.layers.3.self_attn.q_proj" */
void lora_module_name(int layer, enum lora_target t, char *buf, size_t size);

struct lora_module {
    int layer;
    enum lora_target target;
    int64_t k, n;         /* in_features, out_features                             */
    int64_t a_off, b_off; /* elements into the flat buffers: A (r, k), B (n, r)    */
};

struct adapter {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    int r;
    float scale;
    float dropout;               /* 0 when the spec disables it                         */
    struct lora_module *modules; /* layer-major, target order                       */
    int n_modules;
    int16_t *index;         /* (layers * LORA_TARGETS): module or -1           */
    int64_t n;              /* parameters                                      */
    float *p, *g;           /* device (n) float32                              */
    struct moments moments; /* of p                                            */
};

/* Parameters, and what the optimizer keeps of them, of an adapter of this spec on such a
 * model. -EINVAL as lora_new. */
int lora_shape(const struct model_config *config, const struct spec *spec,
               struct moments_shape *ret, struct err *err);

/* A ~ U(-1/sqrt(k), 1/sqrt(k)) (PEFT's kaiming_uniform(a = sqrt 5)) from
 * (seed, RNG_LORA_A, module, element), B = 0. A target that matches no module is
 * an error naming the modules there are. */
int lora_new(const struct kn_ops *ops, struct kn_ctx *ctx, const struct model *model,
             const struct spec *spec, struct adapter **ret, struct err *err);
void lora_free(struct adapter *a);

/* Writes adapter_config.json and adapter_model.safetensors into directory dir_fd,
 * each atomically. */
int lora_save(const struct adapter *a, const struct model *model, const struct spec *spec,
              int dir_fd, struct err *err);
/* Reads adapter_model.safetensors of dir into a->p; shapes must agree. */
int lora_load(struct adapter *a, const struct model *model, const char *dir, struct err *err);

#endif
