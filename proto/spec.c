/* spec.c - the resolved spec: from JSON to struct spec. jansson only, so that the
 * daemon can link it; job files are read by spec_read.c. */
#include "proto/spec.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/spec_value.h"

static void first_problem(void *ctx, const char *path, bool warning, const char *text)
{
    struct err *err = ctx;
    (void)path;
    if (!warning && err && !err->text[0])
        (void)err_set(err, 0, "resolved spec: %s", text);
}

/* -EINVAL with the sentence, or the method's index. */
static int read_method(const json_t *values, struct spec_sink *sink)
{
    json_t *m = spec_value_check(spec_key_find("method"), json_object_get(values, "method"), sink);
    if (!m)
        return -EINVAL;
    int method = strcmp(json_string_value(m), "sft") == 0 ? SPEC_SFT : SPEC_DPO;
    json_decref(m);
    return method;
}

static int read_values(const json_t *values, struct spec *spec, struct spec_sink *sink)
{
    int method = read_method(values, sink);
    size_t used = 0;
    if (method < 0)
        return method;
    for (size_t i = 0; i < spec_n_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        const json_t *v = json_object_get(values, k->name);
        if (!(k->methods & (1u << method)))
            continue;
        if (!v) {
            spec_sink_add(sink, k->name, "%s: missing", k->name);
            return -EINVAL;
        }
        used++;
        json_t *checked = spec_value_check(k, v, sink);
        if (!checked)
            return -EINVAL;
        int r = spec_value_store(k, checked, spec);
        json_decref(checked);
        if (r < 0)
            return r;
    }
    if (used != json_object_size(values)) {
        spec_sink_add(sink, "values", "has keys that no %s job has",
                      spec_word_text(spec_method_words, method));
        return -EINVAL;
    }
    spec_value_whole(spec, sink);
    return sink->problems ? -EINVAL : 0;
}

int spec_from_resolved(const char *json, size_t bytes, struct spec **ret_spec, struct err *err)
{
    json_error_t je;
    struct spec_sink sink = {.add = first_problem, .ctx = err};
    struct spec *spec = NULL;
    json_t *root = NULL;
    int r = -EINVAL;

    if (err)
        err->text[0] = '\0';
    if (bytes > LIMIT_SPEC_BYTES)
        return err_set(err, -EINVAL, "resolved spec: longer than 1 MiB");
    root = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return err_set(err, -EINVAL, "resolved spec: not JSON: line %d: %s", je.line, je.text);
    const json_t *version = json_object_get(root, "spec_version");
    json_t *values = json_object_get(root, "values");
    if (!json_is_integer(version) || json_integer_value(version) != SPEC_VERSION) {
        r = err_set(err, -EINVAL, "resolved spec: spec_version must be %d", SPEC_VERSION);
        goto fail;
    }
    if (!json_is_object(values)) {
        r = err_set(err, -EINVAL, "resolved spec: `values` is missing");
        goto fail;
    }
    spec = calloc(1, sizeof *spec);
    if (!spec) {
        r = -ENOMEM;
        goto fail;
    }
    spec_value_fill(values);
    r = read_values(values, spec, &sink);
    if (r < 0)
        goto fail;
    json_decref(root);
    *ret_spec = spec;
    return 0;
fail:
    if (r == -ENOMEM)
        (void)err_set(err, r, "out of memory");
    spec_free(spec);
    json_decref(root);
    return r;
}

static json_t *filled(const char *resolved, json_t **ret_root)
{
    *ret_root = json_loads(resolved, 0, NULL);
    json_t *values = json_object_get(*ret_root, "values");
    spec_value_fill(values);
    return values;
}

bool spec_same_values(const char *a, const char *b)
{
    json_t *root[2];
    const json_t *x = filled(a, &root[0]), *y = filled(b, &root[1]);
    const bool same = x && y && json_equal(x, y);
    json_decref(root[0]);
    json_decref(root[1]);
    return same;
}

/* Appends n bytes of s; false when it no longer fits. */
static bool put(char *out, size_t *used, const char *s, size_t n)
{
    if (*used + n >= LIMIT_PATH)
        return false;
    memcpy(out + *used, s, n);
    *used += n;
    out[*used] = '\0';
    return true;
}

int spec_place(struct spec *spec, const char *id, struct err *err)
{
    char out[LIMIT_PATH] = "";
    size_t used = 0;

    for (const char *p = spec->output_dir; *p;) {
        bool ok;
        if (strncmp(p, "{name}", 6) == 0) {
            ok = put(out, &used, spec->name, strlen(spec->name));
            p += 6;
        } else if (strncmp(p, "{id}", 4) == 0) {
            ok = put(out, &used, id, strlen(id));
            p += 4;
        } else if (*p == '{' || *p == '}') {
            return err_set(err, -EINVAL, "output_dir: only {name} and {id} may stand in braces");
        } else {
            ok = put(out, &used, p++, 1);
        }
        if (!ok)
            return err_set(err, -ENAMETOOLONG, "output_dir: longer than %d bytes", LIMIT_PATH - 1);
    }
    char *copy = strdup(out);
    if (!copy)
        return err_set(err, -ENOMEM, "out of memory");
    free(spec->output_dir);
    spec->output_dir = copy;
    return 0;
}

void spec_free(struct spec *spec)
{
    if (!spec)
        return;
    free(spec->name);
    free(spec->model_name_or_path);
    free(spec->model_dir);
    free(spec->model_revision);
    free(spec->output_dir);
    for (int i = 0; i < spec->n_lora_target_modules; i++)
        free(spec->lora_target_modules[i]);
    for (int i = 0; i < spec->n_train; i++)
        free(spec->train[i].path);
    for (int i = 0; i < spec->n_eval; i++)
        free(spec->eval[i].path);
    free(spec);
}

void spec_problems_free(struct spec_problems *p)
{
    if (!p)
        return;
    free(p->v);
    *p = (struct spec_problems){0};
}
