/* codec_decode.c - see codec.h: a frame, which may be hostile, as a message */
#include "proto/codec.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <msgpack.h>

#include "proto/codec_impl.h"

enum { PARTS_MAX = 1 << 16 };

/* Walks a frame without allocating, so that msgpack-c, which trusts counts and
 * reserves memory for them, only sees frames whose counts are true. */
struct walk {
    const uint8_t *p, *end;
    uint32_t parts;
};

static int walk_be(struct walk *w, unsigned bytes, uint64_t *ret)
{
    uint64_t v = 0;

    if ((size_t)(w->end - w->p) < bytes)
        return -EINVAL;
    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | *w->p++;
    *ret = v;
    return 0;
}

/* The bytes after the first one that a part has (str, bin, numbers), and how many
 * parts follow inside it (array, map). Extension types have no use here. */
static int walk_head(struct walk *w, uint64_t *ret_skip, uint64_t *ret_inside)
{
    static const uint8_t number_bytes[] = {4, 8, 1, 2, 4, 8, 1, 2, 4, 8}; /* 0xca .. 0xd3 */
    uint64_t n = 0;
    uint8_t c;
    int r = 0;

    if (w->p == w->end)
        return -EINVAL;
    c = *w->p++;
    *ret_skip = *ret_inside = 0;
    if (c <= 0x7f || c >= 0xe0 || c == 0xc0 || c == 0xc2 || c == 0xc3)
        return 0;
    if (c <= 0x8f) {
        *ret_inside = (uint64_t)(c & 15) * 2;
    } else if (c <= 0x9f) {
        *ret_inside = c & 15;
    } else if (c <= 0xbf) {
        *ret_skip = c & 31;
    } else if (c >= 0xca && c <= 0xd3) {
        *ret_skip = number_bytes[c - 0xca];
    } else if ((c >= 0xc4 && c <= 0xc6) || (c >= 0xd9 && c <= 0xdb)) {
        r = walk_be(w, 1u << (c <= 0xc6 ? c - 0xc4 : c - 0xd9), &n);
        *ret_skip = n;
    } else if (c >= 0xdc) {
        r = walk_be(w, c & 1 ? 4 : 2, &n);
        *ret_inside = c >= 0xde ? n * 2 : n;
    } else {
        return -EINVAL;
    }
    return r;
}

static int walk_frame(const void *data, size_t bytes, struct err *err)
{
    struct walk w = {data, (const uint8_t *)data + bytes, 0};
    uint64_t left[LIMIT_MSG_DEPTH + 1] = {1}, skip, inside;
    unsigned depth = 0;

    if (bytes > LIMIT_MSG_BYTES)
        return err_set(err, -EMSGSIZE, "the frame is larger than %d bytes", LIMIT_MSG_BYTES);
    for (;;) {
        while (left[depth] == 0) {
            if (depth == 0)
                return w.p == w.end ? 0 : err_set(err, -EINVAL, "bytes after the message");
            depth--;
        }
        left[depth]--;
        if (walk_head(&w, &skip, &inside) < 0 || skip > (uint64_t)(w.end - w.p) ||
            inside > (uint64_t)(w.end - w.p))
            return err_set(err, -EINVAL, "not a whole msgpack message");
        w.p += skip;
        if (++w.parts > PARTS_MAX)
            return err_set(err, -EMSGSIZE, "more than %d parts in one message", PARTS_MAX);
        if (inside > 0) {
            if (depth == LIMIT_MSG_DEPTH)
                return err_set(err, -EMSGSIZE, "nested deeper than %d", LIMIT_MSG_DEPTH);
            left[++depth] = inside;
        }
    }
}

static bool is_str(const msgpack_object *o, const char *s)
{
    return o->type == MSGPACK_OBJECT_STR && o->via.str.size == strlen(s) &&
           memcmp(o->via.str.ptr, s, o->via.str.size) == 0;
}

static const msgpack_object *lookup(const msgpack_object *map, const char *key)
{
    for (uint32_t i = 0; i < map->via.map.size; i++)
        if (is_str(&map->via.map.ptr[i].key, key))
            return &map->via.map.ptr[i].val;
    return NULL;
}

static bool get_u64(const msgpack_object *o, uint64_t *ret)
{
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
        return false;
    *ret = o->via.u64;
    return true;
}

static bool get_i64(const msgpack_object *o, int64_t *ret)
{
    if (o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER) {
        *ret = o->via.i64;
        return true;
    }
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER || o->via.u64 > INT64_MAX)
        return false;
    *ret = (int64_t)o->via.u64;
    return true;
}

/* The memory of a decoded message: one zone, which also holds msgpack's objects. */
static char *get_text(msgpack_zone *z, const msgpack_object *o)
{
    char *s = msgpack_zone_malloc(z, (size_t)o->via.str.size + 1);

    if (s) {
        memcpy(s, o->via.str.ptr, o->via.str.size);
        s[o->via.str.size] = 0;
    }
    return s;
}

static int get_names(msgpack_zone *z, const msgpack_object *o, struct msg_row *rows, size_t i)
{
    struct msg_row *r = &rows[i];
    const char **names;
    uint64_t k;

    if (get_u64(o, &k)) {
        if (k >= i)
            return -EINVAL;
        r->names = rows[k].names;
        r->n_values = rows[k].n_values;
        return 0;
    }
    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size > LIMIT_METRICS)
        return -EINVAL;
    names = msgpack_zone_malloc(z, (o->via.array.size + 1) * sizeof *names);
    if (!names)
        return -ENOMEM;
    for (uint32_t j = 0; j < o->via.array.size; j++) {
        const msgpack_object *s = &o->via.array.ptr[j];
        if (s->type != MSGPACK_OBJECT_STR || s->via.str.size == 0 ||
            s->via.str.size >= NAME_BYTES || !codec_utf8(s->via.str.ptr, s->via.str.size))
            return -EINVAL;
        names[j] = get_text(z, s);
        if (!names[j])
            return -ENOMEM;
    }
    r->names = names;
    r->n_values = o->via.array.size;
    return 0;
}

static int get_values(msgpack_zone *z, const msgpack_object *o, struct msg_row *r)
{
    double *v;

    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != r->n_values)
        return -EINVAL;
    v = msgpack_zone_malloc(z, (r->n_values + 1) * sizeof *v);
    if (!v)
        return -ENOMEM;
    for (uint32_t j = 0; j < r->n_values; j++) {
        const msgpack_object *f = &o->via.array.ptr[j];
        if (f->type != MSGPACK_OBJECT_FLOAT64 && f->type != MSGPACK_OBJECT_FLOAT32)
            return -EINVAL;
        v[j] = f->via.f64;
    }
    r->values = v;
    return 0;
}

static int get_row(msgpack_zone *z, const msgpack_object *o, struct msg_row *rows, size_t i)
{
    const msgpack_object *p = o->via.array.ptr;
    struct msg_row *r = &rows[i];
    uint64_t attempt, kind;
    int e;

    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size < ROW_PARTS)
        return -EINVAL;
    if (!get_u64(&p[0], &r->seq) || !get_u64(&p[1], &attempt) || attempt > UINT32_MAX ||
        !get_u64(&p[2], &r->n) || !get_i64(&p[3], &r->step) || !get_i64(&p[4], &r->wall_ms) ||
        !get_u64(&p[5], &kind) || kind >= MSG_ROW_KINDS || p[6].type != MSGPACK_OBJECT_BOOLEAN)
        return -EINVAL;
    r->attempt = (uint32_t)attempt;
    r->kind = (enum msg_kind)kind;
    r->superseded = p[6].via.boolean;
    e = get_names(z, &p[7], rows, i);
    return e < 0 ? e : get_values(z, &p[8], r);
}

static int get_rows(msgpack_zone *z, const struct field *f, const msgpack_object *o,
                    struct msg_rows *ret, struct err *err)
{
    struct msg_row *v;

    if (o->type != MSGPACK_OBJECT_ARRAY)
        return err_set(err, -EINVAL, "%s: not an array", f->name);
    if (o->via.array.size > f->limit)
        return err_set(err, -EMSGSIZE, "%s: more than %" PRIu64 " rows", f->name, f->limit);
    v = msgpack_zone_malloc(z, (o->via.array.size + 1) * sizeof *v);
    if (!v)
        return -ENOMEM;
    memset(v, 0, (o->via.array.size + 1) * sizeof *v);
    for (uint32_t i = 0; i < o->via.array.size; i++) {
        const int r = get_row(z, &o->via.array.ptr[i], v, i);
        if (r < 0)
            return err_set(err, r, "%s: row %u is malformed", f->name, i);
    }
    ret->v = v;
    ret->n = o->via.array.size;
    return 0;
}

static int get_bytes(msgpack_zone *z, const struct field *f, const msgpack_object *o, void *at,
                     struct err *err)
{
    const size_t n = o->via.bin.size;
    void *p;

    if (o->type != MSGPACK_OBJECT_BIN)
        return err_set(err, -EINVAL, "%s: not bytes", f->name);
    if (f->type == T_key || f->type == T_token) {
        const size_t want = f->type == T_key ? sizeof(struct msg_key) : sizeof(struct msg_token);
        if (n != want)
            return err_set(err, -EINVAL, "%s: must have %zu bytes", f->name, want);
        memcpy(at, o->via.bin.ptr, n);
        return 0;
    }
    if (n > f->limit)
        return err_set(err, -EMSGSIZE, "%s: longer than %" PRIu64 " bytes", f->name, f->limit);
    p = msgpack_zone_malloc(z, n + 1);
    if (!p)
        return -ENOMEM;
    memcpy(p, o->via.bin.ptr, n);
    *(struct msg_bin *)at = (struct msg_bin){p, n};
    return 0;
}

static int get_str(msgpack_zone *z, const struct field *f, const msgpack_object *o,
                   const char **ret, struct err *err)
{
    if (o->type != MSGPACK_OBJECT_STR)
        return err_set(err, -EINVAL, "%s: not a string", f->name);
    if (o->via.str.size > f->limit)
        return err_set(err, -EMSGSIZE, "%s: longer than %" PRIu64 " bytes", f->name, f->limit);
    if (!codec_utf8(o->via.str.ptr, o->via.str.size))
        return err_set(err, -EINVAL, "%s: not UTF-8 free of NULs", f->name);
    *ret = get_text(z, o);
    return *ret ? 0 : -ENOMEM;
}

static int get_field(msgpack_zone *z, const struct field *f, const msgpack_object *o, void *at,
                     struct err *err)
{
    switch (f->type) {
    case T_u64:
        if (!get_u64(o, at))
            return err_set(err, -EINVAL, "%s: not a whole number >= 0", f->name);
        if (f->limit > 0 && *(uint64_t *)at > f->limit)
            return err_set(err, -EMSGSIZE, "%s: more than %" PRIu64, f->name, f->limit);
        return 0;
    case T_i64:
        return get_i64(o, at) ? 0 : err_set(err, -EINVAL, "%s: not a whole number", f->name);
    case T_flag:
        if (o->type != MSGPACK_OBJECT_BOOLEAN)
            return err_set(err, -EINVAL, "%s: not true or false", f->name);
        *(bool *)at = o->via.boolean;
        return 0;
    case T_str:
        return get_str(z, f, o, at, err);
    case T_bin:
    case T_key:
    case T_token:
        return get_bytes(z, f, o, at, err);
    case T_rows:
        return get_rows(z, f, o, at, err);
    }
    return -EINVAL;
}

static int get_message(msgpack_zone *z, const struct desc *d, const msgpack_object *map,
                       struct msg *m, struct err *err)
{
    unsigned n;
    const struct field *f = d->fields(&n);

    for (unsigned i = 0; i < n; i++) {
        void *at = (char *)&m->error + f[i].at;
        const msgpack_object *o = lookup(map, f[i].name);
        int r = 0;
        if (f[i].type == T_str)
            *(const char **)at = "";
        if (o)
            r = get_field(z, &f[i], o, at, err);
        else if (f[i].must)
            r = err_set(err, -EINVAL, "%s: missing", f[i].name);
        if (r < 0)
            return err_prefix(err, r, "%s", d->name);
    }
    return 0;
}

/* The map of a frame that walk_frame() accepted; its strings lie in `data`. */
static int unpack(const void *data, size_t bytes, msgpack_zone *z, msgpack_object *ret,
                  uint64_t *ret_type, uint64_t *ret_version, struct err *err)
{
    const msgpack_object *v, *t;
    size_t off = 0;

    if (msgpack_unpack(data, bytes, &off, z, ret) != MSGPACK_UNPACK_SUCCESS ||
        ret->type != MSGPACK_OBJECT_MAP)
        return err_set(err, -EINVAL, "not a msgpack map");
    v = lookup(ret, "v");
    t = lookup(ret, "t");
    if (!v || !t || !get_u64(v, ret_version) || !get_u64(t, ret_type) || *ret_type > UINT32_MAX ||
        *ret_version > UINT32_MAX)
        return err_set(err, -EINVAL, "no version \"v\" or type \"t\" in the message");
    return 0;
}

/* In either dialect: what a message is that nobody here knows, only its version can say. */
static bool spoken(uint64_t version)
{
    static const enum msg_dialect dialects[] = {MSG_CLIENT, MSG_WORKER};
    uint32_t v_min, v_max;

    for (size_t i = 0; i < sizeof dialects / sizeof dialects[0]; i++) {
        codec_versions(dialects[i], &v_min, &v_max);
        if (version >= v_min && version <= v_max)
            return true;
    }
    return false;
}

int codec_decode(const void *data, size_t bytes, struct msg **ret, struct err *err)
{
    msgpack_zone *z = NULL;
    struct msg *m = NULL;
    const struct desc *d;
    msgpack_object map;
    uint64_t type, version;
    uint32_t v_min, v_max;
    int r = walk_frame(data, bytes, err);

    if (r < 0)
        return r;
    r = -ENOMEM;
    m = calloc(1, sizeof *m);
    z = msgpack_zone_new(4096);
    if (!m || !z)
        goto fail;
    m->memory_ = z;
    r = unpack(data, bytes, z, &map, &type, &version, err);
    if (r < 0)
        goto fail;
    d = codec_desc((uint32_t)type);
    if (!d) {
        r = spoken(version)
                ? err_set(err, -EINVAL, "unknown message type %" PRIu64, type)
                : err_set(err, -EPROTONOSUPPORT,
                          "message type %" PRIu64 " of version %" PRIu64 " is not spoken here",
                          type, version);
        goto fail;
    }
    codec_versions(d->dialect, &v_min, &v_max);
    if (version < v_min || version > v_max) {
        r = err_set(err, -EPROTONOSUPPORT, "%s: version %" PRIu64 " is not spoken here (%u to %u)",
                    d->name, version, v_min, v_max);
        goto fail;
    }
    m->type = d->type;
    m->version = (uint32_t)version;
    r = get_message(z, d, &map, m, err);
    if (r < 0)
        goto fail;
    *ret = m;
    return 0;

fail:
    if (z)
        msgpack_zone_free(z);
    free(m);
    return r;
}

void codec_free(struct msg *m)
{
    if (!m)
        return;
    if (m->memory_)
        msgpack_zone_free(m->memory_);
    free(m);
}

int codec_peek(const void *data, size_t bytes, uint32_t *ret_type, uint32_t *ret_version)
{
    msgpack_zone *z;
    msgpack_object map;
    uint64_t type, version;
    int r = walk_frame(data, bytes, NULL);

    if (r < 0)
        return -EINVAL;
    z = msgpack_zone_new(4096);
    if (!z)
        return -ENOMEM;
    r = unpack(data, bytes, z, &map, &type, &version, NULL);
    msgpack_zone_free(z);
    if (r < 0)
        return r;
    *ret_type = (uint32_t)type;
    *ret_version = (uint32_t)version;
    return 0;
}
