/* safetensors_write.c - the writing half of safetensors.h: the same bytes as
 * safetensors' own serializer for the same tensors. */
#include "worker/safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/atomic_file.h"

struct layout {
    const struct safetensors_tensor **order;
    struct span *parts; /* the header, then each tensor's data */
    size_t n_parts;
    char *header; /* length, JSON, padding */
};

static int by_dtype_then_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = *(const struct safetensors_tensor *const *)a;
    const struct safetensors_tensor *y = *(const struct safetensors_tensor *const *)b;

    if (x->dtype != y->dtype)
        return x->dtype > y->dtype ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void layout_fini(struct layout *l)
{
    free(l->order);
    free(l->parts);
    free(l->header);
}

static json_t *tensor_json(const struct safetensors_tensor *t, size_t begin, size_t *ret_end)
{
    size_t bytes = safetensors_dtype_bytes(t->dtype);
    json_t *shape = json_array();

    for (int i = 0; i < t->n_dims; i++) {
        if (t->shape[i] < 0 || __builtin_mul_overflow(bytes, (size_t)t->shape[i], &bytes) ||
            json_array_append_new(shape, json_integer(t->shape[i])) < 0) {
            json_decref(shape);
            return NULL;
        }
    }
    *ret_end = begin + bytes;
    return json_pack("{s:s,s:o,s:[I,I]}", "dtype", safetensors_dtype_name(t->dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)*ret_end);
}

static json_t *header_json(const struct safetensors_write *w, struct layout *l)
{
    json_t *j = json_object(), *meta = json_pack("{s:s}", "format", "pt");
    size_t at = 0;

    for (size_t i = 0; i < w->n_metadata; i++)
        if (json_object_set_new(meta, w->metadata[i].key, json_string(w->metadata[i].value)) < 0)
            goto fail;
    if (json_object_set(j, "__metadata__", meta) < 0)
        goto fail;
    for (size_t i = 0; i < w->n; i++) {
        const struct safetensors_tensor *t = l->order[i];
        size_t end = 0;
        if (json_object_get(j, t->name))
            goto fail; /* the same name twice */
        if (json_object_set_new(j, t->name, tensor_json(t, at, &end)) < 0)
            goto fail;
        l->parts[1 + i] = (struct span){t->data, end - at};
        at = end;
    }
    json_decref(meta);
    return j;

fail:
    json_decref(meta);
    json_decref(j);
    return NULL;
}

static int layout_init(struct layout *l, const struct safetensors_write *w)
{
    char *text = NULL;
    int r = -ENOMEM;

    *l = (struct layout){.n_parts = w->n + 1};
    l->order = calloc(w->n + 1, sizeof *l->order);
    l->parts = calloc(w->n + 1, sizeof *l->parts);
    if (!l->order || !l->parts)
        goto fail;
    for (size_t i = 0; i < w->n; i++)
        l->order[i] = &w->tensors[i];
    qsort(l->order, w->n, sizeof *l->order, by_dtype_then_name);

    json_t *j = header_json(w, l);
    if (!j) {
        r = -EINVAL;
        goto fail;
    }
    text = json_dumps(j, JSON_COMPACT | JSON_ENSURE_ASCII);
    json_decref(j);
    if (!text)
        goto fail;
    const size_t n = strlen(text), padded = (n + 7) / 8 * 8;
    l->header = malloc(8 + padded);
    if (!l->header)
        goto fail;
    for (int i = 0; i < 8; i++)
        l->header[i] = (char)(padded >> (8 * i));
    memcpy(l->header + 8, text, n);
    memset(l->header + 8 + n, ' ', padded - n);
    l->parts[0] = (struct span){l->header, 8 + padded};
    free(text);
    return 0;

fail:
    free(text);
    layout_fini(l);
    return r;
}

int safetensors_replace(int dir_fd, const char *name, const struct safetensors_write *w)
{
    struct layout l;

    int r = layout_init(&l, w);
    if (r < 0)
        return r;
    r = atomic_file_replace(dir_fd, name, l.parts, l.n_parts);
    layout_fini(&l);
    return r;
}

int safetensors_send(int fd, const struct safetensors_write *w)
{
    struct layout l;

    int r = layout_init(&l, w);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < l.n_parts; i++) {
        const char *p = l.parts[i].data;
        size_t left = l.parts[i].bytes;
        while (left > 0) {
            const ssize_t n = write(fd, p, left);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0) {
                r = -errno;
                break;
            }
            p += n;
            left -= (size_t)n;
        }
    }
    layout_fini(&l);
    return r;
}

int safetensors_build(const struct safetensors_write *w, void **ret, size_t *ret_bytes)
{
    struct layout l;
    size_t bytes = 0, at = 0;

    int r = layout_init(&l, w);
    if (r < 0)
        return r;
    for (size_t i = 0; i < l.n_parts; i++)
        bytes += l.parts[i].bytes;
    char *p = malloc(bytes);
    for (size_t i = 0; p && i < l.n_parts; i++) {
        if (l.parts[i].bytes)
            memcpy(p + at, l.parts[i].data, l.parts[i].bytes);
        at += l.parts[i].bytes;
    }
    layout_fini(&l);
    if (!p)
        return -ENOMEM;
    *ret = p;
    *ret_bytes = bytes;
    return 0;
}
