/* verb_change.c - cancel, hold, release, drain, undrain. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "client/args.h"
#include "client/conn.h"
#include "client/follow.h"
#include "client/jobview.h"
#include "client/left.h"

static void print_done(struct cli *cli, uint64_t job, const char *state, const char *text,
                       const char *adapter)
{
    if (!cli->json) {
        (void)fprintf(cli->out, "%s\n", *text ? text : "done");
        return;
    }
    json_t *j = json_pack("{s:I,s:s,s:s,s:s}", "job", (json_int_t)job, "state", state, "text", text,
                          "adapter", adapter);
    char *line = j ? json_dumps(j, 0) : NULL;
    (void)fprintf(cli->out, "%s\n", line ? line : "{}");
    free(line);
    json_decref(j);
}

/* What a hold, release, drain or undrain did, where the daemon has no more to say. */
static const char *did(const struct msg *req, const struct msg_done *d, char *buf, size_t room)
{
    const unsigned long long id = (unsigned long long)d->job;
    const char *s = d->state;

    if (*d->text)
        return d->text;
    if (req->type == MSG_T_drain)
        (void)snprintf(buf, room, "%.100s is given out %s", req->drain.device,
                       req->drain.on ? "no more" : "again");
    else if (!req->hold.on)
        (void)snprintf(buf, room, "job %llu is not held", id);
    else if (strcmp(s, "PENDING") == 0 || strcmp(s, "PREEMPTED") == 0)
        (void)snprintf(buf, room, "job %llu is held until: alignctl release %llu", id, id);
    else
        (void)snprintf(buf, room,
                       "job %llu is %.20s and goes on; should it be queued again, it waits until: "
                       "alignctl release %llu",
                       id, s, id);
    return buf;
}

/* Sends a change and prints what the daemon says happened. */
static int change(struct cli *cli, struct msg *req)
{
    struct conn c = {0};
    struct msg *reply = NULL;
    char text[240];
    int r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = conn_call(cli, &c, req, &reply);
    conn_close(&c);
    if (r != CLI_OK)
        return r;
    print_done(cli, reply->done.job, reply->done.state, did(req, &reply->done, text, sizeof text),
               "");
    codec_free(reply);
    return CLI_OK;
}

/* What a cancelled job left, once it is over. */
static int cancelled(struct cli *cli, struct conn *c, uint64_t job)
{
    struct follow f = {0};
    char text[LIMIT_PATH + 192];
    int r = follow_open(cli, c, job, &f);
    if (r == CLI_OK)
        r = follow_until_over(cli, &f);
    if (r == CLI_OK) {
        char left[LIMIT_PATH + 64];
        const char *adapter = left_adapter(f.state, left, sizeof left);
        if (*adapter)
            (void)snprintf(text, sizeof text, "job %llu: %s at step %lld; its adapter: %s",
                           (unsigned long long)job, jobview_text(f.state, "state"),
                           (long long)jobview_int(f.state, "step"), adapter);
        else
            (void)snprintf(text, sizeof text, "job %llu: %s; it left no adapter",
                           (unsigned long long)job, jobview_text(f.state, "state"));
        print_done(cli, job, jobview_text(f.state, "state"), text, adapter);
    }
    follow_close(&f);
    return r;
}

static int verb_cancel(struct cli *cli, int argc, char **argv)
{
    bool now = false, no_wait = false;
    const char *key = NULL, *rest[1];
    const struct args_option options[] = {{"now", 0, ARGS_FLAG, &now},
                                          {"no-wait", 0, ARGS_FLAG, &no_wait},
                                          {"key", 0, ARGS_TEXT, &key},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    struct msg req = {.type = MSG_T_cancel};
    struct msg *reply = NULL;
    struct conn c = {0};
    unsigned long long id;
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = args_job(cli, rest[0], &id);
    if (r == CLI_OK)
        r = conn_key(cli, key, &req.cancel.key);
    if (r != CLI_OK)
        return r;
    req.cancel.job = id;
    req.cancel.now = now;
    r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = conn_call(cli, &c, &req, &reply);
    if (r == CLI_OK && no_wait) {
        print_done(cli, reply->done.job, reply->done.state, reply->done.text, "");
    } else if (r == CLI_OK) {
        if (*reply->done.text && !cli->json)
            (void)fprintf(cli->notes, "%s\n", reply->done.text);
        r = cancelled(cli, &c, id);
    }
    codec_free(reply);
    conn_close(&c);
    return r;
}

static int verb_hold(struct cli *cli, int argc, char **argv, bool on)
{
    const char *key = NULL, *rest[1];
    const struct args_option options[] = {{"key", 0, ARGS_TEXT, &key}, {NULL, 0, ARGS_FLAG, NULL}};
    struct msg req = {.type = MSG_T_hold, .hold = {.on = on}};
    unsigned long long id;
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = args_job(cli, rest[0], &id);
    if (r == CLI_OK)
        r = conn_key(cli, key, &req.hold.key);
    if (r != CLI_OK)
        return r;
    req.hold.job = id;
    return change(cli, &req);
}

static int verb_hold_on(struct cli *cli, int argc, char **argv)
{
    return verb_hold(cli, argc, argv, true);
}

static int verb_hold_off(struct cli *cli, int argc, char **argv)
{
    return verb_hold(cli, argc, argv, false);
}

static int verb_drain(struct cli *cli, int argc, char **argv, bool on)
{
    const char *rest[1];
    const struct args_option options[] = {{NULL, 0, ARGS_FLAG, NULL}};
    struct msg req = {.type = MSG_T_drain, .drain = {.on = on}};
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = conn_key(cli, NULL, &req.drain.key);
    if (r != CLI_OK)
        return r;
    req.drain.device = rest[0];
    return change(cli, &req);
}

static int verb_drain_on(struct cli *cli, int argc, char **argv)
{
    return verb_drain(cli, argc, argv, true);
}

static int verb_drain_off(struct cli *cli, int argc, char **argv)
{
    return verb_drain(cli, argc, argv, false);
}

const struct cli_verb verb_change[] = {
    {"cancel", "ID [--now] [--key HEX] [--no-wait]",
     "stops a job at the next step, after a checkpoint; --now kills", verb_cancel},
    {"hold", "ID [--key HEX]", "a pending job does not start before its release", verb_hold_on},
    {"release", "ID [--key HEX]", "lifts a hold", verb_hold_off},
    {"drain", "DEVICE", "gives a device out no more", verb_drain_on},
    {"undrain", "DEVICE", "gives a device out again; lifts a GPU's fence", verb_drain_off},
    {NULL, NULL, NULL, NULL}};
