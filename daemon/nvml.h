/* nvml.h - what NVIDIA's management library says of the GPUs.
 *
 * libnvidia-ml.so.1 comes with the driver and is opened at run time: alignd runs on a
 * host without it, and never links it. Every call may block for as long as the driver
 * likes, also for ever: never from the loop's thread (gpu_watch.h). Two threads may use
 * one `struct nvml`: one nvml_sample(), one nvml_wait(). */
#ifndef DAEMON_NVML_H
#define DAEMON_NVML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

enum { NVML_GPUS_MAX = 128, NVML_UUID = 64, NVML_NAME = 96, NVML_PROCESSES_MAX = 32 };

#define NVML_UNKNOWN UINT64_MAX /* of 64-bit numbers; -1 of ints */

struct nvml_process {
    uint32_t pid;   /* as this process's namespace counts; 0: it has none here         */
    uint64_t bytes; /* of the GPU's memory, or NVML_UNKNOWN                            */
};

struct nvml_gpu {
    char uuid[NVML_UUID];   /* "GPU-8f3a...", of an instance "MIG-..."                    */
    char parent[NVML_UUID]; /* of an instance: the GPU's that it is a part of; else ""   */
    char name[NVML_NAME], pci[32];
    uint64_t memory_used, memory_total;     /* bytes                                   */
    int utilisation, temperature, slowdown; /* %, C, C at which its clocks are lowered */
    uint64_t uncorrected;                   /* memory errors since the driver's start  */
    bool rows_failed;                       /* a bad row could not be replaced         */
    bool lost;                              /* the driver cannot reach it any more     */
    bool mig;         /* split into instances, but there is none                                */
    char trouble[96]; /* a call failed that should not: which, why */
    struct nvml_process process[NVML_PROCESSES_MAX]; /* with a compute context         */
    uint32_t n_processes;
    bool processes_known;
};

struct nvml_event {
    char uuid[NVML_UUID]; /* of a whole GPU                                            */
    bool ecc;             /* an uncorrectable memory error                                     */
    uint64_t xid;         /* else                                                              */
};

struct nvml;

/* -ENOENT: there is no library; -ENOTSUP: it lacks functions; -EIO: it says no (no
 * driver, or one of another version). The sentence says what. */
int nvml_open(struct nvml **ret, struct err *err);
void nvml_close(struct nvml *n); /* NULL is a no-op; not while another thread is in it */
const char *nvml_driver(const struct nvml *n); /* its version, or "" */

/* All GPUs, in the order of their PCI addresses, which is that of indices in
 * CUDA_VISIBLE_DEVICES; in the place of one that is split into MIG instances these, with
 * its temperature and health, and no utilisation. -EIO. */
int nvml_sample(struct nvml *n, struct nvml_gpu *gpus, size_t max, size_t *ret_n, struct err *err);

/* The next event. 1: *ret is one; 0: none in this time; -ENOTSUP: this driver has no
 * events; -EIO: ask again later. */
int nvml_wait(struct nvml *n, int timeout_ms, struct nvml_event *ret);

#endif
