/* jobfile.h - a job file as alignctl's verbs use it: text, spec, check by the worker. */
#ifndef CLIENT_JOBFILE_H
#define CLIENT_JOBFILE_H

#include <jansson.h>

#include "client/args.h"
#include "client/cli.h"
#include "proto/spec.h"

struct jobfile {
    const char *path; /* as given; "-": standard input                      */
    char *text;       /* what it holds                                      */
    char base[4096];  /* what its relative paths are relative to            */
    const struct args_sets *sets;
    struct spec *spec;     /* after jobfile_resolve */
    char *user, *resolved; /* ...                   */
    json_t *check;         /* after jobfile_check: what align-worker --check printed */
};

/* Reads the file. A zeroed struct before; jobfile_fini after, in any case. */
int jobfile_open(struct cli *cli, const char *path, const struct args_sets *sets,
                 struct jobfile *f);
/* The same for a text that came from the daemon. */
int jobfile_from_text(struct cli *cli, const char *text, const struct args_sets *sets,
                      struct jobfile *f);
/* Spec, user's part and resolved spec. Problems are told on cli->notes, each with its
 * line; CLI_ERROR then, with nothing more to say. */
int jobfile_resolve(struct cli *cli, struct jobfile *f);
/* The same without a word: everything was told already. */
int jobfile_resolve_quietly(struct cli *cli, struct jobfile *f);
/* align-worker VERB..., the job file and --set; its JSON in *ret (to json_decref), also
 * when it says no: *ret_status is its exit code. */
int jobfile_worker(struct cli *cli, const struct jobfile *f, const char *verb, const char *option,
                   const char *value, json_t **ret, int *ret_status);
/* align-worker --check: all that is wrong is told, notes too; fills f->check. */
int jobfile_check(struct cli *cli, struct jobfile *f, bool overwrite);
/* Tells j's "problems" on cli->notes; returns how many are no warnings. */
int jobfile_tell(struct cli *cli, const struct jobfile *f, const json_t *j);
/* CLI_REFUSED where output_dir is already known and holds something. */
int jobfile_output_free(struct cli *cli, const struct jobfile *f);
void jobfile_fini(struct jobfile *f);

#endif
