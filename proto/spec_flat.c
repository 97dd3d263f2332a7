/* spec_flat.c - see spec_flat.h. */
#include "proto/spec_flat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/spec_near.h"

enum { REASON_ROOM = 400, ENOUGH = 100 /* unknown keys */ };

/* Is v one of the JSON list's values? */
static bool is_listed(const char *list, const json_t *v)
{
    json_t *all = json_loads(list, 0, NULL);
    bool found = false;
    for (size_t i = 0; i < json_array_size(all) && !found; i++)
        found = json_equal(json_array_get(all, i), v);
    json_decref(all);
    return found;
}

static void flat_put(struct spec_flat *f, const char *key, const char *written, json_t *value,
                     struct spec_sink *sink)
{
    const char *before = json_string_value(json_object_get(f->from, key));
    if (before) {
        json_decref(value);
        spec_sink_add(sink, written, "%s: the same as %s, which is given too: keep one", written,
                      before);
        return;
    }
    json_object_set_new(f->values, key, value);
    json_object_set_new(f->from, key, json_string(written));
    if (strcmp(key, written) != 0)
        json_object_set_new(f->aliases, written, json_string(key));
}

static void flat_ignore(struct spec_flat *f, const char *key, const char *reason)
{
    json_array_append_new(f->ignored, json_pack("{s:s,s:s}", "key", key, "reason", reason));
}

/* "a, b" or [a, b] to a list; `all` to all-linear (LLaMA-Factory's lora_target). */
static json_t *turn_words(const json_t *v)
{
    if (!json_is_string(v))
        return json_deep_copy(v);
    const char *s = json_string_value(v);
    if (strcmp(s, "all") == 0)
        return json_string("all-linear");
    json_t *list = json_array();
    while (*s) {
        s += strspn(s, ", ");
        size_t n = strcspn(s, ", ");
        if (n)
            json_array_append_new(list, json_stringn(s, n));
        s += n;
    }
    return list;
}

static void turn_split(struct spec_flat *f, const struct spec_alias *a, const json_t *v,
                       struct spec_sink *sink)
{
    double d = json_number_value(v);
    if (!json_is_number(v) || d < 0 || (d > 0 && d < 1))
        spec_sink_add(sink, a->name,
                      "%s: a share of the rows is not supported: write eval: {split_from_train: N}",
                      a->name);
    else if (d == 0)
        flat_put(f, a->key, a->name, json_null(), sink);
    else
        flat_put(f, a->key, a->name, json_pack("{s:O}", "split_from_train", v), sink);
}

static void flat_alias(struct spec_flat *f, const struct spec_alias *a, const json_t *v,
                       struct spec_sink *sink)
{
    json_t *from;
    switch (a->turn) {
    case SPEC_TURN_SAME:
        flat_put(f, a->key, a->name, json_deep_copy(v), sink);
        break;
    case SPEC_TURN_NOT:
        flat_put(f, a->key, a->name,
                 json_is_boolean(v) ? json_boolean(!json_is_true(v)) : json_deep_copy(v), sink);
        break;
    case SPEC_TURN_WORDS:
        flat_put(f, a->key, a->name, turn_words(v), sink);
        break;
    case SPEC_TURN_SPLIT:
        turn_split(f, a, v, sink);
        break;
    case SPEC_TURN_TRUE:
        from = json_loads(a->from, JSON_DECODE_ANY, NULL);
        if (json_equal(from, v))
            flat_put(f, a->key, a->name, json_loads(a->to, JSON_DECODE_ANY, NULL), sink);
        else if (json_is_null(v) || (json_is_boolean(from) && json_is_false(v)))
            flat_ignore(f, a->name, "says nothing here");
        else
            spec_sink_add(sink, a->name, "%s: %s", a->name,
                          a->otherwise ? a->otherwise : "must be true or false");
        json_decref(from);
        break;
    }
}

static void flat_other(struct spec_flat *f, const struct spec_other *o, const json_t *v,
                       struct spec_sink *sink)
{
    char show[128], reason[REASON_ROOM];
    if (!o->neutral) {
        flat_ignore(f, o->name, o->reason);
        spec_sink_note(sink, o->name, "%s: without effect here: %s", o->name, o->reason);
    } else if (is_listed(o->neutral, v)) {
        (void)snprintf(reason, sizeof reason, "%s is what alignd does anyway",
                       spec_value_show(v, show, sizeof show));
        flat_ignore(f, o->name, reason);
    } else if (strcmp(o->neutral, "[]") == 0) { /* the value does not matter (or is a secret) */
        spec_sink_add(sink, o->name, "%s: %s", o->name, o->reason);
    } else {
        spec_sink_add(sink, o->name, "%s: %s is not supported: %s", o->name,
                      spec_value_show(v, show, sizeof show), o->reason);
    }
}

static void flat_unknown(const char *key, struct spec_sink *sink)
{
    const char *hint = spec_near_hint(key), *near = spec_near_key(key);
    if (hint)
        spec_sink_add(sink, key, "%.100s: unknown key; %s", key, hint);
    else if (near)
        spec_sink_add(sink, key, "%.100s: unknown key; did you mean %s?", key, near);
    else
        spec_sink_add(sink, key, "%.100s: unknown key; docs/JOB_FILE.md lists all keys", key);
}

/* axolotl's qlora is 4-bit NF4 with double quantization, always. */
static bool flat_qlora(struct spec_flat *f, const json_t *root, const char *key, const json_t *v,
                       struct spec_sink *sink)
{
    if (strcmp(key, "adapter") != 0 || !json_is_string(v) ||
        strcmp(json_string_value(v), "qlora") != 0)
        return false;
    const json_t *four = json_object_get(root, "load_in_4bit");
    if (json_is_false(four))
        spec_sink_add(sink, key, "adapter: qlora with load_in_4bit: false: keep one");
    else if (!four)
        flat_put(f, "load_in_4bit", key, json_true(), sink);
    if (!json_object_get(root, "bnb_4bit_use_double_quant") &&
        !json_object_get(root, "use_bnb_nested_quant"))
        flat_put(f, "bnb_4bit_use_double_quant", key, json_true(), sink);
    flat_ignore(f, key, "alignd always trains a LoRA adapter; load_in_4bit makes it QLoRA");
    return true;
}

/* Where another program's default differs from TRL's, its names alone would change
 * the result: the value has to be written (peers-training.md section 3, trap b). */
static void flat_traps(const json_t *root, struct spec_sink *sink)
{
    const json_t *rank = json_object_get(root, "lora_rank");
    if (json_is_integer(rank) && json_integer_value(rank) != 16 &&
        !json_object_get(root, "lora_alpha"))
        spec_sink_add(sink, "lora_rank",
                      "lora_rank: lora_alpha is missing: LLaMA-Factory takes 2 x lora_rank = %lld, "
                      "TRL 32: write the one you want",
                      (long long)(2 * json_integer_value(rank)));
    if (json_object_get(root, "quantization_bit") &&
        !json_object_get(root, "double_quantization") &&
        !json_object_get(root, "bnb_4bit_use_double_quant"))
        spec_sink_add(sink, "quantization_bit",
                      "quantization_bit: double_quantization is missing: LLaMA-Factory takes true, "
                      "TRL false: write the one you want");
}

static void flat_key(struct spec_flat *f, const json_t *root, const char *key, const json_t *v,
                     struct spec_sink *sink)
{
    const struct spec_key *k = spec_key_find(key);
    if (k && !k->derived) {
        flat_put(f, key, key, json_deep_copy(v), sink);
        return;
    }
    if (flat_qlora(f, root, key, v, sink))
        return;
    for (size_t i = 0; i < spec_n_aliases; i++) {
        if (strcmp(spec_aliases[i].name, key) == 0) {
            flat_alias(f, &spec_aliases[i], v, sink);
            return;
        }
    }
    const struct spec_other *o = spec_other_find(key);
    if (o)
        flat_other(f, o, v, sink);
    else
        flat_unknown(key, sink);
}

int spec_flat_make(const json_t *root, struct spec_flat *flat, struct spec_sink *sink)
{
    const char *key;
    json_t *value;

    *flat = (struct spec_flat){json_object(), json_object(), json_object(), json_array()};
    if (!flat->values || !flat->from || !flat->aliases || !flat->ignored)
        return -ENOMEM;
    json_object_foreach((json_t *)root, key, value)
    {
        if (sink->problems > ENOUGH) {
            spec_sink_add(sink, key, "and so on: this does not look like a job file");
            break;
        }
        flat_key(flat, root, key, value, sink);
    }
    flat_traps(root, sink);
    return 0;
}

void spec_flat_fini(struct spec_flat *flat)
{
    json_decref(flat->values);
    json_decref(flat->from);
    json_decref(flat->aliases);
    json_decref(flat->ignored);
    *flat = (struct spec_flat){0};
}
