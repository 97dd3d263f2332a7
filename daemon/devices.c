/* devices.c - see devices.h. */
#include "daemon/devices.h"

#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/limit.h"

enum { CORES_MAX = 4096 };

/* cgroup v2: "max 100000" or "150000 100000"; 0: no limit, or not known. */
static int cgroup_cores(void)
{
    static const char *const files[] = {"/sys/fs/cgroup/cpu.max"};
    long long quota, period;
    int n = 0;
    FILE *f = fopen(files[0], "re");

    if (!f)
        return 0;
    if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0)
        n = (int)((quota + period - 1) / period);
    fclose(f);
    return n;
}

int devices_usable_cores(void)
{
    cpu_set_t *set = CPU_ALLOC(CORES_MAX);
    const size_t bytes = CPU_ALLOC_SIZE(CORES_MAX);
    const int quota = cgroup_cores();
    int n = 1;

    if (set && sched_getaffinity(0, bytes, set) == 0)
        n = CPU_COUNT_S(bytes, set);
    if (set)
        CPU_FREE(set);
    if (quota > 0 && quota < n)
        n = quota;
    return n > 0 ? n : 1;
}

int devices_gpus_seen(void)
{
    DIR *d = opendir("/dev");
    struct dirent *e;
    int n = 0;

    while (d && (e = readdir(d))) {
        const char *p = e->d_name;
        if (strncmp(p, "nvidia", 6) == 0 && p[6] && strspn(p + 6, "0123456789") == strlen(p + 6))
            n++;
    }
    if (d)
        closedir(d);
    return n;
}

/* Where kernels/backend.c looks. */
static bool module_there(const char *worker, const char *backend)
{
    static const char *const folders[] = {"", "/../lib/alignd", "/../kernels"};
    const char *env = getenv("ALIGND_KERNELS");
    char path[2 * LIMIT_PATH], program[LIMIT_PATH];
    char *slash;

    if (env && *env) {
        (void)snprintf(path, sizeof path, "%s/kn_%s.so", env, backend);
        return access(path, R_OK) == 0;
    }
    (void)snprintf(program, sizeof program, "%s", worker);
    slash = strrchr(program, '/');
    if (slash)
        *slash = 0;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        (void)snprintf(path, sizeof path, "%s%s/kn_%s.so", program, folders[i], backend);
        if (access(path, R_OK) == 0)
            return true;
    }
    return false;
}

/* As worker/device.c: tests name another backend. */
bool devices_gpu_module(const char *worker)
{
    const char *told = getenv("ALIGND_BACKEND");

    if (told && *told)
        return !strcmp(told, "sim") || !strcmp(told, "cuda");
    return module_there(worker, "cuda");
}
