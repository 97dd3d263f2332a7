/* safetensors.c - see safetensors.h. Reading; safetensors_write.c writes. Format:
 * huggingface/safetensors, README and safetensors/src/tensor.rs. */
#include "worker/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/limit.h"
#include "proto/sha256.h"
#include "worker/model_file.h"

enum { SAFETENSORS_SHARDS = 4096, SAFETENSORS_INDEX_BYTES = 64 << 20 };

static const struct {
    const char *name;
    size_t bytes;
} dtypes[SAFETENSORS_DTYPES] = {
    [SAFETENSORS_BOOL] = {"BOOL", 1},       [SAFETENSORS_U8] = {"U8", 1},
    [SAFETENSORS_I8] = {"I8", 1},           [SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1},
    [SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1}, [SAFETENSORS_I16] = {"I16", 2},
    [SAFETENSORS_U16] = {"U16", 2},         [SAFETENSORS_F16] = {"F16", 2},
    [SAFETENSORS_BF16] = {"BF16", 2},       [SAFETENSORS_I32] = {"I32", 4},
    [SAFETENSORS_U32] = {"U32", 4},         [SAFETENSORS_F32] = {"F32", 4},
    [SAFETENSORS_F64] = {"F64", 8},         [SAFETENSORS_I64] = {"I64", 8},
    [SAFETENSORS_U64] = {"U64", 8},
};

struct file {
    char *name; /* for messages */
    const uint8_t *image;
    size_t bytes;
    void *map; /* NULL: image is borrowed */
    json_t *header;
    struct safetensors_tensor *tensors; /* by offset while checked, then by name */
    void **copies;                      /* of tensors that lie unaligned; NULL entries otherwise */
    size_t n;
};

struct safetensors {
    struct file *files;
    size_t n_files;
    struct safetensors_tensor *tensors; /* by name */
    size_t n;
};

const char *safetensors_dtype_name(enum safetensors_dtype t)
{
    return dtypes[t].name;
}
size_t safetensors_dtype_bytes(enum safetensors_dtype t)
{
    return dtypes[t].bytes;
}

static void file_fini(struct file *f)
{
    for (size_t i = 0; f->copies && i < f->n; i++)
        free(f->copies[i]);
    free(f->copies);
    free(f->tensors);
    json_decref(f->header);
    if (f->map)
        munmap(f->map, f->bytes);
    free(f->name);
    *f = (struct file){0};
}

static int by_offset(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    if (x->data != y->data)
        return (const uint8_t *)x->data < (const uint8_t *)y->data ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1; /* empty ones first */
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}

static int bad(const struct file *f, const char *tensor, struct err *err, const char *what)
{
    return err_set(err, -EINVAL, "%s: tensor \"%.200s\": %s", f->name, tensor, what);
}

/* {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} */
static int tensor_read(const struct file *f, const char *name, const json_t *v, size_t data0,
                       struct safetensors_tensor *t, struct err *err)
{
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    const json_t *shape = json_object_get(v, "shape");
    const json_t *offsets = json_object_get(v, "data_offsets");
    const json_t *d;
    size_t i, bytes;

    *t = (struct safetensors_tensor){.name = name};
    if (!dtype || !json_is_array(shape) || !json_is_array(offsets) || json_array_size(offsets) != 2)
        return bad(f, name, err, "needs dtype, shape and data_offsets [begin, end]");

    for (i = 0; i < SAFETENSORS_DTYPES && strcmp(dtype, dtypes[i].name) != 0; i++)
        ;
    if (i == SAFETENSORS_DTYPES)
        return err_set(err, -EINVAL, "%s: tensor \"%.200s\": unknown dtype \"%.32s\"", f->name,
                       name, dtype);
    t->dtype = (enum safetensors_dtype)i;
    bytes = dtypes[i].bytes;
    if (json_array_size(shape) > SAFETENSORS_DIMS)
        return bad(f, name, err, "has more than 8 dimensions");
    json_array_foreach(shape, i, d)
    {
        const json_int_t n = json_integer_value(d);
        if (!json_is_integer(d) || n < 0)
            return bad(f, name, err, "a dimension is not a whole number >= 0");
        if (__builtin_mul_overflow(bytes, (size_t)n, &bytes))
            return bad(f, name, err, "its shape overflows");
        t->shape[t->n_dims++] = n;
    }

    const json_t *j0 = json_array_get(offsets, 0), *j1 = json_array_get(offsets, 1);
    const json_int_t begin = json_integer_value(j0), end = json_integer_value(j1);
    if (!json_is_integer(j0) || !json_is_integer(j1) || begin < 0 || end < begin)
        return bad(f, name, err, "data_offsets are not 0 <= begin <= end");
    if ((uint64_t)end > f->bytes - data0)
        return err_set(err, -EINVAL,
                       "%s: tensor \"%.200s\" ends at byte %" PRIu64 " but the file has %zu: it is "
                       "cut short or its header lies",
                       f->name, name, (uint64_t)end + data0, f->bytes);
    if ((uint64_t)(end - begin) != bytes)
        return err_set(err, -EINVAL,
                       "%s: tensor \"%.200s\": data_offsets span %" PRIu64
                       " bytes, its dtype and shape need %zu",
                       f->name, name, (uint64_t)(end - begin), bytes);
    t->data = f->image + data0 + begin;
    t->bytes = bytes;
    return 0;
}

static int metadata_check(const struct file *f, json_t *v, struct err *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(v))
        return err_set(err, -EINVAL, "%s: __metadata__ is not an object", f->name);
    json_object_foreach(v, key, value)
    {
        if (!json_is_string(value))
            return err_set(err, -EINVAL, "%s: __metadata__ \"%.100s\" is not a string", f->name,
                           key);
    }
    return 0;
}

/* No hole, no overlap, nothing left over. */
static int cover_check(struct file *f, size_t data0, struct err *err)
{
    const uint8_t *at = f->image + data0;

    qsort(f->tensors, f->n, sizeof *f->tensors, by_offset);
    for (size_t i = 0; i < f->n; i++) {
        const struct safetensors_tensor *t = &f->tensors[i];
        if ((const uint8_t *)t->data != at)
            return bad(f, t->name, err,
                       (const uint8_t *)t->data < at ? "overlaps the tensor before it"
                                                     : "leaves a hole before it");
        at += t->bytes;
    }
    if (at != f->image + f->bytes)
        return err_set(err, -EINVAL, "%s: %zu bytes after the last tensor", f->name,
                       (size_t)(f->image + f->bytes - at));
    return 0;
}

/* Old writers did not pad their header; a kernel wants aligned floats. */
static int align_copies(struct file *f)
{
    for (size_t i = 0; i < f->n; i++) {
        struct safetensors_tensor *t = &f->tensors[i];
        if (t->bytes == 0 || (uintptr_t)t->data % dtypes[t->dtype].bytes == 0)
            continue;
        f->copies[i] = malloc(t->bytes);
        if (!f->copies[i])
            return -ENOMEM;
        memcpy(f->copies[i], t->data, t->bytes);
        t->data = f->copies[i];
    }
    return 0;
}

static int header_load(struct file *f, size_t *ret_data0, struct err *err)
{
    uint64_t n = 0;
    json_error_t why;

    if (f->bytes < 8)
        return err_set(err, -EINVAL, "%s: %zu bytes are too few for a safetensors file", f->name,
                       f->bytes);
    for (int i = 0; i < 8; i++)
        n |= (uint64_t)f->image[i] << (8 * i);
    if (n > LIMIT_SAFETENSORS_HEADER)
        return err_set(err, -EINVAL,
                       "%s: says its header has %" PRIu64
                       " bytes, the format allows 100 MiB: not a safetensors file",
                       f->name, n);
    if (n > f->bytes - 8)
        return err_set(err, -EINVAL,
                       "%s: its header should have %" PRIu64 " bytes but the file has %zu: it is "
                       "cut short",
                       f->name, n, f->bytes);
    if (n == 0 || f->image[8] != '{')
        return err_set(err, -EINVAL, "%s: its header does not begin with {", f->name);
    f->header = json_loadb((const char *)f->image + 8, n, JSON_REJECT_DUPLICATES, &why);
    if (!f->header)
        return err_set(err, -EINVAL, "%s: header: %s (byte %d)", f->name, why.text, why.position);
    if (!json_is_object(f->header))
        return err_set(err, -EINVAL, "%s: its header is not an object", f->name);
    *ret_data0 = 8 + n;
    return 0;
}

/* f has name, image and bytes. */
static int file_check(struct file *f, struct err *err)
{
    const char *key;
    json_t *v;
    size_t data0;

    int r = header_load(f, &data0, err);
    if (r < 0)
        return r;
    const size_t n = json_object_size(f->header);
    f->tensors = calloc(n + 1, sizeof *f->tensors);
    f->copies = calloc(n + 1, sizeof *f->copies);
    if (!f->tensors || !f->copies)
        return err_set(err, -ENOMEM, "%s: out of memory", f->name);
    json_object_foreach(f->header, key, v)
    {
        if (strcmp(key, "__metadata__") == 0) {
            r = metadata_check(f, v, err);
        } else {
            r = tensor_read(f, key, v, data0, &f->tensors[f->n], err);
            f->n += r == 0;
        }
        if (r < 0)
            return r;
    }
    r = cover_check(f, data0, err);
    if (r < 0)
        return r;
    if (align_copies(f) < 0)
        return err_set(err, -ENOMEM, "%s: out of memory", f->name);
    return 0;
}

/* Takes fd. */
static int file_map(struct file *f, int fd, struct err *err)
{
    struct stat st;
    int r = 0;

    if (fstat(fd, &st) < 0)
        r = err_set(err, -errno, "%s: %s", f->name, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        r = err_set(err, -EINVAL, "%s: not a regular file", f->name);
    else if (st.st_size < 8)
        r = err_set(err, -EINVAL, "%s: %lld bytes are too few for a safetensors file", f->name,
                    (long long)st.st_size);
    if (r == 0) {
        f->bytes = (size_t)st.st_size;
        f->map = mmap(NULL, f->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (f->map == MAP_FAILED) {
            f->map = NULL;
            r = err_set(err, -errno, "%s: %s", f->name, strerror(errno));
        }
        f->image = f->map;
    }
    close(fd);
    return r;
}

/* One file is the whole set. Takes f over, also when it fails. */
static int set_of_one(struct file *f, struct safetensors **ret)
{
    struct safetensors *s = calloc(1, sizeof *s);

    if (s) {
        s->files = calloc(1, sizeof *s->files);
        s->tensors = calloc(f->n + 1, sizeof *s->tensors);
    }
    if (!s || !s->files || !s->tensors) {
        file_fini(f);
        safetensors_close(s);
        return -ENOMEM;
    }
    s->files[0] = *f;
    s->n_files = 1;
    s->n = f->n;
    if (f->n)
        memcpy(s->tensors, f->tensors, f->n * sizeof *f->tensors);
    qsort(s->tensors, s->n, sizeof *s->tensors, by_name);
    *ret = s;
    return 0;
}

int safetensors_parse(const void *image, size_t bytes, const char *name, struct safetensors **ret,
                      struct err *err)
{
    struct file f = {.name = strdup(name), .image = image, .bytes = bytes};
    int r;

    if (!f.name)
        return err_set(err, -ENOMEM, "%s: out of memory", name);
    r = file_check(&f, err);
    if (r < 0) {
        file_fini(&f);
        return r;
    }
    r = set_of_one(&f, ret);
    return r < 0 ? err_set(err, r, "%s: out of memory", name) : 0;
}

/* Takes fd. */
static int open_one(const char *path, int fd, struct safetensors **ret, struct err *err)
{
    struct file f = {.name = strdup(path)};
    int r;

    if (!f.name) {
        close(fd);
        return err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    r = file_map(&f, fd, err);
    if (r == 0)
        r = file_check(&f, err);
    if (r < 0) {
        file_fini(&f);
        return r;
    }
    r = set_of_one(&f, ret);
    return r < 0 ? err_set(err, r, "%s: out of memory", path) : 0;
}

int safetensors_open(const char *path, struct safetensors **ret, struct err *err)
{
    /* Not to hang on a fifo. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    return open_one(path, fd, ret, err);
}

static const char INDEX[] = "model.safetensors.index.json";

/* A shard's name is a file of this very folder. */
static bool shard_name_ok(const char *name)
{
    return name && name[0] != '\0' && name[0] != '.' && !strchr(name, '/') &&
           strlen(name) <= NAME_MAX;
}

static int shard_get(struct safetensors *s, const char *dir, const char *name, struct file **ret,
                     struct err *err)
{
    struct file f = {0};
    int fd, r;

    if (asprintf(&f.name, "%s/%s", dir, name) < 0)
        return err_set(err, -ENOMEM, "%s: out of memory", name);
    for (size_t i = 0; i < s->n_files; i++) {
        if (strcmp(s->files[i].name, f.name) == 0) {
            free(f.name);
            *ret = &s->files[i];
            return 0;
        }
    }
    if (s->n_files == SAFETENSORS_SHARDS)
        r = err_set(err, -EINVAL, "%s: more than %d shards", dir, SAFETENSORS_SHARDS);
    else
        r = model_file_open(dir, name, &fd, err);
    if (r == 0)
        r = file_map(&f, fd, err);
    if (r == 0)
        r = file_check(&f, err);
    if (r < 0) {
        file_fini(&f);
        return r == -ENOENT ? -EINVAL : r; /* the index promised it */
    }
    qsort(f.tensors, f.n, sizeof *f.tensors, by_name); /* copies are freed, not looked up */
    s->files[s->n_files] = f;
    *ret = &s->files[s->n_files++];
    return 0;
}

static int index_read(struct safetensors *s, const char *dir, const json_t *map, struct err *err)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)map, key, v)
    {
        struct file *f = NULL;
        const char *shard = json_string_value(v);
        if (!shard_name_ok(shard))
            return err_set(
                err, -EINVAL,
                "%s/%s: weight_map of \"%.200s\" is not the name of a file in the folder", dir,
                INDEX, key);
        int r = shard_get(s, dir, shard, &f, err);
        if (r < 0)
            return r;
        const struct safetensors_tensor want = {.name = key};
        const struct safetensors_tensor *t =
            bsearch(&want, f->tensors, f->n, sizeof *f->tensors, by_name);
        if (!t)
            return err_set(err, -EINVAL, "%s: has no tensor \"%.200s\", which %s says it holds",
                           f->name, key, INDEX);
        s->tensors[s->n++] = *t;
    }
    qsort(s->tensors, s->n, sizeof *s->tensors, by_name);
    return 0;
}

static int index_load(const char *dir, json_t **ret, struct err *err)
{
    json_error_t why;
    char *text = NULL;
    size_t bytes = 0;
    const int r = model_file_read(dir, INDEX, SAFETENSORS_INDEX_BYTES, &text, &bytes, err);

    if (r < 0)
        return r;
    json_t *j = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
    free(text);
    if (!j)
        return err_set(err, -EINVAL, "%s/%s:%d: %s", dir, INDEX, why.line, why.text);
    if (!json_is_object(json_object_get(j, "weight_map"))) {
        json_decref(j);
        return err_set(err, -EINVAL, "%s/%s: has no weight_map object", dir, INDEX);
    }
    *ret = j;
    return 0;
}

static int sharded_open(const char *dir, struct safetensors **ret, struct err *err)
{
    struct safetensors *s = NULL;
    json_t *j = NULL;

    int r = index_load(dir, &j, err);
    if (r < 0)
        return r;
    const json_t *map = json_object_get(j, "weight_map");
    const size_t n = json_object_size(map);
    s = calloc(1, sizeof *s);
    if (s) {
        s->files = calloc(n < SAFETENSORS_SHARDS ? n + 1 : SAFETENSORS_SHARDS, sizeof *s->files);
        s->tensors = calloc(n + 1, sizeof *s->tensors);
    }
    if (!s || !s->files || !s->tensors)
        r = err_set(err, -ENOMEM, "%s: out of memory", dir);
    else
        r = index_read(s, dir, map, err);
    json_decref(j);
    if (r < 0) {
        safetensors_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

int safetensors_open_folder(const char *dir, struct safetensors **ret, struct err *err)
{
    char path[LIMIT_PATH];
    int fd, r;

    if (snprintf(path, sizeof path, "%s/model.safetensors", dir) >= (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "%.200s...: the path is too long", dir);
    r = model_file_open(dir, "model.safetensors", &fd, err);
    if (r == 0)
        return open_one(path, fd, ret, err);
    if (r != -ENOENT)
        return r;
    r = sharded_open(dir, ret, err);
    return r == -ENOENT ? err_set(err, r, "%s: has no model.safetensors", dir) : r;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    for (size_t i = 0; s->files && i < s->n_files; i++)
        file_fini(&s->files[i]);
    free(s->files);
    free(s->tensors);
    free(s);
}

size_t safetensors_count(const struct safetensors *s)
{
    return s->n;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *s, size_t i)
{
    return i < s->n ? &s->tensors[i] : NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    const struct safetensors_tensor want = {.name = name};

    return bsearch(&want, s->tensors, s->n, sizeof *s->tensors, by_name);
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    if (s->n_files == 0)
        return NULL;
    return json_string_value(
        json_object_get(json_object_get(s->files[0].header, "__metadata__"), key));
}

void safetensors_digest(const struct safetensors *s, uint8_t ret[32])
{
    struct sha256 h;

    sha256_init(&h);
    for (size_t i = 0; i < s->n_files; i++) {
        const struct file *f = &s->files[i];
        uint64_t n = 0;
        for (int b = 0; b < 8; b++)
            n |= (uint64_t)f->image[b] << (8 * b);
        sha256_add(&h, f->image, 8 + n);
        const uint64_t bytes = f->bytes;
        sha256_add(&h, &bytes, sizeof bytes);
    }
    sha256_end(&h, ret);
}
