/* tiny_model.c - see tiny_model.h. */
#include "tests/support/tiny_model.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/dtype.h"
#include "worker/half.h"
#include "worker/rng.h"

enum { TENSORS = 512 };

struct making {
    const struct tiny_model *t;
    struct safetensors_tensor v[TENSORS];
    char names[TENSORS][96];
    size_t n;
};

static int add(struct making *m, const char *name, int64_t rows, int64_t cols)
{
    const int64_t n = (rows ? rows : 1) * cols;
    const size_t each = safetensors_dtype_bytes(m->t->dtype);
    const float spread = (m->t->scale ? m->t->scale : 1.0f) / sqrtf((float)cols);
    uint64_t key = 1469598103934665603u;
    uint8_t *data = malloc((size_t)n * each);

    if (!data || m->n == TENSORS)
        return -ENOMEM;
    for (const char *p = name; *p; p++)
        key = (key ^ (uint8_t)*p) * 1099511628211u;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = rng_philox(key, (uint64_t)i, 0).v[0];
        const float u = ((float)(bits >> 8) + 0.5f) * 0x1p-24f * 2.0f - 1.0f;
        const float x = rows ? u * 1.7f * spread : 1.0f + 0.2f * u;
        const bf16 b = bf16_from_f32(x);
        const uint16_t h = half_from_f32(x);
        const void *from = m->t->dtype == SAFETENSORS_F32    ? (const void *)&x
                           : m->t->dtype == SAFETENSORS_BF16 ? (const void *)&b
                                                             : (const void *)&h;
        memcpy(data + (size_t)i * each, from, each);
    }
    (void)snprintf(m->names[m->n], sizeof m->names[0], "%s", name);
    m->v[m->n] = (struct safetensors_tensor){.name = m->names[m->n],
                                             .dtype = m->t->dtype,
                                             .n_dims = rows ? 2 : 1,
                                             .shape = {rows ? rows : cols, rows ? cols : 0},
                                             .data = data};
    m->n++;
    return 0;
}

static int add_layer(struct making *m, int l)
{
    const struct tiny_model *t = m->t;
    const int64_t d = t->hidden, f = t->intermediate;
    const int64_t q = t->heads * t->head_dim, kv = t->kv_heads * t->head_dim;
    const struct {
        const char *name;
        int64_t rows, cols;
    } want[] = {
        {"input_layernorm", 0, d},   {"post_attention_layernorm", 0, d},
        {"self_attn.q_proj", q, d},  {"self_attn.k_proj", kv, d},
        {"self_attn.v_proj", kv, d}, {"self_attn.o_proj", d, q},
        {"mlp.gate_proj", f, d},     {"mlp.up_proj", f, d},
        {"mlp.down_proj", d, f},
    };
    char name[96];
    int r = 0;

    for (size_t i = 0; r == 0 && i < sizeof want / sizeof want[0]; i++) {
        (void)snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, want[i].name);
        r = add(m, name, want[i].rows, want[i].cols);
    }
    return r;
}

static int write_text(int dir_fd, const char *name, const char *text)
{
    const int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    const size_t n = strlen(text);
    const int r = write(fd, text, n) == (ssize_t)n ? 0 : -EIO;
    close(fd);
    return r;
}

static int write_config(const struct tiny_model *t, int dir_fd)
{
    static const char *const dtypes[] = {[SAFETENSORS_F32] = "float32",
                                         [SAFETENSORS_BF16] = "bfloat16",
                                         [SAFETENSORS_F16] = "float16"};
    char text[2048];

    (void)snprintf(text, sizeof text,
                   "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"%s\", "
                   "\"hidden_size\": %d, \"num_hidden_layers\": %d, \"num_attention_heads\": %d, "
                   "\"num_key_value_heads\": %d, \"head_dim\": %d, \"intermediate_size\": %d, "
                   "\"vocab_size\": %d, \"tie_word_embeddings\": %s, \"hidden_act\": \"silu\", "
                   "\"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-05, "
                   "\"torch_dtype\": \"%s\", \"bos_token_id\": 1, \"eos_token_id\": 2%s}",
                   t->model_type ? t->model_type : "llama", t->hidden, t->layers, t->heads,
                   t->kv_heads, t->head_dim, t->intermediate, t->vocab, t->tied ? "true" : "false",
                   dtypes[t->dtype], t->config_extra ? t->config_extra : "");
    return write_text(dir_fd, "config.json", text);
}

static int write_shards(const struct making *m, int dir_fd)
{
    const size_t shards = (size_t)m->t->shards, each = (m->n + shards - 1) / shards;
    char *index = calloc(1, 256 * (m->n + 1)), *at = index;
    int r = 0;

    if (!index)
        return -ENOMEM;
    at += snprintf(at, 256, "{\"metadata\": {}, \"weight_map\": {");
    for (size_t s = 0; r == 0 && s < shards; s++) {
        char name[64];
        const size_t from = s * each, to = from + each < m->n ? from + each : m->n;
        (void)snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, shards);
        for (size_t i = from; i < to; i++)
            at += snprintf(at, 256, "%s\"%s\": \"%s\"", i ? ", " : "", m->v[i].name, name);
        const struct safetensors_write w = {.tensors = m->v + from, .n = to - from};
        r = safetensors_replace(dir_fd, name, &w);
    }
    (void)snprintf(at, 8, "}}");
    if (r == 0)
        r = write_text(dir_fd, "model.safetensors.index.json", index);
    free(index);
    return r;
}

int tiny_model_write(const struct tiny_model *t, const char *dir)
{
    struct making *m = calloc(1, sizeof *m);
    int r = -ENOMEM;

    const int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (!m || dir_fd < 0)
        goto done;
    m->t = t;
    r = add(m, "model.embed_tokens.weight", t->vocab, t->hidden);
    if (r == 0)
        r = add(m, "model.norm.weight", 0, t->hidden);
    if (r == 0 && !t->tied)
        r = add(m, "lm_head.weight", t->vocab, t->hidden);
    for (int l = 0; r == 0 && l < t->layers; l++)
        r = add_layer(m, l);
    if (r == 0)
        r = write_config(t, dir_fd);
    if (r == 0 && t->shards > 1)
        r = write_shards(m, dir_fd);
    else if (r == 0)
        r = safetensors_replace(dir_fd, "model.safetensors",
                                &(struct safetensors_write){.tensors = m->v, .n = m->n});
done:
    for (size_t i = 0; m && i < m->n; i++)
        free((void *)m->v[i].data);
    free(m);
    if (dir_fd >= 0)
        close(dir_fd);
    return r;
}
