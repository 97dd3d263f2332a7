/* test_tokenizer.c - the project's own tokenizers against Hugging Face's ids, the
 * rules of single components, and files that are wrong. */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <time.h>

#include "tests/support/temp_dir.h"
#include "tests/support/test.h"
#include "tests/support/test_data.h"

#include "worker/text.h"
#include "worker/tokenizer.h"
#include "worker/tokenizer_nfc.h"

static struct tokenizer *open_json(const char *json)
{
    struct tokenizer *t = NULL;
    struct err err = {{0}};
    if (tokenizer_open_json(json, strlen(json), &t, &err))
        fail_msg("%s", err.text);
    return t;
}

static void check_ids(const struct tokenizer *t, const char *text, bool special,
                      const int32_t *want, size_t n)
{
    struct tokens out = {0};
    assert_int_equal(tokenizer_encode(t, text, strlen(text), special, &out), 0);
    assert_int_equal(out.n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(out.ids[i], want[i]);
    tokens_free(&out);
}
#define CHECK_IDS(t, text, special, ...)                    \
    do {                                                    \
        const int32_t want[] = {__VA_ARGS__};               \
        check_ids(t, text, special, want, ARRAY_LEN(want)); \
    } while (0)

/* Every vector of tests/data/tokenizer_vectors.json: ids by tokenizers and sentencepiece. */
static void test_vectors(void **state)
{
    (void)state;
    json_t *list = json_load_file(test_data_path("tokenizer_vectors.json"), 0, NULL);
    struct tokenizer *t = NULL;
    struct tokens out = {0};
    struct err err = {{0}};
    char open_name[64] = "";
    int bad = 0;

    assert_true(json_array_size(list) >= 200);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i), *ids = json_object_get(v, "ids");
        const json_t *text = json_object_get(v, "text");
        const char *name = json_string_value(json_object_get(v, "tokenizer"));
        if (strcmp(name, open_name) != 0) {
            tokenizer_close(t);
            t = NULL;
            (void)snprintf(open_name, sizeof open_name, "%s", name);
            if (tokenizer_open(test_data_path(name), &t, &err))
                fail_msg("%s", err.text);
        }
        out.n = 0;
        assert_int_equal(tokenizer_encode(t, json_string_value(text), json_string_length(text),
                                          json_is_true(json_object_get(v, "special")), &out),
                         0);
        bool same = out.n == json_array_size(ids);
        for (size_t k = 0; k < out.n && same; k++)
            same = out.ids[k] == json_integer_value(json_array_get(ids, k));
        if (!same)
            print_error("vector %zu, tokenizer %s: \"%s\"\n", i, name, json_string_value(text));
        bad += !same;
    }
    assert_int_equal(bad, 0);
    tokenizer_close(t);
    tokens_free(&out);
    json_decref(list);
}

static void test_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"demo", "tiny64", "tiny128"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct tokenizer *t = NULL;
        assert_int_equal(tokenizer_open(test_data_path(names[i]), &t, NULL), 0);
        assert_int_equal(tokenizer_bos(t), 1);
        assert_int_equal(tokenizer_eos(t), 2);
        assert_true(tokenizer_adds_bos(t));
        assert_false(tokenizer_adds_eos(t));
        assert_null(tokenizer_chat_template(t));
        assert_string_equal(tokenizer_token(t, 2), "</s>");
        assert_int_equal(tokenizer_id(t, "</s>"), 2);
        assert_int_equal(tokenizer_id(t, "no such token"), -1);
        assert_null(tokenizer_token(t, 1 << 20));
        assert_null(tokenizer_token(t, -1));
        /* Joined pieces give the text again (after a dummy prefix). */
        struct tokens out = {0};
        char text[256] = "", piece[64];
        const char *want = "The cat's 12 h\xc3\xb6uses \xf0\x9f\x8f\xa0\n";
        assert_int_equal(tokenizer_encode(t, want, strlen(want), false, &out), 0);
        for (size_t k = 0; k < out.n; k++) {
            assert_true(tokenizer_piece(t, out.ids[k], piece, sizeof piece) < sizeof piece);
            (void)strncat(text, piece, sizeof text - strlen(text) - 1);
        }
        assert_string_equal(text + (text[0] == ' '), want);
        tokens_free(&out);
        tokenizer_close(t);
    }
}

#define BPE(vocab, merges, more) \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "},\"merges\":[" merges "]" more "}"
#define ABC "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5,\" \":6,\"u\":7"

static void test_merge_order(void **state)
{
    (void)state;
    struct tokenizer *t = open_json("{" BPE(ABC, "\"b c\",[\"a\",\"b\"],\"a bc\"", "") "}");
    CHECK_IDS(t, "abc", false, 5);
    CHECK_IDS(t, "abab", false, 3, 3);
    CHECK_IDS(t, "aabcb", false, 0, 5, 1);
    CHECK_IDS(t, "axb", false, 3); /* no unk: what is unknown vanishes, as there */
    tokenizer_close(t);
    t = open_json("{" BPE(ABC, "\"a b\"", ",\"unk_token\":\"u\",\"fuse_unk\":true") "}");
    CHECK_IDS(t, "axyb", false, 0, 7, 1);
    tokenizer_close(t);
    t = open_json("{" BPE(ABC, "\"a b\"", ",\"unk_token\":\"u\",\"fuse_unk\":false") "}");
    CHECK_IDS(t, "axyb", false, 0, 7, 7, 1);
    tokenizer_close(t);
    t = open_json("{" BPE(ABC, "\"b c\"", ",\"ignore_merges\":true") "}");
    CHECK_IDS(t, "abc", false, 5);
    CHECK_IDS(t, "aabc", false, 0, 0, 4);
    tokenizer_close(t);
}

/* A tokenizer made at random, and the plain definition of BPE beside it. */
struct plain {
    char piece[64][12];
    int left[64], right[64]; /* of the merge that makes piece i; -1: a character */
    int n;
};

static uint32_t draw(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % n;
}

static void make_plain(struct plain *p, uint32_t *seed)
{
    static const char *const letters[] = {"a", "b", "c", "d", "\xc3\xa9"};
    p->n = (int)(2 + draw(seed, ARRAY_LEN(letters) - 1));
    for (int i = 0; i < p->n; i++) {
        (void)snprintf(p->piece[i], sizeof p->piece[i], "%s", letters[i]);
        p->left[i] = -1;
    }
    for (int tries = 0; tries < 80 && p->n < 64; tries++) {
        const int l = (int)draw(seed, (uint32_t)p->n), r = (int)draw(seed, (uint32_t)p->n);
        char joined[24];
        (void)snprintf(joined, sizeof joined, "%s%s", p->piece[l], p->piece[r]);
        bool known = strlen(joined) >= sizeof p->piece[0];
        for (int i = 0; i < p->n && !known; i++)
            known = !strcmp(p->piece[i], joined);
        if (known)
            continue;
        (void)snprintf(p->piece[p->n], sizeof p->piece[0], "%s", joined);
        p->left[p->n] = l;
        p->right[p->n++] = r;
    }
}

static struct tokenizer *open_plain(const struct plain *p)
{
    struct text t = {0};
    assert_int_equal(text_adds(&t, "{\"model\":{\"vocab\":{"), 0);
    for (int i = 0; i < p->n; i++)
        assert_int_equal(text_addf(&t, "%s\"%s\":%d", i ? "," : "", p->piece[i], i), 0);
    assert_int_equal(text_adds(&t, "},\"merges\":["), 0);
    for (int i = 0, any = 0; i < p->n; i++)
        if (p->left[i] >= 0)
            assert_int_equal(text_addf(&t, "%s[\"%s\",\"%s\"]", any++ ? "," : "",
                                       p->piece[p->left[i]], p->piece[p->right[i]]),
                             0);
    assert_int_equal(text_adds(&t, "]}}"), 0);
    struct tokenizer *tok = open_json(t.s);
    text_free(&t);
    return tok;
}

/* Merges of lower rank come first, and of one rank the leftmost. */
static int encode_plain(const struct plain *p, int32_t *ids, int n)
{
    for (;;) {
        int best = p->n, at = -1;
        for (int i = 0; i + 1 < n; i++)
            for (int k = 0; k < best; k++)
                if (p->left[k] == ids[i] && p->left[k] >= 0 && p->right[k] == ids[i + 1]) {
                    best = k;
                    at = i;
                }
        if (at < 0)
            return n;
        ids[at] = best;
        memmove(ids + at + 1, ids + at + 2, (size_t)(n - at - 2) * sizeof *ids);
        n--;
    }
}

static void test_against_definition(void **state)
{
    (void)state;
    static struct plain p;
    uint32_t seed = 1;
    for (int round = 0; round < 300; round++) {
        make_plain(&p, &seed);
        struct tokenizer *t = open_plain(&p);
        int letters = 0;
        while (letters < p.n && p.left[letters] < 0)
            letters++;
        for (int k = 0; k < 10; k++) {
            int32_t ids[100];
            char text[256] = "";
            const int n = (int)draw(&seed, ARRAY_LEN(ids));
            for (int i = 0; i < n; i++) {
                ids[i] = (int32_t)draw(&seed, (uint32_t)letters);
                (void)strncat(text, p.piece[ids[i]], sizeof text - strlen(text) - 1);
            }
            const int m = encode_plain(&p, ids, n);
            check_ids(t, text, false, ids, (size_t)m);
        }
        tokenizer_close(t);
    }
}

static void test_added_tokens(void **state)
{
    (void)state;
    struct tokenizer *t = open_json(
        "{\"added_tokens\":["
        "{\"id\":10,\"content\":\"<L>\",\"lstrip\":true,\"normalized\":false},"
        "{\"id\":11,\"content\":\"<R>\",\"rstrip\":true,\"normalized\":false},"
        "{\"id\":12,\"content\":\"ca\",\"single_word\":true,\"normalized\":false},"
        "{\"id\":13,\"content\":\"<LL>\",\"normalized\":false},"
        "{\"id\":14,\"content\":\"bb\",\"normalized\":true}],"
        "\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"a\"},"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
        "{\"SpecialToken\":{\"id\":\"S\"}},{\"Sequence\":{\"id\":\"A\"}},"
        "{\"SpecialToken\":{\"id\":\"E\"}}],"
        "\"special_tokens\":{\"S\":{\"ids\":[5]},\"E\":{\"ids\":[4,3]}}}," BPE(ABC, "", "") "}");
    CHECK_IDS(t, "b  <L>b", false, 0, 1, 10, 0, 1);      /* spaces to the left are its own */
    CHECK_IDS(t, "b<R>  b", false, 0, 1, 11, 0, 1);      /* to the right                   */
    CHECK_IDS(t, "<LL>", false, 13);                     /* the longest                    */
    CHECK_IDS(t, "b ca b", false, 0, 1, 6, 12, 0, 6, 1); /* stands alone                */
    CHECK_IDS(t, "bca", false, 0, 1, 2, 0);              /* does not                       */
    CHECK_IDS(t, "bb", false, 14);                       /* its normalized form is "abb"   */
    CHECK_IDS(t, "c", true, 5, 0, 2, 4, 3);
    assert_int_equal(tokenizer_vocab(t), 15);
    tokenizer_close(t);
}

static void check_nfc(const char *in, const char *want)
{
    struct text out = {0};
    assert_int_equal(tokenizer_nfc(in, strlen(in), &out), 0);
    assert_string_equal(out.s, want);
    text_free(&out);
}

static void test_nfc(void **state)
{
    (void)state;
    check_nfc("plain", "plain");
    check_nfc("e\xcc\x81", "\xc3\xa9");                                /* e, acute               */
    check_nfc("\xe2\x84\xab", "\xc3\x85");                             /* Angstrom sign          */
    check_nfc("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"); /* Hangul L, V, T  */
    check_nfc("q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87");               /* order of marks         */
    check_nfc("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");             /* composition exclusion  */
    check_nfc("\xe1\xb8\x8b\xcc\xa3", "\xe1\xb8\x8d\xcc\x87");         /* UAX #15, figure 5      */
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *json, *names;
    } cases[] = {
        {"[", "line 1"},
        {"{}", "model"},
        {"{\"model\":{\"type\":\"Unigram\"}}", "Unigram"},
        {"{" BPE(ABC, "\"a z\"", "") "}", "\"z\""},
        {"{" BPE(ABC, "\"ab\"", "") "}", "merges[0]"},
        {"{" BPE("\"a\":-1", "", "") "}", "\"a\""},
        {"{" BPE("\"a\":99999999", "", "") "}", "\"a\""},
        {"{" BPE(ABC, "", ",\"dropout\":0.1") "}", "dropout"},
        {"{" BPE(ABC, "", ",\"end_of_word_suffix\":\"</w>\"") "}", "end_of_word_suffix"},
        {"{" BPE(ABC, "", ",\"unk_token\":\"?\"") "}", "unk_token"},
        {"{\"normalizer\":{\"type\":\"NFKC\"}," BPE(ABC, "", "") "}", "NFKC"},
        {"{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}," BPE(ABC, "", "") "}",
         "BertPreTokenizer"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
         "{\"Regex\":\"a(?R)\"}}," BPE(ABC, "", "") "}",
         "group"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":"
         "{\"Regex\":\"[a&&b]\"}}," BPE(ABC, "", "") "}",
         "&&"},
        {"{\"post_processor\":{\"type\":\"RobertaProcessing\"}," BPE(ABC, "", "") "}",
         "RobertaProcessing"},
        {"{\"added_tokens\":[{\"id\":9,\"content\":\"a\"}]," BPE(ABC, "", "") "}", "\"a\""},
        {"{\"added_tokens\":[{\"id\":9}]," BPE(ABC, "", "") "}", "added_tokens[0]"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tokenizer *t = NULL;
        struct err err = {{0}};
        const int r = tokenizer_open_json(cases[i].json, strlen(cases[i].json), &t, &err);
        assert_int_equal(r, -EINVAL);
        if (!strstr(err.text, cases[i].names))
            fail_msg("case %zu: \"%s\" does not name %s", i, err.text, cases[i].names);
    }
}

static void write_file(const struct temp_dir *d, const char *name, const char *text)
{
    FILE *f = fopen(temp_dir_path(d, name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

/* What the other files of a folder say. */
static void test_configuration(void **state)
{
    (void)state;
    struct temp_dir d;
    struct tokenizer *t = NULL;
    struct err err = {{0}};

    temp_dir_make(&d);
    assert_int_equal(tokenizer_open(d.path, &t, &err), -ENOENT);
    assert_non_null(strstr(err.text, "tokenizer.model"));
    write_file(&d, "tokenizer.json", "{" BPE(ABC, "", "") "}");
    write_file(&d, "config.json", "{\"bos_token_id\":6,\"eos_token_id\":[3,4]}");
    assert_int_equal(tokenizer_open(d.path, &t, &err), 0);
    assert_int_equal(tokenizer_bos(t), 6);
    assert_int_equal(tokenizer_eos(t), 3);
    assert_false(tokenizer_adds_bos(t));
    tokenizer_close(t);

    write_file(&d, "special_tokens_map.json", "{\"eos_token\":{\"content\":\"ab\"}}");
    write_file(&d, "tokenizer_config.json",
               "{\"bos_token\":\"c\",\"add_bos_token\":true,\"add_eos_token\":true,"
               "\"model_max_length\":1000000000000000019884624838656,"
               "\"chat_template\":[{\"name\":\"tools\",\"template\":\"x\"},"
               "{\"name\":\"default\",\"template\":\"y\"}]}");
    assert_int_equal(tokenizer_open(d.path, &t, &err), 0);
    assert_string_equal(tokenizer_chat_template(t), "y");
    CHECK_IDS(t, "b", true, 2, 1, 3);
    assert_true(tokenizer_adds_bos(t) && tokenizer_adds_eos(t));
    tokenizer_close(t);

    write_file(&d, "chat_template.jinja", "z");
    write_file(&d, "tokenizer_config.json", "{\"bos_token\":null,\"add_bos_token\":true}");
    assert_int_equal(tokenizer_open(d.path, &t, &err), 0);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_string_equal(tokenizer_chat_template(t), "z");
    CHECK_IDS(t, "b", true, 1);
    tokenizer_close(t);

    write_file(&d, "tokenizer_config.json", "{\"bos_token\":\"<none>\"}");
    assert_int_equal(tokenizer_open(d.path, &t, &err), -EINVAL);
    assert_non_null(strstr(err.text, "<none>"));
    write_file(&d, "tokenizer_config.json", "{\"bos_token\":");
    assert_int_equal(tokenizer_open(d.path, &t, &err), -EINVAL);
    assert_non_null(strstr(err.text, "tokenizer_config.json"));
    assert_int_equal(unlink(temp_dir_path(&d, "tokenizer.json")), 0);
    write_file(&d, "tokenizer.model", "not a model");
    assert_int_equal(tokenizer_open(d.path, &t, &err), -EINVAL);
    assert_non_null(strstr(err.text, "tokenizer.model"));
    temp_dir_remove(&d);
}

static void test_bad_text(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xff", "\xc0\x80", "a\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\xe2\x82"};
    struct tokenizer *t = open_json("{" BPE(ABC, "", "") "}");
    struct tokens out = {0};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(tokenizer_encode(t, bad[i], strlen(bad[i]), false, &out), -EILSEQ);
    assert_int_equal(tokenizer_encode(t, "", 0, false, &out), 0);
    assert_int_equal(tokenizer_encode(t, "a\0b", 3, false, &out), 0);
    assert_int_equal(out.n, 2);
    tokens_free(&out);
    tokenizer_close(t);
}

/* A line of 256 KB without a place to split: n log n, not n^2. */
static void test_long_line(void **state)
{
    (void)state;
    static const char *const names[] = {"demo", "tiny64", "tiny128"};
    enum { N = 256 << 10 };
    char *line = malloc(N);
    struct tokens out = {0};

    assert_non_null(line);
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        for (int kind = 0; kind < 3; kind++) {
            struct tokenizer *t = NULL;
            assert_int_equal(tokenizer_open(test_data_path(names[i]), &t, NULL), 0);
            for (size_t k = 0; k < N; k++)
                line[k] = kind == 0 ? 'a' : kind == 1 ? ' ' : (char)('a' + k * k % 23);
            const clock_t start = clock();
            assert_int_equal(tokenizer_encode(t, line, N, false, &out), 0);
            assert_true(clock() - start < 2 * CLOCKS_PER_SEC); /* 0.05 s where this was written */
            tokenizer_close(t);
        }
    tokens_free(&out);
    free(line);
}

struct thread {
    const struct tokenizer *t;
    struct tokens out;
    int r;
};

static void *encode_often(void *arg)
{
    struct thread *a = arg;
    for (int i = 0; i < 200 && !a->r; i++)
        a->r = tokenizer_encode(a->t, "A shared tokenizer </s> 123", 27, true, &a->out);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    static const char *const names[] = {"demo", "tiny128"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct thread a[2] = {{0}};
        pthread_t id[2];
        struct tokenizer *t = NULL;
        assert_int_equal(tokenizer_open(test_data_path(names[i]), &t, NULL), 0);
        for (int k = 0; k < 2; k++) {
            a[k].t = t;
            assert_int_equal(pthread_create(&id[k], NULL, encode_often, &a[k]), 0);
        }
        for (int k = 0; k < 2; k++) {
            (void)pthread_join(id[k], NULL);
            assert_int_equal(a[k].r, 0);
        }
        assert_int_equal(a[0].out.n, a[1].out.n);
        assert_memory_equal(a[0].out.ids, a[1].out.ids, a[0].out.n * sizeof(int32_t));
        tokens_free(&a[0].out);
        tokens_free(&a[1].out);
        tokenizer_close(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_merge_order),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_configuration),
        cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_long_line),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
