/* vec_table.c - what one instruction set's build offers. */
#include "vec.h"

const struct cpu_vec VNAME(cpu_vec) = {
    .mm = VNAME(vec_mm),
    .tile = VNAME(vec_tile),
    .widen = VNAME(vec_widen),
    .rmsnorm_fwd = VNAME(vec_rmsnorm_fwd),
    .rmsnorm_bwd = VNAME(vec_rmsnorm_bwd),
    .rope = VNAME(vec_rope),
    .swiglu_fwd = VNAME(vec_swiglu_fwd),
    .swiglu_bwd = VNAME(vec_swiglu_bwd),
    .gather = VNAME(vec_gather),
    .logprob = VNAME(vec_logprob),
    .sweep = VNAME(vec_sweep),
    .adamw = VNAME(vec_adamw),
    .adamw8 = VNAME(vec_adamw8),
    .attn_fwd_bytes = VNAME(vec_attn_fwd_bytes),
    .attn_fwd = VNAME(vec_attn_fwd),
    .attn_bwd_bytes = VNAME(vec_attn_bwd_bytes),
    .attn_bwd = VNAME(vec_attn_bwd),
};
