/* fill.h - copies host memory with several threads: one alone reads a file's pages at a
 * fraction of what a GPU's bus takes. */
#ifndef KERNELS_CUDA_FILL_H
#define KERNELS_CUDA_FILL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct fill; /* the threads; one caller at a time */

/* As many threads as the process may use processors, at most 8 with the caller. */
int fill_open(struct fill **ret);
void fill_close(struct fill *f); /* NULL is a no-op */
/* Returns when all of it is copied. */
void fill_copy(struct fill *f, void *dst, const void *src, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
