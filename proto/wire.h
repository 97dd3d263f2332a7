/* wire.h - frames over nng request/reply: a server that hands requests to the
 * caller's thread, and clients that repeat a request until it is answered.
 *
 * nng runs callbacks on threads of its own; here is the only place where those
 * meet ours. After a bare fork() any nng call aborts: posix_spawn only. */
#ifndef PROTO_WIRE_H
#define PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

/* ---- server ---- */

struct wire_server;
struct wire_req; /* a request in progress: reply to it or drop it, once */

struct wire_listen {
    const char *url;   /* "ipc:///path/control.sock"                                  */
    unsigned mode;     /* the socket's permissions, 0600                              */
    unsigned contexts; /* requests in progress at most, all connections together      */
    unsigned per_pipe; /* ... of one connection; more are answered with `busy`        */
    const void *busy;  /* that answer, an encoded frame; borrowed until the close     */
    size_t busy_bytes;
    void (*wake)(void *arg); /* something to take; any thread; must not block          */
    void *arg;
};

/* Binds. A stale socket file is taken over. Returns 0, -EADDRINUSE, -ENAMETOOLONG,
 * -EACCES, -ENOMEM, -EIO. */
int wire_listen(const struct wire_listen *o, struct wire_server **ret, struct err *err);
/* Binds again when the socket's file has vanished or is another's, or when connections are no
 * longer seen (call every few seconds; not in less than the time that one needs). 0: all
 * is well; 1: bound again, the file was gone; 2: nobody was let in; negative errno:
 * could not. */
int wire_check(struct wire_server *s);
/* Ends everything; requests not yet answered become invalid. NULL is a no-op. */
void wire_close(struct wire_server *s);

/* The next request, or NULL. Call until NULL after each wake (wakes coalesce). */
struct wire_req *wire_take(struct wire_server *s);

const void *wire_data(const struct wire_req *r, size_t *ret_bytes);
/* The peer's account, as the kernel says; false: the look-up failed: refuse. */
bool wire_peer(const struct wire_req *r, uint64_t *ret_uid, uint64_t *ret_pid);
uint32_t wire_pipe(const struct wire_req *r); /* the connection, never reused soon */
/* The peer has gone: nobody waits for the answer. wake() is called when this
 * becomes true for a taken request; then drop it. */
bool wire_gone(const struct wire_req *r);

/* Sends a copy. A peer that reads nothing while another reply waits for 5 s loses its
 * connection; one that more than 1 MiB of replies wait for gets `busy` instead. */
void wire_reply(struct wire_req *r, const void *data, size_t bytes);
void wire_drop(struct wire_req *r);

/* ---- client ---- */

struct wire_client;

enum { WIRE_WAIT = 1 }; /* keep dialling when nobody listens (the supervisor) */

/* Connects. Without WIRE_WAIT: -ECONNREFUSED, -ENOENT, -EACCES at once when there is no
 * daemon. A lost connection is made again by itself (50 ms .. 2 s) and what was
 * not answered is sent again, also every 60 s: hence the keys in msg.h. */
int wire_dial(const char *url, int flags, struct wire_client **ret, struct err *err);
void wire_hangup(struct wire_client *c); /* NULL is a no-op; after its calls are freed */
bool wire_connected(const struct wire_client *c);
/* How often it was connected so far: another number means perhaps another daemon, also when
 * nobody saw the line down. */
unsigned wire_connections(const struct wire_client *c);

/* One request, one reply (*ret malloc'ed). Any thread. timeout_ms < 0: for ever.
 * Returns 0, -ETIMEDOUT, -EMSGSIZE, -ECANCELED (hung up), -ENOMEM, -EIO. */
int wire_call(struct wire_client *c, const void *data, size_t bytes, int timeout_ms, uint8_t **ret,
              size_t *ret_bytes);

/* The same without blocking: a call object holds one request at a time. `done` runs
 * on nng's thread and may only signal (eventfd, uv_async); then the owner takes.
 * At most 8 calls of one client may be in progress (watch socket: 64), or BUSY. */
struct wire_call;
int wire_call_new(struct wire_client *c, void (*done)(void *arg), void *arg,
                  struct wire_call **ret);
void wire_call_free(struct wire_call *k); /* cancels; done() does not run afterwards */
/* -EBUSY: one is in progress or its result not taken. */
int wire_call_start(struct wire_call *k, const void *data, size_t bytes, int timeout_ms);
/* -EAGAIN: not answered yet; -EINVAL: nothing was started; else as wire_call. */
int wire_call_take(struct wire_call *k, uint8_t **ret, size_t *ret_bytes);

#endif
