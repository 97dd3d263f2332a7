/* spec.h - a job description, checked and complete.
 *
 * Three forms: the job file a person wrote (YAML or JSON); the resolved spec,
 * JSON with every key present and marked user, alias or default, which is what
 * travels, is stored and is written into the run; and this struct, which the
 * worker trains from. Key names are TRL's, transformers' and PEFT's. */
#ifndef PROTO_SPEC_H
#define PROTO_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/limit.h"

enum { SPEC_VERSION = 1 };

enum spec_method { SPEC_SFT, SPEC_DPO };
enum spec_schedule { SPEC_LINEAR, SPEC_COSINE, SPEC_CONSTANT, SPEC_CONSTANT_WITH_WARMUP };
/* AdamW with float32 moments, or with bitsandbytes' 8 bits a moment. */
enum spec_optim { SPEC_ADAMW_TORCH, SPEC_ADAMW_8BIT };
enum spec_quant_type { SPEC_NF4, SPEC_FP4 };
enum spec_loss { SPEC_LOSS_SIGMOID };
enum spec_device_type { SPEC_DEVICE_AUTO, SPEC_DEVICE_GPU, SPEC_DEVICE_CPU };
enum spec_dtype { SPEC_DTYPE_AUTO, SPEC_DTYPE_F32, SPEC_DTYPE_BF16, SPEC_DTYPE_F16 };
enum spec_format {
    SPEC_FORMAT_AUTO,              /* told from the first row's keys                          */
    SPEC_FORMAT_HH_RLHF,           /* chosen/rejected transcripts, "\n\nHuman:" "\n\nAssistant:" */
    SPEC_FORMAT_PKU,               /* PKU-SafeRLHF / BeaverTails rows with a preference       */
    SPEC_FORMAT_PKU_PAIRS,         /* {prompt, response: [preferred, other]}                  */
    SPEC_FORMAT_PREFERENCE,        /* TRL prompt/chosen/rejected, strings or messages         */
    SPEC_FORMAT_IMPLICIT,          /* TRL chosen/rejected, conversational or strings          */
    SPEC_FORMAT_PROMPT_COMPLETION, /* SFT                                              */
    SPEC_FORMAT_TEXT,              /* SFT: {text} or {messages}                               */
};
enum spec_preference { SPEC_PREF_NONE, SPEC_PREF_BETTER, SPEC_PREF_SAFE };
enum spec_template {
    SPEC_TEMPLATE_NONE,    /* text as it is                                            */
    SPEC_TEMPLATE_VICUNA,  /* the paper's                                              */
    SPEC_TEMPLATE_MISTRAL, /* the paper's                                              */
    SPEC_TEMPLATE_MODEL,   /* the model's own chat template, where well known          */
};

struct spec_source {
    char *path; /* absolute */
    enum spec_format format;
    enum spec_preference preference;
    enum spec_template template;
    int64_t samples; /* 0: all usable rows */
};

struct spec {
    char *name;
    enum spec_method method;

    char *model_name_or_path; /* as written                                           */
    char *model_dir;          /* absolute folder it was found in                      */
    char *model_revision;     /* the cache's commit, or ""                            */
    enum spec_dtype dtype;    /* what base weights are rounded to before quantising   */
    bool load_in_4bit;
    enum spec_quant_type bnb_4bit_quant_type;
    bool bnb_4bit_use_double_quant;
    bool bf16;      /* compute type */
    bool bf16_auto; /* bf16 is not decided yet: true on a GPU, false on a CPU; after bf16 */

    int lora_r, lora_alpha;
    double lora_dropout;
    bool use_rslora;
    bool lora_all_linear;                     /* "all-linear"                                */
    char *lora_target_modules[LIMIT_MODULES]; /* else these, exact or suffix           */
    int n_lora_target_modules;

    struct spec_source train[LIMIT_SOURCES];
    int n_train;
    struct spec_source eval[LIMIT_SOURCES];
    int n_eval;
    int64_t eval_split_from_train; /* 0: none; excludes eval[]                        */
    int64_t eval_steps;            /* 0: only at the end, when there is an eval set   */

    enum spec_loss loss_type;
    double beta;
    bool disable_dropout;      /* DPO: true by default, as TRL                        */
    bool completion_only_loss; /* SFT                                                 */

    enum spec_optim optim;
    double learning_rate;
    enum spec_schedule lr_scheduler_type;
    double warmup_ratio;
    int64_t warmup_steps; /* > 0 wins over the ratio                                  */
    double weight_decay, max_grad_norm, adam_beta1, adam_beta2, adam_epsilon;

    int64_t max_steps; /* <= 0: num_train_epochs decides                        */
    double num_train_epochs;
    int64_t train_batch_size; /* examples in one optimizer step over all ranks        */
    int64_t per_device_train_batch_size, gradient_accumulation_steps; /* 0: not given */
    int64_t eval_batch_size;
    int64_t max_length;
    int64_t token_budget; /* tokens of one micro-batch; 0: alignd chooses             */
    uint64_t seed, data_seed;

    int64_t logging_steps, save_steps, save_total_limit; /* limit 0: keep all         */
    bool bitwise; /* true: later attempts must repeat the first one's bits            */

    int devices;
    enum spec_device_type device_type;
    int threads_per_device; /* 0: usable cores / devices                              */
    int64_t priority;
    char *output_dir; /* absolute; may hold {name} and {id} until the job has an id   */
};

/* key=value from --set, applied over the file, parsed as YAML. */
struct spec_set {
    const char *text;
};

/* Everything wrong or worth saying about a job file. */
struct spec_problem {
    int line;        /* in the file, 1-based; 0: not from the file (--set, default) */
    bool warning;    /* a note: the job is still valid                               */
    char text[1200]; /* as much as a struct err, and where */
};
struct spec_problems {
    struct spec_problem *v;
    size_t n;
};

/* Where each key and element stood. path: "train.0.path". */
struct spec_line {
    char *path;
    int line; /* 1-based */
};
struct spec_lines {
    struct spec_line *v;
    size_t n, room;
};

/* For whoever looks further at a job file than it says by itself (model, data, devices). */
struct spec_more {
    struct spec_lines lines; /* under alignd's own names                          */
    struct spec *draft;      /* of a file with problems: what could be read, a default where a
                                value was wrong; "/" for a text that is missing. NULL: not even
                                a list of keys                                               */
    bool values_right;       /* the draft's values are what was meant: other keys were wrong  */
};

struct spec_options {
    const char *file;        /* for messages                                     */
    const char *base_dir;    /* relative paths in the file are relative to this: its folder */
    const char *output_base; /* a relative output_dir is relative to this: where the program
                                ran; NULL: base_dir                                         */
    const struct spec_set *sets;
    size_t n_sets;
    struct spec_more *more; /* NULL: not wanted; to spec_more_fini                         */
};

/* Reads a job file. Returns 0 and *ret_spec (to spec_free) and, as malloc'ed JSON
 * texts, the user's part with absolute paths (*ret_user, may be NULL) and the
 * resolved spec (*ret_resolved, may be NULL); or -EINVAL with every problem at
 * once in *problems (to spec_problems_free). Warnings are left there on success
 * too. Looks at the file system only for the model folder and the cache, and, where
 * something is wrong already, for whether the data files are there. */
int spec_read(const char *text, size_t bytes, const struct spec_options *opts,
              struct spec **ret_spec, char **ret_user, char **ret_resolved,
              struct spec_problems *problems);

/* Parses a resolved spec (hostile input: checked like a file). */
int spec_from_resolved(const char *json, size_t bytes, struct spec **ret_spec, struct err *err);

/* Whether two resolved specs have the same values, wherever these come from: a run of one may
 * be continued by the other. A key that one release has and the one before it had not is its
 * default where it is missing. */
bool spec_same_values(const char *a, const char *b);

/* Replaces {name} and {id} in output_dir. id: "17", or "local" without a daemon. */
int spec_place(struct spec *spec, const char *id, struct err *err);

void spec_free(struct spec *spec); /* NULL is a no-op */
void spec_problems_free(struct spec_problems *p);
/* By line; those of no line last. */
void spec_problems_sort(struct spec_problems *p);

/* The line of `path`, of its nearest enclosing key if it has none, else 0. */
int spec_lines_find(const struct spec_lines *lines, const char *path);
void spec_lines_fini(struct spec_lines *lines);
void spec_more_fini(struct spec_more *more);

#endif
