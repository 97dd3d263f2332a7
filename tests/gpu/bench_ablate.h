/* bench_ablate.h - one technique off at a time. */
#ifndef TESTS_GPU_BENCH_ABLATE_H
#define TESTS_GPU_BENCH_ABLATE_H

#include "tests/gpu/bench.h"

/* One JSON object a line: everything on, then each variant from b->from on, then
 * everything again. */
int bench_ablate(struct bench *b, struct err *err);

#endif
