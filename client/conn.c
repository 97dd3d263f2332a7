/* conn.c - see conn.h. */
#include "client/conn.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/sha256.h"

enum {
    HELLO_MS = 5000,
    CALL_MS = 60000,
    RETRY_TOTAL_MS = 120000, /* how long a full disk is waited for */
    RETRY_MIN_MS = 50,
    RETRY_MAX_MS = 5000,
};

static void nap(uint64_t ms)
{
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    (void)nanosleep(&t, NULL);
}

bool conn_state_folder(char *buf, size_t room)
{
    const char *v;
    if ((v = getenv("ALIGND_STATE")) && *v)
        return snprintf(buf, room, "%s", v) < (int)room;
    if ((v = getenv("XDG_STATE_HOME")) && *v)
        return snprintf(buf, room, "%s/alignd", v) < (int)room;
    if ((v = getenv("HOME")) && *v)
        return snprintf(buf, room, "%s/.local/state/alignd", v) < (int)room;
    return false;
}

/* Where alignd puts its sockets when the state folder is on a network file system:
 * only taken when it is there and ours (daemon/config.c makes the same name). */
static bool local_folder(const char *state, char *buf, size_t room)
{
    uint8_t digest[SHA256_BYTES];
    char hex[SHA256_HEX];
    struct stat st;
    sha256_of(state, strlen(state), digest);
    sha256_hex(digest, hex);
    return snprintf(buf, room, "/tmp/alignd-%u-%.12s", (unsigned)geteuid(), hex) < (int)room &&
           lstat(buf, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid();
}

int conn_host(struct cli *cli, char *buf, size_t room)
{
    char folder[LIMIT_PATH], elsewhere[LIMIT_PATH], sock[LIMIT_PATH + 16];
    const char *host = cli->host ? cli->host : getenv("ALIGND_HOST");
    if (host && *host) {
        if (host[0] == '/')
            return snprintf(buf, room, "ipc://%s", host) < (int)room ? CLI_OK : CLI_USAGE;
        if (!strstr(host, "://"))
            return err_set(&cli->err, CLI_USAGE,
                           "--host %.200s: must be an address like ipc:///path/control.sock", host);
        return snprintf(buf, room, "%s", host) < (int)room ? CLI_OK : CLI_USAGE;
    }
    bool known = conn_state_folder(folder, sizeof folder);
    (void)snprintf(sock, sizeof sock, "%s/control.sock", known ? folder : "");
    if (known && access(sock, F_OK) < 0 && local_folder(folder, elsewhere, sizeof elsewhere))
        (void)memcpy(folder, elsewhere, sizeof folder);
    if (known && folder[0] != '/')
        return err_set(&cli->err, CLI_USAGE,
                       "the state folder (ALIGND_STATE, XDG_STATE_HOME/alignd or "
                       "HOME/.local/state/alignd) is %.200s: must be an absolute path",
                       folder);
    if (!known || snprintf(buf, room, "ipc://%s/control.sock", folder) >= (int)room)
        return err_set(
            &cli->err, CLI_USAGE,
            "no state folder is known: HOME is not set; set ALIGND_STATE to one, or give --host");
    return CLI_OK;
}

static int unreachable(struct cli *cli, const char *host, const char *why)
{
    return err_set(&cli->err, CLI_UNREACHABLE,
                   "no alignd answers at %.300s (%.400s); start one with: alignctl up", host, why);
}

int conn_refusal(struct cli *cli, const struct msg *reply)
{
    const struct msg_error *e = &reply->error;
    const char *text = *e->text ? e->text : codec_code_text((enum msg_code)e->code);
    switch (e->code) {
    case MSG_NOT_FOUND:
        return err_set(&cli->err, CLI_NOT_FOUND, "%.900s", text);
    case MSG_REFUSED:
    case MSG_CONFLICT:
        return err_set(&cli->err, CLI_REFUSED, "refused: %.900s", text);
    case MSG_VERSION:
        return err_set(&cli->err, CLI_VERSION,
                       "alignd speaks versions %llu to %llu of the protocol, this alignctl (%s) %d "
                       "to %d: use the alignctl that came with it",
                       (unsigned long long)e->v_min, (unsigned long long)e->v_max, ALIGND_VERSION,
                       MSG_CLIENT_V_MIN, MSG_CLIENT_V_MAX);
    default:
        return err_set(&cli->err, CLI_ERROR, "%.900s", text);
    }
}

/* One exchange. A reply that cannot be read is an error of ours or theirs. */
static int exchange(struct cli *cli, struct conn *c, const struct msg *req, int timeout_ms,
                    struct msg **ret)
{
    uint8_t *out = NULL, *in = NULL;
    size_t n_out = 0, n_in = 0;
    int r = codec_encode(req, &out, &n_out, &cli->err);
    if (r < 0)
        return CLI_ERROR;
    r = wire_call(c->control, out, n_out, timeout_ms, &in, &n_in);
    free(out);
    if (r == -ETIMEDOUT)
        return unreachable(cli, c->host, "no answer in time");
    if (r < 0)
        return unreachable(cli, c->host, strerror(-r));
    r = codec_decode(in, n_in, ret, &cli->err);
    free(in);
    if (r == -EPROTONOSUPPORT)
        return err_set(&cli->err, CLI_VERSION,
                       "alignd answers in a version this alignctl (%s) does "
                       "not know: use the one that came with it",
                       ALIGND_VERSION);
    if (r < 0)
        return err_prefix(&cli->err, CLI_ERROR, "alignd's answer cannot be read");
    return CLI_OK;
}

int conn_call(struct cli *cli, struct conn *c, const struct msg *req, struct msg **ret)
{
    uint64_t waited = 0;
    bool said = false;
    for (;;) {
        struct msg *reply = NULL;
        int r = exchange(cli, c, req, CALL_MS, &reply);
        if (r != CLI_OK)
            return r;
        if (reply->type == codec_reply(req->type)) {
            *ret = reply;
            return CLI_OK;
        }
        bool is_error = reply->type == MSG_T_error;
        uint64_t code = is_error ? reply->error.code : MSG_INTERNAL;
        uint64_t ms = is_error ? reply->error.retry_ms : 0;
        if ((code == MSG_BUSY || code == MSG_RETRY) && waited < RETRY_TOTAL_MS) {
            ms = ms < RETRY_MIN_MS ? RETRY_MIN_MS : ms > RETRY_MAX_MS ? RETRY_MAX_MS : ms;
            if (!said && code == MSG_RETRY && waited >= 1000) {
                (void)fprintf(cli->notes, "alignctl: %s; trying again\n", reply->error.text);
                said = true;
            }
            codec_free(reply);
            nap(ms);
            waited += ms;
            continue;
        }
        r = is_error ? conn_refusal(cli, reply)
                     : err_set(&cli->err, CLI_ERROR, "alignd answered with %s instead of %s",
                               codec_name(reply->type), codec_name(codec_reply(req->type)));
        codec_free(reply);
        return r;
    }
}

static int hello(struct cli *cli, struct conn *c)
{
    struct msg req = {
        .type = MSG_T_hello,
        .version = MSG_CLIENT_V_MIN, /* the one that most daemons know */
        .hello = {.v_min = MSG_CLIENT_V_MIN, .v_max = MSG_CLIENT_V_MAX, .build = ALIGND_VERSION}};
    struct msg *reply = NULL;
    int r = exchange(cli, c, &req, HELLO_MS, &reply);
    if (r != CLI_OK)
        return r;
    if (reply->type == MSG_T_error) {
        r = conn_refusal(cli, reply);
    } else if (reply->type != MSG_T_welcome) {
        r = err_set(&cli->err, CLI_ERROR, "what answers at %.300s is no alignd", c->host);
    } else {
        const struct msg_welcome *w = &reply->welcome;
        (void)snprintf(c->watch_url, sizeof c->watch_url, "%s", w->watch_url);
        (void)snprintf(c->store, sizeof c->store, "%s", w->store);
        (void)snprintf(c->build, sizeof c->build, "%s", w->build);
        (void)snprintf(c->note, sizeof c->note, "%s", w->note);
        c->uid = w->uid;
        c->pid = w->pid;
    }
    codec_free(reply);
    return r;
}

int conn_open(struct cli *cli, struct conn *c)
{
    *c = (struct conn){0};
    int r = conn_host(cli, c->host, sizeof c->host);
    if (r != CLI_OK)
        return r;
    int d = wire_dial(c->host, 0, &c->control, &cli->err);
    if (d == -EINVAL || d == -ENAMETOOLONG)
        return CLI_USAGE;
    if (d < 0)
        return unreachable(cli, c->host, strerror(-d));
    r = hello(cli, c);
    if (r != CLI_OK)
        conn_close(c);
    return r;
}

void conn_close(struct conn *c)
{
    wire_hangup(c->control);
    c->control = NULL;
}

static int hex_digit(char c)
{
    const char *all = "0123456789abcdef", *at = c ? strchr(all, c | 0x20) : NULL;
    return at ? (int)(at - all) : -1;
}

int conn_key(struct cli *cli, const char *hex, struct msg_key *ret)
{
    if (!hex) {
        if (getrandom(ret->b, sizeof ret->b, 0) != (ssize_t)sizeof ret->b)
            return err_set(&cli->err, CLI_ERROR, "no random numbers: %s", strerror(errno));
        return CLI_OK;
    }
    if (strlen(hex) != 2 * sizeof ret->b)
        return err_set(&cli->err, CLI_USAGE, "--key: must be 32 hexadecimal digits");
    for (size_t i = 0; i < sizeof ret->b; i++) {
        int hi = hex_digit(hex[2 * i]), lo = hex_digit(hex[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return err_set(&cli->err, CLI_USAGE, "--key: must be 32 hexadecimal digits");
        ret->b[i] = (uint8_t)(hi << 4 | lo);
    }
    return CLI_OK;
}
