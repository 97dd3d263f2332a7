/* load.cu - the way of large host memory onto the device: a ring of pinned buffers that
 * several threads fill (fill.h) while the ones before are on the bus.
 *
 * A chunk goes straight to where it belongs (cuda_load_copy), or, on the second stream, into
 * the device's side of the ring, where kernels of the context's stream take it up: nothing
 * waits but a buffer that is still in use, and no memory is taken or given back between
 * two matrices. The device's side goes before anything else is allocated: what loading takes
 * fits where the activations will be (cuda_load_end). */
#include "load.cuh"

#include <string.h>

static char *host_chunk(const cuda_load *l, unsigned i)
{
    return (char *)l->host + (size_t)i * CUDA_CHUNK;
}

static int open_host(cuda_load *l)
{
    int r = 0;

    if (l->fill)
        return 0;
    if (cudaHostAlloc(&l->host, (size_t)CUDA_RING * CUDA_CHUNK, cudaHostAllocDefault) !=
        cudaSuccess) {
        (void)cudaGetLastError();
        l->host = NULL;
        return -ENOMEM;
    }
    for (int i = 0; i < CUDA_RING && !r; i++)
        r = cuda_error(cudaEventCreateWithFlags(&l->copied[i], cudaEventDisableTiming));
    for (int i = 0; i < CUDA_RING && !r; i++)
        r = cuda_error(cudaEventCreateWithFlags(&l->used[i], cudaEventDisableTiming));
    if (!r)
        r = cuda_error(cudaEventCreateWithFlags(&l->loaded, cudaEventDisableTiming));
    if (!r)
        r = fill_open(&l->fill);
    if (r)
        cuda_load_close(l);
    return r;
}

/* The next buffer of the ring with `bytes` of src in it. */
static int fill_next(kn_ctx *ctx, const void *src, size_t bytes, unsigned *ret)
{
    cuda_load *l = &ctx->load;
    int r = open_host(l);

    if (r)
        return r;
    l->at = (l->at + 1) % CUDA_RING;
    r = cuda_error(cudaEventSynchronize(l->copied[l->at]));
    if (!r)
        fill_copy(l->fill, host_chunk(l, l->at), src, bytes);
    *ret = l->at;
    return r;
}

int cuda_load_chunk(kn_ctx *ctx, const void *src, size_t bytes, void **ret_device)
{
    cuda_load *l = &ctx->load;
    unsigned i;
    int r = cuda_reserve(&l->device, (size_t)CUDA_RING * CUDA_CHUNK);

    if (!r)
        r = fill_next(ctx, src, bytes, &i);
    if (r)
        return r;
    char *const to = (char *)l->device.p + (size_t)i * CUDA_CHUNK;
    r = cuda_error(cudaStreamWaitEvent(ctx->side, l->used[i], 0));
    if (!r)
        r = cuda_error(
            cudaMemcpyAsync(to, host_chunk(l, i), bytes, cudaMemcpyHostToDevice, ctx->side));
    if (!r)
        r = cuda_error(cudaEventRecord(l->copied[i], ctx->side));
    if (!r)
        r = cuda_error(cudaStreamWaitEvent(ctx->stream, l->copied[i], 0));
    *ret_device = to;
    return r;
}

int cuda_load_used(kn_ctx *ctx)
{
    return cuda_error(cudaEventRecord(ctx->load.used[ctx->load.at], ctx->stream));
}

int cuda_load_done(kn_ctx *ctx)
{
    return cuda_error(cudaEventRecord(ctx->load.loaded, ctx->stream));
}

int cuda_load_wait(kn_ctx *ctx)
{
    return cuda_error(cudaStreamWaitEvent(ctx->side, ctx->load.loaded, 0));
}

int cuda_load_copy(kn_ctx *ctx, void *dst, const void *src, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += CUDA_CHUNK) {
        const size_t left = bytes - at, n = left < CUDA_CHUNK ? left : (size_t)CUDA_CHUNK;
        unsigned i;
        int r = fill_next(ctx, (const char *)src + at, n, &i);
        if (!r)
            r = cuda_error(cudaMemcpyAsync((char *)dst + at, host_chunk(&ctx->load, i), n,
                                           cudaMemcpyHostToDevice, ctx->stream));
        if (!r)
            r = cuda_error(cudaEventRecord(ctx->load.copied[i], ctx->stream));
        if (r)
            return r;
    }
    return 0;
}

void cuda_load_end(cuda_load *l)
{
    cudaFree(l->device.p); /* waits for what still uses it */
    cudaFree(l->scratch.p);
    memset(&l->device, 0, sizeof l->device);
    memset(&l->scratch, 0, sizeof l->scratch);
}

void cuda_load_close(cuda_load *l)
{
    cuda_load_end(l);
    fill_close(l->fill);
    for (int i = 0; i < CUDA_RING; i++) {
        if (l->copied[i])
            cudaEventDestroy(l->copied[i]);
        if (l->used[i])
            cudaEventDestroy(l->used[i]);
    }
    if (l->loaded)
        cudaEventDestroy(l->loaded);
    if (l->host)
        cudaFreeHost(l->host);
    memset(l, 0, sizeof *l);
}
