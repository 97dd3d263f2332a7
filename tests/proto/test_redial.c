/* test_redial.c - what a client does about a peer that is there and says nothing: the two
 * states of docs/decisions/0005, and others like them, made by a peer without nng. The
 * client's clock runs 20 times as fast (nng's does not), so that its patience ends soon. */
#include "tests/support/test.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "proto/wire.h"

enum { FAST = 20, PATIENCE_MS = 20000 * FAST, HELLO_BYTES = 8, HEAD_BYTES = 9, ID_BYTES = 4 };

int __real_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_clock_gettime(clockid_t id, struct timespec *ts);

int __wrap_clock_gettime(clockid_t id, struct timespec *ts)
{
    const int r = __real_clock_gettime(id, ts);

    if (r == 0 && id == CLOCK_MONOTONIC) {
        const __int128 ns = ((__int128)ts->tv_sec * 1000000000 + ts->tv_nsec) * FAST;
        ts->tv_sec = (time_t)(ns / 1000000000);
        ts->tv_nsec = (long)(ns % 1000000000);
    }
    return r;
}

/* ---- the peer ---- */

enum manner { SILENT, MUTE, HALF_HELLO, WRONG_PROTOCOL, HALF_REPLY, HUGE_REPLY, GONE, KIND };

struct peer {
    enum manner manner; /* of the first connection; the next is answered */
    int listener;
    int first; /* kept open: closing it would be a word                  */
    char path[96];
    pthread_t thread;
};

static char dir[64];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/alignd-redial-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir);
}

static bool get(int fd, void *to, size_t n)
{
    size_t have = 0;

    while (have < n) {
        const ssize_t k = read(fd, (char *)to + have, n - have);
        if (k <= 0)
            return false;
        have += (size_t)k;
    }
    return true;
}

static void put(int fd, const void *data, size_t n)
{
    (void)!send(fd, data, n, MSG_NOSIGNAL); /* the client may have gone: the test sees it */
}

static void say_hello(int fd, unsigned char protocol)
{
    const unsigned char hello[HELLO_BYTES] = {0, 'S', 'P', 0, 0, protocol, 0, 0};

    put(fd, hello, sizeof hello);
}

/* One request; its id and what it says go to `ret`. */
static bool take(int fd, unsigned char *ret, size_t *ret_n)
{
    unsigned char head[HEAD_BYTES];

    if (!get(fd, head, sizeof head) || head[0] != 1 || head[8] > 64)
        return false;
    *ret_n = head[8];
    return get(fd, ret, *ret_n);
}

static void reply(int fd, unsigned char kind, uint64_t claimed, const unsigned char *m, size_t n)
{
    unsigned char head[HEAD_BYTES] = {kind};

    for (int i = 0; i < 8; i++)
        head[1 + i] = (unsigned char)(claimed >> (56 - 8 * i));
    put(fd, head, sizeof head);
    put(fd, m, n);
}

/* One connection in that manner. Returns whether it was answered. */
static bool serve(int fd, enum manner manner)
{
    unsigned char hello[HELLO_BYTES], m[64];
    size_t n;

    if (manner == GONE || manner == MUTE)
        return false;
    if (manner == HALF_HELLO) {
        put(fd, "\0SP", 3);
        return false;
    }
    say_hello(fd, manner == WRONG_PROTOCOL ? 0x20 : 0x31); /* PUB, REP */
    if (manner == WRONG_PROTOCOL || !get(fd, hello, sizeof hello))
        return false;
    if (!take(fd, m, &n) || manner == SILENT)
        return false;
    if (manner == HALF_REPLY)
        reply(fd, 1, n, m, n / 2);
    else if (manner == HUGE_REPLY)
        reply(fd, 1, UINT64_MAX / 2, m, n);
    else
        reply(fd, 1, n, m, n);
    return manner == KIND;
}

static void *peer_run(void *arg)
{
    struct peer *p = arg;
    bool answered = false;

    for (int i = 0; !answered; i++) {
        const int fd = accept(p->listener, NULL, NULL);
        if (fd < 0)
            break;
        answered = serve(fd, i == 0 ? p->manner : KIND);
        if (i == 0 && p->manner != GONE && p->manner != HALF_HELLO) {
            p->first = fd;
            continue;
        }
        if (answered) {
            unsigned char more;
            (void)!read(fd, &more, 1); /* until the client hangs up */
        }
        close(fd);
    }
    return NULL;
}

static void peer_open(struct peer *p, enum manner manner)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    *p = (struct peer){.manner = manner, .first = -1};
    snprintf(p->path, sizeof p->path, "%s/s%d", dir, (int)manner);
    memcpy(a.sun_path, p->path, sizeof p->path);
    p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(p->listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(p->listener, 8), 0);
    assert_int_equal(pthread_create(&p->thread, NULL, peer_run, p), 0);
}

/* Its file stays, as a kill leaves it. */
static void peer_leave(struct peer *p)
{
    shutdown(p->listener, SHUT_RDWR);
    assert_int_equal(pthread_join(p->thread, NULL), 0);
    close(p->listener);
    if (p->first >= 0)
        close(p->first);
}

static void peer_close(struct peer *p)
{
    peer_leave(p);
    unlink(p->path);
}

/* ---- the tests ---- */

struct asked {
    struct peer peer;
    struct wire_client *client;
    struct wire_call *call;
};

static void ask(struct asked *a)
{
    char url[128];

    snprintf(url, sizeof url, "ipc://%s", a->peer.path);
    assert_int_equal(wire_dial(url, WIRE_WAIT, &a->client, NULL), 0);
    assert_int_equal(wire_call_new(a->client, NULL, NULL, &a->call), 0);
    assert_int_equal(wire_call_start(a->call, "precious", 8, PATIENCE_MS), 0);
}

static void expect_answer(struct asked *a, const char *name)
{
    uint8_t *data;
    size_t n;
    int r;

    while ((r = wire_call_take(a->call, &data, &n)) == -EAGAIN)
        usleep(1000);
    if (r != 0)
        fail_msg("a peer that is %s at first: %s", name, strerror(-r));
    assert_int_equal(n, 8);
    assert_memory_equal(data, "precious", 8);
    free(data);
    wire_call_free(a->call);
    wire_hangup(a->client);
    peer_close(&a->peer);
}

/* silent: the request lies unread in the peer's socket (decision 5, state 2); mute: no
 * connection comes about (state 1). All at once, so that it does not take long. */
static void answered_in_the_end(void **state)
{
    static const char *const names[] = {
        [SILENT] = "silent",
        [MUTE] = "mute",
        [HALF_HELLO] = "gone in its first word",
        [WRONG_PROTOCOL] = "of another protocol",
        [HALF_REPLY] = "silent in its reply",
        [HUGE_REPLY] = "lying about a length",
        [GONE] = "gone at once",
    };
    struct asked a[KIND];

    (void)state;
    for (int i = 0; i < KIND; i++) {
        peer_open(&a[i].peer, (enum manner)i);
        ask(&a[i]);
    }
    for (int i = 0; i < KIND; i++)
        expect_answer(&a[i], names[i]);
}

/* A file without anybody behind it, as a kill leaves it; then somebody. */
static void nobody_then_somebody(void **state)
{
    struct asked a;

    (void)state;
    peer_open(&a.peer, KIND);
    peer_leave(&a.peer);
    ask(&a);
    usleep(400000); /* 8 s of its clock */
    unlink(a.peer.path);
    peer_open(&a.peer, KIND);
    expect_answer(&a, "not there");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(answered_in_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_then_somebody, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
