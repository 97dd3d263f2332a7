/* cudart.cc - the CUDA runtime API on the host: heap, streams, events, graphs. */
// cudart.cc - the CUDA runtime API subset, defined under its real names so that
// host code links against this file instead of libcudart.
#include "cusim_int.h"
#include <cuda_runtime_api.h>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>
#ifdef CUSIM_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n)   __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n)   ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif
namespace cusim
{
[[noreturn]] void fatal(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
__attribute__((weak)) void rc_launch(int) {}
__attribute__((weak)) void rc_block() {}
__attribute__((weak)) void rc_barrier(unsigned) {}
__attribute__((weak)) void rc_warp_barrier(int, unsigned) {}
__attribute__((weak)) void rc_host_write(const void *, size_t) {}
__attribute__((weak)) void rc_alloc(const void *, size_t) {}
__attribute__((weak)) void rc_free(const void *, size_t) {}
__attribute__((weak)) void rc_atomic(const void *, size_t) {}
__attribute__((weak)) void rc_fence() {}
__attribute__((weak)) void rc_pause(bool) {}
__attribute__((weak)) void rc_access(const void *, size_t, bool) {}
__attribute__((weak)) void rc_args(const void *, size_t) {}

static thread_local cudaError_t last;
static cudaError_t err(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

// ---- device heap: one reserved range, addresses never reused ----------------------
static const size_t HEAP = 1ull << 40, GAP = 4096;
// Of a larger piece no more than its ends are filled: the rest costs memory when it is used.
static const size_t LARGE = 1ull << 30, END = 1 << 20;
static char *heap, *top;
static size_t in_use, device_bytes = 4ull << 30;
static std::map<char *, size_t> allocs;
static int open_depth;
static void segv(int, siginfo_t *si, void *)
{
    char *p = (char *)si->si_addr;
    if (heap && p >= heap && p < heap + HEAP)
        fprintf(stderr, "CUSIM ERROR: %s device memory at %p (%s)\n",
                in_kernel() ? "kernel touches unallocated" : "host code dereferences", (void *)p,
                heap_describe(p));
    where_report(stderr);
    signal(SIGSEGV, SIG_DFL);
}
// CUSIM_TAKEN_KB: memory that another program took since it was last asked how much is free; it
// shows once an allocation failed.
static size_t taken, taken_shows;
// CUSIM_PAGE_KB: allocations are counted in multiples of it. CUSIM_CODE_KB: what a kernel's code
// takes when it is first launched.
static size_t page_bytes = 1, code_bytes, code_each;
static size_t counted(size_t n)
{
    return (n + page_bytes - 1) / page_bytes * page_bytes;
}
static void heap_init()
{
    if (heap)
        return;
    heap = top =
        (char *)mmap(nullptr, HEAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (heap == MAP_FAILED)
        fatal("cannot reserve the device heap");
    if (config().protect) {
        struct sigaction sa = {};
        sa.sa_sigaction = segv;
        sa.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigaction(SIGSEGV, &sa, nullptr);
    }
    const char *s = getenv("CUSIM_DEVICE_MB");
    if (s)
        device_bytes = strtoull(s, 0, 0) << 20;
    s = getenv("CUSIM_TAKEN_KB");
    taken = s ? strtoull(s, 0, 0) << 10 : 0;
    s = getenv("CUSIM_PAGE_KB");
    page_bytes = s && strtoull(s, 0, 0) ? strtoull(s, 0, 0) << 10 : 1;
    s = getenv("CUSIM_CODE_KB");
    code_each = s ? strtoull(s, 0, 0) << 10 : 0;
}
void heap_open()
{
    if (open_depth++ == 0 && config().protect && heap && top > heap)
        mprotect(heap, top - heap, PROT_READ | PROT_WRITE);
}
void heap_close()
{
    if (--open_depth == 0 && config().protect && heap && top > heap)
        mprotect(heap, top - heap, PROT_NONE);
}
// Under CUSIM_PROTECT opening costs a system call over all device memory: once for all that runs
// until the host goes on.
struct HeapOpen {
    HeapOpen() { heap_open(); }
    ~HeapOpen() { heap_close(); }
};
bool heap_contains(const void *p)
{
    return heap && (const char *)p >= heap && (const char *)p < heap + HEAP;
}
static std::map<char *, size_t>::iterator find(const void *p)
{
    auto it = allocs.upper_bound((char *)p);
    if (it == allocs.begin())
        return allocs.end();
    --it;
    return (const char *)p < it->first + it->second ? it : allocs.end();
}
bool heap_range_ok(const void *p, size_t n)
{
    auto it = find(p);
    return it != allocs.end() && (const char *)p + n <= it->first + it->second;
}
const char *heap_describe(const void *p)
{
    static char b[128];
    auto it = find(p);
    if (it != allocs.end()) {
        snprintf(b, sizeof b, "byte %zu of an allocation of %zu", (size_t)((char *)p - it->first),
                 it->second);
        return b;
    }
    auto u = allocs.upper_bound((char *)p);
    if (u != allocs.begin()) {
        --u;
        snprintf(b, sizeof b, "%zu bytes past the end of an allocation of %zu",
                 (size_t)((char *)p - u->first - u->second), u->second);
        return b;
    }
    return "not allocated";
}
static void *dev_alloc(size_t n)
{
    heap_init();
    if (in_use + code_bytes + counted(n) > device_bytes - taken) {
        taken_shows = taken;
        return nullptr;
    }
    size_t body = (n + 255) & ~(size_t)255, page = 4096;
    if (top + body + GAP > heap + HEAP)
        fatal("device heap exhausted: too many allocations");
    char *p = top;
    char *end = (char *)(((uintptr_t)p + body + 512 + page - 1) & ~(page - 1));
    if (config().protect) { // page-granular: every allocation ends on its own pages
        mprotect(p, end - p, open_depth ? PROT_READ | PROT_WRITE : PROT_NONE);
    } else
        mprotect(p, end - p, PROT_READ | PROT_WRITE);
    top = end;
    heap_open();
    if (n > LARGE) {
        memset(p, 0xff, END);
        memset(p + n - END, 0xff, END);
    } else
        memset(p, 0xff, n); // NaN: uninitialised reads show
    heap_close();
    POISON(p, end - p);
    UNPOISON(p, n);
    allocs[p] = n;
    in_use += counted(n);
    rc_alloc(p, n);
    return p;
}
static bool dev_free(void *p)
{
    auto it = allocs.find((char *)p);
    if (it == allocs.end())
        return false;
    POISON(p, (it->second + 255) & ~(size_t)255);
    madvise((void *)(((uintptr_t)p + 4095) & ~4095ull), it->second & ~4095ull, MADV_DONTNEED);
    rc_free(p, it->second);
    in_use -= counted(it->second);
    allocs.erase(it);
    return true;
}
static std::map<char *, size_t> pinned;
static bool is_pinned(const void *p)
{
    auto it = pinned.upper_bound((char *)p);
    if (it == pinned.begin())
        return false;
    --it;
    return (const char *)p < it->first + it->second;
}

// ---- streams -----------------------------------------------------------------------
struct Ev {
    uint64_t recorded = 0, done = 0;
    double t = 0;
    bool timing = true;
};
struct Op {
    const char *name;
    std::function<void()> fn;
    std::function<bool()> ready; // work that depends on another process: looked at until true
    std::shared_ptr<Ev> wait, rec;
    uint64_t seq = 0;
};
struct Stream {
    std::deque<Op> q;
    bool blocking = true;
    std::vector<Op> *capture = nullptr;
    int id = 0;
};
static std::vector<Stream *> streams;
static Stream *def_stream;
static std::recursive_mutex lock;
typedef std::lock_guard<std::recursive_mutex> Guard;
static double now()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}
static Stream *get(cudaStream_t s)
{
    if (!def_stream) {
        def_stream = new Stream;
        streams.push_back(def_stream);
    }
    if (!s || s == cudaStreamLegacy || s == cudaStreamPerThread)
        return def_stream;
    for (auto *x : streams)
        if ((cudaStream_t)x == s)
            return x;
    fatal("operation on a destroyed or invalid stream %p", (void *)s);
}
static bool step(Stream *s)
{
    if (s->q.empty())
        return false;
    Op &o = s->q.front();
    if (o.wait && o.wait->done < o.seq)
        return false;
    if (o.ready && !o.ready())
        return false;
    Op op = std::move(o);
    s->q.pop_front();
    if (op.fn)
        op.fn();
    if (op.rec) {
        if (op.seq > op.rec->done)
            op.rec->done = op.seq;
        op.rec->t = now();
    }
    return true;
}
static bool outside(Stream *s) // its next operation waits for another process
{
    return !s->q.empty() && s->q.front().ready;
}
static bool any_outside()
{
    for (auto *s : streams)
        if (outside(s)) {
            usleep(50);
            return true;
        }
    return false;
}
template <class F> static void drain_until(F done)
{
    HeapOpen open;
    while (!done()) {
        bool any = false;
        size_t n = streams.size(), k0 = config().stream == 2 ? rnd64() % n : 0;
        for (size_t k = 0; k < n && !any; k++)
            any = step(streams[(k0 + k) % n]);
        if (!any && !any_outside())
            fatal("stream deadlock: a stream waits for an event that is never recorded");
    }
}
static void drain(Stream *s, bool wait = true)
{
    // lazy: run only what this stream needs
    if (s->q.empty())
        return;
    HeapOpen open;
    while (!s->q.empty()) {
        if (step(s))
            continue;
        if (outside(s)) {
            if (!wait)
                return;
            usleep(50);
            continue;
        }
        auto ev = s->q.front().wait;
        uint64_t q = s->q.front().seq;
        drain_until([&] { return ev->done >= q; });
    }
}
static void drain_all()
{
    drain_until([] {
        for (auto *s : streams)
            if (!s->q.empty())
                return false;
        return true;
    });
}
static void push(Stream *s, Op op)
{
    if (s->capture) {
        s->capture->push_back(std::move(op));
        return;
    }
    if (s == def_stream) {
        for (auto *x : streams)
            if (x->blocking && x != s)
                drain(x);
    } else if (s->blocking && def_stream)
        drain(def_stream);
    s->q.push_back(std::move(op));
    if (config().stream == 0)
        drain(s, false);
    else if (config().stream == 2)
        for (int n = rnd64() % 4; n-- > 0;)
            step(streams[rnd64() % streams.size()]);
}
void enqueue(cudaStream_t s, const char *name, std::function<void()> fn)
{
    Guard g(lock);
    Op o;
    o.name = name;
    o.fn = std::move(fn);
    push(get(s), std::move(o));
}
// Work that another process has a part in (nccl.cc); `ready` moves it on and says when it is done.
void enqueue_external(cudaStream_t s, const char *name, std::function<bool()> ready)
{
    Guard g(lock);
    Op o;
    o.name = name;
    o.ready = std::move(ready);
    push(get(s), std::move(o));
}

// ---- launches ------------------------------------------------------------------------
static std::unordered_map<const void *, int> func_smem;
void set_func_smem(const void *f, int n)
{
    if (n <= SHARED_MOST)
        func_smem[f] = n;
    else
        err(cudaErrorInvalidValue);
}
// A kernel's code is put onto the device before its first launch.
static bool code_fits(const void *f)
{
    static std::map<const void *, bool> there;
    if (!code_each || there[f])
        return true;
    if (in_use + code_bytes + code_each > device_bytes - taken)
        return false;
    code_bytes += code_each;
    return there[f] = true;
}
cudaError_t check_launch(const char *name, const void *f, dim3 g, dim3 b, size_t smem)
{
    if (!code_fits(f))
        return err(cudaErrorMemoryAllocation);
    const char *why = nullptr;
    auto it = func_smem.find(f);
    size_t lim = it == func_smem.end() ? 48 * 1024 : it->second;
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z)
        why = "a zero dimension";
    else if ((uint64_t)b.x * b.y * b.z > 1024 || b.z > 64)
        why = "more than 1024 threads a block";
    else if (g.y > 65535 || g.z > 65535 || g.x > 0x7fffffffu)
        why = "a grid dimension over the limit";
    else if (smem > lim)
        why = "more dynamic shared memory than the kernel's attribute allows";
    if (!why)
        return cudaSuccess;
    fprintf(stderr, "CUSIM: launch of %s refused: %s (grid %u,%u,%u block %u,%u,%u smem %zu)\n",
            name, why, g.x, g.y, g.z, b.x, b.y, b.z, smem);
    return err(cudaErrorInvalidConfiguration);
}
static void check_dev(const char *what, const void *p, size_t n)
{
    if (n && heap_contains(p) && !heap_range_ok(p, n))
        fatal("%s: %zu bytes at %p run outside the allocation (%s)", what, n, p, heap_describe(p));
}
static void copy_now(void *d, const void *s, size_t n)
{
    check_dev("cudaMemcpy destination", d, n);
    check_dev("cudaMemcpy source", s, n);
    heap_open();
    memcpy(d, s, n);
    rc_host_write(d, n);
    heap_close();
}
} // namespace cusim
using namespace cusim;

#define API extern "C" cudaError_t CUDARTAPI
API cudaMalloc(void **p, size_t n)
{
    Guard g(lock);
    if (!n) {
        *p = nullptr;
        return cudaSuccess;
    }
    return (*p = dev_alloc(n)) ? cudaSuccess : err(cudaErrorMemoryAllocation);
}
API cudaFree(void *p)
{
    Guard g(lock);
    if (!p)
        return cudaSuccess;
    drain_all();
    return dev_free(p) ? cudaSuccess : err(cudaErrorInvalidValue);
}
API cudaHostAlloc(void **p, size_t n, unsigned)
{
    Guard g(lock);
    *p = aligned_alloc(4096, (n + 4095) & ~(size_t)4095); // whole pages, as the driver's
    if (!*p)
        return err(cudaErrorMemoryAllocation);
    memset(*p, 0xff, n); // NaN: what was not written shows
    pinned[(char *)*p] = n;
    return cudaSuccess;
}
API cudaMallocHost(void **p, size_t n)
{
    return cudaHostAlloc(p, n, 0);
}
API cudaFreeHost(void *p)
{
    Guard g(lock);
    if (!p)
        return cudaSuccess;
    if (!pinned.erase((char *)p))
        return err(cudaErrorInvalidValue);
    drain_all();
    free(p);
    return cudaSuccess;
}
API cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st)
{
    Guard g(lock);
    bool dd = heap_contains(d), sd = heap_contains(s);
    if (k != cudaMemcpyDefault &&
        ((k == cudaMemcpyHostToDevice) != (dd && !sd) ||
         (k == cudaMemcpyDeviceToHost) != (!dd && sd) ||
         (k == cudaMemcpyDeviceToDevice) != (dd && sd)) &&
        k != cudaMemcpyHostToHost) {
        fprintf(stderr, "CUSIM: cudaMemcpy kind %d does not match its pointers\n", k);
        return err(cudaErrorInvalidMemcpyDirection);
    }
    Stream *x = get(st);
    Op o;
    o.name = "memcpy";
    if (!sd && !is_pinned(s) && !x->capture) { // pageable source: staged now
        std::shared_ptr<std::vector<char>> b(
            new std::vector<char>((const char *)s, (const char *)s + n));
        o.fn = [=] { copy_now(d, b->data(), n); };
    } else
        o.fn = [=] { copy_now(d, s, n); };
    push(x, std::move(o));
    if (!dd && !is_pinned(d) && !x->capture)
        drain(x); // pageable destination: synchronous
    return cudaSuccess;
}
API cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k)
{
    Guard g(lock);
    cudaError_t e = cudaMemcpyAsync(d, s, n, k, 0);
    drain(get(0));
    return e;
}
API cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t s)
{
    Guard g(lock);
    Op o;
    o.name = "memset";
    o.fn = [=] {
        check_dev("cudaMemset", d, n);
        heap_open();
        if (v == 0 && n > LARGE) { // pages that are given back read as zero
            const uintptr_t from = ((uintptr_t)d + 4095) & ~(uintptr_t)4095;
            const uintptr_t to = ((uintptr_t)d + n) & ~(uintptr_t)4095;
            madvise((void *)from, to - from, MADV_DONTNEED);
            memset(d, 0, from - (uintptr_t)d);
            memset((void *)to, 0, (uintptr_t)d + n - to);
        } else
            memset(d, v, n);
        rc_host_write(d, n);
        heap_close();
    };
    push(get(s), std::move(o));
    return cudaSuccess;
}
API cudaMemset(void *d, int v, size_t n)
{
    return cudaMemsetAsync(d, v, n, 0);
}
API cudaMallocAsync(void **p, size_t n, cudaStream_t)
{
    return cudaMalloc(p, n);
}
API cudaFreeAsync(void *p, cudaStream_t s)
{
    Guard g(lock);
    Op o;
    o.name = "free";
    o.fn = [=] { dev_free(p); };
    push(get(s), std::move(o));
    return cudaSuccess;
}
API cudaMemGetInfo(size_t *f, size_t *t)
{
    Guard g(lock);
    heap_init();
    *t = device_bytes;
    *f = device_bytes - in_use - code_bytes - taken_shows;
    return cudaSuccess;
}

API cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f)
{
    Guard g(lock);
    get(0);
    Stream *x = new Stream;
    x->blocking = !(f & cudaStreamNonBlocking);
    x->id = (int)streams.size();
    streams.push_back(x);
    *s = (cudaStream_t)x;
    return cudaSuccess;
}
API cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithFlags(s, 0);
}
API cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int)
{
    return cudaStreamCreateWithFlags(s, f);
}
API cudaStreamDestroy(cudaStream_t s)
{
    Guard g(lock);
    Stream *x = get(s);
    drain(x);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == x)
            streams.erase(streams.begin() + i);
    delete x;
    return cudaSuccess;
}
API cudaStreamSynchronize(cudaStream_t s)
{
    Guard g(lock);
    drain(get(s));
    return last;
}
API cudaStreamQuery(cudaStream_t s)
{
    Guard g(lock);
    Stream *x = get(s);
    while (step(x))
        ; // a GPU goes on while the host looks
    return x->q.empty() ? cudaSuccess : cudaErrorNotReady;
}
API cudaDeviceSynchronize(void)
{
    Guard g(lock);
    drain_all();
    return last;
}
API cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *d)
{
    enqueue(s, "hostfunc", [=] { f(d); });
    return cudaSuccess;
}

typedef std::shared_ptr<Ev> EvP;
API cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = (cudaEvent_t) new EvP(new Ev);
    return cudaSuccess;
}
API cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, 0);
}
API cudaEventDestroy(cudaEvent_t e)
{
    delete (EvP *)e;
    return cudaSuccess;
}
API cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    Guard g(lock);
    EvP v = *(EvP *)e;
    Op o;
    o.name = "record";
    o.rec = v;
    o.seq = ++v->recorded;
    push(get(s), std::move(o));
    return cudaSuccess;
}
API cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    Guard g(lock);
    EvP v = *(EvP *)e;
    if (!v->recorded)
        return cudaSuccess;
    Op o;
    o.name = "wait";
    o.wait = v;
    o.seq = v->recorded;
    push(get(s), std::move(o));
    return cudaSuccess;
}
API cudaEventSynchronize(cudaEvent_t e)
{
    Guard g(lock);
    EvP v = *(EvP *)e;
    uint64_t q = v->recorded;
    drain_until([&] { return v->done >= q; });
    return cudaSuccess;
}
API cudaEventQuery(cudaEvent_t e)
{
    Guard g(lock);
    EvP v = *(EvP *)e;
    return v->done >= v->recorded ? cudaSuccess : cudaErrorNotReady;
}
API cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    *ms = (float)((*(EvP *)b)->t - (*(EvP *)a)->t);
    return cudaSuccess;
}

// ---- graphs: the captured operations in capture order ----------------------------------
API cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    Guard g(lock);
    get(s)->capture = new std::vector<Op>;
    return cudaSuccess;
}
API cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *gr)
{
    Guard g(lock);
    *gr = (cudaGraph_t)get(s)->capture;
    get(s)->capture = nullptr;
    return cudaSuccess;
}
extern "C" cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g,
                                                      unsigned long long)
{
    *x = (cudaGraphExec_t) new std::vector<Op>(*(std::vector<Op> *)g);
    return cudaSuccess;
}
API cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    Guard g(lock);
    for (Op &o : *(std::vector<Op> *)x)
        push(get(s), o);
    return cudaSuccess;
}
API cudaGraphDestroy(cudaGraph_t g)
{
    delete (std::vector<Op> *)g;
    return cudaSuccess;
}
API cudaGraphExecDestroy(cudaGraphExec_t g)
{
    delete (std::vector<Op> *)g;
    return cudaSuccess;
}

API cudaGetLastError(void)
{
    cudaError_t e = last;
    last = cudaSuccess;
    return e;
}
API cudaPeekAtLastError(void)
{
    return last;
}
extern "C" const char *CUDARTAPI cudaGetErrorName(cudaError_t e)
{
    return e == cudaSuccess ? "cudaSuccess" : "cudaError";
}
extern "C" const char *CUDARTAPI cudaGetErrorString(cudaError_t e)
{
    return e == cudaSuccess                 ? "no error"
           : e == cudaErrorMemoryAllocation ? "out of memory"
                                            : "simulated error";
}
// CUDA_VISIBLE_DEVICES=MIG-...: a process sees that instance and nothing else.
static const char *instance()
{
    const char *s = getenv("CUDA_VISIBLE_DEVICES");
    return s && strncmp(s, "MIG-", 4) == 0 ? s + 4 : nullptr;
}
API cudaGetDeviceCount(int *n)
{
    if (instance()) {
        *n = 1;
        return cudaSuccess;
    }
    const char *s = getenv("CUSIM_DEVICES");
    *n = s ? atoi(s) : 1;
    return *n > 0 ? cudaSuccess : cudaErrorNoDevice;
}
static thread_local int dev;
API cudaSetDevice(int d)
{
    dev = d;
    return cudaSuccess;
}
API cudaGetDevice(int *d)
{
    *d = dev;
    return cudaSuccess;
}
API cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    heap_init(); // CUSIM_DEVICE_MB
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cusim");
    snprintf(p->uuid.bytes, sizeof p->uuid.bytes, "cusim-device%03d", device);
    if (const char *s = instance()) {
        snprintf(p->name, sizeof p->name, "cusim MIG 1g.10gb");
        for (int i = 0; i < 16 && *s && s[1]; i++, s += 2) {
            const char two[] = {s[0], s[1], 0};
            p->uuid.bytes[i] = (char)strtol(two, nullptr, 16);
            s += s[2] == '-';
        }
    }
    const char *sm = getenv("CUSIM_SM"); // "75": an older GPU
    const long version = sm ? strtol(sm, nullptr, 10) : 90;
    p->major = (int)(version / 10);
    p->minor = (int)(version % 10);
    p->multiProcessorCount = 4;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = SHARED_MOST;
    p->totalGlobalMem = device_bytes;
    return cudaSuccess;
}
API cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int)
{
    *v = a == cudaDevAttrMultiProcessorCount            ? 4
         : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? SHARED_MOST
                                                        : 0;
    return cudaSuccess;
}
