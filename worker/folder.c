/* folder.c - see folder.h. */
#include "worker/folder.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/limit.h"

/* What a run leaves at the top of its folder, besides checkpoint-S. */
static const char *const run_files[] = {
    "attempts",
    ".gang",
    "adapter_config.json",
    "adapter_model.safetensors",
    "metrics.jsonl",
    "trainer_state.json",
    "spec.yaml",
    "spec.resolved.json",
    "dropped.jsonl",
    "selected.jsonl",
    "log.txt",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
};

/* The number behind `prefix`, or -1. */
static int64_t numbered(const char *name, const char *prefix)
{
    const size_t n = strlen(prefix);
    int64_t v = 0;

    if (strncmp(name, prefix, n) != 0 || !isdigit((unsigned char)name[n]))
        return -1;
    for (const char *p = name + n; *p; p++) {
        if (!isdigit((unsigned char)*p) || v > INT64_MAX / 10 - 10)
            return -1;
        v = v * 10 + (*p - '0');
    }
    return v;
}

static int64_t newest(const char *dir, const char *prefix)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    int64_t best = -1;

    if (!d)
        return -1;
    while ((e = readdir(d))) {
        const int64_t v = numbered(e->d_name, prefix);
        if (v > best)
            best = v;
    }
    closedir(d);
    return best;
}

uint32_t folder_newest_attempt(const char *dir)
{
    char path[LIMIT_PATH];
    int64_t n;

    if (snprintf(path, sizeof path, "%s/attempts", dir) >= (int)sizeof path)
        return 0;
    n = newest(path, "");
    return n > 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

int64_t folder_newest_checkpoint(const char *dir)
{
    return newest(dir, "checkpoint-");
}

/* The nearest folder above that exists must let us in. */
static int parent_writable(const char *dir, struct err *err)
{
    char path[LIMIT_PATH];
    struct stat st;

    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "output_dir: longer than %d bytes", LIMIT_PATH - 1);
    for (;;) {
        char *slash = strrchr(path, '/');
        if (!slash)
            return err_set(err, -EINVAL, "output_dir: %s is not absolute", dir);
        slash[slash == path ? 1 : 0] = '\0';
        if (stat(path, &st) == 0)
            break;
        if (errno != ENOENT)
            return err_set(err, -errno, "output_dir: %s: %s", path, strerror(errno));
    }
    if (!S_ISDIR(st.st_mode))
        return err_set(err, -ENOTDIR, "output_dir: %s is not a folder", path);
    if (access(path, W_OK | X_OK) < 0)
        return err_set(err, -errno, "output_dir: cannot write in %s: %s", path, strerror(errno));
    return 0;
}

int folder_look(const char *dir, enum folder_kind *ret, struct err *err)
{
    struct stat st;
    const struct dirent *e;
    DIR *d;

    *ret = FOLDER_FREE;
    if (stat(dir, &st) < 0) {
        if (errno == ENOENT)
            return parent_writable(dir, err);
        return err_set(err, -errno, "output_dir: %s: %s", dir, strerror(errno));
    }
    if (!S_ISDIR(st.st_mode))
        return err_set(err, -ENOTDIR, "output_dir: %s is not a folder", dir);
    if (access(dir, R_OK | W_OK | X_OK) < 0)
        return err_set(err, -errno, "output_dir: cannot write in %s: %s", dir, strerror(errno));
    d = opendir(dir);
    if (!d)
        return err_set(err, -errno, "output_dir: %s: %s", dir, strerror(errno));
    while ((e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (*ret == FOLDER_FREE)
            *ret = FOLDER_OTHER;
        if (strcmp(e->d_name, "attempts") == 0 || strcmp(e->d_name, ".gang") == 0)
            *ret = FOLDER_RUN;
    }
    closedir(d);
    return 0;
}

/* mkdir -p, each new name synced in its folder. */
static int make_all(const char *dir)
{
    char path[LIMIT_PATH];
    int r = 0;

    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path)
        return -ENAMETOOLONG;
    for (char *p = path + 1; r == 0; p++) {
        const char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(path, 0777) < 0 && errno != EEXIST)
            r = -errno;
        *p = c;
        if (c == '\0')
            break;
    }
    return r;
}

static int sync_folder(const char *dir)
{
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r;

    if (fd < 0)
        return -errno;
    r = fsync(fd) < 0 && errno != EINVAL ? -errno : 0; /* EINVAL: a file system without */
    close(fd);
    return r;
}

int folder_make_attempt(const char *dir, uint32_t attempt, bool again, struct err *err)
{
    char attempts[LIMIT_PATH], path[LIMIT_PATH];
    int r;

    if (snprintf(attempts, sizeof attempts, "%s/attempts", dir) >= (int)sizeof attempts ||
        snprintf(path, sizeof path, "%s/%u", attempts, attempt) >= (int)sizeof path)
        return err_set(err, -ENAMETOOLONG, "output_dir: longer than %d bytes", LIMIT_PATH - 20);
    r = make_all(attempts);
    if (r < 0)
        return err_set(err, r, "output_dir: %s: %s", attempts, strerror(-r));
    if (folder_newest_attempt(dir) > attempt)
        return err_set(err, -ESTALE, "%s already holds attempt %u, later than this one, %u", dir,
                       folder_newest_attempt(dir), attempt);
    if (mkdir(path, 0777) < 0) {
        if (errno != EEXIST)
            return err_set(err, -errno, "output_dir: %s: %s", path, strerror(errno));
        if (!again)
            return err_set(err, -EEXIST,
                           "%s holds another run: put {id} into output_dir, or use --overwrite",
                           dir);
    }
    r = sync_folder(attempts);
    if (r == 0)
        r = sync_folder(dir);
    return r < 0 ? err_set(err, r, "output_dir: %s: %s", dir, strerror(-r)) : 0;
}

/* A file, a link (not what it points to) or a whole folder. */
static int remove_tree(const char *path)
{
    char *const paths[] = {(char *)(uintptr_t)path, NULL};
    FTS *f = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
    const FTSENT *e;
    int r = 0;

    if (!f)
        return -errno;
    while ((e = fts_read(f))) {
        if (e->fts_info == FTS_D)
            continue;
        if (e->fts_info == FTS_DNR || e->fts_info == FTS_ERR)
            r = -e->fts_errno;
        else if (e->fts_info != FTS_NS && remove(e->fts_accpath) < 0 && errno != ENOENT)
            r = -errno;
        if (r < 0)
            break;
    }
    fts_close(f);
    return r;
}

static bool is_ours(const char *name)
{
    for (size_t i = 0; i < sizeof run_files / sizeof run_files[0]; i++)
        if (strcmp(name, run_files[i]) == 0)
            return true;
    return numbered(name, "checkpoint-") >= 0;
}

int folder_clear(const char *dir, bool keep_gang, struct err *err)
{
    char path[LIMIT_PATH];
    const struct dirent *e;
    DIR *d = opendir(dir);
    int r = 0;

    if (!d)
        return errno == ENOENT ? 0 : err_set(err, -errno, "%s: %s", dir, strerror(errno));
    while (r == 0 && (e = readdir(d))) {
        if (!is_ours(e->d_name) || (keep_gang && strcmp(e->d_name, ".gang") == 0))
            continue;
        if (snprintf(path, sizeof path, "%s/%s", dir, e->d_name) >= (int)sizeof path)
            r = err_set(err, -ENAMETOOLONG, "%s: a name too long", dir);
        else if ((r = remove_tree(path)) < 0)
            err_set(err, r, "cannot remove the earlier run's %s: %s", path, strerror(-r));
    }
    closedir(d);
    return r < 0 ? r : 0;
}
