/* table.c - the CPU backend's context and table. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu.h"

__attribute__((visibility("default"))) const struct kn_ops *kn_table(int abi);

enum { THREADS_MAX = 1024 };

/* The sets are bits: each includes those it builds on, but not all form one line. */
static bool has(dnnl_cpu_isa_t effective, dnnl_cpu_isa_t wanted)
{
    return ((unsigned)effective & (unsigned)wanted) == (unsigned)wanted;
}

/* What oneDNN was told to use also bounds our own code, so that one name says
 * what the bits depend on. */
static int choose_isa(struct kn_ctx *ctx)
{
    const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();

    __builtin_cpu_init();
    ctx->vec = &cpu_vec_sse2;
    ctx->isa = "sse41";
    if (has(isa, dnnl_cpu_isa_avx512_core) && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        ctx->vec = &cpu_vec_avx512;
        ctx->isa = "avx512_core";
    } else if (has(isa, dnnl_cpu_isa_avx2) && __builtin_cpu_supports("avx2") &&
               __builtin_cpu_supports("fma")) {
        ctx->vec = &cpu_vec_avx2;
        ctx->isa = "avx2";
    }
    if (ctx->compute != KN_BF16)
        return 0;
    if (!has(isa, dnnl_cpu_isa_avx512_core_bf16) || ctx->vec != &cpu_vec_avx512)
        return -ENOTSUP;
    ctx->isa = has(isa, dnnl_cpu_isa_avx512_core_amx) ? "avx512_core_amx" : "avx512_core_bf16";
    return 0;
}

static void cpu_close(struct kn_ctx *ctx)
{
    if (!ctx)
        return;
    for (int i = 0; ctx->streams && i < ctx->threads; i++) {
        if (ctx->streams[i])
            dnnl_stream_destroy(ctx->streams[i]);
    }
    for (int i = 0; ctx->scratch && i <= ctx->threads; i++)
        free(ctx->scratch[i]);
    if (ctx->engine)
        dnnl_engine_destroy(ctx->engine);
    free(ctx->streams);
    free(ctx->scratch);
    free(ctx->scratch_bytes);
    free(ctx->adamw8);
    free(ctx);
}

static int cpu_open(const struct kn_open *o, struct kn_ctx **ret_ctx)
{
    struct kn_ctx *ctx;
    int r = kn_check_open(o);

    if (r || o->device != 0 || o->threads < 1 || o->threads > THREADS_MAX)
        return -EINVAL;
    ctx = calloc(1, sizeof *ctx);
    if (!ctx)
        return -ENOMEM;
    ctx->compute = o->compute;
    ctx->threads = o->threads;
    r = choose_isa(ctx);
    if (r)
        goto fail;
    r = -ENOMEM;
    ctx->streams = calloc((size_t)o->threads, sizeof(*ctx->streams));
    ctx->scratch = calloc((size_t)o->threads + 1, sizeof(*ctx->scratch));
    ctx->scratch_bytes = calloc((size_t)o->threads + 1, sizeof(*ctx->scratch_bytes));
    if (!ctx->streams || !ctx->scratch || !ctx->scratch_bytes)
        goto fail;
    if (dnnl_engine_create(&ctx->engine, dnnl_cpu, 0) != dnnl_success)
        goto fail;
    for (int i = 0; i < o->threads; i++) {
        if (dnnl_stream_create(&ctx->streams[i], ctx->engine, dnnl_stream_default_flags) !=
            dnnl_success)
            goto fail;
    }
    *ret_ctx = ctx;
    return 0;
fail:
    cpu_close(ctx);
    return r;
}

/* "model name" of the first processor. */
static void processor_name(char *name, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");

    snprintf(name, size, "CPU");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        colon += strspn(colon, ": \t");
        snprintf(name, size, "%.*s", (int)strcspn(colon, "\n"), colon);
        break;
    }
    if (f)
        fclose(f);
}

static int cpu_info(struct kn_ctx *ctx, struct kn_info *ret_info)
{
    char name[64];

    memset(ret_info, 0, sizeof *ret_info);
    processor_name(name, sizeof name);
    snprintf(ret_info->device, sizeof ret_info->device, "%s, %d thread%s", name, ctx->threads,
             ctx->threads == 1 ? "" : "s");
    snprintf(ret_info->isa, sizeof ret_info->isa, "%s", ctx->isa);
    ref_memory(&ret_info->mem_free, &ret_info->mem_total);
    ret_info->page = 1;
    ret_info->held = ref_held();
    return 0;
}

void *cpu_pages(size_t bytes)
{
    const size_t large = (size_t)2 << 20;
    void *p = NULL;

    if (bytes > (size_t)PTRDIFF_MAX - large)
        return NULL;
    if (posix_memalign(&p, bytes >= 2 * large ? large : 4096, bytes ? bytes : 1))
        return NULL;
    if (bytes >= 2 * large) /* advice: where it is refused nothing is lost */
        (void)madvise(p, bytes / large * large, MADV_HUGEPAGE);
    return p;
}

static int cpu_alloc(struct kn_ctx *ctx, size_t bytes, void **ret_ptr)
{
    void *p = cpu_pages(bytes);

    (void)ctx;
    if (!p)
        return -ENOMEM;
    memset(p, 0, bytes);
    *ret_ptr = p;
    return 0;
}

static int grow(struct kn_ctx *ctx, int i, size_t bytes)
{
    void *p;

    if (bytes <= ctx->scratch_bytes[i])
        return 0;
    p = cpu_pages(bytes);
    if (!p)
        return -ENOMEM;
    free(ctx->scratch[i]);
    ctx->scratch[i] = p;
    ctx->scratch_bytes[i] = bytes;
    return 0;
}

int cpu_scratch(struct kn_ctx *ctx, size_t per_thread, size_t shared)
{
    int r = grow(ctx, ctx->threads, shared);

    for (int i = 0; i < ctx->threads && r == 0; i++)
        r = grow(ctx, i, per_thread);
    return r;
}

static const struct kn_ops cpu_ops = {
    .name = "cpu",
    .devices = ref_devices,
    .open = cpu_open,
    .close = cpu_close,
    .info = cpu_info,
    .alloc = cpu_alloc,
    .free = ref_free,
    .copy = ref_copy,
    .zero = ref_zero,
    .sync = ref_sync,
    .poll = ref_poll,
    .stream = ref_stream,
    .weight_open = cpu_weight_open,
    .weight_close = cpu_weight_close,
    .weight_bytes = cpu_weight_bytes,
    .weight_soon = ref_weight_soon,
    .scratch_bytes = ref_scratch_bytes,
    .lora_room = ref_lora_room,
    .quantize4 = ref_quantize4,
    .dequantize4 = ref_dequantize4,
    .linear_fwd = cpu_linear_fwd,
    .linear_bwd = cpu_linear_bwd,
    .embed = ref_embed,
    .rmsnorm_fwd = cpu_rmsnorm_fwd,
    .rmsnorm_bwd = cpu_rmsnorm_bwd,
    .rope = cpu_rope,
    .attn_fwd = cpu_attn_fwd,
    .attn_bwd = cpu_attn_bwd,
    .swiglu_fwd = cpu_swiglu_fwd,
    .swiglu_bwd = cpu_swiglu_bwd,
    .gather = cpu_gather,
    .logprob = cpu_logprob,
    .grad_sweep = cpu_grad_sweep,
    .adamw = cpu_adamw,
    .adamw8 = cpu_adamw8,
};

const struct kn_ops *kn_table(int abi)
{
    return abi == KN_ABI ? &cpu_ops : NULL;
}
