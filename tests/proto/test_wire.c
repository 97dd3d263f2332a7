/* test_wire.c - requests over a real socket: answers, limits, lost peers, restarts. */
#include "tests/support/test.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/limit.h"
#include "proto/wire.h"

enum { WAIT_MS = 10000 };

static char dir[64], url[128];

static void wake(void *arg)
{
    const uint64_t one = 1;
    assert_int_equal(write(*(int *)arg, &one, sizeof one), sizeof one);
}

static void sleep_on(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t n;

    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
    assert_int_equal(read(fd, &n, sizeof n), sizeof n);
}

static int setup(void **state)
{
    static int fd;

    snprintf(dir, sizeof dir, "/tmp/alignd-wire-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(url, sizeof url, "ipc://%s/s", dir);
    fd = eventfd(0, EFD_CLOEXEC);
    *state = &fd;
    return 0;
}

static int teardown(void **state)
{
    char path[128];

    close(*(int *)*state);
    snprintf(path, sizeof path, "%s/s", dir);
    unlink(path);
    return rmdir(dir);
}

static struct wire_server *serve(void **state, unsigned contexts, unsigned per_pipe)
{
    struct wire_server *s;
    struct err err;
    const struct wire_listen o = {.url = url,
                                  .mode = 0600,
                                  .contexts = contexts,
                                  .per_pipe = per_pipe,
                                  .busy = "busy",
                                  .busy_bytes = 4,
                                  .wake = wake,
                                  .arg = *state};

    assert_int_equal(wire_listen(&o, &s, &err), 0);
    return s;
}

static struct wire_req *take(struct wire_server *s, void **state)
{
    for (;;) {
        struct wire_req *r = wire_take(s);
        if (r)
            return r;
        sleep_on(*(int *)*state);
    }
}

struct caller {
    struct wire_client *c;
    struct wire_call *k;
    int fd;
};

static void caller_init(struct caller *c, struct wire_client *client)
{
    c->c = client;
    c->fd = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(wire_call_new(client, wake, &c->fd, &c->k), 0);
}

static void caller_fini(struct caller *c)
{
    wire_call_free(c->k);
    close(c->fd);
}

static void expect(struct caller *c, const char *want)
{
    uint8_t *data;
    size_t bytes;

    sleep_on(c->fd);
    assert_int_equal(wire_call_take(c->k, &data, &bytes), 0);
    assert_int_equal(bytes, strlen(want));
    assert_memory_equal(data, want, bytes);
    free(data);
}

static void echo(struct wire_req *r)
{
    size_t n;
    const void *data = wire_data(r, &n);
    wire_reply(r, data, n);
}

static void there_and_back(void **state)
{
    struct wire_server *s = serve(state, 8, 8);
    struct wire_client *c;
    struct caller k;
    struct stat st;
    uint64_t uid, pid;

    assert_int_equal(stat(url + 6, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(wire_dial(url, 0, &c, NULL), 0);
    caller_init(&k, c);
    assert_int_equal(wire_call_take(k.k, NULL, NULL), -EINVAL);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(wire_call_start(k.k, "hello", 5, WAIT_MS), 0);
        assert_int_equal(wire_call_start(k.k, "hello", 5, WAIT_MS), -EBUSY);
        struct wire_req *r = take(s, state);
        assert_true(wire_peer(r, &uid, &pid));
        assert_int_equal(uid, getuid());
        assert_int_equal(pid, getpid());
        assert_false(wire_gone(r));
        echo(r);
        expect(&k, "hello");
    }
    assert_int_equal(wire_call_start(k.k, "x", LIMIT_MSG_BYTES + 1, WAIT_MS), -EMSGSIZE);
    caller_fini(&k);
    wire_hangup(c);
    wire_close(s);
}

/* 3 in progress are allowed; the fourth hears "busy" and the others still work. Held
 * requests of one peer do not stop another. */
static void busy(void **state)
{
    struct wire_server *s = serve(state, 64, 3);
    struct wire_client *c, *d;
    struct caller k[4], other;
    struct wire_req *r[3], *q;

    assert_int_equal(wire_dial(url, 0, &c, NULL), 0);
    assert_int_equal(wire_dial(url, 0, &d, NULL), 0);
    for (int i = 0; i < 3; i++) {
        caller_init(&k[i], c);
        assert_int_equal(wire_call_start(k[i].k, "held", 4, WAIT_MS), 0);
        r[i] = take(s, state);
    }
    caller_init(&k[3], c);
    assert_int_equal(wire_call_start(k[3].k, "more", 4, WAIT_MS), 0);
    expect(&k[3], "busy");
    caller_init(&other, d);
    assert_int_equal(wire_call_start(other.k, "other", 5, WAIT_MS), 0);
    q = take(s, state);
    assert_true(wire_pipe(q) != wire_pipe(r[0]));
    echo(q);
    expect(&other, "other");
    for (int i = 0; i < 3; i++) {
        echo(r[i]);
        expect(&k[i], "held");
    }
    assert_int_equal(wire_call_start(k[3].k, "again", 5, WAIT_MS), 0);
    echo(take(s, state));
    expect(&k[3], "again");
    for (int i = 0; i < 4; i++)
        caller_fini(&k[i]);
    caller_fini(&other);
    wire_hangup(c);
    wire_hangup(d);
    wire_close(s);
}

/* A peer that goes while its request is held: told, and its place is free again. */
static void vanished(void **state)
{
    struct wire_server *s = serve(state, 1, 1);

    for (int i = 0; i < 20; i++) {
        struct wire_client *c;
        struct caller k;
        assert_int_equal(wire_dial(url, 0, &c, NULL), 0);
        caller_init(&k, c);
        assert_int_equal(wire_call_start(k.k, "held", 4, WAIT_MS), 0);
        struct wire_req *r = take(s, state);
        caller_fini(&k);
        wire_hangup(c);
        while (!wire_gone(r))
            sleep_on(*(int *)*state);
        if (i & 1)
            wire_drop(r);
        else
            wire_reply(r, "late", 4); /* goes nowhere, harms nobody */
    }
    wire_close(s);
}

/* The server dies with a request in hand: its successor gets the request again. */
static void restart(void **state)
{
    struct wire_server *s = serve(state, 8, 8);
    struct wire_client *c;
    struct caller k;

    assert_int_equal(wire_dial(url, 0, &c, NULL), 0);
    caller_init(&k, c);
    assert_int_equal(wire_call_start(k.k, "precious", 8, WAIT_MS), 0);
    (void)take(s, state);
    wire_close(s);
    s = serve(state, 8, 8);
    echo(take(s, state));
    expect(&k, "precious");
    caller_fini(&k);
    wire_hangup(c);
    wire_close(s);
}

static void nobody(void **state)
{
    struct wire_client *c;
    struct err err = {""};
    uint8_t *data;
    size_t bytes;
    char lengthy[256];
    int r;

    (void)state;
    r = wire_dial(url, 0, &c, &err);
    assert_true(r == -ENOENT || r == -ECONNREFUSED);
    assert_non_null(strstr(err.text, url));
    assert_int_equal(wire_dial("tcp://127.0.0.1:1", 0, &c, &err), -EINVAL);
    snprintf(lengthy, sizeof lengthy, "ipc:///%0200d", 0);
    assert_int_equal(wire_dial(lengthy, 0, &c, &err), -ENAMETOOLONG);
    assert_int_equal(wire_dial(url, WIRE_WAIT, &c, &err), 0);
    assert_false(wire_connected(c));
    assert_int_equal(wire_call(c, "x", 1, 50, &data, &bytes), -ETIMEDOUT);
    wire_hangup(c);
}

/* The socket's file is deleted: the next check binds it again, old peers live on. */
static void rebind(void **state)
{
    struct wire_server *s = serve(state, 8, 8);
    struct wire_client *c, *d;
    struct caller k, l;

    assert_int_equal(wire_dial(url, 0, &c, NULL), 0);
    caller_init(&k, c);
    assert_int_equal(wire_check(s), 0);
    assert_int_equal(unlink(url + 6), 0);
    assert_int_equal(wire_check(s), 1);
    assert_int_equal(wire_check(s), 0);
    assert_int_equal(wire_dial(url, 0, &d, NULL), 0);
    caller_init(&l, d);
    assert_int_equal(wire_call_start(l.k, "new", 3, WAIT_MS), 0);
    echo(take(s, state));
    expect(&l, "new");
    assert_int_equal(wire_call_start(k.k, "old", 3, WAIT_MS), 0);
    echo(take(s, state));
    expect(&k, "old");
    caller_fini(&k);
    caller_fini(&l);
    wire_hangup(c);
    wire_hangup(d);
    wire_close(s);
}

/* Peers that are gone before they are greeted, which stops nng's accept loop; the second look
 * finds out, and a client that came in between is served. */
static void hasty_peers(void **state)
{
    struct wire_server *s = serve(state, 8, 8);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct wire_client *c;
    struct caller k;
    int deaf = 0;

    snprintf(a.sun_path, sizeof a.sun_path, "%s", url + strlen("ipc://"));
    assert_int_equal(wire_check(s), 0);
    usleep(100000);
    assert_int_equal(wire_check(s), 0); /* its own look does no harm */
    for (int i = 0; i < 20; i++) {
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
        close(fd);
    }
    usleep(100000);
    assert_int_equal(wire_dial(url, 0, &c, NULL), 0);
    caller_init(&k, c);
    assert_int_equal(wire_call_start(k.k, "hello", 5, WAIT_MS), 0);
    for (int i = 0; i < 4 && !deaf; i++) {
        const int r = wire_check(s);
        assert_true(r == 0 || r == 2);
        deaf = r == 2;
        usleep(200000);
    }
    print_message("the listener %s\n", deaf ? "was deaf, and bound again" : "was not disturbed");
    echo(take(s, state));
    expect(&k, "hello");
    caller_fini(&k);
    wire_hangup(c);
    wire_close(s);
}

static void second_server(void **state)
{
    struct wire_server *s = serve(state, 8, 8), *t;
    struct wire_listen o = {.url = url,
                            .mode = 0600,
                            .contexts = 8,
                            .per_pipe = 8,
                            .busy = "b",
                            .busy_bytes = 1,
                            .wake = wake,
                            .arg = *state};
    struct err err = {""};
    char lengthy[256];

    assert_int_equal(wire_listen(&o, &t, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, url));
    snprintf(lengthy, sizeof lengthy, "ipc:///%0200d", 0);
    o.url = lengthy;
    assert_int_equal(wire_listen(&o, &t, &err), -ENAMETOOLONG);
    wire_close(s);
}

static void read_whole(int fd, void *to, size_t n)
{
    for (size_t have = 0; have < n;) {
        const ssize_t k = read(fd, (char *)to + have, n - have);
        assert_true(k > 0);
        have += (size_t)k;
    }
}

/* A peer without nng that asks for much and reads nothing: at most so many bytes wait for it, the
 * rest is "busy"; when it reads at last, every request has its answer. */
static void slow_peer(void **state)
{
    enum { ASKED = 16, BYTES = 300 << 10 };
    static uint8_t big[BYTES], got[BYTES + 4];
    static const uint8_t hello[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct wire_server *s = serve(state, 64, ASKED);
    struct wire_req *r[ASKED];
    uint8_t head[9];
    int full = 0, busy_ones = 0;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof a.sun_path, "%s", url + strlen("ipc://"));
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(write(fd, hello, sizeof hello), sizeof hello);
    read_whole(fd, head, 8);
    for (uint8_t i = 0; i < ASKED; i++) {
        const uint8_t frame[] = {1, 0, 0, 0, 0, 0, 0, 0, 5, 0x80, 0, 0, i, 'x'};
        assert_int_equal(write(fd, frame, sizeof frame), sizeof frame);
        r[i] = take(s, state);
    }
    memset(big, 7, sizeof big);
    for (int i = 0; i < ASKED; i++)
        wire_reply(r[i], big, sizeof big);
    for (int i = 0; i < ASKED; i++) {
        size_t n = 0;
        read_whole(fd, head, sizeof head);
        for (int k = 1; k < 9; k++)
            n = n << 8 | head[k];
        assert_true(head[0] == 1 && n <= sizeof got);
        read_whole(fd, got, n);
        if (n == 4 + sizeof big && got[n - 1] == 7)
            full++;
        else if (n == 8 && memcmp(got + 4, "busy", 4) == 0)
            busy_ones++;
    }
    assert_int_equal(full + busy_ones, ASKED);
    assert_true(full >= 3 && full <= 6); /* 1 MiB, and what nng holds */
    close(fd);
    wire_close(s);
}

static void *blocking_caller(void *arg)
{
    uint8_t *data;
    size_t bytes;
    intptr_t good = 0;

    for (int i = 0; i < 50; i++) {
        if (wire_call(arg, &i, sizeof i, WAIT_MS, &data, &bytes) == 0) {
            good += bytes == sizeof i && memcmp(data, &i, sizeof i) == 0;
            free(data);
        }
    }
    return (void *)good;
}

static void many_threads(void **state)
{
    struct wire_server *s = serve(state, 64, 64);
    struct wire_client *c;
    pthread_t t[4];

    assert_int_equal(wire_dial(url, 0, &c, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, blocking_caller, c), 0);
    for (size_t i = 0; i < ARRAY_LEN(t) * 50; i++)
        echo(take(s, state));
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        void *good;
        assert_int_equal(pthread_join(t[i], &good), 0);
        assert_int_equal((intptr_t)good, 50);
    }
    wire_hangup(c);
    wire_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(there_and_back, setup, teardown),
        cmocka_unit_test_setup_teardown(busy, setup, teardown),
        cmocka_unit_test_setup_teardown(vanished, setup, teardown),
        cmocka_unit_test_setup_teardown(restart, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(rebind, setup, teardown),
        cmocka_unit_test_setup_teardown(hasty_peers, setup, teardown),
        cmocka_unit_test_setup_teardown(second_server, setup, teardown),
        cmocka_unit_test_setup_teardown(slow_peer, setup, teardown),
        cmocka_unit_test_setup_teardown(many_threads, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
