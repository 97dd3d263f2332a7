/* nccl.cc - the part of NCCL that alignd uses, between processes of one machine. */
// Pieces travel through rings in shared memory and move whenever the stream is looked at, as
// work of the GPU does: a group is queued, nothing waits, a lost peer is an asynchronous error
// and its collective stays on the stream until the communicator is aborted. Sizes that
// disagree, which NCCL punishes with a hang, are reported.
//
// CUSIM_NCCL=deaf: a peer that died is not noticed, as between GPUs of one machine. =stuck: and
// an abort does not return either, as when the GPU does not answer any more. It wants
// NCCL_SOCKET_IFNAME: without it NCCL listens on a network.
#include "cusim_int.h"
#include <atomic>
#include <cuda_runtime_api.h>
#include <deque>
#include <errno.h>
#include <fcntl.h>
#include <functional>
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>
namespace cusim
{
void enqueue_external(cudaStream_t s, const char *name, std::function<bool()> ready);

enum { RING = 1 << 16, RANKS = 16, UNASKED = 64 };
struct Ring { // one direction between two ranks; the reader owns tail, the writer head
    std::atomic<uint64_t> head, tail;
    char data[RING];
};
struct Segment {
    std::atomic<uint32_t> joined;
    std::atomic<bool> left[RANKS]; // in order, not by dying
    Ring ring[RANKS][RANKS];       // [from][to]; pages that nobody touches cost nothing
};
struct Piece {
    char *p;
    size_t bytes, done;
    bool said; // its length went ahead
};
struct Work { // one group on one communicator
    std::deque<Piece> send[RANKS], recv[RANKS];
    cudaStream_t stream;
};
struct Comm {
    int rank, ranks, fd;
    Segment *s;
    bool blocking, meeting, aborted;
    int queued; // groups on streams
    ncclResult_t error;
    unsigned looks;
    Work *open;                   // of the group being made
    std::vector<Work *> unqueued; // closed, not launched yet: a non-blocking communicator
};
static thread_local int group_depth;
static thread_local std::vector<Comm *> in_group;

static char last_words[256];
static void say(const char *text)
{
    fprintf(stderr, "CUSIM: nccl: %s\n", text);
    snprintf(last_words, sizeof last_words, "%s", text);
}

// ---- who lives: every rank holds a lock on its own byte of the segment -------------
static struct flock byte_lock(int rank)
{
    struct flock l = {};
    l.l_type = F_WRLCK;
    l.l_whence = SEEK_SET;
    l.l_start = rank;
    l.l_len = 1;
    return l;
}
static bool mode_is(const char *mode)
{
    const char *told = getenv("CUSIM_NCCL");
    return told && strcmp(told, mode) == 0;
}
static bool someone_died(Comm *c)
{
    static const bool deaf = mode_is("deaf") || mode_is("stuck");
    if (deaf)
        return false;
    for (int r = 0; r < c->ranks; r++) {
        struct flock l = byte_lock(r);
        if (r != c->rank && !c->s->left[r].load() &&
            (fcntl(c->fd, F_OFD_GETLK, &l) || l.l_type == F_UNLCK))
            return true;
    }
    return false;
}
static void look(Comm *c)
{
    if (c->error == ncclSuccess && !c->meeting && c->looks++ % UNASKED == 0 && someone_died(c))
        c->error = ncclRemoteError;
    if (c->meeting && c->s->joined.load() == (uint32_t)c->ranks)
        c->meeting = false;
}

// ---- pieces ------------------------------------------------------------------------
static size_t ring_put(Ring *r, const char *p, size_t n)
{
    uint64_t head = r->head.load(std::memory_order_relaxed);
    size_t room = RING - (size_t)(head - r->tail.load(std::memory_order_acquire));
    n = n < room ? n : room;
    for (size_t i = 0; i < n;) {
        size_t at = (head + i) % RING, k = RING - at < n - i ? RING - at : n - i;
        memcpy(r->data + at, p + i, k);
        i += k;
    }
    r->head.store(head + n, std::memory_order_release);
    return n;
}
static size_t ring_take(Ring *r, char *p, size_t n)
{
    uint64_t tail = r->tail.load(std::memory_order_relaxed);
    size_t there = (size_t)(r->head.load(std::memory_order_acquire) - tail);
    n = n < there ? n : there;
    for (size_t i = 0; i < n;) {
        size_t at = (tail + i) % RING, k = RING - at < n - i ? RING - at : n - i;
        memcpy(p + i, r->data + at, k);
        i += k;
    }
    r->tail.store(tail + n, std::memory_order_release);
    return n;
}
static bool ring_has(Ring *r, size_t n)
{
    return r->head.load(std::memory_order_acquire) - r->tail.load(std::memory_order_relaxed) >= n;
}
static void send_some(std::deque<Piece> *q, Ring *r)
{
    while (!q->empty()) {
        Piece &x = q->front();
        uint64_t n = x.bytes;
        if (!x.said) {
            if (RING - (r->head.load() - r->tail.load()) < sizeof n)
                return;
            ring_put(r, (const char *)&n, sizeof n);
            x.said = true;
        }
        x.done += ring_put(r, x.p + x.done, x.bytes - x.done);
        if (x.done < x.bytes)
            return;
        q->pop_front();
    }
}
static void recv_some(Comm *c, int from, std::deque<Piece> *q, Ring *r)
{
    while (!q->empty() && c->error == ncclSuccess) {
        Piece &x = q->front();
        uint64_t n;
        if (!x.said) {
            if (!ring_has(r, sizeof n))
                return;
            ring_take(r, (char *)&n, sizeof n);
            if (n != x.bytes) {
                char text[128];
                snprintf(text, sizeof text, "rank %d waits for %zu bytes of rank %d, it sends %zu",
                         c->rank, x.bytes, from, (size_t)n);
                say(text);
                c->error = ncclInvalidUsage;
                return;
            }
            x.said = true;
        }
        x.done += ring_take(r, x.p + x.done, x.bytes - x.done);
        if (x.done < x.bytes)
            return;
        rc_host_write(x.p, x.bytes);
        q->pop_front();
    }
}
// True when the group is complete, or given up.
static bool progress(Comm *c, Work *w)
{
    bool done = true;
    if (c->aborted)
        return true;
    look(c);
    if (c->error != ncclSuccess)
        return false; // the kernels of the real one spin until the abort
    heap_open();
    for (int p = 0; p < c->ranks; p++) {
        send_some(&w->send[p], &c->s->ring[c->rank][p]);
        recv_some(c, p, &w->recv[p], &c->s->ring[p][c->rank]);
        done = done && w->send[p].empty() && w->recv[p].empty();
    }
    heap_close();
    return done;
}
static void launch(Comm *c)
{
    std::vector<Work *> works;
    works.swap(c->unqueued);
    for (Work *w : works) {
        c->queued++;
        enqueue_external(w->stream, "nccl", [c, w] {
            if (!progress(c, w))
                return false;
            delete w;
            if (--c->queued == 0 && c->aborted)
                delete c;
            return true;
        });
    }
}
static ncclResult_t add(Comm *c, bool send, const void *p, size_t n, ncclDataType_t t, int peer,
                        cudaStream_t s)
{
    if (c->error != ncclSuccess)
        return c->error;
    if (c->meeting || !c->unqueued.empty() || group_depth == 0)
        return ncclInvalidUsage; // in progress; or outside a group, where it could not be matched
    if (peer < 0 || peer >= c->ranks || peer == c->rank || (t != ncclInt8 && t != ncclUint8))
        return ncclInvalidArgument;
    if (!heap_range_ok(p, n)) {
        fprintf(stderr, "CUSIM: nccl: %s of %zu bytes: %s\n", send ? "send" : "receive", n,
                heap_describe(p));
        return ncclInvalidArgument;
    }
    if (!c->open) {
        c->open = new Work;
        c->open->stream = s;
        in_group.push_back(c);
    }
    if (c->open->stream != s)
        return ncclInvalidUsage;
    (send ? c->open->send : c->open->recv)[peer].push_back({(char *)p, n, 0, false});
    return ncclSuccess;
}
} // namespace cusim
using namespace cusim;
#define API extern "C" __attribute__((visibility("default"))) ncclResult_t

API ncclGetVersion(int *v)
{
    *v = NCCL_VERSION_CODE;
    return ncclSuccess;
}
API ncclGetUniqueId(ncclUniqueId *id)
{
    int fd = memfd_create("cusim-nccl", MFD_CLOEXEC);
    if (!getenv("NCCL_SOCKET_IFNAME")) {
        say("NCCL_SOCKET_IFNAME is not set: it would listen on a network");
        return ncclSystemError;
    }
    if (fd < 0 || ftruncate(fd, sizeof(Segment)))
        return ncclSystemError;
    memset(id, 0, sizeof *id);
    // It lives as long as this process: nothing is left behind by a killed gang.
    snprintf(id->internal, sizeof id->internal, "/proc/%d/fd/%d", getpid(), fd);
    return ncclSuccess;
}
API ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                           ncclConfig_t *config)
{
    if (ranks < 1 || ranks > RANKS || rank < 0 || rank >= ranks ||
        strnlen(id.internal, sizeof id.internal) == sizeof id.internal || !config ||
        config->magic != 0xcafebeef || config->size < 20 || config->version < 21400)
        return ncclInvalidArgument;
    int fd = open(id.internal, O_RDWR | O_CLOEXEC);
    struct flock l = byte_lock(rank);
    if (fd < 0)
        return ncclSystemError;
    if (fcntl(fd, F_OFD_SETLK, &l)) { // this rank is there already
        close(fd);
        return ncclInvalidUsage;
    }
    void *p = mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        close(fd);
        return ncclSystemError;
    }
    Comm *c = new Comm();
    c->rank = rank;
    c->ranks = ranks;
    c->fd = fd;
    c->s = (Segment *)p;
    c->blocking = config->blocking != 0;
    c->meeting = true;
    c->s->joined++;
    *out = (ncclComm_t)c;
    while (c->blocking && c->meeting) {
        usleep(1000);
        look(c);
    }
    return c->blocking ? ncclSuccess : ncclInProgress;
}
API ncclCommGetAsyncError(ncclComm_t h, ncclResult_t *e)
{
    Comm *c = (Comm *)h;
    look(c);
    launch(c);
    *e = c->error != ncclSuccess ? c->error : c->meeting ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}
API ncclGroupStart()
{
    group_depth++;
    return ncclSuccess;
}
API ncclGroupEnd()
{
    bool later = false;
    if (group_depth == 0)
        return ncclInvalidUsage;
    if (--group_depth > 0)
        return ncclSuccess;
    for (Comm *c : in_group) {
        c->unqueued.push_back(c->open);
        c->open = nullptr;
        if (c->blocking)
            launch(c);
        later = later || !c->blocking;
    }
    in_group.clear();
    return later ? ncclInProgress : ncclSuccess;
}
API ncclSend(const void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t h, cudaStream_t s)
{
    return add((Comm *)h, true, p, n, t, peer, s);
}
API ncclRecv(void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t h, cudaStream_t s)
{
    return add((Comm *)h, false, p, n, t, peer, s);
}
// What is still on a stream of it ends with the next look at that stream.
API ncclCommAbort(ncclComm_t h)
{
    Comm *c = (Comm *)h;
    while (mode_is("stuck") && !c->s->left[c->rank])
        pause();
    c->aborted = true;
    for (Work *w : c->unqueued)
        delete w;
    c->unqueued.clear();
    munmap(c->s, sizeof(Segment));
    close(c->fd); // and with it the lock: the others see us gone
    if (c->queued == 0)
        delete c;
    return ncclSuccess;
}
API ncclCommFinalize(ncclComm_t h)
{
    return ((Comm *)h)->blocking ? ncclSuccess : ncclInProgress;
}
API ncclCommDestroy(ncclComm_t h)
{
    Comm *c = (Comm *)h;
    c->s->left[c->rank] = true;
    return ncclCommAbort(h);
}
extern "C" __attribute__((visibility("default"))) const char *ncclGetLastError(ncclComm_t)
{
    return last_words;
}
extern "C" __attribute__((visibility("default"))) const char *ncclGetErrorString(ncclResult_t r)
{
    static const char *const text[] = {"no error",
                                       "unhandled cuda error",
                                       "unhandled system error",
                                       "internal error",
                                       "invalid argument",
                                       "invalid usage",
                                       "remote process exited or there was a network error",
                                       "NCCL operation in progress"};
    return r >= 0 && r < (int)(sizeof text / sizeof *text) ? text[r] : "unknown result code";
}
