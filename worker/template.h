/* template.h - a row's turns as the text a model sees.
 *
 *   none     The row's own text: prompt, then reply, nothing added. HH-RLHF prompts
 *            end in "\n\nAssistant:" and replies begin with their space.
 *   vicuna   The paper's, FastChat's vicuna_v1.1 (E: the tokenizer's EOS):
 *              SYSTEM USER: q1 ASSISTANT: a1EUSER: q2 ASSISTANT: a2E
 *            with SYSTEM = "A chat between a curious user and an artificial
 *            intelligence assistant. The assistant gives helpful, detailed, and polite
 *            answers to the user's questions."; a system turn of the row replaces it.
 *   mistral  The paper's: [INST] q1 [/INST] a1 E[INST] q2 [/INST] a2 E
 *            with a space on both sides of a reply; a system turn goes before q1, with
 *            an empty line between.
 *   model    The model's own chat template, where its Jinja source is one of those
 *            known (template_known.c).
 *
 * Everywhere: BOS stands once, in front, when the tokenizer adds one. A prompt ends
 * without a trailing space: the space belongs to the reply. vicuna and mistral take
 * the texts of turns without the white space at their ends. Turns must be user,
 * assistant, user, ..., user (one system turn may stand first); a conversation that
 * is not so is dropped as `roles`, except that HH-RLHF's repeated speakers were
 * joined by rows.c. */
#ifndef WORKER_TEMPLATE_H
#define WORKER_TEMPLATE_H

#include <stdbool.h>

#include "proto/err.h"
#include "proto/spec.h"
#include "worker/rows.h"
#include "worker/text.h"
#include "worker/tokenizer.h"

struct template_known; /* template_known.h */

struct template
{
    enum spec_template kind;
    const char *eos;                    /* text of the tokenizer's EOS                   */
    const char *bos;                    /* of its BOS, NULL: none                        */
    const struct template_known *known; /* kind == SPEC_TEMPLATE_MODEL                   */
    bool writes_bos;                    /* the prompt's text begins with BOS             */
    bool writes_end;                    /* replies end as the template ends them: no EOS */
};

struct rendered {
    struct text prompt, reply[2];
    int n_replies;
};

/* t borrows from tok. -EINVAL: no EOS, or a chat template that is not known: the
 * sentence has its first line and a command that renders rows for `none`. */
int template_init(struct template *t, enum spec_template kind, const struct tokenizer *tok,
                  struct err *err);

/* *out starts as {0} and is replaced. 0; 1: dropped, *reason; -EINVAL: this template
 * can render no row of this kind (messages with none); -ENOMEM. */
int template_render(const struct template *t, const struct row *row, int n_replies,
                    struct rendered *out, enum drop_reason *reason, struct err *err);
void rendered_free(struct rendered *r);

#endif
