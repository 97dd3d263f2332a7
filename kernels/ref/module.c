/* module.c - what a program that opens the reference module sees: one table. */
#include "ref.h"

__attribute__((visibility("default"))) const struct kn_ops *kn_table(int abi);

static const struct kn_ops ref_ops = {
    .name = "ref",
    .devices = ref_devices,
    .open = ref_open,
    .close = ref_close,
    .info = ref_info,
    .alloc = ref_alloc,
    .free = ref_free,
    .copy = ref_copy,
    .zero = ref_zero,
    .sync = ref_sync,
    .poll = ref_poll,
    .stream = ref_stream,
    .weight_open = ref_weight_open,
    .weight_close = ref_weight_close,
    .weight_bytes = ref_weight_bytes,
    .weight_soon = ref_weight_soon,
    .scratch_bytes = ref_scratch_bytes,
    .lora_room = ref_lora_room,
    .quantize4 = ref_quantize4,
    .dequantize4 = ref_dequantize4,
    .linear_fwd = ref_linear_fwd,
    .linear_bwd = ref_linear_bwd,
    .embed = ref_embed,
    .rmsnorm_fwd = ref_rmsnorm_fwd,
    .rmsnorm_bwd = ref_rmsnorm_bwd,
    .rope = ref_rope,
    .attn_fwd = ref_attn_fwd,
    .attn_bwd = ref_attn_bwd,
    .swiglu_fwd = ref_swiglu_fwd,
    .swiglu_bwd = ref_swiglu_bwd,
    .gather = ref_gather,
    .logprob = ref_logprob,
    .grad_sweep = ref_grad_sweep,
    .adamw = ref_adamw,
    .adamw8 = ref_adamw8,
};

const struct kn_ops *kn_table(int abi)
{
    return abi == KN_ABI ? &ref_ops : NULL;
}
