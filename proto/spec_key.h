/* spec_key.h - the table of a job file's keys: one row a key, nothing elsewhere.
 *
 * docs/JOB_FILE.md is held to these tables by a test. */
#ifndef PROTO_SPEC_KEY_H
#define PROTO_SPEC_KEY_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/spec.h"

enum spec_kind {
    SPEC_KIND_BOOL,
    SPEC_KIND_BOOL_AUTO, /* two bools: the value, and whether it is "auto" instead */
    SPEC_KIND_INT,       /* int in struct spec                       */
    SPEC_KIND_INT64,
    SPEC_KIND_UINT64, /* 0 .. 2^63-1: what JSON integers hold     */
    SPEC_KIND_REAL,
    SPEC_KIND_WORD, /* one of words; an enum in struct spec     */
    SPEC_KIND_STRING,
    SPEC_KIND_MODULES, /* "all-linear" or a list of names          */
    SPEC_KIND_SOURCES, /* train:                                   */
    SPEC_KIND_EVAL,    /* null, {split_from_train: n} or sources   */
};

enum { SPEC_FOR_SFT = 1 << SPEC_SFT, SPEC_FOR_DPO = 1 << SPEC_DPO, SPEC_FOR_ALL = 3 };

struct spec_word {
    const char *text; /* NULL ends a list */
    int value;
};

struct spec_key {
    const char *name;
    enum spec_kind kind;
    unsigned methods;        /* SPEC_FOR_* it is a key of                          */
    size_t offset;           /* in struct spec                                     */
    const char *fallback[2]; /* by method, as JSON; NULL: required, or worked out  */
    double lo, hi;           /* numbers: the closed range                          */
    bool above;              /* lo itself is not allowed                           */
    bool derived;            /* in the resolved spec only: not for a person to set */
    bool later;              /* came after release 0.1: its fallback where a resolved spec
                                has it not                                         */
    const struct spec_word *words;
};

/* A key alignd knows and does not act on. */
struct spec_other {
    const char *name;
    const char *neutral; /* JSON list of the values that change nothing; NULL: any value */
    const char *reason;  /* neutral == NULL: why it has no effect; else what to do       */
};

/* Another program's name for a key (reference/peers-training.md section 3). */
enum spec_turn {
    SPEC_TURN_SAME,  /* same meaning, same values                        */
    SPEC_TURN_NOT,   /* a boolean the other way round                    */
    SPEC_TURN_TRUE,  /* `from` (JSON) means `to` (JSON); others refused   */
    SPEC_TURN_SPLIT, /* a count of rows held out of train                */
    SPEC_TURN_WORDS, /* a comma-separated text or list of module names   */
};
struct spec_alias {
    const char *name, *key;
    enum spec_turn turn;
    const char *from, *to; /* SPEC_TURN_TRUE */
    const char *otherwise; /* what to do about another value */
};

extern const struct spec_key spec_keys[];
extern const size_t spec_n_keys;
extern const struct spec_other spec_others[];
extern const size_t spec_n_others;
extern const struct spec_alias spec_aliases[];
extern const size_t spec_n_aliases;

/* Word lists also needed for train: and eval: entries. */
extern const struct spec_word spec_format_words[];
extern const struct spec_word spec_preference_words[];
extern const struct spec_word spec_template_words[];
extern const struct spec_word spec_method_words[];
extern const struct spec_word spec_optim_words[]; /* the checkpoint's names too */

const struct spec_key *spec_key_find(const char *name);
const struct spec_other *spec_other_find(const char *name);
const char *spec_word_text(const struct spec_word *words, int value);

#endif
