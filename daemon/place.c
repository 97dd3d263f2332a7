/* place.c - see place.h. */
#include "daemon/place.h"

#include <string.h>

int place_order(const char *a, const char *b)
{
    const size_t m = strlen(a), n = strlen(b);

    return m != n ? (m < n ? -1 : 1) : strcmp(a, b);
}

int place_before(const struct place_device *a, const struct place_device *b)
{
    if (a->order != b->order)
        return a->order < b->order ? -1 : 1;
    return place_order(a->name, b->name);
}

bool place_is_fenced(const struct place_device *d)
{
    return d->fenced || d->unfit || d->fault;
}

bool place_is_free(const struct place_device *d)
{
    return !d->gone && !d->foreign && !place_is_fenced(d) && !d->drained && d->job == 0 &&
           d->strays == 0;
}

struct place_count place_count(const struct place_device *d, size_t n, int type)
{
    struct place_count c = {0};

    for (size_t i = 0; i < n; i++) {
        if (d[i].type != type || (d[i].gone && !d[i].fault))
            continue;
        c.all++;
        if (d[i].drained)
            c.drained++;
        else if (place_is_fenced(&d[i]))
            c.fenced++;
        else if (d[i].job || d[i].strays)
            c.used++;
        else if (d[i].foreign)
            c.foreign++;
        else
            c.free++;
    }
    return c;
}

bool place_pick(const struct place_device *d, size_t n, int type, uint32_t want, uint16_t *ret)
{
    uint16_t picked[LIMIT_RANKS];
    uint32_t k = 0;
    bool more = false;

    if (want == 0 || want > LIMIT_RANKS)
        return false;
    for (size_t i = 0; i < n; i++) { /* the first `want`, in order */
        uint32_t at = k;
        if (d[i].type != type || !place_is_free(&d[i]))
            continue;
        while (at > 0 && place_before(&d[i], &d[picked[at - 1]]) < 0)
            at--;
        more = k == want;
        if (at == want)
            continue;
        memmove(picked + at + 1, picked + at, (k - at - more) * sizeof(picked[0]));
        picked[at] = (uint16_t)i;
        k += !more;
    }
    if (k < want)
        return false;
    memcpy(ret, picked, want * sizeof(picked[0]));
    return true;
}

enum job_reason place_reason(const struct place_count *c, uint32_t want)
{
    uint32_t have = c->free;

    if (have >= want)
        return JOB_REASON_NONE;
    if ((have += c->used) >= want)
        return JOB_REASON_RESOURCES;
    if ((have += c->foreign) >= want)
        return JOB_REASON_DEVICES_FOREIGN;
    if ((have += c->fenced) >= want)
        return JOB_REASON_DEVICES_FENCED;
    if ((have += c->drained) >= want)
        return JOB_REASON_DEVICES_DRAINED;
    return JOB_REASON_DEVICES_MISSING;
}
