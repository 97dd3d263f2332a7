/* ckpt_state.h - state.json of a checkpoint: its text, and back. For ckpt.c and
 * ckpt_read.c alone. */
#ifndef WORKER_CKPT_STATE_H
#define WORKER_CKPT_STATE_H

#include "worker/ckpt.h"
#include "worker/text_out.h"

#define CKPT_STATE_TENSORS "state.safetensors"
#define CKPT_STATE_JSON    "state.json"

/* The last line of the text is the SHA-256 of the lines before it. */
void ckpt_state_print(const struct ckpt_state *s, const uint8_t tensors[32], struct text_out *out);
/* -EBADMSG: not whole, or not by this program. */
int ckpt_state_parse(const char *text, size_t bytes, struct ckpt_state *ret, uint8_t tensors[32]);

struct ckpt_place {
    int64_t step;
    uint32_t attempt;
};

/* Every checkpoint-S of the attempts up to `last`, the highest step first and of one step
 * the latest attempt's; malloc'ed. */
int ckpt_list(const char *output_dir, uint32_t last, struct ckpt_place **ret, size_t *ret_n);

#endif
