/* conn.h - the client's line to alignd: hello, then one request at a time. */
#ifndef CLIENT_CONN_H
#define CLIENT_CONN_H

#include "client/cli.h"
#include "proto/codec.h"
#include "proto/msg.h"
#include "proto/wire.h"

struct conn {
    struct wire_client *control;
    char host[LIMIT_PATH];
    char watch_url[LIMIT_PATH];
    char store[LIMIT_NAME + 1], build[LIMIT_NAME + 1], note[LIMIT_NAME * 4 + 1];
    uint64_t uid, pid;
};

/* The state folder of this user's own alignd (docs/PROCESSES.md). False: none. */
bool conn_state_folder(char *buf, size_t room);
/* --host, $ALIGND_HOST, or the control socket in the state folder. */
int conn_host(struct cli *cli, char *buf, size_t room);

/* Dials and says hello. A CLI_ code; CLI_UNREACHABLE's sentence says `alignctl up`. */
int conn_open(struct cli *cli, struct conn *c);
void conn_close(struct conn *c); /* a zeroed one is fine */

/* Sends and waits for the reply (codec_free it), which is of the type the list of
 * messages names. BUSY and RETRY are waited out, saying so once. A CLI_ code. */
int conn_call(struct cli *cli, struct conn *c, const struct msg *req, struct msg **ret);

/* Turns an error reply into its code and sentence. */
int conn_refusal(struct cli *cli, const struct msg *reply);

/* 128 random bits, or hex (32 digits) a person gave. */
int conn_key(struct cli *cli, const char *hex, struct msg_key *ret);

#endif
