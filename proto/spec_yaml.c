/* spec_yaml.c - see spec_yaml.h. The only user of libfyaml.
 *
 * Types are those of the core schema, YAML 1.2.2 section 10.3. libfyaml's own
 * resolving of aliases copies subtrees without a bound, so aliases are followed
 * here, and every node visited counts against one budget; its search for equal keys
 * is quadratic, so what can end a key is counted before. */
#include "proto/spec_yaml.h"

#include <errno.h>
#include <libfyaml.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limit.h"

enum {
    YAML_NODES = 20000, /* nodes after aliases are expanded          */
    YAML_MARKS = 4000,  /* `:`, `?` and `,`: what can end a key      */
    YAML_DEPTH = 16,    /* a job file is three deep                  */
    YAML_PATH = 512,
};

struct yaml {
    struct spec_lines *lines;
    int nodes;
    int line; /* of the problem */
    struct err *err;
};

static int yaml_node(struct yaml *y, struct fy_node *n, char *path, int depth, json_t **ret);

static int lines_add(struct spec_lines *l, const char *path, int line)
{
    if (!l)
        return 0;
    if (l->n == l->room) {
        size_t room = l->room ? 2 * l->room : 64;
        struct spec_line *v = realloc(l->v, room * sizeof *v);
        if (!v)
            return -ENOMEM;
        l->v = v;
        l->room = room;
    }
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    l->v[l->n++] = (struct spec_line){copy, line};
    return 0;
}

/* The line of a scalar, or of the first scalar in a mapping or list; 0: none. */
static int node_line(struct fy_node *n)
{
    for (int depth = 0; n && depth < YAML_DEPTH; depth++) {
        struct fy_token *t = fy_node_get_scalar_token(n);
        const struct fy_mark *m = t ? fy_token_start_mark(t) : NULL;
        void *it = NULL;
        if (m)
            return m->line + 1;
        if (fy_node_is_mapping(n)) {
            struct fy_node_pair *pair = fy_node_mapping_iterate(n, &it);
            n = pair ? fy_node_pair_key(pair) : NULL;
        } else if (fy_node_is_sequence(n)) {
            n = fy_node_sequence_iterate(n, &it);
        } else {
            return 0;
        }
    }
    return 0;
}

static int yaml_fail(struct yaml *y, struct fy_node *n, const char *text)
{
    int line = node_line(n);
    if (line)
        y->line = line;
    return err_set(y->err, -EINVAL, "%s", text);
}

static bool text_is(const char *s, size_t n, const char *const *words)
{
    for (; *words; words++)
        if (strlen(*words) == n && memcmp(s, *words, n) == 0)
            return true;
    return false;
}

static size_t digits(const char *s, size_t n, const char *set)
{
    size_t k = 0;
    while (k < n && strchr(set, s[k]) && s[k])
        k++;
    return k;
}

/* [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? */
static bool is_float(const char *s, size_t n)
{
    size_t k = n && (s[0] == '-' || s[0] == '+') ? 1 : 0;
    size_t whole = digits(s + k, n - k, "0123456789"), part = 0;
    k += whole;
    if (k < n && s[k] == '.') {
        k++;
        part = digits(s + k, n - k, "0123456789");
        k += part;
    }
    if (whole + part == 0)
        return false;
    if (k < n && (s[k] == 'e' || s[k] == 'E')) {
        k++;
        if (k < n && (s[k] == '-' || s[k] == '+'))
            k++;
        size_t e = digits(s + k, n - k, "0123456789");
        if (e == 0)
            return false;
        k += e;
    }
    return k == n;
}

static bool is_int(const char *s, size_t n)
{
    size_t k = n && (s[0] == '-' || s[0] == '+') ? 1 : 0;
    return n > k && digits(s + k, n - k, "0123456789") == n - k;
}

static int yaml_integer(struct yaml *y, struct fy_node *node, const char *s, int base, json_t **ret)
{
    errno = 0;
    char *end = NULL;
    long long v = strtoll(s, &end, base);
    if (errno == ERANGE || *end)
        return yaml_fail(y, node, "this whole number is out of range");
    *ret = json_integer(v);
    return *ret ? 0 : -ENOMEM;
}

static int yaml_string(struct yaml *y, struct fy_node *node, const char *s, size_t n, json_t **ret)
{
    *ret = json_stringn(s, n);
    return *ret ? 0 : yaml_fail(y, node, "this text is not valid UTF-8");
}

static int yaml_plain(struct yaml *y, struct fy_node *node, const char *s, size_t n, json_t **ret)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const yes[] = {"true", "True", "TRUE", NULL};
    static const char *const no[] = {"false", "False", "FALSE", NULL};
    static const char *const odd[] = {".inf",  ".Inf",  ".INF", "+.inf", "+.Inf", "+.INF", "-.inf",
                                      "-.Inf", "-.INF", ".nan", ".NaN",  ".NAN",  NULL};
    char num[64];

    if (text_is(s, n, nulls))
        return (*ret = json_null()) ? 0 : -ENOMEM;
    if (text_is(s, n, yes))
        return (*ret = json_true()) ? 0 : -ENOMEM;
    if (text_is(s, n, no))
        return (*ret = json_false()) ? 0 : -ENOMEM;
    if (text_is(s, n, odd))
        return yaml_fail(y, node, "values that are not finite have no place in a job file");
    if (n >= sizeof num)
        return yaml_string(y, node, s, n, ret);
    memcpy(num, s, n);
    num[n] = '\0';
    if (is_int(s, n))
        return yaml_integer(y, node, num, 10, ret);
    if (n > 2 && num[0] == '0' && num[1] == 'o' && digits(s + 2, n - 2, "01234567") == n - 2)
        return yaml_integer(y, node, num + 2, 8, ret);
    if (n > 2 && num[0] == '0' && num[1] == 'x' &&
        digits(s + 2, n - 2, "0123456789abcdefABCDEF") == n - 2)
        return yaml_integer(y, node, num + 2, 16, ret);
    if (is_float(s, n)) {
        double v = strtod(num, NULL);
        if (!isfinite(v))
            return yaml_fail(y, node, "this number is out of range");
        return (*ret = json_real(v)) ? 0 : -ENOMEM;
    }
    return yaml_string(y, node, s, n, ret);
}

static int yaml_scalar(struct yaml *y, struct fy_node *n, json_t **ret)
{
    size_t bytes = 0, tag_bytes = 0;
    const char *s = fy_node_get_scalar(n, &bytes);
    const char *tag = fy_node_get_tag(n, &tag_bytes);
    static const char *const str_tag[] = {"tag:yaml.org,2002:str", "!", NULL};

    if (!s) {
        s = "";
        bytes = 0;
    }
    if (memchr(s, '\0', bytes))
        return yaml_fail(y, n, "a zero byte has no place in a job file");
    if (tag && text_is(tag, tag_bytes, str_tag))
        return yaml_string(y, n, s, bytes, ret);
    if (tag && tag_bytes)
        return yaml_fail(y, n, "tags (!...) are not used in job files: write the plain value");
    if (fy_node_get_style(n) == FYNS_PLAIN)
        return yaml_plain(y, n, s, bytes, ret);
    return yaml_string(y, n, s, bytes, ret);
}

/* Appends ".name" to path; returns the old length to cut back to, or -1. */
static int path_push(char *path, const char *name)
{
    size_t old = strlen(path), more = strlen(name);
    if (old + more + 2 > YAML_PATH)
        return -1;
    (void)snprintf(path + old, YAML_PATH - old, "%s%s", old ? "." : "", name);
    return (int)old;
}

static int yaml_pair(struct yaml *y, struct fy_node_pair *pair, char *path, int depth, json_t *map)
{
    struct fy_node *k = fy_node_pair_key(pair), *v = fy_node_pair_value(pair);
    if (!k || !fy_node_is_scalar(k) || fy_node_is_alias(k))
        return yaml_fail(y, k ? k : v, "a key must be a plain word");
    size_t bytes = 0;
    const char *s = fy_node_get_scalar(k, &bytes);
    if (!s || bytes == 0 || bytes >= LIMIT_NAME || memchr(s, '\0', bytes))
        return yaml_fail(y, k, "a key must be a word of at most 127 bytes");
    char name[LIMIT_NAME];
    memcpy(name, s, bytes);
    name[bytes] = '\0';
    if (strcmp(name, "<<") == 0)
        return yaml_fail(y, k, "`<<` (merge keys) is YAML 1.1: write the keys out");
    int old = path_push(path, name), line = node_line(k);
    if (old < 0)
        return yaml_fail(y, k, "this key lies too deep");
    int r = lines_add(y->lines, path, line);
    if (r < 0)
        return r;
    y->line = line;
    json_t *value = NULL;
    r = v ? yaml_node(y, v, path, depth + 1, &value) : ((value = json_null()), 0);
    if (r < 0)
        return r;
    if (json_object_get(map, name)) {
        json_decref(value);
        return yaml_fail(y, k, "this key stands here twice");
    }
    path[old] = '\0';
    if (json_object_set_new(map, name, value) < 0)
        return yaml_fail(y, k, "this key is not valid UTF-8");
    return 0;
}

static int yaml_mapping(struct yaml *y, struct fy_node *n, char *path, int depth, json_t **ret)
{
    json_t *map = json_object();
    if (!map)
        return -ENOMEM;
    void *it = NULL;
    struct fy_node_pair *pair;
    while ((pair = fy_node_mapping_iterate(n, &it))) {
        int r = yaml_pair(y, pair, path, depth, map);
        if (r < 0) {
            json_decref(map);
            return r;
        }
    }
    *ret = map;
    return 0;
}

static int yaml_sequence(struct yaml *y, struct fy_node *n, char *path, int depth, json_t **ret)
{
    json_t *list = json_array();
    if (!list)
        return -ENOMEM;
    void *it = NULL;
    struct fy_node *item;
    int r = 0;
    while ((item = fy_node_sequence_iterate(n, &it))) {
        char index[24];
        (void)snprintf(index, sizeof index, "%zu", json_array_size(list));
        int old = path_push(path, index), line = node_line(item);
        if (old < 0) {
            r = yaml_fail(y, item, "this list lies too deep");
            break;
        }
        json_t *value = NULL;
        r = line ? lines_add(y->lines, path, line) : 0;
        if (r == 0)
            r = yaml_node(y, item, path, depth + 1, &value);
        path[old] = '\0';
        if (r < 0)
            break;
        if (json_array_append_new(list, value) < 0) {
            r = -ENOMEM;
            break;
        }
    }
    if (r < 0) {
        json_decref(list);
        return r;
    }
    *ret = list;
    return 0;
}

static int yaml_node(struct yaml *y, struct fy_node *n, char *path, int depth, json_t **ret)
{
    if (depth > YAML_DEPTH)
        return yaml_fail(y, n, "nested too deep for a job file");
    if (++y->nodes > YAML_NODES)
        return yaml_fail(y, n, "too many values (anchors repeated too often?)");
    if (fy_node_is_alias(n)) {
        struct fy_node *to = fy_node_resolve_alias(n);
        if (!to || fy_node_is_alias(to))
            return yaml_fail(y, n, "this alias (*name) has no anchor (&name) it can take");
        n = to;
    }
    switch (fy_node_get_type(n)) {
    case FYNT_MAPPING:
        return yaml_mapping(y, n, path, depth, ret);
    case FYNT_SEQUENCE:
        return yaml_sequence(y, n, path, depth, ret);
    case FYNT_SCALAR:
    default:
        return yaml_scalar(y, n, ret);
    }
}

static void yaml_syntax(struct yaml *y, struct fy_diag *diag)
{
    void *it = NULL;
    struct fy_diag_error *e = fy_diag_errors_iterate(diag, &it);
    if (e) {
        y->line = e->line > 0 ? e->line : 1;
        (void)err_set(y->err, 0, "not YAML: %s", e->msg ? e->msg : "unreadable");
    } else {
        y->line = 1;
        (void)err_set(y->err, 0, "not YAML");
    }
}

static bool has_too_many_keys(const char *s, size_t n)
{
    size_t marks = 0;
    for (size_t i = 0; i < n; i++)
        marks += s[i] == ':' || s[i] == '?' || s[i] == ',';
    return marks > YAML_MARKS;
}

static bool is_blank(const char *s, size_t n)
{
    bool comment = false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '#')
            comment = true;
        else if (s[i] == '\n')
            comment = false;
        else if (!comment && s[i] != ' ' && s[i] != '\r' && s[i] != '\t')
            return false;
    }
    return true;
}

int spec_yaml_parse(const char *text, size_t bytes, json_t **ret, struct spec_lines *lines,
                    int *ret_line, struct err *err)
{
    struct yaml y = {.lines = lines, .err = err};
    char path[YAML_PATH] = "";
    struct fy_diag_cfg dc;
    struct fy_document *doc = NULL;
    int r = -ENOMEM;

    *ret_line = 0;
    if (bytes > LIMIT_SPEC_BYTES)
        return err_set(err, -EINVAL, "longer than 1 MiB: not a job file");
    if (has_too_many_keys(text, bytes))
        return err_set(err, -EINVAL, "more than %d keys and values: not a job file", YAML_MARKS);
    if (is_blank(text, bytes))
        return (*ret = json_object()) ? 0 : -ENOMEM;
    fy_diag_cfg_default(&dc);
    dc.fp = NULL;
    struct fy_diag *diag = fy_diag_create(&dc);
    if (!diag)
        return -ENOMEM;
    fy_diag_set_collect_errors(diag, true);
    struct fy_parse_cfg cfg = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG |
                                        FYPCF_DEFAULT_VERSION_1_2 | FYPCF_JSON_NONE,
                               .diag = diag};
    doc = fy_document_build_from_string(&cfg, text, bytes);
    if (!doc) {
        yaml_syntax(&y, diag);
        r = -EINVAL;
    } else if (!fy_document_root(doc)) {
        r = (*ret = json_object()) ? 0 : -ENOMEM;
    } else {
        r = yaml_node(&y, fy_document_root(doc), path, 0, ret);
    }
    *ret_line = y.line;
    fy_document_destroy(doc);
    fy_diag_destroy(diag);
    return r;
}

int spec_lines_forget(struct spec_lines *lines, const char *path)
{
    size_t n = strlen(path);
    bool found = false;
    for (size_t i = 0; i < lines->n; i++) {
        const char *p = lines->v[i].path;
        if (strncmp(p, path, n) == 0 && (p[n] == '\0' || p[n] == '.')) {
            lines->v[i].line = 0;
            found = found || p[n] == '\0';
        }
    }
    return found ? 0 : lines_add(lines, path, 0);
}

int spec_lines_alias(struct spec_lines *lines, const char *path, const char *as)
{
    return lines_add(lines, path, spec_lines_find(lines, as));
}

int spec_lines_find(const struct spec_lines *lines, const char *path)
{
    char at[YAML_PATH];
    (void)snprintf(at, sizeof at, "%s", path);
    for (;;) {
        for (size_t i = 0; i < lines->n; i++)
            if (strcmp(lines->v[i].path, at) == 0)
                return lines->v[i].line;
        char *dot = strrchr(at, '.');
        if (!dot)
            return 0;
        *dot = '\0';
    }
}

void spec_lines_fini(struct spec_lines *lines)
{
    for (size_t i = 0; i < lines->n; i++)
        free(lines->v[i].path);
    free(lines->v);
    *lines = (struct spec_lines){0};
}
