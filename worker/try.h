/* try.h - `alignctl try`: a run in small, in a temporary folder, before it is queued.
 *
 * Loads everything as a rank would, takes two steps on the longest examples the run
 * will see, evaluates one batch and writes and reads back one checkpoint. */
#ifndef WORKER_TRY_H
#define WORKER_TRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/spec.h"
#include "worker/dataset.h"
#include "worker/device.h"
#include "worker/memory.h"
#include "worker/plan.h"

struct try_result {
    double step0_loss;
    bool starts_at_reference; /* then step0_loss is ln 2 to the last bit: it was checked */
    double step1_loss, grad_norm;
    double eval_loss;              /* NAN without an evaluation set                               */
    size_t peak_bytes, plan_bytes; /* of the process; on a GPU, of the device        */
    struct memory_plan memory;
    double longest_seconds;  /* of the step on the longest examples                  */
    double seconds_per_step; /* expected of an average step of this run              */
    double total_seconds;    /* expected of the whole run, evaluations included      */
    bool checkpoint;         /* written, read back, equal                            */
    size_t checkpoint_bytes;
    int64_t lora_parameters;
    struct plan plan;
    int64_t rows; /* read for training, before anything was dropped                  */
    int64_t dropped[DROP_REASONS], n_dropped, n_cut;
    int32_t longest;
};

/* One rank's part of spec->devices is tried. Returns 0 or -errno with its sentence. */
int try_run(const struct spec *spec, const struct device_set *devices, int threads,
            struct try_result *ret, struct err *err);

#endif
