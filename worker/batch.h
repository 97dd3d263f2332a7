/* batch.h - packed micro-batches: a flat token buffer, never padded.
 *
 * A pair shares its prompt: [prompt + chosen] is one sequence, [rejected] a second
 * one whose keys and values begin with those of the prompt's rows. The last
 * prompt row predicts two tokens and stands twice in the head's row list.
 * Micro-batches cut one optimizer step; they change speed, never the result. */
#ifndef WORKER_BATCH_H
#define WORKER_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/dataset.h"

struct batch_seq {
    int32_t row0, rows;       /* its own rows in the token buffer                    */
    int32_t prefix0, prefix;  /* rows seen before its own (a shared prompt); 0: none */
};

struct batch {
    int64_t n_tokens;
    int32_t *ids;      /* (n_tokens)                                                 */
    int32_t *pos;      /* (n_tokens) position within prompt + reply, from 0          */
    uint64_t *row_key; /* (n_tokens) ordinal << 32 | half << 31 | pos: dropout's key;
                          half is 0 for prompt and chosen, 1 for rejected            */
    int n_seqs;
    struct batch_seq *seqs;

    int64_t n_head;        /* rows of the head: one per target token                 */
    int32_t *head_row;     /* (n_head) row of the token buffer that predicts          */
    int32_t *head_target;  /* (n_head) the token predicted                            */
    int32_t *head_example; /* (n_head) index into examples                            */
    uint8_t *head_half;    /* (n_head) 0 prompt/chosen, 1 rejected                    */
    int32_t *head_index;   /* (n_head) token number within its reply, from 0          */

    int n_examples;
    const struct example **examples; /* borrowed from the data set                    */
    int32_t *step_index;             /* (n_examples) place in the optimizer step      */
};

/* Packs examples[0..n) in the given order into micro-batches of at most `budget`
 * tokens (an example longer than that gets one of its own). share: lay the
 * prompt down once per pair; off, each half carries its own copy (tests).
 * step_index NULL: 0, 1, ... *ret is an array of *ret_n, to batch_free_all.
 * Returns 0, -EINVAL (budget), -E2BIG (an example of over 2^31 tokens), -ENOMEM. */
int batch_pack(const struct example *const *examples, const int32_t *step_index, int n,
               int64_t budget, bool share, struct batch **ret, int *ret_n);
void batch_free_all(struct batch *b, int n);

/* Tokens one example takes in a micro-batch. */
int64_t batch_example_tokens(const struct example *e, bool share);
/* Target tokens (head rows) of one half of an example; 0 for a half it lacks. */
int64_t batch_example_targets(const struct example *e, int half);

#endif
