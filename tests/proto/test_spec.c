/* test_spec.c - job files: what is accepted, what is refused and where, defaults. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/spec.h"
#include "proto/spec_key.h"
#include "proto/spec_near.h"
#include "proto/spec_yaml.h"

static char dir[64]; /* holds m/config.json and a cache */

#define HEAD     "method: dpo\nmodel_name_or_path: m\ntrain: [{path: d.jsonl}]\n" /* lines 1-3 */
#define HEAD_SFT "method: sft\nmodel_name_or_path: m\ntrain: [{path: d.jsonl}]\n"

static void write_file(const char *name, const char *text)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void make_dir(const char *name)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(mkdir(path, 0700), 0);
}

static int setup(void **state)
{
    (void)state;
    (void)snprintf(dir, sizeof dir, "/tmp/test_spec.XXXXXX");
    assert_non_null(mkdtemp(dir));
    make_dir("m");
    write_file("m/config.json", "{}");
    write_file("d.jsonl", "");
    make_dir("empty");
    make_dir("hub");
    make_dir("hub/models--org--name");
    make_dir("hub/models--org--name/refs");
    write_file("hub/models--org--name/refs/main", "0123456789abcdef0123456789abcdef01234567");
    make_dir("hub/models--org--name/snapshots");
    make_dir("hub/models--org--name/snapshots/0123456789abcdef0123456789abcdef01234567");
    write_file("hub/models--org--name/snapshots/0123456789abcdef0123456789abcdef01234567/"
               "config.json",
               "{}");
    make_dir("hub/models--org--half");
    make_dir("hub/models--org--half/refs");
    write_file("hub/models--org--half/refs/main", "../../../../etc");
    setenv("HF_HUB_CACHE", "", 1);
    setenv("HUGGINGFACE_HUB_CACHE", "", 1);
    char hub[128];
    (void)snprintf(hub, sizeof hub, "%s/hub", dir);
    setenv("HF_HUB_CACHE", hub, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

struct result {
    int r;
    struct spec *spec;
    char *user, *resolved;
    struct spec_problems problems;
};

static struct result read_text(const char *text, const char *const *sets)
{
    struct result out = {0};
    struct spec_set v[8];
    struct spec_options o = {.file = "some/dir/job-a.yaml", .base_dir = dir, .sets = v};
    for (; sets && sets[o.n_sets]; o.n_sets++)
        v[o.n_sets].text = sets[o.n_sets];
    out.r = spec_read(text, strlen(text), &o, &out.spec, &out.user, &out.resolved, &out.problems);
    return out;
}

static void result_free(struct result *x)
{
    if (x->r == 0) {
        spec_free(x->spec);
        free(x->user);
        free(x->resolved);
    }
    spec_problems_free(&x->problems);
}

static struct result read_good(const char *text, const char *const *sets)
{
    struct result x = read_text(text, sets);
    for (size_t i = 0; x.r != 0 && i < x.problems.n; i++)
        print_message("line %d: %s\n", x.problems.v[i].line, x.problems.v[i].text);
    assert_int_equal(x.r, 0);
    return x;
}

static json_t *resolved(const struct result *x)
{
    json_t *j = json_loads(x->resolved, 0, NULL);
    assert_non_null(j);
    return j;
}

static const char *text_at(const json_t *root, const char *part, const char *key)
{
    return json_string_value(json_object_get(json_object_get(root, part), key));
}

/* ---- refused: the line and a piece of the sentence ---- */

struct bad {
    const char *text;
    int line;
    const char *says;
};

static const struct bad bads[] = {
    {"", 0, "method is missing"},
    {"# only a comment\n", 0, "method is missing"},
    {"[1, 2]\n", 1, "list of `key: value`"},
    {"just words\n", 1, "list of `key: value`"},
    {HEAD "learning_rate: [\n", 5, "not YAML"},
    {HEAD "beta: 0.1\nbeta: 0.2\n", 5, "duplicate"},
    {HEAD "learning_rat: 1e-5\n", 4, "did you mean learning_rate?"},
    {HEAD "zzzzzz: 1\n", 4, "unknown key; docs/JOB_FILE.md"},
    {HEAD "lr: 1e-5\n", 4, "lr: unknown key; write learning_rate"},
    {HEAD "LR: 1e-5\n", 4, "LR: unknown key; write learning_rate"},
    {HEAD "batch-size: 8\n", 4, "write train_batch_size (one optimizer step"},
    {HEAD "warmup: 10\n", 4, "write warmup_steps (a count) or warmup_ratio"},
    {HEAD "learning-rate: 1e-5\n", 4, "did you mean learning_rate?"},
    {HEAD "sequence_lenn: 512\n", 4, "did you mean max_length?"},
    {HEAD "train_on_input: true\n", 4, "did you mean train_on_inputs?"},
    {HEAD "nested_quant: true\n", 4, "unknown key; docs/JOB_FILE.md"},
    {HEAD "max_grad: 1\n", 4, "did you mean max_grad_norm?"},
    {HEAD "special_tokens: {bos_token: x}\n", 4, "leave it out"},
    {HEAD "load_in_4bit: yes\n", 4, "`yes` is a text in YAML 1.2"},
    {HEAD "load_in_4bit: \"true\"\n", 4, "must be true or false"},
    {HEAD "learning_rate: \"5e-5\"\n", 4, "without quotes"},
    {HEAD "learning_rate: .inf\n", 4, "not finite"},
    {HEAD "learning_rate: 1e999\n", 4, "out of range"},
    {HEAD "learning_rate: -1\n", 4, "at least 0"},
    {HEAD "seed: 99999999999999999999\n", 4, "out of range"},
    {HEAD "seed: -1\n", 4, "at least 0"},
    {HEAD "lora_r: 0\n", 4, "at least 1"},
    {HEAD "lora_r: 16.5\n", 4, "whole number"},
    {HEAD "lora_dropout: 1.0\n", 4, "at most 0.99"},
    {HEAD "beta: 0\n", 4, "more than 0"},
    {HEAD "max_steps: 0\n", 4, "1 or more, or -1"},
    {HEAD "lr_scheduler_type: wsd\n", 4, "one of linear, cosine, constant"},
    {HEAD "loss_type: ipo\n", 4, "one of sigmoid"},
    {HEAD "loss_type: [sigmoid, sft]\n", 4, "one of sigmoid"},
    {HEAD "lora_target_modules: q_proj\n", 4, "regular expression"},
    {HEAD "lora_target_modules: [q_prj]\n", 4, "did you mean q_proj?"},
    {HEAD "lora_target_modules: [lm_head]\n", 4, "not supported"},
    {HEAD "lora_target_modules: []\n", 4, "all-linear or a list"},
    {HEAD "bnb_4bit_quant_type: fp4\n", 4, "write nf4"},
    {HEAD "train_batch_size: 16\nper_device_train_batch_size: 4\n", 4, "keep one form"},
    {HEAD "gradient_accumulation_steps: 0\n", 4, "at least 1"},
    {HEAD "per_device_train_batch_size: 1048576\ngradient_accumulation_steps: 2\n", 4, "at most"},
    {HEAD "eval_steps: 10\n", 4, "nothing to evaluate"},
    {HEAD "eval: {split: 10}\n", 4, "unknown key"},
    {HEAD "eval: {split_from_train: 0}\n", 4, "at least 1"},
    {HEAD "eval: 10\n", 4, "split_from_train"},
    {HEAD "val_set_size: 0.05\n", 4, "a share"},
    {HEAD "completion_only_loss: true\n", 4, "belongs to method sft"},
    {HEAD_SFT "beta: 0.1\n", 4, "belongs to method dpo"},
    {HEAD_SFT "loss_type: dft\n", 4, "nll"},
    {HEAD "label_smoothing: 0.1\n", 4, "cDPO"},
    {HEAD "optim: lion\n", 4, "one of adamw_torch, adamw_8bit, "},
    {HEAD "optim: adamw8bit\n", 4, "did you mean adamw_8bit?"},
    {HEAD "optim: adamw_bnb_8bits\n", 4, "did you mean adamw_bnb_8bit?"},
    {HEAD "optim: 7\n", 4, "not 7"},
    {HEAD "optim: null\n", 4, "not null"},
    {HEAD "optimizer: adafactor\n", 4, "optim: must be one of adamw_torch"},
    {HEAD "optim: adamw_8bit\noptimizer: adamw_8bit\n", 5, "the same as optim"},
    {HEAD "optm: adamw_8bit\n", 4, "did you mean optim?"},
    {HEAD "packing: true\n", 4, "not supported"},
    {HEAD "adapter: qlora\nload_in_4bit: false\n", 4, "keep one"},
    {HEAD "lora_rank: 8\n", 4, "lora_alpha is missing"},
    {HEAD "lora_rank: 8\nlora_r: 8\nlora_alpha: 16\n", 5, "the same as lora_rank"},
    {HEAD "quantization_bit: 8\ndouble_quantization: true\n", 4, "4 bits only"},
    {HEAD "quantization_bit: 4\n", 4, "double_quantization is missing"},
    {HEAD "rl: dpo\n", 4, "the same as method"},
    {HEAD "template: vicuna\n", 4, "template: belongs to an entry"},
    {HEAD "hub_token: hf_secret\n", 4, "hub_token: alignd uploads nothing"},
    {HEAD "resume_from_checkpoint: x\n", 4, "alignctl resume"},
    {HEAD "model_dir: /x\n", 4, "unknown key"},
    {HEAD "output_dir: ./{user}\n", 4, "only {name} and {id}"},
    {HEAD "name: a/b\n", 4, "without /"},
    {HEAD "name: \"\"\n", 4, "1 to 128 bytes"},
    {HEAD "eval_strategy: steps\neval: {split_from_train: 4}\n", 4, "needs eval_steps"},
    {HEAD "eval_strategy: no\neval: {split_from_train: 4}\n", 4, "keep one"},
    {HEAD "eval_strategy: epoch\n", 4, "eval_steps"},
    {HEAD "<<: {beta: 1}\n", 4, "merge keys"},
    {HEAD "beta: !!float 1\n", 4, "tags"},
    {HEAD "beta: *b\n", 4, ""},
    {HEAD "? [a]\n: 1\n", 4, "plain word"},
    {"model_name_or_path: m\ntrain: [{path: d}]\n", 0, "method is missing"},
    {"method: kto\nmodel_name_or_path: m\ntrain: [{path: d}]\n", 1, "one of sft, dpo"},
    {"method: dpo\ntrain: [{path: d}]\n", 0, "model_name_or_path is missing"},
    {"method: dpo\nmodel_name_or_path: m\n", 0, "train is missing"},
    {"method: dpo\nmodel_name_or_path: m\ntrain: d.jsonl\n", 3, "must be a list"},
    {"method: dpo\nmodel_name_or_path: m\ntrain: []\n", 3, "must be a list"},
    {"method: dpo\nmodel_name_or_path: m\ntrain:\n  - format: pku\n", 4, "`path` is missing"},
    {"method: dpo\nmodel_name_or_path: m\ntrain:\n  - path: d\n    format: hh\n", 5, "one of auto"},
    {"method: dpo\nmodel_name_or_path: m\ntrain:\n  - path: d\n    sample: 5\n", 5,
     "did you mean samples?"},
    {"method: dpo\nmodel_name_or_path: m\ntrain:\n  - path: d\n    type: chatml\n", 5,
     "write format (the keys of a row) or template"},
    {"method: dpo\nmodel_name_or_path: m\ntrain:\n  - path: d\n    zzz: 1\n", 5,
     "an entry has path, format, preference, template, samples"},
    {"method: dpo\nmodel_name_or_path: m\ntrain:\n  - path: d\n    format: pku\n", 4,
     "better or safe"},
    {"method: dpo\nmodel_name_or_path: m\ntrain:\n  - {path: d, format: text}\n", 4,
     "chosen and a rejected"},
    {"method: dpo\nmodel_name_or_path: nowhere\ntrain: [{path: d}]\n", 2, "neither a folder"},
    {"method: dpo\nmodel_name_or_path: empty\ntrain: [{path: d}]\n", 2, "no config.json"},
    {"method: dpo\nmodel_name_or_path: org/half\ntrain: [{path: d}]\n", 2, "not its revision"},
    {"method: dpo\nmodel_name_or_path: ../x/y\ntrain: [{path: d}]\n", 2, "no folder"},
    {"{\"method\": \"dpo\",\n \"model_name_or_path\": \"m\",\n \"train\": [{\"path\": \"d\"}],\n"
     " \"bta\": 1}\n",
     4, "did you mean beta?"},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bads); i++) {
        struct result x = read_text(bads[i].text, NULL);
        bool found = false;
        assert_int_equal(x.r, -EINVAL);
        for (size_t k = 0; k < x.problems.n; k++)
            found = found || (x.problems.v[k].line == bads[i].line && !x.problems.v[k].warning &&
                              strstr(x.problems.v[k].text, bads[i].says));
        if (!found) {
            print_message("case %zu:\n%s", i, bads[i].text);
            for (size_t k = 0; k < x.problems.n; k++)
                print_message("  line %d: %s\n", x.problems.v[k].line, x.problems.v[k].text);
        }
        assert_true(found);
        result_free(&x);
    }
}

static void test_every_problem_at_once(void **state)
{
    (void)state;
    struct result x = read_text(HEAD "beta: 0\nlora_rr: 1\nseed: x\nflash_attention: true\n", NULL);
    assert_int_equal(x.r, -EINVAL);
    assert_int_equal(x.problems.n, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(x.problems.v[i].line, 4 + i);
    assert_true(x.problems.v[3].warning);
    result_free(&x);

    /* data that are not there are one of them; a right job file says nothing of its data */
    static const char gone[] =
        "method: dpo\nmodel_name_or_path: nowhere\ntrain:\n  - path: d.jsonl\n  - path: gone\n";
    x = read_text(gone, NULL);
    assert_int_equal(x.r, -EINVAL);
    assert_int_equal(x.problems.n, 2);
    assert_int_equal(x.problems.v[0].line, 2);
    assert_int_equal(x.problems.v[1].line, 5);
    assert_non_null(strstr(x.problems.v[1].text, "train.1.path: /"));
    result_free(&x);
}

/* ---- accepted ---- */

static void test_defaults(void **state)
{
    (void)state;
    struct result x = read_good(HEAD, NULL);
    const struct spec *s = x.spec;
    assert_string_equal(s->name, "job-a");
    assert_int_equal(s->method, SPEC_DPO);
    assert_float_equal(s->learning_rate, 5e-6, 0);
    assert_float_equal(s->beta, 0.1, 0);
    assert_int_equal(s->lora_r, 16);
    assert_int_equal(s->lora_alpha, 32);
    assert_float_equal(s->lora_dropout, 0.05, 0);
    assert_true(s->lora_all_linear && s->disable_dropout && s->bitwise);
    assert_false(s->bf16 || s->load_in_4bit || s->bnb_4bit_use_double_quant || s->use_rslora);
    assert_int_equal(s->train_batch_size, 8);
    assert_int_equal(s->per_device_train_batch_size, 8);
    assert_int_equal(s->gradient_accumulation_steps, 1);
    assert_int_equal(s->max_steps, -1);
    assert_float_equal(s->num_train_epochs, 3.0, 0);
    assert_int_equal(s->max_length, 1024);
    assert_int_equal(s->seed, 42);
    assert_int_equal(s->data_seed, 42);
    assert_int_equal(s->logging_steps, 1);
    assert_int_equal(s->save_steps, 500);
    assert_int_equal(s->lr_scheduler_type, SPEC_LINEAR);
    assert_int_equal(s->dtype, SPEC_DTYPE_F32);
    assert_int_equal(s->devices, 1);
    assert_int_equal(s->device_type, SPEC_DEVICE_AUTO);
    json_t *j = resolved(&x);
    assert_string_equal(text_at(j, "origin", "beta"), "default");
    assert_string_equal(text_at(j, "origin", "method"), "user");
    assert_string_equal(text_at(j, "origin", "train_batch_size"), "derived");
    json_decref(j);
    result_free(&x);

    x = read_good(HEAD_SFT "loss_type: nll\n", NULL);
    assert_float_equal(x.spec->learning_rate, 2e-5, 0);
    assert_true(x.spec->completion_only_loss);
    assert_false(x.spec->disable_dropout);
    result_free(&x);
}

static void test_values(void **state)
{
    (void)state;
    struct result x = read_good(
        HEAD "learning_rate: 5e-5\nname: x y\nseed: 0x10\nmax_steps: 1e3\nlora_dropout: 0\n"
             "lora_target_modules: &t [q_proj, model.layers.0.mlp.up_proj]\n"
             "per_device_train_batch_size: 4\ngradient_accumulation_steps: 2\ndevices: 2\n"
             "eval:\n  - {path: /abs/e.jsonl, format: pku-pairs}\n  - e2.jsonl\neval_steps: 5\n"
             "output_dir: out/{name}/{id}-{id}\nloss_type: [sigmoid]\nwarmup_steps: 0.1\n"
             "lora_modules_to_save: null\nbf16: auto\ndevice_type: gpu\ndata_seed: 7\n",
        NULL);
    struct spec *s = x.spec;
    char want[128];
    assert_float_equal(s->learning_rate, 5e-5, 0);
    assert_int_equal(s->seed, 16);
    assert_int_equal(s->data_seed, 7);
    assert_int_equal(s->max_steps, 1000);
    assert_int_equal(s->train_batch_size, 16);
    assert_int_equal(s->n_lora_target_modules, 2);
    assert_false(s->lora_all_linear);
    assert_true(s->bf16);
    assert_float_equal(s->warmup_ratio, 0.1, 0);
    assert_int_equal(s->n_eval, 2);
    assert_string_equal(s->eval[0].path, "/abs/e.jsonl");
    assert_int_equal(s->eval[0].format, SPEC_FORMAT_PKU_PAIRS);
    (void)snprintf(want, sizeof want, "%s/e2.jsonl", dir);
    assert_string_equal(s->eval[1].path, want);
    (void)snprintf(want, sizeof want, "%s/out/x y/17-17", dir);
    struct err err;
    assert_int_equal(spec_place(s, "17", &err), 0);
    assert_string_equal(s->output_dir, want);
    result_free(&x);
}

static void test_names_of_others(void **state)
{
    (void)state;
    struct result x = read_good("base_model: m\nrl: dpo\nadapter: qlora\nlora_target_linear: true\n"
                                "lora_r: 8\nlora_alpha: 16\ntrain: [d]\nrl_beta: 0.2\n"
                                "sequence_len: 128\nmicro_batch_size: 2\n"
                                "gradient_accumulation_steps: 4\nnum_epochs: 1\n"
                                "lr_scheduler: cosine\noptimizer: adamw_torch\nval_set_size: 10\n"
                                "flash_attention: true\nwandb_project: p\nsample_packing: false\n",
                                NULL);
    assert_true(x.spec->load_in_4bit && x.spec->bnb_4bit_use_double_quant);
    assert_true(x.spec->lora_all_linear);
    assert_float_equal(x.spec->beta, 0.2, 0);
    assert_int_equal(x.spec->max_length, 128);
    assert_int_equal(x.spec->train_batch_size, 8);
    assert_float_equal(x.spec->num_train_epochs, 1, 0);
    assert_int_equal(x.spec->lr_scheduler_type, SPEC_COSINE);
    assert_int_equal(x.spec->eval_split_from_train, 10);
    json_t *j = resolved(&x);
    assert_string_equal(text_at(j, "aliases", "rl_beta"), "beta");
    assert_string_equal(text_at(j, "origin", "beta"), "alias");
    assert_int_equal(json_array_size(json_object_get(j, "ignored")), 4);
    assert_string_equal(text_at(j, "aliases", "optimizer"), "optim");
    json_decref(j);
    result_free(&x);

    x = read_good("model_name_or_path: m\nstage: sft\nfinetuning_type: lora\nlora_rank: 8\n"
                  "lora_alpha: 16\nlora_target: q_proj,v_proj\nquantization_bit: 4\n"
                  "double_quantization: false\ntrain: [{path: d}]\ncutoff_len: 64\n"
                  "train_on_prompt: true\npure_bf16: false\n",
                  NULL);
    assert_int_equal(x.spec->method, SPEC_SFT);
    assert_int_equal(x.spec->n_lora_target_modules, 2);
    assert_true(x.spec->load_in_4bit);
    assert_false(x.spec->completion_only_loss || x.spec->bnb_4bit_use_double_quant);
    result_free(&x);
}

/* Every name of one optimizer is one value, so that nothing but the numbers counts. */
static void test_optim(void **state)
{
    static const struct {
        const char *name, *resolved;
        enum spec_optim optim;
    } v[] = {
        {"optim: adamw_torch", "adamw_torch", SPEC_ADAMW_TORCH},
        {"optim: adamw_torch_fused", "adamw_torch", SPEC_ADAMW_TORCH},
        {"optim: paged_adamw", "adamw_torch", SPEC_ADAMW_TORCH},
        {"optimizer: paged_adamw_32bit", "adamw_torch", SPEC_ADAMW_TORCH},
        {"optim: adamw_8bit", "adamw_8bit", SPEC_ADAMW_8BIT},
        {"optim: adamw_bnb_8bit", "adamw_8bit", SPEC_ADAMW_8BIT},
        {"optimizer: paged_adamw_8bit", "adamw_8bit", SPEC_ADAMW_8BIT},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        char text[256];
        struct spec *back = NULL;
        struct err err;
        (void)snprintf(text, sizeof text, HEAD "%s\n", v[i].name);
        struct result x = read_good(text, NULL);
        json_t *j = resolved(&x);
        assert_int_equal(x.spec->optim, v[i].optim);
        assert_string_equal(text_at(j, "values", "optim"), v[i].resolved);
        json_decref(j);
        assert_int_equal(spec_from_resolved(x.resolved, strlen(x.resolved), &back, &err), 0);
        assert_int_equal(back->optim, v[i].optim);
        spec_free(back);
        result_free(&x);
    }
}

/* A resolved spec of release 0.1 has no optim: it means adamw_torch, and the same job. */
static void test_resolved_before_optim(void **state)
{
    (void)state;
    struct result now = read_good(HEAD, NULL), named = read_good(HEAD "optim: adamw_torch\n", NULL);
    struct result other = read_good(HEAD "optim: adamw_8bit\n", NULL);
    struct spec *back = NULL;
    struct err err;
    json_t *j = resolved(&now);
    assert_int_equal(json_object_del(json_object_get(j, "values"), "optim"), 0);
    assert_int_equal(json_object_del(json_object_get(j, "origin"), "optim"), 0);
    json_object_set_new(j, "ignored", json_pack("[{s:s,s:s}]", "key", "optim", "reason", "x"));
    char *was = json_dumps(j, JSON_INDENT(2));
    json_decref(j);
    if (spec_from_resolved(was, strlen(was), &back, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(back->optim, SPEC_ADAMW_TORCH);
    spec_free(back);
    assert_true(spec_same_values(was, now.resolved) && spec_same_values(named.resolved, was));
    assert_false(spec_same_values(was, other.resolved));
    assert_false(spec_same_values(other.resolved, named.resolved));
    assert_false(spec_same_values("{}", "{}") || spec_same_values("", was));
    free(was);
    result_free(&now);
    result_free(&named);
    result_free(&other);
}

static void test_sets(void **state)
{
    (void)state;
    static const char *const sets[] = {
        "beta=0.3",           "train.0.samples=5", "rl_beta=0.4", "eval.split_from_train=9",
        "train_batch_size=6", "lora_r=null",       NULL};
    struct result x = read_good(HEAD "micro_batch_size: 4\nlora_r: 3\n", sets);
    assert_float_equal(x.spec->beta, 0.4, 0);
    assert_int_equal(x.spec->train[0].samples, 5);
    assert_int_equal(x.spec->eval_split_from_train, 9);
    assert_int_equal(x.spec->train_batch_size, 6);
    assert_int_equal(x.spec->lora_r, 16);
    result_free(&x);

    static const char *const bad[][2] = {{"beta", NULL},     {"=1", NULL},
                                         {"beta=[", NULL},   {"train.x=1", NULL},
                                         {"beta.x=1", NULL}, {"train.7.path=x", NULL},
                                         {"a..b=1", NULL},   {"beta=zero", NULL}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        x = read_text(HEAD "beta: 0.1\n", bad[i]);
        assert_int_equal(x.r, -EINVAL);
        assert_int_equal(x.problems.v[0].line, 0);
        result_free(&x);
    }
}

static void test_cache(void **state)
{
    (void)state;
    static const char text[] = "method: dpo\nmodel_name_or_path: org/name\ntrain: [{path: d}]\n";
    struct result x = read_good(text, NULL);
    assert_string_equal(x.spec->model_revision, "0123456789abcdef0123456789abcdef01234567");
    assert_non_null(strstr(x.spec->model_dir, "/snapshots/0123456789abcdef"));
    assert_non_null(strstr(x.user, "\"model_revision\":\"0123456789abcdef"));
    char *user = strdup(x.user);
    result_free(&x);
    x = read_good(user, NULL); /* a commit is a revision, too */
    assert_string_equal(x.spec->model_revision, "0123456789abcdef0123456789abcdef01234567");
    free(user);
    result_free(&x);
    unsetenv("HF_HUB_CACHE");
    setenv("HF_HOME", dir, 1);
    x = read_good(text, NULL);
    result_free(&x);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct result x = read_good(HEAD "learning_rate: 0.1234567890123456789\neval: [e]\n"
                                     "lora_target_modules: [q_proj]\nbeta: 1e-3\n",
                                NULL);
    struct spec *back = NULL;
    struct err err;
    assert_int_equal(spec_from_resolved(x.resolved, strlen(x.resolved), &back, &err), 0);
    assert_true(back->learning_rate == x.spec->learning_rate && back->beta == x.spec->beta);
    assert_string_equal(back->train[0].path, x.spec->train[0].path);
    assert_string_equal(back->eval[0].path, x.spec->eval[0].path);
    assert_string_equal(back->model_dir, x.spec->model_dir);
    assert_string_equal(back->lora_target_modules[0], "q_proj");
    assert_int_equal(back->train_batch_size, 8);
    spec_free(back);
    /* the user's part resolves to the same values from anywhere */
    struct spec_options o = {.file = NULL, .base_dir = "/"};
    struct spec *again = NULL;
    char *resolved2 = NULL;
    struct spec_problems p;
    assert_int_equal(spec_read(x.user, strlen(x.user), &o, &again, NULL, &resolved2, &p), 0);
    json_t *a = resolved(&x), *b = json_loads(resolved2, 0, NULL);
    assert_true(json_equal(json_object_get(a, "values"), json_object_get(b, "values")));
    json_decref(b);
    free(resolved2);
    spec_free(again);
    spec_problems_free(&p);

    /* every single value wrong or missing is refused */
    json_t *values = json_object_get(a, "values");
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(values, next, key, value)
    {
        json_t *copy = json_deep_copy(a);
        json_t *v = json_object_get(copy, "values");
        json_object_set_new(v, key, json_pack("{s:i}", "odd", 1));
        char *text = json_dumps(copy, 0);
        assert_int_equal(spec_from_resolved(text, strlen(text), &back, &err), -EINVAL);
        free(text);
        json_object_del(v, key);
        text = json_dumps(copy, 0);
        if (!spec_key_find(key)->later)
            assert_int_equal(spec_from_resolved(text, strlen(text), &back, &err), -EINVAL);
        free(text);
        json_decref(copy);
    }
    json_object_set_new(values, "extra", json_true());
    char *text = json_dumps(a, 0);
    assert_int_equal(spec_from_resolved(text, strlen(text), &back, &err), -EINVAL);
    free(text);
    json_decref(a);
    result_free(&x);
    static const char *const junk[] = {"",
                                       "{}",
                                       "[]",
                                       "{\"spec_version\":2,\"values\":{}}",
                                       "{\"spec_version\":1}",
                                       "{\"spec_version\":1,\"values\":{}}"};
    for (size_t i = 0; i < ARRAY_LEN(junk); i++)
        assert_int_equal(spec_from_resolved(junk[i], strlen(junk[i]), &back, &err), -EINVAL);
}

static void test_anchors(void **state)
{
    (void)state;
    struct result x = read_good("method: dpo\nmodel_name_or_path: m\n"
                                "train:\n  - &a {path: d, template: vicuna}\neval:\n  - *a\n",
                                NULL);
    assert_int_equal(x.spec->eval[0].template, SPEC_TEMPLATE_VICUNA);
    result_free(&x);
    /* nine levels of nine aliases: refused, and at once */
    char bomb[2048] = "a: &a [x,x,x,x,x,x,x,x,x]\n";
    for (char c = 'b'; c < 'j'; c++) {
        char line[128];
        (void)snprintf(line, sizeof line, "%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c,
                       c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1);
        (void)snprintf(bomb + strlen(bomb), sizeof bomb - strlen(bomb), "%s", line);
    }
    x = read_text(bomb, NULL);
    assert_int_equal(x.r, -EINVAL);
    assert_non_null(strstr(x.problems.v[0].text, "too many"));
    result_free(&x);
    /* very many keys: at once, too */
    char *many = malloc(1 << 20);
    size_t n = 0;
    for (int i = 0; n < (1 << 20) - 64; i++)
        n += (size_t)snprintf(many + n, 64, "k%d: 1\n", i);
    x = read_text(many, NULL);
    assert_int_equal(x.r, -EINVAL);
    result_free(&x);
    free(many);
    x = read_text("a: &a [*a]\n", NULL);
    assert_int_equal(x.r, -EINVAL);
    result_free(&x);
}

/* docs/JOB_FILE.md names every key, alias and known key, and the defaults. */
static void test_document(void **state)
{
    (void)state;
    const char *path = getenv("ALIGND_JOB_FILE_MD");
    if (!path)
        skip();
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    static char text[1 << 18];
    size_t n = fread(text, 1, sizeof text - 1, f);
    text[n] = '\0';
    (void)fclose(f);
    for (size_t i = 0; i < spec_n_keys + spec_n_aliases + spec_n_others; i++) {
        const char *name = i < spec_n_keys ? spec_keys[i].name
                           : i < spec_n_keys + spec_n_aliases
                               ? spec_aliases[i - spec_n_keys].name
                               : spec_others[i - spec_n_keys - spec_n_aliases].name;
        char cell[160];
        (void)snprintf(cell, sizeof cell, "`%s`", name);
        if (!strstr(text, cell))
            fail_msg("docs/JOB_FILE.md does not name %s", cell);
    }
    for (size_t i = 0; i < spec_n_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        for (int m = 0; m < 2; m++) {
            char cell[160], *row;
            (void)snprintf(cell, sizeof cell, "\n| `%s` |", k->name);
            row = strstr(text, cell);
            assert_non_null(row);
            if (!k->fallback[m])
                continue;
            (void)snprintf(cell, sizeof cell, "`%s`", k->fallback[m]);
            char *end = strchr(row + 1, '\n'), *at = strstr(row, cell);
            if (!at || at > end)
                fail_msg("docs/JOB_FILE.md: %s has not the default %s", k->name, k->fallback[m]);
        }
    }
}

/* What is said of other programs' names names keys that are there; no guess is made where
 * most letters differ. */
static void test_hints(void **state)
{
    (void)state;
    static const char *const far[] = {"lrx", "x", "ab", "zz", "abc", "", "2fa", "gpt"};
    for (size_t i = 0; i < spec_n_hints; i++) {
        const struct spec_hint *h = &spec_hints[i];
        char key[64];
        assert_true(!spec_key_find(h->name) || spec_key_find(h->name)->derived);
        assert_null(spec_other_find(h->name));
        for (size_t k = 0; k < spec_n_aliases; k++)
            assert_string_not_equal(spec_aliases[k].name, h->name);
        for (size_t k = i + 1; k < spec_n_hints; k++)
            assert_string_not_equal(spec_hints[k].name, h->name);
        if (sscanf(h->says, "write %63[a-z0-9_]", key) == 1 && !spec_key_find(key))
            fail_msg("%s: %s is no key", h->name, key);
    }
    for (size_t i = 0; i < ARRAY_LEN(far); i++)
        if (spec_near_key(far[i]))
            fail_msg("%s: %s?", far[i], spec_near_key(far[i]));
    assert_string_equal(spec_near_key("rl2"), "method");
    assert_null(spec_near_key("a_name_longer_than_any_key_could_be_in_any_job_file"));
}

/* Aliases lead to keys that are there, and no name stands in two tables. */
static void test_tables(void **state)
{
    (void)state;
    for (size_t i = 0; i < spec_n_aliases; i++) {
        assert_non_null(spec_key_find(spec_aliases[i].key));
        assert_null(spec_key_find(spec_aliases[i].name));
        assert_null(spec_other_find(spec_aliases[i].name));
    }
    for (size_t i = 0; i < spec_n_others; i++) {
        assert_null(spec_key_find(spec_others[i].name));
        assert_ptr_equal(spec_other_find(spec_others[i].name), &spec_others[i]);
        if (spec_others[i].neutral) {
            json_t *list = json_loads(spec_others[i].neutral, 0, NULL);
            assert_true(json_is_array(list));
            json_decref(list);
        }
    }
    for (size_t i = 0; i < spec_n_keys; i++)
        for (int m = 0; m < 2; m++)
            if (spec_keys[i].fallback[m]) {
                json_t *v = json_loads(spec_keys[i].fallback[m], JSON_DECODE_ANY, NULL);
                assert_non_null(v);
                json_decref(v);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),          cmocka_unit_test(test_hints),
        cmocka_unit_test(test_refused),         cmocka_unit_test(test_every_problem_at_once),
        cmocka_unit_test(test_defaults),        cmocka_unit_test(test_values),
        cmocka_unit_test(test_names_of_others), cmocka_unit_test(test_sets),
        cmocka_unit_test(test_optim),           cmocka_unit_test(test_resolved_before_optim),
        cmocka_unit_test(test_anchors),         cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_cache),           cmocka_unit_test(test_document),
    };
    return cmocka_run_group_tests_name("spec", tests, setup, teardown);
}
