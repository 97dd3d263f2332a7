/* tokenizer_map.c - see tokenizer_map.h. Open addressing, at most half full. */
#include "worker/tokenizer_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text.h"

struct entry {
    size_t off, n;
    int32_t id;
};

struct tokenizer_map {
    struct text bytes;
    struct entry *entries;
    size_t n, cap;
    uint32_t *slots; /* index of an entry + 1; 0: free */
    size_t n_slots;
    uint32_t *by_id; /* the same */
    size_t n_ids;
};

static uint64_t hash(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a, then a mix for the low bits */
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3u;
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint32_t *find(const struct tokenizer_map *m, const char *s, size_t n)
{
    for (size_t i = hash(s, n) & (m->n_slots - 1);; i = (i + 1) & (m->n_slots - 1)) {
        uint32_t *slot = &m->slots[i];
        if (*slot == 0)
            return slot;
        const struct entry *e = &m->entries[*slot - 1];
        if (e->n == n && !memcmp(m->bytes.s + e->off, s, n))
            return slot;
    }
}

static int grow_slots(struct tokenizer_map *m, size_t n_slots)
{
    uint32_t *slots = calloc(n_slots, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    free(m->slots);
    m->slots = slots;
    m->n_slots = n_slots;
    for (size_t i = 0; i < m->n; i++)
        *find(m, m->bytes.s + m->entries[i].off, m->entries[i].n) = (uint32_t)i + 1;
    return 0;
}

static int grow_ids(struct tokenizer_map *m, int32_t id)
{
    if ((size_t)id < m->n_ids)
        return 0;
    size_t n = m->n_ids ? m->n_ids : 256;
    while (n <= (size_t)id)
        n *= 2;
    uint32_t *p = realloc(m->by_id, n * sizeof *p);
    if (!p)
        return -ENOMEM;
    memset(p + m->n_ids, 0, (n - m->n_ids) * sizeof *p);
    m->by_id = p;
    m->n_ids = n;
    return 0;
}

int tokenizer_map_new(size_t expected, struct tokenizer_map **ret)
{
    struct tokenizer_map *m = calloc(1, sizeof *m);
    size_t n_slots = 64;
    while (n_slots < 2 * expected && n_slots < (size_t)1 << 26)
        n_slots *= 2;
    if (!m || grow_slots(m, n_slots) || text_reserve(&m->bytes, 8 * expected)) {
        tokenizer_map_free(m);
        return -ENOMEM;
    }
    *ret = m;
    return 0;
}

void tokenizer_map_free(struct tokenizer_map *m)
{
    if (!m)
        return;
    text_free(&m->bytes);
    free(m->entries);
    free(m->slots);
    free(m->by_id);
    free(m);
}

int tokenizer_map_put(struct tokenizer_map *m, const char *s, size_t n, int32_t id)
{
    if (id < 0 || id >= TOKENIZER_MAX_ID)
        return -ERANGE;
    if (grow_ids(m, id))
        return -ENOMEM;
    if (2 * (m->n + 1) > m->n_slots && grow_slots(m, 2 * m->n_slots))
        return -ENOMEM;
    if (m->n == m->cap) {
        const size_t cap = m->cap ? 2 * m->cap : 256;
        struct entry *e = realloc(m->entries, cap * sizeof *e);
        if (!e)
            return -ENOMEM;
        m->entries = e;
        m->cap = cap;
    }
    uint32_t *slot = find(m, s, n);
    if (*slot == 0) {
        const size_t off = m->bytes.n;
        if (text_add(&m->bytes, s, n) || text_add(&m->bytes, "", 1))
            return -ENOMEM;
        m->entries[m->n++] = (struct entry){off, n, id};
        *slot = (uint32_t)m->n;
    } else {
        m->entries[*slot - 1].id = id;
    }
    m->by_id[id] = *slot;
    return 0;
}

int32_t tokenizer_map_get(const struct tokenizer_map *m, const char *s, size_t n)
{
    const uint32_t slot = *find(m, s, n);
    return slot ? m->entries[slot - 1].id : -1;
}

const char *tokenizer_map_string(const struct tokenizer_map *m, int32_t id, size_t *ret_n)
{
    if (id < 0 || (size_t)id >= m->n_ids || m->by_id[id] == 0)
        return NULL;
    const struct entry *e = &m->entries[m->by_id[id] - 1];
    if (ret_n)
        *ret_n = e->n;
    return m->bytes.s + e->off;
}

int32_t tokenizer_map_end(const struct tokenizer_map *m)
{
    for (size_t i = m->n_ids; i > 0; i--)
        if (m->by_id[i - 1])
            return (int32_t)i;
    return 0;
}
