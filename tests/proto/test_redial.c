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
    pthread_t thread;
};

static char dir[64], url[128];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/alignd-redial-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(url, sizeof url, "ipc://%s/s", dir);
    return 0;
}

static int teardown(void **state)
{
    char path[128];

    (void)state;
    snprintf(path, sizeof path, "%s/s", dir);
    unlink(path);
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
    snprintf(a.sun_path, sizeof a.sun_path, "%s/s", dir);
    p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(p->listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(p->listener, 8), 0);
    assert_int_equal(pthread_create(&p->thread, NULL, peer_run, p), 0);
}

static void peer_close(struct peer *p)
{
    shutdown(p->listener, SHUT_RDWR);
    assert_int_equal(pthread_join(p->thread, NULL), 0);
    close(p->listener);
    if (p->first >= 0)
        close(p->first);
}

/* ---- the tests ---- */

static void answered_in_the_end(enum manner manner)
{
    struct wire_client *c;
    struct peer p;
    uint8_t *data;
    size_t n;

    peer_open(&p, manner);
    assert_int_equal(wire_dial(url, WIRE_WAIT, &c, NULL), 0);
    assert_int_equal(wire_call(c, "precious", 8, PATIENCE_MS, &data, &n), 0);
    assert_int_equal(n, 8);
    assert_memory_equal(data, "precious", 8);
    free(data);
    wire_hangup(c);
    peer_close(&p);
}

/* The request lies unread in the peer's socket (decision 5, state 2). */
static void silent(void **state)
{
    (void)state;
    answered_in_the_end(SILENT);
}

/* Connected, and not a word of the protocol (state 1: no connection comes about). */
static void mute(void **state)
{
    (void)state;
    answered_in_the_end(MUTE);
}

static void dies_in_its_first_word(void **state)
{
    (void)state;
    answered_in_the_end(HALF_HELLO);
}

static void dies_at_once(void **state)
{
    (void)state;
    answered_in_the_end(GONE);
}

static void another_protocol(void **state)
{
    (void)state;
    answered_in_the_end(WRONG_PROTOCOL);
}

static void silent_in_its_reply(void **state)
{
    (void)state;
    answered_in_the_end(HALF_REPLY);
}

static void lies_about_its_length(void **state)
{
    (void)state;
    answered_in_the_end(HUGE_REPLY);
}

/* A file without anybody behind it, as a kill leaves it; then somebody. */
static void nobody_then_somebody(void **state)
{
    struct wire_client *c;
    struct wire_call *k;
    struct peer p;
    uint8_t *data;
    size_t n;
    int r;

    (void)state;
    peer_open(&p, KIND);
    peer_close(&p);
    assert_int_equal(wire_dial(url, WIRE_WAIT, &c, NULL), 0);
    assert_int_equal(wire_call_new(c, NULL, NULL, &k), 0);
    assert_int_equal(wire_call_start(k, "precious", 8, PATIENCE_MS), 0);
    usleep(400000); /* 8 s of its clock */
    unlink(url + strlen("ipc://"));
    peer_open(&p, KIND);
    while ((r = wire_call_take(k, &data, &n)) == -EAGAIN)
        usleep(1000);
    assert_int_equal(r, 0);
    assert_memory_equal(data, "precious", 8);
    free(data);
    wire_call_free(k);
    wire_hangup(c);
    peer_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(silent, setup, teardown),
        cmocka_unit_test_setup_teardown(mute, setup, teardown),
        cmocka_unit_test_setup_teardown(dies_in_its_first_word, setup, teardown),
        cmocka_unit_test_setup_teardown(dies_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(another_protocol, setup, teardown),
        cmocka_unit_test_setup_teardown(silent_in_its_reply, setup, teardown),
        cmocka_unit_test_setup_teardown(lies_about_its_length, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_then_somebody, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
