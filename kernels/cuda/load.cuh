/* load.cuh - large host memory onto the device, a chunk at a time (load.cu). */
#ifndef KERNELS_CUDA_LOAD_CUH
#define KERNELS_CUDA_LOAD_CUH

#include "cuda.cuh"
#include "fill.h"

/* The next chunk, at most CUDA_CHUNK bytes, in the device's side of the ring; work that is
 * queued on the context's stream from now on finds it there. src may go when this returns.
 * cuda_load_used follows, after the last work that reads the chunk was queued. */
int cuda_load_chunk(kn_ctx *ctx, const void *src, size_t bytes, void **ret_device);
int cuda_load_used(kn_ctx *ctx);
/* Behind a weight's last chunk; the second stream, which fills slots from it, waits:
 * cuda_load_wait. */
int cuda_load_done(kn_ctx *ctx);
int cuda_load_wait(kn_ctx *ctx);
/* dst on the device, in the order of the context's stream; src may go when this returns. */
int cuda_load_copy(kn_ctx *ctx, void *dst, const void *src, size_t bytes);

#endif
