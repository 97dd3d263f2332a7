/* quant.cuh - matrices in 4 bits in device memory: made in quant.cu, used in weight.cu. */
#ifndef KERNELS_CUDA_QUANT_CUH
#define KERNELS_CUDA_QUANT_CUH

#include "cuda.cuh"

/* What is quantised: n elements as they are stored, rounded to `loaded` first. */
struct cuda_source {
    const void *p;
    kn_dtype stored, loaded;
    int64_t n;
};

/* Fills in sizes, and pointers into `base` (256-byte aligned, or NULL for the size
 * alone); returns the bytes. */
size_t cuda_quant4_layout(cuda_quant4 *q, int64_t n, kn_quant type, bool nested, char *base);
/* The map's 256 entries. */
int cuda_quant4_map(cudaStream_t stream, const cuda_quant4 *q);
/* Into 4 bits by pieces: each from element `first`, a multiple of KN_Q4_BLOCK, and as long as s
 * says; then the end, when all are there. absmax: scratch of q->blocks floats when nested.
 * offset_in: host memory or NULL. */
int cuda_quant4_piece(cudaStream_t stream, const cuda_quant4 *q, const cuda_source *s,
                      int64_t first, float *absmax);
int cuda_quant4_end(cudaStream_t stream, const cuda_quant4 *q, const float *absmax,
                    const float *offset_in);
/* The (n / k, k) matrix into rows of w (dtype t, ld apart, 16-byte aligned), each
 * value rounded to `loaded` first; columns from k to a multiple of KN_LD: zero. */
int cuda_quant4_expand(cudaStream_t stream, const cuda_quant4 *q, void *w, kn_dtype t, int64_t ld,
                       int64_t k, kn_dtype loaded);
/* The same from values that were never quantised, those from element `first` on; the columns
 * behind k are left alone. */
int cuda_fill_rows(cudaStream_t stream, const cuda_source *s, int64_t first, void *w, kn_dtype t,
                   int64_t ld, int64_t k);

#endif
