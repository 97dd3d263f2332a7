/* core_live.c - the gangs that hold devices: found, made, freed. */
#include "daemon/core_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct core_live *core_gang_find(const struct core *c, uint64_t job, uint32_t attempt)
{
    for (size_t i = 0; i < c->n_live; i++)
        if (c->live[i]->row.job == job && c->live[i]->row.attempt == attempt)
            return c->live[i];
    return NULL;
}

/* Of node n's newest attempt; n == NULL: a stray. */
struct core_live *core_gang_new(struct core *c, struct core_node *n)
{
    struct core_live *l = calloc(1, sizeof(*l));

    if (l && c->n_live == c->live_cap) {
        const size_t cap = c->live_cap ? 2 * c->live_cap : 16;
        struct core_live **v = realloc(c->live, cap * sizeof(*v));
        if (v) {
            c->live = v;
            c->live_cap = cap;
        }
    }
    if (!l || c->n_live == c->live_cap) {
        c->failed = true;
        free(l);
        return NULL;
    }
    c->live[c->n_live++] = l;
    l->node = n;
    l->row.resume_step = -1;
    l->row.first_rank = -1;
    if (n) {
        n->live = l;
        l->row.job = n->job.id;
        l->row.attempt = n->job.attempt;
    }
    return l;
}

void core_gang_forget(struct core_live *l)
{
    while (l->values) {
        struct core_value *next = l->values->next;
        free(l->values);
        l->values = next;
    }
    l->n_values = l->value_bytes = 0;
}

/* Its devices are free from here on, and none of its processes fences one any more. */
void core_gang_free(struct core *c, struct core_live *l, struct effects *fx)
{
    for (uint32_t i = 0; i < l->n_devices; i++) {
        struct place_device *d = &c->device[l->device[i]];
        if (!l->node)
            d->strays--;
        else if (d->job == l->row.job)
            d->job = 0;
        if (d->fenced && !d->job && !d->strays && fx) {
            d->fenced = false;
            core_write_device(c, d, fx);
        }
    }
    for (size_t i = 0; i < c->n_live; i++)
        if (c->live[i] == l)
            c->live[i] = c->live[--c->n_live];
    if (l->node)
        l->node->live = NULL;
    core_gang_forget(l);
    free((char *)l->exit.error);
    free((char *)l->exit.adapter);
    free(l);
}

int core_gang_put(struct core_live *l, const struct fx_rdv *row)
{
    const size_t key = strlen(row->key) + 1;
    struct core_value *v = malloc(sizeof(*v) + row->bytes + key);

    if (!v)
        return -ENOMEM;
    v->bytes = row->bytes;
    if (row->bytes)
        memcpy(v->value, row->value, row->bytes);
    v->key = memcpy(v->value + row->bytes, row->key, key);
    v->next = l->values;
    l->values = v;
    l->n_values++;
    l->value_bytes += row->bytes;
    return 0;
}
