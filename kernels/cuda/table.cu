/* table.cu - the CUDA backend's context, memory and table. */
#include "load.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORKSPACE_BYTES = 64 << 20 };

bool cuda_debug(void)
{
    static const bool on = getenv("KN_DEBUG") != NULL;

    return on;
}

int cuda_error(cudaError_t e, const char *file, int line)
{
    if (e == cudaSuccess)
        return 0;
    if (cuda_debug() || e != cudaErrorMemoryAllocation) /* in the rank's log: the end of a run */
        fprintf(stderr, "%s:%d: %s: %s\n", file, line, cudaGetErrorName(e), cudaGetErrorString(e));
    return e == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}

int cuda_launched(const char *file, int line)
{
    return cuda_error(cudaGetLastError(), file, line);
}

int cuda_reserve(cuda_buffer *b, size_t bytes)
{
    if (bytes <= b->bytes)
        return 0;
    cudaFree(b->p); /* waits for what still uses it */
    b->p = NULL;
    b->bytes = 0;
    const cudaError_t e = cudaMalloc(&b->p, bytes);
    if (e != cudaSuccess) {
        b->p = NULL;
        (void)cudaGetLastError();
        return cuda_error(e); /* or of what was queued before */
    }
    b->bytes = bytes;
    return 0;
}

static int open_slots(kn_ctx *ctx)
{
    for (int i = 0; i < CUDA_SLOTS; i++) {
        cuda_slot *s = &ctx->slots[i];
        if (cudaEventCreateWithFlags(&s->filled, cudaEventDisableTiming) != cudaSuccess ||
            cudaEventCreateWithFlags(&s->used, cudaEventDisableTiming) != cudaSuccess)
            return -EIO;
    }
    return 0;
}

static void close_slots(kn_ctx *ctx)
{
    for (int i = 0; i < CUDA_SLOTS; i++) {
        cuda_slot *s = &ctx->slots[i];
        cudaFree(s->buffer.p);
        if (s->filled)
            cudaEventDestroy(s->filled);
        if (s->used)
            cudaEventDestroy(s->used);
    }
}

/* What the driver rounds an allocation of its own up to: the largest power of two that divides
 * what is gone for a size that none divides. The least of three, for others allocate too. */
static size_t measure_page()
{
    const size_t probe = (1 << 20) + 1;
    size_t least = 0, before, after, total;

    for (int i = 0; i < 3; i++) {
        void *p = NULL;
        if (cudaMemGetInfo(&before, &total) != cudaSuccess || cudaMalloc(&p, probe) != cudaSuccess)
            break;
        if (cudaMemGetInfo(&after, &total) == cudaSuccess && before >= after + probe)
            least = least && least < before - after ? least : before - after;
        cudaFree(p);
    }
    (void)cudaGetLastError();
    return least ? least & -least : 1;
}

int cuda_open(const kn_open *o, kn_ctx **ret_ctx)
{
    int device = o->device, devices = 0;
    kn_ctx *ctx;

    if (kn_check_open(o))
        return -EINVAL;
    /* Without a driver every error means: no GPU. */
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
        return -ENOTSUP;
    if (o->uuid)
        device = cuda_device_of(o->uuid);
    if (device < 0 || device >= devices)
        return -ENODEV;
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, device) != cudaSuccess)
        return -EIO;
    if (!cuda_new_enough(&p))
        return -ENOTSUP;
    if (cuda_error(cudaSetDevice(device)))
        return -EIO;
    ctx = (kn_ctx *)calloc(1, sizeof *ctx);
    if (!ctx)
        return -ENOMEM;
    ctx->device = device;
    ctx->compute = o->compute;
    ctx->page = measure_page();
    size_t total;
    if (cuda_error(cudaMemGetInfo(&ctx->free_before, &total))) {
        free(ctx);
        return -EIO;
    }
    if (cudaStreamCreateWithFlags(&ctx->stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaStreamCreateWithFlags(&ctx->side, cudaStreamNonBlocking) != cudaSuccess ||
        open_slots(ctx) || cublasLtCreate(&ctx->lt) != CUBLAS_STATUS_SUCCESS) {
        cuda_close(ctx);
        return -EIO;
    }
    if (cuda_reserve(&ctx->workspace, WORKSPACE_BYTES)) {
        cuda_close(ctx);
        return -ENOMEM;
    }
    *ret_ctx = ctx;
    return 0;
}

void cuda_close(kn_ctx *ctx)
{
    if (!ctx)
        return;
    if (ctx->side)
        cudaStreamSynchronize(ctx->side);
    if (ctx->stream)
        cudaStreamSynchronize(ctx->stream);
    close_slots(ctx);
    cuda_load_close(&ctx->load);
    cudaFree(ctx->workspace.p);
    cudaFree(ctx->partial.p);
    cudaFree(ctx->x_ext.p);
    cudaFree(ctx->dy_ext.p);
    cudaFree(ctx->grad.p);
    cudaFree(ctx->fill.p);
    if (ctx->lt)
        cublasLtDestroy(ctx->lt);
    if (ctx->side)
        cudaStreamDestroy(ctx->side);
    if (ctx->stream)
        cudaStreamDestroy(ctx->stream);
    free(ctx);
}

int cuda_info(kn_ctx *ctx, kn_info *ret_info)
{
    cudaDeviceProp p;
    int r;

    memset(ret_info, 0, sizeof *ret_info);
    r = cuda_error(cudaGetDeviceProperties(&p, ctx->device));
    if (r)
        return r;
    cuda_uuid(&p, ret_info->uuid);
    snprintf(ret_info->device, sizeof ret_info->device, "%.90s", p.name);
    /* cuBLASLt's choice of a product's algorithm follows all three. */
    snprintf(ret_info->isa, sizeof ret_info->isa, "sm_%d%d x%d cublasLt %zu", p.major, p.minor,
             p.multiProcessorCount, cublasLtGetVersion());
    ret_info->page = ctx->page;
    r = cuda_error(cudaMemGetInfo(&ret_info->mem_free, &ret_info->mem_total));
    if (!r && ctx->free_before > ret_info->mem_free)
        ret_info->held = ctx->free_before - ret_info->mem_free;
    return r;
}

int cuda_take(kn_ctx *ctx, size_t bytes, void **ret_ptr)
{
    void *p;

    if (bytes > (size_t)PTRDIFF_MAX - 256)
        return -ENOMEM;
    const cudaError_t e = cudaMalloc(&p, bytes ? bytes : 256);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        return cuda_error(e);
    }
    if (cudaMemsetAsync(p, 0, bytes ? bytes : 256, ctx->stream) != cudaSuccess) {
        cudaFree(p);
        return -EIO;
    }
    *ret_ptr = p;
    return 0;
}

int cuda_alloc(kn_ctx *ctx, size_t bytes, void **ret_ptr)
{
    cuda_load_end(&ctx->load); /* weights are loaded first, if any: their ring may lie here */
    return cuda_take(ctx, bytes, ret_ptr);
}

void cuda_free(kn_ctx *ctx, void *ptr)
{
    (void)ctx;
    cudaFree(ptr);
}

int cuda_copy(kn_ctx *ctx, void *dst, const void *src, size_t bytes, kn_dir dir)
{
    static const cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                           cudaMemcpyDeviceToDevice};
    int r;

    if (dir != KN_TO_DEVICE && dir != KN_TO_HOST && dir != KN_ON_DEVICE)
        return -EINVAL;
    if (bytes == 0)
        return 0;
    if (dir == KN_TO_DEVICE && bytes > CUDA_CHUNK)
        return cuda_load_copy(ctx, dst, src, bytes);
    r = cuda_error(cudaMemcpyAsync(dst, src, bytes, kinds[dir], ctx->stream));
    /* The host's buffer may be reused or read as soon as this returns. */
    if (!r && dir != KN_ON_DEVICE)
        r = cuda_error(cudaStreamSynchronize(ctx->stream));
    return r;
}

int cuda_zero(kn_ctx *ctx, void *dst, size_t bytes)
{
    return bytes ? cuda_error(cudaMemsetAsync(dst, 0, bytes, ctx->stream)) : 0;
}

int cuda_sync(kn_ctx *ctx)
{
    return cuda_error(cudaStreamSynchronize(ctx->stream));
}

int cuda_poll(kn_ctx *ctx)
{
    const cudaError_t e = cudaStreamQuery(ctx->stream);

    if (e != cudaErrorNotReady)
        return e == cudaSuccess ? 1 : cuda_error(e);
    (void)cudaGetLastError(); /* not an error, yet remembered as the last one */
    return 0;
}

void *cuda_stream(kn_ctx *ctx)
{
    return ctx->stream;
}

extern "C" __attribute__((visibility("default"))) const kn_ops *kn_table(int abi);

extern "C" const kn_ops *kn_table(int abi)
{
    static kn_ops ops;

#ifdef CUSIM
    ops.name = "sim";
#else
    ops.name = "cuda";
#endif
    ops.devices = cuda_devices;
    ops.open = cuda_open;
    ops.close = cuda_close;
    ops.info = cuda_info;
    ops.alloc = cuda_alloc;
    ops.free = cuda_free;
    ops.copy = cuda_copy;
    ops.zero = cuda_zero;
    ops.sync = cuda_sync;
    ops.poll = cuda_poll;
    ops.stream = cuda_stream;
    ops.weight_open = cuda_weight_open;
    ops.weight_close = cuda_weight_close;
    ops.weight_bytes = cuda_weight_bytes;
    ops.weight_soon = cuda_weight_soon;
    ops.scratch_bytes = cuda_scratch_bytes;
    ops.lora_room = cuda_lora_room;
    ops.quantize4 = cuda_quantize4;
    ops.dequantize4 = cuda_dequantize4;
    ops.linear_fwd = cuda_linear_fwd;
    ops.linear_bwd = cuda_linear_bwd;
    ops.embed = cuda_embed;
    ops.rmsnorm_fwd = cuda_rmsnorm_fwd;
    ops.rmsnorm_bwd = cuda_rmsnorm_bwd;
    ops.rope = cuda_rope;
    ops.attn_fwd = cuda_attn_fwd;
    ops.attn_bwd = cuda_attn_bwd;
    ops.swiglu_fwd = cuda_swiglu_fwd;
    ops.swiglu_bwd = cuda_swiglu_bwd;
    ops.gather = cuda_gather;
    ops.logprob = cuda_logprob;
    ops.grad_sweep = cuda_grad_sweep;
    ops.adamw = cuda_adamw;
    ops.adamw8 = cuda_adamw8;
    return abi == KN_ABI ? &ops : NULL;
}
