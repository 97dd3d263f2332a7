/* device.cu - which devices there are, and what a context on one takes for itself. */
#include "lora.cuh"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", as nvidia-smi and NVML write it; of an instance of
 * a GPU, which CUDA calls "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "MIG-...". */
void cuda_uuid(const cudaDeviceProp *p, char *text)
{
    size_t n = (size_t)snprintf(text, KN_UUID, strstr(p->name, " MIG ") ? "MIG-" : "GPU-");

    for (int i = 0; i < 16; i++)
        n += (size_t)snprintf(text + n, KN_UUID - n, "%s%02x",
                              i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                              (unsigned char)p->uuid.bytes[i]);
}

/* CUDA shows a process one instance (MIG), that which CUDA_VISIBLE_DEVICES names, and gives its
 * own 16 bytes (cuDeviceGetUuid_v2), not the GPU's. */
static bool same_uuid(const char *a, const char *b)
{
    return strlen(a) > 4 && strlen(b) > 4 && strcasecmp(a + 4, b + 4) == 0 &&
           (strncmp(a, "GPU-", 4) == 0 || strncmp(a, "MIG-", 4) == 0);
}

int cuda_device_of(const char *uuid)
{
    char have[KN_UUID];
    cudaDeviceProp p;
    int n = 0;

    if (cudaGetDeviceCount(&n) != cudaSuccess)
        return -ENODEV;
    for (int i = 0; i < n; i++) {
        if (cudaGetDeviceProperties(&p, i) != cudaSuccess)
            continue;
        cuda_uuid(&p, have);
        if (same_uuid(uuid, have))
            return i;
    }
    return -ENODEV;
}

int cuda_devices(kn_device *ret, int max, char *why, size_t why_size)
{
    cudaDeviceProp p;
    int n = 0;
    const cudaError_t e = cudaGetDeviceCount(&n);

    if (why && why_size)
        why[0] = '\0';
    if (e != cudaSuccess || n == 0) {
        (void)cudaGetLastError();
        if (why)
            snprintf(why, why_size, "CUDA finds no GPU: %s",
                     e == cudaErrorInsufficientDriver
                         ? "NVIDIA's driver is missing, or older than this build needs"
                         : cudaGetErrorString(e));
        return e == cudaErrorNoDevice ? 0 : -ENOTSUP;
    }
    int usable = 0;
    for (int i = 0; i < n; i++) {
        if (cudaGetDeviceProperties(&p, i) != cudaSuccess)
            return -EIO;
        if (!cuda_new_enough(&p)) {
            if (why)
                snprintf(why, why_size,
                         "CUDA finds a GPU too old for this build: %.60s has compute capability "
                         "%d.%d, 8.0 is needed",
                         p.name, p.major, p.minor);
            continue;
        }
        if (usable++ >= max)
            continue;
        kn_device *d = &ret[usable - 1];
        memset(d, 0, sizeof *d);
        cuda_uuid(&p, d->uuid);
        snprintf(d->name, sizeof d->name, "%.90s", p.name);
        d->mem_total = p.totalGlobalMem;
    }
    return usable;
}

int64_t cuda_lora_room(int64_t lora_cols)
{
    return cuda_ext(lora_cols);
}

static void more(size_t *most, int64_t bytes)
{
    if (bytes > 0 && (size_t)bytes > *most)
        *most = (size_t)bytes;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The buffers of kn_ctx, as linear.cu, lora_grad.cu, gemm.cu and adamw.cu reserve them. */
size_t cuda_scratch_bytes(const kn_scratch *s, kn_dtype compute)
{
    size_t x_ext = 0, dy_ext = 0, grad = 0, fill = 0, partial = 0, slot = 0;
    const int64_t size = (int64_t)cuda_size(compute);

    for (int i = 0; i < s->n_uses; i++) {
        const kn_scratch_use *u = &s->uses[i];
        const int64_t kp = cuda_round(u->w->k), ext = cuda_ext(u->w->lora_cols);
        const int64_t cols = u->w->lora_cols > 0 ? u->w->lora_cols : 0;
        int64_t n = 0, widest = 0;
        more(&slot, (int64_t)cuda_slot_bytes(u->w, compute));
        for (int j = 0; j < u->w->n_parts; j++)
            n += u->w->parts[j].n;
        for (int j = 0; j < u->w->n_parts; j++)
            widest = larger(widest, u->w->parts[j].n);
        /* a product's a and d: of x and y, of dy and dx */
        more(&fill, CUDA_FILL_ROWS * ((kp + ext) * size + cuda_round(n) * 4));
        more(&fill, CUDA_FILL_ROWS * (cuda_round(n + ext) * size + kp * 4));
        if (!u->room) {
            more(&x_ext, u->rows * (kp + ext) * size);
            more(&dy_ext, u->rows * (n + ext) * size);
        }
        if (cols == 0)
            continue;
        more(&x_ext, u->rows * (ext + (s->dropout ? kp : 0)) * size);
        more(&grad, (cols * u->w->k + n * cols) * 4);
        more(&grad, (int64_t)lora_grad_bytes(u->rows, cols, u->w->k, widest));
        if (s->dropout) {
            more(&dy_ext, u->rows * kp * size);
            more(&grad, 2 * u->rows * u->w->k * 4);
        }
    }
    more(&partial, cuda_sweep_bytes(s->params));
    return x_ext + dy_ext + grad + fill + partial + CUDA_SLOTS * slot;
}
