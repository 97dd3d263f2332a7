/* jobfile.c - see jobfile.h. */
#include "client/jobfile.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/beside.h"
#include "client/format.h"
#include "proto/buf.h"
#include "proto/limit.h"

static int read_file(struct cli *cli, const char *path, char **ret)
{
    struct buf b = {.max = LIMIT_SPEC_BYTES};
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *f = is_stdin ? stdin : fopen(path, "re");
    char chunk[65536];
    size_t n;

    if (!f)
        return err_set(&cli->err, CLI_ERROR, "%.400s: %s", path, strerror(errno));
    while ((n = fread(chunk, 1, sizeof chunk, f)) > 0)
        (void)buf_add(&b, chunk, n);
    int failed = ferror(f) ? errno : 0;
    if (!is_stdin)
        (void)fclose(f);
    (void)buf_add(&b, "", 0);
    if (failed || b.r < 0) {
        buf_free(&b);
        return err_set(&cli->err, CLI_ERROR, "%.400s: %s", path,
                       failed ? strerror(failed) : "longer than 1 MiB: not a job file");
    }
    *ret = b.data ? b.data : strdup("");
    return *ret ? CLI_OK : err_set(&cli->err, CLI_ERROR, "out of memory");
}

/* The folder of `path`, absolute; of the working folder for "-". */
static int find_base(struct cli *cli, const char *path, char *buf, size_t room)
{
    char cwd[LIMIT_PATH];
    const char *slash = strrchr(path, '/');
    if (path[0] == '/') {
        (void)snprintf(buf, room, "%.*s", (int)(slash == path ? 1 : slash - path), path);
        return CLI_OK;
    }
    if (!getcwd(cwd, sizeof cwd))
        return err_set(&cli->err, CLI_ERROR, "the working folder: %s", strerror(errno));
    int n = slash ? snprintf(buf, room, "%s/%.*s", cwd, (int)(slash - path), path)
                  : snprintf(buf, room, "%s", cwd);
    return n < (int)room ? CLI_OK : err_set(&cli->err, CLI_ERROR, "%.200s: too long", path);
}

int jobfile_open(struct cli *cli, const char *path, const struct args_sets *sets, struct jobfile *f)
{
    f->path = path;
    f->sets = sets;
    int r = find_base(cli, path, f->base, sizeof f->base);
    return r == CLI_OK ? read_file(cli, path, &f->text) : r;
}

int jobfile_from_text(struct cli *cli, const char *text, const struct args_sets *sets,
                      struct jobfile *f)
{
    f->path = "-";
    f->sets = sets;
    f->text = strdup(text);
    if (!f->text)
        return err_set(&cli->err, CLI_ERROR, "out of memory");
    return find_base(cli, "-", f->base, sizeof f->base);
}

/* Is the value that this is about from the command line? */
static bool is_of_set(const struct jobfile *f, const char *text)
{
    for (size_t i = 0; f->sets && i < f->sets->n; i++) {
        const char *set = f->sets->v[i].text;
        const size_t n = strcspn(set, "=");
        if (strncmp(text, set, n) == 0 && (text[n] == ':' || text[n] == '.'))
            return true;
    }
    return false;
}

static void tell(struct cli *cli, const struct jobfile *f, int line, bool warning, const char *text)
{
    char plain[1200];
    (void)format_plain(plain, sizeof plain, text, sizeof plain);
    const char *name = strcmp(f->path, "-") == 0 ? "job" : f->path, *kind = warning ? "note: " : "";
    if (line == 0 && strncmp(plain, "--set ", 6) == 0) {
        (void)fprintf(cli->notes, "%s\n", plain);
        return;
    }
    if (line == 0 && is_of_set(f, plain))
        name = "--set";
    if (line > 0)
        (void)fprintf(cli->notes, "%s:%d: %s%s\n", name, line, kind, plain);
    else
        (void)fprintf(cli->notes, "%s: %s%s\n", name, kind, plain);
}

static int resolve(struct cli *cli, struct jobfile *f, bool quiet)
{
    char cwd[LIMIT_PATH];
    struct spec_problems p;
    if (!getcwd(cwd, sizeof cwd))
        return err_set(&cli->err, CLI_ERROR, "the working folder: %s", strerror(errno));
    struct spec_options o = {.file = f->path,
                             .base_dir = f->base,
                             .output_base = cwd,
                             .sets = f->sets ? f->sets->v : NULL,
                             .n_sets = f->sets ? f->sets->n : 0};
    int r = spec_read(f->text, strlen(f->text), &o, &f->spec, &f->user, &f->resolved, &p);
    for (size_t i = 0; i < p.n && !quiet; i++)
        tell(cli, f, p.v[i].line, p.v[i].warning, p.v[i].text);
    spec_problems_free(&p);
    if (r == -EINVAL)
        return CLI_ERROR;
    return r < 0 ? err_set(&cli->err, CLI_ERROR, "%s", strerror(-r)) : CLI_OK;
}

int jobfile_resolve(struct cli *cli, struct jobfile *f)
{
    return resolve(cli, f, false);
}

int jobfile_resolve_quietly(struct cli *cli, struct jobfile *f)
{
    return resolve(cli, f, true);
}

int jobfile_worker(struct cli *cli, const struct jobfile *f, const char *verb, const char *option,
                   const char *value, json_t **ret, int *ret_status)
{
    const char *argv[BESIDE_MAX_ARGS] = {NULL, verb, f->path};
    bool piped = strcmp(f->path, "-") == 0;
    size_t n = 3;
    char *text = NULL;
    json_error_t je;

    if (piped) {
        argv[n++] = "--base";
        argv[n++] = f->base;
    }
    if (option)
        argv[n++] = option;
    if (value)
        argv[n++] = value;
    for (size_t i = 0; f->sets && i < f->sets->n; i++) {
        argv[n++] = "--set";
        argv[n++] = f->sets->v[i].text;
    }
    argv[n++] = "--json";
    argv[n] = NULL;
    int r = beside_worker(cli, argv, piped ? f->text : NULL, &text, ret_status);
    if (r != CLI_OK)
        return r;
    *ret = json_loads(text, 0, &je);
    free(text);
    if (*ret)
        return CLI_OK;
    if (*ret_status >= 128)
        return err_set(&cli->err, CLI_ERROR, "align-worker was ended by signal %d",
                       *ret_status - 128);
    return err_set(&cli->err, CLI_ERROR,
                   "align-worker %s ended with code %d and printed no JSON (line %d: %.200s)", verb,
                   *ret_status, je.line, je.text);
}

int jobfile_tell(struct cli *cli, const struct jobfile *f, const json_t *j)
{
    const json_t *list = json_object_get(j, "problems");
    int problems = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *p = json_array_get(list, i);
        const char *text = json_string_value(json_object_get(p, "text"));
        bool warning = json_is_true(json_object_get(p, "warning"));
        problems += !warning;
        tell(cli, f, (int)json_integer_value(json_object_get(p, "line")), warning,
             text ? text : "?");
    }
    return problems;
}

int jobfile_check(struct cli *cli, struct jobfile *f, bool overwrite)
{
    int status = 0;
    int r = jobfile_worker(cli, f, "--check", overwrite ? "--overwrite" : NULL, NULL, &f->check,
                           &status);
    if (r != CLI_OK)
        return r;
    const int problems = jobfile_tell(cli, f, f->check);
    if (status == 0)
        return CLI_OK;
    if (problems == 0)
        return err_set(&cli->err, CLI_ERROR, "align-worker --check ended with code %d", status);
    return status == CLI_REFUSED ? CLI_REFUSED : CLI_ERROR;
}

int jobfile_output_free(struct cli *cli, const struct jobfile *f)
{
    if (strstr(f->spec->output_dir, "{id}"))
        return CLI_OK; /* a new one each time */
    char path[LIMIT_PATH];
    const char *brace = strstr(f->spec->output_dir, "{name}");
    if (brace)
        (void)snprintf(path, sizeof path, "%.*s%s%s", (int)(brace - f->spec->output_dir),
                       f->spec->output_dir, f->spec->name, brace + 6);
    else
        (void)snprintf(path, sizeof path, "%s", f->spec->output_dir);
    DIR *d = opendir(path);
    if (!d) {
        if (errno == ENOENT)
            return CLI_OK;
        return err_set(&cli->err, CLI_REFUSED, "output_dir %.400s: %s", path, strerror(errno));
    }
    bool used = false;
    struct dirent *e;
    while (!used && (e = readdir(d)))
        used = strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    (void)closedir(d);
    if (!used)
        return CLI_OK;
    return err_set(&cli->err, CLI_REFUSED,
                   "output_dir %.400s is not empty: put {id} into it (output_dir: "
                   "./runs/{name}-{id}), or submit with --overwrite",
                   path);
}

void jobfile_fini(struct jobfile *f)
{
    free(f->text);
    free(f->user);
    free(f->resolved);
    spec_free(f->spec);
    json_decref(f->check);
    *f = (struct jobfile){0};
}
