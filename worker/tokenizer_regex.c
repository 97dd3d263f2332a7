/* tokenizer_regex.c - see tokenizer_regex.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "worker/tokenizer_regex.h"

#include <ctype.h>
#include <errno.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text.h"

/* PCRE2's \s under UCP has U+180E, which Unicode's White_Space lacks; its \w lacks
 * marks and connectors. */
#define SPACE "\\p{Z}\\x09-\\x0d\\x85"
#define WORD  "\\p{L}\\p{M}\\p{Nd}\\p{Pc}"

enum { MAX_PATTERN = 1 << 16, MATCH_LIMIT = 10000000 };

struct tokenizer_regex {
    pcre2_code *code;
    pcre2_match_context *context;
    bool jit;
};

static int refuse(struct err *err, const char *pattern, size_t n, const char *what, size_t at)
{
    return err_set(err, -EINVAL, "regular expression \"%.*s\": %s at offset %zu is not supported",
                   (int)(n < 300 ? n : 300), pattern, what, at);
}

/* An escape, pattern[*i] == '\\'. */
static int translate_escape(const char *p, size_t n, size_t *i, bool in_class, struct text *out,
                            struct err *err)
{
    const size_t at = *i;
    if (at + 1 >= n)
        return refuse(err, p, n, "a backslash with nothing after it", at);
    const char c = p[at + 1];
    *i += 2;
    if (c == 's')
        return text_adds(out, in_class ? SPACE : "[" SPACE "]");
    if (c == 'w')
        return text_adds(out, in_class ? WORD : "[" WORD "]");
    if (c == 'S' && !in_class)
        return text_adds(out, "[^" SPACE "]");
    if (c == 'W' && !in_class)
        return text_adds(out, "[^" WORD "]");
    if (c == 'u') {
        if (at + 6 > n)
            return refuse(err, p, n, "\\u without four digits", at);
        for (int k = 2; k < 6; k++)
            if (!isxdigit((unsigned char)p[at + (size_t)k]))
                return refuse(err, p, n, "\\u without four digits", at);
        *i += 4;
        return text_addf(out, "\\x{%.4s}", p + at + 2);
    }
    if (isalnum((unsigned char)c) && !strchr("rntfvedDpPx", c)) {
        char what[] = "\\?";
        what[1] = c;
        return refuse(err, p, n, what, at);
    }
    if ((c == 'p' || c == 'P' || c == 'x') && *i < n && p[*i] == '{')
        while (*i < n && p[(*i)++] != '}')
            ;
    return text_add(out, p + at, *i - at);
}

static bool group_is_known(const char *p, size_t n)
{
    static const char *const known[] = {
        "?:", "?=", "?!", "?>", "?<=", "?<!", "?i:", "?i)", "?-i:", "?-i)"};
    if (n == 0 || (p[0] != '?' && p[0] != '*'))
        return true;
    for (size_t k = 0; k < sizeof known / sizeof known[0]; k++)
        if (n >= strlen(known[k]) && !memcmp(p, known[k], strlen(known[k])))
            return true;
    return false;
}

/* '[' of a class, or what lies in one. */
static int translate_class(const char *p, size_t n, size_t *i, bool *in_class, struct text *out,
                           struct err *err)
{
    const char c = p[*i];
    if (c == ']') {
        *in_class = false;
    } else if (c == '[' && *in_class) {
        return refuse(err, p, n, "a class within a class", *i);
    } else if (c == '&' && *i + 1 < n && p[*i + 1] == '&') {
        return refuse(err, p, n, "&& in a class", *i);
    } else if (c == '[') {
        *in_class = true;
        if (*i + 1 < n && p[*i + 1] == '^') {
            (*i)++;
            if (text_adds(out, "["))
                return -ENOMEM;
        }
        if (*i + 1 < n && p[*i + 1] == ']')
            return refuse(err, p, n, "']' first in a class", *i);
    }
    const int r = text_add(out, p + *i, 1);
    (*i)++;
    return r;
}

static int translate(const char *p, size_t n, struct text *out, struct err *err)
{
    bool in_class = false;
    int r = 0;

    for (size_t i = 0; i < n && !r;) {
        if (p[i] == '\\') {
            r = translate_escape(p, n, &i, in_class, out, err);
        } else if (in_class || p[i] == '[') {
            r = translate_class(p, n, &i, &in_class, out, err);
        } else if (p[i] == '(' && !group_is_known(p + i + 1, n - i - 1)) {
            r = refuse(err, p, n, "this kind of group", i);
        } else if (p[i] == '}' && i + 1 < n && p[i + 1] == '+') {
            r = refuse(err, p, n, "'+' after {}", i);
        } else {
            r = text_add(out, p + i++, 1);
        }
    }
    return r;
}

static int compile(const char *pattern, size_t n, uint32_t options, struct tokenizer_regex **ret,
                   struct err *err)
{
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR message[128];
    struct tokenizer_regex *r = calloc(1, sizeof *r);

    if (!r)
        return -ENOMEM;
    r->code = pcre2_compile((PCRE2_SPTR)pattern, n, options | PCRE2_UTF, &code, &at, NULL);
    if (!r->code) {
        (void)pcre2_get_error_message(code, message, sizeof message);
        free(r);
        return err_set(err, -EINVAL, "regular expression \"%.*s\": %s at offset %zu",
                       (int)(n < 300 ? n : 300), pattern, (const char *)message, (size_t)at);
    }
    r->context = pcre2_match_context_create(NULL);
    if (!r->context) {
        tokenizer_regex_free(r);
        return -ENOMEM;
    }
    (void)pcre2_set_match_limit(r->context, MATCH_LIMIT);
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    *ret = r;
    return 0;
}

int tokenizer_regex_new(const char *pattern, size_t n, struct tokenizer_regex **ret,
                        struct err *err)
{
    struct text out = {0};

    if (n > MAX_PATTERN || !text_utf8_valid(pattern, n))
        return err_set(err, -EINVAL, "a regular expression is longer than %d bytes or not UTF-8",
                       MAX_PATTERN);
    int r = translate(pattern, n, &out, err);
    if (!r)
        r = compile(out.s ? out.s : "", out.n,
                    PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, ret, err);
    text_free(&out);
    return r;
}

int tokenizer_regex_literal(const char *text, size_t n, struct tokenizer_regex **ret,
                            struct err *err)
{
    if (n == 0 || n > MAX_PATTERN || !text_utf8_valid(text, n))
        return err_set(err, -EINVAL, "a pattern is empty, longer than %d bytes or not UTF-8",
                       MAX_PATTERN);
    return compile(text, n, PCRE2_LITERAL, ret, err);
}

void tokenizer_regex_free(struct tokenizer_regex *r)
{
    if (!r)
        return;
    pcre2_match_context_free(r->context);
    pcre2_code_free(r->code);
    free(r);
}

void *tokenizer_regex_room(void)
{
    return pcre2_match_data_create(1, NULL);
}

void tokenizer_regex_room_free(void *room)
{
    pcre2_match_data_free(room);
}

int tokenizer_regex_find(const struct tokenizer_regex *r, void *room, const char *s, size_t n,
                         size_t from, size_t *ret_start, size_t *ret_end)
{
    pcre2_match_data *data = room;
    int code = PCRE2_ERROR_JIT_STACKLIMIT;

    if (r->jit)
        code =
            pcre2_jit_match(r->code, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, data, r->context);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT) /* or no JIT: the interpreter uses the heap */
        code = pcre2_match(r->code, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                           r->context);
    if (code == PCRE2_ERROR_NOMATCH)
        return 0;
    if (code < 0)
        return code == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -EOVERFLOW;
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(data);
    if (ends[1] < ends[0]) /* \K in a look-ahead; refused above, kept as a bound */
        return -EOVERFLOW;
    *ret_start = ends[0];
    *ret_end = ends[1];
    return 1;
}
