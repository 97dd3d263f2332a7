/* gpu_visible.h - which of the machine's GPUs alignd may use: CUDA_VISIBLE_DEVICES, or
 * what Slurm gave. Pure. */
#ifndef DAEMON_GPU_VISIBLE_H
#define DAEMON_GPU_VISIBLE_H

#include <stdbool.h>
#include <stddef.h>

struct gpu_visible_env { /* NULL: not set */
    const char *cuda_visible_devices, *cuda_device_order;
    const char *slurm_job_id, *slurm_step_gpus, *slurm_job_gpus;
};

void gpu_visible_env(struct gpu_visible_env *ret);

/* uuids, names, parents ("": a whole GPU; else an instance of that one): in NVML's order,
 * n <= NVML_GPUS_MAX. Who names a GPU means all its instances. ret[0..n): may it be used. note (may
 * be ""): a sentence for the log when that is not all. Returns how many. As CUDA: indices, UUIDs or
 * their beginnings; what comes after an entry that names none is not visible. */
size_t gpu_visible(const struct gpu_visible_env *env, const char *const *uuids,
                   const char *const *names, const char *const *parents, size_t n, bool *ret,
                   char *note, size_t size);

#endif
