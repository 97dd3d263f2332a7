/* gpu_visible.c - see gpu_visible.h. */
#include "daemon/gpu_visible.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/nvml.h"

struct pick {
    const char *const *uuids, *const *parents;
    size_t n, gpus;            /* entries, and whole GPUs                                         */
    size_t gpu[NVML_GPUS_MAX]; /* which of them an entry is, or is an instance of       */
    bool *ret;
    bool indices; /* an index was named                                                */
};

void gpu_visible_env(struct gpu_visible_env *ret)
{
    *ret = (struct gpu_visible_env){.cuda_visible_devices = getenv("CUDA_VISIBLE_DEVICES"),
                                    .cuda_device_order = getenv("CUDA_DEVICE_ORDER"),
                                    .slurm_job_id = getenv("SLURM_JOB_ID"),
                                    .slurm_step_gpus = getenv("SLURM_STEP_GPUS"),
                                    .slurm_job_gpus = getenv("SLURM_JOB_GPUS")};
}

static void trim(const char **s, size_t *n)
{
    while (*n && **s == ' ') {
        ++*s;
        --*n;
    }
    while (*n && (*s)[*n - 1] == ' ')
        --*n;
}

/* Instances lie beside each other, in the place of their GPU. */
static void number(struct pick *p)
{
    for (size_t i = 0; i < p->n; i++) {
        const bool same = i > 0 && *p->parents[i] && !strcmp(p->parents[i], p->parents[i - 1]);
        p->gpus += !same;
        p->gpu[i] = p->gpus - 1;
    }
}

static void take_gpu(struct pick *p, size_t gpu)
{
    for (size_t i = 0; i < p->n; i++)
        p->ret[i] = p->ret[i] || p->gpu[i] == gpu;
}

static bool by_uuid(struct pick *p, const char *s, size_t len)
{
    const bool part = strncasecmp(s, "MIG-", 4) == 0;
    size_t found = p->n;

    for (size_t i = 0; i < p->n; i++) {
        const bool is_part = *p->parents[i] != 0;
        if (strncasecmp(is_part && !part ? p->parents[i] : p->uuids[i], s, len) != 0)
            continue;
        if (found < p->n && (part || p->gpu[found] != p->gpu[i]))
            return false; /* the beginning of two */
        found = i;
    }
    if (found == p->n)
        return false;
    if (part)
        p->ret[found] = true;
    else
        take_gpu(p, p->gpu[found]);
    return true;
}

/* false: it names no GPU, and what follows does not count. */
static bool entry(struct pick *p, const char *s, size_t len)
{
    trim(&s, &len);
    if (len > 4 && (strncasecmp(s, "GPU-", 4) == 0 || strncasecmp(s, "MIG-", 4) == 0))
        return by_uuid(p, s, len);
    size_t i = 0;
    for (size_t k = 0; k < len; k++) {
        if (s[k] < '0' || s[k] > '9' || i > 10000)
            return false;
        i = i * 10 + (size_t)(s[k] - '0');
    }
    if (len == 0 || i >= p->gpus)
        return false;
    p->indices = true;
    take_gpu(p, i);
    return true;
}

static void entries(struct pick *p, const char *list)
{
    for (const char *s = list; *s;) {
        const size_t len = strcspn(s, ",");
        if (!entry(p, s, len))
            return;
        s += len + (s[len] == ',');
    }
}

/* Slurm's "0,2-3", of the node's GPUs; its cgroups may leave only those to be seen, which
 * are then counted from 0. */
static void slurm(struct pick *p, const char *list)
{
    size_t wanted = 0, beyond = 0;

    for (const char *s = list; *s;) {
        char *end;
        const unsigned long a = strtoul(s, &end, 10);
        const unsigned long b = *end == '-' ? strtoul(end + 1, &end, 10) : a;
        if (end == s || b < a || b - a > 1024)
            break;
        for (unsigned long i = a; i <= b; i++, wanted++) {
            beyond += i >= p->gpus;
            take_gpu(p, i);
        }
        s = end + (*end == ',');
        if (*end && *end != ',')
            break;
    }
    if (beyond || wanted == p->gpus)
        for (size_t i = 0; i < p->n; i++)
            p->ret[i] = p->gpu[i] < wanted;
}

static bool alike(const char *const *names, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (strcmp(names[i], names[0]) != 0)
            return false;
    return true;
}

size_t gpu_visible(const struct gpu_visible_env *env, const char *const *uuids,
                   const char *const *names, const char *const *parents, size_t n, bool *ret,
                   char *note, size_t size)
{
    struct pick p = {.uuids = uuids, .parents = parents, .n = n, .ret = ret};
    const char *gpus = env->slurm_step_gpus ? env->slurm_step_gpus : env->slurm_job_gpus;
    const char *why = env->cuda_visible_devices ? "CUDA_VISIBLE_DEVICES"
                      : env->slurm_job_id       ? "the Slurm job"
                                                : NULL;
    size_t k = 0;

    for (size_t i = 0; i < n; i++)
        ret[i] = !why;
    note[0] = 0;
    number(&p);
    if (env->cuda_visible_devices)
        entries(&p, env->cuda_visible_devices);
    else if (env->slurm_job_id && gpus)
        slurm(&p, gpus);
    for (size_t i = 0; i < n; i++)
        k += ret[i];
    if (!why || k == n)
        return k;
    (void)snprintf(
        note, size, "%s leaves %zu of %zu GPU%s%s", why, k, n, n == 1 ? "" : "s",
        p.indices && !alike(names, n) &&
                !(env->cuda_device_order && strcmp(env->cuda_device_order, "PCI_BUS_ID") == 0)
            ? "; the GPUs differ, and indices are read in the order of PCI addresses: "
              "use UUIDs"
            : "");
    return k;
}
