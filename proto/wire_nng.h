/* wire_nng.h - what the two halves of wire share. */
#ifndef PROTO_WIRE_NNG_H
#define PROTO_WIRE_NNG_H

/* nng's error numbers as ours: 0 or negative errno. */
int wire_err(int rv);
/* The path of "ipc://path"; NULL: another kind of address. */
const char *wire_ipc_path(const char *url);

#endif
