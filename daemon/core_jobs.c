/* core_jobs.c - the jobs in memory: by id, by rev, and by the output_dir they own. */
#include "daemon/core_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct core_node *core_find(const struct core *c, uint64_t id)
{
    size_t lo = 0, hi = c->jobs.n;

    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (c->jobs.v[mid]->job.id < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < c->jobs.n && c->jobs.v[lo]->job.id == id ? c->jobs.v[lo] : NULL;
}

int core_append(struct core *c, struct core_nodes *l, struct core_node *n)
{
    if (l->n == l->cap) {
        const size_t cap = l->cap ? 2 * l->cap : 16;
        struct core_node **v = realloc(l->v, cap * sizeof(*v));
        if (!v) {
            c->failed = true;
            return -ENOMEM;
        }
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = n;
    return 0;
}

/* The job's row has changed: it is written once, at the end of the step. */
void core_touch(struct core *c, struct core_node *n)
{
    if (!n->dirty && core_append(c, &c->dirty, n) == 0)
        n->dirty = true;
}

void core_unlink(struct core *c, struct core_node *n)
{
    if (n->newer)
        n->newer->older = n->older;
    else if (c->newest == n)
        c->newest = n->older;
    if (n->older)
        n->older->newer = n->newer;
    else if (c->oldest == n)
        c->oldest = n->newer;
    n->newer = n->older = NULL;
}

/* Puts it where its rev belongs: at the top in service, anywhere while restoring, at or
 * near the end when it comes back from the store. */
void core_newest_is(struct core *c, struct core_node *n)
{
    core_unlink(c, n);
    struct core_node *below = c->newest, *above = NULL;
    if (c->oldest && c->oldest->job.rev > n->job.rev) {
        above = c->oldest;
        below = NULL;
    }
    while (below && below->job.rev > n->job.rev) {
        above = below;
        below = below->older;
    }
    n->older = below;
    n->newer = above;
    if (below)
        below->newer = n;
    else
        c->oldest = n;
    if (above)
        above->older = n;
    else
        c->newest = n;
}

struct core_past *core_past(const struct core_node *n, uint32_t attempt)
{
    return attempt >= 1 && attempt <= n->job.attempt && attempt <= n->past_cap
               ? &n->past[attempt - 1]
               : NULL;
}

int core_past_grow(struct core_node *n)
{
    if (n->job.attempt <= n->past_cap)
        return 0;
    const uint32_t cap = n->job.attempt + n->job.attempt / 2;
    struct core_past *p = realloc(n->past, cap * sizeof(*p));
    if (!p)
        return -ENOMEM;
    for (uint32_t i = n->past_cap; i < cap; i++)
        p[i] = (struct core_past){.resume_step = -1};
    n->past = p;
    n->past_cap = cap;
    return 0;
}

void core_set_text(struct core *c, char **slot, const char *s)
{
    char *copy = s && *s ? strdup(s) : NULL;

    if (s && *s && !copy)
        c->failed = true;
    free(*slot);
    *slot = copy;
}

void core_node_free(struct core_node *n)
{
    free(n->past);
    free(n->error);
    free(n->adapter);
    free(n);
}

/* Adds it to core.jobs, which stays in order: nearly always at the end. */
static int add_job(struct core *c, struct core_node *n)
{
    const int r = core_append(c, &c->jobs, n);
    size_t i = c->jobs.n;

    if (r < 0)
        return r;
    while (--i > 0 && c->jobs.v[i - 1]->job.id > n->job.id)
        ;
    memmove(&c->jobs.v[i + 1], &c->jobs.v[i], (c->jobs.n - 1 - i) * sizeof(*c->jobs.v));
    c->jobs.v[i] = n;
    return 0;
}

struct core_node *core_node_new(struct core *c, const struct job *row)
{
    const size_t a = strlen(row->name) + 1, b = strlen(row->method) + 1,
                 d = strlen(row->output_dir) + 1;
    struct core_node *n = calloc(1, sizeof(*n) + a + b + d);

    if (!n) {
        c->failed = true;
        return NULL;
    }
    n->job = *row;
    n->job.name = memcpy(n->text, row->name, a);
    n->job.method = memcpy(n->text + a, row->method, b);
    n->job.output_dir = memcpy(n->text + a + b, row->output_dir, d);
    core_set_text(c, &n->error, row->error);
    core_set_text(c, &n->adapter, row->adapter);
    n->job.error = n->error;
    n->job.adapter = n->adapter;
    /* After a crash the age may be some minutes behind. */
    if (!job_is_over(n->job.state))
        n->job.ended_s = -1;
    else if (n->job.ended_s < 0 || n->job.ended_s > c->meta.age_s)
        n->job.ended_s = c->meta.age_s;
    if (core_past_grow(n) < 0 || add_job(c, n) < 0) {
        c->failed = true;
        core_node_free(n);
        return NULL;
    }
    return n;
}

/* ---- who owns an output_dir --------------------------------------------- */

static uint64_t hash(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h ^ h >> 29;
}

struct core_node *core_owner(const struct core *c, const char *output_dir)
{
    struct core_node *n = c->owners_cap ? c->owners[hash(output_dir) & (c->owners_cap - 1)] : NULL;

    while (n && strcmp(n->job.output_dir, output_dir) != 0)
        n = n->dir_next;
    return n;
}

static void owners_grow(struct core *c)
{
    const size_t cap = c->owners_cap ? 2 * c->owners_cap : 256;
    struct core_node **v = calloc(cap, sizeof(*v));

    if (!v) {
        c->failed = true;
        return;
    }
    for (size_t i = 0; i < c->owners_cap; i++) {
        for (struct core_node *n = c->owners[i], *next; n; n = next) {
            struct core_node **p = &v[hash(n->job.output_dir) & (cap - 1)];
            next = n->dir_next;
            n->dir_next = *p;
            *p = n;
        }
    }
    free(c->owners);
    c->owners = v;
    c->owners_cap = cap;
}

void core_claim(struct core *c, struct core_node *n)
{
    c->unfinished++;
    if (c->n_owners >= c->owners_cap)
        owners_grow(c);
    if (c->failed)
        return;
    struct core_node **p = &c->owners[hash(n->job.output_dir) & (c->owners_cap - 1)];
    n->dir_next = *p;
    *p = n;
    c->n_owners++;
}

void core_unclaim(struct core *c, struct core_node *n)
{
    if (!c->owners_cap)
        return;
    struct core_node **p = &c->owners[hash(n->job.output_dir) & (c->owners_cap - 1)];
    while (*p && *p != n)
        p = &(*p)->dir_next;
    if (!*p)
        return;
    *p = n->dir_next;
    n->dir_next = NULL;
    c->n_owners--;
    c->unfinished--;
}
