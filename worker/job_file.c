/* job_file.c - see job_file.h. */
#include "worker/job_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/limit.h"

static int read_all(int fd, char **ret, size_t *ret_bytes)
{
    char *text = malloc(LIMIT_SPEC_BYTES + 1);
    size_t have = 0;

    if (!text)
        return -ENOMEM;
    for (;;) {
        const ssize_t n = read(fd, text + have, LIMIT_SPEC_BYTES + 1 - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0) {
            *ret = text;
            *ret_bytes = have;
            return 0;
        }
        have += n > 0 ? (size_t)n : 0;
        if (n < 0 || have > LIMIT_SPEC_BYTES) {
            const int r = n < 0 ? -errno : -EFBIG;
            free(text);
            return r;
        }
    }
}

/* The folder of the file; `here` for standard input. */
static void folder_of(const char *path, const char *here, char *buf, size_t room)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        snprintf(buf, room, "%s", here);
    else if (path[0] == '/')
        snprintf(buf, room, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    else
        snprintf(buf, room, "%s/%.*s", here, (int)(slash - path), path);
}

int job_file_read(const struct job_args *a, struct job_file *ret, struct err *err)
{
    const bool in = strcmp(a->path, "-") == 0;
    char here[LIMIT_PATH], folder[2 * LIMIT_PATH], *text = NULL;
    size_t bytes = 0;
    int fd, r;

    memset(ret, 0, sizeof *ret);
    if (!getcwd(here, sizeof here))
        return err_set(err, -errno, "the current folder: %s", strerror(errno));
    folder_of(a->path, here, folder, sizeof folder);
    fd = in ? STDIN_FILENO : open(a->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s", a->path, strerror(errno));
    r = read_all(fd, &text, &bytes);
    if (!in)
        close(fd);
    if (r == -EFBIG)
        return err_set(err, r, "%s: longer than %d bytes: this is no job file", a->path,
                       LIMIT_SPEC_BYTES);
    if (r < 0)
        return err_set(err, r, "%s: %s", a->path, strerror(-r));
    const struct spec_options o = {.file = in ? "standard input" : a->path,
                                   .base_dir = a->base ? a->base : folder,
                                   .output_base = here,
                                   .sets = a->sets,
                                   .n_sets = a->n_sets,
                                   .more = &ret->more};
    r = spec_read(text, bytes, &o, &ret->spec, &ret->user, &ret->resolved, &ret->problems);
    free(text);
    return r < 0 && r != -EINVAL ? err_set(err, r, "%s: %s", o.file, strerror(-r)) : r;
}

void job_file_free(struct job_file *j)
{
    spec_free(j->spec);
    free(j->user);
    free(j->resolved);
    spec_problems_free(&j->problems);
    spec_more_fini(&j->more);
    memset(j, 0, sizeof *j);
}

int job_file_problem(struct job_file *j, const char *key, bool warning, const char *text)
{
    struct spec_problem *v = realloc(j->problems.v, (j->problems.n + 1) * sizeof *v);

    if (!v)
        return -ENOMEM;
    j->problems.v = v;
    v[j->problems.n] = (struct spec_problem){.line = key ? spec_lines_find(&j->more.lines, key) : 0,
                                             .warning = warning};
    snprintf(v[j->problems.n].text, sizeof v[0].text, "%s", text);
    j->problems.n++;
    spec_problems_sort(&j->problems);
    return 0;
}

int job_file_data_problem(struct job_file *j, const struct spec *spec, const char *text)
{
    char key[32] = "";

    for (int i = 0; i < spec->n_train + spec->n_eval; i++) {
        const bool eval = i >= spec->n_train;
        const int at = eval ? i - spec->n_train : i;
        const char *path = eval ? spec->eval[at].path : spec->train[at].path;
        if (!path || strncmp(text, path, strlen(path)) != 0)
            continue;
        (void)snprintf(key, sizeof key, "%s.%d.path", eval ? "eval" : "train", at);
        break;
    }
    if (!key[0] && strncmp(text, spec->model_dir, strlen(spec->model_dir)) == 0)
        (void)snprintf(key, sizeof key, "model_name_or_path");
    return job_file_problem(j, key[0] ? key : NULL, false, text);
}
