/* template_known.h - chat templates that alignd renders itself, told by the SHA-256
 * of their Jinja source: what a source says is never interpreted. */
#ifndef WORKER_TEMPLATE_KNOWN_H
#define WORKER_TEMPLATE_KNOWN_H

#include <stdbool.h>

#include "worker/template.h"

enum template_family {
    FAMILY_LLAMA2,  /* [INST] with <<SYS>>, BOS before every user turn        */
    FAMILY_MISTRAL, /* [INST] of Mistral-Instruct v0.1 and v0.2                */
    FAMILY_LLAMA3,  /* <|start_header_id|>                                     */
    FAMILY_CHATML,  /* <|im_start|>                                            */
    FAMILY_ZEPHYR,  /* <|user|>                                                */
};

struct template_known {
    const char *name;   /* a model that has it            */
    const char *sha256; /* of the source, see digest_of() */
    enum template_family family;
    const char *system;    /* CHATML: a missing system turn, NULL: none */
    const char *after_eos; /* MISTRAL: what follows EOS    */
    bool bos;              /* the source writes BOS        */
};

const struct template_known *template_known_find(const char *source); /* NULL: unknown */
const struct template_known *template_known_named(const char *name);  /* NULL: unknown */

/* The part of template_render for a known template. */
int template_known_render(const struct template *t, const struct row *row, int n_replies,
                          struct rendered *out, enum drop_reason *reason);

#endif
