/* library.c - where CUDA's libraries lie: wherever they were installed, or beside us. */
#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

static void *open_path(const char *path)
{
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

/* The first file of a pattern that opens; "%s" in it is `base`. */
static void *open_pattern(const char *base, const char *pattern, const char *soname)
{
    char path[PATH_MAX];
    void *h = NULL;
    glob_t found;
    const int n = snprintf(path, sizeof path, "%s%s/%s", base, pattern, soname);

    if (n < 0 || (size_t)n >= sizeof path || glob(path, 0, NULL, &found) != 0)
        return NULL;
    for (size_t i = found.gl_pathc; i-- > 0 && h == NULL;) /* the newest version sorts last */
        h = open_path(found.gl_pathv[i]);
    globfree(&found);
    return h;
}

/* Wheels lie in site-packages/nvidia/PACKAGE/lib, torch's own copies in torch/lib. */
static void *open_python(const char *prefix, const char *soname)
{
    static const char *const folders[] = {
        "/lib/python3*/site-packages/nvidia/*/lib", "/lib/python3*/dist-packages/nvidia/*/lib",
        "/lib/python3*/site-packages/torch/lib",    "/lib/python3*/dist-packages/torch/lib",
        "/lib/python3/dist-packages/nvidia/*/lib",  "/lib",
    };
    void *h = NULL;

    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && h == NULL; i++)
        h = open_pattern(prefix, folders[i], soname);
    return h;
}

/* Each entry of a variable that names folders, with `suffix` behind it. */
static void *open_listed(const char *variable, const char *suffix, const char *soname, bool python)
{
    const char *list = getenv(variable);
    void *h = NULL;

    while (list && *list && h == NULL) {
        const size_t n = strcspn(list, ":");
        char folder[PATH_MAX];
        if (n > 0 && n + strlen(suffix) < sizeof folder) {
            memcpy(folder, list, n);
            snprintf(folder + n, sizeof folder - n, "%s", suffix);
            h = python ? open_python(folder, soname) : open_pattern(folder, "", soname);
        }
        list += n + (list[n] == ':');
    }
    return h;
}

static void *open_toolkit(const char *soname)
{
    static const char *const homes[] = {"CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "NVHPC_ROOT"};
    static const char *const folders[] = {
        "/usr/local/cuda/lib64",
        "/usr/local/cuda-*/lib64",
        "/usr/local/cuda-*/lib",
        "/opt/cuda/lib64",
        "/opt/nvidia/*/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/local/cuda-*/targets/*/lib",
    };
    void *h = NULL;

    for (size_t i = 0; i < sizeof homes / sizeof homes[0] && h == NULL; i++) {
        h = open_listed(homes[i], "/lib64", soname, false);
        if (!h)
            h = open_listed(homes[i], "/lib", soname, false);
    }
    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && h == NULL; i++)
        h = open_pattern("", folders[i], soname);
    return h;
}

void *library_find(const char *soname, const char *program)
{
    static const char *const beside[] = {"", "/../lib", "/../lib/alignd"};
    void *h = open_path(soname); /* the loader's own: LD_LIBRARY_PATH, ld.so.conf */

    for (size_t i = 0; program && i < sizeof beside / sizeof beside[0] && h == NULL; i++)
        h = open_pattern(program, beside[i], soname);
    if (!h)
        h = open_toolkit(soname);
    if (!h)
        h = open_listed("PYTHONPATH", "/nvidia/*/lib", soname, false);
    if (!h)
        h = open_listed("VIRTUAL_ENV", "", soname, true);
    if (!h)
        h = open_listed("CONDA_PREFIX", "", soname, true);
    if (!h)
        h = open_listed("HOME", "/.local", soname, true);
    if (!h)
        h = open_listed("PATH", "/..", soname, true); /* prefixes of the pythons there are */
    if (!h)
        h = open_python("/usr/local", soname);
    return h ? h : open_python("/usr", soname);
}
