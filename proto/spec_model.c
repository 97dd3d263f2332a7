/* spec_model.c - see spec_model.h. Layout of the cache: huggingface_hub's
 * "Understand caching": models--ORG--NAME/{refs/REV, snapshots/COMMIT, blobs}. */
#include "proto/spec_model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/limit.h"

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool has_config(const char *dir)
{
    char path[LIMIT_PATH + 16];
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    return access(path, R_OK) == 0;
}

char *spec_path_absolute(const char *base_dir, const char *path)
{
    const char *home = getenv("HOME"), *base = base_dir && *base_dir ? base_dir : "";
    char *out = NULL;

    if (path[0] == '/')
        return strdup(path);
    if (path[0] == '~' && path[1] == '/' && home && home[0] == '/')
        return asprintf(&out, "%s/%s", home, path + 2) < 0 ? NULL : out;
    while (path[0] == '.' && path[1] == '/') {
        path += 2;
        while (*path == '/')
            path++;
    }
    if (strcmp(path, ".") == 0)
        path = "";
    size_t n = strlen(base);
    while (n > 1 && base[n - 1] == '/')
        n--;
    if (!*path)
        return asprintf(&out, "%.*s", (int)n, base) < 0 ? NULL : out;
    return asprintf(&out, "%.*s%s%s", (int)n, base, n == 1 ? "" : "/", path) < 0 ? NULL : out;
}

/* The cache folder huggingface_hub would use; false when there is none to name. */
static bool cache_folder(char *buf, size_t room)
{
    const char *v;
    if ((v = getenv("HF_HUB_CACHE")) && *v)
        return snprintf(buf, room, "%s", v) < (int)room;
    if ((v = getenv("HUGGINGFACE_HUB_CACHE")) && *v)
        return snprintf(buf, room, "%s", v) < (int)room;
    if ((v = getenv("HF_HOME")) && *v)
        return snprintf(buf, room, "%s/hub", v) < (int)room;
    if ((v = getenv("XDG_CACHE_HOME")) && *v)
        return snprintf(buf, room, "%s/huggingface/hub", v) < (int)room;
    if ((v = getenv("HOME")) && *v)
        return snprintf(buf, room, "%s/.cache/huggingface/hub", v) < (int)room;
    return false;
}

static bool word_fits(const char *s, size_t n)
{
    if (n == 0 || n > 96 || s[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", s[i]))
            return false;
    return true;
}

/* "org/name" or "name" to "models--org--name". */
static bool repo_folder(const char *name, char *buf, size_t room)
{
    const char *slash = strchr(name, '/');
    if (!slash)
        return word_fits(name, strlen(name)) && snprintf(buf, room, "models--%s", name) < (int)room;
    return word_fits(name, (size_t)(slash - name)) && word_fits(slash + 1, strlen(slash + 1)) &&
           snprintf(buf, room, "models--%.*s--%s", (int)(slash - name), name, slash + 1) <
               (int)room;
}

static bool is_commit(const char *s)
{
    size_t n = strlen(s);
    return n >= 4 && n <= 64 && strspn(s, "0123456789abcdef") == n;
}

static bool revision_fits(const char *s)
{
    if (!*s || strlen(s) > 200 || s[0] == '/' || strstr(s, ".."))
        return false;
    return true;
}

/* The commit that refs/<revision> names, or the revision itself when it is one. */
static bool find_commit(const char *repo, const char *revision, char *commit, size_t room)
{
    char path[LIMIT_PATH], text[96] = "";
    if (snprintf(path, sizeof path, "%s/refs/%s", repo, revision) < (int)sizeof path) {
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0)
            (void)close(fd);
        if (n > 0) {
            text[n] = '\0';
            text[strcspn(text, " \t\r\n")] = '\0';
            if (is_commit(text))
                return snprintf(commit, room, "%s", text) < (int)room;
        }
    }
    return is_commit(revision) && snprintf(commit, room, "%s", revision) < (int)room;
}

static int find_in_cache(const char *name, const char *revision, char **ret_dir, char **ret_commit,
                         struct err *err)
{
    char hub[LIMIT_PATH / 2], folder[256], repo[LIMIT_PATH - 512], dir[LIMIT_PATH], commit[96];

    if (!repo_folder(name, folder, sizeof folder))
        return err_set(err, -ENOENT, "there is no folder %.200s", name);
    if (!cache_folder(hub, sizeof hub))
        return err_set(err, -ENOENT,
                       "there is no folder %.200s, and no Hugging Face cache to look in", name);
    (void)snprintf(repo, sizeof repo, "%s/%s", hub, folder);
    if (!is_folder(repo))
        return err_set(err, -ENOENT,
                       "neither a folder nor in the Hugging Face cache %.300s; download it once: "
                       "hf download %.200s",
                       hub, name);
    if (!revision_fits(revision) || !find_commit(repo, revision, commit, sizeof commit))
        return err_set(
            err, -ENOENT,
            "the Hugging Face cache has %.200s, but not its revision %.100s: hf download "
            "%.200s --revision %.100s",
            name, revision, name, revision);
    if (snprintf(dir, sizeof dir, "%s/snapshots/%s", repo, commit) >= (int)sizeof dir ||
        !is_folder(dir) || !has_config(dir))
        return err_set(err, -ENOENT,
                       "the Hugging Face cache has %.200s at %.12s without its config.json (an "
                       "unfinished download?): hf download %.200s",
                       name, commit, name);
    *ret_dir = spec_path_absolute(NULL, dir);
    *ret_commit = strdup(commit);
    if (*ret_dir && *ret_commit)
        return 0;
    free(*ret_dir);
    free(*ret_commit);
    return err_set(err, -ENOMEM, "out of memory");
}

int spec_model_find(const char *name, const char *base_dir, const char *revision, char **ret_dir,
                    char **ret_commit, struct err *err)
{
    char *path = spec_path_absolute(base_dir, name);
    if (!path)
        return err_set(err, -ENOMEM, "out of memory");
    if (is_folder(path)) {
        if (!has_config(path)) {
            int r = err_set(err, -ENOENT,
                            "%.400s has no config.json: not a Hugging Face model folder", path);
            free(path);
            return r;
        }
        size_t n = strlen(path);
        while (n > 1 && path[n - 1] == '/')
            path[--n] = '\0';
        *ret_commit = strdup("");
        if (!*ret_commit) {
            free(path);
            return err_set(err, -ENOMEM, "out of memory");
        }
        *ret_dir = path;
        return 0;
    }
    struct stat st;
    if (stat(path, &st) == 0) {
        int r =
            err_set(err, -ENOTDIR,
                    "%.400s is a file: write the folder that holds the model's config.json", path);
        free(path);
        return r;
    }
    free(path);
    return find_in_cache(name, revision, ret_dir, ret_commit, err);
}
