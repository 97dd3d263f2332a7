/* row.c - see row.h. */
#include "daemon/row.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD = 2 * sizeof(uint32_t) };

static size_t names_bytes_of(const struct msg_row *r)
{
    size_t n = 0;

    for (uint32_t i = 0; i < r->n_values; i++)
        n += strlen(r->names[i]) + 1;
    return n;
}

size_t row_packed_bytes(const struct msg_row *r)
{
    return HEAD + names_bytes_of(r) + r->n_values * sizeof(double);
}

void row_pack(const struct msg_row *r, void *to)
{
    char *p = to;
    const uint32_t head[2] = {r->n_values, (uint32_t)names_bytes_of(r)};

    memcpy(p, head, HEAD);
    p += HEAD;
    for (uint32_t i = 0; i < r->n_values; i++) {
        const size_t n = strlen(r->names[i]) + 1;
        memcpy(p, r->names[i], n);
        p += n;
    }
    if (r->n_values > 0)
        memcpy(p, r->values, r->n_values * sizeof(double));
}

int row_split(const void *packed, size_t bytes, const char **ret_names, size_t *ret_names_bytes,
              const void **ret_values, uint32_t *ret_n)
{
    const char *p = packed;
    uint32_t head[2];

    if (bytes < HEAD)
        return -EINVAL;
    memcpy(head, p, HEAD);
    if (head[0] > LIMIT_METRICS || bytes != HEAD + head[1] + head[0] * sizeof(double))
        return -EINVAL;
    *ret_names = p + HEAD;
    *ret_names_bytes = head[1];
    *ret_values = p + HEAD + head[1];
    *ret_n = head[0];
    return 0;
}

int row_values_pack(const void *values, uint32_t n, uint8_t **ret, size_t *ret_bytes)
{
    uint8_t *out = malloc(3 + 9 * (size_t)n), *p = out;

    if (!out)
        return -ENOMEM;
    if (n < 16) {
        *p++ = (uint8_t)(0x90 | n);
    } else {
        *p++ = 0xdc;
        *p++ = (uint8_t)(n >> 8);
        *p++ = (uint8_t)n;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t u;
        memcpy(&u, (const char *)values + i * sizeof u, sizeof u);
        *p++ = 0xcb;
        for (int shift = 56; shift >= 0; shift -= 8)
            *p++ = (uint8_t)(u >> shift);
    }
    *ret = out;
    *ret_bytes = (size_t)(p - out);
    return 0;
}

int row_values_unpack(const void *data, size_t bytes, double *to, uint32_t n)
{
    const uint8_t *p = data;
    const size_t head = n < 16 ? 1 : 3;

    if (bytes != head + 9 * (size_t)n)
        return -EINVAL;
    if (n < 16 ? p[0] != (0x90 | n) : (p[0] != 0xdc || ((uint32_t)p[1] << 8 | p[2]) != n))
        return -EINVAL;
    p += head;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t u = 0;
        if (*p++ != 0xcb)
            return -EINVAL;
        for (int k = 0; k < 8; k++)
            u = u << 8 | *p++;
        memcpy(&to[i], &u, sizeof u);
    }
    return 0;
}

static void *block(struct row_page *p, size_t bytes)
{
    if (p->n_blocks == p->cap_blocks) {
        const size_t cap = p->cap_blocks ? 2 * p->cap_blocks : 16;
        void **v = realloc(p->blocks, cap * sizeof *v);
        if (!v)
            return NULL;
        p->blocks = v;
        p->cap_blocks = cap;
    }
    void *b = malloc(bytes ? bytes : 1);
    if (b)
        p->blocks[p->n_blocks++] = b;
    return b;
}

static bool names_equal(const struct msg_row *r, const char *names, size_t bytes)
{
    const char *p = names;

    for (uint32_t i = 0; i < r->n_values; i++) {
        const size_t n = strlen(r->names[i]) + 1;
        if ((size_t)(names + bytes - p) < n || memcmp(p, r->names[i], n) != 0)
            return false;
        p += n;
    }
    return p == names + bytes;
}

static int add_names(struct row_page *p, struct msg_row *r, const char *names, size_t bytes)
{
    const char **list;
    char *copy;

    if (p->n > 0 && p->v[p->n - 1].n_values == r->n_values &&
        names_equal(&p->v[p->n - 1], names, bytes)) {
        r->names = p->v[p->n - 1].names;
        return 0;
    }
    list = block(p, (r->n_values + 1) * sizeof *list);
    copy = block(p, bytes + 1);
    if (!list || !copy)
        return -ENOMEM;
    if (bytes > 0)
        memcpy(copy, names, bytes);
    copy[bytes] = 0;
    for (uint32_t i = 0; i < r->n_values; i++) {
        list[i] = copy;
        copy += strlen(copy);
        if (copy < list[0] + bytes)
            copy++;
    }
    r->names = list;
    return 0;
}

int row_page_add(struct row_page *p, const struct msg_row *r, const char *names, size_t names_bytes,
                 const void *values)
{
    struct msg_row made = *r;
    double *copy;
    int e;

    if (p->n == p->cap) {
        const size_t cap = p->cap ? 2 * p->cap : 32;
        struct msg_row *v = realloc(p->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        p->v = v;
        p->cap = cap;
    }
    e = add_names(p, &made, names, names_bytes);
    copy = block(p, made.n_values * sizeof *copy);
    if (e < 0 || !copy)
        return -ENOMEM;
    if (made.n_values > 0)
        memcpy(copy, values, made.n_values * sizeof *copy);
    made.values = copy;
    p->v[p->n++] = made;
    return 0;
}

void row_page_fini(struct row_page *p)
{
    for (size_t i = 0; i < p->n_blocks; i++)
        free(p->blocks[i]);
    free(p->blocks);
    free(p->v);
    *p = (struct row_page){0};
}
