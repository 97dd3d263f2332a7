/* safetensors.h - tensors in files: hostile headers in, canonical files out.
 *
 * Format: u64 little-endian header length, a JSON header, the data. A header is
 * trusted only after every tensor's dtype x shape equals its bytes and the data
 * is covered without hole, overlap or rest (safetensors' own rules), so a tensor
 * that was found can be read whole. Files are mapped, never copied; who cuts a
 * mapped file short while it is read gets SIGBUS, as with any mapping. */
#ifndef WORKER_SAFETENSORS_H
#define WORKER_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

/* In the format's order: files list tensors by descending dtype, then by name. */
enum safetensors_dtype {
    SAFETENSORS_BOOL,
    SAFETENSORS_U8,
    SAFETENSORS_I8,
    SAFETENSORS_F8_E5M2,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_I16,
    SAFETENSORS_U16,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_I32,
    SAFETENSORS_U32,
    SAFETENSORS_F32,
    SAFETENSORS_F64,
    SAFETENSORS_I64,
    SAFETENSORS_U64,
    SAFETENSORS_DTYPES
};
const char *safetensors_dtype_name(enum safetensors_dtype t);
size_t safetensors_dtype_bytes(enum safetensors_dtype t);

enum { SAFETENSORS_DIMS = 8 };

struct safetensors_tensor {
    const char *name;
    enum safetensors_dtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t shape[SAFETENSORS_DIMS];
    const void *data; /* aligned for its dtype; NULL when bytes == 0 is possible      */
    size_t bytes;
};

struct safetensors; /* a file, or the shards of a folder; immutable */

/* A file image in memory, borrowed until safetensors_close. name: for messages. */
int safetensors_parse(const void *image, size_t bytes, const char *name, struct safetensors **ret,
                      struct err *err);
/* One file, mapped. */
int safetensors_open(const char *path, struct safetensors **ret, struct err *err);
/* A model folder: model.safetensors, else the shards model.safetensors.index.json
 * names. -ENOENT: neither is there. */
int safetensors_open_folder(const char *dir, struct safetensors **ret, struct err *err);
void safetensors_close(struct safetensors *s);

size_t safetensors_count(const struct safetensors *s);
const struct safetensors_tensor *safetensors_at(const struct safetensors *s,
                                                size_t i); /* by name */
const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name);
/* A value of __metadata__ of the first file; NULL: not there. */
const char *safetensors_metadata(const struct safetensors *s, const char *key);
/* SHA-256 over each file's header and size: a cheap name for the content. */
void safetensors_digest(const struct safetensors *s, uint8_t ret[32]);

struct safetensors_pair {
    const char *key, *value;
};

/* What to write. Names must differ; metadata begins with "format": "pt" by itself.
 * `bytes` of a tensor is computed from its shape. */
struct safetensors_write {
    const struct safetensors_tensor *tensors;
    size_t n;
    const struct safetensors_pair *metadata;
    size_t n_metadata;
};

/* Replaces `name` in directory dir_fd atomically. 0 or -errno. */
int safetensors_replace(int dir_fd, const char *name, const struct safetensors_write *w);
/* Appends the file to descriptor fd, streaming. 0 or -errno. */
int safetensors_send(int fd, const struct safetensors_write *w);
/* The whole file in one malloc'ed buffer. 0 or -errno. */
int safetensors_build(const struct safetensors_write *w, void **ret, size_t *ret_bytes);

#endif
