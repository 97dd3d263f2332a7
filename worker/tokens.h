/* tokens.h - a growing list of token ids. */
#ifndef WORKER_TOKENS_H
#define WORKER_TOKENS_H

#include <stddef.h>
#include <stdint.h>

struct tokens {
    int32_t *ids; /* malloc'ed, grows; starts as {0} */
    size_t n, cap;
};

int tokens_put(struct tokens *t, int32_t id); /* 0, -ENOMEM */
void tokens_free(struct tokens *t);

#endif
