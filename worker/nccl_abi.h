/* nccl_abi.h - what coll_nccl.c uses of NCCL's ABI (nccl.h, unchanged since 2.14);
 * tests/worker/test_coll_nccl.c compares it with the real header. */
#ifndef WORKER_NCCL_ABI_H
#define WORKER_NCCL_ABI_H

#include <stddef.h>

enum { NCCL_SUCCESS = 0, NCCL_REMOTE_ERROR = 6, NCCL_IN_PROGRESS = 7 }; /* ncclResult_t */
enum { NCCL_INT8 = 0 };                                                 /* ncclDataType_t */

struct nccl_id { /* ncclUniqueId */
    char internal[128];
};

/* The beginning of ncclConfig_t: NCCL reads no more than `size` says and takes the
 * defaults for what versions after `version` added. */
struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking, pad;
};
#define NCCL_CONFIG_MAGIC   0xcafebeefu
#define NCCL_CONFIG_VERSION 21400u

#endif
