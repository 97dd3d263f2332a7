/* device.c - see device.h. */
#include "worker/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

const char *device_backend(bool gpu)
{
    const char *told = getenv("ALIGND_BACKEND");
    const bool any = told && *told;
    const bool for_gpus = any && (strcmp(told, "sim") == 0 || strcmp(told, "cuda") == 0);

    if (gpu)
        return !any ? "cuda" : for_gpus ? told : NULL;
    return any && !for_gpus ? told : "cpu";
}

/* 0: at least one. Otherwise ret->why says why none. */
static int look_for_gpus(struct device_set *ret)
{
    int n;

    ret->backend = device_backend(true);
    if (!ret->backend) {
        snprintf(ret->why, sizeof ret->why, "ALIGND_BACKEND names a backend of the CPU");
        return -ENODEV;
    }
    if (kn_backend(ret->backend, &ret->ops, ret->why, sizeof ret->why) < 0)
        return -ENODEV;
    n = ret->ops->devices(ret->v, LIMIT_RANKS, ret->why, sizeof ret->why);
    if (n <= 0) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        const size_t at = strlen(ret->why);
        if (visible)
            snprintf(ret->why + at, sizeof ret->why - at, " (CUDA_VISIBLE_DEVICES is \"%.60s\")",
                     visible);
        return -ENODEV;
    }
    ret->gpu = true;
    ret->n = n < LIMIT_RANKS ? n : LIMIT_RANKS;
    ret->why[0] = '\0';
    return 0;
}

int device_look(const struct spec *spec, struct device_set *ret, struct err *err)
{
    char why[256] = "";
    int r = -ENODEV;

    memset(ret, 0, sizeof *ret);
    if (spec->device_type != SPEC_DEVICE_CPU)
        r = look_for_gpus(ret);
    if (r < 0 && spec->device_type == SPEC_DEVICE_GPU)
        return err_set(err, r,
                       "device_type: gpu: no GPU can be used here: %s; set device_type: cpu",
                       ret->why);
    if (r == 0 && spec->devices > ret->n)
        return err_set(err, -ENODEV,
                       "devices: %d, but only %d GPU%s can be used here: set devices: %d",
                       spec->devices, ret->n, ret->n == 1 ? "" : "s", ret->n);
    if (r == 0)
        return 0;
    ret->backend = device_backend(false);
    r = kn_backend(ret->backend, &ret->ops, why, sizeof why);
    return r < 0 ? err_set(err, r, "backend %s: %s", ret->backend, why) : 0;
}

void device_settle(struct spec *spec, bool gpu)
{
    if (spec->bf16_auto)
        spec->bf16 = gpu;
}

char *device_json(void)
{
    const struct spec spec = {.device_type = SPEC_DEVICE_AUTO, .devices = 1};
    struct err err = {""};
    struct device_set set;
    const int r = device_look(&spec, &set, &err);
    json_t *gpus = json_array(), *o;
    char *text;

    for (int i = 0; r == 0 && set.gpu && i < set.n; i++)
        json_array_append_new(gpus,
                              json_pack("{s:s,s:s,s:I}", "uuid", set.v[i].uuid, "name",
                                        set.v[i].name, "memory", (json_int_t)set.v[i].mem_total));
    o = json_pack("{s:s,s:o,s:s}", "backend", r == 0 ? set.backend : "", "gpus", gpus, "why",
                  r < 0 ? err.text : set.why);
    text = o ? json_dumps(o, 0) : NULL;
    json_decref(o);
    return text;
}
