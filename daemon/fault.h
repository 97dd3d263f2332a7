/* fault.h - failures of a GPU's hardware: their codes, which of NVIDIA's Xid errors are
 * such failures, and what to call them.
 *
 * An Xid is the driver's number for an error (NVIDIA, "Xid Errors"). Its catalog for
 * Ampere and newer gives an immediate action for each. The Xids whose action is to reset
 * the GPU or to start the machine again are faults here: until that is done the GPU
 * computes nothing, or nothing that can be trusted. So is 94, whose action is only to
 * restart the application: it is an uncorrectable memory error, and the bad row is in
 * use until a reset. All others are the application's errors (13 and 31: bad memory
 * accesses; 43, 45: its channel was ended), or for information (63, 92, 154), and change
 * nothing: the rank that made them fails by itself. */
#ifndef DAEMON_FAULT_H
#define DAEMON_FAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Codes are stored: numbers of Xids, and these. */
enum {
    FAULT_XID_MAX = 10000,
    FAULT_ECC = 10001, /* NVML counted uncorrectable memory errors                     */
    FAULT_LOST,        /* the driver has lost the GPU                                  */
    FAULT_ROWS,        /* a bad row of its memory could not be replaced                */
};

/* The GPU cannot be used before a reset. */
bool fault_is_xid(uint64_t xid);
/* "Xid 79: the GPU has fallen off the bus"; also of Xids that are no faults. */
const char *fault_text(uint32_t code, char *buf, size_t size);

#endif
