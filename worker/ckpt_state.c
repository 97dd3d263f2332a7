/* ckpt_state.c - see ckpt_state.h. */
#include "worker/ckpt_state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/sha256.h"
#include "proto/spec_key.h"

enum { STATE_VERSION = 1 };

static void put_hex(struct text_out *t, const char *key, const uint8_t digest[32])
{
    char hex[SHA256_HEX];

    sha256_hex(digest, hex);
    text_out_add(t, "  \"%s\": \"%s\",\n", key, hex);
}

/* Doubles as C hexadecimal: what comes back is the same to the last bit, always. */
static void put_double(struct text_out *t, const char *key, double v)
{
    text_out_add(t, "  \"%s\": \"%a\",\n", key, v);
}

static void put_adapter(struct text_out *t, const struct moments_shape *a)
{
    text_out_add(t, "  \"n_parameters\": %lld,\n  \"optim\": \"%s\",\n", (long long)a->n,
                 spec_word_text(spec_optim_words, a->optim));
    if (a->optim == SPEC_ADAMW_8BIT)
        text_out_add(t, "  \"n_blocks\": %lld,\n  \"n_float\": %lld,\n", (long long)a->n_blocks,
                     (long long)a->n_float);
}

void ckpt_state_print(const struct ckpt_state *s, const uint8_t tensors[32], struct text_out *out)
{
    uint8_t check[SHA256_BYTES];
    char hex[SHA256_HEX];

    text_out_add(out, "{\n  \"v\": %d,\n  \"global_step\": %lld,\n  \"attempt\": %u,\n",
                 STATE_VERSION, (long long)s->global_step, s->attempt);
    text_out_add(out, "  \"num_tokens\": %lld,\n", (long long)s->num_tokens);
    put_adapter(out, &s->adapter);
    put_double(out, "loss_sum", s->loss_sum);
    put_double(out, "window_examples", s->window.examples);
    text_out_add(out, "  \"window_steps\": %lld,\n  \"window_mean\": [",
                 (long long)s->window.steps);
    for (int k = 0; k < METRICS; k++)
        text_out_add(out, "%s\"%a\"", k > 0 ? ", " : "", s->window.mean[k]);
    text_out_add(out, "],\n  \"token_budget\": %lld,\n  \"ranks\": %u,\n  \"threads\": %d,\n",
                 (long long)s->token_budget, s->ranks, s->threads);
    text_out_add(out, "  \"backend\": ");
    text_out_json(out, s->backend);
    text_out_add(out, ",\n  \"isa\": ");
    text_out_json(out, s->isa);
    text_out_add(out, ",\n");
    put_hex(out, "spec_sha256", s->spec_digest);
    put_hex(out, "data_sha256", s->data_digest);
    put_hex(out, "model_sha256", s->model_digest);
    put_hex(out, "state_sha256", tensors);
    if (out->error < 0)
        return;
    sha256_of(out->p, out->bytes, check);
    sha256_hex(check, hex);
    text_out_add(out, "  \"check\": \"%s\"\n}\n", hex);
}

static bool check_ok(const char *text, size_t bytes)
{
    static const char key[] = "  \"check\": \"";
    const size_t tail = sizeof key - 1 + 64 + strlen("\"\n}\n");
    uint8_t digest[SHA256_BYTES];
    char hex[SHA256_HEX];
    const char *at;

    if (bytes < tail)
        return false;
    at = text + bytes - tail;
    sha256_of(text, bytes - tail, digest);
    sha256_hex(digest, hex);
    return memcmp(at, key, sizeof key - 1) == 0 && memcmp(at + sizeof key - 1, hex, 64) == 0;
}

static bool get_int(const json_t *o, const char *key, int64_t least, int64_t most, int64_t *ret)
{
    const json_t *v = json_object_get(o, key);

    *ret = json_integer_value(v);
    return json_is_integer(v) && *ret >= least && *ret <= most;
}

static bool as_double(const json_t *v, double *ret)
{
    const char *s = json_string_value(v);
    char *end = NULL;

    if (s == NULL || *s == 0)
        return false;
    *ret = strtod(s, &end);
    return *end == 0;
}

static bool get_text(const json_t *o, const char *key, char *ret, size_t size)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s != NULL && strlen(s) < size && memcpy(ret, s, strlen(s) + 1) != NULL;
}

static bool get_hex(const json_t *o, const char *key, uint8_t ret[32])
{
    const char *s = json_string_value(json_object_get(o, key));

    if (s == NULL || strlen(s) != 64 || strspn(s, "0123456789abcdef") != 64)
        return false;
    for (int i = 0; i < 32; i++) {
        const char pair[3] = {s[2 * i], s[2 * i + 1], 0};
        ret[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return true;
}

static bool get_window(const json_t *o, struct metrics_window *w)
{
    const json_t *mean = json_object_get(o, "window_mean");
    bool ok = json_array_size(mean) == METRICS &&
              as_double(json_object_get(o, "window_examples"), &w->examples) &&
              get_int(o, "window_steps", 0, INT64_MAX, &w->steps);

    for (int k = 0; ok && k < METRICS; k++)
        ok = as_double(json_array_get(mean, (size_t)k), &w->mean[k]);
    return ok;
}

/* By the one name that is written. */
static bool get_optim(const json_t *v, enum spec_optim *ret)
{
    static const enum spec_optim all[] = {SPEC_ADAMW_TORCH, SPEC_ADAMW_8BIT};
    const char *s = json_string_value(v);

    for (size_t i = 0; s != NULL && i < sizeof all / sizeof *all; i++) {
        *ret = all[i];
        if (strcmp(s, spec_word_text(spec_optim_words, all[i])) == 0)
            return true;
    }
    return false;
}

/* No optim: a checkpoint of release 0.1. */
static bool get_adapter(const json_t *o, struct ckpt_state *s)
{
    const json_t *optim = json_object_get(o, "optim");
    struct moments_shape *a = &s->adapter;

    s->names_optim = optim != NULL;
    if (!get_int(o, "n_parameters", 1, INT64_MAX, &a->n))
        return false;
    if (optim != NULL && !get_optim(optim, &a->optim))
        return false;
    if (a->optim == SPEC_ADAMW_8BIT && (!get_int(o, "n_blocks", 1, INT64_MAX, &a->n_blocks) ||
                                        !get_int(o, "n_float", 0, INT64_MAX, &a->n_float)))
        return false;
    return moments_shape_valid(a);
}

int ckpt_state_parse(const char *text, size_t bytes, struct ckpt_state *ret, uint8_t tensors[32])
{
    struct ckpt_state s = {0};
    int64_t v, attempt, ranks, threads;
    json_t *o;
    bool ok;

    if (!check_ok(text, bytes))
        return -EBADMSG;
    o = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    ok = json_is_object(o) && get_int(o, "v", STATE_VERSION, STATE_VERSION, &v) &&
         get_int(o, "global_step", 0, INT64_MAX, &s.global_step) &&
         get_int(o, "attempt", 1, UINT32_MAX, &attempt) &&
         get_int(o, "num_tokens", 0, INT64_MAX, &s.num_tokens) && get_adapter(o, &s) &&
         get_int(o, "token_budget", 1, INT32_MAX, &s.token_budget) &&
         get_int(o, "ranks", 1, LIMIT_RANKS, &ranks) &&
         get_int(o, "threads", 1, INT32_MAX, &threads) &&
         as_double(json_object_get(o, "loss_sum"), &s.loss_sum) && get_window(o, &s.window) &&
         get_text(o, "backend", s.backend, sizeof s.backend) &&
         get_text(o, "isa", s.isa, sizeof s.isa) && get_hex(o, "spec_sha256", s.spec_digest) &&
         get_hex(o, "data_sha256", s.data_digest) && get_hex(o, "model_sha256", s.model_digest) &&
         get_hex(o, "state_sha256", tensors);
    json_decref(o);
    if (!ok)
        return -EBADMSG;
    s.attempt = (uint32_t)attempt;
    s.ranks = (uint32_t)ranks;
    s.threads = (int)threads;
    *ret = s;
    return 0;
}

/* "checkpoint-50" -> 50; -1 for any other name. */
static int64_t step_of(const char *name)
{
    static const char prefix[] = "checkpoint-";
    const char *digits = name + sizeof prefix - 1;
    char *end;
    long long v;

    if (strncmp(name, prefix, sizeof prefix - 1) != 0 || *digits < '0' || *digits > '9')
        return -1;
    errno = 0;
    v = strtoll(digits, &end, 10);
    return *end == 0 && errno == 0 ? v : -1;
}

static int add_attempt(const char *output_dir, uint32_t attempt, struct ckpt_place **v, size_t *n)
{
    char path[PATH_MAX];

    if (snprintf(path, sizeof path, "%s/attempts/%u", output_dir, attempt) >= (int)sizeof path)
        return -ENAMETOOLONG;
    DIR *dir = opendir(path);
    if (dir == NULL)
        return -errno;
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        const int64_t step = step_of(e->d_name);
        struct ckpt_place *more = step >= 0 ? realloc(*v, (*n + 1) * sizeof **v) : *v;
        if (step < 0)
            continue;
        if (more == NULL) {
            closedir(dir);
            return -ENOMEM;
        }
        *v = more;
        more[(*n)++] = (struct ckpt_place){step, attempt};
    }
    closedir(dir);
    return 0;
}

static int best_first(const void *a, const void *b)
{
    const struct ckpt_place *x = a, *y = b;

    if (x->step != y->step)
        return x->step > y->step ? -1 : 1;
    return x->attempt > y->attempt ? -1 : x->attempt < y->attempt;
}

int ckpt_list(const char *output_dir, uint32_t last, struct ckpt_place **ret, size_t *ret_n)
{
    uint32_t *attempts = NULL;
    struct ckpt_place *v = NULL;
    size_t n_attempts = 0, n = 0;
    int r = rundir_attempts(output_dir, &attempts, &n_attempts);

    for (size_t i = 0; r == 0 && i < n_attempts && attempts[i] <= last; i++)
        r = add_attempt(output_dir, attempts[i], &v, &n);
    free(attempts);
    if (r < 0) {
        free(v);
        return r;
    }
    if (n > 0)
        qsort(v, n, sizeof *v, best_first);
    *ret = v;
    *ret_n = n;
    return 0;
}
