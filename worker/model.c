/* model.c - see model.h. Field names and defaults: transformers' configuration_llama.py
 * and configuration_mistral.py, the v4 and the v5 spelling. */
#include "worker/model.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limit.h"
#include "proto/sha256.h"
#include "worker/model_file.h"
#include "worker/safetensors.h"

enum { MODEL_CONFIG_BYTES = 1 << 20 };

/* Where a config is read from, for messages. */
struct reading {
    const char *path;
    json_t *root;
    struct err *err;
    bool has_dtype;
};

static int refuse(const struct reading *c, const char *key, const char *why)
{
    return err_set(c->err, -EINVAL, "%s: \"%s\": %s", c->path, key, why);
}

/* A whole number in [min, max]; null or absent: fallback (< min: required). */
static int get_int(const struct reading *c, const json_t *at, const char *key, int64_t min,
                   int64_t max, int64_t fallback, int64_t *ret)
{
    const json_t *v = json_object_get(at, key);

    if (!v || json_is_null(v)) {
        if (fallback < min)
            return refuse(c, key, "is missing");
        *ret = fallback;
        return 0;
    }
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
        return err_set(c->err, -EINVAL, "%s: \"%s\" must be a whole number from %lld to %lld",
                       c->path, key, (long long)min, (long long)max);
    *ret = json_integer_value(v);
    return 0;
}

/* A positive finite number; null or absent: fallback (0: required). */
static int get_positive(const struct reading *c, const json_t *at, const char *key, double fallback,
                        double *ret)
{
    const json_t *v = json_object_get(at, key);

    if (!v || json_is_null(v)) {
        if (fallback == 0)
            return refuse(c, key, "is missing");
        *ret = fallback;
        return 0;
    }
    if (!json_is_number(v) || !isfinite(json_number_value(v)) || json_number_value(v) <= 0)
        return refuse(c, key, "must be a number above 0");
    *ret = json_number_value(v);
    return 0;
}

static int get_bool(const struct reading *c, const char *key, bool *ret)
{
    const json_t *v = json_object_get(c->root, key);

    if (v && !json_is_null(v) && !json_is_boolean(v))
        return refuse(c, key, "must be true or false");
    *ret = json_is_true(v);
    return 0;
}

/* An id, a list of ids (the first counts), or null. */
static int get_token(const struct reading *c, const char *key, int32_t *ret)
{
    const json_t *v = json_object_get(c->root, key);

    if (json_is_array(v))
        v = json_array_get(v, 0);
    *ret = -1;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) > INT32_MAX)
        return refuse(c, key, "must be a token id or a list of them");
    *ret = (int32_t)json_integer_value(v);
    return 0;
}

static int read_dtype(struct reading *c, struct model_config *m)
{
    static const struct {
        const char *name;
        enum kn_dtype dtype;
    } names[] = {{"float32", KN_F32}, {"bfloat16", KN_BF16}, {"float16", KN_F16}};
    const char *key = json_object_get(c->root, "dtype") ? "dtype" : "torch_dtype";
    const json_t *v = json_object_get(c->root, key);

    m->torch_dtype = KN_F32;
    if (!v || json_is_null(v))
        return 0;
    for (size_t i = 0; json_is_string(v) && i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(json_string_value(v), names[i].name) == 0) {
            m->torch_dtype = names[i].dtype;
            c->has_dtype = true;
            return 0;
        }
    }
    return refuse(c, key, "must be float32, bfloat16 or float16");
}

/* v5: rope_parameters {rope_type, rope_theta, ...}; v4: rope_theta and
 * rope_scaling {rope_type or type, ...} or null. */
static int read_rope(const struct reading *c, struct model_config *m)
{
    const json_t *p = json_object_get(c->root, "rope_parameters");
    const char *key = "rope_parameters", *type = "default";
    int r;

    if (!p || json_is_null(p)) {
        key = "rope_scaling";
        p = json_object_get(c->root, key);
    }
    if (p && !json_is_null(p) && !json_is_object(p))
        return refuse(c, key, "must be an object or null");
    const json_t *theta = json_object_get(p, "rope_theta") ? p : c->root;
    r = get_positive(c, theta, "rope_theta", 10000.0, &m->rope_theta);
    if (r < 0)
        return r;
    if (json_is_object(p)) {
        const json_t *t = json_object_get(p, "rope_type");
        t = t ? t : json_object_get(p, "type");
        if (t && !json_is_string(t))
            return refuse(c, key, "its rope_type must be a string");
        type = t ? json_string_value(t) : type;
    }
    const json_t *partial = json_object_get(p, "partial_rotary_factor");
    partial = partial ? partial : json_object_get(c->root, "partial_rotary_factor");
    if (json_is_number(partial) && json_number_value(partial) != 1.0)
        return refuse(c, "partial_rotary_factor", "only 1.0 is supported");
    if (strcmp(type, "default") == 0) {
        m->rope_type = MODEL_ROPE_DEFAULT;
        return 0;
    }
    const bool llama3 = strcmp(type, "llama3") == 0;
    if (!llama3 && strcmp(type, "linear") != 0)
        return err_set(c->err, -EINVAL,
                       "%s: rope type \"%.40s\" is not supported; default, linear and llama3 are",
                       c->path, type);
    m->rope_type = llama3 ? MODEL_ROPE_LLAMA3 : MODEL_ROPE_LINEAR;
    r = get_positive(c, p, "factor", 0, &m->rope_factor);
    if (r < 0 || !llama3)
        return r;
    if ((r = get_positive(c, p, "low_freq_factor", 0, &m->rope_low_freq)) < 0 ||
        (r = get_positive(c, p, "high_freq_factor", 0, &m->rope_high_freq)) < 0 ||
        (r = get_positive(c, p, "original_max_position_embeddings", 0,
                          &m->rope_original_positions)) < 0)
        return r;
    if (m->rope_high_freq <= m->rope_low_freq)
        return refuse(c, "high_freq_factor", "must be above low_freq_factor");
    return 0;
}

static int read_sizes(const struct reading *c, struct model_config *m, bool mistral)
{
    const json_t *o = c->root;
    double eps;
    int r;

    if ((r = get_int(c, o, "hidden_size", 1, 1 << 20, 0, &m->hidden)) < 0 ||
        (r = get_int(c, o, "num_hidden_layers", 1, 4096, 0, &m->layers)) < 0 ||
        (r = get_int(c, o, "num_attention_heads", 1, 65536, 0, &m->heads)) < 0 ||
        (r = get_int(c, o, "num_key_value_heads", 1, 65536, mistral ? 8 : m->heads, &m->kv_heads)) <
            0 ||
        (r = get_int(c, o, "head_dim", 1, 65536, (m->hidden + m->heads - 1) / m->heads,
                     &m->head_dim)) < 0 ||
        (r = get_int(c, o, "intermediate_size", 1, 1 << 22, 0, &m->intermediate)) < 0 ||
        (r = get_int(c, o, "vocab_size", 1, 1 << 24, 0, &m->vocab)) < 0 ||
        (r = get_int(c, o, "max_position_embeddings", 1, 1 << 24, mistral ? 131072 : 2048,
                     &m->max_positions)) < 0 ||
        (r = get_positive(c, o, "rms_norm_eps", 1e-6, &eps)) < 0)
        return r;
    m->rms_norm_eps = (float)eps;
    if (!json_is_integer(json_object_get(o, "head_dim")) && m->hidden % m->heads != 0)
        return refuse(c, "hidden_size", "is not a multiple of num_attention_heads");
    if (m->head_dim % 8 != 0 || m->head_dim > 128)
        return err_set(c->err, -EINVAL,
                       "%s: heads of %lld elements are not supported; 8 to 128 in steps of 8 are",
                       c->path, (long long)m->head_dim);
    if (m->heads % m->kv_heads != 0)
        return refuse(c, "num_attention_heads", "is not a multiple of num_key_value_heads");
    if (!mistral || json_is_null(json_object_get(o, "sliding_window")))
        return 0;
    return get_int(c, o, "sliding_window", 1, INT32_MAX, 4096, &m->sliding_window);
}

static int read_refusals(const struct reading *c)
{
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    const json_t *act = json_object_get(c->root, "hidden_act");
    bool on;

    for (int i = 0; i < 2; i++) {
        int r = get_bool(c, biases[i], &on);
        if (r < 0)
            return r;
        if (on)
            return refuse(c, biases[i], "linears with a bias are not supported, only false is");
    }
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        return refuse(c, "hidden_act", "only \"silu\" is supported");
    const json_t *q = json_object_get(c->root, "quantization_config");
    if (q && !json_is_null(q))
        return refuse(c, "quantization_config",
                      "weights that are stored quantised are not supported; name the unquantised "
                      "model, load_in_4bit quantises it while loading");
    return 0;
}

static int config_read(struct reading *c, struct model_config *m)
{
    const char *type = json_string_value(json_object_get(c->root, "model_type"));
    int r;

    if (!type)
        return refuse(c, "model_type", "is missing");
    const bool mistral = strcmp(type, "mistral") == 0;
    if (!mistral && strcmp(type, "llama") != 0)
        return err_set(c->err, -EINVAL,
                       "%s: model_type \"%.40s\" is not supported; llama and mistral are", c->path,
                       type);
    *m = (struct model_config){0};
    (void)snprintf(m->model_type, sizeof m->model_type, "%s", type);
    if ((r = read_refusals(c)) < 0 || (r = read_sizes(c, m, mistral)) < 0 ||
        (r = read_rope(c, m)) < 0 || (r = read_dtype(c, m)) < 0 ||
        (r = get_bool(c, "tie_word_embeddings", &m->tied_head)) < 0 ||
        (r = get_token(c, "bos_token_id", &m->bos_id)) < 0 ||
        (r = get_token(c, "eos_token_id", &m->eos_id)) < 0)
        return r;
    return 0;
}

static int config_load(const char *dir, struct model_config *ret, bool *ret_has_dtype,
                       struct sha256 *digest, struct err *err)
{
    char path[LIMIT_PATH], *text = NULL;
    struct reading c = {.path = path, .err = err};
    json_error_t why;
    size_t bytes = 0;

    if (snprintf(path, sizeof path, "%s/config.json", dir) >= (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "%.200s...: the path is too long", dir);
    int r = model_file_read(dir, "config.json", MODEL_CONFIG_BYTES, &text, &bytes, err);
    if (r < 0)
        return r;
    c.root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(c.root))
        r = err_set(err, -EINVAL, "%s:%d: %s", path, c.root ? 1 : why.line,
                    c.root ? "not a JSON object" : why.text);
    else
        r = config_read(&c, ret);
    if (r == 0 && digest)
        sha256_add(digest, text, bytes);
    json_decref(c.root);
    free(text);
    *ret_has_dtype = c.has_dtype;
    return r;
}

int model_config_read(const char *dir, struct model_config *ret, struct err *err)
{
    struct model_config c;
    bool has_dtype;

    const int r = config_load(dir, &c, &has_dtype, NULL, err);
    if (r == 0)
        *ret = c;
    return r;
}

/* One weight by name, (rows, cols); rows 0: a vector of cols. */
static int tensor_get(const struct model *m, const char *name, int64_t rows, int64_t cols,
                      struct model_tensor *ret, struct err *err)
{
    const struct safetensors_tensor *t = safetensors_find(m->files, name);

    if (!t)
        return err_set(err, -EINVAL, "%s: has no tensor %s, which a %s model needs", m->dir, name,
                       m->config.model_type);
    if (t->dtype != SAFETENSORS_F32 && t->dtype != SAFETENSORS_F16 && t->dtype != SAFETENSORS_BF16)
        return err_set(err, -EINVAL, "%s: tensor %s is %s; F32, BF16 and F16 are supported", m->dir,
                       name, safetensors_dtype_name(t->dtype));
    if (rows == 0 && (t->n_dims != 1 || t->shape[0] != cols))
        return err_set(err, -EINVAL,
                       "%s: tensor %s has %d dimensions beginning with %lld; "
                       "config.json says [%lld]",
                       m->dir, name, t->n_dims, (long long)t->shape[0], (long long)cols);
    if (rows != 0 && (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != cols))
        return err_set(err, -EINVAL,
                       "%s: tensor %s has shape [%lld, %lld]; config.json says [%lld, %lld]",
                       m->dir, name, (long long)t->shape[0], (long long)t->shape[1],
                       (long long)rows, (long long)cols);
    *ret = (struct model_tensor){.data = t->data,
                                 .dtype = t->dtype == SAFETENSORS_F32    ? KN_F32
                                          : t->dtype == SAFETENSORS_BF16 ? KN_BF16
                                                                         : KN_F16,
                                 .rows = rows ? rows : 1,
                                 .cols = cols};
    return 0;
}

static int layer_get(const struct model *m, int64_t i, struct model_layer *l, struct err *err)
{
    const struct model_config *c = &m->config;
    const int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const struct {
        const char *name;
        int64_t rows, cols;
        struct model_tensor *to;
    } want[] = {
        {"input_layernorm", 0, c->hidden, &l->norm_attn},
        {"self_attn.q_proj", q, c->hidden, &l->q},
        {"self_attn.k_proj", kv, c->hidden, &l->k},
        {"self_attn.v_proj", kv, c->hidden, &l->v},
        {"self_attn.o_proj", c->hidden, q, &l->o},
        {"post_attention_layernorm", 0, c->hidden, &l->norm_mlp},
        {"mlp.gate_proj", c->intermediate, c->hidden, &l->gate},
        {"mlp.up_proj", c->intermediate, c->hidden, &l->up},
        {"mlp.down_proj", c->hidden, c->intermediate, &l->down},
    };
    char name[96];

    for (size_t w = 0; w < sizeof want / sizeof want[0]; w++) {
        (void)snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)i,
                       want[w].name);
        int r = tensor_get(m, name, want[w].rows, want[w].cols, want[w].to, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool has_pickles(const char *dir)
{
    bool found = false;
    const struct dirent *e;

    DIR *d = opendir(dir);
    while (d && !found && (e = readdir(d)))
        found = strncmp(e->d_name, "pytorch_model", 13) == 0 && strstr(e->d_name, ".bin");
    if (d)
        closedir(d);
    return found;
}

static int weights_open(struct model *m, struct err *err)
{
    struct safetensors *files = NULL;

    const int r = safetensors_open_folder(m->dir, &files, err);
    if (r == -ENOENT && has_pickles(m->dir))
        return err_set(
            err, -EINVAL,
            "%.300s: holds pytorch_model*.bin only, and alignd reads no pickles; convert once, in "
            "that folder: python3 -c \"import glob, torch, safetensors.torch as s; w = {}; "
            "[w.update(torch.load(f, 'cpu', weights_only=True)) for f in "
            "glob.glob('pytorch_model*.bin')]; s.save_file({k: v.clone().contiguous() for k, v in "
            "w.items()}, 'model.safetensors', {'format': 'pt'})\"",
            m->dir);
    m->files = files;
    return r;
}

static int tensors_get(struct model *m, struct err *err)
{
    const struct model_config *c = &m->config;
    int r;

    if ((r = tensor_get(m, "model.embed_tokens.weight", c->vocab, c->hidden, &m->embed, err)) < 0 ||
        (r = tensor_get(m, "model.norm.weight", 0, c->hidden, &m->norm, err)) < 0)
        return r;
    m->head = m->embed;
    if (!c->tied_head &&
        (r = tensor_get(m, "lm_head.weight", c->vocab, c->hidden, &m->head, err)) < 0)
        return r;
    for (int64_t i = 0; i < c->layers; i++)
        if ((r = layer_get(m, i, &m->layers[i], err)) < 0)
            return r;
    return 0;
}

int model_open(const char *dir, struct model **ret, struct err *err)
{
    struct sha256 digest;
    uint8_t files[SHA256_BYTES];
    bool has_dtype;
    int r;

    struct model *m = calloc(1, sizeof *m);
    if (!m || !(m->dir = strdup(dir))) {
        r = err_set(err, -ENOMEM, "%s: out of memory", dir);
        goto fail;
    }
    sha256_init(&digest);
    r = config_load(dir, &m->config, &has_dtype, &digest, err);
    if (r < 0)
        goto fail;
    m->layers = calloc((size_t)m->config.layers, sizeof *m->layers);
    if (!m->layers) {
        r = err_set(err, -ENOMEM, "%s: out of memory", dir);
        goto fail;
    }
    if ((r = weights_open(m, err)) < 0 || (r = tensors_get(m, err)) < 0)
        goto fail;
    if (!has_dtype) /* transformers' dtype="auto": the weights speak */
        m->config.torch_dtype = m->embed.dtype;
    safetensors_digest(m->files, files);
    sha256_add(&digest, files, sizeof files);
    sha256_end(&digest, m->digest);
    *ret = m;
    return 0;

fail:
    model_close(m);
    return r;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    safetensors_close(m->files);
    free(m->layers);
    free(m->dir);
    free(m);
}

int64_t model_parameters(const struct model_config *c)
{
    const int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const int64_t layer =
        2 * c->hidden + c->hidden * (2 * q + 2 * kv) + 3 * c->hidden * c->intermediate;

    return c->layers * layer + c->hidden + (c->tied_head ? 1 : 2) * c->vocab * c->hidden;
}
