/* nvml.c - see nvml.h. The declarations are those of NVML's public reference ("NVML API
 * Reference Guide"), as far as they are needed: so a build needs no CUDA. */
#include "daemon/nvml.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { /* nvmlReturn_t */
       NVML_SUCCESS = 0,
       NVML_ERROR_TIMEOUT = 10,
       NVML_ERROR_GPU_IS_LOST = 15,
       NVML_ERROR_RESET_REQUIRED = 16,
};
enum { /* arguments and bits */
       TEMPERATURE_GPU = 0,
       TEMPERATURE_SLOWDOWN = 1,
       ERROR_UNCORRECTED = 1,
       COUNT_VOLATILE = 0,
       EVENT_DOUBLE_BIT_ECC = 2,
       EVENT_XID = 8,
       PROCESSES_ROOM = 1024,
};

typedef struct nvml_handle *handle; /* nvmlDevice_t */
typedef struct nvml_set *event_set; /* nvmlEventSet_t */

struct memory_info { /* nvmlMemory_t */
    unsigned long long total, free, used;
};
struct utilization_info { /* nvmlUtilization_t: % of the last sampling period */
    unsigned int gpu, memory;
};
struct pci_info { /* nvmlPciInfo_t, _v3 */
    char bus_id_legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct process_info { /* nvmlProcessInfo_t, _v2 and _v3 */
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
};
struct event_data { /* nvmlEventData_t, _v2 */
    handle device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
};

_Static_assert(sizeof(struct pci_info) == 68, "as nvmlPciInfo_t");
_Static_assert(sizeof(struct process_info) == 24, "as nvmlProcessInfo_t");
_Static_assert(sizeof(struct event_data) == 32, "as nvmlEventData_t");

struct calls {
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error_string)(int r);
    int (*driver_version)(char *text, unsigned int size);
    int (*count)(unsigned int *n);
    int (*by_index)(unsigned int i, handle *h);
    int (*uuid)(handle h, char *text, unsigned int size);
    int (*name)(handle h, char *text, unsigned int size);
    int (*pci)(handle h, struct pci_info *ret);
    int (*memory)(handle h, struct memory_info *ret);
    int (*utilization)(handle h, struct utilization_info *ret);
    int (*temperature)(handle h, int sensor, unsigned int *ret);
    int (*threshold)(handle h, int which, unsigned int *ret);
    int (*mig_mode)(handle h, unsigned int *now, unsigned int *pending);
    int (*mig_count)(handle h, unsigned int *ret);
    int (*mig_by_index)(handle h, unsigned int i, handle *ret);
    int (*processes)(handle h, unsigned int *n, struct process_info *v);
    int (*ecc_total)(handle h, int type, int counter, unsigned long long *ret);
    int (*remapped)(handle h, unsigned int *corrected, unsigned int *uncorrected,
                    unsigned int *pending, unsigned int *failed);
    int (*set_create)(event_set *ret);
    int (*set_free)(event_set s);
    int (*set_wait)(event_set s, struct event_data *ret, unsigned int timeout_ms);
    int (*event_types)(handle h, unsigned long long *ret);
    int (*register_events)(handle h, unsigned long long types, event_set s);
};

static const struct {
    const char *name;
    size_t at; /* in struct calls */
    bool must;
} symbols[] = {
#define CALL(field, name, must)                          \
    {                                                    \
        "nvml" name, offsetof(struct calls, field), must \
    }
    CALL(init, "Init_v2", true),
    CALL(shutdown, "Shutdown", false),
    CALL(error_string, "ErrorString", false),
    CALL(driver_version, "SystemGetDriverVersion", false),
    CALL(count, "DeviceGetCount_v2", true),
    CALL(by_index, "DeviceGetHandleByIndex_v2", true),
    CALL(uuid, "DeviceGetUUID", true),
    CALL(name, "DeviceGetName", false),
    CALL(pci, "DeviceGetPciInfo_v3", false),
    CALL(memory, "DeviceGetMemoryInfo", false),
    CALL(utilization, "DeviceGetUtilizationRates", false),
    CALL(temperature, "DeviceGetTemperature", false),
    CALL(threshold, "DeviceGetTemperatureThreshold", false),
    CALL(mig_mode, "DeviceGetMigMode", false),
    CALL(mig_count, "DeviceGetMaxMigDeviceCount", false),
    CALL(mig_by_index, "DeviceGetMigDeviceHandleByIndex", false),
    CALL(processes, "DeviceGetComputeRunningProcesses_v2", false),
    CALL(processes, "DeviceGetComputeRunningProcesses_v3", false), /* the later one wins */
    CALL(ecc_total, "DeviceGetTotalEccErrors", false),
    CALL(remapped, "DeviceGetRemappedRows", false),
    CALL(set_create, "EventSetCreate", false),
    CALL(set_free, "EventSetFree", false),
    CALL(set_wait, "EventSetWait_v2", false),
    CALL(event_types, "DeviceGetSupportedEventTypes", false),
    CALL(register_events, "DeviceRegisterEvents", false),
#undef CALL
};

struct nvml {
    void *library;
    struct calls call;
    bool ready; /* init succeeded */
    char driver[80];
    char uuid[NVML_GPUS_MAX][NVML_UUID];  /* last seen at an index: a lost GPU has none  */
    struct process_info *room;            /* PROCESSES_ROOM, of nvml_sample()            */
    event_set set;                        /* nvml_wait()'s from here                     */
    unsigned int watched;                 /* GPUs in it                                  */
    handle watched_handle[NVML_GPUS_MAX]; /* a lost GPU does not tell its UUID           */
    char watched_uuid[NVML_GPUS_MAX][NVML_UUID];
};

static const char *reason(const struct nvml *n, int r, char *buf, size_t size)
{
    const char *text = n->call.error_string ? n->call.error_string(r) : NULL;

    if (text && *text)
        (void)snprintf(buf, size, "%s", text);
    else
        (void)snprintf(buf, size, "error %d", r);
    return buf;
}

static int load(struct nvml *n, struct err *err)
{
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!n->library)
        return err_set(err, -ENOENT, "%s", dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *p = dlsym(n->library, symbols[i].name);
        if (!p && symbols[i].must)
            return err_set(err, -ENOTSUP, "libnvidia-ml.so.1 has no %s: the driver is too old",
                           symbols[i].name);
        if (p) /* ISO C has no cast from data to function */
            memcpy((char *)&n->call + symbols[i].at, &p, sizeof p);
    }
    return 0;
}

int nvml_open(struct nvml **ret, struct err *err)
{
    struct nvml *n = calloc(1, sizeof *n);
    char why[128];
    int r = -ENOMEM;

    if (!n || !(n->room = calloc(PROCESSES_ROOM, sizeof *n->room)))
        goto fail;
    r = load(n, err);
    if (r < 0)
        goto fail;
    r = n->call.init();
    if (r != NVML_SUCCESS) {
        r = err_set(err, -EIO, "NVIDIA's driver cannot be used: %s", reason(n, r, why, sizeof why));
        goto fail;
    }
    n->ready = true;
    if (!n->call.driver_version ||
        n->call.driver_version(n->driver, sizeof n->driver) != NVML_SUCCESS)
        n->driver[0] = 0;
    *ret = n;
    return 0;
fail:
    if (r == -ENOMEM)
        (void)err_set(err, r, "out of memory");
    nvml_close(n);
    return r;
}

void nvml_close(struct nvml *n)
{
    if (!n)
        return;
    if (n->set && n->call.set_free)
        (void)n->call.set_free(n->set);
    if (n->ready && n->call.shutdown)
        (void)n->call.shutdown();
    if (n->library)
        dlclose(n->library);
    free(n->room);
    free(n);
}

const char *nvml_driver(const struct nvml *n)
{
    return n->driver;
}

/* ---- one GPU ---- */

/* What cannot be read is not known. `must`: without it the GPU cannot be used. */
static bool worked(const struct nvml *n, struct nvml_gpu *g, const char *must, int r)
{
    char why[64];

    if (r == NVML_ERROR_GPU_IS_LOST)
        g->lost = true;
    else if (r == NVML_ERROR_RESET_REQUIRED)
        (void)snprintf(g->trouble, sizeof g->trouble, "the GPU must be reset");
    else if (r != NVML_SUCCESS && must)
        (void)snprintf(g->trouble, sizeof g->trouble, "the driver does not give its %s: %s", must,
                       reason(n, r, why, sizeof why));
    return r == NVML_SUCCESS;
}

static void sample_load(const struct nvml *n, handle h, struct nvml_gpu *g)
{
    struct memory_info m;
    struct utilization_info u;
    unsigned int v;

    if (n->call.memory && worked(n, g, NULL, n->call.memory(h, &m))) {
        g->memory_total = m.total;
        g->memory_used = m.used;
    }
    if (n->call.utilization && worked(n, g, NULL, n->call.utilization(h, &u)))
        g->utilisation = (int)u.gpu;
    if (n->call.temperature && worked(n, g, NULL, n->call.temperature(h, TEMPERATURE_GPU, &v)))
        g->temperature = (int)v;
    if (n->call.threshold && n->call.threshold(h, TEMPERATURE_SLOWDOWN, &v) == NVML_SUCCESS)
        g->slowdown = (int)v;
}

static void sample_health(const struct nvml *n, handle h, struct nvml_gpu *g)
{
    unsigned int now, later, corrected, uncorrected, pending, failed;
    unsigned long long errors;

    if (n->call.mig_mode && n->call.mig_mode(h, &now, &later) == NVML_SUCCESS)
        g->mig = now == 1;
    if (n->call.ecc_total &&
        n->call.ecc_total(h, ERROR_UNCORRECTED, COUNT_VOLATILE, &errors) == NVML_SUCCESS)
        g->uncorrected = errors;
    if (n->call.remapped &&
        n->call.remapped(h, &corrected, &uncorrected, &pending, &failed) == NVML_SUCCESS)
        g->rows_failed = failed != 0;
}

static void sample_processes(const struct nvml *n, handle h, struct nvml_gpu *g)
{
    unsigned int k = PROCESSES_ROOM;

    if (!n->call.processes || !worked(n, g, NULL, n->call.processes(h, &k, n->room)))
        return;
    g->processes_known = true;
    for (unsigned int i = 0; i < k && i < PROCESSES_ROOM && g->n_processes < NVML_PROCESSES_MAX;
         i++)
        g->process[g->n_processes++] =
            (struct nvml_process){.pid = n->room[i].pid, .bytes = n->room[i].used};
}

/* An instance of the GPU p: a device of its own, on the same hardware. */
static bool sample_instance(const struct nvml *n, handle h, const struct nvml_gpu *p,
                            struct nvml_gpu *g)
{
    struct memory_info m;
    char uuid[96];

    *g = *p;
    g->mig = false;
    g->n_processes = 0;
    g->processes_known = false;
    g->utilisation = -1;
    g->memory_used = g->memory_total = NVML_UNKNOWN;
    memcpy(g->parent, p->uuid, sizeof g->parent);
    if (n->call.uuid(h, uuid, sizeof uuid) != NVML_SUCCESS || strlen(uuid) >= NVML_UUID)
        return false;
    memcpy(g->uuid, uuid, strlen(uuid) + 1);
    if (n->call.name && n->call.name(h, uuid, sizeof uuid) == NVML_SUCCESS)
        (void)snprintf(g->name, sizeof g->name, "%s", uuid);
    if (n->call.memory && worked(n, g, NULL, n->call.memory(h, &m))) {
        g->memory_total = m.total;
        g->memory_used = m.used;
    }
    sample_processes(n, h, g);
    return true;
}

/* How many instances took the GPU's place in gpus[0..max); 0: it stays. */
static size_t split(struct nvml *n, handle h, struct nvml_gpu *gpus, size_t max)
{
    const struct nvml_gpu whole = gpus[0];
    unsigned int count = 0;
    size_t k = 0;
    handle part;

    if (!whole.mig || !n->call.mig_count || !n->call.mig_by_index ||
        n->call.mig_count(h, &count) != NVML_SUCCESS)
        return 0;
    for (unsigned int i = 0; i < count && k < max; i++)
        if (n->call.mig_by_index(h, i, &part) == NVML_SUCCESS)
            k += sample_instance(n, part, &whole, &gpus[k]);
    if (k == 0)
        gpus[0] = whole;
    return k;
}

/* false: nothing is known of it, not even who it is. */
static bool sample_one(struct nvml *n, unsigned int i, struct nvml_gpu *g, handle *ret)
{
    struct pci_info pci;
    char uuid[96] = "";
    handle h;

    *ret = NULL;
    memset(g, 0, sizeof *g);
    g->memory_used = g->memory_total = g->uncorrected = NVML_UNKNOWN;
    g->utilisation = g->temperature = g->slowdown = -1;
    if (worked(n, g, "handle", n->call.by_index(i, &h)) &&
        worked(n, g, "UUID", n->call.uuid(h, uuid, sizeof uuid)) && strlen(uuid) < NVML_UUID)
        memcpy(n->uuid[i], uuid, strlen(uuid) + 1);
    else
        h = NULL;
    memcpy(g->uuid, n->uuid[i], NVML_UUID);
    if (!g->uuid[0])
        return false;
    if (!h)
        return true;
    if (!n->call.name || n->call.name(h, g->name, sizeof g->name) != NVML_SUCCESS)
        g->name[0] = 0;
    if (n->call.pci && n->call.pci(h, &pci) == NVML_SUCCESS)
        (void)snprintf(g->pci, sizeof g->pci, "%.31s", pci.bus_id);
    sample_load(n, h, g);
    sample_health(n, h, g);
    sample_processes(n, h, g);
    *ret = h;
    return true;
}

/* Indices have shifted while a GPU was lost. */
static bool twice(const struct nvml_gpu *gpus, size_t k)
{
    for (size_t i = 0; i < k; i++)
        if (!strcmp(gpus[i].uuid, gpus[k].uuid))
            return true;
    return false;
}

int nvml_sample(struct nvml *n, struct nvml_gpu *gpus, size_t max, size_t *ret_n, struct err *err)
{
    unsigned int count = 0;
    char why[128];
    size_t k = 0;
    handle h;
    const int r = n->call.count(&count);

    if (r != NVML_SUCCESS)
        return err_set(err, -EIO, "NVIDIA's driver does not say which GPUs there are: %s",
                       reason(n, r, why, sizeof why));
    for (unsigned int i = 0; i < count && i < NVML_GPUS_MAX && k < max; i++) {
        if (!sample_one(n, i, &gpus[k], &h) || twice(gpus, k))
            continue;
        const size_t parts = h ? split(n, h, &gpus[k], max - k) : 0;
        k += parts ? parts : 1;
    }
    *ret_n = k;
    return 0;
}

/* ---- events ---- */

/* GPUs come and go seldom: then the set is made anew. */
static int watch_all(struct nvml *n, unsigned int count)
{
    int any = 0;

    if (n->set && n->call.set_free)
        (void)n->call.set_free(n->set);
    n->set = NULL;
    n->watched = 0;
    if (n->call.set_create(&n->set) != NVML_SUCCESS) {
        n->set = NULL;
        return -EIO;
    }
    memset(n->watched_uuid, 0, sizeof n->watched_uuid);
    for (unsigned int i = 0; i < count && i < NVML_GPUS_MAX; i++) {
        unsigned long long types = EVENT_DOUBLE_BIT_ECC | EVENT_XID, has = types;
        char uuid[96];
        handle h;
        if (n->call.by_index(i, &h) != NVML_SUCCESS ||
            n->call.uuid(h, uuid, sizeof uuid) != NVML_SUCCESS || strlen(uuid) >= NVML_UUID)
            continue;
        n->watched_handle[i] = h;
        memcpy(n->watched_uuid[i], uuid, strlen(uuid) + 1);
        if (n->call.event_types && n->call.event_types(h, &has) == NVML_SUCCESS)
            types &= has;
        any |= types && n->call.register_events(h, types, n->set) == NVML_SUCCESS;
    }
    n->watched = count;
    return any ? 0 : -ENOTSUP;
}

int nvml_wait(struct nvml *n, int timeout_ms, struct nvml_event *ret)
{
    struct event_data d = {0};
    const char *uuid = NULL;
    unsigned int count;
    int r;

    if (!n->call.set_create || !n->call.set_wait || !n->call.register_events)
        return -ENOTSUP;
    if (n->call.count(&count) != NVML_SUCCESS)
        return -EIO;
    if (!n->set || count != n->watched) {
        r = count ? watch_all(n, count) : -EIO;
        if (r < 0)
            return r;
    }
    r = n->call.set_wait(n->set, &d, (unsigned int)timeout_ms);
    if (r == NVML_ERROR_TIMEOUT)
        return 0;
    if (r == NVML_ERROR_GPU_IS_LOST) /* and so for ever: the others in a set of their own */
        n->watched = UINT_MAX;
    if (r != NVML_SUCCESS)
        return -EIO;
    for (unsigned int i = 0; i < NVML_GPUS_MAX; i++)
        if (n->watched_uuid[i][0] && n->watched_handle[i] == d.device)
            uuid = n->watched_uuid[i];
    if (!(d.type & (EVENT_DOUBLE_BIT_ECC | EVENT_XID)) || !uuid)
        return 0;
    memset(ret, 0, sizeof *ret);
    memcpy(ret->uuid, uuid, NVML_UUID);
    ret->ecc = d.type & EVENT_DOUBLE_BIT_ECC;
    ret->xid = ret->ecc ? 0 : d.data;
    return 1;
}
