/* tokenizer.c - see tokenizer.h: the files of a folder, and what they agree on. */
#include "worker/tokenizer.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/model_file.h"
#include "worker/spm.h"
#include "worker/text.h"
#include "worker/tokenizer_added.h"
#include "worker/tokenizer_json.h"
#include "worker/tokenizer_map.h"
#include "worker/tokenizer_regex.h"
#include "worker/tokenizer_split.h"

/* Gemma's tokenizer.json has 33 MB, the largest known. */
enum { MAX_FILE_BYTES = 256 << 20 };

struct tokenizer {
    struct tokenizer_json *json; /* one of json and spm */
    struct spm *spm;
    struct added *special; /* spm: what is found in a text before it */
    int32_t vocab, bos, eos;
    struct tokenizer_affixes affixes;
    char *chat_template;
};

/* The configuration files of a folder; any may be missing (NULL). */
struct files {
    json_t *tokenizer_config, *special_tokens_map, *config;
};

/* ---- files ---- */

/* -ENOENT says nothing: most files may be missing. */
static int read_file(const char *dir, const char *name, struct text *out, struct err *err)
{
    struct err why;
    char *s = NULL;
    size_t n = 0;
    const int r = model_file_read(dir, name, MAX_FILE_BYTES, &s, &n, &why);

    if (r < 0)
        return r == -ENOENT ? r : err_set(err, r, "%s", why.text);
    text_free(out);
    *out = (struct text){.s = s, .n = n, .cap = n + 1};
    return 0;
}

static int parse_json(const char *dir, const char *name, const struct text *text, size_t flags,
                      json_t **ret, struct err *err)
{
    json_error_t e;
    *ret = json_loadb(text->s, text->n, flags | JSON_ALLOW_NUL, &e);
    if (*ret)
        return 0;
    return err_set(err, -EINVAL, "%s/%s: line %d: %s", dir, name, e.line, e.text);
}

/* A missing file leaves NULL. Whole numbers become reals: model_max_length is 1e30
 * in most tokenizer_config.json files, written as an integer. */
static int read_json(const char *dir, const char *name, json_t **ret, struct err *err)
{
    struct text text = {0};
    int r = read_file(dir, name, &text, err);
    if (!r)
        r = parse_json(dir, name, &text, JSON_DECODE_INT_AS_REAL, ret, err);
    text_free(&text);
    return r == -ENOENT ? 0 : r;
}

/* ---- BOS, EOS ---- */

static int32_t find_id(const struct tokenizer *t, const char *s, size_t n)
{
    if (t->json)
        return tokenizer_json_id(t->json, s, n);
    return spm_id(t->spm, s);
}

/* "x", or {"content": "x"}. */
static const json_t *token_content(const json_t *v)
{
    return json_is_object(v) ? json_object_get(v, "content") : v;
}

/* bos_token / eos_token by name; then the model's own ids; -1: none. */
static int find_special(const struct tokenizer *t, const struct files *f, const char *name,
                        int32_t otherwise, int32_t *ret, struct err *err)
{
    char key[32];
    const json_t *maps[] = {f->tokenizer_config, f->special_tokens_map};

    for (size_t i = 0; i < 2; i++) {
        (void)snprintf(key, sizeof key, "%s_token", name);
        const json_t *v = json_object_get(maps[i], key);
        const json_t *c = token_content(v);
        if (i == 0 && v && json_is_null(v)) { /* Qwen2: no BOS, said aloud */
            *ret = -1;
            return 0;
        }
        if (!json_is_string(c))
            continue;
        *ret = find_id(t, json_string_value(c), json_string_length(c));
        if (*ret < 0)
            return err_set(err, -EINVAL, "%s: %s is \"%.60s\", which is not in the vocabulary",
                           i == 0 ? "tokenizer_config.json" : "special_tokens_map.json", key,
                           json_string_value(c));
        return 0;
    }
    (void)snprintf(key, sizeof key, "%s_token_id", name);
    const json_t *id = json_object_get(f->config, key);
    if (json_is_array(id)) /* Llama 3: several ways to end; the first one ends a text */
        id = json_array_get(id, 0);
    if (json_is_number(id) && json_number_value(id) >= 0 && json_number_value(id) < t->vocab)
        otherwise = (int32_t)json_number_value(id);
    *ret = otherwise;
    return 0;
}

/* transformers 5: add_bos_token or add_eos_token in tokenizer_config.json replaces
 * the post-processor; without a post-processor nothing is added. */
static void find_affixes(struct tokenizer *t, const struct files *f)
{
    const json_t *bos = json_object_get(f->tokenizer_config, "add_bos_token");
    const json_t *eos = json_object_get(f->tokenizer_config, "add_eos_token");
    const bool said = json_is_boolean(bos) || json_is_boolean(eos);
    bool add_bos = json_is_true(bos);

    if (t->json && !said) {
        t->affixes = *tokenizer_json_affixes(t->json);
        return;
    }
    if (t->spm && !json_is_boolean(bos)) /* LlamaTokenizer's default */
        add_bos = true;
    if (add_bos && t->bos >= 0)
        t->affixes.before[t->affixes.n_before++] = t->bos;
    if (json_is_true(eos) && t->eos >= 0)
        t->affixes.after[t->affixes.n_after++] = t->eos;
}

/* ---- chat template ---- */

static int find_chat_template(struct tokenizer *t, const char *dir, const struct files *f,
                              struct err *err)
{
    struct text text = {0};
    const json_t *v = json_object_get(f->tokenizer_config, "chat_template");
    int r = read_file(dir, "chat_template.jinja", &text, err);

    if (r != -ENOENT) {
        t->chat_template = text.s;
        return r;
    }
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++) {
        const json_t *e = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(e, "name"));
        if (name && !strcmp(name, "default")) {
            v = json_object_get(e, "template");
            break;
        }
    }
    if (!json_is_string(v))
        return 0;
    t->chat_template = strdup(json_string_value(v));
    return t->chat_template ? 0 : -ENOMEM;
}

/* ---- SentencePiece ---- */

static int add_special(struct tokenizer *t, const char *content, int32_t id)
{
    const struct added_token token = {.content = content, .n = strlen(content), .id = id};
    const int r = token.n ? added_put(t->special, &token) : 0;
    if (id >= t->vocab)
        t->vocab = id + 1;
    return r;
}

/* What a text may name: control pieces, and the folder's added tokens. */
static int find_spm_special(struct tokenizer *t, const struct files *f)
{
    int r = added_new(&t->special);
    const char *key;
    json_t *value;

    for (int32_t id = 0; id < t->vocab && !r; id++)
        if (spm_is_control(t->spm, id))
            r = add_special(t, spm_piece(t->spm, id), id);
    json_object_foreach(json_object_get(f->tokenizer_config, "added_tokens_decoder"), key, value)
    {
        char *end;
        const long id = strtol(key, &end, 10);
        const char *content = json_string_value(json_object_get(value, "content"));
        if (!r && content && *key && !*end && id >= 0 && id < TOKENIZER_MAX_ID)
            r = add_special(t, content, (int32_t)id);
    }
    return r;
}

static int encode_spm(const struct tokenizer *t, const char *s, size_t n, struct tokens *out)
{
    struct added_parts parts = {0};
    void *room = tokenizer_regex_room();
    int r = room ? added_split(t->special, s, n, room, &parts) : -ENOMEM;

    for (size_t i = 0; i < parts.n && !r; i++) {
        int32_t *ids = &parts.v[i].id;
        size_t k = 1;
        const bool plain = *ids < 0;
        if (plain)
            r = spm_encode(t->spm, s + parts.v[i].off, parts.v[i].n, &ids, &k);
        for (size_t j = 0; j < k && !r; j++)
            r = tokens_put(out, ids[j]);
        if (plain && ids != &parts.v[i].id)
            free(ids);
    }
    free(parts.v);
    tokenizer_regex_room_free(room);
    return r;
}

/* ---- opening ---- */

static int open_files(struct tokenizer *t, const char *dir, struct err *err)
{
    struct text text = {0};
    json_t *root = NULL;
    char message[256] = "";

    int r = read_file(dir, "tokenizer.json", &text, err);
    if (!r)
        r = parse_json(dir, "tokenizer.json", &text, 0, &root, err);
    if (!r) {
        r = tokenizer_json_new(root, &t->json, err);
        if (r == -EINVAL)
            (void)err_prefix(err, r, "%s/tokenizer.json", dir);
    }
    text_free(&text);
    json_decref(root);
    if (r != -ENOENT) {
        t->vocab = r ? 0 : tokenizer_json_end(t->json);
        return r;
    }
    r = read_file(dir, "tokenizer.model", &text, err);
    if (r == -ENOENT)
        return err_set(err, r, "%s: there is no tokenizer.json and no tokenizer.model", dir);
    if (r == 0)
        t->spm = spm_parse(text.s, text.n, message, sizeof message);
    text_free(&text);
    if (r < 0)
        return r;
    if (!t->spm)
        return err_set(err, -EINVAL, "%s/tokenizer.model: no SentencePiece model: %s", dir,
                       message);
    t->vocab = spm_vocab(t->spm);
    return 0;
}

static int read_folder(struct tokenizer *t, const char *dir, struct files *f, struct err *err)
{
    int r = open_files(t, dir, err);
    if (!r)
        r = read_json(dir, "tokenizer_config.json", &f->tokenizer_config, err);
    if (!r)
        r = read_json(dir, "special_tokens_map.json", &f->special_tokens_map, err);
    if (!r)
        r = read_json(dir, "config.json", &f->config, err);
    if (!r && t->spm)
        r = find_spm_special(t, f);
    const int32_t bos = t->spm ? spm_bos(t->spm) : -1, eos = t->spm ? spm_eos(t->spm) : -1;
    if (!r)
        r = find_special(t, f, "bos", bos, &t->bos, err);
    if (!r)
        r = find_special(t, f, "eos", eos, &t->eos, err);
    if (!r)
        r = find_chat_template(t, dir, f, err);
    if (!r)
        find_affixes(t, f);
    return r;
}

int tokenizer_open(const char *dir, struct tokenizer **ret, struct err *err)
{
    struct files f = {0};
    struct tokenizer *t = calloc(1, sizeof *t);

    if (!t)
        return err_set(err, -ENOMEM, "out of memory");
    const int r = read_folder(t, dir, &f, err);
    json_decref(f.tokenizer_config);
    json_decref(f.special_tokens_map);
    json_decref(f.config);
    if (r) {
        tokenizer_close(t);
        return r == -ENOMEM ? err_set(err, r, "%s: out of memory for the tokenizer", dir) : r;
    }
    *ret = t;
    return 0;
}

int tokenizer_open_json(const char *json, size_t bytes, struct tokenizer **ret, struct err *err)
{
    json_error_t e;
    struct tokenizer *t = calloc(1, sizeof *t);
    json_t *root = json_loadb(json, bytes, JSON_ALLOW_NUL, &e);
    int r = -ENOMEM;

    if (!root)
        r = err_set(err, -EINVAL, "line %d: %s", e.line, e.text);
    else if (t)
        r = tokenizer_json_new(root, &t->json, err);
    json_decref(root);
    if (r) {
        tokenizer_close(t);
        return r;
    }
    t->vocab = tokenizer_json_end(t->json);
    t->bos = t->eos = -1;
    t->affixes = *tokenizer_json_affixes(t->json);
    if (t->affixes.n_before > 0)
        t->bos = t->affixes.before[0];
    *ret = t;
    return 0;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    tokenizer_json_free(t->json);
    spm_close(t->spm);
    added_free(t->special);
    free(t->chat_template);
    free(t);
}

/* ---- asking ---- */

int32_t tokenizer_vocab(const struct tokenizer *t)
{
    return t->vocab;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->bos >= 0 && t->affixes.n_before > 0 && t->affixes.before[0] == t->bos;
}

bool tokenizer_adds_eos(const struct tokenizer *t)
{
    return t->eos >= 0 && t->affixes.n_after > 0 &&
           t->affixes.after[t->affixes.n_after - 1] == t->eos;
}

const char *tokenizer_chat_template(const struct tokenizer *t)
{
    return t->chat_template;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool special,
                     struct tokens *out)
{
    int r = text_utf8_valid(text, bytes) ? 0 : -EILSEQ;

    for (int i = 0; special && i < t->affixes.n_before && !r; i++)
        r = tokens_put(out, t->affixes.before[i]);
    if (!r)
        r = t->json ? tokenizer_json_encode(t->json, text, bytes, out)
                    : encode_spm(t, text, bytes, out);
    for (int i = 0; special && i < t->affixes.n_after && !r; i++)
        r = tokens_put(out, t->affixes.after[i]);
    return r;
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id)
{
    return t->json ? tokenizer_json_token(t->json, id, NULL, NULL) : spm_piece(t->spm, id);
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token)
{
    return find_id(t, token, strlen(token));
}

static bool is_byte_piece(const char *s, size_t n, unsigned *ret)
{
    return n == 6 && !memcmp(s, "<0x", 3) && s[5] == '>' && sscanf(s + 3, "%2X", ret) == 1;
}

/* ByteLevel: each character back to its byte. */
static void unmap_bytes(const char *s, size_t n, struct text *out)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        const size_t k = text_utf8_get(s + i, n - i, &cp);
        int b = 0;
        while (b < 256 && splitter_byte_char((unsigned char)b) != cp)
            b++;
        const char byte = (char)b;
        (void)text_add(out, b < 256 ? &byte : s + i, b < 256 ? 1 : k);
        i += k;
    }
}

size_t tokenizer_piece(const struct tokenizer *t, int32_t id, char *buf, size_t size)
{
    struct text out = {0};
    size_t n = 0;
    bool added = false;
    unsigned byte;
    const char *s = t->json ? tokenizer_json_token(t->json, id, &n, &added) : spm_piece(t->spm, id);

    if (s && t->spm) {
        n = strlen(s);
        added = spm_is_control(t->spm, id);
    }
    const bool fallback =
        t->json ? tokenizer_json_byte_fallback(t->json) : s && spm_is_byte(t->spm, id);
    if (s && added) {
        (void)text_add(&out, s, n);
    } else if (s && t->json && tokenizer_json_byte_level(t->json)) {
        unmap_bytes(s, n, &out);
    } else if (s && fallback && is_byte_piece(s, n, &byte)) {
        const char b = (char)byte;
        (void)text_add(&out, &b, 1);
    } else if (s) {
        while (n > 0) { /* U+2581 stands for a space */
            const char *mark = memmem(s, n, "\xe2\x96\x81", 3);
            const size_t k = mark ? (size_t)(mark - s) : n;
            (void)text_add(&out, s, k);
            (void)text_add(&out, " ", mark ? 1 : 0);
            s += k + (mark ? 3 : 0);
            n -= k + (mark ? 3 : 0);
        }
    }
    if (size > 0) {
        const size_t k = out.n < size - 1 ? out.n : size - 1;
        if (k)
            memcpy(buf, out.s, k);
        buf[k] = '\0';
    }
    n = out.n;
    text_free(&out);
    return n;
}
