/* spec_key.c - see spec_key.h.
 *
 * Defaults are those of TRL 1.16 (DPOConfig, SFTConfig, ModelConfig); the
 * exceptions and their reasons stand in docs/JOB_FILE.md. */
#include "proto/spec_key.h"

#include <string.h>

const struct spec_word spec_method_words[] = {{"sft", SPEC_SFT}, {"dpo", SPEC_DPO}, {NULL, 0}};
const struct spec_word spec_format_words[] = {{"auto", SPEC_FORMAT_AUTO},
                                              {"hh-rlhf", SPEC_FORMAT_HH_RLHF},
                                              {"pku", SPEC_FORMAT_PKU},
                                              {"pku-pairs", SPEC_FORMAT_PKU_PAIRS},
                                              {"preference", SPEC_FORMAT_PREFERENCE},
                                              {"implicit", SPEC_FORMAT_IMPLICIT},
                                              {"prompt-completion", SPEC_FORMAT_PROMPT_COMPLETION},
                                              {"text", SPEC_FORMAT_TEXT},
                                              {NULL, 0}};
const struct spec_word spec_preference_words[] = {
    {"none", SPEC_PREF_NONE}, {"better", SPEC_PREF_BETTER}, {"safe", SPEC_PREF_SAFE}, {NULL, 0}};
const struct spec_word spec_template_words[] = {{"none", SPEC_TEMPLATE_NONE},
                                                {"vicuna", SPEC_TEMPLATE_VICUNA},
                                                {"mistral", SPEC_TEMPLATE_MISTRAL},
                                                {"model", SPEC_TEMPLATE_MODEL},
                                                {NULL, 0}};
static const struct spec_word dtype_words[] = {{"auto", SPEC_DTYPE_AUTO},
                                               {"float32", SPEC_DTYPE_F32},
                                               {"bfloat16", SPEC_DTYPE_BF16},
                                               {"float16", SPEC_DTYPE_F16},
                                               {NULL, 0}};
static const struct spec_word quant_words[] = {{"nf4", SPEC_NF4}, {"fp4", SPEC_FP4}, {NULL, 0}};
static const struct spec_word loss_words[] = {{"sigmoid", SPEC_LOSS_SIGMOID}, {NULL, 0}};
/* transformers' names; the first of a value is the one that resolved specs have. Paged
 * optimizers are the same numbers in other memory. */
const struct spec_word spec_optim_words[] = {
    {"adamw_torch", SPEC_ADAMW_TORCH},       {"adamw_8bit", SPEC_ADAMW_8BIT},
    {"adamw_torch_fused", SPEC_ADAMW_TORCH}, {"adamw_bnb_8bit", SPEC_ADAMW_8BIT},
    {"paged_adamw", SPEC_ADAMW_TORCH},       {"paged_adamw_32bit", SPEC_ADAMW_TORCH},
    {"paged_adamw_8bit", SPEC_ADAMW_8BIT},   {NULL, 0}};
static const struct spec_word schedule_words[] = {
    {"linear", SPEC_LINEAR},
    {"cosine", SPEC_COSINE},
    {"constant", SPEC_CONSTANT},
    {"constant_with_warmup", SPEC_CONSTANT_WITH_WARMUP},
    {NULL, 0}};
static const struct spec_word device_words[] = {
    {"auto", SPEC_DEVICE_AUTO}, {"gpu", SPEC_DEVICE_GPU}, {"cpu", SPEC_DEVICE_CPU}, {NULL, 0}};

#define AT(field) offsetof(struct spec, field)
#define BOTH(text) \
    {              \
        text, text \
    }
#define ALL SPEC_FOR_ALL
#define BIG 1e12 /* counts: far above any run, far below what double holds exactly */

const struct spec_key spec_keys[] = {
    {"name", SPEC_KIND_STRING, ALL, AT(name)},
    {"method", SPEC_KIND_WORD, ALL, AT(method), .words = spec_method_words},
    {"model_name_or_path", SPEC_KIND_STRING, ALL, AT(model_name_or_path)},
    {"model_dir", SPEC_KIND_STRING, ALL, AT(model_dir), .derived = true},
    {"model_revision", SPEC_KIND_STRING, ALL, AT(model_revision), BOTH("\"main\"")},
    {"dtype", SPEC_KIND_WORD, ALL, AT(dtype), BOTH("\"float32\""), .words = dtype_words},
    {"load_in_4bit", SPEC_KIND_BOOL, ALL, AT(load_in_4bit), BOTH("false")},
    {"bnb_4bit_quant_type", SPEC_KIND_WORD, ALL, AT(bnb_4bit_quant_type), BOTH("\"nf4\""),
     .words = quant_words},
    {"bnb_4bit_use_double_quant", SPEC_KIND_BOOL, ALL, AT(bnb_4bit_use_double_quant),
     BOTH("false")},
    {"bf16", SPEC_KIND_BOOL_AUTO, ALL, AT(bf16)},

    {"lora_r", SPEC_KIND_INT, ALL, AT(lora_r), BOTH("16"), 1, 4096},
    {"lora_alpha", SPEC_KIND_INT, ALL, AT(lora_alpha), BOTH("32"), 1, 1 << 20},
    {"lora_dropout", SPEC_KIND_REAL, ALL, AT(lora_dropout), BOTH("0.05"), 0, 0.99},
    {"use_rslora", SPEC_KIND_BOOL, ALL, AT(use_rslora), BOTH("false")},
    {"lora_target_modules", SPEC_KIND_MODULES, ALL, AT(lora_target_modules),
     BOTH("\"all-linear\"")},

    {"train", SPEC_KIND_SOURCES, ALL, AT(train)},
    {"eval", SPEC_KIND_EVAL, ALL, AT(eval), BOTH("null")},
    {"eval_steps", SPEC_KIND_INT64, ALL, AT(eval_steps), BOTH("0"), 0, BIG},

    {"loss_type",
     SPEC_KIND_WORD,
     SPEC_FOR_DPO,
     AT(loss_type),
     {NULL, "\"sigmoid\""},
     .words = loss_words},
    {"beta", SPEC_KIND_REAL, SPEC_FOR_DPO, AT(beta), {NULL, "0.1"}, 0, 1000, .above = true},
    {"disable_dropout", SPEC_KIND_BOOL, SPEC_FOR_DPO, AT(disable_dropout), {NULL, "true"}},
    {"completion_only_loss",
     SPEC_KIND_BOOL,
     SPEC_FOR_SFT,
     AT(completion_only_loss),
     {"true", NULL}},

    {"optim", SPEC_KIND_WORD, ALL, AT(optim), BOTH("\"adamw_torch\""), .later = true,
     .words = spec_optim_words},
    {"learning_rate", SPEC_KIND_REAL, ALL, AT(learning_rate), {"2e-05", "5e-06"}, 0, 100},
    {"lr_scheduler_type", SPEC_KIND_WORD, ALL, AT(lr_scheduler_type), BOTH("\"linear\""),
     .words = schedule_words},
    {"warmup_ratio", SPEC_KIND_REAL, ALL, AT(warmup_ratio), BOTH("0.0"), 0, 1},
    {"warmup_steps", SPEC_KIND_INT64, ALL, AT(warmup_steps), BOTH("0"), 0, BIG},
    {"weight_decay", SPEC_KIND_REAL, ALL, AT(weight_decay), BOTH("0.0"), 0, 100},
    {"max_grad_norm", SPEC_KIND_REAL, ALL, AT(max_grad_norm), BOTH("1.0"), 0, 1e30},
    {"adam_beta1", SPEC_KIND_REAL, ALL, AT(adam_beta1), BOTH("0.9"), 0, 0.9999999},
    {"adam_beta2", SPEC_KIND_REAL, ALL, AT(adam_beta2), BOTH("0.999"), 0, 0.9999999},
    {"adam_epsilon", SPEC_KIND_REAL, ALL, AT(adam_epsilon), BOTH("1e-08"), 0, 1, .above = true},

    {"max_steps", SPEC_KIND_INT64, ALL, AT(max_steps), BOTH("-1"), -1, BIG},
    {"num_train_epochs", SPEC_KIND_REAL, ALL, AT(num_train_epochs), BOTH("3.0"), 0, 1e6,
     .above = true},
    {"train_batch_size", SPEC_KIND_INT64, ALL, AT(train_batch_size), .lo = 1, .hi = 1 << 20},
    {"per_device_train_batch_size", SPEC_KIND_INT64, ALL, AT(per_device_train_batch_size),
     BOTH("0"), 0, 1 << 20},
    {"gradient_accumulation_steps", SPEC_KIND_INT64, ALL, AT(gradient_accumulation_steps),
     BOTH("0"), 0, 1 << 20},
    {"per_device_eval_batch_size", SPEC_KIND_INT64, ALL, AT(eval_batch_size), BOTH("8"), 1,
     1 << 20},
    {"max_length", SPEC_KIND_INT64, ALL, AT(max_length), BOTH("1024"), 8, 1 << 20},
    {"token_budget", SPEC_KIND_INT64, ALL, AT(token_budget), BOTH("0"), 0, 1 << 26},
    {"seed", SPEC_KIND_UINT64, ALL, AT(seed), BOTH("42"), 0, 9223372036854775807.0},
    {"data_seed", SPEC_KIND_UINT64, ALL, AT(data_seed), .lo = 0, .hi = 9223372036854775807.0},

    {"logging_steps", SPEC_KIND_INT64, ALL, AT(logging_steps), BOTH("1"), 1, BIG},
    {"save_steps", SPEC_KIND_INT64, ALL, AT(save_steps), BOTH("500"), 1, BIG},
    {"save_total_limit", SPEC_KIND_INT64, ALL, AT(save_total_limit), BOTH("0"), 0, BIG},
    {"bitwise", SPEC_KIND_BOOL, ALL, AT(bitwise), BOTH("true")},

    {"devices", SPEC_KIND_INT, ALL, AT(devices), BOTH("1"), 1, LIMIT_RANKS},
    {"device_type", SPEC_KIND_WORD, ALL, AT(device_type), BOTH("\"auto\""), .words = device_words},
    {"threads_per_device", SPEC_KIND_INT, ALL, AT(threads_per_device), BOTH("0"), 0, 4096},
    {"priority", SPEC_KIND_INT64, ALL, AT(priority), BOTH("0"), -1000000, 1000000},
    {"output_dir", SPEC_KIND_STRING, ALL, AT(output_dir), BOTH("\"./runs/{name}-{id}\"")},
};
const size_t spec_n_keys = sizeof spec_keys / sizeof spec_keys[0];

const char *spec_word_text(const struct spec_word *words, int value)
{
    for (; words->text; words++)
        if (words->value == value)
            return words->text;
    return "?";
}

const struct spec_key *spec_key_find(const char *name)
{
    for (size_t i = 0; i < spec_n_keys; i++)
        if (strcmp(spec_keys[i].name, name) == 0)
            return &spec_keys[i];
    return NULL;
}

const struct spec_other *spec_other_find(const char *name)
{
    for (size_t i = 0; i < spec_n_others; i++)
        if (strcmp(spec_others[i].name, name) == 0)
            return &spec_others[i];
    return NULL;
}
