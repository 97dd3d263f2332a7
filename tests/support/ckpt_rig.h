/* ckpt_rig.h - a run's folder and an adapter to write checkpoints of: for the tests of
 * checkpoints, with float32 and with 8-bit moments. */
#ifndef TESTS_SUPPORT_CKPT_RIG_H
#define TESTS_SUPPORT_CKPT_RIG_H

#include <math.h>

#include "tests/support/temp_dir.h"
#include "tests/support/test.h"
#include "tests/support/tiny_model.h"
#include "worker/ckpt_state.h"

static const struct tiny_model tiny = {.hidden = 32,
                                       .layers = 2,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 8,
                                       .intermediate = 44,
                                       .vocab = 50,
                                       .dtype = SAFETENSORS_F32};

struct world {
    struct temp_dir model_dir, run_dir;
    struct spec spec;
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    struct model *model;
    struct adapter *adapter;
    struct ckpt_state state;
    char *image;
    size_t bytes;
};

static inline void make_attempt(const struct world *w, int n)
{
    char name[64];

    (void)mkdir(temp_dir_path(&w->run_dir, "attempts"), 0700);
    snprintf(name, sizeof name, "attempts/%d", n);
    assert_int_equal(mkdir(temp_dir_path(&w->run_dir, name), 0700), 0);
}

static inline int set_up_as(void **state, enum spec_optim optim)
{
    struct world *w = calloc(1, sizeof *w);
    char why[256];
    struct err err = {""};

    temp_dir_make(&w->model_dir);
    temp_dir_make(&w->run_dir);
    assert_int_equal(tiny_model_write(&tiny, w->model_dir.path), 0);
    if (kn_backend("ref", &w->ops, why, sizeof why) < 0)
        fail_msg("%s", why);
    assert_int_equal(w->ops->open(&(struct kn_open){.threads = 1}, &w->ctx), 0);
    if (model_open(w->model_dir.path, &w->model, &err) < 0)
        fail_msg("%s", err.text);
    w->spec = (struct spec){.model_name_or_path = w->model_dir.path,
                            .model_dir = w->model_dir.path,
                            .model_revision = "",
                            .lora_r = optim == SPEC_ADAMW_8BIT ? 128 : 4,
                            .lora_alpha = 8,
                            .lora_all_linear = optim != SPEC_ADAMW_8BIT,
                            .lora_target_modules = {(char *)"q_proj", (char *)"k_proj"},
                            .n_lora_target_modules = 2,
                            .seed = 3,
                            .optim = optim,
                            .output_dir = w->run_dir.path};
    if (lora_new(w->ops, w->ctx, w->model, &w->spec, &w->adapter, &err) < 0)
        fail_msg("%s", err.text);
    w->state = (struct ckpt_state){.global_step = 7,
                                   .num_tokens = 12345,
                                   .loss_sum = 0.1 + 0.2,
                                   .adapter = w->adapter->moments.shape,
                                   .attempt = 1,
                                   .token_budget = 2048,
                                   .ranks = 2,
                                   .threads = 1,
                                   .backend = "ref",
                                   .isa = "generic \"quoted\""};
    w->state.window = (struct metrics_window){.examples = 3, .steps = 1};
    for (int k = 0; k < METRICS; k++)
        w->state.window.mean[k] = 1.0 / (k + 3);
    w->bytes = moments_image_bytes(&w->state.adapter);
    w->image = malloc(w->bytes);
    for (size_t i = 0; i < w->bytes / sizeof(float); i++) {
        const float v = fabsf(sinf((float)i));
        memcpy(w->image + i * sizeof v, &v, sizeof v);
    }
    make_attempt(w, 1);
    *state = w;
    return 0;
}

static inline int set_up(void **state)
{
    return set_up_as(state, SPEC_ADAMW_TORCH);
}

/* Rank 128: of four tensors of a layer, all but one are large enough for 8 bits. */
static inline int set_up_8bit(void **state)
{
    return set_up_as(state, SPEC_ADAMW_8BIT);
}

static inline int tear_down(void **state)
{
    struct world *w = *state;

    lora_free(w->adapter);
    model_close(w->model);
    w->ops->close(w->ctx);
    temp_dir_remove(&w->model_dir);
    temp_dir_remove(&w->run_dir);
    free(w->image);
    free(w);
    return 0;
}

static inline int save_as(const struct world *w, uint32_t attempt, int64_t step, int64_t keep,
                          struct err *err)
{
    struct ckpt_state s = w->state;
    struct rundir d;
    int r;

    s.global_step = step;
    s.attempt = attempt;
    if (rundir_open(&d, w->run_dir.path, attempt, err) < 0)
        fail_msg("%s", err->text);
    r = ckpt_save(&(struct ckpt_save){.dir = &d,
                                      .state = &s,
                                      .image = w->image,
                                      .adapter = w->adapter,
                                      .model = w->model,
                                      .spec = &w->spec,
                                      .trainer_state = "{}\n",
                                      .trainer_state_bytes = 3,
                                      .keep = keep},
                  err);
    rundir_close(&d);
    return r;
}

static inline void save(const struct world *w, uint32_t attempt, int64_t step, int64_t keep)
{
    struct err err = {""};

    if (save_as(w, attempt, step, keep, &err) < 0)
        fail_msg("%s", err.text);
}

/* The step found, -1 for none. */
static inline int64_t find(const struct world *w, uint32_t attempt, struct err *note)
{
    struct ckpt_state s;
    void *image = NULL;
    char name[64];
    struct err err = {""};
    int r = ckpt_find(w->run_dir.path, attempt, &s, &image, name, note, &err);

    if (r < 0)
        fail_msg("%s", err.text);
    free(image);
    return r == 1 ? s.global_step : -1;
}

static inline char *slurp(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *p = malloc((1 << 20) + 1);

    assert_non_null(f);
    *bytes = fread(p, 1, 1 << 20, f);
    fclose(f);
    return p;
}

static inline void spill(const char *path, const char *p, size_t bytes)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, bytes, f), bytes);
    fclose(f);
}

static inline bool is_there(const struct world *w, const char *name)
{
    struct stat st;
    return stat(temp_dir_path(&w->run_dir, name), &st) == 0;
}

#endif
