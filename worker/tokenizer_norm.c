/* tokenizer_norm.c - see tokenizer_norm.h. */
#include "worker/tokenizer_norm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/tokenizer_nfc.h"

enum { MAX_STEPS = 32, MAX_DEPTH = 8 };

struct step {
    enum { STEP_PREPEND, STEP_REPLACE, STEP_NFC } kind;
    char *from, *to; /* to: what is prepended or put in place */
    size_t from_n, to_n;
};

struct normalizer {
    struct step steps[MAX_STEPS];
    size_t n;
};

static int copy(const json_t *json, char **ret, size_t *ret_n)
{
    *ret_n = json_string_length(json);
    *ret = malloc(*ret_n + 1);
    if (!*ret)
        return -ENOMEM;
    memcpy(*ret, json_string_value(json), *ret_n + 1);
    return 0;
}

static int read_replace(const json_t *json, struct step *st, struct err *err)
{
    const json_t *from = json_object_get(json_object_get(json, "pattern"), "String");
    const json_t *to = json_object_get(json, "content");

    if (!json_is_string(from) || json_string_length(from) == 0 || !json_is_string(to))
        return err_set(
            err, -EINVAL,
            "normalizer Replace: only a pattern that is a non-empty String is supported");
    st->kind = STEP_REPLACE;
    const int r = copy(from, &st->from, &st->from_n);
    return r ? r : copy(to, &st->to, &st->to_n);
}

static int read_step(const json_t *json, struct normalizer *z, int depth, struct err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));

    if (!json || json_is_null(json))
        return 0;
    if (!type)
        return err_set(err, -EINVAL, "normalizer has no type");
    if (depth > MAX_DEPTH || z->n == MAX_STEPS)
        return err_set(err, -EINVAL, "normalizer has more than %d steps or %d levels", MAX_STEPS,
                       MAX_DEPTH);
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(json, "normalizers");
        if (!json_is_array(list))
            return err_set(err, -EINVAL, "normalizer Sequence: normalizers is not a list");
        for (size_t i = 0; i < json_array_size(list); i++) {
            const int r = read_step(json_array_get(list, i), z, depth + 1, err);
            if (r)
                return r;
        }
        return 0;
    }
    struct step *st = &z->steps[z->n++];
    if (!strcmp(type, "Prepend")) {
        const json_t *to = json_object_get(json, "prepend");
        if (!json_is_string(to))
            return err_set(err, -EINVAL, "normalizer Prepend: prepend is not a string");
        st->kind = STEP_PREPEND;
        return copy(to, &st->to, &st->to_n);
    }
    if (!strcmp(type, "Replace"))
        return read_replace(json, st, err);
    if (!strcmp(type, "NFC")) {
        st->kind = STEP_NFC;
        return 0;
    }
    return err_set(err, -EINVAL,
                   "normalizer \"%.40s\" is not supported (Prepend, Replace, NFC and Sequence are)",
                   type);
}

int normalizer_new(const json_t *json, struct normalizer **ret, struct err *err)
{
    struct normalizer *z = calloc(1, sizeof *z);
    if (!z)
        return -ENOMEM;
    const int r = read_step(json, z, 0, err);
    if (r) {
        normalizer_free(z);
        return r;
    }
    *ret = z;
    return 0;
}

void normalizer_free(struct normalizer *z)
{
    if (!z)
        return;
    for (size_t i = 0; i < z->n; i++) {
        free(z->steps[i].from);
        free(z->steps[i].to);
    }
    free(z);
}

static int replace(const struct step *st, const char *s, size_t n, struct text *out)
{
    int r = 0;
    while (n > 0 && !r) {
        const char *hit = memmem(s, n, st->from, st->from_n);
        const size_t k = hit ? (size_t)(hit - s) : n;
        r = text_add(out, s, k);
        s += k;
        n -= k;
        if (!r && hit) {
            r = text_add(out, st->to, st->to_n);
            s += st->from_n;
            n -= st->from_n;
        }
    }
    return r;
}

int normalizer_run(const struct normalizer *z, const char *s, size_t n, struct text *out,
                   struct text *work)
{
    out->n = 0;
    int r = text_add(out, s, n);
    for (size_t i = 0; i < z->n && !r; i++) {
        const struct step *st = &z->steps[i];
        const struct text in = *out;
        *out = *work;
        *work = in;
        out->n = 0;
        if (st->kind == STEP_REPLACE) {
            r = replace(st, in.s, in.n, out);
        } else if (st->kind == STEP_NFC) {
            r = tokenizer_nfc(in.s, in.n, out);
        } else {
            r = in.n ? text_add(out, st->to, st->to_n) : 0;
            if (!r)
                r = text_add(out, in.s, in.n);
        }
    }
    return r;
}
