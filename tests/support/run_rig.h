/* run_rig.h - whole runs in one process: a job, its ranks as threads, what they left. */
#ifndef TESTS_SUPPORT_RUN_RIG_H
#define TESTS_SUPPORT_RUN_RIG_H

#include "tests/support/test.h"

#include <pthread.h>
#include <sched.h>

#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"
#include "worker/coll.h"
#include "worker/link.h"
#include "worker/metrics.h"
#include "worker/run.h"
#include "worker/spool.h"

static const char *backend = "cpu";

struct job {
    struct temp_dir dir;
    struct spec *spec;
    char *resolved, *user;
    uint32_t ranks;
    uint32_t ear; /* the rank that directives are said to                              */
};

/* Reads the job in text, whose output_dir is j->dir. */
static inline void job_read(struct job *j, const char *text)
{
    struct spec_problems problems = {0};
    struct err err = {""};

    if (spec_read(text, strlen(text), &(struct spec_options){.file = "t.json", .base_dir = "/tmp"},
                  &j->spec, &j->user, &j->resolved, &problems) < 0)
        fail_msg("%s", problems.v[0].text);
    spec_problems_free(&problems);
    if (spec_place(j->spec, "local", &err) < 0)
        fail_msg("%s", err.text);
    j->ranks = (uint32_t)j->spec->devices;
    j->ear = j->ranks - 1;
}

static inline void job_free(struct job *j)
{
    temp_dir_remove(&j->dir);
    spec_free(j->spec);
    free(j->user);
    free(j->resolved);
}

static inline const char *in(const struct job *j, const char *name)
{
    return temp_dir_path(&j->dir, name);
}

static inline bool is_there(const struct job *j, const char *name)
{
    struct stat st;
    return stat(in(j, name), &st) == 0;
}

struct member {
    const struct job *j;
    uint32_t attempt, rank;
    void *local;
    unsigned told;
    int code;
    struct err err;
};

static inline void *rank_main(void *arg)
{
    struct member *m = arg;
    struct coll_opts co = {.backend = "local",
                           .rank = m->rank,
                           .ranks = m->j->ranks,
                           .local = m->local,
                           .timeout_ms = 60000};
    struct coll *c = NULL;
    struct link *l = NULL;
    int fds[2] = {-1, -1};

    m->code = -1;
    if (coll_open(&co, &c, &m->err) < 0 || link_pair(fds) < 0)
        return NULL;
    if (link_open(fds[0], &l) < 0 || (m->told != 0 && link_send_flags(fds[1], m->told) < 0))
        return NULL;
    while (m->told != 0 && link_flags(l) == 0)
        sched_yield(); /* until the link's thread has heard it */
    m->code = run_train(&(struct run_opts){.spec = m->j->spec,
                                           .resolved_json = m->j->resolved,
                                           .user_json = m->j->user,
                                           .attempt = m->attempt,
                                           .rank = m->rank,
                                           .ranks = m->j->ranks,
                                           .backend = backend,
                                           .threads = 1,
                                           .coll = c,
                                           .link = l},
                        &m->err);
    coll_close(c);
    link_close(l);
    close(fds[1]);
    return NULL;
}

/* Runs an attempt; told (LINK_*) is said to rank j->ear before its first step;
 * all ranks have to end with the same code.
 * Returns the code of rank 0; *ret_err is its sentence. */
static inline int attempt(const struct job *j, uint32_t n, unsigned told, struct err *ret_err)
{
    struct member m[LIMIT_RANKS] = {0};
    pthread_t th[LIMIT_RANKS];
    char name[64];
    void *local = coll_local_new(j->ranks);

    (void)mkdir(in(j, "attempts"), 0700);
    snprintf(name, sizeof name, "attempts/%u", n);
    (void)mkdir(in(j, name), 0700);
    for (uint32_t r = 0; r < j->ranks; r++) {
        m[r] = (struct member){
            .j = j, .attempt = n, .rank = r, .local = local, .told = r == j->ear ? told : 0};
        assert_int_equal(pthread_create(&th[r], NULL, rank_main, &m[r]), 0);
    }
    for (uint32_t r = 0; r < j->ranks; r++)
        pthread_join(th[r], NULL);
    coll_local_free(local);
    for (uint32_t r = 1; r < j->ranks; r++)
        assert_int_equal(m[r].code, m[0].code);
    *ret_err = m[0].err;
    return m[0].code;
}

static inline void attempt_ends(const struct job *j, uint32_t n, unsigned told, int code)
{
    struct err err;
    const int got = attempt(j, n, told, &err);

    if (got != code)
        fail_msg("attempt %u ended with %d, not %d: %s", n, got, code, err.text);
}

/* Without the rows that say where an attempt began. */
static inline struct spool_row *rows_of(const struct job *j, int *ret_n)
{
    size_t bytes;
    char *text = test_data_read(in(j, "metrics.jsonl"), &bytes);
    struct spool_row *v = calloc(64, sizeof *v);
    int n = 0;

    assert_non_null(text);
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        assert_true(n < 64);
        assert_int_equal(spool_parse(line, (size_t)(end - line), &v[n]), 0);
        n += v[n].kind != SPOOL_START;
    }
    free(text);
    *ret_n = n;
    return v;
}

#endif
