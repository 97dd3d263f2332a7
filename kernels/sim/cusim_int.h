/* cusim_int.h - what the parts of the simulator share. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
namespace cusim
{
// What a block may have at most on every GPU the build is for: compute capability 8.6 and 8.9
// have the least.
enum { SHARED_MOST = 99 * 1024 };
enum Sched { FWD, REV, BFS, RND };
struct Config {
    bool loaded;
    Sched sched;
    uint64_t seed;
    bool poison;
    int stream;
    int protect;
};
struct Stats {
    uint64_t switches, threads, collectives, blocks, launches;
};
extern Stats stats;
const Config &config();
bool in_kernel();
void where_report(FILE *f);
int warp_id();
int nthreads();
bool own_stack(const void *p);
uint64_t rnd64();
// device heap (cudart.cc)
void heap_open(); // device memory becomes accessible (kernel, memcpy, BLAS)
void heap_close();
bool heap_contains(const void *p);
bool heap_range_ok(const void *p, size_t n);
const char *heap_describe(const void *p);
bool shared_contains(const void *p);
bool shared_range_ok(const void *p, size_t n);
const char *shared_describe(const void *p);
// race checker (race.cc); empty when not linked
void rc_launch(int nthreads);
void rc_block();
void rc_barrier(unsigned warps);
void rc_warp_barrier(int warp, unsigned mask);
void rc_host_write(const void *p, size_t n);
void rc_alloc(const void *p, size_t n);
void rc_free(const void *p, size_t n);
void rc_pause(bool);
} // namespace cusim
