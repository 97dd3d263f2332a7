/* fiber.cc - threads of a kernel as fibers: scheduler, barriers, warp collectives. */
// fiber.cc - runs a grid: blocks one after another, one fiber per CUDA thread.
// Never compiled with -fsanitize=thread.
#include "cusim.h"
#include "cusim_int.h"
#include <mutex>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>
#ifdef CUSIM_UCONTEXT
#include <ucontext.h>
#endif
#ifdef CUSIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CUSIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef CUSIM_MSAN
#include <sanitizer/msan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cusim
{
#ifndef CUSIM_STACK
#define CUSIM_STACK (128 * 1024)
#endif
enum { MAXT = 1024, NBAR = 16, WARP_OP = -1 };
struct Worker { // a stack that runs CUDA threads one after another
#ifdef CUSIM_UCONTEXT
    ucontext_t uc;
#endif
    void *sp;
    char *stack;
    size_t size;
    void *fake; // ASan's fake stack
};
enum State : uint8_t { FRESH, READY, BLOCKED, DONE };
struct CpAsync {
    void *dst;
    const void *src;
    int bytes, group;
};
struct Thread {
    Worker *w;
    uint3 idx;
    int lin, warp, lane;
    State st;
    int bar, barcount, pred; // what it waits for
    unsigned mask;
    const char *op, *file;
    int line;
    void *desc;
    Completer fn;
    std::vector<CpAsync> cp;
    int cp_group;
    void *tsan;
};
struct Warp {
    unsigned exist, exited, waiting;
};
static Thread T[MAXT];
static Warp W[MAXT / 32];
static Worker *pool[MAXT + 1];
static int npool;
static Worker main_w, *cur_w, *prev_w;
static Thread *cur;
static int N, ndone, nwait[NBAR], bar_result[NBAR];
// Runnable threads, as bits in order of priority: thread at[i] has priority i, pos[] is the
// inverse. Priority scheduling is the adversary: the first warp runs as far ahead as the barriers
// let it.
static uint64_t runnable[MAXT / 64];
static short at[MAXT], pos[MAXT];
static int rr; // round robin position (bfs)
static void (*g_body)(void *);
static void *g_ctx;
static const char *g_name;
static size_t dyn_size;
static std::recursive_mutex big_lock; // one kernel at a time in the process
#ifdef CUSIM_TSAN
static char tok_start, tok_end, tok_bar[NBAR], tok_warp[MAXT / 32];
#endif
static Config cfg;
Stats stats;

static uint64_t rs = 88172645463325252ull;
uint64_t rnd64()
{
    rs ^= rs << 13;
    rs ^= rs >> 7;
    rs ^= rs << 17;
    return rs;
}
static uint32_t rnd(uint32_t n)
{
    return (uint32_t)((rnd64() >> 11) % n);
}

static FILE *kernel_log; // CUSIM_KERNELS: a file that gets the name of every kernel launched
const Config &config()
{
    if (cfg.loaded)
        return cfg;
    cfg.loaded = true;
#ifdef CUSIM_ASAN
    __asan_set_error_report_callback([](const char *) { where_report(stderr); });
#endif
    const char *s = getenv("CUSIM_SCHED");
    cfg.sched = !s || !strncmp(s, "fwd", 3) ? FWD
                : !strncmp(s, "rev", 3)     ? REV
                : !strncmp(s, "bfs", 3)     ? BFS
                                            : RND;
    if (cfg.sched == RND) {
        const char *c = strchr(s, ':');
        cfg.seed = c ? strtoull(c + 1, 0, 0) : 1;
    }
    rs ^= cfg.seed * 0x9E3779B97F4A7C15ull;
    cfg.poison = !(s = getenv("CUSIM_POISON")) || (int)strtol(s, 0, 10);
    if ((s = getenv("CUSIM_STREAM")))
        cfg.stream = !strcmp(s, "lazy") ? 1 : !strncmp(s, "rnd", 3) ? 2 : 0;
    if ((s = getenv("CUSIM_PROTECT")))
        cfg.protect = (int)strtol(s, 0, 10);
    if ((s = getenv("CUSIM_KERNELS")) && (kernel_log = fopen(s, "ae")))
        setvbuf(kernel_log, nullptr, _IOLBF, BUFSIZ); // whole lines, whichever process
    return cfg;
}
void where_report(FILE *f)
{
    if (g_name && cur)
        fprintf(f, "  in kernel %s, block (%u,%u,%u), thread (%u,%u,%u)\n", g_name, blockIdx.x,
                blockIdx.y, blockIdx.z, cur->idx.x, cur->idx.y, cur->idx.z);
}
void fatal(const char *fmt, ...)
{
    va_list ap;
    fprintf(stderr, "CUSIM ERROR: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    where_report(stderr);
    if (cur && cur->st == BLOCKED)
        fprintf(stderr, "  at %s:%d (%s)\n", cur->file, cur->line, cur->op);
    abort();
}
bool in_kernel()
{
    return cur != nullptr;
}
int lane_id()
{
    return cur->lane;
}
int linear_tid()
{
    return cur->lin;
}
int warp_id()
{
    return cur->warp;
}
int nthreads()
{
    return N;
}
bool own_stack(const void *p)
{
    return cur && (const char *)p >= cur->w->stack &&
           (const char *)p < cur->w->stack + cur->w->size;
}

// ---- context switch -----------------------------------------------------------
static void worker_main();
#ifndef CUSIM_UCONTEXT
#ifndef __x86_64__
#error "use -DCUSIM_UCONTEXT on this architecture"
#endif
extern "C" void cusim_switch(void **save, void *to);
asm(R"(
.text
.globl cusim_switch
.type cusim_switch,@function
cusim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size cusim_switch,.-cusim_switch
)");
#endif
CUSIM_NOSAN static void arrived(void *fake)
{
#ifdef CUSIM_ASAN
    const void *b;
    size_t n;
    __sanitizer_finish_switch_fiber(fake, &b, &n);
    if (prev_w == &main_w) {
        main_w.stack = (char *)b;
        main_w.size = n;
    }
#elif defined(CUSIM_MSAN)
    const void *b;
    size_t n;
    __msan_finish_switch_fiber(&b, &n);
    if (prev_w == &main_w) {
        main_w.stack = (char *)b;
        main_w.size = n;
    }
    (void)fake;
#else
    (void)fake;
#endif
}
CUSIM_NOSAN static void switch_to(Worker *to)
{
    Worker *from = cur_w;
    if (from == to)
        return;
    stats.switches++;
    prev_w = from;
    cur_w = to;
#ifdef CUSIM_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->stack, to->size);
#endif
#ifdef CUSIM_MSAN
    __msan_start_switch_fiber(to->stack, to->size);
#endif
#ifdef CUSIM_UCONTEXT
    swapcontext(&from->uc, &to->uc);
#else
    cusim_switch(&from->sp, to->sp);
#endif
    arrived(from->fake);
}
CUSIM_NOSAN static void worker_entry()
{
    arrived(nullptr);
    worker_main();
    abort();
}
static Worker *get_worker()
{
    if (npool)
        return pool[--npool];
    Worker *w = new Worker();
    size_t page = 4096;
    char *m = (char *)mmap(nullptr, CUSIM_STACK + page, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED)
        fatal("no memory for a stack");
    mprotect(m, page, PROT_NONE);
    w->stack = m + page;
    w->size = CUSIM_STACK;
#ifdef CUSIM_UCONTEXT
    getcontext(&w->uc);
    w->uc.uc_stack.ss_sp = w->stack;
    w->uc.uc_stack.ss_size = w->size;
    makecontext(&w->uc, worker_entry, 0);
#else
    void **sp = (void **)(w->stack + w->size);
    *--sp = nullptr; // return address of worker_entry: rsp = 8 mod 16 there
    *--sp = (void *)worker_entry;
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    w->sp = sp;
#endif
    return w;
}

// ---- scheduling ----------------------------------------------------------------
static inline void push_ready(int t)
{
    T[t].st = READY;
    int p = pos[t];
    runnable[p / 64] |= 1ull << (p & 63);
}
static inline int first_from(int p)
{
    int nw = (N + 63) / 64, w = p / 64;
    uint64_t m = w < nw ? runnable[w] & ~0ull << (p & 63) : 0;
    while (!m) {
        if (++w >= nw)
            return -1;
        m = runnable[w];
    }
    return w * 64 + __builtin_ctzll(m);
}
static int pick()
{
    int p = -1;
    if (cfg.sched == BFS && rr < N)
        p = first_from(rr);
    if (p < 0)
        p = first_from(0);
    if (p < 0)
        return -1;
    rr = p + 1;
    runnable[p / 64] &= ~(1ull << (p & 63));
    return at[p];
}
[[noreturn]] static void deadlock()
{
    fprintf(stderr,
            "CUSIM ERROR: deadlock in kernel %s, block (%u,%u,%u): %d of %d threads exited, the "
            "rest wait:\n",
            g_name, blockIdx.x, blockIdx.y, blockIdx.z, ndone, N);
    for (int i = 0, n = 0; i < N && n < 12; i++) {
        Thread &t = T[i];
        if (t.st != BLOCKED)
            continue;
        int j = i;
        while (j + 1 < N && T[j + 1].st == BLOCKED && T[j + 1].line == t.line &&
               T[j + 1].op == t.op && T[j + 1].mask == t.mask)
            j++;
        fprintf(stderr, "  threads %d..%d: %s", i, j, t.op);
        if (t.bar == WARP_OP)
            fprintf(stderr, " mask %08x", t.mask);
        fprintf(stderr, " at %s:%d\n", t.file, t.line);
        i = j;
        n++;
    }
    abort();
}
CUSIM_NOSAN static inline void become(Thread *t)
{
    cur = t;
    threadIdx = t->idx;
#ifdef CUSIM_TSAN
    __tsan_switch_to_fiber(t->tsan, __tsan_switch_to_fiber_no_sync);
#endif
}
// The current thread cannot go on (blocked, or done): run something else.
CUSIM_NOSAN static void next()
{
    int t = pick();
    if (t < 0) {
        if (ndone != N)
            deadlock();
        pool[npool++] = cur_w;
        cur = nullptr;
        switch_to(&main_w);
        return; // resumed for a later thread
    }
    Thread *n = &T[t];
    if (n == cur) {
        cur->st = READY;
        return;
    }
    bool was_done = cur->st == DONE;
    if (n->st == FRESH) {
        n->st = READY;
        if (was_done) {
            n->w = cur_w;
            become(n);
            return;
        } // same stack, no switch
        n->w = get_worker();
    } else if (was_done)
        pool[npool++] = cur_w;
    become(n);
    switch_to(n->w);
}
static void complete_bar(int id)
{
    Thread *first = nullptr;
    int sum = 0;
    unsigned warps = 0;
    for (int k = 0; k < N; k++) {
        Thread &t = T[k];
        if (t.st != BLOCKED || t.bar != id)
            continue;
        if (!first)
            first = &t;
        if (id == 0 && (t.line != first->line || t.op != first->op))
            fatal("divergent barrier %d: thread %d waits in %s at %s:%d, thread %d in %s at %s:%d",
                  id, first->lin, first->op, first->file, first->line, t.lin, t.op, t.file, t.line);
        sum += t.pred;
        warps |= 1u << t.warp;
        push_ready(t.lin);
    }
    bar_result[id] = sum;
    nwait[id] = 0;
    rc_barrier(warps);
}
int block_barrier(int id, int count, const char *op, int pred, const char *file, int line)
{
    Thread *me = cur;
    me->st = BLOCKED;
    me->bar = id;
    me->barcount = count;
    me->pred = pred;
    me->op = op;
    me->file = file;
    me->line = line;
#ifdef CUSIM_TSAN
    __tsan_release(&tok_bar[id]);
#endif
    nwait[id]++;
    if (nwait[id] >= (count < 0 ? N - ndone : count))
        complete_bar(id);
    next();
#ifdef CUSIM_TSAN
    __tsan_acquire(&tok_bar[id]);
#endif
    return bar_result[id];
}
// Complete the collective that the waiting lanes of this warp are ready for, if any.
static void check_warp(int warp)
{
    Warp &w = W[warp];
    unsigned todo = w.waiting;
    while (todo) {
        int l0 = __builtin_ctz(todo);
        Thread *f = &T[warp * 32 + l0];
        unsigned need = f->mask & w.exist & ~w.exited;
        todo &= ~(1u << l0);
        if ((w.waiting & need) != need)
            continue;
        bool same = true;
        void *d[32];
        for (unsigned m = need; m; m &= m - 1) {
            Thread &t = T[warp * 32 + __builtin_ctz(m)];
            if (t.mask != f->mask) {
                same = false;
                break;
            }
            if (t.line != f->line || t.op != f->op || t.file != f->file)
                fatal("divergent warp operation: lane %d in %s at %s:%d, lane %d in %s at %s:%d",
                      f->lane, f->op, f->file, f->line, t.lane, t.op, t.file, t.line);
            d[t.lane] = t.desc;
        }
        if (!same)
            continue; // reported as a deadlock if it stays
        stats.collectives++;
        rc_pause(true);
        if (f->fn)
            f->fn(d, need, w.exited);
        rc_pause(false);
        rc_warp_barrier(warp, need);
        w.waiting &= ~need;
        todo &= ~need;
        for (unsigned m = need; m; m &= m - 1)
            push_ready(warp * 32 + __builtin_ctz(m));
    }
}
void warp_collective(unsigned mask, const char *op, void *desc, Completer fn, const char *file,
                     int line)
{
    Thread *me = cur;
    me->bar = WARP_OP;
    me->mask = mask;
    me->op = op;
    me->desc = desc;
    me->fn = fn;
    me->file = file;
    me->line = line;
    me->st = BLOCKED;
    if (!(mask >> me->lane & 1))
        fatal("lane %d is not in its own mask %08x", me->lane, mask);
#ifdef CUSIM_TSAN
    __tsan_release(&tok_warp[me->warp]);
#endif
    Warp &w = W[me->warp];
    w.waiting |= 1u << me->lane;
    unsigned need = mask & w.exist & ~w.exited;
    if ((w.waiting & need) == need)
        check_warp(me->warp);
    next();
#ifdef CUSIM_TSAN
    __tsan_acquire(&tok_warp[me->warp]);
#endif
}
static void worker_main()
{
    for (;;) {
#ifdef CUSIM_TSAN
        __tsan_acquire(&tok_start);
#endif
        g_body(g_ctx);
        Thread *t = cur;
#ifdef CUSIM_TSAN
        __tsan_release(&tok_end);
#endif
        if (!t->cp.empty())
            fatal("thread exits with cp.async copies outstanding");
        t->st = DONE;
        ndone++;
        W[t->warp].exited |= 1u << t->lane;
        for (int b = 0; b < NBAR; b++) // its exit may release others
            if (nwait[b]) {
                int need = N - ndone;
                for (int i = 0; i < N; i++)
                    if (T[i].st == BLOCKED && T[i].bar == b && T[i].barcount >= 0)
                        need = T[i].barcount;
                if (nwait[b] >= need)
                    complete_bar(b);
            }
        if (W[t->warp].waiting)
            check_warp(t->warp);
        next();
    }
}

// A polling loop gives way here: everybody else who can run does so before it polls again.
void spin_yield()
{
    static uint64_t polls, last;
    if (stats.collectives + stats.blocks + (uint64_t)ndone != last) {
        last = stats.collectives + stats.blocks + ndone;
        polls = 0;
    }
    if (++polls > 1u << 24)
        fatal("livelock: %u polls without any thread passing a barrier or exiting", 1u << 24);
    int me = pos[cur->lin], p = first_from(me + 1 < N ? me + 1 : 0);
    if (p < 0 || me + 1 >= N)
        p = first_from(0);
    if (p < 0)
        return;
    push_ready(cur->lin);
    Thread *n = &T[at[p]];
    runnable[p / 64] &= ~(1ull << (p & 63));
    if (n->st == FRESH) {
        n->st = READY;
        n->w = get_worker();
    }
    become(n);
    switch_to(n->w);
}

// ---- cp.async: the copy lands when the thread waits for its group -----------------
void cp_async(void *dst, const void *src, int n, bool ok)
{
    if (((uintptr_t)dst | (uintptr_t)src) & (uintptr_t)(n - 1))
        fatal("cp.async %d: misaligned address", n);
    if (!shared_span(dst, n))
        fatal("cp.async %d: the target lies outside any shared array", n);
    if (ok) {
        if (!heap_range_ok(src, n))
            fatal("cp.async %d: the source lies outside any allocation: %s", n,
                  heap_describe(src));
        rc_access(src, n, false);
    }
    rc_access(dst, n, true);
    memset(dst, 0xff, n); // reading it now gives NaN
    cur->cp.push_back({dst, ok ? src : nullptr, n, cur->cp_group});
}
void cp_async_commit()
{
    cur->cp_group++;
}
void cp_async_wait(int pending)
{
    size_t k = 0;
    for (auto &c : cur->cp) {
        if (c.group < cur->cp_group - pending) {
            rc_access(c.dst, c.bytes, true);
            if (c.src)
                memcpy(c.dst, c.src, c.bytes);
            else
                memset(c.dst, 0, c.bytes);
        } else
            cur->cp[k++] = c;
    }
    cur->cp.resize(k);
}

// ---- shared memory: pieces with redzones, refilled with NaN for every block ------------
enum { ARENA = 4 << 20, RED = 128, MAXPIECE = 64 };
struct Piece {
    const void *key;
    char *p;
    size_t n;
};
static char *arena;
static size_t arena_used, static_bytes;
static Piece piece[MAXPIECE];
static int npiece;
bool shared_contains(const void *p)
{
    return arena && (const char *)p >= arena && (const char *)p < arena + ARENA;
}
bool shared_range_ok(const void *p, size_t n)
{
    for (int i = 0; i < npiece; i++)
        if ((const char *)p >= piece[i].p && (const char *)p + n <= piece[i].p + piece[i].n)
            return true;
    return false;
}
bool shared_span(const void *p, size_t n)
{
    return shared_range_ok(p, n);
}
const char *shared_describe(const void *p)
{
    static char b[128];
    for (int i = 0; i < npiece; i++)
        if ((const char *)p >= piece[i].p && (const char *)p < piece[i].p + piece[i].n + RED) {
            size_t o = (const char *)p - piece[i].p;
            snprintf(b, sizeof b, "%s shared array %d (%zu bytes) + %zu%s",
                     (size_t)piece[i].key < 4096 ? "dynamic" : "static", i, piece[i].n, o,
                     o >= piece[i].n ? ": past its end" : "");
            return b;
        }
    return "shared memory, outside any array";
}
static void shared_reset()
{
    if (!arena) {
        arena = (char *)mmap(nullptr, ARENA, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
#ifdef CUSIM_ASAN
        __asan_poison_memory_region(arena, ARENA);
#endif
    }
#ifdef CUSIM_ASAN
    __asan_poison_memory_region(arena, arena_used);
#endif
    arena_used = static_bytes = 0;
    npiece = 0;
}
void *shared_get(const void *key, size_t n, size_t align, size_t dyn_end)
{
    for (int i = 0; i < npiece; i++)
        if (piece[i].key == key) {
            if (piece[i].n != n)
                fatal("threads carve dynamic shared memory differently: piece %d of %zu and %zu "
                      "bytes",
                      i, piece[i].n, n);
            return piece[i].p;
        }
    if (dyn_end > dyn_size)
        fatal("the kernel carves %zu bytes of dynamic shared memory, the launch gave %zu", dyn_end,
              dyn_size);
    if (!dyn_end && (static_bytes += (n + 15) & ~(size_t)15) > 48 * 1024)
        fatal("static shared memory over 48 KiB");
    if (static_bytes + dyn_size > SHARED_MOST)
        fatal("shared memory over %d KiB", SHARED_MOST / 1024);
    if (npiece == MAXPIECE)
        fatal("too many shared arrays");
    size_t o = (arena_used + RED + align - 1) & ~(align - 1);
    if (o + n + RED > ARENA)
        fatal("shared arena too small");
    char *p = arena + o;
    arena_used = o + n;
    piece[npiece++] = {key, p, n};
#ifdef CUSIM_ASAN
    __asan_unpoison_memory_region(p, n);
#endif
    if (cfg.poison)
        memset(p, 0xff, n);
    return p;
}

static void run_block(dim3 b)
{
    N = b.x * b.y * b.z;
    ndone = rr = 0;
    memset(nwait, 0, sizeof nwait);
    int i = 0;
    for (unsigned z = 0; z < b.z; z++)
        for (unsigned y = 0; y < b.y; y++)
            for (unsigned x = 0; x < b.x; x++, i++) {
                Thread &t = T[i];
                t.idx = make_uint3(x, y, z);
                t.lin = i;
                t.warp = i / 32;
                t.lane = i % 32;
                t.st = FRESH;
                t.cp_group = 0;
                at[i] = cfg.sched == REV ? N - 1 - i : i;
                if (!t.lane)
                    W[t.warp] = {0, 0, 0};
                W[t.warp].exist |= 1u << t.lane;
#ifdef CUSIM_TSAN
                if (!t.tsan)
                    t.tsan = __tsan_create_fiber(0);
#endif
            }
    if (cfg.sched == RND) { // warps in random order, lanes too
        int nw = (N + 31) / 32, k = 0, ws[32], ls[32];
        for (int w = 0; w < nw; w++) {
            int j = rnd(w + 1);
            ws[w] = ws[j];
            ws[j] = w;
        }
        for (int w = 0; w < nw; w++) {
            for (int l = 0; l < 32; l++) {
                int j = rnd(l + 1);
                ls[l] = ls[j];
                ls[j] = l;
            }
            for (int l = 0; l < 32; l++)
                if (ws[w] * 32 + ls[l] < N)
                    at[k++] = ws[w] * 32 + ls[l];
        }
    }
    for (i = 0; i < N; i++)
        pos[at[i]] = i;
    memset(runnable, 0, sizeof runnable);
    for (i = 0; i < N; i++)
        runnable[i / 64] |= 1ull << (i & 63);
    shared_reset();
    rc_block();
    Thread *t = &T[pick()];
    t->st = READY;
    t->w = get_worker();
#ifdef CUSIM_TSAN
    if (!main_w.sp)
        main_w.sp = nullptr;
    void *me = __tsan_get_current_fiber();
    __tsan_release(&tok_start);
#endif
    become(t);
    cur_w = &main_w;
    switch_to(t->w);
#ifdef CUSIM_TSAN
    __tsan_switch_to_fiber(me, __tsan_switch_to_fiber_no_sync);
    __tsan_acquire(&tok_end);
#endif
    stats.blocks++;
    stats.threads += N;
}
void run_grid(const char *name, dim3 g, dim3 b, size_t smem, void (*body)(void *), void *ctx)
{
    std::lock_guard<std::recursive_mutex> lk(big_lock);
    config();
    heap_open();
    stats.launches++;
    if (kernel_log)
        fprintf(kernel_log, "%s\n", name);
    g_body = body;
    g_ctx = ctx;
    g_name = name;
    gridDim = g;
    blockDim = b;
    dyn_size = smem;
    rc_launch(b.x * b.y * b.z);
    uint64_t nb = (uint64_t)g.x * g.y * g.z;
    std::vector<uint32_t> order;
    if (cfg.sched == RND) {
        order.resize(nb);
        for (uint64_t i = 0; i < nb; i++)
            order[i] = (uint32_t)i;
        for (uint64_t i = nb - 1; i > 0; i--)
            std::swap(order[i], order[rnd((uint32_t)i + 1)]);
    }
    for (uint64_t k = 0; k < nb; k++) {
        uint64_t i = cfg.sched == RND ? order[k] : cfg.sched == REV ? nb - 1 - k : k;
        blockIdx = make_uint3(i % g.x, i / g.x % g.y, i / ((uint64_t)g.x * g.y));
        run_block(b);
    }
    g_name = nullptr;
    heap_close();
}
} // namespace cusim
