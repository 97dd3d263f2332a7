/* tokens.c - a growing list of token ids */
#include "worker/tokens.h"

#include <errno.h>
#include <stdlib.h>

int tokens_put(struct tokens *out, int32_t id)
{
    if (out->n == out->cap) {
        const size_t cap = out->cap ? 2 * out->cap : 256;
        int32_t *p = realloc(out->ids, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        out->ids = p;
        out->cap = cap;
    }
    out->ids[out->n++] = id;
    return 0;
}

void tokens_free(struct tokens *t)
{
    free(t->ids);
    *t = (struct tokens){0};
}
