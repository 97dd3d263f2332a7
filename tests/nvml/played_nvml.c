/* played_nvml.c - a libnvidia-ml.so.1 without a GPU: plays the file that $ALIGND_PLAYED_NVML
 * names, which is read again at every call, so that a test changes the world by replacing it.
 *
 * One thing a line, words apart by blanks; `#` begins a comment:
 *   init CODE                        nvmlInit_v2 returns it (9: no driver, 18: versions)
 *   gpu UUID NAME MIB                a GPU with so much memory; _ in NAME is a blank
 *   set UUID KEY VALUE               used (MiB), util, temp, slowdown, mig, uncorrected, rows,
 *                                    lost, code (of its handle)
 *   mig GPU UUID NAME MIB            an instance of a GPU (`set GPU mig 1`)
 *   process UUID PID MIB             a compute process on it
 *   event SERIAL UUID xid NUMBER     an event: for the event sets that were there before it
 *   event SERIAL UUID ecc
 *   hang CALL                        that call (memory, wait, ...) does not return while the
 *                                    line is there
 *   missing CALL                     answers NVML_ERROR_FUNCTION_NOT_FOUND
 * Without the variable there are no GPUs. With OLD_DRIVER it lacks what came later: no list
 * of processes as it is today, no MIG, no events. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

enum { GPUS = 32, PROCESSES = 64, EVENTS = 64, SEEN = 256, LINES = 4096 };
enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT = 7,
    TIMEOUT = 10,
    NO_FUNCTION = 13,
    LOST = 15,
};

struct gpu {
    char uuid[64], name[96], parent[64];
    long long mib, used, util, temp, slowdown, mig, uncorrected, rows, lost, code;
};

struct played {
    int init;
    struct gpu gpu[GPUS], part[GPUS];
    unsigned n, n_parts;
    struct {
        char uuid[64];
        unsigned pid;
        long long mib;
    } process[PROCESSES];
    unsigned n_processes;
    struct {
        long long serial;
        char uuid[64];
        bool ecc;
        unsigned xid;
    } event[EVENTS];
    unsigned n_events;
    char hang[8][32], missing[8][32];
    unsigned n_hang, n_missing;
};

/* Handles are addresses of these: the same UUID always has the same. */
static struct {
    char uuid[64];
} handles[GPUS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool ready;

struct set {
    long long seen[SEEN];
    unsigned n_seen;
    bool watches[GPUS];
};

static struct gpu *gpu_of(struct played *p, const char *uuid)
{
    for (unsigned i = 0; i < p->n; i++)
        if (!strcmp(p->gpu[i].uuid, uuid))
            return &p->gpu[i];
    for (unsigned i = 0; i < p->n_parts; i++)
        if (!strcmp(p->part[i].uuid, uuid))
            return &p->part[i];
    return NULL;
}

static void set_key(struct played *p, const char *uuid, const char *key, long long v)
{
    struct gpu *g = gpu_of(p, uuid);
    const struct {
        const char *key;
        long long *at;
    } keys[] = {{"used", g ? &g->used : NULL}, {"util", g ? &g->util : NULL},
                {"temp", g ? &g->temp : NULL}, {"slowdown", g ? &g->slowdown : NULL},
                {"mig", g ? &g->mig : NULL},   {"uncorrected", g ? &g->uncorrected : NULL},
                {"rows", g ? &g->rows : NULL}, {"lost", g ? &g->lost : NULL},
                {"code", g ? &g->code : NULL}};

    for (unsigned i = 0; g && i < sizeof keys / sizeof keys[0]; i++)
        if (!strcmp(keys[i].key, key))
            *keys[i].at = v;
}

static void read_event(struct played *p, const char *line)
{
    char what[16] = "";
    unsigned xid = 0;
    const unsigned i = p->n_events;

    if (i == EVENTS || sscanf(line, "event %lld %63s %15s %u", &p->event[i].serial,
                              p->event[i].uuid, what, &xid) < 3)
        return;
    p->event[i].ecc = !strcmp(what, "ecc");
    p->event[i].xid = xid;
    p->n_events++;
}

static void read_line(struct played *p, const char *line)
{
    char a[64], b[96], parent[64] = "";
    long long v;
    unsigned pid;

    if ((sscanf(line, "gpu %63s %95s %lld", a, b, &v) == 3 && p->n < GPUS) ||
        (sscanf(line, "mig %63s %63s %95s %lld", parent, a, b, &v) == 4 && p->n_parts < GPUS)) {
        struct gpu *g = *parent ? &p->part[p->n_parts++] : &p->gpu[p->n++];
        *g = (struct gpu){.mib = v, .used = 3, .util = 0, .temp = 30, .slowdown = 90};
        memcpy(g->uuid, a, sizeof a);
        memcpy(g->parent, parent, sizeof parent);
        for (size_t i = 0; i < sizeof b; i++)
            g->name[i] = b[i] == '_' ? ' ' : b[i];
    } else if (sscanf(line, "set %63s %95s %lld", a, b, &v) == 3) {
        set_key(p, a, b, v);
    } else if (sscanf(line, "process %63s %u %lld", a, &pid, &v) == 3 &&
               p->n_processes < PROCESSES) {
        memcpy(p->process[p->n_processes].uuid, a, sizeof a);
        p->process[p->n_processes].pid = pid;
        p->process[p->n_processes++].mib = v;
    } else if (sscanf(line, "init %lld", &v) == 1) {
        p->init = (int)v;
    } else if (sscanf(line, "hang %31s", a) == 1 && p->n_hang < 8) {
        memcpy(p->hang[p->n_hang++], a, 32);
    } else if (sscanf(line, "missing %31s", a) == 1 && p->n_missing < 8) {
        memcpy(p->missing[p->n_missing++], a, 32);
    } else {
        read_event(p, line);
    }
}

static void read_play(struct played *p)
{
    const char *path = getenv("ALIGND_PLAYED_NVML");
    FILE *f = path ? fopen(path, "re") : NULL;
    char line[512];

    memset(p, 0, sizeof *p);
    for (int i = 0; f && i < LINES && fgets(line, sizeof line, f); i++)
        if (line[0] != '#')
            read_line(p, line);
    if (f)
        fclose(f);
}

static bool named(char list[8][32], unsigned n, const char *call)
{
    for (unsigned i = 0; i < n; i++)
        if (!strcmp(list[i], call))
            return true;
    return false;
}

/* Every call begins here: hangs, is missing, or comes too early. */
static int begin(struct played *p, const char *call)
{
    read_play(p);
    while (named(p->hang, p->n_hang, call)) {
        usleep(20000);
        read_play(p);
    }
    if (named(p->missing, p->n_missing, call))
        return NO_FUNCTION;
    return ready || !strcmp(call, "init") ? OK : UNINITIALIZED;
}

/* The GPU a call is about. */
static int about(struct played *p, const char *call, const void *handle, struct gpu **ret)
{
    const int r = begin(p, call);
    const size_t i = (size_t)((const char *)handle - (const char *)handles) / sizeof handles[0];

    if (r != OK)
        return r;
    *ret = i < GPUS ? gpu_of(p, handles[i].uuid) : NULL;
    if (!*ret)
        return INVALID;
    if (*(*ret)->parent && gpu_of(p, (*ret)->parent))
        return gpu_of(p, (*ret)->parent)->lost ? LOST : OK;
    return (*ret)->lost ? LOST : OK;
}

static int put(char *to, unsigned size, const char *text)
{
    return snprintf(to, size, "%s", text) < (int)size ? OK : INSUFFICIENT;
}

API int nvmlInit_v2(void)
{
    struct played p;
    int r = begin(&p, "init");

    if (r == OK)
        r = p.init;
    ready = r == OK;
    return r;
}

API int nvmlShutdown(void)
{
    return OK;
}

API const char *nvmlErrorString(int r)
{
    return r == 9    ? "Driver Not Loaded"
           : r == 18 ? "Driver/library version mismatch"
           : r == 15 ? "GPU is lost"
                     : "Some Error";
}

API int nvmlSystemGetDriverVersion(char *to, unsigned size)
{
    return put(to, size, "580.95.05");
}

API int nvmlDeviceGetCount_v2(unsigned *n)
{
    struct played p;
    const int r = begin(&p, "count");

    *n = p.n;
    return r;
}

static void give_handle(const char *uuid, void **handle)
{
    pthread_mutex_lock(&lock);
    for (unsigned k = 0; k < GPUS; k++) {
        if (!handles[k].uuid[0])
            memcpy(handles[k].uuid, uuid, sizeof handles[k].uuid);
        if (strcmp(handles[k].uuid, uuid) != 0)
            continue;
        *handle = &handles[k];
        break;
    }
    pthread_mutex_unlock(&lock);
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle)
{
    struct played p;
    int r = begin(&p, "handle");

    if (r != OK || i >= p.n)
        return r != OK ? r : INVALID;
    if (p.gpu[i].lost || p.gpu[i].code)
        return p.gpu[i].lost ? LOST : (int)p.gpu[i].code;
    give_handle(p.gpu[i].uuid, handle);
    return OK;
}

API int nvmlDeviceGetUUID(void *h, char *to, unsigned size)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "uuid", h, &g);

    return r == OK ? put(to, size, g->uuid) : r;
}

API int nvmlDeviceGetName(void *h, char *to, unsigned size)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "name", h, &g);

    return r == OK ? put(to, size, g->name) : r;
}

API int nvmlDeviceGetPciInfo_v3(void *h, void *ret)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "pci", h, &g);

    if (r == OK) { /* busId: the last 32 of 68 bytes */
        memset(ret, 0, 68);
        (void)snprintf((char *)ret + 36, 32, "00000000:%02X:00.0", (unsigned)(g - p.gpu) + 1);
    }
    return r;
}

API int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *ret)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "memory", h, &g);

    if (r == OK) { /* total, free, used */
        ret[0] = (unsigned long long)g->mib << 20;
        ret[2] = (unsigned long long)g->used << 20;
        ret[1] = ret[0] - ret[2];
    }
    return r;
}

API int nvmlDeviceGetUtilizationRates(void *h, unsigned *ret)
{
    struct played p;
    struct gpu *g;
    int r = about(&p, "utilization", h, &g);

    if (r == OK && *g->parent) /* of the whole GPU alone */
        r = NOT_SUPPORTED;

    if (r == OK) {
        ret[0] = (unsigned)g->util;
        ret[1] = 0;
    }
    return r;
}

API int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *ret)
{
    struct played p;
    struct gpu *g;
    int r = about(&p, "temperature", h, &g);

    if (r == OK && *g->parent) /* of the whole GPU alone */
        r = NOT_SUPPORTED;

    if (r == OK && sensor == 0)
        *ret = (unsigned)g->temp;
    return r == OK && sensor != 0 ? INVALID : r;
}

API int nvmlDeviceGetTemperatureThreshold(void *h, int which, unsigned *ret)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "threshold", h, &g);

    if (r == OK && which == 1)
        *ret = (unsigned)g->slowdown;
    return r == OK && which != 1 ? INVALID : r;
}

#ifndef OLD_DRIVER
API int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *pending)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "mig", h, &g);

    if (r == OK)
        *now = *pending = (unsigned)g->mig;
    return r;
}

API int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *n)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "mig", h, &g);

    if (r == OK)
        *n = g->mig ? 7 : 0;
    return r;
}

API int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned at, void **ret)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "mig", h, &g);

    for (unsigned i = 0; r == OK && i < p.n_parts; i++) {
        if (strcmp(p.part[i].parent, g->uuid) != 0 || at-- > 0)
            continue;
        give_handle(p.part[i].uuid, ret);
        return OK;
    }
    return r == OK ? NOT_FOUND : r;
}

struct process_info {
    unsigned pid;
    unsigned long long used;
    unsigned gi, ci;
};

API int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, struct process_info *v)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "processes", h, &g);
    unsigned k = 0;

    for (unsigned i = 0; r == OK && i < p.n_processes; i++) {
        if (strcmp(p.process[i].uuid, g->uuid) != 0)
            continue;
        if (k < *n)
            v[k] = (struct process_info){
                .pid = p.process[i].pid,
                .used = p.process[i].mib < 0 ? ~0ull : (unsigned long long)p.process[i].mib << 20};
        k++;
    }
    if (r == OK && k > *n) {
        *n = k;
        return INSUFFICIENT;
    }
    *n = k;
    return r;
}

#endif

API int nvmlDeviceGetTotalEccErrors(void *h, int type, int counter, unsigned long long *ret)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "ecc", h, &g);

    if (r == OK)
        *ret = type == 1 && counter == 0 ? (unsigned long long)g->uncorrected : 0;
    return r;
}

API int nvmlDeviceGetRemappedRows(void *h, unsigned *corrected, unsigned *uncorrected,
                                  unsigned *pending, unsigned *failed)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "rows", h, &g);

    if (r == OK) {
        *corrected = *uncorrected = *pending = 0;
        *failed = (unsigned)g->rows;
    }
    return r;
}

#ifndef OLD_DRIVER
/* ---- events ---- */

API int nvmlEventSetFree(void *s)
{
    free(s);
    return OK;
}

API int nvmlDeviceGetSupportedEventTypes(void *h, unsigned long long *ret)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "types", h, &g);

    *ret = 1 | 2 | 4 | 8 | 16;
    return r;
}

API int nvmlDeviceRegisterEvents(void *h, unsigned long long types, void *set)
{
    struct played p;
    struct gpu *g;
    const int r = about(&p, "register", h, &g);
    struct set *s = set;

    if (r == OK && types & 10)
        s->watches[((const char *)h - (const char *)handles) / (long)sizeof handles[0]] = true;
    return r;
}

struct event_data {
    void *device;
    unsigned long long type, data;
    unsigned gi, ci;
};

static bool seen(struct set *s, long long serial)
{
    for (unsigned i = 0; i < s->n_seen; i++)
        if (s->seen[i] == serial)
            return true;
    if (s->n_seen < SEEN)
        s->seen[s->n_seen++] = serial;
    return false;
}

/* What has happened before it is not told to it. */
API int nvmlEventSetCreate(void **ret)
{
    struct played p;
    const int r = begin(&p, "create");
    struct set *s = r == OK ? calloc(1, sizeof *s) : NULL;

    for (unsigned i = 0; s && i < p.n_events; i++)
        (void)seen(s, p.event[i].serial);
    if (s)
        *ret = s;
    return r;
}

/* A set with a GPU that is gone has no use any more. */
static bool with_lost(struct played *p, const struct set *s)
{
    for (unsigned k = 0; k < GPUS; k++) {
        const struct gpu *g = s->watches[k] ? gpu_of(p, handles[k].uuid) : NULL;
        if (g && g->lost)
            return true;
    }
    return false;
}

static bool next_event(struct played *p, struct set *s, struct event_data *ret)
{
    for (unsigned i = 0; i < p->n_events; i++) {
        for (unsigned k = 0; k < GPUS; k++) {
            if (!s->watches[k] || strcmp(handles[k].uuid, p->event[i].uuid) != 0 ||
                seen(s, p->event[i].serial))
                continue;
            *ret = (struct event_data){.device = &handles[k],
                                       .type = p->event[i].ecc ? 2 : 8,
                                       .data = p->event[i].xid,
                                       .gi = ~0u,
                                       .ci = ~0u};
            return true;
        }
    }
    return false;
}

API int nvmlEventSetWait_v2(void *set, struct event_data *ret, unsigned timeout_ms)
{
    struct played p;

    for (unsigned ms = 0;; ms += 20) {
        const int r = begin(&p, "wait");
        if (r != OK)
            return r;
        if (next_event(&p, set, ret))
            return OK;
        if (with_lost(&p, set))
            return LOST;
        if (ms >= timeout_ms)
            return TIMEOUT;
        usleep(20000);
    }
}
#endif
