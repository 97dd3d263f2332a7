/* lora_file.c - the files of an adapter, as PEFT writes and reads them: the other
 * half of lora.h. Formats: peft src/peft/config.py, utils/save_and_load.py. */
#include "worker/lora.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/atomic_file.h"
#include "worker/half.h"
#include "worker/model.h"
#include "worker/safetensors.h"

enum { LORA_NAME = 160 };

#define LORA_PEFT_VERSION "0.21.2" /* whose fields the config has */

static void tensor_name(const struct lora_module *m, char half, char *buf, size_t size)
{
    char name[96];

    lora_module_name(m->layer, m->target, name, sizeof name);
    (void)snprintf(buf, size, "base_model.model.%s.lora_%c.weight", name, half);
}

static json_t *target_names(const struct spec *s)
{
    json_t *list = json_array();

    for (int t = 0; s->lora_all_linear && t < LORA_TARGETS; t++)
        json_array_append_new(list, json_string(lora_target_name(t)));
    for (int i = 0; !s->lora_all_linear && i < s->n_lora_target_modules; i++)
        json_array_append_new(list, json_string(s->lora_target_modules[i]));
    return list;
}

/* Digits after which lora_dropout reads back as the same double. */
static int shortest(double v)
{
    char text[40];
    int digits = 1;

    while (digits < 17) {
        (void)snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
        digits++;
    }
    return digits;
}

/* Every field PEFT writes, in json.dumps(indent=2, sort_keys=True)'s form. */
static char *config_text(const struct spec *s)
{
    static const char *const nulls[] = {
        "alora_invocation_tokens",
        "arrow_config",
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "lora_ga_config",
        "megatron_config",
        "layers_to_transform",
        "modules_to_save",
        "monteclora_config",
        "target_parameters",
        "use_bdlora",
        "trainable_token_indices",
        "velora_config",
    };
    static const char *const falses[] = {"ensure_weight_tying", "fan_in_fan_out", "lora_bias",
                                         "use_dora", "use_qalora"};
    const char *revision = s->model_revision && s->model_revision[0] ? s->model_revision : NULL;

    json_t *j = json_pack(
        "{s:{},s:{},s:{},s:s,s:s,s:b,s:b,s:i,s:f,s:s,s:s,s:s,s:i,s:i,s:s?,s:o,s:s,s:b}",
        "alpha_pattern", "rank_pattern", "loftq_config", "base_model_name_or_path",
        s->model_name_or_path ? s->model_name_or_path : "", "bias", "none", "inference_mode", 1,
        "init_lora_weights", 1, "lora_alpha", s->lora_alpha, "lora_dropout", s->lora_dropout,
        "megatron_core", "megatron.core", "peft_type", "LORA", "peft_version", LORA_PEFT_VERSION,
        "qalora_group_size", 16, "r", s->lora_r, "revision", revision, "target_modules",
        target_names(s), "task_type", "CAUSAL_LM", "use_rslora", s->use_rslora);
    for (size_t i = 0; i < sizeof nulls / sizeof nulls[0]; i++)
        json_object_set_new(j, nulls[i], json_null());
    for (size_t i = 0; i < sizeof falses / sizeof falses[0]; i++)
        json_object_set_new(j, falses[i], json_false());
    char *text = json_dumps(j, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII |
                                   JSON_REAL_PRECISION(shortest(s->lora_dropout)));
    json_decref(j);
    return text;
}

static int weights_save(const struct adapter *a, int dir_fd, struct err *err)
{
    const size_t n = 2 * (size_t)a->n_modules, bytes = (size_t)a->n * sizeof(float);
    struct safetensors_tensor *t = calloc(n, sizeof *t);
    char(*names)[LORA_NAME] = calloc(n, sizeof *names);
    float *host = malloc(bytes);
    int r = -ENOMEM;

    if (!t || !names || !host)
        goto done;
    r = a->ops->copy(a->ctx, host, a->p, bytes, KN_TO_HOST);
    if (r == 0)
        r = a->ops->sync(a->ctx);
    if (r < 0)
        goto done;
    for (int i = 0; i < a->n_modules; i++) {
        const struct lora_module *m = &a->modules[i];
        for (int half = 0; half < 2; half++) {
            char *name = names[2 * i + half];
            tensor_name(m, half ? 'B' : 'A', name, sizeof names[0]);
            t[2 * i + half] = (struct safetensors_tensor){
                .name = name,
                .dtype = SAFETENSORS_F32,
                .n_dims = 2,
                .shape = {half ? m->n : a->r, half ? a->r : m->k},
                .data = host + (half ? m->b_off : m->a_off),
            };
        }
    }
    r = safetensors_replace(dir_fd, "adapter_model.safetensors",
                            &(struct safetensors_write){.tensors = t, .n = n});
done:
    free(t);
    free(names);
    free(host);
    return r < 0 ? err_set(err, r, "adapter_model.safetensors: %s", strerror(-r)) : 0;
}

int lora_save(const struct adapter *a, const struct model *model, const struct spec *spec,
              int dir_fd, struct err *err)
{
    (void)model;
    char *text = config_text(spec);
    if (!text)
        return err_set(err, -ENOMEM, "adapter_config.json: out of memory");
    const struct span part = {text, strlen(text)};
    const int r = atomic_file_replace(dir_fd, "adapter_config.json", &part, 1);
    free(text);
    if (r < 0)
        return err_set(err, r, "adapter_config.json: %s", strerror(-r));
    return weights_save(a, dir_fd, err);
}

static int tensor_take(const struct safetensors *s, const char *path, const char *name,
                       const int64_t shape[2], float *to, struct err *err)
{
    const struct safetensors_tensor *t = safetensors_find(s, name);

    if (!t)
        return err_set(err, -EINVAL, "%s: has no tensor %s", path, name);
    if (t->n_dims != 2 || t->shape[0] != shape[0] || t->shape[1] != shape[1])
        return err_set(err, -EINVAL,
                       "%s: tensor %s has %d dimensions, [%lld, %lld]; this job's adapter has "
                       "[%lld, %lld]",
                       path, name, t->n_dims, (long long)t->shape[0], (long long)t->shape[1],
                       (long long)shape[0], (long long)shape[1]);
    for (int64_t i = 0; i < shape[0] * shape[1]; i++) {
        if (t->dtype == SAFETENSORS_F32)
            to[i] = ((const float *)t->data)[i];
        else if (t->dtype == SAFETENSORS_BF16)
            to[i] = bf16_to_f32(((const bf16 *)t->data)[i]);
        else if (t->dtype == SAFETENSORS_F16)
            to[i] = half_to_f32(((const uint16_t *)t->data)[i]);
        else
            return err_set(err, -EINVAL, "%s: tensor %s is %s; F32, BF16 and F16 are supported",
                           path, name, safetensors_dtype_name(t->dtype));
    }
    return 0;
}

static int modules_take(const struct adapter *a, const struct safetensors *s, const char *path,
                        float *host, struct err *err)
{
    char name[LORA_NAME];

    for (int i = 0; i < a->n_modules; i++) {
        const struct lora_module *m = &a->modules[i];
        int r;
        tensor_name(m, 'A', name, sizeof name);
        r = tensor_take(s, path, name, (int64_t[2]){a->r, m->k}, host + m->a_off, err);
        if (r < 0)
            return r;
        tensor_name(m, 'B', name, sizeof name);
        r = tensor_take(s, path, name, (int64_t[2]){m->n, a->r}, host + m->b_off, err);
        if (r < 0)
            return r;
    }
    if (safetensors_count(s) != 2 * (size_t)a->n_modules)
        return err_set(
            err, -EINVAL,
            "%s: holds %zu tensors, this job's adapter has %d: its target modules differ", path,
            safetensors_count(s), 2 * a->n_modules);
    return 0;
}

int lora_load(struct adapter *a, const struct model *model, const char *dir, struct err *err)
{
    const size_t bytes = (size_t)a->n * sizeof(float);
    char path[LIMIT_PATH];
    struct safetensors *s = NULL;
    float *host = NULL;
    int r;

    (void)model;
    if (snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir) >= (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "%.200s...: the path is too long", dir);
    r = safetensors_open(path, &s, err);
    if (r < 0)
        return r;
    host = malloc(bytes);
    if (!host)
        r = err_set(err, -ENOMEM, "%s: out of memory", path);
    else
        r = modules_take(a, s, path, host, err);
    if (r == 0) {
        r = a->ops->copy(a->ctx, a->p, host, bytes, KN_TO_DEVICE);
        if (r == 0)
            r = a->ops->sync(a->ctx);
        if (r < 0)
            err_set(err, r, "%s: copying to the device: %s", path, strerror(-r));
    }
    free(host);
    safetensors_close(s);
    return r;
}
