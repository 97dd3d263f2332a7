/* device.h - which backend trains a job, and on which devices of this machine.
 *
 * GPUs are those that CUDA shows this process: what CUDA_VISIBLE_DEVICES or a control
 * group (Slurm's) hides is not there. They are named by UUID, never by index.
 *
 * Tests only: ALIGND_BACKEND names another backend. "sim" and "cuda" stand in for the
 * GPUs' ("sim": the CUDA code on simulated devices; CUSIM_DEVICES says how many), "ref"
 * and "cpu" for the CPU's, and then there are no GPUs. */
#ifndef WORKER_DEVICE_H
#define WORKER_DEVICE_H

#include <stdbool.h>

#include "kernels/kernels.h"
#include "proto/err.h"
#include "proto/limit.h"
#include "proto/spec.h"

struct device_set {
    const char *backend;
    const struct kn_ops *ops;
    bool gpu;
    int n; /* GPUs there are; 0 on the CPU                */
    struct kn_device v[LIMIT_RANKS];
    char why[320]; /* auto on the CPU: why no GPU is used          */
};

/* Backend of GPUs, or of CPUs; NULL: this process is told to use none. */
const char *device_backend(bool gpu);

/* device_type: auto takes GPUs where there are any. -ENODEV: the spec wants GPUs that
 * are not there, err says why. */
int device_look(const struct spec *spec, struct device_set *ret, struct err *err);

/* What the spec leaves to the kind of device: bf16: auto. */
void device_settle(struct spec *spec, bool gpu);

/* What `align-worker devices` prints, malloc'ed: {"backend": "cuda", "gpus": [{"uuid",
 * "name", "memory"}], "why": why no GPU is used}. NULL: no memory. */
char *device_json(void);

#endif
