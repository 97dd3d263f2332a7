/* rows.h - one row of a data file -> a prompt and its replies, by format.
 *
 * Formats are spec_format's (proto/spec.h). Nothing is guessed: a row that does not
 * say where its prompt ends is dropped or refused, never cut at the longest common
 * prefix of chosen and rejected. */
#ifndef WORKER_ROWS_H
#define WORKER_ROWS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/spec.h"
#include "worker/dataset.h"
#include "worker/text.h"

enum turn_role { TURN_SYSTEM, TURN_USER, TURN_ASSISTANT };

struct slice {
    const char *s; /* NULL: not there */
    size_t n;
};

struct turn {
    enum turn_role role;
    struct slice text;
};

enum row_kind {
    ROW_PAIR,       /* prompt, chosen, rejected                          */
    ROW_COMPLETION, /* prompt, one reply (SFT)                           */
    ROW_TEXT,       /* only a text: reply[0] (SFT)                       */
    ROW_MESSAGES,   /* a conversation: prompt, last reply (SFT)          */
};

/* Starts as {0}; may be used for row after row. Slices lie in `root` and `own`
 * and are valid until the next rows_parse or rows_free. */
struct row {
    enum row_kind kind;
    struct turn *turns; /* the prompt's turns, in order                         */
    size_t n_turns, cap_turns;
    bool odd_turns;      /* text before the first turn: no template can render it */
    struct slice prompt; /* as it stands, for template none; NULL: only messages  */
    struct slice reply[2];
    bool raw_replies; /* replies as they stand continue `prompt`                  */
    json_t *root;
    struct text own;
};

/* What a file's first row says its format is: 0; 1: it is no JSON object, ask the next
 * one; -EINVAL lists the keys it has. */
int rows_detect(const char *json, size_t n, enum spec_method method, enum spec_format *ret,
                struct err *err);
/* The name a spec uses ("hh-rlhf"). */
const char *rows_format_name(enum spec_format f);

struct rows_rule {
    enum spec_format format; /* not AUTO */
    enum spec_preference preference;
    enum spec_method method; /* SFT needs chosen only */
};

/* Returns 0; 1: the row is not used, *ret_reason says why; -EINVAL: the whole source
 * is refused (err); -ENOMEM. */
int rows_parse(const struct rows_rule *rule, const char *json, size_t n, struct row *row,
               enum drop_reason *ret_reason, struct err *err);
void rows_free(struct row *row);
/* The index of the first user turn where turns are user, assistant, user, ..., user
 * after at most one system turn; -1: they are not so. */
int rows_first_user(const struct row *row);

struct slice slice_trim(struct slice s); /* without Unicode white space at both ends */

#endif
