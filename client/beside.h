/* beside.h - the programs that came with this alignctl, and running them. */
#ifndef CLIENT_BESIDE_H
#define CLIENT_BESIDE_H

#include <stddef.h>

#include "client/cli.h"

enum { BESIDE_MAX_ARGS = 160 };

/* Path of `name` ("align-worker", "alignd"): $variable, beside alignctl, or in the
 * build tree's ../folder. CLI_OK, or CLI_ERROR saying where it was looked for. */
int beside_find(struct cli *cli, const char *name, const char *folder, const char *variable,
                char *buf, size_t room);

/* Runs align-worker with argv (argv[0] is set here; NULL ends it). input (may be NULL)
 * is its standard input, else ours; standard error is ours. Its output is returned in
 * *ret (malloc'ed, NUL-terminated), or goes to ours where ret is NULL.
 * CLI_OK and *ret_status (exit code, 128 + signal), or CLI_ERROR. */
int beside_worker(struct cli *cli, const char **argv, const char *input, char **ret,
                  int *ret_status);

#endif
