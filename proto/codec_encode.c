/* codec_encode.c - see codec.h: a message as a frame */
#include "proto/codec.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <msgpack.h>

#include "proto/codec_impl.h"

static void put_str(msgpack_packer *pk, const char *s, size_t n)
{
    msgpack_pack_str(pk, n);
    msgpack_pack_str_body(pk, s, n);
}

static bool same_names(const struct msg_row *a, const struct msg_row *b)
{
    if (a->n_values != b->n_values)
        return false;
    if (a->names == b->names)
        return true;
    for (uint32_t i = 0; i < a->n_values; i++)
        if (strcmp(a->names[i], b->names[i]) != 0)
            return false;
    return true;
}

static int put_row(msgpack_packer *pk, const struct msg_rows *rows, size_t i, struct err *err)
{
    const struct msg_row *r = &rows->v[i];

    if (r->n_values > LIMIT_METRICS || (unsigned)r->kind >= MSG_ROW_KINDS)
        return err_set(err, -EMSGSIZE, "row %zu: at most %d values", i, LIMIT_METRICS);
    msgpack_pack_array(pk, ROW_PARTS);
    msgpack_pack_uint64(pk, r->seq);
    msgpack_pack_uint64(pk, r->attempt);
    msgpack_pack_uint64(pk, r->n);
    msgpack_pack_int64(pk, r->step);
    msgpack_pack_int64(pk, r->wall_ms);
    msgpack_pack_uint64(pk, (uint64_t)r->kind);
    if (r->superseded)
        msgpack_pack_true(pk);
    else
        msgpack_pack_false(pk);
    if (i > 0 && same_names(&rows->v[i - 1], r)) {
        msgpack_pack_uint64(pk, i - 1);
    } else {
        msgpack_pack_array(pk, r->n_values);
        for (uint32_t j = 0; j < r->n_values; j++) {
            const size_t n = strlen(r->names[j]);
            if (n == 0 || n >= NAME_BYTES || !codec_utf8(r->names[j], n))
                return err_set(err, -EINVAL, "row %zu: a value's name is empty or too long", i);
            put_str(pk, r->names[j], n);
        }
    }
    msgpack_pack_array(pk, r->n_values);
    for (uint32_t j = 0; j < r->n_values; j++)
        msgpack_pack_double(pk, r->values[j]);
    return 0;
}

static int put_rows(msgpack_packer *pk, const struct field *f, const struct msg_rows *rows,
                    struct err *err)
{
    if (rows->n > f->limit)
        return err_set(err, -EMSGSIZE, "%s: more than %" PRIu64 " rows", f->name, f->limit);
    msgpack_pack_array(pk, rows->n);
    for (size_t i = 0; i < rows->n; i++) {
        const int r = put_row(pk, rows, i, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int put_text(msgpack_packer *pk, const struct field *f, const char *s, struct err *err)
{
    const size_t n = s ? strlen(s) : 0;

    if (n > f->limit)
        return err_set(err, -EMSGSIZE, "%s: longer than %" PRIu64 " bytes", f->name, f->limit);
    if (!codec_utf8(s ? s : "", n))
        return err_set(err, -EINVAL, "%s: not UTF-8", f->name);
    put_str(pk, s ? s : "", n);
    return 0;
}

static void put_bin(msgpack_packer *pk, const void *p, size_t n)
{
    msgpack_pack_bin(pk, n);
    if (n > 0)
        msgpack_pack_bin_body(pk, p, n);
}

static int put_field(msgpack_packer *pk, const struct field *f, const void *at, struct err *err)
{
    const struct msg_bin *bin = at;

    put_str(pk, f->name, strlen(f->name));
    switch (f->type) {
    case T_u64:
        if (f->limit > 0 && *(const uint64_t *)at > f->limit)
            return err_set(err, -EMSGSIZE, "%s: more than %" PRIu64, f->name, f->limit);
        msgpack_pack_uint64(pk, *(const uint64_t *)at);
        return 0;
    case T_i64:
        msgpack_pack_int64(pk, *(const int64_t *)at);
        return 0;
    case T_flag:
        if (*(const bool *)at)
            msgpack_pack_true(pk);
        else
            msgpack_pack_false(pk);
        return 0;
    case T_str:
        return put_text(pk, f, *(const char *const *)at, err);
    case T_bin:
        if (bin->bytes > f->limit)
            return err_set(err, -EMSGSIZE, "%s: longer than %" PRIu64 " bytes", f->name, f->limit);
        put_bin(pk, bin->data, bin->bytes);
        return 0;
    case T_key:
        put_bin(pk, at, sizeof(struct msg_key));
        return 0;
    case T_token:
        put_bin(pk, at, sizeof(struct msg_token));
        return 0;
    case T_rows:
        return put_rows(pk, f, at, err);
    }
    return -EINVAL;
}

/* msgpack-c's own sbuffer reports a failed allocation only by a return value that
 * the pack functions' callers would have to check one by one. */
struct sink {
    uint8_t *data;
    size_t bytes, cap;
    int r;
};

static int sink_write(void *arg, const char *p, size_t n)
{
    struct sink *s = arg;

    if (s->r == 0 && s->bytes + n > LIMIT_MSG_BYTES)
        s->r = -EMSGSIZE;
    if (s->r == 0 && s->bytes + n > s->cap) {
        const size_t cap = (s->bytes + n) * 2 + 256;
        uint8_t *data = realloc(s->data, cap);
        if (data) {
            s->data = data;
            s->cap = cap;
        } else {
            s->r = -ENOMEM;
        }
    }
    if (s->r < 0)
        return -1;
    memcpy(s->data + s->bytes, p, n);
    s->bytes += n;
    return 0;
}

int codec_encode(const struct msg *m, uint8_t **ret, size_t *ret_bytes, struct err *err)
{
    const struct desc *d = codec_desc((uint32_t)m->type);
    const struct field *f;
    struct sink s = {0};
    msgpack_packer pk;
    uint32_t v_min, v_max;
    unsigned n;
    int r = 0;

    if (!d)
        return err_set(err, -EINVAL, "no message has the number %d", (int)m->type);
    codec_versions(d->dialect, &v_min, &v_max);
    if (d->dialect == MSG_BOTH)
        v_max = 1;
    f = d->fields(&n);
    msgpack_packer_init(&pk, &s, sink_write);
    msgpack_pack_map(&pk, n + 2);
    put_str(&pk, "v", 1);
    msgpack_pack_uint32(&pk, m->version ? m->version : v_max);
    put_str(&pk, "t", 1);
    msgpack_pack_uint32(&pk, (uint32_t)m->type);
    for (unsigned i = 0; i < n && r == 0; i++)
        r = put_field(&pk, &f[i], (const char *)&m->error + f[i].at, err);
    if (r == 0 && s.r < 0)
        r = err_set(err, s.r, "%s: the frame is larger than %d bytes", d->name, LIMIT_MSG_BYTES);
    if (r < 0) {
        free(s.data);
        return r;
    }
    *ret = s.data;
    *ret_bytes = s.bytes;
    return 0;
}
