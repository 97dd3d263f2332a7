/* server_handlers.h - a function per request: checks it, then asks the core, the core's
 * memory, or the disk. `m` is of the function's type and lives until it returns. */
#ifndef DAEMON_SERVER_HANDLERS_H
#define DAEMON_SERVER_HANDLERS_H

#include "daemon/alignd.h"

/* Sends an error made by hand. */
void server_send_error(struct alignd *a, uint64_t handle, struct msg *m);

/* server_client.c */
void server_client_submit(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_cancel(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_resume(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_hold(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_drain(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_stop_daemon(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_hello(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_list(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_show(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_spec(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_devices(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_metrics(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_logs(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_watch_job(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_watch_queue(struct alignd *a, uint64_t handle, struct msg *m);
void server_client_watch_log(struct alignd *a, uint64_t handle, struct msg *m);

/* server_worker.c */
void server_worker_hello(struct alignd *a, uint64_t handle, struct msg *m);
void server_worker_report(struct alignd *a, uint64_t handle, struct msg *m);
void server_worker_log(struct alignd *a, uint64_t handle, struct msg *m);
void server_worker_directive(struct alignd *a, uint64_t handle, struct msg *m);
void server_worker_rdv_put(struct alignd *a, uint64_t handle, struct msg *m);
void server_worker_rdv_get(struct alignd *a, uint64_t handle, struct msg *m);
void server_worker_exit(struct alignd *a, uint64_t handle, struct msg *m);

#endif
