/* spec_read.c - reads a job file: parse, --set, names, defaults, paths, model. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/spec.h"
#include "proto/spec_flat.h"
#include "proto/spec_model.h"
#include "proto/spec_set.h"
#include "proto/spec_yaml.h"

enum { MAX_PROBLEMS = 200, TRL_BATCH = 8 /* TRL's per_device_train_batch_size */ };

struct reader {
    const struct spec_options *opts;
    struct spec_problems *problems;
    struct spec_lines lines;
    struct spec_sink sink;
    struct spec_flat flat;
    json_t *root;   /* as written, after --set                    */
    json_t *values; /* the resolved ones                          */
    json_t *origin; /* key -> user, alias, default, derived       */
    json_t *failed; /* keys whose value was wrong: key -> true    */
    int method;
    bool whole; /* what the values say together is right */
    bool no_memory;
};

static void problem_add(struct reader *rd, int line, bool warning, const char *text)
{
    struct spec_problems *p = rd->problems;
    if (p->n >= MAX_PROBLEMS)
        return;
    struct spec_problem *v = realloc(p->v, (p->n + 1) * sizeof *v);
    if (!v) {
        rd->no_memory = true;
        return;
    }
    p->v = v;
    v[p->n] = (struct spec_problem){.line = line, .warning = warning};
    (void)snprintf(v[p->n].text, sizeof v[p->n].text, "%s", text);
    p->n++;
}

/* A path under alignd's name to one under the name the person wrote. */
static void written_path(const struct reader *rd, const char *path, char *buf, size_t room)
{
    size_t n = strcspn(path, ".");
    char key[LIMIT_NAME];
    (void)snprintf(key, sizeof key, "%.*s", (int)n, path);
    const char *from = json_string_value(json_object_get(rd->flat.from, key));
    bool written = json_object_get(rd->root, key) != NULL;
    (void)snprintf(buf, room, "%s%s", from && !written ? from : key, path + n);
}

static void reader_problem(void *ctx, const char *path, bool warning, const char *text)
{
    struct reader *rd = ctx;
    char at[512];
    written_path(rd, path, at, sizeof at);
    problem_add(rd, spec_lines_find(&rd->lines, at), warning, text);
}

static bool given(const struct reader *rd, const char *key)
{
    return json_object_get(rd->flat.values, key) != NULL;
}

static void put_value(struct reader *rd, const char *key, json_t *value, const char *origin)
{
    json_object_set_new(rd->values, key, value);
    json_object_set_new(rd->origin, key, json_string(origin));
}

static const char *value_string(const struct reader *rd, const char *key)
{
    return json_string_value(json_object_get(rd->values, key));
}

static int64_t value_int(const struct reader *rd, const char *key)
{
    return json_integer_value(json_object_get(rd->values, key));
}

/* ---- what some keys allow beside their own type ---- */

static void flat_replace(struct reader *rd, const char *key, json_t *value)
{
    json_object_set_new(rd->flat.values, key, value);
}

static void flat_leave_out(struct reader *rd, const char *key)
{
    (void)json_object_del(rd->flat.values, key);
}

/* transformers 5: warmup_steps below 1 is a ratio. */
static void ease_warmup(struct reader *rd)
{
    const json_t *v = json_object_get(rd->flat.values, "warmup_steps");
    double d = json_number_value(v);
    if (!json_is_real(v) || !(d > 0 && d < 1) || given(rd, "warmup_ratio"))
        return;
    json_object_set_new(rd->flat.values, "warmup_ratio", json_real(d));
    json_object_set_new(rd->flat.from, "warmup_ratio", json_string("warmup_steps"));
    json_object_set_new(rd->flat.aliases, "warmup_steps", json_string("warmup_ratio"));
    flat_leave_out(rd, "warmup_steps");
}

/* TRL 1.x takes a list of losses; one of them is the same as its name alone. */
static void ease_loss(struct reader *rd)
{
    const json_t *v = json_object_get(rd->flat.values, "loss_type");
    if (json_array_size(v) == 1)
        flat_replace(rd, "loss_type", json_incref(json_array_get(v, 0)));
    v = json_object_get(rd->flat.values, "loss_type");
    if (rd->method == SPEC_SFT && v) {
        if (!json_is_string(v) || strcmp(json_string_value(v), "nll") != 0)
            spec_sink_add(&rd->sink, "loss_type",
                          "loss_type: an sft job has the loss nll: leave it out");
        flat_leave_out(rd, "loss_type");
    }
}

/* null where it means the default in TRL; axolotl's bf16: auto. */
static void ease_nulls(struct reader *rd)
{
    static const char *const nullable[] = {
        "data_seed",      "save_total_limit",    "eval_steps",
        "bf16",           "lora_target_modules", "completion_only_loss",
        "model_revision", "output_dir",          "dtype"};
    for (size_t i = 0; i < sizeof nullable / sizeof nullable[0]; i++)
        if (json_is_null(json_object_get(rd->flat.values, nullable[i])))
            flat_leave_out(rd, nullable[i]);
    const char *bf16 = json_string_value(json_object_get(rd->flat.values, "bf16"));
    if (bf16 && strcmp(bf16, "auto") == 0)
        flat_leave_out(rd, "bf16");
}

/* A data file's name alone stands for {path: it}. */
static void ease_sources(struct reader *rd, const char *key)
{
    json_t *list = json_object_get(rd->flat.values, key);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_is_string(json_array_get(list, i)))
            json_array_set_new(list, i, json_pack("{s:O}", "path", json_array_get(list, i)));
}

static void absolute_sources(struct reader *rd, const char *key)
{
    json_t *list = json_object_get(rd->flat.values, key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *entry = json_array_get(list, i);
        const char *path = json_string_value(json_object_get(entry, "path"));
        if (!path || !*path)
            continue;
        char *abs = spec_path_absolute(rd->opts->base_dir, path);
        if (abs)
            json_object_set_new(entry, "path", json_string(abs));
        free(abs);
    }
}

/* A job that is wrong anyway is not looked at further, so a file that is not there is
 * told here; of a job that is right, by whoever opens its data. */
static void missing_sources(struct reader *rd, const char *key)
{
    const json_t *list = json_object_get(rd->flat.values, key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *path = json_string_value(json_object_get(json_array_get(list, i), "path"));
        char at[64];
        if (!path || path[0] != '/' || access(path, R_OK) == 0)
            continue;
        (void)snprintf(at, sizeof at, "%s.%zu.path", key, i);
        spec_sink_add(&rd->sink, at, "%s: %.300s: %s", at, path, strerror(errno));
    }
}

/* ---- defaults ---- */

static void default_name(struct reader *rd)
{
    const char *file = rd->opts->file ? rd->opts->file : "";
    const char *base = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
    size_t n = strcspn(base, ".");
    if (n == 0 || n > LIMIT_NAME || strcmp(base, "-") == 0 || base[0] == '-')
        put_value(rd, "name", json_string(spec_word_text(spec_method_words, rd->method)),
                  "default");
    else
        put_value(rd, "name", json_stringn(base, n), "default");
}

static void default_batch(struct reader *rd)
{
    const char *const per = "per_device_train_batch_size", *const acc =
                                                               "gradient_accumulation_steps";
    bool by_device = given(rd, per) || given(rd, acc);
    if (given(rd, "train_batch_size")) {
        if (by_device)
            spec_sink_add(&rd->sink, "train_batch_size",
                          "train_batch_size: is the whole batch; with %s it is given twice: keep "
                          "one form",
                          given(rd, per) ? per : acc);
        put_value(rd, per, json_integer(0), "default");
        put_value(rd, acc, json_integer(0), "default");
        return;
    }
    if (json_object_get(rd->failed, per) || json_object_get(rd->failed, acc))
        return;
    int64_t p = given(rd, per) ? value_int(rd, per) : TRL_BATCH;
    int64_t a = given(rd, acc) ? value_int(rd, acc) : 1;
    if (given(rd, per) && p < 1)
        spec_sink_add(&rd->sink, per, "%s: must be at least 1", per);
    if (given(rd, acc) && a < 1)
        spec_sink_add(&rd->sink, acc, "%s: must be at least 1", acc);
    if (p < 1 || a < 1)
        return;
    int64_t whole = p * a * value_int(rd, "devices"); /* below 2^20 x 2^20 x 64 */
    if (whole > 1 << 20) {
        spec_sink_add(&rd->sink, per, "%s: the whole batch, %lld, must be at most 1048576", per,
                      (long long)whole);
        json_object_set_new(rd->failed, "train_batch_size", json_true());
    }
    if (!given(rd, per))
        put_value(rd, per, json_integer(p), "default");
    if (!given(rd, acc))
        put_value(rd, acc, json_integer(a), "default");
    put_value(rd, "train_batch_size", json_integer(whole > 1 << 20 ? 1 << 20 : whole), "derived");
}

/* Keys whose default is worked out from others; those are resolved by now. */
static void default_rest(struct reader *rd)
{
    if (!json_object_get(rd->values, "name"))
        default_name(rd);
    if (!json_object_get(rd->values, "data_seed"))
        put_value(rd, "data_seed", json_incref(json_object_get(rd->values, "seed")), "default");
    if (!json_object_get(rd->values, "bf16")) {
        const char *type = value_string(rd, "device_type");
        const bool open = !type || strcmp(type, "auto") == 0; /* whoever has the device decides */
        put_value(rd, "bf16", open ? json_string("auto") : json_boolean(strcmp(type, "gpu") == 0),
                  "default");
    }
    default_batch(rd);
}

static void resolve_key(struct reader *rd, const struct spec_key *k)
{
    const json_t *v = json_object_get(rd->flat.values, k->name);
    const char *fallback = k->fallback[rd->method];
    if (v) {
        json_t *checked = spec_value_check(k, v, &rd->sink);
        const char *from = json_string_value(json_object_get(rd->flat.from, k->name));
        if (checked) {
            put_value(rd, k->name, checked, from && strcmp(from, k->name) != 0 ? "alias" : "user");
            return;
        }
        json_object_set_new(rd->failed, k->name, json_true());
    }
    if (fallback)
        put_value(rd, k->name, json_loads(fallback, JSON_DECODE_ANY, NULL), "default");
}

static void other_method_key(struct reader *rd, const struct spec_key *k)
{
    if (given(rd, k->name))
        spec_sink_add(&rd->sink, k->name, "%s: belongs to method %s, this job is %s: leave it out",
                      k->name, spec_word_text(spec_method_words, !rd->method),
                      spec_word_text(spec_method_words, rd->method));
}

static void require(struct reader *rd, const char *key, const char *how)
{
    if (given(rd, key))
        return;
    spec_sink_add(&rd->sink, key, "%s is missing: write %s", key, how);
    json_object_set_new(rd->failed, key, json_true());
}

static void resolve_values(struct reader *rd)
{
    require(rd, "model_name_or_path", "model_name_or_path: FOLDER or org/name");
    require(rd, "train", "train: [{path: FILE}]");
    for (size_t i = 0; i < spec_n_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (!(k->methods & (1u << rd->method)))
            other_method_key(rd, k);
        else
            resolve_key(rd, k);
    }
    default_rest(rd);
}

static void resolve_output(struct reader *rd)
{
    const char *path = value_string(rd, "output_dir");
    const char *base = rd->opts->output_base ? rd->opts->output_base : rd->opts->base_dir;
    char *abs = path ? spec_path_absolute(base, path) : NULL;
    if (abs)
        json_object_set_new(rd->values, "output_dir", json_string(abs));
    free(abs);
}

static void resolve_model(struct reader *rd)
{
    const char *name = value_string(rd, "model_name_or_path");
    const char *revision = value_string(rd, "model_revision");
    char *dir = NULL, *commit = NULL;
    struct err err = {""};

    if (!name)
        return;
    int r = spec_model_find(name, rd->opts->base_dir, revision ? revision : "main", &dir, &commit,
                            &err);
    if (r < 0) {
        spec_sink_add(&rd->sink, "model_name_or_path", "model_name_or_path: %.440s", err.text);
        return;
    }
    if (!*commit) /* a folder: the same from everywhere */
        json_object_set_new(rd->values, "model_name_or_path", json_string(dir));
    put_value(rd, "model_dir", json_string(dir), "derived");
    json_object_set_new(rd->values, "model_revision", json_string(commit));
    free(dir);
    free(commit);
}

/* ---- notes and what two keys say together ---- */

static bool is_word(const json_t *v, const char *word)
{
    return json_is_string(v) && strcmp(json_string_value(v), word) == 0;
}

static void notes(struct reader *rd)
{
    const json_t *when = json_object_get(rd->root, "eval_strategy");
    if (!when)
        when = json_object_get(rd->root, "evaluation_strategy");
    if (is_word(when, "steps") && !given(rd, "eval_steps"))
        spec_sink_add(&rd->sink, "eval_strategy", "eval_strategy: steps needs eval_steps: N");
    if (is_word(when, "no") && !json_is_null(json_object_get(rd->values, "eval")))
        spec_sink_add(&rd->sink, "eval_strategy",
                      "eval_strategy: no, and eval: is given: keep one");
    if (!json_is_true(json_object_get(rd->values, "load_in_4bit")) &&
        (given(rd, "bnb_4bit_quant_type") ||
         json_is_true(json_object_get(rd->flat.values, "bnb_4bit_use_double_quant"))))
        spec_sink_note(&rd->sink,
                       given(rd, "bnb_4bit_quant_type") ? "bnb_4bit_quant_type"
                                                        : "bnb_4bit_use_double_quant",
                       "bnb_4bit_...: without load_in_4bit: true nothing is quantised");
    if (is_word(json_object_get(rd->values, "lr_scheduler_type"), "constant") &&
        (given(rd, "warmup_ratio") || given(rd, "warmup_steps")))
        spec_sink_note(&rd->sink, given(rd, "warmup_steps") ? "warmup_steps" : "warmup_ratio",
                       "lr_scheduler_type constant has no warm-up (as in transformers): "
                       "constant_with_warmup has one");
    if (given(rd, "warmup_ratio") && value_int(rd, "warmup_steps") > 0)
        spec_sink_note(&rd->sink, "warmup_ratio", "warmup_steps wins over warmup_ratio");
    if (rd->method == SPEC_DPO && given(rd, "lora_dropout") &&
        !json_object_get(rd->failed, "lora_dropout") &&
        json_is_true(json_object_get(rd->values, "disable_dropout")) &&
        json_number_value(json_object_get(rd->values, "lora_dropout")) > 0)
        spec_sink_note(&rd->sink, "lora_dropout",
                       "lora_dropout: off in a dpo job, as in TRL; disable_dropout: false turns it "
                       "on");
}

static void whole_problem(void *ctx, const char *path, bool warning, const char *text)
{
    struct reader *rd = ctx;
    char key[LIMIT_NAME];
    (void)snprintf(key, sizeof key, "%.*s", (int)strcspn(path, "."), path);
    if (json_object_get(rd->failed, key) ||
        (strcmp(key, "eval_steps") == 0 && json_object_get(rd->failed, "eval")))
        return; /* told already, and this follows from it */
    reader_problem(ctx, path, warning, text);
}

/* Fills the struct from the resolved values and checks the whole. */
static int fill(struct reader *rd, struct spec *spec)
{
    struct spec_sink sink = {.add = whole_problem, .ctx = rd};
    for (size_t i = 0; i < spec_n_keys; i++) {
        const json_t *v = json_object_get(rd->values, spec_keys[i].name);
        int r = v ? spec_value_store(&spec_keys[i], v, spec) : 0;
        if (r < 0)
            return r;
    }
    /* what is missing was told; these let the rest be checked */
    char **texts[] = {&spec->name, &spec->model_name_or_path, &spec->model_dir,
                      &spec->model_revision, &spec->output_dir};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (!*texts[i] && !(*texts[i] = strdup("/")))
            return -ENOMEM;
    if (strcmp(spec->name, "/") == 0)
        json_object_set_new(rd->failed, "name", json_true());
    spec_value_whole(spec, &sink);
    rd->whole = sink.problems == 0;
    return 0;
}

/* ---- texts ---- */

/* As few digits as give every number back: 5e-05, not 5.0000000000000002e-05. */
static char *dump_short(const json_t *v)
{
    for (size_t digits = 6; digits < 17; digits++) {
        char *text = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, 0, NULL) : NULL;
        bool same = back && json_equal(back, v);
        json_decref(back);
        if (same)
            return text;
        free(text);
    }
    return json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(17));
}

static char *resolved_text(const struct reader *rd)
{
    json_t *all =
        json_pack("{s:i,s:O,s:O,s:O,s:O}", "spec_version", SPEC_VERSION, "values", rd->values,
                  "origin", rd->origin, "aliases", rd->flat.aliases, "ignored", rd->flat.ignored);
    char *text = all ? dump_short(all) : NULL;
    json_decref(all);
    return text;
}

static void user_put(struct reader *rd, json_t *user, const char *key, json_t *value)
{
    const char *from = json_string_value(json_object_get(rd->flat.from, key));
    json_object_set_new(user, from ? from : key, value);
}

/* The file as written, its paths absolute and name and commit pinned, so that it
 * means the same from everywhere and a rerun is the same job. */
static char *user_text(struct reader *rd)
{
    json_t *user = json_copy(rd->root);
    if (!user)
        return NULL;
    user_put(rd, user, "name", json_incref(json_object_get(rd->values, "name")));
    user_put(rd, user, "output_dir", json_incref(json_object_get(rd->values, "output_dir")));
    user_put(rd, user, "model_name_or_path",
             json_incref(json_object_get(rd->values, "model_name_or_path")));
    user_put(rd, user, "train", json_incref(json_object_get(rd->flat.values, "train")));
    if (json_is_array(json_object_get(rd->flat.values, "eval")))
        user_put(rd, user, "eval", json_incref(json_object_get(rd->flat.values, "eval")));
    const char *commit = value_string(rd, "model_revision");
    if (commit && *commit)
        user_put(rd, user, "model_revision", json_string(commit));
    char *text = dump_short(user);
    json_decref(user);
    return text;
}

/* ---- the steps ---- */

static int read_tree(struct reader *rd, const char *text, size_t bytes)
{
    struct err err = {""};
    int line = 0;
    int r = spec_yaml_parse(text, bytes, &rd->root, &rd->lines, &line, &err);
    if (r == -EINVAL)
        problem_add(rd, line, false, err.text);
    if (r < 0)
        return r;
    if (!json_is_object(rd->root)) {
        problem_add(rd, 1, false, "a job file is a list of `key: value` lines");
        return -EINVAL;
    }
    for (size_t i = 0; i < rd->opts->n_sets; i++) {
        r = spec_set_apply(rd->root, &rd->lines, rd->opts->sets[i].text, &err);
        if (r == -ENOMEM)
            return r;
        if (r < 0) /* one that cannot be applied hides nothing else */
            problem_add(rd, 0, false, err.text);
    }
    return 0;
}

static bool read_method(struct reader *rd)
{
    const json_t *v = json_object_get(rd->flat.values, "method");
    rd->method = SPEC_DPO;
    if (!v) {
        spec_sink_add(&rd->sink, "method", "method is missing: write method: dpo or method: sft");
        return false;
    }
    json_t *m = spec_value_check(spec_key_find("method"), v, &rd->sink);
    if (m)
        rd->method = is_word(m, "sft") ? SPEC_SFT : SPEC_DPO;
    json_decref(m);
    return m != NULL;
}

static int resolve(struct reader *rd, struct spec *spec)
{
    int r = spec_flat_make(rd->root, &rd->flat, &rd->sink);
    if (r < 0)
        return r;
    bool known = read_method(rd);
    if (!known) { /* told; do not tell it again below */
        json_object_set_new(rd->failed, "method", json_true());
        flat_leave_out(rd, "method");
        json_object_set_new(rd->flat.values, "method", json_string("dpo"));
    }
    ease_nulls(rd);
    ease_warmup(rd);
    if (known)
        ease_loss(rd);
    static const char *const lists[] = {"train", "eval"};
    for (size_t i = 0; i < 2; i++) {
        ease_sources(rd, lists[i]);
        absolute_sources(rd, lists[i]);
    }
    resolve_values(rd);
    resolve_output(rd);
    resolve_model(rd);
    notes(rd);
    for (size_t i = 0; i < 2 && rd->sink.problems; i++)
        missing_sources(rd, lists[i]);
    r = fill(rd, spec);
    if (r < 0)
        return r;
    return rd->no_memory ? -ENOMEM : 0;
}

static int by_line(const void *a, const void *b)
{
    const struct spec_problem *p = a, *q = b;
    if ((p->line == 0) != (q->line == 0))
        return p->line == 0 ? 1 : -1;
    if (p->line != q->line)
        return p->line < q->line ? -1 : 1;
    return strcmp(p->text, q->text);
}

void spec_problems_sort(struct spec_problems *p)
{
    if (p->n)
        qsort(p->v, p->n, sizeof *p->v, by_line);
}

/* Hands the lines over. */
static int tell_more(struct reader *rd, struct spec_more *more)
{
    const char *key;
    json_t *from;
    json_object_foreach(rd->flat.from, key, from)
    {
        const char *as = json_string_value(from);
        if (as && strcmp(as, key) != 0 && !json_object_get(rd->root, key) &&
            spec_lines_alias(&rd->lines, key, as) < 0)
            return -ENOMEM;
    }
    more->values_right = rd->whole && json_object_size(rd->failed) == 0;
    more->lines = rd->lines;
    rd->lines = (struct spec_lines){0};
    return 0;
}

void spec_more_fini(struct spec_more *more)
{
    spec_lines_fini(&more->lines);
    spec_free(more->draft);
    *more = (struct spec_more){0};
}

static bool has_problem(const struct spec_problems *p)
{
    for (size_t i = 0; i < p->n; i++)
        if (!p->v[i].warning)
            return true;
    return false;
}

static void reader_fini(struct reader *rd)
{
    spec_lines_fini(&rd->lines);
    spec_flat_fini(&rd->flat);
    json_decref(rd->root);
    json_decref(rd->values);
    json_decref(rd->origin);
    json_decref(rd->failed);
}

int spec_read(const char *text, size_t bytes, const struct spec_options *opts,
              struct spec **ret_spec, char **ret_user, char **ret_resolved,
              struct spec_problems *problems)
{
    struct reader rd = {.opts = opts, .problems = problems};
    if (opts->more)
        *opts->more = (struct spec_more){0};
    struct spec *spec = calloc(1, sizeof *spec);
    char *user = NULL, *resolved = NULL;
    int r = -ENOMEM;

    *problems = (struct spec_problems){0};
    rd.sink = (struct spec_sink){.add = reader_problem, .ctx = &rd};
    rd.values = json_object();
    rd.origin = json_object();
    rd.failed = json_object();
    if (!spec || !rd.values || !rd.origin || !rd.failed)
        goto fail;
    r = read_tree(&rd, text, bytes);
    if (r == 0)
        r = resolve(&rd, spec);
    spec_problems_sort(problems);
    if (opts->more && (r == 0 || r == -EINVAL) && tell_more(&rd, opts->more) < 0)
        r = -ENOMEM;
    if (r < 0)
        goto fail;
    r = -EINVAL;
    if (has_problem(problems)) {
        if (opts->more) {
            opts->more->draft = spec;
            spec = NULL;
        }
        goto fail;
    }
    r = -ENOMEM;
    if (ret_resolved && !(resolved = resolved_text(&rd)))
        goto fail;
    if (ret_user && !(user = user_text(&rd)))
        goto fail;
    reader_fini(&rd);
    *ret_spec = spec;
    if (ret_user)
        *ret_user = user;
    if (ret_resolved)
        *ret_resolved = resolved;
    return 0;
fail:
    free(user);
    free(resolved);
    spec_free(spec);
    reader_fini(&rd);
    return r;
}
