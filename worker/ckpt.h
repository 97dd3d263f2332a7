/* ckpt.h - checkpoints: what a run is after some step, whole or not there.
 *
 * attempts/N/checkpoint-S/ holds the PEFT adapter, state.safetensors (parameters and
 * moments: the parts of moments.h), state.json (everything else, with checksums),
 * trainer_state.json and the tokenizer's files. It is written under a hidden name, synced,
 * then renamed; output_dir/checkpoint-S is a link to it, replaced atomically. A reader takes
 * nothing whose checksums do not agree. */
#ifndef WORKER_CKPT_H
#define WORKER_CKPT_H

#include <stdint.h>

#include "proto/err.h"
#include "proto/spec.h"
#include "worker/lora.h"
#include "worker/metrics.h"
#include "worker/model.h"
#include "worker/moments.h"
#include "worker/rundir.h"

/* What a resume needs besides parameters and moments. The first attempt fixes the
 * plan fields (numerics.md 6). */
struct ckpt_state {
    int64_t global_step; /* updates done                                             */
    int64_t num_tokens;
    double loss_sum; /* of the steps' losses                                         */
    struct metrics_window window;
    struct moments_shape adapter; /* no optim in the file, as of release 0.1: adamw_torch */
    bool names_optim;             /* it is there: the specs' digests are of one form       */
    uint32_t attempt;
    /* the plan */
    int64_t token_budget;
    uint32_t ranks;
    int threads;
    char backend[16], isa[32];
    uint8_t spec_digest[32], data_digest[32], model_digest[32];
};

struct ckpt_save {
    const struct rundir *dir;
    const struct ckpt_state *state;
    const void *image; /* parameters and moments, as moments_move                     */
    const struct adapter *adapter;
    const struct model *model;
    const struct spec *spec;
    const char *trainer_state; /* text of the file                                   */
    size_t trainer_state_bytes;
    int64_t keep; /* the run's newest, of all attempts; 0: all                       */
};

/* Once per step and attempt. Returns 0; -ENOSPC, -EDQUOT and other I/O errors: the
 * checkpoints of before are untouched; -ESTALE: a later attempt has begun. */
int ckpt_save(const struct ckpt_save *s, struct err *err);

/* Reads the checkpoint in folder `dir`. image: malloc'ed, of state->adapter. -EBADMSG: the
 * files do not agree with their checksums; err says which. */
int ckpt_load(const char *dir, struct ckpt_state *state, void **ret_image, struct err *err);

/* The newest valid checkpoint of the attempts before `attempt`. Returns 1, state, image
 * and its folder name relative to output_dir; 0: there is none; -errno. note: the last
 * one passed over and why, or "". */
int ckpt_find(const char *output_dir, uint32_t attempt, struct ckpt_state *state, void **ret_image,
              char name[64], struct err *note, struct err *err);

/* Whether a run may go on from here as the spec asks (spec->bitwise: to the bit). */
int ckpt_fits(const struct ckpt_state *found, const struct ckpt_state *now, bool bitwise,
              struct err *err);

#endif
