/* dataset.h - files of preference or instruction rows -> examples to train on.
 *
 * Reading, templating, tokenising, truncating and dropping are done once, the
 * same way on every rank, before any training. Order of examples: sources in
 * spec order, rows in file order; shuffling is the batch's business. */
#ifndef WORKER_DATASET_H
#define WORKER_DATASET_H

#include <stdint.h>

#include "proto/err.h"
#include "proto/spec.h"
#include "worker/tokenizer.h"

/* Why a row was not used. Names are what `show` and dropped.jsonl print. */
enum drop_reason {
    DROP_BAD_JSON,       /* bad_json: not an object, bad UTF-8, duplicate keys       */
    DROP_MISSING_KEY,    /* missing_key                                              */
    DROP_PROMPT_DIFFERS, /* prompt_differs: chosen and rejected have other prompts   */
    DROP_EMPTY_PROMPT,   /* empty_prompt                                             */
    DROP_EMPTY_REPLY,    /* empty_reply                                              */
    DROP_SAME_REPLY,     /* same_reply: chosen equals rejected                       */
    DROP_NO_PREFERENCE,  /* no_preference: the rule (safe) does not choose           */
    DROP_BOUNDARY,       /* boundary: prompt ids are no prefix (numerics.md 13)      */
    DROP_PROMPT_TOO_LONG,/* prompt_too_long: reaches max_length alone                */
    DROP_ROLES,          /* roles: the template cannot render these turns            */
    DROP_REASONS
};
const char *drop_reason_name(enum drop_reason r);

/* One row as it will be trained. Token arrays lie in the data set's arena.
 * Sequence 0 is prompt + reply[0] (chosen, or the completion); DPO has a second,
 * prompt + reply[1] (rejected). EOS and BOS are in the ids already; replies are
 * cut so that prompt + reply <= max_length. */
struct example {
    uint64_t ordinal; /* position in its set: what random numbers are keyed by       */
    const int32_t *prompt;
    const int32_t *reply[2];
    int32_t n_prompt;
    int32_t n_reply[2]; /* [1] == 0 for SFT                                          */
    int32_t source;     /* index into spec->train or spec->eval                      */
    int64_t row;        /* 1-based in its file                                       */
    bool cut[2];        /* reply lost tokens to max_length                           */
    bool prompt_trained;/* SFT on text: every token but the first is a target        */
};

struct dropped_row {
    int32_t source;
    int64_t row;
    enum drop_reason reason;
    bool eval; /* from spec->eval */
};

struct dataset {
    struct example *train, *eval;
    int64_t n_train, n_eval;
    struct dropped_row *dropped;
    int64_t n_dropped;
    int64_t n_rows[LIMIT_SOURCES];   /* rows read per training source                */
    int64_t n_usable[LIMIT_SOURCES]; /* usable rows per training source, before `samples` */
    int64_t n_eval_rows[LIMIT_SOURCES], n_eval_usable[LIMIT_SOURCES]; /* of spec->eval  */
    enum spec_format train_format[LIMIT_SOURCES], eval_format[LIMIT_SOURCES]; /* as told */
    int64_t n_cut;                   /* replies cut, over train and eval             */
    int32_t longest;                 /* tokens of the longest pair (prompt once)     */
    uint8_t digest[32];              /* sha256 of all ids: ranks must agree          */
    void *arena;
};

/* The position counters of Philox "what": worker/rng.h. `samples` and
 * `split_from_train` are seeded draws without replacement (data_seed). An empty
 * result, more than 5 % boundary rows, fewer usable rows than `samples`, or a
 * file that cannot be read is an error that names it. vocab: of the model. */
int dataset_open(const struct spec *spec, const struct tokenizer *tok, int32_t vocab,
                 struct dataset **ret, struct err *err);
void dataset_close(struct dataset *d);

#endif
