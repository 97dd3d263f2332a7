/* test_codec.c - every message of the list there and back, and what must be refused. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/codec.h"

static const char *const names_a[] = {"loss", "rewards/margins"};
static const char *const names_b[] = {"eval_loss"};
static const double values_a[] = {0.693147180559945, -INFINITY};
static const double values_b[] = {NAN};
static const struct msg_row sample_rows[] = {
    {.seq = 1, .attempt = 1, .n = 1, .step = 0, .wall_ms = 17, .kind = MSG_ROW_START},
    {2, 1, 2, 1, -5, MSG_ROW_TRAIN, true, 2, names_a, values_a},
    {3, 1, 3, 2, 1, MSG_ROW_TRAIN, false, 2, names_a, values_a},
    {UINT64_MAX, UINT32_MAX, 4, INT64_MIN, INT64_MAX, MSG_ROW_EVAL, false, 1, names_b, values_b},
};

/* What a field of each type is set to, and how two are compared. */
static void set_u64(uint64_t *v, uint64_t limit)
{
    *v = limit ? limit : UINT64_MAX;
}
static void set_i64(int64_t *v, uint64_t limit)
{
    (void)limit;
    *v = INT64_MIN;
}
static void set_flag(bool *v, uint64_t limit)
{
    (void)limit;
    *v = true;
}
static void set_str(const char **v, uint64_t limit)
{
    (void)limit;
    *v = "gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80";
}
static void set_bin(struct msg_bin *v, uint64_t limit)
{
    (void)limit;
    *v = (struct msg_bin){"a\0b", 3};
}
static void set_key(struct msg_key *v, uint64_t limit)
{
    (void)limit;
    memset(v, 0xa5, sizeof *v);
}
static void set_token(struct msg_token *v, uint64_t limit)
{
    (void)limit;
    memset(v, 0x5a, sizeof *v);
}
static void set_rows(struct msg_rows *v, uint64_t limit)
{
    (void)limit;
    *v = (struct msg_rows){sample_rows, ARRAY_LEN(sample_rows)};
}

static void same_u64(const uint64_t *a, const uint64_t *b)
{
    assert_true(*a == *b);
}
static void same_i64(const int64_t *a, const int64_t *b)
{
    assert_true(*a == *b);
}
static void same_flag(const bool *a, const bool *b)
{
    assert_true(*a == *b);
}
static void same_str(const char *const *a, const char *const *b)
{
    assert_string_equal(*a, *b);
}
static void same_bin(const struct msg_bin *a, const struct msg_bin *b)
{
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->data, b->data, a->bytes);
}
static void same_key(const struct msg_key *a, const struct msg_key *b)
{
    assert_memory_equal(a, b, sizeof *a);
}
static void same_token(const struct msg_token *a, const struct msg_token *b)
{
    assert_memory_equal(a, b, sizeof *a);
}
static void same_rows(const struct msg_rows *a, const struct msg_rows *b)
{
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        const struct msg_row *x = &a->v[i], *y = &b->v[i];
        assert_true(x->seq == y->seq && x->attempt == y->attempt && x->n == y->n &&
                    x->step == y->step && x->wall_ms == y->wall_ms && x->kind == y->kind &&
                    x->superseded == y->superseded);
        assert_int_equal(x->n_values, y->n_values);
        for (uint32_t j = 0; j < x->n_values; j++)
            assert_string_equal(x->names[j], y->names[j]);
        if (x->n_values > 0)
            assert_memory_equal(x->values, y->values, x->n_values * sizeof(double));
    }
}

/* One filler and one comparer per message, from the list itself. */
#define SET(type, name, need, limit, what)  set_##type(&p->name, (limit));
#define SAME(type, name, need, limit, what) same_##type(&a->name, &b->name);
#define X(num, nam, dialect, role, reply, what)                           \
    static void fill_##nam(struct msg *m)                                 \
    {                                                                     \
        struct msg_##nam *p = &m->nam;                                    \
        p->end_[0] = 0;                                                   \
        MSG_##nam(SET)                                                    \
    }                                                                     \
    static void compare_##nam(const struct msg *ma, const struct msg *mb) \
    {                                                                     \
        const struct msg_##nam *a = &ma->nam, *b = &mb->nam;              \
        assert_int_equal(ma->type, mb->type);                             \
        (void)a, (void)b;                                                 \
        MSG_##nam(SAME)                                                   \
    }
MSG_LIST(X)
#undef X

static const struct {
    enum msg_type type;
    void (*fill)(struct msg *m);
    void (*compare)(const struct msg *a, const struct msg *b);
} all[] = {
#define X(num, name, dialect, role, reply, what) {MSG_T_##name, fill_##name, compare_##name},
    MSG_LIST(X)
#undef X
};

static void round_trips(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        struct msg m = {.type = all[i].type}, *back;
        struct err err = {""};
        uint8_t *data;
        size_t bytes;
        uint32_t type, version;

        all[i].fill(&m);
        assert_int_equal(codec_encode(&m, &data, &bytes, &err), 0);
        assert_int_equal(codec_decode(data, bytes, &back, &err), 0);
        all[i].compare(&m, back);
        assert_int_equal(codec_peek(data, bytes, &type, &version), 0);
        assert_int_equal(type, all[i].type);
        assert_int_equal(version, 1);
        assert_non_null(codec_name(all[i].type));
        assert_non_null(codec_name(codec_reply(all[i].type)));
        assert_int_equal(codec_role(codec_reply(all[i].type)), MSG_REPLY);
        codec_free(back);
        free(data);
    }
}

/* Every prefix is refused, every changed byte is refused or decoded, nothing crashes. */
static void hostile_bytes(void **state)
{
    uint32_t seed = 1;
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        struct msg m = {.type = all[i].type}, *back;
        uint8_t *data;
        size_t bytes;

        all[i].fill(&m);
        assert_int_equal(codec_encode(&m, &data, &bytes, NULL), 0);
        for (size_t n = 0; n < bytes; n++)
            assert_int_equal(codec_decode(data, n, &back, NULL), -EINVAL);
        for (int k = 0; k < 2000; k++) {
            const size_t at = (seed = seed * 1664525u + 1013904223u) >> 8;
            const uint8_t was = data[at % bytes];
            struct err err = {""};
            data[at % bytes] = (uint8_t)(seed >> 24);
            const int r = codec_decode(data, bytes, &back, &err);
            if (r == 0)
                codec_free(back);
            else
                assert_true(err.text[0] != 0);
            data[at % bytes] = was;
        }
        free(data);
    }
}

static int decode_hex(const char *hex)
{
    uint8_t data[256];
    size_t n = 0;
    struct msg *m;
    struct err err;

    for (; hex[0] && hex[1]; hex += 2) {
        unsigned v;
        assert_int_equal(sscanf(hex, "%2x", &v), 1);
        data[n++] = (uint8_t)v;
    }
    const int r = codec_decode(data, n, &m, &err);
    if (r == 0)
        codec_free(m);
    return r;
}

static void counts_that_lie(void **state)
{
    (void)state;
    assert_int_equal(decode_hex(""), -EINVAL);
    assert_int_equal(decode_hex("c0"), -EINVAL);
    assert_int_equal(decode_hex("ddffffffff"), -EINVAL);             /* 4 G array entries */
    assert_int_equal(decode_hex("dfffffffff"), -EINVAL);             /* 4 G map entries   */
    assert_int_equal(decode_hex("82a17601a174dbffffffff"), -EINVAL); /* 4 G string     */
    assert_int_equal(decode_hex("82a17601a174c70100ff"), -EINVAL);   /* an extension   */
    assert_int_equal(decode_hex("82a17601a1740a"), 0);               /* `devices`      */
    assert_int_equal(decode_hex("82a17601a1740ac0"), -EINVAL);       /* more after it  */
    assert_int_equal(decode_hex("83a17601a1740aa16107"), 0);         /* an unknown key */
    assert_int_equal(decode_hex("82a17602a1740a"), -EPROTONOSUPPORT);
    assert_int_equal(decode_hex("82a17600a1740a"), -EPROTONOSUPPORT);
    assert_int_equal(decode_hex("82a17601a17463"), -EINVAL);           /* no such type */
    assert_int_equal(decode_hex("82a17601a17407"), -EINVAL);           /* show without job */
    assert_int_equal(decode_hex("83a17601a17407a36a6f62ff"), -EINVAL); /* job = -1 */
    assert_int_equal(decode_hex("83a17601a1740aa161919191919191919101"), -EMSGSIZE); /* deep */
    assert_int_equal(decode_hex("83a17601a1740aa1619191919191919101"), 0);
}

static void limits(void **state)
{
    struct msg m = {.type = MSG_T_submit};
    struct err err;
    uint8_t *data;
    size_t bytes;
    char *big = malloc(LIMIT_SPEC_BYTES + 2);

    (void)state;
    assert_non_null(big);
    memset(big, 'x', LIMIT_SPEC_BYTES + 1);
    big[LIMIT_SPEC_BYTES + 1] = 0;
    fill_submit(&m);
    m.submit.user_spec = big;
    assert_int_equal(codec_encode(&m, &data, &bytes, &err), -EMSGSIZE);
    assert_non_null(strstr(err.text, "user_spec"));
    big[LIMIT_SPEC_BYTES] = 0;
    assert_int_equal(codec_encode(&m, &data, &bytes, &err), 0);
    free(data);
    m.submit.name = "\xff";
    assert_int_equal(codec_encode(&m, &data, &bytes, &err), -EINVAL);
    m.submit.name = NULL; /* as "" */
    m.submit.devices = LIMIT_RANKS + 1;
    assert_int_equal(codec_encode(&m, &data, &bytes, &err), -EMSGSIZE);
    free(big);

    struct msg_row *rows = calloc(LIMIT_REPORT_BATCH + 1, sizeof *rows);
    m = (struct msg){.type = MSG_T_w_report};
    assert_non_null(rows);
    m.w_report.rows = (struct msg_rows){rows, LIMIT_REPORT_BATCH + 1};
    assert_int_equal(codec_encode(&m, &data, &bytes, &err), -EMSGSIZE);
    m.w_report.rows.n = LIMIT_REPORT_BATCH;
    assert_int_equal(codec_encode(&m, &data, &bytes, &err), 0);
    free(data);
    free(rows);
    m = (struct msg){.type = (enum msg_type)99};
    assert_int_equal(codec_encode(&m, &data, &bytes, &err), -EINVAL);
}

/* ---- docs/PROTOCOL.md ---- */

static void print_limit(FILE *f, const char *type, unsigned long long limit)
{
    if (limit > 0 && !strcmp(type, "u64"))
        fprintf(f, "<= %llu", limit);
    else if (limit > 0)
        fprintf(f, "%llu", limit);
}

static void print_table(FILE *f)
{
    static const char *const dialects[] = {"both", "client", "worker"};
    static const char *const roles[] = {"request", "change", "held", "reply"};

#define ROW(type, name, need, limit, what)                    \
    fprintf(f, "| | `%s` | %s | %s | ", #name, #type, #need); \
    print_limit(f, #type, (unsigned long long)(limit));       \
    fprintf(f, " | %s |\n", what);
#define X(num, nam, dialect, role, rep, what)                                        \
    fprintf(f, "| %d | **%s** | %s %s | | | %s", num, #nam, dialects[MSG_##dialect], \
            roles[MSG_##role], what);                                                \
    if (MSG_##role != MSG_REPLY)                                                     \
        fprintf(f, "%s-> `%s`", *what ? " " : "", #rep);                             \
    fprintf(f, " |\n");                                                              \
    MSG_##nam(ROW)
    fprintf(f, "| no. | name | type | need | limit | what |\n|---|---|---|---|---|---|\n");
    MSG_LIST(X)
#undef X
}

static const char docs_begin[] = "<!-- messages: made from proto/msg.h -->\n";
static const char docs_end[] = "<!-- end of messages -->\n";

static void documented(void **state)
{
    const char *path = getenv("ALIGND_PROTOCOL_MD");
    char *table, *text, *at, *end;
    size_t bytes, n;
    FILE *f;

    (void)state;
    if (!path)
        skip();
    f = open_memstream(&table, &bytes);
    print_table(f);
    fclose(f);
    f = fopen(path, "r");
    assert_non_null(f);
    text = calloc(1, 1 << 20);
    n = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    assert_true(n > 0);
    at = strstr(text, docs_begin);
    end = strstr(text, docs_end);
    assert_non_null(at);
    assert_non_null(end);
    at += strlen(docs_begin);
    if ((size_t)(end - at) != bytes || memcmp(at, table, bytes) != 0)
        fail_msg("%s is out of date: write it anew with `test_codec --print-table`", path);
    free(text);
    free(table);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips), cmocka_unit_test(hostile_bytes),
        cmocka_unit_test(counts_that_lie), cmocka_unit_test(limits), cmocka_unit_test(documented)};

    if (argc == 2 && !strcmp(argv[1], "--print-table")) {
        print_table(stdout);
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "--write-corpus")) { /* seeds for tests/fuzz/corpus */
        for (size_t i = 0; i < ARRAY_LEN(all); i++) {
            struct msg m = {.type = all[i].type};
            char path[512];
            uint8_t *data;
            size_t bytes;
            FILE *f;
            all[i].fill(&m);
            if (codec_encode(&m, &data, &bytes, NULL) < 0)
                return 1;
            snprintf(path, sizeof path, "%s/%s", argv[2], codec_name(all[i].type));
            f = fopen(path, "w");
            if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0)
                return 1;
            free(data);
        }
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
