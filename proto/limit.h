/* limit.h - every limit that crosses files, with its reason. */
#ifndef PROTO_LIMIT_H
#define PROTO_LIMIT_H

enum {
    LIMIT_RANKS = 64,             /* ranks of one gang                                  */
    LIMIT_NAME = 128,             /* bytes of a job's name                              */
    LIMIT_PATH = 4096,            /* PATH_MAX on Linux                                  */
    LIMIT_SPEC_BYTES = 1 << 20,   /* a job file, and its resolved form                  */
    LIMIT_SOURCES = 64,           /* entries under train: or eval:                      */
    LIMIT_MODULES = 64,           /* entries of lora_target_modules                     */
    LIMIT_MSG_BYTES = 4 << 20,    /* one frame on the wire                              */
    LIMIT_MSG_DEPTH = 8,          /* nesting of one message                             */
    LIMIT_RDV_BYTES = 64 << 10,   /* one rendezvous value (service.md 19)               */
    LIMIT_ROW_BYTES = 16 << 20,   /* one line of a data file                            */
    LIMIT_METRICS = 64,           /* named values in one report                         */
    LIMIT_REPORT_BATCH = 256,     /* reports in one message                             */
    LIMIT_LOG_CHUNK = 64 << 10,   /* bytes of rank output in one message                */
    LIMIT_LOG_BYTES = 64 << 20,   /* a rank's log file (service.md 18)                  */
    LIMIT_HOLD_MS = 20000,        /* held requests are answered within (service.md 4)   */
    LIMIT_SAFETENSORS_HEADER = 100 << 20, /* the format's own                           */
    LIMIT_SOCKET_PATH = 107,      /* sun_path less its NUL                              */
};

#endif
