/* tiny_model.h - writes a small random Llama folder for tests. */
#ifndef TESTS_SUPPORT_TINY_MODEL_H
#define TESTS_SUPPORT_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/safetensors.h"

struct tiny_model {
    int hidden, layers, heads, kv_heads, head_dim, intermediate, vocab;
    bool tied;
    enum safetensors_dtype dtype; /* F32, BF16 or F16 */
    int shards;                   /* 0, 1: one file                                  */
    const char *config_extra;     /* more members of config.json: ",\"x\": 1" or NULL */
    const char *model_type;       /* NULL: "llama"                                   */
    float scale;                  /* of the weights; 0: 1                            */
};

/* Weights are numbers of a fixed stream keyed by their name. 0 or -errno. */
int tiny_model_write(const struct tiny_model *t, const char *dir);

#endif
