/* args.c - see args.h. */
#include "client/args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct args_option *find_letter(const struct args_option *list, char letter)
{
    for (; list->name; list++)
        if (list->letter == letter)
            return list;
    return NULL;
}

static const struct args_option *find_long(const struct args_option *list, const char *name,
                                           size_t n)
{
    for (; list->name; list++)
        if (strlen(list->name) == n && memcmp(list->name, name, n) == 0)
            return list;
    return NULL;
}

static int count(struct cli *cli, const char *name, const char *text, unsigned long long *ret)
{
    char *end = NULL;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno)
        return err_set(&cli->err, CLI_USAGE, "--%s: must be a whole number, not `%.60s`", name,
                       text);
    *ret = v;
    return CLI_OK;
}

static int take(struct cli *cli, const struct args_option *o, const char *value)
{
    struct args_sets *sets;
    switch (o->kind) {
    case ARGS_FLAG:
        *(bool *)o->to = true;
        return CLI_OK;
    case ARGS_TEXT:
        *(const char **)o->to = value;
        return CLI_OK;
    case ARGS_COUNT:
        return count(cli, o->name, value, o->to);
    case ARGS_SETS:
        sets = o->to;
        if (!strchr(value, '=') || value[0] == '=')
            return err_set(&cli->err, CLI_USAGE, "--%s %.100s: must be key=value", o->name, value);
        if (sets->n == ARGS_MAX_SETS)
            return err_set(&cli->err, CLI_USAGE, "--%s: at most %d times", o->name, ARGS_MAX_SETS);
        sets->v[sets->n++].text = value;
        return CLI_OK;
    }
    return CLI_USAGE;
}

/* One argument that begins with a dash; *at moves on over its value. */
static int option(struct cli *cli, int argc, char **argv, int *at, const struct args_option *own)
{
    const struct args_option all[] = {{"host", 0, ARGS_TEXT, &cli->host},
                                      {"json", 0, ARGS_FLAG, &cli->json},
                                      {NULL, 0, ARGS_FLAG, NULL}};
    const char *a = argv[*at], *value = NULL;
    bool is_long = a[1] == '-';
    const char *name = a + (is_long ? 2 : 1);
    size_t n = is_long ? strcspn(name, "=") : 1;
    const struct args_option *o = is_long ? find_long(own, name, n) : find_letter(own, name[0]);
    if (!o && is_long)
        o = find_long(all, name, n);
    if (!o)
        return err_set(&cli->err, CLI_USAGE, "%s has no option %.60s", argv[0], a);
    if (o->kind == ARGS_FLAG) {
        if (name[n])
            return err_set(&cli->err, CLI_USAGE, "%.60s: takes no value", a);
        return take(cli, o, NULL);
    }
    if (is_long && name[n] == '=')
        value = name + n + 1;
    else if (!is_long && name[1])
        value = name + 1;
    else if (*at + 1 < argc)
        value = argv[++*at];
    if (!value)
        return err_set(&cli->err, CLI_USAGE, "%.60s needs a value", a);
    return take(cli, o, value);
}

static int parse(struct cli *cli, int argc, char **argv, const struct args_option *options,
                 const char **rest, size_t min_rest, size_t max_rest, size_t *n_rest)
{
    size_t n = 0;
    bool ended = false;
    for (int i = 1; i < argc; i++) {
        if (!ended && strcmp(argv[i], "--") == 0) {
            ended = true;
        } else if (!ended && argv[i][0] == '-' && argv[i][1]) {
            int r = option(cli, argc, argv, &i, options);
            if (r != CLI_OK)
                return r;
        } else if (n == max_rest) {
            return err_set(&cli->err, CLI_USAGE, "%s: `%.60s` is one too many", argv[0], argv[i]);
        } else {
            rest[n++] = argv[i];
        }
    }
    if (n < min_rest)
        return err_set(&cli->err, CLI_USAGE, "%s: something is missing", argv[0]);
    if (n_rest)
        *n_rest = n;
    return CLI_OK;
}

int args_parse(struct cli *cli, int argc, char **argv, const struct args_option *options,
               const char **rest, size_t min_rest, size_t max_rest, size_t *n_rest)
{
    const int r = parse(cli, argc, argv, options, rest, min_rest, max_rest, n_rest);

    cli->usage = r != CLI_OK;
    return r;
}

int args_job(struct cli *cli, const char *text, unsigned long long *ret)
{
    char *end = NULL;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || v == 0)
        return err_set(&cli->err, CLI_USAGE, "`%.60s` is not a job id: a number like 7", text);
    *ret = v;
    return CLI_OK;
}
