/* table.c - the reference backend's table, memory and context. */
#include "ref.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

struct kn_ctx {
    enum kn_dtype compute;
};

int ref_open(const struct kn_open *o, struct kn_ctx **ret_ctx)
{
    struct kn_ctx *ctx;

    if (kn_check_open(o) || o->device != 0)
        return -EINVAL;
    ctx = malloc(sizeof *ctx);
    if (!ctx)
        return -ENOMEM;
    ctx->compute = o->compute;
    *ret_ctx = ctx;
    return 0;
}

void ref_close(struct kn_ctx *ctx)
{
    free(ctx);
}

enum kn_dtype ref_compute(const struct kn_ctx *ctx)
{
    return ctx->compute;
}

/* Generated code, stacks, what libraries take for themselves. */
enum { SPARE_BYTES = 32 << 20 };

/* What is left of the process's own limit (ulimit -v); SIZE_MAX: there is none. */
static size_t address_room(void)
{
    struct rlimit l;
    unsigned long pages = 0;
    FILE *f;

    if (getrlimit(RLIMIT_AS, &l) < 0 || l.rlim_cur == RLIM_INFINITY)
        return SIZE_MAX;
    f = fopen("/proc/self/statm", "re");
    if (f) {
        if (fscanf(f, "%lu", &pages) != 1)
            pages = 0;
        fclose(f);
    }
    const size_t used = pages * (size_t)sysconf(_SC_PAGESIZE);
    return l.rlim_cur > used + SPARE_BYTES ? (size_t)l.rlim_cur - used - SPARE_BYTES : 0;
}

/* Memory the kernel would hand out without swapping, as it says itself, or what the process
 * may still take. */
void ref_memory(size_t *ret_free, size_t *ret_total)
{
    char line[128];
    unsigned long long kb;
    const size_t room = address_room();
    FILE *f = fopen("/proc/meminfo", "re");

    *ret_free = *ret_total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "MemTotal: %llu kB", &kb) == 1)
            *ret_total = (size_t)kb * 1024;
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
            *ret_free = (size_t)kb * 1024;
    }
    if (f)
        fclose(f);
    if (*ret_free > room)
        *ret_free = room;
}

/* The process's own memory: neither mapped files nor code. */
size_t ref_held(void)
{
    char line[128];
    unsigned long long kb = 0;
    FILE *f = fopen("/proc/self/status", "re");

    while (f && fgets(line, sizeof line, f) && sscanf(line, "RssAnon: %llu kB", &kb) != 1)
        ;
    if (f)
        fclose(f);
    return (size_t)kb * 1024;
}

int ref_info(struct kn_ctx *ctx, struct kn_info *ret_info)
{
    (void)ctx;
    memset(ret_info, 0, sizeof *ret_info);
    snprintf(ret_info->device, sizeof ret_info->device, "plain C, 1 thread");
    snprintf(ret_info->isa, sizeof ret_info->isa, "c");
    ref_memory(&ret_info->mem_free, &ret_info->mem_total);
    ret_info->page = 1;
    ret_info->held = ref_held();
    return 0;
}

/* The host itself, whatever it is asked for. */
int ref_devices(struct kn_device *ret, int max, char *why, size_t why_size)
{
    size_t unused;

    if (why && why_size)
        why[0] = '\0';
    if (max > 0) {
        memset(ret, 0, sizeof *ret);
        snprintf(ret->name, sizeof ret->name, "CPU");
        ref_memory(&unused, &ret->mem_total);
    }
    return 1;
}

int ref_weight_soon(struct kn_ctx *ctx, const struct kn_weight *w)
{
    (void)ctx;
    (void)w;
    return 0;
}

size_t ref_scratch_bytes(const struct kn_scratch *s, enum kn_dtype compute)
{
    (void)s;
    (void)compute;
    return 0;
}

int64_t ref_lora_room(int64_t lora_cols)
{
    (void)lora_cols;
    return 0;
}

int ref_alloc(struct kn_ctx *ctx, size_t bytes, void **ret_ptr)
{
    void *p;
    size_t rounded;

    (void)ctx;
    if (bytes > (size_t)PTRDIFF_MAX - 256)
        return -ENOMEM;
    rounded = bytes ? (bytes + 255) / 256 * 256 : 256;
    p = aligned_alloc(256, rounded);
    if (!p)
        return -ENOMEM;
    memset(p, 0, rounded);
    *ret_ptr = p;
    return 0;
}

void ref_free(struct kn_ctx *ctx, void *ptr)
{
    (void)ctx;
    free(ptr);
}

int ref_copy(struct kn_ctx *ctx, void *dst, const void *src, size_t bytes, enum kn_dir dir)
{
    (void)ctx;
    if (dir != KN_TO_DEVICE && dir != KN_TO_HOST && dir != KN_ON_DEVICE)
        return -EINVAL;
    if (bytes)
        memcpy(dst, src, bytes);
    return 0;
}

int ref_zero(struct kn_ctx *ctx, void *dst, size_t bytes)
{
    (void)ctx;
    if (bytes)
        memset(dst, 0, bytes);
    return 0;
}

int ref_sync(struct kn_ctx *ctx)
{
    (void)ctx;
    return 0;
}

int ref_poll(struct kn_ctx *ctx)
{
    (void)ctx;
    return 1;
}

void *ref_stream(struct kn_ctx *ctx)
{
    (void)ctx;
    return NULL;
}
