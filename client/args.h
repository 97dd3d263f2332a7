/* args.h - the options of a verb, as a table. */
#ifndef CLIENT_ARGS_H
#define CLIENT_ARGS_H

#include <stdbool.h>
#include <stddef.h>

#include "client/cli.h"
#include "proto/spec.h"

enum args_kind {
    ARGS_FLAG,  /* bool *                                        */
    ARGS_TEXT,  /* const char **                                 */
    ARGS_COUNT, /* unsigned long long *: a whole number, 0 or up */
    ARGS_SETS,  /* struct args_sets *: repeatable key=value      */
};

struct args_option {
    const char *name; /* without the dashes; NULL ends a table */
    char letter;      /* or 0                                  */
    enum args_kind kind;
    void *to;
};

enum { ARGS_MAX_SETS = 64 };
struct args_sets {
    struct spec_set v[ARGS_MAX_SETS];
    size_t n;
};

/* Parses argv[1..]: options may stand anywhere, `--` ends them, --opt=value works,
 * --host and --json are every verb's. What is no option goes to rest[0..*n_rest),
 * at most max_rest and at least min_rest. CLI_OK, or CLI_USAGE with the sentence. */
int args_parse(struct cli *cli, int argc, char **argv, const struct args_option *options,
               const char **rest, size_t min_rest, size_t max_rest, size_t *n_rest);

/* "17" to a job id; CLI_USAGE for anything else. */
int args_job(struct cli *cli, const char *text, unsigned long long *ret);

#endif
