/* request.c - see request.h. */
#include "daemon/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct request_entry {
    struct request_entry *next;
    struct fx_request row;
};

/* Ids are random by contract, but a client may choose them: it can only make its
 * own look-ups slow if the uid is mixed in and the whole id is hashed. */
static uint64_t hash(uint32_t uid, const uint8_t *id)
{
    uint64_t h = 0xcbf29ce484222325u ^ (uint64_t)uid * 0x9e3779b97f4a7c15u;

    for (int i = 0; i < EVENT_ID_BYTES; i++)
        h = (h ^ id[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

static struct request_entry **find(const struct request_table *t, uint32_t uid, const uint8_t *id)
{
    struct request_entry **p = &t->bucket[hash(uid, id) & (t->cap - 1)];

    while (*p && ((*p)->row.uid != uid || memcmp((*p)->row.id, id, EVENT_ID_BYTES) != 0))
        p = &(*p)->next;
    return p;
}

const struct fx_request *request_find(const struct request_table *t, uint32_t uid,
                                      const uint8_t id[EVENT_ID_BYTES])
{
    const struct request_entry *e = t->cap ? *find(t, uid, id) : NULL;

    return e ? &e->row : NULL;
}

static int grow(struct request_table *t)
{
    const size_t cap = t->cap ? 2 * t->cap : 256;
    struct request_entry **b = calloc(cap, sizeof(*b));

    if (!b)
        return -ENOMEM;
    for (size_t i = 0; i < t->cap; i++) {
        for (struct request_entry *e = t->bucket[i], *next; e; e = next) {
            struct request_entry **p = &b[hash(e->row.uid, e->row.id) & (cap - 1)];
            next = e->next;
            e->next = *p;
            *p = e;
        }
    }
    free(t->bucket);
    t->bucket = b;
    t->cap = cap;
    return 0;
}

static void drop_entry(struct request_table *t, struct request_entry **p)
{
    struct request_entry *e = *p;

    *p = e->next;
    free(e); /* its text lies behind it */
    t->n--;
}

int request_put(struct request_table *t, const struct fx_request *row)
{
    const size_t bytes = row->text ? strlen(row->text) + 1 : 0;

    if (t->n >= t->cap) {
        const int r = grow(t);
        if (r < 0)
            return r;
    }
    struct request_entry *e = malloc(sizeof(*e) + bytes);
    if (!e)
        return -ENOMEM;
    e->row = *row;
    if (row->text)
        e->row.text = memcpy(e + 1, row->text, bytes);

    struct request_entry **p = find(t, row->uid, row->id);
    if (*p)
        drop_entry(t, p);
    p = &t->bucket[hash(row->uid, row->id) & (t->cap - 1)];
    e->next = *p;
    *p = e;
    t->n++;
    return 0;
}

void request_sweep(struct request_table *t, bool (*drop)(void *arg, const struct fx_request *row),
                   void *arg)
{
    for (size_t i = 0; i < t->cap; i++) {
        struct request_entry **p = &t->bucket[i];
        while (*p) {
            if (drop(arg, &(*p)->row))
                drop_entry(t, p);
            else
                p = &(*p)->next;
        }
    }
}

void request_fini(struct request_table *t)
{
    for (size_t i = 0; i < t->cap; i++)
        while (t->bucket[i])
            drop_entry(t, &t->bucket[i]);
    free(t->bucket);
    memset(t, 0, sizeof(*t));
}
