/* race.cc - race, uninitialised-read and address checker for kernels. */
// race.cc - races, uninitialised reads and wild addresses in simulated kernels.
// Kernels are compiled with -fsanitize=thread, but the program is linked WITHOUT
// the TSan runtime: this file supplies the __tsan_* callbacks instead. The order
// it checks is exactly CUDA's: program order, __syncthreads, warp collectives,
// kernel boundaries. Not instrumented itself.
#include "cusim.h"
#include "cusim_int.h"
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <unordered_map>
namespace cusim
{
// The program or module that the kernels are part of: where it lies in memory.
struct Image {
    uintptr_t base, data, end; // data: its first writable segment
    char path[4096];
};
static int find_image(struct dl_phdr_info *i, size_t, void *arg)
{
    Image *im = (Image *)arg;
    uintptr_t end = 0, data = 0;
    for (int k = 0; k < i->dlpi_phnum; k++) {
        const ElfW(Phdr) &h = i->dlpi_phdr[k];
        if (h.p_type != PT_LOAD)
            continue;
        uintptr_t from = i->dlpi_addr + h.p_vaddr;
        end = from + h.p_memsz > end ? from + h.p_memsz : end;
        if (h.p_flags & PF_W && !data)
            data = from;
    }
    uintptr_t me = (uintptr_t)&find_image;
    if (me < i->dlpi_addr || me >= end)
        return 0;
    im->base = i->dlpi_addr;
    im->data = data;
    im->end = end;
    if (i->dlpi_name[0])
        snprintf(im->path, sizeof im->path, "%s", i->dlpi_name);
    else if (readlink("/proc/self/exe", im->path, sizeof im->path - 1) < 0)
        im->path[0] = 0;
    return 1;
}
static const Image &image()
{
    static Image im;
    if (!im.end)
        dl_iterate_phdr(find_image, &im);
    return im;
}
enum { PAGE = 4096, ATOMIC_W = 1, INIT = 2 };
struct Acc {
    uint32_t phase, seq, wt, pc;
    uint16_t tid;
}; // block, collective and barrier clocks
struct Cell {
    Acc w, r1, r2;
    uint8_t flags;
};
struct Page {
    int gran;
    Cell *c;
};
static std::unordered_map<uintptr_t, Page> pages;
static uintptr_t last_no;
static Page *last_pg;
static uint32_t phase = 10, block_start, launch_start;
static uint32_t seq[32]; // collectives per warp so far
static uint32_t full_seq[32], pair_seq[32][32][32];
static bool fenced, paused;
static uint32_t vc[32][32]; // vc[w][v]: how far warp w knows warp v's barrier clock
static int nreports;
static const void *args_p;
static size_t args_n;
void rc_args(const void *p, size_t n)
{
    args_p = p;
    args_n = n;
}

static Page *page(uintptr_t a, int gran)
{
    uintptr_t no = a / PAGE;
    Page *p;
    if (no == last_no && last_pg)
        p = last_pg;
    else {
        p = &pages[no];
        if (!p->c) {
            p->gran = 4;
            p->c = (Cell *)calloc(PAGE / 4, sizeof(Cell));
        }
        last_no = no;
        last_pg = p;
    }
    while (p->gran > gran) { // split
        int g = p->gran / 2, n = PAGE / g;
        Cell *c = (Cell *)malloc(n * sizeof(Cell));
        for (int i = 0; i < n; i++)
            c[i] = p->c[i / 2];
        free(p->c);
        p->c = c;
        p->gran = g;
    }
    return p;
}
static void symbol(uintptr_t pc, char *out, size_t n)
{
    char cmd[4608];
    snprintf(cmd, sizeof cmd, "addr2line -e '%s' %#zx 2>/dev/null", image().path,
             (size_t)(pc - 1 - image().base));
    FILE *f = popen(cmd, "r");
    if (!f || !fgets(out, (int)n, f))
        snprintf(out, n, "pc %#zx", (size_t)pc);
    if (f)
        pclose(f);
    out[strcspn(out, "\n")] = 0;
}
static const char *describe(uintptr_t a)
{
    static char b[160];
    if (shared_contains((void *)a))
        return shared_describe((void *)a);
    if (heap_contains((void *)a))
        snprintf(b, sizeof b, "global memory, %s", heap_describe((void *)a));
    else
        snprintf(b, sizeof b, "address %#zx", (size_t)a);
    return b;
}
static void report(const char *what, uintptr_t a, uintptr_t pc, const Acc *o)
{
    char s[300];
    nreports++;
    fprintf(stderr, "CUSIM RACECHECK: %s: %s\n", what, describe(a));
    where_report(stderr);
    symbol(pc, s, sizeof s);
    fprintf(stderr, "  at %s\n", s);
    if (o) {
        symbol(o->pc + image().base, s, sizeof s);
        fprintf(stderr, "  other access by thread %d%s at %s\n", o->tid,
                o->phase < block_start ? " of another block" : "", s);
    }
    if (!getenv("CUSIM_RC_CONTINUE"))
        abort();
    if (nreports > 20)
        abort();
}
// Did o happen before the current access of thread t?
static inline bool ordered(const Acc &o, int t, bool shared)
{
    if (o.phase == 0 || o.phase < launch_start)
        return true;
    if (o.phase < block_start)
        return shared || fenced; // another block (shared memory: not the same memory)
    if (o.tid == t)
        return true;
    int w = t / 32, ow = o.tid / 32;
    if (ow != w)
        return vc[w][ow] >= o.wt;
    return full_seq[w] > o.seq || pair_seq[w][o.tid & 31][t & 31] > o.seq;
}
static void access(uintptr_t a, int n, bool write, bool atomic, uintptr_t pc)
{
    if (!in_kernel() || paused || own_stack((void *)a))
        return;
    bool sh = shared_contains((void *)a), dev = !sh && heap_contains((void *)a);
    if (!sh && !dev) {
        if (a >= image().base && a < image().end) {
            if (a < image().data && write)
                report("write to read-only data", a, pc, nullptr);
        } else if (a - (uintptr_t)args_p < args_n && !write)
            return;
        else {
            report(write ? "kernel writes host memory" : "kernel reads host memory", a, pc,
                   nullptr);
            return;
        }
    }
    if (dev && !heap_range_ok((void *)a, n)) {
        report(write ? "write outside any allocation" : "read outside any allocation", a, pc,
               nullptr);
        return;
    }
    if (sh && !shared_range_ok((void *)a, n)) {
        report(write ? "write outside any shared array" : "read outside any shared array", a, pc,
               nullptr);
        return;
    }
    int t = linear_tid(), w = t / 32;
    int gran = (n % 4 == 0 && a % 4 == 0) ? 4 : (n % 2 == 0 && a % 2 == 0) ? 2 : 1;
    uint32_t off = (uint32_t)(pc - image().base);
    for (uintptr_t e = a + n; a < e;) {
        Page *p = page(a, gran);
        Cell &c = p->c[a % PAGE / p->gran];
        a += p->gran;
        if (write) {
            if (!ordered(c.w, t, sh) && !(atomic && c.flags & ATOMIC_W))
                report("write-write race", a - p->gran, pc, &c.w);
            if (!ordered(c.r1, t, sh))
                report("read-write race", a - p->gran, pc, &c.r1);
            if (!ordered(c.r2, t, sh))
                report("read-write race", a - p->gran, pc, &c.r2);
            c.w = {phase, seq[w], vc[w][w], off, (uint16_t)t};
            c.flags = INIT | (atomic ? ATOMIC_W : 0);
        } else {
            if (sh ? c.w.phase < block_start : dev && !(c.flags & INIT)) {
                report("uninitialised read", a - p->gran, pc, nullptr);
                c.flags |= INIT;
                c.w = {phase, seq[w], vc[w][w], off, (uint16_t)t};
            }
            if (!ordered(c.w, t, sh))
                report("write-read race", a - p->gran, pc, &c.w);
            if (c.r1.tid != t)
                c.r2 = c.r1;
            c.r1 = {phase, seq[w], vc[w][w], off, (uint16_t)t};
        }
    }
}
void rc_launch(int)
{
    launch_start = ++phase;
    fenced = false;
}
void rc_block()
{
    block_start = ++phase;
    fenced = false;
    memset(seq, 0, sizeof seq);
    memset(full_seq, 0, sizeof full_seq);
    memset(pair_seq, 0, sizeof pair_seq);
    memset(vc, 0, sizeof vc);
    for (int w = 0; w < 32; w++)
        vc[w][w] = 1;
}
void rc_barrier(unsigned warps)
{
    uint32_t j[32] = {};
    for (unsigned m = warps; m; m &= m - 1)
        for (int v = 0; v < 32; v++) {
            uint32_t x = vc[__builtin_ctz(m)][v];
            if (x > j[v])
                j[v] = x;
        }
    for (unsigned m = warps; m; m &= m - 1) {
        int w = __builtin_ctz(m);
        memcpy(vc[w], j, sizeof j);
        vc[w][w]++;
        full_seq[w] = ++seq[w];
    }
}
void rc_warp_barrier(int w, unsigned mask)
{
    uint32_t s = ++seq[w];
    if (mask == 0xffffffffu) {
        full_seq[w] = s;
        return;
    }
    for (unsigned m = mask; m; m &= m - 1)
        for (unsigned k = mask; k; k &= k - 1)
            pair_seq[w][__builtin_ctz(m)][__builtin_ctz(k)] = s;
}
static void each(uintptr_t a, size_t n, void (*f)(Cell &))
{
    uintptr_t e = a + n;
    int gran = (n % 4 == 0 && a % 4 == 0) ? 4 : (n % 2 == 0 && a % 2 == 0) ? 2 : 1;
    while (a < e) {
        Page *p = page(a, gran);
        f(p->c[a % PAGE / p->gran]);
        a += p->gran;
    }
}
void rc_host_write(const void *p, size_t n)
{
    if (heap_contains(p))
        each((uintptr_t)p, n, [](Cell &c) {
            c.flags = INIT;
            c.w = Acc();
            c.r1 = Acc();
            c.r2 = Acc();
        });
}
void rc_alloc(const void *p, size_t n)
{
    each((uintptr_t)p, n, [](Cell &c) { memset((void *)&c, 0, sizeof c); });
}
// What is freed is never used again (addresses are not reused, allocations have pages of
// their own): forget it.
void rc_free(const void *p, size_t n)
{
    uintptr_t from = (uintptr_t)p / PAGE, to = ((uintptr_t)p + n + PAGE - 1) / PAGE;
    for (uintptr_t no = from; no < to; no++) {
        auto it = pages.find(no);
        if (it == pages.end())
            continue;
        free(it->second.c);
        pages.erase(it);
    }
    last_pg = nullptr;
}
void rc_fence()
{
    fenced = true;
}
void rc_pause(bool p)
{
    paused = p;
}
void rc_access(const void *p, size_t n, bool write)
{
    access((uintptr_t)p, (int)n, write, false, (uintptr_t)__builtin_return_address(0));
}
void rc_atomic(const void *p, size_t n)
{
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    bool sh = shared_contains(p);
    if (in_kernel() && (sh || heap_contains(p))) { // an atomic also reads
        Page *pg = page((uintptr_t)p, n % 4 ? 2 : 4);
        Cell &c = pg->c[(uintptr_t)p % PAGE / pg->gran];
        if (sh ? c.w.phase < block_start : !(c.flags & INIT))
            report("uninitialised atomic", (uintptr_t)p, pc, nullptr);
    }
    access((uintptr_t)p, (int)n, true, true, pc);
}
} // namespace cusim
using cusim::access;
static inline void aligned(uintptr_t a, int n, uintptr_t pc)
{
    if (a & (uintptr_t)(n - 1) && cusim::in_kernel())
        cusim::report("misaligned access", a, pc, nullptr);
}
#define PC ((uintptr_t)__builtin_return_address(0))
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define RW(n)                                      \
    void __tsan_read##n(void *p)                   \
    {                                              \
        aligned((uintptr_t)p, n, PC);              \
        access((uintptr_t)p, n, false, false, PC); \
    }                                              \
    void __tsan_write##n(void *p)                  \
    {                                              \
        aligned((uintptr_t)p, n, PC);              \
        access((uintptr_t)p, n, true, false, PC);  \
    }                                              \
    void __tsan_unaligned_read##n(void *p)         \
    {                                              \
        access((uintptr_t)p, n, false, false, PC); \
    }                                              \
    void __tsan_unaligned_write##n(void *p)        \
    {                                              \
        access((uintptr_t)p, n, true, false, PC);  \
    }                                              \
    void __tsan_volatile_read##n(void *p)          \
    {                                              \
        access((uintptr_t)p, n, false, true, PC);  \
    }                                              \
    void __tsan_volatile_write##n(void *p)         \
    {                                              \
        access((uintptr_t)p, n, true, true, PC);   \
    }                                              \
    void __tsan_read_write##n(void *p)             \
    {                                              \
        access((uintptr_t)p, n, false, false, PC); \
        access((uintptr_t)p, n, true, false, PC);  \
    }
RW(1) RW(2) RW(4) RW(8) RW(16) void __tsan_read_range(void *p, unsigned long n)
{
    access((uintptr_t)p, (int)n, false, false, PC);
}
void __tsan_write_range(void *p, unsigned long n)
{
    access((uintptr_t)p, (int)n, true, false, PC);
}
// The guard of a static that a host function makes at its first call.
unsigned char __tsan_atomic8_load(const volatile unsigned char *p, int)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
}
