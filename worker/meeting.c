/* meeting.c - see meeting.h. */
#include "worker/meeting.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { VALUES_MAX = 16384 }; /* 64 ranks that meet in pairs, four times */

struct value {
    char key[LINK_KEY_BYTES];
    void *data;
    size_t bytes;
};

struct meeting {
    struct reporter_ask *asks;
    int n_asks;
    void (*answer)(void *arg, uint32_t rank, const char *key, int result, const void *value,
                   size_t bytes);
    void *arg;
    struct value *v;
    size_t n, cap;
};

int meeting_new(struct reporter_ask *asks, int n,
                void (*answer)(void *arg, uint32_t rank, const char *key, int result,
                               const void *value, size_t bytes),
                void *arg, struct meeting **ret)
{
    struct meeting *m = calloc(1, sizeof *m);

    if (!m)
        return -ENOMEM;
    *m = (struct meeting){.asks = asks, .n_asks = n, .answer = answer, .arg = arg};
    *ret = m;
    return 0;
}

void meeting_free(struct meeting *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++)
        free(m->v[i].data);
    free(m->v);
    free(m);
}

static const struct value *find(const struct meeting *m, const char *key)
{
    for (size_t i = 0; i < m->n; i++)
        if (strcmp(m->v[i].key, key) == 0)
            return &m->v[i];
    return NULL;
}

/* Idempotent; another value under the same key is refused. */
static int keep(struct meeting *m, struct reporter_ask *a)
{
    const struct value *old = find(m, a->key);

    if (old)
        return old->bytes == a->bytes && memcmp(old->data, a->value, a->bytes) == 0 ? 0 : -EEXIST;
    if (m->n == VALUES_MAX)
        return -ENOSPC;
    if (m->n == m->cap) {
        const size_t cap = m->cap ? 2 * m->cap : 16;
        struct value *v = realloc(m->v, cap * sizeof *v);
        if (!v)
            return -ENOMEM;
        m->v = v;
        m->cap = cap;
    }
    struct value *to = &m->v[m->n];
    to->data = malloc(a->bytes + 1);
    if (!to->data)
        return -ENOMEM;
    memcpy(to->key, a->key, sizeof to->key);
    memcpy(to->data, a->value, a->bytes);
    to->bytes = a->bytes;
    m->n++;
    return 0;
}

void meeting_ask(struct meeting *m, uint32_t rank)
{
    struct reporter_ask *a = &m->asks[rank];

    if (a->put) {
        char key[LINK_KEY_BYTES];
        memcpy(key, a->key, sizeof key);
        m->answer(m->arg, rank, key, keep(m, a), NULL, 0);
    }
    for (int i = 0; i < m->n_asks; i++) {
        const struct value *v = m->asks[i].open && !m->asks[i].put ? find(m, m->asks[i].key) : NULL;
        if (v)
            m->answer(m->arg, (uint32_t)i, v->key, 0, v->data, v->bytes);
    }
}
