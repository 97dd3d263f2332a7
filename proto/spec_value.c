/* spec_value.c - see spec_value.h. */
#include "proto/spec_value.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/spec_near.h"

enum { TEXT_ROOM = 512, PATH_ROOM = 256 };

static void sink_text(struct spec_sink *sink, const char *path, bool warning, const char *fmt,
                      va_list ap)
{
    char text[TEXT_ROOM];
    (void)vsnprintf(text, sizeof text, fmt, ap);
    sink->add(sink->ctx, path, warning, text);
}

void spec_sink_add(struct spec_sink *sink, const char *path, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    sink->problems++;
    sink_text(sink, path, false, fmt, ap);
    va_end(ap);
}

void spec_sink_note(struct spec_sink *sink, const char *path, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    sink_text(sink, path, true, fmt, ap);
    va_end(ap);
}

const char *spec_value_show(const json_t *v, char *buf, size_t room)
{
    if (json_is_real(v)) {
        (void)snprintf(buf, room, "%g", json_real_value(v));
        return buf;
    }
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
    (void)snprintf(buf, room, "%.60s%s", text ? text : "?", text && strlen(text) > 60 ? "..." : "");
    free(text);
    return buf;
}

static void word_list(const struct spec_word *words, char *buf, size_t room)
{
    size_t n = 0;
    buf[0] = '\0';
    for (; words->text && n < room; words++)
        n += (size_t)snprintf(buf + n, room - n, "%s%s", n ? ", " : "", words->text);
}

static json_t *check_bool(const char *path, const json_t *v, bool or_auto, struct spec_sink *sink)
{
    char buf[128];
    const char *s = json_string_value(v);
    if (json_is_boolean(v))
        return json_boolean(json_is_true(v));
    if (or_auto && s && strcmp(s, "auto") == 0)
        return json_string("auto");
    static const char *const old[] = {"yes", "no", "on", "off", "Yes", "No", "On", "Off", "y", "n"};
    for (size_t i = 0; s && i < sizeof old / sizeof old[0]; i++) {
        if (strcmp(s, old[i]) == 0) {
            spec_sink_add(sink, path, "%s: `%s` is a text in YAML 1.2: write true or false", path,
                          s);
            return NULL;
        }
    }
    spec_sink_add(sink, path, "%s: must be true%s false%s, not %s", path, or_auto ? "," : " or",
                  or_auto ? " or auto" : "", spec_value_show(v, buf, sizeof buf));
    return NULL;
}

static bool looks_like_number(const char *s)
{
    char *end = NULL;
    if (!s || !*s)
        return false;
    (void)strtod(s, &end);
    return *end == '\0';
}

/* The number in v, or false with the problem told. */
static bool check_number(const struct spec_key *k, const char *path, const json_t *v,
                         struct spec_sink *sink, double *ret)
{
    char buf[128];
    if (!json_is_number(v)) {
        if (looks_like_number(json_string_value(v)))
            spec_sink_add(sink, path, "%s: %s is a text: write the number without quotes", path,
                          spec_value_show(v, buf, sizeof buf));
        else
            spec_sink_add(sink, path, "%s: must be a number, not %s", path,
                          spec_value_show(v, buf, sizeof buf));
        return false;
    }
    double d = json_number_value(v);
    if (!(d >= k->lo && d <= k->hi) || (k->above && !(d > k->lo))) {
        if (k->above && d <= k->lo)
            spec_sink_add(sink, path, "%s: must be more than %g, not %s", path, k->lo,
                          spec_value_show(v, buf, sizeof buf));
        else if (d < k->lo)
            spec_sink_add(sink, path, "%s: must be at least %g, not %s", path, k->lo,
                          spec_value_show(v, buf, sizeof buf));
        else
            spec_sink_add(sink, path, "%s: must be at most %.15g, not %s", path, k->hi,
                          spec_value_show(v, buf, sizeof buf));
        return false;
    }
    *ret = d;
    return true;
}

static json_t *check_whole(const struct spec_key *k, const char *path, const json_t *v,
                           struct spec_sink *sink)
{
    char buf[128];
    double d;
    if (!check_number(k, path, v, sink, &d))
        return NULL;
    if (json_is_integer(v))
        return json_integer(json_integer_value(v));
    if (d != floor(d) || fabs(d) > 9007199254740992.0) {
        spec_sink_add(sink, path, "%s: must be a whole number, not %s", path,
                      spec_value_show(v, buf, sizeof buf));
        return NULL;
    }
    return json_integer((json_int_t)d);
}

static const char *near_word(const struct spec_word *words, const char *s)
{
    enum { MOST = 16 };
    const char *list[MOST];
    size_t n = 0;
    for (; words->text && n < MOST; words++)
        list[n++] = words->text;
    const char *near = s ? spec_near_word(s, list, n) : NULL;
    const size_t bytes = near ? strlen(near) : 0; /* adamw_torch_8bit is no adamw_torch */
    return near && strncmp(s, near, bytes) == 0 && s[bytes] == '_' ? NULL : near;
}

static json_t *check_word(const char *path, const struct spec_word *words, const json_t *v,
                          struct spec_sink *sink)
{
    char buf[128], all[256];
    const char *s = json_string_value(v);
    for (const struct spec_word *w = words; s && w->text; w++)
        if (strcmp(s, w->text) == 0)
            return json_string(spec_word_text(words, w->value));
    const char *near = near_word(words, s);
    word_list(words, all, sizeof all);
    spec_sink_add(sink, path, "%s: must be one of %s; not %s%s%s%s", path, all,
                  spec_value_show(v, buf, sizeof buf), near ? "; did you mean " : "",
                  near ? near : "", near ? "?" : "");
    return NULL;
}

static json_t *check_string(const char *path, const json_t *v, struct spec_sink *sink)
{
    char buf[128];
    const char *s = json_string_value(v);
    if (!s) {
        spec_sink_add(sink, path, "%s: must be a text, not %s", path,
                      spec_value_show(v, buf, sizeof buf));
        return NULL;
    }
    if (strlen(s) != json_string_length(v) || strlen(s) >= LIMIT_PATH) {
        spec_sink_add(sink, path, "%s: longer than 4095 bytes, or with a zero byte in it", path);
        return NULL;
    }
    for (const char *p = s; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            spec_sink_add(sink, path, "%s: has a control character in it", path);
            return NULL;
        }
    }
    return json_string(s);
}

static bool check_module(const char *path, const char *s, struct spec_sink *sink)
{
    static const char *const linears[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                          "gate_proj", "up_proj", "down_proj"};
    enum { N = sizeof linears / sizeof linears[0] };
    const char *last = strrchr(s, '.') ? strrchr(s, '.') + 1 : s;
    for (size_t i = 0; i < N; i++)
        if (strcmp(last, linears[i]) == 0 && strspn(s, "abcdefghijklmnopqrstuvwxyz"
                                                       "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                       "0123456789_.") == strlen(s))
            return true;
    if (strcmp(last, "lm_head") == 0 || strcmp(last, "embed_tokens") == 0) {
        spec_sink_add(sink, path, "%s: LoRA on %s is not supported: leave it out", path, last);
        return false;
    }
    const char *near = spec_near_word(last, linears, N);
    spec_sink_add(sink, path,
                  near ? "%s: no linear is called %.60s; did you mean %s?"
                       : "%s: no linear is called %.60s; there are q_proj, k_proj, v_proj, o_proj, "
                         "gate_proj, up_proj, down_proj%s",
                  path, s, near ? near : "");
    return false;
}

static json_t *check_modules(const char *path, const json_t *v, struct spec_sink *sink)
{
    if (json_is_array(v) && json_array_size(v) == 1 && json_is_string(json_array_get(v, 0)) &&
        strcmp(json_string_value(json_array_get(v, 0)), "all-linear") == 0)
        v = json_array_get(v, 0); /* as TRL does */
    if (json_is_string(v)) {
        if (strcmp(json_string_value(v), "all-linear") == 0)
            return json_string("all-linear");
        spec_sink_add(sink, path,
                      "%s: a text other than all-linear is a regular expression in PEFT: write a "
                      "list, [%.60s]",
                      path, json_string_value(v));
        return NULL;
    }
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n == 0 || n > LIMIT_MODULES) {
        spec_sink_add(sink, path, "%s: must be all-linear or a list of 1 to %d module names", path,
                      LIMIT_MODULES);
        return NULL;
    }
    json_t *out = json_array();
    bool ok = true;
    for (size_t i = 0; i < n; i++) {
        char at[PATH_ROOM];
        (void)snprintf(at, sizeof at, "%s.%zu", path, i);
        const char *s = json_string_value(json_array_get(v, i));
        if (!s || strlen(s) >= LIMIT_NAME) {
            spec_sink_add(sink, at, "%s: must be a module name", at);
            ok = false;
        } else if (!check_module(at, s, sink)) {
            ok = false;
        } else {
            json_array_append_new(out, json_string(s));
        }
    }
    if (ok)
        return out;
    json_decref(out);
    return NULL;
}

static const struct spec_key source_keys[] = {
    {"path", SPEC_KIND_STRING},
    {"format", SPEC_KIND_WORD, .fallback = {"\"auto\"", "\"auto\""}, .words = spec_format_words},
    {"preference", SPEC_KIND_WORD, .fallback = {"\"none\"", "\"none\""},
     .words = spec_preference_words},
    {"template", SPEC_KIND_WORD, .fallback = {"\"none\"", "\"none\""},
     .words = spec_template_words},
    {"samples", SPEC_KIND_INT64, .fallback = {"0", "0"}, .lo = 0, .hi = 1e12},
};
enum { N_SOURCE_KEYS = sizeof source_keys / sizeof source_keys[0] };

static json_t *check_field(const struct spec_key *k, const char *at, const json_t *v,
                           struct spec_sink *sink)
{
    if (k->kind == SPEC_KIND_STRING)
        return check_string(at, v, sink);
    if (k->kind == SPEC_KIND_WORD)
        return check_word(at, k->words, v, sink);
    return check_whole(k, at, v, sink);
}

static void check_source_keys(const char *path, const json_t *v, struct spec_sink *sink)
{
    const char *names[N_SOURCE_KEYS];
    const char *key;
    json_t *value;

    for (size_t i = 0; i < N_SOURCE_KEYS; i++)
        names[i] = source_keys[i].name;
    json_object_foreach((json_t *)v, key, value)
    {
        bool known = false;
        for (size_t i = 0; i < N_SOURCE_KEYS && !known; i++)
            known = strcmp(names[i], key) == 0;
        if (known)
            continue;
        char at[PATH_ROOM];
        (void)snprintf(at, sizeof at, "%s.%.100s", path, key);
        const char *near = spec_near_word(key, names, N_SOURCE_KEYS);
        const char *hint = spec_near_entry_hint(key);
        if (hint)
            spec_sink_add(sink, at, "%s: unknown key; %s", at, hint);
        else if (near)
            spec_sink_add(sink, at, "%s: unknown key; did you mean %s?", at, near);
        else
            spec_sink_add(sink, at,
                          "%s: unknown key; an entry has path, format, preference, template, "
                          "samples",
                          at);
    }
}

static json_t *check_source(const char *path, const json_t *v, struct spec_sink *sink)
{
    if (!json_is_object(v)) {
        spec_sink_add(sink, path, "%s: must be an entry like {path: FILE, format: auto}", path);
        return NULL;
    }
    int before = sink->problems;
    check_source_keys(path, v, sink);
    json_t *out = json_object();
    for (size_t i = 0; i < N_SOURCE_KEYS; i++) {
        const struct spec_key *k = &source_keys[i];
        const json_t *field = json_object_get(v, k->name);
        char at[PATH_ROOM];
        (void)snprintf(at, sizeof at, "%s.%s", path, k->name);
        if (!field && !k->fallback[0])
            spec_sink_add(sink, path, "%s: `path` is missing", path);
        else if (!field)
            json_object_set_new(out, k->name, json_loads(k->fallback[0], JSON_DECODE_ANY, NULL));
        else
            json_object_set_new(out, k->name, check_field(k, at, field, sink));
    }
    if (sink->problems == before)
        return out;
    json_decref(out);
    return NULL;
}

static json_t *check_sources(const char *path, const json_t *v, struct spec_sink *sink)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n == 0 || n > LIMIT_SOURCES) {
        spec_sink_add(sink, path, "%s: must be a list of 1 to %d entries like {path: FILE}", path,
                      LIMIT_SOURCES);
        return NULL;
    }
    int before = sink->problems;
    json_t *out = json_array();
    for (size_t i = 0; i < n; i++) {
        char at[PATH_ROOM];
        (void)snprintf(at, sizeof at, "%s.%zu", path, i);
        json_t *one = check_source(at, json_array_get(v, i), sink);
        if (one)
            json_array_append_new(out, one);
    }
    if (sink->problems == before)
        return out;
    json_decref(out);
    return NULL;
}

static json_t *check_eval(const char *path, const json_t *v, struct spec_sink *sink)
{
    static const struct spec_key split = {"split_from_train", SPEC_KIND_INT64, .lo = 1, .hi = 1e12};
    static const char *const names[] = {"split_from_train"};
    if (json_is_null(v))
        return json_null();
    if (json_is_array(v))
        return check_sources(path, v, sink);
    if (!json_is_object(v)) {
        spec_sink_add(sink, path,
                      "%s: must be {split_from_train: N} or a list of entries like train:", path);
        return NULL;
    }
    json_t *n = NULL;
    const char *key;
    json_t *value;
    int before = sink->problems;
    json_object_foreach((json_t *)v, key, value)
    {
        char at[PATH_ROOM];
        (void)snprintf(at, sizeof at, "%s.%.100s", path, key);
        if (strcmp(key, "split_from_train") == 0) {
            n = check_whole(&split, at, value, sink);
        } else {
            const char *near = spec_near_word(key, names, 1);
            spec_sink_add(sink, at, "%s: unknown key; %s", at,
                          near ? "did you mean split_from_train?"
                               : "write {split_from_train: N} or a list of entries like train:");
        }
    }
    if (!n && sink->problems == before)
        spec_sink_add(sink, path, "%s: empty: write {split_from_train: N}", path);
    if (sink->problems == before)
        return json_pack("{s:o}", "split_from_train", n);
    json_decref(n);
    return NULL;
}

json_t *spec_value_check(const struct spec_key *k, const json_t *v, struct spec_sink *sink)
{
    double d;
    switch (k->kind) {
    case SPEC_KIND_BOOL:
        return check_bool(k->name, v, false, sink);
    case SPEC_KIND_BOOL_AUTO:
        return check_bool(k->name, v, true, sink);
    case SPEC_KIND_INT:
    case SPEC_KIND_INT64:
    case SPEC_KIND_UINT64:
        return check_whole(k, k->name, v, sink);
    case SPEC_KIND_REAL:
        return check_number(k, k->name, v, sink, &d) ? json_real(d) : NULL;
    case SPEC_KIND_WORD:
        return check_word(k->name, k->words, v, sink);
    case SPEC_KIND_STRING:
        return check_string(k->name, v, sink);
    case SPEC_KIND_MODULES:
        return check_modules(k->name, v, sink);
    case SPEC_KIND_SOURCES:
        return check_sources(k->name, v, sink);
    case SPEC_KIND_EVAL:
        return check_eval(k->name, v, sink);
    }
    return NULL;
}

void spec_value_fill(json_t *values)
{
    const char *method = json_string_value(json_object_get(values, "method"));
    const int m = method && strcmp(method, "sft") == 0 ? SPEC_SFT : SPEC_DPO;
    for (size_t i = 0; i < spec_n_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (k->later && (k->methods & (1u << m)) && !json_object_get(values, k->name))
            json_object_set_new(values, k->name, json_loads(k->fallback[m], JSON_DECODE_ANY, NULL));
    }
}

static int word_value(const struct spec_word *words, const json_t *v)
{
    const char *s = json_string_value(v);
    for (; words->text; words++)
        if (s && strcmp(words->text, s) == 0)
            return words->value;
    return 0;
}

static int store_sources(const json_t *list, struct spec_source *out, int *n)
{
    for (size_t i = 0; i < json_array_size(list) && i < LIMIT_SOURCES; i++) {
        const json_t *e = json_array_get(list, i);
        struct spec_source *s = &out[i];
        s->path = strdup(json_string_value(json_object_get(e, "path")));
        if (!s->path)
            return -ENOMEM;
        *n = (int)i + 1;
        s->format = (enum spec_format)word_value(spec_format_words, json_object_get(e, "format"));
        s->preference = (enum spec_preference)word_value(spec_preference_words,
                                                         json_object_get(e, "preference"));
        s->template =
            (enum spec_template)word_value(spec_template_words, json_object_get(e, "template"));
        s->samples = json_integer_value(json_object_get(e, "samples"));
    }
    return 0;
}

static int store_modules(const json_t *v, struct spec *spec)
{
    spec->lora_all_linear = json_is_string(v);
    for (size_t i = 0; i < json_array_size(v) && i < LIMIT_MODULES; i++) {
        char *s = strdup(json_string_value(json_array_get(v, i)));
        if (!s)
            return -ENOMEM;
        spec->lora_target_modules[spec->n_lora_target_modules++] = s;
    }
    return 0;
}

static int store_eval(const json_t *v, struct spec *spec)
{
    spec->eval_split_from_train = json_integer_value(json_object_get(v, "split_from_train"));
    return store_sources(v, spec->eval, &spec->n_eval);
}

int spec_value_store(const struct spec_key *k, const json_t *v, struct spec *spec)
{
    char *at = (char *)spec + k->offset;
    switch (k->kind) {
    case SPEC_KIND_BOOL:
        *(bool *)at = json_is_true(v);
        return 0;
    case SPEC_KIND_BOOL_AUTO:
        ((bool *)at)[0] = json_is_true(v);
        ((bool *)at)[1] = json_is_string(v);
        return 0;
    case SPEC_KIND_INT:
        *(int *)at = (int)json_integer_value(v);
        return 0;
    case SPEC_KIND_INT64:
        *(int64_t *)at = json_integer_value(v);
        return 0;
    case SPEC_KIND_UINT64:
        *(uint64_t *)at = (uint64_t)json_integer_value(v);
        return 0;
    case SPEC_KIND_REAL:
        *(double *)at = json_number_value(v);
        return 0;
    case SPEC_KIND_WORD: {
        /* every enum of struct spec is an int here: memcpy keeps aliasing rules */
        int value = word_value(k->words, v);
        memcpy(at, &value, sizeof value);
        return 0;
    }
    case SPEC_KIND_STRING:
        return (*(char **)at = strdup(json_string_value(v))) ? 0 : -ENOMEM;
    case SPEC_KIND_MODULES:
        return store_modules(v, spec);
    case SPEC_KIND_SOURCES:
        return store_sources(v, spec->train, &spec->n_train);
    case SPEC_KIND_EVAL:
        return store_eval(v, spec);
    }
    return 0;
}

static void whole_sources(const char *key, const struct spec *s, const struct spec_source *list,
                          int n, struct spec_sink *sink)
{
    for (int i = 0; i < n; i++) {
        char at[64];
        (void)snprintf(at, sizeof at, "%s.%d", key, i);
        if (list[i].path[0] != '/')
            spec_sink_add(sink, at, "%s.path: must be absolute here", at);
        if (list[i].format == SPEC_FORMAT_PKU && list[i].preference == SPEC_PREF_NONE)
            spec_sink_add(sink, at, "%s: format pku needs preference: better or safe", at);
        if (list[i].preference != SPEC_PREF_NONE && list[i].format != SPEC_FORMAT_PKU &&
            list[i].format != SPEC_FORMAT_AUTO)
            spec_sink_add(sink, at, "%s: preference belongs to format pku only", at);
        if (s->method == SPEC_DPO &&
            (list[i].format == SPEC_FORMAT_TEXT || list[i].format == SPEC_FORMAT_PROMPT_COMPLETION))
            spec_sink_add(sink, at, "%s: method dpo needs rows with a chosen and a rejected reply",
                          at);
    }
}

static void whole_batch(const struct spec *s, struct spec_sink *sink)
{
    int64_t per = s->per_device_train_batch_size, acc = s->gradient_accumulation_steps;
    if ((per > 0) != (acc > 0))
        spec_sink_add(sink, "train_batch_size",
                      "per_device_train_batch_size and gradient_accumulation_steps: both or none");
    if (per > 0 && acc > 0 && per * acc * s->devices != s->train_batch_size)
        spec_sink_add(sink, "train_batch_size",
                      "train_batch_size: %lld is not %lld x %lld x %d devices",
                      (long long)s->train_batch_size, (long long)per, (long long)acc, s->devices);
}

static bool braces_fit(const char *p)
{
    while ((p = strpbrk(p, "{}"))) {
        size_t n = strncmp(p, "{name}", 6) == 0 ? 6 : strncmp(p, "{id}", 4) == 0 ? 4 : 0;
        if (n == 0)
            return false;
        p += n;
    }
    return true;
}

void spec_value_whole(const struct spec *s, struct spec_sink *sink)
{
    if (!*s->name || strlen(s->name) > LIMIT_NAME || strpbrk(s->name, "/{}") || s->name[0] == '.' ||
        s->name[0] == '-')
        spec_sink_add(sink, "name",
                      "name: must be 1 to %d bytes without / { }, not beginning with . or -",
                      LIMIT_NAME);
    if (s->model_dir[0] != '/')
        spec_sink_add(sink, "model_name_or_path", "model_dir: must be absolute here");
    if (s->output_dir[0] != '/')
        spec_sink_add(sink, "output_dir", "output_dir: must be absolute here");
    if (!braces_fit(s->output_dir))
        spec_sink_add(sink, "output_dir", "output_dir: only {name} and {id} may stand in braces");
    if (s->bnb_4bit_quant_type == SPEC_FP4)
        spec_sink_add(sink, "bnb_4bit_quant_type",
                      "bnb_4bit_quant_type: fp4 is not built yet: write nf4");
    if (s->max_steps == 0)
        spec_sink_add(sink, "max_steps",
                      "max_steps: must be 1 or more, or -1 for num_train_epochs");
    if (s->eval_steps > 0 && s->n_eval == 0 && s->eval_split_from_train == 0)
        spec_sink_add(sink, "eval_steps",
                      "eval_steps: there is nothing to evaluate: write eval: "
                      "{split_from_train: 128}, or leave eval_steps out");
    whole_batch(s, sink);
    whole_sources("train", s, s->train, s->n_train, sink);
    whole_sources("eval", s, s->eval, s->n_eval, sink);
}
