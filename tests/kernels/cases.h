/* cases.h - calls of the larger operations with all their operands, for several
 * tests: against ref, against finite differences, against themselves. */
#ifndef TESTS_KERNELS_CASES_H
#define TESTS_KERNELS_CASES_H

#include "kit.h"

struct linear_case {
    int64_t m, k;
    int n_parts;
    int64_t n[KN_PARTS_MAX];
    int r[KN_PARTS_MAX];
    int n_segs; /* 0: adapter off; more: rows dealt to them with gaps between       */
    bool bias, residual, add_dx, no_dx, y_float, b_zero;
    float dropout;
    enum kn_quant quant;
    bool double_quant, per_use;
    enum kn_dtype load_dtype;
    int64_t row0; /* rows are numbers row0 .. row0 + m of an endless matrix          */
};

struct linear_call {
    struct kn_weight *w;
    struct kn_lora lora[4][KN_PARTS_MAX];
    struct kn_lora_seg segs[4];
    struct kn_mat y, x, residual, dy, dx;
    struct kn_linear_fwd fwd;
    struct kn_linear_bwd bwd;
    int64_t n, s_cols;
};

/* Opens the weight and makes every operand; kit_release frees all but w. */
void linear_make(struct kit *k, const struct linear_case *c, struct linear_call *call);
void linear_weight(struct kit *k, const struct linear_case *c, struct kn_weight **ret);
/* The same with a weight that is there already. */
void linear_operands(struct kit *k, const struct linear_case *c, struct linear_call *call);

enum { CASE_SEQS = 6 };

struct attn_case {
    int n_seqs;
    int32_t lq[CASE_SEQS], lk[CASE_SEQS];
    int heads, kv_heads, head_dim, window;
    int first; /* sequence i holds the rows of number first + i: in any pack the same */
    bool gap;  /* three rows before the first sequence and two behind belong to none */
};

struct attn_call {
    struct kn_mat o, q, k, v, d_o, dq, dk, dv;
    float *lse, *delta;
    struct kn_attn_shape shape;
    int32_t cu_q[CASE_SEQS + 1], cu_k[CASE_SEQS + 1]; /* the host's copies          */
    struct kn_attn_fwd fwd;
    struct kn_attn_bwd bwd;
};

void attn_make(struct kit *k, const struct attn_case *c, struct attn_call *call);

#endif
