/* model.h - a Hugging Face model folder: config.json and where each tensor lies.
 *
 * Llama architecture: untied or tied head, grouped queries, any intermediate
 * size, head sizes 8 to 128 in steps of 8. Weights are mapped from safetensors,
 * never copied until a backend takes them. */
#ifndef WORKER_MODEL_H
#define WORKER_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "proto/err.h"

struct model_config {
    char model_type[32];
    int64_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab;
    int64_t max_positions;
    float rms_norm_eps;
    double rope_theta;
    enum { MODEL_ROPE_DEFAULT, MODEL_ROPE_LINEAR, MODEL_ROPE_LLAMA3 } rope_type;
    double rope_factor, rope_low_freq, rope_high_freq, rope_original_positions;
    int64_t sliding_window; /* 0: none */
    bool tied_head;
    enum kn_dtype torch_dtype; /* as the config says the weights are stored          */
    int32_t bos_id, eos_id;    /* -1: none                                           */
};

struct model_tensor {
    const void *data; /* mapped, (rows, cols) dense; NULL: not there                 */
    enum kn_dtype dtype;
    int64_t rows, cols;
};

struct model_layer {
    struct model_tensor q, k, v, o, gate, up, down, norm_attn, norm_mlp;
};

struct model {
    char *dir;
    struct model_config config;
    struct model_tensor embed, norm, head; /* head == embed when tied                */
    struct model_layer *layers;
    uint8_t digest[32]; /* of config and of each shard's header and size: cheap id   */
    void *files;
};

/* Reads only config.json: what alignctl's check needs. */
int model_config_read(const char *dir, struct model_config *ret, struct err *err);
/* Everything; every shape is checked against the config. A folder with only
 * pytorch_model*.bin: "alignd reads no pickles; convert once: <one line>". */
int model_open(const char *dir, struct model **ret, struct err *err);
void model_close(struct model *m);
int64_t model_parameters(const struct model_config *c);

#endif
