/* backend.c - finding and opening a backend's module, once per process. */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels.h"
#include "library.h"

#define KN_CUBLASLT "libcublasLt.so.13" /* what CUDA 13 calls it */

enum { OPENED_MAX = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char name[16];
    const struct kn_ops *ops;
    void *module;
} opened[OPENED_MAX];
static int n_opened;

static int explain(char *why, size_t why_size, int r, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int explain(char *why, size_t why_size, int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (why && why_size)
        vsnprintf(why, why_size, format, args);
    va_end(args);
    return r;
}

/* The folder of the running program, without a slash at the end. */
static int program_folder(char *path, size_t size)
{
    const ssize_t n = readlink("/proc/self/exe", path, size - 1);
    char *slash;

    if (n <= 0)
        return -ENOENT;
    path[n] = '\0';
    slash = strrchr(path, '/');
    if (!slash)
        return -ENOENT;
    *slash = '\0';
    return 0;
}

/* Writes the first place that holds the module, or fails: $ALIGND_KERNELS alone
 * when set; beside the program; installed; in the build tree, for programs of
 * worker/ and of tests/kernels/. */
static int find_module(const char *name, char *path, size_t size)
{
    static const char *const folders[] = {"", "/../lib/alignd", "/../kernels", "/../../kernels"};
    const char *env = getenv("ALIGND_KERNELS");
    char program[PATH_MAX];

    if (env && *env) {
        const int n = snprintf(path, size, "%s/kn_%s.so", env, name);
        return n > 0 && (size_t)n < size && access(path, R_OK) == 0 ? 0 : -ENOENT;
    }
    if (program_folder(program, sizeof program))
        return -ENOENT;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        const int n = snprintf(path, size, "%s%s/kn_%s.so", program, folders[i], name);
        if (n > 0 && (size_t)n < size && access(path, R_OK) == 0)
            return 0;
    }
    return -ENOENT;
}

static bool name_ok(const char *name)
{
    const size_t n = strlen(name);
    return n > 0 && n < sizeof opened[0].name &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789") == n;
}

/* libgomp comes with the cpu module and reads its settings when it is loaded. Its
 * default spins for milliseconds before a waiting thread sleeps: where other
 * processes, such as other ranks, want the processor, every parallel region then
 * costs a time slice. About 50 us bridge the gaps inside a step. */
static void wait_briefly(void)
{
    if (!getenv("OMP_WAIT_POLICY"))
        setenv("GOMP_SPINCOUNT", "4000", 0);
}

/* The cuda module is linked against cuBLASLt; where the system's loader does not look for
 * that, it is opened first, and the module's need is met by its name. */
static void open_needed(const char *name)
{
    char program[PATH_MAX];

    if (strncmp(name, "cuda", 4) == 0) /* also with tests' operations beside it */
        (void)library_find(KN_CUBLASLT, program_folder(program, sizeof program) ? NULL : program);
}

static int open_module(const char *name, const struct kn_ops **ret_ops, void **ret_module,
                       char *why, size_t why_size)
{
    const struct kn_ops *(*table)(int abi);
    const struct kn_ops *ops;
    char path[PATH_MAX + 64];
    void *module, *symbol;

    if (find_module(name, path, sizeof path))
        return explain(why, why_size, -ENOENT,
                       "this build has no backend \"%s\": kn_%s.so lies neither beside the program "
                       "nor in ../lib/alignd; ALIGND_KERNELS names another folder",
                       name, name);
    wait_briefly();
    open_needed(name);
    module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module)
        return explain(why, why_size, -ENOTSUP, "this host cannot run the backend \"%s\": %s", name,
                       dlerror());
    symbol = dlsym(module, "kn_table");
    memcpy(&table, &symbol, sizeof table); /* ISO C has no cast from data to function */
    ops = table ? table(KN_ABI) : NULL;
    if (!ops) {
        dlclose(module);
        return explain(why, why_size, -ENOTSUP,
                       "%s belongs to another version of alignd: it does not speak ABI %d", path,
                       KN_ABI);
    }
    *ret_module = module;
    *ret_ops = ops; /* never unloaded: threads of its runtime may still exist */
    return 0;
}

int kn_backend(const char *name, const struct kn_ops **ret_ops, char *why, size_t why_size)
{
    void *module = NULL;
    int r = 0, i;

    if (!name_ok(name))
        return explain(why, why_size, -ENOENT,
                       "no backend is called \"%s\"; there are ref, cpu, cuda, sim", name);
    pthread_mutex_lock(&lock);
    for (i = 0; i < n_opened && strcmp(opened[i].name, name) != 0; i++)
        ;
    if (i < n_opened) {
        *ret_ops = opened[i].ops;
    } else {
        r = open_module(name, ret_ops, &module, why, why_size);
        if (r == 0 && n_opened < OPENED_MAX) {
            snprintf(opened[n_opened].name, sizeof opened[0].name, "%s", name);
            opened[n_opened].module = module;
            opened[n_opened++].ops = *ret_ops;
        }
    }
    pthread_mutex_unlock(&lock);
    return r;
}

void *kn_symbol(const struct kn_ops *ops, const char *soname, const char *symbol)
{
    char program[PATH_MAX];
    void *library, *found = NULL;

    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_opened && !found; i++)
        if (opened[i].ops == ops)
            found = dlsym(opened[i].module, symbol);
    if (!found) {
        library = library_find(soname, program_folder(program, sizeof program) ? NULL : program);
        found = library ? dlsym(library, symbol) : NULL;
    }
    pthread_mutex_unlock(&lock);
    return found;
}
