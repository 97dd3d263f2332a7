/* fault.c - see fault.h. */
#include "daemon/fault.h"

#include <stdio.h>

struct known {
    uint16_t xid;
    bool fault;
    const char *what;
};

/* By NVIDIA's "Analyzing Xid Errors with the Xid Catalog" (immediate action: what of the
 * catalog's is meant by `fault` is said in fault.h). */
static const struct known known[] = {
    {13, false, "an exception in the graphics engine, mostly a bad access by the program"},
    {31, false, "a memory page fault, mostly a bad access by the program"},
    {43, false, "the program's channel was reset"},
    {45, false, "channels were removed because of an earlier error"},
    {46, true, "the GPU does not answer in time"},
    {48, true, "an uncorrectable memory error (double bit)"},
    {62, true, "the GPU's power controller has halted"},
    {63, false, "a bad row of the memory will be replaced at the next reset"},
    {64, true, "a bad row of the memory could not be replaced"},
    {68, false, "an exception in the video decoder"},
    {74, true, "an NVLink error"},
    {79, true, "the GPU has fallen off the bus"},
    {92, false, "many correctable memory errors"},
    {94, true, "an uncorrectable memory error, contained in one program"},
    {95, true, "an uncorrectable memory error that was not contained"},
    {109, true, "switching between programs timed out"},
    {110, true, "a security fault"},
    {119, true, "the GPU's system processor does not answer"},
    {120, true, "an error of the GPU's system processor"},
    {136, true, "an NVLink could not be trained"},
    {140, true, "an uncorrectable memory error that the driver could not handle"},
    {143, true, "the GPU could not be initialised"},
    {154, false, "the recovery action has changed"},
    {155, true, "an NVLink error found by software"},
    {156, true, "a part of the GPU was retired and needs a reset"},
    {158, true, "a fatal timeout"},
};

static const struct known *find(uint64_t xid)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].xid == xid)
            return &known[i];
    return NULL;
}

bool fault_is_xid(uint64_t xid)
{
    const struct known *k = find(xid);

    return k && k->fault;
}

const char *fault_text(uint32_t code, char *buf, size_t size)
{
    const struct known *k = find(code);

    if (code == FAULT_ECC)
        (void)snprintf(buf, size, "uncorrectable memory errors (ECC)");
    else if (code == FAULT_LOST)
        (void)snprintf(buf, size, "the driver has lost the GPU");
    else if (code == FAULT_ROWS)
        (void)snprintf(buf, size, "a bad row of the memory could not be replaced");
    else if (k)
        (void)snprintf(buf, size, "Xid %u: %s", code, k->what);
    else
        (void)snprintf(buf, size, "Xid %u", code);
    return buf;
}
