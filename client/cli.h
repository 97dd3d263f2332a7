/* cli.h - what every verb of alignctl gets, and the exit codes it may give. */
#ifndef CLIENT_CLI_H
#define CLIENT_CLI_H

#include <stdbool.h>
#include <stdio.h>

#include "proto/err.h"

enum { /* exit codes; the table */
       CLI_OK = 0,
       CLI_ERROR = 1,
       CLI_USAGE = 2,
       CLI_NOT_FOUND = 3,
       CLI_JOB_FAILED = 4,  /* wait, submit --wait, watch: the job did not complete   */
       CLI_UNREACHABLE = 5, /* no daemon                                              */
       CLI_REFUSED = 6,
       CLI_VERSION = 7, /* client and daemon have no version in common            */
};

struct cli {
    const char *host;  /* --host, $ALIGND_HOST, or NULL: this user's own daemon        */
    bool json;         /* --json                                                       */
    bool colour;       /* standard output is a terminal that may be coloured           */
    bool utf8;         /* the locale's character set is UTF-8                          */
    bool live;         /* standard output is a terminal                                */
    FILE *out, *notes; /* answers; what a person should know beside them               */
    bool usage;        /* the command line is wrong: its form is shown as well          */
    struct err err;    /* the sentence of a code that is not CLI_OK; "" = told already */
};

/* CLI_ERROR: what was printed did not arrive. Of a reader that has gone away (`| head`)
 * there is nothing to say. */
int cli_out_failed(struct cli *cli);

struct cli_verb {
    const char *name;
    const char *usage;                                  /* after the name      */
    const char *what;                                   /* one line            */
    int (*run)(struct cli *cli, int argc, char **argv); /* argv[0] = the verb; a CLI_ code */
};

/* One table per file of verbs, ended by a name of NULL. */
extern const struct cli_verb verb_daemon[]; /* up, down                        */
extern const struct cli_verb verb_local[];  /* check, plan, data, try, tokenize */
extern const struct cli_verb verb_submit[]; /* submit, resume, rerun           */
extern const struct cli_verb verb_queue[];  /* list, show, devices             */
extern const struct cli_verb verb_follow[]; /* watch, wait                     */
extern const struct cli_verb verb_output[]; /* logs, metrics                   */
extern const struct cli_verb verb_change[]; /* cancel, hold, release, drain... */

/* The verbs' parts that other verbs end with. */
int watch_job(struct cli *cli, unsigned long long job);
int wait_job(struct cli *cli, unsigned long long job);

#endif
