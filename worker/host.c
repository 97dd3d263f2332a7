/* host.c - see host.h. */
#include "worker/host.h"

#include <ctype.h>
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Cores that a cgroup v2 quota amounts to, rounded down; 0: no quota. */
static int quota_cores(void)
{
    char path[4200], line[4096];
    long long quota, period;
    FILE *f = fopen("/proc/self/cgroup", "re");
    int cores = 0;

    if (!f)
        return 0;
    path[0] = '\0';
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::", 3) == 0)
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", line + 3);
    }
    fclose(f);
    f = path[0] ? fopen(path, "re") : NULL;
    if (!f)
        return 0;
    if (fgets(line, sizeof line, f) && sscanf(line, "%lld %lld", &quota, &period) == 2 &&
        quota > 0 && period > 0)
        cores = quota / period > 0 ? (int)(quota / period) : 1;
    fclose(f);
    return cores;
}

static int env_cores(const char *name)
{
    const char *s = getenv(name);
    const long v = s ? strtol(s, NULL, 10) : 0;

    return v > 0 && v < 65536 ? (int)v : 0;
}

int host_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    const int others[] = {quota_cores(), env_cores("SLURM_CPUS_PER_TASK")};

    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (others[i] > 0 && others[i] < n)
            n = others[i];
    return n > 0 ? n : 1;
}

int host_threads(int asked, int n)
{
    const int each = n > 0 ? host_cores() / n : 1;

    return asked > 0 ? asked : each > 0 ? each : 1;
}

long host_oom_kills_in(const char *path)
{
    FILE *f = fopen(path, "re");
    char line[256];
    long n = -1;

    if (!f)
        return -1;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "oom_kill %ld", &n) == 1)
            break;
    fclose(f);
    return n;
}

long host_oom_kills(void)
{
    char path[4200], line[4096], *group;
    FILE *f = fopen("/proc/self/cgroup", "re");
    long n = -1;

    while (f && n < 0 && fgets(line, sizeof line, f)) { /* "0::/a" or "4:memory:/a" */
        line[strcspn(line, "\n")] = '\0';
        group = strrchr(line, ':');
        if (!group)
            continue;
        if (strncmp(line, "0::", 3) == 0)
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.events", group + 1);
        else if (strstr(line, ":memory:"))
            snprintf(path, sizeof path, "/sys/fs/cgroup/memory%s/memory.oom_control", group + 1);
        else
            continue;
        n = host_oom_kills_in(path);
    }
    if (f)
        fclose(f);
    return n;
}

/* OpenMP's default is to spin for milliseconds, which on shared cores made a step six
 * times slower. */
void host_calm_threads(void)
{
    if (!getenv("OMP_WAIT_POLICY"))
        setenv("GOMP_SPINCOUNT", "1000", 0);
}

int host_gpus(void)
{
    DIR *d = opendir("/dev");
    const struct dirent *e;
    int n = 0;

    while (d && (e = readdir(d)))
        n += strncmp(e->d_name, "nvidia", 6) == 0 && isdigit((unsigned char)e->d_name[6]);
    if (d)
        closedir(d);
    return n;
}
